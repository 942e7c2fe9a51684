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

    def takes(self, trials: np.ndarray) -> np.ndarray:
        """Which trials, by their ids, are this shard's [n]."""
        return np.asarray(trials) % self.count == self.index

    def size(self, total: int) -> int:
        """How many of the trials 0..total-1 are this shard's."""
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
    """Of each of `count` shards that lacks trials of 0..total-1, how many of its own are there."""
    here = np.bincount(np.fromiter(done, np.int64, len(done)) % count, minlength=count)
    return {index: int(n) for index, n in enumerate(here) if n < Shard(index, count).size(total)}
