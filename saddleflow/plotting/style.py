"""The look of every picture: themes, sizes, fonts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes as Axes
from matplotlib.figure import Figure as Figure
from matplotlib.patheffects import withStroke as withStroke

from saddleflow._backend.checks import require, require_positive
from saddleflow.plotting.colours import CYCLE, INK

subplots, close = plt.subplots, plt.close

# Ground and ink. On a transparent ground the ink is legible on white and on black pages.
THEMES = {"transparent": ("none", INK), "light": ("white", "#262626"), "dark": ("#121212", "#E0E0E0")}

# Inches: a paper's single and double column, a notebook on a laptop's screen, a projected slide.
WIDTHS = {"column": 3.4, "double": 7.0, "screen": 6.4, "slide": 10.0}

# Sizes of fonts and lines against those of print.
_SCALES = {"column": 1.0, "double": 1.0, "screen": 1.3, "slide": 2.0}

_FONTS = {
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.0,
}

_LOOK: dict[str, Any] = {
    "axes.prop_cycle": cycler(color=CYCLE),
    "savefig.facecolor": "auto",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "savefig.dpi": 200,
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
}

_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")


@contextmanager
def style(theme: str = "transparent", width: str = "column") -> Iterator[None]:
    """The package's matplotlib style, for the length of a block.

    ::

        with plotting.style("dark", "slide"):
            figure, axes = plotting.subplots(figsize=plotting.figure_size("slide"))

    Args:
        theme: "transparent", "light" or "dark".
        width: what the picture is for, which sets the size of its fonts and lines: "column", "double", "screen" or
            "slide".

    Raises:
        ValueError: another theme or width.
    """
    require(theme in THEMES, "theme", f"be one of {tuple(THEMES)}", theme)
    require(width in WIDTHS, "width", f"be one of {tuple(WIDTHS)}", width)
    ground, ink_ = THEMES[theme]
    sizes = {name: _SCALES[width] * value for name, value in _FONTS.items()}
    colours = dict.fromkeys(_INKED, ink_) | {"figure.facecolor": ground, "axes.facecolor": ground}
    looks: dict[Any, Any] = _LOOK | sizes | colours
    interactive = mpl.is_interactive()
    try:
        with mpl.rc_context(looks):
            try:
                yield
            finally:
                interactive = mpl.is_interactive()
    finally:  # a notebook turns it on at the first figure, to show this one and all later ones
        mpl.interactive(interactive)


def figure_size(width: str = "column", height: float | int | None = None) -> tuple[float, float]:
    """The size of a figure, in inches.

    Args:
        width: "column" (3.4), "double" (7), "screen" (6.4) or "slide" (10).
        height: in inches; None: 0.7 of the width.

    Raises:
        ValueError: another width, or a height that is not positive.
    """
    require(width in WIDTHS, "width", f"be one of {tuple(WIDTHS)}", width)
    if height is not None:
        require_positive("height", height)
    return WIDTHS[width], 0.7 * WIDTHS[width] if height is None else float(height)


def ink() -> str:
    """The colour of text in the style that is on."""
    return mpl.rcParams["text.color"]
