"""L-BFGS with a history of half the size: what pairs in bfloat16 cost in evaluations, and what they save.

DLG on LeNet, CIFAR-100, a network for each trial, float32, a history of 100. On an accelerator the solver keeps its
pairs in bfloat16 unless it is told otherwise (`history_type`); here both run on a CPU.

    python -m experiments.half_history --data-dir DIR --images 25 --seeds 8
"""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder, run_all

PAPER = "Solvers"
KINDS = ("same", "bfloat16")


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 25}, seeds={"type": int, "default": 8})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    victim = jaxleak.make_victim("lenet", data, data.random_indices(options.images, seed=2022), network="per-trial")
    attacks = {kind: replace(jaxleak.DLG, solver=jaxleak.LBFGS(history_type=kind)) for kind in KINDS}
    run_all(
        "half_history",
        {
            kind: jaxleak.Sweep(victim=victim, attacks=(attack,), seeds=options.seeds, snapshots=())
            for kind, attack in attacks.items()
        },
        options,
    )


def results() -> list[tables.Results]:
    """Success, and evaluations to the threshold, with pairs of either size."""
    lines, devices, taken = [], [], {}
    for kind in KINDS:
        path = results_folder("half_history") / f"{kind}.parquet"
        if not path.exists():
            lines.append([f"`{kind}`", tables.NOT_RUN])
            continue
        rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: row["trial"])
        solved = sum(row["success"] for row in rows)
        interval = tables.interval([100 * bound for bound in jaxleak.wilson(solved, len(rows))], 0)
        taken[kind] = np.array([row["threshold_evaluations"] or np.nan for row in rows])
        low, median, high = np.nanpercentile(taken[kind], (25, 50, 75))
        evaluations = f"{median:,.0f} ({low:,.0f} to {high:,.0f})"
        lines.append([f"`{kind}`", f"{solved}/{len(rows)}", interval, evaluations])
        devices += [row["device"] for row in rows]
    notes = ["Evaluations until the objective is below 1e-4: median (quartiles) of the trials that came there."]
    if len(taken) == len(KINDS):
        ratio = np.nanmedian(taken["bfloat16"] / taken["same"])
        notes.append(f"Trial by trial bfloat16 takes {ratio:.2f} times as many (median).")
    columns = ("pairs", "solved", "95 %", "evaluations to 1e-4")
    title = "Pairs of half the size, DLG on LeNet"
    return [tables.Results(title, "half_history", columns, lines, ", ".join(dict.fromkeys(devices)), notes)]


if __name__ == "__main__":
    main()
