"""Locks on a run directory: one process may write it, or the shards of a run, each its own parts.

On a file system these are locks that a killed process lets go of. In an object store they are leases: objects that only
one process can make, renewed while it works, and void some time after the last renewal, or at once where the next
process sees that their owner on this machine is dead.
"""

import contextlib
import io
import json
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from jaxleak.data.paths import check_inside, create, is_local, write_atomically, writing
from jaxleak.errors import InputError
from jaxleak.results.store.shard import Shard

RENEW_SECONDS = 20.0
LEASE_SECONDS = 90.0  # after its last renewal
_HELD: set[str] = set()  # leases of this process


class Lock(Protocol):
    """A lock that is held until it is closed."""

    def close(self) -> None: ...


def lock(path: Path, shard: Shard) -> list[Lock]:
    """Locks on the run directory, held while they are not closed.

    A run that is not sharded has the directory to itself; shards share it, each with a lock of its own.

    Raises:
        InputError: another process has it, or the directory cannot be written.
    """
    if not is_local(path):
        return [_Lease(path, shard)]
    if shard.count == 1:
        return [_locked(path, ".lock", True, "another process is writing this run")]
    all_shards = _locked(path, ".lock", False, "a process that is no shard is writing this run")
    try:
        name = f".lock-{shard.index}of{shard.count}"
        return [all_shards, _locked(path, name, True, f"another process is writing shard {shard}")]
    except BaseException:
        all_shards.close()
        raise


def _locked(path: Path, name: str, exclusive: bool, busy: str) -> io.TextIOWrapper:
    import fcntl

    file = _opened(path, name)
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"`out` {path}: {busy}. Wait for it or stop it.") from None
    except OSError as error:
        warnings.warn(f"{path} cannot be locked ({error.strerror}): start no second run there", stacklevel=5)
    return file


def _opened(path: Path, name: str) -> io.TextIOWrapper:
    check_inside(path, name)
    with writing("out", path):
        return open(path / name, "a")


@contextlib.contextmanager
def alone(path: Path, shard: Shard) -> Iterator[None]:
    """Let one shard in after the other: the first makes run.json. In an object store the store sees to that."""
    if shard.count == 1 or not is_local(path):
        yield
        return
    import fcntl

    with _opened(path, ".lock-run") as file:
        with contextlib.suppress(OSError):  # a file system without locks: said before
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Lease:
    """An object that says who writes, renewed by a thread."""

    def __init__(self, folder: Path, shard: Shard):
        self.path = folder / (".lock" if shard.count == 1 else f".lock-{shard.index}of{shard.count}")
        self.own = uuid.uuid4().hex
        self._take(folder)
        try:
            for other in folder.glob(".lock*"):
                conflicts = shard.count == 1 or other.name == ".lock"
                if other.name != self.path.name and conflicts and (holder := _holder(other)):
                    raise _busy(folder, holder)
        except BaseException:
            self.path.unlink()
            raise
        _HELD.add(self.own)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _take(self, folder: Path) -> None:
        for _ in range(3):  # the lease of a dead process is taken away before
            try:
                create(self.path, self._content())
                return
            except FileExistsError:
                if holder := _holder(self.path):
                    raise _busy(folder, holder) from None
                with contextlib.suppress(FileNotFoundError):
                    self.path.unlink()
            except OSError as error:
                raise InputError(f"`out` {folder} is not writable ({error}). Give another path.") from error
        raise InputError(f"`out` {folder}: other processes begin to write this run. Wait for them or stop them.")

    def _content(self) -> bytes:
        return json.dumps({"id": self.own, "pid": os.getpid(), "at": time.time(), **_machine()}).encode()

    def _renew(self) -> None:
        while not self._closed.wait(RENEW_SECONDS):
            with contextlib.suppress(Exception):  # the store may answer again next time
                if _read(self.path)["id"] != self.own:
                    return  # it was void, and another process took it: the first to write a part keeps it
                write_atomically(self.path, self._content())

    def close(self) -> None:
        """Let another process write the run."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        _HELD.discard(self.own)
        with contextlib.suppress(Exception):  # it ends by itself
            if _read(self.path)["id"] == self.own:
                self.path.unlink()


def _machine() -> dict[str, str]:
    """Host, boot and process namespace of this process, by which the lease of a dead process is recognised."""
    machine = {"host": socket.gethostname()}
    with contextlib.suppress(OSError):
        machine["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine["processes"] = os.readlink("/proc/self/ns/pid")
    return machine


def _read(path: Path) -> dict[str, Any]:
    """The content of a lease, read in one request: it may be renewed while a file is open."""
    remote: Any = path
    return json.loads(remote.fs.cat_file(remote.path))


def _holder(path: Path) -> dict[str, Any] | None:
    """The holder of a lease; None if the lease is void."""
    try:
        holder = _read(path)
        age, host = time.time() - holder["at"], holder["host"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a lock that was copied from a disk is empty
        return None
    here = _machine()
    if {key: holder.get(key) for key in here} == here and not _lives(holder):
        return None
    return {"host": host, "age": age} if age < LEASE_SECONDS else None


def _lives(holder: dict[str, Any]) -> bool:
    if holder["pid"] == os.getpid():
        return holder["id"] in _HELD
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _busy(folder: Path, holder: dict[str, Any]) -> InputError:
    return InputError(
        f"`out` {folder}: a process on {holder['host']} is writing this run (seen {max(holder['age'], 0):.0f} s ago). "
        f"Wait for it or stop it; if it was killed, its claim ends {LEASE_SECONDS:.0f} s after that."
    )
