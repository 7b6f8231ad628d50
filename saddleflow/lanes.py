"""The scheduler: many flows of one shape, each stepped in bounded compiled bursts, none waiting for another.

A worker is a thread with `num_lanes` places on one device. Each burst advances all places a bounded number of steps
in one compiled call; lanes that have ended are harvested and their places given to waiting ones, with solver and
controller state travelling in `FlowState`. All lanes of a shape run in the same compiled program with the same number
of places, so a lane's arithmetic knows neither its company nor its place, device or order.

On a CPU a place is a thread's whole program (`num_lanes = 1`) and there is a thread a core: under `vmap` every inner
loop of the stiff solver runs to its slowest lane, both branches of every condition are computed, and jaxlib 0.10.2
was seen to hang in batched LAPACK calls at 16 lanes.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jaxtyping import Array, Float, Int

from saddleflow import runs, stepping
from saddleflow.checks import require
from saddleflow.costs import Cost
from saddleflow.network import DeepLinearNetwork, gaussian
from saddleflow.preparation import prepare
from saddleflow.programs import compiled
from saddleflow.runs import FlowState, Method, Settings
from saddleflow.solvers import CountingSolver, Rosenbrock
from saddleflow.symmetry import balancedness

# Steps of one burst. Alone, a lane ends a burst when it ends, so that only meters and interrupts ask for bursts;
# in company it waits for the burst to end.
BURST_ALONE, BURST_TOGETHER = 256, 8

# Places on an accelerator, where a step of one lane and of many take about as long. (Not measured here.)
ACCELERATOR_LANES = 32


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
    """A lane on its way."""

    state: FlowState
    settings: Settings
    cost: Cost


@dataclass
class Tally:
    """What a run has come to: lanes done, those of them that failed, lane-steps computed and useful."""

    done: int = 0
    failed: int = 0
    useful: int = 0
    computed: int = 0

    FAILURES = (runs.UNDERFLOW, runs.NON_FINITE, runs.MAX_STEPS)  # codes of stop reasons

    @property
    def utilisation(self) -> float:
        """Useful lane-steps over all that were computed; 1 where none was."""
        return self.useful / self.computed if self.computed else 1.0


def _start(lane: Lane, shape: Shape) -> Running:
    """The start of a lane, `alpha * theta_0(seed)` with variance w^-gamma. Every start of a sweep is made here."""
    key = jax.random.key(lane.seed)
    theta = gaussian(key, depth=shape.depth, width=shape.width, shape=shape.shape, gamma=lane.gamma)
    network = jax.tree.map(lambda layer: lane.alpha * layer, theta)
    settings, _ = prepare(
        lane.cost,
        network,
        rtol=lane.rtol,
        t1=shape.t1,
        max_steps=shape.max_steps,
        gradient_tolerance=shape.gradient_tolerance,
    )
    if shape.save_at is not None:
        never = jnp.asarray(-1.0)  # converged: a lane goes on to the last of the times
        settings = eqx.tree_at(
            lambda s: (s.save_at, s.gradient_tolerance),
            settings,
            (jnp.asarray(shape.save_at), never),
            is_leaf=lambda x: x is None,
        )
    return Running(stepping.start(lane.cost, network, settings, shape.method), settings, lane.cost)


_begin = compiled(_start)
_shapes = eqx.filter_jit(_start)  # traced once, for what it would take; never compiled


def _burst(running: Running, shape: Shape, num_steps: Int[Array, ""]) -> Running:
    state = stepping.advance(running.state, running.cost, running.settings, shape.method, num_steps)
    return eqx.tree_at(lambda r: r.state, running, state)


@compiled
def _advance(running: Running, shape: Shape, num_steps: Int[Array, ""], num_lanes: int) -> tuple[Running, Any, Any]:
    """The lanes after a burst, whether each still runs, and the steps it has taken so far."""
    if num_lanes == 1:
        running = _burst(running, shape, num_steps)
    else:
        arrays, static = eqx.partition(running, eqx.is_array)
        running = eqx.combine(
            jax.vmap(lambda r: eqx.filter(_burst(eqx.combine(r, static), shape, num_steps), eqx.is_array))(arrays),
            static,
        )
    state = running.state
    return running, state.reason == runs.RUNNING, state.num_accepted + state.num_rejected


@compiled
def _finish(running: Running, start: DeepLinearNetwork, shape: Shape) -> dict[str, Any]:
    """What is kept of a lane: rows (`num_rows` of them valid), counts, how it ended."""
    state, cost, method = running.state, running.cost, shape.method
    end = stepping.plain_network(state)
    rows, num_rows = state.rows, state.num_rows
    if shape.save_at is None:
        last = stepping.observe(cost, end, state.clock, method)
        missing = stepping.ends_between_rows(state, method)
        rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]).at[num_rows].set(y), rows, last)
        num_rows = num_rows + missing
        index = jnp.round(jnp.linspace(0, num_rows - 1, shape.num_samples)).astype(int)
        rows, num_rows = jax.tree.map(lambda x: x[index], rows), jnp.asarray(shape.num_samples)
    rows = dict(rows)
    rows["train_cost"] = jax.lax.map(cost, rows["end_to_end"])
    if cost.has_test:
        rows["test_cost"] = jax.lax.map(cost.test, rows["end_to_end"])
    change = [jnp.linalg.norm(b - a) for a, b in zip(balancedness(start), balancedness(end), strict=True)]
    scale = jnp.max(jnp.stack([jnp.sum(layer**2) for layer in (*start.layers, *end.layers)]))
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


@eqx.filter_jit
def _stack(running: Sequence[Running]) -> Running:
    return jax.tree.map(lambda *x: jnp.stack(x), *running)


@eqx.filter_jit
def _take(running: Running, place: Int[Array, ""]) -> Running:
    return jax.tree.map(lambda x: x[place], running)


@eqx.filter_jit
def _put(running: Running, lane: Running, place: Int[Array, ""]) -> Running:
    return jax.tree.map(lambda batch, x: batch.at[place].set(x), running, lane)


def lanes_per_program(device: Any) -> int:
    """Places of one compiled program on a device: one on a CPU, see above."""
    return 1 if device.platform == "cpu" else ACCELERATOR_LANES


def find_devices(devices: int | Sequence[Any] | None) -> list[Any]:
    """Local devices to work on: all, the first so many, or those given.

    Raises:
        ValueError: more devices asked for than there are.
    """
    there = jax.local_devices()
    if devices is None:
        return there
    if isinstance(devices, int):
        require(
            1 <= devices <= len(there),
            "devices",
            f"be at least 1 and at most the {len(there)} there are",
            devices,
            "Simulate more on a CPU with jax.config.update('jax_num_cpu_devices', n) at the start of the program.",
        )
        return there[:devices]
    require(len(devices) > 0, "devices", "name at least one device", devices)
    return list(devices)


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forecast_memory(lane: Lane, shape: Shape, num_lanes: int) -> int:
    """Bytes that one worker will need, foreseen from shapes before anything is compiled.

    Per lane the state in five copies (old, new, selected, harvested, the start's), the stages of a step and the
    Krylov basis.
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
    return num_lanes * size


def check_memory(need: int, workers: int, device: Any, what: str) -> None:
    """Refuse what a forecast says will not fit: `need` bytes a worker, of whom a CPU's share its memory.

    Raises:
        ValueError: forecast and what is there, with the remedy.
    """
    if device.platform == "cpu":
        there = psutil.virtual_memory().available
        need *= workers
    else:
        stats = device.memory_stats() or {}
        there = stats.get("bytes_limit", need) - stats.get("bytes_in_use", 0)
    require(
        need <= there,
        "width, save_at, lanes",
        f"fit the memory: {there / 1e9:.2f} GB are free",
        f"a forecast of {need / 1e9:.2f} GB for {workers} worker(s) of {what}",
        "Take fewer lanes, fewer devices, fewer saved times or a smaller width.",
    )


@dataclass
class _Pool:
    """What the workers of one run share."""

    waiting: "queue.SimpleQueue[tuple[int, Lane]]"
    report: Callable[[Tally], None]
    tally: Tally = field(default_factory=Tally)
    results: dict[int, Any] = field(default_factory=dict)
    error: BaseException | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> tuple[int, Lane] | None:
        """The next waiting lane, if any."""
        try:
            return self.waiting.get_nowait()
        except queue.Empty:
            return None

    def harvest(self, index: int, result: Any) -> None:
        """Take in the result of a lane."""
        code = int(result["numerics"]["stop_reason"])
        with self.lock:
            self.results[index] = result
            self.tally.done += 1
            self.tally.failed += code in Tally.FAILURES

    def count(self, useful: int, computed: int) -> None:
        """Take in the lane-steps of a burst."""
        with self.lock:
            self.tally.useful += useful
            self.tally.computed += computed
            self.report(self.tally)


def _work(pool: _Pool, shape: Shape, num_lanes: int, device: Any, compiling: threading.Lock) -> None:
    """One worker: places on one device, filled from the pool until nothing waits."""
    try:
        with jax.default_device(device):
            _loop(pool, shape, num_lanes, compiling)
    except BaseException as error:
        pool.error = error
        pool.stopped.set()


def _loop(pool: _Pool, shape: Shape, num_lanes: int, compiling: threading.Lock) -> None:
    job = pool.next()
    if job is None:
        return
    with compiling:  # workers of one device compile once, not at the same time
        first = _begin(job[1], shape)
        idle = eqx.tree_at(lambda r: r.state.reason, first, jnp.asarray(runs.STOP))
        running = first if num_lanes == 1 else _stack([first] + [idle] * (num_lanes - 1))
        burst = jnp.asarray(BURST_ALONE if num_lanes == 1 else BURST_TOGETHER, int)
        _advance(running, shape, jnp.zeros_like(burst), num_lanes)
    # of the lanes at work: label and start
    places: list[tuple[int, DeepLinearNetwork] | None] = [(job[0], first.state.network)] + [None] * (num_lanes - 1)
    before = np.zeros(num_lanes, int)
    fresh = [place for place in range(num_lanes) if places[place] is None]
    while not pool.stopped.is_set():
        for place in fresh:
            job = pool.next()
            if job is None:
                break
            begun = _begin(job[1], shape)
            places[place], before[place] = (job[0], begun.state.network), 0
            running = begun if num_lanes == 1 else _put(running, begun, jnp.asarray(place))
        if all(lane is None for lane in places):
            return
        running, active, steps = _advance(running, shape, burst, num_lanes)
        active, steps = np.atleast_1d(active), np.atleast_1d(steps)
        taken = np.where([lane is not None for lane in places], steps - before, 0)
        before = steps.copy()
        fresh = []
        for place, lane in enumerate(places):
            if lane is None or not active[place]:
                fresh.append(place)
            if lane is not None and not active[place]:
                ended = running if num_lanes == 1 else _take(running, jnp.asarray(place))
                pool.harvest(lane[0], jax.device_get(_finish(ended, lane[1], shape)))
                places[place] = None
        pool.count(int(taken.sum()), num_lanes * int(taken.max()))


def run(
    lanes: Iterable[tuple[int, Lane]],
    shape: Shape,
    *,
    devices: Sequence[Any],
    num_lanes: int | None = None,
    workers: int | None = None,
    report: Callable[[Tally], None] = lambda tally: None,
) -> tuple[dict[int, Any], Tally]:
    """Run all lanes of one shape; the longest ones should come first.

    Args:
        lanes: pairs of a label, which comes back with the result, and a lane.
        shape: what they share.
        devices: local devices.
        num_lanes: places of a worker's program; None: see `lanes_per_program`.
        workers: threads of each device; None: one, but a single CPU device gets one a core.
        report: told the tally after each burst.

    Returns:
        Results by label, and the tally. A lane that failed has its reason; it stops nobody.

    Raises:
        ValueError: the forecast says that memory will not do.
    """
    lanes = list(lanes)
    num_lanes = lanes_per_program(devices[0]) if num_lanes is None else num_lanes
    if workers is None:
        workers = cores() if len(devices) == 1 and devices[0].platform == "cpu" else 1
    placed = (list(devices) * workers)[: max(1, -(-len(lanes) // num_lanes))]
    if lanes:
        need = forecast_memory(lanes[0][1], shape, num_lanes)
        check_memory(need, len(placed), devices[0], f"{num_lanes} lane(s) at width {shape.width}")
    pool = _Pool(queue.SimpleQueue(), report)
    for lane in lanes:
        pool.waiting.put(lane)
    locks = {device: threading.Lock() for device in devices}
    threads = [
        threading.Thread(target=_work, args=(pool, shape, num_lanes, device, locks[device]), daemon=True)
        for device in placed
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        pool.stopped.set()
    if pool.error is not None:
        raise pool.error
    return pool.results, pool.tally
