"""Closed form: the input of every dense layer with a bias, read from the gradient of one image."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxleak.errors import InputError


def dense_input(kernel_gradient: Float[Array, "i o"], bias_gradient: Float[Array, "o"]) -> Float[Array, "i"]:
    """The input of a dense layer for one image, exactly.

    The bias gradient is d, the derivative of the loss with respect to the layer's outputs, and the kernel gradient the
    outer product x d^T, so x = (x d^T) d / |d|^2. Any multiple of a gradient serves, such as the weight difference
    after one step of SGD. For several images it is a mean of their inputs with weights that may be negative.

    Where d is 0 (a saturated network; a head as sure of the label as the number type allows) the update holds
    nothing, and the input comes out as 0. Both gradients are divided by the largest |d_o| first: |d|^2 would
    underflow before d does.

    Source: Phong et al. 2017, section 3 (one neuron: x_i is the ratio of two gradients); Geiping et al. 2020 (Inverting
        Gradients), proposition 3.1.
    Differs: least squares over all outputs, where the proposition divides by one d_o that is not 0.
    """
    largest = jnp.max(jnp.abs(bias_gradient))
    unit = jnp.where(largest > 0, largest, 1)
    slope = bias_gradient / unit
    return (kernel_gradient / unit) @ slope / jnp.maximum(jnp.sum(jnp.square(slope)), 1)


def dense_inputs(update: PyTree) -> dict[str, Float[Array, "i"]]:
    """The input of every dense layer for one image, by the layer's path, such as "dense1" or "block/dense1".

    A dense layer is one with a kernel of two axes and a bias; the others leave nothing here.
    """
    inputs = {}
    for name, layer in update.items():
        kernel, bias = layer.get("kernel"), layer.get("bias")
        if kernel is None or isinstance(kernel, Mapping):
            below = {inner: part for inner, part in layer.items() if isinstance(part, Mapping)}
            inputs |= {f"{name}/{path}": found for path, found in dense_inputs(below).items()}
        elif bias is not None and kernel.ndim == 2:
            inputs[name] = dense_input(kernel, bias)
    return inputs


def recover_image(update: PyTree, image_shape: tuple[int, int, int]) -> Float[Array, "1 h w c"]:
    """The image, from the gradient of a network whose first layer is dense on the flattened image (NHWC).

    That layer is "dense1", as in `models.MLP`, or "head" where it is the only one.

    Source: Geiping et al. 2020 (Inverting Gradients), proposition 3.1; Phong et al. 2017, section 3.

    Raises:
        InputError: the model has no such layer, or the layer has no bias.
    """
    layer = update[first_dense(update, image_shape, "analytic recovery")]
    return dense_input(layer["kernel"], layer["bias"]).reshape(1, *image_shape)


def first_dense(params: PyTree, image_shape: tuple[int, int, int], what: str) -> str:
    """The name of the layer that is dense on the flattened image: "dense1", or "head" where it is the only one.

    Args:
        params: of the network, or a tree like them.
        image_shape: height, width and channels.
        what: needs such a layer, for the message.

    Raises:
        InputError: the model has no such layer, or the layer has no bias.
    """
    first = "head" if set(params) == {"head"} else "dense1"
    layer = params.get(first, {})
    kernel, convolves = layer.get("kernel"), any(leaf.ndim > 2 for leaf in jax.tree.leaves(params))
    if kernel is None or "bias" not in layer or convolves or kernel.shape[0] != math.prod(image_shape):
        raise InputError(
            f"{what} needs a model whose first layer is dense, such as mlp; got "
            f"{', '.join(_described(name, params[name]) for name in sorted(params))} "
            f"for {'x'.join(map(str, image_shape))} images."
        )
    return first


def _described(name: str, layer: PyTree) -> str:
    kernel = layer.get("kernel") if isinstance(layer, Mapping) else None
    if kernel is None:
        return name
    return f"{name} [{', '.join(map(str, kernel.shape))}]" + ("" if "bias" in layer else " without bias")
