"""What a run costs, in counted steps and evaluations: bounds on counts, never on seconds."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.solvers.switching import POWER_ITERATIONS, STALE

RNG = np.random.default_rng(0)


def orthonormal(rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(RNG.standard_normal((rows, columns)))[0]


def completion() -> sf.MatrixCompletion:
    """10 x 10 of rank 3, singular values 1, .6 and .3, 70 of 100 entries observed."""
    target = orthonormal(10, 3) * np.array([1.0, 0.6, 0.3]) @ orthonormal(10, 3).T
    return sf.MatrixCompletion(target, RNG.permutation(100).reshape(10, 10) < 70)


COST = completion()


def start(depth: int, width: int, seed: int) -> sf.DeepLinearNetwork:
    """`theta_0` with entries of variance 1/width."""
    sizes = (10, *(width,) * (depth - 1), 10)
    shapes = zip(sizes[1:], sizes[:-1], strict=True)
    draw = np.random.default_rng(seed).standard_normal
    return sf.DeepLinearNetwork(jnp.asarray(draw(s) / np.sqrt(width)) for s in shapes)


def below(half_square: float) -> Callable:
    """Stop where half the sum of squared residuals is this small (the library's cost is their mean)."""
    bound = 2 * half_square / COST.num_observed
    return lambda time, network: COST(network.end_to_end()) <= bound


def flow(network: sf.DeepLinearNetwork, stop: Callable, graded: bool | None = None) -> dict[str, int]:
    trajectory = sf.gradient_flow(
        COST, network, rtol=1e-4, stop=stop, gradient_tolerance=1e-12, max_steps=5000, graded=graded, progress=False
    )
    assert trajectory.stop_reason == "stop"
    stats = trajectory.stats
    # the work is that of all attempts, rejected ones too
    steps, explicit, products = (
        stats[f"num_{name}"] for name in ("steps", "explicit_steps", "hessian_vector_products")
    )
    assert steps == stats["num_accepted_steps"] + stats["num_rejected_steps"]
    tiny = explicit == 0  # graded coordinates, by the stiff method alone
    assert explicit < steps
    # six stages of a stiff step; thirteen of an explicit one, and its first unless known from the step before
    assert 0 <= stats["num_vector_field_evaluations"] - 6 * (steps - explicit) - 13 * explicit <= explicit
    # an application a direction and a stage
    stiff = steps - explicit
    directions = stats["num_preconditioner_applications"] - 6 * stiff
    assert stats["mean_krylov_dimension"] == pytest.approx(directions / stiff)
    # a product a direction; for the spectral radius one an explicit step, one for some stiff ones, some at the start
    for_radius = products - directions - (0 if tiny else POWER_ITERATIONS)
    assert explicit <= for_radius <= (0 if tiny else explicit + stiff / (STALE - 1))
    assert stats["mean_krylov_dimension"] <= stats["max_krylov_dimension"] <= directions
    return stats


def test_a_deep_wide_network_to_the_end():
    """Depth 4, width 100, small start: vector fields and Hessian products, where Tsit5 takes 15000 steps."""
    stats = flow(0.1 * start(4, 100, seed=4), below(1e-10))
    assert stats["num_vector_field_evaluations"] + stats["num_hessian_vector_products"] <= 2500
    assert stats["num_rejected_steps"] <= 0.15 * stats["num_steps"]
    assert stats["max_krylov_dimension"] <= 32  # of 22000 parameters: the basis is never overwritten


SCALES = {2: (1, 2, 3, 5, 7, 9, 11, 12), 3: (1, 2, 3, 4, 5)}


def steps_by_decade(depth: int, graded: bool | None, seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Medians over starts of the steps, and of the explicit ones among them; rejections are bounded in every run."""
    steps = []
    for seed in seeds:
        theta, stop = start(depth, 20, seed), below(1e-8)
        runs = [flow(10.0**-decade * theta, stop, graded) for decade in SCALES[depth]]
        for run in runs:
            assert run["num_rejected_steps"] <= 0.15 * run["num_steps"]
        steps.append([[run[f"num_{name}"] for run in runs] for name in ("steps", "explicit_steps")])
    return tuple(np.median(steps, axis=0))


# Steps of one run scatter with its start and with rounding: at depth 2 by a fifth of a decade's.
@pytest.mark.parametrize(
    ("depth", "seeds", "first", "growth", "total"),
    [pytest.param(2, (2, 10, 11), 50, 1.6, 260, marks=pytest.mark.slow), (3, (3,), 85, 1.2, 340)],
)
def test_steps_grow_like_the_logarithm_of_the_start(depth, seeds, first, growth, total):
    """A decade in alpha lengthens the flow (by 10^(L-2) for L > 2) and adds a bounded number of steps."""
    steps, _ = steps_by_decade(depth, graded=False, seeds=seeds)
    per_decade = np.diff(steps) / np.diff(SCALES[depth])
    assert per_decade[0] <= first
    assert per_decade.max() <= growth * per_decade[0]
    assert per_decade[-1] <= per_decade[0]
    assert steps[-1] <= total


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "most"), [(2, 35), (3, 80)])
def test_the_default_takes_bounded_steps_a_decade(depth, most):
    """As it comes: once dearer where graded coordinates begin, and linear in log(1/alpha) on both sides."""
    steps, explicit = steps_by_decade(depth, graded=None, seeds=(depth, 10, 11))
    graded, decades = explicit == 0, np.array(SCALES[depth])
    assert graded[-1]
    assert not graded[0]
    for side in (graded, ~graded):
        assert (np.diff(steps[side]) / np.diff(decades[side])).max() <= most
    assert (steps[-1] - steps[0]) / (decades[-1] - decades[0]) <= 1.2 * most
