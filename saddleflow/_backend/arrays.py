"""Arrays between host and device, without a compilation for every shape."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def on_device(values: Any) -> Array:
    """A jax array of the values. Of numpy's by copy: `jnp.asarray` compiles a program for every shape it meets."""
    return jax.device_put(np.array(values)) if isinstance(values, np.ndarray) else jnp.asarray(values)


def on_host(tree: Any) -> Any:
    """A pytree with numpy's arrays: what is computed from it compiles nothing for a new shape."""
    return jax.tree.map(np.asarray, tree)
