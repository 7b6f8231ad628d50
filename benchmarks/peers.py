"""saddleflow's solver and what a user could pick instead, behind one interface.

A `Peer` integrates a `problems.Problem` and says what that took. A vector field is one call of the field; a
Jacobian product is one J v, and a dense P x P Jacobian counts as P of them; costs evaluated to stop at a
train cost are not counted.
"""

import abc
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

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
from problems import DENSE_SIZE, Problem

import saddleflow as sf
from saddleflow.solvers import Rosenbrock
from saddleflow.solvers.switching import POWER_ITERATIONS

MAX_STEPS = 200_000  # of a run of diffrax, or of CVODE between two times
MAX_SECONDS = 20.0  # of a run of a peer driven from the host
ENDED = ("t1", "cost")  # how runs stop that are not cut short
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
Values = Float[np.ndarray, "times n_out n_in"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run returned and what it took, rejected steps included.

    Attributes:
        values: A at the problem's times, NaN at those that were not reached.
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
def _warm_up(problem: Problem) -> float:
    """Compile a problem's functions as peers call them from the host; the seconds when it was first done."""
    begin, start = time.perf_counter(), problem.start
    made = problem.field(start), problem.product_at(problem.linearise(jnp.array(start)), start)
    jax.block_until_ready((made, problem.train_cost(start), problem.outputs(start)))
    return time.perf_counter() - begin


class Peer(abc.ABC):
    """A solver under test: `name` as printed, `max_size` the largest P it is sensible for (None: any)."""

    name: str
    max_size: int | None = None
    tolerances: tuple[float, ...] = TOLERANCES

    def suits(self, problem: Problem) -> bool:
        """Whether running this peer on the problem is sensible."""
        return self.max_size is None or problem.size <= self.max_size

    def prepare(self, problem: Problem) -> float:
        """Compile and warm up what a run needs; the seconds that took."""
        return _warm_up(problem)

    @abc.abstractmethod
    def run(self, problem: Problem, rtol: float) -> Result:
        """Integrate to the problem's end, at error rtol * (problem.weight + |y_i|) an entry; results awaited."""

    def work(self, result: Result, units: dict[str, float]) -> float:
        """Work of a run in vector fields, from the measured costs of its parts in that unit."""
        return result.fields + units["linearise"] * result.linearisations + units["product"] * result.products


class Saddleflow(Peer):
    """`sf.gradient_flow` with a Rosenbrock solver, None for the default one."""

    tolerances = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)

    def __init__(self, name: str, solver: Rosenbrock | None = None, parts: str = "our") -> None:
        self.name, self.solver, self.parts = name, solver, parts
        self.stages = (solver or Rosenbrock()).tableau.stages

    def prepare(self, problem: Problem) -> float:
        """One step, compiled."""
        begin = time.perf_counter()
        self._flow(problem, 1e-3, max_steps=1)
        return time.perf_counter() - begin

    def run(self, problem: Problem, rtol: float) -> Result:
        """One flow; seconds are those of the integration, without what is derived from it for the trajectory."""
        run = self._flow(problem, rtol, MAX_STEPS)
        values = np.full((len(problem.times), *problem.shape), np.nan)
        values[: len(run.time)] = run.end_to_end
        return Result(
            values=values,
            stopped={"stop": "cost"}.get(run.stop_reason, run.stop_reason),
            seconds=run.stats["seconds"],
            fields=run.stats["num_vector_field_evaluations"],
            products=run.stats["num_hessian_vector_products"],
            preconditions=run.stats["num_preconditioner_applications"],
            steps=run.stats["num_steps"],
            rejected=run.stats["num_rejected_steps"],
            explicit_steps=run.stats["num_explicit_steps"],
        )

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


@functools.cache
def _compile(peer: "Diffrax", problem: Problem) -> Callable[..., Any]:
    """The compiled solve, traced once for all tolerances."""

    def solve(y0, times, rtol, atol):
        event = None
        if problem.until_cost is not None:
            limit = problem.until_cost
            event = dfx.Event(lambda t, y, args, **_: problem.train_cost(y) - limit, optx.Bisection(1e-9, 1e-9))
        saved = dfx.SubSaveAt(ts=times, fn=lambda t, y, args: problem.outputs(y))
        # Steps end on the times: Kvaerno5's third-order dense output would hide the method's own error.
        controller = dfx.ClipStepSizeController(dfx.PIDController(rtol, atol), step_ts=times)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: problem.field(y)),
            peer.solver,
            0.0,
            times[-1],
            None,
            y0,
            stepsize_controller=controller,
            saveat=dfx.SaveAt(subs=saved),
            event=event,
            adjoint=dfx.ForwardMode(),
            max_steps=peer.max_steps,
            throw=False,
        )
        stats = solution.stats
        return solution.ys, stats["num_steps"], stats["num_rejected_steps"], solution.result

    like = map(jnp.asarray, (problem.start, problem.times, 1e-3, 1e-3))
    return eqx.filter_jit(solve).lower(*like).compile()


