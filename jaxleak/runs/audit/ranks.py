"""Which layers of a chain can be solved for their inputs: ranks of the equations that a gradient gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxleak.attacks.closed_forms import CLOSED_FORMS, chain_of
from jaxleak.attacks.layer_equations import DIRECT
from jaxleak.errors import InputError
from jaxleak.kernels.precision import float64
from jaxleak.threat.chain import Link, activate, part_of
from jaxleak.threat.victim import Victim

SEEN = 1e-6  # of a column's length: what is left of one beside the columns before it counts above this, as in float32


@dataclass(frozen=True)
class LayerRank:
    """The linear equations that a gradient gives for the input of one layer.

    Attributes:
        layer: path of its parameters, as in "conv1".
        unknowns: numbers of its input.
        gradient: equations from the gradient of its weights.
        outputs: equations from its outputs, as many as are known once the layers behind are solved: those where the
            activation can be inverted.
        rank: of all of them, by a Cholesky factor with pivots, where what is below 1e-6 of the longest column is none;
            None above 4,096 unknowns.

    Source: Zhu & Blaschko 2021 (R-GAP), rank analysis.
    Differs: ranks are computed where they count equations.
    """

    layer: str
    unknowns: int
    gradient: int
    outputs: int
    rank: int | None

    @property
    def exact(self) -> bool:
        """The equations have one solution."""
        return self.rank == self.unknowns

    def as_dict(self) -> dict[str, Any]:
        """As in `risk.json`."""
        return {**vars(self), "exact": self.exact}


def rank_sentences(layers: Sequence[LayerRank]) -> list[str]:
    """Whether such a chain can be solved layer by layer, and which layers cannot."""
    if not layers:
        return []
    known = [layer for layer in layers if layer.rank is not None]
    short = [f"{layer.layer} {layer.rank:,} of {layer.unknowns:,} numbers" for layer in known if not layer.exact]
    large = [f"{layer.layer} has {layer.unknowns:,}" for layer in layers if layer.rank is None]
    begin = "layer by layer (attack rgap)"
    if large:
        short.append(f"ranks are computed up to {DIRECT:,} numbers: {', '.join(large)}")
    if not short:
        return [f"{begin}: the equations of every layer have one solution, so the image follows exactly"]
    return [f"{begin}: the equations determine of the input of {'; '.join(short)}; and of the others all"]


def layer_ranks(
    victim: Victim, params: PyTree, pixels: Float[np.ndarray, "1 h w c"], target: Float[np.ndarray, "1 k"]
) -> list[LayerRank]:
    """The layers of a chain, from the image to the outputs; none where `rgap` does not apply.

    Args:
        victim: of it the client, the model and the loss.
        params, pixels, target: of one update, in float64.
    """
    if victim.defences:
        return []
    try:
        CLOSED_FORMS["rgap"].check(victim)
    except InputError:
        return []
    with float64():
        links = chain_of(victim)
        params = jax.tree.map(jnp.asarray, params)
        x = victim.to_input(jnp.asarray(pixels))
        inputs, products, slopes = jax.jit(lambda x: _passes(links, victim, params, x, jnp.asarray(target)))(x)
        return [
            _rank_of(link, part_of(params, link.path), *of_layer)
            for link, *of_layer in zip(links, inputs, products, slopes, strict=True)
        ]


def _passes(links: list[Link], victim: Victim, params: PyTree, x: Array, target: Array) -> tuple[list, list, list]:
    """Of each layer its input, its outputs without the bias, and the loss's slope at its outputs."""

    def forward(moved: list[Array]) -> tuple[Array, tuple[list, list]]:
        inputs, products, u = [], [], x
        for link, by in zip(links, moved, strict=True):
            weights = part_of(params, link.path)
            inputs.append(u.reshape(link.shape))
            products.append(link.linear(weights["kernel"], inputs[-1]))
            u = activate(link.activation, products[-1] + weights.get("bias", 0) + by)
        return victim.client.loss.value(u, target), (inputs, products)

    at_rest = [jnp.zeros(link.output_shape(part_of(params, link.path)["kernel"])) for link in links]
    slopes, (inputs, products) = jax.grad(forward, has_aux=True)(at_rest)
    return inputs, products, slopes


