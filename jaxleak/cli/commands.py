"""The commands with their flags, as dataclasses that tyro reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from jaxleak.cli.flags import (
    AttackFlags,
    ClientFlags,
    Count,
    Counts,
    File,
    Name,
    Names,
    Number,
    optional,
)
from jaxleak.errors import InputError
from jaxleak.paths import place


def _place(text: str) -> Path:
    try:
        return place(text)
    except InputError:  # where it is used; tyro would draw a box around it
        return Path(text)


Place = Annotated[  # `Path` alone makes one slash of two in s3://
    Path,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: _place(words[0]),
        is_instance=lambda value: hasattr(value, "read_bytes"),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass(frozen=True, kw_only=True)
class RunCommand(ClientFlags, AttackFlags):
    """Attack private images from many random starts at once, and read the success rate off them.

    Example: jaxleak run --attack dlg idlg --dataset photos --num-images 2 --seeds 8 --out my-run

    Stopped at any moment, the same command continues where it was.
    """

    out: Place
    """Run directory: settings, one row per trial, reconstructions, summary.json, figures/ and report.html; or in an
    object store, as in s3://BUCKET/PATH."""
    model: str = "lenet"
    """The victim's model: lenet (DLG's), lenet-cpl, mlp, convnet (Inverting Gradients'), resnet18 to resnet152 (CIFAR
    form), resnet20-4, resnet32-10, densenet121, inception3; `jaxleak models` lists them."""
    model_field: tuple[str, ...] = ()
    """Fields of the model, as in width=16 train=false activation=relu."""
    dataset: str = "photos"
    """photos (embedded), cifar100, mnist, lfw (prepared for tensorflow-datasets), a folder of pictures, or an .npz."""
    data_dir: File = None
    """Where tensorflow-datasets finds its prepared data (default: $JAXLEAK_DATA_DIR, or its own)."""
    split: Name = None
    """Split of the data set (default: train if it is there, else test)."""
    image_size: Count = None
    """Height and width in pixels that pictures are resized to (default: the data set's own, 32, MNIST 28)."""
    images: Counts = None
    """Which images: their index in the data set."""
    num_images: Count = None
    """Instead of --images: this many updates' images at random (default without --images: 4)."""
    batch_labels: str = "any"
    """Labels of the images that --num-images puts into a batch: any, distinct or same."""
    image_seed: int = 0
    """From which --num-images draws."""
    network: str = "per-trial"
    """Victim networks: shared (one for all), per-image, or per-trial (a fresh one each, as in the papers' tables)."""
    network_seed: int = 0
    """From which the networks are drawn."""
    weights: File = None
    """Instead of drawing: a safetensors file in torch's names and layout (with --network shared)."""
    hide_statistics: bool = False
    """The attacker does not have the running statistics of BatchNorm in evaluation mode, and works with 0 and 1."""
    trained_steps: int = 0
    """Steps that the network is trained for before the update."""
    trained_on: str = "data"
    """On random images of the data set (data), or on the update's own images (own)."""
    train_optimizer: str = "adam"
    """Of that training: sgd, adam."""
    train_lr: float = 1e-3
    """Its learning rate."""
    defence: tuple[str, ...] = ()
    """What is done to the update before it is shared, in this order: gaussian:SIGMA, laplace:SIGMA, prune:SHARE,
    prune-layer:SHARE, top-k:COUNT, clip:NORM, dp-sgd:CLIP:NOISE, fp16, bf16, int8."""
    defence_seed: int = 0
    """From which their noise is drawn."""
    defence_draw: str = "per-victim"
    """Whether restarts meet the same noise (per-victim) or each its own (per-trial)."""
    shard: Name = None
    """This process's part of a run that several write to the same --out, as in 0/8 to 7/8 of a Slurm array; the figures
    are drawn where the last one is done."""
    on: str = "here"
    """Where the trials run: here (this process), or ray (the workers of a Ray cluster)."""
    ray_address: Name = None
    """With --on ray: the cluster, as auto or HOST:PORT (default: one is started on this machine)."""
    workers: Count = None
    """With --on ray: how many (default: as many as there is room for); they may join while it runs."""
    gpus_per_worker: Number = None
    """With --on ray (default: one where the cluster has any)."""
    cpus_per_worker: Count = None
    """With --on ray (default: one beside a GPU, else an equal share of a node's)."""
    figures: bool = True
    """Leave out the figures and report.html, which are made at the end."""
    report: bool = True
    """Leave out report.html."""


