"""The figures of arXiv 2106.15933, each a module: its data, its verdicts, its drawing."""

from saddleflow.figures.f1_plateaus import figure1
from saddleflow.figures.f2_regimes import figure2
from saddleflow.figures.f3_transition import figure3
from saddleflow.figures.f5_ranks import figure5

__all__ = ["figure1", "figure2", "figure3", "figure5"]
