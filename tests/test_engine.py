"""Lanes change nothing: every job once, and the same result for any lanes, chunk, queue order and devices."""

import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.presets import IDLG
from jaxleak.attacks.trial import ENDINGS, Job, Outcome, Trial
from jaxleak.engine import Engine, EngineStats, Finished, memory
from jaxleak.engine import engine as runs
from jaxleak.engine.choice import LaneSearch, first_lanes
from jaxleak.engine.lanes import JobQueue, Lanes, Report
from jaxleak.errors import InputError
from jaxleak.models import LeNet
from jaxleak.solvers import TorchLBFGS
from jaxleak.threat.victim import Victim
from tests.fixtures import quick_jit
from tests.trials import out_of_memory_above

ONE, TWO = jax.devices()[:1], jax.devices()[:2]


pytestmark = pytest.mark.skipif(len(TWO) < 2, reason="needs two devices, as tests/conftest.py sets up")


# --- queueing, on a program of a few numbers ---


class Countdown(NamedTuple):
    trial: Any
    steps: Any


class CountdownProgram:
    """Counts down from a job's number, summing `shared` + what is left; counts how often Python traces a function."""

    key = None

    def __init__(self):
        self.traces = Counter()

    def prepare(self, shared, job):
        self.traces["prepare"] += 1
        return job.trial

    def init(self, shared, problem, job):
        self.traces["init"] += 1
        return {"left": job.steps, "sum": shared * 0.0}

    def step(self, shared, problem, state):
        self.traces["step"] += 1
        runs = state["left"] > 0
        return {
            "left": jnp.where(runs, state["left"] - 1, 0),
            "sum": jnp.where(runs, state["sum"] + shared + state["left"], state["sum"]),
        }

    def running(self, state):
        return state["left"] > 0

    def outcome(self, problem, state):
        self.traces["outcome"] += 1
        return {"trial": problem, "sum": state["sum"]}


class Collected:
    """`on_finished` that keeps everything, in order of arrival."""

    def __init__(self):
        self.parts: list[Finished] = []

    def __call__(self, finished: Finished):
        self.parts.append(finished)

    def all(self) -> Finished:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *self.parts)


def countdown_jobs(steps) -> Countdown:
    return Countdown(np.arange(len(steps), dtype=np.int32) + 100, np.array(steps, np.int32))


def count_down(steps, **settings) -> tuple[Collected, EngineStats]:
    collected = Collected()
    engine = Engine(CountdownProgram(), jnp.asarray(0.5), **settings)
    engine.run(countdown_jobs(steps), collected)
    return collected, engine.stats


STEPS = [3, 0, 12, 5, 1, 7, 7, 0, 2, 30, 4, 4, 9, 1, 0, 6, 11, 2, 8, 5]


@pytest.mark.parametrize("devices", [ONE, TWO], ids=["1 device", "2 devices"])
@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("lanes", [1, 3, 8, 50])
def test_every_job_is_done_once(lanes, chunk, devices):
    collected, stats = count_down(STEPS, lanes=lanes, chunk=chunk, devices=devices)
    jobs, outcomes, seconds = collected.all()
    assert Counter(jobs.trial.tolist()) == Counter(range(100, 120))
    np.testing.assert_array_equal(jobs.steps, np.array(STEPS)[jobs.trial - 100])
    np.testing.assert_array_equal(outcomes["trial"], jobs.trial)  # job and outcome of the same lane
    np.testing.assert_array_equal(outcomes["sum"], jobs.steps * (jobs.steps + 1) / 2 + jobs.steps / 2)
    assert np.all(seconds >= 0)

    assert stats.devices == len(devices)
    assert stats.lanes == len(devices) * -(-min(lanes, len(STEPS)) // len(devices))
    assert (stats.trials_done, stats.trials_running, stats.trials_waiting) == (20, 0, 0)
    assert stats.steps_useful == sum(STEPS)
    assert 0 < stats.utilisation == stats.steps_useful / stats.steps_total <= 1
    assert stats.seconds > 0
    assert stats.compile_seconds > 0


@pytest.mark.parametrize("devices", [ONE, TWO], ids=["1 device", "2 devices"])
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_jobs_may_be_added_until_the_queue_is_closed(devices, pause):
    """Lanes that run out meanwhile wait for them; the run ends when all is done."""
    jobs = countdown_jobs(STEPS)
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 4], jobs) for i in range(0, len(STEPS), 4)]
    queue, collected = JobQueue(parts[0], more=True), Collected()
    engine = Engine(CountdownProgram(), jnp.asarray(0.5), lanes=3, chunk=7, devices=devices)

    def add():
        for part in parts[1:]:
            time.sleep(pause)
            queue.extend(part)
        time.sleep(pause)
        queue.close()

    thread = threading.Thread(target=add)
    thread.start()
    engine.run(queue, collected)
    thread.join()
    done = collected.all().jobs
    assert Counter(done.trial.tolist()) == Counter(range(100, 120))
    np.testing.assert_array_equal(done.steps, np.array(STEPS)[done.trial - 100])
    stats = engine.stats
    assert (stats.trials_done, stats.trials_running, stats.trials_waiting) == (20, 0, 0)
    assert stats.steps_useful == sum(STEPS)
    with pytest.raises(ValueError, match="closed"):
        queue.extend(parts[0])


