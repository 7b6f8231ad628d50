"""Seconds at equal error on matrices of real size: saddleflow, diffrax, CVODE, gradient descent; `--write` to docs.

The problems are those of deep matrix factorisation (Arora et al., arXiv 1905.13655): a 100 x 100 matrix of rank 5, of
which 2,000 or 5,000 entries are observed, from layers with entries of deviation s^(1/L) / 10; and a larger one. A run
goes to the time at which the train cost is 1e-6 ("cost"), or on to our certificate of a minimum ("certificate").

    python benchmarks/size.py --quick      # one problem, minutes
    python benchmarks/size.py --write      # all of them: an hour, to docs/size.md
"""

import argparse
import dataclasses
import functools
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import peers
import sksundae
from jax.flatten_util import ravel_pytree
from peers import CVODE, Diffrax, Host, Peer, Result, Saddleflow
from problems import Problem, _problem
from rich.console import Console
from tables import markdown, show, write_below
from timing import in_turn
from work_precision import Point, measure

import saddleflow as sf
from saddleflow.flow.jacobian import ShiftedGram, _gram
from saddleflow.problem import geometry
from saddleflow.problem.costs import MOST_RESIDUALS

peers.MAX_SECONDS = 60.0
MARK = "<!-- Below this line everything is written by `python benchmarks/size.py --write`. -->"
PAGE = Path(__file__).parents[1] / "docs" / "size.md"
CONSOLE = Console(width=180)
COST = 1e-6
LEVELS = (1e-3, 1e-5)
HEADER = ["solver", "rtol", "error of A", "vector fields", "products", "preconditioner", "steps", "seconds", "ended"]


class WoodburyCVODE(CVODE):
    """CVODE with saddleflow's preconditioner: the Gram matrix of the residuals, formed as rarely as CVODE wants."""

    name = "CVODE, our preconditioner"
    tolerances = (1e-4, 1e-6)

    def suits(self, problem: Problem) -> bool:
        """Where the matrix is one that we would factorise, and its solves, called from the host, are few."""
        return len(problem.cost.entries[0]) <= MOST_RESIDUALS and problem.name.endswith("certificate")

    def options(self, host: Host) -> dict[str, Any]:
        """The preconditioner."""
        problem, kept = host.problem, {}
        assert isinstance(problem, Problem)
        _, unravel = ravel_pytree(problem.network)
        curvature = problem.cost.curvature(jnp.zeros(problem.shape))

        @jax.jit
        def formed(y):
            left, right = geometry.partial_products(unravel(y))
            return (left, right), _gram(curvature, left, right)

        @jax.jit
        def applied(products, inverse, v):
            left, right = products
            values = inverse.solve(curvature.root(geometry.push_forward(left, right, unravel(v))))
            back = geometry.pull_back(left, right, curvature.adjoint(values))
            return v - ravel_pytree(back)[0]

        factorised = jax.jit(ShiftedGram.of)

        def setup(t, y, yp, reusable, renewed, gamma):
            if not reusable:
                kept["products"], kept["gram"] = formed(np.array(y))
            renewed[0] = 0 if reusable else 1
            kept["inverse"] = factorised(kept["gram"], jnp.asarray(gamma))

        def solve(t, y, yp, rhs, out, gamma, delta, side):
            host.preconditions += 1
            np.copyto(out, applied(kept["products"], kept["inverse"], np.array(rhs)))

        return {"precond": sksundae.cvode.CVODEPrecond(setup, solve)}


class GradientDescent(Peer[Problem]):
    """Full-batch gradient descent, a step of at most a fraction of the largest stable one: a tolerance stands for it.

    The largest stable step is two over the spectral radius at the end of the run, found by another solver.
    """

    name = "gradient descent"
    tolerances = (1.0,)

    def __init__(self, end: sf.DeepLinearNetwork, cost: sf.Cost):
        self.radius = _radius(end, cost)

    def prepare(self, problem: Problem) -> float:
        """The loop, compiled."""
        begin = time.perf_counter()

        @jax.jit
        def steps(y, length, count):
            return jax.lax.fori_loop(0, count, lambda _, y: y + length * problem.field(y), y)

        self.steps = steps
        jax.block_until_ready(steps(problem.start, 0.0, 1))
        return time.perf_counter() - begin

    def run(self, problem: Problem, rtol: float) -> Result:
        """From time to time; given up where it would take more than the budget."""
        values = np.full((len(problem.times), *problem.shape), np.nan)
        counts = np.ceil(np.diff(problem.times, prepend=0.0) * self.radius / (1.9 * rtol)).astype(int)
        y, begin, done = jnp.asarray(problem.start), time.perf_counter(), 0
        for i, (count, span) in enumerate(zip(counts, np.diff(problem.times, prepend=0.0), strict=True)):
            left = int(count)
            while left > 0:
                burst = min(left, 500)
                y = jax.block_until_ready(self.steps(y, span / count, burst))
                left, done = left - burst, done + burst
                if time.perf_counter() - begin > peers.MAX_SECONDS:
                    return Result(values, "max_seconds", time.perf_counter() - begin, fields=done, steps=done)
            values[i] = problem.outputs(y)
        return Result(values, "t1", time.perf_counter() - begin, fields=done, steps=done)


