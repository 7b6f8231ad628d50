"""One flow of any model, solved: the start checked, the run, its trajectory."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import is_concrete, require, require_finite, require_float64
from saddleflow._backend.programs import Stopwatch, make_room
from saddleflow.flow.arguments import (
    FlowOptions,
    method_of,
    needs_symmetry,
    require_convex,
    require_gradient,
    settings_of,
)
from saddleflow.flow.critical import hessian_ends
from saddleflow.flow.functions import check_functions
from saddleflow.flow.model_landscape import ModelLandscape, Preconditioner, Vector
from saddleflow.flow.model_trajectory import ModelTrajectory
from saddleflow.flow.model_twin import has_symmetry, model_escapes, perturbed, rows_up_to
from saddleflow.flow.run import dips_of, numbers_of, rows_of, run, stats_of
from saddleflow.flow.state import FlowState, Method, StopReason
from saddleflow.flow.twin import Escape, first_unresolved
from saddleflow.problem import geometry
from saddleflow.problem.costs import MAX_RESIDUALS
from saddleflow.problem.objective import AsMatrix, BareLoss, Objective, Predictions
from saddleflow.problem.spectrum import ZERO

PRECONDITIONERS = ("auto", "gauss_newton", "hessian", "none")

# A Jacobian of the outputs with more numbers than this is not formed: 400 MB.
MAX_JACOBIAN = 50_000_000

# The Hessian of a loss without known residuals is formed and factorised for so many parameters at most.
MAX_HESSIAN = 150

# Rows hold the outputs where all of them together are no more numbers than this: 200 MB.
MAX_OUTPUTS = 25_000_000

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
    num_rows = options.num_rows if options.save_at is None else len(options.save_at)
    keeps = num_rows * math.prod(objective.shape) <= MAX_OUTPUTS
    landscape, theta = landscape_of(
        objective,
        model,
        trainable=trainable,
        preconditioner=preconditioner,
        symmetric=needs_symmetry(options),
        keep_outputs=keeps,
    )
    check_functions(options.observables, options.stop, landscape.subject(theta))
    options = options.with_room_for(1 + keeps * math.prod(objective.shape) + options.save_networks * theta.size)
    method = method_of(options, landscape, graded=False, num_dips=num_dips(theta), turns="plain", pad_rows=True)
    with Stopwatch() as spent:
        settings = settings_of(landscape, theta, options, pad_rows=True)
        state, reason = run(landscape, theta, settings, method, options)
    end = state.parameters
    rows, dips = rows_of(landscape, state, settings, method), dips_of(state.dips)
    escape = _unresolved(landscape, theta, state, reason, method, options)
    if escape is not None:
        assert state.dips is not None
        assert dips is not None
        add_end = options.save_at is None
        rows, end = rows_up_to(rows, landscape, state.dips, escape, method, add_end=add_end)
        reason, dips = StopReason.below_resolution, (dips[0][: escape.dip], dips[1][: escape.dip])
    elif reason == StopReason.stationary and leads_down(landscape, end):
        reason = StopReason.stationary_saddle
    return ModelTrajectory.of(
        landscape,
        theta,
        end,
        rows,
        stop_reason=reason.name,
        stats=stats_of(state, method, spent) | {"preconditioner": landscape.preconditioner},
        configuration=numbers_of(settings, method),
        durations=np.asarray(state.clock.durations),
        dips=dips,
        asked_rank_tolerance=options.rank_tolerance,
    )


def _unresolved(
    landscape: ModelLandscape,
    theta: Vector,
    state: FlowState,
    reason: StopReason,
    method: Method,
    options: FlowOptions,
) -> Escape | None:
    """The first saddle that the run has left on rounding; looked for where the start has a symmetry."""
    dipped = state.dips is not None and int(state.dips.count) > 0
    if not dipped or reason == StopReason.max_seconds or not has_symmetry(landscape, theta):
        return None
    escapes = model_escapes(landscape, state)
    if not escapes:
        return None
    options, other = replace(options, phase="check"), perturbed(theta)
    twin, its_reason = run(landscape, other, settings_of(landscape, other, options, pad_rows=True), method, options)
    if its_reason == StopReason.max_seconds:
        return None
    return first_unresolved(escapes, model_escapes(landscape, twin))


def landscape_of(
    objective: Objective,
    model: Any,
    *,
    trainable: Any,
    preconditioner: str,
    symmetric: bool,
    finite: bool = True,
    keep_outputs: bool = True,
) -> tuple[ModelLandscape, Vector]:
    """The landscape of a model, and its trainable parameters as one vector.

    Args:
        objective: the loss.
        model: the start.
        trainable: an equinox filter: a function of a leaf, or a pytree of booleans.
        preconditioner: one of `PRECONDITIONERS`; "auto" decides by the numbers of residuals and of parameters.
        symmetric: whether the solver takes only fields that are gradients.
        finite: refuse a loss that is not finite at the start, which a run ends at with that reason.
        keep_outputs: whether rows are to hold the outputs.

    Raises:
        ValueError: a model without trainable arrays, or with such that are not finite float64; outputs of another
            shape than the cost's; a loss that is no number, not differentiable, or not finite at the start.
    """
    parameters, rest = _parted(model, trainable)
    _check_leaves(parameters)
    leaves, structure = jax.tree.flatten(jax.tree.map(on_device, parameters))
    theta = jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
    shapes = tuple(leaf.shape for leaf in leaves)
    blank = ModelLandscape(objective, rest, theta, jnp.ones(()), shapes, structure, "none")
    _check_once(blank, theta)
    loss, gradient = _probe(blank, theta)
    if finite:
        remedy = "Start elsewhere, or look for a division by zero."
        require(bool(jnp.isfinite(loss)), "model", "have a finite loss at the start", float(loss), remedy)
        bad = int(jnp.sum(~jnp.isfinite(gradient)))
        require(bad == 0, "model", "have a finite gradient at the start", f"{bad} entries that are not", remedy)
    if symmetric and blank.has_outputs:
        require_gradient(objective.cost, blank.outputs(theta))
    require_convex(objective.cost)
    rms = _typical_sizes(leaves, abs(float(loss)), float(geometry.norm(gradient)))
    found = _chosen(blank, theta) if preconditioner == "auto" else preconditioner
    fits = found != "gauss_newton" or _num_residuals(objective) is not None
    require(fits, "preconditioner", "be 'hessian' or 'none' for a loss without residuals", preconditioner)
    return replace(blank, rms=rms, level=jnp.abs(loss), preconditioner=found, keeps_outputs=keep_outputs), theta


def _parted(model: Any, trainable: Any) -> tuple[Any, Any]:
    """The trainable arrays of a model, and the rest of it."""
    try:
        kept, frozen = eqx.partition(model, trainable)
    except ValueError as error:
        raise ValueError(
            "`trainable` must be a function of a leaf, or booleans in a pytree like the model, "
            f"but got: {_first_line(error)}"
        ) from error
    parameters, others = eqx.partition(kept, eqx.is_inexact_array)
    return parameters, eqx.combine(others, frozen)


@eqx.filter_jit
def _probe(landscape: ModelLandscape, theta: Vector) -> tuple[Float[Array, ""], Vector]:
    return landscape.loss(theta, landscape.outputs(theta)), landscape.gradient(theta)


def _check_leaves(parameters: Any) -> None:
    """Refuse what the flow cannot move."""
    leaves, _ = jax.tree.flatten_with_path(parameters)
    require(
        any(leaf.size > 0 for _, leaf in leaves),
        "model",
        "hold at least one trainable floating-point array",
        "none",
        "Arrays of integers, Python numbers, and what `trainable` leaves out stay as they are.",
    )
    for path, leaf in leaves:
        name = f"model{jax.tree_util.keystr(path)}"
        if not is_concrete(leaf):
            raise ValueError(
                f"`{name}` must be concrete, but got a tracer: call gradient_flow outside of jit and vmap."
            )
        require(not np.iscomplexobj(leaf), name, "be real", str(leaf.dtype), "Hold the two parts as two arrays.")
        require_float64(name, leaf)
        require_finite(name, leaf)


# Structures of models and losses that have passed the checks: the lanes of a sweep have one.
_SOUND: dict[Any, None] = {}
MAX_SOUND = 64


# What functions of a user take, for those that raise.
OF_MODEL = "It takes the model."
OF_LOSS = "It takes the model; a function of A alone is written as a cost (sf.Cost), or with network.end_to_end()."
OF_PREDICTION = (
    "`predict` takes the model and ONE sample x, in this order; x is a row of `inputs`, without the axis of samples. "
    "It returns what it predicts: of a classification a logit for each class (labels from 0; two classes take two)."
)


def _check_once(landscape: ModelLandscape, theta: Vector) -> None:
    """Refuse losses that will not do; models of one structure are looked at once."""
    arrays, others = eqx.partition((landscape, theta), eqx.is_array)
    leaves, structure = jax.tree.flatten(others)
    key = (tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(arrays)), tuple(leaves), structure)
    try:
        if key in _SOUND:
            return
    except TypeError:  # a leaf without a hash
        _check_functions(landscape, theta)
        return
    _check_functions(landscape, theta)
    while len(_SOUND) >= MAX_SOUND:
        _SOUND.pop(next(iter(_SOUND)), None)
    _SOUND[key] = None


def _check_functions(landscape: ModelLandscape, theta: Vector) -> None:
    """Refuse outputs that do not fit the cost, and what is no differentiable number."""
    objective = landscape.objective
    if isinstance(objective.outputs, AsMatrix):
        loss = objective.outputs.loss
        _check_returned("loss", lambda at: loss(landscape.model(at)), theta, (), OF_LOSS)
    else:
        remedy = OF_PREDICTION if isinstance(objective.outputs, Predictions) else OF_MODEL
        _check_returned("outputs", landscape.outputs, theta, tuple(objective.cost.shape), remedy)
        for name, function in (("regulariser", objective.regulariser), ("test", objective.test)):
            if function is not None:
                _check_returned(name, lambda at, f=function: f(landscape.model(at)), theta, (), OF_MODEL)
    name = "outputs" if landscape.has_outputs else "loss"
    try:
        eqx.filter_jit(_products).lower(landscape, theta)  # traced alone, some missing rules do not show
    except Exception as error:  # whatever JAX has against it
        raise ValueError(
            f"`{name}` must be twice differentiable by JAX, forward over reverse, but got: {_first_line(error)} "
            "Write it with jax.numpy, without custom_vjp."
        ) from error


def _products(landscape: ModelLandscape, at: Vector) -> Vector:
    """Hessian-vector products in a loop, as solvers take them: JAX drops no part of such a body."""

    def product(v: Vector) -> Vector:
        return jax.jvp(landscape.gradient, (v,), (v,))[1]

    return jax.lax.while_loop(lambda v: v[0] < 1, product, at)


def _check_returned(
    name: str, function: Callable[[Vector], Any], theta: Vector, shape: tuple[int, ...], remedy: str
) -> None:
    """Refuse a function that returns anything but float64 numbers of that shape; its own errors pass, with a note."""
    expected = f"have the shape of the cost, {shape}" if shape else "return one number, of shape ()"
    try:
        found = eqx.filter_eval_shape(function, theta)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            f"`{name}` must be a function that JAX can trace, but got: {_first_line(error)} "
            "Take jax.numpy in place of numpy, jnp.where in place of `if`, no float()."
        ) from error
    except Exception as error:
        error.add_note(f"It was raised by `{name}`. {remedy}")
        raise
    if isinstance(found, float):  # a constant
        found = np.asarray(found)
    kind = getattr(found, "shape", type(found).__name__)
    require(kind == shape, name, expected, kind, remedy if shape else "")
    require(found.dtype == np.float64, name, "be float64", str(found.dtype), "Do all of it in float64.")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _typical_sizes(leaves: list[Array], loss: float, gradient: float) -> Vector:
    """Of every entry the root mean square of its array at the start.

    An array that starts at zero (a bias) gets that of all entries; where all start at zero, the length over which
    the loss falls by itself takes its place.
    """
    filled = [leaf for leaf in leaves if leaf.size > 0]
    total = sum(leaf.size for leaf in filled)
    overall = float(geometry.norm(filled)) / total**0.5
    if overall == 0:
        overall = loss / gradient / total**0.5 if gradient > 0 and loss > 0 else 1.0
    sizes = [float(geometry.norm([leaf])) / leaf.size**0.5 for leaf in filled]
    return jnp.concatenate(
        [jnp.full(leaf.size, size if size > 0 else overall) for leaf, size in zip(filled, sizes, strict=True)]
    )


def _chosen(landscape: ModelLandscape, theta: Vector) -> Preconditioner:
    """The preconditioner that measurements recommend (docs/models.md)."""
    residuals = _num_residuals(landscape.objective)
    if residuals is None:
        return "hessian" if theta.size <= MAX_HESSIAN else "none"
    if min(residuals, theta.size) <= MAX_RESIDUALS and residuals * theta.size <= MAX_JACOBIAN:
        return "gauss_newton"
    return "none"


def _num_residuals(objective: Objective) -> int | None:
    """How many residuals the cost has; None where it does not tell."""
    if isinstance(objective, BareLoss):
        return None
    curvature = eqx.filter_eval_shape(objective.cost.curvature, jnp.zeros(objective.cost.shape))
    return None if curvature is None else curvature.num_residuals


def num_dips(theta: Vector) -> int:
    """How many vectors of parameters to keep from dips of the gradient norm."""
    return max(4, min(MAX_DIPS, MAX_DIP_NUMBERS // theta.size))


def leads_down(landscape: ModelLandscape, theta: Vector) -> bool:
    """Whether a direction of negative curvature leads down from a point at rest."""
    least, largest = hessian_ends(landscape, theta)
    return bool(least < -ZERO * max(abs(largest), abs(least)))
