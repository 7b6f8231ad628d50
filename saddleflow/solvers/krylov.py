"""Linear solves of one Rosenbrock step: conjugate gradients that forget nothing within the step.

All stages of a step solve with the same matrix `A = I - shift * J`. Search directions are made
A-conjugate to every earlier direction of the step and kept with their images, so a later stage starts
from the best solution within their span, at no product, and only adds what is missing. What is missing at the
end is mostly supplied by one last application of the preconditioner, which costs no product either.

Memory: `2 capacity` vectors of the coordinates' length.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saddleflow.solvers._precision import threshold_in

Vector = Float[Array, " d"]
Kind = Literal["lax", "checkpointed", "bounded"]

_INDEPENDENT = 1e-11  # p^T A p of a new direction, relative to z^T A z, in float64
_PATIENCE = 10  # products without a smaller residual before rounding is blamed
_BLOCK = 4  # rows of the basis handled at a time: a few, so that unused rows cost nothing
# Of vectors of so many numbers products with all rows at once, used or not, take less than copies of blocks do
# (measured at 30,000 and 150,000 numbers: as long as ten rows in blocks, a fifth of thirty).
_LARGE = 10_000


class ConjugateBasis(eqx.Module):
    """Directions `p` with `p^T A p = 1`, pairwise A-conjugate, and their images `A p`.

    Once `capacity` directions are stored, the first half stays and the latest circulate through the second, which a
    later solve starts afresh: deflated conjugate gradients, whose short recurrence needs no more. (Were the oldest
    overwritten, the recurrence would break and the solve stall.) That costs extra products and never correctness:
    each stage measures its own residual.
    """

    directions: Float[Array, "capacity d"]
    images: Float[Array, "capacity d"]
    count: Int[Array, ""]
    contraction: Float[Array, ""]  # of the residual by one preconditioner application; infinite: not measured
    gain: Float[Array, ""]  # largest |A p| / |p| seen, an estimate of |A|

    @classmethod
    def empty(cls, capacity: int, like: Vector) -> "ConjugateBasis":
        """No directions yet; `capacity` is rounded up to whole blocks."""
        rows = -(-capacity // _BLOCK) * _BLOCK
        zeros = jnp.zeros((rows, like.shape[0]), like.dtype)
        return cls(zeros, zeros, jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf, like.dtype), jnp.ones((), like.dtype))


class SolveReport(eqx.Module):
    """What solves did: whether all met their tolerance, products, preconditioner applications."""

    converged: Bool[Array, ""]
    products: Int[Array, ""]
    preconditions: Int[Array, ""]

    @classmethod
    def none(cls) -> "SolveReport":
        """Of no solve at all."""
        return cls(jnp.asarray(True), jnp.zeros((), int), jnp.zeros((), int))

    def and_then(self, later: "SolveReport") -> "SolveReport":
        """Of this solve and a later one together."""
        return SolveReport(
            self.converged & later.converged,
            self.products + later.products,
            self.preconditions + later.preconditions,
        )


class _Iteration(eqx.Module):
    """Carry of one solve."""

    directions: Any  # (capacity, d), as equinox's write-once buffers inside the loop
    images: Any
    count: Int[Array, ""]
    solution: Vector
    residual: Vector
    size: Float[Array, ""]  # of the residual
    largest: Float[Array, ""]  # of any residual or update: what rounding is relative to
    contraction: Float[Array, ""]  # largest seen in this step: |r - A M r| / |r|
    gain: Float[Array, ""]
    best: Float[Array, ""]  # smallest residual so far
    stalled: Int[Array, ""]  # products since
    definite: Bool[Array, ""]
    products: Int[Array, ""]


def _over_blocks(count, capacity: int, body, init, kind: str, at_once: bool = False):
    """Fold `body(block, carry)` over the blocks in use; all rows `at_once` are one block, of number None."""
    if at_once:
        return body(None, init)
    total = capacity // _BLOCK
    if kind != "lax":  # a fixed number of trips, for reverse mode
        carry = init
        for block in range(total):
            carry = body(block, carry)
        return carry
    used = jnp.minimum((count + _BLOCK - 1) // _BLOCK, total)
    return jax.lax.fori_loop(0, used, body, init)


def _rows(buffer, block):
    """One block of a basis."""
    return buffer[:] if block is None else jax.lax.dynamic_slice_in_dim(buffer[:], block * _BLOCK, _BLOCK)


def _along(rows, vector, block, count):
    """Products of a vector with one block of rows; zero for rows not there (yet, or any more)."""
    first = 0 if block is None else block * _BLOCK
    return jnp.where(first + jnp.arange(len(rows)) < count, rows @ vector, 0.0)


def _rounding(c: _Iteration) -> Any:
    """Relative size of a residual that rounding leaves; asking for less would fill the basis with noise."""
    return 8 * jnp.finfo(c.residual.dtype).eps


@dataclasses.dataclass(frozen=True)
class _Solve:
    """What does not change while one system is solved: the arguments of `conjugate_solve`, but for the start."""

    capacity: int
    matrix: Callable[[Vector], Vector]
    precondition: Callable[[Vector], Vector] | None
    norm: Callable[[Vector], Float[Array, ""]]
    tolerance: Float[Array, ""] | float
    max_products: int
    kind: Kind

    def start(self, basis: ConjugateBasis, rhs: Vector, active: Bool[Array, ""] | bool) -> _Iteration:
        """The best solution within the span of the basis, at no product."""

        def project(block, carry):
            solution, residual = carry
            rows = _rows(basis.directions, block)
            along = _along(rows, rhs, block, basis.count)
            return solution + along @ rows, residual - along @ _rows(basis.images, block)

        none = jnp.zeros_like(rhs)
        at_once = self._at_once(rhs)
        solution, residual = _over_blocks(basis.count, self.capacity, project, (none, rhs), self.kind, at_once)
        kept = self.capacity // 2
        return _Iteration(
            directions=basis.directions,
            images=basis.images,
            count=jnp.where(basis.count > self.capacity, kept, basis.count),
            solution=solution,
            residual=residual,
            size=self.norm(residual),
            largest=jnp.maximum(self.norm(rhs), self.norm(rhs - residual)),
            contraction=basis.contraction,
            gain=basis.gain,
            best=self.norm(residual),
            stalled=jnp.zeros((), jnp.int32),
            definite=jnp.asarray(active),
            products=jnp.zeros((), jnp.int32),
        )

    def converged(self, c: _Iteration) -> Bool[Array, ""]:
        """The residual meets the tolerance, by the last correction if need be, or is as good as it gets."""
        return c.definite & ((self._polished(c) <= self._goal(c)) | self._exhausted(c))

    def unfinished(self, c: _Iteration) -> Bool[Array, ""]:
        """Whether to take one more product."""
        short = (self._polished(c) > self._goal(c)) & ~self._exhausted(c)
        return short & c.definite & (c.products < self.max_products)

    def _goal(self, c: _Iteration) -> Float[Array, ""]:
        return jnp.maximum(self.tolerance, _rounding(c) * c.largest)

    def _polished(self, c: _Iteration) -> Float[Array, ""]:
        """Size of the residual after the last correction."""
        return c.size if self.precondition is None else jnp.minimum(c.contraction, 1.0) * c.size

    def _exhausted(self, c: _Iteration) -> Bool[Array, ""]:
        """No progress any more, and what is left is what rounding in `A p` leaves: as good as it gets."""
        return (c.stalled >= _PATIENCE) & (c.size <= _rounding(c) * c.gain * self.norm(c.solution))

    def iterate(self, c: _Iteration) -> _Iteration:
        """One product: along the preconditioned residual, made conjugate to all of the basis."""
        z = c.residual if self.precondition is None else self.precondition(c.residual)
        p, known, energy, solution, residual = self._conjugate(c, z)
        ap = self.matrix(p)
        contraction = self.norm(c.residual - known - ap) / jnp.where(c.size > 0, c.size, 1.0)
        curvature = p @ ap
        definite = (curvature > 0) & jnp.isfinite(curvature)
        length = self.norm(p)
        gain = jnp.where(length > 0, self.norm(ap) / jnp.where(length > 0, length, 1.0), 0.0)
        scale = jnp.where(definite, jax.lax.rsqrt(jnp.where(definite, curvature, 1.0)), 0.0)
        p, ap = scale * p, scale * ap
        along = p @ residual
        change = along * ap
        residual = residual - change
        # All but nothing left after conjugation: noise, good for a line search but not for the basis.
        independent: Any = definite & (curvature > threshold_in(z.dtype, _INDEPENDENT) * energy)
        size = self.norm(residual)
        kept = self.capacity // 2
        slot = jnp.where(c.count < self.capacity, c.count, kept + (c.count - kept) % (self.capacity - kept))
        return _Iteration(
            directions=eqxi.buffer_at_set(c.directions, slot, p, pred=independent),
            images=eqxi.buffer_at_set(c.images, slot, ap, pred=independent),
            count=c.count + independent,
            solution=solution + along * p,
            residual=residual,
            size=size,
            largest=jnp.maximum(c.largest, self.norm(change)),
            gain=jnp.maximum(c.gain, gain),
            best=jnp.minimum(c.best, size),
            stalled=jnp.where(size < c.best, 0, c.stalled + 1),
            contraction=jnp.where(jnp.isinf(c.contraction), contraction, jnp.maximum(c.contraction, contraction)),
            definite=definite,
            products=c.products + 1,
        )

    def _conjugate(self, c: _Iteration, z: Vector) -> tuple[Vector, Vector, Float[Array, ""], Vector, Vector]:
        """What of z is conjugate to the basis; what is known of `A z`; how much of `z^T A z` lies in the span.

        And solution and residual, cleared of what rounding put back into the span; but for large vectors, of whose
        work that would be more than half.
        """

        def clear(block, carry):
            p, known, energy, solution, residual = carry
            rows, images = _rows(c.directions, block), _rows(c.images, block)
            along = _along(images, z, block, c.count)
            if not at_once:
                left = _along(rows, residual, block, c.count)
                solution, residual = solution + left @ rows, residual - left @ images
            return (
                p - along @ rows,
                known if self.precondition is None else known + along @ images,  # asked for with one only
                energy + along @ along,
                solution,
                residual,
            )

        at_once = self._at_once(z)
        carry = (z, jnp.zeros_like(z), jnp.zeros((), z.dtype), c.solution, c.residual)
        return _over_blocks(c.count, self.capacity, clear, carry, self.kind, at_once)

    def _at_once(self, vector: Vector) -> bool:
        """Whether all rows of the basis are taken at once."""
        return self.kind == "lax" and vector.shape[0] >= _LARGE


def conjugate_solve(
    basis: ConjugateBasis,
    matrix: Callable[[Vector], Vector],
    precondition: Callable[[Vector], Vector] | None,
    rhs: Vector,
    norm: Callable[[Vector], Float[Array, ""]],
    tolerance: Float[Array, ""] | float,
    max_products: int,
    active: Bool[Array, ""] | bool = True,
    kind: Kind = "lax",
) -> tuple[Vector, ConjugateBasis, SolveReport]:
    """Solve `matrix x = rhs` until `norm(residual) <= tolerance`, adding directions to the basis.

    The residual that stops the iteration is the true one, not the preconditioned one. One application of
    the preconditioner `M` at the end is free of products: it multiplies the residual by `I - A M`, whose
    contraction was measured in this step; the iteration stops as soon as that last correction will do.
    Where it does not contract, or without a preconditioner (which would let stiff directions hide from the
    measurement), it is left out. Not `active` (an earlier stage failed): no products at all.
    A direction with `p^T A p <= 0` (indefinite matrix), or not finite, ends the solve as not converged;
    nothing is divided by it.

    >>> from saddleflow.solvers import ConjugateBasis, conjugate_solve
    >>> a, rhs = jnp.array([[2.0, 1.0], [1.0, 3.0]]), jnp.array([3.0, 4.0])
    >>> basis = ConjugateBasis.empty(32, rhs)
    >>> x, basis, report = conjugate_solve(basis, lambda v: a @ v, None, rhs, jnp.linalg.norm, 1e-8, 200)
    >>> print(f"{x[0]:.6f} {x[1]:.6f} {report.products}")
    1.000000 1.000000 2

    Args:
        basis: directions of earlier solves with the same matrix.
        matrix: `v -> A v`, symmetric.
        precondition: `v -> M v`, symmetric and positive, near the inverse of A; or None.
        rhs: shape (d,).
        norm: of a residual, in which the tolerance is given.
        tolerance: of the residual; below rounding the solve ends at rounding.
        max_products: at most so many products with A.
        active: whether to solve at all.
        kind: of the loop, as in `equinox.internal.while_loop`: "bounded" or "checkpointed" for reverse mode.

    Returns:
        The solution, the basis with what was added, and what the solve did.
    """
    solve = _Solve(basis.directions.shape[0], matrix, precondition, norm, tolerance, max_products, kind)
    # Reverse mode demands of a buffer that nothing is overwritten, or read early: there the basis is ordinary carry.
    buffers = (lambda c: (c.directions, c.images)) if kind == "lax" else None
    start = solve.start(basis, rhs, active)
    end = eqxi.while_loop(solve.unfinished, solve.iterate, start, max_steps=max_products, buffers=buffers, kind=kind)
    basis = ConjugateBasis(end.directions, end.images, end.count, end.contraction, end.gain)
    solution, preconditions = end.solution, jnp.zeros_like(end.products)
    if precondition is not None:
        solution = solution + jnp.where(end.contraction < 1, precondition(end.residual), 0.0)
        preconditions = end.products + 1
    return solution, basis, SolveReport(solve.converged(end), end.products, preconditions)
