"""The store of a sweep: a zarr group that holds finished chunks, each whole or not there at all.

While a sweep runs its chunks lie under `chunks/`, each written into a folder of another name and renamed when
complete; every array carries a checksum. When the last chunk is there, the dataset's arrays are written beside them,
renamed one by one into the group itself, where `xarray.open_zarr` finds them, and the chunks are removed.

Several processes may share a store: each computes what it does not find; whatever is there already stays, for it
holds the same numbers; and the last act, the word "complete" in the group's own file, replaces that file as a whole.
"""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lazy_loader as lazy
import numpy as np

from saddleflow._backend.checks import require
from saddleflow._backend.files import check_folder

if TYPE_CHECKING:
    import xarray as xr
    import zarr
else:
    xr, zarr = lazy.load("xarray"), lazy.load("zarr")

FORMAT = 2  # 2: files of zeros are written, too: what is missing has vanished

# What zarr keeps a group's attributes in, and that among them by which a store of ours is told.
RECORD, MARK = "zarr.json", "saddleflow_sweep"


class Store:
    """The chunks of one sweep on disk.

    Args:
        path: folder of the store; made if need be.
        configuration: the sweep's, from `configuration.describe`.
        versions: of the packages that decide the numbers.

    Raises:
        ValueError: the folder holds something else, or the store of another sweep; the difference is named.
        OSError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, configuration: dict[str, Any], versions: dict[str, str]):
        self.path = Path(path)
        label = {"format": FORMAT, "saddleflow": versions["saddleflow"], **configuration}
        if not os.path.lexists(self.path):
            self._create(label)
        self._require_ours()
        found = self._read(lambda: json.loads(self._record()["attributes"][MARK]), self.path, "its record")
        different = [
            f"{key}: stored {_short(found.get(key))}, now {_short(label.get(key))}"
            for key in {**label, **found}
            if found.get(key) != label.get(key)
        ]
        require(
            not different,
            "store",
            "hold the same sweep",
            f"{str(path)!r} with another configuration ({'; '.join(different)})",
            "Give another path, or the stored configuration.",
        )
        writable = self.complete or os.access(self.path, os.W_OK)
        require(writable, "store", "be one you may write to", str(path), "Give another path.")

    def _create(self, label: dict[str, Any]) -> None:
        """Make the store, empty; where another process is faster, its store is there."""
        check_folder(self.path.parent, "store")
        require(self.path.parent.is_dir(), "store", "lie in an existing folder", str(self.path), "Create it first.")
        fresh = self._beside(self.path)
        try:
            zarr.open_group(fresh, mode="w", attributes={MARK: json.dumps(label)})
            (fresh / "chunks").mkdir()
            _move(fresh, self.path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _require_ours(self) -> None:
        """Refuse what no sweep made: only a folder with our mark may be called a damaged store."""
        remedy = "Give another path: what is there stays as it is."
        require(self.path.is_dir(), "store", "be new or the store of a sweep", f"{self.path}, no folder", remedy)
        record = self.path / RECORD
        ours = record.is_file() and MARK.encode() in record.read_bytes()
        require(ours, "store", "be new or the store of a sweep", f"{self.path}, a folder of something else", remedy)

    def _record(self) -> dict[str, Any]:
        return json.loads((self.path / RECORD).read_text())

    @staticmethod
    def _beside(path: Path) -> Path:
        return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")

    def _chunk(self, number: int) -> Path:
        return self.path / "chunks" / f"{number:06d}"

    def has(self, number: int) -> bool:
        """Whether a chunk is there (then it is whole)."""
        return self._chunk(number).is_dir()

    def write(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Write a chunk, whole or not at all.

        Raises:
            OSError: the disk is full, or the folder not to be written; chunks written before stay.
        """
        target = self._chunk(number)
        fresh = self._beside(target)
        try:
            target.parent.mkdir(exist_ok=True)
            group = zarr.open_group(fresh, mode="w", attributes={"arrays": list(arrays)})
            for name, values in arrays.items():
                _write(group, name, values)
            _move(fresh, target)
        except OSError as error:
            if self.complete:  # another process has finished the sweep, and removed the chunks
                self._drop_chunks()
                return
            raise OSError(
                f"chunk {number} could not be written to the store {str(self.path)!r}: {error.strerror or error}. "
                "The chunks before it are kept: make room and call again with the same arguments."
            ) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def read(self, number: int) -> dict[str, np.ndarray] | None:
        """Read a chunk; None where it has gone: another process has finished the sweep.

        Raises:
            ValueError: it is damaged; the message says what to do to have it computed again.
        """
        path = self._chunk(number)

        def arrays() -> dict[str, np.ndarray]:
            members = _members(path, "arrays")
            found = {array.basename: np.asarray(array[...]) for array in members}
            _require_whole(members)  # after reading: another process may remove chunks meanwhile
            return found

        try:
            return self._read(arrays, path, f"chunk {number}")
        except ValueError:
            if self.complete:
                return None
            raise

    @property
    def complete(self) -> bool:
        """Whether the dataset itself is there; not where the store has vanished."""
        try:
            return bool(self._record()["attributes"].get("complete", False))
        except OSError:
            return False

    def finish(self, data: "xr.Dataset") -> None:
        """Write the dataset into the group and remove the chunks.

        Raises:
            OSError: the disk is full, or the folder not to be written; the chunks stay.
        """
        fresh = self._beside(self.path / "chunks" / "dataset")
        try:
            fresh.parent.mkdir(exist_ok=True)
            group = zarr.open_group(fresh, mode="w")
            for name, values in data.variables.items():
                _write(group, str(name), values.values, tuple(map(str, values.dims)), values.attrs)
                _move(fresh / str(name), self.path / str(name))
            beside = " ".join(str(name) for name in data.coords if name not in data.dims)
            # by the conventions of the format: coordinates along a dim of another name
            names = {"complete": [str(name) for name in data.variables]}
            group.attrs.update(data.attrs | ({"coordinates": beside} if beside else {}) | names)
            record = json.loads((fresh / RECORD).read_text())
            record["attributes"] = self._record()["attributes"] | record["attributes"]
            (fresh / RECORD).write_text(json.dumps(record, indent=2))
            os.replace(fresh / RECORD, self.path / RECORD)
        except OSError as error:
            if not self.complete:
                raise OSError(
                    f"the dataset could not be written to the store {str(self.path)!r}: {error.strerror or error}. "
                    "All chunks are kept: make room and call again with the same arguments."
                ) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        self._drop_chunks()

    def _drop_chunks(self) -> None:
        shutil.rmtree(self.path / "chunks", ignore_errors=True)

    def load(self) -> "xr.Dataset":
        """The finished dataset.

        Raises:
            ValueError: it is damaged.
        """
        self._drop_chunks()  # left where a process was killed in between

        def dataset() -> "xr.Dataset":
            _require_whole(_members(self.path, "complete"))
            return xr.open_zarr(self.path, consolidated=False, chunks=None).load()

        data = self._read(dataset, self.path, "the dataset")
        for label in (MARK, "complete"):
            data.attrs.pop(label)
        return data.assign_coords(
            {
                name: (values.dims, [str(value) for value in values.values], values.attrs)
                for name, values in data.coords.items()
                if values.dtype.kind in "OT"  # strings of any length
            }
        )

    @staticmethod
    def _read(reader, path: Path, what: str):
        try:
            return reader()
        except Exception as error:
            raise ValueError(
                f"`store` is damaged: {what} cannot be read ({type(error).__name__}: {error}). Nothing else is lost: "
                f"move {str(path)!r} elsewhere and call again, and what it held is computed anew."
            ) from error


