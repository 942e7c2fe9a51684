"""Each channel of a batch to mean 0 and variance 1, with derivatives of any order.

With m and v the mean and the biased variance of a channel over N positions, r = (v + epsilon)^(-1/2) and u = (x - m) r,

    standardised  u
    slope         B(g) = r P(g), along g, where P(g) = g - mean(g) - u q(g) and q(g) = mean(u g)
    curvature     C(g, t) = -r² (q(t) P(g) + q(g) P(t) + u c(g, t)), where c(g, t) = mean(g P(t))

B is symmetric: <a, B(g)> = <B(a), g>. So is C: <a, C(g, t)> stays the same whatever the order of a, g and t. The
transpose of each is therefore itself, and the derivative of B in x is C.
"""

import functools

import jax
import jax.numpy as jnp
from jax.interpreters import ad
from jaxtyping import Array, Float

from jaxleak.kernels.llvm import norm, usable
from jaxleak.kernels.llvm.primitive import primitive_over_lanes
from jaxleak.kernels.platform import accelerated

Positions = Float[Array, "p c"]


def standardised(x: Float[Array, "*b c"], epsilon: float) -> Float[Array, "*b c"]:
    """(x - m) / sqrt(v + epsilon), m and v over all axes but the last."""
    if accelerated() or not usable(x):
        return _standardised(x.reshape(-1, x.shape[-1]), epsilon).reshape(x.shape)
    (out,) = _primitives(epsilon)[0].bind(x.reshape(1, -1, x.shape[-1]))
    return out.reshape(x.shape)


def _standardised(x: Positions, epsilon: float) -> Positions:
    return _parts(x, epsilon)[0]


def _slope(x: Positions, g: Positions, epsilon: float) -> Positions:
    u, r = _parts(x, epsilon)
    return r * _left(u, g)[0]


def _curvature(x: Positions, g: Positions, t: Positions, epsilon: float) -> Positions:
    u, r = _parts(x, epsilon)
    (left, first), (right, second) = _left(u, g), _left(u, t)
    return -jnp.square(r) * (second * left + first * right + u * jnp.mean(g * right, axis=0))


def _parts(x: Positions, epsilon: float):
    """u and r."""
    apart = x - jnp.mean(x, axis=0)
    r = jax.lax.rsqrt(jnp.mean(jnp.square(apart), axis=0) + epsilon)
    return apart * r, r


def _left(u: Positions, g: Positions):
    """P(g) and q(g)."""
    apart = g - jnp.mean(g, axis=0)
    along = jnp.mean(u * apart, axis=0)
    return apart - u * along, along


@functools.cache
def _primitives(epsilon: float):
    """The three for one epsilon, over lanes [l, p, c]."""
    functions = [functools.partial(f, epsilon=epsilon) for f in (_standardised, _slope, _curvature)]
    builds = (norm.standardised, norm.slope, norm.curvature)
    value, slope, curvature = (
        primitive_over_lanes(lambda *a, f=f: (f(*a),), build, lambda x, *_: norm.Call(epsilon, str(x.dtype)))
        for f, build in zip(functions, builds, strict=True)
    )

    def added(*terms):
        return [functools.reduce(jnp.add, terms)] if terms else None

    def along(primitive, arguments, tangents):
        """The derivative of a product in all arguments but the first, in each of which it is linear."""
        return [
            primitive.bind(*arguments[:n], tangent, *arguments[n + 1 :])[0]
            for n, tangent in enumerate(tangents)
            if n and not isinstance(tangent, ad.Zero)
        ]

    def value_jvp(arguments, tangents):
        return value.bind(*arguments), slope.bind(arguments[0], tangents[0])

    def slope_jvp(arguments, tangents):
        terms = along(slope, arguments, tangents)
        if not isinstance(tangents[0], ad.Zero):
            terms += curvature.bind(*arguments, tangents[0])
        return slope.bind(*arguments), added(*terms)

    def curvature_jvp(arguments, tangents):
        terms = along(curvature, arguments, tangents)
        if not isinstance(tangents[0], ad.Zero):
            of_x = jax.vmap(functions[2])
            terms.append(jax.jvp(lambda x: of_x(x, *arguments[1:]), arguments[:1], tangents[:1])[1])
        return curvature.bind(*arguments), added(*terms)

    def transpose(primitive):
        def rule(cotangents, *arguments):
            (place,) = (n for n, argument in enumerate(arguments) if ad.is_undefined_primal(argument))
            given = [*arguments[:place], cotangents[0], *arguments[place + 1 :]]
            found = None if isinstance(cotangents[0], ad.Zero) else primitive.bind(*given)[0]
            return [found if n == place else None for n in range(len(arguments))]

        return rule

    for primitive, rule in ((value, value_jvp), (slope, slope_jvp), (curvature, curvature_jvp)):
        ad.primitive_jvps[primitive] = rule
    for primitive in (slope, curvature):
        ad.primitive_transposes[primitive] = transpose(primitive)
    return value, slope, curvature
