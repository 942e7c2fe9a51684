"""Running a sweep, in a run directory that can be resumed."""

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxleak import cautions
from jaxleak.attacks.presets import Attack, get_attack
from jaxleak.environment import environment
from jaxleak.errors import InputError, check_positive
from jaxleak.matching import mosaic, unmosaic
from jaxleak.paths import place
from jaxleak.plan import Sweep
from jaxleak.session import Session
from jaxleak.shard import ALL, Shard, parse_shard
from jaxleak.store import Run
from jaxleak.threat.victim import Victim

if TYPE_CHECKING:
    from jaxleak.cluster.ray_driver import Ray


@dataclass(eq=False)
class Result:
    """What a sweep left: rows, rates and pictures. The run directory holds the same.

    Attributes:
        run: the run directory, open for reading.
        summary: as `summary.json`.
    """

    run: Run
    summary: dict[str, Any]
    _keep: Any = None  # a temporary directory lives as long as the result

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dict per trial."""
        return self.run.rows()

    def success_rate(self, attack: str | None = None) -> tuple[float, tuple[float, float], int]:
        """Success rate over all images, its 95 % Wilson interval and the number of trials.

        Raises:
            InputError: several attacks were run and `attack` names none of them.
        """
        groups = {group["attack"]: group for group in self.summary["groups"] if group["image"] is None}
        if attack is None and len(groups) == 1:
            attack = next(iter(groups))
        if attack not in groups:
            raise InputError(f"`attack` must be one of {', '.join(groups)}; got {attack!r}.")
        group = groups[attack]
        return group["success_rate"], tuple(group["ci95"]), group["trials"]

    def reconstructions(self, trials: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """`{"trial": [n], "candidate": [n, h, w, c]}` of the given trials, or of all.

        Of batches, `candidate` is [n, b, h, w, c], in the order of the truth.
        """
        arrays = self.run.arrays(keys=["trial", "candidate"], trials=trials)
        batch = self.run.settings["victim"]["batch"]
        return arrays if batch == 1 else {**arrays, "candidate": unmosaic(arrays["candidate"], batch)}

    def table(self):
        """A rich table of the rates; `rich.print` shows it."""
        from jaxleak.tables import summary_table

        return summary_table([self.summary])

    def plot(self, path: str | Path | None = None) -> list[Path]:
        """Draw every figure into `path` (default: `figures` in the run directory); returns the files."""
        from jaxleak.plots import draw_all

        return draw_all(self.run, path)

    def report(self, path: str | Path | None = None, *, trials: int = 2) -> Path:
        """Write one self-contained page (default: `report.html` in the run directory); see `report.write_page`."""
        from jaxleak.report import write_page

        return write_page([self.run.path], path, trials=trials)


def attack(
    victim: Victim,
    attacks: str | Attack | Sequence[str | Attack],
    *,
    seeds: int,
    out: str | Path | None = None,
    lanes: int | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Attack `victim` from `seeds` random starts per image, all at once.

    Args:
        victim: see `make_victim`.
        attacks: one or several names ("dlg", "idlg") or `Attack` objects.
        seeds: restarts per image and attack.
        out: run directory; an interrupted run with the same settings continues there. None uses a temporary one.
        lanes: trials at once over all devices, fewer where they do not fit in the memory; None chooses.
        quiet: no progress lines.
        settings: further fields of `Sweep` (`start_seed`, `criteria`, `snapshots`, `starts`).

    Returns:
        Rows, rates and pictures.

    Raises:
        InputError: a setting is wrong, or `out` holds a run with other settings.
    """
    several = [attacks] if isinstance(attacks, str | Attack) else list(attacks)
    sweep = Sweep(victim=victim, attacks=tuple(get_attack(one) for one in several), seeds=seeds, **settings)
    return run_sweep(sweep, out, lanes=lanes, quiet=quiet)


def run_sweep(
    sweep: Sweep,
    out: str | Path | None = None,
    *,
    lanes: int | None = None,
    quiet: bool = False,
    shard: Shard | str = ALL,
    on: "Ray | None" = None,
) -> Result:
    """Run what is still missing of a sweep. Ctrl-C writes what is finished and raises `KeyboardInterrupt`.

    Args:
        sweep: what to run.
        out: run directory, or None for a temporary one.
        lanes: trials at once over all devices, fewer where they do not fit in the memory; None chooses.
        quiet: no progress lines.
        shard: which part of the sweep this process runs, "0/8" to "7/8" of eight that write to the same `out`.
        on: a Ray cluster whose workers run the trials; None runs them in this process.

    Raises:
        InputError: `out` holds a run with other settings, or cannot be written; or the cluster cannot be used.
    """
    shard = parse_shard(shard) if isinstance(shard, str) else shard
    if shard.count > 1 and out is None:
        raise InputError("`shard` needs `out`, the run directory that all shards write to.")
    if lanes is not None:
        check_positive("lanes", lanes, integer=True)
    sweep.check()
    for caution in cautions.before(sweep.victim, sweep.attacks, sweep.seeds):
        warnings.warn(caution, stacklevel=2)
    temporary = tempfile.TemporaryDirectory(prefix="jaxleak-") if out is None else None
    path = Path(temporary.name) / "run" if temporary else place(out or "")
    with Run.create_or_resume(path, sweep.settings(), environment(), shard) as run:
        victim = sweep.victim
        victim.write_checkpoint(path)
        first = slice(None, None, victim.batch)
        pictures = mosaic(victim.images.reshape(victim.updates, victim.batch, *victim.images.shape[1:]))
        labels = np.asarray(victim.labels).reshape(victim.updates, victim.batch)
        run.write_truth(np.asarray(victim.indices)[first], labels[:, 0], pictures, labels, victim.class_names)
        session = Session(sweep, run, quiet)
        if on is None:
            summary = session.run_all(lanes)
        else:
            from jaxleak.cluster.ray_driver import run_on_ray

            summary = run_on_ray(session, on, lanes)
    return Result(Run.open(path), summary, temporary)
