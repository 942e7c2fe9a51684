"""An audit of an update: attack it from several starts, and say what can be said."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxleak.attacks.layer_weights import layer_weights
from jaxleak.attacks.objectives import share_left
from jaxleak.attacks.presets import Attack
from jaxleak.errors import InputError
from jaxleak.results.agreement import AGREES, Restarts, draw, restarts, write_best
from jaxleak.results.matching import batch_metrics, match
from jaxleak.results.metrics import relative_error
from jaxleak.results.result import Result
from jaxleak.runs.audit.assumptions import search
from jaxleak.runs.audit.determinacy import Determined, determined_at, draw_map
from jaxleak.runs.audit.floor import Floor, floor_of
from jaxleak.runs.audit.hints import Found, Hint, factor_between, hints_before, scale_hint
from jaxleak.runs.audit.information import Information, information
from jaxleak.runs.audit.polish import carry_on
from jaxleak.runs.audit.refit import stop_for, targets_of, update_at
from jaxleak.runs.audit.report import write
from jaxleak.runs.audit.verdict import VERDICTS, Restart, Verdict, iterations_needed, judge
from jaxleak.runs.run import run_sweep
from jaxleak.runs.session import Enough
from jaxleak.runs.sweep import Sweep
from jaxleak.threat.defences import Clip, shows_zeros
from jaxleak.threat.victim import Victim

POLISHED = 8  # restarts of an attack that are carried on in float64
NEAR = 1e-6  # share of the update, squared, at which L-BFGS stops and Gauss-Newton steps go on
HOPEFUL = 1e-3  # a restart that stalled with no more left is carried on too
FEW = 3  # times the budget
DIFFERENT = 2  # images of which the information is computed
ENOUGH = 2  # restarts that explain the update: further ones do not change the verdict


@dataclass(frozen=True, eq=False)
class Group:
    """The restarts of one attack and their verdict, the restart that leaves least first.

    Attributes:
        attack: theirs.
        restarts: images, labels and distances from the best one.
        ended: how each ended.
        verdict: of this attack alone.
        determined: what the update determines of the best restart's images; None where that explains nothing.
    """

    attack: Attack
    restarts: Restarts
    ended: list[Restart]
    verdict: Verdict
    determined: Determined | None


def fitted(sweep: Sweep, silent: Sequence[str], *, stops: bool = True) -> tuple[Sweep, Floor]:
    """The sweep with attacks that fit the update, and the floor.

    Tensors that are zero everywhere are not compared, and no attack stops before half the floor is reached.

    Args:
        sweep: of a victim with a given update.
        silent: names of tensors that are zero everywhere, as in `layers`.
        stops: whether `stop_objective` is lowered.
    """
    victim, attacks = sweep.victim, []
    floor = floor_of(victim)
    for attack in sweep.attacks:
        without = tuple(f"{name}:0" for name in silent)
        layers = (*(attack.layers or ("*",)), *without) if without else attack.layers
        changes: dict[str, Any] = {"layers": layers}
        if any(isinstance(defence, Clip) for defence in victim.defences):
            changes["objective"] = "cosine"  # by how much a client clipped is not known
        if any(defence.sparse for defence in victim.defences) and shows_zeros(victim.defences):
            changes["knows_defence"] = True
        attack = replace(attack, **changes)
        if stops:
            stop = min(attack.stop_objective, stop_for(attack.objective, max(NEAR, floor.value), victim))
            attack = replace(attack, stop_objective=stop)
        attacks.append(attack)
    return replace(sweep, attacks=tuple(attacks)), floor


def silent_tensors(victim: Victim) -> list[str]:
    """Names of the update's tensors that are zero everywhere, as `layers` takes them."""
    leaves = jax.tree.leaves_with_path(victim.update)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if not np.any(np.asarray(leaf))
    ]


