"""A sweep's configuration in plain numbers and strings, as stores compare and datasets keep it."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from saddleflow.flow.state import StopReason
from saddleflow.sweeps.chunk import Chunk, Starts, SweepOptions
from saddleflow.sweeps.grid import Grid


def describe(grid: Grid, starts: Starts, options: SweepOptions, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The whole configuration of a sweep: equal for sweeps that give equal datasets."""
    flow = options.flow
    return {
        **{axis: [_plain(value) for value in values] for axis, values in grid.values.items()},
        **starts.described(),
        "dims": list(grid.dims),
        **({"together": [list(group) for group in grid.together]} if grid.together else {}),
        "cost": [name(cost) for cost in grid.costs],
        "shape": list(grid.costs[0].shape),
        "t1": flow.t1,
        "save_at": None if flow.save_at is None else flow.save_at.tolist(),
        "max_saves": flow.max_saves,
        "max_steps": flow.max_steps,
        "gradient_tolerance": flow.gradient_tolerance,
        "target_cost": None if flow.target_cost is None else float(flow.target_cost),
        "rank_tolerance": flow.rank_tolerance,
        "solver": _solver_name(options),
        "observables": sorted(flow.observables or {}),
        "save_matrices": options.save_matrices,
        "reduce_width": options.reduce_width,
        "chunks": [len(chunk.index) for chunk in chunks],
        "stop_reasons": [reason.name for reason in StopReason],
    }


def _solver_name(options: SweepOptions) -> str:
    if options.flow.solver is not None:
        return name(options.flow.solver)
    return "stiff part of the default" if options.stiff else "default"


def _plain(value: Any) -> Any:
    """A number or a string, or lists of them; of anything else kind and fingerprint."""
    try:
        return json.loads(json.dumps(value.item() if isinstance(value, np.generic) else value))
    except TypeError:
        return name(value)


def name(tree: Any) -> str:
    """A cost's or a solver's kind, with a fingerprint of its numbers and structure."""
    leaves, structure = jax.tree.flatten(tree)
    text = hashlib.sha256(_without_addresses(str(structure)))
    for leaf in leaves:
        number = isinstance(leaf, bool | int | float | np.ndarray | jax.Array)
        text.update(np.asarray(leaf).tobytes() if number else _without_addresses(str(leaf)))
    return f"{type(tree).__name__} {text.hexdigest()[:12]}"


def name_of(function: Any) -> str:
    """A function by its qualified name, without the module: a script's is another where it is imported."""
    if hasattr(function, "described"):
        return function.described()
    return getattr(function, "__qualname__", None) or name(function)


def _without_addresses(text: str) -> bytes:
    """Functions by their names only: their addresses change from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text).encode()
