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


def pattern(state: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "..."]]:
    """Numbers between -1 and 1 without a pattern, the same for an entry whatever the state is padded to."""

    def leaf(number: int, x: Any) -> Any:
        places = jnp.full(x.shape, float(number + 1), jnp.promote_types(x.dtype, jnp.float32))
        for axis in range(x.ndim):
            steps = jnp.arange(x.shape[axis], dtype=places.dtype) * STRIDES[axis % len(STRIDES)]
            places = places + steps.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        return jnp.cos(places**2).astype(x.dtype)

    leaves, structure = jtu.tree_flatten(state)
    return structure.unflatten([leaf(number, x) for number, x in enumerate(leaves)])


# from one place to the next along each axis: no two entries of a layer meet in one number
STRIDES = (1.0, 1.6180339887498949, 2.7182818284590451)
