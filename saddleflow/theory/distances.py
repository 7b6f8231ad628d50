r"""How far a random start is from the global minima and from the nearest saddle: laws in the width, and bounds.

Cost C(A) = (1/2) ||A - S||_F^2 or any other whose only minimiser is S. Distances are Euclidean, in the space of
all layers theta = (W_1, ..., W_L) of a network of hidden width w. What is computed here are points that do
lie in the set in question, so every distance is an upper bound; that it is the least is not proved.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from saddleflow._backend.checks import require, require_integer
from saddleflow.theory.arrays import as_matrix
from saddleflow.theory.layers import Layers, as_layers, flatten, products, pull_back, push_forward, unflatten

# How far from S, relative to the larger of ||S||_F and ||A_theta_0||_F, a point may be and count as a minimum.
_ON_TARGET = 1e-11
# Random frames from which those nearest to the start are sought: the search ends at local optima.
_NUM_TURNS = 16
# Relative to the layers' norm, steps below which an iteration has converged.
_AT_REST = 1e-8


class DistanceBound(NamedTuple):
    """A law w^exponent for a distance at large width w.

    Attributes:
        exponent: of the width.
        kind: "O", "Omega" or "Theta": the law bounds the distance from above, from below or both, up to
            constants, with probability tending to one.
    """

    exponent: float
    kind: Literal["O", "Omega", "Theta"]


class NearestPoint(NamedTuple):
    """A point of a set, as near to a given one as could be found.

    Attributes:
        distance: Euclidean distance between the two.
        layers: the point, W_1, ..., W_L.
    """

    distance: float
    layers: Layers


def distance_exponents(depth: int, gamma: float) -> tuple[DistanceBound, DistanceBound]:
    r"""Laws of the distances d_m to the global minima and d_s to the nearest saddle, starts of variance w^-gamma.

    ::

        gamma < 1:  d_m = O(w^{-(1-gamma)(L-1)/2}),  d_s = Omega(w^{(1-gamma)/2})
        gamma = 1:  d_m = Theta(1),                  d_s = Theta(1)
        gamma > 1:  d_m = Omega(1),                  d_s = O(w^{-(gamma-1)/2})

    for every differentiable convex cost whose set of minimisers is not empty, has measure zero and does not
    contain 0.

    >>> minima, saddle = sf.theory.distance_exponents(depth=3, gamma=1.5)
    >>> print(minima)
    DistanceBound(exponent=0.0, kind='Omega')
    >>> print(saddle)
    DistanceBound(exponent=-0.25, kind='O')

    Args:
        depth: L >= 2, the number of layers.
        gamma: exponent of the variance, at least 1 - 1/L (where A_theta is of order one).

    Returns:
        The law of d_m and that of d_s.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: Theorem 1 of Jacot et al. (arXiv 2106.15933), exponents recalled (85%) and derived; checked for
    L = 4 by the two functions below (docs/theory.md, section 2).
    """
    require_integer("depth", depth, 2)
    require(1 - 1 / depth <= gamma < np.inf, "gamma", f"be finite and at least 1 - 1/L = {1 - 1 / depth}", gamma)
    if gamma < 1:
        return DistanceBound(-(1 - gamma) * (depth - 1) / 2, "O"), DistanceBound((1 - gamma) / 2, "Omega")
    if gamma == 1:
        return DistanceBound(0.0, "Theta"), DistanceBound(0.0, "Theta")
    return DistanceBound(0.0, "Omega"), DistanceBound(-(gamma - 1) / 2, "O")


def distance_to_minima(
    layers: Sequence[Float[np.ndarray, "_ _"]], target: Float[np.ndarray, "n_out n_in"]
) -> NearestPoint:
    r"""Distance from theta_0 to the set {A_theta = S}: an upper bound, attained by the point returned.

    The iteration ::

        theta <- theta_0 + J^T (J J^T)^{-1} [S - A_theta + J (theta - theta_0)]

    whose fixed points are exactly those points of the set from which theta_0 is seen at a right angle, in half
    steps. It starts from theta_0 where its first step is short (large starts, gamma < 1), else from theta_0
    plus the factorisation of S of least norm, hidden frames turned towards theta_0. Newton steps of least
    length put the result on the set. Nothing larger than the layers and the n_out n_in square J J^T is formed.

    >>> layers = [np.array([[0.1]]), np.array([[0.1]])]
    >>> print(f"{sf.theory.distance_to_minima(layers, np.array([[1.0]])).distance:.4f}")  # to (1, 1): 2^(1/2) 0.9
    1.2728

    Args:
        layers: theta_0, W_1, ..., W_L, of any hidden widths, L >= 2.
        target: S, shape (n_out, n_in), its rank at most the smallest hidden width.

    Returns:
        The distance and the point. For gamma < 1 the lazy prediction is ||S - A_0||_F / sqrt(L w^{(1-gamma)(L-1)});
        for gamma > 1 the limit is `saddleflow.theory.minimal_norm`, approached as w^{-(gamma-1)/2}.

    Raises:
        ValueError: layers that do not chain or do not fit S, entries that are not finite, or a rank of S that
            the hidden widths cannot realise.
        RuntimeError: no point of the set was found.

    Standing: derived; an upper bound by construction. In 80 random problems of widths 2 to 5 it was the best of
    twelve runs of SciPy's SLSQP to 1e-5, but for four of L = 3 whose widths are all n: up to 11% above. Checked
    against the numbers of docs/theory.md, section 2, at widths 10 to 300.
    """
    layers, target = _as_problem(layers, target)
    return _nearest_minimum(layers, target)


def distance_to_saddle(
    layers: Sequence[Float[np.ndarray, "_ _"]], target: Float[np.ndarray, "n_out n_in"]
) -> NearestPoint:
    r"""Distance from theta_0 to the nearest saddle of C(A) = (1/2) ||A - S||_F^2: an upper bound.

    The least of the distances to these critical points, none of which is a minimum:

    - W_1 = W_L = 0, where A = 0;
    - for each singular triple (u_i, s_i > 0, v_i) of S, u_i^T W_L = 0, W_1 v_i = 0 and
      A = S - s_i u_i v_i^T: a network that misses one mode. The first two are a projection, the rest is
      `distance_to_minima` with n_out - 1 outputs and n_in - 1 inputs;
    - the same with all modes missed at once.

    The first and the last are near for gamma > 1, the second are for gamma < 1, at about
    sqrt(2) w^{(1-gamma)/2}. A candidate is passed over where ||S||_2 <= (sum_l (||W_l||_2 + d_l))^L / L^L
    keeps it farther than the best so far.

    >>> layers = [np.array([[0.1]]), np.array([[0.1]])]
    >>> print(f"{sf.theory.distance_to_saddle(layers, np.array([[1.0]])).distance:.4f}")  # to the origin
    0.1414

    Args:
        layers: theta_0, W_1, ..., W_L, of any hidden widths, L >= 2.
        target: S, shape (n_out, n_in), not zero, its rank at most the smallest hidden width.

    Returns:
        The distance and the point.

    Raises:
        ValueError: as `distance_to_minima`, or S zero.
        RuntimeError: as `distance_to_minima`.

    Standing: derived; an upper bound by construction, the points' criticality checked, and the distances
    against the numbers of docs/theory.md, section 2.
    """
    layers, target = _as_problem(layers, target)
    require(target.any(), "target", "be nonzero", "the zero matrix", "The origin is a minimum then.")
    left, _, right = np.linalg.svd(target)
    rank = np.linalg.matrix_rank(target)

    best = [np.zeros_like(layers[0]), *layers[1:-1], np.zeros_like(layers[-1])]
    nearest = NearestPoint(_distance(best, layers), best)
    # All modes first: the nearer the first finds, the fewer of the others need to be looked at.
    for missed in [np.arange(rank), *(np.array([mode]) for mode in range(rank))]:
        rows = np.delete(left, missed, axis=1)
        columns = np.delete(right, missed, axis=0)
        inner = [layers[0] @ columns.T, *layers[1:-1], rows.T @ layers[-1]]
        away = np.hypot(np.linalg.norm(layers[0] @ right[missed].T), np.linalg.norm(left[:, missed].T @ layers[-1]))
        if rows.shape[1] == 0 or columns.shape[0] == 0:
            found = NearestPoint(0.0, inner)
        else:
            rest = rows.T @ target @ columns.T
            if np.hypot(away, _least_distance(inner, rest)) >= nearest.distance:
                continue
            found = _nearest_minimum(inner, rest)
        distance = float(np.hypot(away, found.distance))
        if distance < nearest.distance:
            first, *middle, last = found.layers
            nearest = NearestPoint(distance, [first @ columns, *middle, rows @ last])
    return nearest


def _as_problem(layers: Sequence[np.ndarray], target: np.ndarray) -> tuple[Layers, np.ndarray]:
    layers = as_layers("layers", layers)
    target = as_matrix("target", target)
    shape = (layers[-1].shape[0], layers[0].shape[1])
    require(target.shape == shape, "target", f"have the end-to-end shape {shape}", target.shape)
    rank, width = int(np.linalg.matrix_rank(target)), min(layer.shape[0] for layer in layers[:-1])
    require(rank <= width, "target", f"have rank at most {width}, the smallest hidden width", f"rank {rank}")
    return layers, target


def _distance(layers: Layers, start: Layers) -> float:
    return float(np.linalg.norm(flatten(layers) - flatten(start)))


def _least_distance(layers: Layers, target: np.ndarray) -> float:
    """What the operator norms allow: ||S||_2 <= prod (||W_l||_2 + d_l) <= ((sum_l ||W_l||_2 + sqrt(L) d) / L)^L."""
    depth = len(layers)
    needed = depth * np.linalg.norm(target, 2) ** (1 / depth)
    return max(0.0, float(needed - sum(np.linalg.norm(layer, 2) for layer in layers)) / np.sqrt(depth))


def _nearest_minimum(start: Layers, target: np.ndarray) -> NearestPoint:
    """Half steps of the iteration of `distance_to_minima`, plain ones first, then accelerated."""
    point = _first_guess(start, target)
    # Plain half steps only descend, and so choose the minimum; Anderson's mixing alone would as well stop at others.
    settled = _iterate(start, target, point, 50, memory=0)
    refined = _iterate(start, target, settled, 300, memory=5)
    scale = float(max(np.linalg.norm(target), np.linalg.norm(start[-1] @ products(start)[1][-1])))
    candidates = [_onto_target(layers, target, scale) for layers in (settled, refined)]
    found = [NearestPoint(_distance(layers, start), layers) for layers in candidates if layers is not None]
    if not found:
        raise RuntimeError("no layers of end-to-end matrix `target` were found near the given ones")
    return min(found, key=lambda point: point.distance)


def _first_guess(start: Layers, target: np.ndarray) -> Layers:
    """theta_0 itself where the first step from it is short, else theta_0 plus the smallest minimum."""
    factors = _aligned_factors(start, target)
    above, below = products(start)
    step = _shortest_change(target - start[-1] @ below[-1], above, below)
    if step is not None and np.linalg.norm(flatten(step)) <= np.linalg.norm(flatten(factors)):
        return start
    return [old + factor for old, factor in zip(start, factors, strict=True)]


def _aligned_factors(start: Layers, target: np.ndarray) -> Layers:
    """The factorisation of S of least norm whose hidden frames are turned towards the start's layers."""
    depth, rank = len(start), int(np.linalg.matrix_rank(target))
    left, strengths, right = np.linalg.svd(target, full_matrices=False)
    roots = strengths[:rank] ** (1 / depth)
    rng = np.random.default_rng(0)

    def factors() -> Layers:
        hidden = [np.linalg.qr(rng.standard_normal((layer.shape[0], rank)))[0] for layer in start[:-1]]
        frames = [right[:rank].T, *hidden, left[:, :rank]]
        # The distance falls as each frame in turn becomes the nearest to what the frames beside it make of it.
        for _ in range(10):
            for index in range(1, depth):
                pull = start[index - 1] @ (frames[index - 1] * roots) + start[index].T @ (frames[index + 1] * roots)
                rows, _, columns = np.linalg.svd(pull, full_matrices=False)
                frames[index] = rows @ columns
        return [(frames[index + 1] * roots) @ frames[index].T for index in range(depth)]

    return min((factors() for _ in range(_NUM_TURNS)), key=lambda layers: _distance(layers, start))


