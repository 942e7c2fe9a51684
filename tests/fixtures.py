"""What several test files share."""

import jax
import pytest

from jaxleak.engine.compiler import quick_options
from jaxleak.kernels.llvm import emit


def quick_jit(function, **keywords):
    """`jax.jit`, compiled as fast as XLA can: what is tested does not depend on its optimisations."""
    return jax.jit(function, compiler_options=quick_options(), **keywords)


@pytest.fixture
def kernels_as_users_run_them(monkeypatch):
    """Kernels are optimised as for a user; elsewhere in the suite they are compiled quickly (see conftest.py)."""
    monkeypatch.setattr(emit, "level", lambda: emit.FAST_KERNELS)
