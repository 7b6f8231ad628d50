"""Long tails: a cost without a minimiser, on which A grows like a power of time for ever."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import rows

import saddleflow as sf

# One entry is free: the product of the others' rows and columns wants it infinite.
COST = sf.MatrixCompletion(np.array([[0.0, 1], [1, 0]]), np.array([[False, True], [True, True]]))
TIMES = rows([1e4, 1e6, 1e9, 1e12])

# A_00 at these times by SciPy's Radau at 1e-12, on the two variables of the balanced symmetric flow of rank one: the
# log of its singular value, its angle.
EXACT = {
    2: (34.052662325628454, 158.70858412397033, 1587.3979019531594, 15874.010204700231),
    3: (59.05513246284677, 333.1072836804743, 4442.46793333772, 59241.2920283355),
    4: (84.77401619587044, 536.4572053010054, 8502.827950782981, 134760.77377562423),
    5: (110.05639121321532, 752.0789738079993, 13374.804029762021, 237841.42288910953),
    6: (134.468945, 970.815060, 18744.4565, 361898.839),
}

slow = pytest.mark.slow
DEPTHS = [2, pytest.param(3, marks=slow), 4, pytest.param(5, marks=slow), pytest.param(6, marks=slow)]


def start(depth):
    return sf.balanced(jnp.full((2, 2), 5e-4), depth=depth, width=2)


@pytest.fixture(scope="module", params=DEPTHS)
def tail(request):
    """The depth, and a function of rtol and of whether coordinates are graded: the flow to t = 1e12."""
    depth = request.param

    def run(rtol, graded=False):
        return sf.gradient_flow(COST, start(depth), rtol=rtol, save_at=TIMES, graded=graded)

    return depth, run


@pytest.mark.parametrize("rtol", [1e-4, 1e-6, pytest.param(1e-8, marks=pytest.mark.slow)])
def test_a_tail_holds_the_tolerance_to_the_end(tail, rtol):
    """Within 10 rtol at every time; linearly implicit steps alone are 2,176 rtol off (L = 4, rtol 1e-6, t = 1e12)."""
    depth, run = tail
    trajectory = run(rtol)
    assert trajectory.stop_reason == "t1"
    error = trajectory.end_to_end[:4, 0, 0] / EXACT[depth] - 1
    assert np.abs(error).max() < 10 * rtol
    assert trajectory.stats["balancedness_drift"] < rtol
    assert trajectory.stats["num_tail_steps"] > 0
    # linearly implicit steps: 8,021 (L = 4, rtol 1e-4)
    assert trajectory.stats["num_steps"] < 300 * np.log10(1 / rtol)


@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
def test_the_way_into_a_tail_holds_the_tolerance(rtol):
    """Around the handing over: 20 rtol off where only the tail solver's steps were short, 24 where it began with long
    ones."""
    exact = [13.978972993888364, 48.94612306924319, 99.62655409761825, 128.49049422562769, 181.2536316755894]
    times = rows([1e2, 1e3, 5e3, 9e3, 2e4])
    trajectory = sf.gradient_flow(COST, start(6), rtol=rtol, save_at=times)
    assert np.abs(trajectory.end_to_end[:5, 0, 0] / exact - 1).max() < 10 * rtol


def test_the_exact_values_meet_the_law_of_the_tail():
    """A_00 tends to `((4 L + 4) t / 3)^(1 / (2 + 2/L))`."""
    for depth, values in EXACT.items():
        law = ((4 * depth + 4) * 1e12 / 3) ** (1 / (2 + 2 / depth))
        np.testing.assert_allclose(values[-1], law, rtol=3e-8)


@pytest.mark.parametrize("rtol", [pytest.param(1e-4, marks=pytest.mark.slow), 1e-6])
def test_graded_coordinates_hold_it_too(rtol):
    trajectory = sf.gradient_flow(COST, start(4), rtol=rtol, save_at=TIMES, graded=True)
    assert np.abs(trajectory.end_to_end[:4, 0, 0] / EXACT[4] - 1).max() < 10 * rtol


@pytest.mark.slow
def test_bursts_lanes_and_the_pure_function_take_the_same_tail():
    """One after another, as a lane of a sweep, or traced: the same within rounding, amplified."""
    alone = sf.gradient_flow(COST, start(2), rtol=1e-6, t1=1e9)
    traced = jax.jit(lambda network: sf.integrate(COST, network, rtol=1e-6, t1=1e9, graded=False))(start(2))
    assert alone.stats["num_tail_steps"] > 0
    np.testing.assert_allclose(traced.network.end_to_end(), alone.end_to_end[-1], rtol=1e-8)


def test_a_lane_on_a_tail_is_its_lone_run():
    """Networks of width one cannot leave the tail: `A_00 A_11 = A_01 A_10`, which tends to one."""
    how = {"depth": 2, "width": 1, "gamma": 1.0, "seed": [0, 1]}
    runs = sf.sweep(COST, **how, rtol=1e-6, t1=1e8, save_matrices=True)
    for seed in how["seed"]:
        network = sf.gaussian(jax.random.key(seed), shape=(2, 2), depth=2, width=1, gamma=1.0)
        alone = sf.gradient_flow(COST, network, rtol=1e-6, t1=1e8)
        assert alone.stats["num_tail_steps"] > 0
        lane = runs.sel(seed=seed)
        np.testing.assert_allclose(lane.end_to_end.values[-1], alone.end_to_end[-1], rtol=1e-7)
        assert int(lane.num_accepted_steps) == alone.stats["num_accepted_steps"]
