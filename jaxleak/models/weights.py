"""Weights in and out in torch's names and layout: kernels are transposed, all other parameters are as they are."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxleak.errors import InputError
from jaxleak.models.files import Stored, read_tensors
from jaxleak.models.files.flax_trees import is_linen
from jaxleak.models.files.kinds import listed
from jaxleak.models.files.names import COUNTER, UNNAMED, advice, fit_names, from_linen, without_aliases

Params = dict[str, Any]
Variables = dict[str, dict[str, Any]]
Readers = dict[tuple[str, ...], tuple[int, int, int]]

# Linen's name of a tensor -> torch's.
TENSOR_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "negative_slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
LISTED = 10  # problems named in a message


class Expected(NamedTuple):
    """A tensor of the model: where it lies in the variables, and its shape there and in torch."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    torch_shape: tuple[int, ...]


class Layout(NamedTuple):
    """Which of a model's kernels are not as in torch but for the order of their axes.

    Attributes:
        readers: see `_flattened`.
        general: of dense layers over several axes, as in attention, how many of the kernel's axes are inputs.
        reversed: True for files written when every tensor was transposed.
    """

    readers: Readers
    general: dict[tuple[str, ...], int]
    reversed: bool = False

    def torch_axes(self, path: tuple[str, ...], axes: int) -> tuple[int, ...]:
        """The order of a tensor's axes in torch: outputs, inputs, space."""
        if self.reversed:
            return (3, 2, 0, 1) if axes == 4 else tuple(reversed(range(axes)))
        if path[-1] != "kernel" or axes < 2:
            return tuple(range(axes))
        return (axes - 1, axes - 2, *range(axes - 2))


class WithVariables:
    """A model with other variables than its parameters filled in, so that it is called with parameters alone."""

    def __init__(self, model: Any, variables: Variables):
        """`variables`: their collections by name."""
        self.model, self.variables = model, variables
        self.tied = getattr(model, "tied", ())  # see `own.AdaptedModel`

    def path_in_params(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Path in `params` of what the model has at `path`: see `own.AdaptedModel`."""
        renamed = getattr(self.model, "path_in_params", None)
        return renamed(path) if renamed else path

    def apply(self, variables: Variables, x: Any) -> Any:
        """The model's outputs; the variables filled in are in the precision jax is set to."""
        filled = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), self.variables)
        return self.model.apply({**variables, **filled}, x)


class WithStatistics(WithVariables):
    """A model with its running statistics filled in.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxleak.models import ConvNet, WithStatistics
        >>> model = ConvNet(num_classes=10, width=8, train=False)
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 9, 9, 1)))
        >>> with_them = WithStatistics(model, variables["batch_stats"])
        >>> jax.eval_shape(with_them.apply, {"params": variables["params"]}, jnp.zeros((2, 9, 9, 1))).shape
        (2, 10)
    """

    def __init__(self, model: Any, batch_stats: Params):
        """`batch_stats`: the collection of that name."""
        super().__init__(model, {"batch_stats": batch_stats})


def to_torch(
    model, params: Params, image_shape: tuple[int, int, int], batch_stats: Params | None = None
) -> dict[str, np.ndarray]:
    """A Linen model's parameters as a torch state dict: kernels OIHW, dense weights [out, in] in NCHW flatten order.

    Args:
        model: a model with `torch_names` (pairs of a Linen module's name and torch's, where they differ) and
            `head_input_shape`, or, if another layer than the head reads what is flattened, `flattened`.
        params: its `params` collection.
        image_shape: height, width, channels of its input.
        batch_stats: its running statistics, if they are to be among the tensors.
    """
    tensors = flatten_dict({"params": params, "batch_stats": batch_stats or {}})
    layout = _layout(model, image_shape)
    return {
        _torch_name(model, path): np.asarray(_torch_layout(layout, path, np.asarray(tensor)), order="C")
        for path, tensor in tensors.items()
    }


def from_torch(model, state: dict[str, np.ndarray], image_shape: tuple[int, int, int]) -> Params:
    """The inverse of `to_torch`, for a model without running statistics.

    Raises:
        InputError: a tensor is missing, extra, or of another shape than the model's; or the model has statistics too.
    """
    variables = variables_from_torch(model, state, image_shape)
    if set(variables) != {"params"}:
        raise InputError(
            f"`weights` of {type(model).__name__} with train=False include running statistics; "
            "read them with `load_variables`, or build the model with train=True."
        )
    return variables["params"]


