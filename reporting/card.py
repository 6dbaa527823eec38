"""The model card of an exported model: the README.md that the Hugging Face Hub reads and shows."""

import re
import shlex
from pathlib import Path

from evaluation.results import markdown
from models.cascade import Cascade
from models.labels import listed
from reporting.run import Run, read_run
from utils.core.size import Size
from utils.core.tables import table
from utils.runs.exported import ModelConfig
from utils.runs.folders import RunFolder
from utils.runtime.progress import duration

TAGS = ("image-generation", "autoregressive", "self-organizing-map", "vector-quantization")
UNKNOWN = """\
> [!WARNING]
> **Fill this in before you share the model.** Say where the training images come from and under which licence, and what
> that allows with this model; then change `license: unknown` at the top of this file. Without it nobody may use it."""
FLOOR = """\
Smaller distances are better. The row *training images* is the floor: what other real images are measured at. Between
it and the samples are the same training images after the autoencoder and after the finest codebook, which limit
samples."""


def make_card(run: RunFolder, model: Cascade, config: ModelConfig, name: str, data: tuple[str, str] | None) -> str:
    """The card of the model of a run, exported under a name.

    `data` are the licence of the training images, by its name on the Hub, and what is to be said of them; without it
    the card asks for both.
    """
    trained = read_run(run)
    licence, origin = data or ("unknown", UNKNOWN)
    head = [f"license: {licence}", "library_name: quantized-cascade", "pipeline_tag: unconditional-image-generation"]
    parts = [
        "\n".join(["---", *head, "tags:", *(f"- {tag}" for tag in TAGS), "---"]),  # what the Hub reads, as YAML
        f"# {escaped(name)}",
        "![samples](samples.png)",
        describe(model, config),
        f"## The training images\n\n{origin}",
        how_trained(trained, config),
        evaluated(trained, config.dtype),
        how_to_load(name, list(model.label_sets.shares) if model.label_sets is not None else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """A name that a person gave, for Markdown: one line without markup."""
    return re.sub(r"([\\`*{}\[\]<>#|&!])", r"\\\1", " ".join(text.split()))


def describe(model: Cascade, config: ModelConfig) -> str:
    sizes = {Path(file).stem: f"{part['parameters']:,}" for file, part in config.parts.items()}
    rows = [["autoencoder", sizes["autoencoder"], "", ""], ["condition", "", "1×1", len(model.codebooks[0])]]
    for number, (stage, book) in enumerate(zip(model.stages, model.codebooks[1:], strict=True)):
        rows.append([f"stage {number}", sizes[f"transformer_{number}"], stage.config.fine.shown, len(book)])
    labels = ""
    if model.label_sets is not None:
        shares = [f"{escaped(name)} ({share:.1%})" for name, share in model.label_sets.shares.items()]
        labels = f" It knows these labels, each of a share of the training images: {listed(shares)}."
    return (
        f"An autoregressive generator of images of {Size.of(model.image_size).shown} pixels. A self-organizing map "
        f"gives one token for the whole image; {len(model.stages)} transformers write tokens from coarse to fine, and "
        f"the decoder of an autoencoder turns the finest into pixels.{labels}\n\n"
    ) + table(["", "parameters", "tokens", "units of its codebook"], rows)


def how_trained(run: Run, config: ModelConfig) -> str:
    rows, names = [], {Path(file).stem for file in config.parts} | {run.folder.decoder.name}
    for step in (step for step in run.steps.values() if step.folder.name in names):
        for job in step.jobs.values():
            if job.last.script.startswith("train_"):
                steps = int(step.rows[-1]["step"]) if step.rows else 0
                rows.append([step.folder.name, f"{steps:,}", duration(job.seconds), job.last.device])
    return f"## How it was trained\n\n{table(['', 'training steps', 'h:min:s', 'device'], rows)}" if rows else ""


def evaluated(run: Run, dtype: str) -> str:
    if run.evaluation is None:
        return "## Evaluation\n\nNot measured yet: `python -m scripts.evaluate` measures the run, then export it again."
    rounded = "" if dtype == "float32" else f" It was measured before the weights were rounded to {dtype}."
    return f"## Evaluation\n\n{FLOOR}{rounded}\n\n{markdown(run.evaluation).strip()}"


def how_to_load(name: str, labels: list[str]) -> str:
    by_label = f"\ncascade.sample(4, labels={labels[0]!r})[0].save('labelled.png')" if labels else ""
    return f"""\
## How to use it

In a clone of Quantized Cascade, the project that it was trained with, after `pip install -r requirements.txt`:

```python
from models.cascade import Cascade

cascade = Cascade.load({name!r})
for number, image in enumerate(cascade.sample(16, seed=0)):
    image.save(f"{{number}}.png"){by_label}
```

```bash
python generate_images.py --model {shlex.quote(name)} --num-images 25 --seed 0 --out-dir pictures
python -m scripts.playground {shlex.quote(name)}
```"""
