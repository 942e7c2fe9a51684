"""Bytes, settings and flags that nobody would write: exit code 0 or 2 with a few lines, never a traceback or a hang.

`JAXLEAK_FUZZ=20` multiplies the number of examples.
"""

import copy
import io
import json
import os
import shutil
import time
import warnings
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import jaxleak
from jaxleak import InputError, cli
from jaxleak.models import build_model, load_weights
from jaxleak.results.store.description import settings_hash
from jaxleak.results.store.run import Run
from tests.commands import Said, call
from tests.sweeps import QUICKEST, sweep_of

MANY = int(os.environ.get("JAXLEAK_FUZZ", "1"))
LINES, SECONDS = 6, 20
SHAPE = (4, 4, 1)
TRIED: Counter[str] = Counter()  # examples of each kind, for experiments/reliability.py


def fuzz(examples: int):
    """So many examples of a test, times `JAXLEAK_FUZZ`; always the same ones."""
    unhealthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples * MANY, deadline=None, derandomize=True, database=None, suppress_health_check=unhealthy
    )


@pytest.fixture(scope="module", autouse=True)
def told():
    yield
    if path := os.environ.get("JAXLEAK_FUZZ_COUNTS"):
        Path(path).write_text(json.dumps(TRIED))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def answered(function, *arguments: Any, **options: Any) -> Any:
    """What a public function returns, or the line with which it refuses; nothing else may be raised."""
    began = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = function(*arguments, **options)
    except InputError as error:
        result = str(error)
        assert len(result) < 2000
        assert "Traceback" not in result
    assert time.monotonic() - began < SECONDS
    return result


def check(said: Said) -> Said:
    assert said.code in (0, 2), said
    assert "Traceback" not in said.err
    if said.code == 2:
        assert 1 <= len(said.err.splitlines()) <= LINES, said.err
    return said


# --- bytes ---

WORDS = st.sampled_from([0, 1, 7, 8, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])


