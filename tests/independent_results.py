"""Every figure of README.md and experiments/README.md, computed again from the stored rows.

It uses pandas, scipy's tests and a Wilson interval of its own, and nothing of jaxleak or of its experiments: an error
there cannot hide here. Each function below is one table of the page, by its title; each in `independent_prose.py` says
what the text under a table must contain.

    python -m tests.independent_results
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

PROJECT = Path(__file__).parents[1]
ANY, NONE, NOT_RUN = None, "–", "not run"  # ANY: a name or a figure of a paper, which no row of ours decides
RECOVERED = 0.2  # relative error
Row = Sequence[Any]
TABLES: dict[str, Callable[["Stored"], list[Row]]] = {}


class Stored:
    """The files below `results/`, read once."""

    def __init__(self, folder: Path = PROJECT / "experiments" / "results"):
        self.folder, self.kept = folder, {}

    def rows(self, name: str) -> pd.DataFrame | None:
        """Rows, a trial each; None where the experiment was not run."""
        path = self.folder / f"{name}.parquet"
        if name not in self.kept:
            self.kept[name] = pd.read_parquet(path) if path.exists() else None
        return self.kept[name]

    def json(self, name: str) -> Any:
        """What has no rows: settings of a run, and measurements of a machine."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def lines(self, name: str) -> pd.DataFrame:
        return pd.read_json(self.folder / f"{name}.jsonl", lines=True)


def table(title: str) -> Callable[[Callable], Callable]:
    """Registers the function that computes the table with this title."""

    def register(function: Callable) -> Callable:
        TABLES[title] = function
        return function

    return register


# --- numbers as the page has them ---


def wilson(count: int, n: int) -> tuple[float, float]:
    """Wilson's score interval at 95 %: the roots in p of (count / n - p)^2 = z^2 p (1 - p) / n."""
    z2, share = stats.norm.ppf(0.975) ** 2, count / n
    roots = np.roots([1 + z2 / n, -(2 * share + z2 / n), share**2])
    return max(0.0, float(min(roots))), min(1.0, float(max(roots)))


def interval(count: int, n: int, digits: int = 2, scale: float = 1) -> str:
    low, high = (scale * bound for bound in wilson(count, n))
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def share(which: pd.Series) -> list[str]:
    """Of true and false: how many of how many, and the interval."""
    count, n = int(which.sum()), len(which)
    return [f"{count}/{n}", interval(count, n)]


def percent(which: pd.Series) -> list[str]:
    return [f"{int(which.sum())}/{len(which)}", interval(int(which.sum()), len(which), 0, 100)]


def rate(which: pd.Series) -> list[Any]:
    count, n = int(which.sum()), len(which)
    return [f"{count / n:.3f}", interval(count, n, 3), str(n)]


def plus_minus(values: pd.Series, digits: int = 2) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def extremes(values: pd.Series, form: str) -> str:
    return f"{values.min():{form}} to {values.max():{form}}"


def quartiles(values: pd.Series, form: str) -> list[str]:
    return [f"{number:{form}}" for number in np.nanpercentile(values, (25, 50, 75))]


# --- Kan et al. ---


def solved_iterations(rows: pd.DataFrame) -> pd.Series:
    return rows.threshold_iterations[rows.success]


@table("Table 1: DLG on LeNet, CIFAR-100")
def kan_table1(stored: Stored) -> list[Row]:
    found = [[ANY] * 11]
    runs = {"per-trial": "`torch-lbfgs`", "per-trial-1200": "`torch-lbfgs`, 1,200 iterations"}
    runs |= {"per-image": "`torch-lbfgs`", "lbfgs": "`lbfgs`", "lbfgs-relative": "`lbfgs`, relative stop"}
    for run, setting in runs.items():
        rows = stored.rows(f"kan2022_table1/{run}")
        if rows is None:
            found.append([f"`{run}`", f"per-trial, {setting}", NOT_RUN, *[NONE] * 8])
            continue
        images, iterations = rows.groupby("image"), solved_iterations(rows)
        setting = f"{rows.network.unique().item()}, {setting}"
        found.append([f"`{run}`", setting, *rate(rows.success), extremes(images.success.mean(), ".2f")])
        share_of_20, bounds, n = rate(rows.success[rows.seed < 20])
        assert n == "400", "table 1: not 400 trials of 20 seeds"
        found[-1] += [
            f"{share_of_20} {bounds}",
            f"{iterations.mean():.1f}",
            f"{iterations.median():.0f}",
            str(len(iterations)),
        ]
        found[-1].append(extremes(images[rows.columns].apply(lambda own: solved_iterations(own).mean()), ".0f"))
    return found


@table("Figures: image 20319 on LeNet")
def kan_figures(stored: Stored) -> list[Row]:
    return [[name, *rate(rows.success)] for name, rows in stored.rows("kan2022_figures/image-20319").groupby("attack")]


@table("Section 5: the gradient under a move in null(A)")
def nullspace(stored: Stored) -> list[Row]:
    rows = stored.rows("kan2022_nullspace/rows")
    change = extremes(rows.gradient_change / rows.relative_move, ".6f")
    cells = (f"{rows.output_change.max():.1e}", change, f"{rows.recovery_error.max():.1e}")
    return [[ANY, ANY, cell, str(len(rows))] for cell in cells]


@table("ResNet-18, width 16, sigmoid, label known: 2,000 evaluations")
def resnet18_eval(stored: Stored) -> list[Row]:
    runs = {name: stored.rows(f"resnet18_eval/{name}") for name in ("lbfgs", "torch-lbfgs")}
    return [[f"`{name}`", *share(rows.psnr > 30), f"{rows.psnr.median():.1f}"] for name, rows in runs.items()]


RESNET18 = (
    *("published", "published-idlg", "published-34", "published-50", "published-lenet"),
    *("train-uniform", "eval", "train", "eval-softplus-torch", "eval-uniform"),
    *("eval-torch", "train-torch", "train-softplus-torch", "eval-softplus-trained", "eval-softplus-trained-hidden"),
    *("eval-relu-torch-cosine", "train-relu-torch-cosine", "eval-joint", "eval-per-tensor", "eval-absolute"),
)


def resnet18(stored: Stored, width: int) -> list[Row]:
    found: list[Row] = []
    for name in RESNET18:
        rows = stored.rows(f"kan2022_resnet18/{name}-{width}")
        if rows is None:
            continue
        training = stored.json(f"kan2022_resnet18/{name}-{width}").get("training")
        told = f" ({training['accuracy'][0]:.1%} accuracy)" if training else ""
        images, n = rows.image.nunique(), len(rows)
        cells = [f"`{name}`{told}", f"{images} x {n // images}", f"{rows.evaluations.median():,.0f}"]
        cells += [*share(rows.relative_error < RECOVERED), *share(rows.affine_error < RECOVERED)]
        cells += [", ".join(quartiles(rows.psnr, ".1f")), ", ".join(quartiles(rows.affine_error, ".2f"))]
        cells += [f"{(rows.objective < 1e-4).sum()}/{n}", f"{rows.relative_objective.median():.0e}"]
        found.append([*cells, f"{rows.label_correct.sum()}/{n}"])
    return [*found, *([["others", NOT_RUN, *[NONE] * 10]] if len(found) < len(RESNET18) else [])]


TABLES["ResNet-18, full width: whose images come back"] = lambda stored: resnet18(stored, 64)
TABLES["ResNet-18, width 16: whose images come back"] = lambda stored: resnet18(stored, 16)


# --- DLG, iDLG, CPL ---


@table("Batches of CIFAR-100 images with distinct labels, LeNet, 300 iterations")
def batches(stored: Stored) -> list[Row]:
    found = []
    for size in (1, 2, 4, 8):
        for attack, rows in stored.rows(f"batches/batch-{size}").groupby("attack", sort=False):
            images = rows.batch.sum()
            counts = [f"{rows[key].sum()}/{images}" for key in ("images_recovered", "labels_right")]
            found.append([f"`batch-{size}`", ANY, attack, *share(rows.success), *counts, f"{rows.psnr.median():.1f}"])
    return found


