"""Layer by layer: an image from the gradient of a chain of convolutions and dense layers."""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxleak.solvers import LBFGS
from jaxleak.threat.chain import INVERSES, RANGES, Link, activate, part_of, slopes

ITERATIONS, PRECONDITIONED = 3000, 30  # of conjugate gradients, in each of ...
ROUNDS = 3  # ... which begin anew at what is left, as rounding asks for
DIRECT = 4096  # numbers of a layer's input up to which they are preconditioned by a Cholesky factor
RIDGE = 30  # times the rounding of the mean square of a column, on the diagonal of that
SAFE, ROUNDING = 2, 10  # times the lowest output, and times the rounding of the largest: a ReLU below that is off
DETERMINED = 1e-3  # relative error of a random input, solved for, up to which equations have one solution
# Weights of the total variation, one after the other, and differences of pixels below which it is a square.
SMOOTH = ((1e-1, 1e-1), (1e-2, 3e-2), (1e-3, 1e-2), (1e-4, 1e-2), (1e-5, 1e-2))
EVALUATIONS = 200  # with each of them
COLOUR = 2.0  # weight of differences between channels beside that of their mean
SOLVER = LBFGS(history=50, history_type="same", max_step=0.5)


class Equations(NamedTuple):
    """What is known of a convolution's input u: W u where the next activation can be inverted, and the gradient."""

    kernel: Array  # W
    slope: Array  # of the loss at the layer's outputs
    known: Array  # 1 where W u is known, else 0
    off: Array  # 1 where W u + bias is at most 0, else 0
    bias: Array
    products: Array  # W u, where known
    gradient: Array  # of the kernel: the sum of products of slope and u

    def left(self, link: Link, u: Array) -> tuple[Array, Array]:
        """The equations' left sides at u, of rows of about unit length."""
        across, along = self._lengths
        (gradient,) = jax.vjp(lambda kernel: link.linear(kernel, u), self.kernel)[1](self.slope)
        return gradient / across, self.known * link.linear(self.kernel, u) / along

    @property
    def right(self) -> tuple[Array, Array]:
        """Their right sides."""
        across, along = self._lengths
        return self.gradient / across, self.known * self.products / along

    def missed(self, link: Link, u: Array) -> Float[Array, ""]:
        """Squared error of the equations at u, and of outputs above 0 where they cannot be."""
        outputs = link.linear(self.kernel, u) + self.bias
        excess = self.off * jnp.maximum(outputs, 0) / self._lengths[1]
        errors = jax.tree.map(jnp.subtract, self.left(link, u), self.right)
        return sum((jnp.sum(jnp.square(part)) for part in (*errors, excess)), jnp.zeros(()))

    @property
    def _lengths(self) -> tuple[Array, Array]:
        root = jnp.sqrt(self.kernel.shape[-1])
        lengths = (jnp.linalg.norm(part.ravel()) / root for part in (self.slope, self.kernel))
        across, along = (jnp.where(length > 0, length, 1) for length in lengths)
        return across, along


def recover_by_layers(
    links: list[Link],
    params: PyTree,
    update: PyTree,
    low: Float[Array, "h w c"],
    high: Float[Array, "h w c"],
    key: Array,
) -> Float[Array, "1 h w c"]:
    """The image that a chain's gradient was computed from.

    From the head to the image: of a dense layer the gradient is the outer product of its input and the bias's
    gradient, the loss's slope at its outputs. The gradient of a convolution with known slopes is linear in its input,
    and so are its outputs, which are known wherever the activation behind can be inverted. Where these equations have
    one solution, which is tried out on a random input, the layer before has equations too. Those of the layer nearest
    to the image have many solutions. Of the images within bounds it is the one that solves them, with outputs of at
    most 0 where a ReLU is off, and with the least total variation.

    Args:
        links: the chain. In front of a dense layer there are convolutions only.
        params: its weights.
        update: the gradient of one image; any multiple of it serves.
        low, high: bounds of the image, in the network's units.
        key: of the random inputs.

    Source: Zhu & Blaschko 2021 (R-GAP), gradient and weight constraints of each layer.
    Differs: slopes from the gradients of biases; conjugate gradients in place of pseudo-inverses; of the image bounds,
        inequalities and total variation, where theirs is the shortest solution; layers whose equations have many
        solutions are left to the image's.
    """
    slope = outputs = known = off = jnp.zeros(())
    holds, nearer = jnp.ones((), bool), jnp.ones((), bool)
    parts: list[tuple[Equations, Array]] = []
    for number in reversed(range(len(links))):
        link = links[number]
        weights, gradient = part_of(params, link.path), part_of(update, link.path)
        kernel, before = weights["kernel"], links[number - 1]
        if link.dense:
            slope, unit = gradient["bias"][None], jnp.sum(jnp.square(gradient["bias"]))
            inputs = gradient["kernel"] @ gradient["bias"] / jnp.where(unit > 0, unit, 1)
            if number == 0:
                return inputs.reshape(1, *low.shape)
        else:
            bias = weights.get("bias", jnp.zeros(kernel.shape[-1], kernel.dtype))
            products = INVERSES[link.activation](outputs) - bias
            equations = Equations(kernel, slope, known, off, bias, products, gradient["kernel"])
            if number == 0:
                parts.append((equations, holds))
                break
            inputs, nearer = _least_squares(link, equations, jax.random.fold_in(key, number))
            parts.append((equations, holds & ~nearer))
            holds &= nearer
        known, off = _inverted(before.activation, inputs)
        inputs = _within(before.activation, inputs).reshape(link.shape)
        (slope,) = jax.vjp(lambda u, link=link, kernel=kernel: link.linear(kernel, u), inputs)[1](slope)
        shape = before.output_shape(part_of(params, before.path)["kernel"])
        outputs, slope, known, off = (part.reshape(shape) for part in (inputs, slope, known, off))
        slope = slope * jnp.where(known > 0, slopes(before.activation, INVERSES[before.activation](outputs)), 0)

    def missed(image: Array) -> Float[Array, ""]:
        total, u = jnp.zeros(()), image
        for (equations, used), (link, after) in zip(reversed(parts), pairwise(links), strict=False):
            total += jnp.where(used, equations.missed(link, u), 0)
            u = activate(link.activation, link.linear(equations.kernel, u) + equations.bias).reshape(after.shape)
        return total

    return _smoothest(missed, low, high)


