"""Problems of real size: what is kept, what is inverted, and that results stay what they are."""

import jax
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.flow import landscape, observables, residual
from saddleflow.flow.arguments import FlowOptions


@pytest.mark.parametrize(
    ("numbers", "asked", "rows"), [(100, None, 1000), (500_000, None, 100), (10**8, None, 16), (10**7, 40, 40)]
)
def test_rows_of_large_matrices_are_fewer_unless_asked_for(numbers, asked, rows):
    assert FlowOptions(max_saves=asked).with_room_for(numbers).num_rows == rows


def test_fewer_rows_still_hold_both_ends(monkeypatch):
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(20, 30), rank=2, observed=0.5)
    start = sf.gaussian(jax.random.key(1), depth=3, width=10, shape=(20, 30), gamma=1.5)
    every = sf.gradient_flow(cost, start, rtol=1e-4, gradient_tolerance=1e-2, max_saves=1000)
    monkeypatch.setattr("saddleflow.flow.arguments.MAX_ROWS_NUMBERS", 20 * 600)
    fewer = sf.gradient_flow(cost, start, rtol=1e-4, gradient_tolerance=1e-2)
    assert len(fewer.time) <= 21 < len(every.time)
    assert (fewer.time[0], fewer.time[-1]) == (every.time[0], every.time[-1])
    np.testing.assert_array_equal(fewer.end_to_end[-1], every.end_to_end[-1])


def test_singular_values_through_a_thin_factor_are_those_of_the_matrix():
    generator = np.random.default_rng(0)
    matrices = (
        generator.standard_normal((3, 80, 6)) @ np.diag(10.0 ** -np.arange(6)) @ generator.standard_normal((6, 60))
    )
    matrices[1, 0, 0] = np.nan
    thin, whole = observables.singular_values(matrices, 6), observables.singular_values(matrices)
    assert np.isnan(thin[1]).all()
    np.testing.assert_allclose(thin[[0, 2]], whole[[0, 2]], rtol=1e-9, atol=1e-13 * whole[0, 0])
    assert (thin[0, :-1] >= thin[0, 1:]).all()


@pytest.fixture(scope="module")
def many_residuals():
    """700 residuals, and a tail of stiff steps."""
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(40, 40), rank=5, observed=700 / 1600)
    return cost, sf.gaussian(jax.random.key(1), depth=3, width=40, shape=(40, 40), variance=0.01 / 40)


@pytest.mark.slow
@pytest.mark.parametrize("graded", [False, True])
def test_steps_invert_their_stiff_part_once_that_is_cheaper(many_residuals, monkeypatch, graded):
    how = {"rtol": 1e-4, "save_at": [1e2, 1e3, 1e4, 1e5], "graded": graded}
    monkeypatch.setattr(landscape, "factorisation_price", lambda count, network: np.inf)
    never = sf.gradient_flow(*many_residuals, **how)
    monkeypatch.setattr(landscape, "factorisation_price", lambda count, network: 40.0)
    cheap = sf.gradient_flow(*many_residuals, **how)
    assert never.stats["num_preconditioner_applications"] == 0 < cheap.stats["num_preconditioner_applications"]
    assert cheap.stats["num_hessian_vector_products"] < 0.5 * never.stats["num_hessian_vector_products"]
    difference = np.linalg.norm(cheap.end_to_end - never.end_to_end, axis=(1, 2))
    assert (difference <= 1e-3 * np.linalg.norm(never.end_to_end, axis=(1, 2))).all()


def test_where_a_run_is_cut_decides_no_step(many_residuals, monkeypatch):
    """Which steps invert is told by the steps, not by the clock."""
    monkeypatch.setattr(landscape, "factorisation_price", lambda count, network: 20.0)
    runs = []
    for seconds in (0.2, 1e-6):
        monkeypatch.setattr("saddleflow.flow.run.BURST_SECONDS", seconds)
        runs.append(sf.gradient_flow(*many_residuals, rtol=1e-3, t1=3e3))
    np.testing.assert_array_equal(runs[0].end_to_end, runs[1].end_to_end)
    assert runs[0].stats["num_preconditioner_applications"] == runs[1].stats["num_preconditioner_applications"] > 0


def test_the_start_is_the_users_own_after_a_run(many_residuals):
    """Bursts write over their state, and over nothing else."""
    cost, start = many_residuals
    before = [np.array(layer) for layer in start.layers]
    for _ in range(2):
        sf.gradient_flow(cost, start, t1=1.0)
    for layer, kept in zip(start.layers, before, strict=True):
        np.testing.assert_array_equal(layer, kept)


def test_what_is_left_is_not_looked_for_in_large_matrices(small_cost, small_network, monkeypatch):
    monkeypatch.setattr(residual, "MAX_ENTRIES", 10)
    run = sf.gradient_flow(small_cost, small_network, gradient_tolerance=1e-2)
    assert run.residual.norm > 0
    assert run.residual.left is None
