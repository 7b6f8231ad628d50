"""Where a flow ends at a target cost, or as `stop` says: the time of it, against exact ones.

What a program is compiled for (target cost, `stop`, rows) is the same in most tests of one size, so that few are
compiled.
"""

import json
import math
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from test_exact import COST as MODES
from test_exact import LEFT, RIGHT, SOLVERS, STRENGTHS, solvers
from test_padding import compilations, compiled  # noqa: F401  (a fixture)
from test_tails import COST as TAIL
from test_tails import EXACT as TAIL_VALUES
from test_tails import start as tail_start

import saddleflow as sf
from saddleflow import theory
from saddleflow.width import adaptive

COST = sf.MatrixCompletion.random(jax.random.key(3), shape=(3, 3), rank=2, observed=0.9)
HIGHEST = float(COST(jnp.zeros((3, 3))))


def start(depth=3, width=6, gamma=1.5, seed=1):
    return sf.gaussian(jax.random.key(seed), depth=depth, width=width, shape=(3, 3), gamma=gamma)


def modes_start(depth, initial):
    return sf.balanced(jnp.asarray(initial * LEFT @ RIGHT.T), depth=depth, width=4)


def crossing(depth, initial, level):
    """The time at which `sum (strength - s)^2` of the modes, from equal sizes, has fallen to a level."""

    def cost(time):
        times = np.array([0.0, 2 * time])
        if depth == 2:
            found = [theory.two_layer_mode(times, s, initial)[-1] for s in STRENGTHS]
        else:
            found = [theory.deep_mode(times, s, initial, depth)[-1] for s in STRENGTHS]
        return float(np.sum((np.array(found) - STRENGTHS) ** 2))

    return scipy.optimize.brentq(lambda time: cost(time) - level, 1e-3, 200.0, xtol=1e-12, rtol=1e-13)


@solvers
@pytest.mark.parametrize(("depth", "initial"), [(2, 1e-3), (3, 1e-3), (3, 1e-6)])
def test_a_cost_is_reached_at_the_exact_time(solver, depth, initial):
    """On plateaus, in escapes and on the way to the minimum."""
    network = modes_start(depth, initial)
    for share in (0.9, 0.3, 0.2, 1e-2, 1e-4):
        level = share * float(np.sum(STRENGTHS**2))
        exact = crossing(depth, initial, level)
        for rtol in (1e-4, 1e-6):
            run = sf.gradient_flow(
                MODES, network, rtol=rtol, target_cost=level, solver=solver, gradient_tolerance=1e-9
            )
            assert run.stop_reason == "target_cost"
            assert abs(run.time[-1] / exact - 1) <= 2 * rtol
            assert 1 - rtol <= run.train_cost[-1] / level <= 1 + 1e-12
            assert run.train_cost[-2] > level
            assert run.stats["balancedness_drift"] <= 10 * rtol


def test_so_it_is_in_graded_coordinates():
    network, level = modes_start(3, 1e-3), 0.3 * float(np.sum(STRENGTHS**2))
    exact = crossing(3, 1e-3, level)
    for rtol in (1e-4, 1e-6):
        run = sf.gradient_flow(MODES, network, rtol=rtol, target_cost=level, graded=True)
        assert run.stop_reason == "target_cost"
        assert abs(run.time[-1] / exact - 1) <= 2 * rtol
        assert run.train_cost[-1] == pytest.approx(level, rel=rtol)


def passes(value, time, network):
    return network.end_to_end()[0, 0] >= value


@pytest.mark.slow
@pytest.mark.parametrize("rtol", [1e-4, 1e-6])
def test_so_it_is_on_a_tail(rtol):
    """A_00 passes the exact values at the exact times; between them time goes with a power of A_00."""
    values = dict(zip((1e4, 1e6, 1e9, 1e12), TAIL_VALUES[2], strict=True))
    for time in (1e6, 1e12):
        value = values[time]
        reaches = partial(passes, value)
        run = sf.gradient_flow(TAIL, tail_start(2), rtol=rtol, stop=reaches, gradient_tolerance=1e-13)
        assert run.stop_reason == "stop"
        assert run.stats["num_tail_steps"] > 0
        assert abs(run.time[-1] / time - 1) <= 10 * rtol
        assert run.end_to_end[-1, 0, 0] == pytest.approx(value, rel=rtol)


