"""The page of one or several runs: what is collected, chosen and said. A browser opens it in test_page_browser.py."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxleak
from jaxleak.data import load_dataset
from jaxleak.results.page import choose, collect, curves, page, payload, pictures, sections, words, write_page
from jaxleak.results.store.environment import environment
from jaxleak.results.store.run import Run
from jaxleak.results.verdict import Criteria
from jaxleak.runs.run import run_sweep
from jaxleak.runs.session import Session
from jaxleak.runs.sweep import Sweep
from jaxleak.threat.from_dataset import make_victim
from tests.commands import call, refusal, restored_globals

CLASSES = ("</script><script>document.title = 'bad'</script>", '<img src=x onerror="document.title=1">', '=1, "2"')


@pytest.fixture(autouse=True)
def restore_globals():
    with restored_globals():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five grey pictures of 8 by 8 pixels in classes and a file with markup in their names."""
    path = tmp_path_factory.mktemp("pictures") / "<b onclick=alert(1)>&amp;'.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(5) % 3, class_names=np.array(CLASSES))
    return load_dataset(str(path))


QUICK = replace(jaxleak.IDLG, solver=jaxleak.TorchLBFGS(history=20), iterations=10)
ATTACKS = (QUICK, replace(QUICK, name="dlg", label="joint"))
CRITERIA = Criteria(objective=0.01, relative_error=0.5)


def sweep_of(data, images=(3, 1), seeds=4, attacks=ATTACKS, **settings):
    own = {name: settings.pop(name) for name in ("batch",) if name in settings}
    victim = make_victim("lenet", data, list(images), **own)
    return Sweep(victim=victim, attacks=attacks, seeds=seeds, criteria=CRITERIA, **{"snapshots": (0, 2, 5), **settings})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "<i>run<i>"
    run_sweep(sweep_of(data), out, lanes=2, quiet=True)
    return out


@pytest.fixture(scope="module")
def batch_run(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("batches") / "batch"
    run_sweep(sweep_of(data, images=(0, 1, 2, 4), seeds=2, attacks=(QUICK,), batch=2), out, lanes=2, quiet=True)
    return out


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def html_of(*runs: Path, trials: int = 2) -> str:
    return page.page(collect.read_runs(runs), trials)


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1])


def frames_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


# --- what is collected ---


def test_runs_are_named_by_the_ends_of_their_paths():
    assert collect._names(["a/b", "a/c"]) == ["b", "c"]
    assert collect._names(["x/a/b/", "x/c/b"]) == ["a/b", "c/b"]
    assert collect._names(["a"]) == ["a"]


def test_series_are_told_apart(run, batch_run):
    series, facets = collect.find_series(collect.read_runs([run, batch_run]))
    assert facets == ["attack", "label", "batch"] or facets == ["attack", "batch"]
    assert [one.label for one in series] == ["idlg · 1", "dlg · 1", "idlg · 2"]
    assert len({one.label for one in series}) == 3


def test_the_same_settings_are_told_apart_by_the_run(run, copied):
    series, facets = collect.find_series(collect.read_runs([run, copied]))
    assert "run" in facets
    assert [one.label for one in series] == [f"{a} · {r}" for r in ("<i>run<i>", "copy") for a in ("idlg", "dlg")]


# --- what is shown ---


def test_every_row_and_the_trials_with_pictures(run):
    told = data_of(html_of(run))
    (one,) = told["runs"]
    assert one["rows"] == 16
    rows = sorted(Run.open(run).rows(), key=lambda row: row["trial"])
    columns = {name: values["all"] if isinstance(values, dict) else values for name, values in one["columns"].items()}
    for name in ("trial", "objective", "status", "threshold_iterations", "dataset"):
        wanted = [row[name] for row in rows]
        assert (columns[name] if isinstance(columns[name], list) else [columns[name]] * 16) == wanted
    assert set(told["curves"]) == {str(i) for i in range(16)}
    assert {str(i) for ranks in told["ranks"].values() for i in ranks.values()} <= set(told["pictures"])
    for ranks in told["ranks"].values():
        objectives = [rows[ranks[rank]]["objective"] for rank in ("best", "median", "worst")]
        assert objectives == sorted(objectives)


