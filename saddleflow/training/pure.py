"""`descend`: gradient descent of a network as a pure function of arrays, for `jit`, `vmap` and lanes of sweeps."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saddleflow._backend.arguments import optional, takes
from saddleflow._backend.arrays import on_device
from saddleflow._backend.linalg import lane_by_lane
from saddleflow.flow.arguments import check_fit
from saddleflow.flow.functions import check_functions
from saddleflow.flow.landscape import NetworkLandscape
from saddleflow.flow.state import StopReason
from saddleflow.problem import readers
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.training import loop
from saddleflow.training.loop import DescentState, Method, Settings
from saddleflow.training.options import DESCENT, DescentOptions
from saddleflow.training.rates import Stepper, rate, stepper_of
from saddleflow.training.tasks import NetworkTask

# Options that have no meaning within `jit`.
OF_THE_HOST = ("max_seconds", "rank_tolerance", "progress")


class Descent(eqx.Module):
    """What `descend` returns: a descent as arrays of fixed size; under `vmap` all get a leading axis.

    Rows from `num_rows` on are not used: zeros. The end of a descent that ends early is no row.

    Attributes:
        step: of the rows, shape (rows,).
        time: rate times steps, shape (rows,).
        end_to_end: A, shape (rows, n_out, n_in).
        gradient_norm: |grad_theta C(A(theta))| of all samples, shape (rows,).
        observables: the observables asked for, by name, each of shape (rows, ...).
        networks: the network at every row, layers with a leading axis, if asked for, else None.
        num_rows: number of rows used.
        network: the network at the end.
        end_time: time at the end.
        num_steps: steps done.
        stop_reason: a code of `StopReason`.
    """

    step: Int[Array, " rows"]
    time: Float[Array, " rows"]
    end_to_end: Float[Array, "rows n_out n_in"]
    gradient_norm: Float[Array, " rows"]
    observables: dict[str, Array]
    networks: DeepLinearNetwork | None
    num_rows: Int[Array, ""]
    network: DeepLinearNetwork
    end_time: Float[Array, ""]
    num_steps: Int[Array, ""]
    stop_reason: Int[Array, ""]


@takes(
    cost=readers.cost,
    network=readers.network,
    learning_rate=optional(rate),
    **{name: reader for name, reader in DESCENT.items() if name not in OF_THE_HOST},
)
def descend(
    cost: Any,
    network: Any,
    optimizer: Any = None,
    *,
    num_steps: int,
    learning_rate: Any = None,
    batch_size: int | None = None,
    key: Any = None,
    max_saves: int = 64,
    save_at: Any = None,
    save_networks: bool = False,
    observables: Mapping[str, Any] | Sequence[str] | None = None,
    target_cost: Any = None,
) -> Descent:
    """`gradient_descent` of a network as a pure function of arrays.

    Cost, network, key, target_cost and, of plain gradient descent (`optimizer=None`), the learning rate may be
    traced; so lanes may differ in them.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> def final(rate, key):
    ...     descent = sf.training.descend(cost, start, learning_rate=rate, num_steps=100, batch_size=20, key=key)
    ...     return descent.network.end_to_end()
    >>> jax.vmap(final)(jnp.array([1e-3, 1e-2]), jax.random.split(jax.random.key(0), 2)).shape
    (2, 10, 10)

    Args:
        cost: as in `gradient_descent`.
        network: the start.
        optimizer: as in `gradient_descent`; with one the learning rate, if it is said, only tells the time.
        num_steps: how many steps, no tracer.
        learning_rate: as in `gradient_descent`.
        batch_size: as in `gradient_descent`.
        key: as in `gradient_descent`.
        max_saves: rows held, evenly spaced in steps.
        save_at: steps to save at, in place of that, no tracers; start and end are added.
        save_networks: keep the network at every row.
        observables: as in `gradient_flow`.
        target_cost: as in `gradient_descent`.

    Returns:
        Arrays of fixed size. A loss that overflows to NaN in a single step is "non_finite" here.

    Raises:
        ValueError: bad arguments, as far as they are concrete.
    """
    check_fit(cost, network)
    options = DescentOptions(
        num_steps=num_steps,
        batch_size=batch_size,
        key=key,
        max_saves=max_saves,
        save_at=save_at,
        save_networks=save_networks,
        observables=observables,
        target_cost=target_cost,
    )
    options.check_batches(cost.num_samples)
    check_functions(options.observables, None, (cost, network))
    task, stepper = NetworkTask(NetworkLandscape(cost)), stepper_of(optimizer, learning_rate, network)
    method = Method(
        batch_size=batch_size,
        num_samples=None if batch_size is None else cost.num_samples,
        observables=options.observables,
        save_networks=save_networks,
        num_dips=0,
    )
    settings = Settings(
        save_at=on_device(options.saved_steps(1)),
        bound=loop.bound_of(task, network),
        target_cost=None if target_cost is None else jnp.asarray(target_cost, float),
        key=key,
    )
    arrays, rest = eqx.partition((task, stepper, network, settings, method, num_steps), eqx.is_array)
    state = lane_by_lane(lambda arrays: _descended(*eqx.combine(arrays, rest)))(arrays)
    return Descent(
        step=state.rows["step"],
        time=state.rows["time"],
        end_to_end=state.rows["end_to_end"],
        gradient_norm=state.rows["gradient_norm"],
        observables=state.rows["observables"],
        networks=state.rows.get("network"),
        num_rows=state.num_rows,
        network=state.point.parameters,
        end_time=state.point.time,
        num_steps=state.point.step,
        stop_reason=_reason(state, settings, batch_size is None),
    )


def _descended(
    task: NetworkTask, stepper: Stepper, network: Any, settings: Settings, method: Method, num_steps: int
) -> DescentState:
    state = loop.start(task, stepper, network, settings, method)
    return loop.burst(state, jnp.asarray(num_steps), task, stepper, settings, method)


def _reason(state: DescentState, settings: Settings, of_all: bool) -> Int[Array, ""]:
    """Why it has ended."""
    losses = jnp.stack([state.row_loss, state.point.loss])
    grown, lost = jnp.any(losses > settings.bound), ~jnp.all(jnp.isfinite(losses))
    reason = jnp.where(lost, StopReason.non_finite, StopReason.num_steps)
    if settings.target_cost is not None:
        least = jnp.min(losses) if of_all else state.row_loss
        reason = jnp.where(lost | (least > settings.target_cost), reason, StopReason.target_cost)
    return jnp.where(grown & (state.point.step > 0), StopReason.unstable, reason)
