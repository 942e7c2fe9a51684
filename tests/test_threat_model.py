"""Threat models end to end: batches, local steps, defences, later stages, starts in a group, boxes, labels, layers."""

import math
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxleak import LBFGS, Adam, InputError, Sweep, load_dataset, make_victim
from jaxleak.attacks.bounds import MARGIN, VARIABLES
from jaxleak.attacks.check import check_attack
from jaxleak.attacks.labels import LABEL_STRATEGIES, probe_images
from jaxleak.attacks.objectives import OBJECTIVES, SCALES, statistics_distance
from jaxleak.attacks.presets import ANALYTIC, IG, Attack, with_solver
from jaxleak.attacks.trial import Job
from jaxleak.data import Dataset
from jaxleak.models import MLP, LeNet
from jaxleak.models.norms import BatchNorm
from jaxleak.models.weights import from_torch, to_torch
from jaxleak.results.result import Result
from jaxleak.results.verdict import Criteria, classify
from jaxleak.runs.run import run_sweep
from jaxleak.threat.client import Client
from jaxleak.threat.defences import DPSGD, Clip, Gaussian, Laplace, Prune, PruneLayer, TopK
from jaxleak.threat.loss import cross_entropy, loss_gradient
from jaxleak.threat.observe import observe
from jaxleak.threat.victim import Victim
from tests.oracles.cases import lenet_cases, to_nchw
from tests.oracles.require_torch import require_torch
from tests.sweeps import CLASSES, SHAPE, Tiny
from tests.trials import KNOWN, Ran, at, compiled, flat, job, run_trial, trial_of, truth_of

STILL = replace(KNOWN, solver=Adam(lr=1e-13), iterations=1)  # reports where it started
NORMALISATION = ((0.4,), (0.2,))


@pytest.fixture
def small(data) -> Dataset:
    """Eight grey pictures of 8 by 8 pixels; picture i has label i % 3."""
    return data


def uniform(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(-0.5, 0.5, shape)


RNG = np.random.default_rng(7)
PARAMS = {  # of `Tiny`
    "first": {"kernel": uniform(RNG, 64, 12), "bias": uniform(RNG, 12)},
    "head": {"kernel": uniform(RNG, 12, CLASSES), "bias": uniform(RNG, CLASSES)},
}


def tiny(small: Dataset, images=(0, 1), **changes) -> Victim:
    """A victim with PARAMS, so that no test compiles how they are drawn; all images in one update."""
    victim = make_victim(Tiny(CLASSES), small, list(images), **{"network": "shared", "batch": len(images)} | changes)
    return replace(victim, params=PARAMS) if victim.network == "shared" else victim


def update_of(victim: Victim, *jobs: Job) -> list[Any]:
    """The shared update of each job."""
    trial, jobs = trial_of(KNOWN, victim), jobs or (job(),)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *jobs)

    def prepare():
        shared = trial.shared()
        return jax.vmap(lambda which: trial.prepare(shared, which).update)(stacked)

    updates = compiled(prepare)
    return [jax.tree.map(lambda leaf, row=row: leaf[row], updates) for row in range(len(jobs))]


def gradient_of(victim: Victim, params: Any = None, x: np.ndarray | None = None) -> Any:
    """The plain gradient of the first update's images."""

    def gradient():
        weights = trial_of(KNOWN, victim).shared().params if params is None else params
        image = truth_of(victim)[: victim.batch] if x is None else x
        target = jax.nn.one_hot(victim.labels[: victim.batch], victim.num_classes, dtype=float)
        return loss_gradient(victim.model, weights, jnp.asarray(image), target)

    return compiled(gradient)


def same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(flat(a), flat(b)))


def by_trial(result: Result, *names: str) -> list[np.ndarray]:
    """Arrays in the order of the trials' ids."""
    arrays = result.run.arrays(keys=["trial", *names])
    order = np.argsort(arrays["trial"])
    return [arrays[name][order] for name in names]


def swept(victim: Victim, attack: Attack, seeds: int = 2, **settings) -> Result:
    sweep = Sweep(victim=victim, attacks=(attack,), seeds=seeds, **{"snapshots": (), **settings})
    return run_sweep(sweep, quiet=True)


# --- batches ---


@pytest.fixture(scope="module")
def shuffled(data) -> tuple[Victim, Result]:
    """Two images of one class and three starts: near the truth, the same with slots exchanged, one image far off."""
    victim = tiny(data, (0, 3))
    near = victim.images + np.random.default_rng(0).normal(0, 0.03, victim.images.shape)
    far = near + np.array([0, 3.0]).reshape(2, 1, 1, 1)
    starts = {"image": np.stack([near, near[::-1], far])}
    return victim, swept(victim, KNOWN, 3, starts=starts, snapshots=(0, 2), criteria=Criteria(objective=10.0))


def test_shuffled_slots_give_the_same_metrics(shuffled):
    _, result = shuffled
    first, second = sorted(result.rows, key=lambda row: row["seed"])[:2]
    for name in ("objective", "mse", "mse_clipped", "psnr", "ssim", "relative_error", "max_abs"):
        assert first[name] == pytest.approx(second[name], rel=1e-9), name
    slots, *arrays = by_trial(result, "slots", "candidate", "snapshots", "errors", "mse_trace")
    assert slots[:2].tolist() == [[0, 1], [1, 0]]
    for array in arrays:
        np.testing.assert_allclose(array[0], array[1], rtol=1e-6)


