"""`jaxleak bench`: the worker's protocol, the other variants' arithmetic, how turns are taken, and the report."""

import importlib
import itertools
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxleak.engine
from jaxleak.attacks.presets import ATTACKS
from jaxleak.bench import (
    command,
    estimate,
    machine,
    phases,
    plain_vmap,
    plan,
    protocol,
    report,
    runner,
    steps,
    tables,
    variants,
    worker,
    workers,
)
from jaxleak.bench.settings import COSINE, MODELS, OURS, PHASES, PYTORCH, USUAL, VARIANTS, Settings
from jaxleak.engine.choice import first_lanes
from jaxleak.errors import InputError
from jaxleak.models import build_model
from jaxleak.models.weights import to_torch
from jaxleak.results.verdict import Criteria
from jaxleak.solvers import TorchLBFGS
from tests.oracles import cases
from tests.oracles.parity import load
from tests.oracles.require_torch import require_torch

TINY = Settings(image_size=8, num_classes=3, history=4, iterations=2)
ABOUT = {"platform": "cpu", "devices": 2, "device": "cpu", "held_bytes": 0}


class NoRequestError(Exception):
    """The parent has no further request."""


class FakeLink:
    """A parent that asks a few times for the shortest measurement."""

    def __init__(self, requests: int = 2):
        self.sent: list[dict[str, Any]] = []
        self._left = requests

    def receive(self) -> dict[str, Any]:
        if self._left == 0:
            raise NoRequestError
        self._left -= 1
        return {"measure": 1e-9}

    def send(self, **message: Any) -> None:
        self.sent.append(message)


# --- the worker's end ---


def test_meter_counts_between_the_end_of_the_first_unit_and_the_end_of_the_last():
    link = FakeLink(requests=3)
    meter = protocol.Meter(link)
    meter.wait({"lanes": 3})
    assert not meter.tick(10, 12)  # the first unit after a wait is not counted
    assert not meter.tick(10, 12)  # nothing happened
    assert meter.tick(35, 62)
    meter.wait()
    assert not meter.tick(100, 100)
    assert meter.tick(101, 105)
    meter.wait()
    ready, first, second = link.sent
    assert ready["ready"]["lanes"] == 3
    assert (first["measured"]["evaluations"], first["measured"]["lane_iterations"]) == (25, 50)
    assert (second["measured"]["evaluations"], second["measured"]["lane_iterations"]) == (1, 5)
    assert first["measured"]["seconds"] > 0
    # A Python process holds some ten megabytes at least, and this one less than the machine has.
    assert 1e7 < ready["ready"]["peak_bytes"] < 1e12


