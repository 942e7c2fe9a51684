"""Attacks on an update that no restart explains, under other assumptions than those stated."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxleak.attacks.layer_weights import layer_weights
from jaxleak.runs.audit.floor import Floor
from jaxleak.runs.audit.group import HOPEFUL, NEAR
from jaxleak.runs.audit.hints import (
    Found,
    Hint,
    cosine,
    factor_between,
    flat,
    head_bias,
    noise_hint,
    scale_hint,
    stuck_hint,
)
from jaxleak.runs.audit.losses import OTHER, likely, loss_hints, slopes_at
from jaxleak.runs.audit.polish import CURVED, carry_on
from jaxleak.runs.audit.refit import (
    Refit,
    logits_at,
    lowered,
    names_of,
    refit,
    squared_norm_of,
    starts_from,
    targets_of,
    update_at,
    with_labels,
)
from jaxleak.threat.client import Client
from jaxleak.threat.loss import ANY_LOSS, CrossEntropy
from jaxleak.threat.victim import Victim

PATIENCE = 75.0  # seconds after which no further assumption is tried
BETTER = 30  # times less left: an assumption that does this is worth a hint, though it does not reach the floor
BETTER_STEPS = 3  # the same of local steps, whose number and length are guessed
STARTS = 6  # of which the first is the best candidate so far


@dataclass(frozen=True)
class Tried:
    """What an assumption leads to.

    Attributes:
        best: the best images under it.
        hints: that follow.
        as_stated: the images explain the update as it was stated: nothing was wrong but the starts.
    """

    best: Found
    hints: list[Hint]
    as_stated: bool = False


Act = Callable[[Found], Tried | None]  # None: it does not apply


@dataclass(frozen=True)
class Search:
    """What was tried on an update that no restart explains.

    Attributes:
        hints: why it is not explained.
        tried: {"assumption", "left"} of each assumption; `left` is None where time ran out.
        as_stated: another start explains the update under the stated assumptions.
    """

    hints: list[Hint]
    tried: list[dict[str, Any]]
    as_stated: bool


def search(
    victim: Victim, found: Found, floor: Floor, before: list[Hint], tell: Callable[[str], None] = lambda line: None
) -> Search:
    """Attack again under one assumption after the other, until one explains the update.

    Args:
        victim: with a given update.
        found: the best of the restarts.
        floor: what a right model leaves.
        before: of `hints_before`.
        tell: takes a line before each assumption is tried.
    """
    hints, tried, began, stated = [], [], time.monotonic(), found.attack
    for assumption, act in _assumptions(victim, floor, before):
        if time.monotonic() - began > PATIENCE:
            tried.append({"assumption": assumption, "left": None})
            continue
        tell(f"audit: no restart explains the update; trying another assumption: {assumption}")
        try:
            outcome = act(found)
        except Exception as error:  # it cannot be tried, as train mode on one value per channel; the report is written
            tried.append({"assumption": assumption, "left": None, "error": " ".join(str(error).split())[:200]})
            continue
        if outcome is None:
            continue
        tried.append({"assumption": assumption, "left": outcome.best.left})
        hints += outcome.hints
        if outcome.as_stated or any(hint.proven for hint in outcome.hints):
            return Search(hints, tried, outcome.as_stated)
        if outcome.best.left < found.left:
            found = outcome.best
        if assumption.startswith("any") and (noise := noise_hint(victim, found)):
            return Search(hints + noise, tried, False)  # nothing but noise is left: no other assumption will do
    return Search(hints + (noise_hint(victim, found) or stuck_hint(victim, stated)), tried, False)


def _assumptions(victim: Victim, floor: Floor, before: list[Hint]) -> Iterator[tuple[str, Act]]:
    """The most likely ones first."""
    codes = {hint.code for hint in before}
    one_step = not victim.client.trains and victim.client.clients == 1 and head_bias(victim) is not None
    train_mode = "BatchNorm in train mode", lambda found: _train_mode(victim, found, floor)
    if "batchnorm-train" in codes:
        yield train_mode
    if one_step and victim.batch == 1:
        yield "any loss", lambda found: _any_loss(victim, found, floor)
    else:
        if "sign" in codes:
            yield "the other sign, any scale", lambda found: _any_scale(victim, found, floor, sign=-1)
        yield "any scale", lambda found: _any_scale(victim, found, floor, sign=1)
        if one_step:
            yield "any loss", lambda found: _any_loss_of_batch(victim, found, floor)
    if "batchnorm-train" not in codes:
        yield train_mode
    yield "other local steps", lambda found: _other_steps(victim, found, floor)


def _starts(victim: Victim, found: Found, count: int = STARTS) -> dict[str, np.ndarray]:
    """The best candidate, and normal ones."""
    drawn = np.random.default_rng(0).normal(size=(count - 1, *found.pixels.shape))
    pixels = np.concatenate([np.clip(found.pixels[None], -1, 2), drawn])
    return starts_from(victim, pixels, np.stack([np.asarray(found.labels)] * count))


def _carried(
    assumed: Victim, again: Refit, target: np.ndarray, found: Found, floor: Floor, *, free_of_scale: bool = False
) -> Found:
    """The best candidate of a refit, carried on by Gauss-Newton steps.

    Where these end above the floor, the valley is curved still: L-BFGS goes a hundred times lower, and they go on.
    """
    best = Found(found.attack, again.pixels[0], np.asarray(again.labels[0]), float(again.left[0]))
    weights = layer_weights(found.attack.layers, assumed.params)
    known = replace(assumed, targets=np.asarray(target, np.float64))
    attack = replace(found.attack, objective="cosine" if free_of_scale else "l2")
    for last in (False, True):
        if not best.left < HOPEFUL:
            break
        carried, _ = carry_on(assumed, best.pixels, target, weights, floor.value, free_of_scale=free_of_scale)
        if carried.left < best.left:
            best = replace(best, pixels=carried.pixels, left=carried.left)
        if best.left <= floor.value or carried.promised < CURVED or last:
            break
        pixels, left = lowered(known, attack, best.pixels[None], np.array([best.left]))
        best = replace(best, pixels=pixels[0], left=float(left[0]))
    return best


def _any_loss(victim: Victim, found: Found, floor: Floor) -> Tried:
    """The image that explains the update of one image whatever the loss, its sign and its scale; then which loss it is.

    The head's bias gradient is the slope of the loss at the outputs, so the slope is known.
    """
    slope = head_bias(victim)
    assert slope is not None
    assumed = replace(victim, client=replace(victim.client, loss=ANY_LOSS), targets=slope[None])
    attack = replace(found.attack, label="known")
    again = refit(assumed, attack, starts=_starts(victim, found), iterations=150, floor=NEAR)
    best = _carried(assumed, again, slope[None], found, floor)
    best = replace(best, labels=found.labels if victim.has_vectors else np.array([np.argmin(slope)]))
    if not best.left <= floor.value:
        return Tried(best, [])
    assumed_label = None if victim.has_vectors else int(found.labels[0])
    hints = loss_hints(logits_at(victim, victim.params, best.pixels)[0], slope, victim, assumed_label)
    return Tried(best, hints, as_stated=not hints)


def _any_scale(victim: Victim, found: Found, floor: Floor, sign: int) -> Tried:
    """The images that explain the update's direction; then by how much it was scaled."""
    given = victim if sign > 0 else replace(victim, update=jax.tree.map(lambda leaf: -leaf, victim.update))
    again = refit(given, replace(found.attack, objective="cosine"), seeds=STARTS, iterations=200, floor=NEAR)
    target = targets_of(victim, again.labels[0])
    best = _carried(given, again, target, found, floor, free_of_scale=True)
    if not best.left <= floor.value:
        return Tried(best, [])
    factor = factor_between(update_at(victim, victim.params, best.pixels, target), given.update)
    hints = [] if abs(factor - 1) < 1e-3 else [scale_hint(factor, victim)]
    if sign < 0:
        labels = " ".join(map(str, names_of(best.labels)))
        text = f"with the other sign the update is explained (labels {labels}): give before minus after"
        hints.insert(0, Hint("sign", text, proven=True))
    return Tried(best, hints, as_stated=not hints)


