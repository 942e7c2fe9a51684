"""Progress of a run: a live line on a terminal or in a notebook, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxleak.engine import EngineStats


class Progress:
    """Trials done, running and waiting, successes so far, evaluations per second, utilisation and time left.

    Args:
        total: trials of the whole run; `done` and `successes` those already in the run directory.
        interval: seconds between plain lines.
        write: takes each plain line; None writes to stderr, live when that is a terminal, or below a notebook's cell.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        successes: int = 0,
        interval: float = 10.0,
        write: Callable[[str], None] | None = None,
    ):
        self.total, self.done, self.successes, self.evaluations = total, done, successes, 0
        self._fresh = 0
        self._interval = interval
        self._began = self._last = time.monotonic()
        self._silent = True
        self._notebook = _NotebookLine() if write is None and _in_notebook() else None
        self._terminal = write is None and self._notebook is None and sys.stderr.isatty()
        self._live = self._terminal or self._notebook is not None
        self._write = write or _print

    def say(self, line: str, *, passing: bool = False) -> None:
        """Write a line of its own; a `passing` one is written over in a notebook."""
        if self._notebook is not None and passing:
            self._notebook.show(line)
            return
        if self._terminal:
            _print("\r\x1b[K", end="")
        self._write(line)

    def finished(self, trials: int, successes: int, evaluations: int) -> None:
        """Count trials that ended."""
        self.done += trials
        self._fresh += trials
        self.successes += successes
        self.evaluations += evaluations

    def update(self, name: str, stats: "EngineStats", *, force: bool = False) -> None:
        """Show where the run stands, if it is time to; the first time as soon as a chunk is done."""
        now = time.monotonic()
        early = self._silent and stats.steps_total > 0
        if not (force or early or now - self._last >= (0.5 if self._live else self._interval)):
            return
        self._last, self._silent = now, False
        line = self.line(name, stats, now)
        if self._notebook is not None:
            self._notebook.show(line)
        elif self._terminal:
            _print(f"\r\x1b[K{line}", end="\n" if force else "")
        else:
            self._write(line)

    def line(self, name: str, stats: "EngineStats", now: float) -> str:
        """The progress line. Trials to come cost what those so far did; running ones are half done.

        No time is foretold while more trials run than have ended: those that have are the quick ones.
        """
        rate = stats.steps_useful / stats.seconds if stats.seconds else 0.0
        left, half = "?", stats.trials_running / 2
        waiting = self.total - self.done - stats.trials_running
        if self._fresh and self._fresh >= stats.trials_running:
            left = _duration((now - self._began) * (waiting + half) / (self._fresh + half))
        return (
            f"{name}: {self.done}/{self.total} trials done, {stats.trials_running} running, {waiting} waiting; "
            f"{self.successes} solved so far; {rate:,.0f} evaluations/s, utilisation {stats.utilisation:.0%}; "
            f"{left} left"
        )


class _NotebookLine:
    """One line below a notebook's cell, written over by the next."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, line: str) -> None:
        bundle = {"text/plain": line}
        if self._handle is None:
            from IPython.display import display

            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _in_notebook() -> bool:
    """True in a kernel, whose stderr is no terminal; IPython on a terminal has one."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


def _print(text: str, end: str = "\n") -> None:
    """On stderr, if it is there: no run ends because nobody listens."""
    with contextlib.suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
