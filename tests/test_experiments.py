"""The experiments: small files on the public API, and a results page that says what the stored rows say."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

import jaxleak
from experiments import (
    harness,
    headline,
    idlg_fidelity,
    index,
    kan2022_nullspace,
    kan2022_resnet18,
    kan2022_table1,
    options,
    pytorch_parity,
    tables,
)
from jaxleak.bench import cluster as simulate
from jaxleak.cli import RunCommand
from jaxleak.results import figures as plots
from jaxleak.results.intervals import wilson
from tests.fixtures import imports

FOLDER = Path(harness.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
RESULTS = sorted(path for path in harness.RESULTS.rglob("*") if path.is_file())
WITH_TORCH = {"torch_reference", "throughput"}
NO_EXPERIMENT = {"options"}  # it describes the package, and reads its registries


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


# --- the files ---


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_imports_without_torch(path):
    module = importlib.import_module(f"experiments.{path.stem}")
    assert path.stem == "__init__" or module.__doc__
    at_the_top = {name.split(".")[0] for name in imports(tree_of(path).body)}
    assert at_the_top.isdisjoint({"torch", "tests"})


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path):
    """What they do and what papers say of it, and 50 lines more for what they say of their own results."""
    lines = path.read_text().splitlines()
    described = next((number for number, line in enumerate(lines) if line.startswith("def results(")), len(lines))
    assert described < 160
    assert len(lines) - described < 50


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in NO_EXPERIMENT], ids=name_of)
def test_only_the_public_api(path):
    nodes = list(ast.walk(tree_of(path)))
    names = imports(nodes)
    public = {f"jaxleak.{name}" for name in jaxleak.__all__}
    public |= {f"jaxleak.results.figures.{name}" for name in dir(plots) if not name.startswith("_")}
    public |= {f"jaxleak.bench.cluster.{name}" for name in dir(simulate) if not name.startswith("_")}
    public |= {"jaxleak.bench.networks.build.build"}  # jaxleak's networks in PyTorch, for peers
    assert {name for name in names if name.split(".")[0] == "jaxleak"} <= {"jaxleak"} | public
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jaxleak"
    }
    assert used <= set(jaxleak.__all__)
    tests = {name for name in names if name.split(".")[0] == "tests"}
    assert all(name.startswith(("tests.oracles.", "tests.faults.")) for name in tests)
    assert not any(name.startswith("tests.oracles.") for name in tests) or path.stem in WITH_TORCH


@pytest.mark.parametrize("path", [path for path in FILES if "def main" in path.read_text()], ids=name_of)
def test_every_file_says_its_command(path):
    assert f"python -m experiments.{path.stem}" in (ast.get_docstring(tree_of(path)) or "")


# --- the stored results ---


@pytest.mark.parametrize("path", [path for path in RESULTS if path.suffix == ".png"], ids=name_of)
def test_figures_are_small(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 300_000


# --- the page ---


def all_results() -> list[tables.Results]:
    return [one for module in index.MODULES for one in module.results()]


def cells(text: str) -> list[str]:
    """The cells of all tables in Markdown."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [cell for line in lines for cell in re.split(r"(?<!\\)\|", line)]


def test_the_pages_say_what_the_results_say():
    """Written by `python -m experiments.index`."""
    assert (FOLDER / "README.md").read_text() == index.page()
    for file in index.PARTS:
        assert (index.PROJECT / file).read_text() == index.filled(file)


@pytest.mark.parametrize("path", ["experiments/README.md", *index.PARTS])
def test_cells_are_short(path):
    """In words. What is written into the project's README is shorter still."""
    assert not [cell for cell in cells((index.PROJECT / path).read_text()) if len(cell.split()) > 25]
    assert not [cell for cell in cells(headline.headline()) if len(cell.split()) > 12]
    assert len(headline.headline().splitlines()) == 2 + 6


def test_the_links_of_the_page_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", (FOLDER / "README.md").read_text())
    assert len(links) > 50
    assert not [link for link in links if not (FOLDER / link).exists()]


