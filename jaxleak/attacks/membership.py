"""Scores of a record's membership: how much its own gradient is in a shared update."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

SCORES = ("cosine", "inner")


def _parts(update: PyTree, record: PyTree) -> tuple[Array, Array, Array]:
    """For each tensor: the inner product of update and record, and the squares of both."""
    pairs = list(zip(jax.tree.leaves(update), jax.tree.leaves(record), strict=True))
    products = jnp.stack([jnp.sum(ours * theirs) for ours, theirs in pairs])
    squares = [jnp.stack([jnp.sum(jnp.square(pair[side])) for pair in pairs]) for side in (0, 1)]
    return products, squares[0], squares[1]


def _over(value: Array, size: Array) -> Array:
    """The quotient; 0 where `size` is."""
    return jnp.where(size > 0, value / jnp.where(size > 0, size, 1), 0)


def membership_scores(update: PyTree, record: PyTree) -> Float[Array, "2"]:
    """Cosine of the angle between update and record's gradient, and their inner product, over all tensors.

    A batch's gradient is the mean of its records' gradients g_i, so <u, g_r> = (|g_r|^2 + sum_{i != r} <g_i, g_r>) / b
    for a member r; for others the first term is missing.
    """
    product, ours, theirs = (jnp.sum(part) for part in _parts(update, record))
    return jnp.stack([_over(product, jnp.sqrt(ours) * jnp.sqrt(theirs)), product])


def membership_features(update: PyTree, record: PyTree) -> Float[Array, "f"]:
    """What a classifier is given: for each tensor the cosine, <u, g> / |g|^2, and |u| / |g|; 0 where g is."""
    product, ours, theirs = _parts(update, record)
    lengths, sizes = jnp.sqrt(ours), jnp.sqrt(theirs)
    return jnp.concatenate([_over(product, lengths * sizes), _over(product, theirs), _over(lengths, sizes)])
