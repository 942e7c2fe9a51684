"""A run directory in an object store (moto's S3 server): killed, resumed, sharded and read back as on a file system."""

import json
import signal
import time

import pytest

from jaxleak import InputError, Run
from jaxleak.data.paths import is_local, place
from jaxleak.results.store import locks
from jaxleak.results.store.parts import PartName
from jaxleak.results.store.shard import ALL, Shard
from tests.commands import call, refusal
from tests.processes import PAUSE, assert_same, finish, small_pictures, started, wait_for_part
from tests.stores import ENVIRONMENT, SETTINGS, commit

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def bucket():
    """An S3 server of this machine with one bucket, and where it is found."""
    import boto3

    threaded = server.ThreadedMotoServer(port=0, verbose=False)
    threaded.start()
    host, port = threaded.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "of-no-use")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="runs")
        yield "s3://runs"
    threaded.stop()


@pytest.fixture
def out(bucket, request):
    """A place of the test's own."""
    return place(f"{bucket}/{request.node.name}")


def create(path, shard: Shard = ALL) -> Run:
    return Run.create_or_resume(path, SETTINGS, ENVIRONMENT, shard)


# --- names ---


def test_places():
    assert place("runs/a") == place(place("runs/a"))
    assert is_local(place("C:/runs"))
    assert place("file:///tmp/run").as_posix() == "/tmp/run"
    for name in ("s3://bucket/run", "s3:/bucket/run"):  # as Path has it
        assert str(place(name)) == "s3://bucket/run"
        assert not is_local(place(name))
    with pytest.raises(InputError, match="`foo:/x/y` is no place for a run: Unsupported filesystem: 'foo'"):
        place("foo:/x/y")


def test_a_store_that_cannot_be_used_is_one_line(bucket, small_run):
    told = "`s3://absent/run`: there is no bucket 'absent' that these credentials may read. Make it, or check them."
    for command in (["table"], ["report"], [*small_run, "--out"]):
        assert told in refusal(*command, "s3://absent/run")
    assert f"run directory {bucket}/nothing does not exist" in refusal("table", f"{bucket}/nothing")


# --- the store ---


def test_parts_are_kept_and_resumed(out):
    with create(out) as run:
        commit(run, [0, 1])
        commit(run, [2])
    with create(out) as run:
        assert run.done() == {0, 1, 2}
        commit(run, [3])
    assert Run.open(out).arrays(["trial"], trials=[1, 3])["trial"].tolist() == [1, 3]
    assert not list(out.glob(".*"))


def test_half_a_part_is_written_again(out):
    """Killed between the arrays and the rows; the store refuses to write the arrays twice."""
    with create(out) as run:
        commit(run, [0])
        (out / "arrays-00001.npz").write_bytes(b"half")
    with create(out) as run:
        assert not (out / "arrays-00001.npz").exists()
        commit(run, [1])
    assert Run.open(out).done() == {0, 1}


def test_a_shard_leaves_the_arrays_of_others_alone(out):
    with create(out, Shard(0, 2)) as first:
        commit(first, [0])
        for index in (0, 1):
            (out / f"arrays-{index:03}of002-00001.npz").write_bytes(b"half")
    with create(out, Shard(0, 2)):
        assert not (out / "arrays-000of002-00001.npz").exists()
        assert (out / "arrays-001of002-00001.npz").exists()
    with create(out):
        assert not (out / "arrays-001of002-00001.npz").exists()


def test_a_damaged_part_is_set_aside(out):
    with create(out) as run:
        commit(run, [0])
        commit(run, [1])
    (out / PartName(ALL, 0).file).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged part set aside"):
        run = create(out)
    with run:
        assert run.done() == {1}
        commit(run, [0])
    assert Run.open(out).done() == {0, 1}
    assert (out / "rows-00000.parquet.corrupt").read_bytes() == b"damaged"


def test_one_writer_at_a_time(out):
    with create(out), pytest.raises(InputError, match=r"a process on \S+ is writing this run \(seen \d+ s ago\)"):
        create(out)
    with create(out, Shard(0, 2)) as first, create(out, Shard(1, 2)) as second:
        commit(first, [0])
        commit(second, [1])
        for shard in (ALL, Shard(1, 2)):
            with pytest.raises(InputError, match="is writing this run"):
                create(out, shard)
    with create(out) as run:
        assert run.done() == {0, 1}
        with pytest.raises(InputError, match="is writing this run"):
            create(out, Shard(0, 2))


def test_a_lease_ends_some_time_after_its_last_renewal(out, monkeypatch):
    create(out).close()
    other = {"id": "of-another", "pid": 1, "host": "elsewhere", "at": time.time()}
    (out / ".lock").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"a process on elsewhere is writing .* its claim ends 90 s after that"):
        create(out)
    (out / ".lock").write_text(json.dumps({**other, "at": time.time() - 91}))
    monkeypatch.setattr(locks, "RENEW_SECONDS", 0.05)
    with create(out):
        first = locks._read(out / ".lock")
        time.sleep(0.5)
        assert locks._read(out / ".lock")["at"] > first["at"] + 0.1


def test_the_lock_of_a_run_that_was_copied_there_is_none(out):
    """On a disk it is an empty file."""
    create(out).close()
    (out / ".lock").write_bytes(b"")
    (out / ".lock-0of2").write_bytes(b"")
    with create(out) as run:
        commit(run, [0])
        assert locks._read(out / ".lock") is not None
    assert Run.open(out).done() == {0}


def test_two_writers_never_mix_their_parts(out):
    """Where one was stopped for so long that another took over."""
    late = create(out)
    (out / ".lock").unlink()
    with create(out) as run:
        commit(run, [0])
        with pytest.raises(InputError, match="another process has begun to write this run"):
            commit(late, [1])
        late.close()
        assert (out / ".lock").exists()
    assert Run.open(out).done() == {0}


# --- a run ---


def test_killed_resumed_and_read_back(small_run, whole, out):
    with started(small_run, out) as process:
        wait_for_part(process, out)
        time.sleep(PAUSE / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (out / ".lock").exists()
    assert 0 < len(Run.open(out).rows()) < 10
    run = finish(small_run, out)
    assert_same(run, whole)
    said = call("table", str(out))
    assert said.code == 0
    assert "10" in said.out
    said = call("plot", str(out))
    assert said.out.split()[1] == f"{out}/figures/recovery.png"
    assert (out / "figures/recovery.png").read_bytes().startswith(b"\x89PNG")
    assert call("report", str(out)).out.split() == ["page:", f"{out}/report.html"]
    assert b"10 attack trials" in (out / "report.html").read_bytes()


def test_trained_networks_are_kept_there(tmp_path, out):
    pictures = str(small_pictures(tmp_path, 100))
    arguments = [
        *("run", "--attack", "idlg", "--dataset", pictures, "--images", "3", "--seeds", "1"),
        *("--iterations", "2", "--network", "shared", "--trained-steps", "2", "--no-figures"),
    ]
    trained = finish(arguments, out).settings["victim"]["weights"]
    before = (out / "trained-0.safetensors").stat().st_mtime
    (out / "rows-00000.parquet").unlink()
    run = finish(arguments, out)
    assert run.settings["victim"]["weights"] == trained
    assert (out / "trained-0.safetensors").stat().st_mtime == before
    assert len(run.rows()) == 1
