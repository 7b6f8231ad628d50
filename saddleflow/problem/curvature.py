"""The Hessian of a cost as a square, `C''[V] = R^T R V`: what a solver needs to invert the stiff part of a flow.

A root R maps a matrix (n_out, n_in) to m numbers, one a residual of the cost. With the Jacobian D of the
end-to-end matrix, `R D D^T R^T` is the Gram matrix of the residuals' gradients: the neural tangent kernel of
the residuals, an m x m matrix with a closed form in the Gram matrices of the partial products.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Matrix = Float[Array | np.ndarray, "n_out n_in"]
# Layers whose terms of a sum are compiled one by one; of more, a loop.
UNROLLED = 8

# symmetric matrices, one for every layer: a tuple, or along a leading axis
Grams = tuple[Float[Array, "_ _"], ...] | Float[Array, "layers _ _"]


class Curvature(eqx.Module):
    """A root of a cost's Hessian at one matrix."""

    @property
    @abc.abstractmethod
    def num_residuals(self) -> int:
        """The number m of residuals."""

    @abc.abstractmethod
    def root(self, matrix: Matrix) -> Float[Array, " m"]:
        """`R V`."""

    @abc.abstractmethod
    def adjoint(self, values: Float[Array, " m"]) -> Float[Array, "n_out n_in"]:
        """`R^T u`."""

    @abc.abstractmethod
    def gram(self, left: Grams, right: Grams) -> Float[Array, "m m"]:
        """`R K R^T` for the operator `K(V) = sum_l P_l V Q_l` given by symmetric (P_l), (Q_l)."""

    def coefficients(self, matrix: Matrix) -> Float[Array, " m"]:
        """The u with `R^T u` nearest to a matrix; a gradient of the cost is met exactly where curvature lets it."""
        n_out, n_in = jnp.shape(matrix)
        values, vectors = jnp.linalg.eigh(self.gram((jnp.eye(n_out),), (jnp.eye(n_in),)))
        resolved = values > len(values) * jnp.finfo(values.dtype).eps * values[-1]
        scale = jnp.where(resolved, 1 / jnp.where(resolved, values, 1.0), 0.0)
        return vectors @ (scale * (vectors.T @ self.root(matrix)))


class EntryCurvature(Curvature):
    """Residuals are single entries: `C''[V] = weight * V` there, zero elsewhere."""

    rows: Int[Array, " m"]
    columns: Int[Array, " m"]
    weight: Float[Array, " m"]
    shape: tuple[int, int] = eqx.field(static=True)

    @property
    def num_residuals(self) -> int:
        """Number of entries."""
        return len(self.rows)

    def root(self, matrix: Matrix) -> Float[Array, " m"]:
        """The weighted entries."""
        return jnp.sqrt(self.weight) * matrix[self.rows, self.columns]

    def adjoint(self, values: Float[Array, " m"]) -> Float[Array, "n_out n_in"]:
        """Values put into their entries."""
        return jnp.zeros(self.shape).at[self.rows, self.columns].add(jnp.sqrt(self.weight) * values)

    def coefficients(self, matrix: Matrix) -> Float[Array, " m"]:
        """The entries over the roots of their weights."""
        weighted = self.weight > 0
        scale = jnp.where(weighted, 1 / jnp.sqrt(jnp.where(weighted, self.weight, 1.0)), 0.0)
        return scale * matrix[self.rows, self.columns]

    def gram(self, left: Grams, right: Grams) -> Float[Array, "m m"]:
        """Entrywise products of the sampled Gram matrices."""
        root = jnp.sqrt(self.weight)
        n_out, n_in = self.shape
        across = self.rows[:, None], self.rows
        along = self.columns[:, None], self.columns
        if (n_out * n_in) ** 2 <= 2 * len(self.rows) ** 2:
            # most entries: products of all pairs at once, each looked up once, in at most twice the result's memory
            places = (across[0] * n_out + across[1]) * n_in**2 + along[0] * n_in + along[1]
            sampled = _products(left, right).ravel()[places]
        else:
            sampled, _ = jax.lax.scan(
                lambda total, pair: (total + pair[0][across] * pair[1][along], None),
                jnp.zeros((len(self.rows),) * 2),
                (jnp.asarray(left), jnp.asarray(right)),
                unroll=UNROLLED,
            )
        return root[:, None] * root * sampled


