"""A sweep cut into chunks: the grid of lanes, and a chunk as a pure task from numbers to numbers.

A chunk is what is computed, stored or sent to another machine as one piece. Its lanes have one shape and run in one
compiled program; which lanes form a chunk depends on the grid alone.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from saddleflow._backend.checks import require, require_integer, require_positive
from saddleflow._backend.devices import find_devices
from saddleflow.flow import observables as obs
from saddleflow.flow.arguments import STIFF, FlowOptions, check_problem, method_of
from saddleflow.flow.graded import blurs
from saddleflow.flow.state import StopReason
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork, layer_sizes
from saddleflow.sweeps import lanes, reduced_lanes
from saddleflow.sweeps.lanes import Lane, Shape, Tally
from saddleflow.width.adaptive import WORTHWHILE

# The dims a sweep can have, in the order of the dataset.
AXES = ("cost", "depth", "gamma", "alpha", "width", "seed", "rtol")

# Where a lane's own steps are saved: rows of a step, so that short runs too have as many as the dataset asks for.
SAVES_PER_STEP = 4

# A chunk holds a 32nd of the lanes, within these bounds: small enough to spread, large enough to keep workers busy.
SMALLEST_CHUNK, LARGEST_CHUNK = 8, 256


@dataclass(frozen=True)
class Options:
    """What all lanes of a sweep share beside the grid."""

    t1: float | None
    save_at: Float[np.ndarray, " times"] | None
    max_saves: int
    max_steps: int
    gradient_tolerance: float
    rank_tolerance: float | None
    solver: diffrax.AbstractSolver | None
    observables: dict[str, Callable[..., Any]]
    save_matrices: bool
    reduce_width: str | None
    stiff: bool  # whether the solver is the default's stiff part, chosen for lanes in company

    def __post_init__(self):
        if self.rank_tolerance is not None:
            require_positive("rank_tolerance", self.rank_tolerance)
        require_integer("max_saves", self.max_saves, 4)
        require_integer("max_steps", self.max_steps, 1)
        given = self.gradient_tolerance
        require(1e-13 <= given < 1, "gradient_tolerance", "lie in [1e-13, 1)", given)
        modes = reduced_lanes.MODES
        require(self.reduce_width in (None, *modes), "reduce_width", f"be None or one of {modes}", self.reduce_width)

    @property
    def num_rows(self) -> int:
        """Rows of a lane's result."""
        return self.max_saves if self.save_at is None else len(self.save_at)


@dataclass(frozen=True)
class Grid:
    """The lanes of a sweep: all combinations of the axes' values; `dims` are the axes given as sequences."""

    costs: tuple[Cost, ...]
    values: dict[str, tuple[Any, ...]]
    dims: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of lanes."""
        return int(np.prod([len(self.values[axis]) for axis in AXES]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dims."""
        return tuple(len(self.values[axis]) for axis in self.dims)

    def coordinates(self) -> dict[str, np.ndarray]:
        """The value of every axis at every lane, lanes in row-major order; of the costs their places."""
        columns = zip(*itertools.product(*(self.values[axis] for axis in AXES)), strict=True)
        return {axis: np.asarray(column) for axis, column in zip(AXES, columns, strict=True)}


@dataclass(frozen=True)
class Chunk:
    """Lanes of one shape, with all that is needed to run them; a pure task."""

    number: int
    program: int  # chunks with the same one share a compiled program
    index: Int[np.ndarray, " lanes"]  # rows of the grid
    costs: tuple[Cost, ...]
    coordinates: dict[str, np.ndarray] = field(repr=False)
    depth: int
    width: int
    graded: bool
    reduced: bool
    options: Options = field(repr=False)


