"""A program of one trial, mapped over lanes, traced once, compiled for a device and kept for an equal program."""

import contextlib
import copy
import functools
import gc
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxleak.engine.compiler import chunk_options, once_options
from jaxleak.engine.memory import tree_bytes
from jaxleak.kernels.llvm import kernels_aside
from jaxleak.kernels.precision import full_precision

TURN = 8  # steps of an accelerator between two questions whether to go on
KEPT = 8  # programs, the last ones used, that an equal program finds compiled


class Program(Protocol):
    """One trial as pure functions; `shared` is what all trials have in common, `job` what tells them apart.

    Attributes:
        key: programs with equal keys compute the same from the same arguments, so one may use what was compiled for
            the other; None: nothing is known.
    """

    @property
    def key(self) -> Hashable | None: ...

    def prepare(self, shared: Any, job: Any) -> Any:
        """The problem: all that stays the same while the trial runs."""
        ...

    def init(self, shared: Any, problem: Any, job: Any) -> Any:
        """The state before the first step."""
        ...

    def step(self, shared: Any, problem: Any, state: Any) -> Any:
        """One step; a trial that no longer runs must keep its outcome."""
        ...

    def running(self, state: Any) -> Any:
        """True while the trial has more to do (bool scalar)."""
        ...

    def outcome(self, problem: Any, state: Any) -> Any:
        """The outcome of a finished trial: small arrays."""
        ...


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Products in full precision; without Python's collector, which goes through all that a deep network's trace makes.

    It takes a fifth of the trace of DenseNet-121 (experiments/NOTES.md).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with full_precision():
            yield
    finally:
        if collects:
            gc.enable()


class Traced:
    """The functions over lanes. The program's own are traced once, for however many lanes and devices."""

    def __init__(self, program: Program, shared: Any, job: Any):
        """`shared` and `job` are types (`ShapeDtypeStruct`), `job` of one trial."""

        def begin(shared, job):
            problem = program.prepare(shared, job)
            return problem, program.init(shared, problem, job)

        # An inner jit is traced once and then reused, in `eval_shape`, under `vmap` and in a loop's second trace.
        self._begin, self._step = jax.jit(begin, inline=True), jax.jit(program.step, inline=True)
        self._running, self._outcome = jax.jit(program.running, inline=True), jax.jit(program.outcome, inline=True)
        self.shared_type, self.job_type = shared, job
        self.compiled: dict[tuple[Any, int], Programs] = {}  # by device and lanes
        with tracing():
            self.trial_type = jax.eval_shape(self._begin, shared, job)
        self.problem_type, _ = self.trial_type

    def chunk(self, shared, problem, state, owned, limit, enough, turn: int = 1):
        """Step until `limit` steps are done or at most `enough` lanes run; `owned` says which lanes hold a trial.

        Both are asked after each `turn` of steps: a GPU waits for the host whenever they are.

        Returns:
            The state, which lanes run, lane-steps spent on running trials, steps.
        """

        def runs(state):
            return owned & jax.vmap(self._running)(state)

        def more(carry):
            steps, _, running, _ = carry
            return (steps < limit) & (jnp.sum(running) > enough)

        # Lanes whose trial has ended are stepped as well: leaving them out would need programs of other sizes.
        def step(carry):
            steps, useful, running, state = carry
            state = jax.vmap(self._step, (None, 0, 0))(shared, problem, state)
            return steps + 1, useful + jnp.sum(running, dtype=jnp.int32), runs(state), state

        def body(carry):
            return step(carry) if turn == 1 else jax.lax.fori_loop(0, turn, lambda _, carry: step(carry), carry)

        zero = jnp.zeros((), jnp.int32)
        steps, useful, running, state = jax.lax.while_loop(more, body, (zero, zero, runs(state), state))
        return state, running, useful, steps

    def refill(self, shared, problem, state, jobs, lanes):
        """Begin each of `jobs` in its lane, in place; a lane out of range drops its job."""
        fresh = jax.vmap(self._begin, (None, 0))(shared, jobs)
        return jax.tree.map(lambda old, new: old.at[lanes].set(new, mode="drop"), (problem, state), fresh)

    def outcome(self, problem, state, lanes):
        """The outcomes of the trials in `lanes`."""
        problem, state = jax.tree.map(lambda leaf: leaf[lanes], (problem, state))
        return jax.vmap(self._outcome)(problem, state)


