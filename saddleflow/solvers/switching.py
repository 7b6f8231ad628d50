"""Explicit steps where the flow is not stiff, linearly implicit ones where it is.

On the way out of a saddle what limits a step is accuracy, not stability: there an explicit method of high order
goes further, and for less, than a stiff one. On a plateau and in the tail it is the other way round.
"""

import dataclasses
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from diffrax import RESULTS, AbstractLocalInterpolation, ODETerm
from jaxtyping import Array, Bool, Float, Int, PyTree

from saddleflow.solvers._precision import in_dtype, state_dtype
from saddleflow.solvers.controller import RelativeError, amplification, scaled_size
from saddleflow.solvers.rosenbrock import Rosenbrock, RosenbrockInterpolation, combine
from saddleflow.solvers.support import Support, pattern
from saddleflow.solvers.work import CountingSolver, Work

State = PyTree[Float[Array, "..."]]

EXPLICIT = diffrax.Dopri8()
EXPLICIT_ORDER = 8
STAGES = len(EXPLICIT.tableau.c) + 1
# Spectral radius times step: Dormand and Prince's method damps real spectra up to 5.2; the radius, from power
# iteration, is an estimate from below.
STABLE = 4.0
# Stiff steps, of fourth order, over explicit ones of eighth at the same tolerance where accuracy limits both:
# this times rtol^(1/4 - 1/8). Measured on flows of deep linear networks.
STEP_RATIO = 1.5
CAUTION = 0.85  # besides the controller's own safety factor, where an error of order eight decides
# An explicit step's error counts this much more than a stiff one's, whose estimate is of an order less: so much holds
# the modes' times to 10 x rtol (tests/test_exact.py).
WEIGHT = 3.0
STIFF_ROWS = 3  # of the stiff methods' dense output at most; zeros where there are fewer
RELUCTANCE = 1.2  # steps of both cost about the same (13 vector fields, or 6 with solves): the longer one, by this
# After so many explicit steps held by stability a stiff one is tried: how far it would go, errors that stiffness
# has inflated do not tell.
PATIENCE = 8
POWER_ITERATIONS = 10  # before the first step
STALE = 4  # stiff steps that one estimate of the spectral radius serves: they need it only to tell when to leave off


class SwitchingState(eqx.Module):
    """Counters; the power iteration for the spectral radius; what the next step is to be."""

    work: Work
    direction: State  # of Euclidean norm one
    radius: Float[Array, ""]  # the spectral radius as last estimated
    age: Int[Array, ""]  # stiff steps tried since then
    slope: State  # the vector field at y0, where known: an explicit step ends by evaluating it
    slope_known: Bool[Array, ""]
    stiff: Bool[Array, ""]
    held: Int[Array, ""]  # explicit steps that stability has held since the last stiff one


class SwitchingInterpolation(AbstractLocalInterpolation):
    """The continuous extension of whichever method took the step."""

    t0: Any
    t1: Any
    y0: State
    y1: State
    k: State  # along a leading axis: the stages of an explicit step, or the fewer rows of a stiff one
    stiff: Bool[Array, ""]

    def evaluate(self, t0: Any, t1: Any | None = None, left: bool = True) -> State:
        if t1 is not None:
            return jtu.tree_map(lambda b, a: b - a, self.evaluate(t1), self.evaluate(t0))
        steps = {"t0": self.t0, "t1": self.t1, "y0": self.y0, "y1": self.y1}
        rows = tuple(jtu.tree_map(lambda x, m=m: x[m], self.k) for m in range(STIFF_ROWS))
        implicit = RosenbrockInterpolation(**steps, k=rows).evaluate(t0)
        explicit = EXPLICIT.interpolation_cls(**steps, k=self.k).evaluate(t0)
        return jtu.tree_map(lambda a, b: jnp.where(self.stiff, a, b), implicit, explicit)


