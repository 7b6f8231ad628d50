import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import rows

import saddleflow as sf
from saddleflow.flow import observables
from saddleflow.flow.arguments import FlowOptions
from saddleflow.width import adaptive
from saddleflow.width import sampled as sampling
from saddleflow.width.projected import Snapshots

COST = sf.MatrixCompletion.random(jax.random.key(3), shape=(3, 3), rank=2, observed=0.9)


def start(depth=3, width=80, gamma=1.0, seed=4):
    return sf.gaussian(jax.random.key(seed), depth=depth, width=width, shape=(3, 3), gamma=gamma)


def sample(key, depth=3, width=50, levels=None, gamma=1.0, cost=None):
    return sf.sample_reduced(key, depth=depth, width=width, shape=(3, 3), gamma=gamma, levels=levels, cost=cost)


def error(run, full, rtol):
    """The largest |A - A_full|_F at about 100 of the run's times."""
    some = np.unique(np.linspace(0, len(run.time) - 1, 100).astype(int))
    exact = sf.gradient_flow(COST, full, rtol=rtol, save_at=rows(run.time[some])).end_to_end[: len(some)]
    return np.linalg.norm(run.end_to_end[some] - exact, axis=(1, 2)).max()


def largest(run):
    """The largest |A|_F of a run."""
    return np.linalg.norm(run.end_to_end, axis=(1, 2)).max()


