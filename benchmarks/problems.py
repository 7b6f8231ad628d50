"""The problems of the work-precision benchmark, for saddleflow and for its peers, and what their parts cost.

Every one is the gradient flow of a deep linear network under `C(A) = sum(weight * (A - target)^2)`: for saddleflow
a `Cost` and a start, for the peers compiled functions of flat float64 vectors. Those take one forward sweep of n_in
and one backward sweep of n_out columns, O(L w^2 n): no w x w matrix is ever multiplied by another.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float
from timing import timed

import saddleflow as sf
from saddleflow.flow.arguments import START_SHARE
from saddleflow.flow.jacobian import flow_jacobian
from saddleflow.problem import geometry
from saddleflow.problem.curvature import EntryCurvature
from saddleflow.solvers import Plain

# Peers driven from the host call one small function at a time: dispatched in order, that is twice as fast.
jax.config.update("jax_cpu_enable_async_dispatch", False)

DENSE_SIZE = 1000  # parameters up to which dense Jacobians are sensible
CHAIN = 15  # evaluations in a compiled loop that is timed for a unit cost: few, to fit between interruptions
Shapes = tuple[tuple[int, int], ...]
Vector = Float[Array | np.ndarray, " size"]


class WeightedSquaredError(sf.Cost):
    """`C(A) = sum(weight * (A - target)^2)`; entries of weight zero are not observed."""

    target: Float[Array, "n_out n_in"]
    weight: Float[Array, "n_out n_in"]
    entries: tuple[Array, Array]

    def __init__(self, target: np.ndarray, weight: np.ndarray):
        self.target, self.weight = jnp.asarray(target), jnp.asarray(weight)
        rows, columns = np.nonzero(weight)
        self.entries = jnp.asarray(rows), jnp.asarray(columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n_out, n_in) of the matrix."""
        n_out, n_in = self.target.shape
        return n_out, n_in

    @property
    def has_test(self) -> bool:
        """Nothing is held out."""
        return False

    def __call__(self, matrix: Any) -> Float[Array, ""]:
        """The train cost."""
        return jnp.sum(self.weight * (matrix - self.target) ** 2)

    def test(self, matrix: Any) -> Float[Array, ""]:
        """There is no test set."""
        raise ValueError("`cost` has no test set. Use its train cost.")

    def gradient(self, matrix: Any) -> Float[Array, "n_out n_in"]:
        """`2 weight (A - target)`."""
        return 2 * self.weight * (matrix - self.target)

    def curvature(self, matrix: Any) -> EntryCurvature:
        """`C''[V] = 2 weight V`."""
        return EntryCurvature(*self.entries, 2 * self.weight[self.entries], self.shape)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Flow:
    """A gradient flow as the peers see it.

    The callables are compiled and take flat vectors. `linearise(y)` returns the partial products that
    `product_at(linearise(y), v)` needs.

    Attributes:
        start: the parameters at t = 0.
        weight: absolute error weight of an entry: a solver's atol is rtol * weight, as in `sf.gradient_flow`.
        times: where errors are measured, increasing; the last is the end of the run.
        until_cost: train cost at which a run ends, or None for runs to times[-1].
        outputs: what is computed and has errors, of shape `shape`: A, or a model's outputs.
    """

    name: str
    start: Float[np.ndarray, " size"]
    weight: float
    times: Float[np.ndarray, " times"]
    until_cost: float | None
    shape: tuple[int, ...]
    field: Callable[[Vector], jax.Array]
    linearise: Callable[[Vector], Any]
    product_at: Callable[[Any, Vector], jax.Array]
    jacobian: Callable[[Vector], jax.Array]
    outputs: Callable[[Vector], jax.Array]
    train_cost: Callable[[Vector], jax.Array]

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return self.start.size


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Problem(Flow):
    """The gradient flow of a deep linear network; its outputs are A.

    Attributes:
        network: the start; `start` is the same as a flat vector.
        stop: `until_cost` for `sf.gradient_flow`.
        description: everything that defines the problem, for the key of its reference.
    """

    cost: WeightedSquaredError
    network: sf.DeepLinearNetwork
    stop: Callable[[Array, sf.DeepLinearNetwork], Bool[Array, ""]] | None
    description: dict[str, Any]

    @property
    def shapes(self) -> Shapes:
        """Shapes of the layers, W_1 first."""
        return tuple((layer.shape[0], layer.shape[1]) for layer in self.network.layers)


def split(y: Any, shapes: Shapes) -> list[Any]:
    """The layers W_1, ..., W_L held by a flat vector (a JAX or NumPy array, or a torch tensor)."""
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    return [y[end - m * n : end].reshape(m, n) for end, (m, n) in zip(ends, shapes, strict=True)]


