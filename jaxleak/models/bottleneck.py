"""A network whose head reads a random sample of its features, as PRECODE has it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxleak.kernels.dense import blocked_dot_general
from jaxleak.models.layers import AROUND_HEAD
from jaxleak.models.weight_init import layer_inits

NOISE = "noise"  # the collection that holds the noise of each image's sample


class Bottleneck(nn.Module):
    """A network with a variational bottleneck between its features and its head.

    Features r become (m, s) = encode(r), of K numbers each, and the sample z = m + exp(s / 2) n, n ~ N(0, 1); the head
    reads decode(z). Whatever loss is differentiated, beta KL(N(m, exp(s)) | N(0, 1)), mean over images, is
    differentiated with it; a loss's value is without. The noise n [b, K] is the variable "z" of the collection
    `NOISE`; where that is missing n is 0.

    Source: Scheliga, Maeder & Seeland 2022 (PRECODE), section 4.
    Differs: the variance is exp(s), as variational autoencoders have it; the two layers have torch's initialisation.

    Attributes:
        body: a network of `MODELS`.
        size: K.
        beta: weight of the divergence.
    """

    body: nn.Module
    size: int = 256
    beta: float = 1e-3

    def setup(self):
        nn.share_scope(self, self.body)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """The head's outputs [b, k] of images [b, h, w, c]."""

        def sampled(head: nn.Dense, features: Array) -> Array:
            read, divergence = self._sample(features)
            return _with_penalty(head(read), self.beta * divergence)

        token = AROUND_HEAD.set(sampled)
        try:
            return self.body(x)
        finally:
            AROUND_HEAD.reset(token)

    def _sample(self, features: Float[Array, "b f"]) -> tuple[Float[Array, "b f"], Float[Array, ""]]:
        mean, log_variance = jnp.split(self._dense(2 * self.size, features, "encode"), 2, axis=-1)
        noise = self.get_variable(NOISE, "z", jnp.zeros_like(mean))
        z = mean + jnp.exp(log_variance / 2) * noise
        each = jnp.sum(jnp.exp(log_variance) + jnp.square(mean) - 1 - log_variance, axis=-1) / 2
        return self._dense(features.shape[-1], z, "decode"), jnp.mean(each)

    def _dense(self, size: int, x: Array, name: str) -> Array:
        inits = layer_inits("torch", x.shape[-1])
        return nn.Dense(size, **inits, dot_general=blocked_dot_general, name=name, parent=self)(x)

    @property
    def num_classes(self) -> int:
        return self.body.num_classes  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def torch_names(self) -> tuple[tuple[str, str], ...]:
        """The body's; `encode` and `decode` have no other."""
        return getattr(self.body, "torch_names", ())

    def flattened(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """As the body has it, but that `encode` reads what its head would."""
        if hasattr(self.body, "flattened"):
            found: Any = self.body.flattened(image_shape)
            layers = found if isinstance(found, dict) else dict([found])
        else:
            shape: Any = getattr(self.body, "head_input_shape", lambda _: None)(image_shape)
            layers = {"head": shape}
        return {"encode" if layer == "head" else layer: shape for layer, shape in layers.items()}


@jax.custom_vjp
def _with_penalty(outputs: Array, penalty: Float[Array, ""]) -> Array:
    """The outputs as they are; the slope of what is made of them has the penalty's slope added."""
    del penalty
    return outputs


def _forward(outputs: Array, penalty: Array) -> tuple[Array, Array]:
    return outputs, penalty


def _backward(penalty: Array, slope: Array) -> tuple[Array, Array]:
    return slope, jnp.ones_like(penalty)


_with_penalty.defvjp(_forward, _backward)