def test_one_lane_is_always_useful():
    assert count_down([4, 2, 5], lanes=1, chunk=100, devices=ONE)[1].utilisation == 1


def test_utilisation_is_useful_over_computed_steps():
    """Two lanes, jobs of 4 and 2 steps: a chunk ends when no lane runs, so 6 of 2 x 4 lane-steps are useful."""
    stats = count_down([4, 2], lanes=2, chunk=100, devices=ONE)[1]
    assert (stats.steps_useful, stats.steps_total, stats.utilisation) == (6, 8, 0.75)
    assert EngineStats().utilisation == 0


def test_finished_trials_come_in_the_order_in_which_they_end():
    collected, _ = count_down([5, 1, 3], lanes=3, chunk=1, devices=ONE)
    assert [part.jobs.steps.tolist() for part in collected.parts] == [[1], [3], [5]]


def test_progress_is_told_after_every_chunk():
    seen = []
    engine = Engine(CountdownProgram(), jnp.asarray(0.0), lanes=2, chunk=2, devices=ONE)
    engine.run(
        countdown_jobs([4, 2, 2]),
        Collected(),
        lambda: seen.append((engine.stats.trials_done, engine.stats.trials_running, engine.stats.trials_waiting)),
    )
    assert seen == [(0, 2, 1), (1, 2, 0)]
    assert engine.stats.trials_done == 3


def test_an_empty_queue_does_nothing():
    def never(*_):
        raise AssertionError

    engine = Engine(CountdownProgram(), jnp.asarray(0.0))
    engine.run(countdown_jobs([]), never, never)
    assert engine.stats == EngineStats()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("raiser", ["on_finished", "on_chunk"])
def test_an_exception_from_a_callback_ends_the_run(error, raiser):
    """What was handed over before stays handed over, and nothing comes after."""
    delivered, calls = [], Counter()

    def on_finished(finished):
        calls["on_finished"] += 1
        if raiser == "on_finished" and calls["on_finished"] == 3:
            raise error
        delivered.extend(finished.jobs.trial.tolist())

    def on_chunk():
        calls["on_chunk"] += 1
        if raiser == "on_chunk" and calls["on_chunk"] == 3:
            raise error

    engine = Engine(CountdownProgram(), jnp.asarray(0.0), lanes=1, chunk=1, devices=ONE)
    with pytest.raises(error):
        engine.run(countdown_jobs([1, 1, 1, 1, 1]), on_finished, on_chunk)
    assert delivered == [100, 101]
    assert calls[raiser] == 3


@pytest.mark.parametrize("name", ["lanes", "chunk"])
@pytest.mark.parametrize("value", [0, -4, 1.5])
def test_lanes_and_chunk_must_be_positive_whole_numbers(name, value):
    with pytest.raises(InputError, match=f"^`{name}` must be"):
        Engine(CountdownProgram(), jnp.asarray(0.0), **{name: value})


