"""Where a run's files go, what is told of it to others, and which versions of the code its rows are of."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import jaxleak
from jaxleak import IDLG, LBFGS, InputError
from jaxleak.results.store import versions
from tests.commands import call, refusal
from tests.processes import PROJECT
from tests.sweeps import QUICKEST, sweep_of


@pytest.fixture(scope="module")
def done(data, tmp_path_factory) -> Path:
    """A run with its figures and its page."""
    path = tmp_path_factory.mktemp("done") / "run"
    result = jaxleak.run_sweep(sweep_of(data, attacks=(QUICKEST,)), path, quiet=True)
    result.plot()
    result.report()
    return path


@pytest.fixture
def run(done, tmp_path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- links that lead out of a run ---

LINKS = ("figures", "figures/recovery.png", "figures/mse_shares.png", "report.html")


@pytest.fixture
def outside(tmp_path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("kept.txt", "recovery.png", "mse_shares.png", "report.html"):
        (folder / name).write_text("mine")
    return folder


def lead_out(run: Path, name: str, outside: Path) -> None:
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(outside if name == "figures" else outside / Path(name).name)


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_drawn_outside_a_run(name, run, outside):
    lead_out(run, name, outside)
    before = everything(outside)
    said = refusal("report" if name == "report.html" else "plot", run)
    assert f"{run / name} is a symbolic link, which leads out of the run." in said
    assert everything(outside) == before


@pytest.mark.parametrize(
    "name",
    [
        *("run.json", "truth.npz", "summary.json", ".lock", "rows-00001.parquet", "arrays-00007.npz", "figures"),
        *("trained-0.safetensors", "best.npz", "report.json", "report.html", ".lock-0of2", "figures"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_written_outside_a_run(name, there, run, data, outside):
    """Whether what the link names is there or not."""
    lead_out(run, name, outside)
    if there:
        (outside / name).write_bytes(b"mine")
    before = everything(outside)
    with pytest.raises(InputError, match="is a symbolic link, which leads out of the run"):
        jaxleak.run_sweep(sweep_of(data, attacks=(QUICKEST,), seeds=2), run, quiet=True)
    assert everything(outside) == before


def test_a_link_to_a_run_is_the_users(data, run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    jaxleak.run_sweep(sweep_of(data, attacks=(QUICKEST,)), tmp_path / "link", quiet=True)
    assert call("plot", tmp_path / "link").code == 0


def test_links_may_be_read(run, tmp_path):
    """As in a data set that git-annex keeps."""
    for file in run.glob("rows-*"):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    assert call("table", run).code == 0


# --- names and words ---


@pytest.mark.parametrize("name", ["a" * 300 + ".html", "é" * 150, "deep/" * 900 + "page.html"])
def test_a_page_whose_name_is_too_long(name, run):
    assert "cannot be reached (File name too long)" in refusal("report", run, "--out", run / name)


def test_a_page_whose_name_is_as_long_as_may_be(run, tmp_path):
    assert call("report", run, "--out", tmp_path / ("a" * 250 + ".html")).code == 0


@pytest.mark.parametrize("command", ["table", "plot", "report"])
def test_letters_that_cannot_be_written_are_replaced(command, run, monkeypatch):
    """PYTHONIOENCODING=ascii, or LC_ALL=C where Python does not make UTF-8 of it."""
    other = run.rename(run.with_name("übung-\udcff"))
    outs = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", outs[0])
    monkeypatch.setattr(sys, "stderr", outs[1])
    with pytest.raises(SystemExit) as ended:
        jaxleak.cli.main([command, str(other)])
    assert ended.value.code == 0
    said = outs[0].buffer.getvalue()
    assert (b"idlg" if command == "table" else b"?bung-?") in said


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_whole_run_in_ascii(settings, tmp_path):
    words = [
        "run",
        "--attack",
        "idlg",
        "--dataset",
        "photos",
        "--images",
        "6",
        "--seeds",
        "1",
        "--iterations",
        "2",
        "--image-size",
        "16",
        "--out",
    ]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONCOERCECLOCALE": "0", **settings}
    done = subprocess.run(
        [sys.executable, "-m", "jaxleak", *words, str(tmp_path / "größe")],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "größe" / "report.html").exists()


# --- what a run tells of this machine ---


@pytest.mark.parametrize("form", ["{}", "--out={}"])
def test_the_command_is_stored_without_the_machines_paths(form, data, tmp_path, monkeypatch):
    out, other = tmp_path / "run", tmp_path / "pictures" / "own.npz"
    words = ["/usr/local/bin/jaxleak", "run", "--dataset", str(other), "--weights", "/home/somebody/w.safetensors"]
    words += [form.format(out)] if "=" in form else ["--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    result = jaxleak.run_sweep(sweep_of(data, attacks=(QUICKEST,), seeds=1), out, quiet=True)
    given = "--out=run" if "=" in form else "--out run"
    wanted = f"jaxleak run --dataset pictures/own.npz --weights w.safetensors {given}"
    assert result.run.environment["command"] == wanted
    page = result.report().read_text()
    assert wanted in page
    assert f">{out}<" not in page


# --- memory ---


def test_what_fits_no_memory_is_refused_before_anything_is_written(data, tmp_path):
    attack = replace(IDLG, solver=LBFGS(history=100_000_000), iterations=10_000_000)
    with pytest.raises(InputError, match="Use a smaller history, model or image"):
        jaxleak.attack(sweep_of(data).victim, [QUICKEST, replace(attack, name="big")], seeds=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- versions ---


def other_version(run: Path, **changes) -> None:
    content = json.loads((run / "run.json").read_text())
    content["environment"] |= changes
    (run / "run.json").write_text(json.dumps(content))


def test_other_code_of_a_solver_is_refused_unless_told(data, run):
    sweep = sweep_of(data, attacks=(QUICKEST,))
    solvers = json.loads((run / "run.json").read_text())["environment"]["solvers"]
    assert set(solvers) == {"adam"}
    assert re.fullmatch("[0-9a-f]{12}", solvers["adam"])
    other_version(run, solvers={"adam": "0" * 12}, jaxleak_version="0.0.1", git_revision="f" * 40, git_dirty=False)
    max(run.glob("rows-*")).unlink()
    with pytest.raises(InputError) as caught:
        jaxleak.run_sweep(sweep, run, quiet=True)
    said = str(caught.value)
    assert "another version of the solver adam: it is of jaxleak 0.0.1 (fffffff), this" in said
    assert "--mix-versions" in said
    assert jaxleak.run_sweep(sweep, run, quiet=True, mix_versions=True).summary["complete"]


def test_a_run_that_knows_no_versions_continues(data, run):
    other_version(run, solvers={})
    assert jaxleak.run_sweep(sweep_of(data, attacks=(QUICKEST,)), run, quiet=True).summary["complete"]


def test_rows_of_several_versions_are_told_apart(data, tmp_path, monkeypatch, capsys):
    sweep, small = sweep_of(data, attacks=(QUICKEST,)), tmp_path / "run"
    module = "jaxleak.results.store.environment"
    monkeypatch.setattr(f"{module}.git_state", lambda path: ("a" * 40, False))
    monkeypatch.setattr(f"{module}.version_of", lambda name: "0.1.0")
    jaxleak.run_sweep(sweep, small, quiet=True, shard="0/2")
    monkeypatch.setattr(f"{module}.version_of", lambda name: "0.2.0")
    monkeypatch.setattr(f"{module}.git_state", lambda path: ("b" * 40, True))
    result = jaxleak.run_sweep(sweep, small)
    versions = "jaxleak 0.1.0 (aaaaaaa): 3, jaxleak 0.2.0 (bbbbbbb, changed): "
    assert f"with those to come the rows are of several versions: {versions}1." in capsys.readouterr().err
    assert f"the rows are of several versions: {versions}3." in result.summary["warnings"]
    assert f"warning: the rows are of several versions: {versions}3." in call("table", small).out
    assert f"{versions}3." in result.report().read_text()


def test_a_solvers_version_is_that_of_its_code(tmp_path, monkeypatch):
    """Comments, docstrings and what errors say change nothing; numbers do, also in what a solver imports."""
    shutil.copytree(Path(versions.PACKAGE) / "solvers", tmp_path / "solvers")
    shutil.copytree(Path(versions.PACKAGE) / "kernels", tmp_path / "kernels")
    monkeypatch.setattr(versions, "PACKAGE", tmp_path)

    def version() -> str:
        versions._digest.cache_clear()
        return versions.solver_versions({"lbfgs": "jaxleak.solvers.lbfgs"})["lbfgs"]

    first = version()
    path = tmp_path / "solvers" / "lbfgs.py"
    source = path.read_text()
    path.write_text(ast.unparse(ast.parse(source)) + "\n# a comment\n")
    assert version() == first
    path.write_text(source + "\nMORE = 1\n")
    assert version() != first
    path.write_text(source)
    (tmp_path / "solvers" / "first_order.py").write_text("")  # not imported by this one
    assert version() == first
    compact = tmp_path / "solvers" / "compact.py"
    compact.write_text(compact.read_text() + "\nMORE = 1\n")
    assert version() != first
    versions._digest.cache_clear()


def test_another_format_is_refused(run):
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"format": 99}))
    assert "was written in store format 99; this jaxleak reads" in refusal("table", run)


# --- sockets ---

LISTENING = """
import sys
import psutil
from jaxleak import Ray, run_sweep
from jaxleak.runs.ray import driver
from tests.faults.test_places import sweep_for_ray

work = driver._Driver.work
def look(self):
    work(self)
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN or one.type.name == "SOCK_DGRAM":
                print("listens", process.name(), one.laddr.ip, one.laddr.port)
driver._Driver.work = look
run_sweep(sweep_for_ray(sys.argv[1]), sys.argv[2], quiet=True, on=Ray(workers=1))
print("done")
"""


def sweep_for_ray(folder: str):
    from jaxleak import load_dataset, make_victim
    from tests.processes import small_pictures

    victim = make_victim("lenet", load_dataset(small_pictures(Path(folder))), [3])
    return jaxleak.Sweep(victim=victim, attacks=(QUICKEST,), seeds=1, snapshots=())


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_cluster_of_this_machine_listens_on_the_loopback_only(tmp_path):
    pytest.importorskip("ray")
    pytest.importorskip("psutil")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", LISTENING, str(tmp_path), str(tmp_path / "run")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("listens")]
    assert len(lines) >= 4
    assert {line[2] for line in lines} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, lines
