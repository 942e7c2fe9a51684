"""Defences that set entries to zero."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key, PyTree

from jaxleak.errors import InputError, check_not_negative
from jaxleak.threat.defence import Bounds, Defence


@dataclass(frozen=True, kw_only=True)
class Prune(Defence):
    """The smallest entries over all tensors set to zero.

    Of all n entries, the round(share n) of least magnitude. Among equals the later ones go, in the order of
    `jax.tree.leaves` and of rows, so that the number is exact.

    Source: Aji & Heafield 2017, section 3; as a defence, Zhu, Liu & Han 2019, section 5.2.
    Differs: what is dropped is not kept back for the next update: there is only one.

    Attributes:
        share: of the entries set to zero, from 0 (off) to 1.
    """

    share: float
    sparse = True
    bounded = True

    def __post_init__(self):
        _check_share(self.share)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        return _pruned(update, self.share)

    def bounds(self, after: Bounds) -> Bounds:
        """Entries that are 0 were no larger than the smallest that was kept."""
        return _unpruned(after)


@dataclass(frozen=True, kw_only=True)
class PruneLayer(Defence):
    """The smallest entries within each tensor set to zero.

    Of the n entries of a tensor, the round(share n) of least magnitude; among equals the later ones.

    Source: Lin et al. 2018 (Deep Gradient Compression), algorithm 1; as a defence, Zhu, Liu & Han 2019, section 5.2.
    Differs: no residual, momentum correction or warm-up: there is only one update.

    Attributes:
        share: of each tensor's entries set to zero, from 0 (off) to 1.
    """

    share: float
    sparse = True
    bounded = True

    def __post_init__(self):
        _check_share(self.share)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        return jax.tree.map(lambda leaf: _pruned(leaf, self.share), update)

    def bounds(self, after: Bounds) -> Bounds:
        """Entries that are 0 were no larger than the smallest that was kept of their tensor."""
        leaves, structure = zip(*map(jax.tree.flatten, after), strict=True)
        each = [_unpruned(Bounds(*parts)) for parts in zip(*leaves, strict=True)]
        return Bounds(*(jax.tree.unflatten(structure[0], parts) for parts in zip(*each, strict=True)))


@dataclass(frozen=True, kw_only=True)
class TopK(Defence):
    """Only the k largest entries over all tensors kept.

    The k of largest magnitude, the others set to zero; among equals the earlier ones stay, in the order of
    `jax.tree.leaves` and of rows.

    Source: Stich, Cordonnier & Jaggi 2018, section 2 (top_k).
    Differs: no memory of what was left out.

    Attributes:
        count: k, the entries kept; all, if there are no more than k. 0 is off: all are kept.
    """

    count: int
    sparse = True
    bounded = True

    def __post_init__(self):
        check_not_negative("count", self.count)
        if int(self.count) != self.count:
            raise InputError(f"`count` must be a whole number; got {self.count!r}.")

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        return update if self.count == 0 else _largest(update, int(self.count))

    def bounds(self, after: Bounds) -> Bounds:
        """Entries that are 0 were no larger than the smallest that was kept."""
        return _unpruned(after)


@dataclass(frozen=True, kw_only=True)
class ErrorFeedback(Defence):
    """The smallest entries dropped, and kept back for the next update.

    v_r = u + m_{r-1}, shared_r = v_r without its round(share n) smallest entries, m_r = v_r - shared_r, m_0 = 0; the
    attacker sees shared_R alone, of the last of R rounds. An entry that is sent has gathered since it was last sent.

    Source: Karimireddy et al. 2019 (error feedback), algorithm 2; Stich, Cordonnier & Jaggi 2018 (memory).
    Differs: the weights are those of the last round in all rounds, so each update u is the same.

    Attributes:
        share: of the entries dropped, from 0 (off) to 1.
        rounds: R, at least 1; 1 is `Prune`. 0 is off.
    """

    share: float
    rounds: int
    sparse = True
    bounded = True

    def __post_init__(self):
        _check_share(self.share)
        check_not_negative("rounds", self.rounds, integer=True)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        if self.rounds == 0:
            return update

        def gathered(_, memory):
            gathers = jax.tree.map(jnp.add, update, memory)
            return jax.tree.map(jnp.subtract, gathers, _pruned(gathers, self.share))

        nothing = jax.tree.map(jnp.zeros_like, update)
        memory = jax.lax.fori_loop(0, self.rounds - 1, gathered, nothing)
        return _pruned(jax.tree.map(jnp.add, update, memory), self.share)

    @property
    def off(self) -> bool:
        return self.share == 0 or self.rounds == 0

    def bounds(self, after: Bounds) -> Bounds:
        """An entry that was sent had gathered for 1 to R rounds."""
        low, high, width = _unpruned(after)
        least = jax.tree.map(lambda leaf: jnp.where(leaf > 0, leaf / self.rounds, leaf), low)
        most = jax.tree.map(lambda leaf: jnp.where(leaf < 0, leaf / self.rounds, leaf), high)
        return Bounds(least, most, width)


@dataclass(frozen=True, kw_only=True)
class Soteria(Defence):
    """The head's gradient hidden for features that follow the image least.

    For the features r of the images, which the head reads, the rows of its weight gradient are set to zero for the
    round(share f) features of smallest |sum over the images of |dr_i/dx| / r_i|, of f.

    Source: Sun et al. 2021 (Soteria), section 4, and the reference implementation's approximation.
    Differs: an exact number of features instead of a percentile; features that are 0 are not among them.

    Attributes:
        share: of the features, from 0 (off) to 1.
    """

    share: float
    sparse = True
    bounded = True

    def __post_init__(self):
        _check_share(self.share)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        """Off, the update as it is.

        Raises:
            InputError: on: the images are needed.
        """
        del key
        if self.share:
            raise InputError("`defence` soteria needs the private images; apply it with `Victim.share`.")
        return update

    def apply_beside(self, update: PyTree, key: Key[Array, ""], scores: Callable[[], Array] | None) -> PyTree:
        """The update with rows of the head's kernel set to zero.

        Raises:
            InputError: no scores, or the network has no layer named "head" with a kernel.
        """
        if self.share == 0 or scores is None:
            return self.apply(update, key)
        if not (isinstance(update, dict) and "kernel" in update.get("head", {})):
            raise InputError("`defence` soteria needs a network whose last dense layer is named 'head'.")
        values = scores()
        hidden = jnp.argsort(values, stable=True)[: round(self.share * values.size)]
        kernel = update["head"]["kernel"].at[hidden].set(0)
        return {**update, "head": {**update["head"], "kernel": kernel}}

    def before_noise(self, update: PyTree) -> PyTree:
        if self.share:
            raise InputError("`objective` likelihood: noise hides which features soteria hid; use l2 or cosine.")
        return update

    def bounds(self, after: Bounds) -> Bounds:
        """Entries of the head's kernel that are 0 may have been anything."""
        low, high = after.low["head"]["kernel"], after.high["head"]["kernel"]
        hidden = (low <= 0) & (high >= 0)

        def replaced(tree: PyTree, old: Array, new: float) -> PyTree:
            return {**tree, "head": {**tree["head"], "kernel": jnp.where(hidden, new, old)}}

        return Bounds(replaced(after.low, low, -jnp.inf), replaced(after.high, high, jnp.inf), after.width)


