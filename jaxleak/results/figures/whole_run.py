"""Every figure of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxleak.data.paths import is_local, reachable, writing
from jaxleak.errors import InputError
from jaxleak.results.figures.grid import choose_trials, recovery_grid
from jaxleak.results.figures.rates import mse_shares, success_by_image
from jaxleak.results.figures.texts import text_grid
from jaxleak.results.figures.traces import convergence
from jaxleak.results.store.readable import check_readable
from jaxleak.results.summary import expected_trials, summarise
from jaxleak.results.verdict import Criteria

if TYPE_CHECKING:
    from jaxleak.results.store.run import Run


def draw_all(run: "Run", path: str | Path | None = None, *, images: Sequence[int] | None = None) -> list[Path]:
    """Draw every figure of a run as far as it has got.

    Args:
        run: an open run; it may be unfinished.
        path: the directory, made if need be; the run's `figures` if not given.
        images: those of the grid; see `choose_trials`.

    Returns:
        The files: recovery.png, convergence.png, success_by_image.png and, but for text, mse_shares.png.

    Raises:
        InputError: no trial has finished, an image that the run does not have, or a directory that cannot be
            written.
    """
    check_readable(run, whole=False)
    rows = run.rows()
    if not rows:
        raise InputError(f"{run.path} has no finished trial yet. Draw when `jaxleak run` has finished some.")
    directory = run.figures if path is None else _directory(path)
    files = [directory / f"{name}.png" for name in ("recovery", "convergence", "success_by_image", "mse_shares")]
    criteria = Criteria(**run.settings.get("criteria", {}))
    snapshots = run.settings.get("snapshots") or []
    truth = run.truth()
    shown = [row["trial"] for block in choose_trials(rows, truth, images) for _, row in block.lines]
    keys = ["trial", "candidate", *(["snapshots"] if snapshots else [])]
    arrays, kept = run.arrays(keys, trials=shown), run.settings.get("snapshot_seeds")
    draw = text_grid if run.modality == "text" else recovery_grid
    draw(rows, arrays, truth, snapshots, files[0], images=images, snapshot_seeds=kept)
    traces = run.arrays(["trial", "objective_trace", "mse_trace"])
    text = run.modality == "text"
    convergence(rows, traces, files[1], threshold=criteria.objective, error="tokens wrong" if text else "MSE")
    summary = summarise(rows, criteria, expected=_expected(run, len(rows)))
    success_by_image(summary, files[2])
    if text:
        return files[:3]
    mse_shares(summary, files[3])
    return files


def _directory(path: str | Path) -> Path:
    directory = reachable(path)
    with writing("path", path):
        if is_local(directory):
            directory.mkdir(parents=True, exist_ok=True)
    return directory


def _expected(run: "Run", done: int) -> int:
    """Trials of the complete run, attacks x images x seeds; those there are, where the settings do not say."""
    try:
        return expected_trials(run.settings)
    except (KeyError, TypeError):
        return done
