"""Defences that round every entry."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxleak.errors import InputError
from jaxleak.threat.defence import Bounds, Defence


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
    bounded = True
    rounding = True

    def __post_init__(self):
        _check_bits(self.bits, (16,))

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key

        def rounded(leaf):
            normal = jax.lax.reduce_precision(leaf, exponent_bits=5, mantissa_bits=10)
            subnormal = jnp.round(leaf * 2.0**24) / 2.0**24  # which `reduce_precision` sets to zero
            return jnp.where(jnp.abs(leaf) < 2.0**-14, subnormal, normal)

        return jax.tree.map(rounded, update) if self.bits else update

    def bounds(self, after: Bounds) -> Bounds:
        """Within half of the distance of neighbouring numbers, 2^(e-10) for entries of exponent e, at least -14."""
        return _unrounded(after, lambda leaf: 2.0 ** (jnp.maximum(_exponent(leaf), -14) - 10))


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
    bounded = True
    rounding = True

    def __post_init__(self):
        _check_bits(self.bits, (16,))

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        if self.bits == 0:
            return update
        return jax.tree.map(lambda leaf: jax.lax.reduce_precision(leaf, exponent_bits=8, mantissa_bits=7), update)

    def bounds(self, after: Bounds) -> Bounds:
        """Within half of the distance of neighbouring numbers, 2^(e-7) for entries of exponent e."""
        return _unrounded(after, lambda leaf: jnp.where(leaf == 0, 0, 2.0 ** (_exponent(leaf) - 7)))


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
    bounded = True
    rounding = True

    def __post_init__(self):
        _check_bits(self.bits, range(2, 17))

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key

        def rounded(leaf):
            step = jnp.max(jnp.abs(leaf)) / (2 ** (int(self.bits) - 1) - 1)
            return step * jnp.round(leaf / jnp.where(step > 0, step, 1))

        return jax.tree.map(rounded, update) if self.bits else update

    def bounds(self, after: Bounds) -> Bounds:
        """Within half a step of the tensor, which its largest entry tells."""
        return _unrounded(after, lambda leaf: jnp.max(jnp.abs(leaf)) / (2 ** (int(self.bits) - 1) - 1))


def _check_bits(bits: int, allowed: tuple[int, ...] | range) -> None:
    if bits != 0 and bits not in allowed:
        numbers = f"{allowed[0]}" if len(allowed) == 1 else f"a whole number from {allowed[0]} to {allowed[-1]}"
        raise InputError(f"`bits` must be {numbers}, or 0 for off; got {bits!r}.")


def _exponent(leaf: Float[Array, "..."]) -> Float[Array, "..."]:
    """The e with 2^e <= |leaf| < 2^(e+1); -100 for 0."""
    return jnp.where(leaf == 0, -100, jnp.frexp(leaf)[1] - 1).astype(leaf.dtype)


def _unrounded(after: Bounds, step_of: Callable[[Array], Array]) -> Bounds:
    """Bounds that are half a step wider on each side; the error of rounding has standard deviation step / sqrt(12)."""

    def wider(low, high, width):
        step = step_of(jnp.where(jnp.abs(low) > jnp.abs(high), low, high))
        return low - step / 2, high + step / 2, jnp.sqrt(jnp.square(width) + jnp.square(step) / 12)

    leaves, structure = zip(*map(jax.tree.flatten, after), strict=True)
    each = [wider(*parts) for parts in zip(*leaves, strict=True)]
    return Bounds(*(jax.tree.unflatten(structure[0], parts) for parts in zip(*each, strict=True)))
