"""What is said of updates that are right, and of updates that are wrong in known ways."""

import json
import re
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
from jaxleak import ATTACKS, DLG, IDLG, IG, InputError, Sweep, build_model, parse_defence
from jaxleak.models import LeNet
from jaxleak.models.own import adapt_model
from jaxleak.models.weights import to_torch
from jaxleak.runs.audit.assumptions import _loss_of_batch, with_steps
from jaxleak.runs.audit.audit import audit, fitted, silent_tensors
from jaxleak.runs.audit.floor import floor_of, number_type
from jaxleak.runs.audit.hints import Found, piecewise_linear, scattered_zeros, stuck_hint, swapped
from jaxleak.runs.audit.information import Information, information
from jaxleak.runs.audit.page import Page, Table
from jaxleak.runs.audit.polish import CURVED, polish
from jaxleak.runs.audit.refit import lowered
from jaxleak.runs.audit.risk import COMPARED, risk, write_risk
from jaxleak.runs.audit.verdict import Restart, iterations_needed, judge
from jaxleak.threat.client import Client, client_update
from jaxleak.threat.loss import CrossEntropy, as_loss
from jaxleak.threat.network import draw_params
from jaxleak.threat.own_update import load_update, moved_statistics
from jaxleak.threat.victim import Victim
from tests.commands import call, refusal
from tests.oracles.require_torch import require_torch

ROOT = Path(__file__).parent.parent
SHAPE = (16, 16, 1)
CLASSES, LABEL = 10, 3
MODEL = LeNet(num_classes=CLASSES)
COSINE = replace(IDLG, objective="cosine")
FLOOR = 1e-10
QUICKSTART = """
import flax.linen as nn


def build_model(classes):
    return Quickstart(classes)


class Quickstart(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        for name, features in (("conv1", 6), ("conv2", 16)):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID", name=name)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(120, name="fc1")(x))
        x = nn.relu(nn.Dense(84, name="fc2")(x))
        return nn.Dense(self.classes, name="fc3")(x)
"""
STRIDED = """
import flax.linen as nn


def build_model(classes):
    return Strided(classes)


class Strided(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), padding=1, name="conv1")(x))
        x = nn.relu(nn.Conv(24, (3, 3), strides=2, padding=1, name="conv2")(x))
        x = nn.relu(nn.Dense(32, name="fc1")(x.reshape(len(x), -1)))
        return nn.Dense(self.classes, name="fc2")(x)
"""
NORMED = """
from jaxleak.models import ResNet
from jaxleak.models.resnet import BasicBlock


def build_model(classes, **fields):
    return ResNet(num_classes=classes, stage_sizes=(1, 1), block=BasicBlock, width=8, **fields)
"""


def photos(*which: int, colour: bool = False) -> np.ndarray:
    """Embedded photographs at half their size [n, 16, 16, 1 or 3], in [0, 1]."""
    with np.load(ROOT / "jaxleak/data/photos/tiles.npz") as tiles:
        halves = tiles["pixels"][list(which)].reshape(-1, 16, 2, 16, 2, 3)
    return halves.mean(axis=(2, 4) if colour else (2, 4, 5)).reshape(-1, 16, 16, 3 if colour else 1).round() / 255


@pytest.fixture(scope="module")
def params() -> Any:
    return draw_params(MODEL, jax.random.key(0), SHAPE)


def shared(params: Any, target: np.ndarray, client: Client | None = None, pixels: np.ndarray | None = None) -> Any:
    """A client's update in float32, as a file would have it."""
    x = jnp.asarray(photos(6) if pixels is None else pixels)
    update = client_update(client or Client(), MODEL, params, x, jnp.asarray(target))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), update)


def victim_of(params: Any, update: Any, labels: tuple[int, ...] = (LABEL,), **changes: Any) -> Victim:
    pixels = changes.pop("images", photos(6))
    fields: dict[str, Any] = {
        "model": MODEL,
        "model_name": "lenet",
        "dataset": "update",
        "split": "given",
        "indices": list(range(len(pixels))),
        "images": pixels,
        "labels": np.array(labels),
        "num_classes": CLASSES,
        "network": "shared",
        "params": params,
        "batch": len(pixels),
        "update": update,
    }
    return Victim(**{**fields, **changes})


def said(victim: Victim, attack=IDLG, seeds: int = 4, **settings: Any) -> dict[str, Any]:
    report, _ = audit(Sweep(victim=victim, attacks=(attack,), seeds=seeds, snapshots=()), **{"quiet": True, **settings})
    assert report["truth"] is not None
    if report["verdict"] == "recovered":
        assert report["truth"]["right"]
    return report


def codes(report: dict[str, Any]) -> list[str]:
    return [hint["code"] for hint in report["hints"]]


HOT = np.eye(CLASSES)[[LABEL]]


@pytest.fixture(scope="module")
def plain(params) -> Any:
    return shared(params, HOT)


def test_a_right_update_is_recovered(params, plain, tmp_path):
    report, result = audit(
        Sweep(victim=victim_of(params, plain), attacks=(IDLG,), seeds=16, snapshots=()), tmp_path / "RUN", quiet=True
    )
    assert report["verdict"] == "recovered"
    assert report["hints"] == []
    assert report["truth"]["psnr"] > 60
    assert report["attacks"][0]["lefts"][1] < FLOOR
    assert report["determined"]["psnr"] > 60
    assert report["determined"]["exact"]
    assert len(result.rows) < 16  # it stopped when the verdict was certain
    for name in ("report.json", "best.npz", "best.png", "determined.png"):
        assert (tmp_path / "RUN" / name).stat().st_size > 100


