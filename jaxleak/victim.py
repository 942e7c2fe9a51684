"""The victim: model, weights, private images and labels, and the update it shares."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxleak.data import DATASETS, Dataset
from jaxleak.errors import InputError, check_choice, check_seed
from jaxleak.models import MODELS, build_model, load_weights
from jaxleak.objectives import loss_gradient

NETWORKS = ("shared", "per-image", "per-trial")


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """What is attacked: one update per image (one image each), from one or many networks.

    Attributes:
        model: a Linen module whose last dense layer is named "head".
        model_name, dataset, split: what rows and tables call them.
        indices: index of each image in its data set [i].
        images: [i, h, w, c], in [0, 1].
        labels: [i], in 0..k-1.
        num_classes: k, the outputs of the head.
        network: "shared" (one network), "per-image" (one per image) or "per-trial" (a fresh one for each trial).
        network_seed: from which networks are drawn.
        params: given weights: one set ("shared") or stacked over images ("per-image"); None draws them.
        weights_name: where given weights came from.
    """

    model: nn.Module
    model_name: str
    dataset: str
    split: str
    indices: list[int]
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    network: str = "per-trial"
    network_seed: int = 0
    params: PyTree | None = None
    weights_name: str = "given"

    def __post_init__(self):
        check_choice("network", self.network, NETWORKS)
        check_seed("network_seed", self.network_seed)
        if self.params is not None and self.network == "per-trial":
            raise InputError(
                "`network` per-trial draws a fresh network for each trial and cannot use given `weights`; "
                "use --network shared, or leave the weights out."
            )
        if len(self.indices) == 0:
            raise InputError("`images` must name at least one image.")
        repeated = sorted({index for index in self.indices if self.indices.count(index) > 1})
        if repeated:
            raise InputError(f"`images` must be distinct; {', '.join(map(str, repeated))} is named twice.")

    def settings(self) -> dict[str, Any]:
        """What identifies the victim, as plain data: another victim has other settings."""
        own: dict[str, Any] = {}
        if self.model_name not in MODELS or self.model != build_model(self.model_name, self.num_classes):
            own["model_fields"] = repr(self.model)
        if self.dataset not in DATASETS:
            own["labels"] = [int(label) for label in self.labels]
        return {
            "model": self.model_name,
            "dataset": self.dataset,
            "split": self.split,
            "images": [int(index) for index in self.indices],
            "image_shape": [int(size) for size in self.images.shape[1:]],
            "num_classes": self.num_classes,
            "network": self.network,
            "network_seed": self.network_seed,
            "weights": None if self.params is None else f"{self.weights_name} sha256:{_digest(self.params)}",
            **own,
        }


def make_victim(
    model: str | nn.Module,
    data: Dataset,
    images: list[int],
    *,
    network: str = "per-trial",
    network_seed: int = 0,
    weights: str | Path | None = None,
) -> Victim:
    """A victim with one private image per update.

    Args:
        model: name of a model, or a Linen module with `data.num_classes` outputs.
        data: where the images come from (`load_dataset`).
        images: indices in the data set.
        network: see `Victim`.
        network_seed: from which networks are drawn.
        weights: safetensors file in torch's names; needs network="shared".

    Raises:
        InputError: unknown model, index out of range, weights that do not fit.
    """
    module = build_model(model, data.num_classes) if isinstance(model, str) else model
    params = None
    if weights is not None:
        if network != "shared":
            raise InputError(f"`weights` are one network for all trials and need `network` shared; got {network!r}.")
        params = load_weights(weights, module, data.image_shape)
    pixels, labels = data.images(images)
    return Victim(
        model=module,
        model_name=model if isinstance(model, str) else type(model).__name__.lower(),
        dataset=data.name,
        split=data.split,
        indices=[int(index) for index in images],
        images=pixels,
        labels=labels,
        network=network,
        network_seed=network_seed,
        params=params,
        weights_name="given" if weights is None else Path(weights).name,
        num_classes=data.num_classes,
    )


def _digest(params: PyTree) -> str:
    """The start of a hash of all weights: other weights under the same name are another setting."""
    import hashlib

    content = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        content.update(np.asarray(leaf, np.float64).tobytes())
    return content.hexdigest()[:12]


def draw_params(model: nn.Module, key, image_shape: tuple[int, int, int]) -> PyTree:
    """A network drawn with the model's own initialisation, in the precision jax is set to."""
    params = jax.jit(model.init)(key, jnp.zeros((1, *image_shape)))["params"]
    return jax.tree.map(lambda leaf: leaf.astype(float), params)  # Linen draws float32


def shared_update(
    model: nn.Module, params: PyTree, x: Float[Array, "b h w c"], label: Int[Array, "b"], num_classes: int
) -> PyTree:
    """The gradient a client shares for its batch: mean cross-entropy with the true labels."""
    return loss_gradient(model, params, x, jax.nn.one_hot(label, num_classes, dtype=x.dtype))
