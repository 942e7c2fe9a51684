"""The attacker, each function by its definition: keys, labels in other units, points of a line, groups, scales."""

from dataclasses import FrozenInstanceError, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import Adam, make_victim
from jaxleak.attacks.attacker import PLACE, Attacker
from jaxleak.attacks.objectives import label_distance
from jaxleak.attacks.presets import DLG, SME
from jaxleak.attacks.priors import total_variation
from jaxleak.attacks.trial import Trial
from jaxleak.threat.client import Client, client_update
from jaxleak.threat.loss import CrossEntropy, loss_gradient
from tests.sweeps import CLASSES, Tiny
from tests.trials import KNOWN, compiled, flat, job, trial_of, truth_of


def victim_of(data, images=(0,), **changes):
    settings = {"network": "shared", "batch": len(images)} | changes
    return make_victim(Tiny(CLASSES), data, list(images), **settings)


def test_an_attacker_and_a_trial_are_told_by_names_and_are_themselves(data):
    """Arrays in them cannot be compared, so no two are equal; programs are found by `Trial.key`."""
    fields = {"attack": KNOWN, "victim": victim_of(data)}
    for kind, more in ((Attacker, {}), (Trial, {"threshold": 1e-4})):
        with pytest.raises(TypeError):
            kind(*fields.values(), *more.values())
        one, other = (kind(**fields, **more) for _ in range(2))
        assert one != other
        with pytest.raises(FrozenInstanceError):
            one.attack = None


def test_what_is_drawn_has_a_key_of_its_own(data):
    """Keys decide which start a seed has, in later versions too: 0 images, 1 labels, 2 the solver, 3 on a group."""
    trial, together = (trial_of(replace(KNOWN, label="joint", group=n), victim_of(data)) for n in (1, 2))

    def look():
        shared = trial.shared()
        key = trial.attacker.key(shared, job(seed=4, image=1))
        candidate, image, label = trial.attacker.candidate, *(jax.random.fold_in(key, n) for n in (0, 1))
        wanted = candidate.start(KNOWN, image, (), None)
        wanted["label"] = candidate.label_start(trial.attack, label, None)
        first = jax.random.fold_in(jax.random.fold_in(key, 3), 0)
        noise = [trial.attacker.noise_key(shared, job(seed=4, image=1)), jax.random.fold_in(key, 2)]
        return (
            (trial.attacker.start(shared, job(seed=4, image=1)), wanted),
            (
                together.attacker.start(shared, job(seed=4, image=1))["image"][0],
                candidate.start(KNOWN, first, (), None),
            ),
            [jax.random.key_data(one) for one in noise],
        )

    alone, of_group, noise = compiled(look)
    for name, array in alone[1].items():
        np.testing.assert_array_equal(alone[0][name], array)
    np.testing.assert_array_equal(of_group[0], of_group[1]["image"])
    np.testing.assert_array_equal(*noise)


def test_labels_that_are_optimised_are_zeros_until_they_are_found(data):
    """One for each dummy: a class, or a target of several numbers."""
    attacker = trial_of(replace(KNOWN, label="joint", dummies=3), victim_of(data, (0, 1))).attacker
    for shape in ((2,), (2, 4)):
        found = attacker.labels((), (), np.ones(shape))
        assert found.shape == (3, *shape[1:])
        assert not found.any()


@pytest.mark.parametrize(
    ("settings", "images"),
    [({}, 4), ({"clients": 2}, 2), ({"steps": 3, "batch": 3}, 3), ({"steps": 2, "clients": 4}, 1)],
    ids=str,
)
def test_units_of_a_gradient_are_those_of_the_images_of_a_step(data, monkeypatch, settings, images):
    seen = []

    def looked_at(update, logits, loss, count):
        seen.append(count)
        return update, logits

    monkeypatch.setattr("jaxleak.attacks.attacker.class_gradient", looked_at)
    trial = trial_of(replace(KNOWN, label="bias"), victim_of(data, (0, 1, 2, 3), client=Client(**settings)))
    trial.attacker.labels({"head": {"bias": np.zeros(CLASSES)}}, {"head": {"bias": np.arange(4.0)}}, np.zeros(4))
    assert seen == [images]


@pytest.mark.parametrize("settings", [{}, {"steps": 2, "lr": 1e-3}, {"steps": 2, "lr": 1e-3, "batch": 2}], ids=str)
def test_labels_of_a_sum_are_those_of_the_mean(data, settings):
    """Rules that count labels need the units of the gradient: of a sum over four images it is four times as large."""
    found = []
    for loss in (CrossEntropy(), CrossEntropy(reduction="sum")):
        trial = trial_of(
            replace(KNOWN, label="counts"), victim_of(data, (0, 3, 6, 4), client=Client(**settings, loss=loss))
        )
        found.append(compiled(lambda trial=trial: trial.prepare(trial.shared(), job()).label))
    assert sorted(found[0]) == sorted(found[1]) == [0, 0, 0, 1]


