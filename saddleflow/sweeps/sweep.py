"""Sweeps: one call for a grid of flows, one dataset back."""

import inspect
import math
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import diffrax
import equinox as eqx
import jax
import lazy_loader as lazy
import numpy as np

from saddleflow._backend import meters
from saddleflow._backend.arguments import (
    MOST_STEPS,
    boolean,
    choice,
    function,
    integer,
    optional,
    path,
    real_numbers,
    refuse,
    require_known,
    scalar,
    takes,
    text,
)
from saddleflow._backend.checks import require, require_positive
from saddleflow._backend.devices import find_devices, slots_per_program
from saddleflow._backend.waiting import interruptible
from saddleflow.flow.arguments import FLOW, FlowOptions
from saddleflow.flow.history import versions as package_versions
from saddleflow.flow.models import PRECONDITIONERS
from saddleflow.problem.costs import Cost
from saddleflow.sweeps import cluster, dataset
from saddleflow.sweeps.chunk import Chunk, Starts, SweepOptions
from saddleflow.sweeps.chunks import NETWORKS, cut, run_chunks
from saddleflow.sweeps.configuration import describe
from saddleflow.sweeps.grid import Grid
from saddleflow.sweeps.made import arguments_of
from saddleflow.sweeps.made_networks import MadeNetworkStarts
from saddleflow.sweeps.models import ModelStarts
from saddleflow.sweeps.store import Store
from saddleflow.sweeps.workers import Report, Tally

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = lazy.load("xarray")

# What a sweep of networks takes beside what all sweeps do.
NETWORK_AXES = ("depth", "width", "gamma", "variance", "alpha")

DEFAULT_RTOL = 1e-4

# So many times are more than any dataset of lanes holds.
MOST_TIMES = 10**7

# Where a lane's own steps are saved: rows of a step, so that short runs too have as many as the dataset asks for.
SAVES_PER_STEP = 4


# Options of every flow of a sweep; rtol is an axis.
OF_FLOWS = (
    *("t1", "target_cost", "observables", "solver", "max_saves", "max_steps"),
    *("gradient_tolerance", "rank_tolerance", "progress"),
)


def _save_at(argument: str, value: Any) -> Any:
    """The reader of `save_at`: a number of times, or times."""
    found = scalar(value)
    return integer(2, MOST_TIMES)(argument, found) if isinstance(found, int) else real_numbers(argument, found)


def _client(argument: str, value: Any) -> Any:
    """The reader of `client`: what chunks can be submitted to."""
    if isinstance(value, type) or not (hasattr(value, "submit") and hasattr(value, "cancel")):
        refuse(argument, "be a dask.distributed.Client", value, "For example dask.distributed.Client().")
    return value


