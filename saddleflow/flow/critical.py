"""The stationary point of a model's loss near a given point, and what the Hessian looks like there."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int

from saddleflow._backend.checks import require_integer, require_positive
from saddleflow.flow.model_landscape import ModelLandscape, Vector
from saddleflow.problem import geometry, spectrum
from saddleflow.problem.stationary import INITIAL_DAMPING, MAX_DENSE


@dataclass(frozen=True)
class CriticalPoint:
    """A point where the gradient of a model's loss vanishes, near a given one.

    Attributes:
        model: the model there.
        loss: the loss there.
        gradient_norm: |grad| there.
        distance: Euclidean distance of the trainable parameters from the given point.
        converged: whether `gradient_norm` is within the tolerance asked for.
        index: number of negative eigenvalues of the Hessian; those below 1e-8 of the largest count as zero. None
            where the search did not converge.
        hessian_range: least and largest eigenvalue of the Hessian; None likewise.
        num_steps: steps taken, accepted or not.
    """

    model: Any
    loss: float
    gradient_norm: float
    distance: float
    converged: bool
    index: int | None
    hessian_range: tuple[float, float] | None
    num_steps: int


def nearest_critical_point(
    landscape: ModelLandscape, theta: Vector, *, rtol: float = 1e-10, max_steps: int = 200
) -> CriticalPoint:
    """The stationary point that Levenberg-Marquardt on `grad = 0` finds; matrix-free beyond 1000 entries.

    "Converged" means a gradient of at most `rtol` of what it changes by where every entry changes by its own size.

    Args:
        landscape: the loss.
        theta: the point to start from.
        rtol: relative tolerance of the gradient.
        max_steps: steps at most.

    Raises:
        ValueError: rtol or max_steps out of range.
    """
    require_positive("rtol", rtol)
    require_integer("max_steps", max_steps, 1)
    point, gradient_norm, converged, num_steps, loss = _search(landscape, theta, jnp.asarray(rtol), max_steps)
    index = ends = None
    if bool(converged):
        ends, index = hessian_ends(landscape, point), hessian_index(landscape, point)
    return CriticalPoint(
        model=landscape.model(point),
        loss=float(loss),
        gradient_norm=float(gradient_norm),
        distance=float(jnp.linalg.norm(point - theta)),
        converged=bool(converged),
        index=index,
        hessian_range=ends,
        num_steps=int(num_steps),
    )


@eqx.filter_jit
def _search(
    landscape: ModelLandscape, theta: Vector, rtol: Float[Array, ""], max_steps: int
) -> tuple[Vector, Float[Array, ""], Bool[Array, ""], Int[Array, ""], Float[Array, ""]]:
    size, unit = landscape.length(theta), landscape.gradient_unit(theta)

    def residuals(displacement: Vector, _: Any) -> Vector:
        return landscape.gradient(theta + size * displacement) / (unit * INITIAL_DAMPING)

    dense = theta.size <= MAX_DENSE
    solution = optx.least_squares(
        residuals,
        optx.LevenbergMarquardt(
            rtol=1e-14, atol=1e-14, linear_solver=lx.QR() if dense else lx.LSMR(rtol=1e-10, atol=1e-14)
        ),
        jnp.zeros_like(theta),
        options={"jac": "fwd"},
        max_steps=max_steps,
        throw=False,
    )
    point = theta + size * solution.value
    gradient_norm = geometry.norm(landscape.gradient(point))
    loss = landscape.loss(point, landscape.outputs(point))
    converged = gradient_norm <= rtol * landscape.gradient_unit(point)
    return point, gradient_norm, converged, solution.stats["num_steps"], loss


def hessian_ends(landscape: ModelLandscape, theta: Vector) -> tuple[float, float]:
    """Least and largest eigenvalue of the Hessian of the loss."""
    return spectrum.ends(lambda v: _product(landscape, theta, v), theta.size)


def hessian_index(landscape: ModelLandscape, theta: Vector) -> int:
    """Number of negative eigenvalues of the Hessian of the loss."""
    least, largest = hessian_ends(landscape, theta)
    return spectrum.index(lambda v: _product(landscape, theta, v), theta.size, max(abs(least), abs(largest)))


@eqx.filter_jit
def _product(landscape: ModelLandscape, theta: Vector, direction: Vector) -> Vector:
    return jax.jvp(landscape.gradient, (theta,), (direction,))[1]
