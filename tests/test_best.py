"""The attack `best`: what it is for a network and an update, that runs store it, and what is refused beside it."""

import json
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxleak
from jaxleak import ATTACKS, IDLG, InputError, Sweep, load_dataset, make_victim, parse_defence
from jaxleak.attacks.best import BOUNDED, DEFENDED, KEPT, SEARCH, SEEN_THROUGH, SEVERAL, label_rule, resolved
from jaxleak.attacks.presets import ANALYTIC, APRIL, BEST, OPEN, RGAP, SPEAR
from jaxleak.threat.client import Client
from jaxleak.threat.loss import SquaredError
from tests.commands import call, refusal
from tests.sweeps import QUICKEST

RELU = {"activation": "relu"}
PHOTOS = load_dataset("photos")
KEPT_OF_BEST: dict[str, Any] = {name: getattr(BEST, name) for name in KEPT}  # whatever it is for a victim


class Own(nn.Module):
    """A network of one's own."""

    activation: Any = nn.relu
    pooled: bool = False
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.Conv(4, (5, 5), strides=2)(x))
        x = nn.avg_pool(x, (2, 2), (2, 2)) if self.pooled else x
        return nn.Dense(10, use_bias=self.bias)(x.reshape(len(x), -1))


def victim_of(model: Any, batch: int = 1, **settings: Any) -> Any:
    fields = settings.pop("fields", {})
    data = load_dataset("text") if model == "transformer" else PHOTOS
    return make_victim(model, data, list(range(batch)), fields=fields, batch=batch, **settings)


@pytest.mark.parametrize(
    ("model", "fields", "batch", "wanted", "words"),
    [
        ("lenet", {}, 1, SEARCH, "the network is smooth; label bias of one image"),
        ("lenet", {}, 4, SEVERAL, "the network is smooth; label counts of 4 images"),
        ("lenet", RELU, 1, RGAP, "rgap: one image, and the network is a chain with relu"),
        ("lenet", RELU, 2, BOUNDED, "the network has kinks; label counts of 2 images"),
        ("lenet-cpl", {"activation": "tanh"}, 1, SEARCH, "smooth"),
        ("mlp", {}, 1, ANALYTIC, "analytic: one image, and the first layer is dense"),
        ("mlp", {}, 2, SEVERAL, "smooth"),
        ("mlp", RELU, 2, SPEAR, "spear: 2 images, and a ReLU behind a first layer that is dense"),
        ("mlp", RELU, 32, BOUNDED, "kinks"),
        ("vit", {}, 1, APRIL, "april: one image, and learnt positions behind the patches"),
        ("vit", {}, 2, SEVERAL, "smooth"),
        ("convnet", {"width": 8, "train": False}, 1, BOUNDED, "kinks"),
        ("convnet", {"width": 8, "train": True}, 2, BOUNDED, "kinks"),
        ("convnet-gn", {"width": 8, "groups": 4}, 1, BOUNDED, "kinks"),
        ("resnet20-4", {"width": 8, "train": False}, 1, BOUNDED, "kinks"),
        ("resnet18", {"width": 8}, 1, SEARCH, "smooth"),
        ("resnet18", {"width": 8, **RELU}, 1, BOUNDED, "kinks"),
        (Own(), {}, 1, RGAP, "a chain with relu"),
        (Own(nn.leaky_relu), {}, 1, RGAP, "a chain with leaky_relu"),
        (Own(nn.leaky_relu, pooled=True), {}, 1, BOUNDED, "kinks"),
        (Own(pooled=True), {}, 1, BOUNDED, "kinks"),
        (Own(nn.gelu), {}, 1, SEARCH, "smooth"),
        (Own(pooled=True, bias=False), {}, 1, BOUNDED, "label idlg of one image"),
        (Own(pooled=True, bias=False), {}, 2, BOUNDED, "label joint of 2 images"),
    ],
)
def test_what_it_is_for_a_network_and_a_batch(model, fields, batch, wanted, words):
    found = resolved(BEST, victim_of(model, batch, fields=fields))
    assert words in found.chosen
    assert found.name == "best"
    parts = ("init", "objective", "scale", "tv", "box", "solver")
    assert {name: getattr(found, name) for name in parts} == {name: getattr(wanted, name) for name in parts}
    assert found.label == (wanted.label if wanted.solver.closed_form else found.chosen.split("label ")[1].split()[0])
    assert resolved(found, victim_of(model, batch, fields=fields)) is found


