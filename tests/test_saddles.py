import math
from dataclasses import replace
from functools import cache

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import saddleflow as sf
from saddleflow.flow.visits import find_dips, inspect, nearest
from saddleflow.problem import geometry
from saddleflow.problem.stationary import hessian_spectrum, polish

STRENGTHS = (3.0, 2.0, 1.0)
# One width for all tests of a depth: one program, or two where coordinates matter.
WIDTH = 8


def gaussian(depth):
    return sf.gaussian(jax.random.key(0), depth=depth, width=WIDTH, shape=(3, 3), variance=1 / WIDTH)


def target(strengths=STRENGTHS):
    """A rotated teacher of these strengths."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    return (left * np.array(strengths)) @ right


def teacher(strengths=STRENGTHS):
    return sf.MeanSquaredError.teacher(target(strengths))


@cache
def flow(depth, alpha, strengths=STRENGTHS, rtol=1e-4, **options):
    """A run to the end from `alpha` times a Gaussian start, towards a rotated teacher of these strengths."""
    return sf.gradient_flow(teacher(strengths), alpha * gaussian(depth), rtol=rtol, progress=False, **options)


def ranks(run):
    return [visit.rank for visit in run.saddles(stationary_points=False)]


def escape_times(run):
    return np.array([visit.escape_time for visit in run.saddles(stationary_points=False)])


@jax.jit
def hessian(cost, network):
    flat, unravel = ravel_pytree(network)
    return jax.hessian(lambda v: cost(unravel(v).end_to_end()))(flat)


def dense_hessian(cost, network):
    return np.linalg.eigvalsh(np.asarray(hessian(cost, network)))


def cost_of(gradient_norm, time):
    """What a flow with these gradient norms makes of the cost, down to 1."""
    fallen = np.concatenate([[0], np.cumsum((gradient_norm[1:] ** 2 + gradient_norm[:-1] ** 2) / 2 * np.diff(time))])
    return 1 + fallen[-1] - fallen


def humps(time):
    """Gradient norms of three escapes, one after the other, each from 0.01 to about 1 and back."""
    return 0.01 + 1.0 / (1 + np.exp(-20 * np.sin(1.5 * time) ** 2 + 6))


def test_dips_are_found_and_noise_in_the_tail_is_not():
    time = np.linspace(0, 10, 401)
    gradient_norm = humps(time)
    period = 2 * np.pi / 3
    cost = cost_of(gradient_norm, time)
    # from the third dip on the cost hardly falls: those rises are noise
    tail = np.searchsorted(time, 2 * period)
    cost[tail:] = cost[tail] - 1e-3 * (cost[tail] - cost[tail:])
    rank = np.searchsorted([period / 2, period * 1.5], time)
    rows = find_dips(gradient_norm, cost, np.diff(time), rank)
    assert [rank[row] for row in rows] == [0, 1]
    assert time[rows[1]] == pytest.approx(period, abs=0.1)


def test_a_saddle_is_a_place_and_not_a_rank():
    """Dips between which the cost falls count each, whatever the rank; at one cost, they are one place."""
    time = np.linspace(0, 2 * np.pi, 401)
    gradient_norm, steps = humps(time), np.diff(time)
    cost, rank = cost_of(gradient_norm, time), np.full(401, 2)
    assert np.round(time[find_dips(gradient_norm, cost, steps, rank)], 1).tolist() == [2.1, 4.2]
    rank[0] = 0  # out of the start the rank rises
    assert len(find_dips(gradient_norm, cost, steps, np.minimum(rank, np.arange(401)))) == 3
    still = np.full(401, 7.0)
    assert find_dips(gradient_norm, still, steps, rank) == []


def test_no_rise_no_dip():
    time = np.linspace(0, 1, 50)
    assert find_dips(np.exp(-time), np.exp(-2 * time), np.diff(time), np.full(50, 3)) == []
    assert find_dips(time[:2], time[:2], np.ones(1), np.array([0, 1])) == []


@pytest.mark.slow
def test_a_rank_is_that_of_the_stationary_point():
    """L = 5: on the second, short plateau the next direction has passed the rank tolerance already."""
    inputs = np.random.default_rng(0).standard_normal((5, 10_000))
    cost = sf.MeanSquaredError(inputs, np.diag([10.0, 20.0, 30.0, 40.0, 50.0]) @ inputs)
    start = sf.gaussian(jax.random.key(0), depth=5, width=10, shape=(5, 5), gamma=1.5)
    run = sf.gradient_flow(cost, start, progress=False)
    visits = run.saddles()
    assert run.rank[visits[1].row] == 2
    assert visits[1].cost == pytest.approx(3025, rel=1e-3)
    assert visits[1].stationary_cost == pytest.approx(3043.65, abs=0.01)
    assert [visit.rank for visit in visits] == ranks(run) == [0, 1, 2, 3, 4]
    # a guess too high ends at the same point, and says so
    network = nearest(run.dips, visits[1])
    assert inspect(replace(visits[1], rank=2), cost, network) == visits[1]


def test_saddles_of_one_rank_are_all_listed():
    """Three layers that learn 8, forget it for -20, learn 4, exchange it for -10: saddles at four known costs."""
    basis = np.array([[1, 1, 1, 0], [1, -1, 0, 1], [-1, 0, 1, 1], [0, 1, -1, 1]]) / np.sqrt(3)
    matrix = basis @ np.diag([-20.0, -10.0, 8.0, 4.0]) @ basis.T
    noise = np.random.default_rng(3).standard_normal((3, 4, 4))
    start = sf.DeepLinearNetwork([jnp.asarray(0.1 * np.eye(4) + 1e-9 * layer) for layer in noise])
    run = sf.gradient_flow(sf.MeanSquaredError(2 * np.eye(4), 2 * matrix), start, rtol=1e-9, progress=False)
    visits = run.saddles()
    assert [visit.rank for visit in visits] == ranks(run) == [0, 1, 1, 2, 2, 3]
    assert [visit.stationary_cost for visit in visits] == pytest.approx([580, 516, 180, 164, 80, 16])
    assert visits[3].cost == pytest.approx(164.0, abs=1e-3)
    assert visits[3].gradient_norm == pytest.approx(0.027, abs=1e-3)
    learned = basis.T @ run.end_to_end[visits[3].row] @ basis
    np.testing.assert_allclose(np.diag(learned), [-20, 0, 0, 4], atol=0.1)
    assert run.num_escapes[-1] == 6


@pytest.mark.parametrize("depth", [2, 3])
def test_visits_of_a_run_and_what_is_behind_them(depth):
    """Costs, speeds, distances and Hessians of a teacher's saddles are known: C_k = sum of s_i^2, i > k."""
    alpha = 1e-6 if depth == 2 else 1e-4
    trajectory = flow(depth, alpha)
    visits = trajectory.saddles()
    assert [visit.rank for visit in visits] == [0, 1, 2]
    assert [visit.stationary_cost for visit in visits] == pytest.approx([14.0, 5.0, 1.0], rel=1e-9)
    assert [visit.cost for visit in visits] == pytest.approx([14.0, 5.0, 1.0], rel=2e-2)
    for visit, strength in zip(visits, STRENGTHS, strict=True):
        assert visit.enter <= visit.time <= visit.leave <= visit.escape_time
        # grad C(A_k) = -2 s_{k+1} on the next mode
        assert visit.predicted_speed == pytest.approx(2 * strength * depth ** (1 - depth / 2))
        if depth == 3 or visit.rank != 1:  # at two layers the second plateau is too short for small deviations
            assert visit.escape_speed == pytest.approx(visit.predicted_speed, rel=0.05)
        assert visit.distance < 0.2
        assert visit.strict == (depth == 2)
        assert visit.index == ((3 - visit.rank) * (8 - visit.rank) if depth == 2 else 0)
    # whitened, C = |A - S|^2: twice the largest eigenvalue L s^(2 - 2/L) of the learned part
    assert visits[1].hessian_range[1] == pytest.approx(2 * depth * 3.0 ** (2 - 2 / depth), rel=1e-3)
    row = visits[1].escape[0]
    assert trajectory.time[row] <= visits[1].escape_time <= trajectory.time[row + 1]
    assert math.isfinite(visits[2].escape_speed)


