"""L-BFGS in the compact form: the direction from Gram matrices instead of 2m dependent small steps.

Source: Byrd, Nocedal & Schnabel 1994, "Representations of quasi-Newton matrices and their use in limited memory
methods", theorem 2.2 and section 3. With S = [s_1 .. s_m], Y = [y_1 .. y_m] (oldest first), R the upper triangle of
S^T Y, D its diagonal, and gamma the scale of the initial matrix,

    H g = gamma g + S [R^-T ((D + gamma Y^T Y) R^-1 S^T g - gamma Y^T g)] - gamma Y R^-1 S^T g.

On a CPU a kernel does this, and solves with R. Elsewhere R^-1 is kept, which a new pair changes in one column: where R
becomes [[R, r], [0, d]], R^-1 becomes [[R^-1, -R^-1 r / d], [0, 1 / d]]. What is left when the oldest pair goes is R^-1
of the others. So no triangular system is solved, each of whose rows would wait for the one before, and rows and columns
may stand in any order: each pair keeps its slot.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxleak.kernels.llvm import usable
from jaxleak.kernels.llvm.history import Call, quasi_newton
from jaxleak.kernels.llvm.primitive import lane_primitive


class History(NamedTuple):
    """The last m accepted pairs, in a ring of slots."""

    pairs: Float[Array, "2 m n"]  # s in [0], y in [1]
    triangle: Float[Array, "m m"]  # the kernel's: R, oldest first; else R^-1, by slot
    yy: Float[Array, "m m"]  # Y^T Y; the kernel's oldest first, else by slot
    start: Int[Array, ""]  # slot of the oldest pair: 0 until all slots are taken, on which the kernel relies
    count: Int[Array, ""]  # pairs held


def empty_history(m: int, n: int, dtype, pairs=None) -> History:
    """A history of at most `m` pairs of vectors of length `n`, kept in the type `pairs` if that is another."""
    zero = jnp.zeros((), jnp.int32)
    return History(jnp.zeros((2, m, n), pairs or dtype), jnp.zeros((m, m), dtype), jnp.zeros((m, m), dtype), zero, zero)


def dropped(history: History, when) -> History:
    """The history without its pairs if `when`."""
    start, count = (jnp.where(when, 0, number) for number in (history.start, history.count))
    return history._replace(start=start, count=count)


def append(
    history: History, s: Float[Array, "n"], y: Float[Array, "n"], gradient: Float[Array, "n"], accept
) -> tuple[History, Float[Array, "m"], Float[Array, "m"]]:
    """Add the pair (s, y) if `accept`, dropping the oldest when full.

    Returns:
        The history, S^T gradient and Y^T gradient by slot: the history is read once for these and for the new column of
        the Gram matrices. Slots without a pair may hold what was dropped; their rows and columns of R^-1 are zero.
    """
    pairs, inverse, yy, start, count = history
    _, m, n = pairs.shape
    slot = (start + count) % m
    full = count == m
    # A pair that is not accepted is written beyond the last slot, that is, nowhere.
    row = jnp.where(accept, slot, m)
    pairs = pairs.at[:, row].set(jnp.stack([s, y]).astype(pairs.dtype), mode="drop", unique_indices=True)
    start = jnp.where(accept & full, (start + 1) % m, start)
    count = jnp.where(accept & ~full, count + 1, count)

    products = pairs.reshape(2 * m, n).astype(s.dtype) @ jnp.stack([gradient, y], axis=1)
    (s_g, y_g), (s_y, y_y) = products.reshape(2, m, 2).transpose(2, 0, 1)
    place = jnp.arange(m)
    newest = place == row
    # The new column of R^-1; its row is zero but for the diagonal, and all is where the history was dropped.
    some = history.count > 0
    own = jnp.where(accept, jnp.sum(jnp.where(newest, s_y, 0)), 1)
    others = jnp.where(some, inverse @ jnp.where(newest, 0, s_y), 0)
    column = jnp.where(newest, 1, -others) / own
    old = some & ~newest[:, None]
    inverse = jnp.where(newest, column[:, None], jnp.where(old, inverse, 0))
    yy = jnp.where(newest, y_y[:, None], jnp.where(newest[:, None], y_y, jnp.where(some, yy, 0)))
    return History(pairs, inverse, yy, start, count), s_g, y_g


def direction(
    history: History, s_g: Float[Array, "m"], y_g: Float[Array, "m"], gradient: Float[Array, "n"], gamma
) -> Float[Array, "n"]:
    """The quasi-Newton direction -H g (theorem 2.2 above)."""
    pairs, inverse, yy, start, count = history
    _, m, n = pairs.shape
    held = (jnp.arange(m) - start) % m < count
    u = inverse @ s_g
    diagonal = 1 / jnp.where(held, jnp.diagonal(inverse), 1)
    v = (diagonal * u + gamma * (yy @ u) - gamma * y_g) @ inverse
    return -(gamma * gradient + jnp.concatenate([v, -gamma * u]) @ pairs.reshape(2 * m, n).astype(v.dtype))


def advance(
    history: History, s: Float[Array, "n"], y: Float[Array, "n"], gradient: Float[Array, "n"], accept, gamma
) -> tuple[History, Float[Array, "n"]]:
    """`append` and `direction` in one: the history with the pair (s, y) if `accept`, and -H g.

    On a CPU a kernel does it, lane by lane and in place, at little more than the cost of reading the pairs.
    """
    kept = history.pairs.dtype
    if kept != s.dtype:  # the pair that is kept must have curvature
        s, y = (vector.astype(kept).astype(vector.dtype) for vector in (s, y))
        accept &= jnp.vdot(s, y) > 0
    step = _kernel if usable(history.pairs, s, y, gradient) else _append_and_direct
    *new, newton = step(*history, s, y, gradient, accept, jnp.asarray(gamma, s.dtype))
    return History(*new), newton


def _append_and_direct(pairs, triangle, yy, start, count, s, y, gradient, accept, gamma):
    history, s_g, y_g = append(History(pairs, triangle, yy, start, count), s, y, gradient, accept)
    return *history, direction(history, s_g, y_g, gradient, gamma)


_kernel = lane_primitive(_append_and_direct, quasi_newton, lambda pairs, *_: Call.of(pairs), in_place=5)
