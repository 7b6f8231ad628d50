"""The flows of the models benchmark: non-linear models of a few dozen to 20,000 parameters, for saddleflow and peers.

`PROBLEMS[name]()` builds one. The peers get compiled functions of flat float64 vectors, `sf.gradient_flow` the
same cost as an `Objective`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from problems import Flow, Vector

import saddleflow as sf
from saddleflow.flow.arguments import START_SHARE

Predict = Callable[[Any, Array], Array]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ModelProblem(Flow):
    """The gradient flow of a model's loss; its outputs are those on the training inputs.

    Attributes:
        model: the start.
        predict: `predict(model, x)`, the outputs (or logits) for one sample.
        inputs: samples first.
        targets: of `predict`'s shape for every sample, or, of a classification, integer labels.
        loss: `loss(model)`: mean over samples of the summed squared error, or of the cross-entropy.
        factor: `factor(y)`, of shape (rows, size): J with J^T J the Gauss-Newton matrix of the loss.
    """

    model: Any
    predict: Predict
    inputs: Float[Array, "samples ..."]
    targets: Array
    loss: Callable[[Any], Array]
    factor: Callable[[Vector], Array]

    @property
    def classifies(self) -> bool:
        """Whether the targets are labels."""
        return jnp.issubdtype(self.targets.dtype, jnp.integer)

    def objective(self) -> Any:
        """The same loss for `sf.gradient_flow`."""
        make = sf.classification if self.classifies else sf.regression
        return make(self.predict, self.inputs, self.targets)


def loss_of(outputs: Array, targets: Array) -> Array:
    """Mean over samples of the summed squared error or, for integer labels, of the cross-entropy."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], 1))
    return jnp.sum((outputs - targets) ** 2) / len(targets)


def _problem(
    name: str, model: Any, inputs: Any, targets: Any, t1: float, predict: Predict = lambda model, x: model(x)
) -> ModelProblem:
    """A problem with twenty times, in even ratios over four decades up to t1."""
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
    trained, rest = eqx.partition(model, eqx.is_inexact_array)
    start, unravel = ravel_pytree(trained)

    def all_outputs(model):
        return jax.vmap(predict, (None, 0))(model, inputs)

    def loss(model):
        return loss_of(all_outputs(model), targets)

    def outputs(y):
        return all_outputs(eqx.combine(unravel(y), rest))

    def train_cost(y):
        return loss_of(outputs(y), targets)

    def field(y):
        return -jax.grad(train_cost)(y)

    def linearise(y):
        return y

    def product_at(y, v):
        return jax.jvp(field, (y,), (v,))[1]

    def jacobian(y):
        return jax.vmap(lambda v: product_at(y, v))(jnp.eye(y.size))  # rows are columns: it is symmetric

    def factor(y):
        def one(x):
            def at(y):
                return predict(eqx.combine(unravel(y), rest), x)

            rows = jax.jacrev(at)(y).reshape(-1, y.size)
            if not jnp.issubdtype(targets.dtype, jnp.integer):
                return jnp.sqrt(2.0) * rows
            # diag(p) - p p^T = B^T B with B = diag(sqrt p) (I - 1 p^T)
            shares = jax.nn.softmax(at(y))
            return jnp.sqrt(shares)[:, None] * (rows - shares @ rows)

        return jax.vmap(one)(inputs).reshape(-1, y.size) / jnp.sqrt(len(inputs))

    functions = (field, linearise, product_at, jacobian, outputs, train_cost, factor)
    return ModelProblem(
        name=name,
        start=np.asarray(start),
        weight=float(START_SHARE * np.sqrt(np.mean(np.square(start)))),
        times=np.geomspace(1e-4 * t1, t1, 20),
        until_cost=None,
        shape=jax.eval_shape(outputs, start).shape,
        model=model,
        predict=predict,
        inputs=inputs,
        targets=targets,
        loss=loss,
        **{function.__name__: jax.jit(function) for function in functions},
    )


def network(widths: Sequence[int], activation: Callable[[Array], Array], seed: int) -> eqx.nn.Sequential:
    """Linear layers with biases, equinox's standard start, the activation between them."""
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    layers: list[Any] = []
    for n_in, n_out, key in zip(widths[:-1], widths[1:], keys, strict=True):
        layers += [eqx.nn.Linear(n_in, n_out, key=key, dtype=jnp.float64), eqx.nn.Lambda(activation)]
    return eqx.nn.Sequential(layers[:-1])


