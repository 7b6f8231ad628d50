"""Linear measurements, masked regression, c * cost, lists for arrays: against plain sums, flows against DOP853."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import HuberCompletion, by_dop853, completion, costs, off_by, rows

import saddleflow as sf
from saddleflow.problem import geometry
from saddleflow.problem.costs import Scaled

DRAW = np.random.default_rng(0)
TARGET = DRAW.normal(size=(4, 2)) @ DRAW.normal(size=(2, 3))
MATRICES, INPUTS = DRAW.normal(size=(30, 4, 3)), DRAW.normal(size=(3, 5))
OBSERVED = DRAW.random((4, 5)) < 0.4
QUIET = {"progress": False}


def cost_of(name):
    """Few measurements, more than entries, masked ones, few and more than entries."""
    values = np.einsum("mij,ij->m", MATRICES, TARGET) + 0.1 * DRAW.normal(size=30)
    return {
        "few": lambda: sf.LinearMeasurements(MATRICES[:7], values[:7], MATRICES[7:], values[7:]),
        "many": lambda: sf.LinearMeasurements(MATRICES, values),
        "masked": lambda: sf.LinearMeasurements.masked(INPUTS, TARGET @ INPUTS, OBSERVED),
        "all entries": lambda: sf.LinearMeasurements.masked(INPUTS, TARGET @ INPUTS, np.ones((4, 5), bool)),
        "scaled": lambda: 0.3 * cost_of("few"),
    }[name]()


NAMES = ("few", "many", "masked", "all entries", "scaled")


@pytest.mark.parametrize("name", NAMES)
def test_gradient_and_curvature(name):
    cost = cost_of(name)
    network = sf.gaussian(jax.random.key(1), depth=3, width=5, shape=(4, 3), variance=0.5)

    @eqx.filter_jit
    def compute(cost, network, direction):
        matrix = network.end_to_end()
        plain, curvature = jax.grad(lambda a: cost(a)), cost.curvature(matrix)
        left, right = geometry.partial_products(network)
        gram = curvature.gram(tuple(m @ m.T for m in left.one_by_one()), tuple(n.T @ n for n in right.one_by_one()))
        apply = lambda u: curvature.root(sf.neural_tangent_kernel(network, curvature.adjoint(u)))  # noqa: E731
        gradient = cost.gradient(matrix)
        return {
            "gradient": (gradient, plain(matrix)),
            "hessian": (curvature.adjoint(curvature.root(direction)), jax.jvp(plain, (matrix,), (direction,))[1]),
            "gram": (gram, jax.vmap(apply)(jnp.eye(len(gram))).T),
            "coefficients": (curvature.adjoint(curvature.coefficients(gradient)), gradient),
        }

    for what, (ours, expected) in compute(cost, network, jax.random.normal(jax.random.key(2), (4, 3))).items():
        np.testing.assert_allclose(ours, expected, atol=1e-11, err_msg=what)


@pytest.mark.parametrize("count", [7, 30])
def test_the_sum_over_measurements(count):
    values, matrix = DRAW.normal(size=count), DRAW.normal(size=(4, 3))
    cost = sf.LinearMeasurements(MATRICES[:count], values, MATRICES[:2], values[:2])
    squares = (np.einsum("mij,ij->m", MATRICES[:count], matrix) - values) ** 2
    assert float(cost(matrix)) == pytest.approx(squares.mean(), rel=1e-13)
    assert float(cost.test(matrix)) == pytest.approx(squares[:2].mean(), rel=1e-13)
    # more measurements than entries are condensed
    assert cost.curvature(matrix).num_residuals == min(count, 12)


@pytest.mark.parametrize("observed", [OBSERVED, np.ones((4, 5), bool)])
def test_masked_regression(observed):
    targets, matrix = DRAW.normal(size=(4, 5)), DRAW.normal(size=(4, 3))
    cost = sf.LinearMeasurements.masked(
        INPUTS.tolist(), np.where(observed, targets, np.nan), observed, ~observed & False
    )
    squares = (matrix @ INPUTS - targets) ** 2
    assert float(cost(matrix)) == pytest.approx(squares[observed].mean(), rel=1e-13)
    assert cost.shape == (4, 3)
    assert not cost.has_test
    with pytest.raises(ValueError, match=r"no test set.*held_out"):
        cost.test(matrix)
    if not observed.all():
        held = sf.LinearMeasurements.masked(INPUTS, targets, observed)
        assert float(held.test(matrix)) == pytest.approx(squares[~observed].mean(), rel=1e-13)
    else:  # as a cost that knows it
        same = sf.MeanSquaredError(INPUTS, targets)
        assert float(cost(matrix)) * 4 == pytest.approx(float(same(matrix)), rel=1e-13)


def test_sensing():
    cost = sf.LinearMeasurements.sensing(jax.random.key(0), TARGET, num_measurements=2000, noise=0.1, num_test=2000)
    off = DRAW.normal(size=(4, 3))
    assert float(cost(TARGET)) == pytest.approx(0.01, rel=0.1)
    assert float(cost.test(TARGET + off)) == pytest.approx(0.01 + np.sum(off**2), rel=0.1)

    # under vmap, as other random tasks
    def value(key):
        return sf.LinearMeasurements.sensing(key, TARGET, num_measurements=5)(jnp.zeros((4, 3)))

    keys = jax.random.split(jax.random.key(1), 3)
    np.testing.assert_allclose(jax.vmap(value)(keys)[1], value(keys[1]), rtol=1e-12)


def test_what_no_measurement_sees():
    matrix = DRAW.normal(size=(4, 3))
    cost = cost_of("few")
    unseen = np.asarray(cost.unbounded(matrix))
    np.testing.assert_allclose(np.einsum("mij,ij->m", MATRICES[:7], unseen), 0, atol=1e-12)
    span = np.linalg.qr(MATRICES[:7].reshape(7, 12).T)[0]
    np.testing.assert_allclose(unseen.ravel(), matrix.ravel() - span @ span.T @ matrix.ravel(), atol=1e-12)
    np.testing.assert_array_equal(cost_of("many").unbounded(matrix), 0)
    masked = cost_of("masked")
    by_rows = [np.linalg.qr(INPUTS[:, OBSERVED[i]])[0] for i in range(4)]
    expected = [a - q @ q.T @ a for a, q in zip(matrix, by_rows, strict=True)]
    np.testing.assert_allclose(masked.unbounded(matrix), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["scaled", "masked"])
def test_flows_follow_the_exact_ones(name):
    cost = cost_of(name)
    network = sf.gaussian(jax.random.key(3), depth=3, width=4, shape=(4, 3), variance=0.3)
    times = rows(np.geomspace(0.05, 30, 8))

    def loss(layers):
        matrix = layers[2] @ layers[1] @ layers[0]
        if name == "masked":
            return jnp.sum(jnp.where(OBSERVED, matrix @ INPUTS - TARGET @ INPUTS, 0.0) ** 2) / OBSERVED.sum()
        return cost(matrix)

    expected = by_dop853(loss, network, times[:8])
    for rtol in (1e-4, 1e-6):
        run = sf.gradient_flow(cost, network, rtol=rtol, save_at=times, **QUIET)
        assert off_by(run.end_to_end[:8], expected) < 10 * rtol


@pytest.mark.parametrize("factor", [2, 0.5, np.float64(3.0), np.int64(3), np.array(2.0), jnp.asarray(2.0)])
def test_scaled_costs(factor):
    cost = costs()["mse"]
    matrix = DRAW.normal(size=(4, 3))
    for scaled in (factor * cost, cost * factor, 0.5 * (factor * (2 * cost))):
        assert isinstance(scaled, Scaled)
        assert not isinstance(scaled.cost, Scaled)
        assert scaled.shape == cost.shape
        for of in (lambda c: c(matrix), lambda c: c.test(matrix), lambda c: c.gradient(matrix)):
            np.testing.assert_allclose(of(scaled), float(factor) * np.asarray(of(cost)), rtol=1e-14)
    few = sf.MeanSquaredError(np.eye(3)[:, :2], np.ones((4, 2)))
    np.testing.assert_array_equal((factor * few).input_basis, few.input_basis)
    small = (factor * few).restricted(few.input_basis)
    assert float(small(matrix @ few.input_basis)) == pytest.approx(float(factor * few(matrix)), rel=1e-14)
    assert (2 * HuberCompletion(np.ones((4, 4)), np.ones((4, 4), bool))).restricted(few.input_basis) is None
    assert not (2 * few).has_test


class Bare(sf.Cost):
    """The least that a cost of one's own has to say."""

    @property
    def shape(self):
        return (1, 2)

    def __call__(self, matrix):
        return jnp.sum((matrix - 1) ** 2)


