"""Softened activations: how far from the kinked ones, derivatives, bad input, and the limit of their flows."""

import math
from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.solvers import PredictiveController, Rosenbrock, Switching

EPSILONS = (1e-8, 1e-4, 1e-2, 1.0)
# soft, kinked, the distance over epsilon log 2 above and below
PAIRS = (
    (sf.activations.relu, jax.nn.relu, 1.0, 0.0),
    (partial(sf.activations.leaky_relu, slope=0.2), partial(jax.nn.leaky_relu, negative_slope=0.2), 0.8, 0.0),
    (sf.activations.absolute, jnp.abs, 2.0, 0.0),
    (sf.activations.hard_tanh, jax.nn.hard_tanh, 1.0, 1.0),
)


def points(epsilon):
    """Around the kinks at -1, 0 and 1, and far away."""
    near = epsilon * jnp.array([0.0, 1e-9, 0.1, 1, 3, 30, 50, 800])
    far = jnp.array([0.3, 5, 1e3, 1e17, 1e150, 1e308])
    return jnp.concatenate([s * x + c for s in (-1, 1) for x, c in ((near, 0), (near, 1), (near, -1), (far, 0))])


@pytest.mark.parametrize(("soft", "kinked", "above", "below"), PAIRS)
def test_the_distance_is_what_is_stated(soft, kinked, above, below):
    soft = jax.jit(soft)
    for epsilon in EPSILONS:
        x = points(epsilon)
        difference = np.asarray(soft(x, epsilon)) - np.asarray(kinked(x))
        rounding = 4e-16 * np.minimum(np.abs(x), 1e16)
        unit = epsilon * math.log(2)
        assert np.all(difference <= above * unit + rounding)
        assert np.all(difference >= -below * unit - rounding)
        tail = np.min(np.abs(x[:, None] - np.array([-1.0, 0, 1])), 1) > 40 * epsilon
        np.testing.assert_allclose(difference[tail], 0, atol=1e-16)


@pytest.mark.parametrize(("soft", "kinked", "above", "below"), PAIRS)
def test_three_derivatives_are_right_and_finite(soft, kinked, above, below):
    del kinked, above, below

    @jax.jit
    @jax.vmap
    def derivatives(x, epsilon):
        first = jax.grad(soft)
        second = jax.grad(first)
        return soft(x, epsilon), first(x, epsilon), second(x, epsilon), jax.grad(second)(x, epsilon)

    for epsilon in EPSILONS:
        x = points(epsilon)
        for values in (
            *derivatives(x, jnp.full_like(x, epsilon)),
            jax.vmap(jax.grad(soft, 1), (0, None))(x, epsilon),
        ):
            assert np.all(np.isfinite(values))
    # differences across the kink at zero, the point itself included
    x, h, epsilon = np.linspace(-0.2, 0.2, 41), 1e-6, 0.05
    here, left, right = (np.asarray(derivatives(x + s, np.full_like(x, epsilon))) for s in (0, -h, h))
    numeric = (right - left)[:3] / (2 * h)
    largest = np.max(np.abs(here[1:]), 1, keepdims=True)
    assert np.all(np.abs(here[1:] - numeric) < 1e-6 * largest + 1e-8)


def test_values_at_the_kink():
    relu, epsilon = sf.activations.relu, 1e-8
    derivative = jax.grad(relu)
    assert relu(0.0, epsilon) == pytest.approx(epsilon * math.log(2), rel=1e-15)
    assert derivative(0.0, epsilon) == 0.5
    assert jax.grad(derivative)(0.0, epsilon) == pytest.approx(0.25 / epsilon)
    assert jax.grad(sf.activations.leaky_relu)(0.0, epsilon, 0.1) == pytest.approx(0.55)
    assert jax.grad(sf.activations.absolute)(0.0, epsilon) == 0
    assert jax.grad(sf.activations.hard_tanh)(1.0, epsilon) == 0.5
    assert jax.grad(relu, 1)(0.0, epsilon) == pytest.approx(math.log(2))


def test_relu_scales_with_epsilon():
    x = jnp.linspace(-1, 1, 41)
    np.testing.assert_allclose(sf.activations.relu(1e3 * x, 10.0), 1e3 * sf.activations.relu(x, 1e-2), rtol=1e-12)


