"""Theorem 1: how far a random start is from the minima and from the nearest saddle, as the width grows.

Both distances are those of points that were found, so they are bounds from above: they can refute "at most" and show
the exponent of a bound, but "at least" only in so far as nothing nearer was found.

The nearest minimum differs from theta_0 by `-E_l Lambda H_(l-1)^T` in layer l (Lagrange), an update like the flow's:
both stay in the same hidden directions, so that wide starts are drawn reduced.
"""

from collections.abc import Callable, Sequence
from functools import cache

import jax
import numpy as np

import saddleflow.theory as exact
from saddleflow.claims.ledger import Claim, Finding, Size, exponents
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.starts import gaussian
from saddleflow.width.sampled import sample_reduced

DEPTH, TARGET = 4, np.diag([3.0, 2.0, 1.0])
WIDTHS: dict[Size, tuple[int, ...]] = {
    "quick": (100, 1_000, 30_000, 1_000_000),
    "full": (10, 30, 100, 300, 1_000, 10_000, 100_000, 1_000_000),
}
SEEDS: dict[Size, int] = {"quick": 5, "full": 10}
# Wider starts are reduced; with two more levels of the closure distances change by at most 4e-3 of them (tests).
WIDEST_FULL, LEVELS = 300, 6
# Corrections of relative order w^-1/2, a third at w = 10, move an exponent fitted over five decades by about this.
SLACK = 0.05


@cache
def _measured(measure: Callable, gamma: float, size: Size) -> np.ndarray:
    """A distance for every seed and width: (seed, width)."""

    def layers(seed: int, width: int) -> list[np.ndarray]:
        return [np.asarray(layer) for layer in start(seed, width, gamma).layers]

    return np.array(
        [[measure(layers(seed, w), TARGET).distance for w in WIDTHS[size]] for seed in range(SEEDS[size])]
    )


@cache
def start(seed: int, width: int, gamma: float, levels: int = LEVELS) -> DeepLinearNetwork:
    """A random start, reduced where it is wide."""
    key, kind = jax.random.key(seed), {"depth": DEPTH, "width": width, "shape": TARGET.shape, "gamma": gamma}
    return gaussian(key, **kind) if width <= WIDEST_FULL else sample_reduced(key, **kind, levels=levels).network


def _findings(gammas: Sequence[float], size: Size) -> list[Finding]:
    findings = []
    for gamma in gammas:
        minima, saddle = exact.distance_exponents(DEPTH, gamma)
        for name, measure, (expected, kind) in (
            ("d_m", exact.distance_to_minima, minima),
            ("d_s", exact.distance_to_saddle, saddle),
        ):
            slopes = exponents(WIDTHS[size], _measured(measure, gamma, size))
            quantity = f"gamma={gamma:g}: exponent of {name} in w, {kind}"
            if kind == "O":
                findings.append(Finding.at_most(quantity, expected + SLACK, slopes, expected))
            elif kind == "Omega":
                findings.append(Finding.at_least(quantity, expected - SLACK, slopes, expected))
            else:
                findings.append(Finding.near(quantity, expected, slopes, SLACK))
    return findings


def lazy(size: Size) -> list[Finding]:
    """Gamma below 1."""
    return _findings((0.75, 0.875), size)


def mean_field(size: Size) -> list[Finding]:
    """Gamma at 1."""
    return _findings((1.0,), size)


def saddle_to_saddle(size: Size) -> list[Finding]:
    """Gamma above 1."""
    return _findings((1.5, 2.0), size)


def limits(size: Size) -> list[Finding]:
    """Prefactors in the widest networks."""
    width, findings = WIDTHS[size][-1], []
    gamma = 0.875
    nearest = _measured(exact.distance_to_minima, gamma, size)[:, -1]
    lazy_limit = np.linalg.norm(TARGET) / np.sqrt(DEPTH * width ** ((1 - gamma) * (DEPTH - 1)))
    name = f"gamma={gamma:g}, w={width}: d_m / (|A*| / sqrt(L w^((1-gamma)(L-1))))"
    # what enters is |A* - A_0|, A_0 with entries of deviation w^(((1-gamma) L - 1) / 2): .03 at w = 10^6
    findings.append(Finding.near(name, 1.0, nearest / lazy_limit, 0.05))
    nearest = _measured(exact.distance_to_saddle, gamma, size)[:, -1]
    name = f"gamma={gamma:g}, w={width}: d_s / w^((1-gamma)/2), a saddle that misses one mode"
    findings.append(Finding.near(name, np.sqrt(2), nearest / width ** ((1 - gamma) / 2), 0.02))
    gamma = 2.0
    nearest = _measured(exact.distance_to_minima, gamma, size)[:, -1]
    bound = exact.minimal_norm(TARGET, DEPTH)
    # the gap falls as w^((1-gamma)/2)
    name = f"gamma={gamma:g}, w={width}: d_m / |theta| of the least interpolant"
    findings.append(Finding.near(name, 1.0, nearest / bound, 2 * width ** ((1 - gamma) / 2)))
    nearest = _measured(exact.distance_to_saddle, gamma, size)[:, -1]
    name = f"gamma={gamma:g}, w={width}: d_s / w^((1-gamma)/2), the origin-like saddle, sqrt(2 r)"
    findings.append(Finding.near(name, np.sqrt(6), nearest / width ** ((1 - gamma) / 2), 0.02))
    return findings


CLAIMS: Sequence[Claim] = (
    Claim(
        "theorem-1-lazy",
        "gamma < 1: a random start is close to a minimum and far from all saddles (Theorem 1; upper bounds)",
        r"d_m = O(w^{-(1-\gamma)(L-1)/2}), \quad d_s = \Omega(w^{(1-\gamma)/2})",
        "recalled",
        lazy,
    ),
    Claim(
        "theorem-1-mean-field",
        "gamma = 1: a random start is at a distance of order one from minima and saddles (Theorem 1; upper bounds)",
        r"d_m = \Theta(1), \quad d_s = \Theta(1)",
        "recalled",
        mean_field,
    ),
    Claim(
        "theorem-1-saddle",
        "gamma > 1: a random start is close to a saddle and far from all minima (Theorem 1; upper bounds)",
        r"d_m = \Omega(1), \quad d_s = O(w^{-(\gamma-1)/2})",
        "recalled",
        saddle_to_saddle,
    ),
    Claim(
        "distance-limits",
        "The distances to minima and saddles in wide networks, with their prefactors",
        r"\gamma < 1: d_m \sim \frac{\|A^*\|}{\sqrt{L w^{(1-\gamma)(L-1)}}}, d_s \sim \sqrt{2}\, w^{(1-\gamma)/2}; "
        r"\quad \gamma > 1: d_m \sim \sqrt{L \sum_i s_i^{2/L}}, d_s \sim \sqrt{2 r}\, w^{(1-\gamma)/2}",
        "ours",
        limits,
    ),
)
