"""An update from elsewhere, end to end from the command line, and what is said of images nobody can compare."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxleak
from jaxleak import IDLG, InputError, Sweep
from jaxleak.models import LeNet
from jaxleak.models.own.from_file import model_builder
from jaxleak.models.weights import to_torch, variables_from_torch
from jaxleak.runs.audit.audit import fitted
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.network import draw_params
from jaxleak.threat.own_update import load_update
from tests.commands import call, refusal, restored_globals
from tests.oracles.require_torch import require_torch

ROOT = Path(__file__).parent.parent
SHAPE = (16, 16, 3)
CLASSES = 10
LABEL = 3
MODEL = LeNet(num_classes=CLASSES)
TWO_BLOCKS = """
from jaxleak.models import ResNet
from jaxleak.models.resnet import BasicBlock


def two_blocks(classes, **fields):
    return ResNet(num_classes=classes, stage_sizes=(1, 1), block=BasicBlock, width=8, **fields)
"""


@pytest.fixture(autouse=True)
def restore_globals():
    with restored_globals():
        yield


def photo() -> np.ndarray:
    """One of the embedded photographs at half its size [1, 16, 16, 3]."""
    with np.load(ROOT / "jaxleak/data/photos/tiles.npz") as tiles:
        halves = tiles["pixels"][6:7].reshape(1, 16, 2, 16, 2, 3)
    return halves.mean(axis=(2, 4)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "truth.npz"
    np.savez(path, images=photo(), labels=[LABEL], class_names=[str(k) for k in range(CLASSES)])
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """What a LeNet's client shares, computed here."""
    folder = tmp_path_factory.mktemp("update")
    with jax.enable_x64(True):
        params = draw_params(MODEL, jax.random.key(0), SHAPE)
        target = jax.nn.one_hot(np.array([LABEL]), CLASSES, dtype=float)
        update = jax.jit(lambda p: loss_gradient(MODEL, p, jnp.asarray(photo() / 255.0), target))(params)
    for name, tree in (("w", params), ("grads", update)):
        tensors = {key: value.astype(np.float32) for key, value in to_torch(MODEL, tree, SHAPE).items()}
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def exported(folder: Path, truth: Path, *arguments: str) -> Path:
    """The files that a PyTorch script leaves."""
    require_torch()
    script = [
        sys.executable,
        "-m",
        "tests.oracles.export_update",
        arguments[0],
        str(truth),
        str(folder),
        *arguments[1:],
    ]
    subprocess.run(script, cwd=ROOT, check=True)
    return folder


def attack(folder: Path, out: Path, *arguments: object) -> dict[str, Any]:
    """The command's report, and that it ended well."""
    given = ("--update", folder / "grads.safetensors", "--weights", folder / "w.safetensors", "--image-shape", *SHAPE)
    said = call("attack", *given, "--out", out, "--lanes", 2, *arguments)
    assert said.code == 0, said.err
    assert "What the update gives away" in said.out
    return json.loads((out / "report.json").read_text())["attacks"][0]


def test_the_image_is_recovered_without_being_known(files, tmp_path):
    told = attack(files, tmp_path / "RUN", "--attack", "idlg", "--seeds", 2)
    assert (told["explain"], told["agree"], told["restarts"]) == (2, 2, 2)
    assert told["labels"] == [LABEL]
    assert told["verdict"] == "recovered"
    assert told["psnr"] is None
    with np.load(tmp_path / "RUN/best.npz") as best:
        assert best["images"].shape == (2, 1, *SHAPE)
        assert best["images"].min() >= 0
        assert best["images"].max() <= 1
        assert np.mean((best["images"][0, 0] - photo()[0] / 255) ** 2) < 1e-3
        assert best["labels"].tolist() == [[LABEL], [LABEL]]
    assert (tmp_path / "RUN/best.png").stat().st_size > 1000
    rows = json.loads((tmp_path / "RUN/summary.json").read_text())
    assert rows["groups"][0]["status"]["matched"] == 2
    assert "not known" in rows["warnings"][0]


