"""The vision transformer against torch and timm's names, and what it refuses."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxleak.errors import InputError
from jaxleak.models import ViT, build_model, load_weights, parameter_count, save_weights
from jaxleak.threat.loss import loss_gradient
from tests.commands import case_id
from tests.fixtures import quick_jit
from tests.oracles.parity import assert_equals_torch, some_variables
from tests.oracles.require_torch import require_torch

CLASSES = 3
SHAPE = (8, 12, 3)
SMALL = {"patch_size": 4, "dim": 6, "heads": 2, "depth": 2, "mlp_ratio": 1.5}


@pytest.mark.torch
@pytest.mark.parametrize("fields", [{}, {"encoder": "sequential", "heads": 3, "activation": nn.tanh}], ids=case_id)
def test_vit_equals_torch(fields):
    """Logits, the parameters' gradient, the attack's objective and its gradient."""
    torch = require_torch()
    oracle = importlib.import_module("jaxleak.bench.networks.vit")
    model = ViT(CLASSES, **{**SMALL, **fields})
    activation = torch.tanh if "activation" in fields else torch.nn.functional.gelu
    sizes = (model.patch_size, model.dim, model.depth, model.heads, 9)
    net = oracle.ViT(CLASSES, SHAPE, *sizes, activation, model.encoder == "sequential")
    assert_equals_torch(model, net, True, SHAPE)


def test_weights_have_timms_names_and_layout(tmp_path):
    """Positions and the class token keep their order; only kernels are transposed."""
    model = ViT(CLASSES, **SMALL)
    params = some_variables(model, SHAPE)["params"]
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, params, SHAPE)
    tensors = load_file(path)
    block = [f"{layer}.{kind}" for layer in ("norm1", "attn.qkv", "attn.proj", "norm2") for kind in ("weight", "bias")]
    block += [f"mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    assert set(tensors) == {
        *("cls_token", "pos_embed", "norm.weight", "norm.bias", "head.weight", "head.bias"),
        *("patch_embed.proj.weight", "patch_embed.proj.bias"),
        *(f"blocks.{number}.{name}" for number in (0, 1) for name in block),
    }
    np.testing.assert_array_equal(tensors["pos_embed"], params["pos_embed"])
    assert tensors["pos_embed"].shape == (1, 7, 6)
    assert tensors["blocks.0.attn.qkv.weight"].shape == (18, 6)
    assert tensors["patch_embed.proj.weight"].shape == (6, 3, 4, 4)
    jax.tree.map(np.testing.assert_array_equal, load_weights(path, model, SHAPE), params)


def test_parameter_count_is_timms():
    """vit_base_patch16_224 and vit_tiny_patch16_224."""
    base = build_model("vit", 1000, patch_size=16, dim=768, depth=12, heads=12)
    assert parameter_count(base, (224, 224, 3)) == 86_567_656
    tiny = build_model("vit", 1000, patch_size=16, dim=192, depth=12, heads=3)
    assert parameter_count(tiny, (224, 224, 3)) == 5_717_416


def test_position_gradients_are_those_of_the_tokens():
    """They are sums over the batch, and a token moved by a position moves the loss as that position does."""
    model = ViT(CLASSES, **SMALL)
    params = some_variables(model, SHAPE)["params"]
    x = np.random.default_rng(0).uniform(size=(2, *SHAPE))
    target = np.eye(CLASSES)[[0, 2]]
    both, *each = (
        quick_jit(lambda p, x, t: loss_gradient(model, p, x, t))(params, x[some], target[some])
        for some in ([0, 1], [0], [1])
    )
    np.testing.assert_allclose(both["pos_embed"], (each[0]["pos_embed"] + each[1]["pos_embed"]) / 2, rtol=1e-9)
    np.testing.assert_allclose(both["pos_embed"][0, 0], both["cls_token"][0, 0], rtol=1e-9)
    bias = both["patch_embed.proj"]["bias"]
    np.testing.assert_allclose(both["pos_embed"][0, 1:].sum(axis=0), bias, rtol=1e-9)


@pytest.mark.parametrize("weight_init", ["torch", "uniform", "uniform-weights", "flax"])
def test_initialisations(weight_init):
    model = ViT(50, dim=64, depth=1, weight_init=weight_init)
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    kernels = {name: np.asarray(params["blocks.0"][name]["kernel"]) for name in ("attn.qkv", "mlp.fc2")}
    uniform = weight_init.startswith("uniform")
    for kernel in kernels.values():
        wanted = {"torch": 0.02, "flax": len(kernel) ** -0.5}.get(weight_init, 12**-0.5)
        assert kernel.std() == pytest.approx(wanted, rel=0.05)
    assert np.std(params["pos_embed"]) == pytest.approx(12**-0.5 if uniform else 0.02, rel=0.1)
    assert np.any(params["blocks.0"]["attn.qkv"]["bias"]) == uniform
    assert (np.ptp(params["norm"]["scale"]) > 0) == (weight_init == "uniform")
    assert np.abs(params["patch_embed.proj"]["kernel"]).max() <= 0.5


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"heads": 5}, r"^`heads` must divide `dim`; got 5 heads for 96\.$"),
        ({"encoder": "post-norm"}, r"^`encoder` must be one of pre-norm, sequential; got 'post-norm'"),
        ({"depth": 0}, r"^`depth` must be above 0; got 0\.$"),
        ({"mlp_ratio": -1.0}, r"^`mlp_ratio` must be above 0; got -1\.0\.$"),
        ({"weight_init": "timm"}, r"^`weight_init` must be one of flax, torch, uniform, uniform-weights; got 'timm'"),
    ],
)
def test_wrong_fields(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        build_model("vit", CLASSES, **fields)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"^`patch_size` must divide the image's sides; got 5 for 32x32\."):
        jax.eval_shape(build_model("vit", CLASSES, patch_size=5).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