def test_a_point_of_the_surrogate_model_is_on_the_line(data):
    """Half of the way and PLACE for each unit of its variable."""
    trial = trial_of(replace(SME, label="known", tv=0.0), victim_of(data, client=Client(steps=2, lr=0.5)))
    x = jnp.asarray(np.random.default_rng(0).random((1, 8, 8, 1)))

    def look():
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        found = trial.attacker.values(shared, problem, {"image": x, "place": jnp.asarray(7.0)}).published
        there = jax.tree.map(lambda before, fell: before - (0.5 + 7 * PLACE) * fell, shared.params, problem.shared)
        return found, loss_gradient(trial.victim.model, there, x, jnp.eye(CLASSES)[:1]), problem.shared

    found, gradient, update = compiled(look)
    g, u = flat(gradient), flat(update)
    assert found == pytest.approx(1 - g @ u / np.linalg.norm(g) / np.linalg.norm(u), rel=1e-9)


def test_a_solver_that_draws_has_its_key_in_the_problem(data):
    still, drawing = (trial_of(replace(KNOWN, solver=Adam(langevin=n)), victim_of(data)) for n in (0.0, 0.1))

    def look():
        shared = still.shared()
        problems = [trial.prepare(shared, job(seed=2)).noise for trial in (still, drawing)]
        return problems, jax.random.key_data(still.attacker.noise_key(shared, job(seed=2)))

    (nothing, found), key = compiled(look)
    assert nothing == ()
    np.testing.assert_array_equal(found, key)


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ((2.0, 0.0, 1.0), (0, 1, 0)),
        ((1.0, 1.0, 2.0), (4 / 9, 4 / 9, 1 / 9)),
        ((np.nan, 1.0, np.inf), (0, 1, 0)),
    ],
)
def test_members_weigh_by_their_objectives(data, values, weights):
    trial = trial_of(replace(KNOWN, group=3, group_mean=True), victim_of(data))
    images = np.random.default_rng(0).random((3, 64))

    def look():
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        return trial.attacker.reported(jnp.asarray(True), shared, problem, images.ravel(), jnp.asarray(values))[0]

    np.testing.assert_allclose(compiled(look), weights @ images, rtol=1e-12)


def test_the_cosine_has_no_units(data):
    """So the published cosine is the one that is minimised, whatever factor is common to all tensors."""
    trial = trial_of(replace(DLG, label="known", objective="cosine", scale="relative"), victim_of(data))

    def look():
        problem = trial.prepare(trial.shared(), job())
        return trial.attacker.published(jnp.asarray(True), (), problem, (), jnp.asarray(0.25))

    assert compiled(look) == 0.25


def test_a_distance_of_zero_has_the_logarithm_of_its_rounding(data):
    """In the units of the squared distance, where that is not scaled."""
    cases = [("l2", "none"), ("l2", "relative"), ("cosine", "none")]
    attacks = [replace(KNOWN, objective=objective, scale=scale, logarithm=True) for objective, scale in cases]
    trials = [trial_of(attack, victim_of(data)) for attack in attacks]

    def look():
        problems = [trial.prepare(trial.shared(), job()) for trial in trials]
        found = [
            trial.attacker.values(trial.shared(), problem, {"image": truth_of(trial.victim)}).minimised
            for trial, problem in zip(trials, problems, strict=True)
        ]
        return found, problems[0].norm2

    found, norm2 = compiled(look)
    assert not 0.5 < norm2 < 2
    eps = np.finfo(float).eps
    np.testing.assert_allclose(found, np.log([eps * norm2, eps, eps]), rtol=1e-9)


@pytest.mark.parametrize("client", [Client(), Client(steps=2, lr=0.5)], ids=["gradient", "steps"])
def test_terms_are_added_by_their_weights(data, client):
    """TAG's sum of magnitudes, CPL's label term and total variation, beside what the client would share."""
    trial = trial_of(replace(KNOWN, l1=0.3, label_term=0.7, tv=0.2), victim_of(data, client=client))
    x, target = np.random.default_rng(0).random((1, 8, 8, 1)), jnp.eye(CLASSES)[:1]

    def look():
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        found = trial.attacker.values(shared, problem, {"image": x})
        model, params = trial.victim.model, shared.params
        shown = (
            client_update(client, model, params, x, target)
            if client.trains
            else loss_gradient(model, params, x, target)
        )
        apart = label_distance(model.apply({"params": params}, x), target)
        return found, jax.tree.map(jnp.subtract, shown, problem.update), apart, total_variation(jnp.asarray(x))

    (minimised, published), difference, label_term, variation = compiled(look)
    assert published == pytest.approx(np.sum(flat(difference) ** 2), rel=1e-9)
    assert min(label_term, variation) > 0.1
    terms = 0.3 * np.sum(np.abs(flat(difference))) + 0.7 * label_term + 0.2 * variation
    assert minimised == pytest.approx(published + terms, rel=1e-9)