def test_meter_begins_when_warm(monkeypatch):
    clock = iter([0.0, 1.0, 2.5, 3.0, 4.5, 5.0])
    monkeypatch.setattr(protocol, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    link = FakeLink()
    link.receive = lambda: {"measure": 4.0}
    meter = protocol.Meter(link, warm=2.0)
    meter.wait({})
    assert [meter.tick(count, 2 * count) for count in (1, 2, 3, 10)] == [False, False, False, True]
    meter.wait()
    measured = link.sent[-1]["measured"]
    assert (measured["evaluations"], measured["lane_iterations"], measured["seconds"]) == (8, 16, 2.0)


def test_meter_counts_for_half_of_the_time_at_least(monkeypatch):
    """Long units, or several at once: the first tick may come when the time is over."""
    clock = iter([0.0, 5.0, 5.1, 6.9, 7.0])
    monkeypatch.setattr(protocol, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    link = FakeLink()
    link.receive = lambda: {"measure": 4.0}
    meter = protocol.Meter(link)
    meter.wait({})
    assert [meter.tick(count, count) for count in (1, 2, 3, 4)] == [False, False, False, True]


@pytest.mark.parametrize("name", ["plain-vmap", pytest.param("jaxopt", marks=pytest.mark.slow)])
def test_a_loop_counts_its_steps(name):
    link = FakeLink()
    with pytest.raises(NoRequestError):
        worker.run_loop(TINY.plain(), name, 3, dict(ABOUT), link)
    ready, *measured = (next(iter(message.values())) for message in link.sent)
    assert ready["lanes"] == 3
    floats = 2 * TINY.history * (8 * 8 * 3 + 3)  # the history of one lane, and its candidate a few times over
    assert 4 * floats < ready["memory_per_lane"] < 4 * floats * 100
    assert ready["compile_seconds"] > 0
    for counts in (one for one in measured):
        assert counts["lane_iterations"] % 3 == 0
        assert counts["lane_iterations"] > 0
        if name == "plain-vmap":
            assert counts["evaluations"] == counts["lane_iterations"]
        else:  # a line search evaluates at least once
            assert counts["evaluations"] >= counts["lane_iterations"]


class FakeEngine:
    """An engine whose search tries 8, 16 and 4 lanes on two devices, a chunk each, and ends with 16."""

    settles = True
    made: Any = None

    def __init__(self, program, shared, *, lanes):
        self.lanes, self.best = lanes, None
        self.stats = SimpleNamespace(steps_total=0, steps_useful=0, lanes=0, devices=2, compile_seconds=1.0)
        self.measured: list[list[int]] = []  # the lanes of every chunk, by run
        self.joined = False
        FakeEngine.made = self

    def run(self, jobs, on_finished, on_chunk):
        self.measured.append([])
        search = iter([8, 16, 4])
        if self.lanes is None and len(self.measured) == 1:
            threading.Thread(target=self._compile).start()
        while True:
            self.stats.lanes = next(search, 16) if self.lanes is None else self.lanes
            self.measured[-1].append(self.stats.lanes)
            self.stats.steps_total += 10 * self.stats.lanes
            self.stats.steps_useful += 9 * self.stats.lanes
            if self.lanes is None and self.settles and len(self.measured[-1]) == 3:
                self.best = 8
            on_chunk()

    def _compile(self):
        time.sleep(0.1)
        self.joined = True

    def trace(self, job_type):
        return None

    def compile(self, traced, devices, lanes):
        return [SimpleNamespace(bytes_per_lane=lanes)]


@pytest.fixture
def fake_engine(monkeypatch):
    nothing = {"shared": lambda: None, "prepare": lambda shared, job: None}
    trial = SimpleNamespace(attack=SimpleNamespace(solver=None), **nothing)
    monkeypatch.setattr(variants, "trial", lambda settings, name: trial)
    monkeypatch.setattr(jaxleak.engine, "Engine", FakeEngine)
    monkeypatch.setattr(worker, "ENGINE_WARM", 0.0)


def engine_answers(lanes: Any) -> tuple[dict[str, Any], FakeEngine]:
    link = FakeLink(requests=3)
    with pytest.raises(NoRequestError):
        worker.run_engine(TINY.plain(), "jaxleak", lanes, "", dict(ABOUT), link)
    return link.sent[0]["ready"], FakeEngine.made


def test_auto_settles_before_the_clock_starts(fake_engine):
    ready, engine = engine_answers("auto")
    assert (ready["lanes"], ready["settled"], ready["memory_per_lane"]) == (16, True, 8)
    warm, *measured = engine.measured
    assert warm == [8, 16, 4]
    assert measured
    assert {lanes for run in measured for lanes in run} == {16}
    assert engine.joined  # what the search still compiled has ended


def test_a_search_that_does_not_settle_is_stopped(fake_engine, monkeypatch):
    seconds = itertools.count()  # each look at the clock takes one
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    monkeypatch.setattr(worker, "SEARCH_SECONDS", 8)
    monkeypatch.setattr(FakeEngine, "settles", False)
    ready, engine = engine_answers("auto")
    assert (ready["lanes"], ready["settled"]) == (16, False)
    assert {lanes for run in engine.measured[1:] for lanes in run} == {16}


@pytest.mark.parametrize(("asked", "lanes"), [(6, 6), (None, 2 * first_lanes(jax.devices()[0]))])
def test_lanes_that_are_asked_for_or_known_to_be_good_are_not_searched(fake_engine, asked, lanes):
    ready, engine = engine_answers(asked)
    assert (ready["lanes"], ready["settled"]) == (lanes, True)
    assert {count for run in engine.measured for count in run} == {lanes}


def test_the_cosine_variant_is_inverting_gradients():
    trial = variants.trial(TINY.plain(), "jaxleak-cosine")
    assert trial.attack == ATTACKS["ig"]
    assert (trial.victim.network, trial.threshold) == ("shared", Criteria().cosine)
    trial.check()


@pytest.mark.parametrize("variant", ["jaxleak", "jaxleak-cosine"])
def test_a_phase_moves_no_further_than_it_should(variant):
    """What is measured is computed: the parts of a step leave the candidate alone, but for the solver's own."""
    trial = variants.trial(TINY.plain(), variant)
    shared, job = trial.shared(), jax.tree.map(lambda leaf: leaf[0], variants.jobs(TINY.plain()))
    programs = {phase: phases.PhaseProgram(trial=trial, phase=phase) for phase in PHASES}

    @jax.jit
    def run():
        problem = programs["step"].prepare(shared, job)
        state = programs["step"].init(shared, problem, job)
        return state, {phase: program.step(shared, problem, state) for phase, program in programs.items()}

    before, after = run()
    for phase, state in after.items():
        assert bool(programs[phase].running(state))
        moved = not np.allclose(before.solver.x, state.solver.x, rtol=0, atol=1e-20)
        assert moved == (phase in ("solver", "step")), phase
    assert int(after["step"].evaluations) == 1


def test_the_machine_is_measured():
    link = FakeLink(requests=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "MATRIX", {"cpu": 64, "gpu": 64})
        patch.setattr(machine, "COPIED", dict.fromkeys(machine.COPIED, 1 << 16))
        with pytest.raises(NoRequestError):
            machine.measure(Settings().plain(), dict(ABOUT), link)
    ready, measured = link.sent[0]["ready"], link.sent[1]["measured"]
    assert ready["width"] is None
    # Multiplications and additions of DLG's LeNet on 32x32x3 with 100 classes: forward f, gradient 3 f less the first
    # layer's input gradient, and the gradient of that 4 f less the same. XLA leaves out products with padding.
    first = 2 * 16 * 16 * 12 * 75
    forward = first + 2 * 2 * (8 * 8 * 12 * 300) + 2 * 768 * 100
    solver = 8 * 100 * 3172
    assert 0.8 < (ready["evaluation"]["flops"] - solver) / (7 * forward - 2 * first) < 1.05
    assert ready["evaluation"]["bytes"] == 4 * 4 * 100 * 3172
    # Between a pocket calculator and the largest computers.
    assert all(1e6 < rate < 1e18 for rate in measured.values())
    assert measured.keys() == {"flops_per_second", "bytes_per_second", "cached_bytes_per_second"}


# --- the other variants ---


def test_two_loop_lbfgs_is_torchs_without_its_tests():
    """On a function whose curvature changes, with a history shorter than the run."""
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(6, 6)) / 3 + np.eye(6))
    fun = jax.value_and_grad(lambda x: jnp.sum(jnp.square(a @ x)) / 2 + jnp.sum(jnp.cos(x)) / 4)
    x = jnp.asarray(rng.normal(size=6))
    solver = TorchLBFGS(history=4)
    theirs, ours = solver.init(fun, x), plain_vmap.lbfgs_init(x, 4)
    ours_step = jax.jit(lambda k, state: plain_vmap.lbfgs_step(fun, k, state))
    theirs_step = jax.jit(lambda state: solver.step(fun, state)[0])
    for k in range(9):
        theirs, ours = theirs_step(theirs), ours_step(k, ours)
        np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-9, atol=1e-12)
    assert float(fun(ours.x)[0]) < float(fun(x)[0]) - 0.1


