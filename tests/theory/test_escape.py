"""`saddleflow.theory.escape` against the layer-wise flow of the homogeneous model and direct maximisation."""

from functools import reduce

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

from saddleflow import theory


def model(flat, gradient, depth, width):
    """H(theta) = Tr(G^T A_theta) and its gradient, theta flat."""
    n_out, n_in = gradient.shape
    sizes = [n_in, *[width] * (depth - 1), n_out]
    shapes = [(sizes[index + 1], sizes[index]) for index in range(depth)]
    parts = np.split(flat, np.cumsum([rows * columns for rows, columns in shapes])[:-1])
    layers = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def product(factors, size):
        return reduce(lambda below, layer: layer @ below, factors, np.eye(size))

    slopes = [
        product(layers[index + 1 :], sizes[index + 1]).T @ gradient @ product(layers[:index], n_in).T
        for index in range(depth)
    ]
    value = np.sum(gradient * product(layers, n_in))
    return value, np.concatenate([slope.ravel() for slope in slopes])


def blow_up(start, gradient, depth, width):
    """Time at which the flow of H from `start` reaches infinity."""

    # d tau = norm^(L-2) dt: the direction has speed of order one and t(tau) converges.
    def velocity(_, state):
        norm = np.exp(state[-2])
        slope = model(state[:-2], gradient, depth, width)[1]
        radial = -state[:-2] @ slope
        return np.concatenate([-slope - radial * state[:-2], [radial, norm ** -(depth - 2)]])

    norm = np.linalg.norm(start)
    state = np.concatenate([start / norm, [np.log(norm), 0.0]])
    return solve_ivp(velocity, (0, 400 / np.linalg.norm(gradient, 2)), state, rtol=1e-9, atol=1e-13).y[-1, -1]


GRADIENT = np.random.default_rng(2).standard_normal((3, 4))


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_speed_is_the_maximum_on_the_sphere(depth):
    """Maximise -L H over the unit sphere at width 3 from random starts: the best found is s*."""
    rng = np.random.default_rng(depth)
    num_parameters = 4 * 3 + (depth - 2) * 9 + 3 * 3

    def negative_speed(flat):
        norm = np.linalg.norm(flat)
        value, slope = model(flat / norm, GRADIENT, depth, 3)
        return depth * value, depth * (slope - depth * value * flat / norm) / norm

    found = [
        -minimize(negative_speed, rng.standard_normal(num_parameters), jac=True, tol=1e-12).fun for _ in range(8)
    ]
    np.testing.assert_allclose(max(found), theory.escape_speed(GRADIENT, depth), rtol=1e-9)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_direction_is_an_escape_direction(depth):
    """Unit norm, and -grad H(rho) = s* rho."""
    direction = theory.escape_direction(GRADIENT, depth)
    assert [layer.shape for layer in direction] == [(1, 4), *[(1, 1)] * (depth - 2), (3, 1)]
    flat = np.concatenate([layer.ravel() for layer in direction])
    np.testing.assert_allclose(np.linalg.norm(flat), 1, rtol=1e-14)
    slope = model(flat, GRADIENT, depth, 1)[1]
    np.testing.assert_allclose(-slope, theory.escape_speed(GRADIENT, depth) * flat, atol=1e-14)


