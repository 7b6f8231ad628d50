"""Solutions of least norm, by their own optimality conditions."""

import sys

import jax
import numpy as np
import pytest

import saddleflow as sf

DRAW = np.random.default_rng(0)
TARGET = np.outer([1.0, 2, 0.5, -1], [1.0, -1, 3])
INPUTS = DRAW.normal(size=(3, 2))
MASK = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
COSTS = {
    "completion": sf.MatrixCompletion(TARGET, MASK),
    "mse": sf.MeanSquaredError(INPUTS, TARGET @ INPUTS),
    "few": sf.LinearMeasurements.sensing(jax.random.key(0), TARGET, num_measurements=10),
    "many": sf.LinearMeasurements.sensing(jax.random.key(0), TARGET, num_measurements=20),
    "masked": 2 * sf.LinearMeasurements.masked(np.eye(3), TARGET, MASK),
    "squared": sf.SquaredError(TARGET),
}


@pytest.mark.parametrize("name", COSTS)
def test_least_frobenius_norm(name):
    """A minimum, and in the span of the measurements: orthogonal to all that C does not see."""
    cost = COSTS[name]
    found = sf.minimum_norm_solution(cost)
    assert np.linalg.norm(cost.gradient(found)) < 1e-12
    assert float(cost(found)) < 1e-20
    assert np.linalg.norm(cost.unbounded(found)) < 1e-10


@pytest.mark.parametrize("name", COSTS)
def test_least_nuclear_norm(name):
    pytest.importorskip("cvxpy")
    cost = COSTS[name]
    found = sf.nuclear_norm_solution(cost)
    assert float(cost(found)) < 1e-10
    size = np.linalg.norm(found, "nuc")
    for direction in DRAW.normal(size=(50, 4, 3)):  # every way that the cost leaves open leads up
        free = np.asarray(cost.unbounded(direction))
        assert np.linalg.norm(found + 0.1 * free, "nuc") >= size - 1e-5


def test_tolerances_are_of_each_equation():
    pytest.importorskip("cvxpy")
    for name in ("completion", "few", "mse"):
        cost = COSTS[name]
        loose = sf.nuclear_norm_solution(cost, tolerance=0.1)
        assert np.linalg.norm(loose, "nuc") < np.linalg.norm(sf.nuclear_norm_solution(cost), "nuc") - 1e-2
        if name == "completion":
            assert np.max(np.abs(loose - TARGET)[MASK]) == pytest.approx(0.1, rel=1e-3)
        elif name == "mse":
            assert float(cost(loose)) == pytest.approx(0.01, rel=1e-3)
        else:
            assert float(cost(loose)) <= 0.01 + 1e-6


def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match=r"`cost` must be one of linear equations, but got 'CrossEntropy'"):
        sf.minimum_norm_solution(sf.CrossEntropy([0, 1]))
    with pytest.raises(ValueError, match="`tolerance` must be finite and not negative"):
        sf.nuclear_norm_solution(COSTS["few"], tolerance=-1.0)
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match=r"saddleflow\[references\]"):
        sf.nuclear_norm_solution(COSTS["few"])


def test_noise_that_no_matrix_meets():
    pytest.importorskip("cvxpy")
    noisy = sf.MeanSquaredError(DRAW.normal(size=(3, 20)), DRAW.normal(size=(4, 20)))
    with pytest.raises(ValueError, match=r"`tolerance` must be at least .* the least root of the mean"):
        sf.nuclear_norm_solution(noisy, tolerance=1e-3)
    clash = sf.LinearMeasurements(np.ones((2, 4, 3)), [1.0, 2.0])
    with pytest.raises(ValueError, match="`tolerance` must let some matrix meet the equations"):
        sf.nuclear_norm_solution(clash)
