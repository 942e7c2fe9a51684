"""Kan, Meng & Wang 2022, section 5, tested: does a perturbation in null(A) leave a linear model's gradient unchanged?

For the model b = A x with loss 1/2 |A x - b|^2 the gradient with respect to A is (A x - b) x^T. Moving x by d in
null(A) leaves A x, and so the residual, as it was; but the gradient contains x itself and changes by
(A x - b) d^T, in relative terms by |d| / |x|. The same product is why one dense layer leaks its input exactly: every
row of the gradient is a multiple of x, and with a bias the multiple is known.

    python -m experiments.kan2022_nullspace --data-dir DIR
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from matplotlib.figure import Figure

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder, write_json

PAPER = "Kan et al. 2022"
OUTPUTS = 100
SIZES = (0.01, 0.1, 1.0)  # |d| / |x|


def weight_gradient(a: np.ndarray, x: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Gradient of 1/2 |A x - b|^2 with respect to A."""
    return np.outer(a @ x - b, x)


def null_direction(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A unit vector d with A d = 0."""
    d = rng.normal(size=a.shape[1])
    for _ in range(2):  # twice, against rounding
        d -= np.linalg.pinv(a) @ (a @ d)
    return d / np.linalg.norm(d)


def dense_input(weight_gradient: np.ndarray, bias_gradient: np.ndarray) -> np.ndarray:
    """The input of a dense layer, from the row with the largest bias gradient."""
    row = np.argmax(np.abs(bias_gradient))
    return weight_gradient[row] / bias_gradient[row]


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 20})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    indices = [20319, *data.random_indices(options.images - 1, seed=5)]
    pixels, _ = data.images(indices)
    rng = np.random.default_rng(0)
    rows, shown = [], []
    for index, image in zip(indices, pixels.astype(np.float64), strict=True):
        x = image.ravel()
        a, b = rng.normal(size=(OUTPUTS, x.size)) / np.sqrt(x.size), rng.normal(size=OUTPUTS)
        gradient = weight_gradient(a, x, b)
        unit = null_direction(a, rng)
        for size in SIZES:
            moved = x + size * np.linalg.norm(x) * unit
            changed = weight_gradient(a, moved, b)
            recovered = dense_input(changed, a @ moved - b)
            rows.append(
                {
                    "image": index,
                    "relative_move": size,
                    "output_change": float(np.linalg.norm(a @ moved - a @ x) / np.linalg.norm(a @ x)),
                    "gradient_change": float(np.linalg.norm(changed - gradient) / np.linalg.norm(gradient)),
                    "recovery_error": float(np.linalg.norm(recovered - moved) / np.linalg.norm(moved)),
                }
            )
            if index == indices[0]:
                shown.append((f"x + d, |d| = {size:g}|x|", moved, recovered))
    folder = results_folder("kan2022_nullspace")
    parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    write_json(folder / "summary.json", summary(rows))
    draw(pixels[0], shown, folder / "nullspace.png")
    print(summary(rows))


def summary(rows: list[dict]) -> dict:
    """Extremes over images and moves."""
    changes = [row["gradient_change"] / row["relative_move"] for row in rows]
    return {
        "n": len(rows),
        "largest_output_change": max(row["output_change"] for row in rows),
        "largest_recovery_error": max(row["recovery_error"] for row in rows),
        "gradient_change_over_move": [min(changes), max(changes)],
    }


def draw(truth: np.ndarray, shown: list, path) -> None:
    """The true image, it moved within null(A), and what one gradient gives back."""
    figure = Figure(figsize=(6.9, 3.6), dpi=200, layout="constrained")
    axes = figure.subplots(2, len(shown) + 1)
    axes[0, 0].imshow(truth)
    axes[0, 0].set_title("x", fontsize=8)
    for column, (title, moved, recovered) in enumerate(shown, start=1):
        for row, vector in enumerate((moved, recovered)):
            axes[row, column].imshow(np.clip(vector.reshape(truth.shape), 0, 1))
        axes[0, column].set_title(title, fontsize=8)
        axes[1, column].set_title("from its gradient", fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path)


def results() -> list[tables.Results]:
    """What a move in null(A) changes."""
    told, rows = tables.stored("kan2022_nullspace/summary.json"), [[tables.NOT_RUN]] * 3
    if told:
        low, high = told["gradient_change_over_move"]
        found = (
            f"{told['largest_output_change']:.1e}",
            f"{low:.6f} to {high:.6f}",
            f"{told['largest_recovery_error']:.1e}",
        )
        rows = [[one, told["n"]] for one in found]
    return [
        tables.Results(
            "Section 5: the gradient under a move in null(A)",
            "kan2022_nullspace",
            ("what", "paper", "jaxleak", "n"),
            [
                ["change of the output, at most", tables.NONE, *rows[0]],
                ["change of the gradient over the move", "unchanged (claim)", *rows[1]],
                ["error of the input from one gradient, at most", tables.NONE, *rows[2]],
            ],
            "CPU, float64" if told else "",
            ("All are relative; the move is relative to |x|.",),
            {"figure": "kan2022_nullspace/nullspace.png"},
        )
    ]


if __name__ == "__main__":
    main()
