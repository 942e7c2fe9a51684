"""Lu et al. 2022 (APRIL): CIFAR-100 images in closed form from the positions of a vision transformer.

A network for each image, drawn as in timm; images normalised. `sequential` is the paper's encoder (figure 1 A:
attention, norm, dense layers, no shortcuts), `pre-norm` the usual one, where the paper's closed form does not hold.
`dim` is 96, for 64 patches of 4x4 pixels. Both precisions: in the paper's encoder the positions' slopes are nearly
dependent.

    python -m experiments.april --data-dir DIR --images 20
"""

import jax
import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_one, write_json

PAPER = "APRIL (Lu et al. 2022)"
ENCODERS = ("pre-norm", "sequential")
RUNS = {f"{encoder}-{dtype}": (encoder, dtype) for encoder in ENCODERS for dtype in ("float32", "float64")}
GOOD = 40  # dB


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 20})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    chosen = data.random_indices(options.images, seed=2022)
    for run in chosen_runs(RUNS, options):
        encoder, dtype = RUNS[run]
        jax.config.update("jax_enable_x64", dtype == "float64")
        victim = jaxleak.make_victim(
            "vit", data, chosen, fields={"encoder": encoder}, normalise="cifar100", network="per-image"
        )
        sweep = jaxleak.Sweep(victim=victim, attacks=(jaxleak.ATTACKS["april"],), seeds=1, snapshots=())
        rows = run_one("april", run, sweep, options).rows
        write_json(results_folder("april") / f"{run}-table.json", cell(rows))


def cell(rows: list[dict]) -> dict:
    """Images above 40 dB, PSNR (smallest, median, largest) and labels."""
    good = sum(row["psnr"] > GOOD for row in rows)
    psnr = [min(row["psnr"], 200.0) for row in rows]
    return {
        "images": len(rows),
        "good": good,
        "ci95": jaxleak.wilson(good, len(rows)),
        "psnr": [float(number) for number in np.percentile(psnr, (0, 50, 100))],
        "labels": sum(row["label_correct"] for row in rows),
        "device": rows[0]["device"],
    }


def results() -> list[tables.Results]:
    """Images above 40 dB for each encoder and precision."""
    lines, stored = [], {run: tables.stored(f"april/{run}-table.json") for run in RUNS}
    for run, (encoder, dtype) in RUNS.items():
        line, one = [f"`{run}`", encoder, dtype], stored[run]
        if one:
            low, median, high = one["psnr"]
            share = tables.interval([100 * bound for bound in one["ci95"]], 0)
            line += [f"{one['good']}/{one['images']}", share, f"{median:.0f} ({low:.0f} to {high:.0f})", one["labels"]]
        lines.append(line if one else [*line, tables.NOT_RUN])
    return [
        tables.Results(
            "CIFAR-100 images from the positions of a vision transformer, in closed form",
            "april",
            ("run", "encoder", "precision", "above 40 dB", "95 %", "PSNR in dB", "labels right"),
            lines,
            tables.device(*stored.values()),
            (
                "PSNR: median (smallest to largest), 200 dB at most.",
                "The image is read from the patch embedding's gradient, which needs no particular encoder.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
