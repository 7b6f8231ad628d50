"""saddleflow's solver and what a user could pick instead, behind one interface.

A `Peer` integrates a `problems.Flow` and says what that took. A vector field is one call of the field; a
Jacobian product is one J v, and a dense P x P Jacobian counts as P of them; costs evaluated to stop at a
train cost are not counted.
"""

import abc
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import diffrax as dfx
import equinox as eqx
import extensisq
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import scipy.integrate
import sksundae
from jaxtyping import Float
from problems import DENSE_SIZE, Flow, Problem

import saddleflow as sf
from saddleflow.solvers import Rosenbrock
from saddleflow.solvers.switching import POWER_ITERATIONS

MAX_STEPS = 200_000  # of a run of diffrax, or of CVODE between two times
MAX_SECONDS = 20.0  # of a run of a peer driven from the host
PROBED = 200  # steps of diffrax that tell what one takes
ENDED = ("t1", "cost")  # how runs stop that are not cut short
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
Values = Float[np.ndarray, "times ..."]
Kind = TypeVar("Kind", bound=Flow, contravariant=True)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run returned and what it took, rejected steps included.

    Attributes:
        values: the flow's outputs (A) at its times, NaN at those that were not reached.
        stopped: "t1", "cost" (until_cost reached), "max_steps", "max_seconds", or "failed: " and why.
        linearisations: partial products formed apart from vector fields, for Jacobian products.
        steps: steps taken, the `rejected` ones included; None where the solver does not tell.
        explicit_steps: those of them that solved nothing.
    """

    values: Values
    stopped: str
    seconds: float
    fields: int
    products: int = 0
    linearisations: int = 0
    preconditions: int = 0
    steps: int | None = None
    rejected: int | None = None
    explicit_steps: int = 0

    @property
    def evaluations(self) -> int:
        """Vector fields and Jacobian products."""
        return self.fields + self.products


@functools.cache
def _warm_up(problem: Flow) -> float:
    """Compile a problem's functions as peers call them from the host; the seconds when it was first done."""
    begin, start = time.perf_counter(), problem.start
    made = problem.field(start), problem.product_at(problem.linearise(jnp.array(start)), start)
    jax.block_until_ready((made, problem.train_cost(start), problem.outputs(start)))
    return time.perf_counter() - begin


class Peer(abc.ABC, Generic[Kind]):
    """A solver under test, for a kind of flows.

    `name` as printed, `max_size` the largest P it is sensible for (None: any).
    """

    name: str
    max_size: int | None = None
    tolerances: tuple[float, ...] = TOLERANCES

    def suits(self, problem: Kind) -> bool:
        """Whether running this peer on the problem is sensible."""
        return self.max_size is None or problem.size <= self.max_size

    def prepare(self, problem: Kind) -> float:
        """Compile and warm up what a run needs; the seconds that took."""
        return _warm_up(problem)

    @abc.abstractmethod
    def run(self, problem: Kind, rtol: float) -> Result:
        """Integrate to the problem's end, at error rtol * (problem.weight + |y_i|) an entry; results awaited."""

    def work(self, result: Result, units: dict[str, float]) -> float:
        """Work of a run in vector fields, from the measured costs of its parts in that unit."""
        return result.fields + units["linearise"] * result.linearisations + units["product"] * result.products


class Ours(Peer[Kind]):
    """`sf.gradient_flow`, whatever is solved."""

    @abc.abstractmethod
    def _flow(self, problem: Kind, rtol: float, max_steps: int) -> Any:
        """The trajectory."""

    @abc.abstractmethod
    def _outputs(self, run: Any, problem: Kind) -> Values:
        """The outputs at its times."""

    def prepare(self, problem: Kind) -> float:
        """One step, compiled."""
        begin = time.perf_counter()
        self._flow(problem, 1e-3, max_steps=1)
        return time.perf_counter() - begin

    def run(self, problem: Kind, rtol: float) -> Result:
        """One flow; seconds are those of the integration, without what is derived from it for the trajectory."""
        run = self._flow(problem, rtol, MAX_STEPS)
        values = np.full((len(problem.times), *problem.shape), np.nan)
        values[: len(run.time)] = self._outputs(run, problem)
        return Result(
            values=values,
            stopped="cost" if run.stop_reason == "stop" else run.stop_reason,
            seconds=run.stats["seconds"],
            fields=run.stats["num_vector_field_evaluations"],
            products=run.stats["num_hessian_vector_products"],
            preconditions=run.stats["num_preconditioner_applications"],
            steps=run.stats["num_steps"],
            rejected=run.stats["num_rejected_steps"],
            explicit_steps=run.stats["num_explicit_steps"],
        )