def test_the_page_of_an_audit_says_what_the_report_says(params, plain, tmp_path):
    report = said(victim_of(params, plain), seeds=3, out=tmp_path / "run")
    text = (tmp_path / "run/audit.html").read_text()
    for words in (
        "Recovered",
        "Whoever sees this update can rebuild",
        "What it rests on",
        "Not run: dlg",
        "jaxleak 0",
        "report.json",
    ):
        assert words in text
    assert report["reasons"][0][1:] in text
    prevented = {line["defence"]: line for line in report["prevented"]}
    assert set(prevented) == {"none", *COMPARED}
    assert prevented["none"]["error"] < prevented["gaussian:1e-3"]["error"] < prevented["gaussian:1e-2"]["error"]
    assert text.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=.?https?:|<script", text)
    assert len(text) < 1_000_000


def test_what_stands_on_a_page_is_text(tmp_path):
    """Names of files and models may hold markup."""
    bad = "<script>bad</script>"
    page = Page(bad, bad, bad, bad, "open", [bad], [Table(bad, [bad], [[bad]], [bad])], bad, bad, {bad: [bad]})
    assert bad not in page.write(tmp_path / "audit.html").read_text()


@pytest.mark.slow
def test_a_budget_that_ended_is_said_with_what_would_do(params, plain):
    """With a little more the restarts come near, and Gauss-Newton steps finish what the budget ended."""
    report = said(victim_of(params, plain), replace(IDLG, iterations=2), seeds=2)
    assert report["verdict"] == "unfinished"
    assert any("raise --iterations from 2 to" in reason for reason in report["reasons"])
    assert said(victim_of(params, plain), replace(IDLG, iterations=6), seeds=2)["verdict"] == "recovered"


def test_a_clipped_gradient_is_recovered_by_its_direction(params, plain):
    report = said(victim_of(params, jax.tree.map(lambda leaf: 0.07 * leaf, plain)), COSINE)
    assert report["verdict"] == "recovered"
    assert codes(report) == ["scale"]
    assert "0.07 times" in report["hints"][0]["text"]


@pytest.mark.slow
def test_a_clip_that_is_stated_is_attacked_by_its_direction(params, plain):
    clipped = jax.tree.map(lambda leaf: 0.07 * leaf, plain)
    assert said(victim_of(params, clipped, defences=(parse_defence("clip:1"),)))["verdict"] == "recovered"


@pytest.mark.parametrize("attack", [IDLG, pytest.param(DLG, marks=pytest.mark.slow)], ids=["idlg", "dlg"])
@pytest.mark.parametrize(("factor", "hint"), [(0.1, "scale"), pytest.param(-1.0, "sign", marks=pytest.mark.slow)])
def test_another_sign_and_another_scale(params, plain, attack, factor, hint):
    report = said(victim_of(params, jax.tree.map(lambda leaf: np.float32(factor) * leaf, plain)), attack, seeds=2)
    assert (report["verdict"], codes(report)) == ("unexplained", [hint])
    assert hint == "sign" or "0.1 times" in report["hints"][0]["text"]


def test_another_loss(params):
    report = said(victim_of(params, shared(params, 0.9 * HOT + 0.1 / CLASSES)), seeds=2)
    assert (report["verdict"], codes(report)) == ("unexplained", ["loss"])
    assert "label smoothing 0.1 " in report["hints"][0]["text"]


@pytest.mark.slow
def test_layers_that_are_zero_are_named_and_not_compared(params, plain):
    frozen = {**plain, "conv1": jax.tree.map(np.zeros_like, plain["conv1"])}
    report = said(victim_of(params, frozen))
    assert "frozen-layers" in codes(report)
    assert "conv1/bias, conv1/kernel" in report["hints"][0]["text"]
    assert report["verdict"] != "unexplained" or report["truth"]["psnr"] < 20


@pytest.mark.slow
def test_noise_is_told_from_a_wrong_model_and_can_be_stated(params, plain):
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda leaf: leaf + np.float32(0.02) * rng.normal(size=leaf.shape).astype(np.float32), plain)
    unstated = said(victim_of(params, noisy), seeds=2)
    assert (unstated["verdict"], codes(unstated)) == ("unexplained", ["noise"])
    assert unstated["hints"][0]["text"].count("0.0") >= 1
    stated = said(victim_of(params, noisy, defences=(parse_defence("gaussian:0.02"),)), seeds=2)
    assert stated["verdict"] == "ambiguous"
    assert stated["determined"]["psnr"] == pytest.approx(stated["truth"]["psnr"], abs=4)


@pytest.mark.slow
def test_half_precision_lowers_the_floor_and_is_recovered(params, plain):
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), plain)
    report = said(victim_of(params, half))
    assert report["verdict"] == "recovered"
    assert report["floor"]["number_type"] == "float16"
    assert report["floor"]["value"] > 100 * FLOOR


@pytest.mark.slow
def test_local_steps_that_were_not_stated(params):
    steps = Client(steps=5, lr=0.002)
    update = jax.tree.map(lambda leaf: leaf / 0.01, shared(params, HOT, steps))  # as if their mean were the gradient
    report = said(victim_of(params, update))
    assert (report["verdict"], codes(report)) == ("unexplained", ["client-steps"])