def test_a_wrong_network_explains_nothing(files, tmp_path):
    weights = load_file(files / "w.safetensors")
    other = {name: np.random.default_rng(1).permuted(tensor) for name, tensor in weights.items()}
    (tmp_path / "wrong").mkdir()
    save_file(other, tmp_path / "wrong/w.safetensors")
    (tmp_path / "wrong/grads.safetensors").write_bytes((files / "grads.safetensors").read_bytes())
    told = attack(tmp_path / "wrong", tmp_path / "RUN", "--attack", "idlg", "--seeds", 2, "--iterations", 5)
    assert told["explain"] == 0
    assert told["verdict"] == "unexplained"


def test_an_audit_by_the_attack_best_says_what_it_was(files, tmp_path):
    told = attack(files, tmp_path / "RUN", "--attack", "best", "--seeds", 2)
    assert (told["attack"], told["verdict"], told["labels"]) == ("best", "recovered", [LABEL])
    chosen = "L-BFGS on the cosine distance: the network is smooth; label bias of one image"
    settings = json.loads((tmp_path / "RUN/run.json").read_text())["settings"]
    assert settings["attacks"][0]["chosen"] == chosen
    assert f"The attack best is: {chosen}" in (tmp_path / "RUN/audit.html").read_text()


def test_no_restart_ends_in_no_time(files, tmp_path):
    told = attack(files, tmp_path / "RUN", "--attack", "idlg", "--seeds", 2, "--minutes", 1e-9)
    assert (told["verdict"], told["restarts"]) == ("unfinished", 0)
    assert told["reasons"][0].startswith("no restart ended in time: give more --minutes")


@pytest.mark.torch
def test_lenet_from_pytorch(truth, tmp_path):
    folder = exported(tmp_path, truth, "lenet")
    told = attack(folder, tmp_path / "RUN", "--attack", "idlg", "--seeds", 2, "--truth", truth)
    assert told["labels"] == [LABEL]
    assert told["agree"] == 2
    assert told["psnr"] > 25


@pytest.mark.torch
def test_local_steps_from_pytorch(truth, tmp_path):
    folder = exported(tmp_path, truth, "lenet", "--steps", "2", "--lr", "0.02")
    steps = ("--client-steps", 2, "--client-lr", 0.02)
    told = attack(folder, tmp_path / "RUN", "--attack", "idlg", "--seeds", 2, "--truth", truth, *steps)
    assert told["labels"] == [LABEL]
    assert told["psnr"] > 25


@pytest.mark.torch
def test_a_resnet_from_pytorch(truth, tmp_path):
    folder = exported(tmp_path, truth, "resnet")
    (tmp_path / "net.py").write_text(TWO_BLOCKS)
    model = ("--model", f"{tmp_path / 'net.py'}:two_blocks", "--model-field", "train=false")
    budget = ("--scale", "relative", "--stop-objective", 0, "--max-evaluations", 1000, "--seeds", 2)
    told = attack(folder, tmp_path / "RUN", *model, "--attack", "idlg", *budget, "--truth", truth)
    assert told["labels"] == [LABEL]
    assert told["agree"] == 2
    assert told["psnr"] > 24


# --- what is refused ---


def given(folder: Path, shape: tuple[int, int, int] = SHAPE, **changes: object) -> list[object]:
    flags = {"update": folder / "grads.safetensors", "weights": folder / "w.safetensors", "out": folder / "RUN"}
    options = (part for name, value in {**flags, **changes}.items() for part in (f"--{name}", value))
    return ["attack", *options, "--image-shape", *shape]


def test_files_that_are_not_there_or_no_tensors(files, tmp_path):
    assert "`update` must be a file of tensors (safetensors, .npz, torch.save); there is no file" in refusal(
        *given(files, update=tmp_path / "no")
    )
    (tmp_path / "text").write_text("no tensors")
    assert "`weights` must be a file of tensors" in refusal(*given(files, weights=tmp_path / "text"))


