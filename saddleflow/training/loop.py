"""The compiled loop of a descent: steps from one saved row to the next, in bursts.

Between rows nothing but steps is computed. The loss that may end a descent is the one that comes with a gradient: the
step that has led to it is known only then, and the next one is not taken.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from saddleflow.flow.dips import Dips
from saddleflow.flow.observables import Observable
from saddleflow.problem import geometry
from saddleflow.training.batches import batch_of, end_of_epoch, epoch_of, order_of
from saddleflow.training.rates import Stepper
from saddleflow.training.tasks import Gradient, Task

# A loss so many times as large as where it started has grown without bound. (Losses may rise before they fall: from
# lazy starts at large rates in proportion to the width.)
GROWN = 1e6

Row = dict[str, Any]


class Method(eqx.Module):
    """What is compiled in."""

    batch_size: int | None = eqx.field(static=True)  # None: all samples
    num_samples: int | None = eqx.field(static=True)
    observables: dict[str, Observable] = eqx.field(static=True)
    save_networks: bool = eqx.field(static=True)
    num_dips: int = eqx.field(static=True)  # parameters kept from dips of the gradient norm, for `saddles`


class Settings(eqx.Module):
    """The numbers of a descent, all traced."""

    save_at: Int[Array, " rows"]  # steps, in order: 0, ..., the end; behind it never
    bound: Float[Array, ""]  # a larger loss has grown without bound
    target_cost: Float[Array, ""] | None
    key: PRNGKeyArray | None  # of the mini-batches


class Point(eqx.Module):
    """Where a descent is."""

    parameters: Any
    optimizer_state: Any
    loss: Float[Array, ""]  # before the last step, of its samples; here, where that ends the descent
    step: Int[Array, ""]  # steps done
    time: Float[Array, ""]
    rate: Float[Array, ""]  # of the last step


class DescentState(eqx.Module):
    """A descent on its way, and the rows recorded so far."""

    point: Point
    rows: Row
    num_rows: Int[Array, ""]
    row_loss: Float[Array, ""]  # train cost of the last row
    dips: Dips | None
    calm: Any  # the parameters at the row of the least train cost
    calm_loss: Float[Array, ""]
    calm_time: Float[Array, ""]


def bound_of(task: Task, parameters: Any) -> Float[Array, ""]:
    """The loss beyond which it has grown without bound: by its sizes at the start and at outputs of zero."""
    loss, gradient = task.gradient(parameters)
    sizes = jnp.abs(loss), geometry.norm(gradient) * geometry.norm(parameters), jnp.abs(task.loss_at_zero())
    scale = jnp.max(jnp.stack(sizes))
    return jnp.where(scale > 0, GROWN * scale, jnp.inf)


def start(task: Task, stepper: Stepper, parameters: Any, settings: Settings, method: Method) -> DescentState:
    """The state before the first step, its row recorded."""
    zero, count = jnp.zeros(()), jnp.zeros((), int)
    loss, _ = task.gradient(parameters)
    point = Point(
        parameters=parameters,
        optimizer_state=stepper.start(parameters),
        loss=loss,
        step=count,
        time=zero,
        rate=zero if stepper.rate is None else stepper.rate,
    )
    row, _ = observe(task, point, method)
    capacity = settings.save_at.shape[0]
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype).at[0].set(x), row)
    dips = None
    if method.num_dips:
        dips = Dips.start(task.known(parameters), None, row["gradient_norm"], method.num_dips)
    return DescentState(point, rows, count + 1, loss, dips, parameters, loss, zero)


def burst(
    state: DescentState, end: Int[Array, ""], task: Task, stepper: Stepper, settings: Settings, method: Method
) -> DescentState:
    """Steps up to a number of steps in all, or to where the descent ends."""

    def going(state: DescentState) -> Bool[Array, ""]:
        here = goes_on(state.point.loss, settings, method.batch_size is None)
        return (state.point.step < end) & here & goes_on(state.row_loss, settings, True)

    def to_the_next_row(state: DescentState) -> DescentState:
        due = settings.save_at[jnp.minimum(state.num_rows, settings.save_at.shape[0] - 1)]
        advance = _advance if method.batch_size is None else _advance_in_batches
        point = advance(state.point, jnp.minimum(due, end), task, stepper, settings, method)
        return _recorded(eqx.tree_at(lambda s: s.point, state, point), point.step == due, task, method)

    return jax.lax.while_loop(going, to_the_next_row, state)


def goes_on(loss: Float[Array, ""], settings: Settings, of_all: bool) -> Bool[Array, ""]:
    """Whether a loss is finite, bounded, and (if it is that of all samples) above its target."""
    sound = jnp.isfinite(loss) & (loss <= settings.bound)
    return sound if settings.target_cost is None or not of_all else sound & (loss > settings.target_cost)


def _advance(
    point: Point, goal: Int[Array, ""], task: Task, stepper: Stepper, settings: Settings, method: Method
) -> Point:
    """Steps on all samples, up to a number of steps or to where the descent ends."""

    def step(point: Point) -> Point:
        return _moved(point, task.gradient, stepper, settings, of_all=True)

    return jax.lax.while_loop(lambda p: (p.step < goal) & goes_on(p.loss, settings, True), step, point)


def _advance_in_batches(
    point: Point, goal: Int[Array, ""], task: Task, stepper: Stepper, settings: Settings, method: Method
) -> Point:
    """Steps on mini-batches; an epoch's order is drawn where steps in it begin."""
    assert method.num_samples is not None
    assert method.batch_size is not None
    assert settings.key is not None
    sizes, key = (method.num_samples, method.batch_size), settings.key

    def going(point: Point, goal: Int[Array, ""]) -> Bool[Array, ""]:
        return (point.step < goal) & goes_on(point.loss, settings, False)

    def epoch(point: Point) -> Point:
        number = epoch_of(point.step, *sizes)
        order = order_of(key, number, *sizes)
        until = jnp.minimum(goal, end_of_epoch(number, *sizes))

        def step(point: Point) -> Point:
            batch = batch_of(order, point.step, *sizes)
            return _moved(point, lambda p: task.batch_gradient(p, batch), stepper, settings, of_all=False)

        return jax.lax.while_loop(lambda p: going(p, until), step, point)

    return jax.lax.while_loop(lambda p: going(p, goal), epoch, point)


