"""One flow of any model, solved: the start checked, the run, its trajectory."""

import time
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saddleflow._backend.checks import is_concrete, require, require_finite, require_float64
from saddleflow._backend.programs import make_room
from saddleflow.flow.arguments import FlowOptions, method_of, needs_symmetry, require_gradient, settings_of
from saddleflow.flow.critical import hessian_ends
from saddleflow.flow.model_landscape import ModelLandscape, Preconditioner, Vector
from saddleflow.flow.model_trajectory import ModelTrajectory
from saddleflow.flow.run import dips_of, numbers_of, rows_of, run, stats_of
from saddleflow.flow.state import StopReason
from saddleflow.problem import geometry
from saddleflow.problem.costs import MAX_RESIDUALS
from saddleflow.problem.objective import BareLoss, Objective
from saddleflow.problem.spectrum import ZERO

PRECONDITIONERS = ("auto", "gauss_newton", "hessian", "none")

# A Jacobian of the outputs with more numbers than this is not formed: 400 MB.
MAX_JACOBIAN = 50_000_000

# The Hessian of a loss without known residuals is formed and factorised for so many parameters at most.
MAX_HESSIAN = 150

# Parameters kept at dips of the gradient norm: so many vectors, of so many numbers together at most.
MAX_DIPS, MAX_DIP_NUMBERS = 16, 10_000_000


def solve_model(
    objective: Objective, model: Any, options: FlowOptions, *, trainable: Any, preconditioner: str
) -> ModelTrajectory:
    """The flow of a model, to the end or to a named reason; `saddleflow.gradient_flow` documents it.

    Raises:
        ValueError: a model or a loss that will not do, named with value and remedy.
    """
    make_room()
    require(not options.graded, "graded", "be None or False: only networks have graded coordinates", options.graded)
    landscape, theta = landscape_of(
        objective, model, trainable=trainable, preconditioner=preconditioner, symmetric=needs_symmetry(options)
    )
    settings = settings_of(landscape, theta, options)
    method = method_of(options, landscape, graded=False, num_dips=_num_dips(theta), turns="plain")
    begin = time.perf_counter()
    state, reason = run(landscape, theta, settings, method, options)
    seconds = time.perf_counter() - begin
    end = state.parameters
    if reason == StopReason.stationary and leads_down(landscape, end):
        reason = StopReason.stationary_saddle
    rows = rows_of(landscape, state, settings, method)
    dips = dips_of(state)
    return ModelTrajectory.of(
        landscape,
        theta,
        end,
        rows,
        stop_reason=reason.name,
        stats=stats_of(state, method, seconds) | {"preconditioner": landscape.preconditioner},
        configuration=numbers_of(settings, method),
        durations=np.asarray(state.clock.durations),
        dips=dips,
    )


def landscape_of(
    objective: Objective, model: Any, *, trainable: Any, preconditioner: str, symmetric: bool, finite: bool = True
) -> tuple[ModelLandscape, Vector]:
    """The landscape of a model, and its trainable parameters as one vector.

    Args:
        objective: the loss.
        model: the start.
        trainable: an equinox filter: a function of a leaf, or a pytree of booleans.
        preconditioner: one of `PRECONDITIONERS`; "auto" decides by the numbers of residuals and of parameters.
        symmetric: whether the solver takes only fields that are gradients.
        finite: refuse a loss that is not finite at the start, which a run ends at with that reason.

    Raises:
        ValueError: a model without trainable arrays, or with such that are not finite float64; outputs of another
            shape than the cost's; a loss that is no number, not differentiable, or not finite at the start.
    """
    require(preconditioner in PRECONDITIONERS, "preconditioner", f"be one of {PRECONDITIONERS}", preconditioner)
    kept = eqx.filter(model, trainable)
    parameters, others = eqx.partition(kept, eqx.is_inexact_array)
    rest = eqx.combine(others, eqx.filter(model, trainable, inverse=True))
    leaves, structure = jax.tree.flatten(parameters)
    _check_leaves(parameters)
    theta = jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
    shapes = tuple(leaf.shape for leaf in leaves)
    blank = ModelLandscape(objective, rest, theta, jnp.ones(()), shapes, structure, "none")
    _check_shapes(blank, theta)
    loss, gradient = _probe(blank, theta)
    if finite:
        remedy = "Start elsewhere, or look for a division by zero."
        require(bool(jnp.isfinite(loss)), "model", "have a finite loss at the start", float(loss), remedy)
        sound = bool(jnp.all(jnp.isfinite(gradient)))
        require(sound, "model", "have a finite gradient at the start", "others", remedy)
    if symmetric and blank.has_outputs:
        require_gradient(objective.cost, blank.outputs(theta))
    rms = _typical_sizes(leaves, abs(float(loss)), float(geometry.norm(gradient)))
    found = _chosen(blank, theta) if preconditioner == "auto" else preconditioner
    return replace(blank, rms=rms, level=jnp.abs(loss), preconditioner=found), theta


