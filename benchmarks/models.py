"""Gradient flows of non-linear models: saddleflow and what a user could pick instead, side by side in one run.

An error is the largest one of the outputs on the training inputs at any of twenty times, as a Euclidean norm, over
the largest norm of the outputs.

Run: pip install ".[bench]", then python benchmarks/models.py [--flows 1 3] [--peers-only] [--bare] [--write]
with OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1 set: threads of small factorisations only get in each other's way.
"""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffrax as dfx
import numpy as np
import tables
from jaxtyping import Float
from rich.console import Console

import saddleflow as sf

try:
    from model_peers import SGD, Bare, Models, PreconditionedCVODE, switching
    from model_problems import PROBLEMS, ModelProblem
    from peers import CVODE, ENDED, LSODA, MAX_SECONDS, Diffrax, Peer, Result
except ModuleNotFoundError as error:
    raise SystemExit(
        f'The benchmark needs `{error.name}`, which is not installed. Run pip install ".[bench]".'
    ) from None

GOAL = 1e-4  # the error at which solvers are compared
ENOUGH = 1e-5  # no peer is run at tighter tolerances than the first with this error
REPEATED = 2.0  # seconds below which a run is done twice: the better one counts
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
DENSE = 500  # parameters up to which Kvaerno5 forms and factorises its dense Jacobians in sensible time
PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
MARK = "<!-- Below: written by `python benchmarks/models.py --write`. -->"
HEADER = ("solver", "rtol", "error", "f", "Jv", "f + Jv", "M", "steps", "seconds", "compile", "end")
SUMMARY = ("flow", "parameters", "ours", "best peer", "its seconds", "peer / ours")


@dataclasses.dataclass(frozen=True)
class Point:
    """A solver at a tolerance."""

    peer: str
    rtol: float
    error: float
    result: Result
    compile_seconds: float

    def cells(self) -> list[str]:
        """A line of the table."""
        run = self.result
        cost = [f"{run.seconds:.3g}", f"{self.compile_seconds:.1f}"]
        if run.stopped == "max_seconds":
            return [self.peer, f"{self.rtol:.1g}", *[""] * 7, cost[1], f"not done in {MAX_SECONDS:.0f} s"]
        counts = (run.fields, run.products, run.evaluations, run.preconditions, run.steps)
        listed = ["" if count is None else f"{count:,}" for count in counts]
        return [self.peer, f"{self.rtol:.1g}", f"{self.error:.1e}", *listed, *cost, run.stopped]


def contenders(bare: bool) -> list[Peer[ModelProblem]]:
    """The peers, each at tolerances of its own."""
    limits: dict[str, Any] = {"max_seconds": MAX_SECONDS}
    peers: list[Any] = [Diffrax(solver, clip=False, **limits) for solver in (dfx.Tsit5(), dfx.Dopri8())]
    peers += [Diffrax(dfx.Kvaerno5(), max_size=DENSE, **limits), CVODE(), PreconditionedCVODE(), LSODA()]
    for peer in peers:
        peer.tolerances = TOLERANCES
    if bare:
        peers.insert(0, Bare("ours, bare", switching, gauss_newton=False))
        peers.insert(0, Bare("ours, bare, Gauss-Newton", switching))
    return [*peers, SGD()]


def reference(problem: ModelProblem) -> tuple[Float[np.ndarray, "times ..."], str]:
    """The outputs by Dopri8 at tolerance 1e-11, and how they compare with CVODE's at 1e-10."""
    begin, solver, check = time.perf_counter(), Diffrax(dfx.Dopri8(), max_steps=2_000_000), PreconditionedCVODE()
    for peer in (solver, check):
        peer.prepare(problem)
    run, other = solver.run(problem, 1e-11), check.run(problem, 1e-10)
    if run.stopped not in ENDED:
        raise RuntimeError(f"The reference of {problem.name!r} ended with {run.stopped!r}: raise its max_steps.")
    note = f"{solver.name} at 1e-11 differs from CVODE at 1e-10 by {distance(other.values, run.values):.0e}"
    return run.values, f"{note}; both took {time.perf_counter() - begin:.0f} s"


def distance(values: np.ndarray, truth: np.ndarray) -> float:
    """Largest error over the times, relative to the largest norm of the outputs; NaN where a time was not reached."""
    axes = tuple(range(1, truth.ndim))
    sizes, errors = (np.sqrt(np.sum(np.square(x), axis=axes)) for x in (truth, values - truth))
    return float(errors.max() / sizes.max())


def measure(problem: ModelProblem, peers: Sequence[Peer[ModelProblem]], truth: np.ndarray) -> list[Point]:
    """Every peer at falling tolerances, until its error is small enough or a run is cut short."""
    points = []
    for peer in peers:
        compile_seconds = peer.prepare(problem)
        for rtol in peer.tolerances:
            run = peer.run(problem, rtol)
            if run.seconds < REPEATED:
                run = min(run, peer.run(problem, rtol), key=lambda run: run.seconds)
            error = distance(run.values, truth)
            points.append(Point(peer.name, rtol, error, run, compile_seconds))
            if run.stopped not in ENDED or (error < ENOUGH and not isinstance(peer, Models)):
                break
    return points


def cheapest(points: Sequence[Point]) -> Point | None:
    """The run with an error of at most `GOAL` that took least time."""
    good = [point for point in points if point.error <= GOAL]
    return min(good, key=lambda point: point.result.seconds, default=None)


def summary(problem: ModelProblem, points: Sequence[Point]) -> list[str]:
    """A line of the last table: ours and the best peer's seconds at the goal."""
    ours = cheapest([point for point in points if point.peer == Models.name])
    best = cheapest([point for point in points if not point.peer.startswith(("saddleflow", "ours"))])
    taken = [np.nan if point is None else point.result.seconds for point in (ours, best)]
    cells = [f"{x:.3g}" if np.isfinite(x) else "" for x in (*taken, taken[1] / taken[0])]
    return [problem.name, f"{problem.size:,}", cells[0], best.peer if best else "none", *cells[1:]]


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = range(1, len(PROBLEMS) + 1)
    parser.add_argument("--flows", type=int, nargs="+", choices=numbers, default=numbers, help="default: all")
    parser.add_argument("--peers-only", action="store_true", help="without sf.gradient_flow")
    parser.add_argument("--bare", action="store_true", help="our solvers run by diffrax, too")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {PAGE.name}, below its mark")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    given, console = arguments(), Console(width=150, markup=False)
    if not (given.peers_only or hasattr(sf, "regression")):
        raise SystemExit("This version of saddleflow has no flows of models yet. Pass --peers-only.")
    peers = [*([] if given.peers_only else [Models()]), *contenders(given.bare)]
    parts, rows = [], []
    for number, build in enumerate(PROBLEMS.values(), 1):
        if number not in given.flows:
            continue
        problem = build()
        truth, note = reference(problem)
        points = measure(problem, [peer for peer in peers if peer.suits(problem)], truth)
        cells = [point.cells() for point in points]
        title = f"{problem.name} ({problem.size:,} parameters, t1 = {problem.times[-1]:g})"
        tables.show(console, title, HEADER, cells)
        console.print(f"Reference: {note}.")
        parts += [f"## {title}", tables.markdown(HEADER, cells), f"Reference: {note}."]
        rows.append(summary(problem, points))
    title = f"Seconds to an error of {GOAL:.0e}"
    tables.show(console, title, SUMMARY, rows)
    if given.write:
        tables.write_below(MARK, PAGE, "Any model: measured", [f"## {title}", tables.markdown(SUMMARY, rows), *parts])


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
