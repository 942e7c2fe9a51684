"""Networks trained for a run are kept in its directory, and a resumed run takes them from there."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxleak import InputError, Run, Sweep, make_victim, run_sweep
from jaxleak.data import Dataset
from jaxleak.threat import from_dataset
from jaxleak.threat.victim import Victim
from tests.trainings import MODEL, SETTINGS, easy
from tests.trials import KNOWN, flat


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return easy(tmp_path_factory.mktemp("data") / "easy.npz")


def trained(data: Dataset, checkpoint: Path | None = None, **changes) -> Victim:
    return make_victim(MODEL, data, [3, 8], checkpoint=checkpoint, **{**SETTINGS, "trained_steps": 3, **changes})


def swept(victim: Victim, out: Path):
    return run_sweep(Sweep(victim=victim, attacks=(KNOWN,), seeds=1, snapshots=()), out, quiet=True)


@pytest.mark.parametrize("network", ["shared", "per-image"])
def test_a_resumed_run_has_the_networks_it_began_with(data, tmp_path, network, monkeypatch):
    first = trained(data, network=network)
    whole = swept(first, tmp_path / "run")

    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(from_dataset, "train_network", never)
    again = trained(data, tmp_path / "run", network=network)
    assert np.array_equal(flat(again.params), flat(first.params))
    assert again.settings() == first.settings()
    assert again.training == first.training
    assert swept(again, tmp_path / "run").rows == whole.rows


def test_the_file_says_how_the_network_was_trained(data, tmp_path):
    victim = trained(data)
    swept(victim, tmp_path / "run")
    with safe_open(tmp_path / "run/trained-0.safetensors", "np") as file:
        told = json.loads(file.metadata()["training"])
    assert victim.training is not None
    assert told["loss"] == victim.training["loss"][0]
    assert len(told["loss"]) == 3
    assert told["accuracy"] == pytest.approx(victim.training["accuracy"][0], nan_ok=True)


@pytest.mark.parametrize("changes", [{"trained_steps": 4}, {"train_lr": 0.01}, {"network_seed": 1}])
def test_another_training_is_done_anew(data, tmp_path, changes):
    first = trained(data)
    swept(first, tmp_path / "run")
    other = trained(data, tmp_path / "run", **changes)
    assert not np.array_equal(flat(other.params), flat(first.params))
    assert np.array_equal(flat(other.params), flat(trained(data, **changes).params))


def test_a_damaged_file_is_no_checkpoint(data, tmp_path):
    first = trained(data)
    swept(first, tmp_path / "run")
    (tmp_path / "run/trained-0.safetensors").write_bytes(b"damaged")
    again = trained(data, tmp_path / "run")
    assert np.array_equal(flat(again.params), flat(first.params))
    assert jax.tree.structure(again.params) == jax.tree.structure(first.params)
    swept(again, tmp_path / "run")
    assert load_file(tmp_path / "run/trained-0.safetensors"), "the damaged file is replaced"


def test_a_training_that_diverges_is_said(data):
    with pytest.raises(InputError, match=r"`train_lr` 1e\+308 makes the loss \S+ at step \d+ of training"):
        trained(data, train_optimizer="sgd", train_lr=1e308)


def test_a_directory_with_other_settings_is_refused_before_training(data, tmp_path):
    swept(trained(data), tmp_path / "run")
    settings = Run.open(tmp_path / "run").settings
    later = ("victim.weights",)
    Run.check(tmp_path / "run", settings, later)
    Run.check(tmp_path / "run", {**settings, "victim": {**settings["victim"], "weights": None}}, later)
    with pytest.raises(InputError, match="other settings: seeds: 1 in the directory, 2 asked"):
        Run.check(tmp_path / "run", {**settings, "seeds": 2}, later)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/text").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a run directory"):
        Run.check(tmp_path / "notes", settings, later)
    Run.check(tmp_path / "new", settings, later)
    assert not (tmp_path / "new").exists()
