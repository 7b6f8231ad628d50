"""Figure 5: rank, nuclear norm and gradient norm along the runs of figure 2.

As in the paper: the rank with tolerance 1e-1, the nuclear norm below it, the gradient norm of the parameters below
that. That its "network matrices" are the end-to-end matrices is a guess.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import lazy_loader as lazy
import numpy as np
import scipy

from saddleflow import plotting
from saddleflow.figures.common import verdict_lines, write_files
from saddleflow.figures.f2_regimes import NAMES, compute, regime

if TYPE_CHECKING:
    import xarray as xr

else:
    xr = lazy.load("xarray")

__all__ = ["compute", "draw", "verdicts", "write"]  # `compute`: the sweep of figure 2 has all that figure 5 shows

DIP = 3.0  # a dip of the gradient norm is at least this deep on both sides


def dips(run: "xr.Dataset") -> np.ndarray:
    """Rows where the gradient norm dips by a factor `DIP`, until the cost has fallen to 1e-6 of its start."""
    cost = run.train_cost.values
    live = run.gradient_norm.values[cost > 1e-6 * cost[0]]
    return scipy.signal.find_peaks(-np.log(live), prominence=np.log(DIP))[0]


def jumps(time: np.ndarray, nuclear_norm: np.ndarray) -> np.ndarray:
    """Times at which the nuclear norm jumps: peaks of its growth in log time, a tenth of the largest at least."""
    growth = np.diff(nuclear_norm) / np.diff(np.log(time))
    return time[1:][scipy.signal.find_peaks(growth, prominence=0.1 * growth.max())[0]]


def rank_times(time: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """First times at which each rank from 1 to the last is reached."""
    return np.asarray([time[np.argmax(rank >= k)] for k in range(1, rank[-1] + 1)])


def verdicts(data: "xr.Dataset") -> list[str]:
    """One line a statement of the caption: holds or fails, with its numbers."""
    time, statements = data.time.values, []
    width = int(data.width.values[-1])
    for gamma in data.gamma.values:
        runs = data.sel(gamma=gamma, width=width)
        counts = [len(dips(run)) for run in _seeds(runs)]
        label = f"{NAMES[regime(gamma)]} (gamma = {gamma:g}), w = {width}"
        if regime(gamma) == 2:
            text = f"{label}: the gradient norm dips in every run, {_from_to(counts)} times"
            statements.append((text, min(counts) >= 1))
            delays = np.concatenate([_delays(time, run) for run in _seeds(runs)])
            text = (
                f"{label}: {len(delays) / len(counts):.1f} jumps of the nuclear norm a run, each soon after a rise "
                f"of the rank: time of the jump over that of the rise {np.median(delays):.3f} (median), "
                f"{delays.max():.3f} (largest; asked: below 1.5)"
            )
            statements.append((text, bool(delays.max() < 1.5)))
            rises = [rank_times(time, rank) for rank in runs["rank"].values]
            spread = [np.log10(times[-1] / times[times > 0][0]) for times in rises]
            apart = f"{np.mean(spread):.2f} decades of time"
            text = f"{label}: ranks come one after another, the last {apart} after the first"
            statements.append((text, bool(np.mean(spread) > 0.3)))
        elif regime(gamma) == 0:
            text = f"{label}: no dip of the gradient norm before the end ({max(counts)} at most)"
            statements.append((text, max(counts) == 0))
    return verdict_lines(statements)


def _from_to(counts: list[int]) -> str:
    """Two different ends of the counts, or the one number that they are."""
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def _seeds(runs: "xr.Dataset"):
    return (runs.isel(seed=place) for place in range(runs.sizes["seed"]))


def _delays(time: np.ndarray, run: "xr.Dataset") -> np.ndarray:
    """Time of every jump of the nuclear norm over that of the latest rise of the rank before it."""
    rises = time[1:][np.diff(run["rank"].values) > 0]
    found = []
    for jump in jumps(time[1:], run.nuclear_norm.values[1:]):
        before = rises[rises <= jump]
        found.append(jump / before[-1] if len(before) else np.inf)
    return np.asarray(found)


def draw(data: "xr.Dataset", seed: int = 0) -> "plotting.Figure":
    """Three rows (rank, nuclear norm, gradient norm), a column a regime, a colour a width; one seed drawn strong."""
    rows = (("rank", "rank"), ("nuclear_norm", "nuclear norm"), ("gradient_norm", "gradient norm"))
    with plotting.style():
        figure, panels = plotting.subplots(
            3, data.sizes["gamma"], figsize=(7.2, 5.0), sharex=True, sharey="row", squeeze=False
        )
        time = data.time.values[1:]
        for column, gamma in enumerate(data.gamma.values):
            for (name, label), axes in zip(rows, panels[:, column], strict=True):
                for width, colour in zip(data.width.values, plotting.CYCLE, strict=False):
                    curves = data[name].sel(gamma=gamma, width=width).values[:, 1:]
                    step = {"drawstyle": "steps-post"} if name == "rank" else {}
                    axes.plot(time, curves.T, color=colour, lw=0.4, alpha=0.3, **step)
                    (line,) = axes.plot(time, curves[seed], color=colour, **step)
                    if name == "nuclear_norm":
                        plotting.name_curve(line, f"w = {width}")
                axes.set(xscale="log", xlim=(1e-4, time[-1]))
                if column == 0:
                    axes.set_ylabel(label)
            panels[2, column].set(yscale="log", xlabel="time t of the flow", ylim=(1e-1, None))
            panels[0, column].set_title(f"{NAMES[regime(gamma)]}, $\\gamma$ = {gamma:g}")
    return figure


def write(data: "xr.Dataset", folder: Path, force: bool = False) -> list[Path]:
    """Write figure5.png, figure5.pdf and figure5.nc into a folder; returns the paths."""
    return write_files(5, data, draw(data), folder, force)
