"""What integrates the flows of the models benchmark, beside the peers of `peers.py`."""

import functools
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sksundae
from jax.flatten_util import ravel_pytree
from model_problems import ModelProblem, loss_of
from peers import CVODE, MAX_SECONDS, Diffrax, Host, Ours, Peer, Result, Values
from problems import Flow, Vector

import saddleflow as sf
from saddleflow.solvers import CountingSolver, Plain, PredictiveController, Rosenbrock, Switching


class Models(Ours[ModelProblem]):
    """`sf.gradient_flow` as it comes."""

    name = "saddleflow"
    tolerances = (1e-3, 1e-4, 1e-5, 1e-6)

    def _outputs(self, run: Any, problem: ModelProblem) -> Values:
        """Samples first, as the model gives them to the peers."""
        return np.moveaxis(run.outputs, -1, 1).reshape(len(run.time), *problem.shape)

    def _flow(self, problem: ModelProblem, rtol: float, max_steps: int) -> Any:
        return sf.gradient_flow(
            problem.objective(),
            problem.model,
            rtol=rtol,
            save_at=problem.times,
            max_steps=max_steps,
            max_seconds=MAX_SECONDS,
            progress=False,
        )


def _smaller_gram(factor: jax.Array, shift: Any) -> jax.Array:
    """The Cholesky factor of `I + shift J J^T`, or of `I + shift J^T J` where J is tall."""
    rows, size = factor.shape
    gram = factor @ factor.T if rows < size else factor.T @ factor
    return jnp.linalg.cholesky(jnp.eye(len(gram)) + shift * gram)


def _gauss_newton(factor: jax.Array, shift: Any, cholesky: jax.Array, v: Vector) -> jax.Array:
    """`(I + shift J^T J)^-1 v`; with fewer rows than columns by Woodbury's identity."""
    if factor.shape[0] >= factor.shape[1]:
        return jax.scipy.linalg.cho_solve((cholesky, True), jnp.asarray(v))
    return v - shift * factor.T @ jax.scipy.linalg.cho_solve((cholesky, True), factor @ v)


class Bare(Diffrax):
    """Our solvers run by `diffrax.diffeqsolve`, without the rest of saddleflow.

    Args:
        name: as printed.
        make: `(rtol, atol, local_model) -> solver`.
        gauss_newton: whether Krylov solves are preconditioned by `(I + shift J^T J)^-1`, J formed anew every step.
    """

    tolerances = Models.tolerances
    counts_itself = True

    def __init__(self, name: str, make: Callable[..., CountingSolver], gauss_newton: bool = True) -> None:
        super().__init__(None, max_seconds=MAX_SECONDS, clip=False)
        self.name, self.make, self.gauss_newton = name, make, gauss_newton
        self.factor: Callable[[Vector], jax.Array] | None = None

    def suits(self, problem: Flow) -> bool:
        """Models only."""
        return isinstance(problem, ModelProblem)

    def method(self, rtol: Any, atol: Any, problem: Flow) -> tuple[CountingSolver, PredictiveController]:
        """Solver and controller."""

        def prepare(t: Any, y: Vector, args: Any) -> Callable[[Any], Callable[[Vector], jax.Array]]:
            assert isinstance(problem, ModelProblem)
            factor = problem.factor(y)

            def at(shift: Any) -> Callable[[Vector], jax.Array]:
                return functools.partial(_gauss_newton, factor, shift, _smaller_gram(factor, shift))

            return at

        local_model = Plain(prepare if self.gauss_newton else None)
        return self.make(rtol, atol, local_model), PredictiveController(rtol, atol)

    def counts(self, problem: Flow, steps: int, state: Any) -> dict[str, int]:
        """Of the accepted steps."""
        work = state.work if hasattr(state, "work") else state
        found = {"fields": work.vector_fields, "products": work.products, "preconditions": work.preconditions}
        return {name: int(count) for name, count in (found | {"explicit_steps": work.explicit_steps}).items()}


def switching(rtol: Any, atol: Any, local_model: Plain) -> Switching:
    """What `sf.gradient_flow` takes for deep linear networks, too."""
    return Switching(Rosenbrock(rtol=rtol, atol=atol, local_model=local_model))