class Programs:
    """The functions of `Traced`, compiled for one device and number of lanes; see `compile_for`.

    Without `shared` they are what equal programs have in common.

    Attributes:
        lanes: how many.
        block: lanes that `refill` and `outcome` take at once.
        shared: the shared arrays, on the device.
        chunk, refill, outcome: compiled; the state (and in `refill` the problem) is donated.
        blank: compiled, without arguments: the problem and state of lanes without trials.
        bytes_per_lane: what the compiler says a lane needs while it computes, the shared arrays not counted.
    """

    shared: Any

    def __init__(self, traced: Traced, device: Any, lanes: int, threads: ThreadPoolExecutor):
        """Starts to compile, in `threads`; `wait` must come before any use."""
        self.lanes, self.block = lanes, block_of(lanes)
        self._traced = traced
        place = SingleDeviceSharding(device)
        arrays = len(jax.tree.leaves((traced.shared_type, traced.trial_type)))
        once = chunk_options() if jax.config.read("jax_disable_most_optimizations") else once_options(arrays)
        problem, state = self._stacked(traced.trial_type, lanes)
        jobs, block = self._stacked((traced.job_type, jax.ShapeDtypeStruct((), jnp.int32)), self.block)
        owned, number = jax.ShapeDtypeStruct((lanes,), bool), jax.ShapeDtypeStruct((), jnp.int32)

        def start(function, donate, options, *types):
            options = options if device.platform == "cpu" else None
            where: Any = {"in_shardings": place, "out_shardings": place}
            jitted = jax.jit(function, donate_argnums=donate, compiler_options=options, **where)
            staged = jitted.trace(*types)  # what tracing computes already needs its kernels
            with kernels_aside(threads) as wait_for_kernels:
                lowered = staged.lower()

            def compiled():
                wait_for_kernels()
                return lowered.compile()

            return threads.submit(compiled)

        # The chunk last: while Python traces and lowers it, which takes longest, the others compile.
        with tracing():
            self._refill = start(traced.refill, (1, 2), once, traced.shared_type, problem, state, jobs, block)
            self._blank = start(self._zeros, (), once)
            self._outcome = start(traced.outcome, (), once, problem, state, block)
            turn = 1 if device.platform == "cpu" else TURN
            self._chunk = start(
                functools.partial(traced.chunk, turn=turn),
                (2,),
                chunk_options(arrays),
                traced.shared_type,
                problem,
                state,
                owned,
                number,
                number,
            )

    def wait(self) -> None:
        """Wait until all is compiled."""
        self.refill, self.blank = self._refill.result(), self._blank.result()
        self.outcome, self.chunk = self._outcome.result(), self._chunk.result()
        needs = [self.lanes * tree_bytes(self._traced.trial_type)]  # a backend may not say more
        for sizes in (self.chunk.memory_analysis(), self.refill.memory_analysis()):
            if sizes is not None:
                held = sizes.argument_size_in_bytes - tree_bytes(self._traced.shared_type) + sizes.temp_size_in_bytes
                needs.append(held + sizes.output_size_in_bytes - sizes.alias_size_in_bytes)
        self.bytes_per_lane = max(needs) // self.lanes
        del self._refill, self._blank, self._outcome, self._chunk

    def on(self, shared: Any) -> "Programs":
        """The same programs for these shared arrays."""
        programs = copy.copy(self)
        programs.shared = shared
        return programs

    def _stacked(self, types, count: int):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), types)

    def _zeros(self):
        types = self._stacked(self._traced.trial_type, self.lanes)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), types)


_kept: OrderedDict[Hashable, Traced] = OrderedDict()
_keeping = threading.Lock()


def traced_for(program: Program, shared: Any, job: Any) -> Traced:
    """`Traced(program, shared, job)`, or that of an equal program that was used before."""
    if program.key is None:
        return Traced(program, shared, job)
    leaves, structure = jax.tree.flatten((shared, job))
    # Any of jax's settings may change what is traced.
    key = program.key, structure, tuple(leaves), repr(sorted(jax.config.values.items(), key=lambda item: item[0]))
    with _keeping:
        traced = _kept.pop(key, None)
    traced = traced or Traced(program, shared, job)
    with _keeping:
        _kept[key] = traced
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return traced


def forget_kept() -> None:
    """Let go of all programs that are kept."""
    with _keeping:
        _kept.clear()


def compile_for(traced: Traced, shared: dict[Any, Any], lanes: int) -> dict[Any, Programs]:
    """Compile for each device in `shared`, the shared arrays by device, all at the same time."""
    new = [device for device in shared if (device, lanes) not in traced.compiled]
    with ThreadPoolExecutor() as threads:
        begun = {device: Programs(traced, device, lanes, threads) for device in new}
        for device, programs in begun.items():
            programs.wait()
            traced.compiled[device, lanes] = programs
    return {device: traced.compiled[device, lanes].on(arrays) for device, arrays in shared.items()}


def block_of(lanes: int) -> int:
    """Lanes that may stand idle before a chunk ends to refill them: one sixteenth of them."""
    return max(1, lanes // 16)
