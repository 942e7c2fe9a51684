"""Kernels of our own for CPUs, where XLA's products of small matrices are slow.

Each is a JAX primitive with a reference in `jax.numpy` that other platforms run, and CPUs too where the kernels cannot
be had (`available.py`). `JAXLEAK_NATIVE=0` in the environment does without them. llvmlite is imported when the first
kernel is compiled.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

STACK_LIMIT = 1 << 19  # bytes of scratch a kernel may put on the stack of XLA's threads
ITEMSIZE = {"float32": 4, "float64": 8}


def usable(*arrays) -> bool:
    """True if the kernels take these arrays (all float32 or all float64) and are not switched off."""
    types = {str(array.dtype) for array in arrays}
    return len(types) == 1 and types <= ITEMSIZE.keys() and os.environ.get("JAXLEAK_NATIVE") != "0"


def new_kernel(name: str, dtype: str):
    """An `emit.Kernel` under construction."""
    from jaxleak.kernels.llvm.emit import Kernel

    return Kernel(name, dtype)


class Aside(NamedTuple):
    """Where kernels are compiled, and those that were asked for."""

    threads: ThreadPoolExecutor
    kernels: list[Future[None]]


ASIDE: ContextVar[Aside | None] = ContextVar("aside", default=None)


@contextmanager
def kernels_aside(threads: ThreadPoolExecutor) -> Iterator[Callable[[], None]]:
    """Compile kernels in `threads` while what calls them is lowered; yields a function that waits for them.

    It must be called before XLA compiles what was lowered.
    """
    aside = Aside(threads, [])
    token = ASIDE.set(aside)
    try:
        yield lambda: [kernel.result() for kernel in aside.kernels].clear()
    finally:
        ASIDE.reset(token)
