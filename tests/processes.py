"""Runs in processes of their own, which tests start, kill and start again."""

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxleak import cli
from jaxleak.results.store.run import Run

PROJECT = Path(__file__).parent.parent


# The command in a process of its own. It writes every trial as soon as it ends and pauses after every chunk, so that
# a short run can be hit in its middle. A shell may start processes with Ctrl-C ignored: here it never is.
DRIVER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import jaxleak.runs.session as sweep
from jaxleak.cli import main
sweep.FLUSH_SECONDS = 0
update, pause = sweep.Progress.update, float(sys.argv[1])
def slowly(self, *args, **kwargs):
    time.sleep(pause)
    update(self, *args, **kwargs)
sweep.Progress.update = slowly
main(sys.argv[2:])
"""


PAUSE = 0.3


SECONDS = 120  # for a process to write a part


def small_pictures(folder: Path, count: int = 4) -> Path:
    """Grey pictures of 8 by 8 pixels in three classes."""
    path = folder / "small.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(count) % 3)
    return path


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> list[str]:
    """Arguments of a run of ten trials on two small pictures; only `--out` is lacking."""
    path = small_pictures(tmp_path_factory.mktemp("pictures"))
    # One lane a device: what is left of a run is computed by the same program as the whole.
    return [
        *("run", "--attack", "idlg:torch-lbfgs", "--dataset", str(path), "--images", "3", "1", "--seeds", "5", "--x64"),
        *("--iterations", "10", "--history", "20", "--lanes", "2", "--no-figures"),
        *("--success-objective", "0.01", "--success-error", "0.5"),
    ]


def finish(arguments: list[str], out: Path) -> Run:
    """Run the command to its end in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--out", str(out)])
    assert ended.value.code == 0, said.getvalue()
    return Run.open(out)


@contextlib.contextmanager
def started(arguments: list[str], out: Path, pause: float = PAUSE, *, optimise: bool = False):
    """The command in a process of its own; killed at the latest when the block ends."""
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    if not optimise:  # compiling is most of a small run
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    command = [sys.executable, "-c", DRIVER, str(pause), *arguments, "--out", str(out)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def parts(out: Path) -> int:
    return len(list(out.glob("rows-*.parquet")))


def wait_for_part(process: subprocess.Popen, out: Path, seconds: float = SECONDS) -> None:
    """Until one part more is on the disk."""
    before, last = parts(out), time.monotonic() + seconds
    while parts(out) == before:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < last, f"no part within {seconds} s"
        time.sleep(0.01)


def verdicts(run: Run) -> dict[tuple[int, int], str]:
    return {(row["image"], row["seed"]): row["status"] for row in run.rows()}


def assert_same(run: Run, whole: Run):
    """Every trial once and as in the unkilled run."""
    rows, wanted = ({row["trial"]: row for row in one.rows()} for one in (run, whole))
    assert len(run.rows()) == len(rows) == len(wanted)
    assert sorted(rows) == sorted(wanted)
    assert verdicts(run) == verdicts(whole)
    for trial, row in rows.items():
        assert row["evaluations"] == wanted[trial]["evaluations"]
        assert row["objective"] == pytest.approx(wanted[trial]["objective"], rel=1e-6, abs=0)
    candidates, wanted_candidates = (one.arrays(["trial", "candidate"]) for one in (run, whole))
    order, wanted_order = (np.argsort(arrays["trial"]) for arrays in (candidates, wanted_candidates))
    np.testing.assert_array_equal(candidates["trial"][order], wanted_candidates["trial"][wanted_order])
    np.testing.assert_allclose(
        candidates["candidate"][order], wanted_candidates["candidate"][wanted_order], rtol=1e-5, atol=1e-6
    )


@pytest.fixture(scope="module")
def whole(small_run, tmp_path_factory) -> Run:
    """The same command, left alone."""
    return finish(small_run, tmp_path_factory.mktemp("whole") / "run")