def test_files_that_do_not_fit(files, tmp_path):
    update = load_file(files / "grads.safetensors")
    changed = tmp_path / "changed.safetensors"
    renamed = {name.replace("body.0.bias", "first.bias"): tensor for name, tensor in update.items()}
    save_file(renamed, changed)
    assert "`update` does not fit LeNet" in refusal(*given(files, update=changed))
    assert "missing body.0.bias; unknown first.bias" in refusal(*given(files, update=changed))
    save_file({**update, "body.0.bias": update["body.0.bias"] * np.float32(np.nan)}, changed)
    assert "`update` must be finite; body.0.bias is not" in refusal(*given(files, update=changed))
    assert "`weights` must be finite; body.0.bias is not" in refusal(*given(files, weights=changed))
    assert "`weights` do not fit LeNet with 10 classes on 32x32x3" in refusal(*given(files, shape=(32, 32, 3)))
    assert "`weights` have no fc.weight, the head of ResNet" in refusal(*given(files, model="resnet18"))


def test_models_that_are_none(files, tmp_path):
    assert "`model` must be one of" in refusal(*given(files, model="lenets"))
    assert "there is no file" in refusal(*given(files, model="none.py"))
    (tmp_path / "net.py").write_text("1 / 0")
    assert "cannot be run: ZeroDivisionError" in refusal(*given(files, model=tmp_path / "net.py"))
    (tmp_path / "net.py").write_text("")
    assert "has no function 'build_model'" in refusal(*given(files, model=tmp_path / "net.py"))
    (tmp_path / "net.py").write_text("import sys\nsys.exit(3)")
    assert "cannot be run: SystemExit: 3" in refusal(*given(files, model=tmp_path / "net.py"))


def test_models_in_other_forms(tmp_path):
    """A class or a module in a file, and what is of another library: refused with a way out, or taken."""
    (tmp_path / "net.py").write_text("import flax.linen as nn\nclass Net(nn.Dense):\n    pass\nnet = Net(7)\n")
    with pytest.raises(InputError, match=r"no function 'build_model'; name another after a colon, as net.py:net\."):
        model_builder(tmp_path / "net.py")
    assert model_builder(f"{tmp_path / 'net.py'}:net")[1](10).features == 7
    assert model_builder(f"{tmp_path / 'net.py'}:Net")[1](10).features == 10
    with pytest.raises(InputError, match=r"must be a Linen module, not its class; give Dense\(\.\.\.\)"):
        jaxleak.adapt_model(nn.Dense, (8, 8, 1))
    foreign = type("Net", (), {"__module__": "torch.nn.modules.linear"})
    for model in (foreign, foreign()):
        with pytest.raises(InputError, match="`model` is PyTorch's Net; write the same network in Flax"):
            jaxleak.adapt_model(model, (8, 8, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["channels"], "`model_field` must be NAME=VALUE"),
        (["channels=4", "channels=5"], "`model_field` has channels twice"),
        (["num_classes=5"], "`field` must be one of"),
        (["batch=4"], "`field` must be one of"),
        (["channels=1.5"], "`channels` must be a whole number; got 1.5"),
        (["stage_sizes=1.5"], "`field` must be one of"),
        (["strides=2,a"], "`strides` must be whole numbers above 0; got 2, 'a'"),
    ],
)
def test_fields_that_are_none(files, fields, message):
    assert message in refusal(*given(files), "--model-field", *fields)


def test_a_model_file_beside_others(tmp_path):
    """Its neighbours are imported, its folder may have a colon, and a field may be called as an argument here."""
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "neighbour_of_net.py").write_text(STOCK)
    (folder / "net.py").write_text(
        "from neighbour_of_net import CNN\n\n\ndef make(k, /, labels, classes):\n    return CNN(k)"
    )
    name, build = model_builder(f"{folder / 'net.py'}:make")
    assert name == "net"
    assert build(4, labels=1, classes=2).classes == 4


