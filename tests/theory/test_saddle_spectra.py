"""`saddleflow.theory.saddles` against dense Hessians, the flow of the layers and constrained minimisation."""

from functools import reduce

import numpy as np
import pytest
from scipy.optimize import minimize

from saddleflow import theory

STRENGTHS = np.array([2.0, 1.2, 0.5])


def product(layers):
    return reduce(lambda below, layer: layer @ below, layers)


def target(shape, rng):
    left = np.linalg.qr(rng.standard_normal((shape[0], 3)))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], 3)))[0]
    return left, right, left @ np.diag(STRENGTHS) @ right.T


def saddle(left, right, rank, width, depth, rng):
    """Balanced factors of the top modes, hidden spaces rotated at random."""
    frames = [np.linalg.qr(rng.standard_normal((width, width)))[0][:, :rank] for _ in range(depth - 1)]
    frames = [right[:, :rank], *frames, left[:, :rank]]
    roots = STRENGTHS[:rank] ** (1 / depth)
    return [(frames[index + 1] * roots) @ frames[index].T for index in range(depth)]


def hessian(layers, matrix):
    """Of (1/2) |A - S|^2, dense: central differences of the gradient, exact up to rounding for small steps."""
    cuts = np.cumsum([layer.size for layer in layers])[:-1]

    def gradient(flat):
        parts = [part.reshape(x.shape) for part, x in zip(np.split(flat, cuts), layers, strict=True)]
        residual = product(parts) - matrix
        slopes = []
        for index, layer in enumerate(parts):
            above = reduce(lambda below, top: top @ below, parts[index + 1 :], np.eye(layer.shape[0]))
            below = reduce(lambda below, top: top @ below, parts[:index], np.eye(matrix.shape[1]))
            slopes.append((above.T @ residual @ below.T).ravel())
        return np.concatenate(slopes)

    flat = np.concatenate([layer.ravel() for layer in layers])
    np.testing.assert_allclose(gradient(flat), 0, atol=1e-14)
    step = 1e-5
    rows = [(gradient(flat + step * e) - gradient(flat - step * e)) / (2 * step) for e in np.eye(flat.size)]
    return 0.5 * (np.array(rows) + np.array(rows).T)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 4), (4, 5)])
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_spectrum_of_dense_hessians(depth, shape, rank):
    """Least and largest eigenvalue and the number of negative ones, with and without dead neurons."""
    rng = np.random.default_rng(rank)
    left, right, matrix = target(shape, rng)
    for width in (max(rank, 1), rank + 2):
        layers = saddle(left, right, rank, width, depth, rng)
        values = np.linalg.eigvalsh(hessian(layers, matrix))
        found = theory.saddle_hessian(STRENGTHS, rank, width, depth)
        np.testing.assert_allclose([values[0], values[-1]], [found.least, found.largest], atol=1e-8)
        assert np.sum(values < -1e-6) == found.index
        if depth == 2 and width > rank:
            # What is left at least as fast as any other way out is the least eigenvalue.
            speed = theory.saddle_escape_speed(STRENGTHS, rank, 2)
            np.testing.assert_allclose(-values[0], speed, atol=1e-8)


