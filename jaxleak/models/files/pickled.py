"""Reads what `torch.save` wrote: tensors and containers. Nothing that a file names is imported or run.

Pickles name functions and classes that unpickling calls. Here every such name stands for an `Unknown`, which does
nothing, but for the few that tensors are made of; those are the methods of `_Reader`.

Source: torch/serialization.py (`_load`, `_legacy_load`) and torch/_utils.py (`_rebuild_*`).
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before zip archives
# torch's name of a type or of its storage -> numpy's.
TYPES: dict[str, Any] = {
    **{name: getattr(np, name) for name in ("float16", "float32", "float64", "complex64", "complex128")},
    **{name: getattr(np, name) for name in ("int8", "int16", "int32", "int64")},
    **{name: getattr(np, name) for name in ("uint8", "uint16", "uint32", "uint64")},
    **{name: getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")},
    "bool": np.bool_,
    "half": np.float16,
    "float": np.float32,
    "double": np.float64,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}
FACTORIES = [(module, name) for module in ("builtins", "__builtin__") for name in ("list", "dict", "int", "float")]
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")


class Unknown(dict):
    """Stands for an object of the class `origin`: its entries as a dict, its attributes as `state`."""

    origin = ""
    state: Any = None
    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __call__(self, *args, **kwargs) -> "Unknown":
        return Unknown()

    def append(self, value: Any) -> None:
        """As a list's."""

    def extend(self, values: Any) -> None:
        """As a list's."""


class _Type(NamedTuple):
    """A type of numbers that a file names."""

    dtype: np.dtype


class _Storage:
    """Memory that tensors are parts of; `read` gives its bytes."""

    def __init__(self, dtype: np.dtype, read: Callable[[], bytes]):
        self.dtype, self.read = dtype, read


class Lazy:
    """A tensor that is read when it is asked for."""

    def __init__(self, storage: _Storage, dtype: np.dtype, offset: Any, size: Any, stride: Any):
        self._storage, self._dtype = storage, dtype
        self._offset, self._size, self._stride = offset, tuple(size), tuple(stride)
        whole = all(type(n) is int and n >= 0 for n in (offset, *self._size, *self._stride))
        if not (whole and isinstance(storage, _Storage) and len(self._size) == len(self._stride)):
            raise ValueError("a tensor's shape is not one")

    @property
    def shape(self) -> tuple[int, ...]:
        return self._size

    @property
    def place(self) -> tuple:
        """Equal for tensors that are one and the same."""
        return id(self._storage), self._offset, self._size, self._stride

    def array(self) -> np.ndarray:
        """The numbers.

        Raises:
            ValueError: they lie outside the file's.
        """
        flat = np.frombuffer(self._storage.read(), self._dtype)
        if 0 in self._size:
            return np.zeros(self._size, self._dtype)
        last = self._offset + sum((n - 1) * step for n, step in zip(self._size, self._stride, strict=True))
        if last >= len(flat):
            raise ValueError("a tensor reaches beyond what is stored of it")
        steps = [step * self._dtype.itemsize for step in self._stride]
        return np.lib.stride_tricks.as_strided(flat[self._offset :], self._size, steps, writeable=False)


