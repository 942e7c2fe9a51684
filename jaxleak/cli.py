"""The command line: `jaxleak run`, `attack`, `table`, `plot`, `report`, `bench`, `models`."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from jaxleak.errors import InputError, check_choice, check_positive
from jaxleak.flags import (
    AttackFlags,
    ClientFlags,
    build_attacks,
    build_client,
    build_criteria,
    lanes,
    model_fields,
    sweep_of,
)
from jaxleak.paths import place
from jaxleak.results.store.shard import ALL, Shard, parse_shard


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
INTERRUPTED = 130
TRAINED = ("victim.weights", "victim.batch_stats", "victim.knows_statistics")  # settings known after training
BAD_INPUT = 2


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
    data_dir: Path | None = None
    """Where tensorflow-datasets finds its prepared data (default: $JAXLEAK_DATA_DIR, or its own)."""
    split: str | None = None
    """Split of the data set (default: train if it is there, else test)."""
    image_size: int | None = None
    """Height and width in pixels that pictures are resized to (default: the data set's own, 32, MNIST 28)."""
    images: tuple[int, ...] | None = None
    """Which images: their index in the data set."""
    num_images: int | None = None
    """Instead of --images: this many updates' images at random (default without --images: 4)."""
    batch_labels: str = "any"
    """Labels of the images that --num-images puts into a batch: any, distinct or same."""
    image_seed: int = 0
    """From which --num-images draws."""
    network: str = "per-trial"
    """Victim networks: shared (one for all), per-image, or per-trial (a fresh one each, as in the papers' tables)."""
    network_seed: int = 0
    """From which the networks are drawn."""
    weights: Path | None = None
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
    shard: str | None = None
    """This process's part of a run that several write to the same --out, as in 0/8 to 7/8 of a Slurm array; the figures
    are drawn where the last one is done."""
    on: str = "here"
    """Where the trials run: here (this process), or ray (the workers of a Ray cluster)."""
    ray_address: str | None = None
    """With --on ray: the cluster, as auto or HOST:PORT (default: one is started on this machine)."""
    workers: int | None = None
    """With --on ray: how many (default: as many as there is room for); they may join while it runs."""
    gpus_per_worker: float | None = None
    """With --on ray (default: one where the cluster has any)."""
    cpus_per_worker: int | None = None
    """With --on ray (default: one beside a GPU, else an equal share of a node's)."""
    figures: bool = True
    """Draw the figures at the end, and write the page."""
    report: bool = True
    """Write report.html at the end (not without --figures)."""


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
    labels: tuple[int, ...] | None = None
    """The labels, where they are known (for --label known, and to be compared with)."""
    truth: Path | None = None
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
    out: Place | None = None
    """The file (default: report.html in the first run directory)."""
    trials: int = 2
    """Trials of each attack and image with pictures, beside best, median, worst and examples of each way to fail."""
    title: str | None = None
    """Of the page (default: attacks and models)."""


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Measure evaluations per second of jaxleak beside PyTorch (a loop, and vmap), a plain vmap and jaxopt, in one run.

    Example: jaxleak bench --seconds 60 --out bench.json

    The variants, each in a process of its own, are measured in turns. First it says how long all of it will take.
    """

    model: str = "lenet"
    """lenet (with L-BFGS) or resnet18 (CIFAR form, with Adam)."""
    only: tuple[str, ...] | None = None
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
    width: int | None = None
    """Channels of the ResNet's first stage (default: 64 on a GPU, 16 on a CPU)."""
    profile: bool = False
    """Also measure where the time of a step goes, for another half of --seconds."""
    out: Path | None = None
    """Write the numbers to this JSON file."""


@dataclass(frozen=True, kw_only=True)
class ModelsCommand:
    """List the models: parameters, input, memory of a lane and evaluations per second on this machine."""

    only: tuple[str, ...] | None = None
    """Just these."""
    seconds: float = 5.0
    """How long each is measured; compiling, which takes minutes for the deep ones, comes before."""
    measure: bool = True
    """Compile and measure them (--no-measure: parameters and input only)."""


def build_sweep(command: RunCommand):
    """Everything `jaxleak run` needs, checked before any long work."""
    from jaxleak.data import BATCH_LABELS, load_dataset
    from jaxleak.models import MODELS, build_model
    from jaxleak.results.store.run import Run
    from jaxleak.threat.defences import parse_defence
    from jaxleak.threat.victim import NETWORKS, NORMALISATIONS, make_victim

    # Names and counts first: they are checked without touching data.
    check_choice("model", command.model, MODELS)
    check_choice("network", command.network, NETWORKS)
    if command.num_images is not None:
        check_positive("num_images", command.num_images, integer=True)
    attacks = build_attacks(command)
    check_choice("batch_labels", command.batch_labels, BATCH_LABELS)
    check_choice("normalise", command.normalise, NORMALISATIONS)
    if command.images is not None and command.num_images is not None:
        raise InputError("`images` and `num_images` exclude each other; give one of them.")
    if command.images is not None and command.batch_labels != "any":
        raise InputError("`batch_labels` is for images drawn at random; leave it out with --images.")
    client = build_client(command)
    fields = model_fields(command.model_field)
    build_model(command.model, 2, **fields)
    defences = tuple(parse_defence(text) for text in command.defence)
    build_criteria(command)
    data = load_dataset(command.dataset, split=command.split, data_dir=command.data_dir, image_size=command.image_size)
    images = command.images
    if images is None:
        count = command.num_images or 4
        images = data.random_batches(count, command.batch, command.image_seed, command.batch_labels)

    def sweep(trained_steps: int):
        victim = make_victim(
            command.model,
            data,
            [int(index) for index in images],
            fields=fields,
            knows_statistics=not command.hide_statistics,
            checkpoint=command.out,
            network=command.network,
            network_seed=command.network_seed,
            weights=command.weights,
            normalise=command.normalise,
            batch=command.batch,
            client=client,
            defences=defences,
            defence_seed=command.defence_seed,
            defence_draw=command.defence_draw,
            trained_steps=trained_steps,
            trained_on=command.trained_on,
            train_optimizer=command.train_optimizer,
            train_lr=command.train_lr,
        )
        return sweep_of(victim, attacks, command)

    if command.trained_steps:
        before = sweep(0)  # what cannot be run is refused before anything is trained
        before.check()
        settings = before.settings()
        settings["victim"]["trained_steps"] = command.trained_steps
        Run.check(command.out, settings, TRAINED)
    return sweep(command.trained_steps)


def run(command: RunCommand) -> int:
    """`jaxleak run`."""
    shard = parse_shard(command.shard) if command.shard else ALL
    cluster = _cluster(command)  # before `_prepare` starts jax
    _prepare(command)
    sweep = build_sweep(command)
    result = _swept(sweep, command, shard, cluster)
    _print_tables([result.summary], [command.out], by_image=sweep.victim.updates > 1)
    print(f"{command.out}: {len(result.run.rows())} rows, summary.json")
    if command.figures and (shard == ALL or result.summary["complete"]):
        for path in result.plot():
            print(f"figure: {path}")
        if command.report:
            print(f"page: {result.report()}")
    return 0


def _prepare(command: AttackFlags) -> None:
    """Precision and devices, before anything is computed."""
    import jax

    from jaxleak.engine.devices import use_all_cores

    jax.config.update("jax_enable_x64", command.x64)
    use_all_cores()


def _cluster(command: RunCommand) -> Any:
    """Where the trials run; None is here."""
    check_choice("on", command.on, ("here", "ray"))
    given = {name: getattr(command, name) for name in ("workers", "gpus_per_worker", "cpus_per_worker")}
    if command.on == "here":
        flags = [name for name, value in {"ray_address": command.ray_address, **given}.items() if value is not None]
        if flags:
            raise InputError(f"`{flags[0]}` is a setting of --on ray; add that, or leave it out.")
        return None
    import jax

    from jaxleak.runs.ray.driver import Ray

    jax.config.update("jax_platforms", "cpu")  # accelerators are the workers'
    return Ray(address=command.ray_address, **given)


def _swept(sweep: Any, command: RunCommand | AttackCommand, shard: Shard = ALL, on: Any = None) -> Any:
    """The result in the run directory; Ctrl-C ends the program there."""
    from jaxleak.runs.run import run_sweep

    try:
        return run_sweep(sweep, command.out, lanes=lanes(command), shard=shard, on=on)
    except KeyboardInterrupt:
        told = f"\nInterrupted: finished trials are in {command.out}; the same command continues there."
        print(told, file=sys.stderr)
        sys.exit(INTERRUPTED)


def attack(command: AttackCommand) -> int:
    """`jaxleak attack`."""
    from jaxleak.attacks.attacker import with_fitting_stops
    from jaxleak.results.agreement import draw, write_report
    from jaxleak.results.tables import evidence_table
    from jaxleak.threat.shared_update import load_update

    _prepare(command)
    attacks = build_attacks(command)
    victim = load_update(
        command.update,
        command.weights,
        command.model,
        image_shape=command.image_shape,
        batch=command.batch,
        client=build_client(command),
        normalise=command.normalise,
        truth=command.truth,
        labels=command.labels,
        fields=model_fields(command.model_field),
    )
    if command.stop_objective is None:
        attacks = with_fitting_stops(attacks, victim)
    result = _swept(sweep_of(victim, attacks, command), command)
    told, kept = write_report(result, command.out)
    _console().print(evidence_table(told))
    for one in told:
        for text in one["missing"]:
            print(f"{one['attack']}: {text}")
    files = ["report.json"]
    if kept:
        draw(kept, victim.images if victim.knows_truth else None, command.out / "best.png")
        files += ["best.npz", "best.png"]
    print(f"{command.out}: {', '.join(files)}")
    return 0


def table(command: TableCommand) -> int:
    """`jaxleak table`."""
    _check_runs(command.runs)
    _print_tables([_summary(path) for path in command.runs], command.runs, by_image=command.by_image)
    return 0


def plot(command: PlotCommand) -> int:
    """`jaxleak plot`."""
    from jaxleak.results.figures import draw_all
    from jaxleak.results.store.run import Run

    _check_runs(command.runs)
    for run_directory in [Run.open(path) for path in command.runs]:
        for figure in draw_all(run_directory):
            print(f"figure: {figure}")
    return 0


def report(command: ReportCommand) -> int:
    """`jaxleak report`."""
    from jaxleak.results.page import write_page

    print(f"page: {write_page(command.runs, command.out, trials=command.trials, title=command.title)}")
    return 0


def bench(command: BenchCommand) -> int:
    """`jaxleak bench`."""
    from jaxleak.bench.command import run_bench
    from jaxleak.bench.settings import VARIANTS, Settings
    from jaxleak.bench.tables import tables

    fields = {**vars(command), "only": VARIANTS if command.only is None else command.only}
    result = run_bench(Settings(**{name: value for name, value in fields.items() if name != "out"}), command.out)
    _console(180).print(tables(result))
    if command.out is not None:
        print(f"{command.out}: written")
    if result["interrupted"]:
        return INTERRUPTED
    return 0


def models(command: ModelsCommand) -> int:
    """`jaxleak models`."""
    from jaxleak.bench.models import measure_models
    from jaxleak.bench.tables import models_table
    from jaxleak.engine.devices import use_all_cores

    use_all_cores()
    lines = []
    try:
        for line in measure_models(command.only, seconds=command.seconds if command.measure else 0.0):
            lines.append(line)
            if command.measure:
                print(f"{line.model}: measured", file=sys.stderr, flush=True)
    finally:
        if lines:
            _console().print(models_table(lines))
    return 0


def _check_runs(runs: Sequence[Path]) -> None:
    if not runs:
        raise InputError("`runs` must name at least one run directory.")


def _summary(path: Path) -> dict[str, Any]:
    from jaxleak.results.store.run import Run
    from jaxleak.results.summary import current_summary

    return current_summary(Run.open(path))


def _print_tables(summaries: list[dict[str, Any]], runs: Sequence[Path], *, by_image: bool) -> None:
    from jaxleak.results.tables import rates_by_image, status_table, summary_table

    console = _console()
    if by_image:
        for summary in summaries:
            console.print(rates_by_image(summary))
    names = [str(path) for path in runs]
    console.print(summary_table(summaries, names))
    console.print(status_table(summaries, names))
    for name, summary in zip(names, summaries, strict=True):
        for text in summary["warnings"]:
            print(f"warning: {text}" if len(names) == 1 else f"warning: {name}: {text}")


def _console(width: int = 110):
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


COMMANDS = {
    "run": (RunCommand, run),
    "attack": (AttackCommand, attack),
    "table": (TableCommand, table),
    "plot": (PlotCommand, plot),
    "report": (ReportCommand, report),
    "bench": (BenchCommand, bench),
    "models": (ModelsCommand, models),
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. A user's mistake is one line on stderr and exit code 2."""
    warnings.showwarning = lambda message, *_: print(f"jaxleak: warning: {message}", file=sys.stderr)
    command = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in COMMANDS.items()},
        prog="jaxleak",
        description="Gradient-leakage attacks in JAX, hundreds of restarts at once.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    act = next(act for kind, act in COMMANDS.values() if isinstance(command, kind))
    try:
        code = act(command)  # pyright: ignore[reportArgumentType]
    except InputError as error:
        print(f"jaxleak: {' '.join(str(error).split())}", file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)
