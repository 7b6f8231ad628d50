"""Starts that a function of the user makes, on the host: of models and of networks, drawn anew until one will do."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from saddleflow._backend.checks import require
from saddleflow.sweeps.chunk import Chunk, FlowChunk, Starts, SweepOptions
from saddleflow.sweeps.configuration import name_of
from saddleflow.sweeps.lanes import Lane, signature

# Draws of a start at most: what one in a thousand has is not to be had by drawing.
MAX_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class MadeStarts(Starts):
    """Starts `init(key(seed), **arguments)`, drawn until `accept` takes one.

    Attributes:
        init: makes a start from a key and keywords.
        accept: says of a start whether it will do; None: any does.
        fixed: keywords of init that are the same for all lanes and no part of the grid.
    """

    init: Callable[..., Any]
    accept: Callable[[Any], Any] | None
    fixed: dict[str, Any]

    @abstractmethod
    def lane_of(self, cost: Any, start: Any, rtol: float, options: SweepOptions) -> Lane:
        """The lane of a start.

        Raises:
            ValueError: a start that will not do.
        """

    @abstractmethod
    def chunks(self, lane: Lane, options: SweepOptions) -> tuple[Any, Callable[..., "MadeChunk"]]:
        """What lanes of one program, such as this, have in common beside their structure; what makes their chunks."""

    def draw(self, values: dict[str, Any], outline: bool = False) -> tuple[Any, int]:
        """The start of a lane's coordinates, and how often it was drawn.

        Args:
            values: of the axes, without the cost.
            outline: whether another start of the same structure will do, that takes less to make.

        Raises:
            ValueError: no start that `accept` takes.
        """
        arguments = {axis: value for axis, value in values.items() if axis != "rtol"} | self.fixed
        key = jax.random.key(int(arguments.pop("seed")))
        make = getattr(self.init, "outline", self.init) if outline else self.init
        for draw in range(MAX_DRAWS):
            # the first draw is that of a sweep without a condition
            start = make(jax.random.fold_in(key, draw) if draw else key, **arguments)
            if outline or self.accept is None or bool(self.accept(start)):
                return start, draw + 1
        raise ValueError(
            f"`accept` must take one of {MAX_DRAWS} draws of a start at least, but it took none. "
            "Make what it asks for by init."
        )

    def lane(self, costs: tuple[Any, ...], values: dict[str, Any], options: SweepOptions, outline: bool) -> Lane:
        """The lane of some coordinates; errors say in a note which ones.

        Raises:
            ValueError: a start that will not do.
        """
        others = {axis: value for axis, value in values.items() if axis != "cost"}
        try:
            start, _ = self.draw(others, outline)
            return self.lane_of(costs[values["cost"]], start, others["rtol"], options)
        except Exception as error:
            text = ", ".join(f"{axis}={value}" for axis, value in others.items() if axis != "rtol")
            error.add_note(f"It is the start of {text}.")
            raise

    def programs(self, grid, options):
        """By the structure of the starts, which depends on no seed as a rule; where it does, lanes compile more."""
        table, places = grid.coordinates(), grid.places()
        kinds: dict[Any, Any] = {}
        groups: dict[Any, tuple[Callable[..., Chunk], list[int]]] = {}
        for lane in range(grid.size):
            where = tuple(int(column[lane]) for axis, column in places.items() if axis not in ("seed", "rtol"))
            if where not in kinds:
                values = {axis: column[lane] for axis, column in table.items()}
                first = self.lane(grid.costs, values, options, outline=True)
                common, make = self.chunks(first, options)
                kinds[where] = (signature(first), common)
                groups.setdefault(kinds[where], (make, []))
            groups[kinds[where]][1].append(lane)
        return list(groups.values())

    def described(self):
        """Functions by their qualified names, without the module: a script's is another where it is imported."""
        named = {"init": name_of(self.init)}
        return named if self.accept is None else named | {"accept": name_of(self.accept)}


@dataclass(frozen=True, eq=False)
class MadeChunk(FlowChunk):
    """Starts of one structure."""

    starts: MadeStarts = field(repr=False)

    def _values(self, number: int) -> dict[str, Any]:
        return {axis: column[number] for axis, column in self.coordinates.items()}

    def lane(self, number):
        """Of a cost, the arguments of init, a seed and rtol."""
        return self.starts.lane(self.costs, self._values(number), self.options, outline=False)

    def start(self, number):
        """As init makes it."""
        values = self._values(number)
        others = {axis: value for axis, value in values.items() if axis != "cost"}
        return self.costs[values["cost"]], self.starts.draw(others)[0]

    def draws(self, number: int) -> dict[str, np.ndarray]:
        """How often the start of a lane was drawn, where that is more than once."""
        if self.starts.accept is None:
            return {}
        others = {axis: value for axis, value in self._values(number).items() if axis != "cost"}
        return {"num_draws": np.asarray(self.starts.draw(others)[1])}


_EITHER, _ANY = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL


def arguments_of(init: Any, given: Iterable[str]) -> tuple[list[str], bool]:
    """The keywords of init after the key, and whether it takes any others.

    Raises:
        ValueError: init is no function of a key, or needs an argument that is not given.
    """
    known = list(inspect.signature(init).parameters.values()) if callable(init) else []
    positional = bool(known) and known[0].kind in (inspect.Parameter.POSITIONAL_ONLY, _EITHER, _ANY)
    require(positional, "init", "be a function (key, ...) -> model", init, "For example init=sf.gaussian.")
    first = known[0].name
    require(
        first not in given, "init", "take a key before its keywords", f"{first!r} first", "init(key, ...) -> model."
    )
    others = known[1:]
    open_ended = any(one.kind == one.VAR_KEYWORD for one in others)
    named = [one for one in others if one.kind in (_EITHER, one.KEYWORD_ONLY)]
    missing = [one.name for one in named if one.default is one.empty and one.name not in given]
    remedy = "Arguments of init may not have the names of sweep's own."
    require(not missing, "init", "be given all its arguments by sweep", f"none for {', '.join(missing)}", remedy)
    return [one.name for one in named], open_ended
