"""Flows of any model against other integrators, closed forms, conservation laws and symmetries."""

import itertools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import model_problems as problems
import numpy as np
import pytest
import scipy
from problems import completion, rows

import saddleflow as sf
from saddleflow.flow.arguments import STIFF
from saddleflow.flow.models import landscape_of
from saddleflow.problem.objective import BareLoss

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


def product(model):
    """The end-to-end matrix of layers in a list."""
    matrix = model[0]
    for layer in model[1:]:
        matrix = layer @ matrix
    return matrix


@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_linear_net_is_a_deep_linear_network(depth):
    cost = completion()
    network = sf.gaussian(jax.random.key(2), depth=depth, width=6, shape=(4, 4), gamma=1.5)
    times = rows(np.geomspace(0.1, 300, 10))
    expected = sf.gradient_flow(cost, network, save_at=times, save_networks=True, progress=False)
    found = solve(sf.Objective(cost, product), list(network.layers), save_at=times, save_networks=True)
    off = np.linalg.norm(found.outputs - expected.end_to_end, axis=(1, 2))
    assert np.all(off < EXACT * 1e-6 * np.linalg.norm(expected.end_to_end, axis=(1, 2)))
    np.testing.assert_allclose(np.sqrt(found.train_cost), np.sqrt(expected.train_cost), rtol=0, atol=EXACT * 1e-6)
    size = 0.2 * float(expected.network.layers[0].std())
    for layer, other in zip(found.models, expected.networks.layers, strict=True):
        assert np.max(np.abs(layer - other) / (np.abs(other) + size)) < 2 * EXACT * 1e-6


def test_weight_decay_balances_exponentially():
    # the data's part of d/dt (W2^T W2 - W1 W1^T) cancels; the decay's is -2 lambda times it
    model = list(sf.gaussian(jax.random.key(2), depth=2, width=6, shape=(4, 4), gamma=0.5).layers)
    objective = sf.Objective(completion(), product, sf.weight_decay(0.3))
    times = np.linspace(0, 6, 7)
    found = solve(objective, model, rtol=1e-8, save_at=times, save_networks=True).models
    gap = np.einsum("tij,tik->tjk", found[1], found[1]) - np.einsum("tij,tkj->tik", found[0], found[0])
    expected = np.exp(-0.6 * times)[:, None, None] * gap[0]
    assert np.max(np.abs(gap - expected)) < EXACT * 1e-8 * np.linalg.norm(gap[0])
    assert np.linalg.norm(gap[0]) > 1


@pytest.mark.parametrize("depth", [2, 3])
def test_weight_decay_of_a_network_is_a_schatten_penalty(depth):
    """The least of `C(A) + strength depth / 2 sum_i s_i^(2 / depth)` (arXiv 2106.15933), here of a teacher."""
    teacher = np.array([[2.0, 0.3, 0.0], [0.1, 1.0, 0.2], [0.0, 0.0, 0.1]])
    cost, strength = sf.MeanSquaredError.teacher(teacher), 0.4
    network = sf.gaussian(jax.random.key(0), depth=depth, width=4, shape=(3, 3), variance=0.5)
    run = solve(sf.Objective(cost, regulariser=sf.weight_decay(strength)), network)
    assert run.stop_reason == "stationary"
    assert isinstance(run.model, sf.DeepLinearNetwork)
    found, (left, strengths, right) = run.outputs[-1], np.linalg.svd(teacher)
    values = np.linalg.svd(found, compute_uv=False)
    penalised = float(cost(found)) + strength * depth / 2 * np.sum(values ** (2 / depth))
    assert float(run.train_cost[-1]) == pytest.approx(penalised, rel=1e-6)
    if depth == 2:  # soft thresholds
        expected = left * np.maximum(strengths - strength / 2, 0) @ right
        np.testing.assert_allclose(found, expected, atol=1e-8)
    else:  # the same singular vectors, 2 (s - s*) + strength s^(-1/3) = 0, and nothing of the third
        np.testing.assert_allclose(left.T @ found @ right.T, np.diag(values), atol=1e-8)
        np.testing.assert_allclose(2 * (values - strengths)[:2], -strength * values[:2] ** (-1 / 3), rtol=1e-8)
        assert values[2] < 1e-8


