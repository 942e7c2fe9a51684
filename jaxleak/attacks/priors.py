"""Priors: what the attacker assumes of images, whatever the network and the update."""

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float


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