def test_rows_of_a_batch_say_what_became_of_it(shuffled):
    victim, result = shuffled
    rows = sorted(result.rows, key=lambda row: row["seed"])
    for row in rows:
        assert (row["image"], row["label"], row["label_found"], row["batch"], row["dummies"]) == (0, 0, 0, 2, 2)
        assert (row["labels_right"], row["label_correct"]) == (2, True)
        assert (row["defence"], row["client_steps"], row["trained_steps"]) == ("none", 0, 0)
        assert (row["start"], row["label_strategy"], row["objective_kind"]) == ("normal", "known", "l2")
    assert [row["images_recovered"] for row in rows] == [2, 2, 1]
    assert [row["success"] for row in rows] == [True, True, False]
    assert [row["status"] for row in rows] == ["converged", "converged", "wrong-image"]
    assert rows[2]["relative_error"] > 1  # the largest
    assert rows[0]["update_norm2"] == pytest.approx(np.sum(flat(gradient_of(victim)) ** 2), rel=1e-9)
    logits = Tiny(CLASSES).apply({"params": PARAMS}, truth_of(victim))
    loss = float(cross_entropy(jnp.asarray(logits), jnp.eye(CLASSES)[victim.labels]))
    assert rows[0]["victim_loss"] == pytest.approx(loss, rel=1e-9)


def test_reconstructions_of_a_batch_are_in_the_order_of_the_truth(small):
    """Three updates of three images; a start that is the truth in another order, and is not moved."""
    victim = tiny(small, (0, 3, 6), batch=3)
    starts = {"image": np.stack([victim.images[[2, 0, 1]], victim.images[[1, 0, 2]]])}
    result = swept(victim, STILL, starts=starts, snapshots=(0,))
    found = result.reconstructions()
    assert found["candidate"].shape == (2, 3, *SHAPE)
    for candidate in found["candidate"]:
        np.testing.assert_allclose(candidate, victim.images, atol=1e-6)
    slots, pictures = by_trial(result, "slots", "candidate")
    assert slots.tolist() == [[1, 2, 0], [1, 0, 2]]
    truth = result.run.truth()
    assert (truth["image"].tolist(), truth["label"].tolist()) == ([0], [0])
    assert pictures.shape == (2, 16, 16, 1)
    np.testing.assert_allclose(pictures[0], truth["pixels"][0], atol=1e-2)


def test_updates_are_taken_in_turn(small):
    victim = tiny(small, (4, 1, 3, 0), batch=2)
    result = swept(victim, replace(KNOWN, iterations=1))
    assert {(row["image"], row["label"], row["seed"]) for row in result.rows} == {
        (image, label, seed) for image, label in ((4, 1), (3, 0)) for seed in (0, 1)
    }
    assert sorted(row["trial"] for row in result.rows) == [0, 1, 2, 3]
    assert result.summary["complete"]
    second = update_of(victim, job(slot=1, image=3))[0]
    assert same(second, update_of(tiny(small, (3, 0)), job(image=3))[0])
    groups = {group["image"]: group["trials"] for group in result.summary["groups"]}
    assert groups == {4: 2, 3: 2, None: 4}


@pytest.mark.parametrize(("dummies", "right"), [(1, 1), (3, 3)])
def test_other_numbers_of_dummies(small, dummies, right):
    """CPL's one dummy for a batch of one class."""
    victim = tiny(small, (0, 3))
    (row,) = swept(victim, replace(KNOWN, label="idlg" if dummies == 1 else "known", dummies=dummies), 1).rows
    assert (row["dummies"], row["batch"], row["labels_right"], row["label_correct"]) == (dummies, 2, right, True)
    assert row["images_recovered"] == 0
    assert math.isfinite(row["mse"])


def test_batches_come_whole(small):
    with pytest.raises(InputError, match=r"^`images` must come in whole batches of 2; there are 3\. Change --batch"):
        tiny(small, (0, 1, 2), batch=2)


# --- label strategies on a batch ---

LENET = lenet_cases()[-1]
LENET_LABELS = [7, 2, 9, 4]


def lenet_victim(**changes) -> Victim:
    model = LeNet(num_classes=10)
    settings: dict[str, Any] = {
        "model": model,
        "model_name": "lenet",
        "dataset": "golden",
        "split": "all",
        "indices": [0, 1, 2, 3],
        "images": np.random.default_rng(5).random((4, *SHAPE)),
        "labels": np.array(LENET_LABELS),
        "num_classes": 10,
        "network": "shared",
        "params": from_torch(model, LENET.state_dict, SHAPE),
        "batch": 4,
    }
    return Victim(**settings | changes)


@pytest.mark.parametrize(
    "client",
    [Client(), Client(steps=3, lr=1e-3), Client(steps=2, batch=1, clients=2, lr=1e-3)],
    ids=["gradient", "steps", "clients"],
)
def test_label_strategies_in_a_trial(client):
    """Every strategy is given the mean gradient, as far as an update shows it, and the network's outputs.

    Of this batch only `counts` is right, and only in units of the gradient: the network expects class 9 anyway.
    """
    victim = lenet_victim(client=client)
    strategies = {name: rule.read for name, rule in LABEL_STRATEGIES.items() if rule.read is not None}
    names = list(strategies)

    def labels():
        model: Any = victim.model
        trials = [trial_of(replace(KNOWN, label=name), victim) for name in ("known", *names)]
        shared = trials[0].shared()
        found = [trial.prepare(shared, job()).label for trial in trials]
        probes = probe_images(jax.random.key(0), SHAPE)
        target = jax.nn.one_hot(victim.labels, 10, dtype=float)
        gradient = loss_gradient(model, shared.params, jnp.asarray(victim.images), target)
        logits = model.apply({"params": shared.params}, probes)
        return found, [read(gradient, 4, logits) for read in strategies.values()]

    (known, *found), wanted = compiled(labels)
    assert known.tolist() == LENET_LABELS
    assert {name: labels.tolist() for name, labels in zip(names, found, strict=True)} == {
        name: labels.tolist() for name, labels in zip(names, wanted, strict=True)
    }
    assert sorted(found[names.index("counts")].tolist()) == sorted(LENET_LABELS)


