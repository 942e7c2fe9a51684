"""Faults in the middle of runs, and inputs that nobody would write: what was tried, and what is left afterwards.

A small run (six trials of iDLG in float64, its figures and its page) is struck at forty moments by each of four
signals, and meets a disk that is full at each of its writes. Then the same command must end with every trial once, each
with the result of an undisturbed run, bit for bit. The fuzz of `tests/faults/test_fuzz.py` follows.

    python -m experiments.reliability
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling is most of a small run; the rows are the same

import numpy as np

from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder
from jaxleak import Run

PAPER = "Reliability"
MOMENTS = 40
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -signal.SIGKILL}
FULL = "disk full"
FUZZ = ("safetensors", "npz", "run.json", "summary.json", "parts", "flags")  # as TRIED of test_fuzz.py has them
PROJECT = Path(__file__).parents[1]
FILE = "cases.jsonl"


def words(folder: Path) -> list[str]:
    """The command that is struck; only `--out` is lacking."""
    path = folder / "small.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(4) % 3)
    return [
        *("run", "--attack", "idlg:torch-lbfgs", "--dataset", str(path), "--images", "3", "1", "--seeds", "3", "--x64"),
        *("--iterations", "6", "--history", "20", "--lanes", "2", "--snapshots", "0", "2"),
        *("--success-objective", "0.01", "--success-error", "0.5"),
    ]


def killed(line: list[str], out: Path, moment: Any) -> int:
    """The command in a process of its own, which kills itself at the moment; its exit code."""
    own = {**os.environ, "PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}
    process = [sys.executable, "-m", "tests.faults.moments", str(moment), "SIGKILL", *line, "--out", str(out)]
    return subprocess.run(process, env=own, capture_output=True, check=False, cwd=PROJECT).returncode


def faults(line: list[str], folder: Path) -> Iterator[tuple[str, str, Callable[[Path], tuple[int, bool]]]]:
    """Every fault with the name of its case, and what makes it: the exit code, and whether temporary files must go."""
    from tests.faults.moments import FullDisk, command, random_moments, struck

    def strike(name: str, moment: Any) -> Callable[[Path], tuple[int, bool]]:
        if name == "SIGKILL":
            return lambda out: (killed(line, out, moment), False)
        return lambda out: (struck(line, out, moment, signal.Signals[name]).code, True)

    for name in CODES:
        for number, moment in enumerate(random_moments(MOMENTS, signal.Signals[name])):
            yield name, f"{number} {moment}", strike(name, moment)
    with FullDisk().mounted() as disk:
        command(line, folder / "counted")

    def fill(free: int) -> Callable[[Path], tuple[int, bool]]:
        def full(out: Path) -> tuple[int, bool]:
            with FullDisk(free).mounted():
                return command(line, out).code, True

        return full

    for free in range(disk.written):
        yield FULL, str(free), fill(free)


def one(line: list[str], out: Path, whole: Run, make: Callable[[Path], tuple[int, bool]], code: int) -> dict[str, Any]:
    """Make the fault, continue, and compare."""
    from tests.faults.moments import check_left, command, compared

    row: dict[str, Any] = {"code": None, "struck": False, "survived": False, "rows": 0}
    try:
        row["code"], clean = make(out)
        row["struck"] = row["code"] == code
        if clean:
            check_left(out)
        again = command([*line, "--no-figures"], out)
        row["rows"] = compared(Run.open(out), whole)
        row["survived"] = row["code"] in (0, code) and again.code == 0
    except AssertionError as error:
        row["why"] = " ".join(str(error).split())[:300]
    return row


def fuzzed(folder: Path) -> dict[str, Any]:
    """The fuzz in a process of its own: examples by kind, and whether all were answered."""
    counts = folder / "counts.json"
    own = {**os.environ, "PYTHONPATH": str(PROJECT), "JAXLEAK_FUZZ_COUNTS": str(counts)}
    process = [sys.executable, "-m", "pytest", "tests/faults/test_fuzz.py", "-n", "0", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(process, env=own, capture_output=True, text=True, check=False, cwd=PROJECT)
    tried = json.loads(counts.read_text()) if counts.exists() else {}
    return {"tried": tried, "survived": done.returncode == 0, "why": "" if not done.returncode else done.stdout[-300:]}


def main() -> None:
    from tests.faults.moments import command

    options = arguments(__doc__)
    chosen = chosen_runs([*CODES, FULL, "fuzz"], options)
    path, done = results_folder("reliability") / FILE, {(row["fault"], row["case"]) for row in rows()}
    made: dict[str, Any] = {}

    def keep(row: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps({**row, **made}) + "\n")
        print(row, flush=True)

    with tempfile.TemporaryDirectory(prefix="jaxleak-") as name:
        folder = Path(name)
        line = words(folder)
        assert command([*line, "--no-figures"], folder / "whole").code == 0
        whole = Run.open(folder / "whole")
        made |= {key: whole.environment[key] for key in ("device", "git_revision", "git_dirty")}
        if "fuzz" in chosen and ("fuzz", "all") not in done:
            keep({"fault": "fuzz", "case": "all", **fuzzed(folder)})
        for fault, case, make in faults(line, folder):
            if fault in chosen and (fault, case) not in done:
                keep({"fault": fault, "case": case, **one(line, folder / "run", whole, make, CODES.get(fault, 3))})
                shutil.rmtree(folder / "run", ignore_errors=True)


def rows() -> list[dict[str, Any]]:
    """The cases that are done."""
    path = results_folder("reliability") / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results() -> list[tables.Results]:
    """Faults and what was left; inputs and how they were answered."""
    made, lines = rows(), []
    for fault in (*CODES, FULL):
        mine = [row for row in made if row["fault"] == fault]
        hit, survived = (sum(row[key] for row in mine) for key in ("struck", "survived"))
        counts = [len(mine), hit, f"{survived}/{len(mine)}", sum(row["rows"] for row in mine)]
        lines.append((fault, *(counts if mine else [tables.NOT_RUN] * 4)))
    fuzz = next((row for row in made if row["fault"] == "fuzz"), None)
    inputs = [(kind, f"{fuzz['tried'].get(kind, 0):,}" if fuzz else tables.NOT_RUN) for kind in FUZZ]
    total = f"{sum(fuzz['tried'].values()):,} examples" if fuzz else "Examples"
    verdict = "all answered" if fuzz and fuzz["survived"] else "not all answered" if fuzz else "not run"
    devices = ", ".join(dict.fromkeys(row["device"] for row in made))
    return [
        tables.Results(
            "Runs that are struck",
            "reliability",
            ("fault", "cases", "in the run", "survived", "rows compared"),
            lines,
            devices,
            (
                "Survived: the exit code is the fault's own, and the same command then ends with every trial once.",
                "Rows compared: all equal those of an undisturbed run bit for bit, in float64.",
                "In the run: cases whose moment came before the run was over.",
                "A disk is full from one of the run's writes on, each in turn.",
            ),
        ),
        tables.Results(
            "Inputs that nobody would write",
            "reliability --only fuzz",
            ("input", "examples"),
            inputs,
            devices,
            (f"{total}, {verdict}: exit code 0 or 2, at most six lines, no traceback, no file elsewhere, in 20 s.",),
        ),
    ]


if __name__ == "__main__":
    main()
