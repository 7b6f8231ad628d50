"""Sweeps: one call for a grid of flows, one dataset back."""

import difflib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import diffrax
import jax
import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from saddleflow._backend.checks import check_save_at, require, require_finite, require_integer, require_positive
from saddleflow._backend.devices import find_devices, lanes_per_program
from saddleflow.flow import observables as obs
from saddleflow.flow.state import StopReason
from saddleflow.flow.trajectory import versions as package_versions
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import layer_sizes
from saddleflow.sweeps import cluster
from saddleflow.sweeps.chunks import AXES, Chunk, Grid, Options, cut, describe, run_chunks
from saddleflow.sweeps.lanes import Tally
from saddleflow.sweeps.store import Store

# Units and meaning of what a dataset may hold.
UNITS = {
    "time": ("time of the flow dtheta/dt = -grad C", "time of a row"),
    "train_cost": ("cost", "C(A)"),
    "test_cost": ("cost", "test cost of A"),
    "gradient_norm": ("cost / parameter", "Euclidean norm of grad_theta C(A(theta))"),
    "singular_values": ("entries of the target", "of A, in descending order"),
    "nuclear_norm": ("entries of the target", "sum of the singular values of A"),
    "rank": ("1", "singular values of A above rank_tolerance; -1 where the lane did not get"),
    "rank_tolerance": ("entries of the target", "absolute cut for the rank"),
    "end_to_end": ("entries of the target", "the matrix A"),
    "reduction_error_estimate": ("entries of the target", "sup over time of |A - A_full|_F from the reduced width"),
    "end_time": ("time of the flow dtheta/dt = -grad C", "where the lane ended"),
    "balancedness_drift": ("1", "largest change of a conserved matrix over the largest squared layer norm"),
    "gamma": ("1", "the start's variance is w^-gamma"),
    "alpha": ("1", "scales the start"),
    "width": ("neurons", "hidden width w"),
    "depth": ("layers", "number of layers L"),
    "rtol": ("1", "relative tolerance"),
    "cost": ("1", "place in the list of costs"),
    "seed": ("1", "the start is drawn with jax.random.key(seed)"),
}


