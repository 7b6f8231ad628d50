"""Objectives: their values, derivatives and curvature against plain formulas, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import model_problems
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.problem.curvature import SoftmaxCurvature

KEY = jax.random.key(0)
NET = model_problems.tanh_net(3)
X, LABELS = model_problems.INPUTS, model_problems.LABELS
TARGETS = jax.random.normal(jax.random.key(7), (6, 3))
LOGITS = 2 * jax.random.normal(jax.random.key(8), (3, 6))


def apply(model, x):
    return model(x)


def cross_entropy(logits, labels):
    """In nats; logits (K, N)."""
    p = np.exp(np.asarray(logits)) / np.exp(np.asarray(logits)).sum(axis=0)
    return -np.mean(np.log(p[np.asarray(labels), np.arange(len(labels))]))


def test_regression():
    objective = sf.regression(apply, X, TARGETS, X[:2], TARGETS[:2])
    predictions = np.stack([NET(x) for x in X])
    targets = np.asarray(TARGETS)
    expected = np.mean(np.sum((predictions - targets) ** 2, axis=1))
    assert float(objective(NET)) == pytest.approx(expected, rel=1e-14)
    assert objective.cost.shape == (3, 6)
    np.testing.assert_allclose(objective.outputs(NET), predictions.T, rtol=1e-14)
    expected = np.mean(np.sum((predictions[:2] - targets[:2]) ** 2, axis=1))
    assert float(objective.test(NET)) == pytest.approx(expected, rel=1e-14)
    assert sf.regression(apply, X, TARGETS).test is None


def test_regression_of_numbers():
    line = jnp.array([2.0, -1.0])
    objective = sf.regression(lambda w, x: w @ x, X, np.asarray(TARGETS[:, 0]))
    assert objective.cost.shape == (1, 6)
    assert float(objective(line)) == pytest.approx(float(np.mean((X @ line - TARGETS[:, 0]) ** 2)), rel=1e-14)
    assert float(objective(np.asarray(line))) == float(objective(line))


def test_inputs_may_be_a_pytree():
    inputs = {"x": X, "kind": np.arange(6) % 2}
    objective = sf.regression(lambda w, sample: w[sample["kind"]] @ sample["x"], inputs, TARGETS[:, 0])
    w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    expected = np.mean((np.sum(np.asarray(w)[np.arange(6) % 2] * X, axis=1) - TARGETS[:, 0]) ** 2)
    assert float(objective(w)) == pytest.approx(float(expected), rel=1e-14)


def test_classification():
    objective = sf.classification(apply, X, LABELS, X[:2], LABELS[:2])
    logits = np.stack([NET(x) for x in X], axis=1)
    assert float(objective(NET)) == pytest.approx(cross_entropy(logits, LABELS), rel=1e-13)
    assert float(objective.test(NET)) == pytest.approx(cross_entropy(logits[:, :2], LABELS[:2]), rel=1e-13)
    assert objective.cost.shape == (3, 6)
    # classes that no label shows
    assert sf.CrossEntropy([0, 1], num_classes=4).shape == (4, 2)
    assert sf.CrossEntropy([0, 1]).shape == (2, 2)


def test_logits_of_any_size():
    cost = sf.CrossEntropy([0, 1])
    logits = jnp.array([[1e4, 1e4], [0.0, 0.0]])
    assert float(cost(logits)) == pytest.approx(0.5e4, rel=1e-14)
    np.testing.assert_allclose(cost.gradient(logits), [[0, 0.5], [0, -0.5]], atol=1e-15)
    np.testing.assert_array_equal(cost.curvature(logits).root(jnp.ones((2, 2))), 0)


def test_a_shift_of_logits_is_not_growth():
    np.testing.assert_allclose(sf.CrossEntropy(LABELS).unbounded(jnp.ones((3, 6))), 0, atol=1e-15)
    np.testing.assert_array_equal(sf.SquaredError(np.asarray(TARGETS.T)).unbounded(LOGITS), 0)


def test_weight_decay():
    model = {"w": jnp.array([1.0, 2.0]), "b": jnp.asarray(3.0), "n": jnp.arange(5), "f": jnp.tanh, "empty": None}
    assert float(sf.weight_decay(0.5)(model)) == pytest.approx(0.25 * 14, rel=1e-15)
    objective = sf.Objective(sf.SquaredError(np.zeros((1, 1))), lambda m: m["b"].reshape(1, 1), sf.weight_decay(0.5))
    assert float(objective(model)) == pytest.approx(9 + 0.25 * 14, rel=1e-15)
    assert float(objective.decay) == 0.5
    assert float(sf.Objective(objective.cost, objective.outputs, lambda m: 0.0).decay) == 0


def predictions(model):
    return jax.vmap(model, out_axes=1)(X)


def row_of(model):
    return jnp.tanh(predictions(model)[:1])


@pytest.mark.parametrize(
    "objective",
    [
        sf.regression(apply, X, TARGETS),  # sample by sample
        sf.Objective(sf.SquaredError(np.zeros((1, 6))), row_of),  # fewer outputs than parameters
        sf.Objective(sf.SquaredError(np.zeros((6, 6))), lambda model: jnp.tile(predictions(model), (2, 1))),  # more
    ],
)
def test_jacobian(objective):
    theta, back = model_problems.vector(NET)
    expected = jax.jacobian(lambda at: objective.outputs(back(at)))(theta)
    assert expected.shape == (*objective.cost.shape, theta.size)
    np.testing.assert_allclose(objective.jacobian(back, theta), expected, rtol=1e-12, atol=1e-14)


COSTS = {"squared": sf.SquaredError(np.asarray(TARGETS.T)), "entropy": sf.CrossEntropy(LABELS)}


@pytest.mark.parametrize("name", COSTS)
def test_gradient_and_root_of_the_hessian(name):
    cost, direction = COSTS[name], jax.random.normal(KEY, (3, 6))

    @eqx.filter_jit
    def compute(cost, direction):
        curvature = cost.curvature(LOGITS)
        plain = jax.grad(lambda f: cost(f))
        hessian = jax.jvp(plain, (LOGITS,), (direction,))[1]
        return plain(LOGITS), hessian, curvature.adjoint(curvature.root(direction)), curvature.root(direction)

    gradient, hessian, squared, values = compute(cost, direction)
    np.testing.assert_allclose(cost.gradient(LOGITS), gradient, atol=1e-15)
    np.testing.assert_allclose(squared, hessian, atol=1e-15)
    # the adjoint, and a residual for each output
    curvature = cost.curvature(LOGITS)
    assert values.shape == (18,) == (curvature.num_residuals,)
    assert float(values @ curvature.root(LOGITS)) == pytest.approx(float(jnp.sum(squared * LOGITS)), rel=1e-12)
    other = jax.random.normal(jax.random.key(1), (18,))
    assert float(jnp.sum(curvature.adjoint(other) * direction)) == pytest.approx(float(other @ values), rel=1e-12)


def test_gram_of_the_softmax():
    curvature = SoftmaxCurvature(jax.nn.softmax(LOGITS, axis=0))
    left = [m @ m.T for m in jax.random.normal(jax.random.key(2), (2, 3, 3))]
    right = [m @ m.T for m in jax.random.normal(jax.random.key(3), (2, 6, 6))]

    def kernel(values):
        v = curvature.adjoint(values)
        return curvature.root(sum(p @ v @ q for p, q in zip(left, right, strict=True)))

    expected = jax.vmap(kernel)(jnp.eye(18)).T
    np.testing.assert_allclose(curvature.gram(tuple(left), tuple(right)), expected, atol=1e-13)
    gradient = COSTS["entropy"].gradient(LOGITS)  # sums to zero over the classes, so the root meets it
    np.testing.assert_allclose(curvature.adjoint(curvature.coefficients(gradient)), gradient, atol=1e-12)


BAD = {
    "nan targets": (lambda: sf.SquaredError(np.array([[1.0, np.nan]])), r"`targets` must be finite.*\(0, 1\)"),
    "targets in float32": (lambda: sf.SquaredError(np.ones((1, 2), np.float32)), "`targets` must hold float64"),
    "a ragged list": (lambda: sf.SquaredError([[1.0], [1.0, 2.0]]), "`targets` must have rows of one length"),
    "a vector of targets": (lambda: sf.SquaredError(np.ones(3)), r"`targets` must be a matrix.*\(3,\)"),
    "no targets": (lambda: sf.SquaredError(np.ones((1, 0))), "`targets` must hold at least one sample"),
    "no outputs": (lambda: sf.SquaredError(np.ones((0, 3))), "`targets` must hold at least one sample"),
    "nan in regression": (
        lambda: sf.regression(apply, X, np.full((6, 1), np.nan)),
        r"`targets` must be finite, but got 'nan at entry",
    ),
    "float32 in regression": (
        lambda: sf.regression(apply, X, np.ones((6, 1), np.float32)),
        "`targets` must hold float64 numbers, but got 'float32'",
    ),
    "float32 test targets": (
        lambda: sf.regression(apply, X, TARGETS, X, TARGETS.astype("float32")),
        "`test_targets` must hold float64",
    ),
    "three axes": (
        lambda: sf.regression(apply, X, np.ones((6, 1, 1))),
        r"`targets` must have the shape \(N,",
    ),
    "five targets": (
        lambda: sf.regression(apply, X, TARGETS[:5]),
        r"`targets` must be as many as .*\[6\], but got 5",
    ),
    "inputs that differ": (
        lambda: sf.regression(apply, (X, X[:4]), TARGETS),
        r"`inputs` must agree in their number of samples, but got \[4, 6\]",
    ),
    "no array": (lambda: sf.regression(apply, X, None), "`targets` must be an array or a list .* 'NoneType'"),
    "a list of words": (lambda: sf.regression(apply, X, ["one"] * 6), "`targets` must hold float64"),
    "no samples": (lambda: sf.regression(apply, X[:0], TARGETS[:0]), "`targets` must hold at least one sample"),
    "inputs of no axis": (lambda: sf.regression(apply, 3.0, TARGETS), "`targets` must be as many"),
    "nan inputs": (lambda: sf.regression(apply, X * np.nan, TARGETS), "`inputs` must be finite"),
    "float32 inputs": (lambda: sf.regression(apply, X.astype("float32"), TARGETS), "`inputs` must hold float64"),
    "nan test inputs": (
        lambda: sf.regression(apply, X, TARGETS, X * np.nan, TARGETS),
        "`test_inputs` must be",
    ),
    "other outputs": (
        lambda: sf.regression(apply, X, TARGETS, X, TARGETS[:, :1]),
        "`test_targets` must have as many outputs as `targets`, 3, but got 1",
    ),
    "half a test": (lambda: sf.regression(apply, X, TARGETS, X), "`test_inputs, test_targets` must be given both"),
    "the other half": (
        lambda: sf.regression(apply, X, TARGETS, test_targets=TARGETS),
        "`test_inputs, test_targets` must be given both",
    ),
    "no model function": (lambda: sf.regression(3, X, TARGETS), "`predict` must be a function"),
    "labels of floats": (lambda: sf.CrossEntropy([0.0, 1.0]), "`labels` must be a list of integers, .*float64"),
    "no labels": (lambda: sf.CrossEntropy([]), r"`labels` must be a list of integers.*shape \(0,\)"),
    "one-hot labels": (lambda: sf.CrossEntropy(np.eye(3, dtype=int)), r"`labels` must be a list .*\(3, 3\)"),
    "negative labels": (lambda: sf.CrossEntropy([0, -1]), "`labels` must not be negative, but got -1"),
    "labels too large": (lambda: sf.CrossEntropy([0, 3], 3), "`labels` must lie below num_classes = 3, but got 3"),
    "one class": (lambda: sf.CrossEntropy([0, 0]), "`num_classes` must be an integer >= 2, but got 1"),
    "five labels": (lambda: sf.classification(apply, X, LABELS[:5]), r"`labels` must be as many .*\[6\], but got 5"),
    "test labels too large": (
        lambda: sf.classification(apply, X, LABELS, X[:1], [3]),
        "`test_labels` must lie below num_classes = 3, but got 3",
    ),
    "half a test of classes": (lambda: sf.classification(apply, X, LABELS, X), "`test_inputs, test_labels` must be"),
    "test labels that differ": (
        lambda: sf.classification(apply, X, LABELS, X, [0]),
        r"`test_labels` must be as many as the samples, \[6\], but got 1",
    ),
    "no cost": (lambda: sf.Objective(jnp.sum, predictions), r"`cost` must be a saddleflow cost.*sf\.Cost"),
    "no outputs function": (lambda: sf.Objective(COSTS["squared"], 3), "`outputs` must be a function of the model"),
    "a number for R": (lambda: sf.Objective(COSTS["squared"], predictions, 0.1), "`regulariser` must be a function"),
    "a number for test": (lambda: sf.Objective(COSTS["squared"], predictions, test=1), "`test` must be a function"),
    "negative decay": (lambda: sf.weight_decay(-1), "`strength` must be finite and positive, but got -1"),
    "no decay": (lambda: sf.weight_decay(0), "`strength` must be finite and positive, but got 0"),
    "the cost's own test": (lambda: COSTS["squared"].test(LOGITS), "`cost` has no test set.*regression"),
    "that of classes": (lambda: COSTS["entropy"].test(LOGITS), "`cost` has no test set.*classification"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
