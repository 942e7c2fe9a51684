"""Tensors by name from a file of safetensors, numpy or torch."""

import contextlib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxleak.errors import InputError, check_file, check_type
from jaxleak.models.files.flax_trees import COLLECTIONS, begins_msgpack, flat_tree, from_msgpack, without_states
from jaxleak.models.files.kinds import check_kind, listed
from jaxleak.models.files.pickled import Array, Lazy, Unknown, load_pickled

KIND = "a file of tensors (safetensors, .npz, torch.save)"
SAFETENSORS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "BOOL": np.bool_,
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}
# What people call the parts of a checkpoint, the clearest name first.
WEIGHTS = (
    *("state_dict", "model_state_dict", "model_state", "net_state_dict", "model", "net", "network", "module"),
    *("weights", "params", "parameters", "before"),
)
UPDATES = (
    *("grads", "gradients", "grad", "gradient", "update", "updates", "delta", "diff", "difference"),
    *("grad_dict", "named_grads"),
)
MOST = 2_000_000  # objects in a file, an optimiser's lists of numbers among them
NOT_WEIGHTS = ("optim", "opt_state", "sched", "scaler")


@dataclass(frozen=True, eq=False)
class Stored:
    """Tensors of a file.

    Attributes:
        tensors: by name; of a list without names by their place, "0", "1" and so on.
        named: False for such a list.
        length: entries of such a list, those without a tensor included.
        ordered: True if the tensors come in the order in which they were saved.
        tied: names that the file says are of one tensor, each group in the file's order.
    """

    tensors: dict[str, np.ndarray]
    named: bool = True
    length: int = 0
    ordered: bool = True
    tied: tuple[tuple[str, ...], ...] = ()


def read_tensors(path: str | Path, what: str = "weights") -> Stored:
    """The tensors of a safetensors, an `.npz` or a `torch.save` file (zip archive, or the format before).

    Nothing in the file is run. Of a checkpoint with several parts the one is taken that is called as `what` is, which a
    line says; `FILE:PART` names another. Floats narrower than 16 bits, and bfloat16, are widened to float32.

    Args:
        path: the file; after a colon the part of it.
        what: "weights" or "update", or what else the user calls it.

    Raises:
        InputError: no such file, another kind, or no part of it that is tensors alone.
    """
    check_type(what, path, (str, Path), f"the path of {KIND}")
    file, part = _split(path)
    check_kind(what, file, KIND)
    check_file(what, file, KIND)
    try:
        with open(file, "rb") as opened:
            start = opened.read(9)
        if start[8:9] == b"{" and start[:4] != b"PK\x03\x04":
            return _of_safetensors(file)
        value, unknown = (from_msgpack(file.read_bytes()), []) if begins_msgpack(start) else _opened(file)
        _check_size(value)
        return _taken(what, file, part, without_states(value), unknown)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RecursionError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"`{what}` must be {KIND}; {str(file)!r} cannot be read: {reason}.") from error


def _check_size(value: Any) -> None:
    """Raise for an object that holds itself, or the same parts so often that to go through them would not end.

    Raises:
        ValueError: it is one.
    """
    left, count = [value], 0
    while left:
        entry = left.pop()
        parts = list(entry.values() if isinstance(entry, Mapping) else entry if isinstance(entry, list | tuple) else ())
        parts += [entry.state] if isinstance(entry, Unknown) else []
        count += len(parts)
        if count > MOST:
            raise ValueError(f"it holds itself, or more than {MOST:,} objects")
        left += parts


def _split(path: str | Path) -> tuple[Path, str]:
    file, colon, part = str(path).rpartition(":")
    with contextlib.suppress(OSError):
        if colon and not Path(path).exists() and Path(file).is_file():
            return Path(file), part
    return Path(path).expanduser(), ""


def _of_safetensors(file: Path) -> Stored:
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        content = deserialize(file.read_bytes())
        with safe_open(file, "np") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    tensors = {}
    for name, entry in content:
        if entry["dtype"] not in SAFETENSORS:
            raise ValueError(f"{name} is of type {entry['dtype']}")
        tensors[name] = _widened(np.frombuffer(entry["data"], SAFETENSORS[entry["dtype"]]).reshape(entry["shape"]))
    # `safetensors.torch.save_model` leaves out tied tensors and notes which one is theirs.
    tied = [(kept, name) for name, kept in metadata.items() if kept in tensors and name not in tensors]
    return Stored(tensors, ordered=False, tied=tuple(tied))


