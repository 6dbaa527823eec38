"""Step 5: train the transformer of one stage of the cascade.

With --train-base-model it writes the coarsest grid from a condition token; else it writes a finer grid from a
coarser one. Reads a dataset.json of feature maps, the autoencoder and two codebooks; writes checkpoints, validation
pictures (images/ground_truth_N.png, low_res_cond_N, high_res_example_N, high_res_recon_N) and metrics.jsonl.

    python train_quantized_transformer.py --dataset-path out/faces/feature_maps/dataset.json \
        --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --lr-codebook-path out/faces/codebook_0/models_checkpoint/pruned_codebook.pt \
        --hr-codebook-path out/faces/codebook_1/models_checkpoint/pruned_codebook.pt \
        --config-path configs/gpu-128/transformer_1.json --out-dir out/faces/transformer_1
"""

import utils.threads  # noqa: F401

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.autoencoder import Autoencoder
from models.bits import bits_before, given_bits, with_bits
from models.cascade import KIND, Stage, StageConfig, check_labels
from models.codebook import Codebook
from models.tokens import load_tokens
from models.transformer import TransformerConfig
from utils import cli
from utils.attempt import attempt
from utils.checkpoint_folder import CheckpointFolder
from utils.config import load_config
from utils.dataset import FeatureMapDataset, TokenDataset, to_device
from utils.device import choose_device
from utils.files import UserError
from utils.gradient import GradientLearner, GradientOptions
from utils.images import save_grid
from utils.metrics import Metrics
from utils.options import option, parse_options
from utils.sampling import SamplingConfig, uniform_draws
from utils.training import MAX_VALIDATION, mean_over, preview_indices, train

WATCH_SHARE = 7  # training items for each one that a log line is validated on: with no way back it costs about 5 %


