"""The Rosenbrock methods as diffrax solvers: order, stability, rejection, and everything diffrax offers."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optimistix
import pytest
from wells import DIM, TERM, TREE, ZEROS, dense, field, flat, states, stiff

import saddleflow as sf
from saddleflow.flow.jacobian import flow_jacobian
from saddleflow.flow.state import StopReason
from saddleflow.problem.geometry import gradient_flow_field
from saddleflow.solvers import RODAS4, RODAS4P, RODAS5P, Plain, PredictiveController, Rosenbrock, Work, asymmetry

TABLEAUS = (RODAS4, RODAS4P, RODAS5P)
tableaus = pytest.mark.parametrize("tableau", TABLEAUS, ids=[tableau.name for tableau in TABLEAUS])

# --- the methods


def amplification(tableau, z):
    """R(z), the step of dy/dt = lambda y with z = h lambda, from the coefficients alone."""
    stages, argument = [], 1.0
    for a, coupling in zip(tableau.a, tableau.coupling, strict=True):
        argument = 1 + sum(c * u for c, u in zip(a, stages, strict=False))
        drive = sum(c * u for c, u in zip(coupling, stages, strict=False))
        stages.append((tableau.gamma * z * argument + tableau.gamma * drive) / (1 - tableau.gamma * z))
    return argument + stages[-1], stages[-1]


@tableaus
def test_the_coefficients_are_l_stable(tableau):
    negative = -np.geomspace(1e-3, 1e12, 200)
    imaginary = 1j * np.geomspace(1e-3, 1e6, 200)
    for z in (negative, imaginary):
        assert np.abs(amplification(tableau, z)[0]).max() <= 1 + 1e-9
    assert abs(amplification(tableau, -1e9)[0]) < 1e-7
    # stiffly accurate: the error estimate is damped too
    assert abs(amplification(tableau, -1e9)[1]) < 1e-7


@tableaus
def test_the_linear_order(tableau):
    """R(z) = exp(z) up to the order, and the error estimate one less (where R is not better still, as Rodas5P's)."""
    z = np.array([-0.2, -0.1])
    (value, estimate), exact = amplification(tableau, z), np.exp(z)
    errors = np.abs(value - exact)
    assert np.log2(errors[0] / errors[1]) > tableau.order + 0.8
    assert np.log2(estimate[0] / estimate[1]) == pytest.approx(tableau.order, abs=0.3)


FORCING = 3.0
COUPLING = np.random.default_rng(0).standard_normal((4, 4))
STIFFNESS = np.array([1.0, 1e3, 1e6])
PHASES = np.arange(3)


def two_problems(t, y, coupling):
    """A forced nonlinear gradient flow, and the problem of Prothero and Robinson, solved by `sin(t + phases)`."""
    smooth = -coupling @ y["forced"] - y["forced"] ** 3 + jnp.sin(FORCING * t)
    stiff = -STIFFNESS * (y["stiff"] - jnp.sin(t + PHASES)) + jnp.cos(t + PHASES)
    return {"forced": smooth, "stiff": stiff}


@functools.cache
def fixed_steps(tableau, field, local_model, t1):
    """A compiled function of start, step, times and args: states at the times and the end, solves exact."""
    solver = Rosenbrock(rtol=1e-13, atol=1e-13, tableau=tableau, local_model=local_model, check_symmetry=False)

    @jax.jit
    def run(start, step, times, args):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            0.0,
            t1,
            step,
            start,
            args,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.ConstantStepSize(),
        ).ys

    return run


def observed_orders(errors):
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


