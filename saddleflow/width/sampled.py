"""A reduced Gaussian network of any width, drawn without any matrix of the full width.

`W_l v`, for a direction v of space l - 1, is a Gaussian vector: its components along known directions of space l are
drawn, the rest has a chi-distributed length and a uniform direction, which becomes a new basis vector. Known
directions whose image under W_l, or W_l^T, has been drawn are "revealed"; what has neither image revealed is still
independent Gaussian. Several at once are Bartlett's decomposition; alternating sides is the bidiagonal model of
Dumitriu and Edelman in blocks. Which direction is revealed next may depend on all that is revealed already, so a flow
may choose: the law stays exact. Where a cost sees only the span of inputs Q, orthonormal, `W_1 Q` is revealed so.
The rest, `W_1 (1 - Q Q^T)`, is independent of all that bases are made of, so it is Gaussian in any. Derived here.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from saddleflow._backend import arguments as readers
from saddleflow._backend.arguments import MOST_DEPTH, integer, number, optional, takes
from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import is_concrete, require_integer, require_positive
from saddleflow._backend.devices import one_lapack_thread
from saddleflow._backend.random import padded
from saddleflow.problem.network import DeepLinearNetwork, Width, layer_sizes
from saddleflow.problem.readers import cost as cost_reader
from saddleflow.problem.starts import deviation
from saddleflow.width.projected import Leaks, ReducedNetwork, Snapshots, seen_inputs

# Draws are padded to this many numbers, times a power of four.
SHORTEST = 64


class Randomness(NamedTuple):
    """Where numbers come from, and the array module that holds them: jax.numpy, or numpy where shapes vary."""

    normal: Callable[[tuple[int, int]], Any]
    chi_squared: Callable[[Any], Any]
    arrays: Any


class Revealed(NamedTuple):
    """What is known of the layers, in units of their standard deviation.

    Attributes:
        layers: the small matrices M_l, shape (m_l, m_{l-1}).
        rows: orthonormal frames, shape (m_l, r_l), of the directions of space l whose `W_l^T v` is revealed.
        columns: the same, shape (m_{l-1}, c_l), of the directions of space l - 1 whose `W_l v` is revealed.
    """

    layers: list[Any]
    rows: list[Any]
    columns: list[Any]

    def transposed(self) -> "Revealed":
        """The network read from the output to the input."""
        return Revealed([m.T for m in self.layers[::-1]], self.columns[::-1], self.rows[::-1])


class SampledNetwork(ReducedNetwork):
    """A reduced Gaussian network. It grows by drawing more random numbers; those drawn before stay.

    Only `frozen_squares`, chi-squared given all that is revealed, is drawn anew with every growth.

    Attributes:
        key: of all randomness.
        deviation: standard deviation of the entries of every layer.
        rows, columns: frames of the revealed directions, see `Revealed`.
    """

    key: PRNGKeyArray
    deviation: Float[Array, ""]
    rows: tuple[Float[Array, "_ _"], ...]
    columns: tuple[Float[Array, "_ _"], ...]
    full_sizes: tuple[int, ...] = eqx.field(static=True)
    num_growths: int = eqx.field(static=True)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes (n_0, ..., n_L) of the full network's spaces."""
        return self.full_sizes

    @property
    def is_complete(self) -> bool:
        """Whether every known direction is revealed, or its space exhausted."""
        known, sizes = self._known, self._seen_sizes
        return all(
            (c.shape[1] == below or above == full_above) and (r.shape[1] == above or below == full_below)
            for below, above, full_below, full_above, r, c in zip(
                known, known[1:], sizes, sizes[1:], self.rows, self.columns, strict=False
            )
        )

    @property
    def _seen_sizes(self) -> tuple[int, ...]:
        """Sizes of the spaces, of inputs that of those which the cost sees."""
        return (self.sizes[0] if self.inputs is None else self.inputs.shape[1], *self.sizes[1:])

    @property
    def _known(self) -> tuple[int, ...]:
        """Number of known directions of every space."""
        return (self._seen_sizes[0], *self.reduced_widths, self.shape[0])

    def scaled(self, alpha: Any) -> "SampledNetwork":
        """The reduction of alpha times the full network."""
        return eqx.tree_at(
            lambda s: (s.network, s.frozen_squares, s.deviation),
            self,
            (alpha * self.network, alpha**2 * self.frozen_squares, jnp.abs(alpha) * self.deviation),
        )

    def leaks(self, snapshots: Snapshots) -> Leaks:
        """Unrevealed directions whose image a flow excites: columns of every layer, then rows."""
        known, sizes, unit = self._known, self._seen_sizes, float(self.deviation)
        columns, rows = [], []
        for index in range(self.depth):
            leak = unit * math.sqrt(sizes[index + 1] - known[index + 1])
            excited = leak * snapshots.forward_coefficients(index + 1)
            columns.append(_excited(np.asarray(self.columns[index]), excited))
            leak = unit * math.sqrt(sizes[index] - known[index])
            excited = leak * snapshots.backward_coefficients(index)
            rows.append(_excited(np.asarray(self.rows[index]), excited))
        return columns + rows

    def grow(self, leaks: Leaks, threshold: float) -> "SampledNetwork":
        """Reveal the directions through which more than the threshold leaks."""
        fresh = [u[:, s > threshold] for u, s in leaks]
        if not any(directions.shape[1] for directions in fresh):
            return self
        fresh_columns, fresh_rows = fresh[: self.depth], fresh[self.depth :]
        source = _host_randomness(jax.random.fold_in(self.key, self.num_growths))
        unit = float(self.deviation)
        layers = [m / unit for m in self.seen(self.network.layers)]
        revealed = Revealed(layers, list(map(np.asarray, self.rows)), list(map(np.asarray, self.columns)))
        revealed = _reveal(revealed, fresh_columns, fresh_rows, self._seen_sizes, source)
        unseen = None
        if self.inputs is not None:
            # what the known directions make of inputs that the cost does not see, and fresh ones of fresh directions
            first = np.asarray(self.network.layers[0]) / unit
            old = first - layers[0] @ np.asarray(self.inputs).T
            unseen = np.vstack([old, _unseen(len(revealed.layers[0]) - len(old), self.inputs, source)])
        return SampledNetwork(
            tolerance=self.tolerance,
            error_estimate=None,
            inputs=self.inputs,
            key=self.key,
            deviation=self.deviation,
            full_sizes=self.sizes,
            num_growths=self.num_growths + 1,
            **_drawn(revealed, unit, self.sizes, self.inputs, unseen, source),
        )


