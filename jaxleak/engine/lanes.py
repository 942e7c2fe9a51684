"""The lanes of one device: trials enter them from the queue, step, and leave."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak.engine.programs import Programs, block_of

CHUNK_SECONDS = 0.5  # between two looks of the host, for progress and Ctrl-C
AHEAD = 2  # reports that may lie unread before a device waits for the calling thread
GROWTH = 4  # of a chunk over the one before, until the time of a step is known


class Finished(NamedTuple):
    """Trials that ended in the same chunk: the queue's rows, and their outcomes stacked in that order."""

    jobs: Any
    outcomes: Any
    seconds: np.ndarray  # from when each entered its lane


@dataclass
class Report:
    """Counts and times of a device since its last report, and the trials that it finished."""

    finished: Finished | None = None
    entered: int = 0
    steps_useful: int = 0
    steps_total: int = 0
    seconds: float = 0.0  # of the chunk, what the host did before it included
    host_seconds: float = 0.0  # of these, with nothing to compute
    ended: bool = False
    error: Exception | None = None


class JobQueue:
    """Jobs in the order in which they enter lanes; several threads may take from it, and add to it while it is open."""

    def __init__(self, jobs: Any, *, more: bool = False):
        """`jobs` is a pytree of numpy arrays with the queue as leading axis; `more` leaves it open until `close`."""
        self._jobs = jax.tree.map(np.asarray, jobs)
        self.total = _length(self._jobs)
        self._waiting = deque(range(self.total))
        self._changed = threading.Condition()
        self._open = more

    @property
    def open(self) -> bool:
        """True while jobs may be added."""
        return self._open

    def extend(self, jobs: Any) -> None:
        """Add jobs behind those that are there."""
        with self._changed:
            if not self._open:
                raise ValueError("the queue is closed")
            self._jobs = jax.tree.map(lambda old, new: np.concatenate([old, new]), self._jobs, jobs)
            self._waiting.extend(range(self.total, self.total + _length(jobs)))
            self.total += _length(jobs)
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no more jobs come."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait for a job, for `close`, or for so many seconds; False where the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open, seconds)
            return self._open or bool(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, count: int) -> np.ndarray:
        """Positions of the next `count` jobs, fewer at the end."""
        with self._changed:
            return np.array([self._waiting.popleft() for _ in range(min(count, len(self._waiting)))], int)

    def put_back(self, positions: np.ndarray) -> None:
        """Put these jobs first in the queue again."""
        with self._changed:
            self._waiting.extendleft(int(position) for position in reversed(positions))

    def jobs(self, positions: np.ndarray) -> Any:
        """The jobs at `positions`, stacked."""
        jobs = self._jobs  # another one after `extend`
        return jax.tree.map(lambda leaf: leaf[positions], jobs)

    @property
    def job_type(self) -> Any:
        """The type of one job."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), self._jobs)


def _length(jobs: Any) -> int:
    return int(jax.tree.leaves(jobs)[0].shape[0])


class _Parked(NamedTuple):
    """Running trials that wait for a lane, in the arrays they ran in."""

    problem: Any
    state: Any
    lanes: np.ndarray  # where they are in these arrays
    owner: np.ndarray
    entered: np.ndarray


class Lanes:
    """The lanes of one device. `work` runs in a thread of its own; nothing else touches them meanwhile."""

    def __init__(self, programs: Programs, queue: JobQueue, chunk: int | None):
        """`chunk` is the limit of steps in a chunk; None takes what fits into `CHUNK_SECONDS`."""
        self._programs, self._queue, self._chunk = programs, queue, chunk
        self._owner = np.full(programs.lanes, -1)  # position in the queue of each lane's trial
        self._entered = np.zeros(programs.lanes)
        self._running = np.zeros(programs.lanes, bool)
        self._problem, self._state = programs.blank()
        self._parked: list[_Parked] = []
        self._limit = 1
        self._idle_since: float | None = None
        self._ahead = threading.Semaphore(AHEAD)

    @property
    def count(self) -> int:
        """Number of lanes."""
        return self._programs.lanes

    @property
    def bytes_each(self) -> int:
        """Bytes that a lane takes while it computes."""
        return self._programs.bytes_per_lane

    def work(self, post: Callable[[tuple["Lanes", Report]], None], stop: threading.Event) -> None:
        """Run trials until none is left or `stop` is set. A report is posted with every chunk, once it computes.

        Whoever reads a report says so by `read`: a device is never more than `AHEAD` reports ahead.
        """
        report = Report()
        self._idle_since = began = time.perf_counter()
        try:
            while True:
                self._ahead.acquire()
                report.finished = self._harvest(report)
                if stop.is_set():
                    break
                self._refill(report)
                if not np.any(self._owner >= 0):
                    if not self._queue.wait(CHUNK_SECONDS):
                        break
                    if report.finished is None:
                        self._ahead.release()
                        continue  # with the same report
                    post((self, report))
                    report = Report()
                    continue
                pending = self._dispatch(report)
                post((self, report))
                report = Report()
                self._land(pending, report)
                report.seconds, began = time.perf_counter() - began, time.perf_counter()
        except Exception as error:
            report.error = error
        report.ended = True
        post((self, report))

    def read(self) -> None:
        """Say that a report was dealt with."""
        self._ahead.release()

    def moved(self, programs: Programs) -> "Lanes":
        """The same trials in other lanes; those for which there is none run as lanes become free."""
        other = Lanes(programs, self._queue, self._chunk)
        held = np.flatnonzero(self._owner >= 0)
        present = _Parked(self._problem, self._state, held, self._owner[held], self._entered[held])
        other._parked = [parked for parked in (*self._parked, present) if parked.lanes.size]
        other._limit = max(1, self._limit // GROWTH)
        return other

    def release(self) -> np.ndarray:
        """Positions in the queue of the trials that had begun."""
        return np.concatenate([self._owner[self._owner >= 0], *(parked.owner for parked in self._parked)])

    # --- what the device computes; the clock of the host stands still meanwhile ---

    def _harvest(self, report: Report) -> Finished | None:
        lanes = np.flatnonzero((self._owner >= 0) & ~self._running)
        if lanes.size == 0:
            return None
        self._begins(report)
        parts = []
        for block, index in self._blocks(lanes, spare=lanes[0]):
            outcome = self._programs.outcome(self._problem, self._state, index)
            parts.append(jax.tree.map(lambda leaf, count=block.size: np.asarray(leaf)[:count], outcome))
        self._idle_since = time.perf_counter()
        outcomes = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        jobs, seconds = self._queue.jobs(self._owner[lanes]), time.perf_counter() - self._entered[lanes]
        self._owner[lanes] = -1
        return Finished(jobs, outcomes, seconds)

    def _refill(self, report: Report) -> None:
        self._unpark(report)
        empty = np.flatnonzero(self._owner < 0)
        positions = self._queue.take(empty.size)
        lanes = empty[: positions.size]
        self._owner[lanes], self._entered[lanes] = positions, time.perf_counter()
        report.entered += lanes.size
        for block, index in self._blocks(lanes, spare=self._programs.lanes):
            jobs = self._queue.jobs(np.resize(self._owner[block], index.size))
            self._begins(report)
            self._problem, self._state = self._programs.refill(
                self._programs.shared, self._problem, self._state, jobs, index
            )

    def _unpark(self, report: Report) -> None:
        while self._parked and np.any(self._owner < 0):
            source = self._parked.pop()
            lanes = np.flatnonzero(self._owner < 0)[: source.lanes.size]
            count = lanes.size
            index, taken = np.zeros(self._programs.lanes, np.int32), np.zeros(self._programs.lanes, bool)
            index[lanes], taken[lanes] = source.lanes[:count], True
            self._begins(report)
            carry = (self._problem, self._state)
            self._problem, self._state = _move(carry, (source.problem, source.state), index, taken)
            self._owner[lanes], self._entered[lanes] = source.owner[:count], source.entered[:count]
            if count < source.lanes.size:
                rest = (leaf[count:] for leaf in (source.lanes, source.owner, source.entered))
                self._parked.append(_Parked(source.problem, source.state, *rest))

    def _dispatch(self, report: Report):
        owned = self._owner >= 0
        # While trials wait, the chunk ends to let them in.
        waits = len(self._queue) > 0 or bool(self._parked)
        enough = max(0, int(np.sum(owned)) - block_of(owned.size)) if waits else 0
        limits = np.int32(self._chunk or self._limit), np.int32(enough)
        self._begins(report)
        return self._programs.chunk(self._programs.shared, self._problem, self._state, owned, *limits)

    def _land(self, pending, report: Report) -> None:
        began = time.perf_counter()
        self._state, running, useful, steps = jax.block_until_ready(pending)
        self._idle_since = time.perf_counter()
        self._running, steps = np.array(running), int(steps)
        report.steps_useful, report.steps_total = int(useful), steps * self._programs.lanes
        if steps:
            # The first chunks are short, and their time says little of a step: the limit grows by degrees.
            fitting = CHUNK_SECONDS * steps / (self._idle_since - began)
            self._limit = int(max(1, min(fitting, GROWTH * self._limit, 1 << 30)))

    def _begins(self, report: Report) -> None:
        if self._idle_since is not None:
            report.host_seconds += time.perf_counter() - self._idle_since
            self._idle_since = None

    def _blocks(self, lanes: np.ndarray, spare: int):
        """`lanes` in blocks, each with its index array of constant length, filled up with `spare`."""
        # Arrays of one length: another length would be another program to compile.
        size = self._programs.block
        for start in range(0, lanes.size, size):
            block = lanes[start : start + size]
            index = np.full(size, spare, np.int32)
            index[: block.size] = block
            yield block, index


@partial(jax.jit, donate_argnums=0)
def _move(carry, source, index, taken):
    """`carry` with the rows `index` of `source` in the lanes `taken`."""

    def move(old, other):
        return jnp.where(taken.reshape(-1, *[1] * (old.ndim - 1)), other[index], old)

    return jax.tree.map(move, carry, source)
