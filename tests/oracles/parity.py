"""A Linen module against a torch one: output, parameter gradient, and what an attack makes of that gradient."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.distances import squared_l2
from jaxleak.models.weights import TENSOR_NAMES, to_torch
from tests.fixtures import quick_jit
from tests.oracles.cases import to_nchw
from tests.oracles.require_torch import require_torch


def relative_error(got, wanted) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float(np.linalg.norm(np.ravel(got - wanted)) / np.linalg.norm(np.ravel(wanted)))


def some_variables(module, image_shape: tuple[int, int, int], seed: int = 0) -> dict[str, Any]:
    """Variables of the module's structure without compiling its `init`: U(-2, 2), which reaches every layer; variances
    U(0.5, 1.5)."""
    rng = np.random.default_rng(seed)
    template = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *image_shape)))

    def draw(path, leaf):
        return rng.uniform(0.5, 1.5, leaf.shape) if path[-1].key == "var" else rng.uniform(-2, 2, leaf.shape)

    return jax.tree.map_with_path(draw, template)


def torch_tensors(module, params, image_shape, batch_stats=None) -> dict[str, np.ndarray]:
    """`to_torch`, for parts of a network too: their names are torch's as they are."""
    part = SimpleNamespace(torch_names=(), head_input_shape=lambda shape: (1, 1, 1))
    return to_torch(module if hasattr(module, "torch_names") else part, params, image_shape, batch_stats)


ZERO = 1e-10  # share of the whole gradient's norm; a bias before a norm in train mode has none but rounding errors


def norms_of(gradient: dict[str, np.ndarray]) -> dict[str, float]:
    """What each tensor's error is divided by: its own norm, so that no layer is too small to be tested, or that of the
    whole gradient where its own is zero but for rounding."""
    own = {name: float(np.linalg.norm(tensor)) for name, tensor in gradient.items()}
    whole = float(np.linalg.norm(list(own.values())))
    return {name: norm if norm > ZERO * whole else whole for name, norm in own.items()}


def evaluate(module, probe, variables, update, norms, x):
    """Output, gradient of sum(probe * sin(output)), matching objective and its gradient, all at `x`.

    Each tensor's error is divided by its number in `norms`.
    """

    def loss(params, x):
        output = module.apply({**variables, "params": params}, x)
        return jnp.vdot(probe, jnp.sin(output)), output

    def objective(x):
        gradient, output = jax.grad(loss, has_aux=True)(variables["params"], x)
        scaled = [jax.tree.map(lambda g, norm: g / norm, tree, norms) for tree in (gradient, update)]
        return squared_l2(*scaled), (gradient, output)

    (value, (gradient, output)), slope = jax.value_and_grad(objective, has_aux=True)(x)
    return output, gradient, value, slope


def torch_evaluate(net, probe, update, norms, x):
    """The same in torch; tensors by name, NCHW. The update is the gradient itself where it is empty."""
    torch = require_torch()
    x = x.detach().clone().requires_grad_()
    names, parameters = zip(*net.named_parameters(), strict=True)
    output = net(x)
    gradient = torch.autograd.grad((probe * output.sin()).sum(), parameters, create_graph=True)
    named = dict(zip(names, gradient, strict=True))
    errors = [(g - update.get(name, g.detach())) / norms.get(name, 1.0) for name, g in named.items()]
    value = torch.stack([(error**2).sum() for error in errors]).sum()
    (slope,) = torch.autograd.grad(value, x)
    return output.detach(), {name: g.detach() for name, g in named.items()}, value.item(), slope


def norms_like(module, params, norms: dict[str, float]):
    """The norms as a tree like `params`."""
    names = dict(getattr(module, "torch_names", ()))

    def norm(path, leaf):
        *modules, tensor = (key.key for key in path)
        return norms[".".join([*(names.get(name, name) for name in modules), TENSOR_NAMES.get(tensor, tensor)])]

    return jax.tree.map_with_path(norm, params)


def load(net, tensors: dict[str, np.ndarray]):
    """The torch network with these weights in float64; its counters of batches stay as they are."""
    torch = require_torch()
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    missing, unexpected = net.double().load_state_dict(state, strict=False)
    lacking = [name for name in missing if "running" not in name and "num_batches" not in name]
    assert not lacking, lacking
    assert not unexpected, unexpected
    return net


def tensor_of(array):
    """NCHW tensor of an NHWC array; logits stay as they are."""
    torch = require_torch()
    return torch.from_numpy(np.array(to_nchw(array) if array.ndim == 4 else array))


def assert_equals_torch(module, net, train: bool, shape: tuple[int, int, int], batch: int = 2) -> None:
    """Output, parameter gradient, matching objective and its gradient equal torch's, with random weights and images.

    Args:
        module: Linen, NHWC in; a network, or a part whose names are torch's.
        net: torch's counterpart.
        train: whether BatchNorm is in train mode, as it must be in `module`.
        shape: height, width, channels of the images.
        batch: images.
    """
    rng = np.random.default_rng(1)
    variables = some_variables(module, shape)
    private, start = rng.uniform(size=(2, batch, *shape))
    kind: Any = jax.eval_shape(module.apply, variables, private)
    probe = rng.normal(size=kind.shape)
    net = load(net, torch_tensors(module, variables["params"], shape, variables.get("batch_stats"))).train(train)
    wanted_output, wanted, _, _ = torch_evaluate(net, tensor_of(probe), {}, {}, tensor_of(private))
    norms = norms_of({name: gradient.numpy() for name, gradient in wanted.items()})
    _, _, wanted_value, wanted_slope = torch_evaluate(net, tensor_of(probe), wanted, norms, tensor_of(start))

    run = quick_jit(lambda *arguments: evaluate(module, probe, *arguments))
    ours = norms_like(module, variables["params"], norms)
    output, update, _, _ = run(variables, variables["params"], ours, private)
    _, _, value, slope = run(variables, update, ours, start)

    assert relative_error(tensor_of(np.asarray(output)), wanted_output) < 1e-10
    shared = torch_tensors(module, update, shape)
    assert set(shared) == set(wanted)
    for name, gradient in wanted.items():
        assert np.linalg.norm(shared[name] - gradient.numpy()) < 1e-8 * norms[name], name
    assert float(value) == pytest.approx(wanted_value, rel=1e-8)
    assert relative_error(tensor_of(np.asarray(slope)), wanted_slope) < 1e-8
