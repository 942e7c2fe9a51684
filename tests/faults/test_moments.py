"""Whatever happens to a run, and when: every trial is there once, with the result of an undisturbed run."""

import builtins
import errno
import gc
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jaxleak
from jaxleak import StorageError
from jaxleak.results.store.run import Run
from jaxleak.runs import session
from jaxleak.runs.stop import Stopped, Stopping
from tests.commands import call, restored_globals
from tests.faults.moments import (
    KINDS,
    FullDisk,
    Moment,
    Said,
    at,
    check_left,
    command,
    compared,
    random_moments,
    struck,
)
from tests.processes import PROJECT, small_pictures
from tests.sweeps import QUICKEST, sweep_of

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(scope="module", autouse=True)
def restore_globals():
    with restored_globals():
        yield


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """A run of six trials on two small pictures, with its figures and its page; only `--out` is lacking."""
    path = small_pictures(tmp_path_factory.mktemp("pictures"))
    return [
        *("run", "--attack", "idlg:torch-lbfgs", "--dataset", str(path), "--images", "3", "1", "--seeds", "3", "--x64"),
        *("--iterations", "6", "--history", "20", "--lanes", "2", "--snapshots", "0", "2"),
        *("--success-objective", "0.01", "--success-error", "0.5"),
    ]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory) -> Run:
    """The same command, left alone."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert command(arguments, out).code == 0
    return Run.open(out)


def without_drawing(arguments: list[str]) -> list[str]:
    return [*arguments, "--no-figures"]


def check(said: Said, arguments: list[str], out: Path, whole: Run, code: int) -> int:
    """What was struck ends with one line or is over; the same command continues to the same rows."""
    assert said.code in (0, code), said
    assert not any("Traceback" in line for line in said.err)
    check_left(out)
    again = command(without_drawing(arguments), out)
    assert again.code == 0, again
    return compared(Run.open(out), whole)


# --- signals ---


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("moment", [Moment("begun", 0), Moment("chunk", 2), Moment("rename", 5)], ids=str)
def test_a_signal_ends_a_run_in_a_line(number, moment, arguments, whole, tmp_path):
    said = struck(without_drawing(arguments), tmp_path / "run", moment, number)
    assert said.code == CODES[number]
    name = "Interrupted" if number == signal.SIGINT else f"Ended by {signal.Signals(number).name}"
    line = f"{name}: finished trials are in {tmp_path / 'run'}; the same command continues there."
    assert said.err[-1] == line
    assert (tmp_path / "run" / "summary.json").exists()
    check(said, arguments, tmp_path / "run", whole, CODES[number])


def test_a_signal_while_figures_are_drawn(arguments, whole, tmp_path):
    said = struck(arguments, tmp_path / "run", Moment("figure", 1), signal.SIGTERM)
    assert said.code == 143
    assert said.err[-1].startswith("Ended by SIGTERM: finished trials are in ")
    assert compared(Run.open(tmp_path / "run"), whole) == 6
    check_left(tmp_path / "run")


def test_rows_wait_for_no_later_signal(arguments, whole, tmp_path, monkeypatch):
    """timeout and schedulers send several: what is finished is written all the same."""
    update = session.Progress.update

    def strike(self, *rest, **options):
        update(self, *rest, **options)
        if self.done:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)

    write = session.Session._write

    def struck_again(self, judged):
        os.kill(os.getpid(), signal.SIGTERM)
        write(self, judged)

    monkeypatch.setattr(session.Progress, "update", strike)
    monkeypatch.setattr(session.Session, "_write", struck_again)
    said = command(without_drawing(arguments), tmp_path / "run")
    assert said.code == 143
    assert 0 < len(Run.open(tmp_path / "run").rows()) < 6
    monkeypatch.undo()
    check(said, arguments, tmp_path / "run", whole, 143)


def test_a_signal_that_is_ignored_stays_so(arguments, tmp_path):
    """As with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with at(Moment("chunk", 1), lambda: os.kill(os.getpid(), signal.SIGHUP)):
            assert command(without_drawing(arguments), tmp_path / "run").code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", CODES)
def test_a_signal_at_forty_moments(number, arguments, whole, tmp_path):
    for i, moment in enumerate(random_moments(40, number)):
        out = tmp_path / str(i)
        check(struck(arguments, out, moment, number), arguments, out, whole, CODES[number])


