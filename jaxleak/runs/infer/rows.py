"""The folder of an inference: run.json, and rows.jsonl with one row for each update; safe against a kill."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxleak.data.paths import FULL, check_inside, is_local, reachable, size_text, write_atomically, writing
from jaxleak.errors import InputError, StorageError
from jaxleak.results.store.description import begun, make_directory
from jaxleak.results.store.locks import lock
from jaxleak.results.store.shard import ALL

FILE = "rows.jsonl"
Row = dict[str, Any]


class Rows:
    """Rows by the number of their update; of a folder, each is on the disk when `append` returns.

    Attributes:
        path: the folder; None keeps rows in memory.
        found: the rows, by `update`.
    """

    def __init__(self, path: Path | None, found: dict[int, Row], locks: Sequence[Any] = ()):
        self.path, self.found, self._locks = path, found, locks

    @classmethod
    def open(cls, out: str | Path | None, settings: dict[str, Any], environment: dict[str, Any]) -> "Rows":
        """Begin a folder, or continue the one that is there with the same settings.

        A last line that a kill cut off is taken away; its update is attacked again.

        Raises:
            InputError: other settings (each is named), a folder of something else, a place in an object store, or
                another process that writes there.
            StorageError: the disk is full.
        """
        if out is None:
            return cls(None, {})
        path = reachable(out)
        if not is_local(path):
            raise InputError(f"`out` must be a folder of this machine for `infer`, which appends to a file; got {out}.")
        make_directory(path)
        locks = lock(path, ALL)
        try:
            begun(path, settings, environment, mix_versions=True)  # no solver takes part
            return cls(path, _read(path), locks)
        except BaseException:
            for held in locks:
                held.close()
            raise

    def append(self, row: Row) -> None:
        """Keep a row.

        Raises:
            StorageError: the disk is full or fails; the rows before are kept.
        """
        if self.path is not None:
            line = f"{json.dumps(row)}\n".encode()
            try:
                with open(self.path / FILE, "ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                mend = "Make room, and give" if error.errno in FULL else "Give"
                raise StorageError(
                    f"{self.path / FILE} cannot be written ({error.strerror}): a row takes {size_text(len(line))}. "
                    f"{mend} the same command again; {len(self.found)} updates are kept.",
                    full=error.errno in FULL,
                    needed=len(line),
                    rows=[row],
                ) from error
        self.found[row["update"]] = row

    def ordered(self) -> list[Row]:
        """The rows, by rising number of the update."""
        return [self.found[number] for number in sorted(self.found)]

    def close(self) -> None:
        """Let other processes write the folder."""
        for held in self._locks:
            held.close()


def _read(path: Path) -> dict[int, Row]:
    """The rows that are whole; what else is in the file is taken out of it."""
    check_inside(path, FILE)
    file, found, sound = path / FILE, {}, []
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return {}
        raise InputError(f"`out` {file} cannot be read ({error.strerror}). Give another path.") from error
    for line in lines:
        try:
            row = json.loads(line)
            number = row["update"]
        except (ValueError, TypeError, KeyError):
            continue
        if line.endswith(b"\n") and isinstance(number, int) and number not in found:
            found[number] = row
            sound.append(line)
    if len(sound) < len(lines):
        with writing("out", path):
            write_atomically(file, b"".join(sound))
    return found
