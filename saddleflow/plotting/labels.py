"""Labels beside curves and points that never collide: they are moved apart, and what does not fit is left out.

Where a label stands is settled each time the figure is drawn, when the sizes of texts and frames are known: each has
a place that its caller prefers, and gives way to labels before it and, where it can, to curves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import BboxBase

from saddleflow._backend.checks import require

# Typographic points: kept free around a label; between the dots that stand for a curve.
GAP, SPACING = 1.0, 2.0

# Points that a label rather moves than cover one dot of a curve, stand outside of the frame, or stand nearer to
# another label's point than to its own.
COST_OF_DOT, COST_OF_LEAVING, COST_OF_DOUBT = 4.0, 30.0, 40.0

# A label that is moved by more lines than this is joined to its point.
LINES_APART = 1.6

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels
_NONE = ("None", "none", "", " ", None)  # no line, no marker
_SHARES = {"left": 0.0, "center": 0.5, "right": 1.0, "bottom": 0.0, "baseline": 0.0, "top": 1.0}


def name_curve(
    line: Line2D,
    text: str,
    at: float | int | None = None,
    offset: tuple[float | int, float | int] = (4, 0),
    **how: Any,
) -> Annotation:
    """Write a curve's name beside it, in its colour.

    ::

        (line,) = axes.plot(time, cost)
        plotting.name_curve(line, "train")

    Args:
        line: what `axes.plot` drew.
        text: its name.
        at: where along the curve, as a share of its points within the frame as it is now; None: at its end within
            the frame as it will be, where the names of all curves that end there are moved apart up and down.
        offset: from there, in typographic points.
        how: further arguments of `axes.annotate`.

    Raises:
        ValueError: a share beyond 0 to 1.
    """
    require(at is None or 0 <= at <= 1, "at", "be a share of the curve, from 0 to 1", at)

    axes = line.axes
    assert isinstance(axes, Axes), "a line that is drawn has axes"
    how = {"color": line.get_color()} | how
    if at is None:
        return _add(axes, text, lambda axes: _point_along(line, axes, 1.0), offset, True, how)
    point = _point_along(line, axes, float(at))
    return _add(axes, text, lambda _: point, offset, False, how)


def _point_along(line: Line2D, axes: Axes, share: float) -> tuple[float, float]:
    """The point of a curve at a share of those within the frame; NaN where there are none."""
    points = np.column_stack([np.asarray(values, float) for values in line.get_data()])
    (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    x, y = points.T
    seen = points[(x >= left) & (x <= right) & (y >= low) & (y <= high)]
    if not len(seen):
        return np.nan, np.nan
    found = seen[round(share * (len(seen) - 1))]
    return float(found[0]), float(found[1])


def name_point(
    axes: Axes,
    point: Sequence[Any] | np.ndarray,
    text: str,
    colour: str | None = None,
    offset: tuple[float | int, float | int] = (4, 0),
    **how: Any,
) -> Annotation:
    """Write a word beside a point.

    Args:
        axes: where.
        point: (x, y), as the data are.
        text: the word.
        colour: of the word; None: the ink of the style.
        offset: from the point, in typographic points.
        how: further arguments of `axes.annotate`.

    Raises:
        ValueError: no pair of numbers.
    """
    require(np.shape(point) == (2,), "point", "be a pair (x, y)", point)
    found = float(point[0]), float(point[1])
    return _add(axes, text, lambda _: found, offset, False, {"color": colour} | how)


def name_plateau(
    axes: Axes,
    begin: float | int,
    end: float | int,
    height: float | int,
    text: str,
    colour: str | None = None,
    **how: Any,
) -> Annotation:
    """Write a word over the middle of a plateau, of its part within the frame.

    Args:
        axes: where.
        begin: where it begins along x.
        end: where it ends.
        height: its y.
        text: the word.
        colour: of the word; None: the ink of the style.
        how: further arguments of `axes.annotate`.

    Raises:
        ValueError: an end before the begin.
    """
    require(begin <= end, "end", f"not lie before the begin, {begin:g}", end)

    def anchor(axes: Axes) -> tuple[float, float]:
        left, right = sorted(axes.get_xlim())
        ends = [min(max(x, left), right) for x in (begin, end)]
        pixels = axes.transData.transform(np.column_stack([ends, [height] * 2]))
        x, y = axes.transData.inverted().transform(pixels.mean(axis=0))
        return float(x), float(y)

    how = {"color": colour, "ha": "center", "va": "bottom"} | how
    return _add(axes, text, anchor, (0, 2), False, how, drift=3.0)  # aside stands another plateau


def name_level(axes: Axes, height: float | int, text: str, colour: str | None, side: str) -> Annotation:
    """Write a word on a horizontal line, at the left or right side of the frame."""
    annotation = _add(
        axes,
        text,
        lambda axes: (axes.get_xlim()[side == "right"], float(height)),
        (-2 if side == "right" else 3, 2),
        False,
        {"color": colour, "ha": side, "va": "bottom"},
    )
    _layout_of(axes).labels[-1].on_line = True
    return annotation


def _add(
    axes: Axes,
    text: str,
    anchor: Callable[[Axes], tuple[float, float]],
    offset: tuple[float | int, float | int],
    at_end: bool,
    how: dict[str, Any],
    drift: float = 1.0,
) -> Annotation:
    layout = _layout_of(axes)  # before its labels, among what the axes hold
    how = {"ha": "left", "va": "center", "fontsize": "small", "annotation_clip": False} | how
    how = {name: value for name, value in how.items() if value is not None}
    join = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2, "color": how.get("color", "0.5")}
    annotation = axes.annotate(text, anchor(axes), xytext=offset, textcoords="offset points", arrowprops=join, **how)
    assert annotation.arrow_patch is not None, "it was asked for"
    annotation.arrow_patch.set_visible(False)
    label = _Label(annotation, anchor, (float(offset[0]), float(offset[1])), how["ha"], how["va"], at_end, drift)
    layout.labels.append(label)
    return annotation


@dataclass
class _Label:
    """A label, and where it rather stands."""

    annotation: Annotation
    anchor: Callable[[Axes], tuple[float, float]]
    offset: tuple[float, float]  # points
    ha: str
    va: str
    at_end: bool
    drift: float  # what a point aside counts, against one up or down
    on_line: bool = False  # whether it belongs to all of a horizontal line


@dataclass(frozen=True)
class _Place:
    """Where a label may stand: its offset in points, its alignments, its box in pixels."""

    offset: tuple[float, float]
    ha: str
    va: str
    box: Box


class _Layout(Artist):
    """It draws nothing: being measured and drawn before all else on its axes, it puts their labels in place.

    While room is made for labels, as by constrained layout, they stand where they are preferred.
    """

    def __init__(self):
        super().__init__()
        self.labels: list[_Label] = []
        self.set(zorder=-1e9, clip_on=False)  # what is clipped is not measured

    def get_tightbbox(self, renderer: Any = None) -> None:
        """Nothing of its own; the labels stand as preferred."""
        del renderer
        axes = self._prefer()
        for label in self.labels:
            text = label.annotation
            text.xyann = label.offset
            text.set(ha=label.ha, va=label.va)
            text.set_visible(bool(np.isfinite(axes.transData.transform(text.xy)).all()))

    def draw(self, renderer: Any) -> None:
        """Put the labels in place."""
        _arrange(self._prefer(), self.labels, renderer)
        self.stale = False

    def _prefer(self) -> Axes:
        """Bring the points of all labels up to date; those of labels that were removed are forgotten."""
        axes = self.axes
        assert isinstance(axes, Axes), "it was added to axes"
        self.labels = [label for label in self.labels if label.annotation.axes is axes]
        for label in self.labels:
            label.annotation.xy = label.anchor(axes)
        return axes


def _layout_of(axes: Axes) -> _Layout:
    for child in axes.get_children():
        if isinstance(child, _Layout):
            return child
    layout = _Layout()
    axes.add_artist(layout)
    return layout


def _arrange(axes: Axes, labels: list[_Label], renderer: Any) -> None:
    """All labels of one set of axes: first those at the ends of curves, together; then one after another."""
    ground = _Ground(axes, renderer)
    labels = [_turned(ground, label) for label in labels]
    ends = [label for label in labels if label.at_end]
    for column in _columns(ground, ends):
        _spread_column(ground, column)
    free = [label for label in labels if not label.at_end]
    anchors = np.asarray([ground.anchor(label) for label in free]).reshape(-1, 2)
    for index, label in enumerate(free):
        own, others = anchors[index : index + 1], np.delete(anchors, index, axis=0)
        places = _places(ground, label)
        costs = [_cost(ground, label, place, own, others) for place in places]
        leaving = np.asarray([ground.leaves(place.box) for place in places], bool)
        if len(places) and not leaving[0]:  # where its caller puts it outside, it may be
            costs = costs + COST_OF_LEAVING * leaving
        best = int(np.argmin(costs)) if len(places) else 0
        fits = len(places) > 0 and bool(np.isfinite(costs[best]))
        _put(ground, label, places[best] if fits else None)


class _Ground:
    """What labels of one set of axes stand on, in pixels: the frame, the curves, the boxes that are taken."""

    def __init__(self, axes: Axes, renderer: Any):
        figure = axes.get_figure(root=True)
        assert figure is not None, "axes on a figure"
        self.axes, self.renderer = axes, renderer
        self.point = figure.dpi / 72  # a typographic point
        self.page, self.frame = _box(figure.bbox), _box(axes.bbox)
        self.dots = self._dots()
        titles = [axes.title, axes._left_title, axes._right_title]  # pyright: ignore[reportAttributeAccessIssue]
        self.taken: list[Box] = [self.box(title) for title in titles if title.get_text() and title.get_visible()]

    def box(self, text: Text) -> Box:
        """The box of a text alone, without the line that joins it to its point."""
        return _box(Text.get_window_extent(text, self.renderer))

    def size(self, label: _Label) -> tuple[float, float]:
        """Width and height of a label."""
        label.annotation.set_visible(True)
        left, low, right, top = self.box(label.annotation)
        return right - left, top - low

    def anchor(self, label: _Label) -> tuple[float, float]:
        """Where a label's point is."""
        x, y = self.axes.transData.transform(label.annotation.xy)
        return float(x), float(y)

    def leaves(self, box: Box) -> bool:
        """Whether a box reaches out of the frame."""
        return not _within(box, self.frame, GAP * self.point)

    def is_free(self, box: Box) -> bool:
        """Whether a box is on the page, and on no other one."""
        left, low, right, top = box
        room = GAP * self.point
        meets = any(left - room < b[2] and right + room > b[0] and low < b[3] and top > b[1] for b in self.taken)
        return not meets and _within(box, self.page, 0.0)

    def covers(self, box: Box) -> int:
        """How many dots of curves and markers a box covers, or touches."""
        (left, low, right, top), (x, y), room = box, self.dots.T, GAP * self.point
        beside = (x > left - room) & (x < right + room)
        return int((beside & (y > low - room) & (y < top + room)).sum())

    def _dots(self) -> Float[np.ndarray, "n 2"]:
        """All curves and markers of the axes as dots."""
        found = [np.zeros((0, 2))]
        for line in self.axes.get_lines():
            data = np.column_stack([np.asarray(values, float) for values in line.get_data()])
            pixels = line.get_transform().transform(data)
            pixels = pixels[np.isfinite(pixels).all(axis=1)]
            if len(pixels) and line.get_marker() not in _NONE:
                half = 0.4 * line.get_markersize() * self.point
                around = half * np.asarray([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)])
                found.append((pixels[:, None] + around).reshape(-1, 2))
            if len(pixels) > 1 and line.get_linestyle() not in _NONE:
                found.append(_dotted(pixels, self.frame, SPACING * self.point))
        return np.concatenate(found)


