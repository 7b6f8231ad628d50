"""Rosenbrock methods for gradient flows: linearly implicit, L-stable, matrix-free.

Every stage is one linear solve with the same matrix `I - gamma h J`; no Newton iteration, no root
finder, no dense Jacobian. `J` must be symmetric (tested at the start).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from diffrax import RESULTS, AbstractLocalInterpolation, AbstractTerm, ODETerm
from jaxtyping import Array, Float, PyTree

from saddleflow.solvers._checks import is_concrete, require, require_integer
from saddleflow.solvers._precision import in_dtype, require_one_dtype, state_dtype
from saddleflow.solvers.controller import ALLOWANCE, RelativeError, amplified, check_tolerance, tolerances_like
from saddleflow.solvers.krylov import ConjugateBasis, SolveReport, conjugate_solve
from saddleflow.solvers.local_model import LocalModel, Plain, asymmetry, max_asymmetry
from saddleflow.solvers.support import Support, pattern
from saddleflow.solvers.tableaus import RODAS4, Tableau
from saddleflow.solvers.work import CountingSolver, Work

State = PyTree[Float[Array, "..."]]

# A quantity of the state tightens linear solves where changes within the entries' tolerances exceed its own so far.
STRAINED = 10.0


def combine(coefficients: Float[Array, " stages"], stages: Any, start: Any = None) -> Any:
    """`start + sum_j coefficients_j stages_j` over pytrees with a leading axis of stages."""
    total = jtu.tree_map(lambda x: jnp.tensordot(coefficients, x, axes=1), stages)
    return total if start is None else jtu.tree_map(jnp.add, start, total)


class RosenbrockInterpolation(AbstractLocalInterpolation):
    """The continuous extension of a Rodas method on one step."""

    t0: Any
    t1: Any
    y0: State
    y1: State
    k: tuple[State, ...]

    def evaluate(self, t0: Any, t1: Any | None = None, left: bool = True) -> State:
        if t1 is not None:
            return jtu.tree_map(lambda b, a: b - a, self.evaluate(t1), self.evaluate(t0))
        width = self.t1 - self.t0
        share = jnp.where(width == 0, 0.0, (t0 - self.t0) / jnp.where(width == 0, 1, width))

        def leaf(y0, y1, *k):
            theta = share.astype(y0.dtype)
            bump = jnp.zeros_like(y0)
            for coefficient in reversed(k):
                bump = bump * theta + coefficient
            return (1 - theta) * y0 + theta * (y1 + (1 - theta) * bump)

        return jtu.tree_map(leaf, self.y0, self.y1, *self.k)


class Rosenbrock(CountingSolver):
    """A Rodas method as a diffrax solver, for any vector field with a symmetric Jacobian.

    A step whose matrix is found indefinite, or whose solves fail, returns an infinite error: a rejection. Works
    under `jax.vmap`, with events and dense output, and in forward mode (`diffrax.ForwardMode`); for reverse mode
    set `scan_kind` to "bounded", and keep `max_products` and the number of steps small.

    >>> import diffrax
    >>> from saddleflow.solvers import PredictiveController, Rosenbrock
    >>> rates = 10.0 ** jnp.arange(6)
    >>> term, y0 = diffrax.ODETerm(lambda t, y, args: -rates * y), jnp.ones(6)
    >>> solver, controller = Rosenbrock(rtol=1e-6, atol=1e-8), PredictiveController(rtol=1e-6, atol=1e-8)
    >>> solution = diffrax.diffeqsolve(term, solver, 0.0, 1.0, 1e-3, y0, stepsize_controller=controller)
    >>> print(f"{solution.ys[0, 0]:.5f}")  # exp(-1)
    0.36788

    Args:
        rtol: the step controller's relative tolerance, a scalar (a traced one too). Stages are solved in its
            error norm, root mean square of entries over `atol + rtol |y|`. Left out, `gradient_flow` fills it in.
        atol: the step controller's absolute tolerance, likewise; or a pytree like the state, one for every entry.
        local_model: `(terms, t, y, args) -> LocalModel`, where a problem offers structure (see `LocalModel`) or,
            through `Plain`, a preconditioner.
        linear_tolerance: the error a stage's solve may leave, as a fraction of the step's tolerance.
        quantity_error: `(y0, y1, error) -> relative error` of a quantity that the state stands for, held to ten
            `rtol` beside the entries, whose small errors may add up in it. Left out, `gradient_flow` takes that of A.
        support: which entries of the state are there, where others are padding; None: all of them.
        strains: whether stages are solved more tightly where `quantity_error` asks for more than the entries'
            tolerances; False where it is relative to what those make of it anyway.
        max_krylov_dim: bounds memory, `2 max_krylov_dim` vectors of coordinates; older ones are overwritten.
        max_products: Jacobian products one stage may take before the step is given up.
        scan_kind: kind of the inner loop: "lax", or "bounded" or "checkpointed" for reverse mode.
        check_symmetry: test the Jacobian at the start with two random vectors (two products), and refuse one that
            is not symmetric.
        tableau: `RODAS4` (default), `RODAS4P` (little order reduction) or `RODAS5P`.

    Raises:
        ValueError: an argument out of its range; at the start of a solve, no tolerances, or a state whose leaves are
            not of one floating-point dtype.
        RuntimeError: at the start of a solve, a Jacobian that is not symmetric.
    """

    rtol: Any = None
    atol: Any = None
    local_model: Callable[[AbstractTerm, Any, State, PyTree], LocalModel] = Plain()
    linear_tolerance: float = 2e-2
    quantity_error: RelativeError | None = None
    support: Support | None = None
    strains: bool = eqx.field(static=True, default=True)
    max_krylov_dim: int = eqx.field(static=True, default=32)
    max_products: int = eqx.field(static=True, default=200)
    scan_kind: Literal["lax", "checkpointed", "bounded"] = eqx.field(static=True, default="lax")
    check_symmetry: bool = eqx.field(static=True, default=True)
    tableau: Tableau = eqx.field(static=True, default=RODAS4)

    term_structure: ClassVar = ODETerm
    interpolation_cls: ClassVar = RosenbrockInterpolation

    def __check_init__(self):
        for name in ("rtol", "atol"):
            if getattr(self, name) is not None:
                check_tolerance(name, getattr(self, name), "Pass the step controller's, such as 1e-6.")
        if is_concrete(self.linear_tolerance):
            require(
                0 < self.linear_tolerance < 1,
                "linear_tolerance",
                "lie between 0 and 1",
                self.linear_tolerance,
                "It is a fraction of the step's tolerance.",
            )
        require_integer("max_krylov_dim", self.max_krylov_dim, 1)
        require_integer("max_products", self.max_products, 1)
        kinds = ("lax", "checkpointed", "bounded")
        require(self.scan_kind in kinds, "scan_kind", f"be one of {kinds}", self.scan_kind)

    def order(self, terms):
        return self.tableau.order

    def error_order(self, terms):
        return self.tableau.order  # of the local error of the embedded method, one order lower

    def init(self, terms, t0, t1, y0, args) -> Work:
        require_one_dtype(y0)
        none = Work.none()
        if self.check_symmetry:
            none = eqx.error_if(
                none,
                asymmetry(terms, t0, y0, args) > max_asymmetry(state_dtype(y0)),
                "A Rosenbrock solver needs a symmetric Jacobian, as gradient flows have; this vector field has none "
                "(two-vector test). Take another solver, such as diffrax.Kvaerno5() or diffrax.Tsit5().",
            )
        return none

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def with_tolerances(
        self, rtol: Any, atol: Any, quantity_error: RelativeError | None = None, support: Support | None = None
    ) -> "Rosenbrock":
        return dataclasses.replace(
            self, rtol=rtol, atol=atol, quantity_error=self.quantity_error or quantity_error, support=support
        )

    def work(self, state: Work) -> Work:
        return state

    def rejected_state(self, old: Work, new: Work) -> Work:
        del old
        return new

    def tolerances(self) -> tuple[Any, Any]:
        """The step controller's `rtol` and `atol`; a ValueError where they were left out."""
        if self.rtol is None or self.atol is None:
            raise ValueError(
                "`rtol` and `atol` must be given to a Rosenbrock solver run by diffrax itself, but got "
                f"rtol={self.rtol}, atol={self.atol}. Pass the step controller's."
            )
        return self.rtol, self.atol

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del made_jump  # nothing is carried over but counters
        y1, error, dense, work, result = self.step_by_entries(terms, t0, t1, y0, args, solver_state)
        return (
            y1,
            amplified(error, y0, y1, *self.tolerances(), self.quantity_error, self.support),
            dense,
            work,
            result,
        )

    def step_by_entries(self, terms, t0, t1, y0, args, solver_state):
        """A step whose error is that of the entries alone."""
        tab, dtype = self.tableau, state_dtype(y0)
        h = jnp.asarray(t1 - t0)
        stages, argument, solves = self._stages(terms, jnp.asarray(t0, h.dtype), h, y0, args)
        last = jtu.tree_map(lambda u: u[-1], stages)
        y1 = jtu.tree_map(lambda a, b: a + b, argument, last)
        sound = solves.converged
        for leaf in jtu.tree_leaves(y1):
            sound = sound & jnp.all(jnp.isfinite(leaf))
        y_error = jtu.tree_map(lambda e: jnp.where(sound, e, jnp.inf), last)
        k = tuple(combine(row, stages) for row in tab.dense_rows(dtype))
        work = solver_state.add(tab.stages, solves.products, solves.preconditions)
        return y1, y_error, {"y0": y0, "y1": y1, "k": k}, work, RESULTS.successful

    def _stages(self, terms: Any, t0: Array, h: Array, y0: State, args: PyTree) -> tuple[State, State, SolveReport]:
        """All stages along a leading axis, the argument of the last one, and what their solves did together."""
        tab = self.tableau
        model = self.local_model(terms, t0, y0, args)
        step = h.astype(state_dtype(y0))
        shift = tab.gamma * step
        solve = self._solver(model, shift, y0)
        _, time_derivative = jax.jvp(lambda t: terms.vf(t, y0, args), (t0,), (jnp.ones_like(t0),))

        # One stage, scanned over the rows of the tableau: a sixth of the compilation of six of them in a row.
        def stage(carry, row):
            stages, coordinates, _, basis, total = carry
            index, a, coupling, c, d = row
            argument = combine(a, stages, y0)
            slope = terms.vf(t0 + c.astype(h.dtype) * h, argument, args)
            slope = jtu.tree_map(lambda f, ft: f + (d * step) * ft, slope, time_derivative)
            rhs = combine(tab.gamma * coupling, coordinates, shift * model.restrict(slope))
            z, basis, report = solve(basis, rhs, total.converged)
            if model.complete:
                new = model.extend(z)
            else:
                new = jtu.tree_map(lambda f, e: shift * f + e, slope, model.extend(z - rhs))
                new = combine(tab.gamma * coupling, stages, new)
            stages = jtu.tree_map(lambda buffer, x: buffer.at[index].set(x), stages, new)
            return (stages, coordinates.at[index].set(z), argument, basis, total.and_then(report)), None

        start = model.restrict(y0)
        carry = (
            jtu.tree_map(lambda y: jnp.zeros((tab.stages, *y.shape), y.dtype), y0),
            jnp.zeros((tab.stages, *start.shape), start.dtype),
            y0,
            ConjugateBasis.empty(self.max_krylov_dim, start),
            SolveReport.none(),
        )
        (stages, _, argument, _, total), _ = jax.lax.scan(stage, carry, tab.rows(step.dtype))
        return stages, argument, total

    def _strain(self, y0: State) -> Array | float:
        """By how much the quantity asks for more than the entries' tolerances, where it is `STRAINED` and more.

        Where the state's parts differ much in size, a change within the tolerance of a small one may be most of it.
        """
        if self.quantity_error is None or not self.strains:
            return 1.0
        rtol, atol = self.tolerances()

        def leaf(y, absolute, number):
            return jnp.sign(number) * (absolute + in_dtype(rtol, y.dtype) * jnp.abs(y))

        change = jtu.tree_map(leaf, y0, tolerances_like(atol, y0), pattern(y0))
        error = self.quantity_error(y0, y0, change) / (ALLOWANCE * in_dtype(rtol, state_dtype(y0)))
        return jnp.maximum(jnp.where(jnp.isfinite(error), error, 1.0) / STRAINED, 1.0)

    def _solver(self, model: LocalModel, shift: Array, y0: State) -> Callable[..., Any]:
        """A function of basis, right-hand side and whether to solve at all, for one matrix `I - shift J`."""
        rtol, atol = self.tolerances()
        precondition = model.preconditioner(shift)
        all_entries = sum(x.size for x in jtu.tree_leaves(y0))
        size = all_entries if self.support is None else self.support.count

        def inverse_square(y, absolute):
            return 1 / (absolute + in_dtype(rtol, y.dtype) * jnp.abs(y)) ** 2 / size

        weights = model.weights(jtu.tree_map(inverse_square, y0, tolerances_like(atol, y0)))

        def matrix(z):
            return z - shift * model.product(z)

        def norm(z):
            return jnp.sqrt(jnp.sum(weights * z * z))

        tolerance = self.linear_tolerance / self._strain(y0)

        def solve(basis, rhs, active):
            limits = tolerance, self.max_products
            return conjugate_solve(basis, matrix, precondition, rhs, norm, *limits, active, self.scan_kind)

        return solve
