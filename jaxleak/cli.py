"""The command line: `jaxleak run`, `jaxleak table`, `jaxleak plot`, `jaxleak bench`."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxleak.errors import InputError, check_choice, check_positive

INTERRUPTED = 130
BAD_INPUT = 2


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """Attack private images from many random starts at once, and read the success rate off them.

    Example: jaxleak run --attack dlg idlg --dataset photos --num-images 2 --seeds 8 --out my-run

    Stopped at any moment, the same command continues where it was.
    """

    out: Path
    """Run directory: settings, one row per trial, reconstructions, summary.json and figures/."""
    attack: tuple[str, ...] = ("dlg", "idlg")
    """Attacks: dlg (label optimised jointly), idlg (label read from the head's gradient), cpl (from a pattern), ig
    (cosine, total variation, sign of the gradient), modern, gradinversion, analytic (closed form, for mlp); with a
    solver of its own after a colon, as in dlg:torch-lbfgs."""
    model: str = "lenet"
    """The victim's model: lenet (DLG's), mlp, resnet18 to resnet152 (CIFAR form)."""
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
    batch: int = 1
    """Images per update: the first of --images make the first update, and so on."""
    batch_labels: str = "any"
    """Labels of the images that --num-images puts into a batch: any, distinct or same."""
    image_seed: int = 0
    """From which --num-images draws."""
    seeds: int = 16
    """Random starts per image and attack."""
    start_seed: int = 0
    """From which the starts are drawn."""
    network: str = "per-trial"
    """Victim networks: shared (one for all), per-image, or per-trial (a fresh one each, as in the papers' tables)."""
    network_seed: int = 0
    """From which the networks are drawn."""
    weights: Path | None = None
    """Instead of drawing: a safetensors file in torch's names and layout (with --network shared)."""
    normalise: str = "none"
    """Whose mean and deviation the network's input is brought to: none, cifar100, cifar10, mnist, imagenet."""
    client_steps: int = 0
    """Local steps of the client, which then shares by how much its weights fell (FedAvg); 0 shares the gradient."""
    client_epochs: int = 0
    """Instead of --client-steps: passes over the client's images."""
    client_optimizer: str = "sgd"
    """Of the local steps: sgd, adam."""
    client_lr: float = 0.01
    """Its learning rate."""
    client_batch: int | None = None
    """Images per local step, taken in turn (default: all)."""
    clients: int = 1
    """Among how many clients the images of an update are divided; the mean of their updates is attacked."""
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
    solver: str | None = None
    """lbfgs (steps are tested), torch-lbfgs (the papers'), jaxopt-lbfgs, optax-lbfgs, adam; of the attacks that name
    none (default: the attack's own)."""
    start: str | None = None
    """Where the images start: normal, uniform, black, white, red, green, blue, pattern-16, pattern-8, pattern-4 (or a
    tile of any other side), surrogate. This and the flags down to --knows-defence default to the attack's own; what is
    given is added to the attacks' names."""
    label: str | None = None
    """Where labels come from: joint (optimised), known, idlg, bias, unique, row-minima, counts, counts-published."""
    objective: str | None = None
    """l2 or cosine."""
    scale: str | None = None
    """What the objective is measured in: none (as published), relative (to the shared gradient), per-tensor."""
    layers: tuple[str, ...] | None = None
    """Layers to compare, each with a weight if you like: conv1 head:0.5; '*' is all others."""
    features: float | None = None
    """Weight of matching the head's input, which one image's gradient gives away."""
    label_term: float | None = None
    """CPL's alpha: weight of (prediction - label)^2."""
    tv: float | None = None
    """Weight of the total variation."""
    norm: float | None = None
    """Weight of the images' norm."""
    statistics: float | None = None
    """Weight of matching BatchNorm's statistics of the client's batch."""
    group: int | None = None
    """Starts that a trial follows together; the one with the lowest objective is reported. Needs adam."""
    consistency: float | None = None
    """Weight of their agreement."""
    box: bool | None = None
    """Keep pixels in [0, 1]. Needs adam."""
    dummies: int | None = None
    """Images that are optimised (default: as many as the update holds)."""
    knows_defence: bool | None = None
    """The attacker leaves out the entries that pruning set to zero."""
    lr: float | None = None
    """The learning rate of torch-lbfgs and jaxopt-lbfgs (default: 1) and adam (0.1); the others have none."""
    sign: str | None = None
    """What adam is given: the gradient (none), its sign (hard), its soft sign (soft)."""
    schedule: str | None = None
    """Of adam's learning rate: constant, step, cosine."""
    warmup: int | None = None
    """Steps until adam's learning rate is reached."""
    weight_decay: float | None = None
    """Of adam, decoupled (AdamW)."""
    langevin: float | None = None
    """Noise added to adam's gradient."""
    history: int = 100
    """Pairs that L-BFGS keeps."""
    line_search: str = "zoom"
    """Of jaxopt-lbfgs: fixed, zoom, hager-zhang."""
    iterations: int | None = None
    """Budget of a trial: outer steps of at most 20 evaluations for L-BFGS (default 300), steps for adam (4800)."""
    max_evaluations: int | None = None
    """A trial also ends once it has spent this many evaluations (default: no such limit)."""
    stop_objective: float | None = None
    """A trial ends when its objective is below this at the end of an iteration (default: 1e-6; ig never)."""
    success_objective: float = 1e-4
    """Success needs an objective below this ..."""
    success_cosine: float = 1e-2
    """(this where the objective is 1 - cosine) ..."""
    success_error: float = 0.2
    """... and a relative image error |x - x*| / |x*| below this, of every image of a batch."""
    mse_thresholds: tuple[float, ...] = (0.01, 0.005, 0.001, 0.0005, 0.0001)
    """iDLG's family: the share of trials whose MSE is below each is reported."""
    snapshots: tuple[int, ...] = (0, 10, 20, 40, 60, 80, 120, 200)
    """Iterations at which candidates are kept for the pictures."""
    lanes: int | Literal["auto"] = "auto"
    """Trials at once, over all devices."""
    x64: bool = False
    """Compute in float64."""
    figures: bool = True
    """Draw the figures at the end."""


@dataclass(frozen=True, kw_only=True)
class TableCommand:
    """Print the success rates of one or several run directories."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories."""
    by_image: bool = False
    """Also one line per image."""


@dataclass(frozen=True, kw_only=True)
class PlotCommand:
    """Draw the figures of one or several run directories into their figures/."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories."""


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Measure evaluations per second of jaxleak beside a PyTorch loop, a plain vmap and jaxopt, in one run.

    Example: jaxleak bench --seconds 60 --out bench.json

    The variants, each in a process of its own, are measured in turns; starting and compiling are not counted.
    """

    model: str = "lenet"
    """lenet (with L-BFGS) or resnet18 (CIFAR form, with Adam)."""
    only: tuple[str, ...] | None = None
    """Just these of pytorch-processes, pytorch-serial, plain-vmap, jaxopt, jaxleak, jaxleak-network-per-trial,
    jaxleak-lbfgs; and with Inverting Gradients' attack pytorch-cosine-processes, jaxleak-cosine."""
    lanes: tuple[int | Literal["auto"], ...] = ()
    """Trials at once over all devices, several counts if you like (default: auto, and powers of two)."""
    seconds: float = 120.0
    """How long to measure, over all variants."""
    rounds: int = 5
    """How often each variant is measured: medians are reported."""
    width: int | None = None
    """Channels of the ResNet's first stage (default: 64 on a GPU, 16 on a CPU)."""
    profile: bool = False
    """Also measure where the time of a step goes, for another half of --seconds."""
    out: Path | None = None
    """Write the numbers to this JSON file."""


ADAM_FLAGS = ("sign", "schedule", "warmup", "weight_decay", "langevin")
# Flags that replace a field of every attack (the flag's name if it is another), where they are given.
ATTACK_FIELDS = {
    "init": "start",
    **{
        name: name
        for name in (
            "label", "objective", "scale", "layers", "features", "label_term", "tv", "norm", "statistics", "group",
            "consistency", "box", "dummies", "knows_defence",
        )
    },
}  # fmt: skip


def build_solver(command: RunCommand, name: str, own: Any = None):
    """The solver of that name that the flags describe; what they leave open is `own`'s, if that is of its kind."""
    from jaxleak.solvers import LBFGS, SOLVERS, Adam, JaxoptLBFGS, NoSolver, OptaxLBFGS, TorchLBFGS

    kind: Any = SOLVERS[check_choice("solver", name, SOLVERS)]
    given = {flag: getattr(command, flag) for flag in ADAM_FLAGS if getattr(command, flag) is not None}
    if given and kind is not Adam:
        raise InputError(
            f"`{next(iter(given))}` is a setting of the solver adam, not of {name}; leave it out, or use --solver adam."
        )
    if kind in (LBFGS, OptaxLBFGS, NoSolver) and command.lr is not None:
        raise InputError(f"`lr` must not be given with the solver {name}, which finds its step sizes; leave it out.")
    if kind is NoSolver:
        return NoSolver()
    if kind in (LBFGS, OptaxLBFGS):
        return kind(history=command.history)
    rate: dict[str, Any] = {} if command.lr is None else {"lr": command.lr}
    if kind is Adam:
        return replace(own if isinstance(own, Adam) else Adam(), **rate, **given)
    if kind is JaxoptLBFGS:
        return JaxoptLBFGS(history=command.history, line_search=command.line_search, **rate)
    return TorchLBFGS(history=command.history, **rate)


def build_attacks(command: RunCommand):
    """The attacks that the flags describe."""
    from jaxleak.attacks import named_attack, with_solver
    from jaxleak.solvers import solver_name

    changes = {
        field: getattr(command, flag) for field, flag in ATTACK_FIELDS.items() if getattr(command, flag) is not None
    }
    if command.max_evaluations is not None:
        changes["max_evaluations"] = command.max_evaluations
    if command.stop_objective is not None:
        changes["stop_objective"] = command.stop_objective
    attacks = []
    for preset, own in [named_attack(name) for name in command.attack]:
        solver = own or command.solver or solver_name(preset.solver)
        built = with_solver(preset, build_solver(command, solver, preset.solver), command.iterations)
        attacks.append(replace(built, **changes, name="+".join([preset.name, *_variations(command)])))
    return tuple(attacks)


def _variations(command: RunCommand) -> list[str]:
    """What tells the run's attacks from the presets, for their names."""
    words = []
    for flag in (*ATTACK_FIELDS.values(), *ADAM_FLAGS):
        value = getattr(command, flag)
        if value is None:
            continue
        name = flag.replace("_", "-")
        if isinstance(value, bool):
            words.append(name if value else f"no-{name}")
        elif isinstance(value, tuple):
            words.append(",".join(value))
        elif isinstance(value, str):
            words.append(value)
        else:
            words.append(f"{name}={value:g}")
    return words


def build_sweep(command: RunCommand):
    """Everything `jaxleak run` needs, checked before any long work."""
    from jaxleak.client import Client
    from jaxleak.data import BATCH_LABELS, load_dataset
    from jaxleak.defences import parse_defence
    from jaxleak.models import MODELS
    from jaxleak.solvers.jaxopt_lbfgs import LINE_SEARCHES
    from jaxleak.stats import Criteria
    from jaxleak.sweep import Sweep
    from jaxleak.victim import NETWORKS, NORMALISATIONS, make_victim

    # Names and counts first: they are checked without touching data.
    check_choice("model", command.model, MODELS)
    check_choice("network", command.network, NETWORKS)
    for name in ("seeds", "num_images", "batch", "iterations", "max_evaluations", "history"):
        if getattr(command, name) is not None:
            check_positive(name, getattr(command, name), integer=True)
    attacks = build_attacks(command)
    check_choice("line_search", command.line_search, LINE_SEARCHES)
    check_choice("batch_labels", command.batch_labels, BATCH_LABELS)
    check_choice("normalise", command.normalise, NORMALISATIONS)
    if command.lanes != "auto":
        check_positive("lanes", command.lanes, integer=True)
    if command.images is not None and command.num_images is not None:
        raise InputError("`images` and `num_images` exclude each other; give one of them.")
    if command.images is not None and command.batch_labels != "any":
        raise InputError("`batch_labels` is for images drawn at random; leave it out with --images.")
    client = Client(
        steps=command.client_steps,
        epochs=command.client_epochs,
        optimizer=command.client_optimizer,
        lr=command.client_lr,
        batch=command.client_batch,
        clients=command.clients,
    )
    client.check(command.batch)
    defences = tuple(parse_defence(text) for text in command.defence)
    criteria = Criteria(
        objective=command.success_objective,
        cosine=command.success_cosine,
        relative_error=command.success_error,
        mse_thresholds=command.mse_thresholds,
    )
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
        return Sweep(
            victim=victim,
            attacks=attacks,
            seeds=command.seeds,
            start_seed=command.start_seed,
            criteria=criteria,
            snapshots=command.snapshots,
        )

    if command.trained_steps:
        sweep(0).check()  # what cannot be run is refused before anything is trained
    return sweep(command.trained_steps)


def run(command: RunCommand) -> int:
    """`jaxleak run`."""
    import jax

    from jaxleak.environment import use_all_cores
    from jaxleak.sweep import run_sweep

    jax.config.update("jax_enable_x64", command.x64)
    use_all_cores()
    sweep = build_sweep(command)
    try:
        result = run_sweep(sweep, command.out, lanes=None if command.lanes == "auto" else command.lanes)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted: finished trials are in {command.out}; the same command continues there.",
            file=sys.stderr,
        )
        return INTERRUPTED
    _print_tables([result.summary], [command.out], by_image=sweep.victim.updates > 1)
    print(f"{command.out}: {len(result.run.rows())} rows, summary.json")
    if command.figures:
        for path in result.plot():
            print(f"figure: {path}")
    return 0


