"""LeNet and MLP against torch's numbers, and weights through torch's names and layout."""

import importlib
import itertools
import json
import struct

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxleak.errors import InputError
from jaxleak.models import ACTIVATIONS, MLP, MODELS, LeNet, build_model, load_variables, load_weights, save_weights
from jaxleak.models.weights import from_torch, to_torch
from jaxleak.threat.loss import loss_gradient
from tests.fixtures import quick_jit
from tests.oracles.cases import LenetCase, lenet_case, lenet_cases, to_nchw
from tests.oracles.require_torch import require_torch

SIZES = [(32, 32, 3, 100), (28, 28, 1, 10), (8, 8, 1, 10), (11, 9, 2, 5), (1, 1, 1, 2), (5, 6, 4, 3)]


def relative_error(got, wanted):
    return float(np.linalg.norm(np.ravel(got - wanted)) / np.linalg.norm(np.ravel(wanted)))


def init(height, width, channels, num_classes):
    model = build_model("lenet", num_classes)
    draw = quick_jit(model.init)
    return model, draw(jax.random.key(0), jnp.zeros((1, height, width, channels)))["params"]


# Fields that make a network small, and a small image that it takes in train mode.
NARROW = {
    **{name: {"width": 1} for name in MODELS if name.startswith("resnet")},
    "convnet": {"width": 1},
    "densenet121": {"growth": 2, "width": 4, "block_sizes": (2, 1)},
    "convnet-gn": {"width": 1, "groups": 1},
    "inception3": {"width": 1 / 32},
    "vit": {"patch_size": 3, "dim": 4, "heads": 2, "depth": 1},
    "transformer": {"dim": 4, "heads": 2, "depth": 1},
}
SMALL = {"convnet": (9, 20, 2), "convnet-gn": (9, 20, 2), "densenet121": (9, 16, 2), "inception3": (75, 107, 2)}
SMALL["transformer"] = (9,)  # tokens


def shapes(height, width, channels, num_classes, name="lenet"):
    model = build_model(name, num_classes)
    x = jnp.zeros((1, height, width, channels))
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


@pytest.fixture(scope="module")
def small() -> tuple[LenetCase, LeNet]:
    case = lenet_case("small", seed=0, height=7, width=6, channels=2, num_classes=3, iterations=0)
    return case, LeNet(num_classes=3)


# --- the network ---


@pytest.mark.parametrize("weight_init", ["uniform", "torch"])
def test_initialisations(weight_init):
    """DLG's bound is 0.5 everywhere, torch's 1 / sqrt(fan in)."""
    model = LeNet(num_classes=10, weight_init=weight_init)
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    for name, fan_in in (("conv1", 75), ("conv2", 300), ("conv3", 300), ("head", 192)):
        bound = 0.5 if weight_init == "uniform" else fan_in**-0.5
        assert 0.97 * bound < np.abs(params[name]["kernel"]).max() <= bound
        assert 0.5 * bound < np.abs(params[name]["bias"]).max() <= bound


def test_unknown_initialisation_names_the_closest():
    with pytest.raises(
        InputError, match=r"^`weight_init` must be one of flax, torch, uniform; got 'torhc'. Did you mean"
    ):
        LeNet(num_classes=10, weight_init="torhc")


@pytest.mark.parametrize("case", lenet_cases(), ids=str)
def test_forward_equals_torch(case):
    model = LeNet(num_classes=case.num_classes)
    params = from_torch(model, case.state_dict, case.image.shape[1:])
    logits = quick_jit(model.apply)({"params": params}, case.image)
    assert relative_error(logits, case.golden["logits"]) < 1e-9


@pytest.mark.parametrize(("height", "width", "channels", "num_classes"), SIZES)
def test_shapes_follow_image_and_classes(height, width, channels, num_classes):
    model = LeNet(num_classes=num_classes)
    x = jnp.zeros((2, height, width, channels))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    logits = jax.eval_shape(model.apply, variables, x)
    assert logits.shape == (2, num_classes)
    features = np.prod(model.head_input_shape((height, width, channels)))
    assert variables["params"]["head"]["kernel"].shape == (features, num_classes)


