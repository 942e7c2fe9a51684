"""A short real training run: victims at a later stage, and what a defence costs in accuracy."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jaxtyping import Float, PyTree

from jaxleak.data import Dataset
from jaxleak.errors import InputError, check_positive
from jaxleak.kernels.precision import full_precision
from jaxleak.threat.observe import observe
from jaxleak.threat.optimizers import OPTIMIZERS

BATCH = 64
STATISTICS_BATCHES = 20  # from which running statistics are measured
BLOCK = 500  # images whose outputs are computed at once
HELD_OUT = 1000  # images, at most, on which accuracy is measured where there is no other split


class Trainee(Protocol):
    """The part of `Victim` that its training uses."""

    @property
    def indices(self) -> list[int]:
        """The private images, which are not trained on."""
        ...

    @property
    def train_optimizer(self) -> str:
        """One of `optimizers.OPTIMIZERS`."""
        ...

    @property
    def client(self) -> Any:
        """The client, of which the loss is used."""
        ...

    @property
    def train_lr(self) -> float:
        """Learning rate of the optimiser."""
        ...

    @property
    def model(self) -> Any:
        """The network."""
        ...

    @property
    def learns_statistics(self) -> bool:
        """True if the model has BatchNorm in evaluation mode."""
        ...

    def in_training(self) -> "Trainee":
        """This victim with BatchNorm in train mode."""
        ...

    def in_evaluation(self, batch_stats: PyTree) -> "Trainee":
        """This victim with these running statistics."""
        ...

    def logits(self, params: PyTree, x: Any) -> Any:
        """The model's outputs."""
        ...

    def to_input(self, pixels: Any) -> Any:
        """Pixels in the network's units."""
        ...

    def target(self, labels: Any) -> Any:
        """Targets of the loss."""
        ...

    def loss(self, params: PyTree, x: Any, target: Any) -> Any:
        """The client's loss."""
        ...

    def share(self, params: PyTree, x: Any, target: Any, key: Any) -> PyTree:
        """The update of these images, defended."""
        ...


class Trained(NamedTuple):
    """A network and how it came about."""

    params: PyTree
    losses: Float[np.ndarray, "steps"]  # of each batch, before its step
    accuracy: float  # on images that were not trained on
    batch_stats: PyTree | None = None  # running statistics, where the victim's BatchNorm is in evaluation mode


