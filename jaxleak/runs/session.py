"""The process that writes a run directory: trials are judged and written as they end, wherever they ran."""

import contextlib
import functools
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxleak.attacks.objectives import share_left
from jaxleak.attacks.presets import Attack
from jaxleak.attacks.trial import ENDINGS, Job, Outcome
from jaxleak.data.paths import free_text, size_text
from jaxleak.engine import Engine, EngineStats, Finished
from jaxleak.errors import StorageError
from jaxleak.kernels.precision import dtype
from jaxleak.results.matching import BatchMetrics, batch_metrics, ordered, worst_errors
from jaxleak.results.measures import MEASURES
from jaxleak.results.metrics import labels_right, vectors_right
from jaxleak.results.store.columns import NULLS
from jaxleak.results.store.environment import ENVIRONMENT_COLUMNS, environment
from jaxleak.results.store.run import Run
from jaxleak.results.store.shard import ALL
from jaxleak.results.store.versions import mixture
from jaxleak.results.summary import summarise, warnings_after
from jaxleak.results.verdict import classify
from jaxleak.runs.judged import Judged, alike, joined
from jaxleak.runs.progress import Progress
from jaxleak.runs.stop import finishing
from jaxleak.runs.sweep import Sweep
from jaxleak.runs.warnings import warnings_before
from jaxleak.solvers import solver_name

FLUSH_SECONDS = 10.0
AHEAD_SECONDS = 30.0  # compiling that may go on after Ctrl-C


class Enough(NamedTuple):
    """When the restarts of an attack have shown enough: further ones are not run."""

    restarts: int  # that many
    left: float  # leave at most this share of the update, squared


class _EnoughError(Exception):
    """The restarts of an attack have shown enough, or its time is over."""


class _Todo:
    """The trials of one attack that are missing, and the engine that will run them."""

    def __init__(self, sweep: Sweep, attack: Attack, jobs: Job, lanes: int | None):
        self.attack, self.jobs = attack, jobs
        self._sweep, self._lanes = sweep, lanes
        self._ahead: threading.Thread | None = None

    @functools.cached_property
    def _engine(self) -> Engine:
        trial = self._sweep.trial(self.attack)
        return Engine(trial.without_data(), trial.shared(), lanes=self._lanes)

    def compile_ahead(self) -> None:
        """Begin to compile, unless that was done."""
        if self._ahead is None:

            def compile_it() -> None:
                with contextlib.suppress(Exception):  # the run meets it again, where it can be told
                    self._engine.compile_ahead(self.jobs)

            self._ahead = threading.Thread(target=compile_it)
            self._ahead.start()

    def take_engine(self) -> Engine:
        """The engine, once what was begun is compiled."""
        if self._ahead is not None:
            self._ahead.join()
        return self._engine