def test_joint_labels_are_those_of_the_last_candidate(small):
    victim = tiny(small, (0, 1))
    logits = np.array([[0, 5.0, 0], [0, 0, 5.0]])
    starts = {"image": victim.images[None], "label": logits[None]}
    (row,) = swept(victim, replace(STILL, label="joint"), 1, starts=starts).rows
    assert (row["label"], row["label_found"], row["labels_right"], row["label_correct"]) == (0, 1, 1, False)


# --- defences ---

JOBS = [job(image=4, seed=0), job(image=4, seed=1, trial=1), job(slot=1, image=3, seed=0)]


@pytest.mark.parametrize("draw", ["per-victim", "per-trial"])
def test_defences_are_met_as_given(small, draw):
    victim = tiny(small, (4, 3), batch=1, defences=(Gaussian(sigma=2.0),), defence_draw=draw)
    plain = list(map(flat, update_of(replace(victim, defences=()), *JOBS)))

    def noise(victim: Victim) -> list[np.ndarray]:
        return [flat(update) - bare for update, bare in zip(update_of(victim, *JOBS), plain, strict=True)]

    def alike(a, b) -> bool:
        """The same numbers up to rounding, or another draw of them."""
        assert np.allclose(a, b) or abs(np.corrcoef(a, b)[0, 1]) < 0.2
        return np.allclose(a, b)

    first, restart, other = noise(victim)
    assert np.std(first) == pytest.approx(2, rel=0.1)
    assert alike(first, restart) == (draw == "per-victim")
    assert not alike(first, other)  # another image
    assert not alike(first, noise(replace(victim, defence_seed=1))[0])
    if draw == "per-victim":  # the draw follows the image, not its place
        turned = update_of(tiny(small, (3, 4), batch=1, defences=victim.defences), job(slot=1, image=4))
        assert alike(flat(turned[0]) - plain[0], first)


def test_a_network_per_trial_has_a_draw_per_trial(small):
    """Each trial is another victim there."""
    victim = tiny(small, (4,), network="per-trial", defences=(Laplace(sigma=1e6),))
    first, restart = map(flat, update_of(victim, *JOBS[:2]))
    assert abs(np.corrcoef(first, restart)[0, 1]) < 0.2


def test_defences_come_in_their_order(small):
    victim = tiny(small, (0, 1), defences=(Clip(norm=1e-3), Prune(share=0.5)))
    gradient, update = flat(gradient_of(victim)), flat(update_of(victim)[0])
    kept = np.abs(gradient) >= np.sort(np.abs(gradient))[round(0.5 * gradient.size)]
    np.testing.assert_allclose(update, np.where(kept, gradient, 0) * 1e-3 / np.linalg.norm(gradient), rtol=1e-9)
    other = tiny(small, (0, 1), defences=(Prune(share=0.5), Clip(norm=1e-3)))
    assert np.linalg.norm(flat(update_of(other)[0])) == pytest.approx(1e-3)
    assert np.linalg.norm(update) < 0.9999e-3


def test_dp_sgd_clips_each_images_gradient(small):
    """Then the other defences."""
    victim = tiny(small, (0, 1), defences=(DPSGD(clip=0.5, noise=0.0), Clip(norm=0.1)))
    alone = [
        flat(gradient_of(tiny(small, (image,)), x=truth_of(victim)[[number]])) for number, image in enumerate((0, 1))
    ]
    clipped = [one * min(1, 0.5 / np.linalg.norm(one)) for one in alone]
    assert all(np.linalg.norm(one) > 0.5 for one in alone)
    mean = np.mean(clipped, axis=0)
    wanted = mean * min(1, 0.1 / np.linalg.norm(mean))
    np.testing.assert_allclose(flat(update_of(victim)[0]), wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("defence", "client"),
    [
        (Prune(share=0.7), Client()),
        (Prune(share=0.7), Client(steps=2, lr=0.1)),
        (PruneLayer(share=0.7), Client()),
        (TopK(count=50), Client()),
    ],
    ids=["prune", "prune after steps", "prune-layer", "top-k"],
)
def test_an_attacker_who_knows_of_pruning_leaves_those_entries_out(small, defence, client):
    """0 at the truth, where one who does not know sees what was cut off."""
    victim = tiny(small, (0, 1), defences=(defence,), client=client)
    truth = truth_of(victim)
    trials = [trial_of(replace(KNOWN, knows_defence=knows), victim) for knows in (True, False)]

    def evaluate():
        shared = trials[0].shared()
        found = []
        for trial in trials:
            problem = trial.prepare(shared, job())
            found.append(trial.attacker.objective(shared, problem)(jnp.ravel(truth)))
        return found, client_of(victim, shared.params), problem.update

    ((value, slope), (blind, _)), whole, update = compiled(evaluate)
    assert value < 1e-25
    assert np.abs(slope).max() < 1e-12
    assert blind == pytest.approx(np.sum((flat(whole) - flat(update)) ** 2), rel=1e-9)
    assert blind > 1e-9


