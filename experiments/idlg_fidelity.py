"""Zhao, Mopuri & Bilen 2020 (iDLG), label accuracy and fidelity: DLG and iDLG on LeNet, fresh network per trial.

For each data set, n trials with a network, an image and a start of their own; at most 300 iterations, ended at an
objective below 1e-6. Reported: label accuracy (their table) and the share of trials whose MSE is below each threshold
(their figure). Differences: MNIST is its test split; LFW has the classes of the prepared copy (theirs: 5,749 people);
the stop is looked at after every iteration (theirs: every tenth). The runs whose names end in `-lbfgs`, which the paper
does not have, are the same trials with jaxleak's own solver and the same number of evaluations.

    python -m experiments.idlg_fidelity --data-dir DIR --n 200        (the paper: --n 1000)
"""

import jaxleak
from experiments import tables
from experiments.harness import DLG, IDLG, arguments, results_folder, run_all

PAPER = "iDLG (Zhao et al. 2020)"
DATASETS = {"mnist": "test", "cifar100": "train", "lfw": "train"}
# Label accuracy (their table), share of trials with MSE < .01 and < .001 (read off their figure, within half a
# point), in %.
PAPER_SAYS = {
    ("mnist", "dlg"): (89.9, 76.1, 76.0),
    ("mnist", "idlg"): (100, 89.5, 88.4),
    ("cifar100", "dlg"): (83.3, 66.1, 65.3),
    ("cifar100", "idlg"): (100, 83.5, 82.6),
    ("lfw", "dlg"): (79.1, 52.2, 51.5),
    ("lfw", "idlg"): (100, 91.7, 91.1),
}


def main() -> None:
    options = arguments(__doc__, n={"type": int, "default": 200})
    sweeps = {}
    for name, split in DATASETS.items():
        data = jaxleak.load_dataset(name, split=split, data_dir=options.data_dir)
        chosen = data.random_indices(options.n, seed=2020)
        victim = jaxleak.make_victim("lenet", data, chosen, network="per-trial")
        for suffix, attacks in (("", (DLG, IDLG)), ("-lbfgs", (jaxleak.DLG, jaxleak.IDLG))):
            sweeps[name + suffix] = jaxleak.Sweep(victim=victim, attacks=attacks, seeds=1, snapshots=())
    results = run_all("idlg_fidelity", sweeps, options)
    from jaxleak.results.figures import mse_shares

    for name, result in results.items():
        mse_shares(result.summary, results_folder("idlg_fidelity") / f"{name}.png")


def results() -> list[tables.Results]:
    """Label accuracy and shares of trials below an MSE, in %, beside the paper's."""
    rows, summaries = [], {}
    for (dataset, attack), paper in PAPER_SAYS.items():
        for run in (dataset, f"{dataset}-lbfgs"):
            told = summaries[run] = tables.stored(f"idlg_fidelity/{run}.json")
            rows.append([f"`{run}`", attack, *paper, *(cells(told, attack) if told else [tables.NOT_RUN])])
    ours = ("label", "95 %", "MSE < .01", "95 %", "MSE < .001", "95 %", "n")
    return [
        tables.Results(
            "Label accuracy and fidelity in %, LeNet",
            "idlg_fidelity",
            ("run", "attack", "paper: label", "paper: MSE < .01", "paper: MSE < .001", *ours),
            rows,
            tables.device(*summaries.values()),
            (
                "`--only NAME` runs one. Those that end in `-lbfgs` have our solver, the others `torch-lbfgs`.",
                "The paper's n is 1,000; its shares below an MSE are read off a figure.",
            ),
            {run: f"idlg_fidelity/{run}.png" for run in summaries},
        )
    ]


def cells(summary: dict, attack: str) -> list:
    """The three shares with their intervals, and n."""
    group = tables.overall(summary, attack)
    n, below = group["trials"], group["mse_below"]
    found: list = []
    for value in (group["label_accuracy"], below["0.01"], below["0.001"]):
        bounds = [100 * one for one in jaxleak.wilson(round(value * n), n)]
        found += [f"{100 * value:.1f}", tables.interval(bounds, 1)]
    return [*found, n]


if __name__ == "__main__":
    main()
