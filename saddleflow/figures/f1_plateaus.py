"""Figure 1: saddle-to-saddle training on matrix completion, beside the greedy paths of the limit.

As in the paper: L = 4, w = 100, gamma = 2, a 10x10 target of rank 3. Left: the flow (blue) and the three greedy paths
(orange, green, red) projected on a plane, the origin a cross, the saddles dots. Middle: train cost solid, test cost
dashed, three plateaus at the saddles of rank 0, 1 and 2. Right: the costs of the greedy paths one after another, dots
standing for infinitely many steps.

Unknown there and chosen here, as parameters: the target's law (Gaussian factors), 80 % observed, the seed (one whose
three singular values are well apart), the plane: spanned by the first saddle and by what the end of the greedy path
adds to it, after rotating the hidden spaces of the greedy networks onto the flow's (`comparison.align`).
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import lazy_loader as lazy
import numpy as np

from saddleflow import plotting
from saddleflow._backend.checks import require, require_integer
from saddleflow._backend.waiting import interruptible
from saddleflow.api import gradient_flow
from saddleflow.figures import common
from saddleflow.flow.history import versions
from saddleflow.flow.trajectory import Trajectory
from saddleflow.greedy.comparison import align, lift
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.starts import gaussian
from saddleflow.problem.symmetry import include

if TYPE_CHECKING:
    import xarray as xr

else:
    xr = lazy.load("xarray")


@interruptible
def compute(
    *,
    seed: int = 3,
    depth: int = 4,
    width: int = 100,
    gamma: float = 2.0,
    size: int = 10,
    rank: int = 3,
    observed: float = 0.8,
    rtol: float = 1e-4,
    progress: bool | str = True,
) -> "xr.Dataset":
    """Compute the flow of figure 1 and the greedy path; `draw` makes the picture and `verdicts` judges it.

    Args:
        seed: draws the task and, independently, the start.
        depth: number of layers L.
        width: hidden width w.
        gamma: exponent of the start's variance w^-gamma.
        size: rows and columns of the target.
        rank: rank of the target, at least 2.
        observed: share of observed entries.
        rtol: relative tolerance of the flow.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.

    Returns:
        The flow along `time`, its plateaus along `visit`, the greedy stages along `row`, the greedy saddles and
        minimum along `point`; coordinates in the plane under `plane`, `path_plane` and `point_plane`.

    Raises:
        ValueError: a task whose greedy path has fewer than two stages; bad arguments.
    """
    parameters = {k: v for k, v in locals().items() if k != "progress"}
    require_integer("depth", depth, 2)
    cost, key_start = common.completion_task(seed, size, rank, observed)
    start = gaussian(key_start, depth=depth, width=width, shape=(size, size), gamma=gamma)
    with ThreadPoolExecutor() as pool:  # both compile for longer than they run
        computed = pool.submit(common.completion_path, seed, size, rank, observed, depth)
        how: dict[str, Any] = {"max_saves": 400, "save_networks": True, "progress": progress}
        flow = gradient_flow(cost, start, rtol=rtol, gradient_tolerance=1e-3, **how)
        path = computed.result()
    require(len(path.points) > 2, "rank", "give a greedy path of at least two stages", rank)
    frames = _frames(flow, path)
    lifted = [lift(_widened(p.network, path), frames) for p in path.points]
    first = _unit(lifted[1], [])
    plane = [first, _unit(lifted[-1], [first])]
    stages = [lift(_widened(stage.networks, path), frames) for stage in path.stages]
    visits = flow.saddles(stationary_points=False)
    variables = {
        "train_cost": ("time", flow.train_cost, {"units": "cost"}),
        "singular_values": (("time", "mode"), flow.singular_values, {"units": "entries of the target"}),
        "rank": ("time", flow.rank),
        "plane": (("time", "axis"), _project(flow.networks, plane), {"units": "parameter"}),
        "visit_rank": ("visit", [v.rank for v in visits]),
        "visit_cost": ("visit", [v.cost for v in visits], {"units": "cost"}),
        "visit_time": ("visit", [v.time for v in visits], {"units": "time of the flow"}),
        "visit_enter": ("visit", [v.enter for v in visits], {"units": "time of the flow"}),
        "visit_leave": ("visit", [v.leave for v in visits], {"units": "time of the flow"}),
        "path_plane": (("row", "axis"), np.concatenate([_project(s, plane) for s in stages]), {"units": "parameter"}),
        "point_plane": (
            ("point", "axis"),
            np.stack([[_inner(point, axis) for axis in plane] for point in lifted]),
            {"units": "parameter"},
        ),
        **common.path_variables(path),
    }
    if flow.test_cost is not None:
        variables["test_cost"] = ("time", flow.test_cost, {"units": "cost"})
    return xr.Dataset(
        variables,
        coords={"time": ("time", flow.time, {"units": "time of the flow dtheta/dt = -grad C"})},
        attrs={
            "parameters": json.dumps(parameters),
            "stop_reason": flow.stop_reason,
            "path_stop_reason": path.stop_reason,
            "flow": repr(flow),
            "path": repr(path),
            "versions": json.dumps(versions()),
        },
    )


def _widened(network: DeepLinearNetwork | None, path) -> DeepLinearNetwork:
    """A greedy network in the width of the whole path, by dead neurons; layers may carry a leading axis."""
    assert network is not None
    wide = len(path.stages)
    if network.layers[0].ndim == 2:
        return include(network, wide)
    return jax.vmap(lambda n: include(n, wide))(network)


def _frames(flow: Trajectory, path):
    """Rotations of the greedy hidden spaces onto the flow's, from all points that the flow comes near."""
    rows = [
        int(np.argmin(np.linalg.norm(flow.end_to_end - point.end_to_end, axis=(1, 2)))) for point in path.points[1:]
    ]
    networks = [jax.tree.map(lambda layer, row=row: layer[row], flow.networks) for row in rows]
    return align(networks, [_widened(point.network, path) for point in path.points[1:]])


