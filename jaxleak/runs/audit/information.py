"""How much an update tells of the images: its Fisher information, and the error of the best possible attack.

The update is u(x) + n with noise n of standard deviation s on every entry that is compared. Its Fisher information
about the pixels x is J^T J / s^2, with the Jacobian J = du/dx. No unbiased attack has a smaller covariance than the
inverse (Cramér & Rao). Pixels have a range, so a weak prior is added: no direction varies by more than all pixels
together can.

Source: Kay 1993, Fundamentals of Statistical Signal Processing, section 3; J^T J is also what the Inversion Influence
Function of Zhang et al. 2023 inverts.
"""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from jaxleak.engine.compiler import chunk_options
from jaxleak.kernels.precision import float64, full_precision
from jaxleak.runs.audit.counting import told_at_most
from jaxleak.threat.client import client_update
from jaxleak.threat.victim import Victim

EXACT = 4000  # pixels up to which the whole spectrum is computed
PIXEL_VARIANCE = 1 / 12  # of a pixel of which nothing is known: uniform in [0, 1]
TOGETHER = 32  # directions that are computed at once
PROBES, STEPS = 16, 64  # of the randomised spectrum
KEPT = 24  # compiled functions


@dataclass(frozen=True, eq=False)
class Information:
    """J^T J at some images, by its eigenvalues.

    Attributes:
        shape: of the images, [b, h, w, c].
        values: eigenvalues [m], the smallest first, in squared units of the update per pixel.
        counts: directions that each stands for [m]; their sum is the number of pixels, b h w c.
        spread: function of f(values) [m] that returns the diagonal of f(J^T J), one number per pixel.
        exact: True if `values` are all the eigenvalues; else they are quadrature nodes.
        basis: eigenvectors [pixels, m] where exact, else None.
    """

    shape: tuple[int, ...]
    values: Float[np.ndarray, "m"]
    counts: Float[np.ndarray, "m"]
    spread: Callable[[np.ndarray], np.ndarray]
    exact: bool
    basis: Float[np.ndarray, "p m"] | None = None

    @property
    def pixels(self) -> int:
        """Number of pixels of all images, channels counted singly."""
        return int(np.prod(self.shape))

    @property
    def smallest(self) -> float | None:
        """The smallest singular value of the Jacobian; None where it is not known."""
        return float(np.sqrt(max(self.values[0], 0))) if self.exact else None

    @property
    def free(self) -> Bool[np.ndarray, "m"]:
        """Directions that the update leaves free: their eigenvalues are 0, or may have been made by rounding."""
        return self.values <= self.pixels * np.finfo(np.float64).eps * float(self.values[-1])

    def variances(self, noise: float, *, filled: bool = False) -> Float[np.ndarray, "m"]:
        """Variance of the best attack's error along each direction, at noise of this standard deviation.

        Args:
            noise: on each entry.
            filled: of an attack that knows what pictures look like: directions that are free are right, and along no
                other it is wrong by more than a pixel of which nothing is known.
        """
        prior = 1 / (PIXEL_VARIANCE * (1 if filled else self.pixels))
        values = np.where(self.free, 0, self.values)
        found = 1 / (values / max(noise, 1e-140) ** 2 + prior)
        return np.where(self.free, 0, found) if filled else found

    def error(self, noise: float, *, filled: bool = False) -> float:
        """Expected root mean squared error per pixel, in 0..0.29; 0.29 is that of a guess."""
        total = float(np.sum(self.counts * self.variances(noise, filled=filled))) / self.pixels
        return float(np.sqrt(min(total, PIXEL_VARIANCE)))

    def error_map(self, noise: float) -> Float[np.ndarray, "b h w c"]:
        """Expected root mean squared error of each pixel, in 0..0.29."""
        diagonal = np.clip(self.spread(self.variances(noise)), 0, PIXEL_VARIANCE)
        return np.sqrt(diagonal).reshape(self.shape)

    def noise_for(self, error: float, *, filled: bool = False) -> float:
        """Standard deviation of the noise at which the expected error per pixel is this; inf if none makes it so."""
        low, high = -30.0, 15.0
        if self.error(10.0**high, filled=filled) < error:
            return float("inf")
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.error(10.0**middle, filled=filled) < error else (low, middle)
        return 10.0**high


