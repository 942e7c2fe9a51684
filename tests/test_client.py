"""Local steps: the update equals torch's, and so does what an attacker sees who takes the same steps."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import DLG
from jaxleak.attacks.distances import squared_norm
from jaxleak.attacks.trial import Trial
from jaxleak.errors import InputError
from jaxleak.models import MLP, LeNet, ResNet
from jaxleak.models.resnet import BasicBlock
from jaxleak.models.weights import from_torch, to_torch
from jaxleak.threat.client import OPTIMIZERS, Client, client_update
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.victim import Victim, draw_params
from tests.fixtures import quick_jit
from tests.oracles.cases import lenet_cases, to_nchw, to_nhwc
from tests.oracles.require_torch import require_torch
from tests.trials import job

CASE = lenet_cases()[-1]
SHAPE = CASE.image.shape[1:]
MODEL = LeNet(num_classes=CASE.num_classes)
PARAMS = from_torch(MODEL, CASE.state_dict, SHAPE)
IMAGES = np.random.default_rng(0).random((4, *SHAPE))
DUMMIES = np.random.default_rng(1).standard_normal((4, *SHAPE))
LABELS = np.array([3, 1, 1, 8])
KNOWN = replace(DLG, name="known", label="known")

CLIENTS = {
    "one step of SGD": Client(steps=1, lr=0.3),
    "three steps of SGD": Client(steps=3, lr=0.3),
    "one step of Adam": Client(steps=1, optimizer="adam", lr=1e-2),
    "three steps of Adam": Client(steps=3, optimizer="adam", lr=1e-2),
    "local batches, from the first again": Client(steps=5, lr=0.3, batch=1),
    "two epochs in local batches, Adam": Client(epochs=2, optimizer="adam", lr=1e-2, batch=2),
    "two clients, two epochs each": Client(epochs=2, lr=0.3, batch=1, clients=2),
    "four clients, one gradient each": Client(clients=4),
}


def victim_of(client: Client, **changes) -> Victim:
    settings: dict[str, Any] = {
        "model": MODEL,
        "model_name": "lenet",
        "dataset": "golden",
        "split": "all",
        "indices": [0, 1, 2, 3],
        "images": IMAGES,
        "labels": LABELS,
        "num_classes": CASE.num_classes,
        "network": "shared",
        "params": PARAMS,
        "batch": 4,
        "client": client,
    }
    return Victim(**settings | changes)


class Both(NamedTuple):
    """Update, objective and its gradient at DUMMIES, of a client."""

    update: dict[str, np.ndarray]  # torch's names and layout
    value: float
    slope: np.ndarray  # NHWC


def ours(client: Client) -> Both:
    trial = Trial(attack=KNOWN, victim=victim_of(client), threshold=1e-4)
    shared = trial.shared()

    def both(flat):
        problem = trial.prepare(shared, job())
        return problem.update, *trial.attacker.objective(shared, problem)(flat)

    update, value, slope = quick_jit(both)(jnp.ravel(DUMMIES))
    return Both(to_torch(MODEL, update, SHAPE), float(value), np.reshape(slope, DUMMIES.shape))


def torchs(client: Client) -> Both:
    import torch

    from tests.oracles import torch_client
    from tests.oracles.torch_lenet import lenet_from

    net = lenet_from(CASE.state_dict, *SHAPE[:2])
    images, dummies, labels = (torch.from_numpy(array) for array in (to_nchw(IMAGES), to_nchw(DUMMIES), LABELS))
    settings: dict[str, Any] = {
        "steps": client.total_steps(4),
        "optimizer": client.optimizer,
        "lr": client.lr,
        "batch": client.batch,
        "clients": client.clients,
    }
    update = torch_client.client_update(net, images, labels, **settings)
    value, slope = torch_client.objective_and_slope(net, update, dummies, labels, **settings)
    return Both(dict(zip(CASE.state_dict, map(np.asarray, update), strict=True)), value, to_nhwc(np.asarray(slope)))


def relative_error(got, wanted) -> float:
    return float(np.linalg.norm(np.ravel(got - wanted)) / np.linalg.norm(np.ravel(wanted)))


@pytest.mark.torch
@pytest.mark.parametrize("name", CLIENTS)
def test_updates_and_objectives_equal_torch(name):
    require_torch()
    got, wanted = ours(CLIENTS[name]), torchs(CLIENTS[name])
    for tensor, value in wanted.update.items():
        assert relative_error(got.update[tensor], value) < 1e-9, tensor
    assert got.value == pytest.approx(wanted.value, rel=1e-9)
    assert relative_error(got.slope, wanted.slope) < 1e-9


def test_every_optimizer_is_compared_with_torch():
    assert {client.optimizer for client in CLIENTS.values()} == set(OPTIMIZERS)


# --- properties ---

SMALL = MLP(num_classes=3, hidden=(4,))
PIXELS: Any = np.random.default_rng(2).random((4, 3, 3, 1))
TARGET: Any = np.eye(3)[[0, 2, 2, 1]]


@pytest.fixture(scope="module")
def params():
    return quick_jit(lambda: draw_params(SMALL, jax.random.key(0), PIXELS.shape[1:]))()


def updates_of(params, *clients: Client) -> list[Any]:
    """What each shares for PIXELS."""
    share = lambda: [client_update(client, SMALL, params, PIXELS, TARGET) for client in clients]  # noqa: E731
    return quick_jit(share)()


def assert_close(got, wanted, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-15), got, wanted)


def test_one_step_of_sgd_is_the_gradient_times_its_rate(params):
    gradient, step, epoch = updates_of(params, Client(), Client(steps=1, lr=0.07), Client(epochs=1, lr=0.07))
    target = jnp.asarray(TARGET)
    assert_close(gradient, quick_jit(lambda: loss_gradient(SMALL, params, PIXELS, target))())
    assert_close(step, jax.tree.map(lambda leaf: 0.07 * leaf, gradient))
    assert_close(epoch, step)


def test_an_epoch_is_a_step_for_each_local_batch(params):
    by_epochs, by_steps = updates_of(params, Client(epochs=3, batch=2), Client(steps=6, batch=2))
    assert_close(by_epochs, by_steps)
    assert Client(epochs=3, batch=2).total_steps(8) == 12
    assert Client(epochs=3, batch=2, clients=2).total_steps(8) == 6
    assert Client(epochs=3).total_steps(8) == 3
    assert Client(steps=5, batch=2).total_steps(8) == 5


@pytest.mark.parametrize("steps", [1, 2])
def test_adam_can_be_differentiated_where_gradients_are_zero(params, steps):
    """A black pixel's weights have no gradient at all, and Adam divides by its size."""
    client = Client(steps=steps, optimizer="adam")
    pixels = np.where(np.arange(9).reshape(3, 3, 1) % 2, PIXELS, 0)

    def size(x):
        return squared_norm(client_update(client, SMALL, params, x, TARGET))

    slope = quick_jit(jax.grad(size))(pixels)
    assert np.isfinite(slope).all()
    assert np.any(slope != 0)


