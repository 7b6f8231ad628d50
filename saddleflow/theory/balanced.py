r"""The flow of the end-to-end matrix itself, closed when the layers are balanced.

Any differentiable cost C, any normalisation: only its gradient enters. If W_{l+1}^T W_{l+1} = W_l W_l^T for
all l at the start, then for all time, and A = W_L ... W_1 obeys an equation of its own (Arora, Cohen & Hazan
2018).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from saddleflow._backend.checks import require, require_integer
from saddleflow.theory.arrays import as_matrix, as_times
from saddleflow.theory.integration import integrate


def balanced_vector_field(
    matrix: Float[np.ndarray, "n_out n_in"], gradient: Float[np.ndarray, "_ _"], depth: int
) -> Float[np.ndarray, "n_out n_in"]:
    r"""Velocity of the end-to-end matrix A of a balanced network of depth L.

    ::

        dA/dt = - sum_{l=1}^{L} (A A^T)^{(L-l)/L} G (A^T A)^{(l-1)/L},     G = grad C(A)

    Powers of exponent 0 are the identity, on the kernel too. In the singular bases of A the sum is an
    entrywise product, so A may be rectangular and of any rank.

    >>> matrix, gradient = np.diag([4.0, 1.0]), np.eye(2)
    >>> sf.theory.balanced_vector_field(matrix, gradient, depth=2)  # minus twice the matrix
    array([[-8.,  0.],
           [ 0., -2.]])

    Args:
        matrix: A, shape (n_out, n_in).
        gradient: G, of the same shape.
        depth: L >= 2, the number of layers. Hidden widths must be at least the rank of A for a balanced
            network with this A to exist; its width does not matter otherwise.

    Returns:
        dA/dt, shape (n_out, n_in), in units of the flow of whatever cost G is the gradient of.

    Raises:
        ValueError: depth below 2, a matrix with entries that are not finite, or shapes that differ.

    Standing: Arora, Cohen & Hazan 2018 (arXiv 1802.06509); checked against the layer-wise flow.
    """
    require_integer("depth", depth, 2)
    matrix = as_matrix("matrix", matrix)
    gradient = as_matrix("gradient", gradient)
    require(gradient.shape == matrix.shape, "gradient", f"have the matrix's shape {matrix.shape}", gradient.shape)

    left, strengths, right = np.linalg.svd(matrix)
    rows, columns = (np.pad(strengths, (0, size - strengths.size)) for size in matrix.shape)
    layer = np.arange(1, depth + 1)
    # sum_l sigma_i^{2(L-l)/L} tau_j^{2(l-1)/L}; NumPy's 0^0 = 1 is the identity on the kernel.
    weights = rows[:, None] ** (2 * (depth - layer) / depth) @ (columns[:, None] ** (2 * (layer - 1) / depth)).T
    return -left @ (weights * (left.T @ gradient @ right.T)) @ right


def balanced_flow(
    cost_gradient: Callable[[Float[np.ndarray, "n_out n_in"]], Float[np.ndarray, "n_out n_in"]],
    initial: Float[np.ndarray, "n_out n_in"],
    depth: int,
    times: Float[np.ndarray, " time"],
    rtol: float = 1e-10,
) -> Float[np.ndarray, "time n_out n_in"]:
    r"""End-to-end matrix of a balanced network along the flow, by SciPy's DOP853 on `balanced_vector_field`.

    A numerical solution, but one without layers: an oracle for anything that integrates them. It costs one
    SVD of an n_out x n_in matrix per evaluation, whatever the width, and is explicit: long stiff tails are
    expensive.

    The velocity is not Lipschitz where a singular value vanishes and L > 2, and unlearned directions grow
    exponentially for L = 2. A start of exact rank r < min(n_out, n_in) stays of rank r in exact arithmetic;
    here rounding acts as a start of size 1e-16 in the other directions, which long flows bring up.

    >>> target = np.diag([2.0, 1.0])
    >>> matrices = sf.theory.balanced_flow(lambda a: a - target, 0.01 * np.eye(2), 2, np.array([0.0, 1.0]))
    >>> np.diag(matrices[-1]), sf.theory.two_layer_mode(np.array([1.0]), 2.0, 0.01)
    (array([0.430588, 0.069453]), array([0.430588]))

    Args:
        cost_gradient: the function A -> grad C(A), shapes (n_out, n_in) to (n_out, n_in).
        initial: A(0), shape (n_out, n_in), not zero (zero is a saddle and stays).
        depth: L >= 2, the number of layers.
        times: where to return A, ascending, at least 0, in units of the flow of C.
        rtol: relative tolerance of the steps, from 1e-13 to below 1; the absolute one is 1e-3 * rtol times
            the smallest singular value of `initial` that is not rounding, so that small modes are resolved
            too.

    Returns:
        A at each time, shape (time, n_out, n_in).

    Raises:
        ValueError: an argument is out of the range above, or the gradient is not of A's shape.
        RuntimeError: the integrator gave up; its message is passed on.

    Standing: as `balanced_vector_field`.
    """
    require_integer("depth", depth, 2)
    initial = as_matrix("initial", initial)
    times = as_times("times", times)
    require(1e-13 <= rtol < 1, "rtol", "be from 1e-13, near float64 rounding, to below 1", rtol)
    strengths = np.linalg.svd(initial, compute_uv=False)
    require(strengths[0] > 0, "initial", "be nonzero", "the zero matrix", "The flow never leaves that saddle.")
    smallest = strengths[strengths > 1e-13 * strengths[0]][-1]

    def velocity(matrix: np.ndarray) -> np.ndarray:
        return balanced_vector_field(matrix, cost_gradient(matrix), depth)

    return integrate("the balanced flow", velocity, initial, times, rtol=rtol, atol=1e-3 * rtol * smallest)