@pytest.mark.slow
def test_other_numbers_of_steps_are_tried_of_a_client_with_a_schedule_and_orders():
    client = Client(epochs=2, batch=1, lr=[0.1, 0.3], order=(0, 1, 1, 0))
    other = with_steps(client, 5, 2)
    other.check(2)
    assert (other.total_steps(2), other.lr, other.order, other.batch) == (5, pytest.approx(0.2), (0, 1), 1)
    assert with_steps(Client(steps=2, lr=0.1), 5, 2) == Client(steps=5, lr=0.1)


def test_weights_instead_of_a_difference(params):
    report = said(victim_of(params, jax.tree.map(np.asarray, params)), seeds=1)
    assert report["verdict"] == "unexplained"
    assert "weights-not-difference" in codes(report)


def test_an_update_and_weights_that_are_swapped(params, plain):
    report = said(victim_of(plain, jax.tree.map(np.asarray, params)), seeds=1)
    assert report["verdict"] == "unexplained"
    assert [hint["text"] for hint in report["hints"] if "swapped" in hint["text"]]
    assert not swapped(victim_of(params, plain))
    still = {**params, "head": {**params["head"], "bias": 0 * params["head"]["bias"]}}
    assert not swapped(victim_of(still, shared(still, HOT)))


def files(params, update, folder: Path) -> tuple[Path, Path]:
    """Both as PyTorch would save them."""
    for name, tree in (("grads", update), ("w", params)):
        tensors = {key: np.asarray(value) for key, value in to_torch(MODEL, tree, SHAPE).items()}
        save_file(tensors, folder / f"{name}.safetensors")
    return folder / "grads.safetensors", folder / "w.safetensors"


def test_layers_that_are_missing_are_as_those_that_are_zero(params, plain, tmp_path):
    update, weights = files(params, plain, tmp_path)
    tensors = {name: tensor for name, tensor in load_file(update).items() if not name.startswith("body.0")}
    save_file(tensors, update)
    victim = load_update(update, weights, MODEL, image_shape=SHAPE)
    assert silent_tensors(victim) == ["conv1/bias", "conv1/kernel"]
    save_file({**tensors, "other.weight": tensors["body.2.weight"]}, update)
    with pytest.raises(InputError, match="missing body"):  # another name, not another layer
        load_update(update, weights, MODEL, image_shape=SHAPE)


@pytest.mark.parametrize("factor", [1e300, 1e-300])
def test_updates_out_of_range_are_refused_before_any_work(params, plain, tmp_path, factor):
    huge = jax.tree.map(lambda leaf: factor * np.asarray(leaf, np.float64), plain)
    update, weights = files(params, huge, tmp_path)
    with pytest.raises(InputError, match="largest value"):
        load_update(update, weights, MODEL, image_shape=SHAPE)


@pytest.mark.slow
def test_a_batch_of_four(params):
    pixels, labels = photos(4, 5, 6, 7), (3, 1, 7, 5)
    update = shared(params, np.eye(CLASSES)[list(labels)], pixels=pixels)
    known = replace(IDLG, label="known")
    report = said(victim_of(params, update, labels, images=pixels), known, seeds=6)
    assert report["verdict"] == "recovered"
    assert report["truth"]["psnr"] > 30


class Small(nn.Module):
    """A network of one's own, smooth as LeNet."""

    classes: int = CLASSES

    @nn.compact
    def __call__(self, x):
        for features in (8, 16):
            x = nn.avg_pool(nn.tanh(nn.Conv(features, (5, 5))(x)), (2, 2), strides=(2, 2))
        return nn.Dense(self.classes)(x.reshape(len(x), -1))


def digit() -> np.ndarray:
    """A seven as MNIST has them, white on black [1, 28, 28, 1]."""
    drawn = np.zeros((28, 28))
    drawn[6:9, 6:21] = 1.0
    for row in range(9, 23):
        column = 19 - (row - 9) * 2 // 3
        drawn[row, column - 1 : column + 2] = 1.0
    blurred = sum(np.roll(drawn, shift, axis) for axis in (0, 1) for shift in (-1, 1))
    return ((2 * drawn + blurred) / 6)[None, :, :, None]


# Images and their labels, the network, the attack that finds them.
SETTINGS = {
    "batch of four": (photos(4, 5, 6, 7), (3, 1, 7, 5), MODEL, replace(IDLG, label="known"), 6),
    "digit": (digit(), (7,), MODEL, IDLG, 4),
    "own network": (photos(6, colour=True), (LABEL,), Small(), replace(IDLG, label="bias"), 4),
}
# What was done to the update, what is said of it, and the hint.
LINES = {
    "plain": (lambda update: update, "recovered", None),
    "ended by the budget": (lambda update: update, "unfinished", None),
    "clipped": (lambda update: jax.tree.map(lambda leaf: np.float32(0.07) * leaf, update), "recovered", "scale"),
    "other sign": (lambda update: jax.tree.map(np.negative, update), "unexplained", "sign"),
    "a tenth": (lambda update: jax.tree.map(lambda leaf: np.float32(0.1) * leaf, update), "unexplained", "scale"),
    "smoothing": (None, "unexplained", "loss"),
    "layers missing": (None, None, "frozen-layers"),
}


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_said_of_other_networks_batches_and_digits(setting, line):
    pixels, labels, module, attack, seeds = SETTINGS[setting]
    change, verdict, hint = LINES[line]
    model = adapt_model(module, pixels.shape[1:], num_classes=CLASSES) if isinstance(module, Small) else module
    params = draw_params(model, jax.random.key(1), pixels.shape[1:])
    hot, mixed = np.eye(CLASSES)[list(labels)], 0.1 if line == "smoothing" else 0.0
    target = jnp.asarray((1 - mixed) * hot + mixed / CLASSES)
    update = client_update(Client(), model, params, jnp.asarray(pixels), target)
    update = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), update)
    if line == "layers missing":
        first = next(name for name in params if name != "head")
        update = {**update, first: jax.tree.map(np.zeros_like, update[first])}
    elif change is not None:
        update = change(update)
    if line == "ended by the budget":
        attack = replace(attack, iterations=4)
    if line == "clipped":
        attack = replace(attack, objective="cosine")
    victim = victim_of(params, update, labels, images=pixels, model=model)
    report = said(victim, attack, seeds=seeds)
    assert verdict is None or report["verdict"] == verdict
    assert (hint in codes(report)) if hint else not codes(report)
    if line == "layers missing":  # what is left may determine the image, or not: never a wrong one is certified
        assert report["verdict"] != "recovered" or report["truth"]["right"]


