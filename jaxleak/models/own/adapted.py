"""The adapted model: a model of one's own with the methods that jaxleak uses."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from jaxleak.models.describe import description
from jaxleak.models.own.flatten import flattened_readers
from jaxleak.models.own.layers import faster

Path = tuple[str, ...]

# What a model may say of itself, for files in torch's names and layout (`models.weights`).
TOLD = ("torch_names", "num_classes")


@dataclass(frozen=True, eq=False, repr=False)
class AdaptedModel:
    """A model with the two methods of a Linen module that jaxleak uses, `init` and `apply`.

    Two are equal if their models are and they are called alike.

    Attributes:
        module: the model.
        head: path of the layer in its `params` that is presented as "head".
        arguments: further arguments of its `__call__`, names and values.
        state: its collections but `params`, such as `batch_stats`, where `apply` is given none.
        tied: pairs of paths in `params` as `init` gives them: one that is left out, and the one that stands for both.
    """

    module: Any
    head: Path
    arguments: tuple[tuple[str, Any], ...] = ()
    state: Mapping[str, PyTree] = field(default_factory=dict)
    tied: tuple[tuple[Path, Path], ...] = ()

    def init(self, key, x: Float[Array, "b h w c"]) -> dict[str, PyTree]:
        """Variables drawn by the model's own initialisation, with the head under its name."""
        variables = nn.unbox(self.module.init(key, x, **dict(self.arguments)))
        return {**variables, "params": self.to_params(variables["params"])}

    def apply(self, variables: Mapping[str, PyTree], x: Float[Array, "b h w c"], **arguments) -> Float[Array, "b k"]:
        """Class logits; what the model would change in its other collections is dropped."""
        variables = {**self.state, **variables, "params": self.to_own(variables["params"])}
        with nn.intercept_methods(faster):
            logits, _ = self.module.apply(
                variables, x, **{**dict(self.arguments), **arguments}, mutable=sorted(set(variables) - {"params"})
            )
        return logits

    def to_params(self, own: PyTree) -> PyTree:
        """The model's own tree of parameters with the head as "head", each tied one once."""
        renamed = {self.path_in_params(path): leaf for path, leaf in flatten_dict(own).items()}
        left_out = [path for path, _ in self.tied]
        return unflatten_dict({path: leaf for path, leaf in renamed.items() if path not in left_out})

    def to_own(self, params: PyTree) -> PyTree:
        """The inverse of `to_params`."""
        leaves: dict[Any, Any] = flatten_dict(params)  # pyright: ignore[reportAssignmentType]
        for path, kept in self.tied:
            turned = (path[-1] == "kernel") != (kept[-1] == "kernel")  # as of an embedding, which is no kernel
            leaves[path] = leaves[kept].T if turned else leaves[kept]
        return unflatten_dict({self.own_path(path): leaf for path, leaf in leaves.items()})

    def path_in_params(self, path: Path) -> Path:
        """Path in the tree with "head" of what the model has at `path`; another "head" becomes "head_"."""
        if self.head and path[: len(self.head)] == self.head:
            return ("head", *path[len(self.head) :])
        return (f"{path[0]}_", *path[1:]) if path and self._named_head(path[0]) else path

    def own_path(self, path: Path) -> Path:
        """The inverse of `path_in_params`."""
        if self.head and path[0] == "head":
            return (*self.head, *path[1:])
        return (path[0][:-1], *path[1:]) if self._named_head(path[0][:-1]) else path

    def _named_head(self, name: str) -> bool:
        """True for "head", "head_" and so on, where another layer is presented as "head"."""
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
        readers = flattened_readers(
            lambda params, x, others: self._stock({**self.state, **others, "params": params}, x),
            params,
            image,
            variables,
        )
        return {"/".join(self.path_in_params(path[:-1])): shape for path, shape in readers.items()}

    def general_layers(self, image_shape: tuple[int, int, int]) -> dict[Path, int]:
        """The dense layers over several axes, by path in `params`, and how many axes of the kernel are inputs."""
        if not isinstance(self.module, nn.Module):
            return {self.path_in_params(path): count for path, count in self.module.general_layers().items()}
        found: dict[Path, int] = {}

        def note(call, args, kwargs, context):
            layer = context.module
            if isinstance(layer, nn.DenseGeneral) and context.method_name == "__call__":
                axes = layer.axis if isinstance(layer.axis, tuple | list) else (layer.axis,)
                found[self.path_in_params(layer.path)] = len(axes)
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            self._variables(image_shape)
        return found

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

    def own_params(self, image_shape: tuple[int, int, int]) -> PyTree:
        """Shapes and types of the model's own parameters."""
        return self._variables(image_shape)[1]["params"]

    def init_shapes(self, image_shape: tuple[int, int, int]) -> PyTree:
        """Shapes and types of the parameters that `init` draws."""
        return self.to_params(self.own_params(image_shape))

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
        parts += [f"{'/'.join(path)}={'/'.join(kept)}" for path, kept in self.tied]
        parts += [f"state=sha256:{_digest(self.state)}"] if self.state else []
        return f"AdaptedModel({', '.join(parts)})"


def _digest(tree: PyTree) -> str:
    content = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        content.update(f"{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return content.hexdigest()[:12]
