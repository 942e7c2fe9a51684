"""The user's own update, read from a file, as a victim whose images need not be known."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from jaxleak.data import load_dataset
from jaxleak.errors import InputError, check_positive, check_type, naming
from jaxleak.kernels.precision import dtype
from jaxleak.models.files import read_tensors
from jaxleak.models.files.flax_trees import steps_of
from jaxleak.models.files.names import WRAPPERS, in_order, is_vector
from jaxleak.models.files.read import KIND
from jaxleak.models.own import AdaptedModel, adapt_model
from jaxleak.models.own.adapt import with_head
from jaxleak.models.own.from_file import model_builder
from jaxleak.models.weights import (
    head_name,
    known_names,
    named_for,
    update_from_torch,
    variables_from_torch,
)
from jaxleak.threat.client import Client
from jaxleak.threat.defences import Defence
from jaxleak.threat.loss import Loss
from jaxleak.threat.network import Normalise, normalisation_of
from jaxleak.threat.victim import Victim

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
NEAR = 0.5  # of the weights' norm: an update no further from them is the weights after training
Tensors = dict[str, np.ndarray]


@contextlib.contextmanager
def _said_in_the_end() -> Iterator[None]:
    """Warnings once each, and none before an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text, category in dict.fromkeys((str(warning.message), warning.category) for warning in caught):
        warnings.warn(text, category, stacklevel=4)


