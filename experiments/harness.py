"""What the experiments share: where runs and results lie, and the command line."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import rich

import jaxleak

# The papers' attacks: `jaxleak.DLG` and `jaxleak.IDLG` have a solver of our own.
DLG, IDLG = (replace(attack, solver=jaxleak.TorchLBFGS()) for attack in (jaxleak.DLG, jaxleak.IDLG))
HERE = Path(__file__).parent
RESULTS = HERE / "results"


def arguments(description: str | None, **extra: dict[str, Any]) -> argparse.Namespace:
    """The flags every experiment has (`--data-dir`, `--runs`, `--results`, `--lanes`, `--only`), and its own."""
    global RESULTS
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("JAXLEAK_DATA_DIR")
    parser.add_argument("--data-dir", default=default, help="prepared tensorflow-datasets (default: its own folder)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories go; resumable")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where rows and figures go (default: those of the project)"
    )
    parser.add_argument("--lanes", type=int, default=None, help="trials at once (default: chosen)")
    parser.add_argument("--only", nargs="*", default=None, help="just these of the experiment's runs")
    for name, options in extra.items():
        told: dict[str, Any] = {"help": "default: %(default)s", **options}
        parser.add_argument(f"--{name.replace('_', '-')}", **told)
    parsed = parser.parse_args()
    RESULTS = parsed.results
    sys.excepthook = _in_a_line
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what has ended is written
    jaxleak.use_all_cores()
    return parsed


def _in_a_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A mistake in what was given is one line and code 2, as on jaxleak's command line."""
    if not isinstance(error, jaxleak.InputError):
        sys.__excepthook__(kind, error, trace)
        return
    print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)  # a hook cannot choose the code otherwise


def chosen_runs(names: Iterable[str], options: argparse.Namespace) -> list[str]:
    """Those named by `--only`, or all; a name that is none of them ends the program with one line and code 2."""
    names = list(names)
    unknown = set(options.only or ()) - set(names)
    if unknown:
        print(f"`only` must be among {', '.join(names)}; got {', '.join(sorted(unknown))}.", file=sys.stderr)
        raise SystemExit(2)
    return [name for name in names if not options.only or name in options.only]


def run_all(
    experiment: str, sweeps: Mapping[str, jaxleak.Sweep], options: argparse.Namespace
) -> dict[str, jaxleak.Result]:
    """Run or resume each sweep in `RUNS/EXPERIMENT/NAME`, and copy its rows and summary to the results folder."""
    return {name: run_one(experiment, name, sweeps[name], options) for name in chosen_runs(sweeps, options)}


def run_one(experiment: str, name: str, sweep: jaxleak.Sweep, options: argparse.Namespace) -> jaxleak.Result:
    """`run_all` for one sweep.

    Raises:
        InputError: more trials are stored there than the sweep has.
    """
    folder = results_folder(experiment)
    file = folder / f"{name}.json"
    stored = json.loads(file.read_text())["trials_expected"] if file.exists() else 0
    if stored > sweep.total:
        raise jaxleak.InputError(
            f"{file} has {stored} trials, which {sweep.total} would replace. Give `--results DIR` for a smaller try."
        )
    result = jaxleak.run_sweep(sweep, options.runs / experiment / name, lanes=options.lanes)
    rich.print(result.table())
    result.run.write_rows(folder / f"{name}.parquet")
    made = dict(result.run.environment)
    if "command" in made:  # it names no path of the machine
        for word, path in {"RUNS": options.runs, "DIR": options.data_dir or "DIR"}.items():
            made["command"] = made["command"].replace(str(path), word)
    # Of an image with one trial the rows say all there is.
    groups = [group for group in result.summary["groups"] if group["image"] is None or group["trials"] > 1]
    summary = {**result.summary, "groups": groups, "settings": result.run.settings, "environment": made}
    write_json(file, summary)
    return result


def results_folder(experiment: str) -> Path:
    """Where an experiment's committed rows and figures lie."""
    folder = RESULTS / experiment
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path: Path, content: Any) -> None:
    """JSON for people: indented, one trailing newline."""
    path.write_text(json.dumps(content, indent=1) + "\n")
