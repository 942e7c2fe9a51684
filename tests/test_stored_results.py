"""The stored results: their summaries, the pages and the rows say the same, and a number that is changed is seen."""

import ast
import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as parquet
import pytest

from experiments import (
    april,
    batch_and_client_steps,
    batches,
    cpl_starts,
    cpl_vs_dlg,
    deakin_models,
    defences,
    failures,
    harness,
    ig_models,
    index,
    inverting_gradients,
    kan2022_nullspace,
    kan2022_resnet18,
    precision,
    pytorch_parity,
    resnet18_eval,
    resolution,
    solvers,
    spear,
)
from jaxleak.results.intervals import wilson
from jaxleak.results.summary import summarise
from jaxleak.results.verdict import Criteria
from jaxleak.runs.infer.summary import summarise as summarise_inference
from tests import independent_prose as prose
from tests import independent_results as independent
from tests.fixtures import imports

FOLDER = harness.RESULTS
ROWS = sorted(FOLDER.rglob("*.parquet"))
STORED = independent.Stored()
PAGES = [(index.PROJECT / name).read_text() for name in ("experiments/README.md", "README.md")]
# Rows without the column that says so.
UNTOLD = {"kan2022_nullspace/rows", "precision/rows", *(f"solvers/{name}" for name in solvers.SOLVERS)}


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return parquet.read_table(path).to_pylist()


def differences(stored: Any, made: Any, where: str = "") -> list[str]:
    """Where two contents of JSON differ; numbers may by the order of a sum."""
    if isinstance(stored, dict) and isinstance(made, dict):
        missing = [f"{where}/{key}: it is not there" for key in made if key not in stored]
        both = ((key, value, made.get(key)) for key, value in stored.items())
        return missing + [text for key, a, b in both for text in differences(a, b, f"{where}/{key}")]
    if isinstance(stored, list) and isinstance(made, list | tuple) and len(stored) == len(made):
        both = enumerate(zip(stored, made, strict=True))
        return [text for place, (a, b) in both for text in differences(a, b, f"{where}/{place}")]
    same = stored == (pytest.approx(made, rel=1e-12, nan_ok=True) if isinstance(made, float) else made)
    return [] if same else [f"{where}: {stored} is {made} by the rows"]


# --- where rows come from ---


@pytest.mark.parametrize("path", ROWS, ids=name_of)
def test_rows_come_from_one_revision_without_changes(path):
    names = parquet.read_schema(path).names
    told = {"git_revision", "git_dirty"} <= set(names)
    assert told == (name_of(path) not in UNTOLD)
    if told:
        columns = parquet.read_table(path, columns=["git_revision", "git_dirty"])
        revisions, dirty = (set(columns[name].to_pylist()) for name in ("git_revision", "git_dirty"))
        assert len(revisions) == 1
        assert "unknown" not in revisions
        assert dirty == {False}


def test_measurements_come_from_a_tree_without_changes():
    """Those that are their own rows say so, too."""
    files = [*FOLDER.rglob("*.json"), *FOLDER.rglob("*.jsonl")]
    assert not [name_of(path) for path in files if re.search(r'"git_dirty": true', path.read_text())]


# --- summaries against rows ---


def of_attacks(cell: Callable, attacks) -> Callable[[str, Any], Any]:
    return lambda name, result: {
        "device": result.rows[0]["device"],
        "attacks": [cell(result, attack.name) for attack in attacks],
    }


def psnr(name: str, result: Any) -> dict:
    if name == "restarts":
        told = inverting_gradients.restarts(result)
    else:
        told = [inverting_gradients.table(result, attack.name) for attack in inverting_gradients.ATTACKS]
    return {"device": result.rows[0]["device"], "attacks": told}


def starts(name: str, result: Any) -> dict:
    attacks = dict.fromkeys(row["attack"] for row in result.rows)
    told = [cpl_starts.table(result, attack) for attack in attacks]
    return {"device": result.rows[0]["device"], "starts": told}