@table("The same batches by DLG as published")
def published_batches(stored: Stored) -> list[Row]:
    found = []
    for size, paper, most in ((2, "602", "700"), (4, "1,173", "1,200"), (8, "2,711", "2,800")):
        rows, setting = stored.rows(f"batches/published-{size}"), [f"`published-{size}`", paper, most]
        if rows is None:
            found.append([*setting, NOT_RUN, *[NONE] * 5])
            continue
        assert rows.iterations.max() <= int(most.replace(",", "")), "more iterations than the table has"
        counts = [f"{rows[key].sum()}/{rows.batch.sum()}" for key in ("images_recovered", "labels_right")]
        diverged = f"{(rows.status == 'diverged').sum()}/{len(rows)}"
        found.append([*setting, *share(rows.success), *counts, f"{rows.psnr.median():.1f}", diverged])
    return found


DEFENCES = (
    *("none", "gaussian:1e-4", "gaussian:1e-3", "gaussian:1e-2", "gaussian:3e-2", "gaussian:0.1", "gaussian:0.316"),
    *("laplace:1e-4", "laplace:1e-3", "laplace:1e-2", "laplace:3e-2", "laplace:0.1", "laplace:0.316"),
    *("prune:0.1", "prune:0.2", "prune:0.3", "prune:0.5", "prune:0.7", "prune:0.9", "prune:0.99"),
    *("prune-layer:0.1", "prune-layer:0.3", "prune-layer:0.5", "prune-layer:0.7", "prune-layer:0.9"),
    *("soteria:0.01", "soteria:0.1", "soteria:0.4", "soteria:0.8", "precode:64", "precode:256"),
    *("error-feedback:0.5:5", "error-feedback:0.9:5", "error-feedback:0.9:20"),
    *("fp16", "bf16", "int8", "clip:1", "clip:0.1"),
    *("dp-sgd:1:1e-4", "dp-sgd:1:1e-3", "dp-sgd:1:1e-2", "dp-sgd:1:0.1"),
)
HELD_OUT = 999  # images of MNIST: an accuracy is so many of them


@table("Defences: trials recovered, and MNIST accuracy when trained so")
def defences(stored: Stored) -> list[Row]:
    found = []
    for name in DEFENCES:
        file = f"defences/{name.replace(':', '-')}"
        rows = stored.rows(file)
        if rows is None:
            found.append([f"`{name}`", NOT_RUN, *[NONE] * 8])
            continue
        cells = []
        for attack in ("L2", "cosine", "L2, told", "cosine, told"):
            own = rows[rows.attack == attack]
            cells += share(own.relative_error < RECOVERED) if len(own) else [NONE, NONE]
        accuracy = stored.json(f"{file}-rates")["accuracy"]
        whole = accuracy is None or abs(accuracy * HELD_OUT - round(accuracy * HELD_OUT)) < 1e-6
        assert whole, f"{name}: an accuracy of {accuracy} is no share of {HELD_OUT} images"
        found.append([f"`{name}`", *cells, NONE if accuracy is None else f"{accuracy:.3f}"])
    return found


@table("Noise by its variance: trials recovered")
def noise_by_variance(stored: Stored) -> list[Row]:
    found = []
    for kind in ("gaussian", "laplace"):
        for variance, sigma in (("1e-4", "1e-2"), ("1e-3", "3e-2"), ("1e-2", "0.1"), ("1e-1", "0.316")):
            rows, ours = stored.rows(f"defences/{kind}-{sigma}"), f"{float(sigma) ** 2:.0e}"
            assert abs(float(ours) / float(variance) - 1) < 0.11, f"{kind}: {ours} does not stand for {variance}"
            cells = [NOT_RUN, *[NONE] * 3]
            if rows is not None:
                shares = [share(rows[rows.attack == name].relative_error < RECOVERED) for name in ("L2", "cosine")]
                cells = [cell for one in shares for cell in one]
            found.append([f"`{kind}:{sigma}`", variance, ANY, ours, *cells])
    return found


@table("Label accuracy and fidelity in %, LeNet")
def idlg_fidelity(stored: Stored) -> list[Row]:
    found: list[Row] = []
    for dataset, attack in product(("mnist", "cifar100", "lfw"), ("dlg", "idlg")):
        task = f"{dataset}, {attack}"
        found.append(["paper", task, *[ANY] * 7])
        for run in (dataset, *(["lfw-5749"] if dataset == "lfw" else []), f"{dataset}-lbfgs"):
            rows = stored.rows(f"idlg_fidelity/{run}")
            if rows is None:
                found.append([f"`{run}`", task, NOT_RUN, *[NONE] * 6])
                continue
            rows = rows[rows.attack == attack]
            cells = [f"`{run}`", task, f"{len(rows):,}"]
            for which in (rows.label_correct, *(rows.mse < limit for limit in (1e-2, 5e-3, 1e-3, 5e-4, 1e-4))):
                cells.append(f"{100 * which.mean():.1f} {interval(int(which.sum()), len(which), 1, 100)}")
            found.append(cells)
    return found


def cpl_starts(stored: Stored, dataset: str) -> list[Row]:
    rows = stored.rows(f"cpl_starts/{dataset}")
    return [
        [attack, *share(own.success), f"{solved_iterations(own).median():.0f}"]
        for attack, own in rows.groupby("attack", sort=False)
    ]


for _dataset in ("lfw", "cifar100"):
    TABLES[f"Figures 5, 6, 7 and 9: starts on {_dataset}"] = lambda stored, name=_dataset: cpl_starts(stored, name)


CPL_FIGURES = ("dlg", "cpl", "batch-8", "batch-10")


def cpl_points(stored: Stored, name: str, key: str) -> pd.DataFrame | None:
    """A column each iteration that is kept; where a trial ended before the last of them, that is its row's value."""
    if not (stored.folder / f"cpl_figures/{name}-points.jsonl").exists():
        return None
    lines, rows = stored.lines(f"cpl_figures/{name}-points"), stored.rows(f"cpl_figures/{name}")
    points = pd.DataFrame(lines[key].tolist(), index=lines.trial).rename(columns=int)
    ended = rows[rows.iterations <= 295].set_index("trial")[key]
    last = points.loc[ended.index, 295]
    if key == "mse" and name.startswith("batch"):  # of all images, where the row has the nearest one's
        assert (last >= ended * (1 - 1e-5)).all(), f"{name}: the mean is below the nearest image's"
    else:
        assert np.allclose(last, ended, rtol=1e-5), f"{name}: {key} does not end at the rows'"
    assert len(points) == len(rows), f"{name}: not a line for each row"
    return points


@table("Figures 3, 4 and 8: objective and MSE over the iterations")
def cpl_figures(stored: Stored) -> list[Row]:
    found: list[Row] = []
    for name in CPL_FIGURES:
        objective, mse = (cpl_points(stored, name, key) for key in ("objective", "mse"))
        if objective is None or mse is None:
            found.append([f"`{name}`", NONE, NONE, NOT_RUN, *[NONE] * 3])
            continue
        for step in (1, 6, 11, 16, 100, 295):
            low, middle, high = quartiles(objective[step], ".2g")
            cells = [middle, f"{low} to {high}", f"{mse[step].median():.2g}", str(len(mse))]
            found.append([f"`{name}`", str(step), ANY, *cells])
    return found


@table("CPL and DLG on the same images")
def cpl_vs_dlg(stored: Stored) -> list[Row]:
    found = []
    for run in ("lfw", "lfw-torch", "cifar100", "cifar100-torch"):
        rows = stored.rows(f"cpl_vs_dlg/{run}")
        if rows is None:
            found.append([f"`{run}`", NONE, NOT_RUN, *[NONE] * 4])
            continue
        for attack, own in rows.groupby("attack", sort=False):
            middle = f"{solved_iterations(own).median():.0f}" if own.success.any() else NONE
            cells = [middle, f"{own.ssim.mean():.3f}", f"{own.mse.median():.0e}"]
            found.append([f"`{run}`", attack, *share(own.success), *cells])
    return found


