"""Where the time of a step goes on one core, read from XLA's trace of it; beside it PyTorch's own profile.

    python -m jaxleak.bench.steps --model NAME [--width N] [--image-size N] --out FILE

One process for each of the two, in turns (`--task` is for them). Each product of a convolution is told by its layer and
kind: forward, weight gradient, input gradient. Second derivatives are made of the same three. What lies between them is
told by the name of its instruction.
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

import jax
import numpy as np

from jaxleak.bench import variants
from jaxleak.bench.phases import PhaseProgram
from jaxleak.bench.protocol import use_one_core
from jaxleak.bench.settings import Settings
from jaxleak.engine.compiler import chunk_options
from jaxleak.kernels.precision import full_precision
from jaxleak.results.store.environment import environment

STEPS = 3  # that are traced
TIMED = 5
PRODUCTS = ("forward", "weight", "input")
MATRIX = 1024


def account_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one step by product, layer and instruction."""
    trial = variants.trial(settings)
    jobs = jax.tree.map(lambda leaf: leaf[:1], variants.jobs(settings))
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
    left = np.random.default_rng(0).standard_normal((MATRIX, MATRIX)).astype(np.float32)
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        _ = left @ left
        rates.append(2 * MATRIX**3 / (time.perf_counter() - began))
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model")
    for name in ("width", "image-size"):
        parser.add_argument(f"--{name}", type=int)
    options = vars(parser.parse_args())
    task, out = options.pop("task"), options.pop("out")
    if task is not None:
        use_one_core()
        print(json.dumps(account_of(task["settings"])))
        return
    if out is None or options["model"] is None:
        parser.error("--model and --out are needed")
    settings = Settings(**options)
    task = json.dumps({"settings": settings.plain(), "network": settings.network()})
    # The threads of numpy's products begin at its import, before a process can be held on a core.
    one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    found = {}
    for part, module in (("ours", "steps"), ("pytorch", "pytorch_steps")):
        command = [sys.executable, "-m", f"jaxleak.bench.{module}", "--task", task]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=one_thread)
        found[part] = json.loads(run.stdout.splitlines()[-1])
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
