"""Kan, Meng & Wang 2022, "ResNet-18 cannot be inverted": the published protocol and ours, side by side.

ResNet-18 in its CIFAR form, CIFAR-100 images, a fresh network for each trial unless a line says otherwise. `published`:
absolute objective, torch's solver, BatchNorm in train mode on one image, 300 iterations; LeNet beside it. The others
use jaxleak's L-BFGS with a relative objective and no absolute stop, and change one thing each from `eval`: BatchNorm in
evaluation mode, weights U(-0.5, 0.5), sigmoids, label read from the head's bias. On a CPU the width is reduced (16
instead of 64), which is in the rows; `--width 64 --images 3 --seeds 2` is the paper's network.

    python -m experiments.kan2022_resnet18 --data-dir DIR --images 20 --seeds 4 --width 16 --evaluations 1200
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import jaxleak
from experiments.harness import DLG, arguments, chosen_runs, results_folder, run_all, write_json

OURS = replace(jaxleak.IDLG, name="ours", label="bias", scale="relative", stop_objective=0.0)
RECOVERED = 0.2  # relative error
IMAGE = 20319


@dataclass(frozen=True)
class Setting:
    """What one line of the table changes: fields of the model, of the attack, of the victim."""

    model: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    victim: dict[str, Any] = field(default_factory=dict)


TRAINED = {"network": "shared", "trained_steps": 2000}
COSINE = {"objective": "cosine", "scale": "none", "tv": 1e-6}
SETTINGS = {
    "published": Setting({"train": True}),
    "eval": Setting(),
    "eval-joint": Setting(attack={"label": "joint"}),
    "eval-per-tensor": Setting(attack={"scale": "per-tensor"}),
    "eval-torch-init": Setting({"weight_init": "torch"}, {"scale": "per-tensor"}),
    "eval-trained": Setting({"weight_init": "torch"}, {"scale": "per-tensor"}, TRAINED),
    "eval-trained-hidden": Setting(
        {"weight_init": "torch"}, {"scale": "per-tensor"}, {**TRAINED, "knows_statistics": False}
    ),
    "eval-softplus": Setting({"activation": "softplus"}),
    "eval-relu-cosine": Setting({"activation": "relu", "weight_init": "torch"}, COSINE),
    "train": Setting({"train": True}),
    "train-statistics": Setting({"train": True}, {"statistics": 1e-3}),
    "train-per-tensor": Setting({"train": True}, {"scale": "per-tensor"}),
}


def main() -> None:
    numbers = {"images": 20, "seeds": 4, "width": 16, "evaluations": 1200}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    chosen = [IMAGE, *(index for index in data.random_indices(options.images, seed=2022) if index != IMAGE)]
    folder, sweeps = results_folder("kan2022_resnet18"), {}
    for name in chosen_runs(SETTINGS, options):
        setting = SETTINGS[name]
        fields = {"width": options.width, "train": False, **setting.model}
        victim = jaxleak.make_victim("resnet18", data, chosen[: options.images], fields=fields, **setting.victim)
        attack = replace(OURS, max_evaluations=options.evaluations, **setting.attack)
        attacks = (DLG,) if name == "published" else (replace(attack, name=name),)
        sweeps[name] = jaxleak.Sweep(victim=victim, attacks=attacks, seeds=options.seeds, snapshots=())
    for name, result in run_all("kan2022_resnet18", sweeps, options).items():
        write_json(folder / f"{name}-table.json", table(name, options.width, result))
        pictures(result, folder / f"{name}.png")


def table(name: str, width: int, result: jaxleak.Result) -> dict[str, Any]:
    """Images that came back, how well, and what the published criterion would have said."""
    rows = result.rows
    back = sum(row["relative_error"] < RECOVERED for row in rows)
    return {
        "setting": name,
        "width": width,
        "device": rows[0]["device"],
        "trials": len(rows),
        "recovered": back,
        "ci95": jaxleak.wilson(back, len(rows)),
        "psnr_quartiles": np.nanpercentile([row["psnr"] for row in rows], [25, 50, 75]).tolist(),
        "psnr_best": float(np.nanmax([row["psnr"] for row in rows])),
        "labels_right": sum(row["label_correct"] for row in rows),
        "objective_below_1e-4": sum(row["objective"] < 1e-4 for row in rows),
        "relative_objective_median": float(np.nanmedian([row["relative_objective"] for row in rows])),
        "evaluations_median": float(np.median([row["evaluations"] for row in rows])),
    }


def pictures(result: jaxleak.Result, path) -> None:
    """Up to eight images, and the nearest restart of each."""
    truth = result.run.truth()
    count = min(8, len(truth["image"]))
    figure = Figure(figsize=(0.95 * count, 2.15), dpi=120)
    panels = figure.subplots(2, count, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.1, wspace=0.05, hspace=0.03)
    for column, image, pixels in zip(panels.T, truth["image"].tolist(), truth["pixels"], strict=False):
        own = [row for row in result.rows if row["image"] == image and np.isfinite(row["mse"])]
        best = min(own, key=lambda row: row["mse"])
        found = result.reconstructions([best["trial"]])["candidate"][0]
        for axes, shown in zip(column, (pixels, found), strict=True):
            axes.imshow(np.clip(shown, 0, 1), interpolation="nearest")
        column[1].set_xlabel(f"{best['psnr']:.1f} dB", fontsize=7, labelpad=2)
    figure.savefig(path)


if __name__ == "__main__":
    main()
