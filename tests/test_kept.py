"""A program that was compiled serves every trial that computes the same, and no other."""

import gc
import weakref
from dataclasses import dataclass, fields, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks import labels, presets
from jaxleak.attacks.trial import Trial
from jaxleak.engine import Engine, programs
from jaxleak.models import MLP, LeNet
from jaxleak.models.own import adapt_model
from jaxleak.runs.run import run_sweep
from jaxleak.runs.sweep import Sweep
from jaxleak.solvers import LBFGS, Adam
from jaxleak.threat.client import Client
from jaxleak.threat.defences import Gaussian, Prune
from jaxleak.threat.victim import ARGUMENTS, Victim
from tests.trials import job

ATTACK = replace(presets.IDLG, iterations=3)


def victim_of(**changes) -> Victim:
    settings = {
        "model": LeNet(num_classes=4),
        "model_name": "lenet",
        "dataset": "random",
        "split": "all",
        "indices": [5, 9],
        "images": np.random.default_rng(0).random((2, 12, 12, 1)),
        "labels": np.array([1, 3]),
        "num_classes": 4,
    }
    return Victim(**settings | changes)


def trial_of(victim: Victim | None = None, attack=ATTACK, **changes) -> Trial:
    return Trial(**{"attack": attack, "victim": victim or victim_of(), "threshold": 1e-3, **changes})


def ran(trial: Trial) -> tuple[Engine, dict[int, float]]:
    """The engine after both updates' trials, and the objective of each."""
    objectives = {}

    def note(finished):
        objectives.update(zip(finished.jobs.trial.tolist(), finished.outcomes.objective.tolist(), strict=True))

    jobs = jax.tree.map(lambda *leaves: np.stack(leaves), *(job(number, number, number) for number in range(2)))
    engine = Engine(trial, trial.shared(), lanes=2)
    engine.run(jobs, note)
    return engine, objectives


def test_an_equal_trial_compiles_nothing_and_computes_the_same(monkeypatch):
    first, _ = ran(trial_of())
    other = victim_of(images=np.random.default_rng(1).random((2, 12, 12, 1)), network_seed=3)
    with monkeypatch.context() as patched:
        patched.setattr(programs.Programs, "__init__", lambda *_: pytest.fail("compiled"))
        second, kept = ran(trial_of(other))
    assert second.trace(None) is first.trace(None)
    programs.forget_kept()
    anew, objectives = ran(trial_of(other))
    assert anew.trace(None) is not first.trace(None)
    assert kept == objectives


def as_text(trial: Trial) -> str:
    shared = trial.shared()

    def all_of_it(shared, job):
        problem = trial.prepare(shared, job)
        return trial.outcome(problem, trial.step(shared, problem, trial.init(shared, problem, job)))

    return str(jax.make_jaxpr(all_of_it)(shared, job()))


def test_what_the_key_leaves_out_is_not_in_the_program():
    one = victim_of(params=None, network="per-image", surrogates=np.zeros((2, 12, 12, 1)))
    arguments = {
        "images": np.ones((2, 12, 12, 1)),
        "labels": np.array([0, 2]),
        "targets": None,
        "indices": [3, 4],
        "surrogates": np.ones((2, 12, 12, 1)),
        "network_seed": 8,
        "defence_seed": 9,
        "training": {"loss": [], "accuracy": []},
        "class_names": ("a", "b", "c", "d"),
        "weights_name": "other",
        "dataset": "other",
        "split": "other",
    }
    # Whether these are there is in the shared types.
    assert set(ARGUMENTS) - set(arguments) == {"params", "update", "mixture"}
    attack = replace(ATTACK, init="surrogate")
    other = trial_of(replace(one, **arguments), attack, start_seed=7)
    assert other.key == trial_of(one, attack).key
    assert as_text(other) == as_text(trial_of(one, attack))
    given = [
        replace(one, params=jax.tree.map(lambda leaf, change=change: jnp.stack([leaf, leaf + change]), params_of(one)))
        for change in (1, 2)
    ]
    assert as_text(trial_of(given[0])) == as_text(trial_of(given[1]))
    assert len({named.name for named in fields(Victim)} & set(ARGUMENTS)) == len(ARGUMENTS)


def params_of(victim: Victim):
    return victim.model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 1)))["params"]


