"""The distance of an outer product from a matrix on a CPU, and its derivatives, in one reading of the matrix.

With left [b, i], right [b, k] and target [i, k], and the residual r = sum_b left_b right_b^T - target,

    value = sum r^2,    dleft_b = 2 r right_b,    dright_b = 2 r^T left_b.
"""

from typing import NamedTuple

from jaxleak.kernels.llvm import ITEMSIZE, STACK_LIMIT, new_kernel

ROWS = 32  # rows summed before their sum is added to the total: shorter sums round less


class Call(NamedTuple):
    """Sizes and types that one compiled kernel serves."""

    lanes: int
    images: int  # b
    inputs: int  # i
    outputs: int  # k
    dtype: str

    @classmethod
    def of(cls, left, right) -> "Call":
        """The call for left [l, b, i] and right [l, b, k]."""
        lanes, images, inputs = left.shape
        return cls(lanes, images, inputs, right.shape[2], str(left.dtype))

    @property
    def fits(self) -> bool:
        """True if the kernel takes these sizes: its loops over outputs are unrolled, its sums lie on the stack."""
        return self.outputs <= 2048 and (self.images + 2) * (self.outputs + 32) * ITEMSIZE[self.dtype] <= STACK_LIMIT


def outer_distance(name: str, call: Call) -> str:
    """left [l, b, i], right [l, b, k], target [l, i, k] -> value [l], dleft [l, b, i], dright [l, b, k]."""
    k = new_kernel(name, call.dtype)
    left, right, target, value, dleft, dright = k.buffers(3, 3)
    b, rows, outputs = call.images, call.inputs, call.outputs
    room = len(k.cover(outputs)) * k.width
    part, squares = k.scratch(b * room), k.scratch(k.width)

    def one_row(left_row, right_, target_row, dleft_row):
        """`left_row` and `dleft_row` point to the first image's element; images are `rows` apart."""
        # One row of the residual serves the value and both slopes, so the matrix is read once.
        vectors = [k.variable(k.b.fneg(k.load(target_row, o, real))) for o, real in k.cover(outputs)]
        with k.loop(b) as n:
            scale = k.splat(k.scalar(left_row, k.multiply(n, rows)))
            for (o, real), vector in zip(k.cover(outputs), vectors, strict=True):
                k.accumulate(vector, scale, k.load(right_, k.add(k.multiply(n, outputs), o), real))
        square = k.variable(k.load(squares, 0, k.width))
        for vector in vectors:
            k.accumulate(square, k.get(vector), k.get(vector))
        k.store(k.get(square), squares, 0, k.width)
        with k.loop(b) as n:
            scale = k.splat(k.scalar(left_row, k.multiply(n, rows)))
            dot = k.variable()
            for (o, real), vector in zip(k.cover(outputs), vectors, strict=True):
                k.accumulate(dot, k.get(vector), k.load(right_, k.add(k.multiply(n, outputs), o), real))
                place = k.add(k.multiply(n, room), o)
                column = k.variable(k.load(part, place, k.width))
                k.accumulate(column, scale, k.get(vector))
                k.store(k.get(column), part, place, k.width)
            total = k.total(k.get(dot))
            k.put_scalar(k.b.fadd(total, total), dleft_row, k.multiply(n, rows))

    def block(lane, first, count):
        k.clear(part, b * room)
        images = k.multiply(lane, b * rows)
        with k.loop(count) as step:
            row = k.add(first, step)
            one_row(
                k.at(left, k.add(images, row)),
                k.at(right, k.multiply(lane, b * outputs)),
                k.at(target, k.multiply(k.add(k.multiply(lane, rows), row), outputs)),
                k.at(dleft, k.add(images, row)),
            )
        with k.loop(b) as n:
            place = k.add(k.multiply(lane, b * outputs), k.multiply(n, outputs))
            for o, real in k.cover(outputs):
                column = k.load(part, k.add(k.multiply(n, room), o), k.width)
                known = k.load(dright, k.add(place, o), real)
                k.store(k.b.fadd(known, k.b.fadd(column, column)), dright, k.add(place, o), real)

    k.clear(dright, call.lanes * b * outputs)
    with k.loop(call.lanes) as lane:
        k.clear(squares, k.width)
        with k.loop(rows // ROWS) as some:
            block(lane, k.multiply(some, ROWS), ROWS)
        if rows % ROWS:
            block(lane, k.integer(rows - rows % ROWS), rows % ROWS)
        k.put_scalar(k.total(k.load(squares, 0, k.width)), value, lane)
    return k.finish()
