"""Starts of a sweep that are ends of other flows: the time of a switch of tasks as a dim."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saddleflow._backend.arguments import check_options, number, takes
from saddleflow._backend.checks import require
from saddleflow.api import gradient_flow
from saddleflow.problem import readers
from saddleflow.problem.costs import Cost
from saddleflow.sweeps.configuration import name, name_of


@dataclass(frozen=True, eq=False)
class After:
    """Makes networks as `after` says.

    Attributes:
        cost: of the flow before.
        init: makes its start.
        options: of that flow.
    """

    cost: Cost
    init: Callable[..., Any]
    options: dict[str, Any]

    def __call__(self, key: Any, *, switch_time: Any, **arguments: Any) -> Any:
        """The network at a time of the flow before."""
        switch_time = number(least=0.0, example="100.0")("switch_time", switch_time)
        start = self.init(key, **arguments)
        if switch_time == 0:
            return start
        # a row at the end is all that is asked for
        run = gradient_flow(
            self.cost, start, t1=float(switch_time), save_at=[switch_time], progress=False, **self.options
        )
        require(
            run.stop_reason == "t1",
            "switch_time",
            "be reached by the flow before it",
            f"{run.stop_reason} at t = {run.time[-1]:.6g}",
            "Its rtol and max_steps are options of `after`.",
        )
        return run.network

    def outline(self, key: Any, *, switch_time: float, **arguments: Any) -> Any:
        """A network of the same sizes."""
        del switch_time
        return self.init(key, **arguments)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of init, with the time of the switch."""
        time = inspect.Parameter("switch_time", inspect.Parameter.KEYWORD_ONLY)
        own = list(inspect.signature(self.init).parameters.values())
        open_ended = [one for one in own if one.kind == one.VAR_KEYWORD]
        others = [one for one in own if one.kind != one.VAR_KEYWORD]
        return inspect.Signature([*others, time, *open_ended])

    def described(self) -> str:
        """For the configuration of a sweep: with what the flow before depends on."""
        further = "".join(f", {key}={value!r}" for key, value in sorted(self.options.items()))
        return f"after({name(self.cost)}, {name_of(self.init)}{further})"


@takes(cost=readers.cost)
def after(cost: Any, init: Any, **options: Any) -> After:
    """Make an `init` for sweeps that first solves a flow on another cost, to the time `switch_time`.

    Critical periods, for example: what does a task leave of the one before, by the time of the switch?

    >>> first, second = (sf.MatrixCompletion.random(jax.random.key(seed), shape=(4, 4), rank=1) for seed in (0, 1))
    >>> data = sf.sweep(
    ...     second,
    ...     init=sf.after(first, sf.orthogonal),
    ...     switch_time=[0.0, 10.0, 50.0],
    ...     depth=2, width=4, scale=0.1, seed=range(2),
    ... )
    >>> dict(data.test_cost.isel(sample=-1).mean("seed").sizes)
    {'switch_time': 3}

    Times of the dataset count from the switch. Each lane runs the flow before by itself, so that its numbers do not
    depend on the others.

    Args:
        cost: the cost before the switch, of the same shape.
        init: a function (key, ...) -> network, as in `sweep`.
        options: of the flow before: rtol (1e-6), max_steps and others of `gradient_flow`.

    Raises:
        ValueError: a cost that is none, an init that is no function; times that are none, or that the flow before
            does not reach.
    """
    require(callable(init), "init", "be a function (key, ...) -> network", init, "For example sf.gaussian.")
    for option in ("t1", "save_at", "progress", "target_cost"):
        given = options.get(option)
        require(option not in options, option, "be left out: the flow before ends at switch_time", given)
    check_options(gradient_flow, options)
    return After(cost, init, options)
