"""200 audits with known answers: what `jaxleak attack` says of updates that are right, and of wrong ones.

Twenty updates of each of ten kinds, each of another CIFAR-100 image (MNIST where that is said) and another LeNet:

- right: a gradient; a clipped gradient, attacked by its direction; a gradient stored in half precision; three local
  steps that are stated; a gradient on MNIST;
- wrong: the other sign; a tenth of the gradient; label smoothing 0.1; three local steps that are not stated; Gaussian
  noise of sigma 0.01 that is not stated.

The true image is used to check the verdict, never to make it. A wrong image called recovered is the error that counts.

    python -m experiments.verdicts --data-dir DIR
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder

PAPER = "Verdicts on updates"
VERDICTS = ("recovered", "ambiguous", "unfinished", "unexplained")
UPDATES, SEEDS = 20, 4
SMOOTHING, SIGMA, CLIP = 0.1, 0.01, 1.0
STEPS = jaxleak.Client(steps=3, lr=0.003)
COSINE = replace(jaxleak.IDLG, objective="cosine")
Tree = Any


def unchanged(update: Tree, rng: np.random.Generator) -> Tree:
    del rng
    return update


def times(factor: float) -> Callable[[Tree, np.random.Generator], Tree]:
    return lambda update, rng: jax.tree.map(lambda leaf: np.float32(factor) * leaf, update)


def clipped(update: Tree, rng: np.random.Generator) -> Tree:
    norm = np.sqrt(sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(update)))
    return times(min(1.0, CLIP / norm))(update, rng)


def halved(update: Tree, rng: np.random.Generator) -> Tree:
    del rng
    return jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), update)


def noisy(update: Tree, rng: np.random.Generator) -> Tree:
    return jax.tree.map(lambda leaf: leaf + (SIGMA * rng.normal(size=leaf.shape)).astype(np.float32), update)


@dataclass(frozen=True)
class Kind:
    """Updates that are made alike: by `client`, and then changed; the attacker assumes the client `stated`.

    What is stated is right where `hint` is None; else that is the hint that the audit should give.
    """

    hint: str | None = None
    change: Callable[[Tree, np.random.Generator], Tree] = unchanged
    client: jaxleak.Client = field(default_factory=jaxleak.Client)
    stated: jaxleak.Client = field(default_factory=jaxleak.Client)
    smoothing: float = 0.0
    attack: jaxleak.Attack = jaxleak.IDLG
    dataset: str = "cifar100"


KINDS = {
    "gradient": Kind(),
    "clipped, by its direction": Kind(change=clipped, attack=COSINE),
    "half precision": Kind(change=halved),
    "local steps, stated": Kind(client=STEPS, stated=STEPS),
    "gradient on MNIST": Kind(dataset="mnist"),
    "other sign": Kind("sign", change=times(-1.0)),
    "a tenth": Kind("scale", change=times(0.1)),
    "label smoothing": Kind("loss", smoothing=SMOOTHING),
    "local steps, not stated": Kind("client-steps", client=STEPS, change=times(1 / STEPS.length(1))),
    "noise, not stated": Kind("noise", change=noisy),
}


def update_of(kind: Kind, number: int, data: jaxleak.Dataset) -> jaxleak.Victim:
    """The update with this number, and what its attacker knows."""
    index = int(data.random_indices(UPDATES, seed=2026)[number])
    shared = {"network": "shared", "network_seed": number}
    victim = jaxleak.make_victim("lenet", data, [index], client=kind.client, **shared)
    params = jaxleak.draw_params(victim.model, jax.random.key(number), victim.shape)
    target = (1 - kind.smoothing) * np.eye(victim.num_classes)[victim.labels] + kind.smoothing / victim.num_classes
    compute = jax.jit(lambda params, x, target: victim.share(params, x, target, jax.random.key(0)))
    update = compute(params, jnp.asarray(victim.images), jnp.asarray(target, jnp.float32))
    update = kind.change(jax.tree.map(np.asarray, update), np.random.default_rng(number))
    return replace(victim, client=kind.stated, params=params, update=update)


def main() -> None:
    options = arguments(__doc__)
    path = results_folder("verdicts") / "audits.jsonl"
    done = {(row["kind"], row["number"]) for row in rows()}
    sets = {name: jaxleak.load_dataset(name, data_dir=options.data_dir) for name in ("cifar100", "mnist")}
    for number, (name, kind) in ((number, item) for number in range(UPDATES) for item in KINDS.items()):
        if (name, number) in done:
            continue
        began = time.perf_counter()
        victim = update_of(kind, number, sets[kind.dataset])
        sweep = jaxleak.Sweep(victim=victim, attacks=(kind.attack,), seeds=SEEDS, snapshots=())
        report, result = jaxleak.audit(sweep, quiet=True, lanes=options.lanes)
        first = result.rows[0]
        row = {
            "kind": name,
            "number": number,
            "image": victim.indices[0],
            "verdict": report["verdict"],
            "hints": [hint["code"] for hint in report["hints"]],
            "psnr": report["truth"]["psnr"],
            "right_image": report["truth"]["right"],
            "left": report["attacks"][0]["left"],
            "floor": report["floor"]["value"],
            "expected_psnr": report["determined"] and report["determined"]["psnr"],
            "restarts": len(result.rows),
            "evaluations": sum(trial["evaluations"] for trial in result.rows),
            "seconds": round(time.perf_counter() - began, 1),
            **{key: first[key] for key in ("device", "git_revision", "git_dirty")},
        }
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name} {number}: {row['verdict']} {row['hints']} {row['psnr']:.1f} dB, {row['seconds']} s", flush=True)


def rows() -> list[dict[str, Any]]:
    """The audits that are done."""
    path = results_folder("verdicts") / "audits.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results() -> list[tables.Results]:
    """How often each verdict was given, by kind."""
    made, lines = rows(), []
    for name, kind in KINDS.items():
        mine = [row for row in made if row["kind"] == name]
        verdicts = Counter(row["verdict"] for row in mine)
        hinted = f"{sum(kind.hint in row['hints'] for row in mine)}/{len(mine)}" if kind.hint else tables.NONE
        wrong = sum(row["verdict"] == "recovered" and not row["right_image"] for row in mine)
        decibels = f"{np.median([row['psnr'] for row in mine]):.0f}" if mine else tables.NONE
        seconds = f"{np.median([row['seconds'] for row in mine]):.0f}" if mine else tables.NONE
        counts = [str(verdicts[verdict]) for verdict in VERDICTS] if mine else [tables.NOT_RUN] * len(VERDICTS)
        truth = "wrong" if kind.hint else "right"
        lines.append((name, truth, len(mine), *counts, wrong, kind.hint or tables.NONE, hinted, decibels, seconds))
    right = [row for row in made if KINDS[row["kind"]].hint is None]
    recovered = sum(row["verdict"] == "recovered" for row in right)
    wrong = sum(row["verdict"] == "recovered" and not row["right_image"] for row in made)
    summary = f"Of {len(right)} right updates {recovered} are called recovered."
    summary += f" Of all {len(made)}, {wrong} with a wrong image."
    return [
        tables.Results(
            "Verdicts on updates with known answers",
            "verdicts",
            (
                *("update", "stated", "n", *VERDICTS, "wrong image recovered"),
                *("hint", "given", "median dB", "median seconds"),
            ),
            lines,
            ", ".join(dict.fromkeys(row["device"] for row in made)),
            (
                summary,
                "Hint: the one that such an update should get, and how often it was given.",
                "Seconds: in a process that has compiled for its kind before, with other work beside it.",
                "The verdict does not know the true image; the table does.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
