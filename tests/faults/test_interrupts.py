"""Ctrl-C at random moments: each command ends within two seconds, with one line, code 130 and whole files."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import xarray as xr

COMMANDS = {
    "flow": ["--shape", "12x12", "--width", "60", "--depth", "4", "--gamma", "2", "--rtol", "1e-9"],
    "sweep": ["gamma=0.75,1", "width=10,20", "seed=0:4", "--shape", "6x6", "--store", "sweep.zarr"],
    "figure": ["4", "width=50", "alphas=1,.3"],
    "verify": ["--json", "ledger.json"],
}

# `begin` is printed when the imports are done: until then Python itself ends the process, with a traceback.
CODE = "from saddleflow.cli import main; print('begin', flush=True); main()"


def begin(name, folder, cache):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    run = subprocess.Popen(
        [sys.executable, "-c", CODE, name, *COMMANDS[name], "--progress", "off"],
        cwd=folder,
        env=environment | {"SADDLEFLOW_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "begin\n"
    return run


def interrupt(run, after):
    """Interrupt a command after so many seconds: how long it then took to end (0: it had ended), and its errors."""
    try:
        _, error = run.communicate(timeout=after)
        return 0.0, error
    except subprocess.TimeoutExpired:
        pass
    run.send_signal(signal.SIGINT)
    sent = time.perf_counter()
    try:
        _, error = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            run.kill()
            run.communicate()
    return time.perf_counter() - sent, error


def check_ends(name, folder, cache, after):
    run = begin(name, folder, cache)
    seconds, error = interrupt(run, after)
    if seconds == 0:  # faster than foreseen
        assert run.returncode == 0, error
    else:
        assert run.returncode == 130, error
        assert error == "saddleflow: interrupted\n"
        assert seconds < 2
    assert not [path for path in folder.rglob(".*") if path.is_file() and path.suffix in (".nc", ".png", ".json")]
    assert not list(folder.glob("core*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_end_at_once(tmp_path, name, seed):
    """Compiling first, with an empty cache, then on their way."""
    moments = random.Random(f"{name} {seed}")
    for number, latest in enumerate((6.0, 12.0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        check_ends(name, folder, tmp_path / "cache", moments.uniform(0.0, latest))


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(tmp_path):
    moments, cache = random.Random(0), tmp_path / "cache"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    run = begin("sweep", whole, cache)
    assert interrupt(run, 600)[0] == 0
    for _ in range(4):
        if not (cut / "sweep.nc").exists():
            check_ends("sweep", cut, cache, moments.uniform(1.0, 6.0))
    if not (cut / "sweep.nc").exists():
        run = begin("sweep", cut, cache)
        assert interrupt(run, 600)[0] == 0
    with (
        xr.open_dataset(whole / "sweep.nc", engine="h5netcdf") as expected,
        xr.open_dataset(cut / "sweep.nc", engine="h5netcdf") as found,
    ):
        xr.testing.assert_identical(expected.drop_attrs(), found.drop_attrs())


def test_a_command_that_compiles_ends_at_once(tmp_path):
    """The one of these tests that runs each time."""
    check_ends("flow", tmp_path, tmp_path / "cache", 4.0)
