"""A sweep: every trial once and a row each, the same whatever runs beside it, and a run directory that continues."""

import gc
import json
import math
import tempfile
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxleak.runs.session as module
from jaxleak import (
    IDLG,
    LBFGS,
    Adam,
    InputError,
    JaxoptLBFGS,
    OptaxLBFGS,
    Ray,
    TorchLBFGS,
    attack,
    load_dataset,
    make_victim,
)
from jaxleak.attacks.distances import squared_norm
from jaxleak.attacks.presets import get_attack
from jaxleak.attacks.trial import Job, Trial
from jaxleak.engine import Engine
from jaxleak.engine import engine as runs
from jaxleak.results.intervals import wilson
from jaxleak.results.result import Result
from jaxleak.results.store.columns import COLUMNS
from jaxleak.results.store.run import Run
from jaxleak.results.verdict import STATUSES, Criteria
from jaxleak.runs.run import run_sweep
from jaxleak.threat.victim import Victim
from tests.sweeps import (
    CLASSES,
    OWN,
    QUICK_DLG,
    QUICK_IDLG,
    QUICKEST,
    SHAPE,
    SHORT_LBFGS,
    Tiny,
    assert_same,
    assert_same_trials,
    by_key,
    sweep_of,
)


@pytest.fixture(scope="module")
def small(data, tmp_path_factory) -> Result:
    """DLG and iDLG on three images from two starts each, with L-BFGS."""
    return run_sweep(sweep_of(data), tmp_path_factory.mktemp("small") / "run", lanes=4, quiet=True)


def arrays_by_trial(result: Result, name: str) -> dict[int, np.ndarray]:
    arrays = result.run.arrays(keys=["trial", name])
    return dict(zip(arrays["trial"].tolist(), arrays[name], strict=True))


# --- one attack after the other ---


def test_what_follows_is_compiled_while_an_attack_runs(data, monkeypatch):
    """By the time its turn comes, nothing is left to compile."""
    ahead, in_run = [], []
    original, hire = Engine.compile_ahead, runs._Run._hire

    def note(self, jobs):
        ahead.append((self.program.attack.name, threading.current_thread()))
        original(self, jobs)

    def hire_and_note(self, wanted):
        in_run.append((self._engine.program.attack.name, bool(self._engine._programs)))
        return hire(self, wanted)

    monkeypatch.setattr(Engine, "compile_ahead", note)
    monkeypatch.setattr(runs._Run, "_hire", hire_and_note)
    result = run_sweep(sweep_of(data), quiet=True)
    assert len(result.rows) == 12
    assert [name for name, _ in ahead] == ["idlg"]
    assert ahead[0][1] is not threading.main_thread()
    assert in_run == [("dlg", False), ("idlg", True)]


def test_what_cannot_be_compiled_ahead_is_told_when_its_turn_comes(data, monkeypatch):
    """The attack before it ends, and its rows are written."""
    original = Engine.compile

    def refuse(self, traced, devices, lanes):
        if self.program.attack.name == "idlg":
            raise InputError("`model` does not compile.")
        return original(self, traced, devices, lanes)

    monkeypatch.setattr(Engine, "compile", refuse)
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(InputError, match="does not compile"):
            run_sweep(sweep_of(data), Path(folder) / "run", quiet=True)
        assert len(Run.open(Path(folder) / "run").rows()) == 6


# --- rows ---


def test_every_attack_image_and_seed_has_one_row(small):
    keys = [(row["attack"], row["image"], row["seed"]) for row in small.rows]
    assert Counter(keys) == Counter((a, i, s) for a in ("dlg", "idlg") for i in (4, 1, 3) for s in (0, 1))
    assert sorted(row["trial"] for row in small.rows) == list(range(12))


