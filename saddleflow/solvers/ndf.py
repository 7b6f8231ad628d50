"""Numerical differentiation formulas (NDF) of orders one to five, for long tails of stiff gradient flows.

On a tail the solution creeps along a curved valley for decades of time. The stiff directions turn with it, and a
linearly implicit method, which solves each stage with the Jacobian at the base of the step, is left with an error of
the size of the step times the stiffness times the cube of the move: it takes tiny steps, and their errors add up. A
fully implicit method whose equations are solved to the end has no such term. This is the variable-order method of
Shampine and Reichelt (The MATLAB ODE Suite, SIAM J. Sci. Comput. 18, 1997) with quasi-constant steps; how its
nonlinear equations are solved, which decides whether that works, is the problem's own (`Newton`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from diffrax import RESULTS, AbstractLocalInterpolation, AbstractTerm, ODETerm
from jaxtyping import Array, Bool, Float, Int, PyTree

from saddleflow.solvers._precision import in_dtype, state_dtype
from saddleflow.solvers.controller import PredictiveController, RelativeError, amplification, tolerances_like
from saddleflow.solvers.support import Support, mean_norm
from saddleflow.solvers.work import CountingSolver, Work

State = PyTree[Float[Array, "..."]]

# (terms, t, y, args) -> (c, b) -> dy: the update of y, linearised at y, towards `dy = b + c f(t, y + dy)`.
Newton = Callable[[AbstractTerm, Any, Any, Any], Callable[[Any, Any], Any]]

MAX_ORDER = 5
ROWS = MAX_ORDER + 3
_KAPPA = np.array([0, -0.1850, -1 / 9, -0.0823, -0.0415, 0])
GAMMA = np.array([0, *np.cumsum(1 / np.arange(1, MAX_ORDER + 1))])
ALPHA = (1 - _KAPPA) * GAMMA
# of the local error, by order; the last is asked for order six, which is never taken
ERROR = np.array([*(_KAPPA * GAMMA + 1 / np.arange(1, MAX_ORDER + 2)), 1.0])

# Errors of tails have one sign and are not forgotten: of `rtol` a step gets this share.
SHARE = 0.1
# Newton's last update over the tolerance of a step.
NEWTON_TOLERANCE = 1e-2
MAX_ITERATIONS = 10
# The next step is asked of the controller by an error of this order.
ASKED_ORDER = 4
SAFETY = PredictiveController.safety


class NDFState(eqx.Module):
    """Counters, and the past of the solution as backward differences at equal steps."""

    work: Work
    differences: State  # along a leading axis: y, its first difference, and so on
    size: Float[Array, ""]  # the step between them
    order: Int[Array, ""]
    equal: Int[Array, ""]  # steps of this size and order so far
    failures: Int[Array, ""]  # rejected steps in a row
    steps: Int[Array, ""]  # tried


class NDFInterpolation(AbstractLocalInterpolation):
    """The polynomial through the last `order + 1` points."""

    t0: Any
    t1: Any
    differences: State
    order: Int[Array, ""]

    def evaluate(self, t0: Any, t1: Any | None = None, left: bool = True) -> State:
        if t1 is not None:
            return jtu.tree_map(lambda b, a: b - a, self.evaluate(t1), self.evaluate(t0))
        width = self.t1 - self.t0
        x = jnp.where(width == 0, 0.0, (t0 - self.t1) / jnp.where(width == 0, 1, width))
        places = jnp.arange(MAX_ORDER)
        factors = jnp.cumprod((x + places) / (places + 1))
        weights = jnp.ones(ROWS, factors.dtype).at[1 : MAX_ORDER + 1].set(factors)
        return _combined(jnp.where(jnp.arange(ROWS) <= self.order, weights, 0.0), self.differences)


class NDF(CountingSolver):
    """Backward differences of variable order, whose equations are solved by the problem's own Newton iteration.

    The error that a step returns is not an estimate entry by entry: it is as large as it must be for a
    `PredictiveController` to accept or reject the step and to take the next one as long as the formulas want it.

    Args:
        newton: `(terms, t, y, args) -> solve`, and `solve(c, b)` is the update `dy` of y, linearised there, towards
            `dy = b + c f(t, y + dy)`.
        rtol: the step controller's relative tolerance.
        atol: the step controller's absolute tolerance: one number, or a pytree like the state.
        quantity_error: as in `Rosenbrock`.
        support: as in `Rosenbrock`.
    """

    newton: Newton
    rtol: Any = None
    atol: Any = None
    quantity_error: RelativeError | None = None
    support: Support | None = None

    term_structure: ClassVar = ODETerm
    interpolation_cls: ClassVar = NDFInterpolation

    def order(self, terms):
        return MAX_ORDER

    def error_order(self, terms):
        return ASKED_ORDER

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def with_tolerances(
        self, rtol: Any, atol: Any, quantity_error: RelativeError | None = None, support: Support | None = None
    ) -> "NDF":
        return NDF(self.newton, rtol, atol, self.quantity_error or quantity_error, support)

    def work(self, state: NDFState) -> Work:
        return state.work

    def rejected_state(self, old: NDFState, new: NDFState) -> NDFState:
        none = jnp.zeros_like(old.equal)
        return dataclasses.replace(old, work=new.work, steps=new.steps, equal=none, failures=old.failures + 1)

    def init(self, terms, t0, t1, y0, args) -> NDFState:
        h = jnp.asarray(t1 - t0).astype(state_dtype(y0))
        # Another solver may have left y a little beside the valley: the past begins at the foot, from where a step
        # of the same length is the slope's alone. Else what it has left would be taken for an error.
        zeros = jtu.tree_map(jnp.zeros_like, y0)
        relaxed = self.newton(terms, t0, y0, args)(h, zeros)
        move = self.newton(terms, t0, jtu.tree_map(jnp.add, y0, relaxed), args)(h, zeros)
        foot = jtu.tree_map(lambda y, d, m: y + (d - m), y0, relaxed, move)
        differences = jtu.tree_map(
            lambda y, d: jnp.zeros((ROWS, *y.shape), y.dtype).at[0].set(y).at[1].set(d), foot, move
        )
        none = jnp.zeros((), int)
        return NDFState(Work.none(), differences, h, none + 1, none, none, none)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del made_jump
        past, h = solver_state, jnp.asarray(t1 - t0).astype(state_dtype(y0))
        order, places = past.order, jnp.arange(ROWS)
        # equal but for rounding of the controller's
        same = jnp.abs(h / past.size - 1) < 1e-10
        ratio = jnp.where(same, 1.0, h / past.size)
        differences = _rescaled(past.differences, order, ratio)
        used = places <= order
        alpha = jnp.asarray(ALPHA, h.dtype)[order]
        gamma = jnp.zeros(ROWS, h.dtype).at[: MAX_ORDER + 1].set(GAMMA)
        predicted = _combined(jnp.where(used, 1.0, 0.0).astype(h.dtype), differences)
        psi = _combined(jnp.where(used, gamma, 0.0) / alpha, differences)
        y1, change, iterations, solved = self._solve(terms, t1, predicted, psi, h / alpha, args)
        new = _updated(differences, change, order)
        keep, factor, next_order = self._plan(y0, y1, change, new, order, iterations, solved, past, same)
        work = dataclasses.replace(
            past.work,
            vector_fields=past.work.vector_fields + iterations,
            preconditions=past.work.preconditions + iterations,
        )
        grown = (next_order != order) | (jnp.abs(factor - 1) > 1e-6)
        none = jnp.zeros_like(past.equal)
        equal = jnp.where(grown, none, jnp.where(same, past.equal, none) + 1)
        state = NDFState(work, new, h, next_order, equal, none, past.steps + 1)
        asked = (SAFETY / factor) ** ASKED_ORDER
        asked = jnp.where(keep, jnp.minimum(asked, 0.99), jnp.maximum(asked, 1.01))
        y_error = jtu.tree_map(lambda w: asked * w, self._weights(y0, y1))
        return y1, y_error, {"differences": new, "order": order}, state, RESULTS.successful

    def _weights(self, y0: State, y1: State) -> State:
        """The step controller's tolerance of every entry."""

        def leaf(a, b, absolute):
            b = jnp.where(jnp.isfinite(b), b, a)
            return absolute + in_dtype(self.rtol, a.dtype) * jnp.maximum(jnp.abs(a), jnp.abs(b))

        return jtu.tree_map(leaf, y0, y1, tolerances_like(self.atol, y0))

    def _solve(
        self, terms: Any, t1: Any, predicted: State, psi: State, c: Array, args: PyTree
    ) -> tuple[State, State, Int[Array, ""], Bool[Array, ""]]:
        """Solve `change = c f(predicted + change) - psi`: y1, the change, iterations, whether they converged."""
        weights = self._weights(predicted, predicted)
        rounding = 8 * jnp.finfo(c.dtype).eps / in_dtype(self.rtol, c.dtype)
        enough = jnp.maximum(NEWTON_TOLERANCE * SHARE, rounding)

        def go_on(carry):
            _, _, count, size, before = carry
            diverges = (count > 2) & (size > 2 * before)
            return (count < MAX_ITERATIONS) & (size > enough) & ~diverges & jnp.isfinite(size)

        def iterate(carry):
            y, change, count, size, _ = carry
            update = self.newton(terms, t1, y, args)(c, jtu.tree_map(lambda p, d: -p - d, psi, change))
            y, change = jtu.tree_map(jnp.add, y, update), jtu.tree_map(jnp.add, change, update)
            return y, change, count + 1, mean_norm(jtu.tree_map(jnp.divide, update, weights), self.support), size

        far = jnp.asarray(1e30, c.dtype)
        start = predicted, jtu.tree_map(jnp.zeros_like, predicted), jnp.zeros((), int), far, far
        y1, change, count, size, _ = jax.lax.while_loop(go_on, iterate, start)
        return y1, change, count, size <= enough

    def _plan(
        self, y0, y1, change, new, order, iterations, solved, past, same
    ) -> tuple[Bool[Array, ""], Float[Array, ""], Int[Array, ""]]:
        """Whether the step is good, the factor to the next step's size, and the next order."""
        weights, errors = self._weights(y0, y1), jnp.asarray(ERROR, past.size.dtype)

        def size(error: State) -> Array:
            return mean_norm(jtu.tree_map(jnp.divide, error, weights), self.support) / SHARE

        error = jtu.tree_map(lambda d: errors[order] * d, change)
        here = size(error)
        here = here * amplification(SHARE * here, error, y0, y1, self.rtol, self.quantity_error)
        here = jnp.where(solved & jnp.isfinite(here), here, jnp.inf)
        keep = here < 1
        safety = SAFETY * (2 * MAX_ITERATIONS + 1) / (2 * MAX_ITERATIONS + iterations)
        below = jnp.where(order > 1, errors[order - 1] * size(_row(new, order)), jnp.inf)
        above = jnp.where(order < MAX_ORDER, errors[order + 1] * size(_row(new, order + 2)), jnp.inf)
        sizes = jnp.maximum(jnp.stack([below, here, above]), 1e-12)
        factors = safety * sizes ** (-1.0 / (order + jnp.arange(3)))
        ripe = jnp.where(same, past.equal, 0) >= order
        best = jnp.argmax(factors)
        factor = jnp.minimum(factors[best], 8.0)
        changes = ripe & ((factor < 0.95) | (factor > 1.2))
        accepted = jnp.where(changes, factor, 1.0), jnp.where(changes, order + best - 1, order)
        shorter = jnp.where(solved, jnp.clip(safety * here ** (-1.0 / (order + 1)), 0.2, 0.9), 0.5)
        return keep, jnp.where(keep, accepted[0], shorter), jnp.where(keep, accepted[1], order)


