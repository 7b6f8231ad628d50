"""Starts of deep linear networks: random layers of several laws, and factorisations of a matrix."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from saddleflow._backend import arguments as readers
from saddleflow._backend.arguments import MOST_DEPTH, integer, number, optional, real_numbers, sequence_of, takes
from saddleflow._backend.checks import as_float64, is_concrete, require, require_finite, require_positive
from saddleflow._backend.devices import check_room
from saddleflow._backend.random import normal_matrices
from saddleflow.problem.network import DeepLinearNetwork, Width, layer_sizes, num_parameters

# Newton's steps for the singular values of an imbalanced factorisation; it converges from above in a few.
NEWTON_STEPS = 80

# What the arguments of starts are.
SIZES = {"depth": integer(1, MOST_DEPTH), "width": optional(readers.width)}
RANDOM = SIZES | {"key": readers.key, "shape": readers.shape, "layer_scales": optional(sequence_of(number()))}
LAWS = {name: optional(number(example="1.5")) for name in ("gamma", "variance", "fan_in")}
FACTORISED = SIZES | {"imbalance": real_numbers}


@takes(**RANDOM, **LAWS)
def gaussian(
    key: PRNGKeyArray,
    *,
    depth: int,
    width: Width | None = None,
    shape: tuple[int, int],
    gamma: Any = None,
    variance: Any = None,
    fan_in: Any = None,
    layer_scales: Any = None,
) -> DeepLinearNetwork:
    """A random start with independent Gaussian entries `N(0, variance)`, where `variance = w^-gamma`.

    `gamma = 1 - 1/L` is the NTK parametrisation, `gamma = 1` mean-field, `gamma > 1` saddle-to-saddle
    (arXiv 2106.15933). One key draws one `theta_0`: `gamma` and `variance` only scale it, so a network
    with exponent gamma is `alpha * theta_0` of the one with gamma = 1, at alpha = w^(-(gamma - 1)/2).

    >>> start = sf.gaussian(jax.random.key(0), depth=3, width=100, shape=(10, 10), gamma=1.5)
    >>> print(f"{jnp.std(start.layers[1]):.4f}")  # 100^(-1.5 / 2) = 0.0316
    0.0320
    >>> lecun = sf.gaussian(jax.random.key(0), depth=3, width=100, shape=(10, 10), fan_in=1.0)
    >>> print(f"{jnp.std(lecun.layers[1]):.4f}")  # (1 / 100)^(1/2) = 0.1
    0.1012

    Args:
        key: `jax.random.key(seed)`.
        depth: number of layers L.
        width: hidden width w, or the L - 1 hidden widths (then gamma is not to be had); None for a single layer.
        shape: (n_out, n_in) of the end-to-end matrix, as a matrix has it.
        gamma: exponent of the variance in the width; finite and not negative.
        variance: the variance itself, instead of gamma; finite and positive.
        fan_in: c where layer l has the variance c / n_{l-1}, instead of gamma; finite and positive.
        layer_scales: L positive factors, on the layers from the input on; None: 1.

    Raises:
        ValueError: bad depth, width or shape; not exactly one of gamma, variance and fan_in; bad factors.
    """
    sizes = layer_sizes(depth, width, shape)
    scales = _deviations(sizes, width, gamma, variance, fan_in, layer_scales)
    return _scaled(scales, normal_matrices(key, _shapes(sizes)))


@takes(**RANDOM, **LAWS)
def uniform(
    key: PRNGKeyArray,
    *,
    depth: int,
    width: Width | None = None,
    shape: tuple[int, int],
    gamma: Any = None,
    variance: Any = None,
    fan_in: Any = None,
    layer_scales: Any = None,
) -> DeepLinearNetwork:
    """A random start with independent uniform entries, on [-b, b] with `b^2 = 3 variance`.

    PyTorch's default for linear layers is `fan_in=1/3`.

    >>> start = sf.uniform(jax.random.key(0), depth=3, width=100, shape=(10, 10), fan_in=1 / 3)
    >>> print(f"{jnp.abs(start.layers[1]).max():.3f}")  # b = (3 / 300)^(1/2) = 0.1
    0.100

    Args:
        key: `jax.random.key(seed)`.
        depth: number of layers L.
        width: as in `gaussian`.
        shape: (n_out, n_in) of the end-to-end matrix.
        gamma: exponent of the variance in the width.
        variance: the variance itself, instead of gamma.
        fan_in: c where layer l has the variance c / n_{l-1}, instead of gamma.
        layer_scales: L positive factors; None: 1.

    Raises:
        ValueError: as `gaussian`.
    """
    sizes = layer_sizes(depth, width, shape)
    scales = _deviations(sizes, width, gamma, variance, fan_in, layer_scales)
    keys = jax.random.split(key, depth)
    half = math.sqrt(3.0)
    return _scaled(
        scales,
        [jax.random.uniform(k, s, float, -half, half) for k, s in zip(keys, _shapes(sizes), strict=True)],
    )


@takes(**RANDOM, scale=number())
def orthogonal(
    key: PRNGKeyArray,
    *,
    depth: int,
    width: Width | None = None,
    shape: tuple[int, int],
    scale: Any = 1.0,
    layer_scales: Any = None,
) -> DeepLinearNetwork:
    """A random start with orthonormal rows or columns in every layer, uniformly distributed (Haar), times `scale`.

    All singular values of every layer are `scale`. Where all spaces are equally wide the start is balanced, and so
    are its hidden spaces wherever both layers beside them are square or widen towards them.

    >>> start = sf.orthogonal(jax.random.key(0), depth=3, width=10, shape=(10, 10), scale=0.1)
    >>> singular_values = jnp.linalg.svd(start.layers[0])[1]
    >>> print(f"{singular_values.min():.6f} {singular_values.max():.6f}")
    0.100000 0.100000

    Args:
        key: `jax.random.key(seed)`.
        depth: number of layers L.
        width: hidden width(s); None for a single layer.
        shape: (n_out, n_in) of the end-to-end matrix.
        scale: singular values of the layers; finite and positive.
        layer_scales: L positive factors on top, from the input on; None: 1.

    Raises:
        ValueError: bad depth, width, shape, or factors.
    """
    sizes = layer_sizes(depth, width, shape)
    return _scaled(_factors(scale, depth, layer_scales), map(_orthonormal, normal_matrices(key, _shapes(sizes))))


@takes(**(RANDOM | {"key": optional(readers.key)}), scale=number(), noise=number())
def identity(
    key: PRNGKeyArray | None = None,
    *,
    depth: int,
    width: Width | None = None,
    shape: tuple[int, int],
    scale: Any = 1.0,
    noise: Any = 0.0,
    layer_scales: Any = None,
) -> DeepLinearNetwork:
    """Identity layers times `scale`, with Gaussian noise: `W_l = scale (1 + noise N(0, 1))`.

    Layers that are not square have ones on their diagonal from the upper left on.

    >>> sf.identity(depth=3, width=2, shape=(2, 2), scale=0.1).end_to_end().tolist()
    [[0.001, 0.0], [0.0, 0.001]]
    >>> noisy = sf.identity(jax.random.key(0), depth=2, width=6, shape=(6, 6), scale=1e-2, noise=0.1)
    >>> print(f"{jnp.diag(noisy.layers[0]).mean():.4f}")
    0.0102

    Args:
        key: `jax.random.key(seed)`; needed where there is noise.
        depth: number of layers L.
        width: hidden width(s); None for a single layer.
        shape: (n_out, n_in) of the end-to-end matrix.
        scale: of all layers; finite and positive.
        noise: standard deviation of every entry's noise, in units of `scale`; finite and not negative.
        layer_scales: L positive factors on top, from the input on; None: 1.

    Raises:
        ValueError: bad depth, width, shape, factors or noise; noise without a key.
    """
    sizes = layer_sizes(depth, width, shape)
    if is_concrete(noise):
        number = float(noise)
        require(math.isfinite(number) and number >= 0, "noise", "be finite and not negative", number)
        require(number == 0 or key is not None, "key", "be given where there is noise", key, "jax.random.key(0)")
    layers: list[Any] = [np.eye(*size) for size in _shapes(sizes)]
    if key is not None:
        drawn = normal_matrices(key, _shapes(sizes))
        layers = [layer + noise * matrix for layer, matrix in zip(layers, drawn, strict=True)]
    return _scaled(_factors(scale, depth, layer_scales), layers)


@takes(**FACTORISED)
def balanced(matrix: Any, *, depth: int, width: Width | None = None, imbalance: Any = 0.0) -> DeepLinearNetwork:
    """A start that factorises a matrix, with `W_{l+1}^T W_{l+1} - W_l W_l^T = imbalance 1`; by default balanced.

    With `A = U diag(s) V^T` layer l is `diag(a_l)` between orthonormal frames, `a_{l+1}^2 - a_l^2 = imbalance` and
    `a_1 ... a_L = s` (for two layers the lambda-balanced starts of arXiv 2409.14623). Balanced layers have
    `a_l = s^(1/L)`, the least parameter norm of all factorisations, `|theta|^2 = L sum_i s_i^(2/L)`.

    >>> start = sf.balanced(1e-3 * np.eye(5), depth=2, width=5)
    >>> print(f"{start.layers[0][0, 0]:.4f} {start.layers[1][0, 0]:.4f}")  # both 1e-3^(1/2)
    0.0316 0.0316
    >>> lazier = sf.balanced(1e-3 * np.eye(5), depth=2, width=5, imbalance=10.0)
    >>> print(f"{sf.balancedness(lazier)[0][0, 0]:.4f}")
    10.0000

    Args:
        matrix: the end-to-end matrix, shape (n_out, n_in), float64 or a list of lists.
        depth: number of layers L.
        width: hidden width(s), none below the rank of the matrix; one number with an imbalance.
        imbalance: lambda, in units of a squared layer, or L - 1 of them, from the input on. A hidden space has no
            direction without a weight of `sqrt(lambda)` then, so that width <= n_out for positive ones, and
            width <= n_in for negative ones.

    Raises:
        ValueError: a hidden width below the rank; an imbalance that no network of that width has.
    """
    matrix = _as_matrix(matrix)
    sizes = layer_sizes(depth, width, (matrix.shape[0], matrix.shape[1]))
    if depth == 1:
        return DeepLinearNetwork([matrix])
    steps = _imbalances(imbalance, depth)
    u, s, vh = jnp.linalg.svd(matrix, full_matrices=bool(np.any(steps)))
    # the root would make 1e-4 of the 1e-16 that rounding leaves where a singular value is zero
    nonzero = s > s[0] * max(matrix.shape) * jnp.finfo(float).eps
    s = jnp.where(nonzero, s, 0.0)
    if is_concrete(s):
        rank = int(jnp.sum(nonzero))
        require(
            rank <= min(sizes[1:-1]),
            "width",
            f"be at least the rank of the matrix, {rank}",
            width,
            "A narrower network cannot represent the matrix.",
        )
    if np.any(steps):
        return _between_frames(u, _imbalanced(s, steps, sizes), vh, sizes)
    kept = min(len(s), *sizes[1:-1])
    return _between_frames(u, [s[:kept] ** (1 / depth)] * depth, vh, sizes)


@takes(**FACTORISED, values=real_numbers)
def aligned(
    matrix: Any,
    *,
    values: Any,
    depth: int,
    width: Width | None = None,
    imbalance: Any = 0.0,
) -> DeepLinearNetwork:
    """A start in the singular vectors of a matrix: `A = U diag(values) V^T`, factorised as `balanced` does.

    With the cost's own matrix (the target of a teacher) all modes evolve on their own (Saxe et al., arXiv 1312.6120).

    >>> start = sf.aligned(np.diag([3.0, 2.0, 1.0]), values=1e-3, depth=3, width=10)
    >>> singular_values = jnp.linalg.svd(start.end_to_end())[1]
    >>> print(f"{singular_values[0]:.6f} {singular_values[2]:.6f}")
    0.001000 0.001000

    Args:
        matrix: gives U and V, shape (n_out, n_in), float64 or a list of lists.
        values: singular values of A at the start: one, or min(n_out, n_in) of them, for the modes of the matrix from
            the largest on; finite and not negative.
        depth: number of layers L.
        width: hidden width(s), none below the number of values that are not zero.
        imbalance: as in `balanced`.

    Raises:
        ValueError: bad values; as `balanced`.
    """
    matrix = _as_matrix(matrix)
    count = min(matrix.shape)
    wanted = np.asarray(values, float) if is_concrete(values) else values
    require(wanted.shape in ((), (count,)), "values", f"be one number or {count} of them", wanted.shape)
    require_finite("values", wanted)
    require(not is_concrete(wanted) or bool(np.all(wanted >= 0)), "values", "not be negative", values)
    u, _, vh = jnp.linalg.svd(matrix, full_matrices=False)
    return balanced((u * wanted) @ vh, depth=depth, width=width, imbalance=imbalance)


def deviation(width: Width | None, gamma: Any, variance: Any) -> Float[Array, ""]:
    """Standard deviation of a Gaussian start's entries, from gamma or the variance, after checking them."""
    require(
        (gamma is None) != (variance is None),
        "gamma, variance",
        "be given one and not both",
        (gamma, variance),
        "Write gamma=..., which means variance = width ** -gamma, or variance=...",
    )
    if variance is None:
        one = isinstance(width, int | np.integer) or (width is not None and len(set(width)) == 1)
        remedy = "Give `variance` for unequal widths, and where there is none."
        require(one, "gamma", "come with one common hidden width", width, remedy)
        require_finite("gamma", gamma)
        if is_concrete(gamma):
            require(gamma >= 0, "gamma", "not be negative", gamma)
        hidden = width[0] if isinstance(width, Sequence) else width
        return jnp.asarray(hidden, float) ** (-jnp.asarray(gamma, float) / 2)
    require_positive("variance", variance)
    return jnp.sqrt(jnp.asarray(variance, float))