def killed(arguments: list[str], out: Path, moment: Moment, number: int = signal.SIGKILL) -> int:
    """The command in a process of its own, which gets a signal at the moment."""
    words = [sys.executable, "-m", "tests.faults.moments", str(moment), signal.Signals(number).name]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*words, *arguments, "--out", str(out)], env=environment, capture_output=True, check=False, cwd=PROJECT
    )
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode


@pytest.mark.slow
def test_killed_while_a_part_is_renamed(arguments, whole, tmp_path):
    """The process dies between the arrays and the rows of a part."""
    out = tmp_path / "run"
    assert killed(without_drawing(arguments), out, Moment("rename", 5)) == -signal.SIGKILL
    assert command(without_drawing(arguments), out).code == 0
    assert compared(Run.open(out), whole) == 6
    check_left(out)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_forty_moments(arguments, whole, tmp_path):
    codes = []
    for i, moment in enumerate(random_moments(40, 0)):
        codes.append(killed(arguments, tmp_path / str(i), moment))
        assert command(without_drawing(arguments), tmp_path / str(i)).code == 0
        assert compared(Run.open(tmp_path / str(i)), whole) == 6
    assert set(codes) <= {0, -signal.SIGKILL}
    assert codes.count(-signal.SIGKILL) >= 20


def test_a_signal_in_a_callback_of_the_collector_is_not_lost():
    """Python only prints what is raised there, and goes on."""

    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGTERM)

    stopping, before = Stopping(), sys.unraisablehook
    stopping.begin()
    try:
        with pytest.raises(Stopped, match="SIGTERM"):  # noqa: PT012
            gc.callbacks.append(callback)
            gc.collect()
            time.sleep(20)
    finally:
        stopping.end()
    assert sys.unraisablehook is before


def test_ctrl_c_while_the_command_line_is_imported(monkeypatch, capsys):
    from jaxleak.__main__ import main

    real = builtins.__import__

    def interrupted(name, *arguments, **settings):
        if name == "jaxleak.cli":
            raise KeyboardInterrupt
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_a_process_says_how_it_was_ended(arguments, tmp_path):
    assert killed(without_drawing(arguments), tmp_path / "run", Moment("chunk", 1), signal.SIGTERM) == 143


# --- disks ---


def writes_of(arguments: list[str], out: Path) -> int:
    with FullDisk().mounted() as disk:
        assert command(arguments, out).code == 0
    return disk.written


@pytest.mark.parametrize("free", [0, 1, 2, 3, 6, "last"])
def test_a_disk_that_is_full(free, arguments, whole, tmp_path):
    """From the first write on, between the arrays and the rows of a part, and at the summary."""
    quick = without_drawing(arguments)
    count = writes_of(quick, tmp_path / "counted") - 1 if free == "last" else free
    full_at(count, quick, tmp_path / "run", whole)


