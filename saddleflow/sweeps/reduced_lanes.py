"""Lanes whose width is reduced: each a flow of its own, with an estimate of its error, in the terms of the others.

The bases of a reduced network grow along its flow, so lanes differ in shape and share no compiled program but those
of padded widths. Threads take one lane after another.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from saddleflow._backend.devices import check_memory, cores, one_lapack_thread
from saddleflow.flow.arguments import FlowOptions
from saddleflow.flow.state import StopReason
from saddleflow.flow.trajectory import Trajectory
from saddleflow.problem.network import layer_sizes, num_parameters
from saddleflow.problem.starts import gaussian
from saddleflow.sweeps.lanes import NetworkLane
from saddleflow.sweeps.results import LaneResult, spread
from saddleflow.sweeps.workers import Report, Tally, in_threads
from saddleflow.width.adaptive import solve_reduced
from saddleflow.width.projected import ReducedNetwork, reduce_width
from saddleflow.width.sampled import sample_reduced

MODES = ("auto", "sample")

# Of the full network, while its bases are found: the draw, scaled, in numpy, squared.
COPIES = 4


@dataclass(frozen=True, eq=False)
class ReducedGroup:
    """Lanes of one size, and how their width is reduced.

    Attributes:
        options: of each flow, but for rtol, which is the lane's.
        mode: one of `MODES`.
        depth: number of layers L.
        width: hidden width w, before it is reduced.
        shape: (n_out, n_in).
        num_rows: rows of a result.
        lanes: pairs of a label, which comes back with the result, and a function that makes the lane.
    """

    options: FlowOptions
    mode: str
    depth: int
    width: int
    shape: tuple[int, int]
    num_rows: int
    lanes: Sequence[tuple[Any, Callable[[], NetworkLane]]]


def check_groups(groups: Sequence[ReducedGroup], workers: int | None) -> None:
    """Refuse groups whose lanes will not fit the memory while their bases are found, before anything is computed.

    Raises:
        ValueError: the full networks, which "auto" starts from, will not fit.
    """
    for group in groups:
        if group.mode == "auto":
            need = COPIES * 8 * num_parameters(layer_sizes(group.depth, group.width, group.shape))
            what = f"a lane at width {group.width}, whole and reduced"
            check_memory(need, _num_threads(groups, workers), jax.devices("cpu")[0], what)


def run(groups: Sequence[ReducedGroup], *, workers: int | None, report: Report) -> Iterator[tuple[Any, LaneResult]]:
    """Run lanes to an error of A of ten times rtol of the largest |A|, as `gradient_flow` does with these networks.

    Args:
        groups: lanes of one size each, accepted by `check_groups`.
        workers: threads; None: one a core.
        report: told what each lane adds to the tally; no lane waits, so all steps are useful.

    Yields:
        Label and result, as lanes end.
    """
    tasks = [partial(_solve, group, label, make, report) for group in groups for label, make in group.lanes]
    with one_lapack_thread():
        yield from in_threads(tasks, _num_threads(groups, workers))


def _num_threads(groups: Sequence[ReducedGroup], workers: int | None) -> int:
    return max(1, min(workers or cores(), sum(len(group.lanes) for group in groups)))


def start_network(lane: NetworkLane, group: ReducedGroup) -> ReducedNetwork:
    """The start of a lane: `alpha * theta_0(seed)`, projected ("auto") or drawn in law, at any width ("sample")."""
    key, alpha = jax.random.key(int(lane.seed)), float(lane.alpha)
    draw = lane.law()
    if group.mode == "sample":
        return alpha * sample_reduced(key, **draw, cost=lane.cost)
    # the bases are those of theta_0: products of tiny or huge layers leave float64's range
    return alpha * reduce_width(gaussian(key, **draw), cost=lane.cost)


def _solve(
    group: ReducedGroup, label: Any, make: Callable[[], NetworkLane], report: Report, stopped: threading.Event
) -> Iterator[tuple[Any, LaneResult]]:
    """One lane, start to end: only an interrupt stops it on the way."""
    if stopped.is_set():
        return
    lane = make()
    options = replace(group.options, rtol=float(lane.rtol))
    trajectory = solve_reduced(lane.cost, start_network(lane, group), options)
    result = _result(trajectory, group)
    failed = int(result.stop_reason) in Tally.FAILURES
    report(Tally(1, int(failed), *result.lane_steps()))
    yield label, result


def _result(trajectory: Trajectory, group: ReducedGroup) -> LaneResult:
    """A trajectory as the result of a lane."""
    rows: dict[str, Any] = {
        "time": trajectory.time,
        "end_to_end": trajectory.end_to_end,
        "gradient_norm": trajectory.gradient_norm,
        "train_cost": trajectory.train_cost,
        "observables": trajectory.observables,
    }
    if trajectory.test_cost is not None:
        rows["test_cost"] = trajectory.test_cost
    rows, count = jax.tree.map(np.asarray, rows), len(trajectory.time)
    if group.options.save_at is None:
        rows, count = spread(rows, count, group.num_rows), group.num_rows
    else:
        missing = group.num_rows - count
        rows = jax.tree.map(lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), rows)
    stats = trajectory.stats
    return LaneResult(
        rows=rows,
        num_rows=np.asarray(count),
        end_time=np.asarray(trajectory.time[-1]),
        stop_reason=np.asarray(int(StopReason[trajectory.stop_reason])),
        num_accepted_steps=np.asarray(stats["num_accepted_steps"]),
        num_rejected_steps=np.asarray(stats["num_rejected_steps"]),
        balancedness_drift=np.asarray(stats["balancedness_drift"]),
        reduction_error_estimate=np.asarray(stats["reduction_error_estimate"]),
        num_vector_field_evaluations=_if_counted(stats["num_vector_field_evaluations"]),
        num_hessian_vector_products=_if_counted(stats["num_hessian_vector_products"]),
    )


def _if_counted(count: int | None) -> Int[np.ndarray, ""] | None:
    return None if count is None else np.asarray(count)
