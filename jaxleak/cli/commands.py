"""The commands as dataclasses that tyro reads. Each base class of `run` and `attack` is a group of flags."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jaxleak.cli.groups import (
    AttackFlags,
    BudgetFlags,
    ClientFlags,
    Count,
    DataFlags,
    DefenceFlags,
    DeviceFlags,
    File,
    KnownDefence,
    MachineFlags,
    ModelFlags,
    Name,
    Names,
    NetworkFlags,
    OutputFlags,
    PictureFlags,
    Place,
    RiskHere,
    SolverFlags,
    SourceFlags,
    StartHere,
    UpdateHere,
    VictimFlags,
    optional,
)

Runs = Annotated[tuple[Place, ...], tyro.conf.Positional, optional("RUN [RUN ...]")]
# What `--help` calls the groups, in this order.
RUN_GROUPS = {
    "most_needed": StartHere,
    "private_images": DataFlags,
    "attack_parts": AttackFlags,
    "solver": SolverFlags,
    "budget_and_success": BudgetFlags,
    "network": VictimFlags,
    "client": ClientFlags,
    "defence": DefenceFlags,
    "output": OutputFlags,
    "machine": MachineFlags,
}
ATTACK_GROUPS = {
    "most_needed": UpdateHere,
    "attack_parts": AttackFlags,
    "solver": SolverFlags,
    "budget_and_success": BudgetFlags,
    "network": ModelFlags,
    "client": ClientFlags,
    "defence": KnownDefence,
    "output": PictureFlags,
    "machine": DeviceFlags,
}
RISK_GROUPS = {
    "most_needed": RiskHere,
    "private_images": DataFlags,
    "network": VictimFlags,
    "client": ClientFlags,
    "defence": KnownDefence,
}


@dataclass(frozen=True, kw_only=True)
class InferHere:
    """What is asked, and where the results go."""

    out: Place
    """Folder for run.json, rows.jsonl (a row for each update), summary.json and roc.png."""
    what: str = "membership"
    """What is asked of each update: words (tokens of texts), membership (is this record in the batch?) or property
    (have its images one that labels do not tell?)."""
    property: str = "grey"
    """With --what property: grey, mirrored or framed, which is given to all images of half of the batches."""
    others: str = "same-label"
    """With --what membership: records that are not in the batch, same-label (one of the batch has theirs) or any (where
    reading the batch's labels is enough to be mostly right)."""
    model: str = "lenet"
    """The client's model, as for `jaxleak run`; words need transformer."""
    dataset: str = "photos"
    """photos and text (embedded), cifar100, mnist, lfw (prepared for tensorflow-datasets), a folder of pictures, an
    .npz, or a .txt; words need texts."""
    num_images: Count = None
    """Images, or texts, that are the client's (default: as many as its batches take, and at most half of the data set;
    of words all); the attacker has others."""
    updates: Count = None
    """Updates that are attacked (default: 200, of words 50)."""
    own_updates: int = 400
    """Updates of the attacker's own batches, that the classifiers are trained on."""
    seed: int = 0
    """Seed from which images, batches, records and classifiers are drawn."""
    update: File = None
    """With --what words, instead of a data set: the file of an update of your own, or of a gradient, as for `jaxleak
    attack`."""
    embedding: Name = None
    """With --update: name of the tensor that has a row for each token (default: the one whose name says embedding)."""
    vocabulary: File = None
    """With --update: a text file with one token a line, by which the tokens found are printed."""


INFER_GROUPS = {
    "most_needed": InferHere,
    "private_data": SourceFlags,
    "network": NetworkFlags,
    "client": ClientFlags,
    "defence": KnownDefence,
}


@dataclass(frozen=True, kw_only=True)
class RunCommand(
    MachineFlags,
    OutputFlags,
    DefenceFlags,
    ClientFlags,
    VictimFlags,
    BudgetFlags,
    SolverFlags,
    AttackFlags,
    DataFlags,
    StartHere,
):
    """Attack private images from many random starts at once, and read the success rate off them.

    Example: jaxleak run --attack dlg idlg --dataset photos --num-images 2 --seeds 8 --out my-run

    Stopped at any moment, the same command continues where it was. Exit codes: 0 done; 1 nothing can be printed; 2 a
    mistake in the command or its files; 3 results cannot be written (the disk is full); 130, 143, 129 ended by Ctrl-C,
    SIGTERM, SIGHUP.
    """


@dataclass(frozen=True, kw_only=True)
class AttackCommand(
    DeviceFlags,
    PictureFlags,
    KnownDefence,
    ClientFlags,
    ModelFlags,
    BudgetFlags,
    SolverFlags,
    AttackFlags,
    UpdateHere,
):
    """Attack an update that was computed elsewhere; the private images need not be known.

    Example: jaxleak attack --update grads.safetensors --weights w.safetensors --model lenet --attack idlg --seeds 8
    --out RUN

    Says whether the images are recovered, ambiguous (the update does not determine them), unfinished (ended by the
    budget) or unexplained (something is assumed that is not so), and why. It ends as soon as that is certain.
    """


@dataclass(frozen=True, kw_only=True)
class RiskCommand(KnownDefence, ClientFlags, VictimFlags, DataFlags, RiskHere):
    """Say how much an update tells of its images, before anyone attacks it, and compare defences by it.

    Example: jaxleak risk --model lenet --dataset photos --images 6 --out RISK

    The Fisher information of the update gives the error of the best attack that can be; no attack is run.
    """


@dataclass(frozen=True, kw_only=True)
class InferCommand(KnownDefence, ClientFlags, NetworkFlags, SourceFlags, InferHere):
    """Ask updates for less than the images: words of texts, whether a record is in the batch, or a property of it.

    Example: jaxleak infer --what membership --dataset cifar100 --batch 8 --out INFER

    Half of the updates have what is asked for. Areas under ROC curves and rates come with 95 % intervals. Stopped at
    any moment, the same command continues where it was.
    """


@dataclass(frozen=True, kw_only=True)
class TableCommand:
    """Print the success rates of one or several run directories."""

    runs: Runs
    """Run directories."""
    by_image: bool = False
    """Also one line per image."""


@dataclass(frozen=True, kw_only=True)
class PlotCommand:
    """Draw the figures of one or several run directories into their figures/."""

    runs: Runs
    """Run directories."""


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write one self-contained HTML page of one or several run directories: pictures, curves, tables, settings.

    Example: jaxleak report my-run --out report.html

    It opens from disk, offline. Runs may be unfinished.
    """

    runs: Runs
    """Run directories."""
    out: Annotated[Place | None, optional("PATH")] = None
    """The file (default: report.html in the first run directory)."""
    trials: int = 2
    """Trials of each attack and image with pictures, beside best, median, worst and examples of each way to fail."""
    title: Name = None
    """Title of the page (default: attacks and models)."""


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Measure evaluations per second of jaxleak beside PyTorch (a loop, and vmap), a plain vmap and jaxopt, in one run.

    Example: jaxleak bench --seconds 60 --out bench.json

    The variants, each in a process of its own, are measured in turns. First it says how long all of it will take.
    """

    model: str = "lenet"
    """One of `jaxleak models`: the LeNets and the transformer (texts of 16 tokens) with L-BFGS, others with Adam."""
    image_size: Count = None
    """Pixels of a side (default: 32, of inception3 299)."""
    only: Names = None
    """Just these of pytorch-processes, pytorch-no-onednn, pytorch-serial, pytorch-vmap, plain-vmap, jaxopt, jaxleak,
    jaxleak-network-per-trial, jaxleak-lbfgs; and with Inverting Gradients' attack pytorch-cosine-processes,
    jaxleak-cosine (default: all of these; plain-vmap and jaxopt are there for lenet and resnet18). Also
    pytorch-compiled, through torch.compile."""
    lanes: tuple[int | Literal["auto"], ...] = ()
    """Trials at once over all devices; each of several counts is tried (default: a number known to be good).
    auto: jaxleak's engine searches, for up to a minute."""
    seconds: float = 120.0
    """How long to measure, all variants together; starting and compiling come on top."""
    rounds: int = 5
    """How often each variant is measured: medians are reported."""
    width: Count = None
    """The model's width, where it has one (default: its own; of resnet18 64 on a GPU, 16 on a CPU)."""
    profile: bool = False
    """Also measure where the time of a step goes, for another half of --seconds."""
    for_: Name = None
    """Measure nothing: compile for this GPU, h100, h200 or a100, which need not be here, and count what a step of
    --only costs it with --lanes (default: jaxleak-lbfgs with 256; of resnet18 jaxleak with 64)."""
    out: File = None
    """Write the numbers to this JSON file."""


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Look at this installation: versions, devices, kernels, precision, data sets, speed; and say what to mend."""

    seconds: float = 5.0
    """How long to measure evaluations per second of LeNet and ResNet-18; compiling comes on top. 0: not at all."""


@dataclass(frozen=True, kw_only=True)
class ModelsCommand:
    """List the models: parameters, input, memory of a lane and evaluations per second on this machine."""

    only: Names = None
    """Just these."""
    seconds: float = 5.0
    """How long each is measured; compiling, which takes minutes for the deep ones, comes before."""
    measure: bool = True
    """Compile and measure them (--no-measure: parameters and input only)."""
