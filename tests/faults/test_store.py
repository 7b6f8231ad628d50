import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from sweeping import sweep, sweep_models  # noqa: E402


def process(store, cache, *mode):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(HERE / "sweeping.py"), str(store), *mode]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_identical(a, b):
    xr.testing.assert_identical(a.drop_attrs(), b.drop_attrs())


@pytest.fixture(scope="module")
def undisturbed():
    return sweep()


def kill_and_resume(tmp_path, moments, *mode):
    """Kill a sweep stored in sweep.zarr after each of these shares of its time: the exit codes."""
    store, cache = tmp_path / "sweep.zarr", tmp_path / "cache"
    begin = time.perf_counter()
    out, error = process(tmp_path / "whole.zarr", cache, *mode).communicate()
    assert out.split() == ["begin", "end"], error
    whole = time.perf_counter() - begin
    codes = []
    for share in moments:
        run = process(store, cache, *mode)
        assert run.stdout is not None
        assert run.stdout.readline() == "begin\n"
        time.sleep(share * whole)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        codes.append(run.returncode)
    return codes


def test_a_killed_sweep_resumes(tmp_path, undisturbed):
    codes = kill_and_resume(tmp_path, [0.3])
    assert codes == [-signal.SIGKILL]  # it was still at work
    assert_identical(sweep(tmp_path / "sweep.zarr"), undisturbed)


@pytest.mark.slow  # networks have the same machinery
def test_a_killed_sweep_of_models_resumes(tmp_path):
    codes = kill_and_resume(tmp_path, [0.3], "models")
    assert codes == [-signal.SIGKILL]
    assert_identical(sweep_models(tmp_path / "sweep.zarr"), sweep_models())


@pytest.mark.slow
def test_kill_9_at_twenty_moments(tmp_path, undisturbed):
    rng = random.Random(0)
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        codes = kill_and_resume(folder, [rng.random() * 0.5 for _ in range(5)])
        assert codes[0] == -signal.SIGKILL
        assert_identical(sweep(folder / "sweep.zarr"), undisturbed)


def test_a_finished_store_is_read_back_and_opens_in_xarray(tmp_path, undisturbed):
    store = tmp_path / "sweep.zarr"
    first = sweep(store)
    again = sweep(store)
    assert_identical(first, undisturbed)
    xr.testing.assert_identical(first, again)
    with xr.open_zarr(store, consolidated=False, chunks=None) as opened:
        np.testing.assert_array_equal(opened.train_cost, first.train_cost)
        assert opened.train_cost.attrs["units"] == "cost"
    assert not (store / "chunks").exists()
    (store / "chunks" / "000000").mkdir(parents=True)  # killed before the chunks were removed
    xr.testing.assert_identical(first, sweep(store))
    assert not (store / "chunks").exists()


def test_another_sweep_is_refused_and_the_difference_named(tmp_path, monkeypatch):
    store = tmp_path / "sweep.zarr"
    sweep(store, seed=[0], gamma=1.0)
    with pytest.raises(ValueError, match=r"another configuration \(rtol: stored \[0.0001\], now \[0.001\]\)"):
        sweep(store, seed=[0], gamma=1.0, rtol=1e-3)
    monkeypatch.setattr("saddleflow.sweeps.store.FORMAT", 3)
    with pytest.raises(ValueError, match="format: stored 2, now 3"):
        sweep(store, seed=[0], gamma=1.0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ValueError, match="`store`"):
        sweep(tmp_path / "other")
    assert (tmp_path / "other" / "file").read_text() == "mine"
    with pytest.raises(ValueError, match="existing folder"):
        sweep(tmp_path / "nowhere" / "sweep.zarr")


def test_a_damaged_chunk_is_named_and_only_it_is_computed_again(tmp_path, undisturbed, monkeypatch):
    store = tmp_path / "sweep.zarr"
    monkeypatch.setattr("saddleflow.sweeps.store.Store.finish", lambda self, data: None)
    sweep(store)
    chunk = store / "chunks" / "000003"
    times = {path: path.stat().st_mtime_ns for path in (store / "chunks").iterdir()}
    data = chunk / "train_cost" / "c" / "0" / "0"
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    data.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged: chunk 3 cannot be read.*move '.*000003' elsewhere"):
        sweep(store)
    for path in sorted(chunk.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    chunk.rmdir()
    assert_identical(sweep(store), undisturbed)
    assert all(path.stat().st_mtime_ns == at for path, at in times.items() if path != chunk)


def test_a_full_disk_is_a_clear_error_and_nothing_else_is_lost(tmp_path, undisturbed):
    """The kernel refuses files beyond a few bytes, as a full disk would."""
    store = tmp_path / "sweep.zarr"
    original = resource.getrlimit(resource.RLIMIT_FSIZE)
    sweep(tmp_path / "warm.zarr", seed=[0])  # compiled files of Python and the like are there now

    from saddleflow.sweeps.store import Store

    write = Store.write

    def write_on_full_disk(self, number, arrays):
        if number == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, original[1]))
        try:
            write(self, number, arrays)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, original)

    Store.write = write_on_full_disk
    try:
        with pytest.raises(OSError, match=r"chunk 2 could not be written to the store .*chunks before it are kept"):
            sweep(store)
    finally:
        Store.write = write
    assert sorted(path.name for path in (store / "chunks").iterdir()) == ["000000", "000001"]
    assert_identical(sweep(store), undisturbed)
