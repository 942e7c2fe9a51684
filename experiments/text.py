"""DLG's second half: texts from the gradient of a language model, by searching (DLG, TAG) and exactly (DAGER).

A causal transformer of two blocks, drawn anew for each trial, with GPT-2's initialisation or DLG's (uniform), and the
embedded text in a vocabulary of 512. A token has the least of 64, 128, 256 and 512 numbers that is more than the batch
has tokens. Whole: every token of every text of the batch is right, and the objective is below its threshold.

    python -m experiments.text --texts 50 --seeds 8
    python -m experiments.text --only dager-torch-32-4
"""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_one

PAPER = "Text: DLG (Zhu, Liu & Han 2019), TAG (Deng et al. 2021), DAGER (Petrov et al. 2024)"
INITS = ("torch", "uniform")
SIZES = (64, 128, 256, 512)  # numbers of a token
READ = {"label": "counts", "scale": "per-tensor"}  # ours
DLG = replace(jaxleak.DLG, iterations=100)
TAG = jaxleak.ATTACKS["tag"]
ATTACKS = {
    "dager": jaxleak.ATTACKS["dager"],
    "dlg": DLG,
    "tag": TAG,
    "dlg-counts": replace(DLG, name="dlg-counts", **READ),
    "tag-counts": replace(TAG, name="tag-counts", **READ),
}
LENGTHS = {"dager": (4, 16, 32, 64)}  # of others SEARCHED, and no batches
SEARCHED = (4, 8, 16, 32)
BATCHES = {"dager": (1, 4, 8)}
RUNS = {
    f"{name}-{init}-{length}-{batch}": (name, init, length, batch)
    for name in ATTACKS
    for init in INITS
    for length in LENGTHS.get(name, SEARCHED)
    for batch in BATCHES.get(name, (1,))
}


def numbers(length: int, batch: int) -> int:
    """Those of a token."""
    return next(size for size in SIZES if size > batch * (length - 1))


def main() -> None:
    options = arguments(
        __doc__,
        texts={"type": int, "default": 50, "help": "batches of texts"},
        seeds={"type": int, "default": 8, "help": "starts of each; of dager networks"},
    )
    for run in chosen_runs(RUNS, options):
        name, init, length, batch = RUNS[run]
        data = jaxleak.load_dataset("text", length=length)
        chosen = data.random_batches(options.texts, batch, seed=2019)
        fields = {"weight_init": init, "dim": numbers(length, batch)}
        victim = jaxleak.make_victim("transformer", data, chosen, batch=batch, fields=fields)
        sweep = jaxleak.Sweep(
            victim=victim, attacks=(ATTACKS[name],), seeds=options.seeds, snapshots=(0, 5, 10, 20, 40), snapshot_seeds=1
        )
        result = run_one("text", run, sweep, options)
        if name == "dlg-counts":
            recovery, *_ = result.plot(options.runs / "text" / run / "figures")
            (results_folder("text") / f"{run}.png").write_bytes(recovery.read_bytes())


def line(run: str, summary: dict) -> list:
    """The rate over all trials, the share of texts, and what the median trial has right."""
    name, init, length, batch = RUNS[run]
    group, rows = tables.overall(summary, name), pq.read_table(results_folder("text") / f"{run}.parquet").to_pylist()
    medians = [float(np.median([row[column] for row in rows])) for column in ("tokens_right", "rouge1", "rouge2")]
    selected = f"{group['selected']['success_rate']:.2f}"
    return [name, init, length, batch, *tables.rate(group), selected, *(f"{value:.2f}" for value in medians)]


def results() -> list[tables.Results]:
    """A line for each attack and setting."""
    told = {run: one for run in RUNS if (one := tables.stored(f"text/{run}.json"))}
    lines = [line(run, one) for run, one in told.items()]
    return [
        tables.Results(
            "Texts from the gradient of a transformer",
            "text",
            ("attack", "weights", "length", "batch", "whole", "95 %", "n", "of texts", "tokens", "ROUGE-1", "ROUGE-2"),
            lines,
            tables.device(*told.values()),
            (
                "Whole: all tokens of all texts of the batch are right. Of texts: share whose best start is.",
                "Best: with the lowest objective. Tokens (right in place) and ROUGE (of tokens): medians over trials.",
                "`-counts`: how often each next token occurs is read from the head's gradient; ours, in no paper.",
                f"Run: {len(told)} of {len(RUNS)} settings; the others are {tables.NOT_RUN}. `--only` names them.",
            ),
            {run: f"text/{run}.png" for run in told if run.startswith("dlg-counts")},
        )
    ]


if __name__ == "__main__":
    main()