@pytest.mark.parametrize(
    ("size", "parameters", "features"),
    [
        # 25*3*12+12, twice 25*12*12+12, and 768*100+100: as DLG's LeNet.
        ((32, 32, 3, 100), 912 + 2 * 3612 + 76_900, 768),
        ((28, 28, 1, 10), 312 + 2 * 3612 + 5_890, 588),
    ],
)
def test_parameter_count(size, parameters, features):
    params = shapes(*size)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert params["head"]["kernel"].shape[0] == features


def test_weights_are_uniform_between_minus_and_plus_a_half():
    _, params = init(16, 16, 3, 10)
    for leaf in jax.tree.leaves(params):
        assert np.abs(leaf).max() <= 0.5
        assert np.ptp(leaf) > 0.5  # 12 draws fall into half the range with probability 12 / 2**11
    weights = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    # Five standard errors of a uniform's mean and variance.
    assert abs(weights.mean()) < 5 * np.sqrt(1 / 12 / weights.size)
    assert abs(weights.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / weights.size)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_a_head(name):
    x = jnp.zeros((1, *SMALL.get(name, (16, 16, 1))))
    params = jax.eval_shape(build_model(name, 7).init, jax.random.key(0), x)["params"]
    assert params["head"]["kernel"].shape[1] == params["head"]["bias"].shape[0] == 7


def test_unknown_model_names_the_closest():
    with pytest.raises(InputError, match=r"^`model` must be one of .*lenet.*; got 'lenett'. Did you mean 'lenet'\?$"):
        build_model("lenett", 10)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_fields_are_what_a_setting_is_compared_by(name):
    """Two models of the same fields are equal and hash alike, also with the activation by name; others are not."""
    fields = {**NARROW.get(name, {}), "weight_init": "flax"}
    model = build_model(name, 5, activation=jax.nn.softplus, **fields)
    same = build_model(name, 5, activation="softplus", **fields)
    assert model == same
    assert hash(model) == hash(same)
    assert repr(model) == repr(same)
    assert " at 0x" not in repr(model)
    assert build_model(name, 5, activation="elu", **fields) != model
    assert build_model(name, 5) == build_model(name, 5)


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_torchs_in_two_derivatives(name):
    torch = require_torch()
    act = ACTIVATIONS[name]
    assert " at 0x" not in repr(build_model("lenet", 5, activation=name))  # else no run could be resumed
    x = np.linspace(-3.1, 3.2, 22)

    def slope(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(act(x))))(x)

    found = act(x), slope(x), jax.grad(lambda x: jnp.sum(jnp.cos(slope(x))))(x)
    t = torch.from_numpy(x).requires_grad_()
    out = getattr(torch.nn.functional, name)(t)
    (first,) = torch.autograd.grad(out.sin().sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.cos().sum(), t)
    for got, wanted in zip(found, (out, first, second), strict=True):
        np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("activation", "complaint"),
    [
        ("rulu", r"^`activation` must be one of elu, .*; got 'rulu'. Did you mean 'relu'\?$"),
        (3, r"^`activation` must be a function or one of elu, .*; got 3\.$"),
        (None, r"^`activation` must be a function or one of elu, .*; got None\.$"),
    ],
)
def test_an_unknown_activation_is_named(activation, complaint):
    with pytest.raises(InputError, match=complaint):
        build_model("convnet", 10, activation=activation)


def test_flax_initialisation_is_flaxs_default():
    """Without the reference's fields, `nn.Conv` and `nn.Dense` draw the same from the same keys."""

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i, stride in enumerate((2, 2, 1), start=1):
                x = nn.Conv(12, (5, 5), strides=stride, padding=2, name=f"conv{i}")(x)
            return nn.Dense(10, name="head")(x.reshape(x.shape[0], -1))

    plain, model = (
        quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 9, 6, 3)))
        for model in (Plain(), LeNet(num_classes=10, weight_init="flax"))
    )
    jax.tree.map(np.testing.assert_array_equal, model, plain)