@_said_in_the_end()
def load_update(
    update: str | Path | None = None,
    weights: str | Path | None = None,
    model: Any = "lenet",
    *,
    before: str | Path | None = None,
    after: str | Path | None = None,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    batch: int = 1,
    client: Client | None = None,
    normalise: Normalise = "none",
    truth: str | Path | None = None,
    pixel_max: float | None = None,
    labels: Sequence[int] | None = None,
    fields: Mapping[str, Any] | None = None,
    defences: Sequence[Defence] = (),
) -> Victim:
    """A victim whose update was computed elsewhere, as by a PyTorch script.

    Files are safetensors, `.npz`, or what `torch.save` wrote (.pt, .pth, .bin), of which nothing is run. `FILE:PART` is
    one part of a checkpoint. `models.files` says how names are brought to the model's.

    Args:
        update: a file with a tensor for each parameter that was trained, named and laid out as in torch's `state_dict`,
            or a list of them in the order of the weights' parameters: the gradient of the mean loss, or with local
            steps w_0 - w_K.
        weights: file of the network before the update, running statistics included where it has them.
        model: name of a model; a Python file, with the name of a function after a colon if it is not `build_model`,
            which is called with the number of classes; or a Linen module.
        before, after: in place of `update` and `weights`: files of the network before and after the client's local
            steps; where `client` has none, one step.
        image_shape: height, width and channels of the network's input.
        batch: images the update was computed from.
        client: how it was computed; None: one gradient.
        normalise: by whose mean and deviation the network's input is normalised; or these two, a number each or one for
            every channel.
        truth: the private images, to measure against: an `.npz` file or a folder, as `load_dataset` takes them, with
            labels. A folder's are numbered by name, which need not be the network's numbers.
        pixel_max: the value of white in `truth`: see `load_dataset`.
        labels: the labels, one per image, where they are known; in place of the truth's own. Of a loss that takes a
            target for each output also those of all images in turn.
        fields: of the model, by their names; of a function in a file, its arguments but the first.
        defences: that the client is known to have applied.

    Raises:
        InputError: a file that is not there or does not fit, or a model or truth that does not.

    Example:
        >>> import jax
        >>> import jaxleak
        >>> model = jaxleak.build_model("mlp", 10, hidden=(16,))
        >>> params = jaxleak.draw_params(model, jax.random.key(0), (8, 8, 1))
        >>> jaxleak.save_weights("weights.safetensors", model, params, (8, 8, 1))
        >>> gradient = jax.tree.map(jax.numpy.ones_like, params)  # stands for a client's
        >>> jaxleak.save_weights("update.safetensors", model, gradient, (8, 8, 1))
        >>> victim = jaxleak.load_update("update.safetensors", "weights.safetensors", model, image_shape=(8, 8, 1))
        >>> victim.knows_truth
        False
    """
    check_positive("batch", batch, integer=True)
    _check_given(update, weights, before, after)
    normalisation = normalisation_of(normalise)
    check_type("client", client, (Client, type(None)), "a Client, as Client(steps=2, lr=0.1)")
    check_type("truth", truth, (str, Path, type(None)), "the path of an .npz file or a folder")
    client = client or Client()
    if before is not None and not client.trains:
        client = replace(client, steps=1)
        warnings.warn(
            f"`before` and `after` are taken as one local step of {client.optimizer} with learning rate {client.lr:g}; "
            "--client-steps and --client-lr say otherwise",
            stacklevel=2,
        )
    check_type("image_shape", image_shape, (tuple, list), "height, width and channels")
    if len(image_shape) != 3:
        raise InputError(f"`image_shape` must be height, width and channels; got {list(image_shape)}.")
    for size in image_shape:
        check_positive("image_shape", size, integer=True)
    name, build = model_builder(model)
    given = dict(fields or {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the model is built with its classes
        small = with_head(build(2, **given), image_shape)
    first, second = (weights, update) if before is None else (before, after)
    with naming(**({} if before is None else {"weights": "before", "update": "after"})):
        tensors, shared, tied = _files(small, image_shape, first, second, difference=before is not None)
        classes = _classes(small, tensors)
        module = adapt_model(build(classes, **given), image_shape, num_classes=classes)
        module = replace(module, tied=tied) if tied else module
        variables = variables_from_torch(module, tensors, image_shape)
        _check_range(shared)
        gradient = update_from_torch(module, shared, image_shape)
        if not any(np.any(leaf) for leaf in jax.tree.leaves(gradient)):
            same = ": both files are the same network" if before is not None else ": there is nothing to match"
            raise InputError(f"`update` is zero everywhere{same}.")
        if before is None:
            _check_moved(gradient, variables["params"])
    targets, labels = _given_targets(labels, batch, classes, client.loss)
    pixels, known, stored = _truth(truth, labels, image_shape, batch, pixel_max)
    if targets is None and stored is not None and labels is None:
        targets = stored
    if targets is not None:
        known = np.asarray(client.loss.label(targets)).tolist()
    if max(known, default=0) >= client.loss.classes(classes):
        raise InputError(f"`labels` must be below the network's {classes} classes; got {max(known)}.")
    return Victim(
        model=module,
        model_name=name,
        dataset=Path(str(second)).name,
        split="given",
        indices=list(range(batch)),
        images=pixels,
        labels=np.asarray(known, np.int32),
        num_classes=classes,
        targets=targets,
        network="shared",
        params=variables["params"],
        weights_name=Path(str(first)).name,
        batch=batch,
        client=client,
        normalisation=normalisation,
        batch_stats=variables.get("batch_stats"),
        update=gradient,
        defences=tuple(defences),
    )


def _check_given(update, weights, before, after) -> None:
    """Raise unless one of the two pairs of files is given.

    Raises:
        InputError: neither, both, or a part of one.
    """
    pairs = {"before": before, "after": after}, {"update": update, "weights": weights}
    for name, file in {**pairs[0], **pairs[1]}.items():
        if file is not None:
            check_type(name, file, (str, Path), f"the path of {KIND}")
    if any(file is not None for file in pairs[0].values()):
        for pair in pairs:
            stray = [name for name, file in pair.items() if (file is None) == (pair is pairs[0])]
            if stray:
                wrong = "is missing" if pair is pairs[0] else "does not go with them"
                raise InputError(
                    f"`before` and `after` are the network before and after the client's local steps; `{stray[0]}` "
                    f"{wrong}. Give these two, or `update` and `weights`."
                )
    elif update is None or weights is None:
        missing, other = ("update", "weights") if update is None else ("weights", "update")
        raise InputError(
            f"`{other}` needs `{missing}`: give the update and the network before it (--update, --weights), or the "
            "network before and after (--before, --after)."
        )


def _files(model: Any, image_shape, first: Any, second: Any, *, difference: bool) -> tuple[Tensors, Tensors, Any]:
    """The network before and the update, under the model's names, and which of the model's parameters are tied.

    Args:
        model: the user's, for any number of classes.
        image_shape: of its input.
        first: file of the network before.
        second: file of the update; for a `difference` of the network after.
        difference: see `second`.
    """
    words = ("before", "after") if difference else ("weights", "update")
    before, shared = (read_tensors(file, word) for file, word in zip((first, second), words, strict=True))
    if not difference and (not shared.named or is_vector(shared, before)):
        shared = in_order(shared, before)
    weights, groups = named_for(words[0], before, model, image_shape)
    tied = _ties(model, image_shape, groups)
    if tied:
        model = replace(model, tied=tied)
        weights, groups = named_for(words[0], before, model, image_shape)
    update, _ = named_for(words[1], shared, model, image_shape, groups)
    if difference:
        update = {
            name: _minus(name, weights[name], after) if name in weights else after for name, after in update.items()
        }
    return weights, update, tied


def _ties(model: Any, image_shape, groups: Sequence[tuple[str, ...]]) -> tuple[tuple[Any, Any], ...]:
    """Pairs of parameters of the model that the file has as one tensor: see `AdaptedModel.tied`.

    Raises:
        InputError: they are of other shapes, or the model is not one of one's own.
    """
    paths, ties = known_names(model, image_shape), []
    for group in groups:
        mine = [paths[name][1:] for name in group if name in paths and paths[name][0] == "params"]
        kept, *others = sorted(mine, key=lambda path: path[0] != "head") or [()]
        ties += [(path, kept) for path in others]
    if not ties:
        return ()
    params: Any = flatten_dict(model.init_shapes(image_shape)) if isinstance(model, AdaptedModel) else {}
    shapes = {path: leaf.shape for path, leaf in params.items()}
    for path, kept in ties:
        turned = (path[-1] == "kernel") != (kept[-1] == "kernel")
        if path not in shapes or shapes[path] != shapes[kept][:: -1 if turned else 1]:
            raise InputError(
                f"`weights` have one tensor for {'/'.join(path)} and {'/'.join(kept)}, of which the model has two that "
                "cannot be one; let the model use one parameter for both."
            )
    return tuple(dict.fromkeys(ties))


def _minus(name: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """By how much a tensor fell; in float64, in which differences of all narrower floats are exact enough."""
    if before.shape != after.shape:
        raise InputError(f"`update` does not fit `weights`: {name} is {list(after.shape)}, not {list(before.shape)}.")
    if before.dtype.kind != "f" or after.dtype.kind != "f":
        return after
    return before.astype(np.float64) - after.astype(np.float64)


def _check_moved(update: Any, params: Any) -> None:
    """Raise if an update is the weights after training."""
    pairs = list(zip(jax.tree.leaves(update), jax.tree.leaves(params), strict=True))
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs if np.any(a)]
    size = sum(float(np.sum(b**2)) for _, b in pairs)
    apart = sum(float(np.sum((a - b) ** 2)) for a, b in pairs)
    if size and not apart:
        raise InputError(
            "`update` is the weights, number for number. torch.save of a network keeps no gradients: save "
            "{name: p.grad for name, p in model.named_parameters()}."
        )
    if apart < NEAR**2 * size:
        raise InputError(
            f"`update` is nearly the weights ({100 * math.sqrt(apart / size):.2g} % apart): it looks like the network "
            "after training, not like what it learned. Give both networks: --before W --after FILE."
        )


def _check_range(tensors: Mapping[str, np.ndarray]) -> None:
    """Raise where squares of an update cannot be computed in the precision jax is set to."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype.kind == "f"}
    parameters = [tensor for name, tensor in floats.items() if not name.endswith(STATISTICS)]
    largest = max((float(np.max(np.abs(tensor), initial=0)) for tensor in parameters), default=0.0)
    low, high = (1e-140, 1e150) if dtype() == "float64" else (1e-13, 1e17)
    if largest and math.isfinite(largest) and not low < largest < high:
        other = "" if dtype() == "float64" or not 1e-140 < largest < 1e150 else " Use --x64, or divide it."
        raise InputError(
            f"`update` must have its largest value between {low:g} and {high:g} to be computed with in {dtype()}; "
            f"it is {largest:.2g}.{other or ' Divide it.'}"
        )


def moved_statistics(update: str | Path, before: str | Path | None = None) -> bool:
    """True if running statistics moved: those in the file of an update, as a difference of two state dicts has them.

    Args:
        update: its file; with `before` that of the network after it.
        before: file of the network before it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the update was loaded
        tensors = read_tensors(update, "update").tensors
        others = {} if before is None else read_tensors(before, "before").tensors
    after, start = (_statistics(side) for side in (tensors, others))
    if before is None:
        return any(np.any(tensor) for tensor in after.values())
    return any(
        np.any(tensor != other)
        for name, tensor in after.items()
        for known, other in start.items()  # one of the two files may have a prefix before all names
        if f".{name}".endswith(f".{known}") or f".{known}".endswith(f".{name}")
        if tensor.shape == other.shape
    )


def _statistics(tensors: Tensors) -> Tensors:
    """Running means and variances, under names without those of wrappers."""
    parts = {name: steps_of(name) for name in tensors}
    return {
        ".".join(part for part in parts[name] if part not in WRAPPERS): tensor
        for name, tensor in tensors.items()
        if name.endswith(STATISTICS[:2]) or "batch_stats" in parts[name]
    }


def _classes(model: Any, tensors: dict[str, np.ndarray]) -> int:
    """Outputs of the head, by its tensor in the file."""
    head = head_name(model)
    for name in (f"{head}.bias", f"{head}.weight"):
        if name in tensors:
            return int(np.shape(tensors[name])[0]) if np.ndim(tensors[name]) else 1
    raise InputError(
        f"`weights` have no {head}.weight, the head of {type(model).__name__}; they have "
        f"{', '.join(list(tensors)[:6])}. Choose another --model, or rename the tensors."
    )


def _given_targets(labels, batch: int, outputs: int, loss: Loss) -> tuple[np.ndarray | None, list | None]:
    """Known targets [b, k], where labels are a number for each output of a loss that takes these; else the labels."""
    if labels is None or len(labels) != batch * outputs or not loss.vectors(outputs):
        return None, labels
    return np.asarray(labels, np.float64).reshape(batch, outputs), None


def _truth(
    truth, labels, image_shape, batch: int, pixel_max: float | None = None
) -> tuple[Float[np.ndarray, "b h w c"], list[int], Float[np.ndarray, "b k"] | None]:
    """Images and labels, NaN and -1 where they are not known; and the truth's targets, if it has some."""
    h, w, c = image_shape
    if truth is None:
        if pixel_max is not None:
            raise InputError("`pixel_max` is the white of the pictures in `truth`; give --truth too, or leave it out.")
        known = [-1] * batch if labels is None else _given(labels, batch)
        return np.full((batch, h, w, c), np.nan, np.float32), known, None
    with naming(dataset="truth"):
        size = (h, w) if Path(truth).is_dir() else None
        data = load_dataset(truth, image_size=size, pixel_max=pixel_max)
    order = sorted(data.index.tolist())
    pixels, stored_labels = data.images(order)
    if c == 1 and np.all(pixels == pixels[..., :1]):
        pixels = pixels[..., :1]  # a folder's pictures have three channels, grey ones too
    if pixels.shape != (batch, h, w, c):
        raise InputError(
            f"`truth` must hold {batch} images of shape {h}x{w}x{c}; it has {len(pixels)} of "
            f"{'x'.join(map(str, pixels.shape[1:]))}. Change --batch, --image-shape or the file."
        )
    if labels is None and Path(truth).suffix == ".npy":
        return pixels, [-1] * batch, None  # it has none
    return pixels, stored_labels.tolist() if labels is None else _given(labels, batch), data.targets(order)


def _given(labels: Sequence[int], batch: int) -> list[int]:
    if len(labels) != batch or not all(label >= 0 and label == int(label) for label in labels):
        got = ", ".join(f"{label:g}" for label in labels)
        raise InputError(f"`labels` must be {batch} classes, one per image, from 0 up; got {got}.")
    return [int(label) for label in labels]
