"""What the tests of the stiff solver share: spectra, networks, and an independent reference solution."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

from saddleflow import DeepLinearNetwork, gaussian


def _spectral(spectrum, seed=0):
    spectrum = np.asarray(spectrum, float)
    frame = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return (frame * spectrum) @ frame.T


@pytest.fixture(scope="session")
def spectral():
    """Return a function of a spectrum: the symmetric matrix with these eigenvalues in a random frame."""
    return _spectral


@pytest.fixture(scope="session")
def pair():
    """Return a function of depth, width and shape: a network and a direction, entries of variance .2."""

    def draw(depth, width, shape) -> tuple[DeepLinearNetwork, DeepLinearNetwork]:
        one, two = jax.random.split(jax.random.key(depth), 2)
        arguments = {"depth": depth, "width": width, "shape": shape, "variance": 0.2}
        return gaussian(one, **arguments), gaussian(two, **arguments)

    return draw


@pytest.fixture(scope="session")
def reference():
    """Return a function of field, start and times: the solution by an explicit method, to near rounding."""

    def solve(field, start, times, args=None):
        flat, unravel = ravel_pytree(start)
        velocity = jax.jit(lambda t, y: ravel_pytree(field(t, unravel(y), args))[0])
        solution = solve_ivp(
            velocity, (0.0, times[-1]), np.asarray(flat), method="DOP853", t_eval=times, rtol=1e-12, atol=1e-14
        )
        assert solution.success, solution.message
        return jax.vmap(unravel)(solution.y.T)

    return solve
