"""What stands for the private data is a seam: vectors, which only this file knows, run from the victim to outcomes."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks import candidate as candidates
from jaxleak.attacks import presets
from jaxleak.attacks.candidate import Candidate
from jaxleak.attacks.trial import ENDINGS, Job, Trial
from jaxleak.engine import Engine
from jaxleak.results import measures
from jaxleak.results.store.run import Run
from jaxleak.runs.run import run_sweep
from jaxleak.runs.sweep import Sweep
from jaxleak.solvers import Adam
from jaxleak.threat.victim import Victim
from tests.fixtures import quick_jit

LENGTH, CLASSES = 6, 3
TRUTH = np.random.default_rng(3).uniform(-1, 1, (2, LENGTH))


class Vector(Candidate):
    """Measurements [d, n] in -1..1, which the network is given in tenths."""

    @property
    def shapes(self):
        return {"measurements": (self.count, *self.victim.shape)}

    def start(self, attack, key, surrogate, update):
        return {"measurements": 10 * jax.random.uniform(key, self.shapes["measurements"], float, -1, 1)}

    def to_input(self, parts):
        return parts["measurements"]

    def to_truth(self, parts, book):
        return parts["measurements"] / 10

    def project(self, parts):
        return {**parts, "measurements": jnp.clip(parts["measurements"], -10, 10)}

    def priors(self, weights, parts, mixture=()):
        if "norm" in weights:
            yield weights["norm"] * jnp.mean(jnp.square(parts["measurements"]))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8, name="dense1")(x / 10))
        return nn.Dense(CLASSES, name="head")(x)


class OfVectors(Victim):
    """Its network is given tenths."""

    def to_input(self, pixels):
        return pixels * 10


def errors(found, truth):
    return np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth, axis=1)


def measured(found, truth):
    apart = np.abs(found - truth)
    return {"mse": np.mean(apart**2, axis=1), "relative_error": errors(found, truth), "max_abs": apart.max(axis=1)}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(candidates.CANDIDATES, "vector", Vector)
    monkeypatch.setitem(measures.MEASURES, "vector", measures.Measures(measured, errors))


def victim_of(**changes) -> Victim:
    settings = {
        "model": Network(),
        "model_name": "network",
        "dataset": "measurements",
        "split": "all",
        "indices": [0, 1],
        "images": TRUTH,
        "labels": np.array([2, 0]),
        "num_classes": CLASSES,
        "modality": "vector",
    }
    return OfVectors(**settings | changes)


def outcomes(trial: Trial, seeds: int = 4):
    """Of all trials, and their slots, as the engine hands them over."""
    updates = trial.victim.updates
    slot, seed = (grid.ravel().astype(np.int32) for grid in np.mgrid[:updates, :seeds])
    jobs = Job(np.arange(updates * seeds, dtype=np.int32), slot, slot, seed)
    done = []
    Engine(trial, trial.shared(), lanes=4).run(jobs, done.append)
    slots = np.concatenate([finished.jobs.slot for finished in done])
    return slots, jax.tree.map(lambda *leaves: np.concatenate(leaves), *(finished.outcomes for finished in done))


@pytest.mark.parametrize("label", ["joint", "bias"])
def test_dlg_rebuilds_vectors(label):
    attack = replace(presets.DLG, label=label, stop_objective=1e-12)
    trial = Trial(attack=attack, victim=victim_of(), threshold=1e-6, snapshots=(0, 1))
    trial.check()
    slots, found = outcomes(trial)
    assert found.candidate.shape == (8, 1, LENGTH)
    assert found.snapshots.shape == (8, 2, 1, LENGTH)
    errors = np.abs(found.candidate[:, 0] - TRUTH[slots]).max(axis=1)
    right = np.array(ENDINGS)[found.ending] == "objective"
    assert right.sum() >= 4
    assert errors[right].max() < 1e-3
    final = found.mse_trace[np.arange(8), found.iterations]
    np.testing.assert_allclose(final, np.mean(np.square(found.candidate[:, 0] - TRUTH[slots]), axis=1), rtol=1e-9)
    if label == "bias":
        np.testing.assert_array_equal(found.label_found[:, 0], np.array([2, 0])[slots])


def test_a_batch_is_measured_by_its_nearest_vectors():
    attack = replace(presets.DLG, label="known", stop_objective=1e-14, iterations=600)
    slots, found = outcomes(Trial(attack=attack, victim=victim_of(batch=2), threshold=1e-6))
    assert found.candidate.shape == (4, 2, LENGTH)
    assert not slots.any()
    assert found.mse_trace[np.arange(4), found.iterations].min() < 1e-4


@pytest.mark.parametrize("batch", [1, 2])
def test_a_sweep_of_vectors_has_rows_and_a_success_rate(batch, tmp_path):
    attack = replace(presets.DLG, label="known", stop_objective=1e-12, iterations=600)
    result = run_sweep(Sweep(victim=victim_of(batch=batch), attacks=(attack,), seeds=4), tmp_path / "run", quiet=True)
    again = Run.open(tmp_path / "run")
    rows = again.rows()
    assert len(rows) == 8 // batch
    assert all(row["psnr"] is None and row["ssim"] is None for row in rows)
    won = [row for row in rows if row["success"]]
    assert won
    assert max(row["relative_error"] for row in won) < 0.2
    arrays = again.arrays(["trial", "candidate", "snapshots"])
    assert arrays["candidate"].shape == (8 // batch, batch, LENGTH)
    assert arrays["snapshots"].dtype.kind == "f"
    best = min(rows, key=lambda row: row["mse"])
    found = arrays["candidate"][arrays["trial"].tolist().index(best["trial"])]
    np.testing.assert_allclose(np.mean((found - TRUTH[best["image"] :][:batch]) ** 2), best["mse"], atol=1e-6)
    assert result.summary["groups"][-1]["successes"] == len(won)


def test_box_and_priors_are_the_candidates():
    # One step of Adam is as large as its rate: 20, twice as far as the box.
    solver = Adam(lr=20.0)
    attack = replace(presets.IG, label="known", solver=solver, tv=0.0, iterations=3)
    boxed = outcomes(Trial(attack=attack, victim=victim_of(), threshold=0.0))[1]
    assert np.abs(boxed.candidate).max() == 1
    free = outcomes(Trial(attack=replace(attack, box=False), victim=victim_of(), threshold=0.0))[1]
    assert np.abs(free.candidate).max() > 1.5

    def at_start(norm):
        trial = Trial(attack=replace(presets.DLG, label="known", norm=norm), victim=victim_of(), threshold=0.0)
        shared, job = trial.shared(), Job(*(jnp.zeros((), jnp.int32) for _ in range(4)))
        problem = trial.prepare(shared, job)
        return trial.attacker.values(shared, problem, trial.attacker.start(shared, job)), trial.attacker.start(
            shared, job
        )

    (plain, _), (pulled, start) = quick_jit(lambda: (at_start(0.0), at_start(2.0)))()
    np.testing.assert_allclose(pulled.minimised - plain.minimised, 2 * np.mean(np.square(start["measurements"])))
    assert pulled.published == plain.published == plain.minimised