def train_network(
    victim: Trainee,
    params: PyTree,
    data: Dataset,
    *,
    steps: int,
    batch: int = BATCH,
    held_out: Dataset | None = None,
    seed: int = 0,
) -> Trained:
    """Train `params` on random batches of `data`, the victim's own images left out.

    Every step's gradient passes the victim's defences, as if one client shared it, before the optimiser sees it.
    BatchNorm is in train mode meanwhile; where the victim's is in evaluation mode, its running statistics are measured
    afterwards, with the trained weights.

    Args:
        victim: model, normalisation, defences, `train_optimizer` and `train_lr`.
        params: where to begin.
        data: what to train on.
        steps: of the optimiser.
        batch: images per step.
        held_out: where accuracy is measured, at most 10,000 images; None: a tenth of `data`, at most 1,000, that is
            then not trained on.
        seed: from which batches and noise are drawn.

    Raises:
        InputError: too few images.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> import jaxleak
        >>> np.savez("own.npz", images=np.zeros((40, 4, 4, 1), np.uint8), labels=np.arange(40) % 2)
        >>> data = jaxleak.load_dataset("own.npz")
        >>> victim = jaxleak.make_victim("mlp", data, [0], fields={"hidden": (16,)})
        >>> params = jaxleak.draw_params(victim.model, jax.random.key(0), (4, 4, 1))
        >>> jaxleak.train_network(victim, params, data, steps=3, batch=8).losses.shape
        (3,)
    """
    check_positive("trained_steps", steps, integer=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.setdiff1d(data.index, victim.indices))
    apart = 0 if held_out is not None else min(HELD_OUT, len(order) // 10)
    if len(order) - apart < batch:
        raise InputError(
            f"`trained_steps` needs at least {batch} images to train on; `dataset` {data.name} leaves "
            f"{len(order) - apart}. Choose a larger data set."
        )
    mine = order[apart:]
    chosen = np.concatenate([rng.permutation(mine) for _ in range(-(-steps * batch // len(mine)))])[: steps * batch]
    used, places = np.unique(chosen, return_inverse=True)
    pixels, labels = _labelled(data, used.tolist())
    pixels, places = np.asarray(pixels, np.float32), places.reshape(steps, batch)
    learner = victim.in_training() if victim.learns_statistics else victim
    optimizer = OPTIMIZERS[victim.train_optimizer](victim.train_lr)
    state, key, losses = optimizer.init(params), jax.random.key(seed), []

    @jax.jit
    @full_precision()
    def step(params, state, x, label, key):
        target = victim.target(label)
        x = learner.to_input(x.astype(float))
        gradient = learner.share(params, x, target, key)
        updates, state = optimizer.update(gradient, state, params)
        loss = learner.loss(params, x, target)
        return optax.apply_updates(params, updates), state, loss

    for number, place in enumerate(places):
        drawn = jax.random.fold_in(key, number)
        params, state, loss = step(params, state, pixels[place], labels[place], drawn)
        losses.append(loss)
    loss_values = np.array(losses, float)
    if not np.isfinite(loss_values).all():
        first = int(np.argmin(np.isfinite(loss_values)))
        raise InputError(
            f"`train_lr` {victim.train_lr:g} makes the loss {loss_values[first]} at step {first + 1} of training; "
            "use a smaller one."
        )
    test = data if held_out is None else held_out
    tested = order[:apart] if held_out is None else rng.permutation(held_out.index)[:10_000]
    statistics = None
    if victim.learns_statistics:
        statistics = running_statistics(learner, params, data, mine[: STATISTICS_BATCHES * batch].tolist(), batch)
        victim = victim.in_evaluation(statistics)
    return Trained(params, loss_values, accuracy(victim, params, test, tested.tolist()), statistics)


def running_statistics(
    victim: Trainee, params: PyTree, data: Dataset, indices: Sequence[int], batch: int = BATCH
) -> PyTree:
    """The collection `batch_stats` of BatchNorm layers: mean and variance of their inputs.

    They are those of batches of `batch` images, averaged over the batches. The victim's BatchNorm is in train mode.

    Differs: an average over batches with the same weights and of biased variances; torch's running ones decay while the
    weights change.
    """

    @jax.jit
    @full_precision()
    def moments(params, x, label):
        return observe(victim.model, params, victim.to_input(x), victim.target(label), statistics=True).statistics

    parts = []
    for start in range(0, len(indices) - batch + 1, batch):
        pixels, labels = _labelled(data, list(indices[start : start + batch]))
        parts.append(moments(params, jnp.asarray(pixels, float), labels))
    means = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), axis=0), *parts)
    return unflatten_dict(
        {tuple(name.split("/")): {"mean": averaged.mean, "var": averaged.var} for name, averaged in means.items()}
    )


def accuracy(victim: Trainee, params: PyTree, data: Dataset, indices: Sequence[int]) -> float:
    """Share of these images that the network puts in the right class, of bits the share right; NaN of no images."""
    if not indices:
        return float("nan")

    @jax.jit
    @full_precision()
    def right(params, x, label):
        return jnp.sum(victim.client.loss.hits(victim.logits(params, victim.to_input(x)), victim.target(label)))

    total = 0.0
    for start in range(0, len(indices), BLOCK):
        pixels, labels = _labelled(data, list(indices[start : start + BLOCK]))
        total += float(right(params, jnp.asarray(pixels, float), labels))
    return total / len(indices)


def _labelled(data: Dataset, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Images, and their labels [n] or targets [n, k]."""
    pixels, labels = data.images(indices)
    targets = data.targets(indices)
    return pixels, labels if targets is None else targets
