"""Candidates brought to the floor in float64, by Gauss-Newton steps.

L-BFGS comes near the minimum quickly and then takes hundreds of iterations for each digit, because directions that an
update determines well and badly differ by four orders. A Gauss-Newton step is exact there: (J^T J + m) d = J^T (g - u).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxleak.kernels.precision import float64, full_precision
from jaxleak.runs.audit.information import Information, compiled, dot, information, product, sharing
from jaxleak.threat.victim import Victim

STEPS = 25  # at most
SLOW = 0.7  # a step that leaves more than this share of what was left does not converge
FRESH = 6  # times that the information is computed, at most
HOPELESS = 1e-4  # share left after a round of steps that shows another minimum
INNER = 400  # products of a step where the spectrum is not known
CURVED = 0.5  # share that a step should have removed and did not: the valley is curved, this is no minimum


class Polished(NamedTuple):
    """A candidate.

    Attributes:
        pixels: of it.
        left: share of the update, squared, that it leaves.
        promised: share of that which one step would remove if the network were linear: near 0 at a minimum.
    """

    pixels: Float[np.ndarray, "b h w c"]
    left: float
    promised: float = 0.0


class Residual(NamedTuple):
    """A candidate's share left, and J^T of what it leaves."""

    left: Float[Any, ""]
    slope: Float[Any, "p"]


def residual(victim: Victim, free_of_scale: bool, params, pixels, target, weights, wanted) -> Residual:
    """What a candidate leaves of the update `wanted`; free of scale, of its nearest multiple."""
    there, back = jax.vjp(sharing(victim, params, pixels.shape, target), pixels.ravel())
    norm2 = dot(wanted, wanted, weights)
    factor = jnp.asarray(1.0)
    if free_of_scale:
        own = dot(there, there, weights)
        factor = dot(there, wanted, weights) / jnp.where(own > 0, own, 1)
    rest = jax.tree.map(lambda u, g: u - factor * g, wanted, there)
    pulled = jax.tree.map(lambda leaf, w: w * leaf / jnp.where(factor == 0, 1, factor), rest, weights)
    left = dot(rest, rest, weights) / norm2
    return Residual(jnp.where(factor > 0, left, jnp.maximum(left, 1)), back(pulled)[0])


def solved(victim: Victim, free_of_scale: bool, params, pixels, target, weights, slope, damping) -> Float[Any, "p"]:
    """(J^T J + damping) d = slope by conjugate gradients."""
    apply = product(victim, free_of_scale, params, pixels, target, weights)
    return jax.scipy.sparse.linalg.cg(lambda v: apply(v) + damping * v, slope, maxiter=INNER, tol=1e-6)[0]


def polish(
    victim: Victim,
    pixels: Float[np.ndarray, "b h w c"],
    target: Float[np.ndarray, "b k"],
    weights: PyTree,
    floor: float,
    known: Information,
    *,
    free_of_scale: bool = False,
) -> Polished:
    """Damped Gauss-Newton steps from a candidate, until it is well below the floor or gets no further.

    Args:
        victim: with a given update.
        pixels, target: where to begin, and the targets, which stay.
        weights: of each entry of the update.
        floor: share at which there is no need to go on.
        known: information at this or a near candidate; where it is exact all steps use it.
        free_of_scale: only the update's direction is compared.
    """
    with float64(), full_precision():
        fixed = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), (target, weights, victim.update, victim.params)
        )
        target, weights, wanted, params = fixed
        here = jnp.asarray(pixels, jnp.float64)
        arguments = (params, here, target, weights, wanted)
        look = compiled(victim, residual, free_of_scale, arguments)

        def leaves(candidate) -> Residual:
            return look(params, candidate, target, weights, wanted)

        now = leaves(here)
        for _ in range(STEPS):
            if not float(now.left) > 0.01 * floor:
                break
            best, place = now, here
            for step in _steps(victim, free_of_scale, known, now.slope, (params, here, target, weights)):
                there = here + step.reshape(here.shape)
                new = leaves(there)
                if float(new.left) < float(best.left):
                    best, place = new, there
            slow = not float(best.left) < SLOW * float(now.left)
            now, here = best, place
            if slow:
                break
        return Polished(np.asarray(here), float(now.left), _promised(known, now, float(dot(wanted, wanted, weights))))


def _promised(known: Information, at: Residual, norm2: float) -> float:
    """See `Polished`; 1 where the spectrum is not known."""
    if known.basis is None:
        return 1.0
    along = known.basis.T @ np.asarray(at.slope)
    gain = np.sum(along**2 / (np.maximum(known.values, 0) + 1e-14 * known.values[-1]))
    return float(gain / max(float(at.left) * norm2, 1e-300))


def _steps(victim: Victim, free_of_scale: bool, known: Information, slope, at) -> Iterator[np.ndarray]:
    """Gauss-Newton steps with more and more damping: which is best depends on how far away the minimum is."""
    largest = float(known.values[-1])
    if known.basis is None:
        for damping in (1e-8, 1e-4):
            arguments = (*at, slope, jnp.asarray(damping * largest))
            yield np.asarray(compiled(victim, solved, free_of_scale, arguments)(*arguments))
        return
    along = known.basis.T @ np.asarray(slope)
    for exponent in range(-14, 0, 2):
        yield known.basis @ (along / (np.maximum(known.values, 0) + 10.0**exponent * largest))


def carry_on(
    victim: Victim,
    pixels: Float[np.ndarray, "b h w c"],
    target: Float[np.ndarray, "b k"],
    weights: PyTree,
    floor: float,
    *,
    free_of_scale: bool = False,
    known: Information | None = None,
) -> tuple[Polished, Information]:
    """`polish`, with the information computed anew where steps became small before the floor; and that information.

    Arguments as for `polish`; `known` is information at this or a near candidate, if there is any.
    """
    best = Polished(np.asarray(pixels, np.float64), np.inf)
    for _ in range(FRESH):
        if known is None:
            known = information(victim, victim.params, best.pixels, target, weights, free_of_scale=free_of_scale)
        new = polish(victim, best.pixels, target, weights, floor, known, free_of_scale=free_of_scale)
        gained = new.left < SLOW * best.left
        if new.left < best.left:
            best = new
        if best.left <= floor or not gained or best.left > HOPELESS:
            break
        known = None
    if known is None:
        known = information(victim, victim.params, best.pixels, target, weights, free_of_scale=free_of_scale)
    return best, known
