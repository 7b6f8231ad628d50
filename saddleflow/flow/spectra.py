"""Functions of a spectrum: they take singular values in descending order with any leading axes."""

import numpy as np
from jaxtyping import Array, Float, Int

# The paper cuts at 1e-1 where the targets' singular values are of order 10.
RELATIVE_RANK_TOLERANCE = 1e-2


def rank(singular_values: Float[np.ndarray, "*time n"], tolerance: float) -> Int[np.ndarray, "*time"]:
    """Number of singular values above an absolute tolerance."""
    return np.sum(singular_values > tolerance, axis=-1)


# Columns beyond the rank that a random projection of a matrix takes, and the share of its columns that makes it pay.
OVERSAMPLED, WORTHWHILE = 8, 0.5


def singular_values(
    matrices: Float[np.ndarray, "rows n_out n_in"], most: int | None = None
) -> Float[np.ndarray, "rows n"]:
    """Singular values of every matrix, in descending order; NaN where one is not finite.

    Args:
        matrices: shape (rows, n_out, n_in).
        most: no matrix has a larger rank, as that of a network is at most its smallest hidden width; None: any may.
            Of small rank, the values are those of the matrix on its range, which random combinations of its columns
            span: to rounding of the largest, as by a decomposition of all of it.
    """
    rows, n_out, n_in = matrices.shape
    size = min(n_out, n_in)
    values = np.full((rows, size), np.nan)
    count = size if most is None else most + OVERSAMPLED
    mixing = np.random.default_rng(0).standard_normal((n_in, min(count, size))) if count < WORTHWHILE * size else None
    finite = np.isfinite(matrices).all(axis=(1, 2))
    if mixing is None:
        values[finite] = np.linalg.svd(matrices[finite], compute_uv=False)
        return values
    for row in np.flatnonzero(finite):
        frame = np.linalg.qr(matrices[row] @ mixing)[0]
        values[row] = 0.0
        values[row, : frame.shape[1]] = np.linalg.svd(frame.T @ matrices[row], compute_uv=False)
    return values


def default_rank_tolerance(
    singular_values: Float[np.ndarray, "time n"], train_cost: Float[np.ndarray, " time"]
) -> float:
    """A hundredth of the largest singular value until the cost has fallen half-way.

    Not of all the run: where observed entries leave it the freedom, a singular value grows without end.

    The default fits targets whose singular values are of one order. It is a resolution, no statistical test: of a
    teacher of rank 5 under noise the flow learns the noise as well, direction by direction, and what is above a
    hundredth counts. `rank_gap` then is near 1, and an absolute tolerance between signal and noise (for n x m noise
    of standard deviation sigma they part at `sigma (sqrt(n) + sqrt(m))`) gives the rank of the teacher.
    """
    finite = np.isfinite(train_cost) & np.isfinite(singular_values).all(axis=-1)
    values, costs = singular_values[finite], train_cost[finite]
    if not len(costs):
        return 0.0
    half = np.argmax(costs <= (costs[0] + costs.min()) / 2)
    return float(RELATIVE_RANK_TOLERANCE * values[: half + 1].max())


def rank_gap(
    singular_values: Float[np.ndarray, "*time n"], ranks: Int[np.ndarray, "*time"]
) -> Float[np.ndarray, "*time"]:
    """The last singular value that counts over the first that does not.

    Infinite where all count or the next is zero; NaN where none counts.
    """
    ends = [np.full((*ranks.shape, 1), end) for end in (np.nan, 0.0)]
    padded = np.concatenate([ends[0], singular_values, ends[1]], axis=-1)
    last, after = (np.take_along_axis(padded, ranks[..., None] + k, axis=-1)[..., 0] for k in (0, 1))
    return np.where(after > 0, last / np.where(after > 0, after, 1.0), np.where(ranks > 0, np.inf, np.nan))


def nuclear_norm(singular_values: Float[np.ndarray, "*time n"]) -> Float[np.ndarray, "*time"]:
    """Sum of the singular values."""
    return np.sum(singular_values, axis=-1)


def stable_rank(singular_values: Float[Array | np.ndarray, "*time n"]) -> Float[Array | np.ndarray, "*time"]:
    """`|A|_F^2 / |A|_2^2`; zero for the zero matrix."""
    return (_over(singular_values, singular_values[..., :1]) ** 2).sum(axis=-1)


def effective_rank(singular_values: Float[Array | np.ndarray, "*time n"]) -> Float[Array | np.ndarray, "*time"]:
    """Exponential of the entropy of s / sum(s) (Roy and Vetterli 2007); zero for the zero matrix."""
    xp = singular_values.__array_namespace__()
    scaled = _over(singular_values, singular_values[..., :1])
    share = _over(scaled, scaled.sum(axis=-1, keepdims=True))
    entropy = -(share * xp.log(xp.where(share > 0, share, 1.0))).sum(axis=-1)
    return xp.where(singular_values[..., 0] > 0, xp.exp(entropy), 0.0)


def _over(
    values: Float[Array | np.ndarray, "*time n"], unit: Float[Array | np.ndarray, "*time 1"]
) -> Float[Array | np.ndarray, "*time n"]:
    """The quotient; zero where the unit is."""
    xp = values.__array_namespace__()
    return xp.where(unit > 0, values / xp.where(unit > 0, unit, 1.0), 0.0)
