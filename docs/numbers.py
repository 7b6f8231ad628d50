"""The numbers of README.md and of the pages: run anew, and written where they stand.

python -m docs.numbers              # run the Python blocks; what they print replaces the numbers in their comments
python -m docs.numbers --check      # compare only: exit code 1 where a number is another one
python -m docs.numbers --measured   # also run the commands that measure: hours, with nothing else on the machine
python -m docs.numbers --list       # which command stands behind which page

A comment that begins with numbers states what the `print` on its line prints; two spaces part them from words:

    print(run.rank[-1], run.train_cost[-1])  # 2 1.3e-09   the rank, and a cost

A comment that ends in "below" says that the text block after this one shows what the line prints.

CI compares them with `pytest tests/test_readme.py`.
"""

import argparse
import ast
import contextlib
import io
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

PROJECT = Path(__file__).parents[1]
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
STATED = re.compile(rf"^(print\(.*#\s*)((?:{NUMBER}[ ,]*)+)(\s{{2,}}.*)?$")

SHOWN = re.compile(r"^print\(.*#.*\bbelow$")
TOLERANCE = 1e-2  # of numbers in a text block: other machines round otherwise

# Commands that write their tables and pictures into a page.
WRITTEN = {
    "docs/claims/index.md": "saddleflow verify --full --page docs/claims/index.md --force",
    "docs/gallery.md": "saddleflow gallery all --page docs/gallery.md --force",
    "docs/models.md": "python benchmarks/models.py --write",
    "docs/real_data.md": "python benchmarks/real_data.py --write",
    "docs/running.md": "python benchmarks/waiting.py --write",
    "docs/size.md": "python benchmarks/size.py --write",
    "docs/soak.md": "python benchmarks/soak.py --flows 224 --seed 0 --write",
    "docs/work_precision.md": "python benchmarks/work_precision.py --markdown docs/work_precision.md",
}

# Commands that print the numbers of a page, whose words say what they mean: compare them by eye.
PRINTED = {
    "docs/figures.md": "saddleflow figure all --force",
    "docs/kinks.md": "python benchmarks/kinks.py",
    "docs/limit.md": "python benchmarks/limit.py",
    "docs/reliability.md": "python benchmarks/mutants.py",
    "docs/small_starts.md": "python benchmarks/small_starts.py",
    "docs/solvers.md": "python benchmarks/allen_cahn.py",
    "docs/sweeps.md": "python benchmarks/sweep.py",
    "docs/tails.md": "python benchmarks/tails.py",
    "docs/training.md": "python benchmarks/training.py",
    "docs/width.md": "python benchmarks/width.py",
}


def pages() -> list[Path]:
    """README.md and every page that is in the sources."""
    found = (path for path in (PROJECT / "docs").rglob("*.md") if "_build" not in path.parts)
    return [PROJECT / "README.md", *sorted(found)]


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


def stated(line: str) -> list[str]:
    """The numbers that a line's comment begins with, as they are written."""
    found = STATED.match(line)
    return re.findall(NUMBER, found[2]) if found else []


def shown_below(page: Path, source: str) -> str | None:
    """The text block after a Python block, where a line of it says that its output is shown below."""
    if not any(map(SHOWN.match, source.splitlines())):
        return None
    found = re.search(rf"{re.escape(source)}```\n.*?^```text\n(.*?)^```", page.read_text(), re.M | re.S)
    assert found, f"{page}: no text block shows what is printed"
    return found[1]


def looks_different(text: str, printed: str) -> bool:
    """Whether a text block is another one than the printed, but for rounding and spaces."""
    words, found = text.split(), printed.split()
    return len(words) != len(found) or any(map(_other_word, words, found))


def _other_word(word: str, printed: str) -> bool:
    try:
        return abs(float(word) - float(printed)) > TOLERANCE * abs(float(word))
    except ValueError:
        return word != printed


