"""The house: which package may import which, what an import does, and names in texts that must exist."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import saddleflow as sf

ROOT = Path(sf.__file__).parent  # of the package as installed
PROJECT = Path(__file__).parents[1]  # of this checkout

# Data flows one way: a package imports only from those before it; `solvers` stands alone.
ORDER = (
    "_backend",
    "plotting",
    "solvers",
    "problem",
    "theory",
    "flow",
    "width",
    "training",
    "api",
    "greedy",
    "sweeps",
    "figures",
    "claims",
    "gallery",
    "explorer",
    "cli",
)
ALONE = ("solvers",)
HEAVY = ("matplotlib", "xarray", "zarr", "pandas", "scipy.integrate", "scipy.signal", "scipy.stats", "h5netcdf")


def modules() -> dict[str, Path]:
    """All modules by their dotted names."""
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """The modules of the package that a module imports, those in functions too; not those for type checkers alone."""
    found = set()
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for body in node.body
        for inner in ast.walk(body)
    }
    for node in ast.walk(tree):
        module = node.module or "" if isinstance(node, ast.ImportFrom) and node not in skipped else ""
        if module.split(".")[0] == "saddleflow":
            children = {f"{module}.{alias.name}" for alias in node.names}
            found |= (children & known) or {module}
    return found - {name}


def place(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_packages_import_only_from_those_before_them():
    known = modules()
    assert len(known) > 60
    for name, path in known.items():
        if name == "saddleflow":
            continue
        assert place(name) in ORDER, f"{name} has no place in the order"
        for imported in imports(name, path, set(known)):
            if imported == "saddleflow":
                # names that are loaded when they are first used: for what stands above them all
                assert place(name) in ("cli", "figures", "claims", "gallery"), f"{name} imports saddleflow itself"
                continue
            here, there = ORDER.index(place(name)), ORDER.index(place(imported))
            assert there <= here, f"{name} imports {imported}"
            assert place(name) not in ALONE or there == here, f"{name} imports {imported}, but stands alone"


def test_no_package_has_a_cycle():
    known = modules()
    graph = {name: imports(name, path, set(known)) & set(known) for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*trail, name))
            done.add(name)

    for name in graph:
        if name != "saddleflow":
            visit(name, ())


def test_equinox_internals_stay_in_the_solvers():
    for path in ROOT.rglob("*.py"):
        if "solvers" not in path.parts:
            assert "equinox.internal" not in path.read_text(), path


def test_functions_fit_on_a_screen():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 65, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


def in_a_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_an_import_starts_nothing():
    """No backend, so that distributed processes, platforms and device counts can still be chosen; no listener."""
    code = f"""
import sys
import jax
before = list(jax.config.values.items())
heard = []
for kind in ("event_duration_secs", "event"):
    name = f"register_{{kind}}_listener"
    setattr(jax.monitoring, name, lambda *a, name=name: heard.append(name))
import saddleflow as sf
for name in sf.__all__:
    getattr(sf, name)
import saddleflow.cli
after = dict(jax.config.values)
print([key for key, value in before if after[key] != value], heard)
# a library that is still to be loaded stands in sys.modules as a proxy, without its parts
print([m for m in {HEAVY} if any(f"{{k}}.".startswith(f"{{m}}.") and "." in k for k in sys.modules)])
jax.config.update("jax_num_cpu_devices", 3)  # refused once a backend has been started
print(len(jax.devices()))
"""
    changed, heavy, devices = in_a_new_process(code).splitlines()
    assert changed == "['jax_enable_x64'] []"
    assert devices == "3"
    assert heavy == "[]"


def test_an_import_is_quick():
    """At most 1.4 times what the substrate takes, with the names of a first flow loaded; seconds of a core."""

    def seconds(code: str) -> float:
        before = os.times()
        in_a_new_process(code)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    substrate = "import jax, diffrax, equinox, optax"
    ours = "import saddleflow as sf; sf.gradient_flow, sf.gaussian, sf.MatrixCompletion, sf.sweep"
    pairs = [(seconds(substrate), seconds(ours)) for _ in range(2)]
    assert min(b for _, b in pairs) <= 1.4 * min(a for a, _ in pairs)


def test_float64_is_on():
    assert jnp.zeros(()).dtype == jnp.float64


def test_float64_switched_off_is_named():
    code = """
import jax, numpy as np
import saddleflow as sf
jax.config.update("jax_enable_x64", False)
try:
    sf.gaussian(jax.random.key(0), depth=2, width=2, shape=(2, 2), gamma=1.0)
except ValueError as error:
    print(error)
"""
    assert "float64 is switched off: leave jax_enable_x64" in in_a_new_process(code)


def test_public_names_are_there():
    for name in sf.__all__:
        assert getattr(sf, name) is not None
    with pytest.raises(AttributeError, match="gradientflow"):
        sf.gradientflow  # noqa: B018


TEXTS = [
    path
    for pattern in ("saddleflow/**/*.py", "docs/**/*.md", "README.md", "CONTRIBUTING.md", "notebooks/*.ipynb")
    for path in PROJECT.glob(pattern)
]


def resolves(dotted: str) -> bool:
    """Whether a dotted name leads to something: modules first, then attributes."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part) and part not in getattr(found, "__annotations__", {}):
                return False
            found = getattr(found, part, None)
        return True
    return False


def test_names_in_texts_exist():
    """Every `saddleflow.x.y` and `sf.x` in backquotes, in docstrings, pages, notebooks, and every API directive."""
    assert len(TEXTS) > 60
    missing = []
    for path in TEXTS:
        text = path.read_text()
        names = re.findall(r"`+(saddleflow(?:\.\w+)+)", text) + re.findall(r"^::: (saddleflow(?:\.\w+)+)", text, re.M)
        names += [f"saddleflow.{rest}" for rest in re.findall(r"`+sf\.((?:\w+\.)*\w+)", text)]
        missing += [f"{path.relative_to(PROJECT)}: {name}" for name in names if not resolves(name)]
    assert not missing, missing


def test_citations_of_pages_and_modules_resolve():
    """`docs/theory.md, section 4c` has that heading; a page or a script that a text names is there."""
    headings = (PROJECT / "docs/theory.md").read_text()
    for path in [*TEXTS, *(PROJECT / "tests").rglob("*.py"), *(PROJECT / "benchmarks").glob("*.py")]:
        text = re.sub(r"\s*\n\s*(?:#\s*)?", " ", path.read_text())
        assert "theory notes" not in text or path == Path(__file__), path
        for section in re.findall(r"docs/theory\.md,? sections? (\d+[a-d]?)", text):
            assert re.search(rf"^##+ {section}[. ]", headings, re.M), f"{path}: section {section}"
        for named in re.findall(r"(?<![\w/.])((?:docs|benchmarks|tests|notebooks)/[\w/]+\.(?:md|py|ipynb))", text):
            assert (PROJECT / named).exists(), f"{path} names {named}"
