"""The names of all files of a run: the folder of each step, and the files inside it."""

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path

from utils.core.config import read_json
from utils.core.files import UserError

CONFIG, SUFFIX = "config.json", ".safetensors"  # of an exported model
MEASURED = "measured.json"  # beside checkpoints: the measured numbers of each, by its fingerprint
CONDITION = "cond"  # the level of the condition codebook; the other levels are numbers
# The pictures of a checkpoint, by trainer; `picture` adds its step.
PICTURES = ("ground_truth", "recon")
PICTURES += ("image_plot", "quant_image_plot", "comparison", "atlas", "u_matrix", "hit_map")
PICTURES += ("low_res_cond", "high_res_true", "high_res_recon")


class OutputFolder:
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        # In a run the name says which step it is: codebook_cond, transformer_0, …, or one without levels.
        has_level = self.name.startswith(("codebook_", "transformer_"))
        self.kind, _, self.level = self.name.rpartition("_") if has_level else (self.name, "", "")
        self.record = path / "manifest.json"  # what made its results, and how that ended: utils/runs/manifest.py
        self.metrics = path / "metrics.jsonl"  # one JSON object a line
        self.dataset = path / "dataset.json"  # the index of images or of feature maps
        self.unfinished = path / "unfinished.jsonl"  # parts that are done before the index: utils/data/journal.py
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "models_checkpoint"
        self.latest = self.checkpoints / "latest.pt"
        self.best = self.checkpoints / "best.pt"  # of the lowest validation loss
        self.pruned = self.checkpoints / "pruned_codebook.pt"
        self.measured = self.checkpoints / MEASURED
        self.images = path / "images"
        self.condition_atlas = self.images / "condition_atlas.png"  # a generated image for each unit, at its place
        self.tokens = path / "tokens.npz"  # of generated images; those of feature maps lie in a folder tokens/

    def log(self, script: str) -> Path:
        """The log of a script, named after its first word: train.log, generate.log, prune.log."""
        return self.path / f"{script.partition('_')[0]}.log"

    @property
    def codebook(self) -> Path:
        """The codebook that later steps read: the pruned one, or `latest.pt` where only that exists."""
        return self.latest if self.latest.is_file() and not self.pruned.is_file() else self.pruned

    def numbered_checkpoints(self, prefix: str) -> dict[int, Path]:
        """The checkpoints `prefix_<step>.pt` by their steps; a person's own copies have other names."""
        pattern = re.compile(rf"{prefix}_(\d+)\.pt")
        return {int(m[1]): path for path in self.checkpoints.glob("*.pt") if (m := pattern.fullmatch(path.name))}

    def resumable_checkpoints(self, prefix: str) -> list[Path]:
        """`latest.pt`, and in its place, if it is missing or damaged, the others from the highest step on."""
        numbered = [path for _, path in sorted(self.numbered_checkpoints(prefix).items(), reverse=True)]
        return [path for path in (self.latest, *numbered) if path.is_file()]

    def made_checkpoints(self, prefix: str) -> list[Path]:
        """The checkpoints of a training and the pruning after it, and their measured numbers, `latest.pt` first."""
        paths = self.latest, self.best, self.pruned, *self.numbered_checkpoints(prefix).values(), self.measured
        return [path for path in paths if path.exists()]

    @property
    def made_pictures(self) -> list[Path]:
        pattern = re.compile(rf"({'|'.join(PICTURES)})_(\d+|pruned)\.png")
        return [path for path in self.images.glob("*.png") if pattern.fullmatch(path.name)]

    def picture(self, name: str, suffix: object) -> Path:
        return self.images / f"{name}_{suffix}.png"

    def newest_picture(self, name: str, *, pruned: bool = True) -> Path | None:
        """The picture `name` of the pruned codebook, unless `pruned` is False, else that of the highest step."""
        if pruned and (path := self.picture(name, "pruned")).is_file():
            return path
        suffixes = (path.stem.removeprefix(f"{name}_") for path in self.images.glob(f"{name}_*.png"))
        steps = [int(suffix) for suffix in suffixes if suffix.isdecimal()]
        return self.picture(name, max(steps)) if steps else None

    def final_image(self, index: int) -> Path:
        return self.images / f"image_{index:05d}.png"

    @property
    def final_images(self) -> list[Path]:
        return list(takewhile(Path.exists, map(self.final_image, count())))

    def grid(self, level: int) -> Path:
        """The grid of generated images by their conditions (level 0), or by the tokens of a stage, from level 1."""
        return self.images / f"recon_model_{level - 1 if level else 'Cond'}.png"

    @property
    def grids(self) -> list[Path]:
        return list(takewhile(Path.exists, map(self.grid, count())))

    def animation(self, kind: str, name: str = "filling_in") -> Path:
        """The animation, "webp" or "gif", of the first generated images filling in, or of those of a `walk`."""
        return self.images / f"{name}.{kind}"

    @property
    def pictures(self) -> list[Path]:
        ours = re.compile(
            r"image_\d{5,}\.png|recon_model_(Cond|\d+)\.png|condition_atlas\.png|(filling_in|walk)\.(webp|gif)"
        )
        return [path for path in self.images.glob("*") if ours.fullmatch(path.name)]

    def tokens_of(self, start: int) -> Path:
        return self.path / f"tokens_{start}.npz"


class EvaluationFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = path / "evaluation.json"  # all numbers: evaluation/results.py
        self.table = path / "table.md"  # the same numbers in Markdown
        self.pairs = path / "pairs.png"  # the samples that are nearest to a training image, each below that image


class RunFolder:
    """The folder of `scripts.train_cascade`, as far as it has come."""

    def __init__(self, path: Path, num_stages: int | None = None) -> None:
        self.path = path
        if num_stages is not None:  # planned; else as many as there are
            self.num_stages = num_stages
        self.images = path / "data" / "dataset.json"  # of scripts/demo.py
        self.generation = path / "generate.json"  # the config of the generation
        self.evaluation = EvaluationFolder(path / "evaluation")
        self.report = path / "report.html"
        self.recipe = path / "recipe"  # that scripts.auto planned
        self.fingerprint = self.recipe / "fingerprint.json"  # what it saw
        self.planned = self.recipe / "auto.json"  # what it decided and how long that took
        self.clock = self.recipe / "clock.json"  # the seconds that were used
        self.first = path / "first.png"  # its first pictures, of models that are thrown away
        self.autoencoder, self.feature_maps = self.step("autoencoder"), self.step("feature_maps")
        self.decoder = self.step("decoder")  # only where a recipe trains it further, on quantized maps
        self.generated = self.step("generated")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """A folder that must be there, of a run or of an exported model."""
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give one that scripts.train_cascade or scripts.export writes to")
        return ExportedFolder(path) if (path / CONFIG).is_file() else cls(path)

    def step(self, name: str) -> OutputFolder:
        return OutputFolder(self.path / name)

    @property
    def decoding(self) -> OutputFolder:
        """The step whose decoder decodes tokens: the one trained on quantized maps, if there is one."""
        return self.decoder if self.decoder.latest.is_file() else self.autoencoder

    def kept_map(self, key: str) -> Path:
        """A sample of each unit of the condition codebook: the playground draws them once for models with this key."""
        return self.path / ".playground" / f"{key}.png"

    @cached_property
    def num_stages(self) -> int:
        """Stages of the cascade: those that `generate.json` names or that a folder was made for, at least 1."""
        folders = [re.fullmatch(r"(?:codebook|transformer)_(\d+)", path.name) for path in self.path.glob("*_*")]
        planned = len(read_json(self.generation)) if self.generation.is_file() else 0
        return max([1, planned, *(int(folder[1]) + 1 for folder in folders if folder)])

    @property
    def codebooks(self) -> list[OutputFolder]:
        return [self.step(f"codebook_{level}") for level in (CONDITION, *range(self.num_stages))]

    @property
    def transformers(self) -> list[OutputFolder]:
        return [self.step(f"transformer_{number}") for number in range(self.num_stages)]


class ExportedFolder(RunFolder):
    """The folder of `scripts.export`: the models of a run, each in a file, without data sets, logs and pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.config = path / CONFIG
        self.card = path / "README.md"
        self.samples = path / "samples.png"

    def step(self, name: str) -> OutputFolder:
        """The model of a step: a file in the place of its checkpoints."""
        step = super().step(name)
        step.latest = step.best = step.pruned = self.path / (name + SUFFIX)
        return step

    def check_inside(self, configs: Iterable[object]) -> None:
        """Raise `UserError` if a stage of generate.json is read from anywhere else: the folder may be a stranger's."""
        names = ("model_path", "lr_codebook_path", "hr_codebook_path")
        for file in (getattr(config, name) for config in configs for name in names):
            if Path(file).name != file or not file.endswith(SUFFIX):
                raise UserError(f"{self.generation}: {file!r} is not a file of this model; export the run again")
