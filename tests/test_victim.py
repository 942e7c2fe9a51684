"""The victim: what it is called, what it refuses, and the update it shares."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxleak.data import Dataset, load_dataset
from jaxleak.errors import InputError
from jaxleak.models import LeNet, build_model, save_weights
from jaxleak.models.describe import description
from jaxleak.models.weights import from_torch, to_torch
from jaxleak.threat.from_dataset import make_victim
from jaxleak.threat.network import NETWORKS, draw_params
from jaxleak.threat.victim import Victim
from tests.commands import call
from tests.fixtures import quick_jit
from tests.oracles.cases import lenet_cases

SHAPE = (8, 8, 1)
CLASSES = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    """Six grey pictures of 8 by 8 pixels in three classes."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(6) % CLASSES)
    return load_dataset(path)


def write_weights(path: Path, *, scale: float = 1.0, classes: int = CLASSES) -> Path:
    model = LeNet(num_classes=classes)
    shapes = jax.eval_shape(lambda: draw_params(model, jax.random.key(0), SHAPE))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, scale, np.float32), shapes)
    save_weights(path, model, params, SHAPE)
    return path


def refused(*args, **kwargs) -> str:
    """The one line with which `make_victim` refuses."""
    with pytest.raises(InputError) as caught:
        make_victim(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_victim_holds_the_images_asked_for(data):
    victim = make_victim("lenet", data, [4, 1])
    pixels, labels = data.images([4, 1])
    np.testing.assert_array_equal(victim.images, pixels)
    np.testing.assert_array_equal(victim.labels, labels)
    assert labels.tolist() == [1, 1]
    assert victim.indices == [4, 1]
    assert victim.num_classes == CLASSES
    assert isinstance(victim.model, LeNet)
    assert victim.network == "per-trial"


def test_settings_are_plain_data_and_say_what_the_victim_is(data):
    victim = make_victim("lenet", data, [4, 1], network="per-image", network_seed=5)
    settings = victim.settings()
    assert json.loads(json.dumps(settings)) == settings
    assert (
        settings
        | {
            "model": "lenet",
            "dataset": data.name,
            "split": "all",
            "images": [4, 1],
            "image_shape": list(SHAPE),
            "num_classes": CLASSES,
            "network": "per-image",
            "network_seed": 5,
        }
        == settings
    )


@pytest.mark.parametrize("change", [{"network": "shared"}, {"network": "per-image"}, {"network_seed": 1}])
def test_another_network_is_another_setting(data, change):
    assert make_victim("lenet", data, [4], **change).settings() != make_victim("lenet", data, [4]).settings()


def test_other_images_are_another_setting(data):
    assert make_victim("lenet", data, [4]).settings() != make_victim("lenet", data, [1]).settings()


def test_other_weights_under_the_same_name_are_another_setting(data, tmp_path):
    first, second = tmp_path / "a" / "w.safetensors", tmp_path / "b" / "w.safetensors"
    victims = []
    for path, scale in ((first, 0.1), (second, 0.2)):
        path.parent.mkdir()
        write_weights(path, scale=scale)
        victims.append(make_victim("lenet", data, [0], network="shared", weights=path))
    assert victims[0].settings() != victims[1].settings()
    assert victims[0].settings()["weights"].startswith("w.safetensors")


def given(data: Dataset, value: float, model=None) -> Victim:
    """A victim with weights given as arrays, without a file."""
    model = model or LeNet(num_classes=CLASSES)
    shapes = jax.eval_shape(lambda: draw_params(model, jax.random.key(0), SHAPE))
    pixels, labels = data.images([0])
    return Victim(
        model=model,
        model_name="lenet",
        dataset=data.name,
        split=data.split,
        indices=[0],
        images=pixels,
        labels=labels,
        network="shared",
        params=jax.tree.map(lambda leaf: np.full(leaf.shape, value), shapes),
        num_classes=CLASSES,
    )


def test_other_given_parameters_are_another_setting(data):
    settings = [given(data, value).settings() for value in (0.1, 0.1, 0.2)]
    assert settings[0] == settings[1]
    assert settings[0] != settings[2]


def test_a_module_with_other_fields_is_another_setting(data):
    """A name says how its module is built; a module's own fields decide results too."""
    narrow, wide = (make_victim(LeNet(num_classes=CLASSES, channels=n), data, [0]).settings() for n in (4, 12))
    assert narrow["model"] == wide["model"] == "lenet"
    assert narrow != wide


def test_activations_are_told_apart(data):
    """Linen's `repr` has the same text for all functions that jax has compiled."""
    activations = ("sigmoid", "softplus", "relu", "tanh", "elu", "gelu")
    texts = {
        make_victim("mlp", data, [1], fields={"activation": name, "hidden": (4,)}).settings()["model_fields"]
        for name in activations
    }
    assert len(texts) == len(activations)
    assert not any("0x" in text for text in texts)
    one, other, same = lambda x: x + 1, lambda x: x * 2, lambda x: x + 1
    assert description(one) == description(same) != description(other)


def test_other_labels_are_another_setting(tmp_path):
    settings = []
    for labels in ([0, 1], [1, 0]):
        np.savez(tmp_path / "own.npz", images=np.zeros((2, *SHAPE), np.uint8), labels=labels)
        settings.append(make_victim("lenet", load_dataset(tmp_path / "own.npz"), [0]).settings())
    assert settings[0] != settings[1]


@pytest.mark.parametrize(
    ("network", "close"), [("per-imag", "per-image"), ("sharde", "shared"), ("pertrial", "per-trial")]
)
def test_unknown_network_names_the_closest(data, network, close):
    message = refused("lenet", data, [0], network=network)
    assert message.startswith("`network` must be one of per-image, per-trial, shared; got ")
    assert f"Did you mean {close!r}?" in message


def test_unknown_model_names_the_closest(data):
    assert "Did you mean 'lenet'?" in refused("lenett", data, [0])


@pytest.mark.parametrize(("images", "named"), [([1, 4, 1], "1"), ([2, 2, 0, 0], "0, 2")])
def test_repeated_images_are_named(data, images, named):
    assert refused("lenet", data, images) == f"`images` must be distinct; {named} is named twice."


def test_no_images(data):
    assert refused("lenet", data, []) == "`images` must name at least one image."


@pytest.mark.parametrize("index", [6, -1, 100])
def test_an_image_out_of_range_states_the_range(data, index):
    message = refused("lenet", data, [0, index])
    assert f"`images` index {index} is not in" in message
    assert "the valid range is 0 to 5" in message


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "shared"])
def test_a_weights_file_needs_a_shared_network(data, tmp_path, network):
    path = write_weights(tmp_path / "w.safetensors")
    message = refused("lenet", data, [0], network=network, weights=path)
    assert "`weights`" in message
    assert "`network` shared" in message