def test_every_experiment_is_on_the_page():
    """Under its paper, with its command; all of one paper stand together."""
    with_results = {path.stem for path in FILES if "def results(" in path.read_text()}
    assert set(index.EXPERIMENTS) == with_results
    assert {path.stem for path in FILES if "def main(" in path.read_text()} - with_results == {
        *("index", "report_page", "torch_reference", "gpu_pack", "gpu_checks"),
    }
    for module in index.MODULES:
        assert {f"experiments.{one.command.split()[0]}" for one in module.results()} == {module.__name__}
    papers = re.findall(r"^## (.*)$", index.page(), flags=re.MULTILINE)
    assert len(set(papers)) == len(papers)


def test_every_note_is_on_the_page():
    assert set(index.notes()) <= {*index.EXPERIMENTS, "Notes"}


def test_rows_fit_their_columns():
    for one in all_results():
        assert {len(row) for row in one.filled()} == {len(one.columns)}, one.title


def test_without_results_the_page_says_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for one in all_results():
        assert all(tables.NOT_RUN in row for row in one.filled() if row[0] != "paper"), one.title
        assert one.device == ""
    ours = [line.split(" | ")[2] for line in headline.headline().splitlines()[2:]]
    assert len(ours) == 6
    assert all(tables.NOT_RUN in cell for cell in ours)


def test_check_compares_and_writes_nothing(tmp_path, monkeypatch):
    files = {file: tmp_path / file for file in index.PARTS}
    (tmp_path / "NOTES.md").write_text("## batches\n\nOf batches.\n\n## Notes\n\nWhy.\n")
    for file, parts in index.PARTS.items():
        between = "\n".join(f"{begin}\nold\n{end}\nbetween" for begin, end in map(index.marks, parts))
        files[file].parent.mkdir(parents=True, exist_ok=True)
        files[file].write_text(f"before\n{between}\nafter\n")
    page = tmp_path / "experiments" / "README.md"
    page.parent.mkdir()
    (tmp_path / "NOTES.md").rename(page.parent / "NOTES.md")
    monkeypatch.setattr(index, "HERE", page.parent)
    monkeypatch.setattr(index, "PROJECT", tmp_path)
    monkeypatch.setattr(index.sys, "argv", ["index"])
    index.main()
    assert page.read_text() == index.page()
    assert page.read_text().endswith("\n\n## Notes\n\nWhy.\n")
    assert page.read_text().index("/batch-8.png") < page.read_text().index("Of batches.")
    for file, path in files.items():
        lines = path.read_text().splitlines()
        assert (lines[0], lines[-2], lines[-1]) == ("before", "between", "after")
        assert "old" not in lines
        assert index.filled(file) == path.read_text()  # written twice is written once
    monkeypatch.setattr(index.sys, "argv", ["index", "--check"])
    index.main()
    for path in (page, *files.values()):
        kept, name = path.read_text(), path.relative_to(tmp_path)
        path.write_text(kept.replace("|---|", "|--|"))
        with pytest.raises(SystemExit, match=rf"^{name} is not what .* run `python -m experiments\.index`"):
            index.main()
        assert "|--|" in path.read_text()
        path.write_text(kept)


def test_a_row_of_the_page(tmp_path, monkeypatch):
    """Numbers come from the stored summary."""
    rates = {"trials": 10, "successes": 4, "success_rate": 0.4, "ci95": [0.168, 0.687], "iterations_n": 4}
    group = {"attack": "dlg", **rates, "iterations_mean": 50.0, "iterations_median": 48.0}
    groups = [{**group, "image": 7, "success_rate": 0.2}, {**group, "image": 9, "success_rate": 0.6}]
    summary = {"groups": [*groups, {**group, "image": None}], "environment": {"device": "2x cpu"}}
    (tmp_path / "kan2022_table1").mkdir()
    (tmp_path / "kan2022_table1" / "per-image.json").write_text(json.dumps(summary))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    (table,) = kan2022_table1.results()
    row = table.row("`per-image`")
    assert [row[name] for name in ("rate", "95 %", "n")] == ["0.400", "[0.168, 0.687]", "10"]
    assert (row["rate per image"], row["iterations, mean"]) == ("0.20 to 0.60", "50.0")
    assert table.device == "2x cpu"


