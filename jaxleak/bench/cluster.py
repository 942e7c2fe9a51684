"""A cluster on a simulated clock: the real scheduler, workers that compile, are slow, fail and come back.

python -m jaxleak.bench.cluster --workers 1 10 100 1000 --trials-per-worker 20000
"""

import argparse
import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxleak.runs.ray.scheduler import Scheduler


@dataclass(frozen=True)
class Cluster:
    """A cluster to simulate.

    Attributes:
        workers: their number.
        lanes: trials that each runs at once.
        trial_seconds: median time of a trial in its lane; times are log-normal.
        spread: standard deviation of its logarithm.
        start_seconds: until a worker that joins has compiled.
        latency: from a worker to the driver and back, in seconds.
        look_seconds: between two looks of a worker at its lanes.
        driver_seconds: of the driver for each trial: judged, written. It does one thing at a time.
        hours_between_failures: of one worker, exponential; infinite: none fails.
        restart_seconds: until a failed worker is back.
        stragglers: share of the workers that are slow.
        slowdown: how much slower they are.
    """

    workers: int
    lanes: int = 256
    trial_seconds: float = 30.0
    spread: float = 0.6
    start_seconds: float = 40.0
    latency: float = 0.01
    look_seconds: float = 0.5
    driver_seconds: float = 2e-3
    hours_between_failures: float = math.inf
    restart_seconds: float = 60.0
    stragglers: float = 0.0
    slowdown: float = 3.0


KINDS: dict[str, dict[str, float]] = {
    "quiet": {},
    "failures every 2 h": {"hours_between_failures": 2.0},
    "a tenth 3 times slower": {"stragglers": 0.1},
    "both": {"hours_between_failures": 2.0, "stragglers": 0.1},
}


class _Worker:
    """One worker; its lanes are a heap of when each ends."""

    def __init__(self, name: int, slow: float):
        self.name, self.slow = name, slow
        self.clear()
        self.ready = 0.0
        self.useful = 0.0  # seconds in lanes that ended in a result

    def clear(self) -> None:
        """Empty its lanes, and void what was to come."""
        self.ends: list[tuple[float, float, int]] = []  # end, length, trial
        self.waiting: list[int] = []
        self.looks = 0.0  # when it looks at its lanes next

    def harvest(self, now: float) -> list[int]:
        """The trials that have ended."""
        done = []
        while self.ends and self.ends[0][0] <= now:
            _, length, trial = heapq.heappop(self.ends)
            self.useful += length
            done.append(trial)
        return done

    def refill(self, lanes: int, begin: float, durations: Iterator[float]) -> None:
        """Let waiting trials into lanes that are free."""
        free = lanes - len(self.ends)
        for trial in self.waiting[:free]:
            length = next(durations) * self.slow
            heapq.heappush(self.ends, (begin + length, length, trial))
        del self.waiting[:free]


class _Simulation:
    def __init__(self, cluster: Cluster, trials: int, seed: int):
        self.cluster, self.draws = cluster, np.random.default_rng(seed)
        self.scheduler = Scheduler([range(trials)])
        slow = self.draws.permutation(cluster.workers) < round(cluster.stragglers * cluster.workers)
        self.workers = [_Worker(name, cluster.slowdown if slow[name] else 1.0) for name in range(cluster.workers)]
        self.durations = self._durations()
        self.events: list[tuple[float, int, str, int]] = []
        self.order = itertools.count()
        self.now = self.driver_free = self.driver_busy = 0.0
        self.failures = self.repeated = 0

    def _durations(self) -> Iterator[float]:
        while True:
            drawn = np.exp(self.cluster.spread * self.draws.standard_normal(4096))
            yield from (self.cluster.trial_seconds * drawn).tolist()

    def at(self, when: float, what: str, worker: _Worker) -> None:
        heapq.heappush(self.events, (when, next(self.order), what, worker.name))

    def look_at(self, when: float, worker: _Worker) -> None:
        worker.looks = when
        self.at(when, "look", worker)

    def run(self) -> None:
        for worker in self.workers:
            self.at(0.0, "join", worker)
        while not self.scheduler.finished and self.events:
            self.now, _, what, name = heapq.heappop(self.events)
            worker = self.workers[name]
            if what == "join":
                self.join(worker)
            elif what == "fail":
                self.fail(worker)
            elif worker.looks == self.now and name in self.scheduler.members:
                self.look(worker)

    def join(self, worker: _Worker) -> None:
        self.scheduler.join(worker.name, self.cluster.lanes, self.now)
        worker.ready = self.now + self.cluster.start_seconds
        if math.isfinite(self.cluster.hours_between_failures):
            life = self.draws.exponential(3600 * self.cluster.hours_between_failures)
            self.at(self.now + life, "fail", worker)
        self.look(worker)

    def fail(self, worker: _Worker) -> None:
        self.failures += 1
        self.repeated += len(self.scheduler.members[worker.name].held)
        self.scheduler.leave(worker.name)
        worker.clear()
        self.at(self.now + self.cluster.restart_seconds, "join", worker)
        for other in self.workers:  # those that had nothing left are asked again
            if not other.ends and not other.waiting and other.name in self.scheduler.members:
                self.look_at(self.now + self.cluster.latency, other)

    def look(self, worker: _Worker) -> None:
        """Return ended trials to the driver, and take new ones from it; the trials at hand go on meanwhile."""
        done = worker.harvest(self.now)
        worker.refill(self.cluster.lanes, max(self.now, worker.ready), self.durations)
        cost = self.cluster.driver_seconds * len(done)
        self.driver_free = max(self.driver_free, self.now) + cost
        self.driver_busy += cost
        self.scheduler.returns(worker.name, done, self.now)
        block = self.scheduler.next_block(worker.name, self.now)
        if block is not None:
            worker.waiting += block.trials
            arrives = self.driver_free + self.cluster.latency
            worker.refill(self.cluster.lanes, max(arrives, worker.ready), self.durations)
        if worker.ends:
            self.look_at(max(worker.ends[0][0], self.now + self.cluster.look_seconds), worker)


