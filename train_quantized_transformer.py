r"""Step 5: train the transformer of one stage of the cascade.

With --train-base-model it predicts the coarsest grid from a condition token; otherwise a finer grid from a coarser one.
Reads a dataset.json of feature maps, the autoencoder and two codebooks. Writes checkpoints, validation pictures
(images/ground_truth_N.png, low_res_cond_N, high_res_true_N, high_res_recon_N) and metrics.jsonl to --out-dir.

    python train_quantized_transformer.py --dataset-path out/faces/feature_maps/dataset.json \
        --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --lr-codebook-path out/faces/codebook_0/models_checkpoint/pruned_codebook.pt \
        --hr-codebook-path out/faces/codebook_1/models_checkpoint/pruned_codebook.pt \
        --config-path configs/gpu-128/transformer_1.json --out-dir out/faces/transformer_1
"""

import utils.runtime.threads  # noqa: F401

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.autoencoder import Autoencoder
from models.bits import bits_before, given_bits, with_bits
from models.codebook import Codebook
from models.labels import MOST_SETS, listed
from models.stage import KIND, Stage, StageConfig, check_labels
from models.tokens import load_tokens
from models.transformer import TransformerConfig
from utils.core.config import load_config
from utils.core.files import UserError
from utils.core.options import option, parse_options
from utils.data.batches import Batch, TokenDataset, to_device
from utils.data.dataset import FeatureMapDataset
from utils.data.images import save_grid
from utils.runs.folders import OutputFolder
from utils.runtime import cli
from utils.sampling import SamplingConfig, uniform_draws
from utils.training.gradient import GradientLearner, GradientOptions, GradientTask
from utils.training.loop import mean_over, preview_indices, run

log = logging.getLogger(__name__)

WATCH_SHARE = 7  # at a log line, training items per validation item: this costs about 5 % of the time


