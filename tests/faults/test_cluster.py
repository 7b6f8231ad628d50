import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from saddleflow.sweeps import cluster

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from sweeping import DEEP, sweep, sweep_models  # noqa: E402


@pytest.fixture(scope="module")
def undisturbed():
    return sweep()


def start(out, *mode):
    command = [sys.executable, str(HERE / "sweeping.py"), str(out), *map(str, mode)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        if a[name].dtype.kind in "USTO":
            assert (a[name].values == b[name].values).all()
        else:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-12, atol=0, err_msg=name)


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_devices_do_not_matter(tmp_path, undisturbed, devices):
    out = tmp_path / "data.nc"
    printed, error = start(out, "devices", devices).communicate()
    assert printed.split() == ["begin", "end"], error
    with xr.open_dataset(out, engine="h5netcdf") as data:
        assert_same(undisturbed, data)


@pytest.mark.slow  # networks have the same machinery
def test_devices_do_not_matter_to_models(tmp_path):
    out = tmp_path / "data.nc"
    printed, error = start(out, "devices", 2, "models").communicate()
    assert printed.split() == ["begin", "end"], error
    with xr.open_dataset(out, engine="h5netcdf") as data:
        assert_same(sweep_models(), data)


@pytest.mark.slow
def test_devices_do_not_matter_to_the_default_solver(tmp_path):
    out = tmp_path / "data.nc"
    printed, error = start(out, "devices", 8, "deep").communicate()
    assert printed.split() == ["begin", "end"], error
    with xr.open_dataset(out, engine="h5netcdf") as data:
        assert_same(sweep(**DEEP), data)


@pytest.mark.slow
def test_two_processes_divide_the_lanes(tmp_path, undisturbed):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"data{i}.nc" for i in range(2)]
    runs = [start(out, "process", i, port) for i, out in enumerate(outs)]
    for run in runs:
        printed, error = run.communicate(timeout=300)
        lines = printed.splitlines()  # those between are Gloo's
        assert (lines[0], lines[-1]) == ("begin", "end"), error
    for out in outs:
        with xr.open_dataset(out, engine="h5netcdf") as data:
            assert_same(undisturbed, data)


@pytest.mark.slow
def test_two_processes_of_jax_fill_one_store(tmp_path, undisturbed):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    store = tmp_path / "sweep.zarr"
    for run in [start(store, "process", i, port) for i in range(2)]:
        printed, error = run.communicate(timeout=300)
        lines = printed.splitlines()  # those between are Gloo's
        assert (lines[0], lines[-1]) == ("begin", "end"), error
    assert_same(undisturbed, sweep(store))


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    local = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with local, distributed.Client(local) as client:
        yield client


@pytest.mark.filterwarnings("ignore")
def test_a_dask_client_and_a_worker_killed_on_the_way(undisturbed, client, monkeypatch):
    """The first chunk to come back costs one of the two workers its life."""
    pids = client.run(os.getpid)
    killed = []
    run_on_client = cluster.run_on_client

    def with_a_murder(*arguments, **options):
        for item in run_on_client(*arguments, **options):
            if not killed:
                killed.append(next(iter(pids.values())))
                os.kill(killed[0], signal.SIGKILL)
            yield item

    monkeypatch.setattr(cluster, "run_on_client", with_a_murder)
    assert_same(undisturbed, sweep(client=client))
    assert killed
    assert set(client.run(os.getpid).values()) != set(pids.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_dask_client_and_a_process_fill_one_store(tmp_path, undisturbed, client):
    """At the same time, five times anew."""
    for number in range(5):
        store = tmp_path / f"{number}.zarr"
        beside = start(store)
        assert beside.stdout is not None
        assert beside.stdout.readline() == "begin\n"
        assert_same(undisturbed, sweep(store, client=client))
        printed, error = beside.communicate(timeout=300)
        assert printed == "end\n", error
        assert_same(undisturbed, sweep(store))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_models_on_a_dask_client(client):
    assert_same(sweep_models(), sweep_models(client=client))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_killed_early(undisturbed, client):
    pids = list(client.run(os.getpid).values())

    def kill():
        time.sleep(3)
        os.kill(pids[0], signal.SIGKILL)

    threading.Thread(target=kill).start()
    assert_same(undisturbed, sweep(client=client))


@pytest.mark.filterwarnings("ignore")
def test_a_failing_chunk_shows(client):
    with pytest.raises(RuntimeError, match=r"chunks 0, 1 failed on the cluster: .*broken"):
        sweep(client=client, observables={"broken": _broken}, gamma=1.0, seed=[0, 1, 2, 3])


def _broken(cost, network):
    raise ValueError("broken on purpose")
