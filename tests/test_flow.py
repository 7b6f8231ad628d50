import math
import threading
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import HuberCompletion, rows

import saddleflow as sf
from saddleflow.flow.run import next_burst
from saddleflow.solvers import Rosenbrock


def test_converges_with_a_certificate(small_cost, small_network):
    trajectory = sf.gradient_flow(small_cost, small_network, gradient_tolerance=1e-4)
    assert trajectory.stop_reason == "converged"
    scale = float(jnp.linalg.norm(small_cost.gradient(jnp.zeros((4, 4)))))
    sizes = [float(jnp.linalg.norm(small_cost.gradient(matrix))) for matrix in trajectory.end_to_end[-2:]]
    assert sizes[1] <= 1e-4 * scale < sizes[0]  # and no step later than that
    assert trajectory.train_cost[-1] < 1e-7 * trajectory.train_cost[0]


@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8])
def test_invariants(small_cost, small_network, rtol):
    """Balancedness is conserved, the cost never rises, and it falls at the rate |gradient|^2."""
    trajectory = sf.gradient_flow(small_cost, small_network, rtol=rtol, t1=30.0)
    assert trajectory.stats["balancedness_drift"] <= 10 * rtol
    assert np.diff(trajectory.train_cost).max() <= 10 * rtol * trajectory.train_cost[0]
    times, squares = trajectory.time, trajectory.gradient_norm**2
    dissipated = np.sum(np.diff(times) * (squares[1:] + squares[:-1]) / 2)
    assert dissipated == pytest.approx(trajectory.train_cost[0] - trajectory.train_cost[-1], rel=0.05)


def test_rotation_equivariance_and_inclusion_invariance(small_cost, small_network):
    rtol, times = 1e-7, rows(np.linspace(0, 20, 15))
    rotations = [jax.random.orthogonal(jax.random.key(i), 6) for i in range(2)]
    plain, rotated, included = (
        sf.gradient_flow(small_cost, start, rtol=rtol, save_at=times, save_networks=True)
        for start in (small_network, sf.rotate(small_network, rotations), sf.include(small_network, 9))
    )
    scale = np.abs(plain.end_to_end).max()
    np.testing.assert_allclose(rotated.end_to_end, plain.end_to_end, atol=100 * rtol * scale)
    np.testing.assert_allclose(included.end_to_end, plain.end_to_end, atol=100 * rtol * scale)
    back = sf.rotate(rotated.network, [o.T for o in rotations])
    for a, b in zip(back.layers, plain.network.layers, strict=True):
        np.testing.assert_allclose(a, b, atol=100 * rtol)
    dead = included.network.layers[1][6:]
    assert float(jnp.abs(dead).max()) == 0.0