def test_a_row_of_a_run_without_success(tmp_path, monkeypatch):
    rates = {"trials": 2, "successes": 0, "success_rate": 0.0, "ci95": [0.0, 0.658], "iterations_n": 0}
    group = {"attack": "dlg", **rates, "iterations_mean": None, "iterations_median": None}
    summary = {"groups": [{**group, "image": 7}, {**group, "image": None}], "environment": {"device": "2x cpu"}}
    (tmp_path / "kan2022_table1").mkdir()
    (tmp_path / "kan2022_table1" / "per-image.json").write_text(json.dumps(summary))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    row = kan2022_table1.results()[0].row("`per-image`")
    assert list(row.values())[2:7] == ["0.000", "[0.000, 0.658]", "2", "0.00 to 0.00", tables.NONE]


def test_the_rate_of_the_captions_seeds(tmp_path, monkeypatch):
    """The first twenty of fifty: here the even ones of them are solved, and none of the others."""
    (tmp_path / "kan2022_table1").mkdir()
    trials = [{"seed": seed, "success": seed < 20 and seed % 2 == 0} for seed in range(50) for _ in range(20)]
    parquet.write_table(arrow.Table.from_pylist(trials), tmp_path / "kan2022_table1" / "per-trial.parquet")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    assert kan2022_table1.first_seeds("per-trial") == "0.500 [0.451, 0.549]"
    assert kan2022_table1.first_seeds("per-image") == tables.NONE


def test_a_head_for_all_of_lfw():
    """The labels stay; the classes that nobody has are appended."""
    data = jaxleak.load_dataset("photos")
    more = idlg_fidelity.everyone(data)
    assert more.num_classes == len(set(more.class_names)) == 5749
    assert more.class_names[: data.num_classes] == data.class_names
    for one, same in zip(more.images([6, 12]), data.images([6, 12]), strict=True):
        np.testing.assert_array_equal(one, same)


# --- kan2022_resnet18 ---


@pytest.mark.parametrize(("name", "network"), [("published-34", "resnet34"), ("published-idlg", "resnet18")])
def test_published_settings(name, network):
    """They change neither torch's solver nor the stop on the objective."""
    setting = kan2022_resnet18.SETTINGS[name]
    assert setting.network == network
    assert setting.base == (harness.IDLG if name == "published-idlg" else harness.DLG)
    assert isinstance(setting.base.solver, jaxleak.TorchLBFGS)


# --- the options ---


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (options.attacks, [f"| `{name}` |" for name in options.ATTACKS]),
        (options.starts, [f"| `{name}` |" for name in options.INITS]),
        (options.labels, [f"| `{name}` |" for name in options.LABEL_STRATEGIES]),
        (options.columns, [f"| `{one.name}` | {one.kind} |" for one in options.COLUMNS]),
        (options.defences, [*(f"| `--defence {name}" for name in options.DEFENCES), "| `--batch N` | Larger batch"]),
        (options.terms, ["| `--tv` |", "| `--langevin` |"]),
        (options.threat, ["| `--batch` | Images", "one number for each step, or for each epoch. | 0.01 |"]),
    ],
    ids=["attacks", "starts", "labels", "columns", "defences", "terms", "threat-model"],
)
def test_every_name_is_in_the_tables(make, names):
    """And no row has a cell too many: bars within texts are escaped."""
    table = make()
    assert not [name for name in names if name not in table]
    files = [file for file, parts in index.PARTS.items() if make in parts.values()]
    assert [table in (index.PROJECT / file).read_text() for file in files] == [True]
    assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_a_new_name_makes_the_readme_old(monkeypatch):
    monkeypatch.setitem(options.DEFENCES, "other", options.DEFENCES["clip"])
    monkeypatch.setitem(options.ZERO, "other", "other:0")
    file = "jaxleak/threat/README.md"
    assert "`--defence other:NORM`" in index.filled(file)
    assert (index.PROJECT / file).read_text() != index.filled(file)


