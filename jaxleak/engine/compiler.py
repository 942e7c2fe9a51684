"""XLA's options for compiling on a CPU: only those that the installed jaxlib takes.

jaxlib refuses a program that is compiled with an option it does not know, and options go: 0.11.1 dropped
`xla_cpu_use_fusion_emitters`.
"""

import functools

import jax

Options = dict[str, bool | int]
# With the fusion emitters programs compile longer and run no faster (experiments/NOTES.md).
WITHOUT_EMITTERS: Options = {"xla_cpu_use_fusion_emitters": False}


DEEP = 75  # arrays from which a program counts as a deep network's: LeNet's have 50, ConvNet's 91, ResNet-18's 147


def chunk_options(arrays: int = 0) -> Options:
    """Options for a program of so many arrays that runs for long.

    A deep network's spends its time in our kernels: a lower level compiles a quarter faster and runs as fast.
    """
    return _taken({**WITHOUT_EMITTERS, "xla_backend_optimization_level": 1} if arrays >= DEEP else WITHOUT_EMITTERS)


def once_options(arrays: int = 0) -> Options:
    """Options for a program of so many arrays that runs once a trial, where compiling counts.

    At a low level of optimisation it compiles several times faster, and runs as fast; at none a deep network's compiles
    in a third of that, and what it computes costs one or two evaluations of hundreds (experiments/NOTES.md).
    """
    return _taken({**WITHOUT_EMITTERS, "xla_backend_optimization_level": 0 if arrays >= DEEP else 1})


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
