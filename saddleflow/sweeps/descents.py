"""Sweeps of discrete training: the starts of other sweeps, trained by gradient descent at several rates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax

from saddleflow.flow.trajectory import Trajectory
from saddleflow.sweeps.chunk import Chunk, Starts, SweepOptions
from saddleflow.sweeps.configuration import name_of
from saddleflow.sweeps.host_lanes import HostGroup, Labelled, result_of
from saddleflow.sweeps.results import LaneResult
from saddleflow.training import gradient_descent

# What such a sweep has for axes beside those of its starts.
AXES = ("learning_rate", "batch_size", "batch_seed")


@dataclass(frozen=True)
class DescentLane:
    """One descent.

    Attributes:
        cost: a cost, or an objective.
        model: the start.
        learning_rate: of all steps.
        batch_size: 0: all samples.
        batch_seed: of the batches.
    """

    cost: Any
    model: Any
    learning_rate: float
    batch_size: int
    batch_seed: int


@dataclass(frozen=True, eq=False)
class DescentGroup(HostGroup):
    """The descents of a sweep.

    Attributes:
        options: of the sweep.
        starts: with the method.
        lanes: each with its label.
    """

    options: SweepOptions
    starts: "DescentStarts"
    lanes: Sequence[Labelled]

    def solve(self, lane: DescentLane) -> LaneResult:
        """By `gradient_descent`."""
        flow, batched = self.options.flow, lane.batch_size > 0
        run = gradient_descent(
            lane.cost,
            lane.model,
            self.starts.optimizer(lane.learning_rate),
            learning_rate=lane.learning_rate,
            num_steps=self.starts.num_steps,
            batch_size=lane.batch_size if batched else None,
            key=jax.random.key(lane.batch_seed) if batched else None,
            max_saves=flow.num_rows,
            observables=flow.observables,
            target_cost=flow.target_cost,
            rank_tolerance=flow.rank_tolerance,
            trainable=self.starts.trainable,
            progress=False,
        )
        network = isinstance(run, Trajectory)
        matrices = {"end_to_end": run.end_to_end} if network else {}
        if not network and self.options.save_matrices and run.outputs is not None:
            matrices = {"outputs": run.outputs}
        return result_of(run, matrices, num_rows=self.options.num_rows, at_given_times=False)


@dataclass(frozen=True, eq=False)
class DescentChunk(Chunk):
    """Descents from starts of one kind."""

    starts: "DescentStarts" = field(repr=False)
    make: Callable[..., Chunk] = field(repr=False)

    def _inner(self) -> Chunk:
        """The chunk of the flows from these starts."""
        of_flows = {axis: column for axis, column in self.coordinates.items() if axis not in AXES}
        return self.make(self.number, self.program_number, self.index, self.costs, of_flows, self.options)

    def start(self, number):
        """That of the flow."""
        return self._inner().start(number)

    def _descent(self, number: int) -> DescentLane:
        rate, size, seed = (self.coordinates[axis][number] for axis in AXES)
        return DescentLane(*self.start(number), float(rate), int(size), int(seed))

    def labelled(self):
        """What makes each descent, with its label."""
        return [((self, number), partial(self._descent, number)) for number in range(len(self.index))]

    def group(self, labelled):
        """All of them."""
        return DescentGroup(self.options, self.starts, labelled)

    def arrays(self, result, number):
        """As of the flow."""
        return self._inner().arrays(result, number)


@dataclass(frozen=True, eq=False)
class DescentStarts(Starts):
    """The starts of another sweep, to be trained.

    Attributes:
        inner: those starts.
        method: an optax optimiser of a learning rate.
        num_steps: of each descent.
        trainable: of models, as in `gradient_descent`.
    """

    inner: Starts
    method: Callable[[float], Any]
    num_steps: int
    trainable: Any
    optimizers: dict[float, Any] = field(default_factory=dict, repr=False)  # by their rates

    def optimizer(self, rate: float) -> Any:
        """Of a rate, made once: it is part of what is compiled."""
        if rate not in self.optimizers:
            self.optimizers.setdefault(rate, self.method(rate))  # another thread may have been faster
        return self.optimizers[rate]

    @property
    def meanings(self) -> dict[str, tuple[str, str]]:  # type: ignore[override]
        """Of the starts' kind; time is that of steps."""
        time = "learning rate times steps"
        return self.inner.meanings | {"time": (time, "time of a row"), "end_time": (time, "where the lane ended")}

    def programs(self, grid, options):
        """As of the flows, by the axes of those."""
        return [
            (partial(DescentChunk, starts=self, make=make), lanes)
            for make, lanes in self.inner.programs(replace(grid, hidden=AXES), options)
        ]

    def described(self):
        """With the method."""
        return self.inner.described() | {"method": name_of(self.method), "num_steps": self.num_steps}
