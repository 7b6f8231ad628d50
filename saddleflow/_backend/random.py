"""Draws that compile little: the numbers of `jax.random`, from few programs for many shapes.

A long draw begins with the numbers of a shorter one, and the first keys of a split are those of a shorter split (of
JAX's partitionable threefry, the default). So draws at hand are cut from padded ones; traced draws need no padding.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from saddleflow._backend.checks import is_concrete
from saddleflow._backend.programs import keep_programs

# Draws are padded to this many numbers, times a power of four, and to multiples of so many keys: a small task and a
# small start share one program. Longer ones than LONGEST take longer to draw than to compile for.
NUMBERS, KEYS, LONGEST = 4096, 4, 2**18


def normal_matrices(key: PRNGKeyArray, shapes: Sequence[tuple[int, int]]) -> list[Float[Any, "_ _"]]:
    """Standard normal matrices, the i-th from the i-th key of a split, as `jax.random.normal` draws it.

    Args:
        key: `jax.random.key(seed)`; a traced one gives traced matrices, one at hand numpy's.
        shapes: of the matrices.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if not is_concrete(key) or max(sizes) > LONGEST:
        keys = jax.random.split(key, len(shapes))
        return [jax.random.normal(k, shape, float) for k, shape in zip(keys, shapes, strict=True)]
    keep_programs()
    drawn = np.asarray(_normal_rows(key, -(-len(shapes) // KEYS) * KEYS, padded(max(sizes), NUMBERS)))
    return [row[:size].reshape(shape) for row, size, shape in zip(drawn, sizes, shapes, strict=False)]


def padded(count: int, least: int) -> int:
    """The smallest of least, 4 least, 16 least, ... that is not below a count."""
    while least < count:
        least *= 4
    return least


def permutation(key: PRNGKeyArray, part: int, count: int) -> Int[Any, " count"]:
    """A random order of 0, ..., count - 1, as `jax.random.permutation` draws it from the part-th key of a split."""
    keep_programs()
    return _permutation(key, part, count)


@partial(jax.jit, static_argnums=(1, 2))
def _normal_rows(key: PRNGKeyArray, num_keys: int, count: int) -> Float[Any, "keys count"]:
    return jax.lax.map(lambda k: jax.random.normal(k, (count,), float), jax.random.split(key, num_keys))


@partial(jax.jit, static_argnums=(1, 2))
def _permutation(key: PRNGKeyArray, part: int, count: int) -> Int[Any, " count"]:
    return jax.random.permutation(jax.random.split(key, part + 1)[part], count)
