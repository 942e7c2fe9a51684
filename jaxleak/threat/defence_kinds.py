"""Defences: changes of the update before it is shared, update -> update. One class a defence."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from jaxleak.errors import InputError, check_not_negative


@dataclass(frozen=True, kw_only=True)
class Defence(ABC):
    """Base of all defences; the fields of each are its strengths, in the order in which its text names them.

    Attributes:
        random: `apply` uses the key.
        sparse: it sets entries to zero, so that whoever sees the update sees which.
        per_example: it belongs on the gradient of each image, before their mean: `DPSGD.apply_examples`.
        in_network: it changes the network (`network`) and the client's use of it (`client_model`), not the update.
    """

    random: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    per_example: ClassVar[bool] = False
    in_network: ClassVar[bool] = False

    @abstractmethod
    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        """The defended update, of the same structure, shapes and types; traceable, and pure but for `key`."""

    def apply_beside(self, update: PyTree, key: Key[Array, ""], scores: Callable[[], Array] | None) -> PyTree:
        """`apply` beside the private images: `scores` gives those of their features (`observe.follows`)."""
        del scores
        return self.apply(update, key)

    def network(self, model: Any) -> Any:
        """The network that the federation trains with this defence; as it is, of most."""
        return model

    def client_model(self, model: Any, key: Key[Array, ""], images: int) -> Any:
        """The network as the client calls it for one update of so many images; as it is, of most."""
        del key, images
        return model


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
        return _with_noise(update, key, jax.random.laplace, self.sigma / math.sqrt(2))


@dataclass(frozen=True, kw_only=True)
class Prune(Defence):
    """The smallest entries over all tensors set to zero.

    Of all n entries, the round(share n) of least magnitude. Among equals the later ones go, in the order of
    `jax.tree.leaves` and of rows, so that the number is exact.

    Source: Aji & Heafield 2017, section 3; as a defence, Zhu, Liu & Han 2019, section 5.2.
    Differs: what is dropped is not kept back for the next update: there is only one.

    Attributes:
        share: of the entries set to zero, from 0 (off) to 1.
    """

    share: float
    sparse = True

    def __post_init__(self):
        _check_share(self.share)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        return _pruned(update, self.share)


@dataclass(frozen=True, kw_only=True)
class PruneLayer(Defence):
    """The smallest entries within each tensor set to zero.

    Of the n entries of a tensor, the round(share n) of least magnitude; among equals the later ones.

    Source: Lin et al. 2018 (Deep Gradient Compression), algorithm 1; as a defence, Zhu, Liu & Han 2019, section 5.2.
    Differs: no residual, momentum correction or warm-up: there is only one update.

    Attributes:
        share: of each tensor's entries set to zero, from 0 (off) to 1.
    """

    share: float
    sparse = True

    def __post_init__(self):
        _check_share(self.share)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        return jax.tree.map(lambda leaf: _pruned(leaf, self.share), update)


@dataclass(frozen=True, kw_only=True)
class TopK(Defence):
    """Only the k largest entries over all tensors kept.

    The k of largest magnitude, the others set to zero; among equals the earlier ones stay, in the order of
    `jax.tree.leaves` and of rows.

    Source: Stich, Cordonnier & Jaggi 2018, section 2 (top_k).
    Differs: no memory of what was left out.

    Attributes:
        count: k, the entries kept; all, if there are no more than k. 0 is off: all are kept.
    """

    count: int
    sparse = True

    def __post_init__(self):
        check_not_negative("count", self.count)
        if int(self.count) != self.count:
            raise InputError(f"`count` must be a whole number; got {self.count!r}.")

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        return update if self.count == 0 else _largest(update, int(self.count))


@dataclass(frozen=True, kw_only=True)
class ErrorFeedback(Defence):
    """The smallest entries dropped, and kept back for the next update.

    v_r = u + m_{r-1}, shared_r = v_r without its round(share n) smallest entries, m_r = v_r - shared_r, m_0 = 0; the
    attacker sees shared_R alone, of the last of R rounds. An entry that is sent has gathered since it was last sent.

    Source: Karimireddy et al. 2019 (error feedback), algorithm 2; Stich, Cordonnier & Jaggi 2018 (memory).
    Differs: the weights are those of the last round in all rounds, so each update u is the same.

    Attributes:
        share: of the entries dropped, from 0 (off) to 1.
        rounds: R, at least 1; 1 is `Prune`. 0 is off.
    """

    share: float
    rounds: int
    sparse = True

    def __post_init__(self):
        _check_share(self.share)
        check_not_negative("rounds", self.rounds, integer=True)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        if self.rounds == 0:
            return update

        def gathered(_, memory):
            gathers = jax.tree.map(jnp.add, update, memory)
            return jax.tree.map(jnp.subtract, gathers, _pruned(gathers, self.share))

        nothing = jax.tree.map(jnp.zeros_like, update)
        memory = jax.lax.fori_loop(0, self.rounds - 1, gathered, nothing)
        return _pruned(jax.tree.map(jnp.add, update, memory), self.share)


@dataclass(frozen=True, kw_only=True)
class Soteria(Defence):
    """The head's gradient hidden for features that follow the image least.

    For the features r of the images, which the head reads, the rows of its weight gradient are set to zero for the
    round(share f) features of smallest |sum over the images of |dr_i/dx| / r_i|, of f.

    Source: Sun et al. 2021 (Soteria), section 4, and the reference implementation's approximation.
    Differs: an exact number of features instead of a percentile; features that are 0 are not among them.

    Attributes:
        share: of the features, from 0 (off) to 1.
    """

    share: float
    sparse = True

    def __post_init__(self):
        _check_share(self.share)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        """Off, the update as it is.

        Raises:
            InputError: on: the images are needed.
        """
        del key
        if self.share:
            raise InputError("`defence` soteria needs the private images; apply it with `Victim.share`.")
        return update

    def apply_beside(self, update: PyTree, key: Key[Array, ""], scores: Callable[[], Array] | None) -> PyTree:
        """The update with rows of the head's kernel set to zero.

        Raises:
            InputError: no scores, or the network has no layer named "head" with a kernel.
        """
        if self.share == 0 or scores is None:
            return self.apply(update, key)
        if not (isinstance(update, dict) and "kernel" in update.get("head", {})):
            raise InputError("`defence` soteria needs a network whose last dense layer is named 'head'.")
        values = scores()
        hidden = jnp.argsort(values, stable=True)[: round(self.share * values.size)]
        kernel = update["head"]["kernel"].at[hidden].set(0)
        return {**update, "head": {**update["head"], "kernel": kernel}}


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

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        """The defended gradient of a single image."""
        return self.apply_examples(jax.tree.map(lambda leaf: leaf[None], update), key)

    def apply_examples(self, gradients: PyTree, key: Key[Array, ""]) -> PyTree:
        """The defended mean of the gradients of b images, all leaves with b as their leading axis."""
        clipped = jax.vmap(lambda gradient: _clipped(gradient, self.clip))(gradients)
        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), clipped)
        examples = jax.tree.leaves(gradients)[0].shape[0]
        return _with_noise(mean, key, jax.random.normal, self.noise * self.clip / examples)


@dataclass(frozen=True, kw_only=True)
class Float16(Defence):
    """Rounded to half precision (IEEE float16) and back.

    To the nearest, ties to even; above 65,504 it overflows to infinity, below 6e-5 the steps are 2^-24.

    Source: Zhu, Liu & Han 2019, section 5.1.
    Differs: not by `astype` there and back, which XLA may leave out (on GPUs it does: openxla/xla issue 41605).

    Attributes:
        bits: 16; 0 is off.
    """

    bits: int = 16

    def __post_init__(self):
        _check_bits(self.bits, (16,))

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key

        def rounded(leaf):
            normal = jax.lax.reduce_precision(leaf, exponent_bits=5, mantissa_bits=10)
            subnormal = jnp.round(leaf * 2.0**24) / 2.0**24  # which `reduce_precision` sets to zero
            return jnp.where(jnp.abs(leaf) < 2.0**-14, subnormal, normal)

        return jax.tree.map(rounded, update) if self.bits else update


@dataclass(frozen=True, kw_only=True)
class BFloat16(Defence):
    """Rounded to bfloat16 (8 bits of exponent, 7 of mantissa) and back.

    To the nearest, ties to even.

    Source: Zhu, Liu & Han 2019, section 5.1.
    Differs: not by `astype`, as for `Float16`; below 1.2e-38 everything is zero.

    Attributes:
        bits: 16; 0 is off.
    """

    bits: int = 16

    def __post_init__(self):
        _check_bits(self.bits, (16,))

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        if self.bits == 0:
            return update
        return jax.tree.map(lambda leaf: jax.lax.reduce_precision(leaf, exponent_bits=8, mantissa_bits=7), update)


@dataclass(frozen=True, kw_only=True)
class Quantise(Defence):
    """Rounded to 8-bit integers, with one scale per tensor, and back.

    s round(u / s) with s = max|u| / (2^(bits-1) - 1): -127..127 for 8 bits, ties to even. A tensor of zeros stays so.

    Source: Zhu, Liu & Han 2019, section 5.1 (Int-8), which leaves the scheme open; this is torch's
    `fake_quantize_per_tensor_affine` with zero point 0.

    Attributes:
        bits: 8, or any number from 2 to 16; 0 is off.
    """

    bits: int = 8

    def __post_init__(self):
        _check_bits(self.bits, range(2, 17))

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key

        def rounded(leaf):
            step = jnp.max(jnp.abs(leaf)) / (2 ** (int(self.bits) - 1) - 1)
            return step * jnp.round(leaf / jnp.where(step > 0, step, 1))

        return jax.tree.map(rounded, update) if self.bits else update


def _check_share(share: float) -> None:
    check_not_negative("share", share)
    if share > 1:
        hint = f" For {share:g} % write {share / 100:g}." if share <= 100 else ""
        raise InputError(f"`share` must be from 0 to 1; got {share!r}.{hint}")


def _check_bits(bits: int, allowed: tuple[int, ...] | range) -> None:
    if bits != 0 and bits not in allowed:
        numbers = f"{allowed[0]}" if len(allowed) == 1 else f"a whole number from {allowed[0]} to {allowed[-1]}"
        raise InputError(f"`bits` must be {numbers}, or 0 for off; got {bits!r}.")


def _with_noise(update: PyTree, key: Key[Array, ""], draw: Callable[..., Array], scale: float) -> PyTree:
    """The update plus scale times what `draw` gives; the i-th tensor draws from `fold_in(key, i)`."""
    leaves, structure = jax.tree.flatten(update)
    noise = [draw(jax.random.fold_in(key, i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, [leaf + scale * n for leaf, n in zip(leaves, noise, strict=True)])


def _pruned(update: PyTree, share: float) -> PyTree:
    """The update with the round(share n) smallest of its n entries set to zero."""
    size = sum(leaf.size for leaf in jax.tree.leaves(update))
    return _largest(update, size - round(share * size))


def _largest(update: PyTree, count: int) -> PyTree:
    """Only the `count` entries of largest magnitude over all tensors, zeros elsewhere."""
    values, unravel = ravel_pytree(update)
    # Stable: among equals the earlier are kept; a threshold would keep, or drop, all of them. NaN counts as largest.
    order = jnp.argsort(jnp.abs(values), descending=True, stable=True)
    kept = jnp.zeros(values.shape, bool).at[order[:count]].set(True, unique_indices=True)
    return unravel(jnp.where(kept, values, 0))


def _clipped(update: PyTree, norm: float) -> PyTree:
    """The update scaled down to this norm over all tensors; as it is if the norm is 0."""
    if norm == 0:
        return update
    square: Float[Array, ""] = sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(update)), start=jnp.zeros(()))
    longer = square > norm**2
    factor = jnp.where(longer, norm / jnp.sqrt(jnp.where(longer, square, 1)), 1)
    return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, update)
