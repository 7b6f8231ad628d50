"""The saddles that a trajectory visits: plateaus, escapes, and the stationary points behind them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import lazy_loader as lazy
import numpy as np
import scipy
from jaxtyping import Float, Int

from saddleflow.flow import crossings
from saddleflow.flow.clock import SegmentedTime
from saddleflow.flow.dips import MIN_DIP
from saddleflow.plotting.cards import never_raises, table
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.stationary import hessian_spectrum, polish
from saddleflow.theory import escape_speed, measured_escape_speed

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = lazy.load("pandas")

# A plateau is entered and left where the cost has a tenth of a drop to go, or has gone.
SHARE_OF_DROP = 0.1

# What counts as having left a plateau, of its cost.
LEAST_DROP = 1e-6

# A rise of the gradient norm is the flow's own where the cost falls as `dC/dt = -|grad|^2` says. Rows that resolve an
# escape agree with that to within a third; where the rise is the solver's noise, less than a fiftieth is true.
SHARE_OF_SLOPE = 0.2

# A direction of A that grows tenfold along itself before the next plateau has not been learned on this one.
LEARNED_SHARE = 0.1

# What polishing leaves of a direction that a stationary point has not, of the largest singular value of A, at most.
RANK_OF_POINT = 1e-8

# The speed of an escape is measured where the gradient norm lies between these shares of its peak: grown far enough
# to point along the escape direction, and still small.
SPEED_WINDOW = (1e-3, 0.2)


@dataclass(frozen=True)
class SaddleVisit:
    """One saddle visited.

    Times are in units of the flow; `Trajectory.time_since_escape` resolves them where they are huge. What needs the
    cost and the network (from `distance` on) is None for a trajectory that was loaded without its cost.

    Attributes:
        rank: rank of A at the stationary point, where there is one; else the number of directions that the rows show
            as learned at the dip: above the rank tolerance, and not about to grow tenfold in this escape. Of a model
            the rank of its outputs at the dip; None where it has none.
        cost: train cost at the dip of the gradient norm: the height of the plateau.
        time: time of the dip.
        gradient_norm: the least gradient norm (in theta) of the visit.
        row: row of the trajectory nearest to the dip.
        enter: time of entry: a tenth of the drop from the previous plateau is left; 0 for the first plateau.
        leave: time of leaving: a tenth of the drop to the next plateau (or the end) is done.
        escape_time: t_alpha^k: half of that drop is done.
        escape: the same as (row, time after that row), which is exact.
        escape_speed: measured speed s of the escape, from the law `d|theta|/dt = s |theta|^(L-1)` of the deviation
            from the saddle (see `saddleflow.theory.escape_norm`); NaN where the rows do not resolve it,
            and of models that are no deep linear networks.
        predicted_speed: the optimal speed `L^(-(L-2)/2) s_1(grad C(A))` at the stationary point of a network.
        distance: Euclidean distance in theta from the dip to the nearest stationary point.
        stationary_cost: train cost at the stationary point.
        index: number of negative eigenvalues of the Hessian there.
        hessian_range: its least and its largest eigenvalue.
        strict: whether the saddle is strict: the least eigenvalue is negative.
    """

    rank: int | None
    cost: float
    time: float
    gradient_norm: float
    row: int
    enter: float
    leave: float
    escape_time: float
    escape: tuple[int, float]
    escape_speed: float
    predicted_speed: float | None = None
    distance: float | None = None
    stationary_cost: float | None = None
    index: int | None = None
    hessian_range: tuple[float, float] | None = None
    strict: bool | None = None

    def moved(self, rows: int, time: float, start: float) -> "SaddleVisit":
        """The visit in a longer trajectory: so many rows and so much time later, in a part that starts at `start`."""
        later = {name: getattr(self, name) + time for name in ("time", "enter", "leave", "escape_time")}
        later["enter"] = max(later["enter"], start)
        return replace(self, row=self.row + rows, escape=(self.escape[0] + rows, self.escape[1]), **later)


class Saddles(list[SaddleVisit]):
    """The saddles visited, a list in order of time that prints as a table."""

    COLUMNS = ("rank", "cost", "enter", "leave", "escape_time", "escape_speed", "predicted_speed", "index", "strict")

    def to_pandas(self) -> "pd.DataFrame":
        """A row per visit, a column per field of `SaddleVisit`."""
        names = [field.name for field in fields(SaddleVisit)]
        return pd.DataFrame([[getattr(visit, name) for name in names] for visit in self], columns=names)

    def __repr__(self) -> str:
        """The columns that say most: ranks, costs, times, speeds, index of the Hessian."""
        if not self:
            return "no saddle visited"
        return self._table().to_string()

    @never_raises
    def _repr_html_(self) -> str:
        """The same, for notebooks."""
        return self.to_html() if self else "<p>no saddle visited</p>"

    def to_html(self) -> str:
        """The table as HTML, in the page's own colours."""
        return table(self.COLUMNS, [[_text(getattr(visit, name)) for name in self.COLUMNS] for visit in self])

    def _table(self) -> "pd.DataFrame":
        return self.to_pandas().astype(object).loc[:, list(self.COLUMNS)].map(_text)


