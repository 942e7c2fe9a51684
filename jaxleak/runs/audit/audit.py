"""An audit of an update: attack it from several starts, and say what can be said."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxleak.attacks.best import closed_form_of
from jaxleak.attacks.presets import BEST
from jaxleak.errors import InputError
from jaxleak.results.agreement import AGREES, draw, write_best
from jaxleak.results.matching import batch_metrics, match
from jaxleak.results.measures import MEASURES
from jaxleak.results.metrics import relative_error
from jaxleak.results.result import Result
from jaxleak.runs.audit.assumptions import search
from jaxleak.runs.audit.determinacy import draw_map
from jaxleak.runs.audit.floor import Floor, clips, floor_of
from jaxleak.runs.audit.group import NEAR, Group, Known, compared, group_of
from jaxleak.runs.audit.hints import Found, Hint, factor_between, hints_before, scale_hint
from jaxleak.runs.audit.page import audit_page
from jaxleak.runs.audit.refit import names_of, stop_for, targets_of, update_at
from jaxleak.runs.audit.report import write
from jaxleak.runs.audit.risk import risk_at
from jaxleak.runs.audit.verdict import VERDICTS, Verdict
from jaxleak.runs.progress import Progress
from jaxleak.runs.run import run_sweep
from jaxleak.runs.session import Enough
from jaxleak.runs.sweep import Sweep
from jaxleak.threat.defences import DPSGD, Soteria, shows_zeros
from jaxleak.threat.own_defence import OwnDefence
from jaxleak.threat.victim import Victim

ENOUGH = 3  # restarts of an attack that explain the update: further ones are not run
FEW = 3  # times the budget
HIDDEN_BY_SOTERIA = "head/kernel"
OUTSIDE = 0.05  # beyond [0, 1]: pixels of pictures do not go further ...
SOME = 0.02  # ... in more than this share


def fitted(sweep: Sweep, silent: Sequence[str], *, stops: bool = True) -> tuple[Sweep, Floor]:
    """The sweep with attacks that fit the update, and the floor.

    Tensors that are zero everywhere are not compared, and no attack stops before it has come near.

    Args:
        sweep: of a victim with a given update.
        silent: names of tensors that are zero everywhere, as in `layers`.
        stops: whether `stop_objective` is lowered.

    Raises:
        InputError: what is stated cannot be attacked.
    """
    victim, attacks, floors = sweep.victim, [], []
    if any(isinstance(defence, OwnDefence) for defence in victim.defences):
        raise InputError(
            f"`defence` of an audit must be the package's, whose noise is known; {victim.defence_name} is a function. "
            "Leave it out, or state what comes nearest."
        )
    if any(defence.in_network for defence in victim.defences):
        raise InputError(
            "`defence` precode of an audit is not possible: its noise is known to the client alone. Attack it with "
            "`jaxleak run`."
        )
    if victim.batch > 1 and any(isinstance(defence, DPSGD) and defence.clip for defence in victim.defences):
        raise InputError(
            "`defence` dp-sgd clips each image of a batch by a factor of its own, which an audit cannot know; audit "
            "updates of one image, or state clip and gaussian if the mean was clipped."
        )
    soteria = any(isinstance(defence, Soteria) and defence.share for defence in victim.defences)
    if soteria and not shows_zeros(victim.defences):  # noise hides which rows are zero, and these need not be small
        silent = list(dict.fromkeys([*silent, HIDDEN_BY_SOTERIA]))
    for attack in sweep.attacks:
        if attack.objective not in ("l2", "cosine"):
            raise InputError(
                f"`objective` {attack.objective} is not one that an audit can judge; use l2 or cosine, or attack "
                "images that you know with `jaxleak run`."
            )
        if attack.dummies not in (None, victim.batch):
            raise InputError(f"`dummies` of an audit must be the update's images, {victim.batch}; leave it out.")
        without = tuple(f"{name}:0" for name in silent)
        layers = (*(attack.layers or ("*",)), *without) if without else attack.layers
        changes: dict[str, Any] = {"layers": layers}
        if clips(victim):
            changes["objective"] = "cosine"  # by how much a client clipped is not known
        if shows_zeros(victim.defences):
            changes["knows_defence"] = True
        attack = replace(attack, **changes)
        weights = compared(victim, attack)
        floors.append(floor_of(victim, weights))
        if stops:
            stop = stop_for(attack.objective, max(NEAR, floors[-1].value), victim, weights)
            attack = replace(attack, stop_objective=min(attack.stop_objective, stop))
        attacks.append(attack)
    # Attacks that compare other layers have other floors; the highest is right for none of them too low.
    return replace(sweep, attacks=tuple(attacks)), max(floors, key=lambda floor: floor.value)


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
    mix_versions: bool = False,
    minutes: float | None = None,
) -> tuple[dict[str, Any], Result]:
    """Attack an update and judge it.

    Args:
        sweep: attacks and seeds, on a victim with a given update (`load_update`).
        out: run directory; `report.json`, `audit.html`, `best.npz`, `best.png` and `determined.png` are written there.
        lanes, quiet, mix_versions, minutes: as for `run_sweep`; judging comes on top of the minutes.
        moved_statistics: the update's file holds running statistics that moved.
        stops: whether attacks stop only where they have come near.

    Returns:
        The content of `report.json`, and the run.

    Raises:
        InputError: the victim has no given update, or the sweep cannot be run.

    Example:
        >>> import jax
        >>> import jaxleak
        >>> model = jaxleak.build_model("mlp", 2, hidden=(16,))
        >>> params = jaxleak.draw_params(model, jax.random.key(0), (4, 4, 1))
        >>> image = jax.random.uniform(jax.random.key(1), (1, 4, 4, 1))
        >>> loss = lambda params: -jax.nn.log_softmax(model.apply({"params": params}, image))[0, 1]
        >>> gradient = jax.grad(loss)(params)
        >>> jaxleak.save_weights("weights.safetensors", model, params, (4, 4, 1))
        >>> jaxleak.save_weights("update.safetensors", model, gradient, (4, 4, 1))
        >>> victim = jaxleak.load_update("update.safetensors", "weights.safetensors", model, image_shape=(4, 4, 1))
        >>> sweep = jaxleak.Sweep(victim=victim, attacks=(jaxleak.ATTACKS["analytic"],), seeds=1)
        >>> report, _ = jaxleak.audit(sweep, "my-audit", quiet=True)
        >>> report["verdict"]
        'recovered'
    """
    victim = sweep.victim
    if victim.update is None:
        raise InputError("`victim` of an audit needs a given update; make it with `load_update`.")
    silent = silent_tensors(victim)
    before = hints_before(victim, silent, moved_statistics)
    sweep, floor = fitted(sweep, silent, stops=stops)
    known, progress = Known(), Progress(0, write=(lambda line: None) if quiet else None)

    def judged(result: Result) -> list[Group]:
        progress.say("audit: judging the restarts, those that came near in float64", passing=True)
        return [group_of(result, victim, attack, floor, known, stopped=not stops) for attack in sweep.attacks]

    enough = Enough(ENOUGH, max(NEAR, floor.value))
    began = time.monotonic()
    result = run_sweep(sweep, out, lanes=lanes, quiet=quiet, enough=enough, mix_versions=mix_versions, minutes=minutes)
    groups, read = judged(result), list[Group]()
    if reading := _in_closed_form(sweep, silent):
        attack = reading[0].attacks[0]
        progress.say(f"audit: reading the images in closed form ({attack.name})", passing=True)
        solved = run_sweep(reading[0], result.run.path / attack.name, quiet=True, mix_versions=mix_versions)
        read = [group_of(solved, victim, attack, reading[1], known, stopped=False)]
    if minutes is not None:
        minutes -= (time.monotonic() - began) / 60
    in_time = minutes is None or minutes > 0
    unsure = all(group.verdict.at_floor < 2 for group in groups) and not any(group.verdict.at_floor for group in read)
    if in_time and not result.summary["complete"] and unsure:
        again = run_sweep(  # it was not enough after all
            sweep, result.run.path, lanes=lanes, quiet=quiet, mix_versions=mix_versions, minutes=minutes
        )
        again._keep, result = result._keep, again
        groups = judged(result)
    groups += read
    best = min(groups, key=lambda group: (VERDICTS.index(group.verdict.verdict), group.left))
    verdict = _of_all(groups, best, floor)
    hints, tried = list(before), []
    hopeless = any(hint.code == "weights-not-difference" for hint in before)
    if best.restarts.rows and verdict.at_floor == 0 and not (hopeless or _clearly_falling(best)):
        more = search(victim, _found(best), floor, before, lambda line: progress.say(line, passing=True))
        codes, tried = {hint.code for hint in more.hints}, more.tried
        hints = [hint for hint in before if hint.code not in codes] + more.hints
        if more.as_stated:
            reason = "another start explains the update as it was stated: raise the budget, or use more --seeds"
            verdict = replace(verdict, verdict="unfinished", reasons=[reason, *verdict.reasons])
        elif any(hint.proven for hint in more.hints):
            verdict = replace(verdict, verdict="unexplained", reasons=verdict.reasons[-1:])
    elif verdict.verdict in ("recovered", "ambiguous"):
        hints = [hint for hint in before if hint.code != "sign"] + _scale_found(victim, best)
        verdict, outside = _within_range(verdict, best)
        hints += outside
    folder = result.run.path
    report = _report(sweep, groups, best, verdict, hints, tried, floor)
    progress.say("audit: what defences would have left, and the page", passing=True)
    report["prevented"] = _prevented(victim, best)
    kept = write_best(folder, [(group.attack.name, group.restarts) for group in groups])
    write(folder, report)
    if kept:
        draw(kept, victim.images if victim.knows_truth else None, folder / "best.png")
    if best.determined is not None:
        draw_map(best.determined, best.restarts.images[0], folder / "determined.png")
    audit_page(report, victim, sweep, result.run.environment).write(folder / "audit.html")
    return report, result


def _in_closed_form(sweep: Sweep, silent: list[str]) -> tuple[Sweep, Floor] | None:
    """The closed form that gives such images, and its floor; None where none does, or it is among the attacks."""
    if sweep.victim.modality != "image":
        return None
    chosen = closed_form_of(BEST, sweep.victim)
    if chosen is None or any(attack.init == chosen[0].init for attack in sweep.attacks):
        return None
    return fitted(replace(sweep, attacks=(chosen[0],), seeds=1, snapshots=()), silent)


def _prevented(victim: Victim, best: Group) -> list[dict[str, Any]] | None:
    """What defences would have left of the images found; None where the update does not determine them."""
    if best.determined is None or best.determined.sentences or victim.defences or victim.client.trains:
        return None
    images, target = np.asarray(best.restarts.images[0], np.float64), targets_of(victim, best.restarts.labels[0])
    try:
        silent, known = silent_tensors(victim), best.determined.information
        found = risk_at(victim, victim.params, images, target, known=known, silent=silent)
    except Exception as error:  # memory, a model that cannot be differentiated forwards
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"what defences would leave could not be computed ({reason})", stacklevel=3)
        return None
    return [vars(line) for line in found.lines]


def _clearly_falling(group: Group) -> bool:
    """True if a few times the budget would do: then nothing need be wrong."""
    budget = group.attack.max_evaluations or group.attack.iterations
    return any(restart.by_budget and restart.needs <= FEW * budget for restart in group.ended)


def _found(group: Group) -> Found:
    labels = np.asarray(group.restarts.labels[0])
    if labels.ndim == 1:
        labels = np.maximum(labels, 0)
    return Found(group.attack, np.asarray(group.restarts.images[0], np.float64), labels, group.left)


def _of_all(groups: list[Group], best: Group, floor: Floor) -> Verdict:
    """The verdict of several attacks: the strongest, unless a restart of another explains the update differently."""
    if best.verdict.verdict != "recovered":
        return best.verdict
    images = best.restarts.images[0]
    for group in groups:
        for restart, others in zip(group.ended, group.restarts.images, strict=True):
            if restart.left > floor.value:
                continue
            apart = relative_error(np.asarray(others[match(others, images)]), np.asarray(images))
            if not np.all(apart < AGREES):
                reason = f"{best.attack.name} and {group.attack.name} explain the update with different images"
                return replace(best.verdict, verdict="ambiguous", reasons=[reason])
    return best.verdict


def _within_range(verdict: Verdict, best: Group) -> tuple[Verdict, list[Hint]]:
    """No pictures are recovered whose pixels lie outside [0, 1]: then they are a network's normalised input."""
    images = best.restarts.images[0]
    low, high = np.min(images), np.max(images)
    outside = np.mean((images < -OUTSIDE) | (images > 1 + OUTSIDE))
    if outside <= SOME or verdict.verdict != "recovered":
        return verdict, []
    text = f"pixels go from {low:.2g} to {high:.2g}: was the network's input normalised? Say so with --normalise"
    reason = "what explains the update is no picture: its pixels lie outside [0, 1]"
    return replace(verdict, verdict="ambiguous", reasons=[reason, *verdict.reasons]), [Hint("range", text)]


