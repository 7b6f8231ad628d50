"""Flows of padded and stacked networks are those of the networks as they are, and share compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.flow import solve
from saddleflow.problem import geometry
from saddleflow.problem.padding import Padding, padded, padded_size, padded_width, unpadded

COST = sf.MatrixCompletion.random(jax.random.key(3), shape=(3, 2), rank=1, observed=0.9)
COUNTS = ("num_steps", "num_rejected_steps", "num_vector_field_evaluations", "num_hessian_vector_products")


def start(depth, width, gamma=1.0, seed=1):
    return sf.gaussian(jax.random.key(seed), depth=depth, width=width, shape=COST.shape, gamma=gamma)


def random(depth, width, seed=1):
    return sf.gaussian(jax.random.key(seed), depth=depth, width=width, shape=COST.shape, variance=1.0)


@pytest.fixture
def unchanged(monkeypatch):
    """A function that solves without padding."""

    def solved(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(solve, "padded", lambda network, pad=True: (network, None))
            return sf.gradient_flow(*arguments, **options)

    return solved


@pytest.mark.parametrize(
    ("depth", "width", "gamma"),
    [
        pytest.param(2, 9, 1.5, id="two layers", marks=pytest.mark.slow),
        pytest.param(3, 1, 1.0, id="width one"),
        pytest.param(3, (9, 10), None, id="two widths", marks=pytest.mark.slow),
        pytest.param(4, 9, 1.5, id="compressed", marks=pytest.mark.slow),
        pytest.param(3, 9, 5.0, id="graded"),
        pytest.param(7, 3, 1.0, id="in a stack", marks=pytest.mark.slow),
        pytest.param(7, 9, 1.0, id="in a stack, compressed", marks=pytest.mark.slow),
        pytest.param(9, 3, 2.0, id="in a stack, graded"),
    ],
)
def test_a_padded_flow_is_the_flow(depth, width, gamma, unchanged):
    """The same steps, and the same results but for rounding, which plateaus amplify."""
    how = {"gamma": gamma} if gamma else {"variance": 0.1}
    network = sf.gaussian(jax.random.key(1), depth=depth, width=width, shape=COST.shape, **how)
    ours, plain = sf.gradient_flow(COST, network, save_networks=True), unchanged(COST, network, save_networks=True)
    assert ours.stop_reason == plain.stop_reason == "converged"
    assert [ours.stats[name] for name in COUNTS] == [plain.stats[name] for name in COUNTS]
    np.testing.assert_allclose(ours.end_to_end, plain.end_to_end, atol=1e-6)
    np.testing.assert_allclose(ours.end_to_end[-1], plain.end_to_end[-1], atol=1e-9)
    assert ours.networks is not None and plain.networks is not None  # noqa: PT018
    for one, other in zip(ours.networks.layers, plain.networks.layers, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert ours.network.hidden_widths == network.hidden_widths
    assert ours.dips is not None and plain.dips is not None  # noqa: PT018
    assert ours.dips[1].layers[0].shape == plain.dips[1].layers[0].shape


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "width"), [(4, 9), pytest.param(7, 3, marks=pytest.mark.slow)])
def test_asked_times_are_padded(depth, width, unchanged):
    times = np.linspace(0, 3, 9)
    ours, plain = (solver(COST, start(depth, width), save_at=times) for solver in (sf.gradient_flow, unchanged))
    np.testing.assert_array_equal(ours.time, times)
    np.testing.assert_allclose(ours.end_to_end, plain.end_to_end, atol=1e-8)


@pytest.mark.slow
def test_observables_and_stop_see_the_network_as_it_is():
    widths = []

    def width(cost, network):
        widths.append((network.depth, network.width))
        return jnp.linalg.norm(network.layers[1])

    for depth in (3, 7):
        run = sf.gradient_flow(COST, start(depth, 9), observables={"width": width}, stop=lambda t, n: n.width < 0)
        assert set(widths) == {(depth, 9)}
        norms = np.linalg.norm(run.network.layers[1])
        assert run.observables["width"][-1] == pytest.approx(norms, rel=1e-12)
        widths.clear()


def compilations(compiled, *arguments, **options):
    compiled.clear()
    sf.gradient_flow(*arguments, **options)
    return len(compiled)


@pytest.fixture
def compiled():
    """The programs compiled so far."""
    found = []

    def note(event, duration_secs, **data):
        if event.endswith("/backend_compile_duration"):
            found.append(data.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"width": 9}, {"width": 10}, id="width"),
        pytest.param({"width": 9, "gamma": 5.0}, {"width": 10, "gamma": 5.0}, id="width, graded"),
        pytest.param({"depth": 9}, {"depth": 10}, id="depth"),
        pytest.param({"max_saves": 60}, {"max_saves": 64}, id="rows"),
        pytest.param({"save_at": np.linspace(0, 1, 15)}, {"save_at": np.linspace(0, 2, 16)}, id="times"),
        pytest.param({"rtol": 1e-4}, {"rtol": 1e-5}, id="tolerance"),
    ],
)
def test_sizes_nearby_compile_nothing_new(first, second, compiled):
    def count(depth=3, width=9, gamma=1.0, **options):
        return compilations(compiled, COST, start(depth, width, gamma), **options)

    count(**first)
    assert count(**second) == 0


def test_sizes_grow_by_less_than_a_third():
    for size in range(1, 2000):
        larger = padded_size(size)
        assert size <= larger <= 1.25 * size + 1
        assert padded_size(larger) == larger
    assert [padded_width(w, ends=1) for w in (7, 9, 50, 100, 1000)] == [7, 10, 56, 104, 1024]
    assert padded_width(9, ends=9) == 9
    assert padded_width(9, ends=8) == 10


@pytest.mark.parametrize(("depth", "width"), [(2, 5), (4, (3, 9, 17)), (8, 9)])
def test_padding_is_undone(depth, width):
    network = random(depth, width)
    grown, padding = padded(network)
    assert isinstance(padding, Padding)
    cut = unpadded(grown, network)
    for layer, real in zip(cut.layers, network.layers, strict=True):
        np.testing.assert_array_equal(layer, real)
    mask = padding.mask(grown)
    assert sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(mask)) == network.num_parameters
    for leaf, real in zip(jax.tree.leaves(grown), jax.tree.leaves(mask), strict=True):
        np.testing.assert_array_equal(leaf * (1 - real), 0.0)


@pytest.mark.parametrize(("depth", "width"), [(3, 9), (8, 9)])
def test_geometry_of_a_padded_network_is_that_of_the_network(depth, width):
    network, error = random(depth, width), random(depth, width, seed=2)
    (grown, padding), (grown_error, _) = padded(network), padded(error)
    assert padding is not None
    active = padding.active
    ours = unpadded(geometry.gradient(COST, grown, active), network)
    for one, other in zip(ours.layers, sf.gradient(COST, network).layers, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    np.testing.assert_allclose(geometry.end_to_end(grown, active), network.end_to_end(), rtol=1e-12)
    pairs = [
        (geometry.end_to_end_error(grown, grown_error, padding), geometry.end_to_end_error(network, error)),
        (geometry.stiffness(COST, grown, active), geometry.stiffness(COST, network)),
        (geometry.at_rest(COST, grown, False, active)[0], geometry.at_rest(COST, network, False)[0]),
    ]
    for one, other in pairs:
        assert float(one) == pytest.approx(float(other), rel=1e-12)
