"""Files that PyTorch users have: read without running them, under the model's names, and the update fits."""

import argparse
import os
import pickle
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.flatten_util import ravel_pytree
from safetensors.numpy import save_file

import jaxleak
from jaxleak import Client, InputError
from jaxleak.kernels.outer import is_outer
from jaxleak.models.files import Stored, read_tensors
from jaxleak.models.files.dialects import translated
from jaxleak.models.own import adapt_model
from jaxleak.models.weights import load_variables, to_torch, variables_from_torch
from jaxleak.runs.audit.refit import targets_of
from jaxleak.threat.client import client_update
from jaxleak.threat.observe import observe
from jaxleak.threat.own_update import load_update, moved_statistics
from tests.commands import call, refusal
from tests.oracles.require_torch import require_torch

pytestmark = pytest.mark.torch
torch: Any = None
SHAPE = (16, 16, 3)
CLASSES = 10
LABEL = 3
IMAGE = np.random.default_rng(0).random((1, *SHAPE)).astype(np.float32)


@pytest.fixture(autouse=True)
def torch_is_there():
    global torch
    torch = require_torch()
    torch.manual_seed(0)


# --- networks, in torch and in Flax ---


def torch_net(width: int = 8) -> Any:
    """A convolution, BatchNorm in evaluation, and a dense layer that reads a flattened map."""
    tn = torch.nn

    class Net(tn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = tn.Conv2d(3, width, 4, 4), tn.BatchNorm2d(width)
            self.mid, self.fc = tn.Linear(16 * width, width), tn.Linear(width, CLASSES)

        def forward(self, x):
            x = torch.sigmoid(self.norm(self.conv(x))).flatten(1)
            return self.fc(torch.sigmoid(self.mid(x)))

    return Net().eval()


class Net(nn.Module):
    classes: int = CLASSES
    width: int = 8

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.width, (4, 4), 4, name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, epsilon=1e-5, name="norm")(x)
        x = nn.sigmoid(nn.Dense(self.width, name="mid")(nn.sigmoid(x).reshape(len(x), -1)))
        return nn.Dense(self.classes, name="fc")(x)


def torch_vit() -> Any:
    """One block of attention over 16 tokens, with a square table of positions, which torch saves as it is."""
    tn = torch.nn

    class ViT(tn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.pos = tn.Conv2d(3, 16, 4, 4), tn.Parameter(torch.randn(16, 16))
            self.norm, self.attn = tn.LayerNorm(16), tn.MultiheadAttention(16, 4, batch_first=True)
            self.fc = tn.Linear(16, CLASSES)
            tn.init.normal_(self.attn.in_proj_bias)

        def forward(self, x):
            tokens = self.patch(x).flatten(2).transpose(1, 2) + self.pos
            normed = self.norm(tokens)
            return self.fc((tokens + self.attn(normed, normed, normed)[0]).mean(1))

    return ViT()


class ViT(nn.Module):
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x):
        tokens = nn.Conv(16, (4, 4), 4, name="patch")(x).reshape(len(x), 16, 16)
        tokens = tokens + self.param("pos", nn.initializers.normal(), (16, 16))
        normed = nn.LayerNorm(epsilon=1e-5, name="norm")(tokens)
        tokens = tokens + nn.MultiHeadDotProductAttention(4, name="attn")(normed)
        return nn.Dense(self.classes, name="fc")(tokens.mean(1))


class NNXViT(nnx.Module):
    def __init__(self, *, rngs):
        self.patch = nnx.Conv(3, 16, (4, 4), 4, rngs=rngs)
        self.pos = nnx.Param(jnp.zeros((16, 16)))
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.fc = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x):
        tokens = self.patch(x).reshape(len(x), 16, 16) + self.pos[...]
        return self.fc((tokens + self.attn(self.norm(tokens))).mean(1))


def gradients(net: Any, image: np.ndarray = IMAGE) -> dict[str, Any]:
    """By name, None where nothing is trained."""
    net.zero_grad()
    x = torch.from_numpy(image).permute(0, 3, 1, 2).to(next(net.parameters()).dtype)
    torch.nn.functional.cross_entropy(net(x), torch.tensor([LABEL])).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def saved(folder: Path, net: Any, update: Any = None, kind: str = "pt") -> tuple[Path, Path]:
    """The files of an update and of the network before it."""
    update = gradients(net) if update is None else update
    paths = folder / f"grads.{kind}", folder / f"w.{kind}"
    for path, tensors in zip(paths, (update, net.state_dict()), strict=True):
        write(path, tensors)
    return paths


def write(path: Path, tensors: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".safetensors":
        save_file({name: tensor.contiguous().numpy() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


def gap(victim, image: np.ndarray = IMAGE) -> float:
    """Relative distance between the given update and that of the true image; tensors of zeros are not compared."""
    target = targets_of(victim, [LABEL] * len(image))

    def shared(params):
        return client_update(victim.client, victim.client_model, params, victim.to_input(image), target)

    there = jax.jit(shared)(victim.params)
    pairs = zip(jax.tree.leaves(there), jax.tree.leaves(victim.update), strict=True)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in pairs if np.any(b)]
    size = sum(np.sum(b**2) for _, b in pairs)
    return float(np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs) / size))


def loaded(files: tuple[Path, Path], model: Any = None, **settings: Any):
    return load_update(*files, Net() if model is None else model, image_shape=SHAPE, **settings)


def refused(function, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(function, *args, **kwargs) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*args, **kwargs)
    return [str(warning.message) for warning in caught]


# --- reading ---


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {Evil.mark}",)

    mark = ""


LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "legacy"])
def test_what_torch_saves_is_read_as_torch_reads_it(how, tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    tensors = {
        "part": base[1:, :, 2],
        "turned": base.permute(2, 0, 1),
        "spread": torch.tensor([2.0]).expand(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "bf16": torch.randn(5).to(torch.bfloat16),
        "half": torch.randn(5).half(),
        "double": torch.randn(5).double(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }
    if not how:  # torch writes it in the older format, and cannot read it
        tensors["unsigned"] = torch.tensor([1, 60000], dtype=torch.uint16)
    torch.save(tensors, tmp_path / "a.pt", **how)
    oracle = torch.load(tmp_path / "a.pt", weights_only=True)
    read = read_tensors(tmp_path / "a.pt").tensors
    assert list(read) == list(tensors)
    for name, tensor in oracle.items():
        wanted = (tensor.float() if name == "bf16" else tensor).detach().numpy()
        assert read[name].dtype == wanted.dtype
        np.testing.assert_array_equal(read[name], wanted)


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "legacy"])
def test_nothing_in_a_file_is_run(how, tmp_path):
    Evil.mark = str(tmp_path / "ran")
    path = tmp_path / "a.pt"
    state = {"w": torch.ones(2, 2)}
    cases = [Evil(), [Evil()], {"w": Evil()}, {**state, "evil": Evil()}, {"state_dict": state, "evil": [Evil()]}]
    for number, content in enumerate(cases):
        torch.save(content, path, **how)
        if number < 3:
            assert f"{os.name}.system, which was not run" in refused(read_tensors, path)
        else:
            assert any(f"names {os.name}.system: left out, not run." in text for text in said(read_tensors, path))
            np.testing.assert_array_equal(read_tensors(path).tensors["w"], np.ones((2, 2)))
    pickle_by_hand = b"cbuiltins\ngetattr\n(cos\nsystem\nX\x08\x00\x00\x00__call__tR(X\x04\x00\x00\x00exittR."
    path.write_bytes(pickle_by_hand)
    refused(read_tensors, path)
    path.write_bytes(pickle.dumps(Evil()))
    refused(read_tensors, path)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_broken(tmp_path):
    torch.save(torch_net().state_dict(), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    torch.save(torch_net().state_dict(), tmp_path / "b.pt", **LEGACY)
    old = (tmp_path / "b.pt").read_bytes()
    for content in (b"", b"text", whole[:-500], whole[:100], old[:-50], old[:300], b"\x80\x02}q\x00.", b"PK\x03\x04"):
        (tmp_path / "c.pt").write_bytes(content)
        assert refused(read_tensors, tmp_path / "c.pt").startswith("`weights` ")
    np.savez(tmp_path / "objects.npz", a=np.asarray([{}]))
    assert "it holds Python objects; save arrays" in refused(read_tensors, tmp_path / "objects.npz")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    """As a file made by hand may have it: the numbers behind are not the file's."""
    torch.save({"w": torch.arange(4.0)}, tmp_path / "a.pt", **LEGACY)
    content = (tmp_path / "a.pt").read_bytes()
    assert content.count(b"K\x04\x85q") == 1  # its shape
    (tmp_path / "a.pt").write_bytes(content.replace(b"K\x04\x85q", b"K\x40\x85q"))
    assert "reaches beyond what is stored" in refused(read_tensors, tmp_path / "a.pt")


def test_numbers_narrow_and_wide(tmp_path):
    values = np.asarray([0.1, -2.5], np.float32)
    save_file({"a": values.astype(ml_dtypes.bfloat16)}, tmp_path / "a.safetensors")
    read = read_tensors(tmp_path / "a.safetensors").tensors["a"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_parts_of_a_checkpoint(tmp_path):
    net, path = torch_net(), tmp_path / "a.pt"
    state, steps = net.state_dict(), torch.optim.Adam(net.parameters())
    torch.nn.functional.mse_loss(net(torch.ones(1, 3, 16, 16)), torch.zeros(1, CLASSES)).backward()
    steps.step()
    checkpoints = {
        "state_dict": {"state_dict": state, "epoch": 3, "optimizer": steps.state_dict()},
        "model": {"model": state, "ema": state, "args": argparse.Namespace(lr=1), "loss": torch.tensor(1.0)},
        "model_state_dict": {"model_state_dict": state, "optimizer_state_dict": steps.state_dict()},
        "run/net": {"run": {"net": state}},
        "mine": {"mine": state, "history": [1, 2]},
    }
    for name, checkpoint in checkpoints.items():
        torch.save(checkpoint, path)
        assert said(read_tensors, path)[0].startswith(f"`weights` are {name} of a.pt")
        assert list(read_tensors(path).tensors) == list(state)
    torch.save({"teacher": state, "student": state}, path)
    assert "several sets of tensors: teacher, student. Name one after a colon, as in a.pt:teacher" in refused(
        read_tensors, path
    )
    assert list(read_tensors(f"{path}:student").tensors) == list(state)
    assert "no one part 'none' of tensors; it has teacher, student" in refused(read_tensors, f"{path}:none")
    torch.save({"epoch": 3, "lr": 0.1}, path)
    assert "holds no dense tensors by name; it holds epoch (int), lr (float)" in refused(read_tensors, path)
    torch.save({"w": torch.ones(3).to_sparse()}, path)
    assert "torch._utils._rebuild_sparse_tensor" in refused(read_tensors, path)
    for how in ({}, LEGACY):
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        torch.save(module, path, **how)
        assert list(read_tensors(path).tensors) == list(module.state_dict())


# --- the update fits ---


@pytest.mark.parametrize("kind", ["pt", "npz", "safetensors"])
def test_an_update_of_each_kind_fits(kind, tmp_path):
    files = saved(tmp_path, torch_net(), kind=kind)
    victim = loaded(files)
    assert gap(victim) < 1e-6
    assert not moved_statistics(files[0])


def test_one_file_may_hold_both(tmp_path):
    net = torch_net()
    both = {"grads": gradients(net), "weights": net.state_dict()}
    path = write(tmp_path / "all.pt", both)
    assert gap(loaded((path, path))) < 1e-6


@pytest.mark.parametrize(
    "prefix",
    [
        *("module._orig_mod.", "_module.", "model._orig_mod."),
        *(pytest.param(prefix, marks=pytest.mark.slow) for prefix in ("module.", "_orig_mod.", "net.", "model.net.")),
    ],
)
def test_prefixes_are_left_out(prefix, tmp_path):
    net = torch_net()
    update = {f"{prefix}{name}": tensor for name, tensor in gradients(net).items()}
    files = write(tmp_path / "g.pt", update), write(tmp_path / "w.pt", net.state_dict())
    texts = said(loaded, files)
    assert next(text for text in texts if "names are read without" in text).startswith("`update`: ")
    assert gap(loaded(files)) < 1e-6


def test_wrappers_of_torch(tmp_path):
    """The real ones, of the whole network and of a part of it."""
    net = torch_net()
    update = gradients(net)
    net.mid = torch.compile(net.mid)
    wrapped = torch.nn.DataParallel(torch.compile(net))
    names = list(wrapped.state_dict())
    assert "module._orig_mod.mid._orig_mod.weight" in names
    files = write(tmp_path / "g.pt", update), write(tmp_path / "w.pt", wrapped.state_dict())
    assert gap(loaded(files)) < 1e-6


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.net.model."])
def test_names_of_other_libraries_may_have_a_prefix(prefix):
    """As in a Lightning checkpoint."""
    names = {"vit.embeddings.cls_token": "cls_token", "vit.layernorm.bias": "norm.bias", "classifier.bias": "head.bias"}
    stored = Stored({prefix + name: np.zeros(1) for name in names})
    with pytest.warns(UserWarning, match="names are read as those of Hugging Face's ViT"):
        assert set(translated("weights", stored, names.values(), ["module"]).tensors) == set(names.values())


def test_a_prefix_that_the_model_has_stays(tmp_path):
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(CLASSES, name="fc")(x.reshape(len(x), -1))

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Inner(name="module")(x)

    net = torch.nn.ModuleDict({"module": torch.nn.ModuleDict({"fc": torch.nn.Linear(768, CLASSES)})})
    names = said(
        load_update, *saved(tmp_path, net, {n: -p for n, p in net.state_dict().items()}), Outer(), image_shape=SHAPE
    )
    assert not [text for text in names if "without" in text]
    parallel = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    files = tmp_path / "grads.pt", write(tmp_path / "p.pt", parallel)
    assert [text for text in said(load_update, *files, Outer(), image_shape=SHAPE) if "without module." in text]


@pytest.mark.parametrize("model", [ViT, pytest.param(NNXViT, marks=pytest.mark.slow)], ids=["linen", "nnx"])
def test_attention_and_a_square_table_fit(model, tmp_path):
    """`in_proj_weight` is split; only kernels are transposed."""
    net = torch_vit()
    victim = loaded(saved(tmp_path, net), model() if model is ViT else model)
    params: Any = victim.params
    np.testing.assert_array_equal(params["pos"], net.pos.detach().numpy())
    assert gap(victim) < 1e-6


@pytest.mark.parametrize("heads", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_equals_torchs_in_float64(heads, bias, tmp_path):
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.reshape(len(x), 16, 48)
            layer = nn.MultiHeadDotProductAttention(heads, use_bias=bias, name="attn")
            return nn.Dense(CLASSES, name="fc")(layer(x).mean(1))

    tn = torch.nn
    net = tn.ModuleDict(
        {"attn": tn.MultiheadAttention(48, heads, bias=bias, batch_first=True), "fc": tn.Linear(48, CLASSES)}
    )
    net = net.double()

    def forward(x):
        x = x.permute(0, 2, 3, 1).reshape(len(x), 16, 48)
        return net["fc"](net["attn"](x, x, x)[0].mean(1))

    net.forward = forward
    files = saved(tmp_path, net)
    victim = loaded(files, Attention())
    assert gap(victim) < 1e-12
    x = torch.from_numpy(IMAGE).double().permute(0, 3, 1, 2)
    logits = victim.model.apply({"params": victim.params}, jnp.asarray(IMAGE, float))
    np.testing.assert_allclose(logits, forward(x).detach().numpy(), rtol=1e-10, atol=1e-12)


def test_general_layers_and_raw_parameters_go_through_files():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (2, 2, 3))(x[..., None]).mean((1, 2))
            x = nn.DenseGeneral((2, 5), axis=(-2, -1), name="both")(x).reshape(len(x), 10)
            table = nn.Embed(10, 10, name="table")(jnp.arange(10))
            x = x * self.param("temperature", nn.initializers.ones, ()) + x @ table
            return nn.Dense(CLASSES, name="head")(
                x + jnp.sum(self.param("raw", nn.initializers.normal(), (3, 3, 3, 3)))
            )

    model = adapt_model(Odd(), SHAPE)
    params = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    tensors = to_torch(model, params, SHAPE)
    assert tensors["both.weight"].shape == (10, 12)
    assert tensors["both.bias"].shape == (10,)
    assert tensors["Conv_0.weight"].shape == (4, 1, 2, 2, 3)
    assert tensors["temperature"].shape == ()
    np.testing.assert_array_equal(tensors["raw"], params["raw"])
    np.testing.assert_array_equal(tensors["table.weight"], params["table"]["embedding"])
    again = variables_from_torch(model, tensors, SHAPE)["params"]
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_what_was_stored_with_every_tensor_transposed_is_read_so():
    params = adapt_model(ViT(), SHAPE).init(jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    names = {"kernel": "weight", "scale": "weight"}
    tensors = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        steps = [step.key for step in path]
        array = np.asarray(leaf)
        name = ".".join([*steps[:-1], names.get(steps[-1], steps[-1])])
        tensors[name] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    model = adapt_model(ViT(), SHAPE)
    again = variables_from_torch(model, tensors, SHAPE, all_reversed=True)["params"]
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_parts_that_were_not_trained(tmp_path):
    """Frozen layers: None in a dict, nothing in a file, zero in a difference."""
    net = torch_net()
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name.startswith("fc")
    files = saved(tmp_path, net)
    (text,) = [text for text in said(loaded, files) if "tensors" in text]
    assert text == (
        "`update` has 2 of the model's 8 tensors; conv.bias, conv.weight, mid.bias, mid.weight, norm.bias, norm.weight "
        "are taken as zero and left out of the comparison"
    )
    assert gap(loaded(files)) < 1e-6


def test_a_list_of_gradients_comes_in_the_order_of_the_parameters(tmp_path):
    net = torch_net()
    grads = gradients(net)
    files = saved(tmp_path, net, tuple(grads.values()))
    assert gap(loaded(files)) < 1e-6
    some = [None if name.startswith("conv") else grad for name, grad in grads.items()]
    assert gap(loaded((write(tmp_path / "some.pt", some), files[1]))) < 1e-6
    every = [grads.get(name, torch.zeros(tensor.shape)) for name, tensor in net.state_dict().items()]
    np.savez(tmp_path / "flower.npz", *[tensor.numpy() for tensor in every])
    assert gap(loaded((tmp_path / "flower.npz", files[1]))) < 1e-6
    write(tmp_path / "g.pt", tuple(grads.values())[1:])
    assert "is a list of 7 tensors without names" in refused(loaded, (tmp_path / "g.pt", files[1]))
    write(tmp_path / "g.pt", tuple(grads.values())[::-1])
    assert "place 0 is [10], not [8, 3, 4, 4] (conv.weight)" in refused(loaded, (tmp_path / "g.pt", files[1]))
    write(tmp_path / "w.safetensors", net.state_dict())
    assert "does not keep their order" in refused(loaded, (files[0], tmp_path / "w.safetensors"))
    assert "`weights` must have names" in refused(loaded, (files[1], files[0]))


def test_whole_numbers_are_no_update(tmp_path):
    net = torch_net()
    grads = gradients(net)
    files = saved(tmp_path, net, {**grads, "conv.bias": torch.ones(8, dtype=torch.int8)})
    assert "`update` must be floats; conv.bias is int8. Give them as the server computes with them" in refused(
        loaded, files
    )
    net.register_buffer("position_ids", torch.arange(4))
    files = saved(tmp_path, net, grads)
    assert [text for text in said(loaded, files) if "were left out: position_ids" in text]
    assert gap(loaded(files)) < 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_updates_of_other_precision_are_rounded_and_no_more(dtype, tmp_path):
    net = torch_net()
    grads = {name: grad.to(getattr(torch, dtype)) for name, grad in gradients(net).items()}
    assert gap(loaded(saved(tmp_path, net, grads))) < {"bfloat16": 4e-3, "float16": 1e-3, "float64": 1e-6}[dtype]


# --- tied weights ---


def torch_tied() -> Any:
    """A layer that is used twice, under two names."""
    tn = torch.nn

    class Tied(tn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fc = tn.Linear(768, 8), tn.Linear(8, CLASSES)
            self.a = tn.Linear(8, 8)
            self.b = self.a

        def forward(self, x):
            x = torch.sigmoid(self.first(x.flatten(1)))
            return self.fc(torch.sigmoid(self.b(torch.sigmoid(self.a(x)))))

    return Tied()


class Once(nn.Module):
    """The same layer, under one name."""

    shared: str = "a"

    @nn.compact
    def __call__(self, x):
        x = nn.sigmoid(nn.Dense(8, name="first")(jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)))
        layer = nn.Dense(8, name=self.shared)
        return nn.Dense(CLASSES, name="fc")(nn.sigmoid(layer(nn.sigmoid(layer(x)))))


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("kind", ["pt", pytest.param("npz", marks=pytest.mark.slow), "safetensors", "save_model"])
def test_tied_tensors_may_have_both_names_or_one(name, kind, tmp_path):
    """torch's gradients have the first name alone, its state dicts both, safetensors' `save_model` one of them."""
    net = torch_tied()
    update, weights = saved(tmp_path, net)
    if kind == "save_model":
        from safetensors.torch import save_model

        save_model(net, str(tmp_path / "w.safetensors"))
        weights = tmp_path / "w.safetensors"
    elif kind != "pt":
        weights = write(tmp_path / f"w.{kind}", net.state_dict())
    assert gap(loaded((update, weights), Once(name))) < 1e-6
    both = gradients(net)
    both = {**both, "b.weight": both["a.weight"], "b.bias": both["a.bias"]}
    assert gap(loaded((write(tmp_path / "both.pt", both), weights), Once(name))) < 1e-6
    both["b.bias"] = both["b.bias"] + 1
    assert "that are one in the weights; share one" in refused(
        loaded, (write(tmp_path / "both.pt", both), weights), Once(name)
    )


def assert_attacked(victim) -> None:
    """What an attack computes is the update, each tied parameter once and with all its uses."""
    target = victim.target(np.array([LABEL]))
    found: Any = observe(victim.attacker_model, victim.params, jnp.asarray(IMAGE), target).gradient
    update = jax.tree.map(lambda leaf: leaf.build() if is_outer(leaf) else leaf, found, is_leaf=is_outer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), update, victim.update)


class Twice(nn.Module):
    """The same layer twice, as two parameters."""

    @nn.compact
    def __call__(self, x):
        x = nn.sigmoid(nn.Dense(8, name="first")(jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)))
        x = nn.sigmoid(nn.Dense(8, name="b")(nn.sigmoid(nn.Dense(8, name="a")(x))))
        return nn.Dense(CLASSES, name="fc")(x)


@pytest.mark.parametrize("kind", ["pt", "save_model"])
def test_two_parameters_that_the_file_ties_are_one(kind, tmp_path):
    from safetensors.torch import save_model

    net = torch_tied()
    update, weights = saved(tmp_path, net)
    if kind == "save_model":
        weights = tmp_path / "w.safetensors"
        save_model(net, str(weights))
    victim = loaded((update, weights), Twice())
    params: Any = victim.params
    assert set(params) == {"first", "a", "head"}
    assert gap(victim) < 1e-6
    assert_attacked(victim)
    assert "a/kernel" in repr(victim.model)


def test_a_head_that_is_tied_to_an_embedding(tmp_path):
    class Words(nn.Module):
        @nn.compact
        def __call__(self, x):
            table = nn.Embed(CLASSES, 4, name="table")(jnp.arange(CLASSES))
            x = nn.sigmoid(nn.Dense(4, name="first")(x.mean((1, 2)))) + nn.softmax(x[:, 0, :1, 0]) @ table[:1]
            return nn.Dense(CLASSES, use_bias=False, name="fc")(x)

    tn = torch.nn
    parts = {"first": tn.Linear(3, 4), "table": tn.Embedding(CLASSES, 4), "fc": tn.Linear(4, CLASSES, bias=False)}
    net = tn.ModuleDict(parts)
    parts["fc"].weight = parts["table"].weight

    def forward(x):
        first = torch.sigmoid(parts["first"](x.mean((2, 3))))
        return parts["fc"](first + torch.softmax(x[:, 0, :1, 0], -1) @ parts["table"].weight[:1])

    net.forward = forward
    victim = loaded(saved(tmp_path, net), Words())
    assert set(victim.params) == {"first", "head"}
    assert gap(victim) < 1e-6
    assert_attacked(victim)


# --- before and after ---


def trained(net: Any, steps: int, lr: float) -> Any:
    """State dicts before and after plain SGD."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    stepper = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        gradients(net)
        stepper.step()
    return before, net.state_dict()


@pytest.mark.parametrize(("steps", "client"), [(1, None), (3, Client(steps=3, lr=0.5))], ids=["one", "three"])
def test_networks_before_and_after(steps, client, tmp_path):
    before, after = trained(torch_net(), steps, 0.5 if client else 0.01)
    files = write(tmp_path / "b.pt", before), write(tmp_path / "a.npz", after)
    settings = {"before": files[0], "after": files[1], "model": Net(), "image_shape": SHAPE, "client": client}
    victim = load_update(**settings)
    told = [text for text in said(load_update, **settings) if "one local step of sgd with learning rate 0.01" in text]
    assert bool(told) == (client is None)
    assert victim.client.steps == steps
    assert gap(victim) < (1e-4 if client is None else 1e-5)  # what float32 keeps of a difference of weights
    assert not moved_statistics(files[1], files[0])


def test_files_before_and_after_that_make_no_update(tmp_path):
    before, after = trained(torch_net(), 2, 0.1)
    b, a = write(tmp_path / "b.pt", before), write(tmp_path / "a.pt", after)
    settings = {"model": Net(), "image_shape": SHAPE}
    text = refused(load_update, a, b, **settings)
    assert text.startswith("`update` is nearly the weights (")
    assert text.endswith("Give both networks: --before W --after FILE.")
    assert "`after` is zero everywhere: both files are the same network" in refused(
        load_update, before=b, after=b, **settings
    )
    assert "`before` is missing" in refused(load_update, after=a, **settings)
    assert "`after` is missing" in refused(load_update, before=b, **settings)
    assert "`weights` does not go with them" in refused(load_update, weights=b, before=b, after=a, **settings)
    assert "`update` needs `weights`" in refused(load_update, a, **settings)
    assert "`weights` needs `update`" in refused(load_update, weights=b, **settings)
    wide = write(tmp_path / "wide.pt", torch_net(9).state_dict())
    assert "`after` does not fit `before`: conv.weight is [9, 3, 4, 4], not [8, 3, 4, 4]" in refused(
        load_update, before=b, after=wide, **settings
    )


def test_statistics_that_moved_between_two_networks_are_seen(tmp_path):
    net = torch_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.train()
    gradients(net, np.repeat(IMAGE, 2, axis=0)[:1])
    files = write(tmp_path / "b.pt", before), write(tmp_path / "a.pt", net.state_dict())
    assert moved_statistics(files[1], files[0])
    wrapped = write(tmp_path / "c.pt", {f"module.{name}": tensor for name, tensor in net.state_dict().items()})
    assert moved_statistics(wrapped, files[0])
    still = write(tmp_path / "d.pt", {f"net.{name}": tensor for name, tensor in before.items()})
    assert not moved_statistics(still, files[0])


# --- the command ---


def model_file(folder: Path) -> Path:
    lines = Path(__file__).read_text().split("class Net(nn.Module):\n")[1].split("\n\n\n")[0]
    text = f"import flax.linen as nn\n\nCLASSES = 10\n\n\nclass Net(nn.Module):\n{lines}\n\n\ndef build_model(k):\n"
    (folder / "net.py").write_text(f"{text}    return Net(k)\n")
    return folder / "net.py"


@pytest.mark.slow
def test_the_command_takes_these_files(tmp_path):
    before, after = trained(torch_net(), 1, 0.01)
    write(tmp_path / "b.pth", {"state_dict": {f"module.{name}": tensor for name, tensor in before.items()}})
    write(tmp_path / "a.pth", after)
    files = ("--before", tmp_path / "b.pth", "--after", tmp_path / "a.pth", "--model", model_file(tmp_path))
    flags = ("--image-shape", *SHAPE, "--attack", "idlg", "--seeds", 1, "--iterations", 1, "--lanes", 1)
    told = call("attack", *files, *flags, "--mean", 0, "--std", 1, "--out", tmp_path / "RUN")
    assert told.code == 0, told.err
    assert told.err.count("`before` are state_dict of b.pth") == 1
    assert "`before`: names are read without module." in told.err
    assert "taken as one local step of sgd with learning rate 0.01" in told.err
    assert (tmp_path / "RUN/report.json").exists()


def test_the_command_refuses_in_a_line(tmp_path):
    before, after = trained(torch_net(), 1, 0.01)
    named = write(tmp_path / "b.pt", {"model": {f"module.{name}": tensor for name, tensor in before.items()}})
    after.pop("fc.bias")
    files = ("--before", named, "--model", model_file(tmp_path), "--image-shape", *SHAPE, "--out", tmp_path / "no")
    wrong = ("attack", *files, "--after", write(tmp_path / "a.pt", {**after, "more.weight": torch.ones(2, 2)}))
    assert "`after` does not fit Net" in refusal(*wrong)
    assert "`after` is missing" in refusal("attack", *files)
    assert "`mean` and `std` go together" in refusal(*wrong, "--mean", 0.5)
    assert "`normalise` and `mean` exclude each other" in refusal(
        *wrong, "--mean", 0.5, "--std", 0.2, "--normalise", "mnist"
    )
    assert "`std` above 0" in refusal(*wrong, "--mean", 0.5, "--std", 0)
    assert "Divide those of pixels from 0 to 255 by 255" in refusal(*wrong, "--mean", 123.7, "--std", 58.4)
    assert "`mean` and `std` must be as many numbers" in refusal(*wrong, "--mean", 0.5, 0.5, "--std", 1, 1, 1)


def test_inputs_normalised_by_numbers_fit(tmp_path):
    net = torch_net()
    mean, deviation = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    update = gradients(net, ((IMAGE - np.float32(mean)) / np.float32(deviation)).astype(np.float32))
    victim = loaded(saved(tmp_path, net, update), normalise=(mean, deviation))
    assert victim.normalisation == (mean, deviation)
    assert gap(victim) < 1e-6


# --- dropout ---


class Dropping(nn.Module):
    fixed: bool | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=self.fixed)(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES)(x)


class NNXDropping(nnx.Module):
    def __init__(self, always: bool = False, *, rngs):
        self.always = always
        self.fc, self.drop = nnx.Linear(768, CLASSES, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        return self.fc(self.drop(x, deterministic=False) if self.always else self.drop(x))


@pytest.mark.parametrize(
    "model",
    [Dropping(), Dropping(False), lambda rngs: NNXDropping(True, rngs=rngs)],
    ids=["unsaid", "on", "nnx"],
)
def test_dropout_that_is_on_is_refused_in_a_line(model):
    text = refused(adapt_model, model, SHAPE)
    assert text.startswith("`model` has dropout on")
    assert "nn.Dropout(rate, deterministic=True)" in text


def test_dropout_that_can_be_switched_off_is():
    adapt_model(Dropping(True), SHAPE)
    module = NNXDropping(rngs=nnx.Rngs(0))
    module.train()
    with pytest.warns(UserWarning, match="the same weights"):
        adapted = adapt_model(module, SHAPE)
    params = adapted.init(jax.random.key(0), IMAGE)["params"]
    kernel = np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(adapted.apply({"params": params}, IMAGE)[0], IMAGE.reshape(-1) @ kernel, rtol=1e-4)


# --- trees of Flax ---


def flax_trees(model: Any) -> tuple[Any, Any]:
    """The gradient of a Linen model at the image, and its variables."""
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))

    def loss(params):
        logits = model.apply({**variables, "params": params}, jnp.asarray(IMAGE))
        return -jax.nn.log_softmax(logits)[0, LABEL]

    return jax.grad(loss)(variables["params"]), variables


def written(path: Path, tree: Any, how: str) -> Path:
    flat = {"/".join(names): np.asarray(leaf) for names, leaf in flatten_dict(tree).items()}
    if how == "msgpack":
        path.write_bytes(flax.serialization.to_bytes(tree))
    elif how == "npz":
        np.savez(path.with_suffix(".npz"), **flat)
        path = path.with_suffix(".npz")
    elif how == "safetensors":
        save_file({name.replace("/", "."): leaf for name, leaf in flat.items()}, path)
    else:
        content = {"jax": tree, "numpy": jax.tree.map(np.asarray, tree), "frozen": flax.core.freeze(tree)}
        path.write_bytes(pickle.dumps(content[how]))
    return path


@pytest.mark.parametrize("how", ["msgpack", "npz", "safetensors", "jax", "numpy", "frozen"])
def test_trees_of_flax_are_read_as_they_are(how, tmp_path):
    """In Linen's names and layout, running statistics included; the dense layer reads a flattened map."""
    gradient, variables = flax_trees(Net())
    files = written(tmp_path / "g", gradient, how), written(tmp_path / "w", variables, how)
    assert gap(loaded(files)) < 1e-6


@pytest.mark.slow
def test_trees_of_flax_of_other_models(tmp_path):
    """Attention, whose layers are over several axes; and a network of jaxleak's."""
    for model in (ViT(), jaxleak.build_model("lenet", CLASSES)):
        gradient, variables = flax_trees(model)
        files = written(tmp_path / "g", gradient, "msgpack"), written(tmp_path / "w", variables["params"], "jax")
        assert gap(loaded(files, model)) < 1e-6


def test_checkpoints_and_leaves_of_flax(tmp_path):
    gradient, variables = flax_trees(Net())
    state = {**variables, "step": 3, "opt_state": {"0": {"trace": gradient}}}
    files = tmp_path / "leaves.pkl", written(tmp_path / "state", state, "msgpack")
    files[0].write_bytes(pickle.dumps(jax.tree.leaves(gradient)))
    assert "`weights` are params of state; it also holds step, opt_state." in said(loaded, files)
    assert gap(loaded(files)) < 1e-6
    wrong = written(tmp_path / "g", jax.tree.map(lambda leaf: leaf[..., None], gradient), "msgpack")
    assert "`update` does not fit the model: conv.bias is [8, 1], not [8]" in refused(loaded, (wrong, files[1]))
    wrong = written(tmp_path / "g", jax.tree.map(lambda leaf: jnp.ones((3,) * leaf.ndim), gradient), "msgpack")
    assert "mid.kernel is [3, 3], not [128, 8]" in refused(loaded, (wrong, files[1]))


def test_networks_of_flax_before_and_after(tmp_path):
    gradient, variables = flax_trees(Net())
    params = jax.tree.map(lambda p, g: p - 0.5 * g, variables["params"], gradient)
    statistics = jax.tree.map(lambda leaf: leaf + 1, variables["batch_stats"])
    before = written(tmp_path / "before", variables, "npz")
    after = written(tmp_path / "after", {"params": params, "batch_stats": statistics}, "msgpack")
    victim = load_update(before=before, after=after, model=Net(), image_shape=SHAPE, client=Client(steps=1, lr=0.5))
    assert gap(victim) < 1e-4  # a difference of float32
    assert moved_statistics(after, before)
    assert not moved_statistics(before, before)


@pytest.mark.parametrize("change", ["state", pytest.param("dict", marks=pytest.mark.slow)])
def test_states_of_nnx_are_read(change, tmp_path):
    class NNXNet(nnx.Module):
        def __init__(self, *, rngs):
            self.layers = nnx.List([nnx.Conv(3, 4, (4, 4), 4, rngs=rngs)])
            self.fc = nnx.Linear(64, CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.fc(jax.nn.sigmoid(self.layers[0](x)).reshape(len(x), -1))

    module = NNXNet(rngs=nnx.Rngs(0))

    def loss(module):
        return -jax.nn.log_softmax(module(jnp.asarray(IMAGE)))[0, LABEL]

    for name, tree in (("g", nnx.grad(loss)(module)), ("w", nnx.state(module, nnx.Param))):
        (tmp_path / name).write_bytes(pickle.dumps(tree if change == "state" else nnx.to_pure_dict(tree)))
    assert said(read_tensors, tmp_path / "w") == []
    assert gap(loaded((tmp_path / "g", tmp_path / "w"), NNXNet)) < 1e-6


def test_wide_numbers_of_flax(tmp_path):
    kernel = jnp.asarray([[0.1, -2.5]], jnp.bfloat16)
    for how in ("msgpack", "jax", "numpy"):
        read = read_tensors(written(tmp_path / "w", {"fc": {"kernel": kernel}}, how)).tensors["fc.kernel"]
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, np.asarray(kernel, np.float32))


def test_msgpack_that_is_broken_or_hostile(tmp_path):
    content = flax.serialization.to_bytes({"fc": {"kernel": np.ones((2, 2), np.float32)}})
    objects = content.replace(b"float32", b"object0")
    for broken in (content[:-3], content[:20], b"\x81", content.replace(b"float32", b"nothing"), objects):
        (tmp_path / "w").write_bytes(broken)
        assert "no msgpack of flax.serialization" in refused(read_tensors, tmp_path / "w")


def test_weights_of_a_module_of_ones_own_go_through_files(tmp_path):
    """Given as it is, not adapted: its dense layer reads a flattened map, which torch flattens in another order."""
    gradient, variables = flax_trees(Net())
    jaxleak.save_weights(tmp_path / "w", Net(), variables["params"], SHAPE, variables["batch_stats"])
    jaxleak.save_weights(tmp_path / "g", Net(), gradient, SHAPE)
    assert gap(loaded((tmp_path / "g", tmp_path / "w"))) < 1e-6
    read = load_variables(tmp_path / "w", Net(), SHAPE)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), dict(read), dict(variables)))


