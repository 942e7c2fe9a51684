"""Programs as an accelerator gets them: their numbers on a CPU, and what compiling them for a GPU says."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import ATTACKS, DLG, Adam, JaxoptLBFGS, OptaxLBFGS, TorchLBFGS, load_dataset, make_victim
from jaxleak.attacks.trial import Job, Trial
from jaxleak.bench.accelerators import ACCELERATORS
from jaxleak.bench.account import bytes_of, kernels_of, parsed
from jaxleak.engine.programs import Traced
from jaxleak.kernels.platform import accelerated, for_accelerator
from jaxleak.models import build_model
from jaxleak.solvers import LBFGS
from jaxleak.solvers.compact import advance, empty_history
from jaxleak.threat.client import Client
from tests.commands import refusal
from tests.fixtures import quick_jit

STEPS = 5
SOLVERS = {
    "lbfgs": LBFGS(history=3),
    "torch-lbfgs": TorchLBFGS(history=3),
    "jaxopt-lbfgs": JaxoptLBFGS(history=3),
    "optax-lbfgs": OptaxLBFGS(history=3),
    "adam": Adam(lr=0.1),
}
# Of the presets that do not attack one gradient of LeNet: the model with its fields, and the client with its batch.
SETTINGS: dict[str, Any] = {
    "sme": {"client": Client(steps=3, lr=0.01)},
    "fedavg": {"client": Client(epochs=2, batch=1, lr=0.01, shuffle=1), "batch": 2, "knows_order": False},
    "gradinversion": {"model": ("resnet18", {"width": 8, "train": True}), "batch": 2},
    "analytic": {"model": ("mlp", {})},
    "april": {"model": ("vit", {})},
    "spear": {"model": ("mlp", {}), "batch": 2},
    **{name: {"model": ("transformer", {"dim": 32, "weight_init": "uniform"})} for name in ("tag", "dager")},
}
CASES = {
    **{f"dlg:{name}": (replace(DLG, solver=solver), {}) for name, solver in SOLVERS.items()},
    **{name: (ATTACKS[name], SETTINGS.get(name, {})) for name in ATTACKS if name != "dlg"},
    "dlg, a network per trial": (replace(DLG, solver=LBFGS(history=3)), {"network": "per-trial"}),
}
QUICK = {"dlg:lbfgs", "ig"}


def trial_of(attack: Any, settings: dict[str, Any]) -> Trial:
    settings = dict(settings)
    name, model_fields = settings.pop("model", ("lenet", {}))
    knows_order = settings.pop("knows_order", True)
    text, batch = name == "transformer", settings.get("batch", 1)
    data = load_dataset("text") if text else load_dataset("photos")
    made: Any = {"network": "shared", **settings}
    victim = make_victim(
        build_model(name, data.num_classes, **model_fields), data, data.random_indices(2 * batch, 0), **made
    )
    if text:
        return Trial(attack=attack, victim=victim, threshold=1e-4, snapshots=(0, 1))
    small = np.asarray(victim.images)[:, ::2, ::2]
    if victim.params is not None and name != "lenet":
        victim = replace(victim, images=np.asarray(victim.images), labels=np.asarray(victim.labels) % 10)
    else:
        victim = replace(victim, images=small, labels=np.asarray(victim.labels) % 10, surrogates=None, params=None)
    return Trial(attack=attack, victim=replace(victim, knows_order=knows_order), threshold=1e-4, snapshots=(0, 1))


def numbers(trial: Trial, lanes: int = 2):
    """Candidates and objectives after each of some steps, over lanes."""
    jobs = Job(*(jnp.arange(lanes, dtype=jnp.int32) % trial.victim.updates for _ in range(4)))
    shared = trial.shared()

    @quick_jit
    def begin(jobs):
        problem = jax.vmap(trial.prepare, (None, 0))(shared, jobs)
        return problem, jax.vmap(trial.init, (None, 0, 0))(shared, problem, jobs)

    step = quick_jit(jax.vmap(functools.partial(trial.step, shared)))
    problem, state = begin(jobs)
    found = []
    for _ in range(STEPS):
        state = step(problem, state)
        found.append((state.record.candidate, state.record.value))
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES])
def test_an_accelerator_computes_the_same(case):
    """The program that a GPU gets, without our kernels and with other forms of convolution, history and distance."""
    attack, settings = CASES[case]
    wanted = numbers(trial_of(attack, settings))
    with for_accelerator():
        assert accelerated()
        got = numbers(trial_of(attack, settings))
    assert not accelerated()
    for (candidate, value), (wanted_candidate, wanted_value) in zip(got, wanted, strict=True):
        np.testing.assert_allclose(candidate, wanted_candidate, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(value, wanted_value, rtol=1e-6, atol=1e-12)


def test_an_accelerators_program_asks_the_host_once_a_turn():
    """Some steps between two questions whether to go on end where single steps do."""
    trial = trial_of(replace(DLG, solver=LBFGS(history=3)), {})
    jobs = Job(*(jnp.arange(2, dtype=jnp.int32) for _ in range(4)))
    shared = trial.shared()
    types = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype), shared)
    job = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), jobs)
    traced = Traced(trial, types, job)
    problem, state = jax.vmap(traced._begin, (None, 0))(shared, jobs)
    ends = []
    for turn in (1, 4):
        chunk = quick_jit(functools.partial(traced.chunk, turn=turn))
        state_after, _, useful, steps = chunk(shared, problem, state, np.ones(2, bool), 8, 0)
        assert (int(steps), int(useful)) == (8, 16)
        ends.append(np.asarray(state_after.record.candidate))
    np.testing.assert_array_equal(*ends)


def test_runs_that_were_begun_without_a_type_of_pairs_go_on():
    assert list(DLG.settings()["solver"]) == ["name", "history", "max_step", "inner_steps"]
    told = replace(DLG, solver=LBFGS(history_type="same")).settings()["solver"]
    assert told["history_type"] == "same"


@pytest.mark.parametrize("kept", ["same", "bfloat16"])
def test_pairs_of_half_size_still_go_down(kept):
    """The inverse Hessian of rounded pairs stays positive definite, and its pairs take half the memory."""
    rng = np.random.default_rng(0)
    square = rng.standard_normal((20, 20))
    hessian = jnp.asarray(square @ square.T / 20 + 0.1 * np.eye(20), jnp.float32)
    pairs = jnp.bfloat16 if kept == "bfloat16" else None
    history = empty_history(6, 20, jnp.float32, pairs)
    assert history.pairs.nbytes == 2 * 6 * 20 * (2 if pairs else 4)
    for _ in range(15):
        s, g = (jnp.asarray(rng.standard_normal(20), jnp.float32) for _ in range(2))
        history, direction = advance(history, s, hessian @ s, g, jnp.asarray(True), jnp.float32(1))
        assert float(direction @ g) < 0
    exact = -np.linalg.solve(np.asarray(hessian, np.float64), g)
    assert np.dot(exact, direction) / np.linalg.norm(exact) / np.linalg.norm(direction) > 0.5


def test_a_history_in_bfloat16_solves_as_well():
    """On a quadratic L-BFGS with rounded pairs comes as far as with exact ones, in no more than a few steps more."""
    curvatures = jnp.asarray(np.logspace(0, 2, 40), jnp.float32)

    def fun(x):
        return jnp.sum(curvatures * x**2) / 2, curvatures * x

    taken = {}
    for kept in ("same", "bfloat16"):
        solver, taken[kept] = LBFGS(history=20, history_type=kept, max_step=10.0), 0
        state, step = solver.init(fun, jnp.ones(40, jnp.float32)), quick_jit(functools.partial(solver.step, fun))
        value = np.inf
        while not value < 1e-6 and taken[kept] < 400:
            state, info = step(state)
            value, taken[kept] = float(info.value), taken[kept] + 1
    assert max(taken.values()) < 150
    assert taken["bfloat16"] < 1.5 * taken["same"]


PROGRAM = """HloModule jit_chunk

