"""Two clients that train a model together, one of which also trains a generator against it (`generator`)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxleak

ARTIFICIAL = 10  # the class of generated pictures, behind MNIST's ten
FIELDS = {"activation": "tanh", "weight_init": "torch"}
STEPS, GENERATED, BATCH = 30, 60, 64  # steps a round of a client, and of the generator
NOISE = 100
MODEL = jaxleak.build_model("lenet", ARTIFICIAL + 1, **FIELDS)
ADAM = optax.adam(1e-3)


class Generator(nn.Module):
    """Noise [b, 100] -> pictures [b, 28, 28, 1] in [0, 1]."""

    @nn.compact
    def __call__(self, noise):
        x = nn.relu(nn.Dense(7 * 7 * 32)(noise)).reshape(-1, 7, 7, 32)
        for channels in (32, 1):
            x = nn.relu(x)
            x = nn.Conv(channels, (3, 3))(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
        return nn.sigmoid(x)


GENERATOR = Generator()


def untrained(seed: int) -> Any:
    return GENERATOR.init(jax.random.key(seed), jnp.zeros((1, NOISE)))["params"]


def pictures_of(generator: Any, key: Any, count: int) -> Any:
    return GENERATOR.apply({"params": generator}, jax.random.normal(key, (count, NOISE)))


def logits_of(params: Any, images: Any) -> Any:
    return MODEL.apply({"params": params}, images)


def classes(params: Any, images: Any) -> Any:
    return jnp.argmax(logits_of(params, images), axis=1)


def loss_of(params: Any, images: Any, labels: Any):
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, images), labels).mean()


def sampled(params: Any, key: Any, images: Any, labels: Any):
    """A client's loss on a batch of its images."""
    chosen = jax.random.randint(key, (BATCH,), 0, len(images))
    return loss_of(params, images[chosen], labels[chosen])


def fooled(generator: Any, key: Any, shared: Any, digit: Any):
    """The generator's: the shared model should take its pictures for the digit."""
    return loss_of(shared, pictures_of(generator, key, BATCH), jnp.full(BATCH, digit))


@partial(jax.jit, static_argnums=0)
def step(loss: Any, params: Any, state: Any, key: Any, *given: Any) -> tuple[Any, Any]:
    moves, state = ADAM.update(jax.grad(loss)(params, key, *given), state)
    return optax.apply_updates(params, moves), state


def descend(loss: Any, steps: int, params: Any, key: Any, *given: Any) -> Any:
    """Steps of Adam, begun anew, on loss(params, key, *given): one by one, as XLA's convolutions are slow in loops."""
    state = ADAM.init(params)
    for one in jax.random.split(key, steps):
        params, state = step(loss, params, state, one, *given)
    return params


def federated(private: Any, own: Any, digit: int, seed: int, rounds: int) -> tuple[Any, Any]:
    """The shared model and the attacker's generator after so many rounds."""
    first, key = jax.random.split(jax.random.key(seed))
    shared, generator = MODEL.init(first, private[0][:1])["params"], untrained(seed)
    for one in jax.random.split(key, rounds):
        keys = jax.random.split(one, 4)
        generator = descend(fooled, GENERATED, generator, keys[0], shared, digit)
        made = pictures_of(generator, keys[1], len(own[0]) // 5)
        images = jnp.concatenate([own[0], made])
        labels = jnp.concatenate([own[1], jnp.full(len(made), ARTIFICIAL)])
        clients = (
            descend(sampled, STEPS, shared, key, *data)
            for key, data in ((keys[2], private), (keys[3], (images, labels)))
        )
        shared = jax.tree.map(lambda a, b: (a + b) / 2, *clients)
    return shared, generator
