"""What the greedy algorithms return: the saddles of a path, and the stages between them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader as lazy
import numpy as np
from jaxtyping import Array, Float

from saddleflow._backend import arguments
from saddleflow._backend.arguments import takes
from saddleflow._backend.checks import require
from saddleflow._backend.files import check_writable, readable, write_netcdf
from saddleflow.flow.history import versions
from saddleflow.flow.trajectory import Trajectory, from_xarray, read_netcdf
from saddleflow.greedy.pictures import draw_card, draw_path
from saddleflow.plotting.cards import never_raises
from saddleflow.problem import geometry
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.readers import FILE
from saddleflow.theory.escape import optimal_speed

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
else:
    xr = lazy.load("xarray")
    Figure = Any  # loading matplotlib takes longer than most stages

# Singular values of the gradient closer than this, relative to the largest, count as one multiple value.
MULTIPLE = 1e-6

# Singular values of A below this share of the largest do not count for the rank of a (polished) saddle.
RANK_SHARE = 1e-6

_STAGE_TIME = "time of the flow, from the stage's start"


@dataclass(frozen=True, eq=False)
class Saddle:
    """A point where a stage of a greedy path begins or the path ends.

    Attributes:
        rank: rank of A (singular values above 1e-6 of the largest).
        cost: train cost C(A): the height of the plateau.
        test_cost: test cost, or None where the cost has no test set.
        network: the point, in the width of the stage that led to it (1 for the origin).
        gradient_norm: |grad_theta C(A(theta))|: zero to the tolerance of the polish.
        strengths: singular values of G = grad C(A), descending, shape (min(n_out, n_in),).
        escape_speed: s* = L^(1 - L/2) s_1(G), in inverse time at |theta - saddle| = 1; see `theory.escape_speed`.
        multiplicity: how many singular values of G equal the largest one, to 1e-6: above 1 the next stage is one of a
            continuum of branches that differ by a rotation.
    """

    rank: int
    cost: float
    test_cost: float | None
    network: DeepLinearNetwork
    gradient_norm: float
    strengths: Float[np.ndarray, " n"]
    escape_speed: float
    multiplicity: int

    @classmethod
    def at(cls, cost: Cost, network: DeepLinearNetwork, strengths: Float[Array, " n"]) -> "Saddle":
        """The point as it is at a network, given the singular values of grad C(A) there."""
        matrix = network.end_to_end()
        values = np.linalg.svd(matrix, compute_uv=False) if np.isfinite(matrix).all() else np.full(1, np.nan)
        values_of_gradient = np.asarray(strengths)
        return cls(
            rank=int(np.sum(values > RANK_SHARE * values[0])),
            cost=float(cost(matrix)),
            test_cost=float(cost.test(matrix)) if cost.has_test else None,
            network=network,
            gradient_norm=float(geometry.norm(geometry.gradient(cost, network))),
            strengths=values_of_gradient,
            escape_speed=optimal_speed(values_of_gradient[0], network.depth),
            multiplicity=int(np.sum(values_of_gradient >= (1 - MULTIPLE) * values_of_gradient[0])),
        )

    @property
    def end_to_end(self) -> Float[np.ndarray, "n_out n_in"]:
        """The end-to-end matrix A."""
        return np.asarray(self.network.end_to_end())


@dataclass(frozen=True, repr=False, eq=False)
class GreedyPath:
    """A greedy path: stages from saddle to saddle, of rising width.

    Attributes:
        stages: stages[k] leaves saddles[k]; a network of width k + 1; times count from its own start.
        saddles: the points left, by order; the last one is also left when the last stage diverges.
        minimum: where the path ends, if it does; None if it diverges or was stopped.
        stop_reason: "converged", "diverges", "max_stages", or the reason of a stage that failed.
    """

    stages: tuple[Trajectory, ...]
    saddles: tuple[Saddle, ...]
    minimum: Saddle | None
    stop_reason: str

    @property
    def points(self) -> tuple[Saddle, ...]:
        """The saddles, and the minimum where there is one."""
        return self.saddles if self.minimum is None else (*self.saddles, self.minimum)

    def __repr__(self) -> str:
        """The result card."""
        lines = []
        for saddle in self.saddles:
            branches = f", one of the branches of a {saddle.multiplicity}-fold direction" * (saddle.multiplicity > 1)
            lines.append(
                f"rank {saddle.rank} at cost {saddle.cost:.6g}, escape speed {saddle.escape_speed:.4g}{branches}"
            )
        if self.minimum is not None:
            lines.append(f"rank {self.minimum.rank} at cost {self.minimum.cost:.6g}")
        lines.append(f"{self.stop_reason} after {len(self.stages)} stages")
        names = ["saddle"] * len(self.saddles) + ["minimum"] * (self.minimum is not None) + ["end"]
        body = "\n".join(f"  {name:<9} : {text}" for name, text in zip(names, lines, strict=True))
        return f"GreedyPath\n{body}"

    @never_raises
    def _repr_html_(self) -> str:
        """The card, with its curves and its points, for notebooks."""
        return draw_card(self)

    def plot(self, *, theme: str = "transparent", width: str = "screen") -> Figure:
        """Train and test cost of the stages, one after another, and the singular values of A below.

        Saddles are dots, the minimum is a star; three dots stand for the infinitely long wait at a saddle. A stage is
        drawn in its own time, as long as its change is seen.

            sf.saddle_to_saddle(cost, depth=3).plot()

        Args:
            theme: "transparent", "light" or "dark", as of `Trajectory.plot`.
            width: "column", "double", "screen" or "slide".

        Returns:
            The figure, of matplotlib.

        Raises:
            ValueError: another theme or width; a path without a stage.
        """
        require(self.stages, "path", "have a stage to draw", self.stop_reason)
        return draw_path(self, theme, width)

    def to_xarray(self) -> "xr.Dataset":
        """The path as a dataset: the stages one after another along `row`, the points along `point`.

        Networks are not in it: a path is of many widths. `save` keeps them.
        """
        stages, points = self.stages, self.points
        empty = np.zeros((0, *points[0].network.shape))  # a path may have no stage
        rows = {
            "stage": (np.repeat(np.arange(len(stages)), [len(s.time) for s in stages]), "index"),
            "time": (np.concatenate([empty[:, 0, 0], *(s.time for s in stages)]), _STAGE_TIME),
            "train_cost": (np.concatenate([empty[:, 0, 0], *(s.train_cost for s in stages)]), "cost"),
            "end_to_end": (np.concatenate([empty, *(s.end_to_end for s in stages)]), "entries of the target"),
        }
        along_points = {
            "point_rank": (np.array([p.rank for p in points]), "1"),
            "point_cost": (np.array([p.cost for p in points]), "cost"),
            "point_end_to_end": (np.stack([p.end_to_end for p in points]), "entries of the target"),
            "point_gradient_norm": (np.array([p.gradient_norm for p in points]), "cost / parameter"),
            "point_strengths": (np.stack([p.strengths for p in points]), "cost / entry of the target"),
            "escape_speed": (np.array([p.escape_speed for p in points]), "1 / time of the flow"),
            "multiplicity": (np.array([p.multiplicity for p in points]), "1"),
        }
        if points[0].test_cost is not None:
            tests = [np.asarray(s.test_cost) for s in stages]
            rows["test_cost"] = (np.concatenate([empty[:, 0, 0], *tests]), "cost")
            along_points["point_test_cost"] = (np.array([p.test_cost for p in points]), "cost")
        inner = {1: (), 2: ("mode",), 3: ("n_out", "n_in")}
        return xr.Dataset(
            {
                name: ((dim, *inner[values.ndim]), values, {"units": units})
                for dim, table in (("row", rows), ("point", along_points))
                for name, (values, units) in table.items()
            },
            attrs={
                "stop_reason": self.stop_reason,
                "num_stages": len(stages),
                "num_saddles": len(self.saddles),
                "versions": json.dumps(versions()),
            },
        )

    @takes(path=arguments.path, force=arguments.boolean)
    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the path as NetCDF, whole or not at all: `load_path` reads it.

        The file's root is the dataset of `to_xarray`. Beside it stand the groups `stage_0`, `stage_1`, ..., each a
        trajectory's dataset, and `point_0`, `point_1`, ..., each the layers of a point's network.

        Args:
            path: where to; by custom it ends in .nc.
            force: overwrite an existing file.

        Raises:
            ValueError: the path exists (without force) or cannot be written.
            OSError: the disk is full; nothing is half-written.
        """
        check_writable(path, force)  # before the datasets are made
        groups = {f"stage_{k}": stage.to_xarray() for k, stage in enumerate(self.stages)}
        groups |= {f"point_{k}": _layers(point.network) for k, point in enumerate(self.points)}
        return write_netcdf(self.to_xarray(), path, force, groups)


