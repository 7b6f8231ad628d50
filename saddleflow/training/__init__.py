"""Discrete training beside the flow: gradient descent, with any optimiser and in mini-batches, step by step."""

from saddleflow.training.batches import batch_indices
from saddleflow.training.descent import gradient_descent
from saddleflow.training.distance import distance_to_flow
from saddleflow.training.pictures import plot_descent
from saddleflow.training.pure import Descent, descend

__all__ = ["Descent", "batch_indices", "descend", "distance_to_flow", "gradient_descent", "plot_descent"]
