"""Arrays that the closed forms take: float64, finite, of the right number of axes."""

import numpy as np
from jaxtyping import Float

from saddleflow._backend.checks import require, require_finite


def as_vector(argument: str, values: np.ndarray) -> Float[np.ndarray, "_"]:
    """Return the values in float64; refuse all but vectors, not empty, of finite numbers."""
    vector = np.asarray(values, dtype=np.float64)
    require(vector.ndim == 1 and vector.size > 0, argument, "be a vector, not empty", f"shape {vector.shape}")
    require_finite(argument, vector)
    return vector


def as_times(argument: str, values: np.ndarray) -> Float[np.ndarray, "_"]:
    """Return the values in float64; refuse all but vectors of non-negative numbers in ascending order."""
    times = as_vector(argument, values)
    require(times.min() >= 0, argument, "be at least 0", float(times.min()), "The start is at time 0.")
    descents = np.flatnonzero(np.diff(times) < 0)
    if descents.size:
        pair = times[descents[0] : descents[0] + 2].tolist()
        require(False, argument, "ascend", f"{pair[1]} after {pair[0]}", f"Pass `np.sort({argument})`.")
    return times


def as_matrix(argument: str, values: np.ndarray) -> Float[np.ndarray, "_ _"]:
    """Return the values in float64; refuse all but matrices, not empty, of finite numbers."""
    matrix = np.asarray(values, dtype=np.float64)
    require(matrix.ndim == 2 and matrix.size > 0, argument, "be a matrix, not empty", f"shape {matrix.shape}")
    require_finite(argument, matrix)
    return matrix
