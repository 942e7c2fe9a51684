"""Local steps: the update equals torch's, and so does what an attacker sees who takes the same steps."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxleak import DLG
from jaxleak.attacks.attacker import PLACE
from jaxleak.attacks.check import check_attack
from jaxleak.attacks.distances import squared_norm
from jaxleak.attacks.presets import FEDAVG, SME
from jaxleak.attacks.trial import Trial
from jaxleak.errors import InputError
from jaxleak.models import MLP, LeNet, ResNet
from jaxleak.models.resnet import BasicBlock
from jaxleak.models.weights import from_torch, to_torch
from jaxleak.results.page import words
from jaxleak.threat.client import Client, client_update
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.network import draw_params
from jaxleak.threat.optimizers import OPTIMIZERS
from jaxleak.threat.victim import Victim
from tests.commands import case_id
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
    trained = {settings.get("optimizer", "sgd") for settings in TRAININGS.values()}
    assert {client.optimizer for client in CLIENTS.values()} | trained == set(OPTIMIZERS)


# --- settings of PyTorch's training loops ---

ORDERS = [[2, 0, 4, 1, 3], [4, 3, 1, 0, 2], [0, 2, 1, 4, 3]]
FIVE = np.random.default_rng(3).random((5, *SHAPE))
FIVE_LABELS = np.array([3, 1, 1, 8, 0])
EPOCHS = {"epochs": 3, "batch": 2, "order": tuple(np.ravel(ORDERS).tolist())}
TRAININGS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
    "dampening": {"momentum": 0.7, "dampening": 0.3},
    "weight decay of SGD": {"weight_decay": 0.05, "momentum": 0.5},
    "weight decay of Adam": {"weight_decay": 0.05, "optimizer": "adam", "lr": 0.01},
    "AdamW": {"optimizer": "adamw", "lr": 0.01},
    "weight decay of AdamW": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.2},
    "clipped": {"clip": 0.3, "momentum": 0.9},
    "not clipped": {"clip": 1e3},
    "a schedule": {"lr": (0.3, 0.1, 0.02), "momentum": 0.9},
    "a schedule of Adam": {"lr": (0.03, 0.01, 0.002), "optimizer": "adam"},
    "whole batches": {"drop_last": True},
    "all of it": {"lr": (0.03, 0.02, 0.01), "optimizer": "adamw", "weight_decay": 0.1, "clip": 0.5},
}


def from_pytorch(settings: dict[str, Any], dtype: str, orders=ORDERS) -> dict[str, np.ndarray]:
    """What a PyTorch script with these settings shares of FIVE."""
    import torch

    from tests.oracles.torch_lenet import lenet_from
    from tests.oracles.torch_training import trained_update

    known = dict(settings)
    known["lrs"] = known.pop("lr", 0.3) if isinstance(known.get("lr"), tuple) else (known.pop("lr", 0.3),)
    net = lenet_from({name: value.astype(dtype) for name, value in CASE.state_dict.items()}, *SHAPE[:2])
    images, labels = torch.from_numpy(to_nchw(FIVE).astype(dtype)), torch.from_numpy(FIVE_LABELS)
    update = trained_update(net, images, labels, orders=orders, batch=2, **known)
    return dict(zip(CASE.state_dict, map(np.asarray, update), strict=True))


@pytest.mark.torch
@pytest.mark.parametrize("name", TRAININGS)
def test_updates_equal_those_of_pytorch_scripts(name):
    """To 1e-9 in float64; and in float32, as a script leaves them, to 1e-6 of the squared norm."""
    require_torch()
    client = Client(**{"lr": 0.3, **EPOCHS, **TRAININGS[name]})
    client.check(5)
    target = jax.nn.one_hot(FIVE_LABELS, CASE.num_classes)
    params: Any = PARAMS
    update = quick_jit(lambda: client_update(client, MODEL, params, jnp.asarray(FIVE), target))()
    got, wanted, rounded = (
        to_torch(MODEL, update, SHAPE), from_pytorch(TRAININGS[name], "float64"),
        from_pytorch(TRAININGS[name], "float32"),
    )  # fmt: skip
    for tensor, value in wanted.items():
        assert relative_error(got[tensor], value) < 1e-9, tensor
    whole = [np.concatenate([np.ravel(tree[tensor]) for tensor in wanted]) for tree in (rounded, got)]
    assert relative_error(*whole) ** 2 < 1e-6


@pytest.mark.torch
def test_steps_that_end_within_an_epoch_and_shuffled_orders():
    require_torch()
    target = jax.nn.one_hot(FIVE_LABELS, CASE.num_classes)
    params: Any = PARAMS
    shuffled = Client(epochs=3, batch=2, lr=0.3, shuffle=7)
    stopped = Client(steps=8, batch=2, lr=0.3, order=tuple(np.ravel(ORDERS).tolist()))
    share = lambda: [client_update(one, MODEL, params, jnp.asarray(FIVE), target) for one in (shuffled, stopped)]  # noqa: E731
    got = [to_torch(MODEL, update, SHAPE) for update in quick_jit(share)()]
    orders = [np.concatenate(steps).tolist() for steps in shuffled.passes(5)]
    assert len({tuple(order) for order in orders}) == 3
    assert [len(steps) for steps in stopped.passes(5)] == [3, 3, 2]
    for update, wanted in zip(
        got,
        (from_pytorch({}, "float64", orders), from_pytorch({}, "float64", [*ORDERS[:2], ORDERS[2][:4]])),
        strict=True,
    ):
        for tensor, value in wanted.items():
            assert relative_error(update[tensor], value) < 1e-9, tensor


def test_settings_of_old_clients_stay_as_they_were():
    old = {"steps": 2, "epochs": 0, "optimizer": "adam", "lr": 0.1, "batch": 2, "clients": 1}
    assert Client(steps=2, optimizer="adam", lr=0.1, batch=2).settings() == old
    new = Client(epochs=2, lr=[0.1, 0.05], momentum=0.9, order=(1, 0), loss="bce").settings()
    assert new["lr"] == [0.1, 0.05]
    assert (new["momentum"], new["order"], new["loss"]) == (0.9, [1, 0], "bce")
    assert "weight_decay" not in new


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"steps": 3, "lr": 0.1}, 0.3),
        ({"steps": 3, "lr": 0.1, "momentum": 0.5}, 0.1 * (1 + 1.5 + 1.75)),
        ({"epochs": 2, "batch": 2, "lr": (0.1, 0.2)}, 0.1 * 2 + 0.2 * 2),
        ({"steps": 2, "lr": (0.1, 0.2), "momentum": 0.5, "nesterov": True}, 0.1 * 1.5 + 0.2 * 1.75),
    ],
)
def test_the_length_of_steps_is_what_a_gradient_of_one_moves(settings, length):
    client = Client(**settings)
    assert client.length(4) == pytest.approx(length)

    class Line:
        """Its gradient is 1."""

        def apply(self, variables, x):
            return variables["params"]["w"] + 0 * x

    line: Any = Line()
    slope = replace(client, loss=lambda outputs, target: jnp.mean(outputs) + 0 * jnp.mean(target))
    fell = client_update(slope, line, {"w": jnp.zeros(())}, jnp.zeros((4, 1)), jnp.zeros((4, 1)))
    assert float(fell["w"]) == pytest.approx(length)


@pytest.mark.parametrize("client", [Client(steps=2, clip=0.1), Client(steps=2, optimizer="adamw", momentum=0)])
def test_clipping_can_be_differentiated_where_gradients_are_zero(client):
    def size(x):
        params = {"w": jnp.zeros((3, 2))}
        model: Any = type("Dense", (), {"apply": lambda self, variables, x: x @ variables["params"]["w"]})()
        target = jax.nn.softmax(x @ params["w"])
        return squared_norm(client_update(client, model, params, x, target))

    assert np.isfinite(quick_jit(jax.grad(size))(jnp.ones((2, 3)))).all()


def test_an_order_that_is_hidden_is_not_used_by_the_attacker():
    client = Client(epochs=2, batch=2, lr=0.3, shuffle=1)
    victim = victim_of(client, knows_order=False)
    assert victim.attacker_client == Client(epochs=2, batch=2, lr=0.3)
    assert victim.settings()["knows_order"] is False
    assert "knows_order" not in victim_of(client).settings()
    values = []
    for knows in (True, False):
        trial = Trial(attack=KNOWN, victim=victim_of(client, knows_order=knows), threshold=1e-4)
        shared = trial.shared()
        value, _ = quick_jit(lambda x, trial=trial, shared=shared: trial.attacker.objective(
            shared, trial.prepare(shared, job()))(x))(jnp.ravel(IMAGES))  # fmt: skip
        values.append(float(value))
    assert values[0] < 1e-20
    assert values[1] > 1e-9


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
            {"steps": 1, "optimizer": "adamx"},
            "`client_optimizer` must be one of adam, adamw, sgd; got 'adamx'. Did you mean 'adam'?",
        ),
        ({"momentum": 0.9}, "`client_momentum` is for local steps; give --client-steps or --client-epochs too."),
        (
            {"clip": 1.0},
            "`client_clip` is for local steps; give --client-steps or --client-epochs too; of a shared gradient it is "
            "--defence clip:NORM.",
        ),
        (
            {"steps": 1, "optimizer": "adam", "momentum": 0.9},
            "`client_momentum` is a setting of sgd, not of adam; leave it out.",
        ),
        (
            {"steps": 1, "nesterov": True},
            "`client_nesterov` needs a `client_momentum` above 0, and no `client_dampening`.",
        ),
        ({"steps": 1, "clip": 0}, "`client_clip` must be above 0; got 0."),
        ({"steps": 1, "weight_decay": -1}, "`client_weight_decay` must be 0 or above; got -1."),
        (
            {"steps": 1, "order": (0, 1), "shuffle": 0},
            "`client_order` and `client_shuffle` exclude each other; give one of them.",
        ),
        (
            {"lr": (0.1, 0.2)},
            "`client_lr` may be several for local steps; give --client-steps or --client-epochs too.",
        ),
        ({"steps": 2, "lr": (0.1, -0.2)}, "`client_lr` must be above 0; got -0.2."),
        ({"loss": "bse"}, "`loss` must be one of bce, cross-entropy, mse; got 'bse'. Did you mean 'mse'?"),
        ({"steps": 1, "lr": 0.0}, "`client_lr` must be above 0; got 0.0."),
        ({"clients": 0}, "`clients` must be above 0; got 0."),
        ({"steps": 1, "batch": 0}, "`client_batch` must be above 0; got 0."),
        ({"batch": 2}, "`client_batch` is for local steps; give --client-steps or --client-epochs too."),
    ],
    ids=case_id,
)
def test_clients_that_make_no_sense(fields, message):
    with pytest.raises(InputError) as error:
        Client(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (Client(clients=3), "`clients` must divide the images of an update, 4; got 3. Change --batch or --clients."),
        (Client(steps=1, batch=5), "`client_batch` must be at most a client's images, 4; got 5."),
        (Client(steps=1, batch=4, clients=2), "`client_batch` must be at most a client's images, 2; got 4."),
        (
            Client(epochs=2, order=(0, 1, 2)),
            "`client_order` must be the places of 4 images for one pass, or of all 2 passes; got 3 places.",
        ),
        (
            Client(epochs=1, order=(0, 1, 2, 4)),
            "`client_order` must name each of 0 to 3 once in a pass; got 0 1 2 4.",
        ),
        (
            Client(epochs=2, batch=2, lr=(0.1, 0.2, 0.3)),
            "`client_lr` must be one number, or one for each of 2 passes or 4 local steps; got 3.",
        ),
    ],
    ids=case_id,
)
def test_images_that_cannot_be_divided(client, message):
    for check in (lambda: client.check(4), lambda: victim_of(client)):
        with pytest.raises(InputError) as error:
            check()
        assert str(error.value) == message


# --- the surrogate model ---

LINE = replace(SME, name="line", label="known", tv=0.0, iterations=3)


def cosines(client: Client, shares: list[float]) -> list[float]:
    """The distance at the private images, at points so far along the line from the weights before to those after."""
    trial = Trial(attack=LINE, victim=victim_of(client), threshold=1e-4)

    def look(shares):
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        parts = {"image": jnp.asarray(IMAGES)}
        return [
            trial.attacker.values(shared, problem, {**parts, "place": (share - 0.5) / PLACE}).published
            for share in shares
        ]

    return [float(value) for value in quick_jit(look)(jnp.asarray(shares))]


def test_the_surrogate_model_is_exact_for_one_step_and_near_between_for_several():
    assert cosines(Client(steps=1, lr=0.3), [0.0])[0] < 1e-12
    begin, middle, end = cosines(Client(epochs=4, batch=2, lr=0.05, shuffle=1), [0.0, 0.5, 1.0])
    assert middle < 0.1 * min(begin, end)


def test_the_point_of_the_surrogate_model_is_learned_and_stays_on_the_line():
    trial = Trial(attack=LINE, victim=victim_of(Client(steps=4, lr=0.3)), threshold=1e-4)
    shared = trial.shared()

    def step(shift):
        problem = trial.prepare(shared, job())
        state = trial.init(shared, problem, job())
        far = {"image": jnp.asarray(IMAGES), "place": shift}
        begin = trial.attack.minimiser.init(trial.attacker.objective(shared, problem), ravel_pytree(far)[0])
        state = state._replace(solver=begin)
        moved = trial.step(shared, problem, state).solver
        return trial.attacker.parts(moved.x)["place"]

    inside, after, before = quick_jit(lambda: [step(jnp.asarray(shift)) for shift in (0.0, 80.0, -80.0)])()
    assert 0 < abs(float(inside)) <= 0.1 + 1e-9
    assert float(after) == pytest.approx(50)
    assert float(before) == pytest.approx(-50)


def test_what_the_surrogate_model_needs():
    check_attack(LINE, victim_of(Client(steps=2)))
    with pytest.raises(InputError, match="`surrogate_model` stands for local steps"):
        check_attack(LINE, victim_of(Client()))
    with pytest.raises(InputError, match="`surrogate_model` compares directions"):
        check_attack(replace(LINE, objective="l2"), victim_of(Client(steps=2)))
    assert "surrogate_model" not in DLG.settings()  # as in older runs
    assert SME.settings()["surrogate_model"] is True


# --- epochs in an order that is not known ---


@pytest.mark.parametrize("clients", [1, 2])
def test_dummies_of_each_epoch_in_the_clients_order_leave_nothing(clients):
    """A client that shuffles; its images, brought to the order of each epoch, are the candidate."""
    client = Client(epochs=3, lr=0.3, batch=1, shuffle=5, clients=clients)
    attack = replace(FEDAVG, label="joint", tv=0.0)
    victim = victim_of(client, knows_order=False)
    trial = Trial(attack=attack, victim=victim, threshold=1e-4)
    per_client = 4 // clients
    orders = [np.concatenate(steps) for steps in client.passes(4)]
    places = np.concatenate([np.concatenate([order + first for first in range(0, 4, per_client)]) for order in orders])
    hot = np.eye(victim.num_classes)[LABELS]

    def look():
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        parts = {"image": jnp.asarray(IMAGES[places]), "label": jnp.asarray(60 * hot[places])}
        left = trial.attacker.values(shared, problem, parts)
        truth = {name: jnp.concatenate([part[np.argsort(places[:4])]] * 3) for name, part in parts.items()}
        in_turn = trial.attacker.values(shared, problem, truth)
        found = trial.attacker.candidate.to_truth(parts), trial.attacker.candidate.merged(parts, parts["label"])
        return left, in_turn, found

    left, in_turn, (images, labels) = quick_jit(look)()
    assert float(left.published) < 1e-12 < 1e-6 < float(in_turn.published)
    assert float(left.minimised) == pytest.approx(float(left.published), abs=1e-12)  # epochs agree
    np.testing.assert_allclose(images, IMAGES[places[:4]], atol=1e-12)
    np.testing.assert_allclose(labels, 60 * hot[places[:4]], atol=1e-12)


def test_labels_that_are_read_stand_for_every_epoch():
    victim = victim_of(Client(epochs=2, lr=0.1, batch=2))
    trial = Trial(attack=replace(FEDAVG, label="known"), victim=victim, threshold=1e-4)

    def look():
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        state = trial.init(shared, problem, job())
        return trial.outcome(problem, trial.step(shared, problem, state))

    outcome = quick_jit(look)()
    assert outcome.candidate.shape == IMAGES.shape
    assert outcome.label_found.tolist() == LABELS.tolist()
    assert np.isfinite(outcome.objective)


def test_what_epochs_that_agree_need():
    check_attack(FEDAVG, victim_of(Client(epochs=2, batch=2)))
    check_attack(FEDAVG, victim_of(Client(steps=4, batch=2)))
    for client in (Client(), Client(steps=1), Client(epochs=1, batch=2), Client(steps=3, batch=2)):
        with pytest.raises(InputError, match="`epoch_consistency` is for clients that use all their images"):
            check_attack(FEDAVG, victim_of(client))
    with pytest.raises(InputError, match="`epoch_consistency` is for clients"):
        check_attack(FEDAVG, victim_of(Client(epochs=2, batch=3, drop_last=True)))
    with pytest.raises(InputError, match="exclude each other"):
        check_attack(replace(FEDAVG, surrogate_model=True), victim_of(Client(epochs=2)))
    assert "epoch_consistency" not in DLG.settings()


def test_pages_say_how_a_client_trained():
    client = Client(epochs=2, lr=(0.1, 0.05), batch=2, momentum=0.9, nesterov=True, shuffle=1, loss="mse")
    settings = {"victim": victim_of(client, knows_order=False).settings(), "attacks": []}
    assert words.shared(settings) == (
        "how far the weights moved in 2 local epochs of sgd (rates 0.1, 0.05, momentum 0.9, nesterov, shuffled) on a "
        "batch of 4 images with the loss mse; no defence"
    )
    assert "but not the order" in words.known(settings)
    own = {"victim": victim_of(Client(loss=lambda outputs, target: jnp.mean(outputs * target))).settings()}
    assert words.shared(own).startswith("the gradient of the <lambda> on a batch of 4 images")