@overload
def sweep(
    cost: Cost | Sequence[Cost],
    *,
    depth: Any,
    width: Any,
    gamma: Any = 1.0,
    variance: Any = ...,
    alpha: Any = 1.0,
    **options: Any,
) -> "xr.Dataset": ...
@overload
def sweep(cost: Any, *, init: Callable[..., Any], **options: Any) -> "xr.Dataset": ...
@takes(
    accept=optional(function("start")),
    num_steps=optional(integer(1, MOST_STEPS)),
    save_at=optional(_save_at),
    save_matrices=boolean,
    reduce_width=optional(text),
    preconditioner=choice(*PRECONDITIONERS),
    store=optional(path),
    client=optional(_client),
    slots=optional(integer(1)),
    chunk_size=optional(integer(1)),
    **{name: FLOW[name] for name in OF_FLOWS},
)
@interruptible
def sweep(  # pyright: ignore[reportInconsistentOverload]
    cost: Any,
    *,
    init: Any = None,
    seed: Any = 0,
    together: Any = (),
    accept: Any = None,
    method: Any = "flow",
    num_steps: int | None = None,
    learning_rate: Any = None,
    batch_size: Any = None,
    batch_seed: Any = None,
    rtol: Any = DEFAULT_RTOL,
    t1: Any = None,
    target_cost: float | int | None = None,
    save_at: Any = None,
    max_saves: int = 64,
    save_matrices: bool = False,
    observables: Mapping[str, Any] | Sequence[str] | None = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    gradient_tolerance: float = 1e-4,
    rank_tolerance: float | None = None,
    reduce_width: str | None = None,
    trainable: Any = eqx.is_inexact_array,
    preconditioner: str = "auto",
    store: str | Path | None = None,
    client: Any = None,
    devices: int | Sequence[Any] | None = None,
    slots: int | None = None,
    chunk_size: int | None = None,
    progress: bool | str = True,
    **axes: Any,
) -> "xr.Dataset":
    """Solve the flow from every start of a grid.

    Of deep linear networks, `sweep(cost, depth=..., width=...)`, the starts are `alpha * theta_0(seed)`, layers of
    variance `width^-gamma`, or of the variance given in its place. Each of cost, depth, gamma (or variance), alpha,
    width, seed and rtol may be a sequence; those that are become the dims of the dataset, in this order, and every
    combination is a lane, but for dims that go `together`. A lane's start is drawn with
    `jax.random.key(seed)`, so a lane's numbers depend on its own coordinates only: not on the grid's other
    values, its order, the chunks, the devices or the machines. (CPUs and accelerators agree to rtol only: see
    `solver`.)

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0), shape=(5, 5), rank=1)
    >>> data = sf.sweep(cost, depth=3, width=[5, 10], gamma=[1.0, 1.5], seed=range(3))
    >>> dict(data.test_cost.isel(sample=-1).mean("seed").sizes)
    {'gamma': 2, 'width': 2}

    Other starts are what a function returns, `init(jax.random.key(seed), ...)`: of networks, with a cost, one of
    `sf.gaussian`, `sf.orthogonal`, `sf.identity` and so on, or a function of yours; of other models, with an
    objective, a function of yours. Its keywords are given to sweep; those that are sequences become dims, in the
    order of the call, after `cost` and before seed and rtol. Where it takes a `shape`, that is the cost's.

    >>> data = sf.sweep(cost, init=sf.orthogonal, depth=3, width=5, scale=[0.5, 0.1], seed=range(2))
    >>> dict(data["rank"].isel(sample=-1).sizes)
    {'scale': 2, 'seed': 2}

    >>> inputs = np.random.default_rng(0).standard_normal((20, 5))
    >>> objective = sf.regression(lambda model, x: model(x), inputs, np.sin(inputs[:, :1]))
    >>> def make(key, width, scale=1.0):
    ...     model = eqx.nn.MLP(5, 1, width, 1, jnp.tanh, key=key)
    ...     return jax.tree.map(lambda x: scale * x if eqx.is_inexact_array(x) else x, model)
    >>> data = sf.sweep(objective, init=make, width=[5, 10], scale=[1.0, 1e-2], seed=range(2), t1=10.0)
    >>> dict(data.train_cost.isel(sample=-1).sizes)
    {'width': 2, 'scale': 2, 'seed': 2}

    `init` is called on the host, outside of `jit`, when a lane's turn comes, and a few times more to see the
    structure of starts; several threads may call it. Models of one structure (shapes, and all that is no array) share
    a compiled program, so functions in a model should be made outside of `init`.

    With `method=optax.sgd`, or another function from a learning rate to an optax optimiser, starts are trained step
    by step (`gradient_descent`), at several rates, batch sizes and seeds of the batches:

    >>> data = sf.sweep(
    ...     cost, depth=3, width=5, gamma=1.5, seed=range(2),
    ...     method=optax.sgd, num_steps=1000, learning_rate=[1e-3, 1e-2], batch_size=[None, 5],
    ... )
    >>> dict(data.train_cost.isel(sample=-1).sizes)
    {'seed': 2, 'learning_rate': 2, 'batch_size': 2}

    Three defaults differ from those of `gradient_flow`, because a sweep has many lanes. `rtol` is 1e-4, not 1e-6: a
    sweep is drawn as a picture, and A is held to 10 rtol, a tenth of a percent. `max_saves` is 64, not 1000: so many
    rows are held for every lane. `max_steps` is 100,000, not 1,000,000: a lane that gets nowhere holds a worker until
    its steps are used up.

    Args:
        cost: the cost, or several of one shape; of models an `Objective` or a function from the model to a number, or
            several.
        init: a function (key, ...) -> network, or model; None: Gaussian networks, drawn within the program.
        seed: seeds of the starts.
        together: names of dims whose values go together, in pairs and not in all combinations, such as
            `("width", "variance")`; several such tuples in a list. The dataset's dim has the first name, the others
            are coordinates along it.
        accept: a function of a start that says whether it will do, with init. A start that will not is drawn anew, up
            to a thousand times; the dataset has num_draws.
        method: "flow"; or discrete training, a function from a learning rate to an optax optimiser, such as
            `optax.sgd`: then each lane is what `gradient_descent` returns, with num_steps, and has no t1, save_at,
            solver or reduce_width. Rows are max_saves, evenly spaced in steps.
        num_steps: steps of each descent.
        learning_rate: of descents, one or several: a dim after the others; None: 1e-2.
        batch_size: of descents, samples in a step, one number or several; None: all.
        batch_seed: of descents, seeds of the batches; None: 0.
        rtol: relative tolerance, as in `gradient_flow`.
        t1: end of each run; None: a certified minimum.
        target_cost: a lane ends where its train cost, of models the loss, has fallen to this, as in `gradient_flow`;
            one number for all lanes. `end_time` is then the time at which it did, to 10 rtol.
        save_at: sorted times to save at, by dense output, the dim `time`; an integer n means t = 0 and n - 1
            logarithmic times from `t1 / 1e6` to `t1`. None: `max_saves` rows spread evenly over each lane's own
            steps, within them by dense output where they are few, the dim `sample`, first row the start and last row
            the end; then `time` is a variable.
        max_saves: rows of a lane where its own steps are saved; at least 4.
        save_matrices: keep the end-to-end matrices of all rows, or the outputs of models.
        observables: as in `gradient_flow`.
        solver: as in `gradient_flow`; None: its default where this machine computes on CPUs, the stiff part of it
            on accelerators.
        max_steps: steps of a lane at most.
        gradient_tolerance: of the certificate, as in `gradient_flow`.
        rank_tolerance: absolute cut for the rank; None: see `gradient_flow`.
        reduce_width: "auto" reduces the lanes whose width it makes smaller, each to an error in A of at most 10 *
            rtol of its largest |A|; "sample" draws them reduced (`sample_reduced`, any width up to 10^12), so
            that their starts are others than the full ones. The dataset then has reduction_error_estimate. Networks
            only, as is rank_tolerance.
        trainable: of models, as in `gradient_flow`.
        preconditioner: of models, as in `gradient_flow`.
        store: folder of a zarr store: finished chunks are kept there, and the same call goes on where an earlier
            one ended.
        client: a `dask.distributed.Client` to run the chunks on.
        devices: local devices to use, or how many of them; None: all.
        slots: slots of one compiled program, each for a lane at a time; None: 1 on a CPU, 256 on an accelerator, or
            as many as fit its memory.
        chunk_size: lanes of a chunk at most; None: a 32nd of them, between 8 and 256.
        progress: a meter, or "log": lines for a log, as in `gradient_flow`.
        axes: of networks depth (number of layers L), width (hidden width w), gamma (exponent of the start's variance,
            default 1) or variance (the variance itself), and alpha (scale of the start, default 1). With init its
            keywords: a list, tuple, range or array is a dim, anything else one value; values that are no numbers or
            strings have their names as coordinates.

    Returns:
        A dataset with the dims above: train_cost, test_cost (where there is a test set), gradient_norm, rank,
        nuclear_norm, singular_values, observable_<name> along the rows; stop_reason, end_time,
        num_accepted_steps, num_rejected_steps, evaluations, balancedness_drift a lane. Of models train_cost (the
        loss), test_cost, gradient_norm, observables, outputs, and all that a lane has but the drift. Attributes:
        configuration and versions as JSON, lane_utilisation (useful lane-steps over all computed).

    Raises:
        ValueError: bad arguments, named with value and remedy; a store of another sweep, or a damaged one.
        TypeError: an argument of another name, with the nearest known one.
        OSError: a store that cannot be written; what was written stays.
        RuntimeError: chunks that failed on a cluster.
        KeyboardInterrupt: Ctrl-C, at once; the store is whole.
    """
    of_models = {"trainable": trainable, "preconditioner": preconditioner}
    of_networks = {"reduce_width": reduce_width, "rank_tolerance": rank_tolerance}
    of_flows = {"t1": t1, "save_at": save_at, "solver": solver, "reduce_width": reduce_width}
    of_flows["rtol"] = None if np.ndim(rtol) == 0 and rtol == DEFAULT_RTOL else rtol
    of_descents = {"num_steps": num_steps, "learning_rate": learning_rate}
    of_descents |= {"batch_size": batch_size, "batch_seed": batch_seed}
    _check_method(method, of_flows, of_descents)
    starts, make_grid = _starts(cost, init, accept, axes, of_models, of_networks)
    common = {"together": together, "seed": seed, "rtol": rtol}
    if callable(method):
        assert num_steps is not None, "as it is checked"
        from saddleflow.sweeps.descents import DescentStarts  # and the optimisers with it, where they are used

        starts = DescentStarts(starts, method, num_steps, trainable)
        common["learning_rate"] = 1e-2 if learning_rate is None else learning_rate
        common |= {"batch_size": batch_size, "batch_seed": 0 if batch_seed is None else batch_seed}
    grid = make_grid(cost, **common)
    t1, save_at = _times(t1, save_at)
    flow = FlowOptions(
        t1=t1,
        target_cost=target_cost,
        save_at=save_at,
        solver=solver,
        observables=observables,
        max_saves=max_saves,
        saves_per_step=SAVES_PER_STEP,
        max_steps=max_steps,
        gradient_tolerance=gradient_tolerance,
        rank_tolerance=rank_tolerance,
        progress=False,
    )
    flow.check_rows(math.prod(grid.costs[0].shape))
    # under vmap the default solver would pay for its explicit steps and its stiff ones at every step
    stiff = solver is None and slots_per_program(find_devices(devices)[0]) > 1
    options = SweepOptions(flow, save_matrices, reduce_width, stiff)
    require(client is None or devices is None, "devices", "not be given together with client", devices)
    chunks = cut(grid, options, chunk_size, starts)
    configuration, versions = describe(grid, starts, options, chunks), package_versions()
    kept = None if store is None else Store(store, configuration, versions)
    if kept is not None and kept.complete:
        return dataset.with_names(kept.load())
    compute = partial(run_chunks, devices=devices, slots=slots)
    if client is not None:
        compute = partial(cluster.run_on_client, client=client, slots=slots)
    flat = _collect(cluster.own_chunks(chunks), grid.size, kept, compute, progress)
    data = dataset.assemble(grid, starts, options, cluster.gather(flat), configuration, versions)
    if kept is not None and jax.process_index() == 0:
        kept.finish(data)
    return dataset.with_names(data)


