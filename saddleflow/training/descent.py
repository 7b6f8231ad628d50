"""`gradient_descent`: a network or any model, trained step by step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from saddleflow._backend.arguments import optional, takes
from saddleflow._backend.arrays import on_device
from saddleflow._backend.devices import one_lapack_thread
from saddleflow._backend.programs import Stopwatch, compiled, make_room
from saddleflow._backend.waiting import interruptible
from saddleflow.flow import observables as obs
from saddleflow.flow.arguments import check_fit, dip_capacity
from saddleflow.flow.functions import check_functions
from saddleflow.flow.landscape import NetworkLandscape
from saddleflow.flow.model_trajectory import ModelTrajectory
from saddleflow.flow.models import MAX_OUTPUTS, landscape_of, num_dips
from saddleflow.flow.run import dips_of
from saddleflow.flow.state import StopReason
from saddleflow.flow.trajectory import Trajectory, assemble
from saddleflow.problem import readers
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.objective import Objective, as_objective
from saddleflow.training.loop import Method, Settings
from saddleflow.training.options import DESCENT, DescentOptions, require_concrete
from saddleflow.training.rates import Stepper, name_of, rate, stepper_of
from saddleflow.training.run import bound_of, known, rows_of, run
from saddleflow.training.tasks import ModelTask, NetworkTask, Task


@overload
def gradient_descent(cost: Cost, model: DeepLinearNetwork, optimizer: Any = None, **options: Any) -> Trajectory: ...
@overload
def gradient_descent(
    cost: Objective | Callable[[Any], Any], model: Any, optimizer: Any = None, **options: Any
) -> ModelTrajectory: ...
@takes(cost=readers.loss, model=readers.start, learning_rate=optional(rate), **DESCENT)
@interruptible
@one_lapack_thread()
def gradient_descent(  # pyright: ignore[reportInconsistentOverload]
    cost: Any,
    model: Any,
    optimizer: Any = None,
    *,
    num_steps: int,
    batch_size: int | None = None,
    key: Any = None,
    learning_rate: Any = None,
    max_saves: int | None = None,
    save_at: Any = None,
    save_networks: bool = False,
    observables: Mapping[str, Any] | Sequence[str] | None = None,
    target_cost: float | int | None = None,
    max_seconds: float | int | None = None,
    progress: bool | str = True,
    rank_tolerance: float | None = None,
    trainable: Any = eqx.is_inexact_array,
) -> Trajectory | ModelTrajectory:
    """Train a network or model by gradient descent, with any optax optimiser, on all samples or in mini-batches.

    A step of plain gradient descent, `theta <- theta - learning_rate grad loss(theta)`, is Euler's step of the flow,
    so that time is the learning rate times the number of steps, and the distance to the flow falls in proportion to
    the rate (`sf.distance_to_flow`). Under a schedule time is the sum of the rates. Of other optimisers (momentum,
    Adam) time is the same number, but not that of a flow.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> descent = sf.gradient_descent(cost, start, optax.sgd(1e-2), num_steps=5000)
    >>> print(f"{descent.time[-1]:.0f} {descent.train_cost[-1]:.4f}")
    50 0.0015
    >>> noisy = sf.gradient_descent(
    ...     cost, start, optax.adam(1e-3), learning_rate=1e-3, num_steps=500, batch_size=20, key=jax.random.key(2)
    ... )
    >>> noisy.stop_reason
    'num_steps'

    Args:
        cost: as in `gradient_flow`: a cost of a network; of a model an `Objective`, or a function from the model to a
            number.
        model: the start, a deep linear network or any pytree with arrays in float64.
        optimizer: any optax optimiser; None: plain gradient descent. Plain `optax.sgd(rate)` is known by what it
            does, and is one compiled program for all rates.
        num_steps: how many steps; a step of mini-batches is one batch.
        batch_size: samples in a step, drawn without replacement epoch by epoch (`sf.training.batch_indices`); None:
            all. For costs and objectives that have their samples at hand (`Cost.num_samples`): `MatrixCompletion`
            (the observed entries), `MeanSquaredError(..., keep_samples=True)`, `sf.regression`, `sf.classification`.
        key: `jax.random.key(seed)`, for the batches; given with `batch_size` and only then.
        learning_rate: the rate, or a schedule: a function from the number of a step, from 0, to its rate. Without
            `optimizer` what to take (default 0.01). With one it only tells the time, and must be said where the
            optimiser does not tell: `optax.sgd(rate)` and `optax.inject_hyperparams(...)` do.
        max_saves: rows kept at most, evenly spaced in steps; start and end are always among them. None: 1000, or as
            many as fit into 400 MB, but 16.
        save_at: steps (integers) to save at, in place of that; start and end are added.
        save_networks: keep the network or the model at every row.
        observables: as in `gradient_flow`; `["sharpness"]` is what 2 / learning_rate bounds.
        target_cost: the descent ends ("target_cost") after the first step that has brought the train cost to this; of
            mini-batches the train cost is known, and looked at, at the rows only.
        max_seconds: wall-clock budget in seconds, compilation included.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.
        rank_tolerance: absolute cut for the numerical rank, as in `gradient_flow`.
        trainable: of a model, an equinox filter for the arrays that move.

    Returns:
        The trajectory, in the form that `gradient_flow` returns. Its `stop_reason` is "num_steps", "target_cost" or
        "max_seconds"; "unstable" where the loss has grown to a million times its size at the start, or overflowed,
        and the card then compares the sharpness with 2 / learning rate; or "non_finite". `gradient_norm` and
        `train_cost` are those of all samples. `stats` hold `num_steps`, `num_epochs` (None without batches),
        `seconds`, `compile_seconds`.
        `saddles` finds those of plain descent on all samples as those of a flow, from rows; where noise or momentum
        move the parameters, too, only what raises the rank counts, and times are known to within a row.

    Raises:
        ValueError: bad arguments, named with value and remedy; a call under `jit` or `vmap`.
        KeyboardInterrupt: Ctrl-C, at once.
    """
    options = DescentOptions(
        num_steps=num_steps,
        batch_size=batch_size,
        key=key,
        max_saves=max_saves,
        save_at=save_at,
        save_networks=save_networks,
        observables=observables,
        target_cost=target_cost,
        max_seconds=max_seconds,
        progress=progress,
        rank_tolerance=rank_tolerance,
    )
    make_room()
    require_concrete("model", model)
    require_concrete("key", key)
    if isinstance(cost, Cost):
        return _train_network(cost, model, optimizer, learning_rate, options)
    return _train_model(as_objective(cost), model, optimizer, learning_rate, options, trainable)


def _train_network(
    cost: Cost, network: Any, optimizer: Any, learning_rate: Any, options: DescentOptions
) -> Trajectory:
    readers.network_of_matrices("model", network)
    check_fit(cost, network)
    options.check_batches(cost.num_samples)
    check_functions(options.observables, None, (cost, network))
    numbers = math.prod(cost.shape) + options.save_networks * network.num_parameters
    descended = _Descended(
        NetworkTask(NetworkLandscape(cost)),
        network,
        stepper_of(optimizer, learning_rate, network),
        options,
        numbers=numbers,
        num_samples=cost.num_samples,
        num_dips=dip_capacity(network),
    )
    rows = descended.rows | {"network": jax.tree.map(on_device, descended.rows.get("network"))}
    return assemble(
        cost,
        network,
        descended.state.point.parameters,
        rows,
        stop_reason=descended.reason.name,
        stats=descended.stats,
        configuration=descended.configuration,
        rank_tolerance=options.rank_tolerance,
        dips=dips_of(descended.state.dips),
    )


def _train_model(
    objective: Objective, model: Any, optimizer: Any, learning_rate: Any, options: DescentOptions, trainable: Any
) -> ModelTrajectory:
    size = math.prod(objective.shape)
    keeps = len(options.saved_steps(1)) * size <= MAX_OUTPUTS
    landscape, theta = landscape_of(
        objective,
        model,
        trainable=trainable,
        preconditioner="none",
        symmetric=False,
        finite=False,
        keep_outputs=keeps,
    )
    options.check_batches(objective.num_samples)
    check_functions(options.observables, None, landscape.subject(theta))
    parameters = jax.tree.unflatten(landscape.structure, map(on_device, landscape.arrays(theta)))
    descended = _Descended(
        ModelTask(landscape),
        parameters,
        stepper_of(optimizer, learning_rate, parameters),
        options,
        numbers=1 + keeps * size + options.save_networks * theta.size,
        num_samples=objective.num_samples,
        num_dips=num_dips(theta),
    )
    rows = descended.rows
    times = {"segment": np.zeros(len(rows["time"]), int), "within": rows["time"]}
    return ModelTrajectory.of(
        landscape,
        theta,
        known(descended.task, descended.state.point.parameters),
        rows | times | {"network": rows.get("network") if not options.save_networks else on_device(rows["network"])},
        durations=np.zeros(0),
        stop_reason=descended.reason.name,
        stats=descended.stats,
        configuration=descended.configuration,
        dips=dips_of(descended.state.dips),
        asked_rank_tolerance=options.rank_tolerance,
    )


class _Descended:
    """A descent done: its last state, its rows, and what is to be said of it."""

    def __init__(
        self,
        task: Task,
        parameters: Any,
        stepper: Stepper,
        options: DescentOptions,
        *,
        numbers: int,
        num_samples: int | None,
        num_dips: int,
    ):
        size = options.batch_size
        method = Method(
            batch_size=size,
            num_samples=None if size is None else num_samples,
            observables=options.observables,
            save_networks=options.save_networks,
            num_dips=num_dips,
        )
        self.task = task
        with Stopwatch() as spent:
            settings = Settings(
                save_at=on_device(options.room_for_rows(numbers)),
                bound=bound_of(task, parameters),
                target_cost=None if options.target_cost is None else jnp.asarray(options.target_cost, float),
                key=options.key,
            )
            self.state, self.reason = run(task, stepper, parameters, settings, method, options)
            self.rows = rows_of(task, self.state, method)
        done = int(self.state.point.step)
        self.stats: dict[str, Any] = {
            "num_steps": done,
            "num_accepted_steps": done,
            "num_rejected_steps": 0,
            "num_epochs": None if size is None or num_samples is None else done * size / num_samples,
            "seconds": spent.seconds,
            "compile_seconds": spent.compile_seconds,
        }
        if done and self.reason in (StopReason.unstable, StopReason.non_finite):
            self._look_at_stability(parameters)
        self.configuration = {
            "solver": name_of(stepper, parameters),
            "follows_flow": stepper.optimizer is None and size is None,
            "learning_rate": None if stepper.rate is None else float(stepper.rate),
            "batch_size": size,
            "num_samples": num_samples,
            "num_steps": options.num_steps,
            "target_cost": None if options.target_cost is None else float(options.target_cost),
        }

    def _look_at_stability(self, start: Any) -> None:
        """The sharpness at the start and where the train cost was least, with the time of that, and its bound.

        A step far too long overflows to NaN at once: then a sharpness beyond the bound says that it was instability.
        """
        found = {
            "start": float(_sharpness(self.task, start)),
            "calm": float(_sharpness(self.task, self.state.calm)),
            "time": float(self.state.calm_time),
            "bound": 2 / float(self.state.point.rate),
        }
        if found["calm"] > found["bound"]:
            self.reason = StopReason.unstable
        if self.reason == StopReason.unstable:
            self.stats["sharpness"] = found


def _sharpness_of(task: Task, parameters: Any) -> Any:
    return obs.sharpness(*task.landscape.subject(task.known(parameters)))


_sharpness = compiled(_sharpness_of, runs_once=True)
