"""From settings to results: the task, the start, the flow, the spectrum of the Hessian. Cached."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from saddleflow._backend.arrays import on_device
from saddleflow._backend.waiting import in_background
from saddleflow.api import gradient_flow
from saddleflow.explorer.predictions import Point, Predictions, greedy_points, predict
from saddleflow.explorer.state import SIZE, WIDEST_FULL, Settings
from saddleflow.flow.model_trajectory import ModelTrajectory
from saddleflow.flow.trajectory import Trajectory
from saddleflow.problem.costs import MatrixCompletion
from saddleflow.problem.network import DeepLinearNetwork, num_parameters
from saddleflow.problem.objective import Objective
from saddleflow.problem.spectrum import leading_eigenvalues
from saddleflow.problem.starts import gaussian
from saddleflow.problem.symmetry import include
from saddleflow.width.sampled import sample_reduced

SHAPE = (SIZE, SIZE)

# How carefully runs are solved: for pictures, and within a second.
OPTIONS: dict[str, Any] = {
    "rtol": 1e-3,
    "gradient_tolerance": 1e-3,
    "max_saves": 300,
    "save_networks": True,
    "max_seconds": 120.0,
    "progress": False,
}

# Levels of a reduced network, by its depth: the most whose basis has at most `WIDEST_FULL` directions.
LEVELS = {2: 2, 3: 4, 4: 3, 5: 4}

# Eigenvalues shown at each end of the Hessian's spectrum, and Hessian-vector products for them.
NUM_EIGENVALUES, NUM_PRODUCTS = 20, 80

# Results kept in memory, of about 10 MB each: going back to one takes no time.
KEPT = 16

# The largest singular value of the diagonal teacher, about that of a random one.
STRENGTH = 10.0


@dataclass(frozen=True, eq=False)
class Result:
    """What the page shows of one run.

    Attributes:
        settings: what it was made of.
        trajectory: the run.
        points: the stationary points of the limit of small starts, of deep linear networks of two layers or more.
        predictions: what theory says of the run; nothing where it is switched off.
    """

    settings: Settings
    trajectory: Trajectory | ModelTrajectory
    points: tuple[Point, ...]
    predictions: Predictions

    @property
    def matrices(self) -> Float[np.ndarray, "time n_out n_in"]:
        """The end-to-end matrix, or the outputs of a model, at every row."""
        run = self.trajectory
        matrices = run.end_to_end if isinstance(run, Trajectory) else run.outputs
        assert matrices is not None, "of an objective with outputs"
        return matrices

    def row(self, position: int) -> int:
        """The row of a position of the marker, in per cent of the rows."""
        return round(position / 100 * (len(self.trajectory.time) - 1))


@lru_cache(maxsize=64)
def _task(of_task: Settings) -> MatrixCompletion:
    rank, everywhere = of_task.rank, np.ones(SHAPE, bool)
    if of_task.task == "completion":
        key = jax.random.key(of_task.task_seed)
        return MatrixCompletion.random(key, shape=SHAPE, rank=rank, observed=of_task.observed)
    if of_task.task == "teacher":
        return MatrixCompletion.random(jax.random.key(of_task.task_seed), shape=SHAPE, rank=rank, observed=1.0)
    strengths = np.zeros(SIZE)
    equal = of_task.task == "identity"
    strengths[:rank] = 1.0 if equal else STRENGTH * (1 - np.arange(rank) / rank)
    return MatrixCompletion(np.diag(strengths), everywhere)


def task(settings: Settings) -> MatrixCompletion:
    """The cost: a mean over the observed entries of a 10 x 10 matrix, of teachers over all entries."""
    return _task(settings.of_task)


def start(settings: Settings) -> DeepLinearNetwork:
    """The start: of a wide network its reduction, drawn in a basis of at most `WIDEST_FULL` directions."""
    size: dict[str, Any] = {"gamma": settings.gamma if settings.scale == "gamma" else 1.0}
    how: dict[str, Any] = {"depth": settings.depth, "width": settings.width, "shape": SHAPE}
    if settings.depth == 1:
        how, size = how | {"width": None}, {"variance": float(settings.width) ** -size["gamma"]}
    key = jax.random.key(settings.seed)
    if settings.is_full:
        network = gaussian(key, **how, **size)
    else:
        network = sample_reduced(key, **how, **size, levels=LEVELS[settings.depth]).network
    return settings.alpha * network if settings.scale == "alpha" else network


def padded(network: DeepLinearNetwork) -> DeepLinearNetwork:
    """The network in the one width that all runs have, by dead neurons: they change nothing, and save compiling."""
    return network if network.depth == 1 else include(network, WIDEST_FULL)


def outputs(layers: Any, activation: Callable[[Array], Array]) -> Float[Array, "n_out n_in"]:
    """What a network without biases makes of the unit vectors, a column for each."""
    first, *others = layers
    matrix = first
    for layer in others:
        matrix = layer @ activation(matrix)
    return matrix


def _of_unit_vectors(model: Any) -> Float[Array, "n_out n_in"]:
    return outputs([layer.weight for layer in model.layers], jnp.tanh)


def _identity(matrix: Array) -> Array:
    return matrix


class _Test(eqx.Module):
    """The test cost of a tanh network."""

    cost: MatrixCompletion

    def __call__(self, model: Any) -> Float[Array, ""]:
        return self.cost.test(_of_unit_vectors(model))


def tanh_network(settings: Settings) -> eqx.nn.MLP:
    """The tanh network of the settings, without biases, its layers those of `start`."""
    how: dict[str, Any] = {"activation": jnp.tanh, "use_bias": False, "use_final_bias": False}
    model = eqx.nn.MLP(SIZE, SIZE, WIDEST_FULL, settings.depth - 1, key=jax.random.key(0), **how)
    layers = list(padded(start(settings)).layers)
    return eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, layers)


def objective(settings: Settings) -> Objective:
    """The loss of a tanh network: the task, of what it makes of the unit vectors."""
    cost = task(settings)
    return Objective(cost, _of_unit_vectors, test=_Test(cost) if cost.has_test else None)


@lru_cache(maxsize=KEPT)
def _flow(of_run: Settings) -> Trajectory | ModelTrajectory:
    if of_run.model == "tanh":
        return gradient_flow(objective(of_run), tanh_network(of_run), **OPTIONS)
    network = start(of_run)
    return _cut(gradient_flow(task(of_run), padded(network), **OPTIONS), network, of_run)


def flow(settings: Settings) -> Trajectory | ModelTrajectory:
    """The run of the settings, by `saddleflow.gradient_flow`."""
    return _flow(settings.of_run)


def _cut(run: Trajectory, network: DeepLinearNetwork, settings: Settings) -> Trajectory:
    """The run without the dead neurons that it was padded with."""

    def cut(wide: DeepLinearNetwork) -> DeepLinearNetwork:
        pairs = zip(wide.layers, network.layers, strict=True)
        layers = [on_device(np.asarray(w)[..., : n.shape[0], : n.shape[1]]) for w, n in pairs]
        return jax.tree.unflatten(jax.tree.structure(network), layers)

    changes: dict[str, Any] = {"width": network.width, "num_parameters": network.num_parameters}
    if not settings.is_full:
        hidden = network.hidden_widths
        count = num_parameters((SIZE, *(settings.width,) * len(hidden), SIZE))
        changes = {"width": settings.width, "num_parameters": count, "reduced_widths": list(hidden)}
    assert run.networks is not None, "all are saved"
    dips = None if run.dips is None else (run.dips[0], cut(run.dips[1]))
    configuration = run.configuration | changes
    return replace(run, network=cut(run.network), networks=cut(run.networks), dips=dips, configuration=configuration)


@lru_cache(maxsize=KEPT)
def _points(of_path: Settings) -> tuple[Point, ...]:
    return greedy_points(_task(of_path.of_task), of_path.depth)


def points(settings: Settings) -> tuple[Point, ...]:
    """The stationary points of the limit of small starts, from the origin on; none where there is no such limit."""
    return () if settings.depth == 1 or settings.model == "tanh" else _points(settings.of_path)


def result(settings: Settings) -> Result:
    """The run, the limit of small starts beside it, and what theory says."""
    return _result(replace(settings, position=Settings.position))


@lru_cache(maxsize=KEPT)
def _result(settings: Settings) -> Result:
    beside = in_background(lambda: points(settings))
    run = flow(settings)
    limit = beside.result()
    return Result(settings, run, limit, _predictions(settings.of_run) if settings.theory else Predictions())


@lru_cache(maxsize=KEPT)
def _predictions(of_run: Settings) -> Predictions:
    return predict(of_run, task(of_run), start(of_run), points(of_run))


# What has been computed in this process: its programs are compiled.
_met: set[tuple] = set()


def is_new(settings: Settings) -> bool:
    """Whether programs may have to be compiled, or read from the cache on disk."""
    return _kind(settings) not in _met


def remember(settings: Settings) -> None:
    """Note that the programs of these settings are there."""
    _met.add(_kind(settings))


def _kind(settings: Settings) -> tuple:
    return settings.model, settings.depth, task(settings).num_observed


def spectrum(settings: Settings, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest eigenvalues of the loss's Hessian at a row of the run, ascending.

    By Lanczos iteration, so a multiple eigenvalue is found once. Of a reduced network it is the Hessian in the
    directions of its basis.
    """
    return _spectrum(settings.of_run, row)


