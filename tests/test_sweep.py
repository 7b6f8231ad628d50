"""Sweeps. Compiling takes most of the time here, so most tests use one of the programs below.

Agreement to rounding, `assert_same`, is asked for only where both sweeps run in the same compiled program.
"""

import json
import threading
import time
from types import SimpleNamespace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.flow.arguments import FlowOptions
from saddleflow.sweeps import dataset, lanes, scheduler
from saddleflow.sweeps.chunks import SweepOptions, cut, run_chunks
from saddleflow.sweeps.grid import Grid

COST = sf.MatrixCompletion.random(jax.random.key(1), shape=(4, 4), rank=2, observed=0.75)

# The default solver.
GRID = {"depth": 3, "width": 6, "gamma": [1.0, 1.5], "seed": [0, 1, 2]}

# Programs that compile fast: explicit steps saved as they come, or at eight times; and two lanes side by side.
STEPS = {"depth": 2, "width": 4, "rtol": 1e-3, "max_saves": 8, "solver": diffrax.Tsit5()}
TIMES = {"depth": 2, "width": 4, "save_at": 8, "t1": 5.0, "solver": diffrax.Tsit5()}
PAIR = STEPS | {"slots": 2, "t1": 10.0, "observables": ["layer_norms"], "save_matrices": True}


@pytest.fixture(scope="module")
def data():
    return sf.sweep(COST, **GRID)


@pytest.fixture(scope="module")
def pairs():
    return sf.sweep(COST, **PAIR, gamma=[0.5, 1.0, 2.0], seed=[0, 1])


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        x, y = a[name], b[name].sel({dim: a[dim] for dim in a[name].dims if dim in a.coords})
        if x.dtype.kind in "US":
            assert (x.values == y.values).all(), name
        else:
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=0, err_msg=name)


def test_dims_are_the_keywords_that_are_sequences(data):
    assert data.train_cost.dims == ("gamma", "seed", "sample")
    assert data.singular_values.dims == ("gamma", "seed", "sample", "mode")
    assert data.stop_reason.dims == ("gamma", "seed")
    assert (data.stop_reason == "converged").all()
    assert data.train_cost.attrs["units"] == "cost"
    assert json.loads(data.attrs["configuration"])["gamma"] == [1.0, 1.5]
    assert data.attrs["lane_utilisation"] >= 0.9


def test_a_lane_is_its_lone_run(data):
    for gamma in GRID["gamma"]:
        start = sf.gaussian(jax.random.key(2), depth=3, width=6, shape=(4, 4), gamma=gamma)
        alone = sf.gradient_flow(COST, start, rtol=1e-4)
        lane = data.sel(gamma=gamma, seed=2)
        assert float(lane.end_time) == pytest.approx(alone.time[-1], rel=1e-3)
        np.testing.assert_allclose(lane.singular_values[-1], alone.singular_values[-1], atol=1e-3)
        assert int(lane["rank"][-1]) == alone.rank[-1]
        assert str(lane.stop_reason.values) == alone.stop_reason
        # no step taken yet, but drawn and multiplied in another program: a hundredth of rtol is far above rounding
        np.testing.assert_allclose(lane.train_cost[0], alone.train_cost[0], rtol=1e-6)
        assert float(lane.balancedness_drift) < 1e-3


def test_neither_order_nor_chunks_nor_other_lanes_matter(data):
    shuffled = sf.sweep(COST, depth=3, width=6, gamma=[1.5, 1.0], seed=[2, 0, 1], chunk_size=2)
    assert_same(data, shuffled)
    alone = sf.sweep(COST, depth=3, width=6, gamma=1.5, seed=1)
    assert_same(alone, data.sel(gamma=1.5, seed=1))


