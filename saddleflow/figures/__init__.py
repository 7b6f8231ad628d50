"""The figures of arXiv 2106.15933, each a module: its data, its verdicts, its drawing."""

from saddleflow.figures.f1_plateaus import figure1

__all__ = ["figure1"]
