import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import costs

import saddleflow as sf
from saddleflow.flow.graded import Frame, FramedCost, grade
from saddleflow.problem import geometry

NETWORK = sf.gaussian(jax.random.key(1), depth=4, width=(5, 7, 6), shape=(4, 3), variance=0.5)


def test_grading_is_a_change_of_coordinates():
    once, turns, _ = grade(NETWORK)
    frame = Frame.of(NETWORK).after(turns)
    graded, turns, _ = grade(once)
    frame = frame.after(turns)
    for rotation in (frame.into, *frame.hidden, frame.out):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-13)
    for back, layer in zip(frame.undo(graded).layers, NETWORK.layers, strict=True):
        np.testing.assert_allclose(back, layer, atol=1e-13)
    np.testing.assert_allclose(frame.undo_matrix(graded.end_to_end()), NETWORK.end_to_end(), atol=1e-13)


def test_learned_and_unlearned_directions_do_not_share_entries():
    learned = sf.rotate(
        sf.balanced(jnp.outer(jnp.arange(1.0, 5), jnp.arange(1.0, 4)), depth=4, width=6),
        [jax.random.orthogonal(jax.random.key(i), 6) for i in range(3)],
    )
    noise = sf.gaussian(jax.random.key(1), depth=4, width=6, shape=(4, 3), variance=1.0)
    tiny = jax.tree.map(lambda a, b: a + 1e-9 * b, learned, noise)
    graded, _, spectra = grade(tiny)
    for layer in graded.layers:
        assert float(jnp.abs(layer[0, 0])) > 1
        assert float(jnp.abs(layer[1:, 1:]).max()) < 1e-7
    for layer, values in zip(graded.layers, spectra.one_by_one(), strict=True):
        np.testing.assert_allclose(values, np.linalg.svd(layer, compute_uv=False), rtol=1e-9)


@pytest.mark.parametrize("name", ["completion", "mse", "huber"])
def test_a_framed_cost_is_the_cost(name):
    @eqx.filter_jit
    def compute(cost):
        """Pairs that must be equal."""
        graded, frame, _ = grade(NETWORK)
        framed = FramedCost(cost, frame)
        matrix = graded.end_to_end()
        left, right = geometry.partial_products(graded)
        curvature = framed.curvature(matrix)
        gram = curvature.gram(tuple(m @ m.T for m in left.one_by_one()), tuple(n.T @ n for n in right.one_by_one()))
        column = curvature.root(sf.neural_tangent_kernel(graded, curvature.adjoint(jnp.eye(len(gram))[1])))
        gradients = frame.undo(sf.gradient(framed, graded)), sf.gradient(cost, NETWORK)
        return [
            (framed(matrix), cost(NETWORK.end_to_end())),
            (framed.gradient(matrix), jax.grad(framed.__call__)(matrix)),
            (gram[:, 1], column),
            *zip(*(gradient.layers for gradient in gradients), strict=True),
        ]

    for one, other in compute(costs()[name]):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def plateaus(depth, width, alpha, seed=0):
    cost = sf.MatrixCompletion.random(jax.random.key(10 + seed))
    start = alpha * sf.gaussian(
        jax.random.key(1000 + seed), depth=depth, width=width, shape=(10, 10), variance=1 / width
    )
    trajectory = sf.gradient_flow(cost, start, rtol=1e-3, max_steps=1500)
    assert trajectory.stop_reason == "converged"
    assert trajectory.stats["num_rejected_steps"] <= 0.2 * trajectory.stats["num_steps"]
    visits = trajectory.saddles()
    assert [visit.rank for visit in visits] == [0, 1, 2]
    return trajectory, [visit.cost for visit in visits]


def test_a_tiny_start_visits_the_same_saddles():
    """L = 3: plain coordinates lose the escapes below alpha ~ 1e-8; time dilates by 1/alpha."""
    mild, costs_mild = plateaus(3, 12, 1e-4)
    tiny, costs_tiny = plateaus(3, 12, 1e-10)
    np.testing.assert_allclose(costs_tiny, costs_mild, rtol=1e-4)
    for late, early in zip(tiny.saddles(stationary_points=False), mild.saddles(stationary_points=False), strict=True):
        assert late.escape_time * 1e-10 == pytest.approx(early.escape_time * 1e-4, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "alphas", "seed"),
    [
        *((2, (1e-8, 1e-15), seed) for seed in (0, 1)),
        *((3, (1e-3, 1e-12), seed) for seed in (0, 1, 2)),
        *((4, (1e-3, 1e-7), seed) for seed in (0, 1, 2)),
        *((5, (1e-3, 1e-4), seed) for seed in (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("width", [20, 100])
def test_the_smallest_starts_of_each_depth(depth, width, alphas, seed):
    runs = [plateaus(depth, width, alpha, seed) for alpha in alphas]
    # two layers reach a plateau within a power of alpha that the ratios of singular values set: slowly
    np.testing.assert_allclose(runs[1][1], runs[0][1], rtol=0.02 if depth == 2 else 1e-3)
    assert runs[1][0].stats["num_steps"] <= 4 * runs[0][0].stats["num_steps"]


def test_what_rounding_would_decide_is_not_called_an_escape():
    """L = 4 at 1e-10: the first escape is right, the second would be rounding's."""
    cost = sf.MatrixCompletion.random(jax.random.key(10))
    start = 1e-10 * sf.gaussian(jax.random.key(1000), depth=4, width=12, shape=(10, 10), variance=1 / 12)
    trajectory = sf.gradient_flow(cost, start, rtol=1e-3, max_steps=1500)
    assert trajectory.stop_reason == "below_resolution"
    assert [visit.rank for visit in trajectory.saddles(stationary_points=False)] == [0]
    assert trajectory.saddles(stationary_points=False)[0].escape_speed == pytest.approx(
        sf.theory.escape_speed(np.asarray(cost.gradient(jnp.zeros((10, 10)))), 4), rel=0.05
    )


@pytest.mark.parametrize(("depth", "scale"), [(3, 300.0), pytest.param(4, 1000.0, marks=pytest.mark.slow)])
def test_a_huge_layer_is_no_excuse(depth, scale):
    """Entries within their tolerances may be most of A there; without a look at A it was 50 and 250 rtol off."""
    task = sf.MatrixCompletion.random(jax.random.key(1), shape=(3, 3), rank=2, observed=0.9)
    start = sf.gaussian(jax.random.key(11), depth=depth, width=3, shape=(3, 3), variance=0.01)
    layers = [start.layers[0], scale * start.layers[1], *start.layers[2:]]
    options = {"rtol": 1e-6, "save_at": np.geomspace(1e-3, 1, 8), "progress": False}
    plain, graded = (
        sf.gradient_flow(task, sf.DeepLinearNetwork(layers), graded=how, **options).end_to_end
        for how in (False, True)
    )
    np.testing.assert_allclose(graded, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