# --- what else people have ---


@pytest.fixture
def both(tmp_path):
    """A network, its gradients and the file of its weights."""
    net = torch_net()
    return net, gradients(net), write(tmp_path / "w.pt", net.state_dict())


def test_gradients_without_names_or_in_other_containers(both, tmp_path):
    net, update, weights = both
    vector = torch.nn.utils.parameters_to_vector(update.values())
    contents = {
        "numbered": dict(enumerate(update.values())),
        "numbered as text": {str(place): tensor for place, tensor in enumerate(update.values())},
        "pairs": list(update.items()),
        "vector": vector,
        "vector in a dict": {"grad": vector},
        "vector in a row": vector[None],
    }
    for content in contents.values():
        assert gap(loaded((write(tmp_path / "g.pt", content), weights))) < 1e-6
    np.save(tmp_path / "g.npy", vector.numpy())
    assert gap(loaded((tmp_path / "g.npy", weights))) < 1e-6
    short = write(tmp_path / "g.pt", vector[1:])
    assert f"`update` is one vector of {len(vector) - 1} numbers, and the weights have" in refused(
        loaded, (short, weights)
    )
    lists = write(tmp_path / "l.pt", list(net.state_dict().values()))
    assert "`weights` must have names" in refused(loaded, (short, lists))
    assert "dict(zip(model.state_dict(), LIST))" in refused(loaded, (weights, lists))
    clients = write(tmp_path / "c.pt", {0: update, 1: update})
    assert "several sets of tensors: 0, 1" in refused(loaded, (clients, weights))
    assert gap(loaded((f"{clients}:1", weights))) < 1e-6
    steps = torch.optim.Adam(net.parameters())
    steps.step()
    assert "it holds state (dict), param_groups (list)" in refused(
        loaded, (write(tmp_path / "g.pt", steps.state_dict()), weights)
    )


