"""Small pictures of curves as SVG, for cards: made in milliseconds, without matplotlib, in the page's own ink."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Pixels: of a panel, and around its frame.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300.0, 170.0, 52.0, 34.0, 22.0, 20.0

# Rows drawn of a curve at most; a curve's name takes so many pixels of height.
MOST_ROWS, NAME = 400, 11.0


# What the least number of an axis is zero beside, of the largest.
ROUNDING = 1e-3


class Curve(NamedTuple):
    """A curve of a panel.

    Attributes:
        values: shape (n,).
        colour: of SVG; "currentColor" is the page's ink.
        name: at its end; "" for none.
        dashed: whether its line is.
    """

    values: Float[np.ndarray, " n"]
    colour: str = "currentColor"
    name: str = ""
    dashed: bool = False


def panel(
    x: Float[np.ndarray, " n"],
    curves: Sequence[Curve],
    title: str,
    *,
    logarithmic: bool = False,
    x_name: str = "",
    bands: Sequence[tuple[float, float]] = (),
) -> str:
    """Curves along x, with the least and the largest number of both axes.

    Args:
        x: shape (n,).
        curves: of as many values.
        title: plain text.
        logarithmic: the y axis; values that are not positive are left out.
        x_name: written along x instead of its ends, where its numbers say nothing; "": the ends.
        bands: stretches of x that are shaded.
    """
    values = np.stack([np.asarray(curve.values, float) for curve in curves])
    seen = np.where(np.isfinite(values) & ((values > 0) | (not logarithmic)), values, np.nan)
    counted = np.log10(seen) if logarithmic else seen
    places, along = _scaled(np.asarray(x, float), LEFT, WIDTH - RIGHT)
    heights, across = _scaled(counted, HEIGHT - BOTTOM, TOP)
    low, high = (10**end if logarithmic else end for end in across)
    low = 0.0 if 0 < low < ROUNDING * high and not logarithmic else low
    parts = [_text(LEFT, 12.0, title, weight="bold")]
    parts += [_band(np.interp(band, along, (LEFT, WIDTH - RIGHT))) for band in bands if along[1] > along[0]]
    parts.append(
        f'<path d="M{LEFT},{TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="currentColor" opacity="0.5"/>'
    )
    rows = np.unique(np.linspace(0, len(places) - 1, min(len(places), MOST_ROWS)).round().astype(int))
    for curve, line in zip(curves, heights, strict=True):
        parts.append(_path(places[rows], line[rows], curve))
    parts += _names(curves, heights)
    parts += [
        _text(LEFT - 4, HEIGHT - BOTTOM, f"{low:.3g}", anchor="end"),
        _text(LEFT - 4, TOP + 8, f"{high:.3g}", anchor="end"),
        _text(LEFT, HEIGHT - 6, "" if x_name else f"{along[0]:.3g}"),
        _text(WIDTH - RIGHT, HEIGHT - 6, x_name or f"t = {along[1]:.4g}", anchor="end"),
    ]
    style = "background:transparent;color:inherit;margin-right:8px"
    size = f'width="{WIDTH:g}" height="{HEIGHT:g}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" style="{style}">{"".join(parts)}</svg>'


def _scaled(values: np.ndarray, low: float, high: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Values as pixels, and the ends of their range."""
    if not np.isfinite(values).any():
        return np.full(values.shape, np.nan), (np.nan, np.nan)
    ends = float(np.nanmin(values)), float(np.nanmax(values))
    span = ends[1] - ends[0] or 1.0
    return low + (values - ends[0]) / span * (high - low), ends


def _path(x: np.ndarray, y: np.ndarray, curve: Curve) -> str:
    """A line through the points, broken where there is none."""
    there = np.isfinite(x) & np.isfinite(y)
    begins = there & ~np.concatenate([[False], there[:-1]])
    steps = "".join(f"{'M' if begins[k] else 'L'}{x[k]:.1f},{y[k]:.1f}" for k in np.flatnonzero(there))
    dashes = ' stroke-dasharray="5 3"' if curve.dashed else ""
    colour = escape(curve.colour, quote=True)
    return f'<path d="{steps}" fill="none" stroke="{colour}" stroke-width="1.6"{dashes}/>' if steps else ""


def _names(curves: Sequence[Curve], heights: np.ndarray) -> list[str]:
    """Names at the ends, those of one place under one another; what leaves the panel is left out."""
    ends = []
    for curve, line in zip(curves, heights, strict=True):
        seen = line[np.isfinite(line)]
        if curve.name and len(seen):
            ends.append((float(seen[-1]), curve))
    parts, last = [], -np.inf
    for height, curve in sorted(ends, key=lambda pair: pair[0]):
        last = max(height, last + NAME)
        if last <= HEIGHT - BOTTOM + NAME / 2:
            parts.append(_text(WIDTH - RIGHT + 4, last + 3, curve.name, colour=curve.colour))
    return parts


def _band(ends: np.ndarray) -> str:
    begin, end = (float(value) for value in ends)
    size = f'x="{begin:.1f}" y="{TOP}" width="{end - begin:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
    return f'<rect {size} fill="#808080" opacity="0.15"/>'


def _text(
    x: float, y: float, text: str, *, colour: str = "currentColor", anchor: str = "start", weight: str = "normal"
) -> str:
    look = f'fill="{escape(colour, quote=True)}" text-anchor="{anchor}" font-weight="{weight}" font-size="10"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-family="sans-serif" {look}>{escape(text)}</text>'
