"""A run of the engine: one queue, one thread a device, and the calling thread, which hands finished trials over."""

import queue as queues
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields
from typing import Any

import jax

from jaxleak.engine import memory
from jaxleak.engine.choice import WORTH, LaneSearch, first_lanes
from jaxleak.engine.lanes import Finished, JobQueue, Lanes, Report
from jaxleak.engine.programs import Program, Programs, Traced, compile_for, traced_for
from jaxleak.errors import InputError, check_positive

SMALLER = "Use a smaller history, model or image."

INDEXED = 2**31 - 1  # elements of an array that XLA indexes with 32 bits; with more it is slower, or refuses


@dataclass
class EngineStats:
    """Counters and times of an engine over all its runs, and how well the lanes were used.

    Example:
        >>> from jaxleak.engine import EngineStats
        >>> EngineStats(steps_useful=90, steps_total=100).utilisation
        0.9
    """

    lanes: int = 0
    devices: int = 0
    trials_done: int = 0
    trials_running: int = 0
    trials_waiting: int = 0
    steps_useful: int = 0  # lane-steps spent on running trials
    steps_total: int = 0  # lane-steps computed
    seconds: float = 0.0  # without compilation
    compile_seconds: float = 0.0
    host_seconds: float = 0.0  # with nothing to compute because the host was busy, averaged over devices

    @classmethod
    def total(cls, several: Iterable["EngineStats"]) -> "EngineStats":
        """The sum of several engines that ran one after the other."""
        several = list(several)
        return cls(**{one.name: sum(getattr(stats, one.name) for stats in several) for one in fields(cls)})

    @property
    def utilisation(self) -> float:
        """Useful lane-steps over all lane-steps computed, in 0..1."""
        return self.steps_useful / self.steps_total if self.steps_total else 0.0

    @property
    def host_share(self) -> float:
        """Time outside compiled calls over all time, in 0..1; compilation left out of both."""
        return self.host_seconds / self.seconds if self.seconds else 0.0