@pytest.mark.parametrize("model", ["lenet", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_stock_models_and_objective_are_jaxleaks(model):
    """With jaxleak's parameters, so that every one has its place in the stock model too."""
    size = {"lenet": 8, "resnet18": 16}[model]  # BatchNorm needs two values per channel in the last stage
    settings = replace(TINY, model=model, width=None if model == "lenet" else 2, image_size=size).plain()
    trial = variants.trial(settings)
    shared, job = trial.shared(), jax.tree.map(lambda leaf: leaf[0], variants.jobs(settings))
    stock = plain_vmap.LeNet(3) if model == "lenet" else plain_vmap.ResNet18(3, 2)
    flat = jnp.asarray(np.random.default_rng(1).normal(size=size * size * 3 + 3))
    unflatten = ravel_pytree(plain_vmap.Candidate(jnp.zeros((1, size, size, 3)), jnp.zeros((1, 3))))[1]

    @jax.jit
    def both():
        problem = trial.prepare(shared, job)
        objective = plain_vmap.matching_objective(stock, shared.params, problem.update)
        stock_objective = jax.value_and_grad(lambda x: objective(unflatten(x)))
        return trial.attacker.objective(shared, problem)(flat), stock_objective(flat)

    (value, gradient), (stock_value, stock_gradient) = both()
    assert float(value) == pytest.approx(float(stock_value), rel=1e-6)
    # Stock BatchNorm's variance is E[x^2] - E[x]^2, and its statistics are float32.
    np.testing.assert_allclose(gradient, stock_gradient, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(gradient))))


def torch_loop(name: str = "pytorch_loop") -> Any:
    require_torch()
    return importlib.import_module(f"jaxleak.bench.{name}")


def torch_network(image_size: int, **fields: Any) -> Any:
    settings = Settings(image_size=image_size, **fields)
    return torch_loop("networks.build").build(*settings.network(), (image_size, image_size, 3))


@pytest.mark.torch
def test_onednn_is_off_where_the_variant_says_so(monkeypatch):
    loop, torch = torch_loop(), require_torch()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)
    made = plan.Plan(settings=TINY, cores=2, has_torch=True)
    for name, there in (("pytorch-no-onednn", False), ("pytorch-processes", True), ("pytorch-serial", True)):
        module, (task, *_) = made.tasks(workers.Entry(name))
        loop.prepare_torch(task | {"threads": 1})
        assert (module, torch.backends.mkldnn.enabled) == ("jaxleak.bench.pytorch_loop", there), name


