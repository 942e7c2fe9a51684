"""Weights in and out as safetensors, in torch's names and layout."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak.errors import InputError

Params = dict[str, Any]


def to_torch(model, params: Params, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """A Linen model's parameters as a torch state dict: kernels OIHW, dense weights [out, in] in NCHW flatten order.

    Args:
        model: a model with `torch_names` and `head_input_shape`.
        params: its `params` collection.
        image_shape: height, width, channels of its input.
    """
    h, w, c = model.head_input_shape(image_shape)
    state = {}
    for flax_name, torch_name in model.torch_names:
        kernel = np.asarray(params[flax_name]["kernel"])
        if kernel.ndim == 4:
            weight = kernel.transpose(3, 2, 0, 1)
        elif flax_name == "head":
            # Linen flattens NHWC, torch NCHW: the head's inputs come in another order.
            weight = kernel.reshape(h, w, c, -1).transpose(3, 2, 0, 1).reshape(kernel.shape[1], -1)
        else:
            weight = kernel.T
        state[f"{torch_name}.weight"] = np.ascontiguousarray(weight)
        state[f"{torch_name}.bias"] = np.asarray(params[flax_name]["bias"])
    return state


def from_torch(model, state: dict[str, np.ndarray], image_shape: tuple[int, int, int]) -> Params:
    """The inverse of `to_torch`.

    Raises:
        InputError: a tensor is missing, extra, or of another shape than the model's.
    """
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))["params"]
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), template)
    expected = {name: tensor.shape for name, tensor in to_torch(model, blank, image_shape).items()}
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unknown {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {list(state[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        raise InputError(
            f"`weights` do not fit {type(model).__name__} with {model.num_classes} classes on "
            f"{'x'.join(map(str, image_shape))} images: {'; '.join(problems)}."
        )
    h, w, c = model.head_input_shape(image_shape)
    params = {}
    for flax_name, torch_name in model.torch_names:
        weight = state[f"{torch_name}.weight"]
        if weight.ndim == 4:
            kernel = weight.transpose(2, 3, 1, 0)
        elif flax_name == "head":
            kernel = weight.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(weight.shape[1], -1)
        else:
            kernel = weight.T
        params[flax_name] = {
            "kernel": jnp.asarray(kernel, dtype=float),
            "bias": jnp.asarray(state[f"{torch_name}.bias"], dtype=float),
        }
    return params


def load_weights(path: str | Path, model, image_shape: tuple[int, int, int]) -> Params:
    """Parameters from a safetensors file in torch's names and layout.

    Raises:
        InputError: no such file, not a safetensors file, or tensors that do not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not Path(path).is_file():
        raise InputError(f"`weights` must be a safetensors file; there is no file {str(path)!r}.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise InputError(f"`weights` must be a safetensors file; {str(path)!r} cannot be read: {error}.") from error
    return from_torch(model, state, image_shape)


def save_weights(path: str | Path, model, params: Params, image_shape: tuple[int, int, int]) -> None:
    """Write parameters as safetensors in torch's names and layout; `load_weights` reads them back."""
    from safetensors.numpy import save_file

    save_file(to_torch(model, params, image_shape), path)
