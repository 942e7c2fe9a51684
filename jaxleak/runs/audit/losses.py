"""Which loss has a given slope at given outputs of one image."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxleak.errors import InputError
from jaxleak.kernels.precision import float64
from jaxleak.runs.audit.hints import Hint, scale_hint
from jaxleak.threat.loss import LOSSES, CrossEntropy, Loss
from jaxleak.threat.victim import Victim

CLOSE = 1e-3  # relative error of a slope that is explained
OTHER = Hint(
    "loss", "the update is explained by another loss than was stated; which one was not found", proven=True
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


def likely(assumed: Loss, outputs: int) -> Iterator[Loss]:
    """The assumed loss without smoothing, and then the others that clients have."""
    yield replace(assumed, smoothing=0.0) if isinstance(assumed, CrossEntropy) else assumed
    for kind in LOSSES.values():
        loss = kind()
        try:
            loss.check(outputs)
        except InputError:
            continue
        if not isinstance(assumed, kind):
            yield loss


def slopes_at(
    loss: Loss, outputs: Float[np.ndarray, "k"], targets: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "n k"]:
    """The loss's gradient with respect to the outputs of one image, for each target, in float64."""
    with float64():
        here, there = jnp.asarray(outputs, jnp.float64), jnp.asarray(targets, jnp.float64)
        return np.asarray(jax.vmap(lambda t: jax.grad(lambda o: loss.value(o[None], t[None]))(here))(there))


def loss_hints(
    outputs: Float[np.ndarray, "k"], slope: Float[np.ndarray, "k"], victim: Victim, assumed: int | None
) -> list[Hint]:
    """Which loss it is: the assumed one with another sign, scale, label or smoothing, or another loss.

    Args:
        outputs: of the network at the image.
        slope: gradient of the loss with respect to them.
        victim: to name the scale, and for the assumed loss.
        assumed: label that the attack worked with; None: its target was no class.

    Returns:
        Hints, none where the loss is what was assumed.
    """
    stated = victim.client.loss
    for loss in [stated, *likely(stated, outputs.size)]:
        multiple, targets = _nearest_target(loss, outputs, slope)
        if multiple.error < CLOSE:
            break
        smoothed = _smoothed(loss, outputs, slope) if isinstance(loss, CrossEntropy) and outputs.size > 1 else None
        if smoothed and smoothed.error < CLOSE and -CLOSE < smoothed.smoothing < 1:
            amount = f"{max(smoothed.smoothing, 0):.3g}"
            text = f"with label smoothing {amount} the update is explained (label {smoothed.label})"
            other = [] if smoothed.sign > 0 else [Hint("sign", "and with the other sign", proven=True)]
            return [Hint("loss", f"{text}: use --label-smoothing {amount}", proven=True), *other]
    else:
        return [OTHER]
    factor, place, _ = multiple
    label = int(np.asarray(loss.label(targets[place])))
    if loss != stated:
        which = f"label {label}" if place < loss.classes(outputs.size) else f"targets {_bits(targets[place])}"
        text = f"with --loss {loss.kind} the update is explained ({which}, times {factor:.3g})"
        return [Hint("loss", text, proven=True)]
    hints = []
    if factor < 0:
        text = f"with the other sign the update is explained (label {label}): give before minus after"
        hints.append(Hint("sign", text, proven=True))
    if abs(abs(factor) - 1) > CLOSE:
        hints.append(scale_hint(abs(factor), victim))
    if not hints and assumed is not None and label != assumed:
        text = f"the label is {label}, and the attack worked with {assumed}: use --label bias, or --labels {label}"
        hints.append(Hint("label", text, proven=True))
    return hints


def _bits(target: Float[np.ndarray, "k"]) -> str:
    return ",".join(f"{number:g}" for number in target)


def _nearest_target(loss: Loss, outputs, slope) -> tuple[Multiple, Float[np.ndarray, "n k"]]:
    """The nearest of the loss's slopes over all classes; of bits also over those that the slope's signs show."""
    with float64():
        targets = np.asarray(loss.target(np.arange(loss.classes(outputs.size)), outputs.size, float))
    if loss.targets == "bits":
        targets = np.concatenate([targets, [slope < 0, slope > 0]])
    return _nearest(slopes_at(loss, outputs, targets), slope), targets


def _nearest(slopes: Float[np.ndarray, "n k"], slope: Float[np.ndarray, "k"]) -> Multiple:
    factors = slopes @ slope / np.maximum(np.sum(slopes**2, axis=1), 1e-300)
    errors = np.linalg.norm(factors[:, None] * slopes - slope, axis=1) / np.linalg.norm(slope)
    # Of one output every slope is a multiple of every other: then that with the most likely factor.
    place = int(np.argmin(np.where(errors <= errors.min() + 1e-6, np.abs(factors - 1), np.inf)))
    return Multiple(float(factors[place]), place, float(errors[place]))


def _smoothed(loss: CrossEntropy, outputs: Float[np.ndarray, "k"], slope: Float[np.ndarray, "k"]) -> Smoothed:
    """By least squares: sign slope = s(0) + 2 e (s(1/2) - s(0)), with s(e) the slope of smoothing e, linear in it."""
    hots, halves = (slopes_at(replace(loss, smoothing=e), outputs, np.eye(slope.size)) for e in (0.0, 0.5))
    fits = []
    for sign in (1.0, -1.0):
        for label, (hot, half) in enumerate(zip(hots, halves, strict=True)):
            direction, rest = 2 * (half - hot), sign * slope - hot
            smoothing = float(direction @ rest / (direction @ direction))
            error = float(np.linalg.norm(rest - smoothing * direction) / np.linalg.norm(slope))
            fits.append(Smoothed(error, smoothing, label, sign))
    return min(fits)
