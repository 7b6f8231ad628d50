"""The solvers without the rest of saddleflow: imports, and a partial differential equation as the pages show it."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saddleflow import solvers

PACKAGE = Path(solvers.__file__).parent
PROJECT = Path(__file__).parents[2]


def test_nothing_else_of_saddleflow_is_imported():
    paths = list(PACKAGE.glob("*.py"))
    assert len(paths) >= 9
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [node.module or ""]
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split(".")[0] != "saddleflow" or name.startswith("saddleflow.solvers"), f"{path}: {name}"


@pytest.fixture(scope="module")
def page():
    """The names that the code of the page defines, of its own size and smaller ones."""
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/solvers.md").read_text(), re.S)
    code = "\n".join(blocks).replace("size, a = 500, 0.02", "size, a = 40, 0.02").replace("t1=100.0", "t1=10.0")
    scope: dict = {}
    exec(code.replace("[1.0, 10.0, 100.0]", "[0.1, 1.0, 10.0]"), scope)
    return scope


def test_the_pages_example_meets_its_tolerance(page, reference):
    """Allen and Cahn's equation, some domains old: errors within a few tolerances."""
    times = np.array([0.1, 1.0, 10.0])
    exact = reference(page["field"], page["start"], times)
    assert np.abs(exact[-1]).max() > 0.9  # domains have formed
    solution = page["solution"]
    assert np.abs(solution.ys - exact).max() < 10 * 1e-6
    work = solution.solver_state.work
    assert int(work.steps) + int(work.explicit_steps) == int(solution.stats["num_accepted_steps"])


def test_the_benchmark_solves_the_same_problem(page, monkeypatch):
    """And the page's preconditioner is near the inverse, positive and symmetric."""
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    import allen_cahn

    u = page["start"]
    np.testing.assert_allclose(allen_cahn.field(0.0, u, None), page["field"](0.0, u, None), rtol=1e-12)
    np.testing.assert_array_equal(allen_cahn.start(u.size), u)
    shift, identity = 0.1, jnp.eye(u.size)
    inverse = np.stack([page["tridiagonal"](0.0, u, None)(shift)(v) for v in identity])
    theirs = np.stack([allen_cahn.tridiagonal(0.0, u, None)(shift)(v) for v in identity])
    np.testing.assert_allclose(inverse, theirs, rtol=1e-12)
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-14)
    jacobian = jax.jacfwd(lambda u: page["field"](0.0, u, None))(u)
    values = np.linalg.eigvals(inverse @ (identity - shift * jacobian))
    assert np.abs(values - 1).max() < 0.15
    assert np.linalg.eigvalsh(inverse).min() > 0
