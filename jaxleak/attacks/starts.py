"""Starts of the images: random, constant, a repeated tile, or another image of the data set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice

Start = Float[Array, "h w c"]
COLOURS = {"red": 0, "green": 1, "blue": 2}
PRIMARY = ("red", "green", "blue")
CLOSED = ("analytic", "april", "spear", "rgap", "dager")


def normal(key, shape: tuple[int, ...], surrogate: Start) -> Float[Array, "..."]:
    """N(0, 1) per pixel, in the units of the network's input: the start of DLG, iDLG and Inverting Gradients."""
    del surrogate
    return jax.random.normal(key, shape, float)


def uniform(key, shape: tuple[int, ...], surrogate: Start) -> Float[Array, "..."]:
    """U[0, 1) per pixel: the control of every comparison of starts."""
    del surrogate
    return jax.random.uniform(key, shape, float)


def black(key, shape: tuple[int, ...], surrogate: Start) -> Float[Array, "..."]:
    """Every pixel 0; nothing is random in it."""
    del key, surrogate
    return jnp.zeros(shape)


def white(key, shape: tuple[int, ...], surrogate: Start) -> Float[Array, "..."]:
    """Every pixel 1; nothing is random in it."""
    del key, surrogate
    return jnp.ones(shape)


def colour(name: str) -> Callable[..., Float[Array, "..."]]:
    """The start with one channel 1 and the others 0."""

    def draw(key, shape: tuple[int, ...], surrogate: Start) -> Float[Array, "..."]:
        del key, surrogate
        if shape[-1] != len(PRIMARY):
            raise InputError(
                f"`start` {name} needs pictures with three channels; these have {shape[-1]}. Use black or white."
            )
        return jnp.zeros(shape).at[..., COLOURS[name]].set(1)

    draw.__doc__ = f"The {name} channel 1, the others 0; nothing is random in it."
    return draw


def pattern(side: int) -> Callable[..., Float[Array, "..."]]:
    """The start that repeats one U[0, 1) tile of `side` x `side` pixels over the image, cut at its border."""

    def draw(key, shape: tuple[int, ...], surrogate: Start) -> Float[Array, "..."]:
        del surrogate
        *lead, height, width, channels = shape
        rows, columns = min(side, height), min(side, width)
        tile = jax.random.uniform(key, (*lead, rows, columns, channels), float)
        copies = [1] * len(lead) + [-(-height // rows), -(-width // columns), 1]
        return jnp.tile(tile, copies)[..., :height, :width, :]

    draw.__doc__ = f"One U[0, 1) tile of {side}x{side} pixels, repeated over the image."
    return draw


def surrogate(key, shape: tuple[int, ...], surrogate: Start) -> Float[Array, "..."]:
    """Another image of the data set, with U[0, 1) noise in its central half by half."""
    height, width = shape[-3:-1]
    rows = (jnp.arange(height) >= height // 4) & (jnp.arange(height) < height - height // 4)
    columns = (jnp.arange(width) >= width // 4) & (jnp.arange(width) < width - width // 4)
    centre = (rows[:, None] & columns)[..., None]
    return jnp.where(centre, jax.random.uniform(key, shape, float), surrogate)


# Called with a key, the shape [..., h, w, c] and another image of the data set. All but `normal` are in pixels, [0, 1].
# Those of `CLOSED` are no draws: the images that the update gives away (`closed_forms`).
# Sources: Zhu, Liu & Han 2019 (normal); Wei et al. 2020 (CPL), section 4.2 and reference implementation: tiles of 16
# ("level 1") and 8 ("level 2"), black, white, one colour, and an image of the same data set.
INITS: dict[str, Callable[..., Float[Array, "..."]] | None] = {
    "normal": normal,
    "uniform": uniform,
    "black": black,
    "white": white,
    **{name: colour(name) for name in PRIMARY},
    **{f"pattern-{side}": pattern(side) for side in (16, 8, 4)},
    "surrogate": surrogate,
    **dict.fromkeys(CLOSED),
}
SAME_EVERY_TIME = ("black", "white", *PRIMARY, "analytic", "april", "rgap", "dager")  # one start whatever the seed


def check_init(value: str) -> None:
    """Raise unless `value` names a start; a pattern may have a tile of any side, as in pattern-5.

    Raises:
        InputError: it does not.
    """
    if not _any_pattern(value):
        check_choice("start", value, INITS)


def draw_start(init: str, key, shape: tuple[int, ...], surrogate: Start) -> Float[Array, "..."]:
    """The start called `init`, in the units that its own description names."""
    draw = pattern(int(init.removeprefix("pattern-"))) if _any_pattern(init) else INITS[init]
    assert draw is not None
    return draw(key, shape, surrogate)


def _any_pattern(value: str) -> bool:
    side = value.removeprefix("pattern-")
    return side != value and side.isdecimal() and int(side) > 0