@pytest.fixture
def own_homes(monkeypatch):
    """Every device compiles its own program, as devices that are not CPUs do."""
    monkeypatch.setattr(runs, "homes_of", lambda devices: devices)


def assert_all_done(collected: Collected, steps) -> None:
    """Every job of `countdown_jobs(steps)` once, with its outcome."""
    jobs, outcomes, _ = collected.all()
    assert Counter(jobs.trial.tolist()) == Counter(range(100, 100 + len(steps)))
    np.testing.assert_array_equal(outcomes["trial"], jobs.trial)
    np.testing.assert_array_equal(outcomes["sum"], jobs.steps * (jobs.steps + 1) / 2 + jobs.steps / 2)


@pytest.mark.usefixtures("own_homes")
def test_a_program_is_traced_once():
    """However many devices, chunks, refills, runs and numbers of lanes."""
    program = CountdownProgram()
    engine = Engine(program, jnp.asarray(0.5), lanes=4, chunk=1, devices=TWO)
    for steps in (STEPS, [3], STEPS):  # with two lanes a device, one, and two
        collected = Collected()
        engine.run(countdown_jobs(steps), collected)
        assert_all_done(collected, steps)
    assert program.traces == {"prepare": 1, "init": 1, "step": 1, "outcome": 1}


def test_compiled_programs_are_kept_from_run_to_run(monkeypatch):
    compiled, original = [], runs.compile_for

    def note(traced, shared, lanes):
        compiled.append((len(shared), lanes))
        return original(traced, shared, lanes)

    monkeypatch.setattr(runs, "compile_for", note)
    engine = Engine(CountdownProgram(), jnp.asarray(0.5), lanes=6, devices=TWO)
    for steps in (STEPS, STEPS, [2, 5, 3, 1, 1]):
        collected = Collected()
        engine.run(countdown_jobs(steps), collected)
        assert_all_done(collected, steps)
    assert compiled == [(1, 3)]  # CPU devices share one
    assert engine.stats.trials_done == 2 * len(STEPS) + 5
    assert engine.stats.steps_useful == 2 * sum(STEPS) + 12


def test_what_is_compiled_ahead_is_what_a_run_begins_with(monkeypatch):
    compiled, original = [], runs.compile_for
    monkeypatch.setattr(runs, "compile_for", lambda *args: compiled.append(args[2]) or original(*args))
    engine = Engine(CountdownProgram(), jnp.asarray(0.5), devices=TWO)
    jobs, collected = countdown_jobs(STEPS), Collected()
    ahead = threading.Thread(target=engine.compile_ahead, args=(jobs,))
    ahead.start()
    ahead.join()
    assert compiled == [2]  # of 20 trials on two devices
    assert engine.stats.compile_seconds > 0
    engine.run(jobs, collected)
    assert_all_done(collected, STEPS)
    assert compiled == [2]
    engine.forget()
    engine.compile_ahead(countdown_jobs([]))  # nothing to do
    assert compiled == [2]


