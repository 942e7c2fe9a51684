"""What the text of README.md and experiments/README.md says of stored rows, computed again from them.

Each function yields the phrases that the text of one experiment must contain, with its figures computed here. A
paragraph with a figure in it has such a phrase, or begins as one of `WITHOUT_ROWS`.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from scipy import stats

from tests.independent_results import (
    CPL_FIGURES,
    IG_MODELS,
    RECOVERED,
    SOLVERS,
    Stored,
    area,
    cpl_points,
    first_images,
    ig_study,
    interval,
    mean_interval,
    moved,
    over,
    parity_cells,
    parity_trials,
    plus_minus,
    ray_rates,
    risk_points,
    solved_iterations,
    solver_rows,
    zoo_rate,
)
from tests.independent_results import peers as compare_peers

# Measurements whose rows are not kept, and texts about code, networks or versions; by their first words.
WITHOUT_ROWS = (
    *("**Labels of batches.**", "**What was tried and left out.**", "**Throughput.**", "**The GPU's program.**"),
    *("The L-BFGS step is bound by memory", "The same count of the program before"),
    *("Eight steps run between two questions", "**Sampling alone, and refined.**", "**XLA's pool of one thread.**"),
    *("**What compiling costs.**", "**Compiled programs are not kept"),
    *(
        "**Which code the rows come from.**",
        "**Only arrays that are mostly zero",
        "**Tests compile quickly.**",
        "- **",
        "**The embedding's own equations.**",
    ),
    *("One file is one table", "The commands read prepared", "- Brackets are", "Measurements behind decisions in the"),
)
STAGES = ("untrained", "epoch", "trained")  # of the leak map
Phrases = Iterator[str]
TEXTS: list[Callable[[Stored], Phrases]] = []


def text(function: Callable[[Stored], Phrases]) -> Callable[[Stored], Phrases]:
    TEXTS.append(function)
    return function


def of(rows: pd.DataFrame, attack: str) -> pd.DataFrame:
    return rows[rows.attack == attack]


def whole(values: pd.Series) -> str:
    """The median as people write it: 78, 43.5."""
    return f"{values.median():g}"


def times(rows: pd.DataFrame, others: pd.DataFrame) -> tuple[int, float, int]:
    """Of trials that both solve: how many, the geometric mean of evaluations over the others'; and by how many not."""
    keys = ["attack", "dataset", "image"]
    both = rows.merge(others, on=keys, suffixes=("", "_other"), validate="one_to_one")
    shared = both[both.solved & both.solved_other]
    ratio = np.exp(np.log(shared.threshold_evaluations / shared.threshold_evaluations_other).mean())
    return len(shared), float(ratio), int((both.solved != both.solved_other).sum())


@text
def leak_map(stored: Stored) -> Phrases:
    rows = stored.lines("leak_map/cells").set_index("cell")
    good, median = rows.psnr.map(lambda psnr: int(np.sum(np.array(psnr) > 20))), rows.psnr.map(np.median)
    closed = rows[rows.attack.isin(["analytic", "spear", "april"])].index
    assert (good[closed] == 40).all()
    yield f"all {good[closed].sum()} images of {len(closed)} cells"

    def both(network: str, rest: str) -> str:
        return " and ".join(str(good[f"{network}-{training}-{rest}"]) for training in ("untrained", "trained"))

    batches = [both("lenet-sigmoid", f"b{batch}-s0-none") for batch in (1, 2, 8)]
    yield f"sigmoids gives away {batches[0]} of 40 images"
    yield f"in batches of two {batches[1]}, of eight {batches[2]}."
    weak, strong = (both("lenet-sigmoid", f"b1-s0-{noise}") for noise in ("weak", "strong"))
    yield f"With weak noise it is {weak}, with strong noise {strong} ("
    relu = {
        rest: [good[f"lenet-relu-{training}-{rest}"] for training in STAGES] for rest in ("b1-s5-none", "b1-s0-weak")
    }
    yield "{} of 40 untrained, {} after an epoch and {} after four; through".format(*relu["b1-s5-none"])
    yield "250 find {}, {} and {}.".format(*relu["b1-s0-weak"])
    deep = rows.network.isin(["vgg", "convnet-eval", "convnet-train", "resnet-eval", "resnet-train", "preact-train"])
    assert deep.sum() == 6
    assert (good[deep] == 0).all()
    yield f"softplus gives away {good['resnet-softplus-untrained-b1-s0-none']} of 40 after 600"
    for network, name in (("convnet", "of the ConvNet"), ("resnet", "of ResNet-8")):
        evaluation, train = (median[f"{network}-{mode}-untrained-b1-s0-none"] for mode in ("eval", "train"))
        yield f"{evaluation:.1f} and {train:.1f} dB {name}"
    yield f"ends at {median['preact-train-untrained-b1-s0-none']:.1f} dB after 150 evaluations"


@text
def deep_steps(stored: Stored) -> Phrases:
    shares, rates, others = [], [], []
    for name in ("resnet18-64", "convnet-64"):
        told = stored.json(f"deep_steps/{name}")
        products = pd.DataFrame(told["ours"]["products"])
        whole_step = products.seconds.sum() + sum(told["ours"]["rest"].values())
        shares.append(f"{products.seconds.sum() / whole_step:.0%}")
        rates.append(f"{products.flops.sum() / products.seconds.sum() / 1e9:.0f}")
        others.append(f"{1e3 * told['pytorch']['convolutions']:.0f}")
    yield f"the products of its convolutions take {shares[0]} of the time of the"
    yield f"parts, at {rates[0]} GFLOP/s; the ConvNet's take {shares[1]}, at {rates[1]}. PyTorch's step, its"
    yield f"convolutions alone, takes {others[0]} and {others[1]} ms"


@text
def peers(stored: Stored) -> Phrases:
    rows = stored.lines("peers/images")
    psnr = rows.groupby(["setting", "attack"]).psnr.median().unstack()
    evaluations = rows.groupby(["setting", "attack"]).evaluations.median().unstack()
    better = psnr.drop(columns="best").idxmax(axis=1)
    ahead = {name: psnr.best[name] - psnr[peer][name] for name, peer in better.items()}
    more = [evaluations.best[name] / evaluations[peer][name] for name, peer in better.items() if name != "lenet 1"]
    assert len(ahead) == 10
    assert sum(gap > 0 for gap in ahead.values()) == 8
    yield f"by {ahead['lenet 1']:.1f} dB of the medians on LeNet"
    conv = [ahead[f"convnet {name}"] for name in ("1", "train 4", "4", "8")]
    yield "by {:.1f}, {:.1f}, {:.1f} and {:.1f} dB on the ConvNet with one image".format(*conv)
    yield f"by {ahead['resnet18 1']:.1f} dB on ResNet-18"
    trained = [ahead[f"{name} trained 1"] for name in ("convnet", "resnet20-4")]
    yield "by {:.1f} and {:.1f} dB on the trained ConvNet".format(*trained)
    behind = [-ahead[f"resnet20-4 {images}"] for images in (1, 4)]
    yield "by {:.1f} dB with one image and {:.1f} with four".format(*behind)
    yield f"make {min(more):.1f} to {max(more):.1f} times as many evaluations"
    yield f"{rows.budget.unique().item():.0f} seconds of a core for an update, eight"
    accuracy = rows.dropna(subset="accuracy").groupby("setting").accuracy.first()
    yield "{:.0f} and {:.0f} % accuracy".format(
        *(100 * accuracy[f"{name} trained 1"] for name in ("convnet", "resnet20-4"))
    )
    bounds = [json.loads(row[7]) for row in compare_peers(stored) if row[1] == "`best`"]
    assert sum(low <= 0 <= high for low, high in bounds) == 7
    yield "seven of the ten intervals include 0"


@text
def best(stored: Stored) -> Phrases:
    rows = stored.lines("best/images")
    pairs = []
    for setting in ("resnet20-4", "lenet-relu"):
        own = rows[rows.setting == setting].pivot(index=["image", "slot"], columns="attack", values="psnr")
        pairs.append((own["best"] - own["lbfgs-0.03"]).dropna())
    assert {len(ahead) for ahead in pairs} == {20}
    yield "{:.1f} and {:.1f} dB ahead in the paired medians".format(*(ahead.median() for ahead in pairs))
    yield "paired medians, p = {:.2f} and {:.2f})".format(*(stats.wilcoxon(ahead).pvalue for ahead in pairs))
    few = rows[(rows.setting == "resnet20-4") & (rows.attack == "best")]
    yield f"(`best` with 300: {few.psnr.median():.1f})"
    long = rows[rows.setting == "resnet20-4-long"].groupby("attack").psnr.median()
    yield f"end no higher than 300, at {long['best']:.1f} dB; divided"
    yield f"whose mean is taken, they reach {long['mean-of-4']:.1f} dB"


@text
def generator(stored: Stored) -> Phrases:
    rows = stored.lines("generator/runs")
    assert set(rows.pictures) == {100}
    share = f"{rows.recognised.min()} to {rows.recognised.max()} of 100"
    yield f"After {rows.rounds.unique().item()} rounds a judge takes {share}"
    yield f"at most {rows.untrained.max()} of an untrained generator's"
    close, apart, found = (rows[key].map(np.median) for key in ("private", "other", "originals"))
    yield f"(median of the five digits {close.median():.1f} dB)"
    yield f"that nobody trained on ({apart.median():.1f} dB)"
    every = np.concatenate(rows.originals.tolist())
    yield f"iDLG gives back {(every > 20).sum()} of {len(every)} originals"
    yield f"medians by digit at {found.min():.1f} to {found.max():.1f} dB"


