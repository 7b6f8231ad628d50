"""The numerical differentiation formulas: their orders, their dense output, and stiff problems whose valleys turn."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import binom

from saddleflow.solvers import NDF, NDFState, PredictiveController, Work
from saddleflow.solvers.ndf import ALPHA, ERROR, ROWS


def newton(terms, t, y, args):
    """Newton's method with the dense Jacobian of a flat state."""
    slope, jacobian = terms.vf(t, y, args), jax.jacfwd(lambda q: terms.vf(t, q, args))(y)
    return lambda c, b: jnp.linalg.solve(jnp.eye(len(y)) - c * jacobian, b + c * slope)


RICCATI = diffrax.ODETerm(lambda t, y, args: -(y**2))


def exact(t):
    return 1 / (1 + t)


def past(h, order):
    """The state of a solver that has been exact for `ROWS` steps of size h, up to time 0."""
    values = exact(-h * np.arange(ROWS))
    differences = [sum((-1) ** i * binom(n, i) * values[i] for i in range(n + 1)) for n in range(ROWS)]
    none = jnp.zeros((), int)
    return NDFState(Work.none(), jnp.asarray(differences)[:, None], jnp.asarray(h), none + order, none, none, none)


@eqx.filter_jit
def step(h, state):
    solver = NDF(newton, rtol=1e-12, atol=1e-12)
    return solver.step(RICCATI, jnp.zeros(()), h, jnp.ones(1), None, state, False)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_order_of_convergence(order):
    """From an exact past a step errs by the formula's constant times `h^(k + 1) d^(k + 1)y/dt^(k + 1)`."""
    sizes = 0.02 / 2.0 ** np.arange(3)
    errors = np.array([float(step(jnp.asarray(h), past(h, order))[0][0]) - exact(h) for h in sizes])
    measured = np.log2(errors[:-1] / errors[1:])
    np.testing.assert_allclose(measured, order + 1, atol=0.12)
    derivative = (-1) ** (order + 1) * np.prod(np.arange(1, order + 2))
    constant = ERROR[order] / ALPHA[order]
    np.testing.assert_allclose(errors[-1], constant * derivative * sizes[-1] ** (order + 1), rtol=0.1)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_a_new_step_size_keeps_the_polynomial_of_the_past(ratio):
    """The prediction from rescaled differences is the old polynomial's value at the new point."""
    h, order = 0.05, 4
    _, _, dense, state, _ = step(jnp.asarray(h), past(h, order))
    interpolation = NDF.interpolation_cls(t0=jnp.zeros(()), t1=jnp.asarray(h), **dense)
    expected = float(interpolation.evaluate(jnp.asarray(h + ratio * h))[0])
    solver = NDF(lambda *_: lambda c, b: jnp.zeros_like(b), rtol=1e-12, atol=1e-12)  # stays at the prediction
    state = eqx.tree_at(lambda s: s.order, state, dense["order"])
    value, *_ = solver.step(RICCATI, jnp.zeros(()), jnp.asarray(ratio * h), jnp.ones(1), None, state, False)
    np.testing.assert_allclose(float(value[0]), expected, rtol=1e-13)


def test_dense_output_meets_both_ends_and_the_solution_between():
    h, order = 0.05, 5
    y1, _, dense, _, _ = step(jnp.asarray(h), past(h, order))
    interpolation = NDF.interpolation_cls(t0=jnp.zeros(()), t1=jnp.asarray(h), **dense)
    np.testing.assert_allclose(interpolation.evaluate(jnp.zeros(())), 1.0, rtol=1e-14)
    np.testing.assert_allclose(interpolation.evaluate(jnp.asarray(h)), y1, rtol=1e-14)
    for share in (0.25, 0.5, 0.75):
        np.testing.assert_allclose(interpolation.evaluate(jnp.asarray(share * h)), exact(share * h), rtol=2e-6)


def valley(t, y, args):
    """Downhill on `stiffness (x_1 x_2 - 1)^2 / 2 + x_2^2 / 2`: along a hyperbola, for ever."""
    del t
    a, b = y
    residual = args * (a * b - 1)
    return -jnp.stack([residual * b, residual * a + b])


@eqx.filter_jit
def creep(rtol, stiffness, t1):
    solver = NDF(newton, rtol=rtol, atol=rtol * 1e-3)
    start = jnp.array([2.0, 0.5])
    return diffrax.diffeqsolve(
        diffrax.ODETerm(valley),
        solver,
        0.0,
        t1,
        1e-6,
        start,
        stiffness,
        stepsize_controller=PredictiveController(rtol=rtol, atol=rtol * 1e-3, predicts=False),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
        max_steps=4000,
        throw=False,
    )


@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("stiffness", [1e3, 1e9])
def test_a_valley_that_turns_costs_no_more_for_being_steep(rtol, stiffness):
    """On the hyperbola `(x, 1/x)` the flow is `x' (1 + x^-4) = x^-3`, so that `x^4 / 4 + log x - t` is constant."""
    t1 = 1e6
    solution = creep(rtol, stiffness, t1)
    x = float(solution.ys[0, 0])
    passed = (x**4 - 2.0**4) / 4 + np.log(x / 2)
    # the valley's floor lies 1 / stiffness beside the hyperbola
    assert abs(passed / t1 - 1) < 4 * 10 * rtol + 10 / stiffness
    assert int(solution.stats["num_steps"]) < 110 * np.log10(1 / rtol)
