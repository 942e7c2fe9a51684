"""The victim: model, weights, private images and labels, and the update it shares."""

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxleak.data import DATASETS
from jaxleak.errors import InputError, check_choice, check_not_negative, check_positive, check_seed
from jaxleak.models import MODELS, WithStatistics, build_model
from jaxleak.models.describe import description, is_plain
from jaxleak.models.own import AdaptedModel
from jaxleak.threat.checkpoint import write_checkpoint
from jaxleak.threat.client import Client, client_update, train
from jaxleak.threat.defences import DEFENCES, Defence, check_defences, defence_text, defend
from jaxleak.threat.loss import ANY_LOSS, loss_gradient
from jaxleak.threat.observe import follows
from jaxleak.threat.optimizers import OPTIMIZERS
from jaxleak.threat.validate import check_kinds, check_private, check_tensors

NETWORKS = ("shared", "per-image", "per-trial")
DEFENCE_DRAWS = ("per-victim", "per-trial")
TRAINED_ON = ("data", "own")
# Mean and standard deviation of each channel over the training images, as they are in common use.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "none": None,
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mnist": ((0.1307,), (0.3081,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# A name of these, or means and deviations, of each channel or one for all.
Normalise = str | tuple[Sequence[float], Sequence[float]]
# Fields that reach a trial's program as its arguments, or not at all.
ARGUMENTS = (
    *("images", "labels", "targets", "indices", "params", "update", "surrogates", "network_seed", "defence_seed"),
    *("training", "class_names", "weights_name", "dataset", "split"),
)


