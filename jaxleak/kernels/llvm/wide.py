"""The three products of `convolution.py` for many channels, in blocks that fit a core's caches.

There a whole image and a whole kernel lie in the cache. Here neither needs to: positions of the output, over all images
of a group, are taken some at a time beside some vectors of outputs (`tile_of`), so that every sum of a block stays in a
register and each number that is loaded serves several sums. What is read again and again is first laid together.

Images come padded, by `Geometry.padding`, and gradients by `margins`, since XLA pads where it computes them anyway.
"""

from typing import TYPE_CHECKING

from jaxleak.kernels.llvm import ITEMSIZE, new_kernel
from jaxleak.kernels.llvm.convolution import Call, Geometry, blocks

if TYPE_CHECKING:
    from jaxleak.kernels.llvm.emit import Kernel

LINE = 64  # bytes that a cache fetches together
FEW = 64  # positions, below which the kernel is read from memory for few products: it is fetched ahead, not turned
DEPTH = 128  # products summed before the block's sum is added to the total: shorter sums round less
TOGETHER = 16  # entries of the window of which `wide_weight` lays the pixels together
ROOM = 1 << 18  # bytes of weights, or of gradients, that are laid together; at least 8 rows of outputs
LONGEST = 4608  # products of a sum in `wide_input`: its reductions across a vector then count little

Pads = tuple[tuple[int, int], tuple[int, int]]


def tile_of(k: "Kernel") -> tuple[int, int]:
    """Positions beside vectors of outputs whose sums stay in registers."""
    return (4, 4) if k.registers >= 20 else (4, 3)


