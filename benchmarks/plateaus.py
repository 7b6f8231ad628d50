"""Length of the first plateau against the width, from 10 to 10^6, in reduced networks drawn in law: docs/width.png.

The length is the time at which the train cost falls to 60 % of its value at A = 0. Ten seeds run as lanes of one
vmap, in whole-level closures; a deeper closure of the same networks says what the truncation changes.

Run: python benchmarks/plateaus.py
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from saddleflow import plotting, theory
from saddleflow.claims.plateaus import LEVELS, SHAPE, first_plateaus, lane

DEPTH, SEEDS = 4, 10
GAMMAS = (0.75, 1.0, 1.5, 2.0)
WIDTHS = (10, 100, 1000, 10_000, 100_000, 1_000_000)


def main() -> None:
    lengths = {}
    table = Table(title=f"first plateau, L = {DEPTH}, {SHAPE[0]}x{SHAPE[1]}, {SEEDS} seeds")
    for name in ("gamma", "width", "basis", "median", "spread", "deeper closure"):
        table.add_column(name, justify="right")
    for gamma in GAMMAS:
        for width in WIDTHS:
            times, other = (
                first_plateaus(DEPTH, gamma, width, range(SEEDS), levels) for levels in (LEVELS, LEVELS + 1)
            )
            lengths[gamma, width] = times
            table.add_row(
                f"{gamma:g}",
                f"{width:,}",
                str(lane(DEPTH, width, gamma, 0).reduced_widths),
                f"{np.median(times):.4g}",
                f"{spread(times):.1e}",
                f"{np.max(np.abs(np.log(other / times))):.1e}",
            )
    Console().print(table)
    for gamma in GAMMAS:
        expected = theory.plateau_exponent(DEPTH, gamma)
        print(f"gamma {gamma:g}: w^{exponent(lengths, gamma):.3f} from w = 1000 on, predicted {expected:g}")
    draw(lengths)


def spread(times: np.ndarray) -> float:
    """Standard deviation of the logarithm over the seeds."""
    return float(np.std(np.log(times), ddof=1))


def exponent(lengths, gamma: float) -> float:
    wide = [w for w in WIDTHS if w >= 1000]
    return float(np.polyfit(np.log(wide), [np.log(lengths[gamma, w]).mean() for w in wide], 1)[0])


def draw(lengths) -> None:
    with plotting.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.8))
        for gamma, colour in zip(GAMMAS, plotting.CYCLE, strict=False):
            for seed in range(SEEDS):
                left.loglog(WIDTHS, [lengths[gamma, w][seed] for w in WIDTHS], color=colour, lw=0.5, alpha=0.6)
            label = (
                rf"$\gamma$ = {gamma:g}: {exponent(lengths, gamma):.2f} ({theory.plateau_exponent(DEPTH, gamma):g})"
            )
            left.loglog(
                WIDTHS,
                [np.exp(np.log(lengths[gamma, w]).mean()) for w in WIDTHS],
                "o",
                ms=3,
                color=colour,
                label=label,
            )
            right.loglog(WIDTHS, [spread(lengths[gamma, w]) for w in WIDTHS], "o-", ms=3, color=colour)
        right.loglog(
            WIDTHS,
            [spread(lengths[1.0, WIDTHS[0]]) * math.sqrt(WIDTHS[0] / w) for w in WIDTHS],
            ":",
            color=plotting.MUTED,
        )
        left.set(xlabel="width w", ylabel="length of the first plateau", title="exponent fitted (predicted)")
        left.legend()
        right.set(xlabel="width w", ylabel="spread of log length over seeds", title="dotted: w^(-1/2)")
        figure.savefig(Path(__file__).parent.parent / "docs" / "width.png")


if __name__ == "__main__":
    main()
