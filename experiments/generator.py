"""Hitaj et al. 2017: a generator that learns from the shared model alone what a class looks like, beside the originals.

Two clients train LeNet (tanh) on MNIST by federated averaging. One has the digits 0 to 4. The other one, the attacker,
has 5 to 9, trains a generator in each round to make pictures that the shared model takes for the digit it wants, and
labels these `artificial`, an eleventh class, in its own training: the first client must then say better what its digit
looks like.

A judge, a LeNet trained on images that neither client has, says which digit a picture shows; beside it what it says of
a generator before any training. `private` is the PSNR of a picture and the nearest of the client's images of that
digit, `other` of the nearest of as many images that nobody trained on. Originals: ten of the client's images of the
digit, by iDLG with 1,000 evaluations; that attacker sees the gradient of each alone on the shared model, more than the
generator's has.

    python -m experiments.generator --data-dir DIR [--only 3 --seeds 1]
"""

import json
from dataclasses import replace
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxleak
from experiments import tables
from experiments.generator_clients import FIELDS, MODEL, classes, descend, federated, pictures_of, sampled, untrained
from experiments.harness import arguments, chosen_runs, results_folder

PAPER = "A generator (Hitaj et al. 2017)"
DIGITS = tuple(map(str, range(5)))
MEASURED = ("accuracy", "judge", "recognised", "untrained", "private", "other", "originals")
ROUNDS, JUDGED, SHOWN, ORIGINALS = 50, 2000, 100, 10
EXACT = replace(jaxleak.IDLG, label="bias", scale="relative", stop_objective=0.0, stop_relative=1e-8, iterations=50)


def nearest(pictures: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PSNR in dB of each picture and its nearest image, and which that is."""
    apart = np.mean((pictures[:, None] - images[None]) ** 2, axis=(2, 3, 4))
    return -10 * np.log10(apart.min(axis=1)), apart.argmin(axis=1)


def main() -> None:
    seeds, rounds = {"type": int, "default": 1}, {"type": int, "default": ROUNDS, "help": "of federated averaging"}
    options = arguments(__doc__, seeds=seeds, rounds=rounds)
    data = jaxleak.load_dataset("mnist", split="test", data_dir=options.data_dir)
    data = replace(data, class_names=(*data.class_names, "artificial"))
    path, done = (
        results_folder("generator") / "runs.jsonl",
        {(row["digit"], row["seed"], row["rounds"]) for row in rows()},
    )
    options.runs.mkdir(parents=True, exist_ok=True)
    judge = None
    for name, seed in product(chosen_runs(DIGITS, options), range(options.seeds)):
        if (int(name), seed, options.rounds) in done:
            continue
        judge = judge or judged(data)
        row, pictures = run(data, judge, int(name), seed, options.rounds)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({key: np.median(row[key]) for key in ("digit", "seed", *MEASURED)}), flush=True)
        if seed == 0:
            np.save(options.runs / f"generator-{name}.npy", pictures)
    files = [options.runs / f"generator-{name}.npy" for name in DIGITS]
    if all(file.exists() for file in files):
        draw([np.load(file) for file in files])


def share(
    data: jaxleak.Dataset, number: int, digits: tuple[int, ...] = tuple(range(10))
) -> tuple[Any, Any, np.ndarray]:
    """A third of the images, of these digits, their labels and places: 0 is the clients', 1 nobody's, 2 the judge's."""
    images, labels = data.images(range(len(data)))
    own = np.flatnonzero((np.arange(len(data)) % 3 == number) & np.isin(labels, digits))
    return jnp.asarray(images[own]), jnp.asarray(labels[own]), own


def judged(data: jaxleak.Dataset) -> Any:
    """The weights of a judge."""
    images, labels, _ = share(data, 2)
    blank = MODEL.init(jax.random.key(0), images[:1])["params"]
    return descend(sampled, JUDGED, blank, jax.random.key(1), images, labels)


def run(data: jaxleak.Dataset, judge: Any, digit: int, seed: int, rounds: int) -> tuple[dict[str, Any], np.ndarray]:
    """A row; and pictures: an original, what its gradient gives, four generated, the image nearest to the first."""
    private, own = (share(data, 0, digits)[:2] for digits in (tuple(range(5)), tuple(range(5, 10))))
    shared, generator = federated(private, own, digit, seed, rounds)
    made = np.asarray(pictures_of(generator, jax.random.key(seed), SHOWN))
    (theirs, _, places), (others, _, _) = (share(data, number, (digit,)) for number in (0, 1))
    both = min(len(theirs), len(others))
    (close, which), (apart, _) = (nearest(made, np.asarray(images[:both])) for images in (theirs, others))
    unseen, labels, _ = share(data, 1)
    right = classes(shared, unseen) == labels
    found = originals(shared, data, places[:ORIGINALS])
    first = next(row for row in found.rows if row["image"] == places[0])
    row = {
        "digit": digit,
        "seed": seed,
        "rounds": rounds,
        "pictures": SHOWN,
        "accuracy": float(right.mean()),
        "judge": float((classes(judge, unseen) == labels).mean()),
        "recognised": int(jnp.sum(classes(judge, made) == digit)),
        "untrained": int(jnp.sum(classes(judge, pictures_of(untrained(seed), jax.random.key(seed), SHOWN)) == digit)),
        "private": np.round(close, 3).tolist(),
        "other": np.round(apart, 3).tolist(),
        "originals": [float(one["psnr"]) for one in found.rows],
        **{key: first[key] for key in ("device", "git_revision", "git_dirty")},
    }
    recovered = found.reconstructions([first["trial"]])["candidate"][0]
    shown = (theirs[0], recovered, *made[:4], theirs[which[0]])
    return row, np.stack([np.reshape(picture, (28, 28)) for picture in shown])


def originals(shared: Any, data: jaxleak.Dataset, chosen: np.ndarray) -> jaxleak.Result:
    """Images of the client from the gradient of each on the shared model."""
    victim = jaxleak.make_victim("lenet", data, chosen.tolist(), fields=FIELDS, network="shared")
    sweep = jaxleak.Sweep(victim=replace(victim, params=shared), attacks=(EXACT,), seeds=1, snapshots=())
    return jaxleak.run_sweep(sweep, quiet=True)


def draw(lines: list[np.ndarray]) -> None:
    """A line a digit: an original, what its gradient gives, generated pictures, the image nearest to the first."""
    names = ("original", "from its\ngradient", *["generated"] * 4, "nearest to\nthe first")
    figure, axes = plt.subplots(len(lines), len(names), figsize=(7, 1.1 * len(lines) + 0.3), squeeze=False)
    for line, pictures in zip(axes, lines, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1)
            axis.axis("off")
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=8)
    figure.tight_layout()
    figure.savefig(results_folder("generator") / "digits.png", dpi=110)


