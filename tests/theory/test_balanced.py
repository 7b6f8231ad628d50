"""`saddleflow.theory.balanced` against the layer-wise flow from balanced layers."""

import numpy as np
import pytest

from saddleflow import theory


def balanced_layers(matrix, depth, width, rng):
    """Balanced factors of `matrix`, hidden spaces rotated at random."""
    left, strengths, right = np.linalg.svd(matrix, full_matrices=False)
    roots = np.diag(strengths ** (1 / depth))
    rank = strengths.size
    frames = [np.linalg.qr(rng.standard_normal((width, width)))[0][:, :rank] for _ in range(depth - 1)]
    frames = [right.T, *frames, left]
    return [frames[index + 1] @ roots @ frames[index].T for index in range(depth)]


def completion_gradient(target, observed):
    """Gradient of the mean over the observed entries of (A - A*)^2: rotation-symmetric in nothing."""
    return lambda matrix: 2 * observed * (matrix - target) / observed.sum()


def layer_velocity(layers, cost_gradient):
    """The velocity of A by the product rule from those of the layers, dW_l/dt = -M_l^T G N_l^T."""

    def product(layers):
        return np.linalg.multi_dot(layers[::-1]) if len(layers) > 1 else layers[0]

    gradient = cost_gradient(product(layers))
    total = np.zeros_like(gradient)
    for index in range(len(layers)):
        above = product(layers[index + 1 :]) if index + 1 < len(layers) else np.eye(gradient.shape[0])
        below = product(layers[:index]) if index > 0 else np.eye(gradient.shape[1])
        total -= above @ above.T @ gradient @ below.T @ below
    return total


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_flow_is_that_of_the_layers(layerwise_flow, depth, shape):
    """Matrix completion, so that nothing is aligned; rectangular both ways; hidden width above the rank."""
    rng = np.random.default_rng(depth)
    initial, target = 0.5 * rng.standard_normal(shape), rng.standard_normal(shape)
    gradient = completion_gradient(target, rng.random(shape) < 0.7)
    times = np.array([0.0, 0.3, 1.0, 4.0, 10.0])
    states, matrices = layerwise_flow(balanced_layers(initial, depth, 5, rng), gradient, times)
    assert np.abs(matrices[-1] - initial).max() > 0.1
    np.testing.assert_allclose(
        theory.balanced_flow(gradient, initial, depth, times, rtol=1e-12), matrices, rtol=0, atol=3e-11
    )
    velocity = theory.balanced_vector_field(matrices[2], gradient(matrices[2]), depth)
    np.testing.assert_allclose(velocity, layer_velocity(states[2], gradient), atol=1e-11)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_field_at_a_rank_deficient_matrix(shape):
    """Exponent 0 is the identity on the kernel too: at rank 1 the field reaches outside the spaces of A."""
    rng = np.random.default_rng(7)
    matrix = np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1]))
    slope = rng.standard_normal(shape)
    layers = balanced_layers(matrix, 3, 4, rng)
    np.testing.assert_allclose(
        theory.balanced_vector_field(matrix, slope, 3), layer_velocity(layers, lambda _: slope), atol=1e-8
    )


def test_flow_of_an_aligned_start_is_the_modes():
    """Small aligned modes, none drowned by the tolerance while another is of order one."""
    target = np.diag([2.0, 1.0, 0.5])
    initial = np.diag([1e-2, 1e-3, 1e-4])
    times = np.array([0.0, 5.0, 30.0])
    matrices = theory.balanced_flow(lambda matrix: matrix - target, initial, 3, times, rtol=1e-11)
    for k in range(3):
        mode = theory.deep_mode(times, target[k, k], initial[k, k], 3)
        np.testing.assert_allclose(matrices[:, k, k], mode, rtol=1e-8)


def test_times_may_repeat_and_be_zero():
    """The start comes back as it was."""
    initial = np.array([[0.3, 0.1]])
    flow = theory.balanced_flow(lambda matrix: matrix - 1.0, initial, 2, np.array([0.0, 0.0]))
    np.testing.assert_array_equal(flow, np.stack([initial, initial]))
    flow = theory.balanced_flow(lambda matrix: matrix - 1.0, initial, 2, np.array([0.5, 1.0, 1.0]))
    np.testing.assert_array_equal(flow[1], flow[2])
    assert not np.array_equal(flow[0], flow[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "`depth` must .* got 0"),
        ({"initial": np.zeros((2, 2))}, "`initial` must be nonzero"),
        ({"initial": np.full((2, 2), np.inf)}, r"`initial` must be finite, but got 'inf at entry \(0, 0\)"),
        ({"times": np.array([-1.0, 1.0])}, "`times` must .* got -1.0"),
        ({"rtol": 1e-16}, "`rtol` must .* got 1e-16"),
        ({"rtol": 2.0}, "`rtol` must .* got 2.0"),
        ({"cost_gradient": lambda matrix: matrix[:1]}, r"`gradient` must .* got \(1, 2\)"),
    ],
)
def test_bad_input_is_named(change, message):
    """The argument and its value are in the message."""
    arguments = {
        "cost_gradient": lambda matrix: matrix,
        "initial": np.eye(2),
        "depth": 3,
        "times": np.array([1.0]),
    }
    with pytest.raises(ValueError, match=message):
        theory.balanced_flow(**(arguments | change))


def test_a_failed_integration_is_an_error():
    """A cost without a minimum blows up in finite time; that is said, not returned."""
    with pytest.raises(RuntimeError, match="stopped early"):
        theory.balanced_flow(lambda matrix: -(matrix**3), np.eye(1), 3, np.array([100.0]))
