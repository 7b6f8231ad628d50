"""Sweeps on an accelerator: ours, one vmap of diffrax's Tsit5 and of Dopri8, and the host's cores beside it.

Run: python benchmarks/accelerator.py [--quick] [--limit SECONDS]

Each measurement is a process of its own with a limit in seconds; all of them together take at most 8 minutes by
default. Errors are against our own solver at rtol 1e-9, on the host. Without an accelerator the same runs on the CPU,
with slots as an accelerator has them, and the kernels of a step are those of the CPU's compiled program.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from sweep import TIMES, peer, task

import saddleflow as sf
from saddleflow._backend.devices import slots_per_program
from saddleflow.flow.arguments import FlowOptions
from saddleflow.sweeps import lanes
from saddleflow.sweeps.chunk import SweepOptions
from saddleflow.sweeps.networks import NetworkChunk

CONSOLE = Console()
LIMIT = 45.0  # seconds of one measurement
SLOTS = 256  # of a program on an accelerator


@dataclass(frozen=True)
class Sweep:
    """Lanes of one program: every gamma or alpha with so many seeds."""

    width: int
    axis: str
    values: tuple[float, ...]
    seeds: int
    depth: int = 4

    def grid(self) -> dict[str, Any]:
        """The axes of `sf.sweep`."""
        return {self.axis: list(self.values), "seed": range(self.seeds), "depth": self.depth, "width": self.width}

    def starts(self) -> sf.DeepLinearNetwork:
        """All starts, layers with a leading axis of lanes."""

        def start(value: float, seed: int) -> sf.DeepLinearNetwork:
            gamma = value if self.axis == "gamma" else 1.0
            theta = sf.gaussian(jax.random.key(seed), depth=self.depth, width=self.width, shape=(10, 10), gamma=gamma)
            return theta if self.axis == "gamma" else value * theta

        networks = [start(value, seed) for value in self.values for seed in range(self.seeds)]
        return jax.tree.map(lambda *layers: jnp.asarray(np.stack(layers)), *networks)


GAMMAS = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
SWEEPS = {
    "w = 10": Sweep(10, "gamma", GAMMAS, 256),
    "w = 100": Sweep(100, "gamma", GAMMAS, 32),
    "w = 300": Sweep(300, "gamma", GAMMAS, 8),
    "alphas": Sweep(10, "alpha", (1e-1, 1e-2, 1e-3), 64, depth=3),
}
QUICK = {"w = 10": Sweep(10, "gamma", GAMMAS[:2], 2), "alphas": Sweep(10, "alpha", (1e-1, 1e-2), 2, depth=3)}
PEERS = {"Tsit5": diffrax.Tsit5, "Dopri8": diffrax.Dopri8}


def ours(sweep: Sweep, rtol: float, slots: int | None) -> dict[str, Any]:
    """Matrices (lanes, times, 10, 10), seconds of the first call and of the second, and what the sweep says."""
    options = {"save_at": TIMES, "save_matrices": True, "rtol": rtol, "slots": slots, "progress": False}
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        data = sf.sweep(task(), **sweep.grid(), **options)
        seconds.append(time.perf_counter() - begin)
    steps = int((data.num_accepted_steps + data.num_rejected_steps).sum())
    return {
        "matrices": data.end_to_end.values.reshape(-1, len(TIMES), 10, 10),
        "first": seconds[0],
        "seconds": seconds[1],
        "use": data.attrs["lane_utilisation"],
        "steps": steps,
    }


def one_vmap(sweep: Sweep, rtol: float, solver: str) -> dict[str, Any]:
    """The same of one vmap of a diffrax solver over all lanes."""
    cost, networks = task(), sweep.starts()
    solve = jax.jit(jax.vmap(lambda network: peer(cost, network, rtol, solver=PEERS[solver]())))
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        matrices = np.asarray(jax.block_until_ready(solve(networks)))
        seconds.append(time.perf_counter() - begin)
    return {"matrices": matrices, "first": seconds[0], "seconds": seconds[1]}


def kernels(sweep: Sweep) -> dict[str, int]:
    """Operations of one step of all slots that the device launches, counted in the compiled program."""
    options = SweepOptions(FlowOptions(rtol=1e-6, save_at=TIMES), stiff=True)
    table = {name: np.asarray([value]) for name, value in (("cost", 0), ("seed", 0))}
    table |= {name: np.asarray([value]) for name, value in (("gamma", 1.0), ("alpha", 1.0), ("rtol", 1e-6))}
    where = {"depth": sweep.depth, "width": sweep.width, "graded": False, "reduced": False}
    chunk = NetworkChunk(0, 0, np.zeros(1, int), (task(),), table, options, **where)
    program = lanes.with_turns(chunk.program(), "both")
    members = lanes.side_by_side([chunk.lane(0)] * 8, lanes.signature(chunk.lane(0)))
    running = lanes.begin_slots(members, np.ones(8, bool), program)
    steps = jnp.asarray(8)
    text = lanes.advance_slots.program.lower(running, program, steps).compile().compiled.as_text()
    # fusions inside fused computations are part of one kernel and are not listed as instructions there
    names = ("fusion", "dot", "custom-call", "while", "conditional", "copy", "sort")
    return {name: len(re.findall(rf" {name}\(", text)) for name in names}


def measured(command: dict[str, Any], limit: float, platform: str | None = None) -> dict[str, Any] | None:
    """One measurement in a process of its own; None where it took longer than its limit."""
    environment = os.environ | ({} if platform is None else {"JAX_PLATFORMS": platform})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.npz"
        call = [sys.executable, __file__, "--one", json.dumps(command), "--out", str(out)]
        try:
            subprocess.run(call, timeout=limit, check=True, env=environment)
        except subprocess.TimeoutExpired:
            return None
        with np.load(out) as file:
            return {name: file[name][()] for name in file.files}


def one(command: dict[str, Any], out: Path) -> None:
    """The measurement that a command describes, into a file."""
    sweep = (QUICK if command["quick"] else SWEEPS)[command["sweep"]]
    if command["what"] == "ours":
        found = ours(sweep, command["rtol"], command["slots"])
    elif command["what"] == "kernels":
        found = kernels(sweep)
    else:
        found = one_vmap(sweep, command["rtol"], command["what"])
    np.savez(out, **found)  # pyright: ignore[reportArgumentType]


def error(found: dict[str, Any] | None, reference: dict[str, Any] | None) -> str:
    """Median over lanes of the largest error of A at a saved time."""
    if found is None or reference is None:
        return "-"
    apart = np.linalg.norm(found["matrices"] - reference["matrices"], axis=(-2, -1)).max(axis=-1)
    return f"{np.median(apart):.1e}"


def compare(name: str, quick: bool, limit: float) -> None:
    """A table of one sweep."""
    platform, sweep = jax.default_backend(), (QUICK if quick else SWEEPS)[name]
    slots = min(SLOTS, len(sweep.values) * sweep.seeds) if platform == "cpu" else None
    base = {"sweep": name, "quick": quick}
    reference = measured(base | {"what": "ours", "rtol": 1e-9, "slots": 1}, limit, "cpu")
    table = Table(title=f"{name}: {len(sweep.values)} x {sweep.seeds} lanes, L = {sweep.depth}, on {platform}")
    for column in ("", "rtol", "median error", "first call, s", "seconds", "lane use", "a step of all slots, ms"):
        table.add_column(column, justify="right")
    rows: list[tuple[str, dict[str, Any], str | None]] = [
        ("ours", {"what": "ours", "rtol": 1e-5, "slots": slots}, None),
        ("ours, the host's cores", {"what": "ours", "rtol": 1e-5, "slots": 1}, "cpu"),
        *((f"one vmap of {solver}", {"what": solver, "rtol": 7e-7}, None) for solver in PEERS),
    ]
    for label, command, where in rows:
        found = measured(base | command, limit, where)
        if found is None:
            table.add_row(label, f"{command['rtol']:.0e}", "-", "-", f"over {limit:.0f}", "-", "-")
            continue
        together = "use" in found and command.get("slots") != 1
        table.add_row(
            *(label, f"{command['rtol']:.0e}", error(found, reference)),
            *(f"{found['first']:.1f}", f"{found['seconds']:.2f}", f"{found['use']:.3f}" if "use" in found else "-"),
            f"{1e3 * _latency(found, slots):.2f}" if together else "-",
        )
    CONSOLE.print(table)


def _latency(found: dict[str, Any], slots: int | None) -> float:
    """Seconds of a step of all slots."""
    slots = slots or slots_per_program(jax.devices()[0], 0)
    return float(found["seconds"] * found["use"] * slots / found["steps"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few lanes")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of one measurement")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(json.loads(arguments.one), arguments.out)
        return
    CONSOLE.print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {os.cpu_count()} cores beside it")
    for name in QUICK if arguments.quick else SWEEPS:
        compare(name, arguments.quick, arguments.limit)
    counted = measured({"what": "kernels", "sweep": "w = 10", "quick": arguments.quick}, 2 * arguments.limit)
    CONSOLE.print(
        "operations in the compiled program of a step, w = 10, L = 4: "
        + ("over the limit" if counted is None else ", ".join(f"{name} {n}" for name, n in counted.items()))
    )


if __name__ == "__main__":
    main()