def test_rows_follow_the_schema(small):
    kinds = {"string": str, "int64": int, "double": float, "bool": bool}
    for row in small.rows:
        assert list(row) == [column.name for column in COLUMNS]
        for name, kind, *_ in COLUMNS:
            missing = row[name] is None and name.startswith(("threshold_", "reason", "tokens_", "rouge", "chosen"))
            assert missing or type(row[name]) is kinds[kind], name


def test_rows_say_what_made_them(small, data):
    for row in small.rows:
        assert (row["model"], row["dataset"], row["split"]) == ("tiny", data.name, "all")
        assert (row["network"], row["solver"], row["dtype"]) == ("per-trial", "torch-lbfgs", "float64")
        assert row["settings_hash"] == small.run.settings_hash == small.summary["settings_hash"]
        assert row["jax_version"] == jax.__version__
        assert row["device"].startswith(f"{len(jax.devices())}x cpu")
        assert row["label"] == row["image"] % CLASSES
        assert row["label_correct"] == (row["label_found"] == row["label"])
        assert row["success"] == (row["status"] == "converged")
        assert row["status"] in STATUSES
        assert row["seconds"] > 0
        assert 0 < row["iterations"] <= 2
        assert row["evaluations"] <= 2 * 7
    assert all(row["label_correct"] for row in small.rows if row["attack"] == "idlg")


def test_metrics_are_those_of_the_reconstructions(small, data):
    """Directly computed; candidates are stored in float32."""
    found = small.reconstructions()
    rows = {row["trial"]: row for row in small.rows}
    assert found["candidate"].shape == (12, *SHAPE)
    for trial, candidate in zip(found["trial"].tolist(), found["candidate"].astype(float), strict=True):
        row = rows[trial]
        truth = data.images([row["image"]])[0][0].astype(float)
        clipped = np.mean((np.clip(candidate, 0, 1) - truth) ** 2)
        wanted = {
            "mse": np.mean((candidate - truth) ** 2),
            "mse_clipped": clipped,
            "psnr": -10 * np.log10(clipped),
            "relative_error": np.linalg.norm(candidate - truth) / np.linalg.norm(truth),
            "max_abs": np.abs(candidate).max(),
        }
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_traces_end_at_the_rows_numbers(small):
    objective, mse = arrays_by_trial(small, "objective_trace"), arrays_by_trial(small, "mse_trace")
    for row in small.rows:
        trial, last = row["trial"], row["iterations"]
        assert objective[trial].shape == mse[trial].shape == (3,)
        assert objective[trial][last] == pytest.approx(row["objective"], rel=1e-5)
        assert mse[trial][last] == pytest.approx(row["mse"], rel=1e-5)
        assert np.isfinite(objective[trial][: last + 1]).all()
        assert np.isnan(objective[trial][last + 1 :]).all()


def test_relative_objective_is_over_the_updates_squared_norm(small, data):
    """The update of a per-trial network is drawn from network seed, image and trial seed."""
    sweep = sweep_of(data)
    trial = Trial(attack=QUICK_IDLG, victim=sweep.victim, threshold=1e-4)
    for row in small.rows[:4]:
        slot = sweep.victim.indices.index(row["image"])
        job = Job(*(jnp.asarray(n, jnp.int32) for n in (row["trial"], slot, row["image"], row["seed"])))
        norm = float(squared_norm(trial.prepare(trial.shared(), job).update))
        assert row["objective"] / row["relative_objective"] == pytest.approx(norm, rel=1e-9)


def test_dlg_and_idlg_share_networks_and_starts(small):
    rows, snapshots = by_key(small), arrays_by_trial(small, "snapshots")
    for image in (4, 1, 3):
        for seed in (0, 1):
            dlg, idlg = rows["dlg", image, seed], rows["idlg", image, seed]
            norms = [row["objective"] / row["relative_objective"] for row in (dlg, idlg)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-9)
            np.testing.assert_array_equal(snapshots[dlg["trial"]][0], snapshots[idlg["trial"]][0])
    starts = {snapshots[row["trial"]][0].tobytes() for row in small.rows}
    assert len(starts) == 6  # one for each image and seed