@tableaus
def test_orders_on_smooth_and_on_stiff_problems(tableau, reference):
    coupling = COUPLING @ COUPLING.T / 4
    start = {"forced": jnp.array([0.5, -0.5, 0.3, 0.7]), "stiff": jnp.sin(PHASES)}
    times = np.append(np.linspace(0.05, 0.95, 19), 1.0)
    smooth = reference(
        lambda t, y, c: two_problems(t, {"forced": y, "stiff": jnp.sin(t + PHASES)}, c)["forced"],
        start["forced"],
        times,
        coupling,
    )
    exact = {"forced": smooth, "stiff": np.sin(times[:, None] + PHASES)}
    run = fixed_steps(tableau, two_problems, Plain(), 1.0)
    ends: dict[str, list] = {"forced": [], "stiff": []}
    dense: dict[str, list] = {"forced": [], "stiff": []}
    for count in (8, 16, 32):
        states = run(start, 1 / count, jnp.asarray(times), jnp.asarray(coupling))
        for name in ends:
            error = np.abs(states[name] - exact[name]).max(axis=1)
            ends[name].append(error[-1])
            dense[name].append(error.max())
    assert observed_orders(ends["forced"])[-1] > tableau.order - 0.25
    assert np.mean(observed_orders(dense["forced"])) > 3
    reduced = observed_orders(ends["stiff"])
    if tableau is RODAS4:  # order reduction: known of it
        assert ends["stiff"][-1] < 2e-6
        assert reduced.min() > 0.9
    else:
        assert reduced.mean() > 3.7
        assert ends["stiff"][-1] < 1e-8
        assert np.mean(observed_orders(dense["stiff"])) > 3.5


COST = sf.MatrixCompletion.random(jax.random.key(3), shape=(3, 3), rank=2, observed=0.7)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("tableau", "width"),  # 8: compressed coordinates, 5: the network's own
    [pytest.param(RODAS4, 8, id="Rodas4-compressed"), pytest.param(RODAS4, 5, id="Rodas4-plain", marks=slow)]
    + [pytest.param(tableau, 8, id=tableau.name, marks=slow) for tableau in (RODAS4P, RODAS5P)],
)
def test_order_on_a_network(tableau, width, reference):
    start = sf.gaussian(jax.random.key(0), depth=3, width=width, shape=(3, 3), variance=1 / width)
    times = np.array([0.5, 2.1, 4.0])
    exact = np.asarray(jax.vmap(flat)(reference(gradient_flow_field, start, times, COST)))
    run = fixed_steps(tableau, gradient_flow_field, flow_jacobian, 4.0)
    errors = []
    for count in (16, 32, 64):
        states = jax.vmap(flat)(run(start, 4.0 / count, jnp.asarray(times), COST))
        errors.append(np.abs(np.asarray(states) - exact).max(axis=1))
    ends, dense = ([f(error) for error in errors] for f in (lambda e: e[-1], np.max))
    assert np.mean(observed_orders(ends)) > tableau.order - 0.8
    assert observed_orders(dense).min() > 3
    assert max(errors[-1]) < 1e-6


# --- one problem, adaptively


@pytest.mark.parametrize("rtol", [1e-3, 1e-5, 1e-7])
def test_stiffness_of_1e8(spectral, rtol):
    """A quadratic with eigenvalues from 1e-2 to 1e6, for a hundred times the slowest one's unit: to tolerance."""
    rates = np.geomspace(1e-2, 1e6, DIM)
    hessian = spectral(rates)
    frame = np.linalg.eigh(hessian)[1]
    start = frame @ np.where(rates < 10, 1.0, 1 / rates)
    solution = stiff(hessian, 0.0, start, 1e-4, 100.0, rtol)
    assert solution.result == diffrax.RESULTS.successful
    exact = np.stack([frame @ (np.exp(-rates * t) * (frame.T @ start)) for t in np.linspace(0, 100, 9)])
    assert np.abs(states(solution) - exact).max() <= 10 * rtol
    # an explicit method is held to steps of 3e-6 there, 3e7 of them
    assert int(solution.stats["num_steps"]) < 500


def test_an_escape_with_a_first_step_far_too_long(spectral, reference):
    """Out of a saddle, eigenvalue -1: while gamma h > 1 the matrix is indefinite, which only rejects."""
    hessian = spectral([-1.0, *np.geomspace(0.1, 100, DIM - 1)])
    size, rtol = 1e-5, 1e-6
    start = size * np.random.default_rng(1).standard_normal(DIM)
    solution = stiff(hessian, 1.0, start, 30.0, 30.0, rtol)
    assert solution.result == diffrax.RESULTS.successful
    assert int(solution.stats["num_rejected_steps"]) >= 1
    expected = reference(field, TREE(jnp.asarray(start)), 30 * np.linspace(0, 1, 9), (hessian, 1.0))
    # At the start the tolerance is atol, this share of the entries, and an escape keeps relative errors as they are.
    share = 1e-2 * rtol / size
    np.testing.assert_allclose(states(solution), jax.vmap(flat)(expected), atol=share)
    assert np.abs(states(solution)[-1]).max() > 0.3  # it did escape


