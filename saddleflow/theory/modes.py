r"""How the strength of one singular mode of a balanced, aligned network grows, from small to learned.

Cost C(A) = (1/2) ||A - S||_F^2 (whitened inputs). For C = (1/N) ||A X - Y||_F^2 with X X^T / N = I everything
runs twice as fast: multiply times by 2 before passing them in, divide the returned ones by 2.

With all layers balanced (W_{l+1}^T W_{l+1} = W_l W_l^T) and aligned with the singular vectors of S, the modes
decouple. The strength a(t) of the mode of singular value s obeys, at depth L, ::

    da/dt = L a^{2-2/L} (s - a),     a(0) = a_0.
"""

import numpy as np
import scipy
from jaxtyping import Float

from saddleflow._backend.checks import require, require_integer, require_positive
from saddleflow.theory.arrays import as_times, as_vector


def two_layer_mode(
    time: Float[np.ndarray, " time"], singular_value: float, initial: float
) -> Float[np.ndarray, " time"]:
    r"""Strength of a mode of a two-layer network: the sigmoid of Saxe et al.

    ::

        a(t) = s / (1 + (s / a_0 - 1) e^{-2 s t})

    Half of s is reached at t = log(s / a_0 - 1) / (2 s).

    >>> sf.theory.two_layer_mode(np.array([0.0, 1.0, 5.0]), singular_value=2.0, initial=0.01)
    array([0.01, 0.430588, 1.999999])

    Args:
        time: times, ascending, at least 0, in units of the flow of (1/2) ||A - S||_F^2.
        singular_value: s > 0.
        initial: a_0, 0 < a_0 < s.

    Returns:
        The strength at each time, to a few units of rounding for every t, up to and including saturation.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: Saxe, McClelland & Ganguli 2014 (arXiv 1312.6120); checked against the layer-wise flow.
    """
    times = as_times("time", time)
    _require_mode(singular_value, initial)
    # The decaying exponential: with the growing one of the textbook form large times give inf / inf.
    odds = (singular_value - initial) / initial
    return singular_value / (1 + odds * np.exp(-2 * singular_value * times))


def mode_time(
    strength: Float[np.ndarray, " strength"], singular_value: float, initial: float, depth: int
) -> Float[np.ndarray, " strength"]:
    r"""Time a mode needs to grow from a_0 to a, at any depth L >= 2.

    ::

        t = (1/L) int_{a_0}^{a} x^{-(2-2/L)} / (s - x) dx
          = (1/(L s)) [ -x^{-b}/b 2F1(1, -b; 1-b; x/s) ]_{a_0}^{a},     b = 1 - 2/L, L > 2
          = (1/(2 s)) log( a (s - a_0) / (a_0 (s - a)) ),               L = 2

    Evaluated in neither form, but as a sum of elementary functions without cancellation (see the source),
    equal to both and good from a = a_0 to a one rounding below s.

    >>> sf.theory.mode_time(np.array([0.1, 1.0]), singular_value=2.0, initial=0.01, depth=3)
    array([1.26525, 1.97756])

    Args:
        strength: the strengths a to reach, a_0 <= a <= s.
        singular_value: s > 0.
        initial: a_0, 0 < a_0 < s.
        depth: L >= 2, the number of layers.

    Returns:
        The time to each strength, in units of the flow of (1/2) ||A - S||_F^2; infinite for a = s.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: derived; checked against quadrature and the 2F1 form in multiple precision and the layer-wise
    flow.
    """
    require_integer("depth", depth, 2)
    _require_mode(singular_value, initial)
    strength = _as_strengths(strength, singular_value, initial)
    gap = (singular_value - strength) / singular_value
    return _scaled_time(strength, gap, singular_value, initial, depth) / _rate(singular_value, depth)


def deep_mode(
    time: Float[np.ndarray, " time"], singular_value: float, initial: float, depth: int
) -> Float[np.ndarray, " time"]:
    r"""Strength of a mode at any depth L >= 2: the inverse of `mode_time`, by a bracketing root find.

    >>> times = sf.theory.mode_time(np.array([0.1, 1.0]), singular_value=2.0, initial=0.01, depth=3)
    >>> sf.theory.deep_mode(times, singular_value=2.0, initial=0.01, depth=3)
    array([0.1, 1. ])

    Args:
        time: times, ascending, at least 0, in units of the flow of (1/2) ||A - S||_F^2.
        singular_value: s > 0.
        initial: a_0, 0 < a_0 < s.
        depth: L >= 2, the number of layers.

    Returns:
        The strength a(t) at each time. It satisfies mode_time(a(t)) = t to rounding, so its relative error is
        about eps (|log(a_0 / s)| + t a'(t) / a(t)). The second term is the condition of the problem: for
        L > 2 and tiny a_0 the mode waits t ~ a_0^{-(1-2/L)} and then grows within a time of order 1, while a
        float64 t of that size is known to eps t only.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: derived; checked against the layer-wise flow, against `two_layer_mode` and in multiple
    precision.
    """
    from scipy.optimize import elementwise  # no attribute of `scipy.optimize` before it is imported

    times = as_times("time", time)
    require_integer("depth", depth, 2)
    _require_mode(singular_value, initial)

    def scaled_time(log_odds: np.ndarray) -> np.ndarray:
        part, gap = scipy.special.expit(log_odds), scipy.special.expit(-log_odds)
        return _scaled_time(singular_value * part, gap, singular_value, initial, depth)

    # In the log-odds x of a/s the scaled time T has slope (a/s)^-b >= 1, so [x_0, x_0 + T] brackets the root;
    # the margins are for rounding. Beyond x = 40 a/s rounds to 1: what comes later is clipped to there.
    start = np.log(initial / (singular_value - initial))
    with np.errstate(over="ignore"):  # an infinite target is clipped like any other
        target = np.minimum(times * _rate(singular_value, depth), scaled_time(np.array([40.0])))
    bracket = (np.full_like(target, start - 1), np.minimum(start + target + 1, 40.0))
    found = elementwise.find_root(lambda x, goal: scaled_time(x) - goal, bracket, args=(target,))
    return singular_value * scipy.special.expit(found.x)


