"""A worker: holds the compiled engine and the victims of a sweep, takes trials in blocks and hands back what ended."""

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxleak.engine import Finished
    from jaxleak.runs.sweep import Sweep


class Hello(NamedTuple):
    """Versions, settings and size of a worker, by which the driver accepts or refuses it."""

    made: dict[str, Any]  # `ENVIRONMENT_COLUMNS`
    dtype: str
    settings_hash: str
    lanes: int  # that it begins with
    host: str
    pid: int


class Results(NamedTuple):
    """A worker's report to the driver: trials that ended, and its counters."""

    finished: "list[tuple[int, Finished]]"  # attacks and their trials
    lanes: int
    evaluations: int  # all so far, and the rest of what its engines count
    steps_total: int
    seconds: float
    compile_seconds: float
    error: str | None  # why it can do no more


class Worker:
    """Runs in a process of its own; its methods may be called from several threads, as Ray does."""

    def __init__(self, sweep: "Sweep | Any", x64: bool, lanes: int | None, cores: int | None):
        """`sweep`: what is run; `lanes`: None chooses; `cores`: of a CPU, each becomes a device; None: all."""
        import jax

        from jaxleak.engine.devices import use_all_cores

        jax.config.update("jax_enable_x64", x64)
        use_all_cores(cores)
        self._sweep, self._lanes = sweep, lanes
        self._todo: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._giving = threading.Lock()
        self._now: tuple[int, Any] | None = None  # attack and its open queue
        self._changed = threading.Condition()
        self._finished: list[tuple[int, Finished]] = []
        self._engines: list[Any] = []
        self._error: str | None = None
        threading.Thread(target=self._work, daemon=True).start()

    def hello(self) -> Hello:
        """Versions, settings and size of this worker."""
        import os
        import socket

        import jax

        from jaxleak.engine.choice import first_lanes
        from jaxleak.kernels.precision import dtype
        from jaxleak.results.store.description import settings_hash
        from jaxleak.results.store.environment import ENVIRONMENT_COLUMNS, environment

        made, devices = environment(), jax.devices()
        return Hello(
            made={key: made[key] for key in ENVIRONMENT_COLUMNS},
            dtype=dtype(),
            settings_hash=settings_hash(self._sweep.settings()),
            lanes=self._lanes or first_lanes(devices[0]) * len(devices),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def give(self, attack: int, trials: list[int]) -> None:
        """Add trials to run; an attack is ended before another one begins."""
        from jaxleak.engine.lanes import JobQueue

        jobs = self._sweep.jobs_of(np.asarray(trials))
        with self._giving:
            if self._now is not None and self._now[0] == attack:
                self._now[1].extend(jobs)
                return
            if self._now is not None:
                self._now[1].close()
            self._now = attack, JobQueue(jobs, more=True)
            self._todo.put(self._now)

    def collect(self, seconds: float) -> Results:
        """Trials that ended since the last call; waits at most so many seconds for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._error, seconds)
            finished, self._finished = self._finished, []
            stats = [engine.stats for engine in self._engines]
            return Results(
                finished=finished,
                lanes=stats[-1].lanes if stats and stats[-1].lanes else 0,
                evaluations=sum(stat.steps_useful for stat in stats),
                steps_total=sum(stat.steps_total for stat in stats),
                seconds=sum(stat.seconds for stat in stats),
                compile_seconds=sum(stat.compile_seconds for stat in stats),
                error=self._error,
            )

    def _work(self) -> None:
        try:
            while True:
                attack, queue = self._todo.get()
                self._run(attack, queue)
        except BaseException as error:  # the driver is told, and raises it or goes on without this worker
            with self._changed:
                self._error = f"{type(error).__name__}: {' '.join(str(error).split())}"
                self._changed.notify_all()

    def _run(self, attack: int, queue: Any) -> None:
        from jaxleak.engine import Engine

        trial = self._sweep.trial(self._sweep.attacks[attack])
        engine = Engine(trial.without_data(), trial.shared(), lanes=self._lanes)
        self._engines.append(engine)

        def take(finished: "Finished") -> None:
            with self._changed:
                self._finished.append((attack, finished))
                self._changed.notify_all()

        engine.run(queue, take)
        engine.forget()
