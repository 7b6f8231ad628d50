"""Continued flows: two costs, one clock; and the time of the switch as a dim of a sweep."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import saddleflow as sf
from saddleflow import theory

KEY = jax.random.key(0)
QUIET = {"progress": False}


def task(seed, rank=1):
    return sf.MatrixCompletion.random(jax.random.key(seed), shape=(5, 4), rank=rank)


def teacher(*strengths):
    target = np.zeros((5, 4))
    target[range(len(strengths)), range(len(strengths))] = strengths
    return sf.MeanSquaredError.teacher(target)


@pytest.fixture(scope="module")
def both():
    start = sf.gaussian(KEY, depth=3, width=6, shape=(5, 4), variance=1e-3)
    first = sf.gradient_flow(teacher(3.0), start, t1=20.0, **QUIET)
    return first, sf.continue_flow(first, teacher(3.0, 1.0), **QUIET)


class TestContinuedFlow:
    """One trajectory of both flows."""

    def test_it_is_both_flows(self, both):
        first, run = both
        second = sf.gradient_flow(teacher(3.0, 1.0), first.network, **QUIET)
        count = len(first.time)
        np.testing.assert_array_equal(run.time, [*first.time, *(second.time + first.time[-1])])
        np.testing.assert_array_equal(run.end_to_end[:count], first.end_to_end)
        np.testing.assert_array_equal(run.end_to_end[count:], second.end_to_end)
        np.testing.assert_array_equal(run.train_cost, [*first.train_cost, *second.train_cost])
        assert run.test_cost is None
        assert run.stop_reason == second.stop_reason == "converged"
        assert run.stats["num_steps"] == first.stats["num_steps"] + second.stats["num_steps"]
        assert len(run.parts) == 2
        assert f"MeanSquaredError then MeanSquaredError, switched at t = {first.time[-1]:.6g}" in repr(run)

    def test_saddles_of_both_in_the_order_of_time(self, both):
        first, run = both
        visits = run.saddles()
        before = first.saddles()
        assert len(before) >= 1
        assert len(visits) > len(before), "the second task has a plateau, too"
        assert [visit.cost for visit in visits[: len(before)]] == [visit.cost for visit in before]
        times = [time for visit in visits for time in (visit.enter, visit.time, visit.leave)]
        assert times == sorted(times)
        for visit in visits:
            assert run.time[visit.row] == pytest.approx(visit.time, abs=1e-9)
            assert visit.index is not None
        by_rows = run.saddles(stationary_points=False)
        assert [v.row for v in by_rows] == [v.row for v in visits]
        assert (np.diff(run.num_escapes) >= 0).all()

    def test_it_saves_loads_and_draws(self, both, tmp_path):
        _, run = both
        again = sf.load(run.save(tmp_path / "both.nc"))
        np.testing.assert_array_equal(again.time, run.time)
        np.testing.assert_array_equal(again.train_cost, run.train_cost)
        assert [v.row for v in again.saddles()] == [v.row for v in run.saddles()]
        assert repr(again).splitlines()[1] == repr(run).splitlines()[1]
        plt.close(run.plot())

    def test_a_clock_that_float64_does_not_resolve(self):
        """After a plateau of 1e18 a second flow is still resolved, by the segments of the clock."""
        start = sf.balanced(1e-27 * jnp.eye(2), depth=3, width=2)
        first = sf.gradient_flow(sf.MeanSquaredError.teacher(jnp.diag(jnp.asarray([2.0, 1.0]))), start, **QUIET)
        second = sf.MeanSquaredError.teacher(jnp.diag(jnp.asarray([1.5, 3.0])))
        run = sf.continue_flow(first, second, t1=1.0, save_at=[0.25, 1.0], **QUIET)
        assert run.time[-1] > 1e8
        np.testing.assert_allclose(run.clock.steps[-1], 0.75, rtol=1e-12)

    def test_three_in_a_row_against_the_exact_solution(self):
        """A single layer: exponentials, one after another."""
        targets = [np.diag([1.0, 2.0]), np.diag([-1.0, 1.0]), np.ones((2, 2))]
        costs = [sf.MeanSquaredError.teacher(target) for target in targets]
        start = sf.DeepLinearNetwork([jnp.zeros((2, 2))])
        options = {"t1": 0.5, "save_at": [0.0, 0.5], "rtol": 1e-8, **QUIET}
        run = sf.gradient_flow(costs[0], start, **options)
        for cost in costs[1:]:
            run = sf.continue_flow(run, cost, **options)
        matrix = np.zeros((2, 2))
        for target in targets:
            matrix = target + (matrix - target) * np.exp(-1.0)
        np.testing.assert_allclose(run.end_to_end[-1], matrix, atol=1e-7)
        np.testing.assert_array_equal(run.time, [0.0, 0.5, 0.5, 1.0, 1.0, 1.5])
        assert len(run.parts) == 3

    def test_the_imbalance_survives_the_switch(self):
        """Two tasks from one start of imbalance: each phase is the Riccati solution from where it began."""
        rng = np.random.default_rng(1)
        start = sf.balanced(0.1 * rng.normal(size=(3, 3)), depth=2, width=3, imbalance=2.0)
        targets = rng.normal(size=(2, 3, 3))
        options = {"t1": 0.4, "save_at": [0.4], "rtol": 1e-8, **QUIET}
        first = sf.gradient_flow(sf.MeanSquaredError.teacher(targets[0]), start, **options)
        run = sf.continue_flow(first, sf.MeanSquaredError.teacher(targets[1]), **options)
        layers = [np.asarray(layer) for layer in first.network.layers]
        exact = theory.riccati_flow(np.array([0.8]), layers[0], layers[1], targets[1], tolerance=1e-5).end_to_end
        np.testing.assert_allclose(run.end_to_end[-1], exact[0], atol=1e-6)
        assert run.stats["balancedness_drift"] < 1e-6


class TestSwitchTimes:
    """`sf.after` in sweeps."""

    def test_a_lane_is_the_continued_flow(self):
        law = {"depth": 2, "width": 5, "variance": 0.01}
        times = {"t1": 6.0, "save_at": [0.0, 3.0, 6.0], "rtol": 1e-6}
        data = sf.sweep(
            task(1),
            init=sf.after(task(0), sf.gaussian),
            switch_time=[0.0, 2.0, 30.0],
            seed=[0, 1],
            save_matrices=True,
            **law,
            **times,
            **QUIET,
        )
        assert data.train_cost.dims == ("switch_time", "seed", "time")
        start = sf.gaussian(jax.random.key(1), shape=(5, 4), **law)
        first = sf.gradient_flow(task(0), start, t1=30.0, **QUIET)
        run = sf.continue_flow(first, task(1), **times, **QUIET)
        there = data.end_to_end.sel(switch_time=30.0, seed=1)
        np.testing.assert_allclose(there, run.end_to_end[-3:], atol=1e-4)
        fresh = sf.gradient_flow(task(1), start, **times, **QUIET)
        np.testing.assert_allclose(data.end_to_end.sel(switch_time=0.0, seed=1), fresh.end_to_end, atol=1e-4)


def test_bad_continuations(both):
    _, run = both
    late = sf.gradient_flow(task(0), run.network, t1=1.0, save_at=[0.5], **QUIET)
    for call, message in [
        (
            lambda: sf.continue_flow(late, task(1)),
            "`trajectory` must have a row at its end, but got 'the last at",
        ),
        (lambda: sf.continue_flow(run.network, task(1)), "`trajectory` must be the trajectory of a network"),
        (lambda: sf.continue_flow(run, None), "`cost` must be a saddleflow cost, but got None"),
        (lambda: sf.continue_flow(run, sf.MatrixCompletion.random(KEY)), "`network` must have the end-to-end shape"),
        (lambda: sf.continue_flow(run, task(1), reduce_width="auto"), "`reduce_width` must be left out"),
        (lambda: sf.after(None, sf.gaussian), "`cost` must be a saddleflow cost"),
        (lambda: sf.after(task(0), 3), "`init` must be a function"),
        (lambda: sf.after(task(0), sf.gaussian, t1=3.0), "`t1` must be left out"),
        (
            lambda: sf.after(task(0), sf.identity)(KEY, switch_time=-1.0, depth=1, shape=(5, 4)),
            "`switch_time` must be finite and not negative, but got -1.0",
        ),
        (
            lambda: sf.after(task(0), sf.identity, max_steps=2)(KEY, switch_time=9.0, depth=1, shape=(5, 4)),
            "`switch_time` must be reached by the flow before it, but got 'max_steps",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="Did you mean `max_steps`"):
        sf.continue_flow(run, task(1), max_step=3)
