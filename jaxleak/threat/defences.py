"""Defences by name: their text, and an update after them."""

import math
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

import jax
from jaxtyping import Array, Key, PyTree

from jaxleak.errors import InputError, check_choice
from jaxleak.threat.defence import Defence
from jaxleak.threat.noise import DPSGD, Clip, Gaussian, Laplace
from jaxleak.threat.own_defence import OwnDefence, defence_in_file, own_defence
from jaxleak.threat.precode import Precode
from jaxleak.threat.pruning import ErrorFeedback, Prune, PruneLayer, Soteria, TopK
from jaxleak.threat.rounding import BFloat16, Float16, Quantise

DEFENCES: dict[str, type[Defence]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "prune": Prune,
    "prune-layer": PruneLayer,
    "top-k": TopK,
    "error-feedback": ErrorFeedback,
    "soteria": Soteria,
    "precode": Precode,
    "clip": Clip,
    "dp-sgd": DPSGD,
    "fp16": Float16,
    "bf16": BFloat16,
    "int8": Quantise,
}
# Each defence switched off: the identity (of dp-sgd's gradients: their mean).
ZERO = {name: ":".join([name, *("0" for _ in fields(kind))]) for name, kind in DEFENCES.items()}


def parse_defence(text: str) -> Defence:
    """The defence that a text such as "gaussian:0.01", "dp-sgd:1.0:0.1" or "fp16" names.

    Args:
        text: the name in `DEFENCES` and the strengths, in the order of the fields, separated by colons; or
            FILE.py:FUNCTION, a function of your own (`OwnDefence`).

    Raises:
        InputError: unknown name, too few or too many strengths, one that is not a number or not allowed.

    Example:
        >>> import jaxleak
        >>> jaxleak.parse_defence("dp-sgd:1.0:0.1")
        DPSGD(clip=1.0, noise=0.1)
    """
    name, *strengths = text.split(":")
    if ".py" in text and name not in DEFENCES:
        return defence_in_file(text)
    check_choice("defence", name, DEFENCES)
    wanted = fields(DEFENCES[name])
    required = [field for field in wanted if field.default is MISSING]
    if not len(required) <= len(strengths) <= len(wanted):
        raise InputError(f"`defence` {name} is written {defence_form(name)}; got {text!r}.")
    values = {field.name: _number(text, field, strength) for field, strength in zip(wanted, strengths, strict=False)}
    try:
        return DEFENCES[name](**values)
    except InputError as error:
        raise InputError(f"`defence` {text!r}: {error}") from None


def _number(text: str, field: Field, strength: str) -> float:
    """A strength as its field has it; where it should be whole and is not, the defence's own check says so."""
    try:
        value = float(strength)
    except ValueError:
        form = defence_form(text.split(":")[0])
        raise InputError(
            f"`defence` {text!r}: `{field.name}` must be a number; got {strength!r}. It is written {form}."
        ) from None
    return int(value) if field.type is int and value.is_integer() else value


def defence_form(name: str) -> str:
    """The form of a defence's text: "dp-sgd:CLIP:NOISE", "int8[:BITS]"."""
    parts = (f":{field.name.upper()}" for field in fields(DEFENCES[name]))
    given = (field.default is MISSING for field in fields(DEFENCES[name]))
    return name + "".join(part if must else f"[{part}]" for part, must in zip(parts, given, strict=True))


def defence_text(defence: Defence) -> str:
    """The text from which `parse_defence` makes this defence; strengths that are their defaults are left out."""
    if isinstance(defence, OwnDefence):
        return defence.name
    name = next(name for name, kind in DEFENCES.items() if kind is type(defence))
    strengths = [(field, getattr(defence, field.name)) for field in fields(defence)]
    given = [(field.type, value) for field, value in strengths if value != field.default]
    return ":".join([name, *(str(int(value) if kind is int else float(value)) for kind, value in given)])


def as_defences(defences: Any) -> tuple[Defence, ...]:
    """Defences from a sequence of them, in which functions of one's own may stand.

    Raises:
        InputError: it holds something else.
    """
    if not isinstance(defences, tuple | list):
        raise InputError(f"`defences` must be a tuple, as in (parse_defence('prune:0.5'),); got {defences!r}.")
    return tuple(
        defence if isinstance(defence, Defence) or not callable(defence) else own_defence(defence)
        for defence in defences
    )


def check_defences(defences: tuple[Defence, ...]) -> None:
    """Raise unless these are defences, and one on each image's gradient comes before all others.

    Raises:
        InputError: a per-example defence is not the first, or it is no tuple of defences.
    """
    if not (isinstance(defences, tuple) and all(isinstance(defence, Defence) for defence in defences)):
        raise InputError(f"`defences` must be a tuple, as in (parse_defence('prune:0.5'),); got {defences!r}.")
    for defence in defences[1:]:
        if defence.per_example:
            name, given = defence_text(defence).split(":")[0], ", ".join(map(defence_text, defences))
            raise InputError(
                f"`defence` {name} acts on the gradient of each image, before all others; got {given}. "
                f"Name {name} first, and only once."
            )


def defend(
    defences: tuple[Defence, ...], update: PyTree, key: Key[Array, ""], scores: Callable[[], Array] | None = None
) -> PyTree:
    """The update after all defences, in their order; the i-th of these draws from `fold_in(key, i)`.

    A per-example defence takes the update for the gradient of a single image. `scores` gives those of the images'
    features (`observe.follows`), where a defence looks at them. Raises as `check_defences`.
    """
    check_defences(defences)
    for i, defence in enumerate(defences):
        update = defence.apply_beside(update, jax.random.fold_in(key, i), scores)
    return update


def shows_zeros(defences: tuple[Defence, ...]) -> bool:
    """True if the update shows which entries were set to zero: a defence is sparse, and none after it adds noise."""
    sparse = [i for i, defence in enumerate(defences) if defence.sparse]
    return bool(sparse) and not any(other.random and not other.sparse for other in defences[sparse[0] + 1 :])


def sparse_mask(defences: tuple[Defence, ...], update: PyTree) -> PyTree:
    """Mask of a defended update, for an attacker who sees that it was pruned: 1 where it is not zero, else 0.

    A function of one's own may say otherwise. () if the update does not show which entries were set to zero
    (`shows_zeros`).
    """
    if not shows_zeros(defences):
        return ()
    masks = [defence.mask(update) for defence in defences if defence.sparse]
    return jax.tree.map(lambda *parts: math.prod(parts[1:], start=parts[0]), *masks)
