"""The user's own update, read from a file, as a victim whose images need not be known."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxleak.data import load_dataset
from jaxleak.errors import InputError, check_choice, check_positive, naming
from jaxleak.kernels.precision import dtype
from jaxleak.models.own import adapt_model
from jaxleak.models.own.from_file import model_builder
from jaxleak.models.weights import check_layout, read_tensors, update_from_torch, variables_from_torch
from jaxleak.threat.client import Client
from jaxleak.threat.defences import Defence
from jaxleak.threat.loss import Loss
from jaxleak.threat.victim import NORMALISATIONS, Victim

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_update(
    update: str | Path,
    weights: str | Path,
    model: Any = "lenet",
    *,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    batch: int = 1,
    client: Client | None = None,
    normalise: str = "none",
    truth: str | Path | None = None,
    labels: Sequence[int] | None = None,
    fields: Mapping[str, Any] | None = None,
    defences: Sequence[Defence] = (),
) -> Victim:
    """A victim whose update was computed elsewhere, as by a PyTorch script.

    Args:
        update: safetensors file with a tensor for each parameter, named and laid out as in torch's `state_dict`: the
            gradient of the mean loss, or with local steps w_0 - w_K.
        weights: safetensors file of the network before the update, running statistics included where it has them.
        model: name of a model; a Python file, with the name of a function after a colon if it is not `build_model`,
            which is called with the number of classes; or a Linen module.
        image_shape: height, width and channels of the network's input.
        batch: images the update was computed from.
        client: how it was computed; None: one gradient.
        normalise: by whose mean and deviation the network's input is normalised.
        truth: the private images, to measure against: an `.npz` file or a folder, as `load_dataset` takes them, with
            labels. A folder's are numbered by name, which need not be the network's numbers.
        labels: the labels, one per image, where they are known; in place of the truth's own. Of a loss that takes a
            target for each output also those of all images in turn.
        fields: of the model, by their names; of a function in a file, its arguments but the first.
        defences: that the client is known to have applied.

    Raises:
        InputError: a file that is not there or does not fit, or a model or truth that does not.
    """
    check_positive("batch", batch, integer=True)
    shared, tensors = read_tensors(update, "update"), read_tensors(weights, "weights")
    for size in image_shape:
        check_positive("image_shape", size, integer=True)
    name, build = model_builder(model)
    given = dict(fields or {})
    small = build(2, **given)
    tensors, shared = (_with_head(small, image_shape, stored) for stored in (tensors, shared))
    classes = _classes(small, tensors)
    module = adapt_model(build(classes, **given), image_shape, num_classes=classes)
    check_layout(module, image_shape)
    variables = variables_from_torch(module, tensors, image_shape)
    _check_range(shared)
    gradient = update_from_torch(module, shared, image_shape)
    if not any(np.any(leaf) for leaf in jax.tree.leaves(gradient)):
        raise InputError("`update` is zero everywhere: there is nothing to match.")
    client = client or Client()
    targets, labels = _given_targets(labels, batch, classes, client.loss)
    pixels, known, stored = _truth(truth, labels, image_shape, batch)
    if targets is None and stored is not None and labels is None:
        targets = stored
    if targets is not None:
        known = np.asarray(client.loss.label(targets)).tolist()
    if max(known, default=0) >= client.loss.classes(classes):
        raise InputError(f"`labels` must be below the network's {classes} classes; got {max(known)}.")
    return Victim(
        model=module,
        model_name=name,
        dataset=Path(update).name,
        split="given",
        indices=list(range(batch)),
        images=pixels,
        labels=np.asarray(known, np.int32),
        num_classes=classes,
        targets=targets,
        network="shared",
        params=variables["params"],
        weights_name=Path(weights).name,
        batch=batch,
        client=client,
        normalisation=NORMALISATIONS[check_choice("normalise", normalise, NORMALISATIONS)],
        batch_stats=variables.get("batch_stats"),
        update=gradient,
        defences=tuple(defences),
    )


def _check_range(tensors: Mapping[str, np.ndarray]) -> None:
    """Raise where squares of an update cannot be computed in the precision jax is set to."""
    parameters = [tensor for name, tensor in tensors.items() if not name.endswith(STATISTICS)]
    largest = max((float(np.max(np.abs(tensor), initial=0)) for tensor in parameters), default=0.0)
    low, high = (1e-140, 1e150) if dtype() == "float64" else (1e-13, 1e17)
    if largest and math.isfinite(largest) and not low < largest < high:
        other = "" if dtype() == "float64" or not 1e-140 < largest < 1e150 else " Use --x64, or divide it."
        raise InputError(
            f"`update` must have its largest value between {low:g} and {high:g} to be computed with in {dtype()}; "
            f"it is {largest:.2g}.{other or ' Divide it.'}"
        )


def moved_statistics(update: str | Path) -> bool:
    """True if the file of an update holds running statistics that moved, as a difference of two state dicts does."""
    tensors = read_tensors(update, "update")
    return any(np.any(tensor) for name, tensor in tensors.items() if name.endswith(STATISTICS[:2]))


def _with_head(model: Any, image_shape, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with the last dense layer of a model of one's own under the name it has here."""
    head = _head_name(model)
    if any(f"{head}.{kind}" in tensors for kind in ("weight", "bias")):
        return tensors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the model is built with its classes
        head_in_file = ".".join(getattr(adapt_model(model, image_shape), "head", ()))
    start = f"{head_in_file}."
    return {
        f"{head}.{name[len(start) :]}" if head_in_file and name.startswith(start) else name: tensors[name]
        for name in tensors
    }


