"""The stationary point of the loss nearest to a network: truncate to the learned directions, then polish.

Near a plateau of rank k every layer has k learned directions of order one and the rest at the scale of the start.
The rest is set to zero exactly, which leaves a network of width k; there the critical points are orbits of GL(k) in
each hidden space (A, hence the loss, is the same all along), and the nearest point of an orbit is a small, dense,
well-posed least-squares problem.
"""

import itertools
import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from saddleflow._backend.checks import require, require_integer, require_positive
from saddleflow._backend.linalg import lane_by_lane, svd
from saddleflow.problem import geometry, spectrum
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.spectrum import ZERO

# Levenberg-Marquardt starts with a damping of this share of the (scaled) curvature, to the square.
INITIAL_DAMPING = 1e-5

# Learned and unlearned directions of a layer differ by this factor at least, or there is no telling them apart.
MIN_GAP = 3.0

# A polish of more parameters than this is matrix-free; of fewer, a dense factorisation compiles and runs faster.
MAX_DENSE = 1000


class Truncation(eqx.Module):
    """The leading directions of every hidden space of a network.

    Attributes:
        network: the network restricted to them, of width `rank`: layers `B_l^T W_l B_{l-1}`.
        bases: B_1, ..., B_{L-1}, orthonormal, B_l of shape (n_l, rank).
    """

    network: DeepLinearNetwork
    bases: tuple[Float[Array, "_ rank"], ...]

    def restore(self, network: DeepLinearNetwork) -> DeepLinearNetwork:
        """A network of width `rank`, back in the spaces of the original: layers `B_l W_l B_{l-1}^T`."""
        layers = list(network.layers)
        for index, basis in enumerate(self.bases):
            layers[index] = basis @ layers[index]
            layers[index + 1] = layers[index + 1] @ basis.T
        return DeepLinearNetwork(layers)


class StationaryPoint(eqx.Module):
    """A point where the gradient of the loss in theta vanishes, near a given network.

    Attributes:
        network: the point, of the given network's widths.
        gradient_norm: |grad_theta C(A(theta))| there.
        distance: Euclidean distance of all parameters from the given network.
        converged: whether `gradient_norm` is within the tolerance asked for.
        num_steps: steps taken, accepted or not.
    """

    network: DeepLinearNetwork
    gradient_norm: Float[Array, ""]
    distance: Float[Array, ""]
    converged: Bool[Array, ""]
    num_steps: Int[Array, ""]


def truncate(network: DeepLinearNetwork, rank: int) -> Truncation:
    """Keep the `rank` leading directions of every hidden space.

    Those of hidden space l are the leading eigenvectors of `W_l W_l^T + W_{l+1}^T W_{l+1}`, what enters it and what
    leaves it. A pure function of arrays for each rank, so it works under `jit` and `vmap`.

    Args:
        network: the network.
        rank: how many directions to keep, at least 1, at most the smallest hidden width.

    Raises:
        ValueError: a rank out of range.
    """
    require_integer("rank", rank, 1)
    require(rank <= min(network.hidden_widths), "rank", f"be at most the width {network.width}", rank)
    bases = []
    for below, above in zip(network.layers, network.layers[1:], strict=False):
        # the singular vectors of the stacked layers: their squares would cost half of the digits
        bases.append(svd(jnp.concatenate([below, above.T], axis=1))[0][:, :rank])
    layers = list(network.layers)
    for index, basis in enumerate(bases):
        layers[index] = basis.T @ layers[index]
        layers[index + 1] = layers[index + 1] @ basis
    return Truncation(DeepLinearNetwork(layers), tuple(bases))


def learned_rank(network: DeepLinearNetwork) -> int:
    """Number of learned directions: where the layers' singular values have their largest gap.

    The k-th values of all layers count by their geometric mean. Without a gap of at least a factor `MIN_GAP`, all
    directions that A can use count as learned: the origin has no gap and must be recognised by other means.
    """
    count = min(*network.shape, *network.hidden_widths)
    logs = [jnp.log(jnp.linalg.svd(layer, compute_uv=False)[:count] + 1e-300) for layer in network.layers]
    mean = sum(logs, start=jnp.zeros(count)) / network.depth
    if count == 1:
        return 1
    gaps = mean[:-1] - mean[1:]
    index = int(jnp.argmax(gaps))
    return index + 1 if float(gaps[index]) >= math.log(MIN_GAP) else count


