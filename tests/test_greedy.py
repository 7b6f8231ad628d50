import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import saddleflow as sf
from saddleflow.greedy import algorithms as greedy
from saddleflow.greedy import growing
from saddleflow.greedy.paths import GreedyPath, load_path
from saddleflow.problem import geometry

# Rectangular, and one shape for all tests of squared errors: one program a depth.
SHAPE = (3, 4)


def quiet(cost, depth=3, **arguments):
    return sf.saddle_to_saddle(cost, depth, save_networks=True, progress=False, **arguments)


def diagonal(*strengths):
    return sf.MeanSquaredError.teacher(np.eye(*SHAPE) * np.array(strengths)[:, None])


def turning():
    """A task whose singular directions turn as it is learned: its inputs are not whitened."""
    rng = np.random.default_rng(0)
    inputs = np.diag([1.0, 0.8, 0.6, 0.4]) @ rng.standard_normal((SHAPE[1], 10))
    return sf.MeanSquaredError(inputs, rng.standard_normal(SHAPE) @ inputs)


def at_level(stage, level):
    """A where the train cost of a stage crosses a level, between its rows."""
    entries = stage.end_to_end.reshape(len(stage.time), -1).T
    return np.array([np.interp(-level, -stage.train_cost, entry) for entry in entries])


class Unbounded(sf.Cost):
    """Costs without a minimiser: the mean logistic loss of signs, whose infimum is 0, plus a linear term.

    One cost, so one program; both in the same coordinates, which its curvature decides.
    """

    signs: jax.Array
    slope: jax.Array

    @property
    def shape(self):
        return self.signs.shape

    @property
    def has_test(self):
        return False

    def __call__(self, matrix):
        return jnp.mean(jnp.logaddexp(0.0, -self.signs * matrix)) + self.slope * jnp.sum(self.signs * matrix)

    def test(self, matrix):
        raise ValueError("no test set")


@pytest.mark.parametrize("depth", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_diagonal_targets_are_learned_mode_by_mode(depth):
    strengths = np.array([3.0, 2.0, 0.5])
    path = quiet(diagonal(*strengths), depth)
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
    coarse, fine = (quiet(turning(), rtol=rtol, max_stages=1).stages[0] for rtol in (1e-4, 1e-8))
    row = np.argmin(np.abs(coarse.train_cost - 0.5 * (fine.train_cost[0] + fine.train_cost[-1])))
    expected = at_level(fine, coarse.train_cost[row])
    np.testing.assert_allclose(coarse.end_to_end[row].ravel(), expected, atol=5e-3)
    assert fine.singular_values[:, 1].max() < 1e-12  # one neuron: rank one


def test_a_rank_deficient_task_ends_at_a_certified_minimum():
    rng = np.random.default_rng(1)
    target = rng.standard_normal((SHAPE[0], 2)) @ rng.standard_normal((2, SHAPE[1]))
    cost = sf.MeanSquaredError.teacher(target)
    path = quiet(cost)
    assert path.stop_reason == "converged"
    assert [p.rank for p in path.points] == [0, 1, 2]
    squares = np.linalg.svd(target, compute_uv=False) ** 2
    np.testing.assert_allclose([p.cost for p in path.saddles], [squares.sum(), squares[1:].sum()], rtol=1e-9)
    assert path.minimum.cost < 1e-20
    assert np.linalg.norm(cost.gradient(path.minimum.end_to_end)) < 1e-9


def test_repeated_values_are_reported_as_multiple():
    path = quiet(diagonal(2.0, 2.0, 1.0))
    assert path.stop_reason == "converged"
    assert [s.multiplicity for s in path.saddles] == [2, 1, 1]
    np.testing.assert_allclose([p.cost for p in path.points], [9.0, 5.0, 1.0, 0.0], atol=1e-9)
    assert "2-fold" in repr(path)


@pytest.mark.slow
def test_a_single_observed_entry_takes_one_stage():
    observed = np.zeros(SHAPE, bool)
    observed[1, 2] = True
    path = quiet(sf.MatrixCompletion(np.full(SHAPE, -1.5), observed), 4)
    assert path.stop_reason == "converged"
    assert len(path.stages) == 1
    np.testing.assert_allclose(path.minimum.end_to_end, np.where(observed, -1.5, 0.0), atol=1e-10)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_a_cost_without_minimiser_diverges(slope):
    signs = np.sign(np.outer([1.0, -1.0, 1.0], [1.0, 1.0, -1.0]))
    path = quiet(Unbounded(jnp.asarray(signs), jnp.asarray(slope)))
    assert path.stop_reason == "diverges"
    assert path.minimum is None
    assert [s.rank for s in path.saddles] == [0]
    assert len(path.stages) == 1


def test_other_ends():
    cost = diagonal(3.0, 2.0, 1.0)
    path = quiet(cost, max_stages=1)
    assert path.stop_reason == "max_stages"
    assert [s.rank for s in path.saddles] == [0, 1]
    assert quiet(cost, max_steps=5).stop_reason == "max_steps"
    at_rest = quiet(diagonal(0.0, 0.0, 0.0))
    assert (at_rest.stop_reason, len(at_rest.stages), at_rest.minimum.cost) == ("converged", 0, 0.0)


@pytest.mark.slow
def test_tasks_of_one_shape_go_through_vmap():
    turned = sf.MeanSquaredError.teacher(np.random.default_rng(0).standard_normal(SHAPE))
    costs = [diagonal(3.0, 2.0, 0.0), diagonal(1.0, 0.0, 0.0), turned]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *costs)
    points = jax.jit(jax.vmap(lambda cost: greedy.stationary_points(cost, 3, 2)))(batch)
    assert points.train_cost.shape == (3, 3)
    for lane, cost in enumerate(costs):
        path = quiet(cost, max_stages=2)
        expected = [p.cost for p in path.points] + [path.points[-1].cost] * (3 - len(path.points))
        np.testing.assert_allclose(points.train_cost[lane], expected, rtol=1e-6, atol=1e-12)
        certified = [False] * len(path.saddles) + [True] * (3 - len(path.saddles))
        np.testing.assert_array_equal(points.certified[lane], certified)


