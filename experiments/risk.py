"""Does the Fisher information say how far an attack gets? Predicted and measured error on LeNet, over noise.

For each of several CIFAR-100 images, each with a network of its own, `jaxleak risk` predicts the error of the best
attack at each strength of Gaussian noise; iDLG attacks the same noisy update from a random start. Errors are root mean
squares per pixel of images cut to [0, 1]; where nothing is known the prediction is 0.29.

    python -m experiments.risk --data-dir DIR --images 8
"""

from dataclasses import replace

import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder, run_one, write_json

PAPER = "Verdicts on updates"
NOISES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
ATTACK = replace(jaxleak.IDLG, name="idlg", stop_objective=0.0)


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 8})
    data = jaxleak.load_dataset("cifar100", data_dir=options.data_dir)
    chosen = data.random_indices(options.images, seed=2027)
    points, known = [], {}
    for noise in NOISES:
        defences = (jaxleak.parse_defence(f"gaussian:{noise}"),)
        victim = jaxleak.make_victim("lenet", data, chosen, network="per-image", defences=defences)
        sweep = jaxleak.Sweep(victim=victim, attacks=(ATTACK,), seeds=1, snapshots=())
        result = run_one("risk", f"noise-{noise:g}", sweep, options)
        for row in result.rows:
            slot = victim.indices.index(row["image"])
            if slot not in known:
                known[slot] = jaxleak.risk(replace(victim, defences=()), (), update=slot).information
            points.append(
                {
                    "image": row["image"],
                    "noise": noise,
                    "predicted": known[slot].error(noise),
                    "measured": float(np.sqrt(row["mse_clipped"])),
                    "device": row["device"],
                }
            )
    write_json(results_folder("risk") / "points.json", points)
    draw(points)


def correlation(points: list[dict]) -> float:
    """Spearman's rank correlation of predicted and measured error."""
    from scipy.stats import spearmanr

    found = spearmanr([point["predicted"] for point in points], [point["measured"] for point in points])
    return float(found.statistic)  # pyright: ignore[reportAttributeAccessIssue]


def draw(points: list[dict]) -> None:
    """Predicted against measured error, a colour for each strength of the noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.9), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.plot([1e-5, 0.5], [1e-5, 0.5], color="#bbbbbb", linewidth=1, zorder=0)
    shades = np.linspace(0.1, 0.85, len(NOISES))
    from matplotlib import colormaps

    for noise, shade in zip(NOISES, shades, strict=True):
        mine = [point for point in points if point["noise"] == noise]
        axes.loglog(
            [point["predicted"] for point in mine],
            [point["measured"] for point in mine],
            "o",
            color=colormaps["viridis"](shade),
            markersize=5,
            label=f"{noise:.0e}",
        )
    axes.set_xlim(1e-4, 0.5)
    axes.set_ylim(1e-4, 0.5)
    axes.set_xlabel("predicted error per pixel, by Fisher information", fontsize=8)
    axes.set_ylabel("measured error of iDLG", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(title="noise (std)", fontsize=7, title_fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"rank correlation {correlation(points):.3f}, n = {len(points)}", fontsize=8)
    figure.savefig(results_folder("risk") / "risk.png")


def results() -> list[tables.Results]:
    """Median predicted and measured error at each noise."""
    points = tables.stored("risk/points.json")
    lines = []
    for noise in NOISES:
        mine = [point for point in points or [] if point["noise"] == noise]
        cells = [tables.NOT_RUN] * 2
        if mine:
            cells = [f"{np.median([point[name] for point in mine]):.2g}" for name in ("predicted", "measured")]
        lines.append((f"{noise:.0e}", len(mine), *cells))
    notes = ["Predicted by the Fisher information (`jaxleak risk`); measured: iDLG from one random start, images cut."]
    if points:
        notes.append(f"Spearman's rank correlation over all: {correlation(points):.3f}.")
    return [
        tables.Results(
            "Predicted and measured error per pixel, LeNet under Gaussian noise",
            "risk",
            ("noise (std)", "n", "predicted", "measured"),
            lines,
            tables.device(*(points or [])[:1]),
            notes,
            {"predicted and measured": "risk/risk.png"} if points else {},
        )
    ]


if __name__ == "__main__":
    main()
