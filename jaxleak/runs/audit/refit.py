"""An update attacked again in float64, from given or drawn starts, without a run directory."""

import contextlib
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxleak.attacks.layer_weights import layer_weights
from jaxleak.attacks.objectives import share_left
from jaxleak.attacks.presets import Attack
from jaxleak.attacks.starts import CLOSED
from jaxleak.attacks.trial import Job, Trial
from jaxleak.engine import Engine, Finished
from jaxleak.kernels.precision import float64, full_precision
from jaxleak.solvers import LBFGS
from jaxleak.threat.client import client_update
from jaxleak.threat.victim import Victim

PATIENCE = 60.0  # seconds of a second attack, compiling not counted


class _ReachedError(Exception):
    """A restart has reached the floor, or time is up: the others do not go on."""


@dataclass(frozen=True)
class Refit:
    """The candidates that a second attack ended with, the one that leaves least first.

    Attributes:
        pixels: not cut to [0, 1].
        labels: that each worked with; [n, b, k] where targets are no classes.
        seeds: which start each came from.
        left: share of the update, squared, that each leaves: of the cosine 1 - cos^2.
    """

    pixels: Float[np.ndarray, "n b h w c"]
    labels: np.ndarray
    left: Float[np.ndarray, "n"]
    seeds: Int[np.ndarray, "n"]


def refit(
    victim: Victim,
    attack: Attack,
    *,
    starts: dict[str, np.ndarray] | None = None,
    seeds: int = 4,
    iterations: int = 100,
    floor: float = 0.0,
    every: bool = False,
) -> Refit:
    """Attack again in float64 with L-BFGS, without priors.

    Args:
        victim: with a given update, and what is now assumed of its client.
        attack: of it label strategy, objective, layers and start are used.
        starts: see `Trial.starts`; their number replaces `seeds`. None: drawn.
        seeds: restarts.
        iterations: of L-BFGS, of 20 evaluations each.
        floor: share at which a restart ends, and the others with it.
        every: the others go on.
    """
    plain = Attack(
        name="refit",
        label=attack.label,
        init="normal" if attack.init in CLOSED else attack.init,
        objective=attack.objective,
        scale="none" if attack.objective == "cosine" else "relative",
        layers=attack.layers,
        knows_defence=attack.knows_defence,
        solver=LBFGS(history=50),
        iterations=iterations,
        stop_objective=stop_for(attack.objective, floor, victim, layer_weights(attack.layers, victim.params)),
    )
    if starts is not None:
        seeds = len(next(iter(starts.values())))
    with float64():
        trial = Trial(attack=plain, victim=victim, threshold=plain.stop_objective, starts=starts, start_seed=1)
        engine = Engine(trial.without_data(), trial.shared(), lanes=min(seeds, 16))
        ended: list[Any] = []
        zeros = np.zeros(seeds, np.int32)
        image = np.full(seeds, victim.indices[0], np.int32)
        jobs = Job(np.arange(seeds, dtype=np.int32), zeros, image, np.arange(seeds, dtype=np.int32))

        began = time.monotonic()

        def in_time() -> None:
            if time.monotonic() - began > PATIENCE:
                raise _ReachedError

        def take(finished: Finished) -> None:
            ended.append((finished.outcomes, finished.jobs.seed))
            outcomes = finished.outcomes
            reached = share_left(plain.objective, outcomes.objective, outcomes.update_norm2) <= floor
            if not every and np.any(reached):
                raise _ReachedError

        with contextlib.suppress(_ReachedError):
            engine.run(jobs, take, in_time)
        engine.forget()
    if not ended:
        nothing = np.full((1, victim.batch, *victim.shape), np.nan)
        return Refit(nothing, np.zeros((1, *victim.answers.shape), int), np.array([np.inf]), np.zeros(1, int))
    outcome, seed = jax.tree.map(lambda *parts: np.concatenate(parts), *ended)
    left = share_left(plain.objective, outcome.objective, outcome.update_norm2)
    left = np.where(np.isfinite(left), left, np.inf)
    order = np.argsort(left)
    return Refit(outcome.candidate[order], outcome.label_found[order], left[order], seed[order])


