"""Gives the trials of a sweep to workers in blocks, and gives those of a lost worker to others.

It uses no clock and no network: its caller says what time it is. The callers are the driver of a Ray cluster and the
simulation of one.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

AHEAD_SECONDS = 10.0  # of work that lie with a worker beside what is in its lanes
RETRIES = 3  # times that a trial begins again after its worker was lost

Name = Hashable


@dataclass
class Block:
    """Trials of one attack."""

    attack: int
    trials: list[int]


@dataclass
class Member:
    """A worker as the scheduler knows it."""

    lanes: int
    joined: float
    attack: int = -1
    held: set[int] = field(default_factory=set)  # trials given and not returned
    done: int = 0
    first_result: float | None = None

    def rate(self, now: float) -> float:
        """Trials a second, since it was given its first; 0 until it returned some."""
        return self.done / (now - self.joined) if self.done and now > self.joined else 0.0


class Scheduler:
    """The trials of a sweep that are still to do, and who has them."""

    def __init__(self, queues: Sequence[Sequence[int]], *, ahead: float = AHEAD_SECONDS, retries: int = RETRIES):
        """`queues`: for each attack the ids of its trials, in the order in which they are to run."""
        self._queues = [deque(trials) for trials in queues]
        self._ahead, self._retries = ahead, retries
        self._times_lost: dict[int, int] = {}
        self.members: dict[Name, Member] = {}
        self.given_up: list[int] = []  # trials that were lost too often
        self.returned = 0

    @property
    def waiting(self) -> int:
        """Number of trials that no worker has."""
        return sum(map(len, self._queues))

    @property
    def held(self) -> int:
        """Number of trials that workers have."""
        return sum(len(member.held) for member in self.members.values())

    @property
    def finished(self) -> bool:
        """True if nothing is left to do."""
        return not self.waiting and not self.held

    def join(self, name: Name, lanes: int, now: float) -> None:
        """Add a worker that runs this many trials at once."""
        self.members[name] = Member(lanes=max(1, lanes), joined=now)

    def leave(self, name: Name) -> list[int]:
        """Remove a lost worker. Its trials run next, or are given up if lost too often; returns those given up."""
        member = self.members.pop(name)
        again, given_up = [], []
        for trial in sorted(member.held):
            self._times_lost[trial] = self._times_lost.get(trial, 0) + 1
            (given_up if self._times_lost[trial] > self._retries else again).append(trial)
        self._queues[member.attack].extendleft(reversed(again))
        self.given_up += given_up
        return given_up

    def resize(self, name: Name, lanes: int) -> None:
        """Change how many trials a worker runs at once, as after its memory ran out."""
        self.members[name].lanes = max(1, lanes)

    def returns(self, name: Name, trials: Sequence[int], now: float) -> list[int]:
        """Count trials that a worker has finished; returns those of them that were given to it.

        Trials from a worker that was given up are not counted: another worker has them by then.
        """
        member = self.members.get(name)
        if member is None:
            return []
        accepted = [trial for trial in trials if trial in member.held]
        member.held.difference_update(accepted)
        member.done += len(accepted)
        self.returned += len(accepted)
        return accepted

    def next_block(self, name: Name, now: float) -> Block | None:
        """The next trials of a worker: enough to fill its lanes and for some seconds beside; None for none now.

        Near the end all workers get an equal share. A worker stays with an attack as long as that has trials, since
        another one has to be compiled.
        """
        member = self.members[name]
        attack = member.attack
        if attack < 0 or not self._queues[attack]:
            if member.held and attack >= 0:
                return None  # it ends one attack before it begins another
            attack = self._largest()
            if attack < 0:
                return None
        beside = max(round(member.rate(now) * self._ahead), member.lanes // 8 + 1)
        if len(member.held) > member.lanes + beside // 2:
            return None
        takers = self._takers(attack)
        left = len(self._queues[attack]) + sum(len(taker.held) for taker in takers)
        fair = -(-left // len(takers)) - len(member.held)
        count = min(member.lanes + beside - len(member.held), max(fair, 0))
        if not count:
            return None
        member.attack = attack
        trials = [self._queues[attack].popleft() for _ in range(min(count, len(self._queues[attack])))]
        member.held.update(trials)
        return Block(attack, trials)

    def _takers(self, attack: int) -> list[Member]:
        """Workers that share the rest of an attack: those that run it, and those without trials."""
        return [member for member in self.members.values() if member.attack == attack or not member.held]

    def _largest(self) -> int:
        """The attack with the most trials left for each worker that is at it; -1 if none has any."""
        at = [
            sum(member.attack == attack and bool(member.held) for member in self.members.values())
            for attack in range(len(self._queues))
        ]
        left = [len(queue) / (1 + count) for queue, count in zip(self._queues, at, strict=True)]
        return max(range(len(left)), key=left.__getitem__) if any(left) else -1
