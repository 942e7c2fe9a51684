"""Which loss has a given slope at given outputs of one image."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxleak.runs.audit.hints import Hint, scale_hint
from jaxleak.threat.victim import Victim

CLOSE = 1e-3  # relative error of a slope that is explained
OTHER = Hint(
    "loss", "the update is explained by another loss than cross-entropy; which one was not found", proven=True
)  # fmt: skip


class Multiple(NamedTuple):
    """The multiple of one of several slopes that is nearest to a given one."""

    factor: float
    label: int  # which of them
    error: float  # relative


class Smoothed(NamedTuple):
    """Cross-entropy with label smoothing that is nearest to a given slope."""

    error: float
    smoothing: float
    label: int
    sign: float


def loss_hints(
    outputs: Float[np.ndarray, "k"], slope: Float[np.ndarray, "k"], victim: Victim, assumed: int
) -> list[Hint]:
    """Which loss it is: cross-entropy with another sign, scale, label or smoothing, or another loss.

    Args:
        outputs: of the network at the image.
        slope: gradient of the loss with respect to them.
        victim: to name the scale.
        assumed: label that the attack worked with.

    Returns:
        Hints, none where the loss is what was assumed.
    """
    hots = np.eye(outputs.size)
    soft = np.exp(outputs - outputs.max())
    soft /= soft.sum()
    factor, label, error = _nearest(soft - hots, slope)
    if error < CLOSE:
        hints = []
        if factor < 0:
            text = f"with the other sign the update is explained (label {label}): give before minus after"
            hints.append(Hint("sign", text, proven=True))
        if abs(abs(factor) - 1) > CLOSE:
            hints.append(scale_hint(abs(factor), victim))
        if not hints and label != assumed:
            hints.append(Hint("label", f"the label is {label}, and the attack worked with {assumed}", proven=True))
        return hints
    smoothed = _smoothed(soft, slope)
    if smoothed.error < CLOSE and 0 < smoothed.smoothing < 1:
        text = f"with label smoothing {smoothed.smoothing:.3g} the update is explained (label {smoothed.label})"
        other = [] if smoothed.sign > 0 else [Hint("sign", "and with the other sign", proven=True)]
        return [Hint("loss", text, proven=True), *other]
    for name, slopes in (
        ("binary cross-entropy on a one-hot target", 1 / (1 + np.exp(-outputs)) - hots),
        ("squared error to a one-hot target", outputs - hots),
    ):
        factor, label, error = _nearest(slopes, slope)
        if error < CLOSE:
            text = f"with {name} the update is explained (label {label}, times {factor:.3g})"
            return [Hint("loss", text, proven=True)]
    return [OTHER]


def _nearest(slopes: Float[np.ndarray, "n k"], slope: Float[np.ndarray, "k"]) -> Multiple:
    factors = slopes @ slope / np.maximum(np.sum(slopes**2, axis=1), 1e-300)
    errors = np.linalg.norm(factors[:, None] * slopes - slope, axis=1) / np.linalg.norm(slope)
    place = int(np.argmin(errors))
    return Multiple(float(factors[place]), place, float(errors[place]))


def _smoothed(soft: Float[np.ndarray, "k"], slope: Float[np.ndarray, "k"]) -> Smoothed:
    """By least squares: sign slope = soft - hot + e (hot - 1/k)."""
    fits = []
    for sign in (1.0, -1.0):
        for label, hot in enumerate(np.eye(soft.size)):
            direction, rest = hot - 1 / soft.size, sign * slope - (soft - hot)
            smoothing = float(direction @ rest / (direction @ direction))
            error = float(np.linalg.norm(rest - smoothing * direction) / np.linalg.norm(slope))
            fits.append(Smoothed(error, smoothing, label, sign))
    return min(fits)
