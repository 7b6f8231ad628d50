"""One flow of one network, solved: burst by burst on the host, or as one pure function of arrays."""

import math
import time
from dataclasses import replace
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saddleflow._backend.arrays import on_device
from saddleflow._backend.linalg import lane_by_lane
from saddleflow._backend.meters import meter
from saddleflow._backend.programs import compiled, make_room
from saddleflow.flow import loop
from saddleflow.flow.arguments import (
    FlowOptions,
    check_problem,
    dip_capacity,
    method_of,
    needs_grading,
    scales,
    settings_of,
)
from saddleflow.flow.dips import Dips
from saddleflow.flow.state import FlowState, Method, Settings, StopReason
from saddleflow.flow.trajectory import Trajectory, assemble
from saddleflow.flow.twin import Escape, escapes, first_unresolved, has_symmetry, perturbed, up_to
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork

# A burst is timed to last about this long, so that meters move and wall-clock budgets are kept.
BURST_SECONDS = 0.2
MAX_BURST = 2**20


class IntegratedFlow(eqx.Module):
    """What `integrate` returns: a flow as arrays of fixed size; under `vmap` all get a leading axis.

    Rows from `num_rows` on are not used: zeros.

    Attributes:
        time: of the rows, shape (rows,), in units of the flow.
        end_to_end: A, shape (rows, n_out, n_in).
        gradient_norm: |grad_theta C(A(theta))|, shape (rows,).
        observables: the observables asked for, by name, each of shape (rows, ...).
        networks: the network at every row, layers with a leading axis, if asked for, else None.
        num_rows: number of rows used.
        network: the network at the end.
        end_time: time at the end.
        stop_reason: a code of `StopReason`.
        num_steps: steps tried, accepted or not.
        num_rejected_steps: those of them that were rejected.
    """

    time: Float[Array, " rows"]
    end_to_end: Float[Array, "rows n_out n_in"]
    gradient_norm: Float[Array, " rows"]
    observables: dict[str, Array]
    networks: DeepLinearNetwork | None
    num_rows: Int[Array, ""]
    network: DeepLinearNetwork
    end_time: Float[Array, ""]
    stop_reason: Int[Array, ""]
    num_steps: Int[Array, ""]
    num_rejected_steps: Int[Array, ""]


def integrate(cost: Cost, network: DeepLinearNetwork, options: FlowOptions) -> IntegratedFlow:
    """The flow as a pure function of arrays; `saddleflow.integrate` documents it.

    On CPUs a `vmap` takes its lanes one after another: in a batch each would wait for the slowest at every inner
    loop, and pay for both branches of every condition.
    """
    check_problem(cost, network, options)
    settings = settings_of(cost, network, options)
    method = method_of(options, cost, needs_grading(cost, network, options))
    arrays, rest = eqx.partition((cost, network, settings, method), eqx.is_array)
    state = lane_by_lane(lambda arrays: _integrate(*eqx.combine(arrays, rest)))(arrays)
    return IntegratedFlow(
        **{name: state.rows[name] for name in ("time", "end_to_end", "gradient_norm", "observables")},
        networks=state.rows.get("network"),
        num_rows=state.num_rows,
        network=state.plain_network(),
        end_time=state.time,
        stop_reason=state.reason,
        num_steps=state.num_steps,
        num_rejected_steps=state.num_rejected,
    )


def _integrate(cost: Cost, network: DeepLinearNetwork, settings: Settings, method: Method) -> FlowState:
    state = loop.start(cost, network, settings, method)
    # burst by burst: to the next thinning of the rows, or to the end
    return jax.lax.while_loop(
        lambda state: state.reason == StopReason.running,
        lambda state: loop.advance(state, cost, settings, method, settings.max_steps),
        state,
    )


_start = compiled(loop.start)
_advance = compiled(loop.advance)
_observe = eqx.filter_jit(loop.observe)


def solve(cost: Cost, network: DeepLinearNetwork, options: FlowOptions) -> Trajectory:
    """The flow of a network, to the end or to a named reason; `saddleflow.gradient_flow` documents it.

    Raises:
        ValueError: a network or a cost that will not do, named with value and remedy.
    """
    make_room()
    check_problem(cost, network, options)
    begin = time.perf_counter()
    trajectory, dips = _solved(cost, network, options)
    if options.max_seconds is not None:
        options = replace(options, max_seconds=max(options.max_seconds - (time.perf_counter() - begin), 1e-3))
    escape = _unresolved(trajectory, dips, cost, network, options)
    if escape is None:
        return trajectory
    return up_to(cost, trajectory, escape, options.observables, add_end=options.save_at is None)


def _unresolved(
    trajectory: Trajectory, dips: Dips | None, cost: Cost, network: DeepLinearNetwork, options: FlowOptions
) -> Escape | None:
    """The first saddle that the run has left on rounding; looked for where the start has a symmetry."""
    out_of_time, run = StopReason.max_seconds.name, escapes(cost, trajectory, dips)
    if not run or trajectory.stop_reason == out_of_time or not has_symmetry(network):
        return None
    twin, its_dips = _solved(cost, perturbed(network), replace(options, progress=False))
    return None if twin.stop_reason == out_of_time else first_unresolved(run, escapes(cost, twin, its_dips))


