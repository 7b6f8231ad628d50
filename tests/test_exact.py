"""The flow against exact solutions (saddleflow.theory), at three tolerances, for every solver used."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import rows

import saddleflow as sf
from saddleflow import theory
from saddleflow.flow.landscape import local_model
from saddleflow.problem.geometry import gradient_flow_field
from saddleflow.solvers import Rosenbrock

RTOLS = (1e-4, 1e-6, 1e-8)
SOLVERS = {
    "default": None,
    "Rosenbrock": Rosenbrock(local_model=local_model, check_symmetry=False),
    "Tsit5": diffrax.Tsit5(),
}
solvers = pytest.mark.parametrize("solver", list(SOLVERS.values()), ids=list(SOLVERS))

STRENGTHS = np.array([1.0, 0.6])
LEFT = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 2)))[0]
RIGHT = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 2)))[0]
# cost |A - S|^2, twice the 1/2 |A - S|^2 of the closed forms: the flow's time runs twice as fast
COST = sf.MeanSquaredError.teacher(jnp.asarray(LEFT @ np.diag(STRENGTHS) @ RIGHT.T))


def modes(depth, initial, times, rtol, solver):
    """Strengths of the two modes along the flow of a balanced, aligned network; shape (time, 2)."""
    start = sf.balanced(jnp.asarray(initial * LEFT @ RIGHT.T), depth=depth, width=4)
    trajectory = sf.gradient_flow(COST, start, rtol=rtol, save_at=rows(times / 2), solver=solver)
    return np.einsum("oi,toj,ji->ti", LEFT, trajectory.end_to_end[: len(times)], RIGHT)


@solvers
@pytest.mark.parametrize("initial", [1e-3, 1e-8])
def test_two_layer_modes(solver, initial):
    times = np.linspace(0, 30, 30)
    exact = np.stack([theory.two_layer_mode(times, s, initial) for s in STRENGTHS], axis=1)
    for rtol in RTOLS:
        assert np.abs(modes(2, initial, times, rtol, solver) - exact).max() <= 10 * rtol


@solvers
@pytest.mark.parametrize(("depth", "initial"), [(3, 1e-3), (4, 1e-3), (4, 1e-6)])
def test_deep_mode_times(solver, depth, initial):
    """The time at which a mode has a given strength, relative: a deep escape's time is what tolerance buys.

    Within 10 rtol in the median over starts and modes of the largest error, of which no single one is twice that. At
    the ends of steps it is .02 rtol; between them, while steps grow after the first escape, dense output makes it 5
    to 13 rtol for the mode that is still small, depending on where in a step a time falls.
    """
    for rtol in RTOLS:
        largest = []
        for size in (0.7 * initial, initial, 1.4 * initial):
            slowest = theory.mode_time(np.array([0.99 * STRENGTHS[1]]), STRENGTHS[1], size, depth)[0]
            times = np.linspace(0, slowest, 60)[1:]
            reached = modes(depth, size, times, rtol, solver)
            for strength, values in zip(STRENGTHS, reached.T, strict=True):
                under_way = (values > 2 * size) & (values < 0.95 * strength)
                assert under_way.sum() >= 3
                exact = theory.mode_time(values[under_way], strength, size, depth)
                largest.append(np.abs(times[under_way] / exact - 1).max())
        assert np.median(largest) <= 10 * rtol
        assert max(largest) <= 20 * rtol


@solvers
@pytest.mark.parametrize("depth", [2, 3])
def test_balanced_flow_of_the_matrix(solver, depth):
    """Matrix completion, where modes do not decouple, against the end-to-end flow of Arora et al."""
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(3, 4), rank=2, observed=0.8)
    initial = 0.1 * np.asarray(jax.random.normal(jax.random.key(1), (3, 4)))
    times = np.linspace(0, 8, 20)
    exact = theory.balanced_flow(lambda a: np.asarray(cost.gradient(jnp.asarray(a))), initial, depth, times)
    start = sf.balanced(jnp.asarray(initial), depth=depth, width=3)
    for rtol in RTOLS:
        trajectory = sf.gradient_flow(cost, start, rtol=rtol, save_at=times, solver=solver)
        assert np.abs(trajectory.end_to_end - exact).max() <= 10 * rtol * np.abs(exact).max()


@solvers
@pytest.mark.parametrize("imbalance", [0.0, 0.7, -0.4])
def test_riccati_solution(solver, imbalance):
    rng = np.random.default_rng(3)
    width = 3 if imbalance < 0 else 4  # the lower layer needs full rank then
    first, second = theory.lambda_balanced_layers(rng, (4, 3), width, imbalance, 0.1)
    target = rng.normal(size=(4, 3))
    times = np.linspace(0, 8, 20)
    exact = theory.riccati_flow(times, first, second, target).end_to_end
    cost = sf.MeanSquaredError.teacher(jnp.asarray(target))
    start = sf.include(sf.DeepLinearNetwork([first, second]), 4)
    for rtol in RTOLS:
        trajectory = sf.gradient_flow(cost, start, rtol=rtol, save_at=rows(times / 2), solver=solver)
        assert np.abs(trajectory.end_to_end[:20] - exact).max() <= 10 * rtol * np.abs(target).max()


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Dopri8()], ids=["Tsit5", "Dopri8"])
def test_order_of_convergence(solver):
    """Steps of a fixed length: the error falls with the solver's order (ours: tests/solvers)."""
    start = sf.balanced(jnp.asarray(0.2 * LEFT @ RIGHT.T), depth=3, width=3)
    end = 2.0
    exact = np.stack([theory.deep_mode(np.array([0.0, 2 * end]), s, 0.2, 3)[-1:] for s in STRENGTHS], axis=1)[0]
    term = diffrax.ODETerm(gradient_flow_field)

    def error(num_steps):
        solution = diffrax.diffeqsolve(
            term, solver, 0.0, end, end / num_steps, start, COST, stepsize_controller=diffrax.ConstantStepSize()
        )
        network = jax.tree.map(lambda x: x[0], solution.ys)
        reached = np.einsum("oi,oj,ji->i", LEFT, network.end_to_end(), RIGHT)
        return np.abs(reached - exact).max()

    coarse, fine = (6, 12) if solver.order(term) > 5 else (32, 64)
    observed = np.log2(error(coarse) / error(fine))
    assert observed > solver.order(term) - 0.3