def imports(source: str) -> str:
    """The imports of a block: what the next ones may take for granted."""
    return "\n".join(ast.unparse(n) for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom))


def stating_blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """Of every block that states numbers its place on the page, the imports of those before it, and its source."""
    before = ""
    for number, source in enumerate(blocks(page)):
        if any(stated(line) or SHOWN.match(line) for line in source.splitlines()):
            yield number, before, source
        before += imports(source) + "\n"


def run(source: str, names: dict) -> Iterator[tuple[str, str]]:
    """Run a block statement by statement; the lines that state or show what they print, and what that is."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(ast.Module([node], []), "<block>", "exec"), names)
        line = lines[(node.end_lineno or 1) - 1]
        if stated(line) or SHOWN.match(line):
            yield line, output.getvalue()


def to_the_digits_of(text: str, printed: str) -> str:
    """A printed number with the digits of the stated one."""
    mantissa, letter, _ = text.partition("e")
    digits = len(mantissa.partition(".")[2])
    if letter:
        return f"{Decimal(printed):.{digits}e}" if Decimal(printed) else printed
    return str(Decimal(printed).quantize(Decimal(1).scaleb(-digits)))


def differs(text: str, printed: str) -> bool:
    """Whether a stated number is another one than the printed, to the digits stated."""
    return Decimal(to_the_digits_of(text, printed)) != Decimal(text)


def anew(line: str, printed: str) -> str:
    """The line with the numbers that it prints today.

    Raises:
        ValueError: it prints more numbers than it states, or fewer.
    """
    found = STATED.match(line)
    assert found, line
    pairs = zip(stated(line), printed.split(), strict=True)
    texts = [n if not differs(n, p) else to_the_digits_of(n, p) for n, p in pairs]
    fresh = iter(texts)
    return found[1] + re.sub(NUMBER, lambda _: next(fresh), found[2]) + (found[3] or "")


def rerun(page: Path, check: bool) -> int:
    """Run the blocks of a page that state numbers; the count of lines and text blocks that are others today."""
    text, changed = page.read_text(), 0
    for number, before, source in stating_blocks(page):
        names: dict = {}
        exec(before, names)
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # some save files
            found = list(changes(page, source, names))
        for was, now in found:
            print(f"{page.relative_to(PROJECT)}, block {number}:\n  was {was}\n  now {now}", flush=True)
            text, changed = text.replace(was, now, 1), changed + 1
    if changed and not check:
        page.write_text(text)
    return changed


def changes(page: Path, source: str, names: dict) -> Iterator[tuple[str, str]]:
    """Lines, and a text block, that state another thing than is printed: as they are, and as they should be."""
    shown = shown_below(page, source)
    for line, printed in run(source, names):
        if stated(line):
            fresh = anew(line, printed)
            if fresh != line:
                yield line, fresh
        elif shown is not None and looks_different(shown, printed):
            yield shown, "".join(f"{row.rstrip()}\n" for row in printed.splitlines())


def measure() -> None:
    """Run the commands that measure, one after another."""
    for page, command in (WRITTEN | PRINTED).items():
        print(f"{page}: {command}", flush=True)
        arguments = shlex.split(command)
        if arguments[0] == "python":
            arguments[0] = sys.executable
        subprocess.run(arguments, cwd=PROJECT, check=True)


def main() -> None:
    """Do what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="these pages only")
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--measured", action="store_true", help="also run the commands that measure")
    parser.add_argument("--list", action="store_true", help="list the commands behind the pages")
    options = parser.parse_args()
    if options.list:
        for page, command in sorted((WRITTEN | PRINTED).items()):
            print(f"{page:24} {'written' if page in WRITTEN else 'printed'} by `{command}`")
        return
    changed = sum(rerun(page.resolve(), options.check) for page in options.pages or pages())
    print(f"{changed} lines state other numbers than their blocks print" if changed else "all numbers stand")
    if options.measured:
        measure()
    sys.exit(bool(changed and options.check))


if __name__ == "__main__":
    main()