def _radius(network: sf.DeepLinearNetwork, cost: sf.Cost) -> float:
    """The spectral radius of the loss's Hessian, by power iteration."""
    product = jax.jit(lambda v: geometry.hessian_vector_product(cost, network, v))
    direction, size = network, jnp.ones(())
    for _ in range(40):
        image = product(direction)
        size = geometry.norm(image)
        direction = jax.tree.map(lambda x, s=size: x / s, image)
    return float(size)


@dataclasses.dataclass(frozen=True)
class Case:
    """A task: matrix, start and how far the run goes."""

    depth: int
    scale: float
    observed: int
    end: str
    shape: tuple[int, int] = (100, 100)
    width: int = 100

    @property
    def name(self) -> str:
        """As printed."""
        size = f"{self.shape[0]} x {self.shape[1]}"
        return f"{size}, {self.observed:,} observed, L = {self.depth}, s = {self.scale:.0e}, to the {self.end}"

    def problem(self) -> tuple[Problem, GradientDescent]:
        """Ended where our own flow, at a tighter tolerance, reaches the train cost or the certificate."""
        generator = np.random.default_rng(0)
        n_out, n_in = self.shape
        target = generator.standard_normal((n_out, 5)) @ generator.standard_normal((5, n_in))
        target *= np.sqrt(n_out * n_in) / np.linalg.norm(target)
        weight = np.zeros(n_out * n_in)
        weight[generator.permutation(n_out * n_in)[: self.observed]] = 1 / self.observed
        made = _problem(
            self.name,
            target,
            weight.reshape(n_out, n_in),
            depth=self.depth,
            width=self.width,
            variance=self.scale ** (2 / self.depth) / self.width,
            alpha=1.0,
            times=(1.0,),
        )
        aim = COST if self.end == "cost" else None
        run = sf.gradient_flow(made.cost, made.network, rtol=1e-7, target_cost=aim, progress=False, max_seconds=600)
        if run.stop_reason not in ("target_cost", "converged"):
            raise RuntimeError(f"{self.name}: our own flow ended with {run.stop_reason!r} after 600 s.")
        small = float(run.time[np.argmax(run.train_cost <= 1.001 * COST)])
        times = (0.5 * small, small) if self.end == "cost" else (small, float(run.time[-1]))
        problem = dataclasses.replace(made, times=np.asarray(times))
        return problem, GradientDescent(run.network, made.cost)


CASES = (
    *(Case(depth, 1e-3, observed, "cost") for depth in (2, 3, 4) for observed in (2000, 5000)),
    *(Case(depth, 1e-3, observed, "certificate") for depth in (2, 3) for observed in (2000, 5000)),
    Case(3, 1e-6, 2000, "cost"),
    Case(2, 1e-3, 50_000, "cost", (1000, 500)),
)


def contenders(problem: Problem, descent: GradientDescent) -> list[Peer]:
    """Ours first."""
    ours = Saddleflow("saddleflow")
    ours.tolerances = (1e-2, 1e-3, 1e-4, 1e-5)
    explicit = [Diffrax(s, max_seconds=peers.MAX_SECONDS, clip=False) for s in (dfx.Tsit5(), dfx.Dopri8())]
    cvode = [CVODE(), WoodburyCVODE()]
    for peer in (*explicit, *cvode):
        peer.tolerances = (1e-4, 1e-5, 1e-6)
    found = [ours, *explicit, *cvode, descent]
    return [peer for peer in found if peer.suits(problem)]


def reference(problem: Problem) -> np.ndarray:
    """A at the problem's times by our solver at 1e-9; of explicit ones CVODE alone reaches a certificate."""
    tight = Saddleflow("reference").run(problem, 1e-9)
    if tight.stopped != "t1":
        raise RuntimeError(f"The reference of {problem.name!r} ended with {tight.stopped!r}.")
    return tight.values


def seconds_to(points: list[Point], peer: str, error: float) -> float:
    """Of a peer's fastest run with at most that error; infinite where there is none."""
    fit = [point.result.seconds for point in points if point.peer == peer and point.error <= error]
    return min(fit, default=np.inf)


