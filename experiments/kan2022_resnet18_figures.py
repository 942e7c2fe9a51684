"""The table and the figures of `kan2022_resnet18`.

python -m experiments.kan2022_resnet18 --data-dir DIR
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import jaxleak
from experiments.sheet import draw_sheet, picture

RECOVERED = 0.2  # relative error, and error but for contrast and brightness
IMAGES = 8  # in the sheet of pictures


def table(name: str, width: int, result: jaxleak.Result) -> dict[str, Any]:
    """Images that came back, how well, and what the published criterion would have said."""
    rows = result.rows
    back, shape = (sum(row[key] < RECOVERED for row in rows) for key in ("relative_error", "affine_error"))
    training = result.summary.get("training")
    return {
        "setting": name,
        "width": width,
        "device": rows[0]["device"],
        "images": len({row["image"] for row in rows}),
        "trials": len(rows),
        "recovered": back,
        "ci95": jaxleak.wilson(back, len(rows)),
        "recovered_but_affine": shape,
        "ci95_but_affine": jaxleak.wilson(shape, len(rows)),
        "above_30_dB": sum(row["psnr"] > 30 for row in rows),
        "psnr_quartiles": np.nanpercentile([row["psnr"] for row in rows], [25, 50, 75]).tolist(),
        "psnr_best": float(np.nanmax([row["psnr"] for row in rows])),
        "affine_error_quartiles": np.nanpercentile([row["affine_error"] for row in rows], [25, 50, 75]).tolist(),
        "labels_right": sum(row["label_correct"] for row in rows),
        "objective_below_1e-4": sum(row["objective"] < 1e-4 for row in rows),
        "relative_objective_median": float(np.nanmedian([row["relative_objective"] for row in rows])),
        "evaluations_median": float(np.median([row["evaluations"] for row in rows])),
        "accuracy": training and training["accuracy"][0],
    }


def pictures(results: dict[str, jaxleak.Result], path: Path) -> None:
    """Up to eight images, and of each setting the restart with the lowest objective.

    With BatchNorm in train mode they are shown with the truth's contrast and brightness, which are not in the gradient.
    """
    truth = next(iter(results.values())).run.truth()
    images, pixels = truth["image"].tolist()[:IMAGES], truth["pixels"][:IMAGES]
    lines = [("truth", [(one, "") for one in pixels])]
    for name, result in results.items():
        chosen = [lowest(result, image) for image in images]
        in_train = name.startswith(("train", "published")) and "lenet" not in name
        cells = [
            (adjusted(picture(result, row), one), f"error {row['affine_error']:.2f}")
            if in_train
            else (picture(result, row), f"{row['psnr']:.1f} dB")
            for row, one in zip(chosen, pixels, strict=True)
        ]
        lines.append((name.replace("-", "\n", 1), cells))
    draw_sheet(lines, path)


def lowest(result: jaxleak.Result, image: int) -> dict[str, Any]:
    """The restart an attacker would choose."""
    own = [row for row in result.rows if row["image"] == image]
    return min(own, key=lambda row: row["objective"] if np.isfinite(row["objective"]) else np.inf)


def adjusted(candidate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The candidate with the contrast and each channel's brightness that fit the truth best."""
    shape, wanted = (one.astype(float) - one.mean(axis=(0, 1)) for one in (candidate, truth))
    contrast = max(0.0, float(np.sum(shape * wanted) / max(np.sum(shape**2), 1e-30)))
    return contrast * shape + truth.mean(axis=(0, 1))


def curves(results: dict[str, jaxleak.Result], path: Path) -> None:
    """Objective and MSE against iterations on the first image, every start a line: the paper's figures."""
    figure = Figure(figsize=(2.6 * len(results), 3.6), dpi=130, layout="constrained")
    panels = figure.subplots(2, len(results), squeeze=False, sharex="col")
    for column, (name, result) in zip(panels.T, results.items(), strict=True):
        image = result.run.truth()["image"].tolist()[0]
        trials = [row["trial"] for row in result.rows if row["image"] == image]
        arrays = result.run.arrays(keys=["trial", "objective_trace", "mse_trace"], trials=trials)
        for axes, key in zip(column, ("objective_trace", "mse_trace"), strict=True):
            for place, trace in enumerate(arrays[key]):
                trace = trace[np.isfinite(trace)]
                axes.semilogy(
                    np.arange(len(trace)), np.maximum(trace, 1e-16), lw=1, color=mpl.colormaps["tab10"](place)
                )
            low, high = axes.get_ylim()
            if high < 10 * low:  # no power of ten would be labelled
                axes.set_ylim(low / 3, high * 3)
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        column[0].set_title(name, fontsize=8)
        column[1].set_xlabel("iterations", fontsize=8)
    panels[0, 0].set_ylabel("objective", fontsize=8)
    panels[1, 0].set_ylabel("MSE", fontsize=8)
    figure.savefig(path)