def cells(name: str, result: Any) -> dict:
    attacks = dict.fromkeys(row["attack"] for row in result.rows)
    return {"device": result.rows[0]["device"], "cells": [deakin_models.cell(attack, result) for attack in attacks]}


def resolved(name: str, result: Any) -> dict:
    return of_attacks(resolution.cell, resolution.attacks(int(name.split("-")[0])))(name, result)


# What an experiment says of the rows of a run, by the file it writes that to. Parts that no row holds are left out.
TOLD: dict[tuple[str, str], Callable[[str, Any], Any]] = {
    ("april", "table"): lambda name, result: april.cell(result.rows),
    ("batch_and_client_steps", "cell"): batch_and_client_steps.summary,
    ("batches", "table"): lambda name, result: of_attacks(batches.cell, batches.attacks(name))(name, result),
    ("cpl_starts", "starts"): starts,
    ("cpl_vs_dlg", "table"): of_attacks(
        lambda result, attack: cpl_vs_dlg.line(result.rows, attack), cpl_vs_dlg.ATTACKS
    ),
    ("deakin_models", "table"): cells,
    ("defences", "rates"): lambda name, result: {
        "defence": name,
        "device": result.rows[0]["device"],
        **defences.rates(result),
    },
    ("ig_models", "table"): lambda name, result: {"setting": name, **ig_models.measured(result)},
    ("inverting_gradients", "psnr"): psnr,
    ("kan2022_resnet18", "table"): lambda name, result: kan2022_resnet18.table(
        name.rpartition("-")[0], int(name.rpartition("-")[2]), result
    ),
    ("resolution", "table"): resolved,
    ("spear", "table"): lambda name, result: spear.cell(result.rows),
}
# What was measured beside the rows: sizes of networks, accuracies of trainings, PSNRs of single images of a batch.
BESIDE = {
    "deakin_models": {"model", "parameters", "size", "batch", "iterations"},
    "defences": {"kind", "text", "accuracy"},
    "ig_models": {
        *("parameters", "iterations", "batch", "labels_right", "psnr_mean", "psnr_quartiles"),
        *("variance_explained_quartiles", "more_than_half_explained"),
    },
}


def told_files(folder: Path = FOLDER) -> list[Path]:
    """The summaries that an experiment writes beside the rows of a run."""
    return [path for kind, end in TOLD for path in sorted((folder / kind).glob(f"*-{end}.json"))]


def told_of(path: Path) -> list[str]:
    """Where a summary differs from what its experiment says of the rows."""
    kind, (name, _, end) = path.parent.name, path.stem.rpartition("-")
    run = path.with_name(f"{name}.json")
    made = TOLD[kind, end](name, SimpleNamespace(rows=rows_of(run.with_suffix(".parquet")), summary=read(run)))
    stored = {key: value for key, value in read(path).items() if key not in BESIDE.get(kind, ())}
    return differences(stored, json.loads(json.dumps(made)))


def test_every_summary_beside_rows_is_known():
    """A new kind of file has to be told above, or below."""
    alone = {path for name in WITHOUT_ROWS for path in FOLDER.glob(f"{name}.json")}
    assert {*FOLDER.rglob("*.json")} == {*told_files(), *RUNS, *alone, *(FOLDER / f"{name}.json" for name in OTHERS)}


@pytest.mark.parametrize("path", told_files(), ids=name_of)
def test_summaries_say_what_the_rows_say(path):
    assert told_of(path) == []


def run_summary(path: Path) -> list[str]:
    """Where the groups of a run's own summary differ from its rows; older ones lack some keys."""
    stored, found = read(path), []
    made = summarise(rows_of(path.with_suffix(".parquet")), Criteria(**stored["criteria"]))
    again = {(group["attack"], group["image"]): group for group in made["groups"]}
    groups = {(group["attack"], group["image"]): group for group in stored["groups"]}
    assert {key for key, group in again.items() if key[1] is None or group["trials"] > 1} <= groups.keys()
    for key, group in groups.items():
        found += differences(group, again[key])
    return [text for text in found if not text.endswith("it is not there")]


