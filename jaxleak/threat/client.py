"""The client's computation: one gradient, or steps of local training."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxleak.errors import InputError, check_choice, check_not_negative, check_positive
from jaxleak.threat.loss import CROSS_ENTROPY, Loss, loss_gradient

# Differentiating Adam needs a root that is never 0: below the smallest square of a float32 that is not.
ROOT = 1e-30
OPTIMIZERS = {
    "sgd": optax.sgd,
    "adam": lambda lr: optax.adam(lr, eps_root=ROOT),
}
SEVERAL = "images of an update"


@dataclass(frozen=True, kw_only=True)
class Client:
    """The client's computation of an update. The attacker knows all of it and repeats it on its candidate.

    Attributes:
        steps: local steps, after which the client shares by how much its weights fell, w_0 - w_K (FedAvg); 0 shares
            the gradient. With one step of SGD that is the gradient times `lr`.
        epochs: instead of `steps`: passes over the client's images.
        optimizer: of the local steps: "sgd", or "adam" with torch's defaults.
        lr: its learning rate.
        batch: images per local step, taken in turn; None: all of the client's.
        loss: what it minimises.
        clients: number of clients among which the images of an update are divided; the attacker sees the mean of
            their updates, as an aggregator passes it on.

    Source: McMahan et al. 2017 (FedAvg), algorithm 1.
    """

    steps: int = 0
    epochs: int = 0
    optimizer: str = "sgd"
    lr: float = 0.01
    batch: int | None = None
    clients: int = 1
    loss: Loss = CROSS_ENTROPY

    def __post_init__(self):
        for name in ("steps", "epochs"):
            check_not_negative(f"client_{name}", getattr(self, name), integer=True)
        if self.steps and self.epochs:
            raise InputError("`client_steps` and `client_epochs` exclude each other; give one of them.")
        check_choice("client_optimizer", self.optimizer, OPTIMIZERS)
        check_positive("client_lr", self.lr)
        check_positive("clients", self.clients, integer=True)
        if self.batch is not None:
            check_positive("client_batch", self.batch, integer=True)
            if not self.trains:
                raise InputError("`client_batch` is for local steps; give --client-steps or --client-epochs too.")

    @property
    def trains(self) -> bool:
        """True if the client shares a difference of weights."""
        return self.steps > 0 or self.epochs > 0

    def check(self, images: int) -> None:
        """Raise unless an update's images can be divided among clients and local steps.

        Raises:
            InputError: they cannot.
        """
        if images % self.clients:
            raise InputError(
                f"`clients` must divide the {SEVERAL}, {images}; got {self.clients}. Change --batch or --clients."
            )
        per_client = images // self.clients
        if self.batch is not None and per_client % self.batch:
            raise InputError(f"`client_batch` must divide a client's images, {per_client}; got {self.batch}.")

    def settings(self) -> dict[str, Any]:
        """Every field as plain data; the loss only where it is not cross-entropy, which older runs do not name."""
        named = {} if self.loss == CROSS_ENTROPY else {"loss": self.loss.name}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "loss"} | named

    def total_steps(self, images: int) -> int:
        """Local steps of one client, where an update holds so many images."""
        per_client = images // self.clients
        return self.steps or self.epochs * (per_client // (self.batch or per_client))


def client_update(
    client: Client, model, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"]
) -> PyTree:
    """The update of the client, or the mean over several clients; differentiable with respect to the images.

    Args:
        client: the computation.
        model: a Linen module; called as `model.apply({"params": params}, x)`.
        params: the weights it begins with, which the attacker knows.
        x: all images of the update, client by client.
        target: one target per image, as the loss takes it.
    """
    if client.clients == 1:
        return _one(client, model, params, x, target)
    x, target = (array.reshape(client.clients, -1, *array.shape[1:]) for array in (x, target))
    updates = jax.vmap(lambda x, target: _one(client, model, params, x, target))(x, target)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), updates)


def _one(client: Client, model, params, x, target) -> PyTree:
    if not client.trains:
        return loss_gradient(model, params, x, target, client.loss)
    steps = client.total_steps(len(x) * client.clients)
    optimizer = OPTIMIZERS[client.optimizer](client.lr)
    after, _ = train(optimizer, steps, client.batch, model, params, x, target, client.loss)
    return jax.tree.map(lambda before, after: before - after, params, after)


def train(optimizer, steps: int, batch: int | None, model, params: PyTree, x, target, loss: Loss = CROSS_ENTROPY):
    """The weights after so many steps on `batch` images at a time, in turn, and the loss before each step [steps]."""
    parts = 1 if batch is None else len(x) // batch
    x, target = (jnp.asarray(array).reshape(parts, -1, *array.shape[1:]) for array in (x, target))

    def step(carry, number):
        params, state = carry
        place = number % parts

        def of(params):
            return loss.value(model.apply({"params": params}, x[place]), target[place])

        value, gradient = jax.value_and_grad(of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return params, losses
