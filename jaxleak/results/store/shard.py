"""Shards: parts of one sweep that separate processes run into one directory, as in a Slurm array."""

import re
from typing import NamedTuple

import numpy as np

from jaxleak.errors import InputError


class Shard(NamedTuple):
    """Every `count`-th trial, from `index` on, so that each shard has trials of every image."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def prefix(self) -> str:
        """Start of the names of its parts, after "rows-" or "arrays-"; empty where the run is not divided."""
        return "" if self.count == 1 else f"{self.index:03}of{self.count:03}-"

    def takes(self, trials: np.ndarray) -> np.ndarray:
        """True for each trial id that belongs to this shard [n]."""
        return np.asarray(trials) % self.count == self.index

    def size(self, total: int) -> int:
        """Number of the trials 0..total-1 that belong to this shard."""
        return len(range(self.index, total, self.count))


ALL = Shard(0, 1)  # a run that is not divided


def parse_shard(text: str) -> Shard:
    """`2/8` as the third of eight shards.

    Raises:
        InputError: not I/N with I from 0 to N - 1.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"`shard` must be I/N with I from 0 to N - 1, as in 0/8 to 7/8; got {text!r}.")
    return Shard(int(match[1]), int(match[2]))


def missing_shards(count: int, total: int, done: set[int]) -> dict[int, int]:
    """Number of finished trials of each of `count` shards that lacks some of its trials of 0..total-1."""
    here = np.bincount(np.fromiter(done, np.int64, len(done)) % count, minlength=count)
    return {index: int(n) for index, n in enumerate(here) if n < Shard(index, count).size(total)}
