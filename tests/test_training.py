"""A short training run: it learns, it can be repeated, and it never sees the victim's images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxleak.data import Dataset, load_dataset
from jaxleak.errors import InputError
from jaxleak.threat.client import Client
from jaxleak.threat.defences import DPSGD, Gaussian
from jaxleak.threat.from_dataset import make_victim
from jaxleak.threat.loss import cross_entropy
from jaxleak.threat.network import draw_params
from jaxleak.threat.training import HELD_OUT, accuracy, train_network
from jaxleak.threat.victim import Victim
from tests.trainings import CLASSES, COUNT, MODEL, SETTINGS, SHAPE, easy


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return easy(tmp_path_factory.mktemp("data") / "easy.npz")


@pytest.fixture(scope="module")
def start():
    return draw_params(MODEL, jax.random.key(0), SHAPE)


def victim_of(data: Dataset, **changes) -> Victim:
    return make_victim(MODEL, data, [3, 8], **SETTINGS | changes)


class Seen(NamedTuple):
    """What a training run asked a data set for."""

    data: Dataset
    asked: list[int]


@pytest.fixture
def seen(data, monkeypatch) -> Seen:
    asked, images = [], Dataset.images

    def look(self, indices):
        asked.extend(indices)
        return images(self, indices)

    monkeypatch.setattr(Dataset, "images", look)
    return Seen(data, asked)


@pytest.fixture(scope="module")
def trained(data, start):
    return train_network(victim_of(data), start, data, steps=60, batch=16)


def same(a, b) -> bool:
    return all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# --- training ---


def test_the_loss_falls_and_new_images_are_recognised(trained):
    assert trained.losses.shape == (60,)
    assert np.isfinite(trained.losses).all()
    assert trained.losses[-10:].mean() < 0.3 * trained.losses[:3].mean()
    assert trained.accuracy > 0.9
    assert jax.tree.map(lambda leaf: leaf.dtype, trained.params)["head"]["kernel"] == np.float64


def test_it_can_be_repeated_and_follows_its_seed(data, start, trained):
    again = train_network(victim_of(data), start, data, steps=60, batch=16)
    assert same(again.params, trained.params)
    np.testing.assert_array_equal(again.losses, trained.losses)
    other = train_network(victim_of(data), start, data, steps=60, batch=16, seed=1)
    assert not np.any(other.losses == trained.losses)


def test_steps_are_optax_on_normalised_images(data, start):
    """A batch of all images is the same in whatever order: every step is one of plain optax."""
    victim = victim_of(data, normalise="mnist", train_optimizer="sgd", train_lr=0.5)
    got = train_network(victim, start, data, steps=3, batch=COUNT - len(victim.indices), held_out=data)
    pixels, labels = data.images(np.setdiff1d(data.index, victim.indices).tolist())
    x, target = jnp.asarray((pixels.astype(float) - 0.1307) / 0.3081), jax.nn.one_hot(labels, CLASSES, dtype=float)
    params, optimizer, losses = start, optax.sgd(0.5), []
    step = jax.jit(jax.value_and_grad(lambda params: cross_entropy(MODEL.apply({"params": params}, x), target)))
    for _ in range(3):
        loss, gradient = step(params)
        losses.append(float(loss))
        params = optax.apply_updates(params, optimizer.update(gradient, optimizer.init(params))[0])
    np.testing.assert_allclose(got.losses, losses, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got.params, params)


def test_the_victims_images_are_left_out_and_so_is_what_accuracy_is_measured_on(seen, start):
    victim = victim_of(seen.data)
    seen.asked.clear()
    train_network(victim, start, seen.data, steps=100, batch=16)
    apart = (COUNT - 2) // 10  # read last
    trained_on, tested = set(seen.asked[:-apart]), set(seen.asked[-apart:])
    assert not trained_on & tested
    assert trained_on | tested == set(range(COUNT)) - {3, 8}


def test_accuracy_is_measured_on_the_images_held_out(data, start, tmp_path):
    """There the labels are wrong on purpose."""
    with np.load(data.name) as file:
        np.savez(tmp_path / "wrong.npz", images=file["images"], labels=(file["labels"] + 1) % CLASSES)
    wrong = load_dataset(tmp_path / "wrong.npz")
    got = train_network(victim_of(data), start, data, steps=60, batch=16, held_out=wrong)
    assert got.losses[-10:].mean() < 0.3 * got.losses[:3].mean()
    assert got.accuracy < 0.1


def test_accuracy_counts_every_image_once(data, trained, monkeypatch):
    victim, indices = victim_of(data), list(range(0, COUNT, 2))
    pixels, labels = data.images(indices)
    logits = MODEL.apply({"params": trained.params}, jnp.asarray(pixels, float))
    monkeypatch.setattr("jaxleak.threat.training.BLOCK", 30)  # the last block is not full
    assert accuracy(victim, trained.params, data, indices) == np.mean(np.argmax(logits, axis=1) == labels)
    assert np.isnan(accuracy(victim, trained.params, data, []))


@pytest.mark.parametrize("defence", [Gaussian(sigma=1e3), DPSGD(clip=1e-3, noise=1e3)], ids=["gaussian", "dp-sgd"])
def test_gradients_are_defended(data, start, trained, defence):
    """So much noise leaves nothing to learn from; without it the same run reaches 0.9."""
    victim = victim_of(data, defences=(defence,), train_optimizer="adam")
    defended = train_network(victim, start, data, steps=60, batch=16)
    assert defended.accuracy < 0.7
    assert defended.losses[-10:].mean() > 3 * trained.losses[-10:].mean()


def test_noise_differs_from_step_to_step(data, start):
    """With a rate of 1 and that much noise, a step of SGD is the noise."""
    victim = victim_of(data, defences=(Gaussian(sigma=1e6),), train_optimizer="sgd", train_lr=1.0)
    one, two = (train_network(victim, start, data, steps=steps, batch=16).params["first"]["kernel"] for steps in (1, 2))
    drawn = np.ravel(one - start["first"]["kernel"]), np.ravel(two - one)
    assert [np.std(step) for step in drawn] == pytest.approx([1e6, 1e6], rel=0.3)
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.3


def test_too_few_images(data, start, tmp_path):
    small = easy(tmp_path / "few.npz", 40)
    with pytest.raises(
        InputError, match=r"^`trained_steps` needs at least 64 images to train on; .* leaves 35\. Choose"
    ):
        train_network(victim_of(small), start, small, steps=1)
    with pytest.raises(InputError, match=r"^`trained_steps` must be above 0; got 0\.$"):
        train_network(victim_of(data), start, data, steps=0)
    assert HELD_OUT == 1000


# --- victims at a later stage ---


@pytest.fixture(scope="module")
def later(data) -> Victim:
    """A defence and local steps are for the update, not for the training before it."""
    return victim_of(
        data,
        trained_steps=30,
        batch=2,
        client=Client(steps=2),
        defences=(Gaussian(sigma=1e3),),
    )


def test_a_victim_is_trained_before_it_shares(data, later):
    assert later.trained_steps == 30
    assert later.training is not None
    (losses,), (right,) = later.training["loss"], later.training["accuracy"]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    assert right > 0.5
    settings = later.settings()
    assert (settings["trained_steps"], settings["trained_on"]) == (30, "data")
    assert settings["weights"].startswith("trained sha256:")


def test_it_is_trained_as_without_its_threat_model(data, later):
    start = draw_params(MODEL, jax.random.key(0), SHAPE)
    alone = train_network(victim_of(data), start, data, steps=30)
    assert same(later.params, alone.params)
    assert later.training is not None
    assert later.training["loss"] == [alone.losses.tolist()]
    assert later.training["accuracy"] == [alone.accuracy]


def test_networks_per_image_are_trained_apart(data):
    victim = make_victim(MODEL, data, [3, 8, 5, 4], network="per-image", batch=2, trained_steps=2)
    assert victim.params is not None
    kernels = np.asarray(victim.params["head"]["kernel"])
    assert kernels.shape == (2, 12, CLASSES)  # one for each update
    assert not np.any(kernels[0] == kernels[1])
    assert victim.training is not None
    assert np.shape(victim.training["loss"]) == (2, 2)


def test_a_network_per_trial_cannot_be_trained_on_data(data):
    message = "^`trained_steps` on the data set trains every network; with `network` per-trial that is one for each"
    with pytest.raises(InputError, match=message):
        victim_of(data, network="per-trial", trained_steps=2)
    assert victim_of(data, network="per-trial", trained_steps=2, trained_on="own").trained_steps == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trained_steps": -1}, "`trained_steps` must be 0 or above; got -1."),
        ({"trained_on": "onw"}, "`trained_on` must be one of data, own; got 'onw'. Did you mean 'own'?"),
        (
            {"train_optimizer": "sgdd"},
            "`train_optimizer` must be one of adam, adamw, sgd; got 'sgdd'. Did you mean 'sgd'?",
        ),
        ({"train_lr": -1.0}, "`train_lr` must be above 0; got -1.0."),
    ],
    ids=str,
)
def test_training_that_makes_no_sense(data, fields, message):
    with pytest.raises(InputError) as error:
        victim_of(data, **fields)
    assert str(error.value) == message


def test_a_victim_by_hand_cannot_claim_training_on_data(data, later):
    with pytest.raises(InputError, match=r"^`trained_steps` on the data set needs weights that were trained; make the"):
        Victim(**{**vars(later), "params": None})
