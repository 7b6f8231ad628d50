"""A real matrix with held-out entries: the measurements of breast masses that scikit-learn ships."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_sample_image

import saddleflow as sf


@pytest.mark.slow
def test_completes_better_than_the_column_means():
    """60 tumours x 30 measurements, in logarithms; 80 % of the entries train, 20 % are held out."""
    matrix = np.log1p(load_breast_cancer().data[:60])
    observed = np.random.default_rng(0).random(matrix.shape) < 0.8
    cost = sf.MatrixCompletion(matrix, observed)
    start = sf.gaussian(jax.random.key(0), depth=3, width=60, shape=matrix.shape, gamma=2.0)
    trajectory = sf.gradient_flow(cost, start, rtol=1e-3, gradient_tolerance=2e-2)
    assert trajectory.stop_reason == "converged"
    column_means = np.where(observed, matrix, 0).sum(axis=0) / observed.sum(axis=0)
    zero = float(cost.test(np.zeros(matrix.shape)))
    means = float(cost.test(np.broadcast_to(column_means, matrix.shape)))
    assert means < zero
    assert trajectory.test_cost[-1] < 0.2 * means


@pytest.mark.slow
def test_completes_a_photograph_better_than_the_nearest_matrices_of_a_rank():
    """Every fourth pixel of a photograph each way, 30 % of them known, of any rank of the mean-filled matrix."""
    picture = load_sample_image("china.jpg")[::4, ::4, 1] / 255
    observed = np.random.default_rng(0).random(picture.shape) < 0.3
    cost, mean = sf.MatrixCompletion(picture, observed).centered()
    start = sf.gaussian(jax.random.key(0), depth=3, width=48, shape=cost.shape, gamma=2.0)
    run = sf.gradient_flow(cost, start, rtol=1e-3, t1=3e4, progress=False)
    left, values, right = np.linalg.svd(np.where(observed, picture - mean, 0), full_matrices=False)
    nearest = [float(cost.test((left[:, :k] * values[:k]) @ right[:k])) for k in range(30)]
    assert min(nearest) < nearest[0]  # of rank 0: the mean
    assert run.test_cost.min() < 0.5 * min(nearest)