class ColumnCurvature(Curvature):
    """Residuals are the entries of `A X`, X of shape (n_in, k): `C''[V] = V X X^T`."""

    inputs: Float[Array, "n_in k"]
    shape: tuple[int, int] = eqx.field(static=True)

    @property
    def num_residuals(self) -> int:
        """Outputs times columns of X."""
        return self.shape[0] * self.inputs.shape[1]

    def root(self, matrix: Matrix) -> Float[Array, " m"]:
        """The entries of `V X`, row by row."""
        return (jnp.asarray(matrix) @ self.inputs).ravel()

    def adjoint(self, values: Float[Array, " m"]) -> Float[Array, "n_out n_in"]:
        """`u X^T` with the values as a matrix (n_out, k)."""
        return values.reshape(self.shape[0], -1) @ self.inputs.T

    def coefficients(self, matrix: Matrix) -> Float[Array, " m"]:
        """Row by row, by the pseudo-inverse of X."""
        return (jnp.asarray(matrix) @ jnp.linalg.pinv(self.inputs).T).ravel()

    def gram(self, left: Grams, right: Grams) -> Float[Array, "m m"]:
        """Kronecker products of the Gram matrices."""
        return kronecker_sum(left, self.inputs.T @ jnp.asarray(right) @ self.inputs)


class DenseCurvature(Curvature):
    """A Hessian without known structure, as a matrix root of shape (n_out n_in, n_out n_in)."""

    matrix_root: Float[Array, "m m"]
    shape: tuple[int, int] = eqx.field(static=True)

    @classmethod
    def of(cls, hessian: Float[Array, "n_out n_in n_out n_in"]) -> "DenseCurvature":
        """Root of a dense Hessian by its spectrum; negative eigenvalues (rounding, for a convex C) count as zero."""
        n_out, n_in = hessian.shape[:2]
        values, vectors = jnp.linalg.eigh(hessian.reshape(n_out * n_in, -1))
        return cls(jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T, (n_out, n_in))

    @property
    def num_residuals(self) -> int:
        """Number of entries of the matrix."""
        return self.shape[0] * self.shape[1]

    def root(self, matrix: Matrix) -> Float[Array, " m"]:
        """`R vec(V)`."""
        return self.matrix_root @ jnp.asarray(matrix).ravel()

    def adjoint(self, values: Float[Array, " m"]) -> Float[Array, "n_out n_in"]:
        """`R^T u` as a matrix."""
        return (self.matrix_root.T @ values).reshape(self.shape)

    def coefficients(self, matrix: Matrix) -> Float[Array, " m"]:
        """By the rows of R, which are orthogonal."""
        squares = jnp.sum(self.matrix_root**2, axis=1)
        resolved = squares > len(squares) * jnp.finfo(squares.dtype).eps * jnp.max(squares)
        return jnp.where(resolved, self.root(matrix) / jnp.where(resolved, squares, 1.0), 0.0)

    def gram(self, left: Grams, right: Grams) -> Float[Array, "m m"]:
        """`R K R^T` with K as a sum of Kronecker products."""
        return self.matrix_root @ kronecker_sum(left, right) @ self.matrix_root.T


class SoftmaxCurvature(Curvature):
    """The curvature of a mean cross-entropy in the logits: `diag(p) - p p^T` over N in each column of N samples.

    A root is `u = sqrt(p / N) (v - p.v)`, column by column.
    """

    probabilities: Float[Array, "n_out n_in"]

    @property
    def num_residuals(self) -> int:
        """Number of logits."""
        return self.probabilities.size

    def root(self, matrix: Matrix) -> Float[Array, " m"]:
        """Deviations from the mean logit of a sample, weighted."""
        p = self.probabilities
        mean = jnp.sum(p * matrix, axis=0)
        return (jnp.sqrt(p / p.shape[1]) * (matrix - mean)).ravel()

    def adjoint(self, values: Float[Array, " m"]) -> Float[Array, "n_out n_in"]:
        """The transposed root."""
        p = self.probabilities
        weighted = jnp.sqrt(p / p.shape[1]) * values.reshape(p.shape)
        return weighted - p * jnp.sum(weighted, axis=0)

    def coefficients(self, matrix: Matrix) -> Float[Array, " m"]:
        """Deviations from the mean over the roots of the weights; gradients of the cost sum to zero in a sample."""
        p = self.probabilities
        weighted = p > 0
        scale = jnp.where(weighted, jnp.sqrt(p.shape[1] / jnp.where(weighted, p, 1.0)), 0.0)
        return (scale * (matrix - jnp.mean(jnp.asarray(matrix), axis=0))).ravel()

    def gram(self, left: Grams, right: Grams) -> Float[Array, "m m"]:
        """`R K R^T` with K as a sum of Kronecker products."""
        rooted = jax.vmap(lambda row: self.root(row.reshape(self.probabilities.shape)))
        return rooted(rooted(kronecker_sum(left, right)).T)


