"""Quantities followed along a trajectory: functions of the spectrum of A, of the whole network, of any model.

Functions of a spectrum take singular values in descending order with any leading axes. Observables are functions of
cost and network, or of objective and model, evaluated inside the compiled loop at every saved time; `register` adds
one of your own. Those of the Hessian and of the neural tangent kernel work for networks and for any model:

    run = sf.gradient_flow(objective, model, t1=1e3, observables=["sharpness", "layer_norms"])
    top = {"top": sf.observables.HessianEigenvalues(5), "kernel": sf.observables.KernelEigenvalues(5)}
    run = sf.gradient_flow(cost, network, observables=top)
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from saddleflow._backend.checks import require, require_integer
from saddleflow.problem import geometry
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.objective import Objective
from saddleflow.problem.spectrum import leading_eigenvalues

Observable = Callable[[Any, Any], Any]

REGISTRY: dict[str, Observable] = {}


def register(observable: Observable) -> Observable:
    """Make `observable(cost, network) -> array` known by its name; usable as a decorator."""
    name = observable.__name__
    require(name not in REGISTRY, "observable", "have a new name", name, f"Known: {sorted(REGISTRY)}.")
    REGISTRY[name] = observable
    return observable


def through_products(observable: Observable) -> Observable:
    """Declare that an observable depends on the network only through A, its partial products or the gradient.

    Those are all in the hidden directions that a reduced network keeps (`saddleflow.width.projected`), so the
    observable may be evaluated on the small network; usable as a decorator.
    """
    observable.__dict__["through_products"] = True
    return observable


def resolve(observables: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Observable]:
    """Named observables as functions: a mapping stays, a sequence of names is looked up.

    Raises:
        ValueError: a name that nobody registered; the message lists the known ones.
    """
    if observables is None:
        return {}
    if isinstance(observables, Mapping):
        for name, function in observables.items():
            require(callable(function), "observables", f"map {name!r} to a function (cost, network)", function)
        return dict(observables)
    names = [observables] if isinstance(observables, str) else list(observables)
    for name in names:
        require(name in REGISTRY, "observables", f"name one of {sorted(REGISTRY)}", name)
    return {name: REGISTRY[name] for name in names}


def networks_only(observable: Observable) -> Observable:
    """A decorator for observables of deep linear networks, which refuse other models."""

    @wraps(observable)
    def call(cost: Any, network: Any) -> Any:
        remedy = "It is defined for deep linear networks."
        name = f"observables ({observable.__name__})"
        require(isinstance(network, DeepLinearNetwork), name, "fit the model", type(network).__name__, remedy)
        return observable(cost, network)

    return call


@register
def parameter_norm(cost: Any, network: Any) -> Float[Array, ""]:
    """Euclidean norm |theta| of all parameters."""
    del cost
    return geometry.norm(eqx.filter(network, eqx.is_inexact_array))


@register
def layer_norms(cost: Any, network: Any) -> Float[Array, " arrays"]:
    """Frobenius norms of the layers; of a model those of its floating-point arrays, in the order of the pytree."""
    del cost
    return jnp.stack([jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))])


@register
@networks_only
def layer_singular_values(cost: Cost, network: DeepLinearNetwork) -> Float[Array, "depth count"]:
    """The largest singular values of every layer, as many as A has."""
    del cost
    count = min(min(network.shape), *network.hidden_widths)
    return jnp.stack([jnp.linalg.svd(layer, compute_uv=False)[:count] for layer in network.layers])


@register
@networks_only
def alignment(cost: Cost, network: DeepLinearNetwork) -> Float[Array, " depth_minus_1"]:
    """|cosine| between the top left singular vector of W_l and the top right one of W_{l+1}."""
    del cost
    factors = [jnp.linalg.svd(layer, full_matrices=False) for layer in network.layers]
    return jnp.asarray([jnp.abs(below[0][:, 0] @ above[2][0]) for below, above in itertools.pairwise(factors)], float)


@register
@through_products
@networks_only
def ntk_rate(cost: Cost, network: DeepLinearNetwork) -> Float[Array, ""]:
    """Rayleigh quotient of the neural tangent kernel at grad C(A): |grad_theta|^2 / |grad_A C|^2."""
    matrix = cost.gradient(network.end_to_end())
    return jnp.sum(matrix * geometry.neural_tangent_kernel(network, matrix)) / jnp.sum(matrix**2)


def _as_vector(model: Any) -> tuple[Float[Array, " p"], Callable[[Float[Array, " p"]], Any]]:
    """The floating-point arrays of a model as one vector, and the way back."""
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(parameters)
    return flat, lambda theta: eqx.combine(unravel(theta), rest)


def _outputs(cost: Any, model: Any) -> Float[Array, "n_out n_in"]:
    """What the cost is a function of: A of a network, the outputs of a model."""
    return cost.outputs(model) if isinstance(cost, Objective) else model.end_to_end()


def _loss(cost: Any, model: Any) -> Float[Array, ""]:
    return cost(model) if isinstance(cost, Objective) else cost(model.end_to_end())


def _start_vector(size: int) -> Float[Array, " p"]:
    """A vector without a pattern."""
    return jnp.cos(jnp.arange(1.0, size + 1) ** 2)


@dataclass(frozen=True)
class HessianEigenvalues:
    """An observable: eigenvalues from one end of the Hessian of the loss, in all floating-point arrays of a model.

    By Lanczos iteration (see `saddleflow.problem.spectrum.leading_eigenvalues`), one Hessian-vector product a step.
    The one at the end converges first; more products resolve close ones.

    Attributes:
        count: how many, from the end inwards.
        num_products: products at most; with as many as there are parameters all are exact.
        least: from the lower end, where saddles have negative ones, and not from the upper.
    """

    count: int = 1
    num_products: int = 48
    least: bool = False

    def __post_init__(self):
        require_integer("count", self.count, 1)
        require_integer("num_products", self.num_products, self.count, "It takes a product for each at least.")

    def __call__(self, cost: Any, model: Any) -> Float[Array, " count"]:
        """The eigenvalues of one model."""
        flat, model_of = _as_vector(model)
        gradient = jax.grad(lambda theta: _loss(cost, model_of(theta)))

        sign = -1.0 if self.least else 1.0

        def product(v):
            return sign * jax.jvp(gradient, (flat,), (v,))[1]

        return sign * leading_eigenvalues(product, _start_vector(flat.size), self.count, self.num_products)


@register
def sharpness(cost: Any, model: Any) -> Float[Array, ""]:
    """The largest eigenvalue of the Hessian of the loss: gradient descent is stable up to a rate of 2 over it."""
    return HessianEigenvalues()(cost, model)[0]


@dataclass(frozen=True)
class KernelEigenvalues:
    """An observable: the largest eigenvalues of the neural tangent kernel `J J^T`, J the derivative of all outputs.

    By Lanczos iteration, as `HessianEigenvalues`; a product takes one forward and one reverse derivative.

    Attributes:
        count: how many, in descending order.
        num_products: products at most; with as many as there are outputs all are exact.
    """

    count: int = 1
    num_products: int = 48

    def __post_init__(self):
        require_integer("count", self.count, 1)
        require_integer("num_products", self.num_products, self.count, "It takes a product for each at least.")

    def __call__(self, cost: Any, model: Any) -> Float[Array, " count"]:
        """The eigenvalues of one model."""
        flat, model_of = _as_vector(model)
        outputs, push = jax.linearize(lambda theta: _outputs(cost, model_of(theta)), flat)
        pull = jax.linear_transpose(push, flat)

        def product(v):
            return push(pull(v.reshape(outputs.shape))[0]).ravel()

        return leading_eigenvalues(product, _start_vector(outputs.size), self.count, self.num_products)


class KernelDistance:
    """An observable: the distance of the neural tangent kernel from that of another model, such as the start.

    `1 - <K, K_0> / (|K| |K_0|)` in Frobenius norms, 0 where only the size of the kernel differs (Fort et al.,
    arXiv 2010.15110). Kernels of all outputs are formed: m x m numbers for m outputs.

        run = sf.gradient_flow(objective, model, t1=1e3, observables={"moved": sf.observables.KernelDistance(model)})

    Args:
        reference: the other model.
    """

    def __init__(self, reference: Any):
        self.reference = reference

    def __call__(self, cost: Any, model: Any) -> Float[Array, ""]:
        """The distance of one model."""
        here, there = _kernel(cost, model), _kernel(cost, self.reference)
        return 1 - jnp.sum(here * there) / (jnp.linalg.norm(here) * jnp.linalg.norm(there))


def _kernel(cost: Any, model: Any) -> Float[Array, "m m"]:
    flat, model_of = _as_vector(model)
    if isinstance(cost, Objective):
        jacobian = cost.jacobian(model_of, flat)
    else:
        jacobian = jax.jacrev(lambda theta: _outputs(cost, model_of(theta)))(flat)
    rows = jacobian.reshape(-1, flat.size)
    return rows @ rows.T


# The paper cuts at 1e-1 where the targets' singular values are of order 10.
RELATIVE_RANK_TOLERANCE = 1e-2


def rank(singular_values: Float[np.ndarray, "*time n"], tolerance: float) -> Int[np.ndarray, "*time"]:
    """Number of singular values above an absolute tolerance."""
    return np.sum(singular_values > tolerance, axis=-1)


# Columns beyond the rank that a random projection of a matrix takes, and the share of its columns that makes it pay.
OVERSAMPLED, WORTHWHILE = 8, 0.5


def singular_values(
    matrices: Float[np.ndarray, "rows n_out n_in"], most: int | None = None
) -> Float[np.ndarray, "rows n"]:
    """Singular values of every matrix, in descending order; NaN where one is not finite.

    Args:
        matrices: shape (rows, n_out, n_in).
        most: no matrix has a larger rank, as that of a network is at most its smallest hidden width; None: any may.
            Of small rank, the values are those of the matrix on its range, which random combinations of its columns
            span: to rounding of the largest, as by a decomposition of all of it.
    """
    rows, n_out, n_in = matrices.shape
    size = min(n_out, n_in)
    values = np.full((rows, size), np.nan)
    count = size if most is None else most + OVERSAMPLED
    mixing = np.random.default_rng(0).standard_normal((n_in, min(count, size))) if count < WORTHWHILE * size else None
    finite = np.isfinite(matrices).all(axis=(1, 2))
    if mixing is None:
        values[finite] = np.linalg.svd(matrices[finite], compute_uv=False)
        return values
    for row in np.flatnonzero(finite):
        frame = np.linalg.qr(matrices[row] @ mixing)[0]
        values[row] = 0.0
        values[row, : frame.shape[1]] = np.linalg.svd(frame.T @ matrices[row], compute_uv=False)
    return values


def default_rank_tolerance(
    singular_values: Float[np.ndarray, "time n"], train_cost: Float[np.ndarray, " time"]
) -> float:
    """A hundredth of the largest singular value until the cost has fallen half-way.

    Not of all the run: where observed entries leave it the freedom, a singular value grows without end.

    The default fits targets whose singular values are of one order. It is a resolution, no statistical test: of a
    teacher of rank 5 under noise the flow learns the noise as well, direction by direction, and what is above a
    hundredth counts. `rank_gap` then is near 1, and an absolute tolerance between signal and noise (for n x m noise
    of standard deviation sigma they part at `sigma (sqrt(n) + sqrt(m))`) gives the rank of the teacher.
    """
    finite = np.isfinite(train_cost) & np.isfinite(singular_values).all(axis=-1)
    values, costs = singular_values[finite], train_cost[finite]
    if not len(costs):
        return 0.0
    half = np.argmax(costs <= (costs[0] + costs.min()) / 2)
    return float(RELATIVE_RANK_TOLERANCE * values[: half + 1].max())


def rank_gap(
    singular_values: Float[np.ndarray, "*time n"], ranks: Int[np.ndarray, "*time"]
) -> Float[np.ndarray, "*time"]:
    """The last singular value that counts over the first that does not.

    Infinite where all count or the next is zero; NaN where none counts.
    """
    ends = [np.full((*ranks.shape, 1), end) for end in (np.nan, 0.0)]
    padded = np.concatenate([ends[0], singular_values, ends[1]], axis=-1)
    last, after = (np.take_along_axis(padded, ranks[..., None] + k, axis=-1)[..., 0] for k in (0, 1))
    return np.where(after > 0, last / np.where(after > 0, after, 1.0), np.where(ranks > 0, np.inf, np.nan))


def nuclear_norm(singular_values: Float[np.ndarray, "*time n"]) -> Float[np.ndarray, "*time"]:
    """Sum of the singular values."""
    return np.sum(singular_values, axis=-1)


def stable_rank(singular_values: Float[np.ndarray, "*time n"]) -> Float[np.ndarray, "*time"]:
    """`|A|_F^2 / |A|_2^2`; zero for the zero matrix."""
    scaled = _over_largest(singular_values)
    return np.sum(scaled**2, axis=-1)


def effective_rank(singular_values: Float[np.ndarray, "*time n"]) -> Float[np.ndarray, "*time"]:
    """Exponential of the entropy of s / sum(s) (Roy and Vetterli 2007); zero for the zero matrix."""
    scaled = _over_largest(singular_values)
    total = np.sum(scaled, axis=-1, keepdims=True)
    share = np.divide(scaled, total, out=np.zeros_like(scaled), where=total > 0)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0)


def _over_largest(singular_values: Float[np.ndarray, "*time n"]) -> Float[np.ndarray, "*time n"]:
    largest = singular_values[..., :1]
    return np.divide(singular_values, largest, out=np.zeros_like(singular_values), where=largest > 0)