@lru_cache(maxsize=256)
def _spectrum(of_run: Settings, row: int) -> tuple[np.ndarray, np.ndarray]:
    run, cost = flow(of_run), task(of_run)
    if isinstance(run, Trajectory):
        assert run.networks is not None, "all are saved"
        rows, activation = run.networks.layers, _identity
    else:
        models: Any = run.models
        rows, activation = [layer.weight for layer in models.layers], jnp.tanh
    # numpy compiles nothing for a new row
    layers = [np.asarray(layer)[row] for layer in rows]
    alive = [np.ones_like(layer) for layer in layers]
    if not isinstance(run, Trajectory):
        alive = [np.ones(layer.shape) for layer in start(of_run).layers]
    weights = on_device(np.asarray(cost.observed) / cost.num_observed)
    least, largest = map(np.asarray, _ends(cost.target, weights, _widened(layers), _widened(alive), activation))
    return -least[np.isfinite(least)], largest[np.isfinite(largest)][::-1]


def _widened(layers: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Layers with zeros up to the one width that all runs have."""
    if len(layers) == 1:
        return tuple(layers)
    hidden = [WIDEST_FULL] * (len(layers) - 1)
    sizes = zip([*hidden, SIZE], [SIZE, *hidden], strict=True)
    room = [(above - w.shape[0], below - w.shape[1]) for (above, below), w in zip(sizes, layers, strict=True)]
    return tuple(np.pad(w, ((0, up), (0, right))) for w, (up, right) in zip(layers, room, strict=True))


@eqx.filter_jit
def _ends(target: Array, weights: Array, layers: Any, mask: Any, activation: Any) -> tuple[Array, Array]:
    """Minus the least eigenvalues, and the largest; dead neurons, which are a block of their own, are left out.

    The loss is written out, with a weight for each entry, so that one program serves all tasks.
    """
    flat, unravel = ravel_pytree(layers)
    direction = ravel_pytree(mask)[0] * jax.random.normal(jax.random.key(0), flat.shape)

    def gradient(theta: Array) -> Array:
        return jax.grad(lambda v: jnp.sum(weights * (outputs(unravel(v), activation) - target) ** 2))(theta)

    def product(v: Array) -> Array:
        return jax.jvp(gradient, (flat,), (v,))[1]

    largest = leading_eigenvalues(product, direction, NUM_EIGENVALUES, NUM_PRODUCTS)
    least = leading_eigenvalues(lambda v: -product(v), direction, NUM_EIGENVALUES, NUM_PRODUCTS)
    return least, largest