@table("Table 1: batch size and client iterations")
def batch_and_client_steps(stored: Stored) -> list[Row]:
    found = []
    for kind in ("cpl", "scaled", "joint"):
        lines = []
        for steps in (1, 2, 5, 10, 15, 20, 50, 100):
            for batch in (1, 5, 10, 15, 20):
                rows = stored.rows(f"batch_and_client_steps/{kind}-{batch}-{steps}")
                if rows is not None:
                    cells = [mean_interval(rows[key]) for key in ("ssim", "mse_clipped")]
                    lines.append([f"`{kind}`", str(steps), str(batch), ANY, ANY, *cells, str(len(rows))])
        found += lines if len(lines) == 40 else [*lines, [f"`{kind}`", "others", NONE, NONE, NONE, NOT_RUN, NONE, NONE]]
    return found


def mean_interval(values: pd.Series, digits: int = 3) -> str:
    """The mean and half of its 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{values.mean():.{digits}f} ± {half:.{digits}f}"


@table("Figure 10: LFW at 32, 64 and 128 pixels, LeNet")
def resolution(stored: Stored) -> list[Row]:
    found = []
    for size in (32, 64, 128):
        for channels in (12, 24, 48):
            setting = [f"`{size}-{channels}`", str(size), str(channels)]
            rows = stored.rows(f"resolution/{size}-{channels}")
            if rows is None:
                found.append([*setting, NONE, NOT_RUN, NONE, NONE])
                continue
            for attack, own in rows.groupby("attack", sort=False):
                found.append([*setting, attack, *share(own.success), f"{own.psnr.median():.1f}"])
    return found


# --- Inverting Gradients, ReLUs, Deakin ---


@table("Table 1: PSNR on LeNet, one restart")
def inverting_gradients(stored: Stored) -> list[Row]:
    found = []
    for network in ("untrained", "trained"):
        for attack, rows in stored.rows(f"inverting_gradients/{network}").groupby("attack", sort=False):
            psnr = rows.psnr[np.isfinite(rows.psnr)]
            found.append([f"`{network}`", attack, ANY, plus_minus(psnr), str(len(psnr))])
    return found


@table("Table 1: `ig` with TV 0.01, restarts, PSNR in dB")
def restarts(stored: Stored) -> list[Row]:
    rows, found = stored.rows("inverting_gradients/restarts"), []
    for count in (1, 2, 4, 8, 16):
        first = rows[rows.seed < count].reset_index(drop=True)
        selected = first.psnr[first.groupby("image").objective.idxmin()]
        oracle = first.groupby("image").psnr.max()
        found.append([str(count), plus_minus(selected), plus_minus(oracle), str(len(oracle))])
    return found


IG_MODELS = (
    *("resnet18-width-16", "resnet18-width-16-trained", "resnet18-width-64", "resnet18-width-128"),
    *("resnet18-width-512", "resnet152-width-16", "resnet152-width-64", "resnet152-width-64-trained", "batch"),
)


@table("Deep networks: cosine, TV, signed Adam")
def ig_models(stored: Stored) -> list[Row]:
    found = []
    for name in IG_MODELS:
        rows, run = stored.rows(f"ig_models/{name}"), stored.json(f"ig_models/{name}")
        if rows is None:
            found.append([f"`{name}`", NOT_RUN, *[NONE] * 6])
            continue
        training, steps = run.get("training"), f"{rows.iterations.unique().item():,}"
        cells = [ANY, f"{training['accuracy'][0]:.1%}" if training else NONE, steps]
        if name != "batch":
            found.append([f"`{name}`", *cells, str(len(rows)), f"{rows.psnr.median():.1f}", NONE, NONE])
            continue
        # One row for all images: their own PSNRs are in the JSON, and their mean in the row.
        told, (row,) = stored.json(f"ig_models/{name}-table"), rows.itertuples()
        low, middle, high = told["psnr_quartiles"]
        assert abs(told["psnr_mean"] - row.psnr) < 1e-5, "batch: the images' mean PSNR is not the row's"
        assert low <= middle <= high, "batch: quartiles out of order"
        within = [f"{middle:.1f}", f"{low:.1f} to {high:.1f}", str(told["more_than_half_explained"])]
        found.append([f"`{name}`", *cells, str(row.batch), *within])
    return found


STUDIES = {
    "width": ("Widths of ResNet-18", ("4", "8", "16", "32")),
    "depth": ("Depths, width 8", ("18", "34", "50", "101", "152")),
    "padding": (
        "Padding: what says where a thing is",
        tuple(f"{padding}, {reads}" for reads in ("map", "mean") for padding in ("zero", "circular", "none")),
    ),
    "averaging": (
        "Local averaging, LeNet",
        tuple(f"{n} x {local}" for n in (1, 4) for local in ("1, lr 0.01", "5, lr 0.01", "5, lr 0.1")),
    ),
    "dense": ("A stack of dense layers", ("analytic", "ig")),
    "steps": (
        "The paper's networks and budgets, width 8",
        tuple(f"{network}, {steps}" for network in ("convnet", "resnet20-4") for steps in (300, 4800, 24000)),
    ),
}
STUDIES["full"] = ("The paper's networks and budgets, width 64", STUDIES["steps"][1])


def ig_study(stored: Stored, study: str) -> dict[str, pd.DataFrame]:
    """The rows of each setting that was run, an image each."""
    there = (stored.folder / f"ig_studies/{study}.jsonl").exists()
    rows = stored.lines(f"ig_studies/{study}") if there else pd.DataFrame(columns=["setting"])
    return {str(name): own for name, own in rows.groupby("setting", sort=False)}


def moved(rows: pd.DataFrame) -> pd.Series:
    return rows.psnr_shifted - rows.psnr > 1


def ig_studies(stored: Stored, study: str) -> list[Row]:
    runs, found, more = ig_study(stored, study), [], 3 * (study == "padding")
    for name in STUDIES[study][1]:
        if name not in runs:
            found.append([f"`{name}`", NOT_RUN, *[NONE] * (4 + more)])
            continue
        rows = runs[name]
        assert len(set(rows.image)) == len(rows), f"{study} {name}: an image twice"
        cells = [plus_minus(rows.psnr, 1), extremes(rows.psnr, ".1f"), str(len(rows))]
        cells += [f"{rows.evaluations.median():,.0f}", f"{rows.objective.median():.0e}"]
        found.append([f"`{name}`", *cells, *([plus_minus(rows.psnr_shifted, 1), *percent(moved(rows))] * (more > 0))])
    return found


for _study, (_title, _) in STUDIES.items():
    TABLES[_title] = lambda stored, name=_study: ig_studies(stored, name)


RELU = (
    "box-0.01",
    "box-0.03",
    "box-0.1",
    "free-0.03",
    "ig-0.0001",
    "ig-0.01",
    "ig-0.03",
    "ig-0.1",
    "rgap",
    "ig-0.03-short",
)


@table("LeNet with ReLUs, one start")
def relu(stored: Stored) -> list[Row]:
    found = []
    for name in RELU:
        rows = stored.rows(f"relu/{name}")
        if rows is None:
            found.append([f"`{name}`", ANY, NONE, NOT_RUN, *[NONE] * 3])
            continue
        low, middle, high = quartiles(rows.psnr, ".1f")
        settings = [name.split("-")[1], f"{rows.evaluations.median():,.0f}"] if "-" in name else [NONE, NONE]
        cells = [f"{middle} ({low} to {high})", *percent(rows.psnr > 20), str(rows.label_correct.sum())]
        found.append([f"`{name}`", *settings, *cells])
    return found


BAYESIAN = {"gaussian": "gaussian:3e-3", "laplace": "laplace:3e-3", "prune": "prune:0.9", "int8": "int8:4"}
BAYESIAN |= {"dp-sgd": "dp-sgd:1:1.5e-4"}


@table("Each defence and its best attacker")
def bayesian(stored: Stored) -> list[Row]:
    found: list[Row] = []
    attacks = ("l2", "l1", "cosine", "likelihood", "patches", "best")
    groups = [(text, {name: f"bayesian/{defence}-{name}" for name in attacks}) for defence, text in BAYESIAN.items()]
    long = {name: f"bayesian/laplace-{name}-long" for name in ("l2", "likelihood")}
    for text, files in (*groups, ("laplace:3e-3, 1,000 evaluations", long)):
        runs = {name: stored.rows(file) for name, file in files.items()}
        medians = {name: rows.psnr.median() for name, rows in runs.items() if rows is not None and name in attacks[:4]}
        rival = max((name for name in medians if name != "likelihood"), key=lambda name: medians[name], default=None)
        for name, rows in runs.items():
            best = " (best)" if medians and name == max(medians, key=lambda name: medians[name]) else ""
            if rows is None:
                found.append([f"`{text}`", name, NOT_RUN, *[NONE] * 4])
                continue
            settings = stored.json(files[name])["settings"]["attacks"][0]
            low, middle, high = quartiles(rows.psnr, ".1f")
            cells = [f"{settings['patches' if name == 'patches' else 'tv']:g}", f"{middle} ({low} to {high})"]
            cells += percent(rows.psnr > 20)
            other = {"likelihood": rival, "patches": "likelihood", "best": "likelihood"}.get(name)
            if other in medians:
                apart = rows.set_index("image").psnr - runs[other].set_index("image").psnr
                p = stats.wilcoxon(apart.to_numpy()).pvalue
                cells.append(f"{apart.median():+.1f} dB, p = {p:.1g} against {other}")
            found.append([f"`{text}`", name + best, *cells, *[NONE] * (5 - len(cells))])
    return found


MAPPED = ("untrained", "epoch", "trained"), (1, 2, 4, 8), (0, 5), ("none", "weak", "strong")
MAPPED_NETWORKS = (
    *("lenet-sigmoid", "lenet-relu", "mlp", "vit", "vgg", "convnet-eval", "convnet-train", "convnet-group"),
    *("resnet-eval", "resnet-train", "resnet-group", "resnet-softplus", "preact-train", "preact-group"),
)


@table("What leaks: CIFAR-100 images above 20 dB, one start")
def leak_map(stored: Stored) -> list[Row]:
    if not (stored.folder / "leak_map/cells.jsonl").exists():
        return [[NOT_RUN, *[NONE] * 12]]
    cells, risks, found = stored.lines("leak_map/cells").set_index("cell"), {}, []
    if (stored.folder / "leak_map/risk.jsonl").exists():
        risks = stored.lines("leak_map/risk").dropna(subset="psnr").set_index("cell").psnr
    assert cells.index.is_unique
    for network, training, batch, steps, defence in product(MAPPED_NETWORKS, *MAPPED):
        name = f"{network}-{training}-b{batch}-s{steps}-{defence}"
        if name not in cells.index:
            continue
        row, psnr = cells.loc[name], pd.Series(cells.psnr[name])
        assert (row.batch, row.steps, row.defence) == (batch, steps, defence)
        assert len(psnr) == batch * len(row.evaluations) == 40
        setting = [ANY, row["mode"], training, str(batch), str(steps), defence, row.attack]
        measured = [f"{psnr.median():.1f}", f"{np.median(row.evaluations):,.0f}", str(row.labels_right)]
        found.append([*setting, *share(psnr > 20), *measured, f"{risks[name]:.1f}" if name in risks else NONE])
    assert len(found) == len(cells)
    return found


BEST = {
    **{f"{model}, 1": ("best", "adam-0.03", "lbfgs-0.03") for model in ("resnet20-4", "convnet")},
    "lenet-sigmoid, 1": ("best", "lbfgs-0.03", "idlg", "l2", "l2-box", "l2-box-tv"),
    "lenet-sigmoid, 4": ("best", "lbfgs-0.03", "idlg", "l2", "l2-box"),
    "lenet-relu, 4": ("best", "adam-0.03", "lbfgs-0.03", "lbfgs-falling", "idlg", "consensus"),
    **{f"{model}, 4": ("best", "adam-0.03", "lbfgs-0.03") for model in ("resnet20-4", "convnet")},
    **dict.fromkeys(("resnet20-4-long, 1", "convnet-long, 1"), ("best", "mean-of-4")),
    "lenet-relu, 1": ("adam-falling", "adam-0.03", "lbfgs-0.03", "idlg", "best", "refined"),
}


@table("The attack best, and what its options buy")
def best(stored: Stored) -> list[Row]:
    there, found = (stored.folder / "best/images.jsonl").exists(), []
    images = stored.lines("best/images") if there else pd.DataFrame(columns=["setting", "batch", "attack"])
    for setting, attacks in BEST.items():
        for attack in attacks:
            rows = images[(images.setting + ", " + images.batch.astype(str) == setting) & (images.attack == attack)]
            if not len(rows):
                found.append([setting, f"`{attack}`", NOT_RUN, *[NONE] * 3])
                continue
            low, middle, high = quartiles(rows.psnr, ".1f")
            name = f"`best`: {rows.chosen.iloc[0].split(':')[0]}" if attack == "best" else f"`{attack}`"
            evaluations = f"{rows.evaluations.median():,.0f}"
            found.append([setting, name, evaluations, f"{middle} ({low} to {high})", *percent(rows.psnr > 20)])
    return found


PEERS = (
    *(("convnet 1", 1), ("convnet train 4", 4), ("convnet 4", 4), ("convnet 8", 8), ("convnet trained 1", 1)),
    *(("resnet20-4 1", 1), ("resnet20-4 4", 4), ("resnet20-4 trained 1", 1), ("resnet18 1", 1), ("lenet 1", 1)),
)


@table("The attack best beside breaching's presets")
def peers(stored: Stored) -> list[Row]:
    there, found = (stored.folder / "peers/images.jsonl").exists(), []
    images = stored.lines("peers/images") if there else pd.DataFrame(columns=["setting", "attack"])
    for (setting, batch), attack in product(PEERS, ("best", "invertinggradients", "modern")):
        own = images[images.setting == setting]
        rows, others = own[own.attack == attack], own[own.attack != "best"]
        if not len(rows):
            found.append([setting, f"`{attack}`", NOT_RUN, *[NONE] * 6])
            continue
        assert len(rows) == batch * rows["update"].nunique()
        low, middle, high = quartiles(rows.psnr, ".1f")
        cells = [f"{rows.evaluations.median():,.0f}", f"{rows.seconds.median():.1f}", f"{middle} ({low} to {high})"]
        compared = [NONE] * 3
        if attack == "best" and len(others):
            rival = others[others.attack == others.groupby("attack").psnr.median().idxmax()]
            updates = [[group.psnr.to_numpy() for _, group in side.groupby("update")] for side in (rows, rival)]
            gains = []
            for drawn in np.random.default_rng(0).integers(len(updates[0]), size=(2000, len(updates[0]))):
                ours, theirs = (np.median(np.concatenate([side[place] for place in drawn])) for side in updates)
                gains.append(ours - theirs)
            means = [side.groupby("update").psnr.mean() for side in (rows, rival)]
            p = stats.wilcoxon(means[0].to_numpy() - means[1].to_numpy()).pvalue
            bounds = np.quantile(gains, (0.025, 0.975))
            compared = [f"{rows.psnr.median() - rival.psnr.median():.1f}", f"[{bounds[0]:.1f}, {bounds[1]:.1f}]"]
            compared.append(f"{p:.3f}")
        found.append([setting, f"`{attack}`", *cells, str(len(rows)), *compared])
    return found


GRADINVERSION = (
    *("published", "published-long", "without-statistics", "lbfgs", "lbfgs-statistics", "without-consistency"),
    *("without-tv", "without-norm", "registered", "hundredth"),
)


@table("GradInversion term by term")
def gradinversion(stored: Stored) -> list[Row]:
    images, found = stored.lines("gradinversion/images"), []
    for batch, attack in product((1, 2, 4, 8), GRADINVERSION):
        rows = images[(images.batch == batch) & (images.attack == attack)]
        if not len(rows):
            found.append([str(batch), f"`{attack}`", NOT_RUN, *[NONE] * 6])
            continue
        updates = rows.drop_duplicates("update")
        assert len(rows) == batch * len(updates)
        low, middle, high = quartiles(rows.psnr, ".1f")
        cells = [f"{updates.evaluations.median():,.0f}", f"{middle} ({low} to {high})", *percent(rows.psnr > 20)]
        cells += [f"{updates.affine_error.median():.2f}", f"{updates.relative_objective.median():.1g}"]
        found.append([str(batch), f"`{attack}`", *cells, f"{updates.labels_right.sum()}/{len(rows)}"])
    return found


@table("DLG on networks with sigmoids")
def deakin_models(stored: Stored) -> list[Row]:
    found = []
    sizes = {"lenet": 32, "lenet-plain": 32, "resnet18": 224, "densenet121": 224, "inception3": 299}
    for name, size in sizes.items():
        if stored.rows(f"deakin_models/{name}") is None:
            found.append([f"`{name}`", ANY, NOT_RUN, *[NONE] * 8])
            continue
        attacks = stored.json(f"deakin_models/{name}")["settings"]["attacks"]
        iterations = {attack["name"]: str(attack["iterations"]) for attack in attacks}
        for attack, rows in stored.rows(f"deakin_models/{name}").groupby("attack", sort=False):
            cells = [iterations[attack], str(size), str(rows.batch.iloc[0]), ANY]
            cells += [attack, *share(rows.relative_error < RECOVERED), str((rows.affine_error < RECOVERED).sum())]
            found.append([f"`{name}`", ANY, *cells, f"{rows.mse_clipped.median():.2g}"])
    return found


# --- solvers and parity ---


def first_images(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """The trials of the images that come first."""
    return rows[rows.image.isin(rows.sort_values("trial").image.unique()[:count])]


@table("Failed trials of `lbfgs`, run to their end")
def failures(stored: Stored) -> list[Row]:
    again, right = [], 0
    rows = stored.rows("failures/rows").set_index(["run", "attack", "seed"])
    sources = {"table1": "kan2022_table1/lbfgs", "mnist": "idlg_fidelity/mnist-lbfgs", "lfw": "idlg_fidelity/lfw-lbfgs"}
    for source, file in sources.items():
        trials = first_images(stored.rows(file), 200)
        for row in trials[~trials.success if source == "table1" else trials.mse >= 1e-3].itertuples():
            key = f"{source}-{row.image}"
            stopped, ended = (rows.loc[key, attack, row.seed] for attack in (row.attack, f"{row.attack}-to-the-end"))
            again.append((stopped.relative_error, ended.relative_error))
            right += bool(ended.success if source == "table1" else ended.mse < 1e-3)
    at_stop, at_end = map(pd.Series, zip(*again, strict=True))
    return [[str(len(again)), str(right), extremes(at_stop, ".2f"), f"{at_end.max():.2f}"]]


@table("iDLG behind tanh: where the label is read")
def tanh_labels(stored: Stored) -> list[Row]:
    rows, found = stored.rows("failures/rows"), []
    for attack, name in (("idlg", "iDLG's"), ("bias", "head's bias")):
        own = rows[rows.run.str.startswith("tanh-") & (rows.attack == attack)]
        found.append([name, str(own.label_correct.sum()), str((own.mse < 1e-3).sum()), str(len(own))])
    return found


SOLVERS = ("torch-lbfgs", "lbfgs", "adam", "optax-lbfgs", "jaxopt-hager-zhang", "jaxopt-zoom")


def solver_rows(stored: Stored, solver: str, activation: str, attack: str) -> pd.DataFrame:
    """With a column `solved`: a success within 6,000 evaluations."""
    rows = stored.rows(f"solvers/{solver}")
    rows = rows[(rows.activation == activation) & (rows.attack == attack)]
    return rows.assign(solved=rows.success & (rows.threshold_evaluations <= 6000))


@table("Solved within 6,000 evaluations: LeNet, a network for each trial")
def solvers(stored: Stored) -> list[Row]:
    found = []
    for activation in ("sigmoid", "relu", "tanh"):
        for solver in SOLVERS:
            cells = []
            for attack in ("dlg", "idlg"):
                rows = solver_rows(stored, solver, activation, attack)
                cells += [*share(rows.solved), str(rows.label_correct.sum())] if len(rows) else []
            found.append([activation, f"`{solver}`", *(cells or [NOT_RUN, *[NONE] * 5])])
    return found


@table("Pairs of half the size, DLG on LeNet")
def half_history(stored: Stored) -> list[Row]:
    found = []
    for kind in ("same", "bfloat16"):
        rows = stored.rows(f"half_history/{kind}")
        if rows is None:
            found.append([f"`{kind}`", NOT_RUN, NONE, NONE])
            continue
        low, middle, high = quartiles(rows.threshold_evaluations, ",.0f")
        found.append([f"`{kind}`", *percent(rows.success), f"{middle} ({low} to {high})"])
    return found


@table("Precision: iDLG with `lbfgs`, medians")
def precision(stored: Stored) -> list[Row]:
    rows, found = stored.rows("precision/rows"), []
    for (dataset, stage), own in rows.groupby(["dataset", "stage"], sort=False):
        middle = own[["objective", "psnr", "evaluations"]].median()
        cells = [f"{middle.objective:.0e}", f"{middle.psnr:.0f}", f"{middle.evaluations:,.0f}", str(len(own))]
        found.append([dataset, stage, *cells])
    return found


def parity_trials(stored: Stored, attack: str, run: str = "lenet") -> pd.DataFrame:
    """PyTorch's and our trials side by side, with what each solves."""
    theirs, ours = stored.lines(f"pytorch_parity/{run}-torch"), stored.rows(f"pytorch_parity/{run}")
    theirs, ours = theirs[theirs.method == attack], ours[ours.attack == attack]
    both = theirs.merge(ours, on=["image", "seed"], suffixes=("_torch", ""), validate="one_to_one")
    return both.assign(
        by_torch=both.iter_1e4.notna() & (both.mse_torch < 0.01),
        by_us=both.threshold_iterations.notna() & (both.mse < 0.01),
    )