def verdict(case: Case, points: list[Point]) -> str:
    """Ours against the best of the others, at every level of error."""
    goal = {"cost": 0.6, "certificate": 0.2}[case.end] if case.shape == (100, 100) else 0.33
    names = list(dict.fromkeys(point.peer for point in points if point.peer != GradientDescent.name))
    ratios = []
    for level in LEVELS:
        ours, *others = (seconds_to(points, name, level) for name in names)
        best = int(np.argmin(others))
        if np.isfinite(others[best]):
            ratios.append(
                f"{level:.0e}: {ours / others[best]:.2f} ({ours:.2f} s, {names[best + 1]} {others[best]:.2f} s)"
            )
        else:
            ratios.append(f"{level:.0e}: {ours:.2f} s, no other finished")
    return f"{case.name}: ours / best of the others, seconds at error of A {'; '.join(ratios)}. Goal {goal}."


def sections(cases: tuple[Case, ...]) -> Iterator[tuple[str, list[list[str]], str]]:
    """Title, rows of the table and verdict of each case."""
    for case in cases:
        problem, descent = case.problem()
        rivals = contenders(problem, descent)
        compiled = {peer.name: peer.prepare(problem) for peer in rivals}
        truth = reference(problem)
        points = measure(problem, rivals, defaultdict(float), truth, False, compiled)
        size = float(np.linalg.norm(truth[-1]))
        points = [dataclasses.replace(point, error=point.error / size) for point in points]
        rows = []
        for point in points:
            run = point.result
            counts = [f"{run.fields:,}", f"{run.products:,}", f"{run.preconditions:,}", f"{run.steps or 0:,}"]
            rows.append(
                [point.peer, f"{point.rtol:.0e}", f"{point.error:.1e}", *counts, f"{run.seconds:.2f}", run.stopped]
            )
        line = verdict(case, points)
        show(CONSOLE, case.name, HEADER, rows)
        CONSOLE.print(line)
        yield case.name, rows, line


def sampling() -> list[list[str]]:
    """Milliseconds of a gradient of 943 x 1682 through 64 directions, by dense products and by sampled ones."""
    n_out, n_in, width = 943, 1682, 64
    generator = np.random.default_rng(0)
    left, right = (jnp.asarray(generator.standard_normal(shape)) for shape in ((n_out, width), (width, n_in)))

    def dense(left, right, entries, mask):
        slope = jnp.where(mask, left @ right, 0.0)
        return slope @ right.T, left.T @ slope

    def sampled(left, right, entries, mask):
        rows, columns = entries
        mine, theirs = left[rows], right.T[columns]
        slope = jnp.sum(mine * theirs, axis=1)[:, None]
        of_left = jnp.zeros_like(left).at[rows].add(slope * theirs)
        return of_left, jnp.zeros_like(right.T).at[columns].add(slope * mine).T

    found = []
    for count in (1000, 5000, 20_000, 100_000):
        flat = generator.permutation(n_out * n_in)[:count]
        mask = np.zeros(n_out * n_in, bool)
        mask[flat] = True
        arguments = left, right, tuple(map(jnp.asarray, divmod(flat, n_in))), jnp.asarray(mask.reshape(n_out, n_in))
        ways = [jax.jit(way) for way in (dense, sampled)]
        jax.block_until_ready([way(*arguments) for way in ways])
        taken = in_turn(*(functools.partial(way, *arguments) for way in ways), repeats=9)
        found.append([f"{count / mask.size:.1%}", *(f"{1e3 * seconds:.1f}" for seconds in taken)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case only")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    parser.add_argument("--write", action="store_true", help="write docs/size.md")
    arguments = parser.parse_args()
    chosen = CASES[:1] if arguments.quick else CASES
    if arguments.only is not None:
        chosen = tuple(CASES[number] for number in arguments.only)
    found = list(sections(chosen))
    if arguments.write:
        parts = [
            f"On {os.cpu_count()} cores, jax {jax.__version__}. Errors are relative to |A|. Gradient descent runs at "
            "its largest stable step. Peers are given up after 60 seconds.",
            "## In short",
            "\n".join(f"* {line}" for _, _, line in found),
        ]
        table = markdown(["observed", "dense", "sampled"], sampling())
        parts += ["## Dense and sampled products", sampling.__doc__ or "", table]
        for title, rows, _ in found:
            parts += [f"## {title}", markdown(HEADER, rows)]
        write_below(MARK, PAGE, "Size", parts)


if __name__ == "__main__":
    main()
