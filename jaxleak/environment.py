"""What a run was made with: device, versions and git revision; and how jax is told to use every core."""

import contextlib
import os
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

POOL = "PJRT_NPROC"  # threads of XLA's pool
PLUGINS = "jax_plugins"  # where jax looks for other backends: entry points of this group, and this package
VERSIONS = ("jax", "jaxlib", "flax", "optax", "jaxopt", "numpy")
ENVIRONMENT_COLUMNS = ("device", "jax_version", "jaxleak_version", "git_revision", "git_dirty")


def use_all_cores(cores: int | None = None) -> None:
    """Make every CPU core, or so many, a device of its own, and start jax; call it before jax does anything.

    Measured on two cores, LeNet's objective and gradient: 2,700 evaluations/s on two one-core devices, 1,300 to 1,400
    on one two-core device. Without effect where jax already runs.

    XLA's devices share a pool of threads, by default one per core, and hand their work to it. One thread beside their
    own is enough: the whole step took 319 and 326 us with it, 340 and 354 us with two. Where jax may find an
    accelerator the pool stays as it is, since it compiles for that too.
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


def dtype() -> str:
    """The precision jax is set to."""
    return "float64" if jax.config.jax_enable_x64 else "float32"  # pyright: ignore[reportAttributeAccessIssue]


def environment() -> dict[str, Any]:
    """Device, versions, git revision and command, as `run.json` keeps them; some go into every row."""
    import platform

    device = jax.devices()[0]
    revision, dirty = git_state(Path(__file__).parent)
    kind = device.device_kind if device.platform != "cpu" else f"cpu ({platform.machine()})"
    return {
        "device": f"{len(jax.devices())}x {kind}",
        "jax_version": jax.__version__,
        "jaxleak_version": version_of("jaxleak"),
        "git_revision": revision,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in VERSIONS},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def version_of(package: str) -> str:
    """Its installed version, or "not installed": a checkout runs without installation, and not every solver is used."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def git_state(path: str | Path) -> tuple[str, bool]:
    """Revision of the git checkout that tracks the directory `path`, and whether anything under it differs.

    ("unknown", False) outside a checkout, without git, and where a checkout merely surrounds an installation.
    """
    # GIT_DIR and its like, set while a hook runs, would point elsewhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(path), *arguments]
        return subprocess.run(
            command,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()

    try:
        if not git("ls-files", "."):
            return "unknown", False
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "."))
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown", False
