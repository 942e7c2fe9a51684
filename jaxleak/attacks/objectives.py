"""Distances of gradients, their scales and the other terms that an attacker may minimise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxleak.attacks.distances import cosine_distance, squared_l2, squared_norm
from jaxleak.attacks.layer_weights import layer_weights
from jaxleak.attacks.likelihood import negative_log_likelihood
from jaxleak.kernels.outer import is_outer, times
from jaxleak.threat.observe import Moments


def l1_distance(gradient: PyTree, update: PyTree, layers: tuple[str, ...] = ()) -> Float[Array, ""]:
    """Sum over tensors of w_t |g_t - u_t|_1: TAG's term beside the squared L2 distance, and the objective `l1`.

    Args:
        gradient: g, of the candidate; leaves may be `Outer`.
        update: u, what the client shared.
        layers: names of the network's L layers from the input on: w is 1 for the first, then falls by 1 / L with each.
            () and layers without a name here: 1.

    Source: Deng et al. 2021 (TAG), the term weighted by alpha; that its weights fall linearly is a guess of breaching's
        preset, which we follow.
    """
    weights = {name: 1 - place / len(layers) for place, name in enumerate(layers)}

    def distance(leaf, shared):
        apart = (leaf.build() if is_outer(leaf) else leaf) - shared
        return jnp.sum(apart * jax.lax.stop_gradient(jnp.sign(apart)))  # jnp.abs has derivative 1 at 0

    def of_layer(name: str) -> Float[Array, ""]:
        apart = jax.tree.map(distance, gradient[name], update[name], is_leaf=is_outer)
        return weights.get(name, 1.0) * sum(jax.tree.leaves(apart), start=jnp.zeros(()))

    return sum(map(of_layer, gradient), start=jnp.zeros(()))


# Each is 0 where the gradients agree. `likelihood` is also given the victim's defences.
OBJECTIVES = {"l2": squared_l2, "l1": l1_distance, "cosine": cosine_distance, "likelihood": negative_log_likelihood}
SCALES = ("none", "relative", "per-tensor")


def scale_factors(update: PyTree, scale: str, layers: tuple[str, ...] = ()) -> PyTree:
    """One factor f_t per tensor: the scaled objective compares f_t times the candidate's gradient with f_t times u_t.

    Args:
        update: what the client shared, tensors u_t, t = 1..T.
        scale: "none": f_t = 1, as published, and () is returned. "relative": f_t = 1 / |u|, so that the squared L2
            distance is divided by the update's squared norm. "per-tensor": f_t = 1 / (sqrt(T) |u_t|), the mean over
            tensors of their relative squared errors, which counts layers whose gradients are small as much as others.
            A tensor without gradient is left as it is.
        layers: layers whose tensors count, with their weights w: see `layer_weights.parse_layer`. f_t is then as above
            times sqrt(w_t), T counts the tensors of weight above 0, and |u|^2 is the sum of w_t |u_t|^2. A later entry
            overrides an earlier one; tensors that no entry names have weight 0, and a factor of 0 cannot be divided
            by. Empty: all tensors have weight 1.

    Raises:
        InputError: `layers` do not fit the update (`layer_weights.check_layers`).
    """
    if scale == "none" and not layers:
        return ()
    weights = layer_weights(layers, update)
    roots = jax.tree.map(lambda weight: weight**0.5, weights)
    if scale == "none":
        return jax.tree.map(lambda leaf, root: jnp.full((), root, leaf.dtype), update, roots)
    if scale == "relative":
        per_norm = 1 / _norm_unless_zero(jax.tree.leaves(jax.tree.map(jnp.multiply, update, roots)))
        return jax.tree.map(lambda _, root: root * per_norm, update, roots)
    counted = sum(weight > 0 for weight in jax.tree.leaves(weights)) ** 0.5
    return jax.tree.map(lambda leaf, root: root / (counted * _norm_unless_zero([leaf])), update, roots)


def _norm_unless_zero(leaves: list[Array]) -> Float[Array, ""]:
    """Euclidean norm over all of them, 1 where it is 0 (subnormal numbers count as 0); no square under- or overflows.

    One division for all tensors: XLA would repeat the maximum over all of them in each of several.
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    some = largest >= jnp.finfo(largest.dtype).tiny
    safe = jnp.where(some, largest, 1)
    return jnp.where(some, safe * jnp.sqrt(squared_norm(times(leaves, 1 / safe))), 1)


def scaled(gradient: PyTree, factors: PyTree) -> PyTree:
    """Every tensor times its factor from `scale_factors`; leaves may be `Outer`."""
    return gradient if factors == () else jax.tree.map(times, gradient, factors, is_leaf=is_outer)


def share_left(objective: str, value: Any, norm2: Any) -> Any:
    """Published objectives as shares of the update's squared norm: of the cosine 1 - cos^2; NaN of l1 and likelihoods.

    Args:
        objective: a key of `OBJECTIVES`.
        value: it, in numpy.
        norm2: squared norm of the update.
    """
    value = np.asarray(value, np.float64)
    if objective == "cosine":  # what the best multiple of the candidate's gradient leaves
        return np.where(np.isfinite(value), np.minimum(value, 1) * (2 - np.minimum(value, 1)), value)
    if objective != "l2":
        return np.full_like(value, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):  # an update may be zero
        return value / np.asarray(norm2, np.float64)


def label_distance(logits: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
    """CPL's label term: mean over images of sum_k (softmax(logits)_k - target_k)^2.

    Args:
        logits: of the candidate.
        target: one distribution over classes per image: the labels that the attacker works with.

    Source: Wei et al. 2020 (CPL), the term weighted by alpha.
    Differs: their code compares with the logits of the client's own image, which an attacker does not have. On logits
        against one-hot labels the term breaks the attack; on their softmax it does not.
    """
    return jnp.mean(jnp.sum(jnp.square(jax.nn.softmax(logits, axis=-1) - target), axis=-1))


def statistics_distance(found: dict[str, Moments], wanted: dict[str, Moments]) -> Float[Array, ""]:
    """The BatchNorm prior: sum over layers of |mean - mean*| + |var - var*|, Euclidean norms, not squared.

    Its gradient is 0 where they agree.

    Args:
        found: `Observed.statistics` of the candidate.
        wanted: mean* and var*, of the same layers.

    Source: Yin et al. 2021 (GradInversion), R_BN; the norms as in DeepInversion's code, `DeepInversionFeatureHook`.
    """
    parts = jax.tree.map(lambda a, b: optax.safe_norm(a - b, 0.0), found, wanted)
    return sum(jax.tree.leaves(parts), start=jnp.asarray(0.0))
