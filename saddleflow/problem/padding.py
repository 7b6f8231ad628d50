"""Padding: networks of nearby widths and depths brought to a common size, so that one compiled program serves them.

Dead neurons, and layers that are passed over, leave the flow of the others exactly as it was (arXiv 2106.15933: the
inclusion of a network into a wider one commutes with the flow). What counts entries, or averages over them, counts
the real ones only.
"""

import itertools
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saddleflow._backend.arrays import on_device
from saddleflow.problem.layered import Active, StackedNetwork
from saddleflow.problem.network import DeepLinearNetwork

# Sizes that widths and numbers of rows, or depths, are padded to: so many in every octave. (A layer that is passed
# over costs as much as one that is there.) Wide networks, whose steps take longer than compiling, grow by less.
PER_OCTAVE, DEPTHS_PER_OCTAVE = 4, 2
WIDE, WIDE_PER_OCTAVE = 64, 8

# From so many layers on equal hidden layers are stacked: shallower networks run faster side by side.
MIN_STACKED = 6


class Padding(eqx.Module):
    """What is real in a padded network.

    Attributes:
        widths: of the hidden spaces, from the input on.
        depth: number of layers.
        active: which layers of a stack are there; None: layers are side by side.
        num_parameters: number of parameters.
    """

    widths: Int[Array | np.ndarray, " spaces"]
    depth: Int[Array | np.ndarray, ""]
    active: Active
    num_parameters: Float[Array | np.ndarray, ""]

    def mask(self, network: Any) -> Any:
        """One where a padded network has a real entry, zero elsewhere."""
        n_out, n_in = network.shape
        if isinstance(network, StackedNetwork):
            real = jnp.arange(network.first.shape[0]) < self.widths[0]
            inner = jnp.asarray(self.active)[:, None, None] & real[:, None] & real
            masks = real[:, None] & jnp.ones(n_in, bool), inner, jnp.ones(n_out, bool)[:, None] & real
            return StackedNetwork(*(mask.astype(float) for mask in masks))
        rows = [jnp.arange(width) < real for width, real in zip(network.hidden_widths, self.widths, strict=True)]
        ends = [jnp.ones(n_in, bool), *rows, jnp.ones(n_out, bool)]
        return DeepLinearNetwork((above[:, None] & below).astype(float) for below, above in itertools.pairwise(ends))


def active_of(padding: Padding | None) -> Active:
    """Which layers of a stack are there; None where nothing is padded."""
    return None if padding is None else padding.active


def padded_size(size: int, per_octave: int = PER_OCTAVE) -> int:
    """The size that a width or a number of rows is padded to: the next of so many in its octave."""
    step = max(2 ** math.ceil(math.log2(max(size, 1))) // (2 * per_octave), 1)
    return -(-size // step) * step


def padded_width(width: int, ends: int) -> int:
    """The width that a hidden space is padded to.

    It stays on its side of `n_in + n_out`, on which the coordinates of the solver depend.
    """
    size = padded_size(width, PER_OCTAVE if width <= WIDE else WIDE_PER_OCTAVE)
    return size if width > ends else min(size, ends)


def padded(network: DeepLinearNetwork, pad: bool = True) -> tuple[Any, Padding | None]:
    """A network as compiled programs take it: padded, and in a stack where it is deep.

    Args:
        network: of concrete layers.
        pad: False: no neuron and no layer is added.

    Returns:
        The layers, in numpy, and what is real among them; (the network, None) where nothing changes.
    """
    n_out, n_in = network.shape
    widths = network.hidden_widths
    sizes = [padded_width(w, n_in + n_out) for w in widths] if pad else list(widths)
    stacked = network.depth >= MIN_STACKED and len(set(widths)) == 1
    if not pad and not stacked:
        return network, None
    layers = [np.asarray(layer) for layer in network.layers]
    count = len(layers) - 2
    kept = Padding(
        widths=np.asarray(widths, int),
        depth=np.asarray(network.depth),
        active=None,
        num_parameters=np.asarray(float(network.num_parameters)),
    )
    if not stacked and sizes == list(widths):
        return network, kept
    if not stacked:
        spaces = (n_in, *sizes, n_out)
        return DeepLinearNetwork(
            _grown(layer, (rows, columns))
            for layer, rows, columns in zip(layers, spaces[1:], spaces[:-1], strict=True)
        ), kept
    size, capacity = sizes[0], padded_size(count, DEPTHS_PER_OCTAVE) if pad else count
    hidden = np.zeros((capacity, size, size))
    for place, layer in enumerate(layers[1:-1]):
        hidden[place] = _grown(layer, (size, size))
    ends = _grown(layers[0], (size, n_in)), _grown(layers[-1], (n_out, size))
    kept = eqx.tree_at(
        lambda p: (p.widths, p.active),
        kept,
        (np.full(capacity + 1, widths[0]), np.arange(capacity) < count),
        is_leaf=lambda x: x is None,
    )
    return StackedNetwork(on_device(ends[0]), on_device(hidden), on_device(ends[1])), kept


def unpadded(network: Any, like: DeepLinearNetwork) -> DeepLinearNetwork:
    """A padded network, or a batch of them, cut to the size of another.

    Args:
        network: padded, or not, of any number of batch axes.
        like: a network of the size asked for.
    """
    if isinstance(network, StackedNetwork):
        hidden = np.asarray(network.hidden)
        layers = [network.first, *(hidden[..., place, :, :] for place in range(like.depth - 2)), network.last]
    else:
        layers = network.layers
    cut = [
        np.asarray(layer)[..., : real.shape[0], : real.shape[1]]
        for layer, real in zip(layers, like.layers, strict=True)
    ]
    return eqx.tree_at(lambda n: n.layers, like, tuple(map(on_device, cut)))


def _grown(layer: Float[np.ndarray, "_ _"], shape: tuple[int, int]) -> Float[np.ndarray, "_ _"]:
    return np.pad(layer, [(0, new - old) for old, new in zip(layer.shape, shape, strict=True)])
