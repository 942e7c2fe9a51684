"""Balunovic et al. 2022: has each defence its best attacker, and is that the one who knows the defence's likelihood?

LeNet on CIFAR-100, a network of its own for each image, label read from the update (`bias`), one start, pixels kept in
[0, 1] by a change of variables, the same number of evaluations for all. Four attackers minimise total variation beside
the squared L2 distance, L1 (both relative to the update's norm), the cosine distance, or the defence's own likelihood.
For each defence and attacker the weight of total variation is the best of four on other images. `patches` is the
likelihood with a prior learned from CIFAR-100's test split in place of total variation. `best` is jaxleak's attack of
that name, which chooses for itself and is not tuned. Attackers meet the same noise
and begin at the same start, so that their PSNRs are paired: Wilcoxon's signed rank test, two-sided. L1 takes longer
than 200 evaluations to fit: `-long` runs have 1,000, and the two smaller weights.

    python -m experiments.bayesian --data-dir DIR --images 40 --tuned-on 10
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_one

PAPER = "Bayesian attacker (Balunovic et al. 2022)"
GOOD = 20  # dB
EVALUATIONS = 200
DEFENCES = {
    "gaussian": "gaussian:3e-3",
    "laplace": "laplace:3e-3",
    "prune": "prune:0.9",
    "int8": "int8:4",
    "dp-sgd": "dp-sgd:1:1.5e-4",
}
BASE = replace(jaxleak.ATTACKS["bayes"], max_evaluations=EVALUATIONS, iterations=EVALUATIONS)
OTHERS = replace(BASE, knows_defence=False)
ATTACKS = {
    "l2": replace(OTHERS, objective="l2", scale="relative"),
    "l1": replace(OTHERS, objective="l1", scale="relative"),
    "cosine": replace(OTHERS, objective="cosine"),
    "likelihood": BASE,
    "patches": replace(BASE, tv=0.0),  # the likelihood, with patches in place of total variation
    "best": replace(jaxleak.ATTACKS["best"], max_evaluations=EVALUATIONS, iterations=EVALUATIONS),
}
SAME_PRIOR = ("l2", "l1", "cosine", "likelihood")
PER_TV = 1 / 800  # a weight of patches about as strong as one of total variation, in it
WEIGHTS = {
    "l2": (5e-4, 2e-3, 8e-3, 3.2e-2),
    "l1": (1, 4, 16, 64),
    "cosine": (2.5e-4, 1e-3, 4e-3, 1.6e-2),
}
# Of likelihoods, whose units are the defences'; so that they stand to the distance about as those above do.
OWN = {
    "gaussian": (0.05, 0.2, 0.8, 3.2),
    "laplace": (0.125, 0.5, 2, 8),
    "prune": (6e3, 2.5e4, 1e5, 4e5),
    "int8": (6e-4, 2.5e-3, 1e-2, 4e-2),
    "dp-sgd": (0.05, 0.2, 0.8, 3.2),
}
RUNS = {f"{defence}-{attack}": (defence, attack) for defence in DEFENCES for attack in ATTACKS}
LONG = {f"laplace-{attack}-long": ("laplace", attack) for attack in ("l2", "likelihood")}  # with the smaller weights
MORE = 1000  # evaluations of these


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 40}, tuned_on={"type": int, "default": 10})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    drawn = data.random_indices(options.tuned_on + options.images, seed=2111)
    others, chosen = drawn[: options.tuned_on], drawn[options.tuned_on :]
    runs, mixture = chosen_runs({**RUNS, **LONG}, options), None
    if any(name.endswith("patches") for name in runs):
        mixture = jaxleak.fit_patches(jaxleak.load_dataset("cifar100", split="test", data_dir=options.data_dir))
    for name in runs:
        defence, kind = {**RUNS, **LONG}[name]
        if kind == "best":
            run_one("bayesian", name, sweep(data, defence, chosen, (ATTACKS[kind],)), options)
            continue
        term, learned = ("patches", mixture) if kind == "patches" else ("tv", None)
        grid, base = WEIGHTS.get(kind, OWN[defence]), ATTACKS[kind]
        if name in LONG:
            grid, base = grid[:2], replace(base, max_evaluations=MORE, iterations=MORE)
        weights = {f"{term} {weight:g}": weight * (PER_TV if learned else 1.0) for weight in grid}
        attacks = tuple(replace(base, name=tried, **{term: weight}) for tried, weight in weights.items())
        tried = run_one("bayesian", f"{name}-tuning", sweep(data, defence, others, attacks, learned), options)
        medians = {getattr(attack, term): median(tried.rows, attack.name) for attack in attacks}
        best = max(medians, key=lambda weight: medians[weight])
        attack = replace(base, name=kind, **{term: best})
        run_one("bayesian", name, sweep(data, defence, chosen, (attack,), learned), options)


def sweep(data, defence: str, images: list[int], attacks: tuple, mixture=None) -> jaxleak.Sweep:
    """These attacks on images behind a defence, a network for each."""
    defences = tuple(map(jaxleak.parse_defence, DEFENCES[defence].split()))
    victim = jaxleak.make_victim("lenet", data, images, network="per-image", defences=defences, mixture=mixture)
    return jaxleak.Sweep(victim=victim, attacks=attacks, seeds=1, snapshots=())


def median(rows: list[dict], attack: str) -> float:
    """The median PSNR of an attack; what is no number counts as lowest."""
    return float(np.median([np.nan_to_num(row["psnr"], nan=0.0) for row in rows if row["attack"] == attack]))


def psnrs(name: str) -> dict[int, float]:
    """PSNR by image of a run; empty if it was not run."""
    path = results_folder("bayesian") / f"{name}.parquet"
    return {row["image"]: row["psnr"] for row in pq.read_table(path).to_pylist()} if path.exists() else {}


def against(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Median difference of pairs, and the p of Wilcoxon's signed rank test."""
    apart = np.array([ours[image] - theirs[image] for image in ours])
    tested: Any = stats.wilcoxon(apart)
    return f"{np.median(apart):+.1f} dB, p = {tested.pvalue:.1g}"


