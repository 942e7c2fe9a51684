"""The verdict on an update: what the restarts of one attack, taken together, say."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

VERDICTS = ("recovered", "ambiguous", "unfinished", "unexplained")
ENDED_BY_BUDGET = ("iteration-limit",)
FALLING = 10  # times its budget: a restart that would need more to reach the floor no longer falls


@dataclass(frozen=True)
class Restart:
    """One restart, as it ended.

    Attributes:
        left: share of the update, squared, that it leaves; of an attack by the cosine 1 - cos^2.
        by_budget: it was ended by its budget of iterations or evaluations.
        needs: iterations after which it would reach the floor, if its objective went on falling as it did; inf where it
            no longer falls.
        labels: that it worked with, in the order of its images.
    """

    left: float
    by_budget: bool
    needs: float
    labels: tuple[int | str, ...]


@dataclass(frozen=True)
class Verdict:
    """What can be said of an update.

    Attributes:
        verdict: one of `VERDICTS`.
        reasons: sentences; the first says why.
        at_floor: restarts that explain the update.
        agree: those of them that show the best one's images.
    """

    verdict: str
    reasons: list[str] = field(default_factory=list)
    at_floor: int = 0
    agree: int = 0


def judge(
    restarts: list[Restart] | None,
    same: Bool[np.ndarray, "n b"],
    floor: float,
    undetermined: list[str] | None,
    *,
    budget: int,
    flag: str = "--iterations",
    needed: int = 2,
    alone: str = "",
) -> Verdict:
    """The verdict on the restarts of one attack.

    Args:
        restarts: the one that leaves least first; None: none ended in the time there was.
        same: for each image of each restart: it is the best one's.
        floor: share that a right model leaves.
        undetermined: parts of the best image that the update does not determine, as sentences; None: not known, as
            where no restart comes near.
        budget: iterations that a restart had.
        flag: the budget's.
        needed: restarts that must agree: one of an attack in closed form.
        alone: advice where one restart explains the update and nothing agrees with it.
    """
    if restarts is None:
        return Verdict("unfinished", ["no restart ended in time: give more --minutes, or fewer --iterations"])
    explains = [restart.left <= floor for restart in restarts]
    count = sum(explains)
    if not restarts:
        return Verdict("unexplained", ["every restart ended with an objective that is not a number"])
    best = restarts[0]
    if count == 0:
        if undetermined and not np.all(same):
            left = f"the best of {len(restarts)} restarts leaves {best.left:.2g} of the update, squared"
            return Verdict(
                "ambiguous", [f"{left}, they show different images, and {undetermined[0]}", *undetermined[1:]]
            )
        return _without_any(restarts, floor, budget, flag)
    agreeing = np.all(same, axis=1) & np.array(explains)
    agree = int(agreeing.sum())
    numbers: dict[str, Any] = {"at_floor": count, "agree": agree}
    reached = f"{count} of {len(restarts)} restarts explain the update (they leave at most {floor:.1g} of it, squared)"
    others = [restart for restart, here in zip(restarts, explains, strict=True) if here]
    labels = {tuple(sorted(restart.labels)) for restart in others}
    parts = list(undetermined or [])
    if agree < count:
        slots = np.sum(same & np.array(explains)[:, None], axis=0)
        parts.insert(0, _disagreement(slots, count, labels))
    if parts:
        return Verdict("ambiguous", [f"{reached}, but {parts[0]}", *parts[1:]], **numbers)
    if undetermined is None:
        reason = f"{reached}, but whether it determines their images could not be computed"
        return Verdict("ambiguous", [reason], **numbers)
    if count < needed:
        unfinished = [restart for restart in restarts[1:] if restart.by_budget]
        more = alone or (f"raise {flag}" if unfinished else "use more --seeds")
        return Verdict(
            "unfinished",
            [f"one of {len(restarts)} restarts explains the update, and nothing agrees with it: {more}"],
            **numbers,
        )
    return Verdict(
        "recovered", [f"{reached}, and all show the same image{'s' if same.shape[1] > 1 else ''}"], **numbers
    )


def _disagreement(slots: np.ndarray, count: int, labels: set[tuple[int | str, ...]]) -> str:
    if len(labels) > 1:
        shown = "; ".join(" ".join(map(str, found)) for found in sorted(labels)[:4])
        return f"with different labels ({shown}): the label is not determined"
    if len(slots) == 1:
        return "not all show the same image: it is not determined"
    alone = [str(slot) for slot, shows in enumerate(slots) if shows < count]
    return f"they show other images in place{'s' if len(alone) > 1 else ''} {', '.join(alone)}"


def _without_any(restarts: list[Restart], floor: float, budget: int, flag: str) -> Verdict:
    best = restarts[0]
    left = f"the best of {len(restarts)} restarts leaves {best.left:.2g} of the update, squared"
    left = f"{left}; a right model leaves {floor:.1g}"
    falling = [restart for restart in restarts if restart.by_budget and restart.needs <= FALLING * budget]
    if falling:
        needs = min(restart.needs for restart in falling)
        wanted = _round_up(max(1.5 * needs, 2 * budget))
        return Verdict(
            "unfinished",
            [
                f"{len(falling)} of {len(restarts)} restarts were ended by their budget while still falling: "
                f"raise {flag} from {budget} to {wanted} or more",
                left,
            ],
        )
    return Verdict("unexplained", [left])


def _round_up(number: float) -> int:
    """To two digits."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return int(math.ceil(number / unit) * unit)


def iterations_needed(trace: Float[np.ndarray, "t"], floor: float) -> float:
    """Iterations after which an objective, as a share, reaches the floor; inf if it does not fall.

    By the straight line through its logarithm over the last third of the iterations.

    Args:
        trace: share left at the end of each iteration, NaN after the last.
    """
    known = trace[np.isfinite(trace) & (trace > 0)]
    if known.size < 2:
        return math.inf
    if known[-1] <= floor:
        return float(known.size)
    tail = np.log(np.minimum.accumulate(known)[-max(4, known.size // 3) :])
    slope = (tail[-1] - tail[0]) / (tail.size - 1)
    return known.size + (math.log(floor) - tail[-1]) / slope if slope < 0 else math.inf
