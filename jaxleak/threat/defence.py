"""Base of all defences: changes of the update before it is shared, update -> update."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import jax
from jaxtyping import Array, Key, PyTree


class Noise(NamedTuple):
    """Noise on every entry, independent of all others."""

    family: str  # "normal" or "laplace"
    scale: float  # sigma of a normal distribution, s of the density exp(-|n| / s) / (2 s)


class Bounds(NamedTuple):
    """What is known of an update, entry by entry; each part is a tree of the update's names."""

    low: PyTree  # the entry is at least this: arrays of the tensors' shapes
    high: PyTree  # and at most this; where the two are the same, the entry is known
    width: PyTree  # standard deviation of what rounding changed, 0 where nothing was rounded


@dataclass(frozen=True, kw_only=True)
class Defence(ABC):
    """Base of all defences; the fields of each are its strengths, in the order in which its text names them.

    Attributes:
        random: `apply` uses the key.
        sparse: it sets entries to zero, so that whoever sees the update sees which.
        per_example: it belongs on the gradient of each image, before their mean: `DPSGD.apply_examples`.
        in_network: it changes the network (`network`) and the client's use of it (`client_model`), not the update.
        bounded: what it returns bounds each entry that it was given (`bounds`).
        rounding: it rounds entries, so that its derivative is 0.
    """

    random: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    per_example: ClassVar[bool] = False
    in_network: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    rounding: ClassVar[bool] = False

    @property
    def off(self) -> bool:
        """True at strength 0."""
        return all(getattr(self, strength.name) == 0 for strength in fields(self))

    @property
    def added(self) -> Noise | None:
        """The noise that it adds last; None of most."""
        return None

    @abstractmethod
    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        """The defended update, of the same structure, shapes and types; traceable, and pure but for `key`."""

    def apply_beside(self, update: PyTree, key: Key[Array, ""], scores: Callable[[], Array] | None) -> PyTree:
        """`apply` beside the private images: `scores` gives those of their features (`observe.follows`)."""
        del scores
        return self.apply(update, key)

    def network(self, model: Any) -> Any:
        """The network that the federation trains with this defence; as it is, of most."""
        return model

    def client_model(self, model: Any, key: Key[Array, ""], images: int) -> Any:
        """The network as the client calls it for one update of so many images; as it is, of most."""
        del key, images
        return model

    def before_noise(self, update: PyTree) -> PyTree:
        """The update as `apply` has it, but for its noise; of rounding with the derivative of no rounding."""
        after = self.apply(update, jax.random.key(0))
        if not self.rounding:
            return after
        return jax.tree.map(lambda old, new: old + jax.lax.stop_gradient(new - old), update, after)

    def mask(self, shared: PyTree) -> PyTree:
        """1 where an entry was left as it was, 0 where this defence left it out, if it is `sparse`."""
        return jax.tree.map(lambda leaf: (leaf != 0).astype(leaf.dtype), shared)

    def bounds(self, after: Bounds) -> Bounds:
        """What the update was that this defence was given, from what it is after it; only if `bounded`."""
        return after
