"""A small layer over llvmlite: loops and vectors as LLVM IR, compiled for this processor and handed to XLA.

Kernels are specialised to their shapes and called through XLA's typed FFI (jaxlib's header `xla/ffi/api/c_api.h`, whose
binary interface is promised to stay). One thread runs one call; scratch memory lies on its stack, so calls may overlap.
"""

import ctypes
import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import llvmlite.binding as llvm
from llvmlite import ir

from jaxleak.kernels.llvm import ASIDE, ITEMSIZE

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
NULL = ir.Constant(POINTER, None)

# Offsets in bytes in the structures of XLA's c_api.h.
FRAME_EXTENSION, FRAME_API, FRAME_ARGS, FRAME_RETS = 8, 16, 72, 112
BUFFER_DATA, BUFFER_DIMS = 24, 40
EXTENSION_METADATA, METADATA_VERSION, METADATA_TRAITS, API_VERSION = 24, 24, 32, 32


class Kernel:
    """One function under construction: `void kernel(XLA_FFI_CallFrame*)` in IR.

    Indices and lengths count elements of `dtype`. A vector holds `width` of them; loads and stores take how many of
    those are real, and touch no others.

    Attributes:
        b: llvmlite's builder, for what has no short form here.
        width: elements of one vector register.
        registers: accumulators that may be live at once.
    """

    def __init__(self, name: str, dtype: str):
        bits, self.registers = _vector_unit()
        self.size = ITEMSIZE[dtype]
        self.width = bits // (8 * self.size)
        self.real = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.vector = ir.VectorType(self.real, self.width)
        self.module = ir.Module(name)
        self.function = ir.Function(self.module, ir.FunctionType(POINTER, [POINTER]), name)
        # LLVM turns stack slots into registers if they are in the entry block, so all of them go there.
        self._allocas = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._body = self.function.append_basic_block("body")
        self.b = ir.IRBuilder(self._body)

    # Arguments and results

    def buffers(self, arguments: int, results: int) -> list[Any]:
        """Pointers to the data of the call's arguments and results."""
        frame = self.function.args[0]
        extension = self._field(frame, FRAME_EXTENSION)
        describe, run = (self.function.append_basic_block(name) for name in ("describe", "run"))
        self.b.cbranch(self.b.icmp_unsigned("==", extension, NULL), run, describe)
        # XLA asks once for the version of the interface (major and minor) and for traits (none).
        self.b.position_at_end(describe)
        metadata, api = self._field(extension, EXTENSION_METADATA), self._field(frame, FRAME_API)
        for word in (0, 4):
            version = self.b.load(self._byte(api, API_VERSION + word), typ=I32)
            self.b.store(version, self._byte(metadata, METADATA_VERSION + word))
        self.b.store(ir.Constant(I32, 0), self._byte(metadata, METADATA_TRAITS))
        self.b.ret(NULL)
        self.b.position_at_end(run)
        lists = [(self._field(frame, FRAME_ARGS), arguments), (self._field(frame, FRAME_RETS), results)]
        found = [self._field(array, 8 * k) for array, count in lists for k in range(count)]
        self._first = found[0]
        return [self._field(buffer, BUFFER_DATA) for buffer in found]

    def sizes(self, rank: int) -> list[Any]:
        """The axes' lengths of the call's first argument, for a kernel that serves all of them."""
        dims = self._field(self._first, BUFFER_DIMS)
        return [self.index(dims, self.integer(axis)) for axis in range(rank)]

    def _byte(self, pointer, offset: int):
        return self.b.gep(pointer, [ir.Constant(I64, offset)], source_etype=I8)

    def _field(self, pointer, offset: int):
        return self.b.load(self._byte(pointer, offset), typ=POINTER)

    def finish(self) -> str:
        """The module's text."""
        self.b.ret(NULL)
        self._allocas.branch(self._body)
        return str(self.module)

    # Integers and control

    def integer(self, value) -> Any:
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, *terms) -> Any:
        total = self.integer(terms[0])
        for term in terms[1:]:
            total = self.b.add(total, self.integer(term))
        return total

    def multiply(self, index: Any, factor: Any) -> Any:
        return index if factor == 1 else self.b.mul(self.integer(index), self.integer(factor))

    def divided(self, index: Any, by: int) -> tuple[Any, Any]:
        """The quotient and the rest of an index that is not negative."""
        index, divisor = self.integer(index), self.integer(by)
        return self.b.udiv(index, divisor), self.b.urem(index, divisor)

    @contextmanager
    def loop(self, count) -> Iterator[Any]:
        """The body runs for indices 0 .. count - 1."""
        count = self.integer(count)
        index = self._allocas.alloca(I64)
        self.b.store(self.integer(0), index)
        test, body, after = (self.function.append_basic_block(name) for name in ("test", "loop", "after"))
        self.b.branch(test)
        self.b.position_at_end(test)
        self.b.cbranch(self.b.icmp_signed("<", self.b.load(index, typ=I64), count), body, after)
        self.b.position_at_end(body)
        value = self.b.load(index, typ=I64)
        yield value
        self.b.store(self.b.add(value, self.integer(1)), index)
        self.b.branch(test)
        self.b.position_at_end(after)

    @contextmanager
    def when(self, condition) -> Iterator[None]:
        """The body runs if `condition` (i1)."""
        body, after = (self.function.append_basic_block(name) for name in ("when", "after"))
        self.b.cbranch(condition, body, after)
        self.b.position_at_end(body)
        yield
        self.b.branch(after)
        self.b.position_at_end(after)

    # Memory

    def at(self, pointer, index: Any) -> Any:
        """Pointer to element `index`."""
        return self.b.gep(pointer, [self.integer(index)], source_etype=self.real)

    def scratch(self, count: int) -> Any:
        """Room for `count` elements on the stack."""
        room = self._allocas.alloca(self.real, self.integer(count))
        room.type = POINTER
        return room

    def scalar(self, pointer, index: Any = 0) -> Any:
        return self.b.load(self.at(pointer, index), typ=self.real)

    def put_scalar(self, value, pointer, index: Any = 0) -> None:
        self.b.store(value, self.at(pointer, index))

    def load(self, pointer, index, real):
        """The vector at `index`, of which `real` elements are there: a number, or a mask of `below`."""
        pointer = self.at(pointer, index)
        if isinstance(real, int) and real == self.width:
            return self.b.load(pointer, typ=self.vector, align=self.size)
        name = f"llvm.masked.load.{self._suffix}.p0"
        function = self._declare(name, self.vector, [POINTER, I32, ir.VectorType(I1, self.width), self.vector])
        return self.b.call(function, [pointer, ir.Constant(I32, self.size), self._mask(real), self.zero])

    def store(self, value, pointer, index, real):
        """`load`, the other way."""
        pointer = self.at(pointer, index)
        if isinstance(real, int) and real == self.width:
            self.b.store(value, pointer, align=self.size)
            return
        masks = ir.VectorType(I1, self.width)
        name = f"llvm.masked.store.{self._suffix}.p0"
        function = self._declare(name, ir.VoidType(), [self.vector, POINTER, I32, masks])
        self.b.call(function, [value, pointer, ir.Constant(I32, self.size), self._mask(real)])

    def below(self, count):
        """The mask of the first `count` elements of a vector, a number that is known when the kernel runs."""
        places = ir.VectorType(I64, self.width)
        first = self.b.insert_element(ir.Constant(places, ir.Undefined), count, ir.Constant(I32, 0))
        nothing = ir.Constant(ir.VectorType(I32, self.width), [0] * self.width)
        counts = self.b.shuffle_vector(first, ir.Constant(places, ir.Undefined), nothing)
        return self.b.icmp_signed("<", ir.Constant(places, list(range(self.width))), counts)

    def prefetch(self, pointer, index):
        """Fetch what will be read soon; no error where there is nothing."""
        function = self._declare("llvm.prefetch.p0", ir.VoidType(), [POINTER, I32, I32, I32])
        # To be read, into the second level of caches, as data.
        self.b.call(function, [self.at(pointer, index), *(ir.Constant(I32, value) for value in (0, 2, 1))])

    def clear(self, pointer, count: int):
        """Set `count` elements to zero."""
        function = self._declare("llvm.memset.p0.i64", ir.VoidType(), [POINTER, I8, I64, I1])
        self.b.call(function, [pointer, ir.Constant(I8, 0), self.integer(count * self.size), ir.Constant(I1, 0)])

    def copy(self, target, source, count):
        """Copy `count` elements; the ranges may overlap."""
        function = self._declare("llvm.memmove.p0.p0.i64", ir.VoidType(), [POINTER, POINTER, I64, I1])
        size = self.multiply(count, self.size) if not isinstance(count, int) else self.integer(count * self.size)
        self.b.call(function, [target, source, size, ir.Constant(I1, 0)])

    # Integers of 32 bits, and flags

    def at_word(self, pointer, index) -> Any:
        """Pointer to the integer `index`."""
        return self.b.gep(pointer, [index], source_etype=I32)

    def word(self, pointer) -> Any:
        return self.b.sext(self.b.load(pointer, typ=I32), I64)

    def put_word(self, value, pointer) -> None:
        self.b.store(self.b.trunc(value, I32), pointer)

    def index(self, pointer, place) -> Any:
        """The index `place` of those that `put_index` wrote; each takes 8 bytes."""
        return self.b.load(self.b.gep(pointer, [place], source_etype=I64), typ=I64)

    def put_index(self, value, pointer, place) -> None:
        self.b.store(value, self.b.gep(pointer, [place], source_etype=I64))

    def flag(self, pointer, index) -> Any:
        """The bool `index`, as a condition."""
        byte = self.b.load(self.b.gep(pointer, [index], source_etype=I8), typ=I8)
        return self.b.icmp_unsigned("!=", byte, ir.Constant(I8, 0))

    # Vectors

    @property
    def zero(self):
        return ir.Constant(self.vector, None)

    def variable(self, value=None):
        """A vector that changes: read with `get`, changed with `b.store` or `accumulate`; starts at zero."""
        room = self._allocas.alloca(self.vector)
        self.b.store(self.zero if value is None else value, room)
        return room

    def get(self, variable):
        return self.b.load(variable, typ=self.vector)

    def accumulate(self, variable, left, right):
        """variable += left * right, element by element."""
        function = self._declare(f"llvm.fmuladd.{self._suffix}", self.vector, [self.vector] * 3)
        self.b.store(self.b.call(function, [left, right, self.get(variable)]), variable)

    def splat(self, scalar):
        """The vector of which every element is `scalar`."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.b.insert_element(nothing, scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, self.width), [0] * self.width))

    def total(self, vector):
        """The sum of the elements, by halves."""
        function = self._declare(f"llvm.vector.reduce.fadd.{self._suffix}", self.real, [self.real, self.vector])
        # -0.0 changes no sum, 0.0 would change -0.0; "reassoc" allows halves instead of one element after the other.
        return self.b.call(function, [ir.Constant(self.real, -0.0), vector], fastmath=("reassoc",))

    def number(self, value: float):
        """A scalar."""
        return ir.Constant(self.real, value)

    def root(self, vector):
        """The square roots."""
        return self.b.call(self._declare(f"llvm.sqrt.{self._suffix}", self.vector, [self.vector]), [vector])

    def absolute(self, vector):
        """The absolute values."""
        return self.b.call(self._declare(f"llvm.fabs.{self._suffix}", self.vector, [self.vector]), [vector])

    def raise_to(self, variable, vector):
        """variable = max(variable, vector), element by element; not a number if either is not."""
        function = self._declare(f"llvm.maximum.{self._suffix}", self.vector, [self.vector] * 2)
        self.b.store(self.b.call(function, [self.get(variable), vector]), variable)

    def largest(self, vector):
        """The largest element; not a number if one is not."""
        function = self._declare(f"llvm.vector.reduce.fmaximum.{self._suffix}", self.real, [self.vector])
        return self.b.call(function, [vector])

    def turned(self, rows: list[Any]) -> list[Any]:
        """The columns of as many vectors as one has elements."""
        half = 1
        while half < self.width:
            of_first = [p if p // half % 2 == 0 else self.width + p - half for p in range(self.width)]
            of_second = [p + half if p // half % 2 == 0 else self.width + p for p in range(self.width)]
            for first in (n for n in range(self.width) if n // half % 2 == 0):
                pair = rows[first], rows[first + half]
                rows[first], rows[first + half] = (
                    self.b.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, self.width), mask))
                    for mask in (of_first, of_second)
                )
            half *= 2
        return rows

    def along(self, count: int, act: Callable[[Any, int, int], None], together: int = 1) -> None:
        """`act(index, real, row)` for the vectors of `count` elements; `row` counts neighbours, up to `together`."""
        whole = count // self.width
        if whole >= together:
            with self.loop(whole // together) as block:
                for row in range(together):
                    act(self.multiply(self.add(self.multiply(block, together), row), self.width), self.width, row)
        first = whole - whole % together
        for row, (start, real) in enumerate(self.cover(count)[first:]):
            act(self.integer(start), real, row % together)

    def cover(self, count: int) -> list[tuple[int, int]]:
        """(first, real elements) of the vectors that cover `count` elements."""
        return [(first, min(self.width, count - first)) for first in range(0, count, self.width)]

    @property
    def _suffix(self) -> str:
        return f"v{self.width}f{8 * self.size}"

    def _mask(self, real):
        if not isinstance(real, int):
            return real
        return ir.Constant(ir.VectorType(I1, self.width), [int(k < real) for k in range(self.width)])

    def _declare(self, name: str, result, arguments):
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, arguments), name)


class Level(NamedTuple):
    """Optimisation levels of LLVM."""

    passes: int  # of the IR; 0: none
    code: int


# The third level of passes takes twice as long for LeNet's kernels, which run no faster (experiments/NOTES.md).
FAST_KERNELS = Level(passes=2, code=3)
QUICK_COMPILE = Level(passes=0, code=1)  # a third of the time for LeNet's kernels


def level() -> Level:
    """The level for kernels, by jax's own switch `jax_disable_most_optimizations`."""
    return QUICK_COMPILE if jax.config.read("jax_disable_most_optimizations") else FAST_KERNELS


