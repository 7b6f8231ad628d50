"""`saddleflow.theory.distances` against constrained minimisation by SciPy and the laws themselves.

The problem of docs/theory.md, section 2: L = 4, n = 3, S = diag(3, 2, 1).
"""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize

from saddleflow import theory

TARGET = np.diag([3.0, 2.0, 1.0])


def gaussian(sizes, gamma, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows, columns)) * sizes[1] ** (-gamma / 2) for columns, rows in pairwise(sizes)]


def wide(width, gamma, seed=0):
    return gaussian([3, width, width, width, 3], gamma, seed)


def product(layers):
    return reduce(lambda below, layer: layer @ below, layers)


def distance(layers, others):
    return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(layers, others, strict=True)))


def loss_gradient(layers, target):
    """Of (1/2) |A - S|^2 by the layers, products written out."""
    residual = product(layers) - target
    for index, layer in enumerate(layers):
        above = reduce(lambda left, right: right @ left, layers[index + 1 :], np.eye(layer.shape[0]))
        below = reduce(lambda left, right: right @ left, layers[:index], np.eye(layers[0].shape[1]))
        yield above.T @ residual @ below.T


def constrained_minimum(layers, target, num_starts):
    """SLSQP on the entries of all layers, derivatives by hand, from random points and near theta_0."""
    origin = np.concatenate([layer.ravel() for layer in layers])
    cuts = np.cumsum([layer.size for layer in layers])[:-1]

    def unpack(flat):
        return [part.reshape(x.shape) for part, x in zip(np.split(flat, cuts), layers, strict=True)]

    def jacobian(flat):
        parts = unpack(flat)
        columns = []
        for index, layer in enumerate(parts):
            above = reduce(lambda left, right: right @ left, parts[index + 1 :], np.eye(layer.shape[0]))
            below = reduce(lambda left, right: right @ left, parts[:index], np.eye(parts[0].shape[1]))
            columns.append(np.einsum("ia,bj->ijab", above, below).reshape(target.size, -1))
        return np.concatenate(columns, axis=1)

    rng = np.random.default_rng(0)
    best = np.inf
    for scale in np.linspace(0.0, 1.0, num_starts):
        found = minimize(
            lambda flat: (0.5 * np.sum((flat - origin) ** 2), flat - origin),
            origin + scale * rng.standard_normal(origin.size),
            jac=True,
            method="SLSQP",
            constraints={"type": "eq", "fun": lambda x: (product(unpack(x)) - target).ravel(), "jac": jacobian},
            options={"maxiter": 500, "ftol": 1e-13},
        )
        if found.success:
            best = min(best, np.linalg.norm(found.x - origin))
    return best


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("sizes", [[2, 4, 3], [3, 5, 5, 2], [2, 3, 4, 3, 2]])
def test_minima_against_constrained_minimisation(sizes, gamma):
    """On the set, and not farther than the best of twelve runs of SLSQP, but for 2% where layers are narrow."""
    start = gaussian(sizes, gamma, 1)
    target = np.random.default_rng(2).standard_normal((sizes[-1], sizes[0]))
    found = theory.distance_to_minima(start, target)
    np.testing.assert_allclose(product(found.layers), target, atol=1e-13)
    np.testing.assert_allclose(distance(found.layers, start), found.distance, rtol=1e-12)
    assert found.distance <= constrained_minimum(start, target, 12) * (1.02 if sizes[1] == 3 else 1 + 1e-5)


@pytest.mark.parametrize("width", [30, 100, 300])
def test_minima_of_large_starts_are_at_the_lazy_distance(width):
    """gamma = .9: scaled by w^((1-gamma)(L-1)/2) within 25% of |S - A_0| / sqrt(L).

    At gamma = .875 docs/theory.md, section 2, has 5 to 16 %.
    """
    for seed in range(3):
        start = wide(width, 0.9, seed)
        found = theory.distance_to_minima(start, TARGET)
        lazy = np.linalg.norm(TARGET - product(start)) / np.sqrt(4 * width ** (0.1 * 3))
        np.testing.assert_allclose(found.distance, lazy, rtol=0.25)


def test_minima_of_ever_larger_starts_are_lazy():
    """With the kernel growing at a fixed width the linearisation becomes exact, as the inverse of the distance."""
    errors = []
    for scale in (2.0, 4.0):
        start = [scale * layer for layer in wide(30, 1.0)]
        far = product(start) + TARGET
        # The kernel at theta_0, dense: J J^T by differences of the product along unit changes.
        columns = []
        for index, layer in enumerate(start):
            above = reduce(lambda left, right: right @ left, start[index + 1 :], np.eye(layer.shape[0]))
            below = reduce(lambda left, right: right @ left, start[:index], np.eye(3))
            columns.append(np.einsum("ia,bj->ijab", above, below).reshape(9, -1))
        dense = np.concatenate(columns, axis=1)
        lazy = np.linalg.norm(np.linalg.pinv(dense) @ TARGET.ravel())
        errors.append(abs(theory.distance_to_minima(start, far).distance / lazy - 1))
    assert errors[1] < 0.3 * errors[0] < 0.03