OTHER_VICTIMS = {
    "model": {"model": LeNet(num_classes=4, activation=nn.softplus)},
    "architecture": {"model": MLP(num_classes=4), "model_name": "mlp"},
    "normalisation": {"normalisation": ((0.5,), (0.5,))},
    "batch": {"batch": 2},
    "client": {"client": Client(steps=2)},
    "learning rate": {"client": Client(steps=2, lr=0.5)},
    "defences": {"defences": (Gaussian(sigma=0.1),)},
    "strength": {"defences": (Gaussian(sigma=0.2),)},
    "defence draw": {"defences": (Gaussian(sigma=0.1),), "defence_draw": "per-trial"},
    "network": {"network": "per-image"},
    "steps before": {"trained_steps": 2, "trained_on": "own"},
    "classes": {"num_classes": 5},
}
OTHER_ATTACKS = {
    "label": {"label": "bias"},
    "label as zeros": {"label": "joint"},
    "objective": {"objective": "cosine"},
    "scale": {"scale": "relative"},
    "layers": {"layers": ("conv1",)},
    "total variation": {"tv": 0.1},
    "iterations": {"iterations": 4},
    "stop": {"stop_objective": 1e-9},
    "relative stop": {"stop_relative": 1e-9},
    "history": {"solver": LBFGS(history=7)},
    "solver": {"solver": Adam()},
    "rate": {"solver": Adam(lr=0.3)},
}


def test_every_setting_has_a_key_of_its_own():
    trials = [
        trial_of(),
        *(trial_of(victim_of(**changes)) for changes in OTHER_VICTIMS.values()),
        *(trial_of(attack=replace(ATTACK, **changes)) for changes in OTHER_ATTACKS.values()),
        trial_of(threshold=1e-4),
        trial_of(snapshots=(0, 1)),
    ]
    keys = [trial.key for trial in trials]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert trial_of(attack=replace(ATTACK, name="mine")).key == keys[0]


def test_the_kernels_and_jaxs_settings_count(monkeypatch):
    trial = trial_of()
    kept = programs.traced_for(trial, *describe(trial))
    assert programs.traced_for(trial_of(), *describe(trial)) is kept
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "bfloat16")
    try:
        assert programs.traced_for(trial_of(), *describe(trial)) is not kept
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert programs.traced_for(trial_of(), *describe(trial)) is kept
    monkeypatch.setenv("JAXLEAK_NATIVE", "0")
    assert trial_of().key != trial.key


def describe(trial: Trial):
    types = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), trial.shared())
    return types, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), job())


@dataclass(frozen=True, kw_only=True)
class OwnDefence(Prune):
    """Could ask the time of day."""


class OwnModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(x.reshape(len(x), -1))


def test_nothing_is_kept_of_code_that_is_not_ours():
    for changes in (
        {"model": OwnModel()},
        {"model": LeNet(num_classes=4, activation=lambda x: x)},
        {"defences": (OwnDefence(share=0.5),)},
        {"network": "shared", "batch_stats": {}},
        {"model": adapt_model(OwnModel(), (12, 12, 1))},
    ):
        assert trial_of(victim_of(**changes)).key is None, changes
    engines = [ran(trial_of(victim_of(model=OwnModel())))[0] for _ in range(2)]
    assert engines[0].trace(None) is not engines[1].trace(None)


class OtherVictim(Victim):
    """Could do anything in its methods."""

    def to_input(self, pixels):
        return 1 - pixels


def test_a_subclass_is_not_its_base(monkeypatch):
    settings = {field.name: getattr(victim_of(), field.name) for field in fields(Victim)}
    assert trial_of(OtherVictim(**settings)).key is None
    before = trial_of().key
    monkeypatch.setitem(labels.LABEL_STRATEGIES, "idlg", labels.LABEL_STRATEGIES["bias"])
    assert trial_of().key != before


def test_what_is_kept_holds_no_private_data():
    """Nor weights: a kept program may outlive its run by hours."""
    programs.forget_kept()
    victim = victim_of(
        network="per-image", params=jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params_of(victim_of()))
    )
    trial = trial_of(victim)
    bare = trial.without_data()
    assert (bare.key, as_types(bare.shared())) == (trial.key, as_types(trial.shared()))
    assert as_text(bare) == as_text(trial)
    images, weights = (weakref.ref(array) for array in (victim.images, jax.tree.leaves(victim.params)[0]))
    sweep = Sweep(victim=victim, attacks=(ATTACK,), seeds=1, snapshots=())
    assert len(run_sweep(sweep, quiet=True).rows) == 2
    assert len(programs._kept) == 1
    del sweep, victim, trial, bare
    gc.collect()
    assert images() is None
    assert weights() is None


def as_types(shared):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shared)


def test_the_last_ones_used_are_kept():
    programs.forget_kept()
    trials = [trial_of(snapshots=(number,)) for number in range(programs.KEPT + 1)]
    types = describe(trials[0])
    traced = [programs.traced_for(trial, *types) for trial in trials]
    assert programs.traced_for(trials[1], *types) is traced[1]
    assert programs.traced_for(trials[0], *types) is not traced[0]
    assert programs.traced_for(trials[1], *types) is traced[1]
