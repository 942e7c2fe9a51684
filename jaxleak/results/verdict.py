"""The verdict on one trial."""

import math
from dataclasses import dataclass
from typing import Any

from jaxleak.errors import InputError, check_choice

STATUSES = ("converged", "wrong-image", "matched", "iteration-limit", "stalled", "diverged", "non-finite", "lost")
LIKELIHOOD = (
    1.1  # nats per entry; at the private images 0 without noise, 1/2 behind normal and 1 behind Laplacian noise
)


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """Success criteria, stored with every run.

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

    Example:
        >>> import jaxleak
        >>> criteria = jaxleak.Criteria(relative_error=0.1)
        >>> criteria.threshold("l2"), criteria.threshold("cosine")
        (0.0001, 0.01)
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
        """Limit below which an attack's objective must end; `objective` is a key of `objectives.OBJECTIVES`.

        Of a likelihood it is 1.1 nats per entry.
        """
        return {"cosine": self.cosine, "likelihood": LIKELIHOOD}.get(objective, self.objective)


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
    criteria: Criteria,
    threshold: float | None = None,
    knows_truth: bool = True,
) -> str:
    """The status of a trial that ended.

    Args:
        ending: how its loop stopped: "objective" or the status that this is, without an image to judge.
        objective: the final objective.
        relative_error: the final candidate's image error; `max_abs` its largest |pixel|.
        criteria: the thresholds.
        threshold: of the objective; None: `criteria.objective`.
        knows_truth: whether there is an image to compare with.

    Returns:
        One of `STATUSES`. "matched" is a small objective whose image cannot be judged. A trial that stopped on a looser
        objective than the criterion's counts as `iteration-limit`: it was ended before it succeeded.
    """
    check_choice("ending", ending, ("objective", *STATUSES))
    if ending == "non-finite" or not (math.isfinite(objective) and math.isfinite(max_abs)):
        return "non-finite"
    if objective < (criteria.objective if threshold is None else threshold):
        if not knows_truth:
            return "matched"
        return "converged" if relative_error < criteria.relative_error else "wrong-image"
    if max_abs > criteria.diverged_above:
        return "diverged"
    return "iteration-limit" if ending == "objective" else ending
