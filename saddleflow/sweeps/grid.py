"""The grid of a sweep: its axes, checked, and the coordinates of its lanes."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Int

from saddleflow._backend.arguments import MOST_DEPTH, MOST_SEED, MOST_WIDTH, integer, number, refuse
from saddleflow._backend.checks import require, require_finite, require_positive
from saddleflow.flow.arguments import require_tolerance
from saddleflow.problem import readers
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import layer_sizes
from saddleflow.problem.objective import Objective, as_objective

# The dims a sweep can have, in the order of the dataset.
AXES = (
    *("cost", "depth", "gamma", "variance", "alpha", "width", "seed", "rtol"),
    *("learning_rate", "batch_size", "batch_seed"),
)


# The axes of integers.
INTEGERS = {
    "depth": integer(1, MOST_DEPTH),
    "width": integer(1, MOST_WIDTH),
    "seed": integer(0, MOST_SEED, "jax.random.key takes an integer from 0, of 64 bits with a sign."),
    "batch_size": integer(0),
    "batch_seed": integer(0, MOST_SEED, "jax.random.key takes an integer from 0, of 64 bits with a sign."),
}

# Values of an axis: lanes of a sweep are listed before they run.
MOST_VALUES = 10**6


@dataclass(frozen=True, eq=False)
class Grid:
    """The lanes of a sweep: all combinations of the axes' values; `dims` are the axes given as sequences.

    Axes that go together are one dim, that of the first of them: their i-th values make a lane, not all pairs.

    Attributes:
        costs: the costs, or objectives of models.
        values: of each axis, in the order of the lanes.
        dims: the axes of the dataset, in the same order.
        arguments: the axes that are arguments of `init`; values there may be anything.
        together: axes that go together, in tuples.
        hidden: axes that `coordinates` and `places` leave out.
    """

    costs: tuple[Any, ...]
    values: dict[str, tuple[Any, ...]]
    dims: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    hidden: tuple[str, ...] = ()

    @classmethod
    def of(cls, cost: Any, together: Any = (), **axes: Any) -> "Grid":
        """The grid of `sweep`'s arguments: cost and `AXES`, each one value or a sequence; of gamma and variance one.

        Raises:
            ValueError: an axis without values, with a bad one or with one twice; costs that differ in shape; axes
                together that are no dims, or of several lengths.
        """
        names = [axis for axis in AXES[1:] if axis in axes]
        values: dict[str, tuple[Any, ...]] = {axis: _values(axis, axes[axis], together) for axis in names}
        costs = _costs(cost, _as_cost)
        for depth, width in itertools.product(values["depth"], values["width"]):
            layer_sizes(depth, width, costs[0].shape)
        dims = [axis for axis in names if _is_sequence(axes[axis])]
        return cls._paired(cost, costs, values, dims, (), together)

    @classmethod
    def made(
        cls, cost: Any, arguments: Mapping[str, Any], of_networks: bool, together: Any = (), **axes: Any
    ) -> "Grid":
        """The grid of starts that `init` makes: costs or objectives, the arguments of `init`, seed and rtol.

        Raises:
            ValueError: as `of`.
        """
        costs = _costs(cost, _as_cost if of_networks else _as_objective)
        values = {name: _arguments(name, given, together) for name, given in arguments.items()}
        values |= {axis: _values(axis, given, together) for axis, given in axes.items()}
        dims = [name for name, given in arguments.items() if _is_sequence(given)]
        dims += [axis for axis, given in axes.items() if _is_sequence(given)]
        return cls._paired(cost, costs, values, dims, tuple(arguments), together)

    @classmethod
    def _paired(cls, cost, costs, values, dims, arguments, together) -> "Grid":
        """The grid, with the costs as an axis and axes together checked."""
        values = {"cost": tuple(range(len(costs)))} | values
        if isinstance(cost, Sequence):
            dims = ["cost", *dims]
        groups = as_groups(together)
        named = [name for group in groups for name in group]
        for name in named:
            require(name in dims, "together", f"name dims: {', '.join(dims)}", name, "Give several values of it.")
            require(named.count(name) == 1, "together", "name each dim once", name)
        for group in groups:
            lengths = {name: len(values[name]) for name in group}
            require(len(set(lengths.values())) == 1, "together", "name dims of one length", lengths)
            pairs = list(zip(*(_labels(values[name]) for name in group), strict=True))
            require(len(set(pairs)) == len(pairs), "together", "make each combination once", pairs)
        followers = {name for group in groups for name in group[1:]}
        return cls(costs, values, tuple(dim for dim in dims if dim not in followers), arguments, groups)

    @property
    def free(self) -> tuple[str, ...]:
        """The axes that are combined with one another: all but those that follow another one."""
        followers = {name for group in self.together for name in group[1:]}
        return tuple(axis for axis in self.values if axis not in followers)

    @property
    def size(self) -> int:
        """Number of lanes."""
        return int(np.prod([len(self.values[axis]) for axis in self.free]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dims."""
        return tuple(len(self.values[axis]) for axis in self.dims)

    def places(self) -> dict[str, Int[np.ndarray, " lanes"]]:
        """Which of its values every axis has at every lane, lanes in row-major order."""
        counts = [len(self.values[axis]) for axis in self.free]
        found = dict(zip(self.free, np.indices(counts).reshape(len(counts), -1), strict=True))
        leaders = {name: group[0] for group in self.together for name in group}
        return {axis: found[leaders.get(axis, axis)] for axis in self.values if axis not in self.hidden}

    def coordinates(self) -> dict[str, np.ndarray]:
        """The value of every axis at every lane, lanes in row-major order; of the costs their numbers."""
        table = {}
        for axis, places in self.places().items():
            column = [self.values[axis][place] for place in places]
            table[axis] = np.fromiter(column, object, len(column)) if axis in self.arguments else np.asarray(column)
        return table

    def labels(self, axis: str) -> np.ndarray:
        """The coordinates of a dim: numbers and strings as they are, other values by name."""
        return np.asarray(_labels(self.values[axis]))