@pytest.mark.slow
def test_a_cost_on_a_tail_is_reached_when_a_tighter_run_does():
    exact = sf.gradient_flow(TAIL, tail_start(2), rtol=1e-9, save_at=[0.0, 1e9])
    level = float(exact.train_cost[-1])
    for rtol in (1e-4, 1e-6):
        run = sf.gradient_flow(TAIL, tail_start(2), rtol=rtol, target_cost=level, gradient_tolerance=1e-13)
        assert run.stop_reason == "target_cost"
        assert run.stats["num_tail_steps"] > 0
        assert abs(run.time[-1] / 1e9 - 1) <= 10 * rtol


def well(x):
    return (x**2 - 1) ** 2


@pytest.mark.parametrize("solver", [None, diffrax.Tsit5()], ids=["default", "Tsit5"])
def test_so_it_is_for_a_model(solver):
    """`u = x^2` is logistic: `u / (1 - u) = c exp(8 t)`."""
    begin, rtol = 1e-3, 1e-6
    for level in (0.9, 0.5, 1e-3, 1e-8):
        u = 1 - math.sqrt(level)
        exact = (math.log(u / (1 - u)) - math.log(begin**2 / (1 - begin**2))) / 8
        run = sf.gradient_flow(well, jnp.asarray(begin), rtol=rtol, target_cost=level, solver=solver)
        assert run.stop_reason == "target_cost"
        assert abs(run.time[-1] / exact - 1) <= 10 * rtol
        assert run.train_cost[-1] == pytest.approx(level, rel=10 * rtol)
        assert float(run.model) == pytest.approx(math.sqrt(u), rel=10 * rtol)


def test_the_regulariser_is_part_of_the_loss():
    inputs = np.linspace(-1, 1, 5)
    plain = sf.regression(lambda model, x: model * x, inputs, 2 * inputs)
    objective = sf.Objective(plain.cost, plain.outputs, regulariser=sf.weight_decay(0.1))
    run = sf.gradient_flow(objective, jnp.asarray(0.1), target_cost=0.6)
    assert run.stop_reason == "target_cost"
    assert float(objective.loss(run.model, objective.outputs(run.model))) == pytest.approx(0.6, rel=1e-6)


@pytest.mark.slow
def test_solvers_agree_on_a_crossing():
    """Of `stop`: an entry of A passes a half."""
    network = start()

    def passed(time, network):
        return jnp.linalg.norm(network.end_to_end()) > 0.7

    exact = sf.gradient_flow(COST, network, rtol=1e-10, stop=passed, solver=diffrax.Dopri8())
    for rtol in (1e-4, 1e-6):
        for solver in SOLVERS.values():
            run = sf.gradient_flow(COST, network, rtol=rtol, stop=passed, solver=solver)
            assert run.stop_reason == "stop"
            assert abs(run.time[-1] / exact.time[-1] - 1) <= 10 * rtol
            assert 0.7 < np.linalg.norm(run.end_to_end[-1]) < 0.7 * (1 + rtol)


def test_a_time_to_stop_at_is_met():
    for time in (1e-3, 0.1, 2.0, 20.0):
        run = sf.gradient_flow(COST, start(), stop=lambda t, network, time=time: t >= time)
        assert run.stop_reason == "stop"
        assert time <= run.time[-1] <= time * (1 + 1e-6)


def test_what_holds_at_the_start_stops_after_a_step():
    run = sf.gradient_flow(COST, start(), stop=lambda time, network: time >= 0)
    assert (run.stop_reason, run.stats["num_steps"], len(run.time)) == ("stop", 1, 2)
    free = sf.gradient_flow(COST, start(), max_steps=1)
    assert run.time[-1] == free.time[-1]


def test_a_start_below_the_target_is_the_end():
    network = start()
    for options in ({}, {"save_at": [0.0, 1.0]}, {"save_at": [1.0, 2.0]}):
        run = sf.gradient_flow(COST, network, target_cost=2 * HIGHEST, **options)
        assert run.stop_reason == "target_cost"
        assert run.time.tolist() == [0.0]
        assert run.stats["num_steps"] == 0
        np.testing.assert_array_equal(run.network.end_to_end(), network.end_to_end())
    rest = sf.DeepLinearNetwork([jnp.zeros((4, 3)), jnp.zeros((3, 4))])
    assert sf.gradient_flow(COST, rest, target_cost=HIGHEST, save_at=[0.0, 1.0]).stop_reason == "target_cost"
    assert sf.gradient_flow(COST, rest, target_cost=0.5 * HIGHEST).stop_reason == "stationary_saddle"
    assert sf.gradient_flow(well, jnp.asarray(0.5), target_cost=1.0).time.tolist() == [0.0]


