"""The attack `best`: what fits the network and the update at hand, chosen before anything is run.

Example:
    >>> import jaxleak
    >>> photos = jaxleak.load_dataset("photos")
    >>> victim = jaxleak.make_victim("lenet", photos, images=[6], fields={"activation": "relu"})
    >>> jaxleak.Sweep(victim=victim, attacks=(jaxleak.ATTACKS["best"],), seeds=1).attacks[0].chosen
    'rgap: one image, and the network is a chain with relu'
"""

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak.attacks.analytic import first_dense
from jaxleak.attacks.check import check_attack, readable_labels
from jaxleak.attacks.closed_forms import chain_of, param_shapes
from jaxleak.attacks.presets import ANALYTIC, APRIL, BEST, IDLG, IG, OPEN, RGAP, SPEAR, Attack
from jaxleak.errors import InputError
from jaxleak.threat.defences import shows_zeros
from jaxleak.threat.precode import noise_size
from jaxleak.threat.victim import Victim

KINKS = {"max", "reduce_window_max", "sign", "relu", "leaky_relu"}
SMOOTH = {"logistic", "tanh", "erf", "erfc", "log1p"}
PIECEWISE_LINEAR = {"relu", "leaky_relu"}  # of the activations in chains
SEPARABLE = 16  # images of a batch, at most, that `spear` is asked to tell apart
KEPT = (
    *("name", "layers", "dummies", "knows_defence"),  # what is chosen keeps these of the attack
    *("iterations", "max_evaluations", "stop_objective", "stop_relative"),
)
# Behind smooth activations. Squared distances fail on trained networks, whose updates are small beside those of starts.
SEARCH = replace(IDLG, objective="cosine", box=True, tv=1e-5)
SEVERAL = replace(SEARCH, tv=3e-5)  # the same of several images
# Behind noise, which leaves a distance at the true images; and where what the attacker knows leaves none.
DEFENDED = replace(IDLG, objective="cosine", box=True, logarithm=True, tv=3)
SEEN_THROUGH = replace(DEFENDED, logarithm=False, tv=1e-3)
EVALUATIONS = 20  # of an iteration: those of L-BFGS
BOUNDED = replace(IG, logarithm=True, tv=10)  # behind kinks


def resolved(attack: Attack, victim: Victim) -> Attack:
    """The attack, where it is `best` as what that is for this victim; `Attack.chosen` says which and why.

    Closed forms come first: `analytic`, `spear`, `april`, and `rgap` for chains with ReLUs; they need one gradient
    without a defence. Then, with pixels in [0, 1], the cosine distance: where the network is smooth by L-BFGS, with a
    little total variation, of several images with more; where it has kinks by signed Adam, with a total variation that
    is lowered as the distance falls (experiments/best.py). Noise leaves a distance at the true images: there smooth
    networks have such a total variation too. What was set to zero is not compared, and the total variation is fixed
    (experiments/bayesian.py). Labels come from the rule that holds for the client's loss and batch.

    Raises:
        InputError: parts of `best` were replaced that it chooses itself, or the victim has texts.
    """
    if attack.chosen != OPEN:
        return attack
    _check_open(attack)
    if victim.modality != "image":
        raise InputError("`attack` best is for images; of text use dager, tag or dlg.")
    found, why = closed_form_of(attack, victim) or _search(attack, victim)
    attack = replace(attack, knows_defence=attack.knows_defence or _can_know(victim))
    kept: dict[str, Any] = {name: getattr(attack, name) for name in KEPT}
    if found.solver.closed_form:
        kept |= {"iterations": found.iterations, "max_evaluations": None}
    kept |= {"label": attack.label} if attack.label == "known" else {}
    if found.solver == IG.solver:
        kept["iterations"] *= EVALUATIONS
    return replace(found, **kept, chosen=why)


def _check_open(attack: Attack) -> None:
    free = (*KEPT, "label")
    given = [field.name for field in fields(Attack) if getattr(attack, field.name) != getattr(BEST, field.name)]
    refuse([name for name in given if name not in free])
    if attack.label not in (BEST.label, "known"):
        refuse(["label"])