@text
def gradinversion(stored: Stored) -> Phrases:
    rows = stored.lines("gradinversion/images")
    updates = rows[rows.slot == 0].groupby(["batch", "attack"])
    psnr, good = rows.groupby(["batch", "attack"]).psnr, rows.assign(good=rows.psnr > 20).groupby(["batch", "attack"])
    median, above, n = psnr.median(), good.good.sum(), psnr.count()
    apart, left = updates.affine_error.median(), updates.relative_objective.median()
    one = median[1]
    yield f"a median of {one.published:.1f} dB with the statistics and {one['without-statistics']:.1f} without"
    yield f"at {one['published-long']:.1f} after ten times"
    yield f"when {above[1, 'published-long']} of {n[1, 'published-long']} images is above 20 dB"
    yield f"errors of {apart[1, 'published']:.2f} and {apart[1, 'without-statistics']:.2f} are left"
    pairs = [(median[batch, "published"], median[batch, "without-statistics"]) for batch in (4, 8)]
    yield "ends at {:.1f} dB with the statistics and {:.1f} without, and at {:.1f} and {:.1f};".format(
        *pairs[0], *pairs[1]
    )
    yield f"{left[4, 'published']:.2f} of the update is left against {left[4, 'without-statistics']:.2f} of four images"
    yield f"leaves {left[1, 'lbfgs']:.0e} of one image's".replace("e-0", "e-")
    yield f"update instead of {left[1, 'published']:.0e}".replace("e-0", "e-")
    yield f"ends at {one.lbfgs:.1f} dB, with {above[1, 'lbfgs']} of {n[1, 'lbfgs']} images above 20"
    yield f"of two and four images it ends at {median[2, 'lbfgs']:.1f} and {median[4, 'lbfgs']:.1f}"
    yield "ends at {:.1f}, {:.1f}, {:.1f} and {:.1f} dB".format(*(median[b, "lbfgs-statistics"] for b in (1, 2, 4, 8)))
    yield f"Of eight images L-BFGS ends at {median[8, 'lbfgs']:.1f} dB without them,"
    yield f"below the preset's {median[8, 'published']:.1f}"
    others = ["without-tv", "without-norm", "hundredth"]
    yield f"by at most {max((median[b][others] - median[b].published).abs().max() for b in (1, 2, 4, 8)):.1f} dB"
    worth = [median[batch, "published"] - median[batch, "without-consistency"] for batch in (1, 2, 4, 8)]
    yield "is worth {:.1f} dB for one image, {:.1f} for two, {:.1f} for four and {:.1f} for eight".format(*worth)
    moved = max(abs(median[batch, "registered"] - median[batch, "published"]) for batch in (1, 2, 4, 8))
    assert moved <= 0.01
    yield "changes no median by more than 0.01 dB"
    right = rows[rows.slot == 0].groupby(["batch", "attack"]).labels_right.sum()
    assert (right[1] == 8).all()
    assert all((right[batch] == 15).all() for batch in (2, 4, 8))
    yield "reads 8 of 8 labels of single images and 15 of 16 in batches of two, four and eight"
    yield f"300 iterations are {300 / 20_000:.1%} of the paper's".replace("%", " %")


# --- Kan et al. ---


def two_shares(which: pd.Series, share: float, n: int) -> float:
    """The z-test of two proportions, the second one of `n`."""
    pooled = (which.sum() + share * n) / (len(which) + n)
    error = np.sqrt(pooled * (1 - pooled) * (1 / len(which) + 1 / n))
    return float(2 * stats.norm.sf(abs(which.mean() - share) / error))


@text
def kan_table1(stored: Stored) -> Phrases:
    trial, image, ours = (stored.rows(f"kan2022_table1/{name}") for name in ("per-trial", "per-image", "lbfgs"))
    for rows, form in ((trial, ".2f"), (image, ".0e")):
        counts = rows.groupby("image").success.sum()
        p = stats.chi2_contingency([counts, 50 - counts]).pvalue
        test = "chi-square p" if rows is trial else "p"
        yield f"({counts.min()} to {counts.max()} of 50, {test} = {p:{form}})"
    solved, n = int(trial.success.sum()), len(trial)
    p = two_shares(trial.success, 0.68, n)
    yield f"{solved} of {n:,} against 0.68 of {n:,} gives p = {p:.2f} (two proportions)"
    yield f"Of the failures {100 * (trial[~trial.success].status == 'diverged').mean():.0f} % diverge"
    early = trial.success[trial.seed < 20]
    yield f"of our first 20 seeds {early.sum()} of {len(early)} trials are solved, against 0.68 of 400"
    yield f"against 0.68 of 400 (p = {two_shares(early, 0.68, 400):.2f})"
    limit = int((trial.status == "iteration-limit").sum())
    yield f"most others, {limit} trials, run into the iteration limit"
    long = stored.rows("kan2022_table1/per-trial-1200")
    count, needed = int(long.success.sum()), long.threshold_iterations[long.success]
    p = two_shares(long.success, 0.68, n)
    yield f"(`per-trial-1200`) {count} of {len(long):,} trials are solved (p = {p:.2f})"
    yield f"in a mean of {needed.mean():.1f} iterations where the paper has 94.14"
    late = needed[needed > 300]
    yield f"{len(late)} of them take {late.min():.0f} to {late.max():.0f} iterations"
    yield f"and {(long.status == 'iteration-limit').sum()} run into that limit too"
    evaluations = [rows.threshold_evaluations[rows.success].median() for rows in (ours, trial)]
    count = int(ours.success.sum())
    yield f"{count} of the {len(ours):,} trials ({ours.success.mean():.3f} {interval(count, len(ours), 3)})"
    yield f"instead of {solved}, median {evaluations[0]:,.0f} evaluations to 1e-4"
    yield f"over the solved ones instead of {evaluations[1]:,.0f}, nothing diverges, every label is right"
    assert ours.label_correct.all(), "table 1: not every label is right"
    assert not (ours.status == "diverged").any(), "table 1: a trial diverges"
    relative = stored.rows("kan2022_table1/lbfgs-relative")
    (slow,) = relative[~relative.success].itertuples()
    assert slow.iterations == 300
    yield f"it solves {int(relative.success.sum())} of {len(relative):,}"
    yield f"(image {slow.image}, seed {slow.seed}) is slow, not stuck: it is at {slow.psnr:.1f} dB"
    engine = stored.json("kan2022_table1/per-trial")["engine"]
    used = 100 * engine["utilisation"]
    yield f"{engine['seconds']:.0f} s on two cores beside the test suite, utilisation {used:.1f} %"
    yield f"time outside compiled calls {100 * engine['host_share']:.2f} %"


@text
def resnet18_eval(stored: Stored) -> Phrases:
    ours, theirs = (stored.rows(f"resnet18_eval/{name}") for name in ("lbfgs", "torch-lbfgs"))
    psnr = ours.psnr
    assert ours.evaluations.min() > 2000, "resnet18_eval: a trial of lbfgs ends early"
    yield f"{(psnr > 30).sum()} of {len(ours)} trials"
    yield f"{psnr.min():.1f} to {psnr.max():.1f}, median {psnr.median():.1f}"
    yield f"trials ends at {theirs.psnr.min():.0f} to {theirs.psnr.max():.0f} dB, none above 30"
    assert theirs.psnr.max() < 30, "resnet18_eval: a trial of torch-lbfgs is above 30 dB"