def lowered(
    victim: Victim, attack: Attack, pixels: Float[np.ndarray, "n b h w c"], left: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n b h w c"], Float[np.ndarray, "n"]]:
    """L-BFGS from candidates where Gauss-Newton steps end in a curved valley, to a hundredth of what they leave.

    Args:
        victim: with a given update, and the targets that stay.
        attack: of it objective, layers and defence are used.
        pixels, left: the candidates, and the share that each leaves.

    Returns:
        What is lower, in the same order.
    """
    attack, floor = replace(attack, label="known"), float(np.min(left)) / 100
    found = refit(victim, attack, starts={"image": inputs(victim, pixels)}, iterations=300, floor=floor, every=True)
    pixels, left = pixels.copy(), left.copy()
    for lower, share, place in zip(found.pixels, found.left, found.seeds, strict=True):
        if share < left[place]:
            pixels[place], left[place] = lower, share
    return pixels, left


def stop_for(objective: str, floor: float, victim: Victim, weights: PyTree | None = None) -> float:
    """The objective at which half the floor is left; `weights` are those of the comparison."""
    if objective == "cosine":
        return floor / 4  # 1 - cos^2 is about twice 1 - cos
    return floor / 2 * squared_norm_of(victim.update, weights)


def squared_norm_of(update: PyTree, weights: PyTree | None = None) -> float:
    """Squared norm over all tensors, in float64; with the weight of each entry, if there are any."""
    if weights is None:
        weights = jax.tree.map(lambda leaf: 1.0, update)
    pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(update), strict=True)
    return sum(float(np.sum(weight * np.asarray(leaf, np.float64) ** 2)) for weight, leaf in pairs)


def starts_from(victim: Victim, pixels: Float[np.ndarray, "n b h w c"], labels: np.ndarray) -> dict:
    """Starts at these images with these labels [n, b] (or [n, b, k]); what "joint" optimises is confident of them."""
    encoded = victim.client.loss.encode(targets_of(victim, labels))
    return {"image": inputs(victim, pixels), "label": np.asarray(encoded)}


def inputs(victim: Victim, pixels: Float[np.ndarray, "n b h w c"]) -> Float[np.ndarray, "n b h w c"]:
    """The network's inputs for these images, in float64."""
    with float64():
        return np.asarray(victim.to_input(jnp.asarray(pixels)))


def update_at(
    victim: Victim, params: PyTree, pixels: Float[np.ndarray, "b h w c"], target: Float[np.ndarray, "b k"]
) -> PyTree:
    """The update that the assumed client would share, in float64."""
    with float64(), full_precision():
        arrays: Any = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, pixels, target))
        x = victim.to_input(arrays[1])
        update = client_update(victim.client, victim.attacker_model, arrays[0], x, arrays[2])
        return jax.tree.map(np.asarray, update)


def logits_at(victim: Victim, params: PyTree, pixels: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b k"]:
    """The network's outputs, in float64."""
    with float64(), full_precision():
        arrays: Any = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, pixels))
        return np.asarray(victim.attacker_model.apply({"params": arrays[0]}, victim.to_input(arrays[1])))


def with_labels(victim: Victim, labels: Any) -> Victim:
    """The victim with labels that an attack found, so that it can be attacked with label "known"."""
    if not victim.has_vectors:
        return replace(victim, labels=np.asarray(labels, np.int32))
    targets = targets_of(victim, labels)
    return replace(victim, targets=targets, labels=np.asarray(victim.client.loss.label(targets), np.int32))


def targets_of(victim: Victim, labels: Any) -> Float[np.ndarray, "... k"]:
    """Targets for labels [...], or the nearest ones that a client may have to vectors [..., k]."""
    loss, labels = victim.client.loss, np.asarray(labels)
    if victim.has_vectors:
        return np.asarray(loss.settle(labels.astype(np.float64)))
    return np.asarray(loss.target(np.maximum(labels, 0), victim.num_classes, float), np.float64)


def names_of(labels: Any) -> tuple[int | str, ...]:
    """Labels as words: of a vector its numbers."""
    vectors = np.ndim(labels) == 2
    return tuple(",".join(f"{number:.2g}" for number in label) if vectors else int(label) for label in labels)
