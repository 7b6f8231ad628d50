"""Files that may be anything, and disks that may be full: clear errors, whole files, and nothing executed."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import saddleflow as sf
from saddleflow._backend import files
from saddleflow.sweeps.store import Store

PROJECT = Path(__file__).parents[1]
LABEL = ({"dims": ["lane"]}, {"saddleflow": "1"})


@pytest.fixture
def fuzz_files(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    import fuzz_files

    return fuzz_files


@pytest.fixture
def run(fuzz_files):
    """A trajectory of unequal widths."""
    return fuzz_files.trajectory()


def test_fifty_files(tmp_path, fuzz_files, capsys):
    """As `python benchmarks/fuzz_files.py` reads 2,000."""
    outcomes = {path: fuzz_files.read(path) for path in fuzz_files.files(tmp_path, 50, seed=1)}
    for path, found in outcomes.items():
        assert set(found.values()) <= {"read", "refused"}, path.name
    assert outcomes[tmp_path / "originals" / "run.nc"]["load"] == "read"
    assert outcomes[tmp_path / "originals" / "path.nc"]["load_path"] == "read"
    assert outcomes[tmp_path / "originals" / "matrix.npy"]["read_matrix"] == "read"
    assert outcomes[tmp_path / "originals" / "sweep.zarr"]["store"] == "read"


def test_a_loaded_trajectory_prints_the_same_card(tmp_path, run):
    again = sf.load(run.save(tmp_path / "run.nc"))
    assert again.configuration == run.configuration
    assert again.configuration["width"] == (5, 6)
    assert repr(again) == repr(run).partition("\n  residual")[0]
    assert repr(sf.load(tmp_path / "run.nc", run.cost)) == repr(run)


def test_a_record_that_lacks_something_is_refused(tmp_path, run):
    run.save(tmp_path / "run.nc")
    for attribute, content in (("configuration", {"depth": 3}), ("stats", {}), ("configuration", 5)):
        with h5py.File(tmp_path / "run.nc", "r+") as file:
            file.attrs[attribute] = json.dumps(content)
        with pytest.raises(ValueError, match=r"`path` must record .*run\.nc"):
            sf.load(tmp_path / "run.nc")


def test_numbers_beyond_memory_are_refused_before_any_is_taken(tmp_path):
    with h5py.File(tmp_path / "bomb.nc", "w") as file:
        file.create_dataset("end_to_end", (10**7, 10**6), "f8", chunks=(1, 1000), fillvalue=1.0)
    with pytest.raises(ValueError, match=r"fits the memory.*8e\+04 GB declared in .*bomb.nc"):
        sf.load(tmp_path / "bomb.nc")
    (tmp_path / "m.npy").write_bytes(np.lib.format.MAGIC_PREFIX + b"\x01\x00")
    with pytest.raises(ValueError, match=r"m\.npy"):
        sf.read_matrix(tmp_path / "m.npy")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(ValueError, match="be a file"):
        sf.read_matrix(tmp_path / "m.csv")
    with pytest.raises(ValueError, match="`path` must be a file"):
        files.check_writable(tmp_path / "m.csv", force=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("there/run.nc", "must be a path|lie in an existing folder"),
        ("folder", "be a file"),
        ("none/run.nc", "lie in an existing folder"),
        ("n" * 300, "be a path that a file can have.*too long"),
        ("run\0.nc", "the name of a file or a folder"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path, run, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ValueError, match=f"`path` must .*({message})"):
        run.save(tmp_path / name, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "there"]


def test_a_folder_that_may_not_be_written_to(tmp_path, run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match="lie in a folder you may write to"):
        run.save(tmp_path / "run.nc")
    with pytest.raises(ValueError, match="`store` must lie in a folder you may write to"):
        Store(tmp_path / "sweep.zarr", *LABEL)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def full_disk():
    """A function that lets files grow to so many bytes only, as on a disk that becomes full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("size", [16, 2_000, 9_000, 100_000])
