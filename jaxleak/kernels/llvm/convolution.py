"""Direct convolution on a CPU: the three products that a convolution and all its derivatives are made of.

With images x, kernel w, and d of the shape of the output,

    forward  y[p, o] = sum_t x[p * stride + t] w[t, o]
    weight   w[t, o] = sum_p x[p * stride + t] d[p, o]
    input    x[p * stride + t] += sum_o d[p, o] w[t, o]

where p runs over output positions and t over the window (rows, then columns and channels, which lie together in
memory). Each is linear in both of its arguments, and the derivative of one is another of them.

Images come in groups; a group has its own kernel. Lanes with a network each are groups, lanes that share one are
images of one group.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

from jaxleak.kernels.llvm import ITEMSIZE, STACK_LIMIT, new_kernel

if TYPE_CHECKING:
    from jaxleak.kernels.llvm.emit import Kernel

BLOCK = 64  # products summed before the block's sum is added to the total: shorter sums round less
WIDE = 24  # channels or outputs from which blocks of registers and caches pay (experiments/NOTES.md)
LEAST_ROWS = 16  # of outputs that `wide.py` lays together, and the padding of that
COLUMNS = 4  # neighbours that `input` does together, for each of which the kernel need not be read again


class Geometry(NamedTuple):
    """A convolution, whatever the number of images."""

    height: int
    width: int
    channels: int
    window: tuple[int, int]
    outputs: int
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width with the padding."""
        (top, bottom), (left, right) = self.padding
        return self.height + top + bottom, self.width + left + right

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        (h, w), (kh, kw), (sh, sw) = self.padded, self.window, self.strides
        return (h - kh) // sh + 1, (w - kw) // sw + 1

    @property
    def run(self) -> int:
        """Elements of the window that lie together in memory: one row of it."""
        return self.window[1] * self.channels

    @property
    def image_size(self) -> int:
        """Elements of an image."""
        return self.height * self.width * self.channels

    @property
    def kernel_size(self) -> int:
        """Elements of the kernel."""
        return self.window[0] * self.run * self.outputs

    @property
    def out_size(self) -> int:
        """Elements of an output."""
        return math.prod(self.out) * self.outputs

    @property
    def covers(self) -> bool:
        """True if the window is the whole image, as in a dense layer."""
        return self.window == (self.height, self.width) == self.padded

    @property
    def wide(self) -> bool:
        """True where the kernels of `wide.py` serve: many channels, or more than scratch memory on the stack holds."""
        scratch = math.prod(self.padded) * self.channels + self.kernel_size
        many = max(self.channels, self.outputs) >= WIDE
        return not self.covers and (many or scratch * max(ITEMSIZE.values()) > STACK_LIMIT)

    def fits(self, dtype: str) -> bool:
        """True if there is an output, nothing is cropped, and the kernels' scratch memory fits a thread's stack."""
        plausible = min(self.out) > 0 and all(p >= 0 for pair in self.padding for p in pair)
        whole = math.prod(self.padded) * self.channels + self.kernel_size
        scratch = LEAST_ROWS * self.outputs if self.wide else whole
        return plausible and scratch * ITEMSIZE[dtype] <= STACK_LIMIT


class Call(NamedTuple):
    """Sizes and types that one compiled kernel serves."""

    geometry: Geometry
    groups: int
    images: int  # of each group
    dtype: str


class _Planes:
    """The images of a call, padded one at a time into scratch memory where there is padding."""

    def __init__(self, k: "Kernel", call: Call):
        self.k, self.g = k, call.geometry
        self.size = self.g.image_size
        self.row = self.g.padded[1] * self.g.channels  # elements of a padded row
        self.padded_size = self.g.padded[0] * self.row
        self.pad = k.scratch(self.padded_size) if self.padded_size != self.size else None

    def clear(self) -> None:
        if self.pad is not None:
            self.k.clear(self.pad, self.padded_size)

    def read(self, image):
        """The padded image; its border was cleared once."""
        if self.pad is None:
            return image
        self._rows(lambda inside, row: self.k.copy(inside, self.k.at(image, row), self.g.width * self.g.channels))
        return self.pad

    def write(self, image) -> None:
        """The inside of the scratch image to where it belongs."""
        if self.pad is not None:
            self._rows(lambda inside, row: self.k.copy(self.k.at(image, row), inside, self.g.width * self.g.channels))

    def _rows(self, act) -> None:
        k, g = self.k, self.g
        (top, _), (left, _) = g.padding
        with k.loop(g.height) as r:
            inside = k.at(self.pad, k.add(k.multiply(r, self.row), top * self.row + left * g.channels))
            act(inside, k.multiply(r, g.width * g.channels))


