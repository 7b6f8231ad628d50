"""Width reduction: the flow of A carried out in the few hidden directions that it ever uses.

The gradient of layer l is `E_l G H_{l-1}^T`, with the forward activity `H_l = W_l ... W_1` and the backward one
`E_l = (W_L ... W_{l+1})^T`. Let B_l be an orthonormal basis of a subspace of hidden space l. If the subspaces are
closed (W_l maps that of space l-1 into that of space l, W_l^T back), the small layers `B_l^T W_l B_{l-1}` follow the
gradient flow themselves, A is theirs, and nothing else of the network ever moves. Where they are not closed, activity
leaks: `(1 - B_l B_l^T) W_l B_{l-1} h_{l-1}` leaves the basis. A basis is grown along the leaks that a flow excites.

Derived here; standing and measurements on the documentation's page "Width".
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import require, require_finite, require_positive
from saddleflow._backend.devices import one_lapack_thread
from saddleflow.problem.network import DeepLinearNetwork

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
        tolerance: of `|A(t) - A_full(t)|_F`, in the units of A; None: ten times rtol times the largest |A|_F met.
        error_estimate: of that error, once a flow has measured it; None before.
    """

    network: DeepLinearNetwork
    frozen_squares: Float[Array, " depth"]
    tolerance: float | None = eqx.field(static=True)
    error_estimate: float | None = eqx.field(static=True)

    __array_ufunc__ = None

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
        return self.scaled(alpha)

    __mul__ = __rmul__

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

    Attributes:
        full: the full network at the start.
        bases: `(B_0, ..., B_L)`, B_l of shape (n_l, m_l); the outer two are identities.
    """

    full: DeepLinearNetwork
    bases: tuple[Float[Array, "_ _"], ...]

    @classmethod
    def of(
        cls, full: DeepLinearNetwork, bases: Sequence[Any], tolerance: float | None, error: float | None = None
    ) -> "ProjectedNetwork":
        """Project a network onto bases of all spaces, outer ones included."""
        # in numpy: shapes change with every growth, and jax compiles for each
        frames, layers = [np.asarray(b) for b in bases], [np.asarray(w) for w in full.layers]
        small = [b.T @ (w @ a) for a, w, b in zip(frames, layers, frames[1:], strict=False)]
        squares = [np.sum(w**2) - np.sum(m**2) for w, m in zip(layers, small, strict=True)]
        frozen = on_device(np.maximum(squares, 0.0))
        return cls(DeepLinearNetwork(small), frozen, tolerance, error, full, tuple(map(on_device, frames)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes (n_0, ..., n_L) of the full network's spaces."""
        return (self.shape[1], *self.full.hidden_widths, self.shape[0])

    @property
    def is_complete(self) -> bool:
        """Whether nothing leaks, up to rounding."""
        forward, backward = self._leaks()
        return all(
            np.linalg.norm(leak) <= 100 * ROUNDING * float(jnp.linalg.norm(layer))
            for leaks in (forward, backward)
            for leak, layer in zip(leaks, self.full.layers, strict=True)
        )

    def scaled(self, alpha: Any) -> "ProjectedNetwork":
        """The reduction of alpha times the full network."""
        return ProjectedNetwork.of(alpha * self.full, self.bases, self.tolerance)

    def expand(self, network: DeepLinearNetwork) -> DeepLinearNetwork:
        """The full network at a later time, from the small one then: `W_l(0) + B_l (M_l - M_l(0)) B_{l-1}^T`."""
        parts = zip(self.bases, self.full.layers, self.bases[1:], network.layers, self.network.layers, strict=False)
        return DeepLinearNetwork(w + b @ (now - start) @ a.T for a, w, b, now, start in parts)

    def _leaks(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What leaves the bases: `(1 - P_l) W_l B_{l-1}` and `(1 - P_{l-1}) W_l^T B_l`, l = 1, ..., L."""
        bases = [np.asarray(b) for b in self.bases]
        layers = [np.asarray(w) for w in self.full.layers]
        forward = [_outside(b, w @ a) for a, w, b in zip(bases, layers, bases[1:], strict=False)]
        backward = [_outside(a, w.T @ b) for a, w, b in zip(bases, layers, bases[1:], strict=False)]
        return forward, backward

    def leaks(self, snapshots: "Snapshots") -> Leaks:
        """Left singular vectors of the leaks that the snapshots excite, for every hidden space."""
        forward, backward = self._leaks()
        spectra = []
        for space in range(1, self.depth):
            # leaks span few directions of a wide space: the singular vectors are found among those
            frame, triangle = np.linalg.qr(np.hstack([forward[space - 1], backward[space]]))
            ahead, back = np.hsplit(triangle, [forward[space - 1].shape[1]])
            excited = [
                ahead @ snapshots.forward_coefficients(space),
                back @ snapshots.backward_coefficients(space),
            ]
            u, s, _ = np.linalg.svd(np.hstack(excited), full_matrices=False)
            spectra.append((frame @ u, s))
        return spectra

    def grow(self, leaks: Leaks, threshold: float) -> "ProjectedNetwork":
        """Add the directions into which more than the threshold leaks to the bases."""
        bases: list[Any] = list(self.bases)
        for space, (u, s) in enumerate(leaks, start=1):
            room = self.full.hidden_widths[space - 1] - bases[space].shape[1]
            fresh = u[:, : min(int(np.sum(s > threshold)), room)]
            basis = np.asarray(bases[space])
            bases[space] = np.hstack([basis, _orthonormal(basis, fresh)])
        grown = any(new.shape != old.shape for new, old in zip(bases, self.bases, strict=True))
        return ProjectedNetwork.of(self.full, bases, self.tolerance) if grown else self


class Snapshots:
    """Activities of a small network along a flow, weighted so that small but leading directions count.

    `H_l = U S V^T` enters the leak out of space l - 1 as `H_{l-1} V / sqrt(S S_max)`: relative to the activity of
    space l that it disturbs, geometrically between "relative to the largest direction" and "each to its own".

    Args:
        networks: the small network at some times, layers of shape (times, m_l, m_{l-1}).
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

    def within(self, start: DeepLinearNetwork, grown: DeepLinearNetwork) -> "Snapshots":
        """The same increments from a start in grown bases: to first order what a flow excites there."""
        layers = []
        for now, before, after in zip(self.layers, start.layers, grown.layers, strict=True):
            rows, columns = before.shape
            layer = np.repeat(np.asarray(after)[None], len(now), axis=0)
            layer[:, :rows, :columns] = now
            layers.append(layer)
        return Snapshots(layers)

    def forward_coefficients(self, space: int) -> np.ndarray:
        """The weighted forward activity of space - 1, as the source of what leaks into `space`."""
        return _side_by_side(self.forward[space - 1], self.forward[space])

    def backward_coefficients(self, space: int) -> np.ndarray:
        """The weighted backward activity of space + 1, as the source of what leaks into `space`."""
        return _side_by_side(self.backward[space + 1], self.backward[space])


@one_lapack_thread()  # the bases, to the last bit, whatever the environment says
def reduce_width(network: DeepLinearNetwork, tolerance: float | None = 1e-6) -> ProjectedNetwork:
    """Project a network onto the hidden directions its gradient uses at the start.

    Exact for L = 2, and wherever the bases fill the spaces. Otherwise `gradient_flow` grows the bases along the run
    until the estimated error of A is below the tolerance; where they get too large, it takes the full network.

    Args:
        network: the start, of any depth and widths.
        tolerance: of `|A(t) - A_full(t)|_F`, sup over the run, in the units of A; None: ten times rtol times the
            largest |A|_F met.

    Returns:
        The reduced network.

    Raises:
        ValueError: a tolerance not positive, layers that are not finite.
    """
    if tolerance is not None:
        require_positive("tolerance", tolerance)
    require(isinstance(network, DeepLinearNetwork), "network", "be a DeepLinearNetwork", type(network).__name__)
    for index, layer in enumerate(network.layers):
        require(layer.ndim == 2, "network", "be a single one, without batch axes", f"layers of shape {layer.shape}")
        require_finite(f"network.layers[{index}]", layer)
    start = Snapshots([np.asarray(layer)[None] for layer in network.layers])
    bases: list[Any] = [np.eye(network.shape[1])]
    for space, size in enumerate(network.hidden_widths, start=1):
        frames = [_frame(side[space][0]) for side in (start.forward, start.backward)]
        bases.append(np.hstack([frames[0], _orthonormal(frames[0], frames[1])])[:, :size])
    bases.append(np.eye(network.shape[0]))
    return ProjectedNetwork.of(network, bases, tolerance)


def _frame(matrix: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the columns."""
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    return u[:, s > ROUNDING * s[0]] if s[0] > 0 else u[:, :0]


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
    largest = np.maximum(s[:, :1], np.finfo(float).tiny)
    weights = np.where(
        s > ROUNDING * largest, 1 / (np.sqrt(np.maximum(s, ROUNDING * largest)) * np.sqrt(largest)), 0.0
    )
    weighted = (source @ vh.transpose(0, 2, 1)) * weights[:, None, :]
    times, rows, count = weighted.shape
    return weighted.transpose(1, 0, 2).reshape(rows, times * count) / np.sqrt(times)
