"""`jaxleak doctor` and `jaxleak --version`: what they say of this installation, and of others."""

import json

import pytest

from jaxleak.bench import doctor
from jaxleak.bench.models import Measured
from jaxleak.kernels.llvm import available
from jaxleak.results.store.environment import VERSIONS, version_of
from tests.commands import call, refusal


@pytest.fixture
def no_probe(monkeypatch):
    """Speeds as if they were measured: `test_models_list.py` measures."""
    lines = [Measured(name, 10, (32, 32, 3), 3.0, 100.0 * (1 + place), 8.0) for place, name in enumerate(doctor.PROBED)]
    asked = []

    def measured(names, *, seconds):
        asked.append((names, seconds))
        yield from lines

    monkeypatch.setattr(doctor, "measure_models", measured)
    return asked


def findings(**settings) -> dict[str, list[doctor.Finding]]:
    told: dict[str, list[doctor.Finding]] = {}
    for finding in doctor.examine(**settings):
        told.setdefault(finding.what, []).append(finding)
    return told


def test_what_is_looked_at(no_probe):
    told = findings(seconds=4)
    assert no_probe == [(doctor.PROBED, 2.0)]
    assert version_of("jax") in told["jaxleak"][0].found
    assert told["devices"][0].found.startswith("2 x cpu (")
    assert told["kernels"][0] == ("kernels", "jaxleak's own", "")
    assert told["precision"][0].mend == ""
    assert "100.0 evaluations/s" in told["lenet"][0].found
    assert "200.0 evaluations/s" in told["resnet18"][0].found
    assert {"data", "torch", "ray", "s3fs"} <= set(told)


def test_nothing_is_measured_in_no_time(no_probe):
    assert "lenet" not in findings(seconds=0)
    assert no_probe == []


def test_what_keeps_kernels_away_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "problem", lambda: "llvmlite does not work here.")
    assert "llvmlite does not work here. Try: pip install" in findings(seconds=0)["kernels"][0].mend
    monkeypatch.setenv("JAXLEAK_NATIVE", "0")
    assert "JAXLEAK_NATIVE=0" in findings(seconds=0)["kernels"][0].mend
    assert available.problem() is None


def test_narrow_products_are_seen(monkeypatch):
    monkeypatch.setattr(
        doctor, "full_precision", lambda: lambda product: lambda a, b: product(a.astype("float16"), b.astype("float16"))
    )
    (finding,) = findings(seconds=0)["precision"]
    assert "narrower than float32" in finding.mend


def test_data_sets_and_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLEAK_DATA_DIR", str(tmp_path))
    embedded, missing = findings(seconds=0)["data"]
    assert embedded.found == "photos and text: embedded"
    assert missing.found == "cifar100, mnist, lfw: not prepared"
    assert str(tmp_path) in missing.mend
    monkeypatch.setenv("JAXLEAK_DATA_DIR", str(tmp_path / "nowhere"))
    assert "is not a directory" in findings(seconds=0)["data"][1].mend


def test_parts_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    told = findings(seconds=0)
    assert told["ray"][0] == (
        "ray",
        "not installed",
        "only needed for runs on a Ray cluster: pip install 'jaxleak[ray]'",
    )


def test_the_commands(no_probe):
    said = call("doctor", "--seconds", "1")
    assert said.code == 0
    assert said.out.splitlines()[0].startswith("jaxleak    ")
    assert "lenet      100.0 evaluations/s" in said.out
    version = call("--version")
    assert version.code == 0
    assert version.out.splitlines()[0] == f"jaxleak {version_of('jaxleak')}"
    assert all(name in version.out for name in VERSIONS)
    assert "`seconds` must be" in refusal("doctor", "--seconds", "-1")
    assert json.dumps(said.err).count("Traceback") == 0
