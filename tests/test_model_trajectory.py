"""Ends of flows of models, and what their trajectories tell."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import model_problems
import numpy as np
import pytest
import xarray as xr

import saddleflow as sf
from saddleflow.flow import models

TIMES = np.array([0.0, 0.5, 2.0, 1e3, 1e6])


class Polynomial(eqx.Module):
    """`a.u + b.u^2 + c.u^4`; one program for any coefficients."""

    a: jax.Array
    b: jax.Array
    c: jax.Array

    def __call__(self, model):
        u = model["u"]
        return jnp.sum(self.a * u + self.b * u**2 + self.c * u**4)


def polynomial(a=(0, 0, 0), b=(0, 0, 0), c=(0, 0, 0)):
    return Polynomial(*(jnp.asarray(coefficients, float) for coefficients in (a, b, c)))


def solve(loss, model, **options):
    if isinstance(model, tuple):
        model = {"u": jnp.asarray(model, float)}
    return sf.gradient_flow(loss, model, progress=False, **options)


def test_a_minimum_of_a_bare_loss_is_stationary():
    end = solve(polynomial(b=(1, 2, 3)), (1, 1, 1))
    assert end.stop_reason == "stationary"
    assert np.abs(end.model["u"]).max() < 1e-14
    assert end.gradient_norm[-1] < 1e-14


@pytest.mark.parametrize(
    ("start", "coefficients"),
    [
        ((0, 0, 0), {"b": (1, -1, 1)}),  # on it
        ((1, 0, 0.5), {"b": (1, -1, 1)}),  # on its stable manifold
        ((1, 0, 0.5), {"b": (1, -1e-3, 1)}),
        ((0, 0, 0), {"b": (1, -1, 1), "c": (0, 1, 0)}),
    ],
)
def test_a_saddle_is_told_from_a_minimum(start, coefficients):
    end = solve(polynomial(**coefficients), start)
    assert end.stop_reason == "stationary_saddle"
    assert end.time[-1] == 0 if not any(start) else end.time[-1] > 0
    assert end.model["u"][1] == 0


def test_a_degenerate_minimum_is_stationary():
    assert solve(polynomial(b=(1, 0, 1)), (1, 1, 1)).stop_reason == "stationary"


def test_a_blow_up_in_finite_time_is_non_finite():
    # u' = 4 u^3: u = (1 - 8 t)^(-1/2)
    end = solve(polynomial(c=(-1, 0, 0)), (1, 0, 0))
    assert end.stop_reason == "non_finite"
    assert end.time[-1] == pytest.approx(1 / 8, rel=1e-5)
    assert np.isfinite(end.train_cost).all()


def test_bounds_of_a_run():
    loss, start = polynomial(b=(0.5, 1, 1.5)), (1, 1, 1)
    end = solve(loss, start, t1=0.7)
    assert (end.stop_reason, end.time[-1]) == ("t1", 0.7)
    np.testing.assert_allclose(end.model["u"], np.exp(-0.7 * np.arange(1, 4)), rtol=1e-5)
    end = solve(loss, start, max_steps=3)
    assert (end.stop_reason, end.stats["num_steps"]) == ("max_steps", 3)
    assert solve(loss, start, max_seconds=1e-9).stop_reason == "max_seconds"


def half(time, model):
    return (model["u"][0] < 0.5) & (time > 0)


def test_stop_sees_the_model():
    end = solve(polynomial(b=(0.5, 1, 1.5)), (1, 1, 1), stop=half, save_networks=True)
    assert end.stop_reason == "stop"
    assert end.models["u"].shape == (len(end.time), 3)
    assert end.models["u"][-2, 0] >= 0.5 > end.models["u"][-1, 0]
    np.testing.assert_array_equal(end.models["u"][-1], end.model["u"])
    np.testing.assert_array_equal(end.models["u"][0], end.start["u"])


def test_rows_at_all_times_also_after_rest():
    loss = polynomial(b=(0.5, 1, 1.5))
    found = solve(loss, (1, 1, 1), save_at=TIMES, save_networks=True)
    assert found.stop_reason == "t1"
    np.testing.assert_array_equal(found.time, TIMES)
    np.testing.assert_allclose(found.models["u"], np.exp(-TIMES[:, None] * np.arange(1, 4)), rtol=1e-5, atol=1e-10)
    at_rest = solve(loss, (0, 0, 0), save_at=TIMES, save_networks=True)
    assert at_rest.stop_reason == "t1"
    np.testing.assert_array_equal(at_rest.time, TIMES)
    np.testing.assert_array_equal(at_rest.models["u"], 0)


def test_a_fit_is_certified():
    end = solve(model_problems.regression(), model_problems.tanh_net())
    assert end.stop_reason == "converged"
    residuals = end.outputs[-1] - model_problems.TARGETS.T
    assert np.linalg.norm(residuals) <= 1e-4 * np.linalg.norm(model_problems.TARGETS)
    tighter = solve(model_problems.regression(), model_problems.tanh_net(), gradient_tolerance=1e-6)
    residuals = tighter.outputs[-1] - model_problems.TARGETS.T
    assert tighter.stop_reason == "converged"
    assert np.linalg.norm(residuals) <= 1e-6 * np.linalg.norm(model_problems.TARGETS)


def test_least_squares_that_do_not_fit_are_stationary():
    line = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    design = np.column_stack([model_problems.INPUTS, np.ones(6)])
    best, (least,), *_ = np.linalg.lstsq(design, np.asarray(model_problems.TARGETS[:, 0]))
    starts = (line, jax.tree.map(jnp.zeros_like, line))  # zero has no size to weigh entries by
    for start in starts:
        end = solve(model_problems.regression(), start)
        assert end.stop_reason == "stationary"
        np.testing.assert_allclose(np.append(end.model.weight[0], end.model.bias), best, rtol=1e-12)
        assert end.train_cost[-1] == pytest.approx(least / 6, rel=1e-12)


def test_a_regularised_fit_is_stationary():
    objective = model_problems.regression(regulariser=sf.weight_decay(0.05))
    end = solve(objective, model_problems.tanh_net())
    assert end.stop_reason == "stationary"
    theta, back = model_problems.vector(end.model)
    gradient = jax.grad(lambda at: objective(back(at)))(theta)
    assert np.linalg.norm(gradient) < 1e-12
    assert "+ WeightDecay" in repr(end)


def test_separable_classes_diverge():
    objective = sf.classification(model_problems.apply, model_problems.INPUTS, jnp.array([0, 1, 1, 1, 0, 0]))
    end = solve(objective, model_problems.tanh_net(2))
    assert end.stop_reason == "diverges"
    predicted = np.argmax(end.outputs[-1], axis=0)
    np.testing.assert_array_equal(predicted, [0, 1, 1, 1, 0, 0])


@pytest.fixture(scope="module")
def plateaus():
    """Two outputs learned one after the other, by a linear net from a small start."""

    def predict(model, x):
        return model["second"] @ (model["first"] @ x)

    first, second = jax.random.normal(jax.random.key(5), (2, 3, 2)) * 1e-3
    inputs = jnp.eye(2)
    objective = sf.regression(predict, inputs, jnp.diag(jnp.array([3.0, 0.5])), 2 * inputs, jnp.ones((2, 2)))
    observables = {"first": lambda objective, model: model["first"][0], "loss": lambda objective, m: objective(m)}
    model = {"first": first, "second": second.T}
    return solve(objective, model, observables=observables)


def test_saddles_with_their_hessians(plateaus):
    visits = plateaus.saddles()
    assert [visit.rank for visit in visits] == [0, 1]
    np.testing.assert_allclose([visit.stationary_cost for visit in visits], [9.25 / 2, 0.25 / 2], rtol=1e-8)
    assert plateaus.saddles(stationary_points=False)[0].index is None
    objective, (_, back) = plateaus.landscape.objective, model_problems.vector(plateaus.model)
    # three hidden neurons for each of two directions; then two idle ones for the one that is left
    assert [visit.index for visit in visits] == [6, 2]
    np.testing.assert_allclose([visit.hessian_range[0] for visit in visits], [-3.0, -0.5], rtol=1e-8)
    assert all(visit.strict and 0 < visit.distance < 0.1 for visit in visits)
    origin = jax.hessian(lambda at: objective(back(at)))(jnp.zeros(12))
    values = np.linalg.eigvalsh(origin)
    assert visits[0].index == np.sum(values < -1e-8 * values[-1])
    np.testing.assert_allclose(visits[0].hessian_range, values[[0, -1]], rtol=1e-8)


def test_the_record_of_a_run(plateaus):
    card = repr(plateaus)
    assert card.startswith(
        "ModelTrajectory\n  task      : SquaredError of outputs 2x2, dict, 12 trainable parameters"
    )
    for part in ("preconditioner gauss_newton", "converged at t =", "test ", "rank 0 at cost 4.625, rank 1 at cost"):
        assert part in card
    objective = plateaus.landscape.objective
    assert plateaus.test_cost[-1] == pytest.approx(float(objective.test(plateaus.model)), rel=1e-12)
    np.testing.assert_allclose(plateaus.observables["loss"], plateaus.train_cost, rtol=1e-14)
    np.testing.assert_array_equal(plateaus.observables["first"][-1], plateaus.model["first"][0])
    assert plateaus.models is None
    stats = plateaus.stats
    assert stats["num_steps"] == stats["num_accepted_steps"] + stats["num_rejected_steps"]
    assert stats["num_vector_field_evaluations"] >= stats["num_steps"]
    # theta went from nearly 0 to a balanced network of the targets: |theta|^2 = 2 (3 + .5)
    assert plateaus.arc_length[-1] >= 0.99 * np.sqrt(7)
    assert plateaus.arc_length[-1] < 2 * np.sqrt(7)
    np.testing.assert_array_equal(plateaus.num_escapes[[0, -1]], [0, 2])


@pytest.mark.parametrize("solver", [None, diffrax.Tsit5()])
def test_every_evaluation_is_counted(solver):
    calls = []

    def loss(model):
        jax.debug.callback(lambda: calls.append(1))
        return 0.5 * jnp.sum(model["u"] ** 2)

    stats = solve(loss, (1, 1, 1), t1=1.0, solver=solver, max_saves=4).stats
    jax.effects_barrier()
    counted = stats["num_vector_field_evaluations"]
    assert counted == 6 * stats["num_steps"] + 1 if solver else counted > 0
    # each step's rest and loss are looked at as well
    assert counted <= len(calls) <= 2 * counted + 10


def test_a_dataset_holds_everything(plateaus, tmp_path):
    path = plateaus.save(tmp_path / "run.nc")
    with xr.open_dataset(path) as data:
        np.testing.assert_array_equal(data["outputs"], plateaus.outputs)
        np.testing.assert_array_equal(data["model['second']"], plateaus.model["second"])
        np.testing.assert_array_equal(data["observable_first"], plateaus.observables["first"])
        np.testing.assert_array_equal(data["test_cost"], plateaus.test_cost)
        assert data.attrs["stop_reason"] == "converged"
    with pytest.raises(ValueError, match="force"):
        plateaus.save(path)
    with pytest.raises(ValueError, match="hold the trajectory of a network"):
        sf.load(path)
    saved = solve(polynomial(b=(0.5, 1, 1.5)), (1, 1, 1), save_at=TIMES, save_networks=True).to_xarray()
    assert saved["parameters"].shape == (5, 3)
    assert "outputs" not in saved


def test_pictures(plateaus):
    from matplotlib.figure import Figure

    for axis in ("t", "log t", "t / t_escape", "arc length"):
        assert isinstance(plateaus.plot(axis=axis), Figure)
    top, bottom = plateaus.plot().axes
    assert bottom.get_ylabel() == "singular values of the outputs"
    assert [text.get_text() for text in top.texts] == ["origin", "rank 1", "train", "test"]
    assert top.get_yscale() == "log"
    # a vector of outputs has one singular value: the gradient norm says more
    _, bottom = solve(model_problems.regression(), model_problems.tanh_net()).plot().axes
    assert (bottom.get_ylabel(), bottom.get_yscale()) == ("gradient norm", "log")


def test_a_picture_of_a_bare_loss():
    # a double well from near its saddle; below zero a logarithm shows nothing
    run = solve(polynomial(b=(-1, 1, 1), c=(1, 0, 0)), (1e-6, 1, 1))
    assert run.stop_reason == "stationary"
    top, bottom = run.plot().axes
    assert (top.get_yscale(), bottom.get_ylabel()) == ("linear", "gradient norm")
    assert [text.get_text() for text in top.texts] == [f"cost {visit.cost:.3g}" for visit in run.saddles()]
    (visit,) = run.saddles()
    assert visit.rank is None
    assert (visit.index, visit.strict) == (1, True)
    np.testing.assert_allclose(visit.hessian_range, (-2, 2), rtol=1e-8)
    assert abs(visit.stationary_cost) < 1e-12


def test_the_rank_tolerance_of_outputs_is_free(plateaus):
    assert plateaus.rank[-1] == 2
    found = solve(plateaus.landscape.objective, plateaus.start, rank_tolerance=1.0)
    assert found.rank[-1] == 1
    assert found.rank_tolerance == 1.0


@pytest.mark.slow
def test_outputs_are_dropped_where_rows_would_be_too_large(monkeypatch):
    objective, model = model_problems.regression(), model_problems.tanh_net()
    numbers = len(TIMES) * int(np.prod(objective.shape))
    for most, kept in ((numbers, True), (numbers - 1, False)):
        monkeypatch.setattr(models, "MAX_OUTPUTS", most)
        run = solve(objective, model, save_at=TIMES)
        assert (run.outputs is not None) == kept
        assert np.isfinite(run.train_cost).all()
        assert "no plateau" in str(run)