def _head_name(model: Any) -> str:
    return dict(getattr(model, "torch_names", ())).get("head", "head")


def _classes(model: Any, tensors: dict[str, np.ndarray]) -> int:
    """Outputs of the head, by its tensor in the file."""
    head = _head_name(model)
    for name in (f"{head}.bias", f"{head}.weight"):
        if name in tensors:
            return int(np.shape(tensors[name])[0]) if np.ndim(tensors[name]) else 1
    raise InputError(
        f"`weights` have no {head}.weight, the head of {type(model).__name__}; they have "
        f"{', '.join(list(tensors)[:6])}. Choose another --model, or rename the tensors."
    )


def _given_targets(labels, batch: int, outputs: int, loss: Loss) -> tuple[np.ndarray | None, list | None]:
    """Known targets [b, k], where labels are a number for each output of a loss that takes these; else the labels."""
    if labels is None or len(labels) != batch * outputs or not loss.vectors(outputs) or outputs == 1:
        return None, labels
    return np.asarray(labels, np.float64).reshape(batch, outputs), None


def _truth(
    truth, labels, image_shape, batch: int
) -> tuple[Float[np.ndarray, "b h w c"], list[int], Float[np.ndarray, "b k"] | None]:
    """Images and labels, NaN and -1 where they are not known; and the truth's targets, if it has some."""
    h, w, c = image_shape
    if truth is None:
        known = [-1] * batch if labels is None else _given(labels, batch)
        return np.full((batch, h, w, c), np.nan, np.float32), known, None
    with naming(dataset="truth"):
        data = load_dataset(truth, image_size=h if h == w and Path(truth).is_dir() else None)
    if data.image_shape != (h, w, c) or len(data) != batch:
        raise InputError(
            f"`truth` must hold {batch} images of shape {h}x{w}x{c}; it has {len(data)} of "
            f"{'x'.join(map(str, data.image_shape))}. Change --batch, --image-shape or the file."
        )
    order = sorted(data.index.tolist())
    pixels, stored_labels = data.images(order)
    return pixels, stored_labels.tolist() if labels is None else _given(labels, batch), data.targets(order)


def _given(labels: Sequence[int], batch: int) -> list[int]:
    known = [int(label) for label in labels]
    if len(known) != batch or min(known) < 0:
        raise InputError(f"`labels` must be {batch} classes, one per image, from 0 up; got {known}.")
    return known
