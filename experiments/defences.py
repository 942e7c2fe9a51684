"""Zhu, Liu & Han 2019 (DLG), section on defences: success against each defence's strength, and what it costs.

For every defence, the share of CIFAR-100 images that come back (relative image error below 0.2, a fresh LeNet for each
trial; the objective need not be small, since noise keeps it up), for an attacker who matches squared distances and one
who matches cosines, and also for ones who are told which entries were left out, or that PRECODE's noise was drawn. The
cost: accuracy of the same LeNet trained by SGD with every step's gradient defended, on MNIST's test split (999 images
held out). The DLG paper's thresholds are marked; its noise is a variance: its 10^-2 is a deviation of 0.1 here.

    python -m experiments.defences --data-dir DIR --images 20 --seeds 2 --steps 1000
"""

import itertools
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_all, write_json
from experiments.noise_by_variance import by_variance

PAPER = "DLG (Zhu et al. 2019)"
STRENGTHS: dict[str, tuple[str, ...]] = {
    "gaussian": ("gaussian:1e-4", "gaussian:1e-3", "gaussian:1e-2", "gaussian:3e-2", "gaussian:0.1", "gaussian:0.316"),
    "laplace": ("laplace:1e-4", "laplace:1e-3", "laplace:1e-2", "laplace:3e-2", "laplace:0.1", "laplace:0.316"),
    "prune": ("prune:0.1", "prune:0.2", "prune:0.3", "prune:0.5", "prune:0.7", "prune:0.9", "prune:0.99"),
    "prune-layer": ("prune-layer:0.1", "prune-layer:0.3", "prune-layer:0.5", "prune-layer:0.7", "prune-layer:0.9"),
    "soteria": ("soteria:0.01", "soteria:0.1", "soteria:0.4", "soteria:0.8"),
    "precode": ("precode:64", "precode:256"),
    "error-feedback": ("error-feedback:0.5:5", "error-feedback:0.9:5", "error-feedback:0.9:20"),
    "precision": ("fp16", "bf16", "int8"),
    "clip": ("clip:1", "clip:0.1"),
    "dp-sgd": ("dp-sgd:1:1e-4", "dp-sgd:1:1e-3", "dp-sgd:1:1e-2", "dp-sgd:1:0.1"),
    "none": ("",),
}
THRESHOLDS = {"gaussian": 0.1, "laplace": 0.1, "prune": 0.2}  # from here on the DLG paper says that it defends
BASE = replace(jaxleak.IDLG, label="bias", init="uniform", stop_objective=0.0, max_evaluations=600)
ATTACKS = (replace(BASE, name="L2"), replace(BASE, name="cosine", objective="cosine", tv=1e-6))
TOLD = tuple(replace(attack, name=f"{attack.name}, told", knows_defence=True) for attack in ATTACKS)
RECOVERED = 0.2  # relative error
# Nothing is trained with these here: Soteria differentiates every feature in each step, error feedback remembers other
# steps' updates, and PRECODE's network is another.
UNTRAINED = ("soteria", "precode", "error-feedback")


def main() -> None:
    numbers = {"images": 20, "seeds": 2, "steps": 1000}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    images = data.random_indices(options.images, seed=2019)
    folder = results_folder("defences")
    digits = jaxleak.load_dataset("mnist", split="test", data_dir=options.data_dir)
    chosen = chosen_runs([*STRENGTHS, *filter(None, itertools.chain(*STRENGTHS.values()))], options)
    for kind, texts in STRENGTHS.items():
        for text in [text for text in texts if kind in chosen or text in chosen]:
            name = text.replace(":", "-") or "none"
            defences = tuple(jaxleak.parse_defence(part) for part in text.split())
            victim = jaxleak.make_victim("lenet", data, images, defences=defences)
            told = TOLD if kind == "precode" else TOLD[:1] if any(defence.sparse for defence in defences) else ()
            attacks = (*ATTACKS, *told)
            sweep = jaxleak.Sweep(victim=victim, attacks=attacks, seeds=options.seeds, snapshots=())
            (result,) = run_all("defences", {name: sweep}, replace_only(options)).values()
            cost = None if kind in UNTRAINED else accuracy(defences, digits, options.steps)
            device = result.rows[0]["device"]
            found = {"kind": kind, "defence": name, "text": text, "accuracy": cost, **rates(result), "device": device}
            write_json(folder / f"{name}-rates.json", found)
    names = (text.replace(":", "-") or "none" for text in itertools.chain(*STRENGTHS.values()))
    stored = (tables.stored(f"defences/{name}-rates.json") for name in names)
    draw([found for found in stored if found], folder / "defences.png")


def replace_only(options):
    """The options without `--only`, for sweeps that were chosen by it already."""
    return type(options)(**{**vars(options), "only": None})


