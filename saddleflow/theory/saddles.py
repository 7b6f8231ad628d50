r"""The saddles that a small start visits: their Hessians, how fast they are left, the least norm of an answer.

Cost C(A) = (1/2) ||A - S||_F^2 (whitened inputs). The balanced saddle of rank k has A_k = sum_{i <= k} s_i u_i
v_i^T, the k largest modes of S, factored with W_{l+1}^T W_{l+1} = W_l W_l^T; of its w hidden neurons in each
layer k are in use, w - k are dead.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from saddleflow._backend.checks import require, require_integer
from saddleflow.theory.arrays import as_matrix, as_vector
from saddleflow.theory.escape import optimal_speed


class SaddleHessian(NamedTuple):
    """What is known of a Hessian's spectrum.

    Attributes:
        least: smallest eigenvalue.
        index: number of negative eigenvalues.
        largest: largest eigenvalue.
    """

    least: float
    index: int
    largest: float


def saddle_hessian(singular_values: Float[np.ndarray, " mode"], rank: int, width: int, depth: int) -> SaddleHessian:
    r"""Ends of the spectrum of the Hessian at the balanced saddle of rank k, and its index.

    ::

        L = 2:  least -s_{k+1},  index (r-k)(w-k),  largest 2 s_1 (k >= 1), s_1 (k = 0)
        L > 2:  least 0,         index 0,           largest L s_1^{2-2/L} (k >= 1), 0 (k = 0)

    with r the number of nonzero singular values, for every n_out and n_in of at least r. For L = 2 each dead
    neuron carries the eigenvalues +-s_i, i > k, and zeros. A mode i <= k in use and one j > k that is not give
    s_i^{1-2/L} (s_i +- s_j), never negative, for every L; two modes i, j in use give
    sum_l s_i^{2(L-l)/L} s_j^{2(l-1)/L}; the rest is zero. Without a dead neuron (w = k), or for k = r, which is
    a global minimum, least and index are 0.

    >>> sf.theory.saddle_hessian(np.array([3.0, 2.0, 1.0]), rank=1, width=4, depth=2)
    SaddleHessian(least=-2.0, index=6, largest=6.0)

    Args:
        singular_values: those of S, non-negative, not all zero, in any order.
        rank: k, from 0 to r.
        width: w >= k, the width of all hidden layers.
        depth: L >= 2, the number of layers.

    Returns:
        Least eigenvalue, index and largest eigenvalue, in inverse time of the flow of C.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: derived; checked against dense Hessians, square and rectangular.
    """
    require_integer("depth", depth, 2)
    strengths = _as_strengths(singular_values, rank)
    require_integer("width", width, max(rank, 1), "A network of this rank needs as many hidden neurons.")
    largest = depth * strengths[0] ** (2 - 2 / depth) if rank else (strengths[0] if depth == 2 else 0.0)
    index = (strengths.size - rank) * (width - rank) if depth == 2 else 0
    return SaddleHessian(-float(strengths[rank]) if index else 0.0, index, float(largest))


def saddle_escape_speed(singular_values: Float[np.ndarray, " mode"], rank: int, depth: int) -> float:
    r"""Speed of the fastest escape from the balanced saddle of rank k by a dead neuron.

    ::

        s*_k = L^{-(L-2)/2} s_{k+1}

    It is `saddleflow.theory.escape_speed` of grad C(A_k) = A_k - S; the norm of the neuron that grows follows
    `saddleflow.theory.escape_norm` as long as it is small.

    >>> sf.theory.saddle_escape_speed(np.array([3.0, 2.0, 1.0]), rank=1, depth=4)  # 2 / 4
    0.5

    Args:
        singular_values: those of S, non-negative, not all zero, in any order.
        rank: k, from 0 to the number r of nonzero singular values.
        depth: L >= 2, the number of layers.

    Returns:
        s*_k, in inverse time of the flow of C (for a neuron of norm 1); 0 for k = r, the global minimum.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: derived; checked at L = 2 as the least eigenvalue of the Hessian, at L = 3 and 4 against the flow
    of the layers.
    """
    require_integer("depth", depth, 2)
    strengths = np.append(_as_strengths(singular_values, rank), 0.0)
    return optimal_speed(strengths[rank], depth)


def minimal_norm(matrix: Float[np.ndarray, "n_out n_in"], depth: int) -> float:
    r"""Least norm of the parameters of any network that realises A.

    ::

        min ||theta|| = sqrt( L sum_i s_i(A)^{2/L} )

    over all widths of at least the rank of A; attained where the layers are balanced. Up to the root it is L
    times the Schatten quasi-norm of exponent 2/L.

    >>> sf.theory.minimal_norm(np.diag([3.0, 1.0]), depth=2)  # (2 (3 + 1))^(1/2)
    2.8284

    Args:
        matrix: A, shape (n_out, n_in).
        depth: L >= 2, the number of layers.

    Returns:
        The norm.

    Raises:
        ValueError: depth below 2, or A not a matrix of finite numbers.

    Standing: textbook result, derived; checked against constrained minimisation.
    """
    require_integer("depth", depth, 2)
    strengths = np.linalg.svd(as_matrix("matrix", matrix), compute_uv=False)
    return float(np.sqrt(depth * np.sum(strengths ** (2 / depth))))


def _as_strengths(singular_values: np.ndarray, rank: int) -> np.ndarray:
    """The nonzero ones, largest first, at least `rank` of them."""
    strengths = as_vector("singular_values", singular_values)
    require(strengths.min() >= 0, "singular_values", "not be negative", float(strengths.min()))
    strengths = np.sort(strengths[strengths > 0])[::-1]
    require(strengths.size > 0, "singular_values", "not all be zero", 0.0, "The origin is a minimum then.")
    require_integer("rank", rank, 0)
    require(rank <= strengths.size, "rank", f"be at most {strengths.size}, the rank of the target", rank)
    return strengths