class PreconditionedCVODE(CVODE):
    """CVODE with the Gauss-Newton preconditioner, from a J that is formed as rarely as CVODE wants."""

    name = "CVODE, Gauss-Newton"

    def prepare(self, problem: Flow) -> float:
        """The preconditioner too."""
        begin, y = time.perf_counter(), problem.start
        factor = self._factor(problem, y)
        jax.block_until_ready(_solve(factor, 1.0, _prepare(factor, 1.0), y))
        return time.perf_counter() - begin + super().prepare(problem)

    def options(self, host: Host) -> dict[str, Any]:
        """The preconditioner."""
        kept: dict[str, Any] = {}

        def setup(t, y, yp, reusable, renewed, gamma):
            if not reusable:
                kept["factor"] = self._factor(host.problem, np.array(y))
            renewed[0] = 0 if reusable else 1
            kept["cholesky"] = _prepare(kept["factor"], gamma)

        def solve(t, y, yp, rhs, out, gamma, delta, side):
            host.preconditions += 1
            # A copy: a compiled function may keep its argument, and the solver overwrites this memory.
            np.copyto(out, _solve(kept["factor"], gamma, kept["cholesky"], np.array(rhs)))

        return {"precond": sksundae.cvode.CVODEPrecond(setup, solve)}

    def _factor(self, problem: Flow, y: np.ndarray) -> jax.Array:
        assert isinstance(problem, ModelProblem)
        return problem.factor(y)


_prepare, _solve = jax.jit(_smaller_gram), jax.jit(_gauss_newton)


class SGD(Peer[ModelProblem]):
    """Full-batch `optax.sgd`, at the flow's times: Euler's method, its step a fraction of the largest stable one.

    A tolerance stands for that fraction. The largest stable step is four over the sharpness at the start, halved
    until the loss falls from each time to the next. Steps between two times are shortened to end on the second.
    """

    name = "optax SGD"
    tolerances = (1.0, 1 / 4, 1 / 16, 1 / 64)

    def prepare(self, problem: ModelProblem) -> float:
        """The steps compiled, the largest stable step found."""
        begin = time.perf_counter()
        _stable(problem)
        return time.perf_counter() - begin

    def run(self, problem: ModelProblem, rtol: float) -> Result:
        """All steps between two times in one compiled loop."""
        length, seconds = _stable(problem)
        if seconds / rtol > MAX_SECONDS:
            return Result(
                np.full((len(problem.times), *problem.shape), np.nan), "max_seconds", seconds / rtol, fields=0
            )
        return _descend(problem, length * rtol)


@functools.cache
def _steps(problem: ModelProblem) -> Callable[..., Any]:
    """Compiled: so many steps of a length, from some parameters on."""
    rest = eqx.filter(problem.model, eqx.is_inexact_array, inverse=True)

    def loss(trained):
        return problem.loss(eqx.combine(trained, rest))

    @jax.jit
    def steps(trained, length, count):
        optimiser = optax.sgd(length)

        def step(_, carry):
            trained, state = carry
            updates, state = optimiser.update(jax.grad(loss)(trained), state, trained)
            return optax.apply_updates(trained, updates), state

        return jax.lax.fori_loop(0, count, step, (trained, optimiser.init(trained)))[0]

    return steps


def _descend(problem: ModelProblem, length: float) -> Result:
    steps, outputs = _steps(problem), problem.outputs
    counts = np.ceil(np.diff(problem.times, prepend=0.0) / length).astype(int)
    values = np.full((len(problem.times), *problem.shape), np.nan)
    trained, before = eqx.filter(problem.model, eqx.is_inexact_array), 0.0
    begin = time.perf_counter()
    for i, (t, count) in enumerate(zip(problem.times, counts, strict=True)):
        trained, before = steps(trained, (t - before) / count, int(count)), float(t)
        values[i] = outputs(ravel_pytree(trained)[0])
    total = int(counts.sum())
    return Result(values, "t1", time.perf_counter() - begin, fields=total, steps=total, rejected=0)


@functools.cache
def _stable(problem: ModelProblem) -> tuple[float, float]:
    """The largest stable step, and the seconds of a run with it."""
    vector = np.random.default_rng(0).standard_normal(problem.size)
    for _ in range(50):
        vector = np.asarray(problem.product_at(problem.start, vector / np.linalg.norm(vector)))
    length = 4 / float(np.linalg.norm(vector))
    while True:
        run = _descend(problem, length)
        losses = np.array([loss_of(values, problem.targets) for values in run.values])
        if np.all(np.diff(losses) <= 0):
            return length, run.seconds
        length /= 2
