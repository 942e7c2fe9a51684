"""The run directory: nothing lost and nothing twice, whatever is killed, cut short or flipped."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxleak.data import paths
from jaxleak.errors import InputError, StorageError
from jaxleak.results.store import parts
from jaxleak.results.store import parts as parts_module
from jaxleak.results.store.columns import COLUMNS, NULLS, Column
from jaxleak.results.store.description import settings_hash
from jaxleak.results.store.environment import git_state
from jaxleak.results.store.run import Run
from tests.stores import ENVIRONMENT, OPEN_RUNS, SETTINGS, commit, create, make_arrays, make_row


@pytest.fixture(autouse=True)
def close_runs():
    yield
    while OPEN_RUNS:
        OPEN_RUNS.pop().close()


@pytest.fixture
def filled(tmp_path):
    """A closed run with three parts of four trials."""
    with create(tmp_path / "run") as run:
        for start in (0, 4, 8):
            commit(run, range(start, start + 4))
    return run.path


def done_on_resume(path):
    with create(path) as run:
        return run.done()


def contents(path):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def check_consistent(run):
    """Every row once, with its own arrays."""
    ids = [row["trial"] for row in run.rows()]
    assert len(ids) == len(set(ids))
    assert set(ids) == run.done()
    if ids:
        arrays = run.arrays()
        assert arrays["trial"].tolist() == ids
        assert arrays["candidate"][:, 0, 0, 0].tolist() == ids


# --- round trip -------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    rows = [
        make_row(5, objective=1e-300, mse=np.nan, psnr=np.inf, threshold_iterations=None, model="näme"),
        make_row(2, objective=np.float32(0.1), image=np.int32(7), success=np.bool_(False), max_abs=1e16),
    ]
    arrays = make_arrays([5, 2])
    arrays["candidate"][0, 0] = np.nan
    with create(tmp_path / "run") as run:
        run.append(rows, arrays)
        commit(run, [9])
    again = Run.open(tmp_path / "run")
    for reader in (run, again):
        for got, given in zip(reader.rows(), rows, strict=False):
            np.testing.assert_equal(got, given)
        assert [row["trial"] for row in reader.rows()] == [5, 2, 9]
        assert reader.rows()[0]["threshold_iterations"] is None
        assert reader.table().column_names == [column.name for column in COLUMNS]
        stored = reader.arrays()
        for name, array in arrays.items():
            np.testing.assert_array_equal(stored[name][:2], array)
            assert stored[name].dtype == array.dtype
    names = {"run.json", ".lock"} | {f"{kind}-0000{i}.{end}" for i in (0, 1) for kind, end in PARTS}
    assert set(contents(tmp_path / "run")) == names


PARTS = (("rows", "parquet"), ("arrays", "npz"))


def with_columns(monkeypatch, columns):
    monkeypatch.setattr(parts_module, "COLUMNS", columns)


LATER = Column("client", "string", "a column that came later", may_lack=True)


def test_a_column_that_came_later_is_null_in_older_rows(filled, monkeypatch):
    with_columns(monkeypatch, (*COLUMNS, LATER))
    run = Run.open(filled)
    assert len(run.rows()) == 12
    assert {row["client"] for row in run.rows()} == {None}
    with create(filled) as run:
        run.append([{**make_row(20), "client": "fedavg"}], make_arrays([20]))
    assert [row["client"] for row in Run.open(filled).rows()] == [None] * 12 + ["fedavg"]
    monkeypatch.undo()  # an older version goes on with it
    with create(filled) as run:
        commit(run, [21])
    assert [row["trial"] for row in Run.open(filled).rows()] == [*range(12), 20, 21]
    with_columns(monkeypatch, (*COLUMNS, LATER))
    assert [row["client"] for row in Run.open(filled).rows()][12:] == ["fedavg", None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [((*COLUMNS, LATER._replace(may_lack=False)), "client is missing"), ((COLUMNS[0]._replace(kind="int64"),), "type")],
    ids=["needed", "type"],
)
def test_rows_that_lack_what_is_needed_are_not_read(filled, monkeypatch, columns, message):
    with_columns(monkeypatch, columns)
    with pytest.warns(UserWarning, match=message):
        assert Run.open(filled).rows() == []


def test_every_column_says_what_it_holds():
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    for column in COLUMNS:
        assert 1 <= len(column.meaning.split()) <= 15, column


def test_columns_that_may_lack_a_value():
    """What images do not have, what texts do not have, what a trial need not reach, and what came later."""
    images, texts = "mse_clipped psnr ssim affine_error max_abs", "tokens_right rouge1 rouge2 rougel"
    others = "threshold_iterations threshold_evaluations chosen reason"
    assert set(NULLS) == set(f"{images} {texts} {others}".split())
    assert set(NULLS.values()) == {None}


def test_parts_are_plain_parquet_and_npz(filled):
    assert pq.read_table(filled / "rows-00001.parquet")["trial"].to_pylist() == [4, 5, 6, 7]
    assert np.load(filled / "arrays-00001.npz")["trial"].tolist() == [4, 5, 6, 7]


def test_run_json(tmp_path):
    run = create(tmp_path / "new" / "run")
    description = json.loads((run.path / "run.json").read_text())
    assert description["settings"] == SETTINGS
    assert description["settings_hash"] == run.settings_hash == settings_hash(SETTINGS)
    assert description["environment"] == run.environment == ENVIRONMENT
    assert description["created"] == run.created
    assert (run.rows(), run.done(), run.arrays()) == ([], set(), {})


def test_resume_goes_on(filled):
    with create(filled) as run:
        assert run.done() == set(range(12))
        commit(run, [12, 13])
        check_consistent(run)
    assert (filled / "rows-00003.parquet").exists()
    assert Run.open(filled).done() == set(range(14))


def test_arrays_of_some_trials_load_only_their_parts(filled, monkeypatch):
    run = Run.open(filled)
    loaded, load = [], np.load
    monkeypatch.setattr(np, "load", lambda file: loaded.append(Path(file.name).name) or load(file))
    arrays = run.arrays(["trial", "candidate"], trials=[9, 1, 2])
    assert loaded == ["arrays-00000.npz", "arrays-00002.npz"]
    assert set(arrays) == {"trial", "candidate"}
    assert arrays["trial"].tolist() == [1, 2, 9]
    assert arrays["candidate"][:, 0, 0, 0].tolist() == [1, 2, 9]


def test_arrays_that_are_not_there(filled):
    run = Run.open(filled)
    with pytest.raises(InputError, match=r"`keys` must be one of .* Did you mean 'candidate'"):
        run.arrays(["candidates"])
    with pytest.raises(InputError, match=r"`trials` must be in the run; not there: \[77\]"):
        run.arrays(trials=[1, 77])


def test_traces_of_different_length_are_filled(tmp_path):
    run = create(tmp_path)
    run.append([make_row(0)], make_arrays([0], steps=3))
    longer = make_arrays([1], steps=5) | {"snapshots": np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4, 1)}
    run.append([make_row(1)], longer)
    arrays = run.arrays()
    np.testing.assert_array_equal(arrays["objective_trace"], [[0, 0, 0, np.nan, np.nan], [1] * 5])
    np.testing.assert_array_equal(arrays["snapshots"][1], longer["snapshots"][0])
    assert arrays["snapshots"].shape == (2, 3, 4, 4, 1)


def test_what_fills_short_pieces():
    """Traces of numbers by NaN, those of integers by -1, pictures by the last of them; single numbers are joined."""
    joined = parts_module.joined
    floats = joined([np.ones((1, 2)), np.zeros((2, 3))])
    np.testing.assert_array_equal(floats, [[1, 1, np.nan], [0, 0, 0], [0, 0, 0]])
    assert joined([np.ones((1, 2), int), np.zeros((1, 3), int)]).tolist() == [[1, 1, -1], [0, 0, 0]]
    pictures = joined([np.arange(4).reshape(1, 2, 2), np.zeros((1, 3, 2), int)])
    assert pictures[0].tolist() == [[0, 1], [2, 3], [2, 3]]
    assert joined([np.arange(2), np.arange(3)]).tolist() == [0, 1, 0, 1, 2]


def test_only_arrays_that_are_mostly_zero_are_compressed():
    arrays = {"sparse": np.eye(40), "dense": np.ones((40, 40)), "half": np.arange(40) % 2, "text": np.array(["a"] * 9)}
    arrays["most"] = (np.arange(40) < 19).astype(float)
    payload = io.BytesIO(parts_module.npz_bytes(arrays))
    with zipfile.ZipFile(payload) as archive:
        kinds = {info.filename: info.compress_type == zipfile.ZIP_DEFLATED for info in archive.infolist()}
    assert {name for name, compressed in kinds.items() if compressed} == {"sparse.npy", "most.npy"}
    assert len(kinds) == len(arrays)
    with np.load(payload) as stored:
        for name, array in arrays.items():
            np.testing.assert_array_equal(stored[name], array)


def test_arrays_over_the_limit_of_a_zip_are_stored(monkeypatch):
    """2 GiB, here a hundred bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    with np.load(io.BytesIO(parts_module.npz_bytes({"large": np.arange(99)}))) as stored:
        np.testing.assert_array_equal(stored["large"], np.arange(99))


