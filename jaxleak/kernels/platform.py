"""What programs are compiled for: a CPU with kernels of our own, or an accelerator."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_described: ContextVar[bool] = ContextVar("described", default=False)


def accelerated() -> bool:
    """True if what is traced now runs on an accelerator, as jax's default device is one."""
    return _described.get() or jax.default_backend() != "cpu"


@contextlib.contextmanager
def for_accelerator() -> Iterator[None]:
    """Trace as for an accelerator, though there may be none: for `bench.account`, and for tests."""
    token = _described.set(True)
    try:
        yield
    finally:
        _described.reset(token)
