r"""How a deep linear network leaves a saddle: speed, direction, and the law of the norm.

Any differentiable cost C, any normalisation: G = grad C enters, at the origin or at a saddle of rank k with k
hidden neurons in use. Near the origin the loss is C(0) + H(theta) + O(||theta||^{2L}), with
H(theta) = Tr(G^T A_theta) homogeneous of degree L. An escape direction rho, ||rho|| = 1, has
-grad H(rho) = s rho with a speed s > 0, and is optimal if s is the largest possible.

Convention trap: here ||rho|| = 1. With ||rho||^2 = L (Bantzis, Simon & Jacot) the same optimal speed reads
s_1(G).
"""

import numpy as np
from jaxtyping import Float

from saddleflow._backend.checks import require, require_integer, require_positive
from saddleflow.theory.arrays import as_matrix, as_times, as_vector


def escape_speed(gradient: Float[np.ndarray, "n_out n_in"], depth: int) -> float:
    r"""Speed of the fastest escape.

    ::

        s* = L^{-(L-2)/2} s_1(G)

    with s_1 the largest singular value. It is the maximum of -L H(rho) over the unit sphere, for every width.

    >>> sf.theory.escape_speed(np.diag([3.0, 1.0]), depth=4)  # 3 / 4
    0.75

    Args:
        gradient: G = grad C at the saddle, shape (n_out, n_in).
        depth: L >= 2, the number of layers.

    Returns:
        s*, in inverse time of the flow of C (for ||theta||^{L-2} = 1); 0 if G is zero.

    Raises:
        ValueError: depth below 2, or G not a matrix of finite numbers.

    Standing: recalled (85%) to be as in Jacot et al. (arXiv 2106.15933); derived at the origin, checked. At a
    saddle of rank k >= 1: derived for a new neuron; checked at L = 2 as the lowest eigenvalue of the Hessian,
    -s_1(G), with the cost (1/2) ||A - S||_F^2 (docs/theory.md, section 4c).
    """
    require_integer("depth", depth, 2)
    return optimal_speed(np.linalg.norm(as_matrix("gradient", gradient), 2), depth)


def optimal_speed(strength: float | np.floating, depth: int) -> float:
    r"""The speed s* = L^{-(L-2)/2} s_1 of `escape_speed`, from the largest singular value s_1 of G; unchecked."""
    return float(depth ** (1 - depth / 2) * strength)


def escape_direction(gradient: Float[np.ndarray, "n_out n_in"], depth: int) -> list[Float[np.ndarray, "_ _"]]:
    r"""Direction of the fastest escape, as the layers of a network of width 1.

    ::

        rho_1 = L^{-1/2} (-v_1^T, 1, ..., 1, u_1)

    with u_1, v_1 the top singular vectors of G = grad C(0). In width w the optimal directions are exactly the
    rotations of rho_1 padded with zeros. Of the two signs of (u_1, v_1), one such rotation apart, the one is
    returned that makes the largest entry of u_1 positive.

    >>> first, last = sf.theory.escape_direction(np.diag([3.0, 1.0]), depth=2)
    >>> first.shape, last.shape, float(last[0, 0])  # 2^(-1/2)
    ((1, 2), (2, 1), 0.7071)

    Args:
        gradient: G, shape (n_out, n_in), its largest singular value simple.
        depth: L >= 2, the number of layers.

    Returns:
        The L layers, of shapes (1, n_in), (1, 1), ..., (1, 1), (n_out, 1); together of norm 1.

    Raises:
        ValueError: depth below 2, G zero or not a matrix of finite numbers, or its largest singular value not
            simple (relative gap below 1e-12).

    Standing: recalled (85%) to be as in Jacot et al. (arXiv 2106.15933); derived, checked.
    """
    require_integer("depth", depth, 2)
    gradient = as_matrix("gradient", gradient)
    left, strengths, right = np.linalg.svd(gradient, full_matrices=False)
    require(strengths[0] > 0, "gradient", "be nonzero", "the zero matrix", "Nothing escapes from a minimum.")
    require(
        strengths.size == 1 or strengths[0] - strengths[1] > 1e-12 * strengths[0],
        "gradient",
        "have a simple largest singular value",
        strengths[:2].tolist(),
        "Otherwise the optimal directions form a continuum: break the symmetry of the cost.",
    )
    sign = np.sign(left[np.argmax(np.abs(left[:, 0])), 0])
    directions = [-sign * right[:1], *(np.ones((1, 1)) for _ in range(depth - 2)), sign * left[:, :1]]
    return [layer / np.sqrt(depth) for layer in directions]