@text
def kan_resnet18(stored: Stored) -> Phrases:
    def rows(name: str, width: int = 16) -> pd.DataFrame:
        return stored.rows(f"kan2022_resnet18/{name}-{width}")

    def back(name: str, width: int = 16, key: str = "relative_error") -> int:
        return int((rows(name, width)[key] < RECOVERED).sum())

    full = rows("eval-softplus-torch", 64)
    yield f"all {len(full)} trials ({full.image.nunique()} images, two starts each) come back, at {full.psnr.min():.0f}"
    yield f"to {full.psnr.max():.0f} dB after {full.evaluations.max()} evaluations"
    engine = stored.json("kan2022_resnet18/eval-softplus-torch-64")["engine"]
    yield f"in {(engine['seconds'] + engine['compile_seconds']) / 60:.0f} minutes on two cores"
    yield f"where that succeeds ({back('published-lenet', 64)} of 6)"
    assert back("eval-softplus-torch", 64) == len(full), "full width: not all come back"
    best = rows("eval", 64).psnr.nlargest(3)
    yield f"the three best end at {best.min():.0f} to {best.max():.0f} dB"
    errors, spent = (rows("train-softplus-torch", 64)[key] for key in ("affine_error", "evaluations"))
    assert (len(errors), (errors < RECOVERED).sum()) == (6, 6), "full width, train mode: not all come back"
    yield f"back but for these after {spent.max():,} evaluations, with errors of {errors.median():.4f}"
    yield f"({errors.min():.4f} to {errors.max():.4f})"
    published = rows("published")
    met = int((published.objective < 1e-4).sum())
    counts = published.evaluations
    yield f"ends {met} of {len(published)} trials below the published objective of 1e-4"
    yield f"a median of {counts.median():.0f} evaluations ({counts.min()} to {counts.max():,}), at a median of"
    yield f"{published.psnr.median():.1f} dB, no image recovered"
    assert back("published") == 0, "the published attack recovers an image"
    yield f"of which it recovers {back('published-lenet')} of 80"
    known = rows("published-idlg")
    assert back("published-idlg") == 0, "iDLG's published attack recovers an image"
    yield f"iDLG's (`published-idlg`) ends {(known.objective < 1e-4).sum()} of {len(known)} trials there as well"
    yield f"{(known.evaluations == 1).sum()} after one evaluation: with the label right, which it is in"
    yield f"all {known.label_correct.sum()}, noise itself has an objective of {known.objective.median():.0e} (median)"
    assert known.label_correct.all(), "iDLG's published attack on ResNet-18: a wrong label"
    deeper = rows("published-34")
    assert back("published-34") == 0, "the published attack on ResNet-34 recovers an image"
    yield f"On ResNet-34 ({deeper.image.nunique()} images, one start each, to bound the time) DLG ends"
    yield f"{(deeper.objective < 1e-4).sum()} of {len(deeper)} below 1e-4 after a median of"
    yield f"{deeper.evaluations.median():g} evaluations ({deeper.evaluations.min()} to {deeper.evaluations.max():,})"
    yield f"at {deeper.psnr.median():.1f} dB, and on ResNet-50"
    deepest = rows("published-50")
    assert back("published-50") == 0, "the published attack on ResNet-50 recovers an image"
    met = deepest.objective < 1e-4
    counts, others = deepest.evaluations[met], deepest[~met]
    yield f"on ResNet-50 {met.sum()} of {len(deepest)} after {counts.median():g} ({counts.min()} to {counts.max()})"
    yield f"no image recovered; the {WORDS[len(others)]} others end at {others.objective.min():.1e}"
    yield f"to {others.objective.max():.1e}, {WORDS[(others.status == 'stalled').sum()]} of them where"
    full = rows("published", 64)
    assert back("published", 64) == 0, "the published attack at full width recovers an image"
    ended = [WORDS[(full.status == status).sum()] for status in ("stalled", "iteration-limit")]
    yield f"({full.image.nunique()} images, one start each) {(full.objective < 1e-4).sum()} of {len(full)} trials end"
    yield f"below 1e-4, {ended[0]} where the solver cannot move any more and {ended[1]} at the limit"
    counts = full.evaluations
    yield f"after a median of {counts.median():g} evaluations ({counts.min()} to {counts.max():,}) and at"
    yield f"and at {full.psnr.median():.1f} dB; no image is recovered there, either"
    uniform = rows("train-uniform")
    yield f"goes on to {uniform.relative_objective.median():.0e} of the update, and"
    yield f"{back('train-uniform', key='affine_error')} of 80 images come back but for contrast"
    medians = [rows(name).psnr.median() for name in ("eval", "eval-softplus-torch")]
    yield f"at medians of {medians[0]:.0f} and {medians[1]:.0f} dB"
    assert {back("eval"), back("eval-softplus-torch")} == {80}, "evaluation mode: not all 80 come back"
    yield f"After 400 evaluations {back('eval-joint')} come back where the label is optimised too"
    yield f"{back('eval-absolute')} where the objective is absolute, and {back('eval-per-tensor')} where"
    assert {rows(f"eval-{name}").evaluations.max() for name in ("joint", "absolute", "per-tensor")} == {400}
    train = [back(name, key="affine_error") for name in ("train", "train-torch", "train-softplus-torch")]
    yield f"after 800 evaluations {min(train)} to {max(train)} of 80 (two settings of them measured tensor by tensor)"
    flat = rows("eval-torch")
    yield f"({back('eval-torch')} of 80), where the gradient hardly depends"
    yield f"float32's end, {flat.relative_objective.median():.0e}, at {flat.psnr.median():.0f} dB"
    yield f"The same network in train mode loses {back('train-torch', key='affine_error')} of 80"
    relu = {back(f"{mode}-relu-torch-cosine") for mode in ("eval", "train")}
    yield f"({relu.pop()} of 80 each)" if len(relu) == 1 else "ReLUs differ"
    yield f"(`eval-uniform`, {back('eval-uniform')} of 80)"
    trained = stored.json("kan2022_resnet18/eval-softplus-trained-16")["training"]["accuracy"][0]
    yield f"({100 * trained:.1f} % accuracy) the softplus network gives away {back('eval-softplus-trained')} of 80"
    yield f"gets nothing ({back('eval-softplus-trained-hidden')} of 80)"


# --- DLG, iDLG, CPL ---


@text
def batches(stored: Stored) -> Phrases:
    cell = {(size, name): of(stored.rows(f"batches/batch-{size}"), name) for size in (1, 2, 4, 8) for name in BOTH}
    plain, smooth = ({size: cell[size, name] for size in (1, 2, 4, 8)} for name in BOTH)
    yield f"a batch of two comes home in {plain[2].success.sum()} of 20 trials, and one of four in none"
    assert plain[4].success.sum() == 0, "a batch of four is recovered"
    assert smooth[2].success.sum() == smooth[4].success.sum() == 20, "TV: not all batches of two and four"
    medians = [smooth[size].psnr.median() for size in (2, 4)]
    yield f"in 20 of 20 trials, at a median of {medians[0]:.1f} and {medians[1]:.1f} dB"
    yield f"{plain[1].psnr.median():.1f} dB without and {smooth[1].psnr.median():.1f} with"
    eight, images = smooth[8], smooth[8].batch.sum()
    yield f"every image in {eight.success.sum()} of 20 trials and {eight.images_recovered.sum()} of {images} images"
    yield f"at {eight.psnr.median():.1f} dB and a median MSE of {eight.mse.median():.4f}"
    assert images - eight.labels_right.sum() == 1, "of eight: not one label is wrong"
    published = [stored.rows(f"batches/published-{size}") for size in (2, 4, 8)]
    assert {len(rows) for rows in published} == {20}
    assert sum(rows.images_recovered.sum() for rows in published) == 0, "DLG as published recovers an image of a batch"
    yield "stay at medians of {:.1f}, {:.1f} and {:.1f} dB".format(*(rows.psnr.median() for rows in published))
    met = [int((rows.relative_objective < 1e-4).sum()) for rows in published]
    yield "in {}, {} and {} of 20 trials less than 1e-4 of the update's squared norm is left".format(*met)
    right = [f"{rows.labels_right.sum()} of {rows.batch.sum()}" for rows in published]
    yield "is left, and {}, {} and {} labels are right".format(*right)


BOTH = ("L2", "L2 + TV")


@text
def defences(stored: Stored) -> Phrases:
    def back(name: str, attack: str) -> int:
        return int((of(stored.rows(f"defences/{name}"), attack).relative_error < RECOVERED).sum())

    def accuracy(name: str) -> float:
        return stored.json(f"defences/{name}-rates")["accuracy"]

    pair = {name: (back(name, "L2"), back(name, "cosine")) for name in ("none", "gaussian-1e-3", "gaussian-1e-2")}
    yield f"Without a defence {pair['none'][0]} of 40 come back by L2 and {pair['none'][1]} by cosine"
    yield "with noise of standard deviation 0.001 {} and {}, with 0.01 none".format(*pair["gaussian-1e-3"])
    assert pair["gaussian-1e-2"] == (0, 0), "noise of 0.01: an image comes back"
    noises = itertools.product(("gaussian", "laplace"), ("1e-2", "3e-2"), ("L2", "cosine"))
    counts = {back(f"{kind}-{sigma}", attack) for kind, sigma, attack in noises}
    yield f"0.03, {counts.pop()} of 40 come back here" if len(counts) == 1 else "noises of 0.01 and 0.03 differ"
    costs = [accuracy(f"{kind}-0.316") for kind in ("gaussian", "laplace")]
    yield "of 0.1 costs accuracy, as there: {:.3f} (Gaussian) and {:.3f} (Laplacian)".format(*costs)
    yield f"{accuracy('gaussian-1e-2'):.3f} for {accuracy('none'):.3f} accuracy"
    yield f"before 90 % ({back('prune-0.9', 'L2')} of 40; {back('prune-0.9', 'L2, told')} of 40 for an attacker"
    yield f"it costs {100 * (accuracy('none') - accuracy('prune-0.9')):.1f} points"
    told = back("prune-layer-0.3", "L2, told")
    yield f"30 % defends for nothing ({back('prune-layer-0.3', 'L2')} of 40), and {told} of 40 come back once"
    assert not any(back("prune-layer-0.7", attack) for attack in ("L2", "cosine", "L2, told"))
    coarse = [back(name, attack) for name in ("fp16", "bf16", "int8") for attack in ("L2", "cosine")]
    yield f"Half precision and int8 do nothing ({min(coarse)} to {max(coarse)} of 40)"
    clipped = {back(name, "cosine") for name in ("clip-1", "clip-0.1")}
    yield f"has {clipped.pop()} of 40 at either norm" if len(clipped) == 1 else "clipping differs"
    yield f"noise of 1e-4 still loses {back('dp-sgd-1-1e-4', 'cosine')} of 40 images to cosine, with 1e-3 none"
    assert back("dp-sgd-1-1e-3", "cosine") == 0, "DP-SGD with 1e-3 loses an image"
    cost = {round(100 * (accuracy("none") - accuracy(name))) for name in ("clip-0.1", "dp-sgd-1-1e-4", "dp-sgd-1-1e-2")}
    yield f"both cost {cost.pop()} points of accuracy" if len(cost) == 1 else "the costs of clipping differ"


# Shares of 1,000 trials, in %: label right, MSE < .01, .005, .001, .0005 and .0001 (Zhao et al. 2020).
ZHAO = {
    ("mnist", "dlg"): (89.9, 76.1, 76.1, 76.0, 75.9, 75.9),
    ("mnist", "idlg"): (100, 89.5, 88.9, 88.4, 88.4, 87.4),
    ("cifar100", "dlg"): (83.3, 66.1, 66.0, 65.3, 64.5, 57.2),
    ("cifar100", "idlg"): (100, 83.5, 83.3, 82.6, 81.2, 70.7),
    ("lfw", "dlg"): (79.1, 52.2, 51.8, 51.5, 51.4, 47.4),
    ("lfw", "idlg"): (100, 91.7, 91.7, 91.1, 91.1, 83.3),
}