@pytest.mark.parametrize("seed", [0, 1])
def test_directions_that_decay_to_nothing_keep_no_run_going(seed):
    """The third direction decays to rounding, and would never rest by its own size."""
    cost = sf.MeanSquaredError.teacher(np.diag([2.0, 1.0, 0.1]))
    network = sf.gaussian(jax.random.key(seed), depth=2, width=4, shape=(3, 3), variance=0.5)
    run = solve(sf.Objective(cost, regulariser=sf.weight_decay(0.4)), network, max_steps=1000)
    assert run.stop_reason == "stationary"
    np.testing.assert_allclose(np.linalg.svd(run.outputs[-1], compute_uv=False), [1.8, 0.8, 0.0], atol=1e-9)


def test_outputs_of_what_is_no_network():
    with pytest.raises(ValueError, match=r"`model` must be a deep linear network, but got 'dict'.*sf\.Objective\("):
        sf.Objective(completion())({"w": jnp.ones(3)})
    network = sf.gaussian(jax.random.key(0), depth=2, width=3, shape=(4, 4), variance=0.5)
    objective = sf.Objective(completion())
    assert float(objective(network)) == pytest.approx(float(completion()(network.end_to_end())), rel=1e-14)
    assert float(objective.test(network)) == pytest.approx(float(completion().test(network.end_to_end())), rel=1e-14)


def square_of(u, x):
    return u**2 * x


@pytest.mark.parametrize("start", [pytest.param(1e-2, marks=pytest.mark.slow), 1e-8, 1e-14])
def test_a_square_grows_by_the_logistic_law(start):
    # f = u^2 and C = (f - 1)^2: f' = 8 f (1 - f)
    escape = np.log(1 / start**2 - 1) / 8
    times = escape * np.array([0.25, 0.5, 0.9, 1.0, 1.1, 1.5])
    found = solve(sf.regression(square_of, jnp.ones(1), jnp.ones(1)), jnp.asarray(start), save_at=times)
    odds = (1 / start**2 - 1) * np.exp(-8 * times)
    np.testing.assert_allclose(found.outputs[:, 0, 0], 1 / (1 + odds), rtol=EXACT * 1e-6)


def diagonal(model, x):
    return jnp.sum((model["u"] ** 2 - model["v"] ** 2) * x)


FEW = jnp.array([[1, 0.5, 0.7, 0], [0.5, 1, 0.1, 0.7]]), jnp.array([1.0, 0.0])


def mirror_end(alpha):
    """The interpolator that the hyperbolic entropy prefers: `beta = 2 alpha^2 sinh(X^T nu)`, by continuation."""
    x, y = (np.asarray(array) for array in FEW)
    nu = np.zeros(2)
    for here in np.geomspace(1.0, alpha, 1 + int(20 * abs(np.log10(alpha)))):
        # by Newton's method on the strictly convex dual
        for _ in range(30):
            z = x.T @ nu
            residual = x @ (2 * here**2 * np.sinh(z)) - y
            nu = nu - np.linalg.solve((x * (2 * here**2 * np.cosh(z))) @ x.T, residual)
    assert np.linalg.norm(residual) < 1e-12
    return 2 * alpha**2 * np.sinh(x.T @ nu)


@pytest.mark.parametrize("alpha", [pytest.param(1e-1, marks=pytest.mark.slow), 1e-3, 1e-6, 1e-12])
def test_diagonal_networks_follow_the_hyperbolic_entropy(alpha):
    start = {"u": jnp.full(4, alpha), "v": jnp.full(4, alpha)}
    end = solve(sf.regression(diagonal, *FEW), start, gradient_tolerance=1e-10)
    assert end.stop_reason == "converged"
    u, v = end.model["u"], end.model["v"]
    np.testing.assert_allclose(u * v, alpha**2, rtol=1e-4)  # conserved
    np.testing.assert_allclose(u**2 - v**2, mirror_end(alpha), rtol=1e-5, atol=1e-5)
    if alpha == 1e-3:
        tighter = solve(sf.regression(diagonal, *FEW), start, gradient_tolerance=1e-10, rtol=1e-9).model
        np.testing.assert_allclose(tighter["u"] * tighter["v"], alpha**2, rtol=EXACT * 1e-9)
        np.testing.assert_allclose(tighter["u"] ** 2 - tighter["v"] ** 2, mirror_end(alpha), atol=EXACT * 1e-9)


