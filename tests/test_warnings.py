"""Warnings: each where it should be and nowhere else, in summary.json and on the screen."""

import json
import warnings
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import DLG, IDLG, Adam, make_victim
from jaxleak.attacks.presets import ANALYTIC, Attack
from jaxleak.data import Dataset
from jaxleak.models import MLP, ResNet
from jaxleak.models.resnet import BasicBlock
from jaxleak.results.result import Result
from jaxleak.results.summary import warnings_after
from jaxleak.results.verdict import Criteria
from jaxleak.runs.run import Sweep, run_sweep
from jaxleak.runs.warnings import warnings_before
from jaxleak.threat.client import Client
from jaxleak.threat.defences import DPSGD, Clip, Gaussian, Prune
from jaxleak.threat.victim import Victim
from tests.commands import call
from tests.sweeps import CLASSES, Tiny

QUICK = replace(IDLG, name="quick", solver=Adam(), iterations=2)
BATCHNORM = "BatchNorm in train mode sees one image at a time"
DRAWN = "the defence is drawn anew for each restart"
CONSTANT = "is the same for every seed"
HIDDEN = "hidden statistics change nothing"
KINDS = (BATCHNORM, DRAWN, CONSTANT, HIDDEN)


@pytest.fixture
def small(data) -> Dataset:
    return data


def kinds(found: list[str]) -> set[str]:
    """Which warnings these are; every one is of one kind, and one line."""
    assert all("\n" not in text for text in found)
    assert all(sum(kind in text for kind in KINDS) == 1 for text in found)
    return {kind for text in found for kind in KINDS if kind in text}


# --- before ---


def resnet(**fields) -> ResNet:
    return ResNet(num_classes=CLASSES, stage_sizes=(1,), block=BasicBlock, width=2, **fields)


@pytest.mark.parametrize(
    ("model", "fields", "warned"),
    [
        (resnet(), {}, True),
        (resnet(), {"batch": 2}, False),
        (resnet(train=False), {}, False),
        (resnet(norm="group", groups=2), {}, False),
        (Tiny(CLASSES), {}, False),
        (resnet(), {"batch": 2, "client": Client(clients=2)}, True),
        (resnet(), {"batch": 4, "client": Client(clients=2)}, False),
        (resnet(), {"batch": 2, "client": Client(steps=2, batch=1)}, True),
        (resnet(), {"batch": 4, "client": Client(steps=2, batch=2)}, False),
        (resnet(), {"batch": 2, "defences": (DPSGD(clip=1.0, noise=0.0),)}, True),
    ],
)
def test_batchnorm_of_one_image(small, model, fields, warned):
    victim = make_victim(model, small, [0, 1, 2, 3], **fields)
    assert kinds(warnings_before(victim, [DLG], 2)) == ({BATCHNORM} if warned else set())


@pytest.mark.parametrize(
    ("defences", "draw", "warned"),
    [
        ((Gaussian(sigma=0.1),), "per-trial", True),
        ((Prune(share=0.1), Gaussian(sigma=0.1)), "per-trial", True),
        ((Gaussian(sigma=0.1),), "per-victim", False),
        ((Prune(share=0.1), Clip(norm=1.0)), "per-trial", False),
        ((), "per-trial", False),
    ],
    ids=str,
)
def test_defences_drawn_per_restart(small, defences, draw, warned):
    victim = make_victim(Tiny(CLASSES), small, [0], defences=defences, defence_draw=draw)
    assert kinds(warnings_before(victim, [DLG], 2)) == ({DRAWN} if warned else set())


