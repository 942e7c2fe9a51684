"""Closed form: a batch's tokens from the gradient of a transformer, by the spans of its first two attentions.

The gradient of an attention's projection of queries, keys and values is sum_i z_i g_i^T over the tokens i of all texts,
with the layer's inputs z_i and slopes g_i. With fewer tokens than numbers in a token its columns' span holds every z_i,
and hardly any other vector. So whether a token stands at a place can be tested for each token of the vocabulary, and
whether a text begins with given tokens by the second block's z_i.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

ATTENTION = "attn.qkv"  # of the blocks of `models.Transformer`
ROUNDING = 1  # singular values below so many units in the last place of the largest are rounding


def span(gradient: Float[Array, "e o"], most: int) -> Float[Array, "e r"]:
    """An orthonormal basis of the columns, at most so many; the rest of it is zero."""
    left, sizes, _ = jnp.linalg.svd(gradient, full_matrices=False)
    return (left * (sizes > ROUNDING * jnp.finfo(sizes.dtype).eps * sizes[0]))[:, :most]


def outside(vectors: Float[Array, "... e"], basis: Float[Array, "e r"]) -> Float[Array, "..."]:
    """Squared sine of each vector's angle to the span: 0 within it, 1 at right angles."""
    units = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return jnp.sum(jnp.square(units - (units @ basis) @ basis.T), axis=-1)


def seen_by(
    model: Any, params: PyTree, tokens: Float[Array, "... t"], layer: tuple[str, ...]
) -> Float[Array, "... n e"]:
    """Outputs of a layer on texts."""
    _, kept = model.apply(
        {"params": params},
        tokens,
        capture_intermediates=lambda module, _: module.path == layer,
        mutable="intermediates",
    )
    for name in layer:
        kept = kept["intermediates"][name] if "intermediates" in kept else kept[name]
    return kept["__call__"][0]


def recover_tokens(
    model: Any, params: PyTree, update: PyTree, length: int, count: int, reduction: str
) -> Float[Array, "d t"]:
    """The texts of a batch, from the gradient of a causal network; of a masked one the only text.

    Texts grow token by token: of all texts found so far, with every token that the first span allows, those `count`
    are kept that lie nearest the second block's span. What is predicted but not seen, such as the last token, follows
    from the head's gradient .

    Args:
        model: a `models.Transformer`.
        params: the network.
        update: the gradient.
        length: t, tokens of a text.
        count: d, texts of the batch.
        reduction: of the loss, "mean" or "sum".

    Returns:
        Tokens, in the order in which they were found; as many as there are different texts come from the gradient.

    Source: Petrov et al. 2024 (DAGER), section 4.
    Differs: the whole first projection, not its queries alone: a causal network's first token has no slope there. The
        best are kept, instead of those within a threshold. Masked networks have batches of one.
    """
    near = _nearness(model, params, update, length, count)
    tokens = jnp.argmin(near, axis=0)[None] if count == 1 else _grown(model, params, update, near, count)
    tokens = jnp.pad(tokens, [(0, 0), (0, length - tokens.shape[1])]).astype(near.dtype)
    return _completed(model, params, update, tokens, reduction)


def _nearness(model: Any, params: PyTree, update: PyTree, length: int, count: int) -> Float[Array, "k n"]:
    """Of each token of the vocabulary at each place that is read: how far it lies outside the first span."""
    every = jnp.arange(model.num_classes, dtype=float)[:, None]
    vectors = seen_by(model, params, jnp.broadcast_to(every, (model.num_classes, length)), ("blocks.0", "norm1"))
    return outside(vectors, span(update["blocks.0"][ATTENTION]["kernel"], count * vectors.shape[1]))


