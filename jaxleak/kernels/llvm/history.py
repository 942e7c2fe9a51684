"""The compact form of L-BFGS on a CPU, one lane after the other: new pair, Gram matrices, direction.

The history of a lane is read twice per step: first for the products with the gradient and the new y, then, backwards,
for the direction. So the second pass begins with what the first read last and the cache still holds. The arithmetic is
that of `jaxleak.solvers.compact`, where formulas and source stand.
"""

from typing import TYPE_CHECKING, NamedTuple

from jaxleak.kernels.llvm import new_kernel

if TYPE_CHECKING:
    from jaxleak.kernels.llvm.emit import Kernel

ROWS = 4  # pairs read side by side


class Call(NamedTuple):
    """Sizes and types that one compiled kernel serves."""

    lanes: int
    pairs: int  # m
    size: int  # n
    dtype: str

    @classmethod
    def of(cls, pairs) -> "Call":
        """The call for pairs [l, 2, m, n]."""
        lanes, _, m, n = pairs.shape
        return cls(lanes, m, n, str(pairs.dtype))


def quasi_newton(name: str, call: Call) -> str:
    """pairs [l, 2, m, n], sy and yy [l, m, m], start and count int32 [l], s, y and g [l, n], accept [l], gamma [l] ->
    pairs, sy, yy, start, count (in the same memory) and the direction [l, n]."""
    k = new_kernel(name, call.dtype)
    *arrays, s, y, g, accept, gamma, _, _, _, _, _, out = k.buffers(10, 6)
    m, n = call.pairs, call.size
    step = _Lane(k, call)
    with k.loop(call.lanes) as lane:
        pairs, sy, yy, start, count = (
            k.at(arrays[0], k.multiply(lane, 2 * m * n)),
            *(k.at(gram, k.multiply(lane, m * m)) for gram in arrays[1:3]),
            *(k.at_word(words, lane) for words in arrays[3:]),
        )
        s_, y_, g_, out_ = (k.at(vector, k.multiply(lane, n)) for vector in (s, y, g, out))
        accepted = k.flag(accept, lane)
        with k.when(accepted):
            step.append(pairs, sy, yy, start, count, s_, y_)
        first, held = k.word(start), k.word(count)
        step.products(pairs, held, g_, y_)
        with k.when(accepted):
            step.grow(sy, yy, first, held)
        step.solve(sy, yy, first, held, k.scalar(gamma, lane))
        step.combine(pairs, held, g_, k.scalar(gamma, lane), out_)
    return k.finish()


