"""Whether rounding decided an escape of a model: what `saddleflow.flow.twin` is for networks.

A model with equal neurons keeps them equal, and may so stay at a saddle for ever. Sums are rounded differently from
neuron to neuron, though, and what grows of that is not the flow's.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from saddleflow._backend.arrays import on_device
from saddleflow.flow import loop
from saddleflow.flow.clock import Clock
from saddleflow.flow.dips import Dips
from saddleflow.flow.model_landscape import ModelLandscape, Vector
from saddleflow.flow.state import FlowState, Method
from saddleflow.flow.twin import PERTURBATION, ROUNDED, Escape, escapes_between

_observe = eqx.filter_jit(loop.observe)


def has_symmetry(landscape: ModelLandscape, theta: Vector) -> bool:
    """Whether two slices of some array (two neurons' weights) are equal or opposite to rounding.

    Slices of one number, and zeros, say nothing. Random starts have no such slices; other symmetries are not seen.
    """
    return any(
        _has_twins(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1))
        for array in landscape.arrays(theta)
        if array.ndim > 1
        for axis in range(array.ndim)
    )


def _has_twins(rows: np.ndarray) -> bool:
    """Whether two rows are equal or opposite: then they are neighbours in the order of their entries, sign apart."""
    if rows.shape[1] < 2:
        return False
    rows = rows[np.any(rows != 0, axis=1)]
    leading = np.argmax(np.abs(rows) > ROUNDED * np.abs(rows).max(axis=1, keepdims=True), axis=1)
    rows = rows * np.sign(rows[np.arange(len(rows)), leading])[:, None]
    rows = rows[np.lexsort(rows.T[::-1])]
    return bool(np.any(np.abs(np.diff(rows, axis=0)).max(axis=1) <= ROUNDED * np.abs(rows[1:]).max(axis=1)))


def perturbed(theta: Vector) -> Vector:
    """The start with every entry changed by about 1e5 roundings; zeros stay zeros."""
    return theta * (1 + PERTURBATION * np.random.default_rng(0).standard_normal(theta.shape))


def model_escapes(landscape: ModelLandscape, state: FlowState) -> list[Escape]:
    """The escapes of a run."""
    if state.dips is None:
        return []
    count = min(int(state.dips.count), len(state.dips.times))
    points = [*state.dips.networks[:count], state.parameters]
    return escapes_between([float(landscape.loss_at(point)) for point in points], state.dips)


def rows_up_to(
    rows: dict[str, Any], landscape: ModelLandscape, dips: Dips, escape: Escape, method: Method, *, add_end: bool
) -> tuple[dict[str, Any], Vector]:
    """The rows as far as a saddle, itself among them where `add_end` (or no other is), and the parameters there."""
    theta, time = dips.networks[escape.dip], float(dips.times[escape.dip])
    count = int(np.searchsorted(rows["time"], time))
    add_end, last = add_end or count == 0, max(count - 1, 0)
    end = _observe(landscape, theta, Clock.start(), method)
    within = rows["within"][last] + time - rows["time"][last]
    end = end | {"time": jnp.asarray(time), "segment": rows["segment"][last], "within": within}

    def cut(values: Any, one: Any) -> np.ndarray:
        kept = np.asarray(values)[:count]
        return np.concatenate([kept, np.asarray(one)[None]]) if add_end else kept

    kept = {name: cut(rows[name], one) for name, one in end.items() if name != "observables"}
    observed = {name: cut(rows["observables"][name], one) for name, one in end["observables"].items()}
    network = None if rows["network"] is None else on_device(kept["network"])
    return rows | kept | {"observables": observed, "network": network}, theta
