"""Closed forms: starts that are the images themselves, and what each needs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxleak.attacks.analytic import first_dense, recover_image
from jaxleak.attacks.april import find_embedding, recover_from_positions
from jaxleak.attacks.dager import recover_tokens
from jaxleak.attacks.rgap import foretold, recover_by_layers
from jaxleak.attacks.spear import Layer, check_width, in_order_of_labels, recover_inputs
from jaxleak.errors import InputError
from jaxleak.threat.chain import Link, find_chain
from jaxleak.threat.loss import CrossEntropy, loss_gradient
from jaxleak.threat.network import draw_params
from jaxleak.threat.victim import Victim


class Leak(NamedTuple):
    """What the attacker has when it begins."""

    update: PyTree
    params: PyTree
    label: Int[Array, "d"]


def read_dense(victim: Victim, leak: Leak, key: Array) -> Float[Array, "1 h w c"]:
    """The image, from the gradient of a network whose first layer is dense on the flattened image (NHWC)."""
    del key
    return recover_image(leak.update, _shape(victim))


def read_positions(victim: Victim, leak: Leak, key: Array) -> Float[Array, "1 h w c"]:
    """The image, from the gradient of a vision transformer with learnt positions and no more patches than `dim`."""
    del key
    sequential = getattr(victim.model, "encoder", "") == "sequential"
    return recover_from_positions(leak.update, leak.params, _shape(victim), sequential=sequential)


def read_relu_layer(victim: Victim, leak: Leak, key: Array) -> Float[Array, "d h w c"]:
    """A batch, from the gradient of a network whose first layer is dense on flattened images, with a ReLU behind it."""
    shape, count = _shape(victim), len(leak.label)
    name = first_dense(leak.update, shape, "spear")
    weights, gradient = leak.params[name], leak.update[name]
    layer = Layer(weights["kernel"], weights["bias"], gradient["kernel"], gradient["bias"])

    def slope(one, label):
        target = victim.target(label[None], one.dtype)

        def loss(bias):
            params = {**leak.params, name: {**weights, "bias": bias}}
            outputs = victim.attacker_model.apply({"params": params}, one.reshape(1, *shape))
            return victim.client.loss.value(outputs, target)

        return jax.grad(loss)(weights["bias"])

    batch = recover_inputs(layer, count, key)
    return in_order_of_labels(batch, slope, leak.label).reshape(count, *shape)


def read_chain(victim: Victim, leak: Leak, key: Array) -> Float[Array, "1 h w c"]:
    """The image, from the gradient of a chain of convolutions and dense layers."""
    low, high = (victim.to_input(jnp.full(_shape(victim), end, float)) for end in (0, 1))
    return recover_by_layers(chain_of(victim), leak.params, leak.update, low, high, key)


def foretold_error(victim: Victim, params: PyTree, update: PyTree, pixels: Float[Array, "1 h w c"]) -> Float[Array, ""]:
    """How well the smoothest image foretells what the update says of a chain's first outputs: `rgap.foretold`."""
    links = chain_of(victim)
    if links[0].dense:
        return jnp.full((), jnp.inf)
    low, high = (victim.to_input(jnp.full(_shape(victim), end, float)) for end in (0, 1))
    return foretold(links, params, update, low, high, jax.random.key(0), victim.to_input(pixels))


