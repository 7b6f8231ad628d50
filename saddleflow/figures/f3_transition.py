"""Figure 3: test error and rank at convergence against gamma: the transition from NTK to saddle-to-saddle.

As in the paper: matrix completion, 30x30 of rank 1, 20 % observed, 7 seeds, bars of one standard deviation. Unknown
there and chosen here: L = 4, the widths, the grid of gammas, the rank tolerance 1e-1, the task's seed (one task, 7
starts), the test error taken over the unobserved entries.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import lazy_loader as lazy
import numpy as np

from saddleflow import plotting
from saddleflow._backend.waiting import interruptible
from saddleflow.figures.common import verdict_lines, write_files
from saddleflow.problem.costs import MatrixCompletion
from saddleflow.sweeps.sweep import sweep

if TYPE_CHECKING:
    import xarray as xr

else:
    xr = lazy.load("xarray")


@interruptible
def compute(
    *,
    gammas: Sequence[float] = (0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 1.75, 2.0),
    widths: Sequence[int] = (10, 32, 100, 316),
    num_seeds: int = 7,
    depth: int = 4,
    size: int = 30,
    rank: int = 1,
    observed: float = 0.2,
    task_seed: int = 0,
    rtol: float = 1e-3,
    progress: bool | str = True,
) -> "xr.Dataset":
    """Compute the sweep of figure 3.

    Args:
        gammas: exponents of the start's variance.
        widths: hidden widths.
        num_seeds: starts of each kind.
        depth: number of layers L.
        size: rows and columns of the target.
        rank: rank of the target.
        observed: share of observed entries.
        task_seed: draws the target and what is observed of it.
        rtol: relative tolerance of the flow.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.

    Returns:
        The sweep, two rows a lane (start and end), with `zero_predictor`, the test cost of A = 0.
    """
    cost = MatrixCompletion.random(jax.random.key(task_seed), shape=(size, size), rank=rank, observed=observed)
    data = sweep(
        cost,
        depth=depth,
        gamma=gammas,
        width=widths,
        seed=range(num_seeds),
        rtol=rtol,
        max_saves=4,
        gradient_tolerance=1e-3,
        rank_tolerance=0.1,
        progress=progress,
    )
    zero = float(cost.test(np.zeros((size, size))))
    return data.assign(zero_predictor=((), zero, {"units": "cost", "long_name": "test cost of A = 0"}))


def ends(data: "xr.Dataset") -> "tuple[xr.DataArray, xr.DataArray]":
    """Test cost over the zero predictor's, and rank, at the end of every lane: (gamma, width, seed)."""
    end = data.isel(sample=-1).transpose("gamma", "width", "seed", ...)
    return end.test_cost / data.zero_predictor, end["rank"]


def verdicts(data: "xr.Dataset") -> list[str]:
    """One line a statement of the caption: holds or fails, with its numbers."""
    error, rank = ends(data)
    mean, spread = error.mean("seed"), error.std("seed")
    low, high = float(data.gamma[0]), float(data.gamma[-1])
    widths = [int(w) for w in data.width.values]
    full = np.minimum(data.singular_values.sizes["mode"], data.width)
    fullness = (rank.sel(gamma=low).mean("seed") / full).values
    ntk, saddle = mean.sel(gamma=low).values, mean.sel(gamma=high).values
    steep = steepness(data)
    unsure = spread.where(data.gamma > 1, drop=True).mean("gamma").values
    converged = data.stop_reason == "converged"
    statements = [
        (f"all lanes end at a certified minimum ({int(converged.sum())} of {converged.size})", bool(converged.all())),
        (
            f"NTK (gamma = {low:g}): almost full rank where w >= 100: shares of the full one "
            f"{_list(fullness)} at w = {widths}",
            bool(fullness[data.width.values >= 100].min() > 0.9),
        ),
        (f"NTK: test error at or above the zero predictor's: {_list(ntk)} of it", bool(ntk.min() > 0.9)),
        (
            f"gamma = {high:g}: test error towards zero: {_list(saddle)} of the zero predictor's",
            bool(saddle[-1] < 0.05),
        ),
        (
            f"gamma = {high:g}, w = {widths[-1]}: rank {_list(rank.sel(gamma=high, width=widths[-1]).values)}",
            bool((rank.sel(gamma=high, width=widths[-1]) <= 2).all()),
        ),
        (
            f"the transition sharpens with w: from 75 % to 25 % of the error within {_list(steep)} in gamma",
            bool(steep[-1] < steep[0]),
        ),
        (
            f"the error beyond gamma = 1 gets more consistent: mean sd {_list(unsure)} of the zero predictor's",
            bool(unsure[-1] < unsure[0]),
        ),
    ]
    return verdict_lines(statements)


def _list(values) -> str:
    return ", ".join(f"{float(x):.3g}" for x in np.ravel(values))


def steepness(data: "xr.Dataset") -> np.ndarray:
    """Distance in gamma over which the mean error falls from 75 % to 25 % of its largest value, a width each."""
    error, _ = ends(data)
    gamma, found = data.gamma.values, []
    for width in data.width.values:
        curve = error.sel(width=width).mean("seed").values / float(error.sel(width=width).mean("seed").max())
        falling = np.minimum.accumulate(curve)
        found.append(np.ptp(np.interp([-0.75, -0.25], -falling, gamma)))
    return np.asarray(found)


def draw(data: "xr.Dataset") -> "plotting.Figure":
    """Test error over the zero predictor's (left) and rank (right) against gamma, a colour a width; bars: one sd."""
    error, rank = ends(data)
    with plotting.style():
        figure, (left, right) = plotting.subplots(1, 2, figsize=(6.6, 2.6))
        widths = data.width.values
        for place, (width, colour) in enumerate(zip(widths, plotting.CYCLE, strict=False)):
            shift = 0.006 * (place - (len(widths) - 1) / 2)
            for axes, values in ((left, error), (right, rank)):
                at = values.sel(width=width)
                mean, spread = at.mean("seed").values, at.std("seed").values
                style = {"color": colour, "marker": "o", "ms": 3, "lw": 1, "capsize": 2, "elinewidth": 0.8}
                line = axes.errorbar(data.gamma.values + shift, mean, spread, **style)[0]
                plotting.name_curve(line, f"w = {width}", offset=(6, 0))
        plotting.draw_level(left, 1, "zero predictor", side="right")
        left.set(xlabel=r"$\gamma$", ylabel="test error / zero predictor", title="test error at convergence")
        right.set(xlabel=r"$\gamma$", ylabel="rank of A", title="rank at convergence")
        left.set_ylim(bottom=0)
        right.set_ylim(bottom=0)
    return figure


def write(data: "xr.Dataset", folder: Path, force: bool = False) -> list[Path]:
    """Write figure3.png, figure3.pdf and figure3.nc into a folder; returns the paths."""
    return write_files(3, data, draw(data), folder, force)
