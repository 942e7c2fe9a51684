"""Makes jax use every core of a CPU."""

import contextlib
import os
from importlib.metadata import entry_points
from importlib.util import find_spec

import jax

POOL = "PJRT_NPROC"  # threads of XLA's pool
PLUGINS = "jax_plugins"  # where jax looks for other backends: entry points of this group, and this package


def use_all_cores(cores: int | None = None) -> None:
    """Make every CPU core, or so many, a device of its own, and start jax; call it before jax does anything.

    One-core devices evaluate about twice as fast together as one device with two cores (experiments/NOTES.md). Without
    effect where jax already runs.

    XLA's devices share a pool of threads, by default one per core, and hand their work to it. One thread beside their
    own is enough, and faster than two. Where jax may find an accelerator the pool stays as it is, since it compiles for
    that too.

    Example:
        >>> import jax
        >>> import jaxleak
        >>> jaxleak.use_all_cores()
        >>> jax.local_device_count() >= 1
        True
    """
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # jax is running: its devices stay as they are
        jax.config.update("jax_num_cpu_devices", cores)
    given = POOL in os.environ or may_have_accelerator()
    try:
        if not given:
            os.environ[POOL] = "1"
        jax.devices()  # reads it; processes that are started later do not
    finally:
        if not given:
            del os.environ[POOL]


def may_have_accelerator() -> bool:
    """True where jax is told to use one, or has a plugin for one and is not told to use the CPU."""
    platforms = str(jax.config.jax_platforms or "")  # pyright: ignore[reportAttributeAccessIssue]
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return bool(entry_points(group=PLUGINS)) or find_spec(PLUGINS) is not None
