"""A small stored sweep, run as a process of its own by the fault tests: python sweeping.py STORE."""

import sys

import diffrax
import jax

import saddleflow as sf

GRID = {"depth": 2, "width": 4, "gamma": [1.0, 1.5], "seed": list(range(6)), "chunk_size": 2, "max_saves": 8}


def sweep(store=None, **further):
    cost = sf.MatrixCompletion.random(jax.random.key(1), shape=(3, 3), rank=2, observed=0.75)
    return sf.sweep(cost, **(GRID | {"solver": diffrax.Tsit5()} | further), store=store)


if __name__ == "__main__":
    print("begin", flush=True)
    sweep(sys.argv[1])
    print("end", flush=True)
