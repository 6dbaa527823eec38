"""Step 3: train a codebook, a self-organizing map over the patches of feature maps.

Reads a dataset.json of feature maps and the autoencoder that made them; writes checkpoints, validation images decoded
before and after quantization (images/image_plot_N.png, quant_image_plot_N.png, and with the originals
comparison_N.png), pictures of the map (atlas_N.png, u_matrix_N.png, hit_map_N.png) and metrics.jsonl under --out-dir.

    python train_codebook.py --dataset-path out/faces/feature_maps/dataset.json \
        --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --config-path configs/gpu-128/codebook_0.json --max-epoch 5 --out-dir out/faces/codebook_0
"""

import utils.threads  # noqa: F401

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.autoencoder import Autoencoder
from models.codebook import KIND, Codebook, CodebookConfig
from models.map_learner import MapLearner, draw_sample, sample_size
from models.map_order import arrange
from models.map_pictures import save_map
from models.map_statistics import Statistics, decoded_psnr, table, take_census
from utils import cli
from utils.attempt import attempt
from utils.checkpoint_folder import CheckpointFolder
from utils.config import load_config
from utils.dataset import BatchLoader, FeatureMapDataset, chunks, steps_per_epoch
from utils.device import choose_device, choose_workers
from utils.distributed import is_main, own, take_over
from utils.files import UserError
from utils.images import save_grid
from utils.learner import TrainingOptions
from utils.metrics import Metrics, read_rows
from utils.options import option, parse_options
from utils.progress import progress
from utils.split import Split
from utils.training import MAX_VALIDATION, mean_over, preview_indices, train

log = logging.getLogger(__name__)