def client_of(victim: Victim, params: Any) -> Any:
    """The update without its defences."""
    target = jax.nn.one_hot(victim.labels, victim.num_classes, dtype=float)
    return replace(victim, defences=()).share(params, jnp.asarray(truth_of(victim)), target, jax.random.key(0))


# --- a later stage of the client's training ---


@pytest.mark.torch
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_on_the_clients_own_images_equals_torch(optimizer):
    torch = require_torch()
    from tests.oracles.torch_lenet import dlg_gradient, lenet_from, loss

    victim = lenet_victim(trained_steps=4, trained_on="own", train_optimizer=optimizer, train_lr=0.02)
    net = lenet_from(LENET.state_dict, *SHAPE[:2])
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    stepper = kind(net.parameters(), lr=0.02)
    image, label = torch.from_numpy(to_nchw(victim.images)), torch.tensor(LENET_LABELS)
    for _ in range(4):
        stepper.zero_grad()
        loss(net(image), label).backward()
        stepper.step()
    wanted = dict(zip(LENET.state_dict, dlg_gradient(net, image, label), strict=True))
    got = to_torch(victim.model, update_of(victim)[0], SHAPE)
    for name, value in wanted.items():
        assert np.linalg.norm(got[name] - value.numpy()) < 1e-9 * np.linalg.norm(value.numpy()), name


def test_the_attacker_has_the_trained_network(small):
    """Explicit steps of optax; the objective at the truth is 0 only with the network after them."""
    victim = tiny(small, (0, 1), trained_steps=5, trained_on="own", train_lr=0.1)
    trial, truth = trial_of(KNOWN, victim), jnp.asarray(truth_of(victim))
    target = jax.nn.one_hot(victim.labels, CLASSES, dtype=float)
    optimizer = optax.adam(0.1)

    def train():
        shared = trial.shared()
        params = shared.params
        state = optimizer.init(params)
        for _ in range(5):
            step, state = optimizer.update(loss_gradient(victim.model, params, truth, target), state)
            params = optax.apply_updates(params, step)
        problem = trial.prepare(shared, job())
        gradient = loss_gradient(victim.model, params, truth, target)
        at_truth = trial.attacker.objective(shared, problem)(jnp.ravel(truth))
        return params, problem.params, gradient, problem.update, at_truth

    params, own, gradient, update, (value, _) = compiled(train)
    np.testing.assert_allclose(flat(own), flat(params), rtol=1e-9)
    np.testing.assert_allclose(flat(update), flat(gradient), rtol=1e-9)
    assert value < 1e-25
    assert np.linalg.norm(flat(update) - flat(gradient_of(replace(victim, trained_steps=0)))) > 0.1


def test_rows_name_the_stage_the_steps_and_the_defences(small):
    victim = tiny(
        small,
        (0, 1, 2, 3),
        trained_steps=2,
        trained_on="own",
        client=Client(epochs=3, batch=1, clients=2),
        defences=(Prune(share=0.25), Gaussian(sigma=0.001)),
    )
    (row,) = swept(victim, replace(KNOWN, iterations=1), 1).rows
    assert (row["batch"], row["client_steps"], row["trained_steps"]) == (4, 6, 2)
    assert row["defence"] == "prune:0.25 gaussian:0.001"


# --- scales, objectives, layers ---


@pytest.mark.parametrize(
    ("objective", "layers"),
    [("l2", ()), ("l2", ("head", "first:4")), ("cosine", ("head", "first:4"))],
    ids=["l2", "l2, weighted", "cosine, weighted"],
)
def test_whatever_the_scale_the_published_objective_is_reported(small, objective, layers):
    """By Adam, which reports it with every evaluation, and by L-BFGS, which asks for it at the end of an iteration."""
    victim = tiny(small, (0, 1))
    candidate = np.random.default_rng(0).random((2, *SHAPE))
    weights = {"head": 1.0, "first": 4.0 if layers else 1.0}
    gradient, update = gradient_of(victim, x=candidate), gradient_of(victim)
    if objective == "l2":
        wanted = sum(weights[name] * np.sum((flat(gradient[name]) - flat(update[name])) ** 2) for name in weights)
    else:
        u, g = (np.concatenate([weights[n] ** 0.5 * flat(tree[n]) for n in weights]) for tree in (update, gradient))
        wanted = 1 - u @ g / np.linalg.norm(u) / np.linalg.norm(g)
    plain = replace(KNOWN, objective=objective, layers=layers)

    def evaluate():
        found = {}
        for scale in SCALES:
            for solver in (Adam(), LBFGS()):
                trial = trial_of(replace(plain, scale=scale, solver=solver), victim)
                shared = trial.shared()
                problem = trial.prepare(shared, job())
                x = jnp.ravel(candidate)
                value, slope = trial.attacker.objective(shared, problem)(x)
                published = trial.attacker.published(jnp.asarray(True), shared, problem, x, value)
                found[scale, type(solver).__name__] = value, published, slope
        return found

    found = compiled(evaluate)
    for (scale, solver), (value, published, slope) in found.items():
        assert published == pytest.approx(wanted, rel=1e-9), (scale, solver)
        assert value == pytest.approx(wanted, rel=1e-9) or solver == "LBFGS"
        np.testing.assert_allclose(slope, found[scale, "Adam"][2], rtol=1e-9)  # both are given the scaled one's slope
    relative = found["relative", "LBFGS"][0]
    norm2 = sum(weights[name] * np.sum(flat(update[name]) ** 2) for name in weights)
    assert relative == pytest.approx(wanted / (norm2 if objective == "l2" else 1), rel=1e-9)
    assert found["per-tensor", "LBFGS"][0] != pytest.approx(relative, rel=1e-2)