def test_objects_are_no_arrays():
    """Whoever loads them would run what they say."""
    with pytest.raises(ValueError, match="allow_pickle=False"):
        parts_module.npz_bytes({"object": np.array([object()])})


def test_json_is_for_people():
    assert parts_module.json_bytes({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}\n'


def test_truth_summary_and_figures(tmp_path):
    pixels = np.random.default_rng(0).random((2, 4, 4, 3), dtype=np.float32)
    with create(tmp_path) as run:
        run.write_truth([20319, 25], [3, 7], pixels)
        run.write_summary({"groups": [], "complete": True})
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.write_summary({"rate": np.nan})
    run = Run.open(tmp_path)
    truth = run.truth()
    assert (truth["image"].tolist(), truth["label"].tolist()) == ([20319, 25], [3, 7])
    np.testing.assert_array_equal(truth["pixels"], pixels)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"groups": [], "complete": True}
    assert set(truth) == {"image", "label", "pixels"}
    for _ in range(2):
        assert run.figures.is_dir()
    assert run.modality == "image"


def test_truth_summary_of_named_classes_and_modality(tmp_path):
    with create(tmp_path, SETTINGS | {"victim": {"modality": "text"}}) as run:
        run.write_truth([1], [0], np.zeros((1, 4, 4, 1)), class_names=["cat", "dog"])
    assert run.truth()["class_names"].tolist() == ["cat", "dog"]
    assert run.modality == "text"


