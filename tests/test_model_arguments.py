"""What `gradient_flow` refuses of models and losses, each in one line that says what to do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import model_problems
import numpy as np
import pytest
from problems import completion, start

import saddleflow as sf

NET = model_problems.tanh_net()
U = {"u": jnp.ones(3)}
COST = sf.SquaredError(np.ones((1, 6)))


def square(model):
    return jnp.sum(model["u"] ** 2)


def columns(model):
    return jax.vmap(model, out_axes=1)(model_problems.INPUTS)


@jax.custom_vjp
def once(u):
    return jnp.sum(u**2)


once.defvjp(lambda u: (once(u), u), lambda u, g: (2 * u * g,))


def one_output(function):
    return sf.Objective(sf.SquaredError(np.ones((1, 1))), lambda model: function(model).reshape(1, 1))


LEAVES = {
    "float32": ({"u": jnp.ones(3, jnp.float32)}, r"`model\['u'\]` must hold float64 .* 'float32'\. .*astype"),
    "float32 of numpy": ({"u": np.ones(3, np.float32)}, r"`model\['u'\]` must hold float64"),
    "complex": ({"u": jnp.ones(2) + 1j}, r"`model\['u'\]` must be real, but got 'complex128'"),
    "nan": ({"u": jnp.array([1.0, jnp.nan])}, r"`model\['u'\]` must be finite, but got 'nan at entry \(1,\)'"),
    "integers": ({"u": jnp.arange(3)}, "`model` must hold at least one trainable floating-point array"),
    "a Python number": ({"u": 2.0}, "at least one trainable .* Python numbers"),
    "no entries": ({"u": jnp.zeros((0, 3))}, "at least one trainable"),
}


@pytest.mark.parametrize("name", LEAVES)
def test_models_that_cannot_move(name):
    model, message = LEAVES[name]
    with pytest.raises(ValueError, match=message):
        sf.gradient_flow(square, model)


LOSSES = {
    "a vector": (lambda m: m["u"] ** 2, r"`loss` must return one number, of shape \(\), but got \(3,\)"),
    "a vector of one": (lambda m: m["u"][:1] ** 2, r"but got \(1,\)"),
    "nothing": (lambda m: None, "`loss` must return one number.* 'NoneType'"),
    "a pytree": (lambda m: m, "`loss` must return one number.* 'dict'"),
    "float32": (lambda m: square(m).astype(jnp.float32), "`loss` must be float64, but got 'float32'"),
    "an integer": (lambda m: jnp.sum(m["u"] > 0), "`loss` must be float64, but got 'int64'"),
    "infinite": (
        lambda m: jnp.sum(jnp.log(0 * m["u"])),
        "have a finite loss at the start, but got -inf",
    ),
    "a cusp": (lambda m: jnp.sum(jnp.sqrt(m["u"] - 1)), "finite gradient at the start, but got '3 entries"),
    "once differentiable": (lambda m: once(m["u"]), "`loss` must be twice differentiable .*custom_vjp"),
    "numpy": (lambda m: np.sum(np.asarray(m["u"])), "`loss` must be a function that JAX can trace.*jax.numpy"),
    "float": (lambda m: float(m["u"][0]), r"`loss` must be a function that JAX can trace.*float\(\)"),
    "if": (lambda m: m["u"][0] if m["u"][0] > 0 else 0.0, "`loss` must be a function that JAX can trace.*where"),
    "no function": (
        "mse",
        "`cost` must be a saddleflow cost, an objective or a function .*'mse'",
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_are_none(name):
    loss, message = LOSSES[name]
    with pytest.raises(ValueError, match=message) as caught:
        sf.gradient_flow(loss, U)
    assert "\n" not in str(caught.value)


OBJECTIVES = {
    "turned": (sf.Objective(COST, lambda m: columns(m).T), r"`outputs` must .* cost, \(1, 6\), but got \(6, 1\)"),
    "a number": (sf.Objective(COST, lambda m: columns(m)[0, 0]), r"\(1, 6\), but got \(\)"),
    "no array": (sf.Objective(COST, lambda m: None), r"\(1, 6\), but got 'NoneType'"),
    "float32": (sf.Objective(COST, lambda m: columns(m).astype(jnp.float32)), "`outputs` must be float64"),
    "numpy": (
        sf.Objective(COST, lambda m: np.asarray(columns(m))),
        "`outputs` must be a function that JAX",
    ),
    "matrix predictions": (
        sf.regression(lambda m, x: m(x)[None], model_problems.INPUTS, model_problems.TARGETS),
        r"`outputs` must have the shape of the cost, \(1, 6\), but got \(1, 1, 6\)",
    ),
    "a regulariser of vectors": (
        sf.Objective(COST, columns, lambda m: m.layers[0].bias),
        r"`regulariser` must return one number, of shape \(\), but got \(4,\)",
    ),
    "a test of nothing": (sf.Objective(COST, columns, test=lambda m: None), "`test` must return one number"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_that_do_not_fit(name):
    objective, message = OBJECTIVES[name]
    with pytest.raises(ValueError, match=message) as caught:
        sf.gradient_flow(objective, NET)
    assert "\n" not in str(caught.value)


def test_predictions_of_all_samples_at_once_are_told_what_predict_takes():
    inputs, targets = model_problems.INPUTS, model_problems.TARGETS
    for predict in (lambda model, x: jax.vmap(model)(x), lambda x, model: model(x)):
        with pytest.raises((ValueError, TypeError)) as caught:
            sf.gradient_flow(sf.regression(predict, inputs, targets), NET)
        assert "ONE sample" in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def test_a_function_of_the_matrix_is_told_what_a_loss_takes():
    with pytest.raises(TypeError) as caught:
        sf.gradient_flow(lambda matrix: jnp.sum(matrix**2), sf.balanced(np.eye(2), depth=2, width=2))
    assert "network.end_to_end()" in "".join(caught.value.__notes__)


def test_outputs_that_are_once_differentiable():
    with pytest.raises(ValueError, match="`outputs` must be twice differentiable"):
        sf.gradient_flow(one_output(lambda model: once(model["u"])), U)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preconditioner": "cg"}, "`preconditioner` must be one of .*'gauss_newton'.* but got 'cg'"),
        ({"preconditioner": "gauss_newton"}, "`preconditioner` must be 'hessian' or 'none' for a loss without"),
        ({"graded": True}, "`graded` must be None or False: only networks"),
        ({"reduce_width": "auto"}, "`reduce_width` must be None: only networks"),
        ({"trainable": "all"}, "`trainable` must be a function of a leaf, or booleans"),
        ({"trainable": {"v": True}}, "`trainable` must be a function of a leaf, or booleans"),
        ({"trainable": lambda leaf: False}, "`model` must hold at least one trainable"),
        ({"observables": ["balancedness"]}, "`observables` must name one of"),
    ],
)
def test_options_that_models_do_not_take(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        sf.gradient_flow(square, U, **options)
    assert "\n" not in str(caught.value)


def test_what_takes_networks_only():
    with pytest.raises(ValueError, match=r"`network` must be a deep linear network.* MLP.*sf\.Objective"):
        sf.gradient_flow(COST, NET)
    with pytest.raises(ValueError, match=r"`network` must be a network or a model, .*The loss comes first"):
        sf.gradient_flow(NET, model_problems.regression())
    with pytest.raises(ValueError, match=r"must be a saddleflow cost.*sf\.gradient_flow"):
        sf.integrate(model_problems.regression(), NET)


def test_tracers_are_refused():
    with pytest.raises(ValueError, match=r"`model\['u'\]` must be concrete, but got a tracer"):
        jax.jit(lambda u: sf.gradient_flow(square, {"u": u}))(jnp.ones(3))


def test_errors_of_the_users_own_pass_as_they_are():
    with pytest.raises(KeyError, match="v"):
        sf.gradient_flow(lambda model: model["v"], U)
    with pytest.raises(TypeError, match="contracting dimensions"):
        sf.gradient_flow(sf.regression(lambda m, x: m(x[:1]), model_problems.INPUTS, model_problems.TARGETS), NET)


def test_a_network_is_a_model_too():
    cost = completion()
    by_cost = sf.gradient_flow(cost, start(), t1=3.0, progress=False)
    by_loss = sf.gradient_flow(lambda network: cost(network.end_to_end()), start(), t1=3.0, progress=False)
    assert isinstance(by_loss, sf.ModelTrajectory)
    assert isinstance(by_loss.model, sf.DeepLinearNetwork)
    assert by_loss.train_cost[-1] == pytest.approx(by_cost.train_cost[-1], rel=1e-5)


def test_shapes_of_leaves_are_free():
    model = {
        "scalar": jnp.asarray(2.0),
        "empty": jnp.zeros((0, 3)),
        "numpy": np.ones((2, 1, 2)),
        "integers": jnp.arange(3),
        "name": "kept",
        "function": jnp.tanh,
    }

    def loss(model):
        return 0.5 * model["scalar"] ** 2 + jnp.sum(model["numpy"] ** 2) + jnp.sum(model["empty"])

    end = sf.gradient_flow(loss, model, t1=0.5, progress=False).model
    assert end["scalar"] == pytest.approx(2 * np.exp(-0.5), rel=1e-5)
    assert end["numpy"] == pytest.approx(np.full((2, 1, 2), np.exp(-1.0)), rel=1e-5)
    assert end["empty"].shape == (0, 3)
    assert end["name"] == "kept"
    assert end["function"] is jnp.tanh
    assert eqx.tree_equal(end["integers"], jnp.arange(3))
