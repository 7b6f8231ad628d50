"""How the solvers speak about bad input: argument, what was expected, what came, the remedy.

Their own, so that they need nothing of the rest of saddleflow.
"""

import math
from typing import Any

import numpy as np
from jax.core import Tracer


def require(condition: Any, argument: str, expected: str, value: Any, remedy: str = "") -> None:
    """Raise a `ValueError` naming the argument, the expectation, the value and the remedy.

    Args:
        condition: what must hold; anything false raises.
        argument: name of the offending argument, as the user wrote it.
        expected: the expectation, continuing "must ...".
        value: what came; anything with a short repr.
        remedy: what to do about it.
    """
    if not condition:
        raise ValueError(f"`{argument}` must {expected}, but got {value!r}. {remedy}".rstrip())


def is_concrete(value: Any) -> bool:
    """Whether the value can be looked at now, or is an abstract tracer inside `jit` or `vmap`."""
    return not isinstance(value, Tracer)


def require_positive(argument: str, value: Any, remedy: str = "") -> None:
    """Refuse scalars that are not finite and above zero (concrete ones only)."""
    if is_concrete(value):
        number = float(value)
        require(math.isfinite(number) and number > 0, argument, "be finite and positive", number, remedy)


def require_integer(argument: str, value: Any, minimum: int, remedy: str = "") -> None:
    """Refuse anything but an integer of at least `minimum`."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    require(is_integer and value >= minimum, argument, f"be an integer >= {minimum}", value, remedy)