%fused_gather (parameter_0: f32[8,100,30], parameter_1: s32[8,1]) -> f32[8,30] {
  %parameter_0 = f32[8,100,30]{2,1,0} parameter(0)
  %parameter_1 = s32[8,1]{1,0} parameter(1)
  ROOT %gather.1 = f32[8,30]{1,0} gather(%parameter_0, %parameter_1), offset_dims={1}
}

%fused_scatter (parameter_0: f32[8,100,30], parameter_1: s32[8,1], parameter_2: f32[8,30]) -> f32[8,100,30] {
  %parameter_0 = f32[8,100,30]{2,1,0} parameter(0)
  %parameter_1 = s32[8,1]{1,0} parameter(1)
  %parameter_2 = f32[8,30]{1,0} parameter(2)
  ROOT %scatter.1 = f32[8,100,30]{2,1,0} scatter(%parameter_0, %parameter_1, %parameter_2), to_apply=%add
}

%fused_dot (parameter_0: f32[8,100,30], parameter_1: f32[8,30]) -> f32[8,100] {
  %parameter_0 = f32[8,100,30]{2,1,0} parameter(0)
  %parameter_1 = f32[8,30]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,100]{1,0} dot(%parameter_0, %parameter_1), lhs_contracting_dims={2}, rhs_contracting_dims={1}
}

