r"""Wide networks with Gaussian layers: a kernel that stands still, one that does not, and how plateaus scale.

Cost C(A) = (1/2) ||A - S||_F^2 (whitened inputs). For C = (1/N) ||A X - Y||_F^2 with X X^T / N = I multiply
times by 2 before passing them in. Every entry of every layer starts as N(0, sigma^2), sigma^2 = w^-gamma, and
all L - 1 hidden layers have width w.
"""

import numpy as np
from jaxtyping import Float

from saddleflow._backend.checks import require, require_integer, require_positive
from saddleflow.theory.arrays import as_matrix, as_times
from saddleflow.theory.integration import integrate


def lazy_flow(
    times: Float[np.ndarray, " time"],
    start: Float[np.ndarray, "n_out n_in"],
    target: Float[np.ndarray, "n_out n_in"],
    rate: float,
) -> Float[np.ndarray, "time n_out n_in"]:
    r"""End-to-end matrix where the tangent kernel is a constant multiple of the identity.

    ::

        A(t) = S + e^{-rate t} (A_0 - S)

    the limit of infinite width for gamma < 1, with the rate of `ntk_rate`. At finite width the relative
    error is that of the kernel: fluctuations of order w^{-1/2}, and its motion during training, which is small
    only where ||S - A_0|| is small beside w^{(1-gamma) L/2}.

    >>> sf.theory.lazy_flow(np.array([0.0, 1.0]), np.zeros((1, 1)), np.eye(1), rate=2.0)[-1]  # 1 - exp(-2)
    array([[0.8647]])

    Args:
        times: ascending, at least 0, in units of the flow of C.
        start: A_0, shape (n_out, n_in).
        target: S, of the same shape.
        rate: of the decay, in inverse time.

    Returns:
        A at each time, shape (time, n_out, n_in).

    Raises:
        ValueError: times not ascending, shapes that differ, or a rate that is not positive.

    Standing: derived; checked against wide networks, integrated layer by layer.
    """
    times = as_times("times", times)
    start, target = _as_pair(start, target)
    require_positive("rate", rate)
    return target + np.exp(-rate * times)[:, None, None] * (start - target)


def ntk_rate(depth: int, width: int, gamma: float) -> float:
    r"""Multiple of the identity that the tangent kernel of a wide Gaussian network is at the start.

    ::

        K -> L (w sigma^2)^{L-1} Id = L w^{(1-gamma)(L-1)} Id,     dA/dt = -K[grad C(A)]

    >>> print(f"{sf.theory.ntk_rate(depth=3, width=100, gamma=0.75):.4f}")  # 3 * 100^(0.25 * 2)
    30.0000

    Args:
        depth: L >= 2, the number of layers.
        width: w >= 1.
        gamma: exponent of the variance w^-gamma of the entries.

    Returns:
        L w^{(1-gamma)(L-1)}, in inverse time of the flow of C.

    Raises:
        ValueError: depth or width out of range, or gamma not finite.

    Standing: derived; checked, a ratio of 0.998 at w = 100 and of 1.026 at w = 300 (docs/theory.md, section 1).
    """
    require_integer("depth", depth, 2)
    require_integer("width", width, 1)
    require(np.isfinite(gamma), "gamma", "be finite", gamma)
    return float(depth * float(width) ** ((1 - gamma) * (depth - 1)))


