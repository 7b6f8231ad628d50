"""What users call to solve a flow: `gradient_flow`, and `integrate` for their own `jit` and `vmap`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import diffrax
import equinox as eqx
from jaxtyping import Array, Bool

from saddleflow._backend.arguments import MOST_STEPS, check_options, choice, integer, number, optional, takes, text
from saddleflow._backend.checks import is_concrete, require
from saddleflow._backend.devices import one_lapack_thread
from saddleflow._backend.waiting import interruptible
from saddleflow.flow import solve
from saddleflow.flow.arguments import FLOW, FlowOptions
from saddleflow.flow.continuation import check_continuable, joined
from saddleflow.flow.critical import CriticalPoint, nearest_critical_point
from saddleflow.flow.functions import check_functions
from saddleflow.flow.model_trajectory import ModelTrajectory
from saddleflow.flow.models import PRECONDITIONERS, landscape_of, solve_model
from saddleflow.flow.solve import IntegratedFlow
from saddleflow.flow.trajectory import Trajectory
from saddleflow.problem import readers
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.objective import Objective, as_objective
from saddleflow.width.adaptive import reduce_where_smaller, solve_reduced
from saddleflow.width.projected import ReducedNetwork

# Options of a flow that have no meaning within `jit`.
OF_THE_HOST = ("max_seconds", "rank_tolerance", "progress")


@overload
def gradient_flow(cost: Cost, network: DeepLinearNetwork | ReducedNetwork, **options: Any) -> Trajectory: ...
@overload
def gradient_flow(cost: Objective | Callable[[Any], Any], network: Any, **options: Any) -> ModelTrajectory: ...
@takes(
    cost=readers.loss,
    network=readers.start,
    reduce_width=optional(text),
    preconditioner=choice(*PRECONDITIONERS),
    **FLOW,
)
@interruptible
@one_lapack_thread()
def gradient_flow(  # pyright: ignore[reportInconsistentOverload]
    cost: Any,
    network: Any,
    *,
    rtol: float = 1e-6,
    t1: float | int | None = None,
    target_cost: float | int | None = None,
    save_at: Any = None,
    solver: diffrax.AbstractSolver | None = None,
    observables: Mapping[str, Any] | Sequence[str] | None = None,
    stop: Callable[[Array, DeepLinearNetwork], Bool[Array, ""]] | None = None,
    save_networks: bool = False,
    max_saves: int | None = None,
    saves_per_step: int = 1,
    max_steps: int = 1_000_000,
    max_seconds: float | int | None = None,
    gradient_tolerance: float = 1e-4,
    rank_tolerance: float | None = None,
    graded: bool | None = None,
    progress: bool | str = True,
    reduce_width: str | None = None,
    trainable: Any = eqx.is_inexact_array,
    preconditioner: str = "auto",
) -> Trajectory | ModelTrajectory:
    """Solve the gradient flow `dtheta/dt = -grad loss(theta)`, and return the trajectory with the reason of its end.

    Of a deep linear network, `gradient_flow(cost, network)`, the loss is C(A(theta)). Of any other model it is an
    objective, `gradient_flow(objective, model)`, or a bare function, `gradient_flow(loss, model)`.

    A run of a network ends "converged" only with a certificate: `|grad C(A)|_F` at most `gradient_tolerance` times
    its value at A = 0 (or at the start, where that is zero), which for a convex C means a minimum. A saddle, where
    only the gradient in theta vanishes, never ends a run that way. With `save_at` the run always goes on to the last
    of the times.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> trajectory = sf.gradient_flow(cost, start)
    >>> trajectory.stop_reason
    'converged'
    >>> print(f"{trajectory.time[-1]:.0f}")
    3447

    So does a run of a model, by grad C in its outputs f. Without that certificate (a minimum that does not fit the
    data, a regulariser, a bare loss) it ends "stationary" where its gradient is zero up to rounding and its Hessian
    has no negative eigenvalue, else "stationary_saddle".

    >>> inputs = np.random.default_rng(0).standard_normal((20, 5))
    >>> targets = np.sin(inputs[:, :1])
    >>> objective = sf.regression(lambda model, x: model(x), inputs, targets)
    >>> model = eqx.nn.MLP(5, 1, 10, 1, jnp.tanh, key=jax.random.key(0))
    >>> trajectory = sf.gradient_flow(objective, model, t1=10.0)
    >>> trajectory.stop_reason
    't1'

    Args:
        cost: the convex cost C of a network; an `Objective`, or a function from the model to a number.
        network: the start theta_0, layers in float64; or a reduced one (`reduce_width`, `sample_reduced`), whose
            run is repeated in larger bases until the estimated error of A is below its tolerance. Or a model: any
            pytree with arrays in float64, such as an `equinox.Module`.
        rtol: relative tolerance, 1e-13 <= rtol < 1. Every entry is controlled relative to its own size or a
            share of the start's typical entry (of a model, in its own array), whichever is larger: free of any scale,
            so alpha * theta_0 is solved as carefully as theta_0. A, or the outputs of a model, are held to 10 rtol
            where errors of many entries add up in them.
        t1: end of the run, in time of the flow; None runs until something else ends it.
        target_cost: the run ends ("target_cost") where the train cost, of a model its loss, has fallen to this: at
            that time, found within a step by dense output; at t = 0 where the start is there. A finite number >= 0;
            None: no such end. With `save_at` rows end before that time, and `network` is the one at it.
        save_at: sorted times to save at (dense output); None saves the solver's own steps, thinned to at
            most `max_saves` rows, start and end always among them. A run that ends before the first time asked for
            has the row of its end.
        solver: any adaptive diffrax solver; default: `saddleflow.solvers.Switching`, which takes matrix-free
            stiff steps and explicit ones as the flow demands (from tiny starts its stiff part alone, `Rosenbrock`).
            Both hand over to `NDF` on long tails (docs/tails.md).
        observables: a mapping from names to functions (cost, network) -> array, or names of registered ones
            (`saddleflow.observables.REGISTRY`), evaluated inside the loop at every saved time.
        stop: a function (time, network) -> boolean that ends the run ("stop") where it turns true. It is asked after
            every accepted step, and the time is then found within the step by dense output, to 10 rtol; what turns
            true and false again within one step is not seen. Where it holds at the start the first step is the last.
        save_networks: keep the whole network at every saved time.
        max_saves: rows kept at most where the solver's own steps are saved; at least 4. None: 1000, or as many as fit
            into 400 MB (of a 1000 x 500 matrix 100), but 16.
        saves_per_step: rows of each of those steps: its end, and places before by dense output, for smoother curves.
        max_steps: steps at most, accepted and rejected ones.
        max_seconds: wall-clock budget in seconds, compilation included, kept to within about .2 s, or a step where
            one takes longer. A step that is still being compiled when the budget is spent ends the run, too; the
            compilation goes on in the background, and the next call finds it (the interpreter's end waits for it).
        gradient_tolerance: of the certificate, 1e-13 <= gradient_tolerance < 1.
        rank_tolerance: absolute cut for the numerical rank; None: a hundredth of the largest
            singular value until the cost has fallen half-way, which counts learned noise too (`Trajectory.rank_gap`).
        graded: solve in graded coordinates (`saddleflow.flow.graded`), which tiny starts need; None decides by the
            start's size. The default solver only; what is returned is in the coordinates of the start either way.
        progress: True shows a meter on terminals and in notebooks: what is done (compiling, run, pilot, check), how
            it stands, the time so far. "log" says so every five seconds, to the logger "saddleflow" at level INFO,
            or on stderr where no logging is set up. False shows nothing.
        reduce_width: "auto" reduces the width where the small network is smaller than half the full one, to
            an error in A of at most 10 * rtol of the largest |A|; in as many directions as the inputs excite
            (`Cost.input_basis`).
        trainable: of a model, an equinox filter for the arrays that move: a function of a leaf, or a pytree of
            booleans. The others stay as they are.
        preconditioner: of a model, how the stiff part of the flow is inverted: "gauss_newton" by the Jacobian of its
            outputs, "hessian" by the dense Hessian, "none"; "auto" decides by the numbers of residuals and
            parameters. Results agree to the tolerance, times differ.

    Returns:
        The trajectory, whatever happened: a failed run ends with its reason, not with an exception, and keeps
        all that was computed up to the failure. Its `stats` hold `seconds`, the wall-clock time of the run, and
        `compile_seconds`, the part of it in which programs were compiled, or read from the cache
        (`sf.cache_programs`).

    Raises:
        ValueError: bad arguments, named with value and remedy; a call under `jit` or `vmap`.
        KeyboardInterrupt: Ctrl-C, at once. A compilation is left to end in the background.
    """
    options = FlowOptions(
        rtol=rtol,
        t1=t1,
        target_cost=target_cost,
        save_at=save_at,
        solver=solver,
        observables=observables,
        stop=stop,
        save_networks=save_networks,
        max_saves=max_saves,
        saves_per_step=saves_per_step,
        max_steps=max_steps,
        max_seconds=max_seconds,
        gradient_tolerance=gradient_tolerance,
        rank_tolerance=rank_tolerance,
        graded=graded,
        progress=progress,
    )
    if not isinstance(cost, Cost):
        require(reduce_width is None, "reduce_width", "be None: only networks have a width to reduce", reduce_width)
        objective = as_objective(cost)
        return solve_model(objective, network, options, trainable=trainable, preconditioner=preconditioner)
    _check_network(network)
    if isinstance(network, DeepLinearNetwork):
        check_functions(options.observables, options.stop, (cost, network))
    start = reduce_where_smaller(cost, network, reduce_width)
    if isinstance(start, ReducedNetwork):
        return solve_reduced(cost, start, options)
    return solve.solve(cost, start, options)


@takes(cost=readers.cost)
@interruptible
def continue_flow(trajectory: Any, cost: Any, **options: Any) -> Trajectory:
    """Continue the flow of a network from its end with another cost: a switch of tasks, or more observations.

    >>> task, other = (sf.MatrixCompletion.random(jax.random.key(seed)) for seed in (0, 2))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=task.shape, gamma=1.5)
    >>> first = sf.gradient_flow(task, start, t1=50.0)
    >>> both = sf.continue_flow(first, other, t1=100.0)
    >>> float(both.time[-1])
    150.0

    The balancedness that the start has is kept over the switch: no cost changes it.

    Args:
        trajectory: of a network, with a row at its end; it may be a continued one.
        cost: the cost from then on, of the same shape.
        options: those of `gradient_flow`, with times counted from the switch.

    Returns:
        The trajectory of both, on one clock. The row of the switch is there twice: first with the cost before it,
        then with the one after it. `parts` has the flows one by one, `cost` and `configuration` are those of the
        last, `stats` count both. Observables are kept where both flows have them; where one cost has no test set,
        its rows have a test cost of NaN.

    Raises:
        ValueError: a trajectory of something else, or without a row at its end; bad arguments.
        TypeError: an option that `gradient_flow` does not take, with the nearest one.
    """
    check_continuable(trajectory)
    check_options(gradient_flow, options)
    reduced = options.get("reduce_width")
    require(reduced is None, "reduce_width", "be left out: a continued flow keeps its width", reduced)
    second = gradient_flow(cost, trajectory.network, **options)
    assert isinstance(second, Trajectory), "of a network"
    return joined(trajectory, second)


@takes(objective=readers.loss, model=readers.start, rtol=number(example="1e-10"), max_steps=integer(1, MOST_STEPS))
@interruptible
def stationary_point(
    objective: Any,
    model: Any,
    *,
    trainable: Any = eqx.is_inexact_array,
    rtol: float = 1e-10,
    max_steps: int = 200,
) -> CriticalPoint:
    """Find a stationary point of the loss near a model, with the index of its Hessian.

    Levenberg-Marquardt on `grad = 0`, dense up to 1000 parameters, matrix-free beyond. It finds saddles as well as
    minima: whatever is near. (Of a deep linear network near a plateau `Trajectory.saddles` does it better, by the
    symmetries.)

    >>> def loss(theta):
    ...     return (1 - theta["a"] * theta["b"]) ** 2
    >>> point = sf.stationary_point(loss, {"a": jnp.array(0.1), "b": jnp.array(-0.1)})
    >>> point.converged, point.index
    (True, 1)
    >>> print(point.loss, point.hessian_range)
    1.0 (-2.0, 2.0)

    Args:
        objective: an `Objective`, a function from the model to a number, or a cost with a deep linear network.
        model: where to start.
        trainable: as in `gradient_flow`.
        rtol: the gradient may be this share of what it changes by where every parameter changes by its own size.
        max_steps: steps at most.

    Returns:
        The point; `converged` says whether it is one.

    Raises:
        ValueError: bad arguments, named with value and remedy.
    """
    landscape, theta = landscape_of(
        as_objective(objective), model, trainable=trainable, preconditioner="none", symmetric=True
    )
    return nearest_critical_point(landscape, theta, rtol=rtol, max_steps=max_steps)


def _check_network(network: Any) -> None:
    """Refuse what is no network, and tracers."""
    small = (
        network.network if isinstance(network, ReducedNetwork) else readers.network_of_matrices("network", network)
    )
    if not is_concrete(small.layers[0]):
        raise ValueError(
            "`network` must be concrete, but got a tracer: gradient_flow runs on the host, outside of jit and vmap. "
            "Call saddleflow.integrate there, the same flow as a pure function of arrays."
        )


@takes(
    cost=readers.cost,
    network=readers.network,
    **{name: reader for name, reader in FLOW.items() if name not in OF_THE_HOST},
)
def integrate(
    cost: Any,
    network: Any,
    *,
    rtol: Any = 1e-6,
    t1: Any = None,
    target_cost: Any = None,
    save_at: Any = None,
    solver: diffrax.AbstractSolver | None = None,
    observables: Mapping[str, Any] | Sequence[str] | None = None,
    stop: Callable[[Array, DeepLinearNetwork], Bool[Array, ""]] | None = None,
    save_networks: bool = False,
    max_saves: int = 64,
    saves_per_step: int = 1,
    max_steps: int = 1_000_000,
    gradient_tolerance: Any = 1e-4,
    graded: bool | None = None,
) -> IntegratedFlow:
    """The flow as a pure function of arrays, for your own `jax.jit`, `jax.vmap` and `jax.lax.map`.

    The same method as `gradient_flow`, without its meter, budget in seconds and trajectory. All arguments are as
    there; rtol, t1, target_cost, gradient_tolerance and the leaves of cost and network may be traced. It is not for
    reverse-mode differentiation.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> def final(key):
    ...     start = sf.gaussian(key, depth=3, width=20, shape=cost.shape, gamma=1.5)
    ...     return sf.integrate(cost, start, t1=100.0).network.end_to_end()
    >>> matrices = jax.jit(jax.vmap(final))(jax.random.split(jax.random.key(0), 3))
    >>> matrices.shape
    (3, 10, 10)

    Where the start is traced its size is not known: `graded=None` then means False, so pass `graded=True` for starts
    as tiny as alpha = 1e-4 or less. `max_saves` is smaller than that of `gradient_flow`, as every lane holds so many.

    Args:
        cost: the convex cost C, a `saddleflow.Cost`.
        network: the start, a `saddleflow.DeepLinearNetwork` with layers in float64; reduced networks by their small
            one, `reduced.network`.
        rtol: relative tolerance, 1e-13 <= rtol < 1.
        t1: end of the flow; None: a certified minimum.
        target_cost: as in `gradient_flow`.
        save_at: sorted times to save at, concrete; None: the solver's own steps, thinned to `max_saves` rows. The end
            is always among them with `save_at` only; else see `network` and `end_time` of the result.
        solver: any adaptive diffrax solver; None: the default.
        observables: as in `gradient_flow`.
        stop: as in `gradient_flow`.
        save_networks: keep the network at every row.
        max_saves: rows held at most without `save_at`; at least 4.
        saves_per_step: rows of each of the solver's steps.
        max_steps: steps at most, accepted and rejected ones.
        gradient_tolerance: of the certificate.
        graded: graded coordinates; see above.

    Returns:
        Arrays of fixed size; see `IntegratedFlow`.

    Raises:
        ValueError: bad arguments, as far as they are concrete.
    """
    options = FlowOptions(
        rtol=rtol,
        t1=t1,
        target_cost=target_cost,
        save_at=save_at,
        solver=solver,
        observables=observables,
        stop=stop,
        save_networks=save_networks,
        max_saves=max_saves,
        saves_per_step=saves_per_step,
        max_steps=max_steps,
        gradient_tolerance=gradient_tolerance,
        graded=graded,
    )
    return solve.integrate(cost, network, options)
