"""A worker for the variants in JAX: `python -m jaxleak.bench.worker`, spoken to as `jaxleak/bench/protocol.py` says."""

import contextlib
import threading
import time
from typing import Any

from jaxleak.bench.protocol import Link, Meter, peak_bytes, serve
from jaxleak.kernels.precision import full_precision

UNIT_SECONDS = 0.2  # aimed at between two looks at the clock
ENGINE_WARM = 0.7  # seconds until the engine's chunks, which begin with one step, have their length
SEARCH_SECONDS = 60.0  # at most, for the engine to settle how many lanes it takes


def work(task: dict[str, Any], link: Link) -> None:
    """Do as the task says: `{"variant": name, "lanes": LANES or None, "phase": name or "", "settings": {...}}`."""
    began = time.perf_counter()
    import jax

    from jaxleak.bench import machine
    from jaxleak.bench.settings import OURS
    from jaxleak.engine.devices import use_all_cores

    name, lanes, settings = task["variant"], task["lanes"], task["settings"]
    if name in OURS:
        use_all_cores()
    about = {"device": jax.devices()[0].device_kind, "devices": len(jax.devices()), "platform": jax.default_backend()}
    about |= {"start_seconds": time.perf_counter() - began, "held_bytes": peak_bytes()}
    if name == "machine":
        machine.measure(settings, about, link)
    elif name in OURS:
        run_engine(settings, name, lanes, task["phase"], about, link)
    else:
        run_loop(settings, name, lanes, about, link)


class _PauseError(Exception):
    """The engine is to stop until the next measurement."""


def run_engine(
    settings: dict[str, Any], name: str, lanes: int | str | None, phase: str, about: dict[str, Any], link: Link
) -> None:
    """The engine as `jaxleak run` uses it, on queues that do not end: only steps of running trials count.

    Each measurement is a run of its own on the same compiled programs, with new trials. With `phase`, only that part of
    a step is computed (see `jaxleak/bench/phases.py`). `lanes` are a number, None for what the engine begins with, or
    "auto" for what its search ends with. The search is part of getting warm: all measurements have the same lanes.
    """
    import jax

    from jaxleak.bench import variants
    from jaxleak.bench.phases import PhaseProgram
    from jaxleak.engine import Engine
    from jaxleak.engine.choice import first_lanes
    from jaxleak.engine.memory import tree_bytes
    from jaxleak.results.measures import MEASURES

    trial = variants.trial(settings, name)
    searches = lanes == "auto"
    job = jax.tree.map(lambda leaf: leaf[0], variants.jobs(settings))
    problem = jax.eval_shape(trial.prepare, jax.eval_shape(trial.shared), job)
    known = len(jax.devices()) * first_lanes(jax.devices()[0], problem_bytes=tree_bytes(problem))
    count = known if lanes is None else None if searches else int(lanes)
    engine = Engine(PhaseProgram(trial=trial, phase=phase) if phase else trial, trial.shared(), lanes=count)
    stats, meter = engine.stats, Meter(link, ENGINE_WARM)
    began, threads = time.perf_counter(), set(threading.enumerate())

    def on_finished(finished) -> None:
        measured = MEASURES[trial.victim.modality].all
        measured(finished.outcomes.candidate[:, 0], trial.victim.images[finished.jobs.slot])

    def until_settled() -> None:
        settled = not searches or engine.best is not None or time.perf_counter() - began > SEARCH_SECONDS
        if stats.steps_total and settled:
            raise _PauseError

    def until_measured() -> None:
        # Not before the histories are full: a step with a short one costs less.
        full = stats.steps_total - before >= fill * stats.lanes
        if full and meter.tick(stats.steps_useful, stats.steps_total):
            raise _PauseError

    number, fill = 0, getattr(trial.attack.solver, "history", 1)
    while True:
        before = stats.steps_total
        with contextlib.suppress(_PauseError):
            engine.run(variants.jobs(settings, number), on_finished, until_measured if number else until_settled)
            raise RuntimeError("the queue came to its end")
        if number == 0:
            for thread in set(threading.enumerate()) - threads:
                if not thread.daemon:
                    thread.join()  # a search that was stopped may still compile
            engine.lanes = (engine.best or stats.lanes // stats.devices) * stats.devices
            about["settled"] = not searches or engine.best is not None
            programs = engine.compile(engine.trace(None), jax.devices(), engine.lanes // stats.devices)
            about |= {"lanes": engine.lanes, "compile_seconds": stats.compile_seconds}
            about |= {"memory_per_lane": programs[0].bytes_per_lane}
        meter.wait(None if number else about)
        number += 1


def run_loop(settings: dict[str, Any], name: str, lanes: int, about: dict[str, Any], link: Link) -> None:
    """All lanes take their steps together, in compiled calls of about `UNIT_SECONDS`; then all start afresh."""
    import jax
    import jax.numpy as jnp

    from jaxleak.bench import variants

    began = time.perf_counter()
    loop = variants.LOOPS[name](settings)
    size = settings["candidate"]

    def start(seed):
        return jax.vmap(loop.init)(jax.random.normal(jax.random.key(seed), (lanes, size)))

    def advance(first, count, states):
        return jax.lax.fori_loop(first, first + count, lambda k, now: jax.vmap(loop.step, (None, 0))(k, now), states)

    with full_precision():
        compiled = jax.jit(advance, donate_argnums=2).lower(0, 1, jax.eval_shape(start, 0)).compile()
        start = jax.jit(start).lower(0).compile()
    about |= {"compile_seconds": time.perf_counter() - began, "lanes": lanes}
    about |= {"memory_per_lane": compiled_bytes(compiled) / lanes}
    meter = Meter(link)

    def count(states) -> int:
        return int(jnp.sum(loop.evaluations(states))) if loop.evaluations else 0

    steps = settings["iterations"] * (variants.INNER_STEPS if settings["solver"] == "lbfgs" else 1)
    evaluations, done, unit = 0, 0, 1
    jax.block_until_ready(compiled(0, 1, start(0)))
    meter.wait(about)
    while True:
        states, first = start(done), 0
        before = count(states)
        while first < steps:
            unit = min(unit, steps - first)
            began = time.perf_counter()
            states = jax.block_until_ready(compiled(first, unit, states))
            seconds = (time.perf_counter() - began) / unit
            first, done, after = first + unit, done + unit * lanes, count(states)
            evaluations, before = evaluations + (after - before if loop.evaluations else unit * lanes), after
            unit = max(1, min(100, round(UNIT_SECONDS / max(seconds, 1e-6))))
            if meter.tick(evaluations, done):
                meter.wait()


def compiled_bytes(compiled) -> int:
    """Arguments, results and temporaries of a compiled program, in bytes."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes


if __name__ == "__main__":
    serve(work)
