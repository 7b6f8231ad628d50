"""The scheduler: many flows, each stepped in bounded compiled bursts, none waiting for another.

A worker is a thread with `num_lanes` places on one device. Each burst advances all places a bounded number of steps
in one compiled call; lanes that have ended are harvested and their places given to waiting ones, with solver and
controller state travelling in `FlowState`. A worker ends when no lane of any shape waits. All lanes of a shape run in
the same compiled program with the same number of places, so a lane's arithmetic knows neither its company nor its
place, device or order.

On a CPU a place is a thread's whole program (`num_lanes = 1`) and there is a thread a core: under `vmap` every inner
loop of the stiff solver runs to its slowest lane, both branches of every condition are computed, and jaxlib 0.10.2
was seen to hang in batched LAPACK calls at 16 lanes.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saddleflow._backend.devices import check_memory, cores, lanes_per_program, one_lapack_thread
from saddleflow._backend.programs import compiled, make_room
from saddleflow.flow import loop
from saddleflow.flow.arguments import FlowOptions, settings_of
from saddleflow.flow.state import FlowState, Method, Settings, StopReason
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork, gaussian
from saddleflow.problem.symmetry import balancedness
from saddleflow.solvers import CountingSolver, Rosenbrock

# Steps of one burst. Alone, a lane ends a burst when it ends, so that only meters and interrupts ask for bursts;
# in company it waits for the burst to end.
BURST_ALONE, BURST_TOGETHER = 256, 8


class Lane(eqx.Module):
    """What tells one lane from another of its shape: all traced, so that none needs a compilation."""

    cost: Cost
    seed: Int[Array | np.ndarray, ""]
    gamma: Float[Array | np.ndarray, ""]
    alpha: Float[Array | np.ndarray, ""]
    rtol: Float[Array | np.ndarray, ""]


class Shape(eqx.Module):
    """What the lanes of one compiled program share."""

    method: Method
    save_at: Float[np.ndarray, " times"] | None
    t1: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    gradient_tolerance: float = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    shape: tuple[int, int] = eqx.field(static=True)
    num_samples: int = eqx.field(static=True)  # rows of a result where the solver's own steps are saved


class Running(eqx.Module):
    """A lane on its way, or a batch of them."""

    state: FlowState
    settings: Settings
    cost: Cost
    start: DeepLinearNetwork


@dataclass(frozen=True)
class Tally:
    """What a run has come to: lanes done, those of them that failed, lane-steps computed and useful."""

    done: int = 0
    failed: int = 0
    useful: float = 0.0
    computed: float = 0.0

    FAILURES = (StopReason.step_size_underflow, StopReason.non_finite, StopReason.max_steps)  # codes of stop reasons

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def utilisation(self) -> float:
        """Useful lane-steps over all that were computed; 1 where none was."""
        return self.useful / self.computed if self.computed else 1.0


def _start(lane: Lane, shape: Shape) -> Running:
    """The start of a lane, `alpha * theta_0(seed)` with variance w^-gamma. Every start of a sweep is made here."""
    key = jax.random.key(lane.seed)
    theta = gaussian(key, depth=shape.depth, width=shape.width, shape=shape.shape, gamma=lane.gamma)
    network = jax.tree.map(lambda layer: lane.alpha * layer, theta)
    options = FlowOptions(
        rtol=lane.rtol, t1=shape.t1, max_steps=shape.max_steps, gradient_tolerance=shape.gradient_tolerance
    )
    settings = settings_of(lane.cost, network, options)
    if shape.save_at is not None:
        never = jnp.asarray(-1.0)  # converged: a lane goes on to the last of the times
        settings = eqx.tree_at(
            lambda s: (s.save_at, s.gradient_tolerance),
            settings,
            (jnp.asarray(shape.save_at), never),
            is_leaf=lambda x: x is None,
        )
    return Running(loop.start(lane.cost, network, settings, shape.method), settings, lane.cost, network)


_begin = compiled(_start)
_shapes = eqx.filter_jit(_start)  # traced once, for what it would take; never compiled


@compiled
def _begin_many(lanes: Lane, occupied: Bool[Array | np.ndarray, " lanes"], shape: Shape) -> Running:
    """Starts of a batch of lanes; those of empty places have ended already."""
    running = eqx.filter_vmap(_start, in_axes=(eqx.if_array(0), None))(lanes, shape)
    reason = jnp.where(occupied, running.state.reason, StopReason.stop)
    return eqx.tree_at(lambda r: r.state.reason, running, reason)


@eqx.filter_jit
def _replace(running: Running, fresh: Running, places: Bool[Array | np.ndarray, " lanes"]) -> Running:
    """A batch with the lanes of some places replaced."""
    return jax.tree.map(
        lambda old, new: jnp.where(places.reshape(-1, *[1] * (old.ndim - 1)), new, old), running, fresh
    )


def _burst(running: Running, shape: Shape, num_steps: Int[Array, ""]) -> Running:
    state = loop.advance(running.state, running.cost, running.settings, shape.method, num_steps)
    return eqx.tree_at(lambda r: r.state, running, state)


@compiled
def _advance(
    running: Running, shape: Shape, num_steps: Int[Array, ""], num_lanes: int
) -> tuple[Running, Any, Any, dict[str, Any] | None]:
    """The lanes after a burst, whether each still runs, the steps it has taken so far; a lone lane's result."""
    burst = _burst if num_lanes == 1 else eqx.filter_vmap(_burst, in_axes=(eqx.if_array(0), None, None))
    running = burst(running, shape, num_steps)
    state = running.state
    result = _result(running, shape) if num_lanes == 1 else None  # of no use before the end, but nearly free
    return running, state.reason == StopReason.running, state.num_steps, result


