"""`jaxleak run --on ray` as a user has it: the process and its workers may be killed, and nodes join late."""

import contextlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxleak import Run
from tests.commands import refusal
from tests.processes import PROJECT, assert_same, finish, verdicts, wait_for_part

pytest.importorskip("ray")
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]  # test_ray.py has the same in one process

# Writes as soon as something ends, so that a short run can be hit in its middle. A shell may start processes with
# Ctrl-C ignored: here it never is.
DRIVER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import jaxleak.runs.session as session
from jaxleak.cli import main
session.FLUSH_SECONDS = 0
main()
"""
MARK = "JAXLEAK_TEST_CLUSTER"


def environment(mark: str, **more: str) -> dict[str, str]:
    """Of the driver, and so of the cluster that it starts; `mark` tells its processes from those of other tests."""
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "RAY_AUTH_MODE": "token", MARK: mark}
    return {**os.environ, **own, **more}


@contextlib.contextmanager
def driver(arguments: list[str], out: Path, settings: dict[str, str]) -> Iterator[subprocess.Popen]:
    """The command; killed at the latest when the block ends."""
    command = [sys.executable, "-c", DRIVER, *arguments, "--on", "ray", "--workers", "2", "--out", str(out)]
    with subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def processes(mark: str) -> dict[int, str]:
    """Those of a cluster: ids and names."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def workers(mark: str) -> set[int]:
    return {pid for pid, name in processes(mark).items() if name.startswith("ray::_Actor")}


def until(condition, seconds: float = 120.0) -> None:
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last, f"not within {seconds} s"
        time.sleep(0.02)


def disturbed(arguments: list[str], out: Path, settings: dict[str, str]) -> Run:
    """The run, with a worker killed as soon as there are rows, another one after more, and then the driver."""
    mark = settings[MARK]
    with driver(arguments, out, settings) as process:
        for _ in range(2):
            wait_for_part(process, out)
            until(lambda: workers(mark))
            os.kill(min(workers(mark)), signal.SIGKILL)
        wait_for_part(process, out)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = Run.open(out).rows()
    assert before
    until(lambda: not processes(mark))  # the cluster it started goes with it
    with driver(arguments, out, settings) as process:
        said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    assert f"continuing, {len(before)} of" in said
    return Run.open(out)


def test_workers_and_the_driver_killed(small_run, tmp_path):
    arguments = [*small_run, "--seeds", "30", "--iterations", "150"]
    settings = environment(secrets.token_hex(8), JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    run = disturbed(arguments, tmp_path / "run", settings)
    assert_same(run, finish([*arguments, "--lanes", "4"], tmp_path / "whole"))  # two on each device, as a worker has
    assert len(run.rows()) == 60


@pytest.mark.timeout(3600)
def test_two_hundred_trials_with_workers_and_the_driver_killed(tmp_path):
    """LeNet on photographs of 32 by 32 pixels, in float64."""
    arguments = [
        *("run", "--attack", "dlg:torch-lbfgs", "--dataset", "photos", "--images", "6", "12", "--seeds", "100"),
        *("--iterations", "60", "--success-objective", "0.1", "--x64", "--no-figures"),
    ]
    run = disturbed([*arguments, "--lanes", "4"], tmp_path / "run", environment(secrets.token_hex(8)))
    # Four on each of two devices too, in a process of its own: the same program, whose rounding decides who diverges.
    command = [sys.executable, "-m", "jaxleak", *arguments, "--lanes", "8", "--out", str(tmp_path / "whole")]
    subprocess.run(command, env=environment("whole"), check=True, capture_output=True)
    whole = Run.open(tmp_path / "whole")
    assert sorted(row["trial"] for row in run.rows()) == list(range(200))
    assert 0 < sum(row["success"] for row in whole.rows()) < 200
    assert verdicts(run) == verdicts(whole)


# --- nodes ---


def ray(*arguments: str, settings: dict[str, str]) -> subprocess.CompletedProcess:
    told = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *arguments], env=settings, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told


def stop(mark: str) -> None:
    for _ in range(3):  # its monitors begin others anew
        for pid in processes(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


@pytest.fixture
def head():
    """A cluster of one node with one core: its address, and the environment of those who may use it."""
    folder = tempfile.mkdtemp(prefix="jl")  # short: sockets lie there; Ray remembers this cluster there, not for others
    more = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": folder, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    settings = environment(secrets.token_hex(8), **more)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    common = ["--num-cpus", "1", "--disable-usage-stats"]
    try:
        ray("start", "--head", "--port", str(port), "--include-dashboard=false", *common, settings=settings)
        yield f"127.0.0.1:{port}", common, settings
    finally:
        stop(settings[MARK])
        shutil.rmtree(folder, ignore_errors=True)


def test_a_node_that_joins_after_the_start(head, small_run, tmp_path):
    """More trials than there is time for: the run goes on until both nodes compute, and is stopped."""
    address, common, settings = head
    out = tmp_path / "run"
    with driver([*small_run, "--seeds", "20000", "--ray-address", address], out, settings) as process:
        wait_for_part(process, out)
        assert len(workers(settings[MARK])) == 1
        ray("start", "--address", address, "--node-ip-address", "127.0.0.2", *common, settings=settings)
        said = io.BytesIO()
        for line in process.stderr or ():
            said.write(line)
            if b"worker-1 computes" in line:
                break
        threading.Thread(target=process.stderr and process.stderr.read, daemon=True).start()
        for _ in range(8):
            wait_for_part(process, out)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert re.search(rb"worker-1 joined: \S+ \(127\.0\.0\.2\)", said.getvalue())
    told = json.loads((out / "summary.json").read_text())["workers"]
    assert [one["name"] for one in told] == ["worker-0", "worker-1"]
    assert len({one["host"] for one in told}) == 2
    rows = Run.open(out).rows()
    assert all(one["trials"] > 0 for one in told)
    assert 0 < len({row["trial"] for row in rows}) == len(rows) == sum(one["trials"] for one in told)


def test_a_cluster_that_wants_a_token(head, small_run, tmp_path, monkeypatch):
    address, _, settings = head
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    line = refusal(*small_run, "--on", "ray", "--ray-address", address, "--out", tmp_path / "run")
    assert f"`ray_address` '{address}': the cluster wants its token. Set RAY_AUTH_MODE=token" in line
    assert settings["RAY_AUTH_TOKEN"] not in line
