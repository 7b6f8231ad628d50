"""Graded coordinates: all spaces rotated so that learned and unlearned directions do not share entries.

In plain coordinates a small component of a layer is a cancellation among entries of order one, known to rounding; a
long step of the flow amplifies that rounding until it decides the next escape. The flow is equivariant under
rotations of the hidden spaces, so they can be turned, now and then, into the left singular bases of the layers:
small components are then stored as small numbers and products never mix them with large ones. The input and the
output space are turned into the singular bases of A, the cost with them: the gradient's learned components, zero
up to rounding on a plateau, are then computed once for all layers. Computed layer by layer their rounding would
break the conservation of balancedness, and push the learned part along its symmetries, by the length of a step.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saddleflow._backend.checks import is_concrete
from saddleflow._backend.linalg import svd
from saddleflow.problem import geometry
from saddleflow.problem.costs import Cost
from saddleflow.problem.curvature import Curvature, Grams, Matrix
from saddleflow.problem.geometry import as_network, end_to_end
from saddleflow.problem.layered import Active, Hidden, Layered, StackedNetwork, each, fold, joined
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.padding import Padding

EPSILON = 2.0**-52

# No entry is asked to be quieter than this many roundings of its row's or column's largest.
NOISE = 16

# Rounding, amplified, over what it is compared with: from here on it shows.
LIMIT = 500

# So many turns in a row under strain, and rounding holds the run where it is. (Seen to get away: 7; to stay: 18.)
MAX_STRAINED = 16

# At rest: a step has become so long that rounding is amplified to this.
REST = 1e-4

# Below this share of learned layers unlearned ones hide under the error weights of plain coordinates, and the times
# of later escapes suffer (docs/small_starts.md has what was seen; it does not vanish above).
TINY = 1e-3


class Frame(eqx.Module):
    """Rotations of all spaces: a network in the frame has layers `O_l W_l O_{l-1}^T`."""

    into: Float[Array, "n_in n_in"]
    hidden: Hidden  # of every hidden space, from the input on
    out: Float[Array, "n_out n_out"]

    @classmethod
    def of(cls, network: Any) -> "Frame":
        """The frame of a network as it stands: no rotation."""
        (n_out, n_in), widths = network.shape, network.hidden_widths
        if isinstance(network, StackedNetwork):
            hidden = jnp.broadcast_to(jnp.eye(widths[0]), (len(widths), widths[0], widths[0]))
        else:
            hidden = tuple(map(jnp.eye, widths))
        return cls(jnp.eye(n_in), hidden, jnp.eye(n_out))

    def apply(self, network: Any) -> Any:
        """A network, turned into the frame."""
        first, hidden, last = network.parts
        hidden = each(lambda above, w, below: above @ w @ below.T, self.hidden[1:], hidden, self.hidden[:-1])
        return as_network(self.hidden[0] @ first @ self.into.T, hidden, self.out @ last @ self.hidden[-1].T)

    def undo(self, network: Any) -> Any:
        """A network in the frame, back in the coordinates of the start."""
        first, hidden, last = network.parts
        hidden = each(lambda above, w, below: above.T @ w @ below, self.hidden[1:], hidden, self.hidden[:-1])
        return as_network(self.hidden[0].T @ first @ self.into, hidden, self.out.T @ last @ self.hidden[-1])

    def undo_matrix(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """An end-to-end matrix in the frame, back in the coordinates of the start."""
        return self.out.T @ matrix @ self.into

    def after(self, turns: "Frame") -> "Frame":
        """This frame, turned further."""
        hidden = each(jnp.matmul, turns.hidden, self.hidden)
        return Frame(turns.into @ self.into, hidden, turns.out @ self.out)


def grade(network: Any, active: Active = None) -> tuple[Any, Frame, Layered]:
    """Turn hidden space l into the left singular basis of W_l, the outer spaces into those of A.

    Args:
        network: layers side by side or in a stack.
        active: layers of a stack that are there.

    Returns:
        The network in the new bases, the turns that led there, and the singular values of each layer on the way.
    """

    def turned(layer):
        u, s, vh = svd(layer)
        # the product U^T W by its small numbers, not as a cancellation of large ones
        return jnp.zeros(layer.shape).at[: len(s)].set(s[:, None] * vh[: len(s)]), u, s

    def turn(u, layer):
        layer, u, s = turned(layer @ u)
        return u, (layer, u.T, s)

    left, _, right = svd(end_to_end(network, active))
    first, hidden, last = network.parts
    first, u, of_first = turned(first @ right.T)
    last_u, hidden, turns, of_hidden = fold(turn, u, hidden, active=active, outputs=3)
    last = left.T @ last @ last_u
    if isinstance(turns, tuple):
        turns = (u.T, *turns)
    else:
        # past the last layer that is there, the space goes on as it is
        turns = turns if active is None else jnp.where(active[:, None, None], turns, last_u.T)
        turns = jnp.concatenate([u.T[None], turns])
    spectra = Layered(of_first, of_hidden, svd(last)[1])
    return as_network(first, hidden, last), Frame(right, turns, left.T), spectra


def resolution(
    cost: Cost,
    network: Any,
    spectra: Layered,
    step_size: Float[Array, ""],
    strained: Int[Array, ""],
    padding: Padding | None = None,
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """How often in a row rounding strained the plateau that the network rests on; whether it decides the next escape.

    Unlearned directions of the size a (the geometric mean over the layers, below the widest gap of their spectra)
    grow at the rate `s_1(grad C) a^(L-2)`. A step that follows it is `lambda / rate` times longer than the fastest
    relaxation takes, lambda the largest eigenvalue of the learned part, and amplifies rounding `eps` by that.
    Seen for L = 3 to 5: up to `eps lambda / rate` = 440 escape times are those of larger starts to 1 %, at 610 one
    was off by 1.4 %; strained is what is above 1. It applies at rest, where steps have become long; on the way to it
    escapes are safe at every scale.
    """
    depth, active = (network.depth, None) if padding is None else (padding.depth, padding.active)
    ends, inner = (spectra.first, spectra.last), spectra.hidden
    count = min(s.shape[-1] for s in (*ends, *(inner if isinstance(inner, tuple) else (inner,))))
    logarithms = joined(jax.tree.map(lambda s: jnp.log(jnp.maximum(s[..., :count], 1e-300)), spectra))
    if active is not None:
        logarithms = logarithms.at[1:-1].multiply(active[:, None])
    sizes = jnp.sum(logarithms, axis=0) / depth
    alive = sizes > jnp.log(1e-290)
    gaps = jnp.where(alive[1:], sizes[:-1] - sizes[1:], -jnp.inf)
    unlearned = jnp.exp(sizes[jnp.argmax(gaps) + 1]) if count > 1 else jnp.inf
    largest = geometry.stiffness(cost, network, active)
    rate = jnp.linalg.norm(cost.gradient(end_to_end(network, active))) * unlearned ** (depth - 2)
    rounding = EPSILON * largest
    at_rest = jnp.any(gaps > 0) & (rounding * step_size > REST)
    strained = jnp.where(at_rest & (rounding > rate), strained + 1, 0)
    return strained, at_rest & (rounding > LIMIT * rate) | (strained >= MAX_STRAINED)


class FramedCost(Cost):
    """A cost as a network in a frame sees it: `C(O_L^T A O_0)`."""

    cost: Cost
    frame: Frame

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrices, the cost's own."""
        return self.cost.shape

    def __call__(self, matrix: Matrix) -> Float[Array, ""]:
        """The train cost."""
        return self.cost(self.frame.undo_matrix(matrix))

    @property
    def has_test(self) -> bool:
        """Whether the cost has a test set."""
        return self.cost.has_test

    def test(self, matrix: Matrix) -> Float[Array, ""]:
        """The test cost."""
        return self.cost.test(self.frame.undo_matrix(matrix))

    def unbounded(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """The part that can grow, in the coordinates of the start: only its norm is of use."""
        return self.cost.unbounded(self.frame.undo_matrix(matrix))

    def lacks_minimum(self, matrix: Matrix) -> Bool[Array, ""]:
        """As the cost says of the matrix turned back."""
        return self.cost.lacks_minimum(self.frame.undo_matrix(matrix))

    def gradient(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """The gradient, in the frame."""
        plain = self.cost.gradient(self.frame.undo_matrix(matrix))
        return self.frame.out @ plain @ self.frame.into.T

    def curvature(self, matrix: Matrix) -> Curvature | None:
        """The cost's curvature, in the frame."""
        plain = self.cost.curvature(self.frame.undo_matrix(matrix))
        return None if plain is None else FramedCurvature(plain, self.frame)


class FramedCurvature(Curvature):
    """A root of the Hessian as seen in a frame."""

    curvature: Curvature
    frame: Frame

    @property
    def num_residuals(self) -> int:
        """The number of residuals, the same in every frame."""
        return self.curvature.num_residuals

    def root(self, matrix: Matrix) -> Float[Array, " m"]:
        """`R V` of the matrix turned back."""
        return self.curvature.root(self.frame.undo_matrix(matrix))

    def adjoint(self, values: Float[Array, " m"]) -> Float[Array, "n_out n_in"]:
        """`R^T u`, turned into the frame."""
        return self.frame.out @ self.curvature.adjoint(values) @ self.frame.into.T

    def coefficients(self, matrix: Matrix) -> Float[Array, " m"]:
        """Those of the matrix turned back."""
        return self.curvature.coefficients(self.frame.undo_matrix(matrix))

    def gram(self, left: Grams, right: Grams) -> Float[Array, "m m"]:
        """The Gram matrix, the same in every frame."""
        out, into = self.frame.out, self.frame.into
        return self.curvature.gram(out.T @ jnp.asarray(left) @ out, into.T @ jnp.asarray(right) @ into)


def noise(layer: Float[Array, "*stack _ _"]) -> Float[Array, "*stack _ _"]:
    """What rounding leaves of an entry in graded coordinates: the rounding of the largest in its row or column.

    A learned direction is held by forces that are known to rounding of the whole, so where it crosses an unlearned
    one no entry can be asked to be quieter than that, however small it is.
    """
    size = jnp.abs(layer)
    return NOISE * EPSILON * jnp.maximum(jnp.max(size, axis=-1, keepdims=True), jnp.max(size, axis=-2, keepdims=True))


def is_tiny(cost: Cost, network: DeepLinearNetwork) -> bool:
    """Whether plain coordinates would blur escapes from this start; see `blurs`."""
    if not is_concrete(network.layers[0]):
        return False
    # what a random layer's largest singular value is; a deficient one's is larger, and grading it does no harm
    sizes = [np.sqrt(np.mean(np.square(w))) * (math.sqrt(w.shape[0]) + math.sqrt(w.shape[1])) for w in network.layers]
    return blurs(cost, float(max(sizes)), network.depth)


def blurs(cost: Cost, largest: float, depth: int) -> bool:
    """Whether plain coordinates blur escapes: layers near eps^(1/(L-1)) of learned ones, or below `TINY` of them.

    A learned layer is of the size |A|^(1/L), with |A| where the steepest line from zero has its minimum.

    Args:
        cost: the cost.
        largest: the largest singular value of the start's layers, or about.
        depth: number of layers L.
    """
    if depth == 1:
        return False
    size, curvature = along_steepest(cost)
    if not is_concrete(curvature):
        return False
    learned = float(size) ** (1 / depth) if float(curvature) > 0 else math.inf
    return largest < max(100 * EPSILON ** (1 / (depth - 1)), TINY) * learned


@eqx.filter_jit
def along_steepest(cost: Cost) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """|A| where the steepest line from A = 0 has its minimum, and the second derivative along it, of grad C there."""
    zero = jnp.zeros(cost.shape)
    gradient, image = jax.jvp(cost.gradient, (zero,), (cost.gradient(zero),))
    curvature = jnp.sum(gradient * image)
    return jnp.linalg.norm(gradient) ** 3 / curvature, curvature