@pytest.mark.torch
def test_the_torch_loop_is_the_oracles():
    loop, torch = torch_loop(), require_torch()
    from tests.oracles.torch_dlg import run_attack
    from tests.oracles.torch_lenet import dlg_gradient, lenet_from

    case = next(case for case in cases.lenet_cases() if case.name == "rgb16")
    theirs = lenet_from(case.state_dict, 16, 16)
    ours = torch_network(16, num_classes=case.num_classes).to(torch.float64)
    ours.load_state_dict(theirs.state_dict())
    image, label = torch.from_numpy(case.image_nchw), torch.tensor([case.label])
    problem = loop.Problem(ours, image, torch.nn.functional.one_hot(label, case.num_classes).double())
    update = dlg_gradient(theirs, image, label)
    for mine, other in zip(problem.update, update, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    start = torch.from_numpy(case.candidate_image_nchw), torch.from_numpy(case.candidate_logits)
    restarts = loop.Restarts(problem, image=image, logits=start[1], solver="lbfgs", history=100, iterations=2)
    steps = sum(1 for _ in restarts.restart(*start))
    trace = run_attack(theirs, update, *start, iterations=2)
    assert (steps, restarts.evaluations) == (2, trace.closure_calls[-1])
    assert restarts.iterations == trace.inner_iterations[-1]
    torch.testing.assert_close(restarts.image.detach(), torch.from_numpy(trace.image[-1]), rtol=1e-6, atol=1e-8)


@pytest.mark.torch
def test_the_torch_loop_with_adam_counts_its_steps():
    loop, torch = torch_loop(), require_torch()
    torch.manual_seed(0)
    label = torch.tensor([[0.0, 1.0, 0.0]])
    problem = loop.Problem(torch_network(16, model="resnet18", width=2, num_classes=3), torch.rand(1, 3, 16, 16), label)
    image, logits = torch.empty(1, 3, 16, 16), torch.empty(1, 3)
    restarts = loop.Restarts(problem, image=image, logits=logits, solver="adam", history=1, iterations=3)
    before = []
    for number, _ in zip(range(5), restarts.run(), strict=False):
        assert restarts.evaluations == restarts.iterations == number + 1
        before.append(restarts.image.detach().clone())
    assert float((before[1] - before[0]).abs().max()) == pytest.approx(0.1, rel=0.2)  # Adam's steps are its rate
    assert float((before[3] - before[2]).abs().max()) > 0.5  # a fresh start after the third


@pytest.mark.torch
def test_the_torch_loop_inverts_gradients_as_the_oracles():
    loop, torch = torch_loop(), require_torch()
    from tests.oracles import torch_objectives
    from tests.oracles.torch_first_order import run_adam
    from tests.oracles.torch_lenet import dlg_gradient, lenet_from

    case = next(case for case in cases.lenet_cases() if case.name == "rgb16")
    net = lenet_from(case.state_dict, 16, 16)
    image, label = torch.from_numpy(case.image_nchw), torch.tensor([case.label])
    problem = loop.Problem(net, image, torch.nn.functional.one_hot(label, case.num_classes).double())
    parameters, update = list(net.parameters()), dlg_gradient(net, image, label)

    def value(x):
        loss = torch.nn.functional.cross_entropy(net(x), label)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        return torch_objectives.cosine_distance(gradient, update) + 1e-4 * torch_objectives.total_variation(x)

    start = torch.from_numpy(case.candidate_image_nchw)
    assert problem.cosine(start).item() == pytest.approx(value(start).item(), rel=1e-12)
    restarts = loop.Restarts(
        problem, image=image, logits=torch.empty(1, 3), solver="signed-adam", history=1, iterations=8
    )
    images = [restarts.image.detach().numpy().copy() for _ in restarts.invert(start)]
    assert (restarts.evaluations, restarts.iterations) == (8, 8)
    wanted = run_adam(value, start.numpy(), steps=8, lr=0.1, sign="hard", schedule="step", box=(0, 1))
    np.testing.assert_allclose(np.stack(images), wanted[1:], rtol=0, atol=1e-12)
    assert (restarts.image.min(), restarts.image.max()) == (0, 1)
    for _ in zip(range(9), restarts.run(), strict=False):  # the ninth is of a fresh start
        pass
    assert restarts.evaluations == 17


@pytest.mark.torch
@pytest.mark.parametrize("history", [100, 5])
def test_batched_restarts_are_torchs_one_by_one(history):
    """40 evaluations and moves in float64. With a history of 5, pairs are dropped, and some do not enter."""
    loop, vmapped, torch = torch_loop(), torch_loop("pytorch_vmap"), require_torch()
    from tests.oracles.torch_lenet import lenet_from

    case = next(case for case in cases.lenet_cases() if case.name == "rgb16")
    image, label = torch.from_numpy(case.image_nchw), torch.tensor([case.label])
    label = torch.nn.functional.one_hot(label, case.num_classes).double()
    problem = loop.Problem(lenet_from(case.state_dict, 16, 16), image, label)
    torch.manual_seed(0)
    starts = torch.randn(5, image.numel() + case.num_classes, dtype=torch.float64)
    fields = {"image": image, "solver": "lbfgs", "history": history}
    batch = vmapped.Batch(problem, x=starts.clone(), iterations=3, **fields)
    for _ in range(40):
        batch.step()
    assert batch.evaluations == 40 * 5
    for start, ours in zip(starts, batch.x, strict=True):
        alone = loop.Restarts(problem, logits=label, iterations=2, **fields)
        parts = start[: image.numel()].view_as(image), start[None, image.numel() :]
        assert sum(1 for _ in alone.restart(*parts)) == 2
        theirs = torch.cat([alone.image.flatten(), alone.logits.flatten()]).detach()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    smallest = batch._solver.rho.abs().amin(0)
    assert history == 100 or bool((smallest > 0).all())  # full, where a pair did not enter too


@pytest.mark.torch
def test_batched_restarts_with_adam_are_torchs_one_by_one():
    """On a ResNet, whose BatchNorm has statistics of each restart's own."""
    loop, vmapped, torch = torch_loop(), torch_loop("pytorch_vmap"), require_torch()
    torch.manual_seed(0)
    image, label = torch.rand(1, 3, 16, 16).double(), torch.tensor([[0.0, 1.0, 0.0]]).double()
    network = torch_network(16, model="resnet18", width=2, num_classes=3)
    problem = loop.Problem(network.double(), image, label)
    starts = torch.randn(2, image.numel() + 3, dtype=torch.float64)
    fields = {"image": image, "solver": "adam", "history": 1, "iterations": 4}
    batch = vmapped.Batch(problem, x=starts.clone(), **fields)
    for _ in range(3):
        batch.step()
    for start, ours in zip(starts, batch.x, strict=True):
        alone = loop.Restarts(problem, logits=label, **fields)
        for _ in zip(range(3), alone.restart(start[:-3].view_as(image), start[None, -3:]), strict=False):
            pass
        theirs = torch.cat([alone.image.flatten(), alone.logits.flatten()]).detach()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    before = batch.x.clone()
    batch.step()  # the fourth and last: both start afresh
    assert bool((batch._solver.age == 0).all())
    assert float((batch.x - before).abs().max()) > 0.5


@pytest.mark.torch
def test_batched_restarts_that_ended_make_room():
    vmapped, torch = torch_loop("pytorch_vmap"), require_torch()
    torch.manual_seed(0)
    settings = replace(TINY, num_classes=4)
    problem, image = torch_loop().problem_of({"settings": settings.plain(), "network": settings.network()})
    x = torch.randn(4, image.numel() + 4)
    x[1] = float("nan")
    batch = vmapped.Batch(problem, image=image, x=x, solver="lbfgs", history=4, iterations=3)
    for _ in range(19):
        batch.step()
    assert bool(batch.x[1].isnan().all())
    batch.step()
    ages = batch._solver.age.tolist()
    assert ages[1] == 0
    assert set(ages) <= {0, 20}
    assert bool(batch.x.isfinite().all())
    for _ in range(5):
        batch.step()
    assert bool(batch.x[1].isfinite().all())
    for _ in range(35):
        batch.step()
    assert max(batch._solver.age.tolist()) <= 40  # the last iteration of those that began first


@pytest.mark.torch
def test_the_fastest_number_of_restarts_is_found(monkeypatch):
    vmapped = torch_loop("pytorch_vmap")
    now, seconds = [0.0], {16: 0.1, 32: 0.15, 64: 0.4, 128: 0.7}

    class Fake:
        def __init__(self, lanes):
            self.lanes, self.evaluations = lanes, 0

        def step(self):
            self.evaluations += self.lanes
            now[0] += seconds[self.lanes]

    monkeypatch.setattr(vmapped, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert vmapped.fastest(Fake, (16, 32, 64, 128, 256)) == 32


# --- the parent's end ---

SMALL_WORKER = """
import sys
from jaxleak.bench.protocol import Meter, serve

def work(task, link):
    print("a library says something")
    if task["fails"]:
        raise ValueError("out of\\nluck")
    count = 0
    meter = Meter(link)
    meter.wait({"lanes": 1, "compile_seconds": task["number"]})
    while True:
        count += 2
        if meter.tick(count, count / 2):
            meter.wait()
        if task["dies"]:
            sys.exit("no more")

serve(work)
"""


@pytest.fixture
def small(tmp_path, monkeypatch) -> str:
    (tmp_path / "small_worker.py").write_text(SMALL_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "small_worker"


def task(number: float = 1.0, *, fails: bool = False, dies: bool = False) -> dict[str, Any]:
    return {"number": number, "fails": fails, "dies": dies}


def test_a_team_is_summed(small):
    team = workers.Team(small, [task(1), task(2)])
    try:
        team.wait()
        assert (team.ready["lanes"], team.ready["compile_seconds"]) == (2, 2)
        for _ in range(2):
            measured = team.measure(0.01)
            assert measured["evaluations_per_second"] == pytest.approx(2 * measured["lane_iterations_per_second"])
            assert measured["evaluations_per_second"] > 0
            assert measured["seconds"] > 0.005
    finally:
        team.close()
        team.close()  # ended twice is ended


def test_a_worker_that_fails_says_why(small):
    failing = workers.Team(small, [task(), task(fails=True)]), workers.Team("nowhere", [{}])
    for team, words in zip(
        failing, (r"^ValueError: out of luck$", "ended with code 1: .*No module named"), strict=True
    ):
        with pytest.raises(workers.WorkerError, match=words):
            team.wait()
        team.close()
    team = workers.Team(small, [task(dies=True)])
    team.wait()
    with pytest.raises(workers.WorkerError, match="ended with code 1: no more"):
        team.measure(0.01)
    team.close()


# --- taking turns ---

RATES = {"pytorch-processes": 400.0, "pytorch-serial": 200.0, "plain-vmap": 300.0, "jaxopt": 500.0}
RATES |= {"pytorch-cosine-processes": 100.0, "pytorch-vmap": 600.0, "pytorch-no-onednn": 450.0}


class FakeTeam:
    """Rates that are known: ours grow with the lanes, plain-vmap's are best at 4 lanes."""

    log: list[tuple[str, Any, float]] = []  # noqa: RUF012
    open = 0
    now = 0.0  # the clock, seconds
    late = 0.0  # by which every measurement outlasts what was asked for
    fails: dict[str, int] = {}  # noqa: RUF012  (variant: at its how manieth measurement)
    interrupt_after = 10**9

    def __init__(self, module, tasks):
        task = tasks[0]
        self.name = task["variant"]
        self.lanes = task.get("lanes")
        self.phase = task.get("phase", "")
        lanes = {"auto": 6, None: 8 if self.name in OURS else len(tasks)}.get(self.lanes, self.lanes)
        self.ready = {**ABOUT, "lanes": lanes, "compile_seconds": 1.5, "width": None, "versions": {"other": "1"}}
        self.ready["evaluation"] = {"flops": 1e7, "bytes": 5e6}
        self.count = -1  # the first look is 0
        FakeTeam.open += 1

    def wait(self):
        FakeTeam.now += 3.0

    def measure(self, seconds):
        FakeTeam.log.append((self.name, self.lanes, seconds))
        FakeTeam.now += seconds + FakeTeam.late
        self.count += 1
        if len(FakeTeam.log) > FakeTeam.interrupt_after:
            raise KeyboardInterrupt
        if FakeTeam.fails.get(self.name) == self.count:
            raise workers.WorkerError("gone")
        if self.name == "machine":
            return {"flops_per_second": 1e11, "bytes_per_second": 1e10, "cached_bytes_per_second": 5e10}
        rate = RATES.get(self.name, 4000.0)
        if self.name == "plain-vmap":
            rate -= abs(self.lanes - 4)
        if self.phase:
            rate = {"objective": 8000.0, "objective-and-gradient": 5000.0, "solver": 10000.0, "step": 2500.0}[
                self.phase
            ]
        useful = 0.9 if self.name in OURS and not self.phase else 1.0
        rate += self.count  # no round is like the other
        return {
            "evaluations_per_second": useful * rate,
            "lane_iterations_per_second": rate,
            "seconds": seconds,
            "peak_bytes": 1 << 30,
        }

    def close(self):
        FakeTeam.open -= 1


@pytest.fixture(autouse=True)
def fake_team(monkeypatch):
    monkeypatch.setattr(FakeTeam, "log", [])
    monkeypatch.setattr(FakeTeam, "open", 0)
    monkeypatch.setattr(FakeTeam, "fails", {})
    monkeypatch.setattr(FakeTeam, "interrupt_after", 10**9)
    monkeypatch.setattr(FakeTeam, "now", 0.0)
    monkeypatch.setattr(FakeTeam, "late", 0.0)
    return FakeTeam


@pytest.fixture
def fake(monkeypatch, fake_team):
    """No process is started, PyTorch is said to be installed, and there are two cores."""
    monkeypatch.setattr(runner, "Team", FakeTeam)
    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: FakeTeam.now))
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(runner.Bench, "has_torch", True)
    monkeypatch.setattr(estimate, "pace", lambda: 1.0)
    return fake_team


def measure(settings: Settings, say: Any = lambda line: None) -> dict[str, Any]:
    bench = runner.Bench(settings, say)
    bench.run()
    return bench.result()


def test_it_is_said_how_long_it_takes_before_anything_is_started(fake, monkeypatch):
    monkeypatch.setattr(estimate, "COSTS", dict.fromkeys(estimate.COSTS, 6.0))
    said: list[tuple[int, str]] = []
    measure(Settings(seconds=100), lambda line: said.append((fake.open, line)))
    # Sixteen processes, eight a core.
    assert said[0] == (0, "about 2 min 30 s in all: 50 s to start and compile 11 variants, 100 s to measure them")
    assert "ready after" in said[1][1]
    (left,) = (line for _, line in said if "to go" in line)
    # By then five of the processes took 12 seconds, and 3 more were measured.
    assert left == "about 2 min 5 s to go, 25 s of it to start the others"
    assert said[-1] == (0, "100 s measured, 36 s to start, compile and choose lanes")


def test_a_first_number_is_there_soon(fake):
    """One of PyTorch's and one of jaxleak's are started and looked at before most others are started."""
    said: list[str] = []
    measure(Settings(), said.append)
    looks = [line.split(":")[0] for line in said if "first look" in line]
    assert looks[:2] == ["pytorch-processes", "jaxleak"]
    assert sum("ready after" in line for line in said[: said.index(next(s for s in said if "first look" in s))]) == 2


def test_seconds_are_what_is_measured(fake):
    """Measurements outlast what is asked of them: less is asked, or fewer rounds are made."""
    fake.late = 0.6
    result = measure(Settings(seconds=100))
    assert result["measured_seconds"] == pytest.approx(100)
    assert result["setup_seconds"] == pytest.approx(36)
    assert fake.now == pytest.approx(136)
    assert [len(row["rounds"]) for row in result["variants"]] == [5] * 11
    asked = [seconds for _, _, seconds in fake.log]
    assert min(asked) >= runner.SHORTEST
    assert max(asked) - min(asked[11:]) < 0.3
    fake.late = 2.0
    result = measure(Settings(seconds=100))
    assert 80 < result["measured_seconds"] <= 100.1
    assert [len(row["rounds"]) for row in result["variants"]] == [2] * 11
    fake.late = 60.0
    said: list[str] = []
    result = measure(Settings(seconds=100), said.append)  # one round there is, whatever it takes
    assert [len(row["rounds"]) for row in result["variants"]] == [1] * 11
    assert any("no more than 1 of 5 rounds" in line for line in said)


def test_what_starts_together(fake):
    settings = Settings(lanes=(4, "auto"))
    made = plan.Plan(settings=settings, cores=2, has_torch=True)
    waves = list(made.waves({name: made.entries(name) for name in settings.only}))
    assert [[entry.name for entry in wave] for wave in waves[:2]] == [
        ["pytorch-processes"],
        ["jaxleak", "pytorch-serial"],
    ]
    alone = [wave for wave in waves if any(entry.lanes == "auto" for entry in wave)]
    assert alone == waves[-5:]
    assert [len(wave) for wave in alone] == [1] * 5  # jaxleak's four and pytorch-vmap
    for wave in waves:
        assert len(wave) == 1 or sum(map(made.processes, wave)) <= 2
    started = [(entry.name, entry.lanes) for wave in waves for entry in wave]
    assert len(started) == len(set(started)) == 11 + 5
    on_gpu = plan.Plan(settings=Settings(), cores=2, has_torch=True, on_gpu=True)
    assert [entry.lanes for entry in on_gpu.entries("jaxleak")] == list(plan.GPU_LANES)
    module, (task,) = on_gpu.tasks(*on_gpu.entries("pytorch-vmap"))
    assert (module, task["device"], task["lanes"]) == ("jaxleak.bench.pytorch_vmap", "cuda", None)
    module, tasks = made.tasks(workers.Entry("pytorch-vmap", 33))
    assert [(task["lanes"], task["threads"]) for task in tasks] == [(17, 1)] * 2
    with pytest.raises(workers.WorkerError, match="one GPU"):
        on_gpu.tasks(workers.Entry("pytorch-processes"))


def test_each_variant_is_measured_in_turns(fake):
    result = measure(Settings(rounds=3, seconds=24, lanes=("auto",)))
    names = ["machine", *USUAL]
    measured = [name for name, _, _ in fake.log]
    assert sorted(measured[:11]) == sorted(USUAL)  # a first look at each
    assert measured[11:] == [*names, *reversed(names), *names]
    assert sum(seconds for _, _, seconds in fake.log) == pytest.approx(24)
    assert fake.open == 0
    assert [row["name"] for row in result["variants"]] == list(USUAL)
    assert not [row for row in result["variants"] if "failed" in row]
    assert result["lanes"] == []
    row = result["variants"][0]
    assert row["rounds"] == [401, 402, 403]
    assert (row["evaluations_per_second"], row["spread"]) == (402, [401, 403])
    assert (row["compile_seconds"], row["utilisation"]) == (1.5, None)
    assert row["flops_per_second"] == pytest.approx(402 * 1e7)
    assert row["share_of_matrix_product"] == pytest.approx(402 * 1e7 / 1e11)
    assert row["share_of_copy"] == pytest.approx(402 * 5e6 / 1e10)
    assert row["memory_per_lane"] * row["lanes"] == 1 << 30
    ours = result["variants"][-1]
    assert (ours["name"], ours["flops_per_second"]) == ("jaxleak-cosine", None)  # another attack's work
    assert (ours["lanes"], ours["utilisation"]) == (6, pytest.approx(0.9))
    assert ours["lane_iterations_per_second"] == 4002
    assert result["versions"].keys() >= {"jax", "flax", "jaxopt", "other"}
    assert {"cores", "flops_per_second", "bytes_per_second", "evaluation"} <= result["machine"].keys()
    assert (result["settings"]["rounds"], result["settings"]["width"], result["interrupted"]) == (3, None, False)
    assert "CPU cores" in result["device"]


def test_lanes_are_chosen(fake):
    """plain-vmap gets its best count; jaxleak the engine's own, though it is not faster here."""
    result = measure(Settings(rounds=1, lanes=(2, "auto", 4, 8), only=("plain-vmap", "jaxleak", "pytorch-serial")))
    chosen = {row["name"]: row["lanes"] for row in result["variants"]}
    assert chosen == {"plain-vmap": 4, "jaxleak": 6, "pytorch-serial": 1}
    tried = [(row["name"], row["asked"]) for row in result["lanes"]]
    assert tried == [*(("plain-vmap", count) for count in (2, 4, 8)), *(("jaxleak", c) for c in (2, "auto", 4, 8))]
    assert [row["evaluations_per_second"] for row in result["lanes"]][:3] == [298, 300, 296]
    assert fake.open == 0
    # Without counts: one that is known to be good, for all; four is two for each of two cores.
    fake.log.clear()
    result = measure(Settings(rounds=1, only=("jaxleak", "plain-vmap", "pytorch-vmap")))
    assert {(name, lanes) for name, lanes, _ in fake.log[:3]} == {
        ("jaxleak", None),
        ("plain-vmap", 4),
        ("pytorch-vmap", None),
    }
    assert result["lanes"] == []


def test_a_variant_that_fails_does_not_stop_the_others(fake):
    fake.fails.update({"jaxopt": 2, "plain-vmap": 1, "pytorch-vmap": 0})
    result = measure(Settings(rounds=3, lanes=("auto",)))
    rows = {row["name"]: row for row in result["variants"]}
    assert {rows[name]["failed"] for name in fake.fails} == {"gone"}
    assert rows["plain-vmap"]["evaluations_per_second"] is rows["pytorch-vmap"]["evaluations_per_second"] is None
    assert rows["jaxopt"]["rounds"] == [501]
    assert rows["jaxleak"]["rounds"] == [pytest.approx(0.9 * rate) for rate in (4001, 4002, 4003)]
    assert "plain-vmap" not in result["ratios"]["jaxleak"]
    assert fake.open == 0
    json.dumps(result)
    shown(result)


@pytest.mark.parametrize("measurements", [0, 3, 14, 24])
def test_ctrl_c_reports_what_is_there(fake, measurements):
    fake.interrupt_after = measurements
    result = measure(Settings(rounds=3, lanes=("auto",)))
    assert result["interrupted"] is True
    assert fake.open == 0
    rows = result["variants"]
    assert [row["name"] for row in rows] == list(USUAL)
    # Eleven first looks; then the machine is measured first; the second round goes back from the last variant.
    wanted = {0: [0] * 11, 3: [0] * 11, 14: [1, 1, *[0] * 9], 24: [*[1] * 10, 2]}
    assert [len(row["rounds"] or []) for row in rows] == wanted[measurements]
    assert all("interrupted" in row["failed"] for row in rows if not row["rounds"])
    looked_at = [row for row in rows if row["evaluations_per_second"] and not row["rounds"]]
    assert len(looked_at) == {0: 0, 3: 3, 14: 9, 24: 0}[measurements]
    assert all("its first look's" in row["failed"] for row in looked_at)
    assert bool(result["ratios"]) == (measurements == 24)  # of rounds only
    json.dumps(result)
    shown(result)


def test_the_profile(fake):
    result = measure(Settings(rounds=1, lanes=(6,), only=("jaxleak", "plain-vmap"), profile=True))
    # Two devices: microseconds per lane-step and core.
    wanted = {"objective": 8000, "objective-and-gradient": 5000, "solver": 10000, "step": 2500, "engine": 0.9 * 4001}
    times = {phase: 2e6 / rate for phase, rate in wanted.items()}
    times["bookkeeping"] = 2e6 / 2500 - 2e6 / 5000 - 2e6 / 10000
    assert result["profile"] == {"jaxleak": pytest.approx(times)}
    assert "bookkeeping" in shown(result)


def test_without_pytorch(fake, monkeypatch):
    monkeypatch.setattr(runner.Bench, "has_torch", False)
    result = measure(Settings(only=VARIANTS, rounds=1, lanes=(4,)))
    rows = {row["name"]: row for row in result["variants"]}
    assert {rows[name]["failed"] for name in PYTORCH} == {"PyTorch is not installed (extra `torch`)"}
    assert list(result["ratios"]["jaxleak"]) == ["plain-vmap", "jaxopt"]
    with pytest.raises(InputError, match="`only` names pytorch-serial, but PyTorch is not installed"):
        runner.Bench(Settings(only=("pytorch-serial",)), lambda line: None)


# --- the report ---


def shown(result: dict[str, Any]) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tables.tables(result))
    return console.export_text()


