"""The package's tests run in float64 on two forced CPU devices (design.md, "Numbers people can trust")."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
# Compiling is most of the suite's time: what is tested does not depend on XLA's optimisations.
jax.config.update("jax_disable_most_optimizations", True)