def test_batchnorm_sees_each_clients_own_images():
    """Statistics are a client's, so the attacker must divide its dummies as well: 0 at the truth."""
    client = Client(clients=2)
    model = ResNet(num_classes=10, stage_sizes=(1,), block=BasicBlock, width=2)
    victim = victim_of(client, model=model, params=None, network="per-trial")
    trial = Trial(attack=KNOWN, victim=victim, threshold=1e-4)

    def at_truth():
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        return trial.attacker.objective(shared, problem)(jnp.ravel(IMAGES)), squared_norm(problem.update)

    (value, slope), norm2 = quick_jit(at_truth)()
    assert norm2 > 1e-6
    assert value < 1e-20 * norm2
    assert np.abs(slope).max() < 1e-9


# --- what is refused ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": -1}, "`client_steps` must be 0 or above; got -1."),
        ({"steps": 1.5}, "`client_steps` must be a whole number; got 1.5."),
        ({"epochs": -2}, "`client_epochs` must be 0 or above; got -2."),
        ({"steps": 1, "epochs": 1}, "`client_steps` and `client_epochs` exclude each other; give one of them."),
        (
            {"steps": 1, "optimizer": "adamw"},
            "`client_optimizer` must be one of adam, sgd; got 'adamw'. Did you mean 'adam'?",
        ),
        ({"steps": 1, "lr": 0.0}, "`client_lr` must be above 0; got 0.0."),
        ({"clients": 0}, "`clients` must be above 0; got 0."),
        ({"steps": 1, "batch": 0}, "`client_batch` must be above 0; got 0."),
        ({"batch": 2}, "`client_batch` is for local steps; give --client-steps or --client-epochs too."),
    ],
    ids=str,
)
def test_clients_that_make_no_sense(fields, message):
    with pytest.raises(InputError) as error:
        Client(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (Client(clients=3), "`clients` must divide the images of an update, 4; got 3. Change --batch or --clients."),
        (Client(steps=1, batch=3), "`client_batch` must divide a client's images, 4; got 3."),
        (Client(steps=1, batch=4, clients=2), "`client_batch` must divide a client's images, 2; got 4."),
    ],
    ids=str,
)
def test_images_that_cannot_be_divided(client, message):
    for check in (lambda: client.check(4), lambda: victim_of(client)):
        with pytest.raises(InputError) as error:
            check()
        assert str(error.value) == message