def test_ratios():
    rows = [
        {"name": "pytorch-serial", "evaluations_per_second": 200.0, "rounds": [100.0, 200.0, 300.0]},
        {"name": "jaxopt", "evaluations_per_second": None, "rounds": None},
        {"name": "plain-vmap", "evaluations_per_second": 50.0, "rounds": [50.0]},
        {"name": "jaxleak", "evaluations_per_second": 4000.0, "rounds": [4000.0, 5000.0, 3000.0]},
        {"name": "jaxleak-network-per-trial", "evaluations_per_second": 1000.0, "rounds": [1000.0] * 3},
        *({"name": name, "evaluations_per_second": 1.0 + i, "rounds": [1.0 + i]} for i, name in enumerate(COSINE)),
    ]
    ratios, spreads = report.ratios_of(rows)
    assert ratios == {
        "jaxleak": {"pytorch-serial": 20, "plain-vmap": 80},
        "jaxleak-network-per-trial": {"pytorch-serial": 5, "plain-vmap": 20},
        "jaxleak-cosine": {"pytorch-cosine-processes": 2},
    }
    assert spreads["jaxleak"] == {"pytorch-serial": [10, 40], "plain-vmap": [80, 80]}
    assert report.ratios_of(rows[:3]) == ({}, {})


def test_tables_show_the_numbers(fake):
    text = shown(measure(Settings(rounds=3, lanes=("auto", 4))))
    for words in (
        "; cosine: signed Adam",
        "pytorch-processes",
        "401 to 403",
        "9.0 (8.9 to 9.0)",
        "10.0 MFLOP",
        "100 GFLOP/s",
        "by lanes",
    ):
        assert words in text, words


