"""Tables in Markdown."""

from collections.abc import Iterable


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(columns: Iterable[object], rows: Iterable[Iterable[object]] = ()) -> str:
    """A table with these headings; its head alone without rows, for those that are printed as they come."""
    columns = tuple(columns)
    return "\n".join([row(*columns), "|---" * len(columns) + "|", *(row(*cells) for cells in rows)])