def test_a_cost_of_ones_own_needs_no_test():
    assert not Bare().has_test
    with pytest.raises(ValueError, match=r"`cost` has no test set\.$"):
        Bare().test(jnp.ones((1, 2)))
    # one with a test of its own need not say that it has one
    assert costs()["huber"].has_test


def test_the_example_of_a_cost_flows():
    """`HuberCompletion` of the docstring, by the library's own derivatives; the judge knows its formula."""
    task = completion()
    cost = HuberCompletion(3 * task.target, task.observed)
    network = sf.gaussian(jax.random.key(2), depth=3, width=5, shape=(4, 4), variance=0.3)
    times = rows(np.geomspace(0.1, 20, 6))

    def loss(layers):
        off = jnp.abs(layers[2] @ layers[1] @ layers[0] - 3 * task.target)
        return jnp.sum(jnp.where(off < 1, off**2 / 2, off - 0.5) * task.observed) / task.observed.sum()

    run = sf.gradient_flow(cost, network, save_at=times, **QUIET)
    assert off_by(run.end_to_end[:6], by_dop853(loss, network, times[:6])) < 1e-5
    assert run.test_cost is not None


def test_lists_and_numpy_integers():
    whole = sf.MatrixCompletion([[1, 2], [3, 4]], [[True, False], [True, True]])
    assert whole.target.dtype == float
    assert float(whole(jnp.zeros((2, 2)))) == pytest.approx((1 + 9 + 16) / 3)
    assert sf.MatrixCompletion.random(jax.random.key(0), shape=[np.int64(3), 4], rank=np.int32(2)).shape == (3, 4)
    regression = sf.MeanSquaredError([[1.0, 2]], [[2, 4]], [[3]], [[6]])
    assert float(regression.test(jnp.ones((1, 1)))) == pytest.approx(9)
    assert float(sf.MeanSquaredError.teacher([[1, 2]])(jnp.zeros((1, 2)))) == pytest.approx(5)
    assert sf.MeanSquaredError.random(jax.random.key(0), teacher=[[1, 2]], num_samples=np.int64(3)).shape == (1, 2)
    assert float(sf.SquaredError([[1, 2]])(jnp.zeros((1, 2)))) == pytest.approx(2.5)
    assert float(sf.LinearMeasurements([[[1, 0]]], [2])(jnp.zeros((1, 2)))) == pytest.approx(4)
    assert sf.LinearMeasurements.sensing(jax.random.key(0), [[1, 2]], num_measurements=np.int64(1)).shape == (1, 2)
    assert sf.CrossEntropy([0, 1], np.int64(4)).num_classes == 4
    traced = jax.jit(lambda x: sf.SquaredError([[x, x]])(jnp.zeros((1, 2))))(3.0)
    assert float(traced) == pytest.approx(9)