def _inner(network: DeepLinearNetwork, axis: DeepLinearNetwork):
    """Inner product of parameters; leading axes stay."""
    pairs = zip(network.layers, axis.layers, strict=True)
    return np.asarray(sum((w * e).sum((-2, -1)) for w, e in pairs))


def _unit(network: DeepLinearNetwork, axes: list[DeepLinearNetwork]) -> DeepLinearNetwork:
    """What is orthogonal to the axes, normalised."""
    for axis in axes:
        part = _inner(network, axis)
        network = jax.tree.map(lambda w, e, part=part: w - part * e, network, axis)
    norm = np.sqrt(_inner(network, network))
    return jax.tree.map(lambda w: w / norm, network)


def _project(networks, plane: list[DeepLinearNetwork]):
    return np.stack([_inner(networks, axis) for axis in plane], axis=1)


def verdicts(data: "xr.Dataset") -> list[str]:
    """One line a statement of the caption: holds or fails, with its numbers."""
    costs, ranks = data.visit_cost.values, data.visit_rank.values.tolist()
    saddles = data.point_cost.values[:-1] if data.path_stop_reason == "converged" else data.point_cost.values
    heights = ", ".join(f"{c:.4g}" for c in costs)
    statements = [
        (f"{len(costs)} plateaus (paper: 3), at costs {heights}", len(costs) == 3),
        (f"plateaus at ranks {ranks}, rising by one from the origin", ranks == list(range(int(data["rank"][-1])))),
    ]
    if len(costs) == len(saddles):
        gap = np.max(np.abs(costs - saddles) / saddles)
        text = f"plateau costs are the greedy saddles' within {gap:.1e}, relative"
        statements.append((text, bool(gap < 1e-2)))
    else:
        statements.append((f"{len(costs)} plateaus, but {len(saddles)} greedy saddles", False))
    if "test_cost" in data:
        ratio = float(data.test_cost[-1] / data.test_cost[0])
        statements.append((f"the test cost falls, to {ratio:.1e} of its start", ratio < 0.1))
    statements.append((f"the end is a certified minimum ({data.stop_reason})", data.stop_reason == "converged"))
    stages = len(np.unique(data.path_stage))
    text = f"the greedy paths end at a certified minimum after {stages} stages ({data.path_stop_reason})"
    statements.append((text, data.path_stop_reason == "converged"))
    return common.verdict_lines(statements)


def draw(data: "xr.Dataset") -> "plotting.Figure":
    """The three panels."""
    with plotting.style():
        figure, (left, middle, right) = plotting.subplots(1, 3, figsize=(7.2, 2.5))
        _draw_plane(left, data)
        _draw_costs(middle, data)
        common.draw_stages(right, data)
    return figure


def _draw_plane(axes: "plotting.Axes", data: "xr.Dataset") -> None:
    points = data.point_plane.values
    ranks = [f"rank {rank}" for rank in data.point_rank.values[1:-1]]
    names = ["origin", *ranks, "minimum"]
    plotting.draw_plane(axes, data.plane.values, points, names, lw=2.2)
    for index in np.unique(data.path_stage):
        colour = common.stage_colour(index)
        curve = data.path_plane.values[np.flatnonzero(data.path_stage == index)]
        curve = np.concatenate([points[index : index + 1], curve, points[index + 1 : index + 2]])
        axes.plot(*curve.T, color=colour, lw=1.2)
        middle = curve[np.argmin(np.linalg.norm(curve - 0.5 * (curve[0] + curve[-1]), axis=1))]
        flat = np.ptp(curve[:, 0]) > np.ptp(curve[:, 1])
        beside: dict[str, Any] = {"offset": (0, -3), "ha": "center", "va": "top"} if flat else {"offset": (5, 0)}
        plotting.name_point(axes, middle, rf"$\theta^{index + 1}$", colour, **beside)
    flow = data.plane.values
    half = flow[np.argmax(flow[:, 0] > 0.5 * points[1, 0])]
    above: dict[str, Any] = {"offset": (0, 4), "ha": "center", "va": "bottom"}
    plotting.name_point(axes, half, r"flow $\theta_\alpha$", plotting.BLUE, **above)
    axes.set(xlabel=r"along $\vartheta^1$", ylabel=r"along the rest of $\vartheta^3$", title="flow and greedy paths")
    axes.margins(0.14)


def _draw_costs(axes: "plotting.Axes", data: "xr.Dataset") -> None:
    visits = (data[f"visit_{name}"].values for name in ("enter", "leave", "cost", "rank"))
    plateaus = [
        plotting.Plateau(begin, end, cost, f"rank {rank}" if rank else "origin")
        for begin, end, cost, rank in zip(*visits, strict=True)
    ]
    test = data.test_cost if "test_cost" in data else None
    plotting.draw_costs(axes, data.time, data.train_cost, test, plateaus, colour=plotting.BLUE)
    axes.set(xlabel="time t of the flow", title="train and test cost", xlim=(0, data.time.values[-1]))


def write(data: "xr.Dataset", folder: Path, force: bool = False) -> list[Path]:
    """Write figure1.png, figure1.pdf and figure1.nc into a folder (made if need be); returns the paths."""
    return common.write_files(1, data, draw(data), folder, force)
