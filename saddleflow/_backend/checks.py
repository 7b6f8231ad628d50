"""How this package speaks about bad input: argument, what was expected, what came, the remedy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from saddleflow._backend.precision import float64_is_enabled


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


def require_finite(argument: str, value: Any, remedy: str = "") -> None:
    """Refuse NaN and infinity, naming the first bad entry (concrete arrays only)."""
    if is_concrete(value):
        bad = np.argwhere(~np.isfinite(np.asarray(value)))
        if len(bad):
            entry = tuple(int(i) for i in bad[0])
            remedy = remedy or "Look where it was computed: 0 / 0 gives NaN, and 1 / 0 infinity."
            found = f"{np.asarray(value)[entry]} at entry {entry}" if entry else float(value)
            require(False, argument, "be finite", found, remedy)


def require_positive(argument: str, value: Any, remedy: str = "") -> None:
    """Refuse scalars that are not finite and above zero (concrete ones only)."""
    if is_concrete(value):
        number = float(value)
        if math.isnan(number):
            remedy = remedy or "Look where it was computed: 0 / 0 gives NaN."
        require(math.isfinite(number) and number > 0, argument, "be finite and positive", number, remedy)


def require_integer(argument: str, value: Any, minimum: int, remedy: str = "") -> None:
    """Refuse anything but an integer of at least `minimum`."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    require(is_integer and value >= minimum, argument, f"be an integer >= {minimum}", value, remedy)


def require_float64(argument: str, value: Any) -> None:
    """Refuse arrays of another dtype than float64, with the reason."""
    dtype = getattr(value, "dtype", None)
    kind = getattr(dtype, "kind", "")
    remedy = "Small initialisations vanish in float32: convert with `.astype('float64')`."
    if not float64_is_enabled():
        remedy = "float64 is switched off: leave jax_enable_x64 as `import saddleflow` sets it, on."
    elif kind == "c":
        remedy = "Nothing here is complex: take the real part."
    elif dtype is None or kind in "OUSMm":
        remedy = "Convert with numpy.asarray(values, float)."
    require(dtype == np.float64, argument, "hold float64 numbers", str(dtype or type(value).__name__), remedy)


def as_float64(argument: str, value: Any) -> Any:
    """An array of float64 numbers: an array as it is, a list (of lists) of numbers converted.

    Raises:
        ValueError: an array of another dtype; a list that is ragged or holds something else; no array at all.
    """
    if isinstance(value, list | tuple):
        value = _array_of(argument, value)
        value = value.astype(float) if value.dtype.kind in "iu" else value
    remedy = "Convert with numpy.asarray(values, float)."
    sound = hasattr(value, "dtype") and hasattr(value, "ndim")
    require(sound, argument, "be an array or a list of numbers", type(value).__name__, remedy)
    require_float64(argument, value)
    return value


def as_booleans(argument: str, value: Any) -> Any:
    """An array of booleans: an array or a list (of lists) of them; numpy's where it can be looked at."""
    if isinstance(value, list | tuple):
        value = _array_of(argument, value)
    value = np.asarray(value) if is_concrete(value) else value
    remedy = "Write values != 0 for True where they are not zero."
    require(value.dtype == bool, argument, "hold booleans", str(value.dtype), remedy)
    return value


def _array_of(argument: str, values: Any) -> Any:
    """A list of lists as an array; a traced one where it holds tracers."""
    if not all(map(is_concrete, jax.tree.leaves(values))):
        return jnp.asarray(values)
    try:
        return np.asarray(values)
    except ValueError:
        require(False, argument, "have rows of one length", "a ragged list")


def check_save_at(save_at: Any, t1: float | None) -> tuple[Float[np.ndarray, " times"], float]:
    """The times to save at, and the end of the run: `t1`, or the last of the times."""
    times = np.atleast_1d(np.asarray(save_at, float))
    require(times.ndim == 1 and times.size > 0, "save_at", "be a list of times", f"shape {times.shape}")
    require_finite("save_at", times)
    require(bool(np.all(np.diff(times) >= 0)), "save_at", "be sorted", save_at, "Pass sorted(save_at).")
    require(bool(times[0] >= 0), "save_at", "not be negative", float(times[0]), "Runs start at t = 0.")
    last = float(times[-1])
    require(last > 0 or t1 is not None, "save_at", "reach beyond t = 0", last)
    require(t1 is None or last <= t1, "save_at", f"end by t1 = {t1}", last)
    return times, last if t1 is None else t1
