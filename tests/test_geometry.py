import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.problem import geometry

CASES = [(depth, width, shape) for depth in range(2, 7) for width, shape in ((6, (4, 4)), (5, (3, 7)), (5, (7, 2)))]
CASES += [(4, (3, 8, 5), (4, 6))]


def problem(depth, width, shape):
    cost = sf.MatrixCompletion.random(jax.random.key(depth), shape=shape, rank=2)
    keys = jax.random.split(jax.random.key(depth + 100), 2)
    return cost, *(sf.gaussian(k, depth=depth, width=width, shape=shape, variance=0.3) for k in keys)


def assert_close(ours, theirs):
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(b)


@pytest.mark.parametrize(("depth", "width", "shape"), CASES)
def test_gradient_equals_autodiff(depth, width, shape):
    @eqx.filter_jit
    def both(cost, network):
        return sf.gradient(cost, network), jax.grad(lambda theta: cost(theta.end_to_end()))(network)

    cost, network, _ = problem(depth, width, shape)
    assert_close(*both(cost, network))


@pytest.mark.parametrize(("depth", "width", "shape"), CASES)
def test_hessian_vector_product_equals_autodiff(depth, width, shape):
    @eqx.filter_jit
    def both(cost, network, direction):
        loss = jax.grad(lambda theta: cost(theta.end_to_end()))
        ours = sf.hessian_vector_product(cost, network, direction)
        return ours, jax.jvp(loss, (network,), (direction,))[1]

    assert_close(*both(*problem(depth, width, shape)))


def test_gradient_never_multiplies_wide_layers():
    """Work linear in the columns: no product of two w x w matrices in the compiled gradient (w = 64, n = 2)."""
    cost, network, _ = problem(5, 64, (2, 2))
    flops = jax.jit(sf.gradient).lower(cost, network).compile().cost_analysis()["flops"]
    assert flops < 2 * 64**3


def test_kernel_gives_the_flow_of_the_matrix():
    @eqx.filter_jit
    def both(cost, network):
        gradient = cost.gradient(network.end_to_end())
        velocity = jax.tree.map(jnp.negative, sf.gradient(cost, network))
        moved = jax.jvp(lambda theta: theta.end_to_end(), (network,), (velocity,))[1]
        return -sf.neural_tangent_kernel(network, gradient), moved

    cost, network, _ = problem(4, 6, (3, 5))
    ours, moved = both(cost, network)
    np.testing.assert_allclose(ours, moved, rtol=1e-11, atol=1e-13)


def test_kernel_of_a_wide_start_is_a_multiple_of_the_identity():
    """L (w sigma^2)^(L-1) Id at a wide Gaussian start (docs/theory.md, section 1)."""
    depth, width = 3, 2000
    network = sf.gaussian(jax.random.key(0), depth=depth, width=width, shape=(3, 3), gamma=1.0)
    matrix = jax.random.normal(jax.random.key(1), (3, 3))
    np.testing.assert_allclose(sf.neural_tangent_kernel(network, matrix), depth * matrix, rtol=0.2, atol=0.2)


def test_norm_is_euclidean():
    _, network, _ = problem(3, 4, (2, 3))
    flat = np.concatenate([np.ravel(layer) for layer in network.layers])
    assert float(geometry.norm(network)) == pytest.approx(np.linalg.norm(flat), rel=1e-14)
