"""Zhao, Mopuri & Bilen 2020 (iDLG), label accuracy and fidelity: DLG and iDLG on LeNet, fresh network per trial.

For each data set, n trials with a network, an image and a start of their own; at most 300 iterations, ended at an
objective below 1e-6. Reported: label accuracy (their table) and the share of trials whose MSE is below each threshold
(their figure). Differences: MNIST is its test split; LFW has the classes of the prepared copy (theirs: 5,749 people);
the stop is looked at after every iteration (theirs: every tenth). `lfw-5749` has a head for as many people as theirs
and fewer trials. The runs whose names end in `-lbfgs`, which the paper does not have, are the same trials with
jaxleak's own solver and the same number of evaluations. `lfw-pictures` is their figure of recoveries.

    python -m experiments.idlg_fidelity --data-dir DIR
"""

from dataclasses import replace

import jaxleak
from experiments import tables
from experiments.harness import DLG, IDLG, arguments, results_folder, run_all

PAPER = "iDLG (Zhao et al. 2020)"
DATASETS = {"mnist": "test", "cifar100": "train", "lfw": "train"}
RUNS = {
    "mnist": ["mnist", "mnist-lbfgs"],
    "cifar100": ["cifar100", "cifar100-lbfgs"],
    "lfw": ["lfw", "lfw-5749", "lfw-lbfgs"],
}
PEOPLE = 5749  # of the whole LFW
PICTURES, SNAPSHOTS = "lfw-pictures", (0, 10, 20, 30, 40, 60, 80, 100)
# Label accuracy (their table), share of trials with an MSE below each threshold (read off their figure, within half a
# point), in %.
THRESHOLDS = (0.01, 0.005, 0.001, 0.0005, 0.0001)
PAPER_SAYS = {
    ("mnist", "dlg"): (89.9, 76.1, 76.1, 76.0, 75.9, 75.9),
    ("mnist", "idlg"): (100, 89.5, 88.9, 88.4, 88.4, 87.4),
    ("cifar100", "dlg"): (83.3, 66.1, 66.0, 65.3, 64.5, 57.2),
    ("cifar100", "idlg"): (100, 83.5, 83.3, 82.6, 81.2, 70.7),
    ("lfw", "dlg"): (79.1, 52.2, 51.8, 51.5, 51.4, 47.4),
    ("lfw", "idlg"): (100, 91.7, 91.7, 91.1, 91.1, 83.3),
}


def main() -> None:
    numbers = {"n": 1000, "n_5749": 100}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    sweeps = {}
    for name, split in DATASETS.items():
        data = jaxleak.load_dataset(name, split=split, data_dir=options.data_dir)
        chosen = data.random_indices(options.n, seed=2020)
        victim = jaxleak.make_victim("lenet", data, chosen, network="per-trial")
        for suffix, attacks in (("", (DLG, IDLG)), ("-lbfgs", (jaxleak.DLG, jaxleak.IDLG))):
            sweeps[name + suffix] = jaxleak.Sweep(victim=victim, attacks=attacks, seeds=1, snapshots=())
        if name == "lfw":
            few = jaxleak.make_victim("lenet", everyone(data), chosen[: options.n_5749], network="per-trial")
            sweeps["lfw-5749"] = replace(sweeps["lfw"], victim=few)
            one = jaxleak.make_victim("lenet", data, chosen[:1], network="per-trial")
            sweeps[PICTURES] = replace(sweeps["lfw"], victim=one, seeds=5, snapshots=SNAPSHOTS)
    results = run_all("idlg_fidelity", sweeps, options)
    from jaxleak.results.figures import mse_shares

    folder = results_folder("idlg_fidelity")
    for name, result in results.items():
        if name == PICTURES:
            pictures(result, folder / f"{name}.png")
        else:
            mse_shares(result.summary, folder / f"{name}.png")


def everyone(data: jaxleak.Dataset) -> jaxleak.Dataset:
    """The same images, with classes for the people of the whole LFW who are not in this copy."""
    return replace(data, class_names=(*data.class_names, *map(str, range(len(data.class_names), PEOPLE))))


def pictures(result: jaxleak.Result, path) -> None:
    """Recoveries over the iterations, the best, median and worst start of each attack."""
    from jaxleak.results.figures import recovery_grid

    arrays = result.run.arrays(["trial", "candidate", "snapshots"])
    recovery_grid(result.rows, arrays, result.run.truth(), result.run.settings["snapshots"], path)


def results() -> list[tables.Results]:
    """Label accuracy and shares of trials below an MSE, in %, below the paper's."""
    rows, summaries = [], {}
    for (dataset, attack), paper in PAPER_SAYS.items():
        task = f"{dataset}, {attack}"
        rows.append(["paper", task, "1,000", *paper])
        for run in RUNS[dataset]:
            told = summaries[run] = tables.stored(f"idlg_fidelity/{run}.json")
            rows.append([f"`{run}`", task, *(cells(told, attack) if told else [tables.NOT_RUN])])
    figures = {run: f"idlg_fidelity/{run}.png" for run in (*summaries, PICTURES) if stored_run(run)}
    return [
        tables.Results(
            "Label accuracy and fidelity in %, LeNet",
            "idlg_fidelity",
            ("run", "data set, attack", "n", "label right", *(f"MSE < {f'{one:f}'.strip('0')}" for one in THRESHOLDS)),
            rows,
            tables.device(*summaries.values()),
            (
                "`--only NAME --n N` runs one. Those that end in `-lbfgs` have our solver, the others `torch-lbfgs`.",
                "`lfw-5749` has a head of 5,749 classes, as the paper; the other heads of LFW have 106.",
                "The paper's shares below an MSE are read off a figure.",
            ),
            figures,
        )
    ]


def stored_run(name: str) -> bool:
    return tables.stored(f"idlg_fidelity/{name}.json") is not None


def cells(summary: dict, attack: str) -> list[str]:
    """The number of trials, and each share with its interval."""
    group = tables.overall(summary, attack)
    n, found = group["trials"], []
    for value in (group["label_accuracy"], *(group["mse_below"][str(one)] for one in THRESHOLDS)):
        bounds = [100 * one for one in jaxleak.wilson(round(value * n), n)]
        found.append(f"{100 * value:.1f} {tables.interval(bounds, 1)}")
    return [f"{n:,}", *found]


if __name__ == "__main__":
    main()
