"""Shards: separate processes run parts of a sweep into one directory, and the table says which are missing."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from jaxleak import InputError, Run
from jaxleak.results.store.parts import PartName, part_name
from jaxleak.results.store.shard import ALL, Shard, missing_shards, parse_shard
from jaxleak.results.summary import expected_trials
from jaxleak.runs.run import run_sweep
from tests.commands import call, refusal
from tests.processes import assert_same, finish, started, wait_for_part
from tests.stores import ENVIRONMENT, SETTINGS, commit
from tests.sweeps import QUICKEST, assert_same_trials, sweep_of


def create(path, shard: Shard) -> Run:
    return Run.create_or_resume(path, SETTINGS, ENVIRONMENT, shard)


def test_a_shard_goes_on_with_a_run_that_was_not_divided(tmp_path):
    with create(tmp_path, ALL) as run:
        assert run.shards(4) is None
        commit(run, [0])
        assert run.shards(4) is None
    with create(tmp_path, Shard(0, 2)) as run:
        commit(run, [2])
        assert run.shards(4)["count"] == 2


# --- which trials ---


@pytest.mark.parametrize("text", ["0/1", "2/8", " 7/8 "])
def test_a_shard_reads_as_it_is_written(text):
    assert str(parse_shard(text)) == text.strip()


@pytest.mark.parametrize("text", ["8/8", "-1/8", "1", "1/0", "a/b", "1.0/2", "0/0", ""])
def test_what_is_no_shard(text):
    with pytest.raises(InputError, match=r"`shard` must be I/N with I from 0 to N - 1"):
        parse_shard(text)


@pytest.mark.parametrize(("total", "count"), [(10, 3), (3, 5), (0, 2), (12, 1)])
def test_every_trial_is_one_shards(total, count):
    trials, shards = np.arange(total), [Shard(index, count) for index in range(count)]
    assert np.all(sum(shard.takes(trials).astype(int) for shard in shards) == 1)
    assert [shard.size(total) for shard in shards] == [int(shard.takes(trials).sum()) for shard in shards]
    assert missing_shards(count, total, set(range(total))) == {}
    nothing = missing_shards(count, total, set())
    assert nothing == dict.fromkeys((shard.index for shard in shards if shard.size(total)), 0)


def test_names_of_parts():
    for name in (PartName(ALL, 3), PartName(Shard(2, 12), 40), PartName(Shard(1234, 5000), 0)):
        assert part_name(Path(name.file)) == name
    assert PartName(ALL, 3).file == "rows-00003.parquet"


# --- the directory ---


def test_shards_share_a_directory_and_nobody_else_does(tmp_path):
    with create(tmp_path, Shard(0, 2)) as first, create(tmp_path, Shard(1, 2)) as second:
        commit(first, [0, 2])
        commit(second, [1])
        with pytest.raises(InputError, match="another process is writing shard 1/2"):
            create(tmp_path, Shard(1, 2))
        with pytest.raises(InputError, match="another process is writing this run"):
            create(tmp_path, ALL)
        with pytest.raises(InputError, match="was begun in 2 shards"):
            create(tmp_path, Shard(0, 3))
        assert Run.open(tmp_path).done() == {0, 1, 2}
        missing = [{"shard": "1/2", "done": 1, "trials": 2}]
        assert Run.open(tmp_path).shards(4) == {"count": 2, "missing": missing}
    with create(tmp_path, ALL), pytest.raises(InputError, match="a process that is no shard is writing this run"):
        create(tmp_path, Shard(0, 2))


def test_a_shard_leaves_the_others_files_alone(tmp_path):
    with create(tmp_path, Shard(0, 2)) as first, create(tmp_path, Shard(1, 2)) as second:
        commit(first, [0])
        commit(second, [1])
    theirs, own = (tmp_path / f".rows-{index:03}of002-00007.parquet.0.tmp" for index in (1, 0))
    for file in (theirs, own):
        file.write_bytes(b"half")
    (tmp_path / PartName(Shard(1, 2), 0).file).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged part skipped"), create(tmp_path, Shard(0, 2)) as first:
        assert first.done() == {0}
    assert theirs.exists()
    assert not own.exists()
    with pytest.warns(UserWarning, match="damaged part set aside"), create(tmp_path, Shard(1, 2)) as second:
        commit(second, [1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Run.open(tmp_path).done() == {0, 1}


def test_shards_need_a_directory(data):
    with pytest.raises(InputError, match="`shard` needs `out`"):
        run_sweep(sweep_of(data), shard="0/2")


# --- a run ---


def test_three_shards_one_missing(data, tmp_path):
    """The table names it; with it the run is the one that was not divided."""
    sweep = sweep_of(data, attacks=(QUICKEST,), seeds=3)
    wanted = run_sweep(sweep, tmp_path / "whole", quiet=True)
    out = tmp_path / "run"
    for index in (2, 0):
        result = run_sweep(sweep, out, quiet=True, shard=f"{index}/3")
    assert len(result.rows) == 6
    assert not result.summary["complete"]
    assert result.summary["shards"] == {"count": 3, "missing": [{"shard": "1/3", "done": 0, "trials": 3}]}
    said = call("table", out)
    assert said.code == 0
    assert "partial: 6 of 9 trials; shards missing: 1/3 (0 of 3 trials)" in " ".join(said.out.split())
    result = run_sweep(sweep, out, quiet=True, shard="1/3")
    assert result.summary["complete"]
    assert result.summary["shards"] == {"count": 3, "missing": []}
    assert result.summary["groups"] == wanted.summary["groups"]
    assert_same_trials(result, wanted)
    assert "shards missing" not in call("table", out).out


def test_what_is_left_can_be_run_in_one_process(data, tmp_path):
    sweep = sweep_of(data, attacks=(QUICKEST,), seeds=3)
    run_sweep(sweep, tmp_path / "run", quiet=True, shard="0/3")
    result = run_sweep(sweep, tmp_path / "run", quiet=True)
    assert sorted(row["trial"] for row in result.rows) == list(range(9))
    assert result.summary["complete"]


def test_two_processes_at_once_one_of_them_killed(small_run, whole, tmp_path):
    out = tmp_path / "run"
    with (
        started([*small_run, "--shard", "0/2"], out) as first,
        started([*small_run, "--shard", "1/2"], out, pause=0) as second,
    ):
        wait_for_part(first, out)
        first.kill()
        assert second.wait(timeout=240) == 0, second.stderr and second.stderr.read().decode()
        first.wait()
    done = Run.open(out).done()
    assert {trial for trial in range(10) if trial % 2} <= done
    assert len(done) < 10
    run = finish([*small_run, "--shard", "0/2"], out)
    assert_same(run, whole)
    assert run.shards(expected_trials(run.settings)) == {"count": 2, "missing": []}


def test_a_wrong_shard_is_one_line(small_run, tmp_path):
    line = refusal(*small_run, "--shard", "3/3", "--out", tmp_path / "run")
    assert "`shard` must be I/N with I from 0 to N - 1, as in 0/8 to 7/8; got '3/3'" in line
    assert not (tmp_path / "run").exists()