def _scale_found(victim: Victim, best: Group) -> list[Hint]:
    """A hint where an attack by directions recovered images whose update has another length, which no clip explains."""
    if best.attack.objective != "cosine" or clips(victim):
        return []
    there = update_at(victim, victim.params, best.restarts.images[0], targets_of(victim, best.restarts.labels[0]))
    factor = factor_between(there, victim.update)
    return [] if abs(factor - 1) < 1e-2 else [scale_hint(factor, victim, by_direction=True)]


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
        "attacks": [_of_group(sweep, group) for group in groups],
    }


def _of_group(sweep: Sweep, group: Group) -> dict[str, Any]:
    ended, best, victim = group.ended, group.restarts, sweep.victim
    labels = best.labels
    return {
        "attack": group.attack.name,
        "verdict": group.verdict.verdict,
        "reasons": group.verdict.reasons,
        "restarts": best.total,
        "asked": sweep.seeds,
        "finite": len(ended),
        "explain": group.verdict.at_floor,
        "agree": group.verdict.agree,
        "labels": labels[0] if labels else None,
        "same_labels": sum(sorted(names_of(found)) == sorted(names_of(labels[0])) for found in labels) if labels else 0,
        "trial": best.rows[0]["trial"] if ended else None,
        "left": group.left if ended else None,
        "lefts": [restart.left for restart in ended],
        "psnr": _against_truth(victim, group)["psnr"] if ended and victim.knows_truth else None,
    }


def _against_truth(victim: Victim, group: Group) -> dict[str, Any]:
    """How far the best restart is from the truth. The verdict does not know it."""
    images: Float[np.ndarray, "b h w c"] = np.asarray(group.restarts.images[0], np.float32)
    metrics = batch_metrics(MEASURES[victim.modality], images[None], np.asarray(victim.images, np.float32)[None])
    errors = metrics.errors[0].tolist()
    return {"psnr": float(metrics.trials["psnr"][0]), "relative_errors": errors, "right": bool(max(errors) < AGREES)}
