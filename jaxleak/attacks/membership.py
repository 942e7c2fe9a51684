"""Scores of a record's membership: how much its own gradient is in a shared update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

SCORES = ("cosine", "inner")
ENTRIES = 1024  # of a tensor's sketch, for `Residual`


class Residual(NamedTuple):
    """What updates have in common: their mean, and the directions in which they differ.

    Gradients of records of one label are nearly parallel, so most of an update says its labels. What is left of it
    after the directions in which other updates differ is of its records alone.
    """

    mean: Float[np.ndarray, "f"]
    basis: Float[np.ndarray, "r f"]  # orthonormal rows

    @classmethod
    def of(cls, updates: Float[np.ndarray, "n f"]) -> "Residual":
        """The mean of these sketches, and all directions in which they lie about it."""
        updates = np.asarray(updates, np.float64)
        mean = updates.mean(axis=0)
        _, sizes, rows = np.linalg.svd(updates - mean, full_matrices=False)
        rank = np.sum(sizes > len(updates) * np.finfo(np.float32).eps * sizes[0])
        return cls(mean, rows[:rank])

    def cosine(self, update: Float[np.ndarray, "f"], record: Float[np.ndarray, "f"]) -> float:
        """Cosine of the angle between what is left of an update and of a record's gradient; 0 if nothing is."""
        ours, theirs = (
            apart - (apart @ self.basis.T) @ self.basis
            for apart in (np.asarray(each, np.float64) - self.mean for each in (update, record))
        )
        lengths = np.linalg.norm(ours) * np.linalg.norm(theirs)
        return float(ours @ theirs / lengths) if lengths > 0 else 0.0


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
