"""A worker without its cluster: blocks go in, what ended comes out, memory that runs out halves its lanes."""

import time
from dataclasses import replace

import jax
import pytest

from jaxleak import IDLG, Sweep, TorchLBFGS, load_dataset, make_victim
from jaxleak.engine.lanes import Lanes
from jaxleak.kernels.precision import dtype
from jaxleak.results.store.description import settings_hash
from jaxleak.runs.ray.worker import Results, Worker
from tests.processes import small_pictures
from tests.trials import out_of_memory_above

ATTACK = replace(IDLG, solver=TorchLBFGS(history=20), iterations=3)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    """Two attacks of six trials each."""
    victim = make_victim("lenet", load_dataset(small_pictures(tmp_path_factory.mktemp("pictures"))), [3, 1])
    return Sweep(victim=victim, attacks=(ATTACK, replace(ATTACK, name="longer", iterations=4)), seeds=3, snapshots=())


def worker(sweep: Sweep, lanes: int) -> Worker:
    return Worker(sweep, bool(jax.config.read("jax_enable_x64")), lanes, None)


def collected(one: Worker, trials: int) -> tuple[dict[int, tuple[int, int]], Results]:
    """Attack and evaluations of so many trials, and the last answer."""
    found, last = {}, time.monotonic() + 200
    while True:
        results = one.collect(1.0)
        for attack, finished in results.finished:
            evaluations = finished.outcomes.evaluations
            found |= {int(t): (attack, int(n)) for t, n in zip(finished.jobs.trial, evaluations, strict=True)}
        if len(found) >= trials or results.error is not None:
            return found, results
        assert time.monotonic() < last


def test_blocks_of_two_attacks(sweep):
    one = worker(sweep, 4)
    hello = one.hello()
    assert (hello.lanes, hello.dtype) == (4, dtype())
    assert hello.settings_hash == settings_hash(sweep.settings())
    one.give(0, [0, 1, 2])
    one.give(0, [3, 4])  # joins the queue that is being worked on
    first, _ = collected(one, 5)
    assert {trial: attack for trial, (attack, _) in first.items()} == dict.fromkeys(range(5), 0)
    one.give(1, [6, 7])
    second, results = collected(one, 2)
    assert {trial: attack for trial, (attack, _) in second.items()} == {6: 1, 7: 1}
    total = sum(count for _, count in [*first.values(), *second.values()])
    assert results.evaluations == total > 0
    assert results.error is None


def test_memory_that_runs_out_halves_the_lanes(sweep, monkeypatch, recwarn):
    """The driver hears of fewer lanes, and every trial comes back."""
    per_device = 2
    out_of_memory_above(per_device, monkeypatch, "chunk")
    one = worker(sweep, 8 * jax.device_count())
    one.give(0, list(range(6)))
    found, results = collected(one, 6)
    assert sorted(found) == list(range(6))
    assert results.error is None
    assert results.lanes == per_device * jax.device_count()
    assert any("out of memory" in str(warning.message) for warning in recwarn)


def test_an_error_of_the_device_is_told(sweep, monkeypatch):
    def fail(*_):
        raise RuntimeError("INTERNAL: something\nelse")

    monkeypatch.setattr(Lanes, "_dispatch", fail)
    one = worker(sweep, 2)
    one.give(0, [0])
    found, results = collected(one, 1)
    assert not found
    assert results.error == "RuntimeError: INTERNAL: something else"
