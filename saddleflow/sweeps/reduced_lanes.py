"""Lanes whose width is reduced: each a certified flow of its own, in the same terms as the others.

The bases of a reduced network grow along its flow, so lanes differ in shape and share no compiled program but those
of padded widths. Threads take one lane after another.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import numpy as np

from saddleflow._backend.devices import check_memory, cores, one_lapack_thread
from saddleflow.flow.arguments import FlowOptions
from saddleflow.flow.state import StopReason
from saddleflow.flow.trajectory import Trajectory
from saddleflow.problem.network import DeepLinearNetwork, gaussian, layer_sizes
from saddleflow.sweeps.lanes import Lane, Shape, Tally
from saddleflow.width.adaptive import solve_reduced
from saddleflow.width.projected import ReducedNetwork, reduce_width
from saddleflow.width.sampled import sample_reduced

MODES = ("auto", "sample")

# Of the full network, while its bases are found: the draw, scaled, in numpy, squared.
COPIES = 4

# A shape, one of `MODES`, and the lanes that share them, each with a label.
Group = tuple[Shape, str, Sequence[tuple[Any, Lane]]]


def start_network(lane: Lane, shape: Shape, mode: str) -> DeepLinearNetwork | ReducedNetwork:
    """The start of a lane: `alpha * theta_0(seed)`, projected ("auto") or drawn in law, at any width ("sample")."""
    key, alpha = jax.random.key(int(lane.seed)), float(lane.alpha)
    draw = {"depth": shape.depth, "width": shape.width, "shape": shape.shape, "gamma": float(lane.gamma)}
    if mode == "sample":
        return alpha * sample_reduced(key, **draw, tolerance=None)
    # the bases are those of theta_0: products of tiny or huge layers leave float64's range
    return alpha * reduce_width(gaussian(key, **draw), tolerance=None)


def run(
    groups: Sequence[Group],
    *,
    workers: int | None,
    report: Callable[[Tally], None],
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Run lanes to an error of A of ten times rtol of the largest |A|, as `gradient_flow` does with these networks.

    Args:
        groups: lanes that share a shape, accepted by `check_groups`.
        workers: threads; None: one a core.
        report: told what each lane adds to the tally; no lane waits, so all steps are useful.

    Yields:
        Label and result, in the form of `lanes.run`, as lanes end.
    """
    pool = ThreadPoolExecutor(_num_threads(groups, workers))
    with one_lapack_thread():
        try:
            futures = [pool.submit(_solve, shape, mode, *item) for shape, mode, members in groups for item in members]
            for future in as_completed(futures):
                label, result = future.result()
                failed = int(result["numerics"]["stop_reason"]) in Tally.FAILURES
                report(Tally(1, int(failed), *result["lane_steps"]))
                yield label, result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def check_groups(groups: Sequence[Group], workers: int | None) -> None:
    """Refuse groups whose lanes will not fit the memory while their bases are found, before anything is computed.

    Raises:
        ValueError: the full networks, which "auto" starts from, will not fit.
    """
    for shape, mode, _ in groups:
        if mode == "auto":
            sizes = layer_sizes(shape.depth, shape.width, shape.shape)
            need = COPIES * 8 * sum(above * below for below, above in itertools.pairwise(sizes))
            what = f"a lane at width {shape.width}, whole and reduced"
            check_memory(need, _num_threads(groups, workers), jax.devices("cpu")[0], what)


def _num_threads(groups: Sequence[Group], workers: int | None) -> int:
    return max(1, min(workers or cores(), sum(len(members) for _, _, members in groups)))


def _solve(shape: Shape, mode: str, label: Any, lane: Lane) -> tuple[Any, dict[str, Any]]:
    options = FlowOptions(
        rtol=float(lane.rtol),
        t1=shape.t1,
        save_at=shape.save_at,
        solver=shape.method.solver,
        observables=shape.method.observables,
        max_saves=shape.method.capacity,
        saves_per_step=shape.method.saves_per_step,
        max_steps=shape.max_steps,
        gradient_tolerance=shape.gradient_tolerance,
        graded=shape.method.graded,
        progress=False,
    )
    start = start_network(lane, shape, mode)
    trajectory = solve_reduced(lane.cost, start, options)
    return label, _result(trajectory, shape)


def _result(trajectory: Trajectory, shape: Shape) -> dict[str, Any]:
    """A trajectory as `lanes.run` gives a lane: rows, how many of them are valid, numbers of the run."""
    rows: dict[str, Any] = {
        "time": trajectory.time,
        "end_to_end": trajectory.end_to_end,
        "gradient_norm": trajectory.gradient_norm,
        "train_cost": trajectory.train_cost,
        "observables": trajectory.observables,
    }
    if trajectory.test_cost is not None:
        rows["test_cost"] = trajectory.test_cost
    count = len(trajectory.time)
    if shape.save_at is None:
        picked = np.round(np.linspace(0, count - 1, shape.num_samples)).astype(int)
        rows, count = jax.tree.map(lambda x: np.asarray(x)[picked], rows), shape.num_samples
    else:
        missing = len(shape.save_at) - count
        rows = jax.tree.map(lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (np.ndim(x) - 1)), rows)
    stats = trajectory.stats
    numerics = {
        "end_time": np.asarray(trajectory.time[-1]),
        "stop_reason": np.asarray(StopReason[trajectory.stop_reason]),
        "reduction_error_estimate": np.asarray(stats["reduction_error_estimate"]),
    }
    for name in ("num_accepted_steps", "num_rejected_steps", "balancedness_drift"):
        numerics[name] = np.asarray(stats[name])
    for name in ("num_vector_field_evaluations", "num_hessian_vector_products"):
        if stats[name] is not None:
            numerics[name] = np.asarray(stats[name])
    steps = np.full(2, float(stats["num_steps"]))
    return {"rows": rows, "num_rows": count, "numerics": numerics, "lane_steps": steps}
