"""Sweeps of models: the lanes of `gradient_flow(objective, init(key, ...))`, by the machinery of networks.

Most tests use one of two programs: a small network of tanh units, of two widths.
"""

import json
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import saddleflow as sf
from saddleflow.sweeps import scheduler
from saddleflow.sweeps.store import Store

INPUTS = np.linspace(-1.0, 1.0, 6)
TARGETS = np.sin(2.0 * INPUTS)
AXES = {"width": [2, 3], "scale": [1.0, 0.5], "seed": [0, 1]}
TIMES = {"t1": 3.0, "save_at": [0.0, 0.5, 3.0], "rtol": 1e-4, "progress": False}


class Hidden(eqx.Module):
    """One hidden layer without biases."""

    inner: jax.Array
    outer: jax.Array
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh

    def __call__(self, x):
        return self.outer @ self.activation(self.inner * x)


def make(key, *, width, scale=1.0, activation=jnp.tanh):
    inner, outer = scale * jax.random.normal(key, (2, width), float)
    return Hidden(inner, outer, activation)


def predict(model, x):
    return model(x)


def spread(objective, model):
    return jnp.stack([jnp.linalg.norm(model.inner), jnp.linalg.norm(model.outer)])


OBJECTIVE = sf.regression(predict, INPUTS, TARGETS, INPUTS + 0.1, TARGETS)
SHORT = sf.regression(predict, INPUTS[:4], TARGETS[:4])
MORE = {"observables": {"spread": spread}, "save_matrices": True}


@pytest.fixture(scope="module")
def data():
    return sf.sweep(OBJECTIVE, init=make, **AXES, **TIMES, **MORE)


def assert_identical(a, b):
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=name)


def test_dims_are_the_keywords_that_are_sequences(data):
    assert data.train_cost.dims == ("width", "scale", "seed", "time")
    assert data.outputs.dims == ("width", "scale", "seed", "time", "n_out", "input")
    assert data.outputs.shape == (2, 2, 2, 3, 1, 6)
    assert data.observable_spread.shape == (2, 2, 2, 3, 2)
    assert data.stop_reason.dims == ("width", "scale", "seed")
    assert data.width.values.tolist() == [2, 3]
    assert data.train_cost.attrs["long_name"] == "the loss C(f) + R"
    assert not {"rank", "end_to_end", "balancedness_drift"} & set(data)
    configuration = json.loads(data.attrs["configuration"])
    assert configuration["init"] == "make"
    assert configuration["scale"] == [1.0, 0.5]


def test_the_dims_have_the_order_of_the_call(data):
    turned = sf.sweep(OBJECTIVE, init=make, **TIMES, seed=[1, 0], scale=[0.5, 1.0], width=2)
    assert turned.train_cost.dims == ("scale", "seed", "time")
    found = turned.train_cost.sel(scale=[1.0, 0.5], seed=[0, 1])
    np.testing.assert_array_equal(found, data.train_cost.sel(width=2))


def test_every_lane_is_its_flow(data):
    for width in AXES["width"]:
        for scale in AXES["scale"]:
            for seed in AXES["seed"]:
                lane = data.sel(width=width, scale=scale, seed=seed)
                model = make(jax.random.key(seed), width=width, scale=scale)
                alone = sf.gradient_flow(OBJECTIVE, model, **(TIMES | {"rtol": 1e-8}))
                assert str(lane.stop_reason.values) == alone.stop_reason
                for name in ("train_cost", "test_cost", "outputs", "gradient_norm"):
                    bound = 1e-3 * np.abs(getattr(alone, name)).max()
                    np.testing.assert_allclose(lane[name], getattr(alone, name), rtol=0, atol=bound)
                assert float(lane.train_cost[0]) == pytest.approx(float(OBJECTIVE(model)), rel=1e-12)


def test_a_lane_alone_is_the_lane_in_the_grid(data):
    alone = sf.sweep(OBJECTIVE, init=make, width=3, scale=0.5, seed=1, **TIMES, **MORE)
    assert_identical(alone, data.sel(width=3, scale=0.5, seed=1, drop=True))


def test_a_structure_is_compiled_once(compilations):
    axes = {"width": [4, 5], "scale": [1.0, 0.5, 0.1], "seed": range(2)}
    with compilations() as names:
        sf.sweep(OBJECTIVE, init=make, **axes, **TIMES, chunk_size=2, devices=1)
    assert [names.count(f"jit({name})") for name in ("_start", "advance", "advance_slots")] == [2, 2, 0]
    with compilations() as names:
        sf.sweep(OBJECTIVE, init=make, width=4, seed=9, **TIMES | {"rtol": 1e-3}, max_steps=50, devices=1)
    assert not {"jit(_start)", "jit(advance)"} & set(names)  # the numbers are traced