def test_algorithm_a_converges_to_its_limit():
    cost, rate = turning(), 0.001
    limit = quiet(cost, rtol=1e-8, max_stages=1)
    costs = limit.stages[0].train_cost
    row = np.argmin(np.abs(costs - 0.5 * (costs[0] + costs[-1])))
    gaps, strength = [], limit.saddles[0].strengths[0]
    # as many steps for all: one program
    steps = int((4 / strength / 0.1 + 25) / rate)
    for epsilon in (0.4, 0.2, 0.1):
        arguments = {"learning_rate": rate, "max_stages": 1, "minimum_cost": -1.0, "max_saves": steps}
        path = sf.greedy_descent(cost, 3, epsilon=epsilon, num_steps=steps, **arguments)
        np.testing.assert_allclose(path.saddles[-1].end_to_end, limit.saddles[1].end_to_end, atol=1e-3)
        on_path = at_level(path.stages[0], costs[row])
        gaps.append(np.linalg.norm(on_path - limit.stages[0].end_to_end[row].ravel()))
    # the ray differs from the escape path by epsilon^L, until the length of the descent's steps takes over
    assert gaps[0] > 4 * gaps[1], gaps
    assert gaps[1] > gaps[2], gaps


def test_algorithm_a_to_the_letter():
    cost = diagonal(1.0, 0.5, 0.25)
    path = sf.greedy_descent(cost, 3, epsilon=0.4, num_steps=30, learning_rate=0.05, minimum_cost=-1.0, max_stages=1)
    assert path.stop_reason == "max_stages"
    stage = path.stages[0]
    # by hand: one neuron on the first mode, w_1 = w_2 = w_3 = a, a <- a + eta 2 (1 - a^3) a^2
    a = 0.4
    for _ in range(30):
        a += 0.05 * 2 * (1 - a**3) * a**2
    expected = np.zeros(SHAPE)
    expected[0, 0] = a**3
    np.testing.assert_allclose(stage.network.end_to_end(), expected, rtol=1e-12, atol=1e-15)
    assert stage.time[-1] == pytest.approx(1.5)
    assert "learning rate 5.0e-02" in repr(stage)
    # the next neuron sits on the top singular pair of what is left
    pair = growing.top_pair(jnp.diag(jnp.array([0.1, 0.5])))
    network = sf.DeepLinearNetwork([np.ones((2, 2)), np.zeros((2, 2))])
    network = growing.add_neuron(network, jnp.asarray(1), jnp.asarray(0.1), pair)
    np.testing.assert_allclose(network.layers[0][1], [0.0, -0.1])