class Round:
    """An object of one's own, with gradients among its attributes."""

    def __init__(self, gradients):
        self.gradients, self.clients = gradients, 3


def test_attributes_of_objects_and_other_dicts(both, tmp_path):
    _, update, weights = both
    for content in (Round(update), {"round": Round(update)}, argparse.Namespace(grads=update)):
        path = write(tmp_path / "g.pt", content)
        assert gap(loaded((path, weights))) < 1e-6
        assert any("left out, not run" in text for text in said(read_tensors, path))
    path = write(tmp_path / "g.pt", defaultdict(list, update))
    assert said(read_tensors, path) == []
    assert gap(loaded((path, weights))) < 1e-6
    assert "holds no dense tensors by name; it holds lr (int)" in refused(
        read_tensors, write(path, argparse.Namespace(lr=1))
    )


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"image_shape": 16}, "`image_shape` must be height, width and channels; got 16"),
        ({"image_shape": (16, 16)}, "`image_shape` must be height, width and channels; got [16, 16]"),
        ({"truth": IMAGE}, "`truth` must be the path of an .npz file or a folder"),
        ({"client": {"steps": 2}}, "`client` must be a Client"),
    ],
)
def test_settings_of_other_types_are_refused(setting, text):
    assert text in refused(load_update, "g.pt", "w.pt", Net(), **{"image_shape": SHAPE, **setting})


