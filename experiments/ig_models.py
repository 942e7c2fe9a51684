"""Geiping et al. 2020 (Inverting Gradients) on ResNet-18 and 152, narrow and wide, trained or not, and a large batch.

Cosine distance with total variation, 4,800 steps of signed Adam (fewer on a CPU, which is in the table), BatchNorm in
evaluation mode, ReLU, torch's initialisation, CIFAR-100 images normalised by the data set's statistics, labels from the
head's gradient. `trained` networks have had 1,000 steps of Adam on the training split, and the attacker has their
running statistics. `batch` is one update of many images of ResNet32-10, as in the paper's figure of 100: PSNR of each
image, and how much of each image's own variance the reconstruction explains.

    python -m experiments.ig_models --data-dir DIR --iterations 300 --images 2 --batch 100 --batch-width 16
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_one, write_json
from experiments.sheet import draw_sheet, picture

PAPER = "Inverting Gradients (Geiping et al. 2020)"
TV = 1e-2  # ten times less or more is in `inverting_gradients`
EVAL = {"train": False, "activation": "relu", "weight_init": "torch"}
TRAINED = {"trained_steps": 1000}


@dataclass(frozen=True)
class Setting:
    """A network, its fields, and what is done to it before the update."""

    model: str
    fields: dict[str, Any] = field(default_factory=dict)
    victim: dict[str, Any] = field(default_factory=dict)


SETTINGS = {
    "resnet18-width-16": Setting("resnet18", {"width": 16}),
    "resnet18-width-16-trained": Setting("resnet18", {"width": 16}, TRAINED),
    "resnet18-width-64": Setting("resnet18"),
    "resnet18-width-128": Setting("resnet18", {"width": 128}),
    "resnet18-width-512": Setting("resnet18", {"width": 512}),
    "resnet152-width-16": Setting("resnet152", {"width": 16}),
    "resnet152-width-64": Setting("resnet152"),
    "resnet152-width-64-trained": Setting("resnet152", {}, TRAINED),
    "batch": Setting("resnet32-10"),
}


def main() -> None:
    numbers = {"iterations": 4800, "images": 4, "batch": 100, "batch-width": 160}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    attack = replace(jaxleak.IG, tv=TV, iterations=options.iterations)
    folder = results_folder("ig_models")
    for name in chosen_runs(SETTINGS, options):
        setting, size = SETTINGS[name], options.batch if name == "batch" else 1
        victim = jaxleak.make_victim(
            setting.model,
            data,
            data.random_indices(size if name == "batch" else options.images, seed=2020),
            fields=EVAL | setting.fields | ({"width": options.batch_width} if name == "batch" else {}),
            network="shared",
            normalise="cifar100",
            batch=size,
            checkpoint=options.runs / "ig_models" / name,
            **setting.victim,
        )
        used = replace(attack, label="counts") if name == "batch" else attack
        sweep = jaxleak.Sweep(victim=victim, attacks=(used,), seeds=1, snapshots=())
        result = run_one("ig_models", name, sweep, options)
        write_json(folder / f"{name}-table.json", table(name, victim, options.iterations, result))
        pictures(victim, result, folder / f"{name}.png")


def table(name: str, victim: jaxleak.Victim, iterations: int, result: jaxleak.Result) -> dict[str, Any]:
    """PSNR over images, and over those of the batch what of each one's variance is explained."""
    rows, (h, w, c) = result.rows, victim.images.shape[1:]
    parameters = jaxleak.parameter_count(victim.model, (h, w, c))
    told = {"setting": name, "parameters": parameters, "iterations": iterations, **measured(result)}
    if victim.batch == 1:
        return told
    found = np.clip(result.reconstructions([rows[0]["trial"]])["candidate"][0], 0, 1)
    square = np.mean((found - victim.images) ** 2, axis=(1, 2, 3))
    psnr, explained = -10 * np.log10(square), 1 - square / np.var(victim.images, axis=(1, 2, 3))
    each = {
        "batch": victim.batch,
        "labels_right": rows[0]["labels_right"],
        "psnr_mean": float(psnr.mean()),
        "psnr_quartiles": np.percentile(psnr, [25, 50, 75]).tolist(),
        "variance_explained_quartiles": np.percentile(explained, [25, 50, 75]).tolist(),
        "more_than_half_explained": int(np.sum(explained > 0.5)),
    }
    return told | each


def measured(result: jaxleak.Result) -> dict[str, Any]:
    """Over the trials, and what the training came to."""
    rows, training = result.rows, result.summary.get("training")
    return {
        "device": rows[0]["device"],
        "trials": len(rows),
        "psnr_median": float(np.nanmedian([row["psnr"] for row in rows])),
        "psnr_best": float(np.nanmax([row["psnr"] for row in rows])),
        "affine_error_median": float(np.nanmedian([row["affine_error"] for row in rows])),
        "objective_median": float(np.nanmedian([row["objective"] for row in rows])),
        "accuracy": training and training["accuracy"][0],
    }


def pictures(victim: jaxleak.Victim, result: jaxleak.Result, path) -> None:
    """Images and what the attack makes of them, the best first."""
    if victim.batch > 1:
        found = result.reconstructions([result.rows[0]["trial"]])["candidate"][0]
    else:
        rows = {row["image"]: row for row in result.rows}
        found = np.stack([picture(result, rows[image]) for image in victim.indices])
    psnr = -10 * np.log10(np.mean((np.clip(found, 0, 1) - victim.images) ** 2, axis=(1, 2, 3)))
    best = np.argsort(-psnr)[:16]
    lines = [("truth", [(victim.images[i], "") for i in best])]
    lines.append(("ig", [(found[i], f"{psnr[i]:.1f} dB") for i in best]))
    draw_sheet(lines, path, margin=0.5)


def results() -> list[tables.Results]:
    """A row each network; the batch has quartiles over its images."""
    rows, told = [], {name: tables.stored(f"ig_models/{name}-table.json") for name in SETTINGS}
    for name, one in told.items():
        cells = [tables.NOT_RUN]
        if one:
            accuracy = f"{one['accuracy']:.1%}" if one["accuracy"] is not None else tables.NONE
            cells = [f"{one['parameters']:,}", accuracy, f"{one['iterations']:,}"]
            if "batch" in one:
                low, middle, high = one["psnr_quartiles"]
                cells += [one["batch"], f"{middle:.1f}", f"{low:.1f} to {high:.1f}", one["more_than_half_explained"]]
            else:
                cells += [one["trials"], f"{one['psnr_median']:.1f}"]
        rows.append([f"`{name}`", *cells])
    measured = ("images", "PSNR in dB, median", "quartiles", "over half explained")
    return [
        tables.Results(
            "Deep networks: cosine, TV, signed Adam",
            "ig_models --iterations 300 --images 2 --batch-width 16",
            ("run", "parameters", "accuracy", "steps", *measured),
            rows,
            tables.device(*told.values()),
            (
                "`--only NAME` runs one. Width 64: ResNet-18 `--iterations 1200`, ResNet-152 `--images 1`.",
                "`batch`: one update of all images.",
                "Over half explained: images of which more than half of the variance is.",
                "Paper (recalled): ResNet-18 and 152, trained and not, give recognisable images; of 100 some are.",
            ),
            {name: f"ig_models/{name}.png" for name, one in told.items() if one},
        )
    ]


if __name__ == "__main__":
    main()
