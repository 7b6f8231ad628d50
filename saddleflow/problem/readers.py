"""Readers of costs, networks and matrices, for the tables of public functions (`saddleflow._backend.arguments`)."""

from typing import Any

import equinox as eqx

from saddleflow._backend.arguments import instance, optional, path, refuse
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.objective import Objective

FIRST = "The cost comes first, then the network."


def _for_costs(value: Any) -> str:
    """What to write where a cost was expected."""
    if isinstance(value, DeepLinearNetwork):
        return FIRST
    if isinstance(value, Objective):
        return "Of a deep linear network pass objective.cost; other models: sf.gradient_flow(objective, model)."
    if (hasattr(value, "shape") and hasattr(value, "dtype")) or isinstance(value, list | tuple):
        return "Of a matrix A* take sf.MeanSquaredError.teacher(matrix)."
    if callable(value):
        return "Subclass sf.Cost, or hand a loss of a model to sf.gradient_flow."
    return "For example sf.MatrixCompletion.random(jax.random.key(0))."


def _for_networks(value: Any) -> str:
    """What to write where a network was expected."""
    if isinstance(value, Cost | Objective):
        return FIRST
    if isinstance(value, list | tuple):
        return "Write sf.DeepLinearNetwork(layers), W_1 first."
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return "Of one matrix write sf.DeepLinearNetwork([matrix]); of another model sf.Objective(cost, outputs)."
    if hasattr(value, "frozen_squares"):
        return "Pass its small network, reduced.network."
    return "Of another model say what its outputs are: sf.Objective(cost, outputs)."


# A cost of matrices.
cost = instance(Cost, "be a saddleflow cost", _for_costs)

# A deep linear network.
network = instance(DeepLinearNetwork, "be a deep linear network", _for_networks)


# What reads a saved run: its file, and the cost that files do not hold.
FILE = {"path": path, "cost": optional(cost)}

# The same, beside a cost that takes nothing else.
network_of_matrices = instance(DeepLinearNetwork, "be a deep linear network with a cost of matrices", _for_networks)


def loss(argument: str, value: Any) -> Any:
    """A cost, an objective, or a function of a model."""
    if isinstance(value, type) or not (isinstance(value, Cost | Objective) or callable(value)):
        hint = f"Make one: {value.__name__}(...)." if isinstance(value, type) else _for_costs(value)
        refuse(argument, "be a saddleflow cost, an objective or a function of the model", value, hint)
    return value


def start(argument: str, value: Any) -> Any:
    """A network, or another model: anything but what stands in a wrong place."""
    if isinstance(value, Cost | Objective):
        refuse(argument, "be a network or a model", value, "The loss comes first, then the network or the model.")
    if value is None or isinstance(value, str | bytes | bool | int | float | complex | type):
        hint = f"Make one: {value.__name__}(...)." if isinstance(value, type) else ""
        example = "For example sf.gaussian(jax.random.key(0), depth=3, width=50, shape=cost.shape, gamma=1.5)."
        refuse(argument, "be a network or a model", value, hint or example)
    return value


def chain(argument: str, value: Any) -> Any:
    """A deep linear network, also in a form that this package computes with."""
    return value if isinstance(value, eqx.Module) and hasattr(value, "parts") else network(argument, value)
