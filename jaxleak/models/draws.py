"""Initial weights of deep networks, without compiling a program as long as the network.

`jax.jit(model.init)` generates the random bits of every tensor in code of its own: for DenseNet-121 that compiles for
minutes. Here what a drawn tensor needs is computed flat, by a program for the next power of four of its size, which all
tensors drawn alike share. Element n of a tensor depends on its key and on n alone (`jax_threefry_partitionable`), so a
longer tensor begins with the same numbers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal
from jax.interpreters import partial_eval

CALLS = ("jit", "pjit")  # names of a call in jaxprs of different jax versions
SMALLEST = 64  # elements that a program has at least
UNARY = ("erf_inv",)  # that newer versions of jax apply outside of a call
# Of one element at a time: all that may stand in a call that draws, beside random bits and what has a shape.
ELEMENTWISE = {
    *("add", "sub", "mul", "div", "neg", "abs", "sign", "max", "min", "clamp", "floor", "square", "sqrt"),
    *("integer_pow", "exp", "log", "log1p", "erf", "erf_inv", "sin", "cos", "tanh", "nextafter", "stop_gradient"),
    *("eq", "ne", "lt", "le", "gt", "ge", "select_n", "and", "or", "xor", "not", "copy"),
    *("shift_left", "shift_right_logical", "convert_element_type", "bitcast_convert_type"),
}


class Scaled(NamedTuple):
    """An array and a factor that waits for others: XLA multiplies constants first, (a c) d is a (c d)."""

    array: np.ndarray
    factor: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        return self.array * self.factor


class NotFlatError(Exception):
    """What was drawn is not one elementwise function of random bits."""


def draw(init: Callable[[Any], Any], key: Any) -> Any:
    """`jax.jit(init)(key)`, to the last bit.

    Args:
        init: from a key to a tree of arrays; what else it computes is left out.
        key: a typed PRNG key. While it is traced, `init(key)` is what is returned.
    """
    if isinstance(key, Tracer) or not getattr(jax.config, "jax_threefry_partitionable", False):
        return jax.jit(init)(key)
    closed, shape = jax.make_jaxpr(init, return_shape=True)(key)
    leaves, structure = jax.tree.flatten(shape)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(leaves), instantiate=True)
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, [key], strict=True))
    try:
        for equation in jaxpr.eqns:
            inputs = [_read(values, atom) for atom in equation.invars]
            outputs = _evaluate(equation, inputs)
            values |= dict(zip(equation.outvars, outputs, strict=True))
    except NotFlatError:
        return jax.jit(init)(key)
    found = [jax.numpy.asarray(_whole(_read(values, atom))) for atom in jaxpr.outvars]
    return jax.tree.unflatten(structure, found)


def _read(values: dict[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, Literal) else values[atom]


def _whole(value: Any) -> Any:
    return value.whole if isinstance(value, Scaled) else value


def _evaluate(equation: Any, inputs: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if len(equation.outvars) != 1:
        raise NotFlatError(name)
    (out,) = equation.outvars
    if name == "mul" and sum(map(_is_scalar, inputs)) == 1 and out.aval.ndim:
        array, scalar = sorted(inputs, key=_is_scalar)
        before = array if isinstance(array, Scaled) else Scaled(np.asarray(array), np.ones((), out.aval.dtype))
        return [before._replace(factor=before.factor * np.asarray(scalar))]
    inputs = [_whole(value) for value in inputs]
    if name in CALLS and out.aval.ndim and out.aval.size > 1:
        return [_flat(params["jaxpr"], inputs)]
    if name == "broadcast_in_dim" and np.ndim(inputs[0]) == 0:
        return [np.broadcast_to(np.asarray(inputs[0]), params["shape"])]
    if out.aval.ndim and name == "mul":  # numpy's is XLA's
        return [np.multiply(*map(np.asarray, inputs))]
    if name in UNARY and out.aval.size > 1:
        (values,) = (np.asarray(value) for value in inputs)
        flat = np.zeros(_room(values.size), values.dtype)
        flat[: values.size] = values.ravel()
        return [np.asarray(_unary(equation.primitive, flat, **params))[: values.size].reshape(values.shape)]
    if out.aval.size > 1:
        raise NotFlatError(name)
    return [equation.primitive.bind(*inputs, **params)]


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, Scaled) and np.ndim(value) == 0


def _room(size: int) -> int:
    """Elements of the program that serves so many."""
    return max(SMALLEST, 4 ** math.ceil(math.log(size, 4)))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("accuracy",))
def _unary(primitive: Any, flat: Any, **params: Any) -> Any:
    return primitive.bind(flat, **params)


def _flat(called: Any, inputs: list[Any]) -> np.ndarray | Scaled:
    """The result of a call that draws one tensor."""
    if called.consts:  # they are not in the text, by which programs are told apart
        raise NotFlatError("constants")
    (out,) = called.jaxpr.outvars
    shape, size = out.aval.shape, out.aval.size
    room = _room(size)
    bracketed = ",".join(map(str, shape))
    text = str(called).replace(f"[{bracketed}]", "[*]").replace(str(shape), "(*)")
    text = text.replace(f"[{','.join('1' * len(shape))}]", "[1]")
    if (text, room) not in _programs:
        _programs[text, room] = jax.jit(functools.partial(_run, called, shape, room))
    factor = _last_factor(called.jaxpr)
    found = np.asarray(_programs[text, room](*inputs))[:size].reshape(shape)
    return found if factor is None else Scaled(found, np.asarray(factor))


def _last_factor(jaxpr: Any) -> Any:
    """The constant that a call multiplies its result with at its end, which `_run` leaves out; None: with none."""
    last = jaxpr.eqns[-1]
    if last.primitive.name in CALLS:
        return _last_factor(last.params["jaxpr"].jaxpr)
    constants = [atom.val for atom in last.invars if isinstance(atom, Literal)]
    return constants[0] if last.primitive.name == "mul" and len(constants) == 1 else None


_programs: dict[tuple[str, int], Callable] = {}


def _run(called: Any, shape: tuple[int, ...], room: int, *inputs: Any, whole: bool = False) -> Any:
    """A call whose arrays of `shape` are vectors of `room` elements instead; without `_last_factor` unless `whole`."""
    jaxpr = called.jaxpr
    values = dict(zip(jaxpr.constvars, called.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def flattened(wanted: tuple[int, ...]) -> tuple[int, ...]:
        if wanted == shape:
            return (room,)
        if wanted in ((), (1,) * len(shape)):
            return wanted[:1]
        raise NotFlatError(wanted)

    for equation in jaxpr.eqns:
        inputs = tuple(_read(values, atom) for atom in equation.invars)
        name, params = equation.primitive.name, equation.params
        for atom in (*equation.outvars, *equation.invars):
            if flattened(atom.aval.shape) and isinstance(atom, Literal):
                raise NotFlatError("constants")
        last = equation is jaxpr.eqns[-1] and not whole
        if name in CALLS:
            outputs = [_run(params["jaxpr"], shape, room, *inputs, whole=not last)]
        elif last and _last_factor(jaxpr) is not None:
            outputs = [
                value for value, atom in zip(inputs, equation.invars, strict=True) if not isinstance(atom, Literal)
            ]
        elif name == "broadcast_in_dim":
            outputs = [jax.numpy.broadcast_to(inputs[0], flattened(params["shape"]))]
        elif name == "random_bits":
            new = {**params, "shape": flattened(params["shape"])}
            outputs = [equation.primitive.bind(*inputs, **new)]
        elif name in ELEMENTWISE:
            outputs = [equation.primitive.bind(*inputs, **params)]
        else:
            raise NotFlatError(name)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    (out,) = jaxpr.outvars
    return _read(values, out)