@pytest.mark.parametrize(("name", "features"), [("lenet", 768), ("lenet-cpl", 768)])
def test_lenets_of_dlg_and_cpl_differ_by_a_convolution(name, features):
    params = shapes(32, 32, 3, 106, name)
    layers = {"conv1", "conv2", "conv3", "head"} | ({"conv4"} if name == "lenet-cpl" else set())
    assert set(params) == layers
    assert params["head"]["kernel"].shape == (features, 106)


@pytest.mark.parametrize(("name", "blocks", "width"), [("resnet20-4", 3, 64), ("resnet32-10", 5, 160)])
def test_resnets_of_inverting_gradients(name, blocks, width):
    """Geiping et al. 2020: three stages; the last reads twice the channels of the one before."""
    params = shapes(32, 32, 3, 10, name)
    for stage in (1, 2, 3):
        kernel = params[f"layer{stage}.{blocks - 1}"]["conv2"]["kernel"]
        assert kernel.shape == (3, 3, width * 2 ** (stage - 1), width * 2 ** (stage - 1))
    assert not [layer for layer in params if layer.startswith("layer4") or layer.endswith(f".{blocks}")]
    assert params["conv1"]["kernel"].shape == (3, 3, 3, width)
    assert params["head"]["kernel"].shape == (4 * width, 10)


@pytest.mark.parametrize(
    ("strides", "complaint"), [((2, 0), "got 2, 0"), ((2.5,), "got 2.5"), ((True,), "got True")], ids=str
)
def test_lenet_strides_are_checked(strides, complaint):
    with pytest.raises(InputError, match=rf"^`strides` must be whole numbers above 0; {complaint}\.$"):
        build_model("lenet", 10, strides=strides)


@pytest.mark.parametrize("num_classes", [0, -3, 2.5])
def test_a_class_count_must_be_a_positive_whole_number(num_classes):
    with pytest.raises(InputError, match=r"^`num_classes` must be"):
        build_model("lenet", num_classes)


# --- the MLP ---


def mlp_case(hidden: tuple[int, ...], shape=(5, 4, 3), seed: int = 0):
    """An MLP with weights in torch's names and layout, and two images with labels."""
    rng = np.random.default_rng(seed)
    sizes = [int(np.prod(shape)), *hidden, 6]
    state = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        state[f"{2 * i}.weight"] = rng.uniform(-0.5, 0.5, (outputs, inputs))
        state[f"{2 * i}.bias"] = rng.uniform(-0.5, 0.5, outputs)
    return MLP(num_classes=6, hidden=hidden), state, rng.random((2, *shape)), rng.integers(6, size=2)


@pytest.mark.parametrize("hidden", [(), (8,), (9, 7)])
def test_mlp_is_its_definition(hidden):
    """sigmoid(W x + b) by layers, x flattened channel first as torch has it."""
    model, state, images, _ = mlp_case(hidden)
    h = to_nchw(images).reshape(2, -1)
    for i in range(0, 2 * len(hidden), 2):
        h = 1 / (1 + np.exp(-(h @ state[f"{i}.weight"].T + state[f"{i}.bias"])))
    last = 2 * len(hidden)
    wanted = h @ state[f"{last}.weight"].T + state[f"{last}.bias"]
    params = from_torch(model, state, images.shape[1:])
    assert set(params) == {*(f"dense{i + 1}" for i in range(len(hidden))), "head"}
    assert relative_error(jax.jit(model.apply)({"params": params}, images), wanted) < 1e-12
    back = to_torch(model, params, images.shape[1:])
    assert set(back) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


