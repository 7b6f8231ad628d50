"""Deep linear networks: a pytree of layers and its products."""

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from saddleflow._backend.arguments import number, refuse
from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import (
    as_float64,
    is_concrete,
    require,
    require_float64,
    require_integer,
)
from saddleflow.plotting.cards import card, never_raises
from saddleflow.problem.layered import Layered

Width = int | Sequence[int]

# Cards multiply and decompose layers up to this size, and this many.
MOST_IN_CARDS = 500

# Layers are balanced where W_l W_l^T and W_{l+1}^T W_{l+1} differ by rounding.
BALANCED = 1e-12


class DeepLinearNetwork(eqx.Module):
    """A deep linear network: the layers `(W_1, ..., W_L)` of the end-to-end matrix `A = W_L ... W_1`.

    A pytree whose leaves are the layers, so `jax.vmap`, `jax.jit` and `jax.tree.map` apply; after a
    `vmap` the layers carry leading batch axes, and `end_to_end` still works on them. `alpha * network`
    scales every layer.

    >>> network = sf.DeepLinearNetwork([[[1.0, 2.0]], [[3.0], [4.0]]])  # W_1 of shape (1, 2), W_2 of shape (2, 1)
    >>> network.end_to_end().tolist()
    [[3.0, 6.0], [4.0, 8.0]]
    >>> (2 * network).end_to_end()[0].tolist()
    [12.0, 24.0]

    Args:
        layers: `W_1` first; layer l has shape (n_l, n_{l-1}); float64. A single one is A itself, the convex case.

    Raises:
        ValueError: no layer, layers that do not chain, or layers that are not float64.
    """

    layers: tuple[Shaped[Array, "..."], ...]

    # numpy scalars would otherwise try to broadcast themselves over the network
    __array_ufunc__ = None

    def __init__(self, layers: Any):
        listed = isinstance(layers, Iterable) and getattr(layers, "ndim", 1) > 0
        if not listed or isinstance(layers, str | bytes | dict):
            refuse("layers", "be a list of matrices", layers, "W_1 first: sf.DeepLinearNetwork([first, last]).")
        layers = tuple(as_float64(f"layers[{index}]", layer) for index, layer in enumerate(layers))
        check_layers(layers)
        self.layers = tuple(map(on_device, layers))

    @property
    def depth(self) -> int:
        """Number of layers L."""
        return len(self.layers)

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Widths (n_1, ..., n_{L-1}) of the hidden spaces."""
        return tuple(layer.shape[-2] for layer in self.layers[:-1])

    @property
    def width(self) -> int | tuple[int, ...]:
        """The common hidden width w of a rectangular network, else the tuple of hidden widths: () of one layer."""
        widths = self.hidden_widths
        return widths[0] if len(set(widths)) == 1 else widths

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, n_in) of the end-to-end matrix."""
        return self.layers[-1].shape[-2], self.layers[0].shape[-1]

    @property
    def num_parameters(self) -> int:
        """Number of parameters P of one network (batch axes not counted)."""
        return num_parameters((self.layers[0].shape[-1], *(layer.shape[-2] for layer in self.layers)))

    @property
    def parts(self) -> Layered:
        """First layer, hidden ones, last layer."""
        return Layered(self.layers[0], self.layers[1:-1], self.layers[-1] if self.depth > 1 else None)

    def end_to_end(self) -> Float[Array | np.ndarray, "*batch n_out n_in"]:
        """The end-to-end matrix `W_L ... W_1`, multiplied from its thinner side: O(L w^2 min(n_in, n_out))."""
        n_out, n_in = self.shape
        layers = self.layers if n_in <= n_out else self.layers[::-1]
        product = layers[0]
        for layer in layers[1:]:
            product = layer @ product if n_in <= n_out else product @ layer
        return product

    @never_raises
    def _repr_html_(self) -> str:
        """The card, for notebooks; of many networks, along batch axes, that of their shapes."""
        n_out, n_in = self.shape
        batch = tuple(self.layers[0].shape[:-2])
        rows = [
            ("depth", str(self.depth)),
            ("hidden widths", ", ".join(map(str, self.hidden_widths)) or "none, of a single layer"),
            ("parameters", str(self.num_parameters)),
        ]
        if batch:
            rows.append(("networks", f"{math.prod(batch)}, along axes of shape {batch}"))
        else:
            rows += self._norms()
        return card(f"DeepLinearNetwork {n_out}x{n_in}", rows)

    def _norms(self) -> list[tuple[str, str]]:
        """Lines of the card: sizes of the layers and of A, and how far the layers are from balanced."""
        layers = [np.asarray(layer) for layer in self.layers]
        sizes = [float(np.linalg.norm(layer)) for layer in layers]
        rows = [("|W_l|_F", ", ".join(f"{size:.3g}" for size in sizes[:8]) + ", ..." * (len(sizes) > 8))]
        if max(max(layer.shape) for layer in layers) > MOST_IN_CARDS or len(layers) > MOST_IN_CARDS:
            return rows
        values = np.linalg.svd(reduce(lambda low, high: high @ low, layers), compute_uv=False)[:5]
        rows.append(("A", "largest singular values " + ", ".join(f"{value:.3g}" for value in values)))
        apart = [np.linalg.norm(low @ low.T - high.T @ high) for low, high in itertools.pairwise(layers)]
        if apart:
            share = max(apart) / (max(sizes) ** 2 or 1.0)
            rows.append(("balanced", "yes" if share < BALANCED else f"to {share:.2g} of the largest |W_l|^2"))
        return rows

    def __rmul__(self, alpha: Any) -> "DeepLinearNetwork":
        """`alpha * theta`: every layer times the initialisation scale alpha (nonzero and finite)."""
        if not jnp.isscalar(alpha) and getattr(alpha, "ndim", None) != 0:
            return NotImplemented
        if is_concrete(alpha):
            check_scale(alpha)
        if is_concrete(alpha) and is_concrete(self.layers[0]):
            # numpy compiles nothing for a new shape
            return jax.tree.map(lambda layer: on_device(np.asarray(alpha) * np.asarray(layer)), self)
        return jax.tree.map(lambda layer: alpha * layer, self)

    __mul__ = __rmul__


