"""Discrete training: steps beside loops in numpy and optax, batches, ends, time, the distance to the flow."""

import re
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
import xarray as xr

import saddleflow as sf
from saddleflow.training.rates import plain_rate

COST, RATE = sf.MatrixCompletion.random(jax.random.key(1), shape=(4, 4), rank=2, observed=0.75), 0.05
START = sf.gaussian(jax.random.key(2), depth=3, width=6, shape=(4, 4), gamma=1.0)
KEY = jax.random.key(3)
# as many rows everywhere: one program
ROWS = [1, 10, 50]


def descend(*arguments, **options):
    return sf.gradient_descent(COST, START, *arguments, **{"progress": False, "save_at": ROWS} | options)


def loop(num_steps, rate, batches=None):
    """A at every step of plain gradient descent, by numpy alone."""
    layers = [np.asarray(layer) for layer in START.layers]
    target, places = np.asarray(COST.target), np.argwhere(np.asarray(COST.observed))
    found = []
    for step in range(num_steps + 1):
        first, middle, last = layers
        matrix = last @ middle @ first
        found.append(matrix)
        rows, columns = places.T if batches is None or step == num_steps else places[batches[step]].T
        slope = np.zeros_like(matrix)
        np.add.at(slope, (rows, columns), 2 / len(rows) * (matrix - target)[rows, columns])
        gradients = (last @ middle).T @ slope, last.T @ slope @ first.T, slope @ (middle @ first).T
        layers = [layer - rate * gradient for layer, gradient in zip(layers, gradients, strict=True)]
    return np.array(found)


def close(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_plain_descent_is_the_loop():
    steps = [0, *ROWS, 1000]
    expected = loop(1000, RATE)[steps]
    for run in (descend(learning_rate=RATE, num_steps=1000), descend(optax.sgd(RATE), num_steps=1000)):
        close(run.end_to_end, expected)
        close(run.network.end_to_end(), expected[-1])
        np.testing.assert_allclose(run.time, RATE * np.array(steps), rtol=1e-15)
        np.testing.assert_allclose(run.train_cost, [float(COST(matrix)) for matrix in expected], rtol=1e-12)
        assert (run.stop_reason, run.stats["num_steps"], run.stats["num_epochs"]) == ("num_steps", 1000, None)
    assert "gradient descent, learning rate 5.0e-02, all samples in a step" in repr(run)
    assert "num_steps at t = 50" in repr(run)


def test_mini_batches_are_the_loop_on_their_indices():
    batches = np.asarray(sf.training.batch_indices(KEY, COST.num_samples, 5, 1000))
    run = descend(learning_rate=RATE, num_steps=1000, batch_size=5, key=KEY)
    close(run.end_to_end, loop(1000, RATE, batches)[[0, *ROWS, 1000]])
    assert run.stats["num_epochs"] == 1000 * 5 / 12
    assert "5 of 12 samples in a step" in repr(run)
    # a row's cost and gradient are those of all samples
    close(run.train_cost, [float(COST(matrix)) for matrix in run.end_to_end])
    gradient = optax.tree.norm(sf.gradient(COST, run.network))
    assert run.gradient_norm[-1] == pytest.approx(float(gradient), rel=1e-12)


def test_adam_is_optax_step_by_step():
    optimizer = optax.adam(1e-2)
    network, state = START, optimizer.init(START)

    @jax.jit
    def step(network, state):
        updates, state = optimizer.update(sf.gradient(COST, network), state, network)
        return optax.apply_updates(network, updates), state

    for _ in range(200):
        network, state = step(network, state)
    run = descend(optimizer, learning_rate=1e-2, num_steps=200)
    close(run.network.end_to_end(), np.asarray(network.end_to_end()))
    assert run.time[-1] == pytest.approx(2.0)
    assert "optax (ScaleByAdam), learning rate 1.0e-02" in repr(run)


def test_the_distance_to_the_flow_falls_with_the_rate():
    distances = []
    for rate, factor in ((2e-2, 1), (1e-2, 2), (5e-3, 4)):
        run = descend(learning_rate=rate, num_steps=100 * factor, save_at=[step * factor for step in ROWS])
        flow = sf.gradient_flow(COST, START, rtol=1e-10, save_at=run.time, progress=False)
        found = sf.distance_to_flow(run, flow)
        assert found.shape == (5,)
        assert found[0] == 0
        distances.append(found[1:])
    for coarse, fine in pairwise(distances):
        np.testing.assert_allclose(coarse / fine, 2, rtol=0, atol=0.1)


def test_a_picture_of_distance_and_sharpness():
    run = descend(learning_rate=RATE, num_steps=100, observables=["sharpness"])
    figure = sf.training.plot_descent(run, descend(learning_rate=RATE, num_steps=100))
    top, bottom = figure.axes
    assert (top.get_ylabel(), bottom.get_xlabel()) == ("distance to the flow", "t, learning rate times steps")
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), run.observables["sharpness"])
    assert bottom.lines[1].get_ydata()[0] == 2 / RATE
    plt.close(figure)
    with pytest.raises(ValueError, match='`descent` must hold the observable "sharpness"'):
        sf.training.plot_descent(descend(learning_rate=RATE, num_steps=100), run)


