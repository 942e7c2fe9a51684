"""The command line: what it refuses in one line, what it says, and what a run leaves. Stops are in test_resume.py."""

import json
import re
import shutil
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxleak
from jaxleak import cli, engine
from jaxleak.attacks.labels import LABEL_STRATEGIES
from jaxleak.attacks.objectives import OBJECTIVES, SCALES
from jaxleak.attacks.presets import ATTACKS
from jaxleak.attacks.starts import CLOSED, INITS
from jaxleak.cli.commands import RUN_GROUPS
from jaxleak.cli.parse import GROUPS, RENAMED, flag_texts
from jaxleak.results.store.run import Run
from jaxleak.results.summary import ENGINE_KEYS
from jaxleak.results.verdict import STATUSES
from jaxleak.solvers import SOLVERS
from jaxleak.solvers.first_order import SCHEDULES, SIGNS
from jaxleak.solvers.jaxopt_lbfgs import LINE_SEARCHES
from jaxleak.threat.defences import DEFENCES
from jaxleak.threat.loss import LOSSES, REDUCTIONS
from jaxleak.threat.network import NETWORKS, NORMALISATIONS
from jaxleak.threat.optimizers import OPTIMIZERS
from tests.commands import Said, call, refusal, restored_globals

FIGURES = {"recovery.png", "convergence.png", "success_by_image.png", "mse_shares.png"}


