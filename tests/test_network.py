import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf

KEY = jax.random.key(0)


@pytest.mark.parametrize(("depth", "width", "shape"), [(2, 3, (4, 5)), (4, (7, 3, 5), (2, 6)), (3, 4, (6, 2))])
def test_end_to_end_is_the_product(depth, width, shape):
    network = sf.gaussian(KEY, depth=depth, width=width, shape=shape, variance=0.3)
    product = np.eye(shape[1])
    for layer in network.layers:
        product = np.asarray(layer) @ product
    np.testing.assert_allclose(network.end_to_end(), product, rtol=1e-12)
    assert network.shape == shape
    assert network.depth == depth
    assert network.width == width
    assert network.num_parameters == sum(layer.size for layer in network.layers)


def test_gamma_is_a_variance_and_a_scale():
    by_gamma = sf.gaussian(KEY, depth=3, width=50, shape=(4, 4), gamma=1.5)
    by_variance = sf.gaussian(KEY, depth=3, width=50, shape=(4, 4), variance=50**-1.5)
    mean_field = sf.gaussian(KEY, depth=3, width=50, shape=(4, 4), gamma=1.0)
    scaled = 50**-0.25 * mean_field
    for a, b, c in zip(by_gamma.layers, by_variance.layers, scaled.layers, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
        np.testing.assert_allclose(a, c, rtol=1e-12)
    assert float(jnp.var(by_gamma.layers[1])) == pytest.approx(50**-1.5, rel=0.1)


def test_vmap_over_seeds_and_gammas():
    keys = jax.random.split(KEY, 3)
    gammas = jnp.array([1.0, 1.5, 2.0])
    batch = jax.vmap(lambda k, g: sf.gaussian(k, depth=3, width=5, shape=(2, 3), gamma=g))(keys, gammas)
    assert batch.layers[1].shape == (3, 5, 5)
    assert batch.width == 5
    lone = sf.gaussian(keys[1], depth=3, width=5, shape=(2, 3), gamma=1.5)
    np.testing.assert_allclose(batch.end_to_end()[1], lone.end_to_end(), rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, -2.0, np.float64(0.5), jnp.asarray(0.5), 3])
def test_alpha_scales_every_layer(alpha):
    network = sf.gaussian(KEY, depth=3, width=4, shape=(2, 2), gamma=1.0)
    scaled = alpha * network
    for before, after in zip(network.layers, scaled.layers, strict=True):
        np.testing.assert_allclose(after, float(alpha) * before, rtol=1e-15)


@pytest.mark.parametrize(("shape", "depth", "width"), [((4, 6), 2, 4), ((5, 3), 4, 7), ((3, 3), 3, (3, 5))])
def test_balanced_factorises_with_least_norm(shape, depth, width):
    matrix = jax.random.normal(KEY, shape)
    network = sf.balanced(matrix, depth=depth, width=width)
    np.testing.assert_allclose(network.end_to_end(), matrix, atol=1e-13)
    squared = sum(float(jnp.sum(layer**2)) for layer in network.layers)
    singular_values = np.linalg.svd(matrix, compute_uv=False)
    assert squared == pytest.approx(depth * np.sum(singular_values ** (2 / depth)), rel=1e-12)
    for conserved in sf.balancedness(network):
        np.testing.assert_allclose(conserved, 0, atol=1e-13)


def test_balanced_in_a_width_below_the_shape():
    matrix = jnp.outer(jnp.arange(1.0, 5), jnp.arange(1.0, 4))
    np.testing.assert_allclose(sf.balanced(matrix, depth=3, width=1).end_to_end(), matrix, atol=1e-13)


def test_balanced_of_a_deficient_matrix_has_its_rank():
    network = sf.balanced(jnp.outer(jnp.arange(1.0, 5), jnp.arange(1.0, 4)), depth=4, width=3)
    for layer in network.layers:
        assert np.linalg.matrix_rank(layer, tol=1e-12) == 1


OK = {"depth": 3, "width": 4, "shape": (2, 2), "gamma": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "`depth` must be an integer >= 1, but got 0"),
        ({"width": 0}, "`width` must be an integer >= 1, but got 0"),
        ({"width": (3, 4, 5), "gamma": None, "variance": 1.0}, "`width` must be one integer or 2 of them"),
        ({"width": (3, 4)}, "`gamma` must come with one common hidden width"),
        ({"shape": (0, 2)}, "`shape` must be an integer >= 1"),
        ({"gamma": float("nan")}, "`gamma` must be finite"),
        ({"gamma": float("inf")}, "`gamma` must be finite"),
        ({"gamma": -1.0}, "`gamma` must not be negative"),
        ({"gamma": None, "variance": -1.0}, "`variance` must be finite and positive"),
        ({"gamma": None, "variance": float("nan")}, "`variance` must be finite and positive"),
        ({"variance": 1.0}, "one and not both"),
        ({"gamma": None}, "one and not both"),
    ],
)
def test_bad_gaussian(change, message):
    with pytest.raises(ValueError, match=message):
        sf.gaussian(KEY, **(OK | change))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one matrix"),
        ([jnp.ones((3, 2)), jnp.ones((2, 2))], r"`layers\[1\]` must have 3 columns"),
        ([jnp.ones((2, 2)), jnp.ones((2, 2), "float32")], r"`layers\[1\]` must hold float64.*float32.*astype"),
        ([jnp.ones((2, 2), int), jnp.ones((2, 2))], r"`layers\[0\]` must hold float64"),
        ([jnp.ones(2), jnp.ones((2, 2))], r"`layers\[0\]` must be a matrix"),
    ],
)
def test_bad_layers(layers, message):
    with pytest.raises(ValueError, match=message):
        sf.DeepLinearNetwork(layers)


@pytest.mark.parametrize("alpha", [0.0, float("nan"), float("inf")])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="`alpha` must be finite and nonzero"):
        alpha * sf.gaussian(KEY, **OK)


def test_bad_balanced():
    with pytest.raises(ValueError, match="`width` must be at least the rank of the matrix, 3"):
        sf.balanced(jnp.eye(3), depth=2, width=2)
    with pytest.raises(ValueError, match="`matrix` must be finite"):
        sf.balanced(jnp.full((2, 2), jnp.nan), depth=2, width=2)