def information(
    victim: Victim,
    params: PyTree,
    pixels: Float[np.ndarray, "b h w c"],
    target: Float[np.ndarray, "b k"],
    weights: PyTree | None = None,
    *,
    free_of_scale: bool = False,
    spectrum_only: bool = False,
) -> Information:
    """The information of an update about the images it is computed from, in float64.

    Exact up to `EXACT` pixels, from one product J^T J e per pixel. Above by stochastic Lanczos quadrature, with as many
    free directions as counting says there are at least (`counting.told_at_most`); others it may miss.

    Args:
        victim: model, client and normalisation.
        params: the network's weights.
        pixels: images in [0, 1] at which the Jacobian is taken.
        target: targets of the loss.
        weights: of each entry of the update, 0 where it is not compared and 1 / s^2 where noise differs; None: all 1.
        free_of_scale: only the update's direction is compared.
        spectrum_only: no basis and no map are needed, which takes a third of the time.

    Source: stochastic Lanczos quadrature, Ubaru, Chen & Saad 2017.
    """
    count = int(np.prod(pixels.shape))
    with float64(), full_precision():
        if weights is None:
            weights = jax.tree.map(lambda leaf: np.ones((), np.float64), params)
        arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, pixels, target, weights))
        if count <= EXACT:
            matrix = np.asarray(compiled(victim, _columns, free_of_scale, arguments)(*arguments))
            symmetric, shape = (matrix + matrix.T) / 2, tuple(pixels.shape)
            if spectrum_only:
                return Information(shape, np.linalg.eigvalsh(symmetric), np.ones(count), _no_map, exact=True)
            values, basis = np.linalg.eigh(symmetric)
            return Information(
                shape,
                values,
                np.ones(count),
                lambda f: np.square(basis) @ f,
                exact=True,
                basis=basis,
            )
        found = _randomised(victim, free_of_scale, arguments, tuple(pixels.shape))
        update = compiled(victim, _update, free_of_scale, arguments)(*arguments)
        told = told_at_most(victim, params, update, weights, len(pixels))
        return _freed(found, max(0, count - told))


def sharing(victim: Victim, params, shape: tuple[int, ...], target) -> Callable[[Array], PyTree]:
    """Flat images, in pixels -> the update that the assumed client would share."""

    def update(flat):
        x = victim.to_input(flat.reshape(shape))
        return client_update(victim.client, victim.attacker_model, params, x, target)

    return update


