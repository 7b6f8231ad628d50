"""A descent on the host: burst by burst, to a named reason."""

import math
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saddleflow._backend.meters import meter
from saddleflow._backend.programs import compiled
from saddleflow._backend.waiting import check_interrupt
from saddleflow.flow.run import next_burst, owned
from saddleflow.flow.state import StopReason
from saddleflow.training import loop
from saddleflow.training.loop import DescentState, Method, Settings
from saddleflow.training.options import DescentOptions
from saddleflow.training.rates import Stepper
from saddleflow.training.tasks import Task

_start = compiled(loop.start, runs_once=True)
_observe = compiled(loop.observe, runs_once=True)
bound_of = compiled(loop.bound_of, runs_once=True)


def burst(others: tuple[Any, ...], state: DescentState) -> DescentState:
    """`loop.burst` of a state to be donated."""
    end, *problem = others
    return loop.burst(state, end, *problem)


_burst = compiled(burst, donates=True)


def run(
    task: Task, stepper: Stepper, parameters: Any, settings: Settings, method: Method, options: DescentOptions
) -> tuple[DescentState, StopReason]:
    """Bursts until the steps are done or a reason ends the descent, each sized as those of a flow are."""
    others = task, stepper, settings, method
    with meter(options.progress, total=options.num_steps, unit="steps") as report:
        state = owned(_start(task, stepper, parameters, settings, method), (parameters, *others))
        num_steps, done, fresh = 1, 0, True
        while (reason := _reason(state, settings, method, options)) == StopReason.running:
            check_interrupt()
            if time.perf_counter() > options.deadline:
                return state, StopReason.max_seconds
            arguments = (jnp.asarray(min(done + num_steps, options.num_steps)), *others), state
            if fresh and options.deadline < math.inf and not _burst.is_there(options.deadline, *arguments):
                return state, StopReason.max_seconds
            begin, before, fresh = time.perf_counter(), done, False
            state = _burst(*arguments)
            done = int(state.point.step)
            now = time.perf_counter()
            num_steps = next_burst(num_steps, done - before, now - begin, options.deadline - now)
            report(lambda state=state: f"cost {float(state.row_loss):.3e}", done)
    return state, reason


def _reason(state: DescentState, settings: Settings, method: Method, options: DescentOptions) -> StopReason:
    """Why a descent has ended; `running` where it has not."""
    point = state.point
    losses = [float(state.row_loss), float(point.loss)]
    if not all(math.isfinite(loss) and loss <= float(settings.bound) for loss in losses):
        grown = any(loss > float(settings.bound) for loss in losses)
        return StopReason.unstable if grown and int(point.step) > 0 else StopReason.non_finite
    if settings.target_cost is not None:
        reached = losses[0] if method.batch_size is not None else min(losses)
        if reached <= float(settings.target_cost):
            return StopReason.target_cost
    return StopReason.num_steps if int(point.step) >= options.num_steps else StopReason.running


def rows_of(task: Task, state: DescentState, method: Method) -> dict[str, Any]:
    """The rows saved, the end among them."""
    count = int(state.num_rows)
    rows = jax.tree.map(lambda x: np.asarray(x)[:count], state.rows)
    if rows["step"][-1] != int(state.point.step):
        last, _ = _observe(task, state.point, method)
        rows = jax.tree.map(lambda x, y: np.concatenate([x, np.asarray(y)[None]]), rows, last)
    return rows


@partial(compiled, runs_once=True)
def known(task: Task, parameters: Any) -> Any:
    """`Task.known`, compiled."""
    return task.known(parameters)
