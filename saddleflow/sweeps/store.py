"""The store of a sweep: a zarr group that holds finished chunks, each whole or not there at all.

While a sweep runs its chunks lie under `chunks/`, each written into a folder of another name and renamed when
complete; every array carries a checksum. When the last chunk is there, the dataset is written into the group itself,
where `xarray.open_zarr` finds it, and the chunks are removed.
"""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader as lazy
import numpy as np

from saddleflow._backend.checks import require

if TYPE_CHECKING:
    import xarray as xr
    import zarr
else:
    xr, zarr = lazy.load("xarray"), lazy.load("zarr")

FORMAT = 1


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
        if not self.path.exists():
            require(self.path.parent.is_dir(), "store", "lie in an existing folder", str(path), "Create it first.")
            fresh = self._beside(self.path)
            zarr.open_group(fresh, mode="w", attributes={"saddleflow_sweep": json.dumps(label)})
            (fresh / "chunks").mkdir()
            os.replace(fresh, self.path)
        group = self._read(lambda: zarr.open_group(self.path, mode="r"), self.path, "the store")
        require(
            "saddleflow_sweep" in group.attrs,
            "store",
            "be new or the store of a sweep",
            str(path),
            "Give another path.",
        )
        found = json.loads(str(group.attrs["saddleflow_sweep"]))
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
        target.parent.mkdir(exist_ok=True)
        fresh = self._beside(target)
        try:
            group = zarr.open_group(fresh, mode="w")
            for name, values in arrays.items():
                _write(group, name, values)
            if not target.exists():  # another process may have been faster: with the same numbers
                os.replace(fresh, target)
        except OSError as error:
            raise OSError(
                f"chunk {number} could not be written to the store {str(self.path)!r}: {error.strerror or error}. "
                "The chunks before it are kept: make room and call again with the same arguments."
            ) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Read a chunk.

        Raises:
            ValueError: it is damaged; the message says which folder to remove to have it computed again.
        """
        path = self._chunk(number)

        def arrays() -> dict[str, np.ndarray]:
            group = zarr.open_group(path, mode="r")
            found: dict[str, np.ndarray] = {name: np.asarray(array[...]) for name, array in group.arrays()}
            require(bool(found), "store", "hold arrays in each chunk", str(path))
            return found

        return self._read(arrays, path, f"chunk {number}")

    @property
    def complete(self) -> bool:
        """Whether the dataset itself is there."""
        return bool(zarr.open_group(self.path, mode="r").attrs.get("complete", False))

    def finish(self, data: "xr.Dataset") -> None:
        """Write the dataset into the group and remove the chunks."""
        group = zarr.open_group(self.path, mode="a")
        for name, values in data.variables.items():
            _write(group, str(name), values.values, tuple(map(str, values.dims)), values.attrs)
        beside = " ".join(str(name) for name in data.coords if name not in data.dims)
        # by the conventions of the format: coordinates along a dim of another name
        group.attrs.update(data.attrs | ({"coordinates": beside} if beside else {}) | {"complete": True})
        self._drop_chunks()

    def _drop_chunks(self) -> None:
        shutil.rmtree(self.path / "chunks", ignore_errors=True)

    def load(self) -> "xr.Dataset":
        """The finished dataset.

        Raises:
            ValueError: it is damaged.
        """
        self._drop_chunks()  # left where a process was killed in between
        data = self._read(
            lambda: xr.open_zarr(self.path, consolidated=False, chunks=None).load(), self.path, "the dataset"
        )
        for label in ("saddleflow_sweep", "complete"):
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
                f"remove {str(path)!r} and call again to have it computed anew."
            ) from error


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
    )
    array[...] = values


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
