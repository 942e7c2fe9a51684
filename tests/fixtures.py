"""What several test files share."""

import ast

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


def imports(nodes) -> set[str]:
    """Full names of what import statements among `nodes` bring in; of `import a.b` that is `a.b`."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "experiments import by full names"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names
