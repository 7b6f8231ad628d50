"""`saddleflow.theory.homogeneous` against the flow in time itself, exact rays and saddleflow's solver."""

from functools import reduce

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import saddleflow as sf
from saddleflow import theory

GRADIENT = np.random.default_rng(2).standard_normal((3, 4))
# Flows of saddleflow: width 3, three saved times, and so one program a depth.
HOW = {"rtol": 1e-8, "save_networks": True, "progress": False}


def random_layers(rng, depth, width, scale=1.0):
    sizes = [4, *[width] * (depth - 1), 3]
    return [scale * rng.standard_normal((sizes[index + 1], sizes[index])) for index in range(depth)]


def flat(layers):
    return np.concatenate([layer.ravel() for layer in layers])


def velocity(point, like, gradient=GRADIENT):
    """-grad H by the definition: layer by layer, products written out."""
    layers = [
        part.reshape(layer.shape)
        for part, layer in zip(np.split(point, np.cumsum([x.size for x in like])[:-1]), like, strict=True)
    ]

    def product(factors, size):
        return reduce(lambda below, layer: layer @ below, factors, np.eye(size))

    return -np.concatenate(
        [
            (
                product(layers[i + 1 :], x.shape[0]).T @ gradient @ product(layers[:i], x.shape[1] if i == 0 else 4).T
            ).ravel()
            for i, x in enumerate(layers)
        ]
    )


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("seed", range(3))
def test_time_is_that_of_the_flow_in_time(depth, seed):
    """The flow of H itself, in t, until the norm is 1e6 times the start's; what is left to infinity is 1e-6 of T."""
    start = random_layers(np.random.default_rng(seed), depth, 3, 0.5)
    found = theory.homogeneous_escape(GRADIENT, start)
    origin = flat(start)
    norm = np.linalg.norm(origin)

    def grown(_, point):
        return np.linalg.norm(point) - 1e6 * norm

    grown.terminal = True
    solution = solve_ivp(
        lambda _, point: velocity(point, start),
        (0, 2 * found.time),
        origin,
        method="DOP853",
        rtol=1e-11,
        atol=1e-13,
        events=grown,
    )
    reached = solution.t[-1]
    # Near the optimal ray the rest is known; for L = 3 it is what can be seen of the time scale.
    rest = theory.blow_up_time(1e6 * norm, theory.escape_speed(GRADIENT, depth), depth)
    np.testing.assert_allclose(found.time, reached + rest, rtol=2e-9)


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_an_escape_direction_stays_and_its_time_is_exact(depth):
    """On rays, the optimal one and that of the second singular pair, in width 3 and rotated."""
    left, strengths, right = np.linalg.svd(GRADIENT, full_matrices=False)
    rng = np.random.default_rng(depth)
    frames = [np.linalg.qr(rng.standard_normal((3, 3)))[0][:, :1] for _ in range(depth - 1)]
    for mode in (0, 1):
        ends = [-right[mode : mode + 1].T, *frames, left[:, mode : mode + 1]]
        start = [0.7 * ends[index + 1] @ ends[index].T / np.sqrt(depth) for index in range(depth)]
        found = theory.homogeneous_escape(GRADIENT, start)
        speed = strengths[mode] * depth ** (1 - depth / 2)
        np.testing.assert_allclose(found.speed, speed, rtol=1e-12)
        np.testing.assert_allclose(found.time, theory.blow_up_time(0.7, speed, depth), rtol=1e-12)
        np.testing.assert_allclose(flat(found.direction), flat(start) / 0.7, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_random_starts_reach_the_optimal_direction(depth):
    """Twelve of twelve, whichever sign H has at the start; the direction satisfies -grad H(rho) = s* rho."""
    signs = set()
    for seed in range(12):
        start = random_layers(np.random.default_rng(100 + seed), depth, 3)
        signs.add(np.sign(np.sum(GRADIENT * reduce(lambda below, layer: layer @ below, start))))
        found = theory.homogeneous_escape(GRADIENT, start)
        speed = theory.escape_speed(GRADIENT, depth)
        np.testing.assert_allclose(found.speed, speed, rtol=1e-12)
        rho = flat(found.direction)
        np.testing.assert_allclose(np.linalg.norm(rho), 1, rtol=1e-12)
        np.testing.assert_allclose(velocity(rho, start), speed * rho, atol=2e-8 * speed)
        assert (found.time == np.inf) == (depth == 2)
        # Slower than straight from a start of this norm.
        assert found.time >= theory.blow_up_time(np.linalg.norm(flat(start)), speed, depth)
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_time_is_homogeneous(depth):
    """T(alpha theta) = alpha^-(L-2) T(theta), over 80 orders of magnitude; and T(c G) = T(G) / c."""
    start = random_layers(np.random.default_rng(3), depth, 4)
    unit = theory.homogeneous_escape(GRADIENT, start)
    for alpha in (1e-40, 1e-3, 1e40):
        scaled = theory.homogeneous_escape(GRADIENT, [alpha * layer for layer in start])
        np.testing.assert_allclose(scaled.time, alpha ** -(depth - 2.0) * unit.time, rtol=1e-9)
    faster = theory.homogeneous_escape(1e8 * GRADIENT, start)
    np.testing.assert_allclose([faster.time, faster.speed], [unit.time * 1e-8, unit.speed * 1e8], rtol=1e-9)


def test_starts_that_never_leave():
    """Critical directions of speed zero, and one that falls into the origin along a ray."""
    still = random_layers(np.random.default_rng(0), 4, 3)
    still = [np.zeros_like(layer) for layer in still[:3]] + still[3:]
    found = theory.homogeneous_escape(GRADIENT, still)
    assert found.time == np.inf
    assert found.speed == 0
    falling = theory.escape_direction(GRADIENT, 3)
    falling[0] = -falling[0]
    found = theory.homogeneous_escape(GRADIENT, falling)
    assert found.time == np.inf
    np.testing.assert_allclose(found.speed, -theory.escape_speed(GRADIENT, 3), rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_solver_keeps_the_norm_of_an_escape(linear_cost, depth):
    """From the escape direction, in terms of the time at which a norm is reached; to nine tenths of the way."""
    speed = theory.escape_speed(GRADIENT, depth)
    start = sf.DeepLinearNetwork([0.2 * layer for layer in theory.escape_direction(GRADIENT, depth)])
    end = theory.blow_up_time(0.2, speed, depth) if depth > 2 else 8 / speed
    times = end * np.array([0.3, 0.6, 0.9])
    run = sf.gradient_flow(linear_cost(jnp.asarray(GRADIENT)), sf.include(start, 3), **HOW, save_at=times)
    norms = np.sqrt(sum(np.sum(np.asarray(layer) ** 2, axis=(1, 2)) for layer in run.networks.layers))
    late = theory.escape_norm(times * (1 + 1e-7), 0.2, speed, depth)
    early = theory.escape_norm(times * (1 - 1e-7), 0.2, speed, depth)
    assert np.all((early <= norms) & (norms <= late))


def test_the_solver_keeps_the_time(linear_cost):
    """Along saddleflow's flow of the model, T(theta(t)) = T(theta(0)) - t up to the end, to 10 rtol."""
    start = sf.DeepLinearNetwork(random_layers(np.random.default_rng(1), 3, 3, 0.1))
    total = theory.homogeneous_escape(GRADIENT, [np.asarray(layer) for layer in start.layers]).time
    times = total * np.array([0.5, 0.9, 0.99])
    trajectory = sf.gradient_flow(linear_cost(jnp.asarray(GRADIENT)), start, **HOW, save_at=times)
    for index, time in enumerate(times):
        layers = [np.asarray(layer[index]) for layer in trajectory.networks.layers]
        left = theory.homogeneous_escape(GRADIENT, layers).time
        np.testing.assert_allclose(left + time, total, rtol=1e-7)


@pytest.mark.parametrize("depth", [3, 4])
def test_small_starts_of_a_loss_leave_at_the_time(layerwise_flow, depth):
    """t alpha^(L-2) tends to T, t the time at which |A| is half of what the first mode will be."""
    target = -GRADIENT
    start = random_layers(np.random.default_rng(5), depth, 3, 0.5)
    limit = theory.homogeneous_escape(GRADIENT, start).time
    errors = []
    for alpha in (0.1, 0.02):
        end = 1.5 * limit * alpha ** -(depth - 2)
        times = np.linspace(0, end, 3001)
        _, matrices = layerwise_flow([alpha * layer for layer in start], lambda matrix: matrix - target, times)
        grown = np.linalg.norm(matrices, 2, axis=(1, 2)) > 0.5 * np.linalg.norm(target, 2)
        errors.append(abs(times[np.argmax(grown)] * alpha ** (depth - 2) / limit - 1))
    assert errors[1] < 0.5 * errors[0] + 1e-3
    assert errors[1] < 0.02


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_misalignment_rate(depth):
    """The distance of A's first left singular vector from u_1 as |theta| passes 1, from two small starts."""
    left = np.linalg.svd(GRADIENT)[0]
    start = random_layers(np.random.default_rng(7), depth, 3)
    start = flat(start) / np.linalg.norm(flat(start))
    shapes = random_layers(np.random.default_rng(7), depth, 3)

    def field(log_norm, state):
        # By log r instead of time: d(u)/d(log r) = tangent / s.
        motion = velocity(state, shapes)
        return motion / (motion @ state) - state

    # From where the speed is positive on: the flow of H itself for a while first.
    first = solve_ivp(
        lambda _, u: velocity(u, shapes) - (velocity(u, shapes) @ u) * u, (0, 3), start, rtol=1e-10, atol=1e-13
    ).y[:, -1]
    assert first @ velocity(first, shapes) > 0

    def misalignment(alpha):
        end = solve_ivp(field, (np.log(alpha), 0), first, method="DOP853", rtol=1e-12, atol=1e-15).y[:, -1]
        parts = np.split(end, np.cumsum([x.size for x in shapes])[:-1])
        layers = [part.reshape(x.shape) for part, x in zip(parts, shapes, strict=True)]
        top = np.linalg.svd(reduce(lambda below, layer: layer @ below, layers))[0][:, 0]
        return np.linalg.norm(top - (top @ left[:, 0]) * left[:, 0])

    exponent = np.log(misalignment(1e-5) / misalignment(1e-7)) / np.log(100)
    np.testing.assert_allclose(exponent, theory.misalignment_rate(GRADIENT), rtol=0.01)


def test_misalignment_rate_at_its_ends():
    assert theory.misalignment_rate(np.array([[2.0, 0.0]])) == 1
    assert theory.misalignment_rate(np.eye(3)) == 0
    np.testing.assert_allclose(theory.misalignment_rate(np.diag([1.0, -4.0])), 0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.homogeneous_escape(np.zeros((1, 1)), [np.eye(1)] * 3), "`gradient` must be nonzero"),
        (
            lambda: theory.homogeneous_escape(np.eye(2), [np.eye(3)] * 3),
            r"`gradient` must have .* got \(2, 2\)",
        ),
        (lambda: theory.homogeneous_escape(np.eye(2), [np.zeros((2, 2))] * 3), "`layers` must be nonzero"),
        (lambda: theory.homogeneous_escape(np.eye(2), [np.eye(2)]), "`layers` must hold .* '1 of them'"),
        (
            lambda: theory.homogeneous_escape(np.eye(2), [np.eye(2), np.ones((2, 3))]),
            r"`layers\[1\]` must have 2 columns, the rows of layers\[0\], but got 'shape \(2, 3\)'",
        ),
        (
            lambda: theory.homogeneous_escape(np.eye(2), [np.eye(2), np.full((2, 2), np.nan)]),
            r"`layers\[1\]` .*'nan",
        ),
        (lambda: theory.misalignment_rate(np.zeros((2, 2))), "`gradient` must be nonzero"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
