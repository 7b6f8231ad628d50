"""Networks that grow neuron by neuron: the bookkeeping of greedy paths, all pure functions of arrays.

Stages run with some dead neurons, whose weights are exactly zero and stay so under the flow (an inclusion, see
`symmetry`): each width would be a compilation of its own.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saddleflow._backend.linalg import svd
from saddleflow.problem.network import DeepLinearNetwork, layer_sizes


def working_width(needed: int) -> int:
    """The width to run in: one of few, none below the number of neurons needed."""
    return 4 * 2 ** max(0, math.ceil(math.log2(needed / 4)))


def origin(shape: tuple[int, int], depth: int, width: int) -> DeepLinearNetwork:
    """The network of zeros."""
    sizes = layer_sizes(depth, width, shape)
    return DeepLinearNetwork(jnp.zeros((rows, columns)) for rows, columns in zip(sizes[1:], sizes[:-1], strict=True))


def top_pair(gradient: Float[Array, "n_out n_in"]) -> tuple[Float[Array, " n_out"], Float[Array, " n_in"]]:
    """The top singular pair (u, v) of a gradient, signed so that the largest entry of u is positive."""
    left, _, right = svd(gradient)
    sign = jnp.where(left[jnp.argmax(jnp.abs(left[:, 0])), 0] < 0, -1.0, 1.0)
    return sign * left[:, 0], sign * right[0]


def add_neuron(
    network: DeepLinearNetwork,
    neuron: Int[Array, ""],
    size: Float[Array, ""],
    pair: tuple[Float[Array, " n_out"], Float[Array, " n_in"]],
) -> DeepLinearNetwork:
    """Give one dead neuron of every hidden space, named by its number, the weights `size * (-v^T, 1, ..., 1, u)`."""
    u, v = pair
    first, *middle, last = network.layers
    return DeepLinearNetwork(
        [
            first.at[neuron].set(-size * v),
            *(w.at[neuron, neuron].set(size) for w in middle),
            last.at[:, neuron].set(size * u),
        ]
    )


def kill(network: DeepLinearNetwork, num_live: Int[Array, ""]) -> DeepLinearNetwork:
    """Set all neurons but the first `num_live` of every hidden space to exactly zero."""
    live = jnp.arange(network.hidden_widths[0]) < num_live
    first, *middle, last = network.layers
    return DeepLinearNetwork([first * live[:, None], *(w * live * live[:, None] for w in middle), last * live])


def narrow(network: DeepLinearNetwork, width: int) -> DeepLinearNetwork:
    """Cut off all neurons but the first `width` of every hidden space; layers may carry leading axes."""
    first, *middle, last = network.layers
    layers = (first[..., :width, :], *(w[..., :width, :width] for w in middle), last[..., :width])
    return eqx.tree_at(lambda n: n.layers, network, layers)
