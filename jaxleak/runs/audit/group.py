"""The restarts of one attack: carried on in float64, held against the floor, and judged."""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxleak.attacks.closed_forms import foretold_error
from jaxleak.attacks.layer_weights import layer_weights
from jaxleak.attacks.objectives import share_left
from jaxleak.attacks.presets import Attack
from jaxleak.attacks.starts import SAME_EVERY_TIME
from jaxleak.kernels.precision import float64, full_precision
from jaxleak.results.agreement import AGREES, Restarts, restarts
from jaxleak.results.matching import match
from jaxleak.results.metrics import relative_error
from jaxleak.results.result import Result
from jaxleak.runs.audit.determinacy import Determined, determined_at
from jaxleak.runs.audit.floor import Floor
from jaxleak.runs.audit.information import Information, compiled, information
from jaxleak.runs.audit.polish import CURVED, carry_on
from jaxleak.runs.audit.refit import lowered, names_of, refit, starts_from, targets_of, with_labels
from jaxleak.runs.audit.verdict import Restart, Verdict, iterations_needed, judge
from jaxleak.threat.victim import Victim

POLISHED = 8  # restarts of an attack that are carried on in float64
NEAR = 1e-6  # share of the update, squared, at which L-BFGS stops and Gauss-Newton steps go on
HOPEFUL = 1e-3  # a restart that stalled with no more left is carried on too
BIASED = 0.1  # the same of an attack with priors, which keep its restarts above the floor
DIFFERENT = 4  # images of which the information is computed, at most
MOVED = 0.02  # relative distance after which the information is computed anew


@dataclass(frozen=True, eq=False)
class Group:
    """The restarts of one attack and their verdict, the restart that leaves least first.

    Attributes:
        attack: theirs.
        restarts: images, labels and distances from the best one.
        ended: how each ended.
        verdict: of this attack alone.
        determined: what the update determines of the best restart's images; None where no restart comes near.
    """

    attack: Attack
    restarts: Restarts
    ended: list[Restart]
    verdict: Verdict
    determined: Determined | None

    @property
    def left(self) -> float:
        """Share that the best restart leaves; inf without any."""
        return self.ended[0].left if self.ended else float("inf")


class Known:
    """Information that was computed, for attacks that compare the same and images that are nearly the same."""

    def __init__(self):
        self._entries: list[tuple[Any, np.ndarray, np.ndarray, Information]] = []

    def beside(
        self, attack: Attack, images: np.ndarray, target: np.ndarray, within: float = AGREES
    ) -> Information | None:
        """That of images within this relative distance; None if there is none."""
        for compares, others, targets, found in self._entries:
            alike = compares == self._compares(attack) and np.array_equal(targets, target)
            if alike and np.all(relative_error(np.asarray(images), others) < within):
                return found
        return None

    def add(self, attack: Attack, images: np.ndarray, target: np.ndarray, found: Information) -> None:
        """Keep it; the latest is found first."""
        self._entries.insert(0, (self._compares(attack), np.asarray(images), target, found))

    def _compares(self, attack: Attack) -> Any:
        return attack.layers, attack.objective, attack.knows_defence


class _Carried(NamedTuple):
    """Restarts after Gauss-Newton steps, in the order they had."""

    images: list[np.ndarray]
    left: list[float]
    ended: list[Restart]


def compared(victim: Victim, attack: Attack) -> PyTree:
    """Weight of each entry of the update in the comparison."""
    weights = layer_weights(attack.layers, victim.params)
    if not attack.knows_defence:
        return weights
    return jax.tree.map(lambda weight, leaf: weight * (np.asarray(leaf) != 0), weights, victim.update)