def test_slots_of_one_program_do_not_know_each_other(pairs):
    """Two slots under vmap: refilled as lanes end, the same whatever the order."""
    assert_same(pairs, sf.sweep(COST, **PAIR, gamma=[2.0, 1.0, 0.5], seed=[1, 0], chunk_size=3))
    assert 0.5 < pairs.attrs["lane_utilisation"] <= 1
    ended = {"converged": pairs.end_time <= 10, "t1": pairs.end_time == 10}  # and none was read before
    assert (
        sum(((pairs.stop_reason == reason) & there).sum() for reason, there in ended.items())
        == pairs.stop_reason.size
    )


def test_what_a_burst_is_worth():
    """Three slots, one of them idle, go on while the longest lane does: eight steps of each are paid for."""
    slots = {0: scheduler._Slot("a", steps=2), 2: scheduler._Slot("b", steps=10, computed=5.0)}
    tally = scheduler._account(slots, np.array([5, 0, 18]), 3)
    assert (tally.useful, tally.computed) == (3 + 8, 3 * 8)
    assert [(slot.steps, slot.computed) for slot in slots.values()] == [(5, 12.0), (18, 17.0)]


def test_workers_divide_few_lanes(pairs, monkeypatch):
    working, advance = set(), lanes.advance_slots

    def seen(running, program, num_steps):
        name = threading.current_thread().name
        if num_steps > 0 and name not in working:  # workers compile one after another, without a step
            working.add(name)
            all_at_work.wait(60)
        return advance(running, program, num_steps)

    monkeypatch.setattr(lanes, "advance_slots", seen)
    for count in (1, 2):
        working.clear()
        all_at_work = threading.Barrier(count)
        monkeypatch.setattr(scheduler, "cores", lambda count=count: count)
        found = sf.sweep(COST, **PAIR, gamma=1.0, seed=[0, 1], devices=1)
        assert len(working) == count
        assert_same(found, pairs.sel(gamma=1.0))


def test_observables_and_matrices(pairs):
    assert pairs.observable_layer_norms.shape == (3, 2, 8, 2)
    assert pairs.end_to_end.dims == ("gamma", "seed", "sample", "n_out", "n_in")
    # of the very same matrices
    norms = np.linalg.norm(pairs.end_to_end, axis=(-2, -1))
    np.testing.assert_allclose(norms, np.sqrt((pairs.singular_values**2).sum("mode")), rtol=1e-9)


def test_a_program_is_compiled_once():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: compiled.append(about.get("fun_name")) if "backend_compile" in event else None
    )
    options = STEPS | {"width": 7}  # a program of its own
    sf.sweep(COST, **options, gamma=[1.0, 1.5], seed=[0, 1, 2], chunk_size=2, devices=1)
    names = ("_start", "advance", "advance_slots", "read_slots")
    assert [compiled.count(f"jit({name})") for name in names] == [1, 1, 0, 0]
    sf.sweep(COST, **(options | {"max_steps": 50, "gradient_tolerance": 1e-3, "rtol": 1e-4}), t1=2.0, devices=1)
    assert [compiled.count(f"jit({name})") for name in names] == [1, 1, 0, 0]  # the numbers are traced


def test_all_dims_at_once():
    costs = [COST, sf.MatrixCompletion.random(jax.random.key(2), shape=(4, 4), rank=1, observed=0.75)]
    axes = {"depth": [2, 3], "width": [4], "gamma": [1], "alpha": [0.5, 1], "seed": range(2), "rtol": [1e-3, 1e-4]}
    data = sf.sweep(costs, **(TIMES | axes))
    dims = ("cost", "depth", "gamma", "alpha", "width", "seed", "rtol")
    assert data.stop_reason.dims == dims
    assert data.train_cost.shape == (2, 2, 1, 2, 1, 2, 2, 8)
    np.testing.assert_allclose(data.time, [0, *np.geomspace(5e-6, 5, 7)])
    assert (data.stop_reason == "t1").all()
    one = data.isel(cost=1, depth=0, gamma=0, alpha=0, width=0, seed=1, rtol=1)
    start = 0.5 * sf.gaussian(jax.random.key(1), depth=2, width=4, shape=(4, 4), gamma=1)
    alone = sf.gradient_flow(costs[1], start, rtol=1e-4, t1=5.0, save_at=data.time.values, solver=diffrax.Tsit5())
    np.testing.assert_allclose(one.train_cost, alone.train_cost, rtol=1e-3)
    np.testing.assert_allclose(one.test_cost, alone.test_cost, rtol=1e-3)


