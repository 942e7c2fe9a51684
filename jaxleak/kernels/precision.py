"""The precision jax is set to, and products that keep it."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products and convolutions that are traced within keep float32: GPUs would take TF32 by default.

    A context, or a decorator of the function that is traced.
    """
    with jax.default_matmul_precision("highest"):
        yield


def dtype() -> str:
    """The precision jax is set to."""
    return "float64" if jax.config.jax_enable_x64 else "float32"  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """All that is computed within is in float64, in every thread of this process."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
