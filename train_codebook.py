r"""Step 3: train a codebook, a self-organizing map over the patches of feature maps.

Reads a dataset.json of feature maps and the autoencoder that encoded them. Writes checkpoints, validation images
decoded before and after quantization (images/image_plot_N.png, quant_image_plot_N.png, and with the originals
comparison_N.png), pictures of the map (atlas_N.png, u_matrix_N.png, hit_map_N.png) and metrics.jsonl to --out-dir.

    python train_codebook.py --dataset-path out/faces/feature_maps/dataset.json \
        --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --config-path configs/gpu-128/codebook_0.json --max-epoch 5 --out-dir out/faces/codebook_0
"""

import utils.runtime.threads  # noqa: F401

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from models.autoencoder import Autoencoder
from models.codebook import KIND, Codebook, CodebookConfig
from models.som.learner import MapLearner, draw_sample, sample_size
from models.som.order import arrange
from models.som.pictures import save_map
from models.som.statistics import Statistics, count_maps, decoded_psnr, table
from utils.core.files import UserError
from utils.core.options import option, parse_options
from utils.data.batches import steps_per_epoch
from utils.data.dataset import FeatureMapDataset
from utils.data.images import save_grid
from utils.runs.folders import OutputFolder
from utils.runtime import cli
from utils.runtime.distributed import Share, broadcast, is_main
from utils.runtime.draws import drawing
from utils.training.loop import mean_over, preview_indices, run
from utils.training.task import Task, TrainingOptions

log = logging.getLogger(__name__)

COMPARED = 10  # images in comparison_N.png
COUNTED = 2**18  # numbers per batch of feature maps when they are counted


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    decoder_path: Path = option("checkpoint of the autoencoder")
    codebook_path: Path | None = option("codebook to train further", None)
    lr_step: int | None = option(
        "training steps after which the learning rate halves", None, unset="never", low=1, is_fixed=True
    )


def main(argv: list[str] | None = None) -> None:
    train_codebook(parse_options(Options, __doc__, argv))


def train_codebook(options: Options) -> None:
    """Train a codebook, as `utils.training.loop.run` describes it."""
    run(__file__, options, MapTask)


class MapTask(Task):
    """Train a map on the patches of feature maps; at the end count the patches of each unit and arrange the units."""

    kind, prefix, has_best = KIND, "codebook", False

    def __init__(self, options: Options, device: torch.device) -> None:
        self.options, self.device = options, device
        self.dataset = FeatureMapDataset(options.dataset_path)
        self.config = CodebookConfig.load(options.config_path, self.dataset.shape)
        self.autoencoder = Autoencoder.load(options.decoder_path).to(device)
        self.origin = self.autoencoder.origin
        self.dataset.check_origin(self.origin)
        split = self.dataset.split(options.bounds)
        self.training, self.validation = split.training, split.measured

    def build(self, saved: dict) -> None:
        """Initialise a new map from a sample of patches, or load that of `--codebook-path`."""
        options, number = self.options, len(self.training)
        codebook, sample = self.initial_codebook(saved)
        codebook, sample = codebook.to(self.device), sample if sample is None else sample.to(self.device)
        steps = steps_per_epoch(number, options.step_size), options.planned_steps(number)
        self.codebook = codebook
        self.learner = MapLearner(codebook, *steps, sample is None, sample, options.lr_step)

    def initial_codebook(self, saved: dict) -> tuple[Codebook, torch.Tensor | None]:
        """The codebook to start from, and for a new one the sample of patches that it is initialised from.

        If the `saved` run started from `--codebook-path`, the codebook has as many units as the saved one.
        """
        options, config, dataset = self.options, self.config, self.dataset
        if saved.get("continued"):
            return Codebook(config, len(saved["model"]["units"])), None
        if (path := options.codebook_path) is not None:
            codebook = Codebook.load(path)
            if codebook.config != config:
                raise UserError(f"{path}: was trained with another config than {options.config_path}")
            codebook.check_fits(path, dataset.shape, dataset.origin)
            self.begun_from = {path: codebook.learned}
            return codebook, None
        codebook = Codebook(config)
        codebook.check_fits(options.config_path, dataset.shape, dataset.origin)
        per_map, number = math.prod(config.grid), len(self.training)
        if number * per_map < len(codebook):
            raise UserError(
                f"'num_embeddings' is {len(codebook)}, but the data set has {number * per_map} patches to train on: "
                "lower it or add images"
            )
        wanted = sample_size(config, options.planned_steps(number) * options.step_size * per_map)
        sample = draw_sample(codebook, dataset, self.training, wanted, options.seed)
        codebook.lay_out(sample)  # on the CPU, because not every device can compute principal components
        return codebook, sample

    def prepare(self) -> FeatureMapDataset:
        broadcast(self.codebook.units, self.codebook.coordinates)
        shown = preview_indices(self.training, self.dataset.unflipped(self.validation), 25)
        compared = shown[:COMPARED]
        self.shown = self.dataset[shown].to(self.device)
        has_images = len(self.dataset.with_image(compared)) == len(compared)
        self.originals = [self.dataset.images(compared, self.autoencoder.scale)] if has_images else []
        return self.dataset

    def update(self, batch: torch.Tensor, step: int, share: Share) -> dict[str, torch.Tensor | float]:
        with drawing(self.options.seed, step, share, self.device):
            return self.learner.update(batch, step, share)

    def validate(self) -> dict[str, float]:

        def error(fmap: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"val_loss": self.codebook.quantization_error(fmap.to(self.device))}

        return mean_over(self.dataset, self.validation, self.options.batch_size, error)

    @torch.no_grad()
    def preview(self, step: int) -> None:
        folder, pairs = OutputFolder(self.options.out_dir), (self.shown, self.codebook.quantize(self.shown))
        plain, quantized = (self.autoencoder.decode(fmap).cpu() for fmap in pairs)
        save_grid(plain, folder.picture("image_plot", step))
        save_grid(quantized, folder.picture("quant_image_plot", step))
        rows = torch.cat((*self.originals, plain[:COMPARED], quantized[:COMPARED]))
        save_grid(rows, folder.picture("comparison", step), columns=len(plain[:COMPARED]))
        if step < self.learner.total_steps:  # the final map is drawn after counting and arrangement
            save_map(self.codebook, self.autoencoder, folder, step)

    def finish(self, step: int) -> Statistics:
        """Count the patches of the training maps, arrange the units, then report statistics and draw the map.

        The result is saved at the very end. Until then, a resume repeats all of this from the trained map.
        """
        codebook, dataset = self.codebook, self.dataset
        census = count_maps(codebook, dataset, self.training, max(1, COUNTED // math.prod(dataset.shape)), "counting")
        statistics: Statistics = {}
        if is_main():
            codebook.coordinates.copy_(arrange(codebook.coordinates, census.pairs))
            statistics = census.statistics(codebook)
            statistics |= decoded_psnr(self.autoencoder, codebook, dataset, self.validation)
            log.info("statistics over %d training patches\n%s", census.counts.sum(), table(codebook=statistics))
            save_map(codebook, self.autoencoder, OutputFolder(self.options.out_dir), step)
        return statistics


if __name__ == "__main__":
    cli.run(main)
