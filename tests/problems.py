"""The costs and starts that tests share.

A flow takes longer to compile than to run, and a program serves all tests of one shape: type of the cost and its
number of observed entries, sizes of the layers, solver, rows. Tolerances, ends and the numbers in cost and start are
free. So take these problems, `max_saves` as it is, and `rows` for times, unless a test is about another shape.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy

import saddleflow as sf

# Times to save at are filled up to so many.
NUM_ROWS = 256


def completion() -> sf.MatrixCompletion:
    """Matrix completion 4x4 of rank 2, 12 of 16 entries observed."""
    return sf.MatrixCompletion.random(jax.random.key(1), shape=(4, 4), rank=2, observed=0.75)


def start() -> sf.DeepLinearNetwork:
    """A start of depth 3 and width 6 that fits `completion`."""
    return sf.gaussian(jax.random.key(2), depth=3, width=6, shape=(4, 4), gamma=1.5)


def rows(times: Sequence[float] | np.ndarray) -> np.ndarray:
    """Times to save at, the last one repeated up to `NUM_ROWS`: one program for any number of times."""
    assert len(times) <= NUM_ROWS
    return np.pad(np.asarray(times, float), (0, NUM_ROWS - len(times)), mode="edge")


class HuberCompletion(sf.Cost):
    """The docstring's example of a cost of one's own."""

    target: jax.Array
    observed: jax.Array

    @property
    def shape(self):
        return self.target.shape

    def __call__(self, matrix):
        return jnp.sum(optax.huber_loss(matrix, self.target) * self.observed) / self.observed.sum()

    def test(self, matrix):
        held_out = ~self.observed
        return jnp.sum(optax.huber_loss(matrix, self.target) * held_out) / held_out.sum()


class Linear(sf.Cost):
    """The homogeneous model `Tr(G^T A)`, without a lower bound."""

    slope: jax.Array

    @property
    def shape(self):
        return self.slope.shape

    def __call__(self, matrix):
        return jnp.sum(self.slope * matrix)

    def test(self, matrix):
        return self(matrix)

    @property
    def has_test(self):
        return False


def costs() -> dict[str, sf.Cost]:
    """One cost of every type, for matrices 4x3."""
    key = jax.random.key(0)
    inputs = jax.random.normal(jax.random.key(5), (3, 20))
    outputs = jax.random.normal(jax.random.key(6), (4, 20))
    task = sf.MatrixCompletion.random(key, shape=(4, 3), rank=2, observed=0.7)
    return {
        "completion": task,
        "mse": sf.MeanSquaredError(inputs, outputs, inputs[:, :5], outputs[:, :5]),
        "teacher": sf.MeanSquaredError.teacher(jax.random.normal(key, (4, 3))),
        "huber": HuberCompletion(task.target, task.observed),
    }


def by_dop853(loss, network: sf.DeepLinearNetwork, times: np.ndarray) -> np.ndarray:
    """A at some times, shape (time, n_out, n_in), by scipy at rtol 1e-12 and the gradient of a loss of the layers."""
    sizes = np.cumsum([layer.size for layer in network.layers])[:-1]
    shapes = [layer.shape for layer in network.layers]

    def layers(theta):
        return [part.reshape(shape) for part, shape in zip(jnp.split(theta, sizes), shapes, strict=True)]

    field = jax.jit(lambda theta: -jax.grad(lambda at: loss(layers(at)))(theta))
    theta = np.concatenate([np.ravel(layer) for layer in network.layers])
    solution = scipy.integrate.solve_ivp(
        lambda _, at: np.asarray(field(at)), (0.0, times[-1]), theta, "DOP853", times, rtol=1e-12, atol=1e-15
    )
    assert solution.success
    return np.stack([np.linalg.multi_dot([np.asarray(w) for w in layers(at)[::-1]]) for at in solution.y.T])


def off_by(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative error of A at any time."""
    off = np.linalg.norm(found - expected, axis=(1, 2))
    return float(np.max(off / np.linalg.norm(expected, axis=(1, 2))))
