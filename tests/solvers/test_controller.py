"""The predictive step-size controller, one decision at a time and on a solution that speeds up."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

from saddleflow.solvers import PredictiveController
from saddleflow.solvers.controller import amplified, scaled_error

ORDER = 4
CONTROLLER = PredictiveController(rtol=1e-3, atol=1e-6)
Y = jnp.array([0.0, 0.0, 0.0])


def fresh():
    term = diffrax.ODETerm(lambda t, y, args: y)
    _, state = CONTROLLER.init(term, 0.0, 1.0, Y, 0.1, None, term.vf, ORDER)
    return state


def decide(size, scaled_error, state=None, controller=CONTROLLER, candidate=Y):
    """One decision on a step of this size and error, in units of the tolerance: (kept, next size, state)."""
    error = jnp.full(3, scaled_error * 1e-6)
    state = fresh() if state is None else state
    keep, t0, t1, jump, state, result = controller.adapt_step_size(
        jnp.asarray(2.0), jnp.asarray(2.0) + size, Y, candidate, None, error, ORDER, state
    )
    assert result == diffrax.RESULTS.successful
    assert not bool(jump)
    assert float(t0) == pytest.approx(2.0 + size if keep else 2.0)
    return bool(keep), float(t1 - t0), state


def test_the_first_steps_follow_the_elementary_rule():
    kept, size, _ = decide(0.1, 0.5)
    assert kept
    assert size == pytest.approx(0.1 * 0.9 * 0.5 ** (-1 / ORDER))
    kept, size, _ = decide(0.1, 16.0)
    assert not kept
    assert size == pytest.approx(0.1 * 0.9 / 2)


def test_an_error_counts_by_what_it_does_to_a_quantity():
    """The sum of 10,000 entries: errors that cancel count as they are, those that add up ten times as much here."""
    start = jnp.ones(10_000)

    def quantity_error(y0, y1, error):
        return jnp.abs(jnp.sum(error)) / 100

    def size(error):
        raised = amplified(error, start, start, 1e-3, 1e-6, quantity_error)
        return jnp.linalg.norm(scaled_error(start, start, raised, 1e-3, 1e-6)) / 100

    alike, mixed = jnp.full(10_000, 1e-4), 1e-4 * (-1.0) ** jnp.arange(10_000)
    assert size(alike) == pytest.approx(1.0)
    assert size(mixed) == pytest.approx(0.1, rel=2e-3)
    assert not jnp.isfinite(size(jnp.full(10_000, jnp.inf)))
    assert size(0 * alike) == 0


def test_a_growing_error_shrinks_an_accepted_step():
    """What diffrax's own controller never does: error up 16-fold at the same size, so the next would be rejected."""
    _, size, state = decide(0.1, 0.9 / 16)
    kept, size, _ = decide(0.1, 0.9, state)
    assert kept
    assert size == pytest.approx(0.1 * 0.9 * 0.9 ** (-1 / ORDER) / 2)


def test_a_falling_error_does_not_speed_up_beyond_the_elementary_rule():
    _, _, state = decide(0.1, 0.9)
    kept, size, _ = decide(0.1, 0.1, state)
    assert kept
    assert size == pytest.approx(0.1 * 0.9 * 0.1 ** (-1 / ORDER))


def test_the_bound_is_one():
    assert decide(0.1, 0.99)[0]
    assert not decide(0.1, 1.01)[0]


def test_a_rejected_step_is_neither_predicted_from_nor_remembered():
    _, _, state = decide(0.1, 0.5)
    kept, size, after = decide(0.05, 16.0, state)
    assert not kept
    assert size == pytest.approx(0.05 * 0.9 / 2)
    assert bool(after.failed)
    assert float(after.size) == pytest.approx(0.1)
    assert float(after.error) == pytest.approx(0.5)
    assert not bool(decide(0.1, 0.5, after)[2].failed)


def test_limits():
    assert decide(0.1, 1e-30)[1] == pytest.approx(0.1 * 8.0)
    assert decide(0.1, 1e30)[1] == pytest.approx(0.1 * 0.2)
    _, size, state = decide(0.1, 1e30)
    kept, after, _ = decide(size, 1e-30, state)  # just after a rejection: no growth
    assert kept
    assert after == pytest.approx(size)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_error_that_is_no_number_is_a_rejection(bad):
    kept, size, state = decide(0.1, bad)
    assert not kept
    assert size == pytest.approx(0.02)
    assert bool(state.failed)
    assert np.isfinite(float(state.error))
    # a candidate that is none does not hide the error either
    assert not decide(0.1, 2.0, candidate=jnp.array([jnp.nan, 0.0, 0.0]))[0]


def test_the_error_is_weighed_entry_by_entry():
    """By atol + rtol max(|y0|, |y1|): one million times the tolerance of zero is that of 1e3."""
    big = jnp.full(3, 1e3)
    assert not decide(0.1, 0.9e6)[0]
    assert decide(0.1, 0.9e6, candidate=big)[0]


def test_a_solution_that_speeds_up_costs_few_rejections():
    """dy/dt = y^2 towards its pole: the step must shrink with the time that is left."""
    term = diffrax.ODETerm(lambda t, y, args: y**2)
    counts = {}
    for name, controller in (
        ("predictive", PredictiveController(rtol=1e-7, atol=1e-9)),
        ("proportional", diffrax.PIDController(rtol=1e-7, atol=1e-9)),
    ):
        solution = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 1 - 1e-4, 0.01, jnp.ones(1), stepsize_controller=controller
        )
        assert float(solution.ys[-1, 0]) == pytest.approx(1e4, rel=0.05)
        counts[name] = int(solution.stats["num_rejected_steps"])
    assert counts["predictive"] <= 3
    assert counts["proportional"] >= 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"safety": 2.0}, "`safety` must lie between 0 and 1, but got 2.0"),
        ({"safety": 0.0}, "`safety` must lie between 0 and 1, but got 0.0"),
        ({"factormin": 1.5}, "`factormin` must lie between 0 and 1, but got 1.5"),
        ({"factormax": 0.5}, "`factormax` must lie between 1 and .*, but got 0.5"),
        ({"rtol": 0.0}, "`rtol` must be finite and positive, but got 0.0"),
        ({"rtol": float("nan")}, "`rtol` must be finite and positive, but got nan"),
        ({"atol": -1.0}, "`atol` must be finite and positive, but got -1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PredictiveController(**({"rtol": 1e-3, "atol": 1e-6} | arguments))
