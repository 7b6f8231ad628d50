"""The saddles that a trajectory visits: where the gradient norm dips while the cost rests on a plateau."""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float, Int
from scipy.signal import find_peaks

# A visit is a dip of the gradient norm by at least this factor below its surroundings on both sides. Passing
# near a saddle of a stretched landscape dips far deeper; solver noise on a fast stretch stays well above.
MIN_DIP = 3.0


@dataclass(frozen=True)
class SaddleVisit:
    """One saddle visited.

    Attributes:
        rank: numerical rank of A at the dip.
        cost: train cost at the dip: the height of the plateau.
        time: time of the dip, in units of the flow.
        gradient_norm: the least gradient norm (in theta) of the visit.
        index: row of the trajectory.
    """

    rank: int
    cost: float
    time: float
    gradient_norm: float
    index: int


def find_visits(
    time: Float[np.ndarray, " time"],
    train_cost: Float[np.ndarray, " time"],
    gradient_norm: Float[np.ndarray, " time"],
    rank: Int[np.ndarray, " time"],
) -> list[SaddleVisit]:
    """All visits along a trajectory, in order of time; none for a run without plateaus (lazy training).

    The start counts as a visit when the gradient norm grows out of it by `MIN_DIP`; the end never does: a run
    that is still slow there has not left.
    """
    usable = gradient_norm > 0
    if usable.sum() < 3:
        return []
    indices = np.flatnonzero(usable)
    depth = -np.log(gradient_norm[indices])
    # a wall in front lets the start count as a dip; nothing behind keeps the end from counting
    padded = np.concatenate([[-np.inf], depth])
    padded[0] = depth.min() - 2 * np.log(MIN_DIP)
    peaks, _ = find_peaks(padded, prominence=np.log(MIN_DIP))
    # a saddle has been left only where the rank rises afterwards; dips in the tail are solver noise
    final_rank = rank[-1]
    dips = [i for i in indices[peaks - 1] if rank[i] < final_rank]
    deepest = [min(group, key=lambda i: gradient_norm[i]) for _, group in groupby(dips, lambda i: rank[i])]
    return [
        SaddleVisit(
            rank=int(rank[i]),
            cost=float(train_cost[i]),
            time=float(time[i]),
            gradient_norm=float(gradient_norm[i]),
            index=int(i),
        )
        for i in deepest
    ]