@pytest.mark.parametrize(
    ("attack", "fields", "warned"),
    [
        *[
            (replace(QUICK, init=init), {}, warned)
            for init, warned in [
                *((init, True) for init in ("black", "white", "red", "green", "blue")),
                *((init, False) for init in ("normal", "uniform", "pattern-8", "surrogate")),
            ]
        ],
        (ANALYTIC, {}, True),
        (replace(QUICK, init="black"), {"network": "per-image"}, True),
        (replace(QUICK, init="black"), {"network": "per-trial"}, False),
        (replace(QUICK, init="black", label="joint"), {}, False),
        (replace(QUICK, init="black", solver=Adam(langevin=0.1)), {}, False),
        (replace(QUICK, init="black"), {"defences": (Gaussian(sigma=1.0),)}, True),
    ],
    ids=str,
)
def test_starts_that_are_always_the_same(small, attack, fields, warned):
    victim = make_victim(Tiny(CLASSES), small, [0], **{"network": "shared", **fields})
    assert not warnings_before(victim, [DLG, attack], 1)
    found = warnings_before(victim, [DLG, attack], 2)
    assert kinds(found) == ({CONSTANT} if warned else set())
    assert all(text.startswith(f"{attack.name}: start {attack.init} is") for text in found)


def test_a_defence_drawn_anew_makes_trials_differ_from_the_same_start(small):
    victim = make_victim(
        Tiny(CLASSES), small, [0], network="shared", defences=(Gaussian(sigma=1.0),), defence_draw="per-trial"
    )
    assert kinds(warnings_before(victim, [replace(QUICK, init="black")], 2)) == {DRAWN}


def test_hidden_statistics_of_a_network_that_has_none(small):
    victim = make_victim(resnet(train=False), small, [0], network="shared", knows_statistics=False)
    assert kinds(warnings_before(victim, (QUICK,), 1)) == {HIDDEN}
    measured = replace(victim, batch_stats={"any": np.ones(2)})
    assert not kinds(warnings_before(measured, (QUICK,), 1))


# --- after ---


def row(**fields) -> dict[str, Any]:
    plain = {
        "attack": "dlg",
        "status": "wrong-image",
        "label": 3,
        "objective_kind": "l2",
        "objective": 1e-5,
        "relative_objective": 1e-5,
        "update_norm2": 1.0,
    }
    return plain | fields


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row()], None),
        ([row(objective=1.0, relative_objective=0.5)], None),  # it has not met the objective
        ([row(relative_objective=0.5, update_norm2=2e-5)], "dlg: 1 of 1 trials met the objective with more than 1% of"),
        ([row(), row(relative_objective=0.011)], "dlg: 1 of 2 trials met the objective"),
        ([row(relative_objective=0.009)], None),
        *(([row(objective_kind=kind, relative_objective=0.5)], None) for kind in ("cosine", "l1", "likelihood")),
        ([row(label=0)], None),
        ([row(status="diverged"), row(status="solved")], None),
        ([row(objective=float("nan"), relative_objective=float("nan"))], None),
        ([row(update_norm2=0.0, relative_objective=float("nan"))], "dlg: the update is zero in 1 of 1 trials"),
        ([row(update_norm2=0.0, relative_objective=float("inf"))], "dlg: the update is zero in 1 of 1 trials"),
        ([row(), row(attack="idlg", update_norm2=0.0)], "idlg: the update is zero in 1 of 1 trials"),
        ([row(status="matched")], "dlg: the private images are not known"),
        ([row(status="stalled", label=-1)], "dlg: the private images are not known"),
        ([], None),
    ],
    ids=str,
)
def test_what_rows_show(rows, words):
    found = warnings_after(rows, Criteria())
    assert len(found) == (words is not None)
    assert all(text.startswith(words) and "\n" not in text for text in found)


def test_the_criterion_decides_what_met_the_objective():
    rows = [row(objective=1e-3, relative_objective=0.5)]
    assert not warnings_after(rows, Criteria())
    assert not warnings_after(rows, Criteria(objective=1e-3))  # met is below
    assert len(warnings_after(rows, Criteria(objective=1e-2))) == 1
    for relative, warned in ((0.01, 0), (0.0101, 1)):  # of the update unexplained
        rows = [row(objective=1e-3, relative_objective=relative)]
        assert len(warnings_after(rows, Criteria(objective=1e-2))) == warned


# --- in a sweep ---


