"""The floor: the share of an update, squared, that a right model leaves unexplained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxleak.threat.defences import DPSGD, BFloat16, Defence, Float16, Gaussian, Laplace, Quantise, shows_zeros
from jaxleak.threat.victim import Victim

# Significant bits of the number types that updates are stored in, and the step of their smallest numbers.
NUMBER_TYPES = {
    "bfloat16": (8, 2.0**-133),
    "float16": (11, 2.0**-24),
    "float32": (24, 2.0**-149),
    "float64": (53, 2.0**-1074),
}
ARITHMETIC = 100  # roundings of a client's arithmetic that add up to the error of its gradient
SOLVED = 1e-18  # a solver in float64 gets no further
MARGIN = 3  # on rounding
DEVIATIONS = 4  # on noise: standard deviations of its squared norm


@dataclass(frozen=True)
class Floor:
    """What a right model leaves, as a share of the update's squared norm.

    Attributes:
        value: restarts that leave no more explain the update.
        number_type: the narrowest type that holds every value of the update.
        parts: name of each reason and its share: "number type", "arithmetic", "weights", "defences".
        noise: standard deviation of the noise on each entry that stated defences explain, in the update's units.
    """

    value: float
    number_type: str
    parts: dict[str, float]
    noise: float


def number_type(arrays: list[np.ndarray]) -> str:
    """The narrowest of `NUMBER_TYPES` that holds every value: a file may store float16 values as float32."""
    flat = np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])
    magnitude = np.abs(flat[flat != 0])
    for name, (bits, step) in NUMBER_TYPES.items():
        _, exponent = np.frexp(magnitude)
        unit = np.maximum(np.ldexp(1.0, exponent - bits), step)
        scaled = magnitude / unit
        fits_range = name != "float16" or np.max(magnitude, initial=0) <= 65504
        if fits_range and np.all(scaled == np.round(scaled)):
            return name
    return "float64"


def floor_of(victim: Victim) -> Floor:
    """The floor for a given update; restarts are carried on in float64 before they are held against it.

    Args:
        victim: with `update`, and the `defences` that its client is known to use.
    """
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(victim.update)]
    norm2 = sum(float(np.sum(leaf**2)) for leaf in leaves)
    stored = number_type(leaves)
    bits, step = NUMBER_TYPES[stored]

    def rounding(arrays: list[np.ndarray], bits: int, step: float) -> float:
        """Expected squared error of rounding to so many bits."""
        return sum(float(np.sum(np.maximum(np.abs(array) * 2.0**-bits, step / 2) ** 2)) / 3 for array in arrays)

    # Half precision is what a file is stored in; clients compute in float32, or narrower with less care.
    client_bits = min(max(bits, 24), 53)
    parts = {
        "number type": rounding([leaf[leaf != 0] for leaf in leaves], bits, step) / norm2,
        "arithmetic": (ARITHMETIC * 2.0**-client_bits) ** 2 + SOLVED,
    }
    if victim.client.trains:  # a difference of two stored sets of weights
        weights = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(victim.params)]
        parts["weights"] = 2 * rounding(weights, *NUMBER_TYPES[number_type(weights)]) / norm2
    noise2, entries = _noise(victim, leaves)
    if noise2:
        parts["defences"] = noise2 / norm2
    value = MARGIN * sum(share for name, share in parts.items() if name != "defences")
    value += parts.get("defences", 0.0) * (1 + DEVIATIONS * math.sqrt(2 / max(entries, 1)))
    return Floor(min(value, 1.0), stored, parts, math.sqrt(noise2 / max(entries, 1)))


def noise_variances(defences: Sequence[Defence], leaves: Sequence[np.ndarray], batch: int) -> list[float]:
    """Variance that defences add to each entry of each tensor; of those that round, of the rounding.

    Args:
        defences: in their order. What is set to zero is not noise: see `floor_of`.
        leaves: tensors of the update.
        batch: images of the update.
    """
    variances = [0.0 for _ in leaves]
    for defence in defences:
        for place, leaf in enumerate(leaves):
            if isinstance(defence, Gaussian | Laplace):
                variances[place] += defence.sigma**2
            elif isinstance(defence, DPSGD):
                variances[place] += (defence.noise * defence.clip / batch) ** 2
            elif isinstance(defence, Quantise) and defence.bits:
                step = float(np.max(np.abs(leaf), initial=0)) / (2 ** (int(defence.bits) - 1) - 1)
                variances[place] += step**2 / 12
            elif isinstance(defence, Float16 | BFloat16) and defence.bits:
                bits, step = NUMBER_TYPES["float16" if isinstance(defence, Float16) else "bfloat16"]
                variances[place] += float(np.mean(np.maximum(np.abs(leaf) * 2.0**-bits, step / 2) ** 2)) / 3
    return variances


def _noise(victim: Victim, leaves: list[np.ndarray]) -> tuple[float, int]:
    """Expected squared norm of what the stated defences changed, and the entries it lies on."""
    variances = noise_variances(victim.defences, leaves, victim.batch)
    total = sum(leaf.size * variance for leaf, variance in zip(leaves, variances, strict=True))
    if any(defence.sparse for defence in victim.defences) and not shows_zeros(victim.defences):
        for leaf in leaves:  # entries that were dropped were no larger than the smallest one kept
            kept = np.abs(leaf[leaf != 0])
            total += float(np.sum(leaf == 0)) * float(np.min(kept, initial=np.inf)) ** 2 if kept.size else 0.0
    return total, sum(leaf.size for leaf in leaves)