def _opened(file: Path) -> tuple[Any, list[str]]:
    """What a numpy or torch file holds, and the names in it that were not looked up."""
    with open(file, "rb") as opened:
        numpys = opened.read(6) == b"\x93NUMPY"
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        numpys |= bool(archive.namelist()) and all(name.endswith(".npy") for name in archive.namelist())
    if not numpys:
        return load_pickled(file)
    try:
        loaded: Any = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, []
        with loaded as arrays:
            return {name: arrays[name] for name in arrays.files}, []
    except ValueError as error:
        problem = "it holds Python objects; save arrays, as np.savez(FILE, **dict) does"
        raise ValueError(problem if "allow_pickle" in str(error) else str(error)) from error


def _taken(what: str, file: Path, part: str, value: Any, unknown: list[str]) -> Stored:
    """The tensors of the part that is meant."""
    value = [value] if _is_tensor(value) else _attributes(value)  # a vector of all parameters
    if not isinstance(value, Mapping | list | tuple) or (isinstance(value, Unknown) and not _is_module(value)):
        raise InputError(f"`{what}` {str(file)!r} holds no dict of tensors, but {_kind(value)}; save a state_dict().")
    path, chosen = _chosen(what, file, part, list(_parts(value)), value)
    tensors, wrong = {}, []
    entries = chosen.items() if isinstance(chosen, Mapping) else enumerate(chosen)
    places: dict[Any, list[str]] = {}
    for name, entry in entries:
        if isinstance(entry, Lazy):
            places.setdefault(entry.place, []).append(str(name))
        if _is_tensor(entry):
            tensors[str(name)] = _widened(entry if isinstance(entry, np.ndarray) else entry.array())
        elif isinstance(entry, Unknown) and entry.origin.startswith("torch."):
            wrong.append(f"{name} ({entry.origin})")
    if wrong:
        cure = "dequantize()" if "qtensor" in wrong[0] else "to_dense()"
        raise InputError(f"`{what}` {str(file)!r}: {listed(wrong)} is no dense tensor; save it by {cure}.")
    if path:
        read = COLLECTIONS if path == ("params",) else path[:1]
        others = [str(name) for name in value if str(name) not in read] if isinstance(value, Mapping) else []
        beside = f"; it also holds {listed(others)}" if others else ""
        warnings.warn(f"`{what}` are {'/'.join(path)} of {file.name}{beside}.", stacklevel=2)
    if unknown and not _is_module(value):
        warnings.warn(f"`{what}`: {file.name} names {listed(unknown)}: left out, not run.", stacklevel=2)
    named = isinstance(chosen, Mapping) and not _is_numbered(tensors)
    tied = tuple(tuple(names) for names in places.values() if len(names) > 1)
    return Stored(tensors, named=named, length=len(chosen), tied=tied if named else ())


def _is_numbered(tensors: Mapping[str, Any]) -> bool:
    """True for names that are places, as those of `np.savez(file, *arrays)`: arr_0, arr_1 and so on."""
    return list(tensors) in ([f"{word}{number}" for number in range(len(tensors))] for word in ("arr_", ""))