class InputCurvature(Curvature):
    """The curvature of `A -> c(A X)` from that of c in its argument, for any cost c and inputs X."""

    curvature: Curvature
    inputs: Float[Array, "n_in k"]

    @property
    def num_residuals(self) -> int:
        """Those of c."""
        return self.curvature.num_residuals

    def root(self, matrix: Matrix) -> Float[Array, " m"]:
        """`R (V X)`."""
        return self.curvature.root(jnp.asarray(matrix) @ self.inputs)

    def adjoint(self, values: Float[Array, " m"]) -> Float[Array, "n_out n_in"]:
        """`(R^T u) X^T`."""
        return self.curvature.adjoint(values) @ self.inputs.T

    def coefficients(self, matrix: Matrix) -> Float[Array, " m"]:
        """Those of c where X has independent columns; else the nearest, which takes the Gram matrix."""
        if self.inputs.shape[1] > self.inputs.shape[0]:
            return super().coefficients(matrix)
        return self.curvature.coefficients(jnp.asarray(matrix) @ jnp.linalg.pinv(self.inputs).T)

    def gram(self, left: Grams, right: Grams) -> Float[Array, "m m"]:
        """That of c, for the Gram matrices `X^T Q X`."""
        return self.curvature.gram(left, self.inputs.T @ jnp.asarray(right) @ self.inputs)


class MeasurementCurvature(Curvature):
    """Residuals are inner products with given matrices: `(R V)_i = scale <M_i, V>`."""

    matrices: Float[Array, "m n_out n_in"]
    scale: Float[Array, ""]

    @property
    def num_residuals(self) -> int:
        """Number of matrices."""
        return len(self.matrices)

    def root(self, matrix: Matrix) -> Float[Array, " m"]:
        """The inner products."""
        return self.scale * (self._rows() @ jnp.asarray(matrix).ravel())

    def adjoint(self, values: Float[Array, " m"]) -> Float[Array, "n_out n_in"]:
        """The sum of the matrices with the values as weights."""
        return self.scale * (values @ self._rows()).reshape(self.matrices.shape[1:])

    def gram(self, left: Grams, right: Grams) -> Float[Array, "m m"]:
        """`scale^2 <M_i, sum_l P_l M_j Q_l>`: the sums first, then one product of all pairs."""

        def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            half = jnp.einsum("ab,mbc->mac", pair[0], self.matrices)
            return total + jnp.einsum("mac,cd->mad", half, pair[1]), None

        moved, _ = jax.lax.scan(add, jnp.zeros_like(self.matrices), (jnp.asarray(left), jnp.asarray(right)))
        return self.scale**2 * self._rows() @ moved.reshape(len(moved), -1).T

    def _rows(self) -> Float[Array, "m entries"]:
        return self.matrices.reshape(len(self.matrices), -1)


class ScaledCurvature(Curvature):
    """The curvature of `c C` from that of C, for a number c > 0."""

    curvature: Curvature
    factor: Float[Array, ""]

    @property
    def num_residuals(self) -> int:
        """Those of C."""
        return self.curvature.num_residuals

    def root(self, matrix: Matrix) -> Float[Array, " m"]:
        """`sqrt(c) R V`."""
        return jnp.sqrt(self.factor) * self.curvature.root(matrix)

    def adjoint(self, values: Float[Array, " m"]) -> Float[Array, "n_out n_in"]:
        """`sqrt(c) R^T u`."""
        return jnp.sqrt(self.factor) * self.curvature.adjoint(values)

    def coefficients(self, matrix: Matrix) -> Float[Array, " m"]:
        """Those of C, over `sqrt(c)`."""
        return self.curvature.coefficients(matrix) / jnp.sqrt(self.factor)

    def gram(self, left: Grams, right: Grams) -> Float[Array, "m m"]:
        """That of C, times c."""
        return self.factor * self.curvature.gram(left, right)


def _products(left: Grams, right: Grams) -> Float[Array, "_ _"]:
    """`sum_l P_l[i, j] Q_l[k, m]` at row (i, j), column (k, m)."""
    p, q = (jnp.asarray(grams).reshape(len(grams), -1) for grams in (left, right))
    return p.T @ q


def kronecker_sum(left: Grams, right: Grams) -> Float[Array, "_ _"]:
    """`sum_l P_l (x) Q_l`, the sum of Kronecker products."""
    n, k = len(left[0]), len(right[0])
    return _products(left, right).reshape(n, n, k, k).transpose(0, 2, 1, 3).reshape(n * k, n * k)