def _solved(cost: Cost, network: DeepLinearNetwork, options: FlowOptions) -> tuple[Trajectory, Dips | None]:
    """The run as the solver has it, and what the loop has kept of its dips."""
    settings = settings_of(cost, network, options)
    # what tails need is compiled where a tail begins
    graded = needs_grading(cost, network, options)
    method = method_of(options, cost, graded, dip_capacity(network), turns="plain")
    begin = time.perf_counter()
    state, reason = _run(cost, network, settings, method, options)
    seconds = time.perf_counter() - begin
    num_steps = int(state.num_steps)
    trajectory = assemble(
        cost,
        network,
        state.plain_network(),
        _rows(cost, state, settings, method),
        stop_reason=reason.name,
        stats={
            "num_steps": num_steps,
            "num_accepted_steps": int(state.num_accepted),
            "num_rejected_steps": int(state.num_rejected),
            **_work(state, method),
            "seconds": seconds,
        },
        configuration={
            "solver": type(method.solver).__name__,
            "rtol": float(settings.rtol),
            "atol": float(settings.atol),
            "t1": float(settings.t1),
            "max_steps": int(settings.max_steps),
            "gradient_tolerance": float(settings.gradient_tolerance),
            "start_norm": float(scales(cost, network)[0]) * math.sqrt(network.num_parameters),
        },
        capacity=len(state.rows["time"]) + 1,
        durations=np.asarray(state.clock.durations),
        rank_tolerance=options.rank_tolerance,
        dips=_dips(state),
    )
    return trajectory, state.dips


def _run(
    cost: Cost, network: DeepLinearNetwork, settings: Settings, method: Method, options: FlowOptions
) -> tuple[FlowState, StopReason]:
    """Bursts until a reason ends the run, each sized to take about `BURST_SECONDS`."""
    begin = time.perf_counter()
    state = _start(cost, network, settings, method)
    num_steps = 4
    with meter(options.progress) as report:
        while int(state.reason) == StopReason.running:
            if options.max_seconds is not None and time.perf_counter() - begin > options.max_seconds:
                return state, StopReason.max_seconds
            burst_begin = time.perf_counter()
            state = _advance(state, cost, settings, method, jnp.asarray(num_steps))
            method = replace(method, turns="tail" if bool(state.on_tail) else "plain")
            if time.perf_counter() - burst_begin < BURST_SECONDS / 2:
                num_steps = min(2 * num_steps, MAX_BURST)
            report(lambda state=state: _standing(cost, state), 0)
    return state, StopReason(int(state.reason))


def _standing(cost: Cost, state: FlowState) -> str:
    """How a run stands: time of the flow, train cost, steps."""
    train = float(cost(state.network.end_to_end()))
    return f"t = {float(state.time):.4g}   cost {train:.3e}   {int(state.num_steps)} steps"


def _rows(cost: Cost, state: FlowState, settings: Settings, method: Method) -> dict[str, Any]:
    """The rows saved, the end among them."""
    rows = jax.tree.map(lambda x: np.asarray(x)[: int(state.num_rows)], state.rows)
    none = int(state.num_rows) == 0  # ended before the first asked time
    if none or (settings.save_at is None and loop.ends_between_rows(state, method)):
        last = _observe(cost, state.plain_network(), state.clock, method)
        rows = jax.tree.map(lambda x, y: np.concatenate([x, np.asarray(y)[None]]), rows, last)
    return rows | {"network": jax.tree.map(on_device, rows.get("network"))}


def _dips(state: FlowState) -> tuple[np.ndarray, DeepLinearNetwork] | None:
    """Times and networks of the dips of the gradient norm."""
    if state.dips is None:
        return None
    count = min(int(state.dips.count), len(state.dips.times))
    return np.asarray(state.dips.times[:count]), jax.tree.map(lambda layer: layer[:count], state.dips.networks)


def _work(state: FlowState, method: Method) -> dict[str, Any]:
    """Evaluations of a run, rejected steps included; None where diffrax's (implicit) solvers do not tell."""
    solver, num_steps, work = method.solver, int(state.num_steps), state.work(method)
    if work is not None:
        return {
            "num_tail_steps": 0 if state.tail_state is None else int(state.tail_state.steps),
            "num_explicit_steps": int(work.explicit_steps),
            "num_vector_field_evaluations": int(work.vector_fields),
            "num_hessian_vector_products": int(work.products),
            "num_preconditioner_applications": int(work.preconditions),
            "mean_krylov_dimension": int(work.directions) / max(int(work.steps), 1),
            "max_krylov_dimension": int(work.largest_basis),
        }
    tableau = getattr(solver, "tableau", None)
    if not isinstance(solver, diffrax.AbstractERK) or not isinstance(tableau, diffrax.ButcherTableau):
        return {"num_vector_field_evaluations": None, "num_hessian_vector_products": None}
    evaluations = num_steps * (tableau.num_stages - tableau.fsal) + int(tableau.fsal)
    return {"num_vector_field_evaluations": evaluations, "num_hessian_vector_products": 0}
