"""What the command line prints as one line: a user's mistake (it exits with 2), and a disk that is full (3)."""

import contextlib
import difflib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, what is allowed, and how to mend it.

    Example:
        >>> import jaxleak
        >>> jaxleak.build_model("lenet", 0)
        Traceback (most recent call last):
        jaxleak.errors.InputError: `num_classes` must be above 0; got 0.
    """


class StorageError(OSError):
    """Results cannot be written: the disk is full or fails. The message is one line.

    Attributes:
        full: True where space is lacking, so that less may fit.
        needed: bytes that could not be written; 0 where that is not known.
        rows: of trials that ended and are not stored, by the names of the columns.

    Example:
        >>> import jaxleak
        >>> error = jaxleak.StorageError("the disk is full", full=True, needed=4096)
        >>> error.full, error.needed, error.rows
        (True, 4096, [])
    """

    def __init__(self, message: str, *, full: bool = False, needed: int = 0, rows: list[dict[str, Any]] | None = None):
        super().__init__(message)
        self.full, self.needed, self.rows = full, needed, rows or []


def current_name(name: str, renamed: Mapping[str, str]) -> str:
    """The name that takes the place of `name` in `renamed`, with a warning; any other name as it is."""
    if name not in renamed:
        return name
    text = f"`{name}` is called `{renamed[name]}` now; the next version no longer knows the old name."
    warnings.warn(text, FutureWarning, stacklevel=3)
    return renamed[name]


def check_choice(argument: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`, else raise naming the closest match.

    Raises:
        InputError: `value` is not in `allowed`.
    """
    names = sorted(allowed)
    if value in names:
        return value
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(f"`{argument}` must be one of {', '.join(names)}; got {value!r}.{hint}")


def check_type(argument: str, value: Any, kinds: type | tuple[type, ...], what: str) -> None:
    """Raise unless `value` is of one of these types; `what` says in words which.

    Raises:
        InputError: it is of another type.
    """
    if not isinstance(value, kinds):
        shown = (
            repr(value) if isinstance(value, str | int | float | None) else f"a value of type {type(value).__name__}"
        )
        raise InputError(f"`{argument}` must be {what}; got {shown}.")


def check_file(argument: str, path: Any, what: str) -> None:
    """Raise unless `path` is a file that has an end; `what` is its kind, "a safetensors file".

    Raises:
        InputError: no such file, a directory, a pipe, a device, or no path at all.
    """
    check_type(argument, path, (str, Path), f"the path of {what}")
    file = Path(path)
    try:
        there = file.exists()
    except OSError as error:
        raise InputError(f"`{argument}` must be {what}; {str(path)!r} cannot be read ({error.strerror}).") from None
    if not there:
        raise InputError(f"`{argument}` must be {what}; there is no file {str(path)!r}.")
    if not file.is_file():
        kind = "a directory" if file.is_dir() else "a pipe or a device"
        raise InputError(f"`{argument}` must be {what}; {str(path)!r} is {kind}.")


@contextlib.contextmanager
def naming(**names: str) -> Iterator[None]:
    """What is refused inside goes by the names that the user has for these arguments.

    Raises:
        InputError: as inside, with each `key` in backticks replaced by its value.
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        for inner, outer in names.items():
            text = text.replace(f"`{inner}`", f"`{outer}`")
        raise InputError(text) from error


def check_positive(argument: str, value: float, *, integer: bool = False) -> None:
    """Raise unless `value` is above zero (and whole, for `integer`).

    Raises:
        InputError: `value` is zero, negative, not a number, or not whole where it must be.
    """
    _check_number(argument, value, integer)
    if not value > 0:
        raise InputError(f"`{argument}` must be above 0; got {value!r}.")
    if math.isinf(value):
        raise InputError(f"`{argument}` must be finite; got {value!r}.")


def check_not_negative(argument: str, value: float, *, integer: bool = False) -> None:
    """Raise unless `value` is zero or above, and finite (and whole, for `integer`).

    Raises:
        InputError: `value` is negative, infinite, not a number, or not whole where it must be.
    """
    _check_number(argument, value, integer)
    if not value >= 0:
        raise InputError(f"`{argument}` must be 0 or above; got {value!r}.")
    if math.isinf(value):
        raise InputError(f"`{argument}` must be finite; got {value!r}.")


def _check_number(argument: str, value: float, integer: bool) -> None:
    if not isinstance(value, Real):
        raise InputError(f"`{argument}` must be a {'whole ' if integer else ''}number; got {value!r}.")
    if integer and (isinstance(value, bool) or not math.isfinite(value) or int(value) != value):
        raise InputError(f"`{argument}` must be a whole number; got {value!r}.")


def check_seed(argument: str, value: int) -> None:
    """Raise unless `value` is a seed that jax tells from every other one: without float64 it reads 32 bits.

    Raises:
        InputError: `value` is not in 0..2**32-1.
    """
    if not 0 <= value < 2**32:
        raise InputError(f"`{argument}` must be from 0 to {2**32 - 1}; got {value!r}.")
