"""Whether a run can be read: settings that were edited by hand are refused in a line that says where."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxleak.errors import InputError

if TYPE_CHECKING:
    from jaxleak.results.store.run import Run

Fits = Callable[[Any], bool]
Spec = dict[str, Fits]
AXES = {"image": 3, "text": 1}  # of `image_shape`, by kind of data
NEEDED = ("victim", "attacks", "seeds", "criteria")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(least: int) -> Fits:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _may_lack(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _listed(fits: Fits, least: int = 0, most: float = float("inf")) -> Fits:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(fits, value))


def _holds(value: Any) -> bool:
    return isinstance(value, dict)


VICTIM: Spec = {
    **dict.fromkeys(("model", "dataset", "split", "network", "defences"), _text),
    **dict.fromkeys(("weights", "model_fields", "trained_on", "modality"), _may_lack(_text)),
    "images": _listed(_whole(0), 1),
    "image_shape": _listed(_whole(1), 1, 3),
    "num_classes": _whole(1),
    "batch": _whole(1),
    "trained_steps": _may_lack(_whole(0)),
    "client": _may_lack(_holds),
}
CLIENT: Spec = {
    **dict.fromkeys(("steps", "epochs"), _may_lack(_whole(0))),
    "clients": _whole(1),
    "optimizer": _text,
    "lr": _number,
}
ATTACK: Spec = {**dict.fromkeys(("name", "label", "init", "objective"), _text), "solver": _holds}
SETTINGS: Spec = {
    "victim": _holds,
    "attacks": _may_lack(_listed(_holds, 1)),
    "seeds": _whole(1),
    "snapshots": _may_lack(_listed(_whole(0))),
    "snapshot_seeds": _may_lack(_whole(0)),
    "criteria": _holds,
    "dtype": _text,
}
CRITERIA = ("objective", "cosine", "relative_error", "mse_thresholds", "diverged_above")
# What the page says of a run; what else there is may lack.
TOLD = {"victim": ("model", "dataset", "network", "images", "image_shape", "num_classes"), "attack": ("name", "label")}


def check_readable(run: "Run", *, whole: bool = True) -> None:
    """Raise unless the settings are such as a run has, and the rows are of these settings.

    Args:
        run: the run.
        whole: whether nothing may lack that tables and pages tell.

    Raises:
        InputError: they are not.
    """
    settings = run.settings
    try:
        _check(settings, SETTINGS, "", NEEDED if whole else ())
        _check(settings.get("victim", {}), VICTIM, "victim.", TOLD["victim"] if whole else ())
        if whole and run.modality not in AXES:
            raise _UnfitError(f"victim.modality is {run.modality[:40]!r}")
        shape = settings.get("victim", {}).get("image_shape")
        if shape is not None and len(shape) != AXES.get(run.modality, len(shape)):
            raise _UnfitError(f"victim.image_shape is {str(shape)[:40]!r}")
        _check(settings.get("victim", {}).get("client") or {}, CLIENT, "victim.client.")
        for number, attack in enumerate(settings.get("attacks") or ()):
            _check(attack, ATTACK, f"attacks.{number}.", (*TOLD["attack"], "objective") if whole else ())
        unknown = sorted(set(settings.get("criteria", {})) - set(CRITERIA))
        if unknown:
            raise _UnfitError(f"criteria.{unknown[0]} is no criterion")
        _check(run.environment, {"command": _text, "versions": _may_lack(_holds)}, "environment.")
    except _UnfitError as error:
        raise InputError(
            f"{run.path / 'run.json'} is not what jaxleak writes ({error}). Restore it from a copy, or move the "
            "directory away and start again."
        ) from None
    other = sorted(set(run.table()["settings_hash"].to_pylist()) - {run.settings_hash})
    if other:
        raise InputError(
            f"{run.path} holds rows of other settings ({other[0]}) than its run.json ({run.settings_hash}). Restore "
            "run.json from a copy."
        )


class _UnfitError(Exception):
    """What is not as a run has it."""


def _check(value: Any, spec: Spec, name: str, needed: tuple[str, ...] = ()) -> None:
    lacking = [key for key in needed if value.get(key) is None]
    if lacking:
        raise _UnfitError(f"{name}{lacking[0]} is missing")
    for key, fits in spec.items():
        if key in value and not fits(value[key]):
            raise _UnfitError(f"{name}{key} is {str(value[key])[:40]!r}")
