"""What a run of a model returns: its outputs, losses and saddles along the flow."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import lazy_loader as lazy
import numpy as np
from jaxtyping import Array, Float, Int

from saddleflow.flow import observables as obs
from saddleflow.flow.clock import SegmentedTime
from saddleflow.flow.critical import nearest_critical_point
from saddleflow.flow.history import History
from saddleflow.flow.model_landscape import ModelLandscape, Vector
from saddleflow.flow.state import StopReason
from saddleflow.flow.visits import SaddleVisit, find_visits, nearest

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = lazy.load("xarray")


@dataclass(frozen=True, repr=False, eq=False)
class ModelTrajectory(History):
    """One gradient-flow trajectory of a model, on the host, with time as the first axis of every array.

    Attributes:
        time: saved times, shape (time,), in units of the flow dtheta/dt = -grad loss.
        outputs: f at those times, shape (time, n_out, N); None for a bare loss, or where they would be more than 200
            MB: take fewer rows (`max_saves`, `save_at`) to have them.
        train_cost: the loss, C(f) + R, shape (time,).
        test_cost: the test loss, shape (time,), or None where there is no test set.
        gradient_norm: |grad loss| in the trainable parameters, shape (time,).
        observables: further quantities by name, each of shape (time, ...).
        model: the model at the end.
        start: the model at the start.
        models: the model at every saved time (arrays with a leading time axis), if asked for, else None.
        stop_reason: why the run ended, the name of a `saddleflow.StopReason`, which says what each means.
        stats: num_steps, num_accepted_steps, num_rejected_steps, num_vector_field_evaluations,
            num_hessian_vector_products (None where the solver does not tell), preconditioner, seconds,
            compile_seconds of them, and more.
        configuration: what ran. Plain numbers and strings.
        asked_rank_tolerance: as given to the run, or None.
    """

    outputs: Float[np.ndarray, "time n_out N"] | None
    landscape: ModelLandscape
    parameters: Vector
    first_parameters: Vector
    saved_parameters: Float[Array, "time p"] | None
    dips: tuple[np.ndarray, Any] | None = None
    asked_rank_tolerance: float | None = None

    @cached_property
    def singular_values(self) -> Float[np.ndarray, "time n"] | None:
        """Of the outputs, in descending order, shape (time, min(n_out, N)); None where `outputs` is."""
        return None if self.outputs is None else obs.singular_values(self.outputs)

    @cached_property
    def rank_tolerance(self) -> float | None:
        """Singular values above it count for `rank`, as of `Trajectory`; None without outputs, unless given."""
        if self.asked_rank_tolerance is not None or self.singular_values is None:
            return self.asked_rank_tolerance
        return obs.default_rank_tolerance(self.singular_values, self.train_cost)

    @classmethod
    def of(
        cls,
        landscape: ModelLandscape,
        start: Vector,
        end: Vector,
        rows: dict[str, Any],
        *,
        durations: Float[np.ndarray, " segments"],
        configuration: dict[str, Any],
        **others: Any,
    ) -> "ModelTrajectory":
        """The trajectory of a run, from its rows as `loop.observe` records them."""
        objective = landscape.objective
        shape = list(objective.cost.shape) if landscape.has_outputs else None
        return cls(
            time=rows["time"],
            clock=SegmentedTime(rows["segment"], rows["within"], durations),
            outputs=rows.get("outputs"),
            train_cost=rows["train_cost"],
            test_cost=rows.get("test_cost"),
            gradient_norm=rows["gradient_norm"],
            observables=rows["observables"],
            landscape=landscape,
            parameters=end,
            first_parameters=start,
            saved_parameters=rows["network"],
            configuration={
                "cost": type(objective.cost).__name__ if landscape.has_outputs else "loss",
                "shape": shape,
                "regulariser": None if objective.regulariser is None else type(objective.regulariser).__name__,
                "model": type(landscape.model(start)).__name__,
                "num_parameters": start.size,
            }
            | configuration,
            **others,
        )

    @cached_property
    def model(self) -> Any:
        """The model at the end."""
        return self.landscape.model(self.parameters)

    @cached_property
    def start(self) -> Any:
        """The model at the start."""
        return self.landscape.model(self.first_parameters)

    @cached_property
    def models(self) -> Any | None:
        """The model at every saved time: its trainable arrays have a leading time axis."""
        if self.saved_parameters is None:
            return None
        return eqx.filter_vmap(self.landscape.model)(self.saved_parameters)

    @property
    def rank(self) -> Int[np.ndarray, " time"]:
        """Numerical rank of the outputs, as a matrix of predictions; shape (time,), zero where `outputs` is None."""
        if self.singular_values is None:
            return np.zeros(len(self.time), int)
        return obs.rank(self.singular_values, self.rank_tolerance or 0.0)

    @property
    def matrix_name(self) -> str | None:
        """Outputs are a matrix where there are several for each sample."""
        several = self.outputs is not None and min(self.outputs.shape[1:]) > 1
        return "the outputs" if several else None

    def _find_visits(self) -> list[SaddleVisit]:
        ranks = None if self.outputs is None else self.rank
        return find_visits(
            self.clock,
            self.train_cost,
            self.gradient_norm,
            self.rank,
            lambda here, later: None if ranks is None else int(ranks[here]),
            None,
            self.follows_flow,
        )

    def _inspect_visits(self) -> list[SaddleVisit]:
        if self.dips is None:
            return self._visits
        found = [(visit, nearest(self.dips, visit)) for visit in self._visits]
        return [visit if theta is None else self._inspect(visit, theta) for visit, theta in found]

    def _inspect(self, visit: SaddleVisit, theta: Vector) -> SaddleVisit:
        """The visit with what the nearest stationary point tells."""
        point = nearest_critical_point(self.landscape, theta)
        if not point.converged or point.index is None:
            return visit
        return replace(
            visit,
            distance=point.distance,
            stationary_cost=point.loss,
            index=point.index,
            hessian_range=point.hessian_range,
            strict=point.index > 0,
        )

    def __repr__(self) -> str:
        """The result card."""
        run = self.configuration
        of = "" if run["shape"] is None else f" of outputs {run['shape'][0]}x{run['shape'][1]}"
        decay = "" if run["regulariser"] is None else f" + {run['regulariser']}"
        preconditioner = self.stats.get("preconditioner")
        lines = {
            "task": f"{run['cost']}{of}{decay}, {run['model']}, {run['num_parameters']} trainable parameters",
            "solver": self._method_line() + (f", preconditioner {preconditioner}" if preconditioner else ""),
            "end": f"{self.stop_reason} at t = {self.time[-1]:.6g}",
            "steps": self._work_line(),
            "cost": self._cost_line(),
            "gradient": f"|grad| {self.gradient_norm[-1]:.1e}",
            "saddles": self._saddles_line(),
        }
        if self.stop_reason == StopReason.not_smooth.name:
            lines["advice"] = StopReason.not_smooth.meaning
        lines |= dict(self._stability_lines())
        return "ModelTrajectory\n" + "\n".join(f"  {name:<9} : {text}" for name, text in lines.items())

    def to_xarray(self) -> "xr.Dataset":
        """The trajectory as a dataset: named dimensions, units in attributes, configuration and versions as JSON.

        Trainable arrays at the end are variables by their place in the model, such as `model.layers[0].weight`.
        """
        along: dict[str, Any] = {
            "train_cost": (("time",), self.train_cost, "cost"),
            "gradient_norm": (("time",), self.gradient_norm, "cost / parameter"),
        }
        if self.test_cost is not None:
            along["test_cost"] = (("time",), self.test_cost, "cost")
        if self.outputs is not None:
            along["outputs"] = (("time", "n_out", "sample"), self.outputs, "outputs of the model")
        for name, values in self.observables.items():
            dims = ("time", *(f"{name}_{axis}" for axis in range(values.ndim - 1)))
            along[f"observable_{name}"] = (dims, values, "")
        if self.saved_parameters is not None:
            along["parameters"] = (("time", "parameter"), self.saved_parameters, "parameter")
        trainable = jax.tree.unflatten(self.landscape.structure, self.landscape.arrays(self.parameters))
        for path, leaf in jax.tree.flatten_with_path(trainable)[0]:
            name = f"model{jax.tree_util.keystr(path)}"
            along[name] = (tuple(f"{name}_{axis}" for axis in range(leaf.ndim)), np.asarray(leaf), "parameter")
        return self._dataset(along)