def _moved(
    point: Point, gradient_of: Callable[[Any], Gradient], stepper: Stepper, settings: Settings, of_all: bool
) -> Point:
    """A step; none where the loss ends the descent, which is known with the gradient."""
    loss, gradient = gradient_of(point.parameters)
    parameters, state = before = point.parameters, point.optimizer_state
    after = stepper.step(point.step, parameters, gradient, state, loss, lambda p: gradient_of(p)[0])
    moves = jnp.asarray(True)
    if stepper.optimizer is None or settings.target_cost is not None:
        # of other optimisers the choice costs a copy of everything they keep: they take the one step more
        moves = goes_on(loss, settings, of_all)
        after = jax.tree.map(lambda new, old: jnp.where(moves, new, old), after, before)
    parameters, state = after
    rate = stepper.rate_of(point.step, state)
    time = jnp.where(moves, stepper.time_after(point.time, point.step, rate), point.time)
    return Point(parameters, state, loss, point.step + moves, time, rate)


def observe(task: Task, point: Point, method: Method) -> tuple[Row, Float[Array, ""]]:
    """What a row records, and the train cost there."""
    loss, gradient = task.gradient(point.parameters)
    landscape, known = task.landscape, task.known(point.parameters)
    subject = landscape.subject(known)
    row = {
        "step": point.step,
        "time": point.time,
        **landscape.record(known, landscape.outputs(known)),
        "gradient_norm": geometry.norm(gradient),
        "observables": {name: jnp.asarray(observable(*subject)) for name, observable in method.observables.items()},
    }
    return (row | {"network": known} if method.save_networks else row), loss


def _recorded(state: DescentState, due: Bool[Array, ""], task: Task, method: Method) -> DescentState:
    """The state with a row of where it is, where one is due."""
    shape = jax.eval_shape(lambda: observe(task, state.point, method))

    def nothing() -> tuple[Row, Float[Array, ""]]:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)

    row, loss = jax.lax.cond(due, lambda: observe(task, state.point, method), nothing)
    place = jnp.where(due, state.num_rows, state.rows["time"].shape[0])
    rows = jax.tree.map(lambda buffer, x: buffer.at[place].set(x, mode="drop"), state.rows, row)
    point = state.point
    calmer = due & (loss < state.calm_loss)
    since = jnp.where(due, point.time - state.rows["time"][state.num_rows - 1], 0.0)
    dips = state.dips
    if dips is not None:
        dips = dips.follow(task.known(point.parameters), None, row["gradient_norm"], point.time, since, due)
    return DescentState(
        point=point,
        rows=rows,
        num_rows=state.num_rows + due,
        row_loss=jnp.where(due, loss, state.row_loss),
        dips=dips,
        calm=jax.tree.map(lambda new, old: jnp.where(calmer, new, old), point.parameters, state.calm),
        calm_loss=jnp.where(calmer, loss, state.calm_loss),
        calm_time=jnp.where(calmer, point.time, state.calm_time),
    )
