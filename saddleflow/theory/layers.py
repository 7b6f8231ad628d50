r"""Lists of layers W_1, ..., W_L of NumPy arrays: their products, and what a cost's gradient makes of them.

The end-to-end matrix is A = W_L ... W_1. To first order it moves by J[dtheta] = sum_l M_l dW_l N_l, with
M_l = W_L ... W_{l+1} and N_l = W_{l-1} ... W_1, and the adjoint of J takes X to the layers M_l^T X N_l^T.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Float

from saddleflow._backend.checks import require
from saddleflow.theory.arrays import as_matrix

Layers = list[Float[np.ndarray, "_ _"]]


def as_layers(argument: str, layers: Sequence[np.ndarray]) -> Layers:
    """Return the layers in float64; refuse all but two or more finite matrices that chain, W_1 first."""
    require(len(layers) >= 2, argument, "hold at least two matrices", f"{len(layers)} of them")
    layers = [as_matrix(f"{argument}[{index}]", layer) for index, layer in enumerate(layers)]
    for index, (first, second) in enumerate(pairwise(layers), start=1):
        expected = f"have {first.shape[0]} columns, the rows of {argument}[{index - 1}]"
        require(second.shape[1] == first.shape[0], f"{argument}[{index}]", expected, f"shape {second.shape}")
    return layers


def products(layers: Layers) -> tuple[Layers, Layers]:
    """M_1, ..., M_L and N_1, ..., N_L: what stands left and right of each layer in the end-to-end matrix."""
    n_out, n_in = layers[-1].shape[0], layers[0].shape[1]
    below = list(accumulate(layers[:-1], lambda product, layer: layer @ product, initial=np.eye(n_in)))
    above = list(accumulate(layers[:0:-1], lambda product, layer: product @ layer, initial=np.eye(n_out)))
    return above[::-1], below


def pull_back(matrix: Float[np.ndarray, "n_out n_in"], above: Layers, below: Layers) -> Layers:
    """The layers M_l^T X N_l^T: with X = grad C(A), the gradient of the loss."""
    # Associated so that the product costs n_out w n_in and no more than the layer itself.
    return [left.T @ (matrix @ right.T) for left, right in zip(above, below, strict=True)]


def push_forward(changes: Layers, above: Layers, below: Layers) -> Float[np.ndarray, "n_out n_in"]:
    """The first-order change sum_l M_l dW_l N_l of the end-to-end matrix."""
    terms = [left @ (change @ right) for left, change, right in zip(above, changes, below, strict=True)]
    return np.sum(terms, axis=0)


def flatten(layers: Layers) -> Float[np.ndarray, "_"]:
    """All entries in one vector."""
    return np.concatenate([layer.ravel() for layer in layers])


def unflatten(flat: Float[np.ndarray, "_"], like: Layers) -> Layers:
    """The inverse of `flatten`, for layers of the shapes of `like`."""
    parts = np.split(flat, np.cumsum([layer.size for layer in like])[:-1])
    return [part.reshape(layer.shape) for part, layer in zip(parts, like, strict=True)]
