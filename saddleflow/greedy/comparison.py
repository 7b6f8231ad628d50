"""How closely a flow from a small start follows the greedy path: modulo rotations, and a time shift for each stage.

The conjecture (arXiv 2106.15933, recalled; docs/theory.md, section 4): `theta_alpha(t_alpha^k + t)` tends to
`R^k I(theta^k(t))` as alpha goes to zero, with theta^k the k-th stage of the greedy path, in width k, and R^k a
rotation of the hidden spaces. Here R^k is found at the plateau that ends a stage, t_alpha^k where both pass the cost
half way, and both curves are compared at the flow's own steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lazy_loader as lazy
import numpy as np
import scipy
from jaxtyping import Array, Float

from saddleflow._backend.checks import require
from saddleflow.api import gradient_flow
from saddleflow.flow import crossings
from saddleflow.flow.trajectory import Trajectory
from saddleflow.greedy.paths import GreedyPath
from saddleflow.problem import geometry
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = lazy.load("xarray")

# A stage is compared while its cost is between these shares of the way from its saddle to the next point.
WINDOW = (0.01, 0.99)

# Procrustes problems of neighbouring hidden spaces are solved in turns, this often.
SWEEPS = 20

# Rows of a trajectory are padded to a multiple of this for what is compiled.
PADDED_ROWS = 256


@dataclass(frozen=True)
class StageComparison:
    """A flow against one stage of the greedy path.

    Attributes:
        stage: index k of the stage, from 0.
        cost_gap: |C(plateau) - C(saddle)| / C(saddle) at the saddle that the stage leaves; NaN where the flow shows
            no plateau of that rank.
        time_shift: t_alpha^k, the flow's time at the stage's time 0.
        matrix_distance: largest |A_flow - A_path|_F along the stage, over the largest |A_path|_F.
        parameter_distance: largest |theta_flow - R theta_path|, over the largest |theta_path|.
    """

    stage: int
    cost_gap: float
    time_shift: float
    matrix_distance: float
    parameter_distance: float


def align(
    networks: Sequence[DeepLinearNetwork], references: Sequence[DeepLinearNetwork]
) -> tuple[Float[Array, "w k"], ...]:
    """The rotations that bring small networks closest to large ones: frames R_l with orthonormal columns.

    Minimises the sum over pairs of `sum_l |W_l - R_l V_l R_{l-1}^T|_F^2`, V_l the layers of the reference, by
    orthogonal Procrustes problems (the polar factor, from singular vectors): first from the input upwards, each space
    given the one below, then in turns, each given both neighbours.

    Args:
        networks: large networks of one width.
        references: as many small networks of one width, at most the large one.

    Returns:
        R_1, ..., R_{L-1}, R_l of shape (n_l, k_l).

    Raises:
        ValueError: another number of networks than of references, or a reference wider than its network.
    """
    require(len(networks) == len(references), "references", f"be {len(networks)} networks", len(references))
    widths = zip(networks[0].hidden_widths, references[0].hidden_widths, strict=True)
    require(
        all(wide >= narrow for wide, narrow in widths),
        "references",
        f"be no wider than the networks, {networks[0].width}",
        references[0].width,
    )
    pairs = list(zip(networks, references, strict=True))
    depth = networks[0].depth
    frames: list = [None] * (depth + 1)
    frames[0], frames[depth] = jnp.eye(networks[0].shape[1]), jnp.eye(networks[0].shape[0])
    for sweep in range(SWEEPS):
        for space in range(1, depth):
            below = [big.layers[space - 1] @ frames[space - 1] @ small.layers[space - 1].T for big, small in pairs]
            above = [big.layers[space].T @ frames[space + 1] @ small.layers[space] for big, small in pairs if sweep]
            left, _, right = jnp.linalg.svd(sum([*below, *above]), full_matrices=False)
            frames[space] = left @ right
    return tuple(frames[1:depth])


def lift(network: DeepLinearNetwork, frames: Sequence[Float[Array, "w k"]]) -> DeepLinearNetwork:
    """A small network in the hidden spaces of a large one: layers `R_l V_l R_{l-1}^T` (may have leading axes)."""
    return jax.tree.unflatten(jax.tree.structure(network), _lifted(network.layers, frames))


def _lifted(layers: Sequence[Any], frames: Sequence[Any]) -> list[Any]:
    layers = list(layers)
    for index, frame in enumerate(frames):
        layers[index] = frame @ layers[index]
        layers[index + 1] = layers[index + 1] @ frame.T
    return layers


@eqx.filter_jit
def _gradients(cost: Cost, networks: DeepLinearNetwork) -> DeepLinearNetwork:
    return jax.vmap(lambda network: geometry.gradient(cost, network))(networks)


def _product(layers: Sequence[np.ndarray]) -> np.ndarray:
    """End-to-end matrices of layers with leading axes, in numpy: their number varies, and would be compiled for."""
    return reduce(lambda below, above: above @ below, layers)


def _largest_norm(layers: Sequence[np.ndarray]) -> float:
    """The largest |theta| of networks along a leading axis."""
    return math.sqrt(np.max(np.sum([np.sum(layer**2, axis=(1, 2)) for layer in layers], axis=0)))


class Curve:
    """A trajectory with its networks, between its steps: cubic Hermite, with the flow's own derivatives.

    Args:
        cost: the cost whose flow it is.
        trajectory: with `save_networks=True`.

    Raises:
        ValueError: a trajectory without networks.
    """

    def __init__(self, cost: Cost, trajectory: Trajectory):
        if trajectory.networks is None:
            raise ValueError("`trajectory` must hold its networks. Run it with save_networks=True.")
        self.time, self.train_cost = trajectory.time, trajectory.train_cost
        layers = [np.asarray(layer) for layer in trajectory.networks.layers]
        # few lengths, few compilations: the last row is repeated
        padding = (0, -len(self.time) % PADDED_ROWS)
        padded = [np.pad(layer, (padding, (0, 0), (0, 0)), mode="edge") for layer in layers]
        slopes = _gradients(cost, jax.tree.unflatten(jax.tree.structure(trajectory.networks), padded))
        self.splines = [
            scipy.interpolate.CubicHermiteSpline(self.time, layer, -np.asarray(slope)[: len(self.time)])
            for layer, slope in zip(layers, slopes.layers, strict=True)
        ]

    def at(self, times: Float[np.ndarray, " times"]) -> list[Float[np.ndarray, "times _ _"]]:
        """The layers at given times."""
        return [spline(times) for spline in self.splines]

    def end_to_end(self, times: Float[np.ndarray, " times"]) -> Float[np.ndarray, "times n_out n_in"]:
        """The end-to-end matrices at given times."""
        return _product(self.at(times))

    def time_at_cost(self, cost: Cost, level: float) -> float:
        """The first time at which the cost falls to a level; the first time of all where it starts below.

        Raises:
            ValueError: a level that the cost never falls to.
        """
        row = crossings.first_row(self.train_cost, level)
        least = float(self.train_cost.min())
        require(row is not None, "level", f"be at least {least}, the least cost of the trajectory", level)
        if not row:
            return float(self.time[0])
        before, after = self.time[row - 1 : row + 1]

        def excess(part: float) -> float:
            return float(cost(self.end_to_end(np.array([before + part * (after - before)]))[0])) - level

        return float(before + crossings.root(excess) * (after - before))


def compare(cost: Cost, trajectory: Trajectory, path: GreedyPath) -> list[StageComparison]:
    """A flow against the greedy path, stage by stage, as far as both go.

    Args:
        cost: the cost of both.
        trajectory: a flow from a small start, with `save_networks=True`.
        path: from `saddle_to_saddle(..., save_networks=True)`.

    Raises:
        ValueError: a trajectory or a path without networks, or networks of another depth.
    """
    require(
        trajectory.network.depth == path.points[0].network.depth,
        "path",
        f"have the trajectory's depth {trajectory.network.depth}",
        path.points[0].network.depth,
    )
    visits = trajectory.saddles(stationary_points=False)
    flow = Curve(cost, trajectory)  # refuses a trajectory without networks
    assert trajectory.networks is not None
    comparisons = []
    for index, (stage, (saddle, after)) in enumerate(zip(path.stages, pairwise(path.points), strict=False)):
        middle = 0.5 * (saddle.cost + after.cost)
        if trajectory.train_cost[-1] > middle:
            break
        frames = [np.asarray(f) for f in align([_nearest(trajectory, after.end_to_end)], [after.network])]
        ours = Curve(cost, stage)
        shift = flow.time_at_cost(cost, middle) - ours.time_at_cost(cost, middle)
        share = (saddle.cost - trajectory.train_cost) / (saddle.cost - after.cost)
        times = trajectory.time - shift
        inside = (share > WINDOW[0]) & (share < WINDOW[1]) & (times >= 0) & (times <= stage.time[-1])
        network = [np.asarray(layer)[inside] for layer in trajectory.networks.layers]
        reference = _lifted(ours.at(times[inside]), frames)
        difference = [a - b for a, b in zip(network, reference, strict=True)]
        matrices = _product(network), _product(reference)
        gaps = [abs(visit.cost - saddle.cost) / saddle.cost for visit in visits if visit.rank == saddle.rank]
        comparisons.append(
            StageComparison(
                stage=index,
                cost_gap=min(gaps, default=np.nan),
                time_shift=shift,
                matrix_distance=_largest(matrices[0] - matrices[1]) / _largest(matrices[1]),
                parameter_distance=_largest_norm(difference) / _largest_norm(reference),
            )
        )
    return comparisons


def over_alpha(
    cost: Cost,
    network: DeepLinearNetwork,
    path: GreedyPath,
    alphas: Sequence[float],
    *,
    rtol: float = 1e-6,
    max_saves: int = 400,
    progress: bool | str = True,
) -> "xr.Dataset":
    """Flows from `alpha * network` against the greedy path, as a function of alpha.

    Args:
        cost: the cost of both.
        network: theta_0.
        path: from `saddle_to_saddle(..., save_networks=True)`.
        alphas: scales of the start.
        rtol: relative tolerance of the flows.
        max_saves: steps kept at most of a flow, with their networks.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.

    Returns:
        A dataset with dims (alpha, stage): cost_gap, time_shift, matrix_distance, parameter_distance (see
        `StageComparison`); NaN where a flow did not pass a stage.
    """
    names = ("cost_gap", "time_shift", "matrix_distance", "parameter_distance")
    units = ("1", "time of the flow", "1", "1")
    values = np.full((len(names), len(alphas), len(path.stages)), np.nan)
    for row, alpha in enumerate(alphas):
        start = alpha * network
        flow = gradient_flow(cost, start, rtol=rtol, save_networks=True, max_saves=max_saves, progress=progress)
        for comparison in compare(cost, flow, path):
            values[:, row, comparison.stage] = [getattr(comparison, name) for name in names]
    return xr.Dataset(
        {n: (("alpha", "stage"), v, {"units": u}) for n, v, u in zip(names, values, units, strict=True)},
        coords={"alpha": list(map(float, alphas)), "stage": range(len(path.stages))},
    )


def _nearest(trajectory: Trajectory, matrix: Float[np.ndarray, "n_out n_in"]) -> DeepLinearNetwork:
    """The network of a trajectory at the row whose end-to-end matrix is nearest."""
    row = int(np.argmin(np.linalg.norm(trajectory.end_to_end - matrix, axis=(1, 2))))
    return jax.tree.map(lambda layer: layer[row], trajectory.networks)


def _largest(matrices: Float[np.ndarray, "time n_out n_in"]) -> float:
    return float(np.linalg.norm(matrices, axis=(1, 2)).max())