def _box(found: BboxBase) -> Box:
    left, low, right, top = map(float, found.extents)
    return left, low, right, top


def _within(box: Box, around: Box, room: float) -> bool:
    return (
        box[0] >= around[0] - room
        and box[1] >= around[1] - room
        and box[2] <= around[2] + room
        and box[3] <= around[3] + room
    )


def _dotted(pixels: Float[np.ndarray, "n 2"], frame: Box, spacing: float) -> Float[np.ndarray, "dots 2"]:
    """A curve as dots at even distances; what is far outside of the frame is drawn to its edge, to be few."""
    pixels = np.clip(pixels, np.asarray(frame[:2]) - 9, np.asarray(frame[2:]) + 9)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(pixels, axis=0).T))])
    at = np.arange(0.0, along[-1], spacing)
    return np.column_stack([np.interp(at, along, values) for values in pixels.T])


def _place(
    ground: _Ground, label: _Label, size: tuple[float, float], offset: tuple[float, float], ha: str, va: str
) -> _Place:
    x, y = ground.anchor(label)
    left = x + offset[0] * ground.point - _SHARES[ha] * size[0]
    low = y + offset[1] * ground.point - _SHARES[va] * size[1]
    return _Place(offset, ha, va, (left, low, left + size[0], low + size[1]))


