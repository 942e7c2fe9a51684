"""The floor: the share of an update, squared, that a right model leaves unexplained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree

from jaxleak.threat.client import PRECISIONS
from jaxleak.threat.defences import (
    DPSGD,
    BFloat16,
    Clip,
    Defence,
    ErrorFeedback,
    Float16,
    Gaussian,
    Laplace,
    Prune,
    PruneLayer,
    Quantise,
    TopK,
    shows_zeros,
)
from jaxleak.threat.victim import Victim

# Significant bits of the number types that updates are stored in, and the step of their smallest numbers.
NUMBER_TYPES = {
    "bfloat16": (8, 2.0**-133),
    "float16": (11, 2.0**-24),
    "float32": (24, 2.0**-149),
    "float64": (53, 2.0**-1074),
}
NARROW = 4  # roundings of narrower products, whose sums are in float32: measured 2 to 5 for bfloat16 and float16
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
        parts: name of each reason and its share: "number type", "arithmetic", "products", "weights",
            "defences".
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


def clips(victim: Victim) -> bool:
    """True if the client is known to clip: then only the direction of its update can be compared."""
    return any(
        (isinstance(defence, Clip) and defence.norm > 0) or (isinstance(defence, DPSGD) and defence.clip > 0)
        for defence in victim.defences
    )


def floor_of(victim: Victim, weights: PyTree) -> Floor:
    """The floor for a given update; restarts are carried on in float64 before they are held against it.

    Args:
        victim: with `update`, and the `defences` that its client is known to use.
        weights: of each entry in the comparison (`group.compared`); entries of weight 0 do not count.
    """
    masks = [np.asarray(weight) > 0 for weight in jax.tree.leaves(weights)]
    leaves = [
        np.where(mask, np.asarray(leaf, np.float64), 0)
        for mask, leaf in zip(masks, jax.tree.leaves(victim.update), strict=True)
    ]
    norm2 = sum(float(np.sum(leaf**2)) for leaf in leaves)
    kind = number_type(leaves)
    bits, step = NUMBER_TYPES[kind]

    def rounding(arrays: list[np.ndarray], bits: int, step: float) -> float:
        """Expected squared error of rounding to so many bits."""
        return sum(float(np.sum(np.maximum(np.abs(array) * 2.0**-bits, step / 2) ** 2)) / 3 for array in arrays)

    # Half precision is what a file is stored in; clients compute in float32, or narrower with less care.
    client_bits = min(max(bits, 24), 53)
    parts = {
        "number type": rounding([leaf[leaf != 0] for leaf in leaves], bits, step) / norm2,
        "arithmetic": (ARITHMETIC * 2.0**-client_bits) ** 2 + SOLVED,
    }
    narrow = PRECISIONS[victim.client.precision]
    if narrow < client_bits:
        parts["products"] = (NARROW * 2.0**-narrow) ** 2
    if victim.client.trains:  # a difference of two stored sets of weights
        before = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(victim.params)]
        update = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(victim.update)]
        after = [start - moved for start, moved in zip(before, update, strict=True)]
        # A rounding for each step, and one where the end is stored, which may be in a narrower type.
        kinds = [NUMBER_TYPES[number_type(side)] for side in (before, after)]
        trained, stored = rounding(before, *kinds[0]), rounding(before, *min(kinds))
        parts["weights"] = (victim.client.total_steps(victim.batch) * trained + stored) / norm2
    noise2, entries = _noise(victim, leaves, masks)
    if noise2:
        parts["defences"] = noise2 / norm2
    value = MARGIN * sum(share for name, share in parts.items() if name != "defences")
    value += parts.get("defences", 0.0) * (1 + DEVIATIONS * math.sqrt(2 / max(entries, 1)))
    return Floor(min(value, 1.0), kind, parts, math.sqrt(noise2 / max(entries, 1)))


def noise_variances(defence: Defence, leaves: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
    """Variance that a defence adds to each entry of each tensor; of one that rounds, of the rounding.

    Args:
        defence: what is set to zero is not noise: see `floor_of`.
        leaves: tensors of the update.
        batch: images of the update.
    """
    if isinstance(defence, Gaussian | Laplace):
        return [np.full(leaf.shape, defence.sigma**2) for leaf in leaves]
    if isinstance(defence, DPSGD):
        return [np.full(leaf.shape, (defence.noise * defence.clip / batch) ** 2) for leaf in leaves]
    if isinstance(defence, Quantise) and defence.bits:
        largest = 2 ** (int(defence.bits) - 1) - 1
        return [np.full(leaf.shape, (np.max(np.abs(leaf), initial=0) / largest) ** 2 / 12) for leaf in leaves]
    if isinstance(defence, Float16 | BFloat16) and defence.bits:
        bits, step = NUMBER_TYPES["float16" if isinstance(defence, Float16) else "bfloat16"]
        return [np.maximum(np.abs(leaf) * 2.0**-bits, step / 2) ** 2 / 3 for leaf in leaves]
    if isinstance(defence, ErrorFeedback) and defence.rounds > 1:  # how often an entry was kept back is not seen
        return [np.square((1 - 1 / defence.rounds) * leaf) for leaf in leaves]
    return [np.zeros(leaf.shape) for leaf in leaves]


def _noise(victim: Victim, leaves: list[np.ndarray], masks: list[np.ndarray]) -> tuple[float, int]:
    """Expected squared norm of what the stated defences changed, and the entries it lies on."""
    total, entries = (
        0.0,
        sum(int(np.sum(np.broadcast_to(mask, leaf.shape))) for mask, leaf in zip(masks, leaves, strict=True)),
    )
    for defence in victim.defences:
        variances = noise_variances(defence, leaves, victim.batch)
        total += sum(float(np.sum(mask * variance)) for mask, variance in zip(masks, variances, strict=True))
        if defence.sparse and not shows_zeros(victim.defences):
            total += _dropped(defence, leaves)
    return total, entries


def _dropped(defence: Defence, leaves: list[np.ndarray]) -> float:
    """At most what entries were worth that were dropped and cannot be seen: they were the smallest ones."""
    everything = np.concatenate([np.abs(leaf).ravel() for leaf in leaves])
    parts = [everything]
    if isinstance(defence, PruneLayer):
        parts = [np.abs(leaf).ravel() for leaf in leaves]
    dropped = 0.0
    for values in parts:
        share = defence.share if isinstance(defence, Prune | PruneLayer | ErrorFeedback) else 0.0
        if isinstance(defence, ErrorFeedback) and defence.rounds == 0:
            share = 0.0
        if isinstance(defence, TopK) and defence.count:
            share = max(0.0, 1 - defence.count / values.size)
        dropped += share * values.size * float(np.quantile(values, share)) ** 2
    return dropped
