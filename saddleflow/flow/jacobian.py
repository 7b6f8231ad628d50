"""The Jacobian of the flow at one network, in the few coordinates it acts on: what the stiff solver works with.

The field's Jacobian is minus the Hessian of the loss. With the partial products `M_l`, `N_l` each of its products
has the form `M_l^T X + Y N_l^T` in layer l, X with n_out rows and Y with n_in columns: (n_out + n_in) w numbers
a hidden layer instead of w^2. Krylov vectors live in that space; a product there costs the tangent sweeps alone,
and the Gauss-Newton part of the Hessian is inverted exactly by Woodbury's formula through the neural tangent
kernel of the residuals (`saddleflow.problem.curvature`).
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saddleflow._backend.linalg import lane_by_lane, qr
from saddleflow.problem import geometry
from saddleflow.problem.costs import Cost, affordable_curvature
from saddleflow.problem.curvature import Curvature
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.solvers import LocalModel, Plain

Vector = Float[Array, " coordinates"]


def flow_jacobian(terms: diffrax.AbstractTerm, time: Any, network: DeepLinearNetwork, cost: Cost) -> LocalModel:
    """The local model of the gradient flow of a cost, for `saddleflow.solvers.Rosenbrock(local_model=...)`.

    Compressed coordinates where the hidden spaces are wider than they need to be for that to save work, the
    network's own otherwise.
    """
    n_out, n_in = network.shape
    if network.depth > 2 and min(network.hidden_widths) > n_out + n_in:
        return CompressedJacobian.at(network, cost)
    return Plain(_woodbury)(terms, time, network, cost)


def _woodbury(time: Any, network: DeepLinearNetwork, cost: Cost) -> Any:
    """Preconditioner in the network's own coordinates."""
    del time
    left, right = geometry.partial_products(network)
    curvature = affordable_curvature(cost, left[0] @ network.layers[0])
    if curvature is None:
        return None
    gram = _gram(curvature, left, right)

    def prepare(shift):
        inverse = shifted_inverse(gram, shift)

        def apply(v: DeepLinearNetwork) -> DeepLinearNetwork:
            values = inverse @ curvature.root(geometry.push_forward(left, right, v))
            return jax.tree.map(jnp.subtract, v, geometry.pull_back(left, right, curvature.adjoint(values)))

        return apply

    return prepare


def residual_newton(terms: diffrax.AbstractTerm, time: Any, network: DeepLinearNetwork, cost: Cost) -> Any:
    """Newton's iteration of an implicit step in the space of residuals, for `saddleflow.solvers.NDF(newton=...)`.

    With the Jacobian J of the residuals (weighted by the root of C'') and the coefficients r of the gradient,
    `f = -J^T r`, the update towards `dy = b + c f(y + dy)` by the Gauss-Newton part of the Hessian is
    `b - J^T (1/c + J J^T)^-1 (J b + r)`: the stiff part of f, which cancels, is never formed. So long as a step's
    move is short the iteration converges whatever the stiffness.

    Derived; the push-through identity `(I + c J^T J)^-1 J^T = J^T (I + c J J^T)^-1` is textbook.
    """
    del terms, time
    left, right = geometry.partial_products(network)
    matrix = left[0] @ network.layers[0]
    curvature, gradient = cost.curvature(matrix), cost.gradient(matrix)
    assert curvature is not None, "asked for only where the cost has a curvature"
    gram, residuals = _gram(curvature, left, right), curvature.coefficients(gradient)
    excess = geometry.pull_back(left, right, gradient - curvature.adjoint(residuals))

    def solve(c: Float[Array, ""], b: DeepLinearNetwork) -> DeepLinearNetwork:
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


