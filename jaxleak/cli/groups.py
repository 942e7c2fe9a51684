"""The flags of `jaxleak run` and `jaxleak attack` in groups, as `--help` shows them; each group is one dataclass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from jaxleak.data.paths import place
from jaxleak.errors import InputError


def optional(metavar: str) -> Any:
    """Metavar of an optional flag whose text explains its default; tyro alone shows `{None}|STR`."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


Name = Annotated[str | None, optional("NAME")]
Names = Annotated[tuple[str, ...] | None, optional("NAME [NAME ...]")]
Number = Annotated[float | None, optional("NUMBER")]
Count = Annotated[int | None, optional("N")]
Numbers = Annotated[tuple[float, ...] | None, optional("NUMBER [NUMBER ...]")]
Size = Annotated[str | None, optional("N|HxW")]
Counts = Annotated[tuple[int, ...] | None, optional("N [N ...]")]
YesNo = Annotated[bool | None, optional("True|False")]
File = Annotated[Path | None, optional("PATH")]


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
class StartHere:
    """What most runs need."""

    out: Place
    """Run directory: settings, one row per trial, reconstructions, summary.json, figures/ and report.html; or in an
    object store, as in s3://BUCKET/PATH."""
    attack: tuple[str, ...] = ("dlg", "idlg")
    """Attacks: best (chosen by the network and the update), dlg (label optimised jointly), idlg (label read from the
    head's gradient), cpl (from a pattern), tag (text, as dlg), ig (cosine, total variation, sign of the gradient),
    modern, sme (many local steps), fedavg (epochs), gradinversion, bayes (knows the defence); closed forms: analytic
    (mlp), april (vit), spear (batches, mlp with activation=relu), rgap (lenet and other chains, ReLUs too), dager
    (text); with a solver of its own after a colon, as in dlg:torch-lbfgs."""
    model: str = "lenet"
    """The victim's model: lenet (DLG's), lenet-cpl, mlp, convnet (Inverting Gradients'), convnet-gn (with GroupNorm),
    resnet18 to resnet152 (CIFAR form), resnet20-4, resnet32-10, densenet121, inception3, vit, transformer (text);
    `jaxleak models` lists them. Or a Python file with a function build_model(classes) (or file.py:function)."""
    dataset: str = "photos"
    """photos and text (embedded), cifar100, mnist, lfw (prepared for tensorflow-datasets), a folder of pictures, an
    .npz, or a .txt."""
    images: Counts = None
    """Which images are attacked: their index in the data set."""
    num_images: Count = None
    """Instead of --images: this many updates' images at random (default without --images: 4)."""
    seeds: int = 16
    """Random starts per image and attack."""


@dataclass(frozen=True, kw_only=True)
class UpdateHere:
    """What is attacked, and where the results go."""

    out: Place
    """Run directory; in it audit.html (a page to hand on), report.json, best.npz (images in [0, 1]) and best.png."""
    update: File = None
    """File of the gradient (or, with --client-steps, of w_0 - w_K), named as in torch's state_dict: safetensors, .npz,
    or what torch.save wrote (.pt, .pth, .bin), of which nothing is run; FILE:PART is one part of a checkpoint. Also a
    tree of Flax, in msgpack or .npz."""
    weights: File = None
    """File of the network before it, in torch's names and layout or Flax's, of the same kinds."""
    before: File = None
    """Instead of --update and --weights: the network before the client's local steps (--client-steps, or one)."""
    after: File = None
    """The network after the local steps, with --before."""
    model: str = "lenet"
    """A model's name, or a Python file with a function build_model(classes) (or file.py:function)."""
    attack: tuple[str, ...] = ("dlg", "idlg")
    """Attacks: best (chosen by the network and the update), dlg (label optimised jointly), idlg (label read from the
    head's gradient), cpl (from a pattern), tag (text, as dlg), ig (cosine, total variation, sign of the gradient),
    modern, sme (many local steps), fedavg (epochs), gradinversion, bayes (knows the defence); closed forms: analytic
    (mlp), april (vit), spear (batches, mlp with activation=relu), rgap (lenet and other chains, ReLUs too), dager
    (text); with a solver of its own after a colon, as in dlg:torch-lbfgs."""
    seeds: int = 16
    """Random starts per attack, at most: it ends when the verdict is certain."""
    image_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width and channels of the network's input."""
    labels: Counts = None
    """The labels, where they are known (for --label known, and to be compared with); with a yes or no for each output
    (bce) those of the first image, then of the next."""
    truth: File = None
    """The private images with their labels, to measure against: an .npz or a folder."""
    pixel_max: Number = None
    """The value of white in --truth, where its pictures have more than 8 bits: 4095 for 12, 65535 for 16."""


