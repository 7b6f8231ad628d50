"""The loss landscape seen from one network: gradient, Hessian-vector product, neural tangent kernel.

Everything goes through the partial products `M_l = W_L ... W_{l+1}` (n_out rows) and
`N_l = W_{l-1} ... W_1` (n_in columns): O(L w^2 n) work, and never a w x w by w x w product.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork

# What rounding leaves of a sum that cancels, relative to the sum of its terms' sizes.
ROUNDING = 16 * 2.0**-52


def partial_products(
    network: DeepLinearNetwork,
) -> tuple[tuple[Float[Array, "n_out _"], ...], tuple[Float[Array, "_ n_in"], ...]]:
    """The partial products `(M_1, ..., M_L)` and `(N_1, ..., N_L)` around each layer.

    Returns:
        left: `M_l = W_L ... W_{l+1}`, shape (n_out, n_l); `M_L` is the identity.
        right: `N_l = W_{l-1} ... W_1`, shape (n_{l-1}, n_in); `N_1` is the identity.
    """
    n_out, n_in = network.shape
    first, *inner, last = network.layers
    left, right = [last], [first]  # not products with the identity: small ones cost as much as any
    for layer in inner[::-1]:
        left.append(left[-1] @ layer)
    for layer in inner:
        right.append(layer @ right[-1])
    return (*left[::-1], jnp.eye(n_out)), (jnp.eye(n_in), *right)


def pull_back(
    left: tuple[Float[Array, "n_out _"], ...],
    right: tuple[Float[Array, "_ n_in"], ...],
    matrix: Float[Array, "n_out n_in"],
) -> DeepLinearNetwork:
    """The transposed Jacobian of A: `(M_l^T G N_l^T)_l`, from the partial products and a matrix G."""
    n_out, n_in = matrix.shape
    first, last = left[0].T @ matrix, matrix @ right[-1].T
    if n_in <= n_out:
        inner = ((m.T @ matrix) @ n.T for m, n in zip(left[1:-1], right[1:-1], strict=True))
    else:
        inner = (m.T @ (matrix @ n.T) for m, n in zip(left[1:-1], right[1:-1], strict=True))
    return DeepLinearNetwork([first, *inner, last])


def push_forward(
    left: tuple[Float[Array, "n_out _"], ...],
    right: tuple[Float[Array, "_ n_in"], ...],
    direction: DeepLinearNetwork,
) -> Float[Array, "n_out n_in"]:
    """The Jacobian of A: `sum_l M_l V_l N_l`, from the partial products and a direction V of the parameters."""
    first, *inner, last = direction.layers
    moved = left[0] @ first + last @ right[-1]
    return moved + sum(m @ v @ n for m, v, n in zip(left[1:-1], inner, right[1:-1], strict=True))


def gradient(cost: Cost, network: DeepLinearNetwork) -> DeepLinearNetwork:
    """Gradient of the loss `C(A(theta))`: `dC/dW_l = M_l^T grad C(A) N_l^T`, a network of gradients.

    One sweep of products from the thinner side to A, one of pulled-back gradients the other way: no product twice.
    """
    n_out, n_in = network.shape
    first, *inner, last = network.layers
    gradients = []
    if n_in <= n_out:
        right = [first]
        for layer in inner:
            right.append(layer @ right[-1])
        pulled = cost.gradient(last @ right[-1]).T  # (M_l^T grad C(A))^T, from l = L down
        for layer in (last, *inner[::-1]):
            gradients.append(_transposed(pulled) @ right.pop().T)
            pulled = pulled @ layer
        return DeepLinearNetwork([pulled.T, *gradients[::-1]])
    left = [last]
    for layer in inner[::-1]:
        left.append(left[-1] @ layer)
    pulled = cost.gradient(left[-1] @ first)  # grad C(A) N_l^T, from l = 1 up
    for layer in (first, *inner):
        gradients.append(_transposed(left.pop()) @ pulled)
        pulled = pulled @ layer.T
    return DeepLinearNetwork([*gradients, pulled])


def _transposed(thin: Float[Array, "n w"]) -> Float[Array, "w n"]:
    """The transpose as an array of its own: CPU products with a left factor to be transposed are slow."""
    return jax.lax.optimization_barrier(thin.T)


def gradient_flow_field(time: Any, network: DeepLinearNetwork, cost: Cost) -> DeepLinearNetwork:
    """The vector field `-grad C(A(theta))` in the form `diffrax.ODETerm` wants; the cost rides as `args`."""
    del time  # autonomous
    return jax.tree.map(jnp.negative, gradient(cost, network))


def hessian_vector_product(cost: Cost, network: DeepLinearNetwork, direction: DeepLinearNetwork) -> DeepLinearNetwork:
    """Hessian of the loss `C(A(theta))` at the network, applied to a direction: the sweeps' tangents."""
    return jax.jvp(lambda theta: gradient(cost, theta), (network,), (direction,))[1]