@table("The same networks and starts in both")
def pytorch_parity(stored: Stored) -> list[Row]:
    found = []
    for run in ("lenet", "lenet-fresh", "resnet18"):
        if stored.rows(f"pytorch_parity/{run}") is None:
            found.append([f"`{run}`", NOT_RUN, *[NONE] * 11])
            continue
        for attack in ("dlg", "idlg"):
            trials = parity_trials(stored, attack, run)
            found.append([f"`{run}`", attack, *parity_cells(trials, trials.by_torch, trials.by_us)])
    return found


def parity_cells(trials: pd.DataFrame, theirs: pd.Series, ours: pd.Series) -> Row:
    both = trials[theirs & ours]
    (a, n), (b, m) = ((int(own.sum()), len(own)) for own in (theirs, ours))
    medians = [f"{column.median():g}" if len(both) else NONE for column in (both.iter_1e4, both.threshold_iterations)]
    alone = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    # McNemar's exact test, by its sum: as few as the rarer of the two, either way, were all of them flips of a coin.
    flips = sum(alone)
    tail = sum(math.comb(flips, k) for k in range(min(alone) + 1)) / 2**flips
    logs = np.log(both.threshold_iterations.astype(float) / both.iter_1e4.astype(float))
    p = f"{stats.wilcoxon(logs).pvalue:.2f}" if np.any(logs) else NONE
    return [
        *[*share(theirs), medians[0], *share(ours), medians[1], str(len(both)), f"{min(1, 2 * tail):.2f}"],
        f"{stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue:.2f}",
        *[f"{np.exp(logs.mean()):.3f}" if len(both) else NONE, p],
    ]