def _text(value: Any) -> str:
    """Numbers to six digits, nothing where nothing is known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def find_dips(
    gradient_norm: Float[np.ndarray, " time"],
    train_cost: Float[np.ndarray, " time"],
    steps: Float[np.ndarray, " time_minus_1"],
    rank: Int[np.ndarray, " time"],
    by_slope: bool = True,
) -> list[int]:
    """Rows of the plateaus along a trajectory, in order; none for a run without plateaus (lazy training).

    A saddle is a place, not a rank: from one dip to the next, or to the end, the flow has left where the cost has
    fallen by more than rounding and either the rank has risen or the cost has fallen as the gradient norms say (else
    they are noise of the solver: it dips often at one saddle, and in the tail). Of several dips at one place the
    deepest counts.

    The start counts when the gradient norm grows out of it by `MIN_DIP` and the rank by one: a large random start is
    no saddle. The end never does: a run that is still slow there has not left.

    Args:
        gradient_norm: |grad_theta C| of the rows.
        train_cost: C of the rows.
        steps: times between the rows.
        rank: numerical rank of A of the rows.
        by_slope: whether the cost falls as the gradient norms say; else only a rise of the rank tells.
    """
    usable = gradient_norm > 0
    if usable.sum() < 3:
        return []
    indices = np.flatnonzero(usable)
    depth = -np.log(gradient_norm[indices])
    # a wall in front lets the start count as a dip; nothing behind keeps the end from counting
    padded = np.concatenate([[depth.min() - 2 * np.log(MIN_DIP)], depth])
    peaks, _ = scipy.signal.find_peaks(padded, prominence=np.log(MIN_DIP))
    fallen = _cost_by_slope(gradient_norm, steps)

    def left(here: int, there: int) -> bool:
        drop = train_cost[here] - train_cost[there]
        real = by_slope and drop > SHARE_OF_SLOPE * np.sum(fallen[here:there])
        return bool(drop > LEAST_DROP * train_cost[here] and (real or rank[there] > rank[here]))

    places, rows = [], []
    for here, there in pairwise([*(int(i) for i in indices[peaks - 1]), len(rank) - 1]):
        rows.append(here)
        if left(here, there):
            places.append(min(rows, key=lambda row: gradient_norm[row]))
            rows = []
    if places and _at_the_start(train_cost, places) and rank[places[0]] >= rank[-1]:
        places = places[1:]
    return places


def _cost_by_slope(
    gradient_norm: Float[np.ndarray, " time"], steps: Float[np.ndarray, " time_minus_1"]
) -> Float[np.ndarray, " time_minus_1"]:
    """What the cost falls by between rows, by the trapezoidal rule on `dC/dt = -|grad|^2`."""
    with np.errstate(over="ignore", invalid="ignore"):  # just before a blow-up
        return 0.5 * (gradient_norm[1:] ** 2 + gradient_norm[:-1] ** 2) * steps


def _at_the_start(train_cost: Float[np.ndarray, " time"], places: list[int]) -> bool:
    """Whether the first place is the start's own plateau."""
    here, there = places[0], [*places, len(train_cost) - 1][1]
    return bool(train_cost[0] - train_cost[here] <= SHARE_OF_DROP * (train_cost[here] - train_cost[there]))


def find_visits(
    clock: SegmentedTime,
    train_cost: Float[np.ndarray, " time"],
    gradient_norm: Float[np.ndarray, " time"],
    rank: Int[np.ndarray, " time"],
    learned: Callable[[int, int], int | None],
    depth: int | None,
    by_slope: bool = True,
) -> list[SaddleVisit]:
    """The visits as the rows of a trajectory show them, in order of time; empty without plateaus.

    Args:
        clock: times of the rows.
        train_cost: C of the rows.
        gradient_norm: |grad_theta C| of the rows.
        rank: numerical rank of the outputs of the rows.
        learned: (row of a dip, row after its escape) -> rank that the flow had at the dip.
        depth: of a deep linear network, whose escapes have a speed; None: of another model.
        by_slope: as in `find_dips`.
    """
    dips = find_dips(gradient_norm, train_cost, clock.steps, rank, by_slope)
    last = len(train_cost) - 1
    visits: list[SaddleVisit] = []
    enter = 0.0
    for here, there in pairwise([*dips, last]):
        top, drop = train_cost[here], train_cost[here] - train_cost[there]

        def crossing(share: float, here=here, there=there, top=top, drop=drop) -> tuple[int, float]:
            return _crossing(clock, train_cost, gradient_norm, here, there, top - share * drop)

        leave, escape, settled = crossing(SHARE_OF_DROP), crossing(0.5), crossing(1 - SHARE_OF_DROP)
        visits.append(
            SaddleVisit(
                rank=learned(here, settled[0] + 1),
                cost=float(top),
                time=float(clock.time[here]),
                gradient_norm=float(gradient_norm[here]),
                row=here,
                enter=enter,
                leave=_time(clock, leave),
                escape_time=_time(clock, escape),
                escape=escape,
                escape_speed=math.nan if depth is None else _speed(clock, gradient_norm, here, escape[0], depth),
            )
        )
        enter = _time(clock, settled)
    return visits