def sweep(
    cost: Any,
    *,
    depth: Any,
    width: Any,
    gamma: Any = 1.0,
    alpha: Any = 1.0,
    seed: Any = 0,
    rtol: Any = 1e-4,
    t1: Any = None,
    save_at: Any = None,
    max_saves: int = 64,
    save_matrices: bool = False,
    observables: Mapping[str, Any] | Sequence[str] | None = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    gradient_tolerance: float = 1e-4,
    rank_tolerance: float | None = None,
    reduce_width: str | None = None,
    store: str | Path | None = None,
    client: Any = None,
    devices: int | Sequence[Any] | None = None,
    lanes: int | None = None,
    chunk_size: int | None = None,
    progress: bool = True,
    **unknown: Any,
) -> xr.Dataset:
    """Solve the flow from every start of a grid: `alpha * theta_0(seed)`, layers of variance `width^-gamma`.

    Each of cost, depth, gamma, alpha, width, seed and rtol may be a sequence; those that are become the dims of
    the dataset, in this order, and every combination is a lane. A lane's start is drawn with
    `jax.random.key(seed)`, so a lane's numbers depend on its own coordinates only: not on the rest of the grid's
    values, its order, the chunks, the devices or the machines. (CPUs and accelerators agree to rtol only: see
    `solver`.)

    Args:
        cost: the cost, or several of one shape.
        depth: number of layers L.
        width: hidden width w.
        gamma: exponent of the start's variance.
        alpha: scale of the start.
        seed: seeds of the starts.
        rtol: relative tolerance, as in `gradient_flow`.
        t1: end of each run; None: a certified minimum.
        save_at: sorted times to save at, by dense output, the dim `time`; an integer n means t = 0 and n - 1
            logarithmic times from `t1 / 1e6` to `t1`. None: `max_saves` rows spread evenly over each lane's own
            steps, within them by dense output where they are few, the dim `sample`, first row the start and last row
            the end; then `time` is a variable.
        max_saves: rows of a lane where its own steps are saved; at least 4.
        save_matrices: keep the end-to-end matrices of all rows.
        observables: as in `gradient_flow`.
        solver: as in `gradient_flow`; None: its default where this machine computes on CPUs, the stiff part of it
            on accelerators.
        max_steps: steps of a lane at most.
        gradient_tolerance: of the certificate, as in `gradient_flow`.
        rank_tolerance: absolute cut for the rank; None: see `gradient_flow`.
        reduce_width: "auto" reduces the lanes whose width it makes smaller, each to an error in A of at most 10 *
            rtol of its largest |A|; "sample" draws those lanes in law (`sample_reduced`, any width up to 10^12), so
            that their starts are others than the full ones. The dataset then has reduction_error_estimate.
        store: folder of a zarr store: finished chunks are kept there, and the same call goes on where an earlier
            one ended.
        client: a `dask.distributed.Client` to run the chunks on.
        devices: local devices to use, or how many of them; None: all.
        lanes: places of one compiled program; None: 1 on a CPU, 256 on an accelerator, or as many as fit its memory.
        chunk_size: lanes of a chunk at most; None: a 32nd of them, between 8 and 256.
        progress: show a meter on terminals and in notebooks.
        **unknown: refused, with the nearest known name.

    Returns:
        A dataset with the dims above: train_cost, test_cost (where there is a test set), gradient_norm, rank,
        nuclear_norm, singular_values, observable_<name> along the rows; stop_reason, end_time,
        num_accepted_steps, num_rejected_steps, evaluations, balancedness_drift a lane. Attributes: configuration
        and versions as JSON, lane_utilisation (useful lane-steps over all computed).

    Raises:
        ValueError: bad arguments, named with value and remedy; a store of another sweep, or a damaged one.
        OSError: a store that cannot be written; what was written stays.
        RuntimeError: chunks that failed on a cluster.
    """
    for name in unknown:
        known = [key for key in sweep.__annotations__ if key != "return" and key != "unknown"]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}."
        raise ValueError(f"`{name}` is no argument of a sweep. {hint}")
    grid = _grid(cost, depth=depth, gamma=gamma, alpha=alpha, width=width, seed=seed, rtol=rtol)
    t1, save_at = _times(t1, save_at)
    # under vmap the default solver would pay for its explicit steps and its stiff ones at every step
    in_company = lanes_per_program(find_devices(devices)[0]) > 1
    options = Options(
        t1=t1,
        save_at=save_at,
        max_saves=max_saves,
        max_steps=max_steps,
        gradient_tolerance=gradient_tolerance,
        rank_tolerance=rank_tolerance,
        solver=solver,
        observables=obs.resolve(observables),
        save_matrices=save_matrices,
        reduce_width=reduce_width,
        stiff=solver is None and in_company,
    )
    for name, value in (("lanes", lanes), ("chunk_size", chunk_size)):
        if value is not None:
            require_integer(name, value, 1)
    require(client is None or devices is None, "devices", "not be given together with client", devices)
    chunks = cut(grid, options, chunk_size)
    configuration, versions = describe(grid, options, chunks), package_versions()
    kept = None if store is None else Store(store, configuration, versions)
    if kept is not None and kept.complete:
        return _named(kept.load())
    processes = jax.process_count()
    require(
        len(chunks) >= processes,
        "chunk_size",
        f"leave a chunk for each of the {processes} JAX processes",
        f"{len(chunks)} chunk(s)",
        "Pass a smaller chunk_size.",
    )
    mine = cluster.share(chunks)
    there = [] if kept is None else [chunk for chunk in mine if kept.has(chunk.number)]
    missing = [chunk for chunk in mine if chunk not in there]
    flat: dict[str, np.ndarray] = {}
    for chunk in there:
        assert kept is not None
        _fill(flat, grid.size, chunk, kept.read(chunk.number))
    with _meter(progress, grid.size, sum(len(chunk.index) for chunk in there)) as report:
        if client is None:
            results = run_chunks(missing, devices=devices, num_lanes=lanes, report=report)
        else:
            results = cluster.run_on_client(missing, client, lanes, report)
        with closing(results):  # an interrupt ends the workers too
            for chunk, result in results:
                if kept is not None:
                    kept.write(chunk.number, result)
                _fill(flat, grid.size, chunk, result)
    data = _dataset(grid, options, cluster.gather(flat), configuration, versions)
    if kept is not None and jax.process_index() == 0:
        kept.finish(data)
    return _named(data)


def _grid(cost: Any, **axes: Any) -> Grid:
    costs = tuple(cost) if isinstance(cost, Sequence) else (cost,)
    require(len(costs) > 0, "cost", "be a cost or a sequence of them", cost)
    for one in costs:
        require(isinstance(one, Cost), "cost", "be a saddleflow cost", type(one).__name__)
    shapes = sorted({tuple(one.shape) for one in costs})
    require(len(shapes) == 1, "cost", "have one shape for all", shapes, "Make a sweep for each shape.")
    tests = {one.has_test for one in costs}
    require(len(tests) == 1, "cost", "all have a test set or none", [one.has_test for one in costs])
    dims = ["cost"] if isinstance(cost, Sequence) else []
    values: dict[str, tuple[Any, ...]] = {"cost": tuple(range(len(costs)))}
    for axis in AXES[1:]:
        given = axes[axis]
        many = np.ndim(given) > 0
        require(np.ndim(given) <= 1, axis, "be a number or a list of them", given)
        found = tuple(x.item() if isinstance(x, np.generic) else x for x in (given if many else (given,)))
        require(len(found) > 0, axis, "hold at least one value", given)
        twice = sorted({x for x in found if found.count(x) > 1})
        require(not twice, axis, "hold each value once", f"{twice} twice", "Duplicates would be the same lane.")
        for value in found:
            _check_value(axis, value)
        values[axis] = found
        dims += [axis] if many else []
    for depth in values["depth"]:
        for width in values["width"]:
            layer_sizes(depth, width, costs[0].shape)
    return Grid(costs, values, tuple(axis for axis in AXES if axis in dims))