@table("What is not at its published size")
def published_sizes(stored: Stored) -> list[Row]:
    """Stored rows, trials, evaluations of one (0: as many as a stored one), model of the zoo or run, for the rate."""
    items = [
        ("idlg_fidelity/lfw-5749", 2000, 0, "idlg_fidelity/lfw-5749"),
        ("resolution/128-48", 12, 3500, "resolution/128-24"),
        ("kan2022_resnet18/published-64", 400, 0, "kan2022_resnet18/published-64"),
        *((f"deakin_models/{model}", 2, 6000, f"deakin_models/{model}") for model in ("densenet121", "inception3")),
        *((f"ig_studies/full-{model}", 2, 24_001, model) for model in ("convnet", "resnet20-4")),
        ("ig_models/resnet18-width-64", 4, 4801, "resnet18"),
        *((f"ig_models/resnet152-width-64{more}", 4, 4801, "resnet152") for more in ("", "-trained")),
    ]
    gpu, found = stored.json("gpu_account/now"), []
    for name, trials, each, model in items:
        rows, own = stored.rows(name), stored.rows(model) if "/" in model else None
        done = 0 if rows is None else int(rows.evaluations.sum())
        here = NOT_RUN if rows is None else f"{len(rows):,} of {trials:,} trials, {done:,} evaluations"
        whole = round(trials * (each or (6000 if rows is None else done / len(rows))))
        if "/" not in model:
            rate = zoo_rate(stored, model)
        elif own is not None:
            rate = 2 / int(own.device[0].split("x")[0]) * stored.json(model)["engine"]["evaluations_per_second"]
        else:
            rate = math.nan
        hours = whole / rate / 3600
        small = not name.startswith(("deakin", "ig_", "kan2022_resnet18"))
        account = gpu["LeNet, `torch-lbfgs`, network per-trial" if small else "ResNet-18, Adam, network shared"]
        faster = account["evaluations_per_second"] / zoo_rate(stored, "lenet-cpl" if small else "resnet18")
        told = [NONE, NONE] if math.isnan(rate) else [f"{hours:.2g}", f"{hours / faster:.2g}"]
        found.append([ANY, ANY, here, f"{whole:,}", *told, ANY])
    return found


