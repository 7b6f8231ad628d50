import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.greedy import comparison
from saddleflow.problem import geometry

COST = sf.MeanSquaredError.teacher(np.array([[3.0, 0.5, 0.0], [0.0, 1.5, 0.2], [0.1, 0.0, 0.3]]))
HOW = {"rtol": 1e-6, "save_networks": True, "max_saves": 400, "progress": False}


@pytest.fixture(scope="module")
def path():
    return sf.saddle_to_saddle(COST, 3, save_networks=True, progress=False)


@pytest.fixture(scope="module")
def flows():
    theta = sf.gaussian(jax.random.key(0), depth=3, width=8, shape=(3, 3), gamma=1.0)
    return [sf.gradient_flow(COST, alpha * theta, **HOW) for alpha in (1e-1, 1e-3)]


def test_a_rotation_is_found_exactly():
    small = sf.gaussian(jax.random.key(1), depth=4, width=2, shape=(3, 4), gamma=0.0)
    keys = jax.random.split(jax.random.key(2), 3)
    rotations = [jnp.linalg.qr(jax.random.normal(key, (6, 6)))[0] for key in keys]
    large = sf.rotate(sf.include(small, 6), rotations)
    frames = comparison.align([large, large], [small, small])
    for frame, rotation in zip(frames, rotations, strict=True):
        np.testing.assert_allclose(frame.T @ frame, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(frame, rotation[:, :2], atol=1e-9)
    difference = jax.tree.map(jnp.subtract, comparison.lift(small, frames), large)
    assert float(geometry.norm(difference)) < 1e-9


def test_curves_pass_between_steps_as_the_flow_does(flows):
    curve = comparison.Curve(COST, flows[0])
    start = jax.tree.map(lambda layer: layer[0], flows[0].networks)
    finer = sf.gradient_flow(COST, start, **HOW | {"rtol": 1e-9})
    rows = (finer.time > flows[0].time[10]) & (finer.time < flows[0].time[40])
    assert rows.sum() > 40  # between the curve's steps
    np.testing.assert_allclose(curve.end_to_end(finer.time[rows]), finer.end_to_end[rows], atol=1e-3)


def test_curves_know_when_they_pass_a_cost(flows):
    curve, costs = comparison.Curve(COST, flows[0]), flows[0].train_cost
    for share in (0.1, 0.5, 0.9):
        level = costs[0] + share * (costs[-1] - costs[0])
        at = curve.time_at_cost(COST, level)
        assert float(COST(curve.end_to_end(np.array([at]))[0])) == pytest.approx(level, rel=1e-9)
    # at a row, where the cost of the curve is that of the row up to rounding
    at = curve.time_at_cost(COST, costs[20])
    assert at == pytest.approx(flows[0].time[20], rel=1e-9)
    assert curve.time_at_cost(COST, costs[0] + 1) == 0
    with pytest.raises(ValueError, match="`level` must be at least"):
        curve.time_at_cost(COST, -1.0)


def test_smaller_starts_follow_the_greedy_path_more_closely(path, flows):
    large, small = (comparison.compare(COST, flow, path) for flow in flows)
    assert [c.stage for c in small] == [0, 1, 2]
    for before, after in zip(large, small, strict=True):
        assert after.matrix_distance < 0.3 * before.matrix_distance
        assert after.parameter_distance < 0.3 * before.parameter_distance
        assert after.matrix_distance < 0.03
        assert after.parameter_distance < 0.03
        assert after.cost_gap < 1e-3
    # L = 3: stages start at times growing as 1 / alpha
    assert small[1].time_shift > 30 * large[1].time_shift


def test_a_table_over_alpha(path):
    theta = sf.gaussian(jax.random.key(0), depth=3, width=8, shape=(3, 3), gamma=1.0)
    data = comparison.over_alpha(COST, theta, path, [1e-1], progress=False)
    assert dict(data.sizes) == {"alpha": 1, "stage": 3}
    assert float(data.matrix_distance.max()) < 0.5
    assert bool(data.parameter_distance.notnull().all())


def test_bad_input_is_named(path, flows):
    with pytest.raises(ValueError, match="Run it with save_networks=True"):
        comparison.Curve(COST, dataclasses.replace(flows[0], networks=None))
    deeper = sf.gaussian(jax.random.key(0), depth=4, width=3, shape=(3, 3), gamma=1.0)
    with pytest.raises(ValueError, match="`path` must have the trajectory's depth"):
        comparison.compare(COST, dataclasses.replace(flows[0], network=deeper), path)
    with pytest.raises(ValueError, match="`references` must be no wider"):
        comparison.align([path.points[1].network], [path.points[2].network])
    with pytest.raises(ValueError, match="`references` must be 1 networks"):
        comparison.align([path.points[1].network], [])
