"""Explicit steps where nothing is stiff, implicit ones where something is: accuracy, choice, counters."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from saddleflow.solvers import PredictiveController, Rosenbrock, Switching
from saddleflow.solvers.switching import POWER_ITERATIONS, STABLE, STALE, explicit_step

DIM = 8
TREE = ravel_pytree({"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)})[1]


def flat(tree):
    return ravel_pytree(tree)[0]


def wells(t, y, args):
    """A gradient system with minima beside saddles: dy/dt = -H y - c y^3."""
    del t
    hessian, cubic = args
    y = flat(y)
    return TREE(-hessian @ y - cubic * y**3)


TERM = diffrax.ODETerm(wells)


def solve(solver, hessian, cubic, start, t1, rtol, **arguments):
    return diffrax.diffeqsolve(
        TERM,
        solver,
        0.0,
        t1,
        1e-3,
        TREE(start),
        (hessian, cubic),
        stepsize_controller=PredictiveController(rtol=rtol, atol=1e-2 * rtol),
        **{"throw": False, "saveat": diffrax.SaveAt(ts=t1 * jnp.linspace(0, 1, 9), dense=True, solver_state=True)}
        | arguments,
    )


@jax.jit
def switching(hessian, cubic, start, t1, rtol):
    return solve(Switching(Rosenbrock(rtol=rtol, atol=1e-2 * rtol)), hessian, cubic, start, t1, rtol)


@jax.jit
def stiff_only(hessian, cubic, start, t1, rtol):
    return solve(Rosenbrock(rtol=rtol, atol=1e-2 * rtol), hessian, cubic, start, t1, rtol)


def states(solution):
    return np.array(jax.vmap(flat)(solution.ys))


def test_the_explicit_step_has_order_eight(reference):
    term = diffrax.ODETerm(lambda t, y, args: -(y**3) + jnp.sin(3 * t))
    start = jnp.array([0.5, -0.4])
    exact = np.asarray(reference(term.vector_field, start, np.array([2.0])))[-1]
    solver, times = diffrax.Dopri8(), (0.3, 0.55)
    theirs = solver.step(term, *times, start, None, solver.init(term, *times, start, None), True)
    ours = explicit_step(term, times[0], times[1] - times[0], start, None, term.vf(times[0], start, None))
    for a, b in zip(ours, (*theirs[:2], theirs[2]["k"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)
    errors = []
    for count in (4, 16):

        def step(y, t, h=2.0 / count):
            y1, error, stages = explicit_step(term, t, h, y, None, term.vf(t, y, None))
            return y1, (jnp.abs(error).max(), jnp.abs(stages[-1] / h - term.vf(t + h, y1, None)).max())

        end, (estimates, last) = jax.lax.scan(step, start, jnp.arange(count) * 2.0 / count)
        errors.append(np.abs(end - exact).max())
        assert np.asarray(estimates).max() > 0
        assert np.asarray(last).max() < 1e-14  # first same as last
    assert np.log2(errors[0] / errors[1]) / 2 > 6.8  # the coarse steps are not small yet


def test_an_escape_is_explicit_and_a_stiff_tail_is_not(spectral, reference):
    """From a saddle, growth rate 1, with rates up to 30 beside it: to tolerance, by both methods."""
    hessian = spectral([-1.0, *np.geomspace(0.1, 30, DIM - 1)])
    start = 1e-4 * np.random.default_rng(1).standard_normal(DIM)
    times = 200 * np.linspace(0, 1, 9)
    expected = jax.vmap(flat)(reference(wells, TREE(jnp.asarray(start)), times, (hessian, 1.0)))
    for rtol in (1e-4, 1e-8):
        solution = switching(hessian, 1.0, start, 200.0, rtol)
        assert solution.result == diffrax.RESULTS.successful
        assert np.abs(states(solution) - expected).max() < 100 * rtol
        work, steps = solution.solver_state.work, int(solution.stats["num_accepted_steps"])
        assert int(work.explicit_steps) + int(work.steps) == steps
        assert min(int(work.explicit_steps), int(work.steps)) >= 3
        for_radius = int(work.products) - int(work.directions) - POWER_ITERATIONS - int(work.explicit_steps)
        assert 0 <= for_radius <= int(work.steps) / (STALE - 1)
    # at the tighter tolerance order eight tells
    alone = stiff_only(hessian, 1.0, start, 200.0, rtol)
    assert steps < 0.7 * int(alone.stats["num_accepted_steps"])
    between = np.linspace(0.3, 20, 57)
    exact = jax.vmap(flat)(reference(wells, TREE(jnp.asarray(start)), between, (hessian, 1.0)))
    dense = np.stack([flat(solution.evaluate(t)) for t in between])
    assert np.abs(dense - exact).max() < 1e-6


def test_stiffness_of_1e8(spectral):
    """Eigenvalues from 1e-2 to 1e6, transients included: explicit only while these last."""
    rates = np.geomspace(1e-2, 1e6, DIM)
    hessian = spectral(rates)
    frame = np.linalg.eigh(hessian)[1]
    start = frame @ np.ones(DIM)
    exact = np.stack([frame @ (np.exp(-rates * t) * (frame.T @ start)) for t in np.linspace(0, 100, 9)])
    for rtol in (1e-3, 1e-6):
        solution = switching(hessian, 0.0, start, 100.0, rtol)
        assert solution.result == diffrax.RESULTS.successful
        assert np.abs(states(solution) - exact).max() <= 10 * rtol
        assert int(solution.stats["num_steps"]) < 500
        assert bool(solution.solver_state.stiff)


def test_lanes_equal_lone_runs(spectral):
    hessians = jnp.stack([spectral([-1.0, *np.geomspace(0.1, top, DIM - 1)]) for top in (1.0, 1e4)])
    starts = jnp.asarray(1e-3 * np.random.default_rng(5).standard_normal((2, DIM)))
    together = jax.jit(jax.vmap(lambda h, y: switching(h, 1.0, y, 30.0, 1e-5)))(hessians, starts)
    for lane in range(2):
        alone = switching(hessians[lane], 1.0, starts[lane], 30.0, 1e-5)
        assert int(together.stats["num_steps"][lane]) == int(alone.stats["num_steps"])
        lone, mine = (s.solver_state.work.explicit_steps for s in (alone, together))
        assert int(mine[lane]) == int(lone)
        np.testing.assert_allclose(np.asarray(jax.vmap(jax.vmap(flat))(together.ys))[lane], states(alone), atol=1e-9)


def test_forward_mode(spectral):
    hessian = jnp.asarray(spectral([-1.0, *np.geomspace(0.1, 300, DIM - 1)]))
    start = jnp.asarray(0.01 * np.random.default_rng(3).standard_normal(DIM))
    solver = Switching(Rosenbrock(rtol=1e-8, atol=1e-10))

    @jax.jit
    def end(size):
        solution = solve(
            solver,
            hessian,
            1.0,
            size * start,
            10.0,
            1e-8,
            adjoint=diffrax.ForwardMode(),
            saveat=diffrax.SaveAt(t1=True),
        )
        return jnp.sum(flat(jax.tree.map(lambda x: x[-1], solution.ys)))

    _, slope = jax.jvp(end, (1.0,), (1.0,))
    step = 1e-2
    difference = (float(end(1 + step)) - float(end(1 - step))) / (2 * step)
    assert float(slope) == pytest.approx(difference, rel=1e-3)


def test_what_a_step_refuses(spectral):
    """A field that is no number is an infinite error; a rejected step keeps the counters and the old plan."""
    solver = Switching(Rosenbrock(rtol=1e-6, atol=1e-8))
    hessian = jnp.asarray(spectral(np.linspace(1, 2, DIM)))
    start = TREE(jnp.ones(DIM))
    state = solver.init(TERM, 0.0, 0.1, start, (hessian, 1.0))
    _, error, _, after, _ = solver.step(TERM, 0.0, 0.1, start, (hessian, jnp.nan), state, False)
    assert np.isinf(flat(error)).all()
    kept = solver.rejected_state(state, after)
    assert not bool(kept.slope_known)
    assert int(solver.work(kept).vector_fields) == int(after.work.vector_fields) > 0
    # beyond the explicit method's stability the step is a stiff one
    _, _, _, after, _ = solver.step(TERM, 0.0, STABLE, start, (hessian, 1.0), state, False)
    assert int(after.work.steps) == 1


def test_stiff_steps_share_an_estimate_of_the_radius(spectral):
    """Four stiff steps cost one product for it, explicit ones one each."""
    stiff = Rosenbrock(rtol=1e-6, atol=1e-8)
    solver = Switching(stiff)
    args = jnp.asarray(spectral(np.geomspace(1, 100, DIM))), 1.0
    start = TREE(jnp.ones(DIM))
    state = solver.init(TERM, 0.0, 1.0, start, args)
    assert float(state.radius) == pytest.approx(100, rel=0.1)
    for h, expected in ((1.0, [0, 0, 0, 1, 0, 0, 0, 1]), (1e-3, [1, 1, 1])):  # the first one is that of the start
        state = eqx.tree_at(lambda s: s.stiff, state, jnp.asarray(h == 1))
        spent = []
        for _ in expected:
            own = stiff.step(TERM, 0.0, h, start, args, state.work, False)[3] if h == 1 else state.work
            after = solver.step(TERM, 0.0, h, start, args, state, False)[3]
            spent.append(int(after.work.products - own.products))
            state = eqx.tree_at(lambda s: s.stiff, after, state.stiff)
        assert spent == expected


def test_bad_input():
    rotating = diffrax.ODETerm(lambda t, y, args: jnp.stack([y[1], -y[0]]))
    with pytest.raises(RuntimeError, match=r"needs a symmetric Jacobian.*Take another solver"):
        Switching(Rosenbrock(rtol=1e-6, atol=1e-8)).init(rotating, 0.0, 1.0, jnp.ones(2), None)
    with pytest.raises(ValueError, match="`rtol` and `atol` must be given"):
        solve(Switching(), jnp.eye(DIM), 0.0, jnp.ones(DIM), 1.0, 1e-6)