def _result(running: Running, shape: Shape) -> dict[str, Any]:
    """What is kept of a lane: rows (`num_rows` of them valid), counts, how it ended."""
    state, cost, method = running.state, running.cost, shape.method
    end = state.plain_network()
    rows, num_rows = state.rows, state.num_rows
    if shape.save_at is None:
        last = loop.observe(cost, end, state.clock, method)
        missing = loop.ends_between_rows(state, method)
        rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]).at[num_rows].set(y), rows, last)
        num_rows = num_rows + missing
        index = jnp.round(jnp.linspace(0, num_rows - 1, shape.num_samples)).astype(int)
        rows, num_rows = jax.tree.map(lambda x: x[index], rows), jnp.asarray(shape.num_samples)
    rows = dict(rows)
    rows["train_cost"] = jax.lax.map(cost, rows["end_to_end"])
    if cost.has_test:
        rows["test_cost"] = jax.lax.map(cost.test, rows["end_to_end"])
    change = [jnp.linalg.norm(b - a) for a, b in zip(balancedness(running.start), balancedness(end), strict=True)]
    scale = jnp.max(jnp.stack([jnp.sum(layer**2) for layer in (*running.start.layers, *end.layers)]))
    numerics = {
        "end_time": state.time,
        "stop_reason": state.reason,
        "num_accepted_steps": state.num_accepted,
        "num_rejected_steps": state.num_rejected,
        "balancedness_drift": jnp.max(jnp.stack(change)) / jnp.where(scale > 0, scale, 1.0),
    }
    if isinstance(method.solver, CountingSolver):
        work = method.solver.work(state.solver_state)
        numerics["num_vector_field_evaluations"] = work.vector_fields
        numerics["num_hessian_vector_products"] = work.products
    return {"rows": rows, "num_rows": num_rows, "numerics": numerics}


@compiled
def _finish(running: Running, shape: Shape) -> dict[str, Any]:
    """The results of a batch."""
    return eqx.filter_vmap(_result, in_axes=(eqx.if_array(0), None))(running, shape)


def forecast_memory(lane: Lane, shape: Shape) -> int:
    """Bytes that a place will need, foreseen from shapes before anything is compiled.

    The lane in five copies (old, new, selected, fresh, harvested), the stages of a step and the Krylov basis.
    """
    state = eqx.filter_eval_shape(_shapes, lane, shape)
    parameters = sum(layer.size for layer in state.state.network.layers)
    size = 5 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    solver = shape.method.solver
    if isinstance(solver, Rosenbrock):
        n_out, n_in = shape.shape
        ends = n_out + n_in
        compressed = ends * shape.width * (shape.depth - 1)
        coordinates = compressed if shape.depth > 2 and shape.width > ends else parameters
        size += 8 * ((2 * solver.tableau.stages + 6) * parameters + 2 * solver.max_krylov_dim * coordinates)
    else:
        size += 8 * 16 * parameters
    return size


@dataclass
class _Group:
    """Lanes of one shape, waiting."""

    shape: Shape
    num_lanes: int
    share: int  # places that a worker fills: no device takes all lanes where there are few
    waiting: "queue.SimpleQueue[tuple[Any, Lane]]"
    compiling: dict[Any, threading.Lock]  # by device

    def next(self) -> tuple[Any, Lane] | None:
        """The next waiting lane, if any."""
        try:
            return self.waiting.get_nowait()
        except queue.Empty:
            return None


@dataclass
class _Pool:
    """What the workers of one run share."""

    report: Callable[[Tally], None]
    # (label, result) of a lane, an error, or None from a worker that has nothing left to do
    finished: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)
    stopped: threading.Event = field(default_factory=threading.Event)

    def harvest(self, label: Any, result: dict[str, Any]) -> None:
        """Hand over the result of a lane."""
        failed = int(result["numerics"]["stop_reason"]) in Tally.FAILURES
        self.report(Tally(done=1, failed=int(failed)))
        self.finished.put((label, result))


@dataclass
class _Place:
    """A lane at work: its label, its steps so far, and its share of the steps computed meanwhile."""

    label: Any
    steps: int = 0
    share: float = 0.0


