"""Curves along time, drawn on axes: costs with plateaus, singular values, a band over samples."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from saddleflow._backend.checks import require
from saddleflow.plotting.colours import MUTED, RED, mode_colour
from saddleflow.plotting.labels import name_curve, name_level, name_plateau
from saddleflow.plotting.style import ink


class Plateau(NamedTuple):
    """A plateau of a cost.

    Attributes:
        begin: where it begins, as the time axis counts.
        end: where it ends.
        height: the cost.
        name: its label; "" for none.
        dip: where the gradient is least, marked by a dot; None: no dot.
    """

    begin: float | int
    end: float | int
    height: float | int
    name: str = ""
    dip: float | int | None = None


def draw_costs(
    axes: Axes,
    time: Any,
    train_cost: Any,
    test_cost: Any = None,
    plateaus: Sequence[Plateau] | None = None,
    *,
    colour: str | None = None,
    names: tuple[str, str] = ("train", "test"),
) -> None:
    """Train (solid) and test cost (dashed) against time; plateaus shaded, marked and named.

    The cost axis is logarithmic where no train cost is negative. Names stand at the ends of the curves, where there
    are two. ::

        figure, axes = plotting.subplots()
        plotting.draw_costs(axes, [0, 1, 2, 3], [4, 4, 1, 1e-3], plateaus=[plotting.Plateau(0, 1, 4, "origin")])

    Args:
        axes: where.
        time: shape (time,).
        train_cost: shape (time,).
        test_cost: shape (time,), or None.
        plateaus: those of the train cost.
        colour: of both curves; None: the ink of the style.
        names: of the two curves; "" for none.

    Raises:
        ValueError: shapes that differ.
    """
    time, colour = _vector("time", time), colour or ink()
    curves = [("train_cost", train_cost, "-", names[0])]
    if test_cost is not None:
        curves.append(("test_cost", test_cost, "--", names[1]))
    lines = []
    for argument, values, dashes, _ in curves:
        lines += axes.plot(time, _along(argument, values, time), dashes, color=colour)
    if np.fmin.reduce(np.asarray(train_cost), initial=np.inf) >= 0:  # a loss of a user's own may fall below
        axes.set_yscale("log")
    for plateau in plateaus or ():
        axes.axvspan(plateau.begin, plateau.end, color=MUTED, alpha=0.15, lw=0)
        if plateau.dip is not None:
            axes.plot(plateau.dip, plateau.height, "o", color=RED)
        if plateau.name:
            name_plateau(axes, plateau.begin, plateau.end, plateau.height, plateau.name, RED)
    if plateaus:
        axes.margins(y=0.12)  # room for the names on top
    if len(lines) > 1:
        for line, (_, _, _, name) in zip(lines, curves, strict=True):
            if name:
                name_curve(line, name)
    axes.set_ylabel("cost")


def draw_singular_values(
    axes: Axes,
    time: Any,
    values: Any,
    threshold: float | int | None = None,
    *,
    matrix: str = "A",
    most_names: int = 6,
) -> None:
    """Singular values against time, the k-th always in its colour (`mode_colour`), with their names at the ends.

    Names have those that rise above the threshold; without one, all; six at most. ::

        plotting.draw_singular_values(axes, trajectory.time, trajectory.singular_values, trajectory.rank_tolerance)

    Args:
        axes: where.
        time: shape (time,).
        values: shape (time, n), descending along n.
        threshold: above it a value counts for the rank: a dotted line, named; None: no line.
        matrix: whose values they are.
        most_names: how many names at most.

    Raises:
        ValueError: shapes that do not fit.
    """
    time = _vector("time", time)
    values = np.asarray(values, float)
    expected = f"have the shape (time, n) with {len(time)} times"
    require(values.ndim == 2 and len(values) == len(time), "values", expected, f"shape {values.shape}")
    high = np.nan_to_num(values, nan=-np.inf).max(axis=0, initial=-np.inf)
    lines: list[Any] = []
    # the largest last, on top of those that it hides
    for index in reversed(range(values.shape[1])):
        lines[:0] = axes.plot(time, values[:, index], color=mode_colour(index), zorder=2 + 0.5 / (1 + index))
    named = [index for index, top in enumerate(high) if threshold is None or top > threshold][:most_names]
    for index in named:
        name_curve(lines[index], rf"$\sigma_{{{index + 1}}}$")
    if threshold is not None:
        draw_level(axes, threshold, "rank tolerance", side="right")
    axes.set_ylabel(f"singular values of {matrix}")


def draw_level(axes: Axes, height: float | int, text: str = "", colour: str = MUTED, side: str = "left") -> None:
    """A dotted line across the frame, with its name on it, at one side.

    ::

        plotting.draw_level(axes, 2 / learning_rate, "2 / learning rate")

    Args:
        axes: where.
        height: its y.
        text: its name; "" for none.
        colour: of both.
        side: of the name, "left" or "right".

    Raises:
        ValueError: another side.
    """
    require(side in ("left", "right"), "side", "be 'left' or 'right'", side)
    axes.axhline(height, color=colour, lw=0.7, ls=":")
    if text:
        name_level(axes, height, text, colour, side)


def draw_band(
    axes: Axes,
    x: Any,
    samples: Any,
    *,
    colour: str | None = None,
    name: str = "",
    quantiles: tuple[float | int, float | int] = (0.1, 0.9),
    steps: bool = False,
    **how: Any,
) -> Any:
    """The median over samples, and the band between two quantiles; NaN are left out.

    ::

        plotting.draw_band(axes, data.gamma, data.test_cost.isel(sample=-1).transpose("seed", "gamma"))

    Args:
        axes: where.
        x: shape (n,).
        samples: shape (samples, n).
        colour: of both; None: the next one of the axes.
        name: written at the end of the curve; "" for none.
        quantiles: the ends of the band; (0, 1) shows all samples.
        steps: whether values stay until the next x, as of numbers that are counted.
        how: further arguments of `axes.plot`, for the median.

    Returns:
        The line of the median.

    Raises:
        ValueError: shapes that do not fit, quantiles that do not ascend from 0 to 1.
    """
    x, samples = _vector("x", x), np.asarray(samples, float)
    expected = f"have the shape (samples, n) with n = {len(x)} as of x"
    require(samples.ndim == 2 and samples.shape[1] == len(x), "samples", expected, f"shape {samples.shape}")
    require(len(samples) > 0, "samples", "hold at least one sample", f"shape {samples.shape}")
    low, high = quantiles
    require(0 <= low <= high <= 1, "quantiles", "ascend within 0 to 1", quantiles)
    bottom, middle, top = _quantiles(samples, (low, 0.5, high))
    drawn = "steps-post" if steps else "default"
    (line,) = axes.plot(x, middle, color=colour, drawstyle=drawn, **how)
    if len(samples) > 1:
        step = "post" if steps else None
        axes.fill_between(x, bottom, top, color=line.get_color(), alpha=0.22, lw=0, step=step)
    if name:
        beside = 4 if line.get_marker() in ("", "None") else 4 + 0.5 * line.get_markersize()
        name_curve(line, name, offset=(beside, 0))
    return line


def _quantiles(
    samples: Float[np.ndarray, "samples n"], shares: Sequence[float | int]
) -> Float[np.ndarray, "shares n"]:
    """Quantiles over samples; NaN where all are, without numpy's warning."""
    found = np.full((len(shares), samples.shape[1]), np.nan)
    some = ~np.isnan(samples).all(axis=0)
    found[:, some] = np.nanquantile(samples[:, some], shares, axis=0)
    return found


def _vector(argument: str, values: Any) -> Float[np.ndarray, " n"]:
    values = np.asarray(values, float)
    require(values.ndim == 1 and len(values) > 0, argument, "be a list of numbers", f"shape {values.shape}")
    return values


def _along(argument: str, values: Any, time: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    values = np.asarray(values, float)
    require(values.shape == time.shape, argument, f"have the shape of time, {time.shape}", f"shape {values.shape}")
    return values
