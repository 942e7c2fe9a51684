"""A candidate stands for the private data while an attack runs: one class for each kind of data."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxleak.attacks.bounds import Variables
from jaxleak.attacks.closed_forms import CLOSED_FORMS, Leak
from jaxleak.attacks.labels import PROBES, probe_images
from jaxleak.attacks.presets import Attack
from jaxleak.attacks.priors import consistency, epoch_consistency, norm_prior, patch_prior, total_variation
from jaxleak.attacks.starts import draw_start
from jaxleak.threat.victim import Victim

ABSENT = 1e-3  # stands for the number of tokens that an update does not hold
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

    @classmethod
    def kind(cls, attack: Attack) -> "type[Candidate]":
        """The class of an attack's candidates."""
        del attack
        return cls

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

    def label_shape(self, attack: Attack) -> tuple[int, ...] | None:
        """The shape of label logits; None where they are not optimised."""
        return (self.copies * self.count, self.victim.num_classes) if attack.label == "joint" else None

    def label_start(self, attack: Attack, key: Array, leak: Leak | None) -> Array:
        """Label logits at iteration 0, where they are optimised."""
        del leak
        return jax.random.normal(key, self.label_shape(attack) or (), float)

    @property
    def labels_read(self) -> int:
        """How many labels are read from the update."""
        return self.count

    def probes(self) -> Float[Array, "m ..."]:
        """Inputs of the attacker's own that stand for the private ones, for label rules that need the network."""
        h, w, c = self.victim.shape
        return self.victim.to_input(probe_images(jax.random.key(0), (h, w, c)))

    def book(self, params: PyTree) -> PyTree:
        """What of the network `to_truth` needs, or ()."""
        del params
        return ()

    @abstractmethod
    def to_truth(self, parts: Parts, book: PyTree = ()) -> Float[Array, "d ..."]:
        """The same in the units of the private data, for rows and pictures; of several copies their mean (`merged`)."""

    def label(self, parts: Parts, found: Float[Array, "d ..."], used: Array) -> Array:
        """The labels [d] or targets [d, k] that the attack found.

        Args:
            parts: the candidate; `found` is its data.
            used: labels that it worked with.
        """
        del found
        if "label" not in parts:
            return used
        target = self.victim.client.loss.decode(self.merged(parts, parts["label"]))
        return target if self.victim.has_vectors else self.victim.client.loss.label(target)

    def target(self, parts: Parts, labels: Array) -> Float[Array, "d ..."]:
        """Targets of the loss where they are not optimised: of these labels, one for each of `to_input`."""
        return self.victim.target(labels, self.to_input(parts).dtype)

    def compared(self, gradient: PyTree) -> PyTree:
        """A gradient without what a candidate has no part in."""
        return gradient

    @abstractmethod
    def project(self, parts: Parts) -> Parts:
        """The nearest candidate whose data could be real: the `box`."""

    def priors(self, weights: Mapping[str, Array], parts: Parts, mixture: Any = ()) -> Iterator[Float[Array, ""]]:
        """Terms that favour likely data, times their weights; of `presets.WEIGHTS` those above 0.

        Args:
            weights: by the terms' names.
            parts: the candidate.
            mixture: of patches (`threat.patches.PatchMixture`), where that is a term.
        """
        del weights, parts, mixture
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

    def disagreement(self, parts: Parts, register: int = 0) -> Float[Array, ""]:
        """Distance of the members of a group from one another; they are the leading axis of each part."""
        return consistency(jax.vmap(self.to_input)(parts), register)

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

    def to_truth(self, parts: Parts, book: PyTree = ()) -> Float[Array, "d h w c"]:
        del book
        return self.victim.to_pixels(self.merged(parts, self.to_input(parts)))

    def project(self, parts: Parts) -> Parts:
        image = parts["image"]
        low, high = (self.victim.to_input(jnp.full(self.victim.shape[-1:], end, image.dtype)) for end in (0, 1))
        return {**parts, "image": jnp.clip(image, low, high)}

    def priors(self, weights: Mapping[str, Array], parts: Parts, mixture: Any = ()) -> Iterator[Float[Array, ""]]:
        image = self.to_input(parts)
        if "patches" in weights:
            yield weights["patches"] * patch_prior(self.victim.to_pixels(image), mixture)
        if "tv" in weights:
            yield weights["tv"] * total_variation(image)
        if "norm" in weights:
            yield weights["norm"] * norm_prior(image)
        if "epoch_consistency" in weights:
            sets = image.reshape(self.copies, self.count, *self.victim.shape)
            yield weights["epoch_consistency"] * epoch_consistency(sets)


