"""The summary of a run: rates for each attack and image, made from its rows."""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from jaxleak.results.intervals import wilson, within_k
from jaxleak.results.store.columns import Row
from jaxleak.results.store.readable import check_readable
from jaxleak.results.store.run import Run
from jaxleak.results.store.versions import mixture
from jaxleak.results.verdict import STATUSES, Criteria

ENGINE_KEYS = ("evaluations", "seconds", "evaluations_per_second", "utilisation", "compile_seconds", "host_share")
RELATIVE = 1e-2  # of an objective met: above it, most of the update is not explained


def current_summary(run: Run) -> dict[str, Any]:
    """The content of `summary.json`, with `shards` and `warnings`; the run need not be complete.

    Raises:
        InputError: run.json is not what jaxleak writes.
    """
    check_readable(run)
    settings, rows = run.settings, run.rows()
    criteria = Criteria(**settings["criteria"])
    try:
        written = json.loads((run.path / "summary.json").read_text())
        engine, told = written["engine"], written.get("warnings")
        finished = sum(group["trials"] for group in written["groups"] if group["image"] is None)
        # Warnings about the settings stand there only. It may be older than the rows, or than warnings.
        known = told if finished == len(rows) else None
        if not _sound(engine, told):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known, engine = None, None
    expected = expected_trials(settings)
    summary = summarise(rows, criteria, expected=expected, engine=engine, settings_hash=run.settings_hash)
    warnings = warnings_after(rows, criteria) if known is None else known
    return {**summary, "shards": run.shards(expected), "warnings": warnings}


def _sound(engine: Any, warnings: Any) -> bool:
    """True if these parts of `summary.json` are as they were written."""
    numbers = (engine or {}).values() if engine is None or isinstance(engine, dict) else ("",)
    if not isinstance(warnings, list | None):
        return False
    return all(isinstance(number, int | float | None) for number in numbers) and all(
        isinstance(text, str) for text in warnings or ()
    )


def warnings_after(rows: Sequence[Row], criteria: Criteria) -> list[str]:
    """Warnings where the rows may mislead, one line each."""
    texts = [mixed] if (mixed := mixture(rows)) else []
    for attack in dict.fromkeys(row["attack"] for row in rows):
        trials = [row for row in rows if row["attack"] == attack]
        if any(row["status"] == "matched" for row in trials) or all(row["label"] < 0 for row in trials):
            texts.append(f"{attack}: the private images are not known, so nothing counts as solved; see report.json.")
        zero = sum(row["update_norm2"] == 0 for row in trials)
        if zero:
            texts.append(f"{attack}: the update is zero in {zero} of {len(trials)} trials; there is nothing to match.")
        small = [row for row in trials if row["objective"] < criteria.objective and row["objective_kind"] == "l2"]
        unexplained = sum(row["relative_objective"] > RELATIVE for row in small if row["update_norm2"] > 0)
        if unexplained:
            texts.append(
                f"{attack}: {unexplained} of {len(trials)} trials met the objective with more than {RELATIVE:.0%} of "
                "the update unexplained: it is small, and so is its distance from anything. Look at relative_objective."
            )
    return texts