def _grown(model: Any, params: PyTree, update: PyTree, near: Float[Array, "k n"], count: int) -> Int[Array, "d n"]:
    """Texts of a causal network without their last tokens; see `recover_tokens`.

    A token of the batch at a wrong place often lies within the first span: E_a + P_j = (E_a + P_i) - (E_b + P_i) +
    (E_b + P_j), for vectors E of tokens and P of places. So as many tokens are tried at each place as the batch has.
    """
    size, places = near.shape
    width = min(size, count * places)
    second = span(update["blocks.1"][ATTENTION]["kernel"], count * places)

    def grow(found, place):
        texts, outsides = found  # a text is as far outside as its token that is furthest
        choices = jax.lax.top_k(-near[:, place], width)[1]
        vectors = second_inputs(model, params, texts, place, choices)
        furthest = jnp.maximum(outsides[:, None], outside(vectors, second))
        least, best = jax.lax.top_k(-furthest.reshape(-1), count)
        return (texts[best // width].at[:, place].set(choices[best % width]), -least), None

    empty = jnp.zeros((count, places), int), jnp.full(count, jnp.inf, near.dtype).at[0].set(0)
    (texts, _), _ = jax.lax.scan(grow, empty, jnp.arange(places))
    return texts


def second_inputs(
    model: Any, params: PyTree, texts: Int[Array, "d n"], place: Int[Array, ""], choices: Int[Array, "w"]
) -> Float[Array, "d w e"]:
    """The second block's inputs at a place of a causal network, where texts go on with each of some tokens.

    It is what `seen_by` gives for all d w longer texts, with keys and values of their beginnings computed once.
    """
    block, heads = params["blocks.0"], model.heads
    embedded, places = params[model.embedding]["embedding"], params["pos_embed"][0]
    norm = nn.LayerNorm(epsilon=model.epsilon, use_fast_variance=False)

    def dense(layer, x):
        return x @ block[layer]["kernel"] + block[layer]["bias"]

    def projected(x):  # queries, keys and values
        return jnp.split(dense(ATTENTION, norm.apply({"params": block["norm1"]}, x)), 3, axis=-1)

    def apart(x):
        return x.reshape(*x.shape[:-1], heads, -1)

    last = embedded[choices] + places[place]
    query, own_key, own_value = map(apart, projected(last))
    _, key, value = map(apart, projected(embedded[texts] + places))
    scores = jnp.einsum("whs,dnhs->dwhn", query, key)
    before = jnp.where(jnp.arange(texts.shape[1]) < place, scores, -jnp.inf)
    own = jnp.broadcast_to(jnp.sum(query * own_key, axis=-1), before.shape[:-1])[..., None]
    weights = jax.nn.softmax(jnp.concatenate([before, own], axis=-1) * query.shape[-1] ** -0.5)
    mixed = jnp.einsum("dwhn,dnhs->dwhs", weights[..., :-1], value) + weights[..., -1:] * own_value
    middle = last + dense("attn.proj", mixed.reshape(*mixed.shape[:2], -1))
    hidden = model.activation(dense("mlp.fc1", norm.apply({"params": block["norm2"]}, middle)))
    found: Any = norm.apply({"params": params["blocks.1"]["norm1"]}, middle + dense("mlp.fc2", hidden))
    return found


def _completed(model: Any, params: PyTree, update: PyTree, texts: Float[Array, "d t"], reduction: str):
    """The texts with the tokens that are predicted and not seen.

    The gradient of the head's kernel is sum_p h_p (softmax_p - y_p)^T over all predictions p, times their share in the
    loss. With the head's inputs h_p, which follow from what is seen, only the one-hot y_p are not known.
    """
    seen, predicted = model.places(texts.shape[1])
    unseen = ~np.isin(predicted, seen)
    inputs = seen_by(model, params, texts, ("norm",))
    inputs = inputs if model.task == "causal" else inputs[:, predicted]
    guesses = jax.nn.softmax(model.apply({"params": params}, texts), axis=-1)
    known = jax.nn.one_hot(texts[:, predicted].astype(int), model.num_classes) * ~unseen[:, None]
    unit = guesses.shape[0] * guesses.shape[1] if reduction == "mean" else 1
    products = jnp.einsum("dpe,dpk->ek", inputs, guesses - known) - unit * update["head"]["kernel"]
    left = inputs[:, unseen].reshape(-1, inputs.shape[-1])
    hot = jnp.linalg.lstsq(left.T, products)[0].reshape(len(texts), -1, model.num_classes)
    return texts.at[:, predicted[unseen]].set(jnp.argmax(hot, axis=-1).astype(texts.dtype))
