"""Claims on the three regimes: figures 2 and 3 in numbers, and the length of the first plateau against the width."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

import saddleflow.theory as exact
from saddleflow.claims.ledger import Claim, Finding, Size, exponents
from saddleflow.claims.plateaus import first_plateaus
from saddleflow.figures import f2_regimes, f3_transition

# The figures' own settings, and small ones.
FIGURE2: dict[Size, dict] = {
    "quick": {"widths": (10, 100), "num_seeds": 4, "num_times": 200},
    "full": {},
}
FIGURE3: dict[Size, dict] = {
    "quick": {"gammas": (0.75, 1.0, 1.5, 2.0), "widths": (10, 100), "num_seeds": 3},
    "full": {},
}


def training_regimes(size: Size) -> list[Finding]:
    """Figure 2: convergence in the NTK regime, length of the plateaus beyond it, spread over seeds."""
    data = f2_regimes.compute(**FIGURE2[size], progress=False)
    widths = [int(w) for w in data.width.values]
    wide = [w for w in widths if w >= 100]
    findings = []

    def over_seeds(gamma: float, width: int, measure) -> np.ndarray:
        curves = data.train_cost.sel(gamma=gamma, width=width).values
        return np.asarray([measure(data.time.values, curve) for curve in curves])

    for gamma in map(float, data.gamma.values):
        if gamma < 1:
            # a straight line in log cost; .97 leaves room for the modes' different rates
            for width in wide:
                fits = over_seeds(gamma, width, f2_regimes.log_rate)[:, 1]
                findings.append(Finding.at_least(f"gamma={gamma:g}, w={width}: R^2 of log cost in t", 0.97, fits))
        else:
            lengths = np.array([over_seeds(gamma, width, f2_regimes.plateau_length) for width in widths]).T
            expected = exact.plateau_exponent(f2_regimes.depth_of(data), gamma)
            # w = 10 and 100 are far from the limit of wide networks: a tenth, and the widest two
            slopes = exponents(widths[-2:], lengths[:, -2:])
            name = f"gamma={gamma:g}: exponent of the plateau in w, w={widths[-2:]}"
            findings.append(Finding.near(name, expected, slopes, 0.15))
        spread = [f2_regimes.spread(data, gamma, width) for width in widths]
        name = f"gamma={gamma:g}: spread over seeds, w={widths[-1]} / w={widths[0]}"
        findings.append(Finding.at_most(name, 1.0, [spread[-1] / spread[0]]))
    return findings


def transition(size: Size) -> list[Finding]:
    """Figure 3: rank and test error at convergence, from the NTK to the saddle-to-saddle regime."""
    data = f3_transition.compute(**FIGURE3[size], progress=False)
    error, rank = f3_transition.ends(data)
    low, high, width = float(data.gamma[0]), float(data.gamma[-1]), int(data.width.values[-1])
    full = min(data.singular_values.sizes["mode"], width)
    at = {"width": width}
    ntk, saddle = error.sel(gamma=low, **at).values, error.sel(gamma=high, **at).values
    findings = [
        Finding.at_least(f"gamma={low:g}, w={width}: rank / full rank", 0.9, _mean(rank.sel(gamma=low, **at)) / full),
        Finding.at_least(f"gamma={low:g}, w={width}: test error / zero predictor's", 0.9, ntk),
        Finding.at_most(f"gamma={high:g}, w={width}: test error / zero predictor's", 0.05, saddle),
        Finding.at_most(f"gamma={high:g}, w={width}: rank", 2.0, _mean(rank.sel(gamma=high, **at))),
    ]
    steep = f3_transition.steepness(data)
    name = f"width of the transition in gamma, w={width} / w={int(data.width.values[0])}"
    findings.append(Finding.at_most(name, 1.0, [steep[-1] / steep[0]]))
    spread = error.std("seed").where(data.gamma > 1, drop=True).mean("gamma").values
    name = f"spread of the test error beyond gamma = 1, w={width} / w={int(data.width.values[0])}"
    findings.append(Finding.at_most(name, 1.0, [spread[-1] / spread[0]]))
    return findings


def _mean(values: xr.DataArray) -> float:
    return float(values.mean())


WIDTHS: dict[Size, tuple[int, ...]] = {
    "quick": (1_000, 30_000, 1_000_000),
    "full": (1_000, 10_000, 100_000, 1_000_000),
}


def _lengths(depth: int, gamma: float, size: Size) -> np.ndarray:
    """Times to 60 % of the cost at A = 0, in reduced networks drawn in law: (seed, width)."""
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
            spread = np.log(lengths).std(axis=0)
            name = f"L={depth}, gamma={gamma:g}: spread of the log over seeds, w={widths[-1]:,} / w={widths[0]:,}"
            # a sum over w neurons: w^(-1/2) over three decades
            findings.append(Finding.at_most(name, 0.1, [spread[-1] / spread[0]], (widths[0] / widths[-1]) ** 0.5))
    return findings


def lazy_times(size: Size) -> list[Finding]:
    """Below gamma = 1: the time in which the cost falls, against the kernel's rate."""
    findings = []
    for gamma in (0.75, 0.875):
        slopes = exponents(WIDTHS[size], _lengths(4, gamma, size))
        expected = exact.plateau_exponent(4, gamma)
        findings.append(Finding.near(f"L=4, gamma={gamma:g}: exponent in w", expected, slopes, 0.02))
    return findings


CLAIMS: Sequence[Claim] = (
    Claim(
        "regimes",
        "NTK: linear convergence; mean-field: plateaus as long at every width; saddle-to-saddle: longer with width; "
        "less spread over seeds with width (figure 2)",
        "T_plateau ~ w^((gamma-1)(L-2)/2) for gamma >= 1 (the exponent is ours)",
        "stated in the paper",
        training_regimes,
    ),
    Claim(
        "transition",
        "Test error and rank at convergence pass from near-full rank without generalisation (NTK) to low rank and "
        "test error towards 0, more sharply and more consistently in wider networks (figure 3)",
        "rank A ~ full, test >= zero predictor at gamma = 1 - 1/L; test -> 0 beyond 1",
        "stated in the paper",
        transition,
    ),
    Claim(
        "plateau-width",
        "From gamma = 1 on the first plateau's length is a power of the width, and its spread over seeds vanishes",
        "T ~ w^((gamma-1)(L-2)/2)",
        "ours",
        plateau_lengths,
    ),
    Claim(
        "lazy-width",
        "Below gamma = 1 the time in which the cost falls to 60 % goes with the inverse rate of the kernel",
        "T ~ w^((gamma-1)(L-1))",
        "ours",
        lazy_times,
    ),
)