def against_zhao(rows: pd.DataFrame, shares: tuple[float, ...]) -> list[float]:
    """Fisher's exact test of each share against the paper's, whose n is 1,000."""
    found = []
    limits = (1e-2, 5e-3, 1e-3, 5e-4, 1e-4)
    for which, percent in zip((rows.label_correct, *(rows.mse < one for one in limits)), shares, strict=True):
        ours, theirs = int(which.sum()), round(10 * percent)
        found.append(stats.fisher_exact([[ours, len(rows) - ours], [theirs, 1000 - theirs]]).pvalue)
    return found


@text
def idlg_fidelity(stored: Stored) -> Phrases:
    p = {
        (name, attack): against_zhao(of(stored.rows(f"idlg_fidelity/{name}"), attack), shares)
        for (name, attack), shares in ZHAO.items()
    }
    pictures = stored.rows("idlg_fidelity/lfw-pictures")
    solved = [int(of(pictures, attack).success.sum()) for attack in ("dlg", "idlg")]
    n = len(pictures) // 2
    yield f"of {WORDS[n]} starts of one face DLG brings {WORDS[solved[0]]} back and iDLG {WORDS[solved[1]]}"
    near = p["mnist", "dlg"] + p["mnist", "idlg"]
    yield f"all five shares of both attacks, p from {min(near):.2f} to {max(near):.2f}"
    near = p["cifar100", "dlg"][:5] + p["cifar100", "idlg"][:5]
    yield f"but for the last threshold (p from {min(near):.2f} to {max(near):.2f})"
    last = [100 * (of(stored.rows("idlg_fidelity/cifar100"), name).mse < 1e-4).mean() for name in ("dlg", "idlg")]
    yield f"({last[0]:.1f} % for its 57.2 with DLG, {last[1]:.1f} for 70.7 with iDLG"
    yield "p = {:.3f} and {:.3f})".format(*(p["cifar100", name][5] for name in ("dlg", "idlg")))
    dlg, idlg = p["lfw", "dlg"], p["lfw", "idlg"]
    right = 100 * of(stored.rows("idlg_fidelity/lfw"), "dlg").label_correct.mean()
    yield f"more labels are right than in the paper ({right:.1f} % for its 79.1, p = {dlg[0]:.3f})"
    yield f"more images come back (p = {max(dlg[1:]):.0e} at most, every threshold)"
    yield f"(p = {max(idlg[1:5]):.0e} at most down to 0.0005; at 0.0001 p = {idlg[5]:.2f})"
    lfw, cifar = (
        {name: of(stored.rows(f"idlg_fidelity/{run}"), name).mse for name in ("dlg", "idlg")}
        for run in ("lfw", "cifar100")
    )
    assert (lfw["dlg"] < 1e-3).mean() > 0.515, "LFW: not more of DLG's"
    assert (lfw["idlg"] < 1e-3).mean() < 0.911, "LFW: not fewer of iDLG's"
    same = {
        (name, bound): stats.fisher_exact([[(mse < bound).sum(), (mse >= bound).sum()] for mse in pair]).pvalue
        for name, pair in (("dlg", (lfw["dlg"], cifar["dlg"])), ("idlg", (lfw["idlg"], cifar["idlg"])))
        for bound in (1e-2, 5e-3, 1e-3, 5e-4, 1e-4)
    }
    near = [p for (_, bound), p in same.items() if bound > 1e-4]
    yield f"LFW behaves here as CIFAR-100 does (p from {min(near):.2f} to {max(near):.2f})"
    yield f"(p = {same['dlg', 1e-4]:.3f} for DLG, {same['idlg', 1e-4]:.3f} for iDLG)"
    weights = (768 + 1) * 5749
    yield f"which alone has {weights / 1e6:.1f} million weights"
    whole_head = stored.rows("idlg_fidelity/lfw-5749")
    below = [of(whole_head, name).mse < 1e-3 for name in ("dlg", "idlg")]
    yield "{} of {} come back below 0.001 with DLG and {} of {} with iDLG".format(
        *itertools.chain.from_iterable((own.sum(), len(own)) for own in below)
    )
    alike = [against_zhao(of(whole_head, name), ZHAO["lfw", name])[3] for name in ("dlg", "idlg")]
    yield "as the paper has it (p = {:.2f} and {:.2f})".format(*alike)
    pairs = [(own, lfw[name] < 1e-3) for name, own in zip(("dlg", "idlg"), below, strict=True)]
    alike = [stats.fisher_exact([[one.sum(), (~one).sum()] for one in pair]).pvalue for pair in pairs]
    yield "with 106 classes either (p = {:.2f} and {:.2f})".format(*alike)
    runs = {name: stored.rows(f"idlg_fidelity/{name}-lbfgs") for name in ("mnist", "cifar100", "lfw")}
    below = {
        name: [100 * (of(rows, attack).mse < 1e-3).mean() for attack in ("dlg", "idlg")] for name, rows in runs.items()
    }
    mnist = runs["mnist"]
    yield f"of {len(mnist) // 2:,} of MNIST {below['mnist'][0]:.1f} % with DLG and {below['mnist'][1]:.1f} % with iDLG"
    for name, title in (("cifar100", "CIFAR-100"), ("lfw", "LFW")):
        shares = [f"{share:.1f}".replace("100.0", "100") for share in below[name]]
        yield f"of {len(runs[name]) // 2:,} of {title} {shares[0]} and {shares[1]} %"
    yield f"the labels are right in all {sum(int(rows.label_correct.sum()) for rows in runs.values()):,}"
    missed = mnist[mnist.mse >= 1e-3]
    yield f"The {len(missed)} trials of MNIST that miss it have {missed.image.nunique()} networks"
    norms = mnist.groupby("image").update_norm2.first()
    yield f"below 0.45, where the median is {norms.median():.0f} and one other network"
    assert set(missed.image) < set(norms[norms < 0.45].index), "iDLG: a network with a large update misses"
    assert (norms < 0.45).sum() == missed.image.nunique() + 1, "iDLG: not one other network"
    late = runs["cifar100"][runs["cifar100"].mse >= 1e-3]
    assert (late.evaluations > 6000).all(), "iDLG: a trial of CIFAR-100 misses it before its budget's end"
    yield f"The {len(late)} trials of CIFAR-100 have {late.image.nunique()} images"
    ends = [f"{bound:.0e}".replace("e-0", "e-") for bound in (late.objective.min(), late.objective.max())]
    yield f"of their 6,000 evaluations, at objectives of {ends[0]} to {ends[1]}"
    lost = runs["lfw"][runs["lfw"].mse >= 1e-3]
    norms = sorted(lost[lost.objective < 1e-6].update_norm2.unique())
    yield f"The {len(lost)} of LFW have {lost.image.nunique()}: one is at its end"
    assert lost[lost.objective >= 1e-6].image.nunique() == 1, "iDLG: not one image of LFW at its budget's end"
    yield "meet the stop at updates with squared norms of {:.2f} and {:.2f}".format(*norms)


@text
def cpl_starts(stored: Stored) -> Phrases:
    lfw, cifar = (
        {attack: solved_iterations(own) for attack, own in stored.rows(f"cpl_starts/{name}").groupby("attack")}
        for name in ("lfw", "cifar100")
    )
    rows = stored.rows("cpl_starts/lfw")
    assert rows.success.all(), "LFW: a trial fails"
    yield f"all {len(rows):,} trials succeed"

    def middle(found: dict, *names: str) -> list[str]:
        return [whole(found[name]) for name in names]

    tiles = [f"cpl pattern-{size}" for size in (16, 8, 4)]
    yield "a median of {} iterations, U[0, 1) pixels {}".format(*middle(lfw, "cpl normal", "cpl uniform"))
    yield "tiles of 16, 8 and 4 pixels {}, {} and {}".format(*middle(lfw, *tiles))
    yield "A surrogate image ({}) and black ({}) are no further, white is ({})".format(
        *middle(lfw, "cpl surrogate", "cpl black", "cpl white")
    )
    starts = [f"{attack} {start}" for start in ("normal", "uniform", "pattern-16") for attack in ("dlg", "cpl")]
    yield "({} for {}, {} for {}, {} for {})".format(*middle(lfw, *starts))
    failed = stored.rows("cpl_starts/cifar100")
    failed = failed[~failed.success]
    assert len(failed.groupby(["image", "seed"])) == 1, "CIFAR-100: not one trial that fails"
    yield f"{200 - len(failed.groupby(['image', 'seed']))} of 200 succeed from every start"
    yield "N(0, 1) takes a median of {} iterations, U[0, 1) {}".format(*middle(cifar, "cpl normal", "cpl uniform"))
    same = set(middle(cifar, *tiles))
    yield f"the three tiles {same.pop()} each" if len(same) == 1 else "the tiles differ"
    yield "black {}, white {}".format(*middle(cifar, "cpl black", "cpl white"))
    colours = [cifar[f"cpl {name}"].median() for name in ("red", "green", "blue")]
    yield f"one colour {min(colours):g} to {max(colours):g}"
    dlg = middle(cifar, "dlg normal", "dlg uniform", "dlg pattern-16")
    yield "DLG {}, {} and {} from the first three".format(*dlg)


