"""The experiments themselves: the cheap ones here, all of them with `-m slow`."""

import numpy as np
import pytest

import saddleflow.theory as exact
from saddleflow import claims
from saddleflow.claims import distances, landscape, plateaus


@pytest.fixture
def few_starts(monkeypatch):
    """Fewer widths and seeds than the claim has, over the same range of widths."""
    monkeypatch.setitem(distances.WIDTHS, "quick", (100, 10_000, 1_000_000))
    monkeypatch.setitem(distances.SEEDS, "quick", 3)
    distances._measured.cache_clear()
    yield
    distances._measured.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("few_starts")
def test_the_theorem_s_exponents_are_measured_from_several_seeds_and_wrong_ones_refuted(monkeypatch):
    findings = distances.saddle_to_saddle("quick")
    assert [f.predicted for f in findings] == [0.0, -0.25, 0.0, -0.5]
    assert all(f.holds and f.error > 0 for f in findings)
    assert findings[3].measured == pytest.approx(-0.5, abs=0.1)
    # the experiment measures: with the prediction of another gamma it fails
    true = exact.distance_exponents

    def wrong(depth, gamma):
        return tuple(bound._replace(exponent=bound.exponent - 0.5) for bound in true(depth, gamma))

    monkeypatch.setattr(exact, "distance_exponents", wrong)
    assert not all(f.holds for f in distances.saddle_to_saddle("quick"))


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [pytest.param(0.75, marks=pytest.mark.slow), 1.5])
def test_reduced_starts_lie_as_far_as_full_ones(gamma, monkeypatch):
    """In law, at a width where full ones are cheap; and whatever levels the closure has beyond six."""

    def measured(starts):
        layers = [[np.asarray(layer) for layer in start.layers] for start in starts]
        measures = (exact.distance_to_minima, exact.distance_to_saddle)
        return np.array([[measure(ws, distances.TARGET).distance for measure in measures] for ws in layers])

    full = measured([distances.start(seed, 100, gamma) for seed in range(8)])
    monkeypatch.setattr(distances, "WIDEST_FULL", 10)
    reduced = [measured([distances.start(seed, 100, gamma, levels) for seed in range(8)]) for levels in (6, 8)]
    np.testing.assert_allclose(*reduced, rtol=4e-3)
    apart = np.abs(full.mean(axis=0) - reduced[1].mean(axis=0))
    error = np.hypot(full.std(axis=0, ddof=1), reduced[1].std(axis=0, ddof=1)) / np.sqrt(8)
    assert np.all(apart < 3 * error + 2e-3 * full.mean(axis=0))


def test_saddles_lose_what_a_new_neuron_gains():
    assert all(f.holds for f in landscape.new_neuron("quick"))


@pytest.mark.slow
def test_the_plateau_s_length_grows_with_the_width():
    narrow, wide = (plateaus.first_plateaus(3, 2.0, width, range(2)) for width in (10**3, 10**5))
    np.testing.assert_allclose(np.log(wide / narrow) / np.log(100), 0.5, atol=0.02)  # (gamma-1)(L-2)/2


@pytest.mark.slow
def test_the_whole_ledger_holds_but_for_what_is_known_to_fail():
    ledger = claims.verify("quick", progress=False)
    assert {e.id for e in ledger.entries if e.verdict != "holds"} == {"lazy-width"}
    assert not ledger.failures
    again = claims.verify("quick", only=["theorem-1-saddle", "optimal-direction"], progress=False)
    for entry in again.entries:
        first = next(e for e in ledger.entries if e.id == entry.id)
        assert [f.measured for f in entry.findings] == [f.measured for f in first.findings]