def test_direction_has_one_sign():
    """Whichever sign the SVD picks, the largest entry of u_1 is positive and H(rho) negative."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        gradient = rng.standard_normal((4, 3))
        first, last = theory.escape_direction(gradient, 2)
        assert last[np.argmax(np.abs(last))] > 0
        assert np.sum(gradient * (last @ first)) < 0


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_norm_law(layerwise_flow, depth):
    """The flow of H from the escape direction: its norm, forwards; backwards by starting there."""
    direction = [0.4 * layer for layer in theory.escape_direction(GRADIENT, depth)]
    speed = theory.escape_speed(GRADIENT, depth)
    end = min(0.95 * theory.blow_up_time(0.4, speed, depth), 4.0)
    times = np.linspace(0, end, 9)
    states, _ = layerwise_flow(direction, lambda _: GRADIENT, times)
    norms = np.sqrt([sum(np.sum(layer**2) for layer in state) for state in states])
    assert norms[-1] > 3 * norms[0]
    np.testing.assert_allclose(theory.escape_norm(times, 0.4, speed, depth), norms, rtol=1e-10)
    np.testing.assert_allclose(theory.escape_norm(times - end, norms[-1], speed, depth), norms, rtol=1e-9)


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_measured_speed_is_that_of_the_norm_law(depth):
    """The gradient norm s |theta|^(L-1) along an escape gives the speed back; one that does not grow, none."""
    times = np.linspace(0, 0.9 * min(theory.blow_up_time(0.3, 1.7, depth), 4.0), 7)
    norms = theory.escape_norm(times, 0.3, 1.7, depth)
    speed = theory.measured_escape_speed(times, 1.7 * norms ** (depth - 1), depth)
    np.testing.assert_allclose(speed, 1.7, rtol=1e-9)
    falling = theory.measured_escape_speed(times, np.exp(-times), depth)
    np.testing.assert_allclose(falling, -1 if depth == 2 else 0, atol=1e-12)


@pytest.mark.parametrize("depth", [3, 4])
def test_blow_up_time_is_attained_and_a_lower_bound(depth):
    """Attained on the escape direction; other starts take longer, by alpha^-(L-2) when scaled by alpha."""
    speed = theory.escape_speed(GRADIENT, depth)
    straight = np.concatenate([layer.ravel() for layer in theory.escape_direction(GRADIENT, depth)])
    np.testing.assert_allclose(
        blow_up(0.7 * straight, GRADIENT, depth, 1), theory.blow_up_time(0.7, speed, depth), rtol=1e-6
    )
    start = np.random.default_rng(1).standard_normal(4 * 2 + (depth - 2) * 4 + 2 * 3)
    start /= np.linalg.norm(start)
    unit = blow_up(start, GRADIENT, depth, 2)
    assert unit > 1.01 * theory.blow_up_time(1.0, speed, depth)
    np.testing.assert_allclose(blow_up(0.01 * start, GRADIENT, depth, 2), unit * 0.01 ** -(depth - 2), rtol=1e-6)
    assert theory.blow_up_time(1.0, speed, 2) == np.inf


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_waiting_times_approach_their_ratio(depth):
    """Times to half strength of scalar chains, integrated; smaller starts come closer to the limit."""
    singular_values = np.array([0.8, 2.0, 1.0])
    expected = theory.waiting_time_ratio(singular_values)

    def half_time(singular_value, strength):
        # In u = log a the equation is autonomous and smooth; t as a function of u needs no event.
        def slowness(u, _):
            return 1 / (depth * np.exp(u * (1 - 2 / depth)) * (singular_value - np.exp(u)))

        span = (np.log(strength), np.log(singular_value / 2))
        return solve_ivp(slowness, span, [0.0], rtol=1e-10, atol=1e-10).y[0, -1]

    errors = []
    for strength in (1e-4, 1e-8):
        waits = np.array([half_time(s, strength) for s in singular_values])
        errors.append(np.abs(waits / waits.min() / expected - 1).max())
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < (0.1 if depth == 2 else 0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.escape_speed(np.eye(2), 1), "`depth` must .* got 1"),
        (lambda: theory.escape_direction(np.zeros((2, 2)), 3), "`gradient` must be nonzero"),
        (lambda: theory.escape_direction(np.eye(2), 3), r"`gradient` must .* got \[1.0, 1.0\]"),
        (
            lambda: theory.escape_norm(np.array([1.0]), 1.0, 1.0, 3),
            "`time` must be below the blow-up time 1.0, but got 1.0",
        ),
        (lambda: theory.escape_norm(np.array([0.1]), -1.0, 1.0, 3), "`initial_norm` must .* got -1.0"),
        (lambda: theory.blow_up_time(1.0, 0.0, 3), "`speed` must .* got 0.0"),
        (lambda: theory.measured_escape_speed(np.zeros(2), np.ones(2), 3), "`time` must hold two different"),
        (lambda: theory.measured_escape_speed(np.arange(2.0), np.ones(3), 3), "`gradient_norm` must hold 2 values"),
        (lambda: theory.measured_escape_speed(np.arange(2.0), np.zeros(2), 3), "`gradient_norm` must be positive"),
        (lambda: theory.waiting_time_ratio(np.array([1.0, 0.0])), "`singular_values` must .* got 0.0"),
    ],
)
def test_bad_input_is_named(call, message):
    """The argument and its value are in the message."""
    with pytest.raises(ValueError, match=message):
        call()