def test_the_certificate_comes_first_where_it_does():
    whole = sf.gradient_flow(COST, start())
    run = sf.gradient_flow(COST, start(), target_cost=1e-3 * float(whole.train_cost[-1]))
    assert run.stop_reason == "converged"
    assert run.stats["num_steps"] == whole.stats["num_steps"]
    np.testing.assert_allclose(run.time, whole.time, rtol=1e-8)
    run = sf.gradient_flow(COST, start(), target_cost=1e3 * float(whole.train_cost[-1]))
    assert run.stop_reason == "target_cost"
    assert run.time[-1] < whole.time[-1]
    assert "target_cost at t = " in repr(run)
    assert run.configuration["target_cost"] == 1e3 * float(whole.train_cost[-1])


def test_a_run_goes_as_without_a_target_until_it_ends():
    """The same steps, and one more, for the step in which it ends is taken anew."""
    level = 0.2 * HIGHEST
    whole = sf.gradient_flow(COST, start())
    run = sf.gradient_flow(COST, start(), target_cost=level)
    before = int(np.sum(whole.train_cost > level))
    np.testing.assert_allclose(run.time[:before], whole.time[:before], rtol=1e-10)
    np.testing.assert_allclose(run.end_to_end[:before], whole.end_to_end[:before], rtol=1e-9)
    assert len(run.time) <= before + 2
    assert run.clock.time[-1] == pytest.approx(run.time[-1], rel=1e-14)


def test_rows_end_with_the_run():
    level = 0.2 * HIGHEST
    end = sf.gradient_flow(COST, start(), target_cost=level)
    times = np.linspace(0, 2 * end.time[-1], 40)
    run = sf.gradient_flow(COST, start(), target_cost=level, save_at=times)
    assert run.stop_reason == "target_cost"
    np.testing.assert_array_equal(run.time, times[times <= end.time[-1]])
    assert float(COST(run.network.end_to_end())) == pytest.approx(level, rel=1e-5)
    assert run.train_cost[-1] > level
    fine = sf.gradient_flow(COST, start(), target_cost=level, saves_per_step=3)
    assert (np.diff(fine.time) > 0).all()
    assert fine.time[-1] == pytest.approx(end.time[-1], rel=1e-9)
    assert (fine.train_cost[:-1] > level).all()


@pytest.mark.slow
def test_the_pure_function_ends_there_too_in_a_batch_as_alone():
    levels = HIGHEST * np.array([0.8, 0.2, 1e-3])

    def flow(level):
        return sf.integrate(COST, start(), target_cost=level, max_saves=8)

    batch = jax.jit(jax.vmap(flow))(levels)
    wide = jax.jit(lambda levels: jax.vmap(flow)(levels))(levels[:2])
    for number, level in enumerate(levels):
        alone = sf.gradient_flow(COST, start(), target_cost=level)
        assert sf.StopReason(int(batch.stop_reason[number])).name == "target_cost"
        assert float(batch.end_time[number]) == pytest.approx(alone.time[-1], rel=1e-9)
        assert int(batch.num_steps[number]) == alone.stats["num_steps"]
        matrix = batch.network.end_to_end()[number] if number else None
        if matrix is not None:
            np.testing.assert_allclose(matrix, alone.end_to_end[-1], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(wide.end_time, batch.end_time[:2], rtol=1e-12)


def test_another_target_compiles_nothing(compiled):  # noqa: F811
    network = sf.gaussian(jax.random.key(1), depth=3, width=9, shape=(3, 3), gamma=1.0)
    compilations(compiled, COST, network, target_cost=0.5 * HIGHEST)
    other = sf.gaussian(jax.random.key(1), depth=3, width=10, shape=(3, 3), gamma=1.0)  # padded
    assert compilations(compiled, COST, other, target_cost=0.3 * HIGHEST) == 0


@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf])
def test_targets_that_will_not_do_are_refused(value):
    with pytest.raises(ValueError, match="`target_cost` must be finite and not negative, but got"):
        sf.gradient_flow(COST, start(), target_cost=value)
    with pytest.raises(ValueError, match="`target_cost`"):
        sf.sweep(COST, depth=2, width=4, target_cost=value)


SWEEP = {"depth": 3, "width": 6, "gamma": 1.5, "seed": [1, 2, 3], "progress": False}