class Saddleflow(Ours[Problem]):
    """`sf.gradient_flow` with a Rosenbrock solver, None for the default one."""

    tolerances = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)

    def __init__(self, name: str, solver: Rosenbrock | None = None, parts: str = "our") -> None:
        self.name, self.solver, self.parts = name, solver, parts
        self.stages = (solver or Rosenbrock()).tableau.stages

    def _outputs(self, run: Any, problem: Problem) -> Values:
        return run.end_to_end

    def _flow(self, problem: Problem, rtol: float, max_steps: int) -> sf.Trajectory:
        return sf.gradient_flow(
            problem.cost,
            problem.network,
            rtol=rtol,
            save_at=problem.times,
            stop=problem.stop,
            solver=self.solver,
            max_steps=max_steps,
            progress=False,
        )

    def work(self, result: Result, units: dict[str, float]) -> float:
        """Besides products: preconditioner, set-up of every stiff step, change of coordinates at its every stage.

        A switching solver takes one product a step, and some at the start, without structure.
        """
        steps = result.steps or 0
        stiff, radii = steps - result.explicit_steps, 0
        if self.solver is None:
            radii = steps + POWER_ITERATIONS
        counts = {"product": result.products - radii, "precondition": result.preconditions}
        counts |= {"set-up": stiff, "coordinates": stiff * self.stages}
        of_parts = sum(units[f"{self.parts} {part}"] * count for part, count in counts.items())
        of_radii = (units["plain product"] + units["plain set-up"]) * radii
        return units["our field"] * result.fields + of_parts + of_radii


class StepLimit(dfx.AbstractAdaptiveStepSizeController[Any, Any]):
    """A controller that gives a run up after `limit` steps, a number that is not compiled in."""

    controller: dfx.AbstractAdaptiveStepSizeController[Any, Any]
    limit: Any

    def __init__(self, controller: dfx.AbstractAdaptiveStepSizeController[Any, Any], limit: Any) -> None:
        self.controller, self.limit = controller, limit

    @property
    def rtol(self) -> Any:
        """The controller's."""
        return self.controller.rtol

    @property
    def atol(self) -> Any:
        """The controller's."""
        return self.controller.atol

    @property
    def norm(self) -> Any:
        """The controller's."""
        return self.controller.norm

    def wrap(self, direction: Any) -> "StepLimit":
        """As diffrax asks."""
        return eqx.tree_at(lambda s: s.controller, self, self.controller.wrap(direction))

    def init(self, *arguments: Any) -> Any:
        """The first step's end, the controller's state with a count of steps."""
        t1, state = self.controller.init(*arguments)
        return t1, (state, jnp.zeros((), int))

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1_candidate: Any, args: Any, y_error: Any, error_order: Any, state: Any
    ) -> Any:
        """The controller's answer, or that there were too many steps."""
        inner, count = state
        step = (t0, t1, y0, y1_candidate, args, y_error, error_order)
        *answer, inner, result = self.controller.adapt_step_size(*step, inner)
        spent = dfx.RESULTS.where(count + 1 >= self.limit, dfx.RESULTS.max_steps_reached, result)
        return *answer, (inner, count + 1), spent


@functools.cache
def _compile(peer: "Diffrax", problem: Flow) -> Callable[..., Any]:
    """The compiled solve, traced once for all tolerances."""

    def solve(y0, times, rtol, atol, limit):
        event = None
        if problem.until_cost is not None:
            limit = problem.until_cost
            event = dfx.Event(lambda t, y, args, **_: problem.train_cost(y) - limit, optx.Bisection(1e-9, 1e-9))
        saved = dfx.SubSaveAt(ts=times, fn=lambda t, y, args: problem.outputs(y))
        solver, controller = peer.method(rtol, atol, problem)
        controller = StepLimit(controller, limit)
        if peer.clip:
            controller = dfx.ClipStepSizeController(controller, step_ts=times)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: problem.field(y)),
            solver,
            0.0,
            times[-1],
            None,
            y0,
            stepsize_controller=controller,
            saveat=dfx.SaveAt(subs=saved, solver_state=peer.counts_itself),
            event=event,
            adjoint=dfx.ForwardMode(),
            max_steps=peer.max_steps,
            throw=False,
        )
        stats = solution.stats
        return solution.ys, stats["num_steps"], stats["num_rejected_steps"], solution.result, solution.solver_state

    like = map(jnp.asarray, (problem.start, problem.times, 1e-3, 1e-3, MAX_STEPS))
    return eqx.filter_jit(solve).lower(*like).compile()


