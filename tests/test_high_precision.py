"""Tiny starts against an integration in 220 bits (128 for a mild one): another method and arithmetic, no grading."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from high_precision import Flow

import saddleflow as sf

TARGET = np.diag([3.0, 2.0, 1.0])


def start(depth, alpha):
    rng = np.random.default_rng(0)
    sizes = [3] + [4] * (depth - 1) + [3]
    shapes = zip(sizes[1:], sizes[:-1], strict=True)
    return [alpha * rng.standard_normal(shape) / 2 for shape in shapes]


def escapes(layers, rtol):
    """Escape times, and the costs at which they are taken: half-way down from one plateau to the next."""
    network = sf.DeepLinearNetwork(map(jnp.asarray, layers))
    run = sf.gradient_flow(sf.MeanSquaredError.teacher(TARGET), network, rtol=rtol, progress=False)
    assert run.stop_reason == "converged"
    assert [visit.rank for visit in run.saddles(stationary_points=False)] == [0, 1, 2]
    costs = [*(visit.cost for visit in run.saddles(stationary_points=False)), run.train_cost[-1]]
    levels = [(above + below) / 2 for above, below in itertools.pairwise(costs)]
    return np.array([visit.escape_time for visit in run.saddles(stationary_points=False)]), levels


@pytest.mark.parametrize(
    ("depth", "alpha", "bits"),
    [
        (3, 1e-2, 128),
        pytest.param(3, 1e-8, 220, marks=pytest.mark.slow),
        pytest.param(4, 1e-6, 220, marks=pytest.mark.slow),
    ],
)
def test_escape_times_are_those_of_high_precision(depth, alpha, bits):
    rtol = 1e-4
    layers = start(depth, alpha)
    times, levels = escapes(layers, rtol)
    exact = Flow(layers, TARGET, bits).crossings(levels, tolerance=1e-8 * alpha)
    np.testing.assert_allclose(times, exact, rtol=10 * rtol)