def test_the_file_is_written(fake, tmp_path, monkeypatch, capsys):
    out = tmp_path / "bench.json"
    fake.interrupt_after = 9
    result = command.run_bench(Settings(rounds=3, lanes=(4,)), out)
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    assert [file.name for file in tmp_path.iterdir()] == ["bench.json"]
    for bad, words in (
        (tmp_path / "missing" / "bench.json", "there is no directory"),
        (tmp_path, "is a directory"),
        (Path("/proc/bench.json"), "cannot be written"),
    ):
        fake.log.clear()
        with pytest.raises(InputError, match=words):
            command.run_bench(Settings(), bad)
        assert not fake.log


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"only": ("jaxleek",)}, "Did you mean 'jaxleak'"),
        ({"only": ()}, "must name at least one"),
        ({"only": ("jaxopt", "jaxopt")}, "must be distinct"),
        ({"model": "lenett"}, "Did you mean 'lenet'"),
        ({"lanes": (4, 0)}, "`lanes` must be above 0; got 0"),
        ({"seconds": 0.0}, "`seconds` must be above 0"),
        ({"rounds": 0}, "`rounds` must be above 0"),
        ({"width": -1}, "`width` must be above 0"),
    ],
)
def test_settings_that_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        Settings(**changes)


# --- all of it ---


