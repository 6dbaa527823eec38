"""The names of all that a run leaves on disk: the folder of each step, and the files inside it."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from utils.config import read_json


@dataclass(frozen=True)
class StepFolder:
    """What one step writes to, its `--out-dir`."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's own name, such as codebook_0 in a run."""
        return self.path.name

    @property
    def kind(self) -> str:
        """autoencoder, feature_maps, codebook, transformer or generated, by the folder's name in a run."""
        return self.name.rpartition("_")[0] if self.name.startswith(("codebook_", "transformer_")) else self.name

    @property
    def level(self) -> str:
        """Which codebook or transformer of the run it is: "cond", "0", "1", …; empty for the other steps."""
        return self.name.removeprefix(self.kind).removeprefix("_")

    @property
    def record(self) -> Path:
        """The attempts at the step: `utils.attempt`."""
        return self.path / "run.json"

    def log(self, script: str) -> Path:
        """The log of a script, named after its first word: train.log, generate.log, prune.log."""
        return self.path / f"{script.partition('_')[0]}.log"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def dataset(self) -> Path:
        """The index of images or of feature maps."""
        return self.path / "dataset.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.path / "models_checkpoint"

    @property
    def latest(self) -> Path:
        """The newest checkpoint of a training."""
        return self.checkpoints / "latest.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the lowest validation loss."""
        return self.checkpoints / "best.pt"

    @property
    def pruned(self) -> Path:
        """The codebook that pruning has left."""
        return self.checkpoints / "pruned_codebook.pt"

    @property
    def codebook(self) -> Path:
        """The codebook that later steps read: the pruned one, unless training has ended and pruning has not."""
        return self.latest if self.latest.is_file() and not self.pruned.is_file() else self.pruned

    @property
    def images(self) -> Path:
        """The folder of all pictures."""
        return self.path / "images"

    def picture(self, name: str, suffix: object) -> Path:
        """The picture `name` of a step of the training, or of what pruning has left (`pruned`)."""
        return self.images / f"{name}_{suffix}.png"

    def newest_picture(self, name: str) -> Path | None:
        """The picture `name` of what pruning has left, else of the highest step; None where there is none."""
        steps = {}
        for path in self.images.glob(f"{name}_*.png"):
            suffix = path.stem.removeprefix(f"{name}_")
            if suffix.isdecimal() or suffix == "pruned":
                steps[float("inf") if suffix == "pruned" else int(suffix)] = path
        return steps[max(steps)] if steps else None

    @property
    def tokens(self) -> Path:
        """The tokens of generated images, of all stages; beside feature maps a folder `tokens/` holds theirs."""
        return self.path / "tokens.npz"

    def final_image(self, index: int) -> Path:
        """A generated image."""
        return self.images / f"image_{index:05d}.png"

    @property
    def final_images(self) -> list[Path]:
        """All generated images, in order."""
        return sorted(self.images.glob(f"image_{'[0-9]' * 5}.png"))

    def grid(self, level: int) -> Path:
        """The grid of generated images by their conditions (level 0), or by the tokens of a stage, from level 1."""
        return self.images / f"recon_model_{level - 1 if level else 'Cond'}.png"

    @property
    def grids(self) -> list[Path]:
        """The grids that there are, from the conditions on."""
        paths = []
        while self.grid(len(paths)).exists():
            paths.append(self.grid(len(paths)))
        return paths

    def animation(self, kind: str) -> Path:
        """The animation of the first generated images filling in, as "webp" or "gif"."""
        return self.images / f"filling_in.{kind}"


class RunFolder:
    """What `scripts/train_cascade.sh` writes to, as far as it has come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.autoencoder, self.feature_maps, self.generated = (
            self.step(name) for name in ("autoencoder", "feature_maps", "generated")
        )

    def step(self, name: str) -> StepFolder:
        """The folder of a step."""
        return StepFolder(self.path / name)

    @property
    def images(self) -> Path:
        """The data set of the run's images, where `scripts/demo.sh` has put it."""
        return self.path / "data" / "dataset.json"

    @property
    def generation(self) -> Path:
        """The config of the generation."""
        return self.path / "generate.json"

    @property
    def report(self) -> Path:
        """The page of `scripts.report`."""
        return self.path / "report.html"

    @property
    def evaluation(self) -> Path:
        """The folder of `scripts.evaluate`."""
        return self.path / "evaluation"

    @cached_property
    def num_stages(self) -> int:
        """Stages of the cascade: those that `generate.json` names or that a folder was made for, at least 1."""
        made = [re.fullmatch(r"(?:codebook|transformer)_(\d+)", path.name) for path in self.path.glob("*_*")]
        planned = len(read_json(self.generation)) if self.generation.is_file() else 0
        return max([1, planned, *(int(found[1]) + 1 for found in made if found)])

    @property
    def codebooks(self) -> list[StepFolder]:
        """The condition codebook, then the one that each stage writes with."""
        return [self.step(f"codebook_{level}") for level in ("cond", *range(self.num_stages))]

    @property
    def transformers(self) -> list[StepFolder]:
        """The transformers of the stages."""
        return [self.step(f"transformer_{number}") for number in range(self.num_stages)]

    @property
    def steps(self) -> list[StepFolder]:
        """The folders of all steps, in the order in which they are made."""
        return [self.autoencoder, self.feature_maps, *self.codebooks, *self.transformers, self.generated]

    def result(self, step: StepFolder) -> Path:
        """The file that a step has written once it has something to show."""
        results = {
            "autoencoder": step.latest,
            "feature_maps": step.dataset,
            "codebook": step.codebook,
            "transformer": step.best,
            "generated": step.grid(0),
        }
        return results[step.kind]

    @property
    def missing(self) -> dict[str, Path]:
        """The steps without a result, by their names, each with the file that is not there."""
        results = {step.name: self.result(step) for step in self.steps}
        return {name: path for name, path in results.items() if not path.is_file()}

    def is_unfinished(self, step: StepFolder) -> bool:
        """Whether the chain has begun this step, or the pruning after it, and not ended it."""
        marks = {"codebook": [step.name, f"prune_{step.name}"], "generated": ["generate"]}.get(step.kind, [step.name])
        done = self.path / ".done"
        return step.path.is_dir() and done.is_dir() and not all((done / mark).is_file() for mark in marks)
