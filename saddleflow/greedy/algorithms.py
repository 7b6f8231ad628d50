"""The limit of small starts: greedy low-rank paths from saddle to saddle, as an algorithm and as its limit.

`greedy_descent` is Algorithm A_{epsilon,T,eta}: gradient descent on a network that grows by one neuron, put on the
direction of fastest escape, each time it has come to rest. `saddle_to_saddle` is what the algorithm tends to as T
goes to infinity, eta and epsilon to zero: each stage the exact gradient flow along the fast escape path of a saddle,
to the next stationary point. (arXiv 2106.15933; the algorithm and the conjecture that flows from small starts follow
these paths are recalled, docs/theory.md, sections 4 and 5.)
"""

import math
import time
import warnings
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from saddleflow._backend.arguments import MOST_DEPTH, MOST_STEPS, integer, number, optional, takes
from saddleflow._backend.checks import require_finite, require_integer, require_positive
from saddleflow._backend.devices import check_room, one_lapack_thread
from saddleflow._backend.linalg import svd
from saddleflow._backend.programs import compiled
from saddleflow._backend.waiting import interruptible
from saddleflow.flow.arguments import FLOW, FlowOptions
from saddleflow.flow.solve import integrate, solve
from saddleflow.flow.state import StopReason
from saddleflow.flow.trajectory import Trajectory, assemble
from saddleflow.greedy import growing
from saddleflow.greedy.paths import GreedyPath, Saddle
from saddleflow.problem import geometry, readers, stationary
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork, layer_sizes
from saddleflow.problem.symmetry import include
from saddleflow.theory.escape import blow_up_time, optimal_speed

# A stage ends where the gradient has fallen to this share of what it was at the start of the escape: from there the
# stationary point is polished.
STOP_SHARE = 0.1

# The polished point lies within this share of |theta|, or there is no stationary point and the path recedes.
NEAR = 0.1

LEAST_DEPTH = "A single layer has no saddles."

# Ends of a flow after which the next stationary point is looked for.
RESTING = (StopReason.stop, StopReason.converged, StopReason.stationary_saddle)


class NearStationary(eqx.Module):
    """A stop for `gradient_flow`: the gradient in theta has become as small as a threshold."""

    cost: Cost
    threshold: Float[Array, ""]

    def __call__(self, time: Float[Array, ""], network: DeepLinearNetwork) -> Bool[Array, ""]:
        """Whether to stop."""
        del time
        return geometry.norm(geometry.gradient(self.cost, network)) <= self.threshold


class Departure(eqx.Module):
    """How a path leaves a saddle.

    Attributes:
        network: the saddle with the escaping neuron put in.
        strengths: singular values of grad C(A) at the saddle, descending, shape (min(n_out, n_in),).
        threshold: gradient norm at which the stage has come near its end.
    """

    network: DeepLinearNetwork
    strengths: Float[Array, " n"]
    threshold: Float[Array, ""]


class StationaryPoints(eqx.Module):
    """The stationary points of a path as arrays, from `stationary_points`; index 0 is the origin.

    Attributes:
        network: layers with a leading axis (num_stages + 1); dead neurons are zero.
        train_cost: C(A), shape (num_stages + 1,); NaN behind the end of a path that diverges.
        strengths: singular values of grad C(A), shape (num_stages + 1, min(n_out, n_in)).
        certified: whether a point is a minimum of C to tolerance; the path stays there.
    """

    network: DeepLinearNetwork
    train_cost: Float[Array, "*batch points"]
    strengths: Float[Array, "*batch points n"]
    certified: Bool[Array, "*batch points"]