@pytest.mark.slow
def test_objectives_and_tolerances():
    decayed = sf.Objective(OBJECTIVE.cost, OBJECTIVE.outputs, sf.weight_decay(0.1), test=OBJECTIVE.test)
    found = sf.sweep([OBJECTIVE, decayed], init=make, width=2, **(TIMES | {"rtol": [1e-3, 1e-4]}))
    assert found.train_cost.dims == ("cost", "rtol", "time")
    alone = sf.gradient_flow(decayed, make(jax.random.key(0), width=2), **TIMES)
    np.testing.assert_allclose(found.train_cost.sel(cost=1, rtol=1e-4), alone.train_cost, rtol=1e-3)


def well(model):
    x, y = model["x"], model["y"]
    return (x**2 - 1.0) ** 2 / 4 + y**2 / 2


def on_the_axis(key, x):
    return {"x": jnp.asarray(float(x)), "y": jax.random.normal(key, (), float)}


@pytest.mark.parametrize("slots", [1, 3])
def test_a_bare_loss_and_the_saddle_it_rests_at(slots, monkeypatch):
    monkeypatch.setattr(scheduler, "cores", lambda: 1)  # all lanes are one worker's
    options = {"rtol": 1e-6, "slots": slots, "progress": False}
    found = sf.sweep(well, init=on_the_axis, x=[0.0, 0.5, 1e200], seed=0, **options)
    assert found.stop_reason.values.tolist() == ["stationary_saddle", "stationary", "non_finite"]
    np.testing.assert_allclose(found.train_cost.isel(sample=-1)[:2], [0.25, 0.0], atol=1e-6)
    assert "outputs" not in sf.sweep(well, init=on_the_axis, x=0.5, t1=1.0, save_matrices=True, progress=False)


def test_only_what_is_trainable_moves():
    still = jax.tree.map(lambda _: False, make(jax.random.key(0), width=2))
    trainable = eqx.tree_at(lambda model: model.outer, still, True)
    options = TIMES | {"trainable": trainable, "preconditioner": "none", "observables": {"spread": spread}}
    found = sf.sweep(OBJECTIVE, init=make, width=2, seed=[0], **options)
    inner, outer = found.observable_spread.values[0].T
    assert (inner == inner[0]).all()
    assert outer[-1] != outer[0]


def test_slots_do_not_know_each_other():
    """Two lanes side by side, in the stiff solver: to rounding those of another order."""
    options = {"init": make, "width": 2, "slots": 2, "rtol": 1e-3, "progress": False, "t1": 3.0}
    options |= {"solver": sf.solvers.Rosenbrock(), "max_saves": 8}
    pair = sf.sweep(OBJECTIVE, **options, seed=[0, 1, 2])
    turned = sf.sweep(OBJECTIVE, **options, seed=[2, 0, 1])
    np.testing.assert_allclose(pair.train_cost, turned.train_cost.sel(seed=[0, 1, 2]), rtol=1e-12)


def ragged(key, small=1):
    return {"x": jnp.ones(small + int(jax.random.randint(key, (), 0, 3)))}


def test_a_structure_that_depends_on_the_seed():
    def loss(model):
        return jnp.sum((model["x"] - 2.0) ** 2)

    sizes = [int(ragged(jax.random.key(seed))["x"].size) for seed in range(3)]
    assert len(set(sizes)) > 1
    found = sf.sweep(loss, init=ragged, seed=range(3), t1=1.0, save_at=[0.0, 1.0], progress=False)
    np.testing.assert_allclose(found.train_cost[:, -1], np.asarray(sizes) * np.exp(-4.0), rtol=1e-3)
    with pytest.raises(ValueError, match="`init` must make models of one structure for all seeds"):
        sf.sweep(loss, init=ragged, seed=range(3), t1=1.0, slots=2, progress=False)


def test_a_store_goes_on_where_it_was(tmp_path, data, monkeypatch):
    store = tmp_path / "sweep.zarr"
    options = {"init": make, **AXES, **TIMES, **MORE, "chunk_size": 2, "store": store}
    write, written = Store.write, []

    def write_two(self, number, arrays):
        if len(written) == 2:
            raise OSError("full")
        written.append(number)
        write(self, number, arrays)

    monkeypatch.setattr(Store, "write", write_two)
    with pytest.raises(OSError, match="full"):
        sf.sweep(OBJECTIVE, **options)
    kept = {path.name: path.stat().st_mtime_ns for path in (store / "chunks").iterdir()}
    assert len(kept) == 2
    monkeypatch.setattr(Store, "write", write)
    monkeypatch.setattr(Store, "finish", lambda self, found: None)
    assert_identical(sf.sweep(OBJECTIVE, **options), data)
    assert {name: (store / "chunks" / name).stat().st_mtime_ns for name in kept} == kept
    with pytest.raises(ValueError, match=r"another configuration \(scale: stored \[1.0, 0.5\], now \[1.0, 0.2\]\)"):
        sf.sweep(OBJECTIVE, **(options | {"scale": [1.0, 0.2]}))
    with pytest.raises(ValueError, match=r"another configuration \(init: stored"):
        sf.sweep(OBJECTIVE, **(options | {"init": lambda key, width, scale: make(key, width=width, scale=scale)}))