@pytest.mark.torch
@pytest.mark.parametrize("hidden", [(), (9, 7)])
def test_mlp_gradient_equals_torch(hidden):
    torch = require_torch()
    lenet = importlib.import_module("tests.oracles.torch_lenet")
    model, state, images, labels = mlp_case(hidden)
    layers = []
    for i in range(len(hidden) + 1):
        outputs, inputs = state[f"{2 * i}.weight"].shape
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.Sigmoid()]
    net = torch.nn.Sequential(*layers[:-1]).double()
    net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in state.items()})
    x = torch.from_numpy(to_nchw(images)).flatten(1)
    wanted = dict(zip(state, lenet.dlg_gradient(net, x, torch.from_numpy(labels)), strict=True))

    params = from_torch(model, state, images.shape[1:])
    target = jax.nn.one_hot(labels, 6)
    gradient = quick_jit(lambda p: loss_gradient(model, p, jnp.asarray(images), target))(params)
    found = to_torch(model, gradient, images.shape[1:])
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert relative_error(found[name], tensor.numpy()) < 1e-12, name


def test_mlp_initialisations():
    for weight_init, bounds in (("uniform", (0.5, 0.5, 0.5)), ("torch", (60**-0.5, 40**-0.5, 30**-0.5))):
        model = MLP(num_classes=50, hidden=(40, 30), weight_init=weight_init)
        params = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 5, 4, 3)))["params"]
        for name, bound in zip(("dense1", "dense2", "head"), bounds, strict=True):
            assert 0.97 * bound < np.abs(params[name]["kernel"]).max() <= bound
            assert 0.5 * bound < np.abs(params[name]["bias"]).max() <= bound


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"weight_init": "torhc"}, r"^`weight_init` must be one of flax, torch, uniform; got 'torhc'. Did you mean"),
        ({"hidden": (8, 0)}, r"^`hidden` must be whole numbers above 0; got 8, 0\.$"),
        ({"hidden": (2.5,)}, r"^`hidden` must be whole numbers above 0; got 2\.5\.$"),
    ],
)
def test_mlp_fields_are_checked(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        build_model("mlp", 10, **fields)


# --- weights in and out ---


@pytest.mark.parametrize("name", sorted(MODELS))
def test_save_and_load_give_the_same_parameters(name, tmp_path):
    model, shape = build_model(name, 5, **NARROW.get(name, {})), SMALL.get(name, (9, 6, 2))
    rng = np.random.default_rng(0)
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    params = jax.tree.map(lambda leaf: rng.uniform(size=leaf.shape), template)
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, params, shape)
    loaded = load_weights(path, model, shape)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("name", ["convnet", "densenet121", "inception3", "resnet20-4"])
def test_save_and_load_give_the_same_statistics(name, tmp_path):
    model, shape = build_model(name, 5, train=False, **NARROW[name]), SMALL.get(name, (9, 6, 2))
    rng = np.random.default_rng(0)
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    variables = jax.tree.map(lambda leaf: rng.uniform(size=leaf.shape), template)
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, variables["params"], shape, variables["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, load_variables(path, model, shape), variables)
    # In train mode the statistics are read past.
    params = load_weights(path, model.clone(train=True), shape)
    jax.tree.map(np.testing.assert_array_equal, params, variables["params"])


def test_the_file_is_torchs_state_dict(small, tmp_path):
    """torch's LeNet loads our file by its names; we load its file (the forward test: and mean the same)."""
    case, model = small
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, from_torch(model, case.state_dict, case.image.shape[1:]), case.image.shape[1:])
    written = load_file(path)
    assert set(written) == set(case.state_dict)
    for name, tensor in case.state_dict.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)


def test_the_head_reads_features_in_torchs_order(small):
    """Head row of feature (channel, row, column), counted channel first, lies where NHWC flattening puts it."""
    case, model = small
    h, w, c = model.head_input_shape(case.image.shape[1:])
    kernel = from_torch(model, case.state_dict, case.image.shape[1:])["head"]["kernel"]
    torch_weight = case.state_dict["fc.0.weight"]  # [k, c * h * w]
    row, column, channel = 1, 0, 7
    np.testing.assert_array_equal(
        kernel[(row * w + column) * c + channel], torch_weight[:, (channel * h + row) * w + column]
    )


