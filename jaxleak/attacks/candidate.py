"""A candidate stands for the private data while an attack runs: one class for each kind of data."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxleak.attacks.bounds import Variables
from jaxleak.attacks.closed_forms import CLOSED_FORMS, Leak
from jaxleak.attacks.presets import Attack
from jaxleak.attacks.priors import consistency, epoch_consistency, norm_prior, total_variation
from jaxleak.attacks.starts import draw_start
from jaxleak.threat.victim import Victim

Parts = dict[str, Array]  # the named arrays of a candidate; label logits, if they are optimised, are among them


@dataclass(frozen=True)
class Candidate(ABC):
    """One kind of private data, as an attack sees it. The solver sees all parts as one flat vector.

    Attributes:
        victim: of it the shapes and the units of the network's input.
        count: d, how many pieces of data are rebuilt together.
        variables: change of variables that keeps it in range; None: the solver sees the network's input itself.
        copies: sets of them, one after the other in each part: one for each pass of a client whose order is not known.
    """

    has_bounds: ClassVar[bool] = False  # True if `variables` may be given

    victim: Victim
    count: int
    variables: Variables | None = None
    copies: int = 1

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each part."""

    @abstractmethod
    def start(self, attack: Attack, key: Array, surrogate: Any, leak: Leak | None) -> Parts:
        """The candidate at iteration 0.

        Args:
            attack: its `init` says which start.
            key: from which it is drawn.
            surrogate: another piece of data of the same data set, or ().
            leak: for starts in closed form.
        """

    def given(self, start: Parts) -> Parts:
        """A given start, in the units of the network's input."""
        return start

    @abstractmethod
    def to_input(self, parts: Parts) -> Float[Array, "d ..."]:
        """The network's input."""

    @abstractmethod
    def to_truth(self, parts: Parts) -> Float[Array, "d ..."]:
        """The same in the units of the private data, for rows and pictures; of several copies their mean (`merged`)."""

    @abstractmethod
    def project(self, parts: Parts) -> Parts:
        """The nearest candidate whose data could be real: the `box`."""

    def priors(self, attack: Attack, parts: Parts) -> Iterator[Float[Array, ""]]:
        """Terms that favour likely data, with their weights."""
        del attack, parts
        yield from ()

    def merged(self, parts: Parts, array: Float[Array, "d ..."]) -> Float[Array, "d ..."]:
        """The mean over copies, whose members are first matched to those of the first copy by the least distance."""
        if self.copies == 1:
            return array
        copies, sets = (part.reshape(self.copies, self.count, -1) for part in (self.to_input(parts), array))

        def aligned(copy, values):
            apart = jnp.mean(jnp.square(copies[0][:, None] - copy[None]), axis=-1)
            rows, columns = optax.assignment.hungarian_algorithm(apart)
            return jnp.zeros_like(values).at[rows].set(values[columns])

        return jnp.mean(jax.vmap(aligned)(copies, sets), axis=0).reshape(self.count, *array.shape[1:])

    def disagreement(self, parts: Parts) -> Float[Array, ""]:
        """Distance of the members of a group from one another; they are the leading axis of each part."""
        return consistency(jax.vmap(self.to_input)(parts))

    def error(self, found: Float[Array, "d ..."], truth: Float[Array, "b ..."]) -> Float[Array, ""]:
        """Mean squared error of each true piece of data to the nearest one found, averaged over them.

        Ten times cheaper than the best one-to-one matching, which the final metrics have.
        """
        axes = tuple(range(1, truth.ndim))
        if found.shape[0] == truth.shape[0] == 1:
            return jnp.mean(jnp.square(found - truth))
        errors = jax.vmap(lambda true: jnp.mean(jnp.square(found - true), axis=axes))(truth)
        return jnp.mean(jnp.min(errors, axis=1))


class Images(Candidate):
    """Images [d, h, w, c], in the units of the network's input or as variables of their pixels."""

    has_bounds = True

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"image": (self.copies * self.count, *self.victim.shape)}

    def start(self, attack: Attack, key: Array, surrogate: Any, leak: Leak | None) -> Parts:
        if attack.init in CLOSED_FORMS:
            assert leak is not None
            # Lanes one after the other: LAPACK's calls for several wait for each other in a pool of one thread.
            read = jax.custom_batching.sequential_vmap(functools.partial(CLOSED_FORMS[attack.init].read, self.victim))
            return {"image": read(leak, key)}
        image = draw_start(attack.init, key, self.shapes["image"], surrogate)
        if attack.init == "normal":  # of the variables, where there are some: few of its values are pixels
            return {"image": image}
        return {"image": self.victim.to_input(image) if self.variables is None else self.variables.start(image)}

    def given(self, start: Parts) -> Parts:
        if self.variables is None:
            return start
        return {**start, "image": self.variables.start(self.victim.to_pixels(start["image"]))}

    def to_input(self, parts: Parts) -> Float[Array, "d h w c"]:
        if self.variables is None:
            return parts["image"]
        return self.victim.to_input(self.variables.to_pixels(parts["image"]))

    def to_truth(self, parts: Parts) -> Float[Array, "d h w c"]:
        return self.victim.to_pixels(self.merged(parts, self.to_input(parts)))

    def project(self, parts: Parts) -> Parts:
        image = parts["image"]
        low, high = (self.victim.to_input(jnp.full(self.victim.shape[-1:], end, image.dtype)) for end in (0, 1))
        return {**parts, "image": jnp.clip(image, low, high)}

    def priors(self, attack: Attack, parts: Parts) -> Iterator[Float[Array, ""]]:
        image = self.to_input(parts)
        if attack.tv:
            yield attack.tv * total_variation(image)
        if attack.norm:
            yield attack.norm * norm_prior(image)
        if attack.epoch_consistency:
            sets = image.reshape(self.copies, self.count, *self.victim.shape)
            yield attack.epoch_consistency * epoch_consistency(sets)


CANDIDATES: dict[str, type[Candidate]] = {"image": Images}  # by `Victim.modality`
