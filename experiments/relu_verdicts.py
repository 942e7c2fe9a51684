"""What an audit says of updates of ReLU networks whose images are known: 20 right ones, and 20 wrong ones.

LeNet with ReLUs and torch's default initialisation, the middle 28x28 pixels of CIFAR-100 images, a network for each of
20 images, the attack `rgap`. Right is the gradient as it is. Wrong are, five of each: Gaussian noise of sigma 0.001
that is not stated; a tenth of the gradient; the weights of another network; and one tensor, the second convolution's
kernel, that is another image's.

    python -m experiments.relu_verdicts --data-dir DIR
"""

import json
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder

PAPER = "ReLU networks"
VERDICTS = ("recovered", "ambiguous", "unfinished", "unexplained")
UPDATES, WRONG, BORDER, SIGMA = 20, 5, 2, 1e-3
KINDS = ("gradient", "noise", "a tenth", "another network", "another image's tensor")
Tree = Any


def victims(number: int, data: jaxleak.Dataset) -> dict[str, jaxleak.Victim]:
    """The victims with this number, of every kind."""
    chosen = [int(index) for index in data.random_indices(2 * UPDATES, seed=2027)[number::UPDATES]]
    fields = {"activation": "relu", "weight_init": "torch"}
    both = jaxleak.make_victim("lenet", data, chosen, fields=fields, network="shared")
    pixels = np.asarray(both.images)[:, BORDER:-BORDER, BORDER:-BORDER]
    shape = pixels.shape[1:]
    params, others = (
        jaxleak.draw_params(both.model, jax.random.key(seed), shape) for seed in (number, UPDATES + number)
    )

    @jax.jit
    @jax.grad
    def gradient(params, x, labels):
        logits: Any = both.model.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    labels = np.asarray(both.labels)
    mine, theirs = (
        jax.tree.map(np.asarray, gradient(params, pixels[place : place + 1], labels[place : place + 1]))
        for place in (0, 1)
    )
    rng = np.random.default_rng(number)
    changed = {
        "gradient": mine,
        "noise": jax.tree.map(lambda leaf: leaf + np.float32(SIGMA * rng.normal(size=leaf.shape)), mine),
        "a tenth": jax.tree.map(lambda leaf: np.float32(0.1) * leaf, mine),
        "another network": mine,
        "another image's tensor": {**mine, "conv2": {**mine["conv2"], "kernel": theirs["conv2"]["kernel"]}},
    }
    one = replace(both, images=pixels[:1], labels=both.labels[:1], indices=both.indices[:1], surrogates=None)
    return {
        kind: replace(one, params=others if kind == "another network" else params, update=update)
        for kind, update in changed.items()
    }


def main() -> None:
    options = arguments(__doc__)
    path = results_folder("relu_verdicts") / "audits.jsonl"
    done = {(row["kind"], row["number"]) for row in rows()}
    data = jaxleak.load_dataset("cifar100", data_dir=options.data_dir)
    for number in range(UPDATES):
        for kind, victim in victims(number, data).items():
            if (kind, number) in done or (kind != KINDS[0] and number >= WRONG):
                continue
            began = time.perf_counter()
            sweep = jaxleak.Sweep(victim=victim, attacks=(jaxleak.ATTACKS["rgap"],), seeds=1, snapshots=())
            report, result = jaxleak.audit(sweep, quiet=True, lanes=options.lanes)
            first, determined = result.rows[0], report["determined"] or {}
            row = {
                "kind": kind,
                "number": number,
                "image": victim.indices[0],
                "verdict": report["verdict"],
                "psnr": report["truth"]["psnr"],
                "right_image": report["truth"]["right"],
                "left": report["attacks"][0]["left"],
                "floor": report["floor"]["value"],
                "expected_psnr": determined.get("psnr"),
                "free_directions": determined.get("free_directions"),
                "foretold_error": determined.get("foretold_error"),
                "seconds": round(time.perf_counter() - began, 1),
                **{key: first[key] for key in ("device", "git_revision", "git_dirty")},
            }
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{kind} {number}: {row['verdict']}, {row['psnr']:.1f} dB, {row['seconds']} s", flush=True)


def rows() -> list[dict[str, Any]]:
    """The audits that are done."""
    path = results_folder("relu_verdicts") / "audits.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results() -> list[tables.Results]:
    """How often each verdict was given, by kind."""
    made, lines = rows(), []
    for kind in KINDS:
        mine = [row for row in made if row["kind"] == kind]
        verdicts = Counter(row["verdict"] for row in mine)
        counts = [str(verdicts[verdict]) for verdict in VERDICTS] if mine else [tables.NOT_RUN] * len(VERDICTS)
        wrong = sum(row["verdict"] == "recovered" and not row["right_image"] for row in mine)
        decibels = f"{np.median([row['psnr'] for row in mine]):.1f}" if mine else tables.NONE
        expected = [row["expected_psnr"] for row in mine if row["verdict"] == "recovered"]
        told = f"{np.median(expected):.1f}" if expected else tables.NONE
        lines.append((kind, len(mine), *counts, wrong, decibels, told))
    return [
        tables.Results(
            "Audits of LeNet with ReLUs",
            "relu_verdicts",
            ("update", "n", *VERDICTS, "wrong image recovered", "median dB", "median dB the audit expects"),
            lines,
            ", ".join(dict.fromkeys(row["device"] for row in made)),
            (
                "Only `gradient` is right. The decibels that the audit expects are of updates called recovered.",
                "The verdict does not know the true image; the table does.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
