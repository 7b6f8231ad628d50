"""Conjugate directions kept through a step: against dense solves, and where the matrix is not definite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saddleflow.solvers import ConjugateBasis, conjugate_solve, krylov

DIM = 24
SPECTRUM = np.concatenate([np.linspace(1, 2, DIM - 6), np.geomspace(1e1, 1e6, 6)])
RHS = np.random.default_rng(7).standard_normal((4, DIM))
TOLERANCE = 1e-8


def norm(z):
    return jnp.sqrt(jnp.mean(z * z))


def empty(capacity=DIM, dim=DIM):
    return ConjugateBasis.empty(capacity, jnp.zeros(dim))


@jax.jit
def solve(basis, matrix, rhs, tolerance=TOLERANCE, active=True):
    return conjugate_solve(basis, lambda z: matrix @ z, None, rhs, norm, tolerance, 120, active)


@jax.jit
def preconditioned(basis, matrix, inverse, rhs, tolerance=TOLERANCE):
    return conjugate_solve(basis, lambda z: matrix @ z, lambda z: inverse @ z, rhs, norm, tolerance, 120)


def residual(matrix, x, rhs):
    return float(norm(matrix @ x - rhs))


@pytest.fixture
def matrix(spectral):
    return spectral(SPECTRUM)


def test_solves_and_keeps_conjugate_directions(matrix):
    basis = empty()
    for rhs in RHS:
        x, basis, report = solve(basis, matrix, rhs)
        assert bool(report.converged)
        assert residual(matrix, x, rhs) <= 2 * TOLERANCE
        np.testing.assert_allclose(x, np.linalg.solve(matrix, rhs), atol=1e-7)
    used = int(basis.count)
    assert 0 < used <= DIM
    directions, images = np.array(basis.directions[:used]), np.array(basis.images[:used])
    np.testing.assert_allclose(directions @ matrix @ directions.T, np.eye(used), atol=1e-6)
    np.testing.assert_allclose(images, directions @ matrix, atol=1e-12 * 1e6)
    assert not np.any(basis.directions[used:])


def test_the_tolerance_is_what_stops(matrix):
    loose, tight = (solve(empty(), matrix, RHS[0], tolerance) for tolerance in (1e-2, 1e-8))
    assert int(loose[2].products) < int(tight[2].products)
    assert 1e-8 < residual(matrix, loose[0], RHS[0]) <= 1e-2


def test_later_right_hand_sides_in_the_span_cost_no_product(matrix):
    _, basis, first = solve(empty(), matrix, RHS[0], 1e-11)
    again = -3.0 * RHS[0]
    x, after, report = solve(basis, matrix, again)
    assert (int(report.products), int(report.preconditions)) == (0, 0)
    assert int(first.products) > 5
    assert int(after.count) == int(basis.count)
    assert residual(matrix, x, again) <= TOLERANCE
    # partly in the span: only what is missing is added
    nearby = RHS[0] + 1e-6 * RHS[1]
    _, _, fresh = solve(empty(), matrix, nearby)
    _, _, added = solve(basis, matrix, nearby)
    assert 0 < int(added.products) < int(fresh.products)


def test_a_full_basis_ends_the_products(spectral):
    """In exact arithmetic dim directions are all there are."""
    matrix = spectral(np.linspace(1, 10, DIM))
    basis, products = empty(), []
    for rhs in RHS:
        _, basis, report = solve(basis, matrix, rhs, 1e-10)
        products.append(int(report.products))
    assert sum(products) <= DIM + 2
    assert products[-1] <= 1


@pytest.mark.parametrize("capacity", [1, 8])
def test_a_full_buffer_forgets_and_still_converges(matrix, capacity):
    """The directions that stay deflate the matrix: no solve is dearer than the first, but for rounding."""
    basis, products = empty(capacity), []
    assert len(basis.directions) == -(-capacity // 4) * 4
    for rhs in RHS:
        x, basis, report = solve(basis, matrix, rhs)
        assert bool(report.converged)
        assert residual(matrix, x, rhs) <= 2 * TOLERANCE
        products.append(int(report.products))
    assert int(basis.count) > len(basis.directions)  # it did go round
    assert max(products) <= products[0] + 2


def test_the_exact_inverse_needs_one_product(matrix):
    """One product shows that the preconditioner contracts; its last application is the solution."""
    inverse = np.linalg.inv(matrix)
    x, basis, report = preconditioned(empty(), matrix, inverse, RHS[0])
    assert (int(report.products), int(report.preconditions)) == (1, 2)
    assert residual(matrix, x, RHS[0]) <= TOLERANCE
    assert float(basis.contraction) < 1e-6


def test_the_last_correction_saves_products_and_meets_the_tolerance(matrix, spectral):
    """A preconditioner exact but for a perturbation of one percent."""
    inverse = np.linalg.inv(matrix + 0.01 * spectral(np.linspace(0, 1, DIM), seed=1))
    basis, products = empty(), 0
    for rhs in RHS:
        x, basis, report = preconditioned(basis, matrix, inverse, rhs)
        assert bool(report.converged)
        assert residual(matrix, x, rhs) <= TOLERANCE
        products += int(report.products)
    plain = empty()
    total = 0
    for rhs in RHS:
        _, plain, report = solve(plain, matrix, rhs)
        total += int(report.products)
    assert products < total
    assert 1e-4 < float(basis.contraction) < 0.1


def test_a_preconditioner_that_does_not_contract_is_no_last_correction(matrix):
    """Ten times the identity is a poor inverse: applied to the residual it would make it larger."""
    x, basis, report = preconditioned(empty(), matrix, 10 * np.eye(DIM), RHS[0], 1e-2)
    assert bool(report.converged)
    assert float(basis.contraction) > 1
    assert 1e-6 < residual(matrix, x, RHS[0]) <= 1e-2


@pytest.mark.parametrize("negative", [-1e-3, -1.0, -1e6])
def test_an_indefinite_matrix_is_found_out(spectral, negative):
    matrix = spectral([negative, *SPECTRUM[1:]])
    x, basis, report = solve(empty(), matrix, RHS[0])
    assert not bool(report.converged)
    for leaf in jax.tree.leaves((x, basis)):
        assert np.isfinite(leaf).all()


def test_zero_curvature_is_not_divided_by():
    """p^T A p = 0 exactly at the first direction."""
    matrix = np.diag([1.0, -1.0] + [1.0] * (DIM - 2))
    rhs = np.zeros(DIM)
    rhs[:2] = 1.0
    x, basis, report = solve(empty(), matrix, rhs)
    assert not bool(report.converged)
    assert int(report.products) == 1
    assert int(basis.count) == 0
    assert not np.any(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_converge(matrix, bad):
    rhs = RHS[0].copy()
    rhs[3] = bad
    _, _, report = solve(empty(), matrix, rhs)
    assert not bool(report.converged)
    broken = matrix.copy()
    broken[2, 2] = bad
    _, _, report = solve(empty(), broken, RHS[0])
    assert not bool(report.converged)


def test_zero_needs_nothing(matrix):
    x, basis, report = solve(empty(), matrix, np.zeros(DIM))
    assert bool(report.converged)
    assert (int(report.products), int(basis.count)) == (0, 0)
    assert not np.any(x)


def test_an_inactive_solve_costs_no_product(matrix):
    _, _, report = solve(empty(), matrix, RHS[0], TOLERANCE, False)
    assert not bool(report.converged)
    assert int(report.products) == 0


def test_products_run_out(matrix):
    rhs = jnp.asarray(RHS[0])
    _, _, report = jax.jit(lambda b: conjugate_solve(empty(), lambda z: matrix @ z, None, b, norm, 1e-8, 3))(rhs)
    assert not bool(report.converged)
    assert int(report.products) == 3


def test_a_tolerance_below_rounding_ends_at_rounding(matrix):
    x, _, report = solve(empty(), matrix, RHS[0], 0.0)
    assert bool(report.converged)
    assert int(report.products) < 120
    np.testing.assert_allclose(x, np.linalg.solve(matrix, RHS[0]), atol=1e-9)


@pytest.mark.parametrize("kind", ["bounded", pytest.param("checkpointed", marks=pytest.mark.slow)])
def test_derivatives_through_a_basis_that_was_overwritten(matrix, kind):
    """Reverse mode, and forward mode through the plain loop, of two solves with (I + s A)."""

    def total(scale, kind):
        basis, parts = empty(4), []
        for rhs in RHS[:2]:
            x, basis, _ = conjugate_solve(
                basis, lambda z: z + scale * (matrix @ z), None, jnp.asarray(rhs), norm, 1e-11, 20, kind=kind
            )
            parts.append(x)
        return jnp.sum(jnp.stack(parts) ** 2), basis.count

    shift = 1e-4
    (value, count), slope = jax.jit(jax.value_and_grad(lambda s: total(s, kind), has_aux=True))(shift)
    assert int(count) > 4
    dense = np.eye(DIM) + shift * matrix
    solutions = [np.linalg.solve(dense, rhs) for rhs in RHS[:2]]
    assert float(value) == pytest.approx(sum(x @ x for x in solutions), rel=1e-9)
    exact = sum(-2 * x @ np.linalg.solve(dense, matrix @ x) for x in solutions)
    assert float(slope) == pytest.approx(exact, rel=1e-6)
    _, pushed = jax.jit(lambda s: jax.jvp(lambda s: total(s, "lax")[0], (s,), (1.0,)))(shift)
    assert float(pushed) == pytest.approx(exact, rel=1e-6)


def test_lanes(matrix):
    """Under vmap every right-hand side gets its own basis and its own number of products."""
    rhs = jnp.asarray(np.stack([RHS[0], 1e-9 * RHS[1], RHS[2]]))
    x, basis, report = jax.vmap(lambda b: solve(empty(), jnp.asarray(matrix), b))(rhs)
    for lane, b in enumerate(rhs):
        alone, lone_basis, lone = solve(empty(), matrix, b)
        # Two programs, two roundings, which may end one of them a product earlier. No eigenvalue is below one, so two
        # residuals within the tolerance are two solutions within twice of it, in the same norm.
        assert float(norm(x[lane] - alone)) <= 2 * TOLERANCE
        assert abs(int(report.products[lane]) - int(lone.products)) <= 1
        assert abs(int(basis.count[lane]) - int(lone_basis.count)) <= 1
    assert int(report.products[1]) == 0


def test_large_vectors_are_solved_for_as_small_ones_are():
    """The same system among zeros, so many that its basis is taken at once: the same solution, as many products."""
    generator = np.random.default_rng(3)
    rates = jnp.asarray(10 ** generator.uniform(-3, 2, 60))
    right = jnp.asarray(generator.standard_normal((3, 60)))
    found = {}
    for size in (60, krylov._LARGE):
        many = jnp.zeros(size).at[:60].set(rates)
        basis, solutions, products = ConjugateBasis.empty(16, many), [], 0
        for one in right:
            rhs = jnp.zeros(size).at[:60].set(one)
            x, basis, report = conjugate_solve(
                basis, lambda v, a=many: v + a * v, None, rhs, jnp.linalg.norm, 1e-10, 200
            )
            assert report.converged
            assert jnp.linalg.norm(x + many * x - rhs) <= 1e-9
            solutions.append(x[:60])
            products += int(report.products)
        found[size] = jnp.stack(solutions), products
    (small, few), (large, many_products) = found.values()
    np.testing.assert_allclose(large, small, atol=1e-9)
    assert abs(many_products - few) <= 0.2 * few
