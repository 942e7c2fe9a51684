"""What one step of the engine's program costs on a GPU, read from the compiled program: no device is needed.

A kernel is one launch in the body of the step's loop. Its bytes are what it must read and write in the device's memory:
each operand and result once, of a gather or scatter only the rows it touches. Intermediates that stay in the cache are
counted, so bytes are an upper bound; they are exact as a comparison of two programs.
"""

import math
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from jaxleak.bench import variants
from jaxleak.bench.accelerators import ACCELERATORS, described_device
from jaxleak.engine.programs import Programs, Traced
from jaxleak.kernels.platform import for_accelerator
from jaxleak.results.store.environment import environment

REACHED = 0.9  # of the memory's bandwidth, and
REACHED_FLOPS = 0.75  # of the float32 rate: what good kernels reach
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
# No launch: names for what is there.
FREE = {"get-tuple-element", "bitcast", "parameter", "constant", "tuple", "after-all"}
ROWS = {"gather", "dynamic-slice"}  # read only the rows they return
IN_PLACE = {"scatter": 2, "dynamic-update-slice": 1}  # by the operand that holds what is written
FULL = "operand_precision={highest,highest"  # of a product whose float32 stays float32
GROUPS = ("history", "target", "convolutions", "layers", "small")


class Instruction(NamedTuple):
    """One line of a program: `name = shape op(operands), attributes`."""

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    text: str

    @property
    def bytes(self) -> int:
        return bytes_of(self.shape)


