"""Zhao, Mopuri & Bilen 2020 (iDLG), label accuracy and fidelity: DLG and iDLG on LeNet, fresh network per trial.

For each data set, n trials with a network, an image and a start of their own; at most 300 iterations, ended at an
objective below 1e-6. Reported: label accuracy (their table) and the share of trials whose MSE is below each threshold
(their figure). Differences: MNIST is its test split; LFW has the classes of the prepared copy (theirs: 5,749 people);
the stop is looked at after every iteration (theirs: every tenth). The runs whose names end in `-lbfgs`, which the paper
does not have, are the same trials with jaxleak's own solver and the same number of evaluations.

    python -m experiments.idlg_fidelity --data-dir DIR --n 200        (the paper: --n 1000)
"""

import jaxleak
from experiments.harness import DLG, IDLG, arguments, results_folder, run_all

DATASETS = {"mnist": "test", "cifar100": "train", "lfw": "train"}


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


if __name__ == "__main__":
    main()