def polish(
    cost: Cost,
    network: DeepLinearNetwork,
    *,
    rank: int | None = None,
    rtol: float = 1e-10,
    max_steps: int = 100,
) -> StationaryPoint:
    """The stationary point of the loss nearest to a network.

    The network is truncated to its `rank` learned directions (the others become exactly zero); there
    Levenberg-Marquardt (matrix-free beyond 1000 parameters) solves `grad_theta = 0` together with the condition
    that the displacement is orthogonal to the orbit of critical points through the solution, `dW_l W_l^T =
    W_{l+1}^T dW_{l+1}`: so it is the nearest point of that orbit, and nothing slides along the symmetries. The
    condition also keeps the balancedness to first order.

    "Converged" means `|grad_theta| <= rtol * |grad C(0)|_F * max_l |M_l|_F |N_l|_F`, with M_l and N_l the products of
    the layers above and below layer l: what the gradient would be without cancellation. (Where grad C(0) = 0, grad
    C(A) of the given network takes its place.)

    Args:
        cost: the cost C.
        network: the network, near a stationary point.
        rank: number of learned directions, from 0 (the origin); None takes `learned_rank(network)`.
        rtol: relative tolerance of the gradient.
        max_steps: steps at most.

    Raises:
        ValueError: rank, rtol or max_steps out of range, or a network that does not fit the cost.
    """
    require(
        tuple(network.shape) == tuple(cost.shape),
        "network",
        f"have the end-to-end shape of the cost, {tuple(cost.shape)}",
        tuple(network.shape),
    )
    require_positive("rtol", rtol)
    require_integer("max_steps", max_steps, 1)
    rank = learned_rank(network) if rank is None else rank
    require_integer("rank", rank, 0)
    if rank == 0:
        return _origin(network)
    return _polish_rank(cost, network, rank, jnp.asarray(rtol), max_steps)


def _origin(network: DeepLinearNetwork) -> StationaryPoint:
    zero = jnp.zeros(())
    return StationaryPoint(
        network=jax.tree.map(jnp.zeros_like, network),
        gradient_norm=zero,
        distance=geometry.norm(network),
        converged=jnp.ones((), bool),
        num_steps=jnp.zeros((), int),
    )


@eqx.filter_jit
def _polish_rank(cost, network, rank, rtol, max_steps) -> StationaryPoint:
    truncation = truncate(network, rank)
    small, gradient_norm, converged, num_steps = polish_full_rank(cost, truncation.network, rtol, max_steps)
    point = truncation.restore(small)
    return StationaryPoint(
        network=point,
        gradient_norm=gradient_norm,
        distance=geometry.norm(jax.tree.map(jnp.subtract, point, network)),
        converged=converged,
        num_steps=num_steps,
    )


def polish_full_rank(
    cost: Cost, network: DeepLinearNetwork, rtol: Float[Array, ""], max_steps: int
) -> tuple[DeepLinearNetwork, Float[Array, ""], Bool[Array, ""], Int[Array, ""]]:
    """The core of `polish`, for a network all of whose directions are learned; for `jax.jit` and `jax.vmap`.

    Returns:
        The stationary point, the norm of the gradient there, whether it is within the tolerance, steps taken.
    """
    return lane_by_lane(partial(_nearest_in_full_rank, max_steps=max_steps))(cost, network, rtol)