@dataclass(frozen=True, kw_only=True)
class Options(GradientOptions):
    train_base_model: bool = option("train the base stage, from condition tokens", False)
    decoder_path: Path = option("checkpoint of the autoencoder")
    lr_codebook_path: Path = option("codebook of the coarse grid")
    hr_codebook_path: Path = option("codebook of the fine grid")
    previous_path: Path | None = option("checkpoint of the previous stage, to report the bits over all stages", None)
    test_num_sample: int = option("samples per preview", 25, low=1)
    temperature: float = option("sampling temperature of previews", 1.0, low=1e-4)
    use_activation_checkpoint: bool = option("recompute activations in the backward pass to save memory", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_base_model and self.previous_path is not None:
            raise UserError(
                f"--train-base-model has no stage before it: leave out --previous-path {self.previous_path}"
            )


def main(argv: list[str] | None = None) -> None:
    train_quantized_transformer(parse_options(Options, __doc__, argv))


def train_quantized_transformer(options: Options) -> None:
    """Train the transformer of a stage, as `utils.training.loop.run` describes it."""
    run(__file__, options, StageTask)


class StageTask(GradientTask):
    kind, unit, num_workers = KIND, "tokens", 0  # tokens need no preprocessing

    def __init__(self, options: Options, device: torch.device) -> None:
        self.options, self.device = options, device
        self.dataset, self.autoencoder, self.coarse, self.fine = load_inputs(options, device)
        codebooks = {"lr_codebook": self.coarse.fingerprint, "hr_codebook": self.fine.fingerprint}
        self.origin = self.autoencoder.origin | codebooks
        split = self.dataset.split(options.bounds, with_moved=not options.train_base_model)
        self.training, self.validation = split.training, split.measured
        transformer = load_config(options.config_path, TransformerConfig)
        self.label_names, labels = self.dataset.label_names(self.training) if transformer.use_labels else (), ()
        if self.label_names:
            self.label_sets = self.dataset.label_sets(self.label_names)  # (N, L)
            own = self.label_sets[self.training]
            if (own != own[:1]).any():  # else there is nothing to learn from them
                labels = self.label_names, own.shape[1], min(len(own), MOST_SETS)
        self.config = StageConfig.between(
            transformer, self.coarse, self.fine, options.lr_codebook_path, options.train_base_model, *labels
        )
        self.per_item = self.config.fine.length
        if options.model_path is not None:
            check_labels(options.model_path, self.config)
        self.bits_before = bits_before(self.coarse, options.previous_path)

    def build(self, saved: dict) -> None:
        stage = Stage(self.config).to(self.device)
        stage.init_embeddings(self.coarse, self.fine)
        stage.transformer.use_activation_checkpoint = self.options.use_activation_checkpoint
        steps, by_muon = self.options.planned_steps(len(self.training)), stage.transformer.block_weights
        self.learner = GradientLearner(
            stage, self.loss, self.config.transformer, self.options, steps, self.device, by_muon, self.per_item
        )
        self.update = self.learner.update

    def loss(self, model: Stage, batch: Batch) -> dict[str, torch.Tensor]:
        return model(*batch)

    def prepare(self) -> TokenDataset:
        tokens = load_tokens(self.dataset, self.coarse, self.fine, self.device)
        if self.config.labels:
            tokens = TokenDataset(np.concatenate((tokens.coarse, self.label_sets), axis=1), tokens.fine)
            self.learner.model.count_labels(torch.from_numpy(tokens.coarse[self.training].astype(np.int64)))
        elif self.label_names:
            log.info("all training images have the same labels, so none are learned: %s", listed(self.label_names))
        self.tokens = tokens
        if self.options.train_base_model:
            self.bits_before = self.start_bits()
        unflipped = self.dataset.unflipped(self.validation)
        self.shown = preview_indices(self.training, unflipped, self.options.test_num_sample)
        self.shown_maps = self.dataset[self.shown].to(self.device)
        return tokens

    def start_bits(self) -> float | None:
        """Mean bits of the condition and the labels that a base stage gets for validation maps; None if unknown."""
        number, held_out = len(self.config.labels), self.tokens[self.validation][0]
        counted = torch.from_numpy(self.label_sets[self.training]) if number else None
        bits = given_bits(self.coarse, held_out, counted, number)
        return sum(bits.values()) if bits else None

    @torch.no_grad()
    def validate(self, most: int | None = None) -> dict[str, float]:
        def losses(batch: Batch) -> dict[str, torch.Tensor]:
            with self.learner.autocast:
                numbers = self.loss(self.learner.best_model, to_device(batch, self.device))
            return {f"val_{name}": value for name, value in numbers.items()}

        indices = self.validation[:most]
        means = mean_over(self.tokens, indices, self.options.batch_size, losses)
        return with_bits(means | {"val_images": len(indices)} if means else {}, self.config, self.bits_before)

    def watch(self) -> dict[str, float]:
        size = self.options.step_size
        return self.validate(max(size, self.options.log_step * size // WATCH_SHARE))

    @torch.no_grad()
    def preview(self, step: int) -> None:
        stage, (coarse, fine) = self.learner.best_model, to_device(self.tokens[self.shown], self.device)
        uniform = uniform_draws(self.options.seed, 0, range(len(fine)), self.config.fine.length, num_beam=1)
        sampled, _ = stage.sample(coarse, SamplingConfig(temperature=self.options.temperature), uniform)
        pictures = {
            "ground_truth": self.shown_maps,
            "low_res_cond": self.coarse.lookup(coarse[:, : self.config.coarse.length]),
            "high_res_true": self.fine.lookup(fine),
            "high_res_recon": self.fine.lookup(sampled),
        }
        for name, fmaps in pictures.items():
            picture = OutputFolder(self.options.out_dir).picture(name, step)
            save_grid(self.autoencoder.decode(fmaps).cpu(), picture)


def load_inputs(options: Options, device: torch.device) -> tuple[FeatureMapDataset, Autoencoder, Codebook, Codebook]:
    dataset = FeatureMapDataset(options.dataset_path)
    autoencoder = Autoencoder.load(options.decoder_path).to(device)
    dataset.check_origin(autoencoder.origin)
    codebooks = []
    for path in (options.lr_codebook_path, options.hr_codebook_path):
        codebooks.append(Codebook.load(path).to(device))
        codebooks[-1].check_fits(path, dataset.shape, dataset.origin)
    return dataset, autoencoder, *codebooks


if __name__ == "__main__":
    cli.run(main)