def audit(
    sweep: Sweep,
    out: str | Path | None = None,
    *,
    lanes: int | None = None,
    quiet: bool = False,
    moved_statistics: bool = False,
    stops: bool = True,
) -> tuple[dict[str, Any], Result]:
    """Attack an update and judge it.

    Args:
        sweep: attacks and seeds, on a victim with a given update (`load_update`).
        out: run directory; `report.json`, `best.npz`, `best.png` and `determined.png` are written there.
        lanes, quiet: as for `run_sweep`.
        moved_statistics: the update's file holds running statistics that moved.
        stops: whether attacks may stop only at the floor.

    Returns:
        The content of `report.json`, and the run.

    Raises:
        InputError: the victim has no given update, or the sweep cannot be run.
    """
    victim = sweep.victim
    if victim.update is None:
        raise InputError("`victim` of an audit needs a given update; make it with `load_update`.")
    silent = silent_tensors(victim)
    before = hints_before(victim, silent, moved_statistics)
    sweep, floor = fitted(sweep, silent, stops=stops)
    known, enough = Known(), Enough(ENOUGH, max(NEAR, floor.value))
    result = run_sweep(sweep, out, lanes=lanes, quiet=quiet, enough=enough)
    groups = [_group(result, sweep, attack, floor, known) for attack in sweep.attacks]
    if not result.summary["complete"] and all(group.verdict.at_floor < ENOUGH for group in groups):
        result = run_sweep(sweep, result.run.path, lanes=lanes, quiet=quiet)  # it was not enough after all
        groups = [_group(result, sweep, attack, floor, known) for attack in sweep.attacks]
    best = min(groups, key=lambda group: (VERDICTS.index(group.verdict.verdict), _left(group)))
    verdict = _of_all(groups, best)
    hints, tried = list(before), []
    hopeless = any(hint.code == "weights-not-difference" for hint in before)
    if best.restarts.rows and verdict.at_floor == 0 and not (hopeless or _clearly_falling(best)):
        more = search(victim, _found(best), floor, before)
        codes, tried = {hint.code for hint in more.hints}, more.tried
        hints = [hint for hint in before if hint.code not in codes] + more.hints
        if more.as_stated:
            reason = "another start explains the update as it was stated: raise the budget, or use more --seeds"
            verdict = replace(verdict, verdict="unfinished", reasons=[reason, *verdict.reasons])
        elif any(hint.proven for hint in more.hints):
            verdict = replace(verdict, verdict="unexplained", reasons=verdict.reasons[-1:])
    elif verdict.verdict in ("recovered", "ambiguous"):
        hints = [hint for hint in before if hint.code != "sign"] + _scale_found(victim, best)
    folder = result.run.path
    report = _report(sweep, groups, best, verdict, hints, tried, floor)
    write(folder, report)
    kept = write_best(folder, [(group.attack.name, group.restarts) for group in groups])
    if kept:
        draw(kept, victim.images if victim.knows_truth else None, folder / "best.png")
    if best.determined is not None:
        draw_map(best.determined, best.restarts.images[0], folder / "determined.png")
    return report, result


def _clearly_falling(group: Group) -> bool:
    """True if a few times the budget would do: then nothing need be wrong."""
    budget = group.attack.max_evaluations or group.attack.iterations
    return any(restart.by_budget and restart.needs <= FEW * budget for restart in group.ended)


def _left(group: Group) -> float:
    return group.ended[0].left if group.ended else float("inf")


def _found(group: Group) -> Found:
    labels = np.maximum(np.asarray(group.restarts.labels[0]), 0)
    return Found(group.attack, np.asarray(group.restarts.images[0], np.float64), labels, group.ended[0].left)


