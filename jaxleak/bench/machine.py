"""Rates of the machine, in matrix products and copies, and the work of one evaluation."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxleak.bench import variants
from jaxleak.bench.protocol import Link
from jaxleak.bench.settings import STOCK
from jaxleak.kernels.precision import full_precision

MATRIX = {"cpu": 2048, "gpu": 8192}
WIDTH = {"cpu": 16, "gpu": 64}  # of a ResNet's first stage, where none is asked for
COPIED = {"bytes_per_second": 1 << 28, "cached_bytes_per_second": 1 << 24}  # bytes: main memory, and outer caches


def measure(settings: dict[str, Any], about: dict[str, Any], link: Link) -> None:
    """Answer each request with the rates of matrix products and of copies within memory and caches."""
    began = time.perf_counter()
    size = MATRIX.get(about["platform"], MATRIX["gpu"])
    width = settings["width"]
    if width is None and settings["model"] == "resnet18":
        width = WIDTH.get(about["platform"], WIDTH["gpu"])
    left = jax.random.normal(jax.random.key(0), (size, size))
    with full_precision():
        product = jax.jit(jnp.matmul).lower(left, left).compile()
    # In place: with new memory for each result, the pages' first touch would be measured.
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    arrays = {name: copy(jnp.zeros((1 << 10, count >> 12))) for name, count in COPIED.items()}
    jax.block_until_ready((product(left, left), arrays))
    flops, traffic = evaluation_work({**settings, "width": width})
    about |= {"compile_seconds": time.perf_counter() - began, "evaluation": {"flops": flops, "bytes": traffic}}
    link.send(ready={**about, "matrix_size": size, "copied_bytes": COPIED, "width": width})
    while True:
        seconds = link.receive()["measure"] / 3
        rates = {"flops_per_second": 2 * size**3 * _rate(lambda: product(left, left), seconds)}
        for name in arrays:

            def again(name=name):
                arrays[name] = copy(arrays[name])
                return arrays[name]

            rates[name] = 2 * COPIED[name] * _rate(again, seconds)  # read and written
        link.send(measured=rates)


def _rate(call: Callable[[], Any], seconds: float) -> float:
    """Calls per second."""
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < seconds:
        jax.block_until_ready(call())
        calls += 1
    return calls / (time.perf_counter() - began)


def evaluation_work(settings: dict[str, Any]) -> tuple[float, float]:
    """Floating-point operations and bytes that one evaluation with the solver's step cannot do without.

    Operations: XLA's count for the program of one trial before optimisation, in stock Flax, padding left out, where
    there is one; else in ours without kernels. To them come 8 m n for L-BFGS (the two-loop recursion's four products of
    length n per pair) or 10 n for Adam. Bytes: the m pairs read twice, as float32, for L-BFGS; Adam's x and two moments
    read and written. Weights, activations and what stays in caches are not in the bytes.
    """
    size = settings["candidate"]
    with jax.default_device(jax.devices("cpu")[0]):  # a GPU's compiler does not count
        stock = settings["model"] in STOCK
        objective, *types = (variants.stock_objective(settings),) if stock else variants.own_objective(settings)
        lowered = jax.jit(objective).lower(jax.ShapeDtypeStruct((size,), float), *types)
        cost: Any = lowered.cost_analysis()
    if settings["solver"] == "adam":
        return cost["flops"] + 10 * size, 6 * 4 * size
    pairs = settings["history"] * size
    return cost["flops"] + 8 * pairs, 4 * 4 * pairs
