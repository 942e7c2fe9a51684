"""The code that a JAX user writes first: stock Flax, `value_and_grad`, the two-loop recursion, and `vmap` over starts.

Nothing of jaxleak's models, objectives or solvers is used. L-BFGS is torch's without line search, as in
`jaxleak.solvers.TorchLBFGS`, but for the tests that end an outer step; Adam is optax's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree


def _uniform(key, shape, dtype=float):
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


UNIFORM: dict[str, Any] = {"kernel_init": _uniform, "bias_init": _uniform}


class LeNet(nn.Module):
    """DLG's LeNet in stock Flax; same parameters as `jaxleak.models.LeNet`."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        for name, stride in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
            x = nn.sigmoid(nn.Conv(12, (5, 5), strides=stride, padding=2, name=name, **UNIFORM)(x))
        return nn.Dense(self.num_classes, name="head", **UNIFORM)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow o"]:
        conv = partial(nn.Conv, use_bias=False, kernel_init=_uniform)
        norm = partial(nn.BatchNorm, use_running_average=False, scale_init=_uniform, bias_init=_uniform)
        y = conv(self.channels, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = nn.sigmoid(norm(name="bn1")(y))
        y = norm(name="bn2")(conv(self.channels, (3, 3), padding=1, name="conv2")(y))
        if y.shape != x.shape:
            x = conv(self.channels, (1, 1), strides=self.stride, padding=0, name="downsample.0")(x)
            x = norm(name="downsample.1")(x)
        return nn.sigmoid(x + y)


class ResNet18(nn.Module):
    """ResNet-18 in its CIFAR form, sigmoids and BatchNorm in train mode, in stock Flax; parameters as jaxleak's."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, kernel_init=_uniform, name="conv1")(x)
        x = nn.BatchNorm(use_running_average=False, scale_init=_uniform, bias_init=_uniform, name="bn1")(x)
        x = nn.sigmoid(x)
        for stage in range(4):
            for index in range(2):
                stride = 2 if stage > 0 and index == 0 else 1
                x = Block(self.width * 2**stage, stride, name=f"layer{stage + 1}.{index}")(x)
        return nn.Dense(self.num_classes, name="head", **UNIFORM)(jnp.mean(x, axis=(1, 2)))


class Candidate(NamedTuple):
    image: Float[Array, "b h w c"]
    label: Float[Array, "b k"]  # logits


def loss(model: nn.Module, params: PyTree, candidate: Candidate) -> Float[Array, ""]:
    """Cross-entropy with the softmax of the candidate's label logits."""
    logits, _ = model.apply({"params": params}, candidate.image, mutable=["batch_stats"])
    return -jnp.mean(jnp.sum(jax.nn.softmax(candidate.label) * jax.nn.log_softmax(logits), axis=-1))


def matching_objective(model: nn.Module, params: PyTree, update: PyTree) -> Callable[[Candidate], Float[Array, ""]]:
    """DLG's objective: squared differences between the candidate's gradient and `update`, summed."""

    def objective(candidate):
        gradient = jax.grad(loss, argnums=1)(model, params, candidate)
        difference = jax.tree.map(jnp.subtract, gradient, update)
        return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(difference)), start=jnp.zeros(()))

    return objective


class LBFGSState(NamedTuple):
    x: Float[Array, "n"]
    direction: Float[Array, "n"]
    step_size: Float[Array, ""]
    gradient: Float[Array, "n"]  # before the last move
    s: Float[Array, "m n"]
    y: Float[Array, "m n"]
    rho: Float[Array, "m"]  # 0 for a pair that is not there
    gamma: Float[Array, ""]


def lbfgs_init(x: Float[Array, "n"], history: int) -> LBFGSState:
    zero, pairs = jnp.zeros_like(x), jnp.zeros((history, x.size), x.dtype)
    return LBFGSState(x, zero, jnp.zeros((), x.dtype), zero, pairs, pairs, pairs[:, 0], jnp.ones((), x.dtype))


def two_loop(state: LBFGSState, gradient: Float[Array, "n"], newest: Int[Array, ""]) -> Float[Array, "n"]:
    """-H g. `newest` is the slot of the newest pair.

    Source: Nocedal & Wright 2006, algorithm 7.4.
    """
    m = len(state.rho)

    def backward(i, carry):
        q, alpha = carry
        slot = (newest - i) % m
        a = state.rho[slot] * jnp.vdot(state.s[slot], q)
        return q - a * state.y[slot], alpha.at[slot].set(a)

    def forward(i, r):
        slot = (newest + 1 + i) % m
        b = state.rho[slot] * jnp.vdot(state.y[slot], r)
        return r + (alpha[slot] - b) * state.s[slot]

    q, alpha = jax.lax.fori_loop(0, m, backward, (-gradient, jnp.zeros_like(state.rho)))
    return jax.lax.fori_loop(0, m, forward, state.gamma * q)


def lbfgs_step(value_and_gradient: Callable, k: Int[Array, ""], state: LBFGSState) -> LBFGSState:
    """Step number `k` (from 0): one evaluation, one pair, one move."""
    _, gradient = value_and_gradient(state.x)
    y, s = gradient - state.gradient, state.step_size * state.direction
    ys = jnp.vdot(y, s)
    accept = (k > 0) & (ys > 1e-10)
    slot = (k - 1) % len(state.rho)
    state = state._replace(
        s=state.s.at[slot].set(s),
        y=state.y.at[slot].set(y),
        rho=state.rho.at[slot].set(jnp.where(accept, 1 / jnp.where(accept, ys, 1), 0)),
        gamma=jnp.where(accept, ys / jnp.where(accept, jnp.vdot(y, y), 1), state.gamma),
    )
    direction = two_loop(state, gradient, slot)
    step_size = jnp.where(k == 0, jnp.minimum(1, 1 / jnp.sum(jnp.abs(gradient))), 1).astype(state.x.dtype)
    return state._replace(
        x=state.x + step_size * direction, direction=direction, step_size=step_size, gradient=gradient
    )


class AdamState(NamedTuple):
    x: Float[Array, "n"]
    optimizer: Any


def adam_init(x: Float[Array, "n"], lr: float) -> AdamState:
    return AdamState(x, optax.adam(lr).init(x))


def adam_step(value_and_gradient: Callable, lr: float, state: AdamState) -> AdamState:
    """One step of optax's Adam."""
    updates, optimizer = optax.adam(lr).update(value_and_gradient(state.x)[1], state.optimizer)
    return AdamState(jnp.asarray(optax.apply_updates(state.x, updates)), optimizer)