def test_small_starts_of_diagonal_networks_tend_to_the_least_l1_norm():
    # The dual is degenerate: beta = (0, 0, 10/7, -10/49) has the least l1 norm, and the flow nears it as a power.
    limit = np.array([0, 0, 10 / 7, -10 / 49])
    off = []
    for alpha in (1e-6, 1e-12, 1e-24, 1e-36):
        start = {"u": jnp.full(4, alpha), "v": jnp.full(4, alpha)}
        end = solve(sf.regression(diagonal, *FEW), start, gradient_tolerance=1e-10).model
        off.append(np.linalg.norm(end["u"] ** 2 - end["v"] ** 2 - limit))
    assert off[0] > 2 * off[1] > 4 * off[2] > 8 * off[3]
    assert off[3] < 1e-5


@pytest.mark.parametrize("save_at", [None, np.array([1000.0])])
def test_tiny_starts_are_not_taken_for_rest(save_at):
    # At the first saddle the gradient is rounding, but for an entry of 1e-14 that grows on.
    start = {"u": jnp.full(4, 1e-48), "v": jnp.full(4, 1e-48)}
    end = solve(sf.regression(diagonal, *FEW), start, gradient_tolerance=1e-10, save_at=save_at)
    assert end.train_cost[-1] < 1e-15


def test_neurons_may_be_renamed(expected_regression):
    model, order = problems.tanh_net(), np.array([2, 0, 3, 1])

    def renamed(model):
        first, second = model.layers
        return eqx.tree_at(
            lambda m: (m.layers[0].weight, m.layers[0].bias, m.layers[1].weight),
            model,
            (first.weight[order], first.bias[order], second.weight[:, order]),
        )

    options = {"save_at": TIMES, "save_networks": True, "solver": STIFF}
    found = solve(problems.regression(), renamed(model), **options)
    expected = solve(problems.regression(), model, **options)
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=EXACT * 1e-6)
    weight = expected.models.layers[0].weight[:, order]
    np.testing.assert_allclose(found.models.layers[0].weight, weight, rtol=EXACT * 1e-6, atol=1e-6)


def quadratic(model, x):
    return model["a"] @ (model["w"] @ x) ** 2


def test_homogeneous_layers_conserve_their_balance():
    # of degree 2 in w_i and 1 in a_i: |w_i|^2 - 2 a_i^2
    w, a = jax.random.normal(jax.random.key(4), (3, 2)), jnp.array([0.1, -0.5, 1.0])
    objective = sf.regression(quadratic, problems.INPUTS, problems.TARGETS[:, 0])
    for rtol in (1e-6, 1e-9):
        run = solve(objective, {"w": w, "a": a}, rtol=rtol, save_at=TIMES, save_networks=True, solver=STIFF)
        balance = np.sum(run.models["w"] ** 2, axis=2) - 2 * run.models["a"] ** 2
        expected = np.sum(w**2, axis=1) - 2 * a**2
        assert np.max(np.abs(balance - expected)) < EXACT * rtol * np.max(np.abs(expected))
        assert run.train_cost[-1] < 0.9 * run.train_cost[0]


def tanh_units(model, x):
    return model["a"] @ jnp.tanh(model["w"] @ x)


