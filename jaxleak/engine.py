"""Lanes: many trials of one program at once, in chunks of compiled steps, refilled from a queue.

The engine knows nothing about attacks. A program is four pure functions of one trial (see `Program`); the engine maps
them over lanes, runs a chunk of steps in one compiled call, takes finished trials out between chunks and puts waiting
ones in. A trial's result does not depend on its lane, the number of lanes, the chunk length, the order of the queue
or the number of devices, beyond the rounding of the vectorised arithmetic.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxleak.errors import check_positive


class Program(Protocol):
    """One trial as pure functions; `shared` is what all trials have in common, `job` what tells them apart."""

    def prepare(self, shared: Any, job: Any) -> Any:
        """What stays the same while the trial runs."""
        ...

    def init(self, shared: Any, problem: Any, job: Any) -> Any:
        """The state before the first step."""
        ...

    def step(self, shared: Any, problem: Any, state: Any) -> Any:
        """One step; a trial that no longer runs must keep its outcome."""
        ...

    def running(self, state: Any) -> Any:
        """Whether the trial has more to do (bool scalar)."""
        ...

    def outcome(self, problem: Any, state: Any) -> Any:
        """What a finished trial leaves: small arrays."""
        ...


@dataclass
class EngineStats:
    """What the engine did, and how well the lanes were used."""

    lanes: int = 0
    devices: int = 0
    trials_done: int = 0
    trials_running: int = 0
    trials_waiting: int = 0
    steps_useful: int = 0  # lane-steps spent on running trials
    steps_total: int = 0  # lane-steps computed
    seconds: float = 0.0  # without compilation
    compile_seconds: float = 0.0

    @property
    def utilisation(self) -> float:
        """Useful lane-steps over all lane-steps computed, in 0..1."""
        return self.steps_useful / self.steps_total if self.steps_total else 0.0


class Finished(NamedTuple):
    """Trials that ended in the same chunk: the queue's rows, and their outcomes stacked in that order."""

    jobs: Any
    outcomes: Any
    seconds: np.ndarray  # from when each entered its lane


