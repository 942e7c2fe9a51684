"""Geiping et al. 2020 (Inverting Gradients), table 1: objectives and solvers on an untrained and a trained LeNet.

The first images of CIFAR-100's test split (theirs: CIFAR-10's), inputs normalised, label from the head's gradient,
4,800 steps of signed Adam or 300 iterations of L-BFGS. `untrained`: a network of its own for each image, weights from
U(-0.5, 0.5). `trained`: one network that began there and was trained on CIFAR-100's train split (from torch's default
initialisation this network stays at chance: its sigmoids shrink every signal). `restarts`:
16 starts per image, the one with the lowest objective (selected) and the one nearest to the truth (oracle).

    python -m experiments.inverting_gradients --data-dir DIR --images 100 --restart-images 100 --seeds 16
"""

from dataclasses import replace
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_all, write_json
from experiments.sheet import draw_sheet, picture

PAPER = "Inverting Gradients (Geiping et al. 2020)"
SMOOTH = replace(jaxleak.IG, name="ig, TV 0.01", tv=1e-2)
ATTACKS = (
    jaxleak.IG,
    SMOOTH,
    replace(jaxleak.IDLG, name="cosine, lbfgs", objective="cosine", stop_objective=0.0),
    replace(jaxleak.IDLG, name="L2, torch-lbfgs", solver=jaxleak.TorchLBFGS(), stop_objective=0.0),
    replace(jaxleak.IDLG, name="L2, lbfgs"),
)
TRAIN_STEPS, TRAIN_LR = 3000, 3e-3
PICTURES = 8
# Table 1: mean and standard deviation, as quoted by others and recalled.
PAPER_SAYS = {
    "untrained": {"ig": "18.00 ± 3.33 (quoted)", "L2, torch-lbfgs": "46.25 ± 12.66 (recalled)"},
    "trained": {"ig": "18.08 ± 4.27 (recalled)", "L2, torch-lbfgs": "13.24 ± 5.44 (recalled)"},
}
for paper in PAPER_SAYS.values():
    paper[SMOOTH.name] = paper["ig"]


def main() -> None:
    numbers = {"images": 100, "restart-images": 100, "seeds": 16}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    data = jaxleak.load_dataset("cifar100", split="test", data_dir=options.data_dir)
    training = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)

    def victim(images: int, **fields):
        return jaxleak.make_victim("lenet", data, list(range(images)), normalise="cifar100", **fields)

    folder = results_folder("inverting_gradients")
    common = {"seeds": 1, "snapshots": (), "attacks": ATTACKS}
    several = common | {"seeds": options.seeds, "attacks": (SMOOTH,)}
    sweeps = {}
    for name in chosen_runs(("untrained", "trained", "restarts"), options):
        if name == "trained":
            attacked = trained(victim(options.images, network="shared"), training)
        else:
            attacked = victim(options.images if name == "untrained" else options.restart_images, network="per-image")
        sweeps[name] = jaxleak.Sweep(victim=attacked, **(several if name == "restarts" else common))
    for name, result in run_all("inverting_gradients", sweeps, options).items():
        told = restarts(result) if name == "restarts" else [table(result, attack.name) for attack in ATTACKS]
        write_json(folder / f"{name}-psnr.json", {"device": result.rows[0]["device"], "attacks": told})
        if name != "restarts":
            shares(result, folder / f"{name}.png", name)
            pictures(result, folder / f"{name}-pictures.png")


def trained(victim: jaxleak.Victim, training: jaxleak.Dataset) -> jaxleak.Victim:
    """The victim with a network that was trained on other images."""
    h, w, c = victim.images.shape[1:]
    begin = jaxleak.draw_params(victim.model, jax.random.key(0), (h, w, c))
    victim = replace(victim, train_lr=TRAIN_LR)
    done = jaxleak.train_network(victim, begin, training, steps=TRAIN_STEPS)
    last = float(np.mean(done.losses[-100:]))
    write_json(
        results_folder("inverting_gradients") / "training.json",
        {"steps": TRAIN_STEPS, "first_loss": float(done.losses[0]), "last_losses": last, "accuracy": done.accuracy},
    )
    return replace(victim, params=done.params, weights_name="trained", trained_steps=TRAIN_STEPS)


def spread(values) -> dict:
    """Mean, standard deviation and median of finite PSNRs, and how many there are."""
    finite = np.array([value for value in values if np.isfinite(value)])
    return {"n": len(finite), "mean": finite.mean(), "sd": finite.std(ddof=1), "median": float(np.median(finite))}


