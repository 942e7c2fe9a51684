"""Melis et al. 2019: what updates tell without being rebuilt: words, membership, and properties, behind defences.

Words: a causal transformer of two blocks and batches of four embedded texts of 16 tokens; 50 batches. Membership and
properties: LeNet on CIFAR-100, batches of 8 images; 200 updates, half of which have what is asked for, and 400 of the
attacker's own. One network, drawn with DLG's initialisation.

    python -m experiments.infer --data-dir DIR
    python -m experiments.infer --only words-none membership-prune
"""

import json
from typing import Any

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, write_json

PAPER = "Shallow leaks (Melis et al. 2019)"
DEFENCES = {
    "none": (),
    "clip": ("clip:1",),
    "little-noise": ("clip:1", "gaussian:0.003"),
    "noise": ("clip:1", "gaussian:0.01"),
    "more-noise": ("clip:1", "gaussian:0.1"),
    "prune": ("prune:0.9",),
    "prune-more": ("prune:0.99",),
    "int8": ("int8",),
}
FOUR = ("none", "noise", "more-noise", "prune")
ASKED = {
    "words": tuple(DEFENCES),
    "membership": FOUR,
    "membership-any": ("none",),
    "grey": FOUR,
    "framed": FOUR,
    "mirrored": ("none",),
}
RUNS = {f"{asked}-{defence}": (asked, defence) for asked, defences in ASKED.items() for defence in defences}
DRAWN = ("membership-none", "grey-none", "framed-more-noise")  # whose ROC curves are kept


def main() -> None:
    options = arguments(
        __doc__,
        updates={"type": int, "default": 200, "help": "updates of membership and properties; of words a quarter"},
        own_updates={"type": int, "default": 400, "help": "updates of the attacker's own batches"},
    )
    folder, pictures = results_folder("infer"), None
    for run in chosen_runs(RUNS, options):
        asked, defence = RUNS[run]
        defences = tuple(map(jaxleak.parse_defence, DEFENCES[defence]))
        count = options.updates // 4 if asked == "words" else options.updates
        if asked == "words":
            data, model, batch = jaxleak.load_dataset("text", length=16), "transformer", 4
        else:
            pictures = pictures or jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
            data, model, batch = pictures, "lenet", 8
        _check_smaller(folder / "summary.json", run, count)
        private = data.random_indices(min(count * batch, len(data) - len(data) % batch), seed=2019)
        victim = jaxleak.make_victim(model, data, private, batch=batch, network="shared", defences=defences)
        what = next((what for what in ("words", "membership") if asked.startswith(what)), "property")
        given = asked if what == "property" else "grey"
        others = "any" if asked == "membership-any" else "same-label"
        out = options.runs / "infer" / run
        out.parent.mkdir(parents=True, exist_ok=True)
        found = jaxleak.infer(
            victim,
            what,
            data,
            property=given,
            others=others,
            updates=count,
            own_updates=options.own_updates,
            out=out,
            say=print,
        )
        print(f"{run}\n{found}", flush=True)
        kept = [{name: value for name, value in row.items() if name not in ("images", "texts")} for row in found.rows]
        (folder / f"{run}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
        if run in DRAWN:
            (folder / f"{run}.png").write_bytes((out / "roc.png").read_bytes())
        _keep(folder / "summary.json", run, found.summary)


def _check_smaller(path, run: str, count: int) -> None:
    """Raise where more updates are stored than these.

    Raises:
        InputError: they are.
    """
    stored = json.loads(path.read_text())["runs"].get(run, {"n": 0})["n"] if path.exists() else 0
    if stored > count:
        raise jaxleak.InputError(
            f"{path} has {stored} updates of {run}, which {count} would replace. Give `--results DIR` for fewer."
        )


def _keep(path, run: str, summary: dict[str, Any]) -> None:
    """Write a run's summary into the file of all, in the order of RUNS."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else {}
    runs[run] = {name: value for name, value in summary.items() if name != "settings"}
    write_json(path, {"runs": {name: runs[name] for name in RUNS if name in runs}})


def lines(stored: dict[str, Any]) -> tuple[list, list]:
    """Rows of the two tables, of words and of areas under ROC curves."""
    words, areas = [], []
    for run, (asked, defence) in RUNS.items():
        text, one = " ".join(DEFENCES[defence]) or "none", stored.get(run)
        if one is None:
            (words if asked == "words" else areas).append(
                [*(() if asked == "words" else (asked,)), text, tables.NOT_RUN]
            )
        elif asked == "words":
            line = [text, f"{one['tokens']:.1f}", f"{one['found']:.1f}"]
            for name in ("recall", "precision"):
                told = one[name] is not None
                line += [f"{one[name]:.3f}", tables.interval(one[f"{name}_ci95"], 3)] if told else [tables.NONE] * 2
            words.append([*line, one["n"]])
        else:
            cells = [(name, f"{a['auc']:.3f}", tables.interval(a["ci95"], 3)) for name, a in one["attacks"].items()]
            areas += [[asked, text, *cell, one["n"]] for cell in cells]
    return words, areas


def results() -> list[tables.Results]:
    """Words, and areas under ROC curves."""
    stored = (tables.stored("infer/summary.json") or {"runs": {}})["runs"]
    words, areas = lines(stored)
    device, told = tables.device(*stored.values()), "The paper's figures are not quoted: its data are others."
    return [
        tables.Results(
            "Words of a batch, from the rows of its embedding's gradient",
            "infer",
            ("defence", "tokens", "found", "recall", "95 %", "precision", "95 % of it", "batches"),
            words,
            device,
            (
                "Means over batches, with percentile bootstraps; where all batches are alike, Wilson's.",
                "The network does not read a text's last token: without a defence that is all that is missing.",
                told,
            ),
        ),
        tables.Results(
            "Membership and properties of batches of 8: areas under ROC curves",
            "infer",
            ("asked", "defence", "attack", "area", "95 %", "updates"),
            areas,
            device,
            (
                "DeLong's intervals; 0.5 is chance.",
                "Membership: others have a label of the batch; `membership-any`: any label, which updates tell.",
                "A property is given to all images of half of the batches.",
                told,
            ),
            {run: f"infer/{run}.png" for run in DRAWN if run in stored},
        ),
    ]


if __name__ == "__main__":
    main()
