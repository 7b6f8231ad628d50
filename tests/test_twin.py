"""Escapes that rounding decides: the run stays at the saddle, and says so."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.flow.model_twin import has_symmetry
from saddleflow.flow.models import landscape_of

TARGET = np.diag([-20.0, -10, 8, 4])
BASIS = np.array([[1, 1, 1, 0], [1, -1, 0, 1], [-1, 0, 1, 1], [0, 1, -1, 1]]) / np.sqrt(3)
# Equal symmetric layers stay so, A = W^3 stays positive: -20 and -10 are never learned.
EQUAL = sf.DeepLinearNetwork([1e-3 * jnp.eye(4)] * 3)


def cost(basis):
    return sf.MeanSquaredError(2 * np.eye(4), 2 * basis @ TARGET @ basis.T)


def test_graded_coordinates_do_not_leave_a_saddle_on_rounding():
    """The exact flow stays at C = 516 for a while and ends at C = 500 like 1/t; the solver goes on to C = 0.

    At which of the two rounding shows depends on the roundings.
    """
    run = sf.gradient_flow(cost(np.eye(4)), EQUAL, progress=False)
    assert run.stop_reason == "below_resolution"
    last = run.train_cost[-1] < 510
    np.testing.assert_allclose(run.train_cost[-1], 500 if last else 516, rtol=1e-9)
    np.testing.assert_allclose(run.end_to_end[-1], np.diag([0, 0, 8, 4 if last else 0]), atol=1e-6)
    np.testing.assert_allclose(run.network.end_to_end(), run.end_to_end[-1], atol=1e-12)
    assert [visit.rank for visit in run.saddles(stationary_points=False)] == ([0, 1] if last else [0])
    assert len(run.time) == len(run.train_cost) == len(run.clock.time)


def test_plain_coordinates_keep_a_symmetry_that_zeros_protect():
    run = sf.gradient_flow(cost(np.eye(4)), EQUAL, graded=False, progress=False)
    assert run.stop_reason == "stationary_saddle"
    np.testing.assert_allclose(run.train_cost[-1], 500, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("graded", [None, False])
def test_in_a_rotated_basis_nothing_protects_it(graded):
    """The first direction is learned as the exact flow learns it; what follows is rounding in any coordinates."""
    run = sf.gradient_flow(cost(BASIS), EQUAL, graded=graded, progress=False, max_steps=12_000)
    assert run.stop_reason == "below_resolution"
    np.testing.assert_allclose(run.train_cost[-1], 516, rtol=1e-4)


@pytest.mark.slow
def test_asked_times_end_at_the_saddle_too():
    times = [1.0, 60.0, 100.0, 1e4, 1e15]
    run = sf.gradient_flow(cost(np.eye(4)), EQUAL, save_at=times, progress=False)
    assert run.stop_reason == "below_resolution"
    assert len(run.time) in (2, 4)  # up to C = 516, or to C = 500
    np.testing.assert_array_equal(run.time, times[: len(run.time)])


@pytest.mark.parametrize("alpha", [1e-2, 1e-6])
def test_balanced_starts_of_full_rank_are_resolved(alpha):
    task = sf.MatrixCompletion.random(jax.random.key(1), shape=(5, 5), rank=3, observed=1.0)
    matrix = alpha**3 * jax.random.normal(jax.random.key(11), (5, 5))
    run = sf.gradient_flow(task, sf.balanced(matrix, depth=3, width=5), rtol=1e-4, progress=False)
    assert run.stop_reason == "converged"
    assert len(run.saddles(stationary_points=False)) == 3


class Tanh(eqx.Module):
    """Two layers of four neurons."""

    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        return self.a @ jnp.tanh(self.w @ x)


SIGNS = np.array([1.0, -1.0, 1.0, 1.0])
W, B = (1e-3 * np.random.default_rng(seed).standard_normal(size) for seed, size in ((1, (1, 6)), (2, (3, 1))))


def teach():
    """A teacher whose second direction breaks the symmetry of neurons that are equal up to signs."""
    rng = np.random.default_rng(0)
    rows, columns = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in (6, 3))
    inputs = rng.standard_normal((200, 6))
    targets = np.tanh(inputs @ rows[:3].T) @ (columns * [4.0, 1.5, 0.5]).T
    return inputs, sf.regression(lambda model, x: model(x), inputs, targets)


@pytest.mark.parametrize("save_at", [None, [1.0, 10.0, 1e3]])
def test_neurons_that_are_equal_up_to_signs_part_on_rounding_only(save_at):
    inputs, objective = teach()
    model = Tanh(jnp.asarray(SIGNS[:, None] * W), jnp.asarray(SIGNS * B))
    run = sf.gradient_flow(objective, model, t1=1e3, save_at=save_at, progress=False, save_networks=True)
    # where sums are rounded alike for all neurons the run stays by itself
    assert run.stop_reason in ("below_resolution", "t1")
    lengths = np.linalg.norm(run.model.w, axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-2)
    assert len(run.time) == len(run.outputs) == len(run.train_cost) == len(run.clock.time) == len(run.models.w)
    if save_at is None:
        np.testing.assert_allclose(run.outputs[-1], jax.vmap(run.model, out_axes=1)(inputs), rtol=1e-9)


def test_symmetric_starts_of_models_are_told():
    objective = sf.regression(lambda model, x: model(x), np.ones((2, 6)), np.ones((2, 3)))
    rng = np.random.default_rng(0)
    w, a = rng.standard_normal((4, 6)), rng.standard_normal((3, 4))
    doubled = w.copy()
    doubled[3] = -w[1]
    for first, second, symmetric in (
        (w, a, False),
        (w, np.zeros((3, 4)), False),
        (doubled, a, True),
        (SIGNS[:, None] * W, SIGNS * B, True),
        (w, np.ones((3, 4)), True),
    ):
        model = Tanh(jnp.asarray(first), jnp.asarray(second))
        landscape, theta = landscape_of(
            objective, model, trainable=eqx.is_inexact_array, preconditioner="none", symmetric=False
        )
        assert has_symmetry(landscape, theta) == symmetric


def test_a_valley_that_rounding_leaves_is_run_as_far_as_it_is_resolved():
    """Of [[., 1], [1, 0]] from a balanced start of positive determinant the free entry grows without end, slowly.

    The flow keeps the sign of the determinant; rounding lets it change, late, at a cost that no saddle fixes.
    """
    cost = sf.MatrixCompletion(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[False, True], [True, True]]))
    start = sf.balanced(8e-3**2 * np.array([[1.0, 0.5], [-0.3, 0.8]]), depth=2, width=2)
    run = sf.gradient_flow(cost, start, target_cost=6.7e-5, progress=False)
    assert run.stop_reason == "below_resolution"
    assert run.time[-1] > 100
    assert run.train_cost[-1] < 0.01
    assert run.singular_values[-1, 1] < 1e-4 * run.singular_values[-1, 0]