def results() -> list[tables.Results]:
    """PSNR of each attacker behind each defence, and the likelihood's beside the best of the others."""
    lines, devices = [], []
    groups = {text: {attack: f"{defence}-{attack}" for attack in ATTACKS} for defence, text in DEFENCES.items()}
    groups[f"{DEFENCES['laplace']}, {MORE:,} evaluations"] = {attack: name for name, (_, attack) in LONG.items()}
    for text, names in groups.items():
        found = {attack: psnrs(name) for attack, name in names.items()}
        known = {attack: found[attack] for attack in SAME_PRIOR if found.get(attack)}
        best = max(known, key=lambda attack: np.median(list(known[attack].values())), default=None)
        rival = max(known.keys() - {"likelihood"}, key=lambda a: np.median(list(known[a].values())), default=None)
        for attack, values in found.items():
            line = [f"`{text}`", attack + (" (best)" if attack == best else "")]
            if not values:
                lines.append([*line, tables.NOT_RUN])
                continue
            psnr = np.array(list(values.values()))
            good, low, middle, high = int(np.sum(psnr > GOOD)), *np.percentile(psnr, (25, 50, 75))
            stored = tables.stored(f"bayesian/{names[attack]}.json")
            settings = stored["settings"]["attacks"][0]
            weight = settings["patches"] if attack == "patches" else settings["tv"]
            share = tables.interval([100 * bound for bound in jaxleak.wilson(good, len(psnr))], 0)
            line += [f"{weight:g}", f"{middle:.1f} ({low:.1f} to {high:.1f})", f"{good}/{len(psnr)}", share]
            other = {"likelihood": rival, "patches": "likelihood", "best": "likelihood"}.get(attack)
            if other in known:
                line.append(f"{against(values, known[other])} against {other}")
            lines.append(line)
            devices.append(stored)
    return [
        tables.Results(
            "Each defence and its best attacker",
            "bayesian",
            ("defence", "attacker", "weight", "PSNR in dB", "above 20 dB", "95 %", "paired difference"),
            lines,
            tables.device(*devices),
            (
                f"{EVALUATIONS} evaluations where nothing else is said. PSNR: median (quartiles). Weight: the prior's.",
                "Paired difference: median, and p of Wilcoxon's signed rank test, two-sided.",
                "`patches`: the likelihood with learned patches as its prior; all others have total variation.",
                "`best` is not tuned on other images; its weight is of what the noise leaves of the distance.",
                "(best): the highest median of the first four.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