def test_the_tables_say_what_an_attack_is():
    (row,) = [line for line in options.attacks().splitlines() if line.startswith("| `ig` |")]
    solver = "adam, sign hard, schedule step, pixels in [0, 1] by projection"
    assert f"| idlg | normal | cosine + 0.0001 tv | {solver} | 4,800 |" in row
    changed = jaxleak.Attack(name="x", scale="relative", layers=("conv1", "head:2"), label_term=0.5)
    assert options.minimised(changed) == "relative l2 on conv1 head:2 + 0.5 label-term"
    assert options.solved(jaxleak.Attack(name="x", solver=jaxleak.LBFGS(history=5))) == "lbfgs, history 5"


def test_the_tables_read_docstrings():
    def documented():
        """A sentence
        on two lines.

        Right where it holds: of A et al. 2020, say. Wrong elsewhere.

        Source: B et al. 2021, section 2 (x).
        Differs: not.
        """

    assert options.summary(documented) == "A sentence on two lines."
    assert options.paragraph(documented, "Right") == "where it holds: of A et al. 2020, say"
    assert options.paragraph(documented, "Source:") == "B et al. 2021, section 2 (x)"
    assert options.paragraph(documented, "Raises:") == "–"


def test_the_tables_hold_the_flags_of_attack_and_threat_model():
    """The others are about images, solver, criteria and output: a new flag has to be put on either side."""
    elsewhere = {
        *(
            "out",
            "model",
            "dataset",
            "data_dir",
            "split",
            "image_size",
            "pixel_max",
            "images",
            "num_images",
            "image_seed",
            "seeds",
        ),
        *(
            "start_seed",
            "network_seed",
            "defence_seed",
            "defence_draw",
            "solver",
            "lr",
            "history",
            "line_search",
            "iterations",
        ),
        *(
            "minutes",
            "max_evaluations",
            "stop_objective",
            "stop_relative",
            "success_objective",
            "success_cosine",
            "success_error",
        ),
        *("mse_thresholds", "snapshots", "snapshot_seeds", "lanes", "x64", "figures", "report"),
        *("mix_versions", "shard", "on", "ray_address", "workers", "gpus_per_worker", "cpus_per_worker"),
    }
    shown = {*options.TABLED, *options.TERMS, *options.THREAT}
    assert shown | elsewhere == RunCommand.__dataclass_fields__.keys()
    assert not shown & elsewhere


# --- what they share ---


def test_run_all_keeps_rows_and_summary_of_the_runs_asked_for(tmp_path, monkeypatch, capsys):
    ran = []

    def run_sweep(sweep, out, *, lanes):
        ran.append((sweep, out, lanes))
        run = SimpleNamespace(
            settings={"seeds": 1}, environment={"device": "x"}, write_rows=lambda path: path.write_text("rows")
        )
        return SimpleNamespace(run=run, summary={"groups": [], "trials_expected": sweep.total}, table=lambda: "rates")

    monkeypatch.setattr(jaxleak, "run_sweep", run_sweep)
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    options = SimpleNamespace(only=["b"], runs=tmp_path / "runs", lanes=3, data_dir=None)
    small, large = SimpleNamespace(total=20), SimpleNamespace(total=1000)
    results = harness.run_all("item", {"a": small, "b": large}, options)
    assert list(results) == ["b"]
    assert ran == [(large, tmp_path / "runs" / "item" / "b", 3)]
    assert capsys.readouterr().out == "rates\n"
    folder = tmp_path / "results" / "item"
    assert (folder / "b.parquet").read_text() == "rows"
    stored = json.loads((folder / "b.json").read_text())
    environment = {"device": "x"}
    assert stored == {"groups": [], "trials_expected": 1000, "settings": {"seeds": 1}, "environment": environment}
    assert not (folder / "a.json").exists()
    with pytest.raises(jaxleak.InputError, match="has 1000 trials, which 20 would replace"):
        harness.run_all("item", {"b": small}, options)
    assert len(ran) == 1