@dataclass(frozen=True, kw_only=True)
class Options(GradientOptions):
    """Options of train_quantized_transformer.py."""

    train_base_model: bool = option("train the base stage, from condition tokens", False)
    decoder_path: Path = option("checkpoint of the autoencoder")
    lr_codebook_path: Path = option("codebook of the coarse grid")
    hr_codebook_path: Path = option("codebook of the fine grid")
    previous_path: Path | None = option("checkpoint of the stage before, to report the bits over all stages", None)
    test_num_sample: int = option("samples in a preview", 25, low=1)
    temperature: float = option("temperature of the preview's samples", 1.0, above=0)
    use_activation_checkpoint: bool = option("spend time to save memory", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_base_model and self.previous_path is not None:
            raise UserError(
                f"--train-base-model has no stage before it: leave out --previous-path {self.previous_path}"
            )


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    options = parse_options(Options, __doc__, argv)
    with attempt(__file__, options) as attempted:
        device = choose_device(options.device)
        dataset, autoencoder, coarse, fine = load_inputs(options, device)
        origin = autoencoder.origin | {"lr_codebook": coarse.fingerprint, "hr_codebook": fine.fingerprint}
        split = dataset.split(options.bounds)
        training, validation = split.training, split.validation
        transformer = load_config(options.config_path, TransformerConfig)
        names = dataset.label_names(training) if transformer.use_labels else ()
        config = StageConfig.between(
            transformer, coarse, fine, options.lr_codebook_path, options.train_base_model, names
        )

        torch.manual_seed(options.seed)
        stage = Stage(config).to(device)
        stage.init_embeddings(coarse, fine)
        stage.transformer.use_activation_checkpoint = options.use_activation_checkpoint
        steps, weights = options.planned_steps(len(training)), stage.transformer.block_weights
        # A call of the stage computes its loss.
        learner = GradientLearner(
            stage, lambda stage, batch: stage(*batch), transformer, options, steps, device, weights, config.fine.length
        )
        checkpoints = CheckpointFolder(options, KIND, config, origin, dataset, len(training))
        if options.model_path is not None:
            check_labels(options.model_path, config)
        start = learner.start(checkpoints)
        earlier_bits = bits_before(coarse, options.previous_path)

        metrics = Metrics(options, len(training), unit="tokens", per_item=config.fine.length)
        footprint = learner.footprint(config.example(min(options.batch_size, len(training))))

        attempted.begin(device, config, {**origin, "data": dataset.fingerprint})
        tokens = load_tokens(dataset, coarse, fine, device)
        if names:
            tokens = TokenDataset(np.concatenate((tokens.coarse, dataset.label_indices(names)), axis=1), tokens.fine)
            stage.count_labels(to_device(tokens[training], device)[0])
        if options.train_base_model:
            earlier_bits = start_bits(stage, coarse, tokens, training, validation[:MAX_VALIDATION])

        def validate(most: int = MAX_VALIDATION) -> dict[str, float]:
            found = losses_of(learner, tokens, validation[:most], options.batch_size)
            return with_bits(found, config, earlier_bits)

        shown = preview_indices(training, dataset.unflipped(validation), options.test_num_sample)
        fmaps = dataset[shown].to(device)

        @torch.no_grad()
        def preview(step: int) -> None:
            drawn = draw(learner.best_model, coarse, fine, to_device(tokens[shown], device), options)
            for name, made in {"ground_truth": fmaps, **drawn}.items():
                save_grid(autoencoder.decode(made).cpu(), checkpoints.folder.picture(name, step))

        watched = min(MAX_VALIDATION, max(options.step_size, options.log_step * options.step_size // WATCH_SHARE))
        options = replace(options, num_workers=options.num_workers or 0)  # tokens need no work
        watch = partial(validate, watched)
        train(options, learner, tokens, training, checkpoints, metrics, start, validate, preview, watch, footprint)


def load_inputs(options: Options, device: torch.device) -> tuple[FeatureMapDataset, Autoencoder, Codebook, Codebook]:
    """The feature maps, the autoencoder and the codebooks, checked to belong together."""
    dataset = FeatureMapDataset(options.dataset_path, options.out_dir)
    autoencoder = Autoencoder.load(options.decoder_path).to(device)
    dataset.check_origin(autoencoder.origins)
    codebooks = []
    for path in (options.lr_codebook_path, options.hr_codebook_path):
        codebooks.append(Codebook.load(path).to(device))
        codebooks[-1].check_fits(path, dataset.shape, dataset.origin)
    return dataset, autoencoder, *codebooks


def start_bits(
    stage: Stage, coarse: Codebook, tokens: TokenDataset, training: np.ndarray, indices: np.ndarray
) -> float | None:
    """Mean bits of what a base stage is given of these feature maps, its condition and its label; None if unknown."""
    label_counts = None
    if number := len(stage.config.labels):
        label_counts = torch.from_numpy(np.bincount(tokens.coarse[training, 1], minlength=number + 1))
    found = given_bits(coarse, tokens[indices][0], label_counts)
    return sum(found.values()) if found else None


@torch.no_grad()
def losses_of(learner: GradientLearner, tokens: TokenDataset, indices: np.ndarray, batch_size: int) -> dict[str, float]:
    """Loss, bits and accuracy of the stage on these feature maps, and how many they are; nothing of none."""

    def losses(batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        with learner.autocast:
            found = learner.best_model(*to_device(batch, learner.device))
        return {f"val_{name}": value for name, value in found.items()}

    found = mean_over(tokens, indices, batch_size, losses)
    return found | {"val_images": len(indices)} if found else {}


def draw(
    stage: Stage, coarse: Codebook, fine: Codebook, tokens: tuple[torch.Tensor, torch.Tensor], options: Options
) -> dict[str, torch.Tensor]:
    """Feature maps (N, C, H, W) of coarse and fine tokens, and of the fine tokens that the stage samples for them."""
    uniform = uniform_draws(options.seed, 0, range(len(tokens[1])), stage.config.fine.length, num_beam=1)
    sampled, _ = stage.sample(tokens[0], SamplingConfig(temperature=options.temperature), uniform)
    given = coarse.lookup(tokens[0][:, : stage.config.coarse.length])
    return {"low_res_cond": given, "high_res_example": fine.lookup(tokens[1]), "high_res_recon": fine.lookup(sampled)}


if __name__ == "__main__":
    cli.run(main)
