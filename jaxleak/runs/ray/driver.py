"""A sweep on a Ray cluster: the driver owns the run directory, workers are actors that may join, leave and die."""

import contextlib
import functools
import importlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from jaxleak.engine import EngineStats
from jaxleak.errors import InputError, check_not_negative, check_positive
from jaxleak.kernels.precision import dtype
from jaxleak.runs.ray.scheduler import Scheduler
from jaxleak.runs.ray.worker import Hello, Results, Worker
from jaxleak.runs.stop import finishing, unchanged

if TYPE_CHECKING:
    from jaxleak.runs.session import Session

ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
COLLECT_SECONDS = 1.0  # that a worker waits for something to end before it says that nothing did
REPLACEMENTS = 20  # workers that are started for lost ones before the driver gives up, for each that was asked for


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Cluster and resources of a sweep.

    Attributes:
        address: of a running cluster, as `ray.init` takes it ("auto", "HOST:PORT"); None starts one on this machine.
        workers: number of workers; those for which there is no room yet join when there is. None: as many as the
            cluster has room for at the start.
        gpus_per_worker: None: one where the cluster has any.
        cpus_per_worker: None: on a cluster with GPUs one; else an equal share of this machine's or the smallest node's.

    Example:
        >>> import jaxleak
        >>> jaxleak.Ray(workers=8)  # given to `run_sweep(..., on=)`
        Ray(address=None, workers=8, gpus_per_worker=None, cpus_per_worker=None)
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: int | None = None

    def __post_init__(self):
        for name in ("workers", "cpus_per_worker"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name), integer=True)
        if self.gpus_per_worker is not None:
            check_not_negative("gpus_per_worker", self.gpus_per_worker)


@dataclass(eq=False)
class _Member:
    """An actor that was started."""

    name: str
    actor: Any
    hello: Hello | None = None
    results: Results | None = None
    trials: int = 0


