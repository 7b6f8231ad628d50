"""The loss landscape seen from one network: gradient, Hessian-vector product, neural tangent kernel.

Everything goes through the partial products `M_l = W_L ... W_{l+1}` (n_out rows) and
`N_l = W_{l-1} ... W_1` (n_in columns): O(L w^2 n) work, and never a w x w by w x w product.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from saddleflow._backend.arguments import takes
from saddleflow._backend.checks import as_float64
from saddleflow.problem import readers
from saddleflow.problem.costs import Cost
from saddleflow.problem.curvature import kronecker_sum
from saddleflow.problem.layered import Active, Hidden, Layered, StackedNetwork, each, fold, joined
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.padding import Padding

# What rounding leaves of a sum that cancels, relative to the sum of its terms' sizes.
ROUNDING = 16 * 2.0**-52


def partial_products(network: Any, active: Active = None) -> tuple[Layered, Layered]:
    """The partial products `(M_1, ..., M_L)` and `(N_1, ..., N_L)` around each layer.

    Args:
        network: layers side by side, or equal ones in a stack.
        active: layers of a stack that are there.

    Returns:
        left: `M_l = W_L ... W_{l+1}`, shape (n_out, n_l); `M_L` is the identity.
        right: `N_l = W_{l-1} ... W_1`, shape (n_{l-1}, n_in); `N_1` is the identity.
    """
    n_out, n_in = network.shape
    first, hidden, last = network.parts  # not products with the identity: small ones cost as much as any
    if last is None:
        return Layered(jnp.eye(n_out), (), None), Layered(jnp.eye(n_in), (), None)
    below, right = fold(lambda n, layer: (layer @ n, (n,)), first, hidden, active=active)
    above, left = fold(lambda m, layer: (m @ layer, (m,)), last, hidden, active=active, reverse=True)
    return Layered(above, left, jnp.eye(n_out)), Layered(jnp.eye(n_in), right, below)


def pull_back(left: Layered, right: Layered, matrix: Float[Array, "n_out n_in"]) -> Any:
    """The transposed Jacobian of A: `(M_l^T G N_l^T)_l`, from the partial products and a matrix G."""
    n_out, n_in = matrix.shape
    if right.last is None:
        return as_network(matrix, (), None)

    def inner(m, n):
        return (m.T @ matrix) @ n.T if n_in <= n_out else m.T @ (matrix @ n.T)

    return as_network(left.first.T @ matrix, each(inner, left.hidden, right.hidden), matrix @ right.last.T)


def push_forward(left: Layered, right: Layered, direction: Any) -> Float[Array, "n_out n_in"]:
    """The Jacobian of A: `sum_l M_l V_l N_l`, from the partial products and a direction V of the parameters."""
    first, hidden, last = direction.parts
    if last is None:
        return first
    moved = left.first @ first + last @ right.last
    return moved + over_layers(each(lambda m, v, n: m @ v @ n, left.hidden, hidden, right.hidden))


def end_to_end(network: Any, active: Active = None) -> Float[Array, "n_out n_in"]:
    """The end-to-end matrix of layers side by side or in a stack, multiplied from its thinner side."""
    n_out, n_in = network.shape
    first, hidden, last = network.parts
    if last is None:
        return first
    if n_in <= n_out:
        product, _ = fold(lambda n, layer: (layer @ n, ((),)), first, hidden, active=active)
        return last @ product
    product, _ = fold(lambda m, layer: (m @ layer, ((),)), last, hidden, active=active, reverse=True)
    return product @ first


@takes(cost=readers.cost, network=readers.chain)
def gradient(cost: Cost, network: Any, active: Active = None) -> Any:
    """Gradient of the loss `C(A(theta))`: `dC/dW_l = M_l^T grad C(A) N_l^T`, a network of gradients.

    One sweep of products from the thinner side to A, one of pulled-back gradients the other way: no product twice.

    >>> cost = sf.SquaredError([[2.0]])
    >>> sf.gradient(cost, sf.DeepLinearNetwork([[[1.0]], [[3.0]]])).layers[0].tolist()  # 2 (3 - 2) 3
    [[6.0]]

    Args:
        cost: the cost C.
        network: layers side by side, or equal ones in a stack.
        active: layers of a stack that are there.
    """
    n_out, n_in = network.shape
    first, hidden, last = network.parts
    if last is None:
        return as_network(cost.gradient(first), (), None)
    if n_in <= n_out:
        below, right = fold(lambda n, layer: (layer @ n, (n,)), first, hidden, active=active)

        def down(pulled, layer, n):  # (M_l^T grad C(A))^T, from l = L down
            return pulled @ layer, (_transposed(pulled) @ n.T,)

        pulled = cost.gradient(last @ below).T
        at_last = _transposed(pulled) @ below.T
        pulled, inner = fold(down, pulled @ last, hidden, right, active=active, reverse=True)
        return as_network(pulled.T, inner, at_last)
    above, left = fold(lambda m, layer: (m @ layer, (m,)), last, hidden, active=active, reverse=True)

    def up(pulled, layer, m):  # grad C(A) N_l^T, from l = 1 up
        return pulled @ layer.T, (_transposed(m) @ pulled,)

    pulled = cost.gradient(above @ first)
    at_first = _transposed(above) @ pulled
    pulled, inner = fold(up, pulled @ first.T, hidden, left, active=active)
    return as_network(at_first, inner, pulled)


def as_network(first: Array, hidden: Hidden, last: Array | None) -> Any:
    """A network of its layers, hidden ones side by side or in a stack; `last` is None for a single layer."""
    if isinstance(hidden, tuple):
        return DeepLinearNetwork(Layered(first, hidden, last).one_by_one())
    assert last is not None, "a stack has two layers at its ends"
    return StackedNetwork(first, hidden, last)


def over_layers(hidden: Hidden) -> Any:
    """The sum over hidden layers."""
    return sum(hidden) if isinstance(hidden, tuple) else jnp.sum(hidden, axis=0)


def along(hidden: Hidden) -> Array:
    """One number for every hidden layer, as a vector."""
    return jnp.asarray(hidden, float)


def sizes(left: Layered, right: Layered) -> Float[Array, " layers"]:
    """`|M_l|_F |N_l|_F` for every layer."""

    def size(m, n):
        return jnp.linalg.norm(m) * jnp.linalg.norm(n)

    inner = each(size, left.hidden, right.hidden)
    first = size(left.first, right.first)
    return first[None] if left.last is None else joined(Layered(first, inner, size(left.last, right.last)))


def _transposed(thin: Float[Array, "n w"]) -> Float[Array, "w n"]:
    """The transpose as an array of its own: CPU products with a left factor to be transposed are slow."""
    return jax.lax.optimization_barrier(thin.T)


def gradient_flow_field(time: Any, network: DeepLinearNetwork, cost: Cost) -> DeepLinearNetwork:
    """The vector field `-grad C(A(theta))` in the form `diffrax.ODETerm` wants; the cost rides as `args`."""
    del time  # autonomous
    return jax.tree.map(jnp.negative, gradient(cost, network))


@takes(cost=readers.cost, network=readers.network, direction=readers.network)
def hessian_vector_product(cost: Cost, network: DeepLinearNetwork, direction: DeepLinearNetwork) -> DeepLinearNetwork:
    """The Hessian of the loss `C(A(theta))` at a network, applied to a direction.

    >>> cost, network = sf.SquaredError([[2.0]]), sf.DeepLinearNetwork([[[1.0]], [[3.0]]])
    >>> along = sf.DeepLinearNetwork([[[1.0]], [[0.0]]])
    >>> sf.hessian_vector_product(cost, network, along).layers[0].tolist()  # 2 * 3 * 3
    [[18.0]]
    """
    return jax.jvp(lambda theta: gradient(cost, theta), (network,), (direction,))[1]


@takes(network=readers.network, matrix=as_float64)
def neural_tangent_kernel(
    network: DeepLinearNetwork, matrix: Float[Array, "n_out n_in"]
) -> Float[Array, "n_out n_in"]:
    """The NTK as an operator on matrices: `K(G) = sum_l M_l M_l^T G N_l^T N_l`, so `dA/dt = -K(grad C(A))`.

    >>> network = sf.DeepLinearNetwork([[[1.0]], [[3.0]]])
    >>> sf.neural_tangent_kernel(network, jnp.array([[1.0]])).tolist()  # 3^2 + 1^2
    [[10.0]]
    """
    left, right = partial_products(network)
    return sum(
        ((m @ m.T) @ matrix @ (n.T @ n) for m, n in zip(left.one_by_one(), right.one_by_one(), strict=True)),
        start=jnp.zeros_like(matrix),
    )


def kernel_matrix(network: DeepLinearNetwork) -> Float[Array, "entries entries"]:
    """The NTK as a matrix on the entries of A, row by row: `sum_l (M_l M_l^T) (x) (N_l^T N_l)`."""
    left, right = partial_products(network)
    return kronecker_sum(tuple(m @ m.T for m in left.one_by_one()), tuple(n.T @ n for n in right.one_by_one()))


def stiffness(cost: Cost, network: Any, active: Active = None) -> Float[Array, ""]:
    """About the fastest relaxation rate of the flow: the norm of the NTK times the curvature of C along A."""
    left, right = partial_products(network, active)
    matrix = left.first @ network.parts.first
    _, curved = jax.jvp(cost.gradient, (matrix,), (matrix,))
    kernel = jnp.sum(sizes(left, right) ** 2)
    return kernel * jnp.linalg.norm(curved) / jnp.linalg.norm(matrix)


def norm(tree: PyTree[Float[Array, "..."]]) -> Float[Array, ""]:
    """Euclidean norm of a network, a gradient or any parameters as one vector; nothing underflows on the way."""
    leaves = jax.tree.leaves(tree)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    unit = jnp.where(largest > 0, largest, 1.0)
    return unit * jnp.sqrt(sum(jnp.sum((leaf / unit) ** 2) for leaf in leaves))


def end_to_end_error(after: Any, error: Any, padding: Padding | None = None) -> Float[Array, ""]:
    """The relative error of A that an error of the network makes, to first order.

    Relative to `|A|_F`, or to what Gaussian layers of these norms would make, `prod |W_l|_F / sqrt(prod n_l)` over
    hidden spaces l, where A is smaller still.
    """
    active = None if padding is None else padding.active
    matrix, change = jax.jvp(lambda theta: end_to_end(theta, active), (after,), (error,))
    first, hidden, last = after.parts
    if last is None:
        size = jnp.linalg.norm(matrix)
        return jnp.where(size > 0, jnp.linalg.norm(change) / jnp.where(size > 0, size, 1.0), 0.0)
    roots = jnp.sqrt(jnp.asarray(after.hidden_widths if padding is None else padding.widths, float))
    inner = along(each(jnp.linalg.norm, hidden)) / roots[1:]
    inner = inner if active is None else jnp.where(active, inner, 1.0)
    typical = jnp.linalg.norm(first) / roots[0] * jnp.prod(inner) * jnp.linalg.norm(last)
    size = jnp.maximum(jnp.linalg.norm(matrix), typical)
    return jnp.where(size > 0, jnp.linalg.norm(change) / jnp.where(size > 0, size, 1.0), 0.0)


def at_rest(
    cost: Cost, network: Any, graded: bool, active: Active = None
) -> tuple[Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
    """The norm of the gradient, whether it is zero or a cancellation that rounding leaves, and whether grad C(A) is.

    In graded coordinates that is asked of every entry: a tiny force on an unlearned direction, computed from small
    numbers alone, is not taken for the rounding of a learned one. In others each entry has the rounding of all. The
    cost's own gradient is taken to be known to the rounding of what A adds to it.
    """
    left, right = partial_products(network, active)
    matrix = left.first @ network.parts.first
    matrix_gradient = cost.gradient(matrix)
    # no derivative of it: explicit solvers take costs that have none
    terms = jnp.abs(matrix_gradient) + jnp.abs(matrix_gradient - cost.gradient(jnp.zeros_like(matrix)))
    forces = pull_back(left, right, matrix_gradient)
    size = norm(forces)

    def cancels():
        above, below = jax.tree.map(jnp.abs, (left, right))
        sums = pull_back(above, below, terms)
        if not graded:
            return size <= ROUNDING * norm(sums)
        quiet = jax.tree.map(lambda f, t: jnp.all(jnp.abs(f) <= ROUNDING * t), forces, sums)
        return jnp.all(jnp.stack(jax.tree.leaves(quiet)))

    # what the terms cannot exceed costs little, and nearly always says enough
    bound = jnp.linalg.norm(terms) * jnp.linalg.norm(sizes(left, right))
    resting = jax.lax.cond((bound > 0) & (size > 2 * ROUNDING * bound), lambda: jnp.asarray(False), cancels)
    return size, resting, jnp.linalg.norm(matrix_gradient) <= ROUNDING * jnp.linalg.norm(terms)
