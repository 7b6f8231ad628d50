import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import saddleflow as sf
from saddleflow.greedy import algorithms as greedy
from saddleflow.greedy import growing
from saddleflow.problem import geometry


def quiet(cost, depth, **arguments):
    return sf.saddle_to_saddle(cost, depth, save_networks=True, progress=False, **arguments)


def at_level(stage, level):
    """A where the train cost of a stage crosses a level, between its rows."""
    return np.array([np.interp(-level, -stage.train_cost, entry) for entry in stage.end_to_end.reshape(-1, 9).T])


def task(observed=0.8):
    return sf.MatrixCompletion.random(jax.random.key(3), shape=(3, 3), rank=2, observed=observed)


class Logistic(sf.Cost):
    """Mean logistic loss of signs: convex, bounded below, and without a minimiser."""

    signs: jax.Array

    @property
    def shape(self):
        return self.signs.shape

    @property
    def has_test(self):
        return False

    def __call__(self, matrix):
        return jnp.mean(jnp.logaddexp(0.0, -self.signs * matrix))

    def test(self, matrix):
        raise ValueError("no test set")


class Linear(Logistic):
    """A linear cost: unbounded below."""

    def __call__(self, matrix):
        return jnp.sum(self.signs * matrix)


@pytest.mark.parametrize("depth", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_diagonal_targets_are_learned_mode_by_mode(depth):
    strengths = np.array([3.0, 2.0, 0.5])
    path = quiet(sf.MeanSquaredError.teacher(np.diag(strengths)), depth)
    assert path.stop_reason == "converged"
    assert [p.rank for p in path.points] == [0, 1, 2, 3]
    np.testing.assert_allclose([p.cost for p in path.points], [13.25, 4.25, 0.25, 0.0], atol=1e-9)
    # G = 2 (A - S), so s* = L^(1 - L/2) 2 s_k
    np.testing.assert_allclose([s.escape_speed for s in path.saddles], 2 * strengths * depth ** (1 - depth / 2))
    for k, (stage, saddle, after) in enumerate(zip(path.stages, path.saddles, path.points[1:], strict=False)):
        assert saddle.gradient_norm < 1e-10
        assert saddle.multiplicity == 1
        assert stage.network.width == after.network.width == k + 1
        np.testing.assert_allclose(stage.end_to_end[0], saddle.end_to_end, atol=1e-4)
        np.testing.assert_allclose(stage.end_to_end[-1], after.end_to_end, atol=1e-2)
        assert np.all(np.diff(stage.train_cost) < 1e-12)


def test_the_start_is_on_the_escape_path():
    # a looser start meets the path later, and then follows the same
    coarse, fine = (quiet(task(), 3, rtol=rtol, max_stages=1).stages[0] for rtol in (1e-4, 1e-8))
    row = np.argmin(np.abs(coarse.train_cost - 0.5 * (fine.train_cost[0] + fine.train_cost[-1])))
    expected = at_level(fine, coarse.train_cost[row])
    np.testing.assert_allclose(coarse.end_to_end[row].ravel(), expected, atol=5e-3)
    assert fine.singular_values[:, 1].max() < 1e-12  # one neuron: rank one


def test_a_rectangular_rank_deficient_task_ends_at_a_certified_minimum():
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(5, 12), rank=2, observed=1.0)
    path = quiet(cost, 3)
    assert path.stop_reason == "converged"
    assert [p.rank for p in path.points] == [0, 1, 2]
    squares = np.linalg.svd(cost.target, compute_uv=False) ** 2
    np.testing.assert_allclose(
        [p.cost for p in path.saddles], [squares.sum() / 60, squares[1:].sum() / 60], rtol=1e-9
    )
    assert path.minimum.cost < 1e-20
    assert np.linalg.norm(cost.gradient(path.minimum.end_to_end)) < 1e-9


