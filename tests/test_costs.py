import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import costs

import saddleflow as sf

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["completion", "mse", "teacher", "huber"])
def test_gradient_is_the_derivative(name):
    @eqx.filter_jit
    def both(cost, matrix):
        return cost.gradient(matrix), jax.grad(lambda a: cost(a))(matrix)

    cost = costs()[name]
    ours, expected = both(cost, jax.random.normal(jax.random.key(9), cost.shape))
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["completion", "mse", "teacher", "huber"])
def test_cost_is_convex_along_lines(name):
    cost = costs()[name]
    a, b = jax.random.normal(jax.random.key(3), (2, *cost.shape))
    middle = cost((a + b) / 2)
    assert middle <= (cost(a) + cost(b)) / 2


def test_completion_normalisation():
    target = np.arange(6.0).reshape(2, 3)
    observed = np.array([[True, False, True], [True, True, False]])
    cost = sf.MatrixCompletion(target, observed)
    off = jnp.asarray(target) + jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert float(cost(off)) == pytest.approx((1 + 9 + 16 + 25) / 4)
    assert float(cost.test(off)) == pytest.approx((4 + 36) / 2)


def test_completion_random_has_the_rank_and_share():
    cost = sf.MatrixCompletion.random(KEY, shape=(10, 8), rank=3, observed=0.8)
    assert np.linalg.matrix_rank(cost.target) == 3
    assert int(cost.observed.sum()) == 64
    assert cost.shape == (10, 8)


def test_random_tasks_vmap():
    def value(key):
        return sf.MatrixCompletion.random(key, shape=(3, 3), rank=1)(jnp.zeros((3, 3)))

    values = jax.jit(jax.vmap(value))(jax.random.split(KEY, 5))
    lone = sf.MatrixCompletion.random(jax.random.split(KEY, 5)[3], shape=(3, 3), rank=1)
    assert float(values[3]) == pytest.approx(float(lone(jnp.zeros((3, 3)))), rel=1e-12)


@pytest.mark.parametrize("samples", [2, 3, 500])
def test_mean_squared_error_equals_the_sum_over_samples(samples):
    draw = np.random.default_rng(samples).standard_normal
    inputs, outputs, matrix = draw((3, samples)), draw((4, samples)), draw((4, 3))
    expected = np.sum((matrix @ inputs - outputs) ** 2) / samples
    assert float(sf.MeanSquaredError(inputs, outputs)(matrix)) == pytest.approx(expected, rel=1e-12)


def test_teacher_is_the_squared_distance():
    teacher, matrix = jax.random.normal(jax.random.key(1), (2, 4, 3))
    cost = sf.MeanSquaredError.teacher(teacher)
    assert float(cost(matrix)) == pytest.approx(float(jnp.sum((matrix - teacher) ** 2)), rel=1e-12)
    assert not cost.has_test


def test_random_samples_come_from_the_teacher():
    teacher = jax.random.normal(jax.random.key(1), (4, 3))
    cost = sf.MeanSquaredError.random(KEY, teacher=teacher, num_samples=50, num_test_samples=20)
    assert float(cost(teacher)) < 1e-25
    assert float(cost.test(teacher)) < 1e-25
    noisy = sf.MeanSquaredError.random(KEY, teacher=teacher, num_samples=4000, noise=0.1)
    assert float(noisy(teacher)) == pytest.approx(4 * 0.01, rel=0.1)


TARGET = np.ones((2, 2))
SEEN = np.array([[True, True], [True, False]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: sf.MatrixCompletion(np.array([[1.0, np.nan], [1, 1]]), SEEN),
            r"`target` must be finite.*nan.*\(0, 1\)",
        ),
        (lambda: sf.MatrixCompletion(np.array([[np.inf, 1.0], [1, 1]]), SEEN), "`target` must be finite"),
        (lambda: sf.MatrixCompletion(np.array([[1.0, 1], [1, np.nan]]), SEEN), "`read_matrix`"),
        (lambda: sf.MatrixCompletion(TARGET, np.zeros((2, 2), bool)), "`observed` must mark at least one entry"),
        (lambda: sf.MatrixCompletion(TARGET, np.ones((3, 2), bool)), r"`observed` must have the target's shape"),
        (lambda: sf.MatrixCompletion(TARGET, np.ones((2, 2))), "`observed` must hold booleans"),
        (lambda: sf.MatrixCompletion(TARGET, SEEN, SEEN), "`held_out` must share no entry"),
        (lambda: sf.MatrixCompletion(TARGET.astype("float32"), SEEN), "`target` must hold float64.*float32"),
        (lambda: sf.MatrixCompletion(TARGET.astype(int), SEEN), "`target` must hold float64.*int64"),
        (lambda: sf.MatrixCompletion.random(KEY, rank=0), "`rank` must be an integer >= 1, but got 0"),
        (lambda: sf.MatrixCompletion.random(KEY, shape=(2, 5), rank=3), "`rank` must be at most"),
        (lambda: sf.MatrixCompletion.random(KEY, observed=0.0), "`observed` must be a share"),
        (lambda: sf.MatrixCompletion.random(KEY, observed=1.5), "`observed` must be a share"),
        (lambda: sf.MatrixCompletion.random(KEY, observed=0.001), "leave at least one observed"),
        (lambda: sf.MeanSquaredError(np.ones((2, 3)), np.ones((2, 4))), "`outputs` must hold 3 samples"),
        (lambda: sf.MeanSquaredError(np.ones((2, 0)), np.ones((2, 0))), "`inputs` must hold at least one sample"),
        (lambda: sf.MeanSquaredError(np.full((2, 3), np.nan), np.ones((2, 3))), "`inputs` must be finite"),
        (lambda: sf.MeanSquaredError(TARGET, TARGET, TARGET), "both or neither"),
        (
            lambda: sf.MeanSquaredError(TARGET, TARGET, np.ones((3, 1)), np.ones((2, 1))),
            "`test_inputs, test_outputs`",
        ),
        (
            lambda: sf.MeanSquaredError.random(KEY, teacher=TARGET, noise=-1.0),
            "`noise` must be finite and not negative",
        ),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_test_cost_without_test_set():
    full = sf.MatrixCompletion(TARGET, np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="hold out entries"):
        full.test(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="no test set"):
        sf.MeanSquaredError.teacher(TARGET).test(jnp.ones((2, 2)))


def test_centered_completion():
    """The mean is that of the observed entries; entries in neither set stay aside."""
    target = np.array([[1.0, 2.0], [3.0, 9.0]])
    observed, held_out = np.array([[True, False], [True, False]]), np.array([[False, True], [False, False]])
    cost, mean = sf.MatrixCompletion(target, observed, held_out).centered()
    assert mean == 2.0
    np.testing.assert_array_equal(cost.target, [[-1, 0], [1, 0]])
    zero = np.zeros((2, 2))
    assert float(cost(zero)) == 1.0
    assert float(cost.test(zero)) == 0.0
