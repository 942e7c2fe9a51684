"""Refuses attacks that make no sense against a victim."""

from typing import Any

import jax

from jaxleak.attacks.bounds import VARIABLES
from jaxleak.attacks.candidate import CANDIDATES
from jaxleak.attacks.closed_forms import CLOSED_FORMS
from jaxleak.attacks.labels import LABEL_STRATEGIES
from jaxleak.attacks.likelihood import Chain, check_chain, check_own, negative_log_likelihood
from jaxleak.attacks.presets import Attack
from jaxleak.errors import InputError
from jaxleak.threat.defences import DEFENCES, shows_zeros
from jaxleak.threat.network import draw_params
from jaxleak.threat.patches import SIDE
from jaxleak.threat.precode import noise_size
from jaxleak.threat.victim import Victim

TEXT_LABELS = ("joint", "counts", "counts-published")  # which tokens follow is optimised, or their number is read
TEXT_STARTS = ("normal", "uniform")  # of the tokens' vectors
PICTURES = ("label_term", "tv", "patches", "norm", "statistics", "box", "surrogate_model", "epoch_consistency")


def check_attack(attack: Attack, victim: Victim) -> None:
    """Raise where the attack makes no sense against the victim.

    Raises:
        InputError: with the reason.
    """
    dummies = attack.dummies or victim.batch
    if victim.modality == "text":
        _check_text(attack)
    if attack.init in CLOSED_FORMS:
        if dummies != victim.batch:
            raise InputError(f"`dummies` must be the update's images, {victim.batch}, with the start {attack.init}.")
        CLOSED_FORMS[attack.init].check(victim)
    if attack.init == "surrogate" and victim.surrogates is None:
        raise InputError(
            "`start` surrogate needs an image of the data set that is not attacked; attack fewer, or give the victim "
            "`surrogates`."
        )
    if dummies != victim.batch and not victim.knows_truth:
        raise InputError(
            f"`dummies` must be as many as the update's images, {victim.batch}, where these are not known."
        )
    if attack.patches:
        _check_patches(victim)
    if attack.bounds in VARIABLES and not CANDIDATES[victim.modality].has_bounds:
        raise InputError(f"`box` by {attack.bounds} is for images; use --box-by projection, or leave it out.")
    if victim.modality != "text":
        check_label(attack, victim)
    if attack.surrogate_model and not victim.client.trains:
        raise InputError("`surrogate_model` stands for local steps; give --client-steps or --client-epochs too.")
    if attack.surrogate_model and attack.objective != "cosine":
        raise InputError("`surrogate_model` compares directions; use --objective cosine, or the attack sme.")
    if attack.epoch_consistency and attack.surrogate_model:
        raise InputError("`epoch_consistency` and `surrogate_model` exclude each other; leave one of them out.")
    if attack.epoch_consistency and not victim.client.repeats(dummies):
        raise InputError(
            "`epoch_consistency` is for clients that use all their images in each of several passes; give "
            "--client-epochs of at least 2, and leave out --client-drop-last."
        )
    if attack.group_mean and dummies > 1:
        raise InputError(
            f"`group_mean` is for one image: of {dummies} each start may find them in another order. Leave it out."
        )
    if attack.label == "known" and not victim.knows_labels:
        raise InputError("`label` known needs the labels; give --labels, or let the attack find them.")
    if attack.statistics and not victim.knows_truth:
        raise InputError("`statistics` are measured on the private images, which are not given; leave it 0.")
    if attack.statistics and (victim.client.trains or victim.client.clients > 1):
        raise InputError(
            "`statistics` are those of one batch and one step; leave it 0 with local steps or several clients."
        )
    likelihood = attack.objective == "likelihood"
    if likelihood:
        _check_likelihood(victim)
    zeros, noise = shows_zeros(victim.defences), noise_size(victim.attacker_model)
    if attack.knows_defence and not (likelihood or zeros or noise):
        raise InputError(
            "`knows_defence` leaves out the entries that a defence set to zero; give one of "
            f"{', '.join(name for name, kind in DEFENCES.items() if kind.sparse)}, with no noise after it; or finds "
            f"the noise of {', '.join(name for name, kind in DEFENCES.items() if kind.in_network)}."
        )
    victim.client.check(dummies)
    if victim.client.order and dummies != victim.batch:
        raise InputError(f"`dummies` must be as many as the images that `client_order` names, {victim.batch}.")
    if victim.client.total_steps(dummies) != victim.client.total_steps(victim.batch):
        raise InputError(
            f"`dummies` must make as many local steps as the client's {victim.batch} images in `client_epochs`; "
            f"got {dummies}. Use as many, or --client-steps."
        )


