"""Padded states: which entries are there, and the norm over those."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree
from optimistix import rms_norm


class Support(eqx.Module):
    """Which entries of a padded state are there; the others are zero, stay zero, and count in no mean.

    Attributes:
        mask: a pytree like the state, one where an entry is there, zero elsewhere.
        count: how many there are.
    """

    mask: PyTree[Float[Array, "..."]]
    count: Any


def mean_norm(tree: PyTree[Float[Array, "..."]], support: Support | None = None) -> Float[Array, ""]:
    """Root mean square over the entries of a state that are there; None: over all."""
    if support is None:
        return rms_norm(tree)
    leaves = jtu.tree_leaves(tree)
    total = sum(x.size for x in leaves)
    return rms_norm(tree) * jnp.sqrt(total / jnp.asarray(support.count, leaves[0].dtype))


# From one place to the next along the last axis, the one before and the one before that: no two entries meet in one
# number.
STRIDES = (1.6180339887498949, 2.7182818284590451, 1.0)


def pattern(state: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "..."]]:
    """Numbers between -1 and 1 without a pattern, the same for an entry whatever the state is padded to."""
    leaves, structure = jtu.tree_flatten(state)

    def leaf(number: int, x: Any) -> Any:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        if x.ndim == 1:
            return jnp.cos(jnp.arange(number, number + x.size, dtype=dtype) ** 2).astype(x.dtype)
        places = jnp.full(x.shape, float(number), dtype)
        for axis, stride in zip(range(x.ndim - 1, -1, -1), STRIDES, strict=False):
            along = stride * jnp.arange(x.shape[axis], dtype=dtype)
            places = places + along.reshape([-1 if other == axis else 1 for other in range(x.ndim)])
        return jnp.cos(places**2).astype(x.dtype)

    # the last leaf is numbered zero: leaves before it may be in a stack
    numbers = [*range(1, len(leaves)), 0] if len(leaves) > 1 else [1]
    return structure.unflatten([leaf(number, x) for number, x in zip(numbers, leaves, strict=True)])
