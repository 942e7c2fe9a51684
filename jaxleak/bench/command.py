"""The command `jaxleak bench`: measure, write JSON, print tables."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxleak.bench.runner import Bench
from jaxleak.bench.settings import Settings
from jaxleak.errors import InputError


def run_bench(settings: Settings, out: Path | None = None) -> dict[str, Any]:
    """Measure and report; Ctrl-C reports what is there, with `interrupted` true.

    Args:
        settings: what to measure.
        out: JSON file for the report, or None.

    Returns:
        The report: `variants` (one row each), `ratios`, `lanes`, `profile`, `machine`, `device`, `versions`,
        `settings`, `setup_seconds`, `measured_seconds`.

    Raises:
        InputError: nothing of what was asked for can be measured here, or `out` cannot be written.
    """
    if out is not None:
        _check_writable(out)
    bench = Bench(settings, lambda line: print(line, file=sys.stderr, flush=True))
    bench.run()
    result = bench.result()
    if out is not None:
        _write(out, json.dumps(result, indent=1) + "\n")
    return result


def _check_writable(out: Path) -> None:
    """Raise unless `out` is or can be a file; called before minutes of work."""
    folder = out.parent
    if out.is_dir():
        raise InputError(f"`out` must be a file; {out} is a directory.")
    if not folder.is_dir():
        raise InputError(f"`out` {out} cannot be written: there is no directory {folder}; make it first.")
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"`out` {out} cannot be written: {error.strerror} in {folder}.") from None


def _write(path: Path, text: str) -> None:
    """Write the whole text or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    os.replace(part, path)