def rows() -> list[dict[str, Any]]:
    """What is done."""
    path = results_folder("generator") / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results() -> list[tables.Results]:
    """A row a digit, over all its runs."""
    made, lines = rows(), []
    for digit in map(int, DIGITS):
        own = [row for row in made if row["digit"] == digit]
        if not own:
            lines.append([digit, tables.NOT_RUN])
            continue
        shares = [" ".join(f"{row[key] / row['pictures']:.0%}" for row in own) for key in ("recognised", "untrained")]
        close, apart, found = (np.concatenate([row[key] for row in own]) for key in ("private", "other", "originals"))
        cells = [f"{np.median(values):.1f}" for values in (close, apart)]
        accuracy = f"{np.median([row['accuracy'] for row in own]):.1%}"
        lines.append(
            [
                digit,
                len(own),
                accuracy,
                *shares,
                *cells,
                f"{np.median(found):.1f}",
                f"{np.sum(found > 20)}/{len(found)}",
            ]
        )
    found = ("recognised, by run", "untrained", "private in dB", "other in dB", "originals in dB", "above 20 dB")
    columns = ("digit", "runs", "accuracy", *found)
    device = ", ".join(dict.fromkeys(row["device"] for row in made))
    notes = (
        "Accuracy: of the shared model on images that neither client has, median over runs.",
        *(f"The judge's accuracy on the same images: {share:.1%}." for share in sorted({row["judge"] for row in made})),
        "PSNR: medians over the pictures or originals of all runs. `private` and `other` are of the nearest image.",
    )
    figures = {"digits": "generator/digits.png"} if made else {}
    return [
        tables.Results("A class's representative by a generator", "generator", columns, lines, device, notes, figures)
    ]


if __name__ == "__main__":
    main()
