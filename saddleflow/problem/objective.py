"""Objectives of any model: `C(f(theta)) + R(theta)`, C convex on the outputs f, R a regulariser."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saddleflow._backend.arguments import function, instance, integer, number, optional, refuse, scalar, takes
from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import as_float64, require, require_finite, require_float64, require_positive
from saddleflow.plotting.cards import card, never_raises
from saddleflow.problem.classification import MOST_CLASSES, CrossEntropy
from saddleflow.problem.costs import Cost, SquaredError
from saddleflow.problem.network import DeepLinearNetwork

Model = Any

# What an objective is made of beside its cost.
PARTS = ("outputs", "regulariser", "test")


def of_model(argument: str, value: Any) -> Any:
    """The reader of a function of a model."""
    expected = "be a function of the model"
    if isinstance(value, type):
        refuse(argument, expected, value, f"Make one: {value.__name__}(...).")
    if not callable(value):
        decay = argument == "regulariser" and isinstance(scalar(value), int | float)
        example = f"sf.weight_decay({value})" if decay else "lambda model: ..."
        refuse(argument, expected, value, f"For example {argument}={example}")
    return function("model")(argument, value)


class WeightDecay(eqx.Module):
    """`R(theta) = strength / 2 |theta|^2`, over all floating-point arrays of a model."""

    strength: Float[Array, ""]

    def __call__(self, model: Model) -> Float[Array, ""]:
        """R of a model."""
        leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        return 0.5 * self.strength * sum((jnp.sum(leaf**2) for leaf in leaves), start=jnp.zeros(()))


@takes(strength=number())
def weight_decay(strength: Any) -> WeightDecay:
    """The regulariser `strength / 2 |theta|^2`: the flow gains the term `-strength theta`.

    >>> cost = sf.SquaredError([[2.0]])
    >>> objective = sf.Objective(cost, lambda model: model["a"] * model["b"] * jnp.ones((1, 1)), sf.weight_decay(0.5))
    >>> run = sf.gradient_flow(objective, {"a": jnp.array(0.1), "b": jnp.array(0.2)})
    >>> print(f"{run.model['a']:.3f} {run.model['b']:.3f}")
    1.323 1.323

    Args:
        strength: positive, in units of the cost over those of a squared parameter.

    Raises:
        ValueError: a strength that is not positive.
    """
    require_positive("strength", strength)
    return WeightDecay(jnp.asarray(strength, float))


class Objective(eqx.Module):
    """The loss `C(f(theta)) + R(theta)` of a model theta.

    A model is any pytree, an `equinox.Module` for example. A deep linear network is the case `f = A`, outputs None:
    there `sf.gradient_flow(cost, network)` says the same without a regulariser, and solves it with closed forms.

    >>> inputs = np.random.default_rng(0).standard_normal((20, 5))
    >>> cost = sf.SquaredError(np.sin(inputs[:, :1]).T)  # shape (n_out, N)
    >>> objective = sf.Objective(cost, lambda model: jax.vmap(model, out_axes=1)(inputs))
    >>> model = eqx.nn.MLP(5, 1, 10, 1, jnp.tanh, key=jax.random.key(0))
    >>> trajectory = sf.gradient_flow(objective, model, t1=10.0)
    >>> print(f"{trajectory.train_cost[0]:.3f} {trajectory.train_cost[-1]:.5f}")
    0.301 0.00305

    A deep linear network with weight decay:

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> objective = sf.Objective(cost, regulariser=sf.weight_decay(1e-3))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> sf.gradient_flow(objective, start, t1=10.0).stop_reason
    't1'

    Args:
        cost: the cost C, convex on matrices of `cost.shape`.
        outputs: the function f, from a model to a matrix of `cost.shape`; None: A of a deep linear network.
        regulariser: R, a function from a model to a number, such as `weight_decay(1e-3)`; None: zero.
        test: a function from a model to its test loss, in units of the cost; None: no test set.

    Raises:
        ValueError: a cost that is none; outputs, a regulariser or a test that are no functions.
    """

    cost: Cost
    outputs: Callable[[Model], Any]
    regulariser: Callable[[Model], Any] | None
    test: Callable[[Model], Any] | None

    @takes(cost=instance(Cost, "be a saddleflow cost", "See sf.Cost."), **dict.fromkeys(PARTS, optional(of_model)))
    def __init__(self, cost: Any, outputs: Any = None, regulariser: Any = None, *, test: Any = None):
        if outputs is None:
            outputs = end_to_end
            test = TestOfNetwork(cost) if test is None and cost.has_test else test
        self.cost, self.outputs, self.regulariser, self.test = cost, outputs, regulariser, test

    def __call__(self, model: Model) -> Float[Array, ""]:
        """The loss of a model."""
        return self.loss(model, self.outputs(model))

    def loss(self, model: Model, outputs: Array) -> Float[Array, ""]:
        """The loss of a model whose outputs are known."""
        fit = self.cost(outputs)
        return fit if self.regulariser is None else fit + self.regulariser(model)

    @never_raises
    def _repr_html_(self) -> str:
        """The card, for notebooks."""
        rows = [("cost", type(self.cost).__name__), ("outputs", "{} x {}".format(*self.shape))]
        if self.regulariser is not None:
            rows.append(("regulariser", getattr(self.regulariser, "__name__", type(self.regulariser).__name__)))
        return card("Objective", [*rows, ("test set", "yes" if self.has_test else "none")])

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the outputs."""
        return self.cost.shape

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return self.test is not None

    @property
    def num_samples(self) -> int | None:
        """How many samples the loss is the mean over, for mini-batches; None: they are not known.

        They are known of objectives from `regression` and `classification`, and where the cost keeps its samples.
        """
        count = self.cost.num_samples
        if count is None or isinstance(self.outputs, Predictions):
            return count
        # a cost of predictions has a column for each sample: what `outputs` makes of some samples is not known
        more = eqx.filter_eval_shape(self.cost.batch, jnp.zeros(count + 1, int))
        return count if more.shape == self.cost.shape else None

    def batch(self, indices: Int[Array, " b"]) -> "Objective":
        """The loss of some samples, the regulariser in full; see `Cost.batch`."""
        cost, outputs = self.cost.batch(indices), self.outputs
        if isinstance(outputs, Predictions):
            outputs = Predictions(outputs.predict, jax.tree.map(lambda x: jnp.asarray(x)[indices], outputs.inputs))
        return Objective(cost, outputs, self.regulariser)

    @property
    def decay(self) -> Float[Array, ""]:
        """Strength of the weight decay; 0 for other regularisers, whose curvature is not known."""
        return self.regulariser.strength if isinstance(self.regulariser, WeightDecay) else jnp.zeros(())

    def jacobian(self, model_of: Callable[[Float[Array, " p"]], Model], flat: Float[Array, " p"]) -> Array:
        """The derivative of the outputs by the parameters, shape `(*cost.shape, p)`.

        Args:
            model_of: the model from its p parameters as one vector.
            flat: those parameters.
        """
        if isinstance(self.outputs, Predictions):
            return self.outputs.jacobian(model_of, flat)
        columns = flat.size <= np.prod(self.cost.shape)
        return (jax.jacfwd if columns else jax.jacrev)(lambda theta: self.outputs(model_of(theta)))(flat)