def test_dense_output_and_counters(spectral, reference):
    hessian = spectral(np.geomspace(0.1, 10, DIM))
    start = np.random.default_rng(2).standard_normal(DIM)
    solution = stiff(hessian, 1.0, start, 0.01, 2.0, 1e-6)
    times = np.linspace(0.03, 1.97, 57)
    expected = jax.vmap(flat)(reference(field, TREE(jnp.asarray(start)), times, (hessian, 1.0)))
    np.testing.assert_allclose(dense(solution, times), expected, atol=1e-5)
    work = solution.solver_state
    assert isinstance(work, Work)
    accepted = int(solution.stats["num_accepted_steps"])  # diffrax drops what rejected steps cost
    assert int(work.steps) == accepted
    assert int(work.vector_fields) == RODAS4.stages * accepted
    assert accepted <= int(work.products) <= DIM * RODAS4.stages * accepted
    assert int(work.preconditions) == 0  # there is no preconditioner
    assert int(work.products) / accepted <= int(work.largest_basis) <= 200


def test_events_and_diffrax_own_controller(spectral, reference):
    hessian = spectral(np.concatenate([np.linspace(0.2, 1, DIM - 1), [100.0]]))
    event = diffrax.Event(
        lambda t, y, args, **_: jnp.sum(y["b"][0] ** 2) - 0.25, root_finder=optimistix.Newton(1e-10, 1e-10)
    )

    @jax.jit
    def run(start):
        return diffrax.diffeqsolve(
            TERM,
            Rosenbrock(rtol=1e-8, atol=1e-10),
            0.0,
            20.0,
            None,  # diffrax's guess of a first step
            TREE(start),
            (hessian, 1.0),
            stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10, pcoeff=0.2, icoeff=0.6),
            event=event,
            throw=False,
        )

    start = np.random.default_rng(4).standard_normal(DIM)
    solution = run(start)
    assert solution.result == diffrax.RESULTS.event_occurred
    reached = jax.tree.map(lambda x: x[-1], solution.ys)
    assert float(jnp.sum(reached["b"][0] ** 2)) == pytest.approx(0.25, rel=1e-6)
    time = float(solution.ts[-1])
    expected = reference(field, TREE(jnp.asarray(start)), np.array([time]), (hessian, 1.0))
    np.testing.assert_allclose(flat(reached), jax.vmap(flat)(expected)[0], atol=1e-6)
    below = run(0.01 * start)  # nothing to cross
    assert below.result == diffrax.RESULTS.successful
    assert float(below.ts[-1]) == 20.0


@pytest.mark.slow  # the quick test of lanes is test_switching.py's
def test_lanes_of_different_stiffness_equal_lone_runs(spectral):
    """Each lane has steps, bases and rejections of its own."""
    rtol = 1e-5
    hessians = jnp.stack([spectral(np.geomspace(0.1, top, DIM)) for top in (1.0, 1e3, 1e6)])
    starts = jnp.asarray(np.random.default_rng(5).standard_normal((3, DIM)))
    together = jax.vmap(lambda h, y: stiff(h, 1.0, y, 0.01, 2.0, rtol))(hessians, starts)
    for lane in range(3):
        alone = stiff(hessians[lane], 1.0, starts[lane], 0.01, 2.0, rtol)
        mine = jax.tree.map(lambda x, lane=lane: x[lane], together)
        # two programs, two roundings: a solve may end a product earlier, an error be on the other side of a bound
        assert abs(int(mine.stats["num_steps"]) - int(alone.stats["num_steps"])) <= 2
        assert int(mine.solver_state.products) == pytest.approx(int(alone.solver_state.products), rel=0.05)
        np.testing.assert_allclose(states(mine), states(alone), atol=rtol)
    assert len(set(np.asarray(together.stats["num_steps"]).tolist())) == 3


# --- one step


