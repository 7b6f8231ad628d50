"""Why runs end, where a wrong word would be easily said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf

QUIET = {"progress": False}


def run_away():
    """Completion 2x2 with zeros on the diagonal, one not observed: from a positive determinant A00 has to grow."""
    return sf.MatrixCompletion(np.array([[0.0, 1], [1, 0]]), np.array([[False, True], [True, True]]))


def rank_one(depth):
    return sf.balanced(jnp.array(5e-4 * np.ones((2, 2))), depth=depth, width=2)


class Separable(sf.Cost):
    """The exponential loss of points that a line separates."""

    points: jax.Array

    @property
    def shape(self):
        return (1, self.points.shape[0])

    def __call__(self, matrix):
        return jnp.mean(jnp.exp(-matrix @ self.points))

    def test(self, matrix):
        return self(matrix)


class Quartic(sf.Cost):
    """A minimum that flows approach as slowly as t^-1/2."""

    target: jax.Array

    @property
    def shape(self):
        return self.target.shape

    def __call__(self, matrix):
        return jnp.sum((matrix - self.target) ** 4)

    def test(self, matrix):
        return self(matrix)


@pytest.mark.parametrize("depth", [2, 3, 4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_flow_without_a_minimum_diverges(depth):
    run = sf.gradient_flow(run_away(), rank_one(depth), **QUIET)
    assert run.stop_reason == "diverges"
    assert run.end_to_end[-1, 0, 0] > 1e3
    assert run.train_cost[-1] < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "tolerance"), [(6, 1e-6), (2, 1e-9), (3, 1e-9), (4, 1e-9)])
def test_forces_below_rounding_are_no_rest_while_the_flow_moves(depth, tolerance):
    run = sf.gradient_flow(run_away(), rank_one(depth), gradient_tolerance=tolerance, **QUIET)
    assert run.stop_reason == "diverges"


@pytest.mark.parametrize("tolerance", [1e-4, 1e-10])
def test_separable_data_diverge(tolerance):
    cost = Separable(jnp.array([[1.0, 0.5, 2.0], [0.3, 1.0, -0.2]]))
    start = sf.gaussian(jax.random.key(0), depth=2, width=3, shape=(1, 2), variance=0.1)
    assert sf.gradient_flow(cost, start, gradient_tolerance=tolerance, **QUIET).stop_reason == "diverges"


@pytest.mark.parametrize("tolerance", [1e-4, 1e-9])
def test_slow_convergence_is_convergence(tolerance):
    cost = Quartic(jnp.array([[1.0, -0.4], [0.2, 0.7]]))
    start = sf.gaussian(jax.random.key(0), depth=2, width=3, shape=(2, 2), variance=0.1)
    assert sf.gradient_flow(cost, start, gradient_tolerance=tolerance, **QUIET).stop_reason == "converged"


@pytest.mark.parametrize("num_samples", [8, 30])
def test_an_ill_conditioned_regression_does_not_diverge(num_samples):
    """Weak directions of the inputs are still growing when the gradient is small already."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(12, num_samples)) * np.logspace(0, -4, 12)[:, None]
    outputs = draw.normal(size=(3, 12)) @ inputs + 0.01 * draw.normal(size=(3, num_samples))
    start = sf.gaussian(jax.random.key(2), depth=2, width=12, shape=(3, 12), variance=0.01)
    run = sf.gradient_flow(sf.MeanSquaredError(inputs, outputs), start, rtol=1e-4, **QUIET)
    assert run.stop_reason == "converged"


def diagonal_task():
    cost = sf.MeanSquaredError(jnp.eye(3), jnp.diag(jnp.array([1, 0.6, 0.3])))
    return cost, sf.DeepLinearNetwork([jnp.diag(jnp.array([0.01, 0.02, 0.03])), 7 * jnp.eye(3)])


def test_rest_on_the_minimum_is_convergence():
    cost, start = diagonal_task()
    run = sf.gradient_flow(cost, start, rtol=1e-8, gradient_tolerance=1e-13, **QUIET)
    assert run.stop_reason == "converged"
    end = sf.balanced(jnp.array([[1.1, 0.3], [-0.7, 0.9]]), depth=3, width=2)
    certified = sf.gradient_flow(
        sf.MeanSquaredError.teacher(np.asarray(end.end_to_end())), end, gradient_tolerance=1e-13, **QUIET
    )
    assert certified.stop_reason == "converged"
    assert certified.stats["num_steps"] == 0