class Array:
    """A numpy array, once it has its state."""

    def __init__(self, *args):
        self._value = np.zeros(0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._value.shape

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        self.fill(content, kind, shape, "F" if fortran else "C")

    def fill(self, content: bytes, kind: "_Dtype", shape: Any, order: Any) -> None:
        """Give it its numbers."""
        self._value = np.frombuffer(content, kind.dtype).reshape(shape, order=order)

    def array(self) -> np.ndarray:
        """The numbers."""
        return self._value


class _Dtype:
    """numpy's description of a type."""

    def __init__(self, text: Any, *args):
        self.dtype = text.dtype if isinstance(text, _Type) else np.dtype(text)
        if self.dtype.kind not in "fiub" and not isinstance(text, _Type):
            raise ValueError(f"an array of {self.dtype}")

    def __setstate__(self, state: Any) -> None:
        if self.dtype.kind in "fiub":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Reader(pickle.Unpickler):
    """An unpickler that makes tensors, containers and `Unknown`."""

    def __init__(self, file: BinaryIO, storage: Callable[[str, np.dtype, int], _Storage], unknown: dict[str, None]):
        super().__init__(file, encoding="utf-8")
        self._storage, self._unknown = storage, unknown

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("collections", "OrderedDict"),):
            return OrderedDict
        if (module, name) == ("collections", "defaultdict"):
            return self._empty
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset"):
            return frozenset if name == "frozenset" else set
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("flax.core.frozen_dict", "FrozenDict"):
            return self._first
        if module.partition(".")[0] in ("jax", "jaxlib") and name == "_reconstruct_array":
            return self._of_jax
        if module in ("torch", "torch.storage", "ml_dtypes") and name in TYPES:
            return _Type(np.dtype(TYPES[name]))
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_tensor_v3"):
            return self._tensor_of_type if name.endswith("3") else self._tensor
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return self._first
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return self._of_class
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._nested
        if (module, name) == ("_codecs", "encode"):
            return self._encoded
        if module in NUMPY and name == "_reconstruct":
            return type("Array", (Array,), {})
        if (module, name) == ("numpy", "dtype"):
            return type("Dtype", (_Dtype,), {})
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return self._from_buffer
        quiet = module.partition(".")[0] == "numpy" or module.startswith("flax.nnx.")
        if not quiet and (module, name) not in FACTORIES:
            self._unknown[f"{module}.{name}"] = None
        # One of its own: a pickle may set attributes of what it names.
        return type("Unknown", (Unknown,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":
            return pid[1]  # a class, with its source
        kind, stored, key, _, count, *view = pid
        if isinstance(stored, type) and stored.__name__ == "Unknown":
            return stored()  # of quantised numbers, which their tensor is refused for
        if kind != "storage" or any(view) or not isinstance(stored, _Type):
            raise ValueError("a part of it is no storage of numbers")
        return self._storage(str(key), stored.dtype, int(count))

    def _tensor(self, storage, offset, size, stride, *rest) -> Lazy:
        return Lazy(storage, storage.dtype, offset, size, stride)

    def _tensor_of_type(self, storage, offset, size, stride, requires_grad, hooks, kind, *rest) -> Lazy:
        return Lazy(storage, kind.dtype, offset, size, stride)

    def _empty(self, *args) -> dict:
        return OrderedDict()

    def _first(self, tensor, *rest) -> Any:
        return tensor

    def _of_class(self, build, kind, args, state) -> Any:
        return build(*args)

    def _of_jax(self, build, args, state, *rest) -> Any:
        array = build(*args)
        if isinstance(array, Array):
            array.__setstate__(state)
        return array

    def _nested(self, content) -> Any:
        return _load(io.BytesIO(content), self._unknown)

    def _encoded(self, text, encoding) -> bytes:
        return text.encode("latin1")

    def _from_buffer(self, content, kind, shape, order, *rest) -> Array:
        array = Array()
        array.fill(content, kind, shape, order)
        return array


class Pickled(NamedTuple):
    """What a file holds: dicts, lists, numbers, texts, `Lazy` tensors and numpy arrays, and `Unknown`.

    Attributes:
        value: the object that was saved.
        unknown: names of functions and classes that it also names, and that were not looked up.
    """

    value: Any
    unknown: list[str]


def load_pickled(path: Path) -> Pickled:
    """The object in a file of `torch.save`, in the format of zip archives or the one before, or in a plain pickle.

    Raises:
        ValueError: none of these, or a broken one.
    """
    unknown: dict[str, None] = {}
    try:
        return Pickled(_load(io.BytesIO(path.read_bytes()), unknown), list(unknown))
    except ValueError:
        raise
    except Exception as error:  # a broken pickle raises whatever it likes
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _load(file: io.BytesIO, unknown: dict[str, None]) -> Any:
    if zipfile.is_zipfile(file):
        return _of_archive(zipfile.ZipFile(file), unknown)
    file.seek(0)

    def nowhere(key: str, dtype: np.dtype, count: int) -> _Storage:
        raise ValueError("it refers to numbers that it does not hold")

    first = _Reader(file, nowhere, unknown).load()
    return _of_pickles(file, unknown) if first == MAGIC else first


def _of_archive(archive: zipfile.ZipFile, unknown: dict[str, None]) -> Any:
    roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl"]
    if not roots:
        raise ValueError("an archive without data.pkl")
    root = roots[0]
    if f"{root}constants.pkl" in archive.namelist():
        raise ValueError("it is TorchScript; save the module's state_dict() by torch.save")
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError("it was written on a big-endian machine")
    storages: dict[str, _Storage] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, lambda: archive.read(f"{root}data/{key}")))

    return _Reader(io.BytesIO(archive.read(f"{root}data.pkl")), storage, unknown).load()


def _of_pickles(file: io.BytesIO, unknown: dict[str, None]) -> Any:
    """The format before zip archives: pickles one after the other, then the numbers of each storage."""
    contents: dict[str, bytes] = {}
    storages: dict[str, _Storage] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, lambda: contents[key]))

    def load() -> Any:
        return _Reader(file, storage, unknown).load()

    load()  # the version
    if not load().get("little_endian", True):
        raise ValueError("it was written on a big-endian machine")
    value = load()
    for key in load():
        count = int.from_bytes(file.read(8), "little")
        contents[str(key)] = file.read(count * storages[str(key)].dtype.itemsize)
    return value
