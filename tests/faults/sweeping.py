"""A small sweep as a process of its own, for the tests.

python sweeping.py OUT [devices N [deep|models] | process I PORT | models]: OUT is a store (.zarr), or a NetCDF file
for the dataset; "deep" sweeps with the default solver, "models" models.
"""

import sys

import diffrax
import jax

GRID = {"depth": 2, "width": 4, "gamma": [1.0, 1.5], "seed": list(range(6)), "chunk_size": 2, "max_saves": 8}
DEEP = {"depth": 3, "solver": None}


def sweep(store=None, **further):
    import saddleflow as sf  # after JAX has been told of its devices and processes

    cost = sf.MatrixCompletion.random(jax.random.key(1), shape=(3, 3), rank=2, observed=0.75)
    return sf.sweep(cost, **(GRID | {"solver": diffrax.Tsit5()} | further), store=store)


def make(key, scale):
    return scale * jax.random.normal(key, (2,), float)


def loss(pair):
    return (pair[0] * pair[1] - 1.0) ** 2


def sweep_models(store=None, **further):
    import saddleflow as sf

    grid = {"scale": [1.0, 0.1], "seed": list(range(4)), "chunk_size": 2, "max_saves": 8, "t1": 10.0}
    return sf.sweep(loss, init=make, **(grid | further), store=store)


def main(out, mode=None, number=0, last=None):
    further = {}
    if mode == "devices":
        jax.config.update("jax_num_cpu_devices", int(number))
        further = {"chunk_size": 12} | (DEEP if last == "deep" else {})
    elif mode == "process":
        jax.distributed.initialize(f"localhost:{last}", 2, int(number))
    run = sweep_models if "models" in (mode, last) else sweep
    print("begin", flush=True)
    if out.endswith(".zarr"):
        run(out, **further)
    else:
        run(**further).to_netcdf(out, engine="h5netcdf")
    print("end", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