def dot(a: PyTree, b: PyTree, weights: PyTree) -> Float[Array, ""]:
    """Inner product of two trees, with the weight of each entry."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y, w: jnp.sum(w * x * y), a, b, weights)), jnp.zeros(()))


def product(victim: Victim, free_of_scale: bool, params, pixels, target, weights) -> Callable[[Array], Array]:
    """v -> J^T W J v on flat images."""
    shared, forward = jax.linearize(sharing(victim, params, pixels.shape, target), pixels.ravel())
    back = jax.linear_transpose(forward, pixels.ravel())
    norm2 = dot(shared, shared, weights)

    def apply(v):
        change = forward(v)
        if free_of_scale:
            along = dot(shared, change, weights) / jnp.where(norm2 > 0, norm2, 1)
            change = jax.tree.map(lambda leaf, g: leaf - along * g, change, shared)
        return back(jax.tree.map(jnp.multiply, change, weights))[0]

    return apply


def _columns(victim: Victim, free_of_scale: bool, params, pixels, target, weights) -> Float[Array, "p p"]:
    apply = product(victim, free_of_scale, params, pixels, target, weights)
    unit = jnp.zeros(pixels.size)
    return jax.lax.map(lambda place: apply(unit.at[place].set(1.0)), jnp.arange(pixels.size), batch_size=TOGETHER)


def _applied(victim: Victim, free_of_scale: bool, params, pixels, target, weights, vectors) -> Float[Array, "s p"]:
    return jax.vmap(product(victim, free_of_scale, params, pixels, target, weights))(vectors)


def _update(victim: Victim, free_of_scale: bool, params, pixels, target, weights) -> PyTree:
    del free_of_scale, weights
    return sharing(victim, params, pixels.shape, target)(pixels.ravel())


def _freed(found: Information, free: int) -> Information:
    """The information with so many directions free, in place of those with the smallest eigenvalues."""
    if not free:
        return found
    before = np.cumsum(found.counts) - found.counts
    kept = np.clip((before + found.counts - free) / np.where(found.counts > 0, found.counts, 1), 0, 1)

    def spread(f: np.ndarray) -> np.ndarray:
        return found.spread(kept * f[1:]) + f[0] * free / found.pixels

    values, counts = np.append(0.0, found.values), np.append(float(free), kept * found.counts)
    return replace(found, values=values, counts=counts, spread=spread)


def _no_map(values: np.ndarray) -> np.ndarray:
    raise ValueError("only the spectrum was computed")


_kept: dict[Hashable, Any] = {}


def compiled(victim: Victim, function: Callable, free_of_scale: bool, arguments: Any) -> Any:
    """`function(victim, free_of_scale, *arguments)`, compiled; found again for a victim of an equal key.

    Its arguments are those of the call; of the victim's own arrays it may use none.
    """
    types = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    leaves, structure = jax.tree.flatten(types)
    key = (_key(victim), function, free_of_scale, structure, tuple(leaves))
    if key in _kept:
        return _kept[key][0]
    bound = functools.partial(function, victim.without_data(), free_of_scale)
    options = chunk_options() if jax.default_backend() == "cpu" else None
    result = jax.jit(bound, compiler_options=options).lower(*types).compile()
    while len(_kept) >= KEPT:
        _kept.pop(next(iter(_kept)))
    _kept[key] = result, victim.model, victim.batch_stats  # which must live as long as their `id` stands in the key
    return result


def _key(victim: Victim) -> Hashable:
    """What a function of a victim depends on besides its arguments."""
    if victim.key is not None:
        return victim.key
    own = id(victim.model), id(victim.batch_stats), victim.client, victim.normalisation, victim.knows_statistics
    return own, victim.batch, victim.shape, victim.num_classes


def _randomised(victim: Victim, free_of_scale: bool, arguments: Any, shape: tuple[int, ...]) -> Information:
    count = int(np.prod(shape))
    steps, probes = min(STEPS, count), PROBES
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (probes, count))
    apply = compiled(victim, _applied, free_of_scale, (*arguments, jnp.asarray(signs)))
    basis = np.zeros((steps, probes, count))
    alpha, beta = np.zeros((steps, probes)), np.zeros((steps, probes))
    basis[0] = signs / np.sqrt(count)
    for step in range(steps):
        new = np.array(apply(*arguments, jnp.asarray(basis[step])))
        alpha[step] = np.sum(new * basis[step], axis=1)
        for _ in range(2):  # twice is enough, against all that came before
            overlaps = np.einsum("spn,pn->sp", basis[: step + 1], new)
            new -= np.einsum("sp,spn->pn", overlaps, basis[: step + 1])
        beta[step] = np.linalg.norm(new, axis=1)
        if step + 1 < steps:
            basis[step + 1] = new / np.where(beta[step] > 1e-12 * np.abs(alpha[0]), beta[step], np.inf)[:, None]
    nodes, shares, vectors = [], [], []
    for probe in range(probes):
        off = beta[: steps - 1, probe]
        values, rotation = np.linalg.eigh(np.diag(alpha[:, probe]) + np.diag(off, 1) + np.diag(off, -1))
        nodes.append(values)
        shares.append(rotation[0] ** 2)
        vectors.append(rotation)
    values = np.concatenate(nodes)

    def spread(f: np.ndarray) -> np.ndarray:
        diagonal = np.zeros(count)
        for probe, rotation in enumerate(vectors):
            mine = f[probe * steps : (probe + 1) * steps]
            applied = basis[:, probe].T @ (rotation @ (mine * rotation[0]))
            diagonal += signs[probe] * np.sqrt(count) * applied
        return diagonal / probes

    order = np.argsort(values)
    counts = np.concatenate(shares) * count / probes
    return Information(
        shape, values[order], counts[order], lambda f: spread(f[np.argsort(order)]), exact=False, basis=None
    )
