"""An evaluation as tables in Markdown."""


def markdown(content: dict) -> str:
    """The tables of what evaluation.json holds."""
    parts = [_introduction(content), _reconstruction(content), _bits(content), _distances(content), _novelty(content)]
    if content["missing"]:
        parts.append("Not evaluated:\n\n" + "\n".join(f"- {line}" for line in content["missing"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """A table whose first column, the names, has no heading."""
    head = ["", *columns]
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def _introduction(content: dict) -> str:
    return (
        f"{content['num_images']} images a set of {content['num_held_out']} held out, {content['num_training']} "
        f"training images, seed {content['seed']}. Features: {content['extractor']}."
    )


def _reconstruction(content: dict) -> str:
    rows = [[row["name"], f"{row['psnr']:.2f}", f"{row['ssim']:.3f}"] for row in content["reconstruction"]]
    return _table(["PSNR (dB)", "SSIM"], rows)


def _bits(content: dict) -> str:
    if not content["bits"]:
        return ""
    rows = [[row["name"], str(row["tokens"]), f"{row['bits']:.1f}"] for row in content["bits"]]
    tokens, bits = (sum(row[key] for row in content["bits"]) for key in ("tokens", "bits"))
    rows.append(["all", str(tokens), f"{bits:.1f}"])
    return _table(["tokens an image", "bits an image"], rows)


def _distances(content: dict) -> str:
    if not content["distances"]:
        return ""
    rows = []
    for row in content["distances"]:
        cells = [row["name"]]
        for key, form in (("kernel", ".4f"), ("frechet", ".1f")):
            cells.append(f"{row[key]:{form}} ({row[f'{key}_low']:{form}} to {row[f'{key}_high']:{form}})")
        rows.append([*cells, f"{row['precision']:.3f}", f"{row['recall']:.3f}"])
    return _table(["kernel distance", "Fréchet distance", "precision", "recall"], rows)


def _novelty(content: dict) -> str:
    found = content["novelty"]
    if not found:
        return ""
    rows = [
        [name, f"{found[f'median_distance_of_{key}']:.2f}", f"{found[f'share_of_{key}']:.1%}"]
        for name, key in (("samples", "samples"), ("held-out images", "held_out"))
    ]
    near = f"nearer than {found['threshold']:.2f}"
    return _table(["median distance to the nearest training image", near], rows)