def table(command: TableCommand) -> int:
    """`jaxleak table`."""
    _check_runs(command.runs)
    _print_tables([_summary(path) for path in command.runs], command.runs, by_image=command.by_image)
    return 0


def plot(command: PlotCommand) -> int:
    """`jaxleak plot`."""
    from jaxleak.plots import draw_all
    from jaxleak.store import Run

    _check_runs(command.runs)
    for run_directory in [Run.open(path) for path in command.runs]:
        for figure in draw_all(run_directory):
            print(f"figure: {figure}")
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


def _check_runs(runs: Sequence[Path]) -> None:
    if not runs:
        raise InputError("`runs` must name at least one run directory.")


def _summary(path: Path) -> dict[str, Any]:
    """The summary of a run directory, made anew from its rows: it may be of a run that is not complete."""
    import json

    from jaxleak import cautions
    from jaxleak.stats import Criteria, expected_trials, summarise
    from jaxleak.store import Run

    stored = Run.open(path)
    settings, rows = stored.settings, stored.rows()
    criteria = Criteria(**{key: _tuple(value) for key, value in settings["criteria"].items()})
    try:
        written = json.loads((path / "summary.json").read_text())
        engine, finished = written["engine"], sum(group["trials"] for group in _overall(written))
    except (OSError, ValueError, KeyError, TypeError):
        written, engine, finished = {}, None, -1
    summary = summarise(
        rows, criteria, expected=expected_trials(settings), engine=engine, settings_hash=stored.settings_hash
    )
    # Those about the settings stand in summary.json only. It may be older than the rows, or than warnings.
    known = written.get("warnings") if finished == len(rows) else None
    return {**summary, "warnings": cautions.after(rows, criteria) if known is None else known}


def _overall(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [group for group in summary["groups"] if group["image"] is None]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _print_tables(summaries: list[dict[str, Any]], runs: Sequence[Path], *, by_image: bool) -> None:
    from jaxleak.tables import rates_by_image, status_table, summary_table

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
    "table": (TableCommand, table),
    "plot": (PlotCommand, plot),
    "bench": (BenchCommand, bench),
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