def teacher(
    n_in: int, samples: int, seed: int, n_out: int = 1
) -> tuple[Float[np.ndarray, "samples n_in"], Float[np.ndarray, "samples n_out"]]:
    """Normal inputs and the outputs of a random tanh network of ten hidden units, of mean square one."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((samples, n_in))
    inner, bias, outer = (rng.standard_normal(shape) for shape in ((n_in, 10), (10,), (10, n_out)))
    outputs = np.tanh(2 * inputs @ inner / np.sqrt(n_in) + bias) @ outer
    return inputs, outputs / np.sqrt(np.mean(outputs**2))


def tanh() -> ModelProblem:
    """A small network to the long tail of its training."""
    return _problem("1: tanh 5-10-1", network((5, 10, 1), jnp.tanh, 1), *teacher(5, 100, 10), t1=1e4)


def gelu() -> ModelProblem:
    """More parameters than samples."""
    return _problem("2: gelu 5-50-1", network((5, 50, 1), jax.nn.gelu, 2), *teacher(5, 300, 20), t1=1e3)


def deep() -> ModelProblem:
    """Two hidden layers."""
    return _problem("3: tanh 10-30-30-1", network((10, 30, 30, 1), jnp.tanh, 3), *teacher(10, 200, 30), t1=1e4)


def small_start() -> ModelProblem:
    """All parameters of standard deviation .01: a plateau, then steps."""
    flat, unravel = ravel_pytree(eqx.filter(network((5, 50, 1), jnp.tanh, 4), eqx.is_inexact_array))
    drawn = 0.01 * jnp.asarray(np.random.default_rng(4).standard_normal(flat.size))
    model = eqx.combine(unravel(drawn), network((5, 50, 1), jnp.tanh, 4))
    return _problem("4: tanh 5-50-1, small start", model, *teacher(5, 100, 40), t1=1e3)


def softplus() -> ModelProblem:
    """20,001 parameters."""
    model = network((10, 140, 130, 1), jax.nn.softplus, 5)
    return _problem("5: softplus 10-140-130-1", model, *teacher(10, 100, 50), t1=1e2)


class DiagonalNetwork(eqx.Module):
    """`f(x) = (u * u - v * v) . x`."""

    u: Float[Array, " d"]
    v: Float[Array, " d"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """A scalar."""
        return (self.u**2 - self.v**2) @ x


def diagonal() -> ModelProblem:
    """Three of 30 coordinates carry the targets of 20 samples; a small start finds them one by one."""
    rng = np.random.default_rng(6)
    inputs, truth = rng.standard_normal((20, 30)), np.zeros(30)
    truth[:3] = 1, -0.7, 0.4
    start = jnp.full(30, 0.01)
    return _problem("6: diagonal linear, d = 30", DiagonalNetwork(start, start), inputs, inputs @ truth, t1=1e3)


def classes() -> ModelProblem:
    """Cross-entropy of three classes; a tenth of the labels are drawn at random, so that they stay hard to learn."""
    rng = np.random.default_rng(7)
    inputs, scores = teacher(4, 150, 70, n_out=3)
    labels = np.where(rng.random(150) < 0.1, rng.integers(0, 3, 150), scores.argmax(1))
    return _problem("7: tanh 4-20-3, cross-entropy", network((4, 20, 3), jnp.tanh, 7), inputs, labels, t1=1e3)


class LinearAttention(eqx.Module):
    """Heads of rank one on the summary `s` of a sequence and its query `q`: `sum_i v_i (k_i . s) (q_i . q)`."""

    value: Float[Array, " heads"]
    key: Float[Array, "heads d"]
    query: Float[Array, "heads d"]

    def __call__(self, x: Float[Array, "two d"]) -> Float[Array, ""]:
        """The prediction at the query, from summary and query."""
        return self.value @ ((self.key @ x[0]) * (self.query @ x[1]))


def attention() -> ModelProblem:
    """Regression in context by linear attention from a small start: sums of products of three factors.

    A sequence holds 30 pairs (x, w . x) and a query; its summary is their mean of x (w . x).
    """
    rng = np.random.default_rng(8)
    samples, length, d, heads = 200, 30, 6, 8
    scales = np.linspace(1.3, 0.5, d)
    tasks, queries = rng.standard_normal((samples, d)), scales * rng.standard_normal((samples, d))
    context = scales * rng.standard_normal((samples, length, d))
    summary = np.mean(context * (context @ tasks[:, :, None]), axis=1)
    start = [0.1 * jnp.asarray(rng.standard_normal(shape)) for shape in ((heads,), (heads, d), (heads, d))]
    inputs, targets = np.stack([summary, queries], 1), np.sum(tasks * queries, axis=1)
    return _problem("8: linear attention", LinearAttention(*start), inputs, targets, t1=1e3)


PROBLEMS: dict[str, Callable[[], ModelProblem]] = {
    "tanh": tanh,
    "gelu": gelu,
    "deep": deep,
    "small_start": small_start,
    "softplus": softplus,
    "diagonal": diagonal,
    "classes": classes,
    "attention": attention,
}