def refuse(given: list[str]) -> None:
    """Raise if any of these parts, which `best` chooses itself, was given.

    Raises:
        InputError: one was.
    """
    if given:
        only = "; only known may be given" if given[0] == "label" else ""
        raise InputError(
            f"`{given[0]}` is chosen by the attack best, for the network and the update{only}. Leave it out, or name "
            "another attack."
        )


def closed_form_of(attack: Attack, victim: Victim) -> tuple[Attack, str] | None:
    """The closed form that gives a victim's images, and why; None where none does.

    Args:
        attack: whose layers, dummies and knowledge of the defence count.
        victim: of images.
    """
    plain = not (victim.defences or attack.layers or attack.knows_defence or _has_silent(victim))
    plain &= victim.client.shares_gradient(victim.batch) and victim.client.clients == 1
    if not plain or (attack.dummies or victim.batch) != victim.batch:
        return None
    (height, width, channels), one, shapes = victim.shape, victim.batch == 1, param_shapes(victim)
    shape = height, width, channels
    dense = _applies(lambda: first_dense(shapes, shape, "best"))
    if one and dense and _fits(ANALYTIC, victim):
        return ANALYTIC, "analytic: one image, and the first layer is dense"
    if 1 < victim.batch <= SEPARABLE and dense and _fits(SPEAR, victim):
        return SPEAR, f"spear: {victim.batch} images, and a ReLU behind a first layer that is dense"
    if one and _fits(APRIL, victim):
        return APRIL, "april: one image, and learnt positions behind the patches"
    unnormed = all(path[-1].key in ("kernel", "bias") for path, _ in jax.tree.leaves_with_path(shapes))
    if one and unnormed and _fits(RGAP, victim):  # a chain has no norms; finding one runs the network once
        found = dict.fromkeys(link.activation for link in chain_of(victim))
        kinks = [name for name in found if name in PIECEWISE_LINEAR]
        if kinks:
            return RGAP, f"rgap: one image, and the network is a chain with {' and '.join(kinks)}"
    return None


def _fits(attack: Attack, victim: Victim) -> bool:
    return _applies(lambda: check_attack(attack, victim))


def _applies(check: Any) -> bool:
    try:
        check()
    except InputError:
        return False
    return True


def _can_know(victim: Victim) -> bool:
    """True if an attacker who knows the defence compares other entries, or seeks the noise of its network."""
    return shows_zeros(victim.defences) or bool(noise_size(victim.attacker_model))


def _has_silent(victim: Victim) -> bool:
    """True if a tensor of a given update is zero everywhere: it may be frozen, and equations may lack it."""
    return victim.update is not None and not all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(victim.update))


def _search(attack: Attack, victim: Victim) -> tuple[Attack, str]:
    label = attack.label if attack.label == "known" else label_rule(victim)
    images = "one image" if victim.batch == 1 else f"{victim.batch} images"
    if piecewise_linear(victim):
        found, why = BOUNDED, "Adam on the cosine distance: the network has kinks"
    elif victim.defences:
        found = SEEN_THROUGH if _can_know(victim) else DEFENDED
        why = "L-BFGS on the cosine distance: the network is smooth, and the update defended"
    else:
        found, why = SEARCH if victim.batch == 1 else SEVERAL, "L-BFGS on the cosine distance: the network is smooth"
    return replace(found, label=label), f"{why}; label {label} of {images}"


def label_rule(victim: Victim) -> str:
    """The strategy that reads labels of the client's loss and batch, "joint" where none does."""
    head = param_shapes(victim).get("head", {})
    single, several = (("bias", "idlg"), ("counts", "counts-published")) if "bias" in head else (("idlg",), ())
    wanted = (single if victim.batch == 1 else several) if "kernel" in head else ()
    return next((name for name in wanted if name in readable_labels(victim)), "joint")


def piecewise_linear(victim: Victim) -> bool:
    """True if the network's program has kinks and no smooth activation."""
    names: set[str] = set()

    def walk(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            names.update((equation.primitive.name, str(equation.params.get("name", ""))))
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        walk(inner)

    x = jax.ShapeDtypeStruct((victim.batch, *victim.shape), jnp.float32)
    walk(jax.make_jaxpr(lambda p, x: victim.attacker_model.apply({"params": p}, x))(param_shapes(victim), x).jaxpr)
    return bool(names & KINKS) and not names & SMOOTH
