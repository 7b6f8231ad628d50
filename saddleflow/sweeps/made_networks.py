"""Sweeps of deep linear networks whose starts a function makes: one of `saddleflow.problem.starts`, or the user's."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from saddleflow._backend.checks import require
from saddleflow.flow.arguments import check_problem, check_shape, needs_grading
from saddleflow.flow.landscape import NetworkLandscape
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork, num_parameters
from saddleflow.sweeps.lanes import Lane, num_coordinates
from saddleflow.sweeps.made import MadeChunk, MadeStarts
from saddleflow.sweeps.networks import narrow, network_arrays


class MadeNetworkLane(Lane):
    """A deep linear network that was made on the host, before the program begins."""

    cost: Cost
    network: DeepLinearNetwork
    rtol: Float[Array | np.ndarray, ""]

    def start(self):
        """As it was made."""
        return NetworkLandscape(self.cost), self.network

    def sizes(self):
        """Of the layers; coordinates are compressed where that saves some."""
        network = self.network
        sizes = (network.shape[1], *network.hidden_widths, network.shape[0])
        return num_parameters(sizes), num_coordinates(sizes), 0

    @property
    def size_name(self):
        """By the number of parameters."""
        return f"of {self.network.num_parameters} parameters"


@dataclass(frozen=True, eq=False)
class MadeNetworkChunk(MadeChunk):
    """Networks of one structure."""

    graded: bool

    def program(self):
        """By the first of the networks."""
        lane: Any = self.lane(0)
        flow = self.options.lane_flow(self.graded)
        check_problem(lane.cost, narrow(lane.cost, lane.network.depth), flow)
        return self.options.program(flow, NetworkLandscape(lane.cost))

    def arrays(self, result, number):
        """With A and its spectrum."""
        return network_arrays(result, self.options) | self.draws(number)


@dataclass(frozen=True, eq=False)
class MadeNetworkStarts(MadeStarts):
    """Starts of networks."""

    def lane_of(self, cost, start, rtol, options):
        """Of a cost and a network."""
        is_network = isinstance(start, DeepLinearNetwork)
        remedy = "Of other models the cost is an objective."
        require(is_network, "init", "return a deep linear network where the cost is one of matrices", start, remedy)
        check_shape(cost, start)  # one that is not finite ends its own lane only
        return MadeNetworkLane(cost=cost, network=start, rtol=np.asarray(rtol, float))

    def chunks(self, lane, options):
        """Whether coordinates are graded: by the first start of those that differ in their seed only."""
        first: Any = lane
        graded = needs_grading(first.cost, first.network, options.flow)
        return graded, partial(MadeNetworkChunk, starts=self, graded=graded)