@pytest.mark.parametrize(("depth", "rank"), [(2, 0), (2, 1), (2, 2), (3, 1), (4, 2)])
def test_the_hessian_at_a_saddle_is_the_dense_one(depth, rank):
    """At polished saddles of the depths that runs of this file visit, and of one more, rectangular."""
    matrix = target() if depth < 4 else np.random.default_rng(depth).standard_normal((4, 3))
    cost = sf.MeanSquaredError.teacher(matrix)  # completion's infimum over a rank need not be attained
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    guess = sf.balanced(jnp.asarray((u[:, :rank] * s[:rank]) @ vh[:rank]), depth=depth, width=WIDTH)
    # off the saddle within its rank; the balance of the layers is broken too
    near = sf.DeepLinearNetwork((1 + 0.01 * index) * layer for index, layer in enumerate(guess.layers))
    point = polish(cost, near, rank=rank)
    assert bool(point.converged)
    assert rank == 0 or float(point.distance) > 1e-3
    spectrum = hessian_spectrum(cost, point.network, rank)
    dense = dense_hessian(cost, point.network)
    assert spectrum.least == pytest.approx(dense[0], abs=1e-7)
    assert spectrum.largest == pytest.approx(dense[-1], abs=1e-7)
    assert spectrum.index == int(np.sum(dense < -1e-7))