def test_a_traced_key_draws_what_the_key_at_hand_does():
    keys = jax.random.split(jax.random.key(7), 2)
    traced = jax.vmap(lambda key: sample(key, gamma=1.2))(keys)
    for index, key in enumerate(keys):
        at_hand = sample(key, gamma=1.2)
        for a, b in zip(at_hand.network.layers, traced.network.layers, strict=True):
            np.testing.assert_allclose(a, b[index], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(at_hand.frozen_squares, traced.frozen_squares[index], rtol=1e-12)
    # a key at hand beside a traced gamma
    matrices = jax.vmap(lambda gamma: sample(keys[1], gamma=gamma).end_to_end())(np.array([1.0, 1.2]))
    np.testing.assert_allclose(matrices[1], sample(keys[1], gamma=1.2).end_to_end(), rtol=1e-12, atol=1e-14)


def test_two_layers_reduce_exactly():
    network = sf.gaussian(jax.random.key(0), depth=2, width=40, shape=(3, 3), gamma=1.5)
    reduced = sf.reduce_width(network)
    assert reduced.reduced_widths == (6,)
    assert reduced.is_complete
    run = sf.gradient_flow(COST, reduced, rtol=1e-8)
    assert run.reduction_error_estimate == 0
    assert error(run, network, 1e-10) < 1e-6


@pytest.mark.parametrize(
    ("depth", "gamma"), [pytest.param(3, 1.0, marks=pytest.mark.slow), pytest.param(4, 1.75, marks=pytest.mark.slow)]
)
def test_the_error_meets_the_tolerance_and_the_estimate_is_honest(depth, gamma):
    """The estimate is one of the reduction's error: honest where that is larger than the solver's, as at 1e-3."""
    network = start(depth, gamma=gamma)
    for tolerance in (1e-3, 1e-4):
        run = sf.gradient_flow(COST, sf.reduce_width(network, tolerance), rtol=1e-4)
        true = error(run, network, 1e-3 * tolerance)
        scale = largest(run)
        assert max(run.reduced.reduced_widths) < 40
        assert true <= tolerance * scale
        assert run.reduction_error_estimate <= tolerance * scale
        assert run.reduced.error_estimate == run.reduction_error_estimate
        if tolerance == 1e-3:
            assert true / 2 <= run.reduction_error_estimate <= 10 * true


@pytest.mark.slow
def test_a_full_basis_is_the_full_network():
    network = start(3, 5)
    run = sf.gradient_flow(COST, sf.reduce_width(network, 1e-6), rtol=1e-8)
    assert run.reduced.is_full
    assert run.reduction_error_estimate == 0
    assert error(run, network, 1e-9) < 1e-6


@pytest.mark.slow
def test_unequal_widths():
    widths = (7, 50)
    network = sf.gaussian(jax.random.key(0), depth=3, width=widths, shape=(3, 3), variance=0.05)
    run = sf.gradient_flow(COST, sf.reduce_width(network, 1e-3), rtol=1e-4)
    assert run.configuration["width"] == widths
    assert error(run, network, 1e-6) <= 1e-3 * largest(run)
    for order in (widths, widths[::-1]):
        sampled = sf.sample_reduced(jax.random.key(0), depth=3, width=order, shape=(3, 3), variance=0.05, levels=6)
        assert sampled.reduced_widths[order.index(7)] == 7


@pytest.mark.slow
def test_auto_reduces_where_that_is_smaller():
    wide, narrow = start(), start(3, 6)
    run = sf.gradient_flow(COST, wide, rtol=1e-4, t1=1.0, reduce_width="auto")
    assert run.reduced is not None
    assert run.configuration["width"] == 80
    assert error(run, wide, 1e-8) <= 10e-4 * largest(run)
    assert sf.gradient_flow(COST, narrow, rtol=1e-4, t1=1.0, reduce_width="auto").reduced is None


@pytest.mark.slow
def test_observables_of_full_layers_account_for_the_frozen_part():
    network = start()
    names = ["parameter_norm", "layer_norms", "layer_singular_values", "ntk_rate", "alignment"]
    times = [0.0, 0.5, 1.0]
    exact = sf.gradient_flow(COST, network, rtol=1e-8, save_at=times, observables=names)
    run = sf.gradient_flow(COST, sf.reduce_width(network, 1e-5), rtol=1e-7, save_at=times, observables=names)
    assert max(run.reduced.reduced_widths) < 80
    for name in names:
        np.testing.assert_allclose(run.observables[name], exact.observables[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run.gradient_norm, exact.gradient_norm, atol=1e-4)
    assert run.configuration["start_norm"] == pytest.approx(exact.configuration["start_norm"])
    assert run.configuration["num_parameters"] == exact.configuration["num_parameters"]
    expanded = run.reduced.expand(run.network)
    for ours, theirs in zip(expanded.layers, exact.network.layers, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.slow
def test_what_was_never_drawn_is_refused():
    sampled = sample(jax.random.key(0), width=10**6)
    for name in ("layer_singular_values", "alignment"):
        with pytest.raises(ValueError, match=f"`{name}` needs the full layers"):
            sf.gradient_flow(COST, sampled, observables=[name], t1=0.1)
    with pytest.raises(ValueError, match="`stop` needs the full layers"):
        sf.gradient_flow(COST, sampled, stop=lambda time, network: time > 1, t1=0.1)
    gap = observables.through_products(lambda cost, network: cost(network.end_to_end()))
    run = sf.gradient_flow(COST, sampled, observables={"gap": gap}, save_at=[0.1, 0.2], rtol=1e-3)
    np.testing.assert_allclose(run.observables["gap"], run.train_cost)


@pytest.mark.slow
def test_sampled_norm_is_that_of_the_full_network():
    """|W_l|^2 has mean n_l n_{l-1} variance; the frozen part is all but everything of it."""
    run = sf.gradient_flow(COST, sample(jax.random.key(0), width=10**6), t1=0.01, observables=["layer_norms"])
    np.testing.assert_allclose(run.observables["layer_norms"][0] ** 2 / [3, 1e6, 3], 1.0, rtol=0.02)


def test_snapshots_move_to_larger_bases():
    """The increments of a pilot, in bases that its leaks have grown; those leaks against a dense SVD."""
    full, generator = start(), np.random.default_rng(0)
    reduced = sf.reduce_width(full)
    layers = [np.asarray(layer)[None] for layer in reduced.network.layers]
    snapshots = Snapshots([layer + 1e-3 * generator.standard_normal(layer.shape) for layer in layers])
    leaks = reduced.leaks(snapshots)
    grown = reduced.grow(leaks, 0.0)
    within = snapshots.within(reduced, grown)
    for now, before, old, new in zip(within.layers, snapshots.layers, layers, grown.network.layers, strict=True):
        rows, columns = before.shape[1:]
        np.testing.assert_allclose(now[0, :rows, :columns] - new[:rows, :columns], before[0] - old[0], atol=1e-13)
        np.testing.assert_allclose(now[0, rows:], new[rows:], atol=1e-13)
    forward, backward = reduced._leaks()
    dense = np.hstack(
        [forward[0] @ snapshots.forward_coefficients(1), backward[0] @ snapshots.backward_coefficients(1)]
    )
    np.testing.assert_allclose(leaks[0][1], np.linalg.svd(dense, compute_uv=False)[: len(leaks[0][1])], atol=1e-12)
    directions, strengths = leaks[0]
    expected = np.linalg.norm(directions.T @ dense, axis=1)
    np.testing.assert_allclose(expected, strengths, atol=1e-12)


def test_growth_extends_and_does_not_redraw():
    sampled = sample(jax.random.key(0), width=1000)
    generator = np.random.default_rng(0)
    layers = [np.asarray(layer)[None] for layer in sampled.network.layers]
    assert sampled.grow(sampled.leaks(Snapshots(layers)), 1e-3) is sampled  # the start itself leaks nothing
    layers = [layer + 0.1 * generator.standard_normal(layer.shape) for layer in layers]
    grown = sampled.grow(sampled.leaks(Snapshots(layers)), 1e-3)
    assert grown is not sampled
    assert sum(grown.reduced_widths) > sum(sampled.reduced_widths)
    for new, old in zip(grown.network.layers, sampled.network.layers, strict=True):
        np.testing.assert_allclose(new[: old.shape[0], : old.shape[1]], old, atol=1e-14)
    # revealed rows and columns lie within the known directions, so the extension is zero there
    for index, (left, columns) in enumerate(zip(sampled.rows, sampled.columns, strict=True)):
        m, n = sampled.network.layers[index].shape
        np.testing.assert_allclose(grown.network.layers[index][m:, :n] @ columns, 0, atol=1e-14)
        np.testing.assert_allclose(left.T @ grown.network.layers[index][:m, n:], 0, atol=1e-14)


def closed_form_moments(depth, width, n, variance):
    """E|A|^2 and E|A|^4 of a product of Gaussian matrices, layer by layer (Wishart's second moments)."""
    mean, square, trace = n, n**2, n
    for size in (*(width,) * (depth - 1), n):
        mean = variance * size * mean
        square, trace = (
            variance**2 * (size**2 * square + 2 * size * trace),
            variance**2 * (size * square + size * (size + 1) * trace),
        )
    return mean, square


@pytest.fixture
def short_draws(monkeypatch):
    """Draws as long as needed: the numbers that a padded draw begins with, in a fortieth of the time."""
    monkeypatch.setattr(sampling, "padded", lambda count, least: count)


ONE_SAMPLE = sf.MeanSquaredError(np.array([[1.0], [2.0], [-1.0]]), np.ones((3, 1)))


@pytest.mark.parametrize(
    ("depth", "width", "levels", "cost"),
    [
        (2, 4, 1, None),
        (3, 7, 2, None),
        (3, 7, 2, ONE_SAMPLE),
        pytest.param(4, 9, 5, None, marks=pytest.mark.slow),
        pytest.param(4, 9, 4, ONE_SAMPLE, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("short_draws")
def test_moments_at_the_start(depth, width, levels, cost):
    """Of 40,000 draws: each mean within 4.5 of its standard errors."""
    draw = jax.jit(jax.vmap(lambda key: sample(key, depth, width, levels, cost=cost).end_to_end()))
    count = 40_000
    matrices = np.asarray(draw(jax.random.split(jax.random.key(1), count)))
    traces, squares = np.trace(matrices, axis1=1, axis2=2), np.sum(matrices**2, axis=(1, 2))
    mean, square = closed_form_moments(depth, width, 3, 1 / width)
    for values, expected in ((traces, 0.0), (traces**2, mean / 3), (squares, mean), (squares**2, square)):
        assert abs(values.mean() - expected) <= 4.5 * values.std() / np.sqrt(count)


@pytest.mark.slow
@pytest.mark.usefixtures("short_draws")
def test_a_reduction_that_fills_the_spaces_has_the_law_of_the_full_network():
    """Frozen squares zero, widths the full ones, entries Gaussian in norm: E|W_l|^2, Var|W_l|^2."""
    draws = jax.vmap(lambda key: sample(key, 3, 8, 6))(jax.random.split(jax.random.key(2), 20_000))
    assert draws.network.layers[1].shape == (20_000, 8, 8)
    np.testing.assert_array_equal(draws.frozen_squares, 0)
    squares = np.sum(np.asarray(draws.network.layers[1]) ** 2, axis=(1, 2))
    assert squares.mean() == pytest.approx(8, rel=0.01)
    assert squares.var() == pytest.approx(2, rel=0.06)


def test_widths_beyond_any_memory():
    sampled = sample(jax.random.key(0), depth=4, width=10**12, gamma=1.5)
    assert sampled.reduced_widths == (9, 6, 9)
    assert bool(jnp.all(jnp.isfinite(sampled.end_to_end())))
    assert sampled.frozen_squares[1] == pytest.approx(1e6, rel=1e-3)


def test_scaling_commutes_with_reduction():
    sampled = sample(jax.random.key(0), width=100)
    np.testing.assert_allclose((0.5 * sampled).end_to_end(), (0.5 * sampled.network).end_to_end())
    reduced = sf.reduce_width(start())
    np.testing.assert_allclose((0.5 * reduced).frozen_squares, 0.25 * reduced.frozen_squares)


def test_a_tolerance_that_was_not_met_is_said(monkeypatch):
    monkeypatch.setattr(adaptive, "MAX_ROUNDS", 1)
    with pytest.warns(UserWarning, match="above its tolerance 1e-06: 2 rounds did not do"):
        run = sf.gradient_flow(COST, sf.reduce_width(start(), 1e-6), rtol=1e-4, t1=1.0)
    assert run.reduction_error_estimate > 1e-6 * largest(run)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sf.reduce_width(start(), 0.0), "`tolerance` must be finite and positive"),
        (lambda: sample(jax.random.key(0), width=10**13), "`width` must be at most 10"),
        (lambda: sample(jax.random.key(0), levels=1), "`levels` must be an integer >= 2"),
        (
            lambda: adaptive.solve_reduced(abs, sf.reduce_width(start()), FlowOptions()),
            "`cost` must be a saddleflow.Cost, a function of the end-to-end matrix",
        ),
        (lambda: sf.gradient_flow(COST, start(), reduce_width="always"), "`reduce_width` must be None or"),
        (
            lambda: sf.sample_reduced(jax.random.key(0), depth=3, width=9, shape=(3, 3), gamma=1, tolerance=-1.0),
            "`tolerance` must be finite and positive",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_budget_gives_back_the_best_so_far():
    """Rows of a pilot or of an unfinished run, of unknown error; pilots are counted."""
    cost, network = COST, start()
    whole = sf.gradient_flow(cost, sf.reduce_width(network))
    assert whole.stats["num_pilots"] >= 1
    assert whole.stats["num_pilot_steps"] > 0
    assert whole.stats["pilot_seconds"] > 0
    with pytest.warns(UserWarning, match="max_seconds ran out"):
        cut = sf.gradient_flow(cost, sf.reduce_width(network), rtol=1e-10, max_seconds=1e-3)
    assert cut.stop_reason == "max_seconds"
    assert len(cut.time) >= 1
    assert np.isinf(cut.stats["reduction_error_estimate"])
    assert cut.end_to_end.shape == (len(cut.time), 3, 3)
