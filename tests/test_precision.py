"""Products of float32 are float32 wherever they are compiled: a GPU would take TF32."""

import jax
import jax.numpy as jnp

from jaxleak.kernels.precision import full_precision


def test_a_context_and_a_decorator_ask_for_full_precision():
    matrix = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def product(x):
        return x @ x

    def within(x):
        with full_precision():
            return x @ x

    programs = [jax.jit(function).lower(matrix).as_text() for function in (full_precision()(product), within, product)]
    assert ["HIGHEST" in program for program in programs] == [True, True, False]
