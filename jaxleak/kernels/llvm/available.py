"""Finds out if this process can run the kernels on a CPU, when the first one is compiled and before it can crash.

Kernels read XLA's structures by their offsets (`emit.py`). jaxlib carries the header that declares these structures,
so a jaxlib with others is recognised by it.
"""

import functools
import re
import warnings
from pathlib import Path

OLDEST = (0, 2)  # version of the interface; the one before, jaxlib 0.8.0's, ends in a segmentation fault
# The fields of each structure down to the last one that a kernel reads. Those that lie inside another one, and so
# decide the offsets behind them, are given whole (with a semicolon at the end).
FIELDS = {
    "CallFrame": "struct_size extension_start api ctx stage args rets",
    "Args": "struct_size extension_start size types args;",
    "Rets": "struct_size extension_start size types rets;",
    "Buffer": "struct_size extension_start dtype data rank dims",
    "Api": "struct_size extension_start api_version",
    "Api_Version": "struct_size extension_start major_version minor_version;",
    "Metadata_Extension": "extension_base metadata",
    "Metadata": "struct_size api_version traits",
}
EXTENSION = "struct_size type next;"


def available() -> bool:
    """True where kernels can run. Elsewhere one warning gives the reason."""
    reason = problem()
    if reason is not None:
        _warn(reason)
    return reason is None


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"jaxleak's CPU kernels are not used, XLA's slower products are: {reason}", stacklevel=2)


@functools.cache
def problem() -> str | None:
    """Why kernels cannot run here; None where they can."""
    try:
        compile_nothing()
    except Exception as error:  # absent, broken, too old for this code or this processor
        return f"llvmlite does not work here ({type(error).__name__}: {' '.join(str(error).split())[:200]})."
    import jax

    header = Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h"
    try:
        return misfit(header.read_text())
    except OSError:
        return "jaxlib does not say how they are called (it has no xla/ffi/api/c_api.h)."


def compile_nothing() -> None:
    """Compile a kernel that does nothing, to see whether llvmlite can.

    Raises:
        Exception: whatever llvmlite raises where it cannot.
    """
    from jaxleak.kernels.llvm import emit

    kernel = emit.Kernel("jaxleak_nothing", "float32")
    kernel.buffers(1, 1)
    emit.compile_kernel(kernel.finish(), kernel.function.name)


def misfit(header: str) -> str | None:
    """The first difference between XLA's `c_api.h` and what the kernels expect; None if they can be called."""
    version = tuple(int(word) for word in re.findall(r"#define XLA_FFI_API_M(?:AJOR|INOR) (\d+)", header))
    shown = ".".join(str(number) for number in version)
    if len(version) != 2 or version[0] != OLDEST[0] or version < OLDEST:
        return (
            f"they need version 0.{OLDEST[1]} of XLA's interface or a later 0.x; jaxlib has {shown or 'another one'}."
        )
    extension = re.search(r"XLA_FFI_(\w+) extension_base;", header)
    wanted = {**FIELDS, **({extension[1]: EXTENSION} if extension else {})}
    for name, fields in wanted.items():
        body = re.search(rf"struct XLA_FFI_{name} {{(.*?)\n}}", header, re.DOTALL)
        declared = re.findall(r"(\w+);", re.sub(r"//.*", "", body[1])) if body else []
        whole, expected = fields.endswith(";"), fields.rstrip(";").split()
        if (declared if whole else declared[: len(expected)]) != expected:
            return f"jaxlib's structure XLA_FFI_{name} (version {shown}) is not laid out as they expect."
    return None
