"""Trees of parameters as Flax users save them: msgpack of `flax.serialization`, pickles of trees, flat names.

Source: flax/serialization.py (`_msgpack_ext_unpack`, `_unchunk`), flax/nnx/statelib.py and variablelib.py.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxleak.models.files.pickled import Unknown

COLLECTIONS = ("params", "batch_stats")
LINEN = "kernel"  # what no tensor of torch is called
SAVE = 'np.savez("FILE.npz", **flax.traverse_util.flatten_dict(tree, sep="/"))'


def begins_msgpack(start: bytes) -> bool:
    """True for the first byte of a msgpack map with entries; a pickle begins with 0x80."""
    return bool(start) and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF))


def from_msgpack(content: bytes) -> Any:
    """What `flax.serialization.to_bytes` wrote: dicts, lists, numbers, texts and arrays.

    Raises:
        ValueError: something else, or a broken one.
    """
    import msgpack  # flax needs it

    def unpacked(code: int, data: bytes) -> Any:
        if code not in (1, 3):  # arrays, and numpy's scalars
            return None
        shape, kind, numbers = msgpack.unpackb(data, raw=True)
        name = kind.decode()
        narrow = name in ml_dtypes.__all__
        dtype = np.dtype(getattr(ml_dtypes, name) if narrow else name)
        if dtype.kind not in "fiubc" and not narrow:
            raise ValueError(f"an array of {dtype}")
        return np.frombuffer(numbers, dtype).reshape(shape)

    try:
        return _whole(msgpack.unpackb(content, ext_hook=unpacked, raw=False, strict_map_key=False))
    except Exception as error:  # msgpack raises a dozen types
        raise ValueError(f"no msgpack of flax.serialization: {type(error).__name__}: {error}") from error


def _whole(value: Any) -> Any:
    """With arrays that were written in chunks put together."""
    if not isinstance(value, dict):
        return value
    if "__msgpack_chunked_array__" in value:
        shape, chunks = ([value[name][str(n)] for n in range(len(value[name]))] for name in ("shape", "chunks"))
        return np.concatenate(chunks).reshape(shape)
    return {name: _whole(entry) for name, entry in value.items()}


def without_states(value: Any) -> Any:
    """States of NNX, pickled, as dicts of what their variables hold; all else as it is."""
    if isinstance(value, Unknown) and value.origin.startswith("flax.nnx.") and isinstance(value.state, Mapping):
        for name in ("_mapping", "_raw_value", "raw_value"):
            if name in value.state:
                return without_states(value.state[name])
    if type(value) is dict:
        return {name: without_states(entry) for name, entry in value.items()}
    return value


def flat_tree(value: Any, is_tensor: Callable[[Any], bool]) -> dict[str, Any] | None:
    """The tensors of a tree of Flax, their names joined by dots; None for another object.

    The collections of `COLLECTIONS` are taken together, and what is beside them is left out.
    """
    if not isinstance(value, Mapping) or isinstance(value, Unknown):
        return None
    if isinstance(value.get("params"), Mapping):
        value = {name: value[name] for name in COLLECTIONS if value.get(name)}
    found = _flat(value, is_tensor)
    nested = found is not None and any(isinstance(entry, Mapping) for entry in value.values())
    return found if nested and found and any(name.endswith(f".{LINEN}") for name in found) else None


def _flat(value: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for name, entry in value.items():
        if type(entry) is dict or (isinstance(entry, Mapping) and not isinstance(entry, Unknown)):
            inner = _flat(entry, is_tensor)
            if inner is None:
                return None
            found |= {f"{name}.{rest}": tensor for rest, tensor in inner.items()}
        elif is_tensor(entry):
            found[str(name)] = entry
        elif entry is not None:
            return None
    return found


def steps_of(name: str) -> tuple[str, ...]:
    """The parts of a name, which dots, slashes or brackets part, as in "params/conv/kernel"."""
    return tuple(re.findall(r"[^./\[\]'\"]+", name))


def is_linen(names: Collection[str], known: Collection[str]) -> bool:
    """True if these are names of Flax, where a model's names in torch are `known`."""
    return any(steps_of(name)[-1:] == (LINEN,) and name not in known for name in names)


def without_collections(name: str) -> str:
    """A name without "params" or "batch_stats", and what is before it, joined by dots."""
    steps = steps_of(name)
    places = [place for place, step in enumerate(steps[:-1]) if step in COLLECTIONS]
    return ".".join(steps[places[0] + 1 :] if places else steps)


def leaf_order(names: Collection[str]) -> list[str]:
    """The names of parameters in the order of `jax.tree.leaves`."""
    parameters = [name for name in names if "batch_stats" not in steps_of(name)]
    return sorted(parameters, key=steps_of)
