"""Refuses fields that no victim has: of other types and shapes, and out of range."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxleak.errors import InputError, check_positive, check_type
from jaxleak.threat.client import Client
from jaxleak.threat.loss import Loss

TOLERANCE = 1e-3  # outside [0, 1]: what rounding leaves of pixels that were normalised and brought back
CURE = "Victims are made of numbers: make them, and attack them, outside jax.jit, vmap and grad."


def check_kinds(victim: Any) -> None:
    """Raise unless what a victim is made of is of the types that `Victim` says.

    Raises:
        InputError: another type.
    """
    if not (hasattr(victim.model, "init") and hasattr(victim.model, "apply")):
        raise InputError(
            f"`model` must be a Linen module or what `adapt_model` gives; got {victim.model!r}. "
            "`make_victim` takes names and other models."
        )
    check_type("client", victim.client, Client, "a Client")
    check_positive("num_classes", victim.num_classes, integer=True)


def check_private(victim: Any) -> None:
    """Raise unless images and labels are as `Victim` says.

    Raises:
        InputError: types, shapes or values that it does not allow.
    """
    images, labels = _numbers("images", victim.images), _numbers("labels", victim.labels)
    count, classes = len(victim.indices), victim.num_classes
    if victim.modality == "image":
        _check_images(images)
    if (victim.modality == "text") != hasattr(victim.model, "places"):
        raise InputError("`model` transformer and the data set text go together; give both, or neither.")
    if victim.modality == "text":
        _check_texts(victim, images)
    if images.ndim == 0 or len(images) != count:
        raise InputError(f"`images` must be one for each of the {count} `indices`; got shape {images.shape}.")
    if victim.surrogates is not None and np.shape(victim.surrogates)[1:] != images.shape[1:]:
        raise InputError(
            f"`surrogates` must have the images' shape {images.shape[1:]}; got {np.shape(victim.surrogates)[1:]}."
        )
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"`labels` must be {count} whole numbers, one for each image; got {labels.dtype} of shape {labels.shape}."
        )
    least = -1 if victim.update is not None or np.isnan(images).any() else 0
    most = classes if classes > 1 else victim.client.loss.classes(classes)
    wrong = sorted({int(label) for label in labels if not least <= label < most})
    if wrong:
        unknown = ", or -1 where they are not known" if least else ""
        outputs = f"{classes} outputs" if classes > 1 else "one output"
        raise InputError(
            f"`labels` must be from 0 to {most - 1}{unknown}, as the model has {outputs}; "
            f"got {', '.join(map(str, wrong[:5]))}."
        )
    victim.client.loss.check(classes)
    ignored = sorted({int(label) for label in labels if victim.targets is None and victim.client.loss.ignores(label)})
    if ignored:
        raise InputError(
            f"`labels` must be of classes that the client learns; class {ignored[0]} has weight 0, so its images leave "
            "no gradient. Change the labels, or --class-weights."
        )
    if victim.targets is not None:
        _check_targets(_numbers("targets", victim.targets), (count, classes), victim.client.loss)


def _check_targets(targets: np.ndarray, shape: tuple[int, int], loss: Loss) -> None:
    if targets.shape != shape:
        raise InputError(
            f"`targets` must have shape {shape}, one number for each image and output; got {targets.shape}."
        )
    if not np.isfinite(targets).all():
        raise InputError("`targets` must be finite numbers.")
    if loss.targets != "numbers" and not (targets.min() >= 0 and targets.max() <= 1):
        raise InputError(
            f"`targets` must be in [0, 1] for the loss {loss.name}; got {targets.min():g} to {targets.max():g}. "
            "Numbers of any size go with --loss mse."
        )
    if loss.targets == "classes" and np.any(np.abs(targets.sum(axis=1) - 1) > TOLERANCE):
        worst = float(targets.sum(axis=1)[np.argmax(np.abs(targets.sum(axis=1) - 1))])
        raise InputError(
            f"`targets` of the loss {loss.name} must be distributions over the classes, which add up to 1; one adds up "
            f"to {worst:g}. Several classes of an image go with --loss bce."
        )


def _numbers(argument: str, value: Any) -> np.ndarray:
    if isinstance(value, Tracer):
        raise InputError(f"`{argument}` must be numbers; got an array that jax is tracing. {CURE}")
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"`{argument}` must be an array of numbers; got {array.dtype}.")
    return array


def _check_images(images: np.ndarray) -> None:
    if images.ndim != 4:
        raise InputError(f"`images` must have shape [n, h, w, c]; got {images.shape}.")
    _, height, width, channels = images.shape  # of one row: a signal, or the numbers of a table
    if channels > 4 and (height == 3 or (height == 1 and width == channels)):
        raise InputError(
            f"`images` must have shape [n, h, w, c], channels last; got {images.shape}. "
            "Transpose torch's: images.transpose(0, 2, 3, 1)."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"`images` must be floats in [0, 1]; got {images.dtype}. Divide pixels from 0 to 255 by 255.")
    known = images[~np.isnan(images)]  # those that are not known are NaN
    if known.size and not (known.min() >= -TOLERANCE and known.max() <= 1 + TOLERANCE):
        raise InputError(
            f"`images` must be in [0, 1]; got {known.min():g} to {known.max():g}. Divide pixels from 0 to 255 by 255; "
            "give them before `normalisation`, not after."
        )


def _check_texts(victim: Any, texts: np.ndarray) -> None:
    if texts.ndim != 2:
        raise InputError(f"`images` of text must be numbers of tokens [n, t]; got shape {texts.shape}.")
    victim.model.places(texts.shape[1])
    if not (np.all(texts == np.round(texts)) and texts.min() >= 0 and texts.max() < victim.num_classes):
        raise InputError(f"`images` of text must be whole numbers from 0 to {victim.num_classes - 1}, its tokens.")
    if victim.client.loss.targets != "classes":
        raise InputError(f"`loss` of text must be cross-entropy; got {victim.client.loss.name}.")
    for name, given in (
        ("normalise", victim.normalisation is not None),
        ("trained_steps", victim.trained_steps),
        ("client_steps", victim.client.trains),
        ("clients", victim.client.clients > 1),
    ):
        if given:
            raise InputError(f"`{name}` is for pictures; leave it out with the data set text.")


def check_tensors(victim: Any) -> None:
    """Raise unless given weights and update are trees of floats, the update like the weights.

    Raises:
        InputError: a leaf that is none, or trees that differ in names or shapes.
    """
    trees = {name: getattr(victim, name) for name in ("params", "update") if getattr(victim, name) is not None}
    for name, tree in trees.items():
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        if not leaves:
            raise InputError(f"`{name}` must be a tree of arrays like the model's params; got none.")
        for path, leaf in leaves:
            if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating):
                got = getattr(leaf, "dtype", type(leaf).__name__)
                raise InputError(f"`{name}` must be arrays of floats; {_path(path)} is {got}.")
    if len(trees) == 2:
        _check_like(*(_shapes(tree) for tree in trees.values()), stacked=victim.network == "per-image")


def _check_like(params: dict[str, Any], update: dict[str, Any], stacked: bool) -> None:
    wanted = {path: shape[1:] if stacked else shape for path, shape in params.items()}
    problems = [
        f"{path} is {update.get(path, 'missing')}, not {shape}"
        for path, shape in wanted.items()
        if update.get(path) != shape
    ]
    problems += [f"{path} is unknown" for path in update if path not in wanted]
    if problems:
        raise InputError(f"`update` must be a tree like `params`: {'; '.join(problems[:5])}.")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {_path(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
