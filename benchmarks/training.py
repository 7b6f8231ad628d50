"""Steps of gradient descent: `sf.gradient_descent` beside a bare jitted `jax.lax.scan` of the same update.

Matrix completion 10x10 (rank 3, 80 of 100 entries observed), depth 4, width 100, plain gradient descent and Adam, all
samples and mini-batches of 20. The scan does the update and nothing else: no rows, no meter, no look at the loss; its
batches are drawn before it begins. `gradient_descent` keeps 1000 rows. Turn by turn, the least of `--repeats`
runs, compilation apart: CPU seconds, as other work on the machine does not change them much. Printed as a Markdown
table.

Run: python benchmarks/training.py [--steps 1000000] [--repeats 3] [--only plain], with OMP_NUM_THREADS=1 set.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import saddleflow as sf

RATE, BATCH, ROWS = 1e-3, 20, 1000
COST = sf.MatrixCompletion.random(jax.random.key(0), shape=(10, 10), rank=3, observed=0.8)
START = sf.gaussian(jax.random.key(1), depth=4, width=100, shape=(10, 10), gamma=1.0)
OPTIMIZERS = {"plain": optax.sgd(RATE), "Adam": optax.adam(RATE)}


def scan(optimizer: optax.GradientTransformation, num_steps: int, batch_size: int | None) -> Callable[[], Any]:
    """The bare loop, compiled: a function that runs it."""
    batches = None
    if batch_size is not None:
        batches = sf.training.batch_indices(jax.random.key(2), COST.num_observed, batch_size, num_steps)

    @jax.jit
    def run(cost: sf.MatrixCompletion, network: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            network, state = carry
            gradient: Any = sf.gradient(cost if batch is None else cost.batch(batch), network)
            updates, state = optimizer.update(gradient, state, network)
            return (jax.tree.map(jnp.add, network, updates), state), None

        return jax.lax.scan(step, (network, optimizer.init(network)), batches, num_steps)[0][0]

    program = run.lower(COST, START, batches).compile()
    return lambda: program(COST, START, batches)


def descent(optimizer: optax.GradientTransformation, num_steps: int, batch_size: int | None) -> Callable[[], Any]:
    """The same by `gradient_descent`, compiled: a function that runs it."""

    def run(num_steps: int) -> Any:
        return sf.gradient_descent(
            COST,
            START,
            optimizer,
            learning_rate=RATE,
            num_steps=num_steps,
            max_saves=ROWS,
            batch_size=batch_size,
            key=None if batch_size is None else jax.random.key(2),
            progress=False,
        ).network

    run(ROWS)
    return lambda: run(num_steps)


def in_turn(*loops: Callable[[], Any], repeats: int) -> list[tuple[float, Any]]:
    """Least CPU seconds of each loop, called turn by turn, and its network."""
    found: list[list[tuple[float, Any]]] = [[] for _ in loops]
    for _ in range(repeats):
        for loop, times in zip(loops, found, strict=True):
            begin = time.process_time()
            network = jax.block_until_ready(loop())
            times.append((time.process_time() - begin, network))
    return [min(times, key=lambda one: one[0]) for times in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=list(OPTIMIZERS))
    given = parser.parse_args()
    print(f"{given.steps} steps, least of {given.repeats} runs.\n")
    print("| optimiser | samples in a step | bare scan, CPU s | gradient_descent, CPU s | ratio | distance of A |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in [given.only] if given.only else OPTIMIZERS:
        for batch_size in (None, BATCH):
            loops = [make(OPTIMIZERS[name], given.steps, batch_size) for make in (scan, descent)]
            (bare, one), (ours, other) = in_turn(*loops, repeats=given.repeats)
            samples = "all 80" if batch_size is None else batch_size
            far = float(jnp.linalg.norm(one.end_to_end() - other.end_to_end()))
            print(f"| {name} | {samples} | {bare:.2f} | {ours:.2f} | {ours / bare:.2f} | {far:.0e} |", flush=True)


if __name__ == "__main__":
    main()