def explicit_step(terms: Any, t0: Any, h: Any, y0: State, args: PyTree, slope: State) -> tuple[State, State, State]:
    """One step of `EXPLICIT` from the slope at its start: y1, the error estimate, all stages (slopes times h).

    As in `Rosenbrock`, one stage is compiled and scanned over the rows of the tableau.
    """
    tableau, h, dtype = EXPLICIT.tableau, jnp.asarray(h), state_dtype(y0)
    step = h.astype(dtype)
    rows = np.zeros((STAGES - 1, STAGES))
    for row, coefficients in zip(rows, tableau.a_lower, strict=True):
        row[: len(coefficients)] = coefficients

    def put(stages, index, slope):
        return jtu.tree_map(lambda buffer, f: buffer.at[index].set(step * f), stages, slope)

    def stage(carry, row):
        stages, _ = carry
        index, a, c = row
        y = combine(a, stages, y0)
        return (put(stages, index, terms.vf(t0 + c * h, y, args)), y), None

    stages = jtu.tree_map(lambda y: jnp.zeros((STAGES, *y.shape), y.dtype), y0)
    scanned = (jnp.arange(1, STAGES), jnp.asarray(rows, dtype), jnp.asarray(tableau.c, h.dtype))
    # the last row is the solution's: first same as last
    (stages, y1), _ = jax.lax.scan(stage, (put(stages, 0, slope), y0), scanned)
    return y1, combine(jnp.asarray(tableau.b_error, dtype), stages), stages


