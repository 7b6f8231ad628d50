"""Sweeps of models: starts made by a function of the user, on the host; models of one structure share a program."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from saddleflow._backend.checks import require
from saddleflow.flow.arguments import needs_symmetry
from saddleflow.flow.model_landscape import ModelLandscape, Vector
from saddleflow.flow.models import landscape_of
from saddleflow.problem.objective import Objective
from saddleflow.sweeps.chunk import Chunk, Starts, SweepOptions
from saddleflow.sweeps.configuration import name
from saddleflow.sweeps.lanes import Lane, signature
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
class ModelChunk(Chunk):
    """Models of one structure."""

    starts: "ModelStarts" = field(repr=False)

    def lane(self, number):
        """Of an objective, the arguments of init, a seed and rtol."""
        values = {axis: column[number] for axis, column in self.coordinates.items()}
        return self.starts.lane(self.costs[values.pop("cost")], values, self.options)

    def program(self):
        """By the first of the models."""
        flow = self.options.lane_flow(graded=False)
        return self.options.program(flow, self.lane(0).landscape)

    def arrays(self, result):
        """With the outputs, if asked for."""
        options, further = self.options, {}
        if "outputs" in result.rows:
            further["outputs"] = masked(result, result.rows["outputs"], options.num_rows)
        return as_arrays(result, further, num_rows=options.num_rows, with_time=options.flow.save_at is None)


@dataclass(frozen=True, eq=False)
class ModelStarts(Starts):
    """Starts `init(key(seed), **arguments)` of models.

    Attributes:
        init: makes a model from a key and keywords.
        trainable: as in `gradient_flow`.
        preconditioner: as in `gradient_flow`.
    """

    init: Callable[..., Any]
    trainable: Any
    preconditioner: str

    meanings: ClassVar[dict[str, tuple[str, str]]] = {
        "train_cost": ("cost", "the loss C(f) + R"),
        "test_cost": ("cost", "the test loss"),
        "gradient_norm": ("cost / parameter", "Euclidean norm of the gradient in the trainable parameters"),
        "outputs": ("outputs of the model", "f"),
    }

    def lane(self, objective: Objective, values: dict[str, Any], options: SweepOptions) -> ModelLane:
        """The lane of a seed, of rtol and of arguments of init.

        Raises:
            ValueError: a model that will not do; like errors of init it says in a note which one.
        """
        arguments = dict(values)
        seed, rtol = arguments.pop("seed"), arguments.pop("rtol")
        try:
            landscape, theta = landscape_of(
                objective,
                self.init(jax.random.key(int(seed)), **arguments),
                trainable=self.trainable,
                preconditioner=self.preconditioner,
                symmetric=needs_symmetry(options.flow),
                finite=False,
                keep_outputs=options.save_matrices,
            )
        except Exception as error:
            text = ", ".join(f"{axis}={value}" for axis, value in {**arguments, "seed": seed}.items())
            error.add_note(f"It is the model of {text}.")
            raise
        return ModelLane(landscape=landscape, theta=theta, rtol=np.asarray(rtol, float))

    def programs(self, grid, options):
        """By the structure of the models, which depends on no seed as a rule; where it does, lanes compile more."""
        table = grid.coordinates()
        kinds: dict[Any, Any] = {}
        groups: dict[Any, list[int]] = {}
        for lane, place in enumerate(np.ndindex(*(len(values) for values in grid.values.values()))):
            where = place[:-2]  # of all axes but seed and rtol, which come last
            if where not in kinds:
                values = {axis: column[lane] for axis, column in table.items()}
                kinds[where] = signature(self.lane(grid.costs[values.pop("cost")], values, options))
            groups.setdefault(kinds[where], []).append(lane)
        return [(partial(ModelChunk, starts=self), members) for members in groups.values()]

    def described(self):
        """Functions by their qualified names, without the module: a script's is another where it is imported."""
        trainable = "is_inexact_array" if self.trainable is eqx.is_inexact_array else name(self.trainable)
        return {
            "init": getattr(self.init, "__qualname__", None) or name(self.init),
            "trainable": trainable,
            "preconditioner": self.preconditioner,
        }


_EITHER, _ANY = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL


def arguments_of(init: Any, given: Iterable[str]) -> tuple[list[str], bool]:
    """The keywords of init after the key, and whether it takes any others.

    Raises:
        ValueError: init is no function of a key, or needs an argument that is not given.
    """
    known = list(inspect.signature(init).parameters.values()) if callable(init) else []
    positional = bool(known) and known[0].kind in (inspect.Parameter.POSITIONAL_ONLY, _EITHER, _ANY)
    require(positional, "init", "be a function (key, ...) -> model", init)
    first = known[0].name
    require(
        first not in given, "init", "take a key before its keywords", f"{first!r} first", "init(key, ...) -> model."
    )
    others = known[1:]
    open_ended = any(one.kind == one.VAR_KEYWORD for one in others)
    named = [one for one in others if one.kind in (_EITHER, one.KEYWORD_ONLY)]
    missing = [one.name for one in named if one.default is one.empty and one.name not in given]
    remedy = "Arguments of init may not have the names of sweep's own."
    require(not missing, "init", "be given all its arguments by sweep", f"none for {', '.join(missing)}", remedy)
    return [one.name for one in named], open_ended
