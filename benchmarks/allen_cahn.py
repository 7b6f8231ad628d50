"""Allen and Cahn's equation in one dimension: saddleflow's stiff solvers beside diffrax's, and no network in sight.

`u_t = a^2 u_xx + u - u^3` on the unit interval, no flux through its ends, second differences on a uniform grid: the
gradient flow of an energy, so its Jacobian is symmetric. From noise, domains near +1 and -1 form within a few units
of time; then walls between them meet and vanish, ever more slowly.

Run: python benchmarks/allen_cahn.py [--size 500], with OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1 set.
"""

import argparse
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console
from rich.table import Table
from timing import in_turn

import saddleflow  # noqa: F401  (turns JAX's float64 on)
from saddleflow.solvers import Plain, PredictiveController, Rosenbrock, Switching

WALL = 0.02  # a: the width of a wall between two domains
TIMES = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0)  # where errors are measured; the last is the end of the run
RTOLS = tuple(10.0 ** (-k / 4) for k in range(8, 38))
GOALS = (1e-3, 1e-5, 1e-7)
MAX_STEPS = 200_000

Vector = Float[Array, " size"]


def start(size: int) -> Float[np.ndarray, " size"]:
    """Noise between -1 and 1."""
    return np.random.default_rng(0).uniform(-1, 1, size)


def field(t: Any, u: Vector, args: Any) -> Vector:
    """`a^2 u_xx + u - u^3` by second differences."""
    del t, args
    flux = jnp.pad(jnp.diff(u), 1)
    return (WALL * u.size) ** 2 * jnp.diff(flux) + u - u**3


def tridiagonal(t: Any, u: Vector, args: Any) -> Callable[..., Any]:
    """A preconditioner for `Plain`: the inverse of `I - shift J`, growth left out, which keeps it positive."""
    del t, args
    ends = jnp.zeros_like(u).at[0].set(1).at[-1].set(1)
    beside = jnp.full_like(u, (WALL * u.size) ** 2)
    decay = beside * (2 - ends) + jnp.maximum(3 * u**2 - 1, 0)

    def prepare(shift):
        lower = (-shift * beside).at[0].set(0)
        upper = (-shift * beside).at[-1].set(0)
        return lambda v: jax.lax.linalg.tridiagonal_solve(lower, 1 + shift * decay, upper, v[:, None])[:, 0]

    return prepare


def rosenbrock(rtol: Any) -> Rosenbrock:
    """The stiff method as it comes."""
    return Rosenbrock(rtol=rtol, atol=rtol)


def switching(rtol: Any) -> Switching:
    """Explicit steps where nothing is stiff."""
    return Switching(rosenbrock(rtol))


def preconditioned(rtol: Any) -> Rosenbrock:
    """With the structure of the problem."""
    return Rosenbrock(rtol=rtol, atol=rtol, local_model=Plain(tridiagonal))


# name -> (rtol -> solver, controller); all take atol = rtol, for the solution is of order one
CONTENDERS: dict[str, tuple[Callable[[Any], diffrax.AbstractSolver], Any]] = {
    "Rosenbrock": (rosenbrock, PredictiveController),
    "Rosenbrock, preconditioned": (preconditioned, PredictiveController),
    "Switching": (switching, PredictiveController),
    "diffrax Kvaerno5": (lambda rtol: diffrax.Kvaerno5(), diffrax.PIDController),
    "diffrax Tsit5": (lambda rtol: diffrax.Tsit5(), diffrax.PIDController),
}


def solve(name: str, u: Vector, rtol: Any, field: Callable[..., Any] = field) -> diffrax.Solution:
    """The run of a contender, saved at `TIMES`."""
    solver, controller = CONTENDERS[name]
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver(rtol),
        t0=0.0,
        t1=TIMES[-1],
        dt0=1e-4,
        y0=u,
        stepsize_controller=controller(rtol=rtol, atol=rtol),
        saveat=diffrax.SaveAt(ts=jnp.asarray(TIMES)),
        max_steps=MAX_STEPS,
        throw=False,
    )