@takes(
    key=readers.key,
    depth=integer(2, MOST_DEPTH),
    width=readers.width,
    shape=readers.shape,
    gamma=optional(number(example="1.5")),
    variance=optional(number()),
    tolerance=optional(number()),
    levels=optional(integer(1)),
    cost=optional(cost_reader),
)
@one_lapack_thread()
def sample_reduced(
    key: PRNGKeyArray,
    *,
    depth: int,
    width: Width,
    shape: tuple[int, int],
    gamma: Any = None,
    variance: Any = None,
    tolerance: float | None = None,
    levels: int | None = None,
    cost: Any = None,
) -> SampledNetwork:
    """Draw a reduced Gaussian network of any width, with the distribution of `reduce_width(gaussian(...))`.

    `gradient_flow` reveals more of the network, with the same randomness extended, until the estimated error of A is
    below the tolerance. Under `jax.jit` and `jax.vmap` (over keys, gamma or variance) shapes follow from `levels`.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(3, 3), rank=1)
    >>> small = sf.sample_reduced(jax.random.key(1), depth=3, width=10**9, shape=cost.shape, gamma=1.5)
    >>> small.network
    DeepLinearNetwork(layers=(f64[6,3], f64[6,6], f64[3,6]))
    >>> sf.gradient_flow(cost, small).stop_reason
    'converged'

    Args:
        key: `jax.random.key(seed)`; draws another network of the same law than `gaussian` does with that key.
        depth: number of layers L >= 2.
        width: hidden width(s) of the full network, up to 10^12. Where the basis fills a space, the small network is
            as wide as the full one there; `is_full` says whether that holds for all.
        shape: (n_out, n_in) of the end-to-end matrix.
        gamma: exponent of the variance in the width, as in `gaussian`; or give `variance`.
        variance: variance of every entry of every layer.
        tolerance: of `|A(t) - A_full(t)|_F`, as a share of the largest |A|_F met; None: ten times rtol.
        levels: how often the images of all known directions are revealed at once, from both ends; default L - 1,
            the least that holds the whole gradient at the start.
        cost: the `Cost` that the flow will be one of; None: any. The directions known at first are those of the
            inputs that it sees, as in `reduce_width`: another network of the same law.

    Raises:
        ValueError: as `gaussian`; a width above 10^12, a tolerance not positive, fewer than L - 1 levels, a cost of
            another shape.
    """
    sizes = layer_sizes(depth, width, shape, least=2)
    unit = deviation(width, gamma, variance)
    if tolerance is not None:
        require_positive("tolerance", tolerance)
    levels = depth - 1 if levels is None else levels
    require_integer("levels", levels, depth - 1, f"Below {depth - 1} levels the two ends do not meet and A is zero.")
    key_reveal, key_growth = jax.random.split(key)
    source = _keyed_randomness(key_reveal)
    inputs = seen_inputs(cost, (sizes[-1], sizes[0]))
    seen = (sizes[0] if inputs is None else inputs.shape[1], *sizes[1:])
    known = (seen[0], *(0,) * (depth - 1), sizes[-1])
    revealed = Revealed(
        [source.arrays.zeros((above, below)) for below, above in itertools.pairwise(known)],
        [source.arrays.zeros((above, 0)) for above in known[1:]],
        [source.arrays.zeros((below, 0)) for below in known[:-1]],
    )
    for _ in range(levels):
        columns = [_unrevealed(frame) for frame in revealed.columns]
        rows = [_unrevealed(frame) for frame in revealed.rows]
        revealed = _reveal(revealed, columns, rows, seen, source)
    unseen = None if inputs is None else _unseen(len(revealed.layers[0]), inputs, source)
    size = np.asarray(unit) if is_concrete(unit) else unit
    return SampledNetwork(
        tolerance=tolerance,
        error_estimate=None,
        inputs=None if inputs is None else on_device(inputs),
        key=key_growth,
        deviation=unit,
        full_sizes=sizes,
        num_growths=0,
        **_drawn(revealed, size, sizes, inputs, unseen, source),
    )


