"""The victim: model, weights, private images and labels, and the update it shares."""

import functools
from collections.abc import Hashable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxleak.data import DATASETS
from jaxleak.errors import InputError
from jaxleak.models import MODELS, build_model
from jaxleak.models.describe import description, is_plain
from jaxleak.models.own import AdaptedModel
from jaxleak.threat.checkpoint import write_checkpoint
from jaxleak.threat.client import Client, client_update, train
from jaxleak.threat.defences import DEFENCES, as_defences, defend
from jaxleak.threat.loss import ANY_LOSS, loss_gradient
from jaxleak.threat.network import Network
from jaxleak.threat.observe import follows
from jaxleak.threat.optimizers import OPTIMIZERS
from jaxleak.threat.patches import PatchMixture, write_patches
from jaxleak.threat.private import Private
from jaxleak.threat.sharing import Sharing
from jaxleak.threat.validate import check_kinds, check_private, check_tensors

# Fields that reach a trial's program as its arguments, or not at all.
ARGUMENTS = (
    *("images", "labels", "targets", "indices", "params", "update", "surrogates", "network_seed", "defence_seed"),
    "mixture",
    *("training", "class_names", "weights_name", "dataset", "split"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim(Private, Network, Sharing):
    """The attacked updates, of one or several images each, from one or many networks.

    Its fields come in four parts: `Private` data, the `Network`, what the client is `Sharing`, and, here, what the
    attacker knows beside the update and the weights.

    Attributes:
        knows_statistics: True if the attacker has `batch_stats`; else it works with 0 and 1.
        knows_order: True if the attacker knows the client's `order` or `shuffle`; else it takes images in turn.
        surrogates: an image of the same data set for each update [u, h, w, c], not one of `images`; for the start of
            that name.
        mixture: what the attacker learned of patches from images of its own (`patches.fit_patches`).

    Raises:
        InputError: a field is of another type or shape, or out of range, or fields do not go together.

    Example:
        >>> import jaxleak
        >>> victim = jaxleak.make_victim("lenet", jaxleak.load_dataset("photos"), images=[6, 12, 18, 24], batch=2)
        >>> victim.updates, victim.batch, victim.images.shape
        (2, 2, (4, 32, 32, 3))
    """

    knows_statistics: bool = True
    knows_order: bool = True
    surrogates: np.ndarray | None = None
    mixture: PatchMixture | None = None

    def __post_init__(self):
        object.__setattr__(self, "defences", as_defences(self.defences))
        check_kinds(self)
        self._check_network()
        self._check_indices()
        check_private(self)
        check_tensors(self)
        self._check_batch()
        self._check_sharing(self.batch)
        if self.update is not None and (self.params is None or self.updates != 1):
            raise InputError("`update` is one update of one network: give its `params`, and the images of one batch.")
        self._check_training(channels=self.images.shape[-1])
        if any(defence.network(self.model) != self.model for defence in self.defences):
            raise InputError(
                f"`defence` {self.defence_name} changes the network, whose noise only the client knows: it is for "
                "`jaxleak run` (in Python `make_victim`), and not for an update of your own. Leave it out."
            )

    @functools.cached_property
    def key(self) -> Hashable | None:
        """All that a trial's program depends on besides its arguments; None if the fields do not determine it.

        They do not for models, losses and defences written elsewhere, nor for running statistics, which are constants
        of the program.
        """
        ours = type(self) is Victim and all(type(defence) in DEFENCES.values() for defence in self.defences)
        if (
            self.batch_stats is not None
            or not (self.client.loss.is_plain or self.client.loss == ANY_LOSS)
            or not (ours and is_plain(self.model))
        ):
            return None
        return self.targets is None, *(
            (attribute.name, getattr(self, attribute.name))
            for attribute in fields(self)
            if attribute.name not in ARGUMENTS
        )

    def without_data(self) -> "Victim":
        """The same to a trial's program: of its arguments only shapes and types are left, and they take no memory."""

        names = ("images", "labels", "targets", "params", "update", "surrogates")

        def empty(leaf):
            return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

        mixture = None if self.mixture is None else PatchMixture(*map(empty, self.mixture))
        arrays: dict[str, Any] = jax.tree.map(
            empty,
            {name: getattr(self, name) for name in names} | {"labels": np.asarray(self.labels)},
        )
        return replace(self, **arrays, mixture=mixture, training=None)

    def write_checkpoint(self, folder: Path) -> None:
        """Keep in a run directory what was learned: networks trained for this victim, and a mixture of patches."""
        if self.mixture is not None:
            write_patches(folder, self.mixture)
        if self.training is None or self.params is None or "id" not in self.training:
            return
        networks: list[dict[str, PyTree]] = [{"params": self.params}]
        if self.batch_stats is not None:
            networks[0]["batch_stats"] = self.batch_stats
        if self.network == "per-image":
            params = self.params
            networks = [{"params": jax.tree.map(lambda leaf, n=n: leaf[n], params)} for n in range(self.updates)]
        h, w, c = self.images.shape[1:]
        write_checkpoint(folder, self.model, networks, self.training, (h, w, c))

    @property
    def has_vectors(self) -> bool:
        """True if what the loss is given is no class: then attackers find a vector for each image."""
        return self.targets is not None or self.client.loss.vectors(self.num_classes)

    @property
    def answers(self) -> np.ndarray:
        """What an attacker wants to know beside the images: the labels [i], or vectors [i, k] (NaN: not known)."""
        if self.targets is not None or not self.has_vectors:
            return np.asarray(self.labels if self.targets is None else self.targets)
        labels = np.asarray(self.labels)
        with jax.ensure_compile_time_eval():
            hot = np.asarray(self.client.loss.target(np.maximum(labels, 0), self.num_classes, float))
        return np.where(labels[:, None] >= 0, hot, np.nan)

    @property
    def attacker_model(self) -> Any:
        """The model as the attacker has it."""
        return self.client_model if self.knows_statistics else self.model

    @property
    def attacker_client(self) -> Client:
        """The client as the attacker repeats it."""
        return self.client if self.knows_order else replace(self.client, order=(), shuffle=None)

    def target(self, labels: Any, dtype: Any = float) -> Float[Array, "b k"]:
        """Targets of the loss for images with these labels [b], or what is a target already [b, k]."""
        labels = jnp.asarray(labels)
        return labels.astype(dtype) if labels.ndim == 2 else self.client.loss.target(labels, self.num_classes, dtype)

    def target_of(self, truth: Array, label: Array) -> Float[Array, "b ..."]:
        """Targets of the loss for private data with these labels; of text the tokens that are predicted [b, p, k]."""
        if self.modality != "text":
            return self.target(label, truth.dtype)
        _, predicted = self.model.places(truth.shape[1])  # pyright: ignore[reportAttributeAccessIssue]
        return self.client.loss.target(truth[:, predicted].astype(int), self.num_classes, truth.dtype)

    def loss(self, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"]) -> Float[Array, ""]:
        """The client's loss at inputs `x`, in the network's units."""
        return self.client.loss.value(self.logits(params, x), target)

    def train(self, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"]) -> PyTree:
        """The weights when the client shares: trained on its own images first, if that is asked for."""
        if not self.trained_steps or self.trained_on != "own":
            return params
        optimizer = OPTIMIZERS[self.train_optimizer](self.train_lr)
        passes = [[np.arange(len(x))]] * int(self.trained_steps)
        return train(optimizer, passes, self.client_model, params, x, target, self.client.loss)[0]

    def share(self, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"], key) -> PyTree:
        """The update, defended: what the attacker sees.

        Args:
            params: the network's weights.
            x: the private images in the network's units.
            target: of the loss, one per image.
            key: key from which defences draw.
        """
        model = self.client_model
        for i, defence in enumerate(self.defences):
            model = defence.client_model(model, jax.random.fold_in(key, i), len(x))
        scores = functools.partial(follows, model, params, x)  # computed only where a defence asks for them
        if self._clips_examples:
            each = jax.vmap(lambda x, target: loss_gradient(model, params, x[None], target[None], self.client.loss))(
                x, target
            )
            first: Any = self.defences[0]
            update = first.apply_examples(each, jax.random.fold_in(key, 0))
            return defend(self.defences[1:], update, jax.random.fold_in(key, 1), scores)
        return defend(self.defences, client_update(self.client, model, params, x, target), key, scores)

    def settings(self) -> dict[str, Any]:
        """Settings that identify the victim, as plain data: another victim has other settings."""
        extra: dict[str, Any] = {}
        fields = description(self.model)
        if self.model_name not in MODELS or fields != description(build_model(self.model_name, self.num_classes)):
            extra["model_fields"] = fields
        if isinstance(self.model, AdaptedModel):
            extra["model_program"] = f"sha256:{self.model.program(tuple(self.images.shape[1:]))}"
        if self.dataset not in DATASETS:
            extra["labels"] = [int(label) for label in self.labels]
        if self.targets is not None:
            extra["targets"] = f"sha256:{_digest(np.asarray(self.targets))}"
        if not self.knows_order:
            extra["knows_order"] = False
        if self.modality != "image":
            extra["modality"] = self.modality
        if self.batch_stats is not None:
            extra["batch_stats"] = f"sha256:{_digest(self.batch_stats)}"
            extra["knows_statistics"] = self.knows_statistics
        if self.mixture is not None:
            extra["patches"] = f"sha256:{self.mixture.digest}"
        if self.update is not None:
            extra["update"] = f"sha256:{_digest(self.update)}"
        return {
            "model": self.model_name,
            "dataset": self.dataset,
            "split": self.split,
            "images": [int(index) for index in self.indices],
            "image_shape": [int(size) for size in self.shape],
            "num_classes": self.num_classes,
            "network": self.network,
            "network_seed": self.network_seed,
            "weights": None if self.params is None else f"{self.weights_name} sha256:{_digest(self.params)}",
            "batch": self.batch,
            "client": self.client.settings(),
            "defences": self.defence_name,
            "defence_seed": self.defence_seed,
            "defence_draw": self.defence_draw,
            "normalisation": None if self.normalisation is None else [list(part) for part in self.normalisation],
            "trained_steps": self.trained_steps,
            "trained_on": self.trained_on,
            "train_optimizer": self.train_optimizer,
            "train_lr": self.train_lr,
            **extra,
        }


def _digest(params: PyTree) -> str:
    """The start of a hash of all weights: other weights under the same name are another setting."""
    import hashlib

    content = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        content.update(np.asarray(leaf, np.float64).tobytes())
    return content.hexdigest()[:12]