def _group(result: Result, sweep: Sweep, attack: Attack, floor: Floor, known: "Known") -> Group:
    """The restarts of one attack, carried on in float64 where they ended before the floor."""
    victim, group = sweep.victim, restarts(result, attack.name)
    budget = attack.iterations
    trials = [row["trial"] for row in group.rows]
    traces = {}
    if trials:
        arrays = result.run.arrays(["trial", "objective_trace"], trials=trials)
        traces = dict(zip(arrays["trial"].tolist(), arrays["objective_trace"], strict=True))
    ended = []
    for row, labels in zip(group.rows, group.labels, strict=True):
        norm2 = row["update_norm2"]
        left = float(share_left(attack.objective, row["objective"], norm2))
        spent = row["iterations"] >= budget or (
            attack.max_evaluations is not None and row["evaluations"] >= attack.max_evaluations
        )
        needs = iterations_needed(share_left(attack.objective, traces[row["trial"]], norm2), floor.value)
        ended.append(Restart(left, spent and left > floor.value, needs, tuple(map(int, labels))))
    group, ended, determined = _polished(victim, attack, group, ended, floor, known)
    same = group.distances < AGREES
    undetermined = determined.sentences if determined else None
    flag = "--max-evaluations" if attack.max_evaluations is not None else "--iterations"
    limit = attack.max_evaluations or budget
    verdict = judge(ended, same, floor.value, undetermined, budget=limit, flag=flag)
    return Group(attack, group, ended, verdict, determined)


def compared(victim: Victim, attack: Attack) -> Any:
    """Weight of each entry of the update in the comparison."""
    weights = layer_weights(attack.layers, victim.params)
    if not attack.knows_defence:
        return weights
    return jax.tree.map(lambda weight, leaf: weight * (np.asarray(leaf) != 0), weights, victim.update)


def _polished(
    victim: Victim, attack: Attack, group: Restarts, ended: list[Restart], floor: Floor, known: "Known"
) -> tuple[Restarts, list[Restart], Determined | None]:
    """The restarts, those carried on in float64 that came near; and what is determined of the best one's images."""
    near = max(NEAR, floor.value)
    places = [
        place
        for place, restart in enumerate(ended)
        if restart.left <= 10 * near or (restart.left <= HOPEFUL and not restart.by_budget)
    ][:POLISHED]
    if not places or victim.batch != group.images.shape[1]:
        return group, ended, None
    weights, free = compared(victim, attack), attack.objective == "cosine"
    images, left, ended = list(group.images), [restart.left for restart in ended], list(ended)
    computed = 0
    for place in places:
        target = targets_of(victim, group.labels[place])
        beside = known.beside(attack, images[place], target)
        computed += beside is None
        if computed > DIFFERENT:
            continue
        carried, found = carry_on(victim, images[place], target, weights, floor.value, free_of_scale=free, known=beside)
        if found is not beside:
            known.add(attack, carried.pixels, target, found)
        if carried.left < left[place]:
            images[place], left[place] = carried
        # A Gauss-Newton step that gains nothing shows a minimum: more iterations would not lower it.
        if left[place] <= 10 * near:
            ended[place] = replace(ended[place], by_budget=ended[place].by_budget and not found.exact)
    best_first = sorted(range(len(ended)), key=lambda place: left[place])
    best = best_first[0]
    slots = [match(images[place], images[best]) for place in best_first]
    ordered = [images[place][slot] for place, slot in zip(best_first, slots, strict=True)]
    labels = [np.asarray(group.labels[place])[slot].tolist() for place, slot in zip(best_first, slots, strict=True)]
    distances = np.stack([relative_error(np.asarray(image), np.asarray(images[best])) for image in ordered])
    ended = [
        replace(
            ended[place],
            left=left[place],
            labels=tuple(map(int, names)),
            by_budget=ended[place].by_budget and left[place] > floor.value,
        )
        for place, names in zip(best_first, labels, strict=True)
    ]
    rows = [group.rows[place] for place in best_first]
    polished = group._replace(rows=rows, images=np.stack(ordered), distances=distances, labels=labels)
    if left[best] > 10 * near:
        return polished, ended, None
    target = targets_of(victim, labels[0])
    found = known.beside(attack, images[best], target)
    if found is None:
        found = information(victim, victim.params, images[best], target, weights, free_of_scale=free)
    return polished, ended, determined_at(victim, images[best], found, floor)


