"""LeNet with ReLUs: pixels kept in [0, 1] by a change of variables, beside Inverting Gradients' steps.

CIFAR-100 images, a network of its own for each, torch's default initialisation, label read from the update, one start.
All but `rgap` minimise 1 - cosine plus a total variation of the weight in their name. `ig` has its published 4,800
steps; `box` is L-BFGS on variables whose sigmoids are the pixels, `free` the same without bounds, 1,000 evaluations
each. `rgap` solves one layer after the other.

    python -m experiments.relu --data-dir DIR --images 100
"""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder, run_all

PAPER = "ReLU networks"
GOOD = 20  # dB
EVALUATIONS = 1000
QUASI_NEWTON = replace(
    jaxleak.IDLG, objective="cosine", box=True, stop_objective=0.0, max_evaluations=EVALUATIONS, iterations=EVALUATIONS
)
ATTACKS = {
    **{f"box-{tv}": replace(QUASI_NEWTON, tv=float(tv), box_by="sigmoid") for tv in ("0.01", "0.03", "0.1")},
    "free-0.03": replace(QUASI_NEWTON, tv=0.03, box=False),
    **{f"ig-{tv}": replace(jaxleak.IG, tv=float(tv)) for tv in ("0.0001", "0.01", "0.03", "0.1")},
    "rgap": jaxleak.ATTACKS["rgap"],
    "ig-0.03-short": replace(jaxleak.IG, tv=0.03, iterations=EVALUATIONS),
}


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 100})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    fields = {"activation": "relu", "weight_init": "torch"}
    chosen = data.random_indices(options.images, seed=2026)

    def sweep(name: str, attack: jaxleak.Attack) -> jaxleak.Sweep:
        victim = jaxleak.make_victim("lenet", data, chosen, fields=fields, network="per-image")
        return jaxleak.Sweep(victim=victim, attacks=(replace(attack, name=name),), seeds=1, snapshots=())

    run_all("relu", {name: sweep(name, attack) for name, attack in ATTACKS.items()}, options)


def results() -> list[tables.Results]:
    """PSNR of each attack, and the share of images above 20 dB."""
    lines, devices = [], []
    for name, attack in ATTACKS.items():
        path = results_folder("relu") / f"{name}.parquet"
        closed = attack.solver.closed_form
        line = [f"`{name}`", tables.NONE if closed else f"{attack.tv:g}"]
        if not path.exists():
            lines.append([*line, tables.NONE, tables.NOT_RUN])
            continue
        rows = pq.read_table(path).to_pylist()
        psnr = np.array([row["psnr"] for row in rows])
        good, low, median, high = int(np.sum(psnr > GOOD)), *np.percentile(psnr, (25, 50, 75))
        interval = tables.interval([100 * bound for bound in jaxleak.wilson(good, len(rows))], 0)
        evaluations = tables.NONE if closed else f"{np.median([row['evaluations'] for row in rows]):,.0f}"
        labels = sum(row["label_correct"] for row in rows)
        lines.append([*line, evaluations, f"{median:.1f} ({low:.1f} to {high:.1f})", f"{good}/{len(rows)}", interval])
        lines[-1].append(labels)
        devices += [row["device"] for row in rows]
    return [
        tables.Results(
            "LeNet with ReLUs, one start",
            "relu",
            ("attack", "total variation", "evaluations", "PSNR in dB", "above 20 dB", "95 %", "labels right"),
            lines,
            ", ".join(dict.fromkeys(devices)),
            (
                "PSNR: median (quartiles). Evaluations: median.",
                "Attacks: `box` L-BFGS on variables whose sigmoids are the pixels; `free` without bounds; "
                "`ig` Inverting Gradients' signed Adam, projected.",
                "`rgap` evaluates the equations of single layers 1,800 times, and not the network's gradient.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
