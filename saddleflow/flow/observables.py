"""Quantities recorded along a trajectory: functions of the spectrum of A, of the whole network, or of any model.

Functions of a spectrum take singular values in descending order with any leading axes. Observables are functions of
cost and network, or of objective and model, evaluated inside the compiled loop at every saved time; `register` adds
one of your own. Those of the Hessian, of the neural tangent kernel and of A work for networks and for any model:

>>> cost = sf.MatrixCompletion.random(jax.random.key(0))
>>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
>>> run = sf.gradient_flow(cost, start, t1=10.0, observables=["sharpness", "layer_norms"])
>>> run.observables["layer_norms"].shape[1:]
(3,)
>>> followed = {
...     "top": sf.observables.HessianEigenvalues(5),
...     "kernel": sf.observables.KernelEigenvalues(5),
...     "alignment": sf.observables.Alignment(3),
... }
>>> run = sf.gradient_flow(cost, start, t1=10.0, observables=followed)
>>> {name: values.shape[1:] for name, values in run.observables.items()}
{'alignment': (2, 3), 'kernel': (5,), 'top': (5,)}
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from saddleflow._backend.arguments import Reader, accepts, boolean, integer, optional, refuse, takes, text
from saddleflow._backend.arguments import function as function_of
from saddleflow._backend.arguments import read as read_all
from saddleflow._backend.checks import as_float64, require, require_finite
from saddleflow.flow.spectra import RELATIVE_RANK_TOLERANCE as RELATIVE_RANK_TOLERANCE
from saddleflow.flow.spectra import default_rank_tolerance as default_rank_tolerance
from saddleflow.flow.spectra import effective_rank as effective_rank
from saddleflow.flow.spectra import nuclear_norm as nuclear_norm
from saddleflow.flow.spectra import rank as rank
from saddleflow.flow.spectra import rank_gap as rank_gap
from saddleflow.flow.spectra import singular_values as singular_values
from saddleflow.flow.spectra import stable_rank as stable_rank
from saddleflow.problem import geometry, readers
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.objective import Objective
from saddleflow.problem.spectrum import leading_eigenvalues

Observable = Callable[[Any, Any], Any]

REGISTRY: dict[str, Observable] = {}

BY_NAME = 'For example observables={"norm": lambda cost, network: ...}.'


def register(observable: Any, name: Any = None) -> Observable:
    """Make `observable(cost, network) -> array` known by its name, or another; usable as a decorator."""
    observable = function_of("cost", "network")("observable", observable)
    name = text("name", getattr(observable, "__name__", None) if name is None else name)
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
    return {} if observables is None else read("observables", observables)


def read(argument: str, value: Any) -> dict[str, Observable]:
    """The reader of an argument `observables`: a mapping from names to functions, or names."""
    if isinstance(value, Mapping):
        for name, given in value.items():
            require(isinstance(name, str), argument, "map names to functions (cost, network)", name)
            _check_observable(argument, name, given)
        return dict(value)
    if callable(value) or not isinstance(value, Sequence):
        refuse(argument, "be a mapping from names to functions (cost, network), or a list of names", value, BY_NAME)
    names = [value] if isinstance(value, str) else list(value)
    for name in names:
        if callable(name):
            refuse(argument, f"name one of {sorted(REGISTRY)}", name, BY_NAME)
        known = isinstance(name, str) and name in REGISTRY
        require(known, argument, f"name one of {sorted(REGISTRY)}", name)
    return {name: REGISTRY[name] for name in names}


def _check_observable(argument: str, name: str, given: Any) -> None:
    expected = f"map {name!r} to a function (cost, network)"
    if isinstance(given, type):
        refuse(argument, expected, given, f"Make one: {given.__name__}(...).")
    if not callable(given):
        registered = isinstance(given, str) and given in REGISTRY
        refuse(argument, expected, given, f"Write observables=[{given!r}]." if registered else "")
    if not accepts(given, 2):
        refuse(argument, expected, given, f"Its arguments are {inspect.signature(given)}.")


def _read(options: Any, **table: Reader) -> None:
    """Read the fields of an observable that is a frozen dataclass."""
    for field, value in read_all(table, {name: getattr(options, name) for name in table}).items():
        object.__setattr__(options, field, value)


def networks_only(observable: Observable) -> Observable:
    """A decorator for observables of deep linear networks, which refuse other models."""

    @wraps(observable)
    def call(cost: Any, network: Any) -> Any:
        return observable(cost, _network(observable.__name__, network))

    return call


def _network(observable: str, model: Any) -> DeepLinearNetwork:
    """The model, which has to be a deep linear network for the observable."""
    remedy = "It is defined for deep linear networks."
    name = f"observables ({observable})"
    require(isinstance(model, DeepLinearNetwork), name, "fit the model", type(model).__name__, remedy)
    return model


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
    count = min(*network.shape, *network.hidden_widths)
    return jnp.stack([jnp.linalg.svd(layer, compute_uv=False)[:count] for layer in network.layers])


@register
@networks_only
def alignment(cost: Cost, network: DeepLinearNetwork) -> Float[Array, " depth_minus_1"]:
    """|cosine| between the top left singular vector of W_l and the top right one of W_{l+1}."""
    del cost
    factors = [jnp.linalg.svd(layer, full_matrices=False) for layer in network.layers]
    return jnp.asarray([jnp.abs(below[0][:, 0] @ above[2][0]) for below, above in itertools.pairwise(factors)], float)


@dataclass(frozen=True)
class Alignment:
    """An observable of a network: how far the leading singular vectors of neighbouring layers are the same.

    `|<u_l,i , v_(l+1),i>|` of the i-th left singular vector of W_l and the i-th right one of W_(l+1), shape
    (depth - 1, count): ones for a balanced network. Where two singular values of a layer cross, so do their rows.

    Attributes:
        count: how many singular vectors; at most as many as every layer has.
    """

    count: Any = 1

    def __post_init__(self):
        _read(self, count=integer(1))

    def __call__(self, cost: Any, network: Any) -> Float[Array, "depth_minus_1 count"]:
        """The overlaps of one network."""
        del cost
        network = _network("Alignment", network)
        most = min(min(layer.shape) for layer in network.layers)
        require(self.count <= most, "count", f"be at most {most}, the smallest width", self.count)
        factors = [jnp.linalg.svd(layer, full_matrices=False) for layer in network.layers]
        pairs = itertools.pairwise(factors)
        overlaps = [jnp.abs(jnp.sum(low[0][:, : self.count] * up[2][: self.count].T, axis=0)) for low, up in pairs]
        return jnp.stack(overlaps)


@dataclass(frozen=True)
class PartialProducts:
    """An observable of a network: singular values of all products `W_j ... W_i` of consecutive layers.

    Shape (depth, depth, count): those of the product from layer i + 1 to layer j + 1 at [i, j], so single layers on
    the diagonal and A at [0, depth - 1]; NaN below the diagonal. Products are formed, of width x width numbers.

    Attributes:
        count: how many, in descending order; None: as many as A has, or the smallest width where that is less.
    """

    count: Any = None

    def __post_init__(self):
        _read(self, count=optional(integer(1)))

    def __call__(self, cost: Any, network: Any) -> Float[Array, "depth depth count"]:
        """The singular values of one network."""
        del cost
        layers = _network("PartialProducts", network).layers
        most = min(min(layer.shape) for layer in layers)
        count = most if self.count is None else self.count
        require(count <= most, "count", f"be at most {most}, the smallest width", count)
        values = jnp.full((len(layers), len(layers), count), jnp.nan)
        for first in range(len(layers)):
            product = layers[first]
            for last in range(first, len(layers)):
                product = product if last == first else layers[last] @ product
                found = jnp.linalg.svd(product, compute_uv=False)[:count]
                values = values.at[first, last].set(found)
        return values


@register
@through_products
@networks_only
def ntk_rate(cost: Any, network: DeepLinearNetwork) -> Float[Array, ""]:
    """Rayleigh quotient of the neural tangent kernel at grad C(A): |grad_theta|^2 / |grad_A C|^2."""
    cost = cost.cost if isinstance(cost, Objective) else cost
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


def _singular_values(cost: Any, model: Any) -> Float[Array, " n"]:
    return jnp.linalg.svd(_outputs(cost, model), compute_uv=False)


def _stable_rank(cost: Any, model: Any) -> Float[Array, ""]:
    """The stable rank of A, or of the outputs."""
    return jnp.asarray(stable_rank(_singular_values(cost, model)))


def _effective_rank(cost: Any, model: Any) -> Float[Array, ""]:
    """The effective rank of A, or of the outputs."""
    return jnp.asarray(effective_rank(_singular_values(cost, model)))


register(through_products(_stable_rank), "stable_rank")
register(through_products(_effective_rank), "effective_rank")


class Distance:
    """An observable: `|A - reference|_F`, of a model's outputs f in the place of A.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> nearest = sf.minimum_norm_solution(cost)
    >>> run = sf.gradient_flow(cost, start, observables={"away": sf.observables.Distance(nearest)})
    >>> print(f"{run.observables['away'][0]:.2f} {run.observables['away'][-1]:.2f}")
    14.65 8.19

    Args:
        reference: a matrix of the shape of A, float64 or a list.

    Raises:
        ValueError: no finite matrix; at the first use, another shape.
    """

    def __init__(self, reference: Any):
        reference = as_float64("reference", reference)
        require(reference.ndim == 2, "reference", "be a matrix", f"shape {reference.shape}")
        require_finite("reference", reference)
        self.reference = reference
        through_products(self)

    def __call__(self, cost: Any, model: Any) -> Float[Array, ""]:
        """The distance of one model."""
        outputs = _outputs(cost, model)
        expected = f"have the shape {outputs.shape}, as A"
        require(self.reference.shape == outputs.shape, "reference", expected, self.reference.shape)
        return jnp.linalg.norm(outputs - self.reference)


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

    count: Any = 1
    num_products: Any = 48
    least: Any = False

    def __post_init__(self):
        _read(self, count=integer(1), least=boolean)
        _read(self, num_products=integer(self.count, remedy="It takes a product for each at least."))

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

    count: Any = 1
    num_products: Any = 48

    def __post_init__(self):
        _read(self, count=integer(1))
        _read(self, num_products=integer(self.count, remedy="It takes a product for each at least."))

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

    >>> inputs = np.random.default_rng(0).standard_normal((20, 5))
    >>> targets = np.sin(inputs[:, :1])
    >>> objective = sf.regression(lambda model, x: model(x), inputs, targets)
    >>> model = eqx.nn.MLP(5, 1, 10, 1, jnp.tanh, key=jax.random.key(0))
    >>> run = sf.gradient_flow(objective, model, t1=10.0, observables={"moved": sf.observables.KernelDistance(model)})
    >>> print(f"{run.observables['moved'][-1]:.2f}")
    0.02

    Args:
        reference: the other model.
    """

    @takes(reference=readers.start)
    def __init__(self, reference: Any):
        self.reference = reference

    def __call__(self, cost: Any, model: Any) -> Float[Array, ""]:
        """The distance of one model."""
        here, there = _kernel(cost, model), _kernel(cost, self.reference)
        return 1 - jnp.sum(here * there) / (jnp.linalg.norm(here) * jnp.linalg.norm(there))


@dataclass(frozen=True)
class KernelMatrix:
    """An observable: the neural tangent kernel `J J^T` of all m outputs, shape (m, m), outputs row by row.

    Every saved row keeps m^2 numbers, so it refuses many outputs: see `KernelEigenvalues` and `KernelDistance`.

    Attributes:
        most: outputs at most.
    """

    most: Any = 100

    def __post_init__(self):
        _read(self, most=integer(1))

    def __call__(self, cost: Any, model: Any) -> Float[Array, "m m"]:
        """The kernel of one model."""
        shape = cost.shape
        remedy = f"Pass KernelMatrix(most={math.prod(shape)}) to keep them in every row, or KernelEigenvalues."
        name = "observables (KernelMatrix)"
        require(math.prod(shape) <= self.most, name, f"have at most {self.most} outputs", math.prod(shape), remedy)
        return _kernel(cost, model)


def _kernel(cost: Any, model: Any) -> Float[Array, "m m"]:
    if not isinstance(cost, Objective):
        return geometry.kernel_matrix(model)
    flat, model_of = _as_vector(model)
    rows = cost.jacobian(model_of, flat).reshape(-1, flat.size)
    return rows @ rows.T
