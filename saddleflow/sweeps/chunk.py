"""A chunk of a sweep, lanes of one program, and what its kind of start must know: of networks or of models."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from saddleflow._backend.checks import require
from saddleflow.flow.arguments import STIFF, FlowOptions, method_of
from saddleflow.flow.landscape import Landscape
from saddleflow.sweeps import reduced_lanes
from saddleflow.sweeps.grid import Grid
from saddleflow.sweeps.host_lanes import HostGroup, Labelled
from saddleflow.sweeps.lanes import Lane, Program
from saddleflow.sweeps.results import LaneResult


@dataclass(frozen=True, eq=False)
class SweepOptions:
    """What all lanes of a sweep have in common beside the grid.

    Attributes:
        flow: options of every flow but for rtol, which is the lane's; its max_saves are the rows of the dataset.
        save_matrices: whether the dataset keeps end-to-end matrices, or the outputs of models.
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
        return self.flow.num_rows if self.flow.save_at is None else len(self.flow.save_at)

    def lane_flow(self, graded: bool) -> FlowOptions:
        """The options of the flow of a lane."""
        return replace(
            self.flow,
            solver=STIFF if self.stiff else self.flow.solver,
            graded=graded,
            max_saves=2 * self.flow.num_rows,  # full rows are halved: that many remain
        )

    def program(self, flow: FlowOptions, landscape: Landscape) -> Program:
        """The program of lanes with a flow's options, on landscapes of one kind."""
        return Program(
            method=method_of(flow, landscape, bool(flow.graded), turns="plain"),
            save_at=flow.save_at,
            t1=np.asarray(np.inf if flow.t1 is None else flow.t1, float),
            max_steps=np.asarray(flow.max_steps),
            gradient_tolerance=np.asarray(flow.gradient_tolerance, float),
            target_cost=None if flow.target_cost is None else np.asarray(flow.target_cost, float),
            num_rows=self.num_rows,
        )


@dataclass(frozen=True, eq=False)
class Chunk(abc.ABC):
    """Lanes of one program, with all that is needed to run them; a pure task."""

    number: int
    program_number: int  # chunks with the same one run in the same compiled program
    index: Int[np.ndarray, " lanes"]  # rows of the grid
    costs: tuple[Any, ...]  # or objectives
    coordinates: dict[str, np.ndarray] = field(repr=False)
    options: SweepOptions = field(repr=False)

    @abc.abstractmethod
    def start(self, number: int) -> tuple[Any, Any]:
        """Cost and network, or objective and model, that one of the lanes starts with."""

    @abc.abstractmethod
    def labelled(self) -> list[Labelled]:
        """What makes each lane, with the label (chunk, number within the chunk)."""

    @abc.abstractmethod
    def group(self, labelled: Sequence[Labelled]) -> HostGroup | Program:
        """What runs the lanes of its program, labelled: the host, one by one, or the scheduler, by a program.

        Raises:
            ValueError: what they cannot take.
        """

    @abc.abstractmethod
    def arrays(self, result: LaneResult, number: int) -> dict[str, np.ndarray]:
        """The result of one of the lanes, by the names of the dataset."""


class FlowChunk(Chunk):
    """Flows that the scheduler runs."""

    @abc.abstractmethod
    def lane(self, number: int) -> Lane:
        """One of the lanes."""

    @abc.abstractmethod
    def program(self) -> Program:
        """The program of the lanes.

        Raises:
            ValueError: what the program cannot take.
        """

    def labelled(self):
        """Lanes, made as their turns come."""
        return [((self, number), partial(self.lane, number)) for number in range(len(self.index))]

    def group(self, labelled):
        """Their program."""
        del labelled
        return self.program()


class Starts(abc.ABC):
    """What kind of flows a sweep solves, by their starts.

    Attributes:
        meanings: units and meaning of what their dataset holds, where it differs from networks.
    """

    meanings: ClassVar[dict[str, tuple[str, str]]] = {}

    @abc.abstractmethod
    def programs(self, grid: Grid, options: SweepOptions) -> list[tuple[Callable[..., Chunk], list[int]]]:
        """For each program what makes its chunks, from the fields of `Chunk`, and its lanes.

        Lanes with the most work to be foreseen come first.
        """

    @abc.abstractmethod
    def described(self) -> dict[str, Any]:
        """What the configuration says of them beside the grid, in plain numbers and strings."""
