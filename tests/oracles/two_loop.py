"""The L-BFGS direction, twice: the two-loop recursion and the dense matrix it stands for. numpy only."""

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def two_loop_direction(s: Sequence[Array], y: Sequence[Array], gradient: Array, gamma: float) -> Array:
    """The L-BFGS direction -H g by the two-loop recursion.

    Args:
        s: steps x_{i+1} - x_i, oldest first, each [n].
        y: gradient differences g_{i+1} - g_i, oldest first, each [n].
        gradient: g, [n].
        gamma: scale of the initial inverse Hessian, H_0 = gamma I.

    Returns:
        -H g, [n]; -gamma g where the history is empty.

    Source: Nocedal & Wright 2006, algorithm 7.4, with the sign taken in at the start.
    """
    rho = [1.0 / (y_i @ s_i) for s_i, y_i in zip(s, y, strict=True)]
    alpha = np.zeros(len(s))
    q = -gradient
    for i in reversed(range(len(s))):
        alpha[i] = rho[i] * (s[i] @ q)
        q = q - alpha[i] * y[i]
    r = gamma * q
    for i in range(len(s)):
        beta = rho[i] * (y[i] @ r)
        r = r + (alpha[i] - beta) * s[i]
    return r


def dense_inverse_hessian(s: Sequence[Array], y: Sequence[Array], size: int, gamma: float) -> Array:
    """The [n, n] matrix H that `two_loop_direction` applies, by one BFGS update per pair.

    H <- (I - rho s yᵀ) H (I - rho y sᵀ) + rho s sᵀ with rho = 1 / yᵀs, from H = gamma I.

    Source: Nocedal & Wright 2006, equation 6.17.
    """
    identity = np.eye(size)
    H = gamma * identity
    for s_i, y_i in zip(s, y, strict=True):
        rho = 1.0 / (y_i @ s_i)
        left = identity - rho * np.outer(s_i, y_i)
        H = left @ H @ left.T + rho * np.outer(s_i, s_i)
    return H
