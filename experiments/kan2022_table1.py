"""Kan, Meng & Wang 2022, "Investigating DLG", table 1: DLG on LeNet, CIFAR-100, 20 random images x 50 seeds.

The paper gives a success rate of 0.68 (per image .58 to .78) and 94.14 iterations at convergence (per image 77 to
126), and does not say whether the random network is drawn per image or per trial: both are run. Success is the
paper's criterion, objective < 1e-4 and a right image; its image threshold is not stated, ours is a relative error
below 0.2. At most 300 iterations, and in `per-trial-1200` the paper's 1,200. `lbfgs`, not the paper's, has the same
trials with jaxleak's own solver and the same number of evaluations; `solvers.png` compares the two. `lbfgs-relative`
has another stop: 1e-8 of the update's squared norm in place of an objective of 1e-4, which updates with small norms
meet early. The caption of the paper's table has 20 seeds, its text 50: the rate of the first 20 stands beside that of
all.

    python -m experiments.kan2022_table1 --data-dir DIR
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from matplotlib.figure import Figure

import jaxleak
from experiments import harness, tables
from experiments.harness import DLG, arguments, results_folder, run_all

PAPER = "Kan et al. 2022"
PUBLISHED = {"stop_objective": 1e-4}
RUNS = {
    "per-trial": ("per-trial", replace(DLG, **PUBLISHED)),
    "per-trial-1200": ("per-trial", replace(DLG, **PUBLISHED, iterations=1200)),
    "per-image": ("per-image", replace(DLG, **PUBLISHED)),
    "lbfgs": ("per-trial", replace(jaxleak.DLG, **PUBLISHED)),
    "lbfgs-relative": ("per-trial", replace(jaxleak.DLG, stop_objective=0.0, stop_relative=1e-8)),
}
CAPTION_SEEDS = 20
COLUMNS = (
    *("run", "network, solver", "rate", "95 %", "n", "rate per image", "rate of 20 seeds"),
    *("iterations, mean", "median", "solved", "mean per image"),
)
PAPER_SAYS = ("paper", "up to 1,200 iterations", 0.68, "–", "–", ".58 to .78", "–", 94.14, "–", "–", "77 to 126")


def main() -> None:
    images = {"type": int, "default": 20}
    seeds = {"type": int, "default": 50}
    options = arguments(__doc__, images=images, seeds=seeds)
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    chosen = data.random_indices(options.images, seed=2022)
    sweeps = {
        name: jaxleak.Sweep(
            victim=jaxleak.make_victim("lenet", data, chosen, network=network),
            attacks=(attack,),
            seeds=options.seeds,
        )
        for name, (network, attack) in RUNS.items()
    }
    results = run_all("kan2022_table1", sweeps, options)
    from jaxleak.results.figures import success_by_image

    folder = results_folder("kan2022_table1")
    for name, result in results.items():
        success_by_image(result.summary, folder / f"{name}.png")
    compared = {"lbfgs": folder / "lbfgs.parquet", "torch-lbfgs": folder / "per-trial.parquet"}
    if all(path.exists() for path in compared.values()):
        solved_by_budget(compared, 6000, folder / "solvers.png")


def solved_by_budget(rows: dict[str, Path], budget: int, path: Path) -> None:
    """Share of all trials solved within so many evaluations, with 95 % Wilson intervals."""
    figure = Figure(figsize=(3.4, 2.5), dpi=200, layout="constrained")
    axes = figure.subplots()
    evaluations = np.linspace(0, budget, 301)
    for (name, file), colour in zip(rows.items(), ("#0072b2", "#d55e00"), strict=True):
        trials = parquet.read_table(file, columns=["success", "threshold_evaluations"]).to_pylist()
        needed = np.array([row["threshold_evaluations"] for row in trials if row["success"]])
        solved = [int(np.sum(needed <= number)) for number in evaluations]
        low, high = np.array([jaxleak.wilson(count, len(trials)) for count in solved]).T
        axes.plot(evaluations, np.array(solved) / len(trials), color=colour, lw=1.2)
        told = f"{name}: {solved[-1]} of {len(trials)}"
        axes.text(budget, low[-1] - 0.02, told, color=colour, ha="right", va="top", fontsize=7)
        axes.fill_between(evaluations, low, high, color=colour, alpha=0.2, lw=0)
    axes.set_xlabel("objective evaluations of a trial", fontsize=8)
    axes.set_ylabel("share of trials solved", fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, budget)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def first_seeds(name: str) -> str:
    """The rate of the caption's seeds, with its interval."""
    path = harness.RESULTS / "kan2022_table1" / f"{name}.parquet"
    if not path.exists():
        return tables.NONE
    trials = parquet.read_table(path, columns=["seed", "success"]).to_pylist()
    found = [row["success"] for row in trials if row["seed"] < CAPTION_SEEDS]
    return f"{sum(found) / len(found):.3f} {tables.interval(jaxleak.wilson(sum(found), len(found)), 3)}"


def results() -> list[tables.Results]:
    """Rates over all trials and per image, and iterations of those solved, below the paper's."""
    told = {name: tables.stored(f"kan2022_table1/{name}.json") for name in RUNS}
    rows: list[list] = [[*PAPER_SAYS]]
    for name, (network, _) in RUNS.items():
        solver = "lbfgs" if name.startswith("lbfgs") else "torch-lbfgs"
        more = {"lbfgs-relative": ", relative stop", "per-trial-1200": ", 1,200 iterations"}.get(name, "")
        rows.append([f"`{name}`", f"{network}, `{solver}`{more}", *figures_of(told[name], first_seeds(name))])
    return [
        tables.Results(
            "Table 1: DLG on LeNet, CIFAR-100",
            "kan2022_table1",
            COLUMNS,
            rows,
            tables.device(*told.values()),
            (
                "`--only NAME` runs one line. Iterations are those of the solved trials. `rate of 20 seeds`: n = 400.",
                "PyTorch's trials on five other images, one network an image, are under `pytorch_parity`.",
            ),
            {name: f"kan2022_table1/{name}.png" for name in (*(run for run in RUNS if told[run]), "solvers")},
        )
    ]


def figures_of(summary: dict | None, first: str) -> list:
    """The cells of one run."""
    if summary is None:
        return [tables.NOT_RUN]
    group = tables.overall(summary, "dlg")
    images = [one for one in summary["groups"] if one["image"] is not None]
    rates = [one["success_rate"] for one in images]
    means = [one["iterations_mean"] for one in images if one["iterations_n"]]
    cells = [*tables.rate(group), f"{min(rates):.2f} to {max(rates):.2f}", first]
    if not means:
        return cells
    middle = [f"{group['iterations_mean']:.1f}", f"{group['iterations_median']:.0f}", group["iterations_n"]]
    return [*cells, *middle, f"{min(means):.0f} to {max(means):.0f}"]


if __name__ == "__main__":
    main()