def test_vectors_of_flax(tmp_path):
    gradient, variables = flax_trees(Net())
    np.save(tmp_path / "g.npy", ravel_pytree(gradient)[0])
    assert gap(loaded((tmp_path / "g.npy", written(tmp_path / "w", variables, "safetensors")))) < 1e-6


def test_a_network_among_other_modules(both, tmp_path):
    """As in a checkpoint of Lightning, whose loss and metrics have tensors too; and beside its average."""
    net, update, _ = both
    state = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    more = {"criterion.weight": torch.ones(CLASSES), "accuracy.total": torch.tensor(3.0)}
    files = write(tmp_path / "g.pt", update), write(tmp_path / "l.ckpt", {"state_dict": {**state, **more}})
    assert "`weights`: names are read without model.; criterion.weight, accuracy.total left out" in said(loaded, files)
    assert gap(loaded(files)) < 1e-6
    average = {f"ema.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    files = files[0], write(tmp_path / "l.ckpt", {"state_dict": {**state, **average}})
    assert "the model's names are in each of model, ema.model; name one after a colon, as in FILE:model." in refused(
        loaded, files
    )
    assert gap(loaded((files[0], f"{files[1]}:model"))) < 1e-6
    assert "has no one part 'none'" in refused(loaded, (files[0], f"{files[1]}:none"))


def test_what_does_not_fit_says_how_to_mend_it(both, tmp_path):
    net, update, weights = both
    gradient, path = write(tmp_path / "g.pt", update), tmp_path / "a.pt"
    write(path, dict(net.named_parameters()))
    assert "Save all of state_dict(), which has them" in refused(loaded, (gradient, path))
    write(path, {name: torch.stack([tensor, tensor]) for name, tensor in update.items()})
    assert "one axis more, as of a gradient for each image" in refused(loaded, (path, weights))
    write(path, net.state_dict())
    assert "is the weights, number for number" in refused(loaded, (path, weights))
    torch.nn.utils.parametrizations.weight_norm(net.fc)
    write(path, net.state_dict())
    assert "leave that out (remove_parametrizations" in refused(loaded, (gradient, path))


def test_quantised_tensors_are_named(both, tmp_path):
    _, update, weights = both
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop them
        update["mid.weight"] = torch.quantize_per_tensor(update["mid.weight"], 0.1, 0, torch.qint8)
        path = write(tmp_path / "g.pt", update)
    text = refused(loaded, (path, weights))
    assert "mid.weight (torch._utils._rebuild_qtensor) is no dense tensor; save it by dequantize()" in text


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (b"\x89HDF\r\n\x1a\n", "it is HDF5; read it by h5py or Keras"),
        (b"\x1f\x8b\x08", "it is compressed by gzip; unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, not the file"),
        (b"<!DOCTYPE html>", "it is a web page"),
        (b'{"w": 1}', "it is text (JSON)"),
        (b"", "it is empty"),
    ],
)
def test_files_of_other_kinds_are_named(start, text, tmp_path):
    (tmp_path / "w").write_bytes(start)
    assert text in refused(read_tensors, tmp_path / "w")


