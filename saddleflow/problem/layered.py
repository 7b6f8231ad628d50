"""What runs over the layers of a network: written once for layers side by side and for equal ones in a stack.

Compiled, a loop over layers side by side is unrolled: each layer has operations of its own, and XLA's time grows with
the depth. Equal hidden layers, stacked along a leading axis, are one operation in a loop of the compiled program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

# One thing for every hidden layer, from the input on: a tuple, or an array with a leading axis of layers.
Hidden = tuple[Any, ...] | Shaped[Array, "hidden ..."]

# Which layers of a stack are there; None: all of them.
Active = Bool[Array | np.ndarray, " hidden"] | None


class Layered(NamedTuple):
    """One thing for every layer of a network; of a single layer `last` is None."""

    first: Any
    hidden: Hidden
    last: Any

    def one_by_one(self) -> tuple[Any, ...]:
        """The things, from the input on."""
        return self.first, *self.hidden, *(() if self.last is None else (self.last,))


class StackedNetwork(eqx.Module):
    """A deep linear network with equal hidden layers in a stack, for compiled programs.

    Layers that are not there (see `Active`) lie at the end of the stack; they are zero and passed over.
    """

    first: Float[Array, "*batch width n_in"]
    hidden: Float[Array, "*batch hidden width width"]
    last: Float[Array, "*batch n_out width"]

    @property
    def depth(self) -> int:
        """Number of layers, those that are not there included."""
        return self.hidden.shape[-3] + 2

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Widths of the hidden spaces."""
        return (self.first.shape[-2],) * (self.depth - 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, n_in) of the end-to-end matrix."""
        return self.last.shape[-2], self.first.shape[-1]

    @property
    def num_parameters(self) -> int:
        """Number of entries, those of layers that are not there included."""
        width, (n_out, n_in) = self.first.shape[-2], self.shape
        return width * (n_in + n_out + (self.depth - 2) * width)

    @property
    def parts(self) -> Layered:
        """First layer, hidden ones, last layer."""
        return Layered(self.first, self.hidden, self.last)


def fold(
    body: Callable[..., tuple[Any, tuple[Any, ...]]],
    carry: Any,
    *hidden: Hidden,
    active: Active = None,
    reverse: bool = False,
    outputs: int = 1,
) -> Any:
    """`carry, outputs = body(carry, *things)` from one hidden layer to the next.

    Args:
        body: of the carry and the things of a layer; its outputs are a tuple of arrays.
        carry: before the first layer.
        *hidden: things of every hidden layer.
        active: layers of a stack that are there; the others leave the carry alone, their outputs are zero.
        reverse: from the output to the input.
        outputs: how many the body has.

    Returns:
        The carry after the last layer; then each output, for every hidden layer.
    """
    if isinstance(hidden[0], tuple):
        found = []
        for things in list(zip(*hidden, strict=True))[:: -1 if reverse else 1]:
            carry, out = body(carry, *things)
            found.append(out)
        found = found[::-1] if reverse else found
        return carry, *(zip(*found, strict=True) if found else ((),) * outputs)

    def step(carry, scanned):
        there, *things = scanned
        new, out = body(carry, *things)
        return (new, out) if active is None else (_where(there, new, carry), _or_zero(there, out))

    carry, found = jax.lax.scan(step, carry, (active, *hidden), reverse=reverse)
    return carry, *found


def each(function: Callable[..., Any], *hidden: Hidden, active: Active = None) -> Any:
    """The function of the things of every hidden layer, for every hidden layer; zero where a layer is not there.

    Args:
        function: of the things of a layer; an array, or a tuple of arrays for layers in a stack.
        *hidden: things of every hidden layer.
        active: layers of a stack that are there.
    """
    if isinstance(hidden[0], tuple):
        return tuple(function(*things) for things in zip(*hidden, strict=True))
    found = jax.vmap(function)(*hidden)
    return found if active is None else jax.vmap(_or_zero)(active, found)


def joined(parts: Layered) -> Shaped[Array, "layers ..."]:
    """Arrays of one shape, one for every layer, along a leading axis."""
    if isinstance(parts.hidden, tuple):
        return jnp.stack(parts.one_by_one())
    return jnp.concatenate([parts.first[None], parts.hidden, parts.last[None]])


def _where(there: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(there, a, b), new, old)


def _or_zero(there: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.where(there, x, jnp.zeros_like(x)), tree)
