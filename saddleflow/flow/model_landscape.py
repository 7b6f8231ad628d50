"""The landscape of any model: trainable parameters as one vector, structure by automatic differentiation."""

import math
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from saddleflow.flow.jacobian import ShiftedGram
from saddleflow.flow.landscape import FLOW, Landscape
from saddleflow.problem import geometry
from saddleflow.problem.objective import BareLoss, Objective
from saddleflow.solvers import Plain

Preconditioner = Literal["gauss_newton", "hessian", "none"]

Vector = Float[Array, " p"]

# The Gauss-Newton part is inverted where the step times its trace is larger: else conjugate gradients are faster.
WORTHWHILE = 3e3

# A gradient is looked at for rest where over the length of the start it would change the loss by this share at most.
FAINT = 1e-8

# Rounding is told entry by entry from so many patterns of signs: less than a fifth of it is seen once in 4e4 entries.
PATTERNS = 8


class ModelLandscape(Landscape):
    """The loss `C(f(theta)) + R(theta)` of a model; theta are its trainable entries, one vector of p numbers.

    Attributes:
        objective: the loss.
        rest: the model without its trainable arrays.
        rms: typical size of each entry: root mean square of its array at the start.
        level: size of the loss at the start.
        shapes: of the trainable arrays.
        structure: of their pytree.
        preconditioner: how the stiff part of the flow is inverted.
        keeps_outputs: whether rows hold the outputs.
    """

    always_saddle: ClassVar[bool] = False
    strains: ClassVar[bool] = False
    linear_tolerance: ClassVar[float] = 0.05  # fewer products than at .02, and hardly more steps
    may_jump: ClassVar[bool] = True

    objective: Objective
    rest: Any
    rms: Vector
    level: Float[Array, ""]
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)
    preconditioner: Preconditioner = eqx.field(static=True)
    keeps_outputs: bool = eqx.field(static=True, default=True)

    def model(self, theta: Vector) -> Any:
        """The model of a vector of parameters."""
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = jnp.split(theta, np.cumsum(sizes)[:-1].tolist())
        leaves = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return eqx.combine(jax.tree.unflatten(self.structure, leaves), self.rest)

    def arrays(self, theta: Vector) -> list[np.ndarray]:
        """The trainable arrays of a vector of parameters, on the host."""
        parts = np.split(np.asarray(theta), np.cumsum([math.prod(shape) for shape in self.shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @property
    def has_outputs(self) -> bool:
        """Whether the loss has outputs; a bare one has none."""
        return not isinstance(self.objective, BareLoss)

    def outputs(self, parameters):
        """The outputs f."""
        return self.objective.outputs(self.model(parameters))

    def loss(self, parameters, outputs):
        """C(f) + R."""
        return self.objective.loss(self.model(parameters), outputs)

    @eqx.filter_jit
    def loss_at(self, parameters: Vector) -> Float[Array, ""]:
        """The loss where nothing is known, compiled."""
        return self.loss(parameters, self.outputs(parameters))

    def gradient(self, parameters):
        """By reverse differentiation, C by its own gradient."""
        outputs, pull = jax.vjp(self.outputs, parameters)
        (gradient,) = pull(self.objective.cost.gradient(outputs))
        if self.objective.regulariser is None:
            return gradient
        return gradient + jax.grad(lambda theta: self._regulariser(theta))(parameters)

    def _regulariser(self, theta: Vector) -> Float[Array, ""]:
        regulariser = self.objective.regulariser
        return jnp.zeros(()) if regulariser is None else jnp.asarray(regulariser(self.model(theta)))

    def certificate(self, outputs):
        """For a convex C without a regulariser a vanishing gradient in the outputs is a certificate."""
        if not self.has_outputs or self.objective.regulariser is not None:
            return jnp.asarray(jnp.inf)
        return jnp.linalg.norm(self.objective.cost.gradient(outputs))

    def unbounded(self, parameters, outputs):
        """Of outputs that the cost does not bound; of a bare loss the parameters."""
        if not self.has_outputs:
            return jnp.linalg.norm(parameters)
        return jnp.linalg.norm(self.objective.cost.unbounded(outputs))

    def lacks_minimum(self, outputs):
        """As the cost says; a regulariser bounds the outputs."""
        if self.objective.regulariser is not None:
            return jnp.asarray(False)
        return self.objective.cost.lacks_minimum(outputs)

    def size(self, parameters, outputs):
        """Of all outputs, or of the parameters."""
        return jnp.linalg.norm(outputs if self.has_outputs else parameters)

    def length(self, parameters):
        """Of typical parameters: those of the start, and of arrays that start at zero what others are."""
        return jnp.linalg.norm(self.rms)

    def scales(self, parameters):
        """Of each trainable array; |grad C(0)|, or |grad C| at the start where that is zero."""
        cost = self.objective.cost
        at_zero = jnp.linalg.norm(cost.gradient(jnp.zeros(cost.shape)))
        here = jnp.linalg.norm(cost.gradient(self.outputs(parameters)))
        return self.rms, jnp.where(at_zero > 0, at_zero, here)

    def at_rest(self, parameters, graded):
        """By what roundings of the parameters and of the cost's own gradient do to the gradient.

        That is asked of every entry: a tiny force on one that still grows is not taken for the rounding of others.
        """
        del graded  # networks only
        gradient = self.gradient(parameters)
        size = geometry.norm(gradient)
        faint = size * self.length(parameters) <= FAINT * self.level
        no = jnp.asarray(False)

        def look():
            # one pattern of signs tells nearly always enough
            resting = size <= geometry.ROUNDING * self.gradient_unit(parameters)
            quiet = jax.lax.cond(resting, lambda: self._quiet(gradient, parameters), lambda: no)
            if not self.has_outputs or self.objective.regulariser is not None:
                return quiet, no
            outputs = self.outputs(parameters)
            forces = jnp.linalg.norm(self.objective.cost.gradient(outputs))
            return quiet, forces <= geometry.ROUNDING * jnp.linalg.norm(self._force_sizes(outputs))

        return size, *jax.lax.cond(faint, look, lambda: (no, no))

    def _quiet(self, gradient: Vector, parameters: Vector) -> Bool[Array, ""]:
        """Whether every entry of the gradient is at most the rounding that its terms leave in it.

        Of each the root mean square over patterns of signs, so that none seems quiet or loud by chance; of few
        parameters, whose patterns would be alike, what each of them does by itself.
        """
        few = parameters.size <= PATTERNS

        def squares(pattern: Float[Array, ""]) -> Vector:
            alone = len(patterns) ** 0.5 * (jnp.arange(parameters.size) == pattern)
            signs = alone if few else _signs(parameters.size, pattern)
            changed = jax.jvp(self.gradient, (parameters,), (signs * parameters,))[1] ** 2
            if not self.has_outputs:
                return changed
            outputs, pull = jax.vjp(self.outputs, parameters)
            sizes = self._force_sizes(outputs)
            return (
                changed
                + pull(
                    sizes * _signs(sizes.size, 1 + pattern / len(patterns) if few else pattern).reshape(sizes.shape)
                )[0]
                ** 2
            )

        patterns = jnp.arange(1.0 * parameters.size) if few else 1 + jnp.arange(PATTERNS) / PATTERNS
        noise = jnp.sqrt(jnp.mean(jax.lax.map(squares, patterns), axis=0))
        quiet = jnp.abs(gradient) <= geometry.ROUNDING * noise
        if self.objective.regulariser is not None:
            # what weight decay takes to zero never rests by its own size: among others of its array it counts as zero
            decays = (gradient * parameters >= 0) & (jnp.abs(gradient) <= geometry.ROUNDING * self._of_array(noise))
            quiet = quiet | decays
        return jnp.all(quiet)

    def _of_array(self, sizes: Vector) -> Vector:
        """For every parameter the largest of its array."""
        counts = [math.prod(shape) for shape in self.shapes]
        parts = jnp.split(sizes, np.cumsum(counts)[:-1].tolist())
        return jnp.concatenate([jnp.broadcast_to(jnp.max(part, initial=0.0), part.shape) for part in parts])

    def gradient_unit(self, parameters: Vector) -> Float[Array, ""]:
        """What the gradient changes by where every entry does by its size, and every term of the cost's own gradient.

        With fixed signs of no pattern, of few parameters one after another; times the rounding unit it is the
        rounding of the gradient.
        """
        directions = self._signed(parameters)[None]
        if parameters.size <= PATTERNS:
            directions = jnp.diag(directions[0])
        changed = jax.lax.map(lambda v: jax.jvp(self.gradient, (parameters,), (v,))[1], directions)
        if not self.has_outputs:
            return jnp.linalg.norm(changed)
        outputs, pull = jax.vjp(self.outputs, parameters)
        sizes = self._force_sizes(outputs)
        (terms,) = pull(sizes * _signs(sizes.size).reshape(sizes.shape))
        return jnp.linalg.norm(changed) + jnp.linalg.norm(terms)

    def _force_sizes(self, outputs: Float[Array, "n_out N"]) -> Float[Array, "n_out N"]:
        """Sizes of the terms of the cost's gradient."""
        forces = self.objective.cost.gradient(outputs)
        # no derivative of it: explicit solvers take costs that have none
        return jnp.abs(forces) + jnp.abs(forces - self.objective.cost.gradient(jnp.zeros_like(outputs)))

    def _signed(self, parameters: Vector) -> Vector:
        """The sizes of all entries, none below its share of the start, with signs of no pattern."""
        return _signs(parameters.size) * (jnp.abs(parameters) + self.rms)

    def output_error(self, before, after, error):
        """Of the outputs; relative to them, or to what entries all off by their own size would make of them."""
        del before
        if not self.has_outputs:
            return jnp.zeros(())
        outputs, linear = jax.linearize(self.outputs, after)
        size = jnp.maximum(jnp.linalg.norm(outputs), jnp.linalg.norm(linear(self._signed(after))))
        return jnp.where(size > 0, jnp.linalg.norm(linear(error)) / jnp.where(size > 0, size, 1.0), 0.0)

    def local_model(self, time, parameters):
        """All coordinates, with the preconditioner chosen."""
        prepare = {"gauss_newton": self._gauss_newton, "hessian": self._hessian, "none": None}[self.preconditioner]
        plain = Plain(None if prepare is None else lambda time, theta, landscape: prepare(theta))
        return plain(FLOW, time, parameters, self)

    def residual_jacobian(self, parameters: Vector) -> Float[Array, "m p"]:
        """The derivative of the residuals: `R f'(theta)`, with the root R of the cost's curvature."""
        curvature = self.objective.cost.curvature(self.outputs(parameters))
        assert curvature is not None, "chosen only where the cost has a curvature"
        jacobian = self.objective.jacobian(self.model, parameters)
        return jax.vmap(curvature.root, in_axes=-1, out_axes=-1)(jacobian)

    def _gauss_newton(self, parameters: Vector) -> Any:
        """`(I + s (J^T J + d))^-1`, J of the residuals, d the weight decay, by the smaller Gram matrix.

        The identity where the step is not so stiff that it saves what it costs.
        """
        decay = self.objective.decay
        many, count = self.counts(parameters)
        outputs, push = jax.linearize(self.outputs, parameters)
        curvature = self.objective.cost.curvature(outputs)
        assert curvature is not None, "chosen only where the cost has a curvature"
        pull = jax.linear_transpose(push, parameters)
        # about the trace of J J^T, never far below its largest eigenvalue: signs of no pattern
        trace = jnp.sum(curvature.root(push(_signs(parameters.size))) ** 2)

        def prepare(shift):
            whole = 1 + shift * decay
            short = shift / whole
            stiff = short * trace > WORTHWHILE

            def formed():
                jacobian = self.residual_jacobian(parameters)
                gram = jacobian.T @ jacobian if many else jacobian @ jacobian.T
                return gram, ShiftedGram.of(gram, short)

            def nothing():
                return jnp.zeros((count, count)), ShiftedGram(jnp.zeros((count, count)), jnp.asarray(False))

            gram, inverse = jax.lax.cond(stiff, formed, nothing)

            def corrected(v: Vector) -> Vector:
                if many:
                    return (v - inverse.solve(gram @ v)) / whole
                # J by its products: the matrix itself would have to be kept
                return (v - pull(curvature.adjoint(inverse.solve(curvature.root(push(v)))))[0]) / whole

            # by four the identity never seems to contract a residual, which it would where stiff parts are missed
            return lambda v: jax.lax.cond(stiff, corrected, lambda v: 4.0 * v, v)

        return prepare

    def counts(self, parameters: Vector) -> tuple[bool, int]:
        """Whether residuals are as many as parameters, and the smaller of the two numbers."""
        shape = jax.ShapeDtypeStruct(self.objective.cost.shape, parameters.dtype)
        curvature = eqx.filter_eval_shape(self.objective.cost.curvature, shape)
        return curvature.num_residuals >= parameters.size, min(curvature.num_residuals, parameters.size)

    def _hessian(self, parameters: Vector) -> Any:
        """`(I + s H)^-1` with the whole Hessian; the identity where that is not positive."""
        _, product = jax.linearize(self.gradient, parameters)
        identity = jnp.eye(parameters.size)
        hessian = jax.vmap(product)(identity)

        def prepare(shift):
            factor = jnp.linalg.cholesky(identity + shift * hessian)
            sound = jnp.all(jnp.isfinite(factor))
            factor = jnp.where(sound, factor, identity)
            return lambda v: jax.scipy.linalg.cho_solve((factor, True), v)

        return prepare

    def tail_solver(self):
        """None: it would take the residuals' Jacobian in every step."""
        return None

    def framed(self, frame):
        """Models have no frames."""
        del frame
        return self

    def record(self, parameters, outputs):
        """Outputs, loss, test loss."""
        test = self.objective.test
        row = {"outputs": outputs} if self.has_outputs and self.keeps_outputs else {}
        row = row | {"train_cost": self.loss(parameters, outputs)}
        return row if test is None else row | {"test_cost": jnp.asarray(test(self.model(parameters)))}

    def costs(self, rows):
        """Rows hold them."""
        del rows
        return {}

    def standing(self, parameters):
        """The loss, and the test loss."""
        row = self.record(parameters, self.outputs(parameters))
        return {"cost": row["train_cost"]} | ({"test": row["test_cost"]} if "test_cost" in row else {})

    def drift(self, start, end):
        """Nothing is known to be conserved."""
        del start, end

    def plain(self, parameters):
        """The vector as it is."""
        return parameters

    def subject(self, parameters):
        """Objective and model."""
        return self.objective, self.model(parameters)


def _signs(size: int, pattern: Any = 1.0) -> Vector:
    return jnp.sign(jnp.cos(pattern * jnp.arange(1.0, size + 1) ** 2))
