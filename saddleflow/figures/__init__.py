"""The figures of arXiv 2106.15933, each a module with `compute`, `verdicts`, `draw` and `write`."""

from types import ModuleType

from saddleflow.figures import f1_plateaus, f4_scales

# Number of the figure -> its module; the command line knows no other list.
FIGURES: dict[int, ModuleType] = {1: f1_plateaus, 4: f4_scales}

figure1 = f1_plateaus.compute
figure4 = f4_scales.compute

__all__ = ["FIGURES", "figure1", "figure4"]