def test_distances_need_the_same_times_and_shapes(tmp_path):
    run = descend(learning_rate=RATE, num_steps=100)
    with pytest.raises(
        ValueError, match=r"`flow` must have the descent's times, but got '5 times up to 10'. Pass save"
    ):
        sf.distance_to_flow(run, descend(learning_rate=2 * RATE, num_steps=100))
    with pytest.raises(ValueError, match="`flow` must be a trajectory, but got 'int'"):
        sf.distance_to_flow(run, 1)
    ended = descend(learning_rate=RATE, num_steps=100, target_cost=float(run.train_cost[2]))
    np.testing.assert_array_equal(np.isnan(sf.distance_to_flow(run, ended)), [False] * 3 + [True] * 2)


@pytest.mark.parametrize(("count", "size"), [(12, 5), (12, 4), (12, 12), (7, 1)])
def test_the_batches_of_an_epoch_are_a_permutation(count, size):
    batches = np.asarray(sf.training.batch_indices(KEY, count, size, 3 * count))
    assert batches.shape == (3 * count, size)
    epochs = batches.reshape(-1, count)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(count), epochs.shape))
    assert len({tuple(epoch) for epoch in epochs}) > 1
    np.testing.assert_array_equal(batches, sf.training.batch_indices(KEY, count, size, 3 * count))


def test_one_key_is_one_run():
    runs = [descend(learning_rate=RATE, num_steps=60, batch_size=5, key=jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].end_to_end, runs[1].end_to_end)
    assert np.abs(runs[0].end_to_end - runs[2].end_to_end).max() > 1e-3


def test_rows_are_spread_over_the_steps_with_both_ends():
    run = descend(learning_rate=RATE, num_steps=1000, save_at=None, max_saves=5, save_networks=True)
    np.testing.assert_allclose(run.time, RATE * np.array([0, 250, 500, 750, 1000]))
    close(run.networks.end_to_end(), run.end_to_end)
    assert len(descend(learning_rate=RATE, num_steps=7, save_at=None).time) == 8


def test_stable_below_two_over_the_sharpness_unstable_above():
    """A parabola of curvature 3."""

    def parabola(model):
        return 1.5 * model**2

    options = {"num_steps": 1000, "save_at": ROWS, "progress": False}
    stable = sf.gradient_descent(parabola, jnp.asarray(1.0), learning_rate=1.9 / 3, **options)
    assert (stable.stop_reason, stable.train_cost[-1] < 1e-30) == ("num_steps", True)
    run = sf.gradient_descent(parabola, jnp.asarray(1.0), learning_rate=2.1 / 3, **options)
    # |theta| grows by 1.1 a step, the loss by 1.21: beyond 1e6 |grad| |theta|, which is twice the loss, in 77 steps
    assert (run.stop_reason, run.stats["num_steps"]) == ("unstable", 77)
    assert run.train_cost[-1] == pytest.approx(1.5 * 1.1**154)
    assert "unstable at t = 53.9" in repr(run)
    assert "stability : sharpness 3 at the start; 2 / learning rate is 2.857" in repr(run)
    assert sf.StopReason.unstable.meaning.endswith("its learning rate is too large.")


