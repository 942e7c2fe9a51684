"""Defences: changes of the update before it is shared, update -> update."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from jaxleak.errors import InputError, check_choice, check_not_negative


@dataclass(frozen=True, kw_only=True)
class Defence(ABC):
    """Base of all defences; the fields of each are its strengths, in the order in which its text names them.

    Attributes:
        random: `apply` uses the key.
        sparse: it sets entries to zero, so that whoever sees the update sees which.
        per_example: it belongs on the gradient of each image, before their mean: `DPSGD.apply_examples`.
    """

    random: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    per_example: ClassVar[bool] = False

    @abstractmethod
    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        """The defended update, of the same structure, shapes and types; traceable, and pure but for `key`."""


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


DEFENCES: dict[str, type[Defence]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "prune": Prune,
    "prune-layer": PruneLayer,
    "top-k": TopK,
    "clip": Clip,
    "dp-sgd": DPSGD,
    "fp16": Float16,
    "bf16": BFloat16,
    "int8": Quantise,
}
# Each defence switched off: the identity (of dp-sgd's gradients: their mean).
ZERO = {name: ":".join([name, *("0" for _ in fields(kind))]) for name, kind in DEFENCES.items()}


def parse_defence(text: str) -> Defence:
    """The defence that a text such as "gaussian:0.01", "dp-sgd:1.0:0.1" or "fp16" names.

    Args:
        text: the name in `DEFENCES` and the strengths, in the order of the fields, separated by colons.

    Raises:
        InputError: unknown name, too few or too many strengths, one that is not a number or not allowed.
    """
    name, *strengths = text.split(":")
    check_choice("defence", name, DEFENCES)
    wanted = fields(DEFENCES[name])
    required = [field for field in wanted if field.default is MISSING]
    if not len(required) <= len(strengths) <= len(wanted):
        raise InputError(f"`defence` {name} is written {defence_form(name)}; got {text!r}.")
    values = {field.name: _number(text, field, strength) for field, strength in zip(wanted, strengths, strict=False)}
    try:
        return DEFENCES[name](**values)
    except InputError as error:
        raise InputError(f"`defence` {text!r}: {error}") from None


def _number(text: str, field: Field, strength: str) -> float:
    """A strength as its field has it; where it should be whole and is not, the defence's own check says so."""
    try:
        value = float(strength)
    except ValueError:
        form = defence_form(text.split(":")[0])
        raise InputError(
            f"`defence` {text!r}: `{field.name}` must be a number; got {strength!r}. It is written {form}."
        ) from None
    return int(value) if field.type is int and value.is_integer() else value


def defence_form(name: str) -> str:
    """The form of a defence's text: "dp-sgd:CLIP:NOISE", "int8[:BITS]"."""
    parts = (f":{field.name.upper()}" for field in fields(DEFENCES[name]))
    given = (field.default is MISSING for field in fields(DEFENCES[name]))
    return name + "".join(part if must else f"[{part}]" for part, must in zip(parts, given, strict=True))


def defence_text(defence: Defence) -> str:
    """The text from which `parse_defence` makes this defence; strengths that are their defaults are left out."""
    name = next(name for name, kind in DEFENCES.items() if kind is type(defence))
    strengths = [(field, getattr(defence, field.name)) for field in fields(defence)]
    given = [(field.type, value) for field, value in strengths if value != field.default]
    return ":".join([name, *(str(int(value) if kind is int else float(value)) for kind, value in given)])


def check_defences(defences: tuple[Defence, ...]) -> None:
    """Raise unless these are defences, and one on each image's gradient comes before all others.

    Raises:
        InputError: a per-example defence is not the first, or it is no tuple of defences.
    """
    if not (isinstance(defences, tuple) and all(isinstance(defence, Defence) for defence in defences)):
        raise InputError(f"`defences` must be a tuple, as in (parse_defence('prune:0.5'),); got {defences!r}.")
    for defence in defences[1:]:
        if defence.per_example:
            name, given = defence_text(defence).split(":")[0], ", ".join(map(defence_text, defences))
            raise InputError(
                f"`defence` {name} acts on the gradient of each image, before all others; got {given}. "
                f"Name {name} first, and only once."
            )


def defend(defences: tuple[Defence, ...], update: PyTree, key: Key[Array, ""]) -> PyTree:
    """The update after all defences, in their order; the i-th of these draws from `fold_in(key, i)`.

    A per-example defence takes the update for the gradient of a single image. Raises as `check_defences`.
    """
    check_defences(defences)
    for i, defence in enumerate(defences):
        update = defence.apply(update, jax.random.fold_in(key, i))
    return update


def shows_zeros(defences: tuple[Defence, ...]) -> bool:
    """True if the update shows which entries were set to zero: a defence is sparse, and none after it adds noise."""
    sparse = [i for i, defence in enumerate(defences) if defence.sparse]
    return bool(sparse) and not any(other.random and not other.sparse for other in defences[sparse[0] + 1 :])


def sparse_mask(defences: tuple[Defence, ...], update: PyTree) -> PyTree:
    """Mask of a defended update, for an attacker who sees that it was pruned: 1 where it is not zero, else 0.

    () if the update does not show which entries were set to zero (`shows_zeros`).
    """
    if not shows_zeros(defences):
        return ()
    return jax.tree.map(lambda leaf: (leaf != 0).astype(leaf.dtype), update)


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
