"""Starts against their laws and invariants, flows from them against exact solutions; networks of a single layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import saddleflow as sf
from saddleflow import theory

KEY = jax.random.key(0)
SHAPE = (5, 4)


def spectra(network):
    return [np.linalg.svd(layer, compute_uv=False) for layer in network.layers]


class TestLaws:
    """Moments and distributions of random starts."""

    @pytest.mark.parametrize("start", [sf.gaussian, sf.uniform])
    def test_fan_in_and_layer_scales(self, start):
        network = start(KEY, depth=3, width=(300, 200), shape=(150, 400), fan_in=2.0, layer_scales=[1.0, 3, 0.5])
        for layer, below, factor in zip(network.layers, (400, 300, 200), (1.0, 3.0, 0.5), strict=True):
            assert float(jnp.var(layer)) == pytest.approx(2.0 / below * factor**2, rel=0.03)
            assert abs(float(jnp.mean(layer))) < 4 * np.sqrt(2.0 / below * factor**2 / layer.size)

    def test_uniform_is_uniform(self):
        layer = np.asarray(sf.uniform(KEY, depth=2, width=100, shape=(100, 100), variance=3.0).layers[0])
        assert np.abs(layer).max() <= 3.0
        assert scipy.stats.kstest(layer.ravel(), scipy.stats.uniform(-3, 6).cdf).pvalue > 0.01

    def test_a_seed_is_one_start_up_to_its_scale(self):
        one, other = (sf.uniform(KEY, depth=2, width=6, shape=SHAPE, gamma=g) for g in (1.0, 2.0))
        for a, b in zip(one.layers, other.layers, strict=True):
            np.testing.assert_allclose(np.sqrt(6.0) * b, a, rtol=1e-12)

    def test_orthogonal_layers(self):
        network = sf.orthogonal(KEY, depth=3, width=8, shape=SHAPE, scale=0.3, layer_scales=[1.0, 2.0, 1.0])
        for values, size in zip(spectra(network), (0.3, 0.6, 0.3), strict=True):
            np.testing.assert_allclose(values, size, rtol=1e-12)

    def test_orthogonal_layers_are_haar(self):
        """Entries of a Haar matrix of size n have mean 0, variance 1/n and fourth moment 3 / (n (n + 2))."""
        draws = np.stack([sf.orthogonal(jax.random.key(i), depth=1, shape=(3, 3)).layers[0] for i in range(600)])
        for moment, expected in [(1, 0.0), (2, 1 / 3), (4, 3 / 15)]:
            found = np.mean(draws**moment, axis=0)
            assert np.abs(found - expected).max() < 4 * 0.6 / np.sqrt(600), moment
        assert abs(np.mean(np.linalg.det(draws))) < 4 / np.sqrt(600)

    def test_identity_with_noise(self):
        network = sf.identity(KEY, depth=2, width=60, shape=(50, 40), scale=0.1, noise=0.5)
        for layer in network.layers:
            noise = np.asarray(layer) / 0.1 - np.eye(layer.shape[0], layer.shape[1])
            assert np.std(noise) == pytest.approx(0.5, rel=0.05)
        exact = sf.identity(depth=3, width=6, shape=SHAPE, scale=0.1)
        np.testing.assert_allclose(exact.end_to_end(), 1e-3 * np.eye(*SHAPE), rtol=1e-15)

    @pytest.mark.parametrize("start", [sf.gaussian, sf.uniform, sf.orthogonal, sf.identity])
    def test_under_vmap(self, start):
        arguments = {"depth": 3, "width": 6, "shape": SHAPE}
        arguments |= {"variance": 0.5} if start in (sf.gaussian, sf.uniform) else {"scale": 0.5}
        keys = jax.random.split(KEY, 2)
        batch = jax.jit(jax.vmap(lambda key: start(key, **arguments)))(keys)
        for there, here in zip(batch.layers, start(keys[1], **arguments).layers, strict=True):
            np.testing.assert_allclose(there[1], here, atol=1e-14)


class TestImbalance:
    """Balanced starts with an imbalance."""

    @pytest.mark.parametrize(
        ("depth", "width", "shape", "imbalance"),
        [
            (2, 3, (5, 4), 7.0),
            (2, 4, (5, 4), -50.0),
            (2, 5, (5, 4), 1e-9),
            (3, 3, (4, 4), [1.0, -3.0]),
            (3, 6, (4, 4), [1.0, -1.0]),
            (4, 2, (6, 5), [-2.0, 5.0, 0.1]),
            (5, 3, (3, 3), 1e3),
        ],
    )
    @pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
    def test_matrix_and_imbalance_are_as_asked(self, depth, width, shape, imbalance, size):
        rng = np.random.default_rng(1)
        matrix = size * rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1]))
        network = sf.balanced(matrix, depth=depth, width=width, imbalance=imbalance)
        np.testing.assert_allclose(network.end_to_end(), matrix, atol=1e-12 * size)
        largest = max(float(jnp.sum(layer**2)) for layer in network.layers)
        for found, wanted in zip(sf.balancedness(network), np.broadcast_to(imbalance, (depth - 1,)), strict=True):
            np.testing.assert_allclose(found, wanted * np.eye(len(found)), atol=1e-14 * largest)

    @pytest.mark.parametrize("imbalance", [-50.0, -1.0, 0.0, 1.0, 50.0])
    def test_against_the_riccati_solution(self, imbalance):
        rng = np.random.default_rng(2)
        target = rng.normal(size=(4, 4))
        start = sf.balanced(1e-2 * rng.normal(size=(4, 4)), depth=2, width=4, imbalance=imbalance)
        cost = sf.MeanSquaredError.teacher(target)
        times = np.geomspace(0.01, 8, 12)
        first, second = map(np.asarray, start.layers)
        exact = theory.riccati_flow(2 * times, first, second, target).end_to_end
        for rtol in (1e-4, 1e-8):
            found = sf.gradient_flow(cost, start, rtol=rtol, save_at=times, progress=False).end_to_end
            assert np.abs(found - exact).max() <= 10 * rtol * np.abs(target).max()

    def test_aligned_modes_evolve_on_their_own(self):
        rng = np.random.default_rng(3)
        target = rng.normal(size=(4, 3))
        start = sf.aligned(target, values=[0.3, 0.2, 0.1], depth=3, width=5)
        u, strengths, vh = np.linalg.svd(target, full_matrices=False)
        times = np.linspace(0.2, 3, 6)
        run = sf.gradient_flow(sf.MeanSquaredError.teacher(target), start, rtol=1e-8, save_at=times, progress=False)
        modes = np.stack(
            [
                theory.deep_mode(np.concatenate([[0.0], 2 * times]), s, a, 3)[1:]
                for s, a in zip(strengths, (0.3, 0.2, 0.1), strict=True)
            ]
        )
        exact = np.einsum("ik,kt,kj->tij", u, modes, vh)
        assert np.abs(run.end_to_end - exact).max() <= 1e-7 * strengths[0]


class TestSingleLayer:
    """Depth 1: A itself moves, and every cost is convex."""

    def test_against_the_exact_solution(self):
        cost = sf.MatrixCompletion.random(KEY)
        start = sf.gaussian(KEY, depth=1, shape=cost.shape, variance=0.01)
        times = np.array([0.5, 5.0, 50.0, 500.0])
        run = sf.gradient_flow(cost, start, rtol=1e-8, save_at=times, save_networks=True, progress=False)
        matrix, decay = np.asarray(start.layers[0]), np.exp(-2 * times / 80)[:, None, None]
        exact = np.where(cost.observed, cost.target + (matrix - cost.target) * decay, matrix)
        assert np.abs(run.end_to_end - exact).max() <= 1e-7 * np.abs(exact).max()
        assert run.networks is not None
        np.testing.assert_array_equal(run.networks.layers[0], run.end_to_end)

    def test_card_ends_and_saddles(self, tmp_path):
        cost = sf.MatrixCompletion.random(KEY)
        start = sf.identity(depth=1, shape=cost.shape, scale=1e-9)
        names = ["layer_singular_values", "alignment", "ntk_rate"]
        run = sf.gradient_flow(cost, start, reduce_width="auto", observables=names, progress=False)
        assert run.observables["alignment"].shape == (len(run.time), 0)
        assert run.stop_reason == "converged"
        assert run.saddles() == []
        assert "depth 1, 100 parameters" in repr(run)
        run.save(tmp_path / "run.nc")
        np.testing.assert_array_equal(sf.load(tmp_path / "run.nc").end_to_end, run.end_to_end)

    @pytest.mark.parametrize("samples", [3, 40])
    def test_regression_ends_at_the_least_squares_solution(self, samples):
        rng = np.random.default_rng(0)
        inputs, outputs = rng.normal(size=(6, samples)), rng.normal(size=(2, samples))
        cost = sf.MeanSquaredError(jnp.asarray(inputs), jnp.asarray(outputs))
        start = sf.DeepLinearNetwork([jnp.zeros((2, 6))])
        run = sf.gradient_flow(cost, start, gradient_tolerance=1e-10, progress=False)
        solution = np.linalg.lstsq(inputs.T, outputs.T, rcond=None)[0].T
        np.testing.assert_allclose(run.end_to_end[-1], solution, atol=1e-8)

    def test_as_a_pure_function_and_with_other_solvers(self):
        import diffrax

        cost = sf.MatrixCompletion.random(KEY)
        start = sf.gaussian(KEY, depth=1, shape=cost.shape, variance=1.0)
        ends = [
            sf.integrate(cost, start, t1=0.5, solver=solver).network.layers[0] for solver in (None, diffrax.Tsit5())
        ]
        np.testing.assert_allclose(ends[0], ends[1], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sf.gaussian(KEY, depth=0, shape=SHAPE, variance=1.0), "`depth` must be an integer >= 1, but got 0"),
        (lambda: sf.gaussian(KEY, depth=1, shape=SHAPE, gamma=1.0), "`gamma` must come with one common hidden width"),
        (lambda: sf.gaussian(KEY, depth=2, shape=SHAPE, variance=1.0), "`width` must be given for two layers"),
        (lambda: sf.gaussian(KEY, depth=1, shape=SHAPE, fan_in=-1.0), "`fan_in` must be finite and positive"),
        (lambda: sf.uniform(KEY, depth=1, shape=SHAPE, fan_in=1.0, variance=1.0), "`fan_in` must not be given tog"),
        (
            lambda: sf.uniform(KEY, depth=1, shape=SHAPE, fan_in=1.0, layer_scales=[1.0, 1.0]),
            "`layer_scales` must hold 1 numbers, one per layer",
        ),
        (lambda: sf.orthogonal(KEY, depth=1, shape=SHAPE, scale=0.0), "`scale` must be finite and positive"),
        (
            lambda: sf.orthogonal(KEY, depth=1, shape=SHAPE, layer_scales=[-1.0]),
            r"`layer_scales\[0\]` must be finite and positive",
        ),
        (lambda: sf.identity(depth=1, shape=SHAPE, noise=0.1), "`key` must be given where there is noise"),
        (lambda: sf.identity(KEY, depth=1, shape=SHAPE, noise=-0.1), "`noise` must be finite and not negative"),
        (lambda: sf.balanced(np.eye(4), depth=2, width=5, imbalance=1.0), "`imbalance` must be possible with a hidd"),
        (lambda: sf.balanced(np.eye(4), depth=3, width=3, imbalance=[1.0]), "`imbalance` must be one number or 2 of"),
        (lambda: sf.balanced(np.ones((4, 6)), depth=2, width=5, imbalance=1.0), "Take width <= n_out, or negative"),
        (lambda: sf.balanced(np.eye(4), depth=3, width=(4, 5), imbalance=1.0), "`width` must be one number where"),
        (lambda: sf.balanced(np.eye(4), depth=2, width=4, imbalance=np.nan), "`imbalance` must be finite"),
        (lambda: sf.aligned(np.eye(4), values=[1.0, 2.0], depth=2, width=4), "`values` must be one number or 4"),
        (lambda: sf.aligned(np.eye(4), values=-1.0, depth=2, width=4), "`values` must not be negative"),
        (
            lambda: sf.reduce_width([np.eye(4)]),
            "`layers` must hold at least two matrices",
        ),
        (lambda: sf.reduce_width(sf.identity(depth=1, shape=SHAPE)), "`network` must have a hidden width to reduce"),
        (lambda: sf.sample_reduced(KEY, depth=1, width=3, shape=SHAPE, gamma=1.0), "`depth` must be an integer >= 2"),
    ],
)
def test_bad_starts(call, message):
    with pytest.raises(ValueError, match=message):
        call()