def group_of(result: Result, victim: Victim, attack: Attack, floor: Floor, known: Known, *, stopped: bool) -> Group:
    """The restarts of one attack and their verdict.

    Args:
        result: the run.
        victim: with a given update.
        attack: as it was run.
        floor: what a right model leaves.
        known: information computed so far; what is computed here is added.
        stopped: restarts may have stopped at an objective that was asked for, above the floor.
    """
    group = restarts(result, attack.name)
    if victim.has_vectors:
        group = group._replace(labels=[targets_of(victim, found).tolist() for found in group.labels])
    if attack.init in SAME_EVERY_TIME and attack.label != "joint" and not attack.solver.random:
        group = _first(group)  # the others are the same run again
    ended = _endings(result, attack, group, floor, stopped)
    determined, limit = None, attack.max_evaluations or attack.iterations
    if ended:
        group, ended, determined = _brought_to_floor(victim, attack, group, ended, floor, known)
    verdict = judge(
        ended if group.total else None,
        group.distances < AGREES,
        floor.value,
        determined.sentences if determined else None,
        budget=limit,
        flag="--max-evaluations" if attack.max_evaluations is not None else "--iterations",
        needed=1 if attack.solver.closed_form else 2,
        alone="" if len(ended) != 1 or attack.init not in SAME_EVERY_TIME else "use --start normal",
    )
    if verdict.verdict == "recovered" and determined is not None and determined.filled:
        verdict = replace(verdict, reasons=[*verdict.reasons, determined.filled])
    return Group(attack, group, ended, verdict, determined)


def _first(group: Restarts) -> Restarts:
    rows, labels = group.rows[:1], group.labels[:1]
    return group._replace(rows=rows, images=group.images[:1], distances=group.distances[:1], labels=labels)


def _endings(result: Result, attack: Attack, group: Restarts, floor: Floor, stopped: bool) -> list[Restart]:
    """How the restarts ended, before they are carried on."""
    trials = [row["trial"] for row in group.rows]
    traces = {}
    if trials:
        arrays = result.run.arrays(["trial", "objective_trace"], trials=trials)
        traces = dict(zip(arrays["trial"].tolist(), arrays["objective_trace"], strict=True))
    ended = []
    for row, labels in zip(group.rows, group.labels, strict=True):
        left = float(share_left(attack.objective, row["objective"], row["update_norm2"]))
        spent = row["iterations"] >= attack.iterations
        needs = iterations_needed(
            share_left(attack.objective, traces[row["trial"]], row["update_norm2"]), floor.value
        )  # fmt: skip
        if attack.max_evaluations is not None:
            spent |= row["evaluations"] >= attack.max_evaluations
            needs *= row["evaluations"] / max(row["iterations"], 1)
        spent |= stopped and row["objective"] < attack.stop_objective
        if not attack.published_as_it_is:
            needs = float("inf")  # its priors keep it above the floor, however long it runs
        ended.append(Restart(left, spent and left > floor.value, needs, names_of(labels)))
    return ended


def _brought_to_floor(
    victim: Victim, attack: Attack, group: Restarts, ended: list[Restart], floor: Floor, known: Known
) -> tuple[Restarts, list[Restart], Determined | None]:
    """The restarts, those that came near carried on in float64; and what is determined of the best one's images."""
    near = 10 * max(NEAR, floor.value)
    try:
        carried = _carried_on(victim, attack, group, ended, floor, known)
    except Exception as error:  # a model that cannot be differentiated forwards, memory
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"{attack.name}: restarts cannot be carried on in float64 ({reason})", stacklevel=2)
        return group, ended, None
    images, left, ended = carried
    order = sorted(range(len(ended)), key=lambda place: left[place] if np.isfinite(left[place]) else np.inf)
    best = images[order[0]]
    slots = [match(images[place], best) for place in order]
    ordered = [images[place][slot] for place, slot in zip(order, slots, strict=True)]
    labels = [np.asarray(group.labels[place])[slot].tolist() for place, slot in zip(order, slots, strict=True)]
    distances = np.stack([relative_error(np.asarray(image), np.asarray(best)) for image in ordered])
    ended = [replace(ended[place], labels=names_of(found)) for place, found in zip(order, labels, strict=True)]
    rows = [group.rows[place] for place in order]
    group = group._replace(rows=rows, images=np.stack(ordered), distances=distances, labels=labels)
    if not left[order[0]] <= max(near, HOPEFUL):
        return group, ended, None
    found = _information_at(victim, attack, best, targets_of(victim, labels[0]), known)
    agreeing = [
        apart for apart, restart in zip(distances, ended, strict=True)
        if restart.left <= floor.value and np.all(apart < AGREES)
    ]  # fmt: skip
    spread = float(np.max(agreeing)) if len(agreeing) > 1 else None
    weights = compared(victim, attack)
    determined = determined_at(victim, best, found, floor, weights, spread)
    smooth = attack.init == "rgap" and found.exact and ended[0].left <= floor.value
    if determined.sentences and smooth and math.isfinite(foretold := _foretold(victim, best)):
        determined = determined_at(victim, best, found, floor, weights, spread, foretold)
    # Restarts drift along directions that are free and end above the floor; others have nothing to show there.
    drifted = bool(determined.sentences) and found.exact
    return group, ended, determined if left[order[0]] <= near or drifted else None