def test_a_start_depends_on_image_and_seed_only(data):
    def start(attack, images, image, seed, trial, network="per-trial", start_seed=0):
        victim = make_victim(Tiny(CLASSES), data, images, network=network, network_seed=trial)
        one = Trial(attack=attack, victim=victim, threshold=1e-4, start_seed=start_seed)
        job = Job(*(jnp.asarray(n, jnp.int32) for n in (trial, images.index(image), image, seed)))
        return np.asarray(one.attacker.start(one.shared(), job)["image"])

    wanted = start(QUICK_DLG, [4, 1], 4, 1, 7)
    np.testing.assert_array_equal(start(QUICK_IDLG, [0, 2, 4], 4, 1, 90, network="shared"), wanted)
    for other in (
        start(QUICK_DLG, [4, 1], 1, 1, 7),
        start(QUICK_DLG, [4, 1], 4, 0, 7),
        start(QUICK_DLG, [4, 1], 4, 1, 7, start_seed=1),
    ):
        assert not np.array_equal(other, wanted)


# --- what runs beside a trial changes nothing ---


@pytest.mark.parametrize("lanes", [1, 12])
def test_lanes_change_nothing(small, data, lanes):
    assert_same_trials(run_sweep(sweep_of(data), lanes=lanes, quiet=True), small)


def test_more_images_attacks_and_seeds_change_nothing(small, data):
    other = replace(QUICK_IDLG, name="other", init="normal")
    larger = sweep_of(data, images=(6, 3, 4, 1), attacks=(other, QUICK_IDLG), seeds=3)
    result = run_sweep(larger, quiet=True)
    assert len(result.rows) == 24
    rows, wanted = by_key(result), by_key(small)
    for image in (4, 1, 3):
        for seed in (0, 1):
            for name in OWN:
                for attack_name in ("idlg", "other"):
                    assert_same(rows[attack_name, image, seed][name], wanted["idlg", image, seed][name], name)


# --- given starts, failures, counts ---


def test_trials_begin_at_given_starts(data):
    image = np.random.default_rng(1).random((2, 1, *SHAPE))
    sweep = sweep_of(data, images=(4,), attacks=(QUICKEST,), starts={"image": image})
    result = run_sweep(sweep, quiet=True)
    snapshots = arrays_by_trial(result, "snapshots")
    for row in result.rows:
        np.testing.assert_array_equal(snapshots[row["trial"]][0], np.round(image[row["seed"], 0] * 255))


def test_the_true_image_converges_and_a_start_that_is_no_number_is_a_row(data):
    """Every trial gives a row; a failed one stays in the denominator."""
    truth = data.images([4])[0]
    starts = np.stack([truth, np.full_like(truth, np.nan), truth + 1e6])
    attack_ = replace(QUICK_IDLG, iterations=1)
    result = run_sweep(sweep_of(data, (4,), [attack_], seeds=3, starts={"image": starts}), lanes=3, quiet=True)
    rows = {row["seed"]: row for row in result.rows}
    assert rows[0]["status"] == "converged"
    assert rows[0]["objective"] == pytest.approx(0, abs=1e-12)
    assert rows[0]["mse"] < 1e-12
    assert rows[0]["threshold_iterations"] == 0  # below the threshold at the start
    assert rows[1]["status"] == "non-finite"
    assert math.isnan(rows[1]["objective"])
    assert rows[2]["status"] == "diverged"
    assert rows[2]["threshold_iterations"] is None
    for group in result.summary["groups"]:
        assert group["status"] == dict.fromkeys(STATUSES, 0) | {"converged": 1, "non-finite": 1, "diverged": 1}
        assert (group["trials"], group["successes"]) == (3, 1)
        assert group["success_rate"] == pytest.approx(1 / 3)
    assert result.summary["groups"][0]["selected"]["trial"] == rows[0]["trial"]
    assert np.isnan(result.reconstructions([rows[1]["trial"]])["candidate"]).all()
    assert [path.stat().st_size > 0 for path in result.plot()]