%body (state: (f32[8,100,30], s32[8,1], f32[8,30])) -> (f32[8,100,30], s32[8,1], f32[8,30]) {
  %state = (f32[8,100,30]{2,1,0}, s32[8,1]{1,0}, f32[8,30]{1,0}) parameter(0)
  %pairs = f32[8,100,30]{2,1,0} get-tuple-element(%state), index=0
  %place = s32[8,1]{1,0} get-tuple-element(%state), index=1
  %x = f32[8,30]{1,0} get-tuple-element(%state), index=2
  %rows = f32[8,30]{1,0} fusion(%pairs, %place), kind=kLoop, calls=%fused_gather
  %new = f32[8,100,30]{2,1,0} fusion(%pairs, %place, %rows), kind=kInput, calls=%fused_scatter
  %sums = f32[8,100]{1,0} fusion(%new, %x), kind=kCustom, calls=%fused_dot
  %solved = (f32[8,30]{1,0}, s8[4096]{0}) custom-call(%sums), custom_call_target="__cublas$triangularSolve"
  ROOT %tuple.1 = (f32[8,100,30]{2,1,0}, s32[8,1]{1,0}, f32[8,30]{1,0}) tuple(%new, %place, %rows)
}

ENTRY %main (state: (f32[8,100,30], s32[8,1], f32[8,30])) -> (f32[8,100,30], s32[8,1], f32[8,30]) {
  %state = (f32[8,100,30]{2,1,0}, s32[8,1]{1,0}, f32[8,30]{1,0}) parameter(0)
  ROOT %while.1 = (f32[8,100,30]{2,1,0}, s32[8,1]{1,0}, f32[8,30]{1,0}) while(%state), condition=%more, body=%body
}
"""


def test_a_programs_launches_are_counted_with_what_they_touch():
    kernels = {kernel.name: kernel for kernel in kernels_of(PROGRAM, history=8 * 100 * 30)}
    row, index, pairs = 8 * 30 * 4, 8 * 4, 8 * 100 * 30 * 4
    assert {name: kernel.bytes for name, kernel in kernels.items()} == {
        "rows": row + index + row,  # of the pairs only the rows that are asked for
        "new": index + row + row,  # in place
        "sums": pairs + row + 8 * 100 * 4,
        "solved": 8 * 100 * 4 + row + 4096,
    }
    assert kernels["sums"].flops == 2 * 8 * 100 * 30
    assert kernels["sums"].reduced == 1
    assert [kernels[name].group for name in ("rows", "new", "sums", "solved")] == ["history"] * 3 + ["small"]
    assert kernels["solved"].kind == "__cublas$triangularSolve"
    assert bytes_of("(f32[2,3]{1,0}, pred[5]{0}, s32[])") == 24 + 5 + 4
    assert parsed(PROGRAM)["body"]["rows"].operands == ("pairs", "place")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--for h101", "`for` must be one of a100, h100, h200; got 'h101'. Did you mean 'h100'?"),
        ("--for h100 --only jaxopt", "`only` with --for must be one of jaxleak, "),
        ("--for h100 --lanes auto", "`lanes` with --for must be numbers; auto searches on the device itself."),
    ],
)
def test_an_account_is_refused_at_once(flags, words):
    assert words in refusal("bench", *flags.split())


def test_without_the_plugin_its_installation_is_said(monkeypatch):
    monkeypatch.setattr("jaxleak.bench.accelerators.PLUGINS", ())
    assert "pip install --no-deps --target cuda-plugin jax-cuda13-plugin==" in refusal("bench", "--for", "h100")


def test_devices_are_described_by_their_data_sheets():
    assert 66e12 < ACCELERATORS["h100"].flops < 68e12
    assert 19e12 < ACCELERATORS["a100"].flops < 20e12
    assert all(f"core_count: {device.cores}" in device.described() for device in ACCELERATORS.values())


# --- compiled for a GPU; jax's CUDA plugin must be there ---

PLUGINS = os.environ.get("JAXLEAK_CUDA_PLUGINS", "")  # a folder with jax's CUDA plugin; .ci/run installs one
WITH_SOLVES = """
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxleak.solvers import compact
from jaxleak.cli.app import main