@text
def cpl_figures(stored: Stored) -> Phrases:
    dlg, cpl, eight, ten = (stored.rows(f"cpl_figures/{name}") for name in CPL_FIGURES)
    for name, printed in NOTEBOOKS.items():
        points = cpl_points(stored, name, "objective")
        assert all(points[step].min() < told < points[step].max() for step, told in printed.items()), "outside ours"
    yield f"the lowest and the highest of our {len(dlg)} trials"
    back = [(rows.relative_error < RECOVERED).sum() for rows in (dlg, cpl)]
    yield f"DLG brings back {back[0]} of {len(dlg)} faces: {WORDS[(dlg.status == 'diverged').sum()]} trials diverge"
    yield f"{WORDS[(dlg.status == 'iteration-limit').sum()]} reach the 300 iterations"
    yield f"CPL brings back all {back[1]}"
    assert back[1] == len(cpl), "CPL: a face does not come back"
    below = [solved_iterations(rows).median() for rows in (cpl, dlg)]
    yield f"is below 1e-4 after a median of {below[0]:.0f} iterations, DLG's after {below[1]:.0f}"
    middle = [cpl_points(stored, name, "objective")[295].median() for name in CPL_FIGURES[2:]]
    yield f"ends at a median of {middle[0]:.3f}, with ten at {middle[1]:.3f}, and no image comes back"
    assert not any(rows.images_recovered.sum() for rows in (eight, ten)), "one dummy: an image comes back"
    lowest = cpl_points(stored, "batch-8", "objective")[295].min()
    assert lowest > 1.66e-3, "the notebook's batch does not end below ours"
    yield f"below all {len(eight)} of ours ({lowest:.4f} at least)"


# What the notebooks of CPL's code print for one trial, by iteration.
NOTEBOOKS = {
    "dlg": {1: 29.3, 6: 2.72, 11: 0.896, 100: 3.0e-4, 295: 3.4e-6},
    "cpl": {1: 1.162, 6: 0.0204, 11: 0.00403, 16: 0.00134, 295: 1.3e-6},
}


@text
def cpl_vs_dlg(stored: Stored) -> Phrases:
    lfw, cifar = (dict([*stored.rows(f"cpl_vs_dlg/{name}").groupby("attack")]) for name in ("lfw", "cifar100"))
    plain = [name for name in lfw if name != "cpl, alpha 1"]
    rates = {(int(lfw[name].success.sum()), int(cifar[name].success.sum())) for name in plain}
    yield "{} of 100 on LFW and {} on CIFAR-100, each".format(*rates.pop()) if len(rates) == 1 else "rates differ"

    def middle(name: str) -> tuple[str, str]:
        one, other = (solved_iterations(found[name]).median() for found in (lfw, cifar))
        return f"{one:.0f}", f"{other:.0f}"

    pairs = [middle("dlg, normal"), middle("cpl, normal")]
    yield "from N(0, 1) DLG takes {} and {}, CPL {} and {};".format(*pairs[0], *pairs[1])
    pairs = [middle("dlg, uniform"), middle("cpl, alpha 0")]
    yield "from U[0, 1) DLG {} and {}, and CPL from its tile {} and {}".format(*pairs[0], *pairs[1])
    yield f"(median MSE {lfw['dlg, normal'].mse.median():.0e} for {lfw['cpl, normal'].mse.median():.0e})".replace(
        "e-0", "e-"
    )
    above = [int((found["cpl, alpha 1"].objective >= 1e-4).sum()) for found in (lfw, cifar)]
    yield f"above 1e-4 in {above[0]} of 100 trials on LFW and {above[1]} on CIFAR-100"
    pairs = []
    for found in (lfw, cifar):
        with_term, without = (found[f"cpl, alpha {alpha}"].set_index(["image", "seed"]).psnr for alpha in (0.01, 0))
        pairs.append((with_term - without).dropna())
    chance = max(stats.wilcoxon(lost).pvalue for lost in pairs)
    yield "costs {:.1f} and {:.1f} dB (paired medians,".format(*(-lost.median() for lost in pairs))
    yield f"(paired medians, p = {chance:.0e} at most)"
    psnr = [found[f"cpl, alpha {alpha}"].psnr.median() for alpha in (1, 0) for found in (lfw, cifar)]
    yield "median PSNRs of {:.1f} and {:.1f} dB where alpha 0 has {:.1f} and {:.1f}".format(*psnr)


@text
def cpl_vs_dlg_by_torch(stored: Stored) -> Phrases:
    names = ("dlg, normal", "dlg, uniform", "cpl, normal", "cpl, alpha 0")
    tables = [stored.rows(f"cpl_vs_dlg/{name}-torch").set_index(["image", "seed"]) for name in ("lfw", "cifar100")]
    found = {name: [rows[rows.attack == name] for rows in tables] for name in names}
    dlg, uniform, cpl, tile = ([int(rows.success.sum()) for rows in found[name]] for name in names)
    yield f"CPL solves {cpl[0]} of 100 on LFW and {cpl[1]} on CIFAR-100, DLG {dlg[0]} and {dlg[1]}"
    chances = []
    for first, second in zip(found["dlg, normal"], found["cpl, normal"], strict=True):
        mine, other = first.success.align(second.success, join="inner")
        assert len(mine) == 100
        alone = int((mine & ~other).sum()), int((other & ~mine).sum())
        chances.append(stats.binomtest(min(alone), sum(alone)).pvalue)
    yield "(McNemar p = {:.0e} and {:.0e})".format(*chances).replace("e-0", "e-")
    lost = [[int((rows.status == "diverged").sum()) for rows in found[name]] for name in ("dlg, normal", "cpl, normal")]
    yield "DLG diverges in {} and {} trials, CPL in {} and {}".format(*lost[0], *lost[1])
    yield f"hardly more ({uniform[0]} and {uniform[1]} from U[0, 1)); CPL from its tile solves {tile[0]} and {tile[1]}"
    middle = [[f"{solved_iterations(rows).median():.0f}" for rows in found[name]] for name in names]
    yield "DLG takes {} and {} from N(0, 1) and {} and {} from U[0, 1)".format(*middle[0], *middle[1])
    yield "CPL {} and {}, and {} and {} from its tile".format(*middle[2], *middle[3])


@text
def batch_and_client_steps(stored: Stored) -> Phrases:
    def rows(batch: int, steps: int, kind: str = "cpl") -> pd.DataFrame:
        return stored.rows(f"batch_and_client_steps/{kind}-{batch}-{steps}")

    def short(number: float, digits: int = 2) -> str:
        return f"{number:.{digits}f}".removeprefix("0")

    assert all(f"{rows(1, steps).ssim.mean():.2f}" == "1.00" for steps in (0, 1, 2, 5)), "up to five: SSIM is not 1.00"
    for most, form in ((5, "(mean SSIMs of {} to {})"), (10, "much the same up to ten iterations ({} to {})")):
        counts = [steps for steps in (0, 1, 2, 5, 10) if steps <= most]
        means = [rows(batch, steps).ssim.mean() for batch in (2, 5, 10, 15, 20) for steps in counts]
        yield form.format(short(min(means)), short(max(means)))
    late = rows(1, 20)
    loss, norm = ([f"{bound:.0e}" for bound in (own.min(), own.max())] for own in (late.victim_loss, late.update_norm2))
    yield f"loss is {loss[0]} to {loss[1]}, its gradient's squared norm {norm[0]} to {norm[1]}"
    yield f"met after {late.evaluations.min()} to {late.evaluations.max()} evaluations: SSIM {short(late.ssim.mean())}"
    assert (late.objective < 1e-6).all(), "after 20 steps a trial does not meet the stop"
    ends = {short(rows(1, steps).ssim.mean()) for steps in (50, 100)}
    yield f"and {ends.pop()} after 50 and 100" if len(ends) == 1 else "after 50 and 100 it differs"
    half = rows(1, 15).ssim
    mean, low, high = map(short, (half.mean(), half.min(), half.max()))
    yield f"After 15 it is {mean} and falls apart by network, from {low} to {high}"
    scaled = [mean_interval(rows(1, steps, "scaled").ssim, 2).replace("0.", ".") for steps in (15, 20, 50, 100)]
    yield "their SSIMs are {}, {}, {} and {}.".format(*scaled)
    back = [int(rows(1, steps, "scaled").images_recovered.sum()) for steps in (15, 20, 50, 100)]
    assert back[3] == 0, "scaled: an image comes back after 100"
    yield "{} of 6 images come back after 15 and {} of 6 after 20, but {} after 50 and none".format(*back)
    two = [rows(2, steps, "joint") for steps in (0, 1, 2, 5)]
    images = sum(int(own.batch.sum()) for own in two)
    means = [own.ssim.mean() for own in two]
    found = sum(int(own.images_recovered.sum()) for own in two)
    yield f"of two {found} of {images} (SSIM {short(min(means))} to {short(max(means))})"
    single = {rows(1, steps, "joint").images_recovered.sum() for steps in (0, 1, 2, 5)}
    assert single == {3}, "joint: one image is lost"
    assert not any(rows(5, steps, "joint").images_recovered.sum() for steps in (0, 1, 2)), "joint: five are recovered"