class Switching(CountingSolver):
    """A `Rosenbrock` solver that takes explicit steps (Dormand and Prince, order 8) where those go further for less.

    The choice rests on the spectral radius of the Jacobian, by one step of power iteration (one product) an explicit
    step or a few stiff ones, and on what the error estimate of the last step says of the next one's length by either
    method. The error estimates of both methods are rescaled so that a controller of the stiff method's order proposes
    the length of the method to come; what is accepted and what is rejected stays the same.

    Under `jax.vmap` every lane pays for both methods at every step.

    >>> import diffrax
    >>> from saddleflow.solvers import PredictiveController, Rosenbrock, Switching
    >>> rates = 10.0 ** jnp.arange(6)
    >>> term, y0 = diffrax.ODETerm(lambda t, y, args: -rates * y), jnp.ones(6)
    >>> solver, controller = Switching(Rosenbrock(rtol=1e-6, atol=1e-8)), PredictiveController(rtol=1e-6, atol=1e-8)
    >>> solution = diffrax.diffeqsolve(term, solver, 0.0, 1.0, 1e-3, y0, stepsize_controller=controller)
    >>> print(f"{solution.ys[0, 0]:.5f}")  # exp(-1)
    0.36788

    Args:
        stiff: the linearly implicit method; its tolerances are the controller's.

    Raises:
        ValueError: as `Rosenbrock`, at the start of a solve.
        RuntimeError: likewise.
    """

    stiff: Rosenbrock = Rosenbrock()

    term_structure: ClassVar = ODETerm
    interpolation_cls: ClassVar = SwitchingInterpolation

    def order(self, terms):
        return self.stiff.order(terms)

    def error_order(self, terms):
        return self.stiff.error_order(terms)

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def with_tolerances(
        self, rtol: Any, atol: Any, quantity_error: RelativeError | None = None, support: Support | None = None
    ) -> "Switching":
        return Switching(self.stiff.with_tolerances(rtol, atol, quantity_error, support))

    def work(self, state: SwitchingState) -> Work:
        return state.work

    def rejected_state(self, old: SwitchingState, new: SwitchingState) -> SwitchingState:
        return dataclasses.replace(new, slope=old.slope, slope_known=old.slope_known, stiff=old.stiff, held=old.held)

    def init(self, terms, t0, t1, y0, args) -> SwitchingState:
        work = self.stiff.init(terms, t0, t1, y0, args)
        # any vector that is no eigenvector; as random as this costs nothing to compile
        start, support = pattern(y0), self.stiff.support
        if support is not None:
            start = jtu.tree_map(jnp.multiply, start, support.mask)
        length = _length(start)
        start = jtu.tree_map(lambda x: x / length, start), jnp.zeros((), length.dtype)
        direction, radius = jax.lax.fori_loop(
            0, POWER_ITERATIONS, lambda _, v: _power(terms, t0, y0, args, v[0]), start
        )
        work = eqx.tree_at(lambda w: w.products, work, work.products + POWER_ITERATIONS)
        zeros = jtu.tree_map(jnp.zeros_like, y0)
        no, none = jnp.asarray(False), jnp.zeros((), int)
        return SwitchingState(work, direction, radius, none, zeros, no, no, none)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        h = jnp.asarray(t1 - t0).astype(state_dtype(y0))
        # what is chosen is not differentiated
        fresh = ~solver_state.stiff | (solver_state.age >= STALE - 1)
        power = jax.lax.cond(
            fresh,
            lambda: _power(terms, t0, jax.lax.stop_gradient(y0), args, solver_state.direction),
            lambda: (solver_state.direction, solver_state.radius),
        )
        direction, radius = jax.lax.stop_gradient(power)
        age = jnp.where(fresh, 0, solver_state.age + 1)
        known = solver_state.slope_known & ~jnp.asarray(made_jump)
        zeros = jtu.tree_map(jnp.zeros_like, y0)

        def padded(*rows):
            return jnp.concatenate([jnp.stack(rows), jnp.zeros((STAGES - len(rows), *rows[0].shape), rows[0].dtype)])

        def implicit():
            y1, error, dense, work, _ = self.stiff.step_by_entries(terms, t0, t1, y0, args, solver_state.work)
            return y1, error, jtu.tree_map(padded, *dense["k"]), work, zeros

        def explicit():
            slope = jax.lax.cond(known, lambda: solver_state.slope, lambda: terms.vf(t0, y0, args))
            y1, error, stages = explicit_step(terms, t0, h, y0, args, slope)
            fields = solver_state.work.vector_fields + (STAGES - known)
            work = eqx.tree_at(
                lambda w: (w.vector_fields, w.explicit_steps),
                solver_state.work,
                (fields, solver_state.work.explicit_steps + 1),
            )
            return y1, error, stages, work, jtu.tree_map(lambda k: k[-1] / h, stages)

        stiff = solver_state.stiff | (h * radius > 1.1 * STABLE)
        y1, error, stages, work, slope = jax.lax.cond(stiff, implicit, explicit)
        work = eqx.tree_at(lambda w: w.products, work, work.products + fresh)
        error, stiff_next, held = self._plan(stiff, solver_state.held, h, radius, y0, y1, error)
        new = SwitchingState(work, direction, radius, age, slope, ~stiff, stiff_next, held)
        return y1, error, {"y0": y0, "y1": y1, "k": stages, "stiff": stiff}, new, RESULTS.successful

    def _plan(self, stiff, held, h, radius, y0, y1, error):
        """The error rescaled for the controller, the method of the next step, steps held by stability until now."""
        rtol, atol = self.stiff.tolerances()
        rtol = in_dtype(rtol, h.dtype)
        low, high = self.stiff.error_order(None), EXPLICIT_ORDER
        size = scaled_size(y0, y1, error, rtol, atol, self.stiff.support)
        raised = amplification(size, error, y0, y1, rtol, self.stiff.quantity_error) * jnp.where(stiff, 1.0, WEIGHT)
        size = raised * size
        size = jnp.where(jnp.isfinite(size), size, jnp.inf)
        positive = jnp.maximum(size, 1e-12)
        # lengths at which either method would just meet the tolerance
        ratio = jnp.minimum(STEP_RATIO * rtol ** (1 / low - 1 / high), 1.0)
        reach = h * positive ** jnp.where(stiff, -1 / low, -1 / high)
        implicit = jnp.where(stiff, reach, ratio * reach)
        explicit = jnp.minimum(jnp.where(stiff, reach / ratio, reach), STABLE / radius)
        held = jnp.where(stiff, 0, held + (STABLE / radius < reach))
        gain = implicit / explicit
        stiff_next = jnp.where(stiff, gain > 1 / RELUCTANCE, (gain > RELUCTANCE) | (held >= PATIENCE))
        wanted = jnp.where(stiff_next, implicit, CAUTION * explicit)
        wanted = (h / wanted) ** low
        accepted = jnp.minimum(wanted, 0.99)
        shown = jnp.where(size < 1, accepted, positive ** jnp.where(stiff, 1.0, low / high))
        factor = raised * jnp.where(size > 0, shown / positive, 1.0)
        return jtu.tree_map(lambda e: jnp.where(jnp.isfinite(size), e * factor, jnp.inf), error), stiff_next, held


def _length(tree: State) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(x * x) for x in jtu.tree_leaves(tree)))


def _power(terms: Any, t: Any, y: State, args: PyTree, direction: State) -> tuple[State, Float[Array, ""]]:
    """One step of power iteration with the Jacobian at y: the next direction, the estimated spectral radius."""
    image = jax.jvp(lambda q: terms.vf(t, q, args), (y,), (direction,))[1]
    length = _length(image)
    sound = (length > 0) & jnp.isfinite(length)
    factor = jnp.where(sound, 1 / jnp.where(sound, length, 1.0), 0.0)
    return jtu.tree_map(lambda w, v: jnp.where(sound, factor * w, v), image, direction), jnp.where(sound, length, 0.0)