@dataclass(eq=False)
class Engine:
    """Runs queues of jobs through one program. Compiled programs are kept from one run to the next.

    Attributes:
        program: the trial.
        shared: its shared arrays.
        lanes: trials at once over all devices, rounded up to a multiple of the devices; fewer, with a warning, where
            the memory is too small. None chooses, and in a long run tries twice and half as many.
        chunk: steps per compiled call, at most; None takes half a second's worth.
        devices: where to run; None is all devices.
    """

    program: Program
    shared: Any
    lanes: int | None = None
    chunk: int | None = None
    devices: Sequence[Any] | None = None
    stats: EngineStats = field(default_factory=EngineStats)

    def __post_init__(self):
        for name in ("lanes", "chunk"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name), integer=True)
        self._traced: Traced | None = None
        self._placed: dict[Any, Any] = {}  # the shared arrays, by where they live
        self._programs: dict[int, dict[Any, Programs]] = {}  # by lanes per device and where they live
        self.compile_cost = 0.0  # seconds, of the last compilation
        self.best: int | None = None  # lanes per device that a search ended with
        self.ceiling: int | None = None  # lanes per device above which the memory ran out

    @property
    def programs(self) -> dict[Any, Programs]:
        """The compiled functions for the most lanes so far, by where they live."""
        return self._programs[max(self._programs)]

    def run(self, jobs: Any, on_finished: Callable[[Finished], None], on_chunk: Callable[[], None] = lambda: None):
        """Run every job; hand finished ones over as they end.

        Args:
            jobs: a pytree of numpy integer arrays with the queue as leading axis, or a queue of such that is left open:
                then the run ends when it is closed and all that was added has been run.
            on_finished: called with trials that ended, while the next chunk computes.
            on_chunk: called once per chunk, for progress.

        Both are called from the calling thread only. An exception from either (Ctrl-C included) ends the run when the
        chunks that are computing end; trials handed over before stay handed over.

        Raises:
            InputError: a single lane per device does not fit in the memory.
        """
        queue = jobs if isinstance(jobs, JobQueue) else JobQueue(jobs)
        if queue.total:
            _Run(self, queue, on_finished, on_chunk).work()

    def compile_ahead(self, jobs: Any) -> None:
        """Compile what `run` of these jobs begins with; call it in another thread, beside other work.

        Nothing is compiled where the memory may not hold the lanes: `run` decides then.
        """
        queue, began = JobQueue(jobs), time.perf_counter()
        devices = list(self.devices or jax.devices())[: queue.total]
        if devices:
            traced, lanes = self.trace(queue.job_type), self.wanted_lanes(queue.total, devices)
            if lanes * memory.tree_bytes(traced.trial_type) < memory.budget(devices):
                self.compile(traced, devices, lanes)
        self.stats.compile_seconds += time.perf_counter() - began

    def check_memory(self, jobs: Any) -> None:
        """Trace a trial of these jobs, and see that one fits; the leaves of `shared` may be types.

        Raises:
            InputError: a single lane per device does not fit in the memory.
        """
        queue = JobQueue(jobs)
        devices = list(self.devices or jax.devices())[: queue.total]
        if devices:
            traced = self.trace(queue.job_type)
            room = memory.budget(devices) - memory.tree_bytes(traced.shared_type)
            check_fits(memory.tree_bytes(traced.trial_type), room)

    def forget(self) -> None:
        """Let go of the compiled programs and arrays; the counters stay."""
        self._placed.clear()
        self._programs.clear()
        self._traced = None

    def wanted_lanes(self, total: int, devices: list[Any]) -> int:
        """Lanes per device that were asked for, or are a good start; no more than `total` jobs need."""
        each = total / len(devices)
        size = memory.tree_bytes(self._traced.problem_type) if self._traced is not None else 0
        lanes = (
            self.best or first_lanes(devices[0], each, size) if self.lanes is None else -(-self.lanes // len(devices))
        )
        lanes = min(lanes, self.ceiling or lanes)
        needed = min(lanes, -(-total // len(devices)))
        return min((there for there in self._programs if needed <= there <= lanes), default=needed)

    def trace(self, job_type: Any) -> Traced:
        """The functions over lanes."""
        if self._traced is None:
            shared = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.shared)
            self._traced = traced_for(self.program, shared, job_type)
        return self._traced

    def compile(self, traced: Traced, devices: list[Any], lanes: int) -> list[Programs]:
        """The compiled functions for each device."""
        began, homes = time.perf_counter(), homes_of(devices)
        there = self._programs.get(lanes, {})
        new = [home for home in dict.fromkeys(homes) if home not in there]
        if new:
            for home in new:
                if home not in self._placed:
                    self._placed[home] = jax.device_put(self.shared, home)
            there = there | compile_for(traced, {home: self._placed[home] for home in new}, lanes)
            self._programs[lanes] = there
            self.compile_cost = time.perf_counter() - began
        return [there[home] for home in homes]


class _Run:
    """One queue on its way through the lanes: phases, in each of which every device keeps its number of lanes."""

    def __init__(self, engine: Engine, queue: JobQueue, on_finished, on_chunk):
        self._engine, self._queue, self._on_finished, self._on_chunk = engine, queue, on_finished, on_chunk
        self._stats = engine.stats
        self._stats.trials_waiting, self._stats.trials_running = queue.total, 0
        self._entered = 0  # trials that were let into lanes
        self._seconds_before = self._stats.seconds
        self._most = sys.maxsize if queue.open else queue.total  # trials that there may be
        self._devices = list(engine.devices or jax.devices())[: self._most]
        self._traced = engine.trace(queue.job_type)
        self._room = memory.budget(self._devices) - memory.tree_bytes(self._traced.shared_type)
        self._search: LaneSearch | None = None
        self._coming: Future[list[Programs]] | None = None  # programs for other lanes, while they are compiled

    def work(self) -> None:
        crew = self._hire(self._engine.wanted_lanes(self._most, self._devices))
        if self._engine.lanes is None and self._engine.best is None:
            limit = min(self._room // crew[0].bytes_each, self._most // (2 * len(crew)), self._indexed)
            self._search = LaneSearch(crew[0].count, len(crew), limit)
        try:
            error = self._phase(crew)
            while error is not None or (self._coming is not None and self._unfinished):
                crew = self._exchange(crew) if error is None else self._shrink(crew, error)
                error = self._phase(crew)
        finally:
            if self._coming is not None:  # nothing compiles on beyond the run, whose settings may not last
                wait([self._coming])

    @property
    def _unfinished(self) -> bool:
        return bool(self._stats.trials_waiting + self._stats.trials_running)

    # --- how many lanes ---

    def _hire(self, wanted: int) -> list[Lanes]:
        """Lanes for every device: `wanted` on each, or what the memory allows."""
        began = time.perf_counter()
        size = memory.tree_bytes(self._traced.trial_type)
        check_fits(size, self._room)
        lanes = max(1, min(wanted, self._room // size, self._indexed))
        while True:
            try:
                programs = self._engine.compile(self._traced, self._devices, lanes)
                fitting = max(1, self._room // programs[0].bytes_per_lane)
                if lanes <= fitting:
                    crew = [Lanes(compiled, self._queue, self._engine.chunk) for compiled in programs]
                    break
                lanes = fitting
            except Exception as error:
                lanes = _fewer(lanes, error)
        if lanes < wanted and self._engine.lanes is not None:
            count, size = len(self._devices), programs[0].bytes_per_lane / 1e6
            warnings.warn(
                f"{wanted * count} lanes of {size:,.1f} MB do not fit in the memory; running {lanes * count}",
                stacklevel=5,
            )
        self._stats.lanes, self._stats.devices = lanes * len(crew), len(crew)
        self._stats.compile_seconds += time.perf_counter() - began
        return crew

    @property
    def _indexed(self) -> int:
        """Lanes whose largest array, as the history of L-BFGS, still has 32-bit indices."""
        return INDEXED // max(leaf.size for leaf in jax.tree.leaves(self._traced.trial_type))

    def _shrink(self, crew: list[Lanes], error: Exception) -> list[Lanes]:
        """Half the lanes, after memory ran out; the trials that were in lanes begin again."""
        lanes = _fewer(crew[0].count, error)
        self._engine.ceiling = lanes
        warnings.warn(f"out of memory with {self._stats.lanes} lanes; running {lanes * len(crew)}", stacklevel=5)
        return self._restart(crew, lanes)

    def _restart(self, crew: list[Lanes], lanes: int) -> list[Lanes]:
        if self._search is not None:
            self._search.settle()
        for member in crew:
            self._queue.put_back(member.release())
        crew.clear()  # and with it the arrays
        self._entered -= self._stats.trials_running
        self._stats.trials_waiting, self._stats.trials_running = self._queue.total - self._entered, 0
        return self._hire(lanes)

    def _exchange(self, crew: list[Lanes]) -> list[Lanes]:
        """The same trials in the lanes for which programs have been compiled."""
        assert self._coming is not None
        assert self._search is not None
        coming, self._coming = self._coming, None
        count = crew[0].count
        try:
            programs = coming.result()
            crew = [member.moved(other) for member, other in zip(crew, programs, strict=True)]
        except Exception as error:
            _fewer(2, error)  # raises it, unless it says that memory ran out
            return self._restart(crew, count)
        self._search.moved(crew[0].count)
        self._stats.lanes = crew[0].count * len(crew)
        return crew

    def _exchange_is_due(self, report: Report) -> bool:
        """Count the report for the search; True once programs for other lanes are ready."""
        search = self._search
        if self._coming is not None:
            return self._coming.done()
        if search is None or search.settled:
            return False
        search.add(report)
        if search.measured and self._seconds_left() > WORTH * self._engine.compile_cost:
            present, lanes = search.lanes, search.advise()
            if lanes != present:
                compiler = ThreadPoolExecutor(1)
                self._coming = compiler.submit(self._engine.compile, self._traced, self._devices, lanes)
                compiler.shutdown(wait=False)
            if search.settled:
                self._engine.best = lanes
        return False

    def _seconds_left(self) -> float:
        """Seconds to go if trials take as long as those so far, a running one half; 0 while too few are done to say."""
        waiting, running = self._stats.trials_waiting, self._stats.trials_running
        done, seconds = self._queue.total - waiting - running, self._stats.seconds - self._seconds_before
        return seconds * (waiting + running / 2) / (done + running / 2) if done >= running else 0.0

    # --- the devices at work ---

    def _phase(self, crew: list[Lanes]) -> Exception | None:
        """Let every device work until no trial is left, other lanes are due, or one fails: then its error."""
        reports, stop = queues.SimpleQueue(), threading.Event()
        threads = [threading.Thread(target=member.work, args=(reports.put, stop), daemon=True) for member in crew]
        began, before = time.perf_counter(), self._stats.seconds
        error, working = None, len(crew)
        for thread in threads:
            thread.start()
        try:
            while working:
                member, report = reports.get()
                self._stats.seconds = before + time.perf_counter() - began
                working -= report.ended
                error = error or report.error
                self._take(report, len(crew))
                member.read()
                if error is not None or self._exchange_is_due(report):
                    stop.set()
        finally:
            stop.set()
            for member, thread in zip(crew, threads, strict=True):
                member.read()
                thread.join()
        return error

    def _take(self, report: Report, devices: int) -> None:
        """Count what a device did, and hand over what it finished."""
        stats, left = self._stats, 0 if report.finished is None else report.finished.seconds.size
        stats.trials_done += left
        stats.trials_running += report.entered - left
        self._entered += report.entered
        stats.trials_waiting = self._queue.total - self._entered
        stats.steps_useful += report.steps_useful
        stats.steps_total += report.steps_total
        stats.host_seconds += report.host_seconds / devices
        if report.finished is not None:
            self._on_finished(report.finished)
        if not report.ended:
            self._on_chunk()


def homes_of(devices: list[Any]) -> list[Any]:
    """The device on which each device's program and arrays live.

    CPU devices share their memory, and a compiled program may run in several threads at once. One program for all is as
    fast as one for each, and is compiled once (experiments/NOTES.md).
    """
    return [devices[0]] * len(devices) if devices[0].platform == "cpu" else devices


def check_fits(size: int, room: int) -> None:
    """Raise if a trial of so many bytes cannot run where `room` bytes may be taken.

    Raises:
        InputError: it takes more than is free.
    """
    if size > room / (1 - memory.KEPT_FREE):
        raise InputError(
            f"`lanes` cannot be fewer than one per device, and one takes {size / 1e9:,.1f} GB, more than is free. "
            f"{SMALLER}"
        )


def _fewer(lanes: int, error: Exception) -> int:
    """Half of `lanes` per device, if it was memory that ran out; any other error is raised."""
    if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
        raise error
    if lanes == 1:
        raise InputError(
            f"`lanes` cannot be fewer than one per device, and the memory is too small for it"
            f" ({str(error).splitlines()[0]}). {SMALLER}"
        ) from error
    return lanes // 2