def test_rows_as_a_frame_need_pandas(filled, monkeypatch):
    frame = Run.open(filled).frame()
    assert frame["trial"].tolist() == list(range(12))
    monkeypatch.setattr("jaxleak.results.store.run.find_spec", lambda name: None)
    with pytest.raises(InputError, match="`frame` needs pandas: pip install pandas"):
        Run.open(filled).frame()


def test_other_solvers_are_refused_unless_they_may_mix(tmp_path):
    solvers = [ENVIRONMENT | {"solvers": {"lbfgs": version}} for version in ("1", "2")]
    Run.create_or_resume(tmp_path, SETTINGS, solvers[0]).close()
    with pytest.raises(InputError, match="another version of the solver lbfgs"):
        Run.create_or_resume(tmp_path, SETTINGS, solvers[1])
    Run.create_or_resume(tmp_path, SETTINGS, solvers[1], mix_versions=True).close()


def test_temporary_files_that_another_process_removes_first_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxleak.results.store.run.own_debris", lambda path, shard: [path / "gone"])
    create(tmp_path).close()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
def test_damaged_truth_is_one_line(tmp_path, damage):
    run = create(tmp_path)
    run.write_truth([1], [1], np.random.default_rng(0).random((1, 8, 8, 3)))
    file = tmp_path / "truth.npz"
    payload = bytearray(file.read_bytes())
    payload[len(payload) // 2] ^= 0xFF
    changed = {"empty": b"", "cut": payload[:200], "flipped": payload}
    file.unlink() if damage == "missing" else file.write_bytes(bytes(changed[damage]))
    with pytest.raises(InputError, match=r"truth.npz is missing or damaged. Start the same run again"):
        run.truth()


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": np.zeros((3, 4, 4, 3), np.float32)},
        {"pixels": np.zeros((1, 4, 4, 3), np.float32)},
        {"pixels": np.zeros((2, 4, 4, 3))},
        {"pixels": np.zeros((2, 4), np.float32)},
        {"pixels": np.zeros((2, 4, 0), np.float32)},
        {"image": np.array([1, 1])},
        {"image": np.array([1.0, 2.0])},
        {"image": np.array([[1], [2]])},
        {"label": np.array([3, 4, 5])},
        {"label": np.array([3.0, 4.0])},
        {"labels": np.array([3, 4])},
        {"labels": np.array([[3], [4], [5]])},
        {"labels": np.array([[3.0], [4.0]])},
    ],
    ids=lambda changes: " ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in changes.items()),
)
def test_truths_that_do_not_fit_together_are_damaged(tmp_path, changes):
    run = create(tmp_path)
    whole = {"image": np.array([1, 2]), "label": np.array([3, 4]), "pixels": np.zeros((2, 4, 4, 3), np.float32)}
    np.savez(tmp_path / "truth.npz", **whole, labels=np.array([[3], [4]]))
    assert len(run.truth()["labels"]) == 2
    np.savez(tmp_path / "truth.npz", **whole | changes)
    with pytest.raises(InputError, match=r"truth.npz is missing or damaged"):
        run.truth()