def test_lanczos_and_dense_agree():
    cost = teacher()
    network = sf.gaussian(jax.random.key(3), depth=3, width=5, shape=(3, 3), variance=0.2)
    spectrum = hessian_spectrum(cost, network, 5)  # 55 parameters and beyond: by Lanczos
    wide = hessian_spectrum(cost, sf.include(network, 6), 6)
    dense = dense_hessian(cost, network)
    assert spectrum.least == pytest.approx(dense[0], rel=1e-6)
    assert wide.largest == pytest.approx(dense[-1], rel=1e-6)
    assert spectrum.index == int(np.sum(dense < -1e-8 * dense[-1]))


def test_merged_escapes_skip_a_rank():
    trajectory = flow(3, 1e-6, (2.0, 2.0, 0.7))
    visits = trajectory.saddles()
    assert [visit.rank for visit in visits] in ([0, 2], [0, 1, 2])
    assert visits[-1].rank == 2
    assert visits[-1].cost == pytest.approx(0.49, rel=1e-2)


def test_lazy_runs_visit_none_and_say_so():
    lazy = flow(3, 2.0, graded=False)
    assert lazy.stop_reason == "converged"
    assert lazy.saddles() == []
    assert "no plateau" in repr(lazy)
    assert np.all(lazy.num_escapes == 0)
    np.testing.assert_allclose(lazy.time_since_escape, lazy.time)
    with pytest.raises(ValueError, match="`axis` must fit the run"):
        lazy.plot(axis="t / t_escape")


def test_time_since_escape_resolves_what_time_cannot(tmp_path):
    """L = 3 at alpha = 1e-13: plateaus of 1e13, escapes within times of order one."""
    trajectory = flow(3, 1e-13)
    assert ranks(trajectory) == [0, 1, 2]
    assert list(np.unique(trajectory.num_escapes)) == [0, 1, 2, 3]
    visits = trajectory.saddles(stationary_points=False)
    row = visits[1].escape[0]
    assert trajectory.time[row] > 1e11
    around = trajectory.clock.since(*visits[1].escape)[row - 1 : row + 3]
    assert np.all(np.diff(around) > 0)
    assert np.ptp(around) < 10
    since = trajectory.time_since_escape
    assert np.all(since >= 0)
    loaded = sf.load(trajectory.save(tmp_path / "run.nc"))
    np.testing.assert_array_equal(loaded.time_since_escape, since)
    assert loaded.saddles() == visits
    assert visits[0].distance is None


def test_a_loaded_run_with_its_cost_knows_its_saddles(tmp_path):
    trajectory = flow(3, 1e-4)
    loaded = sf.load(trajectory.save(tmp_path / "run.nc"), teacher())
    assert loaded.saddles() == trajectory.saddles()
    assert loaded.saddles()[1].distance is not None