@pytest.mark.slow
def test_lanes_end_at_the_target_too():
    level = 0.2 * HIGHEST
    data = sf.sweep(COST, **SWEEP, target_cost=level)
    side_by_side = sf.sweep(COST, **SWEEP, target_cost=level, slots=2)
    assert (data.stop_reason == "target_cost").all()
    assert json.loads(data.attrs["configuration"])["target_cost"] == level
    np.testing.assert_allclose(data.train_cost.isel(sample=-1), level, rtol=1e-4)
    np.testing.assert_allclose(side_by_side.end_time, data.end_time, rtol=1e-9)
    np.testing.assert_array_equal(side_by_side.num_accepted_steps, data.num_accepted_steps)
    for seed in SWEEP["seed"]:
        alone = sf.gradient_flow(COST, start(seed=seed), rtol=1e-4, target_cost=level)
        assert float(data.end_time.sel(seed=seed)) == pytest.approx(alone.time[-1], rel=1e-7)
        assert int(data.num_accepted_steps.sel(seed=seed)) == alone.stats["num_accepted_steps"]


def test_lanes_of_models_do():
    def make(key, scale):
        return scale * jax.random.normal(key, (2,), float)

    def loss(x):
        return jnp.sum((x**2 - 1) ** 2)

    data = sf.sweep(loss, init=make, scale=[1e-2, 0.1], seed=0, target_cost=0.3, progress=False)
    assert (data.stop_reason == "target_cost").all()
    np.testing.assert_allclose(data.train_cost.isel(sample=-1), 0.3, rtol=1e-4)


@pytest.mark.slow
def test_reduced_networks_do():
    """At the time at which the full network does; the pilots go on to a lower cost."""
    network, level = start(width=80, gamma=1.0), 0.2 * HIGHEST
    full = sf.gradient_flow(COST, network, rtol=1e-8, target_cost=level)
    run = sf.gradient_flow(COST, network, rtol=1e-5, target_cost=level, reduce_width="auto")
    assert run.stop_reason == "target_cost"
    assert run.reduced is not None
    assert run.reduction_error_estimate is not None
    assert run.reduction_error_estimate <= 10 * 1e-5 * np.linalg.norm(run.end_to_end, axis=(1, 2)).max()
    assert run.time[-1] == pytest.approx(full.time[-1], rel=1e-4)
    assert run.train_cost[-1] == pytest.approx(level, rel=1e-5)


@pytest.mark.slow
def test_pilots_go_on_a_little(monkeypatch):
    asked, solve = [], adaptive.solve

    def noted(cost, network, options):
        asked.append((options.phase.split()[0], options.target_cost))
        return solve(cost, network, options)

    monkeypatch.setattr(adaptive, "solve", noted)
    level = 0.2 * HIGHEST
    reduced = sf.reduce_width(start(width=80, gamma=1.0, seed=4), 1e-5)
    run = sf.gradient_flow(COST, reduced, rtol=1e-7, target_cost=level)
    assert run.reduction_error_estimate is not None
    assert 0 < run.reduction_error_estimate <= 1e-5
    found = dict(asked)
    assert found["run"] == level
    assert found["pilot"] == 0.9 * level
    assert found["check"] is None


@pytest.mark.slow
def test_lanes_of_reduced_width_do():
    data = sf.sweep(
        COST, depth=3, width=80, seed=4, rtol=1e-4, target_cost=0.2 * HIGHEST, reduce_width="auto", progress=False
    )
    assert str(data.stop_reason.values) == "target_cost"
    assert float(data.train_cost[-1]) == pytest.approx(0.2 * HIGHEST, rel=1e-4)


def test_a_symmetric_start_ends_there_and_not_at_a_saddle():
    """The twin, which tells escapes that rounding decides, ends at the same cost."""
    network = modes_start(3, 1e-4)
    for share in (0.9, 0.5, 0.1, 1e-3):
        run = sf.gradient_flow(MODES, network, target_cost=share * float(np.sum(STRENGTHS**2)))
        assert run.stop_reason == "target_cost"
    assert [visit.rank for visit in run.saddles()] == [0, 1]


@pytest.mark.slow
def test_the_command_line_has_it(run_cli, tmp_path):
    out, task = tmp_path / "run.nc", ["--shape", "3x3", "--rank", "1"]
    code, text, _ = run_cli("flow", *task, "--width", "6", "--target-cost", "0.01", "--out", out)
    assert code == 0
    assert "target_cost at t = " in text
    run = sf.load(out)
    assert run.train_cost[-1] == pytest.approx(0.01, rel=1e-3)
    assert run.configuration["target_cost"] == 0.01
    grid = ["width=4", "depth=2", "seed=0:2", "--target-cost", "0.01"]
    code, text, _ = run_cli("sweep", *grid, *task, "--out", tmp_path / "sweep.nc")
    assert code == 0
    assert "2 target_cost" in text
