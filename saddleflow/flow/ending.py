"""Where within a step a run ends: at the time when the target cost is reached, or the user's `stop` turns true.

A solver's steps are as long as its tolerance allows, which on a tail or in an escape may be much of the time so far:
the end of the step in which a condition turns true says little of when it did. The step's dense output does, to the
accuracy of the step, where that ends soon after.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saddleflow.flow.clock import Clock
from saddleflow.flow.landscape import Landscape, Parameters
from saddleflow.flow.state import FlowState, Method, Settings

# The time is found to this share of rtol, relative to the step as well as to the time of the flow.
FINE = 0.01

# Dense output is as exact as the step only near its end: a step in which the run ends before this share of it is
# tried anew, this much longer than to there. (From a plateau the times found were 5 rtol off, and are .1 so.)
LATE, BEYOND = 15 / 16, 33 / 32
# After so many rejections in a row it is taken as it is: a `stop` that depends on rounding might ask for ever.
MAX_RETRIES = 20

# Halvings of a step at most: more than float64 resolves, but where a first step is far too long.
MAX_HALVINGS = 64


class StepEnd(eqx.Module):
    """Where a step ends, and what ends the run there."""

    after: Float[Array, ""]  # time since the step's begin
    lands: Bool[Array, ""]  # whether that is t1
    parameters: Parameters
    outputs: Float[Array, "n_out n_in"]
    reached: Bool[Array, ""]  # the target cost
    stopped: Bool[Array, ""]  # by the user's `stop`

    @property
    def ends(self) -> Bool[Array, ""]:
        """Whether the run ends here."""
        return self.reached | self.stopped


def located(
    end: StepEnd,
    interpolation: Any,
    clock: Clock,
    is_first: Bool[Array, ""],
    landscape: Landscape,
    settings: Settings,
    method: Method,
) -> StepEnd:
    """A step cut short where what ends the run turns true; as it is where nothing does.

    By bisection, which needs no more of a condition than that it fails before and holds after. It is a loop and not a
    branch, so that under `vmap` nothing of it is computed before some lane ends.

    Args:
        end: the step's own end, nothing of it true where the step was rejected.
        interpolation: the step's dense output.
        clock: at the step's begin.
        is_first: whether no step has been accepted before: then `stop` may have held all along, and the step is
            whole.
        landscape: in the frame of the parameters.
        settings: of the run.
        method: of the run.
    """
    begin, no = jnp.zeros(()), jnp.asarray(False)
    held = jax.lax.cond(
        end.stopped & is_first,
        lambda: stops(landscape, interpolation.evaluate(begin), clock, method),
        lambda: no,
    )
    length = end.after

    def unsure(carry):
        low, high, count = carry
        width = FINE * settings.rtol * jnp.minimum(length, clock.within + high.after)
        return end.ends & ~held & (high.after - low > width) & (count < MAX_HALVINGS)

    def halve(carry):
        low, high, count = carry
        middle = 0.5 * (low + high.after)
        parameters = interpolation.evaluate(middle)
        outputs = landscape.outputs(parameters)
        here = StepEnd(
            middle,
            no,
            parameters,
            outputs,
            no if settings.target_cost is None else reaches(landscape.loss(parameters, outputs), settings),
            stops(landscape, parameters, clock.after(middle), method),
        )
        high = jax.tree.map(lambda a, b: jnp.where(here.ends, a, b), here, high)
        return jnp.where(here.ends, low, middle), high, count + 1

    _, found, _ = jax.lax.while_loop(unsure, halve, (begin, end, jnp.zeros((), int)))
    return found


def retried(
    end: StepEnd, h: Float[Array, ""], state: FlowState, settings: Settings
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """Whether a step of length h in which a run ends is to be tried anew, and with which length.

    Not where all of it is short beside the time: then the time is known.
    """
    long = h > settings.rtol * (state.clock.within + h)
    again = state.consecutive_rejections < MAX_RETRIES
    return end.ends & long & again & (end.after < LATE * h), BEYOND * end.after


def reaches(loss: Float[Array, ""], settings: Settings) -> Bool[Array, ""]:
    """Whether a loss is at most the target cost."""
    return jnp.asarray(False) if settings.target_cost is None else loss <= settings.target_cost


def stops(landscape: Landscape, parameters: Parameters, clock: Clock, method: Method) -> Bool[Array, ""]:
    """What the user's `stop` says."""
    if method.stop is None:
        return jnp.asarray(False)
    return jnp.asarray(method.stop(clock.time, landscape.subject(parameters)[1]))