@pytest.mark.parametrize("axis", ["t", "log t", "t / t_escape", "arc length"])
def test_pictures_mark_plateaus_along_every_axis(axis):
    trajectory = flow(3, 1e-3)
    figure = trajectory.plot(axis=axis)
    top, bottom = figure.axes
    assert [text.get_text() for text in top.texts] == ["origin", "rank 1", "rank 2"]
    assert len(top.patches) == 3
    along = top.lines[0].get_xdata()
    assert np.all(np.diff(along) >= 0)
    if axis == "t / t_escape":
        assert np.interp(escape_times(trajectory)[0], trajectory.time, along) == pytest.approx(1)
    assert bottom.get_xscale() == ("log" if axis == "log t" else "linear")
    plt.close(figure)


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="`axis` must be one of"):
        flow(3, 1e-3).plot(axis="steps")


def test_arc_length_of_a_straight_path():
    """A balanced mode moves along a ray: its path is as long as the distance."""
    cost = sf.MeanSquaredError.teacher(np.diag([2.0, 0.0, 0.0]))
    start = sf.balanced(jnp.diag(jnp.array([1e-3, 0.0, 0.0])), depth=2, width=WIDTH)
    run = sf.gradient_flow(cost, start, rtol=1e-9, graded=True, progress=False)
    moved = jax.tree.map(lambda a, b: a - b, run.network, start)
    assert run.arc_length[-1] == pytest.approx(float(geometry.norm(moved)), rel=1e-3)


@pytest.mark.parametrize("depth", [2, 3])
def test_balanced_modes_wait_in_proportion(depth):
    """t_k / t_1 -> s_1 / s_k for balanced, aligned modes (derived; docs/theory.md, section 4)."""
    strengths, alpha = np.array([3.0, 2.5, 2.0]), 1e-10
    cost = sf.MeanSquaredError.teacher(np.diag(strengths))
    start = alpha * sf.balanced(jnp.eye(3), depth=depth, width=WIDTH)
    run = sf.gradient_flow(cost, start, rtol=1e-5, progress=False)
    assert run.stop_reason == "converged"
    times = escape_times(run)
    np.testing.assert_allclose(times / times[0], sf.theory.waiting_time_ratio(strengths), rtol=0.01)


