"""The data of a page: the runs, and their series, one for each attack of each run."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxleak.errors import InputError
from jaxleak.results.store.columns import Row
from jaxleak.results.store.readable import check_readable
from jaxleak.results.store.run import Run
from jaxleak.results.summary import current_summary
from jaxleak.results.tables import partial_text


@dataclass(frozen=True, eq=False)
class Source:
    """One run, read.

    Attributes:
        run: open for reading.
        name: the end of its path that tells it from the others.
        rows: in the order of their trials.
        summary: as it stands.
        truth: see `Run.truth`; None if it cannot be read.
        warnings: what may mislead, and what is missing.
    """

    run: Run
    name: str
    rows: list[Row]
    summary: dict[str, Any]
    truth: dict[str, np.ndarray] | None
    warnings: list[str]

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Iterations at which candidates were kept."""
        return tuple(self.run.settings.get("snapshots") or ())

    @property
    def batch(self) -> int:
        """Images of an update."""
        return int(self.run.settings["victim"].get("batch", 1))

    @property
    def attacks(self) -> list[dict[str, Any]]:
        """Settings of the attacks of which a trial has finished."""
        begun = {row["attack"] for row in self.rows}
        return [attack for attack in self.run.settings["attacks"] if attack["name"] in begun]

    @property
    def threat(self) -> dict[str, Any]:
        """The run's settings, with these attacks only; with all where none has a trial yet."""
        return {**self.run.settings, "attacks": self.attacks or self.run.settings["attacks"]}

    def recorded(self, row: Row) -> bool:
        """True if the candidates of a trial were kept at the snapshots."""
        seeds = self.run.settings.get("snapshot_seeds")
        return bool(self.snapshots) and (seeds is None or row["seed"] < seeds)


class Series(NamedTuple):
    """One attack of one run."""

    source: int
    attack: str
    label: str  # tells it from the others
    values: dict[str, str]  # by facet


def read_runs(paths: Sequence[str | Path]) -> list[Source]:
    """Open every run first, then read.

    Raises:
        InputError: one is no run directory, or its run.json is damaged; or one is named twice.
    """
    if not paths:
        raise InputError("`runs` must name at least one run directory.")
    twice = {str(path) for path in paths if [str(other) for other in paths].count(str(path)) > 1}
    if twice:
        raise InputError(f"`runs` must be distinct; {sorted(twice)[0]} is named twice.")
    opened = [_open(path) for path in paths]
    names = _names([str(path) for path in paths])
    return [_read(run, name, messages) for (run, messages), name in zip(opened, names, strict=True)]


def _open(path: str | Path) -> tuple[Run, list[str]]:
    """An open run, and the warnings raised while it was opened."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = Run.open(path)
    return run, [" ".join(str(warning.message).split()) for warning in caught]


def _read(run: Run, name: str, messages: list[str]) -> Source:
    check_readable(run)
    rows = sorted(run.rows(), key=lambda row: row["trial"])
    summary = current_summary(run)
    missing = []
    if not rows:
        missing.append(f"no trial has finished yet, of {summary['trials_expected']}")
    elif not summary["complete"]:
        missing.append(f"{partial_text(summary)}; the rates are those of the trials that finished, the fast ones first")
    try:
        truth = run.truth()
    except InputError:
        truth = None
        missing.append("the private images (truth.npz) are missing or damaged: no truth is shown, and no SSIM")
    lost = sum(row["status"] == "lost" for row in rows)
    if lost:
        missing.append(f"{lost} of {len(rows)} trials were lost, and count as failed")
    return Source(run, name, rows, summary, truth, [*messages, *missing, *summary["warnings"]])


def _names(paths: list[str]) -> list[str]:
    """The shortest ends of the paths that differ from each other."""
    parts = [[part for part in path.rstrip("/").split("/") if part] or [path] for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(pieces[-length:]) for pieces in parts]
        if len(set(names)) == len(names):
            return names
    return paths


def _victim(name: str) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda settings, _attack: settings["victim"].get(name)


# What series may differ in, and how it is read from a run's settings and those of the attack.
FACETS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "attack": lambda _settings, attack: attack.get("name"),
    "solver": lambda _settings, attack: attack.get("solver", {}).get("name"),
    "start": lambda _settings, attack: attack.get("init"),
    "label": lambda _settings, attack: attack.get("label"),
    "objective": lambda _settings, attack: attack.get("objective"),
    "defence": _victim("defences"),
    "model": _victim("model"),
    "data set": lambda settings, _attack: Path(settings["victim"]["dataset"]).name or settings["victim"]["dataset"],
    "batch": _victim("batch"),
    "network": _victim("network"),
    "trained steps": _victim("trained_steps"),
    "client steps": lambda settings, _attack: (settings["victim"].get("client") or {}).get("steps"),
    "precision": lambda settings, _attack: settings.get("dtype"),
}


def find_series(sources: Sequence[Source]) -> tuple[list[Series], list[str]]:
    """Every attack of every run that has a trial, with a label that is its own; and the facets in which they differ."""
    attacks = [
        (number, attack["name"], {name: str(read(source.run.settings, attack)) for name, read in FACETS.items()})
        for number, source in enumerate(sources)
        for attack in source.attacks
    ]
    values = [{**entry, "run": sources[number].name} for number, _, entry in attacks]
    facets: list[str] = []
    for facet in [*FACETS, "run"]:
        several = len({entry[facet] for entry in values}) > 1
        if several and not any(_follows(values, facet, kept) and _follows(values, kept, facet) for kept in facets):
            facets.append(facet)
    named = [facet for facet in facets if facet not in ("attack", "run") and not _follows(values, facet, "attack")]
    labels = [
        " · ".join([attack, *(entry[f] for f in named)]) for (_, attack, _), entry in zip(attacks, values, strict=True)
    ]
    labels = [
        f"{label} · {entry['run']}" if labels.count(label) > 1 else label
        for label, entry in zip(labels, values, strict=True)
    ]
    series = [
        Series(n, attack, label, entry) for (n, attack, _), entry, label in zip(attacks, values, labels, strict=True)
    ]
    return series, facets


def _follows(values: list[dict[str, str]], facet: str, other: str) -> bool:
    """True if the value of one facet determines that of the other."""
    return len({(entry[facet], entry[other]) for entry in values}) == len({entry[other] for entry in values})