def rates(result: jaxleak.Result) -> dict:
    """For each attack the images that came back."""
    told = {}
    for attack in dict.fromkeys(row["attack"] for row in result.rows):
        own = [row for row in result.rows if row["attack"] == attack]
        back = sum(row["relative_error"] < RECOVERED for row in own)
        told[attack] = {
            "trials": len(own),
            "recovered": back,
            "ci95": jaxleak.wilson(back, len(own)),
            "psnr_median": float(np.nanmedian([row["psnr"] for row in own])),
            "labels_right": sum(row["label_correct"] for row in own),
        }
    return {"attacks": told}


def accuracy(defences: tuple, data: jaxleak.Dataset, steps: int) -> float:
    """On a tenth of the data, after training on the rest with defended gradients."""
    model = jaxleak.build_model("lenet", data.num_classes)
    victim = jaxleak.make_victim(model, data, [int(data.index[0])], train_optimizer="sgd", train_lr=0.1)
    h, w, c = data.image_shape
    begin = jaxleak.draw_params(model, jax.random.key(0), (h, w, c))
    victim = replace(victim, defences=defences)
    return jaxleak.train_network(victim, begin, data, steps=steps).accuracy


def draw(told: list[dict], path: Path) -> None:
    """A panel for each kind: images that came back, with intervals, and accuracy, against strength."""
    kinds = list(dict.fromkeys(one["kind"] for one in told if one["kind"] != "none"))
    figure = Figure(figsize=(8.6, 4.6), dpi=140, layout="constrained")
    panels = figure.subplots(2, -(-len(kinds) // 2), sharey=True, squeeze=False).ravel()
    colours = {"L2": "tab:blue", "cosine": "tab:orange", "L2, told": "tab:green", "cosine, told": "tab:red"}
    for axes, kind in zip(panels, kinds, strict=False):
        own = [one for one in told if one["kind"] in (kind, "none")]
        own.sort(key=lambda one: one["kind"] != "none")
        for attack, colour in colours.items():
            points = [(x, one["attacks"][attack]) for x, one in enumerate(own) if attack in one["attacks"]]
            for x, one in points:
                axes.plot([x, x], one["ci95"], color=colour, lw=1)
            shares = [one["recovered"] / one["trials"] for _, one in points]
            axes.plot([x for x, _ in points], shares, "o-", color=colour, ms=3, lw=1)
        costs = [np.nan if one["accuracy"] is None else one["accuracy"] for one in own]
        if np.all(np.isfinite(costs)):
            axes.plot(range(len(own)), costs, "s:", color="grey", ms=3, lw=1)
        names = [one["text"].removeprefix(f"{kind}:") or "none" for one in own]
        axes.set_xticks(range(len(own)), names, rotation=45, fontsize=6, ha="right")
        if kind in THRESHOLDS:
            place = next(x for x, one in enumerate(own) if names[x] != "none" and float(names[x]) >= THRESHOLDS[kind])
            axes.axvline(place, color="black", lw=0.8, ls="--")
        axes.set_title(kind, fontsize=8)
        axes.set_ylim(-0.03, 1.03)
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    lines = [panels[0].plot([], [], "o-", color=colour, ms=3, label=attack)[0] for attack, colour in colours.items()]
    lines += panels[0].plot([], [], "s:", color="grey", ms=3, label="accuracy when trained so (MNIST)")
    lines += panels[0].plot([], [], "--", color="black", lw=0.8, label="defends from here on (DLG paper)")
    figure.legend(handles=lines, loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    figure.supylabel("share of trials recovered; accuracy", fontsize=8)
    figure.savefig(path)


def results() -> list[tables.Results]:
    """Trials recovered under each defence, and the accuracy of a network trained with it."""
    rows, summaries, attacks = [], [], [attack.name for attack in (*ATTACKS, *TOLD)]
    for text in ("", *(text for kind in STRENGTHS for text in STRENGTHS[kind] if text)):
        told = tables.stored(f"defences/{text.replace(':', '-') or 'none'}-rates.json")
        summaries.append(told)
        cells = [tables.NOT_RUN]
        if told:
            found = [told["attacks"].get(name) for name in attacks]
            pairs = [tables.share(one, "recovered") if one else [tables.NONE] * 2 for one in found]
            trained = tables.NONE if told["accuracy"] is None else f"{told['accuracy']:.3f}"
            cells = [*(cell for pair in pairs for cell in pair), trained]
        rows.append([f"`{text or 'none'}`", *cells])
    return [
        tables.Results(
            "Defences: trials recovered, and MNIST accuracy when trained so",
            "defences",
            ("defence", *(head for name in attacks for head in (name, "95 %")), "accuracy"),
            rows,
            tables.device(*summaries),
            (
                "`--only KIND` runs those whose name begins so (`precision`: fp16, bf16 and int8), `--only NAME` one.",
                "Told: the attacker knows which entries were set to zero, or that noise was drawn.",
                "Noise: the number is the standard deviation. A variance of 1e-2 is 0.1 here, and one of 1e-3 is 3e-2.",
                "Paper (recalled): noise of variance 1e-2 defends, 1e-3 does not.",
                "Paper (recalled): pruning above 20 % defends; fp16 does not defend, int8 does.",
            ),
            {"figure": "defences/defences.png"},
        ),
        by_variance(),
    ]


if __name__ == "__main__":
    main()