def check_scale(alpha: Any) -> None:
    """Refuse a scale of a start that is not finite, or zero (concrete ones only).

    Raises:
        ValueError: with the reason.
    """
    if not is_concrete(alpha):
        return
    found = number(example="0.1")("alpha", alpha)
    require(math.isfinite(found), "alpha", "be finite and nonzero", found, "For example 0.1 * network.")
    remedy = "At alpha = 0 the network sits on the saddle at the origin forever."
    require(found != 0, "alpha", "be finite and nonzero", found, remedy)


def check_layers(layers: Sequence[Any], least: int = 1) -> None:
    """Refuse layers, dense or sparse, that are no chain of matrices in float64.

    Args:
        layers: from the input on.
        least: how many there must be.

    Raises:
        ValueError: which of them, with value and remedy.
    """
    words = {1: "one matrix", 2: "two matrices"}[least]
    require(len(layers) >= least, "layers", f"hold at least {words}", f"{len(layers)} layers")
    for index, layer in enumerate(layers, start=1):
        require_float64(f"layers[{index - 1}]", layer)
        require(layer.ndim == 2, f"layers[{index - 1}]", "be a matrix", f"shape {layer.shape}")
    for index, (first, second) in enumerate(itertools.pairwise(layers), start=1):
        require(
            second.shape[1] == first.shape[0],
            f"layers[{index}]",
            f"have {first.shape[0]} columns, the rows of layers[{index - 1}]",
            f"shape {second.shape}",
            "Layers are listed from the input: W_1 first.",
        )


def num_parameters(sizes: Sequence[int]) -> int:
    """Number of parameters of a network whose spaces have the sizes (n_0, ..., n_L)."""
    return sum(below * above for below, above in itertools.pairwise(sizes))


def layer_sizes(depth: int, width: Width | None, shape: tuple[int, int], least: int = 1) -> tuple[int, ...]:
    """The sizes (n_0, ..., n_L) of all spaces, input first, after checking the arguments.

    Args:
        depth: number of layers L.
        width: hidden width, or the L - 1 of them; of a single layer it says nothing, and may be None.
        shape: (n_out, n_in).
        least: layers at least.
    """
    require_integer("depth", depth, least, "Wider and narrower networks have two layers at least." * (least > 1))
    if depth == 1:
        width = ()
    require(width is not None, "width", "be given for two layers and more", None, "For example width=10.")
    widths: tuple[Any, ...] = tuple(width) if isinstance(width, Sequence) else (width,) * (depth - 1)
    require(
        len(widths) == depth - 1,
        "width",
        f"be one integer or {depth - 1} of them for depth {depth}",
        width,
        "There is one hidden space between any two layers.",
    )
    for hidden in widths:
        require_integer("width", hidden, 1)
    require(len(shape) == 2, "shape", "be (n_out, n_in)", shape)
    for size in shape:
        require_integer("shape", size, 1, "shape is (n_out, n_in), both positive.")
    n_out, n_in = shape
    return (int(n_in), *map(int, widths), int(n_out))