def test_short_stages_are_warned_of_with_the_steps_that_would_do():
    cost = diagonal(1.0, 0.5, 0.25)
    with pytest.warns(UserWarning, match="num_steps=200 would do"):
        # (L - 2) s_1 eps = 1 * 2 * .05: escapes in time 10, 100 steps
        sf.greedy_descent(cost, 3, epsilon=0.05, num_steps=99, learning_rate=0.1, max_stages=1, max_saves=31)
    sf.greedy_descent(cost, 3, epsilon=0.05, num_steps=101, learning_rate=0.1, max_stages=1, max_saves=31)
    unstable = sf.greedy_descent(cost, 3, epsilon=0.5, num_steps=200, learning_rate=2.0, max_saves=31)
    assert unstable.stop_reason == "non_finite"


def same(network, other):
    return all(np.array_equal(a, b) for a, b in zip(network.layers, other.layers, strict=True))


def assert_identical(path: GreedyPath, other: GreedyPath):
    """Bit for bit, but for the costs, which files do not hold."""
    assert repr(other) == repr(path)
    assert other.stop_reason == path.stop_reason
    assert (other.minimum is None) == (path.minimum is None)
    for point, again in zip(path.points, other.points, strict=True):
        assert same(point.network, again.network)
        np.testing.assert_array_equal(point.strengths, again.strengths)
        for name in ("rank", "cost", "test_cost", "gradient_norm", "escape_speed", "multiplicity"):
            assert getattr(again, name) == getattr(point, name)
    for stage, again in zip(path.stages, other.stages, strict=True):
        # what is left to learn is known with the cost alone
        assert repr(again) in repr(stage)
        assert same(stage.network, again.network)
        assert same(stage.networks, again.networks)
        xr.testing.assert_identical(again.to_xarray(), stage.to_xarray())


def test_paths_come_back_from_their_files(tmp_path):
    with_test = sf.MatrixCompletion.random(jax.random.key(3), shape=SHAPE, rank=2, observed=0.8)
    how = {"epsilon": 0.5, "num_steps": 30, "learning_rate": 0.5, "minimum_cost": -1.0, "max_stages": 1}
    descent = sf.greedy_descent(with_test, 3, **how)
    assert descent.points[0].test_cost is not None
    cost = diagonal(3.0, 2.0, 1.0)
    paths = [quiet(cost), quiet(cost, max_stages=1), descent, quiet(diagonal(0.0, 0.0, 0.0))]
    assert [len(path.stages) for path in paths] == [3, 1, 1, 0]
    for number, path in enumerate(paths):
        assert_identical(path, load_path(path.save(tmp_path / f"{number}.nc")))
    assert load_path(tmp_path / "0.nc", cost).stages[0].cost is cost
    # without the library, the root of the file is the path's dataset
    with xr.open_dataset(tmp_path / "0.nc", engine="h5netcdf") as data:
        assert data.attrs["stop_reason"] == "converged"
        np.testing.assert_array_equal(data.point_rank, [0, 1, 2, 3])
        np.testing.assert_array_equal(data.train_cost, np.concatenate([s.train_cost for s in paths[0].stages]))
    with pytest.raises(ValueError, match="must not exist yet"):
        paths[0].save(tmp_path / "0.nc")


def test_files_of_something_else_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.nc"):
        load_path(tmp_path / "missing.nc")
    (tmp_path / "text.nc").write_text("no NetCDF")
    with pytest.raises(ValueError, match=r"`path` must hold a greedy path.*text.nc"):
        load_path(tmp_path / "text.nc")
    path = quiet(diagonal(3.0, 2.0, 1.0), max_stages=1)
    with pytest.raises(ValueError, match=r"`path` must hold a greedy path.*stage.nc"):
        load_path(path.stages[0].save(tmp_path / "stage.nc"))
    with pytest.raises(ValueError, match=r"`path` must hold a saddleflow trajectory.*path.nc"):
        sf.load(path.save(tmp_path / "path.nc"))


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
        (lambda cost: quiet(cost, max_stages=0), "`max_stages` must be an integer >= 1"),
        (lambda cost: quiet(cost, rtol=2.0), "`rtol` must lie"),
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
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(turning())