def _deviations(
    sizes: tuple[int, ...], width: Width | None, gamma: Any, variance: Any, fan_in: Any, layer_scales: Any
) -> list[Any]:
    """Standard deviation of the entries of every layer."""
    depth = len(sizes) - 1
    if fan_in is None:
        return _factors(deviation(width, gamma, variance), depth, layer_scales)
    both = gamma is None and variance is None
    require(both, "fan_in", "not be given together with gamma or variance", (gamma, variance))
    require_positive("fan_in", fan_in)
    root = jnp.sqrt(jnp.asarray(fan_in, float))
    return [
        factor / math.sqrt(below) for factor, below in zip(_factors(root, depth, layer_scales), sizes, strict=False)
    ]


def _factors(scale: Any, depth: int, layer_scales: Any) -> list[Any]:
    """What each layer is multiplied by, after checking it."""
    require_positive("scale", scale)
    if layer_scales is None:
        return [scale] * depth
    require(len(layer_scales) == depth, "layer_scales", f"hold {depth} numbers, one per layer", layer_scales)
    for index, factor in enumerate(layer_scales):
        require_positive(f"layer_scales[{index}]", factor)
    return [scale * factor for factor in layer_scales]


def _shapes(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """The shapes of the layers, from the input on, if they fit the memory."""
    remedy = "Wide random networks are drawn by sf.sample_reduced."
    check_room("width", sizes[1:-1], 8 * num_parameters(sizes), remedy)
    return list(zip(sizes[1:], sizes[:-1], strict=True))


def _scaled(scales: Sequence[Any], matrices: Any) -> DeepLinearNetwork:
    """Layers times their factors; in numpy, where that can be, which compiles nothing and rounds the same."""
    layers = []
    for scale, matrix in zip(scales, matrices, strict=True):
        concrete = is_concrete(scale) and is_concrete(matrix)
        layers.append(np.asarray(scale) * np.asarray(matrix) if concrete else scale * matrix)
    return DeepLinearNetwork(layers)


def _orthonormal(matrix: Float[Any, "rows columns"]) -> Float[Any, "rows columns"]:
    """Orthonormal rows or columns, Haar distributed where the matrix is standard normal (Mezzadri 2007)."""
    xp: Any = np if is_concrete(matrix) else jnp
    wide = matrix.shape[0] < matrix.shape[1]
    frame, triangle = xp.linalg.qr(matrix.T if wide else matrix)
    frame = frame * xp.sign(xp.diagonal(triangle))
    return frame.T if wide else frame


def _as_matrix(matrix: Any) -> Float[Array, "n_out n_in"]:
    matrix = as_float64("matrix", matrix)
    require(
        matrix.ndim == 2,
        "matrix",
        "be a matrix",
        f"shape {matrix.shape}",
        "Of a vector take vector[None] or vector[:, None].",
    )
    require_finite("matrix", matrix)
    return jnp.asarray(matrix)


def _imbalances(imbalance: Any, depth: int) -> Float[np.ndarray, " spaces"]:
    """The imbalance at every hidden space."""
    steps = np.asarray(imbalance, float)
    require(steps.shape in ((), (depth - 1,)), "imbalance", f"be one number or {depth - 1} of them", imbalance)
    require_finite("imbalance", steps)
    return np.broadcast_to(steps, (depth - 1,))


def _imbalanced(
    values: Float[Array, " modes"], steps: Float[np.ndarray, " spaces"], sizes: tuple[int, ...]
) -> list[Float[Array, " width"]]:
    """Singular values of every layer, a mode each, for given ones of A: `prod_l (x + c_l) = s^2`, c_l known.

    Raises:
        ValueError: several widths, or modes that the shape has no room for.
    """
    n_in, *widths, n_out = sizes
    require(len(set(widths)) == 1, "width", "be one number where there is an imbalance", tuple(widths))
    width, sums = widths[0], np.concatenate([[0.0], np.cumsum(steps)])
    ends = [(n_in, sums[0]), (n_out, sums[-1])]
    # a direction beyond n_in has no weight in the first layer, beyond n_out none in the last
    for size, least in ends:
        fits = size >= width or bool(np.all(sums >= least))
        side, sign = ("n_in", "positive") if size == n_in else ("n_out", "negative")
        remedy = f"Take width <= {side}, or {sign} imbalances." if n_in != n_out else "Take a smaller width."
        expected = f"be possible with a hidden width of {width} and {side} = {size}"
        require(fits, "imbalance", expected, steps.tolist(), remedy)
    both = width <= max(n_in, n_out) or sums[0] == sums[-1]
    require(both, "imbalance", f"sum to zero where the width {width} exceeds n_in and n_out", steps.tolist())
    offsets = sums - sums.min()
    count = min(len(values), width)
    shared = _least_squares_of_product(values[:count], offsets)
    squares = shared[:, None] + offsets
    missing = sums[0] if n_in < n_out else sums[-1]
    rest = jnp.broadcast_to(jnp.asarray(np.maximum(sums - missing, 0.0)), (width - count, len(sums)))
    return list(jnp.sqrt(jnp.concatenate([squares, rest])).T)


def _least_squares_of_product(
    values: Float[Array, " modes"], offsets: Float[np.ndarray, " layers"]
) -> Float[Array, " modes"]:
    """The y >= 0 with `prod_l (y + d_l) = s^2` for each s, d_l >= 0 given, one of them 0.

    Newton's method in log y from `s^(2/L)`, above the root: the logarithm of the product is convex and rises there.
    """
    depth, safe = len(offsets), jnp.where(values > 0, values, 1.0)
    aim, apart = 2 * jnp.log(safe), jnp.asarray(offsets)

    def newton(_, log_y):
        sums = jnp.exp(log_y)[:, None] + apart
        slope = jnp.sum(jnp.exp(log_y)[:, None] / sums, axis=1)
        return log_y - (jnp.sum(jnp.log(sums), axis=1) - aim) / slope

    log_y = jax.lax.fori_loop(0, NEWTON_STEPS, newton, aim / depth)
    return jnp.where(values > 0, jnp.exp(log_y), 0.0)


def _between_frames(
    u: Float[Array, "n_out _"],
    roots: Sequence[Float[Array, " _"]],
    vh: Float[Array, "_ n_in"],
    sizes: tuple[int, ...],
) -> DeepLinearNetwork:
    """Layers that are diagonal between the frames U and V, and the hidden spaces' own axes."""
    left, right = (min(len(roots[0]), size) for size in (u.shape[1], vh.shape[0]))
    first = roots[0][:right, None] * vh[:right]
    last = u[:, :left] * roots[-1][:left]
    return DeepLinearNetwork(
        jnp.zeros((rows, columns)).at[: block.shape[0], : block.shape[1]].set(block)
        for block, rows, columns in zip(
            [first, *map(jnp.diag, roots[1:-1]), last], sizes[1:], sizes[:-1], strict=True
        )
    )
