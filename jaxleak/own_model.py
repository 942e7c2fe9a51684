"""A model of one's own, as it is: stock Flax layers made fast, its last dense layer found and presented as "head".

Nothing in the model is edited: its layers are replaced while it is applied, by Linen's interceptors.
"""

import hashlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from jaxleak.conv import fast_conv
from jaxleak.dense import blocked_dot_general
from jaxleak.errors import InputError
from jaxleak.flatten import flattened_readers
from jaxleak.models.describe import description
from jaxleak.traced import slow_convolutions, with_fast_convolutions

Path = tuple[str, ...]

# Arguments by which a model's `__call__` is told that it does not train.
EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}
# The field of a stock layer that holds its product, and what is put there.
PRODUCTS: dict[type[nn.Module], tuple[str, Callable]] = {
    nn.Conv: ("conv_general_dilated", fast_conv),
    nn.Dense: ("dot_general", blocked_dot_general),
}
# What a model may say of itself, for files in torch's names and layout (`models.weights`).
TOLD = ("torch_names", "num_classes")
WITHOUT_FIELD = (nn.ConvTranspose, nn.ConvLocal)  # layers that call `lax` themselves


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
    """
    if type(model).__module__.startswith("jaxleak.models."):
        return model
    module = _linen_like(model)
    arguments = _arguments(module, image_shape, arguments, num_classes or "k")
    variables = jax.eval_shape(lambda: _init(module, image_shape, arguments))
    state = _state(module, image_shape, arguments) if set(variables) - {"params"} else {}
    adapted = AdaptedModel(module, (), tuple(sorted(arguments.items())), state)
    head = find_head(adapted, image_shape, variables["params"])
    adapted = AdaptedModel(module, head, adapted.arguments, state)
    if not gives_logits(adapted, image_shape):
        warnings.warn(
            f"The model changes what its last dense layer {'/'.join(head)} gives: labels that are read from the update "
            "(bias, unique, counts) may be wrong. Use label joint or known, or a model that ends there.",
            stacklevel=2,
        )
    slow = slow_layers(adapted, image_shape)
    if slow:
        warnings.warn(f"These layers of the model stay slow: {'; '.join(slow)}.", stacklevel=2)
    complete = head == ("head",) and _complete(module, image_shape, variables["params"])
    return module if complete else adapted


def module_name(model: Any) -> str:
    """What rows and tables call a model: its class, or the function that makes it."""
    module = model.module if isinstance(model, AdaptedModel) else model
    own = getattr(module, "__name__", None)
    return (own if isinstance(own, str) else type(module).__name__).lower()


@dataclass(frozen=True, eq=False, repr=False)
class AdaptedModel:
    """A model with the two methods of a Linen module that jaxleak uses, `init` and `apply`.

    Two are equal if their models are and they are called alike.

    Attributes:
        module: the model.
        head: path of the layer in its `params` that is presented as "head".
        arguments: further arguments of its `__call__`, names and values.
        state: its collections but `params`, such as `batch_stats`, where `apply` is given none.
    """

    module: Any
    head: Path
    arguments: tuple[tuple[str, Any], ...] = ()
    state: Mapping[str, PyTree] = field(default_factory=dict)

    def init(self, key, x: Float[Array, "b h w c"]) -> dict[str, PyTree]:
        """Variables drawn by the model's own initialisation, with the head under its name."""
        variables = nn.unbox(self.module.init(key, x, **dict(self.arguments)))
        return {**variables, "params": self.to_params(variables["params"])}

    def apply(self, variables: Mapping[str, PyTree], x: Float[Array, "b h w c"], **arguments) -> Float[Array, "b k"]:
        """Class logits; what the model would change in its other collections is dropped."""
        variables = {**self.state, **variables, "params": self.to_own(variables["params"])}
        with nn.intercept_methods(_faster):
            logits, _ = self.module.apply(
                variables, x, **{**dict(self.arguments), **arguments}, mutable=sorted(set(variables) - {"params"})
            )
        return logits

    def to_params(self, own: PyTree) -> PyTree:
        """The model's own tree of parameters with the head as "head"."""
        return unflatten_dict({self.path_in_params(path): leaf for path, leaf in flatten_dict(own).items()})

    def to_own(self, params: PyTree) -> PyTree:
        """The inverse of `to_params`."""
        return unflatten_dict({self._own_path(path): leaf for path, leaf in flatten_dict(params).items()})

    def path_in_params(self, path: Path) -> Path:
        """Where the tree with "head" has what the model has at `path`; another "head" becomes "head_"."""
        if self.head and path[: len(self.head)] == self.head:
            return ("head", *path[len(self.head) :])
        return (f"{path[0]}_", *path[1:]) if path and self._named_head(path[0]) else path

    def _own_path(self, path: Path) -> Path:
        if self.head and path[0] == "head":
            return (*self.head, *path[1:])
        return (path[0][:-1], *path[1:]) if self._named_head(path[0][:-1]) else path

    def _named_head(self, name: str) -> bool:
        """Whether it is "head", "head_" and so on, and taken from its owner."""
        return bool(self.head) and self.head != ("head",) and name.rstrip("_") == "head"

    def flattened(self, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, int, int] | None]:
        """The dense layers that read a flattened map, and that one's height, width and channels.

        As the model says it (`flattened`, or `head_input_shape` for the head), else as its forward pass shows; None
        where its order in torch cannot be told. Layers that read a map in torch's order are left out.
        """
        if hasattr(self.module, "flattened"):
            return dict([self.module.flattened(image_shape)])
        if hasattr(self.module, "head_input_shape"):
            return {"head": self.module.head_input_shape(image_shape)}
        image, variables = self._variables(image_shape)
        params = variables.pop("params")
        found = flattened_readers(
            lambda params, x, others: self._stock({**self.state, **others, "params": params}, x),
            params,
            image,
            variables,
        )
        return {"/".join(self.path_in_params(path[:-1])): shape for path, shape in found.items()}

    def unlike_torch(self, image_shape: tuple[int, int, int]) -> list[str]:
        """The layers whose kernels are in no order of torch's, or in one that cannot be told."""
        backward = getattr(self.module, "backward_kernels", list)()
        image, variables = self._variables(image_shape)

        def note(call, args, kwargs, context):
            layer = context.module
            if isinstance(layer, nn.ConvTranspose) and context.method_name == "__call__" and not layer.transpose_kernel:
                backward.append("/".join(layer.path))
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            jax.eval_shape(lambda variables, x: self._stock({**self.state, **variables}, x), variables, image)
        unclear = [layer for layer, shape in self.flattened(image_shape).items() if shape is None]
        return list(dict.fromkeys([*filter(None, backward), *unclear]))

    def program(self, image_shape: tuple[int, int, int]) -> str:
        """A hash of what the model computes, its initialisation included: edited code is another model."""

        def run(x):
            variables = nn.unbox(self.module.init(jax.random.key(0), x, **dict(self.arguments)))
            return self._stock({**self.state, **variables}, x)

        closed = jax.make_jaxpr(run)(jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
        text = re.sub(r" at 0x[0-9a-f]+|0x[0-9a-f]+", "", str(closed.jaxpr))
        return hashlib.sha256(f"{text}{_digest(list(closed.consts))}".encode()).hexdigest()[:12]

    def _variables(self, image_shape: tuple[int, int, int]) -> tuple[jax.ShapeDtypeStruct, dict[str, PyTree]]:
        """The shapes of one image and of the model's own variables."""
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        shapes: Any = jax.eval_shape(
            lambda x: nn.unbox(self.module.init(jax.random.key(0), x, **dict(self.arguments))), image
        )
        return image, shapes

    def _stock(self, variables: Mapping[str, PyTree], x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits by the model's own layers; `variables` as the model has them."""
        if not isinstance(self.module, nn.Module):
            return self.module.apply_stock(variables, x, **dict(self.arguments))
        collections = sorted(set(variables) - {"params"})
        return self.module.apply(variables, x, **dict(self.arguments), mutable=collections)[0]

    def __getattr__(self, name: str) -> Any:
        if name in TOLD:
            return getattr(self.module, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __eq__(self, other) -> bool:
        return isinstance(other, AdaptedModel) and self.module == other.module and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        parts = [description(self.module), f"head={'/'.join(self.head)}"]
        parts += [f"{name}={description(value)}" for name, value in self.arguments]
        parts += [f"state=sha256:{_digest(self.state)}"] if self.state else []
        return f"AdaptedModel({', '.join(parts)})"


def _digest(tree: PyTree) -> str:
    content = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        content.update(f"{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return content.hexdigest()[:12]


def _faster(call: Callable, args, kwargs, context) -> Any:
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
    x = _image(image_shape)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(x.shape, x.dtype)))
    found = slow_convolutions(lambda variables, x: model.apply(variables, x), variables, x)
    return list(dict.fromkeys(found))


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
        logits = jax.eval_shape(lambda params, x: model.apply({"params": params}, x), params, _image(image_shape))
    path, shape = applied[-1] if applied else ((), ())
    kernel: Any = flatten_dict(params).get((*path, "kernel"))
    if shape != logits.shape or kernel is None or kernel.ndim != 2:
        last = f"its last dense layer {'/'.join(path)} gives {list(shape)}" if applied else "it has no dense layer"
        raise InputError(f"`model` must end in a dense layer that gives the logits {list(logits.shape)}; {last}.")
    return path


def gives_logits(model, image_shape: tuple[int, int, int]) -> bool:
    """Whether the logits are the outputs of the last dense layer, but for a number added to all of an image.

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
        jax.eval_shape(forward, key, _image(image_shape))
        if same[0]:
            return True
        logits, outputs = jax.jit(lambda *args: forward(*args))(key, jax.random.uniform(key, (1, *image_shape)))
    except jax.errors.UnexpectedTracerError:  # a layer inside a function that is traced on its own
        return True
    logits, outputs = (np.asarray(one, np.float64) for one in (logits, outputs))
    logits, outputs = (one - one.mean(axis=-1, keepdims=True) for one in (logits, outputs))
    return bool(np.allclose(logits, outputs, rtol=1e-3, atol=1e-3 * np.abs(outputs).max()))


def _linen_like(model) -> Any:
    """A Linen module as it is, an NNX module behind the same two methods."""
    if isinstance(model, nn.Module):
        return model
    from jaxleak.nnx_model import from_nnx  # importing NNX takes long

    module = from_nnx(model)
    if module.build is None:
        warnings.warn(
            "Every network drawn from this NNX module has the same weights, its own; "
            "give a function of `rngs` that makes it, such as its class, to draw others.",
            stacklevel=3,
        )
    return module


def _image(shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape), jnp.zeros(()).dtype)


def _init(module, image_shape, arguments) -> Mapping[str, PyTree]:
    return nn.unbox(module.init(jax.random.key(0), jnp.zeros((1, *image_shape)), **arguments))


def _state(module, image_shape, arguments) -> Mapping[str, PyTree]:
    """The collections of a new model but `params`."""
    variables = jax.jit(lambda: {k: v for k, v in _init(module, image_shape, arguments).items() if k != "params"})()
    return jax.tree.map(np.asarray, variables)


def _arguments(module, image_shape, given: dict[str, Any], classes: int | str) -> dict[str, Any]:
    """With which arguments the model gives logits, of so many classes or of any number "k".

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
            got = "no array" if shape is None else list(shape)
            raise InputError(f"`model` must give class logits, [1, {classes}] for one image; got {got}.")
        return arguments
    raise InputError(
        f"`model` must run on images of shape {'x'.join(map(str, image_shape))} as model.apply(variables, x), or with "
        f"{_listed(evaluation or EVALUATION)}; it raised {type(failed).__name__}: {_first_line(failed)}"
    ) from failed


def _output_shape(module, image_shape, arguments) -> tuple[int, ...] | None:
    def output(x):
        variables = module.init(jax.random.key(0), x, **arguments)
        return module.apply(variables, x, **arguments, mutable=sorted(set(variables) - {"params"}))[0]

    return getattr(jax.eval_shape(output, _image(image_shape)), "shape", None)


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def _first_line(error: Exception | None) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _complete(module, image_shape: tuple[int, int, int], params: PyTree) -> bool:
    """Whether the model needs neither other variables nor other arguments nor faster layers."""
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
            jax.eval_shape(lambda params, x: module.apply({"params": params}, x), params, _image(image_shape))
    except (TypeError, ValueError, AttributeError, flax.errors.FlaxError):
        return False
    return not slow
