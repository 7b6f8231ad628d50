"""Sweeps: lane use, beside a Python loop and a naive vmap of diffrax's Tsit5; and a phase diagram of 4,624 lanes.

Run: python benchmarks/sweep.py [mixed | alphas | phase]   (all three by default)
     python benchmarks/sweep.py slots [32 128 256 512]     (on an accelerator)
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from rich.console import Console
from rich.table import Table
from timing import in_turn

import saddleflow as sf
from saddleflow import plotting
from saddleflow.problem import geometry

CONSOLE = Console()
LOOP_LIMIT, LOOP_RTOL = 6.0, 1e-4  # times the sweep's seconds; an explicit step's errors add up
REPEATS = 3
VMAP_LIMIT = 180.0  # seconds until the naive vmap is given up
TIMES = np.array([0.0, 10.0, 100.0, 1000.0])
MIXED = {"gamma": [0.75, 1.0, 1.25, 1.5, 1.75, 2.0], "seed": list(range(8))}


def task() -> sf.MatrixCompletion:
    return sf.MatrixCompletion.random(jax.random.key(3))


def peer(cost, start, rtol, times=TIMES, solver=None):
    """One solve by a diffrax solver, Tsit5 by default, with absolute tolerances as our own runs have them."""
    rms = geometry.norm(start) / jnp.sqrt(float(start.num_parameters))
    return diffrax.diffeqsolve(
        diffrax.ODETerm(geometry.gradient_flow_field),
        solver or diffrax.Tsit5(),
        0.0,
        times[-1],
        None,
        start,
        args=cost,
        saveat=diffrax.SaveAt(ts=jnp.asarray(times), fn=lambda t, y, args: y.end_to_end()),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=0.2 * rtol * rms, pcoeff=0.4, icoeff=0.3),
        max_steps=None,
        throw=False,
    ).ys


def starts() -> list[sf.DeepLinearNetwork]:
    return [
        sf.gaussian(jax.random.key(seed), depth=4, width=10, shape=(10, 10), gamma=gamma)
        for gamma in MIXED["gamma"]
        for seed in MIXED["seed"]
    ]


def naive_vmap(rtol: float) -> None:
    cost = task()
    batch = jax.tree.map(lambda *x: jnp.stack(x), *starts())
    begin = time.perf_counter()
    jax.block_until_ready(jax.jit(jax.vmap(lambda start: peer(cost, start, rtol)))(batch))
    print(time.perf_counter() - begin)


def mixed() -> None:
    cost = task()
    options = {"depth": 4, "width": 10, "save_at": TIMES, "save_matrices": True}
    shape = (-1, len(TIMES), 10, 10)
    reference = sf.sweep(cost, **MIXED, **options, rtol=1e-9).end_to_end.values.reshape(shape)

    def error(matrices: np.ndarray) -> float:
        """Median over lanes of the largest error of A at a saved time."""
        return float(np.median(np.linalg.norm(matrices - reference, axis=(-2, -1)).max(axis=-1)))

    solve, lanes = jax.jit(peer), starts()

    def ours(rtol: float) -> tuple[np.ndarray, float]:
        data = sf.sweep(cost, **MIXED, **options, rtol=rtol)
        return data.end_to_end.values.reshape(shape), data.attrs["lane_utilisation"]

    def loop(rtol: float) -> np.ndarray:
        return np.stack([np.asarray(solve(cost, start, rtol)) for start in lanes])

    jax.block_until_ready(solve(cost, lanes[-1], 1e-3))  # compiled, as the sweep's program is by the reference
    table = Table(title=f"6 gammas x 8 seeds, w = 10, L = 4, 10x10, to t = {TIMES[-1]:g}; best of {REPEATS}, in turn")
    for name in ("sf.sweep: rtol", "median error", "seconds", "lane use"):
        table.add_column(name, justify="right")
    for name in ("loop of Tsit5: rtol", "median error", "seconds", "ratio"):
        table.add_column(name, justify="right")
    for rtol, peers in ((1e-3, 3e-5), (1e-4, 5e-6), (1e-5, 7e-7)):  # of about the same errors
        (found, use), matrices = ours(rtol), loop(peers)
        seconds, peer_seconds = in_turn(partial(ours, rtol), partial(loop, peers), repeats=REPEATS)
        table.add_row(
            *(f"{rtol:.0e}", f"{error(found):.1e}", f"{seconds:.2f}", f"{use:.3f}"),
            *(f"{peers:.0e}", f"{error(matrices):.1e}", f"{peer_seconds:.2f}", f"{peer_seconds / seconds:.1f}"),
        )
    CONSOLE.print(table)
    try:
        command = [sys.executable, __file__, "naive"]
        run = subprocess.run(command, timeout=VMAP_LIMIT, capture_output=True, text=True, check=True)
        CONSOLE.print(f"one vmap of Tsit5, rtol 1e-6: {float(run.stdout):.2f} s")
    except subprocess.TimeoutExpired:
        CONSOLE.print(f"one vmap of Tsit5, rtol 1e-6: given up at {VMAP_LIMIT:.0f} s")


def alphas() -> None:
    """Starts of 1e-1 to 1e-9: an explicit method's steps grow like 1/alpha, so its loop has a limit."""
    cost, scales, seeds = task(), [1e-1, 1e-3, 1e-5, 1e-7, 1e-9], range(10)
    begin = time.perf_counter()
    data = sf.sweep(cost, depth=3, width=10, alpha=scales, seed=seeds, rtol=1e-3)
    seconds = time.perf_counter() - begin
    steps = (data.num_accepted_steps + data.num_rejected_steps).mean("seed")
    converged = int((data.stop_reason == "converged").sum())
    CONSOLE.print(
        f"5 alphas x 10 seeds: {seconds:.1f} s, lane use {data.attrs['lane_utilisation']:.3f}, "
        f"mean steps {[round(float(x)) for x in steps]}, converged {converged} of 50"
    )
    ends = data.end_time
    lanes = [f"{a:g},{seed},{float(ends.sel(alpha=a, seed=seed))!r}" for a in scales for seed in seeds]
    command = [sys.executable, "-u", __file__, "loop", *lanes]
    try:
        printed = subprocess.run(command, timeout=LOOP_LIMIT * seconds, capture_output=True, check=True).stdout
    except subprocess.TimeoutExpired as expired:
        printed = expired.stdout or b""
    done = Counter(printed.decode().split())
    CONSOLE.print(
        f"a loop of Tsit5, rtol {LOOP_RTOL:g}, to the same ends, large alphas first: {done.total()} of 50 lanes "
        f"within {LOOP_LIMIT:g} times these seconds; by alpha {dict(done)}"
    )