def test_a_measurement_in_processes(tmp_path, monkeypatch):
    """A worker in JAX beside the machine, from their start to the file."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    settings = Settings(only=("jaxleak",), image_size=8, num_classes=3, history=3, lanes=(2,), rounds=2, seconds=1)
    result = command.run_bench(settings, tmp_path / "bench.json")
    (row,) = result["variants"]
    assert "failed" not in row, row
    assert row["evaluations_per_second"] > 0
    assert 0 < row["utilisation"] <= 1
    assert row["compile_seconds"] > 0
    assert row["memory_per_lane"] > 1000
    assert result["machine"]["flops_per_second"] > 1e6


# --- every model ---


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_pytorchs_network_is_ours(name):
    """Of each model: the same names and shapes of weights, so the same network as in the tests of parity."""
    torch = require_torch()
    networks = importlib.import_module("jaxleak.bench.networks.build")
    settings = Settings(model=name)
    shape = settings.shape
    with torch.device("meta"):
        net = networks.build(*settings.network(), shape)
    model = build_model(name, settings.num_classes)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params)
    ours = {tensor: array.shape for tensor, array in to_torch(model, zeros, shape).items()}
    body = {"mlp": {f"{n}.{kind}": f"{n + 1}.{kind}" for n in (0, 2, 4) for kind in ("weight", "bias")}}
    assert {body.get(name, {}).get(tensor, tensor): size for tensor, size in ours.items()} == {
        tensor: tuple(parameter.shape) for tensor, parameter in net.named_parameters()
    }


@pytest.mark.torch
def test_the_torch_loop_of_texts_is_ours():
    """Update, objective and its batched form, at the same weights and candidate."""
    loop, vmapped, torch = torch_loop(), torch_loop("pytorch_vmap"), require_torch()
    settings = Settings(model="transformer", num_classes=11)
    trial = variants.trial(settings.plain())
    shared, job = trial.shared(), jax.tree.map(lambda leaf: leaf[0], variants.jobs(settings.plain()))
    problem = jax.jit(trial.prepare)(shared, job)
    drawn = np.random.default_rng(0).normal(size=settings.candidate)
    vectors, logits = drawn[: 15 * 64].reshape(1, 15, 64), drawn[15 * 64 :].reshape(1, 15, 11)

    net = torch_loop("networks.build").build(*settings.network(), settings.shape).to(torch.float64)
    weights = jax.tree.map(np.asarray, shared.params)
    net = load(net, to_torch(trial.victim.model, weights, settings.shape))
    tokens = torch.from_numpy(trial.victim.images[:1].astype(np.int64))
    read, label = net.vectors(tokens).detach(), torch.nn.functional.one_hot(net.targets(tokens), 11).double()
    net.embed = torch.nn.Identity()
    theirs = loop.Problem(net, read, label)
    value = theirs.objective(torch.from_numpy(vectors), torch.from_numpy(logits)).item()
    gradient, (batched,) = vmapped.batched_objective(theirs, read)(torch.from_numpy(drawn)[None])
    assert batched.item() == pytest.approx(value, rel=1e-9)
    assert gradient.shape == (1, settings.candidate)
    parts = {"embeddings": jnp.asarray(vectors), "label": jnp.asarray(logits)}
    ours = jax.jit(trial.attacker.values)(shared, problem, parts)
    assert float(ours[0]) == pytest.approx(value, rel=1e-5)


def test_texts_are_measured_too():
    settings = Settings(model="transformer")
    assert (settings.solver, settings.num_classes, settings.shape) == ("lbfgs", 512, (16,))
    assert settings.candidate == 15 * 64 + 15 * 512
    assert not {"plain-vmap", "jaxopt", "jaxleak-cosine"} & set(settings.only)
    assert machine.evaluation_work({**Settings(model="transformer", num_classes=5).plain()})[0] > 1e6
    with pytest.raises(InputError, match="`image_size` is of pictures; transformer reads texts of 16 tokens"):
        Settings(model="transformer", image_size=8)
    with pytest.raises(InputError, match="`only` jaxleak-cosine is an attack on pictures; got `model` transformer"):
        Settings(model="transformer", only=("jaxleak-cosine",))


def test_a_models_own_width_and_size():
    settings = Settings(model="inception3", only=("jaxleak", "pytorch-vmap"))
    assert (settings.image_size, settings.solver) == (299, "adam")
    assert Settings(model="vit").only == tuple(name for name in USUAL if name not in ("plain-vmap", "jaxopt"))
    with pytest.raises(InputError, match=r"`width` is a field of convnet, .*; got `model` vit\."):
        Settings(model="vit", width=8)
    with pytest.raises(InputError, match=r"`only` jaxopt is there for lenet and resnet18; got `model` convnet\."):
        Settings(model="convnet", only=("jaxopt",))


def test_operations_are_counted_without_kernels_too():
    """ResNet-18's in stock Flax and in ours: patches have the operations of the padding as well."""
    settings = {**Settings(model="resnet18", width=4, image_size=16, num_classes=3).plain()}
    stock, _ = machine.evaluation_work(settings)
    objective, *types = variants.own_objective(settings)
    lowered = jax.jit(objective).lower(jax.ShapeDtypeStruct((16 * 16 * 3 + 3,), float), *types)
    assert 1 <= lowered.cost_analysis()["flops"] / stock < 2.5


