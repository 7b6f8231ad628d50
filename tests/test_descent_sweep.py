"""Sweeps of discrete training: each lane is what `gradient_descent` returns."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import saddleflow as sf

COST = sf.MatrixCompletion.random(jax.random.key(0), shape=(4, 3), rank=1)
OPTIONS = {"method": optax.sgd, "num_steps": 60, "max_saves": 7, "progress": False}
LAW: dict[str, Any] = {"depth": 2, "width": 4}


def momentum(rate):
    return optax.sgd(rate, momentum=0.5)


def test_rates_batches_and_seeds(tmp_path):
    grid = {"learning_rate": [0.05, 0.2], "batch_size": [None, 5], "batch_seed": [0, 1]}
    options = {"gamma": [1.0, 1.5], "seed": 3, "save_matrices": True, "store": tmp_path / "store"}
    data = sf.sweep(COST, **LAW, **grid, **options, **OPTIONS)
    assert data.train_cost.dims == ("gamma", "learning_rate", "batch_size", "batch_seed", "sample")
    np.testing.assert_array_equal(data.batch_size, [0, 5])
    start = sf.gaussian(jax.random.key(3), **LAW, shape=COST.shape, gamma=1.5)
    for size, key in [(None, None), (5, jax.random.key(1))]:
        run = sf.gradient_descent(
            COST, start, optax.sgd(0.2), num_steps=60, batch_size=size, key=key, max_saves=7, progress=False
        )
        lane = data.sel(gamma=1.5, learning_rate=0.2, batch_size=size or 0, batch_seed=1)
        np.testing.assert_allclose(lane.end_to_end, run.end_to_end, rtol=1e-12)
        np.testing.assert_allclose(lane.time, run.time)
        assert float(lane.end_time) == pytest.approx(12.0)
    assert (data.stop_reason == "num_steps").all()
    assert data.time.attrs["units"] == "learning rate times steps"
    described = json.loads(data.attrs["configuration"])
    assert (described["method"], described["num_steps"]) == ("sgd", 60)
    again = sf.sweep(COST, **LAW, **grid, **options, **OPTIONS)
    assert data.identical(again)


def test_made_starts_and_other_optimisers():
    data = sf.sweep(
        COST, init=sf.identity, **LAW, scale=[0.1, 0.5], learning_rate=0.1, **OPTIONS | {"method": momentum}
    )
    run = sf.gradient_descent(
        COST,
        sf.identity(**LAW, shape=COST.shape, scale=0.5),
        momentum(0.1),
        learning_rate=0.1,
        num_steps=60,
        progress=False,
    )
    assert float(data.train_cost.sel(scale=0.5)[-1]) == pytest.approx(run.train_cost[-1], rel=1e-12)


def test_models_and_an_unstable_rate():
    objective = sf.Objective(sf.SquaredError(np.asarray([[1.0, -1.0]])), lambda model: model[0] * model[1])

    def make(key, size):
        return (jnp.full((1, 2), size), jnp.full((1, 2), size) + 0.1 * jax.random.normal(key, (1, 2)))

    data = sf.sweep(objective, init=make, size=0.5, seed=[0, 1], learning_rate=[0.1, 40.0], **OPTIONS)
    assert data.train_cost.dims == ("seed", "learning_rate", "sample")
    assert (data.stop_reason.sel(learning_rate=0.1) == "num_steps").all()
    assert (data.stop_reason.sel(learning_rate=40.0) == "unstable").all()
    assert (data.train_cost.sel(learning_rate=0.1)[:, -1] < data.train_cost.sel(learning_rate=0.1)[:, 0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "sgd"}, "`method` must be 'flow' or a function: learning rate -> optimiser, but got 'sgd'"),
        ({"method": optax.sgd(0.1)}, "`method` must be 'flow' or a function"),
        ({"num_steps": None}, "`num_steps` must be given with a method other than 'flow'"),
        ({"method": "flow"}, "`num_steps` must come with a method other than 'flow'"),
        ({"rtol": 1e-6}, "`rtol` must be left out: descents have num_steps and learning_rate"),
        ({"t1": 3.0}, "`t1` must be left out: descents have num_steps and learning_rate"),
        ({"reduce_width": "sample"}, "`reduce_width` must be left out"),
        ({"learning_rate": -1.0}, "`learning_rate` must be finite and positive"),
        ({"learning_rate": [0.1, 0.1]}, "`learning_rate` must hold each value once"),
        ({"batch_size": 2.5}, "`batch_size` must be an integer >= 0, but got 2.5"),
        ({"batch_size": 99}, "`batch_size` must be"),
        ({"batch_seed": -1}, "`batch_seed` must be an integer >= 0"),
    ],
)
def test_bad_descents(change, message):
    with pytest.raises(ValueError, match=message):
        sf.sweep(COST, **LAW, **OPTIONS | change)
