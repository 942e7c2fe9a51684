"""Hints that an update gives by itself, and what is left of it: no attack is run here."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxleak.attacks.best import piecewise_linear
from jaxleak.attacks.closed_forms import CLOSED_FORMS
from jaxleak.attacks.labels import head_gradient
from jaxleak.attacks.presets import Attack
from jaxleak.errors import InputError
from jaxleak.runs.audit.refit import squared_norm_of, targets_of, update_at
from jaxleak.threat.loss import CrossEntropy
from jaxleak.threat.victim import Victim

CODES = (
    *("sign", "scale", "client-steps", "loss", "label", "batchnorm-train", "weights-not-difference", "frozen-layers"),
    *("noise", "stuck", "range"),
)
SMALLEST = 1000  # entries of a tensor whose spectrum shows noise
WHITE = 1.5  # times a random matrix's largest share of variance
ALIKE = 1.6  # times: how far the sizes of noise in two tensors may differ
GAP = 1e-4  # of a tensor's largest magnitude: pruning leaves none below
CANCELS = 1e-4  # share of its magnitudes that a gradient of the head's bias adds up to at most, by rounding
SPARSE = 0.1  # share of single entries that are zero: more is pruning


@dataclass(frozen=True)
class Hint:
    """A reason why an update may not be explained, or something to know of one that is.

    Attributes:
        code: one of `CODES`.
        text: a sentence for the terminal and the report.
        proven: attacked under this assumption, the update is explained to the floor.
    """

    code: str
    text: str
    proven: bool = False


@dataclass(frozen=True)
class Found:
    """The best images so far.

    Attributes:
        attack: that found them.
        pixels, labels: [b, h, w, c] and [b]; or [b, k] where targets are no classes.
        left: share of the update, squared, that they leave.
    """

    attack: Attack
    pixels: Float[np.ndarray, "b h w c"]
    labels: np.ndarray
    left: float


def hints_before(victim: Victim, silent: Sequence[str], moved_statistics: bool = False) -> list[Hint]:
    """Hints that need no attack.

    Args:
        victim: with a given update.
        silent: names of its tensors that are zero everywhere.
        moved_statistics: its file holds running statistics that moved.
    """
    hints = []
    if silent:
        shown = ", ".join(silent[:4]) + (f" and {len(silent) - 4} more" if len(silent) > 4 else "")
        text = "zero everywhere or missing; left out of what is compared, as layers that the client did not train"
        if victim.client.total_steps(victim.batch) > 1:
            text += " (later local steps are computed as if it had)"
        hints.append(Hint("frozen-layers", f"{shown} {'are' if len(silent) > 1 else 'is'} {text}"))
    alike = cosine(victim.update, victim.params)
    if alike > 0.5:
        text = f"the update looks like the weights themselves (cosine {alike:.2f}): give the gradient, or the weights "
        hints.append(Hint("weights-not-difference", text + "before minus after"))
    elif swapped(victim):
        text = "the weights look like a gradient and the update like weights: are the two files swapped?"
        hints.append(Hint("weights-not-difference", text))
    if sign_is_flipped(victim):
        text = "the head's bias gradient has the signs of its negative: the update may be after minus before; give "
        hints.append(Hint("sign", text + "before minus after"))
    if moved_statistics and getattr(victim.model, "train", None) is False:
        text = "the file's running statistics moved, so BatchNorm was in train mode: use --model-field train=true"
        hints.append(Hint("batchnorm-train", text))
    largest = max(float(np.max(np.abs(leaf), initial=0)) for leaf in leaves_of(victim.update))
    if not 1e-12 < largest < 1e12:
        hints.append(Hint("range", f"the update's largest value is {largest:.1g}: check its units"))
    return hints


def leaves_of(tree: PyTree) -> list[np.ndarray]:
    """The tensors of a tree, in float64."""
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def flat(tree: PyTree) -> Float[np.ndarray, "n"]:
    """All entries of a tree, in float64."""
    return np.concatenate([leaf.ravel() for leaf in leaves_of(tree)])


def cosine(a: PyTree, b: PyTree) -> float:
    """Cosine of the angle between two trees."""
    dot = sum(float(np.sum(x * y)) for x, y in zip(leaves_of(a), leaves_of(b), strict=True))
    return dot / max(math.sqrt(squared_norm_of(a) * squared_norm_of(b)), 1e-300)


def factor_between(there: PyTree, update: PyTree) -> float:
    """The multiple of one tree that is nearest to the other."""
    return cosine(there, update) * math.sqrt(squared_norm_of(update) / squared_norm_of(there))


def swapped(victim: Victim) -> bool:
    """True if the head's bias adds up to 0 in the weights, as a slope of cross-entropy does, but not in the update."""
    if victim.defences or not isinstance(victim.client.loss, CrossEntropy) or head_bias(victim) is None:
        return False
    weights, update = (np.asarray(head_gradient(tree, "bias"), np.float64) for tree in (victim.params, victim.update))
    left = [abs(bias.sum()) / max(np.abs(bias).sum(), 1e-300) for bias in (weights, update)]
    return bool(np.any(weights)) and left[0] < CANCELS and left[1] > math.sqrt(CANCELS)


def head_bias(victim: Victim) -> Float[np.ndarray, "k"] | None:
    """Gradient of the head's bias, None where it has none or was not trained."""
    try:
        bias = np.asarray(head_gradient(victim.update, "bias"), np.float64)
    except InputError:
        return None
    return bias if np.any(bias) else None


