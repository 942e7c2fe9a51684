"""Batches out of a pool of private data, and their updates, each as the client shares it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxleak.errors import InputError
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.network import draw_params
from jaxleak.threat.victim import Victim

CLIENT, ATTACKER = 0, 1  # whose batches: defences draw other noise for each


@dataclass(frozen=True, eq=False)
class Pool:
    """Data that batches are drawn from.

    Attributes:
        indices: in the data set [n].
        images: pixels in [0, 1], or tokens [n, ...].
        answers: labels [n], or targets [n, k].
    """

    indices: Int[np.ndarray, "n"]
    images: np.ndarray
    answers: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


def draw_batches(size: int, count: int, batch: int, rng: np.random.Generator) -> Int[np.ndarray, "u b"]:
    """Places of each batch's data in a pool of so many: none is taken again before no whole batch is left.

    Raises:
        InputError: the pool is smaller than a batch.
    """
    whole = size // batch
    if whole == 0:
        raise InputError(f"`batch` must be at most {size}, the data to draw from; got {batch}. Use a smaller --batch.")
    passes = [rng.permutation(size)[: whole * batch].reshape(whole, batch) for _ in range(-(-count // whole))]
    return np.concatenate(passes)[:count]


def half(count: int, rng: np.random.Generator) -> np.ndarray:
    """True for half of so many, in random order; of an odd number for one less than the rest."""
    return rng.permutation(np.arange(count) < count // 2)


class Shared:
    """Updates of one network, which the attacker knows.

    Raises:
        InputError: the victim has no network that all updates share.
    """

    def __init__(self, victim: Victim):
        if victim.network != "shared" or (victim.trained_steps and victim.trained_on == "own"):
            raise InputError(
                "`infer` needs one network for all updates, which the attacker knows; make the victim with "
                'network="shared", and train it on data other than its own.'
            )
        if victim.update is not None:
            raise InputError("`infer` computes the updates; of an update of your own only words are read: --update.")
        params = victim.params
        if params is None:
            params = draw_params(victim.model, jax.random.key(victim.network_seed), victim.shape)
        self.victim = victim
        self.params: PyTree = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params)
        self._key = jax.random.key(victim.defence_seed)

    def key(self, whose: int, number: int) -> Array:
        """From which the defences of an update draw."""
        return jax.random.fold_in(jax.random.fold_in(self._key, whose), number)

    def program(self, look: Callable[..., PyTree], *, record: bool = False) -> Callable[..., Any]:
        """A compiled function of a batch: `look(update)`, with `record` `look(update, gradient of a record)`.

        Its arguments are the batch's images and answers, a key, and the record's image and answer.
        """
        victim = self.victim

        def seen(params, images, answers, key, *of_record):
            update = victim.share(params, victim.to_input(images), victim.target_of(images, answers), key)
            if not record:
                return look(update)
            image, answer = (array[None] for array in of_record)
            x, target = victim.to_input(image), victim.target_of(image, answer)
            return look(update, loss_gradient(victim.attacker_model, params, x, target, victim.client.loss))

        compiled = jax.jit(seen)

        def run(images, answers, key, *of_record):
            answers, *rest = (jnp.asarray(array) for array in (answers, *of_record))
            rest = [jnp.asarray(rest[0], float), rest[1]] if rest else []
            found = jax.tree.map(np.asarray, compiled(self.params, jnp.asarray(images, float), answers, key, *rest))
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
                raise InputError(
                    f"`infer` met an update that is not finite, of {victim.model_name} with defence "
                    f"{victim.defence_name}; use other strengths, a smaller --client-lr or other weights."
                )
            return found

        return run