def test_a_finished_store_is_read_back_with_the_names_of_values(tmp_path, data):
    axes = {"width": 2, "scale": 0.5, "seed": 1, "activation": [jnp.tanh, jax.nn.softplus]}
    options = {"init": make, **axes, **TIMES, "store": tmp_path / "sweep.zarr"}
    found = sf.sweep(OBJECTIVE, **options)
    assert found.activation.values.tolist() == ["tanh", "softplus"]
    of_tanh = data.train_cost.sel(width=2, scale=0.5, seed=1)
    np.testing.assert_allclose(found.train_cost.sel(activation="tanh"), of_tanh, rtol=1e-6)
    xr.testing.assert_identical(found, sf.sweep(OBJECTIVE, **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"alpha": 0.1},
            "`alpha` must be an argument of init where that is given, but got 0.1. It takes",
        ),
        ({"reduce_width": "auto"}, "`reduce_width` must be left out where init makes models"),
        ({"rank_tolerance": 0.1}, "`rank_tolerance` must be left out where init makes models"),
        ({"init": lambda: 3}, r"`init` must be a function \(key, ...\) -> model"),
        (
            {"init": lambda scale: 3, "scale": [1, 2]},
            "`init` must take a key before its keywords, but got \"'scale' first",
        ),
        (
            {"init": lambda key, width, size: 3},
            "`init` must be given all its arguments by sweep, .*size",
        ),
        ({"width": []}, "`width` must hold at least one value"),
        ({"scale": [1.0, 1]}, r"`scale` must hold each value once, but got '\[1.0\] twice'"),
        ({"width": np.ones((2, 2))}, r"`width` must be one value or a list of them, but got 'shape \(2, 2\)'"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
        ({"preconditioner": "best"}, "`preconditioner` must be one of"),
        ({"trainable": lambda leaf: False}, "`model` must hold at least one trainable"),
        ({"cost": OBJECTIVE.cost, "scale": 1.0}, "`init` must return a deep linear network where the cost is one of"),
        ({"cost": 3}, "`cost` must be a saddleflow cost, an objective or a function"),
        (
            {"cost": [OBJECTIVE, sf.regression(predict, INPUTS[:4], TARGETS[:4])]},
            "`cost` must have one shape for all",
        ),
        ({"init": lambda key, rank: make(key, width=rank), "rank": [1, 2]}, "`rank` must have another name"),
    ],
)
def test_bad_input(change, message):
    options = {"cost": OBJECTIVE, "init": make, "width": [2, 3], "t1": 1.0} | change
    if "rank" in change:
        del options["width"]
    with pytest.raises(ValueError, match=message):
        sf.sweep(options.pop("cost"), **options)


def test_arguments_of_another_name():
    with pytest.raises(TypeError, match=r"`scal` is no argument of sweep or of init. Did you mean `scale`?"):
        sf.sweep(OBJECTIVE, init=make, width=2, scal=[1.0, 2.0])
    with pytest.raises(TypeError, match=r"`sved` is no argument of sweep or of init. Did you mean `seed`?"):
        sf.sweep(OBJECTIVE, init=make, width=2, sved=3)


def test_networks_take_nothing_of_models():
    cost = sf.MatrixCompletion.random(jax.random.key(1), shape=(3, 3), rank=2, observed=0.75)
    with pytest.raises(ValueError, match="`width` must be given for networks"):
        sf.sweep(cost, depth=2)
    with pytest.raises(ValueError, match="`preconditioner` must come with init"):
        sf.sweep(cost, depth=2, width=3, preconditioner="none")
    with pytest.raises(ValueError, match="`trainable` must come with init"):
        sf.sweep(cost, depth=2, width=3, trainable=eqx.is_array)
    with pytest.raises(ValueError, match="Models of an objective come from init"):
        sf.sweep(OBJECTIVE, depth=2, width=3)


def test_an_error_says_of_which_model():
    with pytest.raises(ValueError, match="must hold float64") as error:
        sf.sweep(OBJECTIVE, init=single, width=[2, 3], seed=7)
    assert error.value.__notes__ == ["It is the start of width=2, seed=7."]


def single(key, width):
    return make(key, width=width, scale=jnp.float32(1.0)) if width > 2 else Hidden(*jnp.ones((2, 2), "float32"))
