"""Ends and indices of operators that are known by their products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saddleflow.problem import spectrum


def operator(size, values):
    """Symmetric, with these eigenvalues and as many ones in between as fit: as a product, compiled."""
    axes = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (size, len(values))))[0]
    shifts = jnp.asarray(values, float) - 1
    return jax.jit(lambda v: v + axes @ (shifts * (axes.T @ v)))


@pytest.mark.parametrize("size", [12, 100, 1600])
def test_ends_and_index(size):
    product = operator(size, [-3.0, -3.0, -1e-3, -1e-12, 0.0, 7.0])
    least, largest = spectrum.ends(product, size)
    np.testing.assert_allclose((least, largest), (-3, 7), rtol=1e-9)
    assert spectrum.index(product, size, 7.0) == 3  # below 1e-8 of the largest counts as zero
    positive = operator(size, [0.0, 7.0])
    assert spectrum.index(positive, size, 7.0) == 0
    assert spectrum.ends(positive, size)[0] == pytest.approx(0, abs=1e-9)


def test_an_operator_of_zero():
    assert spectrum.ends(jax.jit(jnp.zeros_like), 3) == (0, 0)
    assert spectrum.index(jax.jit(jnp.zeros_like), 3, 0.0) == 0
    assert spectrum.ends(jax.jit(jnp.zeros_like), 100) == (0, 0)
    assert spectrum.index(jax.jit(jnp.zeros_like), 1600, 0.0) == 0
