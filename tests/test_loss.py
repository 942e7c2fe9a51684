"""Losses equal torch's, and each runs from the victim to the rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxleak
from jaxleak.attacks import presets
from jaxleak.attacks.check import check_attack
from jaxleak.attacks.labels import LABEL_STRATEGIES
from jaxleak.attacks.trial import Job
from jaxleak.models import MLP, LeNet
from jaxleak.models.weights import to_torch
from jaxleak.results.metrics import vectors_right
from jaxleak.results.verdict import Criteria
from jaxleak.runs.audit.losses import loss_hints, slopes_at
from jaxleak.runs.run import run_sweep
from jaxleak.runs.sweep import Sweep
from jaxleak.threat.client import Client
from jaxleak.threat.defences import parse_defence
from jaxleak.threat.loss import (
    CROSS_ENTROPY,
    LOSSES,
    BinaryCrossEntropy,
    CrossEntropy,
    Loss,
    OwnLoss,
    SquaredError,
    as_loss,
    cross_entropy,
    loss_gradient,
    parse_loss,
)
from jaxleak.threat.network import draw_params
from jaxleak.threat.victim import Victim
from tests.commands import call, case_id, refusal, restored_globals
from tests.fixtures import quick_jit
from tests.oracles.require_torch import require_torch

# Mean squared error to targets of +1 for the label and -1 for the others: a loss that only this file knows.
SQUARED = OwnLoss(
    title="squared-error",
    function=lambda outputs, target: jnp.mean(jnp.square(outputs - (2 * target - 1))),
    targets="bits",
)
WEIGHTS = (0.5, 2.0, 1.0, 0.25)
BITS = np.array([[1.0, 0.0, 1.0, 0.0]])
NUMBERS = np.array([[0.3, -1.2, 2.0, 0.1]])


def victim_of(loss: Any = SQUARED, **changes) -> Victim:
    settings = {
        "model": LeNet(num_classes=changes.get("num_classes", 4)),
        "model_name": "lenet",
        "dataset": "random",
        "split": "all",
        "indices": [3],
        "images": np.random.default_rng(0).random((1, 12, 12, 1)),
        "labels": np.array([2]),
        "num_classes": 4,
        "client": Client(loss=loss),
    }
    return Victim(**settings | changes)


def rows(victim: Victim, attack, seeds: int = 2) -> list[dict[str, Any]]:
    sweep = Sweep(victim=victim, attacks=(attack,), seeds=seeds, criteria=Criteria())
    return run_sweep(sweep, out=None, quiet=True).rows


# --- torch ---

BINARY = np.array([[0.0], [1.0], [1.0]])
SEVERAL = np.array([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
REAL = np.random.default_rng(5).normal(size=(3, 4))
CASES: dict[str, tuple[Loss, Any]] = {
    "cross-entropy": (CrossEntropy(), None),
    "its sum": (CrossEntropy(reduction="sum"), None),
    "label smoothing": (CrossEntropy(smoothing=0.1), None),
    "class weights": (CrossEntropy(weights=WEIGHTS), None),
    "weights and smoothing": (CrossEntropy(weights=WEIGHTS, smoothing=0.2), None),
    "weights, smoothing, sum": (CrossEntropy(weights=WEIGHTS, smoothing=0.2, reduction="sum"), None),
    "one logit": (BinaryCrossEntropy(), BINARY),
    "one weighted logit": (BinaryCrossEntropy(weights=(3.0,)), BINARY),
    "several labels": (BinaryCrossEntropy(), SEVERAL),
    "several weighted labels, sum": (BinaryCrossEntropy(weights=WEIGHTS, reduction="sum"), SEVERAL),
    "squared error": (SquaredError(), REAL),
    "squared error, sum": (SquaredError(reduction="sum"), REAL),
    "two losses": (as_loss("cross-entropy+0.1*mse"), None),
}
LABELS = np.array([2, 0, 2])


def torchs(loss: Loss, outputs, target):
    import torch
    from torch.nn import functional

    def number(values):
        return None if not values else torch.tensor(values, dtype=torch.float64)

    labels = target.argmax(dim=1)
    if isinstance(loss, CrossEntropy):
        return functional.cross_entropy(
            outputs, labels, weight=number(loss.weights), label_smoothing=loss.smoothing,
            reduction=loss.reduction,
        )  # fmt: skip
    if isinstance(loss, BinaryCrossEntropy):
        return functional.binary_cross_entropy_with_logits(
            outputs, target, pos_weight=number(loss.weights), reduction=loss.reduction
        )
    if isinstance(loss, SquaredError):
        return functional.mse_loss(outputs, target, reduction=loss.reduction)
    return functional.cross_entropy(outputs, labels) + 0.1 * functional.mse_loss(outputs, target)


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_losses_and_their_gradients_equal_torch(name):
    require_torch()
    import torch

    loss, given = CASES[name]
    k = 4 if given is None else given.shape[1]
    outputs = 3 * np.random.default_rng(1).normal(size=(3, k))
    target = np.asarray(loss.target(LABELS, k, float)) if given is None else given
    value, slope = quick_jit(jax.value_and_grad(loss.value))(outputs, target)
    theirs = torch.tensor(outputs, requires_grad=True)
    wanted = torchs(loss, theirs, torch.from_numpy(target))
    wanted.backward()
    assert float(value) == pytest.approx(wanted.item(), rel=1e-12)
    np.testing.assert_allclose(slope, np.asarray(theirs.grad), rtol=1e-12, atol=1e-15)


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_updates_of_losses_equal_pytorch_scripts_in_float32(name):
    """At the true images the update that a script shares is explained, of a gradient and of local steps."""
    require_torch()
    import torch

    from tests.oracles.torch_lenet import lenet_from
    from tests.oracles.torch_training import trained_update

    loss, given = CASES[name]
    k = 4 if given is None else given.shape[1]
    model, images = LeNet(num_classes=k), np.random.default_rng(2).random((3, 12, 12, 1))
    params = quick_jit(lambda: draw_params(model, jax.random.key(0), (12, 12, 1)))()
    target = np.asarray(loss.target(LABELS, k, float)) if given is None else given
    state = {key: np.asarray(value, np.float32) for key, value in to_torch(model, params, (12, 12, 1)).items()}
    net = lenet_from(state, 12, 12)
    theirs = trained_update(
        net, torch.from_numpy(images.transpose(0, 3, 1, 2)).float(), torch.from_numpy(target).float(),
        loss=lambda outputs, y: torchs(loss, outputs.double(), y.double()), orders=[range(3)] * 2, batch=2,
    )  # fmt: skip
    victim = victim_of(
        loss, model=model, num_classes=k, indices=[0, 1, 2], images=images, labels=np.asarray(loss.label(target)),
        targets=given, batch=3, client=Client(loss=loss, epochs=2, batch=2, lr=0.1),
    )  # fmt: skip
    x = jnp.asarray(images)
    share = quick_jit(lambda p: victim.share(p, x, victim.target(victim.answers), jax.random.key(0)))
    ours = to_torch(model, share(params), (12, 12, 1))
    names = [name for name, _ in net.named_parameters()]
    flat = [np.concatenate(list(map(np.ravel, tree))) for tree in (theirs, [ours[name] for name in names])]
    assert np.sum((flat[0] - flat[1]) ** 2) < 1e-6 * np.sum(flat[0] ** 2)


# --- attacks ---

ATTACKED: dict[str, dict[str, Any]] = {
    "one logit": {"loss": "bce", "num_classes": 1, "labels": np.array([1])},
    "several labels": {"loss": "bce", "targets": BITS, "labels": np.array([0])},
    "bce of classes": {"loss": "bce"},
    "squared error": {"loss": "mse"},
    "numbers": {"loss": "mse", "targets": NUMBERS, "labels": np.array([2])},
    "smoothing": {"loss": CrossEntropy(smoothing=0.1)},
    "weights": {"loss": CrossEntropy(weights=WEIGHTS)},
    "sum": {"loss": CrossEntropy(reduction="sum")},
    "two losses": {"loss": "cross-entropy+0.1*mse"},
    "own": {"loss": SQUARED},
}


def attacked(name: str, **client) -> Victim:
    changes = dict(ATTACKED[name])
    loss = changes.pop("loss")
    return victim_of(loss, client=Client(loss=loss, **client), **changes)


@pytest.mark.parametrize("name", ATTACKED)
def test_an_attack_recovers_the_image_and_what_the_loss_was_given(name):
    attack = replace(presets.DLG, iterations=80, stop_objective=0)
    best = min(rows(attacked(name), attack), key=lambda row: row["objective"])
    assert best["relative_objective"] < 1e-6
    assert best["mse"] < 1e-3
    assert best["label_correct"]


@pytest.mark.parametrize("name", ["one logit", "several labels", "smoothing"])
def test_labels_that_are_read_explain_local_steps(name):
    attack = replace(presets.DLG, label="bias", iterations=60, stop_objective=0)
    best = min(rows(attacked(name, steps=2, lr=0.1), attack), key=lambda row: row["objective"])
    assert best["relative_objective"] < 1e-6
    assert best["label_correct"]


def test_the_attackers_loss_is_the_clients():
    attack = replace(presets.DLG, label="known", iterations=1, stop_objective=0)
    victim = victim_of()
    trial = Sweep(victim=victim, attacks=(attack,), seeds=1, criteria=Criteria()).trial(attack)
    shared, job = trial.shared(), Job(*(jnp.zeros((), jnp.int32) for _ in range(4)))
    problem = quick_jit(trial.prepare)(shared, job)
    x, target = jnp.asarray(victim.images), victim.target(jnp.asarray([2]))
    np.testing.assert_array_equal(target, [[0, 0, 1, 0]])
    wanted = quick_jit(lambda p: loss_gradient(victim.model, p, x, target, SQUARED))(problem.params)
    for found, leaf in zip(jax.tree.leaves(problem.update), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, leaf, rtol=1e-12, atol=1e-15)
    value, _ = quick_jit(lambda x: trial.attacker.objective(shared, problem)(x))(x.ravel())
    assert value < 1e-25  # at the private image


# --- label rules ---

ONE = {
    "cross-entropy": CrossEntropy(),
    "smoothing": CrossEntropy(smoothing=0.1),
    "sum": CrossEntropy(reduction="sum"),
    "weights": CrossEntropy(weights=(0.5, 2.0, 1.0, 0.25, 1.5)),
    "bce": BinaryCrossEntropy(),
    "weighted bce": BinaryCrossEntropy(weights=(3.0,)),
}


def found_labels(loss: Loss, outputs: int, answers: np.ndarray, rules: list[str], batch: int) -> dict[str, np.ndarray]:
    """What rules read from the updates of so many batches of random images, each on a network of its own."""
    count, vectors = len(answers), answers.ndim == 2
    victim = victim_of(
        loss, model=MLP(num_classes=outputs, hidden=(8,)), num_classes=outputs, indices=list(range(count)), batch=batch,
        images=np.random.default_rng(1).random((count, 4, 4, 1)),
        labels=np.asarray(loss.label(answers)) if vectors else answers, targets=answers if vectors else None,
    )  # fmt: skip
    trials = {}
    for rule in rules:
        attack = replace(presets.DLG, label=rule)
        check_attack(attack, victim)
        trials[rule] = Sweep(victim=victim, attacks=(attack,), seeds=1, criteria=Criteria()).trial(attack)
    shared = trials[rules[0]].shared()

    def read(slot):
        problem = trials[rules[0]].prepare(shared, Job(slot, slot, slot, slot))
        answer = shared.labels[slot]
        return {rule: trial.attacker.labels(problem.params, problem.update, answer) for rule, trial in trials.items()}

    slots = jnp.arange(count // batch, dtype=jnp.int32)
    return jax.tree.map(np.asarray, quick_jit(jax.vmap(read))(slots))


@pytest.mark.parametrize("name", ONE)
def test_rules_that_hold_read_the_label_of_one_image(name):
    loss, outputs = ONE[name], 1 if "bce" in name else 5
    labels = np.random.default_rng(4).integers(loss.classes(outputs), size=12)
    holding = [rule for rule, kind in LABEL_STRATEGIES.items() if kind.read and kind.holds_for(loss, outputs, 1)]
    assert {"idlg", "bias"} <= set(holding)
    for rule, found in found_labels(loss, outputs, labels, holding, 1).items():
        np.testing.assert_array_equal(found[:, 0], labels, err_msg=rule)


@pytest.mark.parametrize("weights", [(), (3.0, 1.0, 0.5)])
def test_several_yes_or_no_labels_of_one_image_are_read_by_their_signs(weights):
    bits = np.random.default_rng(6).integers(2, size=(12, 3)).astype(float)
    for found in found_labels(BinaryCrossEntropy(weights=weights), 3, bits, ["bias", "idlg"], 1).values():
        np.testing.assert_array_equal(found[:, 0], bits)


@pytest.mark.parametrize("name", ["cross-entropy", "smoothing", "sum", "bce"])
def test_rules_that_hold_read_the_labels_of_batches(name):
    """Of three images; of one logit the number of each class."""
    loss, outputs = ONE[name], 1 if name == "bce" else 5
    rng = np.random.default_rng(7)
    batches = rng.integers(loss.classes(outputs), size=(16, 3))
    found = found_labels(loss, outputs, batches.ravel(), ["counts", "unique"], 3)
    np.testing.assert_array_equal(np.sort(found["counts"], axis=1), np.sort(batches, axis=1))
    if outputs > 1:
        for read, true in zip(found["unique"], batches, strict=True):
            assert set(read) <= set(true)


@pytest.mark.parametrize(
    ("loss", "outputs", "batch", "holding"),
    [
        (SQUARED, 4, 1, "joint, known"),
        (BinaryCrossEntropy(), 4, 2, "joint, known"),
        (BinaryCrossEntropy(), 4, 1, "joint, known, idlg, bias"),
        (SquaredError(), 4, 1, "joint, known"),
        (as_loss("cross-entropy+0.1*mse"), 4, 1, "joint, known"),
        (CrossEntropy(weights=WEIGHTS), 4, 2, "joint, known, unique"),
        (CrossEntropy(weights=WEIGHTS, smoothing=0.1), 4, 1, "joint, known, idlg, bias, row-minima"),
        (CROSS_ENTROPY, 4, 2, ", ".join(name for name in LABEL_STRATEGIES if name != "text")),
    ],
    ids=case_id,
)
def test_rules_that_do_not_hold_are_refused_in_one_line(loss, outputs, batch, holding):
    images = np.random.default_rng(0).random((batch, 12, 12, 1))
    victim = victim_of(loss, batch=batch, indices=list(range(batch)), images=images, labels=np.zeros(batch, int))
    for name in LABEL_STRATEGIES:
        attack = replace(presets.DLG, label=name)
        if name in holding.split(", "):
            check_attack(attack, victim)
            continue
        with pytest.raises(
            jaxleak.InputError, match=rf"`label` {name} .* Use label {holding}; the attack dlg has joint\.$"
        ):
            check_attack(attack, victim)
    if loss.targets != "classes" or not loss.is_plain:
        with pytest.raises(jaxleak.InputError, match="`label_term`"):
            check_attack(replace(presets.DLG, label_term=0.1), victim)


def test_a_rule_that_needs_the_gradients_size_is_refused_where_a_client_clips():
    victim = victim_of(CROSS_ENTROPY, client=Client(steps=2, clip=1.0))
    with pytest.raises(jaxleak.InputError, match=r"`label` counts .* optimiser hides"):
        check_attack(replace(presets.DLG, label="counts"), victim)
    check_attack(replace(presets.DLG, label="counts-published"), victim)


# --- what is said and kept ---


def test_settings_name_a_loss_that_is_not_cross_entropy():
    assert victim_of().settings()["client"]["loss"].startswith("squared-error sha256:")
    assert "loss" not in victim_of(CROSS_ENTROPY).settings()["client"]  # as in runs before there were others
    assert victim_of().key is None  # what its functions do is not known
    assert victim_of("mse").key == victim_of(SquaredError()).key != victim_of("bce").key
    assert CROSS_ENTROPY.name == "cross-entropy"
    assert CrossEntropy(smoothing=0.1, weights=(1, 2)).name == "cross-entropy smoothing=0.1 weights=1,2"
    assert as_loss("bce+0.5*mse").name == "bce+0.5*mse"
    assert as_loss(cross_entropy).name != as_loss(lambda o, t: 2 * cross_entropy(o, t)).name
    assert set(LOSSES) == {"cross-entropy", "bce", "mse"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bse",), r"`loss` must be one of bce, cross-entropy, mse; got 'bse'. Did you mean 'mse'\?"),
        (("x*mse",), r"`loss` terms are a name or NUMBER\*name"),
        (("0*mse",), r"`loss` must be above 0"),
        (("mse", 0.1), r"`label_smoothing` is a setting of the loss cross-entropy, not of mse; leave it out\."),
        (("mse", 0, (1.0,)), r"`class_weights` is a setting of the loss cross-entropy and bce, not of mse"),
        (("cross-entropy", 1.0), r"`label_smoothing` must be below 1; got 1\."),
        (("cross-entropy", -0.1), r"`label_smoothing` must be 0 or above"),
        (("cross-entropy", 0, (0.0, 0.0)), r"`class_weights` must not all be 0"),
        (("cross-entropy", 0, (), "max"), r"`reduction` must be one of mean, sum"),
    ],
)
def test_losses_that_there_are_not(arguments, message):
    with pytest.raises(jaxleak.InputError, match=message):
        parse_loss(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": CROSS_ENTROPY, "num_classes": 1, "labels": np.array([0])}, "cross-entropy of one output is always 0"),
        ({"loss": CrossEntropy(weights=(1.0, 2.0))}, "`class_weights` must be one for each of the 4 outputs; got 2"),
        ({"loss": "bce", "num_classes": 1}, "`labels` must be from 0 to 1, as the model has one output; got 2"),
        ({"loss": "bce", "targets": NUMBERS}, r"`targets` must be in \[0, 1\] for the loss bce; got -1.2 to 2"),
        ({"loss": "cross-entropy", "targets": BITS}, r"which add up to 1; one adds up to 2\. .* --loss bce"),
        ({"loss": "mse", "targets": NUMBERS[:, :3]}, r"`targets` must have shape \(1, 4\)"),
        ({"loss": "mse", "targets": NUMBERS * np.nan}, "`targets` must be finite"),
        (
            {"loss": parse_loss("cross-entropy+mse", reduction="sum"), "defences": (parse_defence("dp-sgd:1:0.1"),)},
            "`defence` dp-sgd averages the gradients of single images; leave out --reduction sum",
        ),
        (
            {"loss": CrossEntropy(weights=(1.0, 2.0, 0.0, 1.0)), "labels": np.array([2])},
            "class 2 has weight 0, so its images leave no gradient",
        ),
        ({"loss": 3}, "`loss` must be a Loss, a name or a function"),
        (
            {"loss": lambda outputs: outputs},
            r"`loss` <lambda> fails on outputs and targets of shape \[2, 4\]: TypeError",
        ),
        ({"loss": lambda outputs, target: outputs}, r"`loss` <lambda> fails .* returns one number"),
    ],
    ids=case_id,
)
def test_losses_that_do_not_fit_a_victim(changes, message):
    with pytest.raises(jaxleak.InputError, match=message):
        victim_of(**changes)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_smoothing_that_was_not_stated_is_found_beside_class_weights(reduction):
    outputs, stated = np.array([0.3, -1.0, 0.8, 0.1]), CrossEntropy(weights=WEIGHTS, reduction=reduction)
    slope = slopes_at(replace(stated, smoothing=0.2), outputs, np.eye(4)[[2]])[0]
    (hint,) = loss_hints(outputs, slope, victim_of(stated), 2)
    assert "use --label-smoothing 0.2" in hint.text
    assert not loss_hints(outputs, slope, victim_of(replace(stated, smoothing=0.2)), 2)


def test_vectors_are_right_in_any_order():
    true = np.array([[[1.0, 0, 1], [0, 0, 1]], [[1, 0, 1], [1, 0, 1]]])
    found = np.array([[[0.1, 0.2, 0.9], [0.8, 0.1, 0.6]], [[1, 0, 1], [1, 1, 1]]])
    np.testing.assert_array_equal(vectors_right(found, true, bits=True), [2, 1])
    np.testing.assert_array_equal(vectors_right(100 * true + 0.5, 100 * true, bits=False), [2, 2])
    np.testing.assert_array_equal(vectors_right(100 * true + 5, 100 * true, bits=False), [0, 0])
    np.testing.assert_array_equal(vectors_right(found, true * np.nan, bits=True), [0, 0])


# --- the command line ---

OWN = """
import jax, jax.numpy as jnp
from jaxleak.models import MLP, LeNet


