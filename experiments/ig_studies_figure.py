"""The figure of `ig_studies`: every image's PSNR, a panel each study."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

LABELS = {
    "width": "channels of ResNet-18",
    "depth": "layers of ResNets, width 8",
    "padding": "padding, head reads (hollow: best shift)",
    "averaging": "images x local epochs",
    "steps": "steps, width 8",
}


def draw(studies: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A dot an image, a bar for the mean; of padding hollow dots at the best shift."""
    shown = {study: studies[study] for study in LABELS if studies[study]}
    if not shown:
        return
    columns = min(3, len(shown))
    high = -(-len(shown) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.5 * high), dpi=130, layout="constrained")
    panels = figure.subplots(high, columns, squeeze=False).ravel()
    for axes, (study, rows) in zip(panels, shown.items(), strict=False):
        names = list(dict.fromkeys(row["setting"] for row in rows))
        for place, name in enumerate(names):
            own = [row for row in rows if row["setting"] == name]
            spots = place + np.random.default_rng(0).uniform(-0.12, 0.12, len(own))
            psnr = [row["psnr"] for row in own]
            if study == "padding":
                best = [row["psnr_shifted"] for row in own]
                axes.scatter(spots + 0.36, best, s=8, lw=0.6, edgecolor="tab:orange", facecolor="none")
            axes.scatter(spots, psnr, s=8, lw=0, color="tab:blue", alpha=0.7)
            axes.plot([place - 0.17, place + 0.17], [np.mean(psnr)] * 2, color="black", lw=1.2)
        axes.set_xticks(
            range(len(names)), [name.replace("20-4", "\n20-4").replace(", ", "\n") for name in names], fontsize=6
        )
        axes.set_xlabel(LABELS[study], fontsize=8)
        axes.set_ylabel("PSNR in dB", fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.savefig(path)