def test_an_update_of_zero_is_no_error(data):
    """A network that is certain of the label has no gradient at all; its trials are rows as others."""
    pixels, labels = data.images([4])
    model = Tiny(CLASSES)
    zeros = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), pixels)["params"])
    zeros["head"]["bias"] = jnp.full(CLASSES, -1e6).at[labels[0]].set(1e6)
    victim = Victim(
        model=model,
        model_name="certain",
        dataset="small",
        split="all",
        indices=[4],
        images=pixels,
        labels=labels,
        network="shared",
        params=zeros,
        num_classes=CLASSES,
    )
    result = attack(victim, QUICKEST, seeds=2, quiet=True)
    assert len(result.rows) == 2
    assert not any(row["success"] or math.isfinite(row["relative_objective"]) for row in result.rows)
    assert result.summary["complete"]


@pytest.mark.parametrize(
    "solver",
    [Adam(), LBFGS(), OptaxLBFGS(inner_steps=2), SHORT_LBFGS, JaxoptLBFGS(line_search="fixed", lr=0.1, inner_steps=2)],
    ids=str,
)
def test_every_solver_runs(data, solver):
    result = attack(
        make_victim(Tiny(CLASSES), data, [4], network="shared"),
        replace(IDLG, solver=solver, iterations=2),
        seeds=2,
        snapshots=(),
        quiet=True,
    )
    assert result.summary["complete"]
    assert len({row["solver"] for row in result.rows}) == 1
    trace = result.run.arrays(keys=["objective_trace"])["objective_trace"]
    assert np.isfinite(trace).all()
    assert np.all(trace[:, -1] != trace[:, 0])
    assert result.run.settings["attacks"][0]["solver"]["name"] == result.rows[0]["solver"]
    assert all(row["evaluations"] >= row["iterations"] > 0 for row in result.rows)


@pytest.mark.parametrize("network", ["shared", "per-image", "per-trial"])
def test_networks(data, network):
    """How many different updates there are tells how many networks were drawn."""
    result = run_sweep(sweep_of(data, (4, 1), [QUICKEST], network=network, snapshots=()), quiet=True)
    norms = {(row["image"], row["seed"]): row["objective"] / row["relative_objective"] for row in result.rows}
    distinct = {round(norm, 9) for norm in norms.values()}
    assert len(distinct) == {"shared": 2, "per-image": 2, "per-trial": 4}[network]
    if network != "per-trial":
        assert norms[4, 0] == pytest.approx(norms[4, 1], rel=1e-9)


def test_lenet_on_photos():
    """The main job, cut short."""
    victim = make_victim("lenet", load_dataset("photos"), [6, 12], network="shared")
    result = attack(victim, replace(IDLG, solver=SHORT_LBFGS, iterations=1), seeds=1, snapshots=(0, 1), quiet=True)
    assert [row["image"] for row in sorted(result.rows, key=lambda row: row["trial"])] == [6, 12]
    assert all(row["label_correct"] for row in result.rows)
    assert result.reconstructions()["candidate"].shape == (2, 32, 32, 3)
    assert result.run.truth()["pixels"].shape == (2, 32, 32, 3)
    assert all(row["mse"] > 0 for row in result.rows)


# --- the result ---


def test_success_rate(small):
    for name in ("dlg", "idlg"):
        successes = sum(row["success"] for row in small.rows if row["attack"] == name)
        rate, interval, n = small.success_rate(name)
        assert (rate, n) == (successes / 6, 6)
        assert interval == pytest.approx(wilson(successes, 6))
    for wrong in (None, "cpl"):
        with pytest.raises(InputError, match=r"^`attack` must be one of dlg, idlg; got"):
            small.success_rate(wrong)


