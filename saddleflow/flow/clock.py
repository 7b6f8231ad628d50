"""Time of the flow in segments, so that a burst after a plateau of length 1e30 is still resolved.

Near a saddle time dilates by alpha^-(L-2), and what follows an escape takes times of order one. Physical time is
therefore a sum of finished segments and the time within the current one; a segment ends where the next step would be
lost in the digits of the time within, which is at the end of a plateau. Differences of times are taken segment by
segment and never suffer from the length of what came before.
"""

from dataclasses import dataclass
from functools import cached_property

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# A segment ends where the next step is a smaller share than this of the time within: steps keep 8 digits.
FINEST_STEP = 2.0**-27

# More plateaus than any run in float64 can resolve, each worth a few segments.
MAX_SEGMENTS = 128


class Clock(eqx.Module):
    """The time of one flow on its way; a pytree, for the compiled loop."""

    durations: Float[Array, " segments"]  # of the finished segments; zero for the others
    segment: Int[Array, ""]
    within: Float[Array, ""]

    @classmethod
    def start(cls) -> "Clock":
        """Time zero."""
        return cls(jnp.zeros(MAX_SEGMENTS), jnp.zeros((), int), jnp.zeros(()))

    @property
    def time(self) -> Float[Array, ""]:
        """Physical time, to float64's relative precision."""
        return jnp.sum(self.durations) + self.within

    def after(self, time: Float[Array, ""]) -> "Clock":
        """A time on the way of the next step, in the same segment."""
        return Clock(self.durations, self.segment, self.within + time)

    def tick(self, step: Float[Array, ""], next_step: Float[Array, ""]) -> "Clock":
        """Time after a step; a new segment begins where the next step is too fine for this one."""
        within = self.within + step
        ends = (next_step < FINEST_STEP * within) & (self.segment < MAX_SEGMENTS - 1)
        return Clock(
            self.durations.at[self.segment].set(jnp.where(ends, within, 0.0)),
            self.segment + ends,
            jnp.where(ends, 0.0, within),
        )


@dataclass(frozen=True, eq=False)
class SegmentedTime:
    """The saved times of a trajectory, with differences that no plateau's length blurs.

    Attributes:
        segment: number of the segment that each time lies in, shape (time,).
        within: time since that segment began, shape (time,), in units of the flow.
        durations: length of every finished segment, shape (segments,).
    """

    segment: Int[np.ndarray, " time"]
    within: Float[np.ndarray, " time"]
    durations: Float[np.ndarray, " segments"]

    @classmethod
    def plain(cls, time: Float[np.ndarray, " time"]) -> "SegmentedTime":
        """Times that float64 resolves as they are."""
        return cls(np.zeros(len(time), int), np.asarray(time, float), np.zeros(0))

    @cached_property
    def time(self) -> Float[np.ndarray, " time"]:
        """Physical time, shape (time,)."""
        return np.concatenate([[0.0], np.cumsum(self.durations)])[self.segment] + self.within

    def between(self, first: int, last: int) -> float:
        """Time from one saved time to another."""
        if first > last:
            return -self.between(last, first)
        begin, end = self.segment[first], self.segment[last]
        if begin == end:
            return float(self.within[last] - self.within[first])
        rest = self.durations[begin] - self.within[first]
        return float(rest + np.sum(self.durations[begin + 1 : end]) + self.within[last])

    @cached_property
    def steps(self) -> Float[np.ndarray, " time_minus_1"]:
        """Times between consecutive saved times, shape (time - 1,)."""
        return np.array([self.between(row, row + 1) for row in range(len(self.within) - 1)])

    def since(self, row: int, offset: float = 0.0) -> Float[np.ndarray, " time"]:
        """All saved times, counted from `offset` after the one at `row`; shape (time,)."""
        return np.array([self.between(row, other) - offset for other in range(len(self.within))])
