"""What users call: the pure flow beside the trajectory, options and their defaults, stop reasons."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow._backend import programs
from saddleflow._backend.random import LONGEST, normal_matrices, permutation
from saddleflow.flow.arguments import FlowOptions


def test_integrate_is_the_flow_as_a_pure_function(small_cost):
    """Under jit and vmap: the trajectory's rows, end and reason, to the tolerance."""
    keys, rtol = jax.random.split(jax.random.key(7), 3), 1e-5

    def start(key):
        return sf.gaussian(key, depth=3, width=6, shape=(4, 4), gamma=1.0)

    def lane(key, rtol):
        return sf.integrate(small_cost, start(key), rtol=rtol, observables=["layer_norms"])

    batch = jax.jit(jax.vmap(lane, in_axes=(0, None)))(keys, rtol)
    assert batch.time.shape == (3, 64)
    for number, key in enumerate(keys):
        alone = sf.gradient_flow(small_cost, start(key), rtol=rtol)
        together = jax.tree.map(lambda x, number=number: x[number], batch)
        rows = int(together.num_rows)
        scale = np.abs(alone.end_to_end).max()
        assert sf.StopReason(int(together.stop_reason)).name == alone.stop_reason == "converged"
        assert together.observables["layer_norms"].shape == (64, 3)
        np.testing.assert_array_equal(together.end_to_end[rows:], 0.0)
        assert np.all(np.diff(together.time[:rows]) > 0)
        np.testing.assert_allclose(
            together.network.end_to_end(), alone.end_to_end[-1], atol=10 * rtol * scale, rtol=0
        )
        assert together.num_rejected_steps <= together.num_steps


def test_gradient_flow_in_a_trace_says_what_to_call(small_cost, small_network):
    with pytest.raises(ValueError, match=r"`network` must be concrete, but got a tracer.*Call saddleflow\.integrate"):
        jax.vmap(lambda scale: sf.gradient_flow(small_cost, scale * small_network))(jnp.array([1.0, 2.0]))


@pytest.mark.parametrize("function", [sf.gradient_flow, sf.integrate])
def test_an_unknown_keyword_is_answered_with_the_nearest(function, small_cost, small_network):
    with pytest.raises(
        TypeError, match=rf"`save_att` is no argument of {function.__name__}. Did you mean `save_at`?"
    ):
        function(small_cost, small_network, save_att=[1.0])
    with pytest.raises(TypeError, match="Known: cost, network, rtol"):
        function(small_cost, small_network, xyzzy=1)


def test_defaults_are_the_same_everywhere():
    """One default for an option, but for the rows of `integrate`, which says why."""
    defaults = {name: field.default for name, field in FlowOptions.__dataclass_fields__.items()}
    for function, others in ((sf.gradient_flow, {}), (sf.integrate, {"max_saves": 64})):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in defaults:
                assert parameter.default == others.get(name, defaults[name]), (function.__name__, name)


def test_stop_reasons_keep_their_numbers():
    """Stores hold the numbers, so that none may change."""
    assert [reason.name for reason in sf.StopReason] == [
        *("running", "converged", "t1", "max_steps", "step_size_underflow", "non_finite"),
        *("stop", "max_seconds", "stationary_saddle", "below_resolution", "diverges", "stationary", "not_smooth"),
        *("target_cost", "num_steps", "unstable"),
    ]
    assert [int(reason) for reason in sf.StopReason] == list(range(16))
    assert all(reason.meaning.endswith(".") for reason in sf.StopReason)


@pytest.mark.slow
def test_the_order_of_reasons_is_that_of_the_loop(small_cost, small_network):
    """A certificate comes before `stop`, `stop` before the end of the interval, that before the last step allowed."""
    run = sf.gradient_flow(small_cost, small_network, t1=1.0)
    steps = run.stats["num_steps"]
    both = sf.gradient_flow(small_cost, small_network, t1=1.0, max_steps=steps)
    assert both.stop_reason == "t1"
    stopped = sf.gradient_flow(small_cost, small_network, t1=1.0, stop=lambda time, network: time >= 1.0)
    assert stopped.stop_reason == "stop"
    whole = sf.gradient_flow(small_cost, small_network)
    end = float(whole.time[-1])
    certified = sf.gradient_flow(small_cost, small_network, stop=lambda time, network: time >= end)
    assert certified.stop_reason == "converged"


def test_draws_are_those_of_jax_random():
    """Padding changes no number, at hand or traced, short or long."""
    key = jax.random.key(5)
    for shapes in ([(3, 4), (5, 3)], [(70, 80), (2, 70), (1, 2), (4, 1), (3, 4)], [(1, LONGEST + 1), (2, 1)]):
        drawn = normal_matrices(key, shapes)
        traced = jax.jit(lambda key, shapes=tuple(shapes): normal_matrices(key, shapes))(key)
        for one, two, part, shape in zip(drawn, traced, jax.random.split(key, len(shapes)), shapes, strict=True):
            expected = jax.random.normal(part, shape, float)
            np.testing.assert_array_equal(one, expected)
            np.testing.assert_allclose(two, expected, rtol=1e-15, atol=0)
    np.testing.assert_array_equal(permutation(key, 2, 100), jax.random.permutation(jax.random.split(key, 3)[2], 100))


def test_a_task_and_a_start_compile_few_programs(compilations):
    jax.clear_caches()
    with compilations() as compiled:
        cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(6, 5), rank=2)
        sf.gaussian(jax.random.key(1), depth=3, width=9, shape=cost.shape, gamma=1.0)
    first = len(compiled)
    with compilations() as compiled:
        cost = sf.MatrixCompletion.random(jax.random.key(2), shape=(6, 5), rank=2)
        2.0 * sf.gaussian(jax.random.key(1), depth=4, width=11, shape=(7, 5), gamma=1.0)
    assert first <= 14
    assert len(compiled) == 0


def test_options_that_the_running_jax_does_not_know_are_not_asked_for(monkeypatch):
    programs.compiler_options.cache_clear()
    known = programs.compiler_options()
    assert jax.jit(lambda x: x + 1, **known)(1) == 2
    programs.compiler_options.cache_clear()
    monkeypatch.setattr(programs, "CPU_OPTIONS", {"xla_cpu_no_such_option": True})
    assert programs.compiler_options() == {}
    programs.compiler_options.cache_clear()
