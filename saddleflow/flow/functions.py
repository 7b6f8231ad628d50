"""Functions that a user hands to a flow, looked at once before it: observables and `stop`, and what they return."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from saddleflow._backend.arguments import described, refuse


def check_functions(
    observables: Mapping[str, Callable[..., Any]], stop: Callable[..., Any] | None, subject: tuple[Any, Any]
) -> None:
    """Refuse observables that give no array, and a `stop` that gives no boolean; nothing is computed.

    Args:
        observables: functions by name, of cost and network, or of objective and model.
        stop: a function of time and network, or None.
        subject: cost and network, or objective and model.

    Raises:
        ValueError: which of them, and what it gives or raises; what the function refuses by itself, as it says it.
    """
    for name, observable in observables.items():
        _outline(f"observables[{name!r}]", "give an array of numbers", observable, *subject)
    if stop is None:
        return
    expected = "give one boolean"
    found = _outline("stop", expected, stop, jnp.zeros(()), subject[1])
    if found.dtype != bool or found.shape != ():
        remedy = "Compare with a bound, and join several by jnp.any or jnp.all."
        refuse("stop", expected, found, remedy)


def _outline(argument: str, expected: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Shape and dtype of what a function gives."""
    try:
        given = eqx.filter_eval_shape(function, *arguments)
    except ValueError as error:
        if str(error).startswith("`"):  # a reason of this package, with a remedy
            raise
        raise ValueError(_failed(argument, expected, error)) from error
    except Exception as error:
        raise ValueError(_failed(argument, expected, error)) from error
    found = given if hasattr(given, "dtype") else _as_array(given)
    if found is None or found.dtype.kind not in "biufc":
        refuse(argument, expected, given, "Return jnp.asarray(...) of what is to be known.")
    return found


def _as_array(given: Any) -> Any:
    """Numbers that are no array; None for what is neither."""
    if any(isinstance(leaf, str | bytes | None) for leaf in jax.tree.leaves(given, is_leaf=lambda x: x is None)):
        return None
    try:
        return eqx.filter_eval_shape(jnp.asarray, given)
    except (TypeError, ValueError):
        return None


def _failed(argument: str, expected: str, error: Exception) -> str:
    """What is said of a function that raises."""
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    kind = described(type(error)).removeprefix("the class ")
    return (
        f"`{argument}` must {expected}, but it raised {kind}: {reason}. "
        "It is traced by JAX: jax.numpy in the place of numpy, jnp.where in the place of `if`."
    )
