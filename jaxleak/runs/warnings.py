"""Warnings about settings that may mislead."""

from collections.abc import Sequence

from jaxleak.attacks.presets import Attack
from jaxleak.attacks.starts import SAME_EVERY_TIME
from jaxleak.threat.victim import Victim


def warnings_before(victim: Victim, attacks: Sequence[Attack], seeds: int) -> list[str]:
    """Warnings that follow from the settings alone."""
    warnings = []
    train_mode = getattr(victim.model, "train", False) and getattr(victim.model, "norm", "batch") == "batch"
    if not victim.knows_statistics and victim.batch_stats is None:
        warnings.append(
            "hidden statistics change nothing: this network has none but those of a new one, which the attacker "
            "works with anyway."
        )
    one_by_one = any(defence.per_example for defence in victim.defences)
    if train_mode and (one_by_one or (victim.client.batch or victim.batch // victim.client.clients) == 1):
        warnings.append(
            "BatchNorm in train mode sees one image at a time: its outputs no longer tell that image's brightness and "
            "contrast. Compare by affine_error, which leaves those out; a failure says little about larger batches."
        )
    drawn_anew = victim.defence_draw == "per-trial" and any(defence.random for defence in victim.defences)
    if drawn_anew:
        warnings.append(
            "the defence is drawn anew for each restart, where an attacker sees one draw: the best of several restarts "
            "is better than an attacker's."
        )
    for attack in attacks:
        same = attack.init in SAME_EVERY_TIME and attack.label != "joint" and victim.network != "per-trial"
        if seeds > 1 and same and not drawn_anew and not getattr(attack.solver, "langevin", 0):
            warnings.append(f"{attack.name}: start {attack.init} is the same for every seed, and so are its trials.")
    return warnings
