"""Stopped at any moment, by a kill or by Ctrl-C, the same command continues: no trial lost, none twice, none other."""

import contextlib
import random
import signal
import subprocess
import time
import warnings
from pathlib import Path

import jax
import pytest

from jaxleak import cli
from jaxleak.results.store.run import Run
from tests.processes import (
    PAUSE,
    SECONDS,
    assert_same,
    finish,
    parts,
    started,
    verdicts,
    wait_for_part,
)

TRIALS = 10


@pytest.fixture(scope="module", autouse=True)
def restore_globals():
    """The command line sets the precision and how warnings are shown."""
    jax.devices()  # running, jax keeps the tests' two devices whatever the command asks for
    precision, show = jax.config.read("jax_enable_x64"), warnings.showwarning
    yield
    jax.config.update("jax_enable_x64", precision)
    warnings.showwarning = show


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
