"""`saddleflow.theory.wide` against networks integrated layer by layer, quadrature and saddleflow's solver."""

from functools import cache, reduce

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm

import saddleflow as sf
from saddleflow import theory

TARGET = np.array([[1.0, 0.3, 0.0], [-0.2, 0.5, 0.4]])


def gaussian(depth, width, gamma, seed=0, shape=(2, 3)):
    rng = np.random.default_rng(seed)
    sizes = [shape[1], *[width] * (depth - 1), shape[0]]
    return [rng.standard_normal((sizes[index + 1], sizes[index])) * width ** (-gamma / 2) for index in range(depth)]


def product(layers):
    return reduce(lambda below, layer: layer @ below, layers)


def relative_distance(matrices, others):
    return np.linalg.norm(matrices - others, axis=(1, 2)).max() / np.linalg.norm(others, axis=(1, 2)).max()


def two_layers(layers, times):
    """The flow of two layers in double precision, their entries one vector."""
    first, second = layers

    def velocity(_, flat):
        one, two = flat[: first.size].reshape(first.shape), flat[first.size :].reshape(second.shape)
        residual = two @ one - TARGET
        return -np.concatenate([(two.T @ residual).ravel(), (residual @ one.T).ravel()])

    start = np.concatenate([first.ravel(), second.ravel()])
    flats = solve_ivp(velocity, (0, times[-1]), start, method="DOP853", t_eval=times, rtol=1e-9, atol=1e-12).y.T
    return np.array(
        [flat[first.size :].reshape(second.shape) @ flat[: first.size].reshape(first.shape) for flat in flats]
    )


@pytest.mark.parametrize("gamma", [0.75, 1.0, 1.5])
def test_wide_flow_is_that_of_wide_layers(gamma):
    """Means over three seeds of the largest distance: near .05, .016, .004 (docs/theory.md, section 7.6), falling."""
    errors = []
    for width in (50, 400, 3200):
        times = np.linspace(0, 8 / width ** max(0.0, 1 - gamma), 30)
        found = []
        for seed in range(3):
            layers = gaussian(2, width, gamma, seed)
            wide = theory.wide_two_layer_flow(times, product(layers), TARGET, width ** (1 - gamma))
            found.append(relative_distance(wide, two_layers(layers, times)))
        errors.append(np.mean(found))
    assert np.all(np.array(errors) < [0.06, 0.03, 0.01])
    assert errors[2] < 0.3 * errors[0]


def test_wide_flow_at_width_400_and_the_solver():
    """The formula's own accuracy, against saddleflow on 1/2 |A - S|^2, times doubled for its |A - S|^2."""
    layers = gaussian(2, 400, 1.0, 1)
    times = np.linspace(0, 8, 20)
    cost = sf.MeanSquaredError.teacher(jnp.asarray(TARGET))
    trajectory = sf.gradient_flow(cost, sf.DeepLinearNetwork(layers), rtol=1e-8, save_at=times / 2)
    wide = theory.wide_two_layer_flow(times, product(layers), TARGET, 1.0)
    assert relative_distance(wide, np.asarray(trajectory.end_to_end)) < 0.03


def test_wide_flow_solves_its_equation():
    """The field with SciPy's matrix square roots, another integrator; rectangular, from zero and from noise."""
    times = np.array([0.0, 0.1, 1.0, 3.0])
    for shape in ((2, 3), (3, 2)):
        rng = np.random.default_rng(0)
        target, start = rng.standard_normal(shape), rng.standard_normal(shape)
        for scale in (0.05, 2.0):

            def velocity(_, flat, shape=shape, target=target, scale=scale):
                matrix = flat.reshape(shape)
                left = sqrtm(matrix @ matrix.T + scale**2 * np.eye(shape[0]))
                right = sqrtm(matrix.T @ matrix + scale**2 * np.eye(shape[1]))
                return -(left @ (matrix - target) + (matrix - target) @ right).ravel()

            for initial in (start, 0 * start):
                exact = solve_ivp(
                    velocity, (0, 3), initial.ravel(), "LSODA", t_eval=times, rtol=1e-11, atol=1e-12
                ).y.T.reshape(-1, *shape)
                found = theory.wide_two_layer_flow(times, initial, target, scale)
                np.testing.assert_allclose(found, exact, atol=1e-8)


def test_wide_flow_of_one_number():
    """n = 1: the time to a given strength is an integral, here in 20 digits."""
    c, s, a0, a = 0.1, 1.5, 0.02, 1.3
    with mpmath.workdps(20):
        time = float(mpmath.quad(lambda x: 1 / (2 * mpmath.sqrt(x**2 + c**2) * (s - x)), [a0, 0.2, 1, a]))
    found = theory.wide_two_layer_flow(np.array([time]), np.array([[a0]]), np.array([[s]]), c)
    np.testing.assert_allclose(found[0, 0, 0], a, rtol=1e-9)


