"""The results of an evaluation as tables in Markdown."""

from evaluation.results import Novelty, Results


def markdown(results: Results) -> str:
    """All results that there are."""
    parts = [
        f"{results.num_images} images in each set, of {results.num_held_out} test images; "
        f"{results.num_training} training images; seed {results.seed}. Features: {results.extractor}.",
        results.decoding,
        table(
            ["PSNR (dB)", "SSIM"], [[row.name, f"{row.psnr:.2f}", f"{row.ssim:.3f}"] for row in results.reconstruction]
        ),
        _bits(results),
        _distances(results),
        _novelty(results.novelty) if results.novelty else "",
        "\n".join(["Not evaluated:", "", *(f"- {line}" for line in results.missing)]) if results.missing else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: list[str], rows: list[list[object]]) -> str:
    """A table in Markdown whose first column, the names, has no heading; nothing without rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (["", *columns], *rows)]
    return "\n".join([lines[0], "|---" * (len(columns) + 1) + "|", *lines[1:]])


def _bits(results: Results) -> str:
    rows = [(row.name, row.tokens, row.bits) for row in results.bits]
    if rows:
        rows.append(("all", sum(row.tokens for row in results.bits), sum(row.bits for row in results.bits)))
    return table(["tokens per image", "bits per image"], [[name, n, f"{bits:.1f}"] for name, n, bits in rows])


def _distances(results: Results) -> str:
    rows = [
        [
            row.name,
            f"{row.kernel:.4f} ({row.kernel_low:.4f} to {row.kernel_high:.4f})",
            f"{row.frechet:.1f} ({row.frechet_low:.1f} to {row.frechet_high:.1f})",
            f"{row.precision:.3f}",
            f"{row.recall:.3f}",
            f"{row.edges:.2f}",
        ]
        for row in results.distances
    ]
    return table(["kernel distance", "Fréchet distance", "precision", "recall", "edges"], rows)


def _novelty(found: Novelty) -> str:
    rows = [
        [name, f"{part.median_distance:.2f}", f"{part.share:.1%}{interval}"]
        for name, part, interval in (
            ("samples", found.samples, f" ({found.share_low:.1%} to {found.share_high:.1%})"),
            ("test images", found.held_out, ""),
        )
    ]
    return table(["median distance to the nearest training image", f"nearer than {found.threshold:.2f}"], rows)
