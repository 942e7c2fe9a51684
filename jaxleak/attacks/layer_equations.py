"""The equations of one layer of a chain, and the inputs that solve them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxleak.attacks.lane_cond import update_if
from jaxleak.threat.chain import Link

ITERATIONS, PRECONDITIONED = 3000, 30  # of conjugate gradients, in each of ...
ROUNDS = 3  # ... which begin anew at what is left, as rounding asks for
DIRECT = 4096  # numbers of a layer's input up to which they are preconditioned by a Cholesky factor
RIDGE = 30  # times the rounding of the mean square of a column, on the diagonal of that
DETERMINED = 1e-3  # relative error of a random input, solved for, up to which equations have one solution
SPLITS, PENALTY, RELAXED = 600, 0.03, 1.6  # steps of ADMM, weight over the mean square of a column, over-relaxation
AGREE = 1e-2  # relative distance of two solutions, from different starts, that are the same
BELOW = 1e-3  # of its largest number: a solution that is further below 0 is not one of at least 0
SUPPORTED = 300  # iterations of conjugate gradients on the inputs that are above 0


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


def least_squares(
    link: Link, equations: Equations, key: Array, *, nonnegative: bool = False
) -> tuple[Array, Bool[Array, ""]]:
    """The input that solves the equations best, and whether no other does.

    By conjugate gradients, preconditioned where the input is small. Inputs behind a ReLU are not below 0, and many are
    0: where the equations have many solutions, often one of them is like that.

    Args:
        link: the layer.
        equations: of its input.
        key: of the random inputs by which it is tried out whether there is one solution.
        nonnegative: the input comes from a ReLU. That is used up to `DIRECT` numbers.

    Source: Boyd et al. 2011, ADMM, section 5.2; Bruckstein, Elad & Zibulevsky 2008, that sparse solutions of at least 0
        are the only ones.
    """
    dtype = equations.kernel.dtype
    transposed = jax.linear_transpose(lambda u: equations.left(link, u), jnp.zeros(link.shape, dtype))

    def product(u):
        return transposed(equations.left(link, u))[0]

    size, options, gram = jnp.zeros(link.shape).size, {"maxiter": ITERATIONS}, None
    if size <= DIRECT:
        units = jnp.eye(size, dtype=dtype).reshape(-1, *link.shape)
        gram = jax.lax.map(product, units, batch_size=256).reshape(size, -1)
        ridge = RIDGE * jnp.finfo(dtype).eps * jnp.mean(jnp.diag(gram))
        factor = jax.scipy.linalg.cho_factor(gram + ridge * jnp.eye(size, dtype=dtype))
        options = {
            "maxiter": PRECONDITIONED,
            "M": lambda v: jax.scipy.linalg.cho_solve(factor, v.ravel()).reshape(v.shape),
        }

    def solved(right, free: Any = 1.0, **options):
        """The solution that is 0 where `free` is."""
        u = jnp.zeros(link.shape, dtype)
        for _ in range(ROUNDS):
            missing = free * transposed(jax.tree.map(jnp.subtract, right, equations.left(link, u)))[0]
            u += jax.scipy.sparse.linalg.cg(lambda v: free * product(free * v), missing, tol=1e-12, **options)[0]
        return u

    def one_solution(free: Any = 1.0, **options):
        drawn = free * jax.random.normal(key, link.shape, dtype)
        apart = jnp.linalg.norm((solved(equations.left(link, drawn), free, **options) - drawn).ravel())
        return apart < DETERMINED * jnp.linalg.norm(drawn.ravel())

    found = solved(equations.right, **options), one_solution(**options)
    if gram is None or not nonnegative:
        return found

    def at_least_0(found, _):
        starts = _nonnegative(gram, transposed(equations.right)[0].ravel(), jax.random.fold_in(key, 1))
        apart = jnp.linalg.norm(starts[0] - starts[1])
        agree = apart < AGREE * jnp.linalg.norm(starts[0])
        free = jnp.any(starts > 0, axis=0).astype(dtype).reshape(link.shape)
        inputs = solved(equations.right, free, maxiter=SUPPORTED)
        one = agree & (jnp.min(inputs) >= -BELOW * jnp.max(inputs)) & one_solution(free, maxiter=SUPPORTED)
        replaced = one & ~found[1]
        return jnp.where(replaced, inputs, found[0]), found[1] | one

    return update_if(~found[1], at_least_0, found, ())


def _nonnegative(gram: Float[Array, "n n"], right: Float[Array, "n"], key: Array) -> Float[Array, "2 n"]:
    """Solutions of gram u = right with u >= 0, from two starts: 0, and a random one. By ADMM."""
    penalty = PENALTY * jnp.mean(jnp.diag(gram))
    factor = jax.scipy.linalg.cho_factor(gram + penalty * jnp.eye(len(gram), dtype=gram.dtype))
    inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(len(gram), dtype=gram.dtype))

    def step(_, state):
        z, multiplier = state
        u = (right + penalty * (z - multiplier)) @ inverse
        u = RELAXED * u + (1 - RELAXED) * z
        z = jnp.maximum(u + multiplier, 0)
        return z, multiplier + u - z

    size = jnp.max(jnp.abs(right)) / jnp.mean(jnp.diag(gram))
    starts = jnp.stack([jnp.zeros_like(right), size * jax.random.uniform(key, right.shape, right.dtype)])
    return jax.lax.fori_loop(0, SPLITS, step, (starts, jnp.zeros_like(starts)))[0]