def end_to_end(network: Any) -> Float[Array, "n_out n_in"]:
    """A of a deep linear network: the outputs of an objective that has none of its own."""
    found, remedy = type(network).__name__, "Of another model say what its outputs are: sf.Objective(cost, outputs)."
    require(isinstance(network, DeepLinearNetwork), "model", "be a deep linear network", found, remedy)
    return network.end_to_end()


class TestOfNetwork(eqx.Module):
    """The test cost of a deep linear network."""

    cost: Cost

    def __call__(self, network: Any) -> Float[Array, ""]:
        """Its value."""
        return self.cost.test(end_to_end(network))


class Predictions(eqx.Module):
    """The outputs of a model that predicts sample by sample: a column of the matrix (n_out, N) for each of N samples.

    Attributes:
        predict: a function (model, x) -> numbers of shape (n_out,), or one number.
        inputs: array or pytree of arrays, leading axis N.
    """

    predict: Callable[[Model, Any], Any]
    inputs: Any

    def __call__(self, model: Model) -> Array:
        """The predictions for all samples."""
        return jax.vmap(lambda x: jnp.atleast_1d(self.predict(model, x)), out_axes=-1)(self.inputs)

    def jacobian(
        self, model_of: Callable[[Float[Array, " p"]], Model], flat: Float[Array, " p"]
    ) -> Float[Array, "n_out N p"]:
        """The derivative by the parameters: no sample's predictions depend on another's input."""

        def of_sample(x):
            return jax.jacrev(lambda theta: jnp.atleast_1d(self.predict(model_of(theta), x)))(flat)

        return jax.vmap(of_sample, out_axes=1)(self.inputs)


