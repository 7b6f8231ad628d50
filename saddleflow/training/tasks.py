"""What is trained: parameters as the optimiser sees them, the loss and its gradient, of all samples or of some."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saddleflow.flow.landscape import NetworkLandscape
from saddleflow.flow.model_landscape import ModelLandscape, Vector
from saddleflow.problem import geometry
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.objective import Objective

Gradient = tuple[Float[Array, ""], Any]  # a loss and its gradient, a pytree like the parameters

Indices = Int[Array, " b"]


class Task(eqx.Module):
    """A loss of parameters that an optimiser moves: a pytree of arrays."""

    landscape: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def gradient(self, parameters: Any) -> Gradient:
        """The loss and its gradient, on all samples."""

    @abc.abstractmethod
    def batch_gradient(self, parameters: Any, indices: Indices) -> Gradient:
        """The loss of some samples and its gradient."""

    @abc.abstractmethod
    def loss_at_zero(self) -> Float[Array, ""]:
        """The cost of outputs that are zero; of a bare loss zero."""

    @abc.abstractmethod
    def known(self, parameters: Any) -> Any:
        """The parameters as the landscape, and with it a trajectory, knows them."""


class NetworkTask(Task):
    """The layers of a deep linear network; the loss is C(A)."""

    landscape: NetworkLandscape

    def gradient(self, parameters: DeepLinearNetwork) -> Gradient:
        """A and its gradient share their products."""
        return _of_network(self.landscape.cost, parameters)

    def batch_gradient(self, parameters: DeepLinearNetwork, indices: Indices) -> Gradient:
        """By `Cost.batch`."""
        return _of_network(self.landscape.cost.batch(indices), parameters)

    def loss_at_zero(self) -> Float[Array, ""]:
        """C(0)."""
        cost = self.landscape.cost
        return cost(jnp.zeros(cost.shape))

    def known(self, parameters: DeepLinearNetwork) -> DeepLinearNetwork:
        """The network itself."""
        return parameters


class ModelTask(Task):
    """The trainable arrays of a model, in a pytree like it; the loss is C(f) + R."""

    landscape: ModelLandscape

    def gradient(self, parameters: Any) -> Gradient:
        """By reverse differentiation."""
        return _of_model(self.landscape.objective, self.landscape.rest, parameters)

    def batch_gradient(self, parameters: Any, indices: Indices) -> Gradient:
        """By `Objective.batch`."""
        return _of_model(self.landscape.objective.batch(indices), self.landscape.rest, parameters)

    def loss_at_zero(self) -> Float[Array, ""]:
        """C(0), without the regulariser."""
        cost = self.landscape.objective.cost
        return cost(jnp.zeros(cost.shape))

    def known(self, parameters: Any) -> Vector:
        """One vector."""
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(parameters)])


def _of_network(cost: Cost, network: DeepLinearNetwork) -> Gradient:
    return cost(geometry.end_to_end(network)), geometry.gradient(cost, network)


def _of_model(objective: Objective, rest: Any, parameters: Any) -> Gradient:
    outputs, pull = jax.vjp(lambda moved: objective.outputs(eqx.combine(moved, rest)), parameters)
    (gradient,) = pull(objective.cost.gradient(outputs))
    if objective.regulariser is None:
        return objective.cost(outputs), gradient
    penalty = objective.regulariser
    value, more = jax.value_and_grad(lambda moved: jnp.asarray(penalty(eqx.combine(moved, rest))))(parameters)
    return objective.cost(outputs) + value, jax.tree.map(jnp.add, gradient, more)
