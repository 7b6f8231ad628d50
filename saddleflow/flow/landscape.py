"""What the loop asks of a loss: one interface for networks and for any model.

A landscape knows the loss of parameters, whatever they are: the layers of a deep linear network, or the parameters of
a model as one vector. It travels as the `args` of the vector field, so that a solver finds structure in it.
"""

import abc
from dataclasses import replace
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from saddleflow.flow.graded import Frame, FramedCost, along_steepest
from saddleflow.flow.jacobian import factorisation_price, flow_jacobian, residual_newton
from saddleflow.flow.spectra import RELATIVE_RANK_TOLERANCE
from saddleflow.problem import geometry
from saddleflow.problem.costs import MAX_RESIDUALS, MOST_RESIDUALS, Cost, affordable_curvature
from saddleflow.problem.layered import Active, StackedNetwork
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.padding import Padding, active_of
from saddleflow.problem.symmetry import balancedness_drift
from saddleflow.solvers import NDF, LocalModel, Rosenbrock, Support

# Sides of a matrix at most whose rank a meter tells: a fraction of a second at each report would be too much.
MOST_FOR_RANK = 256

Parameters = PyTree[Float[Array, "..."]]


class Landscape(eqx.Module):
    """A loss on parameters, with the structure that a solver can use."""

    # whether a point at rest without a certificate is a saddle: else only its Hessian tells
    always_saddle: eqx.AbstractClassVar[bool]
    # whether `output_error` may ask for more than the tolerances of the entries
    strains: eqx.AbstractClassVar[bool]
    # what a stage's linear solve may leave, as a share of the step's tolerance
    linear_tolerance: eqx.AbstractClassVar[float]
    # whether its gradient may jump, as that of ReLU does
    may_jump: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def gradient(self, parameters: Any) -> Any:
        """The gradient of the loss."""

    @abc.abstractmethod
    def outputs(self, parameters: Any) -> Float[Array, "n_out n_in"]:
        """What the parameters stand for: A of a network, a model's predictions."""

    @abc.abstractmethod
    def loss(self, parameters: Any, outputs: Float[Array, "n_out n_in"]) -> Float[Array, ""]:
        """The loss where the outputs are known."""

    @abc.abstractmethod
    def certificate(self, outputs: Float[Array, "n_out n_in"]) -> Float[Array, ""]:
        """A norm that is zero at minima of the loss only: |grad C| in the outputs; infinite where there is none."""

    @abc.abstractmethod
    def unbounded(self, parameters: Any, outputs: Float[Array, "n_out n_in"]) -> Float[Array, ""]:
        """The norm of what may grow without bound while the loss falls."""

    @abc.abstractmethod
    def lacks_minimum(self, outputs: Float[Array, "n_out n_in"]) -> Bool[Array, ""]:
        """Whether the outputs prove that the cost has no minimum, as those that separate labelled data do."""

    @abc.abstractmethod
    def size(self, parameters: Any, outputs: Float[Array, "n_out n_in"]) -> Float[Array, ""]:
        """The norm that growth is compared with."""

    @abc.abstractmethod
    def length(self, parameters: Any) -> Float[Array, ""]:
        """The norm of the parameters, as a first step may take it: positive wherever the flow moves."""

    @abc.abstractmethod
    def scales(self, parameters: Any) -> tuple[Any, Float[Array, ""]]:
        """Root mean square entries of a start, one number or one each, and the unit of `certificate`."""

    @abc.abstractmethod
    def at_rest(self, parameters: Any, graded: bool) -> tuple[Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """The gradient norm, whether it is zero up to rounding, and whether the certificate is."""

    def support(self, parameters: Any) -> Support | None:
        """Which entries of the parameters are there; None: all of them, none is padding."""
        del parameters

    @abc.abstractmethod
    def output_error(self, before: Any, after: Any, error: Any) -> Float[Array, ""]:
        """The relative error of the outputs that an error of the parameters makes, to first order."""

    @abc.abstractmethod
    def local_model(self, time: Any, parameters: Any) -> LocalModel:
        """The Jacobian of the flow for the stiff solver."""

    def factorisation_price(self, parameters: Any) -> float | None:
        """Products of a step beyond which inverting its stiff part is cheaper; None: it is done always, or never."""
        del parameters

    def inverting(self, inverts: bool) -> "Landscape":
        """The landscape whose local models invert the stiff part, where that has a price; or do not."""
        del inverts
        return self

    @abc.abstractmethod
    def tail_solver(self) -> NDF | None:
        """The solver of long tails, where it is to be had."""

    @abc.abstractmethod
    def framed(self, frame: Frame | None) -> "Landscape":
        """The same loss as parameters in a frame see it."""

    @abc.abstractmethod
    def record(self, parameters: Any, outputs: Float[Array, "n_out n_in"]) -> dict[str, Array]:
        """What a row keeps beside time and gradient norm."""

    @abc.abstractmethod
    def costs(self, rows: dict[str, Any]) -> dict[str, Array]:
        """Train and test cost of saved rows, where these do not hold them."""

    @abc.abstractmethod
    def standing(self, parameters: Any) -> dict[str, Array]:
        """What a meter tells: `cost`; `test` where there is a test set; `rank` of A, where it is cheap."""

    @abc.abstractmethod
    def drift(self, start: Any, end: Any) -> Float[Array, ""] | None:
        """The largest relative change of what the flow conserves; None where nothing is known to be conserved."""

    @abc.abstractmethod
    def plain(self, parameters: Any) -> Any:
        """The parameters in the coordinates of the start."""

    @abc.abstractmethod
    def subject(self, parameters: Any) -> tuple[Any, Any]:
        """What observables take: cost and network, or objective and model, in the coordinates of the start."""


class NetworkLandscape(Landscape):
    """The loss `C(A(theta))` of a deep linear network, in a frame or (None) in the coordinates of the start."""

    always_saddle: ClassVar[bool] = True
    strains: ClassVar[bool] = True
    linear_tolerance: ClassVar[float] = Rosenbrock.linear_tolerance
    may_jump: ClassVar[bool] = False

    cost: Cost  # as the frame sees it
    frame: Frame | None = None
    padding: Padding | None = None
    # residuals at most of a cost whose Gauss-Newton part is inverted
    most_residuals: int = eqx.field(static=True, default=MAX_RESIDUALS)

    @property
    def active(self) -> Active:
        """Which layers of a stack are there; None: all of them."""
        return active_of(self.padding)

    def support(self, parameters):
        """The entries that are not padding."""
        padding = self.padding
        return None if padding is None else Support(padding.mask(parameters), padding.num_parameters)

    def gradient(self, parameters):
        """By the partial products."""
        return geometry.gradient(self.cost, parameters, self.active)

    def outputs(self, parameters):
        """A."""
        return geometry.end_to_end(parameters, self.active)

    def loss(self, parameters, outputs):
        """C(A)."""
        return self.cost(outputs)

    def certificate(self, outputs):
        """For a convex C a vanishing gradient in A is a certificate; one in theta is only a saddle, perhaps."""
        return jnp.linalg.norm(self.cost.gradient(outputs))

    def unbounded(self, parameters, outputs):
        """Of the part of A that the cost does not bound."""
        return jnp.linalg.norm(self.cost.unbounded(outputs))

    def lacks_minimum(self, outputs):
        """As the cost says."""
        return self.cost.lacks_minimum(outputs)

    def size(self, parameters, outputs):
        """|A|."""
        return jnp.linalg.norm(outputs)

    def length(self, parameters):
        """|theta|; of a single layer of zeros, from where the flow moves too, what it may become."""
        size = geometry.norm(parameters)
        if parameters.parts.last is not None:
            return size
        learned, curvature = along_steepest(self.cost)
        return jnp.where(size > 0, size, jnp.where(curvature > 0, learned, 1.0))

    def scales(self, parameters):
        """Of the entries of all layers together; |grad C(0)|, or |grad C| at the start where that is zero."""
        number = parameters.num_parameters if self.padding is None else self.padding.num_parameters
        rms = self.length(parameters) / jnp.sqrt(number)
        # Not the start's gradient: a huge start would then be certified far from any minimum.
        at_zero = jnp.linalg.norm(self.cost.gradient(jnp.zeros(self.cost.shape)))
        here = jnp.linalg.norm(self.cost.gradient(self.outputs(parameters)))
        return rms, jnp.where(at_zero > 0, at_zero, here)

    def at_rest(self, parameters, graded):
        """By the sizes of the terms that cancel."""
        return geometry.at_rest(self.cost, parameters, graded, self.active)

    def output_error(self, before, after, error):
        """Of A."""
        return geometry.end_to_end_error(after, error, self.padding)

    def local_model(self, time, parameters):
        """Compressed coordinates, the Gauss-Newton part inverted exactly."""
        field = diffrax.ODETerm(lambda time, network, cost: _descent(time, network, self))
        return flow_jacobian(field, time, parameters, self.cost, self.padding, self.most_residuals)

    def factorisation_price(self, parameters):
        """Of costs with more residuals than are worth a factorisation at every step, and not too many."""
        curvature = eqx.filter_eval_shape(affordable_curvature, self.cost, jnp.zeros(self.cost.shape), MOST_RESIDUALS)
        if curvature is None or curvature.num_residuals <= MAX_RESIDUALS:
            return None
        return factorisation_price(curvature.num_residuals, parameters)

    def inverting(self, inverts):
        """With another bound on the residuals."""
        return replace(self, most_residuals=MOST_RESIDUALS if inverts else MAX_RESIDUALS)

    def tail_solver(self):
        """Newton's iteration in the space of residuals; None where the cost tells none, or too many."""
        curvature = eqx.filter_eval_shape(affordable_curvature, self.cost, jnp.zeros(self.cost.shape))
        return None if curvature is None else _TAIL

    def framed(self, frame):
        """The cost, turned."""
        if frame is None:
            return self
        return NetworkLandscape(FramedCost(self.cost, frame), frame, self.padding, self.most_residuals)

    def record(self, parameters, outputs):
        """A."""
        return {"end_to_end": outputs if self.frame is None else self.frame.undo_matrix(outputs)}

    def costs(self, rows):
        """C(A)."""
        costs = {"train_cost": jax.lax.map(self.cost, rows["end_to_end"])}
        return costs | {"test_cost": jax.lax.map(self.cost.test, rows["end_to_end"])} if self.cost.has_test else costs

    def standing(self, parameters):
        """C(A), the test cost, and the rank of A."""
        matrix = self.outputs(parameters)
        cost = self.cost.cost if isinstance(self.cost, FramedCost) else self.cost
        found = {"cost": self.cost(matrix)}
        if cost.has_test:
            found["test"] = self.cost.test(matrix)
        small = self._same_singular_values(parameters, matrix)
        if min(small.shape) <= MOST_FOR_RANK:
            found["rank"] = _rank(small)
        return found

    def _same_singular_values(
        self, parameters: Any, matrix: Float[Array, "n_out n_in"]
    ) -> Float[Array, "rows columns"]:
        """A, or where the last hidden space is smaller R W_{L-1} ... W_1, with the QR decomposition W_L = Q R."""
        stacked = isinstance(parameters, StackedNetwork)
        last = parameters.last if stacked else parameters.layers[-1]
        if last.shape[1] >= min(matrix.shape):
            return matrix
        triangle = jnp.linalg.qr(last, mode="r")
        where = (lambda network: network.last) if stacked else (lambda network: network.layers[-1])
        return self.outputs(eqx.tree_at(where, parameters, triangle))

    def drift(self, start, end):
        """Of the balancedness."""
        return jnp.asarray(balancedness_drift(start, end))

    def plain(self, parameters):
        """The layers, turned back."""
        return parameters if self.frame is None else self.frame.undo(parameters)

    def subject(self, parameters):
        """Cost and network."""
        cost = self.cost.cost if isinstance(self.cost, FramedCost) else self.cost
        network = self.plain(parameters)
        if isinstance(network, StackedNetwork):
            network = DeepLinearNetwork([network.first, *network.hidden, network.last])
        return cost, network


def _rank(matrix: Float[Array, "rows columns"]) -> Int[Array, ""]:
    """Singular values of a matrix above a hundredth of the largest, by the Gram matrix of its smaller side."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    size = jnp.max(jnp.abs(matrix))
    matrix = matrix / jnp.where(size > 0, size, 1.0)
    squares = jnp.linalg.eigvalsh(matrix @ matrix.T)
    return jnp.sum(squares > RELATIVE_RANK_TOLERANCE**2 * squares[-1])


def _descent(time: Any, parameters: Any, landscape: Landscape) -> Any:
    del time  # autonomous
    return jax.tree.map(jnp.negative, landscape.gradient(parameters))


def local_model(terms: Any, time: Any, parameters: Any, landscape: Landscape) -> LocalModel:
    """The landscape's own local model, for `saddleflow.solvers.Rosenbrock(local_model=...)`."""
    del terms
    return landscape.local_model(time, parameters)


def _newton(terms: Any, time: Any, network: Any, landscape: NetworkLandscape) -> Any:
    """`residual_newton` for the cost of a landscape."""
    del terms, time
    return residual_newton(network, landscape.cost, landscape.active)


_TAIL = NDF(_newton)

# The gradient flow of a landscape.
FLOW = diffrax.ODETerm(_descent)
