import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import costs

import saddleflow as sf
from saddleflow.problem import geometry
from saddleflow.problem.costs import affordable_curvature

NETWORK = sf.gaussian(jax.random.key(1), depth=3, width=5, shape=(4, 3), variance=0.5)
MATRIX = NETWORK.end_to_end()


@pytest.mark.parametrize("name", ["completion", "mse", "teacher", "huber"])
def test_root_squares_to_the_hessian(name):
    @eqx.filter_jit
    def compute(cost, direction):
        curvature = cost.curvature(MATRIX)
        values = curvature.root(direction)
        back = curvature.adjoint(values)
        expected = jax.jvp(cost.gradient, (MATRIX,), (direction,))[1]
        return back, expected, values @ curvature.root(MATRIX), jnp.sum(back * MATRIX)

    cost = costs()[name]
    back, expected, one, other = compute(cost, jax.random.normal(jax.random.key(2), cost.shape))
    np.testing.assert_allclose(back, expected, atol=1e-12)
    assert float(one) == pytest.approx(float(other), rel=1e-12)


@pytest.mark.parametrize("name", ["completion", "few entries", "most entries", "mse", "teacher", "huber"])
def test_gram_is_the_kernel_of_the_residuals(name):
    @eqx.filter_jit
    def compute(cost):
        curvature = cost.curvature(MATRIX)
        left, right = geometry.partial_products(NETWORK)
        gram = curvature.gram(tuple(m @ m.T for m in left.one_by_one()), tuple(n.T @ n for n in right.one_by_one()))
        apply = lambda u: curvature.root(sf.neural_tangent_kernel(NETWORK, curvature.adjoint(u)))  # noqa: E731
        return gram, jax.vmap(apply)(jnp.eye(len(gram))).T

    tasks = costs()
    for share, observed in (("few", 0.4), ("most", 0.9)):
        tasks[f"{share} entries"] = sf.MatrixCompletion.random(
            jax.random.key(4), shape=(4, 3), rank=1, observed=observed
        )
    gram, expected = compute(tasks[name])
    np.testing.assert_allclose(gram, expected, atol=1e-12)


def test_traced_masks_bound_the_residuals():
    def gram_trace(key):
        task = sf.MatrixCompletion.random(key, shape=(4, 3), rank=1, observed=0.5)
        curvature = task.curvature(MATRIX)
        return curvature.adjoint(curvature.root(MATRIX)), jax.jvp(task.gradient, (MATRIX,), (MATRIX,))[1]

    ours, expected = jax.jit(jax.vmap(gram_trace))(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(ours, expected, atol=1e-13)


def test_too_many_residuals_are_not_worth_a_factorisation():
    big = sf.MatrixCompletion.random(jax.random.key(0), shape=(40, 40), rank=2)
    assert big.curvature(big.target).num_residuals == 1280
    assert affordable_curvature(big, big.target) is None
