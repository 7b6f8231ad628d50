"""What is left at the end of a run: the gradient of the cost, and a direction that a longer flow would learn."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float

from saddleflow.problem.costs import Cost
from saddleflow.problem.geometry import ROUNDING

# A direction of A is learned where it has this many times what its curvature says is to come, at least.
LEARNED = 2.0

# A gradient counts where it exceeds its rounding by this factor, and the error of the last Newton step by the other.
WELL_ABOVE, BEYOND_LINEAR = 1e3, 10.0

# Of larger matrices what is left is not looked for: it takes minutes.
MAX_ENTRIES = 100_000

# Newton steps, and products of one step's conjugate gradients: beyond them there is no verdict.
MAX_STEPS, MAX_PRODUCTS, CG_TOLERANCE = 6, 500, 1e-6


@dataclass(frozen=True)
class Residual:
    """The gradient of the cost at the end of a run.

    Attributes:
        norm: |grad C(A)|_F, in units of the cost over those of the target.
        unit: what the certificate measures it by: |grad C(0)|_F, or its value at the start where that is zero.
    """

    norm: float
    unit: float
    _cost: Cost = field(repr=False)
    _end: Float[np.ndarray, "n_out n_in"] = field(repr=False)

    @cached_property
    def left(self) -> float | None:
        """The largest singular value of grad C outside the learned directions, at the end of the tail.

        The flow would still escape along it. None where there is none, or where that is not resolved, or A has more
        than 100,000 entries. Computed when first asked for, by Newton steps.
        """
        return None if self._end.size > MAX_ENTRIES else _left(self._cost, self._end, self.unit)

    @property
    def relative(self) -> float:
        """`norm` over `unit`, what `gradient_tolerance` is compared with; 0 for a gradient that is always zero."""
        return self.norm / self.unit if self.unit > 0 else 0.0


def residual(cost: Cost, start: Float[np.ndarray, "n_out n_in"], end: Float[np.ndarray, "n_out n_in"]) -> Residual:
    """The gradient of the cost at the end of a run, and what is left to learn.

    Args:
        cost: the cost C.
        start: A at the start.
        end: A at the end, finite.
    """
    unit = float(np.linalg.norm(_gradient(cost, np.zeros(cost.shape))))
    unit = unit if unit > 0 else float(np.linalg.norm(_gradient(cost, start)))
    return Residual(float(np.linalg.norm(_gradient(cost, end))), unit, cost, end)


def _left(cost: Cost, matrix: Float[np.ndarray, "n_out n_in"], unit: float) -> float | None:
    """What grad C will be outside the learned directions once their tail is over.

    Unlearned directions are dropped from A. Newton steps on the matrices of that rank end the tail; the gradient that
    is then left, normal to them all, is that of a saddle. (It vanishes at a minimum, although on the way there it may
    be larger than the gradient in the tangent space.) Standing: derived.
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    gradient = _gradient(cost, matrix)
    curvatures, slopes = np.zeros((2, len(values)))
    for index in np.flatnonzero(values > ROUNDING * values[0]):
        pair = np.outer(left[:, index], right[index])
        curvatures[index] = np.sum(pair * _product(cost, matrix, pair))
        slopes[index] = abs(np.sum(pair * gradient))
    learned = values * curvatures > LEARNED * slopes
    if learned.all():
        return None
    point, rank = (left[:, learned] * values[learned]) @ right[learned], int(learned.sum())
    for _ in range(MAX_STEPS):
        step, outside = _newton_step(cost, point, rank)
        if step is None or outside <= WELL_ABOVE * ROUNDING * unit:
            return None
        if rank == 0:
            return outside
        left, values, right = np.linalg.svd(point + step, full_matrices=False)
        if outside > BEYOND_LINEAR * np.max(curvatures) * np.sum(step**2) / values[rank - 1]:
            return outside
        point = (left[:, :rank] * values[:rank]) @ right[:rank]
    return None


def _newton_step(
    cost: Cost, point: Float[np.ndarray, "n_out n_in"], rank: int
) -> tuple[Float[np.ndarray, "n_out n_in"] | None, float]:
    """The step to the minimum in the tangent space of a rank, or None, and |grad C|_2 normal to it after the step."""
    left, _, right = np.linalg.svd(point, full_matrices=False)
    u, v = left[:, :rank], right[:rank].T

    def normal(m: np.ndarray) -> np.ndarray:
        half = m - u @ (u.T @ m)
        return half - (half @ v) @ v.T

    def tangent_product(flat: np.ndarray) -> np.ndarray:
        inside = flat.reshape(point.shape)
        curved = _product(cost, point, inside - normal(inside))
        return (curved - normal(curved)).ravel()

    gradient = _gradient(cost, point)
    linalg: Any = scipy.sparse.linalg
    operator = linalg.LinearOperator((point.size, point.size), tangent_product, dtype=float)
    aim = (normal(gradient) - gradient).ravel()
    solution, failed = linalg.cg(operator, aim, rtol=CG_TOLERANCE, maxiter=MAX_PRODUCTS)
    if failed:
        return None, np.nan
    step = solution.reshape(point.shape)
    return step, float(np.linalg.norm(normal(gradient + _product(cost, point, step)), 2))


@eqx.filter_jit
def _jitted_gradient(cost: Cost, matrix: Float[Array, "n_out n_in"]) -> Float[Array, "n_out n_in"]:
    return cost.gradient(matrix)


@eqx.filter_jit
def _jitted_product(
    cost: Cost, matrix: Float[Array, "n_out n_in"], direction: Float[Array, "n_out n_in"]
) -> Float[Array, "n_out n_in"]:
    return jax.jvp(cost.gradient, (matrix,), (direction,))[1]


def _gradient(cost: Cost, matrix: np.ndarray) -> np.ndarray:
    return np.asarray(_jitted_gradient(cost, jnp.asarray(matrix)))


def _product(cost: Cost, matrix: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The Hessian of the cost at a matrix, applied to a direction."""
    return np.asarray(_jitted_product(cost, jnp.asarray(matrix), jnp.asarray(direction)))
