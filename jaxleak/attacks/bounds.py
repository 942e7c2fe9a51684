"""Changes of variables that keep pixels in [0, 1]: solvers that cannot project then search without bounds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MARGIN = 0.01  # from 0 and 1, of starts: at the bounds themselves variables are infinite, or do not move


class Variables(NamedTuple):
    """A change of variables.

    Attributes:
        to_pixels: variables -> pixels in [0, 1].
        from_pixels: an inverse, of pixels within (0, 1).
        steepest: the largest slope of `to_pixels`.
    """

    to_pixels: Callable[[Any], Any]
    from_pixels: Callable[[Any], Any]
    steepest: float

    def start(self, pixels: Any) -> Any:
        """The variables of a start, whose pixels are brought within the bounds first."""
        return self.from_pixels(jnp.clip(pixels, MARGIN, 1 - MARGIN))


# A pixel that was pushed far out can come back behind a sine; behind a sigmoid it stays black or white.
SLOW = 4  # of the sine: starts from N(0, 1) are then nearly grey, as a sigmoid's are
VARIABLES = {
    "sigmoid": Variables(jax.nn.sigmoid, lambda pixels: jnp.log(pixels) - jnp.log1p(-pixels), 0.25),
    "sine": Variables(
        lambda u: (1 + jnp.sin(u / SLOW)) / 2, lambda pixels: SLOW * jnp.arcsin(2 * pixels - 1), 0.5 / SLOW
    ),
}
