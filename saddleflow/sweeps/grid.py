"""The grid of a sweep: its axes, checked, and the coordinates of its lanes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saddleflow._backend.checks import require, require_finite, require_integer, require_positive
from saddleflow.flow.arguments import require_tolerance
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import layer_sizes

# The dims a sweep can have, in the order of the dataset.
AXES = ("cost", "depth", "gamma", "alpha", "width", "seed", "rtol")


@dataclass(frozen=True, eq=False)
class Grid:
    """The lanes of a sweep: all combinations of the axes' values; `dims` are the axes given as sequences."""

    costs: tuple[Cost, ...]
    values: dict[str, tuple[Any, ...]]
    dims: tuple[str, ...]

    @classmethod
    def of(cls, cost: Any, **axes: Any) -> "Grid":
        """The grid of `sweep`'s arguments: cost and `AXES`, each one value or a sequence.

        Raises:
            ValueError: an axis without values, with a bad one or with one twice; costs that differ in shape.
        """
        values: dict[str, tuple[Any, ...]] = {axis: _values(axis, axes[axis]) for axis in AXES[1:]}
        costs = _costs(cost)
        for depth, width in itertools.product(values["depth"], values["width"]):
            layer_sizes(depth, width, costs[0].shape)
        dims = [axis for axis in AXES[1:] if np.ndim(axes[axis]) > 0]
        if isinstance(cost, Sequence):
            dims.insert(0, "cost")
        return cls(costs, {"cost": tuple(range(len(costs)))} | values, tuple(dims))

    @property
    def size(self) -> int:
        """Number of lanes."""
        return int(np.prod([len(self.values[axis]) for axis in AXES]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dims."""
        return tuple(len(self.values[axis]) for axis in self.dims)

    def coordinates(self) -> dict[str, np.ndarray]:
        """The value of every axis at every lane, lanes in row-major order; of the costs their numbers."""
        columns = zip(*itertools.product(*(self.values[axis] for axis in AXES)), strict=True)
        return {axis: np.asarray(column) for axis, column in zip(AXES, columns, strict=True)}


def _costs(cost: Any) -> tuple[Cost, ...]:
    costs = tuple(cost) if isinstance(cost, Sequence) else (cost,)
    require(len(costs) > 0, "cost", "be a cost or a sequence of them", cost)
    for one in costs:
        require(isinstance(one, Cost), "cost", "be a saddleflow cost", type(one).__name__)
    shapes = sorted({tuple(one.shape) for one in costs})
    require(len(shapes) == 1, "cost", "have one shape for all", shapes, "Make a sweep for each shape.")
    tests = {one.has_test for one in costs}
    require(len(tests) == 1, "cost", "all have a test set or none", [one.has_test for one in costs])
    return costs


def _values(axis: str, given: Any) -> tuple[Any, ...]:
    require(np.ndim(given) <= 1, axis, "be a number or a list of them", given)
    found = tuple(x.item() if isinstance(x, np.generic) else x for x in (given if np.ndim(given) > 0 else (given,)))
    require(len(found) > 0, axis, "hold at least one value", given)
    twice = sorted({x for x in found if found.count(x) > 1})
    require(not twice, axis, "hold each value once", f"{twice} twice", "Duplicates would be the same lane.")
    for value in found:
        _check_value(axis, value)
    return found


def _check_value(axis: str, value: Any) -> None:
    if axis in ("depth", "width", "seed"):
        require_integer(axis, value, {"depth": 2, "width": 1, "seed": 0}[axis])
        return
    require_finite(axis, value)
    if axis == "gamma":
        require(value >= 0, axis, "not be negative", value)
    elif axis == "alpha":
        require_positive(axis, value)
    else:
        require_tolerance(axis, value)