def _work(pool: _Pool, groups: Sequence[_Group], device: Any) -> None:
    """One worker: places on one device, filled from one group after another until nothing waits."""
    try:
        with jax.default_device(device):
            for group in groups:
                _loop(pool, group, group.compiling[device])
        pool.finished.put(None)
    except BaseException as error:
        pool.finished.put(error)


def _loop(pool: _Pool, group: _Group, compiling: threading.Lock) -> None:
    shape, num_lanes, places = group.shape, group.num_lanes, dict[int, _Place]()
    burst = jnp.asarray(BURST_ALONE if num_lanes == 1 else BURST_TOGETHER, int)
    running = None
    while not pool.stopped.is_set():
        fresh: dict[int, Lane] = {}
        for number in range(group.share):
            job = None if number in places else group.next()
            if job is not None:
                places[number], fresh[number] = _Place(job[0]), job[1]
        if not places:
            return
        if running is None:
            with compiling:  # workers of one device compile once, not at the same time
                running = _fill(running, fresh, shape, num_lanes)
                _advance(running, shape, jnp.zeros_like(burst), num_lanes)
        elif fresh:
            running = _fill(running, fresh, shape, num_lanes)
        running, active, steps, result = _advance(running, shape, burst, num_lanes)
        active, steps = np.atleast_1d(active), np.atleast_1d(steps)
        taken = {number: int(steps[number]) - place.steps for number, place in places.items()}
        computed = num_lanes * max(taken.values())
        pool.report(Tally(useful=float(sum(taken.values())), computed=float(computed)))
        for number, place in places.items():
            place.steps, place.share = int(steps[number]), place.share + computed / len(taken)
        ended = [number for number in places if not active[number]]
        if ended:
            results = jax.device_get(_finish(running, shape) if result is None else result)
            for number in ended:
                own = results if num_lanes == 1 else jax.tree.map(lambda x, number=number: x[number], results)
                place = places.pop(number)
                pool.harvest(place.label, own | {"lane_steps": np.asarray([place.steps, place.share])})


def _fill(running: Running | None, fresh: dict[int, Lane], shape: Shape, num_lanes: int) -> Running:
    """The batch with fresh lanes in their places."""
    if num_lanes == 1:
        return _begin(fresh[0], shape)
    filled = np.asarray([number in fresh for number in range(num_lanes)])
    spare = next(iter(fresh.values()))
    lanes = [fresh.get(number, spare) for number in range(num_lanes)]
    begun = _begin_many(jax.tree.map(lambda *x: np.stack(x), *lanes), filled, shape)
    return begun if running is None else _replace(running, begun, filled)


def run(
    groups: Sequence[tuple[Shape, Sequence[tuple[Any, Lane]]]],
    *,
    devices: Sequence[Any],
    num_lanes: int | None = None,
    workers: int | None = None,
    report: Callable[[Tally], None] = lambda tally: None,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Run lanes, those of one shape in one program; of a shape the longest ones should come first.

    Workers begin with different groups, so that programs are compiled side by side, and end by helping each other.

    Args:
        groups: a shape, and the lanes that share it: pairs of a label, which comes back with the result, and a lane.
        devices: local devices.
        num_lanes: places of a worker's program; None: see `devices.lanes_per_program`.
        workers: threads of each device; None: one, but a single CPU device gets one a core.
        report: told what each burst adds to the tally, from several threads.

    Yields:
        Label and result, as lanes end. A lane that failed has its reason; it stops nobody.

    Raises:
        ValueError: the forecast says that memory will not do.
    """
    if workers is None:
        workers = cores() if len(devices) == 1 and devices[0].platform == "cpu" else 1
    waiting, most, needs = [], 0, []
    for shape, members in groups:
        size = forecast_memory(members[0][1], shape)
        places = num_lanes or lanes_per_program(devices[0], size)
        share = min(places, -(-len(members) // (len(devices) * workers)))
        group = _Group(shape, places, share, queue.SimpleQueue(), {device: threading.Lock() for device in devices})
        for lane in members:
            group.waiting.put(lane)
        waiting.append(group)
        most += -(-len(members) // share)
        needs.append((places * size, f"{places} lane(s) at width {shape.width}"))
    placed = (list(devices) * workers)[:most]
    if needs:
        need, what = max(needs)
        check_memory(need, len(placed), devices[0], what)
    make_room()
    pool, alive, error = _Pool(report), len(placed), None
    with one_lapack_thread():
        for number, device in enumerate(placed):
            first = number % len(waiting)
            order = waiting[first:] + waiting[:first]
            threading.Thread(target=_work, args=(pool, order, device), name=f"lanes-{number}", daemon=True).start()
        try:
            while alive:
                item = pool.finished.get()
                if item is None:
                    alive -= 1
                elif isinstance(item, BaseException):  # raised when the others have stopped: they may be compiling
                    alive, error = alive - 1, error or item
                    pool.stopped.set()
                else:
                    yield item
            if error is not None:
                raise error
        finally:
            pool.stopped.set()