def zoo_rate(stored: Stored, model: str) -> float:
    variants = pd.DataFrame(stored.json(f"throughput/zoo-{model}")["variants"]).set_index("name")
    return float(variants.evaluations_per_second["jaxleak"])


# --- closed forms, verdicts, risk, stacks, reliability ---


@table("Whole batches from a dense layer with a ReLU, in closed form")
def spear(stored: Stored) -> list[Row]:
    found = []
    for dataset in ("mnist", "cifar100"):
        for width in (200, 2000):
            for size in (8, 16):
                run = f"{dataset}-{size}-{width}"
                setting, rows = [f"`{run}`", dataset, str(size), f"{width:,}"], stored.rows(f"spear/{run}")
                if rows is None:
                    found.append([*setting, NOT_RUN, NONE, NONE, NONE])
                    continue
                error, labels = f"{rows.relative_error.median():.0e}", str(rows.label_correct.sum())
                found.append([*setting, *percent(rows.relative_error < 1e-3), error, labels])
    return found


@table("CIFAR-100 images from the positions of a vision transformer, in closed form")
def april(stored: Stored) -> list[Row]:
    found = []
    for encoder in ("pre-norm", "sequential"):
        for dtype in ("float32", "float64"):
            rows = stored.rows(f"april/{encoder}-{dtype}")
            psnr = rows.psnr.clip(upper=200)
            psnr = f"{psnr.median():.0f} ({psnr.min():.0f} to {psnr.max():.0f})"
            cells = [*percent(rows.psnr > 40), psnr, str(rows.label_correct.sum())]
            found.append([f"`{encoder}-{dtype}`", encoder, rows.dtype.unique().item(), *cells])
    return found


@table("Texts from the gradient of a transformer")
def texts(stored: Stored) -> list[Row]:
    found = []
    for attack in ("dager", "dlg", "tag", "dlg-counts", "tag-counts"):
        for weights, length, batch in product(("torch", "uniform"), (4, 8, 16, 32, 64), (1, 4, 8)):
            rows = stored.rows(f"text/{attack}-{weights}-{length}-{batch}")
            if rows is not None:
                best = rows.sort_values(["objective", "trial"]).groupby("image").success.first().mean()
                medians = [f"{rows[name].median():.2f}" for name in ("tokens_right", "rouge1", "rouge2")]
                setting = [attack, weights, str(length), str(batch)]
                found.append([*setting, *map(str, rate(rows.success)), f"{best:.2f}", *medians])
    return found


INFER_DEFENCES = {
    "none": "none",
    "clip": "clip:1",
    "little-noise": "clip:1 gaussian:0.003",
    "noise": "clip:1 gaussian:0.01",
    "more-noise": "clip:1 gaussian:0.1",
    "prune": "prune:0.9",
    "prune-more": "prune:0.99",
    "int8": "int8",
}
INFER_TRUTH = {"membership": "member", "membership-any": "member", "grey": "has", "framed": "has", "mirrored": "has"}


def bootstrap(shares: pd.Series) -> str:
    """Quantiles of the means of 10,000 samples; of shares that are all 1 or all 0 Wilson's interval."""
    n = len(shares)
    if shares.nunique() == 1 and shares.iloc[0] in (0, 1):
        return interval(int(shares.sum()), n, 3)
    draws = np.random.default_rng(0).choice(shares.to_numpy(), size=(10_000, n))
    low, high = np.percentile(draws.mean(axis=1), (2.5, 97.5))
    return f"[{low:.3f}, {high:.3f}]"


@table("Words of a batch, from the rows of its embedding's gradient")
def infer_words(stored: Stored) -> list[Row]:
    found = []
    for name, text in INFER_DEFENCES.items():
        rows = stored.lines(f"infer/words-{name}")
        some = rows[rows.found > 0]
        recall, precision = rows.right / rows.tokens, some.right / some.found
        cells = [
            text,
            f"{rows.tokens.mean():.1f}",
            f"{rows.found.mean():.1f}",
            f"{recall.mean():.3f}",
            bootstrap(recall),
        ]
        cells += [f"{precision.mean():.3f}", bootstrap(precision)] if len(some) else [NONE, NONE]
        found.append([*cells, str(len(rows))])
    return found


def area(scores: pd.Series, having: pd.Series) -> tuple[float, str]:
    """The area under the ROC curve by all pairs, and DeLong's interval; Wilson's where no pair is in wrong order."""
    inside, outside = scores[having].to_numpy()[:, None], scores[~having].to_numpy()
    wins = (inside > outside) + (inside == outside) / 2
    # The mean of means is rounded as ours is: areas are multiples of 1/20,000, and some end in a 5.
    value, fewest = wins.mean(axis=1).mean(), min(wins.shape)
    if value in (0, 1):
        return value, interval(round(value * fewest), fewest, 3)
    variance = wins.mean(axis=1).var(ddof=1) / len(wins) + wins.mean(axis=0).var(ddof=1) / wins.shape[1]
    low, high = value + stats.norm.ppf((0.025, 0.975)) * variance**0.5
    return value, f"[{max(low, 0):.3f}, {min(high, 1):.3f}]"


@table("Membership and properties of batches of 8: areas under ROC curves")
def infer_areas(stored: Stored) -> list[Row]:
    found = []
    for asked, truth in INFER_TRUTH.items():
        for name, text in INFER_DEFENCES.items():
            if not (stored.folder / f"infer/{asked}-{name}.jsonl").exists():
                continue
            rows = stored.lines(f"infer/{asked}-{name}")
            for attack in ("residual", "logistic", "cosine", "inner") if truth == "member" else ("logistic", "forest"):
                value, bounds = area(rows[attack], rows[truth])
                found.append([asked, text, attack, f"{value:.3f}", bounds, str(len(rows))])
    return found


@table("A class's representative by a generator")
def generator(stored: Stored) -> list[Row]:
    there, found = (stored.folder / "generator/runs.jsonl").exists(), []
    rows = stored.lines("generator/runs") if there else pd.DataFrame(columns=["digit"])
    for digit in range(5):
        own = rows[rows.digit == digit]
        if not len(own):
            found.append([str(digit), NOT_RUN, *[NONE] * 7])
            continue
        shares = [" ".join(f"{100 * n:.0f}%" for n in own[name] / own.pictures) for name in ("recognised", "untrained")]
        close, apart, originals = (np.concatenate(own[key].tolist()) for key in ("private", "other", "originals"))
        medians = [f"{np.median(values):.1f}" for values in (close, apart, originals)]
        accuracy = f"{100 * own.accuracy.median():.1f}%"
        found.append(
            [str(digit), str(len(own)), accuracy, *shares, *medians, f"{(originals > 20).sum()}/{len(originals)}"]
        )
    return found


AUDITS = {
    **dict.fromkeys(("gradient", "clipped, by its direction", "half precision", "local steps, stated"), NONE),
    "gradient on MNIST": NONE,
    "other sign": "sign",
    "a tenth": "scale",
    "label smoothing": "loss",
    "local steps, not stated": "client-steps",
    "noise, not stated": "noise",
}
VERDICTS = ("recovered", "ambiguous", "unfinished", "unexplained")