@pytest.mark.slow
def test_a_label_rule_that_does_not_hold_is_named():
    """Behind tanh the head's input has both signs, and iDLG's rule reads another label."""
    pixels = photos(6, colour=True)
    model = adapt_model(Small(), pixels.shape[1:], num_classes=CLASSES)
    params = draw_params(model, jax.random.key(1), pixels.shape[1:])
    update = client_update(Client(), model, params, jnp.asarray(pixels), jnp.asarray(HOT))
    update = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), update)
    report = said(victim_of(params, update, images=pixels, model=model), seeds=2)
    assert (report["verdict"], codes(report)) == ("unexplained", ["label"])
    assert f"the label is {LABEL}, " in report["hints"][0]["text"]


def test_pixels_that_are_a_normalised_input_are_no_picture(params):
    """A client with normalised inputs, audited as if they were pixels: the input is found, and it is no picture."""
    mean, deviation = 0.45, 0.25
    update = shared(params, HOT, pixels=(photos(6) - mean) / deviation)
    report = said(victim_of(params, update))
    assert (report["verdict"], codes(report)) == ("ambiguous", ["range"])
    assert "--normalise" in report["hints"][0]["text"]


@pytest.mark.slow
def test_one_start_is_no_agreement(params, plain):
    """Restarts from black pixels with one label are the same run again."""
    report = said(victim_of(params, plain), replace(IDLG, init="black"), seeds=3)
    assert report["verdict"] == "unfinished"
    assert "use --start normal" in report["reasons"][0]


@pytest.mark.slow
def test_more_restarts_are_run_where_those_near_do_not_do(params, plain, monkeypatch):
    """In a temporary directory too, which lives on."""
    from jaxleak.runs.audit import group

    real = group.carry_on

    def once(*arguments, **settings):
        monkeypatch.setattr(group, "carry_on", real)
        raise ValueError("no memory")

    monkeypatch.setattr(group, "carry_on", once)
    report, result = audit(
        Sweep(victim=victim_of(params, plain), attacks=(IDLG,), seeds=6, snapshots=()), quiet=True, lanes=2
    )
    assert report["verdict"] == "recovered"
    assert len(result.rows) == 6


def test_an_assumption_that_cannot_be_tried_loses_no_report(params, plain, monkeypatch, capsys):
    """And what is tried is said meanwhile."""
    from jaxleak.runs.audit import assumptions

    def refuse(*arguments, **settings):
        raise InputError("`train` needs more images.")

    monkeypatch.setattr(assumptions, "refit", refuse)
    report = said(victim_of(params, jax.tree.map(np.negative, plain)), seeds=2, quiet=False)
    assert report["tried"][0]["error"] == "`train` needs more images."
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("audit: ")]
    assert told[0].startswith("audit: judging")
    assert told[1].endswith("trying another assumption: any loss")
    assert told[-1].startswith("audit: what defences")
    assert report["verdict"] == "unexplained"


@pytest.mark.slow
def test_attacks_that_disagree_are_ambiguous(params, plain):
    """The label that is known is another one's: with scale free either may explain it; here only one does."""
    report, _ = audit(Sweep(victim=victim_of(params, plain), attacks=(IDLG, DLG), seeds=4, snapshots=()), quiet=True)
    assert report["verdict"] == "recovered"
    assert [attack["explain"] >= 2 for attack in report["attacks"]] == [True, True]


@pytest.mark.parametrize(("noise", "left_out"), [((), False), (("gaussian:1e-4",), True)])
def test_soteria_behind_noise_leaves_the_heads_kernel_out(params, plain, noise, left_out):
    """Which of its rows are zero is not seen then, and they need not be small."""
    defences = tuple(map(parse_defence, ("soteria:0.4", *noise)))
    sweep, _ = fitted(Sweep(victim=victim_of(params, plain, defences=defences), attacks=(IDLG,), seeds=1), [])
    assert ("head/kernel:0" in (sweep.attacks[0].layers or ())) == left_out


@pytest.mark.parametrize("stated", ["cross-entropy+0.5*mse", CrossEntropy(weights=tuple(range(1, 11)))], ids=str)
def test_the_sign_and_smoothing_of_a_batch_whatever_the_loss(params, stated):
    pixels, labels = photos(6, 12), (LABEL, 1)
    loss = as_loss(stated)
    client = Client(loss=replace(loss, smoothing=0.2) if isinstance(loss, CrossEntropy) else loss)
    update = jax.tree.map(np.negative, shared(params, np.eye(CLASSES)[list(labels)], client, pixels))
    victim = victim_of(params, update, labels, images=pixels, client=Client(loss=loss))
    hints = _loss_of_batch(
        victim, Found(IDLG, pixels, np.array(labels), 0.0), floor_of(victim, jax.tree.map(lambda leaf: 1.0, params))
    )
    texts = " ".join(hint.text for hint in hints)
    assert "with the other sign" in texts
    assert ("label smoothing 0.2 " in texts) == isinstance(loss, CrossEntropy)
    assert len(hints) == 1 + isinstance(loss, CrossEntropy)