def _check_method(method: Any, of_flows: dict[str, Any], of_descents: dict[str, Any]) -> None:
    """Refuse a method that is no function of a rate, and options of the other kind of sweep.

    Args:
        method: "flow", or what makes an optimiser of a learning rate.
        of_flows: options that flows have and descents have not, where they are given; else None.
        of_descents: the other way round.

    Raises:
        ValueError: which of them.
    """
    flow = isinstance(method, str) and method == "flow"
    remedy = "Such as optax.sgd, or lambda rate: optax.sgd(rate, momentum=0.9)."
    require(flow or callable(method), "method", "be 'flow' or a function: learning rate -> optimiser", method, remedy)
    if flow:
        remedies = {"num_steps": "max_steps bounds flows."}
        for name, value in of_descents.items():
            remedy = remedies.get(name, "Of descents, method=optax.sgd.")
            require(value is None, name, "come with a method other than 'flow'", value, remedy)
        return
    steps = of_descents["num_steps"]
    require(steps is not None, "num_steps", "be given with a method other than 'flow'", steps)
    for name, value in of_flows.items():
        require(value is None, name, "be left out: descents have num_steps and learning_rate", value)


def _starts(
    cost: Any,
    init: Any,
    accept: Any,
    axes: dict[str, Any],
    of_models: dict[str, Any],
    of_networks: dict[str, Any],
) -> tuple[Starts, Callable[..., Grid]]:
    """What kind of starts there are, and what makes their grid of cost, seed and rtol.

    Raises:
        ValueError: options of the other kind; arguments of init that are missing or have the name of a variable.
        TypeError: an argument of another name.
    """
    if init is None:
        _refuse_options_of_models(of_models, "come with init")
        require(accept is None, "accept", "come with init", accept, "For example init=sf.gaussian.")
        return NETWORKS, partial(Grid.of, **_network_axes(axes))
    first: Any = cost[0] if isinstance(cost, Sequence) and len(cost) else cost
    networks = isinstance(first, Cost)
    if networks:
        _refuse_options_of_models(of_models, "come with an objective")
        require(of_networks["reduce_width"] is None, "reduce_width", "be left out where init is given", of_networks)
    else:
        for name, value in of_networks.items():
            require(value is None, name, "be left out where init makes models", value, "Only networks have it.")
    shaped = networks and "shape" in inspect.signature(init).parameters if callable(init) else False
    fixed = {"shape": tuple(first.shape)} if shaped else {}
    if shaped:
        require("shape" not in axes, "shape", "be left out: it is the cost's", axes.get("shape"))
    names, open_ended = arguments_of(init, axes | fixed)
    for name, value in axes.items():
        if not open_ended and name not in names:
            own = name not in NETWORK_AXES
            require(own, name, "be an argument of init where that is given", value, f"It takes {', '.join(names)}.")
            require_known(name, [*names, *_names_of_sweep()], "sweep or of init")
    for name in dataset.NAMES & set(axes):
        require(False, name, "have another name as an argument of init", axes[name], "The dataset uses it.")
    make_grid = partial(Grid.made, arguments=axes, of_networks=networks)
    if networks:
        return MadeNetworkStarts(init, accept, fixed), make_grid
    return ModelStarts(init, accept, fixed, **of_models), make_grid


