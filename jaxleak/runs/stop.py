"""Signals that ask a process to end: Ctrl-C, SIGTERM and SIGHUP all end a run in the same orderly way."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
AGAIN_SECONDS = 0.05
SAME_SECONDS = 1.0  # within which a second Ctrl-C is the first one, sent twice

Handler = Callable[[int, FrameType | None], Any]


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """What a shell reports of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + getattr(error, "number", int(signal.SIGINT))


def stop_text(error: KeyboardInterrupt) -> str:
    """`Interrupted`, or by which signal it was ended."""
    number = getattr(error, "number", signal.SIGINT)
    return "Interrupted" if number == signal.SIGINT else f"Ended by {signal.Signals(number).name}"


class Stopping:
    """Turns the signals into `Stopped`, once: what sends them (timeout, schedulers) may send several.

    A later Ctrl-C is raised again, for a user who does not want to wait. A signal that is ignored (nohup) stays so.
    """

    def __init__(self) -> None:
        self._asked: float | None = None
        self._before: dict[int, Any] = {}
        self._unraisable: Any = None

    def begin(self) -> None:
        """Take over; only the main thread of a process can."""
        if threading.current_thread() is threading.main_thread():
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._again
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._heed)

    def _heed(self, number: int, _frame: FrameType | None) -> None:
        now, asked = time.monotonic(), self._asked
        self._asked = asked or now
        if asked is None or (number == signal.SIGINT and now - asked > SAME_SECONDS):
            raise Stopped(number)

    def _again(self, lost: "sys.UnraisableHookArgs") -> None:
        """A signal that came in a callback, as of the garbage collector, where nothing can be raised, is sent again."""
        if not isinstance(lost.exc_value, Stopped):
            self._unraisable(lost)
            return
        self._asked = None
        threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), lost.exc_value.number)).start()

    def end(self) -> None:
        """Give the signals back."""
        if self._unraisable is not None:
            self._unraisable, sys.unraisablehook = None, self._unraisable
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def leave(self, code: int) -> None:
        """Nothing is left to do: from now on the signals end the process at once, with this exit code."""
        for number in self._before:
            signal.signal(number, lambda *_: os._exit(code))


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """What is inside is finished before a signal is heeded; then the first one that came is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before: dict[int, Handler] = {}
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler):
            before[number] = handler
    try:
        for number in before:
            signal.signal(number, lambda number, _frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            before[came[0]](came[0], None)


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Libraries that take the signals inside give them back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
