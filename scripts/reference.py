"""Write docs/reference.md: every flag and every JSON key, from the definitions that the code reads them by.

python -m scripts.reference
"""

import dataclasses
import inspect
from importlib import import_module
from pathlib import Path

from models.autoencoder import AutoencoderConfig
from models.codebook import CodebookConfig
from models.requests import GenerationConfig
from models.transformer import TransformerConfig
from utils.core.files import write_file
from utils.core.options import default_of, flag_of
from utils.core.tables import table

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
STEPS = ("train_autoencoder", "generate_fmap_dataset", "train_codebook", "prune_codebook")
STEPS += ("train_quantized_transformer", "generate_images")
SCRIPTS = (*STEPS, "scripts.make_dataset", "scripts.demo_data", "scripts.evaluate", "scripts.report")
SCRIPTS += ("scripts.export", "scripts.playground", "scripts.train_cascade")
RECIPE = """\
`recipe.json` has `image_size` (a number, or "64x96"), and a section of options for each step: `autoencoder`,
`feature_maps`, `codebook` and `prune` (each for all codebooks), `transformer_0`, `transformer_1`, … and `generate`;
with `decoder`, the decoder is trained further on quantized maps. A section has the flags of its script, with
underscores: `"max_step": 6000`. `flip` is a setting of the whole recipe, not of a section. `num_images` is how many
the demo draws, `without_gpu` the recipe to name where there is no GPU, and `description` is for people."""
CONFIGS = {
    "An autoencoder": AutoencoderConfig,
    "A codebook": CodebookConfig,
    "A transformer": TransformerConfig,
    'A generation, for each of its stages "0", "1", …': GenerationConfig,
}


def rows_of(title: str, fields: list[dataclasses.Field], is_flag: bool) -> list[list[str]]:
    rows = [[f"**{title}**", "", ""]]
    for field in fields:
        option = field.metadata["option"]
        names = [option.short, flag_of(field)] if is_flag else [field.name]
        choices = f" ({', '.join(f'`{choice}`' for choice in option.choices)})" if option.choices else ""
        name = ", ".join(f"`{name}`" for name in names if name)
        rows.append([name, default_of(field), f"{option.meaning}{choices}"])
    return rows


def render() -> str:
    users: dict[type, list[str]] = {}
    for script in SCRIPTS:
        for cls in filter(dataclasses.is_dataclass, reversed(import_module(script).Options.__mro__)):
            users.setdefault(cls, []).append(f"`{script}.py`" if script in STEPS else f"`{script}`")
    flags, keys = [], []
    for cls, scripts in users.items():
        own = [field for field in dataclasses.fields(cls) if field.name in inspect.get_annotations(cls)]
        flags += rows_of(", ".join(scripts), own, is_flag=True)
    for title, config in CONFIGS.items():
        keys += rows_of(title, list(dataclasses.fields(config)), is_flag=False)
    lines = ["# Reference", "", "Made by `python -m scripts.reference` from the code; do not edit it by hand.", ""]
    lines += ["## Flags", "", "A script takes the flags of each group that names it.", ""]
    lines += [table(["flag", "default", ""], flags), "", "## JSON keys", "", RECIPE, ""]
    return "\n".join([*lines, table(["key", "default", ""], keys), ""])


def main() -> None:
    write_file(PAGE, render())


if __name__ == "__main__":
    main()
