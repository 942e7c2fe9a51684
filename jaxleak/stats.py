"""Success and its statistics: the verdict on one trial, rates with intervals, and the summary of a run."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxleak.errors import InputError, check_choice

STATUSES = ("converged", "wrong-image", "matched", "iteration-limit", "stalled", "diverged", "non-finite", "lost")
ENGINE_KEYS = ("evaluations", "seconds", "evaluations_per_second", "utilisation", "compile_seconds", "host_share")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What counts as success, stored with every run.

    Attributes:
        objective: a trial must end with its objective below this.
        cosine: the same for attacks whose objective is 1 - cosine.
        relative_error: and with `|x - x*| / |x*|` below this, every image of a batch. A small objective alone is not
            success: networks with tiny gradients reach any objective with a wrong image.
        mse_thresholds: the family of unclipped MSE thresholds (images in [0, 1]) whose shares are reported.
            Source: the fidelity curves of Zhao et al. 2020 (iDLG).
        diverged_above: a failed trial whose largest |pixel| exceeds this counts as diverged.

    Raises:
        InputError: a threshold is not a finite number above 0.
    """

    objective: float = 1e-4
    cosine: float = 1e-2
    relative_error: float = 0.2
    mse_thresholds: tuple[float, ...] = (0.01, 0.005, 0.001, 0.0005, 0.0001)
    diverged_above: float = 100.0

    def __post_init__(self):
        for name in ("objective", "cosine", "relative_error", "diverged_above"):
            _check_threshold(name, getattr(self, name))
        if isinstance(self.mse_thresholds, (int, float, str)) or not self.mse_thresholds:
            raise InputError(
                f"`mse_thresholds` must be one or more numbers, as in (0.01, 0.001); got {self.mse_thresholds!r}."
            )
        for value in self.mse_thresholds:
            _check_threshold("mse_thresholds", value)
        object.__setattr__(self, "mse_thresholds", tuple(self.mse_thresholds))  # a list, when read from JSON

    def threshold(self, objective: str) -> float:
        """What an attack's objective must be below, by its kind, a key of `objectives.OBJECTIVES`."""
        return self.cosine if objective == "cosine" else self.objective


def _check_threshold(argument: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise InputError(f"`{argument}` must be a finite number above 0; got {value!r}.")


def classify(
    *,
    ending: str,
    objective: float,
    relative_error: float,
    max_abs: float,
    reached_objective: bool,
    criteria: Criteria,
    threshold: float | None = None,
    knows_truth: bool = True,
) -> str:
    """The status of a trial that ended.

    Args:
        ending: how its loop stopped: "objective" or the status that this is, without an image to judge.
        objective: the final objective.
        relative_error: the final candidate's image error; `max_abs` its largest |pixel|.
        reached_objective: whether the loop saw an objective below the threshold. The final objective must
            be below it too: a trial that passed the threshold and then left again has not converged.
        criteria: the thresholds.
        threshold: of the objective; None: `criteria.objective`.
        knows_truth: whether there is an image to compare with.

    Returns:
        One of `STATUSES`; "matched" is a small objective whose image cannot be judged. A trial that stopped on a looser
        objective than the criterion's, and so never reached the criterion's, counts as `iteration-limit`: it was ended
        before it succeeded.
    """
    check_choice("ending", ending, ("objective", *STATUSES))
    if ending == "non-finite" or not (math.isfinite(objective) and math.isfinite(max_abs)):
        return "non-finite"
    if reached_objective and objective < (criteria.objective if threshold is None else threshold):
        if not knows_truth:
            return "matched"
        return "converged" if relative_error < criteria.relative_error else "wrong-image"
    if max_abs > criteria.diverged_above:
        return "diverged"
    return "iteration-limit" if ending == "objective" else ending


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success probability; (0, 1) for no trials.

    Source: Wilson 1927, JASA 22:209; no continuity correction, as scipy's `proportion_ci(method="wilson")`.
    """
    from scipy.stats import binomtest

    _check_count("successes", successes, n)
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must lie between 0 and 1; got {confidence!r}.")
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(int(successes), int(n)).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def within_k(successes: int, n: int, k: int) -> float:
    """Probability that at least one of `k` restarts succeeds, estimated from `s` successes in `n` trials.

    `1 - C(n-s, k) / C(n, k)`: the share of the k-subsets of the trials that hold a success, and so unbiased.

    Source: Chen et al. 2021 (Codex), eq. 1, their pass@k.
    """
    _check_count("successes", successes, n)
    if not 1 <= k <= n:
        raise InputError(f"`k` must lie between 1 and the number of trials, {n}; got {k!r}.")
    return 1 - math.comb(int(n - successes), int(k)) / math.comb(int(n), int(k))


def fisher(s1: int, n1: int, s2: int, n2: int) -> float:
    """Two-sided p-value of Fisher's exact test that `s1` of `n1` and `s2` of `n2` have the same rate."""
    from scipy.stats import fisher_exact

    _check_count("s1", s1, n1)
    _check_count("s2", s2, n2)
    if n1 == 0 or n2 == 0:
        return 1.0
    return float(np.asarray(fisher_exact([[s1, n1 - s1], [s2, n2 - s2]])[1]))


def _check_count(argument: str, successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise InputError(f"`{argument}` must lie between 0 and the number of trials, {n}; got {successes!r}.")


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
        What `summary.json` holds; a number that is not finite becomes None.
    """
    expected = len(rows) if expected is None else expected
    groups = []
    for (attack, model, dataset), members in _by(rows, "attack", "model", "dataset"):
        base = {"attack": attack, "model": model, "dataset": dataset}
        images = [(image, own) for (image,), own in sorted(_by(members, "image"), key=lambda group: group[0])]
        of_images = [_restarts(own) for _, own in images]
        for (image, own), restarts in zip(images, of_images, strict=True):
            groups.append(base | {"image": image} | _rates(own, criteria) | restarts)
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
    """What an attacker gets from the restarts of one image."""
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
    return {key: best[key] for key in ("trial", "objective", "mse", "psnr", "success")}


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
