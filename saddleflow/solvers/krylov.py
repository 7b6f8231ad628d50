"""Linear solves of one Rosenbrock step: conjugate gradients that forget nothing within the step.

All stages of a step solve with the same matrix `A = I - shift * J`. Search directions are made
A-conjugate to every earlier direction of the step and kept with their images, so a later stage starts
from the best solution within their span, at no product, and only adds what is missing. What is missing at the
end is mostly supplied by one last application of the preconditioner, which costs no product either.

Memory: `2 capacity` vectors of the coordinates' length.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Vector = Float[Array, " d"]
Kind = Literal["lax", "checkpointed", "bounded"]

_INDEPENDENT = 1e-11  # p^T A p of a new direction, relative to z^T A z
_PATIENCE = 10  # products without a smaller residual before rounding is blamed
_BLOCK = 4  # rows of the basis handled at a time: a few, so that unused rows cost nothing


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
    """What one solve did: whether it met the tolerance, products, preconditioner applications."""

    converged: Bool[Array, ""]
    products: Int[Array, ""]
    preconditions: Int[Array, ""]


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


def _over_blocks(count, capacity: int, body, init, kind: str):
    """Fold `body(block, carry)` over the blocks in use."""
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
    return jax.lax.dynamic_slice_in_dim(buffer[:], block * _BLOCK, _BLOCK)


def _along(rows, vector, block, count):
    """Products of a vector with one block of rows; zero for rows not there (yet, or any more)."""
    return jnp.where(block * _BLOCK + jnp.arange(_BLOCK) < count, rows @ vector, 0.0)


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
    """
    capacity = basis.directions.shape[0]
    kept = capacity // 2
    apply = (lambda r: r) if precondition is None else precondition
    rounding = 8 * jnp.finfo(rhs.dtype).eps  # asking for less would fill the basis with noise

    def project(block, carry):
        solution, residual = carry
        rows = _rows(basis.directions, block)
        along = _along(rows, rhs, block, basis.count)
        return solution + along @ rows, residual - along @ _rows(basis.images, block)

    solution, residual = _over_blocks(basis.count, capacity, project, (jnp.zeros_like(rhs), rhs), kind)

    def goal(c: _Iteration):
        return jnp.maximum(tolerance, rounding * c.largest)

    def polished(c: _Iteration):
        return c.size if precondition is None else jnp.minimum(c.contraction, 1.0) * c.size

    def exhausted(c: _Iteration):
        """No progress any more, and what is left is what rounding in `A p` leaves: as good as it gets."""
        return (c.stalled >= _PATIENCE) & (c.size <= rounding * c.gain * norm(c.solution))

    def unfinished(c: _Iteration):
        return (polished(c) > goal(c)) & ~exhausted(c) & c.definite & (c.products < max_products)

    def iterate(c: _Iteration) -> _Iteration:
        z = apply(c.residual)

        def conjugate(block, carry):
            p, known, energy, solution, residual = carry
            rows, images = _rows(c.directions, block), _rows(c.images, block)
            along = _along(images, z, block, c.count)
            left = _along(rows, residual, block, c.count)  # what rounding put back into the span
            return (
                p - along @ rows,
                known + along @ images,
                energy + along @ along,
                solution + left @ rows,
                residual - left @ images,
            )

        carry = (z, jnp.zeros_like(z), jnp.zeros((), z.dtype), c.solution, c.residual)
        p, known, energy, solution, residual = _over_blocks(c.count, capacity, conjugate, carry, kind)
        ap = matrix(p)
        contraction = norm(c.residual - known - ap) / jnp.where(c.size > 0, c.size, 1.0)
        curvature = p @ ap
        definite = (curvature > 0) & jnp.isfinite(curvature)
        length = norm(p)
        gain = jnp.where(length > 0, norm(ap) / jnp.where(length > 0, length, 1.0), 0.0)
        scale = jnp.where(definite, jax.lax.rsqrt(jnp.where(definite, curvature, 1.0)), 0.0)
        p, ap = scale * p, scale * ap
        along = p @ residual
        change = along * ap
        residual = residual - change
        # All but nothing left after conjugation: noise, good for a line search but not for the basis.
        independent: Any = definite & (curvature > _INDEPENDENT * energy)
        size = norm(residual)
        slot = jnp.where(c.count < capacity, c.count, kept + (c.count - kept) % (capacity - kept))
        return _Iteration(
            directions=eqxi.buffer_at_set(c.directions, slot, p, pred=independent),
            images=eqxi.buffer_at_set(c.images, slot, ap, pred=independent),
            count=c.count + independent,
            solution=solution + along * p,
            residual=residual,
            size=size,
            largest=jnp.maximum(c.largest, norm(change)),
            gain=jnp.maximum(c.gain, gain),
            best=jnp.minimum(c.best, size),
            stalled=jnp.where(size < c.best, 0, c.stalled + 1),
            contraction=jnp.where(jnp.isinf(c.contraction), contraction, jnp.maximum(c.contraction, contraction)),
            definite=definite,
            products=c.products + 1,
        )

    start = _Iteration(
        directions=basis.directions,
        images=basis.images,
        count=jnp.where(basis.count > capacity, kept, basis.count),
        solution=solution,
        residual=residual,
        size=norm(residual),
        largest=jnp.maximum(norm(rhs), norm(rhs - residual)),
        contraction=basis.contraction,
        gain=basis.gain,
        best=norm(residual),
        stalled=jnp.zeros((), jnp.int32),
        definite=jnp.asarray(active),
        products=jnp.zeros((), jnp.int32),
    )
    # Reverse mode demands of a buffer that nothing is overwritten, or read early: there the basis is ordinary carry.
    buffers = (lambda c: (c.directions, c.images)) if kind == "lax" else None
    end = eqxi.while_loop(unfinished, iterate, start, max_steps=max_products, buffers=buffers, kind=kind)
    converged = end.definite & ((polished(end) <= goal(end)) | exhausted(end))
    report = SolveReport(converged, end.products, end.products + 1)
    basis = ConjugateBasis(end.directions, end.images, end.count, end.contraction, end.gain)
    solution = end.solution
    if precondition is not None:
        solution = solution + jnp.where(end.contraction < 1, precondition(end.residual), 0.0)
    return solution, basis, report
