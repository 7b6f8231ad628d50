"""Pictures of cases: one look, one size, and names that stand beside their curves."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader as lazy
import numpy as np

from saddleflow._backend.files import written_whole
from saddleflow.gallery.case import Result

if TYPE_CHECKING:
    from saddleflow.flow import plotting
else:
    plotting = lazy.load("saddleflow.flow.plotting", suppress_warning=True)  # matplotlib, where something is drawn

SIZE, RESOLUTION = (4.4, 2.7), 120  # inches, dots per inch: 15 to 40 kB


def name_curve(
    line: Any, text: str, at: float = 1.0, offset: tuple[float | int, float | int] = (4, 0), **how: Any
) -> None:
    """Write a curve's name beside it, in its colour.

    Args:
        line: what `axes.plot` drew.
        text: its name.
        at: where along the curve, as a share of its points within the frame.
        offset: from there, in typographic points.
        how: further arguments of `axes.annotate`.
    """
    x, y = (np.asarray(values, float) for values in line.get_data())
    (left, right), (low, high) = line.axes.get_xlim(), line.axes.get_ylim()
    seen = np.flatnonzero((x >= left) & (x <= right) & (y >= low) & (y <= high))
    place = seen[round(at * (len(seen) - 1))]
    name_point(line.axes, (x[place], y[place]), text, line.get_color(), offset, **how)


def name_point(
    axes: "plotting.Axes",
    point: tuple[Any, Any],
    text: str,
    colour: str | None = None,
    offset: tuple[float | int, float | int] = (4, 0),
    **how: Any,
) -> None:
    """Write a word beside a point."""
    how = {"ha": "left", "va": "center", "fontsize": 7, "annotation_clip": False} | how
    axes.annotate(text, point, xytext=offset, textcoords="offset points", color=colour or plotting.INK, **how)


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