def learned_directions(
    here: Float[np.ndarray, "n_out n_in"], later: Float[np.ndarray, "n_out n_in"], tolerance: float
) -> int:
    """Number of directions learned on a plateau, from A there and after the escape.

    On a short plateau the direction that escapes has passed the tolerance already. It is told by its growth, along
    itself: by size, singular values change places.
    """
    left, values, right = np.linalg.svd(here, full_matrices=False)
    grown = np.abs(np.sum((left.T @ later) * right, axis=1))
    return int(np.sum((values > tolerance) & (values > LEARNED_SHARE * grown)))


def inspect(visit: SaddleVisit, cost: Cost, network: DeepLinearNetwork) -> SaddleVisit:
    """The visit with what the nearest stationary point tells, its rank included.

    Args:
        visit: from `find_visits`.
        cost: the cost of the run.
        network: the network near the dip.
    """
    rank = visit.rank
    assert rank is not None, "networks have a matrix"
    point = polish(cost, network, rank=rank)
    while bool(point.converged) and _rank_of_point(point.network) < rank:
        # a direction that the point has not: without it the point is sharper, and so is its Hessian
        rank = _rank_of_point(point.network)
        point = polish(cost, network, rank=rank)
    if not bool(point.converged):
        return visit
    matrix = point.network.end_to_end()
    spectrum = hessian_spectrum(cost, point.network, rank)
    return replace(
        visit,
        rank=rank,
        predicted_speed=escape_speed(np.asarray(cost.gradient(matrix)), network.depth),
        distance=float(point.distance),
        stationary_cost=float(cost(matrix)),
        index=spectrum.index,
        hessian_range=(spectrum.least, spectrum.largest),
        strict=spectrum.index > 0,
    )


def _rank_of_point(network: DeepLinearNetwork) -> int:
    values = np.linalg.svd(np.asarray(network.end_to_end()), compute_uv=False)
    return int(np.sum(values > RANK_OF_POINT * values[0]))


def nearest(dips: tuple[np.ndarray, Any], visit: SaddleVisit) -> Any | None:
    """The network, or a model's parameters, kept from the dip of a visit: the one nearest in time.

    Only those between entry and leaving count.
    """
    times, networks = dips
    within = np.flatnonzero((times >= visit.enter) & (times <= visit.leave))
    if not len(within):
        return None
    best = within[np.argmin(np.abs(times[within] - visit.time))]
    return jax.tree.map(lambda layer: jnp.asarray(layer[best]), networks)


def _time(clock: SegmentedTime, at: tuple[int, float]) -> float:
    return float(clock.time[at[0]] + at[1])


def _crossing(clock, train_cost, gradient_norm, first: int, last: int, level: float) -> tuple[int, float]:
    """Where the cost falls to a level between two rows, as (row, time after it).

    Between rows by the cubic through the costs with the slopes `dC/dt = -|grad|^2`, which are exact.
    """
    below = crossings.first_row(train_cost[first : last + 1], level)
    assert below, "the level lies between the costs of the two rows"
    row = first + below - 1
    ends = slice(row, row + 2)
    return row, crossings.cubic(float(clock.steps[row]), train_cost[ends], -(gradient_norm[ends] ** 2), level)


def _speed(clock, gradient_norm, dip: int, escape: int, depth: int) -> float:
    """The speed of an escape, from the rows that resolve it; NaN where they do not lie apart."""
    peak = dip + int(np.argmax(gradient_norm[dip : escape + 2]))
    share = gradient_norm[dip : peak + 1] / gradient_norm[peak]
    rows = dip + np.flatnonzero((share > SPEED_WINDOW[0]) & (share < SPEED_WINDOW[1]))
    rows = rows[gradient_norm[rows] > MIN_DIP * gradient_norm[dip]]
    time = clock.since(int(rows[0]))[rows] if len(rows) else np.zeros(1)
    return measured_escape_speed(time, gradient_norm[rows], depth) if time[-1] > time[0] else math.nan
