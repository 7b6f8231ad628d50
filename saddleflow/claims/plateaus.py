"""Claims on the length of the first plateau, in reduced networks of any width."""

from collections.abc import Iterable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import saddleflow.theory as exact
from saddleflow._backend.programs import compiled
from saddleflow.api import integrate
from saddleflow.claims.ledger import Claim, Finding, Size, exponents
from saddleflow.flow.graded import is_tiny
from saddleflow.problem.costs import MatrixCompletion
from saddleflow.width.sampled import SampledNetwork, sample_reduced

SHAPE, RTOL, LEVELS = (5, 5), 1e-6, 6
SHARE = 0.6  # the plateau ends where the train cost has fallen to this share of its value at A = 0


@cache
def task() -> tuple[MatrixCompletion, Float[Array, ""]]:
    """Matrix completion, 5 x 5 of rank 3, and the train cost at which the first plateau ends."""
    cost = MatrixCompletion.random(jax.random.key(3), shape=SHAPE)
    return cost, SHARE * cost(jnp.zeros(SHAPE))


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
    cost, level = task()
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    return np.asarray(_crossings(batch, cost, level, is_tiny(cost, starts[0])))


@compiled
def _crossings(networks, cost, level, graded):
    """Times at which the cost falls to the level."""

    def crossing(network):
        return integrate(cost, network, rtol=RTOL, target_cost=level, max_saves=4, graded=graded).end_time

    return jax.vmap(crossing)(networks)


WIDTHS: dict[Size, tuple[int, ...]] = {
    "quick": (1_000, 30_000, 1_000_000),
    "full": (1_000, 10_000, 100_000, 1_000_000),
}


def _lengths(depth: int, gamma: float, size: Size) -> np.ndarray:
    """Times to 60 % of the cost at A = 0, in reduced networks: (seed, width)."""
    seeds = range({"quick": 5, "full": 10}[size])
    return np.array([first_plateaus(depth, gamma, width, seeds) for width in WIDTHS[size]]).T


def plateau_lengths(size: Size) -> list[Finding]:
    """The first plateau: its exponent in w, and its spread over seeds."""
    widths, findings = WIDTHS[size], []
    for depth in (4,) if size == "quick" else (3, 4):
        for gamma in (1.0, 1.5, 2.0):
            lengths = _lengths(depth, gamma, size)
            expected = exact.plateau_exponent(depth, gamma)
            # corrections fall with w: a hundredth per decade is what w = 1000 leaves of them
            slopes = exponents(widths, lengths)
            findings.append(Finding.near(f"L={depth}, gamma={gamma:g}: exponent in w", expected, slopes, 0.02))
            findings.append(_spread(f"L={depth}, gamma={gamma:g}", lengths, widths))
    return findings


def _spread(case: str, lengths: np.ndarray, widths: Sequence[int]) -> Finding:
    """How the spread over seeds shrinks: as a sum over w neurons, w^(-1/2) over three decades."""
    spread = np.log(lengths).std(axis=0)
    name = f"{case}: spread of the log over seeds, w={widths[-1]:,} / w={widths[0]:,}"
    return Finding.at_most(name, 0.1, [spread[-1] / spread[0]], (widths[0] / widths[-1]) ** 0.5)


def lazy_times(size: Size) -> list[Finding]:
    """Below gamma = 1: the time in which the cost falls, against the kernel's rate."""
    findings = []
    for gamma in (0.75, 0.875):
        lengths = _lengths(4, gamma, size)
        slopes = exponents(WIDTHS[size], lengths)
        expected = exact.plateau_exponent(4, gamma)
        findings.append(Finding.near(f"L=4, gamma={gamma:g}: exponent in w", expected, slopes, 0.02))
        findings.append(_spread(f"L=4, gamma={gamma:g}", lengths, WIDTHS[size]))
    return findings


CLAIMS: Sequence[Claim] = (
    Claim(
        "plateau-width",
        "For gamma >= 1 the length of the first plateau is a power of the width, and its spread over seeds vanishes",
        r"T \sim w^{(\gamma-1)(L-2)/2}",
        "ours",
        plateau_lengths,
    ),
    Claim(
        "lazy-width",
        "Below gamma = 1 the time in which the cost falls to 60 % is proportional to the inverse rate of the kernel, "
        "and its spread over seeds vanishes",
        r"T \sim w^{(\gamma-1)(L-1)}",
        "ours",
        lazy_times,
    ),
)
