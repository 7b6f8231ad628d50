"""Fewer samples than dimensions: the width reduced to the directions that the inputs excite, layers never formed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from problems import rows

import saddleflow as sf

N_IN, N_OUT, WIDTH, SAMPLES, RTOL = 60, 2, 150, 6, 1e-6
GENERATOR = np.random.default_rng(0)
INPUTS, TEST_INPUTS = GENERATOR.standard_normal((N_IN, SAMPLES)), GENERATOR.standard_normal((N_IN, 20))
TEACHER = GENERATOR.standard_normal((N_OUT, N_IN)) / np.sqrt(N_IN)
COST = sf.MeanSquaredError(INPUTS, TEACHER @ INPUTS, TEST_INPUTS, TEACHER @ TEST_INPUTS)
FIRST = GENERATOR.standard_normal((WIDTH, N_IN)) / np.sqrt(WIDTH)
LAST = GENERATOR.standard_normal((N_OUT, WIDTH)) / np.sqrt(WIDTH)
DENSE = [FIRST, np.eye(WIDTH), LAST]
SPARSE = [FIRST, scipy.sparse.eye_array(WIDTH), LAST]


def largest(matrices):
    """The largest Frobenius norm among the rows of a run."""
    return np.linalg.norm(matrices, axis=(1, 2)).max()


def test_the_flow_of_wide_data_is_that_of_the_full_network():
    """A whole, at all times, test cost and norms of layers; in one run."""
    network = sf.DeepLinearNetwork(map(jnp.asarray, DENSE))
    options = {"save_at": rows(np.linspace(0, 3, 40)), "observables": ["layer_norms", "layer_singular_values"]}
    full = sf.gradient_flow(COST, network, rtol=RTOL, **options)
    run = sf.gradient_flow(COST, sf.reduce_width(SPARSE, cost=COST), rtol=RTOL, **options)
    assert run.reduced.reduced_widths == (SAMPLES + N_OUT,) * 2
    assert run.reduced.is_complete
    assert largest(run.end_to_end - full.end_to_end) < 10 * RTOL * largest(full.end_to_end)
    np.testing.assert_allclose(run.test_cost, full.test_cost, rtol=20 * RTOL)
    np.testing.assert_allclose(run.train_cost, full.train_cost, atol=20 * RTOL * full.train_cost[0])
    for name in options["observables"]:
        np.testing.assert_allclose(run.observables[name], full.observables[name], rtol=20 * RTOL, atol=20 * RTOL)
    assert run.configuration["num_parameters"] == full.configuration["num_parameters"]
    # the part that no input sees has moved, too
    unseen = np.eye(N_IN) - COST.input_basis @ COST.input_basis.T
    assert largest((full.end_to_end[-1:] - full.end_to_end[:1]) @ unseen) > 0.1
    expanded = run.reduced.expand(run.network)
    for ours, theirs in zip(expanded.layers, full.network.layers, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_exact_bases_are_solved_once_at_rtol():
    """No pilot, no check, and the steps of the projected network itself, whatever the tolerance."""
    reduced = sf.reduce_width(SPARSE, 1e-9, cost=COST)
    run = sf.gradient_flow(COST, reduced, rtol=RTOL)
    by_hand = sf.gradient_flow(COST, reduced.network, rtol=RTOL)
    assert run.stats["num_steps"] == by_hand.stats["num_steps"]
    np.testing.assert_allclose(run.end_to_end[-1], by_hand.end_to_end[-1], atol=10 * RTOL)
    assert (run.stats["reduction_rounds"], run.stats["num_pilots"], run.reduction_error_estimate) == (0, 0, 0)


@pytest.mark.slow
def test_an_exact_flow_is_solved_in_the_columns_that_it_uses():
    """Few samples: all that a trajectory holds is that of the run in all columns, which observables take."""
    inputs = INPUTS[:, :3]
    cost = sf.MeanSquaredError(inputs, TEACHER @ inputs, TEST_INPUTS, TEACHER @ TEST_INPUTS)
    reduced = sf.reduce_width([0.01 * FIRST, SPARSE[1], 0.01 * LAST], cost=cost)
    options = {"rtol": RTOL, "save_at": rows(np.linspace(0, 30, 40)), "save_networks": True}
    narrow = sf.gradient_flow(cost, reduced, **options)
    wide = sf.gradient_flow(cost, reduced, **options, observables=["parameter_norm"])
    scale = largest(wide.end_to_end)
    assert largest(narrow.end_to_end - wide.end_to_end) < 20 * RTOL * scale
    for name in ("train_cost", "test_cost", "gradient_norm"):
        ours, theirs = getattr(narrow, name), getattr(wide, name)
        np.testing.assert_allclose(ours, theirs, atol=20 * RTOL * theirs.max())
    np.testing.assert_allclose(narrow.networks.end_to_end(), narrow.end_to_end, atol=1e-12)
    np.testing.assert_allclose(narrow.network.end_to_end(), narrow.end_to_end[-1], atol=1e-12)
    assert narrow.configuration["shape"] == [N_OUT, N_IN]
    assert narrow.cost is cost
    assert narrow.dips[1].layers[0].shape[1:] == wide.dips[1].layers[0].shape[1:]
    ours, theirs = narrow.saddles(), wide.saddles()
    assert [visit.rank for visit in ours] == [visit.rank for visit in theirs]
    small = cost.restricted(cost.input_basis)
    matrix = GENERATOR.standard_normal((N_OUT, 3))
    np.testing.assert_allclose(small(matrix), cost(matrix @ cost.input_basis.T))
    np.testing.assert_allclose(small.test(matrix), cost.test(matrix @ cost.input_basis.T))


def test_auto_takes_the_inputs_of_its_cost():
    network = sf.DeepLinearNetwork(map(jnp.asarray, DENSE))
    run = sf.gradient_flow(COST, network, rtol=RTOL, t1=0.1, reduce_width="auto")
    assert run.reduced.reduced_widths == (SAMPLES + N_OUT,) * 2


@pytest.mark.slow
def test_bases_that_leak_grow_along_what_the_inputs_excite():
    """Gaussian layers, L = 4: the error of the whole A meets the tolerance, in fewer directions than n_in."""
    network = sf.gaussian(jax.random.key(4), depth=4, width=WIDTH, shape=COST.shape, gamma=1.0)
    tolerance = 1e-3
    run = sf.gradient_flow(COST, sf.reduce_width(network, tolerance, cost=COST), rtol=1e-4, t1=20.0)
    assert max(run.reduced.reduced_widths) < N_IN
    assert run.stats["num_pilots"] >= 1
    some = np.unique(np.linspace(0, len(run.time) - 1, 100).astype(int))
    full = sf.gradient_flow(COST, network, rtol=1e-6, save_at=rows(run.time[some])).end_to_end[: len(some)]
    assert largest(run.end_to_end[some] - full) <= tolerance * largest(full)
    assert 0 < run.reduction_error_estimate <= tolerance * largest(full)


@pytest.mark.slow
def test_a_drawn_network_starts_from_the_inputs_of_its_cost():
    """Unseen columns of the first layer stand still; known directions keep them where the network grows."""
    key, kind = jax.random.key(0), {"depth": 3, "width": 10**6, "shape": COST.shape, "gamma": 1.5}
    small = sf.sample_reduced(key, **kind, cost=COST)
    assert small.reduced_widths == (SAMPLES + N_OUT,) * 2
    assert small.sizes == (N_IN, 10**6, 10**6, N_OUT)
    np.testing.assert_allclose(small.frozen_squares, [(N_IN - SAMPLES) * 1e-3, 1e3, 0], rtol=0.01)
    run = sf.gradient_flow(COST, small, rtol=1e-3, observables=["layer_norms"])
    grown, unseen = run.reduced, np.eye(N_IN) - COST.input_basis @ COST.input_basis.T
    assert sum(grown.reduced_widths) > sum(small.reduced_widths)
    before, start, end = (np.asarray(n.layers[0]) for n in (small.network, grown.network, run.network))
    np.testing.assert_allclose(start[: len(before)], before, atol=1e-15)
    np.testing.assert_allclose(end @ unseen, start @ unseen, atol=1e-15)
    # an entry's variance is w^-gamma, in directions fresh and old
    deviations = [np.std(rows) for rows in (start[: len(before)] @ unseen, start[len(before) :] @ unseen)]
    np.testing.assert_allclose(deviations, 10**-4.5 * np.sqrt(1 - SAMPLES / N_IN), rtol=0.15)
    assert run.reduction_error_estimate <= 10 * 1e-3 * largest(run.end_to_end)
    np.testing.assert_allclose(run.observables["layer_norms"][0] ** 2, [N_IN * 1e-3, 1e3, 2e-3], rtol=0.05)
    with pytest.raises(ValueError, match="`cost` must see no inputs but those, in 6 directions"):
        sf.gradient_flow(OTHER, small)


def test_the_basis_of_inputs_is_their_numerical_span():
    """Of more samples than dimensions too, where those are dependent; it serves a part of the samples as well."""
    low = INPUTS[:, :4] @ GENERATOR.standard_normal((4, 80))
    cost = sf.MeanSquaredError(low, TEACHER @ low)
    basis = cost.input_basis
    assert basis.shape == (N_IN, 4)
    np.testing.assert_allclose(basis @ (basis.T @ low), low, atol=1e-12)
    reduced = sf.reduce_width(SPARSE, cost=cost)
    assert reduced.reduced_widths == (4 + N_OUT,) * 2
    part = sf.MeanSquaredError(low[:, :2], TEACHER @ low[:, :2])
    assert sf.gradient_flow(part, reduced, rtol=1e-3, t1=0.1).reduction_error_estimate == 0
    assert sf.MeanSquaredError(np.eye(3), np.eye(3)).input_basis is None
    assert sf.MatrixCompletion.random(jax.random.key(0)).input_basis is None
    nothing = sf.MeanSquaredError(np.zeros((N_IN, 1)), np.ones((N_OUT, 1)))
    assert nothing.input_basis.shape == (N_IN, 0)
    assert sf.reduce_width(SPARSE, cost=nothing).reduced_widths == (N_OUT, N_OUT)


@pytest.mark.parametrize("with_cost", [True, False])
def test_sparse_layers_are_dense_ones(with_cost):
    """Diagonal, permutation, block: the same small network, norms and leaks; alpha scales them."""
    order = GENERATOR.permutation(WIDTH)
    middle = [
        scipy.sparse.diags_array(GENERATOR.uniform(0.5, 1, WIDTH)),
        scipy.sparse.csr_array((np.ones(WIDTH), (np.arange(WIDTH), order)), shape=(WIDTH, WIDTH)),
        scipy.sparse.block_diag([GENERATOR.standard_normal((5, 5)) for _ in range(WIDTH // 5)], format="coo"),
    ]
    cost = COST if with_cost else None
    first, last = scipy.sparse.csc_array(FIRST), scipy.sparse.csr_array(LAST)
    sparse = sf.reduce_width([first, *middle, last], cost=cost)
    network = sf.DeepLinearNetwork([FIRST, *(layer.toarray() for layer in middle), LAST])
    dense = sf.reduce_width(network, cost=cost)
    for a, b in zip(sparse.network.layers, dense.network.layers, strict=True):
        np.testing.assert_allclose(np.abs(a), np.abs(b), atol=1e-10)
    np.testing.assert_allclose(sparse.end_to_end(), network.end_to_end(), atol=1e-12)
    np.testing.assert_allclose(sparse.frozen_squares, dense.frozen_squares, rtol=1e-10, atol=1e-8)
    assert (sparse.sizes, sparse.is_complete) == (dense.sizes, dense.is_complete)
    np.testing.assert_allclose((2 * sparse).end_to_end(), 32 * network.end_to_end(), atol=1e-10)
    for a, b in zip(sparse.full.layers, network.layers, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_tolerance_is_relative_to_the_largest_matrix():
    """A problem in units eight times smaller: numbers eight times larger, and the same run, bit by bit."""
    cost = sf.MatrixCompletion.random(jax.random.key(3), shape=(3, 3), rank=2, observed=0.9)
    network = sf.gaussian(jax.random.key(4), depth=3, width=80, shape=(3, 3), gamma=1.0)
    larger = sf.MatrixCompletion(8 * cost.target, cost.observed)  # A of three layers: each twice its size
    one, eight = (
        sf.gradient_flow(c, sf.reduce_width(n, 1e-3), rtol=1e-4) for c, n in ((cost, network), (larger, 2 * network))
    )
    assert one.reduced.reduced_widths == eight.reduced.reduced_widths
    assert one.stats["num_steps"] == eight.stats["num_steps"]
    assert eight.reduction_error_estimate == pytest.approx(8 * one.reduction_error_estimate)
    assert one.reduction_error_estimate <= 1e-3 * largest(one.end_to_end)


OTHER = sf.MeanSquaredError(TEST_INPUTS, TEACHER @ TEST_INPUTS)
WHOLE = sf.MeanSquaredError.teacher(TEACHER)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sf.gradient_flow(OTHER, sf.reduce_width(SPARSE, cost=COST)),
            "`cost` must see no inputs but those, in 6 directions, .* Reduce the width for this one",
        ),
        (
            lambda: sf.gradient_flow(WHOLE, sf.reduce_width(SPARSE, cost=COST)),
            "`cost` must see no inputs but those, in 6 directions",
        ),
        (
            lambda: sf.reduce_width([FIRST, scipy.sparse.linalg.aslinearoperator(np.eye(WIDTH)), LAST]),
            r"`layers\[1\]` must be an array, or a sparse one of scipy, .* operator @ np.eye",
        ),
        (lambda: sf.reduce_width(FIRST), "`network` must be a DeepLinearNetwork, or a sequence of layers"),
        (lambda: sf.reduce_width(SPARSE[::-1]), r"`layers\[1\]` must have 2 columns"),
        (
            lambda: sf.reduce_width([FIRST, np.nan * scipy.sparse.eye_array(WIDTH), LAST]),
            r"`layers\[1\]` must be finite",
        ),
        (lambda: sf.reduce_width(SPARSE, cost=abs), "`cost` must be a saddleflow cost"),
        (
            lambda: sf.reduce_width(SPARSE, cost=sf.MeanSquaredError(np.eye(3), np.eye(3))),
            r"`cost` must take matrices of shape \(2, 60\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