def _members(path: Path, attribute: str) -> "list[zarr.Array]":
    """The arrays of a group that one of its attributes names: also those that have vanished, an error."""
    group = zarr.open_group(path, mode="r")
    names: Any = group.attrs[attribute]
    return [cast("zarr.Array", group[name]) for name in names]


def _require_whole(arrays: "list[zarr.Array]") -> None:
    """Refuse arrays whose files have vanished: of those zarr says zero."""
    for array in arrays:
        whole = array.nchunks_initialized == array.nchunks
        require(whole, "store", "hold the numbers of each array", f"none of {array.basename}")


def _move(fresh: Path, target: Path) -> None:
    """Give a whole folder its name; where another process was faster, what it made stays."""
    try:
        os.replace(fresh, target)
    except OSError:
        if not target.is_dir():
            raise


def _write(
    group: "zarr.Group", name: str, values: Any, dims: tuple[str, ...] | None = None, attrs: Any = None
) -> None:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    values = np.asarray(values)
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=str if values.dtype.kind == "U" else values.dtype,  # of fixed lengths zarr's format says nothing
        chunks=tuple(max(size, 1) for size in values.shape),
        compressors=[ZstdCodec(), Crc32cCodec()],
        dimension_names=dims,
        attributes=dict(attrs or {}),
        overwrite=True,
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
