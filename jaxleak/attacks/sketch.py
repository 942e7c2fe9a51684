"""Updates as short vectors of features, for classifiers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

MOST = 256  # features of a tensor


def sketch(update: PyTree, most: int = MOST) -> Float[Array, "f"]:
    """Each tensor's entries, or of a large tensor so many sums of neighbouring entries with random signs.

    Signs are the same for every update, so inner products of sketches estimate those of updates.

    Source: Charikar, Chen & Farach-Colton 2002 (Count Sketch), with neighbours in place of a hash.
    """
    parts = []
    for number, leaf in enumerate(jax.tree.leaves(update)):
        flat = leaf.reshape(-1)
        if flat.size > most:
            signs = jax.random.rademacher(jax.random.fold_in(jax.random.key(0), number), flat.shape, jnp.int8)
            flat = jnp.pad(flat * signs, (0, -flat.size % most)).reshape(most, -1).sum(axis=1)
        parts.append(flat)
    return jnp.concatenate(parts)