@text
def resolution(stored: Stored) -> Phrases:
    def middle(name: str, attack: str, key: str = "psnr") -> float:
        return of(stored.rows(f"resolution/{name}"), attack)[key].median()

    def both(name: str) -> tuple[str, str]:
        return f"{middle(name, 'cpl'):.0f}", f"{middle(name, 'dlg'):.0f}"

    yield "12 channels bring all back at {} and {} dB".format(*both("32-12"))
    halves = [middle("32-24", name, "evaluations") / middle("32-12", name, "evaluations") for name in ("cpl", "dlg")]
    assert max(halves) < 0.5, "24 channels need more than half the evaluations"
    yield "12 channels bring none back ({} and {} dB".format(*both("64-12"))
    yield "come back at {} dB by CPL and {} dB by DLG".format(*both("64-24"))
    wide = stored.rows("resolution/32-48")
    yield f"(squared norms of {wide.update_norm2.min():,.0f} to {wide.update_norm2.max():,.0f})"
    assert [int(of(wide, name).success.sum()) for name in ("cpl", "dlg")] == [1, 0]
    lost = wide[~wide.success]
    assert (lost.status == "stalled").all(), "48 channels: a trial does not stall"
    assert len(lost) == 5
    yield f"others stall at objectives of {lost.objective.min():.1f} to {lost.objective.max():.0f}"
    yield "with 48 at {} dB by CPL, and DLG ends at {} dB".format(*both("64-48"))
    assert of(stored.rows("resolution/64-48"), "cpl").success.all(), "64-48: CPL does not bring all back"
    yield "12 channels bring none back ({} and {} dB), though".format(*both("128-12"))
    left = of(stored.rows("resolution/128-12"), "cpl").relative_objective
    yield f"comes down to {left.min():.0e} to {left.max():.0e} of".replace("e-0", "e-")
    faces = of(stored.rows("resolution/128-24"), "cpl")
    left = [
        f"{bound:.0e}".replace("e-0", "e-")
        for bound in (faces.relative_objective.min(), faces.relative_objective.max())
    ]
    yield f"at {faces.psnr.min():.1f} to {faces.psnr.max():.1f} dB and {left[0]} to {left[1]} of the update's"
    names = [f"{size}-{n}" for size, n in ((64, 12), (64, 24), (64, 48), (128, 12), (128, 24))]
    adam = [of(stored.rows(f"resolution/{name}"), f"{attack}, adamw") for name in names for attack in ("cpl", "dlg")]
    assert not any(rows.success.any() for rows in adam), "AdamW recovers an image"


# --- Inverting Gradients, ReLUs, Deakin ---


@text
def inverting_gradients(stored: Stored) -> Phrases:
    raw, trained = (
        dict([*stored.rows(f"inverting_gradients/{name}").groupby("attack")]) for name in ("untrained", "trained")
    )

    def decibels(rows: pd.DataFrame) -> str:
        return plus_minus(rows.psnr, 1)

    yield f"comes to {decibels(raw['ig'])} dB (mean"
    yield f"with 0.01 it comes to {decibels(raw['ig, TV 0.01'])} (paper"
    rows = stored.rows("inverting_gradients/restarts")
    one, best = rows[rows.seed == 0].psnr.mean(), rows.psnr[rows.groupby("image").objective.idxmin()].mean()
    nearest = rows.groupby("image").psnr.max().mean()
    yield f"the best of {rows.seed.nunique()} by objective has {best:.1f} dB where one has {one:.1f}"
    yield f"({rows.image.nunique()} images), and the oracle does no better ({nearest:.1f})"
    objectives = [raw[name].objective.median() for name in ("ig, TV 0.01", "cosine, lbfgs")]
    yield "from a median of {:.0e} down to {:.0e}".format(*objectives).replace("e-0", "e-")
    yield f"and the images to {decibels(raw['cosine, lbfgs'])} dB"
    theirs, ours = raw["L2, torch-lbfgs"], raw["L2, lbfgs"]
    yield f"L-BFGS has {decibels(theirs)} (paper, recalled"
    yield f"{(theirs.psnr < 10).sum()} of 100 end below 10 dB; `lbfgs` has {decibels(ours)} and none below 10"
    assert (ours.psnr >= 10).all(), "untrained, lbfgs: a trial below 10 dB"
    yield f"ends at a median objective of {ours.objective.median():.0e}".replace("e-0", "e-")
    training = stored.json("inverting_gradients/training")
    yield f"({training['steps']:,} steps of Adam on CIFAR-100, {100 * training['accuracy']:.1f} % accuracy"
    yield f"weight has {decibels(trained['ig'])} dB, a TV of 0.01 {decibels(trained['ig, TV 0.01'])} (paper"
    yield f"still {decibels(trained['L2, torch-lbfgs'])} where the paper"
    low = (trained["L2, lbfgs"].psnr < 10).sum()
    yield f"{low} of 100 end below 10 dB under L2 with `lbfgs`, and none under cosine"
    assert (trained["ig, TV 0.01"].psnr >= 10).all(), "trained, TV 0.01: a trial below 10 dB"


@text
def ig_models(stored: Stored) -> Phrases:
    runs = {name: stored.rows(f"ig_models/{name}") for name in IG_MODELS}
    psnr = {name: f"{rows.psnr.median():.1f}" for name, rows in runs.items() if rows is not None}
    yield f"grows from {psnr['resnet18-width-16']} dB at width 16"
    yield f"to {psnr['resnet18-width-128']} dB at 128"
    steps = runs["resnet18-width-64"].iterations.unique().item()
    yield f"At width 64 {steps:,} steps give {psnr['resnet18-width-64']} dB"
    accuracy = stored.json("ig_models/resnet18-width-16-trained")["training"]["accuracy"][0]
    yield f"({100 * accuracy:.1f} % accuracy) the one of width 16 gives {psnr['resnet18-width-16-trained']} dB"
    yield f"though all {runs['batch'].labels_right.sum()} labels are right"
    yield f"{psnr['resnet152-width-16']} dB of two images"
    yield f"{psnr['resnet152-width-64']} dB of one"
    distances = [runs[f"resnet152-width-{width}"].objective.median() for width in (16, 64)]
    yield "the cosine distance was {:.3f} and {:.3f} then".format(*distances)


@text
def ig_studies(stored: Stored) -> Phrases:
    padding, width, dense = (ig_study(stored, name) for name in ("padding", "width", "dense"))
    zero, circular, none = (padding[f"{name}, mean"] for name in ("zero", "circular", "none"))
    eights = circular[moved(circular) & circular["shift"].map(lambda shift: all(step % 8 == 0 for step in shift))]
    assert not moved(none).any()
    assert {len(rows) for rows in (zero, circular, none)} == {20}
    yield f"Padded with zeros {len(zero)} images come back at {plus_minus(zero.psnr, 1)} dB"
    yield f"and {moved(zero).sum()} gains more than 1 dB by a shift"
    yield f"padded in a circle at {plus_minus(circular.psnr, 1)}, and {moved(circular).sum()} of {len(circular)} gain"
    count, n = int(moved(circular).sum()), len(circular)
    yield f"gain more than 1 dB by a shift {interval(count, n)}, {len(eights)} of them by a multiple of eight pixels"
    yield f"At its best shift each is at {plus_minus(circular.psnr_shifted, 1)}"
    yield f"Without padding the mean is {plus_minus(none.psnr, 1)} and no image"
    left = (circular.objective.median(), zero.objective.median())
    yield "ends at {:.3f}, with zeros at {:.3f}".format(*left)
    zero, circular, none = (padding[f"{name}, map"] for name in ("zero", "circular", "none"))
    assert not any(moved(rows).any() for rows in (zero, circular)), "padding: an image gains by a shift"
    yield f"{plus_minus(zero.psnr, 1)} dB padded with zeros, {plus_minus(circular.psnr, 1)} in a circle, and no image"
    assert np.allclose(none.psnr, padding["none, mean"].psnr, atol=0.01), "no padding: the heads are not the same"
    narrow, *more, wide = (width[name].set_index("image").psnr for name in ("4", "8", "16", "32"))
    yield f"{plus_minus(narrow, 1)} dB at width 4, {plus_minus(more[0], 1)} at 8, {plus_minus(more[1], 1)} at 16"
    yield f"and {plus_minus(wide, 1)} at 32 ({len(narrow)} images each"
    yield f"ahead of width 4 on {int((wide > narrow).sum())} of {len(narrow)}"
    yield f"(Levene's test, p = {stats.levene(narrow, *more, wide).pvalue:.2f})"
    deep = ig_study(stored, "depth")
    yield "ResNet-18 gives {}, ResNet-34 {}, ResNet-50 {}, ResNet-101 {} and ResNet-152 {}".format(
        *(plus_minus(deep[name].psnr, 1) for name in ("18", "34", "50", "101", "152"))
    )
    told = {name: plus_minus(rows.psnr, 1) for name, rows in ig_study(stored, "averaging").items()}
    one, four = ([told[f"{n} x {name}"] for name in ("1, lr 0.01", "5, lr 0.01", "5, lr 0.1")] for n in (1, 4))
    yield f"on one image gives {one[0]} dB, five give {one[1]}, and"
    yield f"as much as one of 0.01, {one[2]}. Four images, two a step: {four[0]}, {four[1]} and {four[2]}"
    steps = ig_study(stored, "steps")
    for model, text in (("convnet", "has {:.1f}, {:.1f} and {:.1f} dB"), ("resnet20-4", "{:.1f}, {:.1f} and {:.1f}")):
        yield text.format(*(steps[f"{model}, {count}"].psnr.mean() for count in (300, 4800, 24000)))
    hours = [24_000 / 3600 / zoo_rate(stored, model) for model in ("convnet", "resnet20-4")]
    yield "of an image are {:.1f} hours of ConvNet and {:.1f} of ResNet20-4".format(*hours)
    closed, search = dense["analytic"], dense["ig"]
    yield f"all {len(closed)} images at {closed.psnr.min():.0f} to {closed.psnr.max():.0f} dB"
    yield f"4,800 steps of the search {len(search)} images at {search.psnr.min():.1f} to {search.psnr.max():.1f}"


