"""Mini-batches: drawn without replacement, epoch by epoch, as a function of key and step alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from saddleflow._backend import arguments as readers
from saddleflow._backend.arguments import MOST_STEPS, integer, takes
from saddleflow._backend.checks import require
from saddleflow._backend.devices import check_room
from saddleflow._backend.programs import compiled


def epoch_of(step: Int[Array, ""], num_samples: int, batch_size: int) -> Int[Array, ""]:
    """The epoch in which the batch of a step begins."""
    return step * batch_size // num_samples


def end_of_epoch(epoch: Int[Array, ""], num_samples: int, batch_size: int) -> Int[Array, ""]:
    """The first step whose batch begins after an epoch."""
    return -(-(epoch + 1) * num_samples // batch_size)


def order_of(key: PRNGKeyArray, epoch: Int[Array, ""], num_samples: int, batch_size: int) -> Int[Array, " places"]:
    """The order of all samples in an epoch, and where its last batch needs some, of the next one behind it."""
    epochs = [epoch] if num_samples % batch_size == 0 else [epoch, epoch + 1]
    return jnp.concatenate([jax.random.permutation(jax.random.fold_in(key, e), num_samples) for e in epochs])


def batch_of(
    order: Int[Array, " places"], step: Int[Array, ""], num_samples: int, batch_size: int
) -> Int[Array, " b"]:
    """The samples of a step, from the order of its epoch."""
    begin = step * batch_size - epoch_of(step, num_samples, batch_size) * num_samples
    return jax.lax.dynamic_slice(order, (begin,), (batch_size,))


@takes(key=readers.key, num_samples=integer(1), batch_size=integer(1), num_steps=integer(1, MOST_STEPS))
def batch_indices(key: PRNGKeyArray, num_samples: int, batch_size: int, num_steps: int) -> Int[Array, "steps b"]:
    """The samples of each step of `sf.gradient_descent` with this key, shape (num_steps, batch_size).

    The samples of all epochs, each in a random order of its own, are one sequence, and a step takes the next
    `batch_size` of it. Where they do not divide the number of samples, a batch may hold the end of an epoch and the
    beginning of the next.

    >>> batches = sf.training.batch_indices(jax.random.key(0), 80, 20, 4)  # one epoch: each of 80 samples once
    >>> batches.shape, len(np.unique(batches))
    ((4, 20), 80)

    Args:
        key: `jax.random.key(seed)`.
        num_samples: N.
        batch_size: b, at most N.
        num_steps: how many steps.

    Raises:
        ValueError: a number out of range.
    """
    remedy = "A batch holds no sample twice."
    require(batch_size <= num_samples, "batch_size", f"be at most num_samples = {num_samples}", batch_size, remedy)
    check_room("num_steps", num_steps, 8 * num_steps * batch_size, "Ask for fewer steps.")
    return _indices(key, num_samples, batch_size, num_steps)


def _indices_of(key: PRNGKeyArray, num_samples: int, batch_size: int, num_steps: int) -> Int[Array, "steps b"]:
    def of_step(step: Int[Array, ""]) -> Int[Array, " b"]:
        order = order_of(key, epoch_of(step, num_samples, batch_size), num_samples, batch_size)
        return batch_of(order, step, num_samples, batch_size)

    return jax.lax.map(of_step, jnp.arange(num_steps))


_indices = compiled(_indices_of, runs_once=True)
