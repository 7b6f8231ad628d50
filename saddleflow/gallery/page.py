"""The page of the gallery: every case with its source, its pose, its numbers, its picture and its verdict."""

import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path

from saddleflow import plotting
from saddleflow._backend.files import check_writable, written_whole
from saddleflow.flow.history import versions
from saddleflow.gallery.case import Result, short

SIZE, RESOLUTION = (4.4, 2.7), 120  # inches, dots per inch: 15 to 40 kB

ABOUT = """\
Published experiments of this field, repeated with the public API and compared with what their sources report. In
the tables "printed" numbers stand in a source's output, "stated" ones are its formulas or words, and "derived" ones
are ours, for the source's setting. Where a source only says that something vanishes or grows, we chose the bound.
"Reproduced (other draws)" means that the source's random data or starts cannot be rebuilt, so its numbers are
compared with those of other random draws. The bounds are in the cases, in `saddleflow/gallery/cases`, and the
verdicts are computed from them. Seconds include compilation."""


def picture_path(folder: str | Path, name: str) -> Path:
    """Where the picture of a case lies."""
    return Path(folder) / f"{name}.png"


def write_pictures(results: Sequence[Result], folder: str | Path, *, force: bool = False) -> list[Path]:
    """Draw the cases into a folder, made if need be; each picture whole or not at all.

    Args:
        results: from `run` or `run_all`; those that ended in an exception have no picture.
        folder: where `NAME.png` are to lie.
        force: overwrite files that exist.

    Returns:
        The paths written.

    Raises:
        ValueError: a file that exists (without force), a folder that cannot be written to.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    drawn = [result for result in results if not result.message]
    paths = [check_writable(picture_path(folder, result.case.name), force) for result in drawn]
    return [draw(result, path, force) for result, path in zip(drawn, paths, strict=True)]


def draw(result: Result, path: Path, force: bool = False) -> Path:
    """Write the picture of a case as PNG, whole or not at all."""
    with plotting.style():
        figure, axes = plotting.subplots(figsize=SIZE)
        try:
            result.case.draw(axes, result.runs)
            with written_whole(path, force) as temporary:
                figure.savefig(temporary, dpi=RESOLUTION, facecolor="none")
        finally:
            plotting.close(figure)
    return path


def write_page(results: Sequence[Result], path: str | Path, *, force: bool = False) -> list[Path]:
    """Write the page as Markdown, with its pictures in the folder of the same name beside it.

    Args:
        results: from `run` or `run_all`.
        path: of the page, `.md`.
        force: overwrite files that exist.

    Returns:
        The paths written: the page and its pictures.

    Raises:
        ValueError: a file that exists (without force), a folder that does not.
    """
    path = check_writable(path, force)
    pictures = write_pictures(results, path.with_suffix(""), force=force)
    held = sum(result.reproduced for result in results)
    lines = [
        "# Gallery",
        ABOUT,
        f"{held} of {len(results)} cases agree with their sources. Written by `saddleflow gallery all --page "
        f"docs/gallery.md` in {sum(result.seconds for result in results):.0f} s, with "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + ".",
        "\n".join(
            ["| case | | verdict | seconds | what the source spent |", "|---|---|---|---|---|", *map(_row, results)]
        ),
    ]
    for result in results:
        lines += _section(result, path)
    with written_whole(path, force) as temporary:
        temporary.write_text("\n\n".join(lines) + "\n")
    return [path, *pictures]


def _row(result: Result) -> str:
    here = result.case
    link = f"[{here.name}](#{here.name.lower()})"
    return f"| {link} | {here.title} | {_cell(result.verdict)} | {result.seconds:.1f} | {_cell(here.source_cost)} |"


def _section(result: Result, page: Path) -> list[str]:
    here = result.case
    lines = [
        f"## {here.name}",
        f"{here.title[0].upper()}{here.title[1:]}. Source: {here.source}; {here.paper}.",
        f"{here.computed}" + (f" Not as in the source: {here.smaller}" if here.smaller else ""),
        f"Verdict: **{result.verdict}**. {result.seconds:.1f} s; the source: {here.source_cost}.",
    ]
    if result.numbers:
        rows = [
            f"| {_cell(n.quantity)} | {n.aim} ({n.origin}) | {short(n.ours)} "
            f"| [{short(n.low)}, {short(n.high)}] | {'holds' if n.holds else '**fails**'} |"
            for n in result.numbers
        ]
        head = ["| quantity | source | ours | must lie in | |", "|---|---|---|---|---|"]
        lines.append("\n".join([*head, *rows]))
    if not result.message:
        picture = picture_path(page.with_suffix(""), here.name).relative_to(page.parent)
        lines.append(f"![{here.name}: {here.title}]({picture.as_posix()})")
    lines.append(f"```python\n{textwrap.dedent(inspect.getsource(here.pose)).strip()}\n```")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