@pytest.fixture
def no_engine(monkeypatch):
    """Nothing may be compiled."""

    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(engine.Engine, "run", never)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Four grey pictures of 8 by 8 pixels in three classes."""
    path = tmp_path_factory.mktemp("pictures") / "small.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(4) % 3)
    return path


# --- refused before anything is computed or written ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        # unknown names
        (
            "--attack dgl",
            "gradinversion, idlg, ig, modern, rgap, sme, spear, tag; got 'dgl'. Did you mean 'dlg'?",
        ),
        ("--attack dlg idgl", "got 'idgl'. Did you mean 'idlg'?"),
        ("--attack dlg dlg", "`attack` names must be distinct; got dlg, dlg."),
        ("--attack", "`attack` must name at least one"),
        ("--model lenett", "resnet34, resnet50, transformer, vit; got 'lenett'. Did you mean 'lenet'?"),
        (
            "--dataset cifar10",
            "`dataset` must be one of cifar100, lfw, mnist, photos, text; got 'cifar10'. Did you mean",
        ),
        ("--dataset nowhere/pictures.npz", "`dataset` 'nowhere/pictures.npz' does not exist"),
        (
            "--attack dlg:torch-lbgfs",
            "`solver` must be one of adam, jaxopt-lbfgs, lbfgs, none, optax-lbfgs, torch-lbfgs; got",
        ),
        (
            "--attack dgl:lbfgs",
            "gradinversion, idlg, ig, modern, rgap, sme, spear, tag; got 'dgl'. Did you mean 'dlg'?",
        ),
        ("--attack dlg:", "got ''"),
        ("--solver torch-lbgfs", "Did you mean 'torch-lbfgs'?"),
        ("--solver jaxopt-lbfgs --line-search zom", "Did you mean 'zoom'?"),
        ("--line-search zom", "Did you mean 'zoom'?"),
        ("--network per-trail", "`network` must be one of per-image, per-trial, shared; got 'per-trail'. Did you mean"),
        ("--dataset photos --split trian", "`split` must be one of all; got 'trian'."),
        # images
        ("--image-size 0", "`image_size` must be above 0; got 0."),
        ("--images 4", "`images` index 4 is not in {pictures}; the valid range is 0 to 3."),
        ("--images 0 -1", "`images` index -1 is not in {pictures}; the valid range is 0 to 3."),
        ("--images", "`images` must name at least one image."),
        ("--images 1 2 1", "`images` must be distinct; 1 is named twice."),
        ("--images 1 --num-images 1", "`images` and `num_images` exclude each other"),
        ("--num-images 5", "`num_images` must be at most 4, all of {pictures}; got 5."),
        ("--image-seed -1", "`image_seed` must be 0 or more; got -1."),
        # counts and numbers
        *[
            (f"--{name} {value}", f"`{name.replace('-', '_')}` must be above 0; got {value}")
            for name in ("seeds", "num-images", "lanes", "iterations", "max-evaluations", "history", "minutes")
            for value in (0, -3)
        ],
        ("--seeds 5000000000", "`seeds` times images times attacks must be at most 10,000,000; got 40,000,000,000."),
        ("--solver torch-lbfgs --lr 0", "`lr` must be above 0; got 0"),
        ("--attack dlg:torch-lbfgs --lr nan", "`lr` must be above 0; got nan."),
        ("--solver adam --lr 0", "`lr` must be above 0; got 0.0."),
        ("--solver lbfgs --lr 1", "`lr` must not be given with the solver lbfgs"),
        ("--solver optax-lbfgs --lr 1", "`lr` must not be given with the solver optax-lbfgs"),
        ("--solver jaxopt-lbfgs --lr -1", "`lr` must be above 0; got -1.0."),
        ("--attack dlg dlg:torch-lbfgs --lr 1", "`lr` must not be given with the solver lbfgs"),
        ("--solver torch-lbfgs --lr inf", "`lr` must be "),
        ("--scale relatve", "`scale` must be one of none, per-tensor, relative; got 'relatve'. Did you mean"),
        ("--label-term -1", "`label_term` must be 0 or above; got -1.0."),
        ("--stop-objective inf", "`stop_objective` must be "),
        # In float32 jax reads 32 bits of a seed: 2**32 is 0 again, and -1 another one than in float64.
        *[
            (f"--{name} {value}", f"`{name.replace('-', '_')}` must be ")
            for name in ("start-seed", "network-seed")
            for value in (-1, 2**32, 10**20)
        ],
        ("--stop-objective -1", "`stop_objective` must be 0 or above; got -1.0."),
        ("--stop-relative -1", "`stop_relative` must be 0 or above; got -1.0."),
        ("--success-objective 0", "`success_objective` must be a finite number above 0; got 0.0."),
        ("--success-error nan", "`success_error` must be a finite number above 0; got nan."),
        ("--mse-thresholds 0.1 0", "`mse_thresholds` must be a finite number above 0; got 0.0."),
        ("--mse-thresholds", "`mse_thresholds` must be one or more numbers"),
        ("--snapshot-seeds -1", "`snapshot_seeds` must be 0 or above; got -1."),
        ("--snapshots 0 -1", "`snapshots` must be iterations, 0 or above; got [0, -1]."),
        ("--success-cosine 0", "`success_cosine` must be a finite number above 0; got 0.0."),
        # batches
        ("--batch 0", "`batch` must be above 0; got 0."),
        ("--images 0 1 2 --batch 2", "`images` must come in whole batches of 2; there are 3. Change --batch, --images"),
        ("--num-images 3 --batch 2", "`batch` asks for 3 times 2 images; {pictures} has 4. Use fewer or smaller"),
        ("--num-images 1 --batch 3 --batch-labels same", "{pictures} has 0. Use fewer or smaller batches, or --batch-"),
        ("--batch-labels sane", "`batch_labels` must be one of any, distinct, same; got 'sane'. Did you mean 'same'?"),
        (
            "--images 0 1 --batch-labels same",
            "`batch_labels` is for images drawn at random; leave it out with --images",
        ),
        ("--images 0 1 2 3 --batch 4 --label idlg", "as many classes as images; got 4 images and 3 classes."),
        ("--images 0 --dummies 0", "`dummies` must be above 0; got 0."),
        # what the client does
        ("--client-steps -1", "`client_steps` must be 0 or above; got -1."),
        (
            "--client-steps 1 --client-epochs 1",
            "`client_steps` and `client_epochs` exclude each other; give one of them",
        ),
        (
            "--client-steps 1 --client-optimizer adamx",
            "`client_optimizer` must be one of adam, adamw, sgd; got 'adamx'. Did",
        ),
        ("--client-steps 1 --client-lr 0", "`client_lr` must be above 0; got 0.0."),
        ("--client-batch 1", "`client_batch` is for local steps; give --client-steps or --client-epochs too."),
        ("--images 0 1 --batch 2 --clients 3", "`clients` must divide the images of an update, 2; got 3. Change"),
        ("--batch 2 --client-steps 1 --client-batch 3", "`client_batch` must be at most a client's images, 2; got 3."),
        ("--normalise mnits", "`normalise` must be one of cifar10, cifar100, imagenet, mnist, none; got 'mnits'. Did"),
        ("--images 0 --normalise cifar10", "`normalise` must fit images of 1 channels; got 3 means."),
        ("--trained-steps -1", "`trained_steps` must be 0 or above; got -1."),
        (
            "--trained-steps 5",
            "with `network` per-trial that is one for each trial. Use --network shared or per-image,",
        ),
        ("--trained-steps 5 --network shared", "`trained_steps` needs at least 64 images to train on;"),
        ("--trained-on onw", "`trained_on` must be one of data, own; got 'onw'. Did you mean 'own'?"),
        ("--train-optimizer rmsprop", "`train_optimizer` must be one of adam, adamw, sgd; got 'rmsprop'."),
        # defences
        ("--defence gausian:0.1", "got 'gausian'. Did you mean 'gaussian'?"),
        ("--defence gaussian", "`defence` gaussian is written gaussian:SIGMA; got 'gaussian'."),
        ("--defence prune:x", "`defence` 'prune:x': `share` must be a number; got 'x'. It is written prune:SHARE."),
        ("--defence prune:20", "`share` must be from 0 to 1; got 20.0. For 20 % write 0.2."),
        ("--defence clip:1 dp-sgd:1:1", "`defence` dp-sgd acts on the gradient of each image, before all others; got"),
        (
            "--defence dp-sgd:1:1 --client-steps 1",
            "`defence` dp-sgd clips the gradients of single images and needs one",
        ),
        ("--defence-draw per-tiral", "`defence_draw` must be one of per-trial, per-victim; got 'per-tiral'. Did you"),
        ("--defence-seed -1", "`defence_seed` must be from 0 to 4294967295; got -1."),
        (
            "--knows-defence True",
            "`knows_defence` leaves out the entries that a defence set to zero; give one of prune,",
        ),
        (
            "--knows-defence True --defence prune:0.5 laplace:1",
            "with no noise after it; or finds the noise of precode.",
        ),
        # the attacks' own fields
        ("--start patern-16", "`start` must be one of analytic, april, black, blue, dager, green, normal, "),
        ("--start pattern-0", "got 'pattern-0'."),
        ("--start red --images 0", "`start` red needs pictures with three channels; these have 1. Use black or white."),
        (
            "--start surrogate --images 0 1 2 3",
            "`start` surrogate needs an image of the data set that is not attacked;",
        ),
        ("--label knwon", "`label` must be one of bias, counts, counts-published, idlg, joint, known, row-minima, "),
        (
            "--objective cosin",
            "`objective` must be one of cosine, l1, l2, likelihood; got 'cosin'. Did you mean 'cosine'?",
        ),
        ("--layers haed", "name layers of the network: conv1, conv2, conv3, head; got 'haed'. Did you mean 'head'?"),
        ("--layers conv1:-1", "a weight from 0 up after a colon if it is not 1, such as conv1 or conv1:4.0; got"),
        ("--images 0 --statistics 1", "`statistics` needs a model with BatchNorm; lenet has none. Leave it 0."),
        ("--images 0 --statistics 1 --client-steps 2", "`statistics` are those of one batch and one step; leave it 0"),
        ("--tv -1", "`tv` must be 0 or above; got -1.0."),
        ("--group 4", "`group` needs the solver adam: it is not a step of lbfgs. Leave `group` out, or use adam."),
        (
            "--box True --box-by projection",
            "`box` by projection needs the solver adam: it is not a step of lbfgs. Leave",
        ),
        ("--box-by sine", "`box_by` says how pixels are kept in [0, 1]; give --box True too."),
        ("--box True --box-by sinus", "`box_by` must be one of"),
        (
            "--solver adam --group-mean True",
            "`group_mean` needs a `group` of at least 2 starts to take the mean of; give",
        ),
        ("--solver adam --consistency 1", "`consistency` needs a `group` of at least 2 starts that can agree; give"),
        ("--attack ig --sign sotf", "`sign` must be one of hard, none, soft; got 'sotf'. Did you mean 'soft'?"),
        ("--sign hard", "`sign` is a setting of the solver adam, not of lbfgs; leave it out, or use --solver adam."),
        ("--attack ig --schedule cos", "`schedule` must be one of constant, cosine, step; got 'cos'."),
        ("--attack ig --warmup -1", "`warmup` must be 0 or above; got -1."),
        (
            "--solver none",
            "`start` analytic is the image itself and goes with the solver none, and the other way round;",
        ),
        ("--attack analytic --lr 1", "`lr` must not be given with the solver none"),
        (
            "--attack analytic --images 0",
            "analytic recovery needs a model whose first layer is dense, such as mlp; got",
        ),
        (
            "--attack analytic --model mlp --images 0 1 --batch 2",
            "`attack` analytic reads one image from one gradient; use --batch 1.",
        ),
        ("--attack gradinversion --images 0 1 --batch 2", "`statistics` needs a model with BatchNorm; lenet has none."),
    ],
)
def test_wrong_flags(flags, words, pictures, tmp_path, no_engine):
    """A flag given twice counts once, the last time: `--dataset` in `flags` is the one taken."""
    line = refusal("run", "--dataset", pictures, "--out", tmp_path / "run", *flags.split())
    assert words.format(pictures=pictures) in line
    assert not list(tmp_path.iterdir())


def test_a_data_directory_that_is_not_there(tmp_path, no_engine, monkeypatch):
    monkeypatch.delenv("JAXLEAK_DATA_DIR", raising=False)
    missing = tmp_path / "missing"
    line = refusal("run", "--dataset", "cifar100", "--data-dir", missing, "--out", tmp_path / "run")
    assert f"`data_dir` '{missing}' is not a directory" in line
    monkeypatch.setenv("JAXLEAK_DATA_DIR", str(missing))
    assert f"JAXLEAK_DATA_DIR '{missing}' is not" in refusal("run", "--dataset", "lfw", "--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cifar100", "mnist", "lfw"])
def test_a_data_set_that_is_not_prepared(name, tmp_path, no_engine):
    """The line says the command that prepares it, and what that needs."""
    line = refusal("run", "--dataset", name, "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert f"`dataset` {name} is not prepared in {tmp_path}" in line
    assert "needs TensorFlow" in line
    assert f"tfds.builder('{name}', data_dir='{tmp_path}'" in line
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_that_is_not_a_picture(tmp_path, no_engine):
    from PIL import Image

    folder = tmp_path / "own"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "notes.txt").write_text("not a picture")
    line = refusal("run", "--dataset", folder, "--out", tmp_path / "run")
    assert f"`dataset` holds '{folder / 'notes.txt'}', which is not a picture; remove it." in line
    (folder / "notes.txt").rename(tmp_path / "notes.npz")
    line = refusal("run", "--dataset", tmp_path / "notes.npz", "--out", tmp_path / "run")
    assert "is neither a folder of pictures nor a readable .npz file" in line
    assert not (tmp_path / "run").exists()


# --- weights ---


def test_weights_that_do_not_fit(pictures, tmp_path, no_engine):
    file = tmp_path / "weights.safetensors"

    def refused(path=file, network="shared") -> str:
        flags = ("--weights", path, "--network", network, "--images", 1, "--out", tmp_path / "run")
        line = refusal("run", "--dataset", pictures, *flags)
        assert not (tmp_path / "run").exists()
        return line

    assert (
        f"`weights` must be a file of tensors (safetensors, .npz, torch.save); there is no file '{file}'." in refused()
    )
    assert f"{str(tmp_path)!r} is a directory" in refused(tmp_path)
    file.write_bytes(b"PK\x03\x04 a file of another kind")
    assert f"`weights` must be a file of tensors (safetensors, .npz, torch.save); '{file}' cannot be read" in refused()
    save_file({"body.0.weight": np.zeros((12, 3, 5, 5), np.float32), "extra": np.zeros(1, np.float32)}, file)
    line = refused()
    assert "`weights` do not fit LeNet with 3 classes on 8x8x1 images" in line
    assert "body.0.weight is [12, 3, 5, 5], not [12, 1, 5, 5]" in line
    assert "missing body.0.bias" in line
    assert "unknown extra" in line
    for network in ("per-image", "per-trial"):
        assert f"`weights` are one network for all trials and need `network` shared; got '{network}'." in refused(
            network=network
        )


# --- directories ---


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00garbage", b"[]", b'{"format": 1}'])
def test_an_unreadable_run_directory(content, pictures, tmp_path, no_engine):
    (tmp_path / "run.json").write_bytes(content)
    for line in (
        refusal("run", "--dataset", pictures, "--images", 1, "--out", tmp_path),
        refusal("table", tmp_path),
        refusal("plot", tmp_path),
    ):
        assert f"{tmp_path / 'run.json'} is damaged" in line
    assert (tmp_path / "run.json").read_bytes() == content
    assert not list(tmp_path.glob("rows-*"))


def test_a_directory_of_something_else(pictures, tmp_path, no_engine):
    (tmp_path / "thesis.tex").write_text("important")
    line = refusal("run", "--dataset", pictures, "--images", 1, "--out", tmp_path)
    assert f"`out` {tmp_path} is not empty and not a run directory" in line
    line = refusal("run", "--dataset", pictures, "--images", 1, "--out", tmp_path / "thesis.tex")
    assert f"`out` must be a directory; {tmp_path / 'thesis.tex'} is a file." in line
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("command", ["table", "plot"])
def test_table_and_plot_want_run_directories(command, tmp_path):
    assert "`runs` must name at least one run directory." in refusal(command)
    assert f"run directory {tmp_path / 'no'} does not exist" in refusal(command, tmp_path / "no")
    (tmp_path / "file").write_text("")
    assert f"run directory {tmp_path / 'file'} is not a directory" in refusal(command, tmp_path / "file")
    assert f"{tmp_path} is not a run directory (no run.json)" in refusal(command, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# --- bench ---


@pytest.fixture
def no_worker(monkeypatch):
    """No process may be started."""
    from jaxleak.bench import runner

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(runner, "Team", never)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--only jaxleek",
            "`only` must be one of jaxleak, jaxleak-cosine, jaxleak-lbfgs, jaxleak-network-per-trial, jaxopt,",
        ),
        ("--only jaxopt jaxleek", "got 'jaxleek'. Did you mean 'jaxleak'?"),
        ("--only", "`only` must name at least one of pytorch-processes,"),
        ("--model lenett", "resnet50, transformer, vit; got 'lenett'. Did you mean 'lenet'?"),
        ("--lanes auto 0", "`lanes` must be above 0; got 0."),
        ("--seconds -1", "`seconds` must be above 0; got -1.0."),
        ("--seconds inf", "`seconds` must be finite; got inf."),
        ("--rounds 0", "`rounds` must be above 0; got 0."),
        ("--width 0", "`width` must be above 0; got 0."),
        ("--out {folder}/missing/bench.json", "there is no directory {folder}/missing; make it first."),
        ("--out {folder}", "`out` must be a file; {folder} is a directory."),
    ],
)
def test_bench_refuses_at_once(flags, words, tmp_path, no_worker):
    assert words.format(folder=tmp_path) in refusal("bench", *flags.format(folder=tmp_path).split())
    assert not list(tmp_path.iterdir())


def test_bench_says_and_writes_what_it_found(monkeypatch, tmp_path):
    """An interrupted measurement too; the rest of the report is tested in test_bench.py."""
    from jaxleak.bench import runner

    monkeypatch.setattr(runner.Bench, "run", lambda bench: setattr(bench, "interrupted", True))
    said = call("bench", "--only", "jaxleak", "--seconds", 5, "--out", tmp_path / "bench.json")
    assert said.code == cli.INTERRUPTED
    assert "jaxleak: interrupted" in said.out
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["settings"]["seconds"] == 5
    assert report["variants"][0]["evaluations_per_second"] is None


def test_a_run_of_no_time_says_so(pictures, tmp_path):
    said = call("run", "--dataset", pictures, "--images", 1, "--seeds", 2, "--minutes", 1e-9, "--out", tmp_path / "run")
    assert said.code == 0, said.err
    assert "partial: 0 of 4 trials" in said.out
    assert said.out.splitlines()[-1].endswith("0 rows, summary.json; the time is over, and the same command goes on")


# --- help ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["run", "table", "plot", "report", "bench"]),
        (
            ("run",),
            [
                *("--attack", "--model", "--dataset", "--data-dir", "--split", "--images", "--num-images"),
                *("--image-seed", "--seeds", "--start-seed", "--network", "--network-seed", "--weights", "--solver"),
                *("--lr", "--history", "--line-search", "--iterations", "--stop-objective", "--stop-relative"),
                *("--success-objective",),
                *("--success-error", "--mse-thresholds", "--snapshots", "--snapshot-seeds", "--lanes", "--x64"),
                *("--no-figures", "--no-report", "--out"),
                *("Example:", "the same command continues", "per-trial", "torch-lbfgs"),
            ],
        ),
        (("infer",), ["--what", "words", "membership", "property", "--property", "framed", "--updates", "Example:"]),
        (("table",), ["--by-image", "Run directories"]),
        (("plot",), ["Run directories"]),
        (("report",), ["Run directories", "--out", "--trials", "--title", "Example:"]),
        (
            ("bench",),
            [
                *("--model", "--only", "--lanes", "--seconds", "--rounds", "--width", "--profile", "--out", "Example:"),
                *("pytorch-processes", "pytorch-serial", "plain-vmap", "jaxopt", "jaxleak-network-per-trial"),
            ],
        ),
    ],
    ids=["main", "run", "infer", "table", "plot", "report", "bench"],
)
def test_help(arguments, words):
    said = call(*arguments, "--help")
    assert said.code == 0
    flat = " ".join(said.out.replace("│", " ").split())
    assert not [word for word in words if word not in flat]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_flags_that_may_be_left_out_say_what_they_take(command):
    """A name, a number and so on; and no default that is no value."""
    said = call(command, "--help").out
    assert not re.search(r"None|\b(STR|INT|FLOAT)\b|default: \)|default: (True|False)", said)


def test_flags_are_shown_in_groups_the_most_needed_first():
    said = call("run", "--help").out
    titles = re.findall(r"^\W*([a-z-]+) options\W*$", said, re.MULTILINE)
    assert titles == [name.replace("_", "-") for name in RUN_GROUPS]
    first = said[: said.index("private-images options")]
    assert {"--out", "--attack", "--model", "--dataset", "--seeds"} <= set(re.findall(r"--[a-z-]+", first))
    assert len(re.findall(r"^\W* --", first, re.MULTILINE)) < 10


@pytest.mark.parametrize("command", [kind for kind, _ in cli.COMMANDS.values()])
def test_each_text_stands_alone(command):
    """It does not lean on the flag before it; tyro keeps no line break of the source."""
    texts = flag_texts(command)
    assert set(texts) == {field.name for field in fields(command)}
    leaning = ("Its ", "Of ", "...", "(this", "From which", "Just these of that")
    assert not [text for text in texts.values() if text.startswith(leaning) or "\n" in text]


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("attack", ATTACKS),
        ("solver", set(SOLVERS) - {"none"}),
        ("start", set(INITS) - set(CLOSED)),
        ("label", LABEL_STRATEGIES),
        ("objective", OBJECTIVES),
        ("scale", SCALES),
        ("defence", DEFENCES),
        ("network", NETWORKS),
        ("normalise", NORMALISATIONS),
        ("client_optimizer", OPTIMIZERS),
        ("train_optimizer", OPTIMIZERS),
        ("loss", LOSSES),
        ("reduction", REDUCTIONS),
        ("schedule", SCHEDULES),
        ("sign", SIGNS),
        ("line_search", LINE_SEARCHES),
    ],
)
def test_the_texts_name_everything_that_can_be_given(flag, names):
    words = set(re.findall(r"[\w-]+", flag_texts(cli.RunCommand)[flag]))
    assert not set(names) - words


@pytest.mark.parametrize("kind", GROUPS)
def test_the_groups_hold_every_flag_once(kind):
    grouped = [field.name for group in GROUPS[kind].values() for field in fields(group)]
    assert sorted(grouped) == sorted(field.name for field in fields(kind))


def test_a_flag_that_does_not_exist_or_is_lacking(tmp_path):
    assert call("run", "--out", tmp_path / "run", "--sedes", 3).code == 2
    said = call("run", "--seeds", 3)
    assert said.code == 2
    assert "--out" in said.err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_before_the_run(monkeypatch, tmp_path):
    def interrupted(command):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxleak.cli.app.build_sweep", interrupted)
    said = call("run", "--out", tmp_path / "run")
    assert (said.code, said.err.strip()) == (cli.INTERRUPTED, "Interrupted.")


def test_warnings_are_one_line(monkeypatch, tmp_path):
    def warn(command):
        warnings.warn("something is odd", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setitem(cli.COMMANDS, "plot", (cli.PlotCommand, warn))
    assert call("plot", tmp_path) == Said(0, "", "jaxleak: warning: something is odd\n")


def test_renamed_flags_work_for_one_version(monkeypatch, tmp_path):
    monkeypatch.setitem(RENAMED, "--restarts", "--seeds")
    monkeypatch.setitem(RENAMED, "--directory", "--out")
    kinds = {name: kind for name, (kind, _) in cli.COMMANDS.items()}
    with pytest.warns(FutureWarning) as told:
        parsed = cli.parse(kinds, ["run", "--restarts", "3", f"--directory={tmp_path}"])
    assert [str(warning.message).partition(" now; the next version")[0] for warning in told] == [
        "`--restarts` is called `--seeds`",
        "`--directory` is called `--out`",
    ]
    assert (parsed.seeds, parsed.out) == (3, tmp_path)


def test_renamed_names_work_for_one_version(monkeypatch):
    monkeypatch.setitem(jaxleak._RENAMED, "audit_update", "audit")
    with pytest.warns(FutureWarning, match="`audit_update` is called `audit` now; the next version"):
        assert jaxleak.audit_update is jaxleak.audit
    with pytest.raises(AttributeError, match="has no attribute 'audit_updates'"):
        _ = jaxleak.audit_updates


def test_new_names_are_there():
    """And no old name hides one."""
    assert set(jaxleak._RENAMED.values()) <= set(jaxleak.__all__)
    assert not set(jaxleak._RENAMED) & set(jaxleak.__all__)


# --- a run ---


@pytest.fixture(scope="module")
def flags(pictures) -> list[str]:
    return [
        *("--dataset", str(pictures), "--images", "3", "1", "--seeds", "2", "--lanes", "4", "--x64"),
        *("--iterations", "3", "--history", "10", "--snapshots", "0", "1", "3"),
    ]


@pytest.fixture(scope="module")
def done(flags, tmp_path_factory) -> tuple[Path, Said]:
    """DLG and iDLG on two images from two starts each: the directory and what the command said."""
    out = tmp_path_factory.mktemp("done") / "run"
    with restored_globals():
        return out, call("run", "--attack", "dlg", "idlg", *flags, "--out", out)


def test_a_run_leaves_settings_rows_summary_and_figures(done, pictures):
    out, said = done
    assert said.code == 0, said.err
    description = json.loads((out / "run.json").read_text())
    settings = description["settings"]
    assert [attack["name"] for attack in settings["attacks"]] == ["dlg", "idlg"]
    assert {attack["iterations"] for attack in settings["attacks"]} == {3}
    assert {attack["solver"]["history"] for attack in settings["attacks"]} == {10}
    assert settings["victim"]["images"] == [3, 1]
    assert settings["victim"]["dataset"] == str(pictures)
    assert settings["victim"]["network"] == "per-trial"
    assert (settings["seeds"], settings["dtype"], settings["snapshots"]) == (2, "float64", [0, 1, 3])
    assert {"device", "jax_version", "git_revision", "versions"} <= description["environment"].keys()
    assert {file.name for file in (out / "figures").iterdir()} == FIGURES
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (out / "figures").iterdir())
    assert len(Run.open(out).rows()) == 8
    assert Run.open(out).arrays(["candidate"])["candidate"].shape == (8, 8, 8, 1)


def test_the_summary_has_what_readers_count_on(done):
    out, _ = done
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() >= {"groups", "engine", "complete", "trials_expected", "criteria", "settings_hash"}
    assert summary["complete"] is True
    assert summary["trials_expected"] == 8
    places = [(group["attack"], group["image"]) for group in summary["groups"]]
    assert sorted(places, key=str) == sorted([(a, i) for a in ("dlg", "idlg") for i in (1, 3, None)], key=str)
    for group in summary["groups"]:
        assert group.keys() >= {
            *("attack", "model", "dataset", "image", "trials", "successes", "success_rate", "ci95"),
            *("iterations_mean", "iterations_median", "label_accuracy", "status"),
        }
        assert group["model"] == "lenet"
        assert group["trials"] == (4 if group["image"] is None else 2)
        assert group["success_rate"] == group["successes"] / group["trials"]
        low, high = group["ci95"]
        assert 0 <= low <= group["success_rate"] <= high <= 1
        assert group["status"].keys() == set(STATUSES)
        assert sum(group["status"].values()) == group["trials"]
    assert summary["engine"].keys() == set(ENGINE_KEYS)
    assert set(ENGINE_KEYS) == {
        *("evaluations", "seconds", "evaluations_per_second", "utilisation", "compile_seconds", "host_share"),
    }
    assert summary["engine"]["evaluations"] == sum(row["evaluations"] for row in Run.open(out).rows())


def test_a_run_says_where_it_stands_and_what_it_left(done):
    out, said = done
    assert "dlg: compiling for 4 trials" in said.err
    assert "idlg: 8/8 trials done, 0 running, 0 waiting;" in said.err
    assert "Success over all images" in said.out
    assert "Success by image" in said.out
    assert "How trials ended" in said.out
    assert f"{out}: 8 rows, summary.json" in said.out
    assert {Path(line).name for line in said.out.splitlines() if line.startswith("figure: ")} == FIGURES
    assert said.out.splitlines()[-1] == f"page: {out / 'report.html'}"
    assert json.loads((out / "run.json").read_text())["environment"]["command"]


def test_the_same_command_again_runs_nothing(done, flags, no_engine):
    out, first = done
    before = {file.name: file.read_bytes() for file in out.glob("rows-*")}
    summary = (out / "summary.json").read_text()
    said = call("run", "--attack", "dlg", "idlg", *flags, "--out", out, "--no-figures")
    assert said.code == 0
    assert said.err == ""
    assert said.out == first.out[: first.out.index("figure: ")]
    assert {file.name: file.read_bytes() for file in out.glob("rows-*")} == before
    assert (out / "summary.json").read_text() == summary


def test_more_lanes_are_no_other_settings(done, flags, no_engine):
    out, _ = done
    assert call("run", *flags, "--lanes", 2, "--out", out, "--no-figures").code == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--seeds 3", "seeds: 2 in the directory, 3 asked"),
        ("--images 3 2", "victim.images: [3,1] in the directory, [3,2] asked"),
        ("--network per-image", 'victim.network: "per-trial" in the directory, "per-image" asked'),
        ("--network-seed 5", "victim.network_seed: 0 in the directory, 5 asked"),
        ("--start-seed 5", "start_seed: 0 in the directory, 5 asked"),
        ("--attack dlg", 'attacks: ["dlg","idlg"] in the directory, ["dlg"] asked'),
        ("--iterations 4", "attacks.dlg.iterations: 3 in the directory, 4 asked; attacks.idlg.iterations: 3 in the"),
        ("--history 11", "attacks.dlg.solver.history: 10 in the directory, 11 asked"),
        ("--success-error 0.1", "criteria.relative_error: 0.2 in the directory, 0.1 asked"),
        ("--snapshots 0", "snapshots: [0,1,3] in the directory, [0] asked"),
    ],
)
def test_other_settings_are_refused_and_named(done, flags, no_engine, change, named):
    out, _ = done
    line = refusal("run", *flags, *change.split(), "--out", out)
    assert f"`out` {out} holds a run with other settings: " in line
    assert named in line


def test_other_precision_is_refused(done, flags, no_engine):
    out, _ = done
    line = refusal("run", *[flag for flag in flags if flag != "--x64"], "--out", out)
    assert 'dtype: "float64" in the directory, "float32" asked' in line


def test_table(done):
    out, first = done
    said = call("table", out)
    assert (said.code, said.err) == (0, "")
    assert said.out in first.out
    assert "Success by image" not in said.out
    by_image = call("table", "--by-image", out)
    assert "Success by image" in by_image.out
    assert by_image.out.endswith(said.out)


def test_table_of_several_runs_names_them(done, tmp_path, monkeypatch):
    out, _ = done
    for name in ("first", "second"):
        shutil.copytree(out, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    said = call("table", "first", "second")
    assert (said.code, said.err) == (0, "")
    starts = [line.split()[:2] for line in said.out.splitlines() if line.split()[:1] in (["first"], ["second"])]
    lines = [[name, attack] for name in ("first", "second") for attack in ("dlg", "idlg")]
    assert starts == lines * 2  # rates, and how trials ended


def test_table_needs_no_summary(done, tmp_path):
    """It may be of a run that was killed."""
    out, _ = done
    shutil.copytree(out, tmp_path / "killed")
    (tmp_path / "killed" / "summary.json").unlink()
    assert call("table", tmp_path / "killed").out == call("table", out).out


def test_plot(done, tmp_path):
    out, _ = done
    run = tmp_path / "copy"
    shutil.copytree(out, run, ignore=shutil.ignore_patterns("figures"))
    said = call("plot", run)
    assert (said.code, said.err) == (0, "")
    assert {line.removeprefix("figure: ") for line in said.out.splitlines()} == {
        str(run / "figures" / name) for name in FIGURES
    }
    assert {file.name for file in (run / "figures").iterdir()} == FIGURES


def test_a_run_without_rows(done, tmp_path):
    """Killed before the first trial ended."""
    out, _ = done
    run = tmp_path / "early"
    run.mkdir()
    shutil.copy(out / "run.json", run)
    assert "has no finished trial yet" in refusal("plot", run)
    assert call("table", run).code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--batch 2 --attack analytic", "`attack` analytic reads one image from one gradient"),
        ("--layers conv9", "got 'conv9'"),
    ],
)
def test_nothing_is_trained_before_a_refusal(flags, words, tmp_path, no_engine, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr("jaxleak.threat.from_dataset.train_network", never)
    training = "--dataset photos --network shared --trained-steps 5"
    assert words in refusal("run", "--out", tmp_path / "run", *training.split(), *flags.split())
    assert not (tmp_path / "run").exists()