def test_repeated_values_are_reported_as_multiple():
    path = quiet(sf.MeanSquaredError.teacher(np.diag([2.0, 2.0, 1.0])), 3)
    assert path.stop_reason == "converged"
    assert [s.multiplicity for s in path.saddles] == [2, 1, 1]
    np.testing.assert_allclose([p.cost for p in path.points], [9.0, 5.0, 1.0, 0.0], atol=1e-9)
    assert "2-fold" in repr(path)


def test_a_single_observed_entry_takes_one_stage():
    observed = np.zeros((3, 3), bool)
    observed[1, 2] = True
    path = quiet(sf.MatrixCompletion(np.full((3, 3), -1.5), observed), 4)
    assert path.stop_reason == "converged"
    assert len(path.stages) == 1
    expected = np.where(observed, -1.5, 0.0)
    np.testing.assert_allclose(path.minimum.end_to_end, expected, atol=1e-10)


@pytest.mark.parametrize(("kind", "depth"), [(Logistic, 3), (Linear, 2)])
def test_a_cost_without_minimiser_diverges(kind, depth):
    signs = np.sign(np.outer([1.0, -1.0, 1.0], [1.0, 1.0, -1.0]))
    path = quiet(kind(jnp.asarray(signs)), depth)
    assert path.stop_reason == "diverges"
    assert path.minimum is None
    assert [s.rank for s in path.saddles] == [0]
    assert len(path.stages) == 1


def test_other_ends():
    cost = sf.MeanSquaredError.teacher(np.diag([3.0, 2.0, 1.0]))
    path = quiet(cost, 3, max_stages=1)
    assert path.stop_reason == "max_stages"
    assert [s.rank for s in path.saddles] == [0, 1]
    assert quiet(cost, 3, max_steps=5).stop_reason == "max_steps"
    at_rest = quiet(sf.MeanSquaredError.teacher(np.zeros((3, 3))), 3)
    assert (at_rest.stop_reason, len(at_rest.stages), at_rest.minimum.cost) == ("converged", 0, 0.0)


def test_tasks_of_one_shape_go_through_vmap():
    targets = [
        np.diag([3.0, 2.0, 0.0]),
        np.diag([1.0, 0.0, 0.0]),
        np.array([[1.0, 0.4, 0], [0.1, 2, 1], [0, 0, 0.5]]),
    ]
    costs = [sf.MeanSquaredError.teacher(target) for target in targets]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *costs)
    points = jax.jit(jax.vmap(lambda cost: greedy.stationary_points(cost, 3, 2)))(batch)
    assert points.train_cost.shape == (3, 3)
    for lane, cost in enumerate(costs):
        path = quiet(cost, 3, max_stages=2)
        expected = [p.cost for p in path.points] + [path.points[-1].cost] * (3 - len(path.points))
        np.testing.assert_allclose(points.train_cost[lane], expected, rtol=1e-6, atol=1e-12)
        certified = [False] * len(path.saddles) + [True] * (3 - len(path.saddles))
        np.testing.assert_array_equal(points.certified[lane], certified)


def test_algorithm_a_converges_to_its_limit():
    cost = task()
    limit = quiet(cost, 3, rtol=1e-8, max_stages=1)
    costs = limit.stages[0].train_cost
    row = np.argmin(np.abs(costs - 0.5 * (costs[0] + costs[-1])))
    gaps = []
    for epsilon in (0.4, 0.2, 0.1):
        steps = int((4 / limit.saddles[0].strengths[0] / epsilon + 200) / 0.01)
        arguments = {"learning_rate": 0.01, "max_stages": 1, "minimum_cost": -1.0, "max_saves": steps}
        path = sf.greedy_descent(cost, 3, epsilon=epsilon, num_steps=steps, **arguments)
        np.testing.assert_allclose(path.saddles[-1].end_to_end, limit.saddles[1].end_to_end, atol=1e-3)
        on_path = at_level(path.stages[0], costs[row])
        gaps.append(np.linalg.norm(on_path - limit.stages[0].end_to_end[row].ravel()))
    # the ray differs from the escape path by epsilon^L, until the length of the descent's steps takes over
    assert gaps[0] > 4 * gaps[1], gaps
    assert gaps[1] > gaps[2], gaps