@dataclass(frozen=True, kw_only=True)
class RiskHere:
    """What is looked at, and where the results go."""

    out: Place
    """Folder for risk.html (a page to hand on), risk.json and risk.png."""
    model: str = "lenet"
    """A model's name (`jaxleak models` lists them), or a Python file with a function build_model(classes) (or
    file.py:function)."""
    dataset: str = "photos"
    """photos (embedded), cifar100, mnist, lfw (prepared for tensorflow-datasets), a folder of pictures, or an .npz.
    With --update: stand-ins for images that are not known."""
    images: Counts = None
    """Which images: their index in the data set (default: one at random)."""
    compare: tuple[str, ...] = (
        "fp16",
        "int8",
        "gaussian:1e-4",
        "gaussian:1e-3",
        "gaussian:1e-2",
        "prune:0.9",
        "clip:1",
    )
    """Defences to compare, each written as for --defence; several at once in quotes: 'clip:1 gaussian:1e-3'."""
    update: File = None
    """File of an update, named as in torch's state_dict; with --weights, as for `jaxleak attack`."""
    before: File = None
    """Instead of --update and --weights: the network before the client's local steps, as for `jaxleak attack`."""
    after: File = None
    """The network after the local steps, with --before."""
    image_shape: tuple[int, int, int] = (32, 32, 3)
    """With --update: height, width and channels of the network's input."""
    truth: File = None
    """With --update: the private images with their labels, an .npz or a folder (default: images of --dataset stand in
    for them)."""


@dataclass(frozen=True, kw_only=True)
class SourceFlags:
    """Where the private data come from."""

    data_dir: File = None
    """Where tensorflow-datasets finds its prepared data (default: $JAXLEAK_DATA_DIR, or its own)."""
    split: Name = None
    """Split of the data set (default: train if it is there, else test)."""
    image_size: Size = None
    """Height and width in pixels that pictures are resized to, as 32 or 24x32 (default: the data set's own, 32, MNIST
    28)."""
    length: Count = None
    """Tokens of a text, of text and .txt files (default: 16)."""
    pixel_max: Number = None
    """The value of white in your own pictures of more than 8 bits, and arrays of other than uint8: 4095 for 12 bits,
    65535 for 16."""


@dataclass(frozen=True, kw_only=True)
class DataFlags(SourceFlags):
    """Where the private images come from, and which."""

    image_seed: int = 0
    """Seed from which --num-images draws images."""
    batch_labels: str = "any"
    """Labels of the images that --num-images puts into a batch: any, distinct or same."""