def variables_from_torch(
    model, state: dict[str, np.ndarray], image_shape: tuple[int, int, int], *, all_reversed: bool = False
) -> Variables:
    """A Linen model's collections from a torch state dict: "params", and "batch_stats" where it has statistics.

    Running statistics for a model in train mode are not used, and neither are torch's counters of batches.

    Args:
        model: see `to_torch`.
        state: tensors by name.
        image_shape: height, width, channels of its input.
        all_reversed: the tensors are laid out as jaxleak once did, when it transposed those that are no kernels too.

    Raises:
        InputError: a tensor is missing, extra, not finite, or of another shape than the model's.
    """
    layout = _layout(model, image_shape, all_reversed)
    needed = _expected(model, image_shape, layout)
    _check_fit("weights", model, state, image_shape, needed, _known(model, image_shape, needed))
    _check_numbers("weights", state, needed)
    return _collections(layout, state, needed)


def known_names(model, image_shape: tuple[int, int, int]) -> dict[str, tuple[str, ...]]:
    """The names in torch of the tensors that a file may have, and where the model has them."""
    return {name: path for name, (path, *_) in _known(model, image_shape, _expected(model, image_shape)).items()}


def named_for(
    what: str,
    stored: Stored,
    model,
    image_shape: tuple[int, int, int],
    tied: Sequence[tuple[str, ...]] | None = None,
) -> tuple[dict[str, np.ndarray], list[tuple[str, ...]]]:
    """A file's tensors under the model's names, and those names that are of one tensor.

    Args:
        what: "weights" or "update", for messages.
        stored: the file; its names may have prefixes of wrappers, attention in one tensor, and several names for one.
        model: as `adapt_model` gives it.
        image_shape: height, width, channels of its input.
        tied: names of one tensor, where other weights have told them.

    Raises:
        InputError: a file without names, or names of one tensor for different ones; as `check_layout`.
    """
    if not stored.named:
        raise InputError(f"`{what}` {UNNAMED}")
    known = known_names(model, image_shape)
    here = head_name(model)
    if is_linen(stored.tensors, known):
        stored = _from_linen(what, stored, model, image_shape)
    else:
        check_layout(model, image_shape)
    fitted = fit_names(what, stored, known, (".".join(getattr(model, "head", ())) or here, here))
    single, groups = without_aliases(what, fitted, known, tied)
    return single.tensors, groups


