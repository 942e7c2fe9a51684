"""`lax.cond` under `vmap` computes both branches for every lane; `update_if` skips the branch that no lane asks for."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, PyTree

FEW = 16  # lanes, up to which it is likely enough that none of them needs the update


def update_if(wanted: Bool[Array, ""], update: Callable[[PyTree, Any], PyTree], old: PyTree, news: PyTree) -> PyTree:
    """`update(old, news)` if `wanted`, else `old`; over few lanes nothing is computed while no lane wants it.

    Under `vmap` a plain `lax.cond` computes and selects for every lane at every step.

    Args:
        wanted: whether.
        update: must itself return `old` where the lane does not want it: it is computed for all lanes or for none.
        old: what is updated.
        news: what `update` needs.
    """

    @custom_vmap
    def apply(wanted, old, news):
        return jax.lax.cond(wanted, update, lambda old, _: old, old, news)

    @apply.def_vmap
    def _(size, batched, wanted, old, news):
        axes = jax.tree.map(lambda mapped: 0 if mapped else None, batched)
        every = jax.vmap(update, axes[1:], axis_size=size)
        mapped = jax.tree.map(lambda _: True, old)
        if size > FEW or not batched[0] or not all(jax.tree.leaves(batched[1])):
            return every(old, news), mapped
        return jax.lax.cond(jnp.any(wanted), every, lambda old, _: old, old, news), mapped

    return apply(wanted, old, news)