@takes(predict=function("model", "x"), regulariser=optional(of_model))
def regression(
    predict: Any,
    inputs: Any,
    targets: Any,
    test_inputs: Any = None,
    test_targets: Any = None,
    *,
    regulariser: Callable[[Model], Any] | None = None,
) -> Objective:
    """Mean squared error of a model's predictions: `(1/N) sum_n |f(x_n) - y_n|^2`, summed over outputs.

    >>> inputs = np.random.default_rng(0).standard_normal((20, 5))
    >>> targets = np.sin(inputs[:, :1])
    >>> model = eqx.nn.MLP(5, 1, 10, 1, jnp.tanh, key=jax.random.key(0))
    >>> objective = sf.regression(lambda model, x: model(x), inputs, targets)
    >>> print(f"{objective(model):.3f} {objective(sf.gradient_flow(objective, model, t1=10.0).model):.5f}")
    0.301 0.00305

    Args:
        predict: a function (model, x) -> prediction for one sample, of shape (n_out,) or one number.
        inputs: the N samples, array or pytree of arrays with a leading axis N. (Costs of linear maps, such as
            `MeanSquaredError`, take samples as columns; here an x is whatever the model takes.)
        targets: shape (N, n_out) or (N,), float64.
        test_inputs: inputs of a test set.
        test_targets: its targets.
        regulariser: as in `Objective`.

    Raises:
        ValueError: numbers of samples that differ, targets that are no finite float64.
    """
    predictions = _predictions("inputs", predict, inputs)
    targets = _targets("targets", targets, inputs)
    test = None
    require(
        (test_inputs is None) == (test_targets is None),
        "test_inputs, test_targets",
        "be given both or neither",
        "one of them",
    )
    if test_inputs is not None:
        held_out = _targets("test_targets", test_targets, test_inputs)
        same = len(held_out) == len(targets)
        require(same, "test_targets", f"have as many outputs as `targets`, {len(targets)}", len(held_out))
        test = _Test(SquaredError(held_out), predict, test_inputs)
    return Objective(SquaredError(targets), predictions, regulariser, test=test)


@takes(predict=function("model", "x"), num_classes=optional(integer(2, MOST_CLASSES)), regulariser=optional(of_model))
def classification(
    predict: Any,
    inputs: Any,
    labels: Any,
    test_inputs: Any = None,
    test_labels: Any = None,
    *,
    num_classes: int | None = None,
    regulariser: Callable[[Model], Any] | None = None,
) -> Objective:
    """Mean cross-entropy of a model's logits.

    >>> inputs = np.random.default_rng(0).standard_normal((30, 4))
    >>> labels = np.argmax(inputs[:, :3], axis=1)
    >>> model = eqx.nn.MLP(4, 3, 20, 1, jnp.tanh, key=jax.random.key(0))
    >>> objective = sf.classification(lambda model, x: model(x), inputs, labels)
    >>> print(f"{objective(model):.3f} {objective(sf.gradient_flow(objective, model, t1=10.0).model):.3f}")
    1.230 0.166

    Args:
        predict: a function (model, x) -> logits of one sample, shape (K,).
        inputs: the N samples, as in `regression`.
        labels: N integers from 0 to K - 1.
        test_inputs: inputs of a test set.
        test_labels: its labels.
        num_classes: K; None: one more than the largest label.
        regulariser: as in `Objective`.

    Raises:
        ValueError: numbers of samples that differ, labels out of range.
    """
    cost = CrossEntropy(labels, num_classes)
    _same_number("labels", cost.labels, inputs)
    require(
        (test_inputs is None) == (test_labels is None),
        "test_inputs, test_labels",
        "be given both or neither",
        "one of them",
    )
    test = None
    if test_inputs is not None:
        held_out = _test_entropy(test_labels, cost.num_classes)
        _same_number("test_labels", held_out.labels, test_inputs)
        test = _Test(held_out, predict, test_inputs)
    return Objective(cost, _predictions("inputs", predict, inputs), regulariser, test=test)