@functools.cache
def _features():
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    try:
        return llvm.get_host_cpu_features()
    except RuntimeError:  # not known for this platform
        return llvm.FeatureMap()


@functools.cache
def _machine(code: int):
    features = _features().flatten()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=code)
    return machine, llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def _vector_unit() -> tuple[int, int]:
    """Bits of a vector register, and how many of them may hold accumulators."""
    # Of 32, 16 and 32 registers; the others hold factors.
    features = _features()
    if features.get("avx512f"):
        return 512, 24
    return (256, 10) if features.get("avx") else (128, 20)


_lock = threading.Lock()
_targets: dict[tuple, tuple[str, Future[None]]] = {}


def target(build: Callable[[str, Any], str], shape: Any) -> str:
    """The name under which XLA finds the kernel `build(name, shape)`; compiled when first asked for.

    Args:
        build: returns the text of the kernel's module.
        shape: hashable, with a `repr` that says everything about it.
    """
    key, aside = (build, shape, level()), ASIDE.get()
    with _lock:
        known = _targets.get(key)
        if known is None or (known[1].done() and known[1].exception() is not None):
            # The name tells shapes apart in programs that XLA keeps on disk, too.
            digest = hashlib.sha256(repr(key[1:]).encode()).hexdigest()[:16]
            name, made = f"jaxleak_{build.__name__}_{digest}", Future()
            _targets[key] = known = name, made
        else:
            made = None
    name, registered = known
    if made is not None:
        if aside is None:
            _make(build, shape, key[2], name, made)
        else:
            aside.threads.submit(_make, build, shape, key[2], name, made)
    if aside is None:
        registered.result()
    else:
        aside.kernels.append(registered)
    return name


def _make(build, shape, wanted: Level, name: str, made: "Future[None]") -> None:
    try:
        _register(name, compile_kernel(build(name, shape), name, wanted))
        made.set_result(None)
    except BaseException as error:  # it is raised where the kernel is waited for
        made.set_exception(error)


def compile_kernel(text: str, name: str, wanted: Level | None = None) -> int:
    """The address of the function `name` of a module's text."""
    wanted = wanted or level()
    machine, engine = _machine(wanted.code)
    module = llvm.parse_assembly(text)
    module.verify()
    if wanted.passes:
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=wanted.passes))
        passes.getModulePassManager().run(module, passes)
    engine.add_module(module)
    engine.finalize_object()
    return engine.get_function_address(name)


def _register(name: str, address: int) -> None:
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    jax.ffi.register_ffi_target(name, capsule(address, None, None), platform="cpu")
