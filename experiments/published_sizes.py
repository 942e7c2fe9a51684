"""What of the papers is not at its published size here, and what it would take.

Evaluations are those of the whole published protocol. Hours on two cores follow from the rates of `throughput --zoo`,
and of larger images and heads from the stored run itself. Hours on an H100 are the least: so many times fewer as
`gpu_account` allows for LeNet, and for all deeper networks as it allows for ResNet-18.

Nothing runs here; the commands in the table do.
"""

import math
from dataclasses import dataclass

import pyarrow.parquet as parquet

from experiments import tables
from experiments.harness import RESULTS

PAPER = "Published sizes"
ACCOUNTS = {"lenet-cpl": "LeNet, `torch-lbfgs`, network per-trial", "resnet18": "ResNet-18, Adam, network shared"}


@dataclass(frozen=True)
class Item:
    """A line of a paper: its size, how far the stored rows go, and what a trial costs.

    Attributes:
        what: what the paper has.
        size: how large it is there; two are DLG and iDLG, or two attacks of ours.
        rows: where its trials are stored, below `results/`.
        trials: how many the published size has.
        evaluations: of a trial; None is the mean of those stored.
        model: in the zoo.
        command: what makes or continues it.
        rate_of: the stored run whose rate it is, where that is not the zoo's; without one no hours are told.
    """

    what: str
    size: str
    rows: str
    trials: int
    evaluations: int | None
    model: str
    command: str
    rate_of: str = ""


PAIRS = "2 x 1,000 trials"
FULL, FOUR = "ResNet-18, full width", "4 images, 4,800 steps"
DEAKIN, IG = "Deakin report", "Inverting Gradients"
ITEMS = (
    Item(
        *("iDLG: `lfw-5749`", PAIRS, "idlg_fidelity/lfw-5749", 2000, None, "lenet-cpl"),
        *("idlg_fidelity --only lfw-5749 --n-5749 1000", "idlg_fidelity/lfw-5749"),
    ),
    Item(
        *("CPL: 128 pixels, 48 channels", "2 solvers, 2 attacks, 3 faces", "resolution/128-48", 12, 3500, "lenet-cpl"),
        *("resolution --images 3 --seeds 1 --only 128-48", "resolution/128-24"),
    ),
    Item(
        *(f"Kan et al. 2022: the published attack, {FULL}", "20 images x 20 starts"),
        *("kan2022_resnet18/published-64", 400, None, "resnet18"),
        *("kan2022_resnet18 --width 64 --images 20 --seeds 20 --only published", "kan2022_resnet18/published-64"),
    ),
    Item(
        *(f"{DEAKIN}: DenseNet-121, 224 pixels", "2 attacks x 300 iterations", "deakin_models/densenet121", 2, 6000),
        *("densenet121", "deakin_models --iterations 300 --only densenet121", "deakin_models/densenet121"),
    ),
    Item(
        *(f"{DEAKIN}: Inception v3, a batch of two", "2 attacks x 300 iterations", "deakin_models/inception3", 2, 6000),
        *("inception3", "deakin_models --iterations 300 --only inception3", "deakin_models/inception3"),
    ),
    *(
        Item(
            *(f"{IG}: {name}, width 64", "2 images, 24,000 steps", f"ig_studies/full-{model}", 2, 24_001, model),
            f'ig_studies --only "full {model}, 24000"',
        )
        for name, model in (("ConvNet", "convnet"), ("ResNet20-4", "resnet20-4"))
    ),
    *(
        Item(f"{IG}: {name}", FOUR, f"ig_models/{run}", 4, 4801, run.partition("-")[0], f"ig_models --only {run}")
        for name, run in (
            (FULL, "resnet18-width-64"),
            ("ResNet-152", "resnet152-width-64"),
            ("trained ResNet-152", "resnet152-width-64-trained"),
        )
    ),
)


def spent(item: Item) -> tuple[int, int]:
    """Trials stored, and their evaluations."""
    path = RESULTS / f"{item.rows}.parquet"
    counts = parquet.read_table(path, columns=["evaluations"])["evaluations"].to_pylist() if path.exists() else []
    return len(counts), sum(counts)


def cells(item: Item) -> list[str]:
    """The line of an item."""
    trials, evaluations = spent(item)
    each = item.evaluations or (evaluations / trials if trials else 6000)
    whole = round(item.trials * each)
    if not all(math.isfinite(rate(model)) for model in (item.model, *ACCOUNTS)):
        return [item.what, item.size, tables.NOT_RUN]
    own = bool(item.rate_of and tables.stored(f"{item.rate_of}.json"))
    fast = rate_on_two(item.rate_of) if own else rate(item.model)
    hours = whole / fast / 3600
    there = f"{hours / times(item.model):.2g}"
    told = [tables.NONE] * 2 if item.rate_of and not own else [f"{hours:.2g}", there]
    here = f"{trials:,} of {item.trials:,} trials, {evaluations:,} evaluations" if trials else tables.NOT_RUN
    return [item.what, item.size, here, f"{whole:,}", *told, f"`{item.command}`"]


def rate_on_two(run: str) -> float:
    """Evaluations/s of a stored run, on two cores: a row's device says how many it had."""
    device = parquet.read_table(RESULTS / f"{run}.parquet", columns=["device"])["device"][0].as_py()
    return tables.stored(f"{run}.json")["engine"]["evaluations_per_second"] * 2 / int(device.partition("x")[0])


def rate(model: str) -> float:
    """Evaluations/s on two cores; not a number where the zoo was not run."""
    variants = (tables.stored(f"throughput/zoo-{model}.json") or {"variants": []})["variants"]
    found = (one["evaluations_per_second"] for one in variants if one["name"] == "jaxleak")
    return next(found, float("nan"))


def times(model: str) -> float:
    """How many times as many an H100 does, at most."""
    like = model if model in ACCOUNTS else "resnet18"
    return tables.stored("gpu_account/now.json")[ACCOUNTS[like]]["evaluations_per_second"] / rate(like)


def results() -> list[tables.Results]:
    """Size, what is stored, and what is left."""
    columns = ("what", "published size", "here", "evaluations", "two cores [h]", "H100, at least [h]", "command")
    title, rows = "What is not at its published size", [cells(item) for item in ITEMS]
    notes = (
        "Evaluations and hours are of the published size, from its beginning; commands go on where they were stopped.",
        "`python -m experiments.` stands before each command.",
        "48 channels: the least, by the rate of 24.",
        "Not run on a GPU. Its hours: two cores' over what its counted program allows; launching kernels costs more.",
    )
    return [tables.Results(title, "published_sizes", columns, rows, "", notes)]
