"""The client's computation: one gradient, or steps of local training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxleak.errors import InputError, check_choice, check_not_negative, check_positive, check_seed
from jaxleak.threat.loss import CROSS_ENTROPY, Loss, as_loss, loss_gradient
from jaxleak.threat.optimizers import OPTIMIZERS, SGD_ONLY, clip_norm, momentum, sgd_response

SEVERAL = "images of an update"
PRECISIONS = {"float32": 24, "tf32": 11, "float16": 11, "bfloat16": 8}  # significant bits of the factors of products
Epoch = Sequence[np.ndarray]  # the images of each local step, by their places
OF_OLD = ("steps", "epochs", "optimizer", "lr", "batch", "clients")  # fields that every run names
FOR_STEPS = ("batch", "momentum", "nesterov", "dampening", "weight_decay", "clip", "order", "shuffle", "drop_last")


@dataclass(frozen=True, kw_only=True)
class Client:
    """The client's computation of an update. The attacker knows all of it and repeats it on its candidate.

    Attributes:
        steps: local steps, after which the client shares by how much its weights fell, w_0 - w_K (FedAvg); 0 shares
            the gradient. With one step of SGD that is the gradient times `lr`.
        epochs: instead of `steps`: passes over the client's images.
        optimizer: of the local steps, as torch's of that name: "sgd", "adam", "adamw".
        lr: its learning rate; or several, one for each local step or for each of `epochs`.
        batch: images per local step; None: all of the client's. The last of a pass may be smaller.
        loss: what it minimises; also by its text, or one's own function (`loss.as_loss`).
        clients: number of clients among which the images of an update are divided; the attacker sees the mean of
            their updates, as an aggregator passes it on.
        momentum, nesterov, dampening: of SGD.
        weight_decay: an L2 term of SGD and Adam, decoupled in AdamW; None: torch's, 0.01 of AdamW and else 0.
        clip: largest norm of the gradient of a local step (`clip_grad_norm_`); None: it is not clipped.
        order: places of a client's images in the order of use, one pass or all passes in turn; () is 0, 1, 2 ...
        shuffle: instead of `order`: seed from which a new order is drawn for each pass; None: none is.
        drop_last: whether a last batch that is not full is left out (torch's `DataLoader(drop_last=True)`).
        precision: arithmetic of its products, one of `PRECISIONS`. The attacker computes in its own; an audit allows
            for the difference.

    Source: McMahan et al. 2017 (FedAvg), algorithm 1.

    Example:
        >>> import jaxleak
        >>> client = jaxleak.Client(epochs=2, lr=0.05, batch=4)
        >>> client.total_steps(8)  # of 8 images
        4
    """

    steps: int = 0
    epochs: int = 0
    optimizer: str = "sgd"
    lr: float | Sequence[float] = 0.01
    batch: int | None = None
    clients: int = 1
    loss: Any = CROSS_ENTROPY  # a Loss, whatever it was given as
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float | None = None
    clip: float | None = None
    order: tuple[int, ...] = ()
    shuffle: int | None = None
    drop_last: bool = False
    precision: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "loss", as_loss(self.loss))
        rates: Any = tuple(self.lr) if isinstance(self.lr, tuple | list) else (self.lr,)
        object.__setattr__(self, "lr", rates if len(rates) > 1 else rates[0] if rates else 0.0)
        object.__setattr__(self, "order", tuple(self.order))
        for name in ("steps", "epochs"):
            check_not_negative(f"client_{name}", getattr(self, name), integer=True)
        if self.steps and self.epochs:
            raise InputError("`client_steps` and `client_epochs` exclude each other; give one of them.")
        check_choice("client_optimizer", self.optimizer, OPTIMIZERS)
        check_choice("client_precision", self.precision, PRECISIONS)
        for rate in rates or (0.0,):
            check_positive("client_lr", rate)
        check_positive("clients", self.clients, integer=True)
        self._check_training()

    def _check_training(self) -> None:
        for name in ("batch", "clip"):
            if getattr(self, name) is not None:
                check_positive(f"client_{name}", getattr(self, name), integer=name == "batch")
        for name in ("momentum", "dampening"):
            check_not_negative(f"client_{name}", getattr(self, name))
        if self.weight_decay is not None:
            check_not_negative("client_weight_decay", self.weight_decay)
        if self.shuffle is not None:
            check_seed("client_shuffle", self.shuffle)
        for field in fields(self):
            if field.name in FOR_STEPS and getattr(self, field.name) != field.default and not self.trains:
                other = "; of a shared gradient it is --defence clip:NORM" if field.name == "clip" else ""
                raise InputError(
                    f"`client_{field.name}` is for local steps; give --client-steps or --client-epochs too{other}."
                )
        for name in SGD_ONLY:
            if getattr(self, name) and self.optimizer != "sgd":
                raise InputError(f"`client_{name}` is a setting of sgd, not of {self.optimizer}; leave it out.")
        if self.nesterov and (not self.momentum or self.dampening):
            raise InputError("`client_nesterov` needs a `client_momentum` above 0, and no `client_dampening`.")
        if self.order and self.shuffle is not None:
            raise InputError("`client_order` and `client_shuffle` exclude each other; give one of them.")
        if isinstance(self.lr, tuple) and not self.trains:
            raise InputError("`client_lr` may be several for local steps; give --client-steps or --client-epochs too.")

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
        if self.batch is not None and self.batch > per_client:
            raise InputError(f"`client_batch` must be at most a client's images, {per_client}; got {self.batch}.")
        if not self.trains:
            return
        passes, size = self.total_passes(images), len(self.order)
        if size not in (0, per_client, passes * per_client):
            raise InputError(
                f"`client_order` must be the places of {per_client} images for one pass, or of all {passes} passes; "
                f"got {size} places."
            )
        for first in range(0, size, per_client):
            if sorted(self.order[first : first + per_client]) != list(range(per_client)):
                raise InputError(
                    f"`client_order` must name each of 0 to {per_client - 1} once in a pass; "
                    f"got {' '.join(map(str, self.order[first : first + per_client]))}."
                )
        if isinstance(self.lr, tuple) and len(self.lr) not in (self.epochs, self.total_steps(images)):
            a_pass = f"{self.epochs} passes or " if self.epochs else ""
            raise InputError(
                f"`client_lr` must be one number, or one for each of {a_pass}{self.total_steps(images)} local steps; "
                f"got {len(self.lr)}."
            )

    def settings(self) -> dict[str, Any]:
        """Every field as plain data; those that older runs do not name only where they are not as they were then."""
        named: dict[str, Any] = {} if self.loss == CROSS_ENTROPY else {"loss": self.loss.name}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in OF_OLD or (field.name != "loss" and value != field.default):
                named[field.name] = list(value) if isinstance(value, tuple) else value
        return named

    def total_steps(self, images: int) -> int:
        """Local steps of one client, where an update holds so many images."""
        return self.steps or self.epochs * self._steps_per_pass(images // self.clients)

    def _steps_per_pass(self, per_client: int) -> int:
        size = min(self.batch or per_client, per_client)
        return per_client // size if self.drop_last else -(-per_client // size)

    def rates(self, images: int) -> float | Float[np.ndarray, "steps"]:
        """The learning rate; of several that of each local step."""
        if not isinstance(self.lr, tuple):
            return float(self.lr)  # pyright: ignore[reportArgumentType]
        steps = self.total_steps(images)
        return np.repeat(self.lr, steps // len(self.lr)) if len(self.lr) == self.epochs else np.asarray(self.lr)

    def stepper(self, images: int) -> optax.GradientTransformation:
        """The optimiser of the local steps."""
        rates, more = self.rates(images), {}
        lr = (lambda step: jnp.asarray(rates)[step]) if isinstance(rates, np.ndarray) else rates
        if self.momentum:
            more["moving"] = momentum(self.momentum, self.dampening, self.nesterov)
        optimizer = OPTIMIZERS[self.optimizer](lr, self.weight_decay, **more)
        return optimizer if self.clip is None else optax.chain(clip_norm(self.clip), optimizer)

    def length(self, images: int) -> float:
        """By how much weights fall in all local steps where every gradient is 1: of Adam the sum of its rates."""
        rates = np.broadcast_to(self.rates(images), self.total_steps(images))
        response = sgd_response(len(rates), self.momentum, self.dampening, self.nesterov)
        return float(np.sum(rates * (response if self.optimizer == "sgd" else 1.0)))

    def shares_gradient(self, images: int) -> bool:
        """True if an update of so many images is one gradient of all of them, but for what `gradient` undoes."""
        if not self.trains:
            return True
        whole = self.batch is None or self.batch >= images // self.clients
        return whole and self.total_steps(images) == 1 and self.optimizer == "sgd" and self.clip is None

    def gradient(self, update: PyTree, params: PyTree, images: int) -> PyTree:
        """The gradient behind an update where `shares_gradient`: without the step's length and its weight decay.

        A tensor that did not move was not trained, and did not decay.

        Args:
            update: what the client shared.
            params: the weights it began with.
            images: of the update.
        """
        if not self.trains:
            return update
        unit, decay = self.length(images), self.weight_decay or 0.0

        def undone(leaf, weight):
            return leaf / unit - jnp.where(jnp.any(leaf != 0), decay * weight, 0)

        return jax.tree.map(undone, update, params)

    def total_passes(self, images: int) -> int:
        """Passes over a client's images that are begun."""
        return -(-self.total_steps(images) // self._steps_per_pass(images // self.clients)) if self.trains else 1

    def repeats(self, images: int) -> bool:
        """True if there are several passes and every image is used in each."""
        used = [sorted(np.concatenate(steps).tolist()) for steps in self.passes(images)] if self.trains else []
        return len(used) > 1 and all(places == list(range(images // self.clients)) for places in used)

    def passes(self, images: int, *, apart: bool = False) -> Iterator[Epoch]:
        """The places of each local step's images, pass by pass; the last pass may be cut short.

        Args:
            images: of the update.
            apart: whether each pass has images of its own, after those of the pass before.
        """
        per_client, left = images // self.clients, self.total_steps(images)
        rng = None if self.shuffle is None else np.random.default_rng(self.shuffle)
        orders = np.asarray(self.order or np.arange(per_client)).reshape(-1, per_client)
        size, steps, number = min(self.batch or per_client, per_client), self._steps_per_pass(per_client), 0
        while left > 0:
            order = orders[number % len(orders)] if rng is None else rng.permutation(per_client)
            order = order + per_client * number * apart
            yield [order[step * size : (step + 1) * size] for step in range(min(steps, left))]
            left, number = left - steps, number + 1


def client_update(
    client: Client, model, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"], copies: int = 1
) -> PyTree:
    """The update of the client, or the mean over several clients; differentiable with respect to the images.

    Args:
        client: the computation.
        model: a Linen module; called as `model.apply({"params": params}, x)`.
        params: the weights it begins with, which the attacker knows.
        x: all images of the update, client by client.
        target: one target per image, as the loss takes it.
        copies: of `x` and `target`, one after the other: where each pass over the images has a copy of its own.
    """
    if client.clients == 1:
        return _one(client, model, params, x, target, copies)

    def by_client(array):
        array = array.reshape(copies, client.clients, -1, *array.shape[1:])
        return jnp.swapaxes(array, 0, 1).reshape(client.clients, -1, *array.shape[3:])

    updates = jax.vmap(lambda x, target: _one(client, model, params, x, target, copies))(
        by_client(x), by_client(target)
    )
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), updates)


def _one(client: Client, model, params, x, target, copies: int) -> PyTree:
    if not client.trains:
        return loss_gradient(model, params, x, target, client.loss)
    images = len(x) * client.clients // copies
    passes = list(client.passes(images, apart=copies > 1))
    after, _ = train(client.stepper(images), passes, model, params, x, target, client.loss)
    return jax.tree.map(lambda before, after: before - after, params, after)


def train(optimizer, passes: Sequence[Epoch], model, params: PyTree, x, target, loss: Loss = CROSS_ENTROPY):
    """The weights after the local steps of all passes, and the loss before each step [steps].

    Steps on equally many images are one program, however many there are.
    """
    x, target = jnp.asarray(x), jnp.asarray(target)

    def step(carry, places):
        params, state = carry

        def of(params):
            return loss.value(model.apply({"params": params}, x[places]), target[places])

        value, gradient = jax.value_and_grad(of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    def one_pass(carry, parts):
        values = []
        for part in parts:
            carry, value = jax.lax.scan(step, carry, part)
            values.append(value)
        return carry, jnp.concatenate(values)

    carry, losses = (params, optimizer.init(params)), []
    if len({len(places) for steps in passes for places in steps}) == 1:  # as if all were one pass
        passes = [[places for steps in passes for places in steps]]
    for _, alike in groupby(map(_by_size, passes), key=lambda parts: [part.shape for part in parts]):
        together = [np.stack(parts) for parts in zip(*alike, strict=True)]
        if len(together[0]) == 1:
            carry, values = one_pass(carry, [part[0] for part in together])
        else:
            carry, values = jax.lax.scan(one_pass, carry, together)
        losses.append(values.reshape(-1))
    return carry[0], jnp.concatenate(losses)


def _by_size(steps: Epoch) -> list[np.ndarray]:
    """Neighbouring steps on equally many images as arrays [steps, images]."""
    return [np.stack(list(alike)) for _, alike in groupby(steps, key=len)]
