"""`saddleflow.theory.modes` against the layer-wise flow and multiple-precision quadrature."""

import mpmath
import numpy as np
import pytest

from saddleflow import theory


def quadrature_time(strength, singular_value, initial, depth):
    """Time from the integral itself, 30 digits."""
    with mpmath.workdps(30):
        a, s, a0 = mpmath.mpf(float(strength)), mpmath.mpf(singular_value), mpmath.mpf(initial)
        power = 2 - mpmath.mpf(2) / depth

        # In the log-odds u of a/s the integrand has neither the pole at s nor the steep start.
        def slope(u):
            return (s / (1 + mpmath.exp(-u))) ** (1 - power) / s

        low, high = mpmath.log(a0 / (s - a0)), mpmath.log(a / (s - a))
        cuts = mpmath.linspace(low, high, 2 + int((high - low) / 4))
        return float(mpmath.quad(slope, cuts) / depth)


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
@pytest.mark.parametrize(("singular_value", "initial"), [(1.0, 0.05), (2.5, 0.4)])
def test_modes_follow_the_layers(layerwise_flow, depth, singular_value, initial):
    """A chain of equal scalars, integrated layer by layer, has the strength that the closed form says."""
    layers = [np.full((1, 1), initial ** (1 / depth))] * depth
    end = theory.mode_time(np.array([singular_value * (1 - 1e-6)]), singular_value, initial, depth)[0]
    times = np.linspace(0, end, 40)
    _, matrices = layerwise_flow(layers, lambda matrix: matrix - singular_value, times)
    np.testing.assert_allclose(theory.deep_mode(times, singular_value, initial, depth), matrices.ravel(), rtol=1e-10)
    if depth == 2:
        closed = theory.two_layer_mode(times, singular_value, initial)
        np.testing.assert_allclose(closed, matrices.ravel(), rtol=1e-10)


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 10, 50])
@pytest.mark.parametrize(("singular_value", "initial"), [(1.0, 1e-3), (3.7, 1e-8), (0.02, 0.019)])
def test_mode_time_is_the_integral(depth, singular_value, initial):
    """From just above the start to within 1e-12 of saturation, relative error near rounding."""
    fractions = np.array([1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-12])
    strength = initial + (singular_value - initial) * fractions
    expected = [quadrature_time(a, singular_value, initial, depth) for a in strength]
    found = theory.mode_time(strength, singular_value, initial, depth)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_mode_time_is_the_hypergeometric_form():
    """The 2F1 form of the docstring, in 40 digits."""
    depth, s, a0, a = 5, 1.3, 1e-4, 1.1
    with mpmath.workdps(40):
        b = 1 - mpmath.mpf(2) / depth

        def antiderivative(x):
            return -(mpmath.mpf(x) ** -b) / b * mpmath.hyp2f1(1, -b, 1 - b, mpmath.mpf(x) / mpmath.mpf(s))

        # d/dx of x^-b 2F1(1,-b;1-b;x/s) / -b is x^-(1+b) / (1 - x/s), hence the 1/(L s).
        expected = float((antiderivative(a) - antiderivative(a0)) / (depth * mpmath.mpf(s)))
    np.testing.assert_allclose(theory.mode_time(np.array([a]), s, a0, depth), expected, rtol=1e-14)


def test_mode_time_ends():
    """Zero at the start, infinite at saturation, increasing to the last float64 below it."""
    strength = np.array([0.1, 0.5, 1 - 1e-10, np.nextafter(1.0, 0), 1.0])
    for depth in (2, 3, 6):
        times = theory.mode_time(strength, 1.0, 0.1, depth)
        assert times[0] == 0
        assert np.all(np.diff(times[:-1]) > 0)
        assert np.isfinite(times[-2])
        assert times[-1] == np.inf


