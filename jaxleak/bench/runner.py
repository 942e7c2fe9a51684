"""One measurement from beginning to end: start workers, choose lanes, measure in turns, report."""

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxleak.bench import estimate
from jaxleak.bench.plan import NO_TORCH, Plan
from jaxleak.bench.report import report
from jaxleak.bench.settings import OURS, PYTORCH, Settings
from jaxleak.bench.workers import Entry, Team, WorkerError
from jaxleak.errors import InputError
from jaxleak.results.store.environment import processor

Say = Callable[[str], None]
LOOK_SECONDS = 1.0  # at most, of the first look
SHORTEST = 0.3  # seconds of a measurement


class Bench:
    """A measurement under way; `result` is what is known of it at any moment.

    Args:
        settings: what to measure.
        say: takes progress lines.

    Attributes:
        measured_seconds: spent on measuring so far, the first looks included.
        setup_seconds: spent on everything else so far.

    Raises:
        InputError: no variant that was asked for can be measured here.
    """

    def __init__(self, settings: Settings, say: Say):
        self.say = say
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.machine = Entry("machine")
        self.phases: list[Entry] = []
        self.interrupted = False
        self.measured_seconds = self.setup_seconds = 0.0
        self._plan = Plan(settings=settings, cores=self.cores, has_torch=self.has_torch)
        self._entries: dict[str, list[Entry]] = {}  # of each variant, one for each number of lanes
        self._chosen: dict[str, Entry] = {}
        self._started: list[Entry] = []
        self._late = 0.0  # seconds by which a measurement outlasts what was asked for
        if not self.has_torch and set(settings.only) <= set(PYTORCH):
            raise InputError(f"`only` names {', '.join(settings.only)}, but {NO_TORCH}.")

    @property
    def settings(self) -> Settings:
        """Settings of the measurement."""
        return self._plan.settings

    @property
    def variants(self) -> list[Entry]:
        """One entry for each variant that was started, with the best number of lanes so far."""
        return [self._chosen[name] for name in self.settings.only if name in self._chosen]

    @property
    def tried(self) -> list[Entry]:
        """Every number of lanes of the variants that have a choice."""
        several = [entry for entries in self._entries.values() if len(entries) > 1 for entry in entries]
        return [entry for entry in several if entry.trial or entry.failed]

    @property
    def has_torch(self) -> bool:
        """True if PyTorch can be imported; it is not imported."""
        return importlib.util.find_spec("torch") is not None

    @property
    def device(self) -> str:
        """Name of the device that computes, for people."""
        ready = self.machine.ready
        if ready.get("platform") == "cpu":
            return f"{self.cores} CPU cores ({processor()})"
        return f"{ready['devices']}x {ready['device']}" if ready else "unknown"

    def run(self) -> None:
        """Measure; Ctrl-C ends it early, with `interrupted` set."""
        began = time.perf_counter()
        try:
            self._announce()
            self._prepare_machine()
            self._looks(began)
            self._rounds()
            if self.settings.profile:
                self._profile()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            for entry in self._started:
                entry.close()
            self.setup_seconds = time.perf_counter() - began - self.measured_seconds
            measured, setup = self.measured_seconds, self.setup_seconds
            self.say(f"{measured:.0f} s measured, {setup:.0f} s to start, compile and choose lanes")

    def result(self) -> dict[str, Any]:
        """The report so far."""
        return report(self)

    # --- before the measurement ---

    def _announce(self) -> None:
        """Say how long all of it will take."""
        plan, names = self._plan, self.settings.only
        entries = [self.machine, *(entry for name in names for entry in plan.entries(name))]
        if self.settings.profile:
            entries += [entry for name in names if name in OURS for entry in plan.phases(name)]
        setup, seconds = estimate.pace() * plan.setup_seconds(entries), self._seconds
        self.say(
            f"about {estimate.clock(setup + seconds)} in all: {estimate.clock(setup)} to start and compile"
            f" {len(names)} variants, {seconds:.0f} s to measure them"
        )

    @property
    def _seconds(self) -> float:
        """Seconds of all measuring together."""
        return self.settings.seconds * (1.5 if self.settings.profile else 1.0)

    def _prepare_machine(self) -> None:
        self._start([self.machine])
        if self.machine.failed:
            raise InputError(f"`bench` cannot measure this machine: {self.machine.failed}")
        ready = self.machine.ready
        settings = replace(self.settings, width=ready["width"])
        self._plan = replace(self._plan, settings=settings, on_gpu=ready["platform"] != "cpu")
        self._entries = {name: self._plan.entries(name) for name in settings.only}

    def _start(self, entries: list[Entry]) -> None:
        """Start the processes of all entries at once and wait until they are warm."""
        began = time.perf_counter()
        self._started += entries
        for entry in entries:
            try:
                entry.team = Team(*self._plan.tasks(entry))
            except WorkerError as error:
                self._fail(entry, error)
        for entry in entries:
            if entry.team is not None:
                self._wait(entry, began)

    def _wait(self, entry: Entry, began: float) -> None:
        assert entry.team is not None
        try:
            entry.team.wait()
        except WorkerError as error:
            self._fail(entry, error)
            return
        entry.ready = entry.team.ready
        what = self.device if entry is self.machine else entry.title
        seconds, compiled = time.perf_counter() - began, entry.ready["compile_seconds"]
        self.say(f"{what}: ready after {seconds:.1f} s ({compiled:.1f} s compiling)")
        if not entry.ready.get("settled", True):
            self.say(f"{entry.title}: the search for lanes was stopped at {entry.ready['lanes']}")

    def _looks(self, began: float) -> None:
        """Start all entries, wave by wave, and measure each once."""
        entries = [entry for entries in self._entries.values() for entry in entries]
        turns = len(entries) + self.settings.rounds * (1 + len(self._entries))
        seconds = min(LOOK_SECONDS, self.settings.seconds / turns)
        for number, wave in enumerate(self._plan.waves(self._entries)):
            self._start(wave)
            for entry in wave:
                self._look(entry, seconds)
            rest = [entry for entry in entries if entry not in self._started]
            if number == 1 and rest:
                expected = self._plan.setup_seconds
                setup = time.perf_counter() - began - self.measured_seconds
                setup *= expected(rest) / expected(self._started)
                left = setup + self._seconds - self.measured_seconds
                self.say(f"about {estimate.clock(left)} to go, {estimate.clock(setup)} of it to start the others")
        self._late = max(0.0, self.measured_seconds / len(entries) - seconds)

    def _look(self, entry: Entry, seconds: float) -> None:
        """Measure once; of a variant's entries keep the one with its own choice if there is, else the fastest."""
        self._measure(entry, seconds, entry.trial)
        if not entry.failed:
            self.say(f"{entry.title}: first look: {entry.rate():,.0f} evaluations/s (lanes: {entry.ready['lanes']})")
        best = self._chosen.get(entry.name)
        if best is None or _better(entry, best):
            self._chosen[entry.name] = entry
        for other in (best, entry):
            if other is not None and other is not self._chosen[entry.name]:
                other.close()

    # --- the measurement ---

    def _rounds(self) -> None:
        """Measure in turns, so that whatever else the machine does meets all alike."""
        rounds, late = self.settings.rounds, self._late
        for number in range(rounds):
            entries = [entry for entry in (self.machine, *self.variants) if not entry.failed]
            if not entries:
                return
            left = (self.settings.seconds - self.measured_seconds) / len(entries)
            fitting = min(rounds - number, int(left / (SHORTEST + late)))
            if number and fitting < 1:
                self.say(f"{self.measured_seconds:.0f} s are measured: no more than {number} of {rounds} rounds")
                return
            seconds, before = max(SHORTEST, left / max(1, fitting) - late), self.measured_seconds
            # Forth and back: none is always the one after the same other.
            for entry in entries if number % 2 == 0 else reversed(entries):
                self._measure(entry, seconds, entry.rounds)
            late = max(0.0, (self.measured_seconds - before) / len(entries) - seconds)
            rates = ", ".join(f"{entry.name} {entry.rate():,.0f}" for entry in entries[1:] if not entry.failed)
            self.say(f"round {number + 1} of {number + max(1, fitting)}, evaluations/s: {rates}")

    def _measure(self, entry: Entry, seconds: float, into: list[dict[str, Any]]) -> None:
        if entry.failed or entry.team is None:
            return
        began = time.perf_counter()
        try:
            into.append(entry.team.measure(seconds))
        except WorkerError as error:
            self._fail(entry, error)
        self.measured_seconds += time.perf_counter() - began

    def _fail(self, entry: Entry, error: WorkerError) -> None:
        entry.failed = str(error)
        entry.close()
        self.say(f"{entry.title}: not measured: {entry.failed}")

    def _profile(self) -> None:
        """The phases of a step, in turns as well, for another half of the time."""
        for variant in self.variants:
            if variant.name in OURS and not variant.failed:
                variant.close()
                phases = self._plan.phases(variant.name, variant.ready["lanes"])
                self.phases += phases
                self._start(phases)
        seconds = self.settings.seconds / 2 / max(1, len(self.phases) * self.settings.rounds)
        for _ in range(self.settings.rounds):
            for entry in self.phases:
                self._measure(entry, seconds, entry.rounds)


def _better(entry: Entry, best: Entry) -> bool:
    if entry.failed or best.failed:
        return not entry.failed
    return entry.lanes == "auto" or (best.lanes != "auto" and entry.rate() > best.rate())