@pytest.mark.parametrize("rate", [5.0, 1e300])
def test_a_network_at_a_rate_far_too_large_is_unstable(rate, tmp_path):
    run = descend(learning_rate=rate, num_steps=100)
    assert run.stop_reason == "unstable"
    assert run.stats["num_steps"] < 10
    assert run.stats["sharpness"]["start"] == pytest.approx(float(sf.observables.sharpness(COST, START)))
    assert f"2 / learning rate is {2 / rate:.4g}" in repr(run)
    if rate == 5:
        plt.close(run.plot())  # in spite of costs of all sizes
    later = replace(run, stats=run.stats | {"sharpness": run.stats["sharpness"] | {"time": 3.0}})
    assert "at the least cost, t = 3; 2 / learning rate is" in repr(later)
    assert repr(sf.load(run.save(tmp_path / "run.nc"), COST)) == repr(run)


def test_momentum_and_batches_become_unstable_too():
    for arguments, options in (((optax.sgd(5.0, momentum=0.9),), {}), ((), {"batch_size": 5, "key": KEY})):
        run = descend(*arguments, learning_rate=5.0, num_steps=100, **options)
        assert run.stop_reason == "unstable"
        assert run.stats["num_steps"] < 20


def test_a_loss_without_a_value_is_non_finite_and_no_instability():
    """The step leads across zero, where the logarithm ends; the sharpness there, 1, allows rates up to 2."""
    run = sf.gradient_descent(
        lambda x: 100 * x - jnp.log(x), jnp.asarray(1.0), learning_rate=0.05, num_steps=9, progress=False
    )
    assert (run.stop_reason, run.stats["num_steps"]) == ("non_finite", 1)
    assert np.isnan(run.train_cost[-1])
    assert "stability" not in repr(run)
    start = sf.gradient_descent(jnp.log, jnp.asarray(-1.0), num_steps=9, progress=False)
    assert (start.stop_reason, start.time.tolist()) == ("non_finite", [0.0])


def test_ends_at_the_target_at_the_first_step_that_meets_it():
    costs = [float(COST(matrix)) for matrix in loop(300, RATE)]
    first = 137
    for level in (costs[first] * (1 + 1e-9), 0.5 * (costs[first] + costs[first - 1])):
        run = descend(learning_rate=RATE, num_steps=300, target_cost=level)
        assert (run.stop_reason, run.stats["num_steps"]) == ("target_cost", first)
        assert run.train_cost[-1] == pytest.approx(costs[first], rel=1e-10)
    assert descend(learning_rate=RATE, num_steps=300, target_cost=costs[0]).time.tolist() == [0.0]
    # of mini-batches at rows
    run = descend(learning_rate=RATE, num_steps=300, target_cost=costs[first], batch_size=5, key=KEY)
    assert run.stop_reason == "target_cost" or run.stop_reason == "num_steps"
    assert run.stats["num_steps"] in (*ROWS, 300)


def test_a_budget_ends_a_descent():
    run = descend(learning_rate=RATE, num_steps=300, max_seconds=1e-9)
    assert (run.stop_reason, len(run.time)) == ("max_seconds", 1)


def test_time_is_the_sum_of_the_rates():
    schedule = optax.linear_schedule(0.1, 0.02, 100)
    expected = np.cumsum([0.0, *(float(schedule(step)) for step in range(60))])[[0, *ROWS, 60]]
    runs = [
        descend(learning_rate=schedule, num_steps=60),
        descend(optax.sgd(schedule), learning_rate=schedule, num_steps=60),
        descend(optax.inject_hyperparams(optax.sgd)(schedule), num_steps=60),
    ]
    for run, tolerance in zip(
        runs, (1e-12, 1e-7, 1e-7), strict=True
    ):  # optax counts steps in int32: rates in float32
        np.testing.assert_allclose(run.time, expected, rtol=tolerance)
        close(run.end_to_end, runs[0].end_to_end, tolerance)
        assert "learning rate by a schedule" in repr(run)