@text
def deakin(stored: Stored) -> Phrases:
    lenet = stored.rows("deakin_models/lenet")
    back = {name: int((of(lenet, name).relative_error < RECOVERED).sum()) for name in ("dlg", "relative")}
    yield f"{back['dlg']} of 16 trials under the published attack, {back['relative']} of 16 with the label"
    assert lenet.network.unique().tolist() == ["shared"], "deakin: not one network"
    plain = stored.rows("deakin_models/lenet-plain")
    assert plain.network.unique().tolist() == ["per-trial"], "deakin: not a fresh network"
    published = of(plain, "dlg")
    yield f"attack has {(published.relative_error < RECOVERED).sum()} of {len(published)}, and its objective is"
    yield f"a median of {whole(solved_iterations(published))} iterations over the solved ones"
    yield f"Normalised it takes {whole(solved_iterations(of(lenet, 'dlg')))}"
    yield f"shows nothing after {of(stored.rows('deakin_models/inception3'), 'relative').evaluations.max()} evaluations"
    dlg, ours = (of(stored.rows("deakin_models/resnet18"), name).iloc[0] for name in ("dlg", "relative"))
    assert (dlg.iterations, ours.status) == (300, "stalled")
    yield f"an MSE of {dlg.mse:.2f}, with {dlg.relative_objective:.0e} of the update's squared norm left"
    yield f"any more after {ours.iterations}, has {ours.mse:.2f} and {ours.relative_objective:.0e}"
    yield f"the relative errors are still {dlg.affine_error:.2f} and {ours.affine_error:.2f}"


# --- solvers ---


@text
def failures(stored: Stored) -> Phrases:
    rows = stored.rows("failures/rows")
    end, keys = "-to-the-end", ["run", "seed"]
    norms, close = {}, []
    for source, file in FAILED.items():
        trials = first_images(stored.rows(file), 200)
        for row in trials[~trials.success if source == "table1" else trials.mse >= 1e-3].itertuples():
            which = (rows[keys] == [f"{source}-{row.image}", row.seed]).all(axis=1)
            stopped, ended = (of(rows[which], name).iloc[0] for name in (row.attack, row.attack + end))
            assert stopped.label_correct, "failures: a wrong label"
            assert ended.success if source == "table1" else ended.mse < 1e-3, "failures: one does not come home"
            norms[source, row.image, row.seed] = stopped.objective / stopped.relative_objective
            close.append((norms[source, row.image, row.seed], stopped.relative_error))
    usual = stored.rows("kan2022_table1/per-trial")
    assert 650 < (usual.objective / usual.relative_objective).median() < 750, "failures: not some 700 in most trials"
    small = [norm for norm in norms.values() if norm < 100]
    yield f"is {min(small):.2f} to {max(small):.0f} in {WORDS[len(small)]} of these {WORDS[len(norms)]} networks"
    yield f"in the other {WORDS[len(norms) - len(small)]} the stop comes just before"
    assert max(error for norm, error in close if norm >= 100) < 0.3, "failures: not just before"
    yield f"all {WORDS[len(close)]} come home"
    tanh = rows[rows.run.str.startswith("tanh-")]
    ruled, bias = of(tanh, "idlg"), of(tanh, "bias")
    yield f"right in {ruled.label_correct.sum()} of {len(ruled)} trials, and just these are solved"
    assert (ruled.label_correct == (ruled.mse < 1e-3)).all(), "failures: not just these"
    yield f"with the label read from the head's bias all {(bias.mse < 1e-3).sum()} are"


FAILED = {"table1": "kan2022_table1/lbfgs", "mnist": "idlg_fidelity/mnist-lbfgs", "lfw": "idlg_fidelity/lfw-lbfgs"}
WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 9: "nine", 13: "thirteen", 17: "seventeen"}


@text
def solvers(stored: Stored) -> Phrases:
    found = {
        (solver, activation): pd.concat([solver_rows(stored, solver, activation, name) for name in ("dlg", "idlg")])
        for solver in SOLVERS
        for activation in ("sigmoid", "relu", "tanh")
    }
    compared = {
        (solver, activation): times(found["lbfgs", activation], found[solver, activation])
        for solver in ("optax-lbfgs", "torch-lbfgs", "jaxopt-zoom")
        for activation in ("sigmoid", "tanh")
    }
    sigmoid, tanh = (compared["optax-lbfgs", name] for name in ("sigmoid", "tanh"))
    assert sigmoid[2] + tanh[2] == 1, "solvers: not the same trials but for one"
    yield f"over the {sigmoid[0]} of sigmoids that both solve `lbfgs` needs {sigmoid[1]:.2f} times its evaluations"
    yield f"over the {tanh[0]} of tanh {tanh[1]:.2f} times"
    lost = found["torch-lbfgs", "sigmoid"], of(found["torch-lbfgs", "tanh"], "dlg")
    lost = [rows[~rows.solved] for rows in lost]
    ended = [(len(rows), int((rows.status == "diverged").sum())) for rows in lost]
    yield "loses {} of 240 trials behind sigmoids ({} by divergence)".format(*ended[0])
    yield "and {} of DLG's 120 behind tanh ({})".format(*ended[1])
    (n, ratio, _), (m, other, _) = (compared["torch-lbfgs", name] for name in ("sigmoid", "tanh"))
    yield f"`lbfgs` needs {ratio:.2f} and {other:.2f} times its evaluations (n = {n} and {m})"
    zoom, zhang, adam = (found[name, "sigmoid"] for name in ("jaxopt-zoom", "jaxopt-hager-zhang", "adam"))
    n, ratio, _ = compared["jaxopt-zoom", "sigmoid"]
    yield f"zoom solves {zoom.solved.sum()} of {len(zoom)} behind sigmoids, where `lbfgs` needs {ratio:.2f} times its"
    yield f"(n = {n}), hager-zhang {zhang.solved.sum()}, all on MNIST, Adam one"
    assert set(zhang.dataset[zhang.solved]) == {"mnist"}, "hager-zhang: not all on MNIST"
    assert adam.solved.sum() == 1, "Adam does not solve one"
    met = [int(((rows.objective < 1e-4) & (rows.relative_error < RECOVERED)).sum()) for rows in (zoom, zhang)]
    yield f"At an objective of 1e-4 zoom would have {met[0]} of {len(zoom)}, hager-zhang {met[1]}"
    relu = {name: found[name, "relu"] for name in ("lbfgs", "torch-lbfgs", "optax-lbfgs")}
    yield f"nobody solves more than {max(rows.solved.sum() for rows in relu.values())} of 240"
    dlg = {name: of(rows, "dlg").groupby("dataset")[["mse", "evaluations"]].median() for name, rows in relu.items()}
    sets = ["cifar100", "mnist", "lfw"]
    mse = {name: [f"{x:.2f}" if x > 0.1 else f"{x:.3f}" for x in own.mse[sets]] for name, own in dlg.items()}
    counts = [f"{int(count):,}" for count in dlg["lbfgs"].evaluations[sets]]
    yield "MNIST and LFW of {}, {} and {}, after medians of {}, {} and {} evaluations".format(*mse["lbfgs"], *counts)
    yield "at {}, {} and {} after 6,000".format(*mse["torch-lbfgs"])
    yield "`optax-lbfgs` at {}, {} and {}".format(*mse["optax-lbfgs"])


@text
def precision(stored: Stored) -> Phrases:
    rows, sets = stored.rows("precision/rows"), ["mnist", "cifar100", "lfw"]
    middle = rows.groupby(["stage", "dataset"])[["objective", "mse", "psnr", "evaluations"]].median()

    def three(stage: str, key: str, form: str) -> list[str]:
        return [f"{number:{form}}".replace("e-0", "e-") for number in middle.loc[stage].loc[sets, key]]

    ends = three("float32", "objective", ".0e")
    yield "float32 ends at medians of {} (MNIST), {} (CIFAR-100) and {} (LFW)".format(*ends)
    yield "with MSE {}, {} and {}; no trial of it".format(*three("float32", "mse", ".0e"))
    single = rows[rows.stage == "float32"]
    assert (single.objective > 1e-12).all(), "precision: float32 reaches 1e-12"
    yield f"at 1e-12, and {(single.evaluations < 12_000).sum()} of {len(single)} stall before 12,000 evaluations"
    double = rows[rows.stage == "float64"]
    assert (double.objective < 1e-12).sum() == 30, "precision: not all thirty"
    yield "after medians of {}, {} and {} evaluations".format(*three("float64", "evaluations", ",.0f"))
    yield "with MSE {}, {} and {}, at".format(*three("float64", "mse", ".0e"))
    rates = stored.json("precision/summary")["evaluations_per_second"]
    shares = [rates[f"{name}-float64"] / rates[f"{name}-float32"] for name in sets]
    yield f"at {min(shares):.1f} to {max(shares):.1f} of float32's evaluations per second"
    yield "ended it needs {}, {} and {} more".format(*three("finish", "evaluations", ",.0f"))
    took = {
        stage: np.array([middle.loc[stage].evaluations[name] / rates[f"{name}-{kind}"] for name in sets])
        for stage, kind in (("float32", "float32"), ("float64", "float64"), ("finish", "float64"))
    }
    costs = took["float64"] / (took["float32"] + took["finish"])
    yield "(`--x64`) costs {:.1f}, {:.1f} and {:.1f} times as much as both".format(*costs)
    psnr = middle.loc["float32"].psnr
    yield f"than float32's medians of {psnr.min():.0f} to {psnr.max():.0f} dB"


