"""Costs of classifiers: logistic, exponential and cross-entropy, of a model's outputs or of `A X`.

On data that a linear map separates they have no minimum: C falls to zero while A grows like log t, and a flow ends
"diverges". Of small data sets a linear program decides it once; of others a matrix proves it that separates them.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Bool, Float, Int

from saddleflow._backend.arguments import integer
from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import as_float64, is_concrete, require, require_finite
from saddleflow._backend.linalg import qr
from saddleflow.problem.costs import MAX_RESIDUALS, Cost, span_of
from saddleflow.problem.curvature import (
    ColumnCurvature,
    Curvature,
    DenseCurvature,
    EntryCurvature,
    InputCurvature,
    Matrix,
    SoftmaxCurvature,
)

# More classes than labels of 32 bits tell apart.
MOST_CLASSES = 2**31 - 1

# Entries at most of the linear program that decides whether data are separable: a few seconds.
MAX_PROGRAM = 1_000_000

# What a direction may lose on one sample by rounding, and what it must win on all, in units of the inputs' lengths.
SLACK, LEAST_WIN = 1e-9, 1e-6


class LabelledSet(eqx.Module):
    """Labels, and the inputs that they belong to (None: the cost is one of a model's outputs)."""

    labels: Float[Array, " N"] | Int[Array, " N"]
    inputs: Float[Array, "n_in N"] | None

    def outputs(self, matrix: Matrix) -> Float[Array, "n_out N"]:
        """`A X`, or the matrix itself."""
        return jnp.asarray(matrix) if self.inputs is None else jnp.asarray(matrix) @ self.inputs


class Classification(Cost):
    """What the costs of labelled samples share: a mean over samples of a convex function of outputs.

    Attributes:
        train_set: the labels, and the inputs of a linear map.
        test_set: the same for the test cost; None: there is none.
    """

    no_test: ClassVar[str] = (
        "Pass `test_inputs` and `test_labels`; of a model's outputs pass test samples to `classification`."
    )

    train_set: LabelledSet
    test_set: LabelledSet | None
    runs_away: Bool[Array, ""]  # whether C is known to have no minimum

    def __init__(self, labels: Any, inputs: Any, test_inputs: Any, test_labels: Any):
        names = "test_inputs, test_labels"
        require((test_inputs is None) == (test_labels is None), names, "be given both or neither", "one of them")
        self.train_set = _labelled("labels", labels, "inputs", inputs)
        self.test_set, self.runs_away = None, on_device(np.asarray(False))
        if self.train_set.inputs is not None and is_concrete(self.train_set.inputs):
            self.runs_away = on_device(np.asarray(_has_a_way_down(self._sides(np.asarray(self.train_set.inputs)))))
        if test_inputs is not None:
            require(inputs is not None, "test_inputs", "come with `inputs`", "none of those")
            self.test_set = _labelled("test_labels", test_labels, "test_inputs", test_inputs)
            sets: Any = self.train_set, self.test_set
            n_in, found = (len(each.inputs) for each in sets)
            require(found == n_in, "test_inputs", f"have {n_in} rows, like the train set", found)

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Rows of A, or of the outputs."""

    @abstractmethod
    def _sides(self, inputs: Float[np.ndarray, "n_in N"]) -> Float[np.ndarray, "pairs entries"] | None:
        """Rows whose products with A are to be positive, of classes one against each other; None: too many."""

    @abstractmethod
    def of_outputs(self, outputs: Float[Array, "n_out N"], labels: Array) -> Float[Array, ""]:
        """The mean over samples."""

    @abstractmethod
    def output_gradient(self, outputs: Float[Array, "n_out N"]) -> Float[Array, "n_out N"]:
        """The gradient of the mean over the train set, by the outputs."""

    @abstractmethod
    def output_margins(self, outputs: Float[Array, "n_out N"], labels: Array) -> Float[Array, " N"]:
        """Of each sample how far it is on its side; positive where it is classified right."""

    @property
    def labels(self) -> Array:
        """Labels of the train set."""
        return self.train_set.labels

    @property
    def inputs(self) -> Float[Array, "n_in N"] | None:
        """Inputs of the train set; None for a cost of a model's outputs."""
        return self.train_set.inputs

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, n_in) of A; without inputs (n_out, N), of the outputs."""
        inputs = self.train_set.inputs
        return self.num_outputs, len(self.train_set.labels) if inputs is None else len(inputs)

    @property
    def has_test(self) -> bool:
        """Whether a test set was given."""
        return self.test_set is not None

    def __call__(self, matrix: Matrix) -> Float[Array, ""]:
        """The train cost, in nats where it is a likelihood."""
        return self.of_outputs(self.train_set.outputs(matrix), self.train_set.labels)

    def test(self, matrix: Matrix) -> Float[Array, ""]:
        """The same mean over the test set."""
        if self.test_set is None:
            return super().test(matrix)
        return self.of_outputs(self.test_set.outputs(matrix), self.test_set.labels)

    def _card_rows(self) -> list[tuple[str, str]]:
        """The samples by label, and whether there is a minimum."""
        labels, counts = np.unique(np.asarray(self.labels), return_counts=True)
        shown = ", ".join(f"{count} of label {label:g}" for label, count in zip(labels[:10], counts, strict=False))
        away = (
            "none: a linear map separates the samples, the cost falls to its infimum at infinity"
            if self.runs_away
            else ""
        )
        rows = [
            ("matrix" if self.inputs is not None else "outputs", f"of shape {self.shape}"),
            ("samples", f"{self.num_samples}: {shown}{', ...' if len(labels) > 10 else ''}"),
            ("test set", "yes" if self.has_test else "none"),
        ]
        return [*rows, *([("minimum", away)] if self.runs_away else [])]

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.train_set.labels)

    def batch(self, indices: Int[Array, " b"]) -> "Classification":
        """The mean over some samples: without inputs a cost of outputs with a column for each of them."""
        labels, inputs = self.train_set.labels[indices], self.train_set.inputs
        part = LabelledSet(labels, None if inputs is None else inputs[:, indices])
        parts = part, None, jnp.asarray(False)
        return eqx.tree_at(
            lambda c: (c.train_set, c.test_set, c.runs_away), self, parts, is_leaf=lambda part: part is None
        )

    def margins(self, matrix: Matrix) -> Float[Array, " N"]:
        """How far every train sample is on its side of the boundary; all positive where A separates the data.

        `y f` for labels y of two signs; of classes the logit of the label less the largest other. For the margins
        along a run:

        >>> cost = sf.Logistic([1, -1], inputs=[[2.0, -1.0]])
        >>> start = sf.balanced([[1e-3]], depth=2, width=1)
        >>> margins = lambda cost, network: cost.margins(network.end_to_end())
        >>> run = sf.gradient_flow(cost, start, t1=10.0, observables={"margins": margins})
        >>> run.observables["margins"][-1]
        array([5.06, 2.53])
        """
        return self.output_margins(self.train_set.outputs(matrix), self.train_set.labels)

    def lacks_minimum(self, matrix: Matrix) -> Bool[Array, ""]:
        """Whether the data are known to leave C a way down to infinity, or A separates them and so is one itself."""
        return self.runs_away | jnp.all(self.margins(matrix) > 0)

    def gradient(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """That of the outputs, times `X^T`."""
        samples = self.train_set
        forces = self.output_gradient(samples.outputs(matrix))
        return forces if samples.inputs is None else forces @ samples.inputs.T

    @property
    def input_basis(self) -> Float[Array | np.ndarray, "n_in rank"] | None:
        """Of the span of the train inputs, by their numerical rank; None where that is n_in, and under `vmap`."""
        return None if self.train_set.inputs is None else span_of(self.train_set.inputs)

    def restricted(self, basis: Float[np.ndarray, "n_in k"]) -> "Classification | None":
        """Of inputs `K^T X`."""
        if self.train_set.inputs is None:
            return None
        sets = [
            None if s is None else replace(s, inputs=on_device(basis.T @ np.asarray(s.inputs)))
            for s in (self.train_set, self.test_set)
        ]
        return eqx.tree_at(lambda c: (c.train_set, c.test_set), self, sets, is_leaf=lambda part: part is None)


class _TwoSided(Classification):
    """A mean of a convex function of the margins `m = y f`, labels y of two signs, one output f."""

    def __init__(
        self,
        labels: Any,
        *,
        inputs: Any = None,
        test_inputs: Any = None,
        test_labels: Any = None,
    ):
        test_labels = None if test_labels is None else _signs("test_labels", test_labels)
        super().__init__(_signs("labels", labels), inputs, test_inputs, test_labels)

    def _sides(self, inputs: Float[np.ndarray, "n_in N"]) -> Float[np.ndarray, "N n_in"] | None:
        return None if inputs.size > MAX_PROGRAM else (np.asarray(self.train_set.labels) * inputs).T

    @staticmethod
    @abstractmethod
    def _value(margins: Float[Array, " N"]) -> Float[Array, " N"]:
        """The function."""

    @staticmethod
    @abstractmethod
    def _slope(margins: Float[Array, " N"]) -> Float[Array, " N"]:
        """Minus its derivative."""

    @staticmethod
    @abstractmethod
    def _bend(margins: Float[Array, " N"]) -> Float[Array, " N"]:
        """Its second derivative."""

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1

    def of_outputs(self, outputs: Float[Array, "1 N"], labels: Array) -> Float[Array, ""]:
        """The mean of the function."""
        return jnp.mean(self._value(self.output_margins(outputs, labels)))

    def output_margins(self, outputs: Float[Array, "1 N"], labels: Array) -> Float[Array, " N"]:
        """`y f`."""
        return labels * outputs[0]

    def output_gradient(self, outputs: Float[Array, "1 N"]) -> Float[Array, "1 N"]:
        """`-(1/N) y slope(y f)`."""
        labels = self.train_set.labels
        return (-labels * self._slope(self.output_margins(outputs, labels)) / len(labels))[None]

    def curvature(self, matrix: Matrix) -> Curvature | None:
        """`C''[V] = V X D X^T`, D the second derivatives over N; of many samples by a triangular factor."""
        weights = self._bend(self.margins(matrix)) / len(self.train_set.labels)
        inputs, count = self.train_set.inputs, len(weights)
        if inputs is None or count <= len(inputs):
            zeros = jnp.zeros(count, int)
            entries = EntryCurvature(zeros, jnp.arange(count), weights, (1, count))
            return entries if inputs is None else InputCurvature(entries, inputs)
        _, factor = qr((inputs * jnp.sqrt(weights)).T)
        return ColumnCurvature(factor.T, self.shape)


class Logistic(_TwoSided):
    """The logistic loss: `C = (1/N) sum_n log(1 + exp(-y_n f_n))`, labels y of two signs.

    With inputs it is a cost of A, shape (1, n_in), with `f = A X`; without, of a model's outputs f, shape (1, N). On
    data that are separable it has no minimum: flows diverge, A like log t in the direction of the largest margin.

    >>> x = np.random.default_rng(0).standard_normal((2, 50))
    >>> cost = sf.Logistic(np.sign(x[0] + 0.3), inputs=np.vstack([x, np.ones(50)]))
    >>> start = sf.gaussian(jax.random.key(0), depth=2, width=10, shape=cost.shape, gamma=1.5)
    >>> sf.gradient_flow(cost, start).stop_reason
    'diverges'

    Args:
        labels: N numbers -1 or 1.
        inputs: X, shape (n_in, N), float64 or a list; None: a cost of outputs.
        test_inputs: inputs of a test set, shape (n_in, M).
        test_labels: its labels.

    Raises:
        ValueError: labels that are not -1 or 1, shapes that do not fit, NaN or infinity.
    """

    @staticmethod
    def _value(margins: Float[Array, " N"]) -> Float[Array, " N"]:
        return jax.nn.softplus(-margins)

    @staticmethod
    def _slope(margins: Float[Array, " N"]) -> Float[Array, " N"]:
        return jax.nn.sigmoid(-margins)

    @staticmethod
    def _bend(margins: Float[Array, " N"]) -> Float[Array, " N"]:
        return jax.nn.sigmoid(-margins) * jax.nn.sigmoid(margins)


class ExponentialLoss(_TwoSided):
    """The exponential loss: `C = (1/N) sum_n exp(-y_n f_n)`, labels y of two signs.

    As `Logistic`, of A (with inputs) or of a model's outputs. A margin below -709 makes it infinite, and with it the
    gradient: such a start is refused by a flow as not finite.

    >>> cost = sf.ExponentialLoss([1, -1], inputs=[[2.0, -1.0]])
    >>> print(f"{cost(np.ones((1, 1))):.4f}")  # (exp(-2) + exp(-1)) / 2
    0.2516

    Args:
        labels: N numbers -1 or 1.
        inputs: X, shape (n_in, N), float64 or a list; None: a cost of outputs.
        test_inputs: inputs of a test set, shape (n_in, M).
        test_labels: its labels.

    Raises:
        ValueError: labels that are not -1 or 1, shapes that do not fit, NaN or infinity.
    """

    @staticmethod
    def _value(margins: Float[Array, " N"]) -> Float[Array, " N"]:
        return jnp.exp(-margins)

    _slope = _value
    _bend = _value


class CrossEntropy(Classification):
    """Mean cross-entropy of logits: `C(F) = (1/N) sum_n (log sum_k exp F_kn - F_(label n, n))`.

    With inputs it is a cost of A, shape (K, n_in), with `F = A X`; without, of a model's logits F, shape (K, N), one
    sample a column: `sf.classification` makes an objective of it. On data that the map or the model can separate it
    has no minimum: the flow diverges.

    >>> cost = sf.CrossEntropy([0, 1, 2], inputs=np.eye(3))
    >>> cost.shape, round(float(cost(np.zeros((3, 3)))), 4)  # log 3
    ((3, 3), 1.0986)

    Args:
        labels: N integers from 0.
        num_classes: number K of classes; None: one more than the largest label.
        inputs: X, shape (n_in, N), float64 or a list; None: a cost of logits.
        test_inputs: inputs of a test set, shape (n_in, M).
        test_labels: its labels.

    Raises:
        ValueError: labels that are no integers from 0, or not below `num_classes`; fewer than two classes; inputs of
            another number of samples, NaN or infinity among them.
    """

    num_classes: int = eqx.field(static=True)

    def __init__(
        self,
        labels: Any,
        num_classes: Any = None,
        *,
        inputs: Any = None,
        test_inputs: Any = None,
        test_labels: Any = None,
    ):
        labels = _classes("labels", labels)
        number = int(labels.max()) + 1 if num_classes is None else num_classes
        number = integer(2, MOST_CLASSES)("num_classes", number)
        require(labels.max() < number, "labels", f"lie below num_classes = {number}", int(labels.max()))
        if test_labels is not None:
            test_labels = _classes("test_labels", test_labels)
            largest = int(test_labels.max())
            require(largest < number, "test_labels", f"lie below num_classes = {number}", largest)
        self.num_classes = int(number)
        super().__init__(labels, inputs, test_inputs, test_labels)

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.num_classes

    def _sides(self, inputs: Float[np.ndarray, "n_in N"]) -> Float[np.ndarray, "pairs entries"] | None:
        n_in, count = inputs.shape
        if (self.num_classes - 1) * count * self.num_classes * n_in > MAX_PROGRAM:
            return None
        chosen = np.eye(self.num_classes)[np.asarray(self.train_set.labels)]
        pairs = chosen[:, None] - np.eye(self.num_classes)  # (N, K, K), zero for the label itself
        return np.einsum("nkc,in->nkci", pairs, inputs).reshape(count * self.num_classes, -1)

    def _others(self, outputs: Float[Array, "K N"], labels: Array) -> Float[Array, "K N"]:
        """Logits less that of the label, -infinity for the label itself."""
        chosen = jnp.take_along_axis(outputs, labels[None], axis=0)
        return jnp.where(jnp.arange(self.num_classes)[:, None] == labels, -jnp.inf, outputs - chosen)

    def of_outputs(self, outputs: Float[Array, "K N"], labels: Array) -> Float[Array, ""]:
        """The mean, in nats; small ones keep their digits."""
        return jnp.mean(jax.nn.softplus(jax.nn.logsumexp(self._others(outputs, labels), axis=0)))

    def output_margins(self, outputs: Float[Array, "K N"], labels: Array) -> Float[Array, " N"]:
        """The logit of the label less the largest other."""
        return -jnp.max(self._others(outputs, labels), axis=0)

    def unbounded(self, matrix: Matrix) -> Float[Array, "K n_in"]:
        """The matrix but for its mean over the classes, which changes no cost."""
        return jnp.asarray(matrix) - jnp.mean(jnp.asarray(matrix), axis=0)

    def output_gradient(self, outputs: Float[Array, "K N"]) -> Float[Array, "K N"]:
        """`(1/N) (softmax F - onehot)`; of the label minus the sum of the others, which keeps its digits."""
        labels = self.train_set.labels
        is_label = jnp.arange(self.num_classes)[:, None] == labels
        others = jnp.where(is_label, 0.0, jax.nn.softmax(outputs, axis=0))
        return jnp.where(is_label, -jnp.sum(others, axis=0), others) / len(labels)

    def curvature(self, matrix: Matrix) -> Curvature | None:
        """Of the softmax (`SoftmaxCurvature`); of many samples the dense one of A, where that is small."""
        samples = self.train_set
        softmax = jax.nn.softmax(samples.outputs(matrix), axis=0)
        if samples.inputs is None:
            return SoftmaxCurvature(softmax)
        n_in, count = samples.inputs.shape
        if count <= n_in or self.num_classes * n_in > MAX_RESIDUALS:
            return InputCurvature(SoftmaxCurvature(softmax), samples.inputs)
        mixed = (softmax[:, None] * samples.inputs).reshape(-1, count)
        blocks = jnp.einsum("kn,in,jn->kij", softmax, samples.inputs, samples.inputs)
        diagonal = jnp.einsum("kij,kl->kilj", blocks, jnp.eye(self.num_classes))
        return DenseCurvature.of((diagonal - (mixed @ mixed.T).reshape(diagonal.shape)) / count)


def _has_a_way_down(sides: Float[np.ndarray, "pairs entries"] | None) -> bool:
    """Whether some direction loses nothing on any side and wins on one: then C falls along it for ever.

    By a linear program; False also where that is not clear to rounding, or None was given.
    """
    if sides is None:
        return False
    lengths = np.linalg.norm(sides, axis=1)
    units: Any = sides[lengths > 0] / lengths[lengths > 0, None]
    if not len(units):
        return False
    found = scipy.optimize.linprog(-units.sum(axis=0), A_ub=-units, b_ub=np.zeros(len(units)), bounds=(-1, 1))
    if found.x is None:
        return False
    won = units @ found.x
    return bool(won.min() >= -SLACK and won.sum() > LEAST_WIN)


def _labelled(labels_name: str, labels: Any, inputs_name: str, inputs: Any) -> LabelledSet:
    if inputs is None:
        return LabelledSet(on_device(labels), None)
    inputs = as_float64(inputs_name, inputs)
    require(inputs.ndim == 2, inputs_name, "be a matrix with samples as columns", f"shape {inputs.shape}")
    require_finite(inputs_name, inputs)
    count = inputs.shape[1]
    require(
        len(labels) == count,
        labels_name,
        f"be as many as the samples (columns) of {inputs_name}, {count}",
        len(labels),
    )
    return LabelledSet(on_device(labels), on_device(inputs))


def _signs(name: str, labels: Any) -> Float[np.ndarray, " N"]:
    """Labels -1 and 1 as floats."""
    labels = _list_of_labels(name, labels)
    sound = labels.ndim == 1 and labels.size > 0 and labels.dtype.kind in "iuf" and np.all(np.abs(labels) == 1)
    remedy = "Of labels 0 and 1 take 2 * labels - 1."
    require(sound, name, "be a list of numbers -1 and 1", _described(labels), remedy)
    return labels.astype(float)


def _classes(name: str, labels: Any) -> Int[np.ndarray, " N"]:
    """Labels from 0."""
    labels = _list_of_labels(name, labels)
    sound = labels.ndim == 1 and labels.size > 0 and np.issubdtype(labels.dtype, np.integer)
    remedy = "Of other labels take np.unique(labels, return_inverse=True)[1]."
    require(sound, name, "be a list of integers", f"{labels.dtype} of shape {labels.shape}", remedy)
    require(labels.min() >= 0, name, "not be negative", int(labels.min()), "Classes count from 0.")
    require(
        labels.max() < MOST_CLASSES, name, f"lie below {MOST_CLASSES}", int(labels.max()), "Count classes from 0."
    )
    return labels


def _list_of_labels(name: str, labels: Any) -> np.ndarray:
    try:
        return np.asarray(labels)
    except ValueError:
        raise ValueError(f"`{name}` must be a list of numbers, but got a ragged one.") from None


def _described(labels: np.ndarray) -> str:
    if labels.ndim == 1 and labels.size > 0 and labels.dtype.kind in "iuf":
        return f"{np.unique(labels)[:5].tolist()} among them"
    return f"{labels.dtype} of shape {labels.shape}"
