"""Finds the dense layers of a traced model that read a flattened map of features, and the order of their inputs.

torch's maps are NCHW, Linen's NHWC: a layer that reads a flattened one has its inputs in another order there.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import PyTree

Path = tuple[str, ...]
Shape = tuple[int, int, int]

NHWC, NCHW = (0, 1, 2, 3), (0, 3, 1, 2)
NWC, NCW = (0, 2, 3), (0, 3, 2)  # of signals, maps of one row
REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin")


class Parameter(NamedTuple):
    """A tensor of the model, or one with the same numbers in the same order."""

    path: Path


class Map(NamedTuple):
    """A map of features, whose axis i is axis `axes[i]` of NHWC."""

    axes: tuple[int, ...]


class Flat(NamedTuple):
    """A map of features of shape `dims` in another shape; no `dims`: of several maps, or in an order of its own."""

    dims: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()


Kind = Parameter | Map | Flat | None


def flattened_readers(
    function: Callable, params: PyTree, x: jax.ShapeDtypeStruct, *others: PyTree
) -> dict[Path, Shape | None]:
    """Tensors whose inputs come in another order than torch's, with height, width and channels of what each reads.

    Args:
        function: of `params`, images in NHWC and the `others`, without layers of jaxleak.
        params: nested dicts of arrays, or of their shapes and types.
        x: shape and type of the images.
        others: further arguments.

    Returns:
        By path; None where that order cannot be told. Layers that read channels alone, or a map that was put in
        torch's order before, are left out.
    """
    paths = [tuple(step.key for step in path) for path, _ in jax.tree.leaves_with_path(params)]
    kinds: list[Kind] = [Parameter(path) for path in paths]
    readers: dict[Path, Shape | None] = {}
    kinds += [Map(NHWC), *(None for _ in jax.tree.leaves(others))]
    _follow(jax.make_jaxpr(function)(params, x, *others).jaxpr, kinds, readers)
    return readers


def _follow(jaxpr: Jaxpr, kinds: list[Kind], readers: dict[Path, Shape | None]) -> list[Kind]:
    """Kinds of the outputs, given those of the inputs."""
    known: dict[Any, Kind] = dict(zip(jaxpr.invars, kinds, strict=True))

    def kind(atom) -> Kind:
        return None if isinstance(atom, Literal) else known.get(atom)

    for equation in jaxpr.eqns:
        inputs = [kind(atom) for atom in equation.invars]
        inner = _inner(equation)
        if inner is not None:
            outputs = _follow(inner, inputs, readers)
        else:
            shapes: Any = [out.aval for out in equation.outvars]
            outputs = [_output(equation, inputs, aval.shape, readers) for aval in shapes]
        known.update(zip(equation.outvars, outputs, strict=True))
    return [kind(atom) for atom in jaxpr.outvars]


def _inner(equation) -> Jaxpr | None:
    """The function that an equation calls once with its own arguments, such as one under `jit`."""
    parts = [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in equation.params.values()]
    inner = [part for part in parts if isinstance(part, Jaxpr)]
    if len(inner) != 1:
        return None
    both: Any = (inner[0].invars, equation.invars)
    taken, given = ([atom.aval.shape for atom in atoms] for atoms in both)
    return inner[0] if taken == given and len(inner[0].outvars) == len(equation.outvars) else None


def _output(equation, inputs: list[Kind], shape: tuple[int, ...], readers: dict[Path, Shape | None]) -> Kind:
    """Kind of an output of this shape."""
    name, shapes = equation.primitive.name, [atom.aval.shape for atom in equation.invars]
    flat = [(kind, size) for kind, size in zip(inputs, shapes, strict=True) if isinstance(kind, Flat)]
    if name == "conv_general_dilated":
        batch, feature, *spatial = equation.params["dimension_numbers"].out_spec
        place = {batch: 0, feature: 3, **{axis: 3 - len(spatial) + i for i, axis in enumerate(spatial)}}
        return Map(tuple(place[axis] for axis in range(len(shape)))) if len(shape) in (3, 4) else None
    if flat:
        return _of_flat(equation, inputs, shapes, flat, shape, readers)
    if len(inputs) == 1 and isinstance(inputs[0], Parameter):
        return inputs[0]
    maps = [kind for kind in inputs if isinstance(kind, Map)]
    source = maps[0] if maps else Map(NHWC)
    if name == "reshape" and len(shapes[0]) == len(source.axes) and not isinstance(inputs[0], Parameter):
        return _reshaped(source, shapes[0], shape)
    if name == "transpose" and len(shape) == len(source.axes):
        return Map(tuple(source.axes[axis] for axis in equation.params["permutation"]))
    return source if maps and len(shape) == len(source.axes) else None


def _reshaped(source: Map, before: tuple[int, ...], after: tuple[int, ...]) -> Kind:
    """A map in another shape; one pixel has one order only."""
    size = dict(zip(source.axes, before, strict=True))
    if size.get(1, 1) * size[2] == 1 or before[0] != after[0]:
        return None
    return Flat(before, source.axes) if source.axes[0] == 0 else Flat()


def _of_flat(equation, inputs, shapes, flat, shape, readers: dict[Path, Shape | None]) -> Kind:
    """Kind of what is computed of flattened maps; tensors that they meet are noted in `readers`."""
    name, (first, size) = equation.primitive.name, flat[0]
    mixed = any(kind != first for kind, _ in flat)
    for operand, dims in zip(inputs, shapes, strict=True):
        if isinstance(operand, Parameter) and len(size) == 2 and math.prod(dims) > 1:
            kernel = len(dims) == 2 and dims[0] == size[1]
            if not kernel or mixed or not first.dims:
                readers[operand.path] = None
            elif first.axes not in (NCHW, NCW):
                axes = {1: 1, **dict(zip(first.axes, first.dims, strict=True))}
                shape_read = (axes[1], axes[2], axes[3]) if first.axes in (NHWC, NWC) else None
                readers[operand.path] = shape_read if readers.get(operand.path, shape_read) == shape_read else None
            if kernel:
                return None
    met = any(isinstance(kind, Parameter) for kind in inputs)
    if name in REDUCTIONS or (met and (shape != size or (name == "dot_general" and len(size) > 2))):
        return None
    if mixed or not first.dims:
        return Flat()
    if name == "reshape":
        if shape == first.dims:
            return Map(first.axes)
        return first if len(size) == len(shape) else Flat()
    return first if shape == size and name not in ("rev", "sort", "cumsum") else Flat()