def test_short_runs_fill_their_rows_by_dense_output():
    data = sf.sweep(COST, **STEPS, t1=1.0)
    steps = int(data.num_accepted_steps)
    assert steps < 8
    assert len(np.unique(data.time)) == 8
    saved = sf.sweep(COST, **(TIMES | {"save_at": data.time.values, "t1": None, "rtol": 1e-3}))
    assert int(saved.num_accepted_steps) == steps
    # another program takes the same few steps: a hundredth of rtol is far above its rounding
    np.testing.assert_allclose(data.train_cost, saved.train_cost, rtol=1e-5)


@pytest.mark.slow
def test_tiny_starts_have_a_program_of_their_own():
    data = sf.sweep(COST, depth=3, width=6, alpha=[1e-9, 0.1], max_saves=8)
    assert (data.stop_reason == "converged").all()
    assert data.train_cost.isel(sample=-1).max() < 1e-4


class Exploding(sf.MatrixCompletion):
    """Not finite as soon as A has grown: a lane made to fail."""

    def gradient(self, matrix):
        return super().gradient(matrix) + jnp.where(jnp.abs(matrix).max() > 1.0, jnp.nan, 0.0)


def test_a_lane_that_diverges_is_flagged_and_stops_nobody():
    bad = Exploding(COST.target, COST.observed)
    options = STEPS | {"gamma": 1.5, "seed": [0, 1]}
    data = sf.sweep([bad, COST], **options)
    assert (data.stop_reason.sel(cost=0) == "non_finite").all()
    assert (data.num_accepted_steps.sel(cost=0) > 0).all()
    assert np.isfinite(data.train_cost.sel(cost=0)).all()
    assert_same(sf.sweep(COST, **options), data.sel(cost=1))


