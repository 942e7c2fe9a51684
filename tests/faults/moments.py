"""Faults at chosen moments of a run: signals, and disks that are full. What is left must continue to the same rows.

`python -m tests.faults.moments MOMENT SIGNAL ARGUMENT...` is `jaxleak ARGUMENT...` that sends itself a signal at the
moment; the functions do the same in this process.
"""

import contextlib
import errno
import io
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from jaxleak import cli
from jaxleak.results.figures import style
from jaxleak.results.page import page as page_module
from jaxleak.results.store.run import Run
from jaxleak.runs import session

# What a run passes through, and how often the small run does: a moment is one of these, and which time.
KINDS = {
    "begun": 1,  # before the first row
    "chunk": 13,  # between rows
    "rename": 20,  # a file is about to get its name ...
    "renamed": 20,  # ... and has got it
    "figure": 4,
    "page": 1,
}
# What a row owes to the trial alone, whoever ran it and when.
SAME = (
    *("attack", "image", "label", "trial", "seed", "status", "success", "objective", "relative_objective"),
    *("evaluations", "iterations", "threshold_iterations", "threshold_evaluations", "label_found", "label_correct"),
    *("mse", "mse_clipped", "psnr", "ssim", "relative_error", "max_abs", "victim_loss", "update_norm2"),
)


class Moment(NamedTuple):
    """The `count`-th time, from 0, that a run passes `kind`."""

    kind: str
    count: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.count}"


def random_moments(number: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS)) -> list[Moment]:
    """So many moments, every kind among them where there is room."""
    draw = random.Random(seed)
    chosen = [kinds[i % len(kinds)] for i in range(number)]
    return [Moment(kind, draw.randrange(KINDS[kind])) for kind in chosen]


@contextlib.contextmanager
def at(moment: Moment, strike: Callable[[], None]) -> Iterator[None]:
    """`strike` is called when what runs inside comes to the moment; every trial is written as soon as it ends."""
    passed = dict.fromkeys(KINDS, -1)

    def passing(kind: str) -> None:
        passed[kind] += 1
        if (kind, passed[kind]) == moment:
            strike()

    def noted(kind: str, function: Callable, after: str | None = None) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            passing(kind)
            result = function(*arguments, **options)
            if after is not None:
                passing(after)
            return result

        return call

    with contextlib.ExitStack() as stack:
        for where, name, kind, after in (
            (session.Progress, "say", "begun", None),
            (session.Progress, "update", "chunk", None),
            (os, "replace", "rename", "renamed"),
            (style, "png_bytes", "figure", None),
            (page_module, "page", "page", None),
        ):
            stack.enter_context(mock.patch.object(where, name, noted(kind, getattr(where, name), after)))
        stack.enter_context(mock.patch.object(session, "FLUSH_SECONDS", 0))
        yield


class Said(NamedTuple):
    code: int
    err: list[str]


def command(arguments: list[str], out: Path) -> Said:
    """The command in this process."""
    said, code = io.StringIO(), None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            cli.main([*arguments, "--out", str(out)])
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int), said.getvalue()
    return Said(code, said.getvalue().splitlines())


def struck(arguments: list[str], out: Path, moment: Moment, number: int) -> Said:
    """The command in this process, which gets a signal at the moment; a run that is over before ends as it would."""
    before = signal.signal(number, lambda *_: None)  # where the command has given the signals back
    try:
        with at(moment, lambda: os.kill(os.getpid(), number)):
            return command(arguments, out)
    finally:
        signal.signal(number, before)


class FullDisk:
    """A file layer on which no file can be written to its end from the `free`-th on; counts them."""

    def __init__(self, free: int | None = None, error: int = errno.ENOSPC):
        self.free, self.error, self.written = free, error, 0

    @contextlib.contextmanager
    def mounted(self) -> Iterator["FullDisk"]:
        opened = open

        def other(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            stream = opened(file, mode, *rest, **options)
            if mode != "wb" or not str(file).endswith(".tmp"):
                return stream
            self.written += 1
            if self.free is not None and self.written > self.free:
                return _Half(stream, self.error)
            return stream

        with mock.patch("jaxleak.data.paths.open", other, create=True), mock.patch.object(session, "FLUSH_SECONDS", 0):
            yield self


class _Half:
    """A file that takes half of what it is given."""

    def __init__(self, stream: Any, error: int):
        self._stream, self._error = stream, error

    def write(self, payload: bytes) -> int:
        self._stream.write(payload[: len(payload) // 2])
        raise OSError(self._error, os.strerror(self._error))

    def __enter__(self) -> "_Half":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def compared(run: Run, whole: Run) -> int:
    """How many rows are those of the undisturbed run, bit for bit; every trial must be there once.

    Raises:
        AssertionError: a trial is missing, is there twice, or has another result.
    """
    rows, wanted = run.rows(), {row["trial"]: row for row in whole.rows()}
    assert sorted(row["trial"] for row in rows) == sorted(wanted)
    for row in rows:
        for name in SAME:
            got, there = row[name], wanted[row["trial"]][name]
            assert got == there or (got != got and there != there), (row["trial"], name, got, there)
    for key in ("candidate", "objective_trace", "mse_trace", "snapshots"):
        pairs = []
        for one in (run, whole):
            arrays = one.arrays(["trial", key])
            pairs.append(arrays[key][np.argsort(arrays["trial"])])
        length = min(pair.shape[1] for pair in pairs)  # a trace is as long as its part's longest
        np.testing.assert_array_equal(pairs[0][:, :length], pairs[1][:, :length])
    return len(rows)


def check_left(out: Path) -> None:
    """Nothing half written is left, but what a killed process could not take away."""
    left = [str(file.relative_to(out)) for file in out.rglob("*.tmp")]
    assert not left, left


def main() -> None:
    kind, count = sys.argv[1].split(":")
    number = signal.Signals[sys.argv[2]]
    sys.argv[1:] = sys.argv[3:]
    with at(Moment(kind, int(count)), lambda: os.kill(os.getpid(), number)):
        cli.main()


if __name__ == "__main__":
    main()