@pytest.mark.parametrize(
    "settings",
    [
        {"client": Client(steps=2, lr=0.01)},
        {"client": Client(clients=2), "batch": 2},
        {"defences": (parse_defence("gaussian:1e-3"),)},
        {"defences": (parse_defence("prune:0.5"),)},
    ],
    ids=["local steps", "clients", "noise", "zeros"],
)
def test_closed_forms_need_one_gradient_without_a_defence(settings):
    for fields, wanted in (({}, SEARCH), (RELU, BOUNDED)):
        assert resolved(BEST, victim_of("lenet", fields=fields, **settings)).solver == wanted.solver
    assert resolved(BEST, victim_of("mlp", **settings)).solver == SEARCH.solver


@pytest.mark.parametrize(
    ("defences", "knows"),
    [
        ("gaussian:1e-3", False),
        ("prune:0.5", True),
        ("prune:0.5 gaussian:1e-3", False),
        ("dp-sgd:1:0.1", False),
        ("soteria:0.1", True),
        ("precode", True),
    ],
)
def test_behind_a_defence_it_is_what_an_attacker_who_knows_it_does(defences, knows):
    victim = victim_of("lenet", defences=tuple(map(parse_defence, defences.split())))
    found = resolved(BEST, victim)
    wanted = SEEN_THROUGH if knows else DEFENDED
    assert replace(found, **KEPT_OF_BEST) == replace(wanted, label=found.label, chosen=found.chosen, **KEPT_OF_BEST)
    assert found.knows_defence == knows
    assert "the update defended" in found.chosen
    kinks = resolved(BEST, victim_of("lenet", fields=RELU, defences=victim.defences))
    assert (kinks.solver, kinks.knows_defence) == (BOUNDED.solver, knows)


def test_closed_forms_need_every_tensor_of_an_update():
    victim = victim_of("lenet", fields=RELU, network="shared")
    params = jaxleak.draw_params(victim.model, jax.random.key(0), victim.shape)
    update = {name: {part: np.ones_like(leaf) for part, leaf in layer.items()} for name, layer in params.items()}
    assert resolved(BEST, replace(victim, params=params, update=update)).init == "rgap"
    frozen = {**update, "conv1": {name: 0 * leaf for name, leaf in update["conv1"].items()}}
    assert resolved(BEST, replace(victim, params=params, update=frozen)).solver == BOUNDED.solver
    assert resolved(replace(BEST, layers=("conv1",)), replace(victim, params=params, update=update)).init == "normal"


def test_labels_are_read_by_a_rule_that_holds():
    assert label_rule(victim_of("lenet", client=Client(loss=SquaredError()))) == "joint"
    adam = Client(steps=2, lr=0.01, optimizer="adam")
    assert label_rule(victim_of("lenet", 2, client=adam)) == "counts-published"
    assert resolved(replace(BEST, label="known"), victim_of("lenet")).label == "known"


