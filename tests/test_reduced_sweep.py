"""Sweeps of reduced networks: the same lanes at a smaller width, and widths that no full network has."""

import json

import jax
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.sweeps import lanes

COST = sf.MatrixCompletion.random(jax.random.key(1), shape=(3, 3), rank=1, observed=0.75)
GRID = {"depth": 3, "gamma": [1.0, 1.5], "seed": [0, 1], "rtol": 1e-4, "t1": 20.0, "save_at": [0.0, 1.0, 5.0, 20.0]}


@pytest.fixture(scope="module")
def reduced():
    return sf.sweep(COST, width=[4, 40], **GRID, save_matrices=True, reduce_width="auto")


def test_reduced_lanes_are_the_full_ones(reduced):
    full = sf.sweep(COST, width=[4, 40], **GRID, save_matrices=True)
    assert (reduced.stop_reason == full.stop_reason).all()
    scale = np.abs(full.end_to_end).max()
    # ten times rtol of the reduction, and as much of the two solutions
    assert float(np.abs(reduced.end_to_end - full.end_to_end).max()) < 3e-3 * scale
    # at the start nothing is lost, but the programs differ: a hundredth of rtol is far above rounding
    np.testing.assert_allclose(reduced.train_cost[..., 0], full.train_cost[..., 0], rtol=1e-6)
    # too narrow to gain: the full program, nothing cut
    np.testing.assert_array_equal(reduced.train_cost.sel(width=4), full.train_cost.sel(width=4))
    assert (reduced.reduction_error_estimate.sel(width=4) == 0).all()
    estimate = reduced.reduction_error_estimate.sel(width=40)
    assert bool(((estimate >= 0) & (estimate <= 1e-3 * scale)).all())
    assert json.loads(reduced.attrs["configuration"])["reduce_width"] == "auto"


@pytest.mark.slow
def test_few_samples_take_few_directions():
    """Two samples in 30 dimensions: lanes of width 20 are reduced, below n_in + n_out; two layers exactly."""
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((30, 2))
    cost = sf.MeanSquaredError(inputs, generator.standard_normal((2, 30)) @ inputs)
    grid = {"depth": 2, "width": 20, "seed": [0, 1], "rtol": 1e-4, "t1": 5.0, "save_at": [0.0, 1.0, 5.0]}
    full = sf.sweep(cost, **grid, save_matrices=True)
    reduced = sf.sweep(cost, **grid, save_matrices=True, reduce_width="auto")
    assert (reduced.reduction_error_estimate == 0).all()
    assert (reduced.num_accepted_steps > 0).all()
    scale = np.abs(full.end_to_end).max()
    assert float(np.abs(reduced.end_to_end - full.end_to_end).max()) < 2e-3 * scale
    np.testing.assert_allclose(reduced.end_to_end[:, 0], full.end_to_end[:, 0], atol=1e-12)
    drawn = sf.sweep(cost, **grid, reduce_width="sample")
    assert (drawn.reduction_error_estimate == 0).all()
    assert drawn.train_cost[:, -1].max() < full.train_cost[:, 0].min()


def test_a_width_beyond_memory_is_drawn_in_law():
    data = sf.sweep(COST, depth=3, width=10**9, gamma=1.5, seed=[0, 1], t1=1e6, rtol=1e-3, reduce_width="sample")
    assert data.train_cost.dims == ("seed", "sample")
    assert np.isfinite(data.train_cost).all()
    assert (data.reduction_error_estimate < 10 * 1e-3 * data.singular_values.max()).all()
    with pytest.raises(ValueError, match="`width` must fit the memory"):
        sf.sweep(COST, depth=3, width=10**9, gamma=1.5, seed=0, t1=1.0)


def test_what_does_not_fit_is_refused_before_anything_is_computed(monkeypatch):
    def begun(*arguments):
        raise AssertionError("a lane was begun")

    monkeypatch.setattr(lanes, "begin", begun)
    with pytest.raises(ValueError, match="a lane at width 1000000, whole and reduced"):
        sf.sweep(COST, depth=3, width=[4, 10**6], t1=1.0, reduce_width="auto")


def test_a_lane_out_of_range_is_flagged_and_stops_nobody():
    data = sf.sweep(COST, depth=3, width=40, alpha=[1e120, 1.0], seed=0, t1=5.0, rtol=1e-3, reduce_width="auto")
    assert data.stop_reason.values.tolist() == ["non_finite", "t1"]
    assert float(data.reduction_error_estimate[0]) == np.inf
    assert np.isfinite(data.train_cost[1]).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`reduce_width` must be None or one of"):
        sf.sweep(COST, depth=3, width=40, reduce_width="always")
    with pytest.raises(ValueError, match="GB are free"):
        sf.sweep(COST, depth=3, width=10**6, reduce_width="auto")
