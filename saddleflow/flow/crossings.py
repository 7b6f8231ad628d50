"""Where something recorded row by row first falls to a level: one search for the rows, three ways between them.

`linear` needs values alone and works under `jit`; `cubic` takes slopes too; `root` takes any function. A rising
quantity falls with both signs turned: `time_at_level(time, -values, -level)`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float


def first_row(values: Float[np.ndarray, " rows"], level: float) -> int | None:
    """The first row whose value is at most the level; None where there is none."""
    rows = np.flatnonzero(values <= level)
    return int(rows[0]) if len(rows) else None


def time_at_level(time: Float[np.ndarray, " rows"], values: Float[np.ndarray, " rows"], level: float) -> float:
    """The first time at which values are at most a level, linear between rows; infinite where they never are.

    Args:
        time: times of the rows, ascending.
        values: what falls, of the same shape.
        level: what it falls to.
    """
    row = first_row(values, level)
    if row is None:
        return math.inf
    return float(linear(time[row - 1 : row + 1], values[row - 1 : row + 1], level)) if row else float(time[0])


def linear(times: Any, values: Any, level: Any) -> Any:
    """The time at which the straight line through two points passes a level; arrays of numpy or of jax."""
    # A compiled program takes it for the last step of a run: a search for the root of a cubic would be a loop in
    # every lane, and beside the length of a plateau that one step is short.
    (first, last), (before, after) = times, values
    return first + (last - first) * (before - level) / (before - after)


def cubic(step: float, values: Float[np.ndarray, " 2"], slopes: Float[np.ndarray, " 2"], level: float) -> float:
    """How long after the first of two rows the cubic through values and slopes falls to a level.

    Args:
        step: time between the rows.
        values: at the rows; the first is above the level, the second is not.
        slopes: time derivatives there.
        level: what the values fall to.
    """
    curve = scipy.interpolate.CubicHermiteSpline([0.0, 1.0], values - level, slopes * step)
    return step * root(lambda part: float(curve(part)))


def root(excess: Callable[[float], float]) -> float:
    """The place in [0, 1] where a function falls to zero, by Brent's method."""
    # An interpolant meets its rows up to rounding only: where an end is the place, its sign may be wrong.
    if excess(0.0) <= 0:
        return 0.0
    if excess(1.0) >= 0:
        return 1.0
    return float(scipy.optimize.brentq(excess, 0.0, 1.0))