def direction(history, s_g, y_g, gradient, gamma):
    pairs, inverse, yy, _, _ = history
    u = solve_triangular(inverse, s_g)
    v = solve_triangular(inverse, gamma * (yy @ u) - gamma * y_g, trans="T")
    return -(gamma * gradient + jnp.concatenate([v, -gamma * u]) @ pairs.reshape(-1, gradient.size).astype(v.dtype))

compact.direction = direction
raise SystemExit(main())
"""


def account(folder: Path, *flags: str, program: str = "from jaxleak.cli.app import main; raise SystemExit(main())"):
    out = folder / "account.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([PLUGINS, *sys.path]), "JAX_ENABLE_X64": "0"}
    environment.pop("JAX_PLATFORMS", None)
    command = [sys.executable, "-c", program, "bench", "--for", "h100", "--out", str(out), *flags]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=500)
    return json.loads(out.read_text())[0]


needs_plugin = pytest.mark.skipif(not PLUGINS, reason="JAXLEAK_CUDA_PLUGINS names no folder with jax's CUDA plugin")


@needs_plugin
def test_a_step_on_a_gpu_costs_no_more_than_it_did(tmp_path):
    """LeNet, DLG with a history of 100, 256 lanes (measured: 87 or 88 kernels, 1.50 GB; experiments/NOTES.md)."""
    found = account(tmp_path)
    assert found["kernels"] <= 90
    assert found["bytes"] <= 1.53e9
    assert found["library_calls"] == 10  # convolutions with weights that all lanes share
    assert found["reduced"] == 0
    assert found["lane_bytes"] <= 2.6e6
    assert {line["group"] for line in found["groups"]} == {"history", "target", "convolutions", "layers", "small"}
    assert sum(line["bytes"] for line in found["groups"]) == found["bytes"]


@needs_plugin
@pytest.mark.slow
def test_triangular_solves_would_be_seen(tmp_path):
    assert account(tmp_path, program=WITH_SOLVES)["library_calls"] == 12


@needs_plugin
@pytest.mark.slow
def test_a_step_of_resnet18_on_a_gpu_costs_no_more_than_it_did(tmp_path):
    found = account(tmp_path, "--model", "resnet18")
    assert found["kernels"] <= 610
    assert found["bytes"] <= 32e9
    assert found["reduced"] == 0