def test_result_shows_tables_and_draws_figures(small, tmp_path):
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(small.table())
    text = console.export_text()
    assert "dlg" in text
    assert "idlg" in text
    files = small.plot(tmp_path / "figures")
    assert files
    assert all(path.parent == tmp_path / "figures" and path.stat().st_size > 0 for path in files)


def test_reconstructions_of_some_trials(small):
    some = small.reconstructions([7, 2])
    assert sorted(some["trial"].tolist()) == [2, 7]
    everything = arrays_by_trial(small, "candidate")
    for trial, candidate in zip(some["trial"].tolist(), some["candidate"], strict=True):
        np.testing.assert_array_equal(candidate, everything[trial])


def test_the_directory_holds_the_same(small):
    path = small.run.path
    assert json.loads((path / "summary.json").read_text()) == json.loads(json.dumps(small.summary))
    settings = json.loads((path / "run.json").read_text())["settings"]
    assert settings["seeds"] == 2
    assert [one["name"] for one in settings["attacks"]] == ["dlg", "idlg"]
    truth = small.run.truth()
    assert truth["image"].tolist() == [4, 1, 3]
    assert truth["label"].tolist() == [1, 1, 0]


def test_summary_of_a_sweep(small):
    summary = small.summary
    assert summary["complete"] is True
    assert summary["trials_expected"] == 12
    keys = {(group["attack"], group["image"]): group["trials"] for group in summary["groups"]}
    assert keys == {(name, image): 6 if image is None else 2 for name in ("dlg", "idlg") for image in (4, 1, 3, None)}
    engine = summary["engine"]
    assert engine["evaluations"] == sum(row["evaluations"] for row in small.rows)
    assert 0 < engine["utilisation"] <= 1
    assert engine["evaluations_per_second"] == pytest.approx(engine["evaluations"] / engine["seconds"])
    assert engine["compile_seconds"] > 0
    assert 0 < engine["host_share"] < 1


def test_without_a_directory_a_temporary_one_lives_as_long_as_the_result(data):
    result = attack(make_victim(Tiny(CLASSES), data, [4]), QUICKEST, seeds=1, snapshots=(), quiet=True)
    path = result.run.path
    assert path.is_dir()
    assert len(result.rows) == 1
    del result
    gc.collect()
    assert not path.exists()


# --- again ---