def test_folders_and_archives_of_other_kinds_are_named(tmp_path):
    for name, text in (("_METADATA", "a checkpoint of Orbax; restore it"), (".metadata", "dcp_to_torch FOLDER FILE")):
        folder = tmp_path / f"folder{name}"
        folder.mkdir()
        (folder / name).touch()
        assert text in refused(read_tensors, folder)
    assert f"{str(tmp_path)!r} is a directory" in refused(read_tensors, tmp_path)
    for name, text in (("w.pt", "an archive of files (w.pt); unpack"), ("model.weights.h5", "a model of Keras")):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(name, b"")
        assert text in refused(read_tensors, tmp_path / "a.zip")
    np.save(tmp_path / "a.npy", np.array({"w": 1}), allow_pickle=True)
    assert "it holds Python objects; save arrays" in refused(read_tensors, tmp_path / "a.npy")


def test_an_object_that_holds_itself_is_refused(tmp_path):
    """And one whose parts are shared so often that there are 2**60 ways to them."""
    content: Any = {"w": torch.ones(2)}
    content["again"] = content
    assert "cannot be read: it holds itself" in refused(read_tensors, write(tmp_path / "a.pt", content))
    content = {"kernel": torch.ones(2)}
    for _ in range(60):
        content = {"a": content, "b": content}
    assert "or more than 2,000,000 objects" in refused(read_tensors, write(tmp_path / "a.pt", content))