def test_whatever_the_scale_an_update_of_zeros_is_as_far(small):
    victim = tiny(small, (0, 1), defences=(Prune(share=1.0),))
    candidate = np.random.default_rng(0).random((2, *SHAPE))
    wanted = np.sum(flat(gradient_of(victim, x=candidate)) ** 2)

    def evaluate():
        found = []
        for scale in SCALES:
            trial = trial_of(replace(KNOWN, scale=scale), victim)
            shared = trial.shared()
            problem, x = trial.prepare(shared, job()), jnp.ravel(candidate)
            value, _ = trial.attacker.objective(shared, problem)(x)
            found.append(trial.attacker.published(jnp.asarray(True), shared, problem, x, value))
        return found

    np.testing.assert_allclose(compiled(evaluate), wanted, rtol=1e-9)


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"likelihood"}))  # which refuses `layers`
def test_layers_restrict_the_objective(small, objective):
    victim = tiny(small, (0, 1))
    candidate = np.random.default_rng(0).random((2, *SHAPE))
    ((value, _),) = at(replace(KNOWN, objective=objective, layers=("head",)), victim, candidate)
    g, u = (flat(gradient_of(victim, x=x)["head"]) for x in (candidate, truth_of(victim)))
    cosine = 1 - u @ g / np.linalg.norm(u) / np.linalg.norm(g)
    wanted = {"cosine": cosine, "l2": np.sum((g - u) ** 2), "l1": np.sum(np.abs(g - u))}
    assert value == pytest.approx(wanted[objective], rel=1e-9)
    ((whole, _),) = at(replace(KNOWN, objective=objective), victim, candidate)
    assert abs(whole - value) > 1e-4
    trial = trial_of(replace(KNOWN, layers=("head",)), victim)
    norm2 = compiled(lambda: trial.prepare(trial.shared(), job()).norm2)
    assert norm2 == pytest.approx(u @ u, rel=1e-9)


def test_the_criterion_of_cosine_attacks_is_its_own(small):
    victim = tiny(small, (0,))
    near, far = victim.images + 0.02, victim.images + 0.5 * np.random.default_rng(0).normal(size=victim.images.shape)
    sweep = Sweep(
        victim=victim,
        attacks=(replace(KNOWN, objective="cosine"),),
        seeds=2,
        starts={"image": np.stack([near, far])},
        snapshots=(),
        criteria=Criteria(objective=1.0, cosine=1e-3, relative_error=10.0),
    )
    rows = sorted(run_sweep(sweep, quiet=True).rows, key=lambda row: row["seed"])
    assert rows[0]["objective"] < 1e-3 < 3e-3 < rows[1]["objective"] < 1
    assert [row["status"] for row in rows] == ["converged", "iteration-limit"]
    assert [row["threshold_iterations"] for row in rows] == [0, None]
    assert all(row["relative_objective"] == row["objective"] for row in rows)
    ended: dict[str, Any] = {"ending": "objective", "relative_error": 0.1, "max_abs": 1.0}
    for threshold, status in ((1e-2, "converged"), (1e-4, "iteration-limit"), (None, "iteration-limit")):
        assert classify(**ended, objective=1e-3, criteria=Criteria(objective=1e-4), threshold=threshold) == status


# --- groups and boxes ---


@pytest.fixture(scope="module")
def group(data) -> tuple[Ran, list[Ran]]:
    """A group of three without consistency, and its members' starts as trials of their own."""
    victim = tiny(data, (0, 1))
    attack = replace(KNOWN, solver=Adam(lr=0.1, sign="hard", schedule="step"), iterations=8, tv=1e-3)
    together = run_trial(trial_of(replace(attack, group=3), victim, snapshots=(0, 4), start_seed=3))
    starts = np.asarray(together.trial.attacker.start(together.trial.shared(), job())["image"])
    alone = trial_of(attack, victim, starts={"image": starts}, snapshots=(0, 4))
    return together, [run_trial(alone, job(seed=seed)) for seed in range(3)]


def test_a_group_reports_its_best_member(group):
    together, alone = group
    traces = np.stack([ran.outcome.objective_trace for ran in alone])
    np.testing.assert_allclose(together.outcome.objective_trace, traces.min(axis=0), rtol=1e-9)
    best = np.argmin(traces, axis=0)
    assert len(set(best.tolist())) > 1  # not always the same one
    np.testing.assert_allclose(together.outcome.candidate, alone[best[-1]].outcome.candidate, atol=1e-9)
    for place, iteration in enumerate((0, 4)):
        wanted = alone[best[iteration]].outcome.snapshots[place]
        np.testing.assert_allclose(together.outcome.snapshots[place], wanted, atol=1e-9)
    assert together.outcome.objective == pytest.approx(traces[:, -1].min(), rel=1e-9)
    assert int(together.outcome.iterations) == 8