def test_what_cannot_be_audited_is_refused(params, plain):
    with pytest.raises(InputError, match="`dummies` of an audit"):
        said(victim_of(params, plain), replace(IDLG, dummies=2))
    pixels, labels = photos(6, 7), (3, 1)
    batch = victim_of(params, plain, labels, images=pixels, defences=(parse_defence("dp-sgd:1:0.1"),))
    with pytest.raises(InputError, match="dp-sgd clips each image"):
        said(batch)


def test_an_audit_needs_an_update():
    data = jaxleak.load_dataset("photos")
    victim = jaxleak.make_victim("lenet", data, [0])
    with pytest.raises(InputError, match="needs a given update"):
        audit(Sweep(victim=victim, attacks=(IDLG,), seeds=1))


# --- networks with ReLUs ---


class Narrow(nn.Module):
    """A network of one's own, whose first layer has fewer equations than pixels."""

    classes: int = CLASSES

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(12, (3, 3), strides=2, padding=1)(x))
        x = nn.relu(nn.Conv(16, (3, 3), padding=1)(x))
        return nn.Dense(self.classes)(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def kinked() -> tuple[Any, Any, Any]:
    """A chain with ReLUs, of few filters; weights and the gradient of a photograph."""
    model = adapt_model(Narrow(), (16, 16, 3), num_classes=CLASSES)
    weights = draw_params(model, jax.random.key(3), (16, 16, 3))
    update = client_update(Client(), model, weights, jnp.asarray(photos(6, colour=True)), jnp.asarray(HOT))
    return model, weights, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), update)


@pytest.mark.parametrize("client", [Client(), Client(steps=1, lr=0.05, momentum=0.9)], ids=["gradient", "step"])
def test_a_closed_form_that_applies_is_tried_without_being_asked(client, tmp_path):
    model = adapt_model(build_model("mlp", CLASSES, hidden=(24,)), SHAPE, num_classes=CLASSES)
    weights = draw_params(model, jax.random.key(4), SHAPE)
    update = client_update(client, model, weights, jnp.asarray(photos(6)), jnp.asarray(HOT))
    update = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), update)
    victim = victim_of(weights, update, model=model, client=client)
    short = replace(IDLG, iterations=2)
    report, _ = audit(Sweep(victim=victim, attacks=(short,), seeds=1, snapshots=()), tmp_path / "run", quiet=True)
    assert (report["attack"], report["verdict"]) == ("analytic", "recovered")
    assert report["truth"]["right"]
    assert [attack["attack"] for attack in report["attacks"]] == ["idlg", "analytic"]
    assert (tmp_path / "run" / "analytic" / "summary.json").exists()


@pytest.mark.slow
def test_relu_networks_are_solved_layer_by_layer_without_being_asked(kinked):
    """What the smoothest image puts in free directions is judged by outputs that were held back."""
    model, weights, update = kinked
    victim = victim_of(weights, update, model=model, images=photos(6, colour=True))
    report = said(victim, replace(IDLG, iterations=2), seeds=1)
    assert report["attack"] == "rgap"
    assert report["verdict"] in ("recovered", "ambiguous")  # recovered is checked against the truth
    assert [attack["attack"] for attack in report["attacks"]] == ["idlg", "rgap"]
    assert report["attacks"][1]["left"] < report["floor"]["value"]
    determined = report["determined"]
    assert 0 < determined["free_directions"] < 768
    assert 0 < determined["foretold_error"] < 0.3
    assert report["truth"]["psnr"] > 25
    if report["verdict"] == "recovered":
        assert "foretold known outputs that were held back" in report["reasons"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["noise", "another network", "another image's tensor", "no picture"])
def test_wrong_updates_of_relu_networks_are_not_recovered(kinked, wrong):
    model, weights, update = kinked
    pixels = photos(6, colour=True)
    if wrong == "noise":
        rng = np.random.default_rng(0)
        update = jax.tree.map(lambda leaf: leaf + np.float32(1e-3 * rng.normal(size=leaf.shape)), update)
    elif wrong == "another network":
        weights = draw_params(model, jax.random.key(4), (16, 16, 3))
    elif wrong == "another image's tensor":
        other = client_update(Client(), model, weights, jnp.asarray(photos(7, colour=True)), jnp.asarray(HOT))
        second = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), other["Conv_1"])
        update = {**update, "Conv_1": second}
    else:  # its update is right, but nothing foretells it
        pixels = np.random.default_rng(0).uniform(size=pixels.shape)
        update = client_update(Client(), model, weights, jnp.asarray(pixels), jnp.asarray(HOT))
        update = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), update)
    victim = victim_of(weights, update, model=model, images=pixels)
    report = said(victim, ATTACKS["rgap"], seeds=1)
    # Where nothing foretells the image, the equations may not be solved to the floor either.
    assert report["verdict"] in {"unexplained", "ambiguous" if wrong == "no picture" else "unexplained"}