def run_on_ray(session: "Session", options: Ray, lanes: int | None) -> dict[str, Any]:
    """Run what is missing of the session's sweep; returns the summary, which is written too.

    Raises:
        InputError: Ray is not installed, no such cluster, or no worker can do it.
    """
    with _loopback() if options.address is None else contextlib.nullcontext():
        ray = _ray()
        began_here = not ray.is_initialized()
        if began_here:
            try:
                # Without an address Ray would take any cluster that it remembers on this machine.
                where = options.address or "local"
                with unchanged():  # what Ray does at SIGTERM would lose what is not written
                    ray.init(address=where, log_to_driver=False, include_dashboard=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(_unreachable(options.address, error)) from error
        try:
            driver = _Driver(ray, session, options, lanes)
            try:
                driver.work()
            finally:
                summary = driver.end()
        finally:
            if began_here:
                ray.shutdown()
        return summary


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """A cluster that is started inside listens on the loopback only, as does its driver: nobody else is to join.

    It is Ray's own setting for systems on which it runs on one machine only.
    """
    before = os.environ.get(ONE_MACHINE)
    os.environ[ONE_MACHINE] = "0"  # for Ray where it is not imported yet, and for the cluster's processes
    constants = sys.modules.get("ray._private.ray_constants")
    many = getattr(constants, "ENABLE_RAY_CLUSTER", True)
    if constants is not None:
        constants.ENABLE_RAY_CLUSTER = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        if before is None:
            del os.environ[ONE_MACHINE]
        else:
            os.environ[ONE_MACHINE] = before
        constants = sys.modules.get("ray._private.ray_constants")
        if constants is not None:
            constants.ENABLE_RAY_CLUSTER = many  # pyright: ignore[reportAttributeAccessIssue]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError("`on` ray needs Ray; install it with pip install 'jaxleak[ray]'.") from error
    return ray


def _unreachable(address: str | None, error: BaseException) -> str:
    """One line that says why the cluster is unreachable; Ray names a missing token only in an error's cause."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if any("InvalidAuthToken" in str(cause) for cause in causes):
        return (
            f"`ray_address` {address!r}: the cluster wants its token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
            "where ~/.ray/auth_token is not the cluster's (`ray get-auth-token` on its head prints it)."
        )
    message = " ".join(str(error).split())[:200]
    return f"`ray_address` {address!r}: no cluster can be reached ({message})."


class _Actor(Worker):
    """A worker that knows its node."""

    def hello(self) -> Hello:
        hello = super().hello()
        return hello._replace(host=f"{hello.host} ({_ray().util.get_node_ip_address()})")


def _name_of(function: Any) -> tuple[str, str, Any]:
    """Module and name of a jitted function; also the function without jit if no module has it under that name.

    Pickled by value, as is the default, such functions would lose their names, which identify models.
    """
    where = function.__module__, function.__qualname__
    try:
        importable = _named((*where, None)) is function
    except (ImportError, AttributeError):
        importable = False
    return (*where, None if importable else function.__wrapped__)


def _named(reference: tuple[str, str, Any]) -> Any:
    module, name, function = reference
    if function is not None:
        return jax.jit(function)
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


class _Driver:
    def __init__(self, ray: Any, session: "Session", options: Ray, lanes: int | None):
        self.ray, self.session, self.lanes = ray, session, lanes
        sweep = session.sweep
        self.scheduler = Scheduler(
            [sweep.jobs(number, session.done, session.run.shard).trial.tolist() for number in range(len(sweep.attacks))]
        )
        self.cpus, self.gpus, self.workers = _sizes(ray, options)
        ray.util.register_serializer(type(jax.nn.sigmoid), serializer=_name_of, deserializer=_named)
        self.sweep = ray.put(sweep)
        self.x64 = bool(jax.config.read("jax_enable_x64"))
        self.kind = ray.remote(max_concurrency=4, num_cpus=self.cpus, num_gpus=self.gpus)(_Actor)
        self.members: dict[Any, _Member] = {}  # by the call that has not returned
        self.everyone: list[_Member] = []  # that was started
        self.started = self.failed = 0
        self.refused: list[str] = []
        self.last = ""  # why the last one was lost
        self.began = time.monotonic()

    def work(self) -> None:
        """Run until nothing is left to do."""
        while not self.scheduler.finished:
            with finishing():  # an answer is not lost half taken
                self._look()

    def _look(self) -> None:
        """Hear what workers say, and give them more."""
        self._start_missing()
        ready, _ = self.ray.wait(list(self.members), timeout=0.5)
        for call in ready:
            self._answer(self.members.pop(call), call)
        done = self.scheduler.finished
        self.session.progress.update(f"ray, {len(self.scheduler.members)} workers", self._stats(), force=done)
        self.session.write_due()

    def _start_missing(self) -> None:
        wanted = self.workers - len(self.refused)  # where one was refused, another would be too
        if wanted <= 0 and not self.members:
            raise InputError(f"`on` ray: no worker can be used. {self.refused[-1]}")
        while len(self.members) < wanted:
            if self.failed > REPLACEMENTS * self.workers:
                raise InputError(f"`on` ray: {self.failed} workers were lost, the last one because {self.last}.")
            name = f"worker-{self.started}"
            self.started += 1
            cores = self.cpus if not self.gpus else None
            actor = self.kind.remote(self.sweep, self.x64, self.lanes, cores)
            asked = actor.hello.remote()
            self.members[asked] = _Member(name, actor)
            self.everyone.append(self.members[asked])

    def _answer(self, member: _Member, call: Any) -> None:
        """Take what a worker returned, or note that the worker died."""
        now = time.monotonic()
        try:
            answer: Hello | Results = self.ray.get(call)
        except Exception as error:  # whatever Ray raises of an actor that died, or the actor itself
            self._lost(member, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
            return
        if isinstance(answer, Hello):
            member.hello = answer
            if self._is_refused(member):
                return
            self.scheduler.join(member.name, member.hello.lanes, now)
            self.session.progress.say(f"{member.name} joined: {member.hello.host}, {member.hello.made['device']}")
        else:
            before, member.results = member.results, answer
            if answer.lanes and not (before and before.lanes):
                message = f"{answer.lanes} lanes after {answer.compile_seconds:.0f} s of compiling"
                self.session.progress.say(f"{member.name} computes: {message}")
            if answer.lanes:
                self.scheduler.resize(member.name, answer.lanes)
            self._store(member, now)
            if answer.error is not None:
                self._lost(member, answer.error)
                return
        block = self.scheduler.next_block(member.name, now)
        if block is not None:
            member.actor.give.remote(block.attack, block.trials)
        self.members[member.actor.collect.remote(COLLECT_SECONDS)] = member

    def _store(self, member: _Member, now: float) -> None:
        assert member.hello is not None
        assert member.results is not None
        for attack, finished in member.results.finished:
            member.trials += len(self.scheduler.returns(member.name, finished.jobs.trial.tolist(), now))
            self.session.take(self.session.sweep.attacks[attack], finished, member.hello.made)

    def _is_refused(self, member: _Member) -> bool:
        """True if the worker would give other results; it is then reported and not used."""
        assert member.hello is not None
        here, there = self.session.here, member.hello.made
        pairs = {
            "jax": (here["jax_version"], there["jax_version"]),
            "jaxleak": (here["jaxleak_version"], there["jaxleak_version"]),
            "precision": (dtype(), member.hello.dtype),
            "settings": (self.session.run.settings_hash, member.hello.settings_hash),
        }
        wrong = [f"{name} {theirs} instead of {ours}" for name, (ours, theirs) in pairs.items() if ours != theirs]
        if wrong:
            line = f"{member.name} on {member.hello.host} is not used: {', '.join(wrong)}."
            self.refused.append(line)
            self.session.progress.say(line)
            self.ray.kill(member.actor)
        return bool(wrong)

    def _lost(self, member: _Member, reason: str) -> None:
        self.failed, self.last = self.failed + 1, reason
        if member.name not in self.scheduler.members:
            self.session.progress.say(f"{member.name} did not start: {reason}")
            return
        held = len(self.scheduler.members[member.name].held)
        given_up = self.scheduler.leave(member.name)
        self.session.progress.say(f"{member.name} is lost, {held} trials begin again: {reason}")
        sweep = self.session.sweep
        per_attack = sweep.victim.updates * sweep.seeds
        for number, attack in enumerate(sweep.attacks):
            trials = [trial for trial in given_up if trial // per_attack == number]
            if trials:
                self.session.lose(attack, trials, reason)

    def _stats(self) -> EngineStats:
        """Counters of the whole cluster, for one line of progress."""
        seen = [member.results for member in self.everyone if member.results is not None]
        return EngineStats(
            trials_running=self.scheduler.held,
            trials_waiting=self.scheduler.waiting,
            steps_useful=sum(results.evaluations for results in seen),
            steps_total=sum(results.steps_total for results in seen),
            seconds=time.monotonic() - self.began,
        )

    def end(self) -> dict[str, Any]:
        """Write the trials that arrived, and the summary."""
        for member in self.members.values():
            self.ray.kill(member.actor)
        self.session.flush()
        everyone = [member for member in self.everyone if member.results is not None]
        stats = self._stats()
        stats.compile_seconds = sum(member.results.compile_seconds for member in everyone if member.results)
        workers = [_told(member) for member in everyone]
        return self.session.end(stats if everyone else None, engine={"host_share": None}, workers=workers)


def _told(member: _Member) -> dict[str, Any]:
    """A worker in `summary.json`."""
    assert member.hello is not None
    assert member.results is not None
    seconds, total = member.results.seconds, member.results.steps_total
    return {
        "name": member.name,
        "host": member.hello.host,
        "device": member.hello.made["device"],
        "trials": member.trials,
        "lanes": member.results.lanes,
        "evaluations_per_second": member.results.evaluations / seconds if seconds else 0.0,
        "utilisation": member.results.evaluations / total if total else 0.0,
        "compile_seconds": member.results.compile_seconds,
    }


def _sizes(ray: Any, options: Ray) -> tuple[int, float, int]:
    """CPUs and GPUs of a worker, and how many workers."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = options.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) for node in nodes) else 0.0
    cpus = options.cpus_per_worker
    if cpus is None:
        smallest = int(min(node.get("CPU", 1) for node in nodes))
        share = -(-options.workers // len(nodes)) if options.workers else 1
        cpus = 1 if gpus else max(1, smallest // share)
    room = sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else node.get("CPU", 0) // cpus))
        for node in nodes
    )
    workers = options.workers or room
    if workers < 1:
        raise InputError(
            f"`on` ray: no node has {cpus} CPUs and {gpus:g} GPUs for a worker; change --cpus-per-worker or "
            "--gpus-per-worker."
        )
    return cpus, gpus, workers
