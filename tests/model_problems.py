"""Models, objectives and independent solutions that tests of models share; see `problems` on sharing programs."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import scipy

import saddleflow as sf

INPUTS = jax.random.normal(jax.random.key(0), (6, 2))
TARGETS = jnp.sin(2 * INPUTS[:, :1]) + INPUTS[:, 1:] ** 2
LABELS = jnp.array([0, 1, 2, 1, 0, 2])


def apply(model, x):
    """A prediction by a model that is a function."""
    return model(x)


def tanh_net(n_out=1, *, key=3):
    """A two-layer net 2-4-n_out."""
    return eqx.nn.MLP(2, n_out, 4, 1, jnp.tanh, key=jax.random.key(key))


def regression(**options):
    """Six samples for `tanh_net()`."""
    return sf.regression(apply, INPUTS, TARGETS, **options)


def vector(model):
    """All floating-point arrays of a model as one vector, and the way back."""
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)
    theta, back = jax.flatten_util.ravel_pytree(parameters)
    return theta, lambda flat: eqx.combine(back(flat), rest)


def by_dop853(loss, model, times, rtol=1e-12):
    """Parameters of the flow at some times, shape (time, p), by scipy and the gradient of the plain loss."""
    theta, back = vector(model)
    field = jax.jit(lambda flat: -jax.grad(lambda at: loss(back(at)))(flat))
    solution = scipy.integrate.solve_ivp(
        lambda _, flat: np.asarray(field(flat)),
        (0.0, float(times[-1])),
        np.asarray(theta),
        method="DOP853",
        rtol=rtol,
        atol=1e-15 * np.abs(theta).max(),
        t_eval=np.asarray(times),
    )
    assert solution.success
    return solution.y.T


def errors(trajectory, expected):
    """Largest error of any entry, as the flow weighs it, and of the outputs; `save_networks` is needed."""
    size = np.abs(expected) + 0.2 * np.asarray(trajectory.landscape.rms)
    entries = np.max(np.abs(trajectory.saved_parameters - expected) / size)
    outputs = np.asarray(jax.vmap(trajectory.landscape.outputs)(jnp.asarray(expected)))
    off = np.linalg.norm(trajectory.outputs - outputs, axis=(1, 2)) if trajectory.outputs is not None else 0.0
    return entries, np.max(off / np.linalg.norm(outputs, axis=(1, 2)))
