"""The likelihood of a defended update: what an attacker minimises who knows the defences and their strengths."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxleak.attacks.distances import squared_l2
from jaxleak.errors import InputError
from jaxleak.kernels.outer import is_outer
from jaxleak.threat.defence import Bounds, Defence, Noise
from jaxleak.threat.noise import Gaussian
from jaxleak.threat.own_defence import OwnDefence

TIGHT = 1e-4  # standard deviation of entries that are shared as they are, in root mean squares of the update


class Chain(NamedTuple):
    """Defences in three parts: what is done to a candidate, how its entries then vary, what was left of them."""

    before: tuple[Defence, ...]  # deterministic but for the last one's noise
    own: OwnDefence | None  # says a likelihood of its own
    after: tuple[Defence, ...]  # each bounds what it was given

    @classmethod
    def of(cls, defences: tuple[Defence, ...]) -> "Chain":
        live = [defence for defence in defences if not (defence.off or defence.in_network)]
        count = len(live)
        while count and live[count - 1].bounded:
            count -= 1
        before, after = tuple(live[:count]), tuple(live[count:])
        if before and isinstance(before[-1], OwnDefence) and before[-1].says_likelihood:
            return cls(before[:-1], before[-1], after)
        return cls(before, None, after)

    @property
    def noise(self) -> Noise | None:
        """Noise of the last of those before; None if there is none."""
        return self.before[-1].added if self.before else None


def check_chain(defences: tuple[Defence, ...], images: int) -> None:
    """Raise unless these defences have a likelihood.

    Args:
        defences: in their order.
        images: that an update is computed from.

    Raises:
        InputError: two draw noise, noise is rescaled, or a function of one's own says too little.
    """
    chain = Chain.of(defences)
    steady = chain.before if chain.own or not chain.noise else chain.before[:-1]
    for defence in steady:
        if isinstance(defence, OwnDefence) and defence.random and not (defence.sparse and defence is chain.before[-1]):
            raise InputError(
                f"`objective` likelihood: {defence.name} draws, and does not say how likely an update is. Give it "
                "`log_likelihood`, a function of the shared and clean update, and name it last; or use l2 or cosine."
            )
        if defence.random and defence.added:
            raise InputError(
                "`objective` likelihood is of one noise, with only pruning and rounding behind it; leave out what "
                "comes after the noise, or use l2 or cosine."
            )
    if chain.own and chain.after:
        raise InputError(
            f"`objective` likelihood: {chain.own.name} says how likely the shared update is, so it must be the last "
            "defence; name it last, or use l2 or cosine."
        )
    if images > 1 and any(defence.per_example and not defence.off for defence in defences):
        raise InputError(
            "`objective` likelihood of dp-sgd is of updates of one image, as each image is clipped by itself; use l2 "
            "or cosine, or --batch 1."
        )


def check_own(own: OwnDefence, like: PyTree) -> None:
    """Raise unless a defence's own likelihood is a finite number with a finite slope.

    It is tried on an update of random numbers, which goes through the defence.

    Args:
        own: the defence.
        like: arrays, or their shapes and types, as updates have them.

    Raises:
        InputError: it is not.
    """
    leaves, structure = jax.tree.flatten(like)
    keys = [jax.random.fold_in(jax.random.key(0), number) for number in range(len(leaves) + 1)]
    drawn = [jax.random.normal(key, leaf.shape, float) for key, leaf in zip(keys, leaves, strict=False)]
    clean: Any = jax.tree.unflatten(structure, drawn)
    shared = own.apply(clean, keys[-1])
    own.log_likelihood(shared, clean)
    nearby = jax.tree.map(lambda leaf: 0.9 * leaf, clean)
    try:
        tried = [jax.value_and_grad(lambda u: own.log_likelihood(shared, u))(u) for u in (clean, nearby)]
    except (TypeError, ValueError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"`defence` {own.name} log_likelihood must be differentiable in its second update: {reason}"
        ) from None
    if not all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tried)):
        raise InputError(
            f"`defence` {own.name} log_likelihood must be finite, with finite derivatives, also for updates that this "
            "defence would not make; use a penalty in place of minus infinity."
        )
    if not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(tried[1][1])):
        raise InputError(
            f"`defence` {own.name} log_likelihood must be differentiable in its second update; its derivative is 0 "
            "everywhere, as behind round and argmax."
        )


def negative_log_likelihood(gradient: PyTree, update: PyTree, defences: tuple[Defence, ...] = ()) -> Float[Array, ""]:
    """-log p(update | gradient) / n for an update of n entries, in nats, less what does not depend on the gradient.

    The candidate's gradient goes through what is done before the noise (clipping; pruning too, if noise follows). What
    came after the noise leaves bounds low <= v <= high for each noisy entry v: an entry that was pruned is no larger
    than those kept, one that was rounded lies within half a step. With the nearest such v of each entry g,

        normal:   sum (g - v)^2 / (2 (sigma^2 + w^2))        Laplacian:   sum |g - v| / s

    where w is the standard deviation of rounding errors, and counts only without noise. Entries that are shared as
    they are count as normal with sigma = 1e-4 of the update's root mean square: so do all of an update without
    defence. At the private images it is about 1/2 behind normal and 1 behind Laplacian noise.

    Args:
        gradient: g, of the candidate; leaves may be `Outer`.
        update: what the client shared.
        defences: in the order in which it applied them (`check_chain`).

    Source: Balunovic et al. 2022, equation 5 and section 5 (which distance goes with which noise).
    Differs: pruning and rounding have likelihoods too. For noise with these behind it, the likelihood of the most
        likely v instead of the integral over all.
    """
    chain = Chain.of(defences)
    size = sum(leaf.size for leaf in jax.tree.leaves(update))
    noise = chain.noise or Noise("normal", 0.0)
    scale = noise.scale or _tight(update)
    if all(isinstance(defence, Gaussian) for defence in chain.before) and not (chain.after or chain.own):
        return squared_l2(gradient, update) / (2 * size * scale**2)
    clean = jax.tree.map(lambda leaf: leaf.build() if is_outer(leaf) else leaf, gradient, is_leaf=is_outer)
    for defence in chain.before:
        clean = defence.before_noise(clean)
    if chain.own:
        return -chain.own.log_likelihood(update, clean) / size
    bounds = Bounds(update, update, jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), update))
    for defence in reversed(chain.after):
        bounds = defence.bounds(bounds)
    if chain.before and isinstance(chain.before[-1], OwnDefence) and chain.before[-1].sparse:
        bounds = _left_out(bounds, chain.before[-1].mask(update))

    def less_likely(entries, low, high, width):
        apart = entries - jax.lax.stop_gradient(jnp.clip(entries, low, high))
        if noise.family == "laplace":
            return jnp.sum(apart * jax.lax.stop_gradient(jnp.sign(apart))) / scale
        variance = scale**2 + (0 if noise.scale else jnp.square(width))
        return jnp.sum(jnp.square(apart) / variance) / 2

    parts = jax.tree.map(less_likely, clean, *bounds)
    return sum(jax.tree.leaves(parts), start=jnp.zeros(())) / size


def _left_out(bounds: Bounds, mask: PyTree) -> Bounds:
    """Nothing is known of entries whose mask is 0."""
    low = jax.tree.map(lambda leaf, kept: jnp.where(kept > 0, leaf, -jnp.inf), bounds.low, mask)
    high = jax.tree.map(lambda leaf, kept: jnp.where(kept > 0, leaf, jnp.inf), bounds.high, mask)
    return Bounds(low, high, bounds.width)


def _tight(update: PyTree) -> Float[Array, ""]:
    """The standard deviation of entries that are shared as they are; 1e-4 for an update of zeros."""
    leaves = jax.tree.leaves(update)
    square = sum((jnp.sum(jnp.square(leaf)) for leaf in leaves), start=jnp.zeros(()))
    root = jnp.sqrt(jnp.where(square > 0, square, 1)) / math.sqrt(sum(leaf.size for leaf in leaves))
    return TIGHT * root
