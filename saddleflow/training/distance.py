"""How far a descent is from the flow."""

from typing import Any

import numpy as np
from jaxtyping import Float

from saddleflow._backend.checks import require
from saddleflow.flow.model_trajectory import ModelTrajectory
from saddleflow.flow.trajectory import Trajectory

# Times that agree to this share of the last one are the same: steps times rate, and what `save_at` makes of it.
SAME_TIME = 1e-9


def distance_to_flow(descent: Any, flow: Any) -> Float[np.ndarray, " time"]:
    """`|A_descent(t) - A_flow(t)|` in the Frobenius norm at every time of a descent, shape (time,).

    Of models the outputs take the place of A. For plain gradient descent it falls in proportion to the learning
    rate, on any fixed interval of time. Between the rows of a flow nothing is interpolated: save it at the times of
    the descent.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> for rate, steps in ((1e-2, 2000), (5e-3, 4000)):
    ...     descent = sf.gradient_descent(cost, start, optax.sgd(rate), num_steps=steps)
    ...     flow = sf.gradient_flow(cost, start, rtol=1e-8, save_at=descent.time)
    ...     print(f"{sf.distance_to_flow(descent, flow).max():.4f}")
    0.0434
    0.0217

    Args:
        descent: a trajectory of `gradient_descent`, or any other.
        flow: a trajectory with rows at the same times. One that ended earlier (`target_cost`, `stop`) leaves the
            distances behind its end NaN.

    Raises:
        ValueError: other kinds of trajectories, other shapes, other times, outputs that were not kept.
    """
    ours, theirs = _matrices("descent", descent), _matrices("flow", flow)
    same = ours.shape[1:] == theirs.shape[1:]
    require(same, "flow", f"have matrices of the descent's shape, {ours.shape[1:]}", theirs.shape[1:])
    count = len(flow.time)
    fits = count <= len(descent.time) and np.allclose(
        descent.time[:count], flow.time, rtol=0, atol=SAME_TIME * descent.time[-1]
    )
    remedy = "Pass save_at=descent.time to gradient_flow."
    require(fits, "flow", "have the descent's times", f"{count} times up to {flow.time[-1]:.6g}", remedy)
    distances = np.full(len(descent.time), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):  # a descent may end in an overflow
        distances[:count] = np.linalg.norm(ours[:count] - theirs, axis=(1, 2))
    return distances


def _matrices(name: str, trajectory: Any) -> Float[np.ndarray, "time n_out n_in"]:
    """A, or the outputs, at every row."""
    remedy = "It is what sf.gradient_descent and sf.gradient_flow return."
    sound = isinstance(trajectory, Trajectory | ModelTrajectory)
    require(sound, name, "be a trajectory", type(trajectory).__name__, remedy)
    matrices = trajectory.end_to_end if isinstance(trajectory, Trajectory) else trajectory.outputs
    require(matrices is not None, name, "keep the outputs at its rows", None, "Take fewer rows, or an objective.")
    return matrices
