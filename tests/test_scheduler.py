"""The scheduler: every trial is in one place, whatever joins, leaves and returns; clusters simulated with it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxleak.bench.cluster import Cluster, simulate
from jaxleak.runs.ray.scheduler import Scheduler

EVENTS = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "next", "return"]), st.integers(0, 3), st.integers(1, 9)), max_size=80
)


@given(EVENTS, st.lists(st.integers(0, 12), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_every_trial_is_in_one_place(events, sizes):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    queues = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    scheduler, returned, now = Scheduler(queues, retries=1), [], 0.0
    for what, name, number in events:
        now += 1
        there = name in scheduler.members
        if what == "join" and not there:
            scheduler.join(name, number, now)
        elif what == "leave" and there:
            scheduler.leave(name)
        elif what == "next" and there:
            block = scheduler.next_block(name, now)
            if block is not None:
                assert block.trials
                assert set(block.trials) <= set(queues[block.attack])
        elif what == "return":
            held = sorted(scheduler.members[name].held)[:number] if there else [number]
            returned += scheduler.returns(name, held, now)
        lying = [trial for member in scheduler.members.values() for trial in member.held]
        waiting = [trial for queue in scheduler._queues for trial in queue]
        assert sorted([*returned, *lying, *waiting, *scheduler.given_up]) == list(range(sum(sizes)))
    assert scheduler.returned == len(returned)


def drain(scheduler: Scheduler, name: str, now: float) -> list[int]:
    """What a worker is given until there is nothing for it, all of which it returns."""
    trials = []
    while (block := scheduler.next_block(name, now)) is not None:
        trials += block.trials
        assert scheduler.returns(name, block.trials, now) == block.trials
        now += 1
    return trials


def test_one_worker_runs_all_in_order():
    scheduler = Scheduler([range(10), range(10, 25)])
    scheduler.join("a", 2, 0.0)
    assert sorted(drain(scheduler, "a", 1.0)) == list(range(25))
    assert scheduler.finished


def test_a_lost_workers_trials_are_next_and_given_up_after_the_retries():
    scheduler = Scheduler([range(100)], retries=1)
    scheduler.join("a", 4, 0.0)
    block = scheduler.next_block("a", 0.0)
    assert block is not None
    scheduler.returns("a", block.trials[:1], 1.0)
    assert scheduler.leave("a") == []
    scheduler.join("b", 4, 2.0)
    again = scheduler.next_block("b", 2.0)
    assert again is not None
    assert again.trials[: len(block.trials) - 1] == block.trials[1:]
    assert scheduler.leave("b") == sorted(set(again.trials) & set(block.trials))
    assert scheduler.returns("b", again.trials, 3.0) == []  # too late: it counts as gone


def test_near_the_end_workers_share_equally():
    scheduler = Scheduler([range(12)])
    for name in "abc":
        scheduler.join(name, 100, 0.0)
    blocks = [scheduler.next_block(name, 0.0) for name in "abc"]
    assert [len(block.trials) for block in blocks if block] == [4, 4, 4]


def test_a_worker_ends_one_attack_before_another():
    scheduler = Scheduler([range(3), range(3, 6)])
    scheduler.join("a", 8, 0.0)
    first = scheduler.next_block("a", 0.0)
    assert first is not None
    assert scheduler.next_block("a", 0.0) is None
    scheduler.returns("a", first.trials, 1.0)
    second = scheduler.next_block("a", 1.0)
    assert second is not None
    assert {first.attack, second.attack} == {0, 1}


# --- simulated clusters ---

QUICK = Cluster(workers=4, lanes=16, trial_seconds=5.0, start_seconds=10.0)


def test_a_quiet_cluster_runs_everything_once():
    told = simulate(QUICK, 4000)
    assert (told["trials"], told["lost"], told["repeated"], told["failures"]) == (4000, 0, 0, 0)
    assert 0.85 < told["efficiency"] <= 1


def test_failures_cost_what_was_in_the_lanes():
    quiet, failing = simulate(QUICK, 4000), simulate(replace(QUICK, hours_between_failures=0.05), 4000)
    assert failing["failures"] > 0
    assert failing["trials"] + failing["lost"] == 4000
    assert failing["repeated"] <= failing["failures"] * 3 * QUICK.lanes
    assert failing["seconds"] > quiet["seconds"]


def test_a_driver_that_is_slow_is_what_limits():
    told = simulate(replace(QUICK, driver_seconds=0.2), 2000)
    assert told["driver_share"] > 0.95
    assert told["seconds"] == pytest.approx(400, rel=0.2)


def test_stragglers_make_a_tail():
    quiet, slow = simulate(QUICK, 4000), simulate(replace(QUICK, stragglers=0.25), 4000)
    assert slow["efficiency"] < quiet["efficiency"]
    assert slow["trials"] == 4000