def test_wide_flow_is_lazy_and_balanced_at_its_ends():
    """c large: e^{-2ct}; c small: the balanced flow, from the same A_0."""
    start = 0.3 * np.random.default_rng(0).standard_normal((2, 3))
    times = np.linspace(0, 3, 7)
    lazy = theory.lazy_flow(times / 1e4, start, TARGET, 2e4)
    np.testing.assert_allclose(theory.wide_two_layer_flow(times / 1e4, start, TARGET, 1e4), lazy, atol=1e-6)
    balanced = theory.balanced_flow(lambda matrix: matrix - TARGET, start, 2, times)
    np.testing.assert_allclose(theory.wide_two_layer_flow(times, start, TARGET, 1e-7), balanced, atol=1e-6)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_solver_is_lazy_at_large_starts(depth):
    """Width 400, gamma = 1 - 1/L, S - A_0 small: the formula's own error, as w^-1/2, against saddleflow."""
    gamma = 1 - 1 / depth
    layers = gaussian(depth, 400, gamma, 2)
    rate = theory.ntk_rate(depth, 400, gamma)
    target = product(layers) + 0.3 * TARGET
    times = np.linspace(0, 4 / rate, 20)
    cost = sf.MeanSquaredError.teacher(jnp.asarray(target))
    trajectory = sf.gradient_flow(cost, sf.DeepLinearNetwork(layers), rtol=1e-8, save_at=times / 2)
    lazy = theory.lazy_flow(times, product(layers), target, rate)
    errors = np.linalg.norm(lazy - np.asarray(trajectory.end_to_end), axis=(1, 2))
    assert errors.max() < 0.15 * np.linalg.norm(0.3 * TARGET)


def test_ntk_rate_is_the_mean_of_the_kernel():
    """Trace of sum_l M_l M_l^T (x) N_l^T N_l over n_out n_in, the mean of twenty starts, within 5%."""
    for depth, width, gamma in ((2, 200, 0.5), (3, 100, 0.7), (4, 60, 1.0), (4, 60, 1.5)):
        traces = []
        for seed in range(20):
            layers = gaussian(depth, width, gamma, seed)
            traces.append(
                sum(
                    np.sum(reduce(lambda a, b: b @ a, layers[index + 1 :], np.eye(layer.shape[0])) ** 2)
                    * np.sum(reduce(lambda a, b: b @ a, layers[:index], np.eye(3)) ** 2)
                    for index, layer in enumerate(layers)
                )
                / 6
            )
        np.testing.assert_allclose(np.mean(traces), theory.ntk_rate(depth, width, gamma), rtol=0.08)


@cache
def mean_field_blow_up(depth, width):
    """Mean blow-up time of the homogeneous model, six seeds at gamma = 1."""
    layers = (gaussian(depth, width, 1.0, seed) for seed in range(6))
    return np.mean([theory.homogeneous_escape(-TARGET, start).time for start in layers])


@pytest.mark.parametrize(("depth", "gamma"), [(3, 1.0), (3, 1.5), (3, 2.0), (4, 1.0), (4, 1.5), (4, 2.0)])
def test_plateaus_scale_with_the_width(depth, gamma):
    """Blow-up times at widths 20 and 80; from gamma = 1 by homogeneity, which test_homogeneous.py checks."""
    means = [mean_field_blow_up(depth, width) * width ** ((gamma - 1) / 2 * (depth - 2)) for width in (20, 80)]
    slope = np.log(means[1] / means[0]) / np.log(4)
    np.testing.assert_allclose(slope, theory.plateau_exponent(depth, gamma), atol=0.1)


def test_plateau_exponent_in_its_other_cases():
    assert theory.plateau_exponent(2, 3.0) == 0
    np.testing.assert_allclose(theory.plateau_exponent(4, 0.75), -0.75)
    np.testing.assert_allclose(np.log(theory.ntk_rate(4, 100, 0.75) / 4) / np.log(100), 0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.lazy_flow(np.array([1.0, 0.0]), TARGET, TARGET, 1.0), "`times` must ascend"),
        (lambda: theory.lazy_flow(np.array([1.0]), TARGET, TARGET, -1.0), "`rate` must .* got -1.0"),
        (lambda: theory.ntk_rate(1, 10, 1.0), "`depth` must .* got 1"),
        (lambda: theory.ntk_rate(2, 0, 1.0), "`width` must .* got 0"),
        (lambda: theory.ntk_rate(2, 10, np.nan), "`gamma` must be finite, but got nan"),
        (lambda: theory.wide_two_layer_flow(np.array([1.0]), TARGET, TARGET, 0.0), "`scale` must .* got 0.0"),
        (lambda: theory.wide_two_layer_flow(np.array([-1.0]), TARGET, TARGET, 1.0), "`times` must .* got -1.0"),
        (lambda: theory.wide_two_layer_flow(np.array([1.0]), np.nan * TARGET, TARGET, 1.0), "`start` must be finite"),
        (lambda: theory.plateau_exponent(4, 0.5), "`gamma` must .* got 0.5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