def _combined(weights: Float[Array, " rows"], differences: State) -> State:
    return jtu.tree_map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, axes=1), differences)


def _row(differences: State, index: Int[Array, ""]) -> State:
    return jtu.tree_map(lambda x: x[index], differences)


def _rescaled(differences: State, order: Int[Array, ""], ratio: Float[Array, ""]) -> State:
    """The differences up to an order, of points `ratio` times as far apart on the same polynomial."""
    i, j = np.arange(1, MAX_ORDER + 1)[:, None], np.arange(1, MAX_ORDER + 1)

    def cumulative(factor):
        inner = jnp.cumprod((i - 1 - factor * j) / i, axis=0)
        return jnp.eye(MAX_ORDER + 1, dtype=ratio.dtype).at[1:, 1:].set(inner).at[0, 1:].set(1.0)

    # leading blocks of these products are those of lower orders
    change = cumulative(ratio) @ cumulative(jnp.ones_like(ratio))
    inside = jnp.arange(MAX_ORDER + 1) <= order
    change = jnp.where(inside[:, None] & inside, change, jnp.eye(MAX_ORDER + 1, dtype=ratio.dtype))
    matrix = jnp.eye(ROWS, dtype=ratio.dtype).at[: MAX_ORDER + 1, : MAX_ORDER + 1].set(change.T)
    return jtu.tree_map(lambda x: jnp.tensordot(matrix.astype(x.dtype), x, axes=1), differences)


def _updated(differences: State, change: State, order: Int[Array, ""]) -> State:
    """The differences at the end of a step that changed the prediction so much."""
    places = jnp.arange(ROWS)
    # row i <= order gains all rows from i + 1 to order, and the change; the two rows beyond are new
    above = jnp.where((places[:, None] <= order) & (places >= places[:, None]) & (places <= order), 1.0, 0.0)
    gains = jnp.where(places <= order + 2, 1.0, 0.0)
    last = jnp.where((places[:, None] == order + 2) & (places == order + 1), -1.0, 0.0)

    def leaf(x, d):
        matrix, gain = (above + last).astype(x.dtype), gains.astype(x.dtype)
        return jnp.tensordot(matrix, x, axes=1) + gain.reshape(-1, *[1] * d.ndim) * d

    return jtu.tree_map(leaf, differences, change)