RUNS = [path for path in (path.with_suffix(".json") for path in ROWS) if path.exists() and "groups" in read(path)]


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_the_summary_of_a_run_is_that_of_its_rows(path):
    rows, stored = rows_of(path.with_suffix(".parquet")), read(path)
    assert len({row["trial"] for row in rows}) == len(rows)
    assert {row["settings_hash"] for row in rows} == {stored["settings_hash"]}
    assert not stored["complete"] or len(rows) == stored["trials_expected"]
    assert run_summary(path) == []


def nullspace(folder: Path) -> Any:
    return kan2022_nullspace.summary(rows_of(folder / "kan2022_nullspace/rows.parquet"))


def solver_cells(folder: Path) -> Any:
    names = [name for name in solvers.SOLVERS if (folder / f"solvers/{name}.parquet").exists()]
    return [cell for name in names for cell in solvers.cells(name, rows_of(folder / f"solvers/{name}.parquet"))]


def precisions(folder: Path) -> Any:
    stored = read(folder / "precision/summary.json")
    rows = rows_of(folder / "precision/rows.parquet")
    made = {"n": len(rows), **precision.summary(rows, stored["evaluations_per_second"])}
    return made | {"environment": stored["environment"]}


def decibels(folder: Path) -> Any:
    return {
        name: resnet18_eval.quality(rows_of(folder / f"resnet18_eval/{name}.parquet")) for name in resnet18_eval.ATTACKS
    }


def parity(run: str) -> Callable[[Path], Any]:
    def made(folder: Path) -> Any:
        lines = (folder / f"pytorch_parity/{run}-torch.jsonl").read_text().splitlines()
        ours = rows_of(folder / f"pytorch_parity/{run}.parquet")
        return pytorch_parity.compare_attacks([json.loads(line) for line in lines], ours)

    return made


def failed(folder: Path) -> Any:
    rows = rows_of(folder / "failures/rows.parquet")
    results = {
        run: SimpleNamespace(rows=[row for row in rows if row["run"] == run]) for run in {row["run"] for row in rows}
    }
    again = []
    for name, image, own in failures.by_image({name: failures.failures(name) for name in failures.SOURCES}):
        result: Any = results[f"{name}-{image}"]
        for row in own:
            right = failures.right(name, failures.pair(result, row)[1])
            again.append({"source": name, "right": right, **failures.compare(result, row)})
    tanh = {name: failures.label_rules(results[f"tanh-{name}"].rows) for name in failures.DATASETS}
    environment = read(folder / "failures/summary.json")["environment"]
    return {"n": len(rows), "again": again, "tanh": tanh, "environment": environment}


def inferred(folder: Path) -> Any:
    """What `jaxleak.infer` says of its rows."""
    stored = read(folder / "infer/summary.json")["runs"]
    scores = {
        "words": (),
        "membership": ("residual", "logistic", "cosine", "inner"),
        "property": ("logistic", "forest"),
    }
    truth = {"words": "", "membership": "member", "property": "has"}
    runs = {}
    for run, one in stored.items():
        lines = (folder / f"infer/{run}.jsonl").read_text().splitlines()
        what, rows = one["what"], [json.loads(line) for line in lines]
        told = summarise_inference(what, rows, truth[what], scores[what])
        runs[run] = {**told, "environment": one["environment"]}
    return {"runs": runs}


