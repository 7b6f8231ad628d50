"""The gallery: its frame, and every case; those of more than three seconds are slow."""

import ast
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.gallery import cases, runner
from saddleflow.gallery.case import Case, Number, Result, first_time

FOLDER = Path(cases.__file__).parent
QUICK = ("A11", "A21")


@pytest.fixture
def two_cases(monkeypatch):
    """A gallery of two small cases, one of which breaks."""

    def pose():
        cost = sf.MeanSquaredError.teacher(np.diag([2.0, 1.0]))
        return sf.gradient_flow(cost, sf.identity(depth=2, width=2, shape=(2, 2), scale=0.1), t1=0.1)

    def draw(axes, run):
        axes.plot(run.time, run.train_cost)

    def fails():
        raise ArithmeticError("no luck")

    about = {"source": "someone/something, commit 0", "paper": "none", "computed": "It.", "source_cost": "1 step"}
    frame = {"judge": lambda run: [Number.near("cost", 4.92, run.train_cost[0], within=1e-2)], "draw": draw} | about
    found = {
        "T01": Case(name="T01", title="small", pose=pose, **frame),
        "T02": Case(name="T02", title="broken", pose=fails, **frame),
    }
    monkeypatch.setattr(runner, "all_cases", lambda: found)
    return found


def result(*numbers, **case):
    nothing = dict.fromkeys(("pose", "judge", "draw"), print)
    words = dict.fromkeys(("name", "title", "source", "paper", "computed", "source_cost"), "")
    return Result(Case(**nothing, **words, **case), numbers, 1.0)


def test_verdicts_are_computed_from_the_numbers():
    good, bad = (Number.near("x", 1.0, value, within=0.1) for value in (1.05, 2.0))
    derived = Number.at_most("y", 1.0, 0.5, origin="derived")
    assert result(good, derived).verdict == "reproduced"
    assert result(good, in_law=True).verdict == "reproduced (other draws)"
    assert result(derived).verdict == "as derived"
    assert result(good, bad).verdict == "differs: x is 2, not 1"
    assert result().verdict == "differs: no number to compare"
    assert not result(Number.at_least("x", 1.0, np.nan)).reproduced
    assert not Number.near("x", 0.0, 0.2, absolute=0.1).holds
    with pytest.raises(ValueError, match="`within, absolute` must be given one and not both"):
        Number.near("x", 1.0, 1.0)
    with pytest.raises(ValueError, match="`origin` must be one of"):
        Number.near("x", 1.0, 1.0, within=0.1, origin="guessed")


def test_times_of_crossing_are_interpolated():
    assert first_time([0, 1, 2], [0.0, 1.0, 0.0], 0.5) == 0.5
    assert first_time([0, 1], [1.0, 2.0], 0.5) == 0.0
    assert np.isnan(first_time([0, 1], [0.0, 0.1], 0.5))


def test_a_broken_case_hides_no_other(two_cases):
    first, second = sf.gallery.run_all(progress=False)
    assert first.verdict == "reproduced"
    assert second.verdict == "error: ArithmeticError: no luck"
    assert "printed 4.92" in repr(first)
    assert sf.gallery.table([first, second]).row_count == 2


def test_unknown_names_are_answered_with_the_nearest(run_cli):
    with pytest.raises(ValueError, match=r"`name` must be one of A01, .*, but got 'a13'\. Did you mean 'A13'\?"):
        sf.gallery.run("a13")
    code, _, error = run_cli("gallery", "A99")
    assert code == 2
    assert "Did you mean" in error


def test_the_command_lists_runs_and_writes(two_cases, run_cli, tmp_path):
    code, text, _ = run_cli("gallery")
    assert code == 0
    assert text.splitlines() == ["T01  small (someone/something)", "T02  broken (someone/something)"]
    assert run_cli("gallery", "T01", "--out", tmp_path / "pictures")[0] == 0
    page = tmp_path / "page.md"
    code, text, _ = run_cli("gallery", "all", "--page", page)
    assert code == 1  # the broken one
    assert "T02  error: ArithmeticError: no luck" in text
    written = page.read_text()
    assert "1 of 2 cases agree" in written
    assert "![T01: small](page/T01.png)" in written
    assert "sf.identity(depth=2" in written  # the pose
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert names == {"page.md", "page/T01.png", "pictures/T01.png"}
    for arguments in (["T01", "--out", tmp_path / "pictures"], ["all", "--page", page]):
        code, _, error = run_cli("gallery", *arguments)
        assert code == 2
        assert "--force" in error
    assert run_cli("gallery", "T01", "--page", page, "--force")[0] == 0
    code, _, error = run_cli("gallery", "T01", "--out", page / "pictures")
    assert code == 2
    assert "`out` must be a folder" in error
    assert page.is_file()


def test_cases_use_the_public_interface_alone():
    """And so do the names that they take from it: none is private."""
    modules = sorted(FOLDER.glob("[a-z]*.py"))
    assert len(modules) >= 18
    for path in modules:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = [name for name in names if name.split(".")[0] == "saddleflow"]
            allowed = {"saddleflow", "saddleflow.gallery.case", "saddleflow.plotting"}
            assert set(ours) <= allowed, f"{path.name} imports {ours}"
            private = isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr)
            assert not private, f"{path.name} uses {ast.unparse(node)}"
        poses = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "pose"]
        assert poses[0].end_lineno - poses[0].lineno <= 30, path.name


def test_every_case_names_its_source():
    assert len(sf.gallery.names()) >= 18
    for name in sf.gallery.names():
        case = sf.gallery.case(name)
        assert case.name == name
        assert re.search(r"^[\w.-]+/[\w.-]+, commit [0-9a-f]{7,40}", case.source), case.source
        assert case.paper, name
        assert case.source_cost, name


def test_the_page_shows_every_case():
    docs = Path(__file__).parents[1] / "docs"
    page = (docs / "gallery.md").read_text()
    for name in sf.gallery.names():
        picture = docs / "gallery" / f"{name}.png"
        assert f"](gallery/{name}.png)" in page
        assert os.path.getsize(picture) < 60_000
    assert "saddleflow gallery all --page docs/gallery.md" in page


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sf.gallery.names()]
)
def test_case(name, tmp_path):
    open_before = plt.get_fignums()
    found = sf.gallery.run(name, progress=False)
    assert found.reproduced, found
    sf.gallery.write_pictures([found], tmp_path)
    assert plt.get_fignums() == open_before
