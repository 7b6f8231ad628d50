import itertools

import jax
import jax.flatten_util
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.flow import observables as obs
from saddleflow.problem import geometry

KEY = jax.random.key(0)
COST = sf.MatrixCompletion.random(jax.random.key(0), shape=(4, 5), rank=2)
NETWORK = sf.gaussian(jax.random.key(1), depth=3, width=6, shape=(4, 5), variance=0.5)


def test_spectral_functions():
    values = np.array([[3.0, 0.05, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(obs.rank(values, 0.1), [1, 3, 0])
    np.testing.assert_allclose(obs.rank_gap(values, obs.rank(values, 0.1)), [60.0, np.inf, np.nan])
    assert obs.rank_gap(values[1, :2], np.array(1)) == 1.0
    np.testing.assert_allclose(obs.nuclear_norm(values), [3.05, 3.0, 0.0])
    np.testing.assert_allclose(obs.stable_rank(values), [1 + (0.05 / 3) ** 2, 3.0, 0.0])
    np.testing.assert_allclose(obs.effective_rank(values)[1:], [3.0, 0.0])
    assert 1.0 < obs.effective_rank(values)[0] < 1.1


def test_network_observables():
    values = {name: np.asarray(function(COST, NETWORK)) for name, function in obs.REGISTRY.items()}
    spectra = [np.linalg.svd(layer, compute_uv=False)[:4] for layer in NETWORK.layers]
    np.testing.assert_allclose(values["layer_singular_values"], spectra, rtol=1e-12)
    assert values["alignment"].shape == (2,)
    assert np.all(values["alignment"] <= 1 + 1e-12)
    assert values["parameter_norm"] ** 2 == pytest.approx(np.sum(values["layer_norms"] ** 2))
    matrix_gradient = np.linalg.norm(COST.gradient(NETWORK.end_to_end()))
    gradient = geometry.norm(sf.gradient(COST, NETWORK))
    assert float(values["ntk_rate"]) == pytest.approx(float(gradient) ** 2 / matrix_gradient**2, rel=1e-12)


def plain_products():
    """Singular values of all partial products by numpy: a dict from (first, last) layer."""
    layers = [np.asarray(layer) for layer in NETWORK.layers]
    ends = [(i, j) for i in range(3) for j in range(i, 3)]
    products = {(i, j): np.linalg.multi_dot([*layers[i : j + 1][::-1], np.eye(layers[i].shape[1])]) for i, j in ends}
    return {ends: np.linalg.svd(product, compute_uv=False)[:4] for ends, product in products.items()}


def test_inner_structure():
    values = np.asarray(jax.jit(obs.PartialProducts())(COST, NETWORK))
    assert values.shape == (3, 3, 4)
    for (first, last), expected in plain_products().items():
        np.testing.assert_allclose(values[first, last], expected, rtol=1e-11)
    assert np.isnan(values[np.tril_indices(3, -1)]).all()
    np.testing.assert_array_equal(obs.PartialProducts(2)(COST, NETWORK), values[..., :2])
    factors = [np.linalg.svd(layer) for layer in NETWORK.layers]
    expected = [[abs(low[0][:, i] @ up[2][i]) for i in range(3)] for low, up in itertools.pairwise(factors)]
    np.testing.assert_allclose(obs.Alignment(3)(COST, NETWORK), expected, rtol=1e-10)
    np.testing.assert_allclose(obs.Alignment()(COST, NETWORK)[:, 0], obs.alignment(COST, NETWORK), rtol=1e-12)


def test_ranks_and_distance_are_of_the_outputs():
    spectrum = np.linalg.svd(NETWORK.end_to_end(), compute_uv=False)
    objective = sf.Objective(COST, regulariser=sf.weight_decay(0.1))
    reference = np.ones((4, 5))
    for cost in (COST, objective):
        for name, function in (("stable_rank", obs.stable_rank), ("effective_rank", obs.effective_rank)):
            assert float(obs.REGISTRY[name](cost, NETWORK)) == pytest.approx(function(spectrum[None])[0], rel=1e-12)
        away = np.linalg.norm(np.asarray(NETWORK.end_to_end()) - reference)
        assert float(obs.Distance(reference.tolist())(cost, NETWORK)) == pytest.approx(away, rel=1e-12)
        assert float(obs.ntk_rate(cost, NETWORK)) == pytest.approx(float(obs.ntk_rate(COST, NETWORK)), rel=1e-12)


@pytest.mark.parametrize("name", ["measurements", "logistic", "entropy", "objective"])
def test_kernel_and_hessian_with_every_cost(name):
    draw = np.random.default_rng(0)
    inputs, one = draw.normal(size=(5, 7)), sf.DeepLinearNetwork([*NETWORK.layers[:2], NETWORK.layers[2][:1]])
    cost, network = {
        "measurements": lambda: (sf.LinearMeasurements.sensing(KEY, COST.target, num_measurements=9), NETWORK),
        "logistic": lambda: (sf.Logistic(np.sign(inputs[0]), inputs=inputs), one),
        "entropy": lambda: (sf.CrossEntropy([0, 1, 2, 3, 0, 1, 2], inputs=inputs), NETWORK),
        "objective": lambda: (sf.Objective(2 * COST, regulariser=sf.weight_decay(0.1)), NETWORK),
    }[name]()
    theta, back = jax.flatten_util.ravel_pytree(network)
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda at: back(at).end_to_end().ravel()))(theta))
    loss = cost if name == "objective" else lambda network: cost(network.end_to_end())
    hessian = np.asarray(jax.jit(jax.hessian(lambda at: loss(back(at))))(theta))
    kernel = obs.KernelMatrix()(cost, network)
    np.testing.assert_allclose(kernel, jacobian @ jacobian.T, rtol=1e-9, atol=1e-11)
    largest = np.linalg.eigvalsh(kernel)[::-1]
    np.testing.assert_allclose(obs.KernelEigenvalues(2)(cost, network), largest[:2], rtol=1e-8)
    expected = np.linalg.eigvalsh(hessian)[::-1]
    np.testing.assert_allclose(obs.HessianEigenvalues(2, len(theta))(cost, network), expected[:2], rtol=1e-7)
    assert float(obs.KernelDistance(network)(cost, network)) == pytest.approx(0, abs=1e-12)