@st.composite
def spoiled(draw, payload: bytes) -> bytes:
    """The payload with a few bytes changed, cut off, added, or exchanged for a number that is too large."""
    changed = bytearray(payload)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "add", "zero", "word", "drop"]))
        if kind == "flip" and changed:
            changed[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del changed[place:]
        elif kind == "add":
            changed[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "zero":
            changed[place : place + 8] = bytes(len(changed[place : place + 8]))
        elif kind == "word":
            changed[place : place + 8] = draw(WORDS).to_bytes(8, "little")
        else:
            del changed[place : place + draw(st.integers(1, 16))]
    return bytes(changed)


MODEL = build_model("mlp", 2)


def tensors() -> dict[str, np.ndarray]:
    import jax

    from jaxleak.models.weights import to_torch
    from jaxleak.threat.network import draw_params

    params = jax.tree.map(np.asarray, draw_params(MODEL, jax.random.key(0), SHAPE))
    return {name: np.asarray(tensor, np.float32) for name, tensor in to_torch(MODEL, params, SHAPE).items()}


TENSORS = tensors()
SAFE = save(TENSORS)
LENGTH = int.from_bytes(SAFE[:8], "little")
HEADER = json.loads(SAFE[8 : 8 + LENGTH])
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "I64", "C64", "", "__metadata__", "l2", "../x", "\udcff"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of everything within JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@st.composite
def altered(draw, content: Any) -> Any:
    """JSON of which one or two parts are others, or gone."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from([place for place in places(content) if place]))
        holder = content
        for key in way:
            holder = holder[key]
        if draw(st.integers(0, 3)):
            holder[last] = draw(JUNK)
        else:
            del holder[last]
        if not places(content)[1:]:
            break
    return content


@st.composite
def safetensors(draw) -> bytes:
    if draw(st.booleans()):
        return draw(spoiled(SAFE))
    header = json.dumps(draw(altered(HEADER))).encode()
    return len(header).to_bytes(8, "little") + header + SAFE[8 + LENGTH :]


@fuzz(500)
@given(payload=safetensors())
def test_weights(payload, folder):
    TRIED["safetensors"] += 1
    path = folder / "w.safetensors"
    path.write_bytes(payload)
    answered(load_weights, path, MODEL, SHAPE)


@fuzz(50)
@given(update=safetensors(), weights=st.booleans())
def test_updates(update, weights, folder):
    TRIED["safetensors"] += 1
    path, sound = folder / "u.safetensors", folder / "sound.safetensors"
    path.write_bytes(update)
    sound.write_bytes(SAFE)
    pair = (path, sound) if weights else (sound, path)
    answered(jaxleak.load_update, *pair, "mlp", image_shape=SHAPE)


@st.composite
def arrays(draw) -> np.ndarray:
    kind = draw(st.sampled_from(["u1", "f4", "f8", "i8", "b1", "c8", "U3", "S3", "f2", "V4", "M8[s]"]))
    shape = draw(st.lists(st.integers(0, 4), max_size=5))
    raw = draw(st.binary(min_size=0, max_size=8)) or b"\0"
    count = int(np.prod(shape, dtype=int)) * np.dtype(kind).itemsize
    return np.frombuffer((raw * (count // len(raw) + 1))[:count], kind).reshape(shape)


def npz_of(**parts: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **parts)
    return file.getvalue()


SOUND = npz_of(images=np.zeros((3, 4, 4, 1), np.uint8), labels=np.arange(3), class_names=np.array(["a", "b", "c"]))


@st.composite
def archives(draw) -> bytes:
    if draw(st.booleans()):
        return draw(spoiled(SOUND))
    parts = {"images": np.zeros((3, 4, 4, 1), np.uint8), "labels": np.arange(3)}
    for name in draw(st.lists(st.sampled_from(["images", "labels", "pixels", "class_names", "x/../y"]), min_size=1)):
        parts[name] = draw(arrays())
    return npz_of(**parts)


@fuzz(900)
@given(payload=archives())
def test_data_sets(payload, folder):
    TRIED["npz"] += 1
    path = folder / "d.npz"
    path.write_bytes(payload)
    data = answered(jaxleak.load_dataset, path)
    if isinstance(data, jaxleak.Dataset):
        pixels, labels = data.images(data.index[:2].tolist())
        assert np.isfinite(pixels).all()
        assert ((labels >= 0) & (labels < data.num_classes)).all()


# --- settings ---


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    jaxleak.run_sweep(sweep_of(data, attacks=(QUICKEST,), seeds=1, images=(4,)), path, quiet=True)
    return path


@pytest.fixture(scope="module")
def empty(run, tmp_path_factory) -> Path:
    """The same without rows."""
    path = tmp_path_factory.mktemp("empty") / "run"
    shutil.copytree(run, path)
    for file in [*path.glob("rows-*"), *path.glob("arrays-*")]:
        file.unlink()
    return path


def everything(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


@st.composite
def commands(draw) -> str:
    """Pages and figures take long, and are asked for less often."""
    return draw(st.sampled_from(["table"] * 38 + ["report", "plot"]))


@fuzz(220)
@given(command=commands(), rehashed=st.booleans(), which=st.booleans(), choice=st.data())
def test_run_json(command, rehashed, which, choice, run, empty):
    TRIED["run.json"] += 1
    path = run if which else empty
    sound = (path / "run.json").read_text()
    content = choice.draw(altered(json.loads(sound)))
    try:
        if rehashed and isinstance(content.get("settings"), dict):
            content["settings_hash"] = settings_hash(content["settings"])
        (path / "run.json").write_text(json.dumps(content))
        before = everything(path.parent)
        check(call(command, path))
        new = everything(path.parent) - before
        assert all(name.startswith(("run/figures", "run/report.html")) for name in new)
    finally:
        (path / "run.json").write_text(sound)


@fuzz(60)
@given(command=commands(), choice=st.data())
def test_summary_json(command, choice, run):
    TRIED["summary.json"] += 1
    sound = (run / "summary.json").read_text()
    try:
        (run / "summary.json").write_text(json.dumps(choice.draw(altered(json.loads(sound)))))
        check(call(command, run))
    finally:
        (run / "summary.json").write_text(sound)


@fuzz(60)
@given(command=st.sampled_from(["table"] * 6 + ["report", "plot"]), payload=st.data())
def test_truth_npz(command, payload, run):
    TRIED["npz"] += 1
    sound = (run / "truth.npz").read_bytes()
    try:
        if payload.draw(st.booleans()):
            content = payload.draw(spoiled(sound))
        else:
            parts = Run.open(run).truth()
            parts[payload.draw(st.sampled_from([*parts]))] = payload.draw(arrays())
            content = npz_of(**parts)
        (run / "truth.npz").write_bytes(content)
        check(call(command, run))
    finally:
        (run / "truth.npz").write_bytes(sound)


@fuzz(60)
@given(payload=st.data())
def test_parts(payload, run):
    TRIED["parts"] += 1
    file = run / payload.draw(st.sampled_from(["rows-00000.parquet", "arrays-00000.npz"]))
    sound = file.read_bytes()
    try:
        file.write_bytes(payload.draw(spoiled(sound)))
        check(call("table", run))
    finally:
        file.write_bytes(sound)


# --- flags ---

VALUES = st.one_of(
    st.sampled_from(
        [
            *("", "0", "1", "-1", "2", "3.5", "nan", "inf", "-inf", "1e400", "99999999999999999999", "0x10", "1_0"),
            *(
                "auto",
                "none",
                "true",
                "False",
                "dlg",
                "idlg:torch-lbfgs",
                "dlg:",
                ":",
                "photos",
                "mlp",
                "resnet18",
                "l2",
            ),
            *(
                "cosine",
                "conv1",
                "*",
                "conv1:2",
                "conv1:nan",
                "gaussian:1",
                "gaussian:",
                "prune:2",
                "clip:0",
                "dp-sgd:1:1",
            ),
            *("width=1", "width=", "=1", "train=maybe", "pattern-0", "pattern-99", "0/1", "1/1", "0/0", "/", "a/b"),
            *(
                "/dev/null",
                "/",
                "s3://",
                "~",
                "known",
                "joint",
                "shared",
                "per-image",
                "sgd",
                "imagenet",
                "\udcff",
                "é",
            ),
        ]
    ),
    st.integers(-(2**65), 2**65).map(str),
    st.floats().map(repr),
    st.text(max_size=6).filter(lambda text: "\0" not in text and not text.startswith("-")),
)


def flags_of(kind: type) -> list[str]:
    return [flag.name for flag in fields(kind) if flag.name not in ("runs", "out")]


@st.composite
def lines(draw) -> list[str]:
    name = draw(st.sampled_from(sorted(name for name, (kind, _) in cli.COMMANDS.items() if flags_of(kind))))
    kind = cli.COMMANDS[name][0]
    words = []
    for flag in draw(st.lists(st.sampled_from(flags_of(kind)), min_size=1, max_size=4, unique=True)):
        default = next(one for one in fields(kind) if one.name == flag).default
        written = f"--no-{flag}" if default is True else f"--{flag}"
        words.append(written.replace("_", "-") if draw(st.integers(0, 30)) else written[:-1])
        if not isinstance(default, bool):
            many = get_origin(next(one for one in fields(kind) if one.name == flag).type) is tuple
            words += draw(
                st.lists(VALUES, min_size=0 if draw(st.integers(0, 9)) == 0 else 1, max_size=3 if many else 1)
            )
    return [name, *words]


@fuzz(200)
@given(words=lines())
def test_flags(words, folder, monkeypatch):
    """What is right would run: there it ends."""
    TRIED["flags"] += 1

    def never(*_: object, **__: object) -> None:
        raise InputError("nothing is run here.")

    for place in ("jaxleak.runs.run.run_sweep", "jaxleak.runs.audit.audit.audit", "jaxleak.bench.command.run_bench"):
        monkeypatch.setattr(place, never)
    for place in (
        "jaxleak.runs.audit.risk.risk",
        "jaxleak.runs.infer.infer.infer",
        "jaxleak.runs.infer.own_words.infer_own_words",
        "jaxleak.bench.models.measure_models",
        "jaxleak.bench.doctor.examine",
    ):
        monkeypatch.setattr(place, never)
    monkeypatch.setattr("jaxleak.threat.from_dataset.train_network", never)
    here = folder / "here"
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    name, *rest = words
    if name in ("run", "attack", "risk", "infer"):
        rest += ["--out", str(folder / "out")]
    if name in ("table", "plot", "report"):
        rest = [str(folder / "no-run"), *rest]
    began = time.monotonic()
    check(call(name, *rest))
    assert time.monotonic() - began < SECONDS
    assert not list(here.iterdir())