def test_pairs_of_modes():
    """Each eigenvalue that the docstring names, with its multiplicity, at L = 2 and 3 and rank 2 of 3."""
    rng = np.random.default_rng(0)
    shape, rank, width = (4, 5), 2, 4
    left, right, matrix = target(shape, rng)
    for depth in (2, 3):
        used = STRENGTHS[:rank]
        layer = np.arange(1, depth + 1)
        named = [
            np.sum(a ** (2 * (depth - layer) / depth) * b ** (2 * (layer - 1) / depth)) for a in used for b in used
        ]
        named += [a ** (1 - 2 / depth) * (a + sign * STRENGTHS[2]) for a in used for sign in (1, -1)]
        # Directions of the two sides that S does not reach at all: outputs and inputs beyond r.
        named += [a ** (2 - 2 / depth) for a in used for _ in range(shape[0] - 3 + shape[1] - 3)]
        if depth == 2:
            named += [sign * STRENGTHS[2] for sign in (1, -1) for _ in range(width - rank)]
        values = np.linalg.eigvalsh(hessian(saddle(left, right, rank, width, depth, rng), matrix))
        np.testing.assert_allclose(np.sort(values[np.abs(values) > 1e-6]), np.sort(named), atol=1e-8)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_dead_neuron_grows_at_the_speed(layerwise_flow, depth, rank):
    """At a saddle with one neuron awakened a little along the optimal direction, its norm obeys the law."""
    rng = np.random.default_rng(depth)
    left, right, matrix = target((3, 4), rng)
    used = [
        np.pad(layer, ((0, int(index < depth - 1)), (0, int(index > 0))))
        for index, layer in enumerate(saddle(left, right, rank, max(rank, 1), depth, np.random.default_rng(0)))
    ]
    size = {2: 1e-4, 3: 1e-2, 4: 8e-2}[depth]
    direction = theory.escape_direction(product(used) - matrix, depth)
    start = [layer.copy() for layer in used]
    start[0][-1:] += size * direction[0]
    start[-1][:, -1:] += size * direction[-1]
    for layer in start[1:-1]:
        layer[-1, -1] += size / np.sqrt(depth)
    speed = theory.saddle_escape_speed(STRENGTHS, rank, depth)
    # By then the neuron has grown threefold, and is still so small that the saddle is all that it sees.
    end = np.log(3) / speed if depth == 2 else (1 - 3.0 ** -(depth - 2)) * theory.blow_up_time(size, speed, depth)
    times = np.linspace(0, end, 5)
    states, _ = layerwise_flow(start, lambda a: a - matrix, times)
    norms = [
        np.sqrt(
            np.sum(state[0][-1] ** 2)
            + np.sum(state[-1][:, -1] ** 2)
            + sum(layer[-1, -1] ** 2 for layer in state[1:-1])
        )
        for state in states
    ]
    np.testing.assert_allclose(norms, theory.escape_norm(times, size, speed, depth), rtol=2e-3)
    assert norms[-1] > 2.9 * norms[0]


def test_speed_is_that_of_the_cost_gradient():
    """What `escape_speed` says of A_k - S; zero at the minimum."""
    left, right, matrix = target((4, 4), np.random.default_rng(0))
    for depth in (2, 3, 5):
        for rank in range(4):
            reached = (left[:, :rank] * STRENGTHS[:rank]) @ right[:, :rank].T
            expected = theory.escape_speed(reached - matrix, depth)
            speed = theory.saddle_escape_speed(STRENGTHS[::-1], rank, depth)
            np.testing.assert_allclose(speed, expected, atol=1e-14)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_minimal_norm_is_the_least(depth):
    """SLSQP over the entries of width 3, from random points, under A_theta = A."""
    rng = np.random.default_rng(depth)
    matrix = rng.standard_normal((2, 3))
    sizes = [3, *[3] * (depth - 1), 2]
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    cuts = np.cumsum([rows * columns for rows, columns in shapes])

    def excess(flat):
        parts = np.split(flat, cuts[:-1])
        return (product([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]) - matrix).ravel()

    runs = [
        minimize(
            lambda flat: (0.5 * flat @ flat, flat),
            rng.standard_normal(cuts[-1]),
            jac=True,
            method="SLSQP",
            constraints={"type": "eq", "fun": excess},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        for _ in range(4)
    ]
    least = min(np.linalg.norm(run.x) for run in runs if run.success)
    np.testing.assert_allclose(theory.minimal_norm(matrix, depth), least, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.saddle_hessian(STRENGTHS, 4, 5, 2), "`rank` must be at most 3, .* got 4"),
        (lambda: theory.saddle_hessian(STRENGTHS, -1, 5, 2), "`rank` must be an integer >= 0, but got -1"),
        (lambda: theory.saddle_hessian(STRENGTHS, 2, 1, 2), "`width` must be an integer >= 2, but got 1"),
        (lambda: theory.saddle_hessian(STRENGTHS, 2, 5, 1), "`depth` must .* got 1"),
        (lambda: theory.saddle_hessian(-STRENGTHS, 2, 5, 2), "`singular_values` must not be negative, but got -2.0"),
        (lambda: theory.saddle_escape_speed(0 * STRENGTHS, 0, 2), "`singular_values` must not all be zero"),
        (lambda: theory.saddle_escape_speed(STRENGTHS, 0, 0), "`depth` must .* got 0"),
        (lambda: theory.minimal_norm(np.eye(2), 1), "`depth` must .* got 1"),
        (lambda: theory.minimal_norm(np.full((2, 2), np.nan), 2), "`matrix` must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