@dataclass(frozen=True, kw_only=True)
class AttackFlags:
    """Parts of the attack that replace those of every attack of the run; what is given is added to their names."""

    start: Name = None
    """Where the images start: normal, uniform, black, white, red, green, blue, pattern-16, pattern-8, pattern-4 (or a
    tile of any other side), surrogate (default: the attack's own, as for all flags of this group)."""
    label: Name = None
    """Where labels come from: joint (optimised), known, text (of dager), idlg, bias, unique, row-minima,
    counts, counts-published."""
    objective: Name = None
    """Distance between the candidate's gradient and the shared one: l2, l1 or cosine; or its likelihood, of an attacker
    who knows the defences (likelihood)."""
    scale: Name = None
    """What the objective is measured in: none (as published), relative (to the shared gradient), per-tensor."""
    logarithm: YesNo = None
    """Minimise the distance's logarithm: the terms below then weigh as shares of the distance, and fall with it."""
    layers: Names = None
    """Layers to compare, each with a weight if you like: conv1 head:0.5; '*' is all others."""
    label_term: Number = None
    """CPL's alpha: weight of (prediction - label)^2."""
    l1: Number = None
    """TAG's alpha: weight of the gradients' L1 distance."""
    tv: Number = None
    """Weight of the total variation."""
    patches: Number = None
    """Weight of minus the mean log density of patches, by a mixture of Gaussians fitted on the data set's other split
    (of `run`; needs scikit-learn)."""
    norm: Number = None
    """Weight of the images' norm."""
    statistics: Number = None
    """Weight of matching BatchNorm's statistics of the client's batch."""
    group: Count = None
    """Starts that a trial follows together; the one with the lowest objective is reported. Needs adam."""
    group_mean: YesNo = None
    """Report their mean instead; those with low objectives count most."""
    consistency: Number = None
    """Weight of the agreement of the starts of a group."""
    register: Count = None
    """Pixels by which their images may be moved each way to fit one another before the mean is taken."""
    box: YesNo = None
    """Keep pixels in [0, 1]: adam's by projection, those of other solvers by a change of variables."""
    box_by: Name = None
    """How --box keeps them: projection (adam's way), sine (the others') or sigmoid of variables."""
    surrogate_model: YesNo = None
    """Instead of the client's local steps, one gradient between its weights before and after (SME)."""
    epoch_consistency: Number = None
    """Weight of the agreement of the client's epochs, each with dummies of its own: the order is then not needed."""
    dummies: Count = None
    """Images that are optimised (default: as many as the update holds)."""
    knows_defence: YesNo = None
    """The attacker leaves out entries that a defence set to zero, and finds noise within the network (precode)."""
    start_seed: int = 0
    """Seed from which the starts are drawn."""


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The network's parts."""

    model_field: tuple[str, ...] = ()
    """Fields of the model, as in width=16 train=false activation=relu."""
    normalise: str = "none"
    """Whose mean and deviation the network's input is brought to: none, cifar100, cifar10, mnist, imagenet."""
    mean: Numbers = None
    """Instead of --normalise: the means that are subtracted from pixels in [0, 1], one for each channel or for all."""
    std: Numbers = None
    """With --mean: the deviations that the differences are divided by."""


@dataclass(frozen=True, kw_only=True)
class NetworkFlags(ModelFlags):
    """The network that is attacked."""

    network_seed: int = 0
    """Seed from which the networks are drawn."""
    weights: File = None
    """Weights of the network instead of drawn ones: a file of torch or Flax: safetensors, .npz, torch.save or
    msgpack (with --network shared)."""
    trained_steps: int = 0
    """Steps that the network is trained for before the update."""
    train_optimizer: str = "adam"
    """Optimiser of the training before the update (--trained-steps): sgd, adam, adamw."""
    train_lr: float = 1e-3
    """Learning rate of the training before the update (--trained-steps)."""


@dataclass(frozen=True, kw_only=True)
class VictimFlags(NetworkFlags):
    """The network that is attacked, or networks."""

    network: str = "per-trial"
    """Victim networks: shared (one for all), per-image, or per-trial (a fresh one each, as in the papers' tables)."""
    hide_statistics: bool = False
    """The attacker does not have the running statistics of BatchNorm in evaluation mode, and works with 0 and 1."""
    trained_on: str = "data"
    """Images of the training before the update (--trained-steps): random ones of the data set (data), or the update's
    own (own)."""