def test_a_disk_that_fails_is_one_line(filled, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    with create(filled) as run:
        monkeypatch.setattr("jaxleak.results.store.run.write_atomically", fail)
        with pytest.raises(StorageError, match=r"cannot be written \(Input/output error\)") as error:
            run.write_summary({"groups": []})
        assert error.value.needed > 10
        monkeypatch.setattr("jaxleak.results.store.run.create", fail)
        with pytest.raises(StorageError, match=r"cannot be written \(Input/output error\)") as error:
            commit(run, [20])
        assert 20 not in run.done()
        monkeypatch.undo()
        before = set(filled.iterdir())
        commit(run, [20])
        assert error.value.needed == sum(file.stat().st_size for file in set(filled.iterdir()) - before)


def test_rows_must_have_the_columns(tmp_path):
    run = create(tmp_path)
    lacking = make_row(0)
    del lacking["psnr"]
    for row, message in [
        (make_row(0, colour="red"), r"extra: \['colour'\]"),
        (lacking, r"lacking: \['psnr'\]"),
        (make_row(0, mse=None, image=0.5), "trial 0: values of the wrong type: image=0.5, mse=None"),
        (make_row(0, success=1, seed=True), "seed=True, success=1"),
        (make_row(0, threshold_iterations=2.0), "threshold_iterations=2.0"),
        (make_row("0"), "trial='0'"),
    ]:
        with pytest.raises(ValueError, match=message):
            run.append([row], make_arrays([0]))
    assert run.done() == set()
    assert not list(tmp_path.glob("*-0*"))


def test_arrays_must_match_the_rows(tmp_path):
    run = create(tmp_path)
    for arrays in (make_arrays([0, 1]), {"trial": np.array([1])}, {"x": np.array([{}])}, {"x": np.array(1)}):
        with pytest.raises(ValueError, match="one numeric entry per row"):
            run.append([make_row(0)], arrays)
    run.append([], {})
    assert not list(tmp_path.glob("*-0*"))


def test_a_trial_is_stored_once(filled):
    run = create(filled)
    for rows in ([make_row(3)], [make_row(20), make_row(20)]):
        with pytest.raises(ValueError, match="trials are stored once"):
            run.append(rows, make_arrays([row["trial"] for row in rows]))


# --- settings and directories that do not fit -------------------------------------------------------------


def test_settings_hash_is_of_canonical_json():
    assert settings_hash({"b": (1, 2), "a": {10: 1, 9: 2}}) == settings_hash({"a": {"9": 2, "10": 1}, "b": [1, 2]})
    assert settings_hash({"a": 1}) != settings_hash({"a": 1.0})
    assert len(settings_hash({})) == 12
    assert set(settings_hash({})) <= set("0123456789abcdef")


def test_other_settings_are_refused_by_name(filled):
    before = contents(filled)
    asked = {"attacks": ["dlg"], "seeds": 20, "solver": {"name": "torch-lbfgs", "history": 10}, "x64": True}
    with pytest.raises(InputError) as error:
        create(filled, asked)
    message = str(error.value)
    assert 'attacks: ["dlg","idlg"] in the directory, ["dlg"] asked' in message
    assert "seeds: 50 in the directory, 20 asked" in message
    assert "solver.history: 100 in the directory, 10 asked" in message
    assert "x64: absent in the directory, true asked" in message
    assert "solver.name" not in message
    assert "\n" not in message
    assert contents(filled) == before
    create(filled).close()  # and the lock is free again


def test_other_settings_are_refused_before_long_work(filled, tmp_path):
    """Those that are known by then; nothing is written."""
    before = contents(filled)
    Run.check(filled, SETTINGS, ())
    Run.check(filled, SETTINGS | {"seeds": 20}, ("seeds",))
    with pytest.raises(InputError, match="seeds: 50 in the directory, 20 asked"):
        Run.check(filled, SETTINGS | {"seeds": 20}, ("solver", "attacks"))
    assert contents(filled) == before
    Run.check(tmp_path / "absent", SETTINGS, ())
    assert not (tmp_path / "absent").exists()
    (tmp_path / "empty").mkdir()
    Run.check(tmp_path / "empty", SETTINGS, ())


def test_settings_that_differ_only_in_type_are_named(filled):
    with pytest.raises(InputError, match=r"seeds: 50 in the directory, 50.0 asked"):
        create(filled, SETTINGS | {"seeds": 50.0})


def test_equal_settings_after_json_resume(tmp_path):
    with create(tmp_path, {"images": (1, 2), "options": {}, "none": None}) as run:
        commit(run, [0, 1])
    with create(tmp_path, {"none": None, "options": {}, "images": [1, 2]}) as run:
        assert run.done() == {0, 1}


def test_paths_that_cannot_be_a_run(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    for path, message in [
        (file, "`out` must be a directory; .*file is a file"),
        (file / "run", "cannot be written"),
        (foreign, "is not empty and not a run directory"),
    ]:
        with pytest.raises(InputError, match=message):
            create(path)
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]
    for path, message in [
        (tmp_path / "nowhere", "nowhere does not exist"),
        (file, "is not a directory"),
        (foreign, r"not a run directory \(no run.json\)"),
    ]:
        with pytest.raises(InputError, match=message):
            Run.open(path)


def test_directory_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
            create(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        create(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"settings": {}}', "\udcff", '["settings"]'])
def test_damaged_run_json(filled, text):
    (filled / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    for attempt in (lambda: create(filled), lambda: Run.open(filled)):
        with pytest.raises(InputError, match=r"run.json is damaged .* Restore it from a copy, or move") as error:
            attempt()
        assert "\n" not in str(error.value)


def test_edited_or_foreign_run_json(filled):
    description = json.loads((filled / "run.json").read_text())
    for change, message in [
        ({"settings": SETTINGS | {"seeds": 20}}, "was edited: its settings do not match their hash"),
        ({"settings": [1]}, "is damaged"),
        ({"format": 99}, "written in store format 99"),
    ]:
        (filled / "run.json").write_text(json.dumps(description | change))
        with pytest.raises(InputError, match=message):
            Run.open(filled)


def test_one_writer_at_a_time(filled):
    run = create(filled)
    with pytest.raises(InputError, match="another process is writing this run"):
        create(filled)
    assert Run.open(filled).done() == set(range(12))  # readers are not kept out
    run.close()
    create(filled).close()


def test_reading_changes_nothing(filled):
    (filled / ".rows-00003.parquet.tmp").write_bytes(b"half")
    (filled / "rows-00001.parquet").write_bytes(b"broken")
    before = contents(filled)
    with pytest.warns(UserWarning, match="damaged part skipped"):
        run = Run.open(filled)
    assert run.done() == {0, 1, 2, 3, 8, 9, 10, 11}
    check_consistent(run)
    for write in (
        lambda: commit(run, [50]),
        lambda: run.write_summary({}),
        lambda: run.write_truth([], [], []),
    ):
        with pytest.raises(ValueError, match="open for reading only"):
            write()
    assert contents(filled) == before


# --- damage -----------------------------------------------------------------------------------------------


def damage_and_resume(path, file, payload):
    """Reopen with `file` holding `payload`: the trials of part 1 must be run again, and can be stored."""
    file.write_bytes(payload)
    with pytest.warns(UserWarning, match="damaged part set aside"):
        run = create(path)
    with run:
        assert run.done() == {0, 1, 2, 3, 8, 9, 10, 11}
        assert (path / f"{file.name}.corrupt").read_bytes() == payload
        assert not file.exists()
        commit(run, [4, 5, 6, 7])
        check_consistent(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert done_on_resume(path) == set(range(12))


@pytest.mark.parametrize("name", ["rows-00001.parquet", "arrays-00001.npz"])
@pytest.mark.parametrize("keep", [0, 1, 4, 0.3, 0.9, -9, -8, -4, -1])
def test_truncated_part_is_set_aside(filled, name, keep):
    payload = (filled / name).read_bytes()
    damage_and_resume(filled, filled / name, payload[: int(keep * len(payload)) if 0 < keep < 1 else keep])


@pytest.mark.parametrize("name", ["rows-00001.parquet", "arrays-00001.npz"])
def test_flipped_bits_never_change_a_row(filled, name):
    """A flip either leaves the content as it was (padding, names of the writer) or is found."""
    rows_path, arrays_path = filled / "rows-00001.parquet", filled / "arrays-00001.npz"
    original = parts.read_part(rows_path, arrays_path)
    payload = (filled / name).read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for position in rng.choice(len(payload), size=min(250, len(payload)), replace=False):
        flipped = bytearray(payload)
        flipped[position] ^= 1 << rng.integers(8)
        (filled / name).write_bytes(flipped)
        try:
            assert parts.read_part(rows_path, arrays_path) == original
        except parts.DamagedError:
            found += 1
    assert found > 100
    middle = bytearray(payload)
    middle[len(payload) // 3] ^= 0xFF
    damage_and_resume(filled, filled / name, bytes(middle))


def test_a_flipped_page_is_found_before_it_is_decoded(filled):
    """Of a page whose bytes are others a decoder may make anything."""
    file = filled / "rows-00000.parquet"
    pages = pq.ParquetFile(file).metadata.row_group(0).column(0)
    start = pages.dictionary_page_offset if pages.has_dictionary_page else pages.data_page_offset
    payload = bytearray(file.read_bytes())
    payload[start + pages.total_compressed_size - 1] ^= 1  # the last byte of a page, whatever its header
    file.write_bytes(payload)
    with pytest.raises(parts.DamagedError, match="CRC"):
        parts.read_part(file, filled / "arrays-00000.npz")


def test_a_warning_of_damage_points_at_the_line_that_reads(filled):
    (filled / "rows-00000.parquet").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged part skipped") as caught:
        Run.open(filled)
    assert [warning.filename for warning in caught] == [__file__]


def test_part_without_its_arrays_is_set_aside(filled):
    (filled / "arrays-00002.npz").unlink()
    with pytest.warns(UserWarning, match="arrays-00002.npz is missing"):
        assert done_on_resume(filled) == set(range(8))
    assert (filled / "rows-00002.parquet.corrupt").exists()


def test_swapped_arrays_are_noticed(filled):
    shutil.copy(filled / "arrays-00000.npz", filled / "arrays-00001.npz")
    with pytest.warns(UserWarning, match="do not match their checksums"):
        assert done_on_resume(filled) == {0, 1, 2, 3, 8, 9, 10, 11}


def test_damage_twice_keeps_both_corpses(filled):
    for expected in ({2}, {2, 3}):
        last = max(filled.glob("rows-*.parquet"))
        last.write_bytes(b"x")
        with pytest.warns(UserWarning, match="set aside"), create(filled) as run:
            commit(run, range(8, 12))
        assert {int(p.name[5:10]) for p in filled.glob("rows-*.corrupt")} == expected
    assert done_on_resume(filled) == set(range(12))


@pytest.mark.parametrize(
    ("method", "ending", "error", "said"),
    [
        ("read_bytes", ".parquet", PermissionError(13, "Permission denied", "of it"), "of it .*Permission denied"),
        ("read_bytes", ".parquet", OSError(5, "Input/output error"), "rows-00000.parquet .*Input/output error"),
        ("open", ".npz", PermissionError(13, "Permission denied", "arrays"), "arrays .*Permission denied"),
    ],
)
def test_unreadable_part_is_no_damage(filled, monkeypatch, method, ending, error, said):
    """A part that the system will not let us read may be sound: stop, and leave it where it is."""
    read = getattr(Path, method)

    def refuse(path, *args, **kwargs):
        if path.suffix == ending:
            raise error
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(InputError, match=said.replace(" .*", r" cannot be read \(") + r"\)\. Check its permissions"):
        create(filled)
    monkeypatch.undo()
    assert not list(filled.glob("*.corrupt"))


def test_a_trial_in_two_parts_counts_once(tmp_path):
    for name, starts in {"a": (0, 2), "b": (2, 4)}.items():
        with create(tmp_path / name) as run:
            commit(run, range(starts[0], starts[0] + 3))
            commit(run, range(starts[1] + 10, starts[1] + 13))
    for kind, end in PARTS:
        shutil.copy(tmp_path / "b" / f"{kind}-00000.{end}", tmp_path / "a" / f"{kind}-00002.{end}")
    run = Run.open(tmp_path / "a")
    assert [row["trial"] for row in run.rows()] == [0, 1, 2, 12, 13, 14, 3, 4]
    check_consistent(run)
    assert run.arrays(["candidate"], trials=[4])["candidate"][0, 0, 0, 0] == 4


def test_temporary_files_of_others_are_left_until_they_are_old(filled):
    """Whoever draws a figure or a page holds no lock. A minute after its last change it is old."""
    (filled / "figures").mkdir()
    fresh, old = ([filled / f".report.html.{n}.tmp", filled / f"figures/.grid.png.{n}.tmp"] for n in (0, 1))
    now = time.time()
    for files, seconds in ((fresh, 30), (old, 60.5)):
        for file in files:
            file.write_bytes(b"half")
            os.utime(file, (now - seconds,) * 2)
    create(filled).close()
    assert [file.exists() for file in (*fresh, *old)] == [True, True, False, False]


def test_a_temporary_file_of_just_a_minute_is_left(filled, monkeypatch):
    file = filled / ".report.html.0.tmp"
    file.write_bytes(b"half")
    for seconds, found in ((60, []), (60.25, [file])):
        monkeypatch.setattr(parts.time, "time", lambda seconds=seconds: file.stat().st_mtime + seconds)
        assert parts.own_debris(filled) == found


def test_a_temporary_file_that_is_gone_when_it_is_looked_at_is_left(filled):
    link = filled / ".report.html.0.tmp"
    link.symlink_to(filled / "gone")
    assert parts.own_debris(filled) == []


# --- kills ------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
sys.path.insert(0, {root!r})
from tests.stores import create, commit
import jaxleak.results.store.parts as store
"""


def run_child(code, **options):
    root = str(Path(__file__).resolve().parents[1])
    return subprocess.Popen([sys.executable, "-c", WRITER.format(root=root) + code], **options)


DYING = """
replace, count = os.replace, [0]

def die(source, target):
    mine, count[0] = count[0] == RENAME, count[0] + 1
    if mine and not AFTER:
        os._exit(9)
    replace(source, target)
    if mine:
        os._exit(9)

os.replace = die
commit(create(PATH), [0, 1])
"""


# A new run renames run.json, then arrays and rows of its first part: three renames to die at.
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("rename", [0, 1, 2])
def test_killed_at_a_rename(tmp_path, rename, after):
    """The process ends just before or after its n-th rename; only a rename of the rows commits a part."""
    path = tmp_path / "run"
    code = f"RENAME, AFTER, PATH = {rename}, {after}, {str(path)!r}" + DYING
    assert run_child(code).wait() == 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = create(path)
    with run:
        assert run.done() == ({0, 1} if (rename, after) == (2, True) else set())
        assert not list(path.glob(".*.tmp"))
        commit(run, {0, 1, 2} - run.done())
        check_consistent(run)
        assert run.done() == {0, 1, 2}


def test_full_disk_commits_nothing_and_can_be_tried_again(filled, monkeypatch):
    run, sync = create(filled), os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:  # arrays, directory, rows
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    before = set(filled.iterdir())
    with pytest.raises(OSError, match="No space left"):
        commit(run, [12])
    assert run.done() == set(range(12))
    assert set(filled.iterdir()) == before  # arrays without rows would keep the disk full
    commit(run, [12])
    check_consistent(run)
    run.close()
    assert done_on_resume(filled) == set(range(13))


def test_full_disk_or_not_arrays_whose_rows_are_written_stay(filled, monkeypatch):
    """Of an interruption between the last byte and the end of the call."""
    run, written = create(filled), paths.create

    def interrupted(path, payload):
        written(path, payload)
        if path.suffix == ".parquet":
            raise KeyboardInterrupt

    monkeypatch.setattr("jaxleak.results.store.run.create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        commit(run, [12])
    run.close()
    assert done_on_resume(filled) == set(range(13))


LOOP = """
run = create(PATH)
trial = max(run.done(), default=-1) + 1
while True:
    commit(run, [trial, trial + 1])
    print(trial + 1, flush=True)
    trial += 2
"""


def test_sigkill_at_random_moments(tmp_path):
    """After every kill the committed trials are there, in whole parts, none twice, and the lock is free."""
    path = tmp_path / "run"
    for delay in np.random.default_rng(0).uniform(0.02, 0.25, size=3):
        code = f"PATH = {str(path)!r}" + LOOP
        with run_child(code, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            printed = [child.stdout.readline()]  # libraries are imported before the first is written
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
            printed += child.stdout.read().splitlines()
        committed = int(printed[-1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run = create(path)
        with run:
            done = run.done()
            assert 0 < committed <= max(done) <= committed + 2
            assert done == set(range(len(done)))
            assert len(done) % 2 == 0
            check_consistent(run)


# --- git --------------------------------------------------------------------------------------------------


def git(path, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", str(path), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_state(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("1")
    assert git_state(package) == ("unknown", False)
    git(tmp_path, "init", "-q")
    assert git_state(package) == ("unknown", False)  # surrounded by a checkout that does not track it
    git(tmp_path, "add", ".")
    assert git_state(package) == ("unknown", False)  # no commit yet
    git(tmp_path, "commit", "-qm", "first")
    revision = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "row").write_text("outside the package")
    assert git_state(package) == (revision, False)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_state(package) == (revision, False)
    (package / "code.py").write_text("2")
    assert git_state(str(package)) == (revision, True)


def test_git_state_never_raises(tmp_path, monkeypatch):
    assert git_state(tmp_path / "nowhere") == ("unknown", False)
    monkeypatch.setenv("PATH", "")
    assert git_state(Path(__file__).parent) == ("unknown", False)