def _foretold(victim: Victim, pixels: np.ndarray) -> float:
    with float64(), full_precision():
        given = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (victim.params, victim.update, pixels))
        return float(compiled(victim, _foretold_error, False, given)(*given))


def _foretold_error(victim: Victim, free_of_scale: bool, params: PyTree, update: PyTree, pixels):
    del free_of_scale
    return foretold_error(victim, params, update, pixels)


def _information_at(victim: Victim, attack: Attack, images, target, known: Known) -> Information:
    """The information of the entries that are compared, each counted once: weights are a preference, not noise."""
    weights = compared(victim, attack)
    plain = all(np.all((np.asarray(leaf) == 0) | (np.asarray(leaf) == 1)) for leaf in jax.tree.leaves(weights))
    found = known.beside(attack, images, target, MOVED) if plain else None
    if found is not None:
        return found
    mask = jax.tree.map(lambda leaf: (np.asarray(leaf) > 0).astype(np.float64), weights)
    free = attack.objective == "cosine"
    found = information(victim, victim.params, images, target, mask, free_of_scale=free)
    if plain:
        known.add(attack, images, target, found)
    return found


def _carried_on(
    victim: Victim, attack: Attack, group: Restarts, ended: list[Restart], floor: Floor, known: Known
) -> _Carried:
    """Gauss-Newton steps from the restarts that came near, or that stalled; from those with priors L-BFGS first.

    In a curved valley, where the steps end early, L-BFGS goes lower and they go on.
    """
    near, biased = 10 * max(NEAR, floor.value), not attack.published_as_it_is
    images, left, ended = list(group.images), [restart.left for restart in ended], list(ended)
    hope = BIASED if biased else HOPEFUL
    places = [
        place
        for place, restart in enumerate(ended)
        if restart.left <= near or (restart.left <= hope and (biased or not restart.by_budget))
    ][:POLISHED]
    if biased and places:
        labels = np.array([group.labels[place] for place in places])
        starts = starts_from(victim, np.stack([images[place] for place in places]), labels)
        again = refit(victim, attack, starts=starts, iterations=60, floor=NEAR, every=True)
        for pixels, share, seed in zip(again.pixels, again.left, again.seeds, strict=True):
            if share < left[places[seed]]:
                images[places[seed]], left[places[seed]] = pixels, float(share)
    weights, free, fresh = compared(victim, attack), attack.objective == "cosine", DIFFERENT

    def carry(place: int) -> bool:
        """Gauss-Newton steps from one restart; True if they end above the floor in a curved valley."""
        nonlocal fresh
        target = targets_of(victim, group.labels[place])
        beside = known.beside(attack, images[place], target)
        fresh -= beside is None
        if fresh < 0:
            return False
        new, found = carry_on(victim, images[place], target, weights, floor.value, free_of_scale=free, known=beside)
        if found is not beside:
            known.add(attack, images[place], target, found)
        if new.left < left[place]:
            images[place], left[place] = new.pixels, new.left
        # A Gauss-Newton step that gains nothing shows a minimum: more iterations would not lower it.
        ends = left[place] <= floor.value or (left[place] <= near and found.exact)
        ended[place] = replace(ended[place], by_budget=ended[place].by_budget and not ends)
        return floor.value < left[place] < HOPEFUL and new.promised > CURVED

    curved = [place for place in places if carry(place)]
    if curved:
        labels = group.labels[min(curved, key=lambda place: left[place])]
        alike = [place for place in curved if np.array_equal(group.labels[place], labels)]
        stated, plain = with_labels(victim, labels), replace(attack, objective="cosine" if free else "l2")
        pixels, share = np.stack([images[place] for place in alike]), np.array([left[place] for place in alike])
        lower = lowered(stated, plain, pixels, share)
        for place, found, share in zip(alike, *lower, strict=True):
            images[place], left[place] = found, float(share)
            carry(place)
    ended = [replace(restart, left=share) for restart, share in zip(ended, left, strict=True)]
    return _Carried(images, left, ended)
