"""Where the time of a deep network's step goes: an account of ours, beside PyTorch's own profile of the same step.

One trial of DLG with Adam on one core, float32. Ours is read from XLA's trace of the compiled step: each product of a
convolution by its layer and kind (forward, weight gradient, input gradient; second derivatives are made of the same
three), and what lies between them. PyTorch's is read from its profiler. The ceiling is the rate of a large matrix
product on the same core, measured before and after. Every case has a process of its own.

    python -m experiments.deep_steps
"""

import argparse
import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from experiments import tables
from experiments.harness import results_folder, write_json
from jaxleak.bench.settings import Settings

PAPER = "Speed"
CASES = {
    "resnet18-16": Settings(model="resnet18", width=16),
    "resnet18-64": Settings(model="resnet18", width=64),
    "resnet18-64-224": Settings(model="resnet18", width=64, image_size=224),
    "convnet-64": Settings(model="convnet"),
    "densenet121": Settings(model="densenet121"),
    "inception3": Settings(model="inception3"),
    "vit": Settings(model="vit"),
}
STEPS = 3  # that are traced
TIMED = 5
PRODUCTS = ("forward", "weight", "input")
MATRIX = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None, choices=CASES, help="just these")
    parser.add_argument("--part", choices=("ours", "pytorch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps({"ours": ours, "pytorch": pytorch}[options.part](CASES[options.only[0]])))
        return
    for name in options.only or CASES:
        found: dict[str, Any] = {"case": name}
        for part in ("ours", "pytorch"):
            command = [sys.executable, "-m", "experiments.deep_steps", "--only", name, "--part", part]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            last = run.stdout.strip().splitlines()[-1:]
            found[part] = json.loads(last[0]) if run.returncode == 0 and last else {"failed": run.stderr[-300:]}
        write_json(results_folder("deep_steps") / f"{name}.json", found)
        print(json.dumps(summary_of(found)), flush=True)


def ours(settings: Settings) -> dict[str, Any]:
    """Seconds of one step by product, layer and instruction."""
    import jax

    from jaxleak.bench import variants
    from jaxleak.bench.phases import PhaseProgram
    from jaxleak.engine.compiler import chunk_options
    from jaxleak.kernels.precision import full_precision
    from jaxleak.results.store.environment import environment

    plain = settings.plain()
    trial = variants.trial(plain)
    jobs = jax.tree.map(lambda leaf: leaf[:1], variants.jobs(plain))
    with full_precision():
        shared = jax.device_put(trial.shared())
        prepare, init = (
            jax.jit(jax.vmap(f, axes)) for f, axes in ((trial.prepare, (None, 0)), (trial.init, (None, 0, 0)))
        )
        problem = prepare(shared, jobs)
        state = init(shared, problem, jobs)
        arrays = len(jax.tree.leaves((shared, problem, state)))
        step = jax.jit(
            jax.vmap(PhaseProgram(trial=trial, phase="step").step, (None, 0, 0)),
            donate_argnums=2,
            compiler_options=chunk_options(arrays),
        )
        began = time.perf_counter()
        compiled = step.lower(shared, problem, state).compile()
        compile_seconds, ceiling = time.perf_counter() - began, [matrix_rate()]
        state = jax.block_until_ready(compiled(shared, problem, state))
        seconds = []
        for _ in range(TIMED):
            began = time.perf_counter()
            state = jax.block_until_ready(compiled(shared, problem, state))
            seconds.append(time.perf_counter() - began)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                for _ in range(STEPS):
                    state = jax.block_until_ready(compiled(shared, problem, state))
            (file,) = Path(folder).rglob("*.trace.json.gz")
            events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        ceiling.append(matrix_rate())
    spent = Counter()
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            spent[event["args"]["hlo_op"]] += event["dur"] * 1e-6 / STEPS
    made = environment()
    return {
        "seconds": statistics.median(seconds),
        "compile_seconds": compile_seconds,
        "bytes": getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
        "ceiling_flops": statistics.median(ceiling),
        **account(str(compiled.as_text()), spent),
        **{key: made[key] for key in ("device", "git_revision", "git_dirty") if key in made},
        "versions": {name: made[name] for name in ("jax", "jaxlib") if name in made},
    }


def account(program: str, spent: Counter) -> dict[str, Any]:
    """Products by kind and by layer, and the rest by the kind of its instruction."""
    from jaxleak.kernels.llvm import emit

    calls = {
        name: (build.__name__.removeprefix("wide_"), call) for (build, call, _), (name, _) in emit._targets.items()
    }
    layers: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    rest: Counter = Counter()
    targets = dict(re.findall(r"%?([\w.\-]+) = [^\n]*custom_call_target=\"(jaxleak_\w+)\"", program))
    for name, seconds in spent.items():
        kind, call = calls.get(targets.get(name, ""), ("", None))
        if kind in PRODUCTS:
            g = call.geometry
            products = 2 * call.groups * call.images * g.out_size * g.window[0] * g.run
            layer = (
                f"{g.channels}>{g.outputs} {g.window[0]}x{g.window[1]} on {g.height}x{g.width}, stride {g.strides[0]}"
            )
            for slot, amount in enumerate((1, products, seconds)):
                layers[layer, kind][slot] += amount
        else:
            rest[kind or re.sub(r"[.\d]+$", "", name)] += seconds
    lines = [
        {"layer": layer, "product": kind, "calls": calls, "flops": flops, "seconds": seconds}
        for (layer, kind), (calls, flops, seconds) in layers.items()
    ]
    return {"products": sorted(lines, key=lambda line: -line["seconds"]), "rest": dict(rest.most_common())}


def matrix_rate() -> float:
    """Operations per second of a matrix product on this core."""
    import numpy as np

    left = np.random.default_rng(0).standard_normal((MATRIX, MATRIX)).astype(np.float32)
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        _ = left @ left
        rates.append(2 * MATRIX**3 / (time.perf_counter() - began))
    return max(rates)


def pytorch(settings: Settings) -> dict[str, Any]:
    """Seconds of one step by operation."""
    import torch

    from jaxleak.bench import pytorch_loop

    task = {"settings": settings.plain(), "network": settings.network(), "threads": 1, "device": "cpu"}
    pytorch_loop.prepare_torch(task)
    problem, image = pytorch_loop.problem_of(task)
    restarts = pytorch_loop.Restarts(
        problem, image=image, logits=torch.empty(1, settings.num_classes), solver="adam", history=1, iterations=100
    )
    steps, seconds = restarts.run(), []
    next(steps)
    for _ in range(TIMED):
        began = time.perf_counter()
        next(steps)
        seconds.append(time.perf_counter() - began)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        next(steps)
    spent = {event.key: event.self_cpu_time_total * 1e-6 for event in profile.key_averages()}
    convolutions = sum(value for key, value in spent.items() if "conv" in key)
    return {
        "seconds": statistics.median(seconds),
        "convolutions": convolutions,
        "rest": sum(spent.values()) - convolutions,
        "largest": dict(sorted(spent.items(), key=lambda item: -item[1])[:8]),
        "version": torch.__version__,
    }


def summary_of(found: dict[str, Any]) -> dict[str, Any]:
    """One line: a step's operations, ours by product, PyTorch's."""
    own, other = found["ours"], found["pytorch"]
    if "failed" in own or "failed" in other:
        return {"case": found["case"], "failed": own.get("failed") or other.get("failed")}
    by_product = {
        kind: [sum(line[key] for line in own["products"] if line["product"] == kind) for key in ("flops", "seconds")]
        for kind in PRODUCTS
    }
    return {
        "case": found["case"],
        "flops": sum(flops for flops, _ in by_product.values()),
        "seconds": own["seconds"],
        "products": {kind: {"seconds": s, "rate": f / s if s else None} for kind, (f, s) in by_product.items()},
        "rest": sum(own["rest"].values()),
        "ceiling": own["ceiling_flops"],
        "pytorch": other["seconds"],
        "pytorch_convolutions": other["convolutions"],
        "times": other["seconds"] / own["seconds"],
    }


def results() -> list[tables.Results]:
    """A line a case: milliseconds of a step, ours by product and rest, and PyTorch's; rates beside the ceiling."""
    lines, device = [], ""
    for name in CASES:
        found = tables.stored(f"deep_steps/{name}.json")
        told = summary_of(found) if found else {}
        if "seconds" not in told:
            lines.append([f"`{name}`", tables.NOT_RUN])
            continue
        device = found["ours"]["device"]
        cells = [f"{told['flops'] / 1e9:.2f}", f"{1e3 * told['seconds']:,.0f}"]
        for part in told["products"].values():
            rate = f" ({part['rate'] / 1e9:.0f})" if part["rate"] else ""
            cells.append(f"{1e3 * part['seconds']:,.0f}{rate}")
        cells += [f"{1e3 * told['rest']:,.0f}", f"{told['ceiling'] / 1e9:.0f}"]
        cells += [f"{1e3 * told[key]:,.0f}" for key in ("pytorch", "pytorch_convolutions")]
        lines.append([f"`{name}`", *cells, f"{told['times']:.1f}"])
    columns = ("case", "GFLOP of convolutions", "ours [ms]", "forward [ms] (GFLOP/s)", "weight [ms] (GFLOP/s)")
    columns += (
        "input [ms] (GFLOP/s)",
        "rest [ms]",
        "matrix product [GFLOP/s]",
        "PyTorch [ms]",
        "its convolutions [ms]",
    )
    notes = [
        "One evaluation and Adam step of one trial on one core; medians of five. Parts: from the profile of others."
    ]
    return [tables.Results("A deep step, by its parts", "deep_steps", (*columns, "times"), lines, device, notes)]


if __name__ == "__main__":
    main()