OTHERS: dict[str, Callable[[Path], Any]] = {
    "failures/summary": failed,
    "infer/summary": inferred,
    "kan2022_nullspace/summary": nullspace,
    "precision/summary": precisions,
    **{
        f"pytorch_parity/{run}-comparison": parity(run)
        for run in pytorch_parity.MODELS
        if (FOLDER / f"pytorch_parity/{run}.parquet").exists()
    },
    "resnet18_eval/summary": decibels,
    "solvers/summary": solver_cells,
}
# Measurements of a machine, and points of other computations: each is its own row.
WITHOUT_ROWS = (
    *(
        "clusters/*",
        "deep_steps/*",
        "gpu_account/*",
        "ray_throughput/*",
        "report_size/*",
        "stacks/*",
        "stock_model/*",
        "throughput/*",
    ),
    *("inverting_gradients/training", "risk/points", *(f"solvers/{name}" for name in solvers.SOLVERS)),
)


@pytest.mark.parametrize("name", OTHERS)
def test_other_summaries_say_what_the_rows_say(name):
    assert differences(read(FOLDER / f"{name}.json"), json.loads(json.dumps(OTHERS[name](FOLDER)))) == []


# --- the pages against rows, by code that shares nothing with the experiments ---


def test_every_figure_of_the_pages_is_that_of_the_rows():
    """`python -m tests.independent_results`."""
    assert independent.check(*PAGES, STORED) == []


def test_the_independent_check_imports_nothing_of_what_it_checks():
    for name in ("independent_results", "independent_prose"):
        names = imports(ast.walk(ast.parse((index.PROJECT / f"tests/{name}.py").read_text())))
        assert not [one for one in names if one.split(".")[0] in ("jaxleak", "experiments")]
        assert {one.split(".")[1] for one in names if one.startswith("tests.")} <= {
            *("independent_results", "independent_prose"),
        }