@functools.cache
def one_step():
    solver = Rosenbrock(rtol=1e-6, atol=1e-8)

    @jax.jit
    def step(hessian, cubic, start, h):
        work = solver.init(TERM, 0.0, h, TREE(start), (hessian, cubic))
        y1, error, dense, work, _ = solver.step(TERM, 0.0, h, TREE(start), (hessian, cubic), work, False)
        between = solver.interpolation_cls(t0=0.0, t1=h, **dense)
        parts = (between.evaluate(0.0), between.evaluate(h), between.evaluate(0.25 * h, h))
        return flat(y1), flat(error), work, *map(flat, parts)

    return step


def test_dense_output_joins_both_ends(spectral):
    """And for a span of times it is the increment, diffrax's convention, on any pytree."""
    start = np.random.default_rng(6).standard_normal(DIM)
    rates = np.linspace(0.1, 1, DIM)
    y1, _, _, left, right, increment = one_step()(np.diag(rates), 0.0, start, 0.1)
    np.testing.assert_allclose(left, start, atol=1e-15)
    np.testing.assert_allclose(right, y1, atol=1e-15)
    np.testing.assert_allclose(increment, (np.exp(-0.1 * rates) - np.exp(-0.025 * rates)) * start, atol=1e-6)


def test_an_indefinite_matrix_is_an_infinite_error(spectral):
    hessian = spectral([-1.0, *np.linspace(1, 9, DIM - 1)])
    start = np.ones(DIM)
    gamma = RODAS4.gamma
    y1, error, work, *_ = one_step()(hessian, 0.0, start, 0.5 / gamma)
    assert np.isfinite(y1).all()
    assert np.isfinite(error).all()
    y1, error, rejected, *_ = one_step()(hessian, 0.0, start, 2 / gamma)
    assert np.isinf(error).all()
    assert np.isfinite(y1).all()
    assert int(rejected.steps) == 1
    assert int(rejected.products) < int(work.products)  # after the failure no more


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_field_that_is_no_number_is_an_infinite_error(bad):
    _, error, work, *_ = one_step()(np.eye(DIM), bad, np.ones(DIM), 0.1)
    assert np.isinf(error).all()
    assert int(work.products) == 0


def test_a_step_is_damped_in_stiff_directions():
    """L-stability of the step itself: 1e9 times too long, the stiff half is gone and the error estimate small."""
    rates = np.array([0.1] * 6 + [1e9] * 6)
    y1, error, *_ = one_step()(np.diag(rates), 0.0, np.ones(DIM), 1.0)
    np.testing.assert_allclose(y1[:6], np.exp(-0.1), rtol=1e-5)
    assert np.abs(y1[6:]).max() < 1e-6
    assert np.isfinite(error).all()


def test_a_preconditioner_through_plain(spectral):
    """The exact inverse: one product a step shows that it is, and the stages cost none."""
    hessian = spectral(np.geomspace(1, 1e8, DIM))

    def exact(t, y, args):
        return lambda shift: lambda v: TREE(jnp.linalg.solve(jnp.eye(DIM) + shift * args[0], flat(v)))

    args = (jnp.asarray(hessian), 0.0)
    solver = Rosenbrock(rtol=1e-6, atol=1e-8, local_model=Plain(exact))
    step = jax.jit(lambda y, h: solver.step(TERM, 0.0, h, TREE(y), args, Work.none(), False))
    y1, _, _, work, _ = step(jnp.ones(DIM), 0.1)
    plain, _, without, *_ = one_step()(hessian, 0.0, np.ones(DIM), 0.1)
    np.testing.assert_allclose(flat(y1), plain, atol=1e-6)
    assert int(work.products) <= 2 < int(without.products)
    assert int(work.preconditions) == int(work.products) + RODAS4.stages
    assert int(without.preconditions) == 0


# --- derivatives


def terminal(size, solver, adjoint, max_steps, **arguments):
    hessian = jnp.diag(jnp.asarray([1.0, 30.0, 1000.0]))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -hessian @ y - args * y**3),
        solver,
        0.0,
        1.0,
        0.05,
        size * jnp.ones(3),
        jnp.asarray(1.0),
        adjoint=adjoint,
        max_steps=max_steps,
        **arguments,
    )
    return jnp.sum(solution.ys[-1])