def test_minima_of_small_starts_approach_the_least_norm():
    """From below, the gap falling as w^-(gamma-1)/2; the numbers are those of docs/theory.md, section 2."""
    limit = theory.minimal_norm(TARGET, 4)
    np.testing.assert_allclose(limit, 4.0725, atol=1e-4)
    noted = {1.5: [2.42, 2.72, 3.00], 2.0: [3.10, 3.46, 3.72]}
    for gamma, expected in noted.items():
        found = [theory.distance_to_minima(wide(width, gamma), TARGET).distance for width in (10, 30, 100)]
        assert found == sorted(found)
        assert found[-1] < limit
        np.testing.assert_allclose(found, expected, atol=0.15)
        steepness = np.log((limit - found[2]) / (limit - found[1])) / np.log(100 / 30)
        np.testing.assert_allclose(steepness, -(gamma - 1) / 2, atol=0.1)
    zero = [0 * layer for layer in wide(5, 1.0)]
    np.testing.assert_allclose(theory.distance_to_minima(zero, TARGET).distance, limit, rtol=1e-8)


@pytest.mark.parametrize("gamma", [0.75, 0.875, 1.0, 1.25, 2.0])
@pytest.mark.parametrize("sizes", [[3, 30, 30, 30, 3], [4, 10, 2], [2, 10, 10, 5]])
def test_saddle_is_critical_and_no_minimum(gamma, sizes):
    """The loss's gradient vanishes there, the cost's does not; the distance is that of the point."""
    start = gaussian(sizes, gamma, 3)
    target = np.random.default_rng(4).standard_normal((sizes[-1], sizes[0])) if sizes[0] != 3 else TARGET
    found = theory.distance_to_saddle(start, target)
    for slope in loss_gradient(found.layers, target):
        np.testing.assert_allclose(slope, 0, atol=1e-12)
    assert np.linalg.norm(product(found.layers) - target) > 0.1
    np.testing.assert_allclose(distance(found.layers, start), found.distance, rtol=1e-12)
    ends = np.hypot(np.linalg.norm(start[0]), np.linalg.norm(start[-1]))
    assert found.distance <= ends * (1 + 1e-12)


def test_saddle_of_large_starts_misses_one_mode():
    """gamma < 1: about sqrt(2) w^((1-gamma)/2); docs/theory.md, section 2, has prefactors 1.37 to 1.43."""
    for gamma in (0.75, 0.875):
        for seed in range(3):
            start = wide(100, gamma, seed)
            found = theory.distance_to_saddle(start, TARGET)
            np.testing.assert_allclose(found.distance / 100 ** ((1 - gamma) / 2), np.sqrt(2), rtol=0.12)
            missed = np.linalg.svd(product(found.layers) - TARGET, compute_uv=False)
            np.testing.assert_allclose(missed[1:], 0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_saddle_of_small_starts_misses_all(rank):
    """gamma > 1: about sqrt(2 r) w^-(gamma-1)/2, r the rank of grad C(0) = -S."""
    target = TARGET * (np.arange(3) < rank)
    scaled = [
        theory.distance_to_saddle(wide(100, gamma, seed), target).distance * 100 ** ((gamma - 1) / 2)
        for gamma in (1.5, 2.0)
        for seed in range(3)
    ]
    np.testing.assert_allclose(np.mean(scaled), np.sqrt(2 * rank), rtol=0.1)


@pytest.mark.parametrize("gamma", [0.8, 0.9, 1.0])
def test_large_starts_follow_the_exponents(gamma):
    """Means of four seeds at widths 15 and 120: slopes of both distances in the width."""
    widths = np.array([15, 120])
    minima, saddles = theory.distance_exponents(4, gamma)
    # A_0 = O(1) fades only as the width grows: the start is made one with A_0 near 0 by aiming at A_0 + S.
    slopes = []
    for which in ("minima", "saddle"):
        means = []
        for width in widths:
            found = []
            for seed in range(4):
                start = wide(width, gamma, seed)
                target = TARGET + product(start) if which == "minima" else TARGET
                found.append(getattr(theory, f"distance_to_{which}")(start, target).distance)
            means.append(np.mean(found))
        slopes.append(np.polyfit(np.log(widths), np.log(means), 1)[0])
    np.testing.assert_allclose(slopes, [minima.exponent, saddles.exponent], atol=0.12)


def test_exponents():
    """The three cases of the theorem."""
    assert theory.distance_exponents(4, 0.75) == ((-0.375, "O"), (0.125, "Omega"))
    assert theory.distance_exponents(3, 1.0) == ((0.0, "Theta"), (0.0, "Theta"))
    assert theory.distance_exponents(2, 2.0) == ((0.0, "Omega"), (-0.5, "O"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: theory.distance_exponents(4, 0.7),
            "`gamma` must be .* at least 1 - 1/L = 0.75, but got 0.7",
        ),
        (lambda: theory.distance_exponents(4, np.inf), "`gamma` must .* got inf"),
        (lambda: theory.distance_exponents(1, 1.0), "`depth` must .* got 1"),
        (lambda: theory.distance_to_minima(wide(4, 1.0), np.eye(2)), r"`target` must .* \(3, 3\), but got \(2, 2\)"),
        (lambda: theory.distance_to_minima(wide(2, 1.0), TARGET), "`target` must have rank at most 2, .* 'rank 3'"),
        (lambda: theory.distance_to_minima([np.eye(3)], TARGET), "`layers` must hold at least two"),
        (lambda: theory.distance_to_saddle(wide(4, 1.0), 0 * TARGET), "`target` must be nonzero"),
        (lambda: theory.distance_to_saddle(wide(4, 1.0), np.nan * TARGET), "`target` must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
