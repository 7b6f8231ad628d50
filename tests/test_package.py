"""The house: which module may import which, and float64 everywhere."""

import ast
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp

import saddleflow

ROOT = Path(saddleflow.__file__).parent

# Data flows one way: a module imports only from modules above it. Packages count as one.
ORDER = [
    "checks",
    "files",
    "devices",
    "programs",
    "factor",
    "curvature",
    "costs",
    "reading",
    "network",
    "symmetry",
    "growing",
    "geometry",
    "graded",
    "dips",
    "clock",
    "solvers",
    "jacobian",
    "theory",
    "observables",
    "stationary",
    "saddles",
    "plotting",
    "reduction",
    "reduced_law",
    "trajectory",
    "certificate",
    "runs",
    "preparation",
    "stepping",
    "flow",
    "paths",
    "greedy",
    "comparison",
    "lanes",
    "reduced_lanes",
    "chunks",
    "store",
    "cluster",
    "sweep",
    "figures",
    "claims",
    "cli",
]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("saddleflow"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def test_imports_point_one_way():
    files = [p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem != "__init__"]
    assert len(files) > 15
    for path in files:
        place = path.relative_to(ROOT).parts[0].removesuffix(".py")
        assert place in ORDER, f"{place} has no place in the order"
        for imported in imports(path):
            if imported in ORDER and imported != place:
                assert ORDER.index(imported) < ORDER.index(place), f"{path.name} imports {imported}"


def test_equinox_internals_stay_in_the_solvers():
    for path in ROOT.rglob("*.py"):
        if "solvers" not in path.parts:
            assert "equinox.internal" not in path.read_text(), path


def test_modules_are_small():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_float64_is_on():
    assert jnp.zeros(()).dtype == jnp.float64


def test_float32_is_refused_at_import():
    code = "import jax\nwith jax.enable_x64(False):\n    import saddleflow"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "saddleflow needs float64" in run.stderr
