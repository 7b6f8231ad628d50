"""A run on the host: burst by burst, to a named reason; what it has recorded and what it has cost."""

import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from saddleflow._backend.arrays import on_device
from saddleflow._backend.meters import meter
from saddleflow._backend.programs import Stopwatch, compiled
from saddleflow._backend.waiting import check_interrupt
from saddleflow.flow import loop
from saddleflow.flow.arguments import FlowOptions
from saddleflow.flow.dips import Dips
from saddleflow.flow.graded import Frame
from saddleflow.flow.landscape import Landscape
from saddleflow.flow.state import FlowState, Method, Settings, StopReason

# A burst is timed to last about this long, so that meters move and wall-clock budgets are kept.
BURST_SECONDS = 0.2
MAX_BURST = 2**20

_start = compiled(loop.start, runs_once=True)


def burst(others: tuple[Landscape, Settings, Method, Any], state: FlowState) -> FlowState:
    """`loop.burst` of a state to be donated."""
    return loop.burst(state, *others)


# rows may take most of the memory there is: a burst writes them in place
_burst = compiled(burst, donates=True)
_thin = compiled(loop.thin, runs_once=True)
_observe = compiled(loop.observe, runs_once=True)


def run(
    landscape: Landscape, parameters: Any, settings: Settings, method: Method, options: FlowOptions
) -> tuple[FlowState, StopReason]:
    """Bursts until a reason ends the run, each sized to take about `BURST_SECONDS`.

    A wall-clock budget ends it between two bursts, or while the steps are still being compiled, which then goes on in
    the background. (The start, a small program, is always computed.)
    """
    compiling = "compiling" if options.phase == "run" else f"{options.phase}: compiling"
    with meter(options.progress, description=compiling) as report:
        state = owned(_start(landscape, parameters, settings, method), (landscape, parameters, settings, method))
        num_steps, fresh, standing = 1, True, _Standing(landscape)
        while int(state.reason) == StopReason.running:
            check_interrupt()
            if time.perf_counter() > options.deadline:
                return state, StopReason.max_seconds
            if _is_full(state, settings, method):
                state = owned(_thin(state), ())
            arguments = (landscape, settings, method, jnp.asarray(num_steps)), state
            if fresh:
                report(lambda: compiling, 0)
                if options.deadline < math.inf and not _burst.is_there(options.deadline, *arguments):
                    return state, StopReason.max_seconds
            begin, before = time.perf_counter(), int(state.num_steps)
            state = _burst(*arguments)
            before_it, method = method, _method_of_next(state, method)
            fresh = method != before_it
            landscape = landscape.inverting(method.inverts)
            now = time.perf_counter()
            num_steps = next_burst(num_steps, int(state.num_steps) - before, now - begin, options.deadline - now)
            report(lambda state=state: f"{options.phase}   {standing(state)}", 0)
    return state, StopReason(int(state.reason))


def _method_of_next(state: FlowState, method: Method) -> Method:
    """The method with those steps compiled in whose turn it is."""
    inverts = state.inverts_from is not None and float(state.step_size) >= float(state.inverts_from)
    return replace(method, turns="tail" if bool(state.on_tail) else "plain", inverts=inverts)


def _is_full(state: FlowState, settings: Settings, method: Method) -> bool:
    """Whether the solver's own steps, where they are saved, have no room for one more."""
    if settings.save_at is not None:
        return False
    max_rows = None if settings.max_rows is None else int(settings.max_rows)
    return not loop.has_room(int(state.num_rows), int(state.stride), max_rows, method)


def owned(state: Any, others: Any) -> Any:
    """The state with arrays of its own: results that are the arguments, or one another, are not copies of them."""
    seen = {id(leaf) for leaf in jax.tree.leaves(others)}

    def own(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.copy(leaf) if eqx.is_array(leaf) else leaf
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, state)


def next_burst(num_steps: int, taken: int, seconds: float, left: float) -> int:
    """Steps of the next burst, by what the last one was given and took, its seconds, and the seconds left."""
    if taken == num_steps and seconds < BURST_SECONDS / 2:  # each burst costs the host about a millisecond
        num_steps = min((8 if seconds < BURST_SECONDS / 16 else 2) * num_steps, MAX_BURST)
    wanted = min(BURST_SECONDS, left) if seconds > 0 else math.inf
    if num_steps * seconds > wanted * max(taken, 1):
        num_steps = int(wanted * max(taken, 1) / seconds)
    return max(num_steps, 1)


