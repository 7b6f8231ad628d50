"""The scheduler of lanes: each is stepped in bounded compiled bursts, and none waits for another.

A worker is a thread with one program's slots on one device. Where a program has one slot, a worker takes one lane
after another. Where it has several, a burst advances the lanes of all slots in one compiled call; lanes that have
ended are read and their slots refilled, with solver and controller state travelling in `FlowState`. A worker goes
from program to program and ends when no lane waits.

On a CPU a program has one slot, and there is a worker a core: under `vmap` every inner loop of the stiff solver runs
to its slowest lane, both branches of every condition are computed, and jaxlib 0.10.2 was seen to hang in batched
LAPACK calls of 16 lanes.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saddleflow._backend.devices import check_memory, cores, one_lapack_thread, slots_per_program
from saddleflow._backend.programs import make_room
from saddleflow.sweeps import lanes
from saddleflow.sweeps.lanes import Lane, Program, Running
from saddleflow.sweeps.results import LaneResult
from saddleflow.sweeps.workers import Report, Tally, in_threads

# Steps of one burst. A lone lane ends a burst when it ends, so that only meters and interrupts ask for bursts; among
# others it waits for the burst to end.
BURST_ALONE, BURST_TOGETHER = 256, 8

# A label, which comes back with the result, and what makes the lane: once, as its turn comes.
Labelled = tuple[Any, Callable[[], Lane]]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """The waiting lanes of one program."""

    program: Program
    kind: Hashable  # the signature of its lanes
    lanes: deque[Labelled]
    num_slots: int
    num_filled: int  # slots that a worker fills: no device takes all lanes where there are few
    compiling: dict[Any, threading.Lock]  # by device: its workers compile a program once, not at the same time

    def take(self) -> Labelled | None:
        """The next lane, if one waits."""
        try:
            return self.lanes.popleft()
        except IndexError:
            return None


@dataclass
class _Slot:
    """A slot at work: its lane's label, the lane's steps so far, and the lane-steps computed on its account."""

    label: Any
    steps: int = 0
    computed: float = 0.0


def run(
    groups: Sequence[tuple[Program, Sequence[Labelled]]],
    *,
    devices: Sequence[Any],
    slots: int | None = None,
    workers: int | None = None,
    report: Report = lambda tally: None,
) -> Iterator[tuple[Any, LaneResult]]:
    """Run lanes; of a program the longest ones should come first.

    Workers begin with different programs, so that these compile side by side, and end by helping each other.

    Args:
        groups: a program and its lanes, each a pair of a label, which comes back with the result, and a function
            that makes the lane.
        devices: local devices.
        slots: slots of a program; None: see `devices.slots_per_program`.
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
    for program, members in groups:
        first = members[0][1]()
        size = lanes.forecast_memory(first, program)
        num_slots = slots or slots_per_program(devices[0], size)
        if num_slots > 1:  # side by side, some lanes may be on a tail and others not
            program = lanes.with_turns(program, "both")
            size = lanes.forecast_memory(first, program)
            num_slots = slots or slots_per_program(devices[0], size)
        num_filled = min(num_slots, -(-len(members) // (len(devices) * workers)))
        locks = {device: threading.Lock() for device in devices}
        waiting.append(_Waiting(program, lanes.signature(first), deque(members), num_slots, num_filled, locks))
        most += -(-len(members) // num_filled)
        needs.append((num_slots * size, f"{num_slots} slot(s) {first.size_name}"))
    placed = (list(devices) * workers)[:most]
    need, what = max(needs, default=(0, ""))
    check_memory(need, len(placed), devices[0], what)
    make_room()
    orders = [waiting[i % len(waiting) :] + waiting[: i % len(waiting)] for i in range(len(placed))]
    tasks = [partial(_work, order, device, report) for order, device in zip(orders, placed, strict=True)]
    with one_lapack_thread():
        yield from in_threads(tasks, len(tasks))


def _work(
    programs: Sequence[_Waiting], device: Any, report: Report, stopped: threading.Event
) -> Iterator[tuple[Any, LaneResult]]:
    """One worker: lanes of one program after another, on one device, until none waits."""
    with jax.default_device(device):
        for waiting in programs:
            take_lanes = _one_by_one if waiting.num_slots == 1 else _together
            for label, result in take_lanes(waiting, device, report, stopped):
                report(Tally(done=1, failed=int(int(result.stop_reason) in Tally.FAILURES)))
                yield label, result


def _one_by_one(
    waiting: _Waiting, device: Any, report: Report, stopped: threading.Event
) -> Iterator[tuple[Any, LaneResult]]:
    """Lanes in the one slot of their program, one after another."""
    program, burst = waiting.program, jnp.asarray(BURST_ALONE, int)
    compiled = False
    while not stopped.is_set() and (job := waiting.take()) is not None:
        label, lane = job[0], job[1]()
        if not compiled:
            with waiting.compiling[device]:
                lanes.advance(lanes.begin(lane, program), program, jnp.zeros_like(burst))
            compiled = True
        running, before, active = lanes.begin(lane, program), 0, True
        while active and not stopped.is_set():
            # what tails need is compiled where a tail begins
            turns = "tail" if bool(running.state.on_tail) else "plain"
            running, active, steps, result = lanes.advance(running, lanes.with_turns(program, turns), burst)
            taken = float(int(steps) - before)
            before = int(steps)
            report(Tally(useful=taken, computed=taken))
            if not active:
                yield label, lanes.finished(result, running)


def _together(
    waiting: _Waiting, device: Any, report: Report, stopped: threading.Event
) -> Iterator[tuple[Any, LaneResult]]:
    """Lanes in the slots of their program, side by side, each slot refilled as its lane ends."""
    program, burst = waiting.program, jnp.asarray(BURST_TOGETHER, int)
    slots: dict[int, _Slot] = {}
    running = None
    while not stopped.is_set():
        fresh: dict[int, Lane] = {}
        for number in range(waiting.num_filled):
            job = None if number in slots else waiting.take()
            if job is not None:
                slots[number], fresh[number] = _Slot(job[0]), job[1]()
        if not slots:
            return
        if running is None:
            with waiting.compiling[device]:
                running = _fill(running, fresh, waiting)
                lanes.advance_slots(running, program, jnp.zeros_like(burst))
        elif fresh:
            running = _fill(running, fresh, waiting)
        running, active, steps = lanes.advance_slots(running, program, burst)
        report(_account(slots, np.asarray(steps), waiting.num_slots))
        active = np.asarray(active)
        ended = [number for number in slots if not active[number]]
        results = jax.device_get(lanes.read_slots(running, program)) if ended else None
        for number in ended:
            slot = slots.pop(number)
            result = jax.tree.map(lambda x, number=number: x[number, ...], results)
            result = lanes.finished(result, lanes.slot(running, number))
            yield slot.label, replace(result, computed_steps=slot.computed)


def _account(slots: dict[int, _Slot], steps: np.ndarray, num_slots: int) -> Tally:
    """Enter a burst into the slots: each lane's steps, and an equal part of the lane-steps computed."""
    taken = [int(steps[number]) - slot.steps for number, slot in slots.items()]
    computed = num_slots * max(taken)
    for number, slot in slots.items():
        slot.steps = int(steps[number])
        slot.computed += computed / len(taken)
    return Tally(useful=float(sum(taken)), computed=float(computed))


def _fill(running: Running | None, fresh: dict[int, Lane], waiting: _Waiting) -> Running:
    """The lanes of all slots, with fresh ones in theirs."""
    filled = np.asarray([number in fresh for number in range(waiting.num_slots)])
    spare = next(iter(fresh.values()))
    members = [fresh.get(number, spare) for number in range(waiting.num_slots)]
    begun = lanes.begin_slots(lanes.side_by_side(members, waiting.kind), filled, waiting.program)
    return begun if running is None else lanes.refill_slots(running, begun, filled)
