"""The network that is attacked: model, weights, the units of its input and its training before the update."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxleak.errors import InputError, check_choice, check_not_negative, check_positive, check_seed
from jaxleak.models import WithStatistics
from jaxleak.models.draws import draw
from jaxleak.threat.optimizers import OPTIMIZERS

NETWORKS = ("shared", "per-image", "per-trial")
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
class Network:
    """One network, or one for each update or trial.

    Attributes:
        model: a Linen module whose last dense layer is named "head".
        model_name: its name in rows and tables.
        network: "shared" (one network), "per-image" (one per update) or "per-trial" (a fresh one for each trial).
        network_seed: seed from which networks are drawn.
        params: given weights: one set ("shared") or stacked over updates ("per-image"); None draws them.
        weights_name: source of given weights.
        normalisation: mean and standard deviation of each channel that the network's input is brought to; None: pixels.
        batch_stats: running statistics of a network whose BatchNorm is in evaluation mode, which has network="shared";
            None: those of a new network, 0 and 1.
        trained_steps: steps that the network was trained for before the update.
        trained_on: "data" (random images of the data set; done by `make_victim`) or "own" (the update's own images, all
            at once: a later stage of this client's training).
        train_optimizer, train_lr: of that training.
        training: its losses, where it is done already: `{"loss": [n, steps], "accuracy": [n], "id": ...}`.
    """

    model: nn.Module
    model_name: str
    network: str = "per-trial"
    network_seed: int = 0
    params: PyTree | None = None
    weights_name: str = "given"
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    batch_stats: PyTree | None = None
    trained_steps: int = 0
    trained_on: str = "data"
    train_optimizer: str = "adam"
    train_lr: float = 1e-3
    training: dict[str, Any] | None = None

    def _check_network(self) -> None:
        check_choice("network", self.network, NETWORKS)
        check_seed("network_seed", self.network_seed)
        if self.params is not None and self.network == "per-trial":
            raise InputError(
                "`network` per-trial draws a fresh network for each trial and cannot use given `weights`; "
                "use --network shared, or leave the weights out."
            )

    def _check_training(self, channels: int) -> None:
        if self.normalisation is not None and any(len(part) not in (1, channels) for part in self.normalisation):
            raise InputError(
                f"`normalise` must fit images of {channels} channels; got {len(self.normalisation[0])} means. "
                "Choose another, or none."
            )
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

    @functools.cached_property
    def client_model(self) -> Any:
        """The model as the client has it: called with parameters alone."""
        return self.model if self.batch_stats is None else WithStatistics(self.model, self.batch_stats)

    @property
    def learns_statistics(self) -> bool:
        """True if the model has BatchNorm in evaluation mode, whose running statistics come from training."""
        return getattr(self.model, "norm", None) == "batch" and not getattr(self.model, "train", True)

    def in_training(self) -> Self:
        """The same with BatchNorm in train mode."""
        return replace(self, model=self.model.clone(train=True), batch_stats=None)

    def in_evaluation(self, batch_stats: PyTree) -> Self:
        """The same with these running statistics."""
        return replace(self, batch_stats=batch_stats)

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

    def logits(self, params: PyTree, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """The client's outputs at inputs `x`, in the network's units."""
        return self.client_model.apply({"params": params}, x)


def draw_params(model: nn.Module, key, image_shape: tuple[int, ...]) -> PyTree:
    """A network drawn with the model's own initialisation, in the precision jax is set to.

    Example:
        >>> import jax
        >>> import jaxleak
        >>> params = jaxleak.draw_params(jaxleak.build_model("mlp", 10, hidden=(16,)), jax.random.key(0), (8, 8, 1))
        >>> params["dense1"]["kernel"].shape
        (64, 16)
    """
    params = draw(lambda key: model.init(key, jnp.zeros((1, *image_shape))).get("params"), key)
    if not params:
        raise InputError(f"`model` must have parameters, whose gradient is shared; {type(model).__name__} has none.")
    return jax.tree.map(lambda leaf: leaf.astype(float), params)  # Linen draws float32
