"""The look of every picture: palette, fonts, saving as PNG and PDF.

Modules that draw load this one lazily, and matplotlib through it: `subplots`, `close`, `Figure`, `Axes`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes as Axes
from matplotlib.figure import Figure as Figure
from matplotlib.patheffects import withStroke as withStroke

from saddleflow._backend.checks import require
from saddleflow._backend.files import written_whole

subplots, close = plt.subplots, plt.close

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


# What may run along a trajectory's picture, with its label.
AXES = {
    "t": "time t of the flow",
    "log t": "time t of the flow",
    "t / t_escape": "t / first escape time",
    "arc length": "path length of θ",
}


def draw_trajectory(trajectory: Any, axis: str = "t") -> Figure:
    """The picture of `Trajectory.plot` and of `ModelTrajectory.plot`."""
    require(axis in AXES, "axis", f"be one of {tuple(AXES)}", axis)
    visits = trajectory.saddles(stationary_points=False)
    if axis == "t / t_escape":
        require(visits, "axis", "fit the run", axis, "It has no escape: take 't' or 'log t'.")
    unit = visits[0].escape_time if axis == "t / t_escape" else 1.0
    along = trajectory.arc_length if axis == "arc length" else trajectory.time / unit
    with style():
        figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(4.2, 4.2))
        top.plot(along, trajectory.train_cost, color=BLUE, label="train")
        if trajectory.test_cost is not None:
            top.plot(along, trajectory.test_cost, "--", color=ORANGE, label="test")
        if np.min(trajectory.train_cost) >= 0:  # a loss of a user's own may fall below
            top.set_yscale("log")
        for visit in visits:
            begin, here, end = np.interp([visit.enter, visit.time, visit.leave], trajectory.time, along)
            top.axvspan(begin, end, color=MUTED, alpha=0.15, lw=0)
            top.plot(here, visit.cost, "o", ms=4, color=RED)
            top.annotate(_name(visit), (here, visit.cost), xytext=(3, 4), textcoords="offset points", color=RED)
        top.set_ylabel("cost")
        top.legend()
        _draw_growth(bottom, along, trajectory)
        bottom.set_xlabel(AXES[axis])
        if axis == "log t":
            bottom.set_xscale("log")
    return figure


def _name(visit: Any) -> str:
    """What a plateau is called: by its rank, else by its height."""
    if visit.rank is None:
        return f"cost {visit.cost:.3g}"
    return "origin" if visit.rank == 0 else f"rank {visit.rank}"


def _draw_growth(axes: Axes, along: np.ndarray, trajectory: Any) -> None:
    """What grows from plateau to plateau: singular values, or (of outputs that are a vector) the gradient norm."""
    if trajectory.matrix_name is None:
        axes.semilogy(along, trajectory.gradient_norm, color=BLUE)
        axes.set_ylabel("gradient norm")
        return
    axes.plot(along, trajectory.singular_values, color=BLUE)
    axes.axhline(trajectory.rank_tolerance, color=MUTED, lw=0.7, ls=":")
    axes.set_ylabel(f"singular values of {trajectory.matrix_name}")


def save_figure(figure: Figure, stem: Path, force: bool = False) -> list[Path]:
    """Write the figure as `stem`.png and `stem`.pdf, each whole or not at all; returns the two paths."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        with written_whole(path, force) as temporary:
            figure.savefig(temporary, facecolor="none", dpi=_STYLE["savefig.dpi"])
    return paths
