"""The arguments of a flow, checked, and split into the numbers of the run and its method."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saddleflow import geometry
from saddleflow import observables as obs
from saddleflow.checks import check_save_at, is_concrete, require, require_finite, require_integer, require_positive
from saddleflow.costs import Cost
from saddleflow.graded import is_tiny
from saddleflow.jacobian import flow_jacobian
from saddleflow.network import DeepLinearNetwork
from saddleflow.runs import Method, Settings
from saddleflow.solvers import MAX_ASYMMETRY, CountingSolver, Rosenbrock, Switching, asymmetry

# The error of an entry is weighed against max(|entry|, this share of the start's rms entry): relative to what
# the start holds, at every initialisation scale.
START_SHARE = 0.2

# The stiff method as it fits networks.
STIFF = Rosenbrock(local_model=flow_jacobian, check_symmetry=False)


def prepare(
    cost: Cost,
    network: DeepLinearNetwork,
    *,
    rtol: Any = 1e-6,
    t1: Any = None,
    save_at: Any = None,
    solver: diffrax.AbstractSolver | None = None,
    observables: Mapping[str, Any] | Sequence[str] | None = None,
    stop: Callable[[Array, DeepLinearNetwork], Bool[Array, ""]] | None = None,
    save_networks: bool = False,
    max_saves: int = 1000,
    saves_per_step: int = 1,
    max_steps: int = 1_000_000,
    gradient_tolerance: Any = 1e-4,
    graded: bool | None = None,
    num_dips: int = 0,
) -> tuple[Settings, Method]:
    """Check the arguments of `gradient_flow` (which documents them) and split them into numbers and method.

    `num_dips` networks at most are kept from where the gradient norm dips, for `Trajectory.saddles`.
    """
    require(
        tuple(network.shape) == tuple(cost.shape),
        "network",
        f"have the end-to-end shape of the cost, {tuple(cost.shape)}",
        tuple(network.shape),
        "Shapes are (n_out, n_in).",
    )
    for index, layer in enumerate(network.layers):
        require_finite(f"network.layers[{index}]", layer)
    if is_concrete(rtol):
        require(
            math.isfinite(rtol) and 1e-13 <= rtol < 1,
            "rtol",
            "lie in [1e-13, 1)",
            rtol,
            "float64 resolves no less.",
        )
    if t1 is not None:
        require_positive("t1", t1)
    if save_at is not None:
        times, t1 = check_save_at(save_at, t1)
        save_at = jnp.asarray(times)
    stiff = solver is None or isinstance(solver, Rosenbrock)
    graded = stiff and is_tiny(cost, network) if graded is None else graded
    require(
        stiff or not graded,
        "graded",
        "come with the default solver",
        type(solver).__name__,
        "Its error weights know the coordinates; others' do not.",
    )
    if solver is None:
        # Graded coordinates are the stiff method's: a plateau among rounding is no place to be explicit.
        solver = STIFF if graded else Switching(STIFF)
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            "`solver` must be an adaptive diffrax solver, with an error estimate, but got "
            f"{type(solver).__name__}. Take diffrax.Tsit5() or wrap yours in diffrax.HalfSolver."
        )
    if isinstance(solver, CountingSolver) and is_concrete(network.layers[0]):
        skew = _asymmetry(_MATRIX_TERM, 0.0, network.end_to_end(), cost)
        require(
            not is_concrete(skew) or not skew > MAX_ASYMMETRY,
            "cost",
            "have a `gradient` that is the gradient of some function",
            f"one whose derivative is not symmetric (relative asymmetry {skew:.1e})",
            "Leave `gradient` to automatic differentiation, or take another solver, such as diffrax.Tsit5().",
        )
    require_integer("max_saves", max_saves, 4)
    require_integer("saves_per_step", saves_per_step, 1)
    require_integer("max_steps", max_steps, 1)
    if is_concrete(gradient_tolerance):
        require(
            1e-13 <= gradient_tolerance < 1,
            "gradient_tolerance",
            "lie in [1e-13, 1)",
            gradient_tolerance,
            "float64 resolves no less.",
        )
    rms, scale = scales(cost, network)
    settings = Settings(
        rtol=jnp.asarray(rtol, float),
        atol=jnp.asarray(rtol * START_SHARE * rms, float),
        t1=jnp.asarray(jnp.inf if t1 is None else t1, float),
        save_at=save_at,
        max_steps=jnp.asarray(max_steps),
        gradient_tolerance=jnp.asarray(-1.0) if save_at is not None else gradient_tolerance * scale,
    )
    method = Method(
        solver=solver,
        observables=obs.resolve(observables),
        stop=stop,
        save_networks=save_networks,
        graded=graded,
        capacity=max_saves,
        saves_per_step=saves_per_step,
        num_dips=num_dips,
    )
    return settings, method


@eqx.filter_jit  # one by one its operations take longer to compile than to run
def scales(cost: Cost, network: DeepLinearNetwork) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Root mean square entry of the start, and the norm of grad C that convergence is measured by."""
    rms = geometry.norm(network) / math.sqrt(network.num_parameters)
    # Not the start's gradient: a huge start would then be certified far from any minimum.
    at_zero = jnp.linalg.norm(cost.gradient(jnp.zeros(cost.shape)))
    return rms, jnp.where(at_zero > 0, at_zero, jnp.linalg.norm(cost.gradient(network.end_to_end())))


# On matrices, not on networks: a small start would hide an asymmetry in a Jacobian of its own size.
_MATRIX_TERM = diffrax.ODETerm(lambda time, matrix, cost: cost.gradient(matrix))
_asymmetry = eqx.filter_jit(asymmetry)
