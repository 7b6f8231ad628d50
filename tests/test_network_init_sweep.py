"""Sweeps of networks from starts of any law, from pairs of values, and from starts that fulfil a condition."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf

COST = sf.MatrixCompletion.random(jax.random.key(0), shape=(4, 3), rank=1)
FAST = {"t1": 2.0, "save_at": [0.0, 1.0, 2.0], "progress": False}
SIZES: dict[str, Any] = {"depth": 3, "width": 4}


def flow(start, **options):
    return sf.gradient_flow(COST, start, rtol=1e-4, t1=2.0, save_at=[0.0, 1.0, 2.0], progress=False, **options)


def test_a_start_of_the_library_is_a_sweep():
    data = sf.sweep(COST, init=sf.orthogonal, **SIZES, scale=[0.1, 0.5], seed=[0, 1], save_matrices=True, **FAST)
    assert data.end_to_end.dims == ("scale", "seed", "time", "n_out", "n_in")
    start = sf.orthogonal(jax.random.key(1), **SIZES, shape=COST.shape, scale=0.5)
    alone = flow(start)
    there = data.sel(scale=0.5, seed=1)
    np.testing.assert_allclose(there.end_to_end, alone.end_to_end, atol=2e-3)
    np.testing.assert_array_equal(there["rank"], alone.rank)
    assert float(there.balancedness_drift) < 1e-3


@pytest.mark.slow
def test_depths_from_one_on_and_users_own_starts():
    def make(key, depth, size):
        return size * sf.gaussian(key, depth=depth, width=4, shape=COST.shape, variance=1.0)

    data = sf.sweep(COST, init=make, depth=[1, 2, 3], size=0.3, **FAST)
    plain = sf.sweep(COST, depth=[1, 2, 3], width=4, variance=1.0, alpha=0.3, **FAST)
    np.testing.assert_allclose(data.train_cost, plain.train_cost, rtol=2e-3)
    assert json.loads(data.attrs["configuration"])["init"].endswith("make")


def test_a_start_that_is_not_finite_ends_its_own_lane():
    def make(key, broken):
        return (np.nan if broken else 1.0) * sf.gaussian(key, **SIZES, shape=COST.shape, variance=0.1)

    def scaled(key, broken):
        layers = sf.gaussian(key, **SIZES, shape=COST.shape, variance=0.1).layers
        return sf.DeepLinearNetwork([np.nan * np.asarray(layers[0]) if broken else layers[0], *layers[1:]])

    data = sf.sweep(COST, init=scaled, broken=[0, 1], **FAST)
    assert data.stop_reason.values.tolist() == ["t1", "non_finite"]
    with pytest.raises(ValueError, match="`alpha` must be finite"):  # what init refuses is named
        sf.sweep(COST, init=make, broken=[0, 1], **FAST)


@pytest.mark.slow
def test_the_variance_is_a_dim():
    data = sf.sweep(COST, depth=3, width=[3, 5], variance=[0.01, 0.1], **FAST)
    assert data.train_cost.dims == ("variance", "width", "time")
    by_gamma = sf.sweep(COST, depth=3, width=5, gamma=-np.log(0.1) / np.log(5.0), **FAST)
    np.testing.assert_allclose(data.train_cost.sel(variance=0.1, width=5), by_gamma.train_cost, rtol=2e-3)


class TestTogether:
    """Dims in pairs."""

    def test_pairs_are_lanes_of_the_product(self):
        paired = sf.sweep(
            COST,
            depth=2,
            width=[3, 5, 8],
            variance=[0.3, 0.1, 0.1],
            seed=[0, 1],
            together=("width", "variance"),
            **FAST,
        )
        assert paired.train_cost.dims == ("width", "seed", "time")
        np.testing.assert_array_equal(paired.variance, [0.3, 0.1, 0.1])
        whole = sf.sweep(COST, depth=2, width=[3, 5, 8], variance=[0.3, 0.1], seed=[0, 1], **FAST)
        for width, variance in [(3, 0.3), (5, 0.1), (8, 0.1)]:
            here, there = paired.sel(width=width), whole.sel(width=width, variance=variance)
            np.testing.assert_array_equal(here.train_cost, there.train_cost)

    def test_costs_with_seeds_and_arguments_of_init(self, tmp_path):
        costs = [sf.MatrixCompletion.random(jax.random.key(i), shape=(4, 3), rank=1) for i in range(2)]
        pairs = [("cost", "seed"), ("scale", "noise")]
        options = {"init": sf.identity, **SIZES, "scale": [0.1, 0.2, 0.3], "noise": [0.1, 0.2, 0.1], "seed": [4, 7]}
        data = sf.sweep(costs, **options, together=pairs, store=tmp_path / "store", **FAST)
        assert data.train_cost.dims == ("cost", "scale", "time")
        again = sf.sweep(costs, **options, together=pairs, store=tmp_path / "store", **FAST)
        assert data.identical(again)
        start = sf.identity(jax.random.key(7), **SIZES, shape=COST.shape, scale=0.2, noise=0.2)
        assert float(data.train_cost[1, 1, 0]) == pytest.approx(float(costs[1](start.end_to_end())), rel=1e-12)


class TestAccept:
    """Starts that fulfil a condition."""

    def test_starts_are_drawn_until_they_will_do(self):
        cost = sf.MatrixCompletion(jnp.asarray([[0.0, 1.0], [1.0, 0.0]]), np.array([[False, True], [True, True]]))

        def positive(network):
            return jnp.linalg.det(network.end_to_end()) > 0

        options = {"init": sf.gaussian, "depth": 2, "width": 2, "variance": 0.01, "save_matrices": True, **FAST}
        data = sf.sweep(cost, seed=range(12), accept=positive, **options)
        assert (np.linalg.det(data.end_to_end.isel(time=0)) > 0).all()
        draws = data.num_draws.values
        assert draws.min() == 1
        assert 1.2 < draws.mean() < 3.5  # half of the draws will do: two on average, .4 the standard deviation here
        free = sf.sweep(cost, seed=range(12), **options)
        same = draws == 1
        np.testing.assert_array_equal(data.end_to_end.values[same], free.end_to_end.values[same])
        assert not np.array_equal(data.end_to_end.values[~same], free.end_to_end.values[~same])

    @pytest.mark.slow
    def test_one_that_nothing_fulfils_is_named(self):
        with pytest.raises(ValueError, match="`accept` must take one of 1000 draws of a start at least"):
            sf.sweep(COST, init=sf.identity, **SIZES, accept=lambda network: False, **FAST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init": lambda key: jnp.ones(3)}, "`init` must return a deep linear network where the cost is one of mat"),
        (
            {"init": sf.orthogonal, "width": 4},
            "`init` must be given all its arguments by sweep, but got",
        ),
        ({"init": sf.orthogonal, **SIZES, "shape": (2, 2)}, "`shape` must be left out: it is the cost's"),
        ({"init": sf.orthogonal, **SIZES, "gamma": 1.0}, "`gamma` must be an argument of init where that is given"),
        ({"init": sf.orthogonal, **SIZES, "trainable": lambda x: True}, "`trainable` must come with an objective"),
        ({"init": sf.orthogonal, **SIZES, "reduce_width": "auto"}, "`reduce_width` must be left out where init is"),
        ({**SIZES, "accept": lambda network: True}, "`accept` must come with init"),
        ({"init": sf.orthogonal, **SIZES, "accept": 3}, r"`accept` must be a function \(start\), but got 3"),
        ({**SIZES, "gamma": 1.0, "variance": 0.1}, "`gamma, variance` must be given one and not both"),
        ({**SIZES, "variance": -0.1}, "`variance` must be finite and positive"),
        ({**SIZES, "seed": [0, 1], "together": "seed"}, "`together` must be two names of dims or more"),
        ({**SIZES, "seed": [0, 1], "together": ("seed",)}, "`together` must be two names of dims or more"),
        (
            {**SIZES, "seed": [0, 1], "together": ("seed", "width")},
            "`together` must name dims: seed, but got",
        ),
        (
            {"depth": 2, "width": [2, 3, 4], "seed": [0, 1], "together": ("seed", "width")},
            "`together` must name dims of one length, but got {'seed': 2, 'width': 3}",
        ),
        (
            {"depth": 2, "width": [2, 2], "seed": [1, 1], "together": ("seed", "width")},
            r"`together` must make each combination once, but got \[\(1, 2\), \(1, 2\)\]",
        ),
    ],
)
def test_bad_sweeps(change, message):
    with pytest.raises(ValueError, match=message):
        sf.sweep(COST, **change, **FAST)
