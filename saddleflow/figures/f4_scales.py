"""Figure 4: one direction of the start, three scales alpha: only small ones pass by the saddles and generalise.

As in the paper: L = 4, w = 100, starts `alpha * theta_0` for one theta_0, the matrix completion task of figure 1.
Left: train cost solid, test cost dashed. Middle: the three flows and the black line of all solutions. Right: the
costs of the greedy paths, the limit alpha -> 0, one after another.

Unknown there and chosen here, as parameters: the three alphas (theta_0 has variance 1/w, so .1 is gamma = 2 at
w = 100 and 1.8 is about the NTK's scale), the share observed, the seed, and the plane: end-to-end matrices projected
on the observed and on the unobserved part of the target. In it the solutions are a straight line exactly: a matrix
fits all observed entries only if its first coordinate is the target's, and the second is then free.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import lazy_loader as lazy
import numpy as np

from saddleflow import plotting
from saddleflow._backend.checks import require
from saddleflow._backend.waiting import interruptible
from saddleflow.api import gradient_flow
from saddleflow.figures import common
from saddleflow.flow.history import versions
from saddleflow.problem.starts import gaussian

if TYPE_CHECKING:
    import xarray as xr

else:
    xr = lazy.load("xarray")


@interruptible
def compute(
    *,
    alphas: Sequence[float] = (1.8, 0.6, 0.1),
    seed: int = 3,
    depth: int = 4,
    width: int = 100,
    size: int = 10,
    rank: int = 3,
    observed: float = 0.8,
    rtol: float = 1e-4,
    progress: bool | str = True,
) -> "xr.Dataset":
    """Compute the flows of figure 4 and the greedy path; `draw` makes the picture and `verdicts` judges it.

    Args:
        alphas: scales of the start, descending.
        seed: draws the task and, independently, theta_0 (entries of variance 1/w).
        depth: number of layers L.
        width: hidden width w.
        size: rows and columns of the target.
        rank: rank of the target.
        observed: share of observed entries, below 1.
        rtol: relative tolerance of the flows.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.

    Returns:
        The flows one after another along `step` (`flow` is the index of alpha), the greedy stages along `row`, the
        greedy saddles and minimum along `point`; coordinates in the plane under `plane`, `path_plane`, `point_plane`.

    Raises:
        ValueError: alphas that do not descend, nothing held out; bad arguments.
    """
    parameters = {k: list(v) if k == "alphas" else v for k, v in locals().items() if k != "progress"}
    require(len(alphas) > 1, "alphas", "hold at least two scales", alphas)
    require(bool(np.all(np.diff(alphas) < 0)), "alphas", "descend", alphas)
    require(observed < 1, "observed", "be below 1: the test entries are those not observed", observed)
    cost, key_start = common.completion_task(seed, size, rank, observed)
    theta = gaussian(key_start, depth=depth, width=width, shape=(size, size), gamma=1.0)
    with ThreadPoolExecutor() as pool:  # both compile for longer than they run
        computed = pool.submit(common.completion_path, seed, size, rank, observed, depth)
        flows = [
            gradient_flow(cost, alpha * theta, rtol=rtol, gradient_tolerance=1e-3, max_saves=400, progress=progress)
            for alpha in alphas
        ]
        path = computed.result()
    axes = [np.where(mask, cost.target, 0.0) for mask in (cost.observed, cost.held_out)]
    axes = [axis / np.linalg.norm(axis) for axis in axes]

    def project(matrices):
        return np.stack([np.sum(np.asarray(matrices) * axis, axis=(-2, -1)) for axis in axes], axis=-1)

    zero = jnp.zeros((size, size))
    variables = {
        "flow": ("step", np.concatenate([np.full(len(f.time), i) for i, f in enumerate(flows)])),
        "time": ("step", np.concatenate([f.time for f in flows]), {"units": "time of the flow"}),
        "train_cost": ("step", np.concatenate([f.train_cost for f in flows]), {"units": "cost"}),
        "test_cost": ("step", np.concatenate([np.asarray(f.test_cost) for f in flows]), {"units": "cost"}),
        "plane": (("step", "axis"), np.concatenate([project(f.end_to_end) for f in flows])),
        "num_plateaus": ("alpha", [len(f.saddles(stationary_points=False)) for f in flows]),
        "final_rank": ("alpha", [int(f.rank[-1]) for f in flows]),
        "stop_reason": ("alpha", [f.stop_reason for f in flows]),
        "target_plane": ("axis", project(cost.target)),
        "zero_test_cost": ((), float(cost.test(zero)), {"units": "cost"}),
        **common.path_variables(path),
    }
    data = xr.Dataset(variables, coords={"alpha": list(map(float, alphas))})
    data["path_plane"] = (("row", "axis"), project(data.path_end_to_end))
    data["point_plane"] = (("point", "axis"), project(data.point_end_to_end))
    data.attrs = {
        "parameters": json.dumps(parameters),
        "path_stop_reason": path.stop_reason,
        "path": repr(path),
        "versions": json.dumps(versions()),
    }
    return data


def _colour(index: int) -> str:
    """The colour of a flow, in the order of the scales, as in the paper."""
    return (plotting.BLUE, plotting.PURPLE, plotting.RED)[index % 3]


def _flow(data: "xr.Dataset", index: int) -> "xr.Dataset":
    return data.isel(step=np.flatnonzero(data.flow == index))


def verdicts(data: "xr.Dataset") -> list[str]:
    """One line a statement of the caption: holds or fails, with its numbers."""
    alphas = data.alpha.values
    zero = float(data.zero_test_cost)
    tests = [float(_flow(data, i).test_cost[-1]) / zero for i in range(len(alphas))]
    reasons = data.stop_reason.values.tolist()
    plateaus = int(data.num_plateaus[-1])
    stages = len(np.unique(data.path_stage))
    off = [abs(float(_flow(data, i).plane[-1, 0] / data.target_plane[0]) - 1) for i in range(len(alphas))]
    statements = [
        (
            f"a large start does not generalise: test cost {tests[0]:.2g} of the zero predictor's "
            f"at alpha = {alphas[0]:g}",
            tests[0] > 0.5,
        ),
        (
            f"a small start does: {tests[-1]:.2g} of the zero predictor's at alpha = {alphas[-1]:g}",
            tests[-1] < 0.1,
        ),
        (
            f"the smaller the start the better: {', '.join(f'{t:.2g}' for t in tests)}",
            bool(np.all(np.diff(tests) < 0)),
        ),
        (
            f"the smallest start rests on {plateaus} plateaus, the largest on {int(data.num_plateaus[0])} "
            f"(greedy: {stages})",
            plateaus == stages and int(data.num_plateaus[0]) == 0,
        ),
        (
            f"all end on the line of solutions, within {max(off):.1e}: {', '.join(reasons)}",
            max(off) < 1e-2 and set(reasons) == {"converged"},
        ),
    ]
    return common.verdict_lines(statements)


def draw(data: "xr.Dataset") -> "plotting.Figure":
    """The three panels."""
    with plotting.style():
        figure, (left, middle, right) = plotting.subplots(1, 3, figsize=(7.2, 2.5))
        _draw_costs(left, data)
        _draw_plane(middle, data)
        common.draw_stages(right, data)
    return figure


def _draw_costs(axes: "plotting.Axes", data: "xr.Dataset") -> None:
    for index, alpha in enumerate(data.alpha.values):
        flow, colour = (
            _flow(data, index).isel(step=slice(1, None)),
            _colour(index),
        )  # a logarithm of time has no start
        plotting.draw_costs(axes, flow.time, flow.train_cost, flow.test_cost, colour=colour, names=("", ""))
        falls = np.abs(np.log(flow.train_cost.values / (5e-3 * float(_flow(data, index).train_cost[0]))))
        at = int(np.argmin(falls))
        point = (float(flow.time[at]), float(flow.train_cost[at]))
        plotting.name_point(axes, point, rf"$\alpha={alpha:g}$", colour, (-4, -2), ha="right")
    axes.set(xscale="log", xlabel="time t of the flow", title="train (solid) and test (dashed)")


def _draw_plane(axes: "plotting.Axes", data: "xr.Dataset") -> None:
    x_solution, y_target = data.target_plane.values
    curves = [_flow(data, i).plane.values for i in range(data.sizes["alpha"])]
    heights = np.concatenate([c[:, 1] for c in curves] + [[0.0, y_target]])
    span = np.ptp(heights)
    ends = heights.min() - 0.15 * span, heights.max() + 0.15 * span
    casing = [plotting.withStroke(linewidth=3.4, foreground="white")]  # black on a dark page
    (solutions,) = axes.plot([x_solution] * 2, ends, color="black", lw=1.6, path_effects=casing)
    points = [*data.point_plane.values[:-1], data.target_plane.values]
    for index, (alpha, curve) in enumerate(zip(data.alpha.values, curves, strict=True)):
        colour, last = _colour(index), index == len(curves) - 1
        plotting.draw_plane(axes, curve, points if last else None, colour=colour)
        axes.plot(*curve[-1], ".", ms=6, color=colour)
        plotting.name_point(axes, curve[-1], rf"$\alpha={alpha:g}$", colour, (5, 0))
    plotting.name_point(axes, (x_solution, y_target), "target", offset=(-6, 3), ha="right")
    how: dict[str, Any] = {"ha": "right", "va": "bottom", "color": plotting.ink()}
    plotting.name_curve(solutions, "solutions", at=0.0, offset=(-4, 3), **how)
    axes.set(xlabel="along the observed part of $A^*$", ylabel="along the unobserved part")
    axes.set_title("flows and solutions")
    axes.margins(x=0.12)


def write(data: "xr.Dataset", folder: Path, force: bool = False) -> list[Path]:
    """Write figure4.png, figure4.pdf and figure4.nc into a folder (made if need be); returns the paths."""
    return common.write_files(4, data, draw(data), folder, force)
