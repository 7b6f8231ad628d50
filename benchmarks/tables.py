"""Shared by the benchmarks: tables on the console, and below the mark of a page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from saddleflow._backend.files import written_whole

Row = Sequence[str]


def show(console: Console, title: str, header: Row, rows: Sequence[Row]) -> None:
    """Print a table."""
    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(header: Row, rows: Sequence[Row]) -> str:
    """A table as Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def write_below(mark: str, path: Path, title: str, parts: Sequence[str]) -> None:
    """Put parts below the mark in a page, in place of what was there; a new page of that title if there is none."""
    page = path.read_text().split(mark)[0].rstrip() if path.exists() else f"# {title}"
    with written_whole(path, force=True) as temporary:
        temporary.write_text("\n\n".join([page, mark, *parts]) + "\n")
