"""The Python blocks of README.md and the pages: what they print is what their comments say (`docs/numbers.py`)."""

import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))
from docs import numbers  # noqa: E402


def cases():
    """Every block that states numbers, after the imports of those before it on its page."""
    for page in numbers.pages():
        for number, before, source in numbers.stating_blocks(page):
            yield pytest.param(page, before, source, id=f"{page.relative_to(PROJECT)}-{number}")


def test_comments_are_read():
    assert numbers.stated("print(a)  # 5.97     the zero predictor") == ["5.97"]
    assert numbers.stated("print(a, b)  # 0.0040 4   the flow, and its rank") == ["0.0040", "4"]
    assert numbers.stated("print(a)  # 1e-06, -2.5e3") == ["1e-06", "-2.5e3"]
    assert numbers.stated("print(traj)  # a card: how it ended") == []
    assert numbers.stated("print(a)  # 3 plateaus are met") == []
    assert not numbers.differs("0.0040", "0.004023170361986106")
    assert not numbers.differs("1.2e-06", "1.249e-06")
    assert not numbers.differs("1.2e-06", "0.000001249")
    assert numbers.differs("3", "4")


def test_readme_states_numbers():
    source = "\n".join(numbers.blocks(PROJECT / "README.md"))
    assert sum(len(numbers.stated(line)) for line in source.splitlines()) == 7


@pytest.mark.parametrize(("page", "before", "source"), list(cases()))
def test_blocks_print_what_their_comments_say(page, before, source):
    names = {}
    exec(before, names)
    assert list(numbers.changes(page, source, names)) == []


def test_numbers_are_written_anew(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    block = "x = 2.5\nprint(1 / 3, 2e-7)  # 0.25 1.0e-06   two of them\nprint(x)  # below\n"
    page.write_text(f"```python\n{block}```\n\n```text\n2.6\n```\n")
    monkeypatch.setattr(numbers, "PROJECT", tmp_path)
    before = page.read_text()
    assert numbers.rerun(page, check=True) == 2
    assert page.read_text() == before
    assert numbers.rerun(page, check=False) == 2
    assert "print(1 / 3, 2e-7)  # 0.33 2.0e-7   two of them\n" in page.read_text()
    assert "```text\n2.5\n```" in page.read_text()
    assert numbers.rerun(page, check=True) == 0


def test_the_command_behind_a_page_is_there_and_named_on_it():
    """And every benchmark that a page names is there."""
    listed = numbers.WRITTEN | numbers.PRINTED
    for page, command in listed.items():
        program = command.split()[1]
        assert program in (PROJECT / page).read_text(), (page, program)
        assert not program.endswith(".py") or (PROJECT / program).is_file()
    named = {name for page in numbers.pages() for name in re.findall(r"benchmarks/\w+\.py", page.read_text())}
    assert named
    assert [name for name in named if not (PROJECT / name).is_file()] == []


def test_the_readme_counts_claims_as_their_page_does():
    counted = re.search(r"(\d+ of \d+) hold", (PROJECT / "README.md").read_text())
    assert counted
    assert f"{counted[1]} claims hold." in (PROJECT / "docs/claims/index.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *(f"docs/{name}.md" for name in ("solvers", "any_model", "costs", "starts", "how_to", "start")),
    ],
)
def test_all_blocks_run(page, tmp_path, monkeypatch):
    """In order, in one process; without those that need a cluster, or take minutes at a width of a million."""
    monkeypatch.chdir(tmp_path)
    names = {}
    sources = numbers.blocks(PROJECT / page)
    runnable = [source for source in sources if "cluster" not in source and "10**6" not in source]
    assert runnable
    for source in runnable:
        assert list(numbers.changes(PROJECT / page, source, names)) == []
    plt.close("all")