def _check_likelihood(victim: Victim) -> None:
    """Raise unless an update's likelihood is known: of it, a trial's first values are traced too."""
    check_chain(victim.defences, victim.batch)
    params: Any = victim.params
    if params is None:
        params = jax.eval_shape(lambda key: draw_params(victim.model, key, victim.shape), jax.random.key(0))
    elif victim.network == "per-image":
        params = jax.tree.map(lambda leaf: leaf[0], params)
    own = Chain.of(victim.defences).own
    if own:
        check_own(own, params)
    jax.eval_shape(lambda update: negative_log_likelihood(update, update, victim.defences), params)


def _check_patches(victim: Victim) -> None:
    """Raise unless the attacker has learned patches of such images."""
    if victim.mixture is None:
        raise InputError(
            "`patches` are learned from images of the attacker's own, and this victim comes with none: "
            "make_victim(..., mixture=fit_patches(data)). `jaxleak attack` cannot have them; leave it out."
        )
    if victim.modality == "image" and (victim.mixture.channels != victim.shape[2] or min(victim.shape[:2]) < SIDE):
        raise InputError(
            f"`patches` are of {SIDE}x{SIDE} pixels with {victim.mixture.channels} channels; the images are "
            f"{'x'.join(map(str, victim.shape))}. Fit them on images like these."
        )


def _check_text(attack: Attack) -> None:
    """Raise unless every part of the attack is one that texts have."""
    closed = attack.init in CLOSED_FORMS
    if attack.label not in (("text",) if closed else TEXT_LABELS):
        raise InputError(
            f"`label` {attack.label} is not for this attack on text; use {' or '.join(TEXT_LABELS)} with dlg or tag, "
            "or the attack dager."
        )
    if (closed and attack.init != "dager") or (not closed and attack.init not in TEXT_STARTS):
        raise InputError(f"`start` {attack.init} is for pictures; of text use {', '.join(TEXT_STARTS)}.")
    for name in (*PICTURES, *(("group",) if attack.group > 1 else ())):
        if getattr(attack, name):
            raise InputError(f"`{name}` is for pictures; leave it out with the data set text.")


def check_label(attack: Attack, victim: Victim) -> None:
    """Raise unless the attack's labels can be had from updates of the client's loss.

    Raises:
        InputError: with those that can.
    """
    loss, outputs, readable = victim.client.loss, victim.num_classes, readable_labels(victim)
    if attack.label not in readable:
        several = f" of {victim.batch} images" if victim.batch > 1 else ""
        reason = f"the client's loss is {loss.name}"
        if LABEL_STRATEGIES[attack.label].holds_for(loss, outputs, victim.batch):
            given = victim.targets is not None
            reason = "its targets are no classes" if given else "the client's optimiser hides the gradient's size"
        raise InputError(
            f"`label` {attack.label} cannot be read from this update{several}: {reason}. "
            f"Use label {', '.join(readable)}; the attack dlg has joint."
        )
    if attack.label_term and not (loss.targets == "classes" and loss.is_plain):
        raise InputError(f"`label_term` compares softmax outputs with labels; leave it 0 for the loss {loss.name}.")


def readable_labels(victim: Victim) -> list[str]:
    """The label strategies that hold for the client's loss and the number of images."""
    client, outputs, given = victim.client, victim.num_classes, victim.targets is not None
    loss = client.loss

    def holds(name: str) -> bool:
        rule = LABEL_STRATEGIES[name]
        vectors = given and rule.needs and "bits" not in loss.shows(outputs, victim.batch)
        sizes = rule.needs == "linear" and (client.clip is not None or client.optimizer != "sgd")
        return rule.holds_for(loss, outputs, victim.batch) and not vectors and not (sizes and rule.needs_network)

    return list(filter(holds, LABEL_STRATEGIES))
