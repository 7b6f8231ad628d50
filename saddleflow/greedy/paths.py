"""What the greedy algorithms return: the saddles of a path, and the stages between them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from saddleflow._backend.files import written_whole
from saddleflow.flow.trajectory import Trajectory, versions
from saddleflow.problem import geometry
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork

# Singular values of the gradient closer than this, relative to the largest, count as one multiple value.
MULTIPLE = 1e-6

# Singular values of A below this share of the largest do not count for the rank of a (polished) saddle.
RANK_SHARE = 1e-6


@dataclass(frozen=True)
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
        multiplicity: how many singular values of G share the largest one, to 1e-6: above 1 the next stage is one of a
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
            escape_speed=float(network.depth ** (1 - network.depth / 2) * values_of_gradient[0]),
            multiplicity=int(np.sum(values_of_gradient >= (1 - MULTIPLE) * values_of_gradient[0])),
        )

    @property
    def end_to_end(self) -> Float[np.ndarray, "n_out n_in"]:
        """The end-to-end matrix A."""
        return np.asarray(self.network.end_to_end())


@dataclass(frozen=True, repr=False)
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

    def to_xarray(self) -> xr.Dataset:
        """The path as a dataset: the stages one after another along `row`, the points along `point`."""
        rows = {
            "stage": (np.concatenate([np.full(len(s.time), k) for k, s in enumerate(self.stages)]), "index"),
            "time": (np.concatenate([s.time for s in self.stages]), "time of the flow, from the stage's start"),
            "train_cost": (np.concatenate([s.train_cost for s in self.stages]), "cost"),
            "end_to_end": (np.concatenate([s.end_to_end for s in self.stages]), "entries of the target"),
        }
        points = {
            "point_rank": (np.array([p.rank for p in self.points]), "1"),
            "point_cost": (np.array([p.cost for p in self.points]), "cost"),
            "point_end_to_end": (np.stack([p.end_to_end for p in self.points]), "entries of the target"),
            "escape_speed": (np.array([p.escape_speed for p in self.points]), "1 / time of the flow"),
            "multiplicity": (np.array([p.multiplicity for p in self.points]), "1"),
        }
        if self.points[0].test_cost is not None:
            rows["test_cost"] = (np.concatenate([np.asarray(s.test_cost) for s in self.stages]), "cost")
            points["point_test_cost"] = (np.array([p.test_cost for p in self.points]), "cost")
        tables = [("row", rows), ("point", points)]
        return xr.Dataset(
            {
                name: ((dim, "n_out", "n_in")[: values.ndim], values, {"units": units})
                for dim, table in tables
                for name, (values, units) in table.items()
            },
            attrs={"stop_reason": self.stop_reason, "versions": json.dumps(versions())},
        )

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the path as NetCDF, whole or not at all; raises ValueError if it exists (without force)."""
        with written_whole(path, force) as temporary:
            self.to_xarray().to_netcdf(temporary, engine="h5netcdf")
        return Path(path)
