"""PyTorch and jaxleak side by side: the same networks and starts, the original DLG and iDLG procedure, float32.

Float32 trajectories are chaotic, so single trials differ; what must agree is how many are solved and how fast.
PyTorch's trials are those of a reference folder (its README says how networks and starts were drawn). Where there is
none, `python -m experiments.torch_reference --data-dir DIR --out FOLDER` makes one (extra `torch`).

    python -m experiments.pytorch_parity --data-dir DIR --reference ../shared/torch_reference
"""

import json
import shutil
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import wilcoxon

import jaxleak
from experiments import tables
from experiments.harness import DLG, IDLG, arguments, results_folder, run_all, write_json

PAPER = "PyTorch parity"
SOLVED_MSE = 0.01  # the reference folder's criterion, beside an objective below 1e-4


def load_reference(folder: Path) -> tuple[list[dict], list[int], dict[str, np.ndarray]]:
    """PyTorch's rows, the images in order of appearance, and the starts in NHWC."""
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    images = list(dict.fromkeys(row["image"] for row in rows))
    with np.load(folder / "starts.npz") as stored:
        # One image per trial: the batch axis of a start is 1.
        starts = {
            "image": stored["image"].transpose(0, 2, 3, 1)[:, None],
            "label": stored["label_logits"][:, None],
        }
    return rows, images, starts


def build_sweep(data: jaxleak.Dataset, folder: Path, images: list[int], starts: dict, seeds: int) -> jaxleak.Sweep:
    """One network per image, as stored beside the reference."""
    model = jaxleak.build_model("lenet", data.num_classes)
    networks = [
        jaxleak.load_weights(folder / f"lenet_{image}.safetensors", model, data.image_shape) for image in images
    ]
    pixels, labels = data.images(images)
    victim = jaxleak.Victim(
        model=model,
        model_name="lenet",
        dataset=data.name,
        split=data.split,
        indices=images,
        images=pixels,
        labels=labels,
        network="per-image",
        params=jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks),
        weights_name="torch reference",
        num_classes=data.num_classes,
    )
    return jaxleak.Sweep(victim=victim, attacks=(DLG, IDLG), seeds=seeds, starts=starts, snapshots=())


def compare(attack: str, torch_rows: list[dict], our_rows: list[dict]) -> dict:
    """Success counts with intervals and Fisher's test; iterations to 1e-4 over the trials that both solve.

    Of these trials the medians, and the geometric mean of ours over PyTorch's with Wilcoxon's test on the logarithms.
    """
    theirs = {
        (row["image"], row["seed"]): row["iter_1e4"]
        for row in torch_rows
        if row["iter_1e4"] is not None and row["mse"] < SOLVED_MSE
    }
    ours = {
        (row["image"], row["seed"]): row["threshold_iterations"]
        for row in our_rows
        if row["threshold_iterations"] is not None and row["mse"] < SOLVED_MSE
    }
    both = sorted(theirs.keys() & ours.keys())
    logs = np.log([ours[key] / theirs[key] for key in both])
    medians = [statistics.median(solved[key] for key in both) if both else None for solved in (theirs, ours)]
    return {
        "attack": attack,
        "trials": [len(torch_rows), len(our_rows)],
        "solved": {"torch": len(theirs), "jaxleak": len(ours), "both": len(both)},
        "ci95": {
            "torch": jaxleak.wilson(len(theirs), len(torch_rows)),
            "jaxleak": jaxleak.wilson(len(ours), len(our_rows)),
        },
        "fisher_p": jaxleak.fisher(len(theirs), len(torch_rows), len(ours), len(our_rows)),
        "median_iterations_to_1e-4_over_both": {"torch": medians[0], "jaxleak": medians[1]},
        "geometric_mean_ratio": float(np.exp(logs.mean())) if both else None,
        "wilcoxon_p": float(wilcoxon(logs).pvalue) if np.any(logs) else None,  # pyright: ignore[reportAttributeAccessIssue]
        "label_accuracy": {
            "torch": statistics.mean(row["label_ok"] for row in torch_rows),
            "jaxleak": statistics.mean(row["label_correct"] for row in our_rows),
        },
    }


def main() -> None:
    options = arguments(__doc__, reference={"type": Path, "default": Path("../shared/torch_reference")})
    torch_rows, images, starts = load_reference(options.reference)
    seeds = 1 + max(row["seed"] for row in torch_rows)
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    sweep = build_sweep(data, options.reference, images, starts, seeds)
    result = run_all("pytorch_parity", {"jaxleak": sweep}, options)["jaxleak"]
    comparison = [
        compare(
            name,
            [row for row in torch_rows if row["method"] == name],
            [row for row in result.rows if row["attack"] == name],
        )
        for name in ("dlg", "idlg")
    ]
    shutil.copy(options.reference / "trials.jsonl", results_folder("pytorch_parity") / "torch.jsonl")
    write_json(results_folder("pytorch_parity") / "comparison.json", comparison)
    print(json.dumps(comparison, indent=1))


def results() -> list[tables.Results]:
    """Solved trials and iterations of both, by attack."""
    told, rows = tables.stored("pytorch_parity/comparison.json"), []
    for one in told or []:
        medians, solved, cells = one["median_iterations_to_1e-4_over_both"], one["solved"], []
        for who, n in zip(("torch", "jaxleak"), one["trials"], strict=True):
            median = tables.NONE if medians[who] is None else f"{medians[who]:g}"
            cells += [f"{solved[who]}/{n}", tables.interval(one["ci95"][who]), median]
        ratio, p = (one[key] for key in ("geometric_mean_ratio", "wilcoxon_p"))
        paired = [tables.NONE if number is None else f"{number:.{digits}f}" for number, digits in ((ratio, 3), (p, 2))]
        rows.append([one["attack"], *cells, solved["both"], f"{one['fisher_p']:.2f}", *paired])
    return [
        tables.Results(
            "The same networks and starts in both",
            "pytorch_parity",
            (
                *("attack", "PyTorch: solved", "95 %", "PyTorch: iterations", "jaxleak: solved", "95 %"),
                *("jaxleak: iterations", "solved by both", "Fisher p", "times PyTorch's iterations", "Wilcoxon p"),
            ),
            rows or [[attack, *[tables.NOT_RUN] * 7] for attack in ("dlg", "idlg")],
            tables.device(tables.stored("pytorch_parity/jaxleak.json")),
            (
                "Solved: an objective below 1e-4 and an MSE below 0.01.",
                "Iterations to 1e-4: the median over the trials that both solve.",
                "Times: geometric mean over these trials; Wilcoxon's signed-rank test is on the logarithms.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