class _Lane:
    """The steps of one lane; small results lie in scratch memory between them."""

    def __init__(self, k: "Kernel", call: Call):
        self.k, self.m, self.n = k, call.pairs, call.size
        room = len(k.cover(self.m)) * k.width
        # By slot: S^T g, Y^T g, S^T y, Y^T y, and the coefficients of S and Y. By age: u, inner and v.
        self.sg, self.yg, self.sy, self.yy, self.cs, self.cy, self.u, self.inner = (k.scratch(room) for _ in range(8))
        self.room = room

    def slot(self, first, age):
        """The slot of the pair of this age."""
        k = self.k
        slot = k.add(first, age)
        wraps = k.b.icmp_signed(">=", slot, k.integer(self.m))
        return k.b.select(wraps, k.b.sub(slot, k.integer(self.m)), slot)

    def append(self, pairs, sy, yy, start, count, s, y) -> None:
        """The pair into its slot; the Gram matrices lose their oldest row and column when full."""
        k, m, n = self.k, self.m, self.n
        first, held = k.word(start), k.word(count)
        slot = k.b.srem(k.add(first, held), k.integer(m))
        for which, vector in enumerate((s, y)):
            k.copy(k.at(pairs, k.multiply(k.add(slot, which * m), n)), vector, n)
        full = k.b.icmp_signed("==", held, k.integer(m))
        moved = k.b.srem(k.add(first, 1), k.integer(m))
        k.put_word(k.b.select(full, moved, first), start)
        k.put_word(k.b.select(full, held, k.add(held, 1)), count)
        with k.when(full):  # the Gram matrices are by age: all their entries move up
            for gram in (sy, yy):
                with k.loop(m - 1) as i:
                    row = k.at(gram, k.multiply(i, m))
                    k.copy(row, k.at(row, m + 1), m - 1)
                k.clear(k.at(gram, m * (m - 1)), m)

    def products(self, pairs, held, g, y) -> None:
        """S^T g, Y^T g, S^T y and Y^T y, by slot."""
        k, n = self.k, self.n
        for which, of_g, of_y in ((0, self.sg, self.sy), (1, self.yg, self.yy)):

            def dots(slot, rows, which=which, of_g=of_g, of_y=of_y):
                sums = [(k.variable(), k.variable()) for _ in range(rows)]
                block = k.at(pairs, k.multiply(k.add(slot, which * self.m), n))

                def some(index, real, _):
                    left, right = k.load(g, index, real), k.load(y, index, real)
                    for row, (with_g, with_y) in enumerate(sums):
                        vector = k.load(k.at(block, index), row * n, real)
                        k.accumulate(with_g, vector, left)
                        k.accumulate(with_y, vector, right)

                k.along(n, some)
                for row, (with_g, with_y) in enumerate(sums):
                    k.put_scalar(k.total(k.get(with_g)), of_g, k.add(slot, row))
                    k.put_scalar(k.total(k.get(with_y)), of_y, k.add(slot, row))

            whole = k.b.sdiv(held, k.integer(ROWS))
            with k.loop(whole) as block:
                dots(k.multiply(block, ROWS), ROWS)
            rest = k.multiply(whole, ROWS)
            with k.loop(k.b.sub(held, rest)) as row:
                dots(k.add(rest, row), 1)

    def grow(self, sy, yy, first, held) -> None:
        """The newest column of S^T Y, and the newest row and column of Y^T Y."""
        k, m = self.k, self.m
        newest = k.b.sub(held, k.integer(1))
        with k.loop(held) as age:
            slot = self.slot(first, age)
            k.put_scalar(k.scalar(self.sy, slot), sy, k.add(k.multiply(age, m), newest))
            for place in (k.add(k.multiply(age, m), newest), k.add(k.multiply(newest, m), age)):
                k.put_scalar(k.scalar(self.yy, slot), yy, place)

    def solve(self, sy, yy, first, held, gamma) -> None:
        """The two triangular systems; leaves the coefficients by slot."""
        k, m = self.k, self.m
        # `_dot` runs over all m entries: those not solved yet, and those beyond `held`, must be zero.
        for vector in (self.u, self.inner):
            k.clear(vector, self.room)
        # 1. R u = S^T g, from the newest.
        with k.loop(held) as back:
            age = k.b.sub(k.b.sub(held, back), k.integer(1))
            row = k.at(sy, k.multiply(age, m))
            right = k.b.fsub(k.scalar(self.sg, self.slot(first, age)), self._dot(row, self.u))
            k.put_scalar(k.b.fdiv(right, k.scalar(row, age)), self.u, age)
        # 2. inner = D u + gamma (Y^T Y u - Y^T g)
        with k.loop(held) as age:
            place = k.multiply(age, m)
            diagonal = k.b.fmul(k.scalar(k.at(sy, place), age), k.scalar(self.u, age))
            of_y = k.b.fsub(self._dot(k.at(yy, place), self.u), k.scalar(self.yg, self.slot(first, age)))
            k.put_scalar(k.b.fadd(diagonal, k.b.fmul(gamma, of_y)), self.inner, age)
        # 3. R^T v = inner, from the oldest; the direction is -(gamma g + S v - gamma Y u).
        with k.loop(held) as age:
            row, slot = k.at(sy, k.multiply(age, m)), self.slot(first, age)
            v = k.b.fdiv(k.scalar(self.inner, age), k.scalar(row, age))
            minus = k.b.fneg(v)
            for place, real in k.cover(m):
                rest = k.variable(k.load(self.inner, place, real))
                k.accumulate(rest, k.splat(minus), k.load(row, place, real))
                k.store(k.get(rest), self.inner, place, real)
            k.put_scalar(minus, self.cs, slot)
            k.put_scalar(k.b.fmul(gamma, k.scalar(self.u, age)), self.cy, slot)

    def combine(self, pairs, held, g, gamma, out) -> None:
        """out = -gamma g + S cs + Y cy, from the last slot to the first."""
        k, n = self.k, self.n
        scale = k.splat(k.b.fneg(gamma))
        k.along(n, lambda index, real, _: k.store(k.b.fmul(scale, k.load(g, index, real)), out, index, real))
        for which, coefficients in ((1, self.cy), (0, self.cs)):

            def add(slot, rows, which=which, coefficients=coefficients):
                block = k.at(pairs, k.multiply(k.add(slot, which * self.m), n))
                factors = [k.splat(k.scalar(coefficients, k.add(slot, row))) for row in range(rows)]

                def some(index, real, _):
                    value = k.variable(k.load(out, index, real))
                    for row, factor in enumerate(factors):
                        k.accumulate(value, factor, k.load(k.at(block, index), row * n, real))
                    k.store(k.get(value), out, index, real)

                k.along(n, some)

            whole = k.b.sdiv(held, k.integer(ROWS))
            rest = k.multiply(whole, ROWS)
            with k.loop(k.b.sub(held, rest)) as row:
                add(k.add(rest, row), 1)
            with k.loop(whole) as back:
                add(k.multiply(k.b.sub(k.b.sub(whole, back), k.integer(1)), ROWS), ROWS)

    def _dot(self, row, vector):
        k = self.k
        total = k.variable()
        for place, real in k.cover(self.m):
            k.accumulate(total, k.load(row, place, real), k.load(vector, place, real))
        return k.total(k.get(total))
