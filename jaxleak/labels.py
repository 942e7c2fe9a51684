"""How the attacker comes by the label: optimised jointly (DLG) or read from the head's gradient (iDLG)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxleak.errors import InputError

LABEL_STRATEGIES = ("joint", "idlg")


def head_gradient(update: PyTree) -> PyTree:
    """The part of an update that belongs to the layer named "head".

    Raises:
        InputError: no layer of that name, so that the label cannot be read.
    """
    if "head" not in update:
        raise InputError(f"`label` idlg needs a layer named 'head'; the model has {', '.join(sorted(update))}.")
    return update["head"]


def idlg_label(update: PyTree) -> Int[Array, ""]:
    """The label of one image: the class whose row of the head's weight gradient has the smallest sum.

    With cross-entropy the row of class k is (softmax_k - [k = label]) times the head's input; behind a sigmoid that
    input is positive, so only the true class has a negative row.

    Source: Zhao, Mopuri & Bilen 2020 (iDLG), section 3.1 and the reference implementation's `argmin` of row sums.
    """
    # Linen's kernel is [inputs, classes]: torch's row of a class is a column here.
    kernel: Float[Array, "i k"] = head_gradient(update)["kernel"]
    return jnp.argmin(jnp.sum(kernel, axis=0))
