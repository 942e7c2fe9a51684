"""The command `jaxleak bench`: measure, write JSON, print tables."""

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxleak.bench.runner import Bench
from jaxleak.bench.settings import OURS, SMALL, Settings
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


def run_account(settings: Settings, accelerator: str, out: Path | None = None) -> Iterator[dict[str, Any]]:
    """What a step costs on a GPU that need not be here, for each variant and number of lanes; see `account.py`.

    Args:
        settings: of it `only`, `lanes`, the model and its sizes are used.
        accelerator: one of `ACCELERATORS`.
        out: JSON file for all reports, or None.

    Raises:
        InputError: another accelerator, variants that are not the engine's, no plugin, or `out` cannot be written.
    """
    from jaxleak.bench.accelerators import described_device
    from jaxleak.bench.account import account

    if out is not None:
        _check_writable(out)
    for name in settings.only:
        if name not in OURS:
            raise InputError(f"`only` with --for must be one of {', '.join(OURS)}; got {name!r}.")
    if "auto" in settings.lanes:
        raise InputError("`lanes` with --for must be numbers; auto searches on the device itself.")
    described_device(accelerator)
    plain = {**settings.plain(), "width": settings.width or (64 if settings.model == "resnet18" else None)}
    counts = settings.lanes or (256 if settings.model in SMALL else 64,)
    reports = []
    for variant, lanes in itertools.product(settings.only, counts):
        print(f"{variant}, {lanes} lanes: compiling for {accelerator}", file=sys.stderr, flush=True)
        reports.append(account(accelerator, variant, int(lanes), plain).report())
        yield reports[-1]
        if out is not None:
            _write(out, json.dumps(reports, indent=1) + "\n")


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
