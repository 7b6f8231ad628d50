"""Ends of the spectrum of symmetric operators that are known by their products: Hessians, kernels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float

# An operator smaller than this is made dense.
MIN_LANCZOS = 60

# ... and for an index, which Lanczos iteration finds eigenvalue by eigenvalue, one of up to this size.
MAX_DENSE = 1500

# Eigenvalues below this share of the largest in size count as zero.
ZERO = 1e-8

Vector = Float[Array, " p"]
Product = Callable[[Vector], Vector]


def dense(product: Product, size: int) -> Float[np.ndarray, "p p"]:
    """The operator as a matrix."""
    return np.asarray(jax.lax.map(product, jnp.eye(size)))


def ends(product: Product, size: int) -> tuple[float, float]:
    """Least and largest eigenvalue of a symmetric operator.

    Args:
        product: the operator, compiled, on vectors.
        size: their length.
    """
    if size < MIN_LANCZOS:
        values = np.linalg.eigvalsh(dense(product, size))
        return float(values[0]), float(values[-1])
    least, largest = (_some(product, size, which, 1)[0] for which in ("SA", "LA"))
    return float(least), float(largest)


def index(product: Product, size: int, largest: float) -> int:
    """Number of negative eigenvalues, those below `ZERO` of the largest one in size apart.

    Args:
        product: the operator, compiled, on vectors.
        size: their length.
        largest: size of the largest eigenvalue.
    """
    if size <= MAX_DENSE:
        return int(np.sum(np.linalg.eigvalsh(dense(product, size)) < -ZERO * largest))
    count = 4
    while True:
        negative = int(np.sum(_some(product, size, "SA", count) < -ZERO * largest))
        if negative < count or 2 * count >= size:
            return negative
        count *= 2


def _some(product: Product, size: int, which: str, count: int) -> Float[np.ndarray, " count"]:
    """Some eigenvalues from one end, by Lanczos iteration (ARPACK)."""
    linalg: Any = scipy.sparse.linalg
    operator = linalg.LinearOperator((size, size), lambda v: np.asarray(product(jnp.asarray(v.ravel()))), dtype=float)
    start = np.random.default_rng(0).standard_normal(size)
    if not np.any(operator.matvec(start)):
        return np.zeros(count)  # ARPACK refuses an operator that is zero, as deep nets' Hessians at the origin are
    krylov = min(size - 1, max(40, 4 * count))
    return linalg.eigsh(operator, k=count, which=which, v0=start, ncv=krylov, return_eigenvectors=False)


def leading_eigenvalues(product: Product, start: Vector, count: int, num_products: int) -> Float[Array, " count"]:
    """The algebraically largest eigenvalues of a symmetric operator, in descending order; a pure function of arrays.

    Lanczos iteration with full re-orthogonalisation from one start vector. Eigenvalues that lie apart from the rest,
    as those of a Hessian at the top of its spectrum, converge first; with as many products as the operator has rows
    all are exact. An eigenvalue of several eigenvectors is found once.

    Args:
        product: the operator on vectors of length p.
        start: a vector with a share of every eigenvector.
        count: how many; missing ones (p < count) are NaN.
        num_products: length of the iteration, at most p are done.
    """
    size = start.shape[0]
    length = min(num_products, size)
    kept = min(count, length)

    def step(carry, row):
        basis, vector = carry
        basis = basis.at[row].set(vector)
        image = product(vector)
        diagonal = vector @ image
        # twice is enough
        image = image - basis.T @ (basis @ image)
        image = image - basis.T @ (basis @ image)
        beta = jnp.linalg.norm(image)
        found = beta > 1e-12 * jnp.abs(diagonal)
        image = jnp.where(found, image / jnp.where(found, beta, 1.0), 0.0)
        return (basis, image), (diagonal, jnp.where(found, beta, 0.0))

    first = start / jnp.linalg.norm(start)
    carry = jnp.zeros((length, size)), first
    _, (diagonal, beta) = jax.lax.scan(step, carry, jnp.arange(length))
    # an invariant space: what follows has zero rows, whose eigenvalues are none of the operator's
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(beta[:-1] > 0).astype(bool)])
    diagonal = jnp.where(alive, diagonal, -jnp.inf)
    finite = jnp.where(alive, diagonal, 0.0)
    off = jnp.where(alive[1:], beta[:-1], 0.0)
    low = jnp.min(finite) - 2 * jnp.max(jnp.abs(beta)) - 1.0
    matrix = jnp.diag(jnp.where(alive, finite, low)) + jnp.diag(off, 1) + jnp.diag(off, -1)
    values = jnp.linalg.eigvalsh(matrix)[::-1][:kept]
    values = jnp.where(jnp.arange(kept) < jnp.sum(alive), values, jnp.nan)
    return jnp.concatenate([values, jnp.full(count - kept, jnp.nan)])