# --- from PyTorch ---


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "verdict", "code", "settings"),
    [
        ("plain", "recovered", None, {}),
        ("clipped", "recovered", "scale", {"attack": COSINE}),
        ("flipped", "unexplained", "sign", {}),
        ("scaled", "unexplained", "scale", {"attack": DLG}),
        ("smoothing", "unexplained", "loss", {}),
        ("bce", "unexplained", "loss", {}),
        ("noise", "unexplained", "noise", {}),
        ("half", "recovered", None, {}),
        ("autocast", "recovered", None, {"client": Client(precision="float16")}),
        ("quickstart", "unexplained", "stuck", {"model": QUICKSTART}),
        ("strided", "recovered", None, {"model": STRIDED}),
        ("batchnorm", "unexplained", "batchnorm-train", {"model": NORMED, "fields": {"train": False}}),
    ],
)
def test_updates_from_pytorch(kind, verdict, code, settings, tmp_path):
    torch = require_torch()
    from tests.oracles.export_audits import make

    torch.manual_seed(0)
    picture = torch.from_numpy(photos(6, colour=True).astype(np.float32)).permute(0, 3, 1, 2)
    make(kind, picture, torch.tensor([LABEL]), tmp_path, CLASSES)
    model = settings.get("model", "lenet")
    if "\n" in model:
        (tmp_path / "net.py").write_text(model)
        model = tmp_path / "net.py"
    np.savez(tmp_path / "truth.npz", images=(255 * photos(6, colour=True)).round().astype(np.uint8), labels=[LABEL])
    update = tmp_path / "grads.safetensors"
    victim = load_update(
        update,
        tmp_path / "w.safetensors",
        model,
        image_shape=(16, 16, 3),
        fields=settings.get("fields"),
        client=settings.get("client"),
        truth=tmp_path / "truth.npz",
    )
    report = said(victim, settings.get("attack", IDLG), seeds=2, moved_statistics=moved_statistics(update))
    assert report["verdict"] == verdict
    assert (code in codes(report)) if code else not codes(report)


# --- the parts ---


def restart(left: float, *, by_budget: bool = False, needs: float = np.inf, label: int = 1) -> Restart:
    return Restart(left, by_budget, needs, (label,))


@pytest.mark.parametrize(
    ("restarts", "same", "undetermined", "verdict", "reason"),
    [
        ([restart(1e-12), restart(1e-11)], [1, 1], [], "recovered", "all show the same image"),
        ([restart(1e-12), restart(1e-11)], [1, 0], [], "ambiguous", "it is not determined"),
        ([restart(1e-12), restart(1e-11, label=2)], [1, 0], [], "ambiguous", "the label is not determined"),
        ([restart(1e-12), restart(1e-11)], [1, 1], ["contrast"], "ambiguous", "contrast"),
        ([restart(1e-12), restart(1e-3)], [1, 1], [], "unfinished", "use more --seeds"),
        ([restart(1e-12), restart(1e-3, by_budget=True)], [1, 1], [], "unfinished", "raise --iterations"),
        ([restart(1e-3), restart(1e-3)], [1, 1], None, "unexplained", "a right model leaves 1e-10"),
        ([restart(1e-3, by_budget=True, needs=500.0)], [1], None, "unfinished", "from 100 to 750"),
        ([restart(1e-3, by_budget=True, needs=1e5)], [1], None, "unexplained", "leaves 0.001"),
        ([restart(1e-6), restart(1e-6)], [1, 0], ["the image is not determined"], "ambiguous", "different images"),
        ([], [], None, "unexplained", "not a number"),
    ],
)
def test_verdicts(restarts, same, undetermined, verdict, reason):
    shown = np.array(same, bool).reshape(-1, 1)
    judged = judge(restarts, shown, FLOOR, undetermined, budget=100)
    assert judged.verdict == verdict
    assert reason in " ".join(judged.reasons)


def test_agreement_above_the_floor_counts_for_nothing():
    judged = judge([restart(1e-5), restart(1e-5)], np.ones((2, 1), bool), FLOOR, None, budget=100)
    assert (judged.verdict, judged.agree) == ("unexplained", 0)


def test_iterations_are_extrapolated():
    trace = np.concatenate([10.0 ** -np.arange(6), np.full(4, np.nan)])
    assert iterations_needed(trace, 1e-10) == pytest.approx(11, abs=1)
    assert iterations_needed(np.full(9, 0.5), 1e-10) == np.inf
    assert iterations_needed(np.array([1.0, 1e-12]), 1e-10) == 2


def test_number_types():
    values = np.random.default_rng(0).normal(size=1000)
    assert number_type([values]) == "float64"
    assert number_type([values.astype(np.float32)]) == "float32"
    assert number_type([values.astype(np.float16).astype(np.float64)]) == "float16"
    assert number_type([jnp.asarray(values, jnp.bfloat16).astype(jnp.float32)]) == "bfloat16"
    tiny = np.geomspace(6e-8, 1, 1000).astype(np.float16)
    assert number_type([tiny]) == "float16"


