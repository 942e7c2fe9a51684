"""L-BFGS in the compact form: the direction from Gram matrices instead of 2m dependent small steps.

Source: Byrd, Nocedal & Schnabel 1994, "Representations of quasi-Newton matrices and their use in limited memory
methods", theorem 2.2 and section 3. With S = [s_1 .. s_m], Y = [y_1 .. y_m] (oldest first), R the upper triangle of
S^T Y, D its diagonal, and gamma the scale of the initial matrix,

    H g = gamma g + S [R^-T ((D + gamma Y^T Y) R^-1 S^T g - gamma Y^T g)] - gamma Y R^-1 S^T g.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int

from jaxleak.kernels.llvm import usable
from jaxleak.kernels.llvm.history import Call, quasi_newton
from jaxleak.kernels.llvm.primitive import lane_primitive


class History(NamedTuple):
    """The last m accepted pairs. Pairs lie in a ring of slots; the Gram matrices are oldest first."""

    pairs: Float[Array, "2 m n"]  # s in [0], y in [1]
    sy: Float[Array, "m m"]  # upper triangle of S^T Y
    yy: Float[Array, "m m"]  # Y^T Y
    start: Int[Array, ""]  # slot of the oldest pair
    count: Int[Array, ""]  # pairs held


def empty_history(m: int, n: int, dtype) -> History:
    """A history of at most `m` pairs of vectors of length `n`."""
    zero = jnp.zeros((), jnp.int32)
    return History(jnp.zeros((2, m, n), dtype), jnp.zeros((m, m), dtype), jnp.zeros((m, m), dtype), zero, zero)


def append(
    history: History, s: Float[Array, "n"], y: Float[Array, "n"], gradient: Float[Array, "n"], accept
) -> tuple[History, Float[Array, "m"], Float[Array, "m"]]:
    """Add the pair (s, y) if `accept`, dropping the oldest when full.

    Returns:
        The history, S^T gradient and Y^T gradient (oldest first, zero beyond `count`): the history is read once for
        these and for the new column of the Gram matrices.
    """
    _, m, n = history.pairs.shape
    slot = (history.start + history.count) % m
    full = history.count == m
    old = history.pairs[:, slot]
    pairs = history.pairs.at[:, slot].set(jnp.where(accept, jnp.stack([s, y]), old))
    start = jnp.where(accept & full, (history.start + 1) % m, history.start)
    count = jnp.where(accept & ~full, history.count + 1, history.count)

    products = pairs.reshape(2 * m, n) @ jnp.stack([gradient, y], axis=1)
    order = (start + jnp.arange(m)) % m
    products = products.reshape(2, m, 2)[:, order]
    valid = jnp.arange(m) < count
    products = jnp.where(valid[None, :, None], products, 0)

    newest = jnp.arange(m) == count - 1
    sy = _grow(history.sy, products[0, :, 1], accept, full, newest, symmetric=False)
    yy = _grow(history.yy, products[1, :, 1], accept, full, newest, symmetric=True)
    return History(pairs, sy, yy, start, count), products[0, :, 0], products[1, :, 0]


def _grow(gram, column, accept, full, newest, *, symmetric: bool):
    """The Gram matrix with its oldest row and column dropped when `full`, and `column` as its newest."""
    shifted = jnp.where(full, jnp.pad(gram[1:, 1:], ((0, 1), (0, 1))), gram)
    grown = jnp.where(newest[None, :], column[:, None], shifted)
    if symmetric:
        grown = jnp.where(newest[:, None], column[None, :], grown)
    return jnp.where(accept, grown, gram)


def direction(
    history: History, s_g: Float[Array, "m"], y_g: Float[Array, "m"], gradient: Float[Array, "n"], gamma
) -> Float[Array, "n"]:
    """The quasi-Newton direction -H g (theorem 2.2 above)."""
    _, m, n = history.pairs.shape
    valid = jnp.arange(m) < history.count
    # Slots not yet filled get a unit diagonal, so that the triangular solves leave their zeros alone.
    r = history.sy + jnp.diag(jnp.where(valid, 0, 1).astype(history.sy.dtype))
    u = solve_triangular(r, s_g, lower=False)
    inner = jnp.diag(history.sy) * u + gamma * (history.yy @ u) - gamma * y_g
    inner = jnp.where(valid, inner, 0)  # what a dropped history left in the Gram matrices
    v = solve_triangular(r, inner, trans="T", lower=False)
    coefficients = jnp.stack([v, -gamma * u])
    slots = (jnp.arange(m) - history.start) % m
    coefficients = coefficients[:, slots].reshape(2 * m)
    return -(gamma * gradient + coefficients @ history.pairs.reshape(2 * m, n))


def advance(
    history: History, s: Float[Array, "n"], y: Float[Array, "n"], gradient: Float[Array, "n"], accept, gamma
) -> tuple[History, Float[Array, "n"]]:
    """`append` and `direction` in one: the history with the pair (s, y) if `accept`, and -H g.

    On a CPU a kernel does it, lane by lane and in place, at little more than the cost of reading the pairs.
    """
    step = _kernel if usable(s, y, gradient) else _append_and_direct
    *new, newton = step(*history, s, y, gradient, accept, jnp.asarray(gamma, s.dtype))
    return History(*new), newton


def _append_and_direct(pairs, sy, yy, start, count, s, y, gradient, accept, gamma):
    history, s_g, y_g = append(History(pairs, sy, yy, start, count), s, y, gradient, accept)
    return *history, direction(history, s_g, y_g, gradient, gamma)


_kernel = lane_primitive(_append_and_direct, quasi_newton, lambda pairs, *_: Call.of(pairs), in_place=5)
