"""What a run says it was made with, and how jax is told to use every core."""

import os
import subprocess
import sys
from importlib import metadata

import jax
import pytest

from jaxleak.engine import devices
from jaxleak.engine.devices import may_have_accelerator
from jaxleak.results.store import environment as environments
from jaxleak.results.store.environment import environment, version_of

START = """
import os, jax, jaxleak

jaxleak.use_all_cores(3)
print(len(jax.devices()), os.environ.get("PJRT_NPROC"))
"""


def run(script: str, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("PJRT_NPROC", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=kept | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize(("given", "left"), [({}, "None"), ({"PJRT_NPROC": "2"}, "2")])
def test_each_core_is_a_device_and_children_inherit_nothing(given, left):
    assert run(START, JAX_PLATFORMS="cpu", **given) == f"3 {left}"


def test_an_accelerator_may_be_there_where_a_plugin_is(monkeypatch, tmp_path):
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "cpu")
        assert not may_have_accelerator()
        jax.config.update("jax_platforms", "cuda,cpu")
        assert may_have_accelerator()
        jax.config.update("jax_platforms", "")
        monkeypatch.setattr(devices, "PLUGINS", "jax_plugins_of_nobody")
        assert not may_have_accelerator()
        (tmp_path / "jax_plugins_of_nobody").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        assert may_have_accelerator()
    finally:
        jax.config.update("jax_platforms", before)


def test_the_pool_keeps_its_threads_where_an_accelerator_may_be(monkeypatch):
    seen = []
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setattr(jax, "devices", lambda: seen.append(os.environ.get("PJRT_NPROC")))
    for accelerator, pool in ((True, None), (False, "1")):
        monkeypatch.setattr(devices, "may_have_accelerator", lambda accelerator=accelerator: accelerator)
        devices.use_all_cores(2)
        assert seen.pop() == pool
        assert "PJRT_NPROC" not in os.environ


def test_a_checkout_that_is_not_installed_has_an_environment(monkeypatch):
    def absent(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(environments, "version", absent)
    made = environment()
    assert made["jaxleak_version"] == "not installed"
    assert set(made["versions"].values()) == {"not installed"}
    assert made["jax_version"] == jax.__version__


def test_versions_are_those_installed():
    assert version_of("numpy") == metadata.version("numpy")
    assert version_of("a-package-of-nobody") == "not installed"
