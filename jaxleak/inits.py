"""Where a trial starts."""

import jax
from jaxtyping import Array, Float


def normal(key, shape: tuple[int, ...], dtype=float) -> Float[Array, "..."]:
    """N(0, 1) per pixel or logit, the start of DLG and iDLG."""
    return jax.random.normal(key, shape, dtype)


INITS = {"normal": normal}