def test_wilson_is_jaxleaks():
    for count, n in ((0, 40), (12, 40), (40, 40), (693, 1000)):
        assert independent.wilson(count, n) == pytest.approx(wilson(count, n), abs=1e-9)


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """The results, without figures: rows are links, which no test writes to."""
    folder = tmp_path_factory.mktemp("results")
    for path in FOLDER.rglob("*.*"):
        target = folder / path.relative_to(FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            target.symlink_to(path)
        elif path.suffix != ".png":
            shutil.copy(path, target)
    return folder


# One of each kind of file: where a number stands that the page prints, and what it is changed to.
CHANGED = [
    ("april/sequential-float32-table", ("psnr", 1), 33.33),
    ("batch_and_client_steps/cpl-1-10-cell", ("ssim", "half_width"), 0.1),
    ("batches/batch-2-table", ("attacks", 0, "ci95"), [0.1, 0.9]),
    ("cpl_starts/lfw-starts", ("starts", 0, "iterations_quartiles", 1), 55.5),
    ("cpl_vs_dlg/cifar100-table", ("attacks", 0, "mse", "median"), 1e-2),
    ("deakin_models/lenet-table", ("cells", 0, "recovered"), 12),
    ("defences/prune-0.9-rates", ("attacks", "L2", "recovered"), 12),
    ("defences/prune-0.9-rates", ("accuracy",), 0.915),
    ("failures/summary", ("again", 0, "right"), False),
    ("gpu_account/now", ("LeNet, `lbfgs`, network shared", "kernels"), 12),
    ("idlg_fidelity/mnist", ("groups", -1, "label_accuracy"), 0.915),
    ("ig_models/resnet18-width-16-table", ("psnr_median",), 33.33),
    ("ig_models/resnet18-width-16-trained-table", ("accuracy",), 0.915),
    ("infer/summary", ("runs", "words-clip", "recall"), 0.915),
    ("infer/summary", ("runs", "membership-none", "attacks", "cosine", "auc"), 0.615),
    ("inverting_gradients/restarts-psnr", ("attacks", 2, "selected", "sd"), 0.1),
    ("inverting_gradients/untrained-psnr", ("attacks", 0, "mean"), 33.33),
    ("kan2022_figures/image-20319", ("groups", -1, "success_rate"), 0.915),
    ("kan2022_nullspace/summary", ("largest_recovery_error",), 0.1),
    ("kan2022_resnet18/train-16-table", ("recovered_but_affine",), 44),
    ("kan2022_table1/per-trial", ("groups", 3, "success_rate"), 0.1),
    ("kan2022_table1/per-trial", ("groups", -1, "iterations_mean"), 55.5),
    ("precision/summary", ("lfw-finish", "evaluations", 1), 55.5),
    ("pytorch_parity/lenet-comparison", (0, "solved", "jaxleak"), 44),
    ("ray_throughput/summary", ("ratio_median",), 55.5),
    ("resnet18_eval/summary", ("torch-lbfgs", "psnr_quantiles", "0.5"), 33.33),
    ("resolution/64-24-table", ("attacks", 0, "psnr_median"), 33.33),
    ("risk/points", (0, "measured"), 0.1),
    ("solvers/summary", (0, "solved"), 12),
    ("spear/mnist-8-200-table", ("exact",), 12),
    ("stock_model/summary", ("lines", 1, "median"), 55.5),
    ("throughput/lenet", ("variants", 5, "evaluations_per_second"), 55.5),
    ("throughput/resnet18", ("ratios", "jaxleak", "jaxopt"), 55.5),
]


@pytest.mark.parametrize(("name", "where", "number"), CHANGED, ids=lambda one: one if isinstance(one, str) else "")
def test_a_number_that_is_changed_in_the_results_is_seen(copied, monkeypatch, name, where, number):
    """Though the page is written anew from it."""
    path = copied / f"{name}.json"
    kept, content = path.read_text(), read(path)
    *keys, last = where
    part = content
    for key in keys:
        part = part[key]
    assert part[last] != number
    part[last] = number
    monkeypatch.setattr(harness, "RESULTS", copied)
    module = importlib.import_module(f"experiments.{name.split('/')[0]}")
    try:
        before = "\n".join(one.markdown() for one in module.results())
        path.write_text(json.dumps(content))
        page = "\n".join(one.markdown() for one in module.results())
        assert list(independent.check_tables(before, STORED)) == []
        assert page != before or name == "risk/points"  # one of eight: the median stays
        assert list(independent.check_tables(page, independent.Stored(copied))) != []
        if path in told_files(copied):
            assert told_of(path) != [] or last == "accuracy"
        elif name in OTHERS:
            assert differences(content, json.loads(json.dumps(OTHERS[name](copied)))) != []
        elif "groups" in content:
            assert run_summary(path) != []
    finally:
        path.write_text(kept)


def test_a_number_that_is_changed_on_the_pages_is_seen():
    """In every table, in the text, and in both tables and text of the project's README."""
    page, readme = PAGES
    stored = STORED
    changed = page
    for title, rows in independent.tables_of(page).items():
        for row, cells in zip(rows, independent.TABLES[title](stored), strict=True):
            numbers = [cell for cell, want in zip(row, cells, strict=True) if want and re.search(r"\d", want)]
            if len(row) > 1 and numbers:
                line = next(line for line in page.splitlines() if line.startswith(f"| {' | '.join(row)} |"))
                other = line[::-1].replace(numbers[-1][::-1], "1.11"[::-1], 1)[::-1]
                changed = changed.replace(line, other, 1)
                break
    found = list(independent.check_tables(changed, stored))
    assert {title for title in independent.TABLES if not any(text.startswith(title) for text in found)} == {
        "On an NVIDIA GPU"  # not run
    }
    other = readme.replace("and 8.0 (", "and 9.0 (").replace("0.991", "0.915")
    assert len(list(independent.check_headline(other, stored))) == 2
    phrase = "693 of 1,000 against 0.68"
    changed = page.replace(phrase, phrase.replace("693", "701")).replace("## Notes", "## Notes\n\nIt is 44/50.\n")
    found = list(prose.check_prose(changed, readme.replace("idlg: 1.00", "idlg: 0.75"), stored))
    assert [text[:12] for text in found] == ["kan_table1: ", "readme: by t", "no figure of"]