@pytest.fixture
def no_engine(monkeypatch):
    """Nothing may be computed."""

    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(module.Engine, "run", never)


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def test_a_complete_run_is_not_run_again(small, data, no_engine):
    before = files_of(small.run.path)
    again = run_sweep(sweep_of(data), small.run.path, quiet=True)
    assert again.rows == small.rows
    assert again.summary == small.summary  # with what the engine did the first time
    after = files_of(small.run.path)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} <= {"truth.npz"}  # zip files hold the time


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 3}, "seeds: 2 in the directory, 3 asked"),
        ({"start_seed": 1}, "start_seed: 0 in the directory, 1 asked"),
        ({"images": (4, 1)}, "victim.images: [4,1,3] in the directory, [4,1] asked"),
        ({"network": "shared"}, 'victim.network: "per-trial" in the directory, "shared" asked'),
        ({"attacks": (QUICK_DLG,)}, "attacks: "),
        ({"attacks": (QUICK_DLG, replace(QUICK_IDLG, iterations=3))}, "attacks.idlg.iterations: 2 in the directory, 3"),
        ({"criteria": Criteria(objective=1e-3)}, "criteria.objective: 0.0001 in the directory, 0.001 asked"),
        ({"snapshots": (0,)}, "snapshots: [0,1] in the directory, [0] asked"),
        ({"starts": {name: np.zeros((2, 1, 3)) for name in ("image", "label")}}, "starts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_and_named(small, data, no_engine, change, named):
    with pytest.raises(InputError) as error:
        run_sweep(sweep_of(data, **change), small.run.path, quiet=True)
    message = str(error.value)
    assert named in message
    assert "\n" not in message


def test_other_precision_is_refused(small, data, no_engine):
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(InputError, match='dtype: "float64" in the directory, "float32" asked'):
            run_sweep(sweep_of(data), small.run.path, quiet=True)
    finally:
        jax.config.update("jax_enable_x64", True)


def test_other_pixels_under_the_same_path_are_refused(tmp_path, data, no_engine):
    """The own picture was edited after the run began."""
    out = tmp_path / "run"
    for shade, refused in ((10, False), (20, True)):
        np.savez(tmp_path / "own.npz", images=np.full((2, *SHAPE), shade, np.uint8), labels=[0, CLASSES - 1])
        sweep = sweep_of(load_dataset(tmp_path / "own.npz"), images=(1,), attacks=(QUICKEST,))
        with pytest.raises(InputError if refused else AssertionError) as error:
            run_sweep(sweep, out, quiet=True)
    assert "victim.pixels" in str(error.value)


@pytest.mark.parametrize("where", ["update", "finished"])
def test_ctrl_c_keeps_what_is_finished_and_the_same_sweep_completes(data, tmp_path, monkeypatch, where):
    sweep = sweep_of(data, images=(4, 1), attacks=(QUICKEST, replace(QUICKEST, name="again")), seeds=3, snapshots=())
    whole = run_sweep(sweep, quiet=True)
    out, original, calls = tmp_path / "run", getattr(module.Progress, where), []

    def interrupt(self, *args, **kwargs):
        calls.append(args)
        original(self, *args, **kwargs)
        if len(calls) == {"update": 8, "finished": 3}[where]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Progress, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, out, lanes=2, quiet=True)
    partial = json.loads((out / "summary.json").read_text())
    assert not partial["complete"]
    kept = sum(group["trials"] for group in partial["groups"] if group["image"] is None)
    assert 0 < kept < 12

    lines = []
    monkeypatch.setattr(module.Progress, "say", lambda self, line: lines.append(line))
    result = run_sweep(sweep, out, lanes=4, quiet=True)
    assert lines[0] == f"{out}: continuing, {kept} of 12 trials are there"
    assert result.summary["complete"]
    assert sorted(row["trial"] for row in result.rows) == list(range(12))
    assert_same_trials(result, whole)
    fresh = sum(row["evaluations"] for row in result.rows[kept:])
    assert result.summary["engine"]["evaluations"] == fresh  # of the last session


def test_when_the_time_is_over_a_run_keeps_what_is_finished_and_the_same_sweep_completes(data, tmp_path, monkeypatch):
    attacks = (QUICKEST, replace(QUICKEST, name="again"))
    sweep, out = sweep_of(data, images=(4, 1), attacks=attacks, seeds=3, snapshots=()), tmp_path / "run"
    minutes, began, original = [0.0], module.time.monotonic(), module.Progress.finished

    def passes(self, *args):
        """Every trial that ends takes half a minute."""
        original(self, *args)
        minutes[0] += 0.5 * args[0]

    with monkeypatch.context() as patch:
        patch.setattr(module.time, "monotonic", lambda: began + 60 * minutes[0])
        patch.setattr(module.Progress, "finished", passes)
        result = run_sweep(sweep, out, lanes=2, quiet=True, minutes=4)
    assert not result.summary["complete"]
    ended = Counter(row["attack"] for row in result.rows)
    assert 4 <= ended["idlg"] < 6  # half of the time
    assert ended["again"] > 0  # what was left of it
    result = run_sweep(sweep, out, lanes=2, quiet=True)
    assert result.summary["complete"]
    assert sorted(row["trial"] for row in result.rows) == list(range(12))
    assert_same_trials(result, run_sweep(sweep, quiet=True))


