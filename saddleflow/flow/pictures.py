"""The picture of a trajectory: costs above, what grows from plateau to plateau below; and its card in notebooks."""

from typing import Any

import numpy as np

from saddleflow import plotting
from saddleflow._backend.checks import require
from saddleflow.plotting.cards import card_of
from saddleflow.plotting.svg import Curve, panel

# What may run along a trajectory's picture, with its label.
AXES = {
    "t": "time t of the flow",
    "log t": "time t of the flow",
    "t / t_escape": "t / first escape time",
    "arc length": "path length of θ",
}

# Height of a trajectory's picture over its width; of a picture in print a little more.
SHAPES = {"column": 1.0, "double": 0.5, "screen": 0.75, "slide": 0.56}


def draw_trajectory(trajectory: Any, axis: str, theme: str, width: str) -> "plotting.Figure":
    """The picture of `Trajectory.plot` and of `ModelTrajectory.plot`."""
    require(axis in AXES, "axis", f"be one of {tuple(AXES)}", axis)
    visits = trajectory.saddles(stationary_points=False)
    if axis == "t / t_escape":
        require(visits, "axis", "fit the run", axis, "It has no escape: take 't' or 'log t'.")
    unit = visits[0].escape_time if axis == "t / t_escape" else 1.0
    along = trajectory.arc_length if axis == "arc length" else trajectory.time / unit
    with plotting.style(theme, width):
        figure, (top, bottom) = plotting.subplots(2, 1, sharex=True, figsize=stacked(width))
        if axis == "log t":
            bottom.set_xscale("log")
        plateaus = [_plateau(visit, trajectory.time, along) for visit in visits]
        plotting.draw_costs(top, along, trajectory.train_cost, trajectory.test_cost, plateaus)
        _draw_growth(bottom, along, trajectory)
        time = f"t, {trajectory.time_unit}" if trajectory.is_descent else AXES["t"]
        bottom.set_xlabel(time if axis in ("t", "log t") else AXES[axis])
    return figure


def stacked(width: str) -> tuple[float, float]:
    """The size of two panels one above the other, in inches; a width that is none is refused."""
    return plotting.figure_size(width, SHAPES.get(width, 1.0) * plotting.WIDTHS.get(width, 1.0))


def _plateau(visit: Any, time: np.ndarray, along: np.ndarray) -> "plotting.Plateau":
    """A visit as the axis counts; it is called by its rank, else by its height."""
    begin, dip, end = (float(x) for x in np.interp([visit.enter, visit.time, visit.leave], time, along))
    name = f"cost {visit.cost:.3g}" if visit.rank is None else f"rank {visit.rank}"
    return plotting.Plateau(begin, end, visit.cost, "origin" if visit.rank == 0 else name, dip)


def _draw_growth(axes: "plotting.Axes", along: np.ndarray, trajectory: Any) -> None:
    """What grows: singular values, or (of outputs that are a vector) the gradient norm."""
    if trajectory.matrix_name is None:
        axes.semilogy(along, trajectory.gradient_norm, color=plotting.ink())
        axes.set_ylabel("gradient norm")
        return
    values, cut = trajectory.singular_values, trajectory.rank_tolerance
    plotting.draw_singular_values(axes, along, values, cut, matrix=trajectory.matrix_name)


# The sign of singular values in cards.
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"

# Singular values that a card draws.
MOST_VALUES = 8


def draw_card(trajectory: Any, visits: Any) -> str:
    """The text card as HTML, with small pictures of the costs and of what grows, and the table of saddles."""
    time, bands = trajectory.time, [(visit.enter, visit.leave) for visit in visits]
    costs = [Curve(trajectory.train_cost, name="train")]
    if trajectory.test_cost is not None:
        costs.append(Curve(trajectory.test_cost, name="test", dashed=True))
    logarithmic = bool(np.fmin.reduce(trajectory.train_cost) >= 0)
    pictures = panel(time, costs, "cost", logarithmic=logarithmic, bands=bands)
    if trajectory.matrix_name is None:
        growth = [Curve(trajectory.gradient_norm)]
        pictures += panel(time, growth, "gradient norm", logarithmic=True, bands=bands)
    else:
        pictures += panel(time, value_curves(trajectory), f"singular values of {trajectory.matrix_name}", bands=bands)
    below = [f"<div>{pictures}</div>"]
    if visits:
        below.append(visits.to_html())
    return card_of(repr(trajectory), *below)


def value_curves(trajectory: Any) -> list[Curve]:
    """The largest singular values, each in its colour; names have those that count for the rank at the end."""
    values, cut = trajectory.singular_values, trajectory.rank_tolerance
    return [
        Curve(line, plotting.mode_colour(k), f"{SIGMA}{k + 1}" if line[-1] > cut else "")
        for k, line in enumerate(values.T[:MOST_VALUES])
    ]
