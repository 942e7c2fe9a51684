"""A batch norm on a CPU: each channel to mean 0 and variance 1, and its two derivatives.

XLA's fusions compute what belongs to a channel again for every pixel; here a few channels are read three times: for
their means, for the sums of products of what is left, and for the result. `jaxleak/kernels/norm.py` has the formulas.

The arguments are [lanes, positions, channels] and tell their sizes when a kernel is called, so that it serves all.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxleak.kernels.llvm import new_kernel

if TYPE_CHECKING:
    from jaxleak.kernels.llvm.emit import Kernel

BLOCK = 64  # positions whose sum is added to the total: shorter sums round less


class Call(NamedTuple):
    """What one compiled kernel serves: all sizes."""

    epsilon: float
    dtype: str


def standardised(name: str, call: Call) -> str:
    """x -> (x - m) r."""

    def finish(k, channel):
        r = channel.scale

        return lambda x: k.b.fmul(x, r)

    return _kernel(name, call, 1, finish)


def slope(name: str, call: Call) -> str:
    """x and g -> the derivative of `standardised` at x along g."""

    def finish(k, channel):
        r = channel.scale
        q = k.b.fmul(k.b.fmul(r, r), channel.covariance(0, 1))

        return lambda x, g: k.b.fmul(r, k.b.fsub(g, k.b.fmul(x, q)))

    return _kernel(name, call, 2, finish)


def curvature(name: str, call: Call) -> str:
    """x, g and t -> the derivative of `slope` in x along t."""

    def finish(k, channel):
        b, r = k.b, channel.scale
        first, second = (b.fmul(r, channel.covariance(0, n)) for n in (1, 2))
        both = b.fsub(channel.covariance(1, 2), b.fmul(first, second))
        minus = b.fneg(b.fmul(r, r))

        def value(x, g, t):
            unit = b.fmul(x, r)
            left, right = (b.fsub(a, b.fmul(unit, along)) for a, along in ((g, first), (t, second)))
            terms = b.fmul(second, left), b.fmul(first, right), b.fmul(unit, both)
            return b.fmul(minus, b.fadd(b.fadd(terms[0], terms[1]), terms[2]))

        return value

    return _kernel(name, call, 3, finish)


class _Channel:
    """The means and covariances of some channels, a vector of them."""

    def __init__(self, k: "Kernel", totals: dict[tuple[int, int], Any], count, epsilon: float):
        self.k, self.totals, self.count = k, totals, count
        variance = k.b.fadd(self.covariance(0, 0), k.splat(k.number(epsilon)))
        self.scale = k.b.fdiv(k.splat(k.number(1.0)), k.root(variance))

    def covariance(self, first: int, second: int):
        return self.k.b.fdiv(self.k.get(self.totals[first, second]), self.count)


def _kernel(name: str, call: Call, arguments: int, finish: Callable) -> str:
    """A result of the positions' deviations from their channels' means, and of the covariances."""
    k = new_kernel(name, call.dtype)
    *sources, result = k.buffers(arguments, 1)
    lanes, positions, channels = k.sizes(3)
    count = k.splat(k.b.sitofp(positions, k.real))
    # The sums of a norm's second derivative are four for each vector.
    across = 4 if k.registers >= 20 else 2
    pairs = [(0, 0), *((0, n) for n in range(1, arguments)), *([(1, 2)] if arguments == 3 else [])]

    def sums(some, amounts: Callable, kinds: list) -> list[dict]:
        """Over all positions, of each kind, for `some` vectors of channels."""
        totals = [{kind: k.variable() for kind in kinds} for _ in range(some)]

        def block(start, length):
            parts = [{kind: k.variable() for kind in kinds} for _ in range(some)]
            with k.loop(length) as n:
                for vector, part in enumerate(parts):
                    for kind, amount in amounts(k.add(start, n), vector).items():
                        k.b.store(k.b.fadd(k.get(part[kind]), amount), part[kind])
            for total, part in zip(totals, parts, strict=True):
                for kind in kinds:
                    k.b.store(k.b.fadd(k.get(total[kind]), k.get(part[kind])), total[kind])

        whole, rest = k.divided(positions, BLOCK)
        with k.loop(whole) as n:
            block(k.multiply(n, BLOCK), BLOCK)
        block(k.multiply(whole, BLOCK), rest)
        return totals

    def some_channels(inputs, output, first, some, real: Any = k.width):
        def place(position, vector):
            return k.add(k.multiply(position, channels), first, vector * k.width)

        def values(position, vector):
            return {n: k.load(x, place(position, vector), real) for n, x in enumerate(inputs)}

        found = sums(some, values, list(range(arguments)))
        means = [{n: k.variable(k.b.fdiv(k.get(total), count)) for n, total in of.items()} for of in found]

        def deviations(position, vector):
            read = values(position, vector)
            return [k.b.fsub(read[n], k.get(means[vector][n])) for n in range(arguments)]

        def products(position, vector):
            apart = deviations(position, vector)
            return {(a, b): k.b.fmul(apart[a], apart[b]) for a, b in pairs}

        of_channels = [_Channel(k, totals, count, call.epsilon) for totals in sums(some, products, pairs)]
        made = [finish(k, channel) for channel in of_channels]
        with k.loop(positions) as position:
            for vector, value in enumerate(made):
                out = value(*deviations(position, vector))
                k.store(out, output, place(position, vector), real)

    with k.loop(lanes) as lane:
        begin = k.multiply(k.multiply(lane, positions), channels)
        inputs, output = [k.at(x, begin) for x in sources], k.at(result, begin)
        wide = across * k.width
        several, rest = k.divided(channels, wide)
        with k.loop(several) as n:
            some_channels(inputs, output, k.multiply(n, wide), across)
        single, rest = k.divided(rest, k.width)
        with k.loop(single) as n:
            some_channels(inputs, output, k.add(k.multiply(several, wide), k.multiply(n, k.width)), 1)
        with k.when(k.b.icmp_signed(">", rest, k.integer(0))):
            some_channels(inputs, output, k.b.sub(channels, rest), 1, k.below(rest))
    return k.finish()