def test_given_parameters_need_a_network_that_is_not_drawn_per_trial(data):
    victim = given(data, 0.1)
    with pytest.raises(InputError, match=r"^`network` per-trial draws a fresh network for each trial"):
        Victim(**{**vars(victim), "network": "per-trial"})


def test_weights_of_the_wrong_shape(data, tmp_path):
    path = write_weights(tmp_path / "w.safetensors", classes=CLASSES + 2)
    message = refused("lenet", data, [0], network="shared", weights=path)
    assert "`weights` do not fit LeNet with 3 classes on 8x8x1 images" in message
    assert "fc.0.weight is [5, 48], not [3, 48]" in message


def test_weights_that_are_none(data, tmp_path):
    absent, text, other = (tmp_path / name for name in ("absent", "text", "other"))
    text.write_text("no weights")
    save_file({"conv.weight": np.zeros(3, np.float32)}, other)
    assert "there is no file" in refused("lenet", data, [0], network="shared", weights=absent)
    assert "cannot be read" in refused("lenet", data, [0], network="shared", weights=text)
    assert "missing body.0.weight" in refused("lenet", data, [0], network="shared", weights=other)


def test_weights_from_a_file_are_the_victims(data, tmp_path):
    path = write_weights(tmp_path / "w.safetensors", scale=0.25)
    victim = make_victim("lenet", data, [0], network="shared", weights=path)
    assert {float(value) for leaf in jax.tree.leaves(victim.params) for value in np.unique(leaf)} == {0.25}


