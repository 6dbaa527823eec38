"""Write docs/reference.md: every flag and every JSON key, from the definitions that the code reads them by.

python -m scripts.reference
"""

import dataclasses
import inspect
from pathlib import Path

import generate_fmap_dataset
import generate_images
import prune_codebook
import train_codebook
import train_quantized_transformer
from models.autoencoder import AutoencoderConfig
from models.codebook import CodebookConfig
from models.generation import GenerationConfig
from models.transformer import TransformerConfig
from scripts import demo_data, evaluate, make_dataset, report
from utils.files import replace_file
from utils.gradient import GradientOptions
from utils.options import default_of, flag_of

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
SCRIPTS = {
    "train_autoencoder.py": GradientOptions,
    "generate_fmap_dataset.py": generate_fmap_dataset.Options,
    "train_codebook.py": train_codebook.Options,
    "prune_codebook.py": prune_codebook.Options,
    "train_quantized_transformer.py": train_quantized_transformer.Options,
    "generate_images.py": generate_images.Options,
    "scripts.make_dataset": make_dataset.Options,
    "scripts.demo_data": demo_data.Options,
    "scripts.evaluate": evaluate.Options,
    "scripts.report": report.Options,
}
CONFIGS = {
    "An autoencoder": AutoencoderConfig,
    "A codebook": CodebookConfig,
    "A transformer": TransformerConfig,
    'A generation, for each of its stages "0", "1", …': GenerationConfig,
}


def table(head: str, fields: list[dataclasses.Field], is_flag: bool) -> list[str]:
    """The rows of some fields, as Markdown."""
    lines = [f"| {head} | default | |", "|---|---|---|"]
    for field in fields:
        option = field.metadata["option"]
        names = [option.short, flag_of(field)] if is_flag else [field.name]
        choices = f" ({', '.join(f'`{choice}`' for choice in option.choices)})" if option.choices else ""
        name = ", ".join(f"`{name}`" for name in names if name)
        lines.append(f"| {name} | {default_of(field)} | {option.meaning}{choices} |")
    return [*lines, ""]


def render() -> str:
    """The whole page."""
    lines = ["# Reference", "", "Made by `python -m scripts.reference` from the code; do not edit it by hand.", ""]
    lines += ["## Flags", "", "A script takes the flags of each table that names it.", ""]
    users: dict[type, list[str]] = {}
    for script, options in SCRIPTS.items():
        for cls in reversed(options.__mro__):
            if dataclasses.is_dataclass(cls):
                users.setdefault(cls, []).append(script)
    for cls, scripts in users.items():
        own = [field for field in dataclasses.fields(cls) if field.name in inspect.get_annotations(cls)]
        lines += [f"### {', '.join(f'`{script}`' for script in scripts)}", "", *table("flag", own, is_flag=True)]
    lines += ["## JSON keys", ""]
    for title, config in CONFIGS.items():
        lines += [f"### {title}", "", *table("key", list(dataclasses.fields(config)), is_flag=False)]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    with replace_file(PAGE) as temporary:
        temporary.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
