"""The leak map: its cells, the attack of each, going on where it was stopped, and its table and figure."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import jaxleak
from experiments import harness, leak_cells, leak_figure, leak_map
from experiments.leak_cells import AXES, NETWORKS, TRAININGS, Cell, all_cells, attack_of

PLAIN = Cell("lenet-relu", "untrained", 1, 0, "none")
NAMES = list(all_cells())


def row_of(cell: Cell, psnr: list[float], **others) -> dict:
    """A row of a cell, as `measured` makes it."""
    return {
        "cell": cell.name,
        **cell._asdict(),
        "attack": attack_of(cell).name,
        "psnr": psnr,
        "evaluations": [100, 200, 300],
        "labels_right": 3,
        "accuracy": None,
        "seconds": 1.0,
        "device": "cpu",
        **others,
    }


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path / "leak_map"


@pytest.fixture
def command(results, monkeypatch):
    """Runs the experiment with stand-ins for data, victims and attacks; returns the cells it measured, in order."""
    seen = []

    def measured(cell, victim, options):
        seen.append(cell.name)
        clock[0] += 61
        return row_of(cell, [10.0, 30.0])

    clock = [0.0]
    monkeypatch.setattr(leak_map.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(leak_map, "measured", measured)
    monkeypatch.setattr(leak_map, "victim_of", lambda *_: None)
    monkeypatch.setattr(jaxleak, "load_dataset", lambda *_, **__: None)
    monkeypatch.setattr(jaxleak, "use_all_cores", lambda: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*words):
        seen.clear()
        monkeypatch.setattr(sys, "argv", ["leak_map", "--results", str(results.parent), *words])
        leak_map.main()
        return list(seen)

    return run


def test_cells_are_unique_and_all_combinations():
    count = int(np.prod([len(axis) for axis in AXES]))
    assert len(all_cells()) == count == len({tuple(cell) for cell in all_cells().values()})


def test_plain_cells_come_first_and_ends_before_what_is_between():
    places = {cell: place for place, cell in enumerate(all_cells().values())}
    assert {cell[1:] for cell in list(places)[: len(NETWORKS)]} == {PLAIN[1:]}
    for field, end, between in (("batch", 8, 4), ("training", "trained", "epoch"), ("defence", "strong", "weak")):
        assert places[PLAIN._replace(**{field: end})] < places[PLAIN._replace(**{field: between})]


@pytest.mark.parametrize(
    ("cell", "name", "label", "tv"),
    [
        (PLAIN, "rgap", "bias", 0.0),
        (PLAIN._replace(network="lenet-sigmoid"), "L2", "bias", 0.0),
        (PLAIN._replace(network="lenet-sigmoid", batch=8), "L2", "counts", 1e-4),
        (PLAIN._replace(network="lenet-sigmoid", steps=5), "cosine", "bias", 0.003),
        (PLAIN._replace(network="lenet-sigmoid", defence="strong"), "cosine", "bias", 0.1),
        (PLAIN._replace(batch=2), "cosine", "counts", 0.03),
        (PLAIN._replace(steps=5), "cosine", "bias", 0.03),
        (PLAIN._replace(defence="weak"), "cosine", "bias", 0.03),
        (PLAIN._replace(network="mlp"), "analytic", "bias", 0.0),
        (PLAIN._replace(network="mlp", batch=4), "spear", "counts", 0.0),
        (PLAIN._replace(network="mlp", batch=4, steps=5), "cosine", "counts", 0.03),
        (PLAIN._replace(network="vit"), "april", "bias", 0.0),
        (PLAIN._replace(network="vit", batch=4), "L2", "counts", 1e-4),
        (PLAIN._replace(network="resnet-train"), "cosine", "bias", 0.03),
    ],
    ids=lambda value: value.name if isinstance(value, Cell) else "",
)
def test_the_attack_follows_from_the_cell(cell, name, label, tv):
    attack = attack_of(cell)
    assert (attack.name, attack.label, attack.tv) == (name, label, tv)
    if not attack.solver.closed_form:
        assert attack.box
        assert attack.max_evaluations == NETWORKS[cell.network].evaluations[cell.steps > 0]


@pytest.mark.parametrize("network", NETWORKS)
def test_jaxleak_takes_every_attack_of_a_network(network, tmp_path):
    """Batches, local steps and defences: the attack fits the victim, and the images of all cells are the same."""
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 8
    data = jaxleak.Dataset(
        name="made up",
        split="train",
        image_shape=(32, 32, 3),
        class_names=tuple(map(str, range(8))),
        index=np.arange(48),
        reader=lambda places: (rng.random((len(places), 32, 32, 3), np.float32), labels[list(places)]),
    )
    kept, images = {}, set()
    for cell in all_cells().values():
        if cell.network == network and cell.training == "untrained":
            victim = leak_cells.victim_of(cell, data, kept, tmp_path)
            jaxleak.Sweep(victim=victim, attacks=(attack_of(cell),), seeds=1)
            images.add(tuple(victim.indices))
            assert (victim.batch, victim.client.steps, len(victim.indices)) == (cell.batch, cell.steps, 40)
            assert all(len(set(batch)) == cell.batch for batch in victim.batches(np.asarray(victim.labels)).tolist())
    assert len(images) == 1
    assert len(kept) == 1


def test_running_again_goes_on_where_it_stopped(command):
    names = [name for name in NAMES if name.startswith("mlp") and name.endswith("none")]
    assert command("--only", "mlp-*-none", "--minutes", "2.5") == names[:3]
    assert command("--only", "mlp-*-none", "--minutes", "0.1") == names[3:4]
    assert command("--minutes", "0") == NAMES[:1]
    assert len(leak_map.stored()) == 5


def test_only_refuses_what_names_no_cell(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("--only", "lenet-tanh-*")
    assert stopped.value.code == 2
    assert "lenet-tanh-*" in capsys.readouterr().err


def test_predictions_are_of_cells_that_were_attacked(command, monkeypatch):
    lines = [SimpleNamespace(defence="none", psnr=41.234), SimpleNamespace(defence="clip:1.0 gaussian:0.01", psnr=12.0)]
    monkeypatch.setattr(jaxleak, "risk", lambda victim, compared: SimpleNamespace(lines=lines))
    victim = SimpleNamespace(defences=(), defence_name="none")
    monkeypatch.setattr(leak_map, "victim_of", lambda *_: victim)
    (done,) = command("--only", PLAIN.name)
    command("--risk")
    assert {name: row["risk"] for name, row in leak_map.stored().items()} == {done: 41.23}
    victim.defences, victim.defence_name = (1,), "clip:1.0 gaussian:0.01"
    assert leak_map.predicted(PLAIN, victim, None)["psnr"] == 12.0


def test_a_prediction_that_is_refused_says_why(monkeypatch):
    def refuse(victim, compared):
        raise jaxleak.InputError("no gradient.")

    monkeypatch.setattr(jaxleak, "risk", refuse)
    row = leak_map.predicted(PLAIN, SimpleNamespace(defences=()), None)
    assert (row["psnr"], row["reason"]) == (None, "no gradient.")


def test_decibels_are_of_each_image_and_cut():
    truth = np.full((3, 4, 4, 3), 0.5)
    found = np.stack([truth[0] + 0.1, np.full((4, 4, 3), 7.0), np.full((4, 4, 3), np.nan)])
    assert leak_map.decibels(found, truth) == [20.0, 6.02, 0.0]
    assert leak_map.decibels(truth, truth) == [200.0] * 3


def test_the_table_and_the_figure_are_those_of_the_rows(results, tmp_path):
    results.mkdir()
    cells = [PLAIN, PLAIN._replace(training="trained", batch=8)]
    rows = [row_of(cells[1], [19.9, 20.1, 30.0], accuracy=0.315), row_of(cells[0], [30.0, 31.0, 32.0])]
    (results / "cells.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (results / "risk.jsonl").write_text(json.dumps({"cell": PLAIN.name, "psnr": 36.61}) + "\n")
    (table,) = leak_map.results()
    setting = ["LeNet, ReLU", "–"]
    assert [list(map(str, row)) for row in table.rows] == [
        [*setting, "untrained", "1", "0", "none", "rgap", "3/3", "[0.44, 1.00]", "31.0", "200", "3", "36.6"],
        [*setting, "trained", "8", "0", "none", "cosine", "2/3", "[0.21, 0.94]", "20.1", "200", "3", "–"],
    ]
    assert any("LeNet, ReLU 32%" in note for note in table.notes)
    lines, columns, found = leak_figure.shares(leak_map.stored())
    assert lines == [("lenet-relu", "untrained"), ("lenet-relu", "trained")]
    assert columns == [("none", 0, 1), ("none", 0, 8)]
    assert len(found) == 2
    leak_figure.draw(leak_map.stored(), tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_without_rows_it_was_not_run(results):
    assert leak_map.results()[0].rows == [["not run"]]


def test_an_epoch_is_all_images_that_are_not_attacked():
    """CIFAR-100's 50,000 training images without the 40, and without the 1,000 on which accuracy is measured."""
    assert TRAININGS["epoch"] * 64 == 50_000 - leak_cells.IMAGES - 1000
