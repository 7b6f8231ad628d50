"""The ledger itself, with claims that cost nothing."""

import json
import math

import numpy as np
import pytest

from saddleflow import claims
from saddleflow.claims.ledger import Claim, Finding, Ledger, exponents, mean_and_error, verify


def claim(name, *findings, standing="ours"):
    return Claim(name, "a statement", "x = 1", standing, lambda size: list(findings))


RIGHT = Finding.near("a number", 1.0, [0.99, 1.02, 1.01], 0.1)
WRONG = Finding.at_most("another", 1.0, [3.0])


def broken(size):
    raise RuntimeError("no such luck")


def test_findings_are_judged_by_their_mean():
    assert RIGHT.holds
    assert not WRONG.holds
    assert Finding.at_least("x", 1.0, [1.0]).holds
    assert not Finding.near("x", 1.0, [np.nan], 1.0).holds
    # however wide the interval, the mean decides
    assert not Finding.at_most("x", 1.0, [0.0, 4.0]).holds


def test_confidence_intervals_are_student_s():
    mean, error = mean_and_error([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert error == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t quantile .975 for 2 degrees of freedom
    assert mean_and_error([5.0]) == (5.0, 0.0)
    draws = np.random.default_rng(0).normal(7.0, 2.0, (2000, 5))
    covered = [abs(m - 7.0) <= e for m, e in map(mean_and_error, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_exponents_are_fitted_curve_by_curve():
    widths = [10, 100, 1000]
    curves = [3.0 * np.power(widths, 0.5), 2.0 * np.power(widths, -1.0)]
    np.testing.assert_allclose(exponents(widths, curves), [0.5, -1.0], rtol=1e-12)


def test_a_broken_experiment_is_an_entry_and_stops_nobody():
    ledger = verify([Claim("broken", "s", "f", "ours", broken), claim("fine", RIGHT)], progress=False)
    assert [e.verdict for e in ledger.entries] == ["error", "holds"]
    assert ledger.entries[0].message == "RuntimeError: no such luck"


def test_an_interrupt_begins_no_other_experiment():
    begun = []

    def interrupted(size):
        raise KeyboardInterrupt

    def later(size):
        begun.append(size)
        return [RIGHT]

    with pytest.raises(KeyboardInterrupt):
        verify([Claim("a", "s", "f", "ours", interrupted), Claim("b", "s", "f", "ours", later)], progress=False)
    assert not begun


def test_only_what_the_paper_states_counts_as_failure():
    names = ("ours", "recalled", "stated in the paper")
    ledger = verify([claim(name.split()[0], WRONG, standing=name) for name in names], progress=False)
    assert [e.verdict for e in ledger.entries] == ["fails"] * 3
    assert [e.id for e in ledger.failures] == ["stated"]
    assert verify([claim("empty")], progress=False).entries[0].verdict == "fails"  # nothing measured, nothing shown


def test_json_and_dataset_keep_everything(tmp_path):
    ledger = verify([claim("a", RIGHT, WRONG), Claim("b", "s", "f", "recalled", broken)], progress=False)
    path = ledger.save_json(tmp_path / "ledger.json")
    assert Ledger.load_json(path) == ledger
    data = ledger.to_xarray()
    assert data["id"].values.tolist() == ["a", "a"]
    assert data.holds.values.tolist() == [True, False]
    np.testing.assert_array_equal(data.low, [0.9, -np.inf])
    with pytest.raises(ValueError, match="not exist yet"):
        ledger.save_json(path)
    (tmp_path / "other.json").write_text(json.dumps({"entries": [{}]}))
    with pytest.raises(ValueError, match="must be a ledger"):
        Ledger.load_json(tmp_path / "other.json")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`only` must name claims: a"):
        verify([claim("a", RIGHT)], only=["b"])
    with pytest.raises(ValueError, match="`size` must be one of"):
        verify([claim("a", RIGHT)], size="huge")
    with pytest.raises(ValueError, match="`standing` must be one of"):
        claim("a", RIGHT, standing="proven")


def test_the_page_shows_every_finding(tmp_path):
    ledger = verify([claim("a", RIGHT, WRONG), Claim("b", "s", "f", "recalled", broken)], progress=False)
    page, *pictures = claims.write_page(ledger, tmp_path / "claims.md")
    text = page.read_text()
    assert [p.name for p in pictures] == ["claims_a.png"]
    assert all(part in text for part in ("## a", "## b", "| another | 1 | 3 |", "**fails**", "no such luck"))
    assert pictures[0].stat().st_size > 1000
    top = text[: text.index("## a")]
    assert "**[a](#a)** (ours) fails. Out of bounds: another." in top
    assert "**[b](#b)** (recalled) ended in an error." in top
    with pytest.raises(ValueError, match="not exist yet"):
        claims.write_page(ledger, tmp_path / "claims.md")


def test_ids_are_unique_and_every_standing_occurs():
    ids = [c.id for c in claims.CLAIMS]
    assert len(set(ids)) == len(ids)
    assert {c.standing for c in claims.CLAIMS} == {"stated in the paper", "recalled", "ours"}


def test_the_command_exits_with_1_where_the_paper_fails(tmp_path, monkeypatch, run_cli):
    path = tmp_path / "ledger.json"
    monkeypatch.setattr(claims, "CLAIMS", (claim("a", RIGHT), claim("b", WRONG, standing="recalled")))
    code, text, _ = run_cli("verify", "--json", path)
    assert code == 0
    assert "holds  a (ours" in text
    assert {p.name for p in tmp_path.iterdir()} == {"ledger.json", "ledger.nc"}
    monkeypatch.setattr(claims, "CLAIMS", (claim("c", WRONG, standing="stated in the paper"),))
    assert run_cli("verify")[0] == 1
    code, _, error = run_cli("verify", "--json", path)
    assert code == 2
    assert "--force" in error
    page = tmp_path / "claims.md"
    assert run_cli("verify", "--ledger", path, "--page", page)[0] == 0
    assert page.exists()
    assert run_cli("verify", "--only", "nothing")[0] == 2