def reference(u: Vector) -> Float[Array, "times size"]:
    """By another kind of method, explicit and of order eight, to near rounding."""
    controller = diffrax.PIDController(rtol=1e-11, atol=1e-11)
    saved = diffrax.SaveAt(ts=jnp.asarray(TIMES))
    term, ends = diffrax.ODETerm(field), (0.0, TIMES[-1], 1e-4)
    run = functools.partial(diffrax.diffeqsolve, term, diffrax.Dopri8(), *ends, max_steps=10 * MAX_STEPS)
    return jax.jit(lambda u: run(u, stepsize_controller=controller, saveat=saved).ys)(u)


def counted(calls: Counter) -> Callable[..., Any]:
    """The field, counting every call, and products of its Jacobian with vectors: a dense one is `size` of them."""

    def tick(name: str, x: Any) -> Any:
        calls[name] += np.size(x)
        return np.asarray(x)

    def passed(name: str, v: Vector) -> Vector:
        first = jax.ShapeDtypeStruct((), v.dtype)
        call = functools.partial(tick, name)
        return v.at[0].set(jax.pure_callback(call, first, v[0], vmap_method="expand_dims"))

    @jax.custom_jvp
    def count(u):
        return passed("fields", u)

    @count.defjvp
    def _(primals, tangents):
        return count(*primals), passed("products", tangents[0])

    return lambda t, u, args: field(t, count(u), args)


@dataclasses.dataclass
class Run:
    """One run: its error against the reference, its work, and the least of its seconds once compiled."""

    name: str
    rtol: float
    error: float
    steps: int
    fields: int = 0
    products: int = 0
    seconds: float = np.nan


def errors(name: str, u: Vector, exact: Float[np.ndarray, "times size"], run: Callable[..., Any]) -> Iterator[Run]:
    """Runs of a contender at ever smaller tolerances."""
    for rtol in RTOLS:
        solution = run(u, rtol)
        error = float(np.abs(solution.ys - exact).max())
        yield Run(name, rtol, error if np.isfinite(error) else np.inf, int(solution.stats["num_steps"]))


def measure(run: Run, u: Vector, compiled: Callable[..., Any]) -> None:
    """Count the work of a run in a program that counts, and time it in the one that does not."""
    calls: Counter = Counter()
    counting = jax.jit(lambda u, rtol: solve(run.name, u, rtol, counted(calls)))
    jax.block_until_ready(counting(u, run.rtol))
    run.fields, run.products = calls["fields"], calls["products"]
    run.seconds = in_turn(lambda: compiled(u, run.rtol), repeats=5)[0]


def cheapest(size: int) -> list[tuple[float, Run]]:
    """For every goal and contender the run at the largest tolerance whose error is below the goal, measured."""
    u = jnp.asarray(start(size))
    exact, found = np.asarray(reference(u)), []
    for name in CONTENDERS:
        compiled = jax.jit(functools.partial(solve, name))
        runs = errors(name, u, exact, compiled)
        run = next(runs)
        for goal in GOALS:
            while run is not None and run.error > goal:
                run = next(runs, None)
            if run is None:
                break
            if not run.fields:
                measure(run, u, compiled)
            found.append((goal, run))
    return sorted(found, key=lambda row: -row[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=500, help="grid points")
    size = parser.parse_args().size
    table = Table(title=f"Allen and Cahn's equation, {size} points, to t = {TIMES[-1]:g}", box=None)
    for column in ("error below", "solver", "rtol", "error", "steps", "fields", "products", "seconds"):
        table.add_column(column, justify="left" if column == "solver" else "right")
    for goal, run in cheapest(size):
        numbers = (f"{run.rtol:.0e}", f"{run.error:.1e}", *map(str, (run.steps, run.fields, run.products)))
        table.add_row(f"{goal:.0e}", run.name, *numbers, f"{run.seconds:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