def _inverted(activation: str, outputs: Array) -> tuple[Array, Array]:
    """Where an activation's inputs follow from its outputs, and where they are at most 0.

    A ReLU's outputs are not below 0: how far these are tells how wrong they may be.
    """
    ones = jnp.ones_like(outputs)
    if activation != "relu":
        return ones, 0 * ones
    wrong = jnp.maximum(-SAFE * jnp.min(outputs), ROUNDING * jnp.finfo(outputs.dtype).eps * jnp.max(outputs))
    on = (outputs > wrong).astype(outputs.dtype)
    return on, 1 - on


def _within(activation: str, outputs: Array) -> Array:
    """The nearest outputs that an activation may have."""
    if activation not in RANGES:
        return outputs
    low, high = RANGES[activation]
    rounding = jnp.finfo(outputs.dtype).eps * (activation != "relu")
    return jnp.clip(outputs, low + rounding, high - rounding)


def _least_squares(link: Link, equations: Equations, key: Array) -> tuple[Array, Array]:
    """The input that solves the equations best, and whether no other does.

    By conjugate gradients, preconditioned where the input is small.
    """
    dtype = equations.kernel.dtype
    transposed = jax.linear_transpose(lambda u: equations.left(link, u), jnp.zeros(link.shape, dtype))

    def product(u):
        return transposed(equations.left(link, u))[0]

    size, options = jnp.zeros(link.shape).size, {"maxiter": ITERATIONS}
    if size <= DIRECT:
        units = jnp.eye(size, dtype=dtype).reshape(-1, *link.shape)
        gram = jax.lax.map(product, units, batch_size=256).reshape(size, -1)
        ridge = RIDGE * jnp.finfo(dtype).eps * jnp.mean(jnp.diag(gram))
        factor = jax.scipy.linalg.cho_factor(gram + ridge * jnp.eye(size, dtype=dtype))
        options = {
            "maxiter": PRECONDITIONED,
            "M": lambda v: jax.scipy.linalg.cho_solve(factor, v.ravel()).reshape(v.shape),
        }

    def solved(right):
        u = jnp.zeros(link.shape, dtype)
        for _ in range(ROUNDS):
            missing = transposed(jax.tree.map(jnp.subtract, right, equations.left(link, u)))[0]
            u += jax.scipy.sparse.linalg.cg(product, missing, tol=1e-12, **options)[0]
        return u

    drawn = jax.random.normal(key, link.shape, dtype)
    apart = jnp.linalg.norm((solved(equations.left(link, drawn)) - drawn).ravel())
    return solved(equations.right), apart < DETERMINED * jnp.linalg.norm(drawn.ravel())


def _smoothest(missed, low: Array, high: Array) -> Array:
    """The image within bounds that misses least, of those the one with the least total variation."""
    span = high - low

    def image(v):
        return (low + span * jax.nn.sigmoid(v).reshape(low.shape))[None]

    def objective(v, weight, rounded):
        u = image(v)
        return missed(u) + weight * _variation((u - low) / span, rounded)

    def stage(v, weights):
        fun = jax.value_and_grad(lambda v: objective(v, *weights))

        def step(state, _):
            return SOLVER.step(fun, state)[0], None

        state, _ = jax.lax.scan(step, SOLVER.init(fun, v), length=EVALUATIONS)
        return state.lowest, None

    weights = jnp.asarray(SMOOTH, low.dtype).T
    v, _ = jax.lax.scan(stage, jnp.zeros(low.size, low.dtype), (weights[0], weights[1]))
    return image(v)


def _variation(x: Float[Array, "b h w c"], rounded: Array) -> Float[Array, ""]:
    """Isotropic total variation of the channels' mean and of their differences, with squares near 0."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    parts = jnp.concatenate([mean * jnp.sqrt(x.shape[-1]), COLOUR * (x - mean)], axis=-1)
    across = jnp.pad(jnp.diff(parts, axis=2), ((0, 0), (0, 0), (0, 1), (0, 0)))
    down = jnp.pad(jnp.diff(parts, axis=1), ((0, 0), (0, 1), (0, 0), (0, 0)))
    return jnp.sum(jnp.sqrt(jnp.square(across) + jnp.square(down) + jnp.square(rounded)) - rounded)
