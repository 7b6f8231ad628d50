"""Learning rates: how one is told, from what the user says or from the optimiser, and what it makes of time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from saddleflow._backend.arguments import function, number
from saddleflow._backend.checks import is_concrete, require, require_positive

# The rate where neither an optimiser nor a rate is given.
DEFAULT_RATE = 1e-2

# An optimiser is plain gradient descent where it turns gradients of these sizes into minus a rate times them.
PROBES = (1.0, 2.0**10, 2.0**-10)


class Stepper(eqx.Module):
    """How parameters move along a gradient, and at which rate.

    Attributes:
        optimizer: an optax optimiser; None: plain gradient descent, for which any rate is one program.
        rate: the learning rate; None: one of `schedule`, or (without one) of the optimiser's own state.
        schedule: a function from the number of a step, from 0, to its rate.
    """

    optimizer: optax.GradientTransformationExtraArgs | None = eqx.field(static=True)
    rate: Float[Array, ""] | None
    schedule: Callable[[Any], Any] | None = eqx.field(static=True, default=None)

    def start(self, parameters: Any) -> Any:
        """The optimiser's state before the first step."""
        return () if self.optimizer is None else self.optimizer.init(parameters)

    def step(
        self, number: Int[Array, ""], parameters: Any, gradient: Any, state: Any, loss: Any, value_fn: Any
    ) -> tuple[Any, Any]:
        """Parameters and state after a step; optimisers that ask for the loss are given it, and its function."""
        if self.optimizer is None:
            rate = self.rate_of(number, state)
            return jax.tree.map(lambda p, g: p - rate * g, parameters, gradient), state
        updates, state = self.optimizer.update(
            gradient, state, parameters, value=loss, grad=gradient, value_fn=value_fn
        )
        return jax.tree.map(jnp.add, parameters, updates), state

    def rate_of(self, step: Int[Array, ""], state: Any) -> Float[Array, ""]:
        """The rate of a step, from the state that it left."""
        if self.rate is not None:
            return self.rate
        found = injected_rate(state) if self.schedule is None else self.schedule(step)
        return jnp.asarray(found, float)

    def time_after(self, time: Float[Array, ""], step: Int[Array, ""], rate: Float[Array, ""]) -> Float[Array, ""]:
        """Rate times steps; of rates that change their sum."""
        return time + rate if self.rate is None else (step + 1) * rate


def rate(argument: str, value: Any) -> Any:
    """The reader of an argument `learning_rate`: a number, or a schedule."""
    if isinstance(value, type) or not (callable(value) or is_concrete(value)):
        return value
    if callable(value):
        return function("step")(argument, value)
    try:
        return number(example="1e-2")(argument, value)
    except ValueError as error:
        raise ValueError(str(error).replace("be a real number", "be a number or a schedule")) from None


def stepper_of(optimizer: Any, learning_rate: Any, parameters: Any) -> Stepper:
    """How the parameters are to move, as far as the user and the optimiser tell.

    Args:
        optimizer: an optax optimiser, or None.
        learning_rate: a number, a schedule, or None: what the optimiser tells.
        parameters: the start.

    Raises:
        ValueError: no optimiser; a rate that is no positive number, differs from the optimiser's, or cannot be told.
    """
    if learning_rate is not None and not callable(learning_rate):
        number = isinstance(learning_rate, int | float | np.number) or getattr(learning_rate, "ndim", None) == 0
        require(number or not is_concrete(learning_rate), "learning_rate", "be a number or a schedule", learning_rate)
        require_positive("learning_rate", learning_rate)
    if optimizer is None and callable(learning_rate):
        return Stepper(None, None, learning_rate)
    if optimizer is None:
        return Stepper(None, jnp.asarray(DEFAULT_RATE if learning_rate is None else learning_rate, float))
    optimizer = _checked(optimizer)
    state = optimizer.init(parameters)
    plain = plain_rate(optimizer, parameters, state) if is_concrete(jax.tree.leaves(parameters)[0]) else None
    if plain is not None:
        agrees = learning_rate is None or learning_rate == plain
        remedy = "Leave one of them out."
        require(bool(agrees), "learning_rate", f"be that of the optimizer, {plain}", learning_rate, remedy)
        return Stepper(None, jnp.asarray(plain))
    if callable(learning_rate):
        return Stepper(optimizer, None, learning_rate)
    if learning_rate is not None:
        return Stepper(optimizer, jnp.asarray(learning_rate, float))
    require(
        injected_rate(state) is not None,
        "learning_rate",
        "be given for this optimizer, which hides its own",
        None,
        "Pass the same number or schedule again: time is rate times steps. "
        "(optax.sgd(rate) and optax.inject_hyperparams(...) tell theirs.)",
    )
    return Stepper(optimizer, None)


def _checked(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    sound = isinstance(optimizer, optax.GradientTransformation)
    remedy = "Such as optax.sgd(1e-2) or optax.adam(1e-3)."
    require(sound, "optimizer", "be an optax.GradientTransformation", type(optimizer).__name__, remedy)
    return optax.with_extra_args_support(optimizer)


def plain_rate(optimizer: optax.GradientTransformation, parameters: Any, state: Any) -> float | None:
    """The rate of plain gradient descent, found by its updates of made-up gradients; None: it is something else.

    Optax hides the rate of `optax.sgd(rate)` in a closure. An optimiser with a state of its own is never plain; one
    without has to take gradients of all sizes and signs in proportion, wherever the parameters are.
    """
    if jax.tree.leaves(state):
        return None
    here = jax.tree.map(np.asarray, parameters)
    rates = []
    for size in PROBES:
        made_up = jax.tree.map(partial(_pattern, size), here)
        updates, _ = optimizer.update(made_up, state, here)
        pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(made_up), strict=True)
        rates += [-np.asarray(update) / gradient for update, gradient in pairs if gradient.size]
    least, most = min(rate.min() for rate in rates), max(rate.max() for rate in rates)
    return float(least) if least == most > 0 else None


def _pattern(size: float, like: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Numbers of one size and both signs."""
    return size * np.where(np.arange(like.size) % 3, 1.0, -1.0).reshape(like.shape)


def injected_rate(state: Any) -> Any:
    """The rate in the state of `optax.inject_hyperparams`; None where there is none, or several."""

    def injects(part: Any) -> bool:
        return isinstance(getattr(part, "hyperparams", None), dict)

    parts = [part.hyperparams for part in jax.tree.leaves(state, is_leaf=injects) if injects(part)]
    rates = [part["learning_rate"] for part in parts if "learning_rate" in part]
    return rates[0] if len(rates) == 1 else None


def name_of(stepper: Stepper, parameters: Any) -> str:
    """What the method is called: by the parts of the optimiser's state, as optax names them."""
    if stepper.optimizer is None:
        return "gradient descent"
    state = stepper.optimizer.init(parameters)
    names: list[str] = []

    def note(part: Any) -> None:
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            name = type(part).__name__.removesuffix("State")
            if jax.tree.leaves(part) and name not in names:
                names.append(name)
        if isinstance(part, tuple):
            for inner in part:
                note(inner)

    note(state)
    return f"optax ({', '.join(names)})" if names else "optax"