def _iterate(start: Layers, target: np.ndarray, point: Layers, num_steps: int, memory: int) -> Layers:
    """Half steps of the iteration from a point, mixed with the last `memory` ones as Anderson does.

    A whole step multiplies the error by the curvature of the constraint, with eigenvalues down to -1 at small
    starts; half a step by numbers from 0 to 1.
    """
    origin, flat = flatten(start), flatten(point)
    points, steps = [], []
    for _ in range(num_steps):
        layers = unflatten(flat, start)
        above, below = products(layers)
        away = push_forward(unflatten(flat - origin, start), above, below)
        change = _shortest_change(target - layers[-1] @ below[-1] + away, above, below)
        if change is None:
            break
        step = 0.5 * (origin + flatten(change) - flat)
        if np.linalg.norm(step) <= _AT_REST * np.linalg.norm(flat):
            break
        points, steps = [*points, flat][-memory - 1 :], [*steps, step][-memory - 1 :]
        flat = flat + step
        if len(steps) > 1:
            bends = np.diff(steps, axis=0)
            weights = np.linalg.lstsq(bends @ bends.T, bends @ step, rcond=1e-12)[0]
            flat = flat - weights @ (np.diff(points, axis=0) + bends)
    return unflatten(flat, start)


def _onto_target(point: Layers, target: np.ndarray, scale: float) -> Layers | None:
    """Newton steps of least length to {A_theta = S}, until rounding stops them; None if they do not get there."""
    last = np.inf
    for _ in range(50):
        above, below = products(point)
        gap = target - point[-1] @ below[-1]
        size = float(np.linalg.norm(gap))
        if size == 0 or (size <= _ON_TARGET * scale and size > 0.5 * last):
            return point
        change = _shortest_change(gap, above, below)
        if change is None:
            return None
        last = size
        point = [layer + extra for layer, extra in zip(point, change, strict=True)]
    return None


def _shortest_change(gap: np.ndarray, above: Layers, below: Layers) -> Layers | None:
    """J^T (J J^T)^{-1} X, the least change of the layers with J[change] = X; None where J is singular."""
    gram = sum(np.kron(left @ left.T, right.T @ right) for left, right in zip(above, below, strict=True))
    try:
        solution = np.linalg.solve(gram, gap.ravel())
    except np.linalg.LinAlgError:
        return None
    return pull_back(solution.reshape(gap.shape), above, below) if np.isfinite(solution).all() else None
