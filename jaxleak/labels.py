"""What the attacker reads from the head's gradient: the label of one image, and the head's input."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxleak.errors import InputError


def head_gradient(update: PyTree, tensor: str) -> Array:
    """A tensor of the part of an update that belongs to the layer named "head".

    Raises:
        InputError: no layer of that name, or it has no such tensor.
    """
    if "head" not in update:
        raise InputError(
            f"`label` other than joint, and `features`, need a layer named 'head'; the model has "
            f"{', '.join(sorted(update))}."
        )
    if tensor not in update["head"]:
        raise InputError(
            f"`label` bias, and `features`, need a head with a {tensor}; it has {', '.join(sorted(update['head']))}."
        )
    return update["head"][tensor]


def idlg_label(update: PyTree) -> Int[Array, ""]:
    """The label of one image: the class whose row of the head's weight gradient has the smallest sum.

    With cross-entropy the row of class k is (softmax_k - [k = label]) times the head's input; behind a sigmoid that
    input is positive, so only the true class has a negative row.

    Source: Zhao, Mopuri & Bilen 2020 (iDLG), section 3.1 and the reference implementation's `argmin` of row sums.
    """
    # Linen's kernel is [inputs, classes]: torch's row of a class is a column here.
    kernel: Float[Array, "i k"] = head_gradient(update, "kernel")
    return jnp.argmin(jnp.sum(kernel, axis=0))


def bias_label(update: PyTree) -> Int[Array, ""]:
    """The label of one image: the class whose bias gradient, softmax_k - [k = label], is negative.

    Right whatever the activations, where `idlg_label` needs a head input whose sum is positive.
    """
    return jnp.argmin(head_gradient(update, "bias"))


# "joint" optimises the label beside the image.
LABEL_STRATEGIES = {"joint": None, "idlg": idlg_label, "bias": bias_label}


def head_input(update: PyTree) -> Float[Array, "i"]:
    """The input of the head for one image: exactly what the last layer gives away.

    The head's bias gradient is d = softmax - one-hot, and its weight gradient the outer product of the input h with d,
    so h = W d / |d|^2. Where d is 0 (the network is as sure of the label as the number type allows) the update holds
    nothing, and h is 0. Both are divided by the largest |d_k| first: |d|^2 would underflow before d does.

    Source: Geiping et al. 2020 (Inverting Gradients), proposition 3.1.
    """
    kernel, slope = head_gradient(update, "kernel"), head_gradient(update, "bias")
    largest = jnp.max(jnp.abs(slope))
    unit = jnp.where(largest > 0, largest, 1)
    return (kernel / unit) @ (slope / unit) / jnp.maximum(jnp.sum(jnp.square(slope / unit)), 1)
