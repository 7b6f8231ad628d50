"""Lanes whose width is reduced: each a flow of its own, with an estimate of its error, in the terms of the others.

The bases of a reduced network grow along its flow, so lanes differ in shape and share no compiled program but those
of padded widths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax

from saddleflow._backend.devices import check_memory
from saddleflow.flow.arguments import FlowOptions
from saddleflow.problem.network import layer_sizes, num_parameters
from saddleflow.problem.starts import gaussian
from saddleflow.sweeps.host_lanes import HostGroup, Labelled, result_of
from saddleflow.sweeps.lanes import NetworkLane
from saddleflow.sweeps.results import LaneResult
from saddleflow.width.adaptive import solve_reduced
from saddleflow.width.projected import ReducedNetwork, reduce_width
from saddleflow.width.sampled import sample_reduced

MODES = ("auto", "sample")

# Of the full network, while its bases are found: the draw, scaled, in numpy, squared.
COPIES = 4


@dataclass(frozen=True, eq=False)
class ReducedGroup(HostGroup):
    """Lanes of one size, run to an error of A of ten times rtol of the largest |A|, as `gradient_flow` does it.

    Attributes:
        options: of each flow, but for rtol, which is the lane's.
        mode: one of `MODES`: how their width is reduced.
        depth: number of layers L.
        width: hidden width w, before it is reduced.
        shape: (n_out, n_in).
        num_rows: rows of a result.
        lanes: each with its label.
    """

    options: FlowOptions
    mode: str
    depth: int
    width: int
    shape: tuple[int, int]
    num_rows: int
    lanes: Sequence[Labelled]

    def check(self, num_threads):
        """By the full networks, which "auto" starts from."""
        if self.mode == "auto":
            need = COPIES * 8 * num_parameters(layer_sizes(self.depth, self.width, self.shape))
            what = f"a lane at width {self.width}, whole and reduced"
            check_memory(need, num_threads, jax.devices("cpu")[0], what)

    def solve(self, lane: NetworkLane) -> LaneResult:
        """From the start, reduced."""
        options = replace(self.options, rtol=float(lane.rtol))
        trajectory = solve_reduced(lane.cost, start_network(lane, self.mode), options)
        given = self.options.save_at is not None
        matrices = {"end_to_end": trajectory.end_to_end}
        return result_of(trajectory, matrices, num_rows=self.num_rows, at_given_times=given)


def start_network(lane: NetworkLane, mode: str) -> ReducedNetwork:
    """The start of a lane: `alpha * theta_0(seed)`, projected ("auto") or drawn reduced, at any width ("sample")."""
    key, alpha = jax.random.key(int(lane.seed)), float(lane.alpha)
    if mode == "sample":
        return alpha * sample_reduced(key, **lane.law(), cost=lane.cost)
    # the bases are those of theta_0: products of tiny or huge layers leave float64's range
    return alpha * reduce_width(gaussian(key, **lane.law()), cost=lane.cost)