@pytest.mark.slow
def test_plateaus_of_a_nonlinear_net_end_in_time():
    def loss(model):
        predictions = jax.vmap(lambda x: tanh_units(model, x))(problems.INPUTS)
        return jnp.mean((predictions - target) ** 2)

    target = problems.INPUTS @ jnp.array([2.0, 0.5])
    w, a = jax.random.normal(jax.random.key(4), (3, 2)), jnp.array([0.1, -0.5, 1.0])
    model = {"w": 1e-4 * w, "a": 1e-4 * a}
    objective = sf.regression(tanh_units, problems.INPUTS, target)
    run = solve(objective, model, save_networks=True, save_at=np.linspace(0, 8, 33))
    expected = problems.by_dop853(loss, model, run.time[1:])
    expected = np.concatenate([run.saved_parameters[:1], expected])
    entries, outputs = problems.errors(run, expected)
    assert max(entries, outputs) < EXACT * 1e-6
    # the time of half the drop is the one of the exact solution
    free = solve(objective, model, t1=8.0)
    visit, *later = free.saddles(stationary_points=False)
    bottom = later[0].cost if later else free.train_cost[-1]
    fine = np.linspace(visit.escape_time - 0.05, visit.escape_time + 0.05, 9)
    back = problems.vector(model)[1]
    costs = [float(loss(back(jnp.asarray(flat)))) for flat in problems.by_dop853(loss, model, fine)]
    escape = np.interp(-(visit.cost + bottom) / 2, -np.array(costs), fine)
    assert visit.enter == 0
    assert visit.escape_time == pytest.approx(escape, rel=1e-4)


ACTIVATIONS = {"tanh": jnp.tanh, "quadratic": lambda z: z + z**2}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_escapes_from_a_start_of_1e_6_come_in_time(name):
    """Against DOP853 at 1e-12: where the loss is half-way down between two plateaus.

    Rows within steps, since the time is found between rows.
    """
    rng = np.random.default_rng(0)
    rows, columns = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in (4, 3))
    inputs, activation = rng.standard_normal((40, 4)), ACTIVATIONS[name]

    def predict(model, x):
        return model["a"] @ activation(model["w"] @ x)

    targets = np.asarray(activation(inputs @ rows[:3].T)) @ (columns * [2.0, 1.0, 0.5]).T
    model = {"w": 1e-6 * rng.standard_normal((5, 4)), "a": 1e-6 * rng.standard_normal((3, 5))}
    objective = sf.regression(predict, inputs, targets)
    flat, back = problems.vector(model)
    slope = jax.jit(jax.grad(lambda theta: objective(back(theta))))
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-19, "dense_output": True}
    exact = scipy.integrate.solve_ivp(lambda t, y: -np.asarray(slope(y)), (0, 40), np.asarray(flat), **options).sol
    loss = jax.jit(lambda theta: objective(back(theta)))
    for rtol in (1e-4, 1e-6):
        run = solve(objective, model, t1=40.0, rtol=rtol, saves_per_step=8)
        visits = run.saddles(stationary_points=False)
        assert len(visits) >= 1
        for visit, after in itertools.pairwise([*visits, None]):
            low, until = (run.train_cost[-1], 40.0) if after is None else (after.cost, after.time)
            half = (visit.cost + low) / 2
            time = scipy.optimize.brentq(lambda t, half=half: float(loss(exact(t))) - half, visit.time, until)
            assert visit.escape_time == pytest.approx(time, rel=EXACT * rtol)


def frozen_first(leaf):
    return eqx.is_inexact_array(leaf) and leaf.shape != (4, 2)


def test_what_is_frozen_stays():
    model = problems.tanh_net()
    found = solve(problems.regression(), model, save_at=TIMES, save_networks=True, trainable=frozen_first)
    np.testing.assert_array_equal(found.model.layers[0].weight, model.layers[0].weight)
    assert found.configuration["num_parameters"] == 9

    def predict(trained, x):
        return trained["second"] @ jnp.tanh(model.layers[0].weight @ x + trained["bias"]) + trained["last"]

    small = {"bias": model.layers[0].bias, "last": model.layers[1].bias, "second": model.layers[1].weight}
    smaller = solve(
        sf.regression(predict, problems.INPUTS, problems.TARGETS), small, save_at=TIMES, save_networks=True
    )
    np.testing.assert_allclose(found.outputs, smaller.outputs, rtol=EXACT * 1e-6)
    np.testing.assert_allclose(found.model.layers[1].weight, smaller.model["second"], rtol=EXACT * 1e-6)
    # a filter by a pytree of booleans does the same
    mask = eqx.tree_at(lambda m: m.layers[0].weight, jax.tree.map(lambda _: True, model), False)
    again = solve(problems.regression(), model, save_at=TIMES, save_networks=True, trainable=mask)
    np.testing.assert_array_equal(again.outputs, found.outputs)