@takes(**FILE)
def load_path(path: str | Path, cost: Cost | None = None) -> GreedyPath:
    """Read a greedy path that `GreedyPath.save` wrote, bit for bit.

    >>> cost = sf.MatrixCompletion(np.diag([2.0, 1.0]), np.ones((2, 2), bool))
    >>> limit = sf.saddle_to_saddle(cost, depth=3)
    >>> file = limit.save("path.nc")
    >>> sf.load_path(file, cost).stop_reason == limit.stop_reason
    True

    Args:
        path: the file.
        cost: the cost of the path, which files do not hold; the stages then have it, as they had.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of something else.
    """
    with readable(path, "hold a greedy path, as GreedyPath.save writes it"):
        root = read_netcdf(path)
        require("num_saddles" in root.attrs, "path", "hold a greedy path, as GreedyPath.save writes it", str(path))
        count, num_saddles = int(root.attrs["num_stages"]), int(root.attrs["num_saddles"])
        stages = tuple(from_xarray(read_netcdf(path, f"stage_{k}"), cost) for k in range(count))
        points = [_point(root.isel(point=k), read_netcdf(path, f"point_{k}")) for k in range(root.sizes["point"])]
        minimum = points[num_saddles] if len(points) > num_saddles else None
        return GreedyPath(stages, tuple(points[:num_saddles]), minimum, root.attrs["stop_reason"])


def _layers(network: DeepLinearNetwork) -> "xr.Dataset":
    """The layers of a network, by the number of the space on each side."""
    return xr.Dataset(
        {
            f"layer_{index}": ((f"space_{index}", f"space_{index - 1}"), np.asarray(layer), {"units": "parameter"})
            for index, layer in enumerate(network.layers, start=1)
        }
    )


def _point(data: "xr.Dataset", layers: "xr.Dataset") -> Saddle:
    """A point of a path from its entries in the root of a file, and from its layers."""
    return Saddle(
        rank=int(data.point_rank),
        cost=float(data.point_cost),
        test_cost=float(data.point_test_cost) if "point_test_cost" in data else None,
        network=DeepLinearNetwork(layers[f"layer_{i}"].values for i in range(1, len(layers) + 1)),
        gradient_norm=float(data.point_gradient_norm),
        strengths=data.point_strengths.values,
        escape_speed=float(data.escape_speed),
        multiplicity=int(data.multiplicity),
    )
