import jax
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.flow import observables as obs
from saddleflow.problem import geometry

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
