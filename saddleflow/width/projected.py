"""Width reduction: the flow of A carried out in the few hidden directions that it ever uses.

The gradient of layer l is `E_l G H_{l-1}^T`, with the forward activity `H_l = W_l ... W_1` and the backward one
`E_l = (W_L ... W_{l+1})^T`. Let B_l be an orthonormal basis of a subspace of hidden space l. If the subspaces are
closed (W_l maps that of space l-1 into that of space l, W_l^T back), the small layers `B_l^T W_l B_{l-1}` follow the
gradient flow themselves, A is theirs, and nothing else of the network ever moves. Where they are not closed, activity
leaks: `(1 - B_l B_l^T) W_l B_{l-1} h_{l-1}` leaves the basis. A basis is grown along the leaks that a flow excites.

A cost of inputs in the span of an orthonormal Q has gradients `G = G Q Q^T`. Then activities of Q are all that layers
are moved by, so B_0 = Q will do: the first layer's part `W_1 (1 - Q Q^T)` stands still. It is a part of A, which the
layers above it move; `E_1` lies in B_1, so `M_1 = B_1^T W_1`, with all its columns, keeps A whole.

Derived here; standing and measurements on the documentation's page "Width".
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float

from saddleflow._backend.arguments import number, optional, takes
from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import require, require_finite, require_positive
from saddleflow._backend.devices import one_lapack_thread
from saddleflow.plotting.cards import card, never_raises
from saddleflow.problem import readers
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork, check_layers, check_scale

# Directions below this share of a space's largest are rounding.
ROUNDING = 1e-13

# Directions, in columns, and how strongly a flow leaks into them (or, for a drawn network, through them): a pair for
# every set of directions that a basis can grow by.
Leaks = list[tuple[np.ndarray, np.ndarray]]


class ReducedNetwork(eqx.Module):
    """A network reduced to the hidden directions its flow uses: what `gradient_flow` takes instead of the full one.

    Attributes:
        network: the small network `B_l^T W_l B_{l-1}`.
        frozen_squares: `|W_l|_F^2` outside the small layers, shape (depth,); constant along the flow.
        tolerance: of `|A(t) - A_full(t)|_F`, as a share of the largest |A|_F met; None: ten times rtol.
        error_estimate: of that error, in the units of A, once a flow has measured it; None before.
        inputs: Q, an orthonormal basis of the inputs that the cost sees, shape (n_in, r); None: any inputs.
    """

    network: DeepLinearNetwork
    frozen_squares: Float[Array, " depth"]
    tolerance: float | None = eqx.field(static=True)
    error_estimate: float | None = eqx.field(static=True)
    inputs: Float[Array, "n_in _"] | None

    __array_ufunc__ = None

    @never_raises
    def _repr_html_(self) -> str:
        """The card, for notebooks."""
        small, full = (", ".join(map(str, widths)) for widths in (self.reduced_widths, self.hidden_widths))
        rows = [("hidden widths", f"{small} of {full}"), ("exact", "yes" if self.is_complete else "no")]
        if self.error_estimate is not None:
            rows.append(("error of A", f"about {self.error_estimate:.2g}"))
        return card("{} {}x{}".format(type(self).__name__, *self.network.shape), rows)

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Sizes (n_0, ..., n_L) of the full network's spaces, input first."""

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether nothing leaks: the reduction is exact."""

    @abstractmethod
    def leaks(self, snapshots: "Snapshots") -> Leaks:
        """What a flow leaks out of the bases, as shares of its activity, strongest directions first."""

    @abstractmethod
    def grow(self, leaks: Leaks, threshold: float) -> "ReducedNetwork":
        """Add the directions of leaks above a threshold, behind those that are there; self if none."""

    @abstractmethod
    def scaled(self, alpha: Any) -> "ReducedNetwork":
        """The reduction of alpha times the full network."""

    def __rmul__(self, alpha: Any) -> "ReducedNetwork":
        """`alpha * reduced`: every layer of the full network times alpha."""
        if not jnp.isscalar(alpha) and getattr(alpha, "ndim", None) != 0:
            return NotImplemented
        check_scale(alpha)
        return self.scaled(alpha)

    __mul__ = __rmul__

    def seen(self, layers: Sequence[Any]) -> list[np.ndarray]:
        """Layers of a small network, or of many, as the cost sees them: the first from the span of its inputs."""
        first, *rest = map(np.asarray, layers)
        return [first if self.inputs is None else first @ np.asarray(self.inputs), *rest]

    @property
    def depth(self) -> int:
        """Number of layers L."""
        return self.network.depth

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, n_in) of the end-to-end matrix."""
        return self.network.shape

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Hidden widths of the full network."""
        return self.sizes[1:-1]

    @property
    def width(self) -> int | tuple[int, ...]:
        """Hidden width of the full network, the tuple of them where they differ."""
        widths = self.hidden_widths
        return widths[0] if len(set(widths)) == 1 else widths

    @property
    def reduced_widths(self) -> tuple[int, ...]:
        """Hidden widths of the small network."""
        return self.network.hidden_widths

    @property
    def is_full(self) -> bool:
        """Whether the basis fills every hidden space: the small network is the full one, rotated."""
        return self.reduced_widths == self.hidden_widths

    def end_to_end(self) -> Float[Array | np.ndarray, "*batch n_out n_in"]:
        """The end-to-end matrix A."""
        return self.network.end_to_end()

    def __repr__(self) -> str:
        """The widths, before and after."""
        kind = "full, the basis fills it" if self.is_full else "exact" if self.is_complete else "truncated"
        return f"{type(self).__name__}(width {self.width} -> {self.reduced_widths}, {kind})"


class ProjectedNetwork(ReducedNetwork):
    """A given network in bases of its hidden spaces; the full one is kept, to grow the bases and to expand.

    The columns of the small first layer stay those of the full one, also where the cost sees only some of their
    span (`inputs`): A is whole.

    Attributes:
        layers: of the full network at the start, W_1 first: arrays, or scipy's sparse ones (CSR).
        bases: `(B_1, ..., B_{L-1})`, B_l of shape (n_l, m_l), orthonormal columns.
    """

    layers: tuple[Any, ...]
    bases: tuple[Float[Array, "_ _"], ...]

    @classmethod
    def of(
        cls, layers: Sequence[Any], bases: Sequence[Any], tolerance: float | None, inputs: Any = None
    ) -> "ProjectedNetwork":
        """Project layers onto bases of their hidden spaces."""
        # in numpy: shapes change with every growth, and jax compiles for each
        frames, matrices = [np.asarray(b) for b in bases], _on_host(layers)
        inner = zip(frames, matrices[1:-1], frames[1:], strict=False)
        small = [frames[0].T @ matrices[0], *(b.T @ (w @ a) for a, w, b in inner), matrices[-1] @ frames[-1]]
        squares = [_square(w) - _square(m) for w, m in zip(matrices, small, strict=True)]
        return cls(
            network=DeepLinearNetwork(small),
            frozen_squares=on_device(np.maximum(squares, 0.0)),
            tolerance=tolerance,
            error_estimate=None,
            inputs=None if inputs is None else on_device(inputs),
            layers=tuple(layers),
            bases=tuple(map(on_device, frames)),
        )

    @property
    def full(self) -> DeepLinearNetwork:
        """The full network at the start; sparse layers are made dense."""
        return DeepLinearNetwork(map(_dense, self.layers))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes (n_0, ..., n_L) of the full network's spaces."""
        return (self.shape[1], *(layer.shape[0] for layer in self.layers))

    @property
    def is_complete(self) -> bool:
        """Whether nothing leaks, up to rounding."""
        norms = [math.sqrt(_square(layer)) for layer in _on_host(self.layers)]
        forward, backward = self._leaks()
        return all(
            np.linalg.norm(leak) <= 100 * ROUNDING * norm
            for leaks, sources in ((forward, norms[:-1]), (backward, norms[1:]))
            for leak, norm in zip(leaks, sources, strict=True)
        )

    def scaled(self, alpha: Any) -> "ProjectedNetwork":
        """The reduction of alpha times the full network."""
        return ProjectedNetwork.of([alpha * w for w in self.layers], self.bases, self.tolerance, self.inputs)

    def expand(self, network: DeepLinearNetwork) -> DeepLinearNetwork:
        """The full network at a later time, from the small one then: `W_l(0) + B_l (M_l - M_l(0)) B_{l-1}^T`.

        All its layers are dense, whatever they were at the start: n_l n_{l-1} numbers each.
        """
        moved = [now - start for now, start in zip(network.layers, self.network.layers, strict=True)]
        moved = [*(b @ m for b, m in zip(self.bases, moved[:-1], strict=True)), moved[-1]]
        moved = [moved[0], *(m @ b.T for b, m in zip(self.bases, moved[1:], strict=True))]
        return DeepLinearNetwork(_dense(w) + m for w, m in zip(self.layers, moved, strict=True))

    def _leaks(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What leaves the bases, `(1 - P_l) W_l B_{l-1}` and `(1 - P_l) W_{l+1}^T B_{l+1}`, l = 1, ..., L - 1.

        B_0 spans the inputs that the cost sees, B_L all outputs.
        """
        bases, layers = [np.asarray(b) for b in self.bases], _on_host(self.layers)
        below = [None if self.inputs is None else np.asarray(self.inputs), *bases[:-1]]
        above = [*bases[1:], None]
        forward = [_outside(b, _image(w, a)) for w, a, b in zip(layers[:-1], below, bases, strict=True)]
        backward = [_outside(b, _image(w.T, a)) for w, a, b in zip(layers[1:], above, bases, strict=True)]
        return forward, backward

    def leaks(self, snapshots: "Snapshots") -> Leaks:
        """Left singular vectors of the leaks that the snapshots excite, for every hidden space."""
        spectra = []
        for space, (forward, backward) in enumerate(zip(*self._leaks(), strict=True), start=1):
            # leaks span few directions of a wide space: the singular vectors are found among those
            frame, triangle = np.linalg.qr(np.hstack([forward, backward]))
            ahead, back = np.hsplit(triangle, [forward.shape[1]])
            excited = [
                ahead @ snapshots.forward_coefficients(space),
                back @ snapshots.backward_coefficients(space),
            ]
            u, s, _ = np.linalg.svd(np.hstack(excited), full_matrices=False)
            spectra.append((frame @ u, s))
        return spectra

    def grow(self, leaks: Leaks, threshold: float) -> "ProjectedNetwork":
        """Add the directions into which more than the threshold leaks to the bases."""
        bases = []
        for old, (u, s), size in zip(self.bases, leaks, self.hidden_widths, strict=True):
            basis = np.asarray(old)
            fresh = u[:, : min(int(np.sum(s > threshold)), size - basis.shape[1])]
            bases.append(np.hstack([basis, _orthonormal(basis, fresh)]))
        grown = any(new.shape != old.shape for new, old in zip(bases, self.bases, strict=True))
        return ProjectedNetwork.of(self.layers, bases, self.tolerance, self.inputs) if grown else self


class Snapshots:
    """Activities of a small network along a flow, weighted so that small but leading directions count.

    `H_l = U S V^T` enters the leak out of space l - 1 as `H_{l-1} V / sqrt(S S_max)`: relative to the activity of
    space l that it disturbs, geometrically between "relative to the largest direction" and "each to its own".

    Args:
        networks: the small network at some times as the cost sees it (`ReducedNetwork.seen`), layers of shape
            (times, m_l, m_{l-1}).
    """

    def __init__(self, networks: Sequence[np.ndarray]):
        self.layers = layers = [np.asarray(layer) for layer in networks]
        times, _, n_in = layers[0].shape
        n_out = layers[-1].shape[1]
        self.forward = [np.broadcast_to(np.eye(n_in), (times, n_in, n_in))]
        for layer in layers:
            self.forward.append(layer @ self.forward[-1])
        self.backward = [np.broadcast_to(np.eye(n_out), (times, n_out, n_out))]
        for layer in layers[::-1]:
            self.backward.insert(0, layer.transpose(0, 2, 1) @ self.backward[0])

    def within(self, start: ReducedNetwork, grown: ReducedNetwork) -> "Snapshots":
        """The same increments from a start in grown bases: to first order what a flow excites there."""
        layers = []
        ends = (reduced.seen(reduced.network.layers) for reduced in (start, grown))
        for now, before, after in zip(self.layers, *ends, strict=True):
            rows, columns = before.shape
            layer = np.repeat(after[None], len(now), axis=0)
            layer[:, :rows, :columns] = now
            layers.append(layer)
        return Snapshots(layers)

    def forward_coefficients(self, space: int) -> np.ndarray:
        """The weighted forward activity of space - 1, as the source of what leaks into `space`."""
        return _side_by_side(self.forward[space - 1], self.forward[space])

    def backward_coefficients(self, space: int) -> np.ndarray:
        """The weighted backward activity of space + 1, as the source of what leaks into `space`."""
        return _side_by_side(self.backward[space + 1], self.backward[space])


@takes(tolerance=optional(number()), cost=optional(readers.cost))
@one_lapack_thread()  # the bases, to the last bit, whatever the environment says
def reduce_width(network: Any, tolerance: float | None = None, *, cost: Any = None) -> ProjectedNetwork:
    """Reduce a network to the hidden directions that its gradient uses.

    Exact for L = 2, wherever the bases fill the spaces, and wherever the layers map them into each other, as
    identities do: then one run at rtol is all there is. Otherwise `gradient_flow` grows the bases along the run until
    the estimated error of A is below the tolerance; where they get too large, it takes the full network.

    With a cost whose inputs span few directions (n samples in n_in > n dimensions), the bases hold what those make
    of the layers, n + n_out directions and not n_in + n_out. A and its rows stay whole, n_out x n_in.

    >>> import scipy
    >>> generator = np.random.default_rng(0)
    >>> first = generator.standard_normal((10_000, 10)) / 1000
    >>> last = generator.standard_normal((3, 10_000)) / 100
    >>> small = sf.reduce_width([first, scipy.sparse.eye_array(10_000), last])
    >>> small.network
    DeepLinearNetwork(layers=(f64[13,10], f64[13,13], f64[3,13]))
    >>> cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(3, 10), rank=1)
    >>> sf.gradient_flow(cost, small).end_to_end.shape[1:]
    (3, 10)

    Args:
        network: the start, a `DeepLinearNetwork` of any depth and widths; or a sequence of its layers, W_1 first,
            arrays in float64 or scipy's sparse arrays (identities, diagonals, permutations). These are never made
            dense; all their entries move, zeros too.
        tolerance: of `|A(t) - A_full(t)|_F`, sup over the run, as a share of the largest |A|_F met; None: ten times
            rtol.
        cost: the `Cost` that the flow will be one of; None: any.

    Returns:
        The reduced network. One made for a cost is for costs whose inputs lie in the same span.

    Raises:
        ValueError: a tolerance not positive, layers of another kind, that do not chain or are not finite; a cost of
            another shape.
    """
    if tolerance is not None:
        require_positive("tolerance", tolerance)
    layers = _checked(network)
    inputs = seen_inputs(cost, (layers[-1].shape[0], layers[0].shape[1]))
    matrices = _on_host(layers)
    forward = [_image(matrices[0], inputs)]
    for layer in matrices[1:-1]:
        forward.append(layer @ forward[-1])
    backward = [_image(matrices[-1].T, None)]
    for layer in matrices[-2:0:-1]:
        backward.insert(0, layer.T @ backward[0])
    bases = [span(_frame(ahead), back) for ahead, back in zip(forward, backward, strict=True)]
    return ProjectedNetwork.of(layers, bases, tolerance, inputs)


def seen_inputs(cost: Any, shape: tuple[int, int]) -> Float[np.ndarray, "n_in _"] | None:
    """The basis of the inputs that a cost sees, after checking the cost; None: it sees all, or there is no cost."""
    if cost is None:
        return None
    require(isinstance(cost, Cost), "cost", "be a saddleflow.Cost", type(cost).__name__)
    require(tuple(cost.shape) == shape, "cost", f"take matrices of shape {shape}, as A is", tuple(cost.shape))
    basis = cost.input_basis
    return None if basis is None else np.asarray(basis)


def _checked(network: Any) -> tuple[Any, ...]:
    """The layers of a network, or of a sequence of arrays and sparse arrays, those as CSR."""
    if isinstance(network, DeepLinearNetwork):
        layers = network.layers
        require(len(layers) > 1, "network", "have a hidden width to reduce", "a single layer")
        for layer in layers:
            shape = f"layers of shape {layer.shape}"
            require(layer.ndim == 2, "network", "be a single one, without batch axes", shape)
    else:
        sound = isinstance(network, Sequence)
        remedy = "For example sf.DeepLinearNetwork([first, last])."
        require(sound, "network", "be a DeepLinearNetwork, or a sequence of layers", type(network).__name__, remedy)
        layers = tuple(_as_layer(f"layers[{index}]", layer) for index, layer in enumerate(network))
        check_layers(layers, least=2)
    for index, layer in enumerate(layers):
        require_finite(f"layers[{index}]", _stored(layer))
    return layers


def _as_layer(name: str, layer: Any) -> Any:
    """An array as it is, a sparse one as CSR."""
    if _is_sparse(layer):
        return scipy.sparse.csr_array(layer)
    remedy = "Take scipy.sparse.eye_array(n) or another sparse array, or a dense one: operator @ np.eye(n)."
    dense = isinstance(layer, np.ndarray | Array)
    require(dense, name, "be an array, or a sparse one of scipy", type(layer).__name__, remedy)
    return layer


def _is_sparse(layer: Any) -> bool:
    return not isinstance(layer, np.ndarray | Array) and scipy.sparse.issparse(layer)


def _on_host(layers: Sequence[Any]) -> list[Any]:
    """Layers in numpy; sparse ones as they are."""
    return [layer if _is_sparse(layer) else np.asarray(layer) for layer in layers]


def _dense(layer: Any) -> Any:
    return layer.toarray() if _is_sparse(layer) else layer


def _image(layer: Any, basis: np.ndarray | None) -> np.ndarray:
    """`W B`, dense; None: B = 1."""
    return _dense(layer) if basis is None else layer @ basis


def _square(layer: Any) -> float:
    """`|W|_F^2`."""
    numbers = _stored(layer)
    return float(np.vdot(numbers, numbers))


def _stored(layer: Any) -> Any:
    """The entries, of a sparse layer those that are stored."""
    return layer.data if _is_sparse(layer) else layer


def _frame(matrix: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the columns."""
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    return u[:, s > ROUNDING * s.max(initial=0.0)]