def test_only_plain_descent_is_taken_for_it():
    def rate(optimizer):
        return plain_rate(optimizer, START, optimizer.init(START))

    assert rate(optax.sgd(0.03)) == 0.03
    assert rate(optax.chain(optax.scale(2.0), optax.sgd(0.25))) == 0.5
    others = (
        optax.sgd(0.1, momentum=0.9),
        optax.adam(0.1),
        optax.sign_sgd(0.1),
        optax.chain(optax.clip(1.0), optax.sgd(0.1)),
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
        optax.scale(0.1),
    )
    assert [rate(optimizer) for optimizer in others] == [None] * len(others)


INPUTS = np.linspace(-1, 1, 24).reshape(12, 2)
MODEL = {"w": jnp.array([[0.5, -0.2]]), "b": jnp.zeros(1), "scale": jnp.asarray(2.0)}


def predict(model, x):
    return model["scale"] * jnp.tanh(model["w"] @ x + model["b"])


@pytest.fixture(scope="module")
def objective():
    return sf.regression(predict, INPUTS, np.sin(2 * INPUTS[:, :1]), regulariser=sf.weight_decay(1e-2))


def test_models_are_trained_in_batches(objective):
    """Against a loop over `Objective.batch`, with an array left out."""
    trainable = {"w": True, "b": True, "scale": False}
    run = sf.gradient_descent(
        objective, MODEL, optax.adam(0.02), learning_rate=0.02, num_steps=60, batch_size=5, key=KEY, save_at=ROWS,
        trainable=trainable, observables=["layer_norms"], save_networks=True, progress=False,
    )  # fmt: skip
    moved, optimizer = {"w": MODEL["w"], "b": MODEL["b"]}, optax.adam(0.02)
    state = optimizer.init(moved)

    @jax.jit
    def step(moved, state, batch):
        gradient = jax.grad(lambda moved: objective.batch(batch)(MODEL | moved))(moved)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(moved, updates), state

    for batch in sf.training.batch_indices(KEY, 12, 5, 60):
        moved, state = step(moved, state, batch)
    for name in ("w", "b"):
        close(run.model[name], np.asarray(moved[name]))
        assert run.models[name].shape == (5, *MODEL[name].shape)
    assert run.model["scale"] == 2.0
    assert run.train_cost[-1] == pytest.approx(float(objective(run.model)), rel=1e-12)
    assert run.outputs.shape == (5, 1, 12)
    assert run.observables["layer_norms"].shape == (5, 3)
    assert "optax (ScaleByAdam)" in repr(run)
    assert run.to_xarray().attrs["stop_reason"] == "num_steps"


