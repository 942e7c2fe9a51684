"""Write experiments/README.md, and its table into the project's README: paper's number, PyTorch's and ours.

All numbers of ours are read from the stored results; what has not been run says so. The README's tables of options
are written too, from the code (`experiments/options.py`).

    python -m experiments.index [--check]
"""

import json
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import jaxleak
from experiments import kan2022_resnet18, options
from experiments.harness import HERE, RESULTS
from experiments.ig_models import SETTINGS as IG_MODELS

NOT_RUN = "not run"
PYTORCH_SOURCE = "64/100 (DLG), 75/100 (iDLG), ten images and networks"

# Zhao, Mopuri & Bilen 2020: label accuracy (table), share of trials with MSE < .01 and < .001 (read off the figure,
# within half a point), in %.
FIDELITY = {
    ("mnist", "dlg"): (89.9, 76.1, 76.0),
    ("mnist", "idlg"): (100, 89.5, 88.4),
    ("cifar100", "dlg"): (83.3, 66.1, 65.3),
    ("cifar100", "idlg"): (100, 83.5, 82.6),
    ("lfw", "dlg"): (79.1, 52.2, 51.5),
    ("lfw", "idlg"): (100, 91.7, 91.1),
}


class Line(NamedTuple):
    item: str
    command: str
    paper: str
    pytorch: str
    ours: str
    where: str  # device and date are in the stored summary


def stored(name: str) -> dict | list | None:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def rate(group: dict) -> str:
    low, high = group["ci95"]
    return f"{group['success_rate']:.3f} [{low:.3f}, {high:.3f}], n = {group['trials']}"


def overall(summary: dict, attack: str) -> dict:
    return next(group for group in summary["groups"] if group["attack"] == attack and group["image"] is None)


def device(summary: dict) -> str:
    return summary["environment"]["device"]


def table1(name: str) -> Line:
    summary = stored(f"kan2022_table1/{name}.json")
    ours, where = NOT_RUN, ""
    if isinstance(summary, dict):
        group = overall(summary, "dlg")
        rates = [g["success_rate"] for g in summary["groups"] if g["image"] is not None]
        means = [g["iterations_mean"] for g in summary["groups"] if g["image"] is not None and g["iterations_n"]]
        ours = f"rate {rate(group)}, per image {min(rates):.2f} to {max(rates):.2f}"
        if means:
            ours += (
                f"; iterations mean {group['iterations_mean']:.1f}, median {group['iterations_median']:.0f} "
                f"(n = {group['iterations_n']}), mean per image {min(means):.0f} to {max(means):.0f}"
            )
        where = device(summary)
    told = "per-trial, our solver `lbfgs`" if name == "lbfgs" else name
    return Line(
        f"Kan et al. 2022, table 1: DLG, LeNet, CIFAR-100, network {told}",
        f"python -m experiments.kan2022_table1 --only {name}",
        "rate 0.68, per image .58 to .78; iterations 94.14, per image 77 to 126 (up to 1,200 iterations)",
        f"{PYTORCH_SOURCE}; mean 77 iterations" if name == "per-image" else "–",
        ours,
        where,
    )


def figures() -> Line:
    summary = stored("kan2022_figures/image-20319.json")
    ours, where = NOT_RUN, ""
    if isinstance(summary, dict):
        ours = "; ".join(f"{name}: rate {rate(overall(summary, name))}" for name in ("dlg", "idlg"))
        ours += " ([figures](results/kan2022_figures))"
        where = device(summary)
    command = "python -m experiments.kan2022_figures"
    return Line("Kan et al. 2022, figures: image 20319, DLG and iDLG", command, "pictures and curves", "–", ours, where)


def nullspace() -> Line:
    summary = stored("kan2022_nullspace/summary.json")
    ours = NOT_RUN
    if isinstance(summary, dict):
        low, high = summary["gradient_change_over_move"]
        ours = (
            f"output changes by at most {summary['largest_output_change']:.1e}, the gradient by "
            f"{low:.6f} to {high:.6f} "
            f"times the move; the input comes back from one gradient within {summary['largest_recovery_error']:.1e} "
            f"(n = {summary['n']}; [figure](results/kan2022_nullspace/nullspace.png))"
        )
    return Line(
        "Kan et al. 2022, section 5: gradient under a move in null(A)",
        "python -m experiments.kan2022_nullspace",
        "unchanged (claim)",
        "–",
        ours,
        "CPU, float64",
    )