ONES = np.ones((2, 3, 3))
BAD = {
    "a ragged list": (lambda: sf.MatrixCompletion([[1, 2], [3]], [[True] * 2] * 2), "`target` must have rows of one"),
    "a ragged mask": (lambda: sf.MatrixCompletion(np.eye(2), [[True], []]), "`observed` must have rows of one"),
    "a list of ones for a mask": (
        lambda: sf.MatrixCompletion(np.eye(2), [[1, 0], [0, 1]]),
        "`observed` must hold bool",
    ),
    "words": (lambda: sf.MeanSquaredError([["a"]], [[1.0]]), "`inputs` must hold float64 numbers, but got '<U1'"),
    "a word": (lambda: sf.MeanSquaredError("data.csv", [[1.0]]), "`inputs` must be an array or a list .* 'str'"),
    "None": (lambda: sf.MeanSquaredError(None, [[1.0]]), "`inputs` must be an array or a list .* 'NoneType'"),
    "a list with None": (lambda: sf.SquaredError([[1.0, None]]), "`targets` must hold float64 .* 'object'"),
    "a list of float32": (lambda: sf.SquaredError([np.ones(2, "float32")]), "`targets` must hold float64 .*float32"),
    "booleans": (lambda: sf.SquaredError([[True]]), "`targets` must hold float64 .*bool"),
    "a shape of one": (lambda: sf.MatrixCompletion.random(jax.random.key(0), shape=(3,)), "`shape` must be"),
    "an empty shape": (
        lambda: sf.MatrixCompletion.random(jax.random.key(0), shape=(0, 3)),
        "`shape` must be an integer",
    ),
    "a matrix of matrices": (lambda: sf.LinearMeasurements(np.eye(2), [1.0]), r"`matrices` must have the shape \(N,"),
    "no measurement": (lambda: sf.LinearMeasurements(ONES[:0], np.ones(0)), "`matrices` must hold at least one"),
    "nan matrices": (lambda: sf.LinearMeasurements(ONES * np.nan, [1.0, 2]), "`matrices` must be finite"),
    "nan values": (lambda: sf.LinearMeasurements(ONES, [1.0, np.nan]), "`values` must be finite"),
    "three values": (lambda: sf.LinearMeasurements(ONES, [1.0] * 3), r"`values` must be 2 numbers.*\(3,\)"),
    "half a test": (lambda: sf.LinearMeasurements(ONES, [1, 2], ONES), "`test_matrices, test_values` must be given"),
    "another test": (lambda: sf.LinearMeasurements(ONES, [1, 2], [[[1.0]]], [1]), r"`test_matrices` .* \(3, 3\)"),
    "no test": (lambda: sf.LinearMeasurements(ONES, [1, 2]).test(np.eye(3)), "no test set.*`test_matrices`"),
    "no count": (
        lambda: sf.LinearMeasurements.sensing(jax.random.key(0), np.eye(2), num_measurements=0),
        "`num_measurements` must be an integer >= 1",
    ),
    "negative noise": (
        lambda: sf.LinearMeasurements.sensing(jax.random.key(0), np.eye(2), num_measurements=1, noise=-1.0),
        "`noise` must be finite and not negative",
    ),
    "a vector": (
        lambda: sf.LinearMeasurements.sensing(jax.random.key(0), [1.0], num_measurements=1),
        "`target` must be a matrix",
    ),
    "other samples": (
        lambda: sf.LinearMeasurements.masked(np.eye(3), np.ones((1, 2)), [[True, True]]),
        "`inputs` must hold 2 samples",
    ),
    "a vector of inputs": (
        lambda: sf.LinearMeasurements.masked([1.0], np.ones((1, 1)), [[True]]),
        "`inputs` must be a matrix",
    ),
    "nothing observed": (
        lambda: sf.LinearMeasurements.masked(np.eye(2), np.ones((1, 2)), [[False, False]]),
        "`observed` must mark",
    ),
    "c = 0": (lambda: 0 * Bare(), "`c in c . cost` must be finite and positive, but got 0"),
    "c < 0": (lambda: Bare() * -1.0, "`c in c . cost` must be finite and positive, but got -1"),
    "c nan": (lambda: np.float64("nan") * Bare(), "must be finite and positive, but got nan"),
    "c infinite": (lambda: Bare() * np.inf, "must be finite and positive, but got inf"),
    "c a word": (lambda: "2" * Bare(), "`c in c . cost` must be a real number, but got '2'"),
    "c a vector": (lambda: np.ones(2) * Bare(), "`c in c . cost` must be a real number"),
    "c a cost": (lambda: Bare() * Bare(), "`c in c . cost` must be a real number"),
    "c True": (lambda: True * Bare(), "`c in c . cost` must be a real number, but got True"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
