"""Models and their fields as text: the same in every process, and another for another model."""

import dataclasses
import functools
import hashlib
import re
from types import CodeType
from typing import Any

import flax.linen as nn


def description(value: Any) -> str:
    """A model, or a value of one of its fields, without addresses in memory.

    Functions are told by their names: Linen's own `repr` has one text for all that jax has compiled, sigmoid and
    softplus alike. Those without a name of their own are told by what they do, but for values that they enclose.
    """
    if isinstance(value, nn.Module):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in ("parent", "name")]
        return f"{_name(type(value))}({', '.join(f'{name}={description(getattr(value, name))}' for name in fields)})"
    if isinstance(value, functools.partial):
        parts = [description(value.func), *map(description, value.args)]
        parts += [f"{name}={description(part)}" for name, part in value.keywords.items()]
        return f"partial({', '.join(parts)})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(description, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {description(part)}' for name, part in value.items())}}}"
    if callable(value) and getattr(value, "__qualname__", None):
        return _name(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def is_plain(value: Any) -> bool:
    """True for what jax, Flax and this package define, if its fields are so too, or plain values.

    Such a model computes what its fields say. One that was written elsewhere may depend on more.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return is_plain(type(value)) and all(is_plain(part) for part in parts if callable(part))
    if type(value).__module__.startswith("jaxleak."):  # an object with a life of its own, such as an adapted model
        return False
    return getattr(value, "__module__", "").partition(".")[0] in ("jax", "flax", "jaxleak")


def _name(value: Any) -> str:
    # Runs that were begun before `kernels` was a folder name its functions without it, and go on.
    module = value.__module__.replace("jaxleak.kernels.", "jaxleak.")
    name = f"{module}.{value.__qualname__}"
    code = getattr(value, "__code__", None)
    return f"{name}:{_digest(code)}" if "<" in name and code is not None else name


def program_of(function: Any) -> str:
    """The start of a hash of a function's code; of one without code that of its text."""
    code = getattr(function, "__code__", None)
    return _digest(code) if code is not None else hashlib.sha256(description(function).encode()).hexdigest()[:8]


def _digest(code: CodeType) -> str:
    constants = [_digest(constant) if isinstance(constant, CodeType) else repr(constant) for constant in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()[:8]