def _even(count: int, most: int, unit: int) -> int:
    """The size of as few blocks as `most` allows, all alike but for the last: each size is compiled for itself."""
    size = -(-count // -(-count // most))
    return min(count, most, -(-size // unit) * unit)


class _Positions:
    """The positions of an output, over all images of a group, and where each begins in the images."""

    def __init__(self, k: "Kernel", size: tuple[int, int], image: tuple[int, int], channels: int, strides=(1, 1)):
        self.k, (self.rows, self.columns), self.channels, self.strides = k, size, channels, strides
        self.row = image[1] * channels
        self.image = image[0] * self.row

    def apart(self, position):
        """Image, row and column of a position."""
        k = self.k
        image, rest = k.divided(position, self.rows * self.columns)
        return image, *k.divided(rest, self.columns)

    def place(self, position):
        """Where its window begins, in elements."""
        (sh, sw), k = self.strides, self.k
        image, row, column = self.apart(position)
        return k.add(
            k.multiply(image, self.image), k.multiply(row, sh * self.row), k.multiply(column, sw * self.channels)
        )


def wide_forward(name: str, call: Call) -> str:
    """x [groups, images, ph, pw, c], w [groups, kh, kw, c, o] -> y [groups, images, oh, ow, o]."""
    k, g = new_kernel(name, call.dtype), call.geometry
    windows = _Positions(k, g.out, g.padded, g.channels, g.strides)

    def lay(kernel, i, start, length, weights, room):
        rows = k.at(kernel, k.multiply(k.add(k.multiply(i, g.run), start), g.outputs))
        _lay(k, rows, weights, g.outputs, length, room)

    return _summed(k, call, windows, lambda i: k.multiply(i, windows.row), (g.window[0], g.run), g.outputs, lay)


def _summed(k: "Kernel", call: Call, windows: "_Positions", place, window: tuple[int, int], outputs: int, lay) -> str:
    """y[p, o] = sum_t x[p + t] w[t, o] over positions p, `window` entries t and `outputs`.

    Args:
        k: the kernel.
        call: its groups, images and type.
        windows: the positions in x.
        place: where row i of the window begins behind a position.
        window: rows of the window, and entries of a row, which lie together in x.
        outputs: of w.
        lay: writes entries `start` .. of row i as panels (`_lay`).
    """
    x, w, y = k.buffers(2, 1)
    height, across = tile_of(k)
    count, wide = call.images * windows.rows * windows.columns, across * k.width
    room = -(-outputs // wide) * wide
    depth = _even(window[1], max(8, min(DEPTH, ROOM // (room * ITEMSIZE[call.dtype]))), k.width)
    weights = k.scratch(depth * room)
    k.clear(y, call.groups * count * outputs)

    def tile(source, target, panel, vectors, length, first, some):
        pixels = [k.at(source, windows.place(k.add(first, n))) for n in range(some)]
        sums = [[k.variable() for _ in vectors] for _ in pixels]
        with k.loop(length) as step:
            row = k.at(panel, k.multiply(step, wide))
            loaded = [k.load(row, n * k.width, k.width) for n in range(len(vectors))]
            for pixel, of_pixel in zip(pixels, sums, strict=True):
                value = k.splat(k.scalar(pixel, step))
                for variable, vector in zip(of_pixel, loaded, strict=True):
                    k.accumulate(variable, value, vector)
        for n, of_pixel in enumerate(sums):
            place = k.at(target, k.multiply(k.add(first, n), outputs))
            for (o, real), variable in zip(vectors, of_pixel, strict=True):
                k.store(k.b.fadd(k.load(place, o, real), k.get(variable)), place, o, real)

    def entries(images, kernel, results, i, start, length):
        lay(kernel, i, start, length, weights, depth)
        source = k.at(images, k.add(place(i), start))

        def some_outputs(first, some):
            panel, target, vectors = k.at(weights, k.multiply(first, depth)), k.at(results, first), k.cover(some)
            blocks(k, count, height, lambda p, n: tile(source, target, panel, vectors, length, p, n))

        blocks(k, outputs, wide, some_outputs)

    with k.loop(call.groups) as group:
        images = k.at(x, k.multiply(group, call.images * windows.image))
        kernel = k.at(w, k.multiply(group, call.geometry.kernel_size))
        results = k.at(y, k.multiply(group, count * outputs))
        with k.loop(window[0]) as i:
            blocks(k, window[1], depth, lambda start, length: entries(images, kernel, results, i, start, length))
    return k.finish()


def _lay(k: "Kernel", source, target, outputs: int, rows: int, room: int) -> None:
    """Rows of `outputs` numbers as panels of the tile's vectors, each of which has room for `room` rows."""
    wide = tile_of(k)[1] * k.width
    with k.loop(rows) as row:

        def panel(first, some):
            read = k.at(source, k.add(k.multiply(row, outputs), first))
            place = k.at(target, k.add(k.multiply(first, room), k.multiply(row, wide)))
            for n, (o, real) in enumerate(k.cover(some)):
                k.store(k.load(read, o, real), place, n * k.width, k.width)

        blocks(k, outputs, wide, panel)


def wide_weight(name: str, call: Call) -> str:
    """x [groups, images, ph, pw, c], d [groups, images, oh, ow, o] -> w [groups, kh, kw, c, o]."""
    k, g = new_kernel(name, call.dtype), call.geometry
    x, d, w = k.buffers(2, 1)
    windows = _Positions(k, g.out, g.padded, g.channels, g.strides)
    height, across = tile_of(k)
    count, wide = call.images * windows.rows * windows.columns, across * k.width
    room = -(-g.outputs // wide) * wide
    together = max(TOGETHER, k.width)
    block = _even(count, min(DEPTH, max(8, ROOM // (room * ITEMSIZE[call.dtype]))), 1)
    places, pixels, gradients = k.scratch(2 * block), k.scratch(block * together), k.scratch(block * room)
    several = count > block
    if several:
        k.clear(w, call.groups * g.kernel_size)

    def tile(target, vectors, of_gradients, length, first, some):
        """Entries `first` .. of the pixels that lie together, beside some outputs."""
        sums = [[k.variable() for _ in vectors] for _ in range(some)]
        with k.loop(length) as p:
            row = k.at(of_gradients, k.multiply(p, wide))
            loaded = [k.load(row, n * k.width, k.width) for n in range(len(vectors))]
            pixel = k.at(pixels, k.add(k.multiply(p, together), first))
            for t in range(some):
                value = k.splat(k.scalar(pixel, t))
                for variable, vector in zip(sums[t], loaded, strict=True):
                    k.accumulate(variable, value, vector)
        for t in range(some):
            place = k.at(target, k.multiply(k.add(first, t), g.outputs))
            for (o, real), variable in zip(vectors, sums[t], strict=True):
                value = k.get(variable)
                k.store(k.b.fadd(value, k.load(place, o, real)) if several else value, place, o, real)

    def some_positions(images, of_group, kernel, start, length):
        _lay(k, k.at(of_group, k.multiply(start, g.outputs)), gradients, g.outputs, length, block)
        with k.loop(length) as p:
            k.put_index(windows.place(k.add(start, p)), places, p)
        with k.loop(g.window[0]) as i:

            def entries(t, some):
                row = k.at(images, k.add(k.multiply(i, windows.row), t))
                with k.loop(length) as p:
                    pixel = k.at(row, k.index(places, p))
                    for start, real in k.cover(some):
                        k.store(k.load(pixel, start, real), pixels, k.add(k.multiply(p, together), start), k.width)
                target = k.at(kernel, k.multiply(k.add(k.multiply(i, g.run), t), g.outputs))

                def outputs(first, reached):
                    vectors, of_gradients = k.cover(reached), k.at(gradients, k.multiply(first, block))
                    to = k.at(target, first)
                    blocks(k, some, height, lambda entry, n: tile(to, vectors, of_gradients, length, entry, n))

                blocks(k, g.outputs, wide, outputs)

            blocks(k, g.run, together, entries)

    with k.loop(call.groups) as group:
        images = k.at(x, k.multiply(group, call.images * windows.image))
        of_group = k.at(d, k.multiply(group, count * g.outputs))
        kernel = k.at(w, k.multiply(group, g.kernel_size))
        blocks(k, count, block, lambda start, length: some_positions(images, of_group, kernel, start, length))
    return k.finish()


class _Phase:
    """The pixels of an image, along one axis, that the same entries of a window reach: every `stride`-th from `first`.

    Attributes:
        pixels: how many there are.
        entry: the first entry of the window that reaches them; the others follow in steps of the stride.
        entries: how many there are.
        back: pixel n is reached by entry m of position n + back - m.
    """

    def __init__(self, first: int, size: int, window: int, stride: int, low: int):
        self.first, self.pixels = first, len(range(first, size, stride))
        self.entry = (first + low) % stride
        self.entries = len(range(self.entry, window, stride))
        self.back = (first + low - self.entry) // stride


def _phases(g: Geometry) -> tuple[list[_Phase], list[_Phase]]:
    """Of the rows and of the columns; those that no entry reaches are left out."""
    sizes = ((g.height, g.width), g.window, g.strides, g.padding)
    rows, columns = (
        [_Phase(first, size, window, stride, low) for first in range(min(stride, size))]
        for size, window, stride, (low, _) in zip(*sizes, strict=True)
    )
    return [phase for phase in rows if phase.entries], [phase for phase in columns if phase.entries]


def margins(g: Geometry) -> Pads:
    """Zeros around the output's gradient within which `input` finds every position that reaches a pixel, or would."""

    def along(phases: list[_Phase], out: int) -> tuple[int, int]:
        low = max((phase.entries - 1 - phase.back for phase in phases), default=0)
        high = max((phase.pixels - 1 + phase.back - (out - 1) for phase in phases), default=0)
        return max(0, low), max(0, high)

    rows, columns = _phases(g)
    return along(rows, g.out[0]), along(columns, g.out[1])


def _turned(k: "Kernel", call: Call) -> str:
    """`wide_input` at stride 1: the product `forward` of d and the kernel turned round.

    No sum runs across a vector, but the kernel is laid together anew, which pays where many positions share it.
    """
    g = call.geometry
    (top, left), (rows, columns), (kh, kw) = margins(g), _phases(g), g.window
    size = g.out[0] + sum(top), g.out[1] + sum(left)
    pixels = _Positions(k, (g.height, g.width), size, g.outputs)
    first = (rows[0].back + top[0]) * pixels.row + (columns[0].back + left[0]) * g.outputs

    def behind(entry):
        i, j = k.divided(entry, kw)
        return k.add(first, k.multiply(i, -pixels.row), k.multiply(j, -g.outputs))

    def lay(kernel, entry, start, length, weights, room):
        source = k.at(kernel, k.add(k.multiply(entry, g.channels * g.outputs), start))
        _lay_turned(k, source, weights, g, length, room)

    return _summed(k, call, pixels, behind, (kh * kw, g.outputs), g.channels, lay)


def _lay_turned(k: "Kernel", source, target, g: Geometry, rows: int, room: int) -> None:
    """`_lay` of columns: `rows` neighbours of each of a kernel's channels, which are `g.outputs` apart."""
    across = tile_of(k)[1]

    def square(c, some, o, real):
        """Numbers of `real` neighbours for `some` channels, turned."""
        panel, vector = k.divided(k.divided(c, k.width)[0], across)
        place = k.at(target, k.add(k.multiply(panel, across * k.width * room), k.multiply(vector, k.width)))
        begin = [k.at(source, k.add(k.multiply(k.add(c, n), g.outputs), o)) for n in range(some)]
        given = [k.load(column, 0, real) for column in begin] + [k.zero] * (k.width - some)
        for row, vector in enumerate(k.turned(given)[:real]):
            k.store(vector, place, k.multiply(k.add(o, row), across * k.width), k.width)

    blocks(k, g.channels, k.width, lambda c, some: blocks(k, rows, k.width, lambda o, real: square(c, some, o, real)))


def wide_input(name: str, call: Call) -> str:
    """d [groups, images, oh, ow, o] within `margins`, w [groups, kh, kw, c, o] -> x [groups, images, h, w, c].

    The sums run along the outputs, which lie together in both arguments; a vector's elements are added at the end.
    """
    k, g = new_kernel(name, call.dtype), call.geometry
    if g.strides == (1, 1) and g.channels >= k.width and call.images * g.height * g.width >= FEW:
        return _turned(k, call)
    d, w, x = k.buffers(2, 1)
    (sh, sw), (top, left), (height, across) = g.strides, margins(g), tile_of(k)
    size = g.out[0] + sum(top), g.out[1] + sum(left)
    k.clear(x, call.groups * call.images * g.image_size)

    def phase(gradients, kernel, result, rows: _Phase, columns: _Phase):
        positions = _Positions(k, (rows.pixels, columns.pixels), size, g.outputs)
        back = (rows.back + top[0]) * positions.row + (columns.back + left[0]) * g.outputs
        corner = (rows.entry * g.window[1] + columns.entry) * g.channels * g.outputs

        def tile(channel, reached, start, length, first, some):
            begin = [k.add(positions.place(k.add(first, n)), start, back) for n in range(some)]
            sums = [[k.variable() for _ in range(reached)] for _ in range(some)]
            with k.loop(rows.entries) as i, k.loop(columns.entries) as j:
                behind = k.add(k.multiply(i, -positions.row), k.multiply(j, -g.outputs))
                sources = [k.at(gradients, k.add(place, behind)) for place in begin]
                entry = k.add(k.multiply(i, sh * g.window[1]), k.multiply(j, sw))
                weights = k.at(kernel, k.add(k.multiply(entry, g.channels * g.outputs), corner, start,
                                             k.multiply(channel, g.outputs)))  # fmt: skip

                def products(o, real, row):
                    loaded = [k.load(weights, k.add(o, c * g.outputs), real) for c in range(reached)]
                    for c in range(reached if row == 0 and count < FEW else 0):
                        k.prefetch(weights, k.add(o, (c + across) * g.outputs))
                    for source, of_pixel in zip(sources, sums, strict=True):
                        value = k.load(source, o, real)
                        for variable, vector in zip(of_pixel, loaded, strict=True):
                            k.accumulate(variable, value, vector)

                k.along(length, products, max(1, LINE // (k.width * k.size)))
            for n, of_pixel in enumerate(sums):
                image, row, column = positions.apart(k.add(first, n))
                pixel = k.add(
                    k.multiply(image, g.height * g.width),
                    k.multiply(k.add(k.multiply(row, sh), rows.first), g.width),
                    k.add(k.multiply(column, sw), columns.first),
                )
                place = k.at(result, k.add(k.multiply(pixel, g.channels), channel))
                for c, variable in enumerate(of_pixel):
                    k.put_scalar(k.b.fadd(k.scalar(place, c), k.total(k.get(variable))), place, c)

        length = max(k.width, LONGEST // (rows.entries * columns.entries) // k.width * k.width)
        count = call.images * rows.pixels * columns.pixels

        def outputs(start, some_outputs):
            def channels(channel, reached):
                blocks(k, count, height, lambda first, n: tile(channel, reached, start, some_outputs, first, n))

            blocks(k, g.channels, across, channels)

        blocks(k, g.outputs, length, outputs)

    with k.loop(call.groups) as group:
        gradients = k.at(d, k.multiply(group, call.images * size[0] * size[1] * g.outputs))
        kernel = k.at(w, k.multiply(group, g.kernel_size))
        result = k.at(x, k.multiply(group, call.images * g.image_size))
        for rows in _phases(g)[0]:
            for columns in _phases(g)[1]:
                phase(gradients, kernel, result, rows, columns)
    return k.finish()