def test_minutes_are_above_0_and_of_this_process(data, tmp_path):
    for minutes, on, words in ((0, None, "above 0; got 0"), (1, Ray(), "runs in this process; leave it out on Ray")):
        with pytest.raises(InputError, match=words):
            run_sweep(sweep_of(data), tmp_path, minutes=minutes, on=on)


def test_finished_trials_are_written_while_the_others_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0)
    out = tmp_path / "run"
    seen = []
    original = module.Progress.update

    def look(self, *args, **kwargs):
        seen.append(len(list(out.glob("rows-*.parquet"))))
        original(self, *args, **kwargs)

    monkeypatch.setattr(module.Progress, "update", look)
    run_sweep(sweep_of(data, (4, 1), [QUICKEST], seeds=3, snapshots=()), out, lanes=2, quiet=True)
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_finished_trials_are_written_while_nothing_else_ends(data, tmp_path, monkeypatch):
    """The first have ended when their ten seconds are over; the last one still runs."""
    monkeypatch.setattr(module, "FLUSH_SECONDS", float("inf"))
    ended, written = [], []
    finished, flush = module.Progress.finished, module.Session.flush

    def look(self, *args, **kwargs):
        if ended:
            monkeypatch.setattr(module, "FLUSH_SECONDS", -1)

    monkeypatch.setattr(module.Progress, "finished", lambda self, *args: [ended.append(args[0]), finished(self, *args)])
    monkeypatch.setattr(module.Progress, "update", look)
    monkeypatch.setattr(module.Session, "flush", lambda self: [written.append(sum(ended)), flush(self)])
    run_sweep(sweep_of(data, (4,), [QUICKEST], seeds=3, snapshots=()), tmp_path / "run", lanes=2, quiet=True)
    assert written[0] < 3


# --- mistakes ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "`seeds` must be above 0; got 0."),
        ({"seeds": -3}, "`seeds` must be above 0; got -3."),
        ({"seeds": 1.5}, "`seeds` must be a whole number; got 1.5."),
        ({"attacks": ()}, "`attack` must name at least one attack."),
        ({"attacks": (QUICK_DLG, QUICKEST, QUICK_DLG)}, "`attack` names must be distinct; got dlg, idlg, dlg."),
        ({"snapshots": (0, -1)}, "`snapshots` must be iterations, 0 or above; got [0, -1]."),
        (
            {"attacks": (QUICKEST,), "starts": {"image": np.zeros((1, 1, *SHAPE))}},
            "`starts` holds 1 rows of image; `seeds` asks for 2.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings(data, change, message):
    with pytest.raises(InputError) as error:
        sweep_of(data, **change)
    assert str(error.value) == message


@pytest.mark.parametrize("lanes", [0, -1])
def test_lanes_must_be_positive(data, lanes, tmp_path):
    with pytest.raises(InputError, match=r"^`lanes` must be above 0"):
        run_sweep(sweep_of(data), tmp_path / "run", lanes=lanes)
    assert not (tmp_path / "run").exists()


def test_unknown_attack_names_the_closest(data):
    with pytest.raises(InputError, match="Did you mean 'idlg'"):
        attack(make_victim(Tiny(CLASSES), data, [4]), ["dlg", "idgl"], seeds=1)


def test_the_last_dense_layer_is_the_head_whatever_its_name(data):
    result = attack(make_victim(Tiny(CLASSES, head="last"), data, [4]), QUICKEST, seeds=2, quiet=True)
    assert all(row["label_correct"] for row in result.rows)


def test_a_name_may_say_the_solver():
    assert get_attack("dlg").solver == LBFGS()
    published = get_attack("dlg:torch-lbfgs")
    assert (published.name, published.solver, published.iterations) == ("dlg:torch-lbfgs", TorchLBFGS(), 300)
    assert get_attack("idlg:adam").iterations == 4800
    with pytest.raises(InputError, match=r"^`solver` must be one of .*Did you mean 'torch-lbfgs'"):
        get_attack("dlg:torch-lbfg")