class Diffrax(Peer[Flow]):
    """A solver of diffrax with its default controller, the whole solve one compiled program.

    An implicit one forms and factorises the dense Jacobian once a step. How often its Newton iteration calls
    the vector field diffrax does not tell: counted is one call a stage, the least.

    Args:
        max_seconds: of a run, from what its first `PROBED` steps take; None: as long as its steps last.
        clip: whether steps end on the times, where a dense output of lower order (Kvaerno5's) would hide the method's
            own error.
    """

    tolerances = (1e-4, 1e-6, 1e-8)
    counts_itself = False

    def __init__(
        self,
        solver: Any,
        max_size: int | None = None,
        max_steps: int = MAX_STEPS,
        max_seconds: float | None = None,
        clip: bool = True,
    ) -> None:
        self.name = f"diffrax {type(solver).__name__}"
        self.solver, self.max_size, self.max_steps = solver, max_size, max_steps
        self.max_seconds, self.clip = max_seconds, clip
        self.dense = isinstance(solver, dfx.AbstractImplicitSolver)

    def method(
        self, rtol: Any, atol: Any, problem: Flow
    ) -> tuple[Any, dfx.AbstractAdaptiveStepSizeController[Any, Any]]:
        """Solver and step-size controller for these tolerances."""
        del problem
        return self.solver, dfx.PIDController(rtol, atol)

    def prepare(self, problem: Flow) -> float:
        """The whole solve, compiled."""
        begin = time.perf_counter()
        _compile(self, problem)
        return time.perf_counter() - begin

    def run(self, problem: Flow, rtol: float) -> Result:
        """One call of the compiled solve."""
        solve = _compile(self, problem)
        tolerances = [jnp.asarray(x) for x in (problem.start, problem.times, rtol, rtol * problem.weight)]

        def limited(steps: int) -> tuple[Any, float]:
            begin = time.perf_counter()
            found = jax.block_until_ready(solve(*tolerances, jnp.asarray(steps)))
            return found, time.perf_counter() - begin

        limit = self.max_steps
        if self.max_seconds is not None:
            (_, taken, *_), seconds = limited(PROBED)
            limit = min(limit, int(self.max_seconds / seconds * int(taken)))
        (values, steps, rejected, code, state), seconds = limited(limit)
        names = {"t1": dfx.RESULTS.successful, "cost": dfx.RESULTS.event_occurred}
        names["max_steps" if limit == self.max_steps else "max_seconds"] = dfx.RESULTS.max_steps_reached
        return Result(
            values=np.where(np.isfinite(values), values, np.nan),
            stopped=next((name for name, known in names.items() if code == known), f"failed: {dfx.RESULTS[code]}"),
            seconds=seconds,
            steps=int(steps),
            rejected=int(rejected),
            **self.counts(problem, int(steps), state),
        )

    def counts(self, problem: Flow, steps: int, state: Any) -> dict[str, int]:
        """Fields, products, linearisations of a run, from its steps or what the solver has counted in its state."""
        del state
        # 3: the first slope, the first step size
        counted = {"fields": 3 + (self.solver.tableau.num_stages - 1) * steps}
        return counted | ({"products": problem.size * steps, "linearisations": steps} if self.dense else {})

    def work(self, result: Result, units: dict[str, float]) -> float:
        """Dense Jacobians as such, their factorisation left out."""
        return result.fields + (units["dense"] * result.products if self.dense else 0)


class OutOfTimeError(Exception):
    """A run has used up its MAX_SECONDS."""


class Host:
    """A problem's functions for one run on NumPy vectors, counted, with a deadline."""

    def __init__(self, problem: Flow) -> None:
        self.problem = problem
        self.values = np.full((len(problem.times), *problem.shape), np.nan)
        self.fields = self.products = self.linearisations = self.preconditions = 0
        self.begin = time.perf_counter()

    def tick(self) -> None:
        """Count a vector field."""
        if time.perf_counter() - self.begin > MAX_SECONDS:
            raise OutOfTimeError
        self.fields += 1

    def field(self, t: float, y: np.ndarray) -> np.ndarray:
        """The vector field."""
        self.tick()
        return np.asarray(self.problem.field(y))

    def linearise(self, y: np.ndarray) -> None:
        """Form what later products need."""
        self.linearisations += 1
        # A copy: a compiled function may hand back its argument, and the solver overwrites this memory.
        self.state = self.problem.linearise(jnp.array(y, copy=True))

    def product(self, v: np.ndarray) -> np.ndarray:
        """J v at the state last linearised at."""
        self.products += 1
        return np.asarray(self.problem.product_at(self.state, v))

    def result(self, stopped: str, steps: int | None = None, rejected: int | None = None) -> Result:
        """The run up to now."""
        seconds = time.perf_counter() - self.begin
        counts = (self.fields, self.products, self.linearisations, self.preconditions)
        return Result(self.values, stopped, seconds, *counts, steps=steps, rejected=rejected)