def swept(victim: Victim, attack: Attack, out, **settings) -> tuple[Result, list[str]]:
    """The result, and what was warned of while it ran."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sweep = Sweep(victim=victim, attacks=(attack,), seeds=2, snapshots=(), **settings)
        result = run_sweep(sweep, out, quiet=True)
    written = json.loads((out / "summary.json").read_text())
    assert written["warnings"] == result.summary["warnings"]
    return result, [str(one.message) for one in caught if issubclass(one.category, UserWarning)]


def test_an_ordinary_run_warns_of_nothing(small, tmp_path):
    result, said = swept(make_victim(Tiny(CLASSES), small, [0, 1]), QUICK, tmp_path / "run")
    assert (result.summary["warnings"], said) == ([], [])


def test_an_update_of_zeros(small, tmp_path):
    victim = make_victim(Tiny(CLASSES), small, [0], network="shared", defences=(Prune(share=1.0),))
    result, said = swept(victim, QUICK, tmp_path / "run")
    assert said == []
    assert result.summary["warnings"] == [
        "quick: the update is zero in 2 of 2 trials; there is nothing to match.",
    ]


def test_a_small_objective_that_explains_nothing(small, tmp_path):
    """A network all but certain of the label: whatever the candidate, its gradient is as small as the client's."""
    model = MLP(num_classes=CLASSES, hidden=())
    victim = make_victim(model, small, [0])
    bias = jnp.zeros(CLASSES).at[victim.labels[0]].set(25.0)
    params = {"head": {"kernel": jnp.full((64, CLASSES), 1e-3), "bias": bias}}
    result, _ = swept(replace(victim, params=params, network="shared"), QUICK, tmp_path / "run")
    assert {row["objective"] < 1e-4 for row in result.rows} == {True}
    (text,) = result.summary["warnings"]
    assert text.startswith("quick: 2 of 2 trials met the objective with more than 1% of the update unexplained")


def test_what_the_settings_give_away_is_said_before_and_kept(small, tmp_path):
    victim = make_victim(Tiny(CLASSES), small, [0], network="shared", defences=(Prune(share=1.0), Gaussian(sigma=0.0)))
    attack = replace(QUICK, init="white")
    result, said = swept(victim, attack, tmp_path / "run")
    (before,) = said
    assert kinds(said) == {CONSTANT}
    assert result.summary["warnings"][0] == before
    assert len(result.summary["warnings"]) == 2  # and the update of zeros


def test_the_command_line_prints_each_as_one_line(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", images=pixels, labels=np.arange(4) % 3)
    out = tmp_path / "run"
    said = call(
        *(
            "run",
            "--dataset",
            tmp_path / "small.npz",
            "--images",
            1,
            "--seeds",
            2,
            "--attack",
            "idlg",
            "--model",
            "mlp",
        ),
        *("--network", "shared", "--start", "black", "--defence", "prune:1", "--solver", "adam", "--iterations", 2),
        *("--out", out, "--snapshots", 0, "--no-figures", "--x64"),
    )
    assert said.code == 0, said.err
    constant = "idlg+black: start black is the same for every seed, and so are its trials."
    zero = "idlg+black: the update is zero in 2 of 2 trials; there is nothing to match."
    assert f"jaxleak: warning: {constant}\n" in said.err
    lines = [line for line in said.out.splitlines() if line.startswith("warning: ")]
    assert lines == [f"warning: {constant}", f"warning: {zero}"]
    assert said.out.index("How trials ended") < said.out.index("warning: ")

    table = call("table", out)
    assert (table.code, table.err) == (0, "")
    assert [line for line in table.out.splitlines() if "warning" in line] == lines
    several = call("table", out, out).out.splitlines()
    assert [line for line in several if "warning" in line] == 2 * [f"warning: {out}: {text[9:]}" for text in lines]

    # A summary that is older than the rows, or than warnings: what the rows show is found anew.
    summary = json.loads((out / "summary.json").read_text())
    for old in ({"groups": []}, {"warnings": None}):
        (out / "summary.json").write_text(json.dumps(summary | old))
        assert [line for line in call("table", out).out.splitlines() if "warning" in line] == lines[1:]
    (out / "summary.json").unlink()
    assert [line for line in call("table", out).out.splitlines() if "warning" in line] == lines[1:]