class Tokens(Candidate):
    """Numbers of tokens [d, t], as closed forms find them: then the gradient of the embeddings is compared too."""

    @property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Places that the network sees, and those that it predicts."""
        model: Any = self.victim.model
        return model.places(*self.victim.shape)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"tokens": (self.count, *self.victim.shape)}

    def label_shape(self, attack: Attack) -> None:
        return None

    def start(self, attack: Attack, key: Array, surrogate: Any, leak: Leak | None) -> Parts:
        assert leak is not None
        read = jax.custom_batching.sequential_vmap(functools.partial(CLOSED_FORMS[attack.init].read, self.victim))
        return {"tokens": read(leak, key)}

    def to_input(self, parts: Parts) -> Float[Array, "d t"]:
        return parts["tokens"]

    def to_truth(self, parts: Parts, book: PyTree = ()) -> Float[Array, "d t"]:
        del book
        return parts["tokens"]

    def project(self, parts: Parts) -> Parts:
        return parts

    def label(self, parts: Parts, found: Float[Array, "d t"], used: Array) -> Array:
        """The last token of each text, which stands for it in rows."""
        del parts
        return found[:, -1].astype(used.dtype)

    def target(self, parts: Parts, labels: Array) -> Float[Array, "d p k"]:
        """Those that follow from the tokens."""
        del labels
        return self.victim.target_of(parts["tokens"], jnp.zeros(()))

    def error(self, found: Float[Array, "d t"], truth: Float[Array, "b t"]) -> Float[Array, ""]:
        """Share of tokens that are wrong in their places; of each true text in the nearest one found."""
        wrong = jnp.mean(found[None] != truth[:, None], axis=-1)
        return jnp.mean(jnp.min(wrong, axis=1))


class Texts(Tokens):
    """The vectors [d, n, e] of the tokens that the network reads, at known positions; decoded as the nearest tokens.

    Tokens that it only predicts, of a causal network the last one, are those of the largest label logits. The gradient
    of the embeddings is not compared: a vector that is no token's has no part in it.

    Source: Zhu, Liu & Han 2019 (DLG), section 4.2; Deng et al. 2021 (TAG).
    Differs: starts are in units of the standard deviation of the embeddings: with weights of 0.02, N(0, 1) is far from
        every token. Their masked positions are drawn anew for each text.
    """

    @classmethod
    def kind(cls, attack: Attack) -> type[Candidate]:
        return Tokens if attack.init in CLOSED_FORMS else cls

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        model: Any = self.victim.model
        (length,) = self.victim.shape
        return {"embeddings": (self.count, length - (model.task == "causal"), model.dim)}

    def label_shape(self, attack: Attack) -> tuple[int, ...]:
        return self.count, len(self._places[1]), self.victim.num_classes

    def label_start(self, attack: Attack, key: Array, leak: Leak | None) -> Float[Array, "d p k"]:
        """N(0, 1), and of tokens that were read from the update the logarithm of how many there are."""
        drawn = super().label_start(attack, key, leak)
        if attack.label == "joint" or leak is None:
            return drawn
        counts = jnp.sum(jax.nn.one_hot(leak.label, self.victim.num_classes, dtype=drawn.dtype), axis=0)
        return drawn + jnp.log(jnp.maximum(counts, ABSENT))

    @property
    def labels_read(self) -> int:
        return self.count * len(self._places[1])

    def probes(self) -> Float[Array, "m t"]:
        """Texts of random tokens."""
        shape, size = (PROBES, *self.victim.shape), self.victim.num_classes
        return jax.random.randint(jax.random.key(0), shape, 0, size).astype(float)

    def book(self, params: PyTree) -> Float[Array, "k e"]:
        model: Any = self.victim.model
        return params[model.embedding]["embedding"]

    def start(self, attack: Attack, key: Array, surrogate: Any, leak: Leak | None) -> Parts:
        drawn = draw_start(attack.init, key, self.shapes["embeddings"], surrogate)
        return {"embeddings": drawn if leak is None else drawn * jnp.std(self.book(leak.params))}

    def to_input(self, parts: Parts) -> Float[Array, "d n e"]:
        return parts["embeddings"]

    def to_truth(self, parts: Parts, book: PyTree = ()) -> Float[Array, "d t"]:
        vectors, (seen, predicted) = parts["embeddings"], self._places
        apart = jnp.sum(jnp.square(book), axis=-1) - 2 * vectors @ book.T
        unseen = np.flatnonzero(~np.isin(predicted, seen))  # of what is predicted
        tokens = jnp.zeros((self.count, *self.victim.shape), vectors.dtype)
        tokens = tokens.at[:, predicted[unseen]].set(
            jnp.argmax(parts["label"][:, unseen], axis=-1).astype(tokens.dtype)
        )
        return tokens.at[:, seen].set(jnp.argmin(apart[:, seen], axis=-1).astype(tokens.dtype))

    def compared(self, gradient: PyTree) -> PyTree:
        model: Any = self.victim.model
        return {**gradient, model.embedding: jax.tree.map(jnp.zeros_like, gradient[model.embedding])}


CANDIDATES: dict[str, type[Candidate]] = {"image": Images, "text": Texts}  # by `Victim.modality`