def test_asked_times_after_rest_are_rows():
    cost, start = diagonal_task()
    run = sf.gradient_flow(cost, start, rtol=1e-8, save_at=[0.0, 1, 2, 3, 4, 5], save_networks=True, **QUIET)
    assert run.stop_reason == "t1"
    np.testing.assert_array_equal(run.time, [0, 1, 2, 3, 4, 5])
    np.testing.assert_allclose(run.end_to_end[2:], np.broadcast_to(np.diag([1, 0.6, 0.3]), (4, 3, 3)), atol=1e-12)
    np.testing.assert_array_equal(run.networks.layers[0][-1], run.network.layers[0])
    flow = sf.integrate(cost, start, rtol=1e-8, save_at=jnp.array([0.0, 1, 2, 3, 4, 5]))
    assert (int(flow.num_rows), int(flow.stop_reason), float(flow.end_time)) == (6, sf.StopReason.t1, 5.0)


@pytest.mark.parametrize("graded", [False, True])
def test_asked_times_on_a_saddle_are_rows(graded):
    cost = sf.MeanSquaredError.teacher(np.diag([2.0, 1.0]))
    saddle = sf.balanced(jnp.diag(jnp.array([2.0, 0.0])), depth=3, width=3)
    run = sf.gradient_flow(cost, saddle, save_at=[1.0, 1e3, 1e30], graded=graded, **QUIET)
    assert run.stop_reason == "t1"
    np.testing.assert_array_equal(run.time, [1.0, 1e3, 1e30])
    np.testing.assert_allclose(run.end_to_end, np.broadcast_to(np.diag([2.0, 0]), (3, 2, 2)), atol=1e-14)


@pytest.mark.parametrize("seed", [13, 16])
@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_layers_of_very_different_sizes_are_solved(seed, scale):
    """A small layer between huge ones: a change within its tolerance is a large one of A."""
    cost = sf.MatrixCompletion.random(jax.random.key(3), shape=(1, 5), rank=1, observed=0.8)
    first, second, last = sf.gaussian(jax.random.key(seed), depth=3, width=2, shape=(1, 5), variance=1.0).layers
    start = sf.DeepLinearNetwork([scale * first, scale * second, 3 * last])
    run = sf.gradient_flow(cost, start, **QUIET)
    assert run.stop_reason == "converged"
    assert run.stats["num_steps"] < 300


class LogCosh(sf.Cost):
    """Flat far from its minimum: there its curvature is rounding."""

    target: jax.Array

    @property
    def shape(self):
        return self.target.shape

    def __call__(self, matrix):
        return jnp.sum(jnp.logaddexp(matrix - self.target, self.target - matrix))

    def test(self, matrix):
        return self(matrix)


def test_a_cost_that_is_flat_at_the_start_is_not_refused():
    start = sf.gaussian(jax.random.key(0), depth=2, width=3, shape=(2, 3), variance=2e3)
    run = sf.gradient_flow(LogCosh(jnp.ones((2, 3))), start, t1=1.0, **QUIET)
    assert run.stop_reason in ("t1", "converged")


class DoubleWell(sf.Cost):
    """Not convex: a second minimum, above the lowest."""

    @property
    def shape(self):
        return 1, 1

    def __call__(self, matrix):
        return jnp.sum((matrix**2 - 1) ** 2 + 0.5 * matrix)


@pytest.mark.parametrize("cost", [DoubleWell(), 0.5 * (2.0 * DoubleWell())])
def test_a_cost_that_is_not_convex_is_refused(cost):
    start = sf.balanced(np.array([[0.5]]), depth=2, width=1)
    with pytest.raises(ValueError, match=r"`cost` must be convex in the matrix.*function of the model"):
        sf.gradient_flow(cost, start)
    with pytest.raises(ValueError, match="`cost` must be convex"):
        sf.sweep(cost, depth=2, width=2, seed=0, progress=False)
    run = sf.gradient_flow(lambda network: DoubleWell()(network.end_to_end()), start, progress=False)
    assert run.stop_reason == "stationary"
