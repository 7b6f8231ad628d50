"""Numbers of a state's own precision: nothing that a solver adds may promote it."""

import math
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from saddleflow.solvers._checks import require

EPSILON = 2.0**-52  # of float64, in which the solvers' thresholds are given


def state_dtype(y: PyTree) -> Any:
    """The dtype that the numbers of a state share."""
    return jnp.result_type(*jtu.tree_leaves(y))


def require_one_dtype(y: PyTree) -> None:
    """Refuse a state whose leaves differ in dtype, or hold anything but real floating-point numbers."""
    dtypes = {jnp.result_type(leaf) for leaf in jtu.tree_leaves(y)}
    sound = len(dtypes) == 1 and all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)
    found = sorted(str(dtype) for dtype in dtypes)
    require(sound, "y0", "hold real floating-point numbers of one dtype", found, "Convert with `.astype`.")


def threshold_in(dtype: Any, threshold: float) -> float:
    """A threshold far above rounding and far below one, given for float64, in another dtype: there it stays both.

    It grows like the square root of rounding, so `1e-11` is `2e-7` in float32; in float64 it is itself.
    """
    return threshold * math.sqrt(float(jnp.finfo(dtype).eps) / EPSILON)


def in_dtype(value: Any, dtype: Any) -> Any:
    """A tolerance or other given number in the state's dtype.

    A Python number stays one: JAX takes it in whatever dtype it meets. NumPy's float64 is a Python float too, but JAX
    would promote a float32 state by it.
    """
    if isinstance(value, int | float):
        return float(value)
    return jnp.asarray(value, dtype)
