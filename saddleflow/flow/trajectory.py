"""What a run returns: a trajectory that prints, plots, converts and saves itself."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lazy_loader as lazy
import numpy as np
from jaxtyping import Array, Float, Int

from saddleflow._backend.arguments import takes
from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import require
from saddleflow._backend.files import readable, require_room
from saddleflow.flow import observables as obs
from saddleflow.flow.clock import SegmentedTime
from saddleflow.flow.history import History
from saddleflow.flow.residual import Residual, residual
from saddleflow.flow.visits import SaddleVisit, find_visits, inspect, learned_directions, nearest
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.readers import FILE
from saddleflow.problem.symmetry import balancedness_drift

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
else:
    xr = lazy.load("xarray")
    Figure = Any  # loading matplotlib takes longer than most flows


# Costs of saved matrices are computed for so many numbers at once: 16 MB.
MAX_BLOCK = 2_000_000


@dataclass(frozen=True, repr=False, eq=False)
class Trajectory(History):
    """One gradient-flow trajectory of a network, on the host, with time as the first axis of every array.

    Attributes:
        time: saved times, shape (time,), in units of the flow dtheta/dt = -grad C.
        end_to_end: A at those times, shape (time, n_out, n_in).
        train_cost: C(A), shape (time,).
        test_cost: the test cost, shape (time,), or None where the cost has no test set.
        gradient_norm: |grad_theta C(A(theta))|, shape (time,).
        observables: further quantities by name, each of shape (time, ...).
        network: the final network.
        networks: the network at every saved time (layers with a leading time axis), if asked for, else None.
        stop_reason: why the run ended, the name of a `saddleflow.StopReason`, which says what each means.
        stats: num_steps, num_accepted_steps, num_rejected_steps; num_vector_field_evaluations and
            num_hessian_vector_products, rejected steps included (None where the solver does not tell); for the
            stiff solver num_tail_steps (of the method of long tails), num_preconditioner_applications,
            mean_krylov_dimension and max_krylov_dimension (products a step); balancedness_drift (largest
            |D_l(end) - D_l(0)|_F over the largest |W_l|_F^2), seconds, and compile_seconds of them.
        configuration: what ran: cost, network, solver, tolerances. Plain numbers and strings.
        reduced: the reduced network that ran (`saddleflow.width.projected`), else None; not saved.
        asked_rank_tolerance: as given to the run, or None.
        parts: of a continued flow the flows one by one (`saddleflow.continue_flow`); not saved.
    """

    end_to_end: Float[np.ndarray, "time n_out n_in"]
    network: DeepLinearNetwork
    networks: DeepLinearNetwork | None
    asked_rank_tolerance: float | None
    cost: Cost | None = None
    dips: tuple[np.ndarray, DeepLinearNetwork] | None = None
    reduced: Any = None
    parts: tuple["Trajectory", ...] = ()

    @cached_property
    def singular_values(self) -> Float[np.ndarray, "time n"]:
        """Of A, in descending order, shape (time, min(n_out, n_in)); computed when first asked for."""
        return obs.singular_values(self.end_to_end, min(self.network.hidden_widths, default=None))

    @cached_property
    def rank_tolerance(self) -> float:
        """Singular values above it count for `rank`.

        Unless it was given to the run, a hundredth of the largest singular value until the cost has fallen half-way.
        Of noisy data the flow learns the noise too, as directions of their own, and this default counts them;
        `rank_gap` says how well the rank is defined.
        """
        if self.asked_rank_tolerance is not None:
            return self.asked_rank_tolerance
        return obs.default_rank_tolerance(self.singular_values, self.train_cost)

    @property
    def matrix_name(self) -> str:
        """The end-to-end matrix."""
        return "A"

    @property
    def rank(self) -> Int[np.ndarray, " time"]:
        """Numerical rank of A: singular values above `rank_tolerance`, shape (time,)."""
        return obs.rank(self.singular_values, self.rank_tolerance)

    @property
    def rank_gap(self) -> Float[np.ndarray, " time"]:
        """The last singular value that counts for `rank` over the first that does not, shape (time,).

        A large gap says that the rank is well defined; one near 1, that another `rank_tolerance` would give another
        rank, as under noise. Infinite where all values count or the next is zero; NaN where none counts.
        """
        return obs.rank_gap(self.singular_values, self.rank)

    @cached_property
    def residual(self) -> Residual | None:
        """The gradient of the cost at the end, and what it leaves to learn; None without a cost, or at a NaN.

        trajectory.residual.norm, trajectory.residual.relative, trajectory.residual.left
        """
        if self.cost is None or not np.isfinite(self.end_to_end[[0, -1]]).all():
            return None
        return residual(self.cost, self.end_to_end[0], self.end_to_end[-1])

    @property
    def nuclear_norm(self) -> Float[np.ndarray, " time"]:
        """Sum of the singular values of A, shape (time,)."""
        return obs.nuclear_norm(self.singular_values)

    @property
    def reduction_error_estimate(self) -> float | None:
        """Estimated sup over time of |A - A_full|_F, the error of the width reduction; None where there was none."""
        return self.stats.get("reduction_error_estimate")

    def _find_visits(self) -> list[SaddleVisit]:
        if self.network.depth == 1:  # a convex loss has no saddles
            return []

        def learned(here: int, later: int) -> int:
            return learned_directions(self.end_to_end[here], self.end_to_end[later], self.rank_tolerance)

        found: list[SaddleVisit] = []
        for rows in self._spans:
            clock = SegmentedTime(self.clock.segment[rows], self.clock.within[rows], self.clock.durations)
            visits = find_visits(
                clock,
                self.train_cost[rows],
                self.gradient_norm[rows],
                self.rank[rows],
                lambda here, later, first=rows.start: learned(first + here, first + later),
                self.network.depth,
                self.follows_flow,
            )
            found += [visit.moved(rows.start, 0.0, float(clock.time[0])) for visit in visits]
        return found

    @property
    def _spans(self) -> list[slice]:
        """The rows of each part of a continued flow, or all of them."""
        ends = [0, *self.configuration.get("switch_rows", []), len(self.time)]
        return [slice(*pair) for pair in pairwise(ends)]

    def _inspect_visits(self) -> list[SaddleVisit]:
        if self.parts:
            return [
                visit.moved(rows.start, float(self.time[rows.start] - part.time[0]), float(self.time[rows.start]))
                for rows, part in zip(self._spans, self.parts, strict=True)
                for visit in part.saddles()
            ]
        if self.cost is None or self.dips is None:
            return self._visits
        networks = [nearest(self.dips, visit) for visit in self._visits]
        return [
            visit if network is None else inspect(visit, self.cost, network)
            for visit, network in zip(self._visits, networks, strict=True)
        ]

    def __repr__(self) -> str:
        """The result card."""
        run, stats = self.configuration, self.stats
        gap = self.rank_gap[-1]
        width = f"width {run['width']}, " if run["depth"] > 1 else ""
        lines = [
            f"{run['cost']} {run['shape'][0]}x{run['shape'][1]}, depth {run['depth']}, {width}"
            f"{run['num_parameters']} parameters",
            self._method_line(),
            f"{self.stop_reason} at t = {self.time[-1]:.6g}",
            self._work_line(),
            self._cost_line(),
            f"{self.rank[-1]} (singular values above {self.rank_tolerance:.2g}"
            + (f", by a gap of {gap:.2g})" if np.isfinite(gap) else ")"),
            self._saddles_line(),
            f"balancedness kept to {stats['balancedness_drift']:.1e}",
        ]
        if self.reduction_error_estimate is not None:
            widths = ", ".join(map(str, run["reduced_widths"]))
            lines[0] += f", reduced to ({widths}) with error {self.reduction_error_estimate:.1e} in A"
        if len(self._spans) > 1:
            times = ", ".join(f"{self.time[rows.start - 1]:.6g}" for rows in self._spans[1:])
            lines[0] += f"; {' then '.join(run['costs'])}, switched at t = {times}"
        names = ["task", "solver", "end", "steps", "cost", "rank", "saddles", "invariant"]
        for name, line in [*self._stability_lines(), *self._residual_lines()]:
            names.append(name)
            lines.append(line)
        body = "\n".join(f"  {name:<9} : {text}" for name, text in zip(names, lines, strict=True))
        return f"Trajectory\n{body}"

    def _residual_lines(self) -> list[tuple[str, str]]:
        """What the card says of the gradient at the end; of a run without its cost, nothing."""
        rest = self.residual
        if rest is None:
            return []
        lines = [
            ("residual", f"|grad C(A)| {rest.norm:.1e}, relative (as in gradient_tolerance) {rest.relative:.1e}")
        ]
        if self.stop_reason == "converged" and rest.left is not None:
            remedy = 0.1 * rest.left / rest.unit
            lines.append(
                (
                    "left",
                    f"a direction that a longer flow would learn: grad C(A) has the singular value {rest.left:.1e} "
                    f"outside the learned ones; take gradient_tolerance={remedy:.0e}",
                )
            )
        return lines

    def to_xarray(self) -> "xr.Dataset":
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
            if self.dips is not None:
                along[f"dip_layer_{index + 1}"] = (
                    ("dip", *dims),
                    np.asarray(self.dips[1].layers[index]),
                    "parameter",
                )
        if self.dips is not None:
            along["dip_time"] = (("dip",), self.dips[0], self.time_unit)
        return self._dataset(along, rank_tolerance=self.rank_tolerance)


def assemble(
    cost: Cost,
    start: DeepLinearNetwork,
    end: DeepLinearNetwork,
    rows: dict[str, Any],
    *,
    stop_reason: str,
    stats: dict[str, Any],
    configuration: dict[str, Any],
    capacity: int | None = None,
    durations: Float[np.ndarray, " segments"] | None = None,
    rank_tolerance: float | None = None,
    dips: tuple[np.ndarray, DeepLinearNetwork] | None = None,
) -> Trajectory:
    """The trajectory of a run, whoever ran it: the one place where results are put together.

    Args:
        cost: the cost.
        start: the network at the start.
        end: the network at the end.
        rows: what `loop.observe` records, with a leading axis of rows: time, end_to_end, gradient_norm; segment and
            within where the times come in segments; observables and network (None: not saved) where there are any.
        stop_reason: name of a `StopReason`.
        stats: counts and seconds; balancedness_drift is added.
        configuration: what ran; the cost's and the network's own data are added.
        capacity: of the rows: their number changes no program up to it.
        durations: lengths of the finished segments of time; None: times that float64 resolves as they are.
        rank_tolerance: absolute cut for the rank, or None.
        dips: times and networks of the dips of the gradient norm.
    """
    train_cost, test_cost = costs_of(cost, rows["end_to_end"], capacity)
    times = SegmentedTime.plain(rows["time"])
    if durations is not None:
        times = SegmentedTime(rows["segment"], rows["within"], durations)
    return Trajectory(
        time=rows["time"],
        clock=times,
        end_to_end=rows["end_to_end"],
        train_cost=train_cost,
        test_cost=test_cost,
        gradient_norm=rows["gradient_norm"],
        observables=rows.get("observables", {}),
        network=end,
        networks=rows.get("network"),
        stop_reason=stop_reason,
        stats=stats | {"balancedness_drift": balancedness_drift(start, end)},
        configuration={
            "cost": type(cost).__name__,
            "shape": list(end.shape),
            "depth": end.depth,
            "width": end.width,
            "num_parameters": end.num_parameters,
        }
        | configuration,
        asked_rank_tolerance=rank_tolerance,
        cost=cost,
        dips=dips,
    )


def costs_of(
    cost: Cost, matrices: Float[np.ndarray, "rows n_out n_in"], capacity: int | None = None
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"] | None]:
    """Train cost, and test cost where there is one, of every matrix; by one program for up to `capacity` of them."""
    count = len(matrices)
    if count == 0:
        return np.zeros(0), np.zeros(0) if cost.has_test else None
    block = max(1, min(max(capacity or count, count), MAX_BLOCK // math.prod(cost.shape)))
    train, test = [], []
    for first in range(0, count, block):
        here = matrices[first : first + block]
        if len(here) < block:
            here = np.concatenate([here, np.zeros((block - len(here), *cost.shape))])
        one, other = _costs(cost, on_device(here))
        train.append(np.asarray(one))
        if other is not None:
            test.append(np.asarray(other))
    known = np.concatenate(test)[:count] if cost.has_test else None
    return np.concatenate(train)[:count], known


@eqx.filter_jit
def _costs(cost: Cost, matrices: Float[Array, "rows n_out n_in"]) -> tuple[Array, Array | None]:
    """Train and test cost of every row."""
    return jax.vmap(cost)(matrices), jax.vmap(cost.test)(matrices) if cost.has_test else None


@takes(**FILE)
def load(path: str | Path, cost: Cost | None = None) -> Trajectory:
    """Read a trajectory that `Trajectory.save` wrote.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> run = sf.gradient_flow(cost, start)
    >>> file = run.save("run.nc")
    >>> bool(np.all(sf.load(file).train_cost == run.train_cost))
    True

    Args:
        path: the file.
        cost: the cost of the run, which files do not hold; needed only for the stationary points of `saddles`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a NetCDF file of something else.
    """
    with readable(path, "hold a saddleflow trajectory"):
        data = read_netcdf(path)
        ours = {"stop_reason", "configuration", "stats"} <= set(data.attrs)
        require(ours, "path", "hold a saddleflow trajectory", str(path))
        require(
            "end_to_end" in data,
            "path",
            "hold the trajectory of a network",
            f"that of a model, {path}",
            "Read it with xarray.open_dataset(path, engine='h5netcdf'): a file holds numbers, and no functions.",
        )
        return from_xarray(data, cost)


def read_netcdf(path: str | Path, group: str | None = None) -> "xr.Dataset":
    """A dataset of a file that may be anything, read whole where memory allows it.

    Raises:
        ValueError: it declares more numbers than memory can hold.
    """
    with xr.open_dataset(path, group=group, engine="h5netcdf", decode_times=False, phony_dims="access") as file:
        require_room(file.nbytes, Path(path))
        return file.load()


def from_xarray(data: "xr.Dataset", cost: Cost | None = None) -> Trajectory:
    """The trajectory that `Trajectory.to_xarray` made a dataset of, bit for bit; the cost as in `load`."""
    configuration = _configuration(data.attrs["configuration"])
    numbers = range(1, configuration["depth"] + 1)

    final = DeepLinearNetwork(jnp.asarray(data[f"layer_{i}"].values) for i in numbers)

    def stacked(name: str) -> DeepLinearNetwork | None:
        """Layers with a leading axis, which the constructor would refuse."""
        if f"{name}_1" not in data:
            return None
        layers = [jnp.asarray(data[f"{name}_{i}"].values) for i in numbers]
        return jax.tree.unflatten(jax.tree.structure(final), layers)

    dips = stacked("dip_layer")
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
        network=final,
        networks=stacked("layers"),
        stop_reason=data.attrs["stop_reason"],
        stats=_stats(data.attrs["stats"]),
        configuration=configuration,
        asked_rank_tolerance=float(data.attrs["rank_tolerance"]),
        clock=SegmentedTime(*(data[f"clock_{name}"].values for name in ("segment", "within", "durations"))),
        cost=cost,
        dips=None if dips is None else (data["dip_time"].values, dips),
    )


# What the card of a loaded trajectory needs of the record, and the kinds of it.
_RECORD = {"cost": str, "shape": list, "depth": int, "num_parameters": int, "solver": str}
_COUNTS = ("num_steps", "seconds", "balancedness_drift")


def _configuration(text: str) -> dict[str, Any]:
    """The configuration of a run from its JSON, which has no tuples: unequal widths are one.

    Raises:
        ValueError: it lacks what every run has.
    """
    found = json.loads(text)
    sound = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in _RECORD.items())
    require(sound, "path", f"record {', '.join(_RECORD)} of the run", text)
    width = found["width"]
    return found | {"width": tuple(width) if isinstance(width, list) else width}


def _stats(text: str) -> dict[str, Any]:
    """The counts of a run from their JSON.

    Raises:
        ValueError: they lack what every run has.
    """
    found = json.loads(text)
    sound = isinstance(found, dict) and all(isinstance(found.get(name), int | float) for name in _COUNTS)
    require(sound, "path", f"record {', '.join(_COUNTS)} of the run", text)
    return found