def expected_trials(settings: dict[str, Any]) -> int:
    """Trials of the complete run with these settings (`Sweep.settings`)."""
    victim = settings["victim"]
    return len(settings["attacks"]) * (len(victim["images"]) // victim.get("batch", 1)) * int(settings["seeds"])


def summarise(
    rows: Sequence[Row],
    criteria: Criteria,
    *,
    expected: int | None = None,
    engine: dict[str, Any] | None = None,
    settings_hash: str = "",
) -> dict[str, Any]:
    """The run's summary: one group per attack, model, data set and image, then the same over all images.

    Failed trials stay in every denominator. Iterations and evaluations are those to the objective threshold,
    over the successes.

    Args:
        rows: result rows, one per trial.
        criteria: the run's criteria; the rows' own `status` and `success` are taken as they are.
        expected: number of trials of the complete run; all that are there, if not given.
        engine: the engine's counters, `ENGINE_KEYS`; those not given become null.

    Returns:
        The content of `summary.json`; a number that is not finite becomes None.
    """
    expected = len(rows) if expected is None else expected
    groups = []
    for (attack, model, dataset), members in _by(rows, "attack", "model", "dataset"):
        base = {"attack": attack, "model": model, "dataset": dataset}
        images = [(image, of_image) for (image,), of_image in sorted(_by(members, "image"), key=lambda group: group[0])]
        of_images = [_restarts(of_image) for _, of_image in images]
        for (image, of_image), restarts in zip(images, of_images, strict=True):
            groups.append(base | {"image": image} | _rates(of_image, criteria) | restarts)
        groups.append(base | {"image": None} | _rates(members, criteria) | _over_images(of_images))
    summary = {
        "groups": groups,
        "complete": len(rows) == expected,
        "trials_expected": expected,
        "engine": {key: (engine or {}).get(key) for key in ENGINE_KEYS},
        "criteria": asdict(criteria),
        "settings_hash": settings_hash,
    }
    return _plain(summary)


def _by(rows: Iterable[Row], *columns: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows grouped by their values in `columns`, ordered by first appearance, the first column foremost."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    appearance = {first: order for order, first in enumerate(dict.fromkeys(key[0] for key in groups))}
    return sorted(groups.items(), key=lambda group: appearance[group[0][0]])


def _rates(rows: list[Row], criteria: Criteria) -> dict[str, Any]:
    n, successful = len(rows), [row for row in rows if row["success"]]
    iterations = _present(successful, "threshold_iterations")
    evaluations = _present(successful, "threshold_evaluations")
    return {
        "trials": n,
        "successes": len(successful),
        "success_rate": len(successful) / n,
        "ci95": wilson(len(successful), n),
        "iterations_mean": np.mean(iterations) if iterations else None,
        "iterations_median": np.median(iterations) if iterations else None,
        "iterations_n": len(iterations),
        "evaluations_mean": np.mean(evaluations) if evaluations else None,
        "evaluations_median": np.median(evaluations) if evaluations else None,
        "label_accuracy": sum(bool(row["label_correct"]) for row in rows) / n,
        "labels_known": any(row.get("label", 0) >= 0 for row in rows),
        "status": {status: sum(row["status"] == status for row in rows) for status in STATUSES},
        "truth_known": not any(math.isfinite(row["objective"]) and math.isnan(row["mse"]) for row in rows),
        "mse_below": {f"{t:g}": sum(row["mse"] < t for row in rows) / n for t in criteria.mse_thresholds},
    }


def _present(rows: list[Row], column: str) -> list[float]:
    return [row[column] for row in rows if row[column] is not None]


def _restarts(rows: list[Row]) -> dict[str, Any]:
    """The selected and the oracle restart of one image, and the chance that one of k restarts succeeds."""
    n, successes = len(rows), sum(bool(row["success"]) for row in rows)
    powers = itertools.takewhile(lambda k: k <= n, (2**i for i in itertools.count()))
    return {
        "selected": _lowest(rows, "objective"),
        "oracle": _lowest(rows, "mse"),
        "within_k": {str(k): within_k(successes, n, k) for k in powers},
    }


def _lowest(rows: list[Row], column: str) -> dict[str, Any] | None:
    """The trial with the lowest finite value in `column` (lowest id among equals); None if none is finite."""
    finite = [row for row in rows if math.isfinite(row[column])]
    if not finite:
        return None
    best = min(finite, key=lambda row: (row[column], row["trial"]))
    text = () if best.get("tokens_right") is None else ("tokens_right",)
    return {key: best[key] for key in ("trial", "objective", "mse", "psnr", "success", *text)}


def _over_images(of_images: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of images whose selected and oracle trials succeeded, and `within_k` averaged over images."""

    def share(choice: str) -> dict[str, Any]:
        won = [image[choice] is not None and bool(image[choice]["success"]) for image in of_images]
        return {"images": len(won), "success_rate": sum(won) / len(won)}

    fewest = min((image["within_k"] for image in of_images), key=len)
    averages = {k: np.mean([image["within_k"][k] for image in of_images]) for k in fewest}
    return {"selected": share("selected"), "oracle": share("oracle"), "within_k": averages}


def _plain(value: Any) -> Any:
    """`value` in JSON's own types; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
