"""PRECODE: a defence by randomness within the network."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxleak.errors import InputError, check_not_negative
from jaxleak.models import MODELS, Transformer
from jaxleak.models.bottleneck import NOISE, Bottleneck
from jaxleak.models.own import AdaptedModel
from jaxleak.models.weights import WithVariables
from jaxleak.threat.defence import Defence


@dataclass(frozen=True, kw_only=True)
class Precode(Defence):
    """The network's head reads a random sample of its features.

    `make_victim` puts a `Bottleneck` before the head; its noise is drawn for each update. An attacker that is not told
    computes with 0. One that is (`knows_defence`) reads it from the update of one image (`noise_of`), and of several
    finds it along with the images.

    Source: Scheliga, Maeder & Seeland 2022 (PRECODE), section 4. Scheliga, Maeder & Seeland 2022 (PPP, arXiv
        2208.04767) attack it without the noise, by leaving out the gradients of the bottleneck and the head.
    Differs: in training before the attack the head reads the mean.

    Attributes:
        size: numbers of a sample; 0 is off.
        beta: weight of the divergence in the loss.
    """

    size: int = 256
    beta: float = 1e-3
    in_network = True

    def __post_init__(self):
        check_not_negative("size", self.size, integer=True)
        check_not_negative("beta", self.beta)

    def apply(self, update: PyTree, key: Key[Array, ""]) -> PyTree:
        del key
        return update

    def network(self, model: Any) -> Any:
        if self.size == 0:
            return model
        if isinstance(model, Bottleneck):
            if (model.size, model.beta) != (self.size, self.beta):
                raise InputError("`defence` precode is one layer of the network; name it once, or make a new victim.")
            return model
        ours = type(model).__module__.startswith("jaxleak.models.") and not isinstance(model, AdaptedModel)
        if not ours or isinstance(model, Transformer):
            names = ", ".join(name for name, kind in MODELS.items() if kind is not Transformer)
            raise InputError(f"`defence` precode is for models of the package that read images: {names}.")
        return Bottleneck(model, self.size, self.beta)  # pyright: ignore[reportArgumentType]

    def client_model(self, model: Any, key: Key[Array, ""], images: int) -> Any:
        return with_noise(model, jax.random.normal(key, (images, self.size), float)) if self.size else model


def with_noise(model: Any, noise: Float[Array, "b K"]) -> Any:
    """A network with a bottleneck, as it is called where the noise of its images is this."""
    return WithVariables(model, {NOISE: {"z": noise}})


def noise_size(model: Any) -> int:
    """Numbers of noise that the network takes for each image: 0 if none."""
    while isinstance(model, WithVariables):
        model = model.model
    return model.size if isinstance(model, Bottleneck) else 0


def noise_of(params: PyTree, update: PyTree) -> Float[Array, "1 K"]:
    """The noise of the sample that one image's gradient was computed with.

    A dense layer's weight gradient is the outer product of its input and its bias's gradient, so that the update shows
    what `encode` and `decode` read: the features, and the sample made of them.

    Source: Phong et al. 2018, section 3 (the input of a dense layer).

    Args:
        params: of a network with a bottleneck.
        update: the gradient; of one that noise was added to the nearest input.
    """

    def read_by(layer: str) -> Float[Array, "f"]:
        slope = update[layer]["bias"]
        square = jnp.sum(jnp.square(slope))
        return update[layer]["kernel"] @ slope / jnp.where(square > 0, square, 1)

    encode = params["encode"]
    mean, log_variance = jnp.split(read_by("encode") @ encode["kernel"] + encode["bias"], 2)
    return ((read_by("decode") - mean) / jnp.exp(log_variance / 2))[None]