def test_what_is_given_stays():
    given = replace(BEST, name="mine", iterations=7, max_evaluations=50, stop_relative=1e-3, stop_objective=1e-5)
    smooth, kinks = (resolved(given, victim_of("lenet", 2, fields=fields)) for fields in ({}, RELU))
    for found in (smooth, kinks):
        assert (found.name, found.max_evaluations, found.stop_relative, found.stop_objective) == (
            "mine",
            50,
            1e-3,
            1e-5,
        )
    assert smooth.iterations == 7
    evaluations = {True: 7, False: 140}["inner_steps" in kinks.settings()["solver"]]
    assert kinks.iterations == evaluations
    assert resolved(given, victim_of("mlp")).iterations == 1


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"tv": 0.1}, "tv"),
        ({"label": "counts"}, "label"),
        ({"objective": "cosine"}, "objective"),
        ({"solver": jaxleak.Adam()}, "solver"),
        ({"init": "uniform"}, "init"),
        ({"box": True}, "box"),
    ],
)
def test_what_it_chooses_is_refused(changes, name):
    with pytest.raises(InputError, match=f"`{name}` is chosen by the attack best"):
        Sweep(victim=victim_of("lenet"), attacks=(replace(BEST, **changes),), seeds=1)


def test_texts_are_refused():
    with pytest.raises(InputError, match="best is for images; of text use dager, tag or dlg"):
        Sweep(victim=victim_of("transformer"), attacks=(BEST,), seeds=1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--tv 0.1",
            "`tv` is chosen by the attack best, for the network and the update. Leave it out, or",
        ),
        ("--tv 0", "`tv` is chosen"),
        ("--start uniform", "`start` is chosen"),
        ("--label joint", "`label` is chosen by the attack best, for the network and the update; only known may be"),
        ("--label idlg", "`label` is chosen"),
        ("--solver lbfgs", "`solver` is chosen"),
        ("--lr 0.1", "`lr` is chosen"),
        ("--sign hard", "`sign` is chosen"),
        ("--history 10", "`history` is chosen"),
        ("--box False", "`box` is chosen"),
        ("--group 2", "`group` is chosen"),
        ("--attack best:adam", "`solver` is chosen by the attack best; got 'best:adam'"),
        ("--iterations 0", "`iterations` must be above 0"),
    ],
)
def test_flags_that_contradict_it_are_refused_in_a_line(flags, words, tmp_path):
    attack = () if "--attack" in flags else ("--attack", "best", "dlg")
    assert words in refusal("run", *attack, *flags.split(), "--images", 6, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_stores_what_was_chosen_and_says_it(tmp_path):
    out = tmp_path / "run"
    flags = ("run", "--model", "mlp", "--images", 6, 12, "--seeds", 1, "--no-figures", "--out", out)
    said = call(*flags, "--attack", "best", "idlg", "--iterations", 1)
    assert said.code == 0, said.err
    chosen = "analytic: one image, and the first layer is dense"
    assert f"best: {chosen}" in said.err.splitlines()
    stored, plain = json.loads((out / "run.json").read_text())["settings"]["attacks"]
    assert (stored["name"], stored["chosen"], stored["init"], stored["label"]) == ("best", chosen, "analytic", "bias")
    assert stored["solver"] == {"name": "none"}
    assert "chosen" not in plain
    rows = jaxleak.Run.open(out).rows()
    assert [row["chosen"] for row in rows] == [chosen, chosen, None, None]
    assert all(row["psnr"] > 60 for row in rows[:2])
    again = call(*flags, "--attack", "best", "idlg", "--iterations", 1)
    assert again.code == 0, again.err
    assert jaxleak.Run.open(out).rows() == rows
    said = call("report", out, "--out", tmp_path / "page.html")
    assert said.code == 0, said.err
    assert "The attack best is" in (tmp_path / "page.html").read_text()
    assert chosen in (tmp_path / "page.html").read_text()


def test_a_run_that_chose_otherwise_is_refused(tmp_path):
    search = Sweep(victim=victim_of("mlp", 2), attacks=(replace(BEST, iterations=1),), seeds=1, snapshots=())
    jaxleak.run_sweep(search, tmp_path / "run", quiet=True)
    other = replace(search, attacks=(replace(QUICKEST, name="best"),))
    with pytest.raises(InputError, match=r"attacks\.best\.chosen"):
        jaxleak.run_sweep(other, tmp_path / "run", quiet=True)


def test_it_is_in_the_registry_and_open():
    assert ATTACKS["best"] is BEST
    assert BEST.chosen == OPEN
    assert "chosen" not in IDLG.settings()
