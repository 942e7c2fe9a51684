"""Paths of run directories: on a file system, or in an object store (`s3://BUCKET/PATH`).

Paths in object stores are fsspec's, by universal_pathlib, and are used as `pathlib.Path` is. What differs stands here.
An object is there whole or not at all once it is written; there is no rename and no lock.
"""

import contextlib
import errno
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxleak.errors import InputError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, of the user's share of it, of one file

# Not of one letter, as Windows' drives are; `Path` has made one slash of two.
_URL = re.compile(r"([a-z][a-z0-9+.-]+):(?:/+(.*))?", re.DOTALL)


def place(path: str | Path) -> Path:
    """The directory that the user names, a path or a URL.

    Raises:
        InputError: a URL of a kind that is not known, or whose library is not installed.
    """
    match = _URL.fullmatch(str(path))
    if not is_local(path) or not match:
        return Path(path) if isinstance(path, str) else path
    kind, rest = match.groups(default="")
    if kind == "file":
        return Path(f"/{rest}")
    if not rest and kind != "memory":
        raise InputError(f"`{kind}://` names no bucket; give {kind}://BUCKET/PATH.")
    try:
        from upath import UPath

        return UPath(f"{kind}://{rest}", use_listings_cache=False)  # pyright: ignore[reportReturnType]
    except ImportError as error:
        raise InputError(f"`{path}` needs a library: pip install 'jaxleak[s3]' ({error}).") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"`{path}` is no place for a run: {' '.join(str(error).split())}.") from error


def is_local(path: Any) -> bool:
    """True for a path on a file system."""
    return isinstance(path, str | Path)


def reachable(path: str | Path) -> Path:
    """The directory of `place`; an object store has answered for this bucket with these credentials.

    Raises:
        InputError: the store does not answer, or the file system refuses the name.
    """
    directory = place(path)
    if is_local(directory):
        try:
            directory.stat()  # newer Pythons' `exists` does not tell
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise InputError(f"`{directory}` cannot be reached ({error.strerror}). Give another path.") from error
        return directory
    try:
        remote: Any = directory
        bucket = remote.path.partition("/")[0]
        if bucket and remote.protocol != "memory" and not remote.fs.exists(bucket):
            raise InputError(
                f"`{directory}`: there is no bucket {bucket!r} that these credentials may read. Make it, or check them."
            )
        directory.exists()
    except InputError:
        raise
    except Exception as error:  # each store's library has its own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"`{directory}` cannot be reached ({reason}). Check address and credentials.") from error
    return directory


def sync_directory(path: Path) -> None:
    """Make a rename in the directory last through a power cut, where the file system offers that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file so that it is there whole or not at all, whoever else writes it at the same time."""
    if not is_local(path):
        path.write_bytes(payload)
        return
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:8]}.tmp")  # as long as a name may be
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno in FULL:
            raise _full(path, len(payload), error) from error
        raise
    sync_directory(path.parent)


def _full(path: Path, needed: int, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written ({error.strerror}): it takes {size_text(needed)}, and {free_text(path.parent)}. "
        "Make room, and give the same command again.",
        full=True,
        needed=needed,
    )


def size_text(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"


def free_text(folder: Path) -> str:
    """How much space is free there, in words."""
    try:
        there = os.statvfs(folder)
    except (OSError, TypeError, ValueError):  # an object store
        return "what is free is not known"
    return f"{size_text(there.f_bavail * there.f_frsize)} are free"


@contextlib.contextmanager
def writing(argument: str, path: str | Path) -> Iterator[None]:
    """What the file system refuses inside is the user's to mend.

    Raises:
        InputError: this place cannot be written.
        StorageError: the disk is full.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise StorageError(
                f"`{argument}` {path} cannot be made ({error.strerror}). Make room, and give the same command again.",
                full=True,
            ) from error
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(f"`{argument}` {path} cannot be written ({reason}). Give another path.") from error


def check_inside(run: Path, *names: str) -> None:
    """Raise unless a run's own files and folders lie in it: a symbolic link would lead writes elsewhere.

    Args:
        run: the run directory, which may itself be a link.
        names: of its files and folders, each below the one before where they are written with a slash.

    Raises:
        InputError: one of them is a symbolic link.
    """
    if not is_local(run):
        return
    for name in names:
        place = run
        for part in Path(name).parts:
            place = place / part
            if place.is_symlink():
                raise InputError(f"{place} is a symbolic link, which leads out of the run. Remove it, and try again.")


def create(path: Path, payload: bytes) -> None:
    """Write a file that is not there yet.

    In an object store, where nothing else keeps two writers apart, the store refuses the second one.

    Raises:
        FileExistsError: it is there, in an object store.
    """
    if is_local(path):
        write_atomically(path, payload)
    else:
        remote: Any = path
        remote.fs.pipe_file(remote.path, payload, mode="create")


def move(path: Path, target: Path) -> None:
    """Give a file another name."""
    if is_local(path):
        os.replace(path, target)
    else:
        write_atomically(target, path.read_bytes())
        path.unlink()


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """The file, where a library can open it by name.

    Raises:
        OSError: it is not there.
    """
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxleak-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy
