"""What our solvers offer beyond diffrax's interface: they take the controller's tolerances and count their work."""

import abc
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from diffrax import AbstractAdaptiveSolver
from jaxtyping import Array, Int

from saddleflow.solvers.support import Support


class Work(eqx.Module):
    """What a solve has cost, counted in the solver's state.

    diffrax drops the state of a rejected step, so there it counts accepted steps only. Another loop can keep it
    (`CountingSolver.rejected_state`), as that of `saddleflow.gradient_flow` does. A time derivative, where the vector
    field has one, is not counted.
    """

    vector_fields: Int[Array, ""]
    products: Int[Array, ""]
    preconditions: Int[Array, ""]
    steps: Int[Array, ""]  # linearly implicit ones
    directions: Int[Array, ""]  # of their Krylov bases, a product each
    largest_basis: Int[Array, ""]
    explicit_steps: Int[Array, ""]

    @classmethod
    def none(cls) -> "Work":
        """Nothing yet."""
        return cls(*[jnp.zeros((), int)] * 7)

    def __add__(self, other: "Work") -> "Work":
        """What two solvers have cost."""
        total = jax.tree.map(jnp.add, self, other)
        return replace(total, largest_basis=jnp.maximum(self.largest_basis, other.largest_basis))

    def add(self, vector_fields: int, products: Int[Array, ""], preconditions: Int[Array, ""]) -> "Work":
        """One more implicit step; its Krylov basis has as many directions as products were taken."""
        return Work(
            self.vector_fields + vector_fields,
            self.products + products,
            self.preconditions + preconditions,
            self.steps + 1,
            self.directions + products,
            jnp.maximum(self.largest_basis, products),
            self.explicit_steps,
        )


class CountingSolver(AbstractAdaptiveSolver):
    """A solver that works in the step controller's tolerances and counts its work."""

    @abc.abstractmethod
    def with_tolerances(
        self, rtol: Any, atol: Any, quantity_error: Any = None, support: Support | None = None
    ) -> "CountingSolver":
        """The same solver for these tolerances of the step controller, and a quantity where it has none."""

    @abc.abstractmethod
    def work(self, state: Any) -> Work:
        """The work counted in a solver state."""

    @abc.abstractmethod
    def rejected_state(self, old: Any, new: Any) -> Any:
        """The state to go on with after a rejected step from `old`: counters keep what the attempt cost."""