@table("Verdicts on updates with known answers")
def verdicts(stored: Stored) -> list[Row]:
    audits, found = stored.lines("verdicts/audits"), []
    for kind, hint in AUDITS.items():
        rows = audits[audits.kind == kind]
        given = sum(hint in hints for hints in rows.hints)
        wrong = ((rows.verdict == "recovered") & ~rows.right_image).sum()
        counts = [str((rows.verdict == verdict).sum()) for verdict in VERDICTS]
        cells = [hint, NONE if hint == NONE else f"{given}/{len(rows)}"]
        cells += [f"{rows.psnr.median():.0f}", f"{rows.seconds.median():.0f}"]
        found.append([kind, "right" if hint == NONE else "wrong", str(len(rows)), *counts, str(wrong), *cells])
    return found


RELU_AUDITS = ("gradient", "noise", "a tenth", "another network", "another image's tensor")


@table("Audits of LeNet with ReLUs")
def relu_verdicts(stored: Stored) -> list[Row]:
    if not (stored.folder / "relu_verdicts/audits.jsonl").exists():
        return [[kind, "0", *[NOT_RUN] * len(VERDICTS), "0", NONE, NONE] for kind in RELU_AUDITS]
    audits, found = stored.lines("relu_verdicts/audits"), []
    for kind in RELU_AUDITS:
        rows = audits[audits.kind == kind]
        recovered = rows[rows.verdict == "recovered"]
        counts = [str((rows.verdict == verdict).sum()) for verdict in VERDICTS]
        expected = f"{recovered.expected_psnr.median():.1f}" if len(recovered) else NONE
        cells = [str((~recovered.right_image).sum()), f"{rows.psnr.median():.1f}", expected]
        found.append([kind, str(len(rows)), *counts, *cells])
    return found


NOISES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def risk_points(stored: Stored) -> pd.DataFrame:
    """Predicted and measured errors; the measured ones are also in the rows."""
    points, rows = pd.DataFrame(stored.json("risk/points")), []
    for noise in NOISES:
        own = stored.rows(f"risk/noise-{noise:g}")
        rows.append(pd.DataFrame({"image": own.image, "noise": noise, "again": np.sqrt(own.mse_clipped)}))
    points = points.merge(pd.concat(rows), on=["image", "noise"], validate="one_to_one")
    assert np.allclose(points.measured, points.again, rtol=1e-12), "risk: measured errors are not those of the rows"
    return points


@table("Predicted and measured error per pixel, LeNet under Gaussian noise")
def risk(stored: Stored) -> list[Row]:
    found = []
    for noise, own in risk_points(stored).groupby("noise"):
        found.append([f"{noise:.0e}", str(len(own)), f"{own.predicted.median():.2g}", f"{own.measured.median():.2g}"])
    return found


@table("Updates of real stacks: one photograph each")
def stacks(stored: Stored) -> list[Row]:
    found = []
    for name in ("flower", "opacus", "opacus-noise", "huggingface"):
        told, cells = stored.json(f"stacks/{name}"), [NOT_RUN, *[NONE] * 5]
        if told:
            cells = [told["version"], f"{told['fits']:.1g}", told["verdict"], f"`{told['attack']}`"]
            cells += [f"{told['psnr']:.0f}", f"{told['seconds']:.0f}"]
        found.append([f"`{name}`", ANY, *cells])
    return found


@table("Runs that are struck")
def struck(stored: Stored) -> list[Row]:
    cases, found = stored.lines("reliability/cases"), []
    for fault in ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "disk full"):
        rows = cases[cases.fault == fault]
        counts = [str(len(rows)), str(int(rows.struck.sum())), f"{int(rows.survived.sum())}/{len(rows)}"]
        found.append([fault, *counts, str(int(rows.rows.sum()))])
    return found


@table("Inputs that nobody would write")
def fuzz(stored: Stored) -> list[Row]:
    cases = stored.lines("reliability/cases")
    return [[kind, str(count)] for kind, count in cases[cases.fault == "fuzz"].tried.iloc[0].items()]


# --- speed: the rounds of a measurement are its rows ---


def throughput(stored: Stored, model: str) -> list[Row]:
    told, found = stored.json(f"throughput/{model}"), []
    rounds = {one["name"]: np.array(one["rounds"]) for one in told["variants"]}
    for name, rates in rounds.items():
        others = (*SAME, "pytorch-cosine-processes")
        times = [over(rates, rounds[other]) if compared(name, other) else NONE for other in others]
        found.append([f"`{name}`", ANY, f"{np.median(rates):,.0f}", str(len(rates)), *times])
    return found


def over(ours: np.ndarray, other: np.ndarray) -> str:
    """The ratio of the medians, and the smallest and largest of a round."""
    count = min(len(ours), len(other))
    each = ours[:count] / other[:count]
    return f"{np.median(ours) / np.median(other):.1f} ({each.min():.1f} to {each.max():.1f})"


def compared(name: str, other: str) -> bool:
    """Ours with the others that do the same thing."""
    return name.startswith("jaxleak") and ("cosine" in name) == ("cosine" in other)


SAME = ("pytorch-processes", "pytorch-no-onednn", "pytorch-serial", "pytorch-vmap", "plain-vmap", "jaxopt")
TABLES["LeNet, DLG, L-BFGS with history 100: whole step"] = lambda stored: throughput(stored, "lenet")
TABLES["ResNet-18, DLG, Adam, width 16: whole step"] = lambda stored: throughput(stored, "resnet18")
LOOPS = ("pytorch-processes", "pytorch-serial")


@table("The zoo: whole step")
def zoo(stored: Stored) -> list[Row]:
    found = []
    for model in ZOO:
        if not (stored.folder / f"throughput/zoo-{model}.json").exists():
            found.append([f"`{model}`", NOT_RUN, *[NONE] * 9])
            continue
        told = stored.json(f"throughput/zoo-{model}")
        rounds = {one["name"]: np.array(one["rounds"]) for one in told["variants"]}
        lanes = next(one["lanes"] for one in told["variants"] if one["name"] == "jaxleak")
        size = told["settings"]["image_size"]
        cells = [ANY, str(size) if size else "16 tokens", ANY, str(lanes)]
        cells += [f"{np.median(rounds[name]):,.2f}" for name in ("jaxleak", *LOOPS)]
        times = [over(rounds["jaxleak"], rounds[other]) for other in LOOPS]
        found.append([f"`{model}`", *cells, *times, ANY])
    return found


ZOO = ("lenet-cpl", "mlp", "transformer", "vit", "convnet", "convnet-gn", "resnet20-4", "resnet18", "resnet34")
ZOO += ("resnet50", "densenet121", "resnet101", "resnet152", "resnet32-10", "inception3")
DEEP = ("resnet18-16", "resnet18-64", "resnet18-64-224", "convnet-64", "densenet121", "inception3", "vit")


@table("A deep step, by its parts")
def deep_steps(stored: Stored) -> list[Row]:
    found = []
    for name in DEEP:
        if not (stored.folder / f"deep_steps/{name}.json").exists():
            found.append([f"`{name}`", NOT_RUN, *[NONE] * 9])
            continue
        told = stored.json(f"deep_steps/{name}")
        ours, other = told["ours"], told["pytorch"]
        products = pd.DataFrame(ours["products"]).groupby("product")[["flops", "seconds"]].sum()
        cells = [f"{products.flops.sum() / 1e9:.2f}", f"{1e3 * ours['seconds']:,.0f}"]
        for kind in ("forward", "weight", "input"):
            one = products.loc[kind]
            cells.append(f"{1e3 * one.seconds:,.0f} ({one.flops / one.seconds / 1e9:.0f})")
        cells += [f"{1e3 * sum(ours['rest'].values()):,.0f}", f"{ours['ceiling_flops'] / 1e9:.0f}"]
        cells += [f"{1e3 * other[key]:,.0f}" for key in ("seconds", "convolutions")]
        found.append([f"`{name}`", *cells, f"{other['seconds'] / ours['seconds']:.1f}"])
    return found


