"""Deep linear networks: a pytree of layers, its products, and how to start one."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import (
    is_concrete,
    require,
    require_finite,
    require_float64,
    require_integer,
    require_positive,
)
from saddleflow._backend.random import normal_matrices
from saddleflow.problem.layered import Layered

Width = int | Sequence[int]


class DeepLinearNetwork(eqx.Module):
    """A deep linear network: the layers `(W_1, ..., W_L)` of the end-to-end matrix `A = W_L ... W_1`.

    A pytree whose leaves are the layers, so `jax.vmap`, `jax.jit` and `jax.tree.map` apply; after a
    `vmap` the layers carry leading batch axes, and `end_to_end` still works on them. `alpha * network`
    scales every layer.

    Args:
        layers: `W_1` first; layer l has shape (n_l, n_{l-1}); at least two; float64.

    Raises:
        ValueError: fewer than two layers, layers that do not chain, or layers that are not float64.
    """

    layers: tuple[Shaped[Array, "..."], ...]

    # numpy scalars would otherwise try to broadcast themselves over the network
    __array_ufunc__ = None

    def __init__(self, layers: Iterable[Any]):
        layers = tuple(layers)
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
        """The common hidden width w of a rectangular network, else the tuple of hidden widths."""
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
        return Layered(self.layers[0], self.layers[1:-1], self.layers[-1])

    def end_to_end(self) -> Float[Array | np.ndarray, "*batch n_out n_in"]:
        """The end-to-end matrix `W_L ... W_1`, multiplied from its thinner side: O(L w^2 min(n_in, n_out))."""
        n_out, n_in = self.shape
        layers = self.layers if n_in <= n_out else self.layers[::-1]
        product = layers[0]
        for layer in layers[1:]:
            product = layer @ product if n_in <= n_out else product @ layer
        return product

    def __rmul__(self, alpha: Any) -> "DeepLinearNetwork":
        """`alpha * theta`: every layer times the initialisation scale alpha (nonzero and finite)."""
        if not jnp.isscalar(alpha) and getattr(alpha, "ndim", None) != 0:
            return NotImplemented
        if is_concrete(alpha):
            require(
                math.isfinite(alpha) and alpha != 0,
                "alpha",
                "be finite and nonzero",
                float(alpha),
                "At alpha = 0 the network sits on the saddle at the origin forever.",
            )
        if is_concrete(alpha) and is_concrete(self.layers[0]):
            # numpy compiles nothing for a new shape
            return jax.tree.map(lambda layer: on_device(np.asarray(alpha) * np.asarray(layer)), self)
        return jax.tree.map(lambda layer: alpha * layer, self)

    __mul__ = __rmul__


def gaussian(
    key: PRNGKeyArray,
    *,
    depth: int,
    width: Width,
    shape: tuple[int, int],
    gamma: Any = None,
    variance: Any = None,
) -> DeepLinearNetwork:
    """A random start: every entry of every layer i.i.d. `N(0, variance)`, `variance = w^-gamma`.

    `gamma = 1 - 1/L` is the NTK parametrisation, `gamma = 1` mean-field, `gamma > 1` saddle-to-saddle
    (arXiv 2106.15933). One key draws one `theta_0`: `gamma` and `variance` only scale it, so a network
    with exponent gamma is `alpha * theta_0` of the one with gamma = 1, at alpha = w^(-(gamma - 1)/2).

    Args:
        key: `jax.random.key(seed)`.
        depth: number of layers L >= 2.
        width: hidden width w, or the L - 1 hidden widths (then give `variance`).
        shape: (n_out, n_in) of the end-to-end matrix, as a matrix has it.
        gamma: exponent of the variance in the width; finite and not negative.
        variance: the variance itself, instead of gamma; finite and positive.

    Raises:
        ValueError: bad depth, width or shape; not exactly one of gamma and variance.
    """
    sizes = layer_sizes(depth, width, shape)
    scale = deviation(width, gamma, variance)
    matrices = normal_matrices(key, list(zip(sizes[1:], sizes[:-1], strict=True)))
    if is_concrete(scale) and is_concrete(key):
        scale = np.asarray(scale)  # a product in numpy compiles nothing, and rounds the same
    return DeepLinearNetwork(scale * matrix for matrix in matrices)


def deviation(width: Width, gamma: Any, variance: Any) -> Float[Array, ""]:
    """Standard deviation of a Gaussian start's entries, from gamma or the variance, after checking them."""
    require(
        (gamma is None) != (variance is None),
        "gamma, variance",
        "be given one and not both",
        (gamma, variance),
        "gamma means variance = width ** -gamma.",
    )
    if variance is None:
        require(
            isinstance(width, int) or len(set(width)) == 1,
            "gamma",
            "come with one common hidden width",
            tuple(width) if not isinstance(width, int) else width,
            "Give `variance` for unequal widths.",
        )
        require_finite("gamma", gamma)
        if is_concrete(gamma):
            require(gamma >= 0, "gamma", "not be negative", gamma)
        hidden = width if isinstance(width, int) else width[0]
        return jnp.asarray(hidden, float) ** (-jnp.asarray(gamma, float) / 2)
    require_positive("variance", variance)
    return jnp.sqrt(jnp.asarray(variance, float))