def inner(model, x):
    return model @ x


def test_a_linear_regression_from_zero():
    # from exactly zero: w = H^-1 (1 - exp(-H t)) b
    x, y = np.asarray(problems.INPUTS), np.asarray(problems.TARGETS[:, 0])
    hessian, force = 2 / 6 * x.T @ x, 2 / 6 * x.T @ y
    found = solve(sf.regression(inner, x, y), jnp.zeros(2), save_at=TIMES, save_networks=True)
    for time, w in zip(TIMES, found.models, strict=True):
        expected = np.linalg.solve(hessian, (np.eye(2) - scipy.linalg.expm(-hessian * time)) @ force)
        assert np.linalg.norm(w - expected) < EXACT * 1e-6 * np.linalg.norm(expected)


def test_biases_may_start_at_zero():
    model = problems.tanh_net()
    model = eqx.tree_at(lambda m: [layer.bias for layer in m.layers], model, [jnp.zeros(4), jnp.zeros(1)])
    expected = problems.by_dop853(plain_regression, model, TIMES)
    found = solve(problems.regression(), model, save_at=TIMES, save_networks=True, solver=STIFF)
    assert max(problems.errors(found, expected)) < EXACT * 1e-6


class ScaledNet(eqx.Module):
    """A loss times a number, of a net in other units."""

    factor: jax.Array
    unit: jax.Array

    def __call__(self, model):
        first, second = (layer / self.unit for layer in model)
        predictions = jnp.tanh(problems.INPUTS @ first.T) @ second.T
        return self.factor * jnp.mean((predictions - problems.TARGETS) ** 2)


@pytest.mark.parametrize(("factor", "unit"), [(8.0, 1.0), (2.0**-30, 1.0), (1.0, 4.0), (1.0, 2.0**-20)])
def test_units_of_loss_and_model_are_free(factor, unit):
    start = list(problems.tanh_net().layers)
    model = [start[0].weight, start[1].weight]

    def run(factor, unit):
        loss = ScaledNet(jnp.asarray(factor), jnp.asarray(unit))
        return solve(loss, [unit * layer for layer in model], t1=60 * unit**2 / factor)

    found, expected = run(factor, unit), run(1.0, 1.0)
    assert found.stats["num_steps"] == expected.stats["num_steps"]
    np.testing.assert_allclose(found.time * factor / unit**2, expected.time, rtol=1e-12)
    np.testing.assert_allclose(found.train_cost / factor, expected.train_cost, rtol=1e-12)


@pytest.mark.parametrize(
    ("loss", "size", "expected"),
    [
        ("bare", 100, "hessian"),
        ("bare", 200, "none"),
        ("few outputs", 2000, "gauss_newton"),
        ("few parameters", 20, "gauss_newton"),
        ("many of both", 700, "none"),
    ],
)
def test_auto_decides_by_the_sizes(loss, size, expected):
    u, samples = jnp.ones(size), {"few outputs": 2, "few parameters": 700, "many of both": 700}.get(loss, 1)
    inputs = jnp.ones((samples, 1))
    objective = sf.regression(lambda u, x: jnp.sum(u) * x[0], inputs, jnp.zeros(samples))
    objective = BareLoss(lambda u: jnp.sum(u**2)) if loss == "bare" else objective
    landscape, _ = landscape_of(objective, u, trainable=eqx.is_inexact_array, preconditioner="auto", symmetric=False)
    assert landscape.preconditioner == expected


def test_without_a_preconditioner_by_default():
    run = solve(lambda u: jnp.sum(jnp.linspace(1, 1e3, 200) * u**2), jnp.ones(200), t1=0.1)
    assert run.stats["preconditioner"] == "none"
    np.testing.assert_allclose(run.model, np.exp(-0.2 * np.linspace(1, 1e3, 200)), rtol=1e-5, atol=2e-6)