def test_algorithm_a_to_the_letter():
    cost = sf.MeanSquaredError.teacher(np.diag([1.0, 0.5]))
    path = sf.greedy_descent(cost, 2, epsilon=0.1, num_steps=30, learning_rate=0.05, max_stages=1)
    assert path.stop_reason == "max_stages"
    stage = path.stages[0]
    # by hand: one neuron on the first mode, w_1 = w_2 = a, a <- a + eta 2 (1 - a^2) a
    a = 0.1
    for _ in range(30):
        a += 0.05 * 2 * (1 - a**2) * a
    np.testing.assert_allclose(np.abs(stage.network.end_to_end()), np.diag([a**2, 0.0]), rtol=1e-12, atol=1e-15)
    assert stage.time[-1] == pytest.approx(1.5)
    assert "learning rate 5.0e-02" in repr(stage)
    # the next neuron sits on the top singular pair of what is left
    pair = growing.top_pair(jnp.diag(jnp.array([0.1, 0.5])))
    network = growing.add_neuron(sf.include(stage.network, 2), jnp.asarray(1), jnp.asarray(0.1), pair)
    np.testing.assert_allclose(network.layers[0][1], [0.0, -0.1])


def test_short_stages_are_warned_of_with_the_steps_that_would_do():
    cost = sf.MeanSquaredError.teacher(np.diag([1.0, 0.5]))
    with pytest.warns(UserWarning, match="num_steps=200 would do"):
        # (L - 2) s_1 eps = 1 * 2 * .05: escapes in time 10, 100 steps
        sf.greedy_descent(cost, 3, epsilon=0.05, num_steps=99, learning_rate=0.1, max_stages=1)
    sf.greedy_descent(cost, 3, epsilon=0.05, num_steps=101, learning_rate=0.1, max_stages=1)
    unstable = sf.greedy_descent(cost, 3, epsilon=0.5, num_steps=200, learning_rate=2.0)
    assert unstable.stop_reason == "non_finite"


def test_paths_are_saved(tmp_path):
    path = quiet(task(), 3, max_stages=1)
    assert path.stages[0].networks.layers[0].shape == (len(path.stages[0].time), 1, 3)
    with xr.open_dataset(path.save(tmp_path / "path.nc"), engine="h5netcdf") as data:
        assert data.attrs["stop_reason"] == "max_stages"
        np.testing.assert_array_equal(data.train_cost, path.stages[0].train_cost)
        np.testing.assert_array_equal(data.point_rank, [0, 1])
    with pytest.raises(ValueError, match="must not exist yet"):
        path.save(tmp_path / "path.nc")


def test_neurons_are_added_cut_and_killed():
    network = sf.gaussian(jax.random.key(0), depth=3, width=4, shape=(3, 2), gamma=1.0)
    killed = growing.kill(network, jnp.asarray(2))
    again = sf.include(growing.narrow(network, 2), 4)
    assert float(geometry.norm(jax.tree.map(jnp.subtract, killed, again))) == 0.0
    assert [growing.working_width(k) for k in (1, 4, 5, 9)] == [4, 4, 8, 16]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cost: quiet(cost, 1), "`depth` must be an integer >= 2"),
        (lambda cost: quiet(cost, 3, max_stages=0), "`max_stages` must be an integer >= 1"),
        (lambda cost: quiet(cost, 3, rtol=2.0), "`rtol` must lie"),
        (lambda cost: greedy.stationary_points(cost, 3, 0), "`num_stages` must be an integer >= 1"),
        (
            lambda cost: sf.greedy_descent(cost, 3, epsilon=0.0, num_steps=10, learning_rate=0.1),
            "`epsilon` must be finite and positive",
        ),
        (
            lambda cost: sf.greedy_descent(cost, 3, epsilon=0.1, num_steps=0, learning_rate=0.1),
            "`num_steps` must be an integer >= 1",
        ),
    ],
)
def test_bad_arguments_are_named(small_cost, call, message):
    with pytest.raises(ValueError, match=message):
        call(small_cost)