def balanced(matrix: Float[Array, "n_out n_in"], *, depth: int, width: Width) -> DeepLinearNetwork:
    """The balanced factorisation of a matrix, which has the least parameter norm of all.

    With `A = U diag(s) V^T`, every layer is `diag(s)^(1/L)` between orthonormal frames, so that
    `|theta|^2 = L sum_i s_i^(2/L)` and `W_{l+1}^T W_{l+1} = W_l W_l^T`.

    Args:
        matrix: the end-to-end matrix, shape (n_out, n_in), float64.
        depth: number of layers L >= 2.
        width: hidden width(s), none below the rank of the matrix.

    Raises:
        ValueError: a hidden width below the rank.
    """
    matrix = jnp.asarray(matrix)
    require_float64("matrix", matrix)
    require(matrix.ndim == 2, "matrix", "be a matrix", f"shape {matrix.shape}")
    require_finite("matrix", matrix)
    sizes = layer_sizes(depth, width, (matrix.shape[0], matrix.shape[1]))
    u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
    kept = min(len(s), *sizes[1:-1])
    # the root would make 1e-4 of the 1e-16 that rounding leaves where a singular value is zero
    nonzero = s > s[0] * max(matrix.shape) * jnp.finfo(float).eps
    s = jnp.where(nonzero, s, 0.0)
    if is_concrete(s):
        rank = int(jnp.sum(nonzero))
        require(
            rank <= kept,
            "width",
            f"be at least the rank of the matrix, {rank}",
            width,
            "A narrower network cannot represent the matrix.",
        )
    root = s[:kept] ** (1 / depth)
    first = root[:, None] * vh[:kept]
    last = u[:, :kept] * root
    middle = [jnp.diag(root)] * (depth - 2)
    return DeepLinearNetwork(
        jnp.zeros((rows, columns)).at[: block.shape[0], : block.shape[1]].set(block)
        for block, rows, columns in zip([first, *middle, last], sizes[1:], sizes[:-1], strict=True)
    )


def check_layers(layers: Sequence[Any]) -> None:
    """Refuse layers, dense or sparse, that are no chain of at least two matrices in float64.

    Raises:
        ValueError: which of them, with value and remedy.
    """
    require(len(layers) >= 2, "layers", "hold at least two matrices (depth >= 2)", f"{len(layers)} layers")
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


def layer_sizes(depth: int, width: Width, shape: tuple[int, int]) -> tuple[int, ...]:
    """The sizes (n_0, ..., n_L) of all spaces, input first, after checking the arguments."""
    require_integer("depth", depth, 2, "A deep linear network has at least two layers.")
    widths = (width,) * (depth - 1) if not isinstance(width, Sequence) else tuple(width)
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
    return (n_in, *widths, n_out)
