"""Whether rounding decided an escape: the flow is run again from a start that differs by some roundings.

A start with a symmetry (equal layers, balanced ones, a rank too low) may lie on the way into a saddle that the exact
flow never leaves. In floating point it leaves all the same, on rounding that has grown, and nothing in the run itself
tells. From a start whose entries differ by many roundings it then leaves at another time, since what grew was more to
begin with. An escape that was above rounding does not notice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from saddleflow._backend.arrays import on_device, on_host
from saddleflow.flow.clock import SegmentedTime
from saddleflow.flow.dips import Dips
from saddleflow.flow.observables import Observable
from saddleflow.flow.state import StopReason
from saddleflow.flow.trajectory import Trajectory, costs_of
from saddleflow.flow.visits import SHARE_OF_SLOPE
from saddleflow.problem import geometry
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.symmetry import balancedness

EPSILON = 2.0**-52

# Relative changes of the twin's entries.
PERTURBATION = 1e5 * EPSILON

# Below it, relative to the largest, a conserved matrix or a singular value of A is a rounding.
ROUNDED = 1e-12

# Times from escape to escape that differ by more than this share are not the flow's. (A rounding is 36 e-folds below
# one, the twin's changes 25.)
SHARE_OF_STAY = 0.1

# Dips of the gradient norm whose costs differ by less than this share of the first one's are at one saddle.
SHARE_OF_COST = 1e-3


@dataclass(frozen=True)
class Escape:
    """A saddle that a run has left.

    Attributes:
        dip: number of the first dip of the gradient norm there.
        cost: train cost there.
        time: of the highest gradient norm after it.
        since: time of that dip.
    """

    dip: int
    cost: float
    time: float
    since: float


def has_symmetry(network: DeepLinearNetwork) -> bool:
    """Whether a start is balanced to rounding, or A of a lower rank than its widths allow.

    Random starts are neither, and all that is learned from them was above rounding from the beginning. A single layer
    has no saddles.
    """
    if network.depth == 1:
        return False
    network = on_host(network)
    scale = max(float(np.sum(np.square(layer))) for layer in network.layers)
    drift = max(float(np.abs(matrix).max()) for matrix in balancedness(network))
    if drift <= ROUNDED * scale:
        return True
    values = np.linalg.svd(network.end_to_end(), compute_uv=False)
    full = min(*network.hidden_widths, len(values))
    return bool(values[full - 1] <= ROUNDED * values[0])


def perturbed(network: DeepLinearNetwork) -> DeepLinearNetwork:
    """The start with every entry changed by about 1e5 roundings; zeros stay zeros."""
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda layer: on_device(np.asarray(layer) * (1 + PERTURBATION * draw.standard_normal(layer.shape))), network
    )


def escapes(cost: Cost, trajectory: Trajectory, dips: Dips | None) -> list[Escape]:
    """The escapes of a run of a network; see `escapes_between`.

    Args:
        cost: the cost of the run.
        trajectory: the run.
        dips: what the loop has kept of its dips.
    """
    if dips is None or trajectory.dips is None:
        return []
    times, networks = trajectory.dips
    with np.errstate(over="ignore", invalid="ignore"):  # a run may end in an overflow
        matrices = on_host(networks).end_to_end()
    costs, _ = costs_of(cost, matrices, capacity=len(np.asarray(dips.times)))
    return escapes_between([*costs[: len(times)], float(trajectory.train_cost[-1])], dips)


def escapes_between(costs: Sequence[float], dips: Dips) -> list[Escape]:
    """The escapes of a run, by the dips of its gradient norm: rows may be few.

    Two dips in a row are two saddles where the cost has fallen between them, by as much as the gradient norms say:
    on tails and at rest what rises and dips is the solver's noise.

    Args:
        costs: at the dips, and at the end.
        dips: what the loop has kept of them.
    """
    found: list[Escape] = []
    count = len(costs) - 1
    falls = [*np.asarray(dips.falls)[:count], float(dips.fall)]
    first = 0
    for dip, peak in enumerate(np.asarray(dips.peaks)[:count]):
        fall = costs[dip] - costs[dip + 1]
        if fall > SHARE_OF_COST * abs(costs[0]) and fall > SHARE_OF_SLOPE * (falls[dip + 1] - falls[dip]):
            found.append(Escape(first, costs[first], float(peak), float(np.asarray(dips.times)[first])))
            first = dip + 1
    return found


def first_unresolved(
    run: Sequence[Escape],
    twin: Sequence[Escape],
    together: Callable[[Escape, Escape], bool] = lambda here, other: False,
) -> Escape | None:
    """The first escape that comes at another time in the twin, or to another saddle, or not at all.

    Args:
        run: the escapes of the run.
        twin: those of its twin.
        together: whether both were still on one way when the first of them reached the dip before its escape.
    """
    before = other_before = 0.0
    for index, here in enumerate(run):
        if index >= len(twin):
            return here
        other = twin[index]
        stay, other_stay = here.time - before, other.time - other_before
        elsewhere = abs(other.cost - here.cost) > 10 * SHARE_OF_COST * abs(here.cost)
        if elsewhere:
            # in a valley that falls on and on the dip is wherever rounding grows large: the way there is one
            return here if together(here, other) else run[max(index - 1, 0)]
        if abs(other_stay - stay) > SHARE_OF_STAY * stay:
            return here
        before, other_before = here.time, other.time
    return None


def on_one_way(run: Trajectory, twin: Trajectory, here: Escape, other: Escape) -> bool:
    """Whether a run and its twin had the same cost when the first of them reached the dip before its escape.

    By the rows of the other, with the cubic through costs and the slopes `dC/dt = -|grad|^2`.
    """
    first, trajectory = (here, twin) if here.since <= other.since else (other, run)
    row = int(np.searchsorted(trajectory.time, first.since))
    if not 0 < row < len(trajectory.time):
        return False
    ends = slice(row - 1, row + 1)
    slopes = -(trajectory.gradient_norm[ends] ** 2)
    curve = scipy.interpolate.CubicHermiteSpline(trajectory.time[ends], trajectory.train_cost[ends], slopes)
    return bool(abs(curve(first.since) - first.cost) <= 10 * SHARE_OF_COST * abs(first.cost))


def up_to(
    cost: Cost, trajectory: Trajectory, escape: Escape, observables: dict[str, Observable], *, add_end: bool
) -> Trajectory:
    """The trajectory as far as a saddle, with the network kept there; it ends "below_resolution".

    Args:
        cost: the cost of the run.
        trajectory: the run.
        escape: the saddle.
        observables: what its rows record.
        add_end: add the saddle as a row; always done where there is no other.
    """
    assert trajectory.dips is not None
    times, networks = trajectory.dips
    network, time = jax.tree.map(lambda layer: jnp.asarray(layer[escape.dip]), networks), float(times[escape.dip])
    count = int(np.searchsorted(trajectory.time, time))
    add_end = add_end or count == 0

    def cut(values: Any, end: Any) -> np.ndarray:
        kept = np.asarray(values)[:count]
        return np.concatenate([kept, np.asarray(end)[None]]) if add_end else kept

    clock, matrix, last = trajectory.clock, network.end_to_end(), max(count - 1, 0)
    within = clock.within[last] + time - trajectory.time[last]
    return replace(
        trajectory,
        time=cut(trajectory.time, time),
        end_to_end=cut(trajectory.end_to_end, matrix),
        train_cost=cut(trajectory.train_cost, cost(matrix)),
        test_cost=None if trajectory.test_cost is None else cut(trajectory.test_cost, cost.test(matrix)),
        gradient_norm=cut(trajectory.gradient_norm, geometry.norm(geometry.gradient(cost, network))),
        observables={
            name: cut(values, observables[name](cost, network)) for name, values in trajectory.observables.items()
        },
        network=network,
        networks=None if trajectory.networks is None else jax.tree.map(cut, trajectory.networks, network),
        stop_reason=StopReason.below_resolution.name,
        clock=SegmentedTime(cut(clock.segment, clock.segment[last]), cut(clock.within, within), clock.durations),
        dips=(times[: escape.dip], jax.tree.map(lambda layer: layer[: escape.dip], networks)),
    )