def loop(lanes: list[str]) -> None:
    """Solve lanes "alpha,seed,end" by Tsit5 one after another, and print the alpha of each that is done."""
    cost, solve = task(), jax.jit(peer)
    for lane in lanes:
        alpha, seed, end = lane.split(",")
        theta = sf.gaussian(jax.random.key(int(seed)), depth=3, width=10, shape=(10, 10), gamma=1.0)
        jax.block_until_ready(solve(cost, float(alpha) * theta, LOOP_RTOL, jnp.asarray([float(end)])))
        print(alpha)


def phase(out: Path) -> None:
    """Rank-1 completion of a 5x5 matrix: where in (gamma, alpha) does the flow find it?"""
    cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(5, 5), rank=1, observed=0.6)
    begin = time.perf_counter()
    data = sf.sweep(
        cost,
        depth=3,
        width=100,
        gamma=np.linspace(0.5, 2.5, 17),
        alpha=np.geomspace(1e-2, 1, 17),
        seed=range(16),
        rtol=1e-3,
        gradient_tolerance=1e-3,
        max_saves=4,
    )
    seconds = time.perf_counter() - begin
    CONSOLE.print(
        f"phase diagram: {data.stop_reason.size} lanes in {seconds:.1f} s, lane use "
        f"{data.attrs['lane_utilisation']:.3f}, converged {int((data.stop_reason == 'converged').sum())}"
    )
    error = data.test_cost.isel(sample=-1).median("seed") / float(cost.test(jnp.zeros((5, 5))))
    with plotting.style():
        figure, axes = plt.subplots(figsize=(4.2, 3.2))
        grid = error.transpose("alpha", "gamma")
        mesh = axes.pcolormesh(grid.gamma, grid.alpha, grid, norm=LogNorm(1e-4, 1), cmap="viridis", rasterized=True)
        figure.colorbar(mesh, label="test error / zero predictor", extend="both")
        axes.set(
            yscale="log", xlabel=r"$\gamma$", ylabel=r"scale $\alpha$ of the start", title="median over 16 starts"
        )
    paths = plotting.save_figure(figure, out / "phase_diagram", force=True)
    CONSOLE.print(f"written: {', '.join(map(str, paths))}")


def slots(numbers: list[int]) -> None:
    """6 gammas x 256 seeds on the local devices: by default, and by slots of one compiled program."""
    cost, grid = task(), MIXED | {"seed": range(256)}
    options = {"depth": 4, "width": 10, "save_at": TIMES, "save_matrices": True, "rtol": 1e-6}
    CONSOLE.print(f"6 gammas x 256 seeds, rtol 1e-6, on {jax.devices()[0].device_kind}")
    reference = None
    for number in (None, *numbers):
        run = partial(sf.sweep, cost, **grid, **options, slots=number)
        begin = time.perf_counter()
        data = run()
        first = time.perf_counter() - begin
        (seconds,) = in_turn(run, repeats=1)
        reference = data if reference is None else reference
        apart = float(abs(data.end_to_end - reference.end_to_end).max())
        CONSOLE.print(
            f"slots {number or 'by default'}: {seconds:.2f} s (first call {first:.2f}), "
            f"lane use {data.attrs['lane_utilisation']:.3f}, A apart by {apart:.1e} at most"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["mixed", "alphas", "phase", "slots", "naive", "loop"])
    parser.add_argument("values", nargs="*")
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    if arguments.what == "naive":
        naive_vmap(1e-6)
        return
    if arguments.what == "loop":
        loop(arguments.values)
        return
    if arguments.what == "slots":
        slots([int(value) for value in arguments.values])
        return
    for name, run in (("mixed", mixed), ("alphas", alphas), ("phase", lambda: phase(arguments.out))):
        if arguments.what in (None, name):
            run()


if __name__ == "__main__":
    main()