@pytest.mark.parametrize("channels_first", [False, True])
def test_signals_fit(channels_first, tmp_path):
    """One-dimensional convolutions, whose map is read flattened in Linen's order or in torch's."""
    shape = (1, 16, 6)
    signal = np.random.default_rng(0).random((1, *shape)).astype(np.float32)

    class TorchNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = torch.nn.Conv1d(6, 8, 5, 2, padding=2), torch.nn.Linear(64, CLASSES)

        def forward(self, x):
            return self.fc(torch.sigmoid(self.conv(x[:, :, 0])).flatten(1))

    class SignalNet(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.sigmoid(nn.Conv(8, (5,), (2,), padding=2, name="conv")(x[:, 0]))
            x = x.transpose(0, 2, 1) if channels_first else x
            return nn.Dense(CLASSES, name="fc")(x.reshape(len(x), -1))

    net = TorchNet()
    victim = load_update(*saved(tmp_path, net, gradients(net, signal)), SignalNet(), image_shape=shape)
    assert gap(victim, signal) < 1e-6


def test_numbers_of_a_table_fit(tmp_path):
    shape = (1, 1, 20)
    record = np.random.default_rng(0).random((1, *shape)).astype(np.float32)

    class TableNet(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(CLASSES, name="1")(x.reshape(len(x), -1))

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, CLASSES))
    victim = load_update(*saved(tmp_path, net, gradients(net, record)), TableNet(), image_shape=shape)
    assert gap(victim, record) < 1e-6