@takes(
    cost=readers.cost,
    depth=integer(2, MOST_DEPTH, LEAST_DEPTH),
    max_stages=optional(integer(1)),
    **{name: FLOW[name] for name in ("rtol", "gradient_tolerance", "save_networks", "max_steps", "progress")},
)
@interruptible
@one_lapack_thread()
def saddle_to_saddle(
    cost: Cost,
    depth: int,
    *,
    rtol: float = 1e-6,
    gradient_tolerance: float = 1e-6,
    max_stages: int | None = None,
    save_networks: bool = False,
    max_steps: int = 100_000,
    progress: bool | str = True,
) -> GreedyPath:
    """The greedy path of a cost: the limit of flows from `alpha * theta_0` as alpha goes to zero (conjectured).

    At a saddle of rank k, with top singular pair (u, v) and value s_1 of G = grad C(A), the fastest escape adds a
    neuron along `(-v^T, 1, ..., 1, u)`. The stage starts on the fast escape path at the size e of that neuron at
    which the ray differs from the path by `rtol`: `e^L = rtol * s_1 / C''[u v^T, u v^T]`. It follows the exact flow
    in width k + 1 until the gradient is small; `stationary` does the rest. The path ends, see `stop_reason`:

    * "converged": a certified minimum, `|grad C(A)|_F <= gradient_tolerance * |grad C(0)|_F`;
    * "diverges": the last path goes to infinity (it leaves every bound, or the gradient fades and no stationary
      point is near);
    * "max_stages", or the stop reason of a flow that failed.

    Where s_1 is a multiple singular value (`Saddle.multiplicity` > 1), the escape directions form a continuum, `(U a,
    V a)` for unit vectors a; that of the first singular pair is followed, the other branches differ by a rotation.

    >>> cost = sf.MatrixCompletion(np.diag([2.0, 1.0]), np.ones((2, 2), bool))
    >>> path = sf.saddle_to_saddle(cost, depth=3)
    >>> path.stop_reason, [point.rank for point in path.points]
    ('converged', [0, 1, 2])
    >>> [round(point.cost, 4) for point in path.points]
    [1.25, 0.25, 0.0]

    Args:
        cost: the convex cost C.
        depth: number of layers L >= 2.
        rtol: relative tolerance of the flows, and of the start on the escape path.
        gradient_tolerance: of the certificate.
        max_stages: stages at most; default: min(n_out, n_in), after which every matrix is within reach.
        save_networks: keep the networks along the stages (`stages[k].networks`).
        max_steps: steps at most of one stage.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.

    Raises:
        ValueError: bad arguments, named with value and remedy.
    """
    layer_sizes(depth, 1, cost.shape, least=2)
    max_stages = min(cost.shape) if max_stages is None else max_stages
    stages, saddles = [], []
    network = growing.origin(cost.shape, depth, growing.working_width(1))
    reason = "max_stages"
    at_zero = float(jnp.linalg.norm(cost.gradient(jnp.zeros(cost.shape))))
    require_finite("grad C(0)", at_zero, "The path starts at A = 0.")
    for neuron in range(max_stages + 1):
        network = include(network, growing.working_width(neuron + 1))
        departure = _depart(cost, network, jnp.asarray(neuron), jnp.asarray(rtol))
        saddle = Saddle.at(cost, growing.narrow(network, max(neuron, 1)), departure.strengths)
        if np.linalg.norm(departure.strengths) <= gradient_tolerance * at_zero:
            return GreedyPath(tuple(stages), tuple(saddles), saddle, "converged")
        saddles.append(saddle)
        if neuron == max_stages:
            break
        options = FlowOptions(
            rtol=rtol,
            stop=NearStationary(cost, departure.threshold),
            gradient_tolerance=gradient_tolerance,
            save_networks=save_networks,
            max_steps=max_steps,
            progress=progress,
        )
        stage = solve(cost, departure.network, options)
        stages.append(_in_width(stage, neuron + 1))
        if stage.stop_reason not in {reason.name for reason in RESTING}:
            lost = stage.stop_reason in ("non_finite", "step_size_underflow")
            reason = "diverges" if lost else stage.stop_reason
            break
        network, near = _arrive(cost, stage.network, jnp.asarray(neuron + 1))
        if not bool(near):
            reason = "diverges"
            break
    return GreedyPath(tuple(stages), tuple(saddles), None, reason)


def stationary_points(
    cost: Cost,
    depth: int,
    num_stages: int,
    *,
    rtol: float = 1e-6,
    gradient_tolerance: float = 1e-6,
    max_steps: int = 100_000,
) -> StationaryPoints:
    """The stationary points of `saddle_to_saddle` as a pure function of arrays, for `jax.jit` and `jax.vmap`.

    For many tasks of one shape: `jax.vmap(lambda cost: stationary_points(cost, 4, 3))(costs)`.

    Args:
        cost: the convex cost; under vmap one task of many.
        depth: number of layers L >= 2.
        num_stages: how many stages to follow; the networks have this width.
        rtol: as in `saddle_to_saddle`.
        gradient_tolerance: as in `saddle_to_saddle`.
        max_steps: steps at most of one stage.
    """
    require_integer("num_stages", num_stages, 1)
    at_zero = jnp.linalg.norm(cost.gradient(jnp.zeros(cost.shape)))

    def follow(carry, neuron):
        network, alive = carry
        departure = depart(cost, network, neuron, jnp.asarray(rtol))
        certified = jnp.linalg.norm(departure.strengths) <= gradient_tolerance * at_zero
        options = FlowOptions(
            rtol=rtol,
            stop=NearStationary(cost, departure.threshold),
            gradient_tolerance=gradient_tolerance,
            max_steps=max_steps,
            max_saves=4,
        )
        flow = integrate(cost, departure.network, options)
        arrived, near = arrive(cost, flow.network, neuron + 1)
        near &= jnp.isin(flow.stop_reason, jnp.asarray(RESTING))
        following = jax.tree.map(lambda old, new: jnp.where(certified, old, new), network, arrived)
        return (following, alive & (certified | near)), (network, alive, departure.strengths, certified)

    start = (growing.origin(cost.shape, depth, num_stages), jnp.ones((), bool))
    (end, alive_at_end), rows = jax.lax.scan(follow, start, jnp.arange(num_stages))
    strengths = svd(cost.gradient(end.end_to_end()))[1]
    last = (end, alive_at_end, strengths, jnp.linalg.norm(strengths) <= gradient_tolerance * at_zero)
    network, alive, strengths, certified = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), rows, last)
    train_cost = jnp.where(alive, jax.vmap(cost)(network.end_to_end()), jnp.nan)
    return StationaryPoints(network, train_cost, strengths, certified & alive)