def wide_two_layer_flow(
    times: Float[np.ndarray, " time"],
    start: Float[np.ndarray, "n_out n_in"],
    target: Float[np.ndarray, "n_out n_in"],
    scale: float,
) -> Float[np.ndarray, "time n_out n_in"]:
    r"""End-to-end matrix of a wide two-layer network from Gaussian layers, lazy or not.

    ::

        dA/dt = -( sqrt(A A^T + c^2 I) G + G sqrt(A^T A + c^2 I) ),     G = A - S,     c = sigma^2 w

    For c large beside ||A|| it is lazy, at rate 2 c; for c -> 0 it is the balanced flow. Integrated by SciPy's
    DOP853 to 1e-10, one SVD an evaluation.

    Not exact at finite width: the largest distance in A along the flow, relative to the largest ||A||, came to
    .050, .016 and .004 at w = 50, 400 and 3200 in the example of docs/theory.md, section 7.6, and to .020 to
    .073, .005 to .034 and .002 to .009 over nine starts of a 2 x 3 target (gamma = .75, 1 and 1.5).

    >>> matrices = sf.theory.wide_two_layer_flow(np.array([0.0, 5.0]), np.zeros((2, 2)), np.eye(2), scale=0.1)
    >>> np.diag(matrices[-1])
    array([0.999, 0.999])

    Args:
        times: ascending, at least 0, in units of the flow of C.
        start: A_0 = W_2 W_1 of the network in question, shape (n_out, n_in).
        target: S, of the same shape.
        scale: c = sigma^2 w = w^{1-gamma}, positive.

    Returns:
        A at each time, shape (time, n_out, n_in).

    Raises:
        ValueError: times not ascending, shapes that differ, or a scale that is not positive.
        RuntimeError: the integrator gave up; its message is passed on.

    Standing: Tu, Aranguri & Jacot 2024, read in their code; checked against networks of widths 50 to 3200
    (docs/theory.md, section 7.6).
    """
    times = as_times("times", times)
    start, target = _as_pair(start, target)
    require_positive("scale", scale)

    def velocity(matrix: np.ndarray) -> np.ndarray:
        left, strengths, right = np.linalg.svd(matrix)
        rows, columns = (np.hypot(np.pad(strengths, (0, size - strengths.size)), scale) for size in matrix.shape)
        gradient = left.T @ (matrix - target) @ right.T
        return -left @ ((rows[:, None] + columns) * gradient) @ right

    size = float(np.linalg.norm(start) + np.linalg.norm(target)) + scale
    return integrate("the wide flow", velocity, start, times, rtol=1e-10, atol=1e-13 * size)


def plateau_exponent(depth: int, gamma: float) -> float:
    r"""Exponent of the width in the time a Gaussian start needs to leave the origin.

    ::

        gamma >= 1, L > 2:  T ~ w^{(gamma-1)(L-2)/2}
        gamma >= 1, L = 2:  T ~ ((gamma-1)/2) log(w) / s_1(S): exponent 0
        gamma < 1:          T ~ w^{-(1-gamma)(L-1)}, the inverse of `ntk_rate`: no plateau, only a time scale

    For gamma >= 1 the start is alpha theta_0 with alpha = w^{-(gamma-1)/2} and theta_0 the one of gamma = 1,
    whose escape time does not depend on the width to leading order; escape times scale as alpha^{-(L-2)}.

    >>> sf.theory.plateau_exponent(depth=4, gamma=2.0)
    1.0

    Args:
        depth: L >= 2, the number of layers.
        gamma: exponent of the variance, at least 1 - 1/L (where A_theta is of order one).

    Returns:
        The exponent.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: derived; for gamma >= 1 checked with networks of widths 25 to 400, L = 3: .251 and .268 for .25,
    .487 and .495 for .5; L = 4: .494 and .508 for .5, .984 and .992 for 1 (docs/theory.md, section 3).
    """
    require_integer("depth", depth, 2)
    require(1 - 1 / depth <= gamma < np.inf, "gamma", f"be finite and at least 1 - 1/L = {1 - 1 / depth}", gamma)
    if gamma < 1:
        return (gamma - 1) * (depth - 1)
    return (gamma - 1) * (depth - 2) / 2


def _as_pair(start: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    start, target = as_matrix("start", start), as_matrix("target", target)
    require(target.shape == start.shape, "target", f"have the start's shape {start.shape}", target.shape)
    return start, target
