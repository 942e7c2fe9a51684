"""Trials that ended, as they wait to be written."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxleak.attacks.presets import Attack
from jaxleak.engine import Finished


class Judged(NamedTuple):
    """Trials of one attack that ended in one place, with the status of each."""

    attack: Attack
    finished: Finished
    statuses: list[str]
    made: dict[str, Any]  # where: device, versions and revision
    reason: str | None = None  # why they are lost

    def halves(self) -> "list[Judged]":
        """The same trials in two parts."""
        middle = len(self.statuses) // 2
        return [
            self._replace(finished=jax.tree.map(lambda leaf, part=part: leaf[part], self.finished),
                          statuses=self.statuses[part])
            for part in (slice(None, middle), slice(middle, None))
        ]  # fmt: skip


def alike(judged: Judged) -> tuple[str, str, str]:
    """Group key: trials with the same attack, machine and failure reason go into one file."""
    return judged.attack.name, str(judged.made), judged.reason or ""


def joined(parts: list[Judged]) -> Judged:
    """Trials that are alike, in one part."""
    if len(parts) == 1:
        return parts[0]
    finished = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.finished for part in parts))
    return parts[0]._replace(finished=finished, statuses=[status for part in parts for status in part.statuses])