class CVODE(Peer[Flow]):
    """SUNDIALS' BDF with GMRES(30) on exact Jacobian products, linearised once a linear solve."""

    name = "CVODE BDF GMRES"
    tolerances = (*TOLERANCES, 1e-9, 1e-10, 1e-11, 1e-12)

    def run(self, problem: Flow, rtol: float) -> Result:
        """One run from the host."""
        host = Host(problem)
        jacobian = sksundae.cvode.CVODEJacTimes(
            lambda t, y, yp: host.linearise(y),
            lambda t, y, yp, v, out: np.copyto(out, host.product(v)),
        )
        options: dict[str, Any] = {"linsolver": "gmres", "krylov_dim": 30, "jactimes": jacobian}
        options |= self.options(host)
        options |= {"max_num_steps": MAX_STEPS, "rtol": rtol, "atol": rtol * problem.weight}
        if problem.until_cost is not None:
            limit = problem.until_cost
            options["eventsfn"] = lambda t, y, out: np.copyto(out, problem.train_cost(y) - limit)
            options["num_events"] = 1
        # Made anew for every run: a solver keeps the events of earlier ones.
        solver = sksundae.cvode.CVODE(lambda t, y, yp: np.copyto(yp, host.field(t, y)), **options)
        host.begin = time.perf_counter()
        try:
            solver.init_step(0.0, problem.start)
            for i, t in enumerate(problem.times):
                step = solver.step(t, tstop=problem.times[-1])
                if step.status < 0 or step.status == 2:
                    return host.result({-1: "max_steps", 2: "cost"}.get(step.status, f"failed: {step.message}"))
                host.values[i] = problem.outputs(step.y)
        except OutOfTimeError:
            return host.result("max_seconds")
        return host.result("t1")

    def options(self, host: Host) -> dict[str, Any]:
        """Further ones, for variants."""
        del host
        return {}


class _SciPy(Peer[Flow]):
    """A method for `scipy.integrate.solve_ivp`, and in `_options(host)` what it takes besides tolerances."""

    method: Any

    @abc.abstractmethod
    def _options(self, host: Host) -> dict[str, Any]:
        """Arguments of the method."""

    def run(self, problem: Flow, rtol: float) -> Result:
        """One run from the host."""

        def event(t: float, y: np.ndarray) -> float:
            return float(problem.train_cost(y)) - (problem.until_cost or 0.0)

        event.terminal = True
        host = Host(problem)
        options = {"t_eval": problem.times, "rtol": rtol, "atol": rtol * problem.weight, **self._options(host)}
        options["events"] = None if problem.until_cost is None else event
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # extensisq's, that the problem is stiff
                run = scipy.integrate.solve_ivp(
                    host.field, (0, problem.times[-1]), problem.start, self.method, **options
                )
        except OutOfTimeError:
            return host.result("max_seconds")
        host.values[: run.t.size] = [problem.outputs(y) for y in run.y.T]
        return host.result({0: "t1", 1: "cost"}.get(run.status, f"failed: {run.message}"))


class LSODA(_SciPy):
    """SciPy's LSODA with the exact dense Jacobian."""

    name, method, max_size = "SciPy LSODA", "LSODA", DENSE_SIZE

    def prepare(self, problem: Flow) -> float:
        """The dense Jacobian too."""
        begin = time.perf_counter()
        jax.block_until_ready(problem.jacobian(problem.start))
        return time.perf_counter() - begin + super().prepare(problem)

    def _options(self, host: Host) -> dict[str, Any]:
        def jacobian(t: float, y: np.ndarray) -> np.ndarray:
            host.products += host.problem.size
            return np.asarray(host.problem.jacobian(y))

        return {"jac": jacobian}

    def work(self, result: Result, units: dict[str, float]) -> float:
        """Dense Jacobians as such, their factorisation left out."""
        return result.fields + units["dense"] * result.products


class RKC(_SciPy):
    """The stabilised explicit second-order RKC of extensisq.

    The spectral radius it asks for at every step comes from warm-started power iteration: to one per cent at
    the start, then one product every tenth step, times RKC's own safety factor of 1.2.
    """

    name, method = "extensisq RKC", extensisq.SSV2stab

    def _options(self, host: Host) -> dict[str, Any]:
        vector = np.random.default_rng(0).standard_normal(host.problem.size)
        calls, radius = 0, 0.0

        def spectral_radius(t: float, y: np.ndarray) -> float:
            nonlocal vector, calls, radius
            if calls % 10 == 0:
                host.linearise(y)
                for _ in range(1 if calls else 50):
                    vector = host.product(vector / np.linalg.norm(vector))
                    before, radius = radius, float(np.linalg.norm(vector))
                    if abs(radius - before) <= 0.01 * radius:
                        break
            calls += 1
            return 1.2 * radius

        return {"rho_jac": spectral_radius}
