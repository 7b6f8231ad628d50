"""Ten seeds under `jax.vmap`, beside ten lone runs of the same compiled flow: seconds, and how the lanes differ.

    python benchmarks/batch.py [--seeds 10]

Matrix completion, 10 x 10 of rank 3, 80 % observed; L = 4, alpha = .1; rtol 1e-4. Compilation apart,
medians of three in turns.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import saddleflow as sf

ALPHA, DEPTH, RTOL, REPEATS = 0.1, 4, 1e-4, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    keys = jax.random.split(jax.random.key(0), parser.parse_args().seeds)
    cost = sf.MatrixCompletion.random(jax.random.key(1))
    table = Table(
        "width", "steps of the lanes", "lone run (s)", "vmap (s)", "vmap / lone run", "largest |dA| / |A| / rtol"
    )
    for width in (20, 100):

        def draw(key, width=width):
            return ALPHA * sf.gaussian(key, depth=DEPTH, width=width, shape=(10, 10), variance=1 / width)

        starts = [draw(key) for key in keys]
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        lone = jax.jit(lambda network: sf.integrate(cost, network, rtol=RTOL, max_saves=1000))
        lanes = jax.jit(jax.vmap(lone))

        def turn(lone=lone, starts=starts, lanes=lanes, batch=batch):
            begin = time.perf_counter()
            ends = [jax.block_until_ready(lone(network)) for network in starts]
            middle = time.perf_counter()
            together = jax.block_until_ready(lanes(batch))
            return middle - begin, time.perf_counter() - middle, ends, together

        turn()  # compiles
        seconds = []
        for _ in range(REPEATS):
            apart, joined, ends, together = turn()
            seconds.append((apart / len(keys), joined))
        one, all_lanes = (statistics.median(column) for column in zip(*seconds, strict=True))
        products = [np.asarray(end.network.end_to_end()) for end in ends]
        others = np.asarray(jax.vmap(lambda n: n.end_to_end())(together.network))
        apart = max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(products, others, strict=True))
        steps = [int(end.num_steps) for end in ends]
        cells = f"{min(steps)} to {max(steps)}", f"{one:.2f}", f"{all_lanes:.2f}", f"{all_lanes / one:.1f}"
        table.add_row(str(width), *cells, f"{apart / RTOL:.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
