"""GPUs that a program can be compiled for where there is none.

XLA needs a description of the device and jax's CUDA plugin, and none of NVIDIA's own packages. Nothing is tuned on the
device: which kernels there are, and what they read and write, is exact, and how a matrix product is tiled is not.
"""

import importlib
import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax

from jaxleak.errors import InputError, check_choice

PLUGINS = ("xla_cuda13", "xla_cuda12")


@dataclass(frozen=True)
class Accelerator:
    """What XLA asks about a device.

    Attributes:
        name: NVIDIA's.
        capability: compute capability.
        cores: multiprocessors.
        units: float32 units of each, which add and multiply once a cycle.
        clock: of these, in GHz.
        memory: in bytes.
        bandwidth: of the memory, in bytes/s.
        cache: second level, in bytes.
        shared: shared memory of a multiprocessor, in bytes.
        features: XLA's word for a capability's variant.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    units: int
    clock: float
    memory: int
    bandwidth: float
    cache: int
    shared: int
    features: str

    @property
    def flops(self) -> float:
        """Float32 operations/s without tensor cores, whose float32 is not full precision."""
        return 2 * self.cores * self.units * self.clock * 1e9

    def described(self) -> str:
        """The device as XLA's `GpuTargetConfigProto`, in text form."""
        major, minor = self.capability
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
  shared_memory_per_block_optin: {self.shared - 1024}
  core_count: {self.cores} fpus_per_core: {self.units} clock_rate_ghz: {self.clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {self.bandwidth:.0f} l2_cache_size: {self.cache} device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {self.features} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  device_vendor: "NVIDIA Corporation" name: "{self.name}" device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{self.name}"
"""


HOPPER: dict[str, Any] = {
    "capability": (9, 0),
    "cores": 132,
    "units": 128,
    "clock": 1.98,
    "cache": 52428800,
    "shared": 233472,
    "features": "ACCELERATED_FEATURES",
}
# Source: openxla/xla, xla/backends/gpu/target_config/specs, and NVIDIA's data sheets.
ACCELERATORS = {
    "h100": Accelerator(name="NVIDIA H100 80GB HBM3", memory=84942979072, bandwidth=3.35232e12, **HOPPER),
    "h200": Accelerator(name="NVIDIA H200 141GB HBM3e", memory=151397597184, bandwidth=4.8e12, **HOPPER),
    "a100": Accelerator(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        units=64,
        clock=1.41,
        memory=85100068864,
        bandwidth=2.03904e12,
        cache=41943040,
        shared=167936,
        features="NONE",
    ),
}


def described_device(name: str) -> Any:
    """A device to compile for, which need not be there.

    Args:
        name: one of `ACCELERATORS`.

    Raises:
        InputError: another name, or jax's CUDA plugin is not installed.
    """
    from jax.experimental import topologies

    accelerator = ACCELERATORS[check_choice("for", name, ACCELERATORS)]
    _start_plugin()
    described = accelerator.described()
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name=name, target_config=described, topology="1x1x1"
    )
    return topology.devices[0]


def _start_plugin() -> None:
    """Register jax's CUDA plugin.

    Raises:
        InputError: it is not installed, or of another version than jax.
    """
    wanted = version("jaxlib")
    for plugin in PLUGINS:
        try:
            importlib.import_module(f"jax_plugins.{plugin}")
        except ImportError:
            continue
        found = version(f"jax-{plugin.removeprefix('xla_')}-plugin")
        if found != wanted:
            raise InputError(
                f"`for` needs jax's CUDA plugin {wanted}, as jaxlib is; {found} is installed. {_cure(wanted)}"
            )
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # it would look for NVIDIA's packages
        jax.devices()  # jax registers plugins with its first device
        return
    raise InputError(f"`for` needs jax's CUDA plugin, without which nothing is compiled for a GPU. {_cure(wanted)}")


def _cure(wanted: str) -> str:
    """How to have it beside jax, which would look for a GPU in every run if it were installed with it."""
    packages = f"jax-cuda13-plugin=={wanted} jax-cuda13-pjrt=={wanted}"
    return (
        f"142 MB, no GPU and nothing else of NVIDIA's: pip install --no-deps --target cuda-plugin {packages}; then "
        "PYTHONPATH=cuda-plugin jaxleak bench --for ..."
    )