def _names_of_sweep() -> list[str]:
    return [name for name, one in inspect.signature(sweep).parameters.items() if one.kind != one.VAR_KEYWORD]


def _network_axes(axes: dict[str, Any]) -> dict[str, Any]:
    """The axes of Gaussian networks, checked, with defaults for those left out.

    Raises:
        ValueError: depth or width left out; gamma and the variance, both.
        TypeError: an axis of another name.
    """
    known = _names_of_sweep()
    for name in axes:
        require_known(name, [*known[:1], *NETWORK_AXES, *known[1:]], "sweep")
    for name in ("depth", "width"):
        require(name in axes, name, "be given for networks", None, "Other starts come from init.")
    both = {"gamma", "variance"} <= set(axes)
    require(not both, "gamma, variance", "be given one and not both", (axes.get("gamma"), axes.get("variance")))
    return ({"alpha": 1.0} if "variance" in axes else {"gamma": 1.0, "alpha": 1.0}) | axes


def _refuse_options_of_models(given: dict[str, Any], expected: str) -> None:
    remedy = "Networks move as a whole, by their own preconditioner."
    require(given["trainable"] is eqx.is_inexact_array, "trainable", expected, given["trainable"], remedy)
    require(given["preconditioner"] == "auto", "preconditioner", expected, given["preconditioner"], remedy)