def full_at(count: int, arguments: list[str], out: Path, whole: Run) -> None:
    with FullDisk(count).mounted():
        said = command(arguments, out)
    assert said.code == 3, said
    (line,) = [line for line in said.err if line.startswith("jaxleak: ")]
    assert said.err[-1] == line
    assert "Make room, and " in line
    assert " free" in line
    check_left(out)
    check(said, arguments, out, whole, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_is_full_at_every_write(error, arguments, whole, tmp_path):
    for count in range(writes_of(arguments, tmp_path / "counted")):
        out = tmp_path / str(count)
        with FullDisk(count, error).mounted():
            said = command(arguments, out)
        assert said.code == 3, (count, said)
        check(said, arguments, out, whole, 3)


def test_a_disk_that_fails(arguments, whole, tmp_path):
    with FullDisk(4, errno.EIO).mounted():
        said = command(without_drawing(arguments), tmp_path / "run")
    assert said.code == 3
    assert "cannot be written (Input/output error). " in said.err[-1]
    check(said, arguments, tmp_path / "run", whole, 3)


def test_a_page_that_does_not_fit(whole, tmp_path):
    with FullDisk(0).mounted():
        said = call("report", whole.path, "--out", tmp_path / "page.html")
    assert said.code == 3
    assert "page.html cannot be written (No space left on device): it takes " in said.err
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_not_stored_are_handed_over(data, tmp_path):
    with FullDisk(2).mounted(), pytest.raises(StorageError) as caught:
        jaxleak.run_sweep(sweep_of(data, attacks=(QUICKEST,)), tmp_path / "run", quiet=True)
    assert {row["attack"] for row in caught.value.rows} == {"idlg"}
    assert caught.value.full
    assert caught.value.needed > 1000


def tmpfs(folder: Path, size: str) -> bool:
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(mounted, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_a_small_file_system(arguments, whole, tmp_path, monkeypatch):
    """The same on a file system of 64 kB, where mounting one is allowed: what fits is there."""
    disk = tmp_path / "disk"
    monkeypatch.setattr(session, "FLUSH_SECONDS", 0)
    if not tmpfs(disk, "64k"):
        pytest.skip("no tmpfs can be mounted here")
    try:
        said = command(without_drawing(arguments), disk / "run")
        assert said.code == 3
        assert "the disk is full; " in said.err[-1]
        assert "The rest takes about " in said.err[-1]
        check_left(disk)
        stored = len(Run.open(disk / "run").rows())
        assert 0 < stored < 6
        subprocess.run(["mount", "-o", "remount,size=10M", str(disk)], check=True)
        assert check(said, arguments, disk / "run", whole, 3) == 6
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- lanes, writers, clocks, shards ---


@pytest.mark.parametrize("broken", [0, 2])
def test_nan_in_one_lane_leaves_the_others(broken, data):
    """Trials beside one that is not finite from its start on end as without it."""
    starts = np.random.default_rng(0).normal(size=(4, 8, 8, 1))
    sweep = sweep_of(data, images=(4,), attacks=(QUICKEST,), seeds=4, starts={"image": starts})
    whole = jaxleak.run_sweep(sweep, quiet=True, lanes=4)
    starts = starts.copy()
    starts[broken] = np.nan
    result = jaxleak.run_sweep(replace(sweep, starts={"image": starts}), quiet=True, lanes=4)
    statuses = {row["seed"]: row["status"] for row in result.rows}
    assert statuses.pop(broken) == "non-finite"
    assert "non-finite" not in statuses.values()
    wanted = {row["seed"]: row for row in whole.rows}
    for row in result.rows:
        if row["seed"] != broken:
            assert [row[name] for name in ("objective", "mse", "evaluations")] == [
                wanted[row["seed"]][name] for name in ("objective", "mse", "evaluations")
            ]


def test_a_second_writer_is_refused_and_the_first_goes_on(arguments, whole, tmp_path, monkeypatch):
    update, second = session.Progress.update, []

    def begin_another(self, *rest, **options):
        update(self, *rest, **options)
        if not second:
            second.append(None)
            second[0] = command(without_drawing(arguments), tmp_path / "run")

    monkeypatch.setattr(session.Progress, "update", begin_another)
    assert command(without_drawing(arguments), tmp_path / "run").code == 0
    assert second[0].code == 2
    assert second[0].err[-1].endswith("another process is writing this run. Wait for it or stop it.")
    assert compared(Run.open(tmp_path / "run"), whole) == 6


def test_clocks_that_jump(arguments, whole, tmp_path, monkeypatch):
    """By up to a year, forwards and back."""
    draw, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + draw.uniform(-3e7, 3e7))
    assert struck(without_drawing(arguments), tmp_path / "run", Moment("chunk", 3), signal.SIGTERM).code == 143
    assert command(without_drawing(arguments), tmp_path / "run").code == 0
    assert compared(Run.open(tmp_path / "run"), whole) == 6


def test_a_shard_continues_with_its_own_count_only(arguments, whole, tmp_path):
    quick = without_drawing(arguments)
    assert struck([*quick, "--shard", "0/2"], tmp_path / "run", Moment("renamed", 4), signal.SIGTERM).code == 143
    said = command([*quick, "--shard", "0/3"], tmp_path / "run")
    assert said.code == 2
    assert "was begun in 2 shards. Give one of these, or none" in said.err[-1]
    assert command([*quick, "--shard", "1/2"], tmp_path / "run").code == 0
    assert command(quick, tmp_path / "run").code == 0
    assert compared(Run.open(tmp_path / "run"), whole) == 6


def test_moments_are_of_every_kind():
    assert {moment.kind for moment in random_moments(40, 3)} == set(KINDS)
    assert len(set(random_moments(40, 3))) > 20