def simulate(cluster: Cluster, trials: int, seed: int = 0) -> dict[str, Any]:
    """Run so many trials, and report their ends and how well the lanes were used.

    Returns:
        `seconds` on the simulated clock; `efficiency`: seconds in lanes that ended in a result, over all seconds of all
        lanes; `driver_share`: of the time that the driver was busy; `lost` trials, given up after their retries;
        `repeated` trials that began again; `failures` of workers.
    """
    simulation = _Simulation(cluster, trials, seed)
    simulation.run()
    seconds, scheduler = max(simulation.now, simulation.driver_free), simulation.scheduler
    return {
        "workers": cluster.workers,
        "trials": scheduler.returned,
        "seconds": seconds,
        "efficiency": sum(worker.useful for worker in simulation.workers)
        / (cluster.workers * cluster.lanes * seconds or 1.0),
        "driver_share": simulation.driver_busy / seconds if seconds else 0.0,
        "lost": len(scheduler.given_up),
        "repeated": simulation.repeated,
        "failures": simulation.failures,
    }


def measure_driver(trials: int = 512) -> float:
    """Seconds of this machine's driver for a trial: judged, compressed and written to a temporary run directory.

    The trials are DLG's on LeNet and pictures of 32 by 32 pixels, with traces of 300 iterations and the usual
    snapshots; what came out of them is noise, which compresses worst.
    """
    import tempfile
    import time
    from pathlib import Path

    import jaxleak
    from jaxleak.attacks.trial import Outcome
    from jaxleak.engine import Finished
    from jaxleak.results.store.environment import environment
    from jaxleak.results.store.run import Run
    from jaxleak.runs.session import Session

    victim = jaxleak.make_victim("lenet", jaxleak.load_dataset("photos"), [6])
    sweep = jaxleak.Sweep(victim=victim, attacks=(jaxleak.DLG,), seeds=trials)
    draws, images = np.random.default_rng(0), (1, 32, 32, 3)
    counts = np.full(trials, 300, np.int32)
    outcome = Outcome(
        ending=np.zeros(trials, np.int32),
        evaluations=counts,
        iterations=counts,
        objective=draws.random(trials),
        update_norm2=draws.random(trials),
        loss=draws.random(trials),
        threshold_iterations=counts,
        threshold_evaluations=counts,
        label_found=np.zeros((trials, 1), np.int32),
        candidate=draws.random((trials, *images), np.float32),
        objective_trace=draws.random((trials, 300), np.float32),
        mse_trace=draws.random((trials, 300), np.float32),
        snapshots=draws.random((trials, len(sweep.snapshots), *images), np.float32),
    )
    finished = Finished(sweep.jobs_of(np.arange(trials)), outcome, np.zeros(trials))
    measured = []
    for _ in range(3):  # the first one compiles
        with (
            tempfile.TemporaryDirectory() as folder,
            Run.create_or_resume(Path(folder) / "run", sweep.settings(), environment()) as run,
        ):
            session = Session(sweep, run, quiet=True)
            began = time.perf_counter()
            session.take(sweep.attacks[0], finished)
            session.flush()
            measured.append((time.perf_counter() - began) / trials)
    return min(measured)


def main() -> None:
    """Print a table: quiet, with failures, with stragglers, with both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--trials-per-worker", type=int, default=20_000)
    parser.add_argument("--driver-seconds", type=float, default=Cluster.driver_seconds)
    options = parser.parse_args()
    print("| workers | cluster | hours | efficiency | driver busy | failures | trials begun again | lost |")
    print("|---|---|---|---|---|---|---|---|")
    for count in options.workers:
        base = Cluster(count, driver_seconds=options.driver_seconds)
        for name, changes in KINDS.items():
            result = simulate(replace(base, **changes), options.trials_per_worker * count)
            print(
                f"| {count:,} | {name} | {result['seconds'] / 3600:.2f} | {result['efficiency']:.3f} | "
                f"{result['driver_share']:.2f} | {result['failures']} | {result['repeated']:,} | {result['lost']} |"
            )


if __name__ == "__main__":
    main()
