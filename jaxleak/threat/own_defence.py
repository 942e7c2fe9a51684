"""A defence of one's own: a function of the update, from Python or from a file."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxleak.errors import InputError
from jaxleak.models.describe import description, program_of
from jaxleak.models.own.from_file import function_in
from jaxleak.threat.defence import Defence

SAID = ("mask", "log_likelihood")  # functions that a defence may have as attributes


@dataclass(frozen=True)
class OwnDefence(Defence):
    """A function `update -> update`, or `(update, key) -> update` if it draws.

    It is traced, so it is written with `jax.numpy`. The update is a tree of arrays {layer: {"kernel", "bias"}}. What an
    attacker knows of it are attributes of the function:

    - `sparse = True`: it sets entries to zero that an attacker may see.
    - `mask(shared)`: the tree of 1 where an entry of the shared update counts and 0 where it was left out, if these are
      others than zeros.
    - `log_likelihood(shared, clean)`: log p(shared | clean), a number in nats up to a constant, differentiable in the
      clean update. Without one, a function that does not draw is done to candidates too.

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
        return bool(getattr(self.function, "sparse", False) or hasattr(self.function, "mask"))

    @property
    def says_likelihood(self) -> bool:
        """True if the function has a `log_likelihood`."""
        return hasattr(self.function, "log_likelihood")

    def before_noise(self, update: PyTree) -> PyTree:
        return update if self.random else super().before_noise(update)

    def mask(self, shared: PyTree) -> PyTree:
        if not hasattr(self.function, "mask"):
            return super().mask(shared)
        found = self._called(self.function.mask, shared, part=" mask")  # pyright: ignore[reportFunctionMemberAccess]
        self._check_tree(shared, found, " mask")
        return jax.tree.map(lambda leaf, old: jnp.asarray(leaf, old.dtype), found, shared)

    def log_likelihood(self, shared: PyTree, clean: PyTree) -> Float[Array, ""]:
        """log p(shared | clean), as the function says it.

        Raises:
            InputError: it says none, or returns no number.
        """
        told: Any = self.function
        found = self._called(told.log_likelihood, shared, clean, part=" log_likelihood")
        number = isinstance(found, jax.Array | float) and jnp.shape(found) == ()
        if not (number and jnp.issubdtype(jnp.result_type(found), jnp.floating)):
            raise InputError(
                f"`defence` {self.name} must have a log_likelihood of two updates that returns one number; it returned "
                f"{_shown(found)}."
            )
        return jnp.asarray(found)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        found = self._called(self.function, update, *((key,) if self.random else ()))
        self._check_tree(update, found)
        return jax.tree.map(lambda leaf, old: jnp.asarray(leaf, old.dtype), found, update)

    def _called(self, function: Callable, *given: Any, part: str = "") -> Any:
        try:
            return function(*given)
        except jax.errors.JAXTypeError as error:  # NumPy, float(), if
            reason = str(error).partition("\n")[0][:200]
            raise InputError(
                f"`defence` {self.name}{part} must be written with jax.numpy, as it runs in a compiled program: "
                f"{reason}"
            ) from None

    def _check_tree(self, given: PyTree, found: PyTree, part: str = "") -> None:
        wanted, got = (jax.tree.map(jnp.shape, tree) for tree in (given, found))
        if wanted != got:
            raise InputError(
                f"`defence` {self.name}{part} must return an update like the one it is given, of the same names and "
                f"shapes; it returned {got}, not {wanted}."
            )


def _shown(found: Any) -> str:
    if not isinstance(found, jax.Array):
        return f"a value of type {type(found).__name__}"
    return f"an array of shape {jnp.shape(found)} and type {jnp.result_type(found)}"


def _taken(function: Callable) -> list[inspect.Parameter]:
    """The arguments that must be given."""
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def own_defence(function: Callable[..., Any], name: str | None = None) -> OwnDefence:
    """The defence that a function is; in rows it has its name and a hash of its code, and of what it says of itself.

    Raises:
        InputError: it takes no update, or more than an update and a key; or an attribute of it is no function.
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
    parts = [getattr(function, part) for part in SAID if hasattr(function, part)]
    for part in SAID:
        if hasattr(function, part) and not callable(getattr(function, part)):
            raise InputError(f"`defence` {name} has the attribute {part}, which must be a function.")
    programs = "".join(map(program_of, (function, *parts)))
    digest = hashlib.sha256(programs.encode()).hexdigest()[:8] if parts else programs
    return OwnDefence(function, f"{name}@{digest}")


def defence_in_file(text: str) -> OwnDefence:
    """`FILE.py:FUNCTION`, or FILE.py for its function `defence`.

    Raises:
        InputError: no such file or function.
    """
    file, colon, name = text.rpartition(":")
    if not colon:
        file, name = text, "defence"
    return own_defence(function_in("defence", Path(file), name), f"{Path(file).name}:{name}")
