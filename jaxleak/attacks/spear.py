"""Closed form: a whole batch from the gradient of a first dense layer with a ReLU behind it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxleak.errors import InputError

SAMPLES = 2048  # submatrices at once
REFINED = 64  # of their kernels
NEAR = 4  # submatrices more for each direction
STEPS = 40  # of refining
ROUNDS = 300  # at most
OVERSAMPLED = 8  # vectors more than the rank, of the range that is looked for


class Layer(NamedTuple):
    """A dense layer and its gradient: of b images sum_i x_i d_i^T and sum_i d_i, with d_i the loss's slope at its
    outputs for image i."""

    kernel: Float[Array, "n m"]
    bias: Float[Array, "m"]
    kernel_gradient: Float[Array, "n m"]
    bias_gradient: Float[Array, "m"]


class Batch(NamedTuple):
    """The inputs of a dense layer, in any order, and the loss's slopes at its outputs."""

    inputs: Float[Array, "b n"]
    slopes: Float[Array, "b m"]
    contradictions: Float[Array, ""]  # share of the slopes that are not 0 though the layer's output is not above 0


class _Low(NamedTuple):
    """The transposed kernel gradient as L R, and R times the kernel."""

    left: Float[Array, "m b"]  # L, orthonormal columns
    right: Float[Array, "b n"]  # R
    outputs: Float[Array, "b m"]