def span(frame: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """An orthonormal basis, continued to the span of further vectors."""
    return np.hstack([frame, _orthonormal(frame, _frame(vectors))])[:, : len(frame)]


def _outside(basis: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    for _ in range(2):  # twice is enough
        vectors = vectors - basis @ (basis.T @ vectors)
    return vectors


def _orthonormal(basis: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Orthonormal basis of what unit vectors add to a basis."""
    u, s, _ = np.linalg.svd(_outside(basis, vectors), full_matrices=False)
    u = u[:, s > 1e3 * ROUNDING]
    return np.linalg.qr(_outside(basis, u))[0]


def _side_by_side(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`source V / sqrt(S S_max)` with `target = U S V^T`, for every time, the times side by side."""
    _, s, vh = np.linalg.svd(target, full_matrices=False)
    largest = s[:, :1]
    heard = (s > ROUNDING * largest) & (s >= np.finfo(float).tiny)  # none of a layer of zeros
    roots = np.sqrt(np.where(heard, s, 1.0)) * np.sqrt(np.where(largest > 0, largest, 1.0))
    weights = np.where(heard, 1 / np.where(heard, roots, 1.0), 0.0)
    weighted = (source @ vh.transpose(0, 2, 1)) * weights[:, None, :]
    times, rows, count = weighted.shape
    return weighted.transpose(1, 0, 2).reshape(rows, times * count) / np.sqrt(times)