def test_a_group_can_report_its_mean(group):
    """Members count by the inverse square of their objectives; what is reported of the mean is its own objective."""
    together, alone = group
    attack = replace(together.trial.attack, group_mean=True)
    mean = run_trial(trial_of(attack, together.trial.victim, snapshots=(0, 4), start_seed=3))
    for iteration, images in (
        (4, [ran.outcome.snapshots[1] for ran in alone]),
        (8, [r.outcome.candidate for r in alone]),
    ):
        weights = np.array([float(ran.outcome.objective_trace[iteration]) for ran in alone]) ** -2.0
        wanted = np.tensordot(weights / weights.sum(), np.stack(images), 1)
        found = mean.outcome.candidate if iteration == 8 else mean.outcome.snapshots[1]
        np.testing.assert_allclose(found, wanted, atol=1e-9)
    start = {"image": np.asarray(mean.outcome.candidate)[None]}
    again = run_trial(
        trial_of(replace(attack, group=1, group_mean=False, iterations=1), mean.trial.victim, starts=start)
    )
    assert float(again.outcome.objective_trace[0]) == pytest.approx(float(mean.outcome.objective), rel=1e-9)
    assert int(mean.outcome.evaluations) == int(together.outcome.evaluations)
    assert mean.outcome.objective != pytest.approx(float(together.outcome.objective), rel=1e-3)


def test_the_mean_of_starts_is_of_one_image(data):
    attack = replace(IG, group=2, group_mean=True)
    with pytest.raises(InputError, match="`group_mean` is for one image: of 2 each start may find them in another"):
        check_attack(attack, tiny(data))
    check_attack(attack, tiny(data, (0,)))


def test_consistency_draws_members_together(group):
    together, _ = group
    agreeing = run_trial(trial_of(replace(together.trial.attack, consistency=1e3), together.trial.victim, start_seed=3))

    def spread(ran: Ran) -> float:
        return float(np.var(np.reshape(ran.states[-1].solver.x, (3, -1)), axis=0).mean())

    assert spread(agreeing) < 0.7 * spread(together)
    registering = replace(agreeing.trial.attack, register=1)
    assert spread(run_trial(trial_of(registering, together.trial.victim, start_seed=3))) < 0.7 * spread(together)


@pytest.mark.parametrize("normalisation", [None, NORMALISATION], ids=["pixels", "normalised"])
def test_the_box_keeps_pixels_and_leaves_labels(small, normalisation):
    """After every step; the start is as drawn. A learning rate of 2 would throw both far out."""
    victim = replace(tiny(small, (0, 1)), normalisation=normalisation)
    attack = replace(KNOWN, label="joint", solver=Adam(lr=2.0), iterations=3, box=True)
    ran = run_trial(trial_of(attack, victim, snapshots=(0, 1, 2, 3)))
    start, *later = ran.outcome.snapshots
    assert start.min() < -0.01
    for image in later:
        assert image.min() == pytest.approx(0, abs=1e-12)
        assert image.max() == pytest.approx(1, abs=1e-12)
    free = run_trial(trial_of(replace(attack, box=False, iterations=1), victim))
    boxed, unboxed = (one.trial.attacker.parts(one.states[1].solver.x) for one in (ran, free))  # after the first step
    low, high = (0.0, 1.0) if normalisation is None else (-2.0, 3.0)
    np.testing.assert_allclose(boxed["image"], np.clip(unboxed["image"], low, high), rtol=1e-12)
    assert np.mean(boxed["image"] != unboxed["image"]) > 0.05
    np.testing.assert_array_equal(boxed["label"], unboxed["label"])
    assert np.abs(boxed["label"]).max() > 1


@pytest.mark.parametrize("normalisation", [None, NORMALISATION], ids=["pixels", "normalised"])
@pytest.mark.parametrize("by", VARIABLES)
def test_a_change_of_variables_keeps_pixels(small, normalisation, by):
    """A given start is where it was given, the image's own gradient leaves nothing, and no solver leaves the box."""
    victim = replace(tiny(small, (0, 1)), normalisation=normalisation)
    attack = replace(KNOWN, solver=LBFGS(max_step=2.0), iterations=1, box=True, box_by=by)
    inside = np.clip(truth_of(victim), *(victim.to_input(jnp.full(1, end)) for end in (MARGIN, 1 - MARGIN)))
    given = trial_of(attack, victim, starts={"image": inside[None]}, snapshots=(0, 1))
    ran = run_trial(given)
    np.testing.assert_allclose(ran.outcome.snapshots[0], victim.to_pixels(inside), atol=1e-9)
    drawn = run_trial(trial_of(replace(attack, iterations=2), victim, snapshots=(0, 1, 2)))
    pixels = np.concatenate(drawn.outcome.snapshots)
    assert 0 <= pixels.min() < 0.1 < 0.9 < pixels.max() <= 1
    assert attack.minimiser.max_step == pytest.approx(2.0 / VARIABLES[by].steepest)
    u = jnp.linspace(-1.4, 1.4, 9)
    np.testing.assert_allclose(VARIABLES[by].from_pixels(VARIABLES[by].to_pixels(u)), u, atol=1e-12)
    slopes = jax.vmap(jax.grad(VARIABLES[by].to_pixels))(u)
    assert float(slopes.max()) == pytest.approx(VARIABLES[by].steepest)


def test_pixels_that_were_pushed_far_out_can_come_back():
    """Of the variables that solvers without projection have by default."""
    variables = VARIABLES[replace(KNOWN, box=True, solver=LBFGS()).bounds]
    slopes = jax.vmap(jax.grad(variables.to_pixels))(jnp.linspace(-100.0, 100.0, 2001))
    assert float(jnp.abs(slopes).mean()) > variables.steepest / 2


