"""The package's tests run in float64 on two forced CPU devices (design.md, "Numbers people can trust")."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling is most of the suite's time: what is tested does not depend on the optimisations of XLA and LLVM. Processes
# that tests start inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# What one of these processes has compiled the others load; nothing is kept from one run of the suite to the next.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxleak-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)

# Marked `core`: what has to hold for every declared version of Python, jax and the rest, in two minutes. These files,
# without the tests whose names begin so ...
CORE = {
    "test_cli": ("test_plot", "test_a_run_of_trained"),
    "test_compiler": (),
    "test_conv": ("test_both_equal", "test_dilated", "test_kernels_of_several_images_and_networks[6-40"),
    "test_data": (),
    "test_engine": (
        "test_other_lanes",
        "test_lanes_change_nothing[a network per trial",
        "test_lanes_change_nothing[one network-lanes 1,",
        "test_lanes_change_nothing[one network-lanes 50,",
    ),
    "test_environment": (),
    "test_metrics": (),
    "test_native": ("test_without_kernels", "test_a_factored_gradient_is_the_gradient[3"),
    "test_readme": ("test_every_name", "test_the_python_example"),
    "test_solvers": (),
    "test_trial": ("test_what_is", "test_thresholds_mean", "test_networks_", "test_a_network_follows", "test_given"),
}
# ... and these tests alone of other files: what adapting, drawing and storing ask of libraries.
CORE_ALONE = {
    "test_own_model": ("test_an_attack_from_end_to_end[linen", "test_nnx_modules_draw", "test_lifted_layers"),
    "test_plots": ("test_grid_holds", "test_a_grid_of_noise"),
    "test_store": ("test_flipped_bits",),
}


def pytest_collection_finish():
    """Tracing makes millions of objects that live: looking through them all for garbage takes 5 % of the time."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


def pytest_collection_modifyitems(items):
    for item in items:
        left_out, alone = CORE.get(item.path.stem), CORE_ALONE.get(item.path.stem, ())
        if item.name.startswith(alone) or (left_out is not None and not item.name.startswith(left_out)):
            item.add_marker(pytest.mark.core)
