"""A defence of one's own: a function of the update, from Python or from a file."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxleak.errors import InputError
from jaxleak.models.describe import description, program_of
from jaxleak.models.own.from_file import function_in
from jaxleak.threat.defence import Defence


@dataclass(frozen=True)
class OwnDefence(Defence):
    """A function `update -> update`, or `(update, key) -> update` if it draws.

    It is traced, so it is written with `jax.numpy`. The update is a tree of arrays {layer: {"kernel", "bias"}}. A
    function with the attribute `sparse = True` sets entries to zero that an attacker may see.

    Attributes:
        function: returns a tree of the same names and shapes.
        name: for rows and tables.
    """

    function: Callable[..., PyTree]
    name: str

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(_taken(self.function)) > 1

    @property
    def sparse(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return bool(getattr(self.function, "sparse", False))

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        try:
            found = self.function(update, key) if self.random else self.function(update)
        except jax.errors.JAXTypeError as error:  # NumPy, float(), if
            reason = str(error).partition("\n")[0][:200]
            raise InputError(
                f"`defence` {self.name} must be written with jax.numpy, as it runs in a compiled program: {reason}"
            ) from None
        wanted, got = (jax.tree.map(jnp.shape, tree) for tree in (update, found))
        if wanted != got:
            raise InputError(
                f"`defence` {self.name} must return an update like the one it is given, of the same names and shapes; "
                f"it returned {got}, not {wanted}."
            )
        return jax.tree.map(lambda leaf, old: jnp.asarray(leaf, old.dtype), found, update)


def _taken(function: Callable) -> list[inspect.Parameter]:
    """The arguments that must be given."""
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def own_defence(function: Callable[..., Any], name: str | None = None) -> OwnDefence:
    """The defence that a function is; in rows it has its name and a hash of its code.

    Raises:
        InputError: it takes no update, or more than an update and a key.
    """
    name = name or description(function).partition(":")[0]
    try:
        count = len(_taken(function))
    except (TypeError, ValueError):  # written in C
        count = 1
    if count not in (1, 2):
        raise InputError(
            f"`defence` {name} must be a function of an update, or of an update and a key; it takes {count} arguments."
        )
    return OwnDefence(function, f"{name}@{program_of(function)}")


def defence_in_file(text: str) -> OwnDefence:
    """`FILE.py:FUNCTION`, or FILE.py for its function `defence`.

    Raises:
        InputError: no such file or function.
    """
    file, colon, name = text.rpartition(":")
    if not colon:
        file, name = text, "defence"
    return own_defence(function_in("defence", Path(file), name), f"{Path(file).name}:{name}")