def _any_loss_of_batch(victim: Victim, found: Found, floor: Floor) -> Tried:
    """The images that explain the update of a batch whatever the loss; then which smoothing or scale it is."""
    assumed = replace(victim, client=replace(victim.client, loss=ANY_LOSS))
    outputs = logits_at(victim, victim.params, found.pixels)
    targets = targets_of(victim, found.labels)
    slopes = np.concatenate(
        [slopes_at(victim.client.loss, *pair) for pair in zip(outputs, targets[:, None], strict=True)]
    )
    starts = _starts(victim, found)
    starts["label"] = np.broadcast_to(slopes, (STARTS, *slopes.shape)).copy()
    attack = replace(found.attack, label="joint", objective="cosine")
    again = refit(assumed, attack, starts=starts, iterations=300, floor=floor.value)
    best = Found(found.attack, again.pixels[0], np.asarray(found.labels), float(again.left[0]))
    return Tried(best, _loss_of_batch(victim, best, floor))


def _loss_of_batch(victim: Victim, found: Found, floor: Floor) -> list[Hint]:
    """Which loss, smoothing, sign and scale the update has at the images found.

    Under label smoothing e it is f ((1 - 2 e) u(0) + 2 e u(1/2)), with u(e) the update of cross-entropy smoothed by e.
    """
    if not found.left <= max(floor.value, NEAR):
        return []
    labels, wanted = _in_order(victim, found), flat(victim.update)
    assumed = victim.client.loss
    for loss in likely(assumed, victim.num_classes):
        parts = [replace(loss, smoothing=e) for e in (0.0, 0.5)] if isinstance(loss, CrossEntropy) else [loss]
        others = [replace(victim, client=replace(victim.client, loss=part)) for part in parts]
        target = targets_of(victim, labels)
        basis = np.stack([flat(update_at(other, victim.params, found.pixels, target)) for other in others], axis=1)
        factors, *_ = np.linalg.lstsq(basis, wanted, rcond=None)
        if np.sum((basis @ factors - wanted) ** 2) > 10 * max(floor.value, NEAR) * np.sum(wanted**2):
            continue
        factor, smoothing = float(np.sum(factors)), float(factors[-1] / np.sum(factors) / 2) if len(parts) > 1 else 0.0
        hints = []
        if factor < 0:
            hints.append(Hint("sign", "with the other sign the update is explained", proven=True))
        if type(loss) is not type(assumed):
            hints.append(Hint("loss", f"with --loss {loss.name} the update is explained", proven=True))
        if abs(smoothing - getattr(assumed, "smoothing", 0.0)) > 1e-3:
            text = f"with label smoothing {smoothing:.3g} the update is explained (--label-smoothing)"
            hints.append(Hint("loss", text, proven=True))
        if abs(abs(factor) - 1) > 1e-3:
            hints.append(scale_hint(abs(factor), victim))
        return hints
    return [OTHER]