@pytest.mark.parametrize(
    "depth", [2, 3, pytest.param(4, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_escape_times_follow_the_homogeneous_flow(depth):
    """t_1 alpha^(L-2) -> the blow-up time of the homogeneous flow; t_1 - log(1/alpha) / s_1 -> const. for L = 2."""
    alphas = {2: (1e-6, 1e-9, 1e-12), 3: (1e-4, 1e-6, 1e-8), 4: (1e-4, 1e-5, 1e-6), 5: (1e-3, 3e-4, 1e-4)}[depth]
    times = np.array([escape_times(flow(depth, alpha, rtol=1e-5))[0] for alpha in alphas])
    if depth == 2:
        slope = np.polyfit(-np.log(alphas), times, 1)[0]
        assert slope * 2 * STRENGTHS[0] == pytest.approx(1, rel=0.01)
        return
    slope = np.polyfit(np.log(alphas), np.log(times), 1)[0]
    assert slope == pytest.approx(-(depth - 2), rel=0.01)
    end = blow_up_time(np.asarray(teacher().gradient(jnp.zeros((3, 3)))), gaussian(depth))
    scaled = times * np.array(alphas) ** (depth - 2)
    assert scaled[-1] == pytest.approx(end, rel=0.01)
    assert abs(scaled[-1] - end) < abs(scaled[0] - end) or math.isclose(scaled[0], end, rel_tol=1e-4)


def blow_up_time(gradient, network):
    return sf.theory.homogeneous_escape(gradient, [np.asarray(layer) for layer in network.layers]).time


def test_a_blow_up_ends_as_non_finite_when_it_is_due(linear_cost):
    gradient = -np.diag(STRENGTHS)
    run = sf.gradient_flow(linear_cost(jnp.asarray(gradient)), gaussian(3), rtol=1e-4, progress=False, max_steps=5000)
    assert run.stop_reason == "non_finite"
    assert run.time[-1] == pytest.approx(blow_up_time(gradient, gaussian(3)), rel=1e-3)


# What is resolved at this scale for certain, and what rounding is certain to decide; between them the target matters.
RESOLVED = {2: 0.0, 3: 1e-15, 4: 1e-7, 6: 1e-3, 8: 1e-2}
LOST = {2: 0.0, 3: 1e-17, 4: 1e-9, 6: 1e-6, 8: 1e-4}


@pytest.mark.parametrize(("depth", "alpha"), [(2, 1e-4), (2, 1e-15), (3, 1e-4), (3, 1e-15), (4, 1e-4), (4, 1e-15)])
def test_no_saddle_is_called_converged(depth, alpha):
    run = flow(depth, alpha, rtol=1e-3)
    if run.stop_reason == "converged":
        assert alpha >= LOST[depth]
        assert run.train_cost[-1] < 1e-6
    else:
        assert alpha < RESOLVED[depth]
        assert run.stop_reason == "below_resolution"
        assert run.rank[-1] < 3


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-15])
@pytest.mark.parametrize("depth", [2, 3, 4, 6, 8])
def test_no_saddle_is_called_converged_at_any_scale(depth, alpha):
    test_no_saddle_is_called_converged(depth, alpha)
    run = flow(depth, alpha, rtol=1e-3, graded=False, max_steps=2000)
    assert run.stop_reason != "converged" or run.train_cost[-1] < 1e-6


@pytest.mark.parametrize("graded", [False, True])
def test_starts_on_a_saddle_are_named(graded):
    cost = sf.MeanSquaredError.teacher(np.diag(STRENGTHS))
    some = gaussian(3)
    zeros = [jnp.zeros_like(layer) for layer in some.layers]
    zero, two_zero = sf.DeepLinearNetwork(zeros), sf.DeepLinearNetwork([some.layers[0], *zeros[1:]])
    rank_one = sf.balanced(jnp.diag(jnp.array([3.0, 0.0, 0.0])), depth=3, width=WIDTH)
    for start in (zero, two_zero, rank_one):
        run = sf.gradient_flow(cost, start, graded=graded, progress=False)
        assert run.stop_reason == "stationary_saddle"
        assert run.stats["num_steps"] == 0


@pytest.mark.parametrize(("graded", "width"), [(False, WIDTH), (True, 4)])
def test_coming_to_rest_on_a_saddle_is_no_convergence(graded, width):
    """Without a free neuron the flow ends on the rank-one saddle, and knows it."""
    cost = sf.MeanSquaredError.teacher(np.diag(STRENGTHS))
    start = sf.gaussian(jax.random.key(0), depth=3, width=1, shape=(3, 3), variance=0.1)
    run = sf.gradient_flow(cost, sf.include(start, width), rtol=1e-5, graded=graded, max_steps=3000, progress=False)
    assert run.stop_reason == "stationary_saddle"
    assert run.train_cost[-1] == pytest.approx(5.0)
    assert run.rank[-1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1e-3, 1e-8])
def test_two_layer_plateaus_that_are_missing_are_missing_in_the_flow_itself(alpha):
    """L = 2, docs/small_starts.md: an explicit solver at a tight tolerance shows the same plateaus."""
    cost = sf.MatrixCompletion.random(jax.random.key(10))
    theta = sf.gaussian(jax.random.key(1000), depth=2, width=20, shape=(10, 10), variance=1 / 20)
    ours = sf.gradient_flow(cost, alpha * theta, rtol=1e-3, progress=False)
    explicit = sf.gradient_flow(
        cost, alpha * theta, rtol=1e-10, solver=diffrax.Dopri8(), max_saves=3000, progress=False
    )
    visits = [run.saddles(stationary_points=False) for run in (ours, explicit)]
    assert ranks(ours) == ranks(explicit)
    for mine, other in zip(*visits, strict=True):
        assert mine.cost == pytest.approx(other.cost, rel=1e-2)
        assert mine.escape_time == pytest.approx(other.escape_time, rel=1e-2)