def _flat(layers: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([layer.ravel() for layer in layers])


def _functions(shapes: Shapes, cost: WeightedSquaredError) -> dict[str, Callable[..., Any]]:
    """The compiled callables of a `Flow`; right[l] = W_{l+1} ... W_1 and left[l] = W_L ... W_{l+2}."""
    depth = len(shapes)

    def sweeps(layers):
        right = [layers[0]]
        for layer in layers[1:]:
            right.append(layer @ right[-1])
        left = [layers[-1]]
        for layer in layers[-2:0:-1]:
            left.insert(0, left[0] @ layer)
        return right, left

    def field(y):
        right, left = sweeps(split(y, shapes))
        slope = -cost.gradient(right[-1])
        inner = [(left[k].T @ slope) @ right[k - 1].T for k in range(1, depth - 1)]
        return _flat([left[0].T @ slope, *inner, slope @ right[-2].T])

    def linearise(y):
        layers = split(y, shapes)
        right, left = sweeps(layers)
        slope = -cost.gradient(right[-1])
        return layers, right, left, slope, [block.T @ slope for block in left]

    def product_at(state, v):
        layers, right, left, slope, pulled = state
        moves = split(v, shapes)
        right_dot = [moves[0]]
        for k in range(1, depth):
            right_dot.append(moves[k] @ right[k - 1] + layers[k] @ right_dot[-1])
        left_dot = [moves[-1]]
        for k in range(depth - 2, 0, -1):
            left_dot.insert(0, left_dot[0] @ layers[k] + left[k] @ moves[k])
        slope_dot = -2 * cost.weight * right_dot[-1]
        pulled_dot = [d.T @ slope + block.T @ slope_dot for d, block in zip(left_dot, left, strict=True)]
        inner = [
            jnp.concatenate([pulled_dot[k], pulled[k]], 1) @ jnp.concatenate([right[k - 1], right_dot[k - 1]], 1).T
            for k in range(1, depth - 1)
        ]
        return _flat([pulled_dot[0], *inner, slope_dot @ right[-2].T + slope @ right_dot[-2].T])

    def jacobian(y):
        state = linearise(y)
        return jax.vmap(lambda v: product_at(state, v))(jnp.eye(y.size))  # rows are columns: it is symmetric

    def outputs(y):
        return sf.DeepLinearNetwork(split(y, shapes)).end_to_end()

    def train_cost(y):
        return cost(outputs(y))

    functions = (field, linearise, product_at, jacobian, outputs, train_cost)
    return {function.__name__: jax.jit(function) for function in functions}


def _problem(
    name: str,
    target: Float[np.ndarray, "n_out n_in"],
    weight: Float[np.ndarray, "n_out n_in"],
    *,
    width: int,
    variance: float,
    alpha: float,
    times: Sequence[float],
    until_cost: float | None = None,
    depth: int = 4,
    seed: int = 1,
) -> Problem:
    """A problem from its start: alpha times entries N(0, variance), of seed `seed`."""
    n_out, n_in = target.shape
    shapes = ((width, n_in), *[(width, width)] * (depth - 2), (n_out, width))
    size = sum(m * n for m, n in shapes)
    start = alpha * np.sqrt(variance) * np.random.default_rng(seed).standard_normal(size)
    described = {"width": width, "variance": variance, "alpha": alpha, "depth": depth, "seed": seed}
    described |= {"target": target.tolist(), "weight": weight.tolist(), "times": list(times), "until": until_cost}
    cost, network = WeightedSquaredError(target, weight), sf.DeepLinearNetwork(split(start, shapes))

    def stop(time, network):
        return cost(network.end_to_end()) <= (until_cost or 0.0)

    return Problem(
        name=name,
        cost=cost,
        network=network,
        start=np.asarray(ravel_pytree(network)[0]),
        weight=float(START_SHARE * np.sqrt(np.mean(start**2))),
        times=np.asarray(times, float),
        until_cost=until_cost,
        shape=cost.shape,
        stop=None if until_cost is None else stop,
        description=described,
        **_functions(shapes, cost),
    )


def matrix_completion(seed: int = 0) -> tuple[Float[np.ndarray, "10 10"], Float[np.ndarray, "10 10"]]:
    """A 10 x 10 target of singular values 1, .6, .3 and the weight of (1/2) sum over 70 observed entries."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((10, 3)))[0] for _ in range(2))
    weight = np.zeros(100)
    weight[rng.permutation(100)[:70]] = 0.5
    return left @ np.diag([1.0, 0.6, 0.3]) @ right.T, weight.reshape(10, 10)


def problems() -> dict[str, Problem]:
    """By name: (a) a tiny and a mild start, (b) to a train cost, (c) small, (d) three regimes of gamma."""
    target, weight = matrix_completion()
    wide: dict[str, Any] = {"target": target, "weight": weight, "width": 100, "variance": 1 / 100}
    small: dict[str, Any] = {"target": target, "weight": weight, "width": 10, "variance": 1 / 100, "alpha": 1.0}
    to_cost: dict[str, Any] = {"until_cost": 1e-10, "times": (100, 130, 400, 1e4, 1e5, 4e5)}
    modes: dict[str, Any] = {"target": np.diag(np.arange(1.0, 6.0)), "weight": np.ones((5, 5))}
    modes |= {"width": 100, "alpha": 1.0}
    found = (
        _problem("a: alpha=.02", **wide, alpha=0.02, times=(1500, 2300, 2850, 6187)),
        _problem("a: alpha=.3", **wide, alpha=0.3, times=(10, 40, 200, 4000)),
        _problem("b: to cost 1e-10", **wide, alpha=0.1, **to_cost),
        _problem("c: w=10", **small, times=(10, 25, 100, 1000, 1e4)),
        _problem("d: gamma=.75", **modes, variance=100**-0.75, times=(0.002, 0.01, 0.05, 0.3)),
        _problem("d: gamma=1", **modes, variance=1 / 100, times=(0.04, 0.08, 0.3, 3)),
        _problem("d: gamma=1.5", **modes, variance=100**-1.5, times=(0.7, 1, 2, 3.5, 10)),
    )
    return {problem.name: problem for problem in found}


def _identity(z: Vector) -> Vector:
    return z


def unit_costs(problem: Problem) -> dict[str, float]:
    """Costs of the parts of a step, measured in compiled loops in turns, in units of the peers' vector field.

    "our ..." are saddleflow's parts as its default solver uses them, "plain ..." those without structure.
    """
    term, cost, shift = dfx.ODETerm(geometry.gradient_flow_field), problem.cost, jnp.asarray(10.0)
    # the same sizes at a start of order one, so that repeated products stay among ordinary numbers
    network = jax.tree.map(lambda x: x / (jnp.std(x) * np.sqrt(max(x.shape))), problem.network)
    y = jnp.concatenate([layer.ravel() for layer in network.layers])
    loops: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}

    def add(name: str, make: Callable[..., Callable[[Any], Any]], x: Any, *fixed: Any) -> None:
        """Repeat the step `make(*fixed)`, made outside of the loop, from x on."""

        def repeated(count, x, *fixed):
            step = make(*fixed)
            return jax.lax.fori_loop(0, count, lambda _, x: step(x), x)

        loops[name] = jax.jit(repeated), (x, *fixed)

    def every_part(q, model):
        first, *hidden, last = q.layers

        def step(z):
            # outer layers that depend on z: nothing can be moved out of the loop
            at = model(type(q)([first + 1e-30 * z[0], *hidden, last + 1e-30 * z[0]]))
            return (at.preconditioner(shift) or _identity)(at.product(z))

        return step

    add("our field", lambda: lambda q: geometry.gradient_flow_field(0.0, q, cost), network)
    add("field", lambda: problem.field, y)
    add("product", lambda state: lambda v: problem.product_at(state, v), y, problem.linearise(y))
    add("both", lambda direction: lambda v: problem.product_at(problem.linearise(v), direction), y, y)
    if problem.size <= DENSE_SIZE:
        add("dense", lambda: lambda v: problem.jacobian(v)[0], y)
    for name, build in (("our", flow_jacobian), ("plain", Plain())):

        def model(q, build=build):
            return build(term, jnp.zeros(()), q, cost)

        def coordinates(q, model=model):
            at = model(q)
            return lambda v: at.extend(at.restrict(v))

        z = jax.jit(lambda q, model=model: model(q).restrict(q))(network)
        add(f"{name} product", lambda q, model=model: model(q).product, z, network)
        add(f"{name} precondition", lambda q, model=model: model(q).preconditioner(shift) or _identity, z, network)
        add(f"{name} coordinates", coordinates, network, network)
        add(f"{name} set-up", lambda q, model=model: every_part(q, model), z, network)
    # Two lengths of each: their difference is free of dispatch and of what is done once. The least of many rounds,
    # for a busy machine only ever adds.
    least: dict[tuple[str, int], float] = {}
    for _ in range(40):
        for name, (loop, arguments) in loops.items():
            for length in (CHAIN, 3 * CHAIN):
                seconds = timed(loop, jnp.asarray(length), *arguments, repeats=1)[1]
                least[name, length] = min(seconds, least.get((name, length), seconds))
    taken = {name: (least[name, 3 * CHAIN] - least[name, CHAIN]) / (2 * CHAIN) for name in loops}
    taken["linearise"] = taken.pop("both") - taken["product"]
    if "dense" in taken:
        taken["dense"] /= problem.size
    for name in ("our", "plain"):
        taken[f"{name} set-up"] -= taken[f"{name} product"] + taken[f"{name} precondition"]
    return {name: max(t, 0.0) / taken["field"] for name, t in taken.items()} | {"field (us)": 1e6 * taken["field"]}
