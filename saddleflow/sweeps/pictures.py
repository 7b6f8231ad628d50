"""The picture of a sweep: curves with bands over seeds, or a phase diagram over two parameters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lazy_loader as lazy
import numpy as np

from saddleflow import plotting
from saddleflow._backend.arguments import optional, takes, text
from saddleflow._backend.checks import require

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
else:
    xr = lazy.load("xarray")
    Figure = Any  # loading matplotlib takes longer than most sweeps

# The rows of a flow: at common times, or each flow's own.
ROWS = ("time", "sample")

# What axes are called, where the name alone would not do.
NAMES = {
    "time": "time t of the flow",
    "end_time": "time at the end",
    "train_cost": "train cost",
    "test_cost": "test cost",
    "gradient_norm": r"gradient norm $|\nabla_\theta C|$",
    "nuclear_norm": "nuclear norm of A",
    "rank": "rank of A",
    "gamma": r"$\gamma$",
    "alpha": r"scale $\alpha$ of the start",
    "width": "width w",
    "depth": "depth L",
    "rtol": "relative tolerance",
    "learning_rate": "learning rate",
}

# Symbols of parameters, for the names of curves.
SYMBOLS = {"gamma": r"$\gamma$", "alpha": r"$\alpha$", "width": "w", "depth": "L"}

# Values of one sign that span more than this have a logarithmic axis.
SPAN_OF_LOGARITHM = 30.0


@takes(variable=text, x=optional(text), y=optional(text), theme=text, width=text)
def plot_sweep(
    data: Any,
    variable: str,
    *,
    x: str | None = None,
    y: str | None = None,
    over: str | Sequence[str] | None = "seed",
    quantiles: tuple[float | int, float | int] = (0.1, 0.9),
    theme: str = "transparent",
    width: str = "screen",
) -> Figure:
    """A variable of a sweep: its median with a band over seeds against one parameter, or a map over two.

    Where the flows have rows and `x` is not "time", their last row counts: the end of each flow. Rows that a flow did
    not reach are left out. Without `y` each value of a further parameter gets a curve of its own.

        data = sf.sweep(cost, depth=3, width=[20, 50], gamma=[1.0, 1.5], seed=range(8), save_at=times)
        sf.plot_sweep(data.sel(width=50), "train_cost", x="time")     # a curve and a band for each gamma
        sf.plot_sweep(data, "test_cost", x="gamma")                   # at the end, a curve for each width
        sf.plot_sweep(data, "test_cost", x="gamma", y="width")        # a phase diagram, the median over seeds

    Args:
        data: a dataset from `sf.sweep`, or a part of it, as from `data.sel(...)`.
        variable: its name, such as "train_cost", "test_cost", "rank" or "end_time".
        x: the parameter along the x axis, or "time" for flows saved at common times (`save_at`); None: "time" where
            there is such, else the first parameter.
        y: the parameter along the y axis of a phase diagram; None: curves.
        over: the parameter that is drawn as a band, or several; None: none. What the data do not have is passed over.
        quantiles: the ends of the band; (0, 1) shows all.
        theme: "transparent", "light" or "dark", as of `Trajectory.plot`.
        width: "column", "double", "screen" or "slide".

    Returns:
        The figure, of matplotlib.

    Raises:
        ValueError: no dataset; a variable, a parameter, a theme or a width that it does not have; more than one
            parameter left for the curves, or any for a phase diagram.
    """
    values, x, over = _values(data, variable, x, y, over)
    with plotting.style(theme, width):
        figure, axes = plotting.subplots(figsize=plotting.figure_size(width))
        try:
            if y is None:
                _draw_curves(axes, values, x, over, quantiles)
            else:
                _draw_map(axes, values, x, y, over)
        except BaseException:
            plotting.close(figure)
            raise
    return figure


def _values(
    data: Any, variable: str, x: str | None, y: str | None, over: Any
) -> "tuple[xr.DataArray, str, list[str]]":
    """The values that are drawn, the parameter along x, and what the bands are over."""
    remedy = "Pass what `sf.sweep` returns."
    require(isinstance(data, xr.Dataset), "data", "be the dataset of a sweep", type(data).__name__, remedy)
    known = [str(name) for name in data.data_vars if np.issubdtype(data[name].dtype, np.number)]
    require(variable in known, "variable", f"be a number of the dataset, one of {known}", variable)
    values = data[variable].astype(float)
    if variable == "rank":  # -1 where a flow did not reach a time
        values = values.where(values >= 0)
    over = [over] if isinstance(over, str) else list(over or ())
    for name in over:
        sound = name in values.dims or name in data.coords or name == "seed"
        require(sound, "over", f"name parameters of the sweep, of {[str(dim) for dim in values.dims]}", name)
    over = [name for name in over if name in values.dims]
    parameters = [str(dim) for dim in values.dims if dim not in (*ROWS, *over)]
    chosen = x if x is not None else "time" if "time" in values.dims and y is None else next(iter(parameters), None)
    there = [*parameters, *(["time"] if "time" in values.dims else [])]
    remedy = "Of flows with rows of their own take save_at=times in the sweep." if x == "time" else ""
    require(chosen in there, "x", f"be a parameter of the sweep, one of {there}", chosen, remedy)
    assert chosen is not None, "it is one of those there"
    require(y is None or (y in there and y != chosen), "y", f"be another parameter, one of {there}", y)
    for row in ROWS:
        if row in values.dims and row not in (chosen, y):
            values = values.isel({row: -1})
    left = [str(dim) for dim in values.dims if dim not in (chosen, y, *over)]
    remedy = f"Select values, as in data.isel({left[-1]}=0), or name it in `over`." if left else ""
    most = 1 if y is None else 0
    require(
        len(left) <= most,
        "data",
        f"leave {most} further parameter at most" if most else "leave no further parameter",
        left,
        remedy,
    )
    return values, chosen, over


def _draw_curves(
    axes: "plotting.Axes", values: "xr.DataArray", x: str, over: list[str], quantiles: tuple[float | int, float | int]
) -> None:
    """A curve with its band for each value of the parameter that is left, or one."""
    dims = [str(dim) for dim in values.dims if dim != x and dim not in over]
    groups = [None] if not dims else list(values[dims[0]].values)
    places, ticks = _places(values, x)
    shown = np.isfinite(places) & (places > 0) if x == "time" else np.isfinite(places)  # log time has no start
    for index, group in enumerate(groups):
        part = values if group is None else values.isel({dims[0]: index})
        samples = part.stack(sample_=over) if over else part.expand_dims("sample_")
        samples = samples.transpose("sample_", x).values[:, shown]
        name = "" if group is None else f"{SYMBOLS.get(dims[0], dims[0])} = {_short(group)}"
        colour = plotting.mode_colour(index)
        plotting.draw_band(
            axes,
            places[shown],
            samples,
            colour=colour,
            name=name,
            quantiles=quantiles,
            steps=values.name == "rank" and x == "time",
            marker="" if x == "time" else "o",
        )
    axes.set(xlabel=_label(values[x]), ylabel=_label(values))
    if ticks is not None:
        axes.set_xticks(places, ticks)
    elif x == "time" or _spans(places):
        axes.set_xscale("log")
    if values.name != "rank" and _spans(values.values):
        axes.set_yscale("log")


def _draw_map(axes: "plotting.Axes", values: "xr.DataArray", x: str, y: str, over: list[str]) -> None:
    """The median over what is left, over two parameters."""
    middle = values.median(over) if over else values
    (columns, x_ticks), (rows, y_ticks) = _places(values, x), _places(values, y)
    words = f"median {_label(values)}" if over else _label(values)
    plotting.draw_phase_diagram(axes, columns, rows, middle.transpose(y, x).values, label=words)
    axes.set(xlabel=_label(values[x]), ylabel=_label(values[y]))
    if x_ticks is not None:
        axes.set_xticks(columns, x_ticks)
    if y_ticks is not None:
        axes.set_yticks(rows, y_ticks)


def _places(values: "xr.DataArray", dim: str) -> tuple[np.ndarray, list[str] | None]:
    """Where the values of a parameter stand along an axis, and their names where they are no ordered numbers."""
    found = values[dim].values
    numbers = np.issubdtype(found.dtype, np.number)
    ordered = numbers and (np.all(np.diff(found) > 0) or np.all(np.diff(found) < 0))
    return (found.astype(float), None) if ordered else (np.arange(len(found), dtype=float), list(map(_short, found)))


def _spans(values: np.ndarray) -> bool:
    """Whether values are of one sign, and a linear axis would hide the small ones."""
    seen = values[np.isfinite(values) & (values != 0)]
    return bool(len(seen) and seen.min() > 0 and seen.max() > SPAN_OF_LOGARITHM * seen.min())


def _label(values: "xr.DataArray") -> str:
    """What an axis is called, with its unit where the name does not say it."""
    name = str(values.name)
    if name in NAMES:
        return NAMES[name]
    units = values.attrs.get("units", "1")
    words = name.removeprefix("observable_").replace("_", " ")
    return words if units in ("1", "") else f"{words} ({units})"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
