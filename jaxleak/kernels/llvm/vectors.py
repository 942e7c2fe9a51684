"""Sums over the vectors of a lane on a CPU, several in one reading; XLA's share a pool of threads and wait for it."""

from typing import TYPE_CHECKING, NamedTuple

from jaxleak.kernels.llvm import new_kernel

if TYPE_CHECKING:
    from jaxleak.kernels.llvm.emit import Kernel

TOGETHER = 2  # vectors whose sums run side by side, so that an addition need not wait for the one before


class Call(NamedTuple):
    """Sizes and types that one compiled kernel serves."""

    lanes: int
    size: int  # n
    dtype: str

    @classmethod
    def of(cls, vectors) -> "Call":
        """The call for vectors [l, n]."""
        lanes, size = vectors.shape
        return cls(lanes, size, str(vectors.dtype))


def products(name: str, call: Call) -> str:
    """a and b [l, n] -> sum a a, sum a b and sum b b [l]."""
    k = new_kernel(name, call.dtype)
    a, b, *outs = k.buffers(2, 3)
    n = call.size
    with k.loop(call.lanes) as lane:
        first, second = (k.at(row, k.multiply(lane, n)) for row in (a, b))
        totals = [[k.variable() for _ in outs] for _ in range(TOGETHER)]

        def some(index, real, row):
            left, right = k.load(first, index, real), k.load(second, index, real)
            for total, (factor, other) in zip(totals[row], [(left, left), (left, right), (right, right)], strict=True):
                k.accumulate(total, factor, other)

        k.along(n, some, TOGETHER)
        _put_totals(k, totals, outs, lane)
    return k.finish()


def squared_distance(name: str, call: Call) -> str:
    """a and b [l, n] -> sum (a - b)^2 [l]."""
    k = new_kernel(name, call.dtype)
    a, b, out = k.buffers(2, 1)
    n = call.size
    with k.loop(call.lanes) as lane:
        first, second = (k.at(row, k.multiply(lane, n)) for row in (a, b))
        totals = [[k.variable()] for _ in range(TOGETHER)]

        def some(index, real, row):
            difference = k.b.fsub(k.load(first, index, real), k.load(second, index, real))
            k.accumulate(totals[row][0], difference, difference)

        k.along(n, some, TOGETHER)
        _put_totals(k, totals, [out], lane)
    return k.finish()


def _put_totals(k: "Kernel", totals, outs, lane) -> None:
    """The sums that ran side by side, added, to `outs`."""
    for out, parts in zip(outs, zip(*totals, strict=True), strict=True):
        first, second = (k.get(part) for part in parts)
        k.put_scalar(k.total(k.b.fadd(first, second)), out, lane)


def pair(name: str, call: Call) -> str:
    """gradient, previous and s [l, n] -> what `jaxleak.kernels.vectors.Pair` holds."""
    k = new_kernel(name, call.dtype)
    gradient, previous, move, change, *outs = k.buffers(3, 7)
    n = call.size
    with k.loop(call.lanes) as lane:
        g, p, s, y = (k.at(row, k.multiply(lane, n)) for row in (gradient, previous, move, change))
        ys, yy, ss, gg, largest, longest = (k.variable() for _ in range(6))

        def some(index, real, _):
            slope, step = k.load(g, index, real), k.load(s, index, real)
            difference = k.b.fsub(slope, k.load(p, index, real))
            k.store(difference, y, index, real)
            for total, factor, other in ((ys, difference, step), (yy, difference, difference), (ss, step, step)):
                k.accumulate(total, factor, other)
            size = k.absolute(slope)
            k.b.store(k.b.fadd(k.get(gg), size), gg)
            k.raise_to(largest, size)
            k.raise_to(longest, k.absolute(step))

        k.along(n, some)
        results = [k.total(k.get(total)) for total in (ys, yy, ss, gg)]
        results += [k.largest(k.get(size)) for size in (largest, longest)]
        for value, out in zip(results, outs, strict=True):
            k.put_scalar(value, out, lane)
    return k.finish()
