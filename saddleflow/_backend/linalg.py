"""Dense factorisations under `vmap`: lane by lane on CPUs.

jaxlib hands a batch of LAPACK calls to the CPU's thread pool and waits inside it. Two such calls at once (of one
program, or of two devices) can occupy every thread with waiting: a deadlock, seen on two cores. A batch of one runs
in place. Lane by lane a `lax.cond` also stays a choice, where a batch would pay for both branches.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def lane_by_lane(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose `vmap` is a loop over lanes on CPUs and a batch elsewhere.

    Args:
        function: of arrays (pytrees of them), positional only.
    """
    in_turn = jax.custom_batching.sequential_vmap(function)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        return (in_turn if jax.default_backend() == "cpu" else function)(*arguments)

    return call


@lane_by_lane
def svd(matrix: Float[Array, "m n"]) -> tuple[Array, Array, Array]:
    """Full singular value decomposition `(U, s, V^T)`."""
    u, s, vh = jnp.linalg.svd(matrix)
    return u, s, vh


@lane_by_lane
def qr(matrix: Float[Array, "m n"]) -> tuple[Array, Array]:
    """Reduced factorisation `(Q, R)`."""
    q, r = jnp.linalg.qr(matrix)
    return q, r