def test_fields_of_a_model_in_python():
    assert model_builder(MODEL)[1](CLASSES, channels=5).channels == 5
    with pytest.raises(InputError, match="`fields` do not fit lenet"):
        model_builder(MODEL)[1](CLASSES, none=5)
    with pytest.raises(InputError, match="`fields` are for a Linen module or a model's name"):
        model_builder(lambda rngs: None)[1](CLASSES, width=5)


def test_a_small_update_is_explained_before_a_trial_stops(files):
    """As of a client that trains with a small rate: the presets' stop is no share of it."""
    victim = load_update(files / "grads.safetensors", files / "w.safetensors", MODEL, image_shape=SHAPE)
    victim = replace(victim, update=jax.tree.map(lambda leaf: 1e-3 * leaf, victim.update))
    norm2 = sum(float(np.sum(np.asarray(leaf) ** 2)) for leaf in jax.tree.leaves(victim.update))
    stopping = (
        IDLG,
        replace(IDLG, name="relative", scale="relative"),
        replace(IDLG, name="never", stop_objective=0.0),
        replace(IDLG, name="cosine", objective="cosine"),
    )
    sweep, _ = fitted(Sweep(victim=victim, attacks=stopping, seeds=1), [])
    stops = [attack.stop_objective for attack in sweep.attacks]
    assert stops == [pytest.approx(5e-7 * norm2), pytest.approx(5e-7 * norm2), 0, pytest.approx(2.5e-7)]


def test_truths_and_labels_that_do_not_fit(files, truth):
    assert "`labels` must be 1 classes" in refusal(*given(files), "--labels", 1, 2)
    assert "`labels` must be below the network's 10 classes; got 10" in refusal(*given(files), "--labels", 10)
    assert "`labels` must be 1 classes" in refusal(*given(files, truth=truth), "--labels", 3, 4)
    with pytest.raises(InputError, match=r"`labels` must be 1 classes, one per image, from 0 up; got 1\.5"):
        load_update(files / "grads.safetensors", files / "w.safetensors", MODEL, image_shape=SHAPE, labels=[1.5])
    assert "`truth` must hold 2 images" in refusal(*given(files, truth=truth, batch=2))
    assert "`label` known needs the labels" in refusal(*given(files, label="known"))


STOCK = """
from __future__ import annotations

import flax.linen as nn


class CNN(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.sigmoid(nn.Conv(4, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.sigmoid(nn.Dense(6)(x.reshape((x.shape[0], -1))))
        return nn.Dense(self.classes)(x)


def build_model(classes):
    return CNN(classes)
"""


def test_a_stock_model_in_a_file_whatever_its_name(tmp_path):
    """Named as a built-in one; torch flattens NCHW, Flax NHWC, and the first dense layer reads the map."""
    (tmp_path / "mlp.py").write_text(STOCK)
    rng = np.random.default_rng(0)
    shapes = {"Conv_0.weight": (4, 3, 3, 3), "Dense_0.weight": (6, 4 * 8 * 8), "head.weight": (CLASSES, 6)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors |= {name.replace("weight", "bias"): np.zeros(shape[0], np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "w.safetensors")
    save_file({name: -tensor for name, tensor in tensors.items()}, tmp_path / "g.safetensors")
    victim = load_update(tmp_path / "g.safetensors", tmp_path / "w.safetensors", tmp_path / "mlp.py", image_shape=SHAPE)
    params: Any = victim.params
    wanted = tensors["Dense_0.weight"].reshape(6, 4, 8, 8).transpose(2, 3, 1, 0).reshape(-1, 6)
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], wanted)
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["head.weight"].T)


