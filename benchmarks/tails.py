"""Long tails: a cost without a minimiser, followed for twelve decades of time, beside SciPy's stiff methods.

The two-by-two completion `A_01 = A_10 = 1, A_11 = 0`, `A_00` free, from a balanced start of rank one: `A_00` tends to
`((4 L + 4) t / 3)^(1 / (2 + 2/L))`. The error at t = 1e12 is printed over the tolerance, with steps, evaluations of
the gradient (and, of SciPy's methods, of the dense Jacobian) and seconds without compilation.

Run: python benchmarks/tails.py [--depths 2 4], with OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1 set.
"""

import argparse
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.table import Table
from scipy.integrate import solve_ivp

import saddleflow as sf
from saddleflow.problem import geometry

END = 1e12
RTOLS = (1e-4, 1e-6, 1e-8)
COST = sf.MatrixCompletion(np.array([[0.0, 1], [1, 0]]), np.array([[False, True], [True, True]]))

Row = tuple[str, int, int | None, float, float]


def law(depth: int) -> float:
    """A_00 at the end, to 3e-8 of it."""
    return ((4 * depth + 4) * END / 3) ** (1 / (2 + 2 / depth))


def ours(start: sf.DeepLinearNetwork, rtol: float) -> Row:
    """The default solver."""
    run = [sf.gradient_flow(COST, start, rtol=rtol, save_at=[END], progress=False) for _ in range(2)][1]
    fields = run.stats["num_vector_field_evaluations"]
    return "saddleflow", run.stats["num_steps"], fields, float(run.end_to_end[-1, 0, 0]), run.stats["seconds"]


def scipys(method: str, start: sf.DeepLinearNetwork, rtol: float) -> Row:
    """A stiff method of SciPy's, with the exact dense Jacobian and our absolute tolerance."""
    flat, unravel = ravel_pytree(start)

    @jax.jit
    def field(y):
        return -ravel_pytree(geometry.gradient(COST, unravel(y)))[0]

    jacobian = jax.jit(jax.jacfwd(field))
    jax.block_until_ready((field(flat), jacobian(flat)))
    begin = time.perf_counter()
    solution = solve_ivp(
        lambda t, y: np.asarray(field(y)),
        (0, END),
        np.asarray(flat),
        method=method,
        jac=lambda t, y: np.asarray(jacobian(y)),
        rtol=rtol,
        atol=0.2 * rtol * float(jnp.sqrt(jnp.mean(flat**2))),
    )
    seconds = time.perf_counter() - begin
    end = float(unravel(jnp.asarray(solution.y[:, -1])).end_to_end()[0, 0])
    return f"SciPy {method}", len(solution.t) - 1, solution.nfev, end, seconds


def measured(depths: list[int]) -> Iterator[tuple[int, float, Row]]:
    """All runs, in turn."""
    for depth in depths:
        start = sf.balanced(jnp.full((2, 2), 5e-4), depth=depth, width=2)
        for rtol in RTOLS:
            yield depth, rtol, ours(start, rtol)
            for method in ("BDF", "Radau"):
                yield depth, rtol, scipys(method, start, rtol)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4])
    table = Table("L", "rtol", "method", "steps", "gradients", "error / rtol", "seconds")
    for depth, rtol, (name, steps, fields, end, seconds) in measured(parser.parse_args().depths):
        error = abs(end / law(depth) - 1) / rtol
        table.add_row(str(depth), f"{rtol:.0e}", name, f"{steps:,}", f"{fields:,}", f"{error:,.1f}", f"{seconds:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
