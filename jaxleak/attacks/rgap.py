"""Layer by layer: an image from the gradient of a chain of convolutions and dense layers."""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxleak.attacks.layer_equations import Equations, least_squares
from jaxleak.solvers import LBFGS
from jaxleak.threat.chain import INVERSES, RANGES, Link, activate, part_of, slopes

SAFE, ROUNDING = 2, 10  # times the lowest output, and times the rounding of the largest: a ReLU below that is off
SWITCHED = 3  # units of a channel, at most, whose outputs are hidden by rounding and that are on
ALIKE = 1e-2  # how far a slope may be from what is missing of a bias's gradient, relative to that
# Weights of the total variation, one after the other, and differences of pixels below which it is a square.
SMOOTH = ((1e-1, 1e-1), (1e-2, 3e-2), *((10.0**-power, 1e-2) for power in range(3, 10)))
EVALUATIONS = 200  # with each of them
HELD = 0.1  # share of places where the first layer's known outputs are held back, to see if a picture foretells them
ENOUGH = 20  # of them
COLOUR = 2.0  # weight of differences between channels beside that of their mean
SOLVER = LBFGS(history=50, history_type="same", max_step=0.5)


class _Solved(NamedTuple):
    """What a chain's equations come to."""

    image: Float[Array, "1 h w c"]
    holds: Array  # the layers behind all have one solution
    held: Array  # 1 for outputs of the first layer that were held back, else 0


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
    if links[0].dense:
        bias = part_of(update, links[0].path)["bias"]
        unit = jnp.sum(jnp.square(bias))
        inputs = part_of(update, links[0].path)["kernel"] @ bias / jnp.where(unit > 0, unit, 1)
        return inputs.reshape(1, *low.shape)
    return _solve(links, params, update, low, high, key, held=0.0).image


def foretold(
    links: list[Link],
    params: PyTree,
    update: PyTree,
    low: Float[Array, "h w c"],
    high: Float[Array, "h w c"],
    key: Array,
    image: Float[Array, "1 h w c"],
) -> Float[Array, ""]:
    """How far the image moves for each output of the first layer that is held back.

    Units that are off hide what their filters see, and the image's total variation fills that in. How good that is for
    this image is seen where units that are on are held back: all channels of a tenth of the places. Distances are
    those of pixels, as filters that are nearly dependent turn small errors of outputs into large ones of the image.

    Args:
        links: a chain that begins with a convolution; the next arguments are those of `recover_by_layers`.
        image: what that found, in the network's units.

    Returns:
        Root of the squared distance of the images, in pixels of [0, 1], over the number of outputs held back; inf where
        the first layer's outputs do not follow from the update, or too few are on.
    """
    solved = _solve(links, params, update, low, high, key, held=HELD)
    count = jnp.sum(solved.held)
    moved = jnp.sum(jnp.square((solved.image - image) / (high - low)))
    return jnp.where(solved.holds & (count >= ENOUGH), jnp.sqrt(moved / jnp.maximum(count, 1)), jnp.inf)


def _solve(
    links: list[Link], params: PyTree, update: PyTree, low: Array, high: Array, key: Array, *, held: float
) -> _Solved:
    """The image and what it follows from; this share of the first layer's known outputs is not used."""
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
        else:
            bias = weights.get("bias", jnp.zeros(kernel.shape[-1], kernel.dtype))
            products = INVERSES[link.activation](outputs) - bias
            hidden = jnp.zeros_like(known)
            if number == 0 and held:
                places = (*known.shape[:-1], 1)
                hidden = known * jax.random.bernoulli(jax.random.fold_in(key, len(links)), held, places)
            equations = Equations(kernel, slope, known - hidden, off, bias, products, gradient["kernel"])
            if number == 0:
                parts.append((equations, holds))
                break
            behind_relu = before.activation == "relu"
            inputs, nearer = least_squares(link, equations, jax.random.fold_in(key, number), nonnegative=behind_relu)
            parts.append((equations, holds & ~nearer))
            holds &= nearer
        known, off = _inverted(before.activation, inputs)
        inputs = _within(before.activation, inputs).reshape(link.shape)
        (slope,) = jax.vjp(lambda u, link=link, kernel=kernel: link.linear(kernel, u), inputs)[1](slope)
        shape = before.output_shape(part_of(params, before.path)["kernel"])
        outputs, slope, known, off = (part.reshape(shape) for part in (inputs, slope, known, off))
        if before.activation == "relu" and not before.dense and "bias" in part_of(update, before.path):
            known, off = _switched_on(slope, known, off, part_of(update, before.path)["bias"])
        slope = slope * jnp.where(known > 0, _slopes(before.activation, outputs), 0)

    def missed(image: Array) -> Float[Array, ""]:
        total, u = jnp.zeros(()), image
        for (equations, used), (link, after) in zip(reversed(parts), pairwise(links), strict=False):
            total += jnp.where(used, equations.missed(link, u), 0)
            u = activate(link.activation, link.linear(equations.kernel, u) + equations.bias).reshape(after.shape)
        return total

    return _Solved(_smoothest(missed, low, high), parts[-1][1], hidden)


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


def _slopes(activation: str, outputs: Array) -> Array:
    """The activation's derivative, from its outputs; of a ReLU that is on."""
    return jnp.ones_like(outputs) if activation == "relu" else slopes(activation, INVERSES[activation](outputs))


def _switched_on(slope: Array, known: Array, off: Array, bias: Float[Array, "c"]) -> tuple[Array, Array]:
    """`known` and `off` with the units that are on though rounding hides their outputs.

    The gradient of a convolution's bias is the sum of the slopes of the units that are on. Where it misses one, that is
    the unit whose slope is missing.

    Args:
        slope: of the loss behind the ReLUs [1, h, w, c].
        known, off: as their outputs say.
        bias: gradient of the bias.
    """
    flat = slope.reshape(-1, slope.shape[-1])
    rounding = ROUNDING * jnp.finfo(slope.dtype).eps * jnp.sum(jnp.abs(flat), axis=0)
    on = known.reshape(flat.shape)
    for _ in range(SWITCHED):
        missing = bias - jnp.sum(on * flat, axis=0)
        apart = jnp.where(on > 0, jnp.inf, jnp.abs(flat - missing))
        nearest = jnp.argmin(apart, axis=0)
        found = jnp.abs(missing) > rounding
        found &= jnp.min(apart, axis=0) < jnp.maximum(rounding, ALIKE * jnp.abs(missing))
        on += found * (jnp.arange(len(flat))[:, None] == nearest)
    on = on.reshape(known.shape)
    return on, off * (1 - on)


def _within(activation: str, outputs: Array) -> Array:
    """The nearest outputs that an activation may have."""
    if activation not in RANGES:
        return outputs
    low, high = RANGES[activation]
    rounding = jnp.finfo(outputs.dtype).eps * (activation != "relu")
    return jnp.clip(outputs, low + rounding, high - rounding)


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