def _nearest_in_full_rank(cost, network, rtol, *, max_steps):
    size = geometry.norm(network)
    unit = _gradient_unit(cost, network)

    def displaced(displacement):
        return jax.tree.map(lambda w, d: w + size * d, network, displacement)

    def residuals(displacement, _):
        candidate = displaced(displacement)
        gradients = jax.tree.map(lambda g: g / unit, geometry.gradient(cost, candidate))
        moves = zip(displacement.layers, candidate.layers, strict=True)
        along_orbit = [
            (change @ below.T - above.T @ change_above) / size
            for (change, below), (change_above, above) in itertools.pairwise(moves)
        ]
        return jax.tree.map(lambda r: r / INITIAL_DAMPING, (gradients, along_orbit))

    solution = optx.least_squares(
        residuals,
        # the displacement's own rounding is that of theta: nothing smaller is asked for
        optx.LevenbergMarquardt(
            rtol=1e-14,
            atol=1e-14,
            linear_solver=lx.QR() if network.num_parameters <= MAX_DENSE else lx.LSMR(rtol=1e-10, atol=1e-14),
        ),
        jax.tree.map(jnp.zeros_like, network),
        options={"jac": "fwd"},
        max_steps=max_steps,
        throw=False,
    )
    point = displaced(solution.value)
    gradient_norm = geometry.norm(geometry.gradient(cost, point))
    converged = gradient_norm <= rtol * _gradient_unit(cost, point)
    return point, gradient_norm, converged, solution.stats["num_steps"]


def _gradient_unit(cost: Cost, network: DeepLinearNetwork) -> Float[Array, ""]:
    """What the gradient in theta would be without cancellation: `|grad C(0)|_F max_l |M_l|_F |N_l|_F`."""
    left, right = geometry.partial_products(network)
    at_zero = jnp.linalg.norm(cost.gradient(jnp.zeros(cost.shape)))
    here = jnp.linalg.norm(cost.gradient(network.end_to_end()))
    return jnp.where(at_zero > 0, at_zero, here) * jnp.max(geometry.sizes(left, right))


class HessianSpectrum(eqx.Module):
    """What the Hessian of the loss looks like at a point.

    Attributes:
        index: number of negative eigenvalues.
        least: the least eigenvalue.
        largest: the largest eigenvalue.
    """

    index: int
    least: float
    largest: float


def hessian_spectrum(cost: Cost, network: DeepLinearNetwork, rank: int) -> HessianSpectrum:
    """The Hessian of the loss at a stationary point of `rank` learned directions, the others exactly zero.

    It falls apart into the Hessian of the network of width `rank` and the unlearned directions. Those have, for
    L = 2, the eigenvalues +- s_i(grad C(A)), once for each of the width - rank free neurons; for L > 2 none but zeros
    (the saddle is not strict), since an unlearned neuron is then at least a third-order term. The ends of the learned
    part's spectrum are found by Lanczos iteration on Hessian-vector products (ARPACK); only where it has negative
    eigenvalues, which a saddle that a flow visits has not, it is made dense to count them. Eigenvalues within 1e-8 of
    the largest in size count as zero.

    Args:
        cost: the cost C.
        network: the stationary point, from `polish`.
        rank: number of its learned directions.

    Standing: derived; checked against dense Hessians in the tests.
    """
    least, largest, index, strengths = 0.0, 0.0, 0, np.zeros(0)
    if network.depth == 2:
        free = network.hidden_widths[0] - rank
        strengths = np.linalg.svd(np.asarray(cost.gradient(network.end_to_end())), compute_uv=False)
        strengths = np.repeat(strengths, free)
        least, largest = -np.max(strengths, initial=0.0), np.max(strengths, initial=0.0)
    if rank > 0:
        flat, unravel = ravel_pytree(truncate(network, rank).network)
        product = jax.jit(
            lambda v: ravel_pytree(geometry.hessian_vector_product(cost, unravel(flat), unravel(v.ravel())))[0]
        )
        ends = spectrum.ends(product, flat.size)
        least, largest = min(least, ends[0]), max(largest, ends[1])
        if ends[0] < -ZERO * largest:
            index = spectrum.index(product, flat.size, largest)
    index += int(np.sum(strengths > ZERO * largest))
    return HessianSpectrum(index, float(least), float(largest))
