"""A real matrix with held-out entries: the measurements of breast masses that scikit-learn ships."""

import jax
import numpy as np
from sklearn.datasets import load_breast_cancer

import saddleflow as sf


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