def fidelity(dataset: str, attack: str, solver: str = "") -> Line:
    name = f"{dataset}-{solver}" if solver else dataset
    summary = stored(f"idlg_fidelity/{name}.json")
    label, loose, tight = FIDELITY[dataset, attack]
    ours, where = NOT_RUN, ""
    if isinstance(summary, dict):
        from jaxleak import wilson

        group = overall(summary, attack)
        n = group["trials"]

        def share(value: float) -> str:
            low, high = wilson(round(value * n), n)
            return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

        below = group["mse_below"]
        ours = f"label {share(group['label_accuracy'])}; {share(below['0.01'])}; {share(below['0.001'])}; n = {n}"
        where = device(summary)
    told = f", our solver `{solver}`" if solver else ""
    return Line(
        f"iDLG 2020, {attack} on {dataset}{told}: label accuracy; MSE < .01; MSE < .001, in %",
        f"python -m experiments.idlg_fidelity --only {name}",
        f"label {label}; {loose}; {tight}; n = 1,000",
        "–",
        ours,
        where,
    )


def parity(attack: str) -> Line:
    comparison = stored("pytorch_parity/comparison.json")
    theirs = ours = NOT_RUN
    if isinstance(comparison, list):
        row = next(row for row in comparison if row["attack"] == attack)
        medians = row["median_iterations_to_1e-4_over_both"]

        def told(who: str) -> str:
            low, high = row["ci95"][who]
            n = row["trials"][who == "jaxleak"]
            median = "–" if medians[who] is None else f"{medians[who]:g}"
            return f"{row['solved'][who]}/{n} [{low:.2f}, {high:.2f}], median {median} iterations"

        theirs = told("torch")
        ours = f"{told('jaxleak')} (n = {row['solved']['both']} solved by both); Fisher p = {row['fisher_p']:.2f}"
    summary = stored("pytorch_parity/jaxleak.json")
    where = device(summary) if isinstance(summary, dict) else ""
    command = "python -m experiments.pytorch_parity"
    return Line(f"PyTorch parity, {attack}: solved, iterations to 1e-4", command, "–", theirs, ours, where)


def pooled(attack: str, cells: list[dict]) -> str:
    """Solved trials over the data sets, and right labels where they are not all."""
    solved, trials, labels = (sum(cell[key] for cell in cells) for key in ("solved", "trials", "labels_right"))
    low, high = jaxleak.wilson(solved, trials)
    told = f"{attack} {solved}/{trials} [{low:.2f}, {high:.2f}]"
    return f"{told}, label right in {labels}" if attack == "idlg" and labels < trials else told


