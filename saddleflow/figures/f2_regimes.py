"""Figure 2: training loss in the NTK, mean-field and saddle-to-saddle regimes, at three widths.

As in the paper: L = 4, w = 10, 100, 1000, 10 seeds. Recalled, not read there: gamma = 0.75, 1, 1.5, a teacher
10 diag(1, ..., 5), 100 Gaussian inputs, mean squared error. Chosen here: the seed of the inputs, the times. Wide
networks are reduced to the hidden directions that their flows use, each with a measured error of A.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import lazy_loader as lazy
import numpy as np

from saddleflow import plotting
from saddleflow._backend.waiting import interruptible
from saddleflow.figures.common import verdict_lines, write_files
from saddleflow.flow import crossings
from saddleflow.problem.costs import MeanSquaredError
from saddleflow.sweeps.sweep import sweep
from saddleflow.theory import plateau_exponent

if TYPE_CHECKING:
    import xarray as xr

else:
    xr = lazy.load("xarray")

NAMES = {0: "NTK", 1: "mean-field", 2: "saddle-to-saddle"}  # of the gammas below, at and above 1


@interruptible
def compute(
    *,
    gammas: Sequence[float] = (0.75, 1.0, 1.5),
    widths: Sequence[int] = (10, 100, 1000),
    num_seeds: int = 10,
    depth: int = 4,
    num_samples: int = 100,
    task_seed: int = 0,
    t1: float = 3.0,
    num_times: int = 300,
    rtol: float = 1e-3,
    reduce_width: str | None = "auto",
    progress: bool | str = True,
) -> "xr.Dataset":
    """Compute the sweep of figures 2 and 5; computed once a process for the same arguments.

    Args:
        gammas: exponents of the start's variance.
        widths: hidden widths.
        num_seeds: starts of each kind.
        depth: number of layers L.
        num_samples: size of the train set.
        task_seed: draws the inputs.
        t1: end of the runs, in time of the flow.
        num_times: saved times, logarithmic from t1 * 1e-6.
        rtol: relative tolerance of the flow.
        reduce_width: as in `sweep`; None computes the full networks.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.
    """
    sizes = (num_seeds, depth, num_samples, task_seed, t1, num_times, rtol, reduce_width, progress)
    return _figure2(tuple(gammas), tuple(widths), *sizes).copy()


@cache
def _figure2(
    gammas, widths, num_seeds, depth, num_samples, task_seed, t1, num_times, rtol, reduce_width, progress
) -> "xr.Dataset":
    teacher = 10 * jnp.diag(jnp.arange(1.0, 6))
    cost = MeanSquaredError.random(jax.random.key(task_seed), teacher=teacher, num_samples=num_samples)
    return sweep(
        cost,
        depth=depth,
        gamma=gammas,
        width=widths,
        seed=range(num_seeds),
        rtol=rtol,
        t1=t1,
        save_at=num_times,
        rank_tolerance=0.1,
        reduce_width=reduce_width,
        progress=progress,
    )


def regime(gamma: float) -> int:
    """0 below gamma = 1, 1 at it, 2 above."""
    return int(np.sign(gamma - 1)) + 1


def log_rate(time: np.ndarray, cost: np.ndarray, high: float = 0.3, low: float = 1e-6) -> tuple[float, float]:
    """Rate and R^2 of an exponential fitted to a cost between two shares of its start."""
    share = cost / cost[0]
    window = (share < high) & (share > low)
    x, y = time[window], np.log(share[window])
    slope, offset = np.polyfit(x, y, 1)
    return -float(slope), 1 - float(np.var(y - slope * x - offset) / np.var(y))


def plateau_length(time: np.ndarray, cost: np.ndarray, share: float = 0.9) -> float:
    """Time at which a cost first falls below a share of its start; infinite where it never does."""
    return crossings.time_at_level(time, cost, share * cost[0])


def over_seeds(data: "xr.Dataset", gamma: float, width: int, measure: Any) -> np.ndarray:
    """A measure `(time, cost) -> numbers` of the train cost of every seed."""
    curves = data.train_cost.sel(gamma=gamma, width=width).values
    return np.asarray([measure(data.time.values, curve) for curve in curves])


def verdicts(data: "xr.Dataset") -> list[str]:
    """One line a statement of the caption: holds or fails, with its numbers."""
    statements = []
    wide = [int(w) for w in data.width.values if w >= 100]
    for gamma in data.gamma.values:
        kind = regime(gamma)
        if kind == 0:
            for width in wide:
                fits = over_seeds(data, gamma, width, log_rate)
                statements.append(
                    (
                        f"NTK (gamma = {gamma:g}), w = {width}: linear convergence, rate {fits[:, 0].mean():.3g} "
                        f"+- {fits[:, 0].std():.2g}, R^2 of log cost at least {fits[:, 1].min():.3f} (asked: .97)",
                        bool(fits[:, 1].min() > 0.97),
                    )
                )
        elif len(wide) > 1:
            lengths = [over_seeds(data, gamma, width, plateau_length).mean() for width in wide]
            exponent = float(np.polyfit(np.log(wide), np.log(lengths), 1)[0])
            expected = plateau_exponent(depth_of(data), float(gamma))
            text = (
                f"{NAMES[kind]} (gamma = {gamma:g}): plateau lengths {', '.join(f'{x:.3g}' for x in lengths)} at "
                f"w = {', '.join(map(str, wide))}: w^{exponent:.3f} (derived: w^{expected:g})"
            )
            statements.append((text, bool(abs(exponent - expected) < 0.1)))
    widths = [int(w) for w in data.width.values]
    for gamma in data.gamma.values:
        spreads = [spread(data, gamma, width) for width in widths]
        numbers = ", ".join(f"{s:.3f}" for s in spreads)
        text = f"gamma = {gamma:g}: spread of log10 cost over seeds shrinks with w: {numbers}"
        statements.append((text, bool(np.all(np.diff(spreads) < 0))))
    return verdict_lines(statements)


def depth_of(data: "xr.Dataset") -> int:
    """Number of layers of a sweep."""
    return int(json.loads(data.attrs["configuration"])["depth"][0])


def spread(data: "xr.Dataset", gamma: float, width: int) -> float:
    """Standard deviation over seeds of log10 cost, averaged over the times until the cost has fallen to 1e-3."""
    curves = np.log10(data.train_cost.sel(gamma=gamma, width=width).values)
    live = curves.mean(axis=0) > curves[:, 0].mean() - 3
    live[0] = False
    return float(curves[:, live].std(axis=0).mean())


def draw(data: "xr.Dataset") -> "plotting.Figure":
    """A panel a regime; lines are medians over seeds, bands hold all seeds, a colour each width."""
    with plotting.style():
        figure, panels = plotting.subplots(1, data.sizes["gamma"], figsize=(7.2, 2.5), sharey=True, squeeze=False)
        for axes, gamma in zip(panels[0], data.gamma.values, strict=True):
            for index, width in enumerate(data.width.values):
                curves = data.train_cost.sel(gamma=gamma, width=width).values
                how: dict[str, Any] = {"colour": plotting.mode_colour(index), "name": f"w = {width}"}
                plotting.draw_band(axes, data.time.values[1:], curves[:, 1:], quantiles=(0, 1), **how)
            axes.set(
                xscale="log",
                yscale="log",
                xlabel="time t of the flow",
                title=f"{NAMES[regime(gamma)]}, $\\gamma$ = {gamma:g}",
                xlim=(1e-4, float(data.time[-1])),
                ylim=(1e-3, 2 * float(data.train_cost[..., 0].max())),
            )
        panels[0, 0].set_ylabel("train cost")
    return figure


def write(data: "xr.Dataset", folder: Path, force: bool = False) -> list[Path]:
    """Write figure2.png, figure2.pdf and figure2.nc into a folder; returns the paths."""
    return write_files(2, data, draw(data), folder, force)
