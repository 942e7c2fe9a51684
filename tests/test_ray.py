"""A sweep on a Ray cluster of this machine: the rows of a run in one process, whatever happens to the workers."""

import json
import os
import signal
import sys
from dataclasses import replace

import pytest

from jaxleak import IDLG, InputError, Run, Sweep, TorchLBFGS, load_dataset, make_victim, run_sweep
from jaxleak.runs.ray import driver as ray_driver
from jaxleak.runs.ray.driver import Ray
from tests.commands import refusal
from tests.processes import PROJECT, assert_same, small_pictures

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.timeout(600)]

ATTACK = replace(IDLG, solver=TorchLBFGS(history=20), iterations=10)
TRIALS = 20


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    """Two grey pictures of 8 by 8 pixels, ten starts each, on LeNets of their own."""
    victim = make_victim("lenet", load_dataset(small_pictures(tmp_path_factory.mktemp("pictures"))), [3, 1])
    return Sweep(victim=victim, attacks=(ATTACK,), seeds=TRIALS // 2, snapshots=())


@pytest.fixture(scope="module")
def whole(sweep, tmp_path_factory) -> Run:
    """The run in this process."""
    return run_sweep(sweep, tmp_path_factory.mktemp("whole") / "run", lanes=2, quiet=True).run


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with room for two workers of one core."""
    environment = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of a small run
        "PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JAX_PLATFORMS": "cpu",
    }
    ray.init(
        address="local",  # not one that Ray remembers
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": environment},
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_two_workers_give_the_rows_of_one_process(sweep, whole, tmp_path):
    result = run_sweep(sweep, tmp_path / "run", lanes=2, quiet=True, on=Ray(workers=2))
    assert_same(result.run, whole)
    workers = result.summary["workers"]
    assert sum(worker["trials"] for worker in workers) == TRIALS
    assert all(worker["evaluations_per_second"] > 0 for worker in workers if worker["trials"])
    assert result.summary["engine"]["evaluations"] == sum(row["evaluations"] for row in result.rows)
    assert json.loads((tmp_path / "run/summary.json").read_text())["workers"] == workers


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_worker_killed_twice(sweep, whole, tmp_path, monkeypatch):
    """What lay in its lanes begins again elsewhere."""
    killed, answer = [], ray_driver._Driver._answer

    def kill_after(self, member, call):
        answer(self, member, call)
        alive = member.name in self.scheduler.members and member.hello.pid not in killed
        if alive and member.results is not None and member.results.finished and len(killed) < 2:
            killed.append(member.hello.pid)
            os.kill(member.hello.pid, signal.SIGKILL)

    monkeypatch.setattr(ray_driver._Driver, "_answer", kill_after)
    result = run_sweep(sweep, tmp_path / "run", lanes=2, quiet=True, on=Ray(workers=2))
    assert len(set(killed)) == 2
    assert result.summary["complete"]
    assert_same(result.run, whole)


@pytest.mark.usefixtures("cluster")
def test_trials_that_kill_their_workers_are_lost_with_the_reason(sweep, tmp_path, monkeypatch):
    """Three retries, then a row that says so; the run ends."""
    answer = ray_driver._Driver._answer

    def kill_always(self, member, call):
        answer(self, member, call)
        if member.name in self.scheduler.members and self.scheduler.members[member.name].held:
            os.kill(member.hello.pid, signal.SIGKILL)

    monkeypatch.setattr(ray_driver._Driver, "_answer", kill_always)
    small = replace(sweep, seeds=1)
    result = run_sweep(small, tmp_path / "run", lanes=2, quiet=True, on=Ray(workers=1))
    assert [row["status"] for row in result.rows] == ["lost", "lost"]
    assert all("ActorDied" in row["reason"] for row in result.rows)
    assert result.summary["complete"]
    assert result.summary["groups"][-1]["status"]["lost"] == 2


@pytest.mark.usefixtures("cluster")
def test_a_worker_with_other_settings_is_refused(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_driver, "dtype", lambda: "float16")
    with pytest.raises(InputError, match=r"no worker can be used. worker-\d on .* is not used: precision float\d+ "):
        run_sweep(sweep, tmp_path / "run", quiet=True, on=Ray(workers=1))


@pytest.mark.usefixtures("cluster")
def test_one_refused_worker_does_not_end_the_run(sweep, whole, tmp_path, monkeypatch):
    refused = ray_driver._Driver._is_refused

    def refuse_the_first(self, member):
        member.hello = member.hello._replace(dtype="float16" if member.name == "worker-0" else member.hello.dtype)
        return refused(self, member)

    monkeypatch.setattr(ray_driver._Driver, "_is_refused", refuse_the_first)
    result = run_sweep(sweep, tmp_path / "run", lanes=2, quiet=True, on=Ray(workers=2))
    assert [worker["name"] for worker in result.summary["workers"]] == ["worker-1"]
    assert_same(result.run, whole)


def test_flags_of_ray_need_ray(tmp_path):
    line = refusal("run", "--num-images", "1", "--workers", "2", "--out", tmp_path / "run")
    assert "`workers` is a setting of --on ray" in line
    assert "`on` must be one of here, ray; got 'rey'. Did you mean 'ray'?" in refusal(
        "run", "--on", "rey", "--out", tmp_path / "run"
    )
    assert "`workers` must be above 0" in refusal("run", "--on", "ray", "--workers", "0", "--out", tmp_path / "run")


def test_without_ray_the_line_says_how_to_get_it(sweep, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"`on` ray needs Ray; install it with pip install 'jaxleak\[ray\]'"):
        run_sweep(sweep, tmp_path / "run", quiet=True, on=Ray())
