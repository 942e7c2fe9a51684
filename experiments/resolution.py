"""Sirpurkar 2021, figure 10: LFW at 32, 64 and 128 pixels, CPL and DLG, LeNet with 12 channels and more.

LeNet with so many channels in each convolution, a fresh network for each trial; jaxleak's own L-BFGS at every size, and
AdamW for 1,000 steps at 64 and 128 pixels, as CPL's code has it. A picture with more pixels has more unknowns than a
network of 12 channels shares numbers about: wider ones share more.

    python -m experiments.resolution --data-dir DIR --images 5 --seeds 2
"""

import itertools
from dataclasses import replace

import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_all, write_json
from experiments.sheet import draw_sheet, picture

PAPER = "CPL (Wei et al. 2020, Sirpurkar 2021)"
SIZES = (32, 64, 128)
CHANNELS = (12, 24, 48)
ADAMW = jaxleak.Adam(lr=0.01, weight_decay=0.01)


def main() -> None:
    numbers = {"images": 5, "seeds": 2}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    folder = results_folder("resolution")
    sweeps = {}
    for name in chosen_runs([f"{size}-{channels}" for size in SIZES for channels in CHANNELS], options):
        size, channels = map(int, name.split("-"))
        data = jaxleak.load_dataset("lfw", split="train", data_dir=options.data_dir, image_size=size)
        chosen = data.random_indices(options.images, seed=2021)
        model = jaxleak.build_model("lenet", data.num_classes, channels=channels)
        victim = replace(jaxleak.make_victim("lenet", data, chosen), model=model)
        sweeps[name] = jaxleak.Sweep(victim=victim, attacks=attacks(size), seeds=options.seeds, snapshots=())
    for name, result in run_all("resolution", sweeps, options).items():
        told = [cell(result, attack.name) for attack in attacks(int(name.split("-")[0]))]
        write_json(folder / f"{name}-table.json", {"device": result.rows[0]["device"], "attacks": told})
        pictures(result, folder / f"{name}.png")


def attacks(size: int) -> tuple[jaxleak.Attack, ...]:
    """CPL and DLG with L-BFGS, and above 32 pixels with AdamW."""
    both = (replace(jaxleak.CPL, name="cpl"), replace(jaxleak.DLG, name="dlg"))
    if size == 32:
        return both
    adam = {"solver": ADAMW, "iterations": 1000}
    return (*both, *(replace(attack, name=f"{attack.name}, adamw", **adam) for attack in both))


def cell(result: jaxleak.Result, attack: str) -> dict:
    """Success and fidelity."""
    rows = [row for row in result.rows if row["attack"] == attack]
    solved = sum(row["success"] for row in rows)
    return {
        "attack": attack,
        "trials": len(rows),
        "solved": solved,
        "ci95": jaxleak.wilson(solved, len(rows)),
        "psnr_median": float(np.nanmedian([row["psnr"] for row in rows])),
        "ssim_mean": float(np.nanmean([row["ssim"] for row in rows])),
        "evaluations_median": float(np.median([row["evaluations"] for row in rows])),
    }


def pictures(result: jaxleak.Result, path) -> None:
    """Each image, and seed 0 of each attack."""
    truth = result.run.truth()
    lines = [("truth", [(pixels, "") for pixels in truth["pixels"]])]
    for name in dict.fromkeys(row["attack"] for row in result.rows):
        rows = {row["image"]: row for row in result.rows if row["attack"] == name and row["seed"] == 0}
        chosen = [rows[image] for image in truth["image"].tolist()]
        lines.append((name, [(picture(result, row), f"{row['psnr']:.1f} dB") for row in chosen]))
    draw_sheet(lines, path)


def results() -> list[tables.Results]:
    """A row each size, width and attack."""
    rows, summaries = [], {}
    for size, channels in itertools.product(SIZES, CHANNELS):
        name, setting = f"{size}-{channels}", [f"`{size}-{channels}`", size, channels]
        told = summaries[name] = tables.stored(f"resolution/{name}-table.json")
        cells = told["attacks"] if told else []
        rows += [[*setting, one["attack"], *tables.share(one), f"{one['psnr_median']:.1f}"] for one in cells]
        if not told:
            rows.append([*setting, tables.NONE, tables.NOT_RUN])
    return [
        tables.Results(
            "Figure 10: LFW at 32, 64 and 128 pixels, LeNet",
            "resolution --images 3 --seeds 1",
            ("run", "pixels", "channels", "attack", "solved", "95 %", "PSNR in dB, median"),
            rows,
            tables.device(*summaries.values()),
            ("`--only NAME` runs one. The paper has pictures.",),
            {name: f"resolution/{name}.png" for name, told in summaries.items() if told},
        )
    ]


if __name__ == "__main__":
    main()