COMPARED = 10  # images in the picture of originals, reconstructions and quantization
COUNTED = 2**18  # numbers of feature maps at once, when the map is measured


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Options of train_codebook.py."""

    decoder_path: Path = option("checkpoint of the autoencoder")
    codebook_path: Path | None = option("go on from this codebook", None)
    lr_step: int = option("training steps after which the learning rate halves", 100_000, low=1, is_fixed=True)

    def __post_init__(self) -> None:
        if self.resume and self.codebook_path is not None:
            raise UserError(
                f"--resume goes on with what --out-dir holds: leave out --codebook-path {self.codebook_path}, "
                "or --resume"
            )


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    options = parse_options(Options, __doc__, argv)
    with attempt(__file__, options) as attempted:
        device = choose_device(options.device)
        config = load_config(options.config_path, CodebookConfig)
        dataset = FeatureMapDataset(options.dataset_path, options.out_dir)
        autoencoder = Autoencoder.load(options.decoder_path).to(device)
        dataset.check_origin(autoencoder.origins)
        split = dataset.split(options.bounds)
        training, validation = split.training, split.validation

        origin, names = autoencoder.origin, {"prefix": "codebook", "has_best": False}
        checkpoints = CheckpointFolder(options, KIND, config, origin, dataset, len(training), **names)
        torch.manual_seed(options.seed)
        codebook, sample = start_codebook(options, config, dataset, training, checkpoints.found)
        if options.codebook_path is not None:
            checkpoints.begin_from(options.codebook_path, codebook.bounds)
        codebook, sample = codebook.to(device), sample if sample is None else sample.to(device)
        steps = (steps_per_epoch(len(training), options.step_size), options.planned_steps(len(training)))
        learner = MapLearner(codebook, *steps, sample is None, options.lr_step, sample)
        start = checkpoints.restore(learner)

        def error(fmap: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"val_loss": codebook.quantization_error(fmap.to(device))}

        def validate() -> dict[str, float]:
            return mean_over(dataset, validation, options.batch_size, error)

        @torch.no_grad()
        def preview(step: int) -> None:
            plain, quantized = (autoencoder.decode(fmap).cpu() for fmap in (maps, codebook.quantize(maps)))
            save_grid(plain, folder.picture("image_plot", step))
            save_grid(quantized, folder.picture("quant_image_plot", step))
            rows = torch.cat((*originals, plain[:COMPARED], quantized[:COMPARED]))
            save_grid(rows, folder.picture("comparison", step), columns=len(plain[:COMPARED]))
            if step < checkpoints.total_steps:  # at the end it is drawn once it is arranged and counted
                save_map(codebook, autoencoder, folder, step)

        folder = checkpoints.folder
        metrics = Metrics(options, len(training))

        attempted.begin(device, config, {**origin, "data": dataset.fingerprint})
        take_over(codebook.units, codebook.coordinates)
        shown = preview_indices(training, dataset.unflipped(validation), 25)
        maps, compared = dataset[shown].to(device), shown[:COMPARED]
        has_images = len(dataset.with_image(compared)) == len(compared)
        originals = [dataset.images(compared, autoencoder.scale)] if has_images else []
        step = train(options, learner, dataset, training, checkpoints, metrics, start, validate, preview)
        if codebook.counts.sum() == 0:
            statistics = finish(learner, autoencoder, dataset, split, checkpoints, metrics, step)
        else:  # an earlier process came as far as here
            statistics = checkpoints.found["statistics"]
        if not any(row["step"] == step and "quantization_error" in row for row in read_rows(folder.metrics)):
            metrics.write_row({"step": step, **statistics})
            metrics.show_pictures(step)


def start_codebook(
    options: Options, config: CodebookConfig, dataset: FeatureMapDataset, training: np.ndarray, found: dict
) -> tuple[Codebook, torch.Tensor | None]:
    """The codebook of `--codebook-path`, or a new one laid out over a sample of patches of the training maps.

    For the checkpoint that was `found` of a run that began with `--codebook-path`, one of as many units.
    """
    if found.get("continued"):
        return Codebook(config, len(found["model"]["units"])), None
    if options.codebook_path is not None:
        codebook = Codebook.load(options.codebook_path)
        if codebook.config != config:
            raise UserError(f"{options.codebook_path}: was trained with another config than {options.config_path}")
        codebook.check_fits(options.codebook_path, dataset.shape, dataset.origin)
        return codebook, None
    codebook = Codebook(config)
    codebook.check_fits(options.config_path, dataset.shape, dataset.origin)
    per_map = math.prod(config.grid)
    if len(training) * per_map < len(codebook):
        raise UserError(
            f"'num_embeddings' is {len(codebook)}, but the data set has {len(training) * per_map} patches to train on: "
            "lower it or add images"
        )
    wanted = sample_size(config, options.planned_steps(len(training)) * options.step_size * per_map)
    sample = draw_sample(codebook, dataset, training, wanted, options.seed)
    codebook.lay_out(sample)  # on the CPU: not every device can compute principal components
    return codebook, sample


def finish(
    learner: MapLearner,
    autoencoder: Autoencoder,
    dataset: FeatureMapDataset,
    split: Split,
    checkpoints: CheckpointFolder,
    metrics: Metrics,
    step: int,
) -> Statistics:
    """Count the training maps, put the map in order, measure it, draw it, and keep it so in the last checkpoint.

    That is saved once all is done: until then a resume finds the map as training left it, and does all of this again.
    """
    codebook = learner.codebook
    parts = own(chunks(split.training, max(1, COUNTED // math.prod(dataset.shape))))
    batches = BatchLoader(dataset, parts, choose_workers(None, learner.device))
    census = take_census(codebook, progress(batches, unit="batch", desc="counting"))
    codebook.counts.copy_(census.counts)
    if not is_main():
        learner.checkpoint()
        return {}
    codebook.coordinates.copy_(arrange(codebook.coordinates, census.pairs))
    statistics = census.statistics(codebook)
    statistics |= decoded_psnr(autoencoder, codebook, dataset, split.validation[:MAX_VALIDATION])
    log.info("statistics over %d training patches\n%s", census.counts.sum(), table(codebook=statistics))
    save_map(codebook, autoencoder, checkpoints.folder, step)
    checkpoints.save(learner, step, statistics=statistics, metrics=metrics.state())
    return statistics


if __name__ == "__main__":
    cli.run(main)