def exact_slope(reference, size):
    hessian = jnp.diag(jnp.asarray([1.0, 30.0, 1000.0]))

    def field(t, pair, args):
        move = lambda y: -hessian @ y - y**3  # noqa: E731
        return jax.jvp(move, (pair[0],), (pair[1],))

    _, tangent = reference(field, (size * jnp.ones(3), jnp.ones(3)), np.array([1.0]))
    return float(jnp.sum(tangent[-1]))


def test_forward_mode(reference):
    rtol = 1e-7
    controller = PredictiveController(rtol=rtol, atol=1e-9)
    solver = Rosenbrock(rtol=rtol, atol=1e-9)

    def push(size):
        run = functools.partial(
            terminal, solver=solver, adjoint=diffrax.ForwardMode(), max_steps=500, stepsize_controller=controller
        )
        return jax.jvp(run, (size,), (1.0,))

    push = jax.jit(push)
    _, slope = push(0.7)
    assert float(slope) == pytest.approx(exact_slope(reference, 0.7), rel=1e-4)
    step = 1e-3
    difference = (float(push(0.7 + step)[0]) - float(push(0.7 - step)[0])) / (2 * step)
    assert float(slope) == pytest.approx(difference, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bounded", "checkpointed"])
def test_reverse_mode(reference, kind):
    """As users' programs are compiled: under this suite's own XLA flags the checkpointed one gives NaN."""
    code = f"""
import sys, functools, diffrax, jax
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_rosenbrock import Rosenbrock, terminal
run = functools.partial(
    terminal,
    solver=Rosenbrock(rtol=1e-6, atol=1e-8, scan_kind={kind!r}, max_krylov_dim=4, max_products=8),
    adjoint=diffrax.RecursiveCheckpointAdjoint(),
    max_steps=40,
    stepsize_controller=diffrax.ConstantStepSize(),
)
print(float(jax.jit(jax.grad(run))(0.7)))
"""
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(exact_slope(reference, 0.7), rel=1e-3)


# --- in saddleflow


@pytest.mark.slow
def test_ten_seeds_in_lanes():
    """Ten starts under vmap, each as if alone: of the pure flow; and of the solver in compressed coordinates."""
    rtol, count = 1e-5, 10
    starts = [
        sf.gaussian(key, depth=3, width=8, shape=COST.shape, gamma=1.3)
        for key in jax.random.split(jax.random.key(9), count)
    ]
    stacked, ends = jax.tree.map(lambda *x: jnp.stack(x), *starts), 60.0 + 20 * jnp.arange(count)

    def flow(network, t1):
        run = sf.integrate(COST, network, rtol=rtol, t1=t1)
        return run.network.end_to_end(), run.stop_reason, run.num_steps

    def bare(network, t1):
        solver = Rosenbrock(rtol=rtol, atol=1e-2 * rtol, local_model=flow_jacobian)
        controller = PredictiveController(rtol=rtol, atol=1e-2 * rtol)
        term = diffrax.ODETerm(gradient_flow_field)
        solution = diffrax.diffeqsolve(term, solver, 0.0, t1, 0.1, network, COST, stepsize_controller=controller)
        end = jax.tree.map(lambda x: x[-1], solution.ys)
        return end.end_to_end(), jnp.asarray(StopReason.t1), solution.stats["num_steps"]

    reasons = set()
    for run in (flow, bare):
        together, alone = jax.jit(jax.vmap(run))(stacked, ends), jax.jit(run)
        for lane in range(count):
            expected, reason, steps = alone(starts[lane], ends[lane])
            scale = np.abs(expected).max()
            np.testing.assert_allclose(together[0][lane], expected, atol=10 * rtol * scale)
            ranks = [np.sum(np.linalg.svd(a, compute_uv=False) > 0.01 * scale) for a in (together[0][lane], expected)]
            assert ranks[0] == ranks[1]
            assert int(together[1][lane]) == int(reason)
            assert abs(int(together[2][lane]) - int(steps)) <= 2
            reasons.add(StopReason(int(reason)))
    assert reasons == {StopReason.converged, StopReason.t1}


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rtol": 0.0}, "`rtol` must be finite and positive, but got 0.0. Pass the step controller's"),
        ({"rtol": -1e-3}, "`rtol` must be finite and positive, but got -0.001"),
        ({"rtol": float("nan")}, "`rtol` must be finite and positive, but got nan"),
        ({"atol": float("inf")}, "`atol` must be finite and positive, but got inf"),
        ({"atol": 0.0}, "`atol` must be finite and positive, but got 0.0. Pass the step controller's"),
        ({"max_krylov_dim": 0}, "`max_krylov_dim` must be an integer >= 1, but got 0"),
        ({"max_krylov_dim": 2.5}, "`max_krylov_dim` must be an integer >= 1, but got 2.5"),
        ({"max_products": 0}, "`max_products` must be an integer >= 1, but got 0"),
        ({"linear_tolerance": 2.0}, "`linear_tolerance` must lie between 0 and 1, but got 2.0. It is a fraction"),
        ({"linear_tolerance": 0.0}, "`linear_tolerance` must lie between 0 and 1, but got 0.0"),
        ({"scan_kind": "fast"}, r"`scan_kind` must be one of \('lax', .*\), but got 'fast'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message, monkeypatch):
    # the type checker of the tests would speak first; a user's Python has none
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        Rosenbrock(**({"rtol": 1e-6, "atol": 1e-8} | arguments))


@pytest.mark.parametrize("given", [{}, {"rtol": 1e-6}, {"atol": 1e-6}])
def test_tolerances_are_asked_for_where_diffrax_runs_it(given):
    with pytest.raises(ValueError, match=r"`rtol` and `atol` must be given .* run by diffrax itself, but got rtol="):
        diffrax.diffeqsolve(TERM, Rosenbrock(**given), 0.0, 1.0, 0.1, ZEROS, (jnp.eye(DIM), 0.0))


def test_asymmetry_is_measured():
    measured = jax.jit(lambda start, args: asymmetry(TERM, 0.0, TREE(start), args))
    rotating = diffrax.ODETerm(lambda t, y, args: jnp.stack([y[1], -y[0], -y[2]]))
    assert float(asymmetry(rotating, 0.0, jnp.ones(3), None)) > 0.05
    symmetric = (jnp.asarray(np.random.default_rng(0).standard_normal((DIM, DIM))), 1.0)
    symmetric = (symmetric[0] + symmetric[0].T, 1.0)
    assert float(measured(jnp.ones(DIM), symmetric)) < 1e-14
    assert float(measured(jnp.zeros(DIM), (jnp.zeros((DIM, DIM)), 0.0))) == 0.0  # no Jacobian at all


def test_a_rotating_field_is_refused_at_the_start():
    rotating = diffrax.ODETerm(lambda t, y, args: jnp.stack([y[1], -y[0]]))
    advice = "needs a symmetric Jacobian.*Take another solver, such as diffrax.Kvaerno5"
    with pytest.raises(RuntimeError, match=advice):
        Rosenbrock(rtol=1e-6, atol=1e-8).init(rotating, 0.0, 1.0, jnp.ones(2), None)
    Rosenbrock(rtol=1e-6, atol=1e-8, check_symmetry=False).init(rotating, 0.0, 1.0, jnp.ones(2), None)


class Rotated(sf.Cost):
    """A cost whose "gradient" is no gradient: a least-squares one, transposed on the way."""

    @property
    def shape(self):
        return (2, 2)

    def __call__(self, matrix):
        return jnp.sum((matrix - jnp.eye(2)) ** 2)

    def test(self, matrix):
        return self(matrix)

    def gradient(self, matrix):
        turn = jnp.asarray([[1.0, 1.0], [-1.0, 1.0]])
        return turn @ (jnp.asarray(matrix) - jnp.eye(2))


def test_a_cost_with_a_wrong_gradient_is_refused_at_the_start():
    start = sf.gaussian(jax.random.key(0), depth=2, width=3, shape=(2, 2), gamma=1.0)
    for alpha in (1.0, 1e-9):
        with pytest.raises(ValueError, match=r"`cost` must have a `gradient` that is.*take another solver"):
            sf.gradient_flow(Rotated(), alpha * start)
    assert sf.gradient_flow(Rotated(), start, solver=diffrax.Tsit5(), t1=0.1).stop_reason == "t1"