def _from_linen(what: str, stored: Stored, model, image_shape: tuple[int, int, int]) -> Stored:
    layout, own = _layout(model, image_shape), getattr(model, "own_path", lambda path: path)
    known = _known(model, image_shape, _expected(model, image_shape, layout))
    here = {".".join(own(path[1:]) if path[0] == "params" else path[1:]): name for name, (path, *_) in known.items()}
    shapes = {name: known[torch_name].shape for name, torch_name in here.items()}

    def turned(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
        return here[name], _torch_layout(layout, known[here[name]].path, tensor)

    return from_linen(what, stored, shapes, turned)


def update_from_torch(model, state: dict[str, np.ndarray], image_shape: tuple[int, int, int]) -> Params:
    """A gradient, or a difference of weights, as a tree like the model's parameters.

    Running statistics among the tensors, as in the difference of two state dicts, are not used. Tensors that are
    missing, as of layers that were not trained, are zero.

    Raises:
        InputError: a tensor is extra, not finite, or of another shape than the model's parameters; or none is there.
    """
    layout = _layout(model, image_shape)
    expected = _expected(model, image_shape, layout)
    needed = {name: tensor for name, tensor in expected.items() if tensor.path[0] == "params"}
    known = _known(model, image_shape, expected)
    foreign = {name for name in state if not name.endswith(COUNTER)} - known.keys()
    missing = [name for name in needed if name not in state]
    if len(missing) < len(needed) and not foreign:
        blanks = {name: np.zeros(needed[name].torch_shape, np.float32) for name in missing}
        state = {**blanks, **state}
    _check_fit("update", model, state, image_shape, needed, known)
    _check_numbers("update", state, needed)
    if missing:
        warnings.warn(
            f"`update` has {len(needed) - len(missing)} of the model's {len(needed)} tensors; {listed(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} taken as zero and left out of the comparison",
            stacklevel=2,
        )
    return _collections(layout, state, needed)["params"]


def _check_numbers(what: str, state, needed: dict[str, Expected]) -> None:
    strange = [f"{name} is {state[name].dtype}" for name in needed if state[name].dtype.kind != "f"]
    if strange:
        cure = " Give them as the server computes with them, dequantised." if what == "update" else ""
        raise InputError(f"`{what}` must be floats; {listed(strange)}.{cure}")
    broken = [name for name in needed if not np.isfinite(state[name]).all()]
    if broken:
        raise InputError(f"`{what}` must be finite; {', '.join(broken[:LISTED])} is not.")


def _known(model, image_shape, needed: dict[str, Expected]) -> dict[str, Expected]:
    """The tensors a file may have: of a model in train mode running statistics too."""
    return needed | (_expected(model.clone(train=False), image_shape) if getattr(model, "train", False) else {})


def _collections(layout: Layout, state, needed: dict[str, Expected]) -> Variables:
    tensors = {}
    for name, (path, shape, torch_shape) in needed.items():
        tensor = state[name]
        if path in layout.readers:
            # Linen flattens NHWC, torch NCHW: the layer's inputs come in another order.
            h, w, c = layout.readers[path]
            tensor = tensor.reshape(torch_shape[0], c, h, w).transpose(2, 3, 1, 0)
        elif path in layout.general and path[-1] == "kernel":
            tensor = tensor.T
        else:
            tensor = tensor.transpose(np.argsort(layout.torch_axes(path, tensor.ndim)))
        tensors[path] = jnp.asarray(tensor.reshape(shape), dtype=float)
    return unflatten_dict(tensors)


def _torch_name(model, path: tuple[str, ...]) -> str:
    """torch's name of the tensor at `path`, which starts with the collection."""
    renamed = dict(getattr(model, "torch_names", ()))
    return ".".join([*(renamed.get(module, module) for module in path[1:-1]), TENSOR_NAMES.get(path[-1], path[-1])])


def _flattened(model, image_shape: tuple[int, int, int]) -> Readers:
    """The kernels that read a flattened image or map of features, and that one's height, width and channels."""
    if hasattr(model, "flattened"):
        flattened = model.flattened(image_shape)
        layers = flattened if isinstance(flattened, dict) else dict([flattened])
    elif hasattr(model, "head_input_shape"):
        layers = {"head": model.head_input_shape(image_shape)}
    else:
        layers = {}  # dense layers are as in torch but for the transpose
    return {("params", *layer.split("/"), "kernel"): shape for layer, shape in layers.items() if shape}


def check_layout(model, image_shape: tuple[int, int, int]) -> None:
    """Raise unless files in torch's layout mean the same to the model.

    Raises:
        InputError: a model of one's own, with a layer for which that cannot be told.
    """
    unlike = getattr(model, "unlike_torch", lambda shape: [])(image_shape)
    if unlike:
        raise InputError(
            f"`model` has layers whose weights in torch's layout cannot be told: {', '.join(unlike[:LISTED])}. "
            "Let a dense layer read one map, by x.reshape(len(x), -1) in NHWC or NCHW right before it, and build "
            "ConvTranspose with transpose_kernel=True."
        )


def _layout(model, image_shape: tuple[int, int, int], all_reversed: bool = False) -> Layout:
    general = {} if all_reversed else getattr(model, "general_layers", lambda shape: {})(image_shape)
    axes = {("params", *path, kind): count for path, count in general.items() for kind in ("kernel", "bias")}
    return Layout(_flattened(model, image_shape), axes, all_reversed)


def _torch_layout(layout: Layout, path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    """A tensor as torch lays it out."""
    if path in layout.readers:
        tensor = tensor.reshape(*layout.readers[path], -1)
        return tensor.transpose(3, 2, 0, 1).reshape(tensor.shape[-1], -1)
    if path in layout.general:
        inputs = math.prod(tensor.shape[: layout.general[path]])
        return tensor.reshape(inputs, -1).T if path[-1] == "kernel" else tensor.reshape(-1)
    if tensor.ndim == 0 and (layout.reversed or path[-1] == "negative_slope"):
        return tensor[None]  # a PReLU's slope
    return tensor.transpose(layout.torch_axes(path, tensor.ndim))


def _expected(model, image_shape: tuple[int, int, int], layout: Layout | None = None) -> dict[str, Expected]:
    """The model's tensors by torch's name."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    template: dict[tuple[str, ...], Any] = flatten_dict(variables)  # pyright: ignore[reportAssignmentType]
    expected, layout = {}, layout or _layout(model, image_shape)
    for path, leaf in template.items():
        blank = np.broadcast_to(np.float32(0), leaf.shape)
        torch_shape = _torch_layout(layout, path, blank).shape
        expected[_torch_name(model, path)] = Expected(path, leaf.shape, torch_shape)
    return expected


def _check_fit(what: str, model, state, image_shape, needed: dict[str, Expected], known: dict[str, Expected]) -> None:
    problems = [f"missing {name}" for name in needed if name not in state]
    shapes = {name: tensor.torch_shape for name, tensor in needed.items()}
    for name, tensor in state.items():
        statistic = name.removesuffix(COUNTER) + TENSOR_NAMES["mean"] if name.endswith(COUNTER) else name
        if statistic not in known:
            problems.append(f"unknown {name}")
        elif statistic == name and tensor.shape != known[name].torch_shape:
            problems.append(f"{name} is {list(tensor.shape)}, not {list(known[name].torch_shape)}")
    if len(problems) > LISTED:
        problems = [*problems[:LISTED], f"and {len(problems) - LISTED} more"]
    if problems:
        cure = advice(what, state, shapes, image_shape)
        raise InputError(
            f"`{what}` do{'es' if what == 'update' else ''} not fit {_name(model)}{_classes(model)} on "
            f"{'x'.join(map(str, image_shape))} images: {'; '.join(problems)}.{cure}"
        )


def head_name(model) -> str:
    """Name of the model's head in torch."""
    return dict(getattr(model, "torch_names", ())).get("head", "head")


def _name(model) -> str:
    return type(getattr(model, "module", model)).__name__


def _classes(model) -> str:
    return f" with {model.num_classes} classes" if hasattr(model, "num_classes") else ""


def load_weights(path: str | Path, model, image_shape: tuple[int, int, int]) -> Params:
    """Parameters from a file in torch's names and layout: see `load_variables`.

    Raises:
        InputError: as `load_variables`, or a model that has running statistics too (`load_variables` reads both).

    Example:
        >>> import jax
        >>> import jaxleak
        >>> model = jaxleak.build_model("mlp", 10, hidden=(16,))
        >>> drawn = jaxleak.draw_params(model, jax.random.key(0), (8, 8, 1))
        >>> jaxleak.save_weights("weights.safetensors", model, drawn, (8, 8, 1))
        >>> jaxleak.load_weights("weights.safetensors", model, (8, 8, 1))["dense1"]["kernel"].shape
        (64, 16)
    """
    model = _as_own(model, image_shape)
    return from_torch(model, _named_file(path, model, image_shape), image_shape)


def load_variables(path: str | Path, model, image_shape: tuple[int, int, int]) -> Variables:
    """Collections for `model.apply` from a file in torch's names and layout: see `variables_from_torch`.

    Args:
        path: a safetensors file, an `.npz`, or what `torch.save` wrote, of which nothing is run; see `read_tensors`.
        model: see `to_torch`; or a module of one's own.
        image_shape: height, width, channels of its input.

    Raises:
        InputError: no such file, not such a file, or tensors that do not fit the model; or `check_layout`.
    """
    model = _as_own(model, image_shape)
    return variables_from_torch(model, _named_file(path, model, image_shape), image_shape)


def _as_own(model, image_shape: tuple[int, int, int]) -> Any:
    """A module of one's own as one that says its layout, its parameters as they are; others as they are."""
    if type(model).__module__.startswith("jaxleak.models."):
        return model
    from jaxleak.models.own.adapt import with_head

    return replace(with_head(model, image_shape), head=())


def _named_file(path: str | Path, model, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    return named_for("weights", read_tensors(path), model, image_shape)[0]


def save_weights(
    path: str | Path, model, params: Params, image_shape: tuple[int, int, int], batch_stats: Params | None = None
) -> None:
    """Write parameters, and running statistics if given, as safetensors in torch's names and layout.

    `load_weights` or `load_variables` reads them back.

    Raises:
        InputError: as `check_layout`.

    Example:
        >>> import jax
        >>> import jaxleak
        >>> model = jaxleak.build_model("mlp", 10, hidden=(16,))
        >>> params = jaxleak.draw_params(model, jax.random.key(0), (8, 8, 1))
        >>> jaxleak.save_weights("weights.safetensors", model, params, (8, 8, 1))
        >>> from safetensors.numpy import load_file
        >>> load_file("weights.safetensors")["0.weight"].shape  # as a torch Sequential has it
        (16, 64)
    """
    from safetensors.numpy import save_file

    model = _as_own(model, image_shape)
    check_layout(model, image_shape)
    save_file(to_torch(model, params, image_shape, batch_stats), path)