@dataclass(frozen=True, kw_only=True)
class ClientFlags:
    """How the client turns its images into an update."""

    loss: str = "cross-entropy"
    """What the client minimises: cross-entropy, bce (one logit, or yes-or-no labels), mse, a sum
    (cross-entropy+0.1*mse), or FILE.py:FUNCTION of outputs and targets."""
    label_smoothing: float = 0.0
    """Label smoothing of cross-entropy, from 0 to below 1."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class (cross-entropy; the mean is weighted too), or of each output's yes (bce, torch's
    pos_weight)."""
    reduction: str = "mean"
    """Over the images of a step the loss is a mean or a sum, as torch's reduction."""
    batch: int = 1
    """Images that an update is computed from (of `run`: the first of --images make the first update, and so on)."""
    client_steps: int = 0
    """Local steps of the client, which then shares by how much its weights fell (FedAvg); 0 shares the gradient."""
    client_epochs: int = 0
    """Instead of --client-steps: passes over the client's images."""
    client_optimizer: str = "sgd"
    """Optimiser of the client's local steps, with torch's settings: sgd, adam, adamw."""
    client_lr: tuple[float, ...] = (0.01,)
    """Learning rate of the client's local steps; of a schedule one number for each step, or for each epoch."""
    client_batch: Count = None
    """Images per local step, taken in turn (default: all); the last step of an epoch takes what is left."""
    client_drop_last: bool = False
    """The client leaves out a last batch that is not full."""
    client_order: tuple[int, ...] = ()
    """Places of the client's images, from 0, in the order it took them: of one epoch, or of all in turn."""
    client_shuffle: Count = None
    """Instead of --client-order: seed from which a new order is drawn for each epoch."""
    client_momentum: float = 0.0
    """Momentum of the client's SGD."""
    client_nesterov: bool = False
    """The client's momentum is Nesterov's."""
    client_dampening: float = 0.0
    """Dampening of the client's momentum."""
    client_weight_decay: Number = None
    """Weight decay of the client's optimiser: an L2 term of sgd and adam, decoupled in adamw (default: torch's)."""
    client_clip: Number = None
    """Largest norm of each local step's gradient, as torch's clip_grad_norm_ (default: not clipped)."""
    client_precision: str = "float32"
    """Arithmetic of the client's products, which bounds how well an audit can fit its update: float32, tf32 (of GPUs),
    float16, bfloat16 (autocast)."""
    clients: int = 1
    """Number of clients among which the images of an update are divided; the mean of their updates is attacked."""


@dataclass(frozen=True, kw_only=True)
class KnownDefence:
    """What protects the update."""

    defence: tuple[str, ...] = ()
    """Defences applied to the update before it is shared, in this order: gaussian:SIGMA, laplace:SIGMA, prune:SHARE,
    prune-layer:SHARE, top-k:COUNT, error-feedback:SHARE:ROUNDS, soteria:SHARE, clip:NORM, dp-sgd:CLIP:NOISE, fp16,
    bf16, int8; precode[:SIZE[:BETA]], which is in the network; or FILE.py:FUNCTION, a function of the update of your
    own."""


@dataclass(frozen=True, kw_only=True)
class DefenceFlags(KnownDefence):
    """What protects the update, and its noise."""

    defence_seed: int = 0
    """Seed from which the defences draw their noise."""
    defence_draw: str = "per-victim"
    """Whether restarts meet the same noise (per-victim) or each its own (per-trial)."""
    hide_order: bool = False
    """The attacker does not know the client's --client-order or --client-shuffle, and takes the images in turn."""


