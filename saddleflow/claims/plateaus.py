"""The length of the first plateau in networks of any width, reduced and drawn in law."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from saddleflow import flow
from saddleflow.costs import MatrixCompletion
from saddleflow.network import DeepLinearNetwork
from saddleflow.reduced_law import SampledNetwork, sample_reduced

SHAPE, RTOL, LEVELS = (5, 5), 1e-6, 6
SHARE = 0.6  # the plateau ends where the train cost has fallen to this share of its value at A = 0


class Below(eqx.Module):
    """A stop: the cost has fallen to a level."""

    cost: MatrixCompletion
    level: Float[Array, ""]

    def __call__(self, time: Float[Array, ""], network: DeepLinearNetwork) -> Bool[Array, ""]:
        """Whether to stop."""
        del time
        return self.cost(network.end_to_end()) < self.level


@cache
def plateau_end() -> Below:
    """Where the first plateau ends, on the task: matrix completion, 5 x 5 of rank 3."""
    cost = MatrixCompletion.random(jax.random.key(3), shape=SHAPE)
    return Below(cost, SHARE * cost(jnp.zeros(SHAPE)))


def lane(depth: int, width: int, gamma: float, seed: int, levels: int = LEVELS) -> SampledNetwork:
    """The start of one flow."""
    key = jax.random.key(seed)
    return sample_reduced(key, depth=depth, width=width, shape=SHAPE, gamma=gamma, levels=levels)


def first_plateaus(
    depth: int, gamma: float, width: int, seeds: Iterable[int], levels: int = LEVELS
) -> Float[np.ndarray, " seeds"]:
    """Times at which the train cost has fallen to 60 % of its value at A = 0, for every seed.

    Args:
        depth: number of layers L.
        gamma: exponent of the start's variance.
        width: width of the full networks, 10 to 10^12.
        seeds: draw the starts.
        levels: levels of the closure that stands for the full network; see `sample_reduced`.
    """
    starts = [lane(depth, width, gamma, seed, levels).network for seed in seeds]
    end = plateau_end()
    how: dict[str, Any] = {"rtol": RTOL, "stop": end, "max_saves": 1000}
    prepared = [flow.prepare(end.cost, network, **how) for network in starts]
    batch, numbers = (
        jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)
        for trees in (starts, [settings for settings, _ in prepared])
    )
    return np.asarray(_crossings(batch, numbers, prepared[0][1], end))


@eqx.filter_jit
def _crossings(networks, settings, method, end):
    """Times at which the cost falls to the level, linear within the last step, which ended below it."""

    def crossing(network, settings):
        state = flow.integrate(end.cost, network, settings, method)
        ends = state.num_rows - 2 + jnp.arange(2)
        before, after = jax.vmap(end.cost)(state.rows["end_to_end"][ends])
        early, late = state.rows["time"][ends]
        return early + (late - early) * (before - end.level) / (before - after)

    return jax.vmap(crossing)(networks, settings)
