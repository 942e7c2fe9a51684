"""Heads of all networks, and convolutions of those with norms."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from jaxleak.kernels.conv import fast_conv
from jaxleak.models.weight_init import dlg_uniform, layer_inits

# What stands between the features and the head, called with the head and the features; None: nothing does.
AROUND_HEAD: ContextVar[Callable | None] = ContextVar("AROUND_HEAD", default=None)


def read_features(head: nn.Dense, features: Float[Array, "b f"]) -> Float[Array, "b k"]:
    """The head's outputs, with which every network ends."""
    around = AROUND_HEAD.get() if head.name == "head" else None
    return head(features) if around is None else around(head, features)


def convolution(weight_init: str, torch_kernel: Callable) -> Callable:
    """A constructor of convolutions without bias, called with channels, kernel size, padding and name.

    Args:
        weight_init: one of `weight_init.NORMED_WEIGHT_INITS`.
        torch_kernel: draws the kernel under "torch".
    """
    kernels = {"torch": torch_kernel, "flax": nn.initializers.lecun_normal()}
    return partial(
        nn.Conv, use_bias=False, kernel_init=kernels.get(weight_init, dlg_uniform), conv_general_dilated=fast_conv
    )


def classify(
    x: Float[Array, "b f"], num_classes: int, weight_init: str, name: str = "head", **torchs: Callable
) -> Float[Array, "b k"]:
    """Logits of features by a dense layer; `torchs` as for `layer_inits`."""
    return read_features(nn.Dense(num_classes, **layer_inits(weight_init, x.shape[-1], **torchs), name=name), x)
