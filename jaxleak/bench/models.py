"""Costs of each model in an attack: parameters, bytes a lane takes, evaluations per second on this machine."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxleak.attacks.presets import DLG, IDLG
from jaxleak.engine import Engine
from jaxleak.errors import check_choice, check_positive
from jaxleak.models import MODELS, build_model, parameter_count
from jaxleak.runs.sweep import Sweep
from jaxleak.threat.victim import Victim

CLASSES = 100
SHAPES = {"inception3": (299, 299, 3), "transformer": (16,)}  # of the input; others 32x32
LANES = 2  # per device


class Measured(NamedTuple):
    """One line of the list."""

    model: str
    parameters: int
    input: tuple[int, ...]
    megabytes: float | None = None  # a lane's, as the compiler says
    rate: float | None = None  # evaluations per second, over all devices
    compile_seconds: float | None = None


class _EnoughError(Exception):
    """Ends a measurement that is long enough."""


def measure_models(only: tuple[str, ...] | None = None, *, seconds: float = 5.0) -> Iterator[Measured]:
    """Measure every model with 100 classes, or those named; yields each line as it is measured.

    iDLG (of text DLG) with `lbfgs` on one shared network, two lanes on each device. Compiling a deep network takes
    minutes.

    Args:
        only: names of `MODELS`.
        seconds: to measure each, compilation not counted; 0 measures nothing.

    Raises:
        InputError: no such model.
    """
    if seconds:
        check_positive("seconds", seconds)
    for name in only or MODELS:
        check_choice("only", name, MODELS)
    for name in only or MODELS:
        model, shape = build_model(name, CLASSES), SHAPES.get(name, (32, 32, 3))
        line = Measured(name, parameter_count(model, shape), shape)
        yield _measured(line, model, seconds) if seconds else line


def _measured(line: Measured, model: Any, seconds: float) -> Measured:
    text = len(line.input) == 1
    noise = np.random.default_rng(0).uniform(size=(1, *line.input)).astype(np.float32)
    victim = Victim(
        model=model,
        model_name=line.model,
        dataset="noise",
        split="all",
        indices=[0],
        images=np.floor(CLASSES * noise) if text else noise,
        labels=np.zeros(1, np.int32),
        num_classes=CLASSES,
        network="shared",
        modality="text" if text else "image",
    )
    attack = DLG if text else IDLG
    lanes = LANES * len(jax.devices())
    sweep = Sweep(victim=victim, attacks=(attack,), seeds=1000 * lanes, snapshots=())
    trial = sweep.trial(attack)
    engine = Engine(trial, trial.shared(), lanes=lanes)

    def stop_in_time() -> None:
        if engine.stats.seconds > seconds:
            raise _EnoughError

    try:
        engine.run(sweep.jobs(0, set()), lambda finished: None, stop_in_time)
    except _EnoughError:
        pass
    stats = engine.stats
    (programs, *_) = engine.programs.values()
    return line._replace(
        megabytes=programs.bytes_per_lane / 1e6,
        rate=stats.steps_useful / stats.seconds,
        compile_seconds=stats.compile_seconds,
    )