def test_nothing_is_compiled_ahead_for_lanes_that_may_not_fit(monkeypatch):
    monkeypatch.setattr(runs, "compile_for", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(memory, "available_bytes", lambda: 16)
    Engine(CountdownProgram(), jnp.asarray(0.5), devices=ONE, lanes=50).compile_ahead(countdown_jobs(STEPS))


@pytest.mark.parametrize(
    ("trials", "lanes"), [(1, 1), (6, 1), (7, 2), (12, 2), (24, 4), (25, 4), (1e6, 4), (np.inf, 4)]
)
def test_few_trials_get_few_lanes(trials, lanes):
    """Each lane runs six of them or more, one after the other, so that few lanes are idle at the end."""
    assert first_lanes(ONE[0], trials) == lanes


def test_a_chunk_ends_when_a_lane_is_free_and_trials_wait():
    """Without a limit worth its name, the long trial does not keep the others waiting."""
    collected, stats = count_down([1000, 10, 10, 10], lanes=2, chunk=10_000, devices=ONE)
    assert [part.jobs.steps.tolist() for part in collected.parts] == [[10], [10], [1000, 10]]
    assert stats.steps_total == 2 * 1000


def test_callbacks_come_from_the_calling_thread_only():
    threads = set()

    def note(*_):
        threads.add(threading.current_thread())

    Engine(CountdownProgram(), jnp.asarray(0.5), lanes=4, chunk=2, devices=TWO).run(countdown_jobs(STEPS), note, note)
    assert threads == {threading.current_thread()}


def test_a_device_waits_for_a_slow_calling_thread(monkeypatch):
    """It runs no more than two reports ahead, so that little is lost when the run is stopped meanwhile."""
    dispatched, original = [], Lanes._dispatch
    monkeypatch.setattr(Lanes, "_dispatch", lambda self, report: dispatched.append(1) or original(self, report))

    def on_finished(_):
        time.sleep(0.3)  # ample for all twenty trials
        assert len(dispatched) == 3  # of the second report, which this call is for, and one more
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(CountdownProgram(), jnp.asarray(0.5), lanes=1, devices=ONE, chunk=9).run(
            countdown_jobs([5] * 20), on_finished
        )
    assert len(dispatched) == 3


def test_no_thread_is_left_after_an_exception():
    def stop(_):
        raise KeyboardInterrupt

    before = threading.active_count()
    engine = Engine(CountdownProgram(), jnp.asarray(0.5), lanes=4, chunk=1, devices=TWO)
    with pytest.raises(KeyboardInterrupt):
        engine.run(countdown_jobs(STEPS), stop)
    assert threading.active_count() == before


def test_host_share_is_time_outside_compiled_calls():
    stats = count_down([2000] * 10, lanes=2, devices=TWO)[1]
    assert 0 < stats.host_seconds < stats.seconds
    assert stats.host_share == stats.host_seconds / stats.seconds
    assert EngineStats().host_share == 0


# --- choosing the lanes ---


def search_through(rates, lanes, limit=64) -> list[int]:
    """Lanes tried one after the other, and the choice, when `rates` are measured."""
    search, tried = LaneSearch(lanes, devices=1, limit=limit), []
    while not search.settled:
        tried.append(search.lanes)
        for _ in range(12):
            search.add(Report(steps_total=rates[search.lanes], seconds=1.0))
        assert search.measured
        search.moved(search.advise())
    assert not search.measured
    return [*tried, search.lanes]


@pytest.mark.parametrize(
    ("rates", "lanes", "tried"),
    [
        ({4: 100, 8: 90, 2: 80}, 4, [4, 8, 2, 4]),
        ({4: 100, 8: 104, 2: 99}, 4, [4, 8, 2, 4]),  # too little to count
        ({4: 100, 8: 150, 16: 200, 32: 300}, 4, [4, 8, 4, 16, 8, 32, 16, 32]),  # no more than three others
        ({4: 100, 8: 90, 2: 120, 1: 110}, 4, [4, 8, 2, 4, 1, 2]),
        ({1: 100, 2: 90}, 1, [1, 2, 1]),
        ({64: 100, 32: 90}, 64, [64, 32, 64]),  # the limit
    ],
)
def test_the_search_climbs_by_factors_of_two(rates, lanes, tried):
    assert search_through(rates, lanes) == tried


def test_a_rate_that_was_luck_changes_nothing():
    search = LaneSearch(4, devices=1, limit=8)
    for lanes, rate in [(4, 100), (8, 150), (4, 148), (2, 90)]:
        assert search.lanes == lanes
        for _ in range(12):
            search.add(Report(steps_total=rate, seconds=1.0))
        search.moved(search.advise())
    assert search.settled
    assert search.lanes == 4


class Inline:
    """An executor that has done its work when `submit` returns."""

    def __init__(self, *_):
        pass

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **_):
        pass


