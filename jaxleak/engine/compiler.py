"""XLA's options for compiling on a CPU: only those that the installed jaxlib takes.

jaxlib refuses a program that is compiled with an option it does not know, and options go: 0.11.1 dropped
`xla_cpu_use_fusion_emitters`.
"""

import functools

import jax

Options = dict[str, bool | int]
# With the fusion emitters programs compile longer and run no faster (experiments/NOTES.md).
WITHOUT_EMITTERS: Options = {"xla_cpu_use_fusion_emitters": False}


def chunk_options() -> Options:
    """Options for a program that runs for long."""
    return _taken(WITHOUT_EMITTERS)


def once_options() -> Options:
    """Options for a program that runs once a trial, where compiling counts.

    At a low level of optimisation it compiles several times faster, and runs as fast (experiments/NOTES.md).
    """
    return _taken({**WITHOUT_EMITTERS, "xla_backend_optimization_level": 1})


def quick_options() -> Options:
    """Options for a program whose results are wanted once, whatever its speed, as in tests."""
    return _taken({**WITHOUT_EMITTERS, "xla_backend_optimization_level": 0})


def _taken(wanted: Options) -> Options:
    return {name: value for name, value in wanted.items() if takes(name, value)}


@functools.cache
def takes(name: str, value: bool | int) -> bool:
    """True if the installed jaxlib compiles with this option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except Exception as error:  # its class differs between versions of jaxlib
        if name in str(error) or "compile option" in str(error):
            return False
        raise
    return True
