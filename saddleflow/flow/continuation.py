"""One trajectory of two: a flow on one cost, and its continuation on another."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saddleflow._backend.checks import require
from saddleflow.flow.clock import SegmentedTime
from saddleflow.flow.trajectory import Trajectory

# Counts and seconds of a run that add up over its parts; of others the largest stands for all.
LARGEST = ("balancedness_drift", "mean_krylov_dimension", "max_krylov_dimension", "reduction_error_estimate")


def check_continuable(trajectory: Any) -> None:
    """Refuse what is no whole trajectory of a network up to its last row.

    Raises:
        ValueError: what it is instead, and the remedy.
    """
    remedy = "Of a model go on by sf.gradient_flow(objective, trajectory.model)."
    is_one = isinstance(trajectory, Trajectory)
    require(is_one, "trajectory", "be the trajectory of a network", type(trajectory).__name__, remedy)
    remedy = "Reduce the width again: sf.gradient_flow(cost, trajectory.network, reduce_width='auto')."
    require(trajectory.reduced is None, "trajectory", "be one of the whole width", "one of a reduced width", remedy)
    end = (trajectory.parts or (trajectory,))[-1]
    t1, last = end.configuration.get("t1", np.inf), float(end.time[-1])
    whole = trajectory.stop_reason != "t1" or t1 == last
    matrix = np.asarray(trajectory.network.end_to_end())
    error = np.abs(matrix - trajectory.end_to_end[-1]).max()
    # a saved row is known to the tolerance, the network at the end is the solver's own
    whole &= bool(error <= 10 * trajectory.configuration.get("rtol", 1e-6) * np.abs(matrix).max())
    require(whole, "trajectory", "have a row at its end", f"the last at t = {last:.6g}", "Add the end to save_at.")


def joined(first: Trajectory, second: Trajectory) -> Trajectory:
    """The trajectory of both, on one clock; the row of the switch is there twice, once with each cost.

    Args:
        first: the flow before.
        second: the one that began at its end.
    """
    switch = len(first.time)
    clock = _one_clock(first.clock, second.clock)
    shared = [name for name in first.observables if name in second.observables]
    networks = None
    if first.networks is not None and second.networks is not None:
        networks = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first.networks, second.networks)
    before = first.configuration
    costs = [*before.get("costs", [before["cost"]]), second.configuration["cost"]]
    switches = [*before.get("switch_rows", []), switch]
    return replace(
        second,
        time=clock.time,
        clock=clock,
        end_to_end=np.concatenate([first.end_to_end, second.end_to_end]),
        train_cost=np.concatenate([first.train_cost, second.train_cost]),
        test_cost=_tests(first, second),
        gradient_norm=np.concatenate([first.gradient_norm, second.gradient_norm]),
        observables={name: np.concatenate([first.observables[name], second.observables[name]]) for name in shared},
        networks=networks,
        stats=_stats(first.stats, second.stats),
        configuration=second.configuration | {"costs": costs, "switch_rows": switches},
        asked_rank_tolerance=second.asked_rank_tolerance or first.asked_rank_tolerance,
        dips=None,
        parts=(*(first.parts or (first,)), second),
    )


def _one_clock(first: SegmentedTime, second: SegmentedTime) -> SegmentedTime:
    """The second clock's times after those of the first: a segment ends at the switch, so no digit is lost."""
    last = int(first.segment[-1])
    return SegmentedTime(
        segment=np.concatenate([first.segment, second.segment + last + 1]),
        within=np.concatenate([first.within, second.within]),
        durations=np.concatenate([first.durations[:last], first.within[-1:], second.durations]),
    )


def _tests(first: Trajectory, second: Trajectory) -> np.ndarray | None:
    """Test costs of both; NaN where a cost has no test set, None where neither has."""
    if first.test_cost is None and second.test_cost is None:
        return None
    return np.concatenate(
        [np.full(len(part.time), np.nan) if part.test_cost is None else part.test_cost for part in (first, second)]
    )


def _stats(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Counts and seconds of both together."""

    def of(name: str, one: Any, other: Any) -> Any:
        if not (isinstance(one, int | float) and isinstance(other, int | float)):
            return other
        return max(one, other) if name in LARGEST else one + other

    return {name: of(name, first.get(name), value) for name, value in second.items()}
