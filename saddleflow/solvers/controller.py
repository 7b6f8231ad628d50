"""A predictive step-size controller (Gustafsson), for `diffrax.diffeqsolve` or any other loop of steps.

diffrax's `PIDController` never shrinks a step after an accepted one, so a solution that speeds up (an escape
from a saddle, where the right step shrinks geometrically towards the escape time) costs a rejection for
every accepted step. This one extrapolates the trend of error and step size, and shrinks without a rejection.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from diffrax import RESULTS, AbstractAdaptiveStepSizeController, PIDController
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree
from optimistix import rms_norm

from saddleflow.solvers._checks import is_concrete, require, require_positive
from saddleflow.solvers._precision import in_dtype, state_dtype
from saddleflow.solvers.support import Support, mean_norm

# (y0, y1, error of y1) -> relative error of some quantity that the state stands for.
RelativeError = Callable[[Any, Any, Any], Float[Array, ""]]

# A step's error in a quantity of the state may be so many `rtol` before it counts. Of narrow networks A's is less.
ALLOWANCE = 10.0


def check_tolerance(name: str, value: Any, remedy: str = "") -> None:
    """Refuse a tolerance with a number in it that is not finite and above zero (concrete ones only)."""
    for leaf in jtu.tree_leaves(value):
        smallest = leaf if np.ndim(leaf) == 0 or not is_concrete(leaf) else np.min(leaf)
        require_positive(name, smallest, remedy)


def tolerances_like(atol: Any, y: PyTree) -> PyTree:
    """An absolute tolerance as a pytree like the state, in its dtype: itself, or the one number at every leaf."""
    if jtu.tree_structure(atol) != jtu.tree_structure(y):
        atol = jtu.tree_map(lambda _: atol, y)
    return jtu.tree_map(lambda a, x: in_dtype(a, x.dtype), atol, y)


def scaled_error(y0: PyTree, y1: PyTree, error: PyTree, rtol: Any, atol: Any) -> PyTree:
    """The error of every entry in units of its tolerance, `atol + rtol` times the larger of its two sizes."""

    def leaf(a, b, e, absolute):
        relative = in_dtype(rtol, a.dtype)
        b = jnp.where(jnp.all(jnp.isfinite(b)), b, a)
        return e / (absolute + relative * jnp.maximum(jnp.abs(a), jnp.abs(b)))

    return jtu.tree_map(leaf, y0, y1, error, tolerances_like(atol, y0))


def scaled_size(
    y0: PyTree, y1: PyTree, error: PyTree, rtol: Any, atol: Any, support: Support | None = None
) -> Float[Array, ""]:
    """The size of a step's error: the root mean square over all entries, each in units of its tolerance.

    Args:
        y0: the state before the step.
        y1: the state after it.
        error: of every entry of y1, a pytree like the state.
        rtol: relative tolerance.
        atol: absolute tolerance, one number or a pytree like the state.
        support: which entries are there; None: all of them.

    Returns:
        A number; the controller accepts a step where it is below one.
    """
    return mean_norm(scaled_error(y0, y1, error, rtol, atol), support)


def amplification(
    size: Float[Array, ""], error: PyTree, y0: PyTree, y1: PyTree, rtol: Any, quantity_error: RelativeError | None
) -> Any:
    """Factor from the size of an error to what it does to a quantity of the state, beyond `ALLOWANCE * rtol`; or one.

    Many entries within their tolerances may add up: all entries of a wide network are a small error each, and its
    end-to-end matrix, which they hardly move, can be far off.
    """
    if quantity_error is None:
        return 1.0
    other = quantity_error(y0, y1, error) / (ALLOWANCE * in_dtype(rtol, size.dtype))
    return jnp.where(jnp.isfinite(other) & (other > size) & (size > 0), other / size, 1.0)


def amplified(
    error: PyTree,
    y0: PyTree,
    y1: PyTree,
    rtol: Any,
    atol: Any,
    quantity_error: RelativeError | None,
    support: Support | None = None,
) -> PyTree:
    """The error of a step, raised by what it does to a quantity of the state.

    Args:
        error: of every entry of y1, a pytree like the state.
        y0: the state before the step.
        y1: the state after it.
        rtol: relative tolerance.
        atol: absolute tolerance, one number or a pytree like the state.
        quantity_error: `(y0, y1, error) -> relative error` of the quantity; None: the error is returned as it is.
        support: which entries are there; None: all of them.

    Returns:
        The error times a factor of at least one, so that its size, in units of the tolerance, is at least the
        quantity's relative error over ten `rtol`.
    """
    if quantity_error is None:
        return error
    factor = amplification(scaled_size(y0, y1, error, rtol, atol, support), error, y0, y1, rtol, quantity_error)
    return jtu.tree_map(lambda e: factor * e, error)


class PredictiveState(eqx.Module):
    """Size and scaled error of the last accepted step (zero size: none yet), and whether the last try failed."""

    size: Float[Array, ""]  # in the dtype of time
    error: Float[Array, ""]  # in that of the state
    failed: Bool[Array, ""]


class PredictiveController(AbstractAdaptiveStepSizeController):
    """Keep the scaled error below one, choosing `h` from the last two accepted steps.

    With `k` the order of the error estimate, the elementary choice is `h (1/e)^(1/k)`; the predictive one
    multiplies it by `(h/h_prev) (e_prev/e)^(1/k)`. The smaller is taken (Hairer and Wanner II, section IV.8).

    >>> import diffrax
    >>> from saddleflow.solvers import PredictiveController
    >>> term, controller = diffrax.ODETerm(lambda t, y, args: -y), PredictiveController(rtol=1e-6, atol=1e-8)
    >>> solution = diffrax.diffeqsolve(
    ...     term, diffrax.Tsit5(), 0.0, 1.0, None, jnp.ones(2), stepsize_controller=controller
    ... )
    >>> print(f"{solution.ys[0, 0]:.5f}")  # exp(-1)
    0.36788

    Args:
        rtol: relative tolerance, one number.
        atol: absolute tolerance, one number, or a pytree like the state with one for every entry.
        norm: of the error of all entries in units of their tolerances; a step whose norm is below one is kept.
        safety: share of the step size that is expected to just meet the tolerance, between 0 and 1.
        factormin: least factor from one step size to the next, between 0 and 1.
        factormax: largest one, above 1.
        predicts: False: take the elementary choice alone; for a solver that asks for the next step itself (`NDF`).

    Raises:
        ValueError: an argument out of its range.
    """

    rtol: Any
    atol: Any
    norm: Callable[[PyTree], Any] = rms_norm
    safety: float = 0.9
    factormin: float = 0.2
    factormax: float = 8.0
    predicts: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        for name in ("rtol", "atol"):
            check_tolerance(name, getattr(self, name))
        for name, low, high in (("safety", 0, 1), ("factormin", 0, 1), ("factormax", 1, 1e6)):
            value = getattr(self, name)
            require(low < value < high, name, f"lie between {low} and {high}", value)

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        dtype = state_dtype(y0)
        atol = in_dtype(jtu.tree_reduce(jnp.minimum, jtu.tree_map(jnp.min, self.atol)), dtype)
        first, _ = PIDController(rtol=in_dtype(self.rtol, dtype), atol=atol, norm=self.norm).init(
            terms, t0, t1, y0, dt0, args, func, error_order
        )
        size = jnp.zeros((), jnp.result_type(t0, t1))
        return first, PredictiveState(size, jnp.ones((), dtype), jnp.asarray(False))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        del args
        state, h = controller_state, jnp.asarray(t1 - t0)

        scaled = scaled_error(y0, y1_candidate, y_error, self.rtol, self.atol)
        error = lax.stop_gradient(self.norm(scaled))
        error = jnp.where(jnp.isnan(error), jnp.inf, error)
        keep = error < 1
        positive = jnp.maximum(error, 1e-10)
        elementary = self.safety * positive ** (-1 / error_order)
        trend = jnp.where(state.size > 0, h / jnp.where(state.size > 0, state.size, 1.0), 1.0)
        predictive = elementary * trend * (state.error / positive) ** (1 / error_order)
        known = keep & (state.size > 0) & self.predicts
        factor = jnp.where(known, jnp.minimum(elementary, predictive), elementary)
        factor = jnp.clip(factor, self.factormin, jnp.where(state.failed | ~keep, 1.0, self.factormax))
        new = PredictiveState(
            jnp.where(keep, h, state.size),
            jnp.where(keep, jnp.maximum(error, 1e-2), state.error),
            ~keep,
        )
        next_t0 = jnp.where(keep, t1, t0)
        return keep, next_t0, next_t0 + (factor * h).astype(h.dtype), jnp.asarray(False), new, RESULTS.successful