@compiled
def _measured(landscape: Landscape, parameters: Any) -> dict[str, Any]:
    return landscape.standing(parameters)


class _Standing:
    """How a run stands, in words: time of the flow, train cost, test cost and rank of A where there are any, steps.

    Nothing is said of the rank while A explains less than a hundredth of the cost of zero.
    """

    def __init__(self, landscape: Landscape):
        self._landscape = landscape
        self._at_zero: float | None = None

    def __call__(self, state: FlowState) -> str:
        found = self._measured(state, state.parameters)
        words = [f"t = {float(state.time):.4g}", f"cost {found['cost']:.3e}"]
        if "test" in found:
            words.append(f"test {found['test']:.3e}")
        if "rank" in found:
            if self._at_zero is None:
                self._at_zero = self._measured(state, jax.tree.map(jnp.zeros_like, state.parameters))["cost"]
            if found["cost"] < 0.99 * self._at_zero:
                words.append(f"rank {found['rank']:.0f}")
        return "   ".join([*words, f"{int(state.num_steps)} steps"])

    def _measured(self, state: FlowState, parameters: Any) -> dict[str, float]:
        return jax.tree.map(float, _measured(self._landscape.framed(state.frame), parameters))


def rows_of(landscape: Landscape, state: FlowState, settings: Settings, method: Method) -> dict[str, Any]:
    """The rows saved, the end among them."""
    rows = jax.tree.map(lambda x: np.asarray(x)[: int(state.num_rows)], state.rows)
    none = int(state.num_rows) == 0  # ended before the first asked time
    between = loop.ends_between_rows(int(state.num_accepted), int(state.stride), method)
    if none or (settings.save_at is None and between):
        last = _observe(landscape, end_of(state), state.clock, method)
        rows = jax.tree.map(lambda x, y: np.concatenate([x, np.asarray(y)[None]]), rows, last)
    return rows | {"network": jax.tree.map(on_device, rows.get("network"))}


@partial(compiled, runs_once=True)
def _turned_back(frame: Frame, parameters: Any) -> Any:
    return frame.undo(parameters)


def end_of(state: FlowState) -> Any:
    """The parameters at the end, in the coordinates of the start."""
    return state.parameters if state.frame is None else _turned_back(state.frame, state.parameters)


def dips_of(dips: Dips | None) -> tuple[np.ndarray, Any] | None:
    """Times and parameters of the dips of the gradient norm."""
    if dips is None:
        return None
    count = min(int(dips.count), len(dips.times))
    networks = jax.tree.map(lambda layer: on_device(np.asarray(layer)[:count]), dips.networks)
    return np.asarray(dips.times)[:count], networks


def stats_of(state: FlowState, method: Method, spent: Stopwatch) -> dict[str, Any]:
    """Counts of a run, its seconds, and those of them that compiling took."""
    return {
        "num_steps": int(state.num_accepted) + int(state.num_rejected),
        "num_accepted_steps": int(state.num_accepted),
        "num_rejected_steps": int(state.num_rejected),
        **_work(state, method),
        "seconds": spent.seconds,
        "compile_seconds": spent.compile_seconds,
    }


def numbers_of(settings: Settings, method: Method) -> dict[str, Any]:
    """The numbers of a run, for the record."""
    return {
        "solver": type(method.solver).__name__,
        "rtol": float(settings.rtol),
        "t1": float(settings.t1),
        "max_steps": int(settings.max_steps),
        "gradient_tolerance": float(settings.gradient_tolerance),
        "target_cost": None if settings.target_cost is None else float(settings.target_cost),
    }


def _work(state: FlowState, method: Method) -> dict[str, Any]:
    """Evaluations of a run, rejected steps included; None where diffrax's (implicit) solvers do not tell."""
    solver, work = method.solver, state.work(method)
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
    num_steps = int(state.num_accepted) + int(state.num_rejected)
    evaluations = num_steps * (tableau.num_stages - tableau.fsal) + int(tableau.fsal)
    return {"num_vector_field_evaluations": evaluations, "num_hessian_vector_products": 0}