def test_the_last_layer_may_have_its_own_name(tmp_path):
    """As in the file: `fc.out.weight` for a Linen layer `out` in a module `fc`, and `head.weight` as well."""
    (tmp_path / "net.py").write_text(NAMED)
    rng = np.random.default_rng(0)
    for name in ("fc.out", "head"):
        tensors = {f"{name}.weight": rng.normal(size=(CLASSES, 4)), f"{name}.bias": np.zeros(CLASSES)}
        tensors |= {"conv.weight": rng.normal(size=(4, 3, 3, 3)), "conv.bias": np.zeros(4)}
        tensors = {key: value.astype(np.float32) for key, value in tensors.items()}
        save_file(tensors, tmp_path / "w.safetensors")
        save_file({key: -tensor for key, tensor in tensors.items()}, tmp_path / "g.safetensors")
        files = (tmp_path / "g.safetensors", tmp_path / "w.safetensors", tmp_path / "net.py")
        params: Any = load_update(*files, image_shape=SHAPE).params
        np.testing.assert_array_equal(params["head"]["kernel"], tensors[f"{name}.weight"].T)


NAMED = """
import flax.linen as nn


class Last(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, name="out")(x)


class CNN(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        return Last(self.classes, name="fc")(nn.sigmoid(nn.Conv(4, (3, 3), name="conv")(x)).mean((1, 2)))


def build_model(classes):
    return CNN(classes)
"""


def test_labels_go_with_their_images(files, tmp_path):
    """Of a batch: each restart numbers its dummies in its own way."""
    with jax.enable_x64(True):
        params = draw_params(MODEL, jax.random.key(0), SHAPE)
        images = np.concatenate([photo(), photo()[:, ::-1] // 2]) / 255.0
        target = jax.nn.one_hot(np.array([LABEL, 7]), CLASSES, dtype=float)
        update = jax.jit(lambda p: loss_gradient(MODEL, p, jnp.asarray(images), target))(params)
    tensors = {name: value.astype(np.float32) for name, value in to_torch(MODEL, update, SHAPE).items()}
    save_file(tensors, tmp_path / "grads.safetensors")
    (tmp_path / "w.safetensors").write_bytes((files / "w.safetensors").read_bytes())
    options = ("--attack", "dlg", "--start", "uniform", "--tv", 0.001, "--batch", 2, "--iterations", 40, "--seeds", 3)
    told = attack(tmp_path, tmp_path / "RUN", *options)
    with np.load(tmp_path / "RUN/best.npz") as best:
        errors = np.mean((best["images"][:, :, None] - images[None, None]) ** 2, axis=(3, 4, 5))
        near = np.argmin(errors, axis=2)
        good = np.min(errors, axis=2) < 0.02
        assert good.sum() >= 2
        assert np.all((np.array([LABEL, 7])[near] == best["labels"])[good])
    assert sorted(told["labels"]) == sorted([LABEL, 7])


def test_what_cannot_be_attacked_is_refused(files, tmp_path):
    zero = {name: np.zeros_like(tensor) for name, tensor in load_file(files / "grads.safetensors").items()}
    save_file(zero, tmp_path / "zero.safetensors")
    assert "`update` is zero everywhere" in refusal(*given(files, update=tmp_path / "zero.safetensors"))
    assert "`dummies` must be as many as the update's images, 1" in refusal(*given(files, dummies=2))
    assert "`image_shape` must be above 0" in refusal(*given(files, shape=(-8, 8, 3)))
    (tmp_path / "net.py").write_text(STOCK)
    line = refusal(*given(files, model=tmp_path / "net.py"), "--model-field", "width=3")
    assert "build_model fails: TypeError" in line
    assert "`channels` must be a whole number; got 'abc'" in refusal(*given(files), "--model-field", "channels=abc")
    line = refusal(*given(files, model="resnet18"), "--model-field", "train=no")
    assert "`train` must be true or false; got 'no'" in line


class Odd(nn.Module):
    """Layers with kernels of three axes, and a parameter that is neither a kernel nor a bias."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3,))(x.reshape(x.shape[0], -1, x.shape[-1]))
        return nn.Dense(CLASSES, name="head")(nn.PReLU()(jnp.mean(x, axis=1)))


def test_any_parameters_go_through_files():
    model, shape = Odd(), (4, 4, 2)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    again = variables_from_torch(model, to_torch(model, params, shape), shape)["params"]
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(one, other)
