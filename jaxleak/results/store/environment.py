"""Device, versions and git revision of a run."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

PACKAGE = Path(__file__).parents[2]
VERSIONS = ("jax", "jaxlib", "flax", "optax", "jaxopt", "numpy")
ENVIRONMENT_COLUMNS = ("device", "jax_version", "jaxleak_version", "git_revision", "git_dirty")


def environment(run: Path | None = None) -> dict[str, Any]:
    """Device, versions, git revision and command, as `run.json` keeps them; some go into every row.

    Args:
        run: the run directory, from whose folder the paths of the command are given.
    """
    device = jax.devices()[0]
    revision, dirty = git_state(PACKAGE)
    kind = device.device_kind if device.platform != "cpu" else f"cpu ({platform.machine()})"
    return {
        "device": f"{len(jax.devices())}x {kind}",
        "processor": processor(),
        "jax_version": jax.__version__,
        "jaxleak_version": version_of("jaxleak"),
        "git_revision": revision,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in VERSIONS},
        "command": shlex.join([Path(sys.argv[0]).name, *(_shared(word, run) for word in sys.argv[1:])]),
    }


def processor() -> str:
    """The processor's own name; where the system does not tell it, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _shared(word: str, run: Path | None) -> str:
    """A word of the command as others may see it: a run is passed on, and an absolute path names this machine's users.

    What lies in the run's folder is given from there; of other absolute paths the last name stays.
    """
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    path = Path(value)
    if not value or not path.is_absolute():
        return word
    folder = Path(os.path.abspath(run)).parent if isinstance(run, Path) else None
    near = folder is not None and path.is_relative_to(folder)
    return f"{flag}{equals}{path.relative_to(folder) if near and folder is not None else path.name}"


def version_of(package: str) -> str:
    """Installed version, or "not installed": a checkout runs without installation, and not every solver is used."""
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
