"""From which distributions weights are drawn."""

import jax


def dlg_uniform(key, shape, dtype=float):
    """U(-0.5, 0.5), DLG's initialisation of every weight and bias."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


def torch_uniform(fan_in: int):
    """U(-b, b) with b = fan_in ** -0.5: torch's default for the weights and biases of dense and convolution layers."""
    bound = fan_in**-0.5

    def draw(key, shape, dtype=float):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw
