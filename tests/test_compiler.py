"""Compiler options: what the installed jaxlib refuses is left out."""

import jax
import pytest

from jaxleak.engine import compiler
from jaxleak.engine.compiler import chunk_options, once_options, quick_options, takes


def test_an_option_that_jaxlib_does_not_know_is_refused():
    assert not takes("xla_cpu_option_of_another_age", True)
    with pytest.raises(Exception, match="xla_cpu_option_of_another_age"):
        jax.jit(lambda: 0, compiler_options={"xla_cpu_option_of_another_age": True}).lower().compile()


def test_an_option_that_jaxlib_knows_is_taken():
    assert takes("xla_backend_optimization_level", 1)
    assert once_options()["xla_backend_optimization_level"] == 1
    assert quick_options()["xla_backend_optimization_level"] == 0


@pytest.mark.parametrize("options", [chunk_options, once_options, quick_options])
def test_what_is_left_compiles(options, monkeypatch):
    monkeypatch.setattr(compiler, "WITHOUT_EMITTERS", {**compiler.WITHOUT_EMITTERS, "xla_cpu_gone": False})
    assert "xla_cpu_gone" not in options()
    assert jax.jit(lambda x: x + 1, compiler_options=options())(1) == 2


def test_other_errors_are_not_taken_for_a_refusal(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the device is gone")

    takes.cache_clear()
    monkeypatch.setattr(jax, "jit", broken)
    with pytest.raises(RuntimeError, match="device is gone"):
        takes("xla_backend_optimization_level", 0)
    takes.cache_clear()
