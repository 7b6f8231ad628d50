"""Several processes on one store, at the same moment: each finds it whole, whoever was first."""

import multiprocessing
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from test_store import assert_identical, process  # noqa: E402

CHUNKS = 3


def arrays(number):
    return {"cost": np.arange(20.0) + number, "reason": np.full(20, number)}


def as_made(path):
    from saddleflow.sweeps.store import Store

    return Store(path, {"dims": ["lane"]}, {"saddleflow": "1"})


def open_together(folder, rounds, barrier, errors):
    """In each round open a new store at the same moment as the others, fill, finish and read it."""

    whole = xr.Dataset(
        {name: ("lane", np.concatenate([arrays(n)[name] for n in range(CHUNKS)])) for name in arrays(0)}
    )
    for number in range(rounds):
        try:
            barrier.wait(timeout=60)
            store = as_made(f"{folder}/{number}.zarr")
            for chunk in range(CHUNKS):
                found = store.read(chunk) if store.has(chunk) else None
                if found is None:
                    store.write(chunk, arrays(chunk))
                else:
                    assert (found["cost"] == arrays(chunk)["cost"]).all()
            if not store.complete:
                store.finish(whole)
            xr.testing.assert_identical(store.load(), whole)
        except Exception as error:
            errors.put(f"round {number}: {type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("processes", "rounds"),
    [(2, 6), pytest.param(2, 200, marks=pytest.mark.slow), pytest.param(4, 50, marks=pytest.mark.slow)],
)
def test_processes_open_fill_and_finish_one_store_at_once(tmp_path, processes, rounds):
    context = multiprocessing.get_context("spawn")
    barrier, errors = context.Barrier(processes), context.SimpleQueue()
    members = [
        context.Process(target=open_together, args=(tmp_path, rounds, barrier, errors)) for _ in range(processes)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(timeout=300)
    assert errors.empty(), errors.get()
    assert [member.exitcode for member in members] == [0] * processes
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{n}.zarr" for n in range(rounds))
    for path in tmp_path.iterdir():
        as_made(path).load()  # which removes chunks that one process made as another removed them
        assert sorted(p.name for p in path.iterdir()) == ["cost", "reason", "zarr.json"]


@pytest.mark.slow
def test_forty_kills_of_two_sweeps_on_one_store(tmp_path):
    """Twenty times two sweeps begin at once on one store, and each is killed at a moment of its own."""
    cache, store, moments = tmp_path / "cache", tmp_path / "sweep.zarr", random.Random(1)
    whole = process(tmp_path / "whole.zarr", cache)
    assert whole.communicate()[0].split() == ["begin", "end"]
    killed = 0
    for number in range(20):
        if number % 5 == 4:  # on with a new one
            finish(store, cache)
            assert_whole(store, tmp_path / "whole.zarr")
            store = tmp_path / f"sweep{number}.zarr"
        runs = [process(store, cache) for _ in range(2)]
        for run in runs:
            assert run.stdout is not None
            assert run.stdout.readline() == "begin\n"
        for run in runs:
            try:
                run.communicate(timeout=moments.uniform(0.0, 4.0))
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                run.communicate()
            assert run.returncode in (0, -signal.SIGKILL)
            killed += run.returncode == -signal.SIGKILL
    finish(store, cache)
    assert_whole(store, tmp_path / "whole.zarr")
    assert killed >= 20
    print(f"{killed} kills")


def finish(store, cache):
    printed, error = process(store, cache).communicate()
    assert printed.split() == ["begin", "end"], error


def assert_whole(store, undisturbed):
    with (
        xr.open_zarr(store, consolidated=False, chunks=None) as found,
        xr.open_zarr(undisturbed, consolidated=False, chunks=None) as expected,
    ):
        assert_identical(found.load(), expected.load())
    assert not (store / "chunks").exists()
