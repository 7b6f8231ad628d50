r"""The homogeneous model of the loss at the origin, from any start: when it blows up, and which way it goes.

Near the origin the loss is C(0) + H(theta) + O(||theta||^{2L}) with H(theta) = Tr(G^T A_theta), G = grad C(0),
homogeneous of degree L. Write r = ||theta||, u = theta / r and d tau = r^{L-2} dt. The flow of H becomes ::

    du/dtau = -grad H(u) - s(u) u,     d log r / dtau = s(u) = -<grad H(u), u> = -L H(u),

a flow on the unit sphere that knows nothing of r: the ascent of s. Its limits are the critical directions of
H, those of positive speed the escape directions of `saddleflow.theory.escape`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from saddleflow._backend.checks import require
from saddleflow.theory.arrays import as_matrix
from saddleflow.theory.escape import escape_speed
from saddleflow.theory.layers import Layers, as_layers, flatten, products, pull_back, unflatten

# Relative accuracy of the integral.
_ACCURACY = 1e-9
# The direction has arrived when it moves slower than this, in units of the optimal speed.
_AT_REST = 1e-8
# Where the flow on the sphere is given up, in units of the inverse optimal speed.
_HORIZON = 2000.0


class HomogeneousEscape(NamedTuple):
    """How the flow of the homogeneous model leaves a neighbourhood of the origin.

    Attributes:
        time: when the norm reaches infinity, in units of the flow of C; infinite if it never does.
        speed: s of the direction reached, in inverse time (for ||theta||^{L-2} = 1).
        direction: u there, as layers of the start's shapes, together of norm 1.
    """

    time: float
    speed: float
    direction: Layers


def homogeneous_escape(
    gradient: Float[np.ndarray, "n_out n_in"],
    layers: Sequence[Float[np.ndarray, "_ _"]],
) -> HomogeneousEscape:
    r"""Blow-up time and final direction of the flow of H(theta) = Tr(G^T A_theta) from given layers.

    ::

        T = int_0^infinity ||theta||^{-(L-2)} dtau

    along the flow on the sphere (see the module), by SciPy's DOP853. The speed s never falls, so where it is
    s > 0 the rest of the integral lies between 1 / ((L-2) s* ||theta||^{L-2}) and
    1 / ((L-2) s ||theta||^{L-2}), and is closed by the latter once the direction rests. By homogeneity
    T(alpha theta) = alpha^{-(L-2)} T(theta). For the loss itself, starts alpha theta leave the origin at
    T(alpha theta) to leading order in alpha.

    The direction is at rest where |du/dtau| <= 1e-8 s*: a start that close to a critical direction is taken to
    be on it, the optimal one or another. If the speed there is zero or negative, or has not become positive
    by tau = 2000 / s*, the time is infinite. For L > 3 some critical directions of speed zero attract at no
    exponential rate.

    >>> start = sf.theory.escape_direction(np.diag([3.0, 1.0]), depth=3)
    >>> escape = sf.theory.homogeneous_escape(np.diag([3.0, 1.0]), [0.1 * layer for layer in start])
    >>> print(f"{escape.time:.4f} {escape.speed:.4f}")
    5.7735 1.7321

    Args:
        gradient: G = grad C(0), shape (n_out, n_in), not zero.
        layers: W_1, ..., W_L of any hidden widths, L >= 2, not all zero.

    Returns:
        Time, good to about 1e-9 of itself, speed and direction. For L = 2 growth is exponential and the time
        infinite; the other two mean what they do for L > 2.

    Raises:
        ValueError: layers that do not chain or do not fit G, all zero, entries that are not finite, or G zero.

    Standing: derived; checked against the flow of H in time itself, by another code, and on escape
    directions, where T is known exactly. That small starts of a loss leave at T(alpha theta): derived and
    checked for L = 3 and 4 (docs/theory.md, section 3).
    """
    gradient = as_matrix("gradient", gradient)
    require(gradient.any(), "gradient", "be nonzero", "the zero matrix", "Nothing escapes from a minimum.")
    layers = as_layers("layers", layers)
    shape = (layers[-1].shape[0], layers[0].shape[1])
    require(gradient.shape == shape, "gradient", f"have the end-to-end shape {shape}", gradient.shape)
    scale = max(np.abs(layer).max() for layer in layers)
    require(scale > 0, "layers", "be nonzero", "the origin", "It is a saddle: the flow never leaves it.")
    depth, start = len(layers), flatten(layers) / scale
    norm = np.linalg.norm(start)
    # In units of the optimal speed everything below is of order one, whatever the units of the cost.
    optimal = escape_speed(gradient, depth)

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        descent, speed = _descent(gradient / optimal, unflatten(state[:-2], layers))
        # Divided by |u|^2 the motion is tangent at every |u|: rounding in the norm is not amplified.
        tangent = descent - speed / (state[:-2] @ state[:-2]) * state[:-2]
        return np.concatenate([tangent, [speed, np.exp(-(depth - 2) * state[-2])]])

    state = np.concatenate([start / norm, [0.0, 0.0]])
    # SciPy's error is a mean square over all entries, which would dilute those of log r and the time.
    rtol = max(_ACCURACY / np.sqrt(state.size), 1e-13)
    solver = scipy.integrate.DOP853(velocity, 0.0, state, _HORIZON, rtol=rtol, atol=rtol)
    motion = velocity(0.0, solver.y)
    while np.linalg.norm(motion[:-2]) > _AT_REST and solver.status == "running":
        solver.step()
        motion = velocity(solver.t, solver.y)

    direction = unflatten(solver.y[:-2] / np.linalg.norm(solver.y[:-2]), layers)
    speed = _descent(gradient / optimal, direction)[1]
    unit_time = np.inf
    if depth > 2 and speed > _AT_REST:
        unit_time = solver.y[-1] + np.exp(-(depth - 2) * solver.y[-2]) / ((depth - 2) * speed)
    time = unit_time / optimal * (scale * norm) ** -(depth - 2.0)
    return HomogeneousEscape(float(time), optimal * speed, direction)


def misalignment_rate(gradient: Float[np.ndarray, "n_out n_in"]) -> float:
    r"""Exponent with which smaller starts follow the optimal escape path more closely: 1 - s_2 / s_1.

    From alpha theta_0 the singular vectors of A are off those of the path by alpha^{1 - s_2/s_1} for every
    depth L, and with them sup_t ||A_alpha - A|| (at matched times): on the sphere the direction contracts at
    rate (s_1 - s_2) L^{-(L-2)/2}, while log ||theta|| grows at rate s_1 L^{-(L-2)/2}. The second singular
    values of the layers, at a given A, go as alpha^{1 - s_2/s_1} for L = 2 but as alpha for L > 2.

    >>> sf.theory.misalignment_rate(np.diag([4.0, 1.0]))
    0.75

    Args:
        gradient: G = grad C(0), shape (n_out, n_in), not zero.

    Returns:
        1 - s_2/s_1, with s_1 >= s_2 the largest singular values of G: 1 if G is of rank one, 0 if s_1 is not
        simple and no single path is followed.

    Raises:
        ValueError: G zero or not a matrix of finite numbers.

    Standing: derived; checked at L = 2, 3 and 4 with 1 - s_2/s_1 = .523, where local exponents came to
    .54, .53 and .47 at the smallest starts (docs/theory.md, section 3).
    """
    strengths = np.linalg.svd(as_matrix("gradient", gradient), compute_uv=False)
    require(strengths[0] > 0, "gradient", "be nonzero", "the zero matrix", "Nothing escapes from a minimum.")
    return float(1 - strengths[1] / strengths[0]) if strengths.size > 1 else 1.0


def _descent(gradient: np.ndarray, layers: Layers) -> tuple[np.ndarray, float]:
    """-grad H, flat, and the speed -<grad H(u), u> = -L H(u)."""
    above, below = products(layers)
    descent = -flatten(pull_back(gradient, above, below))
    return descent, -len(layers) * float(np.sum(gradient * (layers[-1] @ below[-1])))