def test_models_of_smaller_rates_are_nearer_to_the_flow(objective):
    runs = [
        sf.gradient_descent(objective, MODEL, learning_rate=rate, num_steps=n, save_at=[n // 2], progress=False)
        for rate, n in ((4e-3, 100), (2e-3, 200), (1e-3, 400))
    ]
    coarse, fine = (sf.distance_to_flow(one, other) for one, other in pairwise(runs))
    np.testing.assert_allclose(coarse[1:] / fine[1:], 2, rtol=0, atol=0.1)
    bare = sf.gradient_descent(objective.__call__, MODEL, learning_rate=4e-3, num_steps=100, progress=False)
    with pytest.raises(ValueError, match="`flow` must keep the outputs at its rows"):
        sf.distance_to_flow(runs[0], bare)


def test_batches_are_means_over_samples(objective):
    """Of every cost: the mean of its single samples is the cost, gradients too; a repeated sample counts twice."""
    rng = np.random.default_rng(0)
    inputs, outputs = rng.standard_normal((3, 7)), rng.standard_normal((2, 7))
    kept = sf.MeanSquaredError(inputs, outputs, keep_samples=True)
    logits = sf.CrossEntropy(np.array([0, 1, 1, 2]))
    for cost, matrix in ((COST, rng.standard_normal((4, 4))), (kept, rng.standard_normal((2, 3)))):

        @jax.jit
        def of(batch, cost=cost, matrix=matrix):
            part, at = cost.batch(batch), jnp.asarray(matrix)
            return part(at), part.gradient(at), jax.grad(part.__call__)(at)

        values, gradients, _ = jax.vmap(of)(jnp.arange(cost.num_samples)[:, None])
        close(np.mean(values), float(cost(matrix)))
        close(np.mean(gradients, axis=0), np.asarray(cost.gradient(matrix)))
        double, slope, automatic = of(jnp.array([0, 0, 1]))
        close(double, (2 * float(values[0]) + float(values[1])) / 3)
        close(slope, np.asarray(automatic))
        assert cost.batch(jnp.arange(3)).shape == cost.shape
    assert (logits.num_samples, logits.batch(jnp.array([3, 0])).shape) == (4, (3, 2))
    assert objective.num_samples == 12
    assert sf.MeanSquaredError(inputs, outputs).num_samples is None
    assert kept.restricted(np.eye(3)[:, :2]).samples is None
    assert sf.Objective(sf.SquaredError(outputs), lambda model: model).num_samples is None
    assert sf.Objective(kept, lambda model: model).num_samples == 7


def test_descend_is_the_same_as_a_pure_function():
    """Under vmap, over rates and keys."""
    rates, keys = jnp.array([RATE, 0.5 * RATE, 5.0]), jax.random.split(KEY, 3)

    def lane(rate, key):
        return sf.training.descend(
            COST, START, learning_rate=rate, num_steps=60, batch_size=5, key=key, save_at=ROWS, target_cost=1e-9
        )

    batch = jax.jit(jax.vmap(lane))(rates, keys)
    assert batch.end_to_end.shape == (3, 5, 4, 4)
    for number, (rate, key) in enumerate(zip(rates, keys, strict=True)):
        alone = descend(learning_rate=float(rate), num_steps=60, batch_size=5, key=key)
        assert sf.StopReason(int(batch.stop_reason[number])).name == alone.stop_reason
        assert int(batch.num_steps[number]) == alone.stats["num_steps"]
        count = int(batch.num_rows[number])
        if alone.stop_reason == "num_steps":
            assert count == 5
            close(batch.network.end_to_end()[number], alone.end_to_end[-1])
        close(batch.end_to_end[number, :count], alone.end_to_end[:count])
        np.testing.assert_allclose(batch.time[number, :count], alone.time[:count])
    with pytest.raises(ValueError, match="`network` must be a deep linear network"):
        sf.training.descend(COST, jnp.ones(3), num_steps=5)


def test_saddles_of_a_descent():
    """Two layers learn the singular values 2 and 1, one after the other: from cost 5 to 1 to 0."""
    cost = sf.MeanSquaredError.teacher(jnp.diag(jnp.array([2.0, 1.0])))
    start = 1e-3 * sf.gaussian(jax.random.key(0), depth=2, width=4, shape=(2, 2), gamma=1.0)
    run = sf.gradient_descent(cost, start, learning_rate=0.01, num_steps=1000, progress=False)
    first, second = run.saddles()
    assert [first.rank, second.rank] == [0, 1]
    np.testing.assert_allclose([first.stationary_cost, second.stationary_cost], [5, 1], rtol=1e-9)
    assert first.strict
    assert second.strict
    assert first.escape_time < second.enter < second.escape_time
    assert re.search(r"saddles   : rank 0 at cost \S+, rank 1 at cost", repr(run))
    # with noise the rank alone tells
    noisy = replace(run, configuration=run.configuration | {"follows_flow": False})
    assert [visit.rank for visit in noisy.saddles(stationary_points=False)] == [0, 1]


def test_what_is_saved_is_read_back(tmp_path):
    run = descend(learning_rate=RATE, num_steps=60, batch_size=5, key=KEY, save_networks=True)
    read = sf.load(run.save(tmp_path / "run.nc"), COST)
    assert repr(read) == repr(run)
    np.testing.assert_array_equal(read.end_to_end, run.end_to_end)
    np.testing.assert_array_equal(read.networks.layers[1], run.networks.layers[1])
    with xr.open_dataset(tmp_path / "run.nc", engine="h5netcdf") as data:
        assert data.time.attrs["units"] == "learning rate times steps"


SAMPLED = {"num_steps": 5, "batch_size": 3}
BAD = {
    "no steps": ({"num_steps": 0}, "`num_steps` must be an integer >= 1, but got 0"),
    "less than none": ({"num_steps": -3}, "`num_steps` must be an integer"),
    "large batch": (SAMPLED | {"batch_size": 13, "key": KEY}, "`batch_size` must be at most .* 12, but got 13"),
    "empty batch": (SAMPLED | {"batch_size": 0, "key": KEY}, "`batch_size` must be an integer >= 1"),
    "no key": (SAMPLED, r"`key` must be given with batch_size: .* jax.random.key\(0\)"),
    "a seed": (SAMPLED | {"key": 3}, "`key` must be one key of jax.random, but got 3"),
    "keys": (SAMPLED | {"key": jax.random.split(KEY)}, "`key` must be one key"),
    "key without batches": ({"num_steps": 5, "key": KEY}, "`key` must be None without batch_size"),
    "rate": ({"num_steps": 5, "learning_rate": -1.0}, "`learning_rate` must be finite and positive, but got -1.0"),
    "rate of a kind": ({"num_steps": 5, "learning_rate": "1"}, "`learning_rate` must be a number or a schedule"),
    "optimizer": ({"num_steps": 5, "optimizer": 0.1}, "`optimizer` must be an optax.*optax.sgd"),
    "hidden rate": ({"num_steps": 5, "optimizer": optax.adam(1e-3)}, "`learning_rate` must be given for"),
    "two rates": (
        {"num_steps": 5, "optimizer": optax.sgd(1e-3), "learning_rate": 0.1},
        "`learning_rate` must be that of the optimizer, 0.001, but got 0.1",
    ),
    "times": ({"num_steps": 5, "save_at": [0.5]}, "`save_at` must be a list of steps, integers"),
    "late": ({"num_steps": 5, "save_at": [6]}, "`save_at` must lie between 0 and num_steps = 5"),
    "rows": ({"num_steps": 5, "max_saves": 1}, "`max_saves` must be an integer >= 2"),
    "target": ({"num_steps": 5, "target_cost": -1.0}, "`target_cost` must be finite and not negative"),
    "seconds": ({"num_steps": 5, "max_seconds": 0.0}, "`max_seconds` must be finite and positive"),
    "observable": ({"num_steps": 5, "observables": ["x"]}, "`observables` must name one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        sf.gradient_descent(COST, START, **{"progress": False} | options)


def test_bad_problems_are_named():
    mse = sf.MeanSquaredError(np.eye(4), np.eye(4))
    with pytest.raises(ValueError, match=r"`batch_size` must be None: this loss has no samples.*keep_samples=True"):
        sf.gradient_descent(mse, START, num_steps=5, batch_size=2, key=KEY)
    with pytest.raises(ValueError, match="`cost` must have samples at hand"):
        mse.batch(jnp.arange(2))
    with pytest.raises(ValueError, match="`cost` must have samples at hand, but got _Itself"):
        sf.gradient_descent(lambda x: x**2, jnp.ones(()), num_steps=5).landscape.objective.batch(jnp.arange(2))
    with pytest.raises(ValueError, match="The cost comes first, then the network"):
        sf.gradient_descent(START, COST, num_steps=5)
    with pytest.raises(ValueError, match=r"`model` must be a deep linear network .*sf.Objective"):
        sf.gradient_descent(COST, jnp.ones(3), num_steps=5)
    with pytest.raises(ValueError, match="`network` must have the end-to-end shape of the cost"):
        sf.gradient_descent(sf.MeanSquaredError(np.eye(3), np.eye(3)), START, num_steps=5)
    with pytest.raises(ValueError, match=r"`model` must be concrete, but got a tracer.*training.descend"):
        jax.jit(lambda a: sf.gradient_descent(COST, a * START, num_steps=5).train_cost)(2.0)
    with pytest.raises(TypeError, match=r"`num_step` is no argument of gradient_descent\. Did you mean `num_steps`"):
        sf.gradient_descent(COST, START, num_step=5)
