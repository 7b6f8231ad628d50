"""The Jacobian of the flow at one network, in the few coordinates it acts on: what the stiff solver works with.

The field's Jacobian is minus the Hessian of the loss. With the partial products `M_l`, `N_l` each of its products
has the form `M_l^T X + Y N_l^T` in layer l, X with n_out rows and Y with n_in columns: (n_out + n_in) w numbers
a hidden layer instead of w^2. Krylov vectors live in that space; a product there costs the tangent sweeps alone,
and the Gauss-Newton part of the Hessian is inverted exactly by Woodbury's formula through the neural tangent
kernel of the residuals (`saddleflow.problem.curvature`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saddleflow._backend.linalg import lane_by_lane, qr
from saddleflow.problem import geometry
from saddleflow.problem.costs import MAX_RESIDUALS, Cost, affordable_curvature
from saddleflow.problem.curvature import Curvature
from saddleflow.problem.layered import Active, Hidden, Layered, each, fold, joined
from saddleflow.problem.padding import Padding, active_of
from saddleflow.solvers import LocalModel, Plain

Vector = Float[Array, " coordinates"]


def flow_jacobian(
    terms: diffrax.AbstractTerm,
    time: Any,
    network: Any,
    cost: Cost,
    padding: Padding | None = None,
    most: int = MAX_RESIDUALS,
) -> LocalModel:
    """The local model of the gradient flow of a cost, for `saddleflow.solvers.Rosenbrock(local_model=...)`.

    Compressed coordinates where the hidden spaces are wider than they need to be for that to save work, the
    network's own otherwise.

    Args:
        terms: the vector field.
        time: of the linearisation.
        network: where to linearise.
        cost: the cost.
        padding: of the network.
        most: residuals at most of a cost whose Gauss-Newton part is inverted.
    """
    n_out, n_in = network.shape
    if network.depth > 2 and min(network.hidden_widths) > n_out + n_in:
        return CompressedJacobian.at(network, cost, padding, most)
    return Plain(partial(_woodbury, padding=padding, most=most))(terms, time, network, cost)


def _woodbury(time: Any, network: Any, cost: Cost, padding: Padding | None, most: int) -> Any:
    """Preconditioner in the network's own coordinates."""
    del time
    left, right = geometry.partial_products(network, active_of(padding))
    curvature = affordable_curvature(cost, left.first @ network.parts.first, most)
    if curvature is None:
        return None

    def prepare(shift):
        inverse = _inverse(curvature, left, right, shift)

        def apply(v: Any) -> Any:
            values = inverse(curvature.root(geometry.push_forward(left, right, v)))
            return jax.tree.map(jnp.subtract, v, geometry.pull_back(left, right, curvature.adjoint(values)))

        return apply

    return prepare


# What a product does for every parameter, besides its multiplications: the work on vectors, in units of those.
VECTOR_WORK = 400