def _parts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The dicts and lists of tensors in an object, and where they are."""
    if _is_module(value):
        yield path, _state_dict(value.state)
        return
    value = _attributes(value)
    tree = flat_tree(value, _is_tensor)
    if tree:
        inside = isinstance(value.get("params"), Mapping) and set(value) - set(COLLECTIONS)
        yield (*path, "params") if inside else path, tree
        value = {name: entry for name, entry in value.items() if name not in COLLECTIONS} if inside else {}
    if isinstance(value, list | tuple) and value and all(_is_pair(entry) for entry in value):
        value = dict(value)  # named_parameters() as a list
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            entries = [value.get(place) for place in range(len(value))]
            if all(_is_tensor(entry) for entry in entries):
                yield path, entries
            if path or list(value) != list(range(len(value))):
                return  # an optimiser's state
            value = {str(name): entry for name, entry in value.items() if isinstance(entry, Mapping)}
        tensors = [entry for entry in value.values() if _is_tensor(entry)]
        if any(entry.shape for entry in tensors) or (value and len(tensors) == len(value)):
            yield path, value
        for name, entry in value.items():
            if not any(word in name.lower() for word in NOT_WEIGHTS):
                yield from _parts(entry, (*path, name))
    elif isinstance(value, list | tuple):
        gradients = [entry for entry in value if entry is not None]
        if gradients and all(_is_tensor(entry) for entry in gradients):
            yield path, value
        elif len(value) == 1 or not path:
            for number, entry in enumerate(value):
                yield from _parts(entry, (*path, str(number)))


def _attributes(value: Any) -> Any:
    """Attributes of an object that is no container, by name; all else as it is."""
    plain = isinstance(value, Unknown) and not value and isinstance(value.state, Mapping) and not _is_module(value)
    return dict(value.state) if plain else value


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and _is_tensor(value[1])


def _chosen(what: str, file: Path, part: str, parts: list, value: Any) -> tuple[tuple[str, ...], Any]:
    """One of the parts, by its name.

    Raises:
        InputError: none, or several that may be meant.
    """
    names = ["/".join(path) for path, _ in parts]
    if part:
        meant = [one for one, name in zip(parts, names, strict=True) if part in (name, name.rpartition("/")[2])]
        if not meant:  # what all names of a module in it begin with
            inside = [(path, _under(part, tensors)) for path, tensors in parts if isinstance(tensors, Mapping)]
            meant = [((*path, part), tensors) for path, tensors in inside if tensors]
        if len(meant) != 1:
            raise InputError(f"`{what}` {str(file)!r} has no one part {part!r} of tensors; it has {listed(names)}.")
        return meant[0]
    mine, others = (UPDATES, WEIGHTS) if what == "update" else (WEIGHTS, UPDATES)
    preferred = [name for name in (*mine, *others) if any(path and path[-1] == name for path, _ in parts)]
    if len(parts) > 1 and preferred:
        parts = [one for one in parts if one[0] and one[0][-1] == preferred[0]]
    elif len(parts) > 1:  # what is deeper is part of the outer one
        parts = [one for one in parts if not any(one[0][: len(path)] == path != one[0] for path, _ in parts)]
    if len(parts) == 1:
        return parts[0]
    if parts:
        raise InputError(
            f"`{what}` {str(file)!r} holds several sets of tensors: {listed(names)}. Name one after a colon, as in "
            f"{file.name}:{names[0]}."
        )
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    held = listed([f"{name} ({_kind(entry)})" for name, entry in entries]) or "nothing"
    raise InputError(f"`{what}` {str(file)!r} holds no dense tensors by name; it holds {held}.")


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _kind(value: Any) -> str:
    """What an object is, in words."""
    if isinstance(value, Unknown):
        return f"an object of {value.origin}, which was not run"
    return "one tensor without a name" if _is_tensor(value) else type(value).__name__


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Lazy | np.ndarray | Array)


def _widened(array: np.ndarray) -> np.ndarray:
    """numpy's own types as they are; bfloat16 and floats of 8 bits, which are others', as float32."""
    return array.astype(np.float32) if array.dtype.kind == "V" or array.dtype.name in ml_dtypes.__all__ else array


def _is_module(value: Any) -> bool:
    """True for a whole module of torch."""
    state = value.state if isinstance(value, Unknown) else None
    return isinstance(state, Mapping) and "_parameters" in state and "_modules" in state


def _state_dict(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What `state_dict()` of a module gives, by the module's attributes."""
    passing = state.get("_non_persistent_buffers_set") or ()
    own = {**(state.get("_parameters") or {}), **(state.get("_buffers") or {})}
    tensors = {f"{prefix}{name}": tensor for name, tensor in own.items() if name not in passing and tensor is not None}
    for name, module in (state.get("_modules") or {}).items():
        if _is_module(module):
            tensors |= _state_dict(module.state, f"{prefix}{name}.")
    return tensors


def renamed(stored: Stored, names: Mapping[str, str]) -> Stored:
    """The same tensors under other names; those without another keep theirs."""
    tied = tuple(tuple(names.get(name, name) for name in group) for group in stored.tied)
    return replace(stored, tensors={names.get(name, name): stored.tensors[name] for name in stored.tensors}, tied=tied)