def _test_entropy(labels: Any, num_classes: int) -> CrossEntropy:
    """The cost of test labels; what it has against them is said of them."""
    try:
        return CrossEntropy(labels, num_classes)
    except ValueError as error:
        raise ValueError(str(error).replace("`labels`", "`test_labels`")) from None


class _Test(eqx.Module):
    """The cost of the predictions for a test set."""

    cost: Cost
    predictions: Predictions

    def __init__(self, cost: Cost, predict: Any, inputs: Any):
        self.cost, self.predictions = cost, _predictions("test_inputs", predict, inputs)

    def __call__(self, model: Model) -> Float[Array, ""]:
        return self.cost(self.predictions(model))


def _predictions(name: str, predict: Any, inputs: Any) -> Predictions:
    for leaf in jax.tree.leaves(inputs):
        if np.asarray(leaf).dtype.kind not in "biuf" or np.issubdtype(np.asarray(leaf).dtype, np.floating):
            require_float64(name, np.asarray(leaf))
        require_finite(name, leaf)
    return Predictions(predict, jax.tree.map(on_device, inputs))


def _targets(name: str, targets: Any, inputs: Any) -> Float[np.ndarray, "n_out N"]:
    """Targets as columns, as many as there are samples."""
    targets = as_float64(name, targets)
    require(targets.ndim in (1, 2), name, "have the shape (N, n_out) or (N,)", f"shape {targets.shape}")
    require(targets.size > 0, name, "hold at least one sample", f"shape {targets.shape}")
    _same_number(name, targets, inputs)
    return np.ascontiguousarray(np.asarray(targets).reshape(len(targets), -1).T)


def _same_number(name: str, targets: Any, inputs: Any) -> None:
    counts = sorted({np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(inputs)})
    remedy = "Each array has a leading axis of samples."
    inputs_name = "test_inputs" if name.startswith("test_") else "inputs"
    require(len(counts) == 1, inputs_name, "agree in their number of samples", counts, remedy)
    require(counts == [len(targets)], name, f"be as many as the samples, {counts}", len(targets))


class BareLoss(Objective):
    """A loss of which nothing is known but its value: neither outputs nor a certificate.

    It is held as an objective with the loss as its only output.
    """

    def __init__(self, loss: Callable[[Model], Any]):
        super().__init__(_Itself(), AsMatrix(loss))


def as_objective(given: Any) -> Objective:
    """The objective of a model: itself, that of a cost of matrices, or a bare loss.

    Raises:
        ValueError: neither an objective nor a function.
    """
    if isinstance(given, Objective):
        return given
    if isinstance(given, Cost):
        return Objective(given)
    require(callable(given), "cost", "be a saddleflow cost, an objective or a function of the model", given)
    return BareLoss(given)


class AsMatrix(eqx.Module):
    """A loss as a 1x1 matrix: equal for equal losses, so that a program compiled for one serves the next run."""

    loss: Callable[[Model], Any]

    def __call__(self, model: Model) -> Array:
        """The matrix."""
        return jnp.reshape(self.loss(model), (1, 1))


class _Itself(Cost):
    """`C(F) = F` for a single number: linear, without a minimum."""

    @property
    def shape(self) -> tuple[int, int]:
        return 1, 1

    def __call__(self, matrix: Any) -> Float[Array, ""]:
        return matrix[0, 0]

    def curvature(self, matrix: Any) -> None:
        return None