class UnlikeTorch(nn.Module):
    """Its dense layer reads two maps, and its transposed convolution is none of torch's."""

    classes: int = CLASSES

    @nn.compact
    def __call__(self, x):
        x = nn.ConvTranspose(4, (2, 2), (2, 2), name="up")(nn.sigmoid(nn.Conv(4, (4, 4), 4, name="conv")(x)))
        x = x.reshape(len(x), -1)
        return nn.Dense(self.classes, name="fc")(jnp.concatenate([x, x[:, ::2]], axis=1))


def test_files_of_flax_need_not_mean_anything_to_torch(tmp_path):
    gradient, variables = flax_trees(UnlikeTorch())
    files = written(tmp_path / "g", gradient, "msgpack"), written(tmp_path / "w", variables, "msgpack")
    assert gap(loaded(files, UnlikeTorch())) < 1e-6
    parameters = {"conv.weight": torch.ones(4, 3, 4, 4), "fc.weight": torch.ones(CLASSES, 384)}
    path = write(tmp_path / "w.pt", parameters)
    assert "whose weights in torch's layout cannot be told: up, head" in refused(loaded, (path, path), UnlikeTorch())


def test_an_image_shape_with_channels_first_is_asked_after(tmp_path):
    files = saved(tmp_path, torch_net())
    text = refused(load_update, *files, Net(), image_shape=(3, 16, 16))
    assert text.endswith("An image's shape is height, width, channels: is it 16 16 3?")