@dataclass(frozen=True, kw_only=True)
class AttackCommand(ClientFlags, AttackFlags):
    """Attack an update that was computed elsewhere; the private images need not be known.

    Example: jaxleak attack --update grads.safetensors --weights w.safetensors --model lenet --attack idlg --seeds 8
    --out RUN

    Reports the labels found, the images of the best restarts, and whether independent restarts agree on them.
    """

    update: Path
    """Safetensors file of the gradient (or, with --client-steps, of w_0 - w_K), named as in torch's state_dict."""
    weights: Path
    """Safetensors file of the network before it, in torch's names and layout."""
    out: Place
    """Run directory; in it report.json, best.npz (images in [0, 1]) and best.png."""
    model: str = "lenet"
    """A model's name, or a Python file with a function build_model(classes) (or file.py:function)."""
    model_field: tuple[str, ...] = ()
    """Fields of the model, as in width=16 train=false activation=relu."""
    image_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width and channels of the network's input."""
    labels: Counts = None
    """The labels, where they are known (for --label known, and to be compared with)."""
    truth: File = None
    """The private images with their labels, to measure against: an .npz or a folder."""


@dataclass(frozen=True, kw_only=True)
class TableCommand:
    """Print the success rates of one or several run directories."""

    runs: Annotated[tuple[Place, ...], tyro.conf.Positional]
    """Run directories."""
    by_image: bool = False
    """Also one line per image."""


@dataclass(frozen=True, kw_only=True)
class PlotCommand:
    """Draw the figures of one or several run directories into their figures/."""

    runs: Annotated[tuple[Place, ...], tyro.conf.Positional]
    """Run directories."""


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write one self-contained HTML page of one or several run directories: pictures, curves, tables, settings.

    Example: jaxleak report my-run --out report.html

    It opens from disk, offline. Runs may be unfinished.
    """

    runs: Annotated[tuple[Place, ...], tyro.conf.Positional]
    """Run directories."""
    out: Annotated[Place | None, optional("PATH")] = None
    """The file (default: report.html in the first run directory)."""
    trials: int = 2
    """Trials of each attack and image with pictures, beside best, median, worst and examples of each way to fail."""
    title: Name = None
    """Of the page (default: attacks and models)."""


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Measure evaluations per second of jaxleak beside PyTorch (a loop, and vmap), a plain vmap and jaxopt, in one run.

    Example: jaxleak bench --seconds 60 --out bench.json

    The variants, each in a process of its own, are measured in turns. First it says how long all of it will take.
    """

    model: str = "lenet"
    """lenet (with L-BFGS) or resnet18 (CIFAR form, with Adam)."""
    only: Names = None
    """Just these of pytorch-processes, pytorch-serial, pytorch-vmap, plain-vmap, jaxopt, jaxleak,
    jaxleak-network-per-trial, jaxleak-lbfgs; and with Inverting Gradients' attack pytorch-cosine-processes,
    jaxleak-cosine."""
    lanes: tuple[int | Literal["auto"], ...] = ()
    """Trials at once over all devices; each of several counts is tried (default: a number known to be good).
    auto: jaxleak's engine searches, for up to a minute."""
    seconds: float = 120.0
    """How long to measure, all variants together; starting and compiling come on top."""
    rounds: int = 5
    """How often each variant is measured: medians are reported."""
    width: Count = None
    """Channels of the ResNet's first stage (default: 64 on a GPU, 16 on a CPU)."""
    profile: bool = False
    """Also measure where the time of a step goes, for another half of --seconds."""
    out: File = None
    """Write the numbers to this JSON file."""


@dataclass(frozen=True, kw_only=True)
class ModelsCommand:
    """List the models: parameters, input, memory of a lane and evaluations per second on this machine."""

    only: Names = None
    """Just these."""
    seconds: float = 5.0
    """How long each is measured; compiling, which takes minutes for the deep ones, comes before."""
    measure: bool = True
    """Compile and measure them (--no-measure: parameters and input only)."""