@eqx.filter_jit
def _probe(landscape: ModelLandscape, theta: Vector) -> tuple[Float[Array, ""], Vector]:
    return landscape.loss(theta, landscape.outputs(theta)), landscape.gradient(theta)


def _check_leaves(parameters: Any) -> None:
    """Refuse what the flow cannot move."""
    leaves, _ = jax.tree.flatten_with_path(parameters)
    require(
        len(leaves) > 0,
        "model",
        "hold at least one trainable floating-point array",
        "none",
        "Arrays of integers, and what `trainable` leaves out, stay as they are.",
    )
    for path, leaf in leaves:
        name = f"model{jax.tree_util.keystr(path)}"
        if not is_concrete(leaf):
            raise ValueError(
                f"`{name}` must be concrete, but got a tracer: call gradient_flow outside of jit and vmap."
            )
        require_float64(name, leaf)
        require_finite(name, leaf)


def _check_shapes(landscape: ModelLandscape, theta: Vector) -> None:
    """Refuse losses that are no differentiable number, and outputs that do not fit the cost."""
    objective, name = landscape.objective, "outputs" if landscape.has_outputs else "loss"
    try:
        shape = eqx.filter_eval_shape(_outputs, landscape, theta)
    except (TypeError, ValueError, jax.errors.JAXTypeError) as error:
        if landscape.has_outputs:
            raise
        raise ValueError(f"`loss` must be a function from the model to one number. It failed: {error}") from error
    if landscape.has_outputs:
        expected, found = tuple(objective.cost.shape), tuple(shape.shape)
        require(found == expected, name, f"have the shape of the cost, {expected}", found)
    require(shape.dtype == np.float64, name, "be float64", str(shape.dtype))
    try:
        eqx.filter_eval_shape(_curved, landscape, theta)
    except Exception as error:  # whatever JAX has against it
        raise ValueError(
            f"`{name}` must be twice differentiable by JAX (forward over reverse), but is not: {error}"
        ) from error


# Jitted, though never compiled: models of one structure are traced once.
@eqx.filter_jit
def _outputs(landscape: ModelLandscape, theta: Vector) -> Array:
    return landscape.outputs(theta)


@eqx.filter_jit
def _curved(landscape: ModelLandscape, theta: Vector) -> tuple[Vector, Vector]:
    return jax.jvp(landscape.gradient, (theta,), (theta,))


def _typical_sizes(leaves: list[Array], loss: float, gradient: float) -> Vector:
    """Of every entry the root mean square of its array at the start.

    An array that starts at zero (a bias) gets that of all entries; where all start at zero, the length over which
    the loss falls by itself takes its place.
    """
    total = sum(leaf.size for leaf in leaves)
    overall = float(geometry.norm(leaves)) / total**0.5
    if overall == 0:
        overall = loss / gradient / total**0.5 if gradient > 0 and loss > 0 else 1.0
    sizes = [float(geometry.norm([leaf])) / max(leaf.size, 1) ** 0.5 for leaf in leaves]
    return jnp.concatenate(
        [jnp.full(leaf.size, size if size > 0 else overall) for leaf, size in zip(leaves, sizes, strict=True)]
    )


def _chosen(landscape: ModelLandscape, theta: Vector) -> Preconditioner:
    """The preconditioner that measurements recommend (docs/models.md)."""
    curvature = None
    if not isinstance(landscape.objective, BareLoss):
        outputs = jnp.zeros(landscape.objective.cost.shape)
        curvature = eqx.filter_eval_shape(landscape.objective.cost.curvature, outputs)
    if curvature is None:
        return "hessian" if theta.size <= MAX_HESSIAN else "none"
    residuals = curvature.num_residuals
    if min(residuals, theta.size) <= MAX_RESIDUALS and residuals * theta.size <= MAX_JACOBIAN:
        return "gauss_newton"
    return "none"


def _num_dips(theta: Vector) -> int:
    return max(4, min(MAX_DIPS, MAX_DIP_NUMBERS // theta.size))


def leads_down(landscape: ModelLandscape, theta: Vector) -> bool:
    """Whether a direction of negative curvature leads down from a point at rest."""
    least, largest = hessian_ends(landscape, theta)
    return bool(least < -ZERO * max(abs(largest), abs(least)))