def test_rows_that_a_lane_did_not_reach_are_missing():
    data = sf.sweep(COST, **(TIMES | {"save_at": [*range(7), 1e9], "t1": None}), max_steps=5)
    assert data.stop_reason == "max_steps"
    assert np.isfinite(data.train_cost.values[0])
    assert np.isnan(data.train_cost.values[-1])
    assert data["rank"].values[-1] == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": []}, "`gamma` must hold at least one value"),
        ({"seed": [1, 1]}, r"`seed` must hold each value once, but got '\[1\] twice'"),
        ({"depth": 0}, "`depth` must be an integer >= 1"),
        ({"alpha": [0.0, 1.0]}, "`alpha` must be finite and positive"),
        ({"gamma": np.nan}, "`gamma` must be finite"),
        ({"gamma": -1}, "`gamma` must not be negative"),
        ({"rtol": 2}, "`rtol` must lie"),
        ({"width": 2.5}, "`width` must be an integer"),
        ({"seed": [[1], [2]]}, "`seed` must be a number or a list"),
        ({"devices": 99}, "`devices` must be at least 1 and at most"),
        ({"slots": 0}, "`slots` must be an integer"),
        ({"chunk_size": 0}, "`chunk_size` must be an integer"),
        ({"save_at": 5}, "`t1` must be given where save_at is a number"),
        ({"save_at": [3, 1]}, "`save_at` must be sorted"),
        ({"t1": -1}, "`t1` must be finite and positive"),
        ({"max_saves": 1}, "`max_saves`"),
        ({"max_steps": 0}, "`max_steps`"),
        ({"gradient_tolerance": 1.0}, "`gradient_tolerance` must lie"),
        ({"rank_tolerance": 0.0}, "`rank_tolerance` must be finite and positive"),
        ({"solver": diffrax.Euler()}, "`solver` must be an adaptive diffrax solver"),
        ({"client": SimpleNamespace(submit=0, cancel=0), "devices": 1}, "`devices` must not be given together"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        sf.sweep(COST, **(GRID | change))


def test_arguments_of_another_name():
    with pytest.raises(TypeError, match=r"`gama` is no argument of sweep. Did you mean `gamma`?"):
        sf.sweep(COST, **GRID, gama=[1])
    with pytest.raises(TypeError, match=r"`xyzzy` is no argument of sweep. Known: cost, depth"):
        sf.sweep(COST, **GRID, xyzzy=1)


def test_observables_have_one_shape_in_all_lanes():
    """The norms of the layers of two depths."""
    flat, (first, second) = {}, chunks_of({"gamma": 1.0, "depth": [2, 3]}, 8)
    dataset.fill(flat, 2, first, {"observable_layer_norms": np.ones((1, 8, 2))})
    with pytest.raises(
        ValueError, match=r"`observables` must have one shape .* \(8, 2\) and \(8, 3\)'. Make a sweep"
    ):
        dataset.fill(flat, 2, second, {"observable_layer_norms": np.ones((1, 8, 3))})


def test_bad_costs():
    other = sf.MatrixCompletion.random(jax.random.key(1), shape=(4, 3), rank=2, observed=0.75)
    with pytest.raises(ValueError, match="`cost` must have one shape for all"):
        sf.sweep([COST, other], **GRID)
    with pytest.raises(ValueError, match="`cost` must be a saddleflow cost"):
        sf.sweep(lambda a: 0.0, **GRID)


def test_what_does_not_fit_is_refused_before_it_is_compiled():
    with pytest.raises(ValueError, match=r"A forecast says .* GB"):
        sf.sweep(COST, depth=3, width=6, max_saves=10**10)


def chunks_of(grid, chunk_size):
    axes = {"depth": 2, "width": 4, "gamma": [1.0, 1.5], "alpha": 1.0, "seed": 0, "rtol": 1e-3}
    options = SweepOptions(FlowOptions(max_saves=8, saves_per_step=4, solver=diffrax.Tsit5()))
    return cut(Grid.of(COST, **(axes | grid)), options, chunk_size)


def test_chunks_depend_on_the_grid_alone():
    chunks = chunks_of({"width": [6, 8], "seed": range(10)}, 7)
    assert all(len(chunk.index) <= 7 for chunk in chunks)
    assert sorted(np.concatenate([chunk.index for chunk in chunks])) == list(range(40))
    for chunk in chunks:
        assert set(chunk.coordinates["width"]) == {chunk.width}


def test_who_stops_listening_stops_the_workers():
    results = run_chunks(chunks_of({"seed": range(400)}, 8), devices=1)
    next(results)
    assert _workers()
    results.close()
    assert _no_workers_are_left()


def _no_workers_are_left():
    for _ in range(600):
        if not _workers():
            return True
        time.sleep(0.1)
    return False


def _workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lanes_")]


def test_an_error_in_a_worker_reaches_the_caller(monkeypatch):
    """After the other workers have ended, who may be compiling."""
    both_at_work, ended = threading.Barrier(2), []

    def broken(*arguments):
        if both_at_work.wait(60) == 0:
            raise RuntimeError("out of order")
        time.sleep(0.5)
        ended.append(True)
        raise RuntimeError("later")

    monkeypatch.setattr(lanes, "begin", broken)
    monkeypatch.setattr(scheduler, "cores", lambda: 2)
    with pytest.raises(RuntimeError, match="out of order"):
        sf.sweep(COST, **(STEPS | {"width": [4, 5]}), gamma=[1.0, 1.5], devices=1)
    assert ended == [True]
    assert _no_workers_are_left()