def _drawn(
    revealed: Revealed, unit: Any, sizes: tuple[int, ...], inputs: Any, unseen: Any, source: Randomness
) -> dict[str, Any]:
    """What has been drawn, as a `SampledNetwork` holds it, in units of A.

    Args:
        revealed: all that is.
        unit: standard deviation of the entries.
        sizes: of the spaces of the full network.
        inputs: Q of the cost, or None.
        unseen: `B_1^T W_1 (1 - Q Q^T)`, where there is a Q.
        source: of the frozen squares.
    """
    layers, seen = list(revealed.layers), (sizes[0] if inputs is None else inputs.shape[1], *sizes[1:])
    squares = _frozen_squares(revealed, seen, source)
    if inputs is not None:
        degrees = float((sizes[0] - seen[0]) * (sizes[1] - len(layers[0])))
        first = source.chi_squared(np.asarray([max(degrees, 1.0)]))[0] if degrees > 0 else 0.0
        squares = squares + first * (np.arange(len(squares)) == 0)
        layers[0] = layers[0] @ source.arrays.asarray(inputs).T + unseen
    return {
        "network": DeepLinearNetwork([on_device(unit * m) for m in layers]),
        "frozen_squares": on_device(unit**2 * squares),
        "rows": tuple(map(on_device, revealed.rows)),
        "columns": tuple(map(on_device, revealed.columns)),
    }


def _unseen(count: int, inputs: Any, source: Randomness) -> Any:
    """So many rows of `W_1 (1 - Q Q^T)`."""
    basis = source.arrays.asarray(inputs)
    noise = source.normal((count, basis.shape[0]))
    return noise - (noise @ basis) @ basis.T


def _reveal(
    revealed: Revealed, columns: list[Any], rows: list[Any], sizes: tuple[int, ...], source: Randomness
) -> Revealed:
    """Reveal `W_l v` for fresh directions `columns[l-1]` of space l - 1, and `W_l^T v` for `rows[l-1]` of space l.

    Fresh directions are orthonormal, orthogonal to the revealed ones, and given in the directions known so far.
    """
    for index, fresh in enumerate(columns):
        revealed = _reveal_columns(revealed, index, fresh, sizes, source)
    revealed = revealed.transposed()
    for index, fresh in enumerate(rows[::-1]):
        revealed = _reveal_columns(revealed, index, fresh, sizes[::-1], source)
    return revealed.transposed()


