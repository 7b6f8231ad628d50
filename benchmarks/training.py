"""Steps of gradient descent: `sf.gradient_descent` beside a bare jitted `jax.lax.scan` of the same update.

Matrix completion 10x10 (rank 3, 80 of 100 entries observed), depth 4, width 100, plain gradient descent and Adam, all
samples and mini-batches of 20. The scan does the update and nothing else: no rows, no meter, no look at the loss; its
batches are drawn before it begins. `gradient_descent` keeps 1000 rows. Turn by turn, least seconds of `--repeats`
runs, compilation apart. Printed as a Markdown table.

Run: python benchmarks/training.py [--steps 1000000] [--repeats 3], with OMP_NUM_THREADS=1 set.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from timing import in_turn

import saddleflow as sf

RATE, BATCH = 1e-3, 20
COST = sf.MatrixCompletion.random(jax.random.key(0), shape=(10, 10), rank=3, observed=0.8)
START = sf.gaussian(jax.random.key(1), depth=4, width=100, shape=(10, 10), gamma=1.0)


def scan(optimizer: optax.GradientTransformation, num_steps: int, batch_size: int | None) -> Callable[[], Any]:
    """The bare loop: a function that runs it."""
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

    return lambda: run(COST, START, batches)


def descent(optimizer: optax.GradientTransformation, num_steps: int, batch_size: int | None) -> Callable[[], Any]:
    """The same by `gradient_descent`: a function that runs it."""

    def run() -> Any:
        return sf.gradient_descent(
            COST,
            START,
            optimizer,
            learning_rate=RATE,
            num_steps=num_steps,
            batch_size=batch_size,
            key=None if batch_size is None else jax.random.key(2),
            progress=False,
        ).network

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(f"{given.steps} steps, least of {given.repeats} runs.\n")
    print("| optimiser | samples in a step | bare scan, s | gradient_descent, s | ratio | distance of A |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, optimizer in (("plain", optax.sgd(RATE)), ("Adam", optax.adam(RATE))):
        for batch_size in (None, BATCH):
            loops = scan(optimizer, given.steps, batch_size), descent(optimizer, given.steps, batch_size)
            ends = [loop().end_to_end() for loop in loops]  # compiled, too
            bare, ours = in_turn(*loops, repeats=given.repeats)
            samples = "all 80" if batch_size is None else batch_size
            far = float(jnp.linalg.norm(ends[0] - ends[1]))
            print(f"| {name} | {samples} | {bare:.2f} | {ours:.2f} | {ours / bare:.2f} | {far:.0e} |")


if __name__ == "__main__":
    main()