@pytest.fixture
def eager_search(monkeypatch):
    """`lanes=None` begins with two lanes a device and tries others at once. Gives the lanes that were tried."""
    monkeypatch.setattr(runs, "first_lanes", lambda *_: 2)
    monkeypatch.setattr(runs, "WORTH", 0)
    monkeypatch.setattr("jaxleak.engine.choice.PROBE_SECONDS", 0.0)
    monkeypatch.setattr(runs, "ThreadPoolExecutor", Inline)
    # More lanes are always slower, fewer always faster.
    original, tried = LaneSearch.advise, []

    def advise(self):
        self._steps, self._seconds = 1000, float(self.lanes)
        tried.append(self.lanes)
        return original(self)

    monkeypatch.setattr(LaneSearch, "advise", advise)
    return tried


def compile_before(engine: Engine, jobs, numbers: list[int]) -> None:
    """So that a run is not over before it has tried other lanes."""
    traced = engine.trace(JobQueue(jobs).job_type)
    for lanes in numbers:
        engine.compile(traced, list(engine.devices or ()), lanes)


@pytest.mark.parametrize("devices", [ONE, TWO], ids=["1 device", "2 devices"])
def test_other_lanes_in_the_middle_of_a_run_lose_nothing(devices, eager_search):
    steps = [40 + 20 * (i % 4) for i in range(60)]
    collected = Collected()
    engine = Engine(CountdownProgram(), jnp.asarray(0.5), chunk=2, devices=devices)
    compile_before(engine, countdown_jobs(steps), [1, 2, 4])
    engine.run(countdown_jobs(steps), collected)
    assert_all_done(collected, steps)
    assert engine.stats.steps_useful == sum(steps)  # no step was done twice
    assert eager_search == [2, 4, 1, 2]  # before one lane is settled on, two are measured again
    assert engine.best == 1
    assert engine.stats.lanes == len(devices)
    engine.run(countdown_jobs(steps[:9]), Collected())
    assert len(eager_search) == 4  # not searched again


# --- memory ---


def run_warned(engine: Engine, steps, recwarn) -> list[str]:
    """Run `steps`, see that all are done, and return the warnings."""
    collected = Collected()
    engine.run(countdown_jobs(steps), collected)
    assert_all_done(collected, steps)
    return [str(one.message) for one in recwarn]


