"""Convex costs on end-to-end matrices A of shape (n_out, n_in)."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from saddleflow._backend import arguments as readers
from saddleflow._backend.arguments import boolean, integer, number, refuse, scalar, takes
from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import (
    as_booleans,
    as_float64,
    is_concrete,
    require,
    require_finite,
)
from saddleflow._backend.devices import check_room
from saddleflow._backend.random import normal_matrices, permutation
from saddleflow.plotting.cards import card, never_raises
from saddleflow.problem.curvature import (
    ColumnCurvature,
    Curvature,
    DenseCurvature,
    EntryCurvature,
    Matrix,
    ScaledCurvature,
)

# The Gram matrix of so many residuals is worth a factorisation at every step; of up to so many where steps are stiff
# enough to take hundreds of products without it.
MAX_RESIDUALS, MOST_RESIDUALS = 600, 4000

# Inputs below this share of the largest, along a direction, are rounding.
ROUNDING = 1e-13

# Cards decompose matrices up to this size, in less than a tenth of a second; their ranks count the singular values
# above this share of the largest.
MOST_DECOMPOSED, RANK_SHARE = 300, 1e-10


class Cost(eqx.Module):
    """A convex, differentiable cost C on end-to-end matrices.

    A cost of your own subclasses this with `shape` and `__call__`, and `test` where there is a test set. The gradient
    comes from automatic differentiation; override `gradient` where a closed form is cheaper.

    >>> class HuberCompletion(sf.Cost):
    ...     target: jax.Array  # (n_out, n_in)
    ...     observed: jax.Array  # booleans, (n_out, n_in)
    ...
    ...     @property
    ...     def shape(self):
    ...         return self.target.shape
    ...
    ...     def __call__(self, matrix):
    ...         return jnp.sum(optax.huber_loss(matrix, self.target) * self.observed) / self.observed.sum()
    ...
    ...     def test(self, matrix):
    ...         held_out = ~self.observed
    ...         return jnp.sum(optax.huber_loss(matrix, self.target) * held_out) / held_out.sum()
    >>> cost = HuberCompletion(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[True, True], [True, False]]))
    >>> start = sf.gaussian(jax.random.key(0), depth=2, width=5, shape=cost.shape, gamma=1.5)
    >>> sf.gradient_flow(cost, start).stop_reason
    'converged'

    `2 * cost` and `cost * 0.5` are costs as well, of other units (see `Scaled`).
    """

    no_test: ClassVar[str] = ""  # what to do about a missing test set
    __array_ufunc__: ClassVar[None] = None  # numpy's numbers leave products to `__rmul__`

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, n_in) of the matrices that the cost takes."""

    @abstractmethod
    def __call__(self, matrix: Matrix) -> Float[Array, ""]:
        """The train cost C(A)."""

    def test(self, matrix: Matrix) -> Float[Array, ""]:
        """The test cost; the default, of a cost without a test set, raises ValueError."""
        del matrix
        raise ValueError(f"`cost` has no test set. {self.no_test}".rstrip())

    @property
    def has_test(self) -> bool:
        """Whether there is a test set; the default: whether the class has a `test` of its own."""
        return type(self).test is not Cost.test

    @never_raises
    def _repr_html_(self) -> str:
        """The card, for notebooks."""
        n_out, n_in = self.shape
        return card(f"{type(self).__name__} {n_out}x{n_in}", self._card_rows())

    def _card_rows(self) -> list[tuple[str, str]]:
        """What the card says, line by line."""
        rows = [("matrix", "A of shape ({}, {})".format(*self.shape))]
        if self.num_samples is not None:
            rows.append(("samples", str(self.num_samples)))
        return [*rows, ("test set", "yes" if self.has_test else "none")]

    def __mul__(self, factor: Any) -> "Cost":
        """The cost in other units, `factor * C`."""
        return Scaled(self, factor)

    __rmul__ = __mul__

    def unbounded(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """The part of A that can grow without bound while C(A) stays bounded; growth there is a sign of divergence.

        The default, all of A, is always right; less spares slow convergence the suspicion.
        """
        return jnp.asarray(matrix)

    def lacks_minimum(self, matrix: Matrix) -> Bool[Array, ""]:
        """Whether A proves that C has no minimum, only an infimum at infinity: no run is called converged there.

        The default, no, is always right: whether a flow diverges is then told by its growth alone.
        """
        del matrix
        return jnp.asarray(False)

    @property
    def input_basis(self) -> Float[Array | np.ndarray, "n_in rank"] | None:
        """Q, orthonormal columns, where all gradients are `grad C(A) Q Q^T`: the input directions that C sees.

        None, the default, is always right: all of them. Fewer make smaller networks of wide ones (`reduce_width`).
        """
        return None

    def restricted(self, basis: Float[np.ndarray, "n_in k"]) -> "Cost | None":
        """The cost `B -> C(B K^T)` of matrices of k columns, for K with orthonormal columns; test cost included.

        None, the default: there is none that costs less than C itself.
        """
        del basis
        return None

    @property
    def num_samples(self) -> int | None:
        """How many samples the cost is the mean over, for mini-batches; None, the default: no samples are kept."""
        return None

    def batch(self, indices: Int[Array, " b"]) -> "Cost":
        """The cost of some samples: the mean over those of these numbers, repeated ones counted as often.

        Its gradient is what a step of `sf.gradient_descent` takes. A pure function of arrays, whose mean over all
        single samples is C; override it together with `num_samples`.

        Raises:
            ValueError: the cost has no samples at hand.
        """
        del indices
        raise ValueError(f"`cost` must have samples at hand, but got {type(self).__name__}: it has no `batch`.")

    def gradient(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """The gradient of C at A, same shape as A."""
        return jax.grad(self.__call__)(matrix)

    def curvature(self, matrix: Matrix) -> Curvature | None:
        """A root of the Hessian of C at A, for the preconditioner of the stiff solver; None if there is none.

        Here from the dense Hessian, by automatic differentiation, for up to 600 entries; override where it has
        structure.
        """
        if self.shape[0] * self.shape[1] > MAX_RESIDUALS:
            return None
        return DenseCurvature.of(jax.hessian(self.__call__)(matrix))


def affordable_curvature(cost: Cost, matrix: Matrix, most: int = MAX_RESIDUALS) -> Curvature | None:
    """The curvature of a cost, or None where it has none, or more residuals than `most`."""
    curvature = cost.curvature(matrix)
    return None if curvature is None or curvature.num_residuals > most else curvature


class Scaled(Cost):
    """`c C` for a number c > 0: what `c * cost` gives.

    The flow of `c C` is that of C in other units of time: at time t it is where that of C is at `c t`. So it follows
    papers with other conventions, such as half the sum of squares (docs/costs.md).

    >>> cost = sf.MeanSquaredError([[1.0, 2.0]], [[2.0, 4.0]])
    >>> float(cost(np.ones((1, 1)))), float((0.5 * cost)(np.ones((1, 1))))
    (2.5, 1.25)

    Args:
        cost: the cost C.
        factor: c, finite and positive.

    Raises:
        ValueError: a factor that is no such number.
    """

    cost: Cost
    factor: Float[Array, ""]

    def __init__(self, cost: Cost, factor: Any):
        name = "c in c * cost"
        factor = number(example="0.5")(name, factor)
        if is_concrete(factor):
            remedy = "A negative multiple is not convex, and the flow of no cost stands still."
            require(math.isfinite(factor) and factor > 0, name, "be finite and positive", float(factor), remedy)
        if isinstance(cost, Scaled):
            cost, factor = cost.cost, factor * cost.factor
        self.cost, self.factor = cost, jnp.asarray(factor, float)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrices, the cost's own."""
        return self.cost.shape

    @property
    def has_test(self) -> bool:
        """Whether the cost has a test set."""
        return self.cost.has_test

    def __call__(self, matrix: Matrix) -> Float[Array, ""]:
        """The train cost, times c."""
        return self.factor * self.cost(matrix)

    def test(self, matrix: Matrix) -> Float[Array, ""]:
        """The test cost, times c."""
        return self.factor * self.cost.test(matrix)

    def unbounded(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """As of C."""
        return self.cost.unbounded(matrix)

    def lacks_minimum(self, matrix: Matrix) -> Bool[Array, ""]:
        """As of C."""
        return self.cost.lacks_minimum(matrix)

    def _card_rows(self) -> list[tuple[str, str]]:
        """Those of C, and the factor."""
        return [("factor", f"{float(self.factor):.6g}, times {type(self.cost).__name__}"), *self.cost._card_rows()]

    @property
    def num_samples(self) -> int | None:
        """As of C."""
        return self.cost.num_samples

    def batch(self, indices: Int[Array, " b"]) -> "Scaled":
        """That of C, times c."""
        return Scaled(self.cost.batch(indices), self.factor)

    @property
    def input_basis(self) -> Float[Array | np.ndarray, "n_in rank"] | None:
        """As of C."""
        return self.cost.input_basis

    def restricted(self, basis: Float[np.ndarray, "n_in k"]) -> "Cost | None":
        """The restricted cost times c, where there is one."""
        inner = self.cost.restricted(basis)
        return None if inner is None else Scaled(inner, self.factor)

    def gradient(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """The gradient, times c."""
        return self.factor * self.cost.gradient(matrix)

    def curvature(self, matrix: Matrix) -> Curvature | None:
        """The curvature times c, where there is one."""
        inner = self.cost.curvature(matrix)
        return None if inner is None else ScaledCurvature(inner, self.factor)


class MatrixCompletion(Cost):
    """Mean squared error over the observed entries: `C(A) = (1/N) sum_observed (A - A*)^2`.

    `test` is the same mean over the held-out entries.

    >>> observed = np.array([[True, True], [True, False]])
    >>> cost = sf.MatrixCompletion([[1.0, 2.0], [3.0, 0.0]], observed, held_out=~observed)
    >>> float(cost(np.array([[1.0, 2.0], [0.0, 7.0]])))  # one of three observed entries is off by 3
    3.0
    >>> cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(10, 10), rank=3, observed=0.8)
    >>> cost.num_observed, int(cost.held_out.sum())
    (80, 20)

    Args:
        target: the matrix A*, shape (n_out, n_in), float64 or a list; finite wherever observed or held out.
        observed: booleans of that shape, True where the entry trains.
        held_out: booleans, True where the entry tests; default: every entry that is not observed.

    Raises:
        ValueError: shapes that differ, no observed entry, NaN or infinity among the entries used.
    """

    target: Float[Array, "n_out n_in"]
    observed: Bool[Array, "n_out n_in"]
    held_out: Bool[Array, "n_out n_in"]
    num_observed: int = eqx.field(static=True)
    _has_test: bool = eqx.field(static=True)

    def __init__(self, target: Any, observed: Any, held_out: Any = None):
        target = as_float64("target", target)
        require(target.ndim == 2, "target", "be a matrix", f"shape {target.shape}")
        require(0 not in target.shape, "target", "have rows and columns", f"shape {target.shape}")
        observed = _mask("observed", observed, target.shape)
        concrete = is_concrete(observed) and is_concrete(held_out) and is_concrete(target)
        # numpy compiles nothing for a new shape
        xp: Any = np if concrete else jnp
        held_out = ~xp.asarray(observed) if held_out is None else _mask("held_out", held_out, target.shape)
        used = xp.asarray(observed) | xp.asarray(held_out)
        self.target = on_device(xp.where(used, xp.asarray(target), 0.0))
        self.observed, self.held_out = on_device(observed), on_device(held_out)
        # under a vmap over tasks the masks cannot be looked at: what depends on them is bounded instead
        self.num_observed, self._has_test = observed.size, True
        if is_concrete(observed) and is_concrete(held_out):
            train, test = np.asarray(observed), np.asarray(held_out)
            self.num_observed = int(train.sum())
            require(self.num_observed > 0, "observed", "mark at least one entry", "no True at all")
            shared = int((train & test).sum())
            require(shared == 0, "held_out", "share no entry with observed", f"{shared} shared entries")
            self._has_test = bool(test.any())
        require_finite(
            "target",
            self.target,
            "Mark missing entries by observed=False and held_out=False, or load with `read_matrix`.",
        )

    @classmethod
    @takes(key=readers.key, shape=readers.shape, rank=integer(1), observed=number(example="0.8"))
    def random(
        cls,
        key: PRNGKeyArray,
        *,
        shape: Sequence[int | np.integer] = (10, 10),
        rank: int | np.integer = 3,
        observed: float = 0.8,
    ) -> "MatrixCompletion":
        """A random task: `A* = randn(n_out, rank) @ randn(rank, n_in)`, a random share of it observed.

        Args:
            key: `jax.random.key(seed)`.
            shape: (n_out, n_in).
            rank: rank of the target, 1 <= rank <= min(shape).
            observed: share of the entries that train, in (0, 1]; exactly round(share * n_out * n_in) entries.

        Raises:
            ValueError: rank or share out of range, or a share that observes no entry.
        """
        shape, rank = (int(shape[0]), int(shape[1])), int(rank)
        require(rank <= min(shape), "rank", f"be at most min(shape) = {min(shape)}", rank)
        require(0 < observed <= 1, "observed", "be a share in (0, 1]", observed)
        size = shape[0] * shape[1]
        check_room("shape", shape, 32 * size, "A cost holds its target and two masks.")
        count = round(observed * size)
        require(count >= 1, "observed", "leave at least one observed entry", observed)
        left, right = normal_matrices(key, [(shape[0], rank), (rank, shape[1])])
        order = permutation(key, 2, size)
        order = np.asarray(order) if is_concrete(order) else order
        return cls(jnp.asarray(left) @ jnp.asarray(right), (order < count).reshape(shape))

    def centered(self) -> "tuple[MatrixCompletion, float]":
        """The same task less the mean of the observed entries, and that mean.

        A matrix of ratings or of pixels is near its mean, which a flow from a small start learns first, as a
        direction of its own; without it the flow starts with what is left to tell.

        >>> ratings = np.array([[4.0, 5.0], [3.0, np.nan]])
        >>> cost = sf.MatrixCompletion(np.nan_to_num(ratings), ~np.isnan(ratings))
        >>> centered, mean = cost.centered()
        >>> mean, np.asarray(centered.target * centered.observed).tolist()
        (4.0, [[0.0, 1.0], [-1.0, 0.0]])
        """
        target, observed = np.asarray(self.target), np.asarray(self.observed)
        mean = float(target[observed].mean())
        return MatrixCompletion(target - mean, self.observed, self.held_out), mean

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, n_in) of the matrix."""
        n_out, n_in = self.target.shape
        return n_out, n_in

    @property
    def has_test(self) -> bool:
        """Whether any entry is held out."""
        return self._has_test

    def _card_rows(self) -> list[tuple[str, str]]:
        """The entries that train and test, the rank of the target, and the minimum."""
        target, test = np.asarray(self.target), int(np.asarray(self.held_out).sum())
        known = self.num_observed + test == target.size
        return [
            ("observed", f"{self.num_observed} of {target.size} entries"),
            ("held out", f"{test} entries, the test set" if test else "none"),
            ("target", rank_line(target) if known else "not known in full"),
            ("minimum", "0, where A meets the observed entries"),
        ]

    @property
    def num_samples(self) -> int:
        """The observed entries, row by row."""
        return self.num_observed

    def batch(self, indices: Int[Array, " b"]) -> "_Entries":
        """The mean squared error over some of the observed entries."""
        # in a loop of steps XLA finds the places once
        places = jnp.flatnonzero(self.observed, size=self.num_observed)[indices]
        return _Entries(places, self.target.ravel()[places], self.shape)

    def unbounded(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """The entries that are not observed."""
        return jnp.where(self.observed, 0.0, matrix)

    def __call__(self, matrix: Matrix) -> Float[Array, ""]:
        """The train cost: mean squared error over the observed entries."""
        return _masked_mean(self.observed, (jnp.asarray(matrix) - self.target) ** 2)

    def test(self, matrix: Matrix) -> Float[Array, ""]:
        """The test cost: mean squared error over the held-out entries."""
        require(
            self.has_test,
            "cost",
            "hold out entries to have a test cost",
            "a matrix without held-out entries",
            "Observe fewer entries, or pass `held_out`.",
        )
        return _masked_mean(self.held_out, (jnp.asarray(matrix) - self.target) ** 2)

    def gradient(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """`(2/N) (A - A*)` on the observed entries, zero elsewhere."""
        return 2 * jnp.where(self.observed, matrix - self.target, 0.0) / jnp.sum(self.observed)

    def curvature(self, matrix: Matrix) -> Curvature | None:
        """`C''[V] = (2/N) V` on the observed entries."""
        count = jnp.sum(self.observed)
        rows, columns = jnp.nonzero(self.observed, size=self.num_observed, fill_value=0)
        # entries that only fill up to the bound (traced masks) are given no weight
        weight = jnp.where(jnp.arange(self.num_observed) < count, 2.0 / count, 0.0)
        return EntryCurvature(rows, columns, weight, self.shape)


class _Entries(Cost):
    """Mean squared error over a list of entries."""

    places: Int[Array, " b"]  # in the matrix, row by row
    values: Float[Array, " b"]
    _shape: tuple[int, int] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def __call__(self, matrix: Matrix) -> Float[Array, ""]:
        return jnp.mean((jnp.ravel(matrix)[self.places] - self.values) ** 2)

    def gradient(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        flat = jnp.ravel(matrix)
        errors = flat[self.places] - self.values
        return jnp.zeros_like(flat).at[self.places].add(2 / len(self.values) * errors).reshape(self.shape)


class MeanSquaredError(Cost):
    """Mean squared error of the linear map: `C(A) = (1/N) |A X - Y|_F^2`.

    The N samples are condensed once, by an orthogonal factorisation, into at most n_in columns, so a
    gradient costs the same for ten samples and a million.

    >>> inputs, outputs = [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], [[2.0, 3.0, 5.0]]  # three samples
    >>> cost = sf.MeanSquaredError(inputs, outputs)
    >>> cost.shape, round(float(cost(np.array([[2.0, 3.0]]))), 9)
    ((1, 2), 0.0)

    Args:
        inputs: X, shape (n_in, N), float64 or a list.
        outputs: Y, shape (n_out, N), float64 or a list.
        test_inputs: inputs of the test set, shape (n_in, M).
        test_outputs: outputs of the test set, shape (n_out, M).
        keep_samples: keep the train samples, too, for the mini-batches of `sf.gradient_descent`. A flow does not
            need them, and without them costs of any number of samples share compiled programs.

    Raises:
        ValueError: shapes that do not fit, no sample, NaN or infinity.
    """

    no_test: ClassVar[str] = "Pass `test_inputs` and `test_outputs`."

    train_set: "_Samples"
    test_set: "_Samples | None"
    samples: tuple[Float[Array, "n_in N"], Float[Array, "n_out N"]] | None

    @takes(keep_samples=boolean)
    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        test_inputs: Any = None,
        test_outputs: Any = None,
        *,
        keep_samples: bool = False,
    ):
        inputs, outputs = as_float64("inputs", inputs), as_float64("outputs", outputs)
        self.samples = (on_device(inputs), on_device(outputs)) if keep_samples else None
        self.train_set = _Samples("inputs", inputs, "outputs", outputs)
        require(
            (test_inputs is None) == (test_outputs is None),
            "test_inputs, test_outputs",
            "be given both or neither",
            "one of them",
        )
        self.test_set = None
        if test_inputs is not None:
            self.test_set = _Samples("test_inputs", test_inputs, "test_outputs", test_outputs)
            n_in, n_out = len(self.train_set.root), len(self.train_set.aim)
            require(
                (len(self.test_set.root), len(self.test_set.aim)) == (n_in, n_out),
                "test_inputs, test_outputs",
                f"have {n_in} and {n_out} rows, like the train set",
                (np.shape(test_inputs), np.shape(test_outputs)),
            )

    @classmethod
    def teacher(cls, matrix: Any) -> "MeanSquaredError":
        """Whitened inputs: `C(A) = |A - A*|_F^2` for a teacher matrix A*, shape (n_out, n_in)."""
        matrix = _matrix("matrix", matrix)
        whitened = jnp.sqrt(matrix.shape[1]) * jnp.eye(matrix.shape[1])
        return cls(whitened, matrix @ whitened)

    @classmethod
    @takes(
        key=readers.key,
        num_samples=integer(1),
        num_test_samples=integer(0),
        noise=number(least=0.0),
        keep_samples=boolean,
    )
    def random(
        cls,
        key: PRNGKeyArray,
        *,
        teacher: Any,
        num_samples: int | np.integer = 100,
        num_test_samples: int | np.integer = 0,
        noise: float = 0.0,
        keep_samples: bool = False,
    ) -> "MeanSquaredError":
        """Gaussian inputs `x ~ N(0, I)` with outputs `A* x + noise * N(0, I)`.

        Args:
            key: `jax.random.key(seed)`.
            teacher: the matrix A*, shape (n_out, n_in), float64.
            num_samples: size N of the train set, at least 1.
            num_test_samples: size of the test set; 0 for none.
            noise: standard deviation of the noise on each output, in the outputs' units; not negative.
            keep_samples: for mini-batches, as of the class.

        Raises:
            ValueError: a count or a noise out of range.
        """
        teacher = _matrix("teacher", teacher)
        total = int(num_samples) + int(num_test_samples)
        check_room("num_samples", num_samples, 16 * total * sum(teacher.shape), "Take fewer samples.")
        key_inputs, key_noise = jax.random.split(key)
        inputs = jax.random.normal(key_inputs, (teacher.shape[1], total), float)
        outputs = teacher @ inputs + noise * jax.random.normal(key_noise, (teacher.shape[0], total), float)
        train = (inputs[:, :num_samples], outputs[:, :num_samples])
        test = (inputs[:, num_samples:], outputs[:, num_samples:]) if num_test_samples else ()
        return cls(*train, *test, keep_samples=keep_samples)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, n_in) of the linear map."""
        return self.train_set.aim.shape[0], self.train_set.root.shape[0]

    @property
    def has_test(self) -> bool:
        """Whether a test set was given."""
        return self.test_set is not None

    def _card_rows(self) -> list[tuple[str, str]]:
        """The inputs' span, the rank of the least-squares solution, and the minimum."""
        root, aim, floor = (
            np.asarray(part) for part in (self.train_set.root, self.train_set.aim, self.train_set.floor)
        )
        rows = [("samples", str(self.num_samples) if self.num_samples is not None else "condensed")]
        if max(root.shape) > MOST_DECOMPOSED:
            return [*rows, ("test set", "yes" if self.has_test else "none")]
        solution = aim @ np.linalg.pinv(root, rcond=ROUNDING)
        least = float(np.sum((solution @ root - aim) ** 2) + floor)
        scale = float(np.sum(aim**2) + floor)
        return [
            *rows,
            ("inputs", f"span {np.linalg.matrix_rank(root, rtol=ROUNDING)} of {len(root)} dimensions"),
            ("test set", "yes" if self.has_test else "none"),
            ("solution", f"{rank_line(solution)} (least squares, of least norm)"),
            ("minimum", "0" if least < ROUNDING * scale else f"{least:.6g}"),
        ]

    @property
    def num_samples(self) -> int | None:
        """N, where the samples were kept (`keep_samples`)."""
        return None if self.samples is None else self.samples[0].shape[1]

    def batch(self, indices: Int[Array, " b"]) -> "MeanSquaredError":
        """The mean squared error of some samples.

        Raises:
            ValueError: the samples were not kept.
        """
        if self.samples is None:
            raise ValueError(
                "`cost` must have samples at hand: MeanSquaredError(inputs, outputs, keep_samples=True)."
            )
        inputs, outputs = (samples[:, indices] / jnp.sqrt(len(indices)) for samples in self.samples)
        parts = inputs, outputs, jnp.zeros(()), None
        batch = eqx.tree_at(
            lambda cost: (cost.root, cost.aim, cost.floor, cost.basis),
            self.train_set,
            parts,
            is_leaf=lambda part: part is None,
        )
        return eqx.tree_at(
            lambda cost: (cost.train_set, cost.test_set, cost.samples),
            self,
            (batch, None, None),
            is_leaf=lambda part: part is None,
        )

    def unbounded(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """What A does to inputs that are orthogonal to all samples; zero for n_in samples and more."""
        basis = self.train_set.basis
        return jnp.zeros_like(matrix) if basis is None else jnp.asarray(matrix) - (matrix @ basis) @ basis.T

    @property
    def input_basis(self) -> Float[Array | np.ndarray, "n_in rank"] | None:
        """Of the span of the train inputs, by their numerical rank; None where that is n_in, and under `vmap`."""
        return span_of(self.train_set.root)

    def restricted(self, basis: Float[np.ndarray, "n_in k"]) -> "MeanSquaredError":
        """Of inputs `K^T X`, without the samples themselves."""
        parts = self.train_set.restricted(basis), None
        cost = eqx.tree_at(lambda c: (c.train_set, c.samples), self, parts, is_leaf=lambda part: part is None)
        if cost.test_set is None:
            return cost
        return eqx.tree_at(lambda c: c.test_set, cost, cost.test_set.restricted(basis))

    def __call__(self, matrix: Matrix) -> Float[Array, ""]:
        """The train cost, per sample and summed over outputs."""
        return self.train_set.mean_squared_error(matrix)

    def test(self, matrix: Matrix) -> Float[Array, ""]:
        """The same mean over the test set."""
        return super().test(matrix) if self.test_set is None else self.test_set.mean_squared_error(matrix)

    def gradient(self, matrix: Matrix) -> Float[Array, "n_out n_in"]:
        """`(2/N) (A X - Y) X^T`."""
        samples = self.train_set
        return 2 * (jnp.asarray(matrix) @ samples.root - samples.aim) @ samples.root.T

    def curvature(self, matrix: Matrix) -> Curvature | None:
        """`C''[V] = (2/N) V X X^T`."""
        return ColumnCurvature(jnp.sqrt(2.0) * self.train_set.root, self.shape)


def span_of(inputs: Float[Array, "n_in N"]) -> Float[np.ndarray, "n_in rank"] | None:
    """An orthonormal basis of the span of inputs, by their numerical rank; None where that is n_in, and if traced."""
    if not is_concrete(inputs):
        return None
    u, s, _ = np.linalg.svd(np.asarray(inputs), full_matrices=False)
    seen = u[:, s > ROUNDING * s[0]]
    return None if seen.shape[1] == len(inputs) else seen


class _Samples(eqx.Module):
    """Samples condensed to `(1/N)|A X - Y|^2 = |A root - aim|^2 + floor`, by X^T = Q R."""

    root: Float[Array, "n_in columns"]
    aim: Float[Array, "n_out columns"]
    floor: Float[Array, ""]
    basis: Float[Array, "n_in columns"] | None  # orthonormal, of the samples' span; None: n_in samples or more

    def __init__(self, inputs_name: str, inputs: Any, outputs_name: str, outputs: Any):
        inputs, outputs = as_float64(inputs_name, inputs), as_float64(outputs_name, outputs)
        for name, samples in ((inputs_name, inputs), (outputs_name, outputs)):
            require(samples.ndim == 2, name, "be a matrix with samples as columns", f"shape {samples.shape}")
            require_finite(name, samples)
        count = inputs.shape[1]
        require(count >= 1, inputs_name, "hold at least one sample (column)", f"shape {inputs.shape}")
        require(
            outputs.shape[1] == count,
            outputs_name,
            f"hold {count} samples (columns), as many as {inputs_name}",
            f"shape {outputs.shape}",
        )
        q, r = jnp.linalg.qr(jnp.asarray(inputs).T / jnp.sqrt(count))
        scaled = jnp.asarray(outputs) / jnp.sqrt(count)
        self.root = r.T
        self.basis = jnp.linalg.qr(self.root)[0] if count < len(inputs) else None
        self.aim = scaled @ q
        self.floor = jnp.sum((scaled - self.aim @ q.T) ** 2)

    def restricted(self, basis: Float[np.ndarray, "n_in k"]) -> "_Samples":
        """Of inputs `K^T X`."""
        root = basis.T @ np.asarray(self.root)
        span = on_device(np.linalg.qr(root)[0]) if root.shape[1] < len(root) else None
        parts = on_device(root), span
        return eqx.tree_at(lambda s: (s.root, s.basis), self, parts, is_leaf=lambda part: part is None)

    def mean_squared_error(self, matrix: Matrix) -> Float[Array, ""]:
        return jnp.sum((matrix @ self.root - self.aim) ** 2) + self.floor


def rank_line(matrix: Float[np.ndarray, "n_out n_in"]) -> str:
    """The rank of a matrix and its singular values, for cards; of a large one nothing, as it takes too long."""
    if max(matrix.shape) > MOST_DECOMPOSED:
        return f"of shape {matrix.shape}, too large to decompose for a card"
    values = np.linalg.svd(matrix, compute_uv=False)
    rank = int(np.sum(values > RANK_SHARE * values[0]))
    shown = ", ".join(f"{value:.3g}" for value in values[: min(rank, 5)])
    more = ", ..." if rank > 5 else ""
    return f"rank {rank}" + (f", singular values {shown}{more}" if rank else "")


def _matrix(name: str, matrix: Any) -> Any:
    """A finite matrix of float64."""
    matrix = as_float64(name, matrix)
    require(
        matrix.ndim == 2,
        name,
        "be a matrix",
        f"shape {matrix.shape}",
        "Of a vector take vector[None] or vector[:, None].",
    )
    require(0 not in matrix.shape, name, "have rows and columns", f"shape {matrix.shape}")
    require_finite(name, matrix)
    return matrix


def _mask(name: str, mask: Any, shape: tuple[int, ...]) -> Bool[Array | np.ndarray, "n_out n_in"]:
    if isinstance(scalar(mask), int | float):
        refuse(
            name, "hold booleans, one for each entry", mask, "A share of entries is drawn by MatrixCompletion.random."
        )
    mask = as_booleans(name, mask)
    require(mask.shape == tuple(shape), name, f"have the target's shape {tuple(shape)}", mask.shape)
    return mask


def _masked_mean(mask: Bool[Array, "n_out n_in"], values: Float[Array, "n_out n_in"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.sum(mask)


class SquaredError(Cost):
    """Mean squared error of predictions: `C(F) = (1/N) |F - Y|_F^2`, per sample and summed over outputs.

    F holds a model's predictions for N samples, one a column; `sf.regression` makes an objective of it.

    >>> cost = sf.SquaredError([[1.0, 2.0]])  # one output, two samples
    >>> float(cost(np.zeros((1, 2))))
    2.5

    Args:
        targets: Y, shape (n_out, N), float64 or a list; finite.

    Raises:
        ValueError: targets of another kind.
    """

    no_test: ClassVar[str] = "Pass test samples to `regression`."

    targets: Float[Array, "n_out N"]

    def __init__(self, targets: Any):
        targets = as_float64("targets", targets)
        require(targets.ndim == 2, "targets", "be a matrix, a column for each sample", f"shape {targets.shape}")
        require(targets.size > 0, "targets", "hold at least one sample", f"shape {targets.shape}")
        require_finite("targets", targets)
        self.targets = on_device(targets)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, N) of the predictions."""
        n_out, count = self.targets.shape
        return n_out, count

    def _card_rows(self) -> list[tuple[str, str]]:
        """The targets, and the minimum."""
        return [
            ("predictions", "F of shape ({}, {}), a column for each sample".format(*self.shape)),
            ("targets", rank_line(np.asarray(self.targets))),
            ("minimum", "0, where F meets the targets"),
        ]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.shape[1]

    def batch(self, indices: Int[Array, " b"]) -> "SquaredError":
        """Of the predictions for some samples: a cost of matrices with a column for each of them."""
        return eqx.tree_at(lambda cost: cost.targets, self, self.targets[:, indices])

    def __call__(self, matrix: Matrix) -> Float[Array, ""]:
        """The train cost."""
        return jnp.sum((matrix - self.targets) ** 2) / self.shape[1]

    def unbounded(self, matrix: Matrix) -> Float[Array, "n_out N"]:
        """Nothing: the cost bounds all predictions."""
        return jnp.zeros_like(matrix)

    def gradient(self, matrix: Matrix) -> Float[Array, "n_out N"]:
        """`(2/N) (F - Y)`."""
        return 2 * (jnp.asarray(matrix) - self.targets) / self.shape[1]

    def curvature(self, matrix: Matrix) -> Curvature | None:
        """`C''[V] = (2/N) V`."""
        n_out, count = self.shape
        rows, columns = np.indices(self.shape).reshape(2, -1)
        weight = jnp.full(n_out * count, 2.0 / count)
        return EntryCurvature(jnp.asarray(rows), jnp.asarray(columns), weight, self.shape)
