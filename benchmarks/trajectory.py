"""One trajectory, figure 1's, by several solvers side by side; error against a run at a hundredth of the tolerance.

Run: python benchmarks/trajectory.py
"""

import time

import diffrax
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import saddleflow as sf

TIMES = np.array([300.0, 600.0, 900.0, 1200.0])
SOLVERS = {"Rosenbrock": None, "Tsit5": diffrax.Tsit5(), "Dopri5": diffrax.Dopri5(), "Dopri8": diffrax.Dopri8()}


def main() -> None:
    key_task, key_start = jax.random.split(jax.random.key(3))
    cost = sf.MatrixCompletion.random(key_task)
    start = sf.gaussian(key_start, depth=4, width=100, shape=(10, 10), gamma=2.0)
    reference = sf.gradient_flow(cost, start, rtol=1e-11, save_at=TIMES, solver=diffrax.Dopri8()).end_to_end
    table = Table(title=f"figure 1's flow to t = {TIMES[-1]:g} (error: sup over {len(TIMES)} times of |A - A_ref|)")
    for name in (
        "solver",
        "rtol",
        "error",
        "steps",
        "rejected",
        "vector fields",
        "products",
        "seconds",
        "first call",
    ):
        table.add_column(name, justify="right")
    for name, solver in SOLVERS.items():
        for rtol in (1e-4, 1e-6, 1e-8):
            seconds = []
            for _ in range(4):  # the first one compiles
                begin = time.perf_counter()
                run = sf.gradient_flow(cost, start, rtol=rtol, save_at=TIMES, solver=solver)
                seconds.append(time.perf_counter() - begin)
            error = np.linalg.norm(run.end_to_end - reference, axis=(1, 2)).max()
            table.add_row(
                name,
                f"{rtol:.0e}",
                f"{error:.1e}",
                str(run.stats["num_steps"]),
                str(run.stats["num_rejected_steps"]),
                str(run.stats["num_vector_field_evaluations"]),
                str(run.stats["num_hessian_vector_products"]),
                f"{np.median(seconds[1:]):.2f}",
                f"{seconds[0]:.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