def test_lanes_that_do_not_fit_are_not_tried(monkeypatch, recwarn):
    monkeypatch.setattr(memory, "budget", lambda devices: 2000)
    engine = Engine(CountdownProgram(), jnp.asarray(0.5), lanes=100_000, devices=TWO)
    (warning,) = run_warned(engine, STEPS * 20, recwarn)
    assert warning.startswith("400 lanes of 0.0 MB do not fit in the memory; running ")
    assert 2 <= engine.stats.lanes <= 2 * 2000 // 20
    programs = engine._programs[engine.stats.lanes // 2][ONE[0]]
    assert engine.stats.lanes // 2 * programs.bytes_per_lane <= 2000


@pytest.mark.parametrize("devices", [ONE, TWO], ids=["1 device", "2 devices"])
@pytest.mark.parametrize(
    ("where", "calls"), [("compile", 0), ("blank", 0), ("chunk", 0), ("chunk", 3), ("refill", 9), ("outcome", 1)]
)
def test_out_of_memory_halves_the_lanes_and_loses_nothing(where, calls, devices, monkeypatch, recwarn):
    out_of_memory_above(2, monkeypatch, where, calls)
    engine = Engine(CountdownProgram(), jnp.asarray(0.5), lanes=8 * len(devices), chunk=3, devices=devices)
    warnings = run_warned(engine, STEPS, recwarn)
    assert engine.stats.lanes == 2 * len(devices)
    assert (engine.stats.trials_done, engine.stats.trials_running, engine.stats.trials_waiting) == (20, 0, 0)
    if where in ("compile", "blank"):
        assert len(warnings) == 1
    else:
        assert warnings[0] == f"out of memory with {8 * len(devices)} lanes; running {4 * len(devices)}"


def test_one_lane_that_does_not_fit_is_an_error(monkeypatch):
    out_of_memory_above(0, monkeypatch, "chunk")
    engine = Engine(CountdownProgram(), jnp.asarray(0.5), lanes=2, devices=ONE)
    with pytest.warns(UserWarning, match="with 2 lanes"), pytest.raises(InputError, match=r"^`lanes` cannot be"):
        engine.run(countdown_jobs(STEPS), Collected())


def test_another_error_of_a_device_is_raised(monkeypatch):
    def fail(*_):
        raise RuntimeError("INTERNAL: something else")

    monkeypatch.setattr(Lanes, "_dispatch", fail)
    with pytest.raises(RuntimeError, match="something else"):
        count_down(STEPS, lanes=4, devices=TWO)


def test_jobs_put_back_come_first():
    queue = JobQueue(np.arange(6))
    taken = queue.take(3)
    queue.put_back(taken[1:])
    assert queue.take(10).tolist() == [1, 2, 3, 4, 5]
    assert queue.take(1).size == len(queue) == 0


def test_free_memory_heeds_control_groups(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:  80 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_bytes() == 80 * 1024
    (tmp_path / "memory.current").write_text("1000")
    (tmp_path / "memory.max").write_text("max")
    assert memory.available_bytes() == 80 * 1024
    (tmp_path / "memory.max").write_text("31000")
    assert memory.available_bytes() == 30_000
    assert memory.budget(TWO) == 7500  # half stays free, and two devices share the rest
    (tmp_path / "memory.max").write_text("500")
    assert memory.available_bytes() == 0
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nothing")
    assert memory.available_bytes() == 0


# --- gradient matching ---

SEEDS = 5
PIXELS = np.random.default_rng(0).random((2, 8, 8, 1))


def small_trial(images: int, network: str, starts=None) -> Trial:
    """iDLG on LeNet, 8x8 pixels: three iterations of at most 8 steps, history 10."""
    victim = Victim(
        model=LeNet(num_classes=4),
        model_name="lenet",
        dataset="random",
        split="all",
        indices=[30, 40][:images],
        images=PIXELS[:images],
        labels=np.array([1, 3])[:images],
        network=network,
        num_classes=4,
    )
    attack = replace(IDLG, solver=TorchLBFGS(history=10, inner_steps=8), iterations=3)
    return Trial(attack=attack, victim=victim, threshold=1e-4, snapshots=(0, 3), starts=starts)


def jobs_of(trial: Trial, order=None) -> Job:
    """Every image with every seed, numbered, in the given order."""
    slot, seed = (grid.ravel() for grid in np.mgrid[: len(trial.victim.indices), :SEEDS])
    image = np.array(trial.victim.indices)[slot]
    order = np.arange(slot.size) if order is None else order
    numbers: Any = (np.asarray(array, np.int32)[order] for array in (np.arange(slot.size), slot, image, seed))
    return Job(*numbers)


def run_engine(trial: Trial, order=None, **settings) -> Outcome:
    """Outcomes in the order of the trials' numbers."""
    collected = Collected()
    Engine(trial, trial.shared(), **settings).run(jobs_of(trial, order), collected)
    finished = collected.all()
    return jax.tree.map(lambda leaf: leaf[np.argsort(finished.jobs.trial)], finished.outcomes)


def run_plainly(trial: Trial) -> Outcome:
    """One trial after the other in a Python loop, without lanes."""
    shared, jobs = trial.shared(), jobs_of(trial)

    def begin(shared, job):
        problem = trial.prepare(shared, job)
        return problem, trial.init(shared, problem, job)

    begin, step, outcome = (quick_jit(function) for function in (begin, trial.step, trial.outcome))
    outcomes = []
    for position in range(jobs.trial.size):
        problem, state = begin(shared, jax.tree.map(lambda leaf, p=position: leaf[p], jobs))
        while trial.running(state):
            state = step(shared, problem, state)
        outcomes.append(outcome(problem, state))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *outcomes)


def assert_same(got: Outcome, wanted: Outcome):
    """Equal up to rounding, which 24 steps of L-BFGS have had little time to blow up: measured, at most 1e-11."""
    for name, a, b in zip(Outcome._fields, got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8, err_msg=name)


@pytest.fixture(scope="module", params=[(1, "shared"), (2, "per-trial")], ids=["one network", "a network per trial"])
def plain(request) -> tuple[Trial, Outcome]:
    """A trial, and what the Python loop makes of its jobs."""
    trial = small_trial(*request.param)
    return trial, run_plainly(trial)


def test_the_plain_loop_attacks(plain):
    outcome = plain[1]
    assert {ENDINGS[code] for code in outcome.ending} == {"iteration-limit"}
    assert np.all(outcome.objective < outcome.objective_trace[:, 0])
    # No two trials are the same, so that a mix-up would show.
    assert len(np.unique(outcome.objective)) == outcome.objective.size


@pytest.mark.parametrize(
    "settings",
    [
        {"lanes": 1, "chunk": 100, "devices": ONE},
        {"lanes": 3, "chunk": 7, "devices": ONE, "order": "reversed"},
        # design.md 5.7: sharded the ordinary way, every device but the first computed wrong gradients.
        {"lanes": 2, "chunk": 100, "devices": TWO, "own_homes": True},
        {"lanes": 50, "chunk": 3, "devices": TWO, "order": "shuffled"},
    ],
    ids=lambda settings: ", ".join(
        f"{key} {value if key != 'devices' else len(value)}" for key, value in settings.items() if value is not True
    ),
)
def test_lanes_change_nothing(plain, settings, request):
    trial, wanted = plain
    settings = dict(settings)
    if settings.pop("own_homes", False):
        request.getfixturevalue("own_homes")
    size = jobs_of(trial).trial.size
    orders = {
        None: None,
        "reversed": np.arange(size)[::-1],
        "shuffled": np.random.default_rng(1).permutation(size),
    }
    assert_same(run_engine(trial, orders[settings.pop("order", None)], **settings), wanted)


def test_other_lanes_in_the_middle_of_a_run_change_nothing(plain, eager_search):
    trial, wanted = plain
    collected, jobs = Collected(), jobs_of(trial)
    engine = Engine(trial, trial.shared(), chunk=1, devices=ONE)
    compile_before(engine, jobs, [1, 2, 4])
    engine.run(jobs, collected)
    assert eager_search == [2, 4, 1, 2] if jobs.trial.size == 10 else [2, 1, 2]  # five jobs are too few for four lanes
    finished = collected.all()
    assert_same(jax.tree.map(lambda leaf: leaf[np.argsort(finished.jobs.trial)], finished.outcomes), wanted)


def test_a_nan_lane_leaves_its_neighbours_unchanged():
    starts = np.random.default_rng(2).standard_normal((SEEDS, 1, 8, 8, 1))
    spoilt = starts.copy()
    spoilt[2, 0, 4, 4, 0] = np.nan
    clean, other = (
        run_engine(small_trial(1, "shared", {"image": given}), lanes=6, chunk=5, devices=TWO)
        for given in (starts, spoilt)
    )
    assert [ENDINGS[code] for code in other.ending] == [
        "non-finite" if seed == 2 else "iteration-limit" for seed in range(SEEDS)
    ]
    neighbours = np.arange(SEEDS) != 2
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[neighbours], b[neighbours]), other, clean)


# --- precision ---


class TracedEnoughError(Exception):
    pass


class PrecisionProgram:
    """A trial that notes the precision of every product in its step when the engine traces it, and then gives up."""

    key = None

    def __init__(self, trial: Trial):
        self.trial, self.precisions = trial, []
        self.prepare, self.init, self.running, self.outcome = trial.prepare, trial.init, trial.running, trial.outcome

    def step(self, shared, problem, state):
        self._note(jax.make_jaxpr(self.trial.step)(shared, problem, state).jaxpr)
        raise TracedEnoughError

    def _note(self, jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                self.precisions.append(equation.params["precision"])
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    self._note(inner)


def test_products_have_full_precision():
    """By default GPUs would multiply float32 in TF32, with 10 bits of mantissa."""
    trial = small_trial(1, "shared")
    program = PrecisionProgram(trial)
    with pytest.raises(TracedEnoughError):
        Engine(program, trial.shared(), lanes=2, devices=ONE).run(jobs_of(trial), Collected())
    assert len(program.precisions) > 10  # forward, gradient, its gradient, and the solver's
    assert set(program.precisions) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}
