"""Writing files whole or not at all, and reading files that may be anything."""

import errno
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from saddleflow._backend.checks import require

# Bytes of a NetCDF file beside its numbers, at most: names, attributes, the tables of HDF5.
OVERHEAD = 1 << 18

# The temporary files of this process.
_unfinished: set[Path] = set()


def check_writable(path: str | Path, force: bool = False, argument: str = "path") -> Path:
    """Refuse an output path that exists (unless `force`) or cannot be written; returns it as a Path.

    Args:
        path: of the file to be.
        force: whether an existing file may be overwritten.
        argument: what the user calls the path.

    Raises:
        ValueError: the path exists, its folder does not, or may not be written to; its name is too long; it is a
            folder, a device or a pipe.
    """
    path = Path(path)
    remedy = "Give the name of a file."
    try:
        folder, exists = path.is_dir(), os.path.lexists(path)
        longest = max(len(os.fsencode(name)) for name in (path.name, _temporary(path).name))
    except (OSError, ValueError) as error:
        require(False, argument, "be a path that a file can have", str(path), f"The system says: {error}.")
        raise
    require("\0" not in str(path), argument, "be a path that a file can have", str(path))
    require(longest <= 255, argument, "have a name that a file can have", f"one of {longest} bytes", "Shorten it.")
    require(not folder, argument, "be a file", f"{path}, a folder", remedy)
    # a link is replaced, and so would a device be
    require(not exists or path.is_file() or path.is_symlink(), argument, "be a file", f"{path}, none", remedy)
    require(force or not exists, argument, "not exist yet", str(path), "Pass force=True (--force).")
    _check_folder(path.parent, argument, path)
    return path


def check_outputs(
    paths: Sequence[str | Path], force: bool, argument: str, inputs: Sequence[Path | None] = ()
) -> None:
    """`check_writable` of several files at once, which must also be different ones, and none of the inputs.

    Raises:
        ValueError: as `check_writable`; two of one name; one that is also read.
    """
    found = [check_writable(path, force, argument).absolute() for path in paths]
    twice = [str(path) for path in found if found.count(path) > 1]
    remedy = "Choose another name."
    require(not twice, argument, "give each file a name of its own", twice[0] if twice else None, remedy)
    read = {path.resolve() for path in inputs if path is not None}
    both = [str(path) for path in found if path.resolve() in read]
    require(not both, argument, "not be what is read, or a store", both[0] if both else None, remedy)


def check_folder(path: str | Path, argument: str = "path") -> None:
    """Refuse a folder that is none or may not be written to, and one that cannot be made where there is none.

    Raises:
        ValueError: it is something else, or there is something else on the way to it.
    """
    path = Path(path)
    there = next(folder for folder in (path, *path.parents, Path()) if os.path.lexists(folder))
    require(there.is_dir(), argument, "be a folder", f"{there}, none", "Give another one.")
    _check_folder(there, argument, path)


def _check_folder(folder: Path, argument: str, path: Path) -> None:
    require(folder.is_dir(), argument, "lie in an existing folder", str(path), "Create the folder first.")
    remedy = "Give a path elsewhere."
    require(os.access(folder, os.W_OK), argument, "lie in a folder you may write to", str(path), remedy)


def _temporary(path: Path) -> Path:
    """A name beside a path for what is not whole yet; of a long name its beginning."""
    return path.parent / f".{path.stem[:40]}-{uuid.uuid4().hex[:8]}{path.suffix}"


@contextmanager
def written_whole(path: str | Path, force: bool = False, room: int = 0) -> Iterator[Path]:
    """Give a temporary path in the same folder, moved onto `path` at the end; removed on any error or Ctrl-C.

    Args:
        path: of the file to be.
        force: whether an existing file may be overwritten.
        room: bytes that the disk must have free.

    Raises:
        ValueError: as `check_writable`.
        OSError: the disk is full, or the folder has vanished; the path is as it was before.
    """
    path = check_writable(path, force)
    temporary = _temporary(path)
    file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less what the user's umask forbids
    _unfinished.add(temporary)
    try:
        with os.fdopen(file):
            if room and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, room)
        yield temporary
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # of HDF5 both, where it cannot write
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error).partition("\n")[0]
        text = f"{str(path)!r} could not be written, and is as it was before: {reason}"
        raise OSError(number or errno.EIO, text) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


def write_netcdf(data: Any, path: str | Path, force: bool = False, groups: Mapping[str, Any] | None = None) -> Path:
    """Write datasets as NetCDF, whole or not at all: one in the root of the file, others in groups.

    Raises:
        ValueError: as `check_writable`.
        OSError: as `written_whole`.
    """
    groups = groups or {}
    # HDF5 can end the process where a disk turns out to be full, so that there must be room before it begins
    room = OVERHEAD * (1 + len(groups)) + sum(one.nbytes for one in (data, *groups.values()))
    with written_whole(path, force, room) as temporary:
        data.to_netcdf(temporary, engine="h5netcdf")
        for name, group in groups.items():
            group.to_netcdf(temporary, mode="a", group=name, engine="h5netcdf")
    return Path(path)


@contextmanager
def readable(path: str | Path, what: str) -> Iterator[Path]:
    """Read a file that may be anything: whatever goes wrong is a `ValueError` that names the file.

    Args:
        path: the file.
        what: what it must hold, continuing "must ...".

    Raises:
        FileNotFoundError: no such file.
        PermissionError: a file that may not be read.
        ImportError: a library that reads it is not there.
        ValueError: anything else.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"`path`: there is no file {str(path)!r}.")
    require(path.is_file(), "path", "be a file", f"{path}, none", "Give the name of a file.")
    try:
        yield path
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception as error:
        text = str(error)
        if isinstance(error, ValueError) and text.startswith("`"):  # in our own words
            raise ValueError(text if str(path) in text else f"{text} The file: {str(path)!r}.") from error
        reason = f"{type(error).__name__}: {text}".splitlines()[0][:200]
        raise ValueError(f"`path` must {what}, but got {str(path)!r}: {reason}") from error


def require_room(num_bytes: int, path: Path) -> None:
    """Refuse a file that declares more numbers than memory can hold, before any of it is taken.

    Raises:
        ValueError: more than is free.
    """
    free = psutil.virtual_memory().available
    expected = f"hold what fits the memory, of which {free / 1e9:.2f} GB are free"
    require(num_bytes <= free, "path", expected, f"{num_bytes / 1e9:.3g} GB declared in {str(path)!r}")


def remove_unfinished() -> None:
    """Remove the temporary files that are there now: before a process ends without its threads."""
    for temporary in list(_unfinished):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
