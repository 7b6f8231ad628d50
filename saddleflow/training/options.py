"""The options of a descent, checked once."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from saddleflow._backend.arguments import MOST_STEPS, Reader, integer, key, optional
from saddleflow._backend.checks import is_concrete, require, require_positive
from saddleflow._backend.devices import check_room
from saddleflow.flow import observables as obs
from saddleflow.flow.arguments import FLOW, MAX_ROWS_NUMBERS, MAX_SAVES, MIN_SAVES, require_target
from saddleflow.problem.padding import padded_size

# Options that a descent shares with a flow.
SHARED = ("save_networks", "observables", "target_cost", "max_seconds", "progress", "rank_tolerance")

# What the options of descents are, for the tables of the functions that take them.
DESCENT: dict[str, Reader] = {name: FLOW[name] for name in SHARED} | {
    "num_steps": integer(1, MOST_STEPS),
    "batch_size": optional(integer(1)),
    "key": optional(key),
    "max_saves": optional(integer(2)),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class DescentOptions:
    """How a descent is to run and what of it is kept; `gradient_descent` documents each option.

    Raises:
        ValueError: a bad option, named with value and remedy.
    """

    num_steps: int
    batch_size: int | None = None
    key: Any = None
    max_saves: int | None = None
    save_at: Any = None
    save_networks: bool = False
    observables: Any = None
    target_cost: Any = None
    max_seconds: float | int | None = None
    progress: bool | str = True
    rank_tolerance: float | None = None
    deadline: float = math.inf  # of time.perf_counter

    def __post_init__(self):
        if self.save_at is not None:
            object.__setattr__(self, "save_at", _steps(self.save_at, self.num_steps))
        if self.target_cost is not None:
            require_target(self.target_cost)
        for name in ("max_seconds", "rank_tolerance"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        object.__setattr__(self, "observables", obs.resolve(self.observables))
        if self.max_seconds is not None:
            object.__setattr__(self, "deadline", time.perf_counter() + self.max_seconds)

    def check_batches(self, num_samples: int | None) -> None:
        """Refuse a batch size or a key that do not fit the samples.

        Args:
            num_samples: of the cost or the objective; None: it has none at hand.

        Raises:
            ValueError: which of them, with value and remedy.
        """
        if self.batch_size is None:
            require(self.key is None, "key", "be None without batch_size", self.key, "Nothing else is random.")
            return
        require(
            num_samples is not None,
            "batch_size",
            "be None: this loss has no samples at hand",
            self.batch_size,
            "MeanSquaredError takes keep_samples=True; of models take sf.regression or sf.classification; a cost of "
            "your own defines `num_samples` and `batch`.",
        )
        assert num_samples is not None
        fits = self.batch_size <= num_samples
        require(fits, "batch_size", f"be at most the number of samples, {num_samples}", self.batch_size)
        remedy = "Pass jax.random.key(0), for example."
        require(self.key is not None, "key", "be given with batch_size: batches are random", None, remedy)

    def room_for_rows(self, numbers: int) -> Int[np.ndarray, " capacity"]:
        """`saved_steps`, with steps behind them that are never reached: fewer sizes are fewer compiled programs."""
        steps = self.saved_steps(numbers)
        return np.pad(steps, (0, padded_size(len(steps)) - len(steps)), constant_values=np.iinfo(steps.dtype).max)

    def saved_steps(self, numbers: int) -> Int[np.ndarray, " rows"]:
        """The steps of the rows, 0 and the last among them.

        Args:
            numbers: of one row, by which `max_saves` is decided where it was left out.
        """
        if self.save_at is not None:
            return np.unique([0, *self.save_at, self.num_steps])
        most = self.max_saves
        if most is None:
            most = max(MIN_SAVES, min(MAX_SAVES, MAX_ROWS_NUMBERS // numbers))
        need = 8 * min(most, self.num_steps) * numbers
        check_room("max_saves", most, need, f"A row holds {numbers} numbers: ask for fewer rows.")
        return np.unique(np.linspace(0, self.num_steps, min(most, self.num_steps + 1)).round().astype(int))


def _steps(save_at: Any, num_steps: int) -> Sequence[int]:
    """Steps to save at, as integers."""
    steps = np.atleast_1d(np.asarray(save_at))
    found = f"{steps.dtype} of shape {steps.shape}"
    whole = steps.ndim == 1 and steps.size > 0 and np.issubdtype(steps.dtype, np.integer)
    require(whole, "save_at", "be a list of steps, integers", found, "Times are steps times the learning rate.")
    inside = steps.min() >= 0 and steps.max() <= num_steps
    require(inside, "save_at", f"lie between 0 and num_steps = {num_steps}", [int(steps.min()), int(steps.max())])
    return steps.tolist()


def require_concrete(name: str, tree: Any) -> None:
    """Refuse tracers."""
    if not all(map(is_concrete, jax.tree.leaves(tree))):
        raise ValueError(
            f"`{name}` must be concrete, but got a tracer: gradient_descent runs on the host, outside of jit and "
            "vmap. Call saddleflow.training.descend there, the same descent as a pure function of arrays."
        )
