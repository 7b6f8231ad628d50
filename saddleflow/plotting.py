"""The look of every picture: palette, fonts, saving as PNG and PDF."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

from saddleflow.files import written_whole

# Okabe and Ito's colours: told apart by colour-blind readers, legible on white and on black.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
MUTED = "#808080"
# Text and axes: as far from white as from black, 4.5 to 1 on both.
INK = "#767676"

_STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=CYCLE),
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "font.size": 8,
    "lines.linewidth": 1.3,
    "savefig.dpi": 200,
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[None]:
    """The package's matplotlib style, for the length of a block."""
    with mpl.rc_context(_STYLE):
        yield


def save_figure(figure: Figure, stem: Path, force: bool = False) -> list[Path]:
    """Write the figure as `stem`.png and `stem`.pdf, each whole or not at all; returns the two paths."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        with written_whole(path, force) as temporary:
            figure.savefig(temporary, facecolor="none", dpi=_STYLE["savefig.dpi"])
    return paths