def normalisation_of(normalise: Normalise) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of each channel, of pixels in [0, 1]; None for none.

    Raises:
        InputError: an unknown name, or numbers that are no means and deviations.
    """
    if isinstance(normalise, str):
        return NORMALISATIONS[check_choice("normalise", normalise, NORMALISATIONS)]
    try:
        means, deviations = (tuple(float(number) for number in part) for part in normalise)
    except (TypeError, ValueError):
        raise InputError(
            f"`normalise` must be one of {', '.join(NORMALISATIONS)}, or means and deviations as in "
            f"([0.5], [0.25]); got {normalise!r}."
        ) from None
    if not means or not deviations or (len(means) != len(deviations) and 1 not in (len(means), len(deviations))):
        raise InputError(
            f"`mean` and `std` must be as many numbers, one for each channel or one for all; got {len(means)} and "
            f"{len(deviations)}."
        )
    if not all(-1 <= mean <= 1 for mean in means) or not all(0 < number <= 1e3 for number in deviations):
        raise InputError(
            f"`mean` must be from -1 to 1 and `std` above 0, as pixels are in [0, 1]; got {_words(means)} and "
            f"{_words(deviations)}. Divide those of pixels from 0 to 255 by 255."
        )
    return means, deviations


def _words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """The attacked updates, of one or several images each, from one or many networks.

    Attributes:
        model: a Linen module whose last dense layer is named "head".
        model_name, dataset, split: names in rows and tables.
        indices: index of each image in its data set [i].
        images: [i, h, w, c], in [0, 1]; NaN where they are not known.
        labels: [i], in 0..k-1; -1 where they are not known. With one output they are 0 or 1.
        num_classes: k, the outputs of the head.
        targets: [i, k], what the loss is given where that is no class: a yes or no for each output, numbers or
            distributions; None: labels say it. `labels` are then the classes that rows and pages name.
        network: "shared" (one network), "per-image" (one per update) or "per-trial" (a fresh one for each trial).
        network_seed: seed from which networks are drawn.
        params: given weights: one set ("shared") or stacked over updates ("per-image"); None draws them.
        weights_name: source of given weights.
        batch: images per update: the first `batch` images make the first update, and so on. The attacker knows it.
        client: computation of the update: a gradient, or local steps.
        defences: defences applied to the update before it is shared, in this order.
        defence_seed: seed from which their noise is drawn.
        defence_draw: "per-victim": every restart meets the same noise; "per-trial": noise of its own, which makes the
            best of several restarts better than an attacker's.
        normalisation: mean and standard deviation of each channel that the network's input is brought to; None: pixels.
        trained_steps: steps that the network was trained for before the update.
        trained_on: "data" (random images of the data set; done by `make_victim`) or "own" (the update's own images, all
            at once: a later stage of this client's training).
        train_optimizer, train_lr: of that training.
        training: its losses, where it is done already: `{"loss": [n, steps], "accuracy": [n], "id": ...}`.
        batch_stats: running statistics of a network whose BatchNorm is in evaluation mode, which has network="shared";
            None: those of a new network, 0 and 1.
        knows_statistics: True if the attacker has `batch_stats`; else it works with 0 and 1.
        knows_order: True if the attacker knows the client's `order` or `shuffle`; else it takes images in turn.
        update: the shared update where it is given and not computed: of one victim, with given `params`, a tree of
            floats like these.
        surrogates: an image of the same data set for each update [u, h, w, c], not one of `images`; for the start of
            that name.
        modality: kind of data in `images`, one of `attacks.candidate.CANDIDATES`.
        class_names: one per class, where the data set has some; they decide nothing.

    Raises:
        InputError: a field is of another type or shape, or out of range, or fields do not go together.
    """

    model: nn.Module
    model_name: str
    dataset: str
    split: str
    indices: list[int]
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    targets: np.ndarray | None = None
    network: str = "per-trial"
    network_seed: int = 0
    params: PyTree | None = None
    weights_name: str = "given"
    batch: int = 1
    client: Client = field(default_factory=Client)
    defences: tuple[Defence, ...] = ()
    defence_seed: int = 0
    defence_draw: str = "per-victim"
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    trained_steps: int = 0
    trained_on: str = "data"
    train_optimizer: str = "adam"
    train_lr: float = 1e-3
    training: dict[str, Any] | None = None
    batch_stats: PyTree | None = None
    knows_statistics: bool = True
    knows_order: bool = True
    update: PyTree | None = None
    surrogates: np.ndarray | None = None
    modality: str = "image"
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        check_kinds(self)
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
        check_private(self)
        check_tensors(self)
        self._check_threat_model()

    def _check_threat_model(self) -> None:
        check_positive("batch", self.batch, integer=True)
        if len(self.indices) % self.batch:
            raise InputError(
                f"`images` must come in whole batches of {self.batch}; there are {len(self.indices)}. "
                "Change --batch, --images or --num-images."
            )
        self.client.check(self.batch)
        check_defences(self.defences)
        check_seed("defence_seed", self.defence_seed)
        check_choice("defence_draw", self.defence_draw, DEFENCE_DRAWS)
        if self._clips_examples and (self.client.trains or self.client.clients > 1):
            raise InputError(
                "`defence` dp-sgd clips the gradients of single images and needs one client that shares a gradient; "
                "leave out --client-steps, --client-epochs and --clients, or use clip and gaussian."
            )
        terms = [term for _, term in getattr(self.client.loss, "terms", ((1.0, self.client.loss),))]
        weighted = self.batch > 1 and any(getattr(term, "weights", ()) for term in terms)
        if self._clips_examples and (weighted or any(term.reduction != "mean" for term in terms)):
            raise InputError(
                "`defence` dp-sgd averages the gradients of single images; leave out --reduction sum and "
                "--class-weights, or use clip and gaussian."
            )
        channels = self.images.shape[-1]
        if self.normalisation is not None and any(len(part) not in (1, channels) for part in self.normalisation):
            raise InputError(
                f"`normalise` must fit images of {channels} channels; got {len(self.normalisation[0])} means. "
                "Choose another, or none."
            )
        if self.update is not None and (self.params is None or self.updates != 1):
            raise InputError("`update` is one update of one network: give its `params`, and the images of one batch.")
        if self.batch_stats is not None and self.network != "shared":
            raise InputError(f"`batch_stats` are of one network and need `network` shared; got {self.network!r}.")
        check_not_negative("trained_steps", self.trained_steps, integer=True)
        check_choice("trained_on", self.trained_on, TRAINED_ON)
        check_choice("train_optimizer", self.train_optimizer, OPTIMIZERS)
        check_positive("train_lr", self.train_lr)
        if self.trained_steps and self.trained_on == "data" and self.params is None:
            raise InputError(
                "`trained_steps` on the data set needs weights that were trained; make the victim with `make_victim`, "
                'or give trained_on="own".'
            )

    @property
    def updates(self) -> int:
        """Number of attacked updates."""
        return len(self.indices) // self.batch

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one private image, or of one item of other data."""
        return tuple(self.images.shape[1:])

    def batches(self, array: Any) -> Any:
        """An array with one row per private image as [u, b, ...]: its updates, and the images of each."""
        return array.reshape(self.updates, self.batch, *array.shape[1:])

    @property
    def _clips_examples(self) -> bool:
        return bool(self.defences) and self.defences[0].per_example

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
        arrays: dict[str, Any] = jax.tree.map(
            lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
            {name: getattr(self, name) for name in names} | {"labels": np.asarray(self.labels)},
        )
        return replace(self, **arrays, training=None)

    def write_checkpoint(self, folder: Path) -> None:
        """Keep the networks that were trained for this victim in a run directory, if there are any."""
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

    @functools.cached_property
    def knows_truth(self) -> bool:
        """True if the private images are known, so that candidates can be compared with them."""
        return not np.isnan(self.images).any()

    @property
    def knows_labels(self) -> bool:
        """True if all labels or targets are known."""
        return self.targets is not None or bool(np.all(np.asarray(self.labels) >= 0))

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

    @functools.cached_property
    def client_model(self) -> Any:
        """The model as the client has it: called with parameters alone."""
        return self.model if self.batch_stats is None else WithStatistics(self.model, self.batch_stats)

    @property
    def learns_statistics(self) -> bool:
        """True if the model has BatchNorm in evaluation mode, whose running statistics come from training."""
        return getattr(self.model, "norm", None) == "batch" and not getattr(self.model, "train", True)

    def in_training(self) -> "Victim":
        """This victim with BatchNorm in train mode."""
        return replace(self, model=self.model.clone(train=True), batch_stats=None)

    def in_evaluation(self, batch_stats: PyTree) -> "Victim":
        """This victim with these running statistics."""
        return replace(self, batch_stats=batch_stats)

    @property
    def attacker_model(self) -> Any:
        """The model as the attacker has it."""
        return self.client_model if self.knows_statistics else self.model

    @property
    def attacker_client(self) -> Client:
        """The client as the attacker repeats it."""
        return self.client if self.knows_order else replace(self.client, order=(), shuffle=None)

    @property
    def defence_name(self) -> str:
        """The defences as on the command line, "none" without any."""
        return " ".join(map(defence_text, self.defences)) or "none"

    def to_input(self, pixels: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """Pixels in [0, 1] in the units of the network's input."""
        if self.normalisation is None:
            return pixels
        mean, std = (jnp.asarray(part, pixels.dtype) for part in self.normalisation)
        return (pixels - mean) / std

    def to_pixels(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """The inverse of `to_input`."""
        if self.normalisation is None:
            return x
        mean, std = (jnp.asarray(part, x.dtype) for part in self.normalisation)
        return x * std + mean

    def target(self, labels: Any, dtype: Any = float) -> Float[Array, "b k"]:
        """Targets of the loss for images with these labels [b], or what is a target already [b, k]."""
        labels = jnp.asarray(labels)
        return labels.astype(dtype) if labels.ndim == 2 else self.client.loss.target(labels, self.num_classes, dtype)

    def loss(self, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"]) -> Float[Array, ""]:
        """The client's loss at inputs `x`, in the network's units."""
        return self.client.loss.value(self.logits(params, x), target)

    def logits(self, params: PyTree, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """The client's outputs at inputs `x`, in the network's units."""
        return self.client_model.apply({"params": params}, x)

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
        if self.batch_stats is not None:
            extra["batch_stats"] = f"sha256:{_digest(self.batch_stats)}"
            extra["knows_statistics"] = self.knows_statistics
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


def draw_params(model: nn.Module, key, image_shape: tuple[int, ...]) -> PyTree:
    """A network drawn with the model's own initialisation, in the precision jax is set to."""
    params = jax.jit(model.init)(key, jnp.zeros((1, *image_shape))).get("params")
    if not params:
        raise InputError(f"`model` must have parameters, whose gradient is shared; {type(model).__name__} has none.")
    return jax.tree.map(lambda leaf: leaf.astype(float), params)  # Linen draws float32
