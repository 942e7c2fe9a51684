"""PyTorch and jaxleak side by side: the same networks and starts, the original DLG and iDLG procedure, float32.

Float32 trajectories are chaotic, so single trials differ; what must agree is how many are solved and how fast.
PyTorch's trials are those of a folder that `torch_reference` makes (extra `torch`), one folder a run: `lenet` has its
five images, `lenet-fresh` others, `resnet18` a network of width 16 in train mode:

    python -m experiments.torch_reference --data-dir DIR --out REFERENCE
    python -m experiments.torch_reference --data-dir DIR --out REFERENCE --random 100 --seeds 5
    python -m experiments.torch_reference --data-dir DIR --out REFERENCE --random 10 --seeds 5 --model resnet18

It can be stopped and begun again. What is compared are the trials that are in the folder.

    python -m experiments.pytorch_parity --data-dir DIR --reference REFERENCE --only RUN
"""

import json
import shutil
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binomtest, wilcoxon

import jaxleak
from experiments import tables
from experiments.harness import DLG, IDLG, arguments, chosen_runs, results_folder, run_one, write_json

PAPER = "PyTorch parity"
MODELS = {"lenet": "lenet", "lenet-fresh": "lenet", "resnet18": "resnet18"}  # of each run
FIELDS = {"resnet18": {"width": 16, "train": True, "activation": "sigmoid"}}
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


def build_sweep(
    data: jaxleak.Dataset, folder: Path, images: list[int], starts: dict, seeds: int, name: str = "lenet"
) -> jaxleak.Sweep:
    """One network per image, as stored beside the reference."""
    model = jaxleak.build_model(name, data.num_classes, **FIELDS.get(name, {}))
    networks = [
        jaxleak.load_weights(folder / f"{name}_{image}.safetensors", model, data.image_shape) for image in images
    ]
    pixels, labels = data.images(images)
    victim = jaxleak.Victim(
        model=model,
        model_name=name,
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


def compare_attacks(torch_rows: list[dict], our_rows: list[dict]) -> list[dict]:
    """`compare` for DLG and iDLG, over the trials that are in both."""
    done = {(row["method"], row["image"], row["seed"]) for row in torch_rows}
    ours = [row for row in our_rows if (row["attack"], row["image"], row["seed"]) in done]
    return [
        compare(
            name,
            [row for row in torch_rows if row["method"] == name],
            [row for row in ours if row["attack"] == name],
        )
        for name in ("dlg", "idlg")
    ]


def compare(attack: str, torch_rows: list[dict], our_rows: list[dict]) -> dict:
    """Success counts with intervals and McNemar's exact test; iterations to 1e-4 over the trials that both solve.

    Of these trials the medians, and the geometric mean of ours over PyTorch's with Wilcoxon's test on the logarithms.
    McNemar's looks at the trials that one alone solves; Fisher's stands beside it, as if they were not paired.
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
    one_alone = [len(theirs.keys() - ours.keys()), len(ours.keys() - theirs.keys())]
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
        "mcnemar_p": float(binomtest(one_alone[0], sum(one_alone)).pvalue) if any(one_alone) else 1.0,
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
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    folder, stored = results_folder("pytorch_parity"), options.reference / "trials.jsonl"
    torch_rows, images, starts = load_reference(options.reference)
    for run in chosen_runs(MODELS, options) if options.only else ["lenet"]:
        seeds = 1 + max(row["seed"] for row in torch_rows)
        sweep = build_sweep(data, options.reference, images, starts, seeds, MODELS[run])
        result = run_one("pytorch_parity", run, sweep, options)
        comparison = compare_attacks(torch_rows, result.rows)
        shutil.copy(stored, folder / f"{run}-torch.jsonl")
        write_json(folder / f"{run}-comparison.json", comparison)
        print(json.dumps(comparison, indent=1))


def results() -> list[tables.Results]:
    """Solved trials and iterations of both, by run and attack."""
    rows = []
    for run in MODELS:
        told = tables.stored(f"pytorch_parity/{run}-comparison.json")
        rows += [[f"`{run}`", *cells(one)] for one in told] if told else [[f"`{run}`", tables.NOT_RUN]]
    return [
        tables.Results(
            "The same networks and starts in both",
            "pytorch_parity",
            (
                *("run", "attack", "PyTorch: solved", "95 %", "PyTorch: iterations", "jaxleak: solved", "95 %"),
                *("jaxleak: iterations", "solved by both", "McNemar p", "Fisher p", "times PyTorch's iterations"),
                "Wilcoxon p",
            ),
            rows,
            tables.device(*(tables.stored(f"pytorch_parity/{run}.json") for run in MODELS)),
            (
                "`--reference FOLDER --only RUN` makes a run; `--help` says how the folder is made.",
                "Solved: an objective below 1e-4 and an MSE below 0.01.",
                "Iterations to 1e-4: the median over the trials that both solve.",
                "McNemar: exact, over the trials that one alone solves. Fisher: as if they were not paired.",
                "Times: geometric mean over these trials; Wilcoxon's signed-rank test is on the logarithms.",
            ),
        )
    ]


def cells(one: dict) -> list:
    """What one attack comes to."""
    medians, solved, found = one["median_iterations_to_1e-4_over_both"], one["solved"], [one["attack"]]
    for who, n in zip(("torch", "jaxleak"), one["trials"], strict=True):
        median = tables.NONE if medians[who] is None else f"{medians[who]:g}"
        found += [f"{solved[who]}/{n}", tables.interval(one["ci95"][who]), median]
    ratio, p = (one[key] for key in ("geometric_mean_ratio", "wilcoxon_p"))
    paired = [tables.NONE if number is None else f"{number:.{digits}f}" for number, digits in ((ratio, 3), (p, 2))]
    return [*found, solved["both"], *(f"{one[key]:.2f}" for key in ("mcnemar_p", "fisher_p")), *paired]


if __name__ == "__main__":
    main()