@pytest.mark.parametrize("depth", [2, 3, 4, 12])
def test_deep_mode_solves_the_integral(depth):
    """Where a(t) is well conditioned, it is right to 1e-12, tiny starts and saturation included."""
    singular_value, initial = 1.7, 1e-9
    strength = np.array([1e-9 * (1 + 1e-5), 2e-9, 1e-7, 1e-3, 1.0, 1.69, 1.7 * (1 - 1e-11)])
    times = np.array([quadrature_time(a, singular_value, initial, depth) for a in strength])
    found = theory.deep_mode(times, singular_value, initial, depth)
    logarithmic_slope = depth * strength ** (1 - 2 / depth) * (singular_value - strength)
    condition = 1 + np.abs(np.log(initial)) + times * logarithmic_slope
    assert np.all(np.abs(found / strength - 1) < 8 * np.finfo(float).eps * condition)


def test_deep_mode_at_depth_two_is_the_sigmoid():
    """Two formulas that share no code."""
    times = np.array([0.0, 1e-8, 0.1, 3.0, 6.9, 8.0, 20.0, 1e3, 1e30])
    np.testing.assert_allclose(
        theory.deep_mode(times, 2.0, 1e-12, 2), theory.two_layer_mode(times, 2.0, 1e-12), rtol=1e-12
    )


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_modes_saturate_without_overflow(depth):
    """At any later time the strength is s, exactly and with no warning."""
    times = np.array([1e6, 1e300])
    assert np.all(theory.deep_mode(times, 3.0, 0.2, depth) == 3.0)
    assert np.all(theory.two_layer_mode(times, 3.0, 0.2) == 3.0)


def test_infinite_depth_is_the_limit():
    """L t approaches it as 1/L: extrapolated from depths 1000 and 2000 the two agree."""
    strength = np.array([0.1, 0.3, 0.8, 1.1])
    coarse, fine = (depth * theory.mode_time(strength, 1.2, 0.05, depth) for depth in (1000, 2000))
    limit = theory.infinite_depth_mode_time(strength, 1.2, 0.05)
    np.testing.assert_allclose(2 * fine - coarse, limit, rtol=1e-5)
    assert np.all(np.abs(fine / limit - 1) > 1e-4)
    assert theory.infinite_depth_mode_time(np.array([1.2]), 1.2, 0.05)[0] == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: theory.two_layer_mode(np.array([-1.0]), 1.0, 0.1),
            "`time` must be at least 0, but got -1.0",
        ),
        (lambda: theory.two_layer_mode(np.array([np.nan]), 1.0, 0.1), "`time` must be finite, but got 'nan"),
        (lambda: theory.two_layer_mode(np.array([1.0]), 0.0, 0.1), "`singular_value` must .* got 0.0"),
        (lambda: theory.two_layer_mode(np.array([1.0]), 1.0, 2.0), "`initial` must .* got 2.0"),
        (
            lambda: theory.deep_mode(np.array([1.0, 0.5]), 1.0, 0.1, 3),
            "`time` must ascend, but got '0.5 after 1.0'",
        ),
        (lambda: theory.deep_mode(np.array([1.0]), 1.0, -0.1, 3), "`initial` must .* got -0.1"),
        (lambda: theory.deep_mode(np.array([1.0]), 1.0, 0.1, 1), "`depth` must .* got 1"),
        (lambda: theory.mode_time(np.array([1.5]), 1.0, 0.1, 3), "`strength` must .* got 1.5"),
        (lambda: theory.mode_time(np.array([0.05]), 1.0, 0.1, 3), "`strength` must .* got 0.05"),
        (lambda: theory.mode_time(np.array([]), 1.0, 0.1, 3), r"`strength` must .* got 'shape \(0,\)"),
        (
            lambda: theory.infinite_depth_mode_time(np.array([0.5]), np.inf, 0.1),
            "`singular_value` must .* got inf",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    """The argument and its value are in the message."""
    with pytest.raises(ValueError, match=message):
        call()