def test_more_trials_have_more_pictures(run):
    def count(trials):
        return sum("src" in one for one in data_of(html_of(run, trials=trials))["pictures"].values())

    assert 4 <= count(0) <= count(1) < count(4) == 16


def test_a_sprite_holds_the_snapshots_and_the_last_candidate(run):
    told = data_of(html_of(run))
    stored, rows = Run.open(run), {row["trial"]: row for row in Run.open(run).rows()}
    for place, one in told["pictures"].items():
        trial = sorted(rows)[int(place)]
        arrays = stored.arrays(["snapshots", "candidate"], [trial])
        before = [i for i, t in enumerate((0, 2, 5)) if t < rows[trial]["iterations"]]
        assert one["at"] == [*((0, 2, 5)[i] for i in before), rows[trial]["iterations"]]
        if "src" in one:
            last = np.round(np.clip(np.nan_to_num(arrays["candidate"][0, ..., 0]), 0, 1) * 255)
            wanted = [*(arrays["snapshots"][0, i, ..., 0] for i in before), last]
            np.testing.assert_array_equal(frames_of(one["src"]), np.hstack(wanted))
        for name in ("psnr", "ssim"):
            assert float(one[name][-1]) == pytest.approx(rows[trial][name], abs=1e-3, nan_ok=True)
            assert len(one[name]) == len(one["at"])


def test_truths_are_there_once(run, copied):
    told = data_of(html_of(run, copied))
    assert [one["label"] for one in told["images"]] == ["image 3", "image 1"]
    pixels = Run.open(run).truth()["pixels"]
    np.testing.assert_array_equal(frames_of(told["images"][0]["truth"]), np.round(pixels[0, ..., 0] * 255))
    assert [one["name"] for one in told["images"]] == [CLASSES[0], CLASSES[1]]


def test_limits_are_kept_and_told(run, copied, monkeypatch):
    monkeypatch.setattr(choose, "MOST_ROWS", 10)
    monkeypatch.setattr(choose, "MOST_CURVES", 6)
    monkeypatch.setattr(choose, "MOST_PICTURE_BYTES", 8 * 8 * 4 * 3)
    monkeypatch.setattr(payload, "MOST_SIMILAR", 10)
    html = html_of(run, copied)
    told = data_of(html)
    assert [one["rows"] for one in told["runs"]] == [5, 5]
    assert len(told["curves"]) == 6
    frames = sum(len(one["at"]) for one in told["pictures"].values() if "src" in one)
    assert 0 < frames * 8 * 8 <= choose.MOST_PICTURE_BYTES
    for text in ("hold 10 of 32 trials", "those of 6 of 10 trials", "left out, to keep the page small", "SSIM over"):
        assert text in html


def test_snapshots_of_some_seeds_only(data, tmp_path):
    out = tmp_path / "run"
    result = run_sweep(sweep_of(data, snapshot_seeds=1, attacks=(QUICK,)), out, lanes=2, quiet=True)
    seeds = {row["trial"]: row["seed"] for row in result.rows}
    arrays = result.run.arrays(["trial", "snapshots"])
    assert {t for t, s in zip(arrays["trial"], arrays["snapshots"], strict=True) if s.any()} == {
        trial for trial, seed in seeds.items() if seed == 0
    }
    html = html_of(out, trials=4)
    for place, one in data_of(html)["pictures"].items():
        assert (len(one["at"]) > 1) == (seeds[int(place)] == 0)
    assert "--snapshot-seeds" in html
    assert result.plot(tmp_path / "figures")


def test_the_settings_of_older_runs_are_those_of_today(data):
    assert "snapshot_seeds" not in sweep_of(data).settings()
    assert sweep_of(data, snapshot_seeds=2).settings()["snapshot_seeds"] == 2


# --- curves and pictures ---


