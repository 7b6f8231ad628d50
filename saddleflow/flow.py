"""Gradient flow of one network: from a cost and a start to a trajectory."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from saddleflow import runs, stepping
from saddleflow.certificate import certified_flow, reduce_where_smaller
from saddleflow.checks import require_positive
from saddleflow.clock import SegmentedTime
from saddleflow.costs import Cost
from saddleflow.devices import one_lapack_thread
from saddleflow.factor import lane_by_lane
from saddleflow.network import DeepLinearNetwork, on_device
from saddleflow.preparation import prepare, scales
from saddleflow.programs import compiled, make_room
from saddleflow.reduction import ReducedNetwork
from saddleflow.runs import REASONS, FlowState, Method, Settings
from saddleflow.solvers import CountingSolver
from saddleflow.symmetry import balancedness_drift
from saddleflow.trajectory import Trajectory

# A burst is timed to last about this long, so that meters move and wall-clock budgets are kept.
BURST_SECONDS = 0.2

# Networks kept near saddles hold this many numbers at most (but four networks always).
MAX_DIP_NUMBERS = 10_000_000


@one_lapack_thread()
def gradient_flow(
    cost: Cost,
    network: DeepLinearNetwork | ReducedNetwork,
    *,
    rtol: float = 1e-6,
    t1: float | None = None,
    save_at: Any = None,
    solver: diffrax.AbstractSolver | None = None,
    observables: Mapping[str, Any] | Sequence[str] | None = None,
    stop: Callable[[Array, DeepLinearNetwork], Bool[Array, ""]] | None = None,
    save_networks: bool = False,
    max_saves: int = 1000,
    saves_per_step: int = 1,
    max_steps: int = 1_000_000,
    max_seconds: float | None = None,
    gradient_tolerance: float = 1e-4,
    rank_tolerance: float | None = None,
    graded: bool | None = None,
    progress: bool = True,
    reduce_width: str | None = None,
) -> Trajectory:
    """Solve `dtheta/dt = -grad C(A(theta))` from the network, to the end or to a named reason.

    The run ends "converged" only with a certificate: `|grad C(A)|_F` at most `gradient_tolerance` times its
    value at A = 0 (or at the start, where that is zero), which for a convex C means a minimum. A saddle, where only
    the gradient in theta vanishes, never ends a run that way. With `save_at` the run always goes on to the
    last of the times.

    Args:
        cost: the convex cost C.
        network: the start theta_0, layers in float64; or a reduced one (`reduce_width`, `sample_reduced`), whose
            run is repeated in larger bases until the estimated error of A is below its tolerance.
        rtol: relative tolerance, 1e-13 <= rtol < 1. Every entry is controlled relative to its own size or a
            share of the start's typical entry, whichever is larger: free of any scale, so alpha * theta_0
            is solved as carefully as theta_0. A is held to 10 rtol where errors of many entries add up in it.
        t1: end of the run, in time of the flow; None runs until something else ends it.
        save_at: sorted times to save at (dense output); None saves the solver's own steps, thinned to at
            most `max_saves` rows, start and end always among them.
        solver: any adaptive diffrax solver; default: `saddleflow.solvers.Switching`, which takes matrix-free
            stiff steps and explicit ones as the flow demands (from tiny starts its stiff part alone, `Rosenbrock`).
        observables: a mapping from names to functions (cost, network) -> array, or names of registered ones
            (`saddleflow.observables.REGISTRY`), evaluated inside the loop at every saved time.
        stop: a function (time, network) -> boolean that ends the run after an accepted step ("stop").
        save_networks: keep the whole network at every saved time.
        max_saves: rows kept at most where the solver's own steps are saved; at least 4.
        saves_per_step: rows of each of those steps: its end, and places before by dense output, for smoother curves.
        max_steps: steps at most, accepted and rejected ones.
        max_seconds: wall-clock budget in seconds, compilation included, kept to within about one burst (.2 s).
        gradient_tolerance: of the certificate, 1e-13 <= gradient_tolerance < 1.
        rank_tolerance: absolute cut for the numerical rank; None: a hundredth of the largest
            singular value until the cost has fallen half-way.
        graded: solve in graded coordinates (`saddleflow.graded`), which tiny starts need; None decides by the
            start's size. The default solver only; what is returned is in the coordinates of the start either way.
        progress: show a meter on terminals and in notebooks.
        reduce_width: "auto" reduces the width where the small network is smaller than half the full one, to
            an error in A of at most 10 * rtol of the largest |A|.

    Returns:
        The trajectory, whatever happened: a failed run ends with its reason, not with an exception, and keeps
        all that was computed up to the failure.

    Raises:
        ValueError: bad arguments, named with value and remedy.
    """
    options = {name: value for name, value in locals().items() if name not in ("cost", "network", "reduce_width")}
    network = reduce_where_smaller(network, reduce_width)
    if isinstance(network, ReducedNetwork):
        return certified_flow(gradient_flow, cost, network, options)
    make_room()
    settings, method = prepare(
        cost,
        network,
        rtol=rtol,
        t1=t1,
        save_at=save_at,
        solver=solver,
        observables=observables,
        stop=stop,
        save_networks=save_networks,
        max_saves=max_saves,
        saves_per_step=saves_per_step,
        max_steps=max_steps,
        gradient_tolerance=gradient_tolerance,
        graded=graded,
        num_dips=max(4, min(2 * min(cost.shape) + 2, MAX_DIP_NUMBERS // network.num_parameters)),
    )
    if max_seconds is not None:
        require_positive("max_seconds", max_seconds)
    if rank_tolerance is not None:
        require_positive("rank_tolerance", rank_tolerance)
    begin = time.perf_counter()
    state, reason = _run(cost, network, settings, method, max_seconds, progress)
    seconds = time.perf_counter() - begin
    return _trajectory(cost, network, state, settings, method, reason, rank_tolerance, seconds)


def integrate(cost: Cost, network: DeepLinearNetwork, settings: Settings, method: Method) -> FlowState:
    """The core of `gradient_flow` as a pure function of arrays, for `jax.jit` and `jax.vmap`.

    On CPUs a `vmap` takes its lanes one after another: in a batch each would wait for the slowest at every inner
    loop, and pay for both branches of every condition.

    Args:
        cost: the convex cost.
        network: the start; under vmap one lane of many.
        settings: the numbers of the run, from `prepare`; may be mapped too (tolerances, ends).
        method: solver and what is recorded, from `prepare`.

    Returns:
        The final state; `state.rows` holds `state.num_rows` saved rows, `state.reason` the index of the stop
        reason in `saddleflow.runs.REASONS`.
    """
    arrays, rest = eqx.partition((cost, network, settings, method), eqx.is_array)
    return lane_by_lane(lambda arrays: _integrate(*eqx.combine(arrays, rest)))(arrays)


def _integrate(cost: Cost, network: DeepLinearNetwork, settings: Settings, method: Method) -> FlowState:
    state = stepping.start(cost, network, settings, method)
    # burst by burst: to the next thinning of the rows, or to the end
    return jax.lax.while_loop(
        lambda state: state.reason == runs.RUNNING,
        lambda state: stepping.advance(state, cost, settings, method, settings.max_steps),
        state,
    )


@eqx.filter_jit
def _costs(cost: Cost, matrices: Float[Array, "rows n_out n_in"]) -> tuple[Array, Array | None]:
    """Train and test cost of every row."""
    return jax.vmap(cost)(matrices), jax.vmap(cost.test)(matrices) if cost.has_test else None


_start = compiled(stepping.start)
_advance = compiled(stepping.advance)
_observe = eqx.filter_jit(stepping.observe)


def _run(cost, network, settings, method, max_seconds, progress):
    """Bursts until a reason ends the run, each sized to take about `BURST_SECONDS`."""
    begin = time.perf_counter()
    state = _start(cost, network, settings, method)
    num_steps = 4
    with _meter(progress) as report:
        while int(state.reason) == runs.RUNNING:
            if max_seconds is not None and time.perf_counter() - begin > max_seconds:
                return state, REASONS[runs.MAX_SECONDS]
            burst_begin = time.perf_counter()
            state = _advance(state, cost, settings, method, jnp.asarray(num_steps))
            if int(state.reason) == runs.RUNNING and time.perf_counter() - burst_begin < BURST_SECONDS / 2:
                num_steps *= 2
            report(state, cost)
    return state, REASONS[int(state.reason)]


@contextmanager
def _meter(progress: bool) -> Iterator[Callable[[FlowState, Cost], None]]:
    """A one-line meter on terminals and in notebooks: time of the flow, train cost, steps, seconds."""
    console = Console(stderr=True)
    if not (progress and (console.is_terminal or console.is_jupyter)):
        yield lambda state, cost: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling")

        def report(state: FlowState, cost: Cost) -> None:
            train = float(cost(state.network.end_to_end()))
            steps = int(state.num_accepted + state.num_rejected)
            bar.update(task, description=f"t = {float(state.time):.4g}   cost {train:.3e}   {steps} steps")

        yield report


def _trajectory(cost, network, state, settings, method, reason, rank_tolerance, seconds) -> Trajectory:
    end = stepping.plain_network(state)
    rows = jax.tree.map(lambda x: np.asarray(x)[: int(state.num_rows)], state.rows)
    if settings.save_at is None and stepping.ends_between_rows(state, method):
        last = _observe(cost, end, state.clock, method)
        rows = jax.tree.map(lambda x, y: np.concatenate([x, np.asarray(y)[None]]), rows, last)
    count = len(rows["time"])
    # as many places for every run, however many are taken
    matrices = np.zeros((len(state.rows["time"]) + 1, *cost.shape))
    matrices[:count] = rows["end_to_end"]
    train_cost, test_cost = _costs(cost, on_device(matrices))
    num_accepted, num_rejected = int(state.num_accepted), int(state.num_rejected)
    return Trajectory(
        time=rows["time"],
        clock=SegmentedTime(rows["segment"], rows["within"], np.asarray(state.clock.durations)),
        end_to_end=rows["end_to_end"],
        train_cost=np.asarray(train_cost)[:count],
        test_cost=None if test_cost is None else np.asarray(test_cost)[:count],
        gradient_norm=rows["gradient_norm"],
        observables=rows["observables"],
        network=end,
        networks=jax.tree.map(on_device, rows.get("network")),
        stop_reason=reason,
        stats={
            "num_steps": num_accepted + num_rejected,
            "num_accepted_steps": num_accepted,
            "num_rejected_steps": num_rejected,
            **_work(method.solver, state.solver_state, num_accepted + num_rejected),
            "balancedness_drift": balancedness_drift(network, end),
            "seconds": seconds,
        },
        configuration={
            "cost": type(cost).__name__,
            "shape": list(network.shape),
            "depth": network.depth,
            "width": network.width,
            "num_parameters": network.num_parameters,
            "solver": type(method.solver).__name__,
            "rtol": float(settings.rtol),
            "atol": float(settings.atol),
            "t1": float(settings.t1),
            "max_steps": int(settings.max_steps),
            "gradient_tolerance": float(settings.gradient_tolerance),
            "start_norm": float(scales(cost, network)[0]) * math.sqrt(network.num_parameters),
        },
        rank_tolerance=rank_tolerance,
        cost=cost,
        dips=_dips(state),
    )


def _dips(state: FlowState) -> tuple[np.ndarray, DeepLinearNetwork] | None:
    """Times and networks of the dips of the gradient norm."""
    if state.dips is None:
        return None
    count = min(int(state.dips.count), len(state.dips.times))
    return np.asarray(state.dips.times[:count]), jax.tree.map(lambda layer: layer[:count], state.dips.networks)


def _work(solver: diffrax.AbstractSolver, solver_state: Any, num_steps: int) -> dict[str, Any]:
    """Evaluations of a run, rejected steps included; None where diffrax's (implicit) solvers do not tell."""
    if isinstance(solver, CountingSolver):
        work = solver.work(solver_state)
        return {
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
