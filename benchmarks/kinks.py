"""ReLU and softened ReLU: what the flow of a network costs, over epsilon, tolerance and solver.

A 5-10-1 network with biases (71 parameters) learns a ReLU teacher with noise from 100 samples, mean squared error.
Printed as a Markdown table: tries to step (accepted and rejected) and seconds without compilation to t = 100 and to
t = 10,000, or where a run ends after 20,000 tries; the distance of the outputs at t = 100 from those at
epsilon = 1e-5 (the largest of the samples); and of our own solver the largest `Grinding.share`, which fires at 0.3.

Run: python benchmarks/kinks.py [--seed 0], with OMP_NUM_THREADS=1 set.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import saddleflow as sf
from saddleflow.flow.grinding import Grinding
from saddleflow.solvers import PredictiveController, Rosenbrock, Switching
from saddleflow.solvers.controller import scaled_size

ENDS, MAX_STEPS = (100.0, 1e4), 20_000
RTOLS = (1e-4, 1e-6)
FINEST = 1e-5


def soft(epsilon: float) -> tuple[str, Callable[[Any], Any]]:
    """Name and activation."""
    return f"epsilon = {epsilon:.0e}", partial(sf.activations.relu, epsilon=epsilon)


KINKED = "ReLU", jax.nn.relu
CASES = [
    (("tanh", jnp.tanh), "saddleflow"),
    *((soft(epsilon), "saddleflow") for epsilon in (1e-1, 1e-2, 1e-3, 1e-4)),
    *((soft(1e-2), method) for method in ("Tsit5", "Dopri8")),
    *((KINKED, method) for method in ("saddleflow", "Tsit5", "Dopri8")),
]


def task(seed: int) -> tuple[Any, Any, Any]:
    """Inputs, targets and a start."""
    keys = jax.random.split(jax.random.key(seed), 5)
    inputs, teacher = jax.random.normal(keys[0], (100, 5)), jax.random.normal(keys[1], (4, 5))
    targets = jax.nn.relu(inputs @ teacher.T) @ jnp.array([0.5, -0.5, 0.5, -0.5])
    start = (
        jax.random.normal(keys[3], (10, 5)) / 5**0.5,
        jnp.zeros(10),
        jax.random.normal(keys[4], (10,)) / 10**0.5,
        jnp.zeros(()),
    )
    return inputs, targets + 0.1 * jax.random.normal(keys[2], (100,)), start


def outputs(activation: Callable[[Any], Any], network: Any, inputs: Any) -> Any:
    """Of all samples."""
    first, bias, last, shift = network
    return activation(inputs @ first.T + bias) @ last + shift


def field(activation: Callable[[Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """The gradient flow's vector field."""

    def cost(network, data):
        return jnp.mean((outputs(activation, network, data[0]) - data[1]) ** 2)

    return lambda t, network, data: jax.tree.map(jnp.negative, jax.grad(cost)(network, data))


class Watched(PredictiveController):
    """Our controller with a `Grinding` that follows it: its largest share, and the try at which it fires."""

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """As diffrax's controllers have it."""
        first, state = super().init(terms, t0, t1, y0, dt0, args, func, error_order)
        return first, (state, Grinding.start(), jnp.zeros(()), jnp.zeros((), int), jnp.zeros((), int))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        """As diffrax's controllers have it."""
        state, grinding, largest, tries, fired = controller_state
        keep, *times, jump, state, result = super().adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state
        )
        error = scaled_size(y0, y1_candidate, y_error, self.rtol, self.atol)
        grinding = grinding.follow(t1 - t0, keep, error, error_order)
        tries = tries + 1
        fired = jnp.where((fired == 0) & grinding.grinds, tries, fired)
        watched = state, grinding, jnp.maximum(largest, grinding.share), tries, fired
        return keep, *times, jump, watched, result


def numerics(method: str, rtol: float, start: Any) -> tuple[Any, Any]:
    """Solver and controller."""
    atol = 0.2 * rtol * float(jnp.sqrt(jnp.mean(ravel_pytree(start)[0] ** 2)))
    if method == "saddleflow":
        return Switching(Rosenbrock(rtol=rtol, atol=atol)), Watched(rtol=rtol, atol=atol)
    return getattr(diffrax, method)(), diffrax.PIDController(rtol=rtol, atol=atol, pcoeff=0.4, icoeff=0.3)


def solver_of(
    activation: Callable[[Any], Any], rtol: float, method: str, data: Any, start: Any
) -> Callable[..., Any]:
    """A function of the end: solution and seconds without compilation."""
    solver, controller = numerics(method, rtol, start)
    term = diffrax.ODETerm(field(activation))

    @jax.jit
    def run(end):
        return diffrax.diffeqsolve(
            term,
            solver,
            0.0,
            end,
            1e-4,
            start,
            data,
            stepsize_controller=controller,
            max_steps=MAX_STEPS,
            throw=False,
            saveat=diffrax.SaveAt(t1=True, controller_state=True),
        )

    def timed(end):
        jax.block_until_ready(run(end).ys)
        begin = time.perf_counter()
        solution = run(end)
        jax.block_until_ready(solution.ys)
        return solution, time.perf_counter() - begin

    return timed


def row(
    name: str, activation: Callable[[Any], Any], rtol: float, method: str, data: Any, start: Any, best: Any
) -> str:
    """A line of the table."""
    solve = solver_of(activation, rtol, method, data, start)
    cells, share, distance = [], "", ""
    for end in ENDS:
        solution, seconds = solve(end)
        reached, tries = float(solution.ts[-1]), int(solution.stats["num_steps"])
        if reached < end:
            cells += [f"t = {reached:.3g}", f"{seconds:.2f}"]
        else:
            cells += [f"{tries:,}", f"{seconds:.2f}"]
        if end == ENDS[0] and reached == end and name != "tanh":
            last = jax.tree.map(lambda x: x[-1], solution.ys)
            distance = f"{np.max(np.abs(outputs(activation, last, data[0]) - best)):.1e}"
        if method == "saddleflow":
            _, _, largest, _, fired = solution.controller_state
            share = f"{float(largest):.2f}" + (f" (fires at try {int(fired)})" if int(fired) else "")
    return "| " + " | ".join([name, f"{rtol:.0e}", method, *cells, distance, share]) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    inputs, targets, start = task(parser.parse_args().seed)
    data = inputs, targets
    _, finest = soft(FINEST)
    solution, _ = solver_of(finest, 1e-6, "saddleflow", data, start)(ENDS[0])
    best = outputs(finest, jax.tree.map(lambda x: x[-1], solution.ys), inputs)
    print(
        "| activation | rtol | solver | to t = 100 | s | to t = 10,000 | s | distance | share |\n" + 9 * "|---" + "|"
    )
    for rtol in RTOLS:
        for (name, activation), method in CASES:
            print(row(name, activation, rtol, method, data, start, best), flush=True)


if __name__ == "__main__":
    main()
