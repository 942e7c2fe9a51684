"""A small network, and a data set that it learns quickly."""

from typing import Any

import numpy as np

from jaxleak.data import Dataset, load_dataset
from tests.sweeps import Tiny

SHAPE = (4, 4, 1)


CLASSES = 3


COUNT = 200


MODEL: Any = Tiny(CLASSES)


SETTINGS: dict[str, Any] = {"network": "shared", "train_lr": 0.05}


def easy(path, count: int = COUNT, seed: int = 0) -> Dataset:
    """Class k has its bright band at row k, over noise."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % CLASSES)
    pixels = rng.integers(0, 60, (count, *SHAPE))
    pixels[np.arange(count), labels] += 150
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return load_dataset(path)
