"""Pictures of a result: costs, singular values, rank, the path on a plane, the Hessian's spectrum.

Each is drawn once per result, as SVG; the marker is put into the finished text, so that it moves without drawing.
"""

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import lazy_loader as lazy
import numpy as np
from jaxtyping import Float

from saddleflow._backend.checks import require
from saddleflow.explorer.runs import Result, result, spectrum
from saddleflow.explorer.state import Settings
from saddleflow.flow.trajectory import Trajectory

if TYPE_CHECKING:
    from saddleflow import plotting
else:
    plotting = lazy.load("saddleflow.plotting", suppress_warning=True)  # matplotlib, where something is drawn

# Inches; pictures are scaled to the room that there is.
PANEL = (4.4, 2.9)

MARGINS = {"left": 0.14, "right": 0.95, "bottom": 0.15, "top": 0.91}

FORMATS = {"png": "image/png", "pdf": "application/pdf", "svg": "image/svg+xml"}

# What runs along, written out.
LABELS = {"t": "time t", "log t": "time t", "arc length": "path length of θ"}

# Levels below this share of the first are not drawn: a cost of zero has no place on a logarithmic axis.
LEAST_LEVEL = 1e-6

# Eigenvalues below this share of the largest in size count as zero.
ZERO = 1e-8

# matplotlib's settings are of the process, and each visitor has a thread.
_drawing = threading.Lock()

Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Picture:
    """A panel as SVG, and where its marker lies at every row, in units of the SVG.

    Attributes:
        svg: the text of the SVG element.
        places: for each curve the x and y at every row; NaN where a row is not in the picture.
        line: lower and upper end of the vertical line through the marker, or None.
    """

    svg: str
    places: tuple[Curve, ...] = ()
    line: tuple[float, float] | None = None

    def at(self, row: int) -> str:
        """The SVG with the marker at a row."""
        marks = ""
        if self.line is not None and np.isfinite(here := self.places[0][0][row]):
            low, high = self.line
            marks += f'<line x1="{here:.2f}" x2="{here:.2f}" y1="{low:.2f}" y2="{high:.2f}" class="marker"/>'
        for x, y in self.places:
            if np.isfinite(x[row]) and np.isfinite(y[row]):
                marks += f'<circle cx="{x[row]:.2f}" cy="{y[row]:.2f}" r="3.4" class="marker"/>'
        return self.svg.replace("</svg>", f"{marks}</svg>")


def along(found: Result) -> np.ndarray:
    """What runs along the pictures; in logarithmic time the start is left out (NaN)."""
    run, axis = found.trajectory, found.settings.axis
    if axis == "arc length":
        return run.arc_length
    return np.where(run.time > 0, run.time, np.nan) if axis == "log t" else run.time


def draw_costs(axes: "plotting.Axes", found: Result) -> list[Curve]:
    """Train and test cost with the plateaus shaded and marked; levels and escape times of theory on them."""
    run, x = found.trajectory, along(found)
    rows = np.isfinite(x)
    plateaus = []
    for visit in run.saddles(stationary_points=False):
        ends = np.interp([visit.enter, visit.time, visit.leave], run.time[rows], x[rows])
        plateaus.append(plotting.Plateau(ends[0], ends[2], visit.cost, plateau_name(visit.rank), ends[1]))
    test = None if run.test_cost is None else run.test_cost[rows]
    plotting.draw_costs(axes, x[rows], run.train_cost[rows], test, plateaus, colour=plotting.BLUE)
    for _, cost in found.predictions.levels:
        if cost > LEAST_LEVEL * found.predictions.levels[0][1]:
            axes.axhline(cost, color=plotting.GREEN, lw=0.9, ls=(0, (5, 3)), zorder=1)
    _draw_escapes(axes, found)
    return [(x, run.train_cost)]


def plateau_name(rank: int | None) -> str:
    """What a plateau is called: by its rank, where it has one."""
    return "plateau" if rank is None else ("origin" if rank == 0 else f"rank {rank}")


