"""Stage 5: train the transformer of one stage of the cascade.

With --train-base-model it writes the coarsest grid from a condition token; else it writes a finer grid from a
coarser one. Reads a dataset.json of feature maps, the autoencoder and two codebooks; writes checkpoints, held-out
pictures (images/ground_truth_N.png, low_res_cond_N, high_res_example_N, high_res_recon_N) and metrics.jsonl.

    python train_quantized_transformer.py --dataset-path out/faces/feature_maps/dataset.json \
        --decoder-path out/faces/autoencoder/models_checkpoint/latest.pt \
        --lr-codebook-path out/faces/codebook_0/models_checkpoint/pruned_codebook.pt \
        --hr-codebook-path out/faces/codebook_1/models_checkpoint/pruned_codebook.pt \
        --config-path configs/full-128/transformer_1.json --out-dir out/faces/transformer_1
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from models.autoencoder import Autoencoder
from models.cascade import KIND, Stage, StageConfig, bits_before
from models.codebook import Codebook
from models.tokens import load_tokens
from models.transformer import TransformerConfig
from utils import cli
from utils.beam_search import SearchConfig, uniform_draws
from utils.checkpoint import check_origin
from utils.config import load_config
from utils.dataset import FeatureMapDataset, to_device
from utils.files import UserError
from utils.gradient import GradientLearner
from utils.images import save_grid
from utils.training import MAX_VALIDATION, Run, mean_over, planned_steps, preview_indices, step_size, train

WATCH_SHARE = 7  # training items for each one that a log line is validated on: with no way back it costs about 5 %


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build, run."""
    args = parse(argv)
    device = cli.choose_device(args.device)
    dataset, autoencoder, coarse, fine = load(args, device)
    transformer = load_config(args.config_path, TransformerConfig)
    names, labels = dataset.label_indices() if transformer.use_labels else ((), None)
    config = StageConfig.between(transformer, coarse, fine, args.lr_codebook_path, args.train_base_model, names)
    training, held_out = dataset.split(args.val_fraction)
    trained_from = {
        "autoencoder": autoencoder.fingerprint,
        "lr_codebook": coarse.fingerprint,
        "hr_codebook": fine.fingerprint,
    }
    cli.start_log(args, "train")
    earlier_bits = bits_before(coarse, args.previous_path, is_base=args.train_base_model)
    tokens = load_tokens(dataset, coarse, fine, device)

    torch.manual_seed(args.seed)
    stage = Stage(config).to(device)
    stage.start_from(coarse, fine)
    if names:
        tokens = tokens.with_labels(labels)
        stage.count_labels(to_device(tokens[np.arange(len(tokens))], device)[0])
    stage.transformer.use_activation_checkpoint = args.use_activation_checkpoint
    steps, weights = planned_steps(len(training), args), stage.transformer.block_weights
    # The stage's own call measures its loss.
    learner = GradientLearner(stage, lambda stage, batch: stage(*batch), transformer, args, steps, device, weights)
    if args.model_path is not None:
        learner.start_from(args.model_path, KIND, trained_from)

    @torch.no_grad()
    def measure(batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        with learner.autocast:
            found = learner.best_model(*to_device(batch, device))
        return {f"val_{name}": value for name, value in found.items()}

    def validate(most: int = MAX_VALIDATION) -> dict[str, float]:
        measured = held_out[:most]
        numbers = mean_over(tokens, measured, args, measure)
        if numbers:
            numbers["val_images"] = len(measured)
            numbers["stage_bits"] = numbers["val_bits"] * config.fine.length
            if earlier_bits is not None:
                numbers["image_bits"] = earlier_bits + numbers["stage_bits"]
        return numbers

    shown = preview_indices(training, dataset.unflipped(held_out), args.test_num_sample)

    @torch.no_grad()
    def preview(step: int) -> None:
        coarse_tokens, fine_tokens = to_device(tokens[shown], device)
        search = SearchConfig(temperature=args.temperature)
        uniform = uniform_draws(args.seed, 0, range(len(shown)), config.fine.length, search.num_beam)
        sampled, _ = learner.best_model.sample(coarse_tokens, search, uniform)
        fmaps = {
            "ground_truth": dataset[shown].to(device),
            "low_res_cond": coarse.lookup(coarse_tokens[:, : config.coarse.length]),
            "high_res_example": fine.lookup(fine_tokens),
            "high_res_recon": fine.lookup(sampled),
        }
        for name, fmap in fmaps.items():
            save_grid(autoencoder.decode(fmap).cpu(), run.image_path(name, step))

    args.num_workers = args.num_workers or 0  # tokens need no work
    run = Run(args, KIND, config, trained_from, len(training), rate=("tokens", config.fine.length))
    first = training[: args.batch_size]
    run.bare_seconds = learner.bare_seconds(to_device(tokens[first], device)) / len(first)
    watched = min(MAX_VALIDATION, max(args.batch_size, args.log_step * step_size(args) // WATCH_SHARE))
    train(run, learner, tokens, training, device, validate, preview, lambda: validate(watched))


def load(args: argparse.Namespace, device: torch.device) -> tuple[FeatureMapDataset, Autoencoder, Codebook, Codebook]:
    """The feature maps, the autoencoder and the codebooks, checked to belong together."""
    dataset = FeatureMapDataset(args.dataset_path)
    autoencoder = Autoencoder.load(args.decoder_path).to(device)
    check_origin(args.dataset_path, "autoencoder", dataset.autoencoder, autoencoder.fingerprint)
    codebooks = []
    for path in (args.lr_codebook_path, args.hr_codebook_path):
        codebooks.append(Codebook.load(path).to(device))
        codebooks[-1].check_fits(path, dataset)
    return dataset, autoencoder, *codebooks


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = cli.recipe_parser(__doc__)
    cli.add_training_flags(parser, lr_step=50_000)
    cli.add_gradient_flags(parser)
    parser.add_argument("--train-base-model", action="store_true", help="train the base stage, from condition tokens")
    parser.add_argument("--decoder-path", type=Path, required=True, help="checkpoint of the autoencoder")
    parser.add_argument("--lr-codebook-path", type=Path, required=True, help="codebook of the coarse grid")
    parser.add_argument("--hr-codebook-path", type=Path, required=True, help="codebook of the fine grid")
    parser.add_argument("--previous-path", type=Path, help="checkpoint of the stage before, to add up an image's bits")
    parser.add_argument("--test-num-sample", type=cli.positive_int, default=25, help="samples in a preview [25]")
    parser.add_argument("--temperature", type=cli.positive_float, default=1.0, help="of the previews' samples [1.0]")
    parser.add_argument("--use-activation-checkpoint", action="store_true", help="spend time to save memory")
    args = parser.parse_args(argv)
    cli.check_start(args, "model-path")
    if args.train_base_model and args.previous_path is not None:
        raise UserError(f"--train-base-model has no stage before it: leave out --previous-path {args.previous_path}")
    return args


if __name__ == "__main__":
    cli.run(main)
