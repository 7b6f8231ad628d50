"""What trajectories of networks and of models share: times, costs, gradient norms, what they tell of saddles."""

import abc
import functools
import json
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader as lazy
import numpy as np
from jaxtyping import Float, Int

from saddleflow._backend import arguments
from saddleflow._backend.arguments import takes
from saddleflow._backend.files import check_writable, write_netcdf
from saddleflow.flow.clock import SegmentedTime
from saddleflow.flow.pictures import draw_card, draw_trajectory
from saddleflow.flow.state import StopReason
from saddleflow.flow.visits import Saddles, SaddleVisit
from saddleflow.plotting.cards import never_raises

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
else:
    xr = lazy.load("xarray")
    Figure = Any  # loading matplotlib takes longer than most flows


@dataclass(frozen=True, repr=False, eq=False)
class History(abc.ABC):
    """The part of a trajectory that needs neither a network nor a model; see `Trajectory` and `ModelTrajectory`."""

    time: Float[np.ndarray, " time"]
    train_cost: Float[np.ndarray, " time"]
    test_cost: Float[np.ndarray, " time"] | None
    gradient_norm: Float[np.ndarray, " time"]
    observables: dict[str, np.ndarray]
    stop_reason: str
    stats: dict[str, Any]
    configuration: dict[str, Any]
    clock: SegmentedTime

    @property
    @abc.abstractmethod
    def matrix_name(self) -> str | None:
        """What the singular values are those of, for pictures; None where there is no matrix with several."""

    @abc.abstractmethod
    def _find_visits(self) -> list[SaddleVisit]:
        """The saddles visited, as the rows show them."""

    @abc.abstractmethod
    def _inspect_visits(self) -> list[SaddleVisit]:
        """The saddles visited, with the stationary points behind them."""

    @abc.abstractmethod
    def to_xarray(self) -> "xr.Dataset":
        """The trajectory as a dataset."""

    def saddles(self, *, stationary_points: bool = True) -> Saddles:
        """The saddles visited, in order of time, each with the stationary point behind it; computed once.

        Empty for a run without plateaus (lazy training); `repr` then says "no plateau". A start that is still on its
        first plateau at the end has not visited it. A saddle is a place, not a rank: escapes that merge (equal or
        near-equal singular values) raise the rank by more than one from a visit to the next, and two visits may have
        one rank, where the flow exchanges what it has learned.

        >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
        >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=2.5)
        >>> trajectory = sf.gradient_flow(cost, start)
        >>> for visit in trajectory.saddles():
        ...     print(f"rank {visit.rank}, cost {visit.cost:.4f}, left at t = {visit.escape_time:.1f}")
        rank 0, cost 2.6837, left at t = 101.5
        rank 1, cost 1.3955, left at t = 119.7
        >>> list(trajectory.saddles().to_pandas())[:4]
        ['rank', 'cost', 'time', 'gradient_norm']

        Args:
            stationary_points: False: what the saved rows alone show, at once; the fields of a visit from
                `predicted_speed` on are then None, and the ranks a first guess.
        """
        return self._visits if not stationary_points else self._inspected

    @cached_property
    def _visits(self) -> Saddles:
        return Saddles(self._find_visits())

    @cached_property
    def _inspected(self) -> Saddles:
        return Saddles(self._inspect_visits())

    @property
    def num_escapes(self) -> Int[np.ndarray, " time"]:
        """Number of escapes behind each saved time, shape (time,)."""
        rows = np.arange(len(self.time))
        return sum((rows > visit.escape[0] for visit in self._visits), start=np.zeros(len(rows), int))

    @property
    def time_since_escape(self) -> Float[np.ndarray, " time"]:
        """Time since the last escape (the start, before the first), resolved where `time` is not; shape (time,)."""
        origins = [(0, 0.0), *(visit.escape for visit in self._visits)]
        since = np.stack([self.clock.since(*origin) for origin in origins])
        return since[self.num_escapes, np.arange(len(self.time))]

    @property
    def arc_length(self) -> Float[np.ndarray, " time"]:
        """Length of the path of theta so far, by the trapezoidal rule over the rows; shape (time,)."""
        means = (self.gradient_norm[1:] + self.gradient_norm[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(means * self.clock.steps)])

    @property
    def is_descent(self) -> bool:
        """Whether it is gradient descent, with its learning rate, and no flow."""
        return "learning_rate" in self.configuration

    @property
    def follows_flow(self) -> bool:
        """Whether the loss falls as `-|grad|^2` says: of flows, and of plain gradient descent on all samples."""
        return self.configuration.get("follows_flow", True)

    @property
    def time_unit(self) -> str:
        """What time is, for datasets and pictures."""
        return "learning rate times steps" if self.is_descent else TIME_UNIT

    def _method_line(self) -> str:
        """What ran, for the card."""
        run = self.configuration
        if not self.is_descent:
            return f"{run['solver']}, rtol {run['rtol']:.1e}"
        rate = run["learning_rate"]
        words = [run["solver"], "learning rate by a schedule" if rate is None else f"learning rate {rate:.1e}"]
        if "num_samples" in run:
            share = "all" if run["batch_size"] is None else f"{run['batch_size']} of {run['num_samples']}"
            words.append(f"{share} samples in a step")
        return ", ".join(words)

    def _work_line(self) -> str:
        """Steps and evaluations, for the card."""
        stats = self.stats
        if "num_epochs" in stats:
            epochs = "" if stats["num_epochs"] is None else f", {stats['num_epochs']:.3g} epochs"
            return f"{stats['num_steps']}{epochs}, {stats['seconds']:.2f} s"
        counts = (("num_vector_field_evaluations", "vector fields"), ("num_hessian_vector_products", "products"))
        work = "".join(f"{stats[key]} {name}, " for key, name in counts if stats.get(key))
        return (
            f"{stats['num_steps']} ({stats['num_accepted_steps']} accepted, "
            f"{stats['num_rejected_steps']} rejected), " + f"{work}{stats['seconds']:.2f} s"
        )

    def _stability_lines(self) -> list[tuple[str, str]]:
        """What the card says of a descent that has become unstable: sharpness against 2 / learning rate."""
        found = self.stats.get("sharpness")
        if found is None:
            return []
        line = f"sharpness {found['start']:.4g} at the start"
        if found["time"] > 0:
            line += f", {found['calm']:.4g} at the least cost, t = {found['time']:.4g}"
        plain = "" if self.configuration["solver"] == "gradient descent" else " (the bound of plain gradient descent)"
        return [("stability", f"{line}; 2 / learning rate{plain} is {found['bound']:.4g}")]

    def _saddles_line(self) -> str:
        """The saddles visited; and where a run came to rest, that it did."""
        ranked = ("" if v.rank is None else f"rank {v.rank} at " for v in self._visits)
        names = [f"{rank}cost {v.cost:.4g}" for rank, v in zip(ranked, self._visits, strict=True)]
        if self.stop_reason == StopReason.stationary_saddle.name:
            names.append(f"at rest at cost {self.train_cost[-1]:.4g}")
        return ", ".join(names) or "no plateau"

    def _cost_line(self) -> str:
        test = "" if self.test_cost is None else f", test {self.test_cost[-1]:.3e}"
        return f"train {self.train_cost[-1]:.3e}{test}"

    def plot(self, *, axis: str = "t", theme: str = "transparent", width: str = "screen") -> Figure:
        """Train and test cost above, what grows below; plateaus shaded and named by their rank.

        Below stand the singular values of A, or of a model's outputs, the k-th always in one colour, with the rank
        tolerance; of outputs that are a vector, the gradient norm. ::

            trajectory.plot()
            figure = trajectory.plot(axis="log t", theme="light", width="column")
            sf.plotting.save_figure(figure, "run")  # run.png and run.pdf

        Args:
            axis: what runs along: "t"; "log t" (the start at t = 0 is then left out); "t / t_escape", in units of the
                first escape time; or "arc length", the path length of theta so far.
            theme: "transparent", legible on white and on black pages; "light"; or "dark".
            width: what the picture is for: a paper's "column" (3.4 inches) or "double" column (7), a "screen", a
                "slide".

        Returns:
            The figure, of matplotlib.

        Raises:
            ValueError: another axis, theme or width; "t / t_escape" for a run without an escape.
        """
        return draw_trajectory(self, axis, theme, width)

    @never_raises
    def _repr_html_(self) -> str:
        """The card, with its curves and its saddles, for notebooks."""
        return draw_card(self, self.__dict__.get("_inspected", self._visits))

    @takes(path=arguments.path, force=arguments.boolean)
    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the trajectory as NetCDF, whole or not at all.

        Args:
            path: where to; by custom it ends in .nc.
            force: overwrite an existing file.

        Raises:
            ValueError: the path exists (without force) or cannot be written.
            OSError: the disk is full; nothing is half-written.
        """
        check_writable(path, force)  # before the dataset is made
        return write_netcdf(self.to_xarray(), path, force)

    def _dataset(self, along: dict[str, Any], **attrs: Any) -> "xr.Dataset":
        """The dataset of variables (dims, values, units), with times, escapes, configuration and versions."""
        along = along | {
            "num_escapes": (("time",), self.num_escapes, "1"),
            "time_since_escape": (("time",), self.time_since_escape, self.time_unit),
            "clock_segment": (("time",), self.clock.segment, "1"),
            "clock_within": (("time",), self.clock.within, self.time_unit),
            "clock_durations": (("clock",), self.clock.durations, self.time_unit),
        }
        record = {
            "stats": json.dumps(self.stats),
            "configuration": json.dumps(self.configuration),
            "versions": json.dumps(versions()),
        }
        return xr.Dataset(
            {name: (dims, values, {"units": units}) for name, (dims, values, units) in along.items()},
            coords={"time": ("time", self.time, {"units": self.time_unit})},
            attrs={"stop_reason": self.stop_reason} | attrs | record,
        )


TIME_UNIT = "time of the flow dtheta/dt = -grad C"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of what computes, for the record in a file."""
    packages = ("saddleflow", "jax", "jaxlib", "diffrax", "equinox", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