def test_curves_within_their_precision():
    trace = np.array([3.0, 1e-2, np.nan, 0.0, 1e-12, np.nan])
    steps = np.frombuffer(base64.b64decode(curves.encoded(trace, 5)), "<i2")
    assert steps.tolist() == [477, -2000, -2000, curves.ZERO, -12000, -12000]
    assert np.frombuffer(base64.b64decode(curves.encoded(trace[2:3], 0)), "<i2").tolist() == [curves.NOTHING]
    values = np.geomspace(1e-9, 1e9, 301)
    steps = np.frombuffer(base64.b64decode(curves.encoded(values, 300)), "<i2")
    assert len(steps) == curves.POINTS
    np.testing.assert_allclose(10 ** (steps / curves.DIGITS), values[curves.places(300)], rtol=1.2e-3)


def test_places_begin_and_end_with_the_trial():
    assert curves.places(0).tolist() == [0]
    assert curves.places(3).tolist() == [0, 1, 2, 3]
    assert (curves.places(4800)[0], curves.places(4800)[-1]) == (0, 4800)


@pytest.mark.parametrize(("shape", "mode", "size"), [((4, 6, 1), "L", (12, 4)), ((4, 6, 3), "RGB", (12, 4))])
def test_sprites(shape, mode, size):
    frames = np.stack([np.full(shape, np.nan), np.full(shape, 7.0)])
    uri = pictures.sprite(frames)
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert (image.mode, image.size) == (mode, size)
    assert (np.asarray(image)[:, :6] == 0).all()
    assert (np.asarray(image)[:, 6:] == 255).all()


def test_large_pictures_are_made_smaller():
    assert frames_of(pictures.sprite(np.zeros((1, 400, 200, 3)))).shape == (pictures.MOST_SIDE, 96, 3)


# --- words and tables ---


def test_the_threat_model_in_words(run, batch_run):
    told = dict(words.threat_model(Run.open(run).settings))
    assert "lenet (3 classes; a fresh network for every trial, not trained) on 2 images" in told["Attacked"]
    assert told["The client sends"] == "the gradient of the cross-entropy on one image; no defence"
    assert "read from the update (idlg) by idlg; optimised beside the images by dlg" in told["The attacker knows"]
    assert told["Solved means"].startswith("an objective below 0.01, and a relative image error below 0.5")
    assert "a batch of 2 images" in words.shared(Run.open(batch_run).settings)
    settings = json.loads(json.dumps(Run.open(run).settings))
    settings["victim"] |= {"client": {"steps": 5, "optimizer": "sgd", "lr": 0.1, "clients": 2}, "defences": "prune:0.5"}
    settings["victim"] |= {"trained_steps": 7}
    assert words.shared(settings) == (
        "how far the weights moved in 5 local steps of sgd (rate 0.1) on one image, averaged over 2 clients; "
        "defended by prune:0.5"
    )
    assert "trained for 7 steps on the data set" in words.attacked(settings)


FIELDS = {"activation": "relu"}
THREATS = {
    "fields of the model": ({"fields": FIELDS}, "activation=jax._src.nn.functions.relu"),
    "local steps behind a defence": (
        {"client": jaxleak.Client(steps=2), "defences": (jaxleak.parse_defence("gaussian:0.001"),)},
        "2 local steps of sgd (rate 0.01) on one image; defended by gaussian:0.001",
    ),
    "clients with batches": (
        {"batch": 2, "client": jaxleak.Client(clients=2)},
        "a batch of 2 images, averaged over 2 clients",
    ),
}


@pytest.mark.parametrize(("threat", "said"), THREATS.values(), ids=THREATS)
def test_every_threat_model_has_a_page(data, threat, said, tmp_path):
    victim = make_victim("lenet", data, [3, 1], **threat)
    sweep = Sweep(victim=victim, attacks=(replace(QUICK, label="known"),), seeds=1, snapshots=(0,), criteria=CRITERIA)
    result = run_sweep(sweep, tmp_path / "run", lanes=2, quiet=True)
    assert said in html_of(result.run.path).replace("&gt;", ">")


