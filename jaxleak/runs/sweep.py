"""A sweep: attacks x images x seeds on one victim. It says nothing about where they run."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxleak.attacks.best import resolved
from jaxleak.attacks.check import check_attack
from jaxleak.attacks.presets import Attack
from jaxleak.attacks.trial import Job, Trial
from jaxleak.errors import InputError, check_not_negative, check_positive, check_seed, check_type
from jaxleak.kernels.precision import dtype
from jaxleak.results.store.shard import ALL, Shard
from jaxleak.results.verdict import Criteria
from jaxleak.threat.victim import Victim

SNAPSHOTS = (0, 10, 20, 40, 60, 80, 120, 200)
MOST_TRIALS = 10_000_000  # of one sweep: its queue lies in memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """Attacks, victim and settings of a sweep; lanes, devices and the run directory are not part of it.

    Attributes:
        victim: who is attacked.
        attacks: with which attacks; `best` becomes what it is for the victim.
        seeds: restarts per update and attack; trial seeds 0..seeds-1.
        start_seed: seed from which starts are drawn. A start depends on it, the image's index and the trial seed only.
        criteria: success criteria.
        snapshots: iterations at which candidates are kept for pictures.
        snapshot_seeds: number of first seeds whose trials have snapshots; None: all. Those of the others are black.
        starts: given starts (see `Trial`), instead of drawn ones.

    Example:
        >>> import jaxleak
        >>> victim = jaxleak.make_victim("lenet", jaxleak.load_dataset("photos"), images=[6, 12])
        >>> sweep = jaxleak.Sweep(victim=victim, attacks=(jaxleak.DLG, jaxleak.IDLG), seeds=8)
        >>> sweep.total  # 2 attacks x 2 images x 8 seeds
        32
    """

    victim: Victim
    attacks: tuple[Attack, ...]
    seeds: int
    start_seed: int = 0
    criteria: Criteria = field(default_factory=Criteria)
    snapshots: tuple[int, ...] = SNAPSHOTS
    snapshot_seeds: int | None = None
    starts: Mapping[str, np.ndarray] | None = None

    def __post_init__(self):
        check_type("victim", self.victim, Victim, "a Victim, as `make_victim` and `load_update` give it")
        for attack in self.attacks:
            check_type("attacks", attack, Attack, "a tuple of Attack objects; `get_attack` gives them by name")
        check_type("criteria", self.criteria, Criteria, "a Criteria")
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
        if self.snapshot_seeds is not None:
            check_not_negative("snapshot_seeds", self.snapshot_seeds, integer=True)
        needed = {"image"} | {"label" for attack in self.attacks if attack.label == "joint"}
        if self.starts is not None and not needed <= self.starts.keys():
            raise InputError(f"`starts` must hold {', '.join(sorted(needed))}; it has {', '.join(self.starts)}.")
        for name, start in (self.starts or {}).items():
            if len(start) < self.seeds:
                raise InputError(f"`starts` holds {len(start)} rows of {name}; `seeds` asks for {self.seeds}.")
        object.__setattr__(self, "attacks", tuple(resolved(attack, self.victim) for attack in self.attacks))
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
        """Trace the start of trials, for attacks that need it to show whether they fit the victim.

        Raises:
            InputError: an attack does not fit.
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
            **({} if self.snapshot_seeds is None else {"snapshot_seeds": self.snapshot_seeds}),  # as before it came
            "dtype": dtype(),
        }

    def jobs(self, attack: int, done: set[int], shard: Shard = ALL) -> Job:
        """The trials of one attack that are still to do by this shard, seed by seed over the updates."""
        count = self.victim.updates
        seed, slot = (axis.ravel() for axis in np.indices((self.seeds, count)))
        trial = (attack * count + slot) * self.seeds + seed
        return self.jobs_of(trial[~np.isin(trial, sorted(done)) & shard.takes(trial)])

    def jobs_of(self, trials: Int[np.ndarray, "n"]) -> Job:
        """Trials by their ids, which may be of several attacks."""
        images = np.asarray(self.victim.indices)[:: self.victim.batch]
        slot, seed = trials // self.seeds % self.victim.updates, trials % self.seeds
        return Job(*(np.asarray(axis, np.int32) for axis in (trials, slot, images[slot], seed)))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]
