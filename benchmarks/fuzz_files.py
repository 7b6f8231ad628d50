"""Feed files that may be anything to all that reads files: nothing but clear errors may come of it.

python benchmarks/fuzz_files.py [--files 2000] [--seed 0]

Files are those that the library or others write (csv, npy, parquet, NetCDF, a store), then cut, overwritten, doubled,
renamed to another ending or replaced by random bytes, and some written to harm: pickles, numbers beyond all memory.
Each is read in a process that may crash. Allowed is a result, or a ValueError or an OSError that names the file.
"""

import argparse
import collections
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Where a crash would cost the results of the files before it.
BATCH = 100


def originals(folder: Path) -> dict[str, Path]:
    """Files that are what they say, made in a folder: by name."""
    import pandas as pd

    from saddleflow.greedy.paths import GreedyPath, Saddle
    from saddleflow.sweeps.store import Store

    run = trajectory()
    run.save(folder / "run.nc")
    origin = Saddle(0, 1.0, 2.0, run.network, 0.0, np.ones(3), 1.0, 1)
    GreedyPath((run,), (origin,), None, "max_stages").save(folder / "path.nc")
    matrix = np.random.default_rng(0).normal(size=(12, 5)).round(3)
    np.save(folder / "matrix.npy", matrix)
    table = pd.DataFrame(matrix, columns=list("abcde"))
    table.to_csv(folder / "matrix.csv", index=False, header=False)
    lines = pd.DataFrame({"user": range(12), "item": range(12), "rating": matrix[:, 0]})
    lines.to_csv(folder / "lines.csv", index=False)
    table.to_parquet(folder / "matrix.parquet")
    store = Store(folder / "sweep.zarr", {"dims": ["lane"]}, {"saddleflow": "1"})
    store.write(0, {"cost": np.arange(10.0)})
    return {path.name: path for path in folder.iterdir()}


def trajectory() -> Any:
    """A trajectory of unequal widths, put together from rows: no solver needs compiling."""
    import jax

    import saddleflow as sf
    from saddleflow.flow.trajectory import assemble

    cost = sf.MatrixCompletion.random(jax.random.key(1), shape=(3, 4), rank=2, observed=0.75)
    network = sf.gaussian(jax.random.key(2), depth=3, width=(5, 6), shape=(3, 4), variance=0.1)
    time = np.linspace(0.0, 1.0, 20)
    matrices = (1 + time)[:, None, None] * np.asarray(network.end_to_end())
    counts = {"num_steps": 20, "num_accepted_steps": 19, "num_rejected_steps": 1, "seconds": 0.5}
    return assemble(
        cost,
        network,
        network,
        {"time": time, "end_to_end": matrices, "gradient_norm": np.ones(20)},
        stop_reason="t1",
        stats=counts,
        configuration={"solver": "Switching", "rtol": 1e-3},
    )


class Tripwire:
    """What a pickle runs where it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit('a pickle was run')",)


def harmful(folder: Path) -> Iterator[Path]:
    """Files written to harm: code in pickles, and more numbers than memory has."""
    import h5py

    for name in ("pickle.npy", "pickle.csv", "pickle.nc", "pickle.parquet"):
        (folder / name).write_bytes(pickle.dumps(Tripwire()))
        yield folder / name
    np.save(folder / "objects.npy", np.array([[Tripwire()]], object), allow_pickle=True)
    yield folder / "objects.npy"
    for shape in ((10**7, 10**7), (10**18, 1), (-1, 5), (3, 3)):
        header = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
        path = folder / f"huge{shape[0]}.npy"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        yield path
    with h5py.File(folder / "bomb.nc", "w") as file:
        for name in ("time", "end_to_end", "train_cost", "num_saddles"):
            file.create_dataset(name, (10**7, 10**6), "f8", chunks=(1, 1000), fillvalue=1.0)
        file.attrs["stop_reason"] = file.attrs["configuration"] = file.attrs["stats"] = "{}"
    yield folder / "bomb.nc"
    (folder / "deep.nc").write_text("[" * 100_000)
    yield folder / "deep.nc"
    for coding in ("utf-16", "utf-32", "latin-1"):
        path = folder / f"{coding}.csv"
        path.write_text("é,ü\n1,2\n", coding)
        yield path
    (folder / "one_cell.csv").write_text("1" * 300_000)
    yield folder / "one_cell.csv"


def mutated(rng: np.random.Generator, content: bytes) -> bytes:
    """A file's bytes, damaged in one of several ways."""
    data, kind = bytearray(content), rng.integers(7)
    place = int(rng.integers(len(data) + 1))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:  # a few bytes
        for at in rng.integers(len(data), size=rng.integers(1, 8)) if data else ():
            data[at] = rng.integers(256)
        return bytes(data)
    if kind == 2:  # a stretch
        length = int(rng.integers(1, 200))
        data[place : place + length] = rng.bytes(length)
        return bytes(data)
    if kind == 3:
        return bytes(data[:place]) + bytes(data)
    if kind == 4:  # zeros, as after a crash of the machine
        return bytes(data[:place]) + bytes(len(data) - place)
    if kind == 5:
        del data[place : place + int(rng.integers(1, 64))]
        return bytes(data)
    return rng.bytes(int(rng.integers(0, 4000)))