def blocks(k: "Kernel", count: int, size: int, act) -> None:
    """`act(first, n)` over 0 .. count - 1 in blocks of `size`, and the rest."""
    if count >= size:
        with k.loop(count // size) as block:
            act(k.multiply(block, size), size)
    if count % size:
        act(k.integer(count - count % size), count % size)


def forward(name: str, call: Call) -> str:
    """x [groups, images, h, w, c], w [groups, kh, kw, c, o] -> y [groups, images, oh, ow, o]."""
    k, g = new_kernel(name, call.dtype), call.geometry
    x, w, y = k.buffers(2, 1)
    (kh, _), (sh, sw), (oh, ow) = g.window, g.strides, g.out
    planes = _Planes(k, call)
    planes.clear()
    outputs = k.cover(g.outputs)

    def positions(source, kernel, target, r):
        def block(first, count):
            # Each output vector of each position has two sums in registers: the block's and the total.
            together = max(1, k.registers // (2 * count))
            for some in (outputs[i : i + together] for i in range(0, len(outputs), together)):
                sums = [[k.variable() for _ in some] for _ in range(count)]
                with k.loop(kh) as i:
                    window = k.at(source, k.add(k.multiply(k.add(k.multiply(r, sh), i), planes.row),
                                                k.multiply(first, sw * g.channels)))  # fmt: skip
                    weights = k.at(kernel, k.multiply(i, g.run * g.outputs))

                    def run(start, length, window=window, weights=weights, some=some, sums=sums):
                        part = [[k.variable() for _ in some] for _ in range(count)]
                        with k.loop(length) as step:
                            t = k.add(start, step)
                            row, pixel = k.at(weights, k.multiply(t, g.outputs)), k.at(window, t)
                            vectors = [k.load(row, o, real) for o, real in some]
                            for q in range(count):
                                value = k.splat(k.scalar(pixel, q * sw * g.channels))
                                for variable, vector in zip(part[q], vectors, strict=True):
                                    k.accumulate(variable, value, vector)
                        for q in range(count):
                            for variable, of_part in zip(sums[q], part[q], strict=True):
                                k.b.store(k.b.fadd(k.get(variable), k.get(of_part)), variable)

                    blocks(k, g.run, BLOCK, run)
                for q in range(count):
                    place = k.multiply(k.add(k.multiply(r, ow), first, q), g.outputs)
                    for (o, real), variable in zip(some, sums[q], strict=True):
                        k.store(k.get(variable), k.at(target, place), o, real)

        # Neighbouring positions share the weights that are loaded.
        blocks(k, ow, min(8, k.registers // 2), block)

    with k.loop(call.groups) as group:
        kernel = k.at(w, k.multiply(group, g.kernel_size))
        with k.loop(call.images) as n:
            image = k.add(k.multiply(group, call.images), n)
            source = planes.read(k.at(x, k.multiply(image, planes.size)))
            target = k.at(y, k.multiply(image, g.out_size))
            with k.loop(oh) as r:
                positions(source, kernel, target, r)
    return k.finish()


def weight(name: str, call: Call) -> str:
    """x [groups, images, h, w, c], d [groups, images, oh, ow, o] -> w [groups, kh, kw, c, o]."""
    k, g = new_kernel(name, call.dtype), call.geometry
    x, d, w = k.buffers(2, 1)
    (kh, _), (sh, sw), (oh, ow) = g.window, g.strides, g.out
    planes = _Planes(k, call)
    planes.clear()
    outputs = k.cover(g.outputs)
    # Entries of the window that are summed side by side: a divisor of the run leaves no shorter rest.
    rows = next((n for n in (12, 15, 10, 9, 8) if g.run % n == 0 and n <= k.registers), min(8, k.registers))

    def entries(source, gradient, kernel, i):
        def block(first, count):
            together = max(1, k.registers // count)
            for some in (outputs[j : j + together] for j in range(0, len(outputs), together)):
                sums = [[k.variable() for _ in some] for _ in range(count)]
                with k.loop(oh) as r:
                    image_row = k.at(source, k.add(k.multiply(k.add(k.multiply(r, sh), i), planes.row), first))
                    gradient_row = k.at(gradient, k.multiply(r, ow * g.outputs))
                    with k.loop(ow) as q:
                        place = k.at(gradient_row, k.multiply(q, g.outputs))
                        vectors = [k.load(place, o, real) for o, real in some]
                        pixel = k.at(image_row, k.multiply(q, sw * g.channels))
                        for t in range(count):
                            value = k.splat(k.scalar(pixel, t))
                            for variable, vector in zip(sums[t], vectors, strict=True):
                                k.accumulate(variable, value, vector)
                for t in range(count):
                    place = k.at(kernel, k.multiply(k.add(k.multiply(i, g.run), first, t), g.outputs))
                    for (o, real), variable in zip(some, sums[t], strict=True):
                        value = k.get(variable)
                        if call.images > 1:  # add to the images before
                            value = k.b.fadd(value, k.load(place, o, real))
                        k.store(value, place, o, real)

        blocks(k, g.run, rows, block)

    with k.loop(call.groups) as group:
        kernel = k.at(w, k.multiply(group, g.kernel_size))
        if call.images > 1:
            k.clear(kernel, g.kernel_size)
        with k.loop(call.images) as n:
            image = k.add(k.multiply(group, call.images), n)
            source = planes.read(k.at(x, k.multiply(image, planes.size)))
            gradient = k.at(d, k.multiply(image, g.out_size))
            with k.loop(kh) as i:
                entries(source, gradient, kernel, i)
    return k.finish()


def input(name: str, call: Call) -> str:
    """d [groups, images, oh, ow, o], w [groups, kh, kw, c, o] -> x [groups, images, h, w, c]."""
    if call.geometry.covers:
        return _dense_input(name, call)
    k, g = new_kernel(name, call.dtype), call.geometry
    d, w, x = k.buffers(2, 1)
    (kh, _), (sh, sw), (oh, ow) = g.window, g.strides, g.out
    planes = _Planes(k, call)
    turned = k.scratch(kh * g.outputs * g.run)  # the kernel as [kh, o, run]: whole runs are added to the image
    pieces = [(i, t, real) for i in range(kh) for t, real in k.cover(g.run)]

    def turn(kernel):
        with k.loop(kh) as i, k.loop(g.run) as t:
            source = k.at(kernel, k.multiply(k.add(k.multiply(i, g.run), t), g.outputs))
            target = k.at(turned, k.add(k.multiply(i, g.run * g.outputs), t))
            with k.loop(g.outputs) as o:
                k.put_scalar(k.scalar(source, o), target, k.multiply(o, g.run))

    def scatter(gradient, target, count):
        """The windows of `count` neighbours in a row of the output."""
        together = max(1, k.registers // count)
        for some in (pieces[j : j + together] for j in range(0, len(pieces), together)):
            sums = [[k.variable() for _ in some] for _ in range(count)]
            with k.loop(g.outputs) as o:
                row, column = k.at(turned, k.multiply(o, g.run)), k.at(gradient, o)
                weights = [k.load(row, i * g.outputs * g.run + t, real) for i, t, real in some]
                for q in range(count):
                    value = k.splat(k.scalar(column, q * g.outputs))
                    for variable, vector in zip(sums[q], weights, strict=True):
                        k.accumulate(variable, value, vector)
            for q in range(count):
                for (i, t, real), variable in zip(some, sums[q], strict=True):
                    place = i * planes.row + t + q * sw * g.channels
                    k.store(k.b.fadd(k.load(target, place, real), k.get(variable)), target, place, real)

    with k.loop(call.groups) as group:
        turn(k.at(w, k.multiply(group, g.kernel_size)))
        with k.loop(call.images) as n:
            image = k.add(k.multiply(group, call.images), n)
            gradient, result = k.at(d, k.multiply(image, g.out_size)), k.at(x, k.multiply(image, planes.size))
            target = result if planes.pad is None else planes.pad
            k.clear(target, planes.padded_size)  # windows overlap, so each is added
            with k.loop(oh) as r:

                def block(first, count, r=r, gradient=gradient, target=target):
                    place = k.add(k.multiply(r, sh * planes.row), k.multiply(first, sw * g.channels))
                    source = k.at(gradient, k.multiply(k.add(k.multiply(r, ow), first), g.outputs))
                    scatter(source, k.at(target, place), count)

                blocks(k, ow, COLUMNS, block)
            planes.write(result)
    return k.finish()


def _dense_input(name: str, call: Call) -> str:
    """`input` where the window is the image: x[t] = sum_o d[o] w[t, o], with the kernel as it lies in memory."""
    k, g = new_kernel(name, call.dtype), call.geometry
    d, w, x = k.buffers(2, 1)
    inputs, outputs = g.height * g.run, k.cover(g.outputs)
    # A part of the outputs stays in registers for all rows; the parts' sums meet in the result.
    many = min(len(outputs), k.registers)
    parts = [outputs[i : i + many] for i in range(0, len(outputs), many)]

    def rows(kernel, gradient, result, count):
        """`count` images, of which every row of the kernel is read once."""
        for some in parts:
            held = [[k.load(gradient, n * g.outputs + o, real) for o, real in some] for n in range(count)]
            with k.loop(inputs) as t:
                row = k.at(kernel, k.multiply(t, g.outputs))
                vectors = [k.load(row, o, real) for o, real in some]
                for n in range(count):
                    dot = k.variable()
                    for left, right in zip(held[n], vectors, strict=True):
                        k.accumulate(dot, left, right)
                    place, total = k.add(t, n * inputs), k.total(k.get(dot))
                    if some is not parts[0]:
                        total = k.b.fadd(total, k.scalar(result, place))
                    k.put_scalar(total, result, place)

    with k.loop(call.groups) as group:
        kernel = k.at(w, k.multiply(group, inputs * g.outputs))

        def block(first, count):
            image = k.add(k.multiply(group, call.images), first)
            rows(kernel, k.at(d, k.multiply(image, g.outputs)), k.at(x, k.multiply(image, inputs)), count)

        blocks(k, call.images, max(1, k.registers // many), block)
    return k.finish()
