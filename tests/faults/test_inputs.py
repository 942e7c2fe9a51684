"""What a user gets wrong is refused at once, in one line that says what, and under the user's own name for it."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxleak
from jaxleak import IDLG, LBFGS, Adam, Attack, InputError, Sweep, TorchLBFGS, load_dataset, make_victim
from jaxleak.results.store.run import Run
from jaxleak.threat.network import draw_params
from jaxleak.threat.victim import Victim
from tests.commands import call, refusal
from tests.sweeps import CLASSES, QUICK_IDLG, SHAPE, Tiny, sweep_of

MODEL = Tiny(CLASSES)
ROOT = Path(__file__).parents[2]


# --- another run in the same directory ---


def differences(path: Path, stored: dict, asked: dict) -> str:
    Run.create_or_resume(path, stored, {}).close()
    with pytest.raises(InputError) as caught:
        Run.create_or_resume(path, asked, {})
    return str(caught.value).partition("other settings: ")[2].partition(". Give")[0]


def settings(*attacks: Attack) -> dict:
    return {"attacks": [attack.settings() for attack in attacks], "seeds": 2}


def test_settings_of_one_attack_are_named(tmp_path):
    other = replace(IDLG, iterations=4, solver=replace(IDLG.solver, history=7))
    assert differences(tmp_path, settings(IDLG), settings(other)) == (
        "attacks.idlg.solver.history: 100 in the directory, 7 asked; "
        "attacks.idlg.iterations: 300 in the directory, 4 asked"
    )


def test_another_attack_and_another_number_of_them(tmp_path):
    said = differences(tmp_path / "a", settings(IDLG), settings(replace(IDLG, name="mine", label="bias")))
    assert 'attacks.idlg.name: "idlg" in the directory, "mine" asked' in said
    assert 'attacks.idlg.label: "idlg" in the directory, "bias" asked' in said
    said = differences(tmp_path / "b", settings(IDLG), settings(IDLG, replace(IDLG, name="mine")))
    assert said == 'attacks: ["idlg"] in the directory, ["idlg","mine"] asked'


@pytest.mark.parametrize("change", [0, 40, 99])
def test_long_values_are_shown_where_they_differ(change, tmp_path):
    stored, asked = list(range(100, 200)), list(range(100, 200))
    asked[change] = 777
    said = differences(tmp_path, {"images": stored}, {"images": asked})
    assert str(100 + change) in said.partition(" in the directory")[0]
    assert "777" in said.partition(" in the directory")[2]
    assert len(said) < 250


# --- data sets ---


def npz(folder: Path, **arrays) -> Path:
    np.savez(folder / "own.npz", **{"images": np.zeros((2, *SHAPE), np.uint8), "labels": [0, 1], **arrays})
    return folder / "own.npz"


def refused_data(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(path)
    return str(caught.value)


def test_a_label_that_would_need_billions_of_classes(tmp_path):
    assert "labels must be below 100,000, " in (said := refused_data(npz(tmp_path, labels=[0, 3_000_000_000])))
    assert "the largest is 3000000000. Number the classes from 0." in said


def test_values_that_no_data_set_has_are_named(tmp_path):
    assert "labels must be whole numbers from 0; the least is -1." in refused_data(npz(tmp_path, labels=[0, -1]))
    pixels = np.zeros((2, *SHAPE))
    pixels[1, 0, 0, 0] = np.nan
    said = refused_data(npz(tmp_path, images=pixels))
    assert "images must be finite; not those of index 1." in said
    assert "largest" not in said
    said = refused_data(npz(tmp_path, labels=np.array([0, None])))
    assert "it holds Python objects" in said
    assert "allow_pickle" not in said


def test_an_empty_name_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    assert "`dataset` must be one of photos, " in refusal("run", "--dataset", "", "--out", "run")


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_would_be_waited_for_is_no_picture(kind, pictures):
    if kind == "pipe":
        os.mkfifo(pictures / "f.png")
    else:
        socket.socket(socket.AF_UNIX).bind(str(pictures / "f.png"))
    assert refused_data(pictures).endswith("f.png', which is not a picture; remove it.")


@pytest.mark.timeout(30)
def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe or a device" in refused_data(tmp_path / "pipe")
    victim = ("--weights", tmp_path / "pipe", "--network", "shared", "--out", tmp_path / "run")
    assert "`weights` must be a file of tensors (safetensors, .npz, torch.save); " in refusal("run", *victim)
    assert "is a directory" in refusal("run", "--weights", tmp_path, "--network", "shared", "--out", tmp_path / "run")


def test_what_file_managers_leave_is_skipped(pictures):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", ".hidden.png"):
        (pictures / name).write_text("no picture")
    assert len(load_dataset(pictures)) == 2
    (pictures / "class").mkdir()
    for name in ("a.png", "b.png"):
        (pictures / name).rename(pictures / "class" / name)
    (pictures / "class" / "Thumbs.db").write_text("no picture")
    assert len(load_dataset(pictures)) == 2


# --- histories ---


@pytest.mark.parametrize("kind", [LBFGS, TorchLBFGS])
def test_no_more_pairs_are_kept_than_steps_make(kind):
    attack = replace(IDLG, solver=kind(history=100_000_000), iterations=3)
    assert attack.minimiser.history == 60
    assert replace(attack, max_evaluations=10).minimiser.history == 30
    assert replace(attack, solver=kind()).minimiser.history == 60
    assert replace(attack, solver=kind(), iterations=300).minimiser.history == 100
    assert replace(IDLG, solver=Adam()).minimiser == Adam()


def test_a_history_that_fits_no_memory_is_refused(data, tmp_path):
    attack = replace(IDLG, solver=LBFGS(history=100_000_000), iterations=10_000_000)
    with pytest.raises(InputError, match=r"`lanes` cannot be fewer than one .* Use a smaller history, model or image"):
        jaxleak.attack(sweep_of(data).victim, attack, seeds=1, quiet=True)


# --- where results and words go ---


@pytest.mark.parametrize(
    "command", [("run", "--images", 1, "--seeds", 1, "--out"), ("risk", "--out"), ("infer", "--out"), ("table",)]
)
def test_places_that_there_cannot_be(command):
    assert "`s3://` names no bucket; give s3://BUCKET/PATH." in refusal(*command, "s3://")
    assert "cannot be reached (File name too long)" in refusal(*command, f"/tmp/{'a' * 300}")


def said_by_shell(command: str, unbuffered: str) -> tuple[int, list[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    line = f"{sys.executable} -m jaxleak {command}"
    done = subprocess.run(line, shell=True, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["models --only mlp --no-measure", "table --help"])
def test_words_that_cannot_be_written(command, unbuffered):
    """All commands print in the same way; none is quicker than these."""
    assert said_by_shell(f"{command} >&-", unbuffered) == (1, [])
    full = ["jaxleak: the output cannot be written (No space left on device)."]
    assert said_by_shell(f"{command} >/dev/full", unbuffered) == (1, full)


# --- what a victim is made of ---


def refused(make, *arguments, **changes) -> str:
    with pytest.raises(InputError) as caught:
        make(*arguments, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def victim(data) -> Victim:
    params = jax.tree.map(np.asarray, draw_params(MODEL, jax.random.key(0), SHAPE))
    return replace(make_victim(MODEL, data, [0], network="shared"), params=params)


class Empty(nn.Module):
    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, x):
        return x.reshape(len(x), -1)[:, : self.num_classes]


def test_a_model_without_parameters(data):
    words = "`model` must have parameters, whose gradient is shared; "
    assert words in refused(make_victim, Empty(), data, [0])
    assert words in refused(draw_params, Empty(), jax.random.key(0), SHAPE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "photos"}, "`data` must be a Dataset, as `load_dataset` gives it; got 'photos'."),
        ({"images": 3}, "`images` must be indices in the data set, as in [0, 1]; got 3."),
        ({"images": "3"}, "`images` must be indices in the data set, as in [0, 1]; got '3'."),
        (
            {"defences": "prune:0.5"},
            "`defences` must be a tuple, as in (parse_defence('prune:0.5'),); got 'prune:0.5'.",
        ),
        ({"defences": ("prune:0.5",)}, "`defences` must be a tuple, as in (parse_defence('prune:0.5'),); got ('prune"),
        ({"client": "sgd"}, "`client` must be a Client; got 'sgd'."),
        ({"defense": ()}, "got 'defense'. Did you mean 'defences'?"),
    ],
)
def test_wrong_types_for_a_victim(changes, words, data):
    assert words in refused(make_victim, MODEL, **{"data": data, "images": [0], **changes})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.array([3])}, "`labels` must be from 0 to 2, as the model has 3 outputs; got 3."),
        ({"labels": np.array([-1])}, "`labels` must be from 0 to 2, as the model has 3 outputs; got -1."),
        ({"labels": np.array([np.nan])}, "`labels` must be 1 whole numbers, one for each image; got float64"),
        ({"labels": np.array([0, 1])}, "`labels` must be 1 whole numbers, one for each image; got int64 of shape (2,)"),
        ({"images": np.full((1, *SHAPE), 255.0)}, "`images` must be in [0, 1]; got 255 to 255. Divide pixels"),
        ({"images": np.full((1, *SHAPE), 255, np.uint8)}, "`images` must be floats in [0, 1]; got uint8. Divide"),
        ({"images": np.full((1, *SHAPE), np.inf)}, "`images` must be in [0, 1]; got inf to inf."),
        ({"images": np.zeros((1, 1, 8, 8))}, "`images` must have shape [n, h, w, c], channels last; got (1, 1, 8, 8)."),
        ({"images": np.zeros(SHAPE)}, "`images` must have shape [n, h, w, c]; got (8, 8, 1)."),
        ({"images": np.zeros((2, *SHAPE))}, "`images` must be one for each of the 1 `indices`; got shape (2, 8, 8, 1)"),
        ({"images": "photos"}, "`images` must be an array of numbers; got <U6."),
        ({"model": "lenet"}, "`model` must be a Linen module or what `adapt_model` gives; got 'lenet'."),
        ({"num_classes": 0}, "`num_classes` must be above 0; got 0."),
        ({"params": {}}, "`params` must be a tree of arrays like the model's params; got none."),
    ],
)
def test_fields_that_a_victim_cannot_have(change, words, victim):
    assert words in refused(replace, victim, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.full((1, *SHAPE), np.nan), "labels": np.array([-1])},  # not known
        {"images": np.full((1, *SHAPE), 1.0005)},
        {"images": np.full((1, *SHAPE), -0.0005, np.float32), "labels": [2]},
        {"images": jnp.zeros((1, *SHAPE), jnp.bfloat16), "labels": jnp.array([2])},
    ],
)
def test_fields_that_a_victim_may_have(change, victim):
    assert replace(victim, **change).indices == [0]


def test_updates_and_weights_are_trees_of_floats_and_alike(victim):
    update = jax.tree.map(np.ones_like, victim.params)
    assert replace(victim, update=update, labels=np.array([-1])).update is update
    for kind in (bool, int):
        broken = {**update, "head": {**update["head"], "bias": np.ones(CLASSES, kind)}}
        got = np.dtype(kind).name
        for name in ("update", "params"):
            said = refused(replace, victim, **{name: broken})
            assert f"`{name}` must be arrays of floats; head/bias is {got}." in said
    broken = {**update, "head": {**update["head"], "bias": np.ones(7)}}
    said = refused(replace, victim, update=broken)
    assert said == "`update` must be a tree like `params`: head/bias is (7,), not (3,)."
    assert "first/bias is missing" in refused(replace, victim, update={"head": update["head"]})
    assert "more is unknown" in refused(replace, victim, update={**update, "more": np.ones(1)})


def test_wrong_types_for_an_attack(victim, tmp_path):
    run = jaxleak.attack
    assert "`victim` must be a Victim, " in refused(run, "lenet", "idlg", seeds=1)
    assert "`attack` must be an Attack or a name, one of best, dlg, " in refused(run, victim, 3, seeds=1)
    assert "`attack` must be an Attack or a name, one of best, dlg, " in refused(run, victim, [None], seeds=1)
    assert "`attacks` must be a tuple of Attack objects" in refused(Sweep, victim=victim, attacks=("idlg",), seeds=1)
    assert "`solver` must be a solver, as in Adam()" in refused(Attack, name="mine", solver="adam")
    assert "`update` must be the path of a file of tensors (safetensors, .npz, torch.save); got " in refused(
        jaxleak.load_update, victim.params, tmp_path / "w.safetensors"
    )
    assert "`update` must be the path" in refused(jaxleak.load_update, 3, 3)


def test_an_attack_inside_jit(victim):
    words = "`attack` writes files and cannot be called inside jax.jit; call it outside."
    assert refused(jax.jit(lambda x: jaxleak.attack(victim, QUICK_IDLG, seeds=1) and x), 1.0) == words
    made = jax.jit(lambda images: replace(victim, images=images) and images)
    assert "`images` must be numbers; got an array that jax is tracing." in refused(made, victim.images)


# --- names ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("run --success-error 0", "`success_error` must be a finite number above 0; got 0.0."),
        ("run --success-objective 0", "`success_objective` must be a finite number above 0; got 0.0."),
        ("run --success-cosine 0", "`success_cosine` must be a finite number above 0; got 0.0."),
        ("run --num-images 1 --batch 61", "`batch` asks for 1 times 61 images; photos has 60."),
        ("run --client-steps -1", "`client_steps` must be 0 or above; got -1."),
        ("run --sedes 3", "--sedes is no flag of jaxleak run; did you mean --seeds?"),
        ("run --report", "--report is no flag of jaxleak run; did you mean --no-report?"),
        ("run --figures", "--figures is no flag of jaxleak run; did you mean --no-figures?"),
        (
            "attack --dataset photos",
            "--dataset is no flag of jaxleak attack; it is one of jaxleak run, jaxleak risk, jaxleak",
        ),
        ("table --foo=3", "--foo is no flag of jaxleak table; see jaxleak table --help."),
        ("--seeds 3", "--seeds is no flag of jaxleak itself; it is one of jaxleak run, jaxleak attack."),
        ("tabel RUN", "`command` must be one of attack, bench, doctor, infer, models, "),
        ("tabel RUN", "got 'tabel'. Did you mean 'table'?"),
    ],
)
def test_mistakes_go_by_the_users_names(flags, words, tmp_path):
    command, *rest = flags.split()
    out = ("--out", tmp_path / "run") if command == "run" else ()
    assert words in refusal(command, *rest, *out)


def test_flags_may_be_written_with_underscores_and_help_comes_first(tmp_path):
    assert "got 0" in refusal("run", "--num_images=0", "--out", tmp_path / "run")
    assert call("run", "--sedes", "--help").code == 0


def test_the_truths_data_set_goes_by_its_flag(tmp_path):
    from jaxleak.threat.own_update import _truth

    said = refused(_truth, npz(tmp_path, labels=[0, -1]), None, SHAPE, 2)
    assert said.startswith("`truth` ")


def test_rows_are_handed_out_as_a_frame(data, tmp_path, monkeypatch):
    result = jaxleak.run_sweep(sweep_of(data, attacks=(QUICK_IDLG,)), tmp_path / "run", quiet=True)
    assert result.run.table().num_rows == 6
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if it were not installed
    assert refused(result.frame) == "`frame` needs pandas: pip install pandas; `table()` is an Arrow table."
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    frame = result.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["trial"].tolist() == list(range(6))
    assert frame["success"].sum() == sum(row["success"] for row in result.rows)


def test_a_result_is_told_in_three_lines(data, tmp_path):
    result = jaxleak.run_sweep(sweep_of(data, attacks=(QUICK_IDLG,)), tmp_path / "run", quiet=True)
    first, rates, names = repr(result).splitlines()
    assert first == f"Result: 6 of 6 trials, {tmp_path / 'run'}"
    assert rates.startswith(
        f"solved: idlg {sum(row['success'] for row in result.rows)}/6, {result.success_rate()[0]:.0%}"
    )
    assert "success_rate()" in names
    page = result._repr_html_()
    assert page.count("<tr>") == 2
    assert f"{result.success_rate()[0]:.0%}</td>" in page