def _places(ground: _Ground, label: _Label) -> list[_Place]:
    """Where a label may stand: as preferred, on the other sides of its point, and further up, down, left, right."""
    if not np.isfinite(ground.anchor(label)).all():
        return []
    size, (x, y) = ground.size(label), label.offset
    other = {"left": "right", "right": "left", "bottom": "top", "top": "bottom", "baseline": "top"}
    sides = [
        ((sx * x, sy * y), other.get(label.ha, label.ha) if sx < 0 else label.ha, va)
        for sx in ((1,) if label.ha == "center" else (1, -1))
        for sy, va in ((1, label.va), (-1, other.get(label.va, label.va)))
    ]
    wide, line = size[0] / ground.point, size[1] / ground.point
    steps = [(0.0, 0.0)]
    steps += [(0.0, sign * 0.5 * k * line) for k in range(1, 9) for sign in (1, -1)]
    steps += [
        (sx * share * wide, sy * k * line)
        for share in (0.3, 0.6)
        for sx in (1, -1)
        for k, sy in ((0, 1), (0.5, 1), (0.5, -1), (1, 1), (1, -1), (2, 1), (2, -1), (3, 1), (3, -1))
    ]
    return [
        _place(ground, label, size, (dx + step_x, dy + step_y), ha, va)
        for step_x, step_y in steps
        for (dx, dy), ha, va in sides
    ]