@table("A step on a GPU, by its account")
def gpu_account(stored: Stored) -> list[Row]:
    found = []
    programs = {name: one for name, one in stored.json("gpu_account/now").items() if isinstance(one, dict)}
    for name, one in programs.items():
        cells = [one["kernels"], one["library_calls"], f"{one['bytes'] / 1e9:.2f}"]
        cells += [f"{one['lanes'] / one['seconds']:,.0f}", f"{one['lane_bytes'] / 1e6:.1f}"]
        groups = {key: sum(group[key] for group in one["groups"]) for key in ("kernels", "bytes")}
        assert groups == {key: one[key] for key in groups}, f"{name}: the groups do not add up"
        found.append([name, str(one["lanes"]), *map(str, cells)])
    return found


@table("On an NVIDIA GPU")
def gpu_throughput(stored: Stored) -> list[Row]:
    assert not (stored.folder / "gpu_throughput").exists(), "recompute gpu_throughput's table here, too"
    return [["any", NOT_RUN, *[NONE] * 4]]


@table("Stock Flax models, attacked as they are")
def stock_model(stored: Stored) -> list[Row]:
    rates = {one["variant"]: np.array(one["rates"]) for one in stored.json("stock_model/summary")["lines"]}
    own = {"lenet": "lenet", "cnn": "cnn, jaxleak's parts"}
    found = []
    for name, rounds in rates.items():
        first = own[name.split(",")[0]]
        each = rounds / rates[first]
        times = NONE if name == first else f"{np.median(each):.2f} ({each.min():.2f} to {each.max():.2f})"
        found.append([name, f"{np.median(rounds):,.0f}", times])
    return found


def ray_rates(stored: Stored) -> dict[str, np.ndarray]:
    rounds = stored.json("ray_throughput/summary")["rounds"]
    return {name: np.array([one["evaluations"] / one["seconds"] for one in own]) for name, own in rounds.items()}


@table("A Ray cluster of two one-core workers beside one process on two cores")
def ray_throughput(stored: Stored) -> list[Row]:
    rates = ray_rates(stored)
    ratios = rates["ray"] / rates["one process"]
    ours = [f"{np.median(ratios):.2f}", f"[{min(ratios):.2f}, {max(ratios):.2f}]", str(len(ratios))]
    heads = {name: f"{np.median(own):,.0f}" for name, own in rates.items()}
    return [["one process", heads["one process"], NONE, NONE, NONE], ["ray", heads["ray"], *ours]]


@table("Simulated clusters")
def clusters(stored: Stored) -> list[Row]:
    found = []
    for one in stored.json("clusters/simulation")["lines"]:
        cells = [f"{one['seconds'] / 3600:.2f}", f"{one['efficiency']:.3f}", f"{one['driver_share']:.2f}"]
        counts = [f"{one['repeated']:,}", f"{one['lost']:,}"]
        found.append([one["sweep"], f"{one['workers']:,}", one["cluster"], *cells, *counts])
    return found


@table("The page of many runs")
def report_size(stored: Stored) -> list[Row]:
    told, found = stored.json("report_size/sizes"), []
    for count in (1, 10, 100):
        one = told[f"{count} runs"]
        seconds = [f"{one[f'{key}_seconds']['median']:.1f} s" for key in ("first_paint", "ready")]
        found.append([str(count), f"{one['megabytes']:.1f} MB", *seconds, f"{one['write_seconds']:.0f} s"])
    return found


# --- the pages ---


def tables_of(page: str) -> dict[str, list[list[str]]]:
    """The first table under each heading of the third level, without its head."""
    found = {}
    for part in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        title, _, rest = part.partition("\n")
        lines = re.search(r"((?:^\|.*\n)+)", rest, flags=re.MULTILINE).group(1).splitlines()
        found[title] = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
    return found


def check_tables(page: str, stored: Stored) -> Iterator[str]:
    """What the page's tables say and the rows do not."""
    for title, printed in tables_of(page).items():
        if title not in TABLES:
            yield f"{title}: nothing here computes this table"
            continue
        try:
            computed = TABLES[title](stored)
        except AssertionError as error:
            yield f"{title}: {error}"
            continue
        if [len(row) for row in printed] != [len(row) for row in computed]:
            yield f"{title}: {len(printed)} rows of {[*map(len, printed)]} cells, not {[*map(len, computed)]}"
            continue
        for row, wanted in zip(printed, computed, strict=True):
            for cell, want in zip(row, wanted, strict=True):
                if want is not ANY and cell != want:
                    yield f"{title}: {row[0]}: {cell!r} is {want!r} by the rows"


def check_commands(page: str, stored: Stored) -> Iterator[str]:
    """Flags of the printed commands that made no row: numbers of images and of seeds."""
    for command in re.findall(r"^`python -m experiments\.([^`]*)`", page, flags=re.MULTILINE):
        experiment, *words = command.split()
        for flag, number in pairwise(words):
            column = {"--images": "image", "--restart-images": "image", "--seeds": "seed"}.get(flag)
            files = [*stored.folder.glob(f"{experiment}/*.parquet")]
            if (
                column
                and files
                and not any(pd.read_parquet(file, columns=[column]).nunique().item() == int(number) for file in files)
            ):
                yield f"{command}: no run has {flag} {number}"


def row_of(stored: Stored, title: str, *begin: str) -> Row:
    """The row that begins so."""
    return next(row for row in TABLES[title](stored) if row[: len(begin)] == [*begin])


def check_headline(readme: str, stored: Stored) -> Iterator[str]:
    """The table of the project's README against the same rows."""
    kan, solver = (row_of(stored, "Table 1: DLG on LeNet, CIFAR-100", f"`{run}`") for run in ("per-trial", "lbfgs"))
    layers, steps = (row_of(stored, "LeNet with ReLUs, one start", f"`{name}`") for name in ("rgap", "ig-0.03"))
    trained = row_of(stored, "Table 1: PSNR on LeNet, one restart", "`trained`", "ig, TV 0.01")
    parity = row_of(stored, "The same networks and starts in both", "`lenet-fresh`", "dlg")
    speed = "LeNet, DLG, L-BFGS with history 100: whole step"
    ours, vmapped, *loops = (row_of(stored, speed, f"`{name}`") for name in ("jaxleak", SAME[3], *SAME[:2]))
    fast = max((0, 1), key=lambda k: float(loops[k][2].replace(",", "")))
    machine = stored.json("throughput/lenet")["device"]
    wanted = [
        [ANY, ANY, f"{kan[2]} {kan[3]}", f"{kan[4]} trials"],
        [ANY, ANY, f"{solver[2]} {solver[3]}", f"{solver[4]} trials"],
        [ANY, f"{steps[3]} by `ig`", layers[3], f"{layers[4]} above 20 dB"],
        [ANY, ANY, trained[3], f"{trained[4]} images"],
        [ANY, parity[2], f"{parity[5]}, McNemar p = {parity[9]}", f"{parity[8]} solved by both"],
        [
            *(ANY, f"{loops[fast][2]} in a loop{('', ' (oneDNN off)')[fast]}, {vmapped[2]} by `torch.func.vmap`"),
            *(f"{ours[2]}: {ours[4 + fast]} and {ours[7]} times", f"{ours[3]} rounds, {machine}"),
        ],
    ]
    printed = tables_of("### README\n" + readme.partition("<!-- results: begin -->")[2])["README"]
    for row, cells in zip(printed, wanted, strict=True):
        for cell, want in zip(row, cells, strict=True):
            if want is not ANY and cell != want:
                yield f"README: {row[0]}: {cell!r} is {want!r} by the rows"


def check(page: str, readme: str, stored: Stored) -> list[str]:
    """All that the two pages say and the stored rows do not."""
    from tests.independent_prose import check_prose

    missing = [f"{title}: not on the page" for title in TABLES if f"### {title}\n" not in page]
    tables = (*check_tables(page, stored), *check_commands(page, stored), *check_headline(readme, stored))
    return [*missing, *tables, *check_prose(page, readme, stored)]


def main() -> None:
    pages = [(PROJECT / name).read_text() for name in ("experiments/README.md", "README.md")]
    if found := check(*pages, Stored()):
        sys.exit("\n".join(found))
    print(f"{len(TABLES)} tables and the text under them agree with the rows.")


if __name__ == "__main__":
    main()
