"""Priors: what the attacker assumes of images, whatever the network and the update."""

import math

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxleak.threat.patches import SIDE as PATCH

STRIDE = 4  # pixels between patches


def total_variation(x: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Mean of |x_{i,j+1} - x_{i,j}| plus mean of |x_{i+1,j} - x_{i,j}|, pixels (i, j): 0 for a constant image.

    Where two pixels are equal the derivative of their difference's absolute value is taken as 0, as in torch.

    Source: Geiping et al. 2020 (Inverting Gradients), reference implementation `inversefed/metrics.py`.
    """
    return _mean_size(x[:, :, 1:] - x[:, :, :-1]) + _mean_size(x[:, 1:] - x[:, :-1])


def _mean_size(x: Array) -> Float[Array, ""]:
    """Mean of absolute values; 0 for none, as between the rows of an image that has one."""
    size = x * lax.stop_gradient(jnp.sign(x))  # jnp.abs has derivative 1 at 0
    return jnp.sum(size) / max(x.size, 1)


def patch_log_density(
    patches: Float[Array, "n f"], mixture: tuple[Float[Array, "k"], Float[Array, "k f"], Float[Array, "k f f"]]
) -> Float[Array, "n"]:
    """log p of each patch under a mixture of Gaussians, in nats.

    Args:
        patches: rows as `threat.patches.centred` gives them.
        mixture: log weights, means, and factors L of the precisions L L^T (`PatchMixture`).
    """
    log_weights, means, factors = mixture
    features = means.shape[1]
    # One product for all components: [n, f] by [f, k f].
    stacked = jnp.swapaxes(factors, 0, 1).reshape(features, -1)
    away = (patches @ stacked).reshape(len(patches), *means.shape) - jnp.einsum("kf,kfg->kg", means, factors)
    sizes = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(factors, axis1=1, axis2=2))), axis=1)
    logs = sizes - 0.5 * (features * math.log(2 * math.pi) + jnp.sum(jnp.square(away), axis=-1))
    return jax.nn.logsumexp(logs + log_weights, axis=1)


def patch_prior(
    x: Float[Array, "b h w c"], mixture: tuple[Float[Array, "k"], Float[Array, "k f"], Float[Array, "k f f"]]
) -> Float[Array, ""]:
    """Minus the mean over patches of log p(patch), in nats: patches of 8x8 pixels, every fourth row and column.

    The last row and column of patches end with the image. Each patch is taken less its mean in each channel.

    Args:
        x: pixels in [0, 1].
        mixture: as for `patch_log_density`.

    Source: Zoran & Weiss 2011 (EPLL), equation 2. Differs: a mean; patches at every pixel would cost 13 times as much.
    """
    height, width, channels = x.shape[1:]
    rows, columns = (sorted({*range(0, side - PATCH, STRIDE), side - PATCH}) for side in (height, width))
    parts = [x[:, r : r + PATCH, c : c + PATCH] for r in rows for c in columns]
    patches = jnp.concatenate(parts)
    centred = patches - jnp.mean(patches, axis=(1, 2), keepdims=True)
    return -jnp.mean(patch_log_density(centred.reshape(-1, PATCH * PATCH * channels), mixture))


def norm_prior(x: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Mean over images of their Euclidean norms |x_b|, with gradient 0 at an image of zeros.

    Source: Yin et al. 2021 (GradInversion), R_l2, as DeepInversion's code computes it.
    """
    return jnp.mean(optax.safe_norm(x.reshape(len(x), -1), 0.0, axis=1))


def epoch_consistency(x: Float[Array, "e b ..."]) -> Float[Array, ""]:
    """Mean over all pairs of epochs, and over all entries, of the squared difference of their mean images.

    In whatever order a client takes its images, their mean is the same in every epoch.

    Source: Dimitrov et al. 2022, the epoch order-invariant prior, with the mean as the function of an epoch's images.
    """
    means = jnp.mean(x, axis=1)
    return jnp.mean(jnp.square(means[:, None] - means[None]))


def consistency(x: Float[Array, "g b ..."], register: int = 0) -> Float[Array, ""]:
    """Distance of a group's restarts from their consensus: mean over g of |x_g - consensus|^2.

    Args:
        x: the members of a group, for `register` images [g b h w c].
        register: pixels by which an image may be moved each way to fit the others. 0: the consensus is the mean.

    Source: Yin et al. 2021 (GradInversion), R_group, the group consistency regularisation.
    """
    if register:
        consensus = lax.stop_gradient(jnp.mean(registered(x, jnp.mean(x, axis=0), register), axis=0))
    else:
        consensus = jnp.mean(x, axis=0)
    return jnp.mean(jnp.sum(jnp.square(x - consensus), axis=tuple(range(1, x.ndim))))


def registered(
    x: Float[Array, "g b h w c"], reference: Float[Array, "b h w c"], reach: int
) -> Float[Array, "g b h w c"]:
    """Each image moved by whole pixels, at most `reach` each way, to where its squared distance is least.

    Pixels that come in from outside repeat the image's edge. Of moves that fit equally well the shortest is taken.

    Args:
        x: members of a group.
        reference: what they are to fit, image by image.
        reach: at least 1.

    Source: Yin et al. 2021 (GradInversion), the registration of a group's images to their mean.
    Differs: theirs is RANSAC-flow, which also turns and bends; it needs a network trained for it.
    """
    height, width, channels = x.shape[2:]
    edge = [(0, 0), (0, 0), (reach, reach), (reach, reach), (0, 0)]
    padded = jnp.pad(x, edge, mode="edge")
    places = [(row, column) for row in range(2 * reach + 1) for column in range(2 * reach + 1)]
    places.sort(key=lambda place: (place[0] - reach) ** 2 + (place[1] - reach) ** 2)  # argmin takes the first
    apart = [
        jnp.sum(jnp.square(padded[:, :, row : row + height, column : column + width] - reference), axis=(2, 3, 4))
        for row, column in places
    ]
    best = jnp.asarray(places)[jnp.argmin(jnp.stack(apart), axis=0)]

    def cut(image, place):
        return lax.dynamic_slice(image, (place[0], place[1], 0), (height, width, channels))

    return jax.vmap(jax.vmap(cut))(padded, best)
