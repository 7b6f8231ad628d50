"""Ten seeds under `jax.vmap`, beside ten lone runs of the same compiled flow: seconds, and how the lanes differ.

    python benchmarks/batch.py [--seeds 10]

Matrix completion, 10 x 10 of rank 3, 80 % observed; L = 4, alpha = .1; rtol 1e-4. Compilation apart,
medians of three in turns.
"""

import argparse
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import saddleflow as sf
from saddleflow.flow import solve as flow
from saddleflow.flow.arguments import prepare

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
        # error weights and tolerances are each start's own
        settings, methods = zip(*(prepare(cost, network, rtol=RTOL) for network in starts), strict=True)
        numbers = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *settings)
        lone = eqx.filter_jit(lambda n, s, method=methods[0]: flow.integrate(cost, n, s, method))
        lanes = eqx.filter_jit(eqx.filter_vmap(lambda n, s, method=methods[0]: flow.integrate(cost, n, s, method)))
        pairs = list(zip(starts, settings, strict=True))

        def turn(lone=lone, pairs=pairs, lanes=lanes, batch=batch, numbers=numbers):
            begin = time.perf_counter()
            ends = [jax.block_until_ready(lone(n, s)) for n, s in pairs]
            middle = time.perf_counter()
            together = jax.block_until_ready(lanes(batch, numbers))
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
        steps = [int(end.num_accepted + end.num_rejected) for end in ends]
        cells = f"{min(steps)} to {max(steps)}", f"{one:.2f}", f"{all_lanes:.2f}", f"{all_lanes / one:.1f}"
        table.add_row(str(width), *cells, f"{apart / RTOL:.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