def test_a_mistake_in_an_experiments_flags_is_one_line(tmp_path):
    """And nothing of what is committed is touched."""
    words = ["-m", "experiments.kan2022_table1", "--results", tmp_path / "results", "--data-dir", tmp_path / "nowhere"]
    done = subprocess.run([sys.executable, *words], cwd=FOLDER.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("kan2022_table1: `data_dir`")
    assert not done.stdout


# --- pytorch_parity ---


def torch_row(image: int, seed: int, iterations: int | None, mse: float = 1e-4) -> dict:
    return {"image": image, "seed": seed, "iter_1e4": iterations, "mse": mse, "label_ok": True}


def our_row(image: int, seed: int, iterations: int | None, mse: float = 1e-4) -> dict:
    return {
        "image": image,
        "seed": seed,
        "threshold_iterations": iterations,
        "mse": mse,
        "label_correct": seed != 0,
    }


def test_compare():
    """Worked by hand: solved is an objective below 1e-4 and an MSE below 0.01; medians are over what both solve."""
    theirs = [torch_row(1, 0, 10), torch_row(1, 1, 20), torch_row(2, 0, 30), torch_row(2, 1, 40, mse=0.5)]
    ours = [our_row(1, 0, 11), our_row(1, 1, None), our_row(2, 0, 35), our_row(2, 1, 40)]
    row = pytorch_parity.compare("dlg", theirs, ours)
    assert row["attack"] == "dlg"
    assert row["trials"] == [4, 4]
    assert row["solved"] == {"torch": 3, "jaxleak": 3, "both": 2}
    assert row["ci95"]["torch"] == row["ci95"]["jaxleak"] == pytest.approx(wilson(3, 4))
    assert row["fisher_p"] == pytest.approx(1)
    assert row["mcnemar_p"] == 1  # each alone solves one
    assert row["median_iterations_to_1e-4_over_both"] == {"torch": 20, "jaxleak": 23}
    assert row["geometric_mean_ratio"] == pytest.approx((11 / 10 * 35 / 30) ** 0.5)
    assert row["wilcoxon_p"] == pytest.approx(0.5)  # of the four signs of two pairs, the two outermost
    assert row["label_accuracy"] == {"torch": 1, "jaxleak": 0.5}
    json.dumps(row)


def test_compare_sees_a_difference_that_is_not_chance():
    """10 of 10 solved against 5 of 10."""
    theirs = [torch_row(1, seed, 10) for seed in range(10)]
    ours = [our_row(1, seed, 10 if seed < 5 else None) for seed in range(10)]
    # No table with these margins is less likely than this one and its mirror image: C(10, 5) / C(20, 15) each.
    wanted = 2 * 252 / 15504
    row = pytorch_parity.compare("idlg", theirs, ours)
    assert row["fisher_p"] == pytest.approx(wanted)
    assert row["mcnemar_p"] == pytest.approx(2 / 2**5)  # five that PyTorch alone solves


def test_compare_without_a_trial_that_both_solve():
    row = pytorch_parity.compare("dlg", [torch_row(1, 0, None)], [our_row(1, 0, 7)])
    assert row["solved"] == {"torch": 0, "jaxleak": 1, "both": 0}
    assert row["mcnemar_p"] == 1
    assert row["median_iterations_to_1e-4_over_both"] == {"torch": None, "jaxleak": None}
    assert row["geometric_mean_ratio"] is row["wilcoxon_p"] is None


def test_trials_that_pytorch_has_not_run_yet_are_left_out():
    theirs = [{**torch_row(1, 0, 10), "method": method} for method in ("dlg", "idlg")]
    ours = [{**our_row(image, seed, 9), "attack": "dlg"} for image in (1, 2) for seed in (0, 1)]
    dlg, _ = pytorch_parity.compare_attacks(theirs, [*ours, {**our_row(1, 0, 9), "attack": "idlg"}])
    assert dlg["trials"] == [1, 1]


def test_the_reference_folder_is_read_in_our_layout(tmp_path):
    """Networks and starts lie in torch's layout, channels first."""
    data = SimpleNamespace(
        name="made up",
        split="all",
        num_classes=3,
        image_shape=(8, 12, 3),
        images=lambda indices: (np.zeros((len(indices), 8, 12, 3), np.float32), np.arange(len(indices))),
    )
    rows = [{"image": image, "seed": seed} for seed in range(2) for image in (30, 4)]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rng = np.random.default_rng(0)
    pixels, logits = rng.normal(size=(2, 3, 8, 12)), rng.normal(size=(2, 3))
    np.savez(tmp_path / "starts.npz", image=pixels, label_logits=logits)
    model = jaxleak.build_model("lenet", 3)
    networks = {}
    for image in (30, 4):
        networks[image] = model.init(jax.random.key(image), np.zeros((1, 8, 12, 3)))["params"]
        jaxleak.save_weights(tmp_path / f"lenet_{image}.safetensors", model, networks[image], (8, 12, 3))

    read, images, starts = pytorch_parity.load_reference(tmp_path)
    assert read == rows
    assert images == [30, 4]  # as they come, the rows of `networks` are in this order
    assert starts["image"].shape == (2, 1, 8, 12, 3)
    assert starts["label"].shape == (2, 1, 3)
    np.testing.assert_array_equal(starts["image"][1, 0, :, :, 2], pixels[1, 2])
    sweep = pytorch_parity.build_sweep(data, tmp_path, images, starts, seeds=2)
    assert (sweep.total, sweep.victim.network) == (8, "per-image")
    assert sweep.victim.params is not None
    for slot, image in enumerate(images):
        for name in ("conv2", "head"):
            np.testing.assert_array_equal(
                sweep.victim.params[name]["kernel"][slot], np.asarray(networks[image][name]["kernel"])
            )


# --- kan2022_nullspace ---


@pytest.fixture
def linear():
    """A, x and b with 20 outputs and 192 inputs, drawn as in the experiment."""
    rng = np.random.default_rng(3)
    size = 8 * 8 * 3
    return rng.normal(size=(20, size)) / np.sqrt(size), rng.uniform(size=size), rng.normal(size=20), rng


def test_null_direction(linear):
    a, _, _, rng = linear
    d = kan2022_nullspace.null_direction(a, rng)
    assert np.linalg.norm(d) == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(a @ d) < 1e-12


def test_weight_gradient_is_the_losses(linear):
    """Against central differences of 1/2 |A x - b|^2, exact for a quadratic up to rounding."""
    a, x, b, rng = linear
    gradient = kan2022_nullspace.weight_gradient(a, x, b)
    direction = rng.normal(size=a.shape)

    def loss(step):
        return 0.5 * np.sum(((a + step * direction) @ x - b) ** 2)

    assert np.sum(gradient * direction) == pytest.approx((loss(0.01) - loss(-0.01)) / 0.02, rel=1e-9)


@pytest.mark.parametrize("size", kan2022_nullspace.SIZES)
def test_a_move_in_the_null_space_changes_the_gradient(linear, size):
    """By the size of the move, though the output stays: the paper claims no change."""
    a, x, b, rng = linear
    moved = x + size * np.linalg.norm(x) * kan2022_nullspace.null_direction(a, rng)
    before, after = (kan2022_nullspace.weight_gradient(a, one, b) for one in (x, moved))
    np.testing.assert_allclose(a @ moved, a @ x, rtol=0, atol=1e-12 * np.linalg.norm(x))
    assert np.linalg.norm(after - before) / np.linalg.norm(before) == pytest.approx(size, rel=1e-9)


def test_dense_input_is_exact(linear):
    a, x, b, _ = linear
    residual = a @ x - b
    residual[0] = 0  # a row without gradient says nothing
    recovered = kan2022_nullspace.dense_input(np.outer(residual, x), residual)
    np.testing.assert_allclose(recovered, x, rtol=1e-14)
