"""Lanes that are runs of their own on the host, one after another in a thread: of reduced width, and descents.

They differ in shapes, or run by other programs than those of the scheduler.
"""

import abc
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from saddleflow._backend.devices import cores, one_lapack_thread
from saddleflow.flow.history import History
from saddleflow.flow.state import StopReason
from saddleflow.sweeps.results import LaneResult, spread
from saddleflow.sweeps.workers import Report, Tally, in_threads

# A label, which comes back with the result, and what makes the lane: once, as its turn comes.
Labelled = tuple[Any, Callable[[], Any]]


class HostGroup(abc.ABC):
    """Lanes of one kind.

    Attributes:
        lanes: each with its label.
    """

    lanes: Sequence[Labelled]

    @abc.abstractmethod
    def solve(self, lane: Any) -> LaneResult:
        """Run a lane, start to end."""

    def check(self, num_threads: int) -> None:
        """Refuse lanes that will not fit the memory, so many at once, before anything is computed.

        Raises:
            ValueError: they will not.
        """
        del num_threads


def check_groups(groups: Sequence[HostGroup], workers: int | None) -> None:
    """Refuse groups whose lanes will not fit the memory.

    Raises:
        ValueError: which lanes, and what they need.
    """
    for group in groups:
        group.check(_num_threads(groups, workers))


def run(groups: Sequence[HostGroup], *, workers: int | None, report: Report) -> Iterator[tuple[Any, LaneResult]]:
    """Run lanes.

    Args:
        groups: lanes of one kind each, accepted by `check_groups`.
        workers: threads; None: one a core.
        report: told what each lane adds to the tally; no lane waits, so all steps are useful.

    Yields:
        Label and result, as lanes end.
    """
    tasks = [partial(_solve, group, label, make, report) for group in groups for label, make in group.lanes]
    with one_lapack_thread():
        yield from in_threads(tasks, _num_threads(groups, workers))


def _num_threads(groups: Sequence[HostGroup], workers: int | None) -> int:
    return max(1, min(workers or cores(), sum(len(group.lanes) for group in groups)))


def _solve(
    group: HostGroup, label: Any, make: Callable[[], Any], report: Report, stopped: threading.Event
) -> Iterator[tuple[Any, LaneResult]]:
    """One lane: only an interrupt stops it on the way."""
    if stopped.is_set():
        return
    result = group.solve(make())
    failed = int(result.stop_reason) in Tally.FAILURES
    report(Tally(1, int(failed), *result.lane_steps()))
    yield label, result


def result_of(trajectory: History, matrices: dict[str, Any], *, num_rows: int, at_given_times: bool) -> LaneResult:
    """A trajectory as the result of a lane.

    Args:
        trajectory: of a network or of a model.
        matrices: what its rows hold beside costs and observables: A or the outputs, by name.
        num_rows: rows of a result.
        at_given_times: rows are those of times asked for, of which a run that ends early has fewer; else they are
            spread over the run.
    """
    rows = {
        "time": trajectory.time,
        "gradient_norm": trajectory.gradient_norm,
        "train_cost": trajectory.train_cost,
        "observables": trajectory.observables,
    } | matrices
    if trajectory.test_cost is not None:
        rows["test_cost"] = trajectory.test_cost
    rows, count = jax.tree.map(np.asarray, rows), len(trajectory.time)
    if at_given_times:
        missing = num_rows - count
        rows = jax.tree.map(lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), rows)
    else:
        rows, count = spread(rows, count, num_rows), num_rows
    stats = {name: None if value is None else np.asarray(value) for name, value in trajectory.stats.items()}
    return LaneResult(
        rows=rows,
        num_rows=np.asarray(count),
        end_time=np.asarray(trajectory.time[-1]),
        stop_reason=np.asarray(int(StopReason[trajectory.stop_reason])),
        num_accepted_steps=np.asarray(stats["num_accepted_steps"]),
        num_rejected_steps=np.asarray(stats["num_rejected_steps"]),
        balancedness_drift=stats.get("balancedness_drift"),
        reduction_error_estimate=stats.get("reduction_error_estimate"),
        num_vector_field_evaluations=stats.get("num_vector_field_evaluations"),
        num_hessian_vector_products=stats.get("num_hessian_vector_products"),
    )
