"""Sums over the vectors of a lane on a CPU, several in one reading; XLA's share a pool of threads and wait for it."""

from typing import NamedTuple

from jaxleak.native.emit import Kernel

ROWS = 4  # sums running side by side


class Call(NamedTuple):
    """What a kernel is specialised to."""

    lanes: int
    size: int  # n
    dtype: str

    @classmethod
    def of(cls, vectors) -> "Call":
        """From the shape [l, n]."""
        lanes, size = vectors.shape
        return cls(lanes, size, str(vectors.dtype))


def dot(name: str, call: Call) -> str:
    """a and b [l, n] -> sum a b [l]."""
    k = Kernel(name, call.dtype)
    a, b, out = k.buffers(2, 1)
    _sums(k, call, (a, b), out, lambda total, left, right: k.accumulate(total, left, right))
    return k.finish()


def squared_distance(name: str, call: Call) -> str:
    """a and b [l, n] -> sum (a - b)^2 [l]."""
    k = Kernel(name, call.dtype)
    a, b, out = k.buffers(2, 1)

    def add(total, left, right):
        difference = k.b.fsub(left, right)
        k.accumulate(total, difference, difference)

    _sums(k, call, (a, b), out, add)
    return k.finish()


def _sums(k: Kernel, call: Call, vectors, out, add) -> None:
    n = call.size
    with k.loop(call.lanes) as lane:
        rows = [k.at(vector, k.multiply(lane, n)) for vector in vectors]
        totals = [k.variable() for _ in range(ROWS)]

        def some(index, real, row):
            add(totals[row], *(k.load(vector, index, real) for vector in rows))

        k.along(n, some, ROWS)
        first, second, third, fourth = (k.get(total) for total in totals)
        k.put_scalar(k.total(k.b.fadd(k.b.fadd(first, second), k.b.fadd(third, fourth))), out, lane)


def pair(name: str, call: Call) -> str:
    """gradient, previous and direction [l, n], step_size [l] -> what `jaxleak.vectors.Pair` holds."""
    k = Kernel(name, call.dtype)
    gradient, previous, direction, step_size, *outs = k.buffers(4, 7)
    n = call.size
    with k.loop(call.lanes) as lane:
        g, p, d, y, s = (k.at(row, k.multiply(lane, n)) for row in (gradient, previous, direction, *outs[:2]))
        factor = k.splat(k.scalar(step_size, lane))
        ys, yy, gg, largest, longest = (k.variable() for _ in range(5))

        def some(index, real, row):
            slope = k.load(g, index, real)
            change = k.b.fsub(slope, k.load(p, index, real))
            move = k.b.fmul(factor, k.load(d, index, real))
            k.store(change, y, index, real)
            k.store(move, s, index, real)
            k.accumulate(ys, change, move)
            k.accumulate(yy, change, change)
            size = k.absolute(slope)
            k.b.store(k.b.fadd(k.get(gg), size), gg)
            k.raise_to(largest, size)
            k.raise_to(longest, k.absolute(move))

        k.along(n, some)
        results = (*(k.total(k.get(total)) for total in (ys, yy, gg)), *map(k.largest, map(k.get, (largest, longest))))
        for value, out in zip(results, outs[2:], strict=True):
            k.put_scalar(value, out, lane)
    return k.finish()
