"""The picture of a greedy path: its stages one after another, each as long as its change is seen."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from saddleflow import plotting
from saddleflow.flow.pictures import SIGMA, stacked
from saddleflow.plotting.cards import card_of, table
from saddleflow.plotting.svg import Curve, panel

# A stage is drawn where its cost is further than this share of its drop from both ends: the waits there are infinite.
SEEN = 2e-3

# Between two stages, each of length one.
GAP = 0.3


def seen_stages(
    times: Sequence[np.ndarray], costs: Sequence[np.ndarray], ends: Sequence[float] | np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of each stage that are drawn, and where along the picture.

    Args:
        times: of each stage, from its own start, shape (rows,).
        costs: of each stage, shape (rows,).
        ends: the cost that each stage tends to.
    """
    offset = 0.0
    for time, cost, end in zip(times, costs, ends, strict=True):
        room = SEEN * (cost[0] - end)
        live = np.flatnonzero((cost < cost[0] - room) & (cost > end + room))
        first, last = (live[0], live[-1]) if len(live) else (0, len(cost) - 1)
        rows = np.arange(max(first - 1, 0), min(last + 2, len(cost)))
        along = time[rows] - time[rows[0]]
        x = offset + along / (along[-1] or 1.0)
        yield rows, x
        offset = x[-1] + GAP


def draw_dots(axes: "plotting.Axes", x: float, height: float) -> None:
    """Three dots after a stage: there a flow waits for infinitely long."""
    places = x + GAP * np.array([0.3, 0.5, 0.7])
    axes.plot(places, np.full(3, height), ".", ms=2.5, color=plotting.MUTED)


def name_stages(axes: "plotting.Axes", middles: Sequence[float]) -> None:
    """Names of the stages along the x axis."""
    axes.set_xticks(middles, [rf"$\theta^{{{k + 1}}}$" for k in range(len(middles))])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("stages of the greedy path")


class _Joined(NamedTuple):
    """The drawn rows of all stages, one after another, with a row of NaN between."""

    x: np.ndarray
    train_cost: np.ndarray
    test_cost: np.ndarray | None
    singular_values: np.ndarray
    pieces: list[np.ndarray]  # x of each stage


def _joined(path: Any) -> _Joined:
    stages, points = path.stages, path.points
    ends = [points[min(k + 1, len(points) - 1)].cost for k in range(len(stages))]
    seen = list(seen_stages([s.time for s in stages], [s.train_cost for s in stages], ends))

    def curve(name: str) -> np.ndarray:
        return _broken([np.asarray(getattr(s, name))[rows] for s, (rows, _) in zip(stages, seen, strict=True)])

    pieces = [x for _, x in seen]
    test = curve("test_cost") if points[0].test_cost is not None else None
    values = curve("singular_values")[:, : max(1, *(point.rank for point in points))]
    return _Joined(_broken(pieces), curve("train_cost"), test, values, pieces)


def draw_path(path: Any, theme: str, width: str) -> "plotting.Figure":
    """The picture of `GreedyPath.plot`."""
    found = _joined(path)
    with plotting.style(theme, width):
        figure, (top, bottom) = plotting.subplots(2, 1, sharex=True, figsize=stacked(width))
        plotting.draw_costs(top, found.x, found.train_cost, found.test_cost)
        top.margins(y=0.12)  # room for names
        for k, saddle in enumerate(path.saddles):
            at = found.pieces[k][0] if k < len(found.pieces) else found.x[-1]
            _draw_point(top, (at, saddle.cost), "o", f"rank {saddle.rank}" if saddle.rank else "origin")
        if path.minimum is not None:
            # where the drawn stage ends: of exact fits the cost is zero, far below
            _draw_point(top, (found.x[-1], max(path.minimum.cost, found.train_cost[-1])), "*", "minimum")
        for x, saddle in zip(found.pieces[:-1], path.saddles[1:], strict=False):
            draw_dots(top, x[-1], saddle.cost)
        plotting.draw_singular_values(bottom, found.x, found.singular_values)
        name_stages(bottom, [float(x[[0, -1]].mean()) for x in found.pieces])
    return figure


def draw_card(path: Any) -> str:
    """The text card as HTML, with small pictures of the costs and of the singular values, and a table of points."""
    below = []
    if path.stages:
        found = _joined(path)
        costs = [Curve(found.train_cost, name="train")]
        if found.test_cost is not None:
            costs.append(Curve(found.test_cost, name="test", dashed=True))
        modes = [
            Curve(line, plotting.mode_colour(k), f"{SIGMA}{k + 1}") for k, line in enumerate(found.singular_values.T)
        ]
        titles = "cost along the stages", "singular values of A"
        pictures = panel(found.x, costs, titles[0], logarithmic=True, x_name="stages")
        below.append(f"<div>{pictures}{panel(found.x, modes, titles[1], x_name='stages')}</div>")
    tested = path.points[0].test_cost is not None
    columns = ("rank", "cost", *(("test_cost",) if tested else ()), "gradient_norm", "escape_speed", "multiplicity")
    rows = [[f"{getattr(point, name):.6g}" for name in columns] for point in path.points]
    return card_of(repr(path), *below, table(columns, rows))


def _draw_point(axes: "plotting.Axes", place: tuple[float, float], marker: str, name: str) -> None:
    axes.plot(*place, marker, color=plotting.RED, ms=8 if marker == "*" else 4)
    beside: dict[str, Any] = {"offset": (0, 5), "ha": "center", "va": "bottom"}
    if marker == "*":
        beside = {"offset": (-7, -1), "ha": "right"}
    plotting.name_point(axes, place, name, plotting.RED, **beside)


def _broken(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Parts one after another, with a row of NaN between, where a line breaks."""
    gap = np.full((1, *parts[0].shape[1:]), np.nan)
    return np.concatenate([row for part in parts for row in (part, gap)][:-1])