def test_float32_weights_load_in_the_precision_jax_is_set_to(small, tmp_path):
    case, model = small
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.astype(np.float32) for name, tensor in case.state_dict.items()}, path)
    params = load_weights(path, model, case.image.shape[1:])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float64)}
    back = to_torch(model, params, case.image.shape[1:])
    np.testing.assert_array_equal(back["fc.0.bias"], case.state_dict["fc.0.bias"].astype(np.float32))


def refused(path, model, image_shape) -> str:
    """The one line with which `load_weights` refuses a file."""
    with pytest.raises(InputError) as caught:
        load_weights(path, model, image_shape)
    message = str(caught.value)
    assert message.startswith("`weights` ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("body.2.bias"), "missing body.2.bias"),
        (lambda state: state.update({"fc.1.bias": np.zeros(3)}), "unknown fc.1.bias"),
        (lambda state: state.update({"fc.0.bias": np.zeros(4)}), r"fc.0.bias is [4], not [3]"),
        (lambda state: state.update({"body.0.weight": np.zeros((5, 5, 2, 12))}), "not [12, 2, 5, 5]"),
        (lambda state: state.clear(), "missing fc.0.weight"),
    ],
    ids=["missing", "extra", "other classes", "other layout", "empty"],
)
def test_tensors_that_do_not_fit_are_named(change, complaint, small, tmp_path):
    case, model = small
    state = dict(case.state_dict)
    change(state)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    message = refused(path, model, case.image.shape[1:])
    assert complaint in message
    assert "LeNet with 3 classes on 7x6x2 images" in message


def test_weights_for_another_image_size_are_refused(small, tmp_path):
    case, model = small
    path = tmp_path / "weights.safetensors"
    save_file(dict(case.state_dict), path)
    assert "fc.0.weight is [3, 48], not [3, 108]" in refused(path, model, (12, 12, 2))


def small_file() -> bytes:
    """A sound safetensors file of one tensor."""
    header = json.dumps({"fc.0.bias": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(3)


@pytest.mark.parametrize(
    "content",
    [b"", b"not weights", struct.pack("<Q", 1 << 40) + b"{}", small_file()[:-2]],
    ids=["empty", "text", "huge header", "cut short"],
)
def test_an_unreadable_file_is_named(content, small, tmp_path):
    case, model = small
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    assert f"{str(path)!r} cannot be read" in refused(path, model, case.image.shape[1:])


def test_no_file_and_a_directory_are_named(small, tmp_path):
    case, model = small
    absent = tmp_path / "absent.safetensors"
    assert f"there is no file {str(absent)!r}" in refused(absent, model, case.image.shape[1:])
    assert f"{str(tmp_path)!r} is a directory" in refused(tmp_path, model, case.image.shape[1:])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"stage_sizes": (1, 1.5)}, r"`stage_sizes` must be whole numbers above 0; got 1, 1\.5\."),
        ({"block": "x"}, "`block` must be a function or a class, which can be given in Python only; got 'x'"),
        ({"std": (0.0,)}, "`std` must be above 0; got 0.0"),
        ({"mean": ("a",)}, "`mean` must be a number; got 'a'"),
        ({"width": True}, "`width` must be a whole number; got True"),
    ],
)
def test_resnet_fields_are_checked(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        build_model("resnet18", 10, **fields)


def test_fields_become_what_their_defaults_are():
    assert build_model("densenet121", 10, growth=1e1).growth == 10
    assert isinstance(build_model("lenet", 10, channels=4.0, strides=(1.0,)).channels, int)


def test_a_mean_for_each_channel():
    model = build_model("resnet18", 10, mean=(0.5, 0.5), width=4)
    with pytest.raises(InputError, match="`mean` must have 3 numbers, one per channel; got 2"):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