def neural_tangent_kernel(
    network: DeepLinearNetwork, matrix: Float[Array, "n_out n_in"]
) -> Float[Array, "n_out n_in"]:
    """The NTK as an operator on matrices: `K(G) = sum_l M_l M_l^T G N_l^T N_l`, so `dA/dt = -K(grad C(A))`."""
    left, right = partial_products(network)
    return sum(
        ((m @ m.T) @ matrix @ (n.T @ n) for m, n in zip(left, right, strict=True)),
        start=jnp.zeros_like(matrix),
    )


def stiffness(cost: Cost, network: DeepLinearNetwork) -> Float[Array, ""]:
    """About the fastest relaxation rate of the flow: the norm of the NTK times the curvature of C along A."""
    left, right = partial_products(network)
    matrix = left[0] @ network.layers[0]
    _, curved = jax.jvp(cost.gradient, (matrix,), (matrix,))
    kernel = sum(jnp.sum(m**2) * jnp.sum(n**2) for m, n in zip(left, right, strict=True))
    return kernel * jnp.linalg.norm(curved) / jnp.linalg.norm(matrix)


def norm(tree: PyTree[Float[Array, "..."]]) -> Float[Array, ""]:
    """Euclidean norm of a network, a gradient or any parameters as one vector; nothing underflows on the way."""
    leaves = jax.tree.leaves(tree)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    unit = jnp.where(largest > 0, largest, 1.0)
    return unit * jnp.sqrt(sum(jnp.sum((leaf / unit) ** 2) for leaf in leaves))


def end_to_end_error(
    before: DeepLinearNetwork, after: DeepLinearNetwork, error: DeepLinearNetwork
) -> Float[Array, ""]:
    """The relative error of A that an error of the network makes, to first order.

    Relative to `|A|_F`, or to what Gaussian layers of these norms would make, `prod |W_l|_F / sqrt(prod n_l)` over
    hidden spaces l, where A is smaller still.
    """
    matrix, change = jax.jvp(lambda theta: theta.end_to_end(), (after,), (error,))
    del before
    typical = jnp.prod(jnp.stack([jnp.linalg.norm(w) / jnp.sqrt(w.shape[0]) for w in after.layers[:-1]]))
    typical = typical * jnp.linalg.norm(after.layers[-1])
    size = jnp.maximum(jnp.linalg.norm(matrix), typical)
    return jnp.where(size > 0, jnp.linalg.norm(change) / jnp.where(size > 0, size, 1.0), 0.0)


def at_rest(
    cost: Cost, network: DeepLinearNetwork, graded: bool
) -> tuple[Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
    """The norm of the gradient, whether it is zero or a cancellation that rounding leaves, and whether grad C(A) is.

    In graded coordinates that is asked of every entry: a tiny force on an unlearned direction, computed from small
    numbers alone, is not taken for the rounding of a learned one. In others each entry has the rounding of all. The
    cost's own gradient is taken to be known to the rounding of what A adds to it.
    """
    left, right = partial_products(network)
    matrix = left[0] @ network.layers[0]
    matrix_gradient = cost.gradient(matrix)
    # no derivative of it: explicit solvers take costs that have none
    sizes = jnp.abs(matrix_gradient) + jnp.abs(matrix_gradient - cost.gradient(jnp.zeros_like(matrix)))
    forces = pull_back(left, right, matrix_gradient)
    size = norm(forces)

    def cancels():
        terms = pull_back(tuple(map(jnp.abs, left)), tuple(map(jnp.abs, right)), sizes)
        if not graded:
            return size <= ROUNDING * norm(terms)
        quiet = [jnp.all(jnp.abs(f) <= ROUNDING * t) for f, t in zip(forces.layers, terms.layers, strict=True)]
        return jnp.all(jnp.stack(quiet))

    # what the terms cannot exceed costs little, and nearly always says enough
    bounds = [jnp.linalg.norm(m) * jnp.linalg.norm(n) for m, n in zip(left, right, strict=True)]
    bound = jnp.linalg.norm(sizes) * jnp.linalg.norm(jnp.stack(bounds))
    resting = jax.lax.cond((bound > 0) & (size > 2 * ROUNDING * bound), lambda: jnp.asarray(False), cancels)
    return size, resting, jnp.linalg.norm(matrix_gradient) <= ROUNDING * jnp.linalg.norm(sizes)