Computations = dict[str, dict[str, Instruction]]


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        name: in the program.
        kind: its operation; of a library's the function.
        group: one of `GROUPS`.
        bytes: read and written.
        flops: of matrix products and convolutions.
        source: where in the traced program it comes from.
        reduced: matrix products and convolutions in it that are not in full float32.
    """

    name: str
    kind: str
    group: str
    bytes: int
    flops: int
    source: str
    reduced: int = 0


@dataclass(frozen=True)
class Account:
    """One step of all lanes.

    Attributes:
        accelerator: one of `ACCELERATORS`.
        variant, model, lanes: what runs.
        kernels: in the order in which they run.
        lane_bytes: memory of a lane while it computes.
        compile_seconds: of the whole program.
        settings: what it was compiled from.
    """

    accelerator: str
    variant: str
    model: str
    lanes: int
    kernels: tuple[Kernel, ...]
    lane_bytes: int
    compile_seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)

    def seconds(self, kernels: Sequence[Kernel] | None = None) -> float:
        """The least time that these kernels take, each by its bytes or its operations; launches are not counted."""
        device = ACCELERATORS[self.accelerator]
        bandwidth, flops = REACHED * device.bandwidth, REACHED_FLOPS * device.flops
        return sum(max(kernel.bytes / bandwidth, kernel.flops / flops) for kernel in kernels or self.kernels)

    @property
    def library_calls(self) -> int:
        """Launches of libraries: each ends the CUDA graph before it."""
        return sum(not kernel.kind.startswith("fusion") and kernel.kind != "copy" for kernel in self.kernels)

    def report(self) -> dict[str, Any]:
        """For JSON and tables."""
        groups = []
        for group in GROUPS:
            members = [kernel for kernel in self.kernels if kernel.group == group]
            if members:
                numbers = {"kernels": len(members), "bytes": sum(kernel.bytes for kernel in members)}
                flops = sum(kernel.flops for kernel in members)
                groups.append({"group": group, **numbers, "flops": flops, "seconds": self.seconds(members)})
        return {
            "accelerator": self.accelerator,
            "device": ACCELERATORS[self.accelerator].name,
            "variant": self.variant,
            "model": self.model,
            "lanes": self.lanes,
            "kernels": len(self.kernels),
            "library_calls": self.library_calls,
            "reduced": sum(kernel.reduced for kernel in self.kernels),
            "bytes": self.bytes,
            "flops": self.flops,
            "seconds": self.seconds(),
            "evaluations_per_second": self.lanes / self.seconds(),
            "lane_bytes": self.lane_bytes,
            "lanes_that_fit": int(REACHED * ACCELERATORS[self.accelerator].memory / self.lane_bytes),
            "compile_seconds": self.compile_seconds,
            "groups": groups,
            "largest": [vars(kernel) for kernel in sorted(self.kernels, key=lambda kernel: -kernel.bytes)[:12]],
            "settings": self.settings,
            "git_revision": environment()["git_revision"],
        }


def account(accelerator: str, variant: str, lanes: int, settings: dict[str, Any]) -> Account:
    """Compile one of the bench's variants for a GPU, and count what a step costs.

    Args:
        accelerator: one of `ACCELERATORS`.
        variant: one of `settings.OURS`.
        lanes: trials at once.
        settings: as `Settings.plain` has them.
    """
    device = described_device(accelerator)
    with for_accelerator():
        return _account(accelerator, device, variant, lanes, settings)


def _account(accelerator: str, device: Any, variant: str, lanes: int, settings: dict[str, Any]) -> Account:
    trial = variants.trial(settings, variant)
    began = time.perf_counter()
    shared, job = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (jax.eval_shape(trial.shared), jax.tree.map(lambda leaf: leaf[0], variants.jobs(settings))),
    )
    traced = Traced(trial, shared, job)
    with ThreadPoolExecutor() as threads:
        programs = Programs(traced, device, lanes, threads)
        programs.wait()
    took = time.perf_counter() - began
    problem, state = traced.trial_type
    pairs = _largest(state.solver) if hasattr(trial.attack.solver, "history") else 0
    kernels = kernels_of(str(programs.chunk.as_text()), lanes * pairs, lanes * _largest(problem.update))
    return Account(
        accelerator,
        variant,
        settings["model"],
        lanes,
        tuple(kernels),
        programs.bytes_per_lane,
        round(took, 1),
        settings,
    )


def _largest(tree: Any) -> int:
    """Elements of the largest array."""
    return max((leaf.size for leaf in jax.tree.leaves(tree)), default=0)


def kernels_of(text: str, history: int = 0, target: int = 0) -> list[Kernel]:
    """The launches in the body of a compiled program's loop.

    Args:
        text: the program after XLA's passes for a GPU (HLO).
        history: elements of the solver's history over all lanes, by which its kernels are known; 0: it has none.
        target: the same of the largest tensor of the update.
    """
    computations = parsed(text)
    bodies = [body for _, body in re.findall(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", text)]
    body = max((computations[name] for name in bodies), key=len)
    return [_kernel(line, body, computations, history, target) for line in body.values() if line.op not in FREE]


def parsed(text: str) -> Computations:
    """The computations of a program in text form, each by the names of its instructions."""
    computations: Computations = {}
    current = None
    for line in re.sub(r"/\*index=\d+\*/", "", text).splitlines():
        if begun := re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations.setdefault(begun[1], {})
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := re.match(r"^\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(", line)):
            inside = line[found.end() : _closing(line, found.end())]
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            current[found[2]] = Instruction(found[2], found[3], found[4], operands, line.strip())
    return computations


def _closing(line: str, begin: int) -> int:
    depth = 1
    for place in range(begin, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if depth == 0:
            return place
    return len(line)


def bytes_of(shape: str) -> int:
    """Bytes of a shape, or of all in a tuple of shapes."""
    return sum(SIZES[kind] * elements for kind, elements in _arrays(shape))


def _arrays(shape: str) -> list[tuple[str, int]]:
    """Type and number of elements of each array in a shape."""
    found = re.findall(rf"\b({'|'.join(SIZES)})\[([\d,]*)\]", shape)
    return [(kind, math.prod(int(size) for size in sizes.split(",") if size)) for kind, sizes in found]


def _kernel(line: Instruction, body, computations: Computations, history: int, target: int) -> Kernel:
    attribute = re.search(r'op_name="([^"]*)"', line.text)
    source = attribute[1] if attribute else ""
    inside = computations.get(_called(line) or "", {})
    parts = [(line, body), *_inner(line, computations)]
    read = sum(_read(number, operand, body, inside) for number, operand in enumerate(line.operands) if operand in body)
    kind = line.op
    if kind == "fusion":
        kind = f"fusion {_after('kind=', line.text)}"
    elif kind == "custom-call":
        kind = _after('custom_call_target="', line.text)
    touched = [elements for name in line.operands if name in body for _, elements in _arrays(body[name].shape)]
    return Kernel(
        name=line.name,
        kind=kind,
        group=_group(source, touched, history, target),
        bytes=read + _written(line, inside),
        flops=sum(_flops(*part) for part in parts),
        source=source,
        reduced=sum(_is_product(part) and FULL not in part.text for part, _ in parts),
    )


def _after(before: str, text: str) -> str:
    found = re.search(re.escape(before) + r"([\w$.\-]+)", text)
    return found[1] if found else ""


def _called(line: Instruction) -> str | None:
    return _after("calls=%", line.text) or _after("calls=", line.text) or None


def _inner(line: Instruction, computations: Computations):
    """The instructions of all computations that a fusion calls, each with its computation."""
    todo = [_called(line)]
    while todo:
        inside = computations.get(todo.pop() or "", {})
        for part in inside.values():
            yield part, inside
            todo.append(_called(part))


def _group(source: str, touched: Sequence[int], history: int, target: int) -> str:
    if history and history in touched:
        return "history"
    if target and target in touched and not re.search(r"(?i)conv\d*/", source):
        return "target"
    layers = re.search(r"\((\w+)\)+/(.*)", source)
    if re.search(r"(?i)conv", source):
        return "convolutions"
    return "layers" if layers and re.search(r"jvp|transpose", source) else "small"


def _read(number: int, operand: str, body, inside: dict[str, Instruction]) -> int:
    """Bytes of an operand that a launch reads: all, or, where it is only indexed, the rows that are asked for."""
    whole = body[operand].bytes
    parameter = next(
        (part.name for part in inside.values() if part.op == "parameter" and f"parameter({number})" in part.text), None
    )
    if parameter is None:
        return whole
    rows = 0
    for name, part in _users(parameter, inside):
        if part.op in ROWS and part.operands[0] == name:
            rows += part.bytes
        elif part.op in IN_PLACE and part.operands[0] == name:
            continue  # written in place: what is there is not read
        else:
            return whole
    return min(rows, whole)


def _users(name: str, inside: dict[str, Instruction]):
    """Who uses a value, also under other names."""
    for part in inside.values():
        if name in part.operands:
            if part.op == "bitcast":
                yield from _users(part.name, inside)
            else:
                yield name, part


def _written(line: Instruction, inside: dict[str, Instruction]) -> int:
    """Bytes that a launch writes: its results, of what is updated in place the rows that are new."""
    root = next((part for part in inside.values() if part.text.startswith("ROOT")), None)
    if root is None:
        return line.bytes
    results = [inside[name] for name in root.operands if name in inside] if root.op == "tuple" else [root]
    total = 0
    for result in results:
        while result.op == "bitcast" and result.operands[0] in inside:
            result = inside[result.operands[0]]
        update = inside.get(result.operands[IN_PLACE[result.op]]) if result.op in IN_PLACE else None
        total += result.bytes if update is None else update.bytes
    return total


def _is_product(line: Instruction) -> bool:
    return line.op in ("dot", "convolution") or (line.op == "custom-call" and bool(re.search("cudnn|gemm", line.text)))


def _flops(line: Instruction, computed: dict[str, Instruction]) -> int:
    """Multiplications and additions of a matrix product or convolution."""
    out = sum(elements for _, elements in _arrays(line.shape)[:1])
    if line.op == "dot":
        sizes = _sizes(computed[line.operands[0]].shape)
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.text)
        return (
            2 * out * math.prod(sizes[int(axis)] for axis in (contracted[1] if contracted else "").split(",") if axis)
        )
    if "window=" in line.text and (line.op == "convolution" or "cudnn" in line.text):
        labels = re.search(r"dim_labels=\w+_(\w+)->(\w+)", line.text)
        sizes = [_sizes(computed[name].shape) for name in line.operands[:2]]
        window = re.search(r"window=\{size=([\dx]+)", line.text)
        if labels and window:
            inputs = sizes[1][labels[1].index("i")]
            return 2 * out * inputs * math.prod(int(size) for size in window[1].split("x"))
    return 0


def _sizes(shape: str) -> list[int]:
    found = re.search(r"\[([\d,]*)\]", shape)
    return [int(size) for size in (found[1] if found else "").split(",") if size]