def _in_order(victim: Victim, found: Found) -> np.ndarray:
    """The labels in the order of the images: that in which the update fits best."""
    labels = np.asarray(found.labels)
    if len(labels) > 5 or labels.ndim > 1:
        return labels
    orders = [np.asarray(order) for order in sorted(set(itertools.permutations(labels.tolist())))]

    def fit(order: np.ndarray) -> float:
        return abs(cosine(update_at(victim, victim.params, found.pixels, targets_of(victim, order)), victim.update))

    return max(orders, key=fit)


def _train_mode(victim: Victim, found: Found, floor: Floor) -> Tried | None:
    """BatchNorm in train mode, where evaluation mode was assumed."""
    if not victim.learns_statistics:
        return None
    other = victim.in_training()
    attack = replace(found.attack, objective="l2")
    again = refit(other, attack, starts=_starts(victim, found, 4), iterations=150, floor=NEAR)
    best = _carried(other, again, targets_of(victim, again.labels[0]), found, floor)
    proven = best.left <= floor.value
    if not (proven or best.left * BETTER < found.left):
        return Tried(best, [])
    text = f"with BatchNorm in train mode {best.left:.1g} of the update is left, not {found.left:.1g}: "
    return Tried(best, [Hint("batchnorm-train", text + "use --model-field train=true", proven=proven)])


def _other_steps(victim: Victim, found: Found, floor: Floor) -> Tried | None:
    """Local steps that were not stated, or another number of them: the residual lies along the later steps.

    The update of a few small steps points along g - (t / 2) H g, with g the gradient, H the Hessian and t the steps'
    total length but one. That is the direction of two steps of length t, which is fitted.
    """
    client, known = victim.client, with_labels(victim, found.labels)
    stated = client.total_steps(victim.batch)
    if client.trains:
        numbers = dict.fromkeys((1, 2 * stated, stated // 2, 5, 10))
        options = [with_steps(client, number, victim.batch) for number in numbers if number and number != stated][:3]
    else:
        length = _length_of_steps(victim, found)
        options = [replace(client, steps=2, lr=length * times) for times in (1.0, 2.0)] if length else []
    best, chosen = found, client
    for option in options:
        assumed, attack = replace(known, client=option), replace(found.attack, label="known", objective="cosine")
        again = refit(assumed, attack, starts=_starts(victim, found, 2), iterations=60, floor=NEAR)
        new = _carried(assumed, again, targets_of(victim, again.labels[0]), found, floor, free_of_scale=True)
        if new.left < best.left:
            best, chosen = new, option
        if best.left <= floor.value:
            break
    proven = best.left <= floor.value
    if not options or not (proven or best.left * BETTER_STEPS < found.left):
        return Tried(best, []) if options else None
    steps = f"with {chosen.steps} local steps instead of {stated}" if client.trains else "with more local steps"
    left = f"{best.left:.1g} of the update's direction is left, not {found.left:.1g}"
    return Tried(best, [Hint("client-steps", f"{steps} {left}: check --client-steps and --client-lr", proven=proven)])


def with_steps(client: Client, steps: int, images: int) -> Client:
    """The client with another number of local steps: of a schedule the mean rate, of several orders the first."""
    first = client.order[: images // client.clients]
    return replace(client, steps=steps, epochs=0, lr=float(np.mean(client.rates(images))), order=first)


def _length_of_steps(victim: Victim, found: Found) -> float:
    """t of `_other_steps`, by least squares at the best images so far; 0 where the residual does not lie so."""
    params, target = victim.params, targets_of(victim, found.labels)
    gradient = update_at(victim, params, found.pixels, target)
    small = 1e-4 * math.sqrt(squared_norm_of(params) / max(squared_norm_of(gradient), 1e-300))
    moved = jax.tree.map(lambda weight, slope: np.asarray(weight, np.float64) - small * slope, params, gradient)
    here, later = flat(gradient), flat(update_at(victim, moved, found.pixels, target))
    basis = np.stack([here, (here - later) / small], axis=1)  # g and H g
    (first, second), *_ = np.linalg.lstsq(basis, flat(victim.update), rcond=None)
    return float(max(0.0, -2 * second / first)) if first else 0.0
