"""The same code on an accelerator; nothing here runs where there is none."""

import jax
import numpy as np
import pytest

import saddleflow as sf

pytestmark = pytest.mark.skipif(jax.default_backend() == "cpu", reason="no accelerator here")

COST = sf.MatrixCompletion.random(jax.random.key(1), shape=(4, 4), rank=2, observed=0.75)
RTOL = 1e-6
OPTIONS = {"depth": 3, "width": 6, "gamma": [1.0, 1.5], "save_at": np.array([0.0, 10.0, 100.0]), "rtol": RTOL}


@pytest.fixture(scope="module")
def data():
    return sf.sweep(COST, **OPTIONS, seed=range(6), save_matrices=True)


def test_lanes_are_those_of_a_cpu(data):
    there = sf.sweep(COST, **OPTIONS, seed=range(6), save_matrices=True, devices=jax.devices("cpu"))
    scale = np.abs(there.end_to_end).max()
    assert float(np.abs(data.end_to_end - there.end_to_end).max()) < 10 * RTOL * scale
    assert (data.stop_reason == there.stop_reason).all()


def test_neither_chunks_nor_other_lanes_matter(data):
    other = sf.sweep(COST, **OPTIONS, seed=[3, 1, 7], save_matrices=True, chunk_size=2)
    a, b = (x.end_to_end.sel(seed=[1, 3]) for x in (data, other))
    # the same compiled program: as many slots, whatever the number of lanes
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * float(np.abs(a).max()))


def test_a_lane_is_its_lone_run(data):
    start = sf.gaussian(jax.random.key(2), depth=3, width=6, shape=(4, 4), gamma=1.5)
    alone = sf.gradient_flow(COST, start, rtol=RTOL, save_at=OPTIONS["save_at"], progress=False)
    lane = data.end_to_end.sel(gamma=1.5, seed=2)
    assert np.abs(lane.values - alone.end_to_end).max() < 10 * RTOL * np.abs(alone.end_to_end).max()


def test_reduced_widths():
    reduced = sf.sample_reduced(jax.random.key(0), depth=3, width=10**6, shape=(4, 4), gamma=1.0, tolerance=1e-4)
    trajectory = sf.gradient_flow(COST, reduced, t1=10.0, rtol=1e-4, progress=False)
    assert trajectory.stop_reason == "t1"
    largest = np.linalg.norm(trajectory.end_to_end, axis=(1, 2)).max()
    assert trajectory.stats["reduction_error_estimate"] <= 1e-4 * largest
