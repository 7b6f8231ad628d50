"""Flows of any model against other integrators, closed forms, conservation laws and symmetries."""

import diffrax
import jax
import jax.numpy as jnp
import model_problems as problems
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.flow.arguments import STIFF

TIMES = np.geomspace(1e-2, 60, 12)
# What agrees with exact solutions, in units of rtol.
EXACT = 10


def plain_regression(model):
    predictions = jax.vmap(model)(problems.INPUTS)
    return jnp.mean(jnp.sum((predictions - problems.TARGETS) ** 2, axis=1))


def plain_classification(model):
    logits = jax.vmap(model)(problems.INPUTS)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), problems.LABELS])


def solve(objective, model, **options):
    return sf.gradient_flow(objective, model, progress=False, **options)


@pytest.fixture(scope="module")
def expected_regression():
    return problems.by_dop853(plain_regression, problems.tanh_net(), TIMES)


@pytest.mark.parametrize("preconditioner", ["gauss_newton", "hessian", "none"])
def test_stiff_steps_follow_the_flow_with_every_preconditioner(preconditioner, expected_regression):
    found = {}
    for rtol in (1e-4, 1e-6, 1e-8):
        trajectory = solve(
            problems.regression(),
            problems.tanh_net(),
            rtol=rtol,
            save_at=TIMES,
            save_networks=True,
            solver=STIFF,
            preconditioner=preconditioner,
        )
        assert trajectory.stats["preconditioner"] == preconditioner
        found[rtol] = max(problems.errors(trajectory, expected_regression))
        assert found[rtol] < EXACT * rtol
    assert found[1e-4] > 10 * found[1e-6] > 100 * found[1e-8]


def test_the_default_follows_the_flow(expected_regression):
    for rtol in (1e-4, 1e-6, 1e-8):
        trajectory = solve(problems.regression(), problems.tanh_net(), rtol=rtol, save_at=TIMES, save_networks=True)
        assert trajectory.stats["preconditioner"] == "gauss_newton"
        assert max(problems.errors(trajectory, expected_regression)) < EXACT * rtol
        np.testing.assert_allclose(trajectory.train_cost[-1], plain_regression(trajectory.model), rtol=1e-12)


def test_a_classification_follows_the_flow():
    model = problems.tanh_net(3)
    expected = problems.by_dop853(plain_classification, model, TIMES)
    objective = sf.classification(problems.apply, problems.INPUTS, problems.LABELS)
    for rtol in (1e-4, 1e-6, 1e-8):
        trajectory = solve(objective, model, rtol=rtol, save_at=TIMES, save_networks=True, solver=STIFF)
        assert trajectory.stats["preconditioner"] == "gauss_newton"
        assert max(problems.errors(trajectory, expected)) < EXACT * rtol


def test_a_bare_loss_follows_the_flow(expected_regression):
    for rtol in (1e-4, 1e-6, 1e-8):
        trajectory = solve(
            plain_regression, problems.tanh_net(), rtol=rtol, save_at=TIMES, save_networks=True, solver=STIFF
        )
        assert trajectory.stats["preconditioner"] == "hessian"
        assert trajectory.outputs is None
        assert problems.errors(trajectory, expected_regression)[0] < EXACT * rtol


@pytest.mark.parametrize("kind", ["explicit", "weight decay"])
def test_other_solvers_and_regularisers(kind):
    decay = None if kind == "explicit" else sf.weight_decay(0.1)
    solver = {"explicit": diffrax.Dopri8(), "weight decay": STIFF}[kind]
    size = 0.0 if decay is None else 0.1

    def loss(model):
        theta, _ = problems.vector(model)
        return plain_regression(model) + size / 2 * jnp.sum(theta**2)

    expected = problems.by_dop853(loss, problems.tanh_net(), TIMES)
    trajectory = solve(
        problems.regression(regulariser=decay),
        problems.tanh_net(),
        save_at=TIMES,
        save_networks=True,
        solver=solver,
    )
    assert max(problems.errors(trajectory, expected)) < EXACT * 1e-6
