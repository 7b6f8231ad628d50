"""A sweep cut into chunks: a chunk is a pure task from numbers to numbers.

A chunk is what is computed, stored or sent to another machine as one piece. Its lanes run in one compiled program;
which lanes form a chunk depends on the grid alone.
"""

import itertools
import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from saddleflow._backend.checks import require
from saddleflow._backend.devices import find_devices
from saddleflow.flow.arguments import STIFF, FlowOptions, check_problem, method_of
from saddleflow.flow.graded import blurs
from saddleflow.flow.landscape import NetworkLandscape
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork, layer_sizes, num_parameters
from saddleflow.sweeps import reduced_lanes, scheduler
from saddleflow.sweeps.grid import Grid
from saddleflow.sweeps.lanes import Lane, Program
from saddleflow.sweeps.reduced_lanes import ReducedGroup
from saddleflow.sweeps.results import LaneResult, as_arrays
from saddleflow.sweeps.workers import Report
from saddleflow.width.adaptive import WORTHWHILE

# A chunk holds a 32nd of the lanes, within these bounds: small enough to spread, large enough to keep workers busy.
SMALLEST_CHUNK, LARGEST_CHUNK = 8, 256


@dataclass(frozen=True, eq=False)
class SweepOptions:
    """What all lanes of a sweep have in common beside the grid.

    Attributes:
        flow: options of every flow but for rtol, which is the lane's; its max_saves are the rows of the dataset.
        save_matrices: whether the dataset keeps end-to-end matrices.
        reduce_width: None or one of `reduced_lanes.MODES`.
        stiff: whether the solver is the stiff part of the default, for lanes that share a program.
    """

    flow: FlowOptions
    save_matrices: bool = False
    reduce_width: str | None = None
    stiff: bool = False

    def __post_init__(self):
        modes = reduced_lanes.MODES
        require(self.reduce_width in (None, *modes), "reduce_width", f"be None or one of {modes}", self.reduce_width)

    @property
    def num_rows(self) -> int:
        """Rows of a lane's result."""
        return self.flow.max_saves if self.flow.save_at is None else len(self.flow.save_at)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Lanes of one program, with all that is needed to run them; a pure task."""

    number: int
    program_number: int  # chunks with the same one run in the same compiled program
    index: Int[np.ndarray, " lanes"]  # rows of the grid
    costs: tuple[Cost, ...]
    coordinates: dict[str, np.ndarray] = field(repr=False)
    depth: int
    width: int
    graded: bool
    reduced: bool
    options: SweepOptions = field(repr=False)

    def lane(self, number: int) -> Lane:
        """One of the lanes."""
        table = self.coordinates
        return Lane(
            self.costs[table["cost"][number]],
            np.asarray(table["seed"][number]),
            *(np.asarray(table[axis][number], float) for axis in ("gamma", "alpha", "rtol")),
        )

    def labelled(self) -> list[tuple[Any, Lane]]:
        """All lanes, each with the label (chunk, number within the chunk)."""
        return [((self, number), self.lane(number)) for number in range(len(self.index))]


def cut(grid: Grid, options: SweepOptions, chunk_size: int | None) -> list[Chunk]:
    """The chunks of a sweep: lanes of one program together, those with the most work to be foreseen first."""
    if chunk_size is None:
        chunk_size = min(max(-(-grid.size // 32), SMALLEST_CHUNK), LARGEST_CHUNK)
    table = grid.coordinates()
    scale = table["alpha"] * table["width"] ** (-table["gamma"] / 2)
    kinds = _kinds(grid.costs)
    chunks: list[Chunk] = []
    for number, (key, members) in enumerate(_groups(grid, options, table, scale, kinds).items()):
        kind, depth, width, graded = key
        reduced = options.reduce_width is not None and _is_reduced(grid.costs[kinds.index(kind)], depth, width)
        # the smaller the start, the more saddles it stops at
        members = np.asarray(sorted(members, key=lambda lane: (scale[lane], lane)))
        # lanes are dealt out like cards, so that chunks are alike in work
        for start in range(-(-len(members) // chunk_size)):
            index = members[start :: -(-len(members) // chunk_size)]
            part = {axis: values[index] for axis, values in table.items()}
            used = sorted(set(part["cost"].tolist()))
            part["cost"] = np.searchsorted(used, part["cost"])
            costs = tuple(grid.costs[i] for i in used)
            chunks.append(Chunk(len(chunks), number, index, costs, part, depth, width, graded, reduced, options))
    return chunks


def _groups(
    grid: Grid, options: SweepOptions, table: dict[str, np.ndarray], scale: np.ndarray, kinds: list[int]
) -> dict[Any, list[int]]:
    """The lanes of each program, by kind of cost, depth, width and whether coordinates are graded."""
    tiny: dict[Any, bool] = {}
    groups: dict[Any, list[int]] = {}
    for lane in range(grid.size):
        cost, depth, width = (int(table[axis][lane]) for axis in ("cost", "depth", "width"))
        key = (cost, depth, width, float(scale[lane]))
        if key not in tiny:
            tiny[key] = _is_graded(grid.costs[cost], depth, width, float(scale[lane]), options)
        groups.setdefault((kinds[cost], depth, width, tiny[key]), []).append(lane)
    return groups


def _kinds(costs: Sequence[Cost]) -> list[int]:
    """Numbers that are equal for costs which one compiled program can serve."""
    seen: list[Any] = []
    kinds = []
    for cost in costs:
        leaves, structure = jax.tree.flatten(cost)
        kind = (structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves])
        if kind not in seen:
            seen.append(kind)
        kinds.append(seen.index(kind))
    return kinds


def _is_graded(cost: Cost, depth: int, width: int, scale: float, options: SweepOptions) -> bool:
    """Whether starts of this scale need graded coordinates: by their law, so that the seed plays no part."""
    if options.flow.solver is not None:
        return False
    sizes = itertools.pairwise(layer_sizes(depth, width, cost.shape))
    return blurs(cost, scale * max(math.sqrt(a) + math.sqrt(b) for a, b in sizes), depth)


def _is_reduced(cost: Cost, depth: int, width: int) -> bool:
    """Whether the smallest bases, of the activity from both ends, hold less than half of the parameters."""
    small = num_parameters(layer_sizes(depth, min(width, sum(cost.shape)), cost.shape))
    return small < WORTHWHILE * num_parameters(layer_sizes(depth, width, cost.shape))


def run_chunks(
    chunks: Sequence[Chunk],
    *,
    devices: int | Sequence[Any] | None = None,
    slots: int | None = None,
    workers: int | None = None,
    report: Report = lambda tally: None,
) -> Generator[tuple[Chunk, dict[str, np.ndarray]], None, None]:
    """Compute chunks; the same numbers whatever the devices, the machine or the other chunks.

    Args:
        chunks: the tasks. The lanes of all are computed together: none waits for another's chunk to end.
        devices: as `devices.find_devices` takes them.
        slots: slots of a program, as in `scheduler.run`.
        workers: threads, as in `scheduler.run`.
        report: told what each burst adds to the tally, from several threads.

    Yields:
        Chunks as they are complete, each with arrays by name: first axis the chunk's lanes, and lane_steps, the
        useful and the computed ones.
    """
    ended = _run_lanes(chunks, find_devices(devices), slots, workers, report)
    rows: dict[int, dict[int, Any]] = {chunk.number: {} for chunk in chunks}
    with closing(ended):  # who stops listening here stops the workers
        for (chunk, lane), result in ended:
            there = rows[chunk.number]
            there[lane] = _arrays(chunk, result)
            if len(there) == len(chunk.index):
                arrays = {name: np.stack([there[i][name] for i in range(len(there))]) for name in there[0]}
                arrays["lane_steps"] = arrays["lane_steps"].sum(axis=0)
                del rows[chunk.number]
                yield chunk, arrays


def run_chunk(chunk: Chunk, **options: Any) -> dict[str, np.ndarray]:
    """Compute one chunk: a pure task for another machine. Options as in `run_chunks`."""
    ((_, arrays),) = run_chunks([chunk], **options)
    return arrays


def _run_lanes(
    chunks: Sequence[Chunk], devices: Sequence[Any], slots: int | None, workers: int | None, report: Report
) -> Generator[tuple[Any, LaneResult], None, None]:
    """The lanes of the chunks, those of reduced width last."""
    programs: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        programs.setdefault(chunk.program_number, []).append(chunk)
    whole, reduced = [], []
    for members in programs.values():
        labelled = [item for chunk in members for item in chunk.labelled()]
        if members[0].reduced:
            reduced.append(_reduced_group(members[0], labelled))
        else:
            whole.append((_program(members[0]), labelled))
    reduced_lanes.check_groups(reduced, workers)
    yield from scheduler.run(whole, devices=devices, slots=slots, workers=workers, report=report)
    yield from reduced_lanes.run(reduced, workers=workers, report=report)


def _flow_options(chunk: Chunk) -> FlowOptions:
    """Options of the flows of a chunk, checked against its cost."""
    options, cost = chunk.options, chunk.costs[0]
    flow = replace(
        options.flow,
        solver=STIFF if options.stiff else options.flow.solver,
        graded=chunk.graded,
        max_saves=2 * options.flow.max_saves,  # full rows are halved: that many remain
    )
    check_problem(cost, _narrow(cost, chunk.depth), flow)
    return flow


def _narrow(cost: Cost, depth: int) -> DeepLinearNetwork:
    """A network of width 1: whether a cost will do depends on no width."""
    sizes = layer_sizes(depth, 1, cost.shape)
    return DeepLinearNetwork(jnp.ones(size) for size in zip(sizes[1:], sizes[:-1], strict=True))


def _program(chunk: Chunk) -> Program:
    flow = _flow_options(chunk)
    return Program(
        method=method_of(flow, NetworkLandscape(chunk.costs[0]), chunk.graded, turns="plain"),
        save_at=flow.save_at,
        t1=np.asarray(np.inf if flow.t1 is None else flow.t1, float),
        max_steps=np.asarray(flow.max_steps),
        gradient_tolerance=np.asarray(flow.gradient_tolerance, float),
        depth=chunk.depth,
        width=chunk.width,
        shape=chunk.costs[0].shape,
        num_rows=chunk.options.num_rows,
    )


def _reduced_group(chunk: Chunk, labelled: Sequence[tuple[Any, Lane]]) -> ReducedGroup:
    options = chunk.options
    assert options.reduce_width is not None
    shape = chunk.costs[0].shape
    return ReducedGroup(
        _flow_options(chunk), options.reduce_width, chunk.depth, chunk.width, shape, options.num_rows, labelled
    )


def _arrays(chunk: Chunk, result: LaneResult) -> dict[str, np.ndarray]:
    """The result of one of a chunk's lanes, by the names of the dataset."""
    options = chunk.options
    if options.reduce_width is not None and not chunk.reduced:  # nothing was cut
        result = replace(result, reduction_error_estimate=np.zeros(()))
    return as_arrays(
        result,
        num_rows=options.num_rows,
        with_time=options.flow.save_at is None,
        with_matrices=options.save_matrices,
        rank_tolerance=options.flow.rank_tolerance,
    )
