"""`jaxleak doctor`: what this installation has, whether it computes as it should, and what to mend."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak.bench.models import measure_models
from jaxleak.data import DATASETS
from jaxleak.data.prepared import data_directory, prepared_splits
from jaxleak.errors import InputError
from jaxleak.kernels.llvm.available import problem
from jaxleak.kernels.precision import full_precision
from jaxleak.results.store.environment import VERSIONS, processor, version_of

PROBED = ("lenet", "resnet18")
SIDE = 512  # of the matrices whose product is checked
ROUNDING = 1e-5  # relative error of a float32 product: measured 2e-7; TF32 and bfloat16 leave 3e-4 and more
EMBEDDED = ("photos", "text")
PARTS = {"torch": "PyTorch's baselines in `bench`", "ray": "runs on a Ray cluster", "s3fs": "runs in an object store"}
EXTRAS = {"torch": "torch", "ray": "jaxleak[ray]", "s3fs": "jaxleak[s3]"}


class Finding(NamedTuple):
    """One line of the examination.

    Attributes:
        what: the part that was looked at.
        found: what it has or does.
        mend: how to better it; "": nothing is wrong.
    """

    what: str
    found: str
    mend: str = ""


def examine(*, seconds: float = 5.0) -> Iterator[Finding]:
    """Look at one part after the other.

    Args:
        seconds: to measure evaluations per second of all `PROBED` models together, compiling not counted; 0: not.
    """
    names = ", ".join(f"{name} {version_of(name)}" for name in VERSIONS)
    yield Finding("jaxleak", f"{version_of('jaxleak')}, Python {platform.python_version()}, {names}")
    devices = jax.devices()
    on_cpu = devices[0].platform == "cpu"
    kind = processor() if on_cpu else devices[0].device_kind
    yield Finding("devices", f"{len(devices)} x {devices[0].platform} ({kind})", _accelerator(on_cpu))
    yield _kernels(on_cpu)
    yield _precision()
    yield from _data_sets()
    for name, use in PARTS.items():
        there = find_spec(name) is not None
        mend = "" if there else f"only needed for {use}: pip install '{EXTRAS[name]}'"
        yield Finding(name, version_of(name) if there else "not installed", mend)
    if seconds:
        print("compiling LeNet and ResNet-18, which takes a minute or two ...", file=sys.stderr, flush=True)
    for line in measure_models(PROBED, seconds=seconds / len(PROBED)) if seconds else ():
        lanes = f"{line.megabytes:,.1f} MB a lane, compiled in {line.compile_seconds:,.0f} s"
        yield Finding(line.model, f"{line.rate:,.1f} evaluations/s of L-BFGS at two lanes a device ({lanes})")


def _accelerator(on_cpu: bool) -> str:
    """Advice where NVIDIA's driver is there and jax does not use it."""
    if not on_cpu or not Path("/proc/driver/nvidia/version").exists():
        return ""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return "there is an NVIDIA GPU, and JAX_PLATFORMS=cpu keeps jax from it"
    return "there is an NVIDIA GPU that jax does not use: pip install 'jaxleak[cuda13]' (or cuda12)"


def _kernels(on_cpu: bool) -> Finding:
    if not on_cpu:
        return Finding("kernels", "XLA's; jaxleak's own are for CPUs")
    if os.environ.get("JAXLEAK_NATIVE") == "0":
        return Finding("kernels", "XLA's", "JAXLEAK_NATIVE=0 switches jaxleak's own, faster ones off")
    reason = problem()
    if reason is None:
        return Finding("kernels", "jaxleak's own")
    return Finding("kernels", "XLA's slower ones", f"{reason} Try: pip install --upgrade llvmlite jaxlib")


def _precision() -> Finding:
    """A product in float32 as the attacks compute it, against float64."""
    left, right = np.random.default_rng(0).normal(size=(2, SIDE, SIDE))
    product: Callable = jax.jit(full_precision()(jnp.matmul))
    ours = np.asarray(product(left.astype(np.float32), right.astype(np.float32)), np.float64)
    exact = left.astype(np.float32).astype(float) @ right.astype(np.float32).astype(float)
    error = float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))
    mend = "" if error < ROUNDING else "products are narrower than float32: gradients will not match to rounding"
    return Finding("precision", f"float32 products are right to {error:.0e}", mend)


def _data_sets() -> Iterator[Finding]:
    yield Finding("data", f"{' and '.join(EMBEDDED)}: embedded")
    try:
        folder = data_directory(None)
    except InputError as error:
        yield Finding("data", "none prepared", str(error))
        return
    missing = {}
    for name in DATASETS:
        if name not in EMBEDDED:
            try:
                yield Finding("data", f"{name}: {', '.join(prepared_splits(name, folder))} in {folder}")
            except InputError as error:
                missing[name] = str(error)
    if missing:
        first, *others = missing.values()
        yield Finding(
            "data", f"{', '.join(missing)}: not prepared", f"{first}{' (the others likewise)' * bool(others)}"
        )
