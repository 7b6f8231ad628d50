"""What a run returns: a trajectory that prints, plots, converts and saves itself."""

import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from saddleflow import observables as obs
from saddleflow import plotting
from saddleflow.checks import require
from saddleflow.files import written_whole
from saddleflow.network import DeepLinearNetwork
from saddleflow.reduction import ReducedNetwork
from saddleflow.saddles import SaddleVisit, find_visits

# The numerical rank counts singular values above this share of the largest one seen in the run. The paper cuts
# at 1e-1 where the targets' singular values are of order 10.
RELATIVE_RANK_TOLERANCE = 1e-2


@dataclass(frozen=True, repr=False)
class Trajectory:
    """One gradient-flow trajectory, on the host, with time as the first axis of every array.

    Attributes:
        time: saved times, shape (time,), in units of the flow dtheta/dt = -grad C.
        end_to_end: A at those times, shape (time, n_out, n_in).
        train_cost: C(A), shape (time,).
        test_cost: the test cost, shape (time,), or None where the cost has no test set.
        gradient_norm: |grad_theta C(A(theta))|, shape (time,).
        observables: further quantities by name, each of shape (time, ...).
        network: the final network.
        networks: the network at every saved time (layers with a leading time axis), if asked for, else None.
        stop_reason: "converged" (grad C(A) = 0 to tolerance: a certified minimum of the convex C), "t1",
            "max_steps", "max_seconds", "step_size_underflow", "non_finite", "stop" or "stationary_saddle" (the
            start is a saddle: its gradient in theta is zero up to rounding, grad C(A) is not).
        stats: num_steps, num_accepted_steps, num_rejected_steps; num_vector_field_evaluations and
            num_hessian_vector_products, rejected steps included (None where the solver does not tell); for the
            stiff solver num_preconditioner_applications, mean_krylov_dimension and max_krylov_dimension (products
            a step); balancedness_drift (largest |D_l(end) - D_l(0)|_F over the largest
            |W_l|_F^2), seconds.
        configuration: what ran: cost, network, solver, tolerances. Plain numbers and strings.
        reduced: the reduced network that ran (`saddleflow.reduction`), else None; not saved.
        singular_values: of A, in descending order, shape (time, min(n_out, n_in)).
        rank_tolerance: singular values above it count for `rank`; given as None, a hundredth of the run's
            largest singular value.
    """

    time: Float[np.ndarray, " time"]
    end_to_end: Float[np.ndarray, "time n_out n_in"]
    train_cost: Float[np.ndarray, " time"]
    test_cost: Float[np.ndarray, " time"] | None
    gradient_norm: Float[np.ndarray, " time"]
    observables: dict[str, np.ndarray]
    network: DeepLinearNetwork
    networks: DeepLinearNetwork | None
    stop_reason: str
    stats: dict[str, Any]
    configuration: dict[str, Any]
    rank_tolerance: float | None
    reduced: ReducedNetwork | None = None
    singular_values: Float[np.ndarray, "time n"] = field(init=False)

    def __post_init__(self):
        finite = np.isfinite(self.end_to_end).all(axis=(1, 2))
        values = np.full((len(self.time), min(self.end_to_end.shape[1:])), np.nan)
        values[finite] = np.linalg.svd(self.end_to_end[finite], compute_uv=False)
        object.__setattr__(self, "singular_values", values)
        if self.rank_tolerance is None:
            largest = values.max(initial=0.0, where=np.isfinite(values))
            object.__setattr__(self, "rank_tolerance", RELATIVE_RANK_TOLERANCE * float(largest))

    @property
    def rank(self) -> Int[np.ndarray, " time"]:
        """Numerical rank of A: singular values above `rank_tolerance`, shape (time,)."""
        return obs.rank(self.singular_values, self.rank_tolerance or 0.0)

    @property
    def nuclear_norm(self) -> Float[np.ndarray, " time"]:
        """Sum of the singular values of A, shape (time,)."""
        return obs.nuclear_norm(self.singular_values)

    @property
    def reduction_error_estimate(self) -> float | None:
        """Estimated sup over time of |A - A_full|_F, the error of the width reduction; None where there was none."""
        return self.stats.get("reduction_error_estimate")

    def saddles(self) -> list[SaddleVisit]:
        """The saddles visited, in order; empty for a run without plateaus."""
        return find_visits(self.time, self.train_cost, self.gradient_norm, self.rank)

    def __repr__(self) -> str:
        """The result card."""
        run, stats = self.configuration, self.stats
        counts = (("num_vector_field_evaluations", "vector fields"), ("num_hessian_vector_products", "products"))
        work = "".join(f"{stats[key]} {name}, " for key, name in counts if stats.get(key))
        test = "" if self.test_cost is None else f", test {self.test_cost[-1]:.3e}"
        visits = ", ".join(f"rank {v.rank} at cost {v.cost:.4g}" for v in self.saddles())
        lines = [
            f"{run['cost']} {run['shape'][0]}x{run['shape'][1]}, depth {run['depth']}, width {run['width']}, "
            f"{run['num_parameters']} parameters",
            f"{run['solver']}, rtol {run['rtol']:.1e}",
            f"{self.stop_reason} at t = {self.time[-1]:.6g}",
            f"{stats['num_steps']} ({stats['num_accepted_steps']} accepted, "
            f"{stats['num_rejected_steps']} rejected), " + f"{work}{stats['seconds']:.2f} s",
            f"train {self.train_cost[-1]:.3e}{test}",
            f"{self.rank[-1]} (singular values above {self.rank_tolerance:.2g})",
            visits or "no plateau",
            f"balancedness kept to {stats['balancedness_drift']:.1e}",
        ]
        if self.reduction_error_estimate is not None:
            widths = ", ".join(map(str, run["reduced_widths"]))
            lines[0] += f", reduced to ({widths}) with error {self.reduction_error_estimate:.1e} in A"
        names = ("task", "solver", "end", "steps", "cost", "rank", "saddles", "invariant")
        body = "\n".join(f"  {name:<9} : {text}" for name, text in zip(names, lines, strict=True))
        return f"Trajectory\n{body}"

    def plot(self, *, log_time: bool = False) -> Figure:
        """Train and test cost above, singular values of A below, against time; saddles marked by their rank.

        Args:
            log_time: put time on a logarithmic axis (the start at t = 0 is then left out).
        """
        with plotting.style():
            figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(4.2, 4.2))
            top.semilogy(self.time, self.train_cost, color=plotting.BLUE, label="train")
            if self.test_cost is not None:
                top.semilogy(self.time, self.test_cost, "--", color=plotting.ORANGE, label="test")
            for visit in self.saddles():
                top.plot(visit.time, visit.cost, "o", ms=4, color=plotting.RED)
                top.annotate(
                    f"rank {visit.rank}",
                    (visit.time, visit.cost),
                    xytext=(3, 4),
                    textcoords="offset points",
                    color=plotting.RED,
                )
            top.set_ylabel("cost")
            top.legend()
            bottom.plot(self.time, self.singular_values, color=plotting.BLUE)
            bottom.axhline(self.rank_tolerance, color=plotting.MUTED, lw=0.7, ls=":")
            bottom.set(ylabel="singular values of A", xlabel="time t of the flow")
            if log_time:
                bottom.set_xscale("log")
        return figure

    def to_xarray(self) -> xr.Dataset:
        """The trajectory as a dataset: named dimensions, units in attributes, configuration and versions as JSON."""
        along = {
            "train_cost": (("time",), self.train_cost, "cost"),
            "gradient_norm": (("time",), self.gradient_norm, "cost / parameter"),
            "end_to_end": (("time", "n_out", "n_in"), self.end_to_end, "entries of the target"),
            "singular_values": (("time", "mode"), self.singular_values, "entries of the target"),
            "rank": (("time",), self.rank, "1"),
            "nuclear_norm": (("time",), self.nuclear_norm, "entries of the target"),
        }
        if self.test_cost is not None:
            along["test_cost"] = (("time",), self.test_cost, "cost")
        for name, values in self.observables.items():
            dims = ("time", *(f"{name}_{axis}" for axis in range(values.ndim - 1)))
            along[f"observable_{name}"] = (dims, values, "")
        sizes = ["n_in", *(f"hidden_{i}" for i in range(1, self.network.depth)), "n_out"]
        for index, layer in enumerate(self.network.layers):
            dims = (sizes[index + 1], sizes[index])
            along[f"layer_{index + 1}"] = (dims, np.asarray(layer), "parameter")
            if self.networks is not None:
                saved = np.asarray(self.networks.layers[index])
                along[f"layers_{index + 1}"] = (("time", *dims), saved, "parameter")
        return xr.Dataset(
            {name: (dims, values, {"units": units}) for name, (dims, values, units) in along.items()},
            coords={"time": ("time", self.time, {"units": "time of the flow dtheta/dt = -grad C"})},
            attrs={
                "stop_reason": self.stop_reason,
                "stats": json.dumps(self.stats),
                "configuration": json.dumps(self.configuration),
                "rank_tolerance": self.rank_tolerance,
                "versions": json.dumps(_versions()),
            },
        )

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the trajectory as NetCDF, whole or not at all.

        Args:
            path: where to; by custom it ends in .nc.
            force: overwrite an existing file.

        Raises:
            ValueError: the path exists (without force) or cannot be written.
        """
        with written_whole(path, force) as temporary:
            self.to_xarray().to_netcdf(temporary, engine="h5netcdf")
        return Path(path)


def load(path: str | Path) -> Trajectory:
    """Read a trajectory that `Trajectory.save` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a NetCDF file of something else.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"`path`: there is no file {str(path)!r}.")
    with xr.open_dataset(path, engine="h5netcdf") as file:
        data = file.load()
    require("stop_reason" in data.attrs, "path", "hold a saddleflow trajectory", str(path))
    configuration = json.loads(data.attrs["configuration"])
    numbers = range(1, configuration["depth"] + 1)
    networks = None
    if "layers_1" in data:
        saved = tuple(jnp.asarray(data[f"layers_{i}"].values) for i in numbers)
        template = DeepLinearNetwork([layer[0] for layer in saved])
        networks = jax.tree.unflatten(jax.tree.structure(template), saved)
    prefix = "observable_"
    return Trajectory(
        time=data["time"].values,
        end_to_end=data["end_to_end"].values,
        train_cost=data["train_cost"].values,
        test_cost=data["test_cost"].values if "test_cost" in data else None,
        gradient_norm=data["gradient_norm"].values,
        observables={
            str(name).removeprefix(prefix): values.values
            for name, values in data.items()
            if str(name).startswith(prefix)
        },
        network=DeepLinearNetwork(jnp.asarray(data[f"layer_{i}"].values) for i in numbers),
        networks=networks,
        stop_reason=data.attrs["stop_reason"],
        stats=json.loads(data.attrs["stats"]),
        configuration=configuration,
        rank_tolerance=float(data.attrs["rank_tolerance"]),
    )


def _versions() -> dict[str, str]:
    packages = ("saddleflow", "jax", "jaxlib", "diffrax", "equinox", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
