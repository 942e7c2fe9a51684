"""Messages between parent and worker: JSON lines on the worker's stdin and stdout. Imports nothing heavy.

Parent: one task when the worker starts, then `{"measure": SECONDS}` as often as it likes; at the end of its stdin the
worker ends.
Worker: `{"ready": {...}}` when everything is compiled and warm, `{"measured": {...}}` for each request, or
`{"failed": "why"}`. Between requests the worker waits for its stdin and computes nothing.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def use_one_core() -> None:
    """Stay on the first of this process's cores, where the system can hold one there."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Link:
    """The worker's end. What libraries print goes to stderr, so that it cannot mix with the answers."""

    def __init__(self):
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any]:
        """The parent's next message; a parent that is gone ends the worker."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        return json.loads(line)

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")


class Meter:
    """Counts between two moments of a computation that calls `tick` between its units.

    The first unit of a measurement is not counted: it finds cold caches.

    Args:
        link: to the parent.
        warm: seconds of each measurement before the count begins.
    """

    def __init__(self, link: Link, warm: float = 0.0):
        self._link, self._warm = link, warm
        self._asked = self._seconds = 0.0
        self._began: tuple[float, float, float] | None = None
        self._measured: dict[str, float] = {}

    def wait(self, ready: dict[str, Any] | None = None) -> None:
        """Say that all is `ready`, or what was measured, and wait for the next request."""
        if ready is not None:
            self._link.send(ready={**ready, "peak_bytes": peak_bytes()})
        else:
            self._link.send(measured={**self._measured, "peak_bytes": peak_bytes()})
        self._seconds = self._link.receive()["measure"]
        self._asked, self._began = time.perf_counter(), None

    def tick(self, evaluations: float, lane_iterations: float) -> bool:
        """Take note of both counts since the start; True once the measurement is complete."""
        now = time.perf_counter()
        if self._began is None:
            if now >= self._asked + self._warm:
                self._began = (now, evaluations, lane_iterations)
            return False
        began, first_evaluations, first_iterations = self._began
        self._measured = {
            "evaluations": evaluations - first_evaluations,
            "lane_iterations": lane_iterations - first_iterations,
            "seconds": now - began,
        }
        # Where units are long the count begins late: it lasts half of what was asked for all the same.
        enough = now >= self._asked + self._seconds and now - began >= self._seconds / 2
        return enough and lane_iterations > first_iterations


def serve(work: Callable[[dict[str, Any], Link], None]) -> None:
    """A worker's main function: receive the task, do it, and report an exception as one line."""
    link = Link()
    try:
        work(link.receive(), link)
    except Exception as error:
        words = " ".join(str(error).split()) or "no message"
        link.send(failed=f"{type(error).__name__}: {words[:300]}")
        raise


def peak_bytes() -> int:
    """The most memory this process has held so far, in bytes."""
    import resource

    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux, where the next line may be the parent's
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
