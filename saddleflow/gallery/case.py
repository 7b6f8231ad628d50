"""A case: a published experiment as it is posed here, its source's numbers beside ours, and the verdict."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from saddleflow._backend.checks import require

# Where a number of the source comes from: its output, a formula or a statement of it, or neither: we derived it.
Origin = Literal["printed", "stated", "derived"]


@dataclass(frozen=True)
class Number:
    """One number of a case, the source's and ours.

    Attributes:
        quantity: what it is, with its unit where it has one.
        source: the source's number.
        ours: what the pose gives.
        low, high: where ours must lie to reproduce the source's; infinite ends make one-sided bounds.
        origin: "printed" by the source, "stated" by it as a formula or in words, or "derived" by us for its setting.
    """

    quantity: str
    source: float
    ours: float
    low: float
    high: float
    origin: str = "printed"

    def __post_init__(self):
        require(self.origin in get_args(Origin), "origin", f"be one of {get_args(Origin)}", self.origin)

    @property
    def holds(self) -> bool:
        """Whether ours lies within the bounds; NaN never does."""
        return bool(self.low <= self.ours <= self.high)

    @property
    def aim(self) -> str:
        """The source's number in words; of a one-sided one the bound."""
        if math.isinf(self.low):
            return f"at most {short(self.source)}"
        return f"at least {short(self.source)}" if math.isinf(self.high) else short(self.source)

    @classmethod
    def near(
        cls,
        quantity: str,
        source: Any,
        ours: Any,
        *,
        within: float | None = None,
        absolute: float | int = 0.0,
        origin: str = "printed",
    ) -> "Number":
        """Ours agrees with the source's, within a share of it or an absolute distance."""
        require(
            (within is None) == (absolute > 0), "within, absolute", "be given one and not both", (within, absolute)
        )
        aim = float(source)
        room = absolute if within is None else within * abs(aim)
        return cls(quantity, aim, float(ours), aim - room, aim + room, origin)

    @classmethod
    def at_most(cls, quantity: str, source: Any, ours: Any, *, origin: str = "printed") -> "Number":
        """Ours is at or below a bound: the source's, or ours for what it says to vanish."""
        return cls(quantity, float(source), float(ours), -math.inf, float(source), origin)

    @classmethod
    def at_least(cls, quantity: str, source: Any, ours: Any, *, origin: str = "printed") -> "Number":
        """Ours is at or above a bound: the source's, or ours for what it says to be large."""
        return cls(quantity, float(source), float(ours), float(source), math.inf, origin)


@dataclass(frozen=True)
class Case:
    """A published experiment. A module in `saddleflow/gallery/cases` holds one, as `CASE`.

    Attributes:
        name: its short name, as on the command line.
        title: a few words.
        source: the repository that computed it, with its commit.
        paper: the paper that it belongs to, with its arXiv number where it has one.
        computed: what the source computed, and what of it is posed here.
        source_cost: what it took the source: steps, seconds, hardware, as far as it says.
        pose: runs the experiment, by the public API alone; what it returns is for `judge` and `draw`.
        judge: the numbers, from what was run.
        draw: one small picture, on matplotlib axes, from what was run.
        smaller: where the pose is smaller than the source, or otherwise not the same; "" where it is not.
        in_law: the source's random data or starts cannot be rebuilt; its numbers are compared with other draws.
    """

    name: str
    title: str
    source: str
    paper: str
    computed: str
    source_cost: str
    pose: Callable[[], Any]
    judge: Callable[[Any], Sequence[Number]]
    draw: Callable[[Any, Any], None]
    smaller: str = ""
    in_law: bool = False


@dataclass(frozen=True)
class Result:
    """The result of a case: its numbers, verdict and time.

    Attributes:
        case: the case.
        numbers: the source's numbers and ours.
        seconds: wall-clock seconds of its runs, compilation included.
        runs: what the pose returned; None where it ended in an exception.
        message: that exception, else "".
    """

    case: Case
    numbers: tuple[Number, ...]
    seconds: float
    runs: Any = None
    message: str = ""

    @property
    def reproduced(self) -> bool:
        """Whether every number holds."""
        return not self.message and bool(self.numbers) and all(number.holds for number in self.numbers)

    @property
    def verdict(self) -> str:
        """In words: "reproduced", "reproduced (other draws)", "as derived" (all numbers are ours), "differs: ..."."""
        if self.message:
            return f"error: {self.message}"
        wrong = [f"{n.quantity} is {short(n.ours)}, not {n.aim}" for n in self.numbers if not n.holds]
        if wrong or not self.numbers:
            return f"differs: {'; '.join(wrong) or 'no number to compare'}"
        if all(number.origin == "derived" for number in self.numbers):
            return "as derived"
        return "reproduced (other draws)" if self.case.in_law else "reproduced"

    def __repr__(self) -> str:
        """The result card."""
        lines = [f"{self.case.name}: {self.case.title}", f"  {self.verdict}, {self.seconds:.1f} s"]
        lines += [f"  {n.quantity}: {n.origin} {n.aim}, ours {short(n.ours)}" for n in self.numbers]
        return "\n".join(lines)


def first_time(time: Any, values: Any, level: float) -> float:
    """When a curve first reaches a level from below, interpolated between rows; NaN where it never does."""
    time, values = np.asarray(time, float), np.asarray(values, float)
    after = int(np.argmax(values >= level))
    if values[after] < level or after == 0:
        return float(time[0]) if values[0] >= level else math.nan
    return float(np.interp(level, values[after - 1 : after + 1], time[after - 1 : after + 1]))


def short(number: float) -> str:
    """A number as tables and verdicts write it."""
    return f"{number:.5g}"
