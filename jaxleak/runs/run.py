"""Running a sweep, in a run directory that can be resumed."""

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxleak.attacks.presets import Attack, get_attack
from jaxleak.data.paths import place, reachable
from jaxleak.engine import Engine
from jaxleak.errors import InputError, check_positive
from jaxleak.results.measures import MEASURES
from jaxleak.results.result import Result
from jaxleak.results.store.environment import environment
from jaxleak.results.store.run import Run
from jaxleak.results.store.shard import ALL, Shard, parse_shard
from jaxleak.results.store.versions import solver_versions
from jaxleak.runs.session import Enough, Session
from jaxleak.runs.sweep import Sweep
from jaxleak.runs.warnings import warnings_before
from jaxleak.solvers import solver_name
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
    mix_versions: bool = False,
    minutes: float | None = None,
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
        mix_versions: continue a run although the solvers have changed since.
        minutes: the run ends after so long; trials that have not ended then have no row. None: when all have ended.
        settings: further fields of `Sweep` (`start_seed`, `criteria`, `snapshots`, `starts`).

    Returns:
        Rows, rates and pictures.

    Raises:
        InputError: a setting is wrong, or `out` holds a run with other settings, or of other versions of the solvers.
        StorageError: results cannot be written; its `rows` are those of trials that ended and are not stored.

    Example:
        >>> import jaxleak
        >>> victim = jaxleak.make_victim("mlp", jaxleak.load_dataset("photos"), images=[6])
        >>> result = jaxleak.attack(victim, "analytic", seeds=1, quiet=True)
        >>> result.success_rate()[0]
        1.0
    """
    several: list[Any] = list(attacks) if isinstance(attacks, list | tuple) else [attacks]
    sweep = Sweep(victim=victim, attacks=tuple(get_attack(preset) for preset in several), seeds=seeds, **settings)
    return run_sweep(sweep, out, lanes=lanes, quiet=quiet, mix_versions=mix_versions, minutes=minutes)


def run_sweep(
    sweep: Sweep,
    out: str | Path | None = None,
    *,
    lanes: int | None = None,
    quiet: bool = False,
    shard: Shard | str = ALL,
    on: "Ray | None" = None,
    enough: Enough | None = None,
    mix_versions: bool = False,
    minutes: float | None = None,
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
        mix_versions: continue a run although the solvers have changed since.
        minutes: the run ends after so long, compiling included; its attacks share the time. Trials that have not ended
            then have no row, and another call with the same settings begins them again. None: when all have ended.

    Raises:
        InputError: `out` holds a run with other settings or of other versions of the solvers, or cannot be written; a
            trial does not fit in the memory; or the cluster cannot be used.
        StorageError: results cannot be written; its `rows` are those of trials that ended and are not stored.

    Example:
        >>> import jaxleak
        >>> victim = jaxleak.make_victim("mlp", jaxleak.load_dataset("photos"), images=[6])
        >>> sweep = jaxleak.Sweep(victim=victim, attacks=(jaxleak.ATTACKS["analytic"],), seeds=1)
        >>> jaxleak.run_sweep(sweep, "my-run", quiet=True).summary["complete"]
        True
    """
    if isinstance(jnp.zeros(()), Tracer):
        raise InputError("`attack` writes files and cannot be called inside jax.jit; call it outside.")
    shard = parse_shard(shard) if isinstance(shard, str) else shard
    if shard.count > 1 and out is None:
        raise InputError("`shard` needs `out`, the run directory that all shards write to.")
    if lanes is not None:
        check_positive("lanes", lanes, integer=True)
    if minutes is not None:
        check_positive("minutes", minutes)
        if on is not None:
            raise InputError("`minutes` is for runs in this process; leave it out on Ray.")
    until = np.inf if minutes is None else time.monotonic() + 60 * minutes
    sweep.check()
    for caution in warnings_before(sweep.victim, sweep.attacks, sweep.seeds):
        warnings.warn(caution, stacklevel=2)
    temporary = tempfile.TemporaryDirectory(prefix="jaxleak-") if out is None else None
    path = Path(temporary.name) / "run" if temporary else place(out or "")
    if on is None and not (reachable(path) / "run.json").exists():
        _check_memory(sweep)
    modules = {solver_name(attack.solver): type(attack.solver).__module__ for attack in sweep.attacks}
    made = environment(path) | {"solvers": solver_versions(modules)}
    with Run.create_or_resume(path, sweep.settings(), made, shard, mix_versions=mix_versions) as run:
        victim = sweep.victim
        victim.write_checkpoint(path)
        first = slice(None, None, victim.batch)
        pictures = MEASURES[victim.modality].together(victim.batches(victim.images))
        labels = victim.batches(np.asarray(victim.labels))
        run.write_truth(np.asarray(victim.indices)[first], labels[:, 0], pictures, labels, victim.class_names)
        session = Session(sweep, run, quiet, enough, until)
        if on is None:
            summary = session.run_all(lanes)
        else:
            from jaxleak.runs.ray.driver import run_on_ray

            summary = run_on_ray(session, on, lanes)
    return Result(Run.open(path), summary, temporary)


def _check_memory(sweep: Sweep) -> None:
    """Raise if a trial fits no memory, before anything of the run is written; what is traced is used again.

    Raises:
        InputError: it does not fit.
    """
    for number, attack in enumerate(sweep.attacks):
        trial = sweep.trial(attack)
        Engine(trial.without_data(), jax.eval_shape(trial.shared)).check_memory(sweep.jobs(number, set()))
