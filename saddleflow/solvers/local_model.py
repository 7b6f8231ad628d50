"""The Jacobian at the base point of a step, and how a problem may offer structure for it.

A solver never needs more than this: products with the symmetric Jacobian `J`, on a space of coordinates
that contains its range, and optionally a preconditioner. `PlainModel` is right for every problem; a problem
with structure (a network) hands the solver a function of its own that returns another `LocalModel`.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from diffrax import AbstractTerm
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from saddleflow.solvers._precision import threshold_in

Vector = Float[Array, " d"]
State = PyTree[Float[Array, "..."]]


class LocalModel(eqx.Module):
    """The symmetric Jacobian `J` of the vector field at one point, in coordinates.

    Coordinates `z = restrict(v)` are flat vectors of an orthonormal basis of a subspace that contains the
    range of `J` (or of all of the space: `complete`). Then `(I - s J)^-1 v` is
    `v + extend((I - s J_z)^-1 z - z)`, and Krylov vectors live in the smaller space. A model may use more numbers
    than the subspace has dimensions; then all it is ever given are coordinates that `restrict` or `product` returned.
    """

    complete: eqx.AbstractClassVar[bool]  # restrict loses nothing: extend(restrict(v)) == v

    @abc.abstractmethod
    def restrict(self, v: State) -> Vector:
        """Coordinates of the orthogonal projection of `v`."""

    @abc.abstractmethod
    def extend(self, z: Vector) -> State:
        """The vector with coordinates `z`; the adjoint of `restrict`."""

    @abc.abstractmethod
    def product(self, z: Vector) -> Vector:
        """`J` times `z`, in coordinates."""

    @abc.abstractmethod
    def preconditioner(self, shift: Float[Array, ""]) -> Callable[[Vector], Vector] | None:
        """A symmetric positive approximation of `(I - shift J)^-1` in coordinates, or None."""

    @abc.abstractmethod
    def weights(self, inverse_squares: State) -> Vector | Float[Array, ""]:
        """Weights `q` for which `sum(q * z**2)` estimates `sum(inverse_squares * extend(z)**2)`."""


class PlainModel(LocalModel):
    """All coordinates, products by forward differentiation of the vector field, linearised once."""

    complete: ClassVar[bool] = True
    linear: Callable[[State], State]
    unravel: Callable[[Vector], State]
    prepare: Callable[[Any], Callable[[State], State]] | None = None

    def restrict(self, v: State) -> Vector:
        return ravel_pytree(v)[0]

    def extend(self, z: Vector) -> State:
        return self.unravel(z)

    def product(self, z: Vector) -> Vector:
        return ravel_pytree(self.linear(self.unravel(z)))[0]

    def preconditioner(self, shift: Float[Array, ""]) -> Callable[[Vector], Vector] | None:
        if self.prepare is None:
            return None
        apply = self.prepare(shift)
        return lambda z: ravel_pytree(apply(self.unravel(z)))[0]

    def weights(self, inverse_squares: State) -> Vector:
        return ravel_pytree(inverse_squares)[0]


class Plain(eqx.Module):
    """Builds a `PlainModel` at each step.

    >>> import diffrax
    >>> from saddleflow.solvers import Plain, PredictiveController, Rosenbrock
    >>> rates = 10.0 ** jnp.arange(6)
    >>> term, y0 = diffrax.ODETerm(lambda t, y, args: -rates * y), jnp.ones(6)
    >>> def diagonal(t, y, args):
    ...     return lambda shift: lambda v: v / (1 + shift * rates)
    >>> solver = Rosenbrock(rtol=1e-6, atol=1e-8, local_model=Plain(diagonal))
    >>> controller = PredictiveController(rtol=1e-6, atol=1e-8)
    >>> solution = diffrax.diffeqsolve(term, solver, 0.0, 1.0, 1e-3, y0, stepsize_controller=controller)
    >>> print(f"{solution.ys[0, 0]:.5f}")  # exp(-1)
    0.36788

    Args:
        preconditioner: `(t, y, args) -> prepare`, or None where there is none; `prepare(shift)` returns `apply`, and
            `apply(v)` a symmetric positive approximation of `(I - shift J)^-1 v`, v a pytree like the state.
    """

    preconditioner: Callable[[Any, Any, Any], Callable[[Any], Callable[[Any], Any]] | None] | None = None

    def __call__(self, terms: AbstractTerm, t: Float[Array, ""], y: State, args: PyTree) -> PlainModel:
        _, linear = jax.linearize(lambda q: terms.vf(t, q, args), y)
        _, unravel = ravel_pytree(y)
        prepare = None if self.preconditioner is None else self.preconditioner(t, y, args)
        return PlainModel(linear, unravel, prepare)


# Relative asymmetry of a Jacobian that is refused, in float64; rounding stays below 1e-12.
MAX_ASYMMETRY = 1e-8


def max_asymmetry(dtype: Any) -> float:
    """Relative asymmetry of a Jacobian that is refused in this dtype: `MAX_ASYMMETRY` in float64, 2e-4 in float32."""
    return threshold_in(dtype, MAX_ASYMMETRY)


def asymmetry(terms: AbstractTerm, t: Any, y: State, args: PyTree, key: Array | None = None) -> Float[Array, ""]:
    """Relative asymmetry `|u.Jv - v.Ju| / (|u||Jv| + |v||Ju|)` of the Jacobian for two random vectors.

    Rounding size (in float64 1e-12 or less) for a gradient system; of order `1/sqrt(dim)` when `J` has a rotating
    part of its own size. Two Jacobian products.

    Args:
        terms: the vector field, as `diffrax.ODETerm`.
        t: time.
        y: the state where the Jacobian is taken.
        args: of the vector field.
        key: of the two vectors; None: the same ones at every call.
    """
    key = jax.random.key(0) if key is None else key
    flat, unravel = ravel_pytree(y)
    u, v = jax.random.normal(key, (2, flat.shape[0]), flat.dtype)
    _, linear = jax.linearize(lambda q: terms.vf(t, q, args), y)
    ju, jv = (ravel_pytree(linear(unravel(x)))[0] for x in (u, v))
    size = jnp.linalg.norm(u) * jnp.linalg.norm(jv) + jnp.linalg.norm(v) * jnp.linalg.norm(ju)
    return jnp.abs(u @ jv - v @ ju) / jnp.where(size > 0, size, 1.0)
