"""A sweep: attacks x images x seeds on one victim, in a run directory that can be resumed."""

import hashlib
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxleak import cautions
from jaxleak.attacker import check_attack
from jaxleak.attacks import Attack, get_attack
from jaxleak.engine import Engine, Finished
from jaxleak.environment import ENVIRONMENT_COLUMNS, environment
from jaxleak.errors import InputError, check_positive, check_seed
from jaxleak.labels import labels_right
from jaxleak.matching import BatchMetrics, batch_metrics, mosaic, ordered, unmosaic, worst_errors
from jaxleak.progress import Progress
from jaxleak.shard import ALL, Shard, parse_shard
from jaxleak.solvers import solver_name
from jaxleak.stats import ENDINGS, Criteria, classify, summarise
from jaxleak.store import Run
from jaxleak.trial import Job, Outcome, Trial
from jaxleak.victim import Victim

SNAPSHOTS = (0, 10, 20, 40, 60, 80, 120, 200)
FLUSH_SECONDS = 10.0
MOST_TRIALS = 10_000_000  # of one sweep: its queue lies in memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """What is to be run; nothing here depends on lanes, devices or where the results go.

    Attributes:
        victim: who is attacked.
        attacks: with which attacks.
        seeds: restarts per update and attack; trial seeds 0..seeds-1.
        start_seed: from which starts are drawn. A start depends on it, the image's index and the trial seed only.
        criteria: what counts as success.
        snapshots: iterations at which candidates are kept for pictures.
        starts: given starts (see `Trial`), instead of drawn ones.
    """

    victim: Victim
    attacks: tuple[Attack, ...]
    seeds: int
    start_seed: int = 0
    criteria: Criteria = field(default_factory=Criteria)
    snapshots: tuple[int, ...] = SNAPSHOTS
    starts: Mapping[str, np.ndarray] | None = None

    def __post_init__(self):
        check_positive("seeds", self.seeds, integer=True)
        check_seed("start_seed", self.start_seed)
        if not self.attacks:
            raise InputError("`attack` must name at least one attack.")
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise InputError(f"`attack` names must be distinct; got {', '.join(names)}.")
        if self.total > MOST_TRIALS:
            raise InputError(
                f"`seeds` times images times attacks must be at most {MOST_TRIALS:,}; got {self.total:,}. "
                "Use fewer seeds, and further runs with another start_seed."
            )
        if any(iteration < 0 for iteration in self.snapshots):
            raise InputError(f"`snapshots` must be iterations, 0 or above; got {list(self.snapshots)}.")
        needed = {"image"} | {"label" for attack in self.attacks if attack.label == "joint"}
        if self.starts is not None and not needed <= self.starts.keys():
            raise InputError(f"`starts` must hold {', '.join(sorted(needed))}; it has {', '.join(self.starts)}.")
        for name, start in (self.starts or {}).items():
            if len(start) < self.seeds:
                raise InputError(f"`starts` holds {len(start)} rows of {name}; `seeds` asks for {self.seeds}.")
        for attack in self.attacks:
            check_attack(attack, self.victim)

    @property
    def total(self) -> int:
        """Trials of the whole sweep."""
        return len(self.attacks) * self.victim.updates * self.seeds

    def trial(self, attack: Attack) -> Trial:
        """One attack on the victim."""
        return Trial(
            attack=attack,
            victim=self.victim,
            threshold=self.criteria.threshold(attack.objective),
            snapshots=self.snapshots,
            starts=None if self.starts is None else dict(self.starts),
            start_seed=self.start_seed,
        )

    def check(self) -> None:
        """Trace what trials begin with, where only that shows that an attack fits the victim.

        Raises:
            InputError: one does not.
        """
        for attack in self.attacks:
            if attack.needs_check or self.victim.batch > 1:
                self.trial(attack).check()

    def settings(self) -> dict[str, Any]:
        """Everything a result depends on, as plain data."""
        starts = None
        if self.starts is not None:
            starts = {name: _digest(array) for name, array in sorted(self.starts.items())}
        return {
            "victim": {**self.victim.settings(), "pixels": _digest(self.victim.images)},
            "attacks": [attack.settings() for attack in self.attacks],
            "seeds": self.seeds,
            "start_seed": self.start_seed,
            "starts": starts,
            "criteria": asdict(self.criteria),
            "snapshots": list(self.snapshots),
            "dtype": _dtype(),
        }

    def jobs(self, attack: int, done: set[int], shard: Shard = ALL) -> Job:
        """The trials of one attack that are still to do by this shard, seed by seed over the updates."""
        images, count = np.asarray(self.victim.indices)[:: self.victim.batch], self.victim.updates
        seed, slot = (axis.ravel() for axis in np.indices((self.seeds, count)))
        trial = (attack * count + slot) * self.seeds + seed
        todo = ~np.isin(trial, sorted(done)) & shard.takes(trial)
        return Job(*(axis[todo].astype(np.int32) for axis in (trial, slot, images[slot], seed)))


@dataclass(eq=False)
class Result:
    """What a sweep left: rows, rates and pictures. The run directory holds the same.

    Attributes:
        run: the run directory, open for reading.
        summary: as `summary.json`.
    """

    run: Run
    summary: dict[str, Any]
    _keep: Any = None  # a temporary directory lives as long as the result

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dict per trial."""
        return self.run.rows()

    def success_rate(self, attack: str | None = None) -> tuple[float, tuple[float, float], int]:
        """Success rate over all images, its 95 % Wilson interval and the number of trials.

        Raises:
            InputError: several attacks were run and `attack` names none of them.
        """
        groups = {group["attack"]: group for group in self.summary["groups"] if group["image"] is None}
        if attack is None and len(groups) == 1:
            attack = next(iter(groups))
        if attack not in groups:
            raise InputError(f"`attack` must be one of {', '.join(groups)}; got {attack!r}.")
        group = groups[attack]
        return group["success_rate"], tuple(group["ci95"]), group["trials"]

    def reconstructions(self, trials: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """`{"trial": [n], "candidate": [n, h, w, c]}` of the given trials, or of all.

        Of batches, `candidate` is [n, b, h, w, c], in the order of the truth.
        """
        arrays = self.run.arrays(keys=["trial", "candidate"], trials=trials)
        batch = self.run.settings["victim"]["batch"]
        return arrays if batch == 1 else {**arrays, "candidate": unmosaic(arrays["candidate"], batch)}

    def table(self):
        """A rich table of the rates; `rich.print` shows it."""
        from jaxleak.tables import summary_table

        return summary_table([self.summary])

    def plot(self, path: str | Path | None = None) -> list[Path]:
        """Draw every figure into `path` (default: `figures` in the run directory); returns the files."""
        from jaxleak.plots import draw_all

        return draw_all(self.run, path)


def attack(
    victim: Victim,
    attacks: str | Attack | Sequence[str | Attack],
    *,
    seeds: int,
    out: str | Path | None = None,
    lanes: int | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Attack `victim` from `seeds` random starts per image, all at once.

    Args:
        victim: see `make_victim`.
        attacks: one or several names ("dlg", "idlg") or `Attack` objects.
        seeds: restarts per image and attack.
        out: run directory; an interrupted run with the same settings continues there. None uses a temporary one.
        lanes: trials at once over all devices, fewer where they do not fit in the memory; None chooses.
        quiet: no progress lines.
        settings: further fields of `Sweep` (`start_seed`, `criteria`, `snapshots`, `starts`).

    Returns:
        Rows, rates and pictures.

    Raises:
        InputError: a setting is wrong, or `out` holds a run with other settings.
    """
    several = [attacks] if isinstance(attacks, str | Attack) else list(attacks)
    sweep = Sweep(victim=victim, attacks=tuple(get_attack(one) for one in several), seeds=seeds, **settings)
    return run_sweep(sweep, out, lanes=lanes, quiet=quiet)


def run_sweep(
    sweep: Sweep,
    out: str | Path | None = None,
    *,
    lanes: int | None = None,
    quiet: bool = False,
    shard: Shard | str = ALL,
) -> Result:
    """Run what is still missing of a sweep. Ctrl-C writes what is finished and raises `KeyboardInterrupt`.

    Args:
        sweep: what to run.
        out: run directory, or None for a temporary one.
        lanes: trials at once over all devices, fewer where they do not fit in the memory; None chooses.
        quiet: no progress lines.
        shard: which part of the sweep this process runs, "0/8" to "7/8" of eight that write to the same `out`.

    Raises:
        InputError: `out` holds a run with other settings, or cannot be written.
    """
    shard = parse_shard(shard) if isinstance(shard, str) else shard
    if shard.count > 1 and out is None:
        raise InputError("`shard` needs `out`, the run directory that all shards write to.")
    if lanes is not None:
        check_positive("lanes", lanes, integer=True)
    sweep.check()
    for caution in cautions.before(sweep.victim, sweep.attacks, sweep.seeds):
        warnings.warn(caution, stacklevel=2)
    temporary = tempfile.TemporaryDirectory(prefix="jaxleak-") if out is None else None
    path = Path(temporary.name) / "run" if temporary else Path(out or "")
    with Run.create_or_resume(path, sweep.settings(), environment(), shard) as run:
        victim = sweep.victim
        victim.write_checkpoint(path)
        first = slice(None, None, victim.batch)
        pictures = mosaic(victim.images.reshape(victim.updates, victim.batch, *victim.images.shape[1:]))
        run.write_truth(np.asarray(victim.indices)[first], np.asarray(victim.labels)[first], pictures)
        summary = _Session(sweep, run, quiet).run_all(lanes)
    return Result(Run.open(path), summary, temporary)


class _Session:
    """One process working on a run directory."""

    def __init__(self, sweep: Sweep, run: Run, quiet: bool):
        self.sweep, self.run = sweep, run
        self.done = run.done()
        rows, total = [row for row in run.rows() if run.shard.takes(row["trial"])], run.shard.size(sweep.total)
        self.progress = Progress(
            total,
            done=len(rows),
            successes=sum(row["success"] for row in rows),
            write=(lambda line: None) if quiet else None,
        )
        if rows and len(rows) < total:
            self.progress.say(f"{run.path}: continuing, {len(rows)} of {total} trials are there")
        self.engines: list[Engine] = []
        self.buffer: list[tuple[Finished, list[str]]] = []  # finished and judged, not written
        self.flushed = time.monotonic()
        victim = sweep.victim
        self.truths = np.asarray(victim.images).reshape(victim.updates, victim.batch, *victim.images.shape[1:])
        self.labels = np.asarray(victim.labels).reshape(victim.updates, victim.batch)
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
            "dtype": _dtype(),
            **{key: environment()[key] for key in ENVIRONMENT_COLUMNS},
        }

    def run_all(self, lanes: int | None) -> dict[str, Any]:
        try:
            for number, attack in enumerate(self.sweep.attacks):
                jobs = self.sweep.jobs(number, self.done, self.run.shard)
                if jobs.trial.size:
                    self.run_attack(attack, jobs, lanes)
        finally:
            summary = self.summarise()
            self.run.write_summary(summary)
        return summary

    def run_attack(self, attack: Attack, jobs: Job, lanes: int | None) -> None:
        trial = self.sweep.trial(attack)
        engine = Engine(trial, trial.shared(), lanes=lanes)
        self.engines.append(engine)
        self.progress.say(f"{attack.name}: compiling for {len(jobs.trial)} trials")
        try:
            engine.run(
                jobs,
                lambda finished: self.take(attack, finished),
                lambda: self.progress.update(attack.name, engine.stats),
            )
        finally:
            self.flush(attack)
        self.progress.update(attack.name, engine.stats, force=True)

    def take(self, attack: Attack, finished: Finished) -> None:
        """Judge trials that ended; their rows are made when they are written, many at once."""
        statuses = self.statuses(attack, finished)
        self.buffer.append((finished, statuses))
        evaluations = int(np.sum(finished.outcomes.evaluations))
        self.progress.finished(len(statuses), statuses.count("converged"), evaluations)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush(attack)

    def statuses(self, attack: Attack, finished: Finished) -> list[str]:
        outcome: Outcome = finished.outcomes
        threshold = self.sweep.criteria.threshold(attack.objective)
        errors = worst_errors(outcome.candidate, self.truths[finished.jobs.slot])
        return [
            classify(
                ending=ENDINGS[int(ending)],
                objective=float(objective),
                relative_error=float(error),
                max_abs=float(largest),
                reached_objective=bool(objective < threshold),
                criteria=self.sweep.criteria,
                threshold=threshold,
                knows_truth=self.sweep.victim.knows_truth,
            )
            for ending, objective, error, largest in zip(
                outcome.ending,
                outcome.objective,
                errors,
                np.abs(outcome.candidate).max(axis=(1, 2, 3, 4)),
                strict=True,
            )
        ]

    def rows(
        self, attack: Attack, finished: Finished, statuses: list[str], metrics: BatchMetrics
    ) -> list[dict[str, Any]]:
        jobs = finished.jobs
        outcome: Outcome = finished.outcomes
        truths = self.labels[jobs.slot]
        dummies = outcome.label_found.shape[1]
        right = labels_right(outcome.label_found, truths[:, np.arange(dummies) % truths.shape[1]])
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
            "dummies": dummies,
            **self.constant,
        }
        rows = []
        for i, trial in enumerate(jobs.trial):
            rows.append(
                {
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
                    "label_found": int(outcome.label_found[i, max(metrics.slots[i, 0], 0)]),
                    "label_correct": bool(right[i] == dummies),
                    "labels_right": int(right[i]),
                    "images_recovered": int(recovered[i]),
                    "seconds": float(finished.seconds[i]),
                    **{name: float(values[i]) for name, values in metrics.trials.items()},
                    **constant,
                }
            )
        return rows

    def flush(self, attack: Attack) -> None:
        """Write what is finished. The metrics of many trials cost one wait for the device, not one for each."""
        buffer, self.buffer = self.buffer, []
        self.flushed = time.monotonic()
        if not buffer:
            return
        finished: Finished = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part for part, _ in buffer))
        outcome: Outcome = finished.outcomes
        metrics = batch_metrics(outcome.candidate, self.truths[finished.jobs.slot])
        arrays = {
            "trial": finished.jobs.trial,
            "candidate": mosaic(ordered(outcome.candidate, metrics.slots)).astype(np.float32),
            "objective_trace": outcome.objective_trace.astype(np.float32),
            "mse_trace": outcome.mse_trace.astype(np.float32),
            "snapshots": _quantise(mosaic(ordered(outcome.snapshots, metrics.slots))),
        }
        if self.sweep.victim.batch > 1:
            arrays |= {"slots": metrics.slots, "labels_found": outcome.label_found, "errors": metrics.errors}
        statuses = [status for _, part in buffer for status in part]
        self.run.append(self.rows(attack, finished, statuses, metrics), arrays)

    def summarise(self) -> dict[str, Any]:
        sweep = self.sweep
        run = self.run if self.run.shard == ALL else Run.open(self.run.path)  # with what there is of other shards
        rows = run.rows()
        summary = summarise(
            rows,
            sweep.criteria,
            expected=sweep.total,
            engine=self.engine_summary(),
            settings_hash=self.run.settings_hash,
        )
        found = cautions.before(sweep.victim, sweep.attacks, sweep.seeds) + cautions.after(rows, sweep.criteria)
        training = {} if sweep.victim.training is None else {"training": sweep.victim.training}
        return {**summary, "shards": run.shards(sweep.total), "warnings": found, **training}

    def engine_summary(self) -> dict[str, float] | None:
        """Of this session; a session that had nothing to do keeps what the last one wrote."""
        if not self.engines:
            return _stored_engine(self.run.path)
        stats = [engine.stats for engine in self.engines]
        seconds, total = sum(one.seconds for one in stats), sum(one.steps_total for one in stats)
        return {
            "evaluations": self.progress.evaluations,
            "seconds": seconds,
            "evaluations_per_second": self.progress.evaluations / seconds if seconds else 0.0,
            "utilisation": sum(one.steps_useful for one in stats) / total if total else 0.0,
            "compile_seconds": sum(one.compile_seconds for one in stats),
            "host_share": sum(one.host_seconds for one in stats) / seconds if seconds else 0.0,
        }


def _stored_engine(path: Path) -> dict[str, float] | None:
    import json

    try:
        return json.loads((path / "summary.json").read_text())["engine"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _dtype() -> str:
    return "float64" if jax.config.jax_enable_x64 else "float32"  # pyright: ignore[reportAttributeAccessIssue]


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


def _quantise(images: np.ndarray) -> np.ndarray:
    return np.round(np.clip(np.nan_to_num(images), 0, 1) * 255).astype(np.uint8)


def _reached(count: np.ndarray) -> int | None:
    return int(count) if count >= 0 else None