def test_which_box_a_solver_has():
    assert replace(KNOWN, box=True, solver=LBFGS()).bounds == "sine"
    assert IG.bounds == "projection"
    assert replace(KNOWN, box=True, box_by="sigmoid", solver=Adam()).bounds == "sigmoid"
    assert with_solver(IG, LBFGS()).bounds == ""
    assert with_solver(replace(IG, box_by="sigmoid"), LBFGS()).bounds == "sigmoid"
    assert "box_by" not in KNOWN.settings()
    assert "box_by" not in IG.settings()
    assert replace(KNOWN, box=True, solver=LBFGS()).settings()["box_by"] == "sine"  # older runs had the sigmoid


# --- normalisation ---


def test_the_network_sees_normalised_images_and_rows_are_in_pixels(small):
    victim = replace(tiny(small, (0, 1)), normalisation=NORMALISATION)
    x = truth_of(victim)
    assert x.min() < -1
    np.testing.assert_allclose(flat(update_of(victim)[0]), flat(gradient_of(victim, x=x)), rtol=1e-9)
    result = swept(victim, STILL, 1, starts={"image": x[None]})
    assert result.rows[0]["mse"] < 1e-12
    assert result.rows[0]["objective"] < 1e-12
    np.testing.assert_allclose(result.reconstructions()["candidate"][0], victim.images, atol=1e-6)


# --- analytic, statistics, surrogates ---


@pytest.mark.parametrize("fields", [{}, {"normalise": "cifar100", "defences": (Clip(norm=1e-3),)}], ids=str)
def test_the_analytic_attack_recovers_a_photo(fields):
    """In one evaluation, from a stack of dense layers; a multiple of the gradient does."""
    photos = load_dataset("photos")
    victim = make_victim(MLP(num_classes=10, hidden=(16, 8)), photos, [20, 41], network="per-image", **fields)
    result = swept(victim, ANALYTIC, 1)
    for row in result.rows:
        assert (row["evaluations"], row["iterations"], row["solver"], row["label_correct"]) == (1, 0, "none", True)
        assert row["success"] == ("defences" not in fields)
        assert row["mse"] < 1e-20
        assert row["psnr"] > 200
    assert fields or all(row["objective"] < 1e-20 for row in result.rows)