def solvers(activation: str) -> Line:
    told = stored("solvers/summary.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, list):
        parts = []
        for solver in dict.fromkeys(cell["solver"] for cell in told):
            own = [cell for cell in told if (cell["solver"], cell["activation"]) == (solver, activation)]
            rates = [pooled(attack, [cell for cell in own if cell["attack"] == attack]) for attack in ("dlg", "idlg")]
            parts.append(f"`{solver}` {', '.join(rates) if own else NOT_RUN}")
        ours = "; ".join(parts) + " ([curves](results/solvers))"
        where = told[0]["device"]
    return Line(
        f"Solvers, LeNet with {activation}, network per trial, MNIST, CIFAR-100 and LFW: solved in 6,000 evaluations",
        "python -m experiments.solvers",
        "–",
        "–",
        ours,
        where,
    )


def failures() -> Line:
    told = stored("failures/summary.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        again = told["again"]
        ended = [one["ended"] for one in again]
        right = sum(one["right"] for one in again)
        rules = [told["tanh"][name] for name in told["tanh"]]
        both = {
            r: [sum(rule[r][key] for rule in rules) for key in ("labels_right", "solved", "trials")] for r in rules[0]
        }
        ours = (
            f"run to the end: {right} of {len(again)} right, relative error "
            f"at most {max(one['relative_error'] for one in ended):.2f} (at the stop "
            f"{min(one['stopped']['relative_error'] for one in again):.2f} to "
            f"{max(one['stopped']['relative_error'] for one in again):.2f}; [pictures](results/failures)). "
            f"tanh: label right and solved: iDLG's rule {both['idlg'][0]} and {both['idlg'][1]}, head's bias "
            f"{both['bias'][0]} and {both['bias'][1]} of {both['bias'][2]}"
        )
        where = told["environment"]["device"]
    return Line("Why trials of `lbfgs` fail", "python -m experiments.failures", "–", "–", ours, where)


def precision() -> Line:
    told = stored("precision/summary.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        parts = []
        for dataset in ("mnist", "cifar100", "lfw"):
            cells = [told[f"{dataset}-{stage}"] for stage in ("float32", "float64", "finish")]
            ends = " / ".join(f"{cell['objective'][1]:.0e}, {cell['psnr'][1]:.0f} dB" for cell in cells)
            cost = " / ".join(f"{cell['evaluations'][1]:,.0f}" for cell in cells)
            parts.append(f"{dataset} {ends} after {cost} evaluations")
        ours = f"medians of float32 / float64 / float64 from float32's end: {'; '.join(parts)} (n = "
        ours += f"{told['mnist-float32']['trials']} each; [figure](results/precision/precision.png))"
        where = told["environment"]["device"]
    return Line(
        "Precision: objective and PSNR reached, iDLG, `lbfgs`", "python -m experiments.precision", "–", "–", ours, where
    )


def resnet18_eval() -> Line:
    told, run = stored("resnet18_eval/summary.json"), stored("resnet18_eval/lbfgs.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict) and isinstance(run, dict):
        parts = []
        for name, found in told.items():
            low, high = found["ci95"]
            parts.append(
                f"`{name}`: above 30 dB {found['above_30_dB']}/{found['trials']} [{low:.2f}, {high:.2f}], "
                f"median {found['psnr_quantiles']['0.5']:.1f} dB"
            )
        ours, where = "; ".join(parts), device(run)
    return Line(
        "ResNet-18, width 16, sigmoid, BatchNorm in eval mode, label known: 2,000 evaluations",
        "python -m experiments.resnet18_eval",
        "cannot be inverted (Kan et al. 2022)",
        "–",
        ours,
        where,
    )


def kan_resnet18(width: int) -> Line:
    parts, where = [], ""
    for told in resnet18_cells(width):
        median = f"median {told['psnr_quartiles'][1]:.1f} dB"
        if told["setting"].startswith(("train", "published")) and "lenet" not in told["setting"]:
            median = f"but for contrast and brightness {told['recovered_but_affine']}"
        parts.append(f"`{told['setting']}` {share_solved(told, 'recovered')}, {median}")
        where = told["device"]
    size = "full width" if width == 64 else f"width {width}"
    return Line(
        f"Kan et al. 2022, ResNet-18 ({size}): trials whose image comes back, by setting",
        f"python -m experiments.kan2022_resnet18 --width {width}",
        "no image recovered of 20, 20 starts each",
        "–",
        "; ".join(parts) + " ([figures](results/kan2022_resnet18))" if parts else NOT_RUN,
        where,
    )


def resnet18_cells(width: int) -> list[dict]:
    """What was stored for each setting, in the order of the experiment."""
    files = [f"kan2022_resnet18/{name}-{width}-table.json" for name in kan2022_resnet18.SETTINGS]
    return [told for told in map(stored, files) if isinstance(told, dict)]


def resnet18_table() -> str:
    """The settings of `kan2022_resnet18` with all that was measured, in Markdown."""
    heads = (
        "setting", "width", "images x starts", "evaluations, median",
        "recovered", "but for contrast and brightness", "PSNR in dB, quartiles",
        "error but for these, quartiles", "objective below 1e-4", "relative objective", "label right",
    )  # fmt: skip
    lines = [heads, ["---"] * len(heads)]
    for told in [*resnet18_cells(64), *resnet18_cells(16)]:
        n, psnr, error = told["trials"], told["psnr_quartiles"], told["affine_error_quartiles"]
        shape = {"solved": told["recovered_but_affine"], "trials": n, "ci95": told["ci95_but_affine"]}
        accuracy = f" ({told['accuracy']:.1%} accuracy)" if told["accuracy"] is not None else ""
        lines.append([
            f"`{told['setting']}`{accuracy}", str(told["width"]), f"{told['images']} x {n // told['images']}",
            f"{told['evaluations_median']:,.0f}",
            share_solved(told, "recovered"), share_solved(shape), ", ".join(f"{one:.1f}" for one in psnr),
            ", ".join(f"{one:.2f}" for one in error), f"{told['objective_below_1e-4']}/{n}",
            f"{told['relative_objective_median']:.0e}", f"{told['labels_right']}/{n}",
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if len(lines) > 2 else ""


# Deakin report 2022, as quoted in the comparison papers.
DEAKIN = {
    "lenet": "converges in about 100 steps",
    "resnet18": "needs more than 300 steps; MSE an order above LeNet's",
    "densenet121": "converges in about 50 steps; MSE an order above LeNet's",
    "inception3": "does not converge in 300 steps (batch 2)",
}


def deakin(name: str) -> Line:
    told = stored(f"deakin_models/{name}-table.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        parts = [
            f"{cell['attack']} {share_solved(cell, 'recovered')} (but for contrast and brightness "
            f"{cell['recovered_but_affine']}), median MSE {cell['mse_clipped_median']:.2g}"
            for cell in told["cells"]
        ]
        ours = (
            f"{told['iterations']} iterations, {told['size']} pixels, batch {told['batch']}, {told['parameters']:,} "
            f"parameters: {'; '.join(parts)} ([figure](results/deakin_models/curves.png))"
        )
        where = told["device"]
    command = f"python -m experiments.deakin_models --only {name}"
    return Line(f"Deakin report 2022: DLG on {name}, sigmoids", command, DEAKIN[name], "–", ours, where)


def ig_models() -> Line:
    parts, where = [], ""
    for name in IG_MODELS:
        told = stored(f"ig_models/{name}-table.json")
        if not isinstance(told, dict):
            continue
        accuracy = f", {told['accuracy']:.1%} accuracy" if told["accuracy"] is not None else ""
        if "batch" in told:
            low, middle, high = told["psnr_quartiles"]
            median = f"{told['batch']} images, PSNR {middle:.1f} ({low:.1f} to {high:.1f}) dB"
            median += f", {told['more_than_half_explained']} with over half of their variance explained"
        else:
            median = f"median {told['psnr_median']:.1f} dB of {told['trials']}"
        parts.append(f"`{name}` ({told['parameters']:,} parameters{accuracy}, {told['iterations']:,} steps): {median}")
        where = told["device"]
    return Line(
        "Inverting Gradients on deep networks: cosine, TV, signed Adam",
        "python -m experiments.ig_models",
        "ResNet-18 and 152, trained and not, show recognisable images; of 100 CIFAR-100 images some are recognisable",
        "–",
        "; ".join(parts) + " ([figures](results/ig_models))" if parts else NOT_RUN,
        where,
    )


def stock_model() -> Line:
    told = stored("stock_model/summary.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        ours = "; ".join(
            f"{line['variant']} {line['median']:,.0f} evaluations/s"
            + (f", {line['ratio_median']:.2f} times jaxleak's own" if set(line["ratios"]) != {1.0} else "")
            for line in told["lines"]
        )
        where = told["device"]
    command = "python -m experiments.stock_model"
    return Line("Stock Flax models, attacked as they are", command, "–", "–", ours, where)


def ray_throughput() -> Line:
    told = stored("ray_throughput/summary.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        rates = {name: [one["rate"] for one in rounds] for name, rounds in told["rounds"].items()}
        medians = ", ".join(f"{name} {np.median(rate):,.0f} evaluations/s" for name, rate in rates.items())
        low, high = min(told["ratios"]), max(told["ratios"])
        ours = f"{medians}: {told['ratio_median']:.2f} times [{low:.2f}, {high:.2f}], {len(told['ratios'])} rounds"
        where = told["device"]
    item = "A Ray cluster of two one-core workers beside one process on two cores: DLG, LeNet, network per-trial"
    return Line(item, "python -m experiments.ray_throughput", "–", "–", ours, where)


def report_size() -> Line:
    told = stored("report_size/sizes.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        pages = {int(name.split()[0]): page for name, page in told.items() if name.endswith("runs")}
        ours = "; ".join(
            f"{count}: {page['megabytes']:.1f} MB, first paint {page['first_paint_seconds']['median']:.1f} s, curves "
            f"drawn {page['ready_seconds']['median']:.1f} s, written in {page['write_seconds']:.0f} s"
            for count, page in pages.items()
        )
        ours += f" ({told['trials_per_run']} trials a run, load {told['load_average']:.1f})"
        where = f"{told['cores']} CPU cores, Chromium {told['chromium'].split('.')[0]}"
    item = "The page of 1, 10 and 100 runs: size, and medians until it opens"
    return Line(item, "python -m experiments.report_size --run RUN", "–", "–", ours, where)


def clusters_table() -> str:
    """The simulated clusters in Markdown."""
    told = stored("clusters/simulation.json")
    if not isinstance(told, dict):
        return ""
    lines: list[tuple[str, ...]] = [
        ("sweep", "workers", "cluster", "hours", "efficiency", "driver busy", "trials begun again", "lost")
    ]
    lines.append(("---",) * len(lines[0]))
    for one in told["lines"]:
        lines.append((
            one["sweep"], f"{one['workers']:,}", one["cluster"], f"{one['seconds'] / 3600:.2f}",
            f"{one['efficiency']:.3f}", f"{one['driver_share']:.2f}", f"{one['repeated']:,}", f"{one['lost']:,}",
        ))  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def share_solved(cell: dict, key: str = "solved") -> str:
    low, high = cell["ci95"]
    return f"{cell[key]}/{cell['trials']} [{low:.2f}, {high:.2f}]"


def cpl_starts(dataset: str) -> Line:
    told = stored(f"cpl_starts/{dataset}-starts.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        parts = []
        for cell in told["starts"]:
            middle = f", median {cell['iterations_quartiles'][1]:.0f}" if cell["iterations_quartiles"] else ""
            parts.append(f"{cell['attack']} {share_solved(cell)}{middle}")
        ours = "; ".join(parts) + " ([figures](results/cpl_starts))"
        where = told["device"]
    return Line(
        f"CPL's figures 5, 6, 7 and 9 (Sirpurkar 2021): starts on {dataset}, solved, iterations to 1e-4",
        f"python -m experiments.cpl_starts --only {dataset}",
        "a 16x16 tile needs fewer iterations than N(0, 1) pixels (Wei et al. 2020; curves, no rates)",
        "torch, one image (shared notebooks): tile to 1.3e-3 in 16 iterations, N(0, 1) to 3e-4 in 100",
        ours,
        where,
    )


def cpl_vs_dlg(name: str) -> Line:
    told = stored(f"cpl_vs_dlg/{name}-table.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        parts = []
        for cell in told["attacks"]:
            median = cell["threshold_iterations_median"]
            parts.append(
                f"{cell['attack']} {share_solved(cell)}, "
                + (f"median {median:.0f} iterations, " if median else "")
                + f"SSIM {cell['ssim']['mean']:.3f}, median MSE {cell['mse']['median']:.0e}"
            )
        ours = "; ".join(parts) + " ([figure](results/cpl_vs_dlg))"
        where = told["device"]
    dataset, _, solver = name.partition("-")
    return Line(
        f"CPL and DLG on the same images, {dataset}{', torch-lbfgs' if solver else ''}",
        f"python -m experiments.cpl_vs_dlg --only {name}",
        "CPL succeeds more often and sooner than DLG (Wei et al. 2020)",
        "–",
        ours,
        where,
    )


# Geiping et al. 2020, table 1: mean and standard deviation, as quoted by others and recalled.
IG_PAPER = {
    "untrained": "cosine, signed Adam 18.00 ± 3.33; L2, L-BFGS 46.25 ± 12.66",
    "trained": "cosine, signed Adam 18.08 ± 4.27; L2, L-BFGS 13.24 ± 5.44",
    "restarts": "–",
}


def inverting_gradients(name: str) -> Line:
    told = stored(f"inverting_gradients/{name}-psnr.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        if name == "restarts":
            parts = [
                f"{cell['restarts']}: selected {cell['selected']['mean']:.2f} ± {cell['selected']['sd']:.2f}, "
                f"oracle {cell['oracle']['mean']:.2f} ± {cell['oracle']['sd']:.2f}"
                for cell in told["attacks"]
            ]
            ours = f"{'; '.join(parts)} (n = {told['attacks'][0]['selected']['n']} images)"
        else:
            parts = [f"{cell['attack']} {cell['mean']:.2f} ± {cell['sd']:.2f}" for cell in told["attacks"]]
            ours = f"{'; '.join(parts)} (n = {told['attacks'][0]['n']}; [figures](results/inverting_gradients))"
        where = told["device"]
    what = "ig with TV 0.01, restarts, PSNR in dB" if name == "restarts" else f"{name} LeNet, PSNR in dB, one restart"
    return Line(
        f"Inverting Gradients, table 1: {what}",
        f"python -m experiments.inverting_gradients --only {name}",
        IG_PAPER[name],
        "–",
        ours,
        where,
    )


def batches(size: int) -> Line:
    told = stored(f"batches/batch-{size}-table.json")
    ours, where = NOT_RUN, ""
    if isinstance(told, dict):
        parts = [
            f"{cell['attack']} all images {share_solved(cell)}, images {cell['images_recovered']}/{cell['images']}, "
            f"labels {cell['labels_right']}/{cell['images']}, median {cell['psnr_median']:.1f} dB"
            for cell in told["attacks"]
        ]
        ours = "; ".join(parts) + f" ([pictures](results/batches/batch-{size}.png))"
        where = told["device"]
    iterations = {1: 270, 2: 602, 4: 1173, 8: 2711}[size]
    return Line(
        f"Batch of {size} CIFAR-100 image{'s' if size > 1 else ''}, distinct labels, LeNet, 300 iterations",
        f"python -m experiments.batches --only batch-{size}",
        f"recovered in {iterations:,} iterations on another network (DLG)",
        "–",
        ours,
        where,
    )


# Sirpurkar 2021, table 1: SSIM / MSE by client iterations and batch.
CLIENT_STEPS = {
    1: {1: ".5954/.005", 5: ".1218/.0486", 10: ".0813/.0666", 20: ".0384/.0855"},
    2: {1: ".315/.0144", 5: ".0547/.0964", 10: ".0401/.1178", 20: ".0264/.3639"},
    5: {1: ".1535/.0357", 5: ".0421/.161", 10: ".0297/.2115", 20: ".0188/.3751"},
    10: {1: ".1227/.0458", 5: ".0411/.0897", 10: ".0233/.0886", 20: ".0192/.0973"},
    20: {1: ".1206/.0452", 5: ".0504/.0663", 10: ".0467/.0709", 20: ".0289/.1004"},
    50: {1: ".1039/.0495", 5: ".0226/.1288", 10: ".0135/.1724", 20: ".0084/.2812"},
}


def client_steps(kind: str) -> Line:
    paper, found, where = [], [], ""
    for steps, cells in CLIENT_STEPS.items():
        paper.append(f"{steps} steps: " + ", ".join(f"{batch}: {published}" for batch, published in cells.items()))
        parts = []
        for batch in cells:
            told = stored(f"batch_and_client_steps/{kind}-{batch}-{steps}-cell.json")
            if isinstance(told, dict):
                ssim, mse = told["ssim"], told["mse_clipped"]
                spread = [f"{one['mean']:.3f} ± {one['half_width']:.3f}" for one in (ssim, mse)]
                parts.append(f"{batch}: {'/'.join(spread)} (n = {told['trials']})")
                where = told["device"]
        if parts:
            found.append(f"{steps} steps: " + ", ".join(parts))
    return Line(
        f"Sirpurkar 2021, table 1, `{kind}`: client iterations, batch: SSIM/MSE",
        "python -m experiments.batch_and_client_steps",
        "; ".join(paper),
        "–",
        "; ".join(found) or NOT_RUN,
        where,
    )


def resolution(size: int) -> Line:
    parts, where = [], ""
    for channels in (12, 24, 48):
        told = stored(f"resolution/{size}-{channels}-table.json")
        if isinstance(told, dict):
            cells = [f"{c['attack']} {share_solved(c)}, median {c['psnr_median']:.1f} dB" for c in told["attacks"]]
            parts.append(f"{channels} channels: {'; '.join(cells)}")
            where = told["device"]
    return Line(
        f"Sirpurkar 2021, figure 10: LFW at {size} pixels, solved and PSNR",
        f"python -m experiments.resolution --only {' '.join(f'{size}-{channels}' for channels in (12, 24, 48))}",
        "pictures",
        "–",
        "; ".join(parts) or NOT_RUN,
        where,
    )


def defences(kind: str) -> Line:
    from experiments.defences import STRENGTHS

    names = [text.replace(":", "-") or "none" for text in STRENGTHS[kind]]
    found = [told for name in names if isinstance(told := stored(f"defences/{name}-rates.json"), dict)]
    ours, where = NOT_RUN, ""
    if found:
        parts = []
        for told in found:
            back = ", ".join(f"{name} {share_solved(cell, 'recovered')}" for name, cell in told["attacks"].items())
            parts.append(f"`{told['text'] or 'none'}` {back}, accuracy {told['accuracy']:.3f}")
        ours, where = "; ".join(parts), found[0]["device"]
    paper = {"gaussian": "variance 1e-2 defends, 1e-3 does not", "prune": "above 20 % defends"}
    paper |= {"laplace": paper["gaussian"], "precision": "fp16 does not defend, int8 does"}
    return Line(
        f"Defence {kind}: recovered trials, and MNIST accuracy when trained so",
        f"python -m experiments.defences --only {kind}",
        f"{paper[kind]} (DLG)" if kind in paper else "–",
        "–",
        ours,
        where,
    )


VARIANTS = {
    "jaxleak": "network shared",
    "jaxleak-network-per-trial": "network per-trial",
    "jaxleak-lbfgs": "network shared, our solver `lbfgs`",
    "jaxleak-cosine": "attack `ig`, network shared",
}


def throughput(model: str) -> Line:
    report = stored(f"throughput/{model}.json")
    theirs = ours = NOT_RUN
    what, where = {"lenet": "LeNet, DLG, L-BFGS with history 100", "resnet18": "ResNet-18, DLG, Adam"}[model], ""
    if isinstance(report, dict):
        rates = {row["name"]: row["evaluations_per_second"] for row in report["variants"]}
        told = {
            "pytorch-processes": "one process per core, summed",
            "pytorch-serial": "one process",
            "pytorch-vmap": "torch.func.vmap, one process per core, summed",
            "pytorch-cosine-processes": "Inverting Gradients, one process per core, summed",
        }
        theirs = "; ".join(f"{rates[name]:,.0f} evaluations/s ({how})" for name, how in told.items() if rates.get(name))
        parts = []
        for name, ratios in report["ratios"].items():
            times = ", ".join(f"{ratio:.1f} times {other}" for other, ratio in ratios.items())
            parts.append(f"{VARIANTS[name]}: {rates[name]:,.0f} evaluations/s, {times}")
        settings = report["settings"]
        ours = f"{'; '.join(parts)} (medians of {settings['rounds']} interleaved rounds)"
        what += "" if model == "lenet" else f", width {settings['width']}"
        where = report["device"]
    command = f"python -m experiments.throughput --models {model}"
    return Line(f"Throughput: {what}, whole step", command, "–", theirs, ours, where)


LINES: list[Callable[[], Line]] = [
    lambda: table1("per-trial"),
    lambda: table1("per-image"),
    lambda: table1("lbfgs"),
    figures,
    nullspace,
    *[lambda key=key, solver=solver: fidelity(*key, solver) for key in FIDELITY for solver in ("", "lbfgs")],
    *[lambda name=name: cpl_starts(name) for name in ("lfw", "cifar100")],
    *[lambda name=name: cpl_vs_dlg(name) for name in ("lfw", "lfw-torch", "cifar100", "cifar100-torch")],
    *[lambda name=name: inverting_gradients(name) for name in IG_PAPER],
    *[lambda size=size: batches(size) for size in (1, 2, 4, 8)],
    lambda: client_steps("cpl"),
    lambda: client_steps("scaled"),
    lambda: client_steps("joint"),
    *[lambda size=size: resolution(size) for size in (32, 64, 128)],
    *[
        lambda kind=kind: defences(kind)
        for kind in ("none", "gaussian", "laplace", "prune", "prune-layer", "precision", "clip", "dp-sgd")
    ],
    resnet18_eval,
    lambda: kan_resnet18(64),
    lambda: kan_resnet18(16),
    *[lambda name=name: deakin(name) for name in DEAKIN],
    ig_models,
    stock_model,
    ray_throughput,
    report_size,
    *[lambda name=name: solvers(name) for name in ("sigmoid", "relu", "tanh")],
    failures,
    precision,
    lambda: parity("dlg"),
    lambda: parity("idlg"),
    lambda: throughput("lenet"),
    lambda: throughput("resnet18"),
]

HEADER = """# Experiments

One file is one table or figure of a paper. This page is written by `python -m experiments.index` from the rows and
summaries under `results/`; nobody types a number of ours by hand. Brackets are 95 % Wilson intervals.

The commands read prepared CIFAR-100, MNIST and LFW from `--data-dir` (or `$JAXLEAK_DATA_DIR`), are run from the
project's root, resume where they were stopped, and write run directories under `runs/` and small results here.
PyTorch's figures are measured with the original procedure (torch 2.13, CPU). The papers' shares at MSE thresholds are
read off a figure.

"""
COLUMNS = """| item | command | paper | PyTorch | jaxleak | device |
|---|---|---|---|---|---|
"""
TABLES = {  # where they stand in NOTES.md
    "<!-- kan2022_resnet18 -->\n": resnet18_table,
    "<!-- clusters -->\n": clusters_table,
}
PROJECT = HERE.parent / "README.md"


def table() -> str:
    rows = [make() for make in LINES]
    cells = [[row.item, f"`{row.command}`", row.paper, row.pytorch, row.ours, row.where or "–"] for row in rows]
    return COLUMNS + "".join(f"| {' | '.join(cell)} |\n" for cell in cells)


def page() -> str:
    """experiments/README.md as the stored results have it."""
    notes = (HERE / "NOTES.md").read_text()
    for mark, make in TABLES.items():
        notes = notes.replace(mark, make())
    return HEADER + table() + "\n" + notes


def marks(name: str) -> tuple[str, str]:
    """Between which a part of the project's README is written."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def project_page() -> str:
    """The project's README with what is between its marks as the code and the stored results have it."""
    content = PROJECT.read_text()
    results = table().replace("](results/", "](experiments/results/")
    for name, part in (("options", options.section()), ("results", results)):
        begin, end = marks(name)
        before, rest = content.split(begin)
        content = f"{before}{begin}\n\n{part}\n{end}{rest.split(end)[1]}"
    return content


def main() -> None:
    pages = {HERE / "README.md": page(), PROJECT: project_page()}
    for path, content in pages.items():
        if "--check" not in sys.argv:
            path.write_text(content)
        elif path.read_text() != content:
            sys.exit(f"{path.name} is not what the code and the stored results say; run `python -m experiments.index`")


if __name__ == "__main__":
    main()
