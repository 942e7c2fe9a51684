"""The command line: `jaxleak run`, `attack`, `risk`, `infer`, `table`, `plot`, `report`, `bench` and the others."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxleak.cli.commands import (
    AttackCommand,
    BenchCommand,
    DoctorCommand,
    InferCommand,
    ModelsCommand,
    PlotCommand,
    ReportCommand,
    RiskCommand,
    RunCommand,
    TableCommand,
)
from jaxleak.cli.flags import (
    Command,
    build_attacks,
    build_client,
    build_criteria,
    how_to_run,
    model_fields,
    normalise,
    own_victim,
    pictures,
    private_images,
    risk_victim,
    sweep_of,
)
from jaxleak.cli.parse import parse
from jaxleak.errors import InputError, StorageError, check_choice, check_positive
from jaxleak.results.store.shard import ALL, parse_shard
from jaxleak.runs.stop import Stopping, exit_code, stop_text

INTERRUPTED = 130
TRAINED = ("victim.weights", "victim.batch_stats", "victim.knows_statistics")  # settings known after training
UNSAID = 1
BAD_INPUT = 2
UNWRITTEN = 3


def build_sweep(command: RunCommand):
    """The sweep that the flags of `jaxleak run` describe, checked before any long work."""
    from jaxleak.data import BATCH_LABELS
    from jaxleak.models.own.from_file import model_builder
    from jaxleak.results.store.run import Run
    from jaxleak.threat.defences import parse_defence
    from jaxleak.threat.from_dataset import make_victim
    from jaxleak.threat.network import NETWORKS, normalisation_of

    # Names and counts first: they are checked without touching data.
    build = model_builder(command.model)[1]
    check_choice("network", command.network, NETWORKS)
    if command.num_images is not None:
        check_positive("num_images", command.num_images, integer=True)
    attacks = build_attacks(command)
    check_choice("batch_labels", command.batch_labels, BATCH_LABELS)
    normalisation_of(normalise(command))
    if command.images is not None and command.num_images is not None:
        raise InputError("`images` and `num_images` exclude each other; give one of them.")
    if command.images is not None and command.batch_labels != "any":
        raise InputError("`batch_labels` is for images drawn at random; leave it out with --images.")
    client = build_client(command)
    fields = model_fields(command.model_field)
    build(2, **fields)
    defences = tuple(parse_defence(text) for text in command.defence)
    build_criteria(command)
    data = pictures(command)
    images, mixture = private_images(command, data)

    def sweep(trained_steps: int):
        victim = make_victim(
            command.model,
            data,
            images,
            fields=fields,
            knows_statistics=not command.hide_statistics,
            knows_order=not command.hide_order,
            mixture=mixture,
            checkpoint=command.out,
            network=command.network,
            network_seed=command.network_seed,
            weights=command.weights,
            normalise=normalise(command),
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
    from jaxleak.runs.run import run_sweep

    shard = parse_shard(command.shard) if command.shard else ALL
    cluster = _cluster(command)  # before `_prepare` starts jax
    _prepare(command)
    sweep = build_sweep(command)
    with _interruptible(command.out):
        result = run_sweep(sweep, command.out, shard=shard, on=cluster, **how_to_run(command))
        _print_tables([result.summary], [command.out], by_image=sweep.victim.updates > 1)
        count, complete = len(result.run.rows()), result.summary["complete"]
        late = "" if complete or command.minutes is None else "; the time is over, and the same command goes on"
        print(f"{command.out}: {count} rows, summary.json{late}")
        if command.figures and count and (shard == ALL or complete):
            for path in result.plot():
                print(f"figure: {path}")
            if command.report:
                print(f"page: {result.report()}")
    return 0


def _prepare(command: Command) -> None:
    """Set precision and devices before anything is computed."""
    import jax

    from jaxleak.engine.devices import use_all_cores

    jax.config.update("jax_enable_x64", command.x64)
    use_all_cores()


def _cluster(command: RunCommand) -> Any:
    """The Ray cluster that runs the trials; None if this process runs them."""
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


@contextlib.contextmanager
def _interruptible(out: Any) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the program, and it says where the finished trials are."""
    try:
        yield
    except KeyboardInterrupt as error:
        _tell(f"\n{stop_text(error)}: finished trials are in {out}; the same command continues there.")
        sys.exit(exit_code(error))


