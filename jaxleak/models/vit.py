"""The vision transformer. Modules are named as in timm."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice, check_positive
from jaxleak.kernels.conv import fast_conv
from jaxleak.models.activations import gelu
from jaxleak.models.layers import classify
from jaxleak.models.weight_init import NORMED_WEIGHT_INITS, dlg_uniform, layer_inits, norm_inits

ENCODERS = ("pre-norm", "sequential")
small = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Multi-head self-attention and two dense layers; see `ViT` for `encoder` and the initialisation.

    Source: Dosovitskiy et al. 2021 (ViT), figure 1 right; timm, `vision_transformer.py`, class `Block`.
    """

    heads: int
    hidden: int
    activation: Callable
    encoder: str
    epsilon: float
    weight_init: str
    causal: bool = False  # a token attends to itself and those before it

    @nn.compact
    def __call__(self, z: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        norm = layer_norm(self.weight_init, self.epsilon)
        if self.encoder == "sequential":
            return self._dense_layers(norm(name="norm1")(self._attention(z)))
        z = z + self._attention(norm(name="norm1")(z))
        return z + self._dense_layers(norm(name="norm2")(z))

    def _attention(self, z: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        size = z.shape[-1] // self.heads
        projected = self._dense(z, 3 * z.shape[-1], "attn.qkv").reshape(*z.shape[:2], 3, self.heads, size)
        q, k, v = jnp.moveaxis(projected, 2, 0)
        scores = jnp.einsum("bihs,bjhs->bhij", q, k) * size**-0.5
        if self.causal:
            scores = jnp.where(jnp.tri(z.shape[1], dtype=bool), scores, jnp.finfo(scores.dtype).min)
        weights = nn.softmax(scores)
        return self._dense(jnp.einsum("bhij,bjhs->bihs", weights, v).reshape(z.shape), z.shape[-1], "attn.proj")

    def _dense_layers(self, z: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self._dense(self.activation(self._dense(z, self.hidden, "mlp.fc1")), z.shape[-1], "mlp.fc2")

    def _dense(self, z: Float[Array, "b n i"], outputs: int, name: str) -> Float[Array, "b n o"]:
        inits = layer_inits(self.weight_init, z.shape[-1], kernel_init=small, bias_init=nn.initializers.zeros)
        return nn.Dense(outputs, **inits, name=name)(z)


class ViT(nn.Module):
    """A vision transformer: patches, a class token, learnt positions, encoder blocks, a norm and a dense head.

    The positions are as many as the patches of the image that the network is initialised with, and the class token's.

    Source: Dosovitskiy et al. 2021 (ViT); timm, `vision_transformer.py`, class `VisionTransformer`.

    Attributes:
        num_classes: outputs of the head.
        patch_size: height and width of a patch, in pixels; must divide the image's.
        dim: numbers of a token.
        depth: encoder blocks.
        heads: of the attention; must divide `dim`.
        mlp_ratio: hidden units of a block's dense layers, over `dim`.
        activation: between these; torch's GELU as published.
        encoder: "pre-norm" (a norm before the attention and one before the dense layers, and a shortcut around each)
            or "sequential" (attention, norm, dense layers, no shortcuts: Lu et al. 2022 (APRIL), figure 1 A).
        epsilon: of the norms: timm's and torchvision's; transformers has 1e-12.
        weight_init: "torch" (timm: dense weights, positions N(0, 0.02^2), dense biases 0, class token N(0, 1e-12),
            patch embedding U(-1, 1) / sqrt(fan-in), norms 1 and 0), "uniform" (DLG: all from U(-0.5, 0.5), scales and
            biases of norms too), "uniform-weights" (norms 1 and 0) or "flax" (kernels N(0, 1 / fan-in), biases 0,
            positions and class token as "torch").

    Raises:
        InputError: a field has a value that is not allowed, or patches do not fit the image.

    Example:
        >>> import jaxleak
        >>> from jaxleak.models import ViT
        >>> jaxleak.parameter_count(ViT(10, dim=16, depth=1, heads=2), (32, 32, 3))
        5322
    """

    num_classes: int
    patch_size: int = 4
    dim: int = 96
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    activation: Callable = gelu
    encoder: str = "pre-norm"
    epsilon: float = 1e-6
    weight_init: str = "torch"

    torch_names = ()  # timm's are the modules' own

    def __post_init__(self):
        check_choice("encoder", self.encoder, ENCODERS)
        check_choice("weight_init", self.weight_init, NORMED_WEIGHT_INITS)
        for name in ("patch_size", "dim", "depth", "heads"):
            check_positive(name, getattr(self, name), integer=True)
        for name in ("mlp_ratio", "epsilon"):
            check_positive(name, getattr(self, name))
        if self.dim % self.heads:
            raise InputError(f"`heads` must divide `dim`; got {self.heads} heads for {self.dim}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c]."""
        side = self.patch_size
        if x.shape[1] % side or x.shape[2] % side:
            raise InputError(f"`patch_size` must divide the image's sides; got {side} for {x.shape[1]}x{x.shape[2]}.")
        inits = layer_inits(self.weight_init, side * side * x.shape[-1])
        embed = partial(nn.Conv, self.dim, (side, side), strides=side, padding=0, conv_general_dilated=fast_conv)
        patches = embed(**inits, name="patch_embed.proj")(x).reshape(x.shape[0], -1, self.dim)
        drawn = {"uniform": dlg_uniform, "uniform-weights": dlg_uniform}.get(self.weight_init)
        first = self.param("cls_token", drawn or nn.initializers.normal(1e-6), (1, 1, self.dim), jnp.float32)
        positions = self.param("pos_embed", drawn or small, (1, patches.shape[1] + 1, self.dim), jnp.float32)
        tokens = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.dim)), patches], axis=1) + positions
        for number in range(self.depth):
            tokens = Block(
                heads=self.heads,
                hidden=round(self.mlp_ratio * self.dim),
                activation=self.activation,
                encoder=self.encoder,
                epsilon=self.epsilon,
                weight_init=self.weight_init,
                name=f"blocks.{number}",
            )(tokens)
        tokens = layer_norm(self.weight_init, self.epsilon)(name="norm")(tokens)
        inits = {"kernel_init": small, "bias_init": nn.initializers.zeros}
        return classify(tokens[:, 0], self.num_classes, self.weight_init, **inits)

    def head_input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels of the head's input, which is one token whatever the image's size."""
        return 1, 1, self.dim


def layer_norm(weight_init: str, epsilon: float) -> Callable:
    """A constructor of norms of tokens, called with the name in the network."""
    # The variance as E[(x - m)^2]: E[x^2] - m^2 would cancel.
    return partial(nn.LayerNorm, epsilon=epsilon, use_fast_variance=False, **norm_inits(weight_init))