def factorisation_price(count: int, network: Any) -> float:
    """What a step with the Gram matrix of so many residuals takes beyond one without it, in Jacobian products.

    The factor, and the solves of some ten products, which are slow for what they compute. Measured on matrix
    completion of 100 x 100, w = 100: about right for 1,000 to 4,000 residuals.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(network))
    return (count**3 / 3 + 300 * count**2) / (size * (12 * min(network.shape) + VECTOR_WORK))


def _inverse(
    curvature: Curvature, left: Layered, right: Layered, shift: Float[Array, ""]
) -> Callable[[Float[Array, " m"]], Float[Array, " m"]]:
    """`(1/shift + K)^-1` as a function, K the Gram matrix of the residuals; of a large one by its factor."""
    gram = _gram(curvature, left, right)
    if len(gram) > MAX_RESIDUALS:
        return ShiftedGram.of(gram, shift).solve
    inverse = shifted_inverse(gram, shift)
    return lambda values: inverse @ values


def residual_newton(network: Any, cost: Cost, active: Active = None) -> Any:
    """Newton's iteration of an implicit step in the space of residuals, for `saddleflow.solvers.NDF(newton=...)`.

    With the Jacobian J of the residuals (weighted by the root of C'') and the coefficients r of the gradient,
    `f = -J^T r`, the update towards `dy = b + c f(y + dy)` by the Gauss-Newton part of the Hessian is
    `b - J^T (1/c + J J^T)^-1 (J b + r)`: the stiff part of f, which cancels, is never formed. So long as a step's
    move is short the iteration converges whatever the stiffness.

    Derived; the push-through identity `(I + c J^T J)^-1 J^T = J^T (I + c J J^T)^-1` is textbook.
    """
    left, right = geometry.partial_products(network, active)
    matrix = left.first @ network.parts.first
    curvature, gradient = cost.curvature(matrix), cost.gradient(matrix)
    assert curvature is not None, "asked for only where the cost has a curvature"
    gram, residuals = _gram(curvature, left, right), curvature.coefficients(gradient)
    excess = geometry.pull_back(left, right, gradient - curvature.adjoint(residuals))

    def solve(c: Float[Array, ""], b: Any) -> Any:
        b = jax.tree.map(lambda x, e: x - c * e, b, excess)
        values = residuals + curvature.root(geometry.push_forward(left, right, b))
        values = _scaled_solve(gram, c, values)
        return jax.tree.map(jnp.subtract, b, geometry.pull_back(left, right, curvature.adjoint(values)))

    return solve


@lane_by_lane
def _scaled_solve(
    gram: Float[Array, "m m"], shift: Float[Array, ""], values: Float[Array, " m"]
) -> Float[Array, " m"]:
    """`(1/shift + K)^-1` applied, with the diagonal scaled to one: small residuals are kept apart from large ones."""
    scale = jax.lax.rsqrt(jnp.diagonal(gram) + 1 / shift)
    matrix = scale[:, None] * gram * scale + jnp.diag(scale**2 / shift)
    factor = jnp.linalg.cholesky(jnp.where(jnp.isfinite(matrix), matrix, jnp.nan))
    return scale * jax.scipy.linalg.cho_solve((factor, True), scale * values)


def _gram(curvature: Curvature, left: Layered, right: Layered) -> Float[Array, "m m"]:
    return curvature.gram(joined(_squares(left, 1)), joined(_squares(right, 0)))


def _squares(products: Layered, axis: int) -> Layered:
    """`M M^T` of each, or (axis 0) `N^T N`."""

    def square(m):
        return m @ m.T if axis else m.T @ m

    last = None if products.last is None else square(products.last)
    return Layered(square(products.first), each(square, products.hidden), last)


# A plain inverse of `1/shift + K` loses its stiff directions to rounding as shift times the largest eigenvalue nears
# 1/eps.
PLAIN = 1e8


@lane_by_lane
def shifted_inverse(gram: Float[Array, "m m"], shift: Float[Array, ""]) -> Float[Array, "m m"]:
    """`(1/shift + K)^-1`, explicit since it is small; zero, which switches it off, where it cannot be had."""
    identity = jnp.eye(len(gram))
    gram = jnp.where(jnp.all(jnp.isfinite(gram)), gram, 0.0)

    def by_cholesky():
        factor = jnp.linalg.cholesky(gram + identity / shift)
        return jax.scipy.linalg.cho_solve((factor, True), identity)

    inverse = jax.lax.cond(shift * jnp.trace(gram) < PLAIN, by_cholesky, lambda: _resolved_inverse(gram, shift))
    return jnp.where(jnp.all(jnp.isfinite(inverse)), inverse, 0.0)


def _resolved_inverse(gram: Float[Array, "m m"], shift: Float[Array, ""]) -> Float[Array, "m m"]:
    """`(1/shift + K)^-1` on the directions of K that rounding has left."""
    values, vectors = jnp.linalg.eigh(gram)
    resolved = values > len(gram) * jnp.finfo(float).eps * values[-1]
    scale = jnp.where(resolved, 1 / (1 / shift + jnp.where(resolved, values, 1.0)), 0.0)
    return (vectors * scale) @ vectors.T


class ShiftedGram(eqx.Module):
    """`(1/shift + K)^-1`, by a factor where that is sound; cheaper than an inverse where few vectors are to come."""

    matrix: Float[Array, "m m"]  # Cholesky's factor, or the inverse
    factored: Bool[Array, ""]

    @classmethod
    def of(cls, gram: Float[Array, "m m"], shift: Float[Array, ""]) -> "ShiftedGram":
        """Factorised; zero, which switches it off, where that cannot be had."""
        return cls(*_factorised(gram, shift))

    def solve(self, values: Float[Array, " m"]) -> Float[Array, " m"]:
        """The inverse, applied."""
        return _solved(self.matrix, self.factored, values)


@lane_by_lane
def _factorised(gram: Float[Array, "m m"], shift: Float[Array, ""]) -> tuple[Float[Array, "m m"], Bool[Array, ""]]:
    gram = jnp.where(jnp.all(jnp.isfinite(gram)), gram, 0.0)
    factored = shift * jnp.trace(gram) < PLAIN
    matrix = jax.lax.cond(
        factored,
        lambda: jnp.linalg.cholesky(gram + jnp.eye(len(gram)) / shift),
        lambda: _resolved_inverse(gram, shift),
    )
    sound = jnp.all(jnp.isfinite(matrix))
    return jnp.where(sound, matrix, 0.0), factored & sound


@lane_by_lane
def _solved(matrix: Float[Array, "m m"], factored: Bool[Array, ""], values: Float[Array, " m"]) -> Float[Array, " m"]:
    return jax.lax.cond(factored, lambda: jax.scipy.linalg.cho_solve((matrix, True), values), lambda: matrix @ values)


class CompressedJacobian(LocalModel):
    """Coordinates: first and last layer as they are, hidden ones as (X, Y) with `V = Q X + Y O^T`, `Q^T Y = 0`.

    Q and O are orthonormal frames of the columns of `M_l^T` and `N_l`: `M_l^T = Q R`, `N_l = O S`. The frame
    `(Q X, Y O^T)` is orthonormal too, so inner products of coordinates are those of the networks.
    """

    complete: ClassVar[bool] = False

    network: Any
    left: Layered
    right: Layered
    frames: tuple[Hidden, Hidden, Hidden, Hidden]  # Q, R, O and S of the hidden layers
    gradient: Float[Array, "n_out n_in"]
    hessian: Callable[[Array], Array]  # of the cost, on matrices
    curvature: Curvature | None
    padding: Padding | None = None

    @classmethod
    def at(
        cls, network: Any, cost: Cost, padding: Padding | None = None, most: int = MAX_RESIDUALS
    ) -> "CompressedJacobian":
        """Linearise at a network."""
        left, right = geometry.partial_products(network, active_of(padding))
        matrix = left.first @ network.parts.first
        gradient, hessian = jax.linearize(cost.gradient, matrix)
        frames = (*split(each(lambda m: qr(m.T), left.hidden)), *split(each(qr, right.hidden)))
        curvature = affordable_curvature(cost, matrix, most)
        return cls(network, left, right, frames, gradient, hessian, curvature, padding)

    @property
    def _active(self) -> Active:
        return active_of(self.padding)

    def _split(self, z: Vector):
        """First layer, X and Y of the hidden ones, last layer."""
        first, hidden, last = self.network.parts
        inner = z[first.size : z.size - last.size]
        q, _, o, _ = self.frames
        if isinstance(hidden, tuple):
            x, y, at = [], [], 0
            for layer, q_layer, o_layer in zip(hidden, q, o, strict=True):
                across, along = q_layer.shape[1] * layer.shape[1], layer.shape[0] * o_layer.shape[1]
                x.append(inner[at : at + across].reshape(q_layer.shape[1], layer.shape[1]))
                y.append(inner[at + across : at + across + along].reshape(layer.shape[0], o_layer.shape[1]))
                at += across + along
            x, y = tuple(x), tuple(y)
        else:
            assert not isinstance(q, tuple), "as the layers"
            assert not isinstance(o, tuple), "as the layers"
            count, width = hidden.shape[:2]
            half = count * width * q.shape[2]
            x, y = inner[:half].reshape(count, q.shape[2], width), inner[half:].reshape(count, width, o.shape[2])
        return z[: first.size].reshape(first.shape), x, y, z[z.size - last.size :].reshape(last.shape)

    @staticmethod
    def _join(first, x, y, last) -> Vector:
        inner = [part for pair in zip(x, y, strict=True) for part in pair] if isinstance(x, tuple) else [x, y]
        return jnp.concatenate([part.ravel() for part in (first, *inner, last)])

    def restrict(self, v: Any) -> Vector:
        """Coordinates of the orthogonal projection."""
        first, hidden, last = v.parts
        q, _, o, _ = self.frames

        def across(layer, q, o):
            moved = layer @ o
            return moved - q @ (q.T @ moved)

        return self._join(first, each(lambda layer, q: q.T @ layer, hidden, q), each(across, hidden, q, o), last)

    def extend(self, z: Vector) -> Any:
        """The network with these coordinates."""
        first, x, y, last = self._split(z)
        q, _, o, _ = self.frames
        return geometry.as_network(first, each(lambda x, y, q, o: q @ x + y @ o.T, x, y, q, o), last)

    def preconditioner(self, shift: Float[Array, ""]) -> Callable[[Vector], Vector] | None:
        """Inverse of `I + shift` times the Gauss-Newton part, in coordinates."""
        curvature = self.curvature
        if curvature is None:
            return None
        inverse = _inverse(curvature, self.left, self.right, shift)
        r, n = self.frames[1], self.right.hidden

        def apply(z: Vector) -> Vector:
            first, x, y, last = self._split(z)
            moved = self.left.first @ first + last @ self.right.last
            moved = moved + geometry.over_layers(each(lambda x, r, n: r.T @ (x @ n), x, r, n))
            u = curvature.adjoint(inverse(curvature.root(moved)))
            x = each(lambda x, r, n: x - (r @ u) @ n.T, x, r, n)
            return self._join(first - self.left.first.T @ u, x, y, last - u @ self.right.last.T)

        return apply

    def weights(self, inverse_squares: Any) -> Vector:
        """The layers' own in the outer layers; in a hidden one all coordinates get the mean of its entries."""
        first, hidden, last = inverse_squares.parts
        q, _, o, _ = self.frames
        if self.padding is None:
            means = each(jnp.mean, hidden)
        else:
            real = self.padding.mask(self.network).parts.hidden
            means = each(lambda layer, mask: jnp.sum(layer * mask) / jnp.maximum(jnp.sum(mask), 1.0), hidden, real)

        def of_x(layer, q, mean):
            return jnp.full((q.shape[1], layer.shape[1]), mean)

        def of_y(layer, o, mean):
            return jnp.full((layer.shape[0], o.shape[1]), mean)

        return self._join(first, each(of_x, hidden, q, means), each(of_y, hidden, o, means), last)

    def product(self, z: Vector) -> Vector:
        """The Jacobian's product: tangents of the partial products, then of the field, all in coordinates."""
        first, x, y, last = self._split(z)
        (_, hidden, w_last), (q, r, o, s) = self.network.parts, self.frames
        m, n, active = self.left.hidden, self.right.hidden, self._active

        def up(n_dot, layer, n, x, y, q, s):  # of N_2, ..., N_L
            return q @ (x @ n) + y @ s + layer @ n_dot, (n_dot,)

        def down(m_dot, layer, m, x, y, r, o):  # of M_{L-1}, ..., M_1
            return r.T @ x + (m @ y) @ o.T + m_dot @ layer, (m_dot,)

        n_dot_last, n_dot = fold(up, first, hidden, n, x, y, q, s, active=active)
        m_dot_first, m_dot = fold(down, last, hidden, m, x, y, r, o, active=active, reverse=True)
        g = -self.gradient
        g_dot = -self.hessian(last @ self.right.last + w_last @ n_dot_last)

        def x_out(m_dot, n, n_dot, q, r):
            return ((m_dot @ q).T @ g + r @ g_dot) @ n.T + (r @ g) @ n_dot.T

        def y_out(m_dot, q, s):
            y = m_dot.T @ (g @ s.T)
            return y - q @ (q.T @ y)

        return self._join(
            m_dot_first.T @ g + self.left.first.T @ g_dot,
            each(x_out, m_dot, n, n_dot, q, r),
            each(y_out, m_dot, q, s),
            g_dot @ self.right.last.T + g @ n_dot_last.T,
        )


def split(pairs: Any) -> tuple[Hidden, Hidden]:
    """Pairs of every hidden layer as two things of every hidden layer."""
    first, second = zip(*pairs, strict=True) if isinstance(pairs[0], tuple) else pairs
    return first, second
