r"""Two-layer networks whose layers differ by a multiple of the identity: a matrix Riccati equation, solved.

Cost C(A) = (1/2) ||A - S||_F^2 (whitened inputs). For C = (1/N) ||A X - Y||_F^2 with X X^T / N = I multiply
times by 2 before passing them in. "lambda-balanced" means W_2^T W_2 - W_1 W_1^T = lambda I, conserved by the
flow. A start that is not lambda-balanced for any lambda has no such closed form.
"""

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from saddleflow._backend.checks import require, require_positive
from saddleflow.theory.arrays import as_matrix, as_times

# Largest growth exponent of one substep: e^300 and its square are far from overflow.
_LARGEST_EXPONENT = 300.0


class RiccatiSolution(NamedTuple):
    """Solution of `riccati_flow`.

    Attributes:
        end_to_end: A(t) = W_2 W_1, shape (time, n_out, n_in).
        gram: Q Q^T with Q = [W_1^T; W_2], shape (time, n_in + n_out, n_in + n_out). Its blocks are W_1^T W_1,
            A^T in the first rows and A, W_2 W_2^T in the last: the layers up to a rotation of the hidden
            space.
    """

    end_to_end: Float[np.ndarray, "time n_out n_in"]
    gram: Float[np.ndarray, "time n_in+n_out n_in+n_out"]


def riccati_flow(
    time: Float[np.ndarray, " time"],
    first_layer: Float[np.ndarray, "width n_in"],
    second_layer: Float[np.ndarray, "n_out _"],
    target: Float[np.ndarray, "_ _"],
    tolerance: float = 1e-10,
) -> RiccatiSolution:
    r"""Exact flow of a two-layer network from lambda-balanced layers.

    With Q = [W_1^T; W_2] and F = [[-lambda/2 I, S^T], [S, lambda/2 I]], ::

        d(Q Q^T)/dt = F Q Q^T + Q Q^T F - (Q Q^T)^2
        Q Q^T(t) = e^{Ft} Q_0 [I + Q_0^T (e^{2Ft} - I) F^{-1} Q_0 / 2]^{-1} Q_0^T e^{Ft}

    F may be singular (then (e^{2Ft} - I) F^{-1} means 2t on its kernel) and t large: nothing is inverted but
    a triangular factor, no square of a condition number is taken, and times beyond 300 / ||F|| go in
    substeps.

    >>> first, second = sf.theory.lambda_balanced_layers(np.random.default_rng(0), (2, 2), 2, 1.0, 0.1)
    >>> solution = sf.theory.riccati_flow(np.array([0.0, 10.0]), first, second, np.diag([2.0, 1.0]))
    >>> np.diag(solution.end_to_end[-1])
    array([2.000, 1.000])

    Args:
        time: times, ascending, at least 0, in units of the flow of (1/2) ||A - S||_F^2. The cost of the last
            is one QR factorisation per 300 units of ||F|| t.
        first_layer: W_1(0), shape (width, n_in).
        second_layer: W_2(0), shape (n_out, width).
        target: S, shape (n_out, n_in).
        tolerance: how far from a multiple of the identity W_2^T W_2 - W_1 W_1^T may be, relative to the
            larger of the two terms (Frobenius norms). The multiple itself, lambda, is the mean of its
            diagonal.

    Returns:
        The end-to-end matrix and Q Q^T at each time.

    Raises:
        ValueError: times or shapes do not fit, entries are not finite, or the layers are not lambda-balanced.

    Standing: Fukumizu 1998 (lambda = 0), Braun et al. 2022, Domine et al. 2025 (arXiv 2409.14623), recalled;
    checked against the layer-wise flow for lambda positive, zero and negative and for singular F, and against
    the formula in multiple precision for small starts and large times.
    """
    times = as_times("time", time)
    first_layer = as_matrix("first_layer", first_layer)
    second_layer = as_matrix("second_layer", second_layer)
    target = as_matrix("target", target)
    require_positive("tolerance", tolerance)
    (width, n_in), (n_out, second_width) = first_layer.shape, second_layer.shape
    columns = f"have {width} columns, as first_layer has rows"
    require(second_width == width, "second_layer", columns, f"shape {second_layer.shape}")
    require(target.shape == (n_out, n_in), "target", f"have the end-to-end shape {(n_out, n_in)}", target.shape)

    imbalance = _imbalance(first_layer, second_layer, tolerance)
    flow_matrix = np.block([[-imbalance / 2 * np.eye(n_in), target.T], [target, imbalance / 2 * np.eye(n_out)]])
    exponents, modes = np.linalg.eigh(flow_matrix)
    fastest = np.abs(exponents).max()
    rows = modes.T @ np.vstack([first_layer.T, second_layer])

    gram = np.empty((times.size, n_in + n_out, n_in + n_out))
    for index, interval in enumerate(np.diff(times, prepend=0.0)):
        num_substeps = max(1, int(np.ceil(fastest * interval / _LARGEST_EXPONENT)))
        for _ in range(num_substeps):
            rows = _advance(rows, exponents, interval / num_substeps)
        factor = modes @ rows
        gram[index] = factor @ factor.T
    return RiccatiSolution(end_to_end=gram[:, n_in:, :n_in].copy(), gram=gram)