def build_model(classes):
    return LeNet(num_classes=classes)


def focal(outputs, targets):
    chance = jax.nn.softmax(outputs)
    return -jnp.mean(jnp.sum(targets * (1 - chance) ** 2 * jnp.log(chance), axis=-1))
"""


@pytest.fixture
def files(tmp_path):
    """An update of bits, as a script leaves it, with its truth and a model's file."""
    victim = attacked("several labels")
    params = quick_jit(lambda: draw_params(victim.model, jax.random.key(0), victim.shape))()
    x = jnp.asarray(victim.images)
    update = quick_jit(lambda p: victim.share(p, x, jnp.asarray(BITS), jax.random.key(0)))(params)
    for name, tree in (("w", params), ("grads", update)):
        tensors = {key: value.astype(np.float32) for key, value in to_torch(victim.model, tree, (12, 12, 1)).items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    np.savez(tmp_path / "truth.npz", images=victim.images, labels=BITS.astype(int))
    (tmp_path / "net.py").write_text(OWN)
    with restored_globals():
        yield tmp_path


def audit(files: Path, *arguments: object) -> dict[str, Any]:
    given = ["--update", files / "grads.safetensors", "--weights", files / "w.safetensors", "--image-shape", 12, 12, 1]
    said = call("attack", *given, "--out", files / "RUN", "--seeds", 3, "--lanes", 2, *arguments)
    assert said.code == 0, said.err
    import json

    return json.loads((files / "RUN/report.json").read_text())


@pytest.mark.parametrize("attack", ["idlg", pytest.param("dlg", marks=pytest.mark.slow)])
def test_an_update_of_several_labels_is_recovered_with_them(files, attack):
    report = audit(files, "--loss", "bce", "--attack", attack, "--truth", files / "truth.npz")
    assert report["verdict"] == "recovered"
    assert report["attacks"][0]["labels"] == BITS.tolist()
    assert report["truth"]["right"]


@pytest.mark.slow
def test_an_update_of_another_loss_names_it(files):
    report = audit(files, "--attack", "dlg")
    assert report["verdict"] == "unexplained"
    assert any("--loss bce" in hint["text"] and "1,0,1,0" in hint["text"] for hint in report["hints"])


@pytest.mark.slow
def test_labels_of_the_command_line(files):
    report = audit(files, "--loss", "bce", "--attack", "dlg", "--label", "known", "--labels", 1, 0, 1, 0)
    assert report["verdict"] == "recovered"


def test_losses_of_the_command_line_that_are_refused(files):
    given = ["attack", "--update", files / "grads.safetensors", "--weights", files / "w.safetensors"]
    given += ["--image-shape", 12, 12, 1, "--out", files / "RUN"]
    assert "`loss` must be cross-entropy, bce or mse" in refusal(*given, "--loss", "focal")
    assert "has no function 'local'" in refusal(*given, "--model", files / "net.py", "--loss", "local")
    assert "`label_smoothing` is a setting" in refusal(*given, "--loss", "bce", "--label-smoothing", 0.1)
    assert "is for local steps" in refusal(*given, "--client-momentum", 0.9)


@pytest.mark.slow
def test_a_risk_of_several_labels(files):
    flags = ("--dataset", files / "truth.npz", "--images", 0)
    assert call("risk", *flags, "--loss", "bce", "--compare", "fp16", "--out", files / "RISK").code == 0


@pytest.mark.parametrize("loss", ["bce", pytest.param("focal", marks=pytest.mark.slow)])
def test_a_run_of_several_labels_and_one_of_a_loss_of_ones_own(files, loss):
    np.savez(files / "classes.npz", images=np.random.default_rng(0).random((3, 12, 12, 1)), labels=[0, 1, 2])
    data = "truth" if loss == "bce" else "classes"
    given = loss if loss == "bce" else f"{files}/net.py:focal"
    flags = ("--dataset", files / f"{data}.npz", "--images", 0, "--loss", given)
    attack = ("--attack", "dlg", "--label", "bias" if loss == "bce" else "joint", "--seeds", 2, "--iterations", 3)
    said = call("run", *flags, *attack, "--no-figures", "--out", files / "RUN")
    assert said.code == 0, said.err
    with np.load(next((files / "RUN").glob("arrays-*.npz"))) as arrays:
        assert ("targets_found" in arrays.files) == (loss == "bce")