@takes(
    cost=readers.cost,
    depth=integer(2, MOST_DEPTH, LEAST_DEPTH),
    epsilon=number(),
    num_steps=integer(1, MOST_STEPS),
    learning_rate=number(),
    minimum_cost=number(),
    max_stages=optional(integer(1)),
    max_saves=integer(2),
)
@interruptible
@one_lapack_thread()
def greedy_descent(
    cost: Cost,
    depth: int,
    *,
    epsilon: float,
    num_steps: int,
    learning_rate: float,
    minimum_cost: float = 0.0,
    max_stages: int | None = None,
    max_saves: int = 400,
) -> GreedyPath:
    """Algorithm A_{epsilon,T,eta}: gradient descent on a network that grows neuron by neuron.

    From `epsilon (-v^T, 1, ..., 1, u)`, (u, v) the top singular pair of grad C(0), and while the cost is above
    `minimum_cost + epsilon`: `num_steps` steps of gradient descent, then a neuron added along the top singular pair
    of grad C(A). Recalled (75 %) to be as in the paper, the stop test less surely (50 %).

    The stages are trajectories in time `step * learning_rate`; the `saddles` are where stages begin, as the algorithm
    leaves them, neither polished nor certified. The path ends "converged" (the stop test), "max_stages" or
    "non_finite".

    >>> cost = sf.MatrixCompletion(np.diag([2.0, 1.0]), np.ones((2, 2), bool))
    >>> path = sf.greedy_descent(cost, depth=2, epsilon=0.05, num_steps=5000, learning_rate=0.05)
    >>> path.stop_reason, len(path.stages)
    ('converged', 2)

    Args:
        cost: the convex cost C.
        depth: number of layers L >= 2.
        epsilon: size of a new neuron, and how far above `minimum_cost` to stop.
        num_steps: T, steps of gradient descent a stage.
        learning_rate: eta.
        minimum_cost: C_min.
        max_stages: stages at most; default: twice min(n_out, n_in).
        max_saves: rows kept at most of a stage, evenly spaced; the start and the end are among them.

    Raises:
        ValueError: bad arguments, named with value and remedy.

    Warns:
        UserWarning: T * eta is shorter than the time that a stage's neuron needs to escape; says which T would do.
    """
    for name, value in (("epsilon", epsilon), ("learning_rate", learning_rate)):
        require_positive(name, value)
    require_finite("minimum_cost", minimum_cost)
    layer_sizes(depth, 1, cost.shape, least=2)
    check_room("max_saves", max_saves, 8 * min(max_saves, num_steps) * math.prod(cost.shape), "Ask for fewer rows.")
    max_stages = 2 * min(cost.shape) if max_stages is None else max_stages
    stages, saddles = [], []
    network = growing.origin(cost.shape, depth, growing.working_width(1))
    for neuron in range(max_stages + 1):
        matrix = network.end_to_end()
        strengths = jnp.linalg.svd(cost.gradient(matrix), compute_uv=False)
        point = Saddle.at(cost, growing.narrow(network, max(neuron, 1)), strengths)
        if not math.isfinite(point.cost):
            return GreedyPath(tuple(stages), tuple(saddles), None, "non_finite")
        if point.cost <= minimum_cost + epsilon:
            return GreedyPath(tuple(stages), tuple(saddles), point, "converged")
        saddles.append(point)
        if neuron == max_stages or point.escape_speed == 0:
            break
        _warn_if_short(depth, epsilon, num_steps, learning_rate, float(strengths[0]), neuron + 1)
        network = include(network, growing.working_width(neuron + 1))
        pair = growing.top_pair(cost.gradient(matrix))
        network = growing.add_neuron(network, jnp.asarray(neuron), jnp.asarray(epsilon), pair)
        network, stage = _descend(cost, network, num_steps, learning_rate, min(max_saves - 1, num_steps), neuron + 1)
        stages.append(stage)
    return GreedyPath(tuple(stages), tuple(saddles), None, "max_stages")