class Diffrax(Peer):
    """A solver of diffrax with its default controller, the whole solve one compiled program.

    An implicit one forms and factorises the dense Jacobian once a step. How often its Newton iteration calls
    the vector field diffrax does not tell: counted is one call a stage, the least.
    """

    tolerances = (1e-4, 1e-6, 1e-8)

    def __init__(self, solver: Any, max_size: int | None = None, max_steps: int = MAX_STEPS) -> None:
        self.name = f"diffrax {type(solver).__name__}"
        self.solver, self.max_size, self.max_steps = solver, max_size, max_steps
        self.dense = isinstance(solver, dfx.AbstractImplicitSolver)

    def prepare(self, problem: Problem) -> float:
        """The whole solve, compiled."""
        begin = time.perf_counter()
        _compile(self, problem)
        return time.perf_counter() - begin

    def run(self, problem: Problem, rtol: float) -> Result:
        """One call of the compiled solve."""
        arguments = [jnp.asarray(x) for x in (problem.start, problem.times, rtol, rtol * problem.weight)]
        solve = _compile(self, problem)
        begin = time.perf_counter()
        values, steps, rejected, code = jax.block_until_ready(solve(*arguments))
        seconds = time.perf_counter() - begin
        names = {"t1": dfx.RESULTS.successful, "cost": dfx.RESULTS.event_occurred}
        names["max_steps"] = dfx.RESULTS.max_steps_reached
        return Result(
            values=np.where(np.isfinite(values), values, np.nan),
            stopped=next((name for name, known in names.items() if code == known), f"failed: {dfx.RESULTS[code]}"),
            seconds=seconds,
            fields=3 + (self.solver.tableau.num_stages - 1) * int(steps),  # 3: the first slope, the first step size
            products=problem.size * int(steps) if self.dense else 0,
            linearisations=int(steps) if self.dense else 0,
            steps=int(steps),
            rejected=int(rejected),
        )

    def work(self, result: Result, units: dict[str, float]) -> float:
        """Dense Jacobians as such, their factorisation left out."""
        return result.fields + (units["dense"] * result.products if self.dense else 0)


class OutOfTimeError(Exception):
    """A run has used up its MAX_SECONDS."""


class Host:
    """A problem's functions for one run on NumPy vectors, counted, with a deadline."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.values = np.full((len(problem.times), *problem.shape), np.nan)
        self.fields = self.products = self.linearisations = 0
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
        seconds, counts = time.perf_counter() - self.begin, (self.fields, self.products, self.linearisations)
        return Result(self.values, stopped, seconds, *counts, steps=steps, rejected=rejected)


class CVODE(Peer):
    """SUNDIALS' BDF with GMRES(30) on exact Jacobian products, linearised once a linear solve."""

    name = "CVODE BDF GMRES"
    tolerances = (*TOLERANCES, 1e-9, 1e-10, 1e-11, 1e-12)

    def run(self, problem: Problem, rtol: float) -> Result:
        """One run from the host."""
        host = Host(problem)
        jacobian = sksundae.cvode.CVODEJacTimes(
            lambda t, y, yp: host.linearise(y),
            lambda t, y, yp, v, out: np.copyto(out, host.product(v)),
        )
        options: dict[str, Any] = {"linsolver": "gmres", "krylov_dim": 30, "jactimes": jacobian}
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


class _SciPy(Peer):
    """A method for `scipy.integrate.solve_ivp`, and in `_options(host)` what it takes besides tolerances."""

    method: Any

    @abc.abstractmethod
    def _options(self, host: Host) -> dict[str, Any]:
        """Arguments of the method."""

    def run(self, problem: Problem, rtol: float) -> Result:
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

    def prepare(self, problem: Problem) -> float:
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
