import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.problem import geometry, stationary

TARGET = np.diag([3.0, 2.0, 1.0, 0.5])
COST = sf.MeanSquaredError.teacher(TARGET)


def saddle(rank, *, depth=3, width=7, seed=0):
    """The whitened cost's saddle of a rank, turned by a random rotation of every hidden space."""
    kept = np.where(np.arange(4) < rank, np.diag(TARGET), 0.0)
    network = sf.balanced(jnp.asarray(np.diag(kept)), depth=depth, width=width)
    keys = jax.random.split(jax.random.key(seed), depth - 1)
    return sf.rotate(network, [jnp.linalg.qr(jax.random.normal(k, (width, width)))[0] for k in keys])


def moved(network, size, seed=1):
    noise = sf.gaussian(
        jax.random.key(seed), depth=network.depth, width=network.width, shape=network.shape, gamma=0.0
    )
    return jax.tree.map(lambda w, n: w + size * n / geometry.norm(noise), network, noise)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_nearest_point_of_its_orbit_is_found_in_full_width(rank):
    start = moved(saddle(rank), 0.05)
    point = stationary.polish(COST, start)
    expected = np.where(np.arange(4) < rank, np.diag(TARGET), 0.0)
    np.testing.assert_allclose(point.network.end_to_end(), np.diag(expected), atol=1e-11)
    assert bool(point.converged)
    assert float(geometry.norm(geometry.gradient(COST, point.network))) < 1e-11
    displacement = jax.tree.map(jnp.subtract, point.network, start)
    assert float(point.distance) == pytest.approx(float(geometry.norm(displacement)))
    # nearer than the saddle that was moved, as a nearest point must be
    assert float(point.distance) < 0.05
    # and moving it along its own orbit brings it no nearer, to first order
    layers, change = stationary.truncate(point.network, rank), displacement
    for index, basis in enumerate(layers.bases):
        below = basis.T @ change.layers[index] @ point.network.layers[index].T @ basis
        above = basis.T @ point.network.layers[index + 1].T @ change.layers[index + 1] @ basis
        np.testing.assert_allclose(below, above, atol=1e-10)


def test_large_ones_are_polished_matrix_free(monkeypatch):
    start = moved(saddle(2), 0.05)
    dense = stationary.polish(COST, start)
    monkeypatch.setattr(stationary, "MAX_DENSE", 0)
    used, solver = [], stationary.lx.LSMR
    monkeypatch.setattr(stationary.lx, "LSMR", lambda **how: used.append(how) or solver(**how))
    free = stationary.polish(COST, start, max_steps=99)  # another program than that of the other threshold
    assert used
    assert bool(free.converged)
    assert float(free.distance) == pytest.approx(float(dense.distance), rel=1e-9)
    np.testing.assert_allclose(free.network.end_to_end(), dense.network.end_to_end(), atol=1e-11)


def test_a_stationary_point_stays_where_it_is():
    point = stationary.polish(COST, saddle(2))
    assert float(point.distance) < 1e-11
    assert bool(point.converged)


def test_the_origin_and_what_is_no_stationary_point():
    start = 1e-3 * sf.gaussian(jax.random.key(0), depth=3, width=7, shape=(4, 4), gamma=1.0)
    origin = stationary.polish(COST, start, rank=0)
    assert all(not np.any(layer) for layer in origin.network.layers)
    assert float(origin.distance) == pytest.approx(float(geometry.norm(start)))
    away = stationary.polish(COST, moved(saddle(2), 2.0), rank=2, max_steps=1)
    assert not bool(away.converged)


def test_truncation_keeps_the_learned_directions():
    network = moved(saddle(2), 1e-3)
    truncation = stationary.truncate(network, 2)
    assert truncation.network.width == 2
    difference = jax.tree.map(jnp.subtract, truncation.restore(truncation.network), network)
    assert float(geometry.norm(difference)) < 1e-3
    assert stationary.learned_rank(network) == 2
    assert stationary.learned_rank(sf.gaussian(jax.random.key(0), depth=3, width=7, shape=(1, 4), gamma=1.0)) == 1
    assert stationary.learned_rank(sf.balanced(jnp.eye(4), depth=3, width=7)) == 4


def test_lanes_of_a_vmap_agree_with_lone_runs():
    costs = [sf.MeanSquaredError.teacher(scale * TARGET) for scale in (1.0, 1.1)]
    starts = [stationary.truncate(moved(saddle(2), 0.05, seed), 2).network for seed in (1, 2)]
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    polish = jax.jit(jax.vmap(lambda c, n: stationary.polish_full_rank(c, n, jnp.asarray(1e-10), 100)))
    networks, _, converged, _ = polish(jax.tree.map(stack, *costs), jax.tree.map(stack, *starts))
    assert np.all(converged)
    for lane, (cost, start) in enumerate(zip(costs, starts, strict=True)):
        alone = stationary.polish(cost, start, rank=2).network
        for ours, reference in zip(networks.layers, alone.layers, strict=True):
            np.testing.assert_allclose(ours[lane], reference, atol=1e-10)


def test_bad_arguments_are_named():
    network = saddle(2)
    for arguments, message in [
        ({"rank": 8}, "`rank` must be at most the width 7"),
        ({"rank": -1}, "`rank` must be an integer >= 0"),
        ({"rtol": 0.0}, "`rtol` must be finite and positive"),
        ({"max_steps": 0}, "`max_steps` must be an integer >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            stationary.polish(COST, network, **arguments)
    with pytest.raises(ValueError, match="`network` must have the end-to-end shape"):
        stationary.polish(sf.MeanSquaredError.teacher(np.eye(3)), network)