def _check_share(share: float) -> None:
    check_not_negative("share", share)
    if share > 1:
        hint = f" For {share:g} % write {share / 100:g}." if share <= 100 else ""
        raise InputError(f"`share` must be from 0 to 1; got {share!r}.{hint}")


def _pruned(update: PyTree, share: float) -> PyTree:
    """The update with the round(share n) smallest of its n entries set to zero."""
    size = sum(leaf.size for leaf in jax.tree.leaves(update))
    return _largest(update, size - round(share * size))


def _largest(update: PyTree, count: int) -> PyTree:
    """Only the `count` entries of largest magnitude over all tensors, zeros elsewhere."""
    values, unravel = ravel_pytree(update)
    # Stable: among equals the earlier are kept; a threshold would keep, or drop, all of them. NaN counts as largest.
    order = jnp.argsort(jnp.abs(values), descending=True, stable=True)
    kept = jnp.zeros(values.shape, bool).at[order[:count]].set(True, unique_indices=True)
    return unravel(jnp.where(kept, values, 0))


def _unpruned(after: Bounds) -> Bounds:
    """What entries were before the smallest were set to zero: those that may be 0 now no larger than any other."""
    hidden = jax.tree.map(lambda low, high: (low <= 0) & (high >= 0), after.low, after.high)

    def smallest(low, high, hidden):
        return jnp.min(jnp.where(hidden, jnp.inf, jnp.maximum(jnp.abs(low), jnp.abs(high))), initial=jnp.inf)

    kept = jnp.min(jnp.stack(jax.tree.leaves(jax.tree.map(smallest, after.low, after.high, hidden))))
    return Bounds(
        jax.tree.map(lambda low, hidden: jnp.where(hidden, jnp.minimum(low, -kept), low), after.low, hidden),
        jax.tree.map(lambda high, hidden: jnp.where(hidden, jnp.maximum(high, kept), high), after.high, hidden),
        after.width,
    )