def _rank_of(link: Link, weights: PyTree, u: Array, products: Array, slope: Array) -> LayerRank:
    from scipy.linalg import get_lapack_funcs

    kernel, name, unknowns = np.asarray(weights["kernel"]), "/".join(link.path), u.size
    if link.dense:  # its input is read off the gradients of weights and biases, wherever there is a slope
        return LayerRank(name, unknowns, kernel.size, 0, unknowns if bool(jnp.any(slope)) else 0)
    outputs = np.asarray(products + weights.get("bias", 0))
    known = outputs > 0 if link.activation == "relu" else np.ones(outputs.shape, bool)
    if unknowns > DIRECT:
        return LayerRank(name, unknowns, kernel.size, int(np.sum(known)), None)
    gram = _normal_matrix(_patches(link), kernel.reshape(-1, kernel.shape[-1]), np.asarray(slope), known, unknowns)
    (factor,) = get_lapack_funcs(("pstrf",), (gram,))
    *_, rank, _ = factor(gram, tol=SEEN**2 * np.max(np.diag(gram)), overwrite_a=True)
    return LayerRank(name, unknowns, kernel.size, int(np.sum(known)), int(rank))


def _patches(link: Link) -> Int[np.ndarray, "g p k"]:
    """Which number of its input each weight of a convolution meets at each place, -1 in the padding; by group."""
    layer: Any = link.layer
    groups, (*size, read) = layer.feature_group_count, (*layer.kernel_size, link.shape[-1] // layer.feature_group_count)
    entries = int(np.prod(size)) * read
    kernel = jnp.tile(jnp.eye(entries), groups).reshape(*size, read, groups * entries)
    numbers = 1.0 + jnp.arange(np.prod(link.shape)).reshape(link.shape)
    met = layer.clone(features=groups * entries, use_bias=False).apply({"params": {"kernel": kernel}}, numbers)
    return np.rint(np.asarray(met)).astype(int).reshape(-1, groups, entries).transpose(1, 0, 2) - 1


def _normal_matrix(
    patches: Int[np.ndarray, "g p k"],
    kernel: Float[np.ndarray, "k c"],
    slope: Float[np.ndarray, "1 h w c"],
    known: Bool[np.ndarray, "1 h w c"],
    unknowns: int,
) -> Float[np.ndarray, "n n"]:
    """Of the equations by gradient and by outputs, each kind with rows of about unit length."""
    from scipy.sparse import coo_array, csr_array

    groups, places, entries = patches.shape
    gram = np.zeros((unknowns, unknowns))
    across, along = np.linalg.norm(slope), np.linalg.norm(kernel)
    parts = (np.split(part.reshape(-1, kernel.shape[1]), groups, axis=1) for part in (kernel, slope, known))
    for met, weights, slopes, seen in zip(patches, *parts, strict=True):
        inside = met >= 0
        for entry in range(entries):  # each weight's gradients, one for each channel
            where = inside[:, entry]
            to = coo_array((np.ones(np.sum(where)), (met[where, entry], np.flatnonzero(where))), (unknowns, places))
            columns = to.tocsr() @ slopes / (across or 1)
            some = np.flatnonzero(np.any(columns, axis=1))
            gram[np.ix_(some, some)] += columns[some] @ columns[some].T
        for channel in range(weights.shape[1]):
            rows, kept = np.nonzero(inside & seen[:, [channel]])
            outputs = csr_array((weights[kept, channel] / (along or 1), (rows, met[rows, kept])), (places, unknowns))
            product = (outputs.T @ outputs).tocoo()
            gram[product.row, product.col] += product.data
    return gram * weights.shape[1]