def _cost(
    ground: _Ground,
    label: _Label,
    place: _Place,
    own: Float[np.ndarray, "1 2"],
    others: Float[np.ndarray, "n 2"],
) -> float:
    """What speaks against a place, in points that the label would rather move; infinite where it cannot stand."""
    if not ground.is_free(place.box):
        return np.inf
    moved = np.hypot(label.drift * (place.offset[0] - label.offset[0]), place.offset[1] - label.offset[1])
    turned = (place.ha != label.ha) + (place.va != label.va)
    doubt = _distances(place.box, others).min(initial=np.inf) < _distances(place.box, own).item()
    return float(moved + 2 * turned + COST_OF_DOT * ground.covers(place.box) + COST_OF_DOUBT * doubt)


def _distances(box: Box, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """Distances of points from a box; zero within."""
    x, y = points.T
    beside = np.maximum(np.maximum(box[0] - x, x - box[2]), 0)
    return np.hypot(beside, np.maximum(np.maximum(box[1] - y, y - box[3]), 0))


def _put(ground: _Ground, label: _Label, place: _Place | None) -> None:
    """Put a label in its place, joined to its point where that is far; None: leave it out."""
    text = label.annotation
    text.set_visible(place is not None)
    if place is None:
        return
    text.xyann = place.offset
    text.set(ha=place.ha, va=place.va)
    ground.taken.append(place.box)
    if label.on_line:  # its point is where the line passes it
        (x, y), middle = ground.anchor(label), (place.box[0] + place.box[2]) / 2
        under, height = ground.axes.transData.inverted().transform((middle, y))
        text.xy = float(under), float(height)
        text.xyann = (place.offset[0] + (x - middle) / ground.point, place.offset[1])
    moved = np.hypot(place.offset[0] - label.offset[0], place.offset[1] - label.offset[1])
    far = moved > LINES_APART * float(text.get_fontsize()) and not label.at_end  # there its colour tells whose it is
    assert text.arrow_patch is not None, "it was asked for"
    text.arrow_patch.set_visible(bool(far))


def _turned(ground: _Ground, label: _Label) -> _Label:
    """A label beside the end of a curve, where the page has no room for it: then above the end, inside the frame."""
    x, _ = ground.anchor(label)
    fits = not label.at_end or x + label.offset[0] * ground.point + ground.size(label)[0] <= ground.page[2]
    return label if fits else replace(label, at_end=False, offset=(-2.0, 3.0), ha="right", va="bottom")


def _columns(ground: _Ground, labels: list[_Label]) -> list[list[_Label]]:
    """The labels at ends of curves that share a stretch of x, each column in the order of its curves."""
    columns: list[list[tuple[int, _Label]]] = []
    right = -np.inf
    boxes = []
    for order, label in enumerate(labels):
        if np.isfinite(ground.anchor(label)).all():
            place = _place(ground, label, ground.size(label), label.offset, label.ha, "center")
            boxes.append((place.box[0], place.box[2], order, label))
        else:
            _put(ground, label, None)
    for left, end, order, label in sorted(boxes, key=lambda box: box[0]):
        if left >= right:
            columns.append([])
        columns[-1].append((order, label))
        right = max(right, end)
    return [[label for _, label in sorted(column, key=lambda pair: pair[0])] for column in columns]


def _spread_column(ground: _Ground, labels: list[_Label]) -> None:
    """Move labels in a column apart, as little as can be; leave out the last ones where they do not all fit."""
    sizes = [ground.size(label) for label in labels]
    heights = np.asarray([height for _, height in sizes])
    low, high = ground.frame[1] - heights[0] / 2, ground.frame[3] + heights[0] / 2
    count = max(1, int(np.sum(np.cumsum(heights) <= high - low)))
    for label in labels[count:]:
        _put(ground, label, None)
    labels, sizes, heights = labels[:count], sizes[:count], heights[:count]
    wished = [ground.anchor(label)[1] + label.offset[1] * ground.point for label in labels]
    # of labels with one wish the first stands on top, as the first curve is the largest
    order = np.lexsort([-np.arange(count), np.asarray(wished)])
    found = np.empty(count)
    found[order] = spread(np.asarray(wished)[order], heights[order], low, high)
    for label, size, middle, wish in zip(labels, sizes, found, wished, strict=True):
        offset = label.offset[0], label.offset[1] + (middle - wish) / ground.point
        _put(ground, label, _place(ground, label, size, offset, label.ha, "center"))


def spread(
    wished: Float[np.ndarray, " n"], heights: Float[np.ndarray, " n"], low: float, high: float
) -> Float[np.ndarray, " n"]:
    """Middles of boxes in a column that do not overlap, nearest to the wished ones in the sum of squares.

    Args:
        wished: their middles, ascending.
        heights: of the boxes; together no more than the column.
        low: where the column begins.
        high: where it ends.
    """
    # boxes one on another are at a common shift: pools of neighbours, as in isotonic regression
    below = np.concatenate([[0.0], np.cumsum(heights)[:-1]]) + heights / 2
    pools: list[tuple[float, int]] = []
    for shift in wished - below:
        mean, count = float(shift), 1
        while pools and pools[-1][0] > mean:
            other, size = pools.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        pools.append((mean, count))
    shifts = np.concatenate([np.full(count, mean) for mean, count in pools])
    return np.clip(shifts, low, max(low, high - heights.sum())) + below
