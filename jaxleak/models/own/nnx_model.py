"""A module of Flax NNX behind the two methods of a Linen module that jaxleak uses, `init` and `apply`."""

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from flax.core import bind
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxleak.errors import InputError
from jaxleak.kernels.conv import fast_conv
from jaxleak.kernels.dense import blocked_dot_general
from jaxleak.models.own.traced import with_fast_convolutions

OTHERS = {"torch": "PyTorch", "equinox": "Equinox", "haiku": "Haiku", "keras": "Keras", "tensorflow": "TensorFlow"}
COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


def from_nnx(model: Any) -> "NNXModel":
    """An NNX module, or a function of `rngs` that makes one, as an object with `init` and `apply`.

    Raises:
        InputError: it is neither.
    """
    module: Any = model
    _check_library(model)
    if not isinstance(model, nnx.Module) and callable(model):
        try:
            module = model(rngs=nnx.Rngs(0))
        except Exception as error:  # whatever the function raises
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"`model` must make an NNX module from `rngs` alone; it raised {reason}") from error
    if not isinstance(module, nnx.Module):
        raise InputError(
            f"`model` must be a module of Flax Linen or NNX, or a function of `rngs` that makes an NNX module; "
            f"got {type(module).__name__}."
        )
    build: Any = None if isinstance(model, nnx.Module) else model
    return NNXModel(build, module)


def _check_library(model: Any) -> None:
    """Raise for a model of another library, and for Linen's class in place of a module.

    Raises:
        InputError: as above.
    """
    kind = model if isinstance(model, type) else type(model)
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InputError(f"`model` must be a Linen module, not its class; give {model.__name__}(...).")
    bases = {base.__module__.partition(".")[0] for base in kind.__mro__}
    library = next((OTHERS[name] for name in OTHERS if name in bases), "")
    if library:
        raise InputError(
            f"`model` is {library}'s {kind.__name__}; write the same network in Flax, each layer under the name that "
            "its weights have in the file."
        )


class NNXModel:
    """An NNX module in evaluation mode as a function of its variables.

    Variables are nested dicts of arrays by the names of attributes; places in a list are "0", "1" and so on. Stock
    layers are made fast on the copy that `apply` puts together; the module itself is left alone. A `Linear` computes
    as a dense layer of Linen at the same path, so that Linen's interceptors see it.

    Attributes:
        build: a function of `rngs` that makes the module; None: `init` gives the weights of `module`.
        module: the module.
    """

    def __init__(self, build: Callable[..., nnx.Module] | None, module: nnx.Module):
        self.build, self.module = build, module
        self._graph, self._rest, states = _split(module)
        self._structures = {name: jax.tree.structure(state) for name, state in states.items()}
        self._paths = {name: _paths(state) for name, state in states.items()}

    @property
    def call(self) -> Callable:
        """The module's own `__call__`."""
        return type(self.module).__call__

    def init(self, key, x: Float[Array, "b h w c"], **arguments) -> dict[str, PyTree]:
        """Variables of a new module, where there is a function that makes one."""
        states = _split(self.build(rngs=nnx.Rngs(key)) if self.build else self.module)[2]
        leaves = {name: dict(zip(self._paths[name], jax.tree.leaves(states[name]), strict=True)) for name in states}
        return {name: unflatten_dict(flat) for name, flat in leaves.items() if flat}

    def apply(self, variables: Mapping[str, PyTree], x: Float[Array, "b h w c"], *, mutable: Any = False, **arguments):
        """The module's outputs; with `mutable`, as in Linen, a pair whose second part is empty here."""
        module = self._with(variables)
        for path, layer in list(nnx.iter_graph(module)):
            _make_fast(layer, tuple(map(str, path)))
        output = module(x, **arguments)
        return output if mutable is False else (output, {})

    def apply_stock(self, variables: Mapping[str, PyTree], x: Float[Array, "b h w c"], **arguments) -> Any:
        """The module's outputs with its own layers."""
        return self._with(variables)(x, **arguments)

    def backward_kernels(self) -> list[str]:
        """Its transposed convolutions whose kernels are not laid out as torch's."""
        layers = ((path, layer) for path, layer in nnx.iter_graph(self.module))
        kind = nnx.ConvTranspose
        return [
            "/".join(map(str, path)) for path, layer in layers if isinstance(layer, kind) and not layer.transpose_kernel
        ]

    def general_layers(self) -> dict[tuple[str, ...], int]:
        """Its dense layers over several axes, and how many axes of the kernel are inputs."""
        layers = ((path, layer) for path, layer in nnx.iter_graph(self.module))
        return {
            tuple(map(str, path)): len(layer.in_features)
            for path, layer in layers
            if isinstance(layer, nnx.LinearGeneral)
        }

    def _with(self, variables: Mapping[str, PyTree]) -> Any:
        states = [self._state(name, variables.get(name, {})) for name in COLLECTIONS]
        return nnx.merge(self._graph, *states, self._rest)

    def _state(self, name: str, tree: PyTree) -> Any:
        flat = flatten_dict(tree)
        return self._structures[name].unflatten([flat[path] for path in self._paths[name]])

    def __eq__(self, other) -> bool:
        same = isinstance(other, NNXModel) and self.build == other.build and self._graph == other._graph
        return same and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        """The module's type, a digest of its structure, and of its weights where they are the only ones."""
        content = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(self._graph)).encode())
        if self.build is None:
            for leaf in jax.tree.leaves(_split(self.module)[2]):
                content.update(np.asarray(leaf).tobytes())
        return f"{type(self.module).__name__}(nnx sha256:{content.hexdigest()[:12]})"


def _split(module: nnx.Module) -> tuple[Any, Any, dict[str, Any]]:
    """Structure, what is no variable of a network (random keys), and the variables by collection."""
    copy = nnx.clone(module)
    copy.eval()
    graph, *states, rest = nnx.split(copy, *COLLECTIONS.values(), ...)
    return graph, rest, dict(zip(COLLECTIONS, states, strict=True))


def _paths(state: Any) -> list[tuple[str, ...]]:
    """Path of each leaf, by the names of attributes."""
    paths = (path for path, _ in jax.tree.leaves_with_path(state))
    return [tuple(str(step.key) for step in path if isinstance(step, jax.tree_util.DictKey)) for path in paths]


def _make_fast(layer: Any, path: tuple[str, ...]) -> None:
    """Give a stock layer jaxleak's product, in place."""
    if isinstance(layer, nnx.Conv) and layer.conv_general_dilated is lax.conv_general_dilated:
        layer.conv_general_dilated = fast_conv
    elif isinstance(layer, nnx.Linear) and layer.dot_general is lax.dot_general:
        layer.dot_general = partial(_linen_dense, path)
    elif type(layer) is nnx.ConvTranspose:
        layer.__class__ = _FastConvTranspose


class _FastConvTranspose(nnx.ConvTranspose):
    """One whose `lax.conv_transpose` is replaced."""

    def __call__(self, inputs):
        return with_fast_convolutions(super().__call__)(inputs)


def _linen_dense(path: tuple[str, ...], inputs, kernel, dimension_numbers, precision=None, **_) -> Array:
    """inputs [..., i] times kernel [i, k], by a Linen layer that has the kernel and is at `path`."""
    root = bind({"params": unflatten_dict({(*path, "kernel"): kernel})})
    scope: Any = reduce(lambda scope, name: scope.push(name), path, root)
    layer = nn.Dense(
        kernel.shape[1], use_bias=False, precision=precision, dot_general=blocked_dot_general, parent=scope
    )
    return layer(inputs)