def table(result: jaxleak.Result, attack: str) -> dict:
    """PSNR over the images, one restart."""
    rows = [row for row in result.rows if row["attack"] == attack]
    return {"attack": attack, **spread([row["psnr"] for row in rows])} | {
        "images": len(rows),
        "labels_right": sum(row["label_correct"] for row in rows),
        "median_objective": float(np.median([row["objective"] for row in rows])),
    }


def restarts(result: jaxleak.Result) -> list[dict]:
    """PSNR of one restart, of the selected and of the nearest of k."""
    images: dict[int, list[dict]] = {}
    for row in result.rows:
        images.setdefault(row["image"], []).append(row)
    told = []
    counts = [k for k in (1, 2, 4, 8, 16, 32) if k <= len(next(iter(images.values())))]
    for k in counts:
        firsts = [sorted(rows, key=lambda row: row["seed"])[:k] for rows in images.values()]
        selected = [min(rows, key=lambda row: row["objective"])["psnr"] for rows in firsts]
        oracle = [max(row["psnr"] for row in rows) for rows in firsts]
        told.append({"restarts": k, "selected": spread(selected), "oracle": spread(oracle)})
    return told


def shares(result: jaxleak.Result, path: Path, name: str) -> None:
    """For each attack, the share of images whose PSNR is above a value."""
    figure = Figure(figsize=(4.6, 3.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, attack in enumerate(ATTACKS):
        values = np.sort([row["psnr"] for row in result.rows if row["attack"] == attack.name])[::-1]
        share = np.arange(1, len(values) + 1) / len(values)
        axes.step(values, share, where="post", label=attack.name, color=mpl.colormaps["tab10"](place), lw=1.3)
    axes.set(xlim=(0, 80), ylim=(0, 1.02))
    axes.set_xlabel(f"PSNR in dB, {name} LeNet", fontsize=8)
    axes.set_ylabel("share of images above it", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(path)


def pictures(result: jaxleak.Result, path: Path) -> None:
    """The first images and what each attack makes of them."""
    truth = result.run.truth()
    lines = [("truth", [(pixels, "") for pixels in truth["pixels"][:PICTURES]])]
    for attack in ATTACKS:
        rows = {row["image"]: row for row in result.rows if row["attack"] == attack.name}
        chosen = [rows[image] for image in truth["image"].tolist()[:PICTURES]]
        lines.append((attack.name, [(picture(result, row), f"{row['psnr']:.1f} dB") for row in chosen]))
    draw_sheet(lines, path)


def results() -> list[tables.Results]:
    """PSNR of each attack, and of restarts."""
    names, rows, heads = ("untrained", "trained"), [], ("network", "attack", "paper", "PSNR in dB", "n")
    told = {name: tables.stored(f"inverting_gradients/{name}-psnr.json") for name in (*names, "restarts")}
    for name in names:
        found = {one["attack"]: one for one in told[name]["attacks"]} if told[name] else {}
        for attack in (attack.name for attack in ATTACKS):
            cells = [plus_minus(found[attack]), found[attack]["n"]] if attack in found else [tables.NOT_RUN]
            rows.append([f"`{name}`", attack, PAPER_SAYS[name].get(attack, tables.NONE), *cells])
    again = [[tables.NOT_RUN]]
    if told["restarts"]:
        pairs = [(one["restarts"], one["selected"], one["oracle"]) for one in told["restarts"]["attacks"]]
        again = [[count, plus_minus(one), plus_minus(best), one["n"]] for count, one, best in pairs]
    return [
        tables.Results(
            "Table 1: PSNR on LeNet, one restart",
            "inverting_gradients --only untrained trained",
            heads,
            rows,
            tables.device(*(told[name] for name in names)),
            (
                "Mean ± standard deviation over images. The paper's are of CIFAR-10: quoted by others, or recalled.",
                "ig: cosine, signed Adam. The paper does not say its weight of TV, the total variation.",
            ),
            {name: f"inverting_gradients/{name}.png" for name in names},
        ),
        tables.Results(
            "Table 1: `ig` with TV 0.01, restarts, PSNR in dB",
            "inverting_gradients --only restarts",
            ("restarts", "selected", "oracle", "n"),
            again,
            tables.device(told["restarts"]),
            ("Selected: the restart with the lowest objective. Oracle: the one nearest to the truth.",),
        ),
    ]


def plus_minus(cell: dict) -> str:
    return f"{cell['mean']:.2f} ± {cell['sd']:.2f}"


if __name__ == "__main__":
    main()