def as_groups(together: Any) -> tuple[tuple[str, ...], ...]:
    """Names of axes that go together: a tuple of them, or several such tuples.

    Raises:
        ValueError: anything else.
    """
    groups = (together,) if together and all(isinstance(name, str) for name in together) else together
    sound = isinstance(groups, list | tuple) and all(
        isinstance(group, list | tuple) and len(group) > 1 and all(isinstance(name, str) for name in group)
        for group in groups
    )
    remedy = 'For example together=("width", "variance").'
    require(sound, "together", "be two names of dims or more, or a list of such", together, remedy)
    return tuple(map(tuple, groups))


def _costs(cost: Any, read: Callable[[Any], Any]) -> tuple[Any, ...]:
    listed = isinstance(cost, Sequence) and not isinstance(cost, str | bytes)
    costs = tuple(read(one) for one in (cost if listed else (cost,)))
    require(len(costs) > 0, "cost", "be a cost or a sequence of them", cost)
    shapes = sorted({tuple(one.shape) for one in costs})
    require(len(shapes) == 1, "cost", "have one shape for all", shapes, "Make a sweep for each shape.")
    tests = {one.has_test for one in costs}
    require(len(tests) == 1, "cost", "all have a test set or none", [one.has_test for one in costs])
    return costs


def _as_cost(given: Any) -> Cost:
    if callable(given) and not isinstance(given, Cost | type):
        refuse("cost", "be a saddleflow cost", given, "Models of an objective come from init.")
    return cast(Cost, readers.cost("cost", given))


def _as_objective(given: Any) -> Objective:
    expected, remedy = "be an objective or a function of the model where init is given", "See sf.Objective."
    require(not isinstance(given, Cost), "cost", expected, type(given).__name__, remedy)
    return as_objective(given)


def _arguments(name: str, given: Any, together: Any) -> tuple[Any, ...]:
    """The values of an argument of `init`."""
    require(getattr(given, "ndim", 0) <= 1, name, "be one value or a list of them", f"shape {np.shape(given)}")
    values = given if _is_sequence(given) else (given,)
    found = tuple(x.item() if getattr(x, "ndim", None) == 0 and hasattr(x, "item") else x for x in values)
    require(len(found) > 0, name, "hold at least one value", given)
    labels = _labels(found)
    paired = any(name in group for group in as_groups(together))
    twice = [] if paired else list(dict.fromkeys(label for label in labels if labels.count(label) > 1))
    require(not twice, name, "hold each value once", f"{twice} twice", "Values are told apart by their names.")
    return found


def _is_sequence(given: Any) -> bool:
    """Whether an argument is a dim: lists, tuples, ranges and arrays of one axis."""
    return (isinstance(given, Sequence) and not isinstance(given, str | bytes)) or getattr(given, "ndim", 0) == 1


def _labels(values: Sequence[Any]) -> list[Any]:
    """Numbers and strings as they are; if there are others, all by name."""
    for kinds in (bool, int | float, str):
        if all(isinstance(value, kinds) for value in values):
            return list(values)
    return [str(getattr(value, "__name__", value)) for value in values]


def _values(axis: str, given: Any, together: Any) -> tuple[Any, ...]:
    several = _is_sequence(given)
    if several and len(given) > MOST_VALUES:
        refuse(axis, f"hold at most {MOST_VALUES} values", given, "Make several sweeps.")
    if getattr(given, "ndim", 0) > 1 or (several and any(np.ndim(value) for value in given)):
        refuse(axis, "be a number or a list of them", given, "Several hidden widths come from init.")
    found = tuple(given) if several else (given,)
    require(len(found) > 0, axis, "hold at least one value", given)
    if axis == "batch_size":
        found = tuple(0 if size is None else size for size in found)
    found = tuple(_value(axis, value) for value in found)
    paired = any(axis in group for group in as_groups(together))
    twice = [] if paired else sorted({x for x in found if found.count(x) > 1})
    require(not twice, axis, "hold each value once", f"{twice} twice", "Duplicates would be the same lane.")
    return found


def _value(axis: str, value: Any) -> Any:
    """One value of an axis, checked."""
    if axis in INTEGERS:
        return INTEGERS[axis](axis, value)
    value = number()(axis, value)
    require_finite(axis, value)
    if axis == "gamma":
        require(value >= 0, axis, "not be negative", value)
    elif axis in ("alpha", "variance", "learning_rate"):
        require_positive(axis, value)
    else:
        require_tolerance(axis, value)
    return value