def escape_norm(
    time: Float[np.ndarray, " time"], initial_norm: float, speed: float, depth: int
) -> Float[np.ndarray, " time"]:
    r"""Norm of the parameters along an escape direction of the homogeneous model H.

    ::

        d||theta||/dt = s ||theta||^{L-1}
        ||theta(t)|| = ||theta(0)|| e^{s t},                                           L = 2
        ||theta(t)|| = (||theta(0)||^{-(L-2)} - (L-2) s t)^{-1/(L-2)},                 L > 2

    For the loss itself this is the leading order while ||theta|| is small.

    >>> sf.theory.escape_norm(np.array([0.0, 5.0, 9.0]), initial_norm=0.1, speed=1.0, depth=3)  # 1 / (10 - t)
    array([0.1, 0.2, 1. ])

    Args:
        time: times in units of the flow of C; negative ones follow the path back towards the saddle. For
            L > 2, below the blow-up time.
        initial_norm: ||theta(0)|| > 0.
        speed: s > 0, see `escape_speed`.
        depth: L >= 2, the number of layers.

    Returns:
        The norm at each time.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: derived; checked against the layer-wise flow of H.
    """
    require_integer("depth", depth, 2)
    times = as_vector("time", time)
    end = blow_up_time(initial_norm, speed, depth)
    require(times.max() < end, "time", f"be below the blow-up time {end}", float(times.max()))
    if depth == 2:
        return initial_norm * np.exp(speed * times)
    # log1p keeps the growth accurate while t is far below the blow-up time, which is most of the wait.
    return initial_norm * np.exp(-np.log1p(-times / end) / (depth - 2))


def measured_escape_speed(
    time: Float[np.ndarray, " time"], gradient_norm: Float[np.ndarray, " _"], depth: int
) -> float:
    r"""Speed of an escape from the growth of the gradient norm g = ||grad L(theta)||, by least squares.

    Along an escape direction g = s ||theta||^{L-1}, and the law of `escape_norm` becomes a straight line in t::

        log g(t) = log g(0) + s t,                                                     L = 2
        g(t)^{-(L-2)/(L-1)} = g(0)^{-(L-2)/(L-1)} - (L-2) s^{1/(L-1)} t,               L > 2

    At a saddle of rank k >= 1 the deviation from the saddle takes the place of theta.

    Args:
        time: times, ascending, at least 0, in units of the flow of C; at least two different ones.
        gradient_norm: g at those times, positive.
        depth: L >= 2, the number of layers.

    Returns:
        s, in inverse time of the flow of C; for L > 2 it is 0 where the gradient norm does not grow.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: derived; checked against `escape_norm`.
    """
    require_integer("depth", depth, 2)
    times, norms = as_times("time", time), as_vector("gradient_norm", gradient_norm)
    require(norms.size == times.size, "gradient_norm", f"hold {times.size} values, as time does", norms.size)
    require(times[-1] > times[0], "time", "hold two different times", times.tolist())
    require(norms.min() > 0, "gradient_norm", "be positive", float(norms.min()))
    if depth == 2:
        return float(np.polyfit(times, np.log(norms), 1)[0])
    power = (depth - 2) / (depth - 1)
    slope = np.polyfit(times, norms**-power, 1)[0]
    return float(max(-slope / (depth - 2), 0.0) ** (depth - 1))


def blow_up_time(initial_norm: float, speed: float, depth: int) -> float:
    r"""Time in which the homogeneous model H reaches infinity along an escape direction.

    ::

        T = 1 / ((L-2) s ||theta(0)||^{L-2})

    At the optimal speed s*, T is a lower bound for a start of this norm in any direction, attained on the
    optimal directions only. For the loss itself, starts alpha theta_0 escape after
    alpha^{-(L-2)} T_blow(theta_0) to leading order in alpha, T_blow the blow-up time of H from theta_0.

    >>> sf.theory.blow_up_time(initial_norm=0.1, speed=1.0, depth=3)
    10.0

    Args:
        initial_norm: ||theta(0)|| > 0.
        speed: s > 0, see `escape_speed`.
        depth: L >= 2, the number of layers.

    Returns:
        T in units of the flow of C; infinite for L = 2, where growth is exponential.

    Raises:
        ValueError: an argument is out of the range above.

    Standing: derived; checked against the layer-wise flow of H.
    """
    require_integer("depth", depth, 2)
    require_positive("initial_norm", initial_norm)
    require_positive("speed", speed)
    if depth == 2:
        return float("inf")
    return 1 / ((depth - 2) * speed * initial_norm ** (depth - 2))


def waiting_time_ratio(singular_values: Float[np.ndarray, " mode"]) -> Float[np.ndarray, " mode"]:
    r"""How long each mode waits, relative to the fastest: lim t_k / t_1 = s_1 / s_k, at every depth.

    The limit of small equal initial strengths of modes that are balanced and aligned with the target, for the
    cost (1/2) ||A - S||_F^2; a ratio of times, so a constant factor in front of the cost is of no matter. The
    approach is as a_0^{1-2/L} for L > 2, as 1 / log(1 / a_0) for L = 2.

    >>> sf.theory.waiting_time_ratio(np.array([4.0, 2.0, 1.0]))
    array([1., 2., 4.])

    Args:
        singular_values: those of S, positive, in any order.

    Returns:
        s_1 / s_k for each, with s_1 the largest.

    Raises:
        ValueError: singular_values is not a vector of finite positive numbers.

    Standing: derived; checked for L = 2, 3 and 4.
    """
    strengths = as_vector("singular_values", singular_values)
    require(strengths.min() > 0, "singular_values", "be positive", float(strengths.min()), "Drop the others.")
    return strengths.max() / strengths
