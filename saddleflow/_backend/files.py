"""Writing files whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from saddleflow._backend.checks import require

# The temporary files of this process.
_unfinished: set[Path] = set()


def check_writable(path: str | Path, force: bool = False) -> Path:
    """Refuse an output path that exists (unless `force`) or cannot be written; returns it as a Path.

    Raises:
        ValueError: the path exists, its folder does not, or may not be written to.
    """
    path = Path(path)
    require(force or not path.exists(), "path", "not exist yet", str(path), "Pass force=True (--force).")
    require(not path.is_dir(), "path", "be a file", f"{path}, a folder")
    require(path.parent.is_dir(), "path", "lie in an existing folder", str(path), "Create the folder first.")
    require(os.access(path.parent, os.W_OK), "path", "lie in a folder you may write to", str(path))
    return path


@contextmanager
def written_whole(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Give a temporary path in the same folder, moved onto `path` at the end; removed on any error or Ctrl-C."""
    path = check_writable(path, force)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less what the user's umask forbids
    _unfinished.add(temporary)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


def remove_unfinished() -> None:
    """Remove the temporary files that are there now: before a process ends without its threads."""
    for temporary in list(_unfinished):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
