"""Telling a run that grinds at kinks from a smooth one."""

from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import saddleflow as sf
from saddleflow.flow.grinding import LARGEST_SHARE, Grinding
from saddleflow.solvers import PredictiveController, Rosenbrock, Switching
from saddleflow.solvers.controller import scaled_size


class Watched(PredictiveController):
    """The controller, with the detector and its largest share in its state."""

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first, state = super().init(terms, t0, t1, y0, dt0, args, func, error_order)
        return first, (state, Grinding.start(), jnp.zeros(()))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        state, grinding, largest = controller_state
        step = super().adapt_step_size(t0, t1, y0, y1_candidate, args, y_error, error_order, state)
        keep, begin, end, jump, state, result = step
        error = scaled_size(y0, y1_candidate, y_error, self.rtol, self.atol)
        grinding = grinding.follow(t1 - t0, keep, error, error_order)
        return keep, begin, end, jump, (state, grinding, jnp.maximum(largest, grinding.share)), result


def largest_shares(field, start, end, rtols, max_steps=4096):
    """The largest share of a run of our solver at each tolerance, of one program."""

    @jax.jit
    def run(rtol):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            Switching(Rosenbrock(rtol=rtol, atol=rtol / 10)),
            0.0,
            end,
            1e-3,
            start,
            stepsize_controller=Watched(rtol=rtol, atol=rtol / 10),
            max_steps=max_steps,
            throw=False,
            saveat=diffrax.SaveAt(t1=True, controller_state=True),
        )
        assert solution.controller_state is not None
        return solution.controller_state[2]

    return [float(run(rtol)) for rtol in rtols]


def network_shares(activation, rtols, max_steps=4096):
    """Of a 5-10-1 network on 100 samples with random targets."""
    keys = jax.random.split(jax.random.key(1), 4)
    inputs, targets = jax.random.normal(keys[0], (100, 5)), jax.random.normal(keys[1], (100,))
    start = jax.random.normal(keys[2], (10, 5)) / 5**0.5, jnp.zeros(10), jax.random.normal(keys[3], (10,)) / 10**0.5

    def cost(network):
        first, bias, last = network
        return jnp.mean((activation(inputs @ first.T + bias) @ last - targets) ** 2)

    def field(t, y, args):
        return jax.tree.map(jnp.negative, jax.grad(cost)(y))

    return largest_shares(field, start, 100.0, rtols, max_steps)


def test_kinks_grind_within_a_few_hundred_tries():
    assert min(network_shares(jax.nn.relu, (1e-5, 1e-6), max_steps=300)) > LARGEST_SHARE


@pytest.mark.parametrize(
    "activation",
    [jnp.tanh, jax.nn.gelu, partial(sf.activations.relu, epsilon=1e-2), partial(sf.activations.relu, epsilon=1e-3)],
    ids=["tanh", "gelu", "1e-2", "1e-3"],
)
def test_smooth_flows_do_not(activation):
    assert max(network_shares(activation, (1e-4, 1e-6))) < LARGEST_SHARE / 2


def test_escapes_from_saddles_do_not():
    """Three layers, a target of three modes, from a tiny start: every escape shrinks the steps."""
    start = tuple(1e-3 * jax.random.normal(key, (4, 4)) for key in jax.random.split(jax.random.key(0), 3))

    def cost(layers):
        return jnp.sum((layers[2] @ layers[1] @ layers[0] - jnp.diag(jnp.array([4.0, 2, 1, 0]))) ** 2)

    def field(t, y, args):
        return jax.tree.map(jnp.negative, jax.grad(cost)(y))

    assert max(largest_shares(field, start, 1e3, (1e-4, 1e-8))) < LARGEST_SHARE / 5


def followed(tries):
    """The detector after (h, accepted, error) of every try, at order 4."""
    grinding = Grinding.start()
    follow = jax.jit(lambda grinding, h, accepted, error: grinding.follow(h, accepted, error, 4))
    for h, accepted, error in tries:
        grinding = follow(grinding, jnp.asarray(h), jnp.asarray(accepted), jnp.asarray(error))
    return grinding


def test_what_counts_is_an_error_that_falls_too_slowly_on_retries():
    halves = [0.5**n for n in range(60)]
    assert followed([(h, False, 1e20 * h) for h in halves]).grinds
    assert not followed([(h, False, 1e80 * h**4) for h in halves]).grinds
    assert not followed([(h, False, jnp.inf) for h in halves]).grinds
    assert not followed([(1.0, n % 2 == 0, 2.0 - n % 2) for n in range(200)]).grinds  # one rejection for each step


def test_a_smooth_stretch_ends_it():
    ground = followed([(0.5**n, False, 1e20 * 0.5**n) for n in range(60)])
    assert ground.grinds
    for _ in range(100):
        ground = ground.follow(jnp.asarray(1.0), jnp.asarray(True), jnp.asarray(0.5), 4)
    assert not ground.grinds


def test_runs_of_kinked_models_end_by_name_and_with_advice():
    keys = jax.random.split(jax.random.key(1), 3)
    inputs, targets = jax.random.normal(keys[0], (100, 5)), jax.random.normal(keys[1], (100,))
    objective = sf.regression(lambda model, x: model(x), inputs, targets)

    def run(activation):
        model = eqx.nn.MLP(5, "scalar", 10, 1, activation, key=keys[2])
        return sf.gradient_flow(objective, model, t1=10.0, rtol=1e-5, progress=False)

    kinked, smooth = run(jax.nn.relu), run(partial(sf.activations.relu, epsilon=1e-2))
    assert kinked.stop_reason == "not_smooth"
    assert kinked.stats["num_steps"] < 1000
    assert "sf.activations" in str(kinked)
    assert smooth.stop_reason == "t1"