def test_the_floor_is_that_of_what_is_stated(params, plain):
    ones = jax.tree.map(lambda leaf: 1.0, params)
    right = floor_of(victim_of(params, plain), ones)
    assert 1e-12 < right.value < 1e-9
    noisy = floor_of(victim_of(params, plain, defences=(parse_defence("gaussian:0.01"),)), ones)
    entries = sum(leaf.size for leaf in jax.tree.leaves(plain))
    norm2 = sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(plain))
    assert noisy.value == pytest.approx(1e-4 * entries / norm2, rel=0.2)
    assert noisy.noise == pytest.approx(0.01)
    dropped = [
        floor_of(victim_of(params, plain, defences=tuple(map(parse_defence, texts))), ones).parts["defences"]
        for texts in (["prune:0.5", "gaussian:1e-6"], ["error-feedback:0.5:1", "gaussian:1e-6"])
    ]  # which entries are zero is not seen behind noise
    assert dropped[0] == pytest.approx(dropped[1])
    assert dropped[0] > 1e-7
    steps = floor_of(victim_of(params, plain, client=Client(steps=2, lr=0.1)), ones)
    assert steps.value > right.value
    narrow = [floor_of(victim_of(params, plain, client=Client(precision=name)), ones) for name in ("tf32", "bfloat16")]
    assert 1e-6 < narrow[0].value < 1e-4 < narrow[1].value < 1e-3
    step = Client(steps=1, lr=0.1)
    end = jax.tree.map(lambda before, moved: np.asarray(before - 0.1 * moved, jnp.bfloat16), params, plain)
    stored = jax.tree.map(lambda before, after: np.asarray(before, np.float64) - after.astype(float), params, end)
    ends = [floor_of(victim_of(params, update, client=step), ones).value for update in (plain, stored)]
    assert ends[1] > 1e3 * ends[0]


def test_information_is_that_of_the_jacobian(params):
    """The whole matrix from finite differences of a part of the update, and what the randomised one says of it."""
    pixels = photos(6)[:, :16]
    victim = victim_of(params, None)
    exact = information(victim, params, pixels, HOT)
    assert exact.values.shape == (pixels.size,)

    def update(x):
        tree = client_update(victim.client, MODEL, params, x.reshape(pixels.shape), jnp.asarray(HOT))
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])

    direction = np.random.default_rng(1).normal(size=pixels.size)
    _, change = jax.jvp(update, (jnp.asarray(pixels.ravel()),), (jnp.asarray(direction),))
    by_basis = exact.basis.T @ direction
    assert float(np.sum(exact.values * by_basis**2)) == pytest.approx(float(jnp.sum(change**2)), rel=1e-9)


def test_the_randomised_information_agrees_with_the_exact_one(params, monkeypatch):
    victim, pixels = victim_of(params, None), photos(6)
    exact = information(victim, params, pixels, HOT)
    monkeypatch.setattr("jaxleak.runs.audit.information.EXACT", 10)
    guessed = information(victim, params, pixels, HOT)
    assert not guessed.exact
    for noise in (1e-3, 3e-3, 1e-2):
        assert guessed.error(noise) == pytest.approx(exact.error(noise), rel=0.25)
    assert np.corrcoef(guessed.error_map(3e-3).ravel(), exact.error_map(3e-3).ravel())[0, 1] > 0.3


def test_a_minimum_is_told_from_a_curved_valley(params, plain, monkeypatch):
    """A step from far away promises to remove what is left; one from the minimum that noise leaves promises nothing."""
    draw = np.random.default_rng(0)
    away = np.clip(photos(6) + 0.02 * draw.normal(size=(1, *SHAPE)), 0, 1)
    noisy = jax.tree.map(lambda leaf: leaf + (1e-4 * draw.normal(size=leaf.shape)).astype(np.float32), plain)
    ones = jax.tree.map(np.ones_like, plain)
    found = {}
    for name, update, steps in (("valley", plain, 0), ("lower", plain, 25), ("minimum", noisy, 25)):
        monkeypatch.setattr("jaxleak.runs.audit.polish.STEPS", steps)
        victim = victim_of(params, update)
        found[name] = polish(victim, away, HOT, ones, FLOOR, information(victim, params, away, HOT))
    assert found["valley"].promised > CURVED
    assert found["lower"].left < FLOOR
    assert found["minimum"].left > FLOOR
    assert found["minimum"].promised < 0.05
    pixels, left = lowered(victim_of(params, plain), IDLG, away[None], np.array([found["valley"].left]))
    assert left[0] <= found["valley"].left / 100
    assert np.mean((pixels[0] - photos(6)) ** 2) < np.mean((away - photos(6)) ** 2)


def test_more_noise_hides_more(params):
    known = information(victim_of(params, None), params, photos(6), HOT)
    errors = [known.error(noise) for noise in np.logspace(-6, 2, 9)]
    assert errors == sorted(errors)
    assert errors[-1] == pytest.approx(12**-0.5)
    assert known.error(known.noise_for(0.1)) == pytest.approx(0.1, rel=1e-3)


def test_what_is_free_is_not_hidden():
    """Two of four directions are free: one who knows pictures guesses them right; noise hides all from both."""
    values = np.array([0.0, 1e-20, 1.0, 4.0])
    known = Information((1, 1, 1, 4), values, np.ones(4), lambda f: f, exact=True)
    assert list(known.free) == [True, True, False, False]
    assert known.error(1e-3) == pytest.approx(12**-0.5)
    assert known.error(1e-3, filled=True) == pytest.approx(np.sqrt((1e-6 + 1e-6 / 4) / 4), rel=1e-3)
    loud = known.error(1e3, filled=True)
    assert loud == pytest.approx(np.sqrt(2 / 4 / 12), rel=1e-3)  # of what is not free all is a guess
    assert known.error(known.noise_for(0.1, filled=True), filled=True) == pytest.approx(0.1, rel=1e-3)


