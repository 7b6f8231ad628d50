"""The dataset of a sweep: the chunks' arrays together, with dims, units and meanings."""

import json
from typing import TYPE_CHECKING, Any

import lazy_loader as lazy
import numpy as np

from saddleflow._backend.checks import require
from saddleflow.flow.state import StopReason
from saddleflow.sweeps.chunk import Chunk, Starts, SweepOptions
from saddleflow.sweeps.grid import AXES, Grid
from saddleflow.sweeps.results import NUMBERS
from saddleflow.sweeps.workers import Tally

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = lazy.load("xarray")

# Units and meaning of what a dataset may hold.
UNITS = {
    "time": ("time of the flow dtheta/dt = -grad C", "time of a row"),
    "train_cost": ("cost", "C(A)"),
    "test_cost": ("cost", "test cost of A"),
    "gradient_norm": ("cost / parameter", "Euclidean norm of grad_theta C(A(theta))"),
    "singular_values": ("entries of the target", "of A, in descending order"),
    "nuclear_norm": ("entries of the target", "sum of the singular values of A"),
    "rank": ("1", "rank of A"),
    "rank_tolerance": ("entries of the target", "absolute cut for the rank"),
    "end_to_end": ("entries of the target", "the matrix A"),
    "reduction_error_estimate": ("entries of the target", "sup over time of |A - A_full|_F from the reduced width"),
    "end_time": ("time of the flow dtheta/dt = -grad C", "where the lane ended"),
    "balancedness_drift": ("1", "largest change of a conserved matrix over the largest squared layer norm"),
    "gamma": ("1", "the start's variance is w^-gamma"),
    "variance": ("squared entry of a layer", "the start's variance"),
    "num_draws": ("1", "draws of the start until it was accepted"),
    "alpha": ("1", "scales the start"),
    "width": ("neurons", "hidden width w"),
    "depth": ("layers", "number of layers L"),
    "rtol": ("1", "relative tolerance"),
    "cost": ("1", "number in the list of costs"),
    "seed": ("1", "the start is drawn with jax.random.key(seed)"),
    "learning_rate": ("time", "length of a step"),
    "batch_size": ("samples", "samples in a step; 0: all"),
    "batch_seed": ("1", "batches are drawn with jax.random.key(batch_seed)"),
}

# What else there is to say of them.
COMMENTS = {"rank": "singular values of A above rank_tolerance; -1 at times that a flow did not reach"}

# Names that no argument of `init` may take as a dim.
NAMES = {*UNITS, *NUMBERS, "outputs", "sample", "mode", "n_out", "n_in", "input", "lane_steps"} - set(AXES)

# What has rows; observables have too. The dims of a row, where it is more than a number.
WITHIN = {"singular_values": ("mode",), "end_to_end": ("n_out", "n_in"), "outputs": ("n_out", "input")}
ALONG = ("train_cost", "test_cost", "gradient_norm", "nuclear_norm", "rank", "time", *WITHIN)


def fill(flat: dict[str, np.ndarray], size: int, chunk: Chunk, result: dict[str, np.ndarray]) -> None:
    """Put a chunk's arrays into those of all `size` lanes; lane-steps add up.

    Raises:
        ValueError: an observable whose shape depends on the lane.
    """
    for name, values in result.items():
        if name == "lane_steps":
            flat[name] = flat.get(name, np.zeros(2)) + values
            continue
        if name not in flat:
            flat[name] = np.zeros((size, *values.shape[1:]), values.dtype)
        require(
            flat[name].shape[1:] == values.shape[1:],
            "observables",
            "have one shape in all lanes of a sweep",
            f"{name} of shapes {flat[name].shape[1:]} and {values.shape[1:]}",
            "Make a sweep for each depth.",
        )
        flat[name][chunk.index] = values


def assemble(
    grid: Grid,
    starts: Starts,
    options: SweepOptions,
    flat: dict[str, np.ndarray],
    configuration: Any,
    versions: Any,
) -> "xr.Dataset":
    """The dataset, from the arrays of all lanes; stop reasons by their numbers."""
    useful, computed = (float(x) for x in flat.pop("lane_steps"))
    save_at = options.flow.save_at
    meanings = UNITS | starts.meanings
    row = "sample" if save_at is None else "time"
    variables = {}
    for name, values in flat.items():
        dims: tuple[str, ...] = ()
        if name in ALONG or name.startswith("observable_"):
            dims = (row, *WITHIN.get(name, tuple(f"{name}_{axis}" for axis in range(values.ndim - 2))))
        units, meaning = meanings.get(name, ("1", name.replace("_", " ")))
        attrs = {"units": units, "long_name": meaning}
        if name in COMMENTS:
            attrs["comment"] = COMMENTS[name]
        variables[name] = (grid.dims + dims, values.reshape(grid.shape + values.shape[1:]), attrs)
    coords: dict[str, Any] = {}
    leaders = {name: group[0] for group in grid.together for name in group}
    for axis in (axis for axis in grid.values if leaders.get(axis, axis) in grid.dims):
        units, meaning = ("1", "argument of init") if axis in grid.arguments else UNITS[axis]
        coords[axis] = (leaders.get(axis, axis), grid.labels(axis), {"units": units, "long_name": meaning})
    if save_at is not None:
        coords["time"] = ("time", save_at, {"units": UNITS["time"][0]})
    attrs = {
        "configuration": json.dumps(configuration),
        "versions": json.dumps(versions),
        "lane_utilisation": Tally(useful=useful, computed=computed).utilisation,
    }
    return xr.Dataset(variables, coords, attrs)


def with_names(data: "xr.Dataset") -> "xr.Dataset":
    """The dataset with stop reasons by their names; a store holds their numbers."""
    names = np.asarray([reason.name for reason in StopReason])[data["stop_reason"].values]
    return data.assign(stop_reason=(data["stop_reason"].dims, names, {"long_name": "why the lane ended"}))