def cut(grid: Grid, options: Options, chunk_size: int | None) -> list[Chunk]:
    """The chunks of a sweep: lanes of one program together, those with the most work to be foreseen first."""
    if chunk_size is None:
        chunk_size = min(max(-(-grid.size // 32), SMALLEST_CHUNK), LARGEST_CHUNK)
    table = grid.coordinates()
    scale = table["alpha"] * table["width"] ** (-table["gamma"] / 2)
    kinds = _kinds(grid.costs)
    tiny: dict[Any, bool] = {}
    groups: dict[Any, list[int]] = {}
    for lane in range(grid.size):
        cost, depth, width = (int(table[axis][lane]) for axis in ("cost", "depth", "width"))
        key = (cost, depth, width, float(scale[lane]))
        if key not in tiny:
            tiny[key] = _is_graded(grid.costs[cost], depth, width, float(scale[lane]), options)
        groups.setdefault((kinds[cost], depth, width, tiny[key]), []).append(lane)
    chunks = []
    for program, ((kind, depth, width, graded), members) in enumerate(groups.items()):
        reduced = options.reduce_width is not None and _is_reduced(grid.costs[kinds.index(kind)], depth, width)
        # the smaller the start, the more saddles it stops at
        members = np.asarray(sorted(members, key=lambda lane: (scale[lane], lane)))
        # lanes are dealt out like cards, so that chunks are alike in work
        for start in range(-(-len(members) // chunk_size)):
            index = members[start :: -(-len(members) // chunk_size)]
            part = {axis: values[index] for axis, values in table.items()}
            used = tuple(grid.costs[i] for i in sorted(set(part["cost"].tolist())))
            part["cost"] = np.searchsorted(sorted(set(part["cost"].tolist())), part["cost"])
            chunks.append(Chunk(len(chunks), program, index, used, part, depth, width, graded, reduced, options))
    return chunks


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


def _is_graded(cost: Cost, depth: int, width: int, scale: float, options: Options) -> bool:
    """Whether starts of this scale need graded coordinates: by their law, so that the seed plays no part."""
    if options.solver is not None:
        return False
    sizes = itertools.pairwise(layer_sizes(depth, width, cost.shape))
    return blurs(cost, scale * max(math.sqrt(a) + math.sqrt(b) for a, b in sizes), depth)


def _is_reduced(cost: Cost, depth: int, width: int) -> bool:
    """Whether the smallest bases, of the activity from both ends, hold less than half of the parameters."""
    small = _parameters(cost, depth, min(width, sum(cost.shape)))
    return small < WORTHWHILE * _parameters(cost, depth, width)


def _parameters(cost: Cost, depth: int, width: int) -> int:
    return sum(a * b for a, b in itertools.pairwise(layer_sizes(depth, width, cost.shape)))


def _narrow(cost: Cost, depth: int) -> DeepLinearNetwork:
    """A network of width 1: what a method is prepared for depends on no width."""
    sizes = layer_sizes(depth, 1, cost.shape)
    return DeepLinearNetwork(jnp.ones(size) for size in zip(sizes[1:], sizes[:-1], strict=True))


def run_chunks(
    chunks: Sequence[Chunk],
    *,
    devices: int | Sequence[Any] | None = None,
    num_lanes: int | None = None,
    workers: int | None = None,
    report: Callable[[Tally], None] = lambda tally: None,
) -> Generator[tuple[Chunk, dict[str, np.ndarray]], None, None]:
    """Compute chunks; the same numbers whatever the devices, the machine or the company.

    Args:
        chunks: the tasks. Their lanes are computed as one crowd: none waits for another's chunk to end.
        devices: as `devices.find_devices` takes them.
        num_lanes: places of a compiled program, as in `lanes.run`.
        workers: threads, as in `lanes.run`.
        report: told what each burst adds to the tally, from several threads.

    Yields:
        Chunks as they are complete, each with arrays by name: first axis the chunk's lanes, and lane_steps, the
        useful and the computed ones.
    """
    programs = {}
    for chunk in chunks:
        programs.setdefault(chunk.program, []).append(chunk)
    whole, reduced = [], []
    for members in programs.values():
        labelled = [((chunk, place), _lane(chunk, place)) for chunk in members for place in range(len(chunk.index))]
        if members[0].reduced:
            assert members[0].options.reduce_width is not None
            reduced.append((_shape(members[0]), members[0].options.reduce_width, labelled))
        else:
            whole.append((_shape(members[0]), labelled))
    reduced_lanes.check_groups(reduced, workers)
    ended = itertools.chain(
        lanes.run(whole, devices=find_devices(devices), num_lanes=num_lanes, workers=workers, report=report),
        reduced_lanes.run(reduced, workers=workers, report=report),
    )
    rows: dict[int, dict[int, Any]] = {chunk.number: {} for chunk in chunks}
    for (chunk, place), result in ended:
        if chunk.options.reduce_width is not None and not chunk.reduced:  # nothing was cut
            result["numerics"]["reduction_error_estimate"] = np.zeros(())
        there = rows[chunk.number]
        there[place] = _rows(result, chunk.options)
        if len(there) == len(chunk.index):
            arrays = {name: np.stack([there[i][name] for i in range(len(there))]) for name in there[0]}
            arrays["lane_steps"] = arrays["lane_steps"].sum(axis=0)
            del rows[chunk.number]
            yield chunk, arrays


def run_chunk(chunk: Chunk, **options: Any) -> dict[str, np.ndarray]:
    """Compute one chunk: a pure task for another machine. Options as in `run_chunks`."""
    ((_, arrays),) = run_chunks([chunk], **options)
    return arrays


def _lane(chunk: Chunk, place: int) -> Lane:
    table = chunk.coordinates
    return Lane(
        chunk.costs[table["cost"][place]],
        np.asarray(table["seed"][place]),
        *(np.asarray(table[axis][place], float) for axis in ("gamma", "alpha", "rtol")),
    )


def _shape(chunk: Chunk) -> Shape:
    """What the lanes of a program share, as any of its chunks has it."""
    options, cost = chunk.options, chunk.costs[0]
    flow = FlowOptions(
        solver=STIFF if options.stiff else options.solver,
        observables=options.observables,
        max_saves=2 * options.max_saves,  # full rows are halved: that many remain
        saves_per_step=SAVES_PER_STEP,
    )
    check_problem(cost, _narrow(cost, chunk.depth), flow)
    method = method_of(flow, chunk.graded)
    return Shape(
        method,
        options.save_at,
        options.t1,
        options.max_steps,
        options.gradient_tolerance,
        chunk.depth,
        chunk.width,
        cost.shape,
        options.num_rows,
    )


def _rows(result: dict[str, Any], options: Options) -> dict[str, np.ndarray]:
    """A lane's result as arrays with the rows first; NaN (rank -1) where the lane did not get."""
    rows, valid = result["rows"], np.arange(options.num_rows) < result["num_rows"]

    def masked(values: Any) -> np.ndarray:
        values = np.asarray(values, float)
        return np.where(valid.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)

    names = ["train_cost", "gradient_norm", *(["test_cost"] if "test_cost" in rows else [])]
    kept = {name: masked(rows[name]) for name in names}
    if options.save_at is None:
        kept["time"] = masked(rows["time"])
    matrices = masked(rows["end_to_end"])
    values = np.full((options.num_rows, min(matrices.shape[1:])), np.nan)
    finite = np.isfinite(matrices).all(axis=(1, 2))
    if finite.any():
        values[finite] = np.linalg.svd(matrices[finite], compute_uv=False)
    tolerance = options.rank_tolerance
    if tolerance is None:
        tolerance = obs.default_rank_tolerance(values, kept["train_cost"])
    kept |= {
        "singular_values": values,
        "nuclear_norm": obs.nuclear_norm(values),
        "rank": np.where(finite, obs.rank(np.nan_to_num(values), tolerance), -1),
        "rank_tolerance": np.asarray(tolerance),
    }
    if options.save_matrices:
        kept["end_to_end"] = matrices
    for name, observed in rows["observables"].items():
        kept[f"observable_{name}"] = masked(observed)
    numerics = {name: np.asarray(value) for name, value in result["numerics"].items()}
    return kept | numerics | {"lane_steps": result["lane_steps"]}


def describe(grid: Grid, options: Options, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The whole configuration of a sweep in plain numbers and strings: equal for sweeps that give equal datasets."""
    return {
        **{axis: [value if axis == "cost" else _plain(value) for value in grid.values[axis]] for axis in AXES},
        "dims": list(grid.dims),
        "cost": [_name(cost) for cost in grid.costs],
        "shape": list(grid.costs[0].shape),
        "t1": options.t1,
        "save_at": None if options.save_at is None else options.save_at.tolist(),
        "max_saves": options.max_saves,
        "max_steps": options.max_steps,
        "gradient_tolerance": options.gradient_tolerance,
        "rank_tolerance": options.rank_tolerance,
        "solver": _solver_name(options),
        "observables": sorted(options.observables),
        "save_matrices": options.save_matrices,
        "reduce_width": options.reduce_width,
        "chunks": [len(chunk.index) for chunk in chunks],
        "stop_reasons": [reason.name for reason in StopReason],
    }


def _solver_name(options: Options) -> str:
    if options.solver is not None:
        return _name(options.solver)
    return "stiff part of the default" if options.stiff else "default"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value.item() if isinstance(value, np.generic) else value))


def _name(tree: Any) -> str:
    """A cost's or a solver's kind, with a fingerprint of its numbers and structure."""
    leaves, structure = jax.tree.flatten(tree)
    text = hashlib.sha256(_without_addresses(str(structure)))
    for leaf in leaves:
        number = isinstance(leaf, bool | int | float | np.ndarray | jax.Array)
        text.update(np.asarray(leaf).tobytes() if number else _without_addresses(str(leaf)))
    return f"{type(tree).__name__} {text.hexdigest()[:12]}"


def _without_addresses(text: str) -> bytes:
    """Functions by their names only: their addresses change from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text).encode()
