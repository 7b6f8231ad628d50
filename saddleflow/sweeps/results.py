"""What is kept of a lane, whoever ran it: rows along the flow, counts, how it ended."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saddleflow._backend.checks import is_concrete
from saddleflow.flow import observables as obs

# Counts and numbers of a lane, in the order of the dataset.
NUMBERS = (
    "end_time",
    "stop_reason",
    "num_accepted_steps",
    "num_rejected_steps",
    "balancedness_drift",
    "num_vector_field_evaluations",
    "num_hessian_vector_products",
    "reduction_error_estimate",
)


class LaneResult(eqx.Module):
    """What is kept of a lane: in jax while a program computes it, in numpy afterwards.

    Attributes:
        rows: arrays by name, rows first: time, end_to_end, gradient_norm, train_cost, test_cost (where there is a
            test set), and observables, again by name.
        num_rows: how many of the rows are valid.
        end_time: time at the end, in units of the flow.
        stop_reason: a code of `StopReason`.
        num_accepted_steps: steps taken.
        num_rejected_steps: steps tried in vain.
        balancedness_drift: see `saddleflow.problem.symmetry.balancedness_drift`; None where nothing is conserved.
        num_vector_field_evaluations: None where the solver does not tell.
        num_hessian_vector_products: None where the solver does not tell.
        reduction_error_estimate: of |A - A_full|_F; None where no width is to be reduced.
        computed_steps: lane-steps computed for this lane; None: its own steps and no more.
    """

    rows: dict[str, Any]
    num_rows: Int[Array | np.ndarray, ""]
    end_time: Float[Array | np.ndarray, ""]
    stop_reason: Int[Array | np.ndarray, ""]
    num_accepted_steps: Int[Array | np.ndarray, ""]
    num_rejected_steps: Int[Array | np.ndarray, ""]
    balancedness_drift: Float[Array | np.ndarray, ""] | None
    num_vector_field_evaluations: Int[Array | np.ndarray, ""] | None = None
    num_hessian_vector_products: Int[Array | np.ndarray, ""] | None = None
    reduction_error_estimate: Float[Array | np.ndarray, ""] | None = None
    computed_steps: float | None = None

    def numbers(self) -> dict[str, np.ndarray]:
        """The numbers that there are, by name."""
        values = {name: getattr(self, name) for name in NUMBERS}
        return {name: np.asarray(value) for name, value in values.items() if value is not None}

    def lane_steps(self) -> Float[np.ndarray, "2"]:
        """Useful lane-steps, and those computed."""
        useful = float(self.num_accepted_steps + self.num_rejected_steps)
        return np.asarray([useful, useful if self.computed_steps is None else self.computed_steps])


def spread(rows: dict[str, Any], num_rows: Any, count: int) -> dict[str, Any]:
    """`count` rows spread evenly over the first `num_rows`, the first and the last among them."""
    xp = np if is_concrete(num_rows) else jnp
    index = xp.round(xp.linspace(0, num_rows - 1, count)).astype(int)
    return jax.tree.map(lambda x: x[index], rows)


def as_arrays(
    result: LaneResult, further: dict[str, np.ndarray], *, num_rows: int, with_time: bool
) -> dict[str, np.ndarray]:
    """A lane's result as arrays by the names of the dataset, rows first.

    Args:
        result: the result, in numpy.
        further: arrays that lanes of its kind have beside those of all.
        num_rows: rows of the dataset; NaN where the lane has fewer.
        with_time: keep the times, where the rows are the lane's own steps.
    """
    rows = result.rows
    names = ["train_cost", "gradient_norm", "test_cost", *(["time"] if with_time else [])]
    kept = {name: masked(result, rows[name], num_rows) for name in names if name in rows}
    observed = {f"observable_{name}": masked(result, x, num_rows) for name, x in rows["observables"].items()}
    return kept | further | observed | result.numbers() | {"lane_steps": result.lane_steps()}


def masked(result: LaneResult, values: Any, num_rows: int) -> np.ndarray:
    """Values of all rows, NaN where the lane has none."""
    values, valid = np.asarray(values, float), np.arange(num_rows) < result.num_rows
    return np.where(valid.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)


def of_matrices(
    result: LaneResult, *, num_rows: int, with_matrices: bool, rank_tolerance: float | None
) -> dict[str, np.ndarray]:
    """The spectrum of A along the rows, NaN (rank -1) where the lane has fewer.

    Args:
        result: the result, in numpy.
        num_rows: rows of the dataset.
        with_matrices: keep the end-to-end matrices.
        rank_tolerance: absolute cut for the rank; None: see `observables.default_rank_tolerance`.
    """
    matrices = masked(result, result.rows["end_to_end"], num_rows)
    values = np.full((num_rows, min(matrices.shape[1:])), np.nan)
    finite = np.isfinite(matrices).all(axis=(1, 2))
    if finite.any():
        values[finite] = np.linalg.svd(matrices[finite], compute_uv=False)
    tolerance = rank_tolerance
    if tolerance is None:
        tolerance = obs.default_rank_tolerance(values, masked(result, result.rows["train_cost"], num_rows))
    kept = {
        "singular_values": values,
        "nuclear_norm": obs.nuclear_norm(values),
        "rank": np.where(finite, obs.rank(np.nan_to_num(values), tolerance), -1),
        "rank_tolerance": np.asarray(tolerance),
    }
    return kept | {"end_to_end": matrices} if with_matrices else kept
