"""Weights in and out as safetensors, in torch's names and layout."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxleak.errors import InputError, check_file

Params = dict[str, Any]
Variables = dict[str, dict[str, Any]]
Readers = dict[tuple[str, ...], tuple[int, int, int]]

# Linen's name of a tensor -> torch's.
TENSOR_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "negative_slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
COUNTER = "num_batches_tracked"  # of torch's BatchNorm: its files have it, nothing here uses it
LISTED = 10  # problems named in a message


class Expected(NamedTuple):
    """A tensor of the model: where it lies in the variables, and its shape there and in torch."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    torch_shape: tuple[int, ...]


class WithStatistics:
    """A model with its running statistics filled in, so that it is called with parameters alone."""

    def __init__(self, model: Any, batch_stats: Params):
        """`batch_stats`: the collection of that name."""
        self.model, self.batch_stats = model, batch_stats

    def path_in_params(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Path in `params` of what the model has at `path`: see `own.AdaptedModel`."""
        renamed = getattr(self.model, "path_in_params", None)
        return renamed(path) if renamed else path

    def apply(self, variables: Variables, x: Any) -> Any:
        """The model's outputs; the statistics in the precision jax is set to."""
        statistics = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), self.batch_stats)
        return self.model.apply({**variables, "batch_stats": statistics}, x)


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
    readers = _flattened(model, image_shape)
    return {
        _torch_name(model, path): np.asarray(_torch_layout(readers, path, np.asarray(tensor)), order="C")
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


def variables_from_torch(model, state: dict[str, np.ndarray], image_shape: tuple[int, int, int]) -> Variables:
    """A Linen model's collections from a torch state dict: "params", and "batch_stats" where it has statistics.

    Running statistics for a model in train mode are not used, and neither are torch's counters of batches.

    Raises:
        InputError: a tensor is missing, extra, not finite, or of another shape than the model's.
    """
    needed = _expected(model, image_shape)
    _check_fit("weights", model, state, image_shape, needed, _known(model, state, image_shape, needed))
    _check_finite("weights", state, needed)
    return _collections(model, state, image_shape, needed)


def update_from_torch(model, state: dict[str, np.ndarray], image_shape: tuple[int, int, int]) -> Params:
    """A gradient, or a difference of weights, as a tree like the model's parameters.

    Running statistics among the tensors, as in the difference of two state dicts, are not used. Tensors that are
    missing, as of layers that were not trained, are zero.

    Raises:
        InputError: a tensor is extra, not finite, or of another shape than the model's parameters; or none is there.
    """
    expected = _expected(model, image_shape)
    needed = {name: tensor for name, tensor in expected.items() if tensor.path[0] == "params"}
    known = expected | _known(model, state, image_shape, needed)
    foreign = {name for name in state if name.removesuffix(COUNTER) == name} - known.keys()
    if needed.keys() & state.keys() and not foreign:
        blanks = {name: np.zeros(tensor.torch_shape, np.float32) for name, tensor in needed.items()}
        state = {**blanks, **state}
    _check_fit("update", model, state, image_shape, needed, known)
    _check_finite("update", state, needed)
    return _collections(model, state, image_shape, needed)["params"]


def _check_finite(what: str, state, needed: dict[str, Expected]) -> None:
    broken = [name for name in needed if not np.isfinite(state[name]).all()]
    if broken:
        raise InputError(f"`{what}` must be finite; {', '.join(broken[:LISTED])} is not.")


def _known(model, state, image_shape, needed: dict[str, Expected]) -> dict[str, Expected]:
    """The tensors a file may have: of a model in train mode running statistics too."""
    if state.keys() - needed and getattr(model, "train", False):
        return needed | _expected(model.clone(train=False), image_shape)
    return needed


def _collections(model, state, image_shape, needed: dict[str, Expected]) -> Variables:
    tensors, readers = {}, _flattened(model, image_shape)
    for name, (path, shape, torch_shape) in needed.items():
        tensor = state[name]
        if path in readers:
            # Linen flattens NHWC, torch NCHW: the layer's inputs come in another order.
            h, w, c = readers[path]
            tensor = tensor.reshape(torch_shape[0], c, h, w)
        tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
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


def _torch_layout(readers: Readers, path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    """A tensor as torch lays it out; `readers`: see `_flattened`."""
    if path in readers:
        tensor = tensor.reshape(*readers[path], -1)
        return tensor.transpose(3, 2, 0, 1).reshape(tensor.shape[-1], -1)
    if tensor.ndim == 0:
        return tensor[None]  # a PReLU's slope
    return tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T


def _expected(model, image_shape: tuple[int, int, int]) -> dict[str, Expected]:
    """The model's tensors by torch's name."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    template: dict[tuple[str, ...], Any] = flatten_dict(variables)  # pyright: ignore[reportAssignmentType]
    expected, readers = {}, _flattened(model, image_shape)
    for path, leaf in template.items():
        blank = np.broadcast_to(np.float32(0), leaf.shape)
        torch_shape = _torch_layout(readers, path, blank).shape
        expected[_torch_name(model, path)] = Expected(path, leaf.shape, torch_shape)
    return expected


def _check_fit(what: str, model, state, image_shape, needed: dict[str, Expected], known: dict[str, Expected]) -> None:
    problems = [f"missing {name}" for name in needed if name not in state]
    for name, tensor in state.items():
        statistic = name.removesuffix(COUNTER) + TENSOR_NAMES["mean"] if name.endswith(COUNTER) else name
        if statistic not in known:
            problems.append(f"unknown {name}")
        elif statistic == name and tensor.shape != known[name].torch_shape:
            problems.append(f"{name} is {list(tensor.shape)}, not {list(known[name].torch_shape)}")
    if len(problems) > LISTED:
        problems = [*problems[:LISTED], f"and {len(problems) - LISTED} more"]
    if problems:
        raise InputError(
            f"`{what}` do{'es' if what == 'update' else ''} not fit {_name(model)}{_classes(model)} on "
            f"{'x'.join(map(str, image_shape))} images: {'; '.join(problems)}."
        )


def _name(model) -> str:
    return type(getattr(model, "module", model)).__name__


def _classes(model) -> str:
    return f" with {model.num_classes} classes" if hasattr(model, "num_classes") else ""


def load_weights(path: str | Path, model, image_shape: tuple[int, int, int]) -> Params:
    """Parameters from a safetensors file in torch's names and layout.

    Raises:
        InputError: no such file, not a safetensors file, tensors that do not fit the model, or a model that has
            running statistics too (`load_variables` reads both); or `check_layout`.
    """
    check_layout(model, image_shape)
    return from_torch(model, read_tensors(path), image_shape)


def load_variables(path: str | Path, model, image_shape: tuple[int, int, int]) -> Variables:
    """Collections for `model.apply` from a safetensors file in torch's names and layout: see `variables_from_torch`.

    Raises:
        InputError: no such file, not a safetensors file, or tensors that do not fit the model; or `check_layout`.
    """
    check_layout(model, image_shape)
    return variables_from_torch(model, read_tensors(path), image_shape)


def read_tensors(path: str | Path, what: str = "weights") -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        InputError: no such file, or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    check_file(what, path, "a safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise InputError(f"`{what}` must be a safetensors file; {str(path)!r} cannot be read: {error}.") from error


def save_weights(
    path: str | Path, model, params: Params, image_shape: tuple[int, int, int], batch_stats: Params | None = None
) -> None:
    """Write parameters, and running statistics if given, as safetensors in torch's names and layout.

    `load_weights` or `load_variables` reads them back.

    Raises:
        InputError: as `check_layout`.
    """
    from safetensors.numpy import save_file

    check_layout(model, image_shape)
    save_file(to_torch(model, params, image_shape, batch_stats), path)