def test_a_full_disk_leaves_what_was_there(tmp_path, run, full_disk, size):
    """HDF5 itself crashes the process there, so that room is made first."""
    path = tmp_path / "run.nc"
    path.write_text("the one before")
    full_disk(size)
    with pytest.raises(OSError, match=r"'.*run.nc' could not be written, and is as it was before: File too large"):
        run.save(path, force=True)
    full_disk(resource.RLIM_INFINITY)
    assert path.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_vanishes(tmp_path, run, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    write = xr.Dataset.to_netcdf

    def write_and_lose(self, path, **how):
        write(self, path, **how)
        path.unlink()
        folder.rmdir()

    monkeypatch.setattr(xr.Dataset, "to_netcdf", write_and_lose)
    with pytest.raises(OSError, match="could not be written, and is as it was before"):
        run.save(folder / "run.nc")
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "zarr of another", "broken zarr of another"])
def test_a_store_does_not_touch_what_it_did_not_make(tmp_path, kind):
    path = tmp_path / "mydata"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
    if kind == "folder":
        (path / "thesis.tex").write_text("mine")
    if kind.endswith("of another"):
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"' + "}" * (kind[0] == "z"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="`store` must be new or the store of a sweep") as raised:
        Store(path, *LABEL)
    for word in ("damaged", "remove", "delete", "move"):
        assert word not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_store_of_ours_is_called_so(tmp_path):
    store = Store(tmp_path / "sweep.zarr", *LABEL)
    store.write(0, {"cost": np.zeros(3)})
    (data,) = (path for path in store.path.rglob("c/*") if path.is_file())
    data.unlink()  # zarr would say zeros
    with pytest.raises(ValueError, match=r"damaged: chunk 0 cannot be read .*move '.*000000' elsewhere"):
        store.read(0)
    record = store.path / "zarr.json"
    record.write_text(record.read_text()[:-20])
    with pytest.raises(ValueError, match=r"damaged: its record cannot be read .*move '.*sweep.zarr' elsewhere"):
        Store(store.path, *LABEL)


def test_a_vanished_array_of_a_finished_store_is_no_zeros(tmp_path):
    store = Store(tmp_path / "sweep.zarr", *LABEL)
    store.write(0, {"cost": np.ones(3)})
    store.finish(xr.Dataset({"cost": ("lane", np.ones(3)), "zeros": ("lane", np.zeros(3))}))
    np.testing.assert_array_equal(store.load().cost, np.ones(3))
    (store.path / "cost" / "c" / "0").unlink()
    with pytest.raises(ValueError, match="damaged: the dataset cannot be read"):
        store.load()
    shutil.rmtree(store.path / "cost")
    with pytest.raises(ValueError, match="damaged: the dataset cannot be read"):
        store.load()


class Killed(BaseException):
    """As by kill -9: nothing is tidied up after it."""


def fill(path):
    store = Store(path, *LABEL)
    if not store.complete:
        for number in range(2):
            if store.has(number):
                np.testing.assert_array_equal(store.read(number)["cost"], np.full(3, number + 1.0))
            else:
                store.write(number, {"cost": np.full(3, number + 1.0)})
        store.finish(xr.Dataset({"a": ("lane", np.ones(3)), "b": ("lane", np.zeros(3))}))
    return store.load()


@pytest.mark.parametrize("moment", range(1, 7))
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_beside_any_renaming_loses_nothing(tmp_path, monkeypatch, moment, after):
    replace, count = os.replace, 0

    def deadly(source, target):
        nonlocal count
        ours = Path(source).parent.is_relative_to(tmp_path) and ".partial" not in str(source)
        count += ours
        if ours and count == moment and not after:
            raise Killed
        replace(source, target)
        if ours and count == moment:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", deadly)
        patch.setattr(shutil, "rmtree", lambda *_, **how: None)
        with pytest.raises(Killed):
            fill(tmp_path / "sweep.zarr")
    data = fill(tmp_path / "sweep.zarr")
    np.testing.assert_array_equal(data.a, np.ones(3))
    np.testing.assert_array_equal(data.b, np.zeros(3))
    assert sorted(entry.name for entry in (tmp_path / "sweep.zarr").iterdir()) == ["a", "b", "zarr.json"]