def _tell(text: str) -> None:
    """A line on stderr, if anybody listens: after SIGHUP there may be no terminal."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def attack(command: AttackCommand) -> int:
    """`jaxleak attack`."""
    from jaxleak.results.tables import evidence_table
    from jaxleak.runs.audit.audit import audit
    from jaxleak.runs.audit.report import sentences
    from jaxleak.threat.own_update import moved_statistics

    _prepare(command)
    attacks = build_attacks(command)
    sweep = sweep_of(own_victim(command), attacks, command)
    shared: Any = command.update or command.after
    moved = moved_statistics(shared, command.before)
    with _interruptible(command.out):
        report, _ = audit(
            sweep,
            command.out,
            moved_statistics=moved,
            stops=command.stop_objective is None,
            **how_to_run(command),
        )
    _console().print(evidence_table(report["attacks"]))
    for text in sentences(report):
        print(text)
    names = ("audit.html", "report.json", "best.npz", "best.png", "determined.png")
    print(f"{command.out}: {', '.join(name for name in names if (command.out / name).exists())}")
    return 0


def risk(command: RiskCommand) -> int:
    """`jaxleak risk`."""
    from jaxleak.data.paths import reachable
    from jaxleak.engine.devices import use_all_cores
    from jaxleak.results.tables import risk_table
    from jaxleak.runs.audit.risk import risk, write_risk
    from jaxleak.threat.defences import parse_defence

    reachable(command.out)
    for text in command.compare:
        for part in text.split():
            parse_defence(part)
    use_all_cores()
    victim, silent = risk_victim(command)
    found = [risk(victim, command.compare, update=update, silent=silent) for update in range(victim.updates)]
    if silent:
        print(f"the update shares nothing of {', '.join(silent)}: it is zero there")
    for one in found:
        _console().print(risk_table([vars(line) for line in one.lines]))
        for text in one.sentences:
            print(text)
    print(f"{command.out}: {', '.join(path.name for path in write_risk(found, command.out, victim))}")
    return 0


def infer(command: InferCommand) -> int:
    """`jaxleak infer`."""
    from jaxleak.cli.infer import answer

    with _interruptible(command.out):
        answer(command, _tell)
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
    from jaxleak.bench.command import run_account, run_bench
    from jaxleak.bench.settings import USUAL, Settings
    from jaxleak.bench.tables import account_table, tables

    fields = {name: value for name, value in vars(command).items() if name not in ("out", "for_")}
    if command.for_ is not None:
        chosen = command.only or (("jaxleak-lbfgs",) if command.model == "lenet" else ("jaxleak",))
        for report in run_account(Settings(**{**fields, "only": chosen}), command.for_, command.out):
            _console(180).print(account_table(report))
        return 0
    result = run_bench(Settings(**{**fields, "only": USUAL if command.only is None else command.only}), command.out)
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


def _version() -> int:
    """`jaxleak --version`."""
    from jaxleak.results.store.environment import VERSIONS, version_of

    print(f"jaxleak {version_of('jaxleak')}")
    print(f"Python {sys.version.split()[0]}, {', '.join(f'{name} {version_of(name)}' for name in VERSIONS)}")
    return 0


def doctor(command: DoctorCommand) -> int:
    """`jaxleak doctor`."""
    from jaxleak.bench.doctor import examine
    from jaxleak.engine.devices import use_all_cores

    if command.seconds:
        check_positive("seconds", command.seconds)
    use_all_cores()
    advice = 0
    for finding in examine(seconds=command.seconds):
        print(f"{finding.what:<10} {finding.found}", flush=True)
        if finding.mend:
            advice += 1
            print(f"{'':<10} -> {finding.mend}", flush=True)
    print("nothing to mend" if not advice else f"{advice} things that could be better: see the lines with ->")
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
    "risk": (RiskCommand, risk),
    "infer": (InferCommand, infer),
    "table": (TableCommand, table),
    "plot": (PlotCommand, plot),
    "report": (ReportCommand, report),
    "bench": (BenchCommand, bench),
    "models": (ModelsCommand, models),
    "doctor": (DoctorCommand, doctor),
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. What goes wrong is one line on stderr, and an exit code.

    It is 1 where nothing can be printed, 2 after a user's mistake, 3 where results cannot be written, and as a shell
    has it after a signal: 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP).
    """
    stopping = Stopping()
    try:
        stopping.begin()
        code = _main(arguments)
        if arguments is None:
            stopping.leave(code)
    finally:
        if arguments is not None:
            stopping.end()
    sys.exit(code)


def _main(arguments: list[str] | None) -> int:
    """Act, and see to it that what was printed arrives; returns the exit code."""
    warnings.showwarning = lambda message, *_: _tell(f"jaxleak: warning: {' '.join(str(message).split())}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # in ASCII a table has other lines, and a name question marks
    closed = sys.stdout is None
    if closed:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        code, error = _answer(arguments), _unsaid()
    except OSError:
        code, error = UNSAID, _unsaid("\n")  # unbuffered, nothing is left to try again with
        if error is None:
            raise
    if error is not None:
        if not isinstance(error, BrokenPipeError):
            _tell(f"jaxleak: the output cannot be written ({error.strerror}).")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more when it ends
    return code or (UNSAID if closed or error is not None else 0)


def _unsaid(more: str = "") -> OSError | None:
    """The reason why what was printed, and this too, cannot be written; None if it is."""
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _answer(arguments: list[str] | None) -> int:
    """Parse and act; returns the exit code."""
    try:
        if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
            return _version()
        command = parse({name: kind for name, (kind, _) in COMMANDS.items()}, arguments)
        act = next(act for kind, act in COMMANDS.values() if isinstance(command, kind))
        return act(command)  # pyright: ignore[reportArgumentType]
    except SystemExit as ended:  # tyro's, after help or a mistake, or an interrupted run's
        return int(ended.code or 0)
    except (InputError, StorageError) as error:
        _tell(f"jaxleak: {' '.join(str(error).split())}")
        return BAD_INPUT if isinstance(error, InputError) else UNWRITTEN
    except KeyboardInterrupt as error:
        _tell(f"\n{stop_text(error)}.")
        return exit_code(error)