@dataclass(frozen=True, kw_only=True)
class SolverFlags:
    """How the objective is minimised."""

    solver: Name = None
    """Solver of the attacks that name none: lbfgs (steps are tested), torch-lbfgs (the papers'), jaxopt-lbfgs,
    optax-lbfgs, adam (default: the attack's own)."""
    lr: Number = None
    """Learning rate of torch-lbfgs and jaxopt-lbfgs (default: 1) and adam (0.1); the other solvers have none."""
    history: int = 100
    """Pairs that L-BFGS keeps."""
    line_search: str = "zoom"
    """Line search of jaxopt-lbfgs: fixed, zoom, hager-zhang."""
    sign: Name = None
    """What adam is given: the gradient (none), its sign (hard), its soft sign (soft)."""
    schedule: Name = None
    """Schedule of adam's learning rate: constant, step, cosine."""
    warmup: Count = None
    """Steps until adam's learning rate is reached."""
    weight_decay: Number = None
    """Weight decay of adam, decoupled (AdamW)."""
    langevin: Number = None
    """Size of the noise added to adam's gradient."""


@dataclass(frozen=True, kw_only=True)
class BudgetFlags:
    """When a trial ends, and what counts as success."""

    iterations: Count = None
    """Budget of a trial: outer steps of at most 20 evaluations for L-BFGS (default 300), steps for adam (4800)."""
    max_evaluations: Count = None
    """A trial also ends once it has spent this many evaluations (default: no such limit)."""
    minutes: Number = None
    """The run ends after so long, compiling included, and keeps the trials that have ended; with --seeds 1000 it makes
    as many as there is time for. The same command goes on (default: it ends when all have)."""
    stop_objective: Number = None
    """A trial ends when its objective is below this at the end of an iteration (default: 1e-6; ig never)."""
    stop_relative: Number = None
    """A trial ends also when its objective is below this share of the update's squared norm (default: never)."""
    success_objective: float = 1e-4
    """Success needs an objective below this, where the objective is l2."""
    success_cosine: float = 1e-2
    """Success needs an objective below this, where the objective is the cosine distance."""
    success_error: float = 0.2
    """Success needs a relative image error |x - x*| / |x*| below this too, of every image of a batch."""
    mse_thresholds: tuple[float, ...] = (0.01, 0.005, 0.001, 0.0005, 0.0001)
    """The share of trials whose MSE is below each of these is reported, as in iDLG's figures."""


@dataclass(frozen=True, kw_only=True)
class PictureFlags:
    """What is kept for pictures."""

    snapshots: tuple[int, ...] = (0, 10, 20, 40, 60, 80, 120, 200)
    """Iterations at which candidates are kept for the pictures."""
    snapshot_seeds: Count = None
    """Seeds per image and attack whose candidates are kept for the pictures (default: all)."""


@dataclass(frozen=True, kw_only=True)
class OutputFlags(PictureFlags):
    """What is drawn."""

    figures: bool = True
    """Leave out the figures and report.html, which are made at the end."""
    report: bool = True
    """Leave out report.html."""


@dataclass(frozen=True, kw_only=True)
class DeviceFlags:
    """Number of lanes, and precision."""

    lanes: int | Literal["auto"] = "auto"
    """Trials at once, over all devices."""
    x64: bool = False
    """Compute in float64."""
    mix_versions: bool = False
    """Continue a run although the solvers have changed since; its rows then come from several versions of them."""


@dataclass(frozen=True, kw_only=True)
class MachineFlags(DeviceFlags):
    """Number of lanes, precision, and the processes that share the run."""

    shard: Name = None
    """This process's part of a run that several write to the same --out, as in 0/8 to 7/8 of a Slurm array; the figures
    are drawn where the last one is done."""
    on: str = "here"
    """Where the trials run: here (this process), or ray (the workers of a Ray cluster)."""
    ray_address: Name = None
    """With --on ray: the cluster, as auto or HOST:PORT (default: one is started on this machine)."""
    workers: Count = None
    """With --on ray: number of workers (default: as many as there is room for); they may join while it runs."""
    gpus_per_worker: Number = None
    """With --on ray: GPUs of a worker (default: one where the cluster has any)."""
    cpus_per_worker: Count = None
    """With --on ray: cores of a worker (default: one beside a GPU, else an equal share of a node's)."""