def files(folder: Path, count: int, seed: int) -> Iterator[Path]:
    """`count` files in a folder: sound, harmful and mutated ones, some with another ending than theirs."""
    made = folder / "originals"
    made.mkdir()
    known = originals(made)
    yield from known.values()
    yield from harmful(folder)
    rng = np.random.default_rng(seed)
    endings = (".nc", ".csv", ".npy", ".parquet")
    for number in range(count - len(known) - len(list(folder.glob("*.*")))):
        source = known[str(rng.choice(sorted(known)))]
        if source.is_dir():
            target = folder / f"{number}.zarr"
            shutil.copytree(source, target)
            inside = [path for path in sorted(target.rglob("*")) if path.is_file()]
            victim = inside[rng.integers(len(inside))]
            victim.write_bytes(mutated(rng, victim.read_bytes()))
        else:
            ending = source.suffix if rng.random() < 0.8 else str(rng.choice(endings))
            target = folder / f"{number}{ending}"
            target.write_bytes(mutated(rng, source.read_bytes()))
        yield target


def read(path: Path) -> dict[str, str]:
    """What each reader that may be given this file does with it: its outcome in words."""
    import saddleflow as sf
    from saddleflow.sweeps.store import Store

    def store(path: Path) -> None:
        opened = Store(path, {"dims": ["lane"]}, {"saddleflow": "1"})
        opened.read(0) if opened.has(0) else None

    tables: dict[str, Callable[[Path], Any]] = {
        "read_matrix": lambda path: sf.read_matrix(path, held_out=0.0),
        "read_table": lambda path: sf.read_table(path, triplets=("user", "item", "rating")),
    }
    of_kind: dict[str, dict[str, Callable[[Path], Any]]] = {
        ".nc": {"load": lambda path: repr(sf.load(path)), "load_path": lambda path: repr(sf.load_path(path))},
        ".zarr": {"store": store},
    }
    outcomes = {}
    for name, reader in of_kind.get(path.suffix, tables).items():
        outcomes[name] = outcome(reader, path)
    return outcomes


def outcome(reader: Callable[[Path], Any], path: Path) -> str:
    """What a reader did: "read", "refused", or else what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader(path)
        return "read"
    except (ValueError, OSError) as error:
        return "refused" if path.name in str(error) else f"unnamed: {type(error).__name__}: {error}"
    except (Exception, SystemExit) as error:
        return f"traceback: {type(error).__name__}: {error}"


def read_all(paths: list[Path]) -> dict[str, dict[str, str]]:
    """The outcomes of files, read by a process of their own; of the one that it crashed on "crash"."""
    found: dict[str, dict[str, str]] = {}
    while len(found) < len(paths):
        rest = [str(path) for path in paths if str(path) not in found]
        run = subprocess.run([sys.executable, __file__, "--read", *rest], capture_output=True, text=True, check=False)
        for line in run.stdout.splitlines():
            found |= json.loads(line)
        rest = [path for path in rest if path not in found]
        if rest:
            found[rest[0]] = {"any": f"crash: exit code {run.returncode}"}
    return found


def main() -> None:
    """Make, read and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--read", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        for path in arguments.read:
            print(json.dumps({path: read(Path(path))}), flush=True)
        return
    counts, bad = collections.Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        paths = list(files(Path(folder), arguments.files, arguments.seed))
        for first in range(0, len(paths), BATCH):
            for path, outcomes in read_all(paths[first : first + BATCH]).items():
                for reader, what in outcomes.items():
                    counts[reader, what.partition(":")[0]] += 1
                    if what not in ("read", "refused"):
                        bad.append(f"{Path(path).name}, {reader}: {what}")
            print(f"{min(first + BATCH, len(paths))} of {len(paths)} files", file=sys.stderr)
    print(f"{len(paths)} files, seed {arguments.seed}: {len(bad)} bad")
    for (reader, what), count in sorted(counts.items()):
        print(f"  {reader:<12} {what:<10} {count}")
    print("\n".join(bad))


if __name__ == "__main__":
    main()
