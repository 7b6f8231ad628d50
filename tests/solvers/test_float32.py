"""Single precision, with JAX's float64 on or off: nothing is promoted, and results are as accurate as it allows."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from saddleflow.solvers import (
    MAX_ASYMMETRY,
    ConjugateBasis,
    PredictiveController,
    Rosenbrock,
    Switching,
    asymmetry,
    conjugate_solve,
    max_asymmetry,
)

RATES = np.array([0.5, 1.0, 3.0, 300.0])
RTOL, ATOL = 1e-4, np.float64(1e-6)  # NumPy's numbers would promote
TIMES = np.array([0.25, 0.5, 1.0])
SOLVERS = {"Rosenbrock": Rosenbrock(rtol=RTOL, atol=ATOL), "Switching": Switching(Rosenbrock(rtol=RTOL, atol=ATOL))}


def relax(t, y, args):
    """Towards `exp(-t)`, at four rates."""
    del args
    return {"y": -jnp.asarray(RATES, y["y"].dtype) * (y["y"] - jnp.exp(-t)) - jnp.exp(-t)}


def exact(start, times):
    times = np.asarray(times, float)[..., None]
    return (start - 1) * np.exp(-RATES * times) + np.exp(-times)


def run(solver, start, zero, root_finder=None):
    """To t = 3, or until the first entry falls to a quarter; times are of the dtype of `zero`."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(relax),
        solver,
        zero,
        zero + 3,
        None,
        {"y": jnp.full(4, start)},
        saveat=diffrax.SaveAt(ts=zero + jnp.asarray(TIMES, zero.dtype), dense=True, solver_state=True),
        stepsize_controller=PredictiveController(rtol=RTOL, atol=ATOL),
        event=diffrax.Event(lambda t, y, args, **_: y["y"][0] - 0.25, root_finder),
        max_steps=256,
        throw=False,
    )


@pytest.fixture(params=["on", "off"])
def x64(request):
    """JAX's float64 as `import saddleflow` leaves it, or switched off again by the user."""
    jax.config.update("jax_enable_x64", request.param == "on")
    yield request.param == "on"
    jax.config.update("jax_enable_x64", True)


def dtypes(tree, kind=jnp.floating):
    return {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, kind)}


@pytest.mark.parametrize(
    ("name", "x64", "state", "time"),
    [
        ("Switching", "on", "float32", "float32"),
        ("Rosenbrock", "off", "float32", "float32"),
        ("Switching", "on", "float16", "float16"),
        ("Switching", "on", "float64", "float32"),
    ],
    indirect=["x64"],
)
def test_nothing_is_promoted(name, x64, state, time):
    """Traced, not run; the other combinations are run below."""
    del x64
    solution = jax.eval_shape(lambda y, t: run(SOLVERS[name], y, t), jnp.zeros((), state), jnp.zeros((), time))
    assert dtypes((solution.ys, solution.solver_state)) == {state}
    assert dtypes(solution.ts) == {time}
    assert dtypes(SOLVERS[name].work(solution.solver_state), jnp.integer) == {str(jnp.zeros((), int).dtype)}


@pytest.mark.parametrize(("name", "x64"), [("Rosenbrock", "on"), ("Switching", "off")], indirect=["x64"])
def test_single_precision_meets_its_tolerance(name, x64):
    """Two lanes, dense output, an event: all of float32, and within the tolerance."""
    # diffrax itself finds roots of events in JAX's default dtype only
    root_finder = None if x64 else optimistix.Newton(1e-5, 1e-5)
    starts, between = jnp.asarray([2.0, 1.0], "float32"), jnp.asarray([0.02, 0.6, 1.2], "float32")

    @jax.jit
    @jax.vmap
    def lanes(start):
        solution = run(SOLVERS[name], start, jnp.zeros((), "float32"), root_finder)
        return solution, jax.vmap(lambda t: solution.evaluate(t)["y"])(between)

    solution, dense = lanes(starts)
    assert dtypes((solution, dense)) == {"float32"}
    for lane, start in enumerate((2.0, 1.0)):
        np.testing.assert_allclose(solution.ys["y"][lane], exact(start, TIMES), atol=10 * RTOL)
        np.testing.assert_allclose(dense[lane], exact(start, between), atol=10 * RTOL)
    # the other lane ends at log 4
    ended = np.asarray(solution.event_mask)
    assert ended.tolist() == [False, True]
    steps = np.asarray(solution.stats["num_steps"])
    assert steps.max() < 100
    assert np.asarray(solution.stats["num_rejected_steps"]).max() < 0.2 * steps.max()


def test_directions_stay_conjugate():
    """A direction that is mostly rounding is left out of the basis: with float64's threshold they are off by .4."""
    size = 100
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]
    matrix = (frame * np.geomspace(1, 1e4, size)) @ frame.T

    @jax.jit
    def solve(basis, rhs):
        single = jnp.asarray(matrix, "float32")
        return conjugate_solve(basis, lambda v: single @ v, None, rhs, jnp.linalg.norm, 1e-4, 400)

    basis = ConjugateBasis.empty(size, jnp.zeros(size, "float32"))
    for rhs in np.random.default_rng(7).standard_normal((4, size)):
        x, basis, report = solve(basis, jnp.asarray(rhs, "float32"))
        assert bool(report.converged)
        np.testing.assert_allclose(x, np.linalg.solve(matrix, rhs), atol=1e-3)
    assert dtypes((x, basis)) == {"float32"}
    directions = np.asarray(basis.directions, float)[: int(basis.count)]
    assert len(directions) > 0.9 * size
    np.testing.assert_allclose(directions @ matrix @ directions.T, np.eye(len(directions)), atol=1e-3)


def test_symmetry_is_told_from_rounding():
    term = diffrax.ODETerm(lambda t, y, matrix: matrix @ y)
    square = np.random.default_rng(0).standard_normal((50, 50))
    measured = jax.jit(lambda matrix: asymmetry(term, 0.0, jnp.ones(50, "float32"), jnp.asarray(matrix, "float32")))
    assert float(measured(square + square.T)) < 0.1 * max_asymmetry(jnp.float32)
    assert float(measured(square)) > max_asymmetry(jnp.float32)
    assert max_asymmetry(jnp.float64) == MAX_ASYMMETRY


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"a": jnp.zeros(2, "float32"), "b": jnp.zeros(2)}, r"\['float32', 'float64'\]"),
        (jnp.zeros(2, int), r"\['int64'\]"),
        (jnp.zeros(2, complex), r"\['complex128'\]"),
    ],
)
def test_a_state_of_other_numbers_is_refused(state, found):
    for solver in SOLVERS.values():
        with pytest.raises(
            ValueError, match=f"`y0` must hold real floating-point numbers of one dtype, .* {found}. Conv"
        ):
            solver.init(diffrax.ODETerm(lambda t, y, args: y), 0.0, 1.0, state, None)