def test_exact_in_float32():
    x = jnp.array([-1.0, 0, 1e-3, 1], jnp.float32)
    soft = sf.activations.relu(x, 1e-2)
    assert soft.dtype == jnp.float32
    np.testing.assert_allclose(soft, 1e-2 * np.logaddexp(0, np.asarray(x, float) / 1e-2), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("epsilon", [0.0, -1e-2, math.inf, math.nan])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "absolute", "hard_tanh"])
def test_refuses_an_epsilon_that_is_no_width(name, epsilon):
    with pytest.raises(ValueError, match=r"`epsilon` must be finite and positive, but got .*softened kink"):
        getattr(sf.activations, name)(jnp.zeros(3), epsilon)


@pytest.mark.parametrize("slope", [-0.1, 1.1, math.nan])
def test_refuses_a_slope_that_turns_back(slope):
    with pytest.raises(ValueError, match="`slope` must lie between 0 and 1"):
        sf.activations.leaky_relu(jnp.zeros(3), 1e-2, slope)


def test_an_equinox_network_takes_it():
    def network(activation):
        return eqx.nn.MLP(3, "scalar", 6, 2, activation=activation, key=jax.random.key(0), dtype=float)

    x = jax.random.normal(jax.random.key(1), (20, 3))
    soft, kinked = network(partial(sf.activations.relu, epsilon=1e-6)), network(jax.nn.relu)
    difference = eqx.filter_jit(lambda a, b: jnp.max(jnp.abs(jax.vmap(a)(x) - jax.vmap(b)(x))))(soft, kinked)
    assert 0 < difference < 1e-5


def sliding_flow():
    """A 3-6-1 network, 20 samples and random targets; with ReLU its flow slides along kinks before t = 20."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs, targets = jax.random.normal(keys[0], (20, 3)), jax.random.normal(keys[1], (20,))
    start = {
        "first": jax.random.normal(keys[2], (6, 3)) / 3**0.5,
        "bias": jnp.zeros(6),
        "last": jax.random.normal(keys[3], (6,)) / 6**0.5,
    }

    def outputs(network, activation):
        return activation(inputs @ network["first"].T + network["bias"]) @ network["last"]

    def field(t, network, activation):
        gradient = jax.grad(lambda network: jnp.mean((outputs(network, activation) - targets) ** 2))(network)
        return jax.tree.map(jnp.negative, gradient)

    return start, outputs, field


def test_softened_flows_converge_to_the_sliding_one():
    """At first order in epsilon; the limit is that of Euler's polygons, which slide where the exact flow does."""
    start, outputs, field = sliding_flow()
    end, rtol, atol = 20.0, 1e-6, 1e-7

    @jax.jit
    def softened(epsilon):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, epsilon: field(t, y, partial(sf.activations.relu, epsilon=epsilon))),
            Switching(Rosenbrock(rtol=rtol, atol=atol)),
            0.0,
            end,
            1e-3,
            start,
            epsilon,
            stepsize_controller=PredictiveController(rtol=rtol, atol=atol),
        )
        network = jax.tree.map(lambda x: x[-1], solution.ys)
        return outputs(network, partial(sf.activations.relu, epsilon=epsilon)), solution.stats["num_steps"]

    @jax.jit
    def euler():
        h = 5e-4

        def step(_, network):
            return jax.tree.map(lambda x, f: x + h * f, network, field(0.0, network, jax.nn.relu))

        return outputs(jax.lax.fori_loop(0, round(end / h), step, start), jax.nn.relu)

    ends, steps = zip(*[softened(epsilon) for epsilon in (1e-1, 1e-2, 1e-3, 1e-4)], strict=True)
    differences = np.max(np.abs(np.diff(ends, axis=0)), 1)
    errors = np.max(np.abs(np.asarray(ends) - euler()), 1)  # Euler's own is 1e-4
    assert max(steps) < 700
    assert errors[0] < 0.2
    assert errors[-1] < 5e-4
    assert np.all(differences[1:] < differences[:-1] / 4)
    assert np.all(errors[1:] < errors[:-1] / 4)
