"""One flow of one network, solved: on the host, or as one pure function of arrays."""

import math
from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from saddleflow._backend.linalg import lane_by_lane
from saddleflow._backend.programs import Stopwatch, make_room
from saddleflow.flow import loop
from saddleflow.flow.arguments import (
    FlowOptions,
    check_problem,
    dip_capacity,
    method_of,
    needs_grading,
    needs_symmetry,
    scales,
    settings_of,
)
from saddleflow.flow.dips import Dips
from saddleflow.flow.functions import check_functions
from saddleflow.flow.landscape import Landscape, NetworkLandscape
from saddleflow.flow.run import dips_of, end_of, numbers_of, rows_of, run, stats_of
from saddleflow.flow.state import FlowState, Method, Settings, StopReason
from saddleflow.flow.trajectory import Trajectory, assemble
from saddleflow.flow.twin import Escape, escapes, first_unresolved, has_symmetry, on_one_way, perturbed, up_to
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.padding import padded, unpadded


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
    check_functions(options.observables, options.stop, (cost, network))
    options.check_rows(math.prod(cost.shape) + options.save_networks * network.num_parameters)
    landscape = NetworkLandscape(cost)
    settings = settings_of(landscape, network, options)
    method = method_of(options, landscape, needs_grading(cost, network, options))
    arrays, rest = eqx.partition((landscape, network, settings, method), eqx.is_array)
    state = lane_by_lane(lambda arrays: _integrate(*eqx.combine(arrays, rest)))(arrays)
    return IntegratedFlow(
        **{name: state.rows[name] for name in ("time", "end_to_end", "gradient_norm", "observables")},
        networks=state.rows.get("network"),
        num_rows=state.num_rows,
        network=state.plain_parameters(),
        end_time=state.time,
        stop_reason=state.reason,
        num_steps=state.num_steps,
        num_rejected_steps=state.num_rejected,
    )


def _integrate(landscape: Landscape, network: DeepLinearNetwork, settings: Settings, method: Method) -> FlowState:
    state = loop.start(landscape, network, settings, method)
    # burst by burst: to the next thinning of the rows, or to the end
    return jax.lax.while_loop(
        lambda state: state.reason == StopReason.running,
        lambda state: loop.advance(state, landscape, settings, method, settings.max_steps),
        state,
    )


def solve(cost: Cost, network: DeepLinearNetwork, options: FlowOptions) -> Trajectory:
    """The flow of a network, to the end or to a named reason; `saddleflow.gradient_flow` documents it.

    Raises:
        ValueError: a network or a cost that will not do, named with value and remedy.
    """
    make_room()
    check_problem(cost, network, options)
    options = options.with_room_for(math.prod(cost.shape) + options.save_networks * network.num_parameters)
    trajectory, dips = _solved(cost, network, options)
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
    twin, its_dips = _solved(cost, perturbed(network), replace(options, phase="check"))
    if twin.stop_reason == out_of_time:
        return None
    return first_unresolved(run, escapes(cost, twin, its_dips), partial(on_one_way, trajectory, twin))


def _solved(cost: Cost, network: DeepLinearNetwork, options: FlowOptions) -> tuple[Trajectory, Dips | None]:
    """The run as the solver has it, and what the loop has kept of its dips."""
    graded = needs_grading(cost, network, options)
    # what observables and `stop` see is the network as it is
    start, padding = padded(network, pad=not options.observables and options.stop is None)
    landscape = NetworkLandscape(cost, padding=padding)
    settings = settings_of(landscape, start, options, pad_rows=True)
    # what tails need is compiled where a tail begins
    price = landscape.factorisation_price(start) if needs_symmetry(options) else None
    method = method_of(options, landscape, graded, dip_capacity(start), turns="plain", pad_rows=True, price=price)
    with Stopwatch() as spent:
        state, reason = run(landscape, start, settings, method, options)
    rows, dips, end = rows_of(landscape, state, settings, method), state.dips, end_of(state)
    if padding is not None:
        end = unpadded(end, network)
        rows = rows | {"network": rows.get("network") and unpadded(rows["network"], network)}
        dips = dips and replace(dips, networks=unpadded(dips.networks, network))
    trajectory = assemble(
        cost,
        network,
        end,
        rows,
        stop_reason=reason.name,
        stats=stats_of(state, method, spent),
        configuration={
            **numbers_of(settings, method),
            "atol": float(settings.atol),
            "start_norm": float(scales(landscape, start)[0]) * math.sqrt(network.num_parameters),
        },
        capacity=len(state.rows["time"]) + 1,
        durations=np.asarray(state.clock.durations),
        rank_tolerance=options.rank_tolerance,
        dips=dips_of(dips),
    )
    return trajectory, dips
