"""Costs of linear measurements of A: inner products with given matrices, entries of `A X`."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from saddleflow._backend import arguments as readers
from saddleflow._backend.arguments import integer, number, takes
from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import as_float64, is_concrete, require, require_finite
from saddleflow._backend.devices import check_room
from saddleflow.problem.costs import MOST_RESIDUALS, Cost, MatrixCompletion
from saddleflow.problem.curvature import Curvature, InputCurvature, Matrix, MeasurementCurvature

# Measurements of more entries than this are not condensed: the factorisation would take minutes.
MAX_ENTRIES = 1000

# Directions that the measurements see by less than this share of the best seen one count as unseen.
UNSEEN = 1e-7


class LinearMeasurements(Cost):
    """Mean squared error of linear measurements: `C(A) = (1/N) sum_i (<M_i, A> - b_i)^2`.

    Matrix sensing, masked regression and any other linear equations on A. More measurements than A has entries are
    condensed once, by an orthogonal factorisation.

    >>> target = np.outer([1.0, 2.0, 3.0], [1.0, -1.0, 0.5])
    >>> cost = sf.LinearMeasurements.sensing(jax.random.key(0), target, num_measurements=8)
    >>> cost.shape, bool(cost(target) < 1e-20)
    ((3, 3), True)

    Args:
        matrices: the M_i, shape (N, n_out, n_in), float64 or a list.
        values: the b_i, shape (N,), float64 or a list.
        test_matrices: those of a test set, shape (M, n_out, n_in).
        test_values: its values.

    Raises:
        ValueError: shapes that do not fit, no measurement, NaN or infinity.
    """

    no_test: ClassVar[str] = "Pass `test_matrices` and `test_values`."

    train_set: "Measured"
    test_set: "Measured | None"
    inverse: Float[Array, "m m"] | None  # pseudo-inverse of the measurements' Gram matrix, where it is kept
    matrix_shape: tuple[int, int] = eqx.field(static=True)
    sees_all: bool = eqx.field(static=True)  # whether the measurements span all matrices

    def __init__(self, matrices: Any, values: Any, test_matrices: Any = None, test_values: Any = None):
        train, shape = _dense("matrices", matrices, "values", values)
        names = "test_matrices, test_values"
        require((test_matrices is None) == (test_values is None), names, "be given both or neither", "one of them")
        test = None
        if test_matrices is not None:
            test, its_shape = _dense("test_matrices", test_matrices, "test_values", test_values)
            require(its_shape == shape, "test_matrices", f"be of the shape {shape}, like the train set", its_shape)
        self._fill(train, test, shape)

    def _fill(self, train: "Measured", test: "Measured | None", shape: tuple[int, int]) -> None:
        """The fields, from the measurements."""
        entries = math.prod(shape)
        if is_concrete(train.aim) and train.curvature.num_residuals > entries and entries <= MAX_ENTRIES:
            train = train.condense(shape)
        self.train_set, self.test_set, self.matrix_shape = train, test, shape
        self.inverse, self.sees_all = None, False
        if is_concrete(train.aim) and train.curvature.num_residuals <= MOST_RESIDUALS:
            inverse, rank = gram_inverse(train.curvature, shape)
            self.sees_all = rank == entries
            self.inverse = on_device(inverse)

    @classmethod
    @takes(key=readers.key, num_measurements=integer(1), noise=number(least=0.0), num_test=integer(0))
    def sensing(
        cls,
        key: PRNGKeyArray,
        target: Any,
        *,
        num_measurements: int | np.integer,
        noise: float = 0.0,
        num_test: int | np.integer = 0,
    ) -> "LinearMeasurements":
        """Matrix sensing: `b_i = <M_i, A*> + noise * N(0, 1)`, the entries of M_i drawn from N(0, 1).

        So C(A) is `|A - A*|_F^2` in the mean over draws. Of other laws scale the cost: matrices with entries of
        variance v, as those divided by n have v = 1/n^2, make the cost `v * cost`.

        Args:
            key: `jax.random.key(seed)`.
            target: the matrix A*, shape (n_out, n_in), float64 or a list.
            num_measurements: N, at least 1.
            noise: standard deviation of the noise on each value, in the values' units; not negative.
            num_test: measurements of the test set, of the same law; 0 for none.

        Raises:
            ValueError: a count or a noise out of range, a target that is no matrix.
        """
        target = as_float64("target", target)
        require(target.ndim == 2, "target", "be a matrix", f"shape {target.shape}")
        require_finite("target", target)
        total = int(num_measurements) + int(num_test)
        check_room("num_measurements", num_measurements, 16 * total * target.size, "Take fewer measurements.")
        key_matrices, key_noise = jax.random.split(key)
        matrices = jax.random.normal(key_matrices, (total, *target.shape), float)
        values = jnp.einsum("mij,ij->m", matrices, jnp.asarray(target))
        values = values + noise * jax.random.normal(key_noise, (total,), float)
        train, test = slice(0, num_measurements), slice(num_measurements, total)
        return cls(matrices[train], values[train], *((matrices[test], values[test]) if num_test else ()))

    @staticmethod
    def masked(inputs: Any, targets: Any, observed: Any, held_out: Any = None) -> "MaskedRegression":
        """Masked regression: mean squared error over the observed entries of `A X - Y`.

        The matrices M_i, one a row of which is an input, are not formed.

        Args:
            inputs: X, shape (n_in, N), float64 or a list.
            targets: Y, shape (n_out, N), float64 or a list; finite wherever observed or held out.
            observed: booleans, shape (n_out, N), True where the entry trains.
            held_out: booleans, True where the entry tests; default: every entry that is not observed.

        Raises:
            ValueError: shapes that do not fit, no observed entry, NaN or infinity among the entries used.
        """
        return MaskedRegression(inputs, targets, observed, held_out)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, n_in) of the matrix."""
        return self.matrix_shape

    def _card_rows(self) -> list[tuple[str, str]]:
        """The measurements, and whether they tell A."""
        train, entries = self.train_set, math.prod(self.shape)
        count = f"{train.curvature.num_residuals}"
        kept = f"condensed to {count}" if train.condensed else count
        tells = "all of A" if self.sees_all else f"not all of the {entries} entries of A"
        return [
            ("matrix", "A of shape ({}, {})".format(*self.shape)),
            ("measurements", f"{kept}; they tell {tells}"),
            ("test set", "yes" if self.has_test else "none"),
        ]

    @property
    def has_test(self) -> bool:
        """Whether there are test measurements."""
        return self.test_set is not None

    def unbounded(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """What no measurement sees: the part orthogonal to all M_i; all of A for more than 4000 of them."""
        if self.sees_all:
            return jnp.zeros_like(matrix)
        if self.inverse is None:
            return jnp.asarray(matrix)
        measure = self.train_set.curvature
        return jnp.asarray(matrix) - measure.adjoint(self.inverse @ measure.root(matrix))

    def __call__(self, matrix: Matrix) -> Float[Array, ""]:
        """The train cost."""
        return self.train_set.mean_squared_error(matrix)

    def test(self, matrix: Matrix) -> Float[Array, ""]:
        """The same mean over the test measurements."""
        return super().test(matrix) if self.test_set is None else self.test_set.mean_squared_error(matrix)

    def gradient(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """`(2/N) sum_i (<M_i, A> - b_i) M_i`."""
        samples = self.train_set
        return samples.curvature.adjoint(samples.curvature.root(matrix) - samples.aim)

    def curvature(self, matrix: Matrix) -> Curvature | None:
        """`C''[V] = (2/N) sum_i <M_i, V> M_i`: the measurements themselves are its root."""
        return self.train_set.curvature


class MaskedRegression(LinearMeasurements):
    """Mean squared error over the observed entries of `A X - Y`: what `LinearMeasurements.masked` gives."""

    no_test: ClassVar[str] = "Observe fewer entries, or pass `held_out`."

    def __init__(self, inputs: Any, targets: Any, observed: Any, held_out: Any = None):
        targets = as_float64("targets", targets)
        completion = MatrixCompletion(targets, observed, held_out)
        inputs = as_float64("inputs", inputs)
        require(inputs.ndim == 2, "inputs", "be a matrix with samples as columns", f"shape {inputs.shape}")
        require_finite("inputs", inputs)
        n_out, count = completion.shape
        found = inputs.shape[1]
        require(found == count, "inputs", f"hold {count} samples (columns), as many as targets", found)
        test = None
        if completion.has_test:
            swapped = MatrixCompletion(completion.target, completion.held_out, completion.observed)
            test = Measured.of_entries(swapped, inputs)
        self._fill(Measured.of_entries(completion, inputs), test, (n_out, len(inputs)))


class Measured(eqx.Module):
    """Measurements `R A` of a matrix and their values: `C = |R A - aim|^2 / 2 + floor`."""

    curvature: Curvature  # its root is R: measurements times sqrt(2/N)
    aim: Float[Array, " m"]
    floor: Float[Array, ""]
    condensed: bool = eqx.field(static=True, default=False)  # whether from more measurements

    @classmethod
    def of_entries(cls, completion: MatrixCompletion, inputs: Any) -> "Measured":
        """The observed entries of `A X`."""
        entries = completion.curvature(completion.target)
        assert entries is not None
        aim = entries.root(completion.target)
        return cls(InputCurvature(entries, on_device(inputs)), aim, jnp.zeros(()))

    def mean_squared_error(self, matrix: Matrix) -> Float[Array, ""]:
        """C."""
        return 0.5 * jnp.sum((self.curvature.root(matrix) - self.aim) ** 2) + self.floor

    def condense(self, shape: tuple[int, int]) -> "Measured":
        """The same cost by as many measurements as there are entries: rows of the triangle of `R = Q T`."""
        rows = measured_rows(self.curvature, shape)
        q, triangle = np.linalg.qr(rows)
        aim = np.asarray(self.aim)
        short = q.T @ aim
        floor = 0.5 * np.sum((aim - q @ short) ** 2)
        curvature = MeasurementCurvature(on_device(triangle.reshape(-1, *shape)), jnp.ones(()))
        return Measured(curvature, on_device(short), jnp.asarray(floor), condensed=True)


def _dense(name: str, matrices: Any, values_name: str, values: Any) -> tuple[Measured, tuple[int, int]]:
    """Measurements by given matrices, and the shape of those."""
    matrices, values = as_float64(name, matrices), as_float64(values_name, values)
    require(matrices.ndim == 3, name, "have the shape (N, n_out, n_in)", f"shape {matrices.shape}")
    require(matrices.size > 0, name, "hold at least one matrix", f"shape {matrices.shape}")
    require_finite(name, matrices)
    require_finite(values_name, values)
    count, n_out, n_in = matrices.shape
    require(values.shape == (count,), values_name, f"be {count} numbers, one a matrix", f"shape {values.shape}")
    scale = math.sqrt(2 / count)
    curvature = MeasurementCurvature(on_device(matrices), jnp.asarray(scale))
    return Measured(curvature, on_device(scale * values), jnp.zeros(())), (n_out, n_in)


def measured_rows(curvature: Curvature, shape: tuple[int, int]) -> Float[np.ndarray, "m entries"]:
    """The root of a curvature as a matrix on the entries of A, row by row."""
    if isinstance(curvature, MeasurementCurvature):
        return np.asarray(curvature.scale) * np.asarray(curvature.matrices).reshape(curvature.num_residuals, -1)
    units = np.eye(math.prod(shape)).reshape(-1, *shape)
    return np.asarray(jax.lax.map(curvature.root, units)).T


def gram_inverse(curvature: Curvature, shape: tuple[int, int]) -> tuple[Float[np.ndarray, "m m"], int]:
    """The pseudo-inverse of `R R^T`, on the host, and its rank."""
    if isinstance(curvature, MeasurementCurvature):
        rows = measured_rows(curvature, shape)
        gram = rows @ rows.T
    else:
        gram = np.asarray(curvature.gram((jnp.eye(shape[0]),), (jnp.eye(shape[1]),)))
    values, vectors = np.linalg.eigh(gram)
    seen = values > UNSEEN**2 * values[-1]
    return (vectors[:, seen] / values[seen]) @ vectors[:, seen].T, int(seen.sum())
