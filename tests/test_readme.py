"""The Python blocks of README.md and the pages: what they print is what their comments say, to the digits shown.

A comment that begins with numbers states what the `print` on its line prints; two spaces part them from words.
"""

import ast
import contextlib
import io
import re
from decimal import Decimal
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


def stated(line):
    """The numbers that a line's comment begins with, as they are written."""
    found = re.search(rf"^print\(.*#\s*((?:{NUMBER}[ ,]*)+)(?:\s{{2,}}.*)?$", line)
    return re.findall(NUMBER, found[1]) if found else []


def imports(source):
    return "\n".join(ast.unparse(n) for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom))


def run(source, names):
    """Run a block statement by statement: pairs of (what a line states, what it prints)."""
    lines, pairs = source.splitlines(), []
    for node in ast.parse(source).body:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(ast.Module([node], []), "<block>", "exec"), names)
        if numbers := stated(lines[node.end_lineno - 1]):
            pairs.append((numbers, output.getvalue().split()))
    return pairs


def to_the_digits_of(text, printed):
    return Decimal(printed).quantize(Decimal(1).scaleb(Decimal(text).as_tuple().exponent))


def cases():
    """Every block that states numbers, after the imports of those before it on its page."""
    for page in PAGES:
        before = ""
        for number, source in enumerate(blocks(page)):
            if any(map(stated, source.splitlines())):
                yield pytest.param(before, source, id=f"{page.relative_to(PROJECT)}-{number}")
            before += imports(source) + "\n"


def test_comments_are_read():
    assert stated("print(a)  # 5.97     the zero predictor") == ["5.97"]
    assert stated("print(a, b)  # 0.0040 4   the flow, and its rank") == ["0.0040", "4"]
    assert stated("print(a)  # 1e-06, -2.5e3") == ["1e-06", "-2.5e3"]
    assert stated("print(traj)  # a card: how it ended") == []
    assert stated("print(a)  # 3 plateaus are met") == []
    assert to_the_digits_of("0.0040", "0.004023170361986106") == Decimal("0.0040")
    assert to_the_digits_of("1.2e-06", "1.249e-06") == Decimal("1.2e-06")
    assert to_the_digits_of("3", "4") != Decimal("3")


def test_readme_states_numbers():
    assert sum(len(stated(line)) for source in blocks(PAGES[0]) for line in source.splitlines()) == 7


@pytest.mark.parametrize(("before", "source"), list(cases()))
def test_blocks_print_what_their_comments_say(before, source):
    names = {}
    exec(before, names)
    pairs = run(source, names)
    assert pairs
    for numbers, printed in pairs:
        assert len(printed) == len(numbers), (numbers, printed)
        assert [to_the_digits_of(n, p) for n, p in zip(numbers, printed, strict=True)] == list(map(Decimal, numbers))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{name}.md" for name in ("solvers", "any_model", "costs", "starts"))]
)
def test_all_blocks_run(page, tmp_path, monkeypatch):
    """In order, in one process; without those that need a cluster, or take minutes at a width of a million."""
    monkeypatch.chdir(tmp_path)
    names = {}
    runnable = [source for source in blocks(PROJECT / page) if "cluster" not in source and "10**6" not in source]
    assert runnable
    for source in runnable:
        for numbers, printed in run(source, names):
            assert [to_the_digits_of(n, p) for n, p in zip(numbers, printed, strict=True)] == list(
                map(Decimal, numbers)
            )
    plt.close("all")