def test_running_statistics_in_words(run):
    settings = Run.open(run).settings
    for knows, said in (
        (True, ", BatchNorm's running statistics."),
        (False, ", but not BatchNorm's running statistics."),
    ):
        victim = {**settings["victim"], "knows_statistics": knows}
        assert said in words.known({**settings, "victim": victim})


def test_lost_trials_are_failures(data, tmp_path):
    """As after workers of a cluster died over them: no picture, no number."""
    sweep = sweep_of(data, images=(3,), seeds=2, attacks=(QUICK,))
    with Run.create_or_resume(tmp_path / "run", sweep.settings(), environment()) as stored:
        session = Session(sweep, stored, quiet=True)
        session.lose(QUICK, [0, 1], "ActorDiedError: killed")
        session.flush()
    html = html_of(tmp_path / "run")
    assert "2 of 2 trials were lost, and count as failed" in html
    assert "Lost: the trial&#39;s workers failed too often to finish it." in html
    assert "Stalled:" not in html
    assert "0/2" in html


def test_the_tables_say_what_the_rows_say(run):
    sources = collect.read_runs([run])
    series, facets = collect.find_series(sources)
    table = sections.rates(sources, series, facets)
    at = [text for text, _ in table.headings].index("solved")
    rows = Run.open(run).rows()
    for one, line in zip(series, table.rows, strict=True):
        own = [row for row in rows if row["attack"] == one.attack]
        assert line[at].text == f"{sum(row['success'] for row in own)}/{len(own)}"
        low, high = jaxleak.wilson(sum(row["success"] for row in own), len(own))
        assert line[at + 1].text.endswith(f"[{low:.2f}, {high:.2f}]")
    assert all(len(line) == len(table.headings) for line in table.rows)


def test_batches_image_by_image(batch_run):
    html = html_of(batch_run)
    assert "Batches, image by image" in html
    sources = collect.read_runs([batch_run])
    series, _ = collect.find_series(sources)
    table = sections.slots(sources, series, choose.choose(sources, series, 0))
    assert [[cell.text for cell in line[:3]] for line in table.rows] == [
        [image, "idlg", place] for image in ("0", "2") for place in ("0", "1")
    ]
    assert [line[4].text for line in table.rows] == [f"{label} {CLASSES[label]}" for label in (0, 1, 2, 1)]


# --- markup ---


def test_text_from_data_is_text(run):
    html = html_of(run)
    for name in (*CLASSES[:2], "<i>run<i>", "<b onclick"):
        assert name not in html
    assert html.count("<script") == html.lower().count("</script") == 3
    assert data_of(html)["runs"][0]["name"] == "<i>run<i>"
    assert "&lt;i&gt;run&lt;i&gt;" in html


def test_embedded_json_cannot_end_its_element():
    text = page.embedded({"</script>": "<!-- & \u2028\u2029"})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"</script>": "<!-- & \u2028\u2029"}


def test_the_policy_forbids_every_request_and_foreign_script(run):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html_of(run))[1].replace("&#39;", "'")
    parts = dict(part.split(" ", 1) for part in policy.split("; "))
    assert parts["default-src"] == "'none'"
    assert parts["img-src"] == "data: blob:"
    assert len(re.findall(r"'sha256-[^']*'", parts["script-src"])) == 2
    assert "unsafe" not in parts["script-src"]


# --- damaged, empty, partial ---


def test_a_partial_run_says_so(copied):
    last = sorted(copied.glob("rows-*.parquet"))[-1]
    for file in (last, last.with_name(last.name.replace("rows-", "arrays-").replace(".parquet", ".npz"))):
        file.unlink()
    assert "of 16 trials" in (html := html_of(copied))
    assert "Where this may mislead" in html


def test_a_damaged_part_says_so(copied):
    part = sorted(copied.glob("arrays-*.npz"))[0]
    part.write_bytes(part.read_bytes()[:-9])
    html = html_of(copied)
    assert "damaged part skipped" in html


