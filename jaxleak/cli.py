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
    """Attacks: dlg (label optimised jointly), idlg (label read from the head's gradient)."""
    model: str = "lenet"
    """The victim's model: lenet (DLG's), resnet18 to resnet152 (CIFAR form)."""
    dataset: str = "photos"
    """photos (embedded), cifar100, mnist, lfw (prepared for tensorflow-datasets), a folder of pictures, or an .npz."""
    data_dir: Path | None = None
    """Where tensorflow-datasets finds its prepared data (default: $JAXLEAK_DATA_DIR, or its own)."""
    split: str | None = None
    """Split of the data set (default: train if it is there, else test)."""
    images: tuple[int, ...] | None = None
    """Which images: their index in the data set."""
    num_images: int | None = None
    """Instead of --images: this many images at random (default without --images: 4)."""
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
    solver: str = "lbfgs"
    """lbfgs (steps are tested), torch-lbfgs (the papers'), jaxopt-lbfgs, optax-lbfgs, adam; of the attacks that name
    none."""
    scale: str = "none"
    """What the objective is measured in: none (as published), relative (to the shared gradient), per-tensor. Other than
    none, it is added to the attacks' names."""
    features: float = 0.0
    """Weight of matching the head's input, which one image's gradient gives away; above 0 it is added to the
    attacks' names."""
    lr: float | None = None
    """The learning rate of torch-lbfgs and jaxopt-lbfgs (default: 1) and adam (0.1); the others have none."""
    history: int = 100
    """Pairs that L-BFGS keeps."""
    line_search: str = "zoom"
    """Of jaxopt-lbfgs: fixed, zoom, hager-zhang."""
    iterations: int | None = None
    """Budget of a trial: outer steps of at most 20 evaluations for L-BFGS (default 300), steps for adam (4800)."""
    max_evaluations: int | None = None
    """A trial also ends once it has spent this many evaluations (default: no such limit)."""
    stop_objective: float = 1e-6
    """A trial ends when its objective is below this at the end of an iteration."""
    success_objective: float = 1e-4
    """Success needs an objective below this ..."""
    success_error: float = 0.2
    """... and a relative image error |x - x*| / |x*| below this."""
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
    jaxleak-lbfgs."""
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


def build_solver(command: RunCommand, name: str):
    """The solver of that name that the flags describe."""
    from jaxleak.solvers import LBFGS, SOLVERS, Adam, JaxoptLBFGS, OptaxLBFGS, TorchLBFGS

    kind = SOLVERS[check_choice("solver", name, SOLVERS)]
    if kind in (LBFGS, OptaxLBFGS):
        if command.lr is not None:
            raise InputError(
                f"`lr` must not be given with the solver {name}, which finds its step sizes; leave it out."
            )
        return kind(history=command.history)
    rate: dict[str, Any] = {} if command.lr is None else {"lr": command.lr}
    if kind is Adam:
        return Adam(**rate)
    if kind is JaxoptLBFGS:
        return JaxoptLBFGS(history=command.history, line_search=command.line_search, **rate)
    return TorchLBFGS(history=command.history, **rate)


def _variations(command: RunCommand) -> list[str]:
    """What tells the run's attacks from the presets, for their names."""
    return ([] if command.scale == "none" else [command.scale]) + (["features"] if command.features else [])


def build_sweep(command: RunCommand):
    """Everything `jaxleak run` needs, checked before any long work."""
    from jaxleak.attacks import named_attack, with_solver
    from jaxleak.data import load_dataset
    from jaxleak.models import MODELS
    from jaxleak.solvers.jaxopt_lbfgs import LINE_SEARCHES
    from jaxleak.stats import Criteria
    from jaxleak.sweep import Sweep
    from jaxleak.victim import NETWORKS, make_victim

    # Names and counts first: they are checked without touching data.
    attacks = [named_attack(name) for name in command.attack]
    check_choice("model", command.model, MODELS)
    check_choice("network", command.network, NETWORKS)
    for name in ("seeds", "num_images", "iterations", "max_evaluations", "history"):
        if getattr(command, name) is not None:
            check_positive(name, getattr(command, name), integer=True)
    check_choice("line_search", command.line_search, LINE_SEARCHES)
    if command.lanes != "auto":
        check_positive("lanes", command.lanes, integer=True)
    if command.images is not None and command.num_images is not None:
        raise InputError("`images` and `num_images` exclude each other; give one of them.")
    attacks = tuple(
        replace(
            with_solver(attack, build_solver(command, solver or command.solver), command.iterations),
            stop_objective=command.stop_objective,
            max_evaluations=command.max_evaluations,
            scale=command.scale,
            features=command.features,
            name="+".join([attack.name, *_variations(command)]),
        )
        for attack, solver in attacks
    )
    criteria = Criteria(
        objective=command.success_objective,
        relative_error=command.success_error,
        mse_thresholds=command.mse_thresholds,
    )
    data = load_dataset(command.dataset, split=command.split, data_dir=command.data_dir)
    images = command.images
    if images is None:
        images = data.random_indices(command.num_images or 4, command.image_seed)
    victim = make_victim(
        command.model,
        data,
        [int(index) for index in images],
        network=command.network,
        network_seed=command.network_seed,
        weights=command.weights,
    )
    return Sweep(
        victim=victim,
        attacks=attacks,
        seeds=command.seeds,
        start_seed=command.start_seed,
        criteria=criteria,
        snapshots=command.snapshots,
    )


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
    _print_tables([result.summary], [command.out], by_image=len(sweep.victim.indices) > 1)
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

    from jaxleak.stats import Criteria, summarise
    from jaxleak.store import Run

    stored = Run.open(path)
    settings = stored.settings
    expected = len(settings["attacks"]) * len(settings["victim"]["images"]) * settings["seeds"]
    criteria = Criteria(**{key: _tuple(value) for key, value in settings["criteria"].items()})
    try:
        engine = json.loads((path / "summary.json").read_text())["engine"]
    except (OSError, ValueError, KeyError, TypeError):
        engine = None
    return summarise(stored.rows(), criteria, expected=expected, engine=engine, settings_hash=stored.settings_hash)


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