def sign_is_flipped(victim: Victim) -> bool:
    """True if at most as many classes as images have a positive bias gradient, and all others a negative one.

    Softmax minus one-hot is the other way round: only labels are negative.
    """
    bias, loss = head_bias(victim), victim.client.loss
    if not isinstance(loss, CrossEntropy) or loss.smoothing:
        return False
    if bias is None or bias.size <= 2 * victim.batch:
        return False
    positive, negative = int(np.sum(bias > 0)), int(np.sum(bias < 0))
    return 0 < positive <= victim.batch and negative >= bias.size - victim.batch


def scale_hint(factor: float, victim: Victim, *, by_direction: bool = False) -> Hint:
    """A hint about an update that is a multiple of what was assumed."""
    what = "as by a learning rate, by clipping, or by a sum over images or steps"
    if victim.batch > 1 and abs(factor - victim.batch) < 1e-3 * factor:
        what = "the batch size: a sum over images instead of the mean (--reduction sum)"
    advice = "" if by_direction else ": divide it, or use --objective cosine"
    return Hint("scale", f"the update is {factor:.4g} times what was assumed, {what}{advice}", proven=True)


def noise_hint(victim: Victim, found: Found) -> list[Hint]:
    """A hint where what is left looks like noise, or where single entries of the update are zero.

    In the two largest tensors, of which the candidate can fit the smallest part, noise has one size and is white: its
    largest singular value is that of a random matrix, and its kurtosis a Gaussian's (3) or a Laplacian's (6). What a
    wrong model leaves has the structure and the sizes of its gradient.

    Source: Marchenko & Pastur 1967, the edge of the spectrum of a random matrix.
    """
    if victim.defences:
        return []  # it is stated
    zeros = scattered_zeros(victim.update)
    if zeros > SPARSE:
        text = f"{zeros:.0%} of the entries are zero, here and there: pruned? Say so with --defence prune:{zeros:.2g}"
        return [Hint("noise", text)]
    there = update_at(victim, victim.params, found.pixels, targets_of(victim, found.labels))
    pairs = sorted(zip(leaves_of(victim.update), leaves_of(there), strict=True), key=lambda pair: -pair[0].size)
    largest = [(given, given - mine) for given, mine in pairs if given.ndim >= 2 and np.any(given)][:2]
    if len(largest) < 2 or min(given.size for given, _ in largest) < SMALLEST:
        return []
    deviations = [float(rest.std()) for _, rest in largest]
    if not all(_is_white(rest) for _, rest in largest) or max(deviations) > ALIKE * min(deviations):
        return []
    given, deviation = largest[0][0], deviations[0]
    levels = np.unique(np.round(given / np.max(np.abs(given)), 9)).size
    if levels < 0.5 * min(given.size, 2**16):
        text = f"the largest tensor has {levels} different values only: rounded? Say so with --defence int8"
        return [Hint("noise", text)]
    text = f"what is left looks like noise of standard deviation {deviation:.2g} on every entry: a defence? "
    return [Hint("noise", f"{text}Say so with --defence gaussian:{deviation:.2g}")]


def _is_white(rest: Float[np.ndarray, "... k"]) -> bool:
    deviation = float(rest.std())
    kurtosis = float(np.mean((rest - rest.mean()) ** 4) / deviation**4) if deviation else 0.0
    matrix = rest.reshape(-1, rest.shape[-1])
    tall, wide = max(matrix.shape), min(matrix.shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    edge = (1 + math.sqrt(wide / tall)) ** 2 / wide
    return bool(values[0] ** 2 < WHITE * edge * np.sum(values**2)) and 2 < kurtosis < 8


def scattered_zeros(update: PyTree) -> float:
    """Share of the entries that were set to zero: neither by units that are off (whole rows, columns or channels), nor
    because small values end there."""
    zeros = total = 0
    for leaf in leaves_of(update):
        if leaf.ndim < 2 or not np.any(leaf):
            continue
        magnitude = np.abs(leaf[leaf != 0])
        pruned = magnitude.min() > GAP * magnitude.max()  # else small values have become zero by themselves
        alive = np.ones(leaf.shape, bool)
        for axis in range(leaf.ndim):
            others = tuple(other for other in range(leaf.ndim) if other != axis)
            alive &= np.any(leaf, axis=others, keepdims=True)
        zeros += int(np.sum((leaf == 0) & alive)) if pruned else 0
        total += int(np.sum(alive))
    return zeros / max(total, 1)


def stuck_hint(victim: Victim, attack: Attack) -> list[Hint]:
    """A hint where the network has kinks, at which quasi-Newton steps end; it advises what `attack` is not."""
    if not piecewise_linear(victim):
        return []
    text = "the network is piecewise linear (ReLU or max-pooling): restarts get stuck there whatever the image; "
    advice = "the nearest picture comes from --attack ig --tv 0.03, or --objective cosine --tv 0.03 --box True"
    with contextlib.suppress(InputError):
        CLOSED_FORMS["rgap"].check(victim)
        advice = "--attack rgap does not search, but solves one layer after the other"
    if attack.init == "rgap" or (attack.objective == "cosine" and attack.tv and "rgap" not in advice):
        advice = "best.png is what this attack comes to; more --seeds or --iterations may come nearer"
    return [Hint("stuck", text + advice)]