def _times(t1: Any, save_at: Any) -> tuple[float | None, Any]:
    """End and saved times of the lanes; a number of times is spread logarithmically."""
    if t1 is not None:
        require_positive("t1", t1)
        t1 = float(t1)
    if isinstance(save_at, int) and not isinstance(save_at, bool):
        require(t1 is not None, "t1", "be given where save_at is a number of times", t1, "The times end there.")
        last = t1 or 0.0
        save_at = np.concatenate([[0.0], np.geomspace(last * 1e-6, last, save_at - 1)])
    return t1, save_at


def _collect(
    chunks: Sequence[Chunk],
    size: int,
    store: Store | None,
    compute: Callable[..., Generator[tuple[Chunk, dict[str, np.ndarray]], None, None]],
    progress: bool | str,
) -> dict[str, np.ndarray]:
    """The arrays of all `size` lanes: chunks are read where they are stored, else computed and stored."""
    flat: dict[str, np.ndarray] = {}
    missing, done = [], 0
    for chunk in chunks:
        stored = store.read(chunk.number) if store is not None and store.has(chunk.number) else None
        if stored is None:
            missing.append(chunk)
            continue
        dataset.fill(flat, size, chunk, stored)
        done += len(chunk.index)
    with meters.meter(progress, total=size, unit="lanes") as show:
        show(lambda: "compiling", done)
        with closing(compute(missing, report=_summed(show, done))) as results:  # an interrupt ends the workers too
            for chunk, result in results:
                if store is not None:
                    store.write(chunk.number, result)
                dataset.fill(flat, size, chunk, result)
    return flat


def _summed(show: meters.Report, done: int) -> Report:
    """A report that adds up what several threads say, and shows the sum."""
    total, lock = Tally(done), threading.Lock()

    def report(tally: Tally) -> None:
        nonlocal total
        with lock:
            total += tally
            show(partial(str, total), total.done)

    return report