def _reveal_columns(
    revealed: Revealed, index: int, fresh: Any, sizes: tuple[int, ...], source: Randomness
) -> Revealed:
    """Reveal `W_l v`, l = index + 1: space l gains directions, one for each v as long as it has room."""
    xp = source.arrays
    layers, rows, columns = (list(part) for part in revealed)
    below, above = layers[index].shape[1], layers[index].shape[0]
    # spaces have grown since the directions were chosen
    fresh = _taller(fresh, below, xp)
    count = fresh.shape[1]
    room = sizes[index + 1] - above
    new = min(count, room)
    columns[index] = xp.concatenate([columns[index], fresh], axis=1)
    if new == 0:
        return Revealed(layers, rows, columns)
    # the remainders are a room x count Gaussian matrix: Q of its QR is the new basis, R has Bartlett's law
    triangle = xp.triu(source.normal((new, count)), 1)
    diagonal = xp.sqrt(source.chi_squared(room - np.arange(new)))
    triangle = triangle + xp.eye(new, count) * diagonal[:, None]
    noise = source.normal((new, below))
    noise = noise - (noise @ columns[index]) @ columns[index].T
    layers[index] = xp.concatenate([layers[index], triangle @ fresh.T + noise], axis=0)
    rows[index] = _taller(rows[index], above + new, xp)
    if index + 1 < len(layers):
        noise = source.normal((layers[index + 1].shape[0], new))
        noise = noise - rows[index + 1] @ (rows[index + 1].T @ noise)
        layers[index + 1] = xp.concatenate([layers[index + 1], noise], axis=1)
        columns[index + 1] = _taller(columns[index + 1], above + new, xp)
    return Revealed(layers, rows, columns)


def _frozen_squares(revealed: Revealed, sizes: tuple[int, ...], source: Randomness) -> Any:
    """Squared norms of all that is not in the small layers, given what is: chi-squared."""
    known = _known(revealed)
    degrees = [
        float(full_below * full_above - below * above)
        # a revealed row or column is zero outside the small layer
        - c.shape[1] * (full_above - above)
        - r.shape[1] * (full_below - below)
        for below, above, full_below, full_above, r, c in zip(
            known, known[1:], sizes, sizes[1:], revealed.rows, revealed.columns, strict=False
        )
    ]
    degrees = np.asarray(degrees)
    drawn = source.chi_squared(np.maximum(degrees, 1.0))
    return source.arrays.where(degrees > 0, drawn, 0.0)


def _known(revealed: Revealed) -> tuple[int, ...]:
    """Number of known directions of every space, input first."""
    return (revealed.layers[0].shape[1], *(m.shape[0] for m in revealed.layers))


def _unrevealed(frame: Any) -> Float[np.ndarray, "m _"]:
    """All known directions but the first k, which whole levels reveal in order."""
    return np.eye(frame.shape[0])[:, frame.shape[1] :]


def _excited(frame: np.ndarray, excited: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unrevealed directions in the order of their excitation, and its singular values."""
    rest = np.linalg.qr(frame, mode="complete")[0][:, frame.shape[1] :]
    u, s, _ = np.linalg.svd(rest.T @ excited, full_matrices=False)
    return rest @ u, s


def _taller(frame: Any, rows: int, xp: Any) -> Any:
    return xp.concatenate([frame, xp.zeros((rows - frame.shape[0], frame.shape[1]))], axis=0)


def _keyed_randomness(key: PRNGKeyArray) -> Randomness:
    """The same numbers for a key that is traced and for one at hand, then in numpy.

    Draws are cut from longer ones of few sizes, which begin with the same numbers and share compiled programs.
    """
    counter = iter(range(2**31))
    arrays: Any = np if is_concrete(key) else jnp

    def next_key():
        return jax.random.fold_in(key, next(counter))

    def normal(shape):
        count = math.prod(shape)
        return arrays.asarray(jax.random.normal(next_key(), (padded(count, SHORTEST),), float))[:count].reshape(shape)

    def chi_squared(degrees):
        more = np.pad(degrees / 2.0, (0, padded(len(degrees), SHORTEST) - len(degrees)), constant_values=1.0)
        return 2 * arrays.asarray(jax.random.gamma(next_key(), more))[: len(degrees)]

    return Randomness(normal, chi_squared, arrays)


def _host_randomness(key: PRNGKeyArray) -> Randomness:
    """The shapes of a growth vary from flow to flow: numpy needs no compilation for them."""
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    return Randomness(generator.standard_normal, generator.chisquare, np)
