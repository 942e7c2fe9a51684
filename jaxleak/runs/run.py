"""Running a sweep, in a run directory that can be resumed."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxleak.attacks.presets import Attack, get_attack
from jaxleak.data.paths import place
from jaxleak.errors import InputError, check_positive
from jaxleak.results.matching import mosaic
from jaxleak.results.result import Result
from jaxleak.results.store.environment import environment
from jaxleak.results.store.run import Run
from jaxleak.results.store.shard import ALL, Shard, parse_shard
from jaxleak.runs.session import Enough, Session
from jaxleak.runs.sweep import Sweep
from jaxleak.runs.warnings import warnings_before
from jaxleak.threat.victim import Victim

if TYPE_CHECKING:
    from jaxleak.runs.ray.driver import Ray


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
    several: list[Any] = list(attacks) if isinstance(attacks, list | tuple) else [attacks]
    sweep = Sweep(victim=victim, attacks=tuple(get_attack(preset) for preset in several), seeds=seeds, **settings)
    return run_sweep(sweep, out, lanes=lanes, quiet=quiet)


def run_sweep(
    sweep: Sweep,
    out: str | Path | None = None,
    *,
    lanes: int | None = None,
    quiet: bool = False,
    shard: Shard | str = ALL,
    on: "Ray | None" = None,
    enough: Enough | None = None,
) -> Result:
    """Run what is still missing of a sweep. Ctrl-C writes what is finished and raises `KeyboardInterrupt`.

    Args:
        sweep: what to run.
        out: run directory, or None for a temporary one.
        lanes: trials at once over all devices, fewer where they do not fit in the memory; None chooses.
        quiet: no progress lines.
        shard: which part of the sweep this process runs, "0/8" to "7/8" of eight that write to the same `out`.
        on: a Ray cluster whose workers run the trials; None runs them in this process.
        enough: when to leave out the other restarts of an attack, for whoever wants a verdict and not a rate; None:
            never.

    Raises:
        InputError: `out` holds a run with other settings, or cannot be written; or the cluster cannot be used.
    """
    if isinstance(jnp.zeros(()), Tracer):
        raise InputError("`attack` writes files and cannot be called inside jax.jit; call it outside.")
    shard = parse_shard(shard) if isinstance(shard, str) else shard
    if shard.count > 1 and out is None:
        raise InputError("`shard` needs `out`, the run directory that all shards write to.")
    if lanes is not None:
        check_positive("lanes", lanes, integer=True)
    sweep.check()
    for caution in warnings_before(sweep.victim, sweep.attacks, sweep.seeds):
        warnings.warn(caution, stacklevel=2)
    temporary = tempfile.TemporaryDirectory(prefix="jaxleak-") if out is None else None
    path = Path(temporary.name) / "run" if temporary else place(out or "")
    with Run.create_or_resume(path, sweep.settings(), environment(), shard) as run:
        victim = sweep.victim
        victim.write_checkpoint(path)
        first = slice(None, None, victim.batch)
        pictures = mosaic(victim.batches(victim.images))
        labels = victim.batches(np.asarray(victim.labels))
        run.write_truth(np.asarray(victim.indices)[first], labels[:, 0], pictures, labels, victim.class_names)
        session = Session(sweep, run, quiet, enough)
        if on is None:
            summary = session.run_all(lanes)
        else:
            from jaxleak.runs.ray.driver import run_on_ray

            summary = run_on_ray(session, on, lanes)
    return Result(Run.open(path), summary, temporary)