def test_an_empty_run_is_a_page(copied):
    for file in [*copied.glob("rows-*"), *copied.glob("arrays-*"), copied / "summary.json"]:
        file.unlink(missing_ok=True)
    html = html_of(copied)
    assert "no trial has finished yet, of 16" in html
    assert data_of(html)["curves"] == {}


def test_attacks_without_trials_are_not_named(copied, data, tmp_path):
    """A run that has not come to its second attack yet."""
    run, rows = Run.open(copied), Run.open(copied).rows()
    first = [place for place, row in enumerate(rows) if row["attack"] == "idlg"]
    with Run.create_or_resume(tmp_path / "begun", run.settings, run.environment) as begun:
        begun.write_truth(**{name: array for name, array in run.truth().items() if name != "class_names"})
        arrays = {name: array[first] for name, array in run.arrays().items()}
        begun.append([rows[place] for place in first], arrays)
    html = html_of(tmp_path / "begun")
    told = data_of(html)
    assert [one["label"] for one in told["series"]] == ["idlg"]
    shown = re.sub(r"<pre>.*?</pre>|<script.*?</script>", "", html, flags=re.DOTALL)
    assert "idlg" in shown
    assert not re.search(r"\bdlg\b", shown)


@pytest.mark.parametrize(
    ("value", "text"),
    [(180.44, "180"), (18.044, "18"), (1.8044, "1.8"), (0.0123, "0.012"), (1234.5, "1,234"), (3, "3")],
)
def test_numbers_read_as_numbers(value, text):
    assert sections.number(value, 3).text == text


def test_without_truth_and_summary(copied):
    (copied / "truth.npz").write_bytes(b"nothing")
    (copied / "summary.json").unlink()
    html = html_of(copied)
    assert "truth.npz) are missing or damaged" in html
    assert not any("truth" in image for image in data_of(html)["images"])
    assert data_of(html)["pictures"]


def test_images_that_nobody_knows(copied):
    truth = Run.open(copied).truth()
    np.savez(copied / "truth.npz", **{**truth, "pixels": truth["pixels"] * np.nan, "label": truth["label"] * 0 - 1})
    told = data_of(html_of(copied))
    assert not any("truth" in image or "name" in image for image in told["images"])
    assert {value for one in told["pictures"].values() for value in one["ssim"]} == {"NaN"}


def test_a_run_among_others_is_named_in_the_warnings(run, copied):
    (copied / "truth.npz").unlink()
    assert "<li>copy: the private images" in html_of(run, copied)


# --- the command ---


def test_the_command(run, tmp_path):
    said = call("report", run, "--out", tmp_path / "page.html", "--title", "<u>")
    assert said == (0, f"page: {tmp_path / 'page.html'}\n", "")
    assert "<title>&lt;u&gt;</title>" in (tmp_path / "page.html").read_text()


def test_by_default_into_the_first_run(copied):
    assert call("report", copied).out == f"page: {copied / 'report.html'}\n"
    assert (copied / "report.html").stat().st_size < 15_000_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "`runs` must name at least one run directory"),
        (("nowhere",), "run directory nowhere does not exist"),
        (("{run}", "nowhere"), "run directory nowhere does not exist"),
        (("{run}", "{run}"), "`runs` must be distinct"),
        (("{run}", "--out", "{tmp}"), "`out` must be a file"),
        (("{run}", "--out", "{tmp}/no/page.html"), "there is no directory"),
        (("{run}", "--trials", -1), "`trials` must be 0 or above; got -1"),
        (("{tmp}",), "is not a run directory (no run.json)"),
    ],
)
def test_refused_in_one_line(arguments, words, run, tmp_path):
    filled = [str(word).replace("{run}", str(run)).replace("{tmp}", str(tmp_path)) for word in arguments]
    assert words in refusal("report", *filled)


def test_a_damaged_description_is_one_line(copied):
    (copied / "run.json").write_text("{")
    assert "run.json is damaged" in refusal("report", copied)


def test_from_python(copied):
    result = jaxleak.Result(Run.open(copied), {})
    assert result.report() == copied / "report.html"
    assert write_page([copied], copied / "other.html") == copied / "other.html"
