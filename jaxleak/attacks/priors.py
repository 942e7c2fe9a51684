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


def consistency(x: Float[Array, "g b ..."]) -> Float[Array, ""]:
    """Distance of a group's restarts from one another: mean over g of |x_g - mean|^2, mean the mean over g.

    Source: Yin et al. 2021 (GradInversion), R_group, the group consistency regularisation.
    Differs: the consensus is the mean of each pixel; theirs registers the images to one another first.
    """
    return jnp.mean(jnp.sum(jnp.square(x - jnp.mean(x, axis=0)), axis=tuple(range(1, x.ndim))))
