"""The flow's Jacobian in compressed and in plain coordinates, against the full Hessian."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import HuberCompletion

import saddleflow as sf
from saddleflow.flow.jacobian import CompressedJacobian, flow_jacobian
from saddleflow.problem.geometry import gradient_flow_field
from saddleflow.solvers import Plain, PlainModel, Rosenbrock

TERM = diffrax.ODETerm(gradient_flow_field)
CASES = [(3, 9, (4, 4)), (4, 11, (3, 5)), (5, (7, 9, 8, 10), (4, 2))]


def completion(shape):
    return sf.MatrixCompletion.random(jax.random.key(5), shape=shape, rank=2, observed=0.7)


def flat(network):
    return ravel_pytree(network)[0]


def close(ours, theirs, tolerance=1e-12):
    np.testing.assert_allclose(flat(ours), flat(theirs), atol=tolerance * float(jnp.abs(flat(theirs)).max()))


@jax.jit
def parts(cost, network, direction):
    """All that a compressed model offers, on one direction (and on the network as another)."""
    model = CompressedJacobian.at(network, cost)
    z = model.restrict(direction)
    return {
        "z": z,
        "projected": model.extend(z),
        "again": model.restrict(model.extend(z)),
        "network": model.restrict(network),
        "product": model.extend(model.product(z)),
        "hessian": sf.hessian_vector_product(cost, network, direction),
        "weights": model.weights(jax.tree.map(jnp.ones_like, network)),
    }


@pytest.mark.parametrize(("depth", "width", "shape"), CASES)
def test_the_compressed_product_is_the_whole_jacobian(depth, width, shape, pair):
    """Minus the Hessian, on any direction: what the coordinates leave out the Jacobian maps to zero."""
    network, direction = pair(depth, width, shape)
    result = parts(completion(shape), network, direction)
    close(result["product"], jax.tree.map(jnp.negative, result["hessian"]))
    z, projected = np.asarray(result["z"]), np.asarray(flat(result["projected"]))
    # the coordinates do leave something out
    assert np.abs(np.asarray(flat(direction)) - projected).max() > 0.01
    np.testing.assert_allclose(result["again"], z, atol=1e-13)
    # extension is the adjoint of restriction, and keeps lengths: the frame is orthonormal
    assert float(projected @ flat(network)) == pytest.approx(float(z @ result["network"]), rel=1e-11)
    assert float(z @ z) == pytest.approx(float(projected @ projected), rel=1e-12)
    np.testing.assert_allclose(result["weights"], 1.0)


def gauss_newton(cost, network):
    """`D^T C'' D` as a dense matrix, by automatic differentiation."""
    vector, unravel = ravel_pytree(network)
    jacobian = jax.jacfwd(lambda v: unravel(v).end_to_end().ravel())(vector)
    matrix = network.end_to_end()
    hessian = jax.jacfwd(cost.gradient)(matrix).reshape(matrix.size, matrix.size)
    return jacobian.T @ hessian @ jacobian


def costs(shape):
    task = completion(shape)
    inputs = jax.random.normal(jax.random.key(1), (shape[1], 15))
    outputs = jax.random.normal(jax.random.key(2), (shape[0], 15))
    return {
        "completion": task,
        "mse": sf.MeanSquaredError(inputs, outputs),
        "custom": HuberCompletion(task.target, task.observed),
    }


@functools.partial(jax.jit, static_argnums=3)
def woodbury(cost, network, direction, kind):
    """A direction of the coordinates, the preconditioner on it at two shifts, and the Gauss-Newton part, dense."""
    model = flow_jacobian(TERM, jnp.zeros(()), network, cost)
    assert isinstance(model, kind)
    z = model.restrict(direction)
    applied = []
    for shift in SHIFTS:
        apply = model.preconditioner(jnp.asarray(shift))
        assert apply is not None
        applied.append(flat(model.extend(apply(z))))
    return flat(model.extend(z)), applied, gauss_newton(cost, network)


SHIFTS = (0.3, 1e4)


@pytest.mark.parametrize("name", ["completion", "mse", "custom"])
@pytest.mark.parametrize(("depth", "width", "kind"), [(3, 6, CompressedJacobian), (2, 4, PlainModel)])
def test_woodbury_is_exact_for_the_gauss_newton_part(name, depth, width, kind, pair):
    shape = (2, 3)
    network, direction = pair(depth, width, shape)
    v, applied, curved = woodbury(costs(shape)[name], network, direction, kind)
    assert np.linalg.norm(curved) > 0.1
    for shift, ours in zip(SHIFTS, applied, strict=True):
        expected = np.linalg.solve(np.eye(len(curved)) + shift * np.asarray(curved), v)
        np.testing.assert_allclose(ours, expected, atol=1e-9)
        assert np.linalg.norm(expected - v) > 0.01


def offered(network, cost):
    """Type of the local model, and whether it has a preconditioner; nothing is computed."""
    found = []

    def look(network, cost):
        model = flow_jacobian(TERM, jnp.zeros(()), network, cost)
        found.append((type(model), model.preconditioner(jnp.asarray(1.0)) is not None))

    eqx.filter_eval_shape(look, network, cost)
    return found[0]


def test_the_kind_of_coordinates(pair):
    """Compressed where hidden layers exist and are all wider than n_out + n_in."""
    cost = completion((3, 3))
    for depth, width, kind in ((3, 7, CompressedJacobian), (3, (7, 6), PlainModel), (2, 30, PlainModel)):
        assert offered(pair(depth, width, (3, 3))[0], cost) == (kind, True)


def test_too_many_residuals_mean_no_preconditioner(pair):
    big = sf.MatrixCompletion.random(jax.random.key(0), shape=(30, 25), rank=2, observed=0.9)
    assert big.num_observed > 600
    for depth, width, kind in ((3, 56, CompressedJacobian), (2, 3, PlainModel)):
        assert offered(pair(depth, width, big.shape)[0], big) == (kind, False)


def step(cost, network, h, model):
    solver = Rosenbrock(rtol=1e-8, atol=1e-10, local_model=model, linear_tolerance=1e-3, check_symmetry=False)
    work = solver.init(TERM, 0.0, h, network, cost)
    y1, error, _, work, _ = solver.step(TERM, 0.0, h, network, cost, work, False)
    return y1, error, work


class Unstructured(sf.MatrixCompletion):
    """The same cost without the root of its Hessian."""

    def curvature(self, matrix):
        return None


@pytest.mark.parametrize(
    ("cost", "model"),
    [
        pytest.param(Unstructured, flow_jacobian, id="compressed, no preconditioner"),
        pytest.param(sf.MatrixCompletion, Plain(), id="plain", marks=pytest.mark.slow),
    ],
)
def test_steps_agree_in_any_coordinates_and_without_preconditioner(cost, model, pair):
    task = completion((3, 3))
    network, _ = pair(3, 8, task.shape)
    h = 0.5
    y1, error, work = jax.jit(lambda n: step(task, n, h, flow_jacobian))(network)
    assert int(work.preconditions) == int(work.products) + 6
    other = cost(task.target, task.observed)
    y1_other, error_other, bare = jax.jit(lambda n: step(other, n, h, model))(network)
    assert int(bare.preconditions) == 0
    assert int(work.products) <= int(bare.products)
    assert np.isfinite(flat(error)).all()
    assert np.abs(flat(y1) - flat(network)).max() > 1e-3
    np.testing.assert_allclose(flat(y1_other), flat(y1), atol=1e-9)
    np.testing.assert_allclose(flat(error_other), flat(error), atol=1e-9)
