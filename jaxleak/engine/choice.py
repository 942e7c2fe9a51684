"""Chooses the number of lanes: a first guess, then a search on the work itself."""

import math
from typing import Any

from jaxleak.engine.lanes import Report

CACHE = 1 << 23  # bytes. ResNet-18's update has 45 MB: 8.7 evaluations/s with one lane a core, 7.1 with two
ROUNDS = 6  # trials, at least, that a lane of a CPU runs one after the other; then few lanes stand idle at the end
PROBE_SECONDS = 3.0  # of computing per device, behind each measured rate
WORTH = 20  # a probe costs a compilation: the work left must be this many times longer
PROBES = 3
# By the account of a step (`jaxleak bench --for h100`): with 512 lanes of LeNet the history alone takes longer than the
# launches of all kernels. Not measured on a device.
ACCELERATOR_LANES = 512
GAIN = 1.15  # a rate must be this much better to count: neighbours' load moves rates by a tenth and more


def first_lanes(device: Any, trials: float = math.inf, problem_bytes: int = 0) -> int:
    """Lanes of a device that is to run so many trials, of problems of so many bytes each (an update's, mostly).

    A CPU device is a core. Its rate is highest, and nearly flat, from 2 to 8 lanes (experiments/NOTES.md): it gets 4.
    Where one update fills the caches, a second lane beside it makes both slower: it gets 1.
    A lane costs the same whether its trial runs or has ended, so a few trials get fewer lanes. Other devices get
    `ACCELERATOR_LANES`.
    """
    if device.platform != "cpu":
        return ACCELERATOR_LANES
    if problem_bytes > CACHE:
        return 1
    return 4 if trials > 4 * ROUNDS else max(1, math.ceil(trials / ROUNDS))


class LaneSearch:
    """A hill climb over factors of two in the lanes per device, on rates measured while the run goes on.

    Before others take the place of the best, the best is measured once more: loads come and go.

    Attributes:
        lanes: the lanes per device that are being measured.
        settled: True once the search is over.
    """

    def __init__(self, lanes: int, devices: int, limit: int):
        """Starts at `lanes`, on `devices`; never above `limit` lanes per device."""
        self.lanes, self._best, self._devices, self._limit = lanes, lanes, devices, limit
        self._rates: dict[int, float] = {}
        self._rival: int | None = None  # looks better than the best, which is being measured again
        self.settled = False
        self._restart()

    def _restart(self) -> None:
        self._ignored = 2 * self._devices  # reports of first chunks
        self._steps, self._seconds = 0, 0.0

    def add(self, report: Report) -> None:
        """Count a device's chunk."""
        if self._ignored:
            self._ignored -= 1
        else:
            self._steps += report.steps_total
            self._seconds += report.seconds

    @property
    def measured(self) -> bool:
        """True once the present number of lanes has its rate."""
        return not self.settled and self._seconds >= PROBE_SECONDS * self._devices

    def advise(self) -> int:
        """Lanes per device to go on with, once the present number is measured."""
        self._rates[self.lanes] = max(self._rates.get(self.lanes, 0.0), self._steps / self._seconds)
        rival, self._rival = self._rival or self.lanes, None
        if self._rates[rival] > GAIN * self._rates[self._best]:
            if rival == self.lanes:
                self._rival = rival
                return self._best
            self._best = rival
        # A hill climb: with a single peak nothing but the neighbours of the best can be better.
        near = [self._best * 2, self._best // 2]
        untried = [lanes for lanes in near if 1 <= lanes <= self._limit and lanes not in self._rates]
        self.settled = not untried or len(self._rates) > PROBES
        return self._best if self.settled else untried[0]

    def settle(self) -> None:
        """Stay with what runs now."""
        self.settled = True

    def moved(self, lanes: int) -> None:
        """Measure `lanes` per device from now on."""
        self.lanes = lanes
        self._restart()
