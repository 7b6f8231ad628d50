"""The symmetries of a deep linear network and what they conserve.

Rotating the hidden spaces, or adding dead neurons, changes neither the end-to-end matrix nor any
distance between networks, so both commute with the gradient flow (arXiv 2106.15933, recalled;
docs/theory.md, section 1).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saddleflow._backend.arguments import optional, sequence_of, takes
from saddleflow._backend.arguments import width as hidden_width
from saddleflow._backend.checks import as_float64, is_concrete, require
from saddleflow.problem import readers
from saddleflow.problem.network import DeepLinearNetwork, Width, layer_sizes


@takes(network=readers.network, rotations=sequence_of(as_float64, "[matrix]"))
def rotate(network: DeepLinearNetwork, rotations: Any) -> DeepLinearNetwork:
    """Rotate every hidden space: `(O_1 W_1, O_2 W_2 O_1^T, ..., W_L O_{L-1}^T)`.

    >>> network = sf.gaussian(jax.random.key(0), depth=2, width=2, shape=(3, 3), gamma=1.0)
    >>> turned = sf.rotate(network, [np.array([[0.0, -1.0], [1.0, 0.0]])])
    >>> bool(jnp.allclose(turned.end_to_end(), network.end_to_end()))
    True

    Args:
        network: the network.
        rotations: L - 1 orthogonal matrices, the l-th of shape (n_l, n_l).

    Raises:
        ValueError: a wrong number, shape, or a matrix that is not orthogonal to 1e-8.
    """
    widths = network.hidden_widths
    require(
        len(rotations) == len(widths),
        "rotations",
        f"hold {len(widths)} matrices, one a hidden space",
        f"{len(rotations)} matrices",
    )
    for index, (rotation, size) in enumerate(zip(rotations, widths, strict=True)):
        name = f"rotations[{index}]"
        require(rotation.shape == (size, size), name, f"have shape {(size, size)}", rotation.shape)
        if is_concrete(rotation):
            defect = float(np.abs(np.asarray(rotation.T @ rotation) - np.eye(size)).max())
            require(defect < 1e-8, name, "be orthogonal", f"|O^T O - I| = {defect:.1e}")
    layers = list(network.layers)
    for index, rotation in enumerate(rotations):
        layers[index] = rotation @ layers[index]
        layers[index + 1] = layers[index + 1] @ rotation.T
    return DeepLinearNetwork(layers)


@takes(network=readers.network, width=optional(hidden_width))
def include(network: DeepLinearNetwork, width: Width) -> DeepLinearNetwork:
    """Include the network into wider ones, by dead neurons: zero rows and columns.

    >>> network = sf.gaussian(jax.random.key(0), depth=3, width=2, shape=(4, 4), gamma=1.0)
    >>> wider = sf.include(network, 5)
    >>> [layer.shape for layer in wider.layers]
    [(5, 4), (5, 5), (4, 5)]
    >>> bool(jnp.allclose(wider.end_to_end(), network.end_to_end()))
    True

    Args:
        network: the network.
        width: new hidden width(s), none below the present ones.

    Raises:
        ValueError: a width below the present one.
    """
    sizes = layer_sizes(network.depth, width, network.shape)
    require(
        all(new >= old for new, old in zip(sizes[1:-1], network.hidden_widths, strict=True)),
        "width",
        f"be at least the present width {network.width}",
        width,
        "An inclusion only adds dead neurons.",
    )
    # numpy compiles nothing for a new shape
    pad = np.pad if is_concrete(network.layers[0]) else jnp.pad
    return DeepLinearNetwork(
        pad(layer, ((0, rows - layer.shape[0]), (0, columns - layer.shape[1])))
        for layer, rows, columns in zip(network.layers, sizes[1:], sizes[:-1], strict=True)
    )


@takes(network=readers.network)
def balancedness(network: DeepLinearNetwork) -> tuple[Float[Array | np.ndarray, "*batch _ _"], ...]:
    """The conserved matrices `D_l = W_{l+1}^T W_{l+1} - W_l W_l^T`, l = 1, ..., L - 1.

    Constant along every gradient flow, whatever the cost; all zero for a balanced network.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> end = sf.gradient_flow(cost, start).network
    >>> before, after = sf.balancedness(start), sf.balancedness(end)
    >>> all(bool(jnp.allclose(one, other, atol=1e-6)) for one, other in zip(before, after))
    True
    """
    return tuple(
        above.mT @ above - below @ below.mT for below, above in zip(network.layers, network.layers[1:], strict=False)
    )


def balancedness_drift(start: DeepLinearNetwork, end: DeepLinearNetwork) -> Float[Array, ""] | float:
    """Largest change of a conserved matrix D_l, over the largest squared layer norm of start and end.

    A float, computed in numpy, which compiles nothing for a new shape; of traced networks a traced scalar.
    """
    traced = not (is_concrete(start.layers[0]) and is_concrete(end.layers[0]))
    xp = jnp if traced else np
    start, end = (jax.tree.map(xp.asarray, network) for network in (start, end))
    with np.errstate(over="ignore", invalid="ignore"):  # a run may end in an overflow
        changes = [xp.linalg.norm(b - a) for a, b in zip(balancedness(start), balancedness(end), strict=True)]
        changes = changes or [xp.zeros(())]  # of a single layer
        scale = xp.max(xp.stack([xp.sum(xp.square(layer)) for layer in (*start.layers, *end.layers)]))
        drift = xp.max(xp.stack(changes)) / xp.where(scale > 0, scale, 1.0)
    return drift if traced else float(drift)