def chain_of(victim: Victim) -> list[Link]:
    """The layers of its network; raises InputError where that is no chain.

    It is computed in a thread of its own: there no function is being traced.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(find_chain, victim.attacker_model, param_shapes(victim), _shape(victim)).result()


def _check_chain(victim: Victim) -> None:
    _one_gradient("rgap", victim)
    chain_of(victim)


def read_spans(victim: Victim, leak: Leak, key: Array) -> Float[Array, "d t"]:
    """The tokens of a batch of texts, from the gradient of a transformer with more numbers in a token than tokens."""
    del key
    length, reduction = victim.shape[0], victim.client.loss.reduction
    return recover_tokens(victim.model, leak.params, leak.update, length, victim.batch, reduction)


def _one_gradient(name: str, victim: Victim) -> None:
    if victim.batch > 1:
        raise InputError(f"`attack` {name} reads one image from one gradient; use --batch 1.")
    _check_one_step(name, victim)


def _check_one_step(name: str, victim: Victim) -> None:
    """Raise InputError unless the update is one gradient, which the client may have taken a step of SGD along."""
    if not victim.client.shares_gradient(victim.batch):
        raise InputError(
            f"`attack` {name} reads one gradient; use no local steps, or one of SGD on all images without clipping."
        )


def _check_dense(victim: Victim) -> None:
    _one_gradient("analytic", victim)


def _check_positions(victim: Victim) -> None:
    _one_gradient("april", victim)
    positions = find_embedding(param_shapes(victim), _shape(victim)).positions
    if victim.update is not None:
        update: Any = victim.update
        for name in positions:
            update = update[name]
        if not np.any(np.asarray(update)):
            raise InputError(
                f"april reads the gradient of the positions, {'/'.join(positions)}; it is 0 or missing in `update`. "
                "Give an update that holds it, or use another attack."
            )


def _check_relu(victim: Victim) -> None:
    _check_one_step("spear", victim)
    shapes = param_shapes(victim)
    name = first_dense(shapes, _shape(victim), "spear")
    inputs, width = shapes[name]["kernel"].shape
    check_width(width, inputs, victim.batch)
    if not _has_relu(victim, name):
        raise InputError(
            "spear needs a ReLU right behind the first dense layer, whose gradient is 0 for a unit that is off; "
            f"{victim.model_name} has none there. Use --model mlp --model-field activation=relu, or another attack."
        )


def _has_relu(victim: Victim, name: str) -> bool:
    """True if the slope at each output of the dense layer called `name` is 0 exactly where that is not above 0.

    Of models that do not name their activation it is tried out, on random images and weights.
    """
    shape = _shape(victim)
    if getattr(victim.model, "activation", None) is nn.relu and getattr(victim.model, "hidden", ()):
        return True
    params = draw_params(victim.model, jax.random.key(0), shape)
    x = jax.random.normal(jax.random.key(1), (1, *shape))
    target = victim.target(jnp.zeros(1, int), x.dtype)
    slopes = loss_gradient(victim.attacker_model, params, x, target, victim.client.loss)[name]["bias"]
    outputs = x.reshape(-1) @ params[name]["kernel"] + params[name]["bias"]
    return bool(np.any(outputs <= 0)) and bool(np.all((slopes != 0) <= (outputs > 0)))


def param_shapes(victim: Victim) -> PyTree:
    """The types of the network's weights."""
    variables: Any = jax.eval_shape(victim.model.init, jax.random.key(0), jnp.zeros((1, *victim.shape)))
    return variables["params"]


def _shape(victim: Victim) -> tuple[int, int, int]:
    h, w, c = victim.shape
    return h, w, c


@dataclass(frozen=True)
class ClosedForm:
    """A start that is the images themselves.

    Attributes:
        read: (victim, leak, key) -> the images, in the units of the network's input.
        check: raises `InputError` where it does not apply to a victim.
    """

    read: Callable[[Victim, Leak, Array], Array]
    check: Callable[[Victim], None]


def _check_spans(victim: Victim) -> None:
    model: Any = victim.model
    if victim.modality != "text":
        raise InputError("dager reads tokens; use --model transformer --dataset text, or another attack.")
    if victim.client.loss not in (CrossEntropy(), CrossEntropy(reduction="sum")):
        raise InputError("dager needs plain cross-entropy; leave out label smoothing, class weights and other losses.")
    if victim.batch > 1 and (model.task != "causal" or model.depth < 2):
        raise InputError("dager reads batches of texts from causal networks of at least 2 blocks; use --batch 1.")
    tokens = victim.batch * (victim.shape[0] - (model.task == "causal"))
    if tokens >= model.dim:
        raise InputError(
            f"dager needs more numbers in a token than the batch has tokens; got {model.dim} numbers and {tokens} "
            f"tokens. Use a smaller --batch or --length, or --model-field dim={_multiple(tokens + 1, model.heads)}."
        )


def _multiple(least: int, of: int) -> int:
    return -(-least // of) * of


CLOSED_FORMS = {
    "analytic": ClosedForm(read_dense, _check_dense),
    "april": ClosedForm(read_positions, _check_positions),
    "spear": ClosedForm(read_relu_layer, _check_relu),
    "rgap": ClosedForm(read_chain, _check_chain),
    "dager": ClosedForm(read_spans, _check_spans),
}
