"""Pictures without a time axis: paths on a plane, spectra, phase diagrams."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from saddleflow._backend.checks import require
from saddleflow.plotting.colours import BLUE, MUTED, RED
from saddleflow.plotting.labels import name_point
from saddleflow.plotting.style import ink

# Values of one sign that span more than this are told apart on a logarithmic scale only.
SPAN_OF_LOGARITHM = 30.0

# Neighbours of a logarithmic grid have one quotient, up to this.
EVEN = 0.02

# Parameters of so few values have a tick at each.
MOST_TICKS = 8


def draw_plane(
    axes: Axes,
    path: Any,
    points: Any = None,
    names: Sequence[str] | None = None,
    *,
    colour: str = BLUE,
    ends_at_minimum: bool = True,
    **how: Any,
) -> Any:
    """A path on a plane, with the points that it passes: a cross for the first, dots, a star for the last.

    ::

        origin, saddle, minimum = (0, 0), (1, 0), (1, 1)
        plotting.draw_plane(axes, path, [origin, saddle, minimum], ["origin", "rank 1", "minimum"])

    Args:
        axes: where.
        path: shape (time, 2).
        points: shape (points, 2), in order; None: no points.
        names: of the points; "" for none.
        colour: of the path.
        ends_at_minimum: whether the last point is a minimum, or a saddle like the others.
        how: further arguments of `axes.plot`, for the path.

    Returns:
        The line of the path.

    Raises:
        ValueError: shapes that do not fit, another number of names than of points.
    """
    path = _pairs("path", path)
    points = _pairs("points", np.zeros((0, 2)) if points is None else points)
    names = [""] * len(points) if names is None else names
    require(len(names) == len(points), "names", f"be as many as the points, {len(points)}", len(names))
    (line,) = axes.plot(*path.T, color=colour, **how)
    last = len(points) - ends_at_minimum
    axes.plot(*points[:1].T, "+", ms=9, mew=1.5, color=ink())
    axes.plot(*points[1:last].T, "o", ms=4.5, color=ink())
    axes.plot(*points[max(last, 1) :].T, "*", ms=8, color=ink())
    for point, name in zip(points, names, strict=True):
        if name:
            name_point(axes, point, name, offset=(7, 0))
    return line


def draw_spectrum(
    axes: Axes,
    eigenvalues: Any,
    *,
    zero: float | int = 0.0,
    name: str = "Hessian eigenvalues",
    complete: bool = True,
) -> None:
    """Eigenvalues in descending order: negative ones in red, those that count as zero muted, with their numbers.

    The axis is logarithmic on both sides of zero where they span more than a factor of 30. ::

        plotting.draw_spectrum(axes, [4.0, 1.0, 0.0, -0.3])

    Args:
        axes: where.
        eigenvalues: shape (n,), in any order.
        zero: sizes up to this count as zero.
        name: of the axis.
        complete: whether these are all; else there may be more of each kind, and the names say so.

    Raises:
        ValueError: no list of finite numbers; a negative size for zero.
    """
    values = np.sort(np.asarray(eigenvalues, float).ravel())[::-1]
    sound = np.ndim(eigenvalues) == 1 and len(values) > 0 and bool(np.isfinite(values).all())
    require(sound, "eigenvalues", "be a list of finite numbers", f"shape {np.shape(eigenvalues)}")
    require(zero >= 0, "zero", "not be negative", zero)
    places = np.arange(1, len(values) + 1)
    axes.axhline(0, color=MUTED, lw=0.7, ls=":")
    kinds = (
        ("positive", values > zero, BLUE, "bottom"),
        ("zero", np.abs(values) <= zero, MUTED, "bottom"),
        ("negative", values < -zero, RED, "top"),
    )
    for word, here, colour, va in kinds:
        if here.any():
            axes.plot(places[here], values[here], "o", ms=3, color=colour)
            middle = np.flatnonzero(here)[int(here.sum()) // 2]
            offset = (0, 4 if va == "bottom" else -4)
            at = (places[middle], values[middle])
            number = f"{here.sum()} {word}"
            if not complete:
                number = "zero" if word == "zero" else f"at least {number}"
            name_point(axes, at, number, colour, offset, ha="center", va=va)
    sizes = np.abs(values[np.abs(values) > max(zero, 0.0)])
    if len(sizes) and sizes.max() > SPAN_OF_LOGARITHM * sizes.min():
        axes.set_yscale("symlog", linthresh=max(sizes.min(), 1e-12 * sizes.max()))
    axes.margins(0.08, 0.2)
    axes.set(xlabel="place, from the largest", ylabel=name)


def draw_phase_diagram(
    axes: Axes,
    x: Any,
    y: Any,
    values: Any,
    *,
    label: str = "",
    logarithmic: bool | None = None,
    limits: tuple[float | int, float | int] | None = None,
) -> Any:
    """A quantity over two parameters, as coloured cells with their scale; cells without a value stay empty.

    Axes whose values rise by one factor are logarithmic. ::

        plotting.draw_phase_diagram(axes, gammas, alphas, error, label="test error / zero predictor")

    Args:
        axes: where.
        x: shape (columns,), strictly rising or falling.
        y: shape (rows,), likewise.
        values: shape (rows, columns).
        label: of the colour scale.
        logarithmic: the colour scale; None: where all values are positive and span more than a factor of 30.
        limits: of the colour scale; None: the least and the largest value.

    Returns:
        The cells, as `axes.pcolormesh` gives them.

    Raises:
        ValueError: shapes that do not fit, parameters that do not rise or fall, limits that do not ascend, a
            logarithmic scale for values that are not positive.
    """
    x, y = _parameters("x", x), _parameters("y", y)
    values = np.asarray(values, float)
    expected = f"have the shape (rows, columns) = {(len(y), len(x))}"
    require(values.shape == (len(y), len(x)), "values", expected, f"shape {values.shape}")
    seen = values[np.isfinite(values)]
    require(len(seen) > 0, "values", "hold at least one number", "NaN alone")
    low, high = limits or (float(seen.min()), float(seen.max()))
    require(low <= high and np.isfinite([low, high]).all(), "limits", "ascend", limits)
    if logarithmic is None:
        logarithmic = low > 0 and seen.min() > 0 and high > SPAN_OF_LOGARITHM * low
    require(not logarithmic or low > 0, "limits", "be positive on a logarithmic scale", (low, high))
    norm = LogNorm(low, high) if logarithmic else Normalize(low, high)
    shown = np.ma.masked_invalid(values)
    cells = axes.pcolormesh(_edges(x), _edges(y), shown, norm=norm, cmap="viridis", rasterized=True)
    for name, numbers in (("x", x), ("y", y)):
        if _is_geometric(numbers):
            axes.set(**{f"{name}scale": "log"})
        elif len(numbers) <= MOST_TICKS:
            axes.set(**{f"{name}ticks": numbers})
    beyond = (seen.min() < low, seen.max() > high)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes on a figure"
    bar = figure.colorbar(cells, ax=axes, label=label, extend=extend)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return cells


def _edges(numbers: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n_plus_1"]:
    """Edges of cells around the numbers, midway between them as the axis counts."""
    counted = np.log(numbers) if _is_geometric(numbers) else numbers
    half = np.diff(counted) / 2 if len(numbers) > 1 else np.full(1, 0.5)
    first, last = counted[0] - half[0], counted[-1] + half[-1]
    edges = np.concatenate([[first], counted[:-1] + half[: len(numbers) - 1], [last]])
    return np.exp(edges) if _is_geometric(numbers) else edges


def _is_geometric(numbers: Float[np.ndarray, " n"]) -> bool:
    """Whether numbers rise or fall by one factor, and more so than by one step."""
    if len(numbers) < 3 or numbers.min() <= 0:
        return False
    quotients, steps = np.diff(np.log(numbers)), np.diff(numbers)
    return bool(np.ptp(quotients) < EVEN * np.abs(quotients).max() and np.ptp(steps) > EVEN * np.abs(steps).max())


def _parameters(argument: str, values: Any) -> Float[np.ndarray, " n"]:
    values = np.asarray(values, float)
    require(values.ndim == 1 and len(values) > 0, argument, "be a list of numbers", f"shape {values.shape}")
    turns = np.diff(values)
    require(bool((turns > 0).all() or (turns < 0).all()), argument, "rise or fall strictly", values.tolist())
    return values


def _pairs(argument: str, values: Any) -> Float[np.ndarray, "n 2"]:
    values = np.asarray(values, float)
    require(values.ndim == 2 and values.shape[1] == 2, argument, "have the shape (n, 2)", f"shape {values.shape}")
    return values