def _check_value(axis: str, value: Any) -> None:
    if axis in ("depth", "width", "seed"):
        require_integer(axis, value, {"depth": 2, "width": 1, "seed": 0}[axis])
        return
    require_finite(axis, value)
    if axis == "gamma":
        require(value >= 0, axis, "not be negative", value)
    elif axis == "alpha":
        require_positive(axis, value)
    else:
        require(1e-13 <= value < 1, axis, "lie in [1e-13, 1)", value, "float64 resolves no less.")


def _times(t1: Any, save_at: Any) -> tuple[float | None, np.ndarray | None]:
    """End and saved times of the lanes; a number of times is spread logarithmically."""
    if t1 is not None:
        require_positive("t1", t1)
        t1 = float(t1)
    if isinstance(save_at, int) and not isinstance(save_at, bool):
        require_integer("save_at", save_at, 2)
        require(t1 is not None, "t1", "be given where save_at is a number of times", t1, "The times end there.")
        last = t1 or 0.0
        save_at = np.concatenate([[0.0], np.geomspace(last * 1e-6, last, save_at - 1)])
    if save_at is not None:
        save_at, t1 = check_save_at(save_at, t1)
        t1 = float(t1)
    return t1, save_at


def _fill(flat: dict[str, np.ndarray], size: int, chunk: Chunk, result: dict[str, np.ndarray]) -> None:
    """Put a chunk's rows into the arrays of all lanes."""
    for name, values in result.items():
        if name == "lane_steps":
            flat[name] = flat.get(name, np.zeros(2)) + values
            continue
        if name not in flat:
            flat[name] = np.zeros((size, *values.shape[1:]), values.dtype)
        flat[name][chunk.index] = values


def _dataset(grid: Grid, options: Options, flat: dict[str, Any], configuration: Any, versions: Any) -> xr.Dataset:
    useful, computed = (float(x) for x in flat.pop("lane_steps"))
    row = "sample" if options.save_at is None else "time"
    along = {
        "train_cost",
        "test_cost",
        "gradient_norm",
        "nuclear_norm",
        "rank",
        "time",
        "singular_values",
        "end_to_end",
    }
    inner = {"singular_values": ("mode",), "end_to_end": ("n_out", "n_in")}
    variables = {}
    for name, values in flat.items():
        dims: tuple[str, ...] = ()
        if name in along or name.startswith("observable_"):
            extra = inner.get(name, tuple(f"{name}_{axis}" for axis in range(values.ndim - 2)))
            dims = (row, *extra)
        units, meaning = UNITS.get(name, ("1", name.replace("_", " ")))
        attrs = {"units": units, "long_name": meaning}
        variables[name] = (grid.dims + dims, values.reshape(grid.shape + values.shape[1:]), attrs)
    coords: dict[str, Any] = {}
    for axis in grid.dims:
        units, meaning = UNITS.get(
            axis, ("1", {"cost": "place in the list of costs"}.get(axis, f"{axis} of a start"))
        )
        coords[axis] = (axis, np.asarray(grid.values[axis]), {"units": units, "long_name": meaning})
    if options.save_at is not None:
        coords["time"] = ("time", options.save_at, {"units": UNITS["time"][0]})
    return xr.Dataset(
        variables,
        coords,
        {
            "configuration": json.dumps(configuration),
            "versions": json.dumps(versions),
            "lane_utilisation": Tally(0, 0, useful, computed).utilisation,
        },
    )


def _named(data: xr.Dataset) -> xr.Dataset:
    """Stop reasons by their names; a store holds their numbers."""
    names = np.asarray([reason.name for reason in StopReason])[data["stop_reason"].values]
    return data.assign(stop_reason=(data["stop_reason"].dims, names, {"long_name": "why the lane ended"}))


@contextmanager
def _meter(progress: bool, total: int, before: int) -> Iterator[Callable[[Tally], None]]:
    """A bar on terminals and in notebooks: lanes done and to do, lanes failed, steps taken."""
    console = Console(stderr=True)
    if not (progress and (console.is_terminal or console.is_jupyter)):
        yield lambda tally: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("lanes"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=total, completed=before)
        done, lock = Tally(), threading.Lock()

        def report(tally: Tally) -> None:
            nonlocal done
            with lock:
                done += tally
                text = f"{done.failed} failed, {done.useful:.0f} steps"
                bar.update(task, completed=before + done.done, description=text)

        yield report