class Normed(nn.Module):
    """A convolution, BatchNorm, and a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.sigmoid(BatchNorm(train=True, name="norm")(nn.Conv(3, (4, 4), strides=(4, 4))(x)))
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


def test_the_statistics_prior_is_0_at_the_truth(small):
    model = Normed()
    victim = make_victim(model, small, [0, 1], network="shared", batch=2)
    candidate = np.random.default_rng(0).random((2, *SHAPE))
    trial = trial_of(replace(KNOWN, statistics=10.0, solver=LBFGS()), victim)

    def evaluate():
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        terms = [
            trial.attacker.values(shared, problem, {"image": jnp.asarray(x)}) for x in (truth_of(victim), candidate)
        ]
        _, slope = trial.attacker.objective(shared, problem)(jnp.ravel(truth_of(victim)))
        x, target = jnp.asarray(candidate), jax.nn.one_hot(victim.labels, CLASSES, dtype=float)
        found = observe(model, shared.params, x, target, victim.client.loss, statistics=True).statistics
        return terms, slope, statistics_distance(found, problem.statistics)

    ((at_truth, _), (total, published)), slope, apart = compiled(evaluate)
    assert at_truth < 1e-12
    assert np.abs(slope).max() < 1e-6
    assert apart > 0.01
    assert total == pytest.approx(published + 10 * apart, rel=1e-6)


def test_surrogates_are_other_images_of_the_data_set(small):
    victim = tiny(small, range(6), batch=1)
    assert victim.surrogates is not None
    assert victim.surrogates.shape == (6, *SHAPE)
    others = small.images([6, 7])[0]
    which = [[bool(np.array_equal(surrogate, other)) for other in others] for surrogate in victim.surrogates]
    assert np.sum(which, axis=1).tolist() == [1] * 6
    assert np.all(np.any(which, axis=0))  # not always the same one
    again = tiny(small, (4, 5, 0, 1, 2, 3), batch=2).surrogates  # they follow the first image, not the slot
    np.testing.assert_array_equal(again, victim.surrogates[[4, 0, 2]])
    assert tiny(small, range(8), batch=8).surrogates is None


# --- combinations that make no sense ---

REFUSED = {
    "surrogate of nothing": (
        {"init": "surrogate"},
        {"images": range(8)},
        "`start` surrogate needs an image of the data set that is not attacked;",
    ),
    "statistics after steps": (
        {"statistics": 1.0},
        {"client": Client(steps=1)},
        "`statistics` are those of one batch and one step; leave it 0 with local steps or several clients.",
    ),
    "statistics of clients": ({"statistics": 1.0}, {"client": Client(clients=2)}, "`statistics` are those of one"),
    "knowing of no defence": ({"knows_defence": True}, {}, "`knows_defence` leaves out the entries that a defence set"),
    "knowing what noise covers": (
        {"knows_defence": True},
        {"defences": (Prune(share=0.5), Gaussian(sigma=0.1))},
        "give one of prune, prune-layer, top-k, error-feedback, soteria, with no noise after it; or finds the noise of",
    ),
    "dummies among clients": (
        {"dummies": 3},
        {"client": Client(clients=2)},
        "`clients` must divide the images of an update, 3; got 2.",
    ),
    "dummies in epochs": (
        {"dummies": 4},
        {"client": Client(epochs=2, batch=1)},
        "`dummies` must make as many local steps as the client's 2 images in `client_epochs`; got 4.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_attacks_that_make_no_sense_against_a_victim(small, name):
    changes, fields, message = REFUSED[name]
    attack, victim = replace(KNOWN, **changes), tiny(small, **fields)
    for refuse in (lambda: check_attack(attack, victim), lambda: Sweep(victim=victim, attacks=(attack,), seeds=1)):
        with pytest.raises(InputError) as error:
            refuse()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_the_analytic_attack_reads_one_image(small):
    with pytest.raises(InputError, match=r"^`attack` analytic reads one image from one gradient; use --batch 1\.$"):
        check_attack(ANALYTIC, tiny(small))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "red"}, "`start` red needs pictures with three channels; these have 1."),
        ({"layers": ("haed",)}, "`layers` must be '*' or name layers of the network: first, head; got 'haed'. Did you"),
        ({"layers": ("head:0",)}, "`layers` must leave a layer with a weight above 0; got head:0."),
        ({"statistics": 1.0}, "`statistics` needs a model with BatchNorm; tiny has none. Leave it 0."),
        ({"label": "idlg", "dummies": 4}, "as many classes as images; got 4 images and 3 classes."),
    ],
    ids=str,
)
def test_what_only_tracing_shows_is_refused_before_anything_is_written(small, tmp_path, changes, message):
    sweep = Sweep(victim=tiny(small), attacks=(replace(KNOWN, **changes),), seeds=1)
    with pytest.raises(InputError) as error:
        run_sweep(sweep, tmp_path / "run", quiet=True)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_analytic_attack_needs_a_dense_first_layer(small, tmp_path):
    victim = lenet_victim(indices=[0], images=np.zeros((1, *SHAPE)), labels=np.array([0]), batch=1)
    sweep = Sweep(victim=victim, attacks=(ANALYTIC,), seeds=1)
    with pytest.raises(
        InputError, match=r"^analytic recovery needs a model whose first layer is dense, such as mlp; go"
    ):
        run_sweep(sweep, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_group_has_no_given_starts(small):
    attack = replace(KNOWN, group=2)
    with pytest.raises(InputError, match=r"^`starts` cannot be given to a `group`; leave one of them out\.$"):
        trial_of(attack, tiny(small), starts={"image": np.zeros((1, 2, *SHAPE))}).check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"defences": (DPSGD(clip=1.0, noise=0.0),), "client": Client(steps=1)},
            "`defence` dp-sgd clips the gradients of single images and needs one client that shares a gradient;",
        ),
        (
            {"defences": (DPSGD(clip=1.0, noise=0.0),), "client": Client(clients=2)},
            "`defence` dp-sgd clips the gradients of single images and needs one client that shares a gradient;",
        ),
        (
            {"defences": (Clip(norm=1.0), DPSGD(clip=1.0, noise=0.0))},
            "`defence` dp-sgd acts on the gradient of each image, before all others; got clip:1.0, dp-sgd:1.0:0.0.",
        ),
        ({"normalise": "cifar10"}, "`normalise` must fit images of 1 channels; got 3 means. Choose another, or none."),
        ({"normalise": "cifar"}, "`normalise` must be one of cifar10, cifar100, imagenet, mnist, none; got 'cifar'."),
        ({"defence_draw": "per-restart"}, "`defence_draw` must be one of per-trial, per-victim; got 'per-restart'."),
        ({"defence_seed": -1}, "`defence_seed` must be from 0 to 4294967295; got -1."),
        ({"batch": 0}, "`batch` must be above 0; got 0."),
    ],
    ids=str,
)
def test_victims_that_make_no_sense(small, fields, message):
    with pytest.raises(InputError) as error:
        tiny(small, **fields)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"box": True, "box_by": "projection", "solver": LBFGS()},
            "`box` by projection needs the solver adam: it is not a step of lbfgs. Leave `box` out",
        ),
        ({"box_by": "sigmoid"}, "`box_by` says how pixels are kept in [0, 1]; give --box True too."),
        ({"group": 2, "solver": LBFGS()}, "`group` needs the solver adam: it is not a step of lbfgs."),
        ({"register": 1}, "`register` moves images before the consensus of `consistency` is taken; give --consistency"),
        ({"register": -1}, "`register` must be"),
        (
            {"group_mean": True},
            "`group_mean` needs a `group` of at least 2 starts to take the mean of; give --group 4.",
        ),
        (
            {"group": 2, "group_mean": True, "box": True, "box_by": "sine", "solver": Adam()},
            "`group_mean` is a mean of pixels, weighted by distances; leave it out with the objective likelihood,",
        ),
        ({"consistency": 1.0}, "`consistency` needs a `group` of at least 2 starts that can agree; give --group 4."),
        ({"init": "analytic"}, "`start` analytic is the image itself and goes with the solver none, and the other way"),
        ({"solver": ANALYTIC.solver}, "`start` analytic is the image itself and goes with the solver none, and the"),
        ({"dummies": 0}, "`dummies` must be above 0; got 0."),
        ({"tv": -1.0}, "`tv` must be 0 or above; got -1.0."),
        ({"label": "knwon"}, "`label` must be one of bias, counts, counts-published, idlg, joint, known, row-minima,"),
        ({"objective": "l3"}, "`objective` must be one of cosine, l1, l2, likelihood; got 'l3'."),
    ],
    ids=str,
)
def test_attacks_that_make_no_sense(changes, message):
    with pytest.raises(InputError) as error:
        replace(KNOWN, **changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