def depart(cost: Cost, network: DeepLinearNetwork, neuron: Int[Array, ""], rtol: Float[Array, ""]) -> Departure:
    """The start of the fast escape path from a saddle whose neurons from `neuron` on are dead. Pure, for vmap."""
    gradient = cost.gradient(network.end_to_end())
    pair, strengths = growing.top_pair(gradient), svd(gradient)[1]
    direction = jnp.outer(*pair)
    curvature = jnp.sum(direction * jax.jvp(cost.gradient, (network.end_to_end(),), (direction,))[1])
    # a cost that is linear along the direction has no scale of its own
    reach = jnp.where(curvature > 0, strengths[0] / jnp.where(curvature > 0, curvature, 1.0), 1.0)
    size = (rtol * reach) ** (1 / network.depth)
    threshold = STOP_SHARE * math.sqrt(network.depth) * strengths[0] * size ** (network.depth - 1)
    return Departure(growing.add_neuron(network, neuron, size, pair), strengths, threshold)


def arrive(
    cost: Cost, network: DeepLinearNetwork, num_live: Int[Array, ""]
) -> tuple[DeepLinearNetwork, Bool[Array, ""]]:
    """The stationary point at a stage's end, and whether there is one near. Pure, for vmap."""
    point, _, converged, _ = stationary.polish_full_rank(cost, network, jnp.asarray(1e-9), 100)
    # rounding must not wake the dead neurons: they would escape from it
    point = growing.kill(point, num_live)
    moved = geometry.norm(jax.tree.map(jnp.subtract, point, network))
    return point, converged & (moved <= NEAR * geometry.norm(network))


_depart, _arrive = compiled(depart), compiled(arrive)


def _in_width(stage: Trajectory, width: int) -> Trajectory:
    network = growing.narrow(stage.network, width)
    networks = None if stage.networks is None else growing.narrow(stage.networks, width)
    configuration = {**stage.configuration, "width": width, "num_parameters": network.num_parameters}
    return replace(stage, network=network, networks=networks, configuration=configuration, dips=None)


def _warn_if_short(depth, epsilon, num_steps, learning_rate, strength, stage) -> None:
    if depth == 2:
        needed = max(0.0, math.log(1 / epsilon)) / strength
    else:
        needed = blow_up_time(math.sqrt(depth) * epsilon, optimal_speed(strength, depth), depth)
    if num_steps * learning_rate < needed:
        warnings.warn(
            f"Stage {stage} lasts num_steps * learning_rate = {num_steps * learning_rate:.3g}, less than the time "
            f"{needed:.3g} in which its neuron escapes, so it ends at the saddle it started from. "
            f"num_steps={math.ceil(2 * needed / learning_rate)} would do.",
            UserWarning,
            stacklevel=3,
        )


def _descend(cost, network, num_steps, learning_rate, num_saves, width) -> tuple[DeepLinearNetwork, Trajectory]:
    """The network after a stage of gradient descent, in the width it runs in, and the stage, in its own width."""
    begin = time.perf_counter()
    at = np.unique(np.linspace(0, num_steps, num_saves + 1).round().astype(int))
    networks = _gradient_descent(cost, network, jnp.asarray(learning_rate), jnp.asarray(np.diff(at)))
    networks = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), network, networks)
    matrices = np.asarray(networks.end_to_end())
    end = jax.tree.map(lambda layer: layer[-1], networks)
    stage = assemble(
        cost,
        growing.narrow(network, width),
        growing.narrow(end, width),
        {
            "time": at * learning_rate,
            "end_to_end": matrices,
            "gradient_norm": np.asarray(jax.vmap(lambda n: geometry.norm(geometry.gradient(cost, n)))(networks)),
            "network": growing.narrow(networks, width),
        },
        stop_reason="max_steps" if np.isfinite(matrices).all() else "non_finite",
        stats={
            "num_steps": num_steps,
            "num_accepted_steps": num_steps,
            "num_rejected_steps": 0,
            "seconds": time.perf_counter() - begin,
        },
        configuration={"solver": "optax.sgd", "learning_rate": learning_rate},
    )
    return end, stage


@eqx.filter_jit
def _gradient_descent(cost, network, learning_rate, counts) -> DeepLinearNetwork:
    """The networks after each of the given numbers of further steps."""
    optimiser = optax.sgd(learning_rate)

    def step(_, carry):
        network, state = carry
        gradient: Any = geometry.gradient(cost, network)  # optax takes any pytree, its annotations do not
        updates, state = optimiser.update(gradient, state)
        return jax.tree.map(jnp.add, network, updates), state

    def block(carry, count):
        carry = jax.lax.fori_loop(0, count, step, carry)
        return carry, carry[0]

    return jax.lax.scan(block, (network, optimiser.init(network)), counts)[1]
