"""Kernels of our own for CPUs, where XLA's products of small matrices are slow.

Each is a JAX primitive with a reference in `jax.numpy` that other platforms run. `JAXLEAK_NATIVE=0` in the environment
does without them.
"""

import os


def usable(*arrays) -> bool:
    """Whether the kernels take these arrays: all float32 or all float64, and not switched off."""
    types = {str(array.dtype) for array in arrays}
    return len(types) == 1 and types <= {"float32", "float64"} and os.environ.get("JAXLEAK_NATIVE") != "0"
