"""The client's loss is a seam: one that only this file knows runs from the victim to the rows."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak
from jaxleak.attacks import presets
from jaxleak.attacks.check import check_attack
from jaxleak.attacks.labels import LABEL_STRATEGIES
from jaxleak.attacks.trial import Job
from jaxleak.models import LeNet
from jaxleak.results.verdict import Criteria
from jaxleak.runs.run import run_sweep
from jaxleak.runs.sweep import Sweep
from jaxleak.threat.client import Client
from jaxleak.threat.loss import CROSS_ENTROPY, LOSSES, Loss, cross_entropy, loss_gradient
from jaxleak.threat.victim import Victim
from tests.fixtures import quick_jit

# Mean squared error to targets of +1 for the label and -1 for the others; an attacker optimises them within [-1, 1].
SQUARED = Loss(
    name="squared-error",
    value=lambda outputs, target: jnp.mean(jnp.square(outputs - target)),
    target=lambda labels, classes, dtype: 2 * jax.nn.one_hot(labels, classes, dtype=dtype) - 1,
    decode=jnp.tanh,
)


def victim_of(loss: Loss = SQUARED, **changes) -> Victim:
    settings = {
        "model": LeNet(num_classes=4),
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


def objectives(victim: Victim, attack) -> list[float]:
    sweep = Sweep(victim=victim, attacks=(attack,), seeds=3, criteria=Criteria())
    result = run_sweep(sweep, out=None, quiet=True)
    return [row["relative_objective"] for row in result.rows]


@pytest.mark.parametrize("label", ["joint", "known"])
@pytest.mark.parametrize("client", [{}, {"steps": 2, "lr": 0.1}], ids=["gradient", "steps"])
def test_an_attack_explains_an_update_of_another_loss(label, client):
    attack = replace(presets.DLG, label=label, iterations=60, stop_objective=0)
    assert min(objectives(victim_of(client=Client(loss=SQUARED, **client)), attack)) < 1e-6


def test_the_attackers_loss_is_the_clients():
    attack = replace(presets.DLG, label="known", iterations=1, stop_objective=0)
    victim = victim_of()
    trial = Sweep(victim=victim, attacks=(attack,), seeds=1, criteria=Criteria()).trial(attack)
    shared, job = trial.shared(), Job(*(jnp.zeros((), jnp.int32) for _ in range(4)))
    problem = quick_jit(trial.prepare)(shared, job)
    x, target = jnp.asarray(victim.images), victim.target(jnp.asarray([2]))
    np.testing.assert_array_equal(target, [[-1, -1, 1, -1]])
    wanted = quick_jit(lambda p: loss_gradient(victim.model, p, x, target, SQUARED))(problem.params)
    for found, leaf in zip(jax.tree.leaves(problem.update), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, leaf, rtol=1e-12, atol=1e-15)
    value, _ = quick_jit(lambda x: trial.attacker.objective(shared, problem)(x))(x.ravel())
    assert value < 1e-25  # at the private image


def test_rules_made_for_cross_entropy_refuse_another_loss_in_one_line():
    for name, rule in LABEL_STRATEGIES.items():
        attack = replace(presets.DLG, label=name)
        if rule.holds_for(SQUARED.name):
            check_attack(attack, victim_of())
            continue
        with pytest.raises(jaxleak.InputError, match=rf"`label` {name} .* squared-error.* Use label joint, known\.$"):
            check_attack(attack, victim_of())
        check_attack(attack, victim_of(CROSS_ENTROPY))
    with pytest.raises(jaxleak.InputError, match="`label_term`"):
        check_attack(replace(presets.DLG, label_term=0.1), victim_of())


def test_settings_name_a_loss_that_is_not_cross_entropy():
    assert victim_of().settings()["client"]["loss"] == "squared-error"
    assert "loss" not in victim_of(CROSS_ENTROPY).settings()["client"]  # as in runs before there were others
    assert victim_of().key is None  # what its functions do is not known
    assert LOSSES["cross-entropy"].value is cross_entropy