@text
def pytorch_parity(stored: Stored) -> Phrases:
    told = {}
    for attack in ("dlg", "idlg"):
        trials = parity_trials(stored, attack)
        both = trials[trials.by_torch & trials.by_us]
        logs = np.log(both.threshold_iterations / both.iter_1e4)
        steps = both.threshold_iterations - both.iter_1e4
        p = (stats.wilcoxon(logs).pvalue, stats.wilcoxon(steps).pvalue)
        told[attack] = (np.exp(logs.mean()), len(both), *p)
    dlg, idlg = told.values()
    yield f"a geometric mean of {dlg[0]:.3f} for DLG (n = {dlg[1]}) and {idlg[0]:.3f} for iDLG (n = {idlg[1]})"
    yield f"gives p = {dlg[2]:.2f} and {idlg[2]:.2f} on the logarithms"
    yield f"and p = {dlg[3]:.2f} and {idlg[3]:.2f} on the differences"
    yield f"iDLG needs about {100 * (1 - idlg[0]):.0f} % fewer iterations"
    dlg, idlg = (parity_trials(stored, name, "lenet-fresh") for name in ("dlg", "idlg"))
    assert len(dlg) == len(idlg), "parity: not as many of DLG as of iDLG"
    yield f"{dlg.image.nunique()} random images with networks of their own"
    yield f"and five starts: {len(dlg)} trials an attack"
    cells = [parity_cells(trials, trials.by_torch, trials.by_us) for trials in (dlg, idlg)]
    (a, b, p), (c, d, q) = ([one[0].split("/")[0], one[3].split("/")[0], one[7]] for one in cells)
    yield f"PyTorch solves {a} and jaxleak {b} (McNemar p = {p}), of iDLG's {c} and {d} (p = {q})"
    yield f"{cells[0][9]} times PyTorch's for DLG (n = {cells[0][6]}, Wilcoxon p = {cells[0][10]})"
    yield f"and {cells[1][9]} for iDLG (n = {cells[1][6]}, p = {cells[1][10]})"
    dlg, idlg = (parity_trials(stored, name, "resnet18") for name in ("dlg", "idlg"))
    for trials, iterations in ((dlg, 1), (idlg, 0)):
        assert {*trials.iter_1e4, *trials.threshold_iterations} == {iterations}, "parity, ResNet-18: not as many"
    yield f"DLG's {len(dlg)} after one and iDLG's {len(idlg)} at the start"
    nearest = min(trials[key].min() for trials in (dlg, idlg) for key in ("mse_torch", "mse"))
    yield f"and none is nearer to its image than an MSE of {nearest:.2f}"


# --- verdicts, reliability, clusters; the project's README ---


@text
def audits(stored: Stored) -> Phrases:
    rows = stored.lines("verdicts/audits")
    right = rows[rows.kind.isin(RIGHT)]
    recovered = rows.verdict == "recovered"
    yield f"Of {len(right)} right updates {(right.verdict == 'recovered').sum()} are called recovered"
    yield f"Of all {len(rows)}, {(recovered & ~rows.right_image).sum()} with a wrong image"
    points = risk_points(stored)
    yield f"rank correlation over all: {stats.spearmanr(points.predicted, points.measured).statistic:.3f}"
    tried = stored.lines("reliability/cases").query("fault == 'fuzz'").tried.iloc[0]
    yield f"{sum(tried.values()):,} examples, all answered"


RIGHT = ("gradient", "clipped, by its direction", "half precision", "local steps, stated", "gradient on MNIST")


@text
def relu_lowest(stored: Stored) -> Phrases:
    psnr = stored.rows("relu/rgap").psnr
    yield f"The lowest of {len(psnr)} images ends at {psnr.min():.1f} dB"


@text
def throughput(stored: Stored) -> Phrases:
    lenet, resnet = (
        {one["name"]: np.array(one["rounds"]) for one in stored.json(f"throughput/{model}")["variants"]}
        for model in ("lenet", "resnet18")
    )
    names = ("pytorch-no-onednn", "pytorch-processes", "pytorch-vmap")
    rates = [f"{np.median(of_model[name]):,.0f}" for of_model in (lenet, resnet) for name in names]
    yield "at {0} for {1} evaluations/s, ResNet-18 at {3} for {4}.".format(*rates)
    yield "fastest on both, {2} with L-BFGS and {5} with Adam".format(*rates)
    for one in (lenet, resnet):
        loops = [
            np.median(rounds) for name, rounds in one.items() if name.startswith("pytorch") and "cosine" not in name
        ]
        assert max(loops) == np.median(one["pytorch-vmap"]), "vmap is not PyTorch's best"
    times = [over(one["jaxleak"], one["pytorch-vmap"]) for one in (lenet, resnet)]
    yield "jaxleak does {} and {} times as many".format(*times)
    spread = {name: rounds.max() / rounds.min() for name, rounds in lenet.items()}
    ours = [name for name in spread if spread[name] > 1.3]
    assert ours == ["jaxleak", "jaxleak-network-per-trial"], "other variants differ by a third"
    theirs = [100 * spread[name] - 100 for name in spread if name.startswith("pytorch")]
    yield f"differ by a third between rounds on LeNet (PyTorch's by {min(theirs):.0f} to {max(theirs):.0f} %)"


@text
def clusters(stored: Stored) -> Phrases:
    rates = ray_rates(stored)
    ratios, one = rates["ray"] / rates["one process"], np.median(rates["one process"])
    yield f"do {min(ratios):.2f} to {max(ratios):.2f} times as many evaluations a second"
    rounds = stored.json("ray_throughput/summary")["rounds"]
    beside = {name: np.median([own["seconds_beside"] for own in rounds[name]]) for name in rounds}
    yield f"compilation takes {beside['ray'] - beside['one process']:.0f} s more (median)"
    evaluations = stored.rows("kan2022_table1/per-trial").evaluations.mean()
    yield f"{one:,.0f} evaluations/s, which at"
    yield f"({evaluations:,.0f} evaluations a trial) is {3600 * one / evaluations:,.0f} trials an hour"
    rate = stored.json("kan2022_resnet18/eval-softplus-torch-64")["engine"]["evaluations_per_second"]
    yield f"{rate:.1f} evaluations/s (`eval-softplus-torch`), {3600 * rate / 300:.0f} trials an hour at 300"
    told = stored.json("clusters/simulation")["settings"]
    seconds = told["driver_seconds"]
    mean = told["trial_seconds"] * np.exp(told["spread"] ** 2 / 2)  # log-normal
    yield f"writes a trial in {1000 * seconds:.1f} ms (measured"
    yield f"so it can take {1 / seconds:.0f} a second: with {told['lanes']} lanes a worker and a mean of {mean:.0f} s"
    yield f"(median {told['trial_seconds']:.0f} s) that is {mean / (seconds * told['lanes']):.0f} workers"
    lines = pd.DataFrame(stored.json("clusters/simulation")["lines"])
    assert not lines.lost.any(), "clusters: a trial was lost"
    short = lines[lines.workers <= 10].set_index(["sweep", "workers", "cluster"]).efficiency.unstack()
    assert ((short["quiet"] - short["failures every 2 h"]) < 0.02).all(), "clusters: failures cost more than 2 %"


@text
def infer(stored: Stored) -> Phrases:
    def of_runs(attack: str, truth: str, *runs: str) -> list[str]:
        found = [stored.lines(f"infer/{run}") for run in runs]
        return [f"{area(rows[attack], rows[truth])[0]:.3f}" for rows in found]

    same, anyone = of_runs("cosine", "member", "membership-none", "membership-any-none")
    rows = stored.lines("infer/membership-any-none")
    shared = int(rows.label_in_batch[~rows.member].sum())
    yield f"records of any label, of which {shared} of 100 have one of the batch's, with an area of {anyone}"
    yield f"and of records with a label of the batch with {same}"
    none, noise, prune = of_runs("residual", "member", *(f"membership-{name}" for name in ("none", "noise", "prune")))
    yield f"the residual has {none}, {prune} behind pruning of 90 % of the entries, and {noise} behind the weaker noise"
    grey, framed = of_runs("logistic", "has", "grey-noise", "framed-noise")
    yield f"areas of {grey} and {framed} by the logistic regression"
    mirrored = stored.lines("infer/mirrored-none")
    told = [area(mirrored[attack], mirrored.has)[1] for attack in ("logistic", "forest")]
    yield f"by any classifier ({told[0]} and {told[1]})"


def readme(stored: Stored) -> Phrases:
    """What the project's README says beside its table."""
    for name in ("dlg", "idlg"):  # of the example, which a test runs
        yield f"{name}: 1.00 {interval(4, 4)} of 4 starts"


# --- the pages ---


def flat(words: str) -> str:
    """Without line breaks and without links' addresses."""
    return " ".join(re.sub(r"\]\([^)]*\)", "]", words).split())


def paragraphs(page: str) -> Iterator[str]:
    """Of the page, those of text that hold a figure."""
    for part in re.split(r"\n\s*\n", page):
        inside = re.sub(r"\[[^]]*\]\([^)]*\)|`[^`]*`", "", part)
        if not part.startswith(("#", "|", "`python", "- ")) and re.search(r"\d", inside):
            yield flat(part)


def check_prose(page: str, project: str, stored: Stored) -> Iterator[str]:
    """Phrases that are not there, and paragraphs whose figures nothing here computes."""
    words, known = flat(page), []
    for function in (*TEXTS, readme):
        text, found = (flat(project), []) if function is readme else (words, known)
        try:
            for phrase in function(stored):
                found.append(phrase)
                if phrase not in text:
                    yield f"{function.__name__}: by the rows it is {phrase!r}"
        except AssertionError as error:
            yield f"{function.__name__}: {error}"
    for paragraph in paragraphs(page):
        if not paragraph.startswith(WITHOUT_ROWS) and not any(phrase in paragraph for phrase in known):
            yield f"no figure of this paragraph is computed here: {paragraph[:80]}..."