class Session:
    """The process that writes a run directory: trials are judged and written as they end, wherever they ran."""

    def __init__(self, sweep: Sweep, run: Run, quiet: bool, enough: Enough | None = None, until: float = np.inf):
        self.sweep, self.run, self.enough, self.until = sweep, run, enough, until
        self.done = run.done()
        rows, total = [row for row in run.rows() if run.shard.takes(row["trial"])], run.shard.size(sweep.total)
        self.before = len(rows)
        self.progress = Progress(
            total,
            done=len(rows),
            successes=sum(row["success"] for row in rows),
            write=(lambda line: None) if quiet else None,
        )
        for attack in sweep.attacks:
            if attack.chosen:
                self.progress.say(f"{attack.name}: {attack.chosen}")
        self.here = {key: environment()[key] for key in ENVIRONMENT_COLUMNS}
        if rows and len(rows) < total:
            self.progress.say(f"{run.path}: continuing, {len(rows)} of {total} trials are there")
            if mixed := mixture([*rows, self.here]):
                self.progress.say(f"{run.path}: with those to come {mixed}")
        self.explaining: Counter[str] = Counter()  # restarts of each attack, where it matters
        if enough is not None:
            for row in rows:
                left = share_left(row["objective_kind"], row["objective"], row["update_norm2"])
                self.explaining[row["attack"]] += bool(left <= enough.left)
        self.engines: list[Engine] = []
        self.buffer: list[Judged] = []  # not written
        self.flushed = time.monotonic()
        victim = sweep.victim
        self.measures = MEASURES[victim.modality]
        self.truths = victim.batches(np.asarray(victim.images))
        self.labels = victim.batches(np.asarray(victim.labels))
        self.answers = victim.batches(victim.answers)
        self.constant = {
            "batch": victim.batch,
            "defence": victim.defence_name,
            "client_steps": victim.client.total_steps(victim.batch) if victim.client.trains else 0,
            "trained_steps": int(victim.trained_steps),
            "model": sweep.victim.model_name,
            "dataset": sweep.victim.dataset,
            "split": sweep.victim.split,
            "network": sweep.victim.network,
            "settings_hash": run.settings_hash,
            "dtype": dtype(),
        }

    def run_all(self, lanes: int | None) -> dict[str, Any]:
        """Run what is missing in this process; returns the summary, which is written too."""
        todo = []
        for number, attack in enumerate(self.sweep.attacks):
            jobs = self.sweep.jobs(number, self.done, self.run.shard)
            if jobs.trial.size and not self._seen_enough(attack):
                todo.append(_Todo(self.sweep, attack, jobs, lanes))
        try:
            for left, (current, following) in zip(
                range(len(todo), 0, -1), itertools.zip_longest(todo, todo[1:]), strict=True
            ):
                now = time.monotonic()
                if now < self.until:  # attacks share the time that is left
                    self._run_attack(current, following, now + (self.until - now) / left)
        except BaseException:
            with contextlib.suppress(StorageError):  # what ended the run is told first
                self._end_of_engines()
            raise
        return self._end_of_engines()

    def _end_of_engines(self) -> dict[str, Any]:
        stats = [engine.stats for engine in self.engines]
        return self.end(EngineStats.total(stats) if stats else None)

    def end(self, stats: EngineStats | None, **more: Any) -> dict[str, Any]:
        """Write the summary.

        Args:
            stats: the engines' counters; None if the session had nothing to do, which keeps those of the last one.
            more: further entries; of `engine` those that replace its own.
        """
        replaced, engine = more.pop("engine", {}), None
        if stats is not None:
            engine = {
                "evaluations": self.progress.evaluations,
                "seconds": stats.seconds,
                "evaluations_per_second": self.progress.evaluations / stats.seconds if stats.seconds else 0.0,
                "utilisation": stats.utilisation,
                "compile_seconds": stats.compile_seconds,
                "host_share": stats.host_share,
            } | replaced
        with finishing():
            summary = {**self._summary(engine), **more}
            self.run.write_summary(summary)
        return summary

    def _run_attack(self, current: "_Todo", following: "_Todo | None", until: float) -> None:
        """Run what is left of one attack, up to a time of `time.monotonic`; what follows is compiled meanwhile."""
        attack = current.attack
        self.progress.say(f"{attack.name}: compiling for {len(current.jobs.trial)} trials", passing=True)
        engine = current.take_engine()
        self.engines.append(engine)

        def take(finished: Finished) -> None:
            self.take(attack, finished)
            if self._seen_enough(attack):
                raise _EnoughError

        def tell() -> None:
            self.progress.update(attack.name, engine.stats)
            self.write_due()
            if time.monotonic() >= until:
                raise _EnoughError
            if following is not None and engine.compile_cost < AHEAD_SECONDS:
                following.compile_ahead()

        try:
            with contextlib.suppress(_EnoughError):
                engine.run(current.jobs, take, tell)
        finally:
            engine.forget()
            self.flush()
        self.progress.update(attack.name, engine.stats, force=True)

    def _seen_enough(self, attack: Attack) -> bool:
        return self.enough is not None and self.explaining[attack.name] >= self.enough.restarts

    def take(self, attack: Attack, finished: Finished, made: dict[str, Any] | None = None) -> None:
        """Judge trials that ended; their rows are made when they are written, many at once.

        Args:
            attack: theirs.
            finished: as the engine hands them over.
            made: `ENVIRONMENT_COLUMNS` of the process that ran them; None: this one.
        """
        with finishing():
            if self.enough is not None:
                outcomes: Outcome = finished.outcomes
                left = share_left(attack.objective, outcomes.objective, outcomes.update_norm2)
                self.explaining[attack.name] += int(np.sum(left <= self.enough.left))
            self._keep(Judged(attack, finished, self._statuses(attack, finished), made or self.here))

    def lose(self, attack: Attack, trials: Sequence[int], reason: str) -> None:
        """Record trials as lost, which no worker could finish."""
        jobs, count = self.sweep.jobs_of(np.asarray(trials)), len(trials)
        victim, dummies = self.sweep.victim, attack.dummies or self.sweep.victim.batch
        shape = (dummies, *victim.images.shape[1:])
        nothing, never = np.full(count, np.nan), np.full(count, -1, np.int32)
        outcome = Outcome(
            ending=np.zeros(count, np.int32),
            evaluations=np.zeros(count, np.int32),
            iterations=np.zeros(count, np.int32),
            objective=nothing,
            update_norm2=nothing,
            loss=nothing,
            threshold_iterations=never,
            threshold_evaluations=never,
            label_found=np.full((count, dummies, *self.answers.shape[2:]), -1, np.int32),
            candidate=np.full((count, *shape), np.nan, np.float32),
            objective_trace=np.full((count, 1), np.nan, np.float32),
            mse_trace=np.full((count, 1), np.nan, np.float32),
            snapshots=np.full((count, len(self.sweep.snapshots), *shape), np.nan, np.float32),
        )
        finished = Finished(jobs, outcome, np.zeros(count))
        self._keep(Judged(attack, finished, ["lost"] * count, self.here, reason))

    def _keep(self, judged: Judged) -> None:
        self.buffer.append(judged)
        evaluations = int(np.sum(judged.finished.outcomes.evaluations))
        self.progress.finished(len(judged.statuses), judged.statuses.count("converged"), evaluations)
        self.write_due()

    def write_due(self) -> None:
        """Write what has waited long enough; asked while trials run too, since the next one may end much later."""
        if self.buffer and time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def _statuses(self, attack: Attack, finished: Finished) -> list[str]:
        outcome: Outcome = finished.outcomes
        threshold = self.sweep.criteria.threshold(attack.objective)
        errors = worst_errors(self.measures, outcome.candidate, self.truths[finished.jobs.slot])
        return [
            classify(
                ending=ENDINGS[int(ending)],
                objective=float(objective),
                relative_error=float(error),
                max_abs=float(largest),
                criteria=self.sweep.criteria,
                threshold=threshold,
                knows_truth=self.sweep.victim.knows_truth,
            )
            for ending, objective, error, largest in zip(
                outcome.ending,
                outcome.objective,
                errors,
                self.measures.size(outcome.candidate),
                strict=True,
            )
        ]

    def _rows(self, judged: Judged, metrics: BatchMetrics) -> list[dict[str, Any]]:
        attack, finished, statuses = judged.attack, judged.finished, judged.statuses
        jobs = finished.jobs
        outcome: Outcome = finished.outcomes
        truths = self.labels[jobs.slot]
        dummies = outcome.label_found.shape[1]
        label_found = self._classes(outcome.label_found)
        places, loss = np.arange(dummies) % truths.shape[1], self.sweep.victim.client.loss
        right = labels_right(label_found, truths[:, places])
        if self.sweep.victim.targets is not None or (outcome.label_found.ndim == 3 and loss.targets == "bits"):
            true = self.answers[jobs.slot][:, places]
            right = vectors_right(outcome.label_found, true, loss.targets == "bits")
        recovered = np.sum(metrics.errors < self.sweep.criteria.relative_error, axis=1)
        relative = outcome.objective
        if attack.objective == "l2":
            with np.errstate(divide="ignore", invalid="ignore"):  # an update may be zero
                relative = np.divide(outcome.objective, outcome.update_norm2)
        constant = {
            "attack": attack.name,
            "solver": solver_name(attack.solver),
            "start": attack.init,
            "label_strategy": attack.label,
            "objective_kind": attack.objective,
            "chosen": attack.chosen or None,
            "dummies": dummies,
            "reason": judged.reason,
            **self.constant,
            **judged.made,
        }
        rows = []
        for i, trial in enumerate(jobs.trial):
            rows.append(
                {
                    **NULLS,
                    "image": int(jobs.image[i]),
                    "label": int(truths[i, 0]),
                    "trial": int(trial),
                    "seed": int(jobs.seed[i]),
                    "status": statuses[i],
                    "success": statuses[i] == "converged",
                    "objective": float(outcome.objective[i]),
                    "relative_objective": float(relative[i]),
                    "update_norm2": float(outcome.update_norm2[i]),
                    "victim_loss": float(outcome.loss[i]),
                    "evaluations": int(outcome.evaluations[i]),
                    "iterations": int(outcome.iterations[i]),
                    "threshold_iterations": _reached(outcome.threshold_iterations[i]),
                    "threshold_evaluations": _reached(outcome.threshold_evaluations[i]),
                    "label_found": int(label_found[i, max(metrics.slots[i, 0], 0)]),
                    "label_correct": bool(right[i] == dummies),
                    "labels_right": int(right[i]),
                    "images_recovered": int(recovered[i]),
                    "seconds": float(finished.seconds[i]),
                    **{name: float(values[i]) for name, values in metrics.trials.items()},
                    **constant,
                }
            )
        return rows

    def flush(self) -> None:
        """Write what is finished, on a full disk as much of it as fits; what is not written stays in `buffer`.

        The metrics of many trials cost one wait for the device, not one for each.

        Raises:
            StorageError: not all of it can be written.
        """
        with finishing():
            self.flushed = time.monotonic()
            groups = itertools.groupby(sorted(self.buffer, key=alike), key=alike)
            self.buffer = [joined(list(group)) for _, group in groups]
            while self.buffer:
                judged = self.buffer[0]
                try:
                    self._write(judged)
                except StorageError as error:
                    if not error.full or len(judged.statuses) == 1:
                        raise self._unwritten(error) from error
                    self.buffer[:1] = judged.halves()
                else:
                    del self.buffer[0]

    def _unwritten(self, error: StorageError) -> StorageError:
        """What is told of results that cannot be written; `error` is that of the part of one trial."""
        rows = [row for judged in self.buffer for row in self._rows(judged, self._metrics(judged))]
        stored, total = len(self.run.done() - self.done) + self.before, self.progress.total
        there = f"{stored} of {total} trials are stored, {len(rows)} that ended are not"
        if not error.full:
            text = f"{error} {there}; mend that, and the same command continues there."
        else:
            needed = size_text(error.needed * max(total - stored, 1))
            text = (
                f"{self.run.path}: the disk is full; {there}. The rest takes about {needed}, and "
                f"{free_text(self.run.path)}. Make room, and the same command continues there."
            )
        return StorageError(text, full=error.full, needed=error.needed, rows=rows)

    def _metrics(self, judged: Judged) -> BatchMetrics:
        finished = judged.finished
        return batch_metrics(self.measures, finished.outcomes.candidate, self.truths[finished.jobs.slot])

    def _write(self, judged: Judged) -> None:
        finished, metrics = judged.finished, self._metrics(judged)
        outcome: Outcome = finished.outcomes
        arrays = {
            "trial": finished.jobs.trial,
            "candidate": self.measures.together(ordered(outcome.candidate, metrics.slots)).astype(np.float32),
            "objective_trace": outcome.objective_trace.astype(np.float32),
            "mse_trace": outcome.mse_trace.astype(np.float32),
            "snapshots": self._kept(finished.jobs.seed, ordered(outcome.snapshots, metrics.slots, axis=2)),
        }
        if self.sweep.victim.batch > 1:
            label_found = self._classes(outcome.label_found)
            arrays |= {"slots": metrics.slots, "labels_found": label_found, "errors": metrics.errors}
        if outcome.label_found.ndim == 3:
            arrays |= {"targets_found": ordered(outcome.label_found, metrics.slots).astype(np.float64)}
        self.run.append(self._rows(judged, metrics), arrays)

    def _classes(self, label_found: np.ndarray) -> np.ndarray:
        """What was found as classes: of a vector its largest entry."""
        return label_found if label_found.ndim == 2 else np.asarray(self.sweep.victim.client.loss.label(label_found))

    def _kept(self, seeds: np.ndarray, snapshots: np.ndarray) -> np.ndarray:
        """The snapshots as they are stored; those of later seeds than asked for are black."""
        kept, first = self.measures.snapshot(self.measures.together(snapshots)), self.sweep.snapshot_seeds
        if first is not None:
            kept[seeds >= first] = 0
        return kept

    def _summary(self, engine: dict[str, Any] | None) -> dict[str, Any]:
        sweep = self.sweep
        run = self.run if self.run.shard == ALL else Run.open(self.run.path)  # with what there is of other shards
        rows = run.rows()
        summary = summarise(
            rows,
            sweep.criteria,
            expected=sweep.total,
            engine=engine or _stored_engine(self.run.path),
            settings_hash=self.run.settings_hash,
        )
        warnings = warnings_before(sweep.victim, sweep.attacks, sweep.seeds) + warnings_after(rows, sweep.criteria)
        training = {} if sweep.victim.training is None else {"training": sweep.victim.training}
        return {**summary, "shards": run.shards(sweep.total), "warnings": warnings, **training}


def _stored_engine(path: Path) -> dict[str, float] | None:
    import json

    try:
        return json.loads((path / "summary.json").read_text())["engine"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reached(count: np.ndarray) -> int | None:
    return int(count) if count >= 0 else None
