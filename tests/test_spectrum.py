"""Spectra of operators that are known by their products, and the observables made of them."""

import jax
import jax.numpy as jnp
import model_problems
import numpy as np
import problems
import pytest

import saddleflow as sf
from saddleflow import observables as obs
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


def leading(matrix, count, num_products):
    """By `leading_eigenvalues`, from a start without a pattern."""
    matrix = jnp.asarray(matrix, float)
    start = jnp.cos(jnp.arange(1.0, len(matrix) + 1) ** 2)
    return np.asarray(spectrum.leading_eigenvalues(lambda v: matrix @ v, start, count, num_products))


def symmetric(values, seed=0):
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return axes * np.asarray(values) @ axes.T


def test_leading_eigenvalues_of_a_small_operator_are_exact():
    values = np.array([-5.0, -1.0, -1e-6, 0.0, 2.0, 2.5, 7.0])
    np.testing.assert_allclose(leading(symmetric(values), 7, 48), values[::-1], atol=1e-13)
    np.testing.assert_allclose(leading(symmetric(values), 3, 48), [7.0, 2.5, 2.0], atol=1e-13)


def test_leading_eigenvalues_apart_from_the_rest_take_few_products():
    bulk = np.random.default_rng(1).uniform(-1, 1, 200)
    np.testing.assert_allclose(leading(symmetric([9.0, 5.0, 3.0, *bulk]), 3, 48), [9.0, 5.0, 3.0], rtol=1e-12)
    # of an iteration too short for the operator the values are from below
    few = leading(symmetric([9.0, 5.0, 3.0, *bulk]), 3, 4)
    assert np.all(few < [9.0, 5.0, 3.0])
    assert few[0] > 7


def test_leading_eigenvalues_that_are_not_there():
    # more are asked for than the operator has rows
    np.testing.assert_allclose(leading(np.diag([2.0, -3.0]), 4, 48), [2.0, -3.0, np.nan, np.nan], atol=1e-14)
    # an eigenvalue of several eigenvectors is found once, and its invariant space is left with no more of them
    np.testing.assert_allclose(leading(np.diag([2.0, 2.0, 2.0, 1.0]), 3, 48), [2.0, 1.0, np.nan], atol=1e-12)
    np.testing.assert_allclose(leading(np.zeros((5, 5)), 2, 48), [0.0, np.nan])
    np.testing.assert_allclose(leading(-4 * np.eye(5), 2, 48), [-4.0, np.nan])


def networks_loss(cost):
    return lambda network: cost(network.end_to_end())


def network_and_cost():
    cost, network = problems.completion(), problems.start()
    return cost, network, networks_loss(cost), lambda network: network.end_to_end()


def model_and_objective():
    objective, model = model_problems.regression(), model_problems.tanh_net()
    return objective, model, objective, objective.outputs


CASES = {"a model": model_and_objective, "a network": network_and_cost}


@pytest.mark.parametrize("case", CASES)
def test_hessian_observables_against_the_dense_hessian(case):
    cost, model, loss, _ = CASES[case]()
    theta, back = model_problems.vector(model)
    values = np.linalg.eigvalsh(jax.hessian(lambda at: loss(back(at)))(theta))
    size, scale = len(values), np.abs(values).max()
    largest = obs.HessianEigenvalues(3, size)(cost, model)
    np.testing.assert_allclose(largest, values[:-4:-1], atol=1e-12 * scale)
    least = obs.HessianEigenvalues(3, size, least=True)(cost, model)
    np.testing.assert_allclose(least, values[:3], atol=1e-12 * scale)
    assert values[0] < 0 < values[-1]
    assert float(obs.sharpness(cost, model)) == pytest.approx(values[-1], rel=1e-9)
    assert float(obs.HessianEigenvalues(num_products=2)(cost, model)[0]) <= values[-1]


@pytest.mark.parametrize("case", CASES)
def test_kernel_observables_against_the_dense_kernel(case):
    cost, model, _, outputs = CASES[case]()

    def kernel(model):
        theta, back = model_problems.vector(model)
        jacobian = np.asarray(jax.jacobian(lambda at: outputs(back(at)).ravel())(theta))
        return jacobian @ jacobian.T

    here = kernel(model)
    values = np.linalg.eigvalsh(here)[::-1]
    found = obs.KernelEigenvalues(4)(cost, model)
    np.testing.assert_allclose(found, values[:4], atol=1e-12 * values[0])

    other = jax.tree.map(lambda x: 0.5 * x + 0.1 if isinstance(x, jax.Array) else x, model)
    there = kernel(other)
    cosine = np.sum(here * there) / (np.linalg.norm(here) * np.linalg.norm(there))
    assert float(obs.KernelDistance(other)(cost, model)) == pytest.approx(1 - cosine, abs=1e-13)
    assert 1e-3 < 1 - cosine < 1
    assert float(obs.KernelDistance(model)(cost, model)) == pytest.approx(0, abs=1e-14)


def test_observables_inside_a_run_are_those_of_its_models():
    objective, model, *_ = model_and_objective()
    chosen = {
        "top": obs.HessianEigenvalues(2, 17),
        "sharpness": obs.sharpness,
        "kernel": obs.KernelEigenvalues(2),
        "moved": obs.KernelDistance(model),
    }
    run = sf.gradient_flow(
        objective, model, save_at=[0.0, 5.0], observables=chosen, save_networks=True, progress=False
    )
    for name, observable in chosen.items():
        expected = observable(objective, run.model)
        np.testing.assert_allclose(run.observables[name][-1], expected, rtol=1e-7, atol=1e-12)
    assert run.observables["moved"][0] == pytest.approx(0, abs=1e-14)
    assert run.observables["moved"][-1] > 1e-3


@pytest.mark.parametrize("name", ["layer_singular_values", "alignment", "ntk_rate"])
def test_observables_of_networks_refuse_models(name):
    objective, model, *_ = model_and_objective()
    message = rf"`observables \({name}\)` must fit the model, but got 'MLP'. It is defined for deep linear networks."
    with pytest.raises(ValueError, match=message):
        obs.REGISTRY[name](objective, model)
    with pytest.raises(ValueError, match=message):
        sf.gradient_flow(objective, model, t1=1.0, observables=[name], progress=False)
    # a network has them, with a cost
    cost, network, *_ = network_and_cost()
    assert np.all(np.isfinite(obs.REGISTRY[name](cost, network)))


def test_counts_and_products_are_checked():
    for observable in (obs.HessianEigenvalues, obs.KernelEigenvalues):
        with pytest.raises(ValueError, match=r"`count` must be an integer"):
            observable(0)
        with pytest.raises(ValueError, match=r"`num_products` must be .*It takes a product for each"):
            observable(4, num_products=3)