def _gram(curvature: Curvature, left, right) -> Float[Array, "m m"]:
    return curvature.gram(tuple(m @ m.T for m in left), tuple(n.T @ n for n in right))


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

    network: DeepLinearNetwork
    left: tuple[Float[Array, "n_out _"], ...]
    right: tuple[Float[Array, "_ n_in"], ...]
    frames: tuple[Any, ...]  # (Q, R, O, S) of each hidden layer
    gradient: Float[Array, "n_out n_in"]
    hessian: Callable[[Array], Array]  # of the cost, on matrices
    curvature: Curvature | None

    @classmethod
    def at(cls, network: DeepLinearNetwork, cost: Cost) -> "CompressedJacobian":
        """Linearise at a network."""
        left, right = geometry.partial_products(network)
        matrix = left[0] @ network.layers[0]
        gradient, hessian = jax.linearize(cost.gradient, matrix)
        frames = tuple((*qr(m.T), *qr(n)) for m, n in zip(left[1:-1], right[1:-1], strict=True))
        return cls(network, left, right, frames, gradient, hessian, affordable_curvature(cost, matrix))

    def _split(self, z: Vector):
        """First layer, [(X, Y) of the hidden ones], last layer."""
        first, *hidden, last = self.network.layers
        at = first.size
        pairs = []
        for layer, (q, _, o, _) in zip(hidden, self.frames, strict=True):
            across, along = q.shape[1] * layer.shape[1], layer.shape[0] * o.shape[1]
            x = z[at : at + across].reshape(q.shape[1], layer.shape[1])
            y = z[at + across : at + across + along].reshape(layer.shape[0], o.shape[1])
            pairs.append((x, y))
            at += across + along
        return z[: first.size].reshape(first.shape), pairs, z[at:].reshape(last.shape)

    @staticmethod
    def _join(first, pairs, last) -> Vector:
        return jnp.concatenate([first.ravel(), *(part.ravel() for pair in pairs for part in pair), last.ravel()])

    def restrict(self, v: DeepLinearNetwork) -> Vector:
        """Coordinates of the orthogonal projection."""
        first, *hidden, last = v.layers
        pairs = []
        for layer, (q, _, o, _) in zip(hidden, self.frames, strict=True):
            across = layer @ o
            pairs.append((q.T @ layer, across - q @ (q.T @ across)))
        return self._join(first, pairs, last)

    def extend(self, z: Vector) -> DeepLinearNetwork:
        """The network with these coordinates."""
        first, pairs, last = self._split(z)
        hidden = (q @ x + y @ o.T for (x, y), (q, _, o, _) in zip(pairs, self.frames, strict=True))
        return DeepLinearNetwork([first, *hidden, last])

    def preconditioner(self, shift: Float[Array, ""]) -> Callable[[Vector], Vector] | None:
        """Inverse of `I + shift` times the Gauss-Newton part, in coordinates."""
        curvature = self.curvature
        if curvature is None:
            return None
        inverse = shifted_inverse(_gram(curvature, self.left, self.right), shift)

        def apply(z: Vector) -> Vector:
            first, pairs, last = self._split(z)
            hidden = list(zip(pairs, self.frames, self.right[1:-1], strict=True))
            moved = self.left[0] @ first + last @ self.right[-1]
            for (x, _), (_, r, _, _), n in hidden:
                moved = moved + r.T @ (x @ n)
            u = curvature.adjoint(inverse @ curvature.root(moved))
            pairs = [(x - (r @ u) @ n.T, y) for (x, y), (_, r, _, _), n in hidden]
            return self._join(first - self.left[0].T @ u, pairs, last - u @ self.right[-1].T)

        return apply

    def weights(self, inverse_squares: DeepLinearNetwork) -> Vector:
        """The layers' own in the outer layers; in a hidden one all coordinates get the mean of its entries."""
        first, *hidden, last = inverse_squares.layers
        pairs = [
            (jnp.full((q.shape[1], layer.shape[1]), mean), jnp.full((layer.shape[0], o.shape[1]), mean))
            for layer, (q, _, o, _), mean in zip(hidden, self.frames, map(jnp.mean, hidden), strict=True)
        ]
        return self._join(first, pairs, last)

    def product(self, z: Vector) -> Vector:
        """The Jacobian's product: tangents of the partial products, then of the field, all in coordinates."""
        first, pairs, last = self._split(z)
        layers = self.network.layers
        right_dot = [first]  # of N_2, ..., N_L
        for layer, n, (x, y), (q, _, _, s) in zip(layers[1:-1], self.right[1:-1], pairs, self.frames, strict=True):
            right_dot.append(q @ (x @ n) + y @ s + layer @ right_dot[-1])
        left_dot = [last]  # of M_{L-1}, ..., M_1
        hidden = list(zip(layers[1:-1], self.left[1:-1], pairs, self.frames, strict=True))
        for layer, m, (x, y), (_, r, o, _) in reversed(hidden):
            left_dot.append(r.T @ x + (m @ y) @ o.T + left_dot[-1] @ layer)
        left_dot.reverse()
        g = -self.gradient
        g_dot = -self.hessian(last @ self.right[-1] + layers[-1] @ right_dot[-1])
        out = []
        inner = zip(left_dot[1:], self.right[1:-1], right_dot[:-1], self.frames, strict=True)
        for m_dot, n, n_dot, (q, r, _, s) in inner:
            x = ((m_dot @ q).T @ g + r @ g_dot) @ n.T + (r @ g) @ n_dot.T
            y = m_dot.T @ (g @ s.T)
            out.append((x, y - q @ (q.T @ y)))
        return self._join(
            left_dot[0].T @ g + self.left[0].T @ g_dot,
            out,
            g_dot @ self.right[-1].T + g @ right_dot[-1].T,
        )
