"""How many independent numbers an update can tell, by counting."""

import jax
import numpy as np
from jaxtyping import ArrayLike, PyTree

from jaxleak.attacks.closed_forms import chain_of
from jaxleak.errors import InputError
from jaxleak.threat.chain import part_of
from jaxleak.threat.victim import Victim


def told_at_most(victim: Victim, params: PyTree, update: PyTree, weights: PyTree, images: int) -> int:
    """A bound on the rank of the update's derivative by the images; what is below their pixels leaves directions free.

    The gradient of a matrix that has rank r near these images lies among the matrices of that rank, r (m + n - r)
    numbers: of a dense layer r is at most the number of images. Of a chain of layers, what lies behind a layer follows
    from that layer's outputs, so no more is told than these and the gradients up to there.

    Args:
        victim: whose client made the update.
        params: the network's weights.
        update: that of the client at these images.
        weights: of each entry, 0 where it is not compared.
        images: of the update.

    Source: Zhu & Blaschko 2021 (R-GAP), rank analysis; here of batches and of dense layers' ranks.
    """
    numbers = jax.tree.map(_numbers, update, weights)
    bounds = [sum(jax.tree.leaves(numbers))]
    try:
        links = chain_of(victim) if victim.client.shares_gradient(images) else []
    except InputError:
        links = []
    so_far = 0
    for link in links[:-1]:
        so_far += sum(jax.tree.leaves(part_of(numbers, link.path)))
        outputs = link.output_shape(part_of(params, link.path)["kernel"])
        bounds.append(so_far + images * int(np.prod(outputs)))
    return min(bounds)


def _numbers(gradient: ArrayLike, weight: ArrayLike) -> int:
    gradient = np.asarray(gradient)
    kept = int(np.sum(np.broadcast_to(np.asarray(weight) != 0, gradient.shape)))
    if kept < gradient.size or gradient.ndim != 2:  # places of a convolution are many: its gradient has full rank
        return kept
    rank = int(np.linalg.matrix_rank(gradient))
    return rank * (sum(gradient.shape) - rank)
