"""Plan of a measurement: lane counts of every variant, processes and tasks of each, and which start together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxleak.bench import estimate
from jaxleak.bench.settings import OURS, PHASES, PYTORCH, VMAPPED, Settings
from jaxleak.bench.workers import JAX_WORKER, TORCH_VMAP_WORKER, TORCH_WORKER, Entry, WorkerError

NO_TORCH = "PyTorch is not installed (extra `torch`)"
LOOP_LANES = 2  # per core, of plain-vmap and jaxopt: more were slower or no faster
GPU_LANES = (256, 1024)  # tried where nothing is asked for
# On CPUs a process for each core.
PER_CORE = ("pytorch-processes", "pytorch-no-onednn", *VMAPPED, "pytorch-cosine-processes")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The parts of a measurement on a machine with so many `cores`, with or without PyTorch."""

    settings: Settings
    cores: int
    has_torch: bool
    on_gpu: bool = False

    def entries(self, name: str) -> list[Entry]:
        """The lane counts to try for a variant."""
        lanes = self.settings.lanes
        if name in PYTORCH and name not in VMAPPED:
            return [Entry(name)]
        if name not in (*OURS, *VMAPPED):
            lanes = tuple(count for count in lanes if count != "auto") or (LOOP_LANES * self.cores,)
        if not self.settings.lanes and self.on_gpu and name not in PYTORCH:
            lanes = GPU_LANES
        return [Entry(name, count) for count in lanes or (None,)]

    def phases(self, name: str, lanes: int | None = None) -> list[Entry]:
        """The parts of a step of one of jaxleak's variants."""
        return [Entry(name, lanes, phase=phase) for phase in PHASES]

    def processes(self, entry: Entry) -> int:
        """Number of an entry's processes."""
        return self.cores if entry.name in PER_CORE and not self.on_gpu else 1

    def tasks(self, entry: Entry) -> tuple[str, list[dict[str, Any]]]:
        """The module that an entry's processes run, and the first message to each.

        Raises:
            WorkerError: the entry cannot be measured here.
        """
        task: dict[str, Any] = {"variant": entry.name, "lanes": entry.lanes, "settings": self.settings.plain()}
        if entry.name not in PYTORCH:
            return JAX_WORKER, [{**task, "phase": entry.phase}]
        if not self.has_torch:
            raise WorkerError(NO_TORCH)
        vmapped, many = entry.name in VMAPPED, self.processes(entry)
        if self.on_gpu and entry.name in PER_CORE and not vmapped:
            raise WorkerError("there is one GPU and not one per core; pytorch-serial uses it")
        one_thread = entry.name in PER_CORE and not self.on_gpu
        task |= {"threads": 1 if one_thread else None, "device": "cuda" if self.on_gpu else "cpu"}
        task["onednn"] = entry.name != "pytorch-no-onednn"
        task["network"] = self.settings.network()
        if isinstance(entry.lanes, int):
            task["lanes"] = -(-entry.lanes // many)
        return TORCH_VMAP_WORKER if vmapped else TORCH_WORKER, [task] * many

    def waves(self, variants: dict[str, list[Entry]]) -> Iterator[list[Entry]]:
        """Entries that start at the same time, no more processes than cores: what they compile is timed.

        First one of PyTorch's, one of jaxleak's and the quickest, so that there are numbers soon, then the slow ones.
        One that searches for its lanes does so alone: what others compile would disturb it.
        """
        loops = [name for name in PYTORCH if name not in VMAPPED]
        soon = [next((name for name in variants if name in kind), "") for kind in (loops, OURS)]
        cost = partial(estimate.core_seconds, model=self.settings.model)
        rest = sorted((name for name in variants if name not in soon), key=cost, reverse=True)
        order = [*filter(None, soon), *rest[-1:], *rest[:-1]]
        rows = range(max(map(len, variants.values())))
        wave, alone = [], []
        for entry in (entry for row in rows for name in order for entry in variants[name][row : row + 1]):
            if entry.lanes == "auto" or (entry.name == "pytorch-vmap" and entry.lanes is None):
                alone.append([entry])
                continue
            if wave and sum(map(self.processes, [*wave, entry])) > self.cores:
                yield wave
                wave = []
            wave.append(entry)
        yield from [wave, *alone] if wave else alone

    def setup_seconds(self, entries: Iterable[Entry]) -> float:
        """Seconds until `entries` are warm, where the costs were measured."""
        there = [entry for entry in entries if self.has_torch or entry.name not in PYTORCH]
        each = (estimate.core_seconds(entry.name, self.settings.model) * self.processes(entry) for entry in there)
        searches = sum(entry.lanes == "auto" and entry.name in OURS for entry in there)
        return sum(each) / self.cores + searches * estimate.SEARCH_SECONDS