def test_tolerance_is_free_of_scale(small_network):
    """alpha * theta_0 on a target in other units: the same run, rescaled, step for step."""
    cost = sf.MatrixCompletion.random(jax.random.key(1), shape=(4, 4), rank=2)
    unit = 2.0**12  # a power of two: rounding rescales too
    small = sf.MatrixCompletion(cost.target / unit**3, cost.observed)
    one = sf.gradient_flow(cost, small_network)
    other = sf.gradient_flow(small, (1 / unit) * small_network)
    assert one.stats["num_steps"] == other.stats["num_steps"]
    np.testing.assert_allclose(other.end_to_end * unit**3, one.end_to_end, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(one.rank, other.rank)


def test_save_at_equals_the_run_to_that_time(small_cost, small_network):
    times = rows([0.0, 0.3, 7.0, 7.0, 19.0])
    saved = sf.gradient_flow(small_cost, small_network, rtol=1e-7, save_at=times, t1=25.0, save_networks=True)
    np.testing.assert_array_equal(saved.time, times)
    assert saved.stop_reason == "t1"
    np.testing.assert_allclose(saved.networks.end_to_end(), saved.end_to_end, rtol=1e-12, atol=1e-14)
    short = sf.gradient_flow(small_cost, small_network, rtol=1e-7, t1=7.0)
    assert short.time[-1] == 7.0
    np.testing.assert_allclose(short.end_to_end[-1], saved.end_to_end[2], atol=1e-5)


def test_own_steps_are_thinned_and_keep_both_ends(small_cost, small_network):
    full = sf.gradient_flow(small_cost, small_network, t1=40.0)
    thin = sf.gradient_flow(small_cost, small_network, t1=40.0, max_saves=8)
    assert len(full.time) == full.stats["num_accepted_steps"] + 1
    assert len(thin.time) <= 9
    assert (thin.time[0], thin.time[-1]) == (0.0, 40.0)
    assert np.isin(thin.time, full.time).all()
    assert np.all(np.diff(thin.time) > 0)


@pytest.mark.parametrize("graded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rows_within_steps_are_dense_output(small_cost, small_network, graded):
    how = {"rtol": 1e-5, "t1": 40.0, "graded": graded}
    full = sf.gradient_flow(small_cost, small_network, **how)
    fine = sf.gradient_flow(small_cost, small_network, **how, saves_per_step=3)
    np.testing.assert_array_equal(fine.time[::3], full.time)
    np.testing.assert_allclose(fine.end_to_end[::3], full.end_to_end, rtol=1e-12, atol=1e-14)
    asked = sf.gradient_flow(small_cost, small_network, **how, save_at=rows(fine.time), save_networks=True)
    count = len(fine.time)
    np.testing.assert_allclose(fine.end_to_end, asked.end_to_end[:count], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fine.gradient_norm, asked.gradient_norm[:count], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("how", [{"solver": diffrax.Tsit5()}, {"graded": True}], ids=["plain", "graded"])
def test_few_rows_within_steps_are_thinned_and_keep_both_ends(small_cost, small_network, how):
    thin = sf.gradient_flow(small_cost, small_network, rtol=1e-5, t1=40.0, saves_per_step=5, max_saves=4, **how)
    assert len(thin.time) <= 5
    assert (thin.time[0], thin.time[-1]) == (0.0, 40.0)
    assert np.all(np.diff(thin.time) > 0)


@pytest.mark.parametrize(
    ("solver", "bound"),
    [
        (None, 1e-8),
        pytest.param(Rosenbrock(check_symmetry=False), 1e-7, marks=pytest.mark.slow),
        pytest.param(diffrax.Dopri8(), 2e-9, marks=pytest.mark.slow),
    ],
)
def test_lazy_wide_networks_hold_the_tolerance_in_the_end_to_end_matrix(solver, bound):
    """Entries that hardly move, each within its tolerance, add up in A: to 29 rtol once, or 81 (w = 400).

    The bounds, of the median over three starts, lie between what was measured with A's own tolerance (.2, 8.8 and .06
    rtol) and without it (2.6, 12.0 and .5 rtol).
    """
    cost = sf.MatrixCompletion.random(jax.random.key(3), shape=(5, 5))
    errors = []
    for seed in (4, 5, 6):
        start = sf.gaussian(jax.random.key(seed), depth=4, width=200, shape=(5, 5), gamma=0.75)
        run = sf.gradient_flow(cost, start, rtol=1e-8, t1=0.05, solver=solver)
        exact = sf.gradient_flow(cost, start, rtol=1e-12, save_at=rows(run.time)).end_to_end
        error = np.linalg.norm(run.end_to_end - exact[: len(run.time)], axis=(1, 2)).max()
        errors.append(error / np.linalg.norm(exact, axis=(1, 2)).max())
    assert np.median(errors) <= bound


def test_observables_inside_the_loop(small_cost, small_network):
    named = sf.gradient_flow(small_cost, small_network, t1=5.0, observables=["parameter_norm", "layer_norms"])
    assert named.observables["layer_norms"].shape == (len(named.time), 3)
    np.testing.assert_allclose(
        named.observables["parameter_norm"] ** 2, np.sum(named.observables["layer_norms"] ** 2, axis=1)
    )
    observable = {"cost": lambda cost, network: cost(network.end_to_end())}
    own = sf.gradient_flow(small_cost, small_network, t1=5.0, observables=observable, solver=diffrax.Tsit5())
    np.testing.assert_allclose(own.observables["cost"], own.train_cost, rtol=1e-12)


def test_huber_completion_flows(small_cost, small_network):
    cost = HuberCompletion(small_cost.target, small_cost.observed)
    trajectory = sf.gradient_flow(cost, small_network, rtol=1e-5, gradient_tolerance=1e-3)
    assert trajectory.stop_reason == "converged"
    np.testing.assert_allclose(
        trajectory.end_to_end[-1][small_cost.observed], small_cost.target[small_cost.observed], atol=0.02
    )
    assert trajectory.test_cost is not None


def test_one_compilation_a_shape(small_cost, small_network, compilations):
    """Tolerances, ends, budgets and starts are traced: only a new shape compiles."""
    for solver in (None, diffrax.Tsit5()):
        sf.gradient_flow(small_cost, small_network, t1=1.0, solver=solver)
        with compilations() as compiled:
            for seed, rtol, end in zip((7, 8, 9), (1e-4, 1e-5, 1e-7), (3.0, 5.0, 7.0), strict=True):
                start = sf.gaussian(jax.random.key(seed), depth=3, width=6, shape=(4, 4), gamma=1.0)
                sf.gradient_flow(small_cost, start, rtol=rtol, t1=end, max_steps=2000, solver=solver)
        assert not {"jit(start)", "jit(burst)"} & set(compiled)
    wider = sf.gaussian(jax.random.key(0), depth=3, width=7, shape=(4, 4), gamma=1.0)
    with compilations() as compiled:
        sf.gradient_flow(small_cost, wider, t1=1.0, solver=diffrax.Tsit5())
    assert [compiled.count(f"jit({name})") for name in ("start", "burst")] == [1, 1]


def test_named_ends(small_cost, small_network):
    assert sf.gradient_flow(small_cost, small_network, t1=1.5).stop_reason == "t1"
    short = sf.gradient_flow(small_cost, small_network, max_steps=7)
    assert short.stop_reason == "max_steps"
    assert short.stats["num_steps"] == 7
    early = sf.gradient_flow(small_cost, small_network, stop=lambda time, network: time > 2)
    assert early.stop_reason == "stop"
    assert early.time[-1] > 2 >= early.time[-2]


def test_wall_clock_budget(small_cost, small_network):
    slow = {"rtol": 1e-13, "solver": diffrax.Tsit5()}
    for _ in range(2):  # the first run compiles
        whole = sf.gradient_flow(small_cost, small_network, **slow)
    assert whole.stop_reason == "converged"
    short = sf.gradient_flow(small_cost, small_network, **slow, max_seconds=whole.stats["seconds"] / 3)
    assert short.stop_reason == "max_seconds"
    assert 0 < short.stats["num_steps"] < whole.stats["num_steps"]
    none = sf.gradient_flow(small_cost, small_network, **slow, max_seconds=1e-6)
    assert none.stop_reason == "max_seconds"


def test_a_budget_ends_while_a_step_compiles(small_cost, monkeypatch):
    """The compilation goes on, and the next call finds it; the first has the row of the start."""
    start = sf.gaussian(jax.random.key(0), depth=3, width=9, shape=(4, 4), gamma=1.0)
    released, traced = threading.Event(), []

    def stop(time, network):  # part of a step, not of the start
        traced.append(threading.current_thread())
        released.wait(60)
        return time > 1

    monkeypatch.setattr("saddleflow.api.check_functions", lambda *arguments: None)  # it traces `stop`, too
    begin = time.perf_counter()
    short = sf.gradient_flow(small_cost, start, stop=stop, max_seconds=1.0)
    assert time.perf_counter() - begin < 20  # with all that a first call compiles
    assert short.stop_reason == "max_seconds"
    assert short.stats["num_steps"] == 0
    assert short.time.tolist() == [0.0]
    np.testing.assert_allclose(short.end_to_end[0], start.end_to_end(), rtol=1e-13)
    released.set()
    whole = sf.gradient_flow(small_cost, start, stop=stop, max_seconds=600.0)
    assert whole.stop_reason == "stop"
    assert len({thread.ident for thread in traced}) == 1  # not traced again
    assert 0 < short.stats["compile_seconds"] <= short.stats["seconds"]
    assert 0 < whole.stats["compile_seconds"] <= whole.stats["seconds"]  # what it waited for


def test_models_have_a_budget_too():
    released, traced = threading.Event(), []

    def stop(time, model):
        traced.append(time)
        if len(traced) > 1:  # the first call looks at what it returns
            released.wait(60)
        return time > 1

    short = sf.gradient_flow(lambda x: (x**2 - 1) ** 2, jnp.asarray(0.5), stop=stop, max_seconds=1.0)
    released.set()
    assert short.stop_reason == "max_seconds"
    assert short.stats["num_steps"] == 0


@pytest.mark.parametrize(
    ("burst", "wanted"),
    [
        ((1, 1, 0.001, math.inf), 8),
        ((16, 16, 0.05, math.inf), 32),
        ((16, 16, 0.15, math.inf), 16),
        ((16, 16, 0.8, math.inf), 4),  # steps that have become slower
        ((16, 16, 80.0, math.inf), 1),
        ((16, 16, 0.16, 0.05), 5),  # near the end of the budget
        ((64, 4, 0.2, math.inf), 4),  # ended early, by full rows
        ((2**20, 2**20, 1e-3, math.inf), 2**20),
        ((4, 0, 0.0, math.inf), 4),
    ],
)
def test_bursts_grow_and_shrink(burst, wanted):
    assert next_burst(*burst) == wanted


class Cliff(sf.Cost):
    """A cost whose gradient stops being a number beyond |A| = 1, on the way to its minimum."""

    @property
    def shape(self):
        return (1, 1)

    def __call__(self, matrix):
        return jnp.where(jnp.sum(matrix**2) < 1, jnp.sum((matrix - 3) ** 2), jnp.nan)

    def test(self, matrix):
        return self(matrix)


def test_non_finite_is_named_and_the_past_is_kept():
    start = sf.balanced(jnp.array([[0.1]]), depth=2, width=1)
    trajectory = sf.gradient_flow(Cliff(), start)
    assert trajectory.stop_reason == "non_finite"
    assert np.isfinite(trajectory.end_to_end).all()
    assert trajectory.end_to_end[-1, 0, 0] == pytest.approx(1.0, abs=1e-3)
    hopeless = sf.gradient_flow(Cliff(), sf.balanced(jnp.array([[2.0]]), depth=2, width=1))
    assert hopeless.stop_reason == "non_finite"
    assert hopeless.stats["num_steps"] == 0


def test_a_huge_start_is_not_certified_far_from_a_minimum(small_cost, small_network):
    trajectory = sf.gradient_flow(small_cost, 1e3 * small_network, rtol=1e-3)
    assert trajectory.stop_reason == "converged"
    assert trajectory.train_cost[-1] < 1e-6 * float(small_cost(jnp.zeros((4, 4))))


def test_a_start_on_a_saddle_is_named():
    cost = sf.MeanSquaredError.teacher(np.diag([2.0, 1.0]))
    origin = jax.tree.map(jnp.zeros_like, sf.gaussian(jax.random.key(0), depth=3, width=3, shape=(2, 2), gamma=1.0))
    rank_one = sf.balanced(jnp.diag(jnp.array([2.0, 0.0])), depth=3, width=3)
    rotated = sf.rotate(rank_one, [jax.random.orthogonal(jax.random.key(i), 3) for i in range(2)])
    for start in (origin, rank_one, rotated):
        trajectory = sf.gradient_flow(cost, start)
        assert trajectory.stop_reason == "stationary_saddle"
        assert trajectory.stats["num_steps"] == 0
    near = sf.gradient_flow(cost, sf.balanced(jnp.diag(jnp.array([2.0, 1e-9])), depth=3, width=3))
    assert near.stop_reason == "converged"


def test_a_first_step_far_too_long_is_only_rejected():
    """Next to a saddle the field is tiny and the first guess of a step enormous: it overflows and is refused."""
    cost = sf.MeanSquaredError.teacher(np.diag([2.0, 1.0]))
    start = sf.include(sf.balanced(jnp.diag(jnp.array([2.0, 1e-12])), depth=4, width=2), 3)
    trajectory = sf.gradient_flow(cost, start, t1=1.0)
    assert trajectory.stop_reason == "t1"


def test_a_saddle_is_not_convergence(small_cost):
    start = 1e-4 * sf.gaussian(jax.random.key(0), depth=3, width=6, shape=(4, 4), variance=1.0)
    trajectory = sf.gradient_flow(small_cost, start, max_steps=50)
    assert trajectory.stop_reason == "max_steps"


def test_gradient_descent_approaches_the_flow(small_cost, small_network):
    """optax.sgd with learning rate eta is Euler's method: its distance to the flow falls like eta."""
    end = 4.0
    exact = sf.gradient_flow(small_cost, small_network, rtol=1e-9, t1=end).end_to_end[-1]

    def descend(num_steps):
        descent = optax.sgd(end / num_steps)

        def step(carry, _):
            theta, state = carry
            updates, state = descent.update(sf.gradient(small_cost, theta), state)
            return (optax.apply_updates(theta, updates), state), None

        (theta, _), _ = jax.lax.scan(step, (small_network, descent.init(small_network)), length=num_steps)
        return np.linalg.norm(theta.end_to_end() - exact)

    assert descend(400) / descend(800) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rtol": 0.0}, r"`rtol` must lie in \[1e-13, 1\), but got 0.0"),
        ({"rtol": -1e-3}, "`rtol` must lie"),
        ({"rtol": 1e-14}, "`rtol` must lie"),
        ({"rtol": float("nan")}, "`rtol` must lie"),
        ({"t1": 0.0}, "`t1` must be finite and positive, but got 0.0"),
        ({"t1": -1.0}, "`t1` must be finite and positive"),
        ({"t1": float("inf")}, "`t1` must be finite and positive"),
        ({"save_at": [2.0, 1.0]}, "`save_at` must be sorted"),
        ({"save_at": [-1.0, 1.0]}, "`save_at` must not be negative"),
        ({"save_at": [1.0, 3.0], "t1": 2.0}, "`save_at` must end by t1 = 2.0"),
        ({"save_at": []}, "`save_at` must be a list of times"),
        ({"save_at": [0.0]}, "`save_at` must reach beyond t = 0"),
        ({"save_at": [1.0, float("nan")]}, "`save_at` must be finite"),
        ({"observables": ["rnak"]}, r"`observables` must name one of \['alignment', .*'rnak'"),
        ({"observables": {"a": 3}}, "`observables` must map 'a' to a function"),
        ({"max_steps": 0}, "`max_steps` must be an integer >= 1"),
        ({"max_saves": 1}, "`max_saves` must be an integer >= 4"),
        ({"saves_per_step": 0}, "`saves_per_step` must be an integer >= 1"),
        ({"max_seconds": 0.0}, "`max_seconds` must be finite and positive"),
        ({"gradient_tolerance": 0.0}, r"`gradient_tolerance` must lie in \[1e-13, 1\), but got 0.0"),
        ({"rank_tolerance": 0.0}, "`rank_tolerance` must be finite and positive"),
    ],
)
def test_bad_input(small_cost, small_network, arguments, message):
    with pytest.raises(ValueError, match=message):
        sf.gradient_flow(small_cost, small_network, **arguments)


def test_bad_shapes_and_starts(small_cost, small_network):
    with pytest.raises(ValueError, match="`network` must have the end-to-end shape of the cost"):
        sf.gradient_flow(small_cost, sf.gaussian(jax.random.key(0), depth=2, width=3, shape=(4, 5), gamma=1.0))
    broken = sf.DeepLinearNetwork([small_network.layers[0].at[0, 0].set(jnp.nan), *small_network.layers[1:]])
    with pytest.raises(ValueError, match=r"`network.layers\[0\]` must be finite"):
        sf.gradient_flow(small_cost, broken)


def test_an_explicit_solver_needs_no_derivative_of_the_gradient(small_network):
    @jax.custom_vjp
    def loss(matrix):
        return jnp.sum((matrix - 1.0) ** 2)

    loss.defvjp(lambda matrix: (loss(matrix), matrix), lambda matrix, g: (2 * g * (matrix - 1.0),))

    class ReverseOnly(sf.Cost):
        @property
        def shape(self):
            return (4, 4)

        @property
        def has_test(self):
            return False

        def __call__(self, matrix):
            return loss(matrix)

        def test(self, matrix):
            raise ValueError("no test set")

        def gradient(self, matrix):
            return jax.pure_callback(lambda a: 2 * (np.asarray(a) - 1.0), matrix, matrix)

    run = sf.gradient_flow(ReverseOnly(), small_network, rtol=1e-3, t1=0.5, solver=diffrax.Tsit5(), progress=False)
    assert run.stop_reason == "t1"
    assert run.train_cost[-1] < run.train_cost[0]