def _draw_escapes(axes: "plotting.Axes", found: Result) -> None:
    """Escape times of theory, as dotted lines."""
    run = found.trajectory
    for time in found.predictions.escape_times:
        if time <= run.time[-1]:
            place = np.interp(time, run.time, run.arc_length) if found.settings.axis == "arc length" else time
            axes.axvline(float(place), color=plotting.GREEN, lw=1.1, ls=":", zorder=1)


def draw_singular_values(axes: "plotting.Axes", found: Result) -> list[Curve]:
    """Singular values of A, or of a model's outputs, with the cut for the rank."""
    run, x = found.trajectory, along(found)
    rows, values = np.isfinite(x), run.singular_values
    assert values is not None, "of outputs that are a matrix"
    matrix = "A" if isinstance(run, Trajectory) else "the outputs"
    plotting.draw_singular_values(axes, x[rows], values[rows], run.rank_tolerance, matrix=matrix)
    _draw_escapes(axes, found)
    return [(x, values[:, index]) for index in range(max(1, int(run.rank[-1])))]


def draw_rank(axes: "plotting.Axes", found: Result) -> list[Curve]:
    """The rank: how many singular values are above the cut."""
    run, x = found.trajectory, along(found)
    rows = np.isfinite(x)
    axes.step(x[rows], run.rank[rows], where="post", color=plotting.PURPLE)
    most = max(4, int(run.rank.max()))
    axes.set(ylim=(-0.3, most + 0.4), yticks=range(0, most + 1, 1 + most // 6), ylabel="rank")
    return [(x, run.rank.astype(float))]


def plane(found: Result) -> tuple[Float[np.ndarray, "n_out n_in"], Float[np.ndarray, "n_out n_in"]]:
    """Two orthonormal matrices that span the plane of `draw_plane`.

    As in figure 1: the first saddle of the limit of small starts, and what its end adds to it; there of parameters,
    here of the matrix A. Without them, the two directions in which the run's matrices lie most.
    """
    points = [point.matrix for point in found.points[1:]]
    if len(points) < 2:
        matrices = found.matrices.reshape(len(found.matrices), -1)
        points = list(np.linalg.svd(matrices, full_matrices=False)[2][:2].reshape(2, *found.matrices.shape[1:]))
        points[0] = points[0] * (1.0 if np.sum(points[0] * found.matrices[-1]) >= 0 else -1.0)
    first = points[0] / np.linalg.norm(points[0])
    rest = points[-1] - np.sum(points[-1] * first) * first
    return first, rest / max(np.linalg.norm(rest), np.finfo(float).tiny)


def draw_plane(axes: "plotting.Axes", found: Result) -> list[Curve]:
    """The run projected on `plane`, the stationary points of the limit on it."""
    first, second = plane(found)
    x, y = (np.sum(found.matrices * axis, axis=(1, 2)) for axis in (first, second))
    places, names = [(0.0, 0.0)], ["origin"]
    if found.settings.theory and found.points:
        places = [(float(np.sum(p.matrix * first)), float(np.sum(p.matrix * second))) for p in found.points]
        names += [f"rank {point.rank}" for point in found.points[1:]]
        axes.plot(*np.transpose(places), "--", color=plotting.GREEN, lw=0.9)
    plotting.draw_plane(axes, np.stack([x, y], axis=1), places, names, ends_at_minimum=len(places) > 1)
    saddle = len(found.points) > 2
    axes.set_xlabel("along the first saddle" if saddle else "first direction of the run")
    axes.set_ylabel("along the rest of the end" if saddle else "second direction of the run")
    axes.margins(0.12)
    return [(x, y)]


def draw_spectrum(axes: "plotting.Axes", least: np.ndarray, largest: np.ndarray) -> None:
    """Both ends of the Hessian's spectrum."""
    values = np.unique(np.concatenate([least, largest]))
    zero = ZERO * float(np.abs(values).max(initial=0.0))
    plotting.draw_spectrum(axes, values, zero=zero, name="least and largest eigenvalues", complete=False)


PANELS: dict[str, tuple[str, Callable[..., list[Curve]]]] = {
    "costs": ("train and test cost", draw_costs),
    "singular_values": ("singular values", draw_singular_values),
    "rank": ("rank", draw_rank),
    "plane": ("path on a plane", draw_plane),
}


def _dress(axes: "plotting.Axes", name: str, found: Result) -> list[Curve]:
    title, draw = PANELS[name]
    curves = draw(axes, found)
    axes.set_title(title, y=1.0)  # at a given height: to look for one takes long
    if name != "plane":
        axes.set_xlabel(LABELS[found.settings.axis])
        if found.settings.axis == "log t":
            axes.set_xscale("log")
    axes.minorticks_off()
    return curves


@contextmanager
def _panel() -> Iterator[tuple["plotting.Figure", "plotting.Axes"]]:
    """A figure of one panel, drawn in the style of the page.

    Its margins are fixed, since a search for the best ones draws everything twice.
    """
    with _drawing, plotting.style():
        figure = plotting.Figure(figsize=PANEL)
        figure.set_layout_engine("none")
        axes = figure.subplots(gridspec_kw=MARGINS)
        yield figure, axes


def picture(name: str, found: Result) -> Picture:
    """A panel of a result, to be shown on the page; drawn anew only where something in it changes.

    Args:
        name: a key of `PANELS`.
        found: the result.
    """
    shown = {"position": Settings.position}
    shown |= {"axis": Settings.axis} if name == "plane" else {}
    shown |= {"theory": Settings.theory} if name == "rank" else {}
    return _picture(name, replace(found.settings, **shown))


@lru_cache(maxsize=64)
def _picture(name: str, settings: Settings) -> Picture:
    found = result(settings)
    with _panel() as (figure, axes):
        curves = _dress(axes, name, found)
        svg = _svg(figure)
        places = tuple(_places(axes, *curve) for curve in curves)
        box = axes.get_window_extent()
    unit, height = 72 / figure.dpi, 72 * PANEL[1]
    line = None if name == "plane" else (height - unit * box.y0, height - unit * box.y1)
    return Picture(svg, places, line)


def _places(axes: "plotting.Axes", x: np.ndarray, y: np.ndarray) -> Curve:
    """Points of the axes in units of the SVG, whose y runs down; NaN where they lie outside of the axes."""
    box, unit = axes.bbox, 72 / axes.figure.dpi
    with np.errstate(divide="ignore", invalid="ignore"):
        right, up = axes.transData.transform(np.stack([x, y], axis=1)).T
    inside = (up >= box.y0 - 1) & (up <= box.y1 + 1)
    return unit * right, np.where(inside, 72 * PANEL[1] - unit * up, np.nan)


def spectrum_picture(settings: Settings, row: int) -> Picture:
    """The spectrum of the Hessian at a row of the run."""
    return _spectrum_picture(settings.of_run, row)


@lru_cache(maxsize=256)
def _spectrum_picture(of_run: Settings, row: int) -> Picture:
    ends = spectrum(of_run, row)
    with _panel() as (figure, axes):
        draw_spectrum(axes, *ends)
        axes.set_title("spectrum of the Hessian at the marker", y=1.0)
        return Picture(_svg(figure))


def _svg(figure: "plotting.Figure") -> str:
    """The figure as an SVG element that fills the room there is."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def whole(found: Result, row: int, kind: str) -> bytes:
    """All panels as one figure, as a file's bytes.

    Args:
        found: the result.
        row: of the marker, for the spectrum.
        kind: "png", "pdf" or "svg".

    Raises:
        ValueError: another kind.
    """
    require(kind in FORMATS, "kind", f"be one of {', '.join(FORMATS)}", kind)
    ends = spectrum(found.settings, row)
    with _drawing, plotting.style("light"):
        figure = plotting.Figure(figsize=(2 * PANEL[0], 3 * PANEL[1]))
        axes: Sequence[Any] = figure.subplots(3, 2).ravel()
        for here, name in zip(axes, PANELS, strict=False):
            _dress(here, name, found)
        draw_spectrum(axes[4], *ends)
        axes[4].set_title(f"spectrum of the Hessian at t = {found.trajectory.time[row]:.4g}")
        axes[5].set_axis_off()
        lines = [f"{name}: {value}" for name, value in found.settings.to_query().items()]
        axes[5].text(0, 1, "\n".join(lines), va="top", transform=axes[5].transAxes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150)
    return buffer.getvalue()
