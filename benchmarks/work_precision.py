"""Work and precision: saddleflow's solver and its peers on the same flows, error against work and seconds.

Run: pip install ".[bench]", then python benchmarks/work_precision.py [problem ...] [--quick]
with OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1 set: threads of small factorisations only get in each other's way.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffrax as dfx
import matplotlib.pyplot as plt
import numpy as np
import tables
from jaxtyping import Float
from problems import DENSE_SIZE, Problem, problems, unit_costs
from rich.console import Console

from saddleflow import plotting
from saddleflow._backend.files import written_whole
from saddleflow.flow.landscape import local_model
from saddleflow.solvers import RODAS5P, Rosenbrock

try:
    from peers import CVODE, ENDED, LSODA, RKC, Diffrax, Peer, Result, Saddleflow
except ModuleNotFoundError as error:
    raise SystemExit(
        f'The benchmark needs `{error.name}`, which is not installed. Run pip install ".[bench]".'
    ) from None

OURS, PLAIN, TO_BEAT, STABILISED = "saddleflow", "saddleflow plain", CVODE.name, RKC.name
CONTENDERS: tuple[Peer[Problem], ...] = (
    Saddleflow(OURS),
    CVODE(),
    Saddleflow(PLAIN, Rosenbrock(), parts="plain"),
    Saddleflow("saddleflow Rodas4", Rosenbrock(local_model=local_model)),
    Saddleflow("saddleflow Rodas5P", Rosenbrock(local_model=local_model, tableau=RODAS5P)),
    RKC(),
)
OTHERS: tuple[Peer[Problem], ...] = (
    Diffrax(dfx.Tsit5(), max_steps=20_000),
    Diffrax(dfx.Dopri8(), max_steps=10_000),
    LSODA(),
    Diffrax(dfx.Kvaerno5(), max_size=DENSE_SIZE, max_steps=2_000),
)
STYLES: dict[str, tuple[str, str]] = {
    OURS: (plotting.BLUE, "-"),
    PLAIN: (plotting.SKY, "-"),
    "saddleflow Rodas4": (plotting.BLUE, ":"),
    "saddleflow Rodas5P": (plotting.BLUE, "--"),
    TO_BEAT: (plotting.ORANGE, "-"),
    STABILISED: (plotting.GREEN, "-"),
    "diffrax Tsit5": (plotting.MUTED, "-"),
    "diffrax Dopri8": (plotting.MUTED, "--"),
    "SciPy LSODA": (plotting.PURPLE, "-"),
    "diffrax Kvaerno5": (plotting.RED, "-"),
    "torchdiffeq dopri5": (plotting.MUTED, ":"),
}
REPEATS = 3  # runs whose median seconds count, in turns: solver by solver, tolerance by tolerance
REPEAT_SECONDS = 3.0  # none is repeated once its runs have taken this together
QUANTITIES = ("evaluations", "work", "seconds")
LEVELS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
# Ratios ours / CVODE at equal error that were set out for, and numbers of a single run.
RATIO_GOALS = {
    "a: alpha=.02": {"evaluations": 0.6, "work": 0.7, "seconds": 0.5},
    "a: alpha=.3": {"evaluations": 0.9, "seconds": 0.5},
}
RUN_GOAL = {"problem": "b: to cost 1e-10", "rtol": 1e-4, "evaluations": 2500, "rejected": 0.15}
HEADER = (
    "solver",
    "rtol",
    "error",
    "f",
    "Jv",
    "f + Jv",
    "M",
    "steps",
    "rejected",
    "work",
    "seconds",
    "compile",
    "end",
)
MARK = "<!-- Below: written by `python benchmarks/work_precision.py --markdown`. -->"


@dataclasses.dataclass(frozen=True)
class Point:
    """One solver at one tolerance: its error, what it took (median seconds), and the work in vector fields."""

    peer: str
    rtol: float
    error: float
    result: Result
    work: float
    compile_seconds: float

    def quantity(self, name: str) -> float:
        """One of QUANTITIES."""
        return {"work": self.work, "seconds": self.result.seconds}.get(name, self.result.evaluations)

    def cells(self) -> list[str]:
        """A line of the table."""
        run = self.result
        steps = ["" if count is None else f"{count:,}" for count in (run.steps, run.rejected)]
        counts = [f"{count:,}" for count in (run.fields, run.products, run.evaluations, run.preconditions)]
        cost = [f"{self.work:,.0f}", f"{run.seconds:.3g}", f"{self.compile_seconds:.1f}"]
        return [self.peer, f"{self.rtol:.0e}", f"{self.error:.1e}", *counts, *steps, *cost, run.stopped]


def reference(problem: Problem, cache: Path) -> tuple[Float[np.ndarray, "times n_out n_in"], str]:
    """The solution at tolerance 1e-12 and how it compares with CVODE at 1e-11, computed once and kept.

    Dopri8, or where that would take many minutes (runs to a train cost) our own solver at 1e-11.
    """
    rtol = 1e-12 if problem.until_cost is None else 1e-11
    peer = Diffrax(dfx.Dopri8(), max_steps=2_000_000) if problem.until_cost is None else CONTENDERS[0]
    described = problem.description | {"solver": peer.name, "rtol": rtol}
    path = cache / f"{hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        for solver in (peer, CVODE()):
            solver.prepare(problem)
        run, check = peer.run(problem, rtol), CVODE().run(problem, 1e-11)
        if run.stopped not in ENDED:
            raise RuntimeError(f"The reference of {problem.name!r} ended with {run.stopped!r}: raise its max_steps.")
        cache.mkdir(parents=True, exist_ok=True)
        note = f"{peer.name} at {rtol:.0e} ({run.seconds:.0f} s), differs from CVODE at 1e-11 "
        note += f"({check.seconds:.0f} s) by {distance(check.values, run.values):.1e}"
        with written_whole(path) as temporary:
            np.savez(temporary, values=run.values, note=note)
    with np.load(path) as kept:
        return kept["values"], str(kept["note"])


def distance(values: np.ndarray, truth: np.ndarray) -> float:
    """Sup over times of |A - A_ref|_F, over the times that the reference reached; NaN where `values` did not."""
    reached = np.isfinite(truth).all(axis=(1, 2))
    return float(np.linalg.norm(values[reached] - truth[reached], axis=(1, 2)).max())


def measure(
    problem: Problem,
    peers: Sequence[Peer[Problem]],
    units: dict[str, float],
    truth: np.ndarray,
    quick: bool,
    compile_seconds: dict[str, float],
) -> list[Point]:
    """Every peer at its tolerances, in turns; tighter ones are left out once a run was cut short."""
    chosen = {peer.name: peer.tolerances[::-2] if quick else peer.tolerances for peer in peers}
    runs: dict[tuple[str, float], list[Result]] = {}
    cut_short: set[str] = set()
    for _ in range(1 if quick else REPEATS):
        for rtol in sorted({rtol for tolerances in chosen.values() for rtol in tolerances}, reverse=True):
            for peer in peers:
                done = runs.get((peer.name, rtol), [])
                spent = sum(run.seconds for run in done)
                if rtol not in chosen[peer.name] or spent > REPEAT_SECONDS or (peer.name in cut_short and not done):
                    continue
                run = peer.run(problem, rtol)
                runs[peer.name, rtol] = [*done, run]
                if run.stopped not in ENDED:
                    cut_short.add(peer.name)
    points = []
    for peer in peers:
        for rtol in sorted(chosen[peer.name], reverse=True):
            if done := runs.get((peer.name, rtol)):
                run = dataclasses.replace(done[-1], seconds=statistics.median(r.seconds for r in done))
                error = distance(run.values, truth)
                points.append(Point(peer.name, rtol, error, run, peer.work(run, units), compile_seconds[peer.name]))
    return points


def at_error(points: Sequence[Point], peer: str, quantity: str, error: float) -> float:
    """What a peer takes to an error, on the log-log line through its best runs; NaN outside of them."""
    line: list[tuple[float, float]] = []
    for point in sorted((p for p in points if p.peer == peer), key=lambda p: p.quantity(quantity)):
        if np.isfinite(point.error) and (not line or point.error < line[-1][0]):
            line.append((point.error, point.quantity(quantity)))
    if not line:
        return np.nan
    errors, values = np.log(line[::-1]).T
    return float(np.exp(np.interp(np.log(error), errors, values, left=np.nan, right=np.nan)))


def verdicts(name: str, points: Sequence[Point]) -> list[str]:
    """A line for every goal of the problem, and one on the stabilised explicit solver."""
    lines = []
    for quantity, goal in RATIO_GOALS.get(name, {}).items():
        pairs = [[at_error(points, peer, quantity, e) for peer in (OURS, TO_BEAT)] for e in LEVELS]
        ratios = [ours / theirs for ours, theirs in pairs]
        known = [ratio for ratio in ratios if np.isfinite(ratio)]
        outcome = "PASS" if known and max(known) <= goal else "MISS"
        if len(known) < len(ratios):
            outcome += f" (measured at {len(known)} of {len(ratios)} errors)"
        listed = ", ".join(f"{ratio:.2f} at {level:.0e}" for ratio, level in zip(ratios, LEVELS, strict=True))
        lines.append(f"{outcome}: {name}, {quantity}, ours / CVODE at equal error: {listed}; goal <= {goal}.")
    for point in points:
        if (name, point.peer, point.rtol) == (RUN_GOAL["problem"], OURS, RUN_GOAL["rtol"]):
            run = point.result
            share = (run.rejected or 0) / (run.steps or 1)
            met = run.evaluations <= RUN_GOAL["evaluations"] and share <= RUN_GOAL["rejected"]
            lines.append(
                f"{'PASS' if met else 'MISS'}: {name}, rtol {point.rtol:.0e}: {run.evaluations:,} evaluations, goal "
                f"<= {RUN_GOAL['evaluations']:,}; {share:.1%} of steps rejected, goal <= {RUN_GOAL['rejected']:.0%}."
            )
    return [*lines, f"{name}, where the stabilised explicit RKC takes less than ours: {explicit_region(points)}."]


def explicit_region(points: Sequence[Point]) -> str:
    """The errors at which RKC takes less than ours, by quantity; else the least ratio of the two."""
    found, grid = [], np.geomspace(1e-9, 1, 91)
    for quantity in QUANTITIES:
        ratio = np.array(
            [at_error(points, STABILISED, quantity, e) / at_error(points, OURS, quantity, e) for e in grid]
        )
        if not np.isfinite(ratio).any():
            continue
        least, below = int(np.nanargmin(ratio)), grid[ratio < 1]
        where = f"errors {below[0]:.0e} to {below[-1]:.0e}" if below.size else "nowhere"
        found.append(f"{quantity}: {where} (least ratio {ratio[least]:.2f}, at {grid[least]:.0e})")
    return "; ".join(found) or "no common error"


def cheapest(points: Sequence[Point], quantity: str) -> list[str]:
    """At every level of error, the peer that takes least, and how much."""
    cells = []
    for level in (1e-2, 1e-3, *LEVELS):
        taken = {p.peer: at_error(points, p.peer, quantity, level) for p in points}
        known = {peer: value for peer, value in taken.items() if np.isfinite(value)}
        best = min(known, key=lambda peer: known[peer], default=None)
        cells.append("" if best is None else f"{best}: {known[best]:{',.0f' if known[best] > 10 else '.3g'}}")
    return cells


def write_markdown(
    path: Path, sections: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]], lines: list[str]
):
    """Put tables and verdicts below the mark in a page."""
    parts = ["## Verdicts", "\n".join(f"* {line}" for line in lines)]
    for title, header, rows in sections:
        parts += [f"## {title}", tables.markdown(header, rows)]
    tables.write_below(MARK, path, "Work and precision", parts)


def draw(path: Path, measured: dict[str, list[Point]]) -> None:
    """The diagram: a row a problem, error against evaluations, work and seconds."""
    with plotting.style():
        figure, axes = plt.subplots(
            len(measured), 3, figsize=(7.2, 0.5 + 1.9 * len(measured)), squeeze=False, sharex="row"
        )
        for row, (name, points) in zip(axes, measured.items(), strict=True):
            for axis, quantity in zip(row, QUANTITIES, strict=True):
                for peer, (color, line) in STYLES.items():
                    shown = [p for p in points if p.peer == peer and np.isfinite(p.error)]
                    label = peer if shown else None
                    coordinates = [p.error for p in shown], [p.quantity(quantity) for p in shown]
                    axis.loglog(*coordinates, line, marker="o", ms=2.5, color=color, label=label)
                axis.invert_xaxis()
                axis.set_title(name if quantity == QUANTITIES[0] else "")
                axis.set_ylabel("work (vector fields)" if quantity == "work" else quantity)
        for axis in axes[-1]:
            axis.set_xlabel("error of A")
        known = {
            label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        ordered = [peer for peer in STYLES if peer in known]
        figure.legend([known[peer] for peer in ordered], ordered, loc="outside upper center", ncols=4)
        with written_whole(path, force=True) as temporary:
            figure.savefig(temporary, dpi=120)
        plt.close(figure)


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="*", default=[""], help="beginnings of problem names; default: all")
    parser.add_argument("--quick", action="store_true", help="every second tolerance, once, by the contenders only")
    parser.add_argument("--png", type=Path, default=Path("out/work_precision.png"), help="where to draw the diagram")
    parser.add_argument("--markdown", type=Path, help="a page to write the tables to, below its mark")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--cache", type=Path, default=caches / "saddleflow-benchmarks", help="folder of references")
    given = parser.parse_args()
    for start in given.problem:
        if not any(name.startswith(start) for name in problems()):
            parser.error(f"`problem` must begin one of {', '.join(problems())}, but got {start!r}. Quote names.")
    return given


def main() -> None:
    """Measure, print, draw."""
    given, console = arguments(), Console(width=150, markup=False)
    peers = CONTENDERS if given.quick else (*CONTENDERS, *OTHERS)
    if not given.quick:
        try:
            peers = (*peers, importlib.import_module("peer_torch").TorchDiffeq())
        except ModuleNotFoundError as error:
            console.print(
                f'torchdiffeq is left out, for {error.name} is not installed: pip install ".[bench-torch]".'
            )
    chosen = [p for name, p in problems().items() if name.startswith(tuple(given.problem))]
    measured: dict[str, list[Point]] = {}
    sections: list[tuple[str, Sequence[str], list[list[str]]]] = []
    lines: list[str] = []
    units: dict[Any, dict[str, float]] = {}

    def show(title: str, header: Sequence[str], rows: list[list[str]]) -> None:
        tables.show(console, title, header, rows)
        sections.append((title, header, rows))

    for problem in chosen:
        suited = [peer for peer in peers if peer.suits(problem)]
        compile_seconds = {peer.name: peer.prepare(problem) for peer in suited}
        if problem.shapes not in units:
            units[problem.shapes] = unit_costs(problem)
        truth, note = reference(problem, given.cache)
        points = measure(problem, suited, units[problem.shapes], truth, given.quick, compile_seconds)
        measured[problem.name] = points
        show(f"{problem.name} ({problem.size:,} parameters)", HEADER, [p.cells() for p in points])
        console.print(f"Reference: {note}.")
        lines += [*verdicts(problem.name, points), f"{problem.name}, reference: {note}."]
    for quantity in ("work", "seconds"):
        rows = [[name, *cheapest(points, quantity)] for name, points in measured.items()]
        show(f"Least {quantity} at an error", ("problem", *(f"{e:.0e}" for e in (1e-2, 1e-3, *LEVELS))), rows)
    sizes = [f"width {shapes[0][0]}, {shapes[-1][0]} x {shapes[0][1]}" for shapes in units]
    names = list(dict.fromkeys(name for found in units.values() for name in found))
    rows = [[name, *(f"{u[name]:.2f}" if name in u else "" for u in units.values())] for name in names]
    show("Unit costs, in the peers' vector fields", ("part", *sizes), rows)
    for line in lines:
        console.print(line)
    given.png.parent.mkdir(parents=True, exist_ok=True)
    draw(given.png, measured)
    if given.markdown is not None:
        write_markdown(given.markdown, sections, lines)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
