"""Balunovic et al. 2022: has each defence its best attacker, and is that the one who knows the defence's likelihood?

LeNet on CIFAR-100, a network of its own for each image, label read from the update (`bias`), one start, pixels kept in
[0, 1] by a change of variables, the same number of evaluations for all. Four attackers minimise total variation beside
the squared L2 distance, L1 (both relative to the update's norm), the cosine distance, or the defence's own likelihood.
For each defence and attacker the weight of total variation is the best of four on other images. Attackers meet the
same noise and begin at the same start, so that their PSNRs are paired: Wilcoxon's signed rank test, two-sided.

    python -m experiments.bayesian --data-dir DIR --images 40 --tuned-on 10
"""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_one, write_json

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
}
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


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 40}, tuned_on={"type": int, "default": 10})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    drawn = data.random_indices(options.tuned_on + options.images, seed=2111)
    others, chosen = drawn[: options.tuned_on], drawn[options.tuned_on :]
    for name in chosen_runs(RUNS, options):
        defence, kind = RUNS[name]
        weights = OWN[defence] if kind == "likelihood" else WEIGHTS[kind]
        attacks = tuple(replace(ATTACKS[kind], name=f"tv {tv:g}", tv=float(tv)) for tv in weights)
        tried = run_one("bayesian", f"{name}-tuning", sweep(data, defence, others, attacks), options)
        medians = {attack.tv: median(tried.rows, attack.name) for attack in attacks}
        best = max(medians, key=lambda tv: medians[tv])
        run_one("bayesian", name, sweep(data, defence, chosen, (replace(ATTACKS[kind], name=kind, tv=best),)), options)
        write_json(results_folder("bayesian") / f"{name}-weights.json", {"best": best, "medians": medians})


def sweep(data, defence: str, images: list[int], attacks: tuple) -> jaxleak.Sweep:
    """These attacks on images behind a defence, a network for each."""
    defences = tuple(map(jaxleak.parse_defence, DEFENCES[defence].split()))
    victim = jaxleak.make_victim("lenet", data, images, network="per-image", defences=defences)
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
    return f"{np.median(apart):+.1f} dB, p = {stats.wilcoxon(apart).pvalue:.1g}"


def results() -> list[tables.Results]:
    """PSNR of each attacker behind each defence, and the likelihood's beside the best of the others."""
    lines, devices = [], []
    for defence, text in DEFENCES.items():
        found = {attack: psnrs(f"{defence}-{attack}") for attack in ATTACKS}
        known = {attack: values for attack, values in found.items() if values}
        best = max(known, key=lambda attack: np.median(list(known[attack].values())), default=None)
        rival = max(known.keys() - {"likelihood"}, key=lambda a: np.median(list(known[a].values())), default=None)
        for attack, values in found.items():
            line = [f"`{text}`", attack + (" (best)" if attack == best else "")]
            if not values:
                lines.append([*line, tables.NOT_RUN])
                continue
            psnr = np.array(list(values.values()))
            good, low, middle, high = int(np.sum(psnr > GOOD)), *np.percentile(psnr, (25, 50, 75))
            weight = tables.stored(f"bayesian/{defence}-{attack}-weights.json")["best"]
            share = tables.interval([100 * bound for bound in jaxleak.wilson(good, len(psnr))], 0)
            line += [f"{weight:g}", f"{middle:.1f} ({low:.1f} to {high:.1f})", f"{good}/{len(psnr)}", share]
            if attack == "likelihood" and rival:
                line.append(f"{against(values, known[rival])} against {rival}")
            lines.append(line)
            devices.append(tables.stored(f"bayesian/{defence}-{attack}.json"))
    return [
        tables.Results(
            "Each defence and its best attacker",
            "bayesian",
            (
                "defence",
                "attacker",
                "total variation",
                "PSNR in dB",
                "above 20 dB",
                "95 %",
                "likelihood less the best other",
            ),
            lines,
            tables.device(*devices),
            (
                f"{EVALUATIONS} evaluations each. PSNR: median (quartiles). Total variation: weight, best of four on "
                "other images.",
                "Last column: median of paired differences, and p of Wilcoxon's signed rank test, two-sided.",
                "Best: the highest median.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
