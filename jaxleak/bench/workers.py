"""The parent's end: worker processes that are started, warmed up, asked one after the other, and ended."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

JAX_WORKER = "jaxleak.bench.worker"
TORCH_WORKER = "jaxleak.bench.pytorch_loop"
TORCH_VMAP_WORKER = "jaxleak.bench.pytorch_vmap"


class WorkerError(Exception):
    """A worker could not do what it was asked; the message is one line."""


class Worker:
    """One process.

    Args:
        module: run with `python -m`.
        task: its first message.
    """

    def __init__(self, module: str, task: dict[str, Any]):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # Several processes share a GPU: none may take most of its memory beforehand.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self.send(task)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None

    def receive(self, kind: str) -> dict[str, Any]:
        """Wait for the answer `kind`.

        Raises:
            WorkerError: the worker failed or ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer = json.loads(line)
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer[kind]

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return f"the process ended with code {code}" + (f": {said[-1][:300]}" if said else "")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # what was still to be sent
                    pass


class Team:
    """Workers of one variant that are measured at the same time; mostly one. They start at once.

    Attributes:
        ready: what the first said when it was warm, once `wait` has returned; lanes are summed over all.
    """

    def __init__(self, module: str, tasks: Sequence[dict[str, Any]]):
        self._workers: list[Worker] = []
        try:
            for task in tasks:
                self._workers.append(Worker(module, task))
        except BaseException:
            self.close()
            raise
        self.ready: dict[str, Any] = {}

    def wait(self) -> None:
        """Wait until all are warm.

        Raises:
            WorkerError: one of them failed.
        """
        answers = [worker.receive("ready") for worker in self._workers]
        self.ready = {**answers[0], "compile_seconds": max(answer["compile_seconds"] for answer in answers)}
        if "lanes" in self.ready:
            self.ready["lanes"] = sum(answer["lanes"] for answer in answers)

    def measure(self, seconds: float) -> dict[str, Any]:
        """Measure for about `seconds`; rates and memory are summed over the workers.

        Raises:
            WorkerError: one of them failed.
        """
        for worker in self._workers:
            worker.send({"measure": seconds})
        answers = [worker.receive("measured") for worker in self._workers]
        if len(answers) == 1 and "seconds" not in answers[0]:
            return answers[0]
        return {
            "evaluations_per_second": sum(answer["evaluations"] / answer["seconds"] for answer in answers),
            "lane_iterations_per_second": sum(answer["lane_iterations"] / answer["seconds"] for answer in answers),
            "seconds": max(answer["seconds"] for answer in answers),
            "peak_bytes": sum(answer["peak_bytes"] for answer in answers),
        }

    def close(self) -> None:
        """End all of them."""
        for worker in self._workers:
            worker.close()


@dataclass(eq=False)
class Entry:
    """One variant with one lane count (or one phase of the profile), and its measurements.

    Attributes:
        name: of the variant.
        lanes: as asked: a count, "auto", or None for the worker's own.
        ready: what the workers said when they were warm.
        trial: the first look, by which lanes are chosen.
        rounds: what they measured after that.
        failed: why there is no number.
    """

    name: str
    lanes: int | str | None = None
    phase: str = ""
    ready: dict[str, Any] = field(default_factory=dict)
    trial: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""
    team: Team | None = None

    @property
    def title(self) -> str:
        """Name of the entry, for people."""
        asked = f", {self.lanes} lanes" if self.lanes is not None else ""
        return f"{self.name}{asked}" + (f", {self.phase}" if self.phase else "")

    def rate(self) -> float:
        """Evaluations per second of the last measurement; 0 if there is none."""
        measured = self.rounds or self.trial
        return measured[-1].get("evaluations_per_second", 0.0) if measured else 0.0

    def close(self) -> None:
        """End its processes."""
        if self.team is not None:
            self.team.close()
            self.team = None
