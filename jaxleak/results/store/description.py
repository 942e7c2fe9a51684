"""`run.json`: settings, their hash and versions; and what a directory must be like for a run to begin or continue."""

import contextlib
import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxleak.data.paths import check_inside, create, is_local, sync_directory, writing
from jaxleak.errors import InputError
from jaxleak.results.store.parts import json_bytes, own_debris
from jaxleak.results.store.versions import check_solvers

FORMAT = 3  # raise it when a column's type or a file's layout changes: parts of another format are refused, not rerun
_ABSENT = object()
_OWN = re.compile(  # names of what is written into a run
    r"run\.json|truth\.npz|summary\.json|report\.(html|json)|best\.(npz|png)|determined\.png|figures|\.lock.*"
    r"|(rows|arrays|trained)-.*|rows\.jsonl|roc\.png"
)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def as_json(value: Any) -> Any:
    """`value` as it comes back from JSON: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value))


def settings_hash(settings: dict[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of the settings as canonical JSON."""
    return hashlib.sha256(_canonical(as_json(settings)).encode()).hexdigest()[:12]


def differences_of(stored: Any, asked: Any, name: str = "") -> list[str]:
    """`seeds: 50 in the directory, 20 asked`, for every setting that differs, with nested names dotted.

    What stands in a list of several settings goes by its own name, as in `attacks.dlg.iterations`.
    """
    if isinstance(stored, dict) and isinstance(asked, dict):
        pairs = [(key, stored.get(key, _ABSENT), asked.get(key, _ABSENT)) for key in stored | asked]
    elif _holds_settings(stored) and _holds_settings(asked) and len(stored) == len(asked):
        pairs = [(old.get("name", n), old, new) for n, (old, new) in enumerate(zip(stored, asked, strict=True))]
    else:
        old, new = _text(stored), _text(asked)
        return [] if old == new else [f"{name}: {_near(old, new)} in the directory, {_near(new, old)} asked"]
    nested = (differences_of(old, new, f"{name}.{key}" if name else str(key)) for key, old, new in pairs)
    return [text for texts in nested for text in texts]


def _holds_settings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _text(value: Any) -> str:
    """As JSON; of several settings their names."""
    named = _holds_settings(value) and all("name" in part for part in value)
    return "absent" if value is _ABSENT else _canonical([part["name"] for part in value] if named else value)


def _near(text: str, other: str) -> str:
    """The text, or of a long one the part where it begins to differ from the other."""
    if len(text) <= 80:
        return text
    first = next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, first - 37)
    return f"{'...' * (start > 0)}{text[start : start + 74]}{'...' * (start + 74 < len(text))}"


def other_settings(path: Path, differences: list[str]) -> str:
    return (
        f"`out` {path} holds a run with other settings: {'; '.join(differences)}."
        " Give the same settings to continue it, or another directory."
    )


def make_directory(path: Path) -> None:
    """Make a run directory, or see that it can be one.

    Raises:
        InputError: a file, a directory of something else or that cannot be made, or links that lead out of it.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"`out` must be a directory; {path} is a file. Give another path.")
    try:
        if is_local(path) and not path.exists():
            with writing("out", path):
                path.mkdir(parents=True, exist_ok=True)
            sync_directory(path.parent)
        contents = {file.name for file in (path.iterdir() if is_local(path) else path.glob("*"))}
    except OSError as error:
        raise InputError(f"`out` {path} cannot be made or read ({error.strerror}). Give another path.") from error
    check_inside(path, *sorted(filter(_OWN.fullmatch, contents)))
    foreign = {name for name in contents if not name.startswith(".lock")} - {file.name for file in own_debris(path)}
    if "run.json" not in contents and foreign:
        raise InputError(
            f"`out` {path} is not empty and not a run directory (no run.json). Give a new or empty directory."
        )


def begun(path: Path, settings: dict[str, Any], environment: dict[str, Any], mix_versions: bool) -> dict[str, Any]:
    """`run.json`, made if it is not there; it must have these settings and, unless they may mix, solvers."""
    if not (path / "run.json").exists():
        description = _describe(settings, environment)
        with contextlib.suppress(FileExistsError):  # another shard was faster
            with writing("out", path):
                create(path / "run.json", json_bytes(description))
            return description
    description = read_description(path)
    differences = differences_of(description["settings"], as_json(settings))
    if differences:
        raise InputError(other_settings(path, differences))
    if not mix_versions:
        check_solvers(path, description["environment"], environment)
    return description


def read_description(path: Path) -> dict[str, Any]:
    """`run.json`, checked."""
    cure = "Restore it from a copy, or move the directory away and start again."
    try:
        description = json.loads((path / "run.json").read_bytes())
        fields = {"format", "settings", "settings_hash", "environment", "created"} - set(description)
        if fields or not isinstance(description["settings"], dict):
            raise ValueError(f"lacks {', '.join(sorted(fields)) or 'settings'}")
    except FileNotFoundError:
        raise InputError(
            f"{path} is not a run directory (no run.json). Give what `jaxleak run --out` was given."
        ) from None
    except OSError as error:
        raise InputError(f"{path / 'run.json'} cannot be read ({error.strerror}). {cure}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path / 'run.json'} is damaged ({' '.join(str(error).split())}). {cure}") from error
    if description["format"] != FORMAT:
        raise InputError(
            f"{path} was written in store format {description['format']!r}; this jaxleak reads {FORMAT}."
            " Use the version that wrote it, or another directory."
        )
    if settings_hash(description["settings"]) != description["settings_hash"]:
        raise InputError(f"{path / 'run.json'} was edited: its settings do not match their hash. {cure}")
    return description


def _describe(settings: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "settings": as_json(settings),
        "settings_hash": settings_hash(settings),
        "environment": environment,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
