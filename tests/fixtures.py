"""What several test files share."""

import jax

from jaxleak.engine.compiler import quick_options


def quick_jit(function, **keywords):
    """`jax.jit`, compiled as fast as XLA can: what is tested does not depend on its optimisations."""
    return jax.jit(function, compiler_options=quick_options(), **keywords)
