"""Lanes whose width is reduced: each a certified flow of its own, in the same terms as the others.

The bases of a reduced network grow along its flow, so lanes differ in shape and share no compiled program but those
of padded widths. Threads take one lane after another.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from saddleflow.flow import gradient_flow
from saddleflow.lanes import Lane, Shape, Tally, check_memory, cores
from saddleflow.network import DeepLinearNetwork, gaussian, layer_sizes
from saddleflow.reduced_law import sample_reduced
from saddleflow.reduction import ReducedNetwork, reduce_width
from saddleflow.runs import REASONS
from saddleflow.trajectory import Trajectory

MODES = ("auto", "sample")

# Of the full network, while its bases are found: the draw, scaled, in numpy, squared.
COPIES = 4


def start_network(lane: Lane, shape: Shape, mode: str) -> DeepLinearNetwork | ReducedNetwork:
    """The start of a lane: `alpha * theta_0(seed)`, projected ("auto") or drawn in law, at any width ("sample")."""
    key, alpha = jax.random.key(int(lane.seed)), float(lane.alpha)
    draw = {"depth": shape.depth, "width": shape.width, "shape": shape.shape, "gamma": float(lane.gamma)}
    if mode == "sample":
        return alpha * sample_reduced(key, **draw, tolerance=None)
    # the bases are those of theta_0: products of tiny or huge layers leave float64's range
    return alpha * reduce_width(gaussian(key, **draw), tolerance=None)


def run(
    lanes: Sequence[tuple[int, Lane]],
    shape: Shape,
    mode: str,
    *,
    workers: int | None,
    report: Callable[[Tally], None],
) -> tuple[dict[int, Any], Tally]:
    """Run lanes to an error of A of ten times rtol of the largest |A|, as `gradient_flow` does with these networks.

    Args:
        lanes: pairs of a label and a lane.
        shape: what they share.
        mode: one of `MODES`.
        workers: threads; None: one a core.
        report: told the tally after each lane.

    Returns:
        Results by label, in the form of `lanes.run`, and the tally; no lane waits, so all steps are useful.

    Raises:
        ValueError: the full networks, which "auto" starts from, will not fit the memory.
    """
    tally, lock = Tally(), threading.Lock()
    num_threads = min(workers or cores(), len(lanes))
    if mode == "auto":
        sizes = layer_sizes(shape.depth, shape.width, shape.shape)
        need = COPIES * 8 * sum(above * below for below, above in itertools.pairwise(sizes))
        check_memory(need, num_threads, jax.devices("cpu")[0], f"a lane at width {shape.width}, whole and reduced")

    def solve(item: tuple[int, Lane]) -> tuple[int, Any]:
        label, lane = item
        trajectory = gradient_flow(
            lane.cost,
            start_network(lane, shape, mode),
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
        with lock:
            steps = trajectory.stats["num_steps"]
            tally.done += 1
            tally.failed += REASONS.index(trajectory.stop_reason) in Tally.FAILURES
            tally.useful, tally.computed = tally.useful + steps, tally.computed + steps
            report(tally)
        return label, _result(trajectory, shape)

    with ThreadPoolExecutor(num_threads) as pool:
        return dict(pool.map(solve, lanes)), tally


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
        "stop_reason": np.asarray(REASONS.index(trajectory.stop_reason)),
        "reduction_error_estimate": np.asarray(stats["reduction_error_estimate"]),
    }
    for name in ("num_accepted_steps", "num_rejected_steps", "balancedness_drift"):
        numerics[name] = np.asarray(stats[name])
    for name in ("num_vector_field_evaluations", "num_hessian_vector_products"):
        if stats[name] is not None:
            numerics[name] = np.asarray(stats[name])
    return {"rows": rows, "num_rows": count, "numerics": numerics}