def recover_inputs(layer: Layer, count: int, key: Array) -> Batch:
    """The inputs of a dense layer with a ReLU behind it, for a batch.

    The transposed kernel gradient D^T X has rank b, so D^T = L Q with L from its range. A row of D^T is 0 for the
    images whose unit is off there. Of b - 1 rows of L that are 0 for the same image and independent, the kernel is
    that image's column of Q. So many submatrices are drawn, some of their kernels q refined to more zeros in L q, and
    those with most zeros kept that are independent; the bias gradient, the sum of D's rows, says how long they are.
    They are right when D is 0 wherever X W + bias is not above 0. Drawing ends there, or after 300 rounds of some 2,048
    samples.

    Args:
        layer: the layer and its gradient; any multiple of a gradient serves.
        count: b.
        key: from which submatrices are drawn.

    Source: Dimitrov et al. 2024 (SPEAR), section 4 and algorithm 1.
    Differs: kernels are refined (`_refined`): with half the units off a sample alone is right for one of the images
        with probability b / 2^(b - 1), of 16 images 1 in 2,000, a refined one about 1 in 3. The sparsest independent
        set (greedy on a matroid, so exact) in place of their threshold and exchanges. A randomised range finder (Halko
        et al. 2011) in place of the whole decomposition.
    """
    unit = jnp.max(jnp.abs(layer.bias_gradient))
    unit = jnp.where(unit > 0, unit, 1)
    low = _low_rank(layer.kernel_gradient / unit, layer.kernel, count, key)
    total = layer.bias_gradient / unit
    begin = jnp.eye(count, dtype=low.left.dtype)
    products = (low.left[:, :, None] * low.left[:, None]).reshape(len(low.left), -1)

    def batch(directions: Float[Array, "b b"]) -> Batch:
        lengths = _solved(directions.T[None], (total @ low.left)[None, :, None])[0, :, 0]
        scaled = lengths[:, None] * directions
        slopes = scaled @ low.left.T
        outputs = _solved(scaled.T[None], low.outputs[None])[0] + layer.bias
        contradictions = jnp.mean(~_zeros(slopes) & ~(outputs > 0))
        return Batch(_solved(scaled.T[None], low.right[None])[0], slopes, contradictions)

    def more(state):
        number, directions = state
        # A wrong direction contradicts the layer in about half of its units; rounding in one of some thousands.
        return (number < ROUNDS) & ~(batch(directions).contradictions <= 2 * _tolerance(begin.dtype))

    def draw(state):
        number, directions = state
        anywhere, near = jax.random.split(jax.random.fold_in(key, number))
        drawn = _kernels(low.left, _any_rows(low.left, anywhere))
        others = _kernels(low.left, _rows_near(low.left, directions, near))
        refined = _refined(low.left, products, drawn[:: len(drawn) // REFINED or 1][:REFINED])
        vectors = jnp.concatenate([directions, refined, drawn, others, begin])
        zeros = jnp.sum(_zeros(vectors @ low.left.T), axis=1).at[-count:].set(-1)
        return number + 1, _polished(low.left, _sparsest(vectors, zeros, count))

    directions = begin
    if count > 1:
        _, directions = lax.while_loop(more, draw, (jnp.zeros((), jnp.int32), begin))
    found = batch(directions)
    return found._replace(slopes=found.slopes * unit)


def _low_rank(gradient: Float[Array, "n m"], kernel: Float[Array, "n m"], count: int, key: Array) -> _Low:
    start = jax.random.normal(key, (gradient.shape[0], min(count + OVERSAMPLED, *gradient.shape)), gradient.dtype)
    span = jnp.linalg.qr(gradient.T @ start)[0]
    for _ in range(2):
        span = jnp.linalg.qr(gradient.T @ jnp.linalg.qr(gradient @ span)[0])[0]
    _, _, turned = jnp.linalg.svd(gradient @ span, full_matrices=False)
    left = span @ turned[:count].T
    right = (gradient @ left).T
    return _Low(left, right, right @ kernel)


def _zeros(vectors: Float[Array, "k m"]) -> Bool[Array, "k m"]:
    """Entries that are 0 but for rounding."""
    return jnp.abs(vectors) <= _tolerance(vectors.dtype) * jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)


def _tolerance(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) ** 0.55  # 2e-9 in float64, 2e-4 in float32


def _any_rows(left: Float[Array, "m b"], key: Array) -> Int[Array, "s b"]:
    """Random sets of rows of L."""
    width, count = left.shape
    each = width // count  # disjoint sets of a permutation
    places = jax.random.uniform(key, (-(-SAMPLES // (each * count)), width), left.dtype)
    return jnp.argsort(places + _off(left), axis=1)[:, : each * count].reshape(-1, count)


def _rows_near(left: Float[Array, "m b"], directions: Float[Array, "b b"], key: Array) -> Int[Array, "s b"]:
    """Sets of rows, of which each direction makes all but two 0.

    Images that are alike hide behind their difference: it has more small entries, and is found in place of them. What
    rows that both make 0, and one more, make 0 is one of them or the other.
    """
    zero, off = jnp.repeat(_zeros(directions @ left.T), NEAR, axis=0), _off(left)
    mine, any_two = (jax.random.uniform(one, zero.shape, left.dtype) + off for one in jax.random.split(key))
    alike = jnp.argsort(mine + ~zero, axis=1)[:, : len(directions) - 2]
    return jnp.concatenate([alike, jnp.argsort(any_two, axis=1)[:, :2]], axis=1)


def _off(left: Float[Array, "m b"]) -> Float[Array, "m"]:
    """2 for units that are off for all images, which come last; else 0."""
    norms = jnp.sum(jnp.square(left), axis=1)
    return 2.0 * (norms <= jnp.finfo(left.dtype).eps * jnp.max(norms))


def _kernels(left: Float[Array, "m b"], rows: Int[Array, "s b"]) -> Float[Array, "s*b b"]:
    """Unit vectors that b - 1 rows of L make 0, for sets of b rows; 0 where these are dependent.

    The inverse of b rows holds b of them: column k is what all rows but the k-th make 0.
    """
    count = left.shape[1]
    squares = left[rows]
    found = _solved(squares, jnp.broadcast_to(jnp.eye(count, dtype=left.dtype), squares.shape))
    found = found.swapaxes(1, 2).reshape(-1, count)
    unit = found / jnp.linalg.norm(found, axis=1, keepdims=True)
    return jnp.where(jnp.all(jnp.isfinite(unit), axis=1, keepdims=True), unit, 0)


def _refined(left: Float[Array, "m b"], products: Float[Array, "m b*b"], start: Float[Array, "k b"]) -> Array:
    """Unit vectors q near those given with a small sum of |L q|, which is small where many entries are 0.

    Reweighted least squares: the sum of (L q)^2 / sqrt(|L p|^2 + e^2) is made smallest with <p, q> = 1, p being the
    vector before, and e falls. Sums of absolute values are what Spielman, Wang & Wright 2012 learn sparse dictionaries
    by; that dictionary learning takes the place of sampling is after Bakarsky et al. 2025 (SPEAR++).
    """
    width, count = left.shape
    smallest = jnp.finfo(left.dtype).eps
    size = 0.3 * 0.6 ** jnp.arange(STEPS) / width**0.5
    ridge = 10 * smallest * jnp.eye(count, dtype=left.dtype)

    def step(vectors, size):
        weights = 1 / jnp.sqrt(jnp.square(vectors @ left.T) + jnp.square(jnp.maximum(size, smallest)))
        squares = (weights @ products).reshape(-1, count, count)
        squares = squares / jnp.trace(squares, axis1=1, axis2=2)[:, None, None] + ridge
        found = _solved(squares, vectors[..., None])[..., 0]
        return found / jnp.linalg.norm(found, axis=1, keepdims=True), None

    vectors, _ = lax.scan(step, start, size.astype(left.dtype))
    return jnp.where(jnp.all(jnp.isfinite(vectors), axis=1, keepdims=True), vectors, 0)


def _sparsest(vectors: Float[Array, "k b"], zeros: Int[Array, "k"], count: int) -> Float[Array, "b b"]:
    """The independent unit vectors with most zeros, most first."""
    smallest = jnp.finfo(vectors.dtype).eps ** 0.6  # of a squared distance from the span of those chosen

    def choose(left, _):
        apart = jnp.sum(jnp.square(left), axis=1)
        best = jnp.argmax(jnp.where(apart > smallest, zeros, -2))
        along = left[best] / jnp.sqrt(apart[best])
        return left - jnp.outer(left @ along, along), best

    _, chosen = lax.scan(choose, vectors, length=count)
    return vectors[chosen]


def _polished(left: Float[Array, "m b"], directions: Float[Array, "b b"]) -> Float[Array, "b b"]:
    """Each direction again, from all rows that it makes 0: the least squares of more equations than b - 1."""
    zero = _zeros(directions @ left.T)
    squares = jnp.einsum("km,mb,mc->kbc", zero.astype(left.dtype), left, left)
    squares += jnp.finfo(left.dtype).eps * jnp.eye(len(directions), dtype=left.dtype)
    vectors = directions
    for _ in range(2):  # inverse iteration: the smallest eigenvalue is next to 0
        found = _solved(squares, vectors[..., None])[..., 0]
        vectors = found / jnp.linalg.norm(found, axis=1, keepdims=True)
    enough = jnp.sum(zero, axis=1, keepdims=True) >= len(directions)
    return jnp.where(enough & jnp.all(jnp.isfinite(vectors), axis=1, keepdims=True), vectors, directions)


def _solved(squares: Float[Array, "s b b"], right: Float[Array, "s b k"]) -> Float[Array, "s b k"]:
    """Solutions of many small systems, by Gauss and Jordan with pivots; not finite where there is none.

    LAPACK's calls, one after the other in XLA's pool, wait there for each other where it has one thread
    (`engine.devices`).
    """
    count = squares.shape[1]
    places = jnp.arange(count)

    def eliminate(k, whole):
        column = jnp.where(places >= k, jnp.abs(whole[:, :, k]), -1)
        pivot = jnp.argmax(column, axis=1)
        taken = jnp.take_along_axis(whole, pivot[:, None, None], axis=1)
        whole = jnp.where((places == pivot[:, None])[..., None], whole[:, k][:, None], whole)
        taken = taken / taken[:, :, k][..., None]
        factors = jnp.where(places == k, 0, whole[:, :, k])
        return jnp.where((places == k)[:, None], taken, whole - factors[..., None] * taken)

    whole = lax.fori_loop(0, count, eliminate, jnp.concatenate([squares, right], axis=2))
    return whole[:, :, count:]


def in_order_of_labels(
    batch: Batch, slope: Callable[[Any, Any], Array], labels: Int[Array, "b"]
) -> Float[Array, "b n"]:
    """The inputs, each at the place of the label that explains its slopes.

    Args:
        batch: inputs and slopes.
        slope: (input [n], label) -> the loss's slope at the layer's outputs [m], for one image.
        labels: one for each place. Of wrong ones some are left over, for whatever inputs are.
    """
    told = jax.vmap(lambda one: jax.vmap(lambda label: slope(one, label))(labels))(batch.inputs)  # [input, place, m]
    norms = jnp.linalg.norm(told, axis=2) * jnp.linalg.norm(batch.slopes, axis=1)[:, None]
    cosines = jnp.einsum("ijm,im->ij", told, batch.slopes) / jnp.where(norms > 0, norms, 1)
    cosines = jnp.where(jnp.isfinite(cosines), cosines, -1)

    def place(state, _):
        left, order = state
        one, at = jnp.unravel_index(jnp.argmax(left), left.shape)
        return (left.at[one].set(-jnp.inf).at[:, at].set(-jnp.inf), order.at[at].set(one.astype(jnp.int32))), None

    (_, order), _ = lax.scan(place, (cosines, jnp.zeros(len(labels), jnp.int32)), length=len(labels))
    return batch.inputs[order]


def check_width(width: int, inputs: int, count: int) -> None:
    """Raise unless the gradient of a layer can have the rank of the batch.

    Raises:
        InputError: more images than units or pixels.
    """
    if count > min(width, inputs):
        raise InputError(
            f"spear needs a first dense layer at least as wide as the batch; got {width} units with {inputs} inputs "
            f"for {count} images. Use a wider layer (--model-field hidden=200) or a smaller --batch."
        )
