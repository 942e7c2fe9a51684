"""A model's layers while it is applied: made fast, told to be slow, and which of them gives the logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from jaxleak.errors import InputError
from jaxleak.kernels.conv import fast_conv
from jaxleak.kernels.dense import blocked_dot_general
from jaxleak.models.own.traced import slow_convolutions, with_fast_convolutions

Path = tuple[str, ...]

# The field of a stock layer that holds its product, and what is put there.
PRODUCTS: dict[type[nn.Module], tuple[str, Callable]] = {
    nn.Conv: ("conv_general_dilated", fast_conv),
    nn.Dense: ("dot_general", blocked_dot_general),
}
WITHOUT_FIELD = (nn.ConvTranspose, nn.ConvLocal)  # layers that call `lax` themselves


def faster(call: Callable, args, kwargs, context) -> Any:
    """An interceptor of Linen under which stock layers compute with jaxleak's products."""
    module = context.module
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    if isinstance(module, WITHOUT_FIELD) and module.path and not module.is_initializing():
        layer = module.clone(parent=None, name=None)  # it comes here once more, without a path
        return with_fast_convolutions(layer.apply)(module.variables, *args, *kwargs.values())
    for kind, (name, product) in PRODUCTS.items():
        if isinstance(module, kind) and _is_stock(module, name):
            with _field(module, name, product):
                return call(*args, **kwargs)
    return call(*args, **kwargs)


def _is_stock(module: nn.Module, name: str) -> bool:
    return getattr(module, name) is None and getattr(module, f"{name}_cls") is None


@contextmanager
def _field(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """A module with another value in a field; Linen's modules are frozen, so not by assignment."""
    before = getattr(module, name)
    object.__setattr__(module, name, value)
    try:
        yield
    finally:
        object.__setattr__(module, name, before)


def slow_layers(model, image_shape: tuple[int, int, int]) -> list[str]:
    """The convolutions that stay XLA's, by layer, with the shapes of input and kernel.

    They are one- and three-dimensional ones, others than NHWC, and those that a module calls by `lax` itself.

    Args:
        model: an `AdaptedModel`, or any module with `init` and `apply`.
        image_shape: height, width and channels of its images.
    """
    x = image_of(image_shape)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(x.shape, x.dtype)))
    convolutions = slow_convolutions(lambda variables, x: model.apply(variables, x), variables, x)
    return list(dict.fromkeys(convolutions))


def find_head(model, image_shape: tuple[int, int, int], params: PyTree) -> Path:
    """Path in `params` of the dense layer that gives the logits: the last that is applied.

    Args:
        model: any module with `apply`.
        image_shape: height, width and channels of its images.
        params: its parameters, or their shapes and types.

    Raises:
        InputError: the last dense layer does not give the logits.
    """
    applied: list[tuple[Path, tuple[int, ...]]] = []

    def note(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, (nn.Dense, nn.DenseGeneral)) and context.method_name == "__call__":
            applied.append((context.module.path, output.shape))
        return output

    with nn.intercept_methods(note):
        logits = jax.eval_shape(lambda params, x: model.apply({"params": params}, x), params, image_of(image_shape))
    path, shape = applied[-1] if applied else ((), ())
    kernel: Any = flatten_dict(params).get((*path, "kernel"))
    if shape != logits.shape or kernel is None or kernel.ndim != 2:
        last = f"its last dense layer {'/'.join(path)} gives {list(shape)}" if applied else "it has no dense layer"
        raise InputError(f"`model` must end in a dense layer that gives the logits {list(logits.shape)}; {last}.")
    return path


def gives_logits(model, image_shape: tuple[int, int, int]) -> bool:
    """True if the logits are the outputs of the last dense layer, but for a number added to all of an image.

    Args:
        model: any module with `init` and `apply`; it is run only where the trace does not tell.
        image_shape: height, width and channels of its images.
    """
    applied: list[Any] = []
    same: list[bool] = []

    def note(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, (nn.Dense, nn.DenseGeneral)) and context.method_name == "__call__":
            applied.append(output)
        return output

    def forward(key, x):
        variables = model.init(key, x)
        with nn.intercept_methods(note):
            logits = model.apply(variables, x)
        same.append(logits is applied[-1])
        return logits, applied[-1]

    key = jax.random.key(0)
    try:
        jax.eval_shape(forward, key, image_of(image_shape))
        if same[0]:
            return True
        logits, outputs = jax.jit(lambda *args: forward(*args))(key, jax.random.uniform(key, (1, *image_shape)))
    except jax.errors.UnexpectedTracerError:  # a layer inside a function that is traced on its own
        return True
    logits, outputs = (np.asarray(array, np.float64) for array in (logits, outputs))
    logits, outputs = (array - array.mean(axis=-1, keepdims=True) for array in (logits, outputs))
    return bool(np.allclose(logits, outputs, rtol=1e-3, atol=1e-3 * np.abs(outputs).max()))


def needs_nothing(module, image_shape: tuple[int, int, int], params: PyTree) -> bool:
    """True if the model needs neither other variables nor other arguments nor faster layers."""
    slow: list[Path] = []

    def note(call, args, kwargs, context):
        module = context.module
        stock = any(isinstance(module, kind) and _is_stock(module, name) for kind, (name, _) in PRODUCTS.items())
        if stock or isinstance(module, WITHOUT_FIELD):
            slow.append(module.path)
        return call(*args, **kwargs)

    if not isinstance(module, nn.Module):
        return False
    try:
        with nn.intercept_methods(note):
            jax.eval_shape(lambda params, x: module.apply({"params": params}, x), params, image_of(image_shape))
    except (TypeError, ValueError, AttributeError, flax.errors.FlaxError):
        return False
    return not slow


def image_of(shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    """Shape and type of one image."""
    return jax.ShapeDtypeStruct((1, *shape), jnp.zeros(()).dtype)
