"""Explicit steps where nothing is stiff, implicit ones where something is: accuracy, choice, counters."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wells import DIM, TERM, TREE, dense, field, flat, solve, states, stiff, switching

from saddleflow.solvers import Rosenbrock, Switching
from saddleflow.solvers.switching import POWER_ITERATIONS, STABLE, STALE, explicit_step

FIRST = 1e-3


def test_the_explicit_step_has_order_eight(reference):
    term = diffrax.ODETerm(lambda t, y, args: -(y**3) + jnp.sin(3 * t))
    start = jnp.array([0.5, -0.4])
    exact = np.asarray(reference(term.vector_field, start, np.array([2.0])))[-1]
    solver, times = diffrax.Dopri8(), (0.3, 0.55)

    @jax.jit
    def steps(start):
        theirs = solver.step(term, *times, start, None, solver.init(term, *times, start, None), True)
        slope = term.vf(times[0], start, None)
        return explicit_step(term, times[0], times[1] - times[0], start, None, slope), (*theirs[:2], theirs[2]["k"])

    for ours, theirs in zip(*steps(start), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)
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
    times = np.append(np.linspace(0.3, 20, 57), 200 * np.linspace(0, 1, 9)[1:])
    exact = np.array(jax.vmap(flat)(reference(field, TREE(jnp.asarray(start)), times, (hessian, 1.0))))
    expected = np.concatenate([[start], exact[57:]])
    for rtol in (1e-4, 1e-8):
        solution = switching(hessian, 1.0, start, FIRST, 200.0, rtol)
        assert solution.result == diffrax.RESULTS.successful
        assert np.abs(states(solution) - expected).max() < 100 * rtol
        work, steps = solution.solver_state.work, int(solution.stats["num_accepted_steps"])
        assert int(work.explicit_steps) + int(work.steps) == steps
        assert min(int(work.explicit_steps), int(work.steps)) >= 3
        for_radius = int(work.products) - int(work.directions) - POWER_ITERATIONS - int(work.explicit_steps)
        assert 0 <= for_radius <= int(work.steps) / (STALE - 1)
    # at the tighter tolerance order eight tells
    alone = stiff(hessian, 1.0, start, FIRST, 200.0, rtol)
    assert steps < 0.7 * int(alone.stats["num_accepted_steps"])
    assert np.abs(dense(solution, times[:57]) - exact[:57]).max() < 1e-6


def test_stiffness_of_1e8(spectral):
    """Eigenvalues from 1e-2 to 1e6, transients included: explicit only while these last."""
    rates = np.geomspace(1e-2, 1e6, DIM)
    hessian = spectral(rates)
    frame = np.linalg.eigh(hessian)[1]
    start = frame @ np.ones(DIM)
    exact = np.stack([frame @ (np.exp(-rates * t) * (frame.T @ start)) for t in np.linspace(0, 100, 9)])
    for rtol in (1e-3, 1e-6):
        solution = switching(hessian, 0.0, start, FIRST, 100.0, rtol)
        assert solution.result == diffrax.RESULTS.successful
        assert np.abs(states(solution) - exact).max() <= 10 * rtol
        assert int(solution.stats["num_steps"]) < 500
        assert bool(solution.solver_state.stiff)


def test_lanes_equal_lone_runs(spectral):
    """Bit for bit whatever the other lane is; the program of a lone run is another one, with roundings of its own."""
    rtol = 1e-5
    hessians = jnp.stack([spectral([-1.0, *np.geomspace(0.1, top, DIM - 1)]) for top in (1.0, 1e4)])
    starts = jnp.asarray(1e-3 * np.random.default_rng(5).standard_normal((2, DIM)))
    saved = diffrax.SaveAt(ts=30.0 * jnp.linspace(0, 1, 9), solver_state=True)

    @jax.jit
    @jax.vmap
    def lanes(hessian, start):
        return solve(Switching(), hessian, 1.0, start, FIRST, 30.0, rtol, saveat=saved)

    together = lanes(hessians, starts)
    ends = np.asarray(jax.vmap(jax.vmap(flat))(together.ys))
    for lane in range(2):
        twins = lanes(*(jnp.stack([x[lane]] * 2) for x in (hessians, starts)))
        np.testing.assert_array_equal(np.asarray(jax.vmap(jax.vmap(flat))(twins.ys))[lane], ends[lane])
        alone = switching(hessians[lane], 1.0, starts[lane], FIRST, 30.0, rtol)
        # A rounding may end a linear solve one product earlier, which leaves at most `linear_tolerance`, 2 %, of a
        # step's tolerance; few of some eighty steps are so close to call, so all of it stays below one rtol.
        np.testing.assert_allclose(ends[lane], states(alone), atol=rtol)
        lone, mine = (
            np.array([s.stats["num_steps"], s.solver_state.work.explicit_steps])
            for s in (alone, jax.tree.map(lambda x, lane=lane: x[lane], together))
        )
        assert np.abs(lone - mine).max() <= 2  # an error or a choice that was as close to call


def test_forward_mode(spectral):
    hessian = jnp.asarray(spectral([-1.0, *np.geomspace(0.1, 300, DIM - 1)]))
    start = jnp.asarray(0.01 * np.random.default_rng(3).standard_normal(DIM))
    end = {"adjoint": diffrax.ForwardMode(), "saveat": diffrax.SaveAt(t1=True)}

    @jax.jit
    def push(size):
        def total(size):
            solution = solve(Switching(), hessian, 1.0, size * start, FIRST, 10.0, 1e-8, **end)
            return jnp.sum(flat(jax.tree.map(lambda x: x[-1], solution.ys)))

        return jax.jvp(total, (size,), (1.0,))

    _, slope = push(1.0)
    step = 1e-2
    difference = (float(push(1 + step)[0]) - float(push(1 - step)[0])) / (2 * step)
    assert float(slope) == pytest.approx(difference, rel=1e-3)


# --- one step

SOLVER = Switching(Rosenbrock(rtol=1e-6, atol=1e-8))


@jax.jit
def begin(hessian, h):
    return SOLVER.init(TERM, 0.0, h, TREE(jnp.ones(DIM)), (hessian, 1.0))


@jax.jit
def step(hessian, cubic, h, state):
    """Error and state after a step of this length from ones."""
    _, error, _, after, _ = SOLVER.step(TERM, 0.0, h, TREE(jnp.ones(DIM)), (hessian, cubic), state, False)
    return flat(error), after


def test_what_a_step_refuses(spectral):
    """A field that is no number is an infinite error; a rejected step keeps the counters and the old plan."""
    hessian = spectral(np.linspace(1, 2, DIM))
    state = begin(hessian, 0.1)
    error, after = step(hessian, np.nan, 0.1, state)
    assert np.isinf(error).all()
    kept = SOLVER.rejected_state(state, after)
    assert not bool(kept.slope_known)
    assert int(SOLVER.work(kept).vector_fields) == int(after.work.vector_fields) > 0
    # beyond the explicit method's stability the step is a stiff one
    _, after = step(hessian, 1.0, STABLE, state)
    assert int(after.work.steps) == 1


def test_stiff_steps_share_an_estimate_of_the_radius(spectral):
    """Four stiff steps cost one product for it, explicit ones one each."""
    hessian = spectral(np.geomspace(1, 100, DIM))
    state = begin(hessian, 1.0)
    assert float(state.radius) == pytest.approx(100, rel=0.1)
    for h, expected in ((1.0, [0, 0, 0, 1, 0, 0, 0, 1]), (1e-3, [1, 1, 1])):  # the first one is that of the start
        state = eqx.tree_at(lambda s: s.stiff, state, jnp.asarray(h == 1))
        spent = []
        for _ in expected:
            after = step(hessian, 1.0, h, state)[1]
            products, directions = (after.work.products, after.work.directions)
            # the others are the linear solves', a direction each
            spent.append(int(products - state.work.products) - int(directions - state.work.directions))
            state = eqx.tree_at(lambda s: s.stiff, after, state.stiff)
        assert spent == expected


def test_bad_input():
    rotating = diffrax.ODETerm(lambda t, y, args: jnp.stack([y[1], -y[0]]))
    with pytest.raises(RuntimeError, match=r"needs a symmetric Jacobian.*Take another solver"):
        SOLVER.init(rotating, 0.0, 1.0, jnp.ones(2), None)
    with pytest.raises(ValueError, match="`rtol` and `atol` must be given"):
        diffrax.diffeqsolve(TERM, Switching(), 0.0, 1.0, 0.1, TREE(jnp.ones(DIM)), (jnp.eye(DIM), 0.0))
