"""Defences by noise and by a largest norm."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxleak.errors import check_not_negative
from jaxleak.threat.defence import Defence, Noise


@dataclass(frozen=True, kw_only=True)
class Gaussian(Defence):
    """Gaussian noise on every entry.

    u + n, n ~ N(0, sigma^2), drawn anew for each tensor.

    Source: Zhu, Liu & Han 2019, section 5.1.
    Differs: the strength is the standard deviation; theirs is the variance, and their 10^-2 is sigma 0.1 here.

    Attributes:
        sigma: standard deviation, in the update's units; 0 is off.
    """

    sigma: float
    random = True

    def __post_init__(self):
        check_not_negative("sigma", self.sigma)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        return _with_noise(update, key, jax.random.normal, self.sigma)

    @property
    def added(self) -> Noise:
        return Noise("normal", self.sigma)

    def before_noise(self, update: PyTree) -> PyTree:
        return update


@dataclass(frozen=True, kw_only=True)
class Laplace(Defence):
    """Laplacian noise on every entry.

    u + n, n of density exp(-|n| / s) / (2 s) with s = sigma / sqrt(2), so that sigma is the standard deviation, as it
    is for `Gaussian`: DLG compares the two at equal variance.

    Source: Zhu, Liu & Han 2019, section 5.1.
    Differs: the strength is neither their variance (sigma^2) nor the scale s of differential privacy.

    Attributes:
        sigma: standard deviation, in the update's units; 0 is off.
    """

    sigma: float
    random = True

    def __post_init__(self):
        check_not_negative("sigma", self.sigma)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        return _with_noise(update, key, jax.random.laplace, self.added.scale)

    @property
    def added(self) -> Noise:
        return Noise("laplace", self.sigma / math.sqrt(2))

    def before_noise(self, update: PyTree) -> PyTree:
        return update


@dataclass(frozen=True, kw_only=True)
class Clip(Defence):
    """The whole update scaled down to a largest L2 norm.

    u / max(1, |u| / norm), |u| over all tensors.

    Source: Pascanu, Mikolov & Bengio 2013, algorithm 1; torch's `clip_grad_norm_`.
    Differs: torch adds 1e-6 to |u|.

    Attributes:
        norm: the largest norm, in the update's units; 0 is off: no clipping.
    """

    norm: float

    def __post_init__(self):
        check_not_negative("norm", self.norm)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        return _clipped(update, self.norm)


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defence):
    """Each image's gradient clipped, then Gaussian noise on their mean.

    (1/b) (sum_i g_i / max(1, |g_i| / clip) + n), n ~ N(0, noise^2 clip^2), for the gradients g_i of b images: on the
    mean, noise of standard deviation noise clip / b.

    Source: Abadi et al. 2016, algorithm 1, with b for the group size L.

    Attributes:
        clip: C, the largest norm of one image's gradient over all tensors; 0 is off: neither clipping nor noise.
        noise: the noise multiplier, sigma in the paper.
    """

    clip: float
    noise: float
    random = True
    per_example = True

    def __post_init__(self):
        check_not_negative("clip", self.clip)
        check_not_negative("noise", self.noise)

    @property
    def off(self) -> bool:
        return self.clip == 0

    @property
    def added(self) -> Noise | None:
        """Of one image."""
        return Noise("normal", self.noise * self.clip) if self.noise else None

    def before_noise(self, update: PyTree) -> PyTree:
        """The clipped gradient of one image."""
        return _clipped(update, self.clip)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        """The defended gradient of a single image."""
        return self.apply_examples(jax.tree.map(lambda leaf: leaf[None], update), key)

    def apply_examples(self, gradients: PyTree, key: Key[Array, ""]) -> PyTree:
        """The defended mean of the gradients of b images, all leaves with b as their leading axis."""
        clipped = jax.vmap(lambda gradient: _clipped(gradient, self.clip))(gradients)
        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), clipped)
        examples = jax.tree.leaves(gradients)[0].shape[0]
        return _with_noise(mean, key, jax.random.normal, self.noise * self.clip / examples)


def _with_noise(update: PyTree, key: Key[Array, ""], draw: Callable[..., Array], scale: float) -> PyTree:
    """The update plus scale times what `draw` gives; the i-th tensor draws from `fold_in(key, i)`."""
    leaves, structure = jax.tree.flatten(update)
    noise = [draw(jax.random.fold_in(key, i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, [leaf + scale * n for leaf, n in zip(leaves, noise, strict=True)])


def _clipped(update: PyTree, norm: float) -> PyTree:
    """The update scaled down to this norm over all tensors; as it is if the norm is 0."""
    if norm == 0:
        return update
    square: Float[Array, ""] = sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(update)), start=jnp.zeros(()))
    longer = square > norm**2
    factor = jnp.where(longer, norm / jnp.sqrt(jnp.where(longer, square, 1)), 1)
    return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, update)
