"""Closed form: an image from the gradient of a vision transformer whose positions are learnt."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, PyTree

from jaxleak.errors import InputError

Path = tuple[str, ...]
QKV = ("blocks.0", "attn.qkv", "kernel")  # of `models.ViT`
CLASS_TOKEN = ("cls_token",)


class Embedding(NamedTuple):
    """Where a network embeds its patches."""

    kernel: Path  # of the convolution, [ph, pw, c, d]
    positions: Path  # [n, d] or [m, d], where the last n of m tokens are patches
    count: int  # n


def patches_by_embedding(
    kernel_gradient: Float[Array, "ph pw c d"], slopes: Float[Array, "n d"]
) -> Float[Array, "n ph*pw*c"]:
    """The patches of one image, from the gradient of the layer that embeds them.

    Token t is W x_t + b + p_t, so the loss's gradient with respect to its position p_t is that with respect to the
    token. With these `slopes` s_t the gradient of W is sum_t s_t x_t^T: d equations for each pixel of the n patches,
    which determine it if the slopes are independent. What stands behind the embedding does not matter, norms and
    shortcuts included. Any multiple of a gradient serves.

    Source: Lu et al. 2022 (APRIL), section 3, for the slopes.
    Differs: the layer's own equations. Theirs, of the first attention, are these times W (`patches_by_attention`).
    """
    unit = jnp.max(jnp.abs(slopes))
    unit = jnp.where(unit > 0, unit, 1)
    return jnp.linalg.lstsq((slopes / unit).T, (kernel_gradient.reshape(-1, slopes.shape[1]) / unit).T)[0]


def tokens_by_attention(
    qkv: Float[Array, "d e"], qkv_gradient: Float[Array, "d e"], slopes: Float[Array, "m d"], first: Float[Array, "k d"]
) -> Float[Array, "m-k d"]:
    """The tokens of one image, from the gradient of an attention that reads the tokens themselves.

    Of token z_t only queries, keys and values K^T z_t have a part in the loss. With g_t the loss's gradient with
    respect to these, s_t = K g_t, and the gradient of K is sum_t z_t g_t^T. So sum_t s_t z_t^T = K (dL/dK)^T. Behind a
    norm, as in a pre-norm encoder, or beside a shortcut this does not hold.

    Args:
        qkv: K.
        qkv_gradient: the loss's gradient with respect to it.
        slopes: s_t.
        first: the first k tokens, which are known.

    Source: Lu et al. 2022 (APRIL), theorem 1.
    Differs: known tokens are subtracted.
    """
    products = qkv @ qkv_gradient.T - slopes[: len(first)].T @ first
    unit = jnp.max(jnp.abs(slopes))
    unit = jnp.where(unit > 0, unit, 1)
    return jnp.linalg.lstsq((slopes[len(first) :] / unit).T, products / unit)[0]


def recover_from_positions(
    update: PyTree, params: PyTree, image_shape: tuple[int, int, int], *, sequential: bool = False
) -> Float[Array, "1 h w c"]:
    """The image, from the gradient of a vision transformer with learnt positions and no more patches than `dim`.

    The layer that embeds patches gives it away, whatever the encoder. Where that layer's gradient is 0, as when it is
    not trained, a sequential encoder's first attention does; a pre-norm one tells only normalised tokens.

    Args:
        update: the gradient.
        params: the network.
        image_shape: height, width and channels.
        sequential: True for a `models.ViT` with encoder="sequential".

    Source: Lu et al. 2022 (APRIL).

    Raises:
        InputError: the network has no learnt positions beside embedded patches, or has more patches than `dim`.
    """
    found = find_embedding(update, image_shape)
    flat, weights = _flat(update), _flat(params)
    gradient, kernel = flat[found.kernel], weights[found.kernel]
    size = gradient.shape[-1]
    slopes = flat[found.positions].reshape(-1, size)
    others = len(slopes) - found.count
    patches = patches_by_embedding(gradient, slopes[others:])
    if sequential:
        offsets = weights[found.positions].reshape(-1, size)
        first = weights[CLASS_TOKEN].reshape(-1, size) + offsets[:others]
        tokens = tokens_by_attention(weights[QKV], flat[QKV], slopes, first)
        embedded = tokens - offsets[others:] - weights[(*found.kernel[:-1], "bias")]
        otherwise = jnp.linalg.lstsq(kernel.reshape(-1, size).T, embedded.T)[0].T
        patches = jnp.where(jnp.any(gradient != 0), patches, otherwise)
    height, width, channels = image_shape
    rows, columns = gradient.shape[:2]
    grid = patches.reshape(height // rows, width // columns, rows, columns, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(1, *image_shape)


def find_embedding(params: PyTree, image_shape: tuple[int, int, int]) -> Embedding:
    """The convolution whose windows are patches, and the positions that are added to what it gives.

    They are known by their shapes, and the positions by "pos" in their names. What more there are than patches are
    taken for those of tokens before them.

    Args:
        params: of the network, or a tree like them.
        image_shape: height, width and channels.

    Raises:
        InputError: there are none, or more patches than numbers in a token.
    """
    flat, (height, width, channels) = _flat(params), image_shape
    for kernel, leaf in flat.items():
        if kernel[-1] != "kernel" or leaf.ndim != 4 or leaf.shape[2] != channels:
            continue
        rows, columns, _, size = leaf.shape
        count = height // rows * (width // columns)
        for path, positions in flat.items():
            fits = positions.ndim > 1 and positions.shape[-1] == size
            tokens = math.prod(positions.shape[:-1])
            if not fits or height % rows or width % columns or tokens < count or "pos" not in "/".join(path).lower():
                continue
            if count > size:
                raise InputError(
                    f"april needs no more patches than numbers in a token; got {count} patches and {size} numbers. "
                    "Use larger patches (patch_size) or tokens (dim)."
                )
            return Embedding(kernel, path, count)
    layers = sorted({path[0] for path in flat})
    raise InputError(
        "april needs a model that adds learnt positions to embedded patches, such as vit; got layers "
        f"{', '.join(layers[:6])}{' and more' if len(layers) > 6 else ''} for {'x'.join(map(str, image_shape))} images."
    )


def _flat(params: PyTree) -> dict[Path, Any]:
    return flatten_dict(params)  # pyright: ignore[reportReturnType]
