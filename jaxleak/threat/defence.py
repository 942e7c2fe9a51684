"""Base of all defences: changes of the update before it is shared, update -> update."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class Defence(ABC):
    """Base of all defences; the fields of each are its strengths, in the order in which its text names them.

    Attributes:
        random: `apply` uses the key.
        sparse: it sets entries to zero, so that whoever sees the update sees which.
        per_example: it belongs on the gradient of each image, before their mean: `DPSGD.apply_examples`.
        in_network: it changes the network (`network`) and the client's use of it (`client_model`), not the update.
    """

    random: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    per_example: ClassVar[bool] = False
    in_network: ClassVar[bool] = False

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
