"""Names and tensors of a PyTorch file as a model has them."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np

from jaxleak.errors import InputError
from jaxleak.models.files.dialects import translated
from jaxleak.models.files.flax_trees import is_linen, leaf_order, without_collections
from jaxleak.models.files.kinds import listed
from jaxleak.models.files.read import Stored, renamed

# What wraps a module, and puts its name before the names of the module's parts: DataParallel, torch.compile, Opacus,
# FSDP, checkpointing of activations, Lightning and DeepSpeed.
WRAPPERS = (
    *("module", "_orig_mod", "_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"),
)
# Attention in one tensor, as torch's nn.MultiheadAttention and timm have it: its rows are the queries', keys', values'.
FUSED = {
    "in_proj_weight": "weight",
    "in_proj_bias": "bias",
    "qkv.weight": "weight",
    "qkv.bias": "bias",
}
PARTS = ("query", "key", "value")
SINGLE = {
    **{f"{part[0]}_proj{dot}{kind}": f"{part}.{kind}" for part in PARTS for dot in "._" for kind in ("weight", "bias")},
    **{f"{name}.{kind}": f"out.{kind}" for name in ("out_proj", "proj") for kind in ("weight", "bias")},
}
COUNTER = "num_batches_tracked"  # of torch's BatchNorm: its files have it, nothing here uses it
UNNAMED = (
    "must have names, as in a state_dict(); the file is a list of tensors. Save dict(zip(model.state_dict(), LIST)), "
    "where the list has all of them."
)
# How torch's modules name what a weight is computed from.
COMPUTED = ("parametrizations", "weight_g", "weight_v", "weight_orig", "weight_mask")


def fit_names(what: str, stored: Stored, known: Mapping[str, Sequence[str]], head: tuple[str, str]) -> Stored:
    """The tensors of a file under the model's names.

    Prefixes of wrappers, and one that all names share, are left out where the model's names then fit better, which a
    line says. Attention in one tensor is split.

    Args:
        what: "weights" or "update", for messages.
        stored: the file.
        known: names that the model has, and the path of each in its variables.
        head: the head's name in the file and in the model.
    """
    in_file, here = head
    spoken = set(known) | {in_file + name.removeprefix(here) for name in known if name.startswith(f"{here}.")}
    stored = translated(what, without_prefixes(what, stored, spoken), spoken, WRAPPERS)
    names = {}
    if in_file and in_file != here and not any(f"{here}.{kind}" in stored.tensors for kind in ("weight", "bias")):
        start = f"{in_file}."
        names |= {name: f"{here}.{name[len(start) :]}" for name in stored.tensors if name.startswith(start)}
    for name, path in known.items():  # a raw parameter is called as it is, an embedding "weight"
        base = name.rpartition(".")[0]
        others = {f"{base}.{path[-1]}".lstrip("."), f"{base}.weight".lstrip(".")} - set(known)
        if path[-1] in ("scale", "embedding"):
            names |= {other: name for other in others if other in stored.tensors and name not in stored.tensors}
    return _split_attention(renamed(stored, names), known)


def without_prefixes(what: str, stored: Stored, known: Iterable[str]) -> Stored:
    """The tensors without prefixes of wrappers or of all names, where `known` then has more of the names."""
    known, parts = set(known), {name: tuple(name.split(".")) for name in stored.tensors}
    best, left_out, most = None, "", len(known & set(stored.tensors))
    for wrappers in ((), WRAPPERS):
        bare = {name: tuple(part for part in steps if part not in wrappers) for name, steps in parts.items()}
        levels = zip(*(steps[:-1] for steps in bare.values()), strict=False)
        shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
        for depth in range(len(shared) + 1):
            names = {name: ".".join(steps[depth:]) for name, steps in bare.items()}
            fitting = len(known & set(names.values()))
            if fitting > most and len(set(names.values())) == len(names) and all(names.values()):
                inside = {part for steps in parts.values() for part in steps} & set(wrappers)
                said = [*(part for part in wrappers if part in inside), *([".".join(shared[:depth])] if depth else [])]
                best, left_out, most = names, ", ".join(f"{part}." for part in said), fitting
    inner = _inner(what, stored, known, most)
    if inner is not None:
        return inner
    if best is None:
        return stored
    warnings.warn(f"`{what}`: names are read without {left_out}", stacklevel=2)
    return renamed(stored, best)


def _inner(what: str, stored: Stored, known: set[str], most: int) -> Stored | None:
    """The tensors of a module among others, as in a checkpoint of Lightning; None where none has more of the names.

    Raises:
        InputError: several have them, as a network and its average.
    """
    parts = {name: tuple(part for part in name.split(".") if part not in WRAPPERS) for name in stored.tensors}
    inside: dict[tuple[str, ...], dict[str, str]] = {}
    for name, steps in parts.items():
        for depth in range(1, len(steps)):
            inside.setdefault(steps[:depth], {})[name] = ".".join(steps[depth:])
    fitting = {
        prefix: names
        for prefix, names in inside.items()
        if len(known & set(names.values())) > most
        and len(set(names.values())) == len(names)
        and all(name in known or name.endswith(COUNTER) for name in names.values())
    }
    if not fitting:
        return None
    (prefix, names), *others = fitting.items()
    if others:
        prefixes = [".".join(steps) for steps in fitting]
        raise InputError(
            f"`{what}`: the model's names are in each of {listed(prefixes)}; name one after a colon, as in "
            f"FILE:{prefixes[0]}."
        )
    left_out = listed([name for name in stored.tensors if name not in names])
    start = ".".join(prefix)
    warnings.warn(f"`{what}`: names are read without {start}.; {left_out} left out", stacklevel=2)
    return renamed(replace(stored, tensors={name: stored.tensors[name] for name in names}), names)


def _split_attention(stored: Stored, known: Mapping[str, Any]) -> Stored:
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in stored.tensors.items():
        found = {name: tensor}
        for suffix, kind in FUSED.items():
            base = name.removesuffix(suffix)
            targets = [f"{base}{part}.{kind}" for part in PARTS]
            whole = tensor.ndim > 0 and len(tensor) % len(PARTS) == 0
            if base != name and name not in known and whole and set(targets) <= set(known):
                found = dict(zip(targets, np.split(tensor, len(PARTS)), strict=True))
        for suffix, target in SINGLE.items():
            base = name.removesuffix(suffix)
            if base != name and name not in known and base + target in known and base[-1:] in ("", "."):
                found = {base + target: tensor}
        tensors |= found
    return replace(stored, tensors=tensors)


def without_aliases(
    what: str, stored: Stored, known: Iterable[str], tied: Sequence[tuple[str, ...]] | None = None
) -> tuple[Stored, list[tuple[str, ...]]]:
    """The tensors with one name for each that the model has, and names of one tensor.

    A name that the model lacks is left out, or stands for the model's, where the file or `tied` says that both are one
    tensor, or where the numbers of both are the same. Whole numbers that the model lacks are no parameters.

    Args:
        what: "weights" or "update", for messages.
        stored: the file, under the model's names.
        known: names that the model has.
        tied: names of one tensor, where other weights have told them: those of an update are not compared.

    Raises:
        InputError: names of one tensor that the model has once have different numbers.
    """
    known, tensors = set(known), dict(stored.tensors)
    groups = [*stored.tied, *(tied or ())]
    by_content: dict[Any, list[str]] = {}
    if tied is None:
        for name in tensors:
            if tensors[name].size > 1 and np.any(tensors[name] != tensors[name].flat[0]):
                key = tensors[name].shape, tensors[name].tobytes()
                by_content.setdefault(key, []).append(name)
        for (
            names
        ) in by_content.values():  # equal numbers may be those of copies: no two of the model's are tied by them
            mine, others = [name for name in names if name in known], [name for name in names if name not in known]
            groups += [(mine[0], *others)] if mine and others else []
    left_out = []
    for group in groups:
        mine, others = [name for name in group if name in known], [name for name in group if name not in known]
        present = [name for name in group if name in tensors]
        if not mine or not present:
            continue
        first = tensors[present[0]]
        for name in present[1:]:
            if tied is not None and others and not np.array_equal(tensors[name], first):
                raise InputError(
                    f"`{what}` has two tensors, {present[0]} and {name}, that are one in the weights; share one."
                )
        for name in mine:
            tensors.setdefault(name, first)
        left_out += [f"{name} for {mine[0]}" for name in others if tensors.pop(name, None) is not None]
    if left_out:
        warnings.warn(f"`{what}`: names of a tensor that the model has once: {listed(left_out)}", stacklevel=2)
    whole = [name for name in tensors if name not in known and tensors[name].dtype.kind in "iub"]
    buffers = [name for name in whole if not name.endswith(COUNTER)]
    if buffers:
        warnings.warn(f"`{what}`: whole numbers are no parameters and were left out: {listed(buffers)}", stacklevel=2)
    return replace(stored, tensors={name: tensors[name] for name in tensors if name not in buffers}), groups


def advice(
    what: str, state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], image_shape: Sequence[int]
) -> str:
    """How to mend a file that does not fit the model's tensors, where that is known; else nothing.

    Args:
        what: "weights" or "update".
        state: the file's tensors under torch's names.
        shapes: of the tensors that the model needs.
        image_shape: height, width and channels of the model's input.
    """
    height, width, channels = image_shape
    if channels > 4 and (height == 3 or (height == 1 and width == channels)):
        return f" An image's shape is height, width, channels: is it {width} {channels} {height}?"
    missing = [name for name in shapes if name not in state]
    if any(part in COMPUTED for name in state for part in name.split(".")):
        return (
            " The network computes weights from others (weight_norm, spectral_norm, pruning), which is not read: "
            "leave that out (remove_parametrizations, remove_weight_norm, prune.remove) before the step."
        )
    if missing and all(name.endswith(("running_mean", "running_var")) for name in missing):
        return " Save all of state_dict(), which has them; of Flax batch_stats too."
    axes = [(state[name].shape, shape) for name, shape in shapes.items() if name in state]
    if what == "update" and axes and all(there[1:] == shape and len(there) > len(shape) for there, shape in axes):
        return " There is one axis more, as of a gradient for each image: give one of them, or their mean."
    return ""


def from_linen(
    what: str,
    stored: Stored,
    shapes: Mapping[str, Sequence[int]],
    turned: Callable[[str, np.ndarray], tuple[str, np.ndarray]],
) -> Stored:
    """The tensors of a tree of Flax under torch's names and in its layout.

    Args:
        what: "weights" or "update", for messages.
        stored: the file.
        shapes: names of the model in Flax, joined by dots and without collections, and shapes.
        turned: gives the name and the tensor as torch has them.

    Raises:
        InputError: a tensor is of another shape than the model's.
    """
    bare = {name: without_collections(name) for name in stored.tensors}
    stored = without_prefixes(what, renamed(stored, bare), shapes)
    tensors, wrong = {}, []
    for name, tensor in stored.tensors.items():
        fits = name in shapes and tensor.ndim == len(shapes[name])
        try:
            here, there = turned(name, tensor) if fits else (name, tensor)
        except ValueError:  # what the layer reads has another size; the head may have any number of outputs here
            fits = False
        if name in shapes and not fits:
            wrong.append(f"{name} is {list(tensor.shape)}, not {list(shapes[name])}")
        else:
            tensors[here] = there
    if wrong:
        raise InputError(f"`{what}` do{'es' if what == 'update' else ''} not fit the model: {listed(wrong)}.")
    return replace(stored, tensors=tensors)


def in_order(update: Stored, weights: Stored) -> Stored:
    """A list of gradients under the names of the weights' parameters, in their order.

    Args:
        update: a list without names.
        weights: a file with names.

    Raises:
        InputError: the order is not known, or counts or shapes do not fit it.
    """
    linen = is_linen(weights.tensors, ())
    if not weights.named:
        raise InputError(f"`weights` {UNNAMED}")
    if not (weights.ordered or linen):
        raise InputError(
            f"`update` is a list of {len(update.tensors)} tensors without names, and the weights' file does not keep "
            "their order; save the weights as torch.save(model.state_dict(), FILE), or the update with names."
        )
    floats = [name for name, tensor in weights.tensors.items() if tensor.dtype.kind == "f"]
    parameters = [name for name in floats if not name.endswith(("running_mean", "running_var"))]
    aliases = {name for group in weights.tied for name in group[1:]}
    orders = [[name for name in parameters if name not in aliases], parameters, floats, list(weights.tensors)]
    orders = [leaf_order(floats)] if linen else orders
    problem = ""
    vector = _only_vector(update)
    if vector is not None:
        return _cut(vector, [{name: weights.tensors[name] for name in order} for order in orders])
    places = {int(name.removeprefix("arr_")): tensor for name, tensor in update.tensors.items()}
    for order in orders:
        wrong = [
            f"place {place} is {list(tensor.shape)}, not {list(weights.tensors[order[place]].shape)} ({order[place]})"
            for place, tensor in places.items()
            if place < len(order) and tensor.shape != weights.tensors[order[place]].shape
        ]
        if not wrong and update.length == len(order):
            named = {order[place]: tensor for place, tensor in places.items()}
            return replace(update, tensors=named, named=True)
        problem = problem or (wrong[0] if update.length == len(order) else f"the weights have {len(order)} parameters")
    raise InputError(
        f"`update` is a list of {update.length} tensors without names, which does not fit the order of the weights': "
        f"{problem}. Save it with names."
    )


def is_vector(update: Stored, weights: Stored) -> bool:
    """True for all parameters in one vector, under a name that is no parameter's."""
    foreign = not any(name in weights.tensors or "." in name for name in update.tensors)
    return _only_vector(update) is not None and len(weights.tensors) > 1 and foreign


def _only_vector(update: Stored) -> np.ndarray | None:
    tensors = list(update.tensors.values())
    flat = len(tensors) == 1 and update.length <= 1 and tensors[0].ndim and max(tensors[0].shape) == tensors[0].size
    return tensors[0].reshape(-1) if flat else None


def _cut(vector: np.ndarray, orders: Sequence[Mapping[str, np.ndarray]]) -> Stored:
    """The parameters whose numbers come one after the other in a vector, as of torch's `parameters_to_vector`."""
    for parameters in orders:
        ends = np.cumsum([tensor.size for tensor in parameters.values()])
        if len(ends) and ends[-1] == vector.size:
            pieces = zip(parameters.items(), np.split(vector, ends[:-1]), strict=True)
            return Stored({name: piece.reshape(tensor.shape) for (name, tensor), piece in pieces})
    counts = sum(tensor.size for tensor in orders[0].values())
    raise InputError(
        f"`update` is one vector of {vector.size} numbers, and the weights have {counts} parameters. Give the gradient "
        "of each parameter under its name."
    )
