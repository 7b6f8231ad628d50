"""The API pages have every public name once, and the examples in docstrings print what they say."""

import ast
import doctest
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import saddleflow as sf

PROJECT = Path(__file__).parents[1]
NUMBER = r"(\d+\.?\d*(?:e[-+]?\d+)?)"

# Each compiles a program that no other example needs, or several: ten seconds and more on one core.
SLOW = {
    "api:integrate",
    "flow/observables:Distance",
    "flow/observables:KernelDistance",
    "flow/observables:module",
    "gallery/runner:run",
    "greedy/algorithms:saddle_to_saddle",
    "problem/objective:Objective",
    "problem/objective:classification",
    "problem/objective:weight_decay",
    "sweeps/after:after",
    "sweeps/sweep:sweep",
    "training/distance:distance_to_flow",
    "training/pictures:plot_descent",
    "width/sampled:sample_reduced",
}

# What docs/api/index.md says that every example takes as given.
GIVEN = {"eqx": eqx, "jax": jax, "jnp": jnp, "np": np, "optax": optax, "sf": sf}


def documented():
    """What the directives of the API pages name."""
    directive = re.compile(r"^\.\. auto(?:class|data|function|module):: saddleflow\.(\S+)$", re.M)
    return Counter(
        name for page in (PROJECT / "docs/api").glob("*.md") for name in directive.findall(page.read_text())
    )


@pytest.mark.parametrize("package", ["", "theory."])
def test_every_name_has_one_page(package):
    names = sf.__all__ if package == "" else getattr(sf, package.removesuffix(".")).__all__
    names = [f"{package}{name}" for name in names]
    pages = documented()
    assert names
    assert {name: pages[name] for name in names} == dict.fromkeys(names, 1)


def examples():
    """Every docstring with an example: (docstring, file, line)."""
    package = PROJECT / "saddleflow"
    for path in sorted(package.rglob("*.py")):
        source = path.read_text()
        if ">>>" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ">>>" in (
                ast.get_docstring(node) or ""
            ):
                name = f"{path.relative_to(package).with_suffix('')}:{getattr(node, 'name', 'module')}"
                marks = [pytest.mark.slow] if name in SLOW else []
                yield pytest.param(ast.get_docstring(node), path, node.body[0].lineno, id=name, marks=marks)


def test_slow_ones_are_there():
    assert {case.id for case in examples()} > SLOW


class Digits(doctest.OutputChecker):
    """Numbers are compared to the digits that are written down."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        wanted, found = (re.split(NUMBER, " ".join(text.split())) for text in (want, got))
        return [part.strip() for part in wanted[::2]] == [part.strip() for part in found[::2]] and all(
            Decimal(number).quantize(Decimal(1).scaleb(Decimal(written).as_tuple().exponent)) == Decimal(written)
            for written, number in zip(wanted[1::2], found[1::2], strict=True)
        )


def failures(docstring, path, line):
    test = doctest.DocTestParser().get_doctest(docstring, dict(GIVEN), path.name, str(path), line)
    report = []
    doctest.DocTestRunner(Digits(), verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(
        test, out=report.append
    )
    return "".join(report)


def test_wrong_examples_are_seen():
    assert not failures(">>> 1 / 3, 20.04\n(0.333, 20.0)\n", PROJECT, 0)
    assert failures(">>> 1 / 3\n0.334\n", PROJECT, 0)
    assert failures(">>> 1 / 0\n0.334\n", PROJECT, 0)
    assert failures(">>> print('a 1')\nb 1\n", PROJECT, 0)
    assert failures(">>> 1, 2\n(1,)\n", PROJECT, 0)


@pytest.mark.parametrize(("docstring", "path", "line"), list(examples()))
def test_examples_print_what_they_say(docstring, path, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not (report := failures(docstring, path, line)), report
    plt.close("all")
