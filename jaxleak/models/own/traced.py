"""Convolutions in a traced function: which there are, and the same function with fast ones in their place."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.core.primitives import conv_general_dilated_p

from jaxleak.kernels.conv import fast_conv


def slow_convolutions(function: Callable, *args) -> list[str]:
    """The convolutions of XLA that a function runs, each as "where [input shape] * [kernel shape]"; nothing is run.

    Args:
        function: of arrays.
        args: arrays, or their shapes and types.
    """
    return [
        f"{where or 'a convolution'} {' * '.join(str(list(x.aval.shape)) for x in equation.invars)}"
        for where, equation in _equations(jax.make_jaxpr(function)(*args).jaxpr)
        if equation.primitive is conv_general_dilated_p
    ]


def _equations(jaxpr: Jaxpr, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every equation, those inside others included, and the layers around it."""
    for equation in jaxpr.eqns:
        place = "/".join(filter(None, [where, str(equation.source_info.name_stack)]))
        yield place, equation
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else [value]:
                inner = part.jaxpr if isinstance(part, ClosedJaxpr) else part
                if isinstance(inner, Jaxpr):
                    yield from _equations(inner, place)


def with_fast_convolutions(function: Callable) -> Callable:
    """The same function of arrays, whose convolutions are `fast_conv`, also those that it calls by `lax`.

    Convolutions that are not of images in NHWC, and those inside loops and branches, stay as they are.
    """

    def fast(*args):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.structure(shapes).unflatten(_evaluate(closed, jax.tree.leaves(args)))

    return fast


def _evaluate(closed: ClosedJaxpr, args: list) -> list:
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation, args: list) -> list:
    params = dict(equation.params)
    if equation.primitive.name == "jit":
        return _evaluate(params["jaxpr"], args)
    if equation.primitive is conv_general_dilated_p and params.pop("batch_group_count") == 1:
        return [fast_conv(*args, **params)]
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # before and after jax 0.10
    results = equation.primitive.bind(*functions, *args, **params)
    return results if equation.primitive.multiple_results else [results]
