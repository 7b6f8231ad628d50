"""What theory says of a run of the explorer: heights of the plateaus, and times of the escapes."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from saddleflow.explorer.state import Settings
from saddleflow.greedy.algorithms import saddle_to_saddle
from saddleflow.problem.costs import MatrixCompletion
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.theory.escape import waiting_time_ratio
from saddleflow.theory.homogeneous import homogeneous_escape
from saddleflow.theory.modes import mode_time

# A mode has done half of its drop in cost, (s - a)^2 = s^2 / 2, at this share of its strength s.
HALF_DROP = 1 - math.sqrt(0.5)

# Tolerance of the flows between the stationary points, which are polished at the end.
RTOL = 1e-4

# Singular values of a target below this share of the largest are none.
ZERO = 1e-9


class Point(NamedTuple):
    """A stationary point of the limit of small starts: its rank, its train cost, its matrix A."""

    rank: int
    cost: float
    matrix: Float[np.ndarray, "n_out n_in"]


@dataclass(frozen=True)
class Predictions:
    """What theory says.

    Attributes:
        levels: rank and cost of the points of the limit, from the origin to the minimum: heights of plateaus.
        escape_times: times of the first escapes, of starts that are small.
        notes: what these are, and where they hold, in words.
    """

    levels: tuple[tuple[int, float], ...] = ()
    escape_times: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def greedy_points(cost: MatrixCompletion, depth: int) -> tuple[Point, ...]:
    """The stationary points that flows from ever smaller starts pass, from the origin to the minimum.

    Where all entries are seen they are the best approximations of the target by rank (Eckart and Young), else those
    of `saddleflow.saddle_to_saddle`.
    """
    if cost.has_test:
        # with a looser tolerance of the certificate a stage may miss the stationary point at its end
        path = saddle_to_saddle(cost, depth, rtol=RTOL, progress=False)
        return tuple(Point(point.rank, point.cost, point.end_to_end) for point in path.points)
    u, s, vh = np.linalg.svd(np.asarray(cost.target))
    matrices = [(u[:, :rank] * s[:rank]) @ vh[:rank] for rank in range(int(np.sum(s > ZERO * s[0])) + 1)]
    return tuple(Point(rank, float(cost(matrix)), matrix) for rank, matrix in enumerate(matrices))


def predict(
    settings: Settings, cost: MatrixCompletion, start: DeepLinearNetwork, points: tuple[Point, ...]
) -> Predictions:
    """What theory says of the run of the settings.

    Args:
        settings: of the run.
        cost: its task.
        start: its start, in the basis it was drawn in.
        points: of the limit of small starts; none where there is no such limit.
    """
    if settings.model != "linear":
        return Predictions(notes=("Theory is of deep linear networks; nothing is laid over a tanh network.",))
    if not points:
        return Predictions(notes=("One layer: the loss is convex, there is no saddle.",))
    source = "saddle_to_saddle" if cost.has_test else "the target's best approximations by rank"
    notes = [f"Levels, theory: costs at the stationary points of the limit of small starts, by {source}."]
    times = two_layer_times(cost, start) if settings.depth == 2 else deep_times(cost, start)
    if times:
        law = "the two-layer sigmoid" if settings.depth == 2 else "the blow-up time of the loss's leading order"
        more = "" if cost.has_test else "; the later ones by the ratios of the target's singular values"
        more = more if settings.depth > 2 else ""
        notes.append(f"Escapes, theory: {law}, from this start{more}. It holds where the start is small.")
    return Predictions(tuple((point.rank, point.cost) for point in points), tuple(times), tuple(notes))


def deep_times(cost: MatrixCompletion, start: DeepLinearNetwork) -> list[float]:
    """Escape times for three layers or more.

    The first is the blow-up time of the homogeneous model of the loss. Where all entries are seen the others are in
    the ratios of `saddleflow.theory.waiting_time_ratio`.
    """
    gradient = np.asarray(cost.gradient(np.zeros(cost.shape)))
    first = homogeneous_escape(gradient, [np.asarray(layer) for layer in start.layers]).time
    if not math.isfinite(first):
        return []
    if cost.has_test:
        return [first]
    strengths = np.linalg.svd(gradient, compute_uv=False)
    return sorted(float(first * ratio) for ratio in waiting_time_ratio(strengths[strengths > ZERO * strengths[0]]))


def two_layer_times(cost: MatrixCompletion, start: DeepLinearNetwork) -> list[float]:
    """Escape times for two layers: each singular mode of the target by its sigmoid.

    A mode (s, u, v) of the target starts at the strength `|W_1 v + W_2^T u|^2 / 4` of its growing part. The cost has
    a factor 2 / N before the theory's `(1/2) |A - S|^2`. Where entries are not seen it holds for the first escape
    alone.
    """
    unit = cost.num_observed / 2
    seen = -unit * np.asarray(cost.gradient(np.zeros(cost.shape)))
    u, s, vh = np.linalg.svd(seen)
    count = 1 if cost.has_test else int(np.sum(s > ZERO * s[0]))
    first, second = (np.asarray(layer) for layer in start.layers)
    times = []
    for mode in range(count):
        initial = float(np.sum((first @ vh[mode] + second.T @ u[:, mode]) ** 2)) / 4
        goal = HALF_DROP * s[mode]
        if initial < goal:
            times.append(unit * float(mode_time(np.array([goal]), float(s[mode]), initial, 2)[0]))
    return sorted(times)
