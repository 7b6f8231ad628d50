"""`saddleflow.theory.riccati` against the layer-wise flow and the textbook formula in multiple precision."""

import mpmath
import numpy as np
import pytest

from saddleflow import theory


def textbook_gram(time, first, second, target, imbalance, digits):
    """Q Q^T by the formula as printed, in as many digits as its overflowing exponentials need."""
    with mpmath.workdps(digits):
        (_, n_in), n_out = first.shape, second.shape[0]
        flow_matrix = np.block([[-imbalance / 2 * np.eye(n_in), target.T], [target, imbalance / 2 * np.eye(n_out)]])
        factor = mpmath.matrix(np.vstack([first.T, second]).tolist())
        values, vectors = mpmath.eigsy(mpmath.matrix(flow_matrix.tolist()))

        def function(of_eigenvalue):
            return vectors * mpmath.diag([of_eigenvalue(f) for f in values]) * vectors.T

        def doubled(f):
            return (
                mpmath.expm1(2 * f * time) / f if abs(f) > mpmath.mpf(10) ** -(digits // 2) else 2 * mpmath.mpf(time)
            )

        grown = function(lambda f: mpmath.exp(f * time)) * factor
        middle = mpmath.eye(first.shape[0]) + factor.T * function(doubled) * factor / 2
        gram = grown * (mpmath.inverse(middle) * grown.T)
        return np.array(gram.tolist(), dtype=float)


@pytest.mark.parametrize("imbalance", [0.0, 0.7, -0.4])
@pytest.mark.parametrize(("shape", "width"), [((3, 3), 3), ((3, 2), 2), ((2, 4), 2), ((3, 3), 6), ((2, 4), 6)])
def test_solution_is_that_of_the_layers(layerwise_flow, imbalance, shape, width):
    """All three signs of lambda, square, tall, wide, and wider hidden layers where they exist."""
    if imbalance != 0 and width > min(shape):
        width = 1
    rng = np.random.default_rng(3)
    target = rng.standard_normal(shape)
    first, second = theory.lambda_balanced_layers(rng, shape, width, imbalance, 0.3)
    times = np.array([0.0, 0.2, 1.0, 3.0, 12.0])
    states, matrices = layerwise_flow([first, second], lambda matrix: matrix - target, times)
    solution = theory.riccati_flow(times, first, second, target)
    np.testing.assert_allclose(solution.end_to_end, matrices, atol=1e-11)
    stacked = [np.vstack([below.T, above]) for below, above in states]
    np.testing.assert_allclose(solution.gram, [q @ q.T for q in stacked], atol=1e-11)


@pytest.mark.parametrize("imbalance", [0.0, 1e-3, -1e-3])
def test_small_starts_and_large_times(imbalance):
    """Every small mode keeps its relative accuracy while others are learned and exponentials pass 1e308."""
    rng = np.random.default_rng(11)
    left, right = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    target = left @ np.diag([3.0, 1.0, 0.05]) @ right.T
    first, second = theory.lambda_balanced_layers(rng, (3, 3), 3, imbalance, 1e-6)
    times = np.array([1.0, 10.0, 30.0, 290.0, 1000.0])
    solution = theory.riccati_flow(times, first, second, target)
    for time, gram in zip(times, solution.gram, strict=True):
        expected = textbook_gram(time, first, second, target, imbalance, 40 + int(3 * time))
        np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def test_aligned_modes():
    """One hidden neuron a mode, the slowest first: each is the sigmoid, in relative terms at every size."""
    strengths, scale = [0.05, 1.0, 3.0], 1e-7
    times = np.array([1.0, 5.0, 15.0, 40.0, 300.0, 320.0, 1000.0])
    solution = theory.riccati_flow(times, scale * np.eye(3), scale * np.eye(3), np.diag(strengths))
    for k, strength in enumerate(strengths):
        mode = theory.two_layer_mode(times, strength, scale**2)
        np.testing.assert_allclose(solution.end_to_end[:, k, k], mode, rtol=1e-12)
    off_diagonal = solution.end_to_end * (1 - np.eye(3))
    assert np.abs(off_diagonal).max() < 1e-14


@pytest.mark.parametrize("width", [2, 4])
def test_singular_flow_matrix(layerwise_flow, width):
    """At lambda = 0 and a target of rank 1: F has a kernel, on which the layers decay as 1/t."""
    rng = np.random.default_rng(5)
    target = np.outer(rng.standard_normal(3), rng.standard_normal(3))
    first, second = theory.lambda_balanced_layers(rng, (3, 3), width, 0.0, 0.8)
    times = np.array([1.0, 5.0, 20.0])
    _, matrices = layerwise_flow([first, second], lambda matrix: matrix - target, times)
    np.testing.assert_allclose(theory.riccati_flow(times, first, second, target).end_to_end, matrices, atol=1e-11)

    late = theory.riccati_flow(np.array([1e4, 1e5]), first, second, target).end_to_end
    distances = [np.linalg.norm(matrix - target) for matrix in late]
    assert distances[0] > 1e-5
    np.testing.assert_allclose(distances[0] / distances[1], 10, rtol=0.02)


def test_zero_target_and_zero_times():
    """F = 0 altogether."""
    layers = np.eye(2), np.eye(2)
    solution = theory.riccati_flow(np.array([0.0, 0.0, 3.0]), *layers, np.zeros((2, 2)))
    np.testing.assert_allclose(solution.end_to_end[:2], [np.eye(2)] * 2, rtol=1e-15)
    # One mode by hand: da/dt = -2 a^2.
    np.testing.assert_allclose(solution.end_to_end[2], np.eye(2) / 7, rtol=1e-14)


@pytest.mark.parametrize(
    ("shape", "width", "imbalance"),
    [((2, 3), 5, 0.0), ((4, 2), 3, 2.0), ((2, 4), 3, -2.0), ((3, 3), 1, 1e-9), ((1, 1), 1, 0.0)],
)
def test_drawn_layers_have_the_imbalance_asked_for(shape, width, imbalance):
    """The defining property, and nothing degenerate: the layers are not zero and differ between draws."""
    rng = np.random.default_rng(0)
    first, second = theory.lambda_balanced_layers(rng, shape, width, imbalance, 0.5)
    assert first.shape == (width, shape[1])
    assert second.shape == (shape[0], width)
    difference = second.T @ second - first @ first.T
    np.testing.assert_allclose(difference, imbalance * np.eye(width), atol=1e-14)
    assert np.linalg.norm(first) > 0.01
    assert not np.allclose(first, theory.lambda_balanced_layers(rng, shape, width, imbalance, 0.5)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_layer": np.ones((2, 2))}, "`first_layer, second_layer` must .* got '2.83 from"),
        ({"first_layer": np.ones((3, 2))}, "`second_layer` must .* got 'shape"),
        ({"target": np.ones((3, 2))}, r"`target` must .* got \(3, 2\)"),
        ({"target": np.full((2, 2), np.nan)}, "`target` must be finite, but got 'nan"),
        ({"second_layer": np.zeros((0, 2))}, "`second_layer` must .* got 'shape"),
        ({"time": np.array([2.0, 1.0])}, "`time` must ascend, but got '1.0 after 2.0'"),
        ({"tolerance": 0.0}, "`tolerance` must .* got 0.0"),
    ],
)
def test_bad_flow_input_is_named(change, message):
    """The argument and its value are in the message."""
    arguments = {
        "time": np.array([1.0]),
        "first_layer": np.eye(2),
        "second_layer": np.eye(2),
        "target": np.eye(2),
    }
    with pytest.raises(ValueError, match=message):
        theory.riccati_flow(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imbalance": 1.0}, "`width` must be from 1 to 2 .* got 3"),
        ({"shape": (3, 2), "imbalance": -1.0}, "`width` must be from 1 to 2 .* got 3"),
        ({"imbalance": np.inf}, "`imbalance` must .* got inf"),
        ({"scale": -1.0}, "`scale` must .* got -1.0"),
        ({"shape": (0, 2)}, r"`shape` must .* got \(0, 2\)"),
        ({"width": 0}, "`width` must .* got 0"),
    ],
)
def test_bad_drawing_input_is_named(change, message):
    """The argument and its value are in the message."""
    arguments = {"shape": (2, 3), "width": 3, "imbalance": 0.0, "scale": 1.0}
    with pytest.raises(ValueError, match=message):
        theory.lambda_balanced_layers(np.random.default_rng(0), **(arguments | change))