def lambda_balanced_layers(
    rng: np.random.Generator, shape: tuple[int, int], width: int, imbalance: float, scale: float
) -> tuple[Float[np.ndarray, "width n_in"], Float[np.ndarray, "n_out width"]]:
    r"""Draw random layers with W_2^T W_2 - W_1 W_1^T = lambda I.

    ::

        W_1 = H diag(sqrt(c^2 + max(-lambda, 0))) V^T,     W_2 = U diag(sqrt(c^2 + max(lambda, 0))) H^T

    with H, U, V random orthonormal frames and c normal of standard deviation `scale`.

    Args:
        rng: source of randomness.
        shape: (n_out, n_in).
        width: hidden width. W_2 must have rank `width` if lambda > 0, and W_1 if lambda < 0, which needs
            width <= n_out and width <= n_in respectively. With lambda = 0 any width will do.
        imbalance: lambda.
        scale: size c > 0 of the common part of the singular values of both layers.

    Returns:
        W_1 of shape (width, n_in) and W_2 of shape (n_out, width).

    Raises:
        ValueError: sizes below 1, scale not positive, imbalance not finite, or no such layers exist.

    Standing: derived; checked.
    """
    n_out, n_in = shape
    require_positive("scale", scale)
    require(min(shape) >= 1, "shape", "hold sizes >= 1", shape)
    require(np.isfinite(imbalance), "imbalance", "be finite", imbalance)
    largest = width if imbalance == 0 else n_out if imbalance > 0 else n_in
    require(
        1 <= width <= max(largest, 1),
        "width",
        f"be from 1 to {largest} for shape {shape} and imbalance = {imbalance}",
        width,
        "One layer needs full rank: narrow the network, or choose imbalance = 0 or of the other sign.",
    )
    hidden, left, right = (_frame(rng, size, width) for size in (width, n_out, n_in))
    common = scale * rng.standard_normal(width)
    common[min(n_out, n_in) :] = 0.0
    first = (hidden * np.sqrt(common**2 + max(-imbalance, 0.0))) @ right.T
    second = (left * np.sqrt(common**2 + max(imbalance, 0.0))) @ hidden.T
    return first, second


def _imbalance(first_layer: np.ndarray, second_layer: np.ndarray, tolerance: float) -> float:
    """The lambda of lambda-balanced layers, or a `ValueError`."""
    below, above = first_layer @ first_layer.T, second_layer.T @ second_layer
    difference = above - below
    imbalance = float(np.trace(difference)) / difference.shape[0]
    defect = np.linalg.norm(difference - imbalance * np.eye(difference.shape[0]))
    allowed = tolerance * max(np.linalg.norm(below), np.linalg.norm(above))
    require(
        defect <= allowed,
        "first_layer, second_layer",
        f"have W_2^T W_2 - W_1 W_1^T within {allowed:.3g} of a multiple of the identity",
        f"{defect:.3g} from {imbalance:.3g} times the identity",
        "Draw them by `lambda_balanced_layers`, or raise `tolerance` if they are only rounded.",
    )
    return imbalance


def _advance(rows: np.ndarray, exponents: np.ndarray, interval: float) -> np.ndarray:
    """Advance Q, in the eigenbasis of F and up to a rotation of the hidden space, by one interval.

    With Y = Phi^{1/2} Q_0, Phi = (e^{2Ft} - I) F^{-1} / 2 and the QR factorisation [Y; I] = [B; R^{-1}] R, ::

        Q Q^T(t) = e^{Ft} Q_0 (I + Y^T Y)^{-1} Q_0^T e^{Ft} = Q_t Q_t^T,
        Q_t = e^{Ft} Q_0 R^{-1} = e^{Ft} Phi^{-1/2} B.

    The rows of Y differ by up to e^300. Sorted by size, with pivoted columns, they make Householder QR
    accurate row by row (Cox & Higham 1998). Rows of Y below 1 are modes not yet learned: Q_0 R^{-1} by
    substitution keeps their relative accuracy, which would be lost for good otherwise. For rows above 1
    substitution multiplies the rounding of R by their size; they are learned or crowded out, stable either
    way, and take B with its absolute accuracy.
    """
    growth = np.sqrt(interval * scipy.special.exprel(2 * exponents * interval))
    scaled = growth[:, None] * rows
    stacked = np.vstack([scaled, np.eye(rows.shape[1])])
    order = np.argsort(-np.abs(stacked).max(axis=1), kind="stable")
    basis, triangle, pivots = scipy.linalg.qr(stacked[order], mode="economic", pivoting=True)  # pyright: ignore
    basis = basis[np.argsort(order)][: exponents.size]
    advanced = scipy.linalg.solve_triangular(triangle, rows[:, pivots].T, trans=1, check_finite=False).T
    large = np.linalg.norm(scaled, axis=1) > 1
    advanced[large] = basis[large] / growth[large, None]
    return np.exp(exponents * interval)[:, None] * advanced


def _frame(rng: np.random.Generator, size: int, width: int) -> np.ndarray:
    """Random orthonormal columns, shape (size, width); beyond `size` of them, zeros."""
    frame = np.zeros((size, width))
    frame[:, :size] = np.linalg.qr(rng.standard_normal((size, min(size, width))))[0]
    return frame
