"""Sweeps of models: starts made by a function of the user; models of one structure share a program."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from saddleflow.flow.arguments import needs_symmetry
from saddleflow.flow.model_landscape import ModelLandscape, Vector
from saddleflow.flow.models import landscape_of
from saddleflow.sweeps.configuration import name
from saddleflow.sweeps.lanes import Lane
from saddleflow.sweeps.made import MadeChunk, MadeStarts
from saddleflow.sweeps.results import as_arrays, masked


class ModelLane(Lane):
    """A model: its start is made on the host, before the program begins."""

    landscape: ModelLandscape
    theta: Vector
    rtol: Float[Array | np.ndarray, ""]

    def start(self):
        """As it was made."""
        return self.landscape, self.theta

    def sizes(self):
        """By the preconditioner: the Jacobian of the outputs and its smaller Gram matrix, or the Hessian twice."""
        parameters, outputs = self.theta.size, math.prod(self.landscape.objective.shape)
        factorised = {
            "gauss_newton": parameters * outputs + min(parameters, outputs) ** 2,
            "hessian": 2 * parameters**2,
            "none": 0,
        }
        return parameters, parameters, factorised[self.landscape.preconditioner]

    @property
    def size_name(self):
        """By the number of trainable parameters."""
        return f"of {self.theta.size} parameters"


@dataclass(frozen=True, eq=False)
class ModelChunk(MadeChunk):
    """Models of one structure."""

    def program(self):
        """By the first of the models."""
        lane: Any = self.lane(0)
        return self.options.program(self.options.lane_flow(graded=False), lane.landscape)

    def arrays(self, result, number):
        """With the outputs, if asked for."""
        options, further = self.options, self.draws(number)
        if "outputs" in result.rows:
            further["outputs"] = masked(result, result.rows["outputs"], options.num_rows)
        return as_arrays(result, further, num_rows=options.num_rows, with_time=options.flow.save_at is None)


@dataclass(frozen=True, eq=False)
class ModelStarts(MadeStarts):
    """Starts of models.

    Attributes:
        trainable: as in `gradient_flow`.
        preconditioner: as in `gradient_flow`.
    """

    trainable: Any
    preconditioner: str

    meanings: ClassVar[dict[str, tuple[str, str]]] = {
        "train_cost": ("cost", "the loss C(f) + R"),
        "test_cost": ("cost", "the test loss"),
        "gradient_norm": ("cost / parameter", "Euclidean norm of the gradient in the trainable parameters"),
        "outputs": ("outputs of the model", "f"),
    }

    def lane_of(self, cost, start, rtol, options):
        """Of an objective and a model."""
        landscape, theta = landscape_of(
            cost,
            start,
            trainable=self.trainable,
            preconditioner=self.preconditioner,
            symmetric=needs_symmetry(options.flow),
            finite=False,
            keep_outputs=options.save_matrices,
        )
        return ModelLane(landscape=landscape, theta=theta, rtol=np.asarray(rtol, float))

    def chunks(self, lane, options):
        """Nothing more."""
        del lane, options
        return None, partial(ModelChunk, starts=self)

    def described(self):
        """With what moves of a model, and how its flow is inverted."""
        trainable = "is_inexact_array" if self.trainable is eqx.is_inexact_array else name(self.trainable)
        return super().described() | {"trainable": trainable, "preconditioner": self.preconditioner}