class Known:
    """Information that was computed, for attacks that compare the same and images that are nearly the same."""

    def __init__(self):
        self._entries: list[tuple[Any, np.ndarray, np.ndarray, Information]] = []

    def beside(self, attack: Attack, images: np.ndarray, target: np.ndarray) -> Information | None:
        """That of the same images or nearly the same; None if there is none."""
        for compares, others, targets, found in self._entries:
            alike = compares == self._compares(attack) and np.array_equal(targets, target)
            if alike and np.all(relative_error(np.asarray(images), others) < AGREES):
                return found
        return None

    def add(self, attack: Attack, images: np.ndarray, target: np.ndarray, found: Information) -> None:
        """Keep it; that of the latest images is found first."""
        self._entries.insert(0, (self._compares(attack), np.asarray(images), target, found))

    def _compares(self, attack: Attack) -> Any:
        return attack.layers, attack.objective, attack.knows_defence


def _of_all(groups: list[Group], best: Group) -> Verdict:
    """The verdict of several attacks: the strongest, unless two that recover images recover different ones."""
    recovered = [group for group in groups if group.verdict.verdict == "recovered"]
    first = best.restarts.images[0] if best.restarts.rows else None
    for other in recovered:
        if other is best or first is None:
            continue
        images = other.restarts.images[0]
        distances = relative_error(np.asarray(images[match(images, first)]), np.asarray(first))
        if not np.all(distances < AGREES):
            reason = f"{best.attack.name} and {other.attack.name} both explain the update, with different images"
            return replace(best.verdict, verdict="ambiguous", reasons=[reason])
    return best.verdict


def _scale_found(victim: Victim, best: Group) -> list[Hint]:
    """A hint where an attack by directions recovered images whose update has another length."""
    if best.attack.objective != "cosine":
        return []
    there = update_at(victim, victim.params, best.restarts.images[0], targets_of(victim, best.restarts.labels[0]))
    factor = factor_between(there, victim.update)
    return [] if abs(factor - 1) < 1e-2 else [scale_hint(factor, victim)]


def _report(
    sweep: Sweep,
    groups: list[Group],
    best: Group,
    verdict: Verdict,
    hints: list[Hint],
    tried: list[dict[str, Any]],
    floor: Floor,
) -> dict[str, Any]:
    victim = sweep.victim
    return {
        "verdict": verdict.verdict,
        "attack": best.attack.name,
        "reasons": verdict.reasons,
        "hints": [asdict(hint) for hint in hints],
        "tried": tried,
        "floor": asdict(floor),
        "determined": best.determined.as_dict() if best.determined else None,
        "truth": _against_truth(victim, best) if victim.knows_truth and best.restarts.rows else None,
        "attacks": [_of_group(victim, group, floor) for group in groups],
    }


def _of_group(victim: Victim, group: Group, floor: Floor) -> dict[str, Any]:
    ended, best = group.ended, group.restarts
    labels = best.labels
    return {
        "attack": group.attack.name,
        "verdict": group.verdict.verdict,
        "reasons": group.verdict.reasons,
        "restarts": best.total,
        "finite": len(ended),
        "explain": group.verdict.at_floor,
        "agree": group.verdict.agree,
        "labels": labels[0] if labels else None,
        "same_labels": sum(sorted(found) == sorted(labels[0]) for found in labels) if labels else 0,
        "trial": best.rows[0]["trial"] if ended else None,
        "left": ended[0].left if ended else None,
        "lefts": [restart.left for restart in ended],
        "psnr": _against_truth(victim, group)["psnr"] if ended and victim.knows_truth else None,
    }


def _against_truth(victim: Victim, group: Group) -> dict[str, Any]:
    """How far the best restart is from the truth. The verdict does not know it."""
    images: Float[np.ndarray, "b h w c"] = np.asarray(group.restarts.images[0], np.float32)
    metrics = batch_metrics(images[None], np.asarray(victim.images, np.float32)[None])
    errors = metrics.errors[0].tolist()
    return {"psnr": float(metrics.trials["psnr"][0]), "relative_errors": errors, "right": bool(max(errors) < AGREES)}
