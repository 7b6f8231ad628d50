"""Logistic, exponential and cross-entropy costs: derivatives, ends of flows, margins."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from problems import by_dop853, off_by

import saddleflow as sf
from saddleflow.problem import geometry

DRAW = np.random.default_rng(0)
POINTS = np.vstack([DRAW.normal(size=(2, 40)), np.ones(40)])
SIDES = np.sign(POINTS[0] + 0.3)
MIXED = np.where(np.arange(40) % 5 == 0, -SIDES, SIDES)
CLASSES = (MIXED > 0).astype(int) + (POINTS[1] > 0)


def cost_of(name, *, few=False, separable=False):
    """A cost of A, of 40 samples or of two (fewer than inputs)."""
    labels = SIDES if separable else MIXED
    labels, points = (labels[3:5], POINTS[:, 3:5]) if few else (labels, POINTS)
    if name == "entropy":
        return sf.CrossEntropy(CLASSES[3:5] if few else CLASSES, 3, inputs=points)
    return {"logistic": sf.Logistic, "exponential": sf.ExponentialLoss}[name](labels, inputs=points)


def plain(name, outputs, labels):
    """The formula of the docstring, by numpy."""
    if name == "entropy":
        p = np.exp(outputs) / np.exp(outputs).sum(axis=0)
        return -np.mean(np.log(p[labels, np.arange(len(labels))]))
    margins = labels * outputs[0]
    return np.mean(np.log(1 + np.exp(-margins)) if name == "logistic" else np.exp(-margins))


NAMES = ("logistic", "exponential", "entropy")


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_value_gradient_and_curvature(name, few):
    cost = cost_of(name, few=few)
    network = sf.gaussian(jax.random.key(1), depth=3, width=4, shape=cost.shape, variance=0.5)

    @eqx.filter_jit
    def compute(cost, network, direction):
        matrix = network.end_to_end()
        curvature, gradient = cost.curvature(matrix), jax.grad(lambda a: cost(a))(matrix)
        left, right = geometry.partial_products(network)
        gram = curvature.gram(tuple(m @ m.T for m in left.one_by_one()), tuple(n.T @ n for n in right.one_by_one()))
        apply = lambda u: curvature.root(sf.neural_tangent_kernel(network, curvature.adjoint(u)))  # noqa: E731
        return {
            "gradient": (cost.gradient(matrix), gradient),
            "hessian": (
                curvature.adjoint(curvature.root(direction)),
                jnp.einsum("abcd,cd->ab", jax.hessian(cost.__call__)(matrix), direction),
            ),
            "gram": (gram, jax.vmap(apply)(jnp.eye(len(gram))).T),
            "coefficients": (curvature.adjoint(curvature.coefficients(cost.gradient(matrix))), gradient),
        }

    matrix = network.end_to_end()
    outputs = np.asarray(matrix) @ np.asarray(cost.inputs)
    assert float(cost(matrix)) == pytest.approx(plain(name, outputs, np.asarray(cost.labels)), rel=1e-13)
    for what, (ours, expected) in compute(cost, network, jax.random.normal(jax.random.key(2), cost.shape)).items():
        np.testing.assert_allclose(ours, expected, atol=1e-12, err_msg=what)
    # residuals as many as samples times outputs, or as A has entries where those are fewer
    assert cost.curvature(matrix).num_residuals == cost.shape[0] * min(len(cost.labels), cost.shape[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-300, 40.0, 690.0, 1e3])
def test_margins_of_any_size(name, size):
    """Nothing overflows, and small costs and gradients keep their digits."""
    labels = np.array([0, 1]) if name == "entropy" else np.array([1, -1])
    cost = {"logistic": sf.Logistic, "exponential": sf.ExponentialLoss, "entropy": sf.CrossEntropy}[name](labels)
    right = np.array([[size, -size]]) if name != "entropy" else np.array([[size, 0], [0, size]])
    small = np.exp(-size)
    expected = {"logistic": np.log1p(small), "exponential": small, "entropy": np.log1p(small)}[name]
    assert float(cost(right)) == pytest.approx(expected, rel=1e-13, abs=1e-320)
    force = small / 2 if name == "exponential" else small / (1 + small) / 2
    np.testing.assert_allclose(np.abs(cost.gradient(right)), force, rtol=1e-13, atol=1e-320)
    wrong = -right
    finite = name != "exponential" or size < 700
    assert bool(np.isfinite(cost(wrong))) == finite
    assert not np.isnan(cost(wrong))
    assert not np.isnan(np.asarray(cost.gradient(wrong))).any()
    for outputs in (right, wrong) if finite else (right,):
        curvature = cost.curvature(jnp.asarray(outputs))
        values = curvature.root(jnp.asarray(right) / size)
        assert np.isfinite(values).all()
        assert np.isfinite(curvature.adjoint(values)).all()
        assert np.isfinite(curvature.coefficients(cost.gradient(outputs))).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_cost_of_outputs_is_that_of_the_product(name):
    cost = cost_of(name)
    number = {"num_classes": 3} if name == "entropy" else {}
    of_outputs = type(cost)(cost.labels, **number)
    matrix = jax.random.normal(jax.random.key(0), cost.shape)
    outputs = matrix @ cost.inputs
    assert of_outputs.shape == outputs.shape
    assert float(of_outputs(outputs)) == pytest.approx(float(cost(matrix)), rel=1e-14)
    np.testing.assert_allclose(of_outputs.gradient(outputs) @ cost.inputs.T, cost.gradient(matrix), atol=1e-14)
    np.testing.assert_allclose(of_outputs.margins(outputs), cost.margins(matrix), rtol=1e-12)
    assert not of_outputs.has_test
    with pytest.raises(ValueError, match=r"no test set.*test_inputs"):
        of_outputs.test(outputs)


def test_margins():
    logits = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, -1.0, 4.0]])
    np.testing.assert_allclose(sf.CrossEntropy([0, 0, 2]).margins(logits), [2, -1, 4])
    np.testing.assert_allclose(sf.Logistic([1, -1]).margins(np.array([[2.0, 3.0]])), [2, -3])
    assert bool(sf.Logistic([1, -1]).lacks_minimum(np.array([[1.0, -1.0]])))
    assert not bool(sf.Logistic([1, -1]).lacks_minimum(np.array([[1.0, 0.0]])))


@pytest.mark.parametrize("name", NAMES)
def test_test_set_and_restriction(name):
    cost = cost_of(name, few=True)
    labels = np.asarray(cost.labels)
    more = {"num_classes": 3} if name == "entropy" else {}
    tested = type(cost)(
        labels.tolist(),
        **more,
        inputs=np.asarray(cost.inputs).tolist(),
        test_inputs=POINTS,
        test_labels=cost_of(name).labels,
    )
    matrix = jax.random.normal(jax.random.key(0), cost.shape)
    assert tested.has_test
    assert float(tested.test(matrix)) == pytest.approx(float(cost_of(name)(matrix)), rel=1e-13)
    basis = tested.input_basis
    assert basis.shape == (3, 2)
    small = tested.restricted(basis)
    seen = matrix @ basis
    assert float(small(seen)) == pytest.approx(float(tested(matrix)), rel=1e-13)
    assert float(small.test(seen)) == pytest.approx(float(tested.test(seen @ basis.T)), rel=1e-13)
    assert cost_of(name).input_basis is None


def flow(cost, depth=3, **options):
    """One program for each type of cost: 40 samples of three inputs, no times asked for."""
    start = sf.gaussian(jax.random.key(3), depth=depth, width=3, shape=cost.shape, variance=0.4)
    return sf.gradient_flow(cost, start, progress=False, **options)


@pytest.mark.parametrize("name", NAMES)
def test_data_that_are_not_separable_have_a_minimum(name):
    cost = cost_of(name)
    run = flow(cost, gradient_tolerance=1e-9)
    assert run.stop_reason == "converged"
    labels = np.asarray(cost.labels)
    judge = scipy.optimize.minimize(
        lambda a: plain(name, a.reshape(cost.shape) @ POINTS, labels), np.zeros(np.prod(cost.shape)), tol=1e-10
    )
    assert float(run.train_cost[-1]) == pytest.approx(judge.fun, rel=1e-9)
    expected = judge.x.reshape(cost.shape)
    found = run.end_to_end[-1]
    if name == "entropy":  # a shift of all logits is free
        found, expected = found - found.mean(axis=0), expected - expected.mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_minimum_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    cost = cost_of("logistic")
    run = flow(cost, gradient_tolerance=1e-9)
    judge = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(POINTS.T, MIXED)
    np.testing.assert_allclose(run.end_to_end[-1], judge.coef_, rtol=1e-6)


@pytest.mark.parametrize("tolerance", [0.5, 1e-4])
@pytest.mark.parametrize("name", ["logistic", "exponential"])
def test_separable_data_diverge_at_any_tolerance(name, tolerance):
    cost = cost_of(name, separable=True)
    run = flow(cost, gradient_tolerance=tolerance)
    assert run.stop_reason == "diverges"
    # what decides where the linear program is too large to be solved
    unknown = eqx.tree_at(lambda c: c.runs_away, cost, jnp.asarray(False))
    assert not unknown.lacks_minimum(jnp.zeros(cost.shape))
    far = flow(unknown, gradient_tolerance=min(tolerance, 1e-2))
    assert far.stop_reason == "diverges"
    assert unknown.margins(far.end_to_end[-1]).min() > 0


def test_a_start_that_separates_is_no_minimum():
    cost = cost_of("logistic", separable=True)
    far = sf.balanced(jnp.array([[3e3, 0.0, 9e2]]), depth=3, width=3)
    run = sf.gradient_flow(cost, far, progress=False)
    assert run.stop_reason == "diverges"
    assert run.stats["num_steps"] == 0


def test_data_on_the_boundary_have_no_minimum_either():
    """All points but one lie in a plane, where they have a minimum: |A| grows, though no A separates them."""
    points = np.where(np.arange(3)[:, None] < 2, POINTS, 0.0)
    points[:, -1] = 0, 0, 1
    cost = sf.Logistic(MIXED, inputs=points)
    assert cost.lacks_minimum(jnp.zeros((1, 3)))
    assert flow(cost).stop_reason == "diverges"


@pytest.mark.parametrize("name", NAMES)
def test_flows_follow_the_exact_ones(name):
    cost = cost_of(name)
    labels = np.asarray(cost.labels)

    def loss(layers):
        outputs = layers[2] @ layers[1] @ layers[0] @ POINTS
        if name == "entropy":
            return -jnp.mean(jax.nn.log_softmax(outputs, axis=0)[labels, np.arange(40)])
        margins = labels * outputs[0]
        return jnp.mean(jnp.log1p(jnp.exp(-margins)) if name == "logistic" else jnp.exp(-margins))

    network = sf.gaussian(jax.random.key(3), depth=3, width=3, shape=cost.shape, variance=0.4)
    times = np.array([0.3, 3.0, 20.0])
    expected = by_dop853(loss, network, times)
    for rtol in (1e-4, 1e-6):
        found = [flow(cost, t1=t, rtol=rtol, gradient_tolerance=1e-13).end_to_end[-1] for t in times]
        assert off_by(np.stack(found), expected) < 10 * rtol


@pytest.mark.parametrize("depth", [2, 3])
def test_the_direction_of_the_largest_margin(depth):
    """A / |A| tends to it like 1 / log t (Soudry et al. 2018; of deep networks Ji and Telgarsky 2019)."""
    from sklearn.svm import SVC

    points = np.random.default_rng(0).normal(size=(3, 120))
    points = points[:, np.abs(points.sum(axis=0)) > 0.5][:, :40]
    sides = np.sign(points.sum(axis=0))
    judge = SVC(kernel="linear", C=1e10).fit(np.hstack([points, -points]).T, np.hstack([sides, -sides]))
    widest = judge.coef_[0] / np.linalg.norm(judge.coef_)
    run = flow(sf.Logistic(sides, inputs=points), depth, gradient_tolerance=1e-13)
    assert run.stop_reason == "diverges"
    late = run.time > 1e6
    found, logs = run.end_to_end[late, 0], np.log(run.time[late])
    angles = np.arccos(np.clip(found @ widest / np.linalg.norm(found, axis=1), -1, 1))
    assert np.all(np.diff(angles) < 0)
    # .025 at t = 1e6 and .011 at 3e11 for L = 2, .023 and .011 (6e10) for L = 3
    power = np.polyfit(np.log(logs), np.log(angles), 1)[0]
    assert -1.4 < power < -0.9


BAD = {
    "labels 0 and 1": (lambda: sf.Logistic([0, 1]), r"`labels` must be .* -1 and 1, .*2 \* labels - 1"),
    "no labels": (lambda: sf.ExponentialLoss([]), r"`labels` must be .* shape \(0,\)"),
    "labels of words": (lambda: sf.Logistic(["a", "b"]), "`labels` must be a list of numbers"),
    "ragged labels": (lambda: sf.Logistic([[1], [1, -1]]), "`labels` must be a list of numbers"),
    "labels of a table": (lambda: sf.Logistic(np.ones((2, 2))), r"`labels` must be .* shape \(2, 2\)"),
    "test labels 0": (
        lambda: sf.Logistic([1], inputs=[[1.0]], test_inputs=[[1.0]], test_labels=[0]),
        "`test_labels` must be",
    ),
    "five labels": (lambda: sf.Logistic([1] * 5, inputs=np.ones((2, 6))), "`labels` must be as many .* 6, but got 5"),
    "nan inputs": (lambda: sf.Logistic([1], inputs=[[np.nan]]), "`inputs` must be finite"),
    "float32 inputs": (lambda: sf.Logistic([1], inputs=np.ones((1, 1), "float32")), "`inputs` must hold float64"),
    "a vector of inputs": (lambda: sf.Logistic([1], inputs=[1.0]), r"`inputs` must be a matrix .*\(1,\)"),
    "half a test": (
        lambda: sf.CrossEntropy([0, 1], test_labels=[0]),
        "`test_inputs, test_labels` must be given both",
    ),
    "a test of outputs": (
        lambda: sf.CrossEntropy([0, 1], test_inputs=[[1.0]], test_labels=[0]),
        "`test_inputs` must come with `inputs`",
    ),
    "other test inputs": (
        lambda: sf.CrossEntropy([0, 1], inputs=np.eye(2), test_inputs=np.ones((3, 1)), test_labels=[0]),
        "`test_inputs` must have 2 rows",
    ),
    "test labels too large": (
        lambda: sf.CrossEntropy([0, 1], inputs=np.eye(2), test_inputs=np.eye(2), test_labels=[0, 2]),
        "`test_labels` must lie below num_classes = 2",
    ),
    "one class": (lambda: sf.CrossEntropy([0, 0], np.int64(1)), "`num_classes` must be an integer >= 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