# --- where the time of a step goes ---


def test_the_account_of_a_step_has_every_product():
    """Of LeNet: seven products a layer, but for what leads to the image of the first, with the operations of each."""
    found = steps.account_of(TINY.plain())
    sizes = [(8, 3, 4), (4, 12, 2), (2, 12, 2)]  # of an image, its channels, and of the output
    products = {
        f"{c}>12 5x5 on {size}x{size}, stride {size // out}": 2 * out * out * 12 * 25 * c for size, c, out in sizes
    }
    calls = {layer: sum(line["calls"] for line in found["products"] if line["layer"] == layer) for layer in products}
    for line in found["products"]:
        if line["layer"] in products:
            assert line["flops"] == line["calls"] * products[line["layer"]]
    assert list(calls.values()) == [5, 7, 7]
    assert all(line["seconds"] > 0 for line in found["products"])
    assert 0 < found["ceiling_flops"] < 1e13


@pytest.mark.torch
def test_pytorchs_profile_of_a_step():
    settings = replace(TINY, num_classes=4)
    task = {"settings": settings.plain(), "network": settings.network()}
    profiled = torch_loop("pytorch_steps").profile_of(task)
    assert 0 < profiled["convolutions"] < profiled["convolutions"] + profiled["rest"] < 10
    assert any("conv" in name for name in profiled["largest"])