def test_drawn_networks_follow_their_key():
    model = build_model("lenet", CLASSES)
    draw = quick_jit(lambda key: draw_params(model, key, SHAPE))
    first, again, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    assert set(first) == {"conv1", "conv2", "conv3", "head"}
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["head"]["kernel"], other["head"]["kernel"])


@pytest.mark.parametrize("x64", [True, False])
def test_drawn_networks_have_the_precision_jax_is_set_to(x64):
    """Linen draws float32 parameters; gradients with respect to them would be rounded to float32 under --x64."""
    model = build_model("lenet", CLASSES)
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", x64)
    try:
        types = jax.eval_shape(lambda: draw_params(model, jax.random.key(0), SHAPE))
    finally:
        jax.config.update("jax_enable_x64", before)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(types)} == {"float64" if x64 else "float32"}


def test_update_equals_golden():
    """The client's update is torch's gradient at the private image and its label."""
    case = lenet_cases()[-1]
    model = LeNet(num_classes=case.num_classes)
    params = from_torch(model, case.state_dict, case.image.shape[1:])
    victim = Victim(
        model=model,
        model_name="lenet",
        dataset="golden",
        split="all",
        indices=[0],
        images=case.image,
        labels=np.array([case.label]),
        num_classes=case.num_classes,
        network="shared",
        params=params,
    )
    target = jax.nn.one_hot(jnp.array([case.label]), case.num_classes)
    share = quick_jit(lambda x: victim.share(params, x, target, jax.random.key(0)))
    update = to_torch(model, share(case.image), case.image.shape[1:])
    assert set(update) == set(case.update)
    for name, wanted in case.update.items():
        assert np.linalg.norm(update[name] - wanted) < 1e-9 * np.linalg.norm(wanted), name


NET = """
import flax.linen as nn


class Net(nn.Module):
    classes: int
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, name="last")(nn.sigmoid(nn.Dense(self.width)(x.reshape(len(x), -1))))


def build_model(classes, width=4):
    return Net(classes, width)
"""


def test_a_model_in_a_file_is_a_victims(tmp_path):
    photos = load_dataset("photos")
    (tmp_path / "net.py").write_text(NET)
    for model in (str(tmp_path / "net.py"), tmp_path / "net.py", f"{tmp_path / 'net.py'}:Net"):
        victim = make_victim(model, photos, [6], fields={"width": 3})
        assert victim.model_name == "net"
        params = victim.model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        assert params["head"]["kernel"].shape == (3, photos.num_classes)
    with pytest.raises(InputError, match=r"there is no file 'none\.py'"):
        make_victim("none.py", photos, [6])


@pytest.mark.slow
def test_a_run_of_a_model_in_a_file_goes_on(tmp_path):
    """Not where its code has changed."""
    (tmp_path / "net.py").write_text(NET)
    command = ("run", "--model", tmp_path / "net.py", "--model-field", "width=3", "--attack", "idlg", "--images", "6")
    command = (*command, "--seeds", "1", "--iterations", "1", "--no-figures", "--out", tmp_path / "run")
    for _ in range(2):
        said = call(*command)
        assert said.code == 0, said.err
        assert "1 rows" in said.out
    (tmp_path / "net.py").write_text(NET.replace("sigmoid", "tanh"))
    assert call(*command).code == 2