def test_risk_orders_defences_by_what_they_hide(params, tmp_path):
    pixels = photos(6)
    victim = victim_of(params, None, images=pixels)
    compared = ("gaussian:1e-3", "gaussian:1e-1", "fp16", "int8", "prune:0.9", "clip:1", "dp-sgd:1:0.1", "clip:1 fp16")
    found = risk(victim, compared)
    errors = {line.defence: line.error for line in found.lines}
    assert found.lines[0].defence == "none"
    assert errors["none"] < errors["fp16"] < errors["int8"] < errors["gaussian:1e-1"]
    assert errors["none"] < errors["gaussian:1e-3"] < errors["gaussian:1e-1"]
    assert errors["none"] <= errors["clip:1"] * 1.01 < 2 * errors["none"]  # only the length is lost
    assert errors["fp16"] == pytest.approx(errors["clip:1 fp16"], rel=0.2)
    assert errors["none"] < errors["prune:0.9"]
    assert errors["gaussian:1e-1"] > 0.1
    assert [line.hidden for line in found.lines] == [line.filled < 20 for line in found.lines]
    assert all(line.filled >= line.psnr for line in found.lines)
    assert 1e-3 < found.hiding_noise < 1e-1
    page, json_file, picture = write_risk([found], tmp_path / "RISK", victim)
    assert json.loads(json_file.read_text())["updates"][0]["defences"][0]["defence"] == "none"
    assert picture.stat().st_size > 1000
    text = page.read_text()
    assert "It shows the picture" in text
    assert all(f"<td>{line.defence}</td>" in text for line in found.lines)


def test_risk_from_the_command_line(tmp_path):
    pixels = (255 * photos(6)).round().astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=pixels[:, :12, :12], labels=[1])
    given = ("risk", "--dataset", tmp_path / "own.npz", "--images", 0, "--compare", "gaussian:0.1")
    told = call(*given, "--out", tmp_path / "RISK")
    assert told.code == 0, told.err
    assert "gaussian:0.1" in told.out
    assert "would hide the images" in told.out
    assert (tmp_path / "RISK/risk.png").exists()
    trained = call(*given, "--out", tmp_path / "T", "--trained-steps", 3, "--trained-on", "own", "--train-lr", 0.1)
    assert trained.code == 0, trained.err
    assert (tmp_path / "T/risk.json").read_text() != (tmp_path / "RISK/risk.json").read_text()  # it is another network
    assert "`defence` must be one of" in refusal(*given, "--compare", "none:1", "--out", tmp_path / "R")
    assert "`update` needs `weights`" in refusal(*given, "--update", tmp_path / "u", "--out", tmp_path / "R")


def test_risk_of_a_file_without_its_images(params, plain, tmp_path):
    update, weights = files(params, plain, tmp_path)
    given = ("risk", "--update", update, "--weights", weights)
    given = (*given, "--image-shape", *SHAPE, "--compare", "fp16", "--out", tmp_path / "RISK")
    assert "has images of 32x32x3" in refusal(*given)
    np.savez(tmp_path / "own.npz", images=(255 * photos(5)).round().astype(np.uint8), labels=[1])
    told = call(*given, "--dataset", tmp_path / "own.npz")
    assert told.code == 0, told.err


def test_risk_counts_only_what_the_update_shares(params, plain, tmp_path):
    frozen = {**plain, "conv1": jax.tree.map(np.zeros_like, plain["conv1"])}
    update, weights = files(params, frozen, tmp_path)
    np.savez(tmp_path / "truth.npz", images=np.asarray(photos(0)).astype(np.float32), labels=[1])
    given = ("risk", "--update", update, "--weights", weights, "--truth", tmp_path / "truth.npz")
    told = call(*given, "--image-shape", *SHAPE, "--compare", "gaussian:0.01", "prune:0.5", "--out", tmp_path / "RISK")
    assert "shares nothing of conv1/bias, conv1/kernel" in told.out, told.err
    (frozen_risk,) = json.loads((tmp_path / "RISK/risk.json").read_text())["updates"]
    victim = replace(victim_of(params, None), images=np.asarray(photos(0), np.float64), labels=np.asarray([1]))
    whole = risk(victim, ("gaussian:0.01", "prune:0.5")).as_dict()
    of_whole, of_frozen = ({line["defence"]: line["psnr"] for line in one["defences"]} for one in (whole, frozen_risk))
    assert of_frozen.keys() == of_whole.keys()
    for defence, psnr in of_whole.items():
        assert of_frozen[defence] < psnr, defence


def test_kinks_are_seen_in_the_program(params):
    assert not piecewise_linear(victim_of(params, None))
    kinked = victim_of(params, None, model=LeNet(num_classes=CLASSES, activation=nn.relu))
    assert piecewise_linear(kinked)
    (advice,) = stuck_hint(kinked, IDLG)
    assert "--attack rgap" in advice.text
    (other,) = stuck_hint(kinked, ATTACKS["rgap"])  # what was advised is not advised again
    assert "--attack" not in other.text
    pair = replace(kinked, indices=[0, 1], images=photos(5, 6), labels=np.array([1, 2]), batch=2)
    assert "--attack ig --tv 0.03" in stuck_hint(pair, IDLG)[0].text
    assert "--attack" not in stuck_hint(pair, replace(IG, tv=0.03))[0].text


def test_zeros_of_units_that_are_off_are_no_pruning():
    leaf = np.random.default_rng(0).normal(size=(30, 20))
    leaf[:, :7] = 0
    assert scattered_zeros({"a": leaf}) == 0
    pruned = np.where(np.abs(leaf) < np.quantile(np.abs(leaf[leaf != 0]), 0.3), 0, leaf)
    assert scattered_zeros({"a": pruned}) == pytest.approx(0.3, abs=0.05)
    underflown = np.exp(np.random.default_rng(2).normal(scale=30, size=(30, 20)) - 80).astype(np.float32)
    assert np.mean(underflown == 0) > 0.1
    assert scattered_zeros({"a": underflown}) == 0
