"""Stopped at any moment, by a kill or by Ctrl-C, the same command continues: no trial lost, none twice, none other."""

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
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
TRIALS = 10
SECONDS = 120  # for a process to write a part


@pytest.fixture(scope="module", autouse=True)
def restore_globals():
    """The command line sets the precision and how warnings are shown."""
    jax.devices()  # running, jax keeps the tests' two devices whatever the command asks for
    precision, show = jax.config.read("jax_enable_x64"), warnings.showwarning
    yield
    jax.config.update("jax_enable_x64", precision)
    warnings.showwarning = show


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


def test_the_small_run_has_both_verdicts(whole):
    rows = whole.rows()
    assert sorted(row["trial"] for row in rows) == list(range(TRIALS))
    assert 0 < sum(row["success"] for row in rows) < TRIALS


def test_killed_twice_and_resumed(small_run, whole, tmp_path):
    out = tmp_path / "run"
    done = [0]
    for delay in (0.0, random.Random(0).uniform(0, PAUSE)):
        with started(small_run, out) as process:
            wait_for_part(process, out)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        done.append(len(Run.open(out).rows()))
    assert 0 < done[1] < done[2] < TRIALS
    assert_same(finish(small_run, out), whole)


def test_ctrl_c_says_how_to_continue(small_run, whole, tmp_path):
    out = tmp_path / "run"
    with started(small_run, out) as process:
        wait_for_part(process, out)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=SECONDS)[1].decode()
    assert process.returncode == cli.INTERRUPTED == 130
    assert said.splitlines()[-1] == f"Interrupted: finished trials are in {out}; the same command continues there."
    assert "Traceback" not in said
    assert 0 < len(Run.open(out).rows()) < TRIALS
    assert (out / "summary.json").exists()
    assert not list(out.glob(".*.tmp"))
    assert_same(finish(small_run, out), whole)


def kill_at_random_moments(arguments: list[str], folder: Path, kills: int, pause: float) -> tuple[Run, Run]:
    """The resumed run and the unkilled one. Moments follow from the latter's timing; some lie before any new part."""
    began = time.monotonic()
    with started(arguments, folder / "whole", pause, optimise=True) as process:
        wait_for_part(process, folder / "whole", seconds=600)
        starting = time.monotonic() - began
        said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    working = time.monotonic() - began - starting

    out, moments, killed = folder / "run", random.Random(0), 0
    while killed < kills:
        with started(arguments, out, pause, optimise=True) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(starting / 2, starting + working / kills))
            if process.poll() is not None:  # faster than the run that was measured, on a machine that is less busy now
                break
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            killed += 1
    assert killed > 1
    assert parts(out) > 0
    with started(arguments, out, pause, optimise=True) as process:
        said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    return Run.open(out), Run.open(folder / "whole")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_forty_trials_killed_five_times_at_random_moments(tmp_path):
    """LeNet on photographs of 32 by 32 pixels, in float64."""
    arguments = [
        *("run", "--attack", "dlg:torch-lbfgs", "--dataset", "photos", "--images", "6", "12", "--seeds", "20", "--x64"),
        *("--iterations", "60", "--success-objective", "0.1", "--lanes", "2", "--no-figures"),
    ]
    run, whole = kill_at_random_moments(arguments, tmp_path, kills=5, pause=0)
    assert 0 < sum(row["success"] for row in whole.rows()) < 40
    assert sorted(row["trial"] for row in run.rows()) == list(range(40))
    assert verdicts(run) == verdicts(whole)
