"""Adapts a model of one's own, and finds the arguments that it is called with."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError
from jaxtyping import PyTree

from jaxleak.errors import InputError
from jaxleak.models.own.adapted import AdaptedModel
from jaxleak.models.own.layers import find_head, gives_logits, image_of, needs_nothing, slow_layers

# Arguments by which a model's `__call__` is told that it does not train.
EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "is_train": False,
    "deterministic": True,
    "use_running_average": True,
}

RANDOM = ("deterministic", "RngCount", "RngKey")  # in what Linen and NNX say where a model draws random numbers
DROPOUT_ON = (
    "`model` has dropout on, which draws random numbers that nobody can repeat. Switch it off, where the update was "
    "computed too: nn.Dropout(rate, deterministic=True), or a __call__ that takes `train` or `deterministic`, which "
    "are set for evaluation."
)


def adapt_model(model, image_shape: tuple[int, int, int], *, num_classes: int | None = None, **arguments) -> Any:
    """The model as a victim's: fast, called with parameters and images alone, with a head named "head".

    Args:
        model: a Linen module; an NNX module, or a function of `rngs` (an `nnx.Rngs`) that makes one, such as its
            class. An NNX module is taken in evaluation mode; as it holds weights already, each network drawn from it
            is the same, where a function makes new ones.
        image_shape: height, width and channels of its images.
        num_classes: how many logits it has to give, or None.
        arguments: further arguments of the model's `__call__`. Without any it is called with images alone, or where
            it cannot be, as in evaluation (`EVALUATION`: train=False, deterministic=True and the like).

    Returns:
        The model itself where nothing has to be done, else an `AdaptedModel`.

    Warns:
        In one line each, which layers stay slow (`slow_layers`), and that logits are not the last layer's outputs.

    Raises:
        InputError: not such a model; it cannot be called, does not give class logits, or does not end in a dense layer.

    Example:
        >>> import flax.linen as nn
        >>> import jaxleak
        >>> class Linear(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return nn.Dense(10, name="classifier")(x.reshape(x.shape[0], -1))
        >>> jaxleak.adapt_model(Linear(), (8, 8, 1), num_classes=10).head
        ('classifier',)
    """
    adapted = with_head(model, image_shape, num_classes=num_classes, **arguments)
    if not isinstance(adapted, AdaptedModel):
        return adapted
    if not gives_logits(adapted, image_shape):
        warnings.warn(
            f"The model changes what its last dense layer {'/'.join(adapted.head)} gives: labels that are read from "
            "the update (bias, unique, counts) may be wrong. Use label joint or known, or a model that ends there.",
            stacklevel=2,
        )
    slow = slow_layers(adapted, image_shape)
    if slow:
        warnings.warn(f"These layers of the model stay slow: {'; '.join(slow)}.", stacklevel=2)
    params = adapted.own_params(image_shape)
    whole = adapted.head == ("head",) and needs_nothing(adapted.module, image_shape, params)
    return adapted.module if whole else adapted


def with_head(model, image_shape: tuple[int, int, int], *, num_classes: int | None = None, **arguments) -> Any:
    """`adapt_model` without what it warns of, and always an `AdaptedModel` of a model of one's own.

    Raises:
        InputError: as `adapt_model`.
    """
    if type(model).__module__.startswith("jaxleak.models."):
        return model
    module = _linen_like(model)
    arguments = _arguments(module, image_shape, arguments, num_classes or "k")
    variables = jax.eval_shape(lambda: _init(module, image_shape, arguments))
    if not variables.get("params"):
        raise InputError(f"`model` must have parameters, whose gradient is shared; {module_name(model)} has none.")
    state = _state(module, image_shape, arguments) if set(variables) - {"params"} else {}
    adapted = AdaptedModel(module, (), tuple(sorted(arguments.items())), state)
    return replace(adapted, head=find_head(adapted, image_shape, variables["params"]))


def module_name(model: Any) -> str:
    """The model's name in rows and tables: its class, or the function that makes it.

    Example:
        >>> import flax.linen as nn
        >>> from jaxleak.models.own import module_name
        >>> module_name(nn.Dense(10))
        'dense'
    """
    module = model.module if isinstance(model, AdaptedModel) else model
    function_name = getattr(module, "__name__", None)
    return (function_name if isinstance(function_name, str) else type(module).__name__).lower()


def _linen_like(model) -> Any:
    """A Linen module as it is, an NNX module behind the same two methods."""
    if isinstance(model, nn.Module):
        return model
    from jaxleak.models.own.nnx_model import from_nnx  # importing NNX takes long

    module = from_nnx(model)
    if module.build is None:
        warnings.warn(
            "Every network drawn from this NNX module has the same weights, its own; "
            "give a function of `rngs` that makes it, such as its class, to draw others.",
            stacklevel=3,
        )
    return module


def _init(module, image_shape, arguments) -> Mapping[str, PyTree]:
    return nn.unbox(module.init(jax.random.key(0), jnp.zeros((1, *image_shape)), **arguments))


def _state(module, image_shape, arguments) -> Mapping[str, PyTree]:
    """The collections of a new model but `params`."""
    variables = jax.jit(lambda: {k: v for k, v in _init(module, image_shape, arguments).items() if k != "params"})()
    return jax.tree.map(np.asarray, variables)


def _arguments(module, image_shape, given: dict[str, Any], classes: int | str) -> dict[str, Any]:
    """The arguments with which the model gives logits, of so many classes or of any number "k".

    Raises:
        InputError: with none of those that are tried.
    """
    accepted = inspect.signature(getattr(module, "call", type(module).__call__)).parameters
    evaluation = {name: value for name, value in EVALUATION.items() if name in accepted}
    failed: Exception | None = None
    for arguments in [given] if given or not evaluation else [given, evaluation]:
        try:
            shape = _output_shape(module, image_shape, arguments)
        except Exception as error:  # whatever the model raises
            failed = error
            continue
        if shape is None or len(shape) != 2 or shape != (1, shape[1] if classes == "k" else classes):
            got = "no array, as where more is returned beside them" if shape is None else list(shape)
            raise InputError(f"`model` must give class logits, [1, {classes}] for one image; got {got}.")
        return arguments
    if isinstance(failed, InvalidRngError) or any(word in str(failed) for word in RANDOM):
        raise InputError(DROPOUT_ON) from failed
    raise InputError(
        f"`model` must run on images of shape {'x'.join(map(str, image_shape))} as model.apply(variables, x), or with "
        f"{_listed(evaluation or EVALUATION)}; it raised {type(failed).__name__}: {_first_line(failed)}"
    ) from failed


def _output_shape(module, image_shape, arguments) -> tuple[int, ...] | None:
    def output(x):
        variables = module.init(jax.random.key(0), x, **arguments)
        return module.apply(variables, x, **arguments, mutable=sorted(set(variables) - {"params"}))[0]

    return getattr(jax.eval_shape(output, image_of(image_shape)), "shape", None)


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def _first_line(error: Exception | None) -> str:
    return (str(error).strip().splitlines() or [""])[0]
