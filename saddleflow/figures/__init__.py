"""The figures of arXiv 2106.15933, each a module with `compute`, `verdicts`, `draw` and `write`."""

from types import ModuleType

from saddleflow.figures import f1_plateaus, f2_regimes, f3_transition, f4_scales, f5_ranks

# Number of the figure -> its module; the command line knows no other list.
FIGURES: dict[int, ModuleType] = {
    1: f1_plateaus,
    2: f2_regimes,
    3: f3_transition,
    4: f4_scales,
    5: f5_ranks,
}

figure1 = f1_plateaus.compute
figure2 = f2_regimes.compute
figure3 = f3_transition.compute
figure4 = f4_scales.compute
figure5 = f5_ranks.compute

__all__ = ["FIGURES", "figure1", "figure2", "figure3", "figure4", "figure5"]