def default_lanes(bytes_per_lane: int) -> int:
    """Lanes per device: 4 on a CPU core, where more were measured slower, else what fits in half the free memory.

    Measured, LeNet with history 100 on two cores: whole step about 2,000 evaluations/s at 2 to 4 lanes a core and 1,730
    at 6; in another run, without the bookkeeping, 1,500 at 8 and 1,340 at 16.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        return 4
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 8 << 30) - stats.get("bytes_in_use", 0)
    return int(max(1, min(1024, free // 2 // max(bytes_per_lane, 1))))


@dataclass(eq=False)
class Engine:
    """Runs a queue of jobs through one program.

    Attributes:
        program: the trial.
        shared: its shared arrays.
        lanes: trials at once over all devices; None chooses. Rounded up to a multiple of the devices.
        chunk: steps per compiled call.
        devices: where to run; None is all devices.
    """

    program: Program
    shared: Any
    lanes: int | None = None
    chunk: int = 100
    devices: Sequence[Any] | None = None
    stats: EngineStats = field(default_factory=EngineStats)

    def __post_init__(self):
        check_positive("chunk", self.chunk, integer=True)
        if self.lanes is not None:
            check_positive("lanes", self.lanes, integer=True)

    def run(self, jobs: Any, on_finished: Callable[[Finished], None], on_chunk: Callable[[], None] = lambda: None):
        """Run every job; hand finished ones over as they end.

        Args:
            jobs: a pytree of numpy integer arrays with the queue as leading axis.
            on_finished: called with trials that ended, while the next chunk computes.
            on_chunk: called once per chunk, for progress.

        An exception from either callback (Ctrl-C included) ends the run; trials handed over before stay handed over.
        """
        queue = _Queue(jobs)
        if queue.total == 0:
            return
        devices = list(self.devices or jax.devices())
        compiled = self._compile(queue, devices)
        self.stats.trials_waiting = queue.total
        began = time.perf_counter()
        owner = np.full(compiled.lanes, -1)  # position in the queue of each lane's trial
        entered = np.zeros(compiled.lanes)
        carry, flags = compiled.blank, np.zeros(compiled.lanes, bool)
        while True:
            finished = self._harvest(compiled, carry, owner, entered, flags, queue)
            carry = self._refill(compiled, carry, owner, entered, queue)
            if not np.any(owner >= 0):
                _deliver(finished, on_finished)
                break
            pending = compiled.chunk(compiled.shared, *carry)  # runs while the host deals with what ended
            _deliver(finished, on_finished)
            on_chunk()
            *carry, running, useful, steps = jax.block_until_ready(pending)
            flags = np.asarray(running)
            self.stats.steps_useful += int(np.sum(useful))
            self.stats.steps_total += int(np.sum(steps)) * compiled.lanes_per_device
            self.stats.seconds = time.perf_counter() - began
        self.stats.seconds = time.perf_counter() - began

    def _harvest(self, compiled, carry, owner, entered, flags, queue) -> Finished | None:
        lanes = np.flatnonzero((owner >= 0) & ~flags)
        if lanes.size == 0:
            return None
        outcomes = compiled.outcome(*carry)
        outcomes = jax.tree.map(lambda leaf: np.asarray(leaf)[lanes].copy(), outcomes)
        jobs = queue.take(owner[lanes])
        seconds = time.perf_counter() - entered[lanes]
        owner[lanes] = -1
        self.stats.trials_done += lanes.size
        self.stats.trials_running -= lanes.size
        return Finished(jobs, outcomes, seconds)

    def _refill(self, compiled, carry, owner, entered, queue):
        empty = np.flatnonzero(owner < 0)
        positions = queue.next(empty.size)
        if positions.size == 0:
            return carry
        lanes = empty[: positions.size]
        owner[lanes] = positions
        entered[lanes] = time.perf_counter()
        self.stats.trials_running += lanes.size
        self.stats.trials_waiting -= lanes.size
        mask = np.zeros(compiled.lanes, bool)
        mask[lanes] = True
        # Lanes without a new job get a copy of one that is already there: it is computed and not kept.
        jobs = queue.take(np.where(mask, owner, positions[0]))
        return compiled.refill(compiled.shared, *carry, *compiled.place((jobs, mask)))

    def _compile(self, queue: "_Queue", devices: list[Any]) -> "_Compiled":
        began = time.perf_counter()
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), queue.jobs)
        shared_type = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.shared)
        with jax.default_matmul_precision("highest"):
            types = jax.eval_shape(self._begin, shared_type, one)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(types))
        lanes = self.lanes or default_lanes(2 * size) * len(devices)
        per_device = -(-min(lanes, max(queue.total, 1)) // len(devices))
        self.stats.lanes, self.stats.devices = per_device * len(devices), len(devices)
        compiled = _Compiled(self, types, one, shared_type, per_device, devices)
        self.stats.compile_seconds += time.perf_counter() - began
        return compiled

    def _begin(self, shared, job):
        problem = self.program.prepare(shared, job)
        return problem, self.program.init(shared, problem, job)


class _Queue:
    """Jobs in the order in which they enter lanes."""

    def __init__(self, jobs):
        self.jobs = jax.tree.map(np.asarray, jobs)
        self.total = int(jax.tree.leaves(self.jobs)[0].shape[0])
        self.position = 0

    def next(self, count: int) -> np.ndarray:
        """Positions of the next `count` jobs, fewer at the end."""
        positions = np.arange(self.position, min(self.position + count, self.total))
        self.position += positions.size
        return positions

    def take(self, positions: np.ndarray):
        return jax.tree.map(lambda leaf: leaf[positions], self.jobs)


class _Compiled:
    """The compiled functions over all lanes, and the arrays they start from.

    Every device runs its own lanes: `shard_map` without replication checks, because the lanes are independent and the
    ordinary ways of sharding a convolution's weight gradient give wrong numbers (design notes, sharding).
    """

    def __init__(self, engine: Engine, types, job_type, shared_type, per_device: int, devices: list[Any]):
        self.lanes_per_device = per_device
        self.lanes = per_device * len(devices)
        mesh = jax.sharding.Mesh(np.array(devices), ("lane",))
        split, whole = PartitionSpec("lane"), PartitionSpec()
        self._sharding = NamedSharding(mesh, split)
        program = engine.program
        options = {"xla_cpu_use_fusion_emitters": False} if devices[0].platform == "cpu" else None

        def chunk(shared, problem, state):
            running = jax.vmap(program.running)

            def body(carry):
                i, useful, state = carry
                useful = useful + jnp.sum(running(state), dtype=jnp.int32)
                return i + 1, useful, jax.vmap(program.step, (None, 0, 0))(shared, problem, state)

            def more(carry):
                return (carry[0] < engine.chunk) & jnp.any(running(carry[2]))

            zero = jnp.zeros((), jnp.int32)
            i, useful, state = jax.lax.while_loop(more, body, (zero, zero, state))
            return problem, state, running(state), useful[None], i[None]

        def refill(shared, problem, state, jobs, mask):
            fresh = jax.vmap(engine._begin, (None, 0))(shared, jobs)

            def choose(new, old):
                return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            return jax.tree.map(choose, fresh, (problem, state))

        def build(function, in_specs, donate, *args):
            mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=split, check_vma=False)
            with jax.default_matmul_precision("highest"):
                # Said out loud, since arrays of size zero would come back without their sharding.
                jitted = jax.jit(mapped, donate_argnums=donate, out_shardings=self._sharding, compiler_options=options)
                return jitted.lower(*args).compile()

        problem, state = jax.tree.map(self._lane_type, types)
        jobs = jax.tree.map(self._lane_type, job_type)
        mask = jax.ShapeDtypeStruct((self.lanes,), bool, sharding=self._sharding)
        self.shared = jax.device_put(engine.shared, NamedSharding(mesh, whole))
        shared_type = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, whole)),
            shared_type,
        )
        self.chunk = build(chunk, (whole, split, split), (1, 2), shared_type, problem, state)
        self.refill = build(
            refill, (whole, split, split, split, split), (1, 2), shared_type, problem, state, jobs, mask
        )
        self.outcome = build(jax.vmap(program.outcome), (split, split), (), problem, state)
        self.blank = self.place(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (problem, state)))

    def _lane_type(self, leaf):
        return jax.ShapeDtypeStruct((self.lanes, *leaf.shape), leaf.dtype, sharding=self._sharding)

    def place(self, tree):
        """Arrays with the lanes as leading axis, each device holding its own."""
        return jax.device_put(tree, self._sharding)


def _deliver(finished: Finished | None, on_finished: Callable[[Finished], None]) -> None:
    if finished is not None:
        on_finished(finished)