BAD = {
    "many outputs": (lambda: obs.KernelMatrix(10)(COST, NETWORK), r"have at most 10 outputs, but got 20.*most=20"),
    "no outputs": (lambda: obs.KernelMatrix(0), "`most` must be an integer >= 1"),
    "no vectors": (lambda: obs.Alignment(0), "`count` must be an integer >= 1"),
    "many vectors": (lambda: obs.Alignment(5)(COST, NETWORK), "`count` must be at most 4"),
    "no values": (lambda: obs.PartialProducts(0), "`count` must be an integer >= 1"),
    "many values": (lambda: obs.PartialProducts(5)(COST, NETWORK), "`count` must be at most 4"),
    "a model": (lambda: obs.PartialProducts()(COST, {"w": 1.0}), r"PartialProducts.* must fit the model.*'dict'"),
    "a vector": (lambda: obs.Distance([1.0]), "`reference` must be a matrix"),
    "nan": (lambda: obs.Distance([[np.nan]]), "`reference` must be finite"),
    "another shape": (lambda: obs.Distance([[1.0]])(COST, NETWORK), r"`reference` must have the shape \(4, 5\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_alignment_of_a_balanced_network_is_one():
    balanced = sf.balanced(COST.target, depth=3, width=6)
    np.testing.assert_allclose(obs.alignment(COST, balanced), 1.0, atol=1e-10)


def test_registering_ones_own():
    @obs.register
    def first_entry(cost, network):
        return network.layers[0][0, 0]

    try:
        assert obs.resolve(["first_entry"]) == {"first_entry": first_entry}
        with pytest.raises(ValueError, match="have a new name"):
            obs.register(first_entry)
    finally:
        del obs.REGISTRY["first_entry"]


def test_a_singular_value_that_runs_away_does_not_hide_the_others():
    values = np.array([[0.0, 0.0], [5.0, 0.0], [10.0, 4.0], [1e5, 4.0]])
    tolerance = obs.default_rank_tolerance(values, np.array([10.0, 9.0, 3.0, 0.0]))
    assert tolerance == pytest.approx(0.1)
    assert obs.rank(values, tolerance).tolist() == [0, 1, 2, 2]
    assert obs.default_rank_tolerance(values[:1], np.array([np.nan])) == 0.0