def infinite_depth_mode_time(
    strength: Float[np.ndarray, " strength"], singular_value: float, initial: float
) -> Float[np.ndarray, " strength"]:
    r"""Limit of depth times `mode_time` as the depth goes to infinity.

    ::

        lim_{L -> inf} L t = int_{a_0}^{a} dx / (x^2 (s - x))
                           = log( a (s - a_0) / (a_0 (s - a)) ) / s^2 + (1/a_0 - 1/a) / s

    At finite depth, L t differs from the limit by O(1/L) at fixed a_0, a and s.

    >>> limit = sf.theory.infinite_depth_mode_time(np.array([1.0]), singular_value=2.0, initial=0.1)
    >>> 1000 * sf.theory.mode_time(np.array([1.0]), singular_value=2.0, initial=0.1, depth=1000) / limit
    array([0.997])

    Args:
        strength: the strengths a to reach, a_0 <= a <= s.
        singular_value: s > 0.
        initial: a_0, 0 < a_0 < s.

    Returns:
        The limit of L t for each strength, t in units of the flow of (1/2) ||A - S||_F^2; infinite for
        a = s.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: derived; checked against `mode_time` at growing depth.
    """
    _require_mode(singular_value, initial)
    strength = _as_strengths(strength, singular_value, initial)
    grown = (strength - initial) / initial
    with np.errstate(divide="ignore"):  # a = s takes forever: infinity is the answer
        log_odds_gained = np.log1p(grown) + np.log((singular_value - initial) / (singular_value - strength))
    return log_odds_gained / singular_value**2 + grown / (strength * singular_value)


def _rate(singular_value: float, depth: int) -> float:
    """Scaled time per unit of time."""
    return depth * singular_value ** (2 - 2 / depth)


def _scaled_time(
    strength: np.ndarray, gap: np.ndarray, singular_value: float, initial: float, depth: int
) -> np.ndarray:
    r"""The integral of dx / (x^{2-2/L} (1 - x)) from a_0 / s to a / s, where gap = 1 - a / s.

    The integrand is x^{-(1+b)} + x^{-b} / (1 - x) with b = 1 - 2/L, both positive. The first integrates to a
    power (a logarithm for b = 0: `exprel` knows). The second becomes L y / (1 - y^L) dy with y = x^{1/L},
    whose partial fractions over the L-th roots of unity w integrate to sum_w w^2 log((w - y_0) / (w - y)).
    The terms of that sum cancel to second order in y only where the power dominates them, so the total keeps
    its relative accuracy.
    """
    exponent = 1 - 2 / depth
    growth = np.log1p((strength - initial) / initial)
    power = (initial / singular_value) ** -exponent * growth * scipy.special.exprel(-exponent * growth)

    # 1 - y from whichever of strength and gap is the small, hence the accurate one.
    near = gap < 0.5
    log_ratio = np.where(near, np.log1p(-np.where(near, gap, 0.0)), np.log(strength / singular_value))
    one_minus_y = -np.expm1(log_ratio / depth)
    y_gained = (initial / singular_value) ** (1 / depth) * np.expm1(growth / depth)
    # The root 1 apart from the others: it alone diverges at saturation.
    with np.errstate(divide="ignore"):
        pole = np.log1p(y_gained / one_minus_y)
    roots = np.exp(2j * np.pi * np.arange(1, depth) / depth)
    others = roots**2 * scipy.special.log1p(y_gained[..., None] / (roots - 1 + one_minus_y[..., None]))
    return power + pole + others.sum(axis=-1).real


def _require_mode(singular_value: float, initial: float) -> None:
    require_positive("singular_value", singular_value)
    require_positive("initial", initial)
    require(
        initial < singular_value,
        "initial",
        f"be below singular_value = {singular_value}",
        float(initial),
        "The formulas are those of a mode that grows.",
    )


def _as_strengths(strength: np.ndarray, singular_value: float, initial: float) -> np.ndarray:
    strength = as_vector("strength", strength)
    for extreme in (strength.min(), strength.max()):
        require(
            initial <= extreme <= singular_value,
            "strength",
            f"be from initial = {initial} to singular_value = {singular_value}",
            float(extreme),
            "The mode passes no other strengths.",
        )
    return strength
