"""One measurement from beginning to end: start workers, choose lanes, measure in turns, report."""

import importlib.util
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxleak.bench.report import report
from jaxleak.bench.settings import OURS, PHASES, PYTORCH, Settings
from jaxleak.bench.workers import JAX_WORKER, TORCH_WORKER, Entry, Team, WorkerError
from jaxleak.errors import InputError

Say = Callable[[str], None]
NO_TORCH = "PyTorch is not installed (extra `torch`)"


class Bench:
    """A measurement under way; `result` is what is known of it at any moment.

    Args:
        settings: what to measure.
        say: takes progress lines.

    Raises:
        InputError: no variant that was asked for can be measured here.
    """

    def __init__(self, settings: Settings, say: Say):
        self.settings, self.say = settings, say
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.machine = Entry("machine")
        self.variants: list[Entry] = []  # one for each variant that was asked for, the lanes chosen
        self.tried: list[Entry] = []  # every lane count of those that have a choice
        self.phases: list[Entry] = []
        self.interrupted = False
        self._started: list[Entry] = []
        self._spent = 0.0  # seconds of measurement
        if not self.has_torch and set(settings.only) <= set(PYTORCH):
            raise InputError(f"`only` names {', '.join(settings.only)}, but {NO_TORCH}.")

    @property
    def has_torch(self) -> bool:
        """Whether PyTorch can be imported, without importing it."""
        return importlib.util.find_spec("torch") is not None

    @property
    def device(self) -> str:
        """What computes, for people."""
        ready = self.machine.ready
        if ready.get("platform") == "cpu":
            return f"{self.cores} CPU cores ({platform.machine()})"
        return f"{ready['devices']}x {ready['device']}" if ready else "unknown"

    def run(self) -> None:
        """Measure; Ctrl-C ends it early, with `interrupted` set."""
        try:
            self._prepare_machine()
            plan = {name: self._candidates(name) for name in self.settings.only}
            several = sum(len(entries) for entries in plan.values() if len(entries) > 1)
            turns = several + self.settings.rounds * (1 + len(plan))
            seconds = self.settings.seconds / turns
            for name, entries in plan.items():
                self.variants.append(self._choose(name, entries, seconds))
            self._rounds([self.machine, *self.variants], self.settings.rounds, seconds)
            if self.settings.profile:
                self._profile()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            for entry in self._started:
                entry.close()

    def result(self) -> dict[str, Any]:
        """The report so far."""
        return report(self)

    def _prepare_machine(self) -> None:
        began = time.perf_counter()
        self._start(self.machine)
        if self.machine.failed:
            raise InputError(f"`bench` cannot measure this machine: {self.machine.failed}")
        ready = self.machine.ready
        self.settings = replace(self.settings, width=ready["width"])
        self.say(f"{self.device}: ready after {time.perf_counter() - began:.1f} s")

    def _candidates(self, name: str) -> list[Entry]:
        """The lane counts to try for a variant."""
        if name in PYTORCH:
            return [Entry(name)]
        lanes = self.settings.lanes
        if not lanes:
            per_device = (2, 4, 8, 16) if self.machine.ready["platform"] == "cpu" else (64, 256, 1024)
            devices = self.cores if self.machine.ready["platform"] == "cpu" else 1
            lanes = ("auto", *(count * devices for count in per_device))
        if name not in OURS:
            lanes = tuple(count for count in lanes if count != "auto") or (4 * self.cores,)
        return [Entry(name, count) for count in lanes]

    def _choose(self, name: str, entries: list[Entry], seconds: float) -> Entry:
        """Try each lane count once; keep the engine's own choice if it is among them, else the fastest."""
        best: Entry | None = None
        for entry in entries:
            self._start(entry)
            if len(entries) > 1:
                self.tried.append(entry)
                self._measure(entry, seconds, entry.trial)
            if entry.failed:
                continue
            loser = entry
            if best is None or entry.lanes == "auto" or (best.lanes != "auto" and entry.rate() > best.rate()):
                loser, best = best, entry
            if loser is not None:
                loser.close()
        return best or Entry(name, failed=entries[0].failed)

    def _start(self, entry: Entry) -> None:
        """Start the processes of an entry and wait until they are warm."""
        began = time.perf_counter()
        self._started.append(entry)
        try:
            module, tasks = self._tasks(entry)
            entry.team = Team(module, tasks)
        except WorkerError as error:
            self._fail(entry, error)
            return
        entry.ready = entry.team.ready
        if entry is not self.machine:
            compiled = entry.ready["compile_seconds"]
            self.say(f"{entry.title}: warm after {time.perf_counter() - began:.1f} s ({compiled:.1f} s compiling)")

    def _tasks(self, entry: Entry) -> tuple[str, list[dict[str, Any]]]:
        settings = self.settings.plain()
        if entry.name not in PYTORCH:
            task = {"variant": entry.name, "lanes": entry.lanes, "phase": entry.phase, "settings": settings}
            return JAX_WORKER, [task]
        if not self.has_torch:
            raise WorkerError(NO_TORCH)
        gpu = self.machine.ready["platform"] != "cpu"
        many = entry.name.endswith("-processes")
        if gpu and many:
            raise WorkerError("there is one GPU and not one per core; pytorch-serial uses it")
        task: dict[str, Any] = {"variant": entry.name, "settings": settings}
        task |= {"threads": 1 if many else None, "device": "cuda" if gpu else "cpu"}
        return TORCH_WORKER, [task] * (self.cores if many else 1)

    def _rounds(self, entries: list[Entry], rounds: int, seconds: float) -> None:
        """Measure in turns, so that whatever else the machine does meets all alike."""
        for number in range(rounds):
            if number and self._spent > self.settings.seconds:  # units are long
                self.say(f"{self._spent:.0f} s are measured: no more than {number} rounds")
                return
            # Forth and back: none is always the one after the same other.
            for entry in entries if number % 2 == 0 else reversed(entries):
                self._measure(entry, seconds, entry.rounds)
            rates = ", ".join(f"{entry.title} {entry.rate():,.0f}" for entry in entries[1:] if not entry.failed)
            self.say(f"round {number + 1} of {rounds}, evaluations/s: {rates}")

    def _measure(self, entry: Entry, seconds: float, into: list[dict[str, Any]]) -> None:
        if entry.failed or entry.team is None:
            return
        began = time.perf_counter()
        try:
            into.append(entry.team.measure(seconds))
        except WorkerError as error:
            self._fail(entry, error)
        self._spent += time.perf_counter() - began

    def _fail(self, entry: Entry, error: WorkerError) -> None:
        entry.failed = str(error)
        entry.close()
        self.say(f"{entry.title}: not measured: {entry.failed}")

    def _profile(self) -> None:
        """The phases of a step, in turns as well, for another half of the time."""
        for variant in self.variants:
            if variant.name in OURS and not variant.failed:
                lanes = variant.ready["lanes"]
                variant.close()
                self.phases += [Entry(variant.name, lanes, phase=phase) for phase in PHASES]
        for entry in self.phases:
            self._start(entry)
        seconds = self.settings.seconds / 2 / max(1, len(self.phases) * self.settings.rounds)
        for _ in range(self.settings.rounds):
            for entry in self.phases:
                self._measure(entry, seconds, entry.rounds)
