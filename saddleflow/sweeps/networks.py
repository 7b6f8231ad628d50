"""Sweeps of deep linear networks: starts of variance w^-gamma, drawn within the program of their depth and width."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saddleflow.flow.arguments import FlowOptions, check_problem
from saddleflow.flow.graded import blurs
from saddleflow.flow.landscape import NetworkLandscape
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork, layer_sizes, num_parameters
from saddleflow.problem.starts import gaussian
from saddleflow.sweeps.chunk import Chunk, FlowChunk, Starts, SweepOptions
from saddleflow.sweeps.grid import Grid
from saddleflow.sweeps.lanes import NetworkLane, signature
from saddleflow.sweeps.reduced_lanes import ReducedGroup
from saddleflow.sweeps.results import LaneResult, as_arrays, of_matrices
from saddleflow.width.adaptive import WORTHWHILE

# What tells lanes of one program from each other, beside their cost and seed.
LAWS = ("gamma", "variance", "alpha", "rtol")


@dataclass(frozen=True, eq=False)
class NetworkChunk(FlowChunk):
    """Networks of one size."""

    depth: int
    width: int
    graded: bool
    reduced: bool

    def lane(self, number):
        """Of a cost, a seed, gamma, alpha and rtol."""
        table = self.coordinates
        return NetworkLane(
            cost=self.costs[table["cost"][number]],
            seed=np.asarray(table["seed"][number]),
            **{axis: np.asarray(table[axis][number], float) for axis in LAWS if axis in table},
            depth=self.depth,
            width=self.width,
        )

    def start(self, number):
        """Drawn on the host."""
        lane = self.lane(number)
        return lane.cost, float(lane.alpha) * gaussian(jax.random.key(int(lane.seed)), **lane.law())

    def _flow(self) -> FlowOptions:
        """Options of the flows, checked against the cost."""
        flow, cost = self.options.lane_flow(self.graded), self.costs[0]
        check_problem(cost, narrow(cost, self.depth), flow)
        return flow

    def program(self):
        """By their cost."""
        return self.options.program(self._flow(), NetworkLandscape(self.costs[0]))

    def group(self, labelled):
        """Of reduced width where that is so small that it is worth it."""
        options = self.options
        if not self.reduced:
            return super().group(labelled)
        assert options.reduce_width is not None
        shape = self.costs[0].shape
        return ReducedGroup(
            self._flow(), options.reduce_width, self.depth, self.width, shape, options.num_rows, labelled
        )

    def arrays(self, result, number):
        """With A and its spectrum."""
        del number
        options = self.options
        if options.reduce_width is not None and not self.reduced:  # nothing was cut
            result = replace(result, reduction_error_estimate=np.zeros(()))
        return network_arrays(result, options)


def network_arrays(result: LaneResult, options: SweepOptions) -> dict[str, np.ndarray]:
    """The result of a lane that is a network, by the names of the dataset: with A and its spectrum."""
    spectrum = of_matrices(
        result,
        num_rows=options.num_rows,
        with_matrices=options.save_matrices,
        rank_tolerance=options.flow.rank_tolerance,
    )
    return as_arrays(result, spectrum, num_rows=options.num_rows, with_time=options.flow.save_at is None)


class NetworkStarts(Starts):
    """Starts `alpha * theta_0(seed)` of deep linear networks."""

    def programs(self, grid, options):
        """By kind of cost, depth, width and whether coordinates are graded; the smallest starts first."""
        table = grid.coordinates()
        spread = np.sqrt(table["variance"]) if "variance" in table else table["width"] ** (-table["gamma"] / 2)
        scale = table["alpha"] * spread
        kinds = _kinds(grid.costs)
        found: list[tuple[Callable[..., Chunk], list[int]]] = []
        for (kind, depth, width, graded), members in _groups(grid, options, table, scale, kinds).items():
            reduced = options.reduce_width is not None and _is_reduced(grid.costs[kinds.index(kind)], depth, width)
            make = partial(NetworkChunk, depth=depth, width=width, graded=graded, reduced=reduced)
            # the smaller the start, the more saddles it stops at
            found.append((make, sorted(members, key=lambda lane: (scale[lane], lane))))
        return found

    def described(self):
        """The grid says it all."""
        return {}


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
    found = [signature(cost) for cost in costs]
    return [found.index(kind) for kind in found]


def _is_graded(cost: Cost, depth: int, width: int, scale: float, options: SweepOptions) -> bool:
    """Whether starts of this scale need graded coordinates: by their law, so that the seed plays no part."""
    if options.flow.solver is not None:
        return False
    sizes = itertools.pairwise(layer_sizes(depth, width, cost.shape))
    return blurs(cost, scale * max(math.sqrt(a) + math.sqrt(b) for a, b in sizes), depth)


def _is_reduced(cost: Cost, depth: int, width: int) -> bool:
    """Whether the smallest bases, of the activity from both ends, hold less than half of the parameters."""
    (n_out, n_in), seen = cost.shape, cost.input_basis
    ends = n_out + (n_in if seen is None else seen.shape[1])
    small = num_parameters(layer_sizes(depth, min(width, ends), cost.shape))
    return small < WORTHWHILE * num_parameters(layer_sizes(depth, width, cost.shape))


def narrow(cost: Cost, depth: int) -> DeepLinearNetwork:
    """A network of width 1: whether a cost will do depends on no width."""
    sizes = layer_sizes(depth, 1, cost.shape)
    return DeepLinearNetwork(jnp.ones(size) for size in zip(sizes[1:], sizes[:-1], strict=True))
